"""One test per sentence of figure 2 of the Raft paper.

Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm (Extended Version)",
figure 2. Each docstring quotes the sentence it tests and names its part of the figure.
"""

from random import Random

import msgspec
import pytest
from tests.regressions.group import bodies, committed, led, replay
from tests.simulation.disk import Crash
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Fatal, Role
from nokv_replication.frames import Ack, Append, Frame, PreVote, RequestVote, Stale, Vote, encode
from nokv_replication.log import Log


def inject(script: Script, sender: int, receiver: int, *frames: msgspec.Struct) -> None:
    """Hand hand-made frames to a node; its answers are what is then on the way back."""
    replay(script, sender, receiver, *frames)  # type: ignore[arg-type]


def reopened(script: Script, node: int) -> Log:
    """What a node's disk holds after a power cut."""
    identity = script.identity(node)
    script.crash(node, power=True)
    return Log.open(script.disks[node], script.config, identity, Random(0))


def term_of(script: Script, node: int) -> int:
    return script.groups[node].status().term


def commit_of(script: Script, node: int) -> int:
    return script.groups[node].status().commit_index


def candidate(script: Script, node: int) -> None:
    """Bring a node to stand, with the pre-votes of all, its requests still on their way."""
    script.wait(700 * MS_NS)
    script.groups[node]._core.expire_election()
    script.step(node)
    others = [peer for peer in script.groups if peer != node]
    for peer in others:
        if bodies(script, node, peer, PreVote):
            script.deliver(node, peer)
    for peer in others:
        script.deliver(peer, node)
    assert script.role(node) == Role.CANDIDATE


class TestState:
    def test_persistent_state_is_updated_before_responding(self) -> None:
        """State: "Updated on stable storage before responding to RPCs." """
        script = led()
        script.disks[2].crash_at("fdatasync", 1, after=False)
        script.propose(1, b"x")
        with pytest.raises(Crash):
            script.deliver(1, 2)
        assert not bodies(script, 2, 1, Ack)

    def test_current_term_is_persistent(self) -> None:
        """State: "currentTerm: latest term server has seen"."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        term = term_of(script, 2)
        assert reopened(script, 2).hard_state.term == term

    def test_current_term_increases_monotonically(self) -> None:
        """State: "currentTerm ... increases monotonically"."""
        log = led().groups[1]._log
        log.set_hard_state(7, 1)
        with pytest.raises(AssertionError):
            log.set_hard_state(6, 1)

    def test_voted_for_is_persistent(self) -> None:
        """State: "votedFor: candidateId that received vote in current term"."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        script.deliver(2, 3)
        assert reopened(script, 3).hard_state.vote == 2

    def test_voted_for_is_none_in_a_new_term(self) -> None:
        """State: votedFor is "null if none"."""
        script = led()
        script.groups[2]._core.adopt_term(9)
        script.step(2)
        state = reopened(script, 2).hard_state
        assert (state.term, state.vote) == (9, 0)

    def test_the_log_is_persistent(self) -> None:
        """State: "log[]: log entries; each entry contains command ..., and term"."""
        script = led()
        script.propose(1, b"x")
        script.settle(rounds=2)
        log = reopened(script, 3)
        assert [log.term_at(i) for i in range(1, log.last_index + 1)] == [1, 1, 1]

    def test_the_first_index_is_one(self) -> None:
        """State: "first index is 1"."""
        assert led().log(1)[0][0] == 1

    def test_commit_index_begins_at_what_the_machine_holds(self) -> None:
        """State: "commitIndex: ... (initialized to 0 ...)"; here to the machine's own position."""
        assert commit_of(Script(), 1) == 0

    def test_last_applied_increases_monotonically(self) -> None:
        """State: "lastApplied: ... increases monotonically"."""
        script = led()
        seen = 0
        for number in range(10):
            script.propose(1, b"%d" % number)
            script.settle(rounds=1)
            applied = script.groups[2].status().applied_index
            assert applied >= seen
            seen = applied

    def test_next_index_begins_behind_the_leaders_log(self) -> None:
        """State: "nextIndex[]: ... (initialized to leader last log index + 1)"."""
        script = led()
        script.isolate(1)
        script.elect(2, 3)
        (first, *_) = bodies(script, 2, 3, Append)
        assert isinstance(first, Append)
        assert (first.prev_index, first.prev_term) == (2, 1)

    def test_match_index_begins_at_zero(self) -> None:
        """State: "matchIndex[]: ... (initialized to 0, increases monotonically)"."""
        script = led()
        script.isolate(1)
        script.elect(2, 3)
        assert {p.node: p.match_index for p in script.groups[2].status().peers} == {1: 0, 3: 0}
        script.deliver(2, 3)
        script.deliver(3, 2)
        assert {p.node: p.match_index for p in script.groups[2].status().peers}[3] == 3


