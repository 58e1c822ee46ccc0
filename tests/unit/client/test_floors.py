"""Floors, leases and upload numbers, without a network."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nokv.client.floors import Floors, Hold
from nokv.client.uploads import UploadNumbers
from nokv.types.limits import LEASES_MAX
from nokv.types.results import Leased
from nokv.types.values import Lease

AGE_NS = 100


def test_floor_is_the_newest_version_without_readers() -> None:
    floors = Floors(5, AGE_NS)
    floors.note(9)
    assert floors.marks(1, 0) == (9, ())


def test_a_read_in_flight_holds_the_version_it_began_at() -> None:
    floors = Floors(5, AGE_NS)
    with floors.reading(0) as hold:
        floors.note(9)
        assert floors.marks(1, 0) == (5, ())
        assert floors.move(hold, 9)
        assert floors.marks(2, 0) == (9, ())
    assert floors.marks(3, 0) == (9, ())


def test_an_answer_older_than_the_floor_is_discarded() -> None:
    floors = Floors(5, AGE_NS)
    floors.note(9)
    floors.marks(1, 0)
    with floors.reading(0) as hold:
        assert not floors.move(hold, 8)
        assert floors.move(hold, 9)


def test_leases_over_the_limit_wait_and_hold_the_floor() -> None:
    floors = Floors(5, AGE_NS)
    holds = [floors.begin(number) for number in range(LEASES_MAX + 2)]
    for number, hold in enumerate(holds):
        floors.want_lease(hold, 0, 7, number)
    floors.note(9)
    floor, leases = floors.marks(1, LEASES_MAX + 2 + AGE_NS)
    assert (floor, [lease.body for lease in leases]) == (5, list(range(LEASES_MAX)))
    floors.applied(1)
    floors.end(holds[0])
    floor, leases = floors.marks(2, LEASES_MAX + 2 + AGE_NS)
    assert (floor, [lease.body for lease in leases]) == (5, list(range(1, LEASES_MAX + 1)))
    assert not floors.serves(holds[-1])


def test_a_lease_frees_the_floor_only_once_it_is_applied() -> None:
    floors = Floors(5, AGE_NS)
    hold = floors.begin(0)
    floors.want_lease(hold, 0, 7, 70)
    floors.note(9)
    assert floors.marks(1, AGE_NS - 1) == (5, ())
    lease = Lease(0, 7, 70, 5)
    assert floors.marks(2, AGE_NS) == (5, (lease,))
    assert floors.waiting_for_lease
    floors.applied(1)
    assert floors.marks(3, AGE_NS) == (5, (lease,))
    floors.applied(2)
    assert not floors.waiting_for_lease
    assert floors.marks(4, AGE_NS) == (9, (lease,))
    assert floors.serves(hold)
    floors.end(hold)
    assert floors.marks(5, AGE_NS) == (9, ())


def test_of_two_leases_of_one_body_the_older_is_served() -> None:
    floors = Floors(5, AGE_NS)
    old = floors.begin(0)
    floors.want_lease(old, 0, 7, 70)
    floors.note(9)
    new = floors.begin(0)
    floors.want_lease(new, 0, 7, 70)
    floors.marks(1, AGE_NS)
    floors.applied(1)
    assert floors.serves(old)
    assert not floors.serves(new)


class FloorMachine(RuleBasedStateMachine):
    """Whatever readers do: the floor never falls and never passes what is read without a lease."""

    def __init__(self) -> None:
        super().__init__()
        self.floors = Floors(1, AGE_NS)
        self.now = 0
        self.version = 1
        self.frame = 0
        self.sent: dict[int, tuple[Lease, ...]] = {}
        self.applied: tuple[Lease, ...] = ()
        self.announced = 1
        self.holds: list[Hold] = []

    @rule(step=st.integers(1, 5))
    def commit(self, step: int) -> None:
        self.version += step

    @rule()
    def begin(self) -> None:
        self.holds.append(self.floors.begin(self.now))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        if hold.lease is None and self.floors.move(hold, self.version):
            self.floors.want_lease(hold, 0, data.draw(st.integers(1, 3)), 1)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        self.holds.remove(hold)
        self.floors.end(hold)

    @rule(age=st.integers(0, AGE_NS))
    def renew(self, age: int) -> None:
        self.now += age
        self.frame += 1
        floor, leases = self.floors.marks(self.frame, self.now)
        assert floor >= self.announced
        self.announced = floor
        self.sent[self.frame] = leases

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        frame = data.draw(st.sampled_from(sorted(self.sent)))
        self.applied = self.sent[frame]
        self.floors.applied(frame)
        self.sent = {number: leases for number, leases in self.sent.items() if number > frame}

    @invariant()
    def every_reader_is_held(self) -> None:
        for hold in self.holds:
            assert hold.version >= self.announced or hold.leased
            if hold.leased:
                assert hold.lease in self.applied


TestFloorMachine = FloorMachine.TestCase


def numbers(log: list[int], first: int = 1) -> UploadNumbers:
    state = {"next": first}

    async def lease(count: int) -> None:
        log.append(count)
        await asyncio.sleep(0)
        uploads.leased(Leased(state["next"], count))
        state["next"] += count

    uploads = UploadNumbers(lease)
    return uploads


def test_upload_numbers_are_leased_in_growing_blocks_and_given_once() -> None:
    async def main() -> None:
        log: list[int] = []
        uploads = numbers(log)
        assert uploads.watermark == 0
        taken = await asyncio.gather(*(uploads.take() for _ in range(100)))
        assert sorted(taken) == list(range(1, 101))
        assert log == [16, 32, 64]
        assert uploads.in_flight == 100

    asyncio.run(main())


def test_the_watermark_is_the_smallest_in_flight_else_the_next() -> None:
    async def main() -> None:
        uploads = numbers([])
        one, two, three = [await uploads.take() for _ in range(3)]
        assert uploads.watermark == one
        uploads.settled(two)
        assert uploads.watermark == one
        uploads.settled(one)
        assert uploads.watermark == three
        uploads.settled(three)
        assert uploads.watermark == 4
        with pytest.raises(KeyError):
            uploads.settled(three)

    asyncio.run(main())
