"""What only the leader does: ends sessions, logs their marks, reaps, trims, starts the volume.

All of it goes through the log as commands of the node itself. None of it is needed for safety by
anybody but sessions: a deposed leader's proposals fail, and the next one begins anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from nokv.errors import NokvError, from_wire
from nokv.server.config import SessionsConfig
from nokv.server.sessions import SessionAges
from nokv.state.flatten import Search
from nokv.state.records import Origin
from nokv.types.commands import (
    COMMAND_FORMAT,
    Checkpoint,
    Command,
    ExpireSession,
    InitVolume,
    Op,
    RaiseFormat,
    Reap,
    RestoreVolume,
    SessionMarks,
    TrimEvents,
)
from nokv.types.formats import FIRST_STATE_FORMAT, STATE_FORMAT
from nokv.types.limits import COMMAND_BYTES_MAX
from nokv.types.results import Reaped, Result
from nokv.types.trash import ExpireTrash
from nokv.types.values import Caller, Marks
from nokv.types.views import ExpireSnapshots, Flatten
from nokv.wire.codec import encode_command, result_codec
from nokv_replication import Committed, Outcome, Refused

log = logging.getLogger("nokv.leader")

MS: Final = 1_000_000
TICK_MS: Final = 100
REAP_BURST_MS: Final = 100
"""What background work did not use of so long a time it may use later."""
REAP_ALONE_MAX: Final = 10
"""Commands of others between two ticks that background work takes no notice of."""
TRIM_PERIOD_NS: Final = 1_000 * MS
FLATTEN_PERIOD_NS: Final = 10_000 * MS
"""All views are looked at so often, some in each tick, while none has to be flattened."""

LEASES_PERIOD_NS: Final = 1_000 * MS
"""All snapshots are looked at so often, while one of them has a lease; and the trash."""

EXPIRE_IN_FLIGHT_MAX: Final = 64
_MARKS_BYTES: Final = COMMAND_BYTES_MAX // 4
"""Marks of one command; what does not fit goes into the next."""

Propose = Callable[[bytes, Callable[[Outcome], None]], None]


class MachineView(Protocol):
    """What the duties ask of the state, between entries."""

    @property
    def version(self) -> int:
        """Version of the last command."""
        ...

    def pending_work(self) -> bool:
        """Whether a `Reap` would find something."""
        ...

    @property
    def format(self) -> int:
        """The state format in force."""
        ...

    def has_leases(self) -> bool:
        """Whether some snapshot has a lease."""
        ...

    def first_lease_end(self) -> int:
        """Return the cluster time at which the first lease of a snapshot ends; 0: none has one."""
        ...

    def flatten_due(self, search: Search | None = None) -> int:
        """Return a view that a `Flatten` would bring further; 0: none is known to the search."""
        ...

    def trash_due(self, cluster_ns: int) -> bool:
        """Whether the retention of something in the trash is over."""
        ...

    def has_trash(self) -> bool:
        """Whether there is something in a trash."""
        ...

    def initialised(self) -> bool:
        """Whether the volume record exists."""
        ...

    def origin(self) -> Origin | None:
        """Where a restored state came from."""
        ...

    def marks_of(self, session_id: int) -> Marks | None:
        """The newest applied marks of a session."""
        ...

    def events_to_trim(self, old_cluster_ns: int, keep_bytes: int, limit: int) -> tuple[int, bool]:
        """Below which version events are too old or too many, and whether there are more."""
        ...


class LeaderDuties:
    """One node's duties; active between `take_office` and `step_down`."""

    def __init__(
        self,
        *,
        machine: MachineView,
        ages: SessionAges,
        propose: Propose,
        cluster_ns: Callable[[], int],
        config: SessionsConfig,
        init_volume: Callable[[], InitVolume],
        common_format: Callable[[], int] = lambda: FIRST_STATE_FORMAT,
        disks_full: Callable[[], bool] = lambda: False,
        disks_low: Callable[[], bool] = lambda: False,
    ) -> None:
        self._machine = machine
        self._ages = ages
        self._propose_bytes = propose
        self._cluster_ns = cluster_ns
        self._config = config
        self._init_volume = init_volume
        self._common_format = common_format
        """The newest state format that every member applies; 0 while one was not heard."""
        self._disks_full = disks_full
        """Whether not even what frees space may enter the log."""
        self._disks_low = disks_low
        """Whether nothing that grows the state may enter it: flattening copies."""
        self.active = False
        self._office = 0
        """Counts terms of office: an outcome of an older one is ignored."""
        self._marks: dict[int, Marks] = {}
        """Newest frame per session, not yet logged."""
        self._marks_due_ns = 0
        self._trim_due_ns = 0
        self._leases_due_ns = 0
        self._flatten_due_ns = 0
        self._search = Search()
        """Of a view to be flattened: all of them are looked at, some in each tick."""
        self._busy: set[str] = set()
        """Duties with a proposal in flight: one each."""
        self._expiring = 0
        self._silence_end_ns: int | None = None
        """When a restored volume may serve."""
        self.expired_total = 0
        self._reap_room = 1
        """Removals that background work may still make before the next tick, if others work."""
        self._shares = False
        """Others worked between the last two ticks."""
        self._refilled_ns = 0
        self._seen_version = 0
        self._seen_steps = 0
        """At the last tick."""
        self.reaps_total = 0
        self.reaped_total = 0
        self.marks_total = 0
        self.flatten_steps_total = 0
        self.snapshots_expired_total = 0
        self.trash_expired_total = 0

    def take_office(self) -> None:
        """Begin: this node leads, and an entry of its own term is applied."""
        now_ns = self._cluster_ns()
        self.active = True
        self._office += 1
        self._ages.take_office(now_ns)
        self._marks.clear()
        self._busy.clear()
        self._expiring = 0
        self._marks_due_ns = now_ns
        self._trim_due_ns = now_ns
        self._leases_due_ns = now_ns
        self._flatten_due_ns = now_ns
        self._silence_end_ns = None
        self._search = Search()
        self.start_volume()

    def step_down(self) -> None:
        """Stop at once."""
        self.active = False
        self._office += 1
        self._marks.clear()

    # ------------------------------------------------------------ ticks

    def tick(self) -> None:
        """Do what is due; called every TICK_MS between entries. Full disks put all of it off."""
        if not self.active or self._disks_full():
            return
        now_ns = self._cluster_ns()
        self.start_volume()
        self._expire(now_ns)
        self._end_silence(now_ns)
        if now_ns >= self._marks_due_ns:
            self._marks_due_ns = now_ns + self._config.marks_interval_ms * MS
            self._log_marks()
        self._refill(now_ns)
        if self._machine.pending_work():
            self._reap()
        if now_ns >= self._flatten_due_ns and not self._disks_low():
            self._flatten(now_ns)
        if now_ns >= self._leases_due_ns:
            self._leases_due_ns = now_ns + LEASES_PERIOD_NS
            self._end_leases(now_ns)
            self._empty_trash(now_ns)
        self._raise_format()
        if now_ns >= self._trim_due_ns:
            self._trim_due_ns = now_ns + TRIM_PERIOD_NS
            self._trim(now_ns)

    @property
    def waits_for_time(self) -> bool:
        """Whether cluster time must go on although nobody sends commands."""
        origin = self._machine.origin()
        silent = origin is not None and not origin.ready
        kept = self._machine.has_leases() or self._machine.has_trash()
        return self._ages.live > 0 or silent or kept

    def start_volume(self) -> None:
        """Make the volume, once in a cluster's life."""
        if not self._machine.initialised():
            self._propose("init", self._init_volume())

    def _raise_format(self) -> None:
        """Go to the state format that all members apply; there is no way back."""
        in_force = self._machine.format
        if in_force == STATE_FORMAT or "format" in self._busy:
            return
        common = min(self._common_format(), STATE_FORMAT)
        if common > in_force:
            log.info("the state format rises", extra={"fields": {"from": in_force, "to": common}})
            self._propose("format", RaiseFormat(common))

    def _end_silence(self, now_ns: int) -> None:
        """Let a restored volume serve: after its silence, when every old session is ended.

        Nobody can renew a session meanwhile, so all of them end by their own time to live.
        """
        origin = self._machine.origin()
        if origin is None or origin.ready:
            return
        if self._silence_end_ns is None:
            self._silence_end_ns = now_ns + origin.silence_ns
        if now_ns >= self._silence_end_ns and not self._ages.live:
            self._propose("restore", RestoreVolume(self._init_volume().owner_epoch))

    def _expire(self, now_ns: int) -> None:
        for session in self._ages.take_overdue(now_ns, EXPIRE_IN_FLIGHT_MAX - self._expiring):
            self._expiring += 1
            log.info("session expires", extra={"fields": {"session": f"{session:016x}"}})
            done = partial(self._expired, self._office, session)
            self._propose_bytes(_internal(ExpireSession(session)), done)

    def _expired(self, office: int, session: int, outcome: Outcome) -> None:
        if office != self._office:
            return
        self._expiring -= 1
        if isinstance(outcome, Committed):
            self.expired_total += 1
        elif isinstance(outcome, Refused):
            self._ages.proposal_failed(session)

    # ------------------------------------------------------------ marks

    def take_marks(self, marks: Marks) -> None:
        """Take a session's frame to be logged; one that is not newer, or says nothing, is dropped.

        The frame that was applied is what counts: `RenewReply.marks_number` tells of it.
        """
        applied = self._machine.marks_of(marks.session)
        if applied is None or marks.number <= applied.number:
            return
        pending = self._marks.get(marks.session)
        if pending is not None and marks.number <= pending.number:
            return
        if (marks.floor, marks.watermark, marks.leases) == (
            applied.floor,
            applied.watermark,
            applied.leases,
        ):
            self._marks.pop(marks.session, None)
            return
        self._marks[marks.session] = marks

    def _log_marks(self) -> None:
        if not self._marks or "marks" in self._busy:
            return
        frames: list[Marks] = []
        room = _MARKS_BYTES
        for marks in self._marks.values():
            size_bytes = 64 + 40 * len(marks.leases)
            if frames and size_bytes > room:
                break
            frames.append(marks)
            room -= size_bytes
        for marks in frames:
            del self._marks[marks.session]
        self.marks_total += len(frames)
        self._propose("marks", SessionMarks(tuple(frames)))

    # ------------------------------------------------------------ reaping and trimming

    def _refill(self, now_ns: int) -> None:
        """Give background work its share of the time since the last tick, if others work too."""
        version, steps = self._machine.version, self.reaps_total + self.flatten_steps_total
        others = version - self._seen_version - (steps - self._seen_steps)
        self._shares = others > REAP_ALONE_MAX
        self._seen_version, self._seen_steps = version, steps
        rate = self._config.reap_busy_per_s
        self._reap_room += rate * max(0, now_ns - self._refilled_ns) // 1_000_000_000
        self._reap_room = min(self._reap_room, rate * REAP_BURST_MS // 1000)
        self._refilled_ns = now_ns

    def _reap(self) -> None:
        """Take a step of background work, unless its share of a busy time is used up."""
        if self._reap_room > 0 or not self._shares:
            self._propose("reap", Reap(self._config.reap_limit), self._reaped)

    def _reaped(self, result: Result) -> None:
        self.reaps_total += 1
        assert isinstance(result.value, Reaped)
        self.reaped_total += result.value.removed
        self._reap_room = max(self._reap_room - result.value.removed, -self._config.reap_limit)
        if result.value.more and self.active and not self._disks_full():
            self._reap()

    def _flatten(self, now_ns: int) -> None:
        """Bring a view that depends on too many others a step further, from the same share."""
        if "flatten" in self._busy or (self._reap_room <= 0 and self._shares):
            return
        search = self._search
        view = self._machine.flatten_due(search)
        if search.over:
            self._search = Search()
        if view:
            self._propose("flatten", Flatten(view, self._config.reap_limit), self._flattened)
        elif search.over:
            self._flatten_due_ns = now_ns + FLATTEN_PERIOD_NS

    def _flattened(self, result: Result) -> None:
        assert isinstance(result.value, Reaped)
        self.flatten_steps_total += 1
        self._reap_room = max(self._reap_room - result.value.removed, -self._config.reap_limit)

    def _end_leases(self, now_ns: int) -> None:
        """Delete the snapshots whose lease is over; nobody reads by them since it is."""
        if 0 < self._machine.first_lease_end() <= now_ns:
            self._propose("leases", ExpireSnapshots(self._config.reap_limit), self._leases_ended)

    def _leases_ended(self, result: Result) -> None:
        assert isinstance(result.value, Reaped)
        self.snapshots_expired_total += result.value.removed
        if result.value.more:
            self._leases_due_ns = 0

    def _empty_trash(self, now_ns: int) -> None:
        """Remove what has been in the trash for its retention."""
        if self._machine.trash_due(now_ns):
            self._propose("trash", ExpireTrash(self._config.reap_limit), self._trash_emptied)

    def _trash_emptied(self, result: Result) -> None:
        assert isinstance(result.value, Reaped)
        self.trash_expired_total += result.value.removed
        if result.value.more:
            self._leases_due_ns = 0

    def _trim(self, now_ns: int) -> None:
        """Drop a step of the events that are too old, or too many; more at the next tick."""
        config = self._config
        old_ns = now_ns - config.events_keep_ms * MS
        limit = config.reap_limit
        below, more = self._machine.events_to_trim(old_ns, config.events_keep_bytes, limit)
        if more:
            self._trim_due_ns = now_ns
        if below:
            self._propose("trim", TrimEvents(below, limit))

    # ------------------------------------------------------------ checkpoints

    def checkpoint(self, told: Callable[[int | None], None]) -> None:
        """Propose a checkpoint; `told(number)` when it is applied here, None if it was not."""
        number = self._machine.version + 1
        self._propose_bytes(
            _internal(Checkpoint(number)),
            lambda outcome: told(number if isinstance(outcome, Committed) else None),
        )

    # ------------------------------------------------------------ proposing

    def _propose(self, duty: str, op: Op, then: Callable[[Result], None] | None = None) -> None:
        """Propose a command of the node, unless the duty's last one is still on its way."""
        if duty in self._busy:
            return
        self._busy.add(duty)
        office = self._office

        def done(outcome: Outcome) -> None:
            if office != self._office:
                return
            self._busy.discard(duty)
            if not isinstance(outcome, Committed):
                return
            result = result_codec.decode(outcome.result)
            if result.code:
                error: NokvError = from_wire(result.code, result.message, result.hint)
                log.warning("%s failed: %s", duty, error)
            elif then is not None:
                then(result)

        self._propose_bytes(_internal(op), done)


def _internal(op: Op) -> bytes:
    """Return a command of the node itself."""
    data = encode_command(Command(COMMAND_FORMAT, 0, 0, 0, Caller(), op))
    assert len(data) <= COMMAND_BYTES_MAX, "an internal command over the limit"
    return data
