"""A disk in memory that forgets, or tears, what was not synced.

`SimDisk` is the `Disk` port of one node. It outlives the node's process: `kill` keeps what the
page cache held, `power_cut` keeps of the unsynced writes a random subset of their sectors, of the
unsynced creations and renames a prefix, and of the removals a random subset. A fault can be armed
at any named call; space can run out; a synced bit can turn.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from random import Random

SECTOR_BYTES = 512

CALLS = (
    "listdir",
    "create",
    "open",
    "close",
    "preallocate",
    "size_bytes",
    "pread",
    "pwrite",
    "fdatasync",
    "fsync_dir",
    "rename",
    "unlink",
    "free_bytes",
)
WRITING_CALLS = ("create", "preallocate", "pwrite", "fdatasync", "fsync_dir", "rename", "unlink")


class Crash(BaseException):
    """The process dies at this very call; nothing may catch it but the simulator."""


class _File:
    """Content as the page cache has it, and as the platter has it.

    Equality is identity: files are kept in sets.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.dirty: list[tuple[int, bytes]] = []

    def write(self, data: bytes, offset: int) -> None:
        _write(self.content, data, offset)
        self.dirty.append((offset, data))

    def sync(self) -> None:
        for offset, data in self.dirty:
            _write(self.durable, data, offset)
        self.dirty.clear()

    def tear(self, rng: Random) -> None:
        """Lose the page cache: each unsynced sector made it to the platter, or did not."""
        kept = rng.choice((0.0, 0.5, 0.9, 1.0))
        for offset, data in self.dirty:
            position = 0
            while position < len(data):
                end = min(
                    len(data),
                    (offset + position) // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES - offset,
                )
                if rng.random() < kept:
                    _write(self.durable, data[position:end], offset + position)
                position = end
        self.dirty.clear()
        self.content = bytearray(self.durable)


def _write(buffer: bytearray, data: bytes, offset: int) -> None:
    if len(buffer) < offset:
        buffer.extend(bytes(offset - len(buffer)))
    buffer[offset : offset + len(data)] = data


