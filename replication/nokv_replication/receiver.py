"""What a replica does with each frame of a peer, between the network and the library.

Terms are compared here once more than the library does: an answer of an older term counts for
nothing, and a peer that is left behind is told which term it is in.
"""

from collections.abc import Callable
from typing import Any

from nokv_replication._pysyncobj import Core
from nokv_replication.appends import AppendFilter
from nokv_replication.apply import Applier
from nokv_replication.configurations import Configurations
from nokv_replication.elections import PreVotes
from nokv_replication.frames import (
    Ack,
    Append,
    Body,
    Mismatch,
    PreVote,
    PreVoteGranted,
    Probe,
    ProbeOk,
    ReadAnswer,
    ReadAsk,
    Removed,
    RequestVote,
    Stale,
    TimeoutNow,
    TooFar,
    Vote,
)
from nokv_replication.log import Log
from nokv_replication.peers import Peers
from nokv_replication.reads import Reads, Send
from nokv_replication.timekeeping import Timekeeper
from nokv_replication.types import Counters


class Receiver:
    """Handles the frames of one replica; the caller has checked connection and order."""

    def __init__(
        self,
        core: Core,
        log: Log,
        peers: Peers,
        applier: Applier,
        pre_votes: PreVotes,
        reads: Reads,
        timekeeper: Timekeeper,
        configurations: Configurations,
        counters: Counters,
        send: Send,
    ) -> None:
        self._core = core
        self._log = log
        self._peers = peers
        self._applier = applier
        self._pre_votes = pre_votes
        self._reads = reads
        self._timekeeper = timekeeper
        self._configurations = configurations
        self._counters = counters
        self._send = send
        self._now_ns = 0
        self.filter = AppendFilter(core, log, counters)
        self.accept_entries = True
        """False keeps this node from storing entries as a follower."""
        self.stand_term = 0
        """Term whose leader asked this node to stand at once."""
        self.told_removed = False
        """A member said that this node is none any more, and no leader has shown otherwise."""
        self.too_far_base: int | None = None
        """Where the leader's log starts, when that is behind the end of this one."""

    def handle(self, peer: int, sequence: int, body: Body, now_ns: int) -> None:
        """Handle one frame in the step of `now_ns`.

        Raises:
            Fatal: the group's replicas contradict each other.
        """
        self._now_ns = now_ns
        handler = self._HANDLERS[type(body)]
        handler(self, peer, sequence, body)

    def _on_append(self, peer: int, sequence: int, body: Append) -> None:
        if body.term < self._core.term():
            self._counters.appends_stale += 1
            self._send(peer, Stale(self._core.term()))
            return
        self._pre_votes.contact(self._now_ns)
        self.told_removed = False  # leaders send entries to members only
        self.filter.handle(peer, sequence, body, accept_entries=self.accept_entries)

    def _on_ack(self, peer: int, _sequence: int, body: Ack) -> None:
        state = self._peers[peer]
        if not state.member or not self._peers.is_current(body):
            self._counters.acks_stale += 1
            return
        state.applied_index = max(state.applied_index, body.applied_index)
        state.free_bytes = body.free_bytes
        state.sync_ns = body.sync_ns
        if state.voter:
            self._timekeeper.hear(peer, body.wall_ns, self._now_ns)
        mine = self._applier.fingerprint_at(body.applied_index)
        if mine is not None and mine != body.fingerprint:
            self._send(peer, Mismatch(self._core.term(), body.applied_index, mine))
        self._peers.on_ack(state, body, self._now_ns)

    def _may_ask(self, peer: int) -> bool:
        """Whether a node may ask for votes here; one that was removed is told so.

        A learner and a visitor may: this node may not have the entry yet that makes them voters.
        One that joins and knows no configuration has nothing to vote about.
        """
        if self._configurations.was_removed(peer):
            self._counters.removed_told += 1
            self._send(peer, Removed(self._configurations.index))
            return False
        return self._configurations.in_force is not None

    def _on_request_vote(self, peer: int, _sequence: int, body: RequestVote) -> None:
        if not self._may_ask(peer):
            return
        if body.term < self._core.term():
            self._send(peer, Stale(self._core.term()))
            return
        self._core.deliver(
            peer,
            {
                "type": "request_vote",
                "term": body.term,
                "last_log_index": body.last_index,
                "last_log_term": body.last_term,
            },
        )

    def _on_vote(self, peer: int, _sequence: int, body: Vote) -> None:
        state = self._peers[peer]
        if state.voter and body.term > state.vote_term:
            state.vote_term = body.term
            self._core.deliver(peer, {"type": "response_vote", "term": body.term})

    def _on_pre_vote(self, peer: int, _sequence: int, body: PreVote) -> None:
        if not self._may_ask(peer):
            return
        if body.term < self._core.term():
            self._send(peer, Stale(self._core.term()))
        elif self._pre_votes.grants(body, self._now_ns):
            self._send(peer, PreVoteGranted(body.term, body.round))

    def _on_pre_vote_granted(self, peer: int, _sequence: int, body: PreVoteGranted) -> None:
        if self._peers[peer].voter and body.term == self._core.term():
            self._pre_votes.granted(peer, body.round)

    def _on_probe(self, peer: int, _sequence: int, body: Probe) -> None:
        if self._confirms(body):
            self._send(peer, ProbeOk(body.term, body.nonce))

    def _confirms(self, probe: Probe) -> bool:
        """Rule 3: only the term this node is in; the answer leaves after this step's sync."""
        return probe.term == self._core.term() and not self._core.is_leader()

    def _on_probe_ok(self, peer: int, _sequence: int, body: ProbeOk) -> None:
        voter = self._peers[peer].voter
        if voter and self._core.is_leader() and body.term == self._core.term():
            self._reads.on_probe_ok(peer, body.term, body.nonce)

    def _on_read_ask(self, peer: int, _sequence: int, body: ReadAsk) -> None:
        leads = self._core.is_leader() and body.term == self._core.term()
        if not (leads and self._reads.add_remote(peer, body.nonce)):
            self._send(peer, ReadAnswer(body.term, body.nonce, ok=False, index=0))

    def _on_read_answer(self, peer: int, _sequence: int, body: ReadAnswer) -> None:
        self._reads.on_answer(peer, body)
        if body.ok and self.too_far_base is not None and body.index > self.too_far_base:
            self._reads.refuse_unreachable()

    def _on_stale(self, _peer: int, _sequence: int, body: Stale) -> None:
        if body.term > self._core.term():
            self._core.adopt_term(body.term)

    def _on_too_far(self, peer: int, _sequence: int, body: TooFar) -> None:
        if body.term < self._core.term():
            return
        self._pre_votes.contact(self._now_ns)
        log = self._log
        if body.base_index < log.base_index or peer != self._core.leader():
            return
        missing = body.base_index > log.last_index
        if missing or log.term_at(body.base_index) != body.base_term:
            self.too_far_base = body.base_index
            self._reads.refuse_unreachable()

    def _on_mismatch(self, _peer: int, _sequence: int, body: Mismatch) -> None:
        if body.term == self._core.term():
            self._applier.check_fingerprint(body.index, body.fingerprint)

    def _on_timeout_now(self, peer: int, _sequence: int, body: TimeoutNow) -> None:
        if body.term != self._core.term() or peer != self._core.leader():
            return
        if not self._configurations.is_voter:
            return
        self.stand_term = body.term
        self._core.deliver(peer, {"type": "timeout_now", "term": body.term})

    def _on_removed(self, peer: int, _sequence: int, _body: Removed) -> None:
        self.told_removed |= self._peers[peer].member

    _HANDLERS: dict[type, Callable[["Receiver", int, int, Any], None]] = {  # noqa: RUF012
        Append: _on_append,
        Ack: _on_ack,
        RequestVote: _on_request_vote,
        Vote: _on_vote,
        PreVote: _on_pre_vote,
        PreVoteGranted: _on_pre_vote_granted,
        Probe: _on_probe,
        ProbeOk: _on_probe_ok,
        ReadAsk: _on_read_ask,
        ReadAnswer: _on_read_answer,
        Stale: _on_stale,
        TooFar: _on_too_far,
        Mismatch: _on_mismatch,
        TimeoutNow: _on_timeout_now,
        Removed: _on_removed,
    }
