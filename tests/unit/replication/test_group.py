"""`Group` under a scheduler that is the test: requests, roles, reads, times, start rules."""

from collections.abc import Iterator, Sequence

import msgspec
import pytest
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import (
    Applied,
    Committed,
    ConfigurationError,
    DiskFailed,
    Diverged,
    GroupConfig,
    Members,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Role,
    StartRefused,
    Stopped,
    Times,
    TooFarBehind,
    TooLarge,
)
from nokv_replication.errors import LogDamaged, ProtocolError
from nokv_replication.frames import Ack, Append, Frame, TooFar, encode


def leading(nodes: int = 3, config: GroupConfig = CONFIG) -> Script:
    script = Script(nodes, config=config)
    script.lead(1)
    script.settle()
    return script


def entry_sizes(script: Script) -> list[int]:
    """Return the number of payloads of each applied entry."""
    return [len(script.checker.applied[i].payloads) for i in sorted(script.checker.applied)]


def results(done: list[object]) -> list[object]:
    """What the outcomes hold; an error stands for itself."""
    return [getattr(outcome, "result", outcome) for outcome in done]


class TestProposals:
    def test_the_first_entry_is_the_list_of_members(self) -> None:
        script = leading()
        status = script.groups[1].status()
        assert {m.node: m.address for m in status.members} == script.addresses
        members = msgspec.msgpack.decode(script.checker.applied[2].config, type=Members)
        assert [m.incarnation for m in members.members] == [101, 102, 103]

    def test_what_arrives_in_a_step_is_one_entry(self) -> None:
        script = leading()
        done: list[object] = []
        for i in range(50):
            script.groups[1].propose(b"%d" % i, done.append)
        script.settle(rounds=3)
        assert entry_sizes(script)[-1] == 50
        assert results(done) == [b"%d" % (i + 1) for i in range(50)]

    def test_a_single_command_needs_no_timer(self) -> None:
        script = leading()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert isinstance(script.outcomes[b"x"], Committed)

    def test_a_follower_names_the_leader(self) -> None:
        script = leading()
        script.propose(2, b"x")
        outcome = script.outcomes[b"x"]
        assert isinstance(outcome, NotLeader)
        assert outcome.leader == 1

    def test_too_large_is_refused_and_the_largest_fits(self) -> None:
        script = leading(config=msgspec.structs.replace(CONFIG, entry_max_bytes=1000))
        script.propose(1, bytes(1000))
        assert isinstance(script.outcomes[bytes(1000)], TooLarge)
        largest = bytes(1000 - 69)
        script.propose(1, largest)
        script.settle(rounds=3)
        assert isinstance(script.outcomes[largest], Committed)

    def test_a_full_queue_is_refused_and_drains(self) -> None:
        script = leading(config=msgspec.structs.replace(CONFIG, queue_max_proposals=3))
        script.isolate(2)
        script.isolate(3)
        for i in range(5):
            script.propose(1, b"%d" % i)
        assert sorted(script.outcomes) == [b"3", b"4"]
        assert all(isinstance(o, Overloaded) for o in script.outcomes.values())

    def test_more_than_an_entry_holds_goes_out_in_order(self) -> None:
        script = leading(config=msgspec.structs.replace(CONFIG, entry_max_bytes=1000))
        done: list[object] = []
        for i in range(10):
            script.groups[1].propose(b"%d" % i + bytes(300), done.append)
        script.settle(rounds=6)
        assert entry_sizes(script)[-4:] == [2, 3, 3, 2] or sum(entry_sizes(script)) == 10
        assert results(done) == [b"%d" % (i + 1) for i in range(10)]

    def test_a_deposed_leader_does_not_know(self) -> None:
        script = leading()
        script.isolate(1)
        script.propose(1, b"x")
        script.elect(2, 3)
        script.settle(2, 3, rounds=4)
        script.wait(3 * SECOND_NS)
        script.step(1)
        assert isinstance(script.outcomes[b"x"], OutcomeUnknown)
        assert script.role(1) == Role.FOLLOWER

    def test_one_node_needs_nobody(self) -> None:
        script = Script(1)
        script.wait(2 * SECOND_NS)
        for _ in range(6):
            script.step(1)
        script.propose(1, b"x")
        script.step(1)
        assert isinstance(script.outcomes[b"x"], Committed)

    def test_stop_settles_everything_and_commits(self) -> None:
        script = leading()
        script.isolate(1)
        script.propose(1, b"appended")
        script.groups[1].propose(b"queued", lambda o: script.outcomes.update({b"queued": o}))
        script.read(1)
        script.groups[1].stop()
        assert isinstance(script.outcomes[b"appended"], OutcomeUnknown)
        assert isinstance(script.outcomes[b"queued"], Stopped | OutcomeUnknown)
        assert isinstance(script.reads[-1], Stopped)
        assert script.storages[1].applied.index == 2


