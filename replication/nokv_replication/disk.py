"""The `Disk` port over a real folder."""

import os
from pathlib import Path

_ZEROS = bytes(1 << 20)


class OsDisk:
    """Files of one folder through the operating system. Handles are file descriptors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listdir(self) -> list[str]:
        """Return the names in the folder, in any order."""
        return os.listdir(self._folder)  # noqa: PTH208 - names, not paths

    def create(self, name: str) -> int:
        """Create a file that must not exist (open(2) with O_CREAT | O_EXCL)."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        return os.open(self._folder / name, flags, 0o600)

    def open(self, name: str) -> int:
        """Open an existing file for reading and writing."""
        return os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)

    def close(self, handle: int) -> None:
        """Close a handle."""
        os.close(handle)

    def preallocate(self, handle: int, size_bytes: int, offset: int) -> None:
        """Write zeros: blocks only reserved (fallocate(2)) would still change metadata later."""
        for position in range(0, size_bytes, len(_ZEROS)):
            part = memoryview(_ZEROS)[: size_bytes - position]
            self.pwrite(handle, part, offset + position)

    def size_bytes(self, handle: int) -> int:
        """Return the file's size."""
        return os.fstat(handle).st_size

    def pread(self, handle: int, size_bytes: int, offset: int) -> bytes:
        """Read up to `size_bytes` at `offset`; short only at the end of the file."""
        data = os.pread(handle, size_bytes, offset)
        while 0 < len(data) < size_bytes:
            more = os.pread(handle, size_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        written = os.pwrite(handle, data, offset)
        while written < len(data):
            written += os.pwrite(handle, memoryview(data)[written:], offset + written)

    def fdatasync(self, handle: int) -> None:
        """Make the file's data durable (fdatasync(2), fsync(2) where there is none)."""
        sync = getattr(os, "fdatasync", os.fsync)
        sync(handle)

    def fsync_dir(self) -> None:
        """Make creations, renames and removals in the folder durable."""
        handle = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Rename atomically, replacing `new`."""
        os.replace(self._folder / old, self._folder / new)  # noqa: PTH105 - one named call

    def unlink(self, name: str) -> None:
        """Remove a name."""
        os.unlink(self._folder / name)  # noqa: PTH108 - one named call

    def free_bytes(self) -> int:
        """Return the bytes that an unprivileged writer may still allocate (statvfs(3))."""
        stat = os.statvfs(self._folder)
        return stat.f_bavail * stat.f_frsize
