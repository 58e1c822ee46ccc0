"""Everything that reads the namespace, at the present or at a pinned version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, overload

from nokv.client import bodies, download
from nokv.client.arguments import Encoding, checked_methods
from nokv.client.core import Core
from nokv.client.entries import Entry, entry_of, file_type, has_magic, matcher
from nokv.client.files import (
    AsyncReader,
    AsyncTextReader,
    AsyncTextWriter,
    AsyncWriter,
    Opening,
)
from nokv.client.options import Options, expect, query
from nokv.client.paths import AnyPath, at, components, decode_name, encode_name
from nokv.client.watch import WINDOW_BYTES, Watch
from nokv.errors import (
    InvalidArgument,
    NotADirectory,
    NotFound,
    PermissionDenied,
    ReadOnly,
    TooManyLinks,
)
from nokv.objects.upload import Progress
from nokv.types.limits import PAGE_MAX
from nokv.types.reads import (
    PRESENT,
    Access,
    AttrReply,
    BytesReply,
    DirPage,
    Event,
    EventsReply,
    GetAttr,
    GetUsage,
    GetXattr,
    ListXattr,
    NamesReply,
    Read,
    ReadDir,
    ReadEvents,
    ReadLink,
    ReadValue,
    StatFs,
    StatFsReply,
    UsageReply,
    VolumeReply,
)
from nokv.types.values import At, Attr, FileType
from nokv.wire.rpc import Consistency

if TYPE_CHECKING:
    from typing import Self

PAGE = 1024
"""Entries of one request of a listing."""

_MISSING = (NotFound, NotADirectory, TooManyLinks)


@checked_methods
class ReadHandle:
    """What reads. Handles with other options (`reading_from`, `stale`, `within`) share the client.

    Every method that reaches the cluster raises DeadlineExceeded or Unavailable if no node answers
    in time, and the typed errors of the namespace (`nokv.errors`), which are OSErrors.
    """

    def __init__(self, core: Core, options: Options) -> None:
        self._core = core
        self._options = options

    def _with(self, options: Options) -> Self:
        return type(self)(self._core, options)

    # ------------------------------------------------------------ options

    def within(self, deadline_s: float) -> Self:
        """Return a handle whose calls may take so many seconds each."""
        if not 0 < deadline_s < 1e6:
            message = f"a deadline of {deadline_s} s"
            raise InvalidArgument(message, hint="give seconds, more than 0")
        return self._with(self._options._replace(deadline_s=deadline_s))

    def reading_from(self, node: int | str) -> Self:
        """Return a handle that reads from one node only, by its number or address.

        The reads stay linearizable: a follower asks the leader how far it must have applied.
        """
        return self._with(self._options._replace(node=self._core.router.find_node(node)))

    def stale(self, max_stale_s: float) -> Self:
        """Return a handle whose reads may show a state up to so many seconds old.

        A node that can't say how old its state is refuses, and another one is asked.
        """
        if not 0 < max_stale_s < 1e6:
            message = f"a staleness of {max_stale_s} s"
            raise InvalidArgument(message, hint="give seconds, more than 0")
        return self._with(
            self._options._replace(
                consistency=Consistency.BOUNDED, max_stale_ms=max(1, int(max_stale_s * 1000))
            )
        )

    # ------------------------------------------------------------ one inode

    async def _at(self, path: AnyPath, *, follow: bool = True) -> At:
        """Return the address of a path; a snapshot's handle looks the snapshot up before."""
        return at(path, follow=follow)

    async def locate(self, path: AnyPath) -> tuple[At, int]:
        """Return the address of a path, and the version that it is read at; 0: the present."""
        return await self._at(path), self._options.at_version

    async def _ask(self, read: Read) -> ReadValue:
        _, value = await query(self._core, self._options, read)
        return value

    async def stat(self, path: AnyPath) -> Attr:
        """Return the attributes of what `path` shows, symbolic links followed."""
        value = await self._ask(GetAttr(await self._at(path), self._options.at_version))
        return expect(value, AttrReply).attr

    async def lstat(self, path: AnyPath) -> Attr:
        """Return the attributes of what `path` itself names."""
        where = await self._at(path, follow=False)
        value = await self._ask(GetAttr(where, self._options.at_version))
        return expect(value, AttrReply).attr

    async def exists(self, path: AnyPath) -> bool:
        """Return whether `path` shows something; a dangling symbolic link does not."""
        return await self._stat_or_none(path) is not None

    async def is_dir(self, path: AnyPath) -> bool:
        """Return whether `path` shows a directory."""
        attr = await self._stat_or_none(path)
        return attr is not None and file_type(attr) == FileType.DIRECTORY

    async def is_file(self, path: AnyPath) -> bool:
        """Return whether `path` shows a regular file."""
        attr = await self._stat_or_none(path)
        return attr is not None and file_type(attr) == FileType.REGULAR

    async def is_symlink(self, path: AnyPath) -> bool:
        """Return whether `path` names a symbolic link."""
        try:
            return file_type(await self.lstat(path)) == FileType.SYMLINK
        except _MISSING:
            return False

    async def _stat_or_none(self, path: AnyPath) -> Attr | None:
        try:
            return await self.stat(path)
        except _MISSING:
            return None

    async def access(self, path: AnyPath, mask: int = os.F_OK) -> bool:
        """Return whether the caller has the permissions of `mask`: os.R_OK | os.W_OK | os.X_OK."""
        try:
            if mask == os.F_OK:
                await self.stat(path)
            else:
                await self._ask(Access(await self._at(path), mask, self._options.at_version))
        except (*_MISSING, PermissionDenied):
            return False
        return True

    async def readlink(self, path: AnyPath) -> str:
        """Return the target of a symbolic link."""
        where = await self._at(path, follow=False)
        value = await self._ask(ReadLink(where, self._options.at_version))
        return decode_name(expect(value, BytesReply).data)

    async def getxattr(self, path: AnyPath, name: str | bytes) -> bytes:
        """Return the value of an extended attribute; NoAttribute if there is none."""
        read = GetXattr(await self._at(path), encode_name(name), self._options.at_version)
        return expect(await self._ask(read), BytesReply).data

    async def listxattr(self, path: AnyPath) -> list[str]:
        """Return the names of the extended attributes that the caller may see."""
        value = await self._ask(ListXattr(await self._at(path), self._options.at_version))
        return [decode_name(name) for name in expect(value, NamesReply).names]

    # ------------------------------------------------------------ counts, volume, events

    async def statfs(self) -> StatFsReply:
        """Return the exact counts of the volume: inodes, and bytes of files."""
        return expect(await self._ask(StatFs()), StatFsReply)

    async def usage(self, path: AnyPath = "/") -> UsageReply:
        """Return the exact entries and bytes below a directory, at the cost of one read."""
        read = GetUsage(await self._at(path), self._options.at_version)
        return expect(await self._ask(read), UsageReply)

    @property
    def volume(self) -> VolumeReply:
        """What the cluster says of its volume: id, kind of store, sizes."""
        return self._core.volume

    async def read_events(self, cursor: int = 0, limit: int = 256) -> EventsReply:
        """Return a page of the events after `cursor`, and the next cursor.

        Raises:
            CursorTooOld: events after it were trimmed; list again and go on from there.
        """
        return expect(await self._ask(ReadEvents(cursor, limit)), EventsReply)

    async def events(self, cursor: int = 0) -> AsyncIterator[Event]:
        """Yield the events after `cursor` up to the present, each once and in order.

        Raises:
            CursorTooOld: as `read_events`.
        """
        more = True
        while more:
            page = await self.read_events(cursor)
            for event in page.events:
                yield event
            cursor, more = page.cursor, page.more

    def watch(
        self,
        path: AnyPath,
        *,
        recursive: bool = True,
        since: int | None = None,
        types: Iterable[str | int] = (),
        window_bytes: int = WINDOW_BYTES,
        bookmark_s: float = 10.0,
    ) -> Watch:
        """Return a watch of a directory, or of one file; enter it, or iterate over it.

        Args:
            path: what to watch: it is followed wherever it is moved.
            recursive: all below it; else its own names only.
            since: a cursor: tell the changes after it; None: those from the opening on.
            types: only these kinds (`Change.kind`); none: all.
            window_bytes: events that may be on their way or wait here.
            bookmark_s: how often a cursor is told while nothing changes.

        Raises:
            InvalidArgument: an argument that is none, or a handle that reads another version.
        """
        if self._options.at_version != PRESENT:
            message = "a version that is past does not change: it can't be watched"
            raise InvalidArgument(message, hint="watch through the client itself")
        return Watch(
            self._core,
            self._options,
            path,
            recursive=recursive,
            since=since,
            types=types,
            window_bytes=window_bytes,
            bookmark_s=bookmark_s,
        )

    # ------------------------------------------------------------ listings

    async def scandir(self, path: AnyPath = "/", *, attrs: bool = True) -> AsyncIterator[Entry]:
        """Yield the entries of a directory in the order of their names' bytes.

        It is read by page: what is there from the first page to the last is yielded exactly once,
        whatever happens to other names meanwhile. Read a pinned view to see one version.
        """
        where = await self._at(path)
        shown = shown_path(path)
        after, more = b"", True
        while more:
            value = await self._ask(ReadDir(where, after, PAGE, attrs, self._options.at_version))
            page = expect(value, DirPage)
            for found in page.entries:
                yield entry_of(shown, found)
            after, more = page.after, page.more

    async def listdir(self, path: AnyPath = "/") -> list[str]:
        """Return the names in a directory, in the order of their bytes."""
        return [entry.name async for entry in self.scandir(path, attrs=False)]

    async def read_page(
        self, path: AnyPath, after: bytes = b"", limit: int = PAGE, *, attrs: bool = True
    ) -> DirPage:
        """Return one page of a listing, to be continued after `page.after`."""
        if not 1 <= limit <= PAGE_MAX:
            message = f"a page of {limit} entries"
            raise InvalidArgument(message, hint=f"1 to {PAGE_MAX}")
        read = ReadDir(await self._at(path), after, limit, attrs, self._options.at_version)
        return expect(await self._ask(read), DirPage)

    async def walk(
        self, path: AnyPath = "/"
    ) -> AsyncIterator[tuple[str, list[Entry], list[Entry]]]:
        """Yield (path, directories, others) of each directory of a tree, as os.walk does.

        Top down; symbolic links are not followed. Remove entries from the list of directories to
        leave them out. A directory that vanishes meanwhile is skipped.
        """
        components(path)
        waiting = [shown_path(path)]
        first = True
        while waiting:
            directory = waiting.pop()
            directories: list[Entry] = []
            others: list[Entry] = []
            try:
                async for entry in self.scandir(directory):
                    (directories if entry.is_dir() else others).append(entry)
            except (NotFound, NotADirectory):
                if first:
                    raise
                continue
            first = False
            yield directory, directories, others
            waiting.extend(entry.path for entry in reversed(directories))

    async def glob(self, pattern: str | bytes) -> AsyncIterator[str]:
        """Yield the paths that match: `*`, `?`, `[...]` in a name, `**` for any directories.

        Wildcards do not match a leading dot; symbolic links are not descended by `**`.
        """
        parts = [decode_name(part) for part in components(pattern)]
        seen: set[str] = set()
        async for path in self._glob("", parts):
            if path not in seen:
                seen.add(path)
                yield path

    async def _glob(self, base: str, parts: Sequence[str]) -> AsyncIterator[str]:
        if not parts:
            yield base or "/"
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            async for path in self._glob(base, rest):
                yield path
            async for entry in self._children(base):
                if entry.is_dir() and not entry.name.startswith("."):
                    async for path in self._glob(entry.path, parts):
                        yield path
                elif not rest and not entry.name.startswith("."):
                    yield entry.path
        elif has_magic(part):
            pattern = matcher(part)
            async for entry in self._children(base):
                hidden = entry.name.startswith(".") and not part.startswith(".")
                if not hidden and pattern.match(entry.name):
                    async for path in self._glob(entry.path, rest):
                        yield path
        else:
            path = f"{base}/{part}"
            magic_left = any(has_magic(one) for one in rest)
            if magic_left or await self._named(path):
                async for found in self._glob(path, rest):
                    yield found

    async def _named(self, path: str) -> bool:
        try:
            await self.lstat(path)
        except _MISSING:
            return False
        return True

    async def _children(self, base: str) -> AsyncIterator[Entry]:
        with contextlib.suppress(*_MISSING):
            async for entry in self.scandir(base or "/", attrs=False):
                yield entry

    # ------------------------------------------------------------ bodies

    async def read(self, path: AnyPath, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a file, verified, of one generation; cut at the file's end.

        Raises:
            ObjectCorrupt, ObjectMissing, ObjectStoreError: naming the object.
            ResultTooLarge: more than 1 GiB at once; open the file instead.
        """
        where = await self._at(path)
        _, data = await bodies.read_at(self._core, self._options, where, offset, length)
        return data

    async def read_bytes(self, path: AnyPath) -> bytes:
        """Return a whole file; raises as `read`."""
        return await self.read(path)

    async def read_text(self, path: AnyPath, encoding: Encoding = "utf-8") -> str:
        """Return a whole file as text."""
        return (await self.read(path)).decode(encoding)

    async def get_file(
        self,
        path: AnyPath,
        local: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
    ) -> Attr:
        """Copy a file to a local one: temporary file beside it, verified, synced, then renamed.

        The size and, where its publish recorded one, the SHA-256 of the whole body are compared.
        `local` gets the file's permission bits and times; it is replaced only by a whole file.

        Raises:
            ObjectCorrupt: the body does not match; `local` is as it was.
            OSError: the local file can't be written.
        """
        where = await self._at(path)
        return await download.get_file(self._core, self._options, where, local, progress)

    @overload
    def open(self, path: AnyPath, mode: Literal["rb"] = "rb") -> Opening[AsyncReader]: ...
    @overload
    def open(self, path: AnyPath, mode: Literal["r", "rt"]) -> Opening[AsyncTextReader]: ...
    @overload
    def open(self, path: AnyPath, mode: Literal["wb", "xb", "ab"]) -> Opening[AsyncWriter]: ...
    @overload
    def open(
        self, path: AnyPath, mode: Literal["w", "x", "a", "wt", "xt", "at"]
    ) -> Opening[AsyncTextWriter]: ...
    def open(
        self, path: AnyPath, mode: str = "rb"
    ) -> (
        Opening[AsyncReader]
        | Opening[AsyncTextReader]
        | Opening[AsyncWriter]
        | Opening[AsyncTextWriter]
    ):
        """Open a file: `async with fs.open(path) as f`, or `f = await fs.open(path)`.

        For reading (`rb`; `r`: text in UTF-8) it shows one generation, the present one when it was
        opened, until it is closed, and can be sought. For writing (`wb` replaces, `xb` only makes,
        `ab` appends; `w`, `x`, `a`: text) nothing is visible until it is closed, then all of it at
        once; an exception inside the `async with` leaves the file as it was.

        Raises:
            InvalidArgument: another mode.
            ReadOnly: writing through a handle of a snapshot or a pinned view.
        """
        text = "b" not in mode
        kind = mode.replace("b", "").replace("t", "")
        if kind not in {"r", "w", "x", "a"} or mode not in {kind, kind + "b", kind + "t"}:
            message = f"a file can't be opened with mode {mode!r}"
            raise InvalidArgument(message, hint="use rb, wb, xb or ab; patch() rewrites ranges")
        if kind == "r":
            return Opening(self._open_text(path)) if text else Opening(self._open_reader(path))
        writer = self._open_writer(path, kind)
        return Opening(_as_text(writer)) if text else Opening(writer)

    async def _open_reader(self, path: AnyPath) -> AsyncReader:
        where = await self._at(path)
        body = await bodies.open_body(self._core, self._options, where)
        return AsyncReader(body, shown_path(path))

    async def _open_text(self, path: AnyPath) -> AsyncTextReader:
        return AsyncTextReader(await self._open_reader(path))

    async def _open_writer(self, path: AnyPath, kind: str) -> AsyncWriter:
        message = f"{shown_path(path)} can't be opened with mode {kind!r} through this handle"
        raise ReadOnly(message, hint="open it through the client itself")


async def _as_text(writer: Awaitable[AsyncWriter]) -> AsyncTextWriter:
    return AsyncTextWriter(await writer)


def shown_path(path: AnyPath) -> str:
    """Return the text of a path, without a slash at its end."""
    text = decode_name(encode_name(os.fspath(path)))
    return text.rstrip("/") or "/"
