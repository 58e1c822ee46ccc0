"""One test per sentence of the parts of Ongaro's dissertation that figure 2 does not cover.

Diego Ongaro, "Consensus: Bridging Theory and Practice" (Stanford, 2014): pre-vote (9.6), read-only
queries (6.4), leadership transfer (3.10), membership changes (4.1, 4.2). Each docstring quotes the
sentence it tests with its section.
"""

from tests.regressions.group import bodies, committed, led, replay
from tests.simulation.ports import MS_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import (
    Committed,
    Member,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Role,
    TransferFailed,
)
from nokv_replication.frames import (
    Append,
    PreVote,
    PreVoteGranted,
    Probe,
    ProbeOk,
    ReadAnswer,
    ReadAsk,
    RequestVote,
    TimeoutNow,
    decode_frame,
)


def campaign(script: Script, node: int) -> None:
    """Let a node's election timer fire."""
    script.groups[node]._core.expire_election()
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
        alone = frozenset({1})
        assert asked.won(alone, 1, 599 * MS_NS)
        asked.next_round(0)
        assert not asked.won(alone, 1, 600 * MS_NS)

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
        link = script.links[1, 3]
        answers = [frame for frame in link if isinstance(decode_frame(frame).body, ReadAnswer)]
        assert len(answers) == 1
        link.clear()  # it overtakes nothing, but what was sent before it is slow to be handled
        link.extend(answers)
        script.deliver(1, 3)
        assert script.reads == []
        script.step(1)
        script.settle(rounds=10)
        assert script.reads == [3]
        assert script.machines[3].items == [b"x"]

    def test_an_answer_reaches_the_process_that_asked(self) -> None:
        """6.4: the index "must be at least as large" as any commitment before the question.

        A reader's next process counts its questions from one again, like the one before.
        """
        script = led()
        script.read(2)
        script.deliver(2, 1)
        script.crash(2)
        script.start(2)
        script.connect_all()
        script.wait(CONFIG.heartbeat_ns)
        script.step(1)
        script.deliver(1, 2)  # now its next process knows the leader
        script.lose(2, 1)
        script.lose(1, 3)  # the probe, which will be repeated
        script.propose(1, b"x")
        script.deliver(1, 3)
        script.deliver(3, 1)
        assert committed(script, b"x")
        script.read(2)
        asks = bodies(script, 2, 1, ReadAsk)
        assert asks == [ReadAsk(1, 1)]  # the same question as the first process's
        script.wait(CONFIG.heartbeat_ns)
        script.step(1)
        script.deliver(1, 3)
        script.deliver(3, 1)
        assert not bodies(script, 1, 2, ReadAnswer)
        script.settle()
        assert script.reads == [3]

    def test_a_question_fails_with_its_connection(self) -> None:
        """It was lost, or its answer is: nobody waits for it."""
        script = led()
        script.read(2)
        script.cut(1, 2)
        script.step(2)
        assert [type(outcome) for outcome in script.reads] == [NotLeader]

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


def change(script: Script, leader: int, call: str, *args: object) -> list[object]:
    """Ask a leader for a change and let it append and send it; returns what is told, when it is."""
    told: list[object] = []
    getattr(script.groups[leader], call)(*args, told.append)
    script.step(leader)
    return told


def learner(node: int) -> Member:
    return Member(node, 100 + node, f"node-{node}:1", voter=False)


def members_of(script: Script, node: int) -> dict[int, bool]:
    """Node to whether it has a vote, as that node's configuration says now."""
    return {member.node: member.voter for member in script.groups[node].status().members}


class TestLeadershipTransfer:
    def test_the_target_stands_at_once(self) -> None:
        """3.10: TimeoutNow "has the same effect as the target server's election timer firing: the
        target server starts a new election (incrementing its term and becoming a candidate)".
        """
        script = led()
        told = change(script, 1, "transfer", 2)
        script.settle(rounds=1)
        script.settle(rounds=10)
        assert script.role(2) == Role.LEADER
        assert term_of(script, 2) == 2
        assert isinstance(told[0], Committed)

    def test_new_proposals_wait(self) -> None:
        """3.10: "1. The prior leader stops accepting new client requests."; here they wait, and
        are refused with the new leader's name.
        """
        script = led()
        change(script, 1, "transfer", 2)
        script.propose(1, b"x")
        assert script.log(1)[-1] == (2, 1)
        script.settle(rounds=10)
        outcome = script.outcomes[b"x"]
        assert isinstance(outcome, NotLeader)

    def test_the_targets_log_is_completed_first(self) -> None:
        """3.10: "2. The prior leader fully updates the target server's log to match its own, using
        the normal log replication mechanism".
        """
        script = led()
        script.propose(1, b"x")
        change(script, 1, "transfer", 2)
        assert not bodies(script, 1, 2, TimeoutNow)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert bodies(script, 1, 2, TimeoutNow) == [TimeoutNow(1)]

    def test_the_prior_leader_steps_down(self) -> None:
        """3.10: the target's "next message to the prior leader will include its new term number,
        causing the prior leader to step down".
        """
        script = led()
        change(script, 1, "transfer", 2)
        script.settle(rounds=10)
        assert script.role(1) == Role.FOLLOWER
        assert script.groups[1].status().leader == 2

    def test_it_is_given_up_after_an_election_timeout(self) -> None:
        """3.10: "if leadership transfer does not complete after about an election timeout, the
        prior leader aborts the transfer and resumes accepting client requests".
        """
        script = led()
        told = change(script, 1, "transfer", 2)
        script.crash(2)
        script.propose(1, b"x")
        for _ in range(70):
            script.settle(1, 3, rounds=1)
        assert isinstance(told[0], TransferFailed)
        assert committed(script, b"x")

    def test_a_transfer_passes_the_pre_vote(self) -> None:
        """9.6 and 3.10: voters hear a leader still, so pre-votes would be refused: the target asks
        for votes at once, and only this once.
        """
        script = led()
        change(script, 1, "transfer", 2)
        script.settle(rounds=1)
        before = script.groups[2].counters.pre_votes_started
        script.settle(rounds=10)
        assert script.role(2) == Role.LEADER
        assert script.groups[2].counters.pre_votes_started == before

    def test_only_the_leader_can_ask_for_it(self) -> None:
        """3.10: it is the leader that sends TimeoutNow; from anybody else it means nothing."""
        script = led()
        replay(script, 3, 2, TimeoutNow(1))
        assert term_of(script, 2) == 1
        group = script.groups[2]
        group._receiver.handle(3, 1 << 30, TimeoutNow(1), group._now_ns)
        campaign(script, 2)
        assert bodies(script, 2, 1, PreVote)
        assert not bodies(script, 2, 1, RequestVote)


