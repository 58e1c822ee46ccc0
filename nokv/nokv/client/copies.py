"""Copies by metadata alone, moves between views, and quotas.

A copy shows the objects of its source; no byte moves (docs/namespace.md: Copies).
"""

from __future__ import annotations

import asyncio
import stat
from typing import Final, NamedTuple

from nokv.client.arguments import checked_methods
from nokv.client.core import Core
from nokv.client.entries import file_type
from nokv.client.options import Options, expect, query
from nokv.client.paths import AnyPath, components, encode_name, join, split
from nokv.client.paths import at as address
from nokv.client.reads import ReadHandle, shown_path
from nokv.client.session import Session
from nokv.client.stage import staged
from nokv.client.upload import FileInfo, checked, propose_uploads
from nokv.client.views import ViewHandle
from nokv.errors import (
    AlreadyExists,
    CopyTooLarge,
    CrossesView,
    GenerationMismatch,
    InvalidArgument,
    IsADirectory,
    NotFound,
    PredicateFailed,
    QuotaExceeded,
    SessionExpired,
    SourceChanged,
)
from nokv.types.commands import (
    Atomic,
    GenerationIs,
    InnerOp,
    Mknod,
    Op,
    Predicate,
    RemoveXattr,
    SetAttr,
    SetXattr,
    StageBegin,
    StageMode,
    StageSwap,
    Symlink,
    Unlink,
    VersionIs,
)
from nokv.types.copies import (
    NO_LIMIT,
    Copied,
    Copy,
    CopyMode,
    CopyRange,
    GetQuota,
    QuotaReply,
    SetQuota,
)
from nokv.types.limits import FILE_BYTES_MAX
from nokv.types.reads import AttrReply, GetAttr, Read
from nokv.types.results import AtomicDone, Published, Result
from nokv.types.values import At, Attr, FileType

ROOM_BYTES: Final = 16 * 1024 * 1024
"""A body of so many bytes is worth a look at the quotas before it is uploaded."""

TRIES: Final = 8
"""How often a move between views is made again because what it looked at changed."""

ACCESS_LIST: Final = b"system.posix_acl_access"

SET_ID: Final = stat.S_ISUID | stat.S_ISGID


@checked_methods
class CopyHandle(ViewHandle):
    """Files that share their bodies, and how much directories may hold."""

    # ------------------------------------------------------------ copies

    async def copy(
        self, source: AnyPath, target: AnyPath, *, at: str | None = None, replace: bool = True
    ) -> FileInfo:
        """Make `target` a file that shows the body of another one: no bytes are copied.

        It becomes visible whole, whatever its size. A new file has the permission bits of its
        source, the caller as its owner and the present as its times.

        Args:
            source: a regular file; a symbolic link to one is followed.
            target: the path of the copy, also in another view.
            at: copy what this snapshot shows at `source`.
            replace: a file that is there gets a new generation; else AlreadyExists.

        Raises:
            IsADirectory: the source is one (`clone` copies directories), or the target.
            SourceChanged: a body too large for one command was replaced meanwhile; nothing is
                visible.
        """
        parent, name = split(target)
        origin = await _origin(self if at is None else self.at(at), source)
        mode = CopyMode.REPLACE if replace else CopyMode.CREATE
        bits = origin.attr.mode & 0o7777
        op = Copy(origin.where, At(0, 1, parent), name, int(mode), bits, origin.version)
        made = await _Change(self._core, self._options, origin, op).run()
        sha256 = made.attr.sha256.hex() if made.attr is not None else ""
        return FileInfo(made.generation, sha256, made.size, made.inode)

    async def copy_range(
        self,
        source: AnyPath,
        target: AnyPath,
        *,
        source_offset: int = 0,
        target_offset: int = 0,
        length: int | None = None,
        at: str | None = None,
    ) -> int:
        """Make bytes of a file show bytes of another one, as copy_file_range(2): none are copied.

        A range of up to 64 GiB is one change; a longer one goes in several.

        Args:
            source: a regular file.
            target: a regular file that is there; it grows as far as needed.
            source_offset: of the first byte.
            target_offset: of the first byte.
            length: bytes; None: to the source's end.
            at: read what this snapshot shows at `source`.

        Returns:
            Bytes that were copied: fewer than `length` only at the source's end.
        """
        origin = await _origin(self if at is None else self.at(at), source)
        left = FILE_BYTES_MAX if length is None else length
        copied = 0
        while left > copied:
            begin = source_offset + copied, target_offset + copied
            room = FILE_BYTES_MAX - max(begin)
            step = min(left - copied, max(room, 0))
            op = CopyRange(origin.where, address(target), *begin, step, origin.version)
            done = expect((await self._do(op)).value, Copied).copied_bytes
            if not done:
                break
            copied += done
        return copied

    # ------------------------------------------------------------ moves

    async def _move_across(
        self, source: AnyPath, target: AnyPath, predicates: tuple[Predicate, ...], *, replace: bool
    ) -> None:
        """Move what is no directory into another view: a copy and a removal in one change.

        Raises:
            CrossesView: it is a directory.
        """
        for attempt in range(1, TRIES + 1):
            move = _Move(self, source, target, predicates)
            try:
                await move.run(self._core, self._options, replace=replace)
            except (PredicateFailed, AlreadyExists, NotFound):
                if attempt == TRIES or not await move.outdated():
                    raise
            else:
                return

    # ------------------------------------------------------------ quotas

    async def quota(self, path: AnyPath) -> QuotaReply:
        """Return what a directory may hold (0: no limit), and what it does."""
        return expect(await self._ask(GetQuota(address(path))), QuotaReply)

    async def set_quota(
        self, path: AnyPath, *, entries: int | None = None, size_bytes: int | None = None
    ) -> None:
        """Limit what a directory and all below it may hold; what is left out has no limit.

        Growth beyond a limit is QuotaExceeded; what is there already stays.

        Args:
            path: of the directory.
            entries: names, at any depth.
            size_bytes: of all files, once per name.

        Raises:
            NotPermitted: the caller is not root.
        """
        for limit in (entries, size_bytes):
            if limit is not None and limit < 1:
                message = f"a quota of {limit}"
                raise InvalidArgument(message, hint="at least 1; None: no limit")
        op = SetQuota(address(path), entries or NO_LIMIT, size_bytes or NO_LIMIT)
        await self._do(op)


