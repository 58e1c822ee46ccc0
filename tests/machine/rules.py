"""The Hypothesis machine: one rule a command or read, with crashes, retries and reaping between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.machine import building
from tests.machine.drawing import BAD_XATTRS, XATTRS, Drawing, directory, regular, symlink, tagged
from tests.machine.world import GRACE_NS, ROOT, World, internal

from nokv.state.memory import MemoryKV
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.limits import CHUNK_BYTES
from nokv.types.results import Result, SessionOpened
from nokv.types.trash import ExpireTrash, ListTrash
from nokv.types.values import At, ChunkMap, Extent, ObjectPart, Volume
from nokv.types.views import ExpireSnapshots, Flatten, GetSnapshot, ListSnapshots
from nokv_model.model import Model

SEEDS = st.binary(min_size=6, max_size=6)
"""What a rule draws from: one draw a step keeps examples small; bytes are drawn evenly."""

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
LEAP_NS = 400 * DAY_NS
"""Past every deadline that is drawn."""
PENDING_MAX = 4
BODY = ChunkMap(
    0,
    (ObjectPart(0, 0, 0, 16, b"s" * 8),),
    (Extent(0, 4, data=b"head"), Extent(4, 10, 0), Extent(20, 6, 0, 10)),
)
POPULATION: tuple[c.Op, ...] = (
    c.Mkdir(At(), b"a", 0o777),
    c.Mkdir(At(path=(b"a",)), b"b", 0o1777),
    c.Mkdir(At(path=(b"a",)), b"c", 0o755),
    c.Create(At(path=(b"a", b"b")), b"a", 0o666),
    c.Link(At(path=(b"a", b"b", b"a")), At(), b"b"),
    c.Symlink(At(), b"c", b"a/b"),
    c.LeaseUploads(8),
    c.Publish(At(), b"d", 0, 0o666, 30, 1, (BODY,)),
    c.SetAttr(At(path=(b"a", b"b", b"a")), uid=1, gid=1),
    c.SetXattr(At(path=(b"a",)), b"user.a", b"1"),
)
"""What half of the examples begin with, so that the first steps find something."""

VOLUME = Volume("0" * 32, "memory")


class Outcomes:
    """How often each rule succeeded and failed, over all examples of a run."""

    def __init__(self) -> None:
        self.succeeded: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def note(self, name: str, code: int) -> None:
        """Count one outcome of a rule."""
        (self.failed if code else self.succeeded)[name] += 1


def _stagers(model: Model) -> list[int]:
    """Sessions that own a staged tree."""
    return list(model.state.forest.staged.values())


def _pinners(model: Model) -> list[int]:
    """Sessions that own a pin."""
    return [session for session, _ in model.state.pins.values()]


def _snapshots(model: Model) -> list[int]:
    """Any session will do, as long as there is a snapshot."""
    alive = [s.number for s in model.state.sessions.values() if not s.died]
    return alive if model.state.snapshots else []


def _grafts(model: Model) -> list[int]:
    """Any session will do, as long as there is a view."""
    alive = [s.number for s in model.state.sessions.values() if not s.died]
    return alive if len(model.state.live_views()) > 1 else []


def _discarders(model: Model) -> list[int]:
    """Any session will do, as long as something is in a trash."""
    alive = [s.number for s in model.state.sessions.values() if not s.died]
    return alive if model.state.trash else []


Builder = Callable[[Drawing, int], c.Op]


def _command(build: Builder) -> Callable[..., None]:
    """A rule that sends what a builder draws."""

    def run(self: NamespaceMachine, seed: bytes) -> None:
        draw = self.drawing(seed)
        session = self.session(draw)
        self.traffic(draw, session)
        self.send(draw, build.__name__, session, build(draw, session))

    run.__name__ = run.__qualname__ = build.__name__
    return rule(seed=SEEDS)(run)


def _owned(
    build: Builder, owners: Callable[[Model], list[int]], first: Builder
) -> Callable[..., None]:
    """A rule that sends it as a session that owns what it needs, or makes that first."""

    def run(self: NamespaceMachine, seed: bytes) -> None:
        draw = self.drawing(seed)
        fit = owners(self.world.model)
        session = draw.one(fit) if fit else self.session(draw)
        if not fit and not draw.chance(4):
            self.send(draw, first.__name__, session, first(draw, session))
            self.flush(draw)
        self.send(draw, build.__name__, session, build(draw, session))

    run.__name__ = run.__qualname__ = build.__name__
    return rule(seed=SEEDS)(run)


class NamespaceMachine(RuleBasedStateMachine):
    """Everything a shard can be asked, in any order, against the model."""

    outcomes: ClassVar[Outcomes] = Outcomes()
    world: World
    """Of the class: the last example's, which after a failure is the one that failed."""
    builders: ClassVar[tuple[Builder, ...]] = building.TRAFFIC
    """What each command has besides, so that an example gets somewhere in few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).world = self.make_world()
        self._mixed = b""
        self.sessions: list[int] = []
        self.next_seq: dict[int, int] = {}
        self.pending: list[tuple[str, c.Command]] = []
        self.sent: list[c.Command] = []

    @classmethod
    def make_world(cls) -> World:
        """Return an empty shard; other stores override it."""

        def reopen(kv: Any) -> Any:
            kv.crash()
            return kv

        return World(MemoryKV(), reopen)

    # ------------------------------------------------------------------ sending

    @initialize(mode=st.sampled_from((0o777, 0o1777, 0o2777)), populated=st.booleans())
    def start(self, mode: int, populated: bool) -> None:
        volume = internal(c.InitVolume(VOLUME, 7, mode))
        opened = self.world.apply([volume, *(_opening(bytes([n]) * 16) for n in range(2))])
        for result in opened[1:]:
            self._opened(result)
        if populated:
            session = self.sessions[0]
            for op in POPULATION:
                seq = self.next_seq[session]
                self.next_seq[session] = seq + 1
                command = c.Command(c.COMMAND_FORMAT, session, seq, seq - 1, ROOT, op)
                [result] = self.world.apply([command])
                assert not result.code, result
        self.world.commit()

    def _opened(self, result: Result) -> None:
        if isinstance(result.value, SessionOpened) and result.value.session not in self.next_seq:
            self.sessions.append(result.value.session)
            self.next_seq[result.value.session] = 1

    def drawing(self, seed: bytes) -> Drawing:
        """Mix a step's seed with all before it: Hypothesis likes to repeat what it drew."""
        self._mixed = blake2b(self._mixed + seed, digest_size=8).digest()
        return Drawing(self._mixed, self.world.model, self.sessions)

    def session(self, draw: Drawing) -> int:
        """Mostly a live session; sometimes an ended or an unknown one."""
        if draw.chance(25):
            return draw.one((0, 999, *self.sessions))
        known = self.world.model.state.sessions
        alive = [s for s in self.sessions if s in known and not known[s].died]
        if not alive:
            nonce = len(self.sessions).to_bytes(16, "big")
            [result] = self.world.apply([_opening(nonce)])
            self._opened(result)
            alive = self.sessions[-1:]
        return draw.one(alive)

    def send(self, draw: Drawing, name: str, session: int, op: c.Op) -> None:
        """Queue one command of a session, and run the queue now and then."""
        seq = self.next_seq.get(session, 1)
        acked = draw.one((0, 0, seq - 1, max(0, seq - 3)))
        if draw.chance(30):
            seq, acked = draw.one(((seq, seq), (0, 0), (-1, 0), (seq + 5_000, 0), (1, 0)))
        else:
            self.next_seq[session] = seq + 1
        predicates = draw.predicates(session)
        command = c.Command(c.COMMAND_FORMAT, session, seq, acked, draw.caller(), op, predicates)
        self.sent.append(command)
        self.queue(draw, name, command)

    def traffic(self, draw: Drawing, session: int) -> None:
        """Some commands besides."""
        for _ in range(draw.number(0, 3)):
            build = draw.one(self.builders)
            self.send(draw, build.__name__, session, build(draw, session))

    def queue(self, draw: Drawing, name: str, command: c.Command) -> None:
        """Put a command into the next entry, which is sent at once or with some more."""
        self.pending.append((name, command))
        if len(self.pending) >= PENDING_MAX or draw.chance(2):
            self.flush(draw)

    def flush(self, draw: Drawing) -> None:
        """Send what is queued as one entry; commit, crash, reap and compare now and then."""
        pending, self.pending = self.pending, []
        if pending:
            step = draw.often((0, 1, 1, SECOND_NS, DAY_NS), (LEAP_NS,))
            results = self.world.apply(
                [command for _, command in pending], wall_step=step, cluster_step=step
            )
            for (name, _), result in zip(pending, results, strict=True):
                self.outcomes.note(name, result.code)
                self._opened(result)
        if draw.chance(4):
            self.world.commit()
        if draw.chance(6):
            self.world.crash()
        if draw.chance(5):
            self.world.apply([internal(c.Reap(draw.one((1, 2, 5, 100))))])
        if draw.chance(5):
            self.world.apply([internal(Flatten(draw.view(), draw.one((1, 2, 5, 100))))])
        if draw.chance(8):
            self.world.apply([internal(ExpireTrash(draw.one((1, 2, 100))))])
        if draw.chance(6):
            self.world.settle()
            self.world.compare_quiet()
        if draw.chance(4):
            self.world.compare()
        if draw.chance(8):
            self.world.collect(limit=draw.one((1, 100)))
        if draw.chance(8):
            self._let_go(draw)

    def _let_go(self, draw: Drawing) -> None:
        """Every client reads the present only, but for its leases; the grace passes; collect."""
        frames = tuple(draw.frame(session) for session in self.world.model.state.sessions.values())
        marks = internal(c.SessionMarks(frames))
        self.world.apply([marks], cluster_step=2 * GRACE_NS)
        self.world.collect()

    def teardown(self) -> None:
        if self.sessions and not self.world.failed:
            self.world.compare()
            self.world.finish()
        self.world.close()

    # ------------------------------------------------------------------ commands

    mkdir = _command(building.mkdir)
    create = _command(building.create)
    bulk_create = _command(building.bulk_create)
    mknod = _command(building.mknod)
    symlink = _command(building.symlink)
    link = _command(building.link)
    unlink = _command(building.unlink)
    rmdir = _command(building.rmdir)
    remove_tree = _command(building.remove_tree)
    rename = _command(building.rename)
    exchange = _command(building.exchange)
    chmod = _command(building.chmod)
    chown = _command(building.chown)
    truncate = _command(building.truncate)
    utimens = _command(building.utimens)
    set_flags = _command(building.set_flags)
    set_many = _command(building.set_many)
    set_xattr = _command(building.set_xattr)
    remove_xattr = _command(building.remove_xattr)
    set_list = _command(building.set_list)
    set_lock = _command(building.set_lock)
    unlock = _command(building.unlock)
    cancel_lock = _command(building.cancel_lock)
    publish_create = _command(building.publish_create)
    publish_replace = _command(building.publish_replace)
    publish_generation = _command(building.publish_generation)
    publish_patch = _command(building.publish_patch)
    publish_append = _command(building.publish_append)
    publish_handle = _command(building.publish_handle)
    stage_begin = _command(building.stage_begin)
    stage_swap = _owned(building.stage_swap, _stagers, building.stage_begin)
    stage_drop = _owned(building.stage_drop, _stagers, building.stage_begin)
    atomic = _command(building.atomic)
    lease_uploads = _command(building.lease_uploads)
    pin_view = _command(building.pin_view)
    unpin_view = _owned(building.unpin_view, _pinners, building.pin_view)
    set_quota = _command(building.set_quota)
    copy = _command(building.copy)
    copy_range = _command(building.copy_range)
    snapshot_create = _command(building.snapshot_create)
    snapshot_renew = _owned(building.snapshot_renew, _snapshots, building.snapshot_create)
    snapshot_delete = _owned(building.snapshot_delete, _snapshots, building.snapshot_create)
    clone = _command(building.clone)
    workspace_create = _command(building.workspace_create)
    rollback = _owned(building.rollback, _snapshots, building.snapshot_create)
    trash = _command(building.trash)
    restore_trash = _owned(building.restore_trash, _discarders, building.trash)
    empty_trash = _owned(building.empty_trash, _discarders, building.trash)
    keep_trash = _command(building.keep_trash)
    remove_view = _owned(building.remove_view, _grafts, building.clone)

    @rule(seed=SEEDS)
    def open_session(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        nonce = draw.often(tuple(bytes([n]) * 16 for n in range(4)), (b"short",))
        self.queue(draw, "open_session", _opening(nonce, draw.often((SECOND_NS,), (1, 2**62))))

    @rule(seed=SEEDS)
    def expire_session(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        target = draw.one((*self.sessions, 77))
        if draw.chance(3):
            self.send(draw, "expire_session", self.session(draw), c.ExpireSession(target))
        else:
            self.queue(draw, "expire_session", internal(c.ExpireSession(target)))

    @rule(seed=SEEDS)
    def retry(self, seed: bytes) -> None:
        """The same bytes again: the first answer, whatever happened since."""
        draw = self.drawing(seed)
        if self.sent:
            self.queue(draw, "retry", draw.one(self.sent[-8:]))

    @rule(seed=SEEDS)
    def node(self, seed: bytes) -> None:
        """Commands of the node itself."""
        draw = self.drawing(seed)
        ended = [s.number for s in self.world.model.state.sessions.values() if s.died]
        ops: tuple[c.Op, ...] = (
            draw.marks(),
            draw.marks(),
            draw.marks(),
            c.Checkpoint(draw.number(1, 9)),
            c.Swept(draw.one((*ended, *self.sessions, 77)), draw.one((0, self.world.cluster_ns))),
            c.TrimEvents(draw.one((0, self.world.model.version // 2)), draw.one((1, 100))),
            c.InitVolume(VOLUME, 8),
            ExpireSnapshots(draw.one((1, 100))),
            ExpireTrash(draw.one((1, 100))),
            Flatten(draw.view(), draw.one((1, 3, 100))),
        )
        op = draw.one(ops)
        self.queue(draw, "node", internal(op))

    # ------------------------------------------------------------------ reads

    @rule(seed=SEEDS)
    def get_attr(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        if draw.chance(2):
            self.ask(draw, "get_attr", r.GetAttr(*draw.shown()))
        else:
            at, version = draw.shown(kind=directory)
            self.ask(draw, "get_attr", r.Lookup(at, draw.name(), version))

    @rule(seed=SEEDS)
    def read_link(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        self.ask(draw, "read_link", r.ReadLink(*draw.shown(kind=symlink)))

    @rule(seed=SEEDS)
    def read_dir(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        after, limit = draw.one((b"", b"", b"a", b"c")), draw.often((1, 2, 100), (0, -1, 5_000))
        at, version = draw.shown(kind=directory)
        plus = not version and draw.chance(2)  # a page may end before a view that is not pinned
        self.ask(draw, "read_dir", r.ReadDir(at, after, limit, plus, version))

    @rule(seed=SEEDS)
    def body_map(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        offset = draw.often((0, 5, CHUNK_BYTES - 1, CHUNK_BYTES), (-1,))
        length = draw.one((1, 8, CHUNK_BYTES, 3 * CHUNK_BYTES, 0))
        if draw.chance(3):
            at, session, body, lease = draw.leased()
            self.ask(draw, "body_map", r.BodyMap(at, offset, length, 0, session, body, lease))
        else:
            at, version = draw.shown(kind=regular)
            self.ask(draw, "body_map", r.BodyMap(at, offset, length, version))

    @rule(seed=SEEDS)
    def get_xattr(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        name, (at, version) = draw.often(XATTRS, BAD_XATTRS), draw.shown(kind=tagged)
        self.ask(draw, "get_xattr", r.GetXattr(at, name, version))
        self.ask(draw, "get_xattr", r.ListXattr(at, version))

    @rule(seed=SEEDS)
    def access(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        self.ask(draw, "access", r.Access(draw.at(), draw.often((4, 2, 1, 0, 7), (8, -1))))

    @rule(seed=SEEDS)
    def get_usage(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        self.ask(draw, "get_usage", r.GetUsage(draw.parent()))

    @rule(seed=SEEDS)
    def read_events(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        cursor = draw.one((0, 5, self.world.model.version // 2, self.world.model.version))
        self.ask(draw, "read_events", r.ReadEvents(cursor, draw.often((1, 3, 100), (0, -1))))

    @rule(seed=SEEDS)
    def get_snapshot(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        self.ask(draw, "get_snapshot", GetSnapshot(draw.snapshot()))
        self.ask(draw, "get_snapshot", ListSnapshots(draw.one(("", "s", "t")), draw.one((1, 2, 9))))

    @rule(seed=SEEDS)
    def list_trash(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        request = ListTrash(*draw.trash(), draw.one((1, 2, 100, -1)))
        self.outcomes.note("list_trash", self.world.read(draw.caller(), request))

    @rule(seed=SEEDS)
    def get_session(self, seed: bytes) -> None:
        draw = self.drawing(seed)
        number = draw.one((*self.sessions, 77))
        self.ask(draw, "get_session", r.GetSession(number))
        self.ask(draw, "list_sessions", r.ListSessions(number, draw.one((1, 9)), draw.one((0, 2))))

    def ask(self, draw: Drawing, name: str, request: r.Read) -> None:
        """Read from both, as some caller."""
        self.outcomes.note(name, self.world.read(draw.caller(), request))


def _opening(nonce: bytes, ttl_ns: int = SECOND_NS) -> c.Command:
    return internal(c.OpenSession(nonce, ttl_ns))
