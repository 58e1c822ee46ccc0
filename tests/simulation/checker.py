"""What must hold at every moment of a simulated cluster, whatever was done to it.

The witness of linearizability is the commit order itself: a read is right if the index it was
served at is not below any index that was acknowledged, or read, before the read began. What a node
promised is compared with what its disk would still hold after a power cut at that very moment.
"""

from typing import NamedTuple

import msgspec
from tests.simulation.disk import SimDisk

from nokv_replication import (
    Applied,
    Committed,
    Group,
    OutcomeUnknown,
    ReplicationError,
    Times,
    records,
)
from nokv_replication.bootstrap import Members
from nokv_replication.errors import LogDamaged
from nokv_replication.frames import (
    Ack,
    EntryKind,
    ProbeOk,
    RequestVote,
    Vote,
    decode_entry,
    decode_frame,
)
from nokv_replication.records import HardState, RecordType, SegmentHeader


class Violation(AssertionError):
    """A promise was broken."""


class Entry(NamedTuple):
    """One applied entry as the first replica to apply it saw it."""

    term: int
    times: Times
    payloads: list[bytes]
    results: list[bytes]
    config: bytes


class Written(NamedTuple):
    """One entry of any log, committed or not, as the first node to hold it wrote it."""

    before_term: int
    command: bytes


class Configuration(NamedTuple):
    """The members an entry of the log names."""

    at: int
    term: int
    voters: frozenset[int]
    learners: frozenset[int]


def require(holds: object, text: str) -> None:
    if not holds:
        raise Violation(text)


class Replica:
    """What is known of one node's log and promises, over its crashes."""

    def __init__(self) -> None:
        self.commit = 0
        self.applied = 0
        self.durable = 0
        self.led_term = 0
        # Index to term of all that the log or the machine behind it holds, up to `last`.
        self.terms: dict[int, int] = {}
        self.last = 0
        self.last_term = 0
        # `last` at the look before.
        self.looked = 0
        self.base = 0
        self.synced = 0
        self.durable_term = 0
        self.votes: dict[int, int] = {}
        # Its disk was tampered with: what it held may be gone.
        self.damaged = False