class TestElections:
    def test_an_isolated_leader_steps_down(self) -> None:
        script = leading()
        script.isolate(1)
        for _ in range(24):
            script.wait(100 * MS_NS)
            script.step(1)
        assert script.role(1) == Role.FOLLOWER

    def test_a_node_that_was_cut_off_returns_without_deposing_anybody(self) -> None:
        script = leading()
        term = script.groups[1]._core.term()
        script.cut(1, 3)  # node 3 still reaches node 2
        script.settle(rounds=500)
        script.connect(1, 3)
        script.settle(rounds=50)
        assert script.role(1) == Role.LEADER
        assert script.groups[3]._core.term() == term

    def test_a_newer_term_is_learnt_from_a_refusal(self) -> None:
        script = leading()
        script.isolate(3)
        script.groups[3]._core.adopt_term(9)
        script.connect_all()
        script.settle(rounds=200)
        assert len({g._core.term() for g in script.groups.values()}) == 1
        assert script.groups[1]._core.term() > 9
        assert any(script.role(n) == Role.LEADER for n in script.groups)

    def test_no_node_votes_before_it_knows_all_members(self) -> None:
        script = Script(3, found=False)
        script.connect(1, 2)
        for _ in range(100):
            script.wait(100 * MS_NS)
            for node in (1, 2):
                script.step(node)
            script.deliver(1, 2)
            script.deliver(2, 1)
        assert {g._core.term() for g in script.groups.values()} == {0}
        assert not script.groups[1].status().ready
        assert "first members" in script.groups[1].status().problem
        script.connect_all()
        script.settle(rounds=200)
        assert any(g.status().leads for g in script.groups.values())


class TestReads:
    def test_one_probe_serves_all_that_arrived(self) -> None:
        script = leading()
        before = script.groups[1].counters.read_probes
        results: list[object] = []
        for _ in range(10):
            script.groups[1].read_index(results.append)
        script.step(1)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert results == [2] * 10
        assert script.groups[1].counters.read_probes == before + 1

    def test_a_follower_reads_what_was_acknowledged_before(self) -> None:
        script = leading()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)  # committed; node 3 has not even seen it
        script.read(3)
        script.settle(rounds=4)
        assert script.reads == [3]
        assert script.machines[3].items == [b"x"]

    def test_a_read_without_a_leader_is_refused(self) -> None:
        script = Script()
        script.read(2)
        assert isinstance(script.reads[0], NotLeader)

    def test_an_unanswered_question_expires(self) -> None:
        script = leading()
        script.read(2)
        script.links[2, 1].clear()
        script.wait(2 * SECOND_NS)
        script.step(2)
        assert isinstance(script.reads[0], NotLeader)

    def test_a_lost_probe_is_repeated(self) -> None:
        script = leading()
        script.read(1)
        script.links[1, 2].clear()
        script.links[1, 3].clear()
        script.wait(150 * MS_NS)
        script.step(1)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert script.reads == [2]

    def test_too_many_reads_are_refused(self) -> None:
        script = leading(config=msgspec.structs.replace(CONFIG, reads_max=2))
        for _ in range(3):
            script.read(1)
        assert isinstance(script.reads[0], Overloaded)


