"""Random commands of every kind, usual and weird, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from tests.unit.state.bodies import DAY_NS, part
from tests.unit.state.shard import Shard

from nokv.state import keys
from nokv.state.context import is_directory
from nokv.state.families import Family
from nokv.state.records import body_of, decode_inode
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.formats import STATE_FORMAT
from nokv.types.limits import CHUNK_BYTES, SESSION_TTL_NS_DEFAULT
from nokv.types.values import At, Caller, ChunkMap, Extent, Lease, Marks, ObjectPart, Volume

T = TypeVar("T")

WEIRD = (-(2**63), -1, 0, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
CALLERS = (Caller(), Caller(), Caller(), Caller(1000, 100, (200,)), Caller(1001, 200))
NAMES = (b"a", b"b", b"c", b"d", b"e", b"f")
ODD_NAMES = (b"", b".", b"..", b"a/b", b"\0", b"n" * 255, b"n" * 256, b"\xff")
FIRST_SESSION = (1 << 32) + 1


class Programs:
    """A source of commands; `odd` is the share of weird values."""

    def __init__(self, seed: int, odd: float = 0.02) -> None:
        self.rng = random.Random(seed)
        self._odd = odd
        self.version = 1
        """About the present version: pins and predicates draw around it."""
        self.inodes = 2
        """About the next inode."""
        self.uploads = 1
        """The next upload to publish."""
        self.directories: list[int] = [1]
        """Present ones, staged and detached too: most commands go there."""
        self.files: list[int] = [1]
        self.names: list[tuple[int, bytes]] = []
        """(directory, name) of what is there."""
        self.pins: list[tuple[int, int]] = []
        """(version, pin)."""

    def one(self, values: tuple[T, ...]) -> T:
        return self.rng.choice(values)

    def odd(self) -> bool:
        return self.rng.random() < self._odd

    def number(self, *values: int) -> int:
        """One of the values, seldom a weird one."""
        return self.one(WEIRD) if self.odd() else self.one(values)

    def below(self, end: int) -> int:
        return self.number(self.rng.randrange(end))

    def name(self) -> bytes:
        return self.one(ODD_NAMES) if self.odd() else self.one(NAMES)

    def look(self, shard: Shard) -> None:
        """Look at the present state, for commands that are likely to succeed."""
        self.version = shard.machine.version
        self.inodes = shard.machine.counters.next_inode
        self.directories, self.files = [], []
        for key, value in shard.kv.scan(Family.INODE, b"\x00", b"\xff" * 9):
            found = self.directories if is_directory(decode_inode(body_of(value))) else self.files
            found.append(int.from_bytes(key[8:], "big"))
        rows = shard.kv.scan(Family.DENTRY, b"\x00", b"\xff" * 9)
        self.names = [(int.from_bytes(key[8:16], "big"), key[16:]) for key, _ in rows]
        rows = shard.kv.scan(Family.PIN, b"\x00", b"\xff" * 9)
        self.pins = [keys.pin_parts(key)[1:] for key, _ in rows]

    def entry(self) -> tuple[At, bytes]:
        """Return a name that is there, mostly."""
        if self.names and self.rng.random() < 0.7:
            directory, name = self.rng.choice(self.names)
            return At(0, directory), name
        return self.at(), self.name()

    def at(self) -> At:
        """Return the address of a directory, mostly."""
        if self.rng.random() < 0.8:
            return At(0, self.rng.choice(self.directories))
        return self.any_at()

    def file(self) -> At:
        """Return the address of something that is no directory, mostly."""
        if self.files and self.rng.random() < 0.8:
            return At(0, self.rng.choice(self.files), (), self.rng.random() < 0.7)
        return self.any_at()

    def any_at(self) -> At:
        path = tuple(self.name() for _ in range(self.one((0, 0, 1, 1, 2, 3))))
        follow = self.rng.random() < 0.7
        if self.rng.random() < 0.6:
            return At(0, 1, path, follow)
        return At(self.number(0), self.below(self.inodes + 1), path, follow)

    def mode(self) -> int:
        return self.number(0o755, 0o777, 0o777, 0o777, 0o6777, 0o1777, 0o2777)

    def size(self) -> int:
        return self.number(0, 1, 5, 10, 20, 40, CHUNK_BYTES - 3, CHUNK_BYTES, CHUNK_BYTES + 7)

    def caller(self) -> Caller:
        if self.odd():
            return Caller(self.below(3), self.below(3), (self.below(3),), "p" * self.one((0, 300)))
        return self.one(CALLERS)

    # ------------------------------------------------------------------ bodies

    def extent(self, parts: tuple[ObjectPart, ...], offset: int) -> Extent:
        if parts and self.rng.random() < 0.7:
            index = self.rng.randrange(len(parts))
            length = self.number(self.rng.randint(1, max(1, min(parts[index].length, 99))))
            return Extent(offset, length, self.number(index), self.number(0))
        data = bytes([self.rng.randrange(256)]) * self.rng.randint(1, 8)
        return Extent(offset, self.number(len(data)), -1, 0, data)

    def chunk(self, index: int) -> ChunkMap:
        blocks = self.rng.sample(range(3), self.one((0, 1, 1, 2)))
        parts = tuple(part(self.one((1, 5, 10, 300_000)), block, index) for block in blocks)
        if self.odd():
            parts += (ObjectPart(self.below(3), self.below(3), self.below(3), self.size(), b"x"),)
        offset = self.one((0, 1, 5, 20, CHUNK_BYTES - 400_000))
        extents = []
        for number in range(max(len(parts), 1)):
            if number < len(parts) and not self.odd():
                one = Extent(
                    offset, self.rng.randint(1, max(1, min(parts[number].length, 99))), number, 0
                )
            else:
                one = self.extent(parts, offset)
            extents.append(one)
            offset = min(offset + max(one.length, 1) + self.one((0, 3)), 2**62)
        return ChunkMap(self.number(index), parts, tuple(extents))

    def publish(self) -> c.Publish:
        indexes = sorted(self.rng.sample(range(3), self.one((0, 1, 1, 1, 2))))
        chunks = tuple(self.chunk(index) for index in indexes)
        ends = [x.index * CHUNK_BYTES + e.offset + e.length for x in chunks for e in x.extents]
        size = min(max(0, *ends, 0) + self.one((0, 0, 3)), 2**63)
        upload = 0
        if any(x.parts for x in chunks):
            upload = self.below(self.uploads) if self.odd() else self.uploads
            self.uploads += 1
        handle = self.rng.random() < 0.4
        return c.Publish(
            self.file() if handle else self.at(),
            b"" if handle else self.name(),
            self.number(0, 1, 1, 2, 3, 3, 4, 4),
            self.mode(),
            self.number(size),
            upload,
            chunks,
            self.below(self.version + 1) if self.rng.random() < 0.3 else 0,
            self.one((b"", b"", bytes(32), b"x" * (1 if self.odd() else 32))),
            self.number(-1, -1, 5),
        )

    # ------------------------------------------------------------------ commands

    def inner(self) -> c.InnerOp:
        makers: tuple[Callable[[], c.InnerOp], ...] = (
            self.publish,
            self.publish,
            self.publish,
            lambda: c.Mkdir(self.at(), self.name(), self.mode()),
            lambda: c.Mkdir(self.at(), self.name(), self.mode()),
            lambda: c.Create(self.at(), self.name(), self.mode()),
            lambda: c.BulkCreate(self.at(), tuple({self.name() for _ in range(3)}), self.mode()),
            lambda: c.Mknod(self.at(), self.name(), self.number(0o100644, 0o010644), self.below(3)),
            lambda: c.Symlink(
                self.at(), self.name(), self.one((b"a", b"/b", b"../c/", b"", b"\0"))
            ),
            lambda: c.Link(self.file(), self.at(), self.name()),
            lambda: c.Link(self.file(), self.at(), self.name()),
            lambda: c.Unlink(*self.entry()),
            lambda: c.Unlink(*self.entry()),
            lambda: c.Rmdir(*self.entry()),
            lambda: c.RemoveTree(*self.entry()),
            lambda: c.Rename(*self.entry(), *self.entry(), self.number(0, 0, 1, 2)),
            lambda: c.Rename(*self.entry(), self.at(), self.name(), self.number(0, 0, 1, 2)),
            self.set_attr,
            lambda: c.SetAttr(self.file(), size=self.size()),
            lambda: c.SetXattr(self.file(), self.one((b"user.a", b"user.b", b"trusted.c")), b"v"),
            lambda: c.SetXattr(
                self.file(), self.name(), b"v" * self.one((0, 65_537)), self.below(3)
            ),
            lambda: c.RemoveXattr(self.file(), self.one((b"user.a", b"user.b", b"trusted.c"))),
            lambda: c.StageSwap(
                self.number(0), self.below(self.inodes), self.at(), self.name(), self.number(0, 1)
            ),
            lambda: c.StageSwap(0, self.one(tuple(self.directories)), *self.entry(), 1),
        )
        return self.one(makers)()

    def set_attr(self) -> c.SetAttr:
        def maybe(*values: int) -> int | None:
            return self.number(*values) if self.rng.random() < 0.3 else None

        return c.SetAttr(
            self.file() if self.rng.random() < 0.7 else self.at(),
            self.mode() if self.rng.random() < 0.3 else None,
            maybe(0, 1000, 1001),
            maybe(0, 100, 200),
            self.size() if self.rng.random() < 0.3 else None,
            maybe(-1, 7),
            maybe(-1, 7),
            maybe(0, 0, 0, 1, 2),
        )

    def alone(self) -> c.Op:
        makers: tuple[Callable[[], c.Op], ...] = (
            lambda: c.Atomic(tuple(self.inner() for _ in range(self.rng.randrange(5)))),
            lambda: c.Atomic(tuple(self.publish() for _ in range(self.rng.randrange(4)))),
            lambda: c.StageBegin(self.number(0), self.number(0o040755, 0o040777, 0o100644)),
            lambda: c.StageDrop(self.number(0), self.below(self.inodes)),
            lambda: c.LeaseUploads(self.number(1, 3)),
            lambda: c.PinView(self.number(0)),
            lambda: c.PinView(0),
            lambda: c.ExpireSession(self.session()) if self.odd() else c.PinView(0),
            self.unpin,
            self.unpin,
        )
        return self.one(makers)()

    def unpin(self) -> c.UnpinView:
        version, pin = self.one(tuple(self.pins)) if self.pins else (1, 2)
        return c.UnpinView(self.number(0), self.number(version), self.number(pin))

    def session(self) -> int:
        return self.number(0, FIRST_SESSION, FIRST_SESSION + 1, FIRST_SESSION + 2)

    def lease(self) -> Lease:
        return Lease(
            self.number(0), self.below(self.inodes), self.below(9), self.below(self.version)
        )

    def marks(self) -> Marks:
        leases = tuple(self.lease() for _ in range(self.rng.randrange(3)))
        floor, watermark = self.below(self.version), self.below(self.uploads + 1)
        return Marks(self.session(), self.below(self.version), floor, watermark, leases)

    def internal(self) -> c.Op:
        makers: tuple[Callable[[], c.Op], ...] = (
            lambda: c.OpenSession(bytes([self.below(4) % 256]) * 16, SESSION_TTL_NS_DEFAULT),
            lambda: c.InitVolume(Volume("0" * 32, "memory"), self.below(3), self.mode()),
            lambda: c.SessionMarks(tuple(self.marks() for _ in range(self.rng.randrange(3)))),
            lambda: c.Reap(self.number(1, 1, 2, 3, 5)),
            lambda: c.Reap(self.number(1, 1, 2, 3, 5)),
            lambda: c.Reap(self.number(1, 1, 2, 3, 5)),
            lambda: c.Collected(((self.below(9), self.number(-1, 0, 1)),) if self.odd() else ()),
            lambda: c.Swept(self.session(), self.number(2 * DAY_NS)),
            lambda: c.Checkpoint(self.below(9)),
            lambda: c.TrimEvents(self.below(self.version), self.number(1, 3)),
            lambda: c.RaiseFormat(self.rng.randrange(-1, STATE_FORMAT + 1)),
        )
        return self.one(makers)()

    def op(self) -> tuple[c.Op, bool]:
        """Return an operation, and whether the node itself sends it."""
        drawn = self.rng.random()
        if drawn < 0.15:
            return self.internal(), True
        return (self.alone() if drawn < 0.3 else self.inner()), False

    def predicates(self) -> tuple[c.Predicate, ...]:
        if self.rng.random() > 0.05:
            return ()
        where, number = self.at(), self.below(9)
        some: tuple[c.Predicate, ...] = (
            c.Exists(where),
            c.Absent(where),
            c.VersionIs(where, number),
            c.GenerationIs(where, number),
        )
        return (self.one(some),)

    def raw(self) -> c.Command:
        """Return a command of any session, with any numbers."""
        op = self.op()[0]
        seq = max(self.below(self.version + 1), 1 - 2**63)
        return c.Command(
            c.COMMAND_FORMAT, self.session(), seq, self.number(seq - 1, 0), self.caller(), op
        )

    def read(self) -> r.Read:
        """Return a read of any kind, at the present or at about any version."""
        version = self.below(self.version) if self.rng.random() < 0.5 else 0
        makers: tuple[Callable[[], r.Read], ...] = (
            lambda: r.GetAttr(self.at(), version),
            lambda: r.Lookup(self.at(), self.name(), version),
            lambda: r.ReadLink(self.at(), version),
            lambda: r.ReadDir(self.at(), self.name(), self.below(4), self.odd(), version),
            lambda: r.BodyMap(
                self.at(), self.size(), self.size(), version, self.session(), self.below(9)
            ),
            lambda: r.BodyMap(self.file(), self.size(), self.size(), version),
            lambda: r.GetXattr(self.at(), self.one((b"user.a", b"x")), version),
            lambda: r.ListXattr(self.at(), version),
            r.StatFs,
            lambda: r.GetUsage(self.at()),
            lambda: r.ReadEvents(self.below(self.version), self.below(4)),
            lambda: r.GetSession(self.session()),
            lambda: r.Access(self.at(), self.below(8)),
            lambda: r.GetDrops(self.below(9), self.below(9), self.below(9)),
            lambda: r.ListSessions(self.session(), self.below(9), self.below(4)),
            r.GetPending,
            lambda: r.ListBodies(
                self.one((b"", b"\x00", b"\x01", b"\x02", b"\x01" * 600)),
                self.below(9),
                self.one((-1, -1, 0, 1, -2, 2**63)),
            ),
            r.GetVolume,
        )
        return self.one(makers)()
