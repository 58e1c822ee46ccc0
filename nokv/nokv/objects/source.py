"""Where an upload's bytes come from: memory, a local file, a file object or an async iterator."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, TypeVar

from nokv.errors import InvalidArgument, SourceChanged
from nokv.objects.port import Data

T = TypeVar("T")

SourceLike: TypeAlias = (
    bytes | bytearray | memoryview | os.PathLike[str] | BinaryIO | AsyncIterable[bytes]
)
"""A path is that of a local file. A `str` is none of these: it may be meant as text or as a path,
and taking one for the other would publish the wrong file."""

EAGER_BYTES = 64 * 1024
"""A local file of at most so many bytes is read when it is opened, in the same hop to a thread."""


class Source(Protocol):
    """A stream of bytes, read once from its start to its end."""

    @property
    def label(self) -> str:
        """Name for messages."""
        ...

    @property
    def remaining(self) -> int | None:
        """Bytes that `read` will still return, where that is known."""
        ...

    async def read(self, n_bytes: int) -> Data:
        """Return the next `n_bytes`; fewer only at the end."""
        ...

    async def finish(self) -> None:
        """Check, after the last read, that what was read is what the source holds.

        Raises:
            SourceChanged: it is not.
        """
        ...

    async def close(self) -> None:
        """Let the source go."""
        ...


class BytesSource:
    """Bytes in memory; the caller must not change them before the upload ends."""

    label: str = "bytes"

    def __init__(self, data: Data) -> None:
        view = memoryview(data)
        self._view = view.cast("B") if view.nbytes else memoryview(b"")
        self._left = self._view.nbytes

    @property
    def remaining(self) -> int | None:
        """Bytes that are left."""
        return self._left

    async def read(self, n_bytes: int) -> Data:
        """Return a view of the next bytes."""
        data, self._view = self._view[:n_bytes], self._view[n_bytes:]
        self._left -= len(data)
        return data

    async def finish(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing: views may still be in flight."""