async def check_room(core: Core, options: Options, path: AnyPath, n_bytes: int) -> None:
    """Return unless a quota above a file says already that a body would not fit there.

    What changes until the publish, or lies above a symbolic link, is found by the publish itself.

    Raises:
        QuotaExceeded: nothing needs to be uploaded.
    """
    parts = components(path)
    places = [At(0, 1, parts[:depth]) for depth in range(len(parts))]
    reads: list[Read] = [GetAttr(address(path)), *(GetQuota(place) for place in places)]
    attr, *quotas = await asyncio.gather(
        *(query(core, options, read) for read in reads), return_exceptions=True
    )
    freed = 0
    if not isinstance(attr, BaseException):
        freed = expect(attr[1], AttrReply).attr.size
    for place, found in zip(places, quotas, strict=True):
        if isinstance(found, BaseException):
            continue
        quota = expect(found[1], QuotaReply)
        after = quota.size_bytes - freed + n_bytes
        if quota.size_bytes_max and n_bytes > freed and after > quota.size_bytes_max:
            where = shown_path(join(place.path))
            message = f"{after} bytes below {where}, which may hold {quota.size_bytes_max}"
            raise QuotaExceeded(message, hint=f"remove something below {where}, or raise its quota")


# ---------------------------------------------------------------- one change


class Origin(NamedTuple):
    """A file to copy: where it is read, at which version, and what it was like."""

    where: At
    version: int
    attr: Attr

    @property
    def unchanged(self) -> tuple[Predicate, ...]:
        """What holds as long as its body is this one."""
        return () if self.version else (GenerationIs(self.where, self.attr.generation),)


async def _origin(handle: ReadHandle, path: AnyPath) -> Origin:
    where, version = await handle.locate(path)
    return Origin(where, version, await handle.stat(path))


class _Change(NamedTuple):
    """A copy, and what happens together with it."""

    core: Core
    options: Options
    origin: Origin
    copy: Copy
    before: tuple[InnerOp, ...] = ()
    after: tuple[InnerOp, ...] = ()
    predicates: tuple[Predicate, ...] = ()

    async def run(self) -> Published:
        """Run everything as one change; a body beyond one command is copied out of sight before."""
        ops = (*self.before, self.copy, *self.after)
        deadline_s = self.options.deadline_s
        try:
            result = await self.core.propose(Atomic(ops), self.predicates, deadline_s)
        except CopyTooLarge:
            return await self._staged()
        return expect(expect(result.value, AtomicDone).values[len(self.before)], Published)

    async def _staged(self) -> Published:
        copy = self.copy
        _, value = await query(self.core, self.options, GetAttr(copy.parent))
        view = expect(value, AttrReply).attr.view  # what is staged lies in the view that it enters
        session = await self.core.session(self.options.deadline_s)
        begin = StageBegin(view, stat.S_IFREG | copy.mode, copy.parent, copy.name)
        mode = StageMode.CREATE if copy.copy_mode == CopyMode.CREATE else StageMode.REPLACE
        deadline_s = self.options.deadline_s
        async with staged(self.core, session, begin, deadline_s) as stage:
            root = stage.root
            await self._fill(session, root)
            swap = StageSwap(root.view, root.inode, copy.parent, copy.name, int(mode))
            op = Atomic((*self.before, swap, *self.after))
            result = checked(
                await propose_uploads(self.core, session, op, [stage], self.predicates, deadline_s)
            )
        return expect(expect(result.value, AtomicDone).values[len(self.before)], Published)

    async def _fill(self, session: Session, stage: At) -> None:
        """Copy the body into a staged file, as much at a time as one command takes."""
        origin, done = self.origin, 0
        while done < origin.attr.size:
            left = origin.attr.size - done
            op = CopyRange(origin.where, stage, done, done, left, origin.version)
            try:
                result = await self._send(session, Atomic((op,)), origin.unchanged)
            except GenerationMismatch:
                message = "the file was replaced while it was copied"
                raise SourceChanged(message, hint="copy what a snapshot of it shows") from None
            copied = expect(expect(result.value, AtomicDone).values[0], Copied).copied_bytes
            assert copied > 0, "nothing was copied of a range inside the file"
            done += copied

    async def _send(
        self, session: Session, op: Op, predicates: tuple[Predicate, ...] = ()
    ) -> Result:
        result = await self.core.submit(session, op, predicates, self.options.deadline_s)
        if result is None:
            message = f"session {session.id:x} ended before the copy was complete"
            raise SessionExpired(message, hint="copy the file again")
        return result