class Checker:
    """Sees every step, frame, application, acknowledgement and read of one cluster's life."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}
        # Index to term, of every entry any node ever held to be committed.
        self.committed: dict[int, int] = {}
        # Index to the term it was committed in: leaders of later terms must hold it.
        self.committed_in: dict[int, int] = {}
        self.max_committed = 0
        self.written: dict[tuple[int, int], Written] = {}
        self.configurations: dict[tuple[int, int], Configuration] = {}
        self.applied: dict[int, Entry] = {}
        self.fingerprints: dict[int, bytes] = {}
        self.where: dict[bytes, int] = {}
        self.acked: dict[bytes, int] = {}
        # Index to payloads and results told of an entry that nobody has applied as a whole yet.
        self.told_early: dict[int, dict[bytes, bytes]] = {}
        self.refused: set[bytes] = set()
        self.unknown: set[bytes] = set()
        # Largest index that any client knows of: acknowledged or read.
        self.known_index = 0
        self.reads = 0
        self.replicas: dict[int, Replica] = {}
        # What each node held on the disks it lost: a leader may count what they acknowledged.
        self.lost: dict[int, list[Replica]] = {}

    # ------------------------------------------------------------------ processes

    def forget(self, node: int) -> None:
        """The node lost its disk and everything it promised with it."""
        replica = self.replicas.pop(node, None)
        if replica is not None:
            self.lost.setdefault(node, []).append(replica)

    def started(self, node: int, group: Group) -> None:
        """A process opened its log and machine: nothing it promised may be missing."""
        replica = self.replicas.setdefault(node, Replica())
        log, applied = group._log, group._applier.applied
        if applied.index:
            term = self.committed[applied.index]
            require(applied.term == term, f"node {node} opened {applied} but term is {term}")
        require(
            applied.index >= replica.durable or replica.damaged,
            f"node {node} opened its machine at {applied.index}, it was durable at"
            f" {replica.durable}",
        )
        if replica.synced and not replica.damaged:
            # The state may have been replaced by one that the log's entries do not lead to.
            other = log.base_index == applied.index and (
                replica.terms.get(applied.index) != applied.term
            )
            require(
                log.last_index >= replica.synced or other,
                f"node {node} opened its log up to {log.last_index}, {replica.synced} was synced",
            )
            if replica.synced > log.base_index:
                require(
                    log.term_at(replica.synced) == replica.terms[replica.synced],
                    f"node {node} opened another entry at {replica.synced} than it synced",
                )
        replica.commit = group._core.commit_index()
        replica.applied = applied.index
        replica.led_term = 0
        replica.last = log.base_index if replica.damaged else min(replica.last, log.last_index)
        self._mirror(replica, node, group)

    def stepped(self, node: int, group: Group, *, died: bool = False) -> None:
        """Compare a node's log with all that is known of the others'.

        `died`: its process ended in the middle of this step.
        """
        log, core = group._log, group._core
        replica = self.replicas[node]
        led = _led_term(node, group) if died else core.term() * core.is_leader()
        last_index, last_term = log.last_index, log.last_term
        replica.looked = replica.last
        if last_index != replica.last or last_term != replica.last_term:
            self._mirror(replica, node, group)
        replica.synced = min(log.synced_index, last_index)
        commit, seen = core.commit_index(), replica.commit
        if core.is_leader() and commit > replica.synced:
            # A single voter counts its own copy at once; until it is synced nothing may follow.
            commit = max(seen, replica.synced)
        if commit != seen:
            require(commit > seen, f"node {node}: commit index fell from {seen} to {commit}")
            require(commit <= last_index, f"node {node}: committed {commit} beyond its log")
            self._commits(replica, node, group, commit, led)
            replica.commit = commit
        applied, durable = group._applier.applied.index, group._applier.durable_index
        if not replica.applied <= applied <= commit or not replica.durable <= durable <= applied:
            message = (
                f"node {node} is at {durable=}, {applied=}, {commit=}, was at"
                f" {replica.durable}, {replica.applied}, {seen}"
            )
            raise Violation(message)
        replica.applied, replica.durable = applied, durable
        if led and replica.led_term != led:
            self._elected(node, group, led)
        replica.led_term = led

    # ------------------------------------------------------------------ logs

    def _mirror(self, replica: Replica, node: int, group: Group) -> None:
        """Log matching: an entry of one index and term is one entry, after the same others."""
        log, terms = group._log, replica.terms
        index, fresh = log.last_index, []
        floor = log.base_index
        while index > floor:
            term = log.term_at(index)
            if index <= replica.last and terms.get(index) == term:
                break
            fresh.append((index, term))
            index -= 1
        for index, term in reversed(fresh):
            terms[index] = term
            before = log.term_at(index - 1)
            assert term >= before
            command = log.entry(index)
            known = self.written.get((index, term))
            if known is None:
                self.written[index, term] = Written(before, command)
                self._written_first(node, group, index, term, command)
            elif known != (before, command):
                message = f"node {node} has another entry {index} of term {term}, or before it"
                raise Violation(message)
        terms[log.base_index] = log.base_term
        replica.last, replica.last_term = log.last_index, log.last_term
        replica.base = log.base_index

    def _written_first(
        self, node: int, group: Group, index: int, term: int, command: bytes
    ) -> None:
        leader = self.leaders.get(term)
        if leader is not None:
            require(leader == node, f"node {node} wrote {index} of term {term}, led by {leader}")
        try:
            entry = decode_entry(command, index)
        except LogDamaged:
            return  # of a build to come: every node stops before it applies it, or skips it
        if entry.kind == EntryKind.MEMBERS:
            self._configured(node, group, index, term, entry.payloads[0])

    def _configured(self, node: int, group: Group, index: int, term: int, config: bytes) -> None:
        """One change at a time: by one server, and after the one before is committed."""
        members = msgspec.msgpack.decode(config, type=Members).members
        voters = frozenset(m.node for m in members if getattr(m, "voter", True))
        learners = frozenset(m.node for m in members) - voters
        new = Configuration(index, term, voters, learners)
        old = self.configuration_of(node, index - 1)
        self.configurations[index, term] = new
        if old is None:
            return
        commit = group._core.commit_index()
        require(old.at <= commit, f"node {node} changes members at {index} before {old.at}")
        require(
            len(old.voters ^ new.voters) + len(old.learners ^ new.learners) <= 2
            and len(old.voters ^ new.voters) <= 1,
            f"members change by more than one at {index}: {old} then {new}",
        )

    def configuration_of(self, node: int, index: int) -> Configuration | None:
        """Return the newest configuration in a node's log up to `index`, None if there is none."""
        replica, committed = self.replicas[node], self.committed
        # Behind the log's base an image may have taken the place of other entries.
        found = [
            configuration
            for (at, term), configuration in self.configurations.items()
            if at <= index
            and term
            == (committed if at <= replica.base else replica.terms).get(at, committed.get(at))
        ]
        return max(found, key=lambda c: c.at) if found else None

    def possible_configurations(self) -> list[Configuration]:
        """Return the newest committed configuration and all that may follow it."""
        committed = [c for (i, t), c in self.configurations.items() if self.committed.get(i) == t]
        newest = max((c.at for c in committed), default=0)
        later = [c for c in self.configurations.values() if c.at > newest]
        return [c for c in committed if c.at == newest] + later

    def _commits(self, replica: Replica, node: int, group: Group, commit: int, led: int) -> None:
        log, core, committed = group._log, group._core, self.committed
        start = max(replica.commit, log.base_index)
        # A leader may commit and lose its office in one step.
        led = led or replica.led_term
        if core.is_leader() or (led and log.term_at(commit) == led):
            # Before its first entry names the members the list of the founders counts.
            alone = group._configurations.voters == {node}
            self._has_quorum(node, commit, log.term_at(commit), led, group_of_one=alone)
        else:
            require(
                commit <= self.max_committed,
                f"node {node} takes {commit} for committed, no leader went beyond"
                f" {self.max_committed}",
            )
        for index in range(start + 1, commit + 1):
            term = log.term_at(index)
            if index not in committed:
                self.committed_in[index] = led or core.term()
            known = committed.setdefault(index, term)
            if known != term:
                message = f"node {node} commits term {term} at {index}, another {known}"
                raise Violation(message)
        self.max_committed = max(self.max_committed, commit)

    def _has_quorum(
        self, node: int, commit: int, term: int, leads: int, *, group_of_one: bool
    ) -> None:
        """A leader commits entries of its own term that a majority of the voters has synced."""
        # What a step commits it commits before it appends, perhaps a change of members.
        configuration = self.configuration_of(node, commit)
        newest = self.configuration_of(node, self.replicas[node].last)
        if newest is not None and newest.at <= self.replicas[node].looked:
            configuration = newest
        alone = configuration is not None and configuration.voters == {node}
        holds = term == leads or alone or (configuration is None and group_of_one)
        require(holds, f"leader {node} of term {leads} commits {commit} of term {term}")
        if configuration is None:
            return
        holders = [
            voter
            for voter in configuration.voters
            if (
                (replica := self.replicas.get(voter)) is not None
                and replica.synced >= commit
                and replica.terms.get(commit) in (term, None)
            )
            or any(
                replica.synced >= commit and replica.terms.get(commit) == term
                for replica in self.lost.get(voter, ())
            )
        ]
        require(
            2 * len(holders) > len(configuration.voters),
            f"leader {node} commits {commit}, synced by {sorted(holders)} of"
            f" {sorted(configuration.voters)}",
        )

    def _elected(self, node: int, group: Group, term: int) -> None:
        log = group._log
        other = self.leaders.setdefault(term, node)
        require(other == node, f"nodes {other} and {node} both lead term {term}")
        for index in range(log.first_index, self.max_committed + 1):
            known = self.committed.get(index)
            if known is not None and self.committed_in[index] < term:
                held = index <= log.last_index and log.term_at(index) == known
                require(held, f"leader {node} of term {term} lacks committed entry {index}")

    # ------------------------------------------------------------------ promises

    def promised(self, node: int, group: Group, disk: SimDisk, data: bytes, peer: int) -> None:
        """A frame leaves: what it promises must survive a power cut at this moment."""
        announced = _announced(data)
        if announced is not None:
            # What is told to be committed must not be gone here after a power cut.
            synced = group._log.synced_index
            require(announced <= synced, f"node {node} announces {announced}, synced {synced}")
            return
        body = decode_frame(data).body
        replica = self.replicas[node]
        if disk.dirty:
            message = f"node {node} sends {body} before its disk is synced"
            raise Violation(message)
        if replica.damaged:
            return  # what lies behind a turned bit can't be read back
        if isinstance(body, Ack):
            # What it stored of an older term, a newer leader may have replaced in the same step.
            if body.success and body.term == group._core.term():
                synced = group._log.synced_index
                if body.next_index - 1 > synced:
                    message = f"node {node} acknowledges {body.next_index - 1}, synced {synced}"
                    raise Violation(message)
            self._term_is_durable(node, replica, disk, body.term)
        elif isinstance(body, Vote | RequestVote):
            states = durable_hard_states(disk)
            replica.durable_term = states[-1].term
            candidate = peer if isinstance(body, Vote) else node
            if HardState(body.term, candidate) not in states:
                # A newer term came in the same step, with more entries than a segment holds.
                states = durable_hard_states(disk, segments_max=1 << 30)
            require(
                HardState(body.term, candidate) in states,
                f"node {node} sends {body} to {peer}, its disk says {states[-3:]}",
            )
            known = replica.votes.setdefault(body.term, candidate)
            require(
                known == candidate,
                f"node {node} votes for {known} and {candidate} in term {body.term}",
            )
        elif isinstance(body, ProbeOk):
            self._term_is_durable(node, replica, disk, body.term)

    def _term_is_durable(self, node: int, replica: Replica, disk: SimDisk, term: int) -> None:
        if term > replica.durable_term:
            replica.durable_term = durable_hard_states(disk)[-1].term
            require(
                term <= replica.durable_term,
                f"node {node} answers in term {term}, its disk says {replica.durable_term}",
            )

    # ------------------------------------------------------------------ machines

    def entry_applied(
        self, node: int, applied: Applied, times: Times, payloads: list[bytes], results: list[bytes]
    ) -> None:
        """Every replica applies the same entries with the same results."""
        index = applied.index
        require(index in self.committed, f"node {node} applied {index} before it was committed")
        entry = Entry(applied.term, times, payloads, results, applied.config)
        known = self.applied.get(index)
        if known is not None:
            if known != entry:
                message = f"node {node} applied {entry} at {index}, another {known}"
                raise Violation(message)
            return
        self.applied[index] = entry
        before = self.applied.get(index - 1)
        if before is not None:
            require(times.cluster_ns >= before.times.cluster_ns, f"cluster time falls at {index}")
            require(times.wall_ns >= before.times.wall_ns, f"wall time falls at {index}")
        where, refused = self.where, self.refused
        for payload in payloads:
            if payload in where or payload in refused:
                message = f"{payload[:12]!r} applied twice or though refused, at {index}"
                raise Violation(message)
            where[payload] = index
        for payload, result in self.told_early.pop(index, {}).items():
            holds = payload in payloads and results[payloads.index(payload)] == result
            require(holds, f"{payload[:12]!r} is not what was told of it at {index}")

    def fingerprint(self, node: int, index: int, fingerprint: bytes) -> None:
        """Replicas at the same index have the same results behind them."""
        known = self.fingerprints.setdefault(index, fingerprint)
        if known != fingerprint:
            message = f"node {node} has another fingerprint at {index}"
            raise Violation(message)

    # ------------------------------------------------------------------ clients

    def answered(self, payload: bytes, outcome: object) -> None:
        """A client got its answer."""
        holds = payload not in self.acked and payload not in self.refused
        if isinstance(outcome, Committed):
            index = outcome.index
            entry = self.applied.get(index)
            if entry is None:  # a slice of apply ended within it
                holds = holds and payload not in self.where and index in self.committed
                self.told_early.setdefault(index, {})[payload] = outcome.result
            else:
                holds = holds and self.where.get(payload) == index
                holds = holds and entry.results[entry.payloads.index(payload)] == outcome.result
            self.acked[payload] = index
            self.known_index = max(self.known_index, index)
        elif isinstance(outcome, OutcomeUnknown):
            holds = holds and payload not in self.unknown
            self.unknown.add(payload)
        else:
            assert isinstance(outcome, ReplicationError)
            holds = holds and payload not in self.where and payload not in self.unknown
            self.refused.add(payload)
        if not holds:
            message = f"{payload[:12]!r} of {self.where.get(payload)} is answered {outcome!r}"
            raise Violation(message)

    def read(self, node: int, known_before: int, index: int, applied: int, *, mid: bool) -> None:
        """A read that began when clients knew `known_before` is served at `applied`."""
        require(not mid, f"node {node} serves a read in the middle of an entry")
        require(applied >= index, f"node {node} serves a read of {index} at {applied}")
        require(applied >= known_before, f"stale read at node {node}: {applied} < {known_before}")
        self.known_index = max(self.known_index, applied)
        self.reads += 1


