"""One test per sentence of the parts of Ongaro's dissertation that figure 2 does not cover.

Diego Ongaro, "Consensus: Bridging Theory and Practice" (Stanford, 2014): pre-vote (9.6), read-only
queries (6.4), leadership transfer (3.10), membership changes (4.1, 4.2). Each docstring quotes the
sentence it tests with its section.
"""

from tests.regressions.group import bodies, committed, led, replay
from tests.simulation.ports import MS_NS
from tests.simulation.script import Script

from nokv_replication import NotLeader, Role
from nokv_replication.frames import (
    Append,
    PreVote,
    PreVoteGranted,
    Probe,
    ProbeOk,
    ReadAnswer,
    ReadAsk,
    RequestVote,
)


def campaign(script: Script, node: int) -> None:
    """Let a node's election timer fire."""
    script.groups[node]._core._SyncObj__raftElectionDeadline = 0.0
    script.step(node)


def term_of(script: Script, node: int) -> int:
    return script.groups[node].status().term


class TestPreVote:
    def test_the_term_waits_for_a_majority(self) -> None:
        """9.6: "a candidate only increments its term if it first learns from a majority of the
        cluster that they would be willing to grant the candidate their votes".
        """
        script = led(5)
        script.crash(1)
        script.wait(600 * MS_NS)
        campaign(script, 2)
        script.deliver(2, 3)
        script.deliver(3, 2)
        assert (script.role(2), term_of(script, 2)) == (Role.FOLLOWER, 1)
        script.deliver(2, 4)
        script.deliver(4, 2)
        assert (script.role(2), term_of(script, 2)) == (Role.CANDIDATE, 2)

    def test_the_log_must_be_up_to_date(self) -> None:
        """9.6: "(if the candidate's log is sufficiently up-to-date, ...)"."""
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.crash(1)
        script.wait(600 * MS_NS)
        replay(script, 3, 2, PreVote(1, 2, 1, 1))
        assert not bodies(script, 2, 3, PreVoteGranted)
        replay(script, 3, 2, PreVote(1, 3, 1, 2))
        assert bodies(script, 2, 3, PreVoteGranted) == [PreVoteGranted(1, 2)]

    def test_a_later_last_term_is_more_up_to_date(self) -> None:
        """9.6: "sufficiently up-to-date" is that of votes (3.6.1): the last term decides first."""
        script = led()
        script.crash(1)
        script.wait(600 * MS_NS)
        replay(script, 3, 2, PreVote(1, 99, 0, 1))
        assert not bodies(script, 2, 3, PreVoteGranted)

    def test_a_heard_leader_forbids_it(self) -> None:
        """9.6: "... and the voters have not received heartbeats from a valid leader for at least a
        baseline election timeout".
        """
        script = led()
        script.wait(110 * MS_NS)
        script.step(1)
        script.deliver(1, 2)
        script.cut(1, 3)
        script.wait(599 * MS_NS)
        replay(script, 3, 2, PreVote(1, 2, 1, 1))
        assert not bodies(script, 2, 3, PreVoteGranted)
        script.wait(1 * MS_NS)
        replay(script, 3, 2, PreVote(1, 2, 1, 2))
        assert bodies(script, 2, 3, PreVoteGranted)

    def test_a_leader_forbids_it(self) -> None:
        """9.6: a leader knows of a valid one: itself."""
        script = led()
        script.wait(5_000 * MS_NS)
        replay(script, 3, 1, PreVote(1, 2, 1, 1))
        assert not bodies(script, 1, 3, PreVoteGranted)

    def test_it_changes_nothing_at_the_voter(self) -> None:
        """9.6: willingness is no vote: the voter's term, vote and timer stay as they were."""
        script = led()
        script.crash(1)
        script.wait(600 * MS_NS)
        script.step(2)
        core = script.groups[2]._core
        before = (core.term(), script.groups[2]._log.hard_state, core.election_deadline_ns())
        replay(script, 3, 2, PreVote(1, 2, 1, 1))
        assert bodies(script, 2, 3, PreVoteGranted)
        after = (core.term(), script.groups[2]._log.hard_state, core.election_deadline_ns())
        assert after == before

    def test_only_answers_to_the_latest_round_count(self) -> None:
        """9.6: a majority that is willing now: what was said in an earlier round is not."""
        script = led()
        script.crash(1)
        script.wait(600 * MS_NS)
        campaign(script, 2)
        (first,) = bodies(script, 2, 3, PreVote)
        assert isinstance(first, PreVote)
        script.wait(300 * MS_NS)
        script.step(2)
        replay(script, 3, 2, PreVoteGranted(1, first.round))
        assert script.role(2) == Role.FOLLOWER
        replay(script, 3, 2, PreVoteGranted(1, first.round + 1))
        assert script.role(2) == Role.CANDIDATE

    def test_willingness_is_not_kept(self) -> None:
        """9.6: a majority won long ago says nothing of the leader there may be since."""
        script = led(1)
        asked = script.groups[1]._pre_votes
        asked.next_round(0)
        assert asked.won(1, 599 * MS_NS)
        asked.next_round(0)
        assert not asked.won(1, 600 * MS_NS)

    def test_a_node_that_returns_disturbs_nobody(self) -> None:
        """9.6: "... solves the issue of a partitioned server disrupting the cluster when it
        rejoins".
        """
        script = led()
        script.isolate(3)
        for _ in range(100):
            script.settle(1, 2, rounds=1)
            script.step(3)
            assert term_of(script, 3) == 1
        script.connect_all()
        script.settle(rounds=20)
        assert script.role(1) == Role.LEADER
        assert {term_of(script, node) for node in script.groups} == {1}