# ---------------------------------------------------------------- moves between views


class _Move:
    """One attempt to move a name into another view, by what was there when it began."""

    def __init__(
        self, fs: CopyHandle, source: AnyPath, target: AnyPath, predicates: tuple[Predicate, ...]
    ) -> None:
        self._fs = fs
        self._paths = source, target
        self._places = address(source, follow=False), address(target, follow=False)
        self._predicates = predicates
        self._seen: list[Attr | None] = []

    async def run(self, core: Core, options: Options, *, replace: bool) -> None:
        """Look at both names and move. Raises CrossesView for a directory."""
        self._seen = await self._look()
        attr, there = self._seen
        source, target = self._paths
        if attr is None:
            message = f"there is no {shown_path(source)}"
            raise NotFound(message)
        if file_type(attr) == FileType.DIRECTORY:
            message = f"{shown_path(source)} is a directory, {shown_path(target)} in another view"
            hint = "clone it to its new place (nokv clone), and remove the original (nokv rm -r)"
            raise CrossesView(message, hint=hint)
        if there is not None and not replace:
            message = f"{shown_path(target)} is there"
            raise AlreadyExists(message)
        if there is not None and file_type(there) == FileType.DIRECTORY:
            message = f"{shown_path(target)} is a directory"
            raise IsADirectory(message)
        old_parent, old_name = split(source)
        new_parent, new_name = split(target)
        parent = At(0, 1, new_parent)
        before = () if there is None else (Unlink(parent, new_name),)
        after = (*await self._kept(core, attr), Unlink(At(0, 1, old_parent), old_name))
        unchanged = tuple(
            VersionIs(place, one.version)
            for place, one in zip(self._places, self._seen, strict=True)
            if one is not None
        )
        predicates = (*self._predicates, *unchanged)
        if file_type(attr) == FileType.REGULAR:
            origin = Origin(self._places[0], 0, attr)
            copy = Copy(origin.where, parent, new_name, int(CopyMode.CREATE), attr.mode & 0o7777)
            change = _Change(core, options, origin, copy, before, after, predicates)
            await change.run()
            return
        make: InnerOp
        if file_type(attr) == FileType.SYMLINK:
            text = await self._fs.readlink(source)
            make = Symlink(parent, new_name, encode_name(text))
        else:
            make = Mknod(parent, new_name, attr.mode, attr.rdev)
        await core.propose(Atomic((*before, make, *after)), predicates, options.deadline_s)

    async def outdated(self) -> bool:
        """Return whether another attempt would see something else."""
        return await self._look() != self._seen

    async def _look(self) -> list[Attr | None]:
        found: list[Attr | None] = []
        for path in self._paths:
            try:
                found.append(await self._fs.lstat(path))
            except NotFound:
                found.append(None)
        return found

    async def _kept(self, core: Core, attr: Attr) -> list[InnerOp]:
        """Return what gives the moved inode the attributes that it had."""
        place = self._places[1]
        is_root = core.caller.uid == 0
        owner = (attr.uid, attr.gid) if is_root else (None, None)
        times = {"atime_ns": attr.atime_ns, "mtime_ns": attr.mtime_ns}
        if file_type(attr) == FileType.SYMLINK:
            return [SetAttr(place, uid=owner[0], gid=owner[1], **times)]
        mode = attr.mode & 0o7777
        if not is_root and (attr.uid, attr.gid) != (core.caller.uid, core.caller.gid):
            mode &= ~SET_ID  # the moved file is the caller's
        ops: list[InnerOp] = [RemoveXattr(place, ACCESS_LIST)]  # one inherited there
        for name in await self._fs.listxattr(self._paths[0]):
            value = await self._fs.getxattr(self._paths[0], name)
            ops.append(SetXattr(place, encode_name(name), value))
        return [*ops, SetAttr(place, mode=mode, uid=owner[0], gid=owner[1], **times)]
