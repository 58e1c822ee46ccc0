"""What a leader appends: its first entry, the members, all waiting proposals, ticks."""

import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
from nokv_replication.changes import Changes
from nokv_replication.configurations import Configurations
from nokv_replication.frames import EntryKind, decode_entry, encode_entry
from nokv_replication.log import Log
from nokv_replication.ports import Clock
from nokv_replication.proposals import Proposals
from nokv_replication.roster import Roster
from nokv_replication.timekeeping import Timekeeper
from nokv_replication.types import Counters, GroupConfig, Times


class Leadership:
    """Makes the entries of one replica while it leads, each stamped with the group's times."""

    def __init__(
        self,
        core: Core,
        log: Log,
        applier: Applier,
        roster: Roster,
        clock: Clock,
        config: GroupConfig,
        counters: Counters,
        configurations: Configurations,
        changes: Changes,
    ) -> None:
        self._core = core
        self._log = log
        self._applier = applier
        self._roster = roster
        self._clock = clock
        self._config = config
        self._counters = counters
        self._configurations = configurations
        self.changes = changes
        self.timekeeper = Timekeeper()
        self.proposals = Proposals(config, clock, counters)
        self.waiting_for_time = False
        """Whether something in the machine waits for cluster time."""
        self._last_append_ns = 0
        # Term in which this node proposed the list of members.
        self._members_term = 0

    def tick_due_ns(self) -> int | None:
        """Return when a tick is due, None while nothing waits for time."""
        if not self.waiting_for_time or not self.founded:
            return None
        return self._last_append_ns + self._config.tick_interval_ns

    def make_noop(self, now_ns: int) -> bytes:
        """Return a new leader's first entry: nothing is stamped yet, so the last times again."""
        times = self._last_times()
        self.timekeeper.begin_term(times, now_ns)
        self._last_append_ns = now_ns
        return encode_entry(times, [], EntryKind.NOOP)

    def _last_times(self) -> Times:
        log, applied = self._log, self._applier.applied
        for index in range(log.last_index, applied.index, -1):
            if self._applier.skips.at(index) is None:
                return decode_entry(log.entry(index), index).times
        return applied.times

    @property
    def founded(self) -> bool:
        """Whether the list of members is applied: nothing is ordered before it."""
        return bool(self._applier.applied.config)

    def append(self, now_ns: int) -> None:
        """Append one entry: the members at first, then all waiting proposals, or a due tick."""
        due_ns = self.tick_due_ns()
        tick = due_ns is not None and now_ns >= due_ns
        if self.founded and not self.changes and not self.proposals and not tick:
            return
        times = self.timekeeper.stamp(self._clock.wall_ns(), now_ns, self._configurations.quorum)
        if times is None:
            return
        if not self.founded:
            self._append_members(times, now_ns)
        elif self.changes:
            payload = self.changes.payload()
            self._append_entry(times, [payload], EntryKind.MEMBERS, now_ns)
            self.changes.appended(self._log.last_index)
            self._counters.members_changed += 1
        elif self.proposals:
            since_ns = self.proposals.oldest_ns
            payloads, callbacks, size = self.proposals.take()
            self._append_entry(times, payloads, EntryKind.COMMANDS, now_ns)
            index = self._log.last_index
            self._applier.wait(index, self._core.term(), callbacks, since_ns)
            self.proposals.appended(index, size)
        else:
            self._append_entry(times, [], EntryKind.TICK, now_ns)

    def _append_members(self, times: Times, now_ns: int) -> None:
        """Propose the list of members, unless an earlier leader's list may still be applied."""
        members = self._roster.members
        assert members is not None
        all_older_applied = self._applier.applied.index >= self._core.noop_index()
        if all_older_applied and self._members_term != self._core.term():
            self._members_term = self._core.term()
            self._append_entry(times, [msgspec.msgpack.encode(members)], EntryKind.MEMBERS, now_ns)

    def _append_entry(
        self, times: Times, payloads: list[bytes], kind: EntryKind, now_ns: int
    ) -> None:
        command = encode_entry(times, payloads, kind)
        assert len(command) <= self._config.entry_max_bytes
        before = self._log.last_index
        self._core.append(command)
        assert self._log.last_index == before + 1
        self._last_append_ns = now_ns
        self._counters.entries_appended += 1
