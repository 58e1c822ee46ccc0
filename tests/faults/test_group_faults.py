"""Faults of a replica's surroundings, in simulated time: clocks years off, no room for log."""

from __future__ import annotations

import os

import msgspec
import pytest
from tests.simulation.ports import SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv.kv.digest import combine, digest
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.records import Position
from nokv.types.commands import COMMAND_FORMAT, Command, Create, InitVolume, Op, OpenSession
from nokv.types.limits import SESSION_TTL_NS_DEFAULT
from nokv.types.reads import AttrReply, GetAttr, GetSession, SessionReply
from nokv.types.trash import KeepTrash, Trash
from nokv.types.values import At, Caller, Volume
from nokv.types.views import GetSnapshot, SnapshotCreate
from nokv.wire.codec import encode_command, result_codec
from nokv_replication import NotLeader, Times

NOW_NS = 1_780_000_000 * SECOND_NS
"""A day in 2026."""
DAY_NS = 86_400 * SECOND_NS
YEAR_NS = 365 * DAY_NS
CLOCKS = pytest.mark.parametrize("years", [14, -1], ids=["in 2040", "set back by a year"])
CLAMP_NS = 10 * SECOND_NS


def command(op: Op, session: int = 0, seq: int = 0) -> bytes:
    return encode_command(Command(COMMAND_FORMAT, session, seq, 0, Caller(), op))


def replay(script: Script) -> tuple[StateMachine, MemoryKV]:
    """Apply what the group applied to a state machine, with the times of its entries."""
    kv = MemoryKV()
    machine = StateMachine(kv)
    for index, entry in sorted(script.checker.applied.items()):
        position = Position(index, entry.term, b"")
        times = (entry.times.wall_ns, entry.times.cluster_ns)
        for result in machine.apply(position, *times, entry.payloads):
            assert result_codec.decode(result).code == 0
    return machine, kv


def mtime_ns(machine: StateMachine, name: bytes) -> int:
    _, value = machine.read(Caller(), GetAttr(At(0, 1, (name,))))
    assert isinstance(value, AttrReply)
    return value.attr.mtime_ns


@CLOCKS
def test_a_leader_whose_clock_is_off_ends_no_lease_and_dates_no_file_there(years: int) -> None:
    """Nor does its successor with a right clock have to date files back."""
    script = Script()
    script.wait(NOW_NS - script.now_ns)
    script.lead(1)
    script.settle()
    script.propose(1, command(InitVolume(Volume("ab" * 16, "memory"), 1)))
    script.propose(1, command(OpenSession(os.urandom(16), SESSION_TTL_NS_DEFAULT)))
    script.settle(rounds=3)
    ((session, _),) = replay(script)[0].live_sessions()

    def create(leader: int, seq: int, name: bytes) -> None:
        script.propose(leader, command(Create(At(), name, 0o644), session, seq))
        script.settle(rounds=10)

    script.propose(1, command(SnapshotCreate(At(), "s", b"/", DAY_NS), session, 1))
    script.propose(1, command(KeepTrash(DAY_NS), session, 2))
    script.propose(1, command(Create(At(), b"gone", 0o644), session, 3))
    script.propose(1, command(Trash(At(), b"gone"), session, 4))
    create(1, 5, b"before")
    script.clocks[1].wall_offset_ns = years * YEAR_NS
    create(1, 6, b"while")
    assert "clock is more than 10 s" in script.groups[1].status().problem
    cluster_ns = script.groups[1].cluster_ns()
    create(1, 7, b"later")
    assert script.groups[1].cluster_ns() - cluster_ns < SECOND_NS
    script.isolate(1)
    script.elect(2, 3)
    script.settle(2, 3, rounds=8)
    create(2, 8, b"after")
    machine, kv = replay(script)
    times = [mtime_ns(machine, name) for name in (b"before", b"while", b"later", b"after")]
    assert times == sorted(times)
    assert all(NOW_NS <= time <= script.now_ns + CLAMP_NS for time in times)
    # It did meet the clamp; one below the last entry's time repeats that.
    assert times[2] > NOW_NS + CLAMP_NS if years > 0 else times[2] == times[0]
    assert times[3] <= script.now_ns or years > 0
    _, known = machine.read(Caller(), GetSession(session))
    assert isinstance(known, SessionReply)
    assert known.alive
    machine.read(Caller(), GetSnapshot("s"))
    assert not machine.trash_due(cluster_ns)
    assert combine(digest(replay(script)[1])) == combine(digest(kv))


@CLOCKS
def test_a_follower_whose_clock_is_off_moves_nothing(years: int) -> None:
    script = Script()
    script.wait(NOW_NS - script.now_ns)
    script.clocks[3].wall_offset_ns = years * YEAR_NS
    script.lead(1)
    script.settle()
    script.propose(1, b"x")
    script.settle(rounds=3)
    times = script.checker.applied[script.checker.where[b"x"]].times
    assert NOW_NS <= times.wall_ns <= script.now_ns
    assert script.groups[1].status().counters.wall_clamped == 0


def test_clocks_that_are_all_set_back_stop_wall_time_and_nothing_else() -> None:
    script = Script()
    script.wait(NOW_NS - script.now_ns)
    script.lead(1)
    script.settle()

    def times(payload: bytes) -> Times:
        script.propose(1, payload)
        script.settle(rounds=10)
        return script.checker.applied[script.checker.where[payload]].times

    before = times(b"before")
    for clock in script.clocks.values():
        clock.wall_offset_ns = -YEAR_NS
    after = times(b"after")
    assert after.wall_ns >= before.wall_ns >= NOW_NS
    assert after.wall_ns - before.wall_ns <= SECOND_NS
    assert before.cluster_ns < after.cluster_ns < before.cluster_ns + SECOND_NS
    assert script.groups[1].status().leads


def test_log_that_is_kept_for_others_goes_when_its_space_is_needed() -> None:
    config = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=1 << 30)
    script = Script(config=config)
    script.lead(1)
    script.settle()

    def write(tag: bytes) -> None:
        for i in range(60):
            script.propose(1, tag + b"%d" % i)
            script.settle(rounds=2)
        script.settle(rounds=60)

    write(b"kept")
    assert {group.counters.segments_dropped for group in script.groups.values()} == {0}
    script.groups[2].set_keeping_log(False)
    write(b"dropped")
    assert script.groups[1].counters.segments_dropped == 0
    assert script.groups[2].counters.segments_dropped > 0
    assert script.groups[2].status().droppable_bytes == 0
    script.groups[2].set_keeping_log(True)
    dropped = script.groups[2].counters.segments_dropped
    write(b"again")
    assert script.groups[2].counters.segments_dropped == dropped


def test_a_quorum_without_room_stops_commits_and_not_the_leader() -> None:
    script = Script()
    script.lead(1)
    script.settle()
    term = script.groups[1].status().term
    for node in (2, 3):
        script.groups[node].set_accepting(False)
    script.propose(1, b"waits")
    script.settle(rounds=200)
    assert b"waits" not in script.outcomes
    assert script.groups[1].status().leads
    assert script.groups[1].status().term == term
    script.read(1)
    script.read(2)
    script.settle(rounds=10)
    assert not any(isinstance(outcome, NotLeader) for outcome in script.reads)
    assert len(script.reads) == 2
    for node in (2, 3):
        script.groups[node].set_accepting(True)
    script.settle(rounds=100)
    assert b"waits" in script.outcomes
    assert [machine.items for machine in script.machines.values()] == [[b"waits"]] * 3