class IteratorSource:
    """An asynchronous iterator of bytes of any sizes."""

    label: str = "stream"
    remaining: int | None = None

    def __init__(self, iterable: AsyncIterable[bytes]) -> None:
        self._iterator: AsyncIterator[bytes] = aiter(iterable)
        self._rest = b""
        """Read from the iterator and not yet returned; one of its items at most."""

    async def read(self, n_bytes: int) -> Data:
        """Collect items until there is enough."""
        data = bytearray()
        while len(data) < n_bytes:
            if not self._rest:
                try:
                    self._rest = bytes(await anext(self._iterator))
                except StopAsyncIteration:
                    break
            wanted = n_bytes - len(data)
            data += self._rest[:wanted]
            self._rest = self._rest[wanted:]
        return data

    async def finish(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Close a generator; an iterator that is none has nothing to close."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class FileObjectSource:
    """A binary file object that the caller opened and closes, read in a thread."""

    remaining: int | None = None

    def __init__(self, file: BinaryIO, threads: Executor) -> None:
        self._file = file
        self._threads = threads
        self.label = str(getattr(file, "name", "file object"))

    async def read(self, n_bytes: int) -> Data:
        """Read, again after a short read (pipes)."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < n_bytes:
            wanted = n_bytes - len(data)
            more = await loop.run_in_executor(self._threads, self._file.read, wanted)
            if not more:
                break
            if not isinstance(more, (bytes, bytearray, memoryview)) or len(more) > wanted:
                raise InvalidArgument(f"{self.label} is no binary file object")
            data += more
        return data

    async def finish(self) -> None:
        """Do nothing: what was read is what there is."""

    async def close(self) -> None:
        """Do nothing: the caller opened it."""


class FileSource:
    """A regular local file, which must not change from its opening to `finish`.

    Compared are device, inode, size, mtime and ctime of the open file and of what the path names
    afterwards. A change within one tick of the file system's clock, at the same size, is not seen.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: Executor, before: os.stat_result | None
    ) -> None:
        self.label = os.fspath(path)
        self.remaining: int | None = None
        self._threads = threads
        self._before = before
        self._file = -1
        self._size = 0
        self._offset = 0
        self._eager: bytes | None = None

    async def open(self) -> None:
        """Open the file.

        Raises:
            SourceChanged: it is not what `before` says.
            InvalidArgument: it is not a regular file.
            OSError: it cannot be opened.
        """
        await self._run(self._open)
        self.remaining = self._size

    async def read(self, n_bytes: int) -> Data:
        """Return the next bytes of what the file held when it was opened."""
        assert self.remaining is not None
        wanted = min(n_bytes, self.remaining)
        if self._eager is not None:
            data = self._eager[self._offset : self._offset + wanted]
        else:
            data = await self._run(lambda: self._read(wanted))
        if len(data) != wanted:
            raise SourceChanged(f"{self.label} became shorter while it was uploaded")
        self._offset += wanted
        self.remaining -= wanted
        return data

    async def finish(self) -> None:
        """Compare the file with what it was."""
        await self._run(self._finish)

    async def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            await self._run(lambda: os.close(file))

    async def _run(self, call: Callable[[], T]) -> T:
        done = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            # The thread may be using the descriptor: nobody closes it before it is done.
            await asyncio.wait([done])
            done.exception()
            raise

    def _open(self) -> None:
        try:
            # Without O_NONBLOCK the opening of a FIFO would wait for a writer.
            self._file = os.open(self.label, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            if self._before is None:
                raise
            raise SourceChanged(f"{self.label} vanished before it was uploaded") from error
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidArgument(f"{self.label} is not a regular file")
        if self._before is not None and _identity(found) != _identity(self._before):
            raise SourceChanged(f"{self.label} changed before it was uploaded")
        self._before = found
        self._size = found.st_size
        if self._size <= EAGER_BYTES:
            self._eager = self._read(self._size)

    def _read(self, n_bytes: int) -> bytes:
        data = os.pread(self._file, n_bytes, self._offset)
        while len(data) < n_bytes:
            more = os.pread(self._file, n_bytes - len(data), self._offset + len(data))
            if not more:
                break
            data += more
        return data

    def _finish(self) -> None:
        assert self._before is not None
        before = _identity(self._before)
        try:
            same = before == _identity(os.fstat(self._file)) == _identity(Path(self.label).stat())
        except FileNotFoundError as error:
            raise SourceChanged(f"{self.label} vanished while it was uploaded") from error
        if not same or os.pread(self._file, 1, self._size):
            raise SourceChanged(f"{self.label} changed while it was uploaded")


def _identity(found: os.stat_result) -> tuple[int, int, int, int, int]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def refuse_text(source: object) -> None:
    """Raise InvalidArgument if the source is a `str`."""
    if isinstance(source, str):
        message = "a str is no body: it could be text or the path of a local file"
        raise InvalidArgument(message, hint="encode it, or pass a pathlib.Path")


async def open_source(
    source: SourceLike, threads: Executor, *, before: os.stat_result | None = None
) -> Source:
    """Return the source behind what a caller may upload.

    Args:
        source: bytes, a `Path` of a local file, a binary file object or an async iterable.
        threads: where blocking reads run.
        before: what lstat or stat said of the path when the caller decided to upload it.

    Raises:
        InvalidArgument: it is none of these, or the path of something that is no regular file.
        SourceChanged: the path does not show what `before` says.
        OSError: the file cannot be opened.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesSource(source)
    refuse_text(source)
    if isinstance(source, os.PathLike):
        file = FileSource(source, threads, before)
        try:
            await file.open()
        except BaseException:
            await file.close()
            raise
        return file
    if isinstance(source, AsyncIterable):
        return IteratorSource(source)
    if callable(getattr(source, "read", None)):
        return FileObjectSource(source, threads)
    message = f"cannot upload a {type(source).__name__}"
    hint = "pass bytes, a pathlib.Path, a binary file object or an async iterator of bytes"
    raise InvalidArgument(message, hint=hint)
