"""Members: configurations in the log, the guard, learners, removal, and who counts."""

import msgspec
import pytest
from pysyncobj.syncobj import SyncObj
from tests.simulation.checker import Checker
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import (
    Committed,
    HandshakeRefused,
    Member,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Role,
    Stopped,
)
from nokv_replication._pysyncobj import missing_names
from nokv_replication.errors import RemovedFromGroup
from nokv_replication.frames import ProbeOk


def leading(nodes: int = 3) -> Script:
    script = Script(nodes)
    script.lead(1)
    script.settle()
    return script


def add(script: Script, member: Member, at: int = 1) -> list[object]:
    done: list[object] = []
    script.groups[at].add_member(member, done.append)
    return done


def promote(script: Script, node: int, at: int = 1) -> list[object]:
    done: list[object] = []
    script.groups[at].promote_member(node, done.append)
    return done


def remove(script: Script, node: int, at: int = 1) -> list[object]:
    done: list[object] = []
    script.groups[at].remove_member(node, done.append)
    return done


def voters(script: Script, node: int) -> set[int]:
    return {m.node for m in script.groups[node].status().members if m.voter}


def listed(script: Script, node: int) -> set[int]:
    return {m.node for m in script.groups[node].status().members}


def with_learner() -> Script:
    script = leading()
    done = add(script, script.join(4))
    script.settle()
    assert isinstance(done[0], Committed)
    return script


def grown() -> Script:
    """Return four voters."""
    script = with_learner()
    done = promote(script, 4)
    script.settle()
    assert isinstance(done[0], Committed)
    return script


def refused(done: list[object]) -> str:
    (outcome,) = done
    assert isinstance(outcome, MembershipRefused), outcome
    return str(outcome)


class TestAdding:
    def test_a_learner_gets_everything_and_is_not_counted(self) -> None:
        script = leading()
        script.propose(1, b"before")
        done = add(script, script.join(4))
        script.settle()
        assert isinstance(done[0], Committed)
        assert script.machines[4].items == [b"before"]
        assert listed(script, 4) == {1, 2, 3, 4}
        assert voters(script, 4) == {1, 2, 3}
        script.isolate(2)
        script.isolate(3)
        script.propose(1, b"x")
        script.settle(1, 4, rounds=4)
        assert b"x" not in script.outcomes, "a learner's acknowledgement must not commit"

    def test_it_is_in_force_before_it_is_committed(self) -> None:
        script = leading()
        done = add(script, script.join(4))
        script.step(1)
        assert not done
        assert listed(script, 1) == {1, 2, 3, 4}
        assert script.peers[1][4] == "node-4:1"

    def test_a_learner_never_stands(self) -> None:
        script = with_learner()
        term = script.groups[4].status().term
        script.isolate(4)
        for _ in range(20):
            script.wait(SECOND_NS)
            script.step(4)
        assert script.groups[4].status().term == term
        assert script.groups[4].counters.pre_votes_started == 0
        assert script.groups[4].next_deadline_ns() > script.now_ns

    def test_a_node_that_joins_waits_and_says_so(self) -> None:
        script = leading()
        script.join(4)
        script.settle(rounds=100)
        status = script.groups[4].status()
        assert not status.ready
        assert "member add" in status.problem
        assert status.term == 0

    def test_numbers_addresses_and_incarnations_are_used_once(self) -> None:
        script = with_learner()
        assert "take 5" in refused(add(script, Member(4, 999, "elsewhere:1")))
        assert "address" in refused(add(script, Member(5, 999, "node-4:1")))
        assert "incarnation" in refused(add(script, Member(5, 104, "node-5:1")))
        assert "no member" in refused(add(script, Member(70_000, 999, "node-5:1")))

    def test_a_number_stays_used_after_a_removal(self) -> None:
        script = with_learner()
        remove(script, 4)
        script.settle()
        assert "was used already" in refused(add(script, Member(4, 999, "elsewhere:1")))

    def test_two_quick_changes_are_refused(self) -> None:
        script = leading()
        first = add(script, script.join(4))
        assert "another change" in refused(add(script, Member(5, 999, "node-5:1")))
        script.step(1)
        assert "another change" in refused(add(script, Member(5, 999, "node-5:1")))
        assert "another change" in refused(remove(script, 3))
        script.settle()
        assert isinstance(first[0], Committed)
        assert isinstance(add(script, Member(5, 999, "node-5:1")), list)

    def test_nothing_changes_before_the_leaders_own_entry_is_committed(self) -> None:
        script = leading()
        script.elect(2, 1, 3)
        assert not script.groups[2].status().leads
        assert "own" in refused(add(script, Member(4, 104, "node-4:1"), at=2))

    def test_only_the_leader_changes_members(self) -> None:
        script = leading()
        (outcome,) = add(script, Member(4, 104, "node-4:1"), at=2)
        assert isinstance(outcome, NotLeader)
        assert outcome.leader == 1
        script.groups[2].stop()
        assert isinstance(add(script, Member(4, 104, "node-4:1"), at=2)[0], Stopped)


