"""What the programs are made of: every command with its arguments on a tree of two names."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from tests.exhaustive import canonical as ranges
from tests.machine.replay import ObservedModel
from tests.machine.rules import VOLUME
from tests.machine.world import GRACE_NS, ROOT, World, internal

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.records import decode_counters, encode
from nokv.types import commands as c
from nokv.types.commands import PublishMode
from nokv.types.limits import CHUNK_BYTES
from nokv.types.results import Result
from nokv.types.trash import (
    TRASH_KEEP_NS_DEFAULT,
    EmptyTrash,
    ExpireTrash,
    RestoreTrash,
    Trash,
)
from nokv.types.values import At, ChunkMap, Extent, Marks, ObjectPart
from nokv.types.views import (
    HELD,
    Clone,
    ExpireSnapshots,
    Flatten,
    Rollback,
    SnapshotCreate,
    SnapshotDelete,
)

TTL_NS = 1_000_000_000
UPLOADS = 64
HALF = 8
"""Bytes of each of the two objects of a file."""

Rows = dict[Family, dict[bytes, bytes]]


def _reopened(kv: Any) -> Any:
    kv.crash()
    return kv


@dataclass
class Tiny:
    """A world after some steps: cheap to copy, so that every way on can be tried from it."""

    world: World
    base: Rows
    """What was committed: a crash goes back to it and replays all since."""
    session: int = 0
    seq: int = ranges.SEQUENCES
    upload: int = 0
    frame: int = ranges.FRAMES
    sessions: int = 0

    def fork(self) -> Tiny:
        """Return a copy; what was not committed is not committed there either."""
        old = self.world
        kv = _store(self.base)
        for family, table in old.kv.snapshot().items():
            before = self.base[family]
            kv.write(family, [row for row in table.items() if before.get(row[0]) != row[1]])
            kv.write(family, [(key, None) for key in before if key not in table])
        world = World(kv, _reopened)
        world.machine = StateMachine(kv)
        world.model = _copied(old.model)
        world.log, world.index = list(old.log), old.index
        world.wall_ns, world.cluster_ns = old.wall_ns, old.cluster_ns
        world.settled, world.deleted = old.settled, set(old.deleted)
        return replace(self, world=world)

    def send(self, op: c.Op) -> Result:
        """Apply a command of the session."""
        self.seq += 1
        command = c.Command(c.COMMAND_FORMAT, self.session, self.seq, self.seq - 1, ROOT, op)
        return self.world.apply([command], wall_step=0, cluster_step=0)[0]

    def node(self, op: c.Op, cluster_step: int = 0) -> Result:
        """Apply a command of the node itself."""
        return self.world.apply([internal(op)], wall_step=0, cluster_step=cluster_step)[0]

    def open(self) -> None:
        """Open a session with enough uploads."""
        self.sessions += 1
        opened = self.node(c.OpenSession(self.sessions.to_bytes(16, "big"), TTL_NS))
        self.session, self.upload = opened.value.session, 0  # type: ignore[union-attr]
        self.send(c.LeaseUploads(UPLOADS))

    def expire_session(self) -> Result:
        """The session ends, another one begins."""
        result = self.node(c.ExpireSession(self.session))
        self.open()
        return result

    def expire_snapshots(self) -> Result:
        """All leases are over; one snapshot goes."""
        return self.node(ExpireSnapshots(1), 2 * GRACE_NS)

    def publish(self, parent: At, name: bytes, mode: PublishMode, *, tail: bool = False) -> Result:
        """Write both halves of a file, or append or patch one: each half is an object."""
        self.upload += 1
        halves = 2 if mode == PublishMode.REPLACE else 1
        parts = tuple(ObjectPart(0, half, 0, HALF, b"8bytes..") for half in range(halves))
        extents = tuple(Extent((half + tail) * HALF, HALF, half) for half in range(halves))
        chunk = ChunkMap(0, parts, extents)
        size = (halves + tail) * HALF
        op = c.Publish(parent, name, int(mode), 0o666, size, self.upload, (chunk,))
        return self.send(op)

    def trashed(self) -> tuple[int, int]:
        """Return the oldest entry of a trash; one that never was if there is none."""
        return min(self.world.model.state.trash, default=(0, 1), key=lambda entry: entry[1])

    def let_go(self) -> Result:
        """The client reads nothing older than the present; the grace passes."""
        self.frame += 1
        frame = Marks(self.session, self.frame, self.world.model.version, 1)
        return self.node(c.SessionMarks((frame,)), 2 * GRACE_NS)

    def collect(self) -> None:
        """The collector deletes one thing that it may."""
        self.let_go()
        self.world.collect(limit=1)

    def crash(self) -> None:
        """Lose what was not committed, replay: every row is as it was."""
        before = self.world.kv.snapshot()
        self.world.crash()
        assert self.world.kv.snapshot() == before, "a replay writes other rows"


def _store(rows: Rows) -> MemoryKV:
    kv = MemoryKV()
    for family, table in rows.items():
        kv.write(family, table.items())
    kv.commit()
    return kv


def _copied(model: ObservedModel) -> ObservedModel:
    copied = copy(model)
    copied.state = model.state.copy()
    copied.results = replace(model.results, kept=dict(model.results.kept))
    copied.listings, copied.cursors = dict(model.listings), dict(model.cursors)
    return copied


def start() -> Tiny:
    """/a is a directory with one file, and every counter counts in its own range."""
    world = World(MemoryKV(), _reopened)
    world.apply([internal(c.InitVolume(VOLUME, 7, 0o777))])
    kv, state = world.kv, world.model.state
    counters = decode_counters(kv.get(Family.META, keys.COUNTERS))
    counters.version = world.model.version = ranges.VERSIONS
    counters.next_inode = state.next_inode = ranges.INODES
    counters.next_body = state.next_body = ranges.BODIES
    counters.next_view = state.next_view = ranges.VIEWS
    counters.next_drop, counters.next_job = ranges.DROPS, ranges.JOBS
    kv.write(Family.META, [(keys.COUNTERS, encode(counters))])
    world.machine = StateMachine(kv)
    world.cluster_ns = ranges.TIMES.start
    tiny = Tiny(world, {})
    tiny.open()
    tiny.send(c.Mkdir(At(), b"a", 0o777))
    tiny.publish(At(path=(b"a",)), b"a", PublishMode.REPLACE)
    world.commit()
    tiny.base = kv.snapshot()
    return tiny


# ---------------------------------------------------------------- the alphabet

Step = Callable[[Tiny], Result | None]

_DIRECTORIES: tuple[tuple[bytes, ...], ...] = ((), (b"a",), (b"b",), (b"a", b"b"))
_PLACES = tuple((At(path=path), name) for path in _DIRECTORIES[:3] for name in (b"a", b"b"))


def _show(at: At, name: bytes = b"") -> str:
    return "/" + "/".join(part.decode() for part in (*at.path, name) if part)


def alphabet() -> dict[str, Step]:
    """Return every step by its name."""
    steps: dict[str, Step] = {}
    for at, name in _PLACES:
        where = _show(at, name)
        if at.path:
            steps[f"publish {where}"] = _publish(at, name, PublishMode.REPLACE)
            steps[f"patch {where}"] = _publish(at, name, PublishMode.PATCH)
            steps[f"delete {where}"] = _send(c.Unlink(at, name))
    steps["publish /b"] = _publish(At(), b"b", PublishMode.REPLACE)
    steps["delete /b"] = _send(c.Unlink(At(), b"b"))
    for source, target in (
        ((At(), b"b"), (At(path=(b"a",)), b"b")),
        ((At(path=(b"a",)), b"b"), (At(), b"b")),
        ((At(path=(b"a",)), b"a"), (At(path=(b"a",)), b"b")),
        ((At(path=(b"a",)), b"a"), (At(), b"b")),
    ):
        steps[f"rename {_show(*source)} {_show(*target)}"] = _send(c.Rename(*source, *target))
    steps["link /a/a /b"] = _send(c.Link(At(path=(b"a", b"a")), At(), b"b"))
    steps["snapshot / s"] = _send(SnapshotCreate(At(), "s", b"/", HELD))
    steps["snapshot /a t"] = _send(SnapshotCreate(At(path=(b"a",)), "t", b"/a", TTL_NS))
    for snapshot in ("s", "t"):
        steps[f"drop {snapshot}"] = _send(SnapshotDelete(snapshot))
    for path in ((), (b"a",), (b"b",)):
        for to, name in ((At(), b"b"), (At(path=(b"a",)), b"b")):
            if path != (*to.path, name):
                source_at = At(path=path)
                step = _send(Clone(source_at, to, name))
                steps[f"clone {_show(source_at)} {_show(to, name)}"] = step
    for snapshot in ("s", "t"):
        steps[f"clone @{snapshot} /b"] = _send(Clone(At(), At(), b"b", snapshot))
    for to, name in ((At(), b"b"), (At(path=(b"a",)), b"b"), (At(), b"a")):
        steps[f"delete tree {_show(to, name)}"] = _send(c.RemoveTree(to, name))
    steps["rollback /a t"] = _send(Rollback(At(), b"a", "t", b"/a", TTL_NS))
    steps["expire session"] = Tiny.expire_session
    steps["expire snapshot"] = Tiny.expire_snapshots
    steps["reap"] = lambda tiny: tiny.node(c.Reap(1))
    steps["collect"] = Tiny.collect
    steps["flatten"] = lambda tiny: tiny.node(Flatten(ranges.VIEWS, 1))
    steps["crash"] = Tiny.crash
    return steps


def further() -> dict[str, Step]:
    """Return steps for directed searches, beside those of the alphabet."""
    at, name = At(path=(b"a",)), b"a"
    file = At(path=(b"a", b"a"))
    return {
        "snapshot /b u": _send(SnapshotCreate(At(path=(b"b",)), "u", b"/b", HELD)),
        "publish /a/b/a": _publish(At(path=(b"a", b"b")), name, PublishMode.REPLACE),
        "clone /b /c": _send(Clone(At(path=(b"b",)), At(), b"c")),
        "patch the tail of /a/a": lambda tiny: tiny.publish(at, name, PublishMode.PATCH, tail=True),
        "stretch /a/a": _send(c.SetAttr(file, size=CHUNK_BYTES - HALF // 2)),
        "append to /a/a": lambda tiny: tiny.publish(at, name, PublishMode.APPEND),
        "cut /a/a": _send(c.SetAttr(file, size=CHUNK_BYTES)),
        "trash /a/a": _send(Trash(at, name)),
        "trash /a": _send(Trash(At(), b"a")),
        "trash /b": _send(Trash(At(), b"b")),
        "trash /b/a": _send(Trash(At(path=(b"b",)), b"a")),
        "restore": lambda tiny: tiny.send(RestoreTrash(*tiny.trashed())),
        "restore /c": lambda tiny: tiny.send(RestoreTrash(*tiny.trashed(), At(), b"c")),
        "empty": lambda tiny: tiny.send(EmptyTrash((tiny.trashed(),))),
        "expire trash": lambda tiny: tiny.node(ExpireTrash(1), TRASH_KEEP_NS_DEFAULT),
    }


CORE = (
    "publish /a/b",
    "patch /a/a",
    "delete /a/a",
    "rename /a/a /a/b",
    "snapshot /a t",
    "drop t",
    "clone /a /b",
    "delete tree /b",
    "rollback /a t",
    "expire session",
    "reap",
    "collect",
    "crash",
)
"""One step of each kind: few enough that every program of them can be tried to some length."""


def _send(op: c.Op) -> Step:
    return lambda tiny: tiny.send(op)


def _publish(parent: At, name: bytes, mode: PublishMode) -> Step:
    return lambda tiny: tiny.publish(parent, name, mode)
