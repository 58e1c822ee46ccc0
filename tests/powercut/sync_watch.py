"""The file's image at each sync, where no disk of our own can be mounted (seccomp_unotify(2)).

The process that is watched lets the kernel ask before each fsync(2), fdatasync(2) and pwrite64(2);
no library of it is replaced. At each sync, a write through a descriptor with O_DSYNC included, the
watcher compares the file with what it was, gives the difference to the `Volume` model, and writes
the images of a cut there. Names are taken to be durable at once: that is the FUSE disk's business.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import random
import select
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from tests.powercut.harness import Workload
from tests.powercut.volume import SECTOR_BYTES, Node, Volume

_NUMBERS = {
    "x86_64": {"arch": 0xC000003E, "seccomp": 317, "pwrite": 18, "fsync": 74, "fdatasync": 75},
    "aarch64": {"arch": 0xC00000B7, "seccomp": 277, "pwrite": 68, "fsync": 82, "fdatasync": 83},
}
_SET_MODE_FILTER, _NEW_LISTENER, _NO_NEW_PRIVS = 1, 8, 38
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTICE = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")


def why_unwatchable() -> str:
    """Return why this machine cannot watch syncs, or an empty string."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return f"syncs are watched on Linux only, on {' and '.join(_NUMBERS)}"
    return ""


def be_watched(fd: int) -> None:
    """Let whoever reads the socket `fd` see, and decide on, this thread's syncs.

    Raises OSError where the kernel or a container forbids it.
    """
    numbers = _NUMBERS[platform.machine()]
    asked = [numbers[name] for name in ("pwrite", "fsync", "fdatasync")]
    # Classic BPF over struct seccomp_data: load the architecture, the number; compare; return.
    program = [(0x20, 0, 0, 4), (0x15, 0, len(asked) + 1, numbers["arch"]), (0x20, 0, 0, 0)]
    program += [(0x15, len(asked) - n, 0, asked[n]) for n in range(len(asked))]
    program += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _NOTIFY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = libc.syscall(numbers["seccomp"], _SET_MODE_FILTER, _NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp filter with a listener")
    with socket.socket(fileno=fd) as sender:
        socket.send_fds(sender, [b"l"], [listener])
    os.close(listener)


class WatchedWorkload(Workload):
    """A workload whose files' syncs are watched: those directly in folders of `root`.

    `syncs` names them, numbered from 0; `ignored_sync` succeeds and does nothing: a planted bug.
    """

    def __init__(self, root: Path, images: Path, seeds: list[int], ignored_sync: int = -1) -> None:
        self.syncs: list[str] = []
        self.unusable = ""
        """Why the kernel let nobody watch."""
        self._root, self._images, self._seeds = root, images, seeds
        self._ignored_sync = ignored_sync
        backing = images / "backing"
        backing.mkdir(parents=True)
        self._volume = Volume(backing)
        self._nodes: dict[int, Node] = {}
        self._synchronous: tuple[Node, int, int] | None = None
        """The O_DSYNC write that runs now: it is over when the next notice comes."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            super().__init__(
                root / "state", "--watch", theirs.fileno(), pass_fds=(theirs.fileno(),)
            )
            theirs.close()
            fds = socket.recv_fds(ours, 1, 1)[1]
        self._listener = fds[0] if fds else -1
        if not fds:
            self.unusable = str(super().listen()[1])

    def listen(self) -> list[Any]:
        """Return the next message; its syncs until then are seen."""
        assert self._process.stdout is not None
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._process.stdout, select.POLLIN)
        while True:
            ready = {fd: mask for fd, mask in poller.poll() if mask & select.POLLIN}
            if self._listener in ready:
                self._serve()
            else:
                return super().listen()

    def kill(self) -> None:
        """End it."""
        super().kill()
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1

    def take_image(self) -> None:
        """Write the images of a cut now."""
        self._settle()
        for node in self._nodes.values():
            self._refresh(node)
        place = self._images / "at" / f"{len(self.syncs):05d}"
        self._volume.export(place / "drop", None)
        for seed in self._seeds:
            rng = random.Random(f"{seed} {len(self.syncs)}")
            self._volume.export(place / f"tear-{seed}", rng)

    def _serve(self) -> None:
        notice = bytearray(_NOTICE.size)
        fcntl.ioctl(self._listener, _RECEIVE, notice)
        number, pid, _, call, _, _, fd, _, length, offset, _, _ = _NOTICE.unpack(notice)
        works = self._on_call(pid, call, fd, length, offset)
        answer = _ANSWER.pack(number, 0, 0, _CONTINUE if works else 0)
        fcntl.ioctl(self._listener, _SEND, bytearray(answer))

    def _on_call(self, pid: int, call: int, fd: int, length: int, offset: int) -> bool:
        """Look at a call that is about to run; say whether it is to run."""
        link = Path(f"/proc/{pid}/fd/{fd}")
        status = link.stat()
        if not stat.S_ISREG(status.st_mode):
            return True
        is_write = call == _NUMBERS[platform.machine()]["pwrite"]
        if is_write and not _open_flags(pid, fd) & os.O_DSYNC:
            return True
        node = self._node_of(status.st_ino, link.readlink())
        self.take_image()
        self.syncs.append(f"{'synchronous write of' if is_write else 'sync'} {node.name}")
        works = len(self.syncs) - 1 != self._ignored_sync
        if is_write:
            self._synchronous = (node, offset, length) if works else None
            return True
        if works:
            self._volume.sync(node)
        return works

    def _node_of(self, ino: int, path: Path) -> Node:
        """Return the model's file, under the name that the file has now and those it had."""
        root, volume = self._volume.root, self._volume
        folder, name = os.fsencode(path.parent.name), os.fsencode(path.name)
        assert path.parent.parent == self._root
        directory = root.entries.get(folder) or volume.create(root, folder, stat.S_IFDIR | 0o755)
        if ino not in self._nodes:
            self._nodes[ino] = volume.create(directory, name, stat.S_IFREG | 0o600)
        elif name not in directory.entries:
            volume.set_names([(directory, name, self._nodes[ino])])
        volume.unsynced.clear()
        self._nodes[ino].name = os.fsdecode(folder + b"/" + name)
        return self._nodes[ino]

    def _settle(self) -> None:
        """Take over what the last synchronous write wrote."""
        if self._synchronous is not None:
            node, offset, length = self._synchronous
            self._refresh(node)
            self._volume.sync_range(node, offset, length)
            self._synchronous = None

    def _refresh(self, node: Node) -> None:
        """Give the model what the file holds now, sector by sector where it changed."""
        content = (self._root / node.name).read_bytes()
        before = self._volume.read(node, 0, node.size)
        if len(content) < node.size:
            self._volume.truncate(node, len(content))
        for begin in range(0, len(content), SECTOR_BYTES):
            sector = content[begin : begin + SECTOR_BYTES]
            if sector != before[begin : begin + SECTOR_BYTES]:
                self._volume.write(node, begin, sector)


def _open_flags(pid: int, fd: int) -> int:
    """Return the flags of an open file description of another process (proc(5), fdinfo)."""
    with open(f"/proc/{pid}/fdinfo/{fd}") as info:
        fields = dict(line.split(":\t", 1) for line in info if ":\t" in line)
    return int(fields["flags"], 8)
