"""Bodies for the tests of the state: publishes with objects, what a file shows, what is named."""

from __future__ import annotations

from tests.unit.state.shard import ROOT, Shard, at

from nokv.state import invariants
from nokv.state.families import Family
from nokv.types.commands import (
    Collected,
    ExpireSession,
    LeaseUploads,
    Op,
    Publish,
    PublishMode,
    Reap,
    SessionMarks,
    Swept,
)
from nokv.types.limits import CHUNK_BYTES, SUM_BYTES
from nokv.types.reads import (
    BodiesReply,
    BodyMap,
    BodyMapReply,
    DropsReply,
    GetDrops,
    ListBodies,
    StatFs,
    StatFsReply,
)
from nokv.types.results import Leased, Published, Reaped
from nokv.types.values import At, Caller, ChunkMap, Extent, Lease, Marks, ObjectPart, StoredChunk

GRACE_NS = 1_000_000_000
DAY_NS = 24 * 3600 * 1_000_000_000

Name = tuple[int, int, int, int, int]
"""An object: (session, upload, chunk, block, piece)."""


def sums(length: int) -> bytes:
    """Return checksums of the right size for an object."""
    return bytes(8 * -(-length // SUM_BYTES))


def part(length: int, block: int = 0, chunk: int = 0, piece: int = 0) -> ObjectPart:
    """Return one object of an upload."""
    return ObjectPart(chunk, block, piece, length, sums(length))


def inline(data: bytes, offset: int = 0, index: int = 0) -> ChunkMap:
    """Return a chunk with one run of inline bytes."""
    return ChunkMap(index, (), (Extent(offset, len(data), data=data),))


def stored(length: int, offset: int = 0, index: int = 0, block: int = 0) -> ChunkMap:
    """Return a chunk with one object."""
    name = part(length, block, index)
    return ChunkMap(index, (name,), (Extent(offset, length, 0, 0),))


class Files(Shard):
    """A shard with publishes and the collector's and the client's duties at hand."""

    def upload(self, count: int = 1, *, session: int | None = None) -> int:
        """Lease uploads; return the first."""
        leased = self.do(LeaseUploads(count), session=session)
        assert isinstance(leased, Leased)
        return leased.first

    def publish(
        self,
        path: str,
        *chunks: ChunkMap,
        size: int | None = None,
        publish_mode: int = PublishMode.REPLACE,
        caller: Caller = ROOT,
        **rest: int | bytes,
    ) -> Published:
        """Publish by name, leasing an upload where there are objects."""
        above, _, name = path.rpartition("/")
        return self.publish_at(
            at(above), name.encode(), *chunks, size=size, mode=publish_mode, caller=caller, **rest
        )

    def publish_at(
        self,
        parent: At,
        name: bytes,
        *chunks: ChunkMap,
        size: int | None = None,
        mode: int = PublishMode.REPLACE,
        caller: Caller = ROOT,
        **rest: int | bytes,
    ) -> Published:
        """Publish to an address."""
        value = self.do(
            self.publishing(parent, name, *chunks, size=size, mode=mode, **rest), caller
        )
        assert isinstance(value, Published)
        return value

    def publishing(
        self,
        parent: At,
        name: bytes,
        *chunks: ChunkMap,
        size: int | None = None,
        mode: int = PublishMode.REPLACE,
        **rest: int | bytes,
    ) -> Publish:
        """Return a publish, leasing an upload where there are objects."""
        if "upload" not in rest:
            rest["upload"] = self.upload() if any(chunk.parts for chunk in chunks) else 0
        end = max(
            (c.index * CHUNK_BYTES + e.offset + e.length for c in chunks for e in c.extents),
            default=0,
        )
        return Publish(
            parent=parent,
            name=name,
            publish_mode=mode,
            mode=0o644,
            size=end if size is None else size,
            chunks=chunks,
            **rest,  # type: ignore[arg-type]
        )

    # ------------------------------------------------------------------ what is there

    def body(self, where: At, offset: int = 0, length: int = 2**62, **rest: int) -> BodyMapReply:
        """Return a body map."""
        reply = self.read(BodyMap(where, offset, length, **rest))
        assert isinstance(reply, BodyMapReply)
        return reply

    def show(self, path: str, **rest: int) -> bytes:
        """Return the content of a small file of inline bytes; an object's bytes are its block."""
        reply = self.body(at(path), **rest)
        return content([(c.index, c.chunk) for c in reply.chunks], reply.attr.size)

    def statfs(self) -> tuple[int, int]:
        """Return (inodes, bytes)."""
        reply = self.read(StatFs())
        assert isinstance(reply, StatFsReply)
        return reply.files, reply.bytes

    def named(self) -> set[Name]:
        """Return the objects that a present or historic chunk record names."""
        found: set[Name] = set()
        after = b""
        while True:
            reply = self.read(ListBodies(after, 3))
            assert isinstance(reply, BodiesReply)
            for row in reply.rows:
                found |= {(o.session, o.upload, o.chunk, o.block, o.piece) for o in row.objects}
            after = reply.after
            if not reply.more:
                return found

    def count(self, family: Family) -> int:
        """Return the number of a family's rows."""
        return len(list(self.kv.scan(family, b"\x00", b"\xff" * 9)))

    def check(self) -> None:
        """Check every invariant."""
        invariants.check(self.machine._txn.present)

    # ------------------------------------------------------------------ the node's duties

    def internal(self, op: Op) -> object:
        """Apply a command of the node itself."""
        return self.do(op, session=0)

    def wait(self, ns: int = 2 * GRACE_NS) -> None:
        """Let time pass."""
        self.cluster_ns += ns
        self.wall_ns += ns
        self.entry()

    def raise_floor(self) -> None:
        """Say that the shard's session reads nothing older than the present."""
        number = (self.machine.marks_of(self.session) or self.marks(0)).number + 1
        watermark = 1
        frame = self.marks(number, floor=self.machine.version, watermark=watermark)
        self.internal(SessionMarks((frame,)))

    def marks(
        self,
        number: int,
        *,
        session: int | None = None,
        floor: int = 0,
        watermark: int = 0,
        leases: tuple[Lease, ...] = (),
    ) -> Marks:
        """Return a frame of marks."""
        one = self.session if session is None else session
        return Marks(one, number, floor, watermark, leases)

    def reap(self, limit: int = 64) -> int:
        """Do all background work in steps; return the records done."""
        done = 0
        while True:
            step = self.internal(Reap(limit))
            assert isinstance(step, Reaped)
            assert step.removed <= limit + 1
            done += step.removed
            if not step.more:
                assert not self.machine.pending_work()
                return done

    def drops(self, limit: int = 100, grace_ns: int = GRACE_NS, after: int = 0) -> DropsReply:
        """Ask for what may be deleted."""
        reply = self.read(GetDrops(after, limit, grace_ns))
        assert isinstance(reply, DropsReply)
        return reply

    def collect(self, limit: int = 100) -> list[Name]:
        """Delete all that may be deleted; return the objects in the order of their deletion."""
        gone: list[Name] = []
        while True:
            reply = self.drops(limit)
            gone += [
                (o.session, o.upload, o.chunk, o.block, o.piece)
                for drop in reply.drops
                for o in drop.objects
            ]
            if not reply.drops:
                return gone
            self.internal(Collected(tuple((d.drop, d.through) for d in reply.drops)))

    def quiesce(self) -> set[Name]:
        """End every session, reap, collect and forget; return the objects that were deleted."""
        for session, _ in self.machine.live_sessions():
            self.internal(ExpireSession(session))
        self.reap()
        self.wait(DAY_NS + GRACE_NS)
        gone = set(self.collect())
        dead = [
            int.from_bytes(k[:8], "big")
            for k, _ in self.kv.scan(Family.SESSION, b"\x00" * 7 + b"\x01", b"\xff" * 9)
            if k[8:] == b"\x00"
        ]
        for session in dead:
            self.internal(Swept(session, self.cluster_ns, GRACE_NS))
        self.reap()
        self.check()
        for family in (Family.HISTORY, Family.RECLAIM, Family.TOUCHED, Family.DROP):
            assert not self.count(family), f"{family.name} at rest"
        assert not self.count(Family.SESSION)
        assert not self.count(Family.PIN)
        return gone


def content(chunks: list[tuple[int, StoredChunk]], size: int) -> bytes:
    """Return the bytes that chunk records of the first chunk show; an object's are its block's."""
    data = bytearray(size)
    for index, chunk in chunks:
        for extent in chunk.extents:
            start = index * CHUNK_BYTES + extent.offset
            if start >= size:
                continue
            if extent.object < 0:
                shown = extent.data
            else:
                shown = bytes([chunk.objects[extent.object].block + 1]) * extent.length
            data[start : start + extent.length] = shown[: size - start]
    return bytes(data)
