"""What must hold at every moment of a simulated cluster, whatever was done to it.

The witness of linearizability is the commit order itself: a read is right if the index it was
served at is not below any index that was acknowledged, or read, before the read began.
"""

import hashlib
from typing import NamedTuple

from nokv_replication import (
    Applied,
    Committed,
    Group,
    OutcomeUnknown,
    ReplicationError,
    Role,
    Times,
)


class Violation(AssertionError):
    """A promise was broken."""


class Entry(NamedTuple):
    """One applied entry as the first replica to apply it saw it."""

    term: int
    times: Times
    payloads: list[bytes]
    results: list[bytes]
    config: bytes


def require(holds: bool, text: str) -> None:
    if not holds:
        raise Violation(text)


class Checker:
    """Sees every step, application, acknowledgement and read of one cluster's life."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}
        # Index to (term, hash of bytes), of every entry any node ever held to be committed.
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.applied: dict[int, Entry] = {}
        self.fingerprints: dict[int, bytes] = {}
        self.where: dict[bytes, int] = {}
        self.acked: dict[bytes, int] = {}
        self.refused: set[bytes] = set()
        self.unknown: set[bytes] = set()
        # Largest index that any client knows of: acknowledged or read.
        self.known_index = 0
        self.reads = 0
        self._commit_seen: dict[int, int] = {}
        self._was_leader: dict[int, int] = {}

    def started(self, node: int, group: Group) -> None:
        """A process opened its log and machine."""
        self._commit_seen[node] = group._core.commit_index()
        self._was_leader.pop(node, None)
        applied = group._applier.applied
        if applied.index:
            term = self.committed[applied.index][0]
            require(applied.term == term, f"node {node} opened {applied} but term is {term}")

    def stepped(self, node: int, group: Group) -> None:
        """Compare a node's log with what is known to be committed."""
        log, core = group._log, group._core
        commit, seen = core.commit_index(), self._commit_seen[node]
        require(commit >= seen, f"node {node}: commit index fell from {seen} to {commit}")
        require(commit <= log.last_index, f"node {node}: committed {commit} beyond its log")
        for index in range(max(seen, log.base_index) + 1, commit + 1):
            digest = hashlib.blake2b(log.entry(index), digest_size=8).digest()
            entry = (log.term_at(index), digest)
            known = self.committed.setdefault(index, entry)
            require(known == entry, f"node {node} commits {entry} at {index}, another {known}")
        self._commit_seen[node] = commit
        if core.role() == Role.LEADER and self._was_leader.get(node) != core.term():
            self._elected(node, group)
            self._was_leader[node] = core.term()

    def _elected(self, node: int, group: Group) -> None:
        log, term = group._log, group._core.term()
        other = self.leaders.setdefault(term, node)
        require(other == node, f"nodes {other} and {node} both lead term {term}")
        for index in range(log.first_index, max(self.committed, default=0) + 1):
            if index in self.committed:
                held = index <= log.last_index and log.term_at(index) == self.committed[index][0]
                require(held, f"leader {node} of term {term} lacks committed entry {index}")

    def entry_applied(
        self, node: int, applied: Applied, times: Times, payloads: list[bytes], results: list[bytes]
    ) -> None:
        """Every replica applies the same entries with the same results."""
        index = applied.index
        require(index in self.committed, f"node {node} applied {index} before it was committed")
        entry = Entry(applied.term, times, payloads, results, applied.config)
        known = self.applied.get(index)
        if known is not None:
            require(known == entry, f"node {node} applied {entry} at {index}, another {known}")
            return
        self.applied[index] = entry
        before = self.applied.get(index - 1)
        if before is not None:
            require(times.cluster_ns >= before.times.cluster_ns, f"cluster time falls at {index}")
            require(times.wall_ns >= before.times.wall_ns, f"wall time falls at {index}")
        for payload in payloads:
            require(payload not in self.where, f"{payload[:12]!r} applied twice, again at {index}")
            require(payload not in self.refused, f"refused {payload[:12]!r} applied at {index}")
            self.where[payload] = index

    def fingerprint(self, node: int, index: int, fingerprint: bytes) -> None:
        """Replicas at the same index have the same results behind them."""
        known = self.fingerprints.setdefault(index, fingerprint)
        require(known == fingerprint, f"node {node} has another fingerprint at {index}")

    def answered(self, payload: bytes, outcome: object) -> None:
        """A client got its answer."""
        if isinstance(outcome, Committed):
            at = self.where.get(payload)
            require(
                at == outcome.index, f"{payload[:12]!r} acknowledged at {outcome.index}, is {at}"
            )
            entry = self.applied[outcome.index]
            result = entry.results[entry.payloads.index(payload)]
            require(result == outcome.result, f"{payload[:12]!r} got another's result")
            self.acked[payload] = outcome.index
            self.known_index = max(self.known_index, outcome.index)
        elif isinstance(outcome, OutcomeUnknown):
            self.unknown.add(payload)
        else:
            assert isinstance(outcome, ReplicationError)
            require(payload not in self.where, f"{payload[:12]!r} was refused and applied")
            self.refused.add(payload)

    def read(self, node: int, known_before: int, index: int, applied: int, *, mid: bool) -> None:
        """A read that began when clients knew `known_before` is served at `applied`."""
        require(not mid, f"node {node} serves a read in the middle of an entry")
        require(applied >= index, f"node {node} serves a read of {index} at {applied}")
        require(applied >= known_before, f"stale read at node {node}: {applied} < {known_before}")
        self.known_index = max(self.known_index, applied)
        self.reads += 1
