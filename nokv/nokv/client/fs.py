"""The asynchronous client: everything that reads, and everything that changes, the namespace."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nokv.client import segments, tree
from nokv.client.arguments import Device, Time, checked_methods
from nokv.client.copies import ROOM_BYTES, CopyHandle, check_room
from nokv.client.core import Core
from nokv.client.diff import DiffHandle
from nokv.client.entries import file_type
from nokv.client.files import AsyncWriter
from nokv.client.fold import append_or_create, propose_part
from nokv.client.locks import AsyncLock
from nokv.client.options import expect
from nokv.client.paths import AnyPath, at, decode_name, encode_name, split
from nokv.client.plan import plan_files
from nokv.client.publish import Mode, run
from nokv.client.publish import Published as PublishedSet
from nokv.client.readonly import PinnedView
from nokv.client.trash import TrashHandle
from nokv.client.upload import (
    BodyUpload,
    FileInfo,
    begin_upload,
    checked,
    file_info,
    propose_uploads,
)
from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    NotFound,
    NotSupported,
    from_wire,
)
from nokv.objects.source import SourceLike, refuse_text
from nokv.objects.upload import Progress
from nokv.types.commands import (
    TIME_NOW,
    BulkCreate,
    Create,
    GenerationIs,
    Link,
    Mkdir,
    Mknod,
    PinView,
    Predicate,
    PublishMode,
    RemoveTree,
    RemoveXattr,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    SetXattr,
    Symlink,
    Unlink,
    UnpinView,
    XattrFlag,
)
from nokv.types.commands import Op as Operation
from nokv.types.results import MadeMany, Pinned, Result
from nokv.types.values import At, Attr, FileType

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755

NOW: Final = TIME_NOW
"""As a time of `utime`: the cluster's clock when the command is applied."""


