"""The leader's two clocks for the entries it proposes.

Nobody's clock is trusted alone: wall time is the leader's, held within ten seconds of the lower
median of a quorum's clocks. Cluster time is no clock of the world at all: it grows with the
leader's monotonic clock while it leads, at most one second a step, so that a leader that was
suspended or that woke up late moves it no further than it could be seen to lead.
"""

from nokv_replication.types import Times

WALL_CLAMP_NS = 10_000_000_000
STEP_MAX_NS = 1_000_000_000


class Timekeeper:
    """Stamps entries; one per group, used only while it leads. Monotonic times are the step's."""

    def __init__(self) -> None:
        # Times of the last entry in this node's log; stamps never fall below it.
        self.last = Times()
        self._cluster_ns = 0
        self._advanced_ns = 0
        # Peer to (its wall clock, our monotonic clock when it arrived), of this term only.
        self._heard: dict[int, tuple[int, int]] = {}
        # Median at the last stamp.
        self._median_ns = 0
        self.clamped = 0
        """Stamps whose wall time was not this node's own clock."""
        self.clamped_now = False

    def begin_term(self, last: Times, now_ns: int) -> None:
        """Start to lead, after an entry with times `last`."""
        self.last = last
        self._cluster_ns = last.cluster_ns
        self._advanced_ns = now_ns
        self._heard.clear()
        self.clamped_now = False

    def advance(self, now_ns: int) -> None:
        """Move cluster time, once a step, after the step's frames were drained."""
        assert now_ns >= self._advanced_ns
        self._cluster_ns += min(now_ns - self._advanced_ns, STEP_MAX_NS)
        self._advanced_ns = now_ns

    @property
    def cluster_ns(self) -> int:
        """Cluster time as of the last `advance`."""
        return self._cluster_ns

    def hear(self, peer: int, wall_ns: int, now_ns: int) -> None:
        """Note a peer's wall clock from an acknowledgement of this term."""
        self._heard[peer] = (wall_ns, now_ns)

    def keep(self, nodes: frozenset[int]) -> None:
        """Forget the clocks of all but these nodes: the others do not count any more."""
        for node in [node for node in self._heard if node not in nodes]:
            del self._heard[node]

    def is_near(self, peer: int, now_ns: int) -> bool:
        """Whether a peer's clock lies in the bounds of the last stamp that was clamped."""
        heard = self._heard.get(peer)
        if heard is None:
            return False
        clock_ns = heard[0] + now_ns - heard[1]
        return abs(clock_ns - self._median_ns) <= WALL_CLAMP_NS

    def skew_ns(self, peer: int, wall_ns: int, now_ns: int) -> int:
        """Return a peer's wall clock less this node's, 0 while unknown."""
        heard = self._heard.get(peer)
        return 0 if heard is None else heard[0] + now_ns - heard[1] - wall_ns

    def hears(self, quorum: int) -> bool:
        """Whether the clocks of `quorum` nodes are known, this one's included."""
        return len(self._heard) + 1 >= quorum

    def stamp(self, wall_ns: int, now_ns: int, quorum: int) -> Times | None:
        """Return the times of a new entry, None while fewer than `quorum` clocks are known."""
        if not self.hears(quorum):
            return None
        clocks = [wall_ns]
        clocks.extend(wall + now_ns - at for wall, at in self._heard.values())
        median = sorted(clocks)[(len(clocks) - 1) // 2]
        self._median_ns = median
        clamped = min(max(wall_ns, median - WALL_CLAMP_NS), median + WALL_CLAMP_NS)
        self.clamped_now = clamped != wall_ns
        self.clamped += self.clamped_now
        assert self._cluster_ns >= self.last.cluster_ns
        self.last = Times(max(self.last.wall_ns, clamped, 0), self._cluster_ns)
        return self.last
