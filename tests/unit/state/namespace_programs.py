"""Random programs over a small namespace, and a listing of everything to compare states by."""

from __future__ import annotations

import random

from tests.unit.state.shard import ALICE, ROOT, Shard, at

from nokv.errors import Internal
from nokv.state.context import DIRECTORY, S_IFMT
from nokv.state.families import Family
from nokv.state.records import body_of, decode_inode
from nokv.types.commands import (
    Atomic,
    BulkCreate,
    Create,
    InnerOp,
    Link,
    Mkdir,
    Mknod,
    Op,
    PinView,
    Publish,
    PublishMode,
    Reap,
    RemoveTree,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Symlink,
    Unlink,
    UnpinView,
)
from nokv.types.reads import (
    AttrReply,
    BytesReply,
    DirPage,
    GetAttr,
    GetXattr,
    ListXattr,
    NamesReply,
    ReadDir,
    ReadLink,
)
from nokv.types.results import Pinned
from nokv.types.values import At, Attr, ChunkMap, Extent

NAMES = (b"a", b"b", b"c", b"d", b"e")
FIFO = 0o010644


class Chooser:
    """Draws operations on directories that exist and on a few names below them."""

    def __init__(self, rng: random.Random, directories: list[int]) -> None:
        self.rng = rng
        self.directories = directories

    def directory(self) -> At:
        """Return the address of a directory, at times a wrong one."""
        chance = self.rng.random()
        if chance < 0.05:
            return At(0, self.rng.randrange(1, 60))
        if chance < 0.15:
            path = tuple(self.rng.choice((*NAMES, b"..")) for _ in range(self.rng.randrange(3)))
            return At(path=path)
        return At(0, self.rng.choice(self.directories))

    def name(self) -> bytes:
        """Return a name."""
        return self.rng.choice(NAMES)

    def thing(self) -> At:
        """Return the address of what a name shows."""
        above = self.directory()
        follow = self.rng.random() < 0.5
        return At(0, above.inode, (*above.path, self.name()), follow)

    def _publish(self) -> Publish:
        size = self.rng.randrange(1, 50)
        mode = self.rng.choice((PublishMode.REPLACE, PublishMode.PATCH, PublishMode.APPEND))
        extent = Extent(0, size, data=bytes([self.rng.randrange(256)]) * size)
        chunks = (ChunkMap(0, (), (extent,)),)
        return Publish(self.directory(), self.name(), mode, 0o644, size, 0, chunks)

    def _make(self) -> InnerOp:
        there, name = self.directory(), self.name()
        match self.rng.randrange(8):
            case 0 | 1 | 2:
                return Mkdir(there, name, 0o777)
            case 3 | 4:
                return Create(there, name, 0o666)
            case 5:
                return BulkCreate(there, tuple(self.rng.sample(NAMES, 2)), 0o600)
            case 6:
                return Mknod(there, name, FIFO)
            case _:
                return Symlink(there, name, b"/".join(self.rng.choices(NAMES, k=2)))

    def _set(self) -> InnerOp:
        thing, name = self.thing(), self.name()
        match self.rng.randrange(5):
            case 0:
                return SetAttr(thing, mode=self.rng.choice((0o777, 0o700, 0o1777)))
            case 1:
                return SetAttr(thing, size=self.rng.randrange(100))
            case 2:
                return SetAttr(thing, uid=self.rng.choice((0, 1000)))
            case 3:
                return SetXattr(thing, b"user." + name, b"v%d" % self.rng.randrange(9))
            case _:
                return RemoveXattr(thing, b"user." + name)

    def inner(self) -> InnerOp:
        """Return an operation that an Atomic may hold."""
        there, name = self.directory(), self.name()
        match self.rng.randrange(14):
            case 0 | 1 | 2 | 3:
                return self._make()
            case 4 | 5:
                return self._set()
            case 6:
                return Link(self.thing(), there, name)
            case 7:
                return Unlink(there, name)
            case 8:
                return Rmdir(there, name)
            case 9 | 10 | 11:
                flags = self.rng.choice((0, 0, 1, 2))
                return Rename(there, name, self.directory(), self.name(), flags)
            case 12:
                return self._publish()
            case _:
                return RemoveTree(there, name)

    def op(self) -> Op:
        """Return an operation: mostly of the namespace, at times an Atomic or a reaping step."""
        chance = self.rng.random()
        if chance < 0.06:
            return Atomic(tuple(self.inner() for _ in range(self.rng.randrange(1, 4))))
        if chance < 0.12:
            return Reap(self.rng.randrange(1, 5))
        return self.inner()