class TestAppendEntries:
    def test_an_older_term_is_refused(self) -> None:
        """AppendEntries RPC: "1. Reply false if term < currentTerm"."""
        script = led()
        script.groups[2]._core.adopt_term(5)
        inject(script, 1, 2, Append(1, 2, 1, 2, [(1, b"never stored")]))
        assert bodies(script, 2, 1, Stale) == [Stale(5)]
        assert not bodies(script, 2, 1, Ack)
        assert script.log(2)[-1] == (2, 1)

    def test_a_missing_previous_entry_is_refused(self) -> None:
        """AppendEntries RPC: "2. Reply false if log doesn't contain an entry at prevLogIndex"."""
        script = led()
        inject(script, 1, 2, Append(1, 9, 1, 2, []))
        (ack,) = bodies(script, 2, 1, Ack)
        assert isinstance(ack, Ack)
        assert not ack.success
        assert ack.reset

    def test_a_previous_entry_of_another_term_is_refused(self) -> None:
        """AppendEntries RPC: 2. "... whose term matches prevLogTerm"."""
        script = led()
        inject(script, 1, 2, Append(3, 2, 3, 2, []))
        (ack,) = bodies(script, 2, 1, Ack)
        assert isinstance(ack, Ack)
        assert not ack.success

    def test_a_conflicting_entry_and_all_that_follow_are_deleted(self) -> None:
        """AppendEntries RPC: "3. If an existing entry conflicts with a new one ..., delete the
        existing entry and all that follow it".
        """
        script = led()
        script.isolate(1)
        for payload in (b"x", b"y", b"z"):
            script.propose(1, payload)
        assert script.log(1)[2:] == [(3, 1), (4, 1), (5, 1)]
        script.elect(2, 3)
        script.deliver(2, 3)
        script.deliver(3, 2)
        script.connect(1, 2)
        script.settle(1, 2, rounds=3)
        assert script.log(1)[2:] == [(3, 2)]

    def test_existing_entries_that_agree_are_kept(self) -> None:
        """AppendEntries RPC: 3. holds only "if an existing entry conflicts": a short duplicate
        deletes nothing.
        """
        script = led()
        script.propose(1, b"x")
        (duplicate,) = bodies(script, 1, 2, Append)
        script.propose(1, b"y")
        script.deliver(1, 2)
        inject(script, 1, 2, duplicate)
        assert script.log(2) == script.log(1)

    def test_committed_entries_are_never_deleted(self) -> None:
        """3. can never apply to committed entries (5.4.3): a leader that wants it is no leader."""
        script = led()
        with pytest.raises(Fatal, match="committed here"):
            inject(script, 1, 2, Append(3, 1, 1, 2, [(3, b"another")]))

    def test_new_entries_are_appended(self) -> None:
        """AppendEntries RPC: "4. Append any new entries not already in the log"."""
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.propose(1, b"y")
        log = script.groups[1]._log
        inject(script, 1, 2, Append(1, 2, 1, 2, [(1, log.entry(3)), (1, log.entry(4))]))
        assert script.log(2) == [(1, 1), (2, 1), (3, 1), (4, 1)]

    def test_the_commit_index_follows_the_leader(self) -> None:
        """AppendEntries RPC: "5. If leaderCommit > commitIndex, set commitIndex = min(leaderCommit,
        ...)".
        """
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        assert commit_of(script, 2) == 2
        script.deliver(2, 1)
        script.wait(110 * MS_NS)
        script.step(1)
        script.deliver(1, 2)
        assert commit_of(script, 2) == 3

    def test_the_commit_index_stops_at_the_last_new_entry(self) -> None:
        """AppendEntries RPC: 5. "min(..., index of last new entry)": not that of the own tail."""
        script = led()
        script.isolate(1)
        for payload in (b"x", b"y", b"z"):
            script.propose(1, payload)
        # Of a leader of term 2 that has committed 9 and found that 2 matches.
        inject(script, 2, 1, Append(2, 2, 1, 9, []))
        assert commit_of(script, 1) == 2
        assert script.groups[1].status().last_index == 5


