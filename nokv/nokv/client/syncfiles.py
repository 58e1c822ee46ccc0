"""File objects of the synchronous client: what `io` expects, over the asynchronous ones."""

from __future__ import annotations

import io
import warnings
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from nokv.client.files import AsyncReader, AsyncWriter
from nokv.client.paths import AnyPath
from nokv.client.reads import ReadHandle
from nokv.client.upload import FileInfo
from nokv.errors import InvalidArgument, Stale
from nokv.types.values import Attr

T = TypeVar("T")

READ_BUFFER_BYTES: Final = 1024 * 1024
"""Of a buffered reader: one trip to the loop's thread for so much."""

WRITE_BUFFER_BYTES: Final = 1024 * 1024
"""Written bytes that are collected before they go to the loop's thread."""


class Runner(Protocol):
    """What runs coroutines for a file; see `sync.Owner`."""

    epoch: int

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run and wait."""
        ...

    def submit(self, work: Coroutine[Any, Any, object]) -> None:
        """Run without waiting."""
        ...


class ReaderFile(io.RawIOBase):
    """A file open for reading: unbuffered, seekable, one generation, verified."""

    def __init__(self, owner: Runner, file: AsyncReader) -> None:
        super().__init__()
        self.name = file.name
        self.mode = "rb"
        self._owner = owner
        self._epoch = owner.epoch
        self._file = file

    @property
    def attr(self) -> Attr:
        """The file's attributes when it was opened."""
        return self._file.attr

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        self._check()
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position and return it."""
        self._check()
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401  any writable buffer
        """Fill the buffer from the position; return how many bytes there were.

        Raises:
            Stale: the file was opened before a fork, or its session is over.
        """
        self._check()
        return self._owner.run(self._file.readinto(memoryview(buffer)))

    def readall(self) -> bytes:
        """Return the rest of the file."""
        self._check()
        return self._owner.run(self._file.read())

    def close(self) -> None:
        """Let the body go."""
        if not self.closed and self._owner.epoch == self._epoch:
            self._owner.submit(self._file.close())
        super().close()

    def _check(self) -> None:
        if self.closed:
            message = "I/O operation on closed file"
            raise ValueError(message)
        if self._owner.epoch != self._epoch:
            message = f"{self.name} was opened before a fork"
            raise Stale(message, hint="open it again in this process")


class WriterFile(io.BufferedIOBase):
    """A file open for writing: `close` publishes it, `abort` or an error in its block does not.

    One that is lost without either is given up, with a ResourceWarning.
    """

    def __init__(self, owner: Runner, file: AsyncWriter) -> None:
        super().__init__()
        self.name = file.name
        self.mode = "wb"
        self._owner = owner
        self._epoch = owner.epoch
        self._file = file
        self._buffer = bytearray()
        self._written = 0

    @property
    def info(self) -> FileInfo | None:
        """What was published, once it was closed."""
        return self._file.info

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._written

    def write(self, data: Any, /) -> int:  # noqa: ANN401  any bytes-like object
        """Add bytes and return their number; raises as `AsyncWriter.write`."""
        self._check()
        view = memoryview(data).cast("B")
        self._buffer += view
        self._written += len(view)
        if len(self._buffer) >= WRITE_BUFFER_BYTES:
            self._pass_on()
        return len(view)

    def flush(self) -> None:
        """Do nothing: a file becomes visible as a whole, when it is closed."""
        if self.closed:
            message = "I/O operation on closed file"
            raise ValueError(message)

    def close(self) -> None:
        """Publish; raises as `AsyncWriter.close`, and then the file stays as it was."""
        if self.closed:
            return
        try:
            self._check()
            self._pass_on()
            self._owner.run(self._file.close())
        finally:
            super().close()

    def abort(self) -> None:
        """Give everything up: the file stays as it was."""
        if self.closed:
            return
        super().close()
        self._buffer.clear()
        if self._owner.epoch == self._epoch:
            self._owner.run(self._file.abort())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish, or give up if the block failed."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        """A file that was lost is not published; that is warned of, like a file left open."""
        if not self.closed:
            message = f"{self.name} was not closed: what was written is dropped"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)
            super().close()
            if self._owner.epoch == self._epoch:
                self._owner.submit(self._file.abort())

    def _pass_on(self) -> None:
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            self._owner.run(self._file.write(data))

    def _check(self) -> None:
        if self.closed:
            message = "I/O operation on closed file"
            raise ValueError(message)
        if self._owner.epoch != self._epoch:
            message = f"{self.name} was opened before a fork"
            raise Stale(message, hint="open it again in this process")


class TextWriterFile(io.TextIOWrapper):
    """A text file open for writing; published like the `WriterFile` below it."""

    def __init__(self, file: WriterFile, encoding: str) -> None:
        self._below = file
        super().__init__(file, encoding=encoding, newline="", write_through=True)

    def abort(self) -> None:
        """Give everything up."""
        self._below.abort()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish, or give up if the block failed."""
        if kind is not None:
            self.abort()
        self.close()

    def __del__(self) -> None:
        """A file that was lost is not published; that is warned of, like a file left open."""
        if not self.closed:
            message = f"{self._below.name} was not closed: what was written is dropped"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)
            self.abort()


def open_file(
    owner: Runner, handle: ReadHandle, path: AnyPath, mode: str, buffering: int, encoding: str
) -> io.IOBase:
    """Open a file in the given mode; see `SyncReadHandle.open`.

    Raises:
        InvalidArgument: another mode, or unbuffered text.
        NokvError: as the asynchronous `open`.
    """
    text = "b" not in mode
    if text and buffering == 0:
        message = "text can't be unbuffered"
        raise InvalidArgument(message)
    binary = mode.replace("t", "") + "b" if text else mode
    opened = owner.run(_open(handle, path, binary))
    if isinstance(opened, AsyncWriter):
        writer = WriterFile(owner, opened)
        return TextWriterFile(writer, encoding) if text else writer
    raw = ReaderFile(owner, opened)
    if buffering == 0:
        return raw
    size = READ_BUFFER_BYTES if buffering < 2 else buffering
    buffered = io.BufferedReader(raw, size)
    return io.TextIOWrapper(buffered, encoding=encoding) if text else buffered


async def _open(handle: ReadHandle, path: AnyPath, mode: str) -> AsyncReader | AsyncWriter:
    opened: AsyncReader | AsyncWriter = await handle.open(path, mode)  # type: ignore[call-overload]
    return opened
