"""Floors, leases and upload numbers, without a network."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.server.local import S
from tests.unit.server.test_leader import Leader

from nokv.client.floors import Floors, Hold
from nokv.client.uploads import UploadNumbers
from nokv.types.commands import SessionMarks
from nokv.types.limits import LEASES_MAX
from nokv.types.results import Leased
from nokv.types.values import Lease, Marks

AGE_NS = 100
AGE_S = 3


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
    assert not floors.leased(holds[-1])


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
    assert floors.leased(hold)
    floors.end(hold)
    assert floors.marks(5, AGE_NS) == (9, ())


class Wire:
    """A session's floors, and the leader that its frames go to: its rules, its state machine."""

    def __init__(self) -> None:
        self.leader = Leader()
        self.leader.duties.take_office()
        self.shard = self.leader.shard
        self.session = self.leader.open_session(3600 * S)
        self.floors = Floors(self.shard.machine.version, AGE_S * S)
        self.frame = 0

    @property
    def logged(self) -> Marks:
        """What the cluster knows."""
        marks = self.shard.machine.marks_of(self.session)
        assert marks is not None
        return marks

    def commit(self) -> None:
        """Make a version; what it says matters to nobody."""
        self.shard.do(SessionMarks(()))

    def open(self, version: int = 0, body: int = 70) -> Hold:
        """Open a file at the newest version, or at an older one, as a node shows it that lags."""
        hold = self.floors.begin(self.shard.now_ns)
        assert self.floors.move(hold, version or self.shard.machine.version)
        self.floors.want_lease(hold, 0, 7, body)
        return hold

    def make_frame(self) -> Marks:
        """Return the next frame."""
        self.frame += 1
        floor, leases = self.floors.marks(self.frame, self.shard.now_ns)
        return Marks(self.session, self.frame, floor, self.logged.watermark, leases)

    def deliver(self, frame: Marks) -> tuple[int, int]:
        """Hand a frame to the leader; return the number and the version that it answers."""
        applied = self.logged.number
        self.leader.duties.take_marks(frame)
        return applied, self.shard.machine.version

    def answer(self, number: int, version: int) -> None:
        """Hand the client an answer."""
        self.floors.note(version)
        self.floors.applied(number)

    def wait(self, seconds: int) -> None:
        """Let time pass, and the leader log what it has."""
        for _ in range(seconds):
            self.leader.ages.renew(self.session, self.shard.now_ns)
            self.leader.tick(1.0)

    def renew(self, times: int = 1, seconds: int = 1) -> None:
        """Renew, each time after so many seconds, and nothing is lost."""
        for _ in range(times):
            self.wait(seconds)
            self.answer(*self.deliver(self.make_frame()))

    def check(self) -> None:
        """What the client relies on is so in the cluster, and the cluster keeps what it reads."""
        logged = self.logged
        for hold in self.floors._holds:
            if self.floors.leased(hold):
                assert hold.lease in logged.leases
            else:
                assert hold.version >= logged.floor

    def check_freed(self, *holds: Hold) -> None:
        """All of these have leases, soon enough, and the floor passes the present version."""
        self.commit()
        version = self.shard.machine.version
        self.renew(8)
        self.check()
        assert all(self.floors.leased(hold) for hold in holds)
        assert self.logged.floor >= version


def with_kept_floor() -> tuple[Wire, Hold]:
    """Return a wire, and a handle of another body that keeps the floor without a lease."""
    wire = Wire()
    other = wire.open(body=71)
    other.begun_ns += 1000 * S
    return wire, other


def test_two_handles_at_one_version_whose_leases_fall_due_one_after_the_other() -> None:
    wire = Wire()
    first = wire.open()
    wire.wait(1)
    second = wire.open()
    assert first.lease == second.lease
    wire.renew(1, AGE_S - 1)
    assert wire.floors.leased(first) == wire.floors.leased(second)
    wire.check_freed(first, second)


