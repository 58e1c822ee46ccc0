"""Membership and leadership as shipped."""

from pathlib import Path

import pytest
from tests.regressions.group import bodies, committed, led, replay
from tests.regressions.stock import StockCluster, library
from tests.simulation.ports import MS_NS, SECOND_NS

from nokv_replication import Member, MembershipRefused, Role
from nokv_replication.frames import Ack

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def learner(node: int) -> Member:
    return Member(node, 100 + node, f"node-{node}:1", voter=False)


class TestTwoChangesAtOnceSplitTheCluster:
    """The guard that allows one change at a time is never armed: two additions in a row make two
    majorities that share no node, and both commit at the same index.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A", "ABC", dynamicMembershipChange=True)
        for name in "DE":
            cluster.start(name, [other for other in "ABCDE" if other != name])
        cluster.isolate("A")
        for name in "DE":
            cluster["A"].addNodeToCluster(library.Node(name))
        cluster.tick("A")
        cluster.connect("A", "D")
        cluster.connect("A", "E")
        cluster.settle("ADE", rounds=6)
        cluster.put("A", "left")
        cluster.settle("ADE", rounds=6)
        cluster.elect("B", "C")
        cluster.settle("BC", rounds=3)
        cluster.put("B", "right")
        cluster.settle("BC", rounds=6)
        assert cluster.succeeded("left")
        assert cluster.succeeded("right")
        assert cluster["A"].applied == ["left"]
        assert cluster["B"].applied == ["right"]

    def test_group(self) -> None:
        script = led()
        script.isolate(1)
        told: list[object] = []
        for node in (4, 5):
            script.groups[1].add_member(learner(node), told.append)
            script.step(1)
        assert [type(outcome) for outcome in told] == [MembershipRefused]
        script.propose(1, b"left")
        script.elect(2, 3)
        script.settle(2, 3)
        script.propose(2, b"right")
        script.settle(2, 3)
        assert committed(script, b"right")
        assert not committed(script, b"left")


class TestConfigurationInTheLogIsForgottenAtARestart:
    """After a restart an uncommitted configuration of the log is not in force."""

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("A", "ABC", tmp_path, dynamicMembershipChange=True)
        cluster["A"].addNodeToCluster(library.Node("D"))
        cluster.heartbeat("A")
        cluster.deliver("A", "B")
        assert {node.id for node in cluster["B"].otherNodes} == {"A", "C", "D"}
        cluster.crash("B")
        again = cluster.start("B")
        cluster.tick("B")
        assert {node.id for node in again.otherNodes} == {"A", "C"}

    def test_group(self) -> None:
        script = led()
        script.groups[1].add_member(learner(4), lambda _outcome: None)
        script.step(1)
        script.deliver(1, 2)
        script.crash(2, power=True)
        script.start(2)
        script.step(2)
        assert script.groups[2].status().commit_index == 2
        assert [member.node for member in script.groups[2].status().members] == [1, 2, 3, 4]


class TestOlderConfigurationUndoesANewerOne:
    """Applying a configuration entry changes the members again, whatever was appended since."""

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A", "ABC", dynamicMembershipChange=True)
        leader = cluster["A"]
        leader.removeNodeFromCluster(library.Node("C"))
        cluster.tick("A")
        leader.addNodeToCluster(library.Node("C"))
        cluster.tick("A")
        assert {node.id for node in leader.otherNodes} == {"B", "C"}
        leader.set_private("raftCommitIndex", leader.log()[-2][0])
        leader._SyncObj__applyLogEntries()
        assert {node.id for node in leader.otherNodes} == {"B"}

    def test_group(self) -> None:
        """Applying only settles what has been in force since it was appended."""
        script = led()
        script.groups[1].remove_member(3, lambda _outcome: None)
        script.step(1)
        script.settle(1, 2)
        script.groups[1].add_member(learner(4), lambda _outcome: None)
        script.step(1)
        script.settle(1, 2)
        script.crash(2)
        script.start(2)  # it applies both again
        script.connect(1, 2)
        script.settle(1, 2)
        for node in (1, 2):
            members = script.groups[node].status().members
            assert [(m.node, m.voter) for m in members] == [(1, True), (2, True), (4, False)]


class TestReturningNodeDeposesAHealthyLeader:
    """A node that does not reach the leader raises its term with every timeout, and deposes the
    leader as soon as it is heard: there is no pre-vote.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        term = cluster["A"].raftCurrentTerm
        cluster.cut("A", "C")  # C still reaches B
        cluster.settle(rounds=200)
        cluster.connect("A", "C")
        cluster.settle(rounds=20)
        assert cluster["A"].raftCurrentTerm > term

    def test_group(self) -> None:
        script = led()
        term = script.groups[1].status().term
        script.cut(1, 3)
        script.settle(rounds=500)
        script.connect(1, 3)
        script.settle(rounds=50)
        assert script.role(1) == Role.LEADER
        assert script.groups[3].status().term == term


class TestIsolatedLeaderBelievesInItself:
    """A leader that hears nobody goes on for thirty seconds before it steps down."""

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.isolate("A")
        cluster.tick("A", 29)
        assert cluster["A"].leads()

    def test_group(self) -> None:
        script = led()
        script.isolate(1)
        started_ns = script.now_ns
        while script.role(1) == Role.LEADER:
            script.wait(20 * MS_NS)
            script.step(1)
            assert script.now_ns - started_ns <= 2 * script.config.election_max_ns
        assert script.now_ns - started_ns < 3 * SECOND_NS


class TestLateAnswerLooksLikeContact:
    """Any answer counts as contact at the time it arrives, however old it is: a leader that was
    deposed long ago believes in itself. It is no lease.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B")
        assert cluster.on_the_way("B", "A")  # and there it stays
        cluster.cut("A", "C")
        cluster.tick("A", 25)
        cluster.deliver("B", "A")
        cluster.tick("A", 25)
        assert cluster["A"].leads()

    def test_group(self) -> None:
        """A read asks anew: no answer that was on its way before it counts for it."""
        script = led()
        script.wait(110 * MS_NS)
        script.step(1)
        script.deliver(1, 2)
        early = bodies(script, 2, 1, Ack)
        script.isolate(1)
        script.frozen_ns[1] = script.now_ns
        script.elect(2, 3)
        script.settle(2, 3, rounds=4)
        script.propose(2, b"new")
        script.settle(2, 3, rounds=2)
        replay(script, 2, 1, *early)
        script.read(1)
        script.step(1)
        assert not any(isinstance(outcome, int) for outcome in script.reads)
