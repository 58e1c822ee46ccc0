"""Proposals waiting for the next entry, and the bytes of those in the log but not yet applied."""

from collections import deque

from nokv_replication.errors import Overloaded, ReplicationError, TooLarge
from nokv_replication.ports import Clock
from nokv_replication.types import Counters, GroupConfig, ProposeDone

ENTRY_OVERHEAD_BYTES = 64
"""More than an entry's own fields take."""
PAYLOAD_OVERHEAD_BYTES = 5
"""What MessagePack puts before a payload, at most."""


class Proposals:
    """The bounded queue of one leader. All that waits in it goes out as one entry."""

    def __init__(self, config: GroupConfig, clock: Clock, counters: Counters) -> None:
        self._config = config
        self._clock = clock
        self._counters = counters
        self.oldest_ns = 0
        """When the oldest of what waits arrived, or something before it; on the clock."""
        self._queue: deque[tuple[bytes, ProposeDone]] = deque()
        self._queue_bytes = 0
        # (index, bytes) of entries appended here and not applied yet.
        self._outstanding: deque[tuple[int, int]] = deque()
        self._outstanding_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def refusal(self, size_bytes: int, waiting: int) -> ReplicationError | None:
        """Return why a payload is refused, if it is; `waiting` proposals are in the log."""
        config = self._config
        overhead = ENTRY_OVERHEAD_BYTES + PAYLOAD_OVERHEAD_BYTES
        if size_bytes + overhead > config.entry_max_bytes:
            self._counters.failed_too_large += 1
            limit = config.entry_max_bytes - overhead
            return TooLarge(f"{size_bytes} bytes are more than the {limit} one entry holds")
        used_bytes = self._queue_bytes + self._outstanding_bytes
        full = len(self._queue) + waiting >= config.queue_max_proposals
        if full or used_bytes + size_bytes > config.queue_max_bytes:
            self._counters.failed_overloaded += 1
            return Overloaded("too many proposals are waiting at the leader; retry later")
        return None

    def add(self, payload: bytes, done: ProposeDone) -> None:
        """Queue a payload that was not refused."""
        if not self._queue:
            self.oldest_ns = self._clock.monotonic_ns()
        self._queue.append((payload, done))
        self._queue_bytes += len(payload)

    def take(self) -> tuple[list[bytes], list[ProposeDone], int]:
        """Return (payloads, callbacks, bytes) for one entry, in order of arrival."""
        queue, room = self._queue, self._config.entry_max_bytes - ENTRY_OVERHEAD_BYTES
        payloads: list[bytes] = []
        callbacks: list[ProposeDone] = []
        size = 0
        while queue:
            payload, done = queue[0]
            room -= len(payload) + PAYLOAD_OVERHEAD_BYTES
            if room < 0:
                break
            queue.popleft()
            payloads.append(payload)
            callbacks.append(done)
            size += len(payload)
        assert payloads, "every accepted payload fits an entry"
        self._queue_bytes -= size
        return payloads, callbacks, size

    def appended(self, index: int, size_bytes: int) -> None:
        """Count an entry as outstanding until it is applied."""
        self._outstanding.append((index, size_bytes))
        self._outstanding_bytes += size_bytes

    def applied(self, index: int) -> None:
        """Entries up to `index` were applied."""
        outstanding = self._outstanding
        while outstanding and outstanding[0][0] <= index:
            self._outstanding_bytes -= outstanding.popleft()[1]

    def fail(self, error: ReplicationError) -> None:
        """Settle what waits: it never entered the log. What did is the applier's to abandon."""
        queue, self._queue, self._queue_bytes = self._queue, deque(), 0
        self._outstanding.clear()
        self._outstanding_bytes = 0
        for _, done in queue:
            self._counters.failed_not_leader += 1
            done(error)
