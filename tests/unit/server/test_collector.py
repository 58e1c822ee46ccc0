"""The collector against a real state machine and a real store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.local import VOLUME, LocalShard, S

from nokv.errors import NotFound, ObjectStoreError, ObjectStoreUnavailable
from nokv.objects.layout import ObjectName, format_name
from nokv.objects.memory import MemoryStore
from nokv.server.collector import Collector, gaps
from nokv.state.ops_internal import TOMBSTONE_NS
from nokv.types.commands import ExpireSession, Reap, SessionMarks, Unlink
from nokv.types.reads import GetSession, SessionReply
from nokv.types.values import At, Caller, Marks

GRACE_NS = 60 * S


def name_of(session: int, upload: int, block: int = 0) -> str:
    return format_name(ObjectName(VOLUME, 0, session, upload, 0, block, 0))


class World:
    def __init__(self, store: MemoryStore | None = None) -> None:
        self.shard = LocalShard()
        self.store = store or MemoryStore()
        self.collector = Collector(self.shard, self.store, volume=VOLUME, grace_ns=GRACE_NS)

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


@given(
    consumed=st.sets(st.integers(0, 30)),
    end=st.integers(0, 40),
)
def test_gaps_and_consumed_ranges_cover_everything_once(consumed: set[int], end: int) -> None:
    ranges: list[tuple[int, int]] = []
    for upload in sorted(consumed):
        if ranges and ranges[-1][1] == upload - 1:
            ranges[-1] = (ranges[-1][0], upload)
        else:
            ranges.append((upload, upload))
    covered = [n for first, last in gaps(ranges, end) for n in range(first, last + 1)]
    assert covered == [n for n in range(end) if n not in consumed]
