"""Counts of durations, Prometheus style."""

import bisect

from nokv_replication.types import DurationHistogram

BOUNDS_NS = tuple(round(1e3 * 2**n) for n in range(4, 24))
"""16 us to 8.4 s, doubling."""


class Histogram:
    """Durations in nanoseconds since this process started."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_NS) + 1)
        self._total_ns = 0

    def observe(self, duration_ns: int, times: int = 1) -> None:
        """Count a duration, once or for several that ended together."""
        self._counts[bisect.bisect_left(BOUNDS_NS, duration_ns)] += times
        self._total_ns += duration_ns * times

    def picture(self) -> DurationHistogram:
        """Return the counts so far."""
        return DurationHistogram(
            bounds_ns=BOUNDS_NS, counts=tuple(self._counts), total_ns=self._total_ns
        )