class TestPromotion:
    def test_a_promoted_learner_counts(self) -> None:
        script = grown()
        assert voters(script, 4) == {1, 2, 3, 4}
        script.isolate(2)
        script.propose(1, b"x")
        script.settle(1, 3, 4, rounds=4)
        assert isinstance(script.outcomes[b"x"], Committed)
        script.isolate(3)
        script.propose(1, b"y")
        script.settle(1, 4, rounds=4)
        assert b"y" not in script.outcomes, "two of four are no majority"

    def test_one_that_lags_is_refused(self) -> None:
        script = Script(3, config=msgspec.structs.replace(CONFIG, promote_lag_entries=3))
        script.lead(1)
        script.settle()
        add(script, script.join(4))
        script.settle()
        script.isolate(4)
        for i in range(6):
            script.propose(1, b"%d" % i)
            script.settle(1, 2, 3, rounds=2)
        assert "caught up" in refused(promote(script, 4))
        script.connect_all()
        script.settle()
        promote(script, 4)
        script.settle()
        assert voters(script, 1) == {1, 2, 3, 4}

    def test_one_that_answers_a_step_late_is_promoted_under_load(self) -> None:
        """The learner holds the list it is in; entries that came since may be on their way."""
        script = with_learner()
        script.settle()
        script.propose(1, b"now")
        for node in (2, 3):
            script.deliver(1, node)
            script.deliver(node, 1)
        script.step(1)
        group = script.groups[1]
        assert group._core.match_index(4) < group._applier.applied.index
        outcomes = promote(script, 4)
        script.settle()
        assert isinstance(outcomes[0], Committed)

    def test_one_that_lacks_the_list_it_is_in_is_refused(self) -> None:
        script = Script(3)
        script.lead(1)
        script.settle()
        joiner = script.join(4)
        script.isolate(4)
        add(script, joiner)
        script.settle(1, 2, 3)
        script.propose(1, b"x")
        script.settle(1, 2, 3)
        script.connect(1, 4)
        script.groups[1]._peers[4].heard_ns = script.groups[1]._now_ns  # as if it had answered
        assert "caught up" in refused(promote(script, 4))

    def test_only_learners_are_promoted(self) -> None:
        script = with_learner()
        assert "a voter already" in refused(promote(script, 2))
        assert "no member" in refused(promote(script, 9))

    def test_a_learner_votes_before_it_knows_that_it_counts(self) -> None:
        script = with_learner()
        script.settle()
        promote(script, 4)
        script.cut(1, 4)  # the entry reaches 2 and 3, and 1 is lost
        script.settle(1, 2, 3, rounds=4)
        script.crash(1)
        script.crash(3)
        script.connect_all()
        script.start(3)
        script.connect_all()
        script.elect(2, 4, 3)
        assert voters(script, 4) == {1, 2, 3}
        script.settle(2, 3, 4)
        assert voters(script, 4) == {1, 2, 3, 4}


class TestRemoval:
    def test_the_leader_is_not_removable(self) -> None:
        assert "transfer leadership first" in refused(remove(leading(), 1))

    def test_nobody_unknown_is_removed(self) -> None:
        assert "no member" in refused(remove(leading(), 9))

    def test_a_removal_that_would_leave_no_quorum_is_refused(self) -> None:
        script = leading()
        script.isolate(3)
        script.settle(1, 2, rounds=100)
        assert "could not commit" in refused(remove(script, 2))
        (outcome,) = remove(script, 3) or [None]
        assert outcome is None
        script.settle(1, 2)
        assert voters(script, 1) == {1, 2}

    def test_a_removed_node_learns_it_and_disturbs_nobody(self) -> None:
        script = leading()
        term = script.groups[1].status().term
        done = remove(script, 3)
        script.settle(rounds=300)
        assert isinstance(done[0], Committed)
        assert script.groups[3].status().removed
        assert "was removed" in script.groups[3].status().problem
        assert script.groups[1].status().term == term
        assert script.role(1) == Role.LEADER
        script.isolate(3)
        script.wait(5 * SECOND_NS)
        script.step(3)
        assert script.role(3) == Role.FOLLOWER

    def test_a_removed_node_that_missed_it_is_told(self) -> None:
        script = leading()
        script.isolate(3)
        remove(script, 3)
        script.settle(1, 2)
        with pytest.raises(RemovedFromGroup):
            script.groups[3].greet(_refusal(script, 1, 3))
        assert script.groups[3].status().removed
        term = script.groups[3].status().term
        script.settle(3, rounds=300)
        assert script.groups[3].status().term == term

    def test_votes_and_confirmations_of_removed_nodes_do_not_count(self) -> None:
        script = leading()
        remove(script, 3)
        script.settle(1, 2, rounds=10)
        script.isolate(2)
        script.read(1)
        group = script.groups[1]
        group._receiver.handle(
            3, 1 << 40, ProbeOk(group.status().term, group._reads._nonce), group._now_ns
        )
        script.step(1)
        assert not script.reads

    def test_a_removed_leader_of_old_is_replaced_by_a_new_identity(self) -> None:
        script = leading()
        script.crash(3)
        remove(script, 3)
        script.settle(1, 2)
        add(script, script.join(4))
        script.settle(1, 2, 4)
        promote(script, 4)
        script.settle(1, 2, 4)
        assert voters(script, 4) == {1, 2, 4}
        script.crash(1)
        script.elect(2, 4)
        script.settle(2, 4)
        script.propose(2, b"x")
        script.settle(2, 4)
        assert isinstance(script.outcomes[b"x"], Committed)


