"""A node's simulated clock, its storage, and the wrapper that watches a state machine."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Protocol

from nokv_replication import Applied, ImageSink, ImageSource, Machine, Times

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000


class SimClock:
    """A node's clocks: the world's time at the node's own rate, plus what its work takes.

    Each look at the clock costs `look_ns`, so that slices of work do end inside one step.
    `drift_ppm` is how much faster than the world's the node's oscillator runs.
    """

    def __init__(self, wall_offset_ns: int, look_ns: int, drift_ppm: int = 0) -> None:
        self.world_ns = 0
        self.wall_offset_ns = wall_offset_ns
        self._look_ns = look_ns
        self._drift_ppm = drift_ppm
        self._entered_ns = 0
        self._own_ns = 0

    def enter(self, world_ns: int) -> None:
        """Let the node look at the world's time `world_ns` from now on."""
        self.world_ns = world_ns
        self._entered_ns = world_ns + world_ns * self._drift_ppm // 1_000_000

    def spend(self, duration_ns: int) -> None:
        """Let time pass inside a call of the node."""
        self._own_ns = max(self._own_ns, self._entered_ns) + duration_ns

    def spent_ns(self) -> int:
        """Return what the node's work took since it entered."""
        return max(0, self._own_ns - self._entered_ns)

    def free_at_ns(self) -> int:
        """Return the world's time at which the node's work so far is done."""
        return self.world_at(self._own_ns)

    def restart(self) -> None:
        """Begin anew: what kept the process before busy ended with it."""
        self._own_ns = 0

    def world_at(self, monotonic_ns: int) -> int:
        """Return the world's time at which this clock shows `monotonic_ns`, or a little later."""
        return monotonic_ns * 1_000_000 // (1_000_000 + self._drift_ppm) + 1

    def monotonic_ns(self) -> int:
        own = self._own_ns + self._look_ns
        self._own_ns = own = max(own, self._entered_ns)
        return own

    def wall_ns(self) -> int:
        return self._entered_ns + self.wall_offset_ns


class Storage(Protocol):
    """What of a state machine outlives its process; the simulator plugs any machine in by it."""

    def machine(self, on_call: Callable[[str], None]) -> Machine:
        """Return a machine that opens what is stored; `on_call` may raise at a named call."""

    def power_cut(self, rng: Random) -> None:
        """Lose or tear what was not synced."""


class Watched:
    """A `Machine` around another that reports what is applied, for the checker."""

    def __init__(
        self, inner: Machine, report: Callable[[Applied, Times, list[bytes], list[bytes]], None]
    ) -> None:
        self._inner = inner
        self._report = report
        self.applied = Applied()
        self.mid_entry = False

    def open(self) -> Applied:
        self.applied = self._inner.open()
        return self.applied

    def apply(self, applied: Applied, times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        assert not self.mid_entry
        assert applied.index == self.applied.index + 1
        self.mid_entry = True
        results = []
        for result in self._inner.apply(applied, times, payloads):
            results.append(result)
            yield result
        self.mid_entry = False
        self.applied = applied
        self._report(applied, times, list(payloads), results)

    def commit(self) -> int:
        assert not self.mid_entry
        return self._inner.commit()

    def fingerprint(self) -> bytes:
        assert not self.mid_entry
        return self._inner.fingerprint()

    def digest(self) -> bytes:
        assert not self.mid_entry
        return self._inner.digest()

    def image(self) -> ImageSource:
        return self._inner.image()

    def receive(self, applied: Applied) -> ImageSink:
        return self._inner.receive(applied)

    def install(self, sink: ImageSink) -> Applied:
        assert not self.mid_entry
        self.applied = self._inner.install(sink)
        return self.applied