def test_a_handle_takes_over_the_lease_of_one_that_is_closed() -> None:
    wire = Wire()
    first = wire.open()
    wire.wait(AGE_S)
    second = wire.open()
    wire.renew(2)
    wire.floors.end(first)
    wire.check_freed(second)
    wire.floors.end(second)
    wire.check_freed()
    assert not wire.logged.leases


def test_a_lease_is_asked_for_again_only_once_its_end_is_applied() -> None:
    wire, other = with_kept_floor()
    first = wire.open()
    version = first.version
    wire.renew(3, AGE_S)
    wire.floors.end(first)
    lost = wire.make_frame()
    assert not lost.leases
    second = wire.open(version)
    assert second.lease == first.lease
    assert not wire.floors.leased(second)  # the frame without it may yet arrive
    wire.wait(AGE_S)
    assert not wire.make_frame().leases
    wire.deliver(lost)
    wire.floors.end(other)
    wire.check_freed(second)


def test_a_lease_whose_handle_is_closed_before_it_is_known_to_be_applied() -> None:
    wire, other = with_kept_floor()
    first = wire.open()
    version = first.version
    wire.wait(AGE_S)
    wire.deliver(wire.make_frame())  # the answer is lost
    wire.wait(1)
    wire.floors.end(first)
    wire.make_frame()  # is lost
    second = wire.open(version)
    wire.renew(4, AGE_S)
    wire.check()
    wire.floors.end(other)
    wire.check_freed(second)


class FloorMachine(RuleBasedStateMachine):
    """Whatever readers, the network and leaders do: what is read is held, and nothing for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.announced = self.wire.floors.floor
        self.holds: list[Hold] = []
        self.reading: list[Hold] = []
        self.frames: list[Marks] = []
        self.answers: list[tuple[int, int]] = []

    @rule()
    def commit(self) -> None:
        self.wire.commit()

    @rule()
    def begin(self) -> None:
        self.reading.append(self.wire.floors.begin(self.wire.shard.now_ns))

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def answer_read(self, data: st.DataObject) -> None:
        hold = self.reading.pop(0)
        versions = {hold.version for hold in self.holds} | {self.wire.shard.machine.version}
        version = data.draw(st.sampled_from(sorted(versions)))
        if self.wire.floors.move(hold, version):
            self.wire.floors.want_lease(hold, 0, 7, data.draw(st.sampled_from((70, 71))))
            self.holds.append(hold)
        else:
            self.wire.floors.end(hold)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        self.holds.remove(hold)
        self.wire.floors.end(hold)

    @rule()
    def make_frame(self) -> None:
        frame = self.wire.make_frame()
        assert frame.floor >= self.announced
        self.announced = frame.floor
        self.frames.append(frame)

    @precondition(lambda self: self.frames)
    @rule(data=st.data(), arrives=st.booleans())
    def deliver(self, data: st.DataObject, arrives: bool) -> None:
        frame = self.frames.pop(data.draw(st.integers(0, len(self.frames) - 1)))
        if arrives:
            self.answers.append(self.wire.deliver(frame))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), arrives=st.booleans())
    def answer_frame(self, data: st.DataObject, arrives: bool) -> None:
        answer = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        if arrives:
            self.wire.answer(*answer)

    @rule(seconds=st.integers(1, AGE_S))
    def wait(self, seconds: int) -> None:
        self.wire.wait(seconds)

    @rule()
    def renew(self) -> None:
        self.wire.renew()

    @rule()
    def hold_log(self) -> None:
        shard = self.wire.shard
        if shard.held is None:
            shard.held = []
        else:
            shard.release()

    @rule(lost=st.booleans())
    def change_leader(self, lost: bool) -> None:
        if lost and self.wire.shard.held is not None:
            self.wire.shard.refuse()
        self.wire.leader.duties.step_down()
        self.wire.leader.duties.take_office()

    @invariant()
    def every_reader_is_held(self) -> None:
        self.wire.check()

    def teardown(self) -> None:
        if self.wire.shard.held is not None:
            self.wire.shard.release()
        for hold in self.reading:
            self.wire.floors.end(hold)
        self.wire.check_freed(*self.holds)


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
