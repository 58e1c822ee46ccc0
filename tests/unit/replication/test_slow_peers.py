"""A slow follower slows nobody, and no wait of a leader becomes a loop of steps that do nothing."""

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from tests.regressions.group import committed, led
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, GroupConfig, MembershipRefused
from nokv_replication.frames import ENTRIES_MAX_BYTES, Append, decode_frame
from nokv_replication.log import Log

SMALL = msgspec.structs.replace(
    CONFIG, inflight_bytes=64 << 10, cache_bytes=32 << 10, batch_bytes=8 << 10
)
PAYLOAD_BYTES = 1000


def payloads(count: int) -> list[bytes]:
    return [b"%d." % number + bytes(PAYLOAD_BYTES) for number in range(count)]


def rounds_to_commit(script: Script, payload: bytes) -> int:
    """Return how often node 1 and node 2 must step in turn before the client has its answer."""
    script.propose(1, payload)
    for rounds in range(1, 10):
        script.deliver(1, 2)
        script.deliver(2, 1)
        if committed(script, payload):
            return rounds
    raise AssertionError("it is not committed")


class TestSlowFollower:
    def test_a_stalled_follower_delays_no_commit(self) -> None:
        """Node 3 reads nothing for a thousand entries; each commits in as many steps as before."""
        script = led(config=SMALL)
        first, *rest = payloads(1000)
        healthy = rounds_to_commit(script, first)
        script.deliver(1, 3)
        script.deliver(3, 1)
        steps = script.groups[1].counters.steps
        rounds = [rounds_to_commit(script, payload) for payload in rest]
        assert set(rounds) == {healthy}
        assert script.groups[1].counters.steps - steps == 2 * len(rest) * healthy

    def test_what_a_leader_holds_for_it_is_bounded(self) -> None:
        script = led(config=SMALL)
        group = script.groups[1]
        for payload in payloads(1000):
            rounds_to_commit(script, payload)
        peer = group._peers[3]
        limit = SMALL.inflight_bytes + ENTRIES_MAX_BYTES
        assert SMALL.inflight_bytes <= peer.inflight_bytes < limit
        sent = sum(len(frame) for frame in script.links[1, 3])
        assert sent < limit + 100 * len(script.links[1, 3])  # with the frames' own fields
        assert group.counters.window_full > 0
        assert not group._outbox._early
        assert not group._outbox._late
        assert group._log._cache_bytes <= SMALL.cache_bytes

    def test_catching_up_takes_bounded_work_a_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Node 3 lacks four times what may be on its way; no step reads or sends more than that."""
        script = led(config=SMALL)
        script.isolate(3)
        for payload in payloads(400):
            rounds_to_commit(script, payload)
        group = script.groups[1]
        reads, sends = Counter[int](), Counter[int]()
        entry, send = Log.entry, group._network.send

        def reading(log: Log, index: int) -> bytes:
            command = entry(log, index)
            if log is group._log:
                reads[group.counters.steps] += len(command)
            return command

        def sending(peer: int, frame: bytes) -> None:
            sends[group.counters.steps] += len(frame)
            send(peer, frame)

        monkeypatch.setattr(Log, "entry", reading)
        monkeypatch.setattr(group._network, "send", sending, raising=False)
        script.connect(1, 3)
        for _ in range(2000):
            script.wait(5 * MS_NS)
            script.step(1)
            script.deliver(1, 2)
            script.deliver(2, 1)
            script.deliver(1, 3, 1)
            script.deliver(3, 1)
            if script.groups[3]._log.last_index == group._log.last_index:
                break
        assert script.groups[3]._log.last_index == group._log.last_index
        assert sum(sends.values()) > 4 * SMALL.inflight_bytes
        # One frame more than the window fits, and a batch that was read for it.
        assert max(sends.values()) <= SMALL.inflight_bytes + 2 * SMALL.batch_bytes
        assert max(reads.values()) <= 2 * SMALL.inflight_bytes + 4 * SMALL.batch_bytes


def outcome_of(call: Callable[[int, Callable[[object], None]], None], node: int) -> list[object]:
    done: list[object] = []
    call(node, done.append)
    return done


def with_learner(
    voters: int, *, lag: int = CONFIG.promote_lag_entries, config: GroupConfig = CONFIG
) -> Script:
    """Node 1 leads the voters; one more node is a learner that has everything."""
    script = led(voters, config=msgspec.structs.replace(config, promote_lag_entries=lag))
    done: list[object] = []
    script.groups[1].add_member(script.join(voters + 1), done.append)
    script.settle()
    assert isinstance(done[0], Committed)
    return script


class TestNoSpin:
    def asks_for_a_step_later(self, script: Script, node: int = 1) -> bool:
        return script.groups[node].next_deadline_ns() > script.clocks[node].monotonic_ns()

    def test_a_tick_that_is_due_while_leadership_is_handed_over(self) -> None:
        script = led()
        group = script.groups[1]
        group.set_waiting(True)
        script.wait(100 * MS_NS)
        script.settle(rounds=2)
        # The target hears nothing, so that the transfer lasts.
        assert not outcome_of(group.transfer, 2)
        script.cut(1, 2)
        group._leadership._last_append_ns = -SECOND_NS * 1000
        script.step(1)
        assert group._transfer.target == 2
        due = group._leadership.tick_due_ns()
        assert due is not None
        assert due <= group._now_ns
        script.deliver(1, 3)
        script.deliver(3, 1)
        assert self.asks_for_a_step_later(script)

    def test_clocks_that_left_with_a_removed_member(self) -> None:
        """Node 3 was heard as a learner only: with node 2 goes the one clock of a voter."""
        script = with_learner(2)
        group = script.groups[1]
        promoted = outcome_of(group.promote_member, 3)
        script.step(1)
        script.deliver(1, 2)
        script.deliver(2, 1)
        script.deliver(1, 3)  # it has the entry; its answers stay on their way
        script.step(1)
        assert isinstance(promoted[0], Committed)
        removed = outcome_of(group.remove_member, 2)
        script.step(1)
        assert not removed, "it is on its way"
        assert not group._timekeeper.hears(group._configurations.quorum)
        script.propose(1, b"x")
        assert self.asks_for_a_step_later(script)
        script.settle()
        assert committed(script, b"x")
        assert isinstance(removed[0], Committed)


class TestPromotion:
    def test_a_learner_with_an_empty_log_is_not_promoted(self) -> None:
        """It answers, and few entries are all there are. But it would vote for nobody."""
        script = led()
        script.join(4)
        group = script.groups[1]
        member = msgspec.structs.replace(group.members[0], node=4, incarnation=104, address="d:1")
        added: list[object] = []
        group.add_member(member, added.append)
        script.settle(1, 2, 3, rounds=4)
        assert isinstance(added[0], Committed)
        script.deliver(1, 4, 1)
        script.deliver(4, 1)
        assert group._changes._is_active(4, group._now_ns)
        assert script.groups[4]._log.last_index == 0
        (refusal,) = outcome_of(group.promote_member, 4)
        assert isinstance(refusal, MembershipRefused)
        assert "caught up" in str(refusal)
        script.settle()
        done = outcome_of(group.promote_member, 4)
        script.settle()
        assert isinstance(done[0], Committed)

    def test_a_learner_a_batch_behind_is_promoted(self) -> None:
        """Under load it is never at the end; what it must hold is the list that it is in."""
        script = with_learner(3)
        group = script.groups[1]
        for number in range(3):
            script.propose(1, b"%d" % number)
            script.deliver(1, 2)
            script.deliver(2, 1)
        assert group._core.match_index(4) < group._applier.applied.index
        done = outcome_of(group.promote_member, 4)
        script.settle()
        assert isinstance(done[0], Committed)


class TestCommitIndex:
    @pytest.mark.parametrize("voters", [1, 2, 3])
    def test_a_leader_announces_only_what_it_has_synced(
        self, voters: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A single voter commits what it appends at once, its learner must not be told before."""
        announced = 0
        script = with_learner(voters)
        sent = script.groups[1]._network.send

        def send(peer: int, frame: bytes) -> None:
            nonlocal announced
            sent(peer, frame)
            body = script.on_the_way(1, peer)[-1].body
            if isinstance(body, Append):
                announced += 1
                assert body.commit_index <= script.groups[1]._log.synced_index

        def watch() -> None:
            monkeypatch.setattr(script.groups[1]._network, "send", send, raising=False)

        watch()
        for number in range(5):
            script.propose(1, b"%d" % number)
            script.settle(rounds=2)
        script.crash(1, power=True)
        script.start(1)
        sent = script.groups[1]._network.send
        watch()
        script.connect_all()
        script.wait(2 * SECOND_NS)
        script.settle(rounds=200)
        leader = next(n for n in script.groups if script.groups[n].status().leads)
        script.propose(leader, b"after")
        script.settle()
        assert committed(script, b"after")
        assert announced > 10

    def test_a_first_entry_in_a_new_segment_is_not_announced_before_its_sync(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The vote before it is durable then, with the full segment: its appends need not wait."""
        script = with_learner(1, config=msgspec.structs.replace(CONFIG, segment_bytes=2048))
        group = script.groups[1]
        sent, log = group._network.send, group._log
        split = 0

        def send(peer: int, frame: bytes) -> None:
            nonlocal split
            body = decode_frame(frame).body
            if isinstance(body, Append):
                split += log.term_is_durable and log.synced_index < log.last_index
                assert body.commit_index <= log.synced_index
            sent(peer, frame)

        monkeypatch.setattr(group._network, "send", send, raising=False)
        for _ in range(60):
            group._core.adopt_term(group._core.term() + 1)
            script.elect(1)
            script.settle(rounds=2)
        assert split > 0