class SimDisk:
    """See the module; `on_call(name)` runs before each call and may raise."""

    def __init__(self, free_bytes: int = 1 << 40) -> None:
        self.on_call: Callable[[str], None] = lambda _name: None
        self.after_call: Callable[[str], None] = lambda _name: None
        self.loses_syncs = False
        """A planted bug: fdatasync does nothing."""
        self.free = free_bytes
        self.room: int | None = None
        """Bytes that may still be allocated, None for as many as you like."""
        self.on_sync: Callable[[], None] = lambda: None
        """Runs in every sync: a slow disk takes its time here."""
        self.armed = False
        """Whether a fault waits for a call."""
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._operations: list[tuple[str, str, str, _File]] = []
        self._dirty: set[_File] = set()
        self._handles: dict[int, _File] = {}
        self._next_handle = 3
        self.syncs = 0

    # ------------------------------------------------------------------ the port

    def listdir(self) -> list[str]:
        self._before("listdir")
        return sorted(self._names)

    def create(self, name: str) -> int:
        self._before("create")
        if name in self._names:
            raise FileExistsError(errno.EEXIST, "exists", name)
        self._names[name] = _File()
        self._operations.append(("create", name, "", self._names[name]))
        self.after_call("create")
        return self._handle(name)

    def open(self, name: str) -> int:
        self._before("open")
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "missing", name)
        return self._handle(name)

    def close(self, handle: int) -> None:
        self._before("close")
        del self._handles[handle]

    def preallocate(self, handle: int, size_bytes: int, offset: int) -> None:
        self._before("preallocate")
        file = self._handles[handle]
        self._take_room(offset + size_bytes - len(file.content))
        file.write(bytes(size_bytes), offset)
        self._dirty.add(file)
        self.after_call("preallocate")

    def size_bytes(self, handle: int) -> int:
        self._before("size_bytes")
        return len(self._handles[handle].content)

    def pread(self, handle: int, size_bytes: int, offset: int) -> bytes:
        self._before("pread")
        return bytes(self._handles[handle].content[offset : offset + size_bytes])

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._before("pwrite")
        file = self._handles[handle]
        self._take_room(offset + len(data) - len(file.content))
        file.write(bytes(data), offset)
        self._dirty.add(file)
        self.after_call("pwrite")

    def fdatasync(self, handle: int) -> None:
        self._before("fdatasync")
        self.syncs += 1
        self.on_sync()
        if not self.loses_syncs:
            file = self._handles[handle]
            file.sync()
            self._dirty.discard(file)
        self.after_call("fdatasync")

    def fsync_dir(self) -> None:
        self._before("fsync_dir")
        self._durable_names = dict(self._names)
        self._operations.clear()
        self.after_call("fsync_dir")

    def rename(self, old: str, new: str) -> None:
        self._before("rename")
        self._names[new] = self._names.pop(old)
        self._operations.append(("rename", old, new, self._names[new]))
        self.after_call("rename")

    def unlink(self, name: str) -> None:
        self._before("unlink")
        file = self._names.pop(name)
        self._operations.append(("unlink", name, "", file))
        self._dirty.discard(file)
        if self.room is not None:
            self.room += len(file.content)
        self.after_call("unlink")

    def free_bytes(self) -> int:
        self._before("free_bytes")
        return self.free if self.room is None else self.room

    # ------------------------------------------------------------------ faults

    def kill(self) -> None:
        """The process died; the operating system goes on."""
        self._handles.clear()
        self.disarm()

    def power_cut(self, rng: Random) -> None:
        """The machine died: only what was synced is certain to be there."""
        self.kill()
        applied = rng.randint(0, len(self._operations))
        names = dict(self._durable_names)
        for position, (kind, name, new, file) in enumerate(self._operations):
            if kind == "unlink":
                # Removals need not reach the platter in the order they were made.
                if rng.random() < 0.5:
                    names.pop(name, None)
            elif position >= applied:
                continue
            elif kind == "create":
                names[name] = file
            else:
                names[new] = names.pop(name)
        self._names = names
        for file in names.values():
            file.tear(rng)
        self._dirty.clear()
        self._durable_names = dict(names)
        self._operations.clear()

    def disarm(self) -> None:
        """Remove any armed fault."""
        self.on_call = lambda _name: None
        self.after_call = lambda _name: None
        self.armed = False

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Let no armed fault strike: it is the checker that looks."""
        hooks = self.on_call, self.after_call, self.armed
        self.disarm()
        try:
            yield
        finally:
            self.on_call, self.after_call, self.armed = hooks

    def crash_at(self, call: str, count: int, *, after: bool) -> None:
        """Die at the `count`-th call of that name from now on, before or after its effect."""
        remaining = count

        def hook(name: str) -> None:
            nonlocal remaining
            if name == call:
                remaining -= 1
                if remaining <= 0:
                    self.disarm()
                    raise Crash(name)

        self.armed = True
        if after:
            self.after_call = hook
        else:
            self.on_call = hook

    def fail_at(self, call: str, code: int = errno.EIO) -> None:
        """Let the next call of that name fail, without effect."""

        def hook(name: str) -> None:
            if name == call:
                self.disarm()
                raise OSError(code, f"armed at {name}")

        self.armed = True
        self.on_call = hook

    def _before(self, name: str) -> None:
        self.on_call(name)

    def _take_room(self, size_bytes: int) -> None:
        if self.room is not None and size_bytes > 0:
            if size_bytes > self.room:
                raise OSError(errno.ENOSPC, "no space left")
            self.room -= size_bytes

    def _handle(self, name: str) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = self._names[name]
        return self._next_handle

    # ------------------------------------------------------------------ for tests

    @property
    def dirty(self) -> bool:
        """Whether a file holds bytes that a power cut may lose."""
        return bool(self._dirty)

    def names(self) -> list[str]:
        """Return the names in the folder, without a call that could fail."""
        return sorted(self._names)

    def flip(self, name: str, offset: int, mask: int = 0xFF) -> None:
        """Change bits of one byte that was synced."""
        file = self._names[name]
        file.content[offset] ^= mask
        file.durable[offset] ^= mask

    def content(self, name: str) -> bytes:
        return bytes(self._names[name].content)

    def durable(self) -> dict[str, bytearray]:
        """Return what a power cut can not take: name to synced bytes."""
        return {name: file.durable for name, file in self._durable_names.items()}