class TestMembership:
    def test_a_configuration_is_an_entry(self) -> None:
        """4.1: "it appends the new configuration (Cnew) as an entry in its log and replicates that
        entry using the normal Raft mechanism".
        """
        script = led()
        told = change(script, 1, "add_member", learner(4))
        assert script.log(1)[-1] == (3, 1)
        assert told == []
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert isinstance(told[0], Committed)
        assert told[0].index == 3

    def test_it_is_in_force_as_soon_as_it_is_in_the_log(self) -> None:
        """4.1: "The new configuration takes effect on each server as soon as it is added to that
        server's log".
        """
        script = led()
        change(script, 1, "add_member", learner(4))
        assert members_of(script, 1) == {1: True, 2: True, 3: True, 4: False}
        assert 4 not in members_of(script, 2)
        script.deliver(1, 2)
        assert members_of(script, 2) == {1: True, 2: True, 3: True, 4: False}

    def test_it_need_not_be_committed(self) -> None:
        """4.1: "a server always uses the latest configuration in its log, regardless of whether the
        entry is committed"; also after a restart.
        """
        script = led()
        change(script, 1, "add_member", learner(4))
        script.deliver(1, 2)
        script.crash(2, power=True)
        script.start(2)
        script.step(2)
        assert script.groups[2].status().commit_index == 2
        assert 4 in members_of(script, 2)

    def test_it_is_rolled_back_with_its_entry(self) -> None:
        """4.1: "... if the entry is removed, it falls back to the previous configuration"."""
        script = led()
        script.isolate(1)
        told = change(script, 1, "add_member", learner(4))
        assert 4 in members_of(script, 1)
        script.elect(2, 3)
        script.settle(2, 3)
        script.connect_all()
        script.settle()
        assert members_of(script, 1) == {1: True, 2: True, 3: True}
        assert isinstance(told[0], OutcomeUnknown)

    def test_one_change_at_a_time(self) -> None:
        """4.1: "... only start one change after the entry of the one before has committed"."""
        script = led()
        change(script, 1, "add_member", learner(4))
        told = change(script, 1, "add_member", learner(5))
        assert isinstance(told[0], MembershipRefused)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert change(script, 1, "add_member", learner(5)) == []

    def test_a_new_leader_commits_an_entry_first(self) -> None:
        """4.1, and its correction (2015): no change before an entry of the leader's own term is
        committed.
        """
        script = led()
        script.isolate(1)
        script.elect(2, 3)
        told = change(script, 2, "add_member", learner(4))
        assert isinstance(told[0], MembershipRefused)

    def test_a_removed_server_is_not_counted(self) -> None:
        """4.1: with the old and the new configuration "any majorities ... overlap": the new one
        counts at once.
        """
        script = led()
        change(script, 1, "remove_member", 3)
        script.settle(1, 2, rounds=5)
        assert members_of(script, 1) == {1: True, 2: True}
        script.crash(2)
        script.propose(1, b"x")
        script.settle(rounds=5)
        assert not committed(script, b"x")

    def test_a_new_server_is_not_counted_at_first(self) -> None:
        """4.2.1: it "joins the cluster as a non-voting member. The leader replicates log entries to
        it, but it is not counted towards majorities for voting or commitment purposes".
        """
        script = led()
        change(script, 1, "add_member", learner(4))
        script.settle(rounds=5)
        script.crash(3)
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert committed(script, b"x")  # two of three voters

    def test_promotion_waits_until_it_has_caught_up(self) -> None:
        """4.2.1: "Once the new server has caught up with the rest of the cluster, the
        reconfiguration can proceed".
        """
        script = led()
        change(script, 1, "add_member", learner(4))
        script.settle(rounds=5)
        told = change(script, 1, "promote_member", 4)
        assert isinstance(told[0], MembershipRefused)

    def test_the_leader_is_not_removed(self) -> None:
        """4.2.2: "... the leader would transfer its leadership first" (3.10)."""
        script = led()
        told = change(script, 1, "remove_member", 1)
        assert isinstance(told[0], MembershipRefused)

    def test_a_removed_server_disturbs_nobody(self) -> None:
        """4.2.3: "servers that are not in Cnew ... will time out and start new elections"; pre-vote
        and the voters' contact with their leader keep them from it.
        """
        script = led()
        script.isolate(3)
        change(script, 1, "remove_member", 3)
        script.settle(1, 2, rounds=5)
        for _ in range(200):
            script.settle(rounds=1)
        assert script.role(1) == Role.LEADER
        assert term_of(script, 1) == 1