@checked_methods
class AsyncClient(DiffHandle, CopyHandle, TrashHandle):
    """A connected client. Make one with `nokv.connect`; belongs to one event loop.

    Paths are absolute, text or bytes. Every change is one command: applied once, or not at all,
    whatever is retried. Methods raise the typed errors of `nokv.errors`; a change may also raise
    DeadlineExceeded, after which it may still be applied.
    """

    # ------------------------------------------------------------ life

    async def close(self) -> None:
        """End the session and all connections; files that are open become unusable."""
        await self._core.close()

    @property
    def core(self) -> Core:
        """What the parts of this client share; for administration."""
        return self._core

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def session_id(self) -> int:
        """Return the id of the session that changes run in now; opens one if there is none."""
        return (await self._core.session(self._options.deadline_s)).id

    # ------------------------------------------------------------ making names

    async def mkdir(
        self,
        path: AnyPath,
        mode: int = DIRECTORY_MODE,
        *,
        parents: bool = False,
        exist_ok: bool = False,
    ) -> Attr:
        """Make a directory and return its attributes.

        Args:
            path: of the directory.
            mode: permission bits; no umask is applied.
            parents: make the missing directories above it too, with DIRECTORY_MODE.
            exist_ok: a directory that is there already is fine.
        """
        parent, name = split(path)
        try:
            if parents and parent:
                await self._make_parents(parent)
            return await self._make(Mkdir(At(0, 1, parent), name, mode))
        except AlreadyExists:
            if not exist_ok:
                raise
            attr = await self.stat(path)
            if file_type(attr) != FileType.DIRECTORY:
                raise
            return attr

    async def _make_parents(self, parent: tuple[bytes, ...]) -> None:
        """Make all directories on the way in one batch; those that are there are fine."""
        session = await self._core.session(self._options.deadline_s)
        if session.stream.full:
            await session.stream.room(self._options.deadline_s)
        answers = [
            session.stream.submit(
                Mkdir(At(0, 1, parent[:depth]), parent[depth], DIRECTORY_MODE),
                timeout_s=self._options.deadline_s,
            )
            for depth in range(len(parent))
        ]
        results = await asyncio.gather(*answers)
        last: Result = results[-1]
        if last.code and last.code != AlreadyExists.code:
            raise from_wire(last.code, last.message, last.hint)

    async def create(
        self, path: AnyPath, mode: int = FILE_MODE, *, predicates: tuple[Predicate, ...] = ()
    ) -> Attr:
        """Make an empty file; AlreadyExists if the name is taken."""
        parent, name = split(path)
        return await self._make(Create(At(0, 1, parent), name, mode), predicates)

    async def bulk_create(
        self, directory: AnyPath, names: Iterable[str | bytes], mode: int = FILE_MODE
    ) -> MadeMany:
        """Make empty files in one directory, all or none, at most BULK_NAMES_MAX."""
        op = BulkCreate(at(directory), tuple([encode_name(name) for name in names]), mode)
        return expect((await self._do(op)).value, MadeMany)

    async def mknod(self, path: AnyPath, mode: int, rdev: Device = 0) -> Attr:
        """Make a FIFO, socket, device or regular file; `mode` has the type bits."""
        parent, name = split(path)
        return await self._make(Mknod(At(0, 1, parent), name, mode, rdev))

    async def symlink(self, target: str | bytes, path: AnyPath) -> Attr:
        """Make `path` a symbolic link to `target`, which is kept as it is."""
        parent, name = split(path)
        return await self._make(Symlink(At(0, 1, parent), name, encode_name(target)))

    async def link(self, source: AnyPath, path: AnyPath) -> Attr:
        """Make `path` a further name of the file `source`; a symbolic link is not followed."""
        parent, name = split(path)
        return await self._make(Link(at(source, follow=False), At(0, 1, parent), name))

    # ------------------------------------------------------------ removing and moving

    async def unlink(
        self,
        path: AnyPath,
        *,
        missing_ok: bool = False,
        predicates: tuple[Predicate, ...] = (),
    ) -> None:
        """Remove a name that is no directory."""
        parent, name = split(path)
        try:
            await self._do(Unlink(At(0, 1, parent), name), predicates)
        except NotFound:
            if not missing_ok:
                raise

    async def remove(self, path: AnyPath, *, missing_ok: bool = False) -> None:
        """Remove a name that is no directory: `unlink` by its other name."""
        await self.unlink(path, missing_ok=missing_ok)

    async def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        parent, name = split(path)
        await self._do(Rmdir(At(0, 1, parent), name))

    async def remove_tree(self, path: AnyPath, *, missing_ok: bool = False) -> None:
        """Remove a directory with all that is below it: one change, reaped in the background."""
        parent, name = split(path)
        try:
            await self._do(RemoveTree(At(0, 1, parent), name))
        except NotFound:
            if not missing_ok:
                raise

    async def rename(
        self,
        source: AnyPath,
        target: AnyPath,
        *,
        replace: bool = True,
        exchange: bool = False,
        predicates: tuple[Predicate, ...] = (),
    ) -> None:
        """Rename as renameat2(2) does.

        Between two views a file is moved by a copy of its metadata, in one change too: it is a new
        inode then. A directory can't be: CrossesView.

        Args:
            source: the present path.
            target: the path afterwards.
            replace: what `target` named before goes, as POSIX says; else AlreadyExists.
            exchange: the two change places; `replace` does not matter then.
            predicates: what else must hold.
        """
        old, old_name = split(source)
        new, new_name = split(target)
        flags = RenameFlag.EXCHANGE if exchange else RenameFlag(0 if replace else 1)
        op = Rename(At(0, 1, old), old_name, At(0, 1, new), new_name, int(flags))
        try:
            await self._do(op, predicates)
        except CrossesView:
            if exchange:
                raise
            await self._move_across(source, target, predicates, replace=replace)

    async def move(self, source: AnyPath, target: AnyPath) -> None:
        """Rename to a name that must be free."""
        await self.rename(source, target, replace=False)

    async def replace(self, source: AnyPath, target: AnyPath) -> None:
        """Rename; what `target` named before goes."""
        await self.rename(source, target)

    # ------------------------------------------------------------ attributes

    async def chmod(self, path: AnyPath, mode: int) -> Attr:
        """Set the permission bits."""
        return await self._make(SetAttr(at(path), mode=mode))

    async def chown(
        self, path: AnyPath, uid: int | None = None, gid: int | None = None, *, follow: bool = True
    ) -> Attr:
        """Set the owner, the group, or both."""
        return await self._make(SetAttr(at(path, follow=follow), uid=uid, gid=gid))

    async def utime(
        self,
        path: AnyPath,
        *,
        atime_ns: Time | None = NOW,
        mtime_ns: Time | None = NOW,
        follow: bool = True,
    ) -> Attr:
        """Set times, in ns since 1970; NOW is the cluster's clock, None leaves one as it is."""
        op = SetAttr(at(path, follow=follow), atime_ns=atime_ns, mtime_ns=mtime_ns)
        return await self._make(op)

    async def truncate(self, path: AnyPath, size: int) -> Attr:
        """Cut a file, or extend it with zeros, to `size` bytes."""
        return await self._make(SetAttr(at(path), size=size))

    async def set_flags(self, path: AnyPath, flags: int) -> Attr:
        """Set the inode flags (`nokv.types.values.InodeFlag`); root only."""
        return await self._make(SetAttr(at(path), flags=flags))

    async def setxattr(
        self, path: AnyPath, name: str | bytes, value: bytes, flags: int = XattrFlag.EITHER
    ) -> None:
        """Set an extended attribute. `flags`: may it be there, must it, must it not."""
        await self._do(SetXattr(at(path), encode_name(name), bytes(value), int(flags)))

    async def removexattr(self, path: AnyPath, name: str | bytes) -> None:
        """Remove an extended attribute; NoAttribute if there is none."""
        await self._do(RemoveXattr(at(path), encode_name(name)))

    # ------------------------------------------------------------ locks

    def lock(
        self,
        path: AnyPath,
        *,
        shared: bool = False,
        span: tuple[int, int] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncLock:
        """Return an advisory lock of a file or directory: `async with fs.lock(path):`.

        Args:
            path: of what is there; the lock is its inode's, whatever becomes of the name.
            shared: with others that share; else alone.
            span: (first byte, length) to lock a range, as fcntl(2) does; a length of 0 reaches to
                the end. None locks the whole, as flock(2) does; the two do not see each other.
            timeout_s: how long to wait before LockHeld is raised; 0 tries once, None waits on.
        """
        return AsyncLock(
            self._core, self._options, at(path), shared=shared, span=span, timeout_s=timeout_s
        )

    # ------------------------------------------------------------ bodies

    async def write_bytes(
        self,
        path: AnyPath,
        data: SourceLike,
        *,
        mode: int = FILE_MODE,
        if_generation: int | None = None,
        if_absent: bool = False,
        mtime_ns: Time = NOW,
        predicates: tuple[Predicate, ...] = (),
        progress: Progress | None = None,
    ) -> FileInfo:
        """Make `data` the body of the file: one new generation, visible whole or not at all.

        Args:
            path: of the file; a last symbolic link to a file is followed.
            data: bytes, a `Path` of a local file, a binary file object or an async iterator of
                bytes. A `str` is refused: is it text, or a path?
            mode: permission bits of a file that this makes.
            if_generation: replace only this generation (0: no body); else GenerationMismatch.
            if_absent: only make; AlreadyExists if the name is taken.
            mtime_ns: of the file; NOW is the cluster's clock.
            predicates: what else must hold.
            progress: called with the bytes of each block that is stored.

        Raises:
            UploadFailed, SourceChanged: nothing was published.
        """
        kind = _publish_mode(if_generation, if_absent=if_absent)
        refuse_text(data)
        if isinstance(data, os.PathLike):
            found = await asyncio.to_thread(tree.check_file, os.fspath(data))
            if found.st_size >= ROOM_BYTES:
                await check_room(self._core, self._options, path, found.st_size)
            if found.st_size > segments.SEGMENT_BYTES:
                if if_generation is not None:
                    predicates = (*predicates, GenerationIs(at(path), if_generation))
                return await segments.write_large(
                    self._core,
                    self._options,
                    path,
                    data,
                    found,
                    mode=mode,
                    create=if_absent,
                    predicates=predicates,
                    mtime_ns=mtime_ns,
                    progress=progress,
                )
        elif isinstance(data, bytes) and len(data) >= ROOM_BYTES:
            await check_room(self._core, self._options, path, len(data))
        upload = await begin_upload(self._core, self._options.deadline_s)
        try:
            await self._core.fault_point("upload")
            await upload.upload(data, progress=progress)
            await self._core.fault_point("uploaded")
            return await self._publish_body(
                upload, path, kind, mode, if_generation or 0, mtime_ns, predicates
            )
        finally:
            await upload.release()

    put = write_bytes

    async def put_file(
        self,
        local: str | os.PathLike[str],
        path: AnyPath,
        *,
        if_generation: int | None = None,
        if_absent: bool = False,
        keep_times: bool = False,
        progress: Progress | None = None,
    ) -> FileInfo:
        """Publish a local file with its permission bits.

        Raises:
            SourceChanged: it changed while it was uploaded; nothing was published.
        """
        found = await asyncio.to_thread(tree.check_file, os.fspath(local))
        return await self.write_bytes(
            path,
            Path(local),
            mode=found.st_mode & 0o7777,
            if_generation=if_generation,
            if_absent=if_absent,
            mtime_ns=found.st_mtime_ns if keep_times else NOW,
            progress=progress,
        )

    async def _publish_body(
        self,
        upload: BodyUpload,
        path: AnyPath,
        kind: PublishMode,
        mode: int,
        if_generation: int = 0,
        mtime_ns: int = NOW,
        predicates: tuple[Predicate, ...] = (),
    ) -> FileInfo:
        parent, name = split(path)
        op = upload.op(
            At(0, 1, parent),
            name,
            kind,
            file_mode=mode,
            if_generation=if_generation,
            mtime_ns=mtime_ns,
        )
        result = await self._send(upload, op, predicates)
        if result.code == NotSupported.code and kind != PublishMode.CREATE:
            # The name may be a symbolic link: address the file that it leads to, in apply.
            op = upload.op(at(path), b"", kind, if_generation=if_generation, mtime_ns=mtime_ns)
            result = await self._send(upload, op, predicates)
        return file_info(upload, checked(result))

    async def _send(
        self, upload: BodyUpload, op: Operation, predicates: tuple[Predicate, ...]
    ) -> Result:
        deadline_s = self._options.deadline_s
        return await propose_uploads(
            self._core, upload.session, op, [upload], predicates, deadline_s
        )

    async def append(self, path: AnyPath, data: SourceLike) -> FileInfo:
        """Add bytes at the end of a file that exists; its `offset` says where they went."""
        return await self._write_part(path, data, PublishMode.APPEND, 0)

    async def patch(self, path: AnyPath, offset: int, data: SourceLike) -> FileInfo:
        """Rewrite the bytes from `offset` on; the file must exist, and grows as far as needed.

        Other ranges of the same file that are patched at the same time stay what they become.
        """
        return await self._write_part(path, data, PublishMode.PATCH, offset)

    async def _write_part(
        self, path: AnyPath, data: SourceLike, kind: PublishMode, offset: int
    ) -> FileInfo:
        upload = await begin_upload(self._core, self._options.deadline_s)
        try:
            await self._core.fault_point("upload")
            await upload.upload(data, offset=offset, sha256=False)
            await self._core.fault_point("uploaded")
            assert upload.body is not None
            size = offset + upload.body.length
            op = upload.op(at(path), b"", kind, size=size)
            result = await propose_part(self._core, self._options, upload, op)
            return file_info(upload, checked(result))
        finally:
            await upload.release()

    async def _open_writer(self, path: AnyPath, kind: str) -> AsyncWriter:
        split(path)
        upload = await begin_upload(self._core, self._options.deadline_s)

        async def finish(done: BodyUpload) -> FileInfo:
            async def create() -> FileInfo:
                return await self._publish_body(done, path, PublishMode.CREATE, FILE_MODE)

            if kind == "x":
                return await create()
            if kind == "w":
                return await self._publish_body(done, path, PublishMode.REPLACE, FILE_MODE)
            op = done.op(at(path), b"", PublishMode.APPEND)
            return await append_or_create(self._core, self._options, done, op, create)

        return AsyncWriter(decode_name(encode_name(os.fspath(path))), upload, finish)

    # ------------------------------------------------------------ publishing several files

    async def publish(
        self,
        path: AnyPath,
        files: Mapping[str, SourceLike],
        mode: Mode = "create",
        *,
        progress: Progress | None = None,
    ) -> PublishedSet:
        """Make a directory of files visible as one change; see `nokv.client.publish`.

        Args:
            path: of the directory.
            files: names below it, which may have directories in them, and their bodies: bytes,
                `Path`s of local files, binary file objects or async iterators of bytes.
            mode: "create": the path must be free. "replace": what it shows is replaced whole.
                "merge": the files are added to the directory that is there, replacing those of the
                same names; atomic while it fits one entry of the log, else refused (TooLarge)
                before anything is uploaded.
            progress: called with the bytes of each block that is stored.

        Raises:
            UploadFailed, SourceChanged: nothing was published and what was stored is deleted.
        """
        plan = await asyncio.to_thread(plan_files, files, FILE_MODE, DIRECTORY_MODE)
        return await run(self._core, self._options, path, plan, mode, progress)

    async def publish_tree(
        self,
        local: str | os.PathLike[str],
        path: AnyPath,
        mode: Mode = "create",
        *,
        skip_special: bool = False,
        progress: Progress | None = None,
    ) -> PublishedSet:
        """Make a copy of a local directory visible as one change.

        Symbolic links are kept as they are, and permission bits and modification times of files
        and directories. Names need not be UTF-8.

        Args:
            local: the directory.
            path: of the copy.
            mode: as in `publish`.
            skip_special: leave FIFOs, sockets and devices out; else they are refused before
                anything is uploaded.
            progress: called with the bytes of each block that is stored.

        Raises:
            SourceChanged: a file changed or vanished meanwhile; nothing was published.
            NotSupported: the tree holds a FIFO, socket or device.
        """
        plan = await asyncio.to_thread(tree.scan, os.fspath(local), skip_special=skip_special)
        return await run(self._core, self._options, path, plan, mode, progress)

    # ------------------------------------------------------------ pinned views

    @asynccontextmanager
    async def pinned(self) -> AsyncIterator[PinnedView]:
        """Pin the live tree for the length of a block and yield a view of it as it is now.

        The pin belongs to the session: if that ends, reads of the view raise VersionNotPinned.
        """
        deadline_s = self._options.deadline_s
        core = self._core
        session = await core.session(deadline_s)
        result = await core.acquire(session, PinView(0), deadline_s, _unpin)
        if result is None:
            session = await core.session(deadline_s)
            result = await core.acquire(session, PinView(0), deadline_s, _unpin)
        pin = expect(result.value if result is not None else None, Pinned)
        try:
            yield PinnedView(core, self._options._replace(at_version=pin.version))
        finally:
            assert result is not None
            unpinning = core.undo(session, _unpin(result))
            if unpinning is not None:
                await asyncio.wait([unpinning], timeout=deadline_s)


def _unpin(pinned: Result) -> UnpinView:
    pin = expect(pinned.value, Pinned)
    return UnpinView(pin.view, pin.version, pin.pin)


def _publish_mode(if_generation: int | None, *, if_absent: bool) -> PublishMode:
    if if_absent:
        if if_generation is not None:
            message = "a file can't be both absent and of a generation"
            raise InvalidArgument(message)
        return PublishMode.CREATE
    return PublishMode.REPLACE if if_generation is None else PublishMode.REPLACE_GENERATION
