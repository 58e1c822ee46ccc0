"""Reading file bodies: one whole generation, verified, under the session's floor.

A body's map is read at one version, the objects that it names afterwards. What keeps them there
meanwhile is the floor (`floors`), a lease, a pin, or, for a client without a session, the
collector's grace alone. So a missing object is looked at again: if the file has another body by
now, the read starts over at the present; if not, the object is really missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from nokv.client.core import Core
from nokv.client.floors import Hold
from nokv.client.options import Options, expect, query
from nokv.client.session import Session
from nokv.errors import BodyGone, InvalidArgument, NokvError, ObjectMissing, Stale
from nokv.objects.read import READ_BYTES_MAX, Chunks, plan_read
from nokv.types.limits import CHUNK_BYTES, FILE_BYTES_MAX, INLINE_BYTES_CAP
from nokv.types.reads import PRESENT, BodyMap, BodyMapReply, GetAttr
from nokv.types.values import At, Attr, StoredChunk
from nokv.wire.rpc import Consistency

TRIES: Final = 8
"""How often a read starts over because the file was replaced under it."""

EAGER_CHUNKS: Final = 512
"""An open file keeps the whole map of a body of at most so many chunks (32 GiB); of a larger one
it reads the map as it goes, and can go on only while its lease holds."""

WINDOW_CHUNKS: Final = 64
"""Chunks of one map request of a body that is not kept whole."""


class BodyView(NamedTuple):
    """A range of a file's map, at one version."""

    version: int
    attr: Attr
    chunks: dict[int, StoredChunk]


async def fetch_map(
    core: Core,
    options: Options,
    at: At,
    offset: int,
    length: int,
    lease: tuple[int, int, int] = (0, 0, 0),
) -> BodyView:
    """Return the chunks of file bytes [offset, offset + length), all of one generation.

    Args:
        core, options: whom to ask, and how.
        at: the file.
        offset, length: bytes; what lies beyond the end has no chunks.
        lease: (session, body, version) of a read lease, to read what it holds; zeros for what is
            present.

    Raises:
        BodyGone, Stale: the session does not have the lease.
        Stale: the file changes faster than its map can be read.
        NokvError: as the read.
    """
    leased = lease != (0, 0, 0)
    for _ in range(TRIES):
        request = BodyMap(at, offset, length, options.at_version, *lease)
        version, value = await query(core, options, request)
        reply = expect(value, BodyMapReply)
        attr = reply.attr
        chunks = {one.index: one.chunk for one in reply.chunks}
        handle = At(attr.view, attr.inode)
        while reply.next_chunk:
            start = reply.next_chunk * CHUNK_BYTES
            rest = BodyMap(handle, start, offset + length - start, options.at_version, *lease)
            _, value = await query(core, options, rest)
            reply = expect(value, BodyMapReply)
            if not leased and not _same_body(reply.attr, attr):
                break
            chunks |= {one.index: one.chunk for one in reply.chunks}
        else:
            return BodyView(version, attr, chunks)
    message = "the file is replaced faster than its map can be read"
    raise Stale(message, hint="read it through a pinned view")


def check_range(offset: int, length: int | None) -> None:
    """Return if a read may ask for this range.

    Raises:
        InvalidArgument: negative, or beyond what a file can have.
    """
    if not 0 <= offset <= FILE_BYTES_MAX:
        message = f"a read from offset {offset}"
        raise InvalidArgument(message, hint=f"an offset is 0 to {FILE_BYTES_MAX}")
    if length is not None and length < 0:
        message = f"a read of {length} bytes"
        raise InvalidArgument(message, hint="leave the length out to read to the end of the file")


