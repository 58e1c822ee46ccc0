"""The collector against a real state machine and a real store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.local import VOLUME, LocalShard, S

from nokv.errors import NotFound, ObjectStoreError, ObjectStoreUnavailable
from nokv.objects.faults import FaultyStore
from nokv.objects.layout import ObjectName, format_name
from nokv.objects.memory import MemoryStore
from nokv.server.collector import RISES_IN_GRACE, Collector, gaps
from nokv.state.ops_internal import TOMBSTONE_NS
from nokv.types.commands import ExpireSession, Reap, SessionMarks, Unlink
from nokv.types.gc import ListWaitingSessions, WaitingSession, WaitingSessionsReply, WhySession
from nokv.types.reads import GetDrops, GetSession, Read, SessionReply
from nokv.types.values import At, Caller, Marks

GRACE_NS = 60 * S
V = TypeVar("V")


def name_of(session: int, upload: int, block: int = 0) -> str:
    return format_name(ObjectName(VOLUME, 0, session, upload, 0, block, 0))


class World:
    def __init__(self, store: MemoryStore | None = None) -> None:
        self.shard = LocalShard()
        self.store = store or MemoryStore()
        self.faulty = FaultyStore(self.store)
        self.collector = Collector(self.shard, self.faulty, volume=VOLUME, grace_ns=GRACE_NS)

    def put(self, session: int, upload: int, block: int = 0) -> str:
        name = name_of(session, upload, block)
        asyncio.run(self.store.put(name, b"x" * 10))
        return name

    def tick(self, seconds: int) -> None:
        self.shard.now_ns += seconds * S
        self.shard.do(Reap(1))

    def collect(self) -> int:
        before = self.collector.objects
        asyncio.run(self.collector.collect())
        return self.collector.objects - before

    def sweep(self) -> int:
        return asyncio.run(self.collector.sweep())


@pytest.fixture
def world() -> World:
    return World()


def advance_floor(world: World, session: int, number: int) -> None:
    version = world.shard.machine.version
    world.shard.do(SessionMarks((Marks(session, number, version, 0),)))


def test_a_replaced_body_goes_after_the_grace_and_never_before(world: World) -> None:
    session = world.shard.open_session()
    first, second = world.shard.lease(session, 2), 0
    second = first + 1
    old, new = world.put(session, first), world.put(session, second)
    world.shard.publish(session, first, b"f")
    world.shard.publish(session, second, b"f")
    advance_floor(world, session, 1)
    assert world.collect() == 0
    world.tick(61)
    assert world.collect() == 1
    assert world.store.names == [new]
    assert old not in world.store.names
    assert world.collect() == 0
    assert world.shard.machine.counters.drops == 0


def test_a_floor_keeps_what_its_session_may_still_read(world: World) -> None:
    session = world.shard.open_session()
    upload = world.shard.lease(session)
    name = world.put(session, upload)
    world.shard.publish(session, upload, b"f")
    world.shard.do(Unlink(At(), b"f"), session)
    world.tick(1000)
    assert world.collect() == 0
    assert world.store.names == [name]
    advance_floor(world, session, 1)
    assert world.collect() == 1


@pytest.mark.allow_logs("could not be deleted")
def test_a_deletion_that_fails_keeps_its_row() -> None:
    class Stubborn(MemoryStore):
        stubborn = True

        async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
            if self.stubborn:
                return {name: ObjectStoreUnavailable("delete: no") for name in names}
            return await super().delete(names)

    store = Stubborn()
    world = World(store)
    session = world.shard.open_session()
    upload = world.shard.lease(session)
    world.put(session, upload)
    world.shard.publish(session, upload, b"f")
    world.shard.do(Unlink(At(), b"f"), session)
    advance_floor(world, session, 1)
    world.tick(61)
    assert world.collect() == 0
    assert world.shard.machine.counters.drops == 1
    store.stubborn = False
    assert world.collect() == 1
    assert world.shard.machine.counters.drops == 0


def test_uploads_of_a_dead_session_go_and_published_ones_stay(world: World) -> None:
    session = world.shard.open_session()
    first = world.shard.lease(session, 3)
    kept = world.put(session, first + 1)
    world.put(session, first)
    world.put(session, first + 2)
    world.shard.publish(session, first + 1, b"f")
    world.tick(100)
    assert world.sweep() == 0
    world.shard.do(ExpireSession(session))
    world.tick(59)
    assert world.sweep() == 0
    world.tick(2)
    assert world.sweep() == 2
    assert world.store.names == [kept]


def test_a_live_session_loses_only_what_is_below_its_watermark(world: World) -> None:
    session = world.shard.open_session()
    first = world.shard.lease(session, 4)
    names = [world.put(session, first + n) for n in range(4)]
    world.shard.publish(session, first + 1, b"f")
    world.shard.do(SessionMarks((Marks(session, 1, 0, first + 2),)))
    assert world.sweep() == 0
    world.tick(61)
    assert world.sweep() == 1
    assert world.store.names == names[1:]


def test_what_a_busy_session_gave_up_goes_after_the_grace_and_not_before(world: World) -> None:
    session = world.shard.open_session()
    upload = world.shard.lease(session, 400)
    given_up: dict[str, int] = {}
    kept = []
    for number in range(1, 121):
        # One publish was refused, its objects stay; the next succeeds, and the watermark rises.
        given_up[world.put(session, upload)] = world.shard.now_ns
        kept.append(world.put(session, upload + 1))
        world.shard.publish(session, upload + 1, b"f")
        upload += 2
        world.shard.do(SessionMarks((Marks(session, number, 0, upload),)))
        world.tick(10)
        world.sweep()
        for name, at_ns in given_up.items():
            waits_s = (world.shard.now_ns - at_ns) // S
            if waits_s <= 60:
                assert name in world.store.names, waits_s
            if waits_s > 60 + 10 + 4:  # the grace, a pause between sweeps, a sixteenth
                assert name not in world.store.names, waits_s
    assert world.collector.orphans > 100
    assert len(world.collector._rises[session]) < 9
    # An operator is told of the last one, and by then all of them go.
    told = waiting(world, session)
    assert told.until_cluster_ns == world.shard.now_ns + 50 * S
    world.tick(50)
    world.sweep()
    assert list(given_up)[-1] in world.store.names
    assert list(given_up)[-3] not in world.store.names
    world.tick(1)
    assert waiting(world, session).until_cluster_ns == 0
    world.sweep()
    assert world.store.names == sorted(kept)


def waiting(world: World, session: int) -> WaitingSession:
    _, reply = world.shard.machine.read(Caller(), ListWaitingSessions(grace_ns=GRACE_NS))
    assert isinstance(reply, WaitingSessionsReply)
    row = {row.session: row for row in reply.rows}[session]
    assert row.why == WhySession.ABANDONED
    return row


def test_watermarks_of_a_session_are_remembered_while_it_is_known(world: World) -> None:
    session = world.shard.open_session()
    upload = world.shard.lease(session, 2000)
    for number in range(1, 200):
        world.shard.do(SessionMarks((Marks(session, number, 0, upload + number),)))
        world.tick(1)
        world.sweep()
        assert len(world.collector._rises[session]) <= RISES_IN_GRACE + 2
    world.shard.do(ExpireSession(session))
    world.tick(TOMBSTONE_NS // S)
    world.sweep()
    world.sweep()
    assert not world.collector._rises


@pytest.mark.parametrize("ranges_page", [1, 3, 8192])
def test_a_session_of_any_number_of_ranges_is_swept(
    world: World, monkeypatch: pytest.MonkeyPatch, ranges_page: int
) -> None:
    monkeypatch.setattr("nokv.state.reads_admin.RANGES_PAGE_MAX", ranges_page)
    monkeypatch.setattr("nokv.server.collector.LIST_NAMES_MAX", 7)
    kept = []
    for _ in range(2):
        session = world.shard.open_session()
        first = world.shard.lease(session, 40)
        for upload in range(first, first + 40):
            name = world.put(session, upload)
            if upload % 2:
                world.shard.publish(session, upload, f"{session}-{upload}".encode())
                kept.append(name)
        world.shard.do(ExpireSession(session))
    world.tick(61)
    assert len(asyncio.run(orphans(world))) == 40
    assert world.sweep() == 40
    assert world.store.names == sorted(kept)
    # A listing goes on past what is kept: six of seven names, not one for each of twenty gaps.
    assert world.faulty.calls["list"] <= 2 * 2 * 7
    world.tick(TOMBSTONE_NS // S)
    world.sweep()
    assert world.shard.machine.counters.sessions == 0


def test_a_late_put_of_a_dead_session_goes_before_its_tombstone(world: World) -> None:
    session = world.shard.open_session()
    upload = world.shard.lease(session)
    world.shard.do(ExpireSession(session))
    world.tick(61)
    assert world.sweep() == 0
    world.put(session, upload)
    world.tick(TOMBSTONE_NS // S)
    assert world.sweep() == 1
    assert known(world, session)
    assert world.sweep() == 0
    assert not known(world, session)
    assert world.store.names == []


def known(world: World, session: int) -> bool:
    try:
        _, reply = world.shard.machine.read(Caller(), GetSession(session))
    except NotFound:
        return False
    assert isinstance(reply, SessionReply)
    return True


def test_what_no_known_session_names_is_left_alone(world: World) -> None:
    stranger = world.put(12345, 1)
    asyncio.run(world.store.put("volume.json", b"{}"))
    asyncio.run(world.store.put(f"blocks/{'cd' * 16}/x", b"y"))
    world.tick(10 * TOMBSTONE_NS // S)
    assert world.sweep() == 0
    assert stranger in world.store.names
    assert len(world.store.names) == 3


# ---------------------------------------------------------------- a store that misbehaves


def dropped(world: World) -> tuple[int, str]:
    """Make a body that may go; return its session and its object."""
    session = world.shard.open_session()
    upload = world.shard.lease(session)
    name = world.put(session, upload)
    world.shard.publish(session, upload, b"f")
    world.shard.do(Unlink(At(), b"f"), session)
    advance_floor(world, session, 1)
    world.tick(61)
    return session, name


@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_fails_costs_a_round(world: World, *, after: bool) -> None:
    _, name = dropped(world)
    world.faulty.fail("delete", after=after)
    with pytest.raises(ObjectStoreUnavailable):
        world.collect()
    assert world.shard.machine.counters.drops == 1
    assert (name in world.store.names) != after
    world.collect()
    assert not world.store.names
    assert world.shard.machine.counters.drops == 0


def test_a_deletion_that_answers_late_deletes_nothing_else(world: World) -> None:
    session, _ = dropped(world)

    async def main() -> None:
        gate = world.faulty.hold("delete")
        slow = asyncio.ensure_future(world.collector.collect())
        await gate.reached.wait()
        # Another leader's worker does the same meanwhile, and the name is used again.
        other = Collector(world.shard, world.store, volume=VOLUME, grace_ns=GRACE_NS)
        await other.collect()
        assert world.shard.machine.counters.drops == 0
        upload = world.shard.lease(session)
        await world.store.put(name_of(session, upload), b"x" * 10)
        world.shard.publish(session, upload, b"f")
        gate.release()
        await slow
        assert world.store.names == [name_of(session, upload)]

    asyncio.run(main())


def test_an_object_that_is_lost_does_not_stop_the_collector(world: World) -> None:
    _, name = dropped(world)
    asyncio.run(world.store.delete([name]))
    world.collect()
    assert world.shard.machine.counters.drops == 0


def test_a_stale_listing_loses_nothing_and_forgets_nobody_early(world: World) -> None:
    session = world.shard.open_session()
    first = world.shard.lease(session, 2)
    world.put(session, first)
    world.shard.do(ExpireSession(session))
    world.tick(61)
    assert world.sweep() == 1
    kept = world.shard.open_session()
    published = world.put(kept, world.shard.lease(kept))
    world.shard.publish(kept, 1, b"f")
    world.tick(TOMBSTONE_NS // S)
    # It lists again what is deleted: that deletes nothing, and is no proof that nothing is left.
    world.faulty.stale(times=100)
    world.sweep()
    assert known(world, session)
    assert world.store.names == [published]
    world.faulty._faults.clear()
    assert world.sweep() == 0
    assert not known(world, session)


def test_a_listing_that_fails_on_its_second_page_proves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nokv.server.collector.LIST_NAMES_MAX", 2)
    session = world.shard.open_session()
    upload = world.shard.lease(session)
    for block in range(3):
        world.put(session, upload, block)
    world.shard.do(ExpireSession(session))
    world.tick(TOMBSTONE_NS // S)
    world.faulty.fail("list", 2)
    with pytest.raises(ObjectStoreUnavailable):
        world.sweep()
    assert known(world, session)
    assert world.sweep() == 1
    assert known(world, session)
    world.sweep()
    assert not known(world, session)
    assert world.store.names == []


# ---------------------------------------------------------------- rounds


async def orphans(world: World) -> list[tuple[str, int]]:
    return [(o.info.name, o.session.died) async for o in world.collector.find_orphans()]


def test_orphans_are_shown_with_their_proof_and_left_alone(world: World) -> None:
    session = world.shard.open_session()
    first = world.shard.lease(session, 3)
    names = [world.put(session, first + n) for n in range(3)]
    world.shard.publish(session, first + 1, b"f")

    world.tick(100)
    assert asyncio.run(orphans(world)) == []
    world.shard.do(ExpireSession(session))
    died = world.shard.machine.version
    assert asyncio.run(orphans(world)) == []
    world.tick(61)
    assert asyncio.run(orphans(world)) == [(names[0], died), (names[2], died)]
    assert world.store.names == names


def test_what_was_clean_is_listed_again_when_a_run_is_ordered(world: World) -> None:
    session = world.shard.open_session()
    upload = world.shard.lease(session)
    world.shard.do(ExpireSession(session))
    world.tick(61)
    assert world.sweep() == 0
    world.put(session, upload)
    assert world.sweep() == 0
    assert asyncio.run(world.collector.sweep(anew=True)) == 1
    assert world.store.names == []


def test_a_round_is_bounded_and_the_next_one_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nokv.state.collect.DROPS_EXAMINED_MAX", 4)
    session = world.shard.open_session()
    for _ in range(20):
        upload = world.shard.lease(session)
        world.put(session, upload)
        world.shard.publish(session, upload, b"f")
    world.tick(61)
    reads: list[int] = []
    read = world.shard.read

    async def counted(request: Read, kind: type[V]) -> V:
        if isinstance(request, GetDrops):
            reads.append(request.after)
        return await read(request, kind)

    monkeypatch.setattr(world.shard, "read", counted)
    for _ in range(2):
        asyncio.run(world.collector.collect(2))
    assert reads == [0, 4, 8, 12]
    asyncio.run(world.collector.collect(2))
    assert reads == [0, 4, 8, 12, 16]
    advance_floor(world, session, 1)
    asyncio.run(world.collector.collect(2))
    assert world.shard.machine.counters.drops == 0
    totals = world.collector.totals()
    assert (totals.rows, totals.objects, totals.size_bytes) == (19, 19, 190)


@given(
    consumed=st.sets(st.integers(0, 30)),
    first=st.integers(0, 40),
    end=st.integers(0, 40),
)
def test_gaps_and_consumed_ranges_cover_everything_once(
    consumed: set[int], first: int, end: int
) -> None:
    ranges: list[tuple[int, int]] = []
    for upload in sorted(consumed):
        if ranges and ranges[-1][1] == upload - 1:
            ranges[-1] = (ranges[-1][0], upload)
        else:
            ranges.append((upload, upload))
    covered = [n for low, high in gaps(ranges, first, end) for n in range(low, high + 1)]
    assert covered == [n for n in range(first, end) if n not in consumed]