class TestRequestVote:
    def test_an_older_term_is_refused(self) -> None:
        """RequestVote RPC: "1. Reply false if term < currentTerm"."""
        script = led()
        script.groups[2]._core.adopt_term(5)
        inject(script, 3, 2, RequestVote(4, 99, 4))
        assert not bodies(script, 2, 3, Vote)
        assert bodies(script, 2, 3, Stale) == [Stale(5)]

    def test_a_vote_is_granted(self) -> None:
        """RequestVote RPC: "2. If votedFor is null ..., and candidate's log is at least as
        up-to-date as receiver's log, grant vote".
        """
        script = led()
        script.crash(1)
        inject(script, 3, 2, RequestVote(2, 2, 1))
        assert bodies(script, 2, 3, Vote) == [Vote(2)]

    def test_there_is_one_vote_a_term(self) -> None:
        """RequestVote RPC: 2. "If votedFor is null or candidateId"."""
        script = led(5)
        script.crash(1)
        inject(script, 3, 2, RequestVote(2, 2, 1))
        inject(script, 4, 2, RequestVote(2, 99, 1))
        assert not bodies(script, 2, 4, Vote)

    def test_a_shorter_log_gets_no_vote(self) -> None:
        """RequestVote RPC: 2. "at least as up-to-date" (5.4.1: "whichever log is longer")."""
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.crash(1)
        inject(script, 3, 2, RequestVote(2, 2, 1))
        assert not bodies(script, 2, 3, Vote)

    def test_an_older_last_term_gets_no_vote_however_long_the_log(self) -> None:
        """RequestVote RPC: 2. (5.4.1: "the log with the later term is more up-to-date")."""
        script = led()
        script.isolate(1)
        script.elect(2, 3)
        script.deliver(2, 3)
        script.crash(2)
        script.connect(1, 3)
        inject(script, 1, 3, RequestVote(9, 500, 1))
        assert not bodies(script, 3, 1, Vote)


class TestAllServers:
    def test_committed_entries_are_applied_in_order(self) -> None:
        """Rules for Servers, all: "If commitIndex > lastApplied: increment lastApplied, apply
        log[lastApplied] to state machine".
        """
        script = led()
        payloads = [b"%d" % number for number in range(20)]
        for payload in payloads:
            script.propose(1, payload)
        script.settle(rounds=10)
        assert all(machine.items == payloads for machine in script.machines.values())

    @pytest.mark.parametrize(
        "frame",
        [Append(5, 2, 1, 2, []), RequestVote(5, 2, 1), Stale(5)],
        ids=["append", "vote request", "answer"],
    )
    def test_a_newer_term_makes_a_follower(self, frame: msgspec.Struct) -> None:
        """Rules for Servers, all: "If RPC request or response contains term T > currentTerm: set
        currentTerm = T, convert to follower".
        """
        script = led()
        inject(script, 2, 1, frame)
        assert term_of(script, 1) == 5
        assert script.role(1) == Role.FOLLOWER


class TestFollowers:
    def test_they_respond(self) -> None:
        """Rules for Servers, followers: "Respond to RPCs from candidates and leaders"."""
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        assert bodies(script, 2, 1, Ack)
        script.crash(1)
        inject(script, 3, 2, RequestVote(2, 99, 1))
        assert bodies(script, 2, 3, Vote)

    def test_silence_makes_a_candidate(self) -> None:
        """Rules for Servers, followers: "If election timeout elapses without receiving
        AppendEntries RPC from current leader ...: convert to candidate".
        """
        script = led()
        script.crash(1)
        for _ in range(20):
            script.wait(100 * MS_NS)
            script.step(2)
            if script.links[2, 3]:
                break
        script.deliver(2, 3)
        script.deliver(3, 2)
        assert script.role(2) == Role.CANDIDATE

    def test_appends_keep_a_follower(self) -> None:
        """Rules for Servers, followers: not while it receives "AppendEntries RPC from current
        leader".
        """
        script = led()
        script.settle(rounds=200)
        assert script.role(2) == script.role(3) == Role.FOLLOWER
        assert term_of(script, 2) == 1

    def test_a_granted_vote_keeps_a_follower(self) -> None:
        """Rules for Servers, followers: "... or granting vote to candidate"."""
        script = led()
        script.crash(1)
        script.wait(500 * MS_NS)
        script.step(2)
        before = script.groups[2]._core.election_deadline_ns()
        inject(script, 3, 2, RequestVote(2, 2, 1))
        assert script.groups[2]._core.election_deadline_ns() > before