class Slow:
    """A machine whose every payload takes a while, by the node's own clock."""

    def __init__(self, script: Script, node: int) -> None:
        self.inner_apply = script.machines[node].apply
        self.script = script
        self.pulled = 0

    def apply(self, applied: Applied, times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        for result in self.inner_apply(applied, times, payloads):
            self.pulled += 1
            self.script.wait(5 * MS_NS)
            self.script.clocks[1].enter(self.script.now_ns)
            yield result


class TestApply:
    def test_a_long_entry_is_applied_in_slices(self) -> None:
        script = leading()
        group = script.groups[1]
        slow = Slow(script, 1)
        group._applier._machine._inner.apply = slow.apply  # type: ignore[attr-defined]
        done: list[object] = []
        for i in range(100):
            group.propose(b"%d" % i, done.append)
        script.step(1)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert 0 < slow.pulled < 100
        assert len(done) == slow.pulled
        assert not group._applier.between_entries
        assert group.next_deadline_ns() <= script.now_ns
        script.read(1)
        assert script.reads == []
        for _ in range(20):
            script.step(1)
            script.deliver(1, 2)
            script.deliver(2, 1)
        assert len(done) == 100
        assert script.reads == [3]

    def test_the_machine_commits_and_the_log_is_cut_behind_it(self) -> None:
        config = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=0)
        script = leading(config=config)
        for i in range(60):
            script.propose(1, b"%d" % i)
            script.settle(rounds=2)
        script.settle(rounds=60)
        for node, group in script.groups.items():
            assert group.status().durable_index == 62
            assert group._log.base_index <= script.storages[node].applied.index
            assert group.counters.segments_dropped > 0

    def test_an_exception_of_the_machine_is_final(self) -> None:
        script = leading()

        def broken(*_args: object) -> Iterator[bytes]:
            message = "the map is full"
            raise MemoryError(message)
            yield b""

        script.groups[1]._applier._machine._inner.apply = broken  # type: ignore[attr-defined]
        script.propose(1, b"x")
        script.deliver(1, 2)
        with pytest.raises(MemoryError):
            script.deliver(2, 1)
        with pytest.raises(AssertionError, match="failed"):
            script.groups[1].step()

    def test_a_follower_that_differs_stops(self) -> None:
        script = leading()
        script.machines[2]._hash = b"other"
        script.propose(1, b"x")
        with pytest.raises(Diverged, match="differ from the leader"):
            script.settle(rounds=20)


class TestTimes:
    def test_a_waiting_machine_is_ticked(self) -> None:
        config = msgspec.structs.replace(CONFIG, tick_interval_ns=SECOND_NS)
        script = leading(config=config)
        before = script.groups[1]._log.last_index
        script.settle(rounds=100)
        assert script.groups[1]._log.last_index == before
        script.groups[1].set_waiting(True)
        script.settle(rounds=500)
        ticks = script.groups[1]._log.last_index - before
        assert 8 <= ticks <= 11
        cluster_ns = [e.times.cluster_ns for _, e in sorted(script.checker.applied.items())]
        assert cluster_ns == sorted(cluster_ns)
        assert cluster_ns[-1] > 8 * SECOND_NS

    def test_a_leader_in_another_year_stamps_its_peers_time(self) -> None:
        script = leading()
        script.clocks[1].wall_offset_ns = 15 * 365 * 86_400 * SECOND_NS
        script.propose(1, b"x")
        script.settle(rounds=3)
        at = script.checker.where[b"x"]
        assert script.checker.applied[at].times.wall_ns <= script.now_ns + 10 * SECOND_NS
        assert "clock" in script.groups[1].status().problem
        assert script.groups[1].status().counters.wall_clamped > 0


