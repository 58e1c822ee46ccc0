"""The leader's duties, over a real state machine, under a clock that the test holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from tests.unit.server.local import VOLUME, LocalShard, S

from nokv.server import leader as leader_module
from nokv.server.config import SessionsConfig
from nokv.server.leader import LeaderDuties
from nokv.server.sessions import SessionAges
from nokv.state import machine as state_machine
from nokv.state import ops_internal
from nokv.state.effects import SessionDead, SessionLive
from nokv.types.commands import (
    BulkCreate,
    Checkpoint,
    Create,
    ExpireSession,
    InitVolume,
    Mkdir,
    RaiseFormat,
    Reap,
    RemoveTree,
    SessionMarks,
    StageBegin,
    TrimEvents,
)
from nokv.types.formats import STATE_FORMAT
from nokv.types.limits import SESSION_TTL_NS_MAX, SNAPSHOT_TTL_NS_MAX
from nokv.types.locks import SetLock
from nokv.types.reads import DirPage, ReadDir
from nokv.types.trash import TRASH_KEEP_NS_MAX, ExpireTrash, KeepTrash, Trash
from nokv.types.values import At, Caller, Marks, Volume
from nokv.types.views import (
    HELD,
    Clone,
    ExpireSnapshots,
    Flatten,
    GetSnapshot,
    SnapshotCreate,
    SnapshotReply,
)
from nokv_replication import Outcome


class Leader:
    """A local shard whose leader is this process."""

    def __init__(self, *, initialise: bool = True) -> None:
        self.shard = LocalShard(initialise=initialise)
        self.common_format = STATE_FORMAT
        self.ages = SessionAges(self.shard.machine.live_sessions())
        self.duties = LeaderDuties(
            machine=self.shard.machine,
            ages=self.ages,
            propose=self.shard.propose,
            cluster_ns=self.shard.cluster_ns,
            config=SessionsConfig(events_keep_ms=60_000),
            init_volume=lambda: InitVolume(Volume(VOLUME, "memory"), 1),
            common_format=lambda: self.common_format,
        )

    def effects(self) -> None:
        for effect in self.shard.machine.take_effects():
            if isinstance(effect, SessionLive):
                self.ages.opened(effect.session, effect.ttl_ns, self.shard.now_ns)
            elif isinstance(effect, SessionDead):
                self.ages.ended(effect.session)

    def tick(self, seconds: float = 0.1) -> None:
        self.shard.now_ns += int(seconds * S)
        self.duties.tick()
        self.effects()

    def ops(self, kind: type) -> list[object]:
        return [op for op in self.shard.applied if isinstance(op, kind)]

    def open_session(self, ttl_ns: int = 10 * S) -> int:
        session = self.shard.open_session(ttl_ns)
        self.effects()
        return session


@pytest.fixture
def leader() -> Leader:
    leader = Leader()
    leader.duties.take_office()
    return leader


def test_the_first_leader_makes_the_volume_once() -> None:
    leader = Leader(initialise=False)
    leader.shard.held = []
    leader.duties.take_office()
    leader.tick()
    leader.tick()
    assert len(leader.shard.held) == 1
    leader.shard.release()
    leader.tick()
    assert len(leader.ops(InitVolume)) == 1
    assert leader.shard.machine.initialised()


def test_a_refused_volume_is_proposed_again() -> None:
    leader = Leader(initialise=False)
    leader.shard.held = []
    leader.duties.take_office()
    leader.shard.refuse()
    leader.tick()
    leader.shard.release()
    assert leader.shard.machine.initialised()


def test_a_silent_session_is_ended_after_its_time(leader: Leader) -> None:
    session = leader.open_session()
    for _ in range(100):
        leader.tick()
    assert leader.ops(ExpireSession) == []
    leader.tick()
    leader.tick()
    assert leader.ops(ExpireSession) == [ExpireSession(session)]
    assert (leader.ages.live, leader.duties.expired_total) == (0, 1)
    leader.tick(60)
    assert len(leader.ops(ExpireSession)) == 1


@pytest.mark.allow_logs("nothing")
def test_an_end_that_was_refused_is_proposed_again(leader: Leader) -> None:
    leader.open_session()
    leader.tick(11)
    leader.shard.held = []
    leader.tick()
    assert len(leader.shard.held) == 1
    leader.shard.refuse()
    leader.tick()
    leader.tick()
    leader.shard.release()
    leader.effects()
    assert leader.ages.live == 0


def test_a_deposed_leader_ends_nobody(leader: Leader) -> None:
    leader.open_session()
    leader.duties.step_down()
    leader.tick(100)
    assert leader.ops(ExpireSession) == []
    leader.duties.take_office()
    leader.tick(9)
    leader.tick()
    assert leader.ops(ExpireSession) == []


def test_outcomes_of_an_older_term_of_office_change_nothing(leader: Leader) -> None:
    leader.open_session()
    leader.tick(11)
    leader.shard.held = []
    leader.tick()
    old = leader.shard.held
    leader.duties.step_down()
    leader.duties.take_office()
    leader.shard.held = old
    leader.shard.refuse()
    assert leader.duties._expiring == 0


def test_changed_marks_go_in_one_command_a_second(leader: Leader) -> None:
    first, second = leader.open_session(100 * S), leader.open_session(100 * S)
    leader.tick(2)
    before = len(leader.ops(SessionMarks))
    leader.shard.lease(first, 5)
    leader.duties.take_marks(Marks(first, 1, 0, 2))
    leader.duties.take_marks(Marks(second, 1, 5, 0))
    leader.duties.take_marks(Marks(first, 2, 0, 3))
    leader.duties.take_marks(Marks(first, 1, 0, 1))
    for _ in range(10):
        leader.tick()
    (op,) = leader.ops(SessionMarks)[before:]
    assert isinstance(op, SessionMarks)
    assert {frame.session: frame.number for frame in op.frames} == {first: 2, second: 1}
    applied = leader.shard.machine.marks_of(first)
    assert applied is not None
    assert (applied.number, applied.watermark) == (2, 3)


def test_marks_that_are_old_say_nothing_or_belong_to_nobody_are_not_logged(leader: Leader) -> None:
    session = leader.open_session(100 * S)
    applied = leader.shard.machine.marks_of(session)
    assert applied is not None
    leader.duties.take_marks(Marks(session, 5, applied.floor, applied.watermark))
    leader.duties.take_marks(Marks(999, 5, 1, 1))
    leader.duties.take_marks(Marks(session, 0, 3, 1))
    leader.tick(2)
    assert leader.ops(SessionMarks) == []


def test_marks_over_the_size_of_a_command_go_in_several(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nokv.server.leader._MARKS_BYTES", 130)
    for n in range(5):
        session = leader.open_session(100 * S)
        leader.shard.lease(session, 5)
        leader.duties.take_marks(Marks(session, 1, 0, 2 + n % 2))
    for _ in range(40):
        leader.tick()
    assert [len(op.frames) for op in leader.ops(SessionMarks)] == [2, 2, 1]  # type: ignore[attr-defined]


def test_background_work_is_reaped_until_none_is_left(leader: Leader) -> None:
    session = leader.open_session(1000 * S)
    leader.shard.do(Mkdir(At(), b"d", 0o755), session)
    for n in range(5):
        leader.shard.do(Mkdir(At(0, 1, (b"d",)), b"x%d" % n, 0o755), session)
    leader.shard.do(RemoveTree(At(), b"d"), session)
    assert leader.shard.machine.pending_work()
    leader.tick()
    assert not leader.shard.machine.pending_work()
    assert leader.ops(Reap)
    reaps = len(leader.ops(Reap))
    leader.tick()
    assert len(leader.ops(Reap)) == reaps


def test_background_work_keeps_to_its_share_while_others_work(leader: Leader) -> None:
    session = leader.open_session(1000 * S)
    shard, duties = leader.shard, leader.duties
    duties._config = SessionsConfig(reap_limit=50, reap_busy_per_s=1000)
    shard.do(Mkdir(At(), b"d", 0o755), session)
    for first in range(0, 4000, 1000):
        names = tuple(b"%06d" % n for n in range(first, first + 1000))
        shard.do(BulkCreate(At(0, 1, (b"d",)), names, 0o644), session)
    others = iter(range(100_000))

    def busy(payload: bytes, done: Callable[[Outcome], None]) -> None:
        for number in itertools.islice(others, 20):
            shard.do(Mkdir(At(), b"other-%d" % number, 0o755), session)
        shard.propose(payload, done)

    duties._propose_bytes = busy
    shard.do(RemoveTree(At(), b"d"), session)
    before = duties.reaped_total
    for _ in range(10):
        for number in itertools.islice(others, 20):
            shard.do(Mkdir(At(), b"other-%d" % number, 0o755), session)
        leader.tick(0.1)
    assert 900 <= duties.reaped_total - before <= 1150
    duties._propose_bytes = shard.propose
    leader.tick(0.1)
    leader.tick(0.1)
    assert duties.reaped_total > 4000, "alone it goes on at once"


def test_events_are_trimmed_by_age(leader: Leader) -> None:
    session = leader.open_session(1000 * S)
    for n in range(12):
        leader.shard.do(Mkdir(At(), b"m%d" % n, 0o755), session)
        leader.tick(10)
    trims = leader.ops(TrimEvents)
    assert trims
    assert leader.shard.machine.counters.first_event > 0
    last = trims[-1]
    assert isinstance(last, TrimEvents)
    assert last.below < leader.shard.machine.version


def test_events_are_trimmed_by_size(leader: Leader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        leader.duties, "_config", SessionsConfig(events_keep_bytes=1 << 20, reap_limit=4)
    )
    session = leader.open_session(1000 * S)
    name = b"n" * 250
    for n in range(0, 10_000, 500):
        names = tuple(name[:-4] + b"%04d" % number for number in range(n, n + 500))
        leader.shard.do(BulkCreate(At(), names, 0o644), session)
    machine = leader.shard.machine
    assert machine.counters.event_bytes > 1 << 20
    leader.tick(1)
    assert len(leader.ops(TrimEvents)) == 1
    assert machine.counters.event_bytes > 1 << 20, "one step is bounded"
    for _ in range(3):
        leader.tick()
    assert machine.counters.event_bytes <= 1 << 20
    assert all(op.limit == 4 for op in leader.ops(TrimEvents) if isinstance(op, TrimEvents))
    trims = len(leader.ops(TrimEvents))
    leader.tick(5)
    assert len(leader.ops(TrimEvents)) == trims


def test_a_checkpoint_is_numbered_by_the_version(leader: Leader) -> None:
    told: list[int | None] = []
    leader.duties.checkpoint(told.append)
    (op,) = leader.ops(Checkpoint)
    assert isinstance(op, Checkpoint)
    assert told == [op.number]
    leader.shard.held = []
    leader.duties.checkpoint(told.append)
    leader.shard.refuse()
    assert told[1:] == [None]


# ---------------------------------------------------------------- state formats


@pytest.fixture
def next_build(monkeypatch: pytest.MonkeyPatch) -> int:
    """This build knows one state format more."""
    for module in (leader_module, state_machine, ops_internal):
        monkeypatch.setattr(module, "STATE_FORMAT", STATE_FORMAT + 1)
    return STATE_FORMAT + 1


def test_the_format_is_raised_once_all_members_apply_it(leader: Leader, next_build: int) -> None:
    for heard in (0, STATE_FORMAT):
        leader.common_format = heard
        leader.tick()
    assert not leader.ops(RaiseFormat)
    leader.common_format = next_build + 1
    leader.shard.held = []
    leader.tick()
    leader.tick()
    assert len(leader.shard.held) == 1
    leader.shard.release()
    leader.tick()
    assert leader.ops(RaiseFormat) == [RaiseFormat(next_build)]
    assert leader.shard.machine.format == next_build


def test_there_is_nothing_to_raise(leader: Leader) -> None:
    leader.common_format = STATE_FORMAT + 5
    leader.tick()
    assert not leader.ops(RaiseFormat)


def test_snapshots_end_with_their_lease(leader: Leader) -> None:
    shard = leader.shard
    assert not leader.duties.waits_for_time
    session = leader.open_session(3600 * S)
    for name, ttl_s in (("a", 5), ("b", 60), ("held", 0)):
        shard.do(SnapshotCreate(At(), name, b"/", ttl_s * S), session)
    shard.do(ExpireSession(session))
    leader.effects()
    assert leader.duties.waits_for_time, "cluster time must go on, or no lease ends"
    leader.tick(4)
    assert leader.ops(ExpireSnapshots) == []
    leader.tick(2)
    leader.tick()
    assert len(leader.ops(ExpireSnapshots)) == 1
    assert (shard.machine.counters.snapshots, leader.duties.snapshots_expired_total) == (2, 1)
    assert leader.duties.waits_for_time
    leader.tick(60)
    assert shard.machine.counters.snapshots == 1
    assert not leader.duties.waits_for_time, "what is held waits for nothing"
    for _ in range(30):
        leader.tick()
    assert len(leader.ops(ExpireSnapshots)) == 2


def test_many_snapshots_end_in_steps(leader: Leader) -> None:
    shard = leader.shard
    session = leader.open_session(3600 * S)
    for number in range(30):
        shard.do(SnapshotCreate(At(), f"s{number}", b"/", S), session)
    leader.duties._config = SessionsConfig(reap_limit=8)
    leader.tick(2)
    assert shard.machine.counters.snapshots == 22
    for _ in range(3):
        leader.tick()
    assert shard.machine.counters.snapshots == 0
    assert len(leader.ops(ExpireSnapshots)) == 4


def test_trash_goes_after_its_retention(leader: Leader) -> None:
    shard = leader.shard
    session = leader.open_session(3600 * S)
    shard.do(KeepTrash(60 * S), session)
    for number in range(20):
        shard.do(Mkdir(At(), b"d%d" % number, 0o755), session)
        shard.do(Trash(At(), b"d%d" % number), session)
    shard.do(ExpireSession(session))
    leader.effects()
    assert leader.duties.waits_for_time
    leader.tick(50)
    assert leader.ops(ExpireTrash) == []
    leader.duties._config = SessionsConfig(reap_limit=8)
    leader.tick(15)
    for _ in range(40):
        leader.tick()
    assert leader.duties.trash_expired_total == 20
    assert not shard.machine.has_trash()
    assert not leader.duties.waits_for_time


def test_a_clock_that_jumps_over_every_lease_ends_what_is_over_and_nothing_else(
    leader: Leader,
) -> None:
    """A session that is heard of once the clock has jumped goes on: its socket is read first."""
    shard = leader.shard
    silent, heard = (leader.open_session(SESSION_TTL_NS_MAX) for _ in range(2))
    shard.do(KeepTrash(TRASH_KEEP_NS_MAX), silent)
    for number, name in enumerate((b"live", b"gone"), shard.lease(silent, 2)):
        shard.publish(silent, number, name)
    shard.do(SetLock(At(0, 1, (b"live",)), 0, 1, write=True), silent)
    for snapshot, ttl_ns in (("lease", SNAPSHOT_TTL_NS_MAX), ("held", HELD)):
        shard.do(SnapshotCreate(At(), snapshot, b"/", ttl_ns), silent)
    shard.do(Trash(At(), b"gone"), silent)
    shard.do(StageBegin(0, 0o040755), silent)
    leader.tick(max(SESSION_TTL_NS_MAX, SNAPSHOT_TTL_NS_MAX, TRASH_KEEP_NS_MAX) / S + 1)
    assert leader.ops(ExpireSession) == []
    assert leader.ages.renew(heard, shard.now_ns)
    for _ in range(30):
        leader.tick()
    assert leader.ops(ExpireSession) == [ExpireSession(silent)]
    assert leader.ages.live == 1
    assert shard.machine.counters.snapshots == 1
    assert not shard.machine.has_trash()
    _, held = shard.machine.read(Caller(), GetSnapshot("held"))
    assert isinstance(held, SnapshotReply)
    for version in (0, held.version):
        _, page = shard.machine.read(Caller(), ReadDir(At(), at_version=version))
        assert isinstance(page, DirPage)
        names = [entry.name for entry in page.entries]
        assert names == [b"gone", b"live"] if version else names == [b"live"]
    shard.do(SetLock(At(0, 1, (b"live",)), 0, 1, write=True), heard)
    assert not shard.machine.pending_work()


def clones_of_clones(leader: Leader) -> LocalShard:
    """Return its shard with /v0 to /v20, each a changed clone of the one before."""
    shard = leader.shard
    session = leader.open_session(3600 * S)
    shard.do(Mkdir(At(), b"v0", 0o755), session)
    shard.do(BulkCreate(At(0, 1, (b"v0",)), tuple(b"%d" % n for n in range(100)), 0o644), session)
    for depth in range(20):
        source = At(0, 1, (b"v%d" % depth,))
        shard.do(Create(source, b"own%d" % depth, 0o644), session)
        shard.do(Clone(source, At(), b"v%d" % (depth + 1)), session)
    return shard


def test_deep_views_are_flattened(leader: Leader) -> None:
    shard = clones_of_clones(leader)
    shown = shard.machine.read(Caller(), ReadDir(At(0, 1, (b"v20",))))
    assert shard.machine.flatten_due()
    leader.tick(10)
    assert leader.ops(Flatten)
    for _ in range(3000):
        if not shard.machine.flatten_due():
            break
        leader.tick(0.1)
    assert not shard.machine.flatten_due()
    after = shard.machine.read(Caller(), ReadDir(At(0, 1, (b"v20",))))
    assert isinstance(shown[1], DirPage)
    assert isinstance(after[1], DirPage)
    assert after[1].entries == shown[1].entries
    steps = len(leader.ops(Flatten))
    leader.tick(10)
    assert len(leader.ops(Flatten)) == steps
    assert leader.duties.flatten_steps_total == steps
    flattened = {op.view for op in leader.shard.applied if isinstance(op, Flatten)}
    assert flattened == {9, 18}, "what lies above one that is flattened is not deep"


def test_nothing_is_copied_while_the_disks_are_low(leader: Leader) -> None:
    low = True
    leader.duties._disks_low = lambda: low
    shard = clones_of_clones(leader)
    for _ in range(30):
        leader.tick(1)
    assert shard.machine.flatten_due()
    assert leader.ops(Flatten) == []
    low = False
    leader.tick()
    leader.tick()
    begun = len(leader.ops(Flatten))
    assert begun
    low = True
    for _ in range(30):
        leader.tick(1)
    assert len(leader.ops(Flatten)) == begun
