"""Frames of a step on their way out, and the log's sync that most of them wait for."""

from collections import deque

from nokv_replication.frames import Append, Body, Frame, encode
from nokv_replication.histogram import Histogram
from nokv_replication.log import Log
from nokv_replication.peers import Peer
from nokv_replication.ports import Clock, Network
from nokv_replication.types import Counters, DurationHistogram, GroupConfig

_RECENT_SYNCS = 8


class Outbox:
    """Holds the frames of one step and syncs the log.

    Appends leave before the sync: they promise nothing of this node, whose own copy is counted a
    step later. Votes, acknowledgements and confirmations are promises: they leave after it.
    """

    def __init__(
        self, node: int, log: Log, network: Network, clock: Clock, counters: Counters
    ) -> None:
        self._node = node
        self._log = log
        self._network = network
        self._clock = clock
        self._counters = counters
        self._early: list[tuple[Peer, Body]] = []
        self._late: list[tuple[Peer, Body]] = []
        self._syncs = Histogram()
        self._recent_syncs_ns: deque[int] = deque(maxlen=_RECENT_SYNCS)

    def put(self, peer: Peer, body: Body) -> None:
        """Hold a frame until its time in this step."""
        (self._early if isinstance(body, Append) else self._late).append((peer, body))

    def release_appends(self) -> None:
        """Send the appends; those of a term that is not durable yet wait for the sync as well.

        Only a single voter leads in the very step in which it stands. A term that it forgets would
        come again, with other entries than those its learners got.
        """
        if self._log.term_is_durable:
            self._flush(self._early)

    def sync_and_release(self) -> None:
        """Make the log durable, then send everything else.

        Raises:
            DiskFailed: nothing that depends on the sync was sent.
        """
        if self._log.dirty:
            self.sync()
        if self._early:
            self._flush(self._early)
        if self._late:
            self._flush(self._late)

    def sync(self) -> None:
        """Sync the log if it is dirty, and time it."""
        if not self._log.dirty:
            return
        started_ns = self._clock.monotonic_ns()
        self._log.sync()
        took_ns = self._clock.monotonic_ns() - started_ns
        self._counters.log_syncs += 1
        self._syncs.observe(took_ns)
        self._recent_syncs_ns.append(took_ns)

    def recent_sync_ns(self) -> int:
        """Return the mean duration of the latest syncs, 0 before the first."""
        recent = self._recent_syncs_ns
        return sum(recent) // len(recent) if recent else 0

    def stalls(self, config: GroupConfig) -> bool:
        """Whether the latest sync took an election timeout, or half of the recent ones a heartbeat.

        Either keeps a leader, which syncs in its own thread, from being heard in time.
        """
        recent = self._recent_syncs_ns
        if not recent:
            return False
        longest_ns = max(recent)
        if longest_ns >= config.election_min_ns or longest_ns < config.heartbeat_ns:
            return longest_ns >= config.election_min_ns
        slow = sum(took_ns >= config.heartbeat_ns for took_ns in recent)
        return 2 * slow >= _RECENT_SYNCS

    def _flush(self, frames: list[tuple[Peer, Body]]) -> None:
        for peer, body in frames:
            if peer.epoch:
                self._counters.frames_sent += 1
                frame = Frame(self._node, peer.epoch, peer.number(body), body)
                self._network.send(peer.node, encode(frame))
        frames.clear()

    def histogram(self) -> DurationHistogram:
        """Return the durations of the syncs so far."""
        return self._syncs.picture()