async def read_at(
    core: Core, options: Options, at: At, offset: int, length: int | None
) -> tuple[Attr, bytes]:
    """Return a file's attributes and the bytes of a range of it, cut at its end.

    Raises:
        ObjectMissing, ObjectCorrupt, ObjectStoreError: naming the object.
        ResultTooLarge: more than READ_BYTES_MAX bytes: open the file instead.
        Stale: the file changes faster than it can be read.
        NokvError: as the read of the map.
    """
    check_range(offset, length)
    wanted = FILE_BYTES_MAX - offset if length is None else min(length, FILE_BYTES_MAX - offset)
    missing: tuple[NokvError, Attr] | None = None
    for _ in range(TRIES):
        session = core.session_now if core.session_now and core.session_now.valid else None
        hold = session.floors.begin(session.now_ns()) if session is not None else None
        try:
            view = await fetch_map(core, options, at, offset, min(wanted, READ_BYTES_MAX + 1))
            kept = session is None or hold is None or session.floors.move(hold, view.version)
            if not kept:
                options = options._replace(consistency=Consistency.LINEARIZABLE)
                continue
            if missing is not None and _same_body(missing[1], view.attr):
                raise missing[0]
            n_bytes = max(0, min(wanted, view.attr.size - offset))
            try:
                return view.attr, await _read(core, view.chunks, offset, n_bytes)
            except ObjectMissing as error:
                missing = (error, view.attr)
        except BodyGone:
            if options.at_version != PRESENT:
                raise
        finally:
            if hold is not None and session is not None:
                session.floors.end(hold)
    message = "the file is replaced faster than it can be read"
    raise Stale(message, hint="read it through a pinned view")


async def _read(core: Core, chunks: Chunks, offset: int, n_bytes: int) -> bytes:
    """Read a range that is there; without any object, the store is not even opened."""
    if n_bytes <= INLINE_BYTES_CAP and not any(chunk.objects for chunk in chunks.values()):
        out = bytearray(n_bytes)
        for target, data in plan_read(chunks, offset, n_bytes).inline:
            out[target : target + len(data)] = data
        return bytes(out)
    reader = await core.reader()
    return await reader.read(chunks, offset, n_bytes)


def _same_body(one: Attr, other: Attr) -> bool:
    return (one.inode, one.body, one.generation) == (other.inode, other.body, other.generation)


