"""Metrics in the text format of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

LATENCY_BOUNDS_S: Final = (
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)


class Histogram:
    """Durations in seconds, counted per upper bound."""

    __slots__ = ("bounds_s", "counts", "total_s")

    def __init__(self, bounds_s: Sequence[float] = LATENCY_BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        """One per bound, not cumulative, and one for everything above."""
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.total_s += seconds


class Exposition:
    """Collects samples and renders them; every metric has a help line and its type."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def gauge(self, name: str, text: str, value: float) -> None:
        """Add a value that may fall."""
        self._simple(name, text, "gauge", [("", value)])

    def gauges(self, name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> None:
        """Add one value per label."""
        self._simple(
            name, text, "gauge", [(f'{{{label}="{_escape(key)}"}}', v) for key, v in values]
        )

    def counter(self, name: str, text: str, value: float) -> None:
        """Add a value that only grows; the name ends in `_total`."""
        assert name.endswith("_total"), name
        self._simple(name, text, "counter", [("", value)])

    def _simple(
        self, name: str, text: str, kind: str, samples: Iterable[tuple[str, float]]
    ) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{labels} {value!r}" for labels, value in samples]

    def histogram(
        self,
        name: str,
        text: str,
        bounds_s: Sequence[float],
        counts: Sequence[int],
        total_s: float,
    ) -> None:
        """Add a histogram of seconds; `counts` has one more than `bounds_s`, not cumulative."""
        assert name.endswith("_seconds"), name
        assert len(counts) == len(bounds_s) + 1
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        seen = 0
        for bound, count in zip(bounds_s, counts, strict=False):
            seen += count
            self._lines.append(f'{name}_bucket{{le="{bound:g}"}} {seen}')
        seen += counts[-1]
        self._lines.append(f'{name}_bucket{{le="+Inf"}} {seen}')
        self._lines += [f"{name}_sum {total_s!r}", f"{name}_count {seen}"]

    def render(self) -> bytes:
        """Return the text."""
        return ("\n".join(self._lines) + "\n").encode()


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