class TestReplication:
    def test_a_follower_that_was_away_catches_up(self) -> None:
        config = msgspec.structs.replace(CONFIG, batch_bytes=500, inflight_bytes=2000)
        script = leading(config=config)
        script.isolate(3)
        for i in range(100):
            script.propose(1, b"%d" % i + bytes(200))
            script.settle(1, 2, rounds=1)
        script.connect_all()
        script.settle(rounds=60)
        assert script.log(3) == script.log(1)
        assert script.groups[1].counters.window_full > 0

    def test_members_hear_of_a_commit_long_before_the_heartbeat(self) -> None:
        script = leading()
        leader, follower = script.groups[1], script.groups[2]
        script.settle(rounds=20)
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        applied = leader.status().applied_index
        assert follower.status().applied_index == applied - 1
        assert leader.next_deadline_ns() <= script.now_ns + 5 * MS_NS
        assert script.on_the_way(1, 2) == []
        script.wait(5 * MS_NS)
        script.step(1)
        [told] = script.on_the_way(1, 2)
        assert isinstance(told.body, Append)
        assert told.body.entries == []
        script.deliver(1, 2)
        assert follower.status().applied_index == applied
        script.deliver(2, 1)
        assert leader.next_deadline_ns() > script.now_ns + 50 * MS_NS

    def test_an_entry_that_follows_tells_of_the_commit_for_nothing(self) -> None:
        script = leading()
        script.settle(rounds=20)
        bare = 0
        for i in range(50):
            script.propose(1, b"%d" % i)
            frames = [frame.body for frame in script.on_the_way(1, 2)]
            bare += sum(isinstance(body, Append) and not body.entries for body in frames)
            for node in (2, 3):
                script.deliver(1, node)
                script.deliver(node, 1)
            script.wait(4 * MS_NS)
        assert bare <= 3  # the heartbeats of 200 ms

    def test_a_conflicting_tail_is_replaced_in_a_few_round_trips(self) -> None:
        config = msgspec.structs.replace(CONFIG, batch_bytes=1000)
        script = leading(config=config)
        script.isolate(1)
        for i in range(3):
            script.propose(1, b"tail%d" % i)
        script.elect(2, 3)
        script.settle(2, 3, rounds=6)
        for i in range(100):
            script.propose(2, b"%d" % i + bytes(1000))
            script.settle(2, 3, rounds=1)
        script.connect_all()
        script.settle(rounds=30)
        assert script.log(1) == script.log(2)

    def test_a_node_too_far_behind_says_so_and_serves_nothing(self) -> None:
        config = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=0)
        script = leading(config=config)
        script.isolate(3)
        for i in range(60):
            script.propose(1, b"%d" % i)
            script.settle(1, 2, rounds=2)
        script.settle(1, 2, rounds=60)
        script.images_fail = True
        script.connect_all()
        script.settle(rounds=30)
        assert "waits for a state image" in script.groups[3].status().problem
        assert script.groups[3].status().applied_index == 2
        script.read(3)
        script.settle(rounds=10)
        assert isinstance(script.reads[0], TooFarBehind)
        # The leader neither spins nor floods: at most two frames a heartbeat.
        script.links[1, 3].clear()
        script.wait(100 * MS_NS)
        script.step(1)
        script.step(1)
        frames = script.on_the_way(1, 3)
        assert len(frames) <= 2
        assert any(isinstance(frame.body, TooFar | Append) for frame in frames)

    def test_a_node_that_holds_more_than_it_knows_to_be_committed_goes_on(self) -> None:
        config = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=0)
        script = leading(config=config)
        for i in range(60):
            script.propose(1, b"%d" % i)
        script.deliver(1, 3)  # node 3 stores them all, and hears of no commit
        script.isolate(3)
        script.settle(1, 2, rounds=100)
        base = script.groups[1]._log.base_index
        assert script.groups[3]._core.commit_index() < base < script.groups[3]._log.last_index
        script.connect_all()
        script.settle(rounds=30)
        assert script.groups[3].status().applied_index == 62
        assert script.groups[3].status().problem == ""

    def test_a_follower_without_space_stores_nothing_and_stays(self) -> None:
        script = leading()
        script.groups[3].set_accepting(False)
        last = script.groups[3]._log.last_index
        for i in range(5):
            script.propose(1, b"%d" % i)
            script.settle(rounds=2)
        assert len(script.checker.acked) == 5
        assert script.groups[3]._log.last_index == last
        script.groups[3].set_accepting(True)
        script.settle(rounds=100)
        assert script.log(3) == script.log(1)

    def test_acknowledgements_carry_position_clock_and_space(self) -> None:
        script = leading()
        script.propose(1, b"x")
        script.deliver(1, 2)
        ack = next(f.body for f in script.on_the_way(2, 1) if isinstance(f.body, Ack))
        assert ack.applied_index == 2
        assert ack.free_bytes >= script.disks[2].free
        assert ack.wall_ns == script.now_ns
        script.settle(rounds=30)
        peer = script.groups[1].status().peers[0]
        assert (peer.node, peer.applied_index, peer.lag_entries) == (2, 3, 0)

    def test_foreign_frames_cost_the_connection_only(self) -> None:
        script = leading()
        group, epoch = script.groups[1], script.groups[1]._peers[2].epoch
        body = Ack(1, 1, True, False, 1, 0, b"", 0, 0)
        for frame in (
            Frame(3, epoch, 10**6, body),
            Frame(2, epoch + 1, 10**6, body),
            Frame(2, epoch, 1, body),
        ):
            with pytest.raises(ProtocolError):
                group.receive(2, encode(frame))
        script.propose(1, b"x")
        script.settle(rounds=3)
        assert isinstance(script.outcomes[b"x"], Committed)