class TestReadOnly:
    def test_a_new_leader_waits_for_its_first_entry(self) -> None:
        """6.4: "1. If the leader has not yet marked an entry from its current term committed, it
        waits until it has done so."
        """
        script = led()
        script.isolate(1)
        script.elect(2, 3)
        script.links[2, 3].clear()
        script.read(2)
        assert not bodies(script, 2, 3, Probe)
        assert script.reads == []
        script.settle(2, 3, rounds=10)
        assert script.reads == [3]

    def test_the_read_index_is_the_commit_index_at_arrival(self) -> None:
        """6.4: "2. The leader saves its current commit index in a local variable readIndex."."""
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        script.read(1)
        script.propose(1, b"y")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert script.reads == [3]  # that of its own arrival; y is 4

    def test_a_majority_confirms_that_it_leads(self) -> None:
        """6.4: "3. ... It issues a new round of heartbeats and waits for their acknowledgments from
        a majority of the cluster."
        """
        script = led(5)
        script.read(1)
        assert all(len(bodies(script, 1, other, Probe)) == 1 for other in (2, 3, 4, 5))
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert script.reads == []
        script.deliver(1, 3)
        script.deliver(3, 1)
        assert script.reads == [2]

    def test_an_earlier_round_confirms_nothing(self) -> None:
        """6.4: 3. "a new round": answers to an earlier one came before the read."""
        script = led()
        script.read(1)
        for peer in (2, 3):
            script.deliver(1, peer)
        (early,) = bodies(script, 2, 1, ProbeOk)
        script.deliver(3, 1)
        assert len(script.reads) == 1
        script.read(1)
        replay(script, 2, 1, early)
        assert len(script.reads) == 1

    def test_a_node_of_a_newer_term_confirms_nothing(self) -> None:
        """6.4: 3. "make sure it has not been superseded by a newer leader of which it is
        unaware".
        """
        script = led()
        script.isolate(1)
        script.frozen_ns[1] = script.now_ns
        script.elect(2, 3)
        script.settle(2, 3, rounds=4)
        script.propose(2, b"new")
        script.settle(2, 3, rounds=2)
        assert committed(script, b"new")
        script.connect(1, 3)
        script.read(1)
        script.deliver(1, 3)
        assert not bodies(script, 3, 1, ProbeOk)
        script.deliver(3, 1)
        assert all(isinstance(outcome, NotLeader) for outcome in script.reads)

    def test_the_state_machine_advances_to_the_read_index(self) -> None:
        """6.4: "4. The leader waits for its state machine to advance at least as far as the
        readIndex".
        """
        script = led()
        reads = script.groups[1]._reads
        served: list[object] = []
        reads._confirmed.append((5, [served.append]))
        reads._count += 1
        reads.finish(4)
        assert served == []
        reads.finish(5)
        assert served == [5]

    def test_one_round_serves_many_reads(self) -> None:
        """6.4: "... a single round of heartbeats for any number of read-only queries that it has
        accumulated".
        """
        script = led()
        outcomes: list[object] = []
        for _ in range(100):
            script.groups[1].read_index(outcomes.append)
        script.step(1)
        assert len(bodies(script, 1, 2, Probe)) == 1
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert outcomes == [2] * 100

    def test_a_follower_asks_for_an_index(self) -> None:
        """6.4: "the follower would issue a request to the leader asking just for a current
        readIndex"; the leader "would execute steps 1-3".
        """
        script = led()
        script.read(2)
        assert bodies(script, 2, 1, ReadAsk)
        script.deliver(2, 1)
        assert bodies(script, 1, 3, Probe)
        assert not bodies(script, 1, 2, ReadAnswer)
        script.deliver(1, 3)
        script.deliver(3, 1)
        assert bodies(script, 1, 2, ReadAnswer)

    def test_a_follower_waits_for_its_own_state_machine(self) -> None:
        """6.4: "the follower would then execute steps 4 and 5 on its own state machine"."""
        script = led()
        script.propose(1, b"x")
        script.links[1, 3].clear()
        script.deliver(1, 2)
        script.deliver(2, 1)
        script.read(3)
        script.deliver(3, 1)
        script.deliver(1, 2)
        script.deliver(2, 1)
        answers = bodies(script, 1, 3, ReadAnswer)
        assert len(answers) == 1
        replay(script, 1, 3, *answers)
        assert script.reads == []
        script.step(1)
        script.settle(rounds=10)
        assert script.reads == [3]
        assert script.machines[3].items == [b"x"]

    def test_a_node_that_does_not_lead_refuses(self) -> None:
        """6.4: only a leader executes 1-3: anybody else says no, and the reader may ask again."""
        script = led()
        script.crash(1)
        script.elect(2, 3)
        replay(script, 2, 3, ReadAsk(term_of(script, 3), 1))
        (answer,) = bodies(script, 3, 2, ReadAnswer)
        assert isinstance(answer, ReadAnswer)
        assert not answer.ok
        assert not bodies(script, 3, 2, RequestVote)
        assert not bodies(script, 3, 2, Append)