class OpenBody:
    """A file's body as it was when it was opened, readable until `close`.

    Made by `open_body`. Raises Stale once the session is over: another one holds nothing of it.
    """

    def __init__(self, core: Core, options: Options, session: Session, hold: Hold) -> None:
        self.attr: Attr
        self.version = 0
        """The version that it was opened at."""
        self._core = core
        self._options = options
        self._session = session
        self._hold = hold
        self._chunks: dict[int, StoredChunk] = {}
        self._whole = False
        self._closed = False
        self._reads = 0
        """Under way, which may outlive `close`: what they fetch is held until they end."""

    async def begin(self, at: At) -> None:
        """Read the map, or its start, and keep a hold only of what is still to be fetched."""
        session = self._session
        options = self._options
        for _ in range(TRIES):
            length = EAGER_CHUNKS * CHUNK_BYTES
            view = await fetch_map(self._core, options, at, 0, length)
            if session.floors.move(self._hold, view.version):
                break
            options = options._replace(consistency=Consistency.LINEARIZABLE)
        else:
            message = "no node could show the file at a version that is still kept"
            raise Stale(message)
        self.attr, self.version, self._chunks = view.attr, view.version, view.chunks
        attr = self.attr
        self._whole = not attr.body or attr.size <= length
        if self._whole and not any(chunk.objects for chunk in self._chunks.values()):
            session.floors.end(self._hold)  # all that there is was read: nothing is asked for again
        else:
            session.floors.want_lease(self._hold, attr.view, attr.inode, attr.body)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.attr.size

    def close(self) -> None:
        """Let the body go, once the last read that is under way has ended."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._closed and not self._reads:
            self._session.floors.end(self._hold)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """Hold the body for the length of a block, and say what it means if an object is gone."""
        self._reads += 1
        try:
            yield
        except ObjectMissing:
            await self.check_held()
            raise
        finally:
            self._reads -= 1
            self._let_go()

    def check(self) -> None:
        """Return if bytes may be fetched.

        Raises:
            Stale: the session is over.
        """
        if not self._session.valid:
            message = "the session that this file was opened in is over"
            raise Stale(message, hint="open the file again")

    async def lookup(self, offset: int, length: int) -> Chunks:
        """Return the chunk records of a range (see `objects.read.ChunkLookup`).

        Raises:
            BodyGone: the body was replaced before the map of this range was read.
        """
        self.check()
        if self._whole:
            return self._chunks
        first, last = offset // CHUNK_BYTES, (offset + max(length, 1) - 1) // CHUNK_BYTES
        if first >= EAGER_CHUNKS or last >= EAGER_CHUNKS:
            return await self._window(first, last)
        return self._chunks

    async def _window(self, first: int, last: int) -> Chunks:
        attr = self.attr
        n_bytes = max(last - first + 1, WINDOW_CHUNKS) * CHUNK_BYTES
        options, lease = self._options, self._lease()
        if options.at_version == PRESENT:
            # A node that lags may not have the lease yet, or show what was before this body.
            options = options._replace(consistency=Consistency.LINEARIZABLE)
        handle = At(attr.view, attr.inode)
        view = await fetch_map(self._core, options, handle, first * CHUNK_BYTES, n_bytes, lease)
        if not lease[0] and not _same_body(view.attr, attr):
            message = "the file was replaced while it was open"
            raise BodyGone(message, hint="open it again, or read it through a pinned view")
        return view.chunks

    def _lease(self) -> tuple[int, int, int]:
        """Return (session, body, version) of the lease that shows this body, or zeros."""
        lease = self._hold.lease
        if self._options.at_version != PRESENT or not self._session.floors.leased(self._hold):
            return 0, 0, 0
        assert lease is not None
        return self._session.id, lease.body, lease.version

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range, cut at the end.

        Raises:
            Stale: the session is over, also where an object is missing then.
            VersionNotPinned, SnapshotGone: an object is missing, and what held it is gone.
            ObjectMissing, ObjectCorrupt, ObjectStoreError: naming the object.
        """
        check_range(offset, length)
        n_bytes = max(0, min(length, self.size - offset))
        if n_bytes == 0:
            return b""
        async with self._reading():
            return await _read(self._core, await self.lookup(offset, n_bytes), offset, n_bytes)

    async def readinto(self, offset: int, out: memoryview) -> int:
        """Fill `out` from `offset` on and return how many bytes there were; raises as `read`."""
        check_range(offset, len(out))
        n_bytes = max(0, min(len(out), self.size - offset))
        if n_bytes == 0:
            return 0
        async with self._reading():
            chunks = await self.lookup(offset, n_bytes)
            reader = await self._core.reader()
            await reader.readinto(chunks, offset, out[:n_bytes])
        return n_bytes

    async def stream(self, offset: int) -> AsyncIterator[bytes]:
        """Yield the bytes from an offset to the end, read ahead; raises as `read`."""
        async with self._reading():
            reader = await self._core.reader()
            async for data in reader.stream(self.lookup, offset, max(0, self.size - offset)):
                yield data

    async def check_held(self) -> None:
        """Return if something should have kept the objects of this body.

        Raises:
            Stale: the session is over.
            VersionNotPinned: the pin or snapshot that it was opened at is gone.
        """
        self.check()
        if self._options.at_version != PRESENT:
            handle = At(self.attr.view, self.attr.inode)
            await query(self._core, self._options, GetAttr(handle, self._options.at_version))


async def open_body(core: Core, options: Options, at: At) -> OpenBody:
    """Open a file's present body (or the pinned one) for reading.

    Raises:
        NokvError: as the read of its map, and as the opening of a session.
    """
    session = await core.session(options.deadline_s)
    hold = session.floors.begin(session.now_ns())
    body = OpenBody(core, options, session, hold)
    try:
        await body.begin(at)
    except BaseException:
        session.floors.end(hold)
        raise
    return body