class TestStart:
    def test_a_restarted_group_goes_on(self) -> None:
        script = leading()
        script.propose(1, b"x")
        script.settle(rounds=60)
        for node in list(script.groups):
            script.crash(node, power=True)
        for node in script.addresses:
            script.start(node)
        script.connect_all()
        script.settle(rounds=200)
        leader = next(n for n, g in script.groups.items() if g.status().leads)
        script.propose(leader, b"y")
        script.settle(rounds=20)
        assert all(m.items == [b"x", b"y"] for m in script.machines.values())

    def test_a_state_older_than_the_log_is_refused(self) -> None:
        config = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=0)
        script = leading(config=config)
        for i in range(60):
            script.propose(1, b"%d" % i)
            script.settle(rounds=2)
        script.settle(rounds=60)
        script.crash(2)
        script.storages[2].applied = Applied()
        with pytest.raises(StartRefused, match="the entries between are gone"):
            script.start(2)

    def test_a_log_that_lost_its_tail_is_refused(self) -> None:
        script = leading()
        script.isolate(2)
        for i in range(5):
            script.propose(1, b"%d" % i)
            script.settle(1, 3, rounds=1)
        script.settle(1, 3, rounds=60)
        script.crash(2)
        script.storages[2].items = list(script.storages[1].items)
        script.storages[2].count = script.storages[1].count
        script.storages[2].applied = script.storages[1].applied
        script.storages[2].hash = script.storages[1].hash
        with pytest.raises(LogDamaged, match="lost its tail"):
            script.start(2)

    def test_a_state_of_another_group_is_refused(self) -> None:
        script = leading()
        script.settle(rounds=60)
        script.crash(2)
        other = msgspec.msgpack.decode(script.storages[2].applied.config, type=Members)
        members = tuple(
            msgspec.structs.replace(member, incarnation=7000 + member.node)
            for member in other.members
        )
        config = msgspec.msgpack.encode(Members(members))
        applied = msgspec.structs.replace(script.storages[2].applied, config=config)
        script.storages[2].applied = applied
        with pytest.raises(StartRefused, match="other members"):
            script.start(2)

    def test_a_configuration_without_this_node_is_refused(self) -> None:
        script = Script(3, found=False)
        script.crash(2)
        script.founders = {1: "a:1", 3: "c:1"}
        with pytest.raises(ConfigurationError, match="not among the members"):
            script.start(2)

    def test_a_configuration_with_other_founders_is_refused(self) -> None:
        script = leading()
        script.crash(2)
        script.founders = {**script.founders, 4: "d:1"}
        with pytest.raises(StartRefused, match="founded by nodes"):
            script.start(2)

    def test_a_failed_sync_ends_the_group_before_anything_left(self) -> None:
        script = leading()
        script.disks[2].fail_at("fdatasync")
        script.propose(1, b"x")
        with pytest.raises(DiskFailed):
            script.deliver(1, 2)
        assert script.on_the_way(2, 1) == []

    def test_an_entry_of_a_newer_format_stops_the_node_before_it_applies(self) -> None:
        script = leading()
        log = script.groups[1]._log
        log.append(msgspec.msgpack.encode([2, 0, 0, [], 0]), log.last_index + 1, log.last_term)
        with pytest.raises(LogDamaged, match="run the build that wrote it"):
            script.settle(rounds=20)