def _led_term(node: int, group: Group) -> int:
    """Return the term that a process led as its step died, 0 where it led none.

    The library deposes a leader after it has written the newer term: where that write failed, the
    memory that is left says that it leads the term that deposed it. Who was elected has voted for
    itself; and a leader's log ends with an entry of the term it leads.
    """
    core, log = group._core, group._log
    if not core.is_leader():
        return 0
    return core.term() if log.hard_state == HardState(core.term(), node) else log.last_term


def _announced(data: bytes) -> int | None:
    """Return the commit index of an append, without decoding its entries; None of another frame."""
    body = _envelope.decode(data)[3]
    return _append.decode(body)[4] if bytes(body)[1] == 1 else None


_envelope = msgspec.msgpack.Decoder(tuple[int, int, int, msgspec.Raw])
_append = msgspec.msgpack.Decoder(tuple[int, int, int, int, int, msgspec.Raw])


def durable_hard_states(disk: SimDisk, segments_max: int = 2) -> list[HardState]:
    """Return terms and votes as the newest segments would have them after a power cut now."""
    segments = {name: data for name, data in disk.durable().items() if name.endswith(".log")}
    states = [HardState()]
    for name in sorted(segments)[-segments_max:]:
        data = memoryview(segments[name])
        first = records.decode_at(data, 0, 0)
        assert first is not None
        header = msgspec.msgpack.decode(first.payload, type=SegmentHeader)
        states.append(header.hard_state)
        states.extend(
            msgspec.msgpack.decode(record.payload, type=HardState)
            for record in records.scan(data, first.end, header.salt)
            if record.type == RecordType.HARD_STATE
        )
    return states
