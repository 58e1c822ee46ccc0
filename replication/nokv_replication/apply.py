"""Runs committed entries through the state machine, in slices, and commits it now and then.

Only entries that are synced in this node's own log are applied, so that the machine's durable
position is never ahead of the log. An entry is applied as a stepper: when the slice is over in the
middle of one, replication steps, and until the entry ends there is no read, commit or digest.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nokv_replication.errors import Diverged, Fatal, OutcomeUnknown, ReplicationError
from nokv_replication.frames import EntryKind, decode_entry, way_past
from nokv_replication.histogram import Histogram
from nokv_replication.log import Log
from nokv_replication.ports import Clock, Machine
from nokv_replication.skips import Skips
from nokv_replication.types import (
    Applied,
    Committed,
    Counters,
    GroupConfig,
    Outcome,
    ProposeDone,
)

_HISTORY = 4096
_PAYLOADS_PER_LOOK = 16
"""Payloads between two looks at the clock."""


class _Waiters(NamedTuple):
    """Who waits for an entry: in the order of its payloads."""

    term: int
    callbacks: list[ProposeDone]
    since_ns: int


class Applier:
    """The machine of one group, and who waits for its results."""

    def __init__(
        self,
        machine: Machine,
        log: Log,
        config: GroupConfig,
        clock: Clock,
        counters: Counters,
        skips: Skips,
    ) -> None:
        self._machine = machine
        self._log = log
        self._config = config
        self._clock = clock
        self._counters = counters
        self.skips = skips
        self.latency = Histogram()
        """From the oldest proposal of an entry to its end, once a proposal."""
        self.commits = Histogram()
        """Of the machine's durable commits."""
        self.applied: Applied = machine.open()
        """Position after the last entry that was applied to its end."""
        skips.opened(self.applied)
        self.durable_index = self.applied.index
        """Applied index of the last commit of the machine; never above `applied.index`."""
        self._stepper: Iterator[bytes] | None = None
        self._next = self.applied
        self._next_waiters: _Waiters | None = None
        self._next_results = 0
        self._next_payloads = 0
        self._uncommitted_bytes = 0
        # When the oldest entry of the machine's open transaction was applied.
        self._uncommitted_since_ns = 0
        # By index: proposals in the log that are not applied.
        self._waiters: dict[int, _Waiters] = {}
        self.waiting = 0
        """Proposals in the log whose callbacks were not called."""
        self._results: list[tuple[ProposeDone, Outcome]] = []
        # index % _HISTORY -> (index, running hash after it), of this process's life.
        self._fingerprints: list[tuple[int, bytes]] = [(-1, b"")] * _HISTORY
        self._note_fingerprint()

    # ------------------------------------------------------------------ results

    def wait(self, index: int, term: int, callbacks: list[ProposeDone], since_ns: int) -> None:
        """Remember whom to tell when the entry at `index` was applied.

        `since_ns`: monotonic time at which the oldest of the proposals arrived.
        """
        self._waiters[index] = _Waiters(term, callbacks, since_ns)
        self.waiting += len(callbacks)

    def abandon(self, error: ReplicationError) -> None:
        """Tell everybody who waits that the outcome is not known here."""
        waiters, self._waiters = self._waiters, {}
        groups = [one.callbacks for one in waiters.values()]
        if self._next_waiters is not None:
            groups.append(self._next_waiters.callbacks[self._next_results :])
            self._next_waiters = None
        for callbacks in groups:
            self.waiting -= len(callbacks)
            self._counters.failed_unknown += len(callbacks)
            self._results.extend((done, error) for done in callbacks)

    def deliver(self) -> None:
        """Call back with the results so far; the callbacks may propose, but not step."""
        if self._results:
            results, self._results = self._results, []
            for done, outcome in results:
                done(outcome)

    # ------------------------------------------------------------------ applying

    @property
    def between_entries(self) -> bool:
        """Whether no entry is half applied."""
        return self._stepper is None

    def run(self, limit_index: int, on_entry: Callable[[int], None]) -> None:
        """Apply entries up to `limit_index` for one slice of time.

        `on_entry(applied_index)` runs after each entry: the place for reads.
        """
        if self._stepper is None and self.applied.index >= limit_index:
            return
        deadline_ns = self._clock.monotonic_ns() + self._config.apply_slice_ns
        while True:
            if self._stepper is None:
                if self.applied.index >= limit_index:
                    return
                self._begin(self.applied.index + 1)
            try:
                ended = self._pull(deadline_ns)
            except Exception as error:
                index = self._next.index
                error.add_note(f"entry {index} of the log did that; always? {way_past(index)}")
                raise
            if not ended:
                return
            self._end()
            on_entry(self.applied.index)
            if self._clock.monotonic_ns() >= deadline_ns:
                return

    def _begin(self, index: int) -> None:
        assert index <= self._log.synced_index
        term = self._log.term_at(index)
        command = self._log.entry(index)
        waiters = self._waiters.pop(index, None)
        skip = self.skips.at(index)
        if skip is not None:
            self.skips.check(skip, term, command)
            last, payloads = self.applied, []
            self._next = Applied(index, term, last.config, last.times, (*last.skips, skip))
            self._give_up(waiters, "an operator had the group skip this entry")
            waiters = None
        else:
            payloads = self._decode(command, index, term)
            if waiters is not None and waiters.term != term:
                self._give_up(waiters, "another leader's entry took the place of this one")
                waiters = None
        self._next_payloads, self._next_results = len(payloads), 0
        self._next_waiters = waiters
        self._uncommitted_bytes += len(command)
        self._stepper = iter(self._machine.apply(self._next, self._next.times, payloads))

    def _decode(self, command: bytes, index: int, term: int) -> list[bytes]:
        """Set the position that the entry leads to; return its payloads for the machine."""
        entry, last = decode_entry(command, index), self.applied
        if entry.cluster_ns < last.times.cluster_ns or entry.wall_ns < last.times.wall_ns:
            message = f"time falls at entry {index}: {last.times} then {entry.times}"
            raise Fatal(message)
        payloads, config = entry.payloads, last.config
        if entry.kind == EntryKind.MEMBERS:
            assert len(payloads) == 1
            config, payloads = payloads[0], []
        self._next = Applied(index, term, config, entry.times, last.skips)
        return payloads

    def _give_up(self, waiters: "_Waiters | None", why: str) -> None:
        if waiters is not None:
            self.waiting -= len(waiters.callbacks)
            self._counters.failed_unknown += len(waiters.callbacks)
            lost = OutcomeUnknown(why)
            self._results.extend((done, lost) for done in waiters.callbacks)

    def _pull(self, deadline_ns: int) -> bool:
        """Step the current entry; return whether it ended."""
        assert self._stepper is not None
        waiters = self._next_waiters
        callbacks = waiters.callbacks if waiters is not None else None
        assert callbacks is None or len(callbacks) == self._next_payloads
        index, at = self._next.index, self._next_results
        results = self._results
        for result in self._stepper:
            if callbacks is not None:
                results.append((callbacks[at], Committed(index, result)))
            at += 1
            if not at % _PAYLOADS_PER_LOOK and self._clock.monotonic_ns() >= deadline_ns:
                self._account(at, callbacks)
                return False
        self._account(at, callbacks)
        assert at == self._next_payloads, "a machine yields one result per payload"
        return True

    def _account(self, results: int, callbacks: list[ProposeDone] | None) -> None:
        if callbacks is not None:
            self.waiting -= results - self._next_results
            self._counters.proposals_committed += results - self._next_results
        self._next_results = results

    def _end(self) -> None:
        self._stepper = None
        waiters, self._next_waiters = self._next_waiters, None
        if waiters is not None:
            took_ns = self._clock.monotonic_ns() - waiters.since_ns
            self.latency.observe(took_ns, len(waiters.callbacks))
        if self.applied.index == self.durable_index:
            self._uncommitted_since_ns = self._clock.monotonic_ns()
        self.applied = self._next
        self._counters.entries_applied += 1
        self._note_fingerprint()

    # ------------------------------------------------------------------ committing

    def commit_due_ns(self) -> int | None:
        """Return when the machine's next commit is due, None while there is nothing to commit."""
        if self.applied.index == self.durable_index:
            return None
        if self._uncommitted_bytes >= self._config.commit_bytes:
            return 0
        return self._uncommitted_since_ns + self._config.commit_interval_ns

    def commit_if_due(self) -> bool:
        """Commit the machine between entries when its time or size has come."""
        due_ns = self.commit_due_ns()
        if due_ns is None or self._stepper is not None or self._clock.monotonic_ns() < due_ns:
            return False
        self.commit()
        return True

    def uncommitted_ns(self) -> int:
        """Return how long the oldest applied entry has waited for its commit, 0 without one."""
        if self.applied.index == self.durable_index:
            return 0
        return self._clock.monotonic_ns() - self._uncommitted_since_ns

    def commit(self) -> None:
        """Commit the machine now; between entries only."""
        assert self._stepper is None
        started_ns = self._clock.monotonic_ns()
        index = self._machine.commit()
        self.commits.observe(self._clock.monotonic_ns() - started_ns)
        assert self.durable_index <= index <= self.applied.index
        self.durable_index = index
        self._uncommitted_bytes = 0
        self._counters.machine_commits += 1

    def installed(self, applied: Applied) -> None:
        """Go on from an image that took the place of the state; between entries only.

        Whoever waits for an entry that was passed over is told that its outcome is not known here.
        """
        assert self._stepper is None
        self.abandon(OutcomeUnknown("a state image took the place of the entries before it"))
        assert applied.index > self.applied.index, "an image never goes back"
        self.applied = self._next = applied
        self.durable_index = applied.index
        self._uncommitted_bytes = 0
        self.skips.opened(applied)
        self._note_fingerprint()

    # ------------------------------------------------------------------ divergence

    def _note_fingerprint(self) -> None:
        index = self.applied.index
        self._fingerprints[index % _HISTORY] = (index, self._machine.fingerprint())

    def fingerprint(self) -> bytes:
        """Return the machine's running hash at `applied.index`."""
        return self._fingerprints[self.applied.index % _HISTORY][1]

    def fingerprint_at(self, index: int) -> bytes | None:
        """Return the running hash after the entry at `index`, None when it is not remembered."""
        noted, fingerprint = self._fingerprints[index % _HISTORY]
        return fingerprint if noted == index else None

    def check_fingerprint(self, index: int, theirs: bytes) -> None:
        """Compare with the leader's running hash.

        Raises:
            Diverged: this node's results are not the leader's.
        """
        mine = self.fingerprint_at(index)
        if mine is not None and mine != theirs:
            message = (
                f"results up to entry {index} differ from the leader's ({mine.hex()} here,"
                f" {theirs.hex()} there): this replica has diverged and stops. Keep its data for"
                " inspection; the others go on while they are a majority"
                " (docs/operations.md: A lost node)"
            )
            raise Diverged(message)