def _refusal(script: Script, at: int, of: int) -> bytes:
    """Return what a node answers the hello of another with when it refuses it."""
    try:
        script.groups[at].greet(script.groups[of].hello(999))
    except HandshakeRefused as refusal:
        return msgspec.msgpack.encode(str(refusal))
    pytest.fail("the hello was accepted")


class TestRollback:
    def test_a_configuration_that_is_truncated_is_out_of_force(self) -> None:
        script = leading(5)
        done = remove(script, 5)
        script.step(1)
        for peer in (3, 4, 5):
            script.cut(1, peer)
        script.deliver(1, 2)
        assert voters(script, 1) == voters(script, 2) == {1, 2, 3, 4}
        script.isolate(1)
        script.elect(3, 4, 5)
        script.connect_all()
        script.settle()
        assert isinstance(done[0], OutcomeUnknown)
        for node in (1, 2, 3, 4, 5):
            assert voters(script, node) == {1, 2, 3, 4, 5}
        assert script.peers[2][5] == "node-5:1"

    def test_a_node_restarts_with_an_uncommitted_configuration_in_force(self) -> None:
        script = leading(5)
        remove(script, 5)
        script.step(1)
        script.crash(1)
        script.start(1)
        assert voters(script, 1) == {1, 2, 3, 4}

    def test_a_configuration_survives_in_the_state(self) -> None:
        script = grown()
        script.wait(SECOND_NS)
        script.settle()
        for node in (1, 4):
            script.crash(node, power=True)
            script.start(node)
            assert voters(script, node) == {1, 2, 3, 4}
            script.connect_all()
            script.settle()

    def test_an_uncommitted_removal_does_not_refuse_its_successor(self) -> None:
        script = leading(5)
        remove(script, 5)
        script.step(1)
        script.deliver(1, 2)
        script.isolate(1)
        assert voters(script, 2) == {1, 2, 3, 4}
        script.cut(2, 5)
        script.connect(2, 5)  # raises if node 2 takes the removal for final


class TestStrangers:
    def test_a_wiped_member_is_a_stranger(self) -> None:
        script = with_learner()
        script.crash(4)
        script.checker = Checker()  # a wiped node breaks what the checker knows of it
        script.join(4, incarnation=9_999)
        assert (1, 4) not in script.links
        with pytest.raises(HandshakeRefused, match="another incarnation"):
            script.groups[1].greet(script.groups[4].hello(77))

    def test_a_lagging_node_is_led_by_one_it_does_not_know(self) -> None:
        script = leading()
        script.isolate(2)
        add(script, script.join(4))
        for peer in (1, 3, 4):
            script.cut(2, peer)
        script.settle(1, 3, 4)
        promote(script, 4)
        script.settle(1, 3, 4)
        script.crash(1)
        assert voters(script, 2) == {1, 2, 3}
        script.connect_all()
        script.elect(4, 3, 2)
        script.settle(2, 3, 4)
        assert voters(script, 2) == {1, 2, 3, 4}
        assert script.groups[2].status().leader == 4

    def test_visitors_are_bounded(self) -> None:
        script = leading()
        for node in range(10, 19):
            script.join(node)
        script.join(19)
        with pytest.raises(HandshakeRefused, match="too many"):
            script.connect(1, 19)

    def test_who_joins_gives_no_vote(self) -> None:
        script = leading()
        script.join(4)
        script.crash(3)
        script.crash(2)
        script.wait(3 * SECOND_NS)
        for _ in range(50):
            script.wait(100 * MS_NS)
            for node in (1, 4):
                script.step(node)
            script.deliver(1, 4)
            script.deliver(4, 1)
        assert script.role(1) == Role.FOLLOWER
        assert script.groups[4].status().term == 0


def test_a_library_without_a_name_that_is_relied_on_is_refused() -> None:
    class Changed:
        def __init__(self) -> None:
            self._SyncObj__raftState = 0

    missing = missing_names(Changed)
    assert "__otherNodes" in missing
    assert "__sendAppendEntries" in missing
    assert "__raftState" not in missing
    assert missing_names(SyncObj) == []