class TestCandidates:
    def test_the_term_is_incremented(self) -> None:
        """Rules for Servers, candidates: "Increment currentTerm"."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        assert term_of(script, 2) == 2

    def test_it_votes_for_itself(self) -> None:
        """Rules for Servers, candidates: "Vote for self"."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        assert reopened(script, 2).hard_state.vote == 2

    def test_the_timer_starts_anew(self) -> None:
        """Rules for Servers, candidates: "Reset election timer"."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        left_ns = script.groups[2].next_deadline_ns() - script.now_ns
        assert 0 < left_ns <= script.config.election_max_ns

    def test_all_others_are_asked(self) -> None:
        """Rules for Servers, candidates: "Send RequestVote RPCs to all other servers"."""
        script = led(5)
        script.isolate(1)
        candidate(script, 2)
        for other in (3, 4, 5):
            assert bodies(script, 2, other, RequestVote) == [RequestVote(2, 2, 1)]

    def test_a_majority_makes_a_leader(self) -> None:
        """Rules for Servers, candidates: "If votes received from majority of servers: become
        leader".
        """
        script = led(5)
        script.isolate(1)
        candidate(script, 2)
        script.deliver(2, 3)
        script.deliver(3, 2)
        assert script.role(2) == Role.CANDIDATE
        script.deliver(2, 4)
        script.deliver(4, 2)
        assert script.role(2) == Role.LEADER

    def test_one_vote_counts_once(self) -> None:
        """Rules for Servers, candidates: a majority "of servers", not of answers."""
        script = led(5)
        script.isolate(1)
        candidate(script, 2)
        script.deliver(2, 3)
        script.deliver(3, 2)
        inject(script, 3, 2, Vote(2), Vote(2))
        assert script.role(2) == Role.CANDIDATE

    def test_a_vote_of_an_older_term_does_not_count(self) -> None:
        """Rules for Servers, candidates: votes of this election, that is of its term."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        inject(script, 3, 2, Vote(1))
        assert script.role(2) == Role.CANDIDATE

    def test_a_new_leader_makes_a_follower(self) -> None:
        """Rules for Servers, candidates: "If AppendEntries RPC received from new leader: convert
        to follower".
        """
        script = led()
        script.isolate(1)
        candidate(script, 2)
        inject(script, 3, 2, Append(2, 2, 1, 2, []))
        assert script.role(2) == Role.FOLLOWER
        assert script.groups[2].status().leader == 3

    def test_another_timeout_is_another_election(self) -> None:
        """Rules for Servers, candidates: "If election timeout elapses: start new election"."""
        script = led()
        script.isolate(1)
        candidate(script, 2)
        script.links[2, 3].clear()
        script.wait(1300 * MS_NS)
        script.step(2)
        script.deliver(2, 3)
        script.deliver(3, 2)
        assert term_of(script, 2) == 3
        assert bodies(script, 2, 3, RequestVote) == [RequestVote(3, 2, 1)]


