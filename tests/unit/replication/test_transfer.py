"""Leadership transfer, and leaders that hand over by themselves."""

import msgspec
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, MembershipRefused, NotLeader, Role, TransferFailed
from nokv_replication.errors import Refused
from nokv_replication.frames import TimeoutNow


def leading(nodes: int = 3) -> Script:
    script = Script(nodes)
    script.lead(1)
    script.settle()
    return script


def transfer(script: Script, target: int | None, at: int = 1) -> list[object]:
    done: list[object] = []
    script.groups[at].transfer(target, done.append)
    return done


class TestTransfer:
    def test_leadership_passes_at_once_and_without_a_pre_vote(self) -> None:
        script = leading()
        asked = script.groups[2].counters.pre_votes_started
        done = transfer(script, 2)
        before = script.now_ns
        script.settle(rounds=6)
        assert isinstance(done[0], Committed)
        assert script.role(2) == Role.LEADER
        assert script.now_ns - before < 200 * MS_NS
        assert script.groups[2].counters.pre_votes_started == asked
        assert script.groups[1].status().transferring_to is None

    def test_the_most_caught_up_voter_is_chosen(self) -> None:
        script = leading()
        script.isolate(2)
        script.propose(1, b"x")
        script.settle(1, 3, rounds=4)
        script.connect_all()
        script.groups[1].step()
        done = transfer(script, None)
        script.settle(rounds=10)
        assert isinstance(done[0], Committed)
        assert script.role(3) == Role.LEADER

    def test_the_target_waits_for_the_whole_log(self) -> None:
        script = leading()
        script.propose(1, b"x")
        transfer(script, 2)
        script.step(1)
        bodies = [frame.body for frame in script.on_the_way(1, 2)]
        assert not any(isinstance(body, TimeoutNow) for body in bodies)
        script.settle(rounds=10)
        assert script.role(2) == Role.LEADER
        assert isinstance(script.outcomes[b"x"], Committed)

    def test_transfer_under_load_loses_nothing(self) -> None:
        script = leading()
        transfer(script, 2)
        for i in range(20):
            script.propose(1, b"%d" % i)
            script.deliver(1, 2)
            script.deliver(2, 1)
        script.settle(rounds=20)
        assert script.role(2) == Role.LEADER
        for i in range(20):
            outcome = script.outcomes[b"%d" % i]
            assert isinstance(outcome, Committed | NotLeader), outcome
            if isinstance(outcome, NotLeader):
                assert outcome.leader == 2
                script.propose(2, b"again %d" % i)
        script.settle(rounds=10)
        again = [o for payload, o in script.outcomes.items() if payload.startswith(b"again")]
        assert again
        assert all(isinstance(outcome, Committed) for outcome in again)

    def test_what_waits_goes_on_when_it_fails(self) -> None:
        script = leading()
        done = transfer(script, 2)
        script.cut(1, 2)
        script.propose(1, b"x")
        script.settle(1, 3, rounds=10)
        assert b"x" not in script.outcomes
        script.settle(1, 3, rounds=60)
        assert isinstance(done[0], TransferFailed)
        assert isinstance(script.outcomes[b"x"], Committed)
        assert script.role(1) == Role.LEADER

    def test_the_queue_is_bounded_meanwhile(self) -> None:
        config = msgspec.structs.replace(CONFIG, queue_max_proposals=3)
        script = Script(3, config=config)
        script.lead(1)
        script.settle()
        transfer(script, 2)
        script.cut(1, 2)
        for i in range(5):
            script.propose(1, b"%d" % i)
        assert sorted(script.outcomes) == [b"3", b"4"]

    def test_refusals(self) -> None:
        script = leading()
        for target in (1, 9):
            assert isinstance(transfer(script, target)[0], TransferFailed)
        assert isinstance(transfer(script, 2, at=3)[0], NotLeader)
        script.isolate(2)
        assert isinstance(transfer(script, 2)[0], TransferFailed)
        script.isolate(3)
        assert isinstance(transfer(script, None)[0], TransferFailed)

    def test_one_at_a_time_and_no_change_of_members_meanwhile(self) -> None:
        script = leading()
        transfer(script, 2)
        assert isinstance(transfer(script, 3)[0], TransferFailed)
        done: list[object] = []
        script.groups[1].remove_member(3, done.append)
        assert isinstance(done[0], Refused)

    def test_a_learner_cannot_lead(self) -> None:
        script = leading()
        script.groups[1].add_member(script.join(4), lambda _outcome: None)
        script.settle()
        assert isinstance(transfer(script, 4)[0], TransferFailed)

    def test_then_the_former_leader_can_be_removed(self) -> None:
        script = leading()
        done: list[object] = []
        script.groups[1].remove_member(1, done.append)
        assert isinstance(done[0], MembershipRefused)
        transfer(script, 2)
        script.settle(rounds=10)
        script.groups[2].remove_member(1, done.append)
        script.settle()
        assert isinstance(done[1], Committed)
        assert script.groups[1].status().removed

    def test_stopping_settles_it(self) -> None:
        script = leading()
        done = transfer(script, 2)
        script.groups[1].stop()
        assert isinstance(done[0], Refused)


class TestUnfitLeaders:
    def test_a_leader_whose_clock_is_off_hands_over(self) -> None:
        script = leading()
        script.clocks[1].wall_offset_ns += 3600 * SECOND_NS
        for i in range(120):
            leader = next((n for n in (1, 2, 3) if script.groups[n].status().leads), 1)
            script.propose(leader, b"%d" % i)
            script.settle(rounds=1)
        assert script.role(1) == Role.FOLLOWER
        assert script.groups[1].counters.handovers == 1

    def test_a_leader_whose_disk_stalls_hands_over(self) -> None:
        script = leading()
        outbox = script.groups[1]._outbox
        for _ in range(8):
            outbox._recent_syncs_ns.append(200 * MS_NS)
        script.settle(rounds=20)
        assert script.role(1) == Role.FOLLOWER
        assert script.groups[1].counters.handovers == 1

    def test_not_to_a_follower_that_is_no_faster(self) -> None:
        script = leading()
        for node in (2, 3, 1):  # the followers first, so that their answers say it
            for _ in range(8):
                script.groups[node]._outbox._recent_syncs_ns.append(200 * MS_NS)
            script.settle(rounds=10)
        assert script.groups[1].counters.handovers == 0
        assert script.role(1) == Role.LEADER

    def test_a_leader_cut_off_steps_down_and_says_so(self) -> None:
        script = leading()
        script.isolate(1)
        for _ in range(24):
            script.wait(100 * MS_NS)
            script.step(1)
        assert script.role(1) == Role.FOLLOWER
        assert "quorum" in script.groups[1].status().problem
