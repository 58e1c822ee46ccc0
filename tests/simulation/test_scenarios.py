"""Directed schedules: each shows one protection at work, and fails where its bug is planted.

The first ones are the schedules in which the library alone loses acknowledged entries.
"""

from collections.abc import Callable

import pytest
from tests.simulation.bugs import planted
from tests.simulation.checker import Violation
from tests.simulation.disk import Crash
from tests.simulation.ports import SECOND_NS
from tests.simulation.script import Script

from nokv_replication import Committed, Fatal, Role
from nokv_replication.frames import Ack, Append, Probe, RequestVote, decode_frame


def acks_between(script: Script, sender: int, receiver: int) -> list[Ack]:
    return [f.body for f in script.on_the_way(sender, receiver) if isinstance(f.body, Ack)]


def duplicate_append() -> None:
    """A duplicate of an old append must not truncate what was acknowledged since."""
    script = Script()
    script.lead(1)
    script.propose(1, b"a")
    first = script.links[1, 2][-1]
    script.propose(1, b"b")
    script.deliver(1, 2)
    script.deliver(2, 1)
    assert isinstance(script.outcomes[b"b"], Committed)
    # The old frame again, as a leader that goes back to its acknowledged index would send it.
    stale = script.groups[2]._receiver
    body = decode_frame(first).body
    assert isinstance(body, Append)
    stale.handle(1, 10**6, body, script.groups[2]._now_ns)
    script.step(2)
    assert script.log(2) == script.log(1)


def old_ack() -> None:
    """Five voters: an acknowledgement of term 1 that arrives in term 3 must count for nothing."""
    script = Script(5)
    script.lead(1)
    script.settle()
    base = script.log(1)[-1][0]
    for payload in (b"u1", b"u2", b"u3"):
        script.propose(1, payload)
    for other in (3, 4, 5):
        script.cut(1, other)
        script.connect(1, other)
    script.deliver(1, 2)  # node 2 holds the three; its answers stay on the way
    assert len(acks_between(script, 2, 1)) >= 1
    script.elect(3, 4, 5)
    script.step(3)
    for other in (2, 4, 5):
        script.deliver(3, other)
    script.deliver(3, 1)
    for other in (4, 5):
        script.deliver(other, 3)
    script.step(3)
    assert script.log(2)[-1] == (base + 1, script.groups[3]._core.term())
    for other in (3, 4, 5):
        script.deliver(1, other)
    # Node 1 leads again; nobody but node 4 has its new entries.
    held = script.links[2, 1].copy()
    script.links[2, 1].clear()
    script.elect(1, 4, 5)
    script.groups[1].set_waiting(True)
    script.step(1)
    script.deliver(1, 4)
    script.deliver(4, 1)
    script.propose(1, b"w1") if script.groups[1].status().leads else None
    script.links[2, 1].extendleft(reversed(held))
    script.groups[1]._peers[2].received_sequence = 0
    commit = script.groups[1]._core.commit_index()
    script.deliver(2, 1, len(held))
    script.step(1)
    after = script.groups[1]._core.commit_index()
    assert after == commit, f"old acknowledgements moved the commit index {commit} -> {after}"


def foreign_tail() -> None:
    """A follower's own uncommitted tail is not what the leader has sent."""
    script = Script()
    script.lead(1)
    script.settle()
    script.isolate(1)
    for payload in (b"x1", b"x2", b"x3"):
        script.propose(1, payload)
    script.elect(2, 3)
    script.settle(2, 3, rounds=4)
    for payload in (b"y1", b"y2"):
        script.propose(2, payload)
    script.isolate(3)  # y1, y2 are at node 2 only
    script.connect(1, 2)
    before = script.groups[2]._core.commit_index()
    group = script.groups[1]
    # A heartbeat that stops where both agree: the follower may confirm no more than that.
    log = script.groups[2]._log
    prev = before - 1
    body = Append(script.groups[2]._core.term(), prev, log.term_at(prev), before, [])
    if group._log.last_index > prev and group._log.term_at(prev) == log.term_at(prev):
        group._receiver.handle(2, 10**6, body, group._now_ns)
        group._outbox.sync_and_release()
        (ack,) = acks_between(script, 1, 2)[-1:]
        assert ack.next_index == prev + 1, f"acknowledged up to {ack.next_index}, told to {prev}"


def unsynced_ack() -> None:
    """A follower that dies before its sync has not acknowledged."""
    script = Script()
    script.lead(1)
    script.settle()
    script.isolate(3)
    script.disks[2].crash_at("fdatasync", 1, after=False)
    script.propose(1, b"v")
    with pytest.raises(Crash):
        script.deliver(1, 2)
    frames = list(script.links[2, 1])
    # Whatever left node 2 before it died may still arrive.
    for frame in frames:
        script.groups[1].receive(2, frame)
    script.step(1)
    script.crash(2, power=True)
    script.crash(1)
    script.start(2)
    script.connect(2, 3)
    script.elect(2, 3)
    script.settle(2, 3)


def forgotten_vote() -> None:
    """A node that voted, and lost its power, votes for nobody else in that term."""
    script = Script()
    for node in (1, 2):
        script.wait(2 * SECOND_NS)
        script.groups[node]._core.expire_election()
    script.step(1)
    script.deliver(1, 3)
    script.deliver(3, 1)
    script.step(2)
    script.deliver(2, 3)
    script.deliver(3, 2)
    # Both stand in term 1; node 3 votes for node 1.
    script.deliver(1, 3)
    script.deliver(3, 1)
    assert script.role(1) == Role.LEADER
    wanted = list(script.links[2, 3])
    script.crash(3, power=True)
    script.start(3)
    script.connect(2, 3)
    for frame in wanted:
        body = decode_frame(frame).body
        if isinstance(body, RequestVote):
            script.groups[3]._receiver.handle(2, 1, body, script.groups[3]._now_ns)
    script.step(3)
    script.deliver(3, 2)
    assert script.role(2) != Role.LEADER, "two leaders of one term"


def probe_of_old_term() -> None:
    """A node in a newer term does not confirm the old leader's reads."""
    script = Script()
    script.lead(1)
    script.settle()
    script.isolate(1)
    script.frozen_ns[1] = script.now_ns
    script.elect(2, 3)
    script.settle(2, 3, rounds=4)
    script.propose(2, b"new")
    script.settle(2, 3, rounds=2)
    assert isinstance(script.outcomes[b"new"], Committed)
    assert script.role(1) == Role.LEADER  # nobody has told it
    script.read(1)
    group = script.groups[3]
    script.connect(1, 3)
    script.step(1)
    round_ = max(script.groups[1]._reads._rounds, default=0)
    group._receiver.handle(1, 10**6, Probe(script.groups[1]._core.term(), round_), group._now_ns)
    script.step(3)
    script.deliver(3, 1)
    script.step(1)
    assert not any(isinstance(outcome, int) for outcome in script.reads)


@pytest.mark.parametrize(
    ("scenario", "bug"),
    [
        (duplicate_append, "prefix not stripped"),
        (old_ack, "old acks counted"),
        (foreign_tail, "tail acknowledged"),
        (unsynced_ack, "answers before sync"),
        (forgotten_vote, "vote forgotten"),
        (probe_of_old_term, "read rule 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_protection_holds_and_its_absence_is_found(scenario: Callable[[], None], bug: str) -> None:
    scenario()
    with planted(bug), pytest.raises((AssertionError, Violation, Fatal)):
        scenario()
