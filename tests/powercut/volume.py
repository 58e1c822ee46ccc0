"""The model of a disk that holds only what was synced: a tree of files with their recent past.

The rules, stricter than ext4 where POSIX allows it:

- Bytes written and sizes are durable once the file is synced. Until then each 512-byte sector may
  hold, after a cut, any content it had since the last sync; a sector is never torn itself.
- A write through a descriptor with O_DSYNC is durable alone: its sync covers no other write.
- Names are durable once their directory is synced; syncing a file says nothing about its name. Of
  the changes that were not synced, a cut keeps the oldest few in their order.

File content lies in real (sparse, never synced) files below `backing`.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR_BYTES = 512
PAST_MAX = 4
"""Old contents kept of one sector: the synced one, and the newest of the others."""


@dataclass(eq=False)
class Node:
    """A file or a directory."""

    ino: int
    mode: int
    name: str = ""
    """The last name it was given, for reports."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    nlink: int = 1
    entries: dict[bytes, Node] = field(default_factory=dict)
    """Of a directory: its names."""
    fd: int = -1
    """Of a file: its content in the backing directory."""
    size: int = 0
    durable_size: int = 0
    past: dict[int, list[bytes]] = field(default_factory=dict)
    """Sector number -> what it held since the last sync, oldest first; the newest is in `fd`.
    Short where the file ended then."""

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass
class Change:
    """A change of names: it happens whole or not at all."""

    undo: list[tuple[Node, bytes, Node | None]]
    """(directory, name, what the name was before)."""


class Volume:
    """A tree of nodes. Numbers of inodes are never used again."""

    def __init__(self, backing: Path) -> None:
        self._backing = backing
        self.nodes: dict[int, Node] = {}
        self.root = self._node(stat.S_IFDIR | 0o755, b"/")
        self.unsynced: list[Change] = []
        """Changes of names that are not durable yet, oldest first."""

    def _node(self, mode: int, name: bytes = b"") -> Node:
        node = Node(len(self.nodes) + 1, mode, os.fsdecode(name), mtime_ns=time.time_ns())
        self.nodes[node.ino] = node
        if not node.is_dir:
            path = self._backing / str(node.ino)
            node.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return node

    # Names

    def create(self, parent: Node, name: bytes, mode: int) -> Node:
        """Make a file or a directory; `mode` holds its type."""
        assert name not in parent.entries
        node = self._node(mode, name)
        self.set_names([(parent, name, node)])
        return node

    def set_names(self, changes: list[tuple[Node, bytes, Node | None]]) -> None:
        """Let each (directory, name) be that node, or nothing, as one change."""
        self.unsynced.append(Change([(d, name, d.entries.get(name)) for d, name, _ in changes]))
        for directory, name, node in changes:
            _set(directory, name, node)

    def sync_directory(self, directory: Node) -> None:
        """Make the changes that touch `directory` durable."""
        self.unsynced = [
            change
            for change in self.unsynced
            if all(touched is not directory for touched, _, _ in change.undo)
        ]

    # Content

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return the present bytes, short at the end of the file."""
        return os.pread(node.fd, max(0, min(length, node.size - offset)), offset)

    def write(self, node: Node, offset: int, data: bytes) -> None:
        """Write at `offset`; the sectors' old content stays possible until a sync."""
        self._remember(node, offset, offset + len(data))
        assert os.pwrite(node.fd, data, offset) == len(data)
        node.size = max(node.size, offset + len(data))
        node.mtime_ns = time.time_ns()

    def truncate(self, node: Node, size: int) -> None:
        """Set the size; a hole reads as zeros."""
        self._remember(node, size, node.size)
        os.ftruncate(node.fd, size)
        node.size = size
        node.mtime_ns = time.time_ns()

    def _remember(self, node: Node, start: int, end: int) -> None:
        first, last = start // SECTOR_BYTES, -(-end // SECTOR_BYTES)
        if first >= last:
            return
        low = first * SECTOR_BYTES
        old = self.read(node, low, (last - first) * SECTOR_BYTES)
        for number in range(first, last):
            begin = number * SECTOR_BYTES - low
            past = node.past.setdefault(number, [])
            past.append(old[begin : begin + SECTOR_BYTES])
            if len(past) > PAST_MAX:
                del past[1]

    def sync(self, node: Node) -> None:
        """Make the file's content and size durable."""
        node.past.clear()
        node.durable_size = node.size

    def sync_range(self, node: Node, offset: int, length: int) -> None:
        """Make one write durable, as O_DSYNC does, and no other."""
        for number in range(offset // SECTOR_BYTES, -(-(offset + length) // SECTOR_BYTES)):
            node.past.pop(number, None)
        node.durable_size = max(node.durable_size, min(node.size, offset + length))

    # The cut

    def surviving_content(self, node: Node, rng: random.Random | None) -> bytes:
        """Return what the file holds after a cut: with no `rng` only what was synced."""
        size = node.durable_size
        if rng is not None and rng.random() < 0.5:
            size = node.size
        content = bytearray(self.read(node, 0, node.size).ljust(size, b"\0"))
        for number, past in sorted(node.past.items()):
            choice = 0 if rng is None else rng.randrange(len(past) + 1)
            if choice < len(past):
                begin = number * SECTOR_BYTES
                content[begin : begin + SECTOR_BYTES] = past[choice].ljust(SECTOR_BYTES, b"\0")
        return bytes(content[:size].ljust(size, b"\0"))

    def surviving_names(self, rng: random.Random | None) -> dict[Node, dict[bytes, Node]]:
        """Return the names of each directory after a cut."""
        names = {node: dict(node.entries) for node in self.nodes.values() if node.is_dir}
        keep = 0 if rng is None else rng.randint(0, len(self.unsynced))
        for change in reversed(self.unsynced[keep:]):
            for directory, name, node in change.undo:
                if node is None:
                    names[directory].pop(name, None)
                else:
                    names[directory][name] = node
        return names

    def cut(self, rng: random.Random | None) -> None:
        """Lose power: keep a choice of what was not synced, or without `rng` nothing of it."""
        for node, names in self.surviving_names(rng).items():
            node.entries = names
        self.unsynced.clear()
        for node in self.nodes.values():
            if not node.is_dir and (node.past or node.size != node.durable_size):
                content = self.surviving_content(node, rng)
                os.ftruncate(node.fd, 0)
                os.pwrite(node.fd, content, 0)
                node.size = len(content)
                self.sync(node)

    def export(self, target: Path, rng: random.Random | None) -> None:
        """Write the tree as a cut at this moment would leave it into the new folder `target`."""
        names = self.surviving_names(rng)
        target.mkdir(parents=True)
        todo = [(self.root, target)]
        while todo:
            directory, path = todo.pop()
            for name, node in names[directory].items():
                below = path / os.fsdecode(name)
                if node.is_dir:
                    below.mkdir()
                    todo.append((node, below))
                else:
                    below.write_bytes(self.surviving_content(node, rng))

    def files(self) -> Iterator[Node]:
        """Yield every file that has or had a name."""
        return (node for node in self.nodes.values() if not node.is_dir)


def _set(directory: Node, name: bytes, node: Node | None) -> None:
    if node is None:
        del directory.entries[name]
    else:
        directory.entries[name] = node
        node.name = os.fsdecode(name)
    directory.mtime_ns = time.time_ns()
