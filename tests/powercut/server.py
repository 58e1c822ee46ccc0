"""The FUSE server of the power-cut disk, in a process of its own.

Speaks the kernel's protocol (linux/fuse.h, version 7.31) on /dev/fuse, one request at a time, over
the `Volume` model, and takes commands as JSON lines on its standard input. Reads and mmap go
through the page cache, which is coherent with write(2) there; writes are passed on at once (no
write-back cache). A cut closes the device, so every request of the machine that was running fails,
and mounts what survived anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import resource
import select
import stat
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.powercut.volume import Node, Volume

MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2
MAX_WRITE_BYTES = 1 << 17
NEVER_S = 1 << 30
"""Attributes and names change through this kernel only: it may believe its caches for ever."""

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_OPEN = struct.Struct("<QIi")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_WRITE = struct.Struct("<QQIIQII")
_FOPEN_KEEP_CACHE = 2
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_SIZE = 1, 2, 4, 8
_RENAME_NOREPLACE = 1
_FALLOC_KEEP_SIZE = 1
_WRITE_CACHE = 1
"""Write-back of a shared mapping: it comes when the kernel likes, so it is no event."""

_libc = ctypes.CDLL(None, use_errno=True)


def mount(mountpoint: Path, fd: int) -> None:
    """Mount a FUSE file system that is served on `fd` (mount(2))."""
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    arguments = (b"powercut", os.fsencode(mountpoint), b"fuse", MS_NOSUID | MS_NODEV)
    if _libc.mount(*arguments, options.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(mountpoint))


def unmount(mountpoint: Path) -> None:
    """Take the mount away, whoever still uses it; no error if there is none."""
    _libc.umount2(os.fsencode(mountpoint), MNT_DETACH)


class PowerIsOffError(Exception):
    """The cut came before this request."""


class Server:
    """One mount after the other of one volume, and the count of what happened to it.

    An *event* is a write(2), a sync or a change of names, numbered from 0 over all mounts; a *sync*
    is one of them, numbered too.
    """

    def __init__(self, mountpoint: Path, backing: Path) -> None:
        self.mountpoint = mountpoint
        self.volume = Volume(backing)
        self.fuse_fd = -1
        self.events: list[str] = []
        self.syncs: list[str] = []
        self.ignored_sync = -1
        self.cut_at = -1
        self.is_off = False
        self.images: Path | None = None
        self.image_seeds: list[int] = []
        self.handles: dict[int, tuple[Node, int]] = {}
        """Handle -> (node, flags of its open)."""
        self.dsync_writes: dict[int, list[tuple[int, int]]] = {}
        """Handle with O_DSYNC -> (offset, length) of its writes that the kernel has yet to sync."""
        self.handlers: dict[int, Callable[[int, bytes], bytes | None]] = {
            1: self.lookup,
            3: self.getattr,
            4: self.setattr,
            9: self.mkdir,
            10: self.unlink,
            11: self.rmdir,
            12: self.rename,
            13: self.link,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.statfs,
            18: self.release,
            20: self.fsync,
            25: lambda _ino, _body: b"",
            26: self.init,
            27: self.open,
            28: self.readdir,
            29: self.release,
            30: self.fsyncdir,
            35: self.create,
            43: self.fallocate,
            45: self.rename2,
        }
        self.commands: dict[str, Callable[..., Any]] = {
            "cut": self.cut,
            "events": lambda: self.events,
            "syncs": lambda: self.syncs,
            "ignore_sync": lambda number: setattr(self, "ignored_sync", number),
            "cut_at": lambda number: setattr(self, "cut_at", number),
            "take_images": self.take_images,
            "take_image": self.take_image,
        }

    # Life

    def power_on(self) -> None:
        self.handles.clear()
        self.dsync_writes.clear()
        self.is_off, self.cut_at = False, -1
        self.fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount(self.mountpoint, self.fuse_fd)

    def power_off(self) -> None:
        # The device first: an unmount waits for write-back that nobody would serve.
        os.close(self.fuse_fd)
        unmount(self.mountpoint)

    def cut(self, seed: int | None) -> None:
        self.power_off()
        self.volume.cut(None if seed is None else random.Random(seed))
        self.power_on()

    def take_images(self, directory: str, seeds: list[int]) -> None:
        self.images, self.image_seeds = Path(directory), seeds

    def event(self, what: str, node: Node) -> None:
        """Count an event that is about to happen; it is the moment of a cut and of images."""
        if self.cut_at == len(self.events):
            self.is_off = True
        if self.is_off:
            raise PowerIsOffError
        self.take_image()
        self.events.append(f"{what} {node.name}")

    def take_image(self) -> None:
        if self.images is not None:
            place = self.images / f"{len(self.events):05d}"
            self.volume.export(place / "drop", None)
            for seed in self.image_seeds:
                rng = random.Random(f"{seed} {len(self.events)}")
                self.volume.export(place / f"tear-{seed}", rng)

    def sync_event(self, what: str, node: Node) -> bool:
        """Count a sync; say whether it is to do its work."""
        self.event(what, node)
        self.syncs.append(self.events[-1])
        return len(self.syncs) - 1 != self.ignored_sync

    # The loop

    def run(self) -> None:
        poller = select.poll()
        poller.register(sys.stdin.fileno(), select.POLLIN)
        while True:
            poller.register(self.fuse_fd, select.POLLIN)
            before = self.fuse_fd
            for fd, _ in poller.poll():
                if fd == self.fuse_fd:
                    self.serve()
                elif fd == sys.stdin.fileno() and not self.command():
                    return
            if self.fuse_fd != before:
                poller.unregister(before)

    def command(self) -> bool:
        line = sys.stdin.buffer.raw.readline()  # type: ignore[union-attr]
        if not line:
            return False
        name, *arguments = json.loads(line)
        print(json.dumps(self.commands[name](*arguments)), flush=True)
        return True

    def serve(self) -> None:
        try:
            request = os.read(self.fuse_fd, MAX_WRITE_BYTES + 8192)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                return
            raise
        _, opcode, unique, ino = _IN.unpack_from(request)[:4]
        if opcode in {2, 36, 38, 42}:  # FORGET, INTERRUPT, DESTROY, BATCH_FORGET: no answer
            return
        handler, code, answer = self.handlers.get(opcode), 0, b""
        try:
            if handler is None:
                code = errno.ENOSYS
            elif self.is_off:
                code = errno.EIO
            else:
                answer = handler(ino, request[_IN.size :]) or b""
        except PowerIsOffError:
            code = errno.EIO
        except OSError as error:
            code = error.errno or errno.EIO
        with contextlib.suppress(FileNotFoundError):  # the request was interrupted
            os.write(self.fuse_fd, _OUT.pack(_OUT.size + len(answer), -code, unique) + answer)

    # Requests: each takes the inode and the body, and returns the answer's body

    def init(self, _ino: int, _body: bytes) -> bytes:
        flags = _BIG_WRITES | _MAX_PAGES
        head = struct.pack("<IIII", 7, 31, MAX_WRITE_BYTES, flags)
        limits = (12, 9, MAX_WRITE_BYTES, 1, MAX_WRITE_BYTES // 4096, 0)
        return (head + struct.pack("<HHIIHH", *limits)).ljust(64, b"\0")

    def attr(self, node: Node) -> bytes:
        seconds, nanoseconds = divmod(node.mtime_ns, 10**9)
        times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        nlink = 2 if node.is_dir else 1
        owner = (node.mode, nlink, node.uid, node.gid, 0, 4096, 0)
        return _ATTR.pack(node.ino, node.size, -(-node.size // 512), *times, *owner)

    def entry(self, node: Node) -> bytes:
        return _ENTRY.pack(node.ino, 0, NEVER_S, NEVER_S, 0, 0) + self.attr(node)

    def child(self, ino: int, name: bytes) -> Node:
        node = self.volume.nodes[ino].entries.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return node

    def lookup(self, ino: int, body: bytes) -> bytes:
        return self.entry(self.child(ino, body.rstrip(b"\0")))

    def getattr(self, ino: int, _body: bytes) -> bytes:
        return struct.pack("<QII", NEVER_S, 0, 0) + self.attr(self.volume.nodes[ino])

    def setattr(self, ino: int, body: bytes) -> bytes:
        node, fields = self.volume.nodes[ino], _SETATTR.unpack_from(body)
        valid, size, mode, uid, gid = fields[0], fields[3], fields[11], fields[13], fields[14]
        if valid & _FATTR_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if valid & _FATTR_UID:
            node.uid = uid
        if valid & _FATTR_GID:
            node.gid = gid
        if valid & _FATTR_SIZE and size != node.size:
            self.event("truncate", node)
            self.volume.truncate(node, size)
        return self.getattr(ino, b"")

    def new(self, ino: int, name: bytes, mode: int) -> Node:
        parent = self.volume.nodes[ino]
        if name in parent.entries:
            raise FileExistsError(errno.EEXIST, "name is taken")
        self.event("name " + os.fsdecode(name) + " in", parent)
        return self.volume.create(parent, name, mode)

    def mkdir(self, ino: int, body: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        name = body[8:].rstrip(b"\0")
        return self.entry(self.new(ino, name, stat.S_IFDIR | (mode & ~umask & 0o7777)))

    def create(self, ino: int, body: bytes) -> bytes:
        flags, mode, umask, _ = struct.unpack_from("<IIII", body)
        node = self.new(ino, body[16:].rstrip(b"\0"), stat.S_IFREG | (mode & ~umask & 0o7777))
        return self.entry(node) + self.handle(node, flags)

    def handle(self, node: Node, flags: int) -> bytes:
        number = max(self.handles, default=0) + 1
        self.handles[number] = (node, flags)
        return _OPEN.pack(number, _FOPEN_KEEP_CACHE, 0)

    def open(self, ino: int, body: bytes) -> bytes:
        return self.handle(self.volume.nodes[ino], struct.unpack_from("<I", body)[0])

    def release(self, _ino: int, body: bytes) -> bytes:
        number = struct.unpack_from("<Q", body)[0]
        self.handles.pop(number, None)
        self.dsync_writes.pop(number, None)
        return b""

    def remove(self, ino: int, name: bytes) -> None:
        parent = self.volume.nodes[ino]
        self.event("remove " + os.fsdecode(name) + " from", parent)
        self.volume.set_names([(parent, name, None)])

    def unlink(self, ino: int, body: bytes) -> None:
        self.child(ino, body.rstrip(b"\0"))
        self.remove(ino, body.rstrip(b"\0"))

    def rmdir(self, ino: int, body: bytes) -> None:
        if self.child(ino, body.rstrip(b"\0")).entries:
            raise OSError(errno.ENOTEMPTY, "directory is not empty")
        self.remove(ino, body.rstrip(b"\0"))

    def link(self, ino: int, body: bytes) -> bytes:
        node, parent = self.volume.nodes[struct.unpack_from("<Q", body)[0]], self.volume.nodes[ino]
        name = body[8:].rstrip(b"\0")
        if name in parent.entries:
            raise FileExistsError(errno.EEXIST, "name is taken")
        self.event("link " + os.fsdecode(name) + " in", parent)
        self.volume.set_names([(parent, name, node)])
        return self.entry(node)

    def rename(self, ino: int, body: bytes) -> None:
        self.move(ino, struct.unpack_from("<Q", body)[0], 0, body[8:])

    def rename2(self, ino: int, body: bytes) -> None:
        target, flags, _ = struct.unpack_from("<QII", body)
        self.move(ino, target, flags, body[16:])

    def move(self, ino: int, target_ino: int, flags: int, names: bytes) -> None:
        old, new = names.rstrip(b"\0").split(b"\0")
        node, target = self.child(ino, old), self.volume.nodes[target_ino]
        replaced = target.entries.get(new)
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "rename flags")
        if replaced is not None and flags & _RENAME_NOREPLACE:
            raise FileExistsError(errno.EEXIST, "name is taken")
        if replaced is not None and replaced.entries:
            raise OSError(errno.ENOTEMPTY, "directory is not empty")
        self.event(f"rename {os.fsdecode(old)} to {os.fsdecode(new)} in", target)
        self.volume.set_names([(self.volume.nodes[ino], old, None), (target, new, node)])

    def read(self, ino: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return self.volume.read(self.volume.nodes[ino], offset, size)

    def write(self, ino: int, body: bytes) -> bytes:
        number, offset, size, write_flags = _WRITE.unpack_from(body)[:4]
        node = self.volume.nodes[ino]
        if not write_flags & _WRITE_CACHE:
            self.event("write", node)
        self.volume.write(node, offset, body[_WRITE.size : _WRITE.size + size])
        if self.handles.get(number, (node, 0))[1] & os.O_DSYNC:
            self.dsync_writes.setdefault(number, []).append((offset, size))
        return struct.pack("<II", size, 0)

    def fsync(self, ino: int, body: bytes) -> None:
        number, node = struct.unpack_from("<Q", body)[0], self.volume.nodes[ino]
        if number in self.dsync_writes:
            # The kernel's second half of a write with O_DSYNC; the request names no range.
            works = self.sync_event("sync of a synchronous write of", node)
            for offset, length in self.dsync_writes.pop(number):
                if works:
                    self.volume.sync_range(node, offset, length)
        elif self.sync_event("sync", node):
            self.volume.sync(node)

    def fsyncdir(self, ino: int, _body: bytes) -> None:
        if self.sync_event("sync directory", self.volume.nodes[ino]):
            self.volume.sync_directory(self.volume.nodes[ino])

    def fallocate(self, ino: int, body: bytes) -> None:
        _, offset, length, mode = struct.unpack_from("<QQQI", body)
        node = self.volume.nodes[ino]
        if mode & ~_FALLOC_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, "fallocate mode")
        if mode == 0 and offset + length > node.size:
            self.event("allocate", node)
            self.volume.truncate(node, offset + length)

    def readdir(self, ino: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for position, (name, node) in enumerate(self.volume.nodes[ino].entries.items()):
            head = struct.pack("<QQII", node.ino, position + 1, len(name), node.mode >> 12)
            record = (head + name).ljust(-(-(24 + len(name)) // 8) * 8, b"\0")
            if position >= offset:
                if len(answer) + len(record) > size:
                    break
                answer += record
        return answer

    def statfs(self, _ino: int, _body: bytes) -> bytes:
        blocks = 1 << 28
        return struct.pack(
            "<QQQQQIIII", blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096, 0
        ) + bytes(24)


def main() -> int:
    # The model keeps a descriptor for every file.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = Server(Path(sys.argv[1]), Path(sys.argv[2]))
    server.power_on()
    print(json.dumps("ready"), flush=True)
    try:
        server.run()
    except Exception:  # noqa: BLE001 - say what happened, then fail every request by closing
        traceback.print_exc()
        return 1
    finally:
        server.power_off()
    return 0


if __name__ == "__main__":
    sys.exit(main())
