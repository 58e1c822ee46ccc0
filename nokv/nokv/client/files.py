"""File objects of the asynchronous client: seekable readers, and writers that publish at close."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from nokv.client.arguments import Offset, checked_methods
from nokv.client.bodies import OpenBody
from nokv.client.upload import BodyUpload, FileInfo
from nokv.errors import InvalidArgument, NotSupported
from nokv.types.limits import BLOCK_BYTES
from nokv.types.values import Attr

READ_AHEAD_BYTES: Final = BLOCK_BYTES
"""What a file that is read in sequence fetches at least, up to a block's end."""

QUEUED_BLOCKS: Final = 2
"""Blocks that a writer holds beside the one being filled and those being stored."""


class _Closable(Protocol):
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


F = TypeVar("F", bound=_Closable)


class Opening(Generic[F]):
    """A file that is being opened: await it, or enter it with `async with`."""

    def __init__(self, opening: Awaitable[F]) -> None:
        self._opening = opening
        self._file: F | None = None

    def __await__(self) -> Generator[object, None, F]:
        """Open the file; the caller closes it."""
        return self._opening.__await__()

    async def __aenter__(self) -> F:
        """Open the file for the length of a block."""
        self._file = await self._opening
        return self._file

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; a writer publishes unless the block failed."""
        assert self._file is not None
        await self._file.__aexit__(kind, error, trace)


@checked_methods
class AsyncReader:
    """A file open for reading: one generation, seekable, verified. Close it, or leave its block."""

    def __init__(self, body: OpenBody, name: str) -> None:
        self.name: Final = name
        """The path that it was opened by."""
        self.body: Final = body
        self._position = 0
        self._buffer = b""
        self._buffer_at = 0
        self._next = -1
        """Where a read would be in sequence with the last one."""
        self._closed = False

    @property
    def attr(self) -> Attr:
        """The file's attributes when it was opened."""
        return self.body.attr

    @property
    def size(self) -> int:
        """Bytes."""
        return self.body.size

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes from the start."""
        return self._position

    def seek(self, offset: Offset, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it; it may lie beyond the end.

        Raises:
            InvalidArgument: a position before the start, or an unknown `whence`.
        """
        if whence not in {io.SEEK_SET, io.SEEK_CUR, io.SEEK_END}:
            message = f"whence {whence!r} is none of SEEK_SET, SEEK_CUR, SEEK_END"
            raise InvalidArgument(message)
        base = (0, self._position, self.size)[whence]
        if base + offset < 0:
            message = f"no position {base + offset} in a file"
            raise InvalidArgument(message)
        self._position = base + offset
        return self._position

    async def read(self, size: Offset | None = -1) -> bytes:
        """Return up to `size` bytes from the position, fewer only at the end; all if negative.

        Raises:
            Stale: the session that the file was opened in is over.
            ObjectCorrupt, ObjectMissing, ObjectStoreError: naming the object.
            ResultTooLarge: more than 1 GiB at once.
        """
        data = await self.pread(self._position, self.size if size is None or size < 0 else size)
        self._position += len(data)
        return data

    async def pread(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` without moving the position; raises as `read`."""
        self._check()
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return b""
        start = offset - self._buffer_at
        if start >= 0 and start + size <= len(self._buffer):
            self._next = offset + size
            return self._buffer[start : start + size]
        if offset != self._next or size >= READ_AHEAD_BYTES:
            self._next = offset + size
            return await self.body.read(offset, size)
        end = offset + size
        ahead = min(self.size, max(end, offset - offset % BLOCK_BYTES + READ_AHEAD_BYTES))
        data = await self.body.read(offset, ahead - offset)
        self._buffer, self._buffer_at, self._next = data, offset, end
        return data[:size]

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer` from the position; return how many bytes there were. Raises as `read`."""
        self._check()
        out = memoryview(buffer).cast("B")
        if len(out) < READ_AHEAD_BYTES:
            data = await self.read(len(out))
            out[: len(data)] = data
            return len(data)
        n_bytes = await self.body.readinto(self._position, out)
        self._position += n_bytes
        return n_bytes

    async def readline(self, size: Offset = -1) -> bytes:
        """Return the bytes up to and with the next newline, or the end."""
        line = bytearray()
        while size < 0 or len(line) < size:
            wanted = 8192 if size < 0 else min(8192, size - len(line))
            data = await self.read(wanted)
            if not data:
                break
            cut = data.find(b"\n") + 1
            if cut:
                line += data[:cut]
                self._position -= len(data) - cut
                break
            line += data
        return bytes(line)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes from the position to the end, in pieces of up to 4 MiB, read ahead."""
        self._check()
        async for data in self.body.stream(self._position):
            self._position += len(data)
            yield data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the lines."""
        while line := await self.readline():
            yield line

    async def close(self) -> None:
        """Let the body go."""
        self.close_nowait()

    def close_nowait(self) -> None:
        """Let the body go, from outside a coroutine of the client's event loop."""
        self._closed = True
        self._buffer = b""
        self.body.close()

    async def __aenter__(self) -> Self:
        """Return the file."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    def _check(self) -> None:
        if self._closed:
            message = f"{self.name} is closed"
            raise ValueError(message)


@checked_methods
class AsyncWriter:
    """A file open for writing: blocks are stored as they fill up, `close` makes them visible.

    Until then, and for ever after `abort` or an exception in its block, the file is as it was.
    Holds at most QUEUED_BLOCKS + 1 blocks beside those being stored.
    """

    def __init__(
        self, name: str, upload: BodyUpload, publish: Callable[[BodyUpload], Awaitable[FileInfo]]
    ) -> None:
        self.name: Final = name
        """The path that it was opened by."""
        self.info: FileInfo | None = None
        """What was published, once it was closed."""
        self._upload = upload
        self._publish = publish
        self._buffer = bytearray()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUED_BLOCKS)
        self._storing: asyncio.Task[None] | None = None
        self._position = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self._closed

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return False."""
        return False

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._position

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add bytes and return their number.

        Raises:
            UploadFailed: a block could not be stored; the file stays as it was.
        """
        self._check()
        view = memoryview(data).cast("B")
        self._buffer += view
        self._position += len(view)
        while len(self._buffer) >= BLOCK_BYTES:
            block = bytes(memoryview(self._buffer)[:BLOCK_BYTES])
            del self._buffer[:BLOCK_BYTES]
            await self._put(block)
        return len(view)

    async def _put(self, block: bytes) -> None:
        if self._storing is None:
            self._storing = asyncio.get_running_loop().create_task(
                self._upload.upload(self._blocks())
            )
        putting = asyncio.ensure_future(self._queue.put(block))
        await asyncio.wait([putting, self._storing], return_when=asyncio.FIRST_COMPLETED)
        if self._storing.done():
            putting.cancel()
            self._closed = True
            await self._storing  # only a failure ends it before its last, empty block

    async def _blocks(self) -> AsyncIterator[bytes]:
        while block := await self._queue.get():
            yield block

    async def close(self) -> None:
        """Store the rest and publish.

        Raises:
            UploadFailed: the file stays as it was.
            AlreadyExists: mode `xb`, and the name is taken by now.
            NokvError: as the publish. After DeadlineExceeded it may yet become visible.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._storing is None:
                await self._upload.upload(bytes(self._buffer))
            else:
                if self._buffer:
                    await self._put(bytes(self._buffer))
                await self._put(b"")
                await self._storing
            self._buffer.clear()
            self.info = await self._publish(self._upload)
        finally:
            await self._give_up()

    async def abort(self) -> None:
        """Give everything up; what was stored is deleted as far as possible."""
        if not self._closed:
            self._closed = True
            await self._give_up()

    async def _give_up(self) -> None:
        self._buffer.clear()
        try:
            if self._storing is not None:
                self._storing.cancel()
                await asyncio.gather(self._storing, return_exceptions=True)
        finally:
            await self._upload.release()

    async def __aenter__(self) -> Self:
        """Return the file."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish, or give up if the block failed."""
        if kind is None:
            await self.close()
        else:
            await self.abort()

    def _check(self) -> None:
        if self._closed:
            message = f"{self.name} is closed"
            raise ValueError(message)


@checked_methods
class AsyncTextReader:
    """A text file open for reading, in UTF-8. Lines end with a newline; it can't be sought."""

    def __init__(self, file: AsyncReader) -> None:
        self.buffer: Final = file
        """The binary file below."""

    async def read(self) -> str:
        """Return the rest of the file."""
        return (await self.buffer.read()).decode()

    async def readline(self) -> str:
        """Return the next line with its newline; empty at the end."""
        return (await self.buffer.readline()).decode()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the lines."""
        async for line in self.buffer:
            yield line.decode()

    async def seek(self, offset: Offset) -> None:
        """Go back to the start: the only position that text in UTF-8 can be sought to here."""
        if offset:
            message = "a text file can be sought to its start only"
            raise NotSupported(message, hint="open it with mode 'rb'")
        self.buffer.seek(0)

    async def close(self) -> None:
        """Let the body go."""
        await self.buffer.close()

    async def __aenter__(self) -> Self:
        """Return the file."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.buffer.__aexit__(kind, error, trace)


@checked_methods
class AsyncTextWriter:
    """A text file open for writing, in UTF-8; published when it is closed."""

    def __init__(self, file: AsyncWriter) -> None:
        self.buffer: Final = file
        """The binary file below."""

    @property
    def info(self) -> FileInfo | None:
        """What was published, once it was closed."""
        return self.buffer.info

    async def write(self, text: str) -> int:
        """Add text and return the number of its characters."""
        await self.buffer.write(text.encode())
        return len(text)

    async def close(self) -> None:
        """Store the rest and publish; raises as `AsyncWriter.close`."""
        await self.buffer.close()

    async def abort(self) -> None:
        """Give everything up."""
        await self.buffer.abort()

    async def __aenter__(self) -> Self:
        """Return the file."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish, or give up if the block failed."""
        await self.buffer.__aexit__(kind, error, trace)