class Program:
    """A seeded run: one step is one command, or the making or dropping of a pin."""

    def __init__(self, shard: Shard, seed: int) -> None:
        self.shard = shard
        self.rng = random.Random(seed)
        self.pins: list[Pinned] = []
        self.succeeded = 0

    def step(self) -> Pinned | None:
        """Apply one random command; return a pin if it made one."""
        chance = self.rng.random()
        if chance < 0.04:
            made = self.shard.do(PinView(0))
            assert isinstance(made, Pinned)
            self.pins.append(made)
            return made
        if chance < 0.07 and self.pins:
            gone = self.pins.pop(self.rng.randrange(len(self.pins)))
            self.shard.do(UnpinView(0, gone.version, gone.pin))
            return None
        op = Chooser(self.rng, self._directories()).op()
        caller = ROOT if self.rng.random() < 0.8 else ALICE
        command = self.shard.command(op, caller, session=0 if isinstance(op, Reap) else None)
        (result,) = self.shard.entry(command)
        assert result.code != Internal.code, (op, result)
        self.succeeded += not result.code
        return None

    def _directories(self) -> list[int]:
        rows = self.shard.kv.scan(Family.INODE, bytes(8), b"\x01")
        return [
            int.from_bytes(key[8:], "big")
            for key, value in rows
            if decode_inode(body_of(value)).mode & S_IFMT == DIRECTORY
        ]


# ---------------------------------------------------------------- a listing of everything


def entries(shard: Shard, directory: At, at_version: int, limit: int) -> list[tuple[bytes, Attr]]:
    """Return a directory's names with their attributes, read page by page."""
    found: list[tuple[bytes, Attr]] = []
    after = b""
    while True:
        page = shard.read(ReadDir(directory, after, limit, plus=True, at_version=at_version))
        assert isinstance(page, DirPage)
        assert len(page.entries) <= limit
        for entry in page.entries:
            assert entry.attr is not None
            assert entry.file_type == entry.attr.mode >> 12
            found.append((entry.name, entry.attr))
        if not page.more:
            return found
        assert page.after > after, "a page without progress"
        after = page.after


def listing(shard: Shard, at_version: int = 0, limit: int = 4096) -> dict[bytes, object]:
    """Return all that reads show below the root: attributes, links' targets, attributes' values."""
    found: dict[bytes, object] = {}
    root = shard.read(GetAttr(at(), at_version))
    assert isinstance(root, AttrReply)
    found[b"/"] = root.attr
    todo = [(b"", root.attr.inode)]
    while todo:
        path, ino = todo.pop()
        for name, attr in entries(shard, at(inode=ino), at_version, limit):
            one = path + b"/" + name
            found[one] = (attr, _more(shard, at(inode=attr.inode), attr, at_version))
            if attr.mode & S_IFMT == DIRECTORY:
                todo.append((one, attr.inode))
    return found


def _more(shard: Shard, address: At, attr: Attr, at_version: int) -> tuple[object, ...]:
    names = shard.read(ListXattr(address, at_version))
    assert isinstance(names, NamesReply)
    more: list[object] = []
    for name in names.names:
        value = shard.read(GetXattr(address, name, at_version))
        assert isinstance(value, BytesReply)
        more.append((name, value.data))
    if attr.mode >> 12 == 0o12:
        target = shard.read(ReadLink(address, at_version))
        assert isinstance(target, BytesReply)
        more.append(target.data)
    return tuple(more)
