"""A clock that jumps over every lease: what may end ends by its own command, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest
from tests.machine.rules import VOLUME, NamespaceMachine
from tests.machine.world import ROOT, World, internal

from nokv.errors import BodyGone, LockHeld, NokvError, NotFound, SessionExpired, VersionNotPinned
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.commands import PublishMode
from nokv.types.limits import SESSION_TTL_NS_MAX, SNAPSHOT_TTL_NS_MAX
from nokv.types.locks import SetLock, Unlock
from nokv.types.results import Made, Pinned, Reaped, Result
from nokv.types.trash import TRASH_KEEP_NS_MAX, ExpireTrash, KeepTrash, RestoreTrash, Trash, Trashed
from nokv.types.values import At, Attr, ChunkMap, Extent, Lease, Marks, ObjectPart
from nokv.types.views import (
    HELD,
    Clone,
    ExpireSnapshots,
    GetSnapshot,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotRenew,
)
from nokv_model.body import ObjectName

JUMP_NS = max(SESSION_TTL_NS_MAX, SNAPSHOT_TTL_NS_MAX, TRASH_KEEP_NS_MAX) + 10**9
FIRST, SECOND = 7 << 32 | 1, 7 << 32 | 2
TOP = At()
T = TypeVar("T")


class Leased:
    """A shard with everything that a deadline may end, each with the latest one that there is."""

    def __init__(self) -> None:
        self.world: World = NamespaceMachine.make_world()
        self.world.apply([internal(c.InitVolume(VOLUME, 7, 0o777))])
        for nonce in (b"1" * 16, b"2" * 16):
            self.world.apply([internal(c.OpenSession(nonce, SESSION_TTL_NS_MAX))])
        self.seqs = {FIRST: 0, SECOND: 0}
        self.uploads = 0
        self.do(c.LeaseUploads(9), KeepTrash(TRASH_KEEP_NS_MAX), c.Mkdir(TOP, b"d", 0o777))
        self.publish(b"live")
        self.publish(b"trashed")
        self.publish(b"leased")
        leased = self.attr(b"leased")
        lease = Lease(leased.view, leased.inode, leased.body, self.world.model.version)
        marks = Marks(FIRST, 1, self.world.model.version, 1, (lease,))
        self.world.apply([internal(c.SessionMarks((marks,)))])
        at = At(leased.view, leased.inode)
        self.leased = r.BodyMap(at, 0, 8, 0, FIRST, leased.body, lease.version)
        self.publish(b"snapshotted")
        self.snapshots = {
            name: self.value(SnapshotCreate(TOP, name, b"/", ttl), SnapshotMade)
            for name, ttl in (("lease", SNAPSHOT_TTL_NS_MAX), ("held", HELD))
        }
        self.pinned = self.value(c.PinView(0), Pinned)
        for name in (b"leased", b"snapshotted"):
            self.publish(name)
        self.do(Clone(TOP, TOP, b"clone"), SetLock(self.at(b"live"), 0, 1, write=True))
        self.stage = self.value(c.StageBegin(0, 0o040777), Made).attr.inode
        self.publish(b"staged", At(0, self.stage))
        waiting = SetLock(self.at(b"live"), 0, 1, write=True, wait=True)
        assert not self.send(waiting, SECOND).code
        self.trashed = self.value(Trash(TOP, b"trashed"), Trashed)
        self.world.commit()

    @staticmethod
    def at(name: bytes) -> At:
        return At(path=(name,))

    def attr(self, name: bytes) -> Attr:
        reply = self.world.ask(r.GetAttr(self.at(name)))
        assert isinstance(reply, r.AttrReply)
        return reply.attr

    def command(self, op: c.Op, session: int = FIRST) -> c.Command:
        self.seqs[session] += 1
        seq = self.seqs[session]
        return c.Command(c.COMMAND_FORMAT, session, seq, seq - 1, ROOT, op)

    def send(self, op: c.Op, session: int = FIRST) -> Result:
        return self.world.apply([self.command(op, session)])[0]

    def do(self, *ops: c.Op) -> None:
        for op in ops:
            result = self.send(op)
            assert not result.code, result

    def value(self, op: c.Op, kind: type[T]) -> T:
        result = self.send(op)
        assert isinstance(result.value, kind), result
        return result.value

    def publish(self, name: bytes, parent: At = TOP) -> None:
        self.do(self.publishing(name, parent))

    def publishing(self, name: bytes, parent: At = TOP) -> c.Publish:
        self.uploads += 1
        chunk = ChunkMap(0, (ObjectPart(0, 0, 0, 8, b"8bytes.."),), (Extent(0, 8, 0),))
        return c.Publish(parent, name, PublishMode.REPLACE, 0o666, 8, self.uploads, (chunk,))

    def jump(self, *ops: c.Op) -> list[Result]:
        """Apply one entry, before which all that has a deadline is past it."""
        commands = [self.command(op) for op in ops]
        return self.world.apply(commands, wall_step=JUMP_NS, cluster_step=JUMP_NS)

    def read(self, request: r.Read, code: int = 0) -> None:
        assert self.world.read(ROOT, request) == code, request


@pytest.fixture
def leased() -> Iterator[Leased]:
    leased = Leased()
    leased.world.compare()
    yield leased
    leased.world.crash()
    leased.world.compare()
    leased.world.finish()


def codes(results: list[Result]) -> list[int]:
    return [result.code for result in results]


def of(*errors: type[NokvError] | None) -> list[int]:
    return [error.code if error else 0 for error in errors]


def test_the_command_of_the_jump_finds_leases_over_and_sessions_alive(leased: Leased) -> None:
    """Only a lease of a snapshot ends by time; a session, and what is its, by `ExpireSession`."""
    version = leased.snapshots["lease"].version
    results = leased.jump(
        SnapshotRenew("lease", HELD),
        SnapshotDelete("lease"),
        Clone(TOP, TOP, b"late", "lease"),
        SnapshotRenew("held", SNAPSHOT_TTL_NS_MAX),
        leased.publishing(b"late"),
        RestoreTrash(leased.trashed.view, leased.trashed.trash),
        c.StageSwap(0, leased.stage, TOP, b"staged", 0),
    )
    assert codes(results) == of(NotFound, NotFound, NotFound, None, None, None, None)
    leased.read(GetSnapshot("lease"), NotFound.code)
    leased.read(r.GetAttr(leased.at(b"live"), version), VersionNotPinned.code)
    for pinned in (leased.snapshots["held"].version, leased.pinned.version):
        leased.read(r.BodyMap(leased.at(b"snapshotted"), 0, 8, pinned))
    leased.read(leased.leased)
    leased.read(r.BodyMap(leased.at(b"trashed"), 0, 8))
    result = leased.send(SetLock(leased.at(b"live"), 0, 1, write=True), SECOND)
    assert result.code == LockHeld.code
    assert not leased.send(Unlock(0, leased.attr(b"live").inode, 0, 1)).code


def test_what_the_leader_ends_then_is_what_leases_allow(leased: Leased) -> None:
    world = leased.world
    leased.jump(c.Create(TOP, b"f", 0o666))
    world.crash()
    for session in (FIRST, SECOND):
        assert not world.internal(c.ExpireSession(session)).code
    assert world.internal(ExpireSnapshots(9)).value == Reaped(1, more=False)
    assert world.internal(ExpireTrash(9)).value == Reaped(1, more=False)
    late: list[c.Op] = [leased.publishing(b"late"), c.StageSwap(0, leased.stage, TOP, b"staged", 0)]
    assert codes([leased.send(op) for op in late]) == of(SessionExpired, SessionExpired)
    leased.read(leased.leased, BodyGone.code)
    leased.read(r.BodyMap(leased.at(b"live"), 0, 8, leased.pinned.version), VersionNotPinned.code)
    world.drain()
    world.compare()
    lost = {b"leased": 3, b"trashed": 2, b"staged": 7}
    held = ObjectName(FIRST, 3, 0, 0, 0), ObjectName(FIRST, 2, 0, 0, 0)
    assert {ObjectName(FIRST, n, 0, 0, 0) for n in lost.values()} - world.deleted == set(held)
    for name in (b"live", b"leased", b"snapshotted", b"trashed"):
        leased.read(r.BodyMap(leased.at(name), 0, 8, leased.snapshots["held"].version))
    for name in (b"live", b"leased", b"snapshotted"):
        leased.read(r.BodyMap(leased.at(name), 0, 8))
        leased.read(r.BodyMap(At(path=(b"clone", name)), 0, 8))
    leased.read(r.GetAttr(leased.at(b"f")))
