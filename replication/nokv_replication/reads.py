"""Linearizable reads without a lease: ReadIndex (Raft thesis, section 6.4).

A read is correct if (1) its leader has committed an entry of its own term; (2) the read index is
the commit index taken after the read arrived and before the probe left; (3) a follower confirms
only the term it is in, durably; (4) a quorum confirmed this very probe while the leader still led
that term; (5) the reader's applied index has reached the read index. Each rule is one small method
here or in `Group`, and each has a planted bug in the tests that drops it.

One probe serves every read that arrived before it was sent. A follower asks its leader for a
confirmed index and waits until it has applied that much itself.
"""

from collections.abc import Callable

import msgspec

from nokv_replication.errors import NotLeader, Overloaded, ReplicationError, TooFarBehind
from nokv_replication.frames import Body, Probe, ReadAnswer, ReadAsk
from nokv_replication.types import Counters, GroupConfig, ReadDone

Send = Callable[[int, Body], None]


class _Round(msgspec.Struct):
    term: int
    index: int
    started_ns: int
    local: list[ReadDone]
    remote: list[tuple[int, int]]
    confirmed: set[int]


class _Asked(msgspec.Struct):
    term: int
    leader: int
    started_ns: int
    reads: list[ReadDone]


class Reads:
    """The reads of one node on their way: arrived, being probed or asked for, waiting for apply."""

    def __init__(self, config: GroupConfig, counters: Counters, send: Send) -> None:
        self._config = config
        self._counters = counters
        self._send = send
        self._nonce = 0
        self._arrived: list[ReadDone] = []
        self._arrived_remote: list[tuple[int, int]] = []
        # Followers' questions, arrived or in a round.
        self._remote_count = 0
        self._rounds: dict[int, _Round] = {}
        self._asked: dict[int, _Asked] = {}
        # (read index, reads) in order of index as confirmed; served once applied.
        self._confirmed: list[tuple[int, list[ReadDone]]] = []
        self._count = 0

    @property
    def arrived(self) -> bool:
        """Whether reads wait for the next probe or question."""
        return bool(self._arrived or self._arrived_remote)

    @property
    def idle(self) -> bool:
        """Whether no read has arrived, is being probed or is being asked for."""
        return not (self._arrived or self._arrived_remote or self._rounds or self._asked)

    @property
    def waiting_for_apply(self) -> bool:
        """Whether a confirmed read waits for apply."""
        return bool(self._confirmed)

    def add(self, done: ReadDone) -> None:
        """Take a read of this node; it may fail at once with `Overloaded`."""
        if self._count >= self._config.reads_max:
            self._counters.reads_failed += 1
            done(Overloaded("too many reads are waiting at this node; retry later"))
            return
        self._count += 1
        self._arrived.append(done)

    def add_remote(self, peer: int, nonce: int) -> bool:
        """Take a follower's question; return whether there is room for it."""
        if self._remote_count >= self._config.reads_max:
            return False
        self._remote_count += 1
        self._arrived_remote.append((peer, nonce))
        return True

    # ------------------------------------------------------------------ leader

    def forget(self, peer: int) -> None:
        """Drop what `peer` asked or was asked over a connection that is gone.

        Its next process counts its questions from one again: an answer to this one's would be
        taken for the answer to a later question, and be stale.
        """
        for remote in (self._arrived_remote, *(round_.remote for round_ in self._rounds.values())):
            kept = [question for question in remote if question[0] != peer]
            self._remote_count -= len(remote) - len(kept)
            remote[:] = kept
        for nonce in [n for n, asked in self._asked.items() if asked.leader == peer]:
            self._fail(self._asked.pop(nonce).reads, NotLeader(None))

    def start_round(self, term: int, commit_index: int, peers: list[int], now_ns: int) -> None:
        """Probe for all that arrived; `commit_index` is taken now, after they did (rule 2)."""
        self._nonce += 1
        self._counters.read_probes += 1
        self._rounds[self._nonce] = _Round(
            term, commit_index, now_ns, self._arrived, self._arrived_remote, set()
        )
        self._arrived, self._arrived_remote = [], []
        for peer in peers:
            self._send(peer, Probe(term, self._nonce))

    def repeat_lost(self, peers: list[int], now_ns: int) -> None:
        """Probe again for rounds whose answers are late: a broken connection loses probes."""
        for nonce, round_ in self._rounds.items():
            if now_ns - round_.started_ns >= self._config.heartbeat_ns:
                round_.started_ns = now_ns
                for peer in peers:
                    if peer not in round_.confirmed:
                        self._send(peer, Probe(round_.term, nonce))

    def on_probe_ok(self, peer: int, term: int, nonce: int) -> None:
        """Count a follower's confirmation of one round."""
        round_ = self._rounds.get(nonce)
        if round_ is not None and round_.term == term:
            round_.confirmed.add(peer)

    def confirm(self, term: int, voters: frozenset[int], quorum: int) -> int:
        """Finish the rounds of `term` that a quorum of `voters` confirmed.

        Returns the largest index answered to a follower.
        """
        answered = 0
        finished = [
            nonce
            for nonce, round_ in self._rounds.items()
            if self._is_confirmed(round_, voters, quorum)
        ]
        for nonce in finished:
            round_ = self._rounds.pop(nonce)
            assert round_.term == term
            if round_.local:
                self._confirmed.append((round_.index, round_.local))
            self._remote_count -= len(round_.remote)
            for peer, asked in round_.remote:
                self._send(peer, ReadAnswer(term, asked, ok=True, index=round_.index))
                answered = max(answered, round_.index)
        return answered

    @staticmethod
    def _is_confirmed(round_: _Round, voters: frozenset[int], quorum: int) -> bool:
        return len(round_.confirmed & voters) + 1 >= quorum

    # ------------------------------------------------------------------ follower

    def ask(self, term: int, leader: int, now_ns: int) -> None:
        """Ask the leader for an index for all local reads that arrived."""
        self._nonce += 1
        self._asked[self._nonce] = _Asked(term, leader, now_ns, self._arrived)
        self._arrived = []
        self._send(leader, ReadAsk(term, self._nonce))

    def on_answer(self, peer: int, answer: ReadAnswer) -> None:
        """Take a leader's answer; a refusal or a late one fails the reads it was for."""
        asked = self._asked.get(answer.nonce)
        if asked is None or asked.leader != peer:
            return
        del self._asked[answer.nonce]
        if answer.ok:
            self._confirmed.append((answer.index, asked.reads))
        else:
            self._fail(asked.reads, NotLeader(None))

    def expire(self, now_ns: int) -> None:
        """Fail questions that were never answered: the leader or its connection is gone."""
        limit_ns = self._config.election_max_ns
        late = [n for n, asked in self._asked.items() if now_ns - asked.started_ns >= limit_ns]
        for nonce in late:
            self._fail(self._asked.pop(nonce).reads, NotLeader(None))

    def next_deadline_ns(self) -> int | None:
        """Return when `expire` or `repeat_lost` has work to do, None for never."""
        if not self._asked and not self._rounds:
            return None
        deadlines = [
            asked.started_ns + self._config.election_max_ns for asked in self._asked.values()
        ]
        deadlines += [r.started_ns + self._config.heartbeat_ns for r in self._rounds.values()]
        return min(deadlines, default=None)

    # ------------------------------------------------------------------ ends

    def finish(self, applied_index: int) -> None:
        """Serve the confirmed reads whose index is applied (rule 5); call between entries only."""
        if not self._confirmed:
            return
        waiting = []
        for index, reads in self._confirmed:
            if not self._may_serve(index, applied_index):
                waiting.append((index, reads))
                continue
            self._count -= len(reads)
            self._counters.reads += len(reads)
            for done in reads:
                done(index)
        self._confirmed = waiting

    @staticmethod
    def _may_serve(index: int, applied_index: int) -> bool:
        return applied_index >= index

    def step_down(self, leader: int | None) -> None:
        """Fail what needed this node's leadership."""
        for round_ in self._rounds.values():
            self._fail(round_.local, NotLeader(leader))
            self._refuse(round_.remote, round_.term)
        self._rounds.clear()

    def refuse_arrived(self, leader: int | None, term: int) -> None:
        """Fail what arrived while nobody leads."""
        reads, self._arrived = self._arrived, []
        self._fail(reads, NotLeader(leader))
        self.refuse_remote(term)

    def refuse_remote(self, term: int) -> None:
        """Refuse followers' questions that arrived while this node does not lead."""
        remote, self._arrived_remote = self._arrived_remote, []
        self._refuse(remote, term)

    def _refuse(self, remote: list[tuple[int, int]], term: int) -> None:
        self._remote_count -= len(remote)
        for peer, nonce in remote:
            self._send(peer, ReadAnswer(term, nonce, ok=False, index=0))

    def refuse_unreachable(self) -> None:
        """Fail reads that wait for entries which no peer can send any more."""
        confirmed, self._confirmed = self._confirmed, []
        for _, reads in confirmed:
            self._fail(reads, TooFarBehind("this node lacks entries that its peers have dropped"))

    def stop(self, error: ReplicationError) -> None:
        """Fail everything local."""
        groups = [self._arrived]
        groups += [round_.local for round_ in self._rounds.values()]
        groups += [asked.reads for asked in self._asked.values()]
        groups += [reads for _, reads in self._confirmed]
        self._arrived = []
        self._rounds.clear()
        self._asked.clear()
        self._confirmed.clear()
        for reads in groups:
            self._fail(reads, error)

    def _fail(self, reads: list[ReadDone], error: ReplicationError) -> None:
        self._count -= len(reads)
        self._counters.reads_failed += len(reads)
        for done in reads:
            done(error)