class TestLeaders:
    def test_a_heartbeat_follows_the_election(self) -> None:
        """Rules for Servers, leaders: "Upon election: send initial empty AppendEntries RPCs
        (heartbeat) to each server"; here with the term's first entry.
        """
        script = led()
        script.isolate(1)
        candidate(script, 2)
        script.deliver(2, 3)
        script.deliver(3, 2)
        assert script.role(2) == Role.LEADER
        assert bodies(script, 2, 3, Append)

    def test_heartbeats_go_on_during_idle_periods(self) -> None:
        """Rules for Servers, leaders: "repeat during idle periods to prevent election timeouts"."""
        script = led()
        for _ in range(10):
            script.wait(101 * MS_NS)
            script.step(1)
            assert len(bodies(script, 1, 2, Append)) == 1
            script.deliver(1, 2)
            script.deliver(2, 1)

    def test_a_command_is_answered_after_it_was_applied(self) -> None:
        """Rules for Servers, leaders: "If command received from client: append entry to local log,
        respond after entry applied to state machine".
        """
        script = led()
        script.propose(1, b"x")
        assert script.log(1)[-1] == (3, 1)
        assert b"x" not in script.outcomes
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert committed(script, b"x")
        assert script.machines[1].items == [b"x"]

    def test_entries_are_sent_from_the_next_index(self) -> None:
        """Rules for Servers, leaders: "If last log index >= nextIndex for a follower: send
        AppendEntries RPC with log entries starting at nextIndex".
        """
        script = led()
        script.isolate(3)
        script.propose(1, b"x")
        script.propose(1, b"y")
        script.connect(1, 3)
        script.step(1)
        frame = bodies(script, 1, 3, Append)[0]
        assert isinstance(frame, Append)
        assert (frame.prev_index, len(frame.entries)) == (2, 2)

    def test_success_moves_both_indices(self) -> None:
        """Rules for Servers, leaders: "If successful: update nextIndex and matchIndex"."""
        script = led()
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert script.groups[1]._core.match_index(2) == 3
        assert script.groups[1]._core.next_index(2) == 4

    def test_inconsistency_moves_next_index_back(self) -> None:
        """Rules for Servers, leaders: "If AppendEntries fails because of log inconsistency:
        decrement nextIndex and retry"; here to the end of what is certain to match, at once.
        """
        script = led()
        script.propose(1, b"x")
        script.links[1, 2].clear()
        script.propose(1, b"y")
        script.deliver(1, 2)
        (answer,) = bodies(script, 2, 1, Ack)
        assert isinstance(answer, Ack)
        assert answer.next_index == 3
        script.deliver(2, 1)
        frame = bodies(script, 1, 2, Append)[0]
        assert isinstance(frame, Append)
        assert (frame.prev_index, len(frame.entries)) == (2, 2)

    def test_a_majority_commits(self) -> None:
        """Rules for Servers, leaders: "If there exists an N such that N > commitIndex, a majority
        of matchIndex[i] >= N ...: set commitIndex = N".
        """
        script = led(5)
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert commit_of(script, 1) == 2
        script.deliver(1, 3)
        script.deliver(3, 1)
        assert commit_of(script, 1) == 3

    def test_only_entries_of_the_own_term_are_counted(self) -> None:
        """Rules for Servers, leaders: "... and log[N].term == currentTerm"."""
        script = led(5, msgspec.structs.replace(CONFIG, batch_bytes=1))  # two entries a frame
        for payload in (b"x", b"y"):
            script.propose(1, payload)
        script.deliver(1, 2)
        script.crash(1)
        script.elect(2, 3, 4)
        for count in (None, 1):  # what does not match is asked for; then the first frame of it
            for peer in (3, 4):
                script.deliver(2, peer, count)
                script.deliver(peer, 2)
        # A majority holds the old entries, and not yet the first of the new term.
        assert script.groups[2]._core.match_index(3) == script.groups[2]._core.match_index(4) == 4
        assert commit_of(script, 2) == 2
        for peer in (3, 4):
            script.deliver(2, peer)
            script.deliver(peer, 2)
        assert commit_of(script, 2) == 5


class TestProperties:
    """Figure 3: what holds at all times. The simulator checks these after every event."""

    def test_two_leaders_of_a_term_stop(self) -> None:
        """Figure 3: "Election Safety: at most one leader can be elected in a given term"."""
        script = led()
        with pytest.raises(Fatal, match="both lead term 1"):
            inject(script, 2, 1, Append(1, 2, 1, 2, []))

    def test_a_leader_never_overwrites_its_own_log(self) -> None:
        """Figure 3: "Leader Append-Only: a leader never overwrites or deletes entries"."""
        script = led()
        script.isolate(1)
        script.propose(1, b"x")
        before = script.log(1)
        script.wait(SECOND_NS)
        script.step(1)
        assert script.log(1)[: len(before)] == before

    def test_a_frame_of_another_connection_is_no_frame(self) -> None:
        """Nothing above helps against frames that come twice: each has its own number."""
        script = led()
        script.propose(1, b"x")
        data = script.links[1, 2][0]
        script.deliver(1, 2)
        with pytest.raises(Exception, match="repeats"):
            script.groups[2].receive(1, data)
        body = bodies(script, 2, 1, Ack)[0]
        with pytest.raises(Exception, match="epoch"):
            script.groups[2].receive(1, encode(Frame(1, 10**6, 10**6, body)))
