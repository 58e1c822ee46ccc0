"""Metrics in the text format of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from nokv_replication import DurationHistogram, PeerStatus, Status

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


_NS: Final = 1e9
_FAILED: Final = "failed_"


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

    def counters(
        self, name: str, text: str, label: str, values: Iterable[tuple[str, float]]
    ) -> None:
        """Add one counter per label; the name ends in `_total`."""
        assert name.endswith("_total"), name
        self._simple(
            name, text, "counter", [(f'{{{label}="{_escape(key)}"}}', v) for key, v in values]
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

    def durations(self, name: str, text: str, found: DurationHistogram) -> None:
        """Add a histogram of replication's."""
        bounds_s = [bound / _NS for bound in found.bounds_ns]
        self.histogram(name, text, bounds_s, found.counts, found.total_ns / _NS)

    def render(self) -> bytes:
        """Return the text."""
        return ("\n".join(self._lines) + "\n").encode()


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def raft_metrics(out: Exposition, status: Status) -> None:
    """Add what one replica tells of itself, and as the leader of its followers."""
    out.gauge("nokv_raft_term", "Current term.", status.term)
    out.gauge("nokv_raft_leader", "1 while this node leads.", int(status.leads))
    out.gauge("nokv_raft_leader_node", "Who leads the term, 0: unknown.", status.leader or 0)
    out.gauge("nokv_raft_commit_index", "Entries known to be committed.", status.commit_index)
    out.gauge("nokv_raft_applied_index", "Entries applied here.", status.applied_index)
    out.gauge("nokv_raft_durable_index", "Entries in the store durably.", status.durable_index)
    out.gauge(
        "nokv_raft_uncommitted_seconds",
        "Age of the oldest applied entry that is not in the store durably.",
        status.uncommitted_ns / _NS,
    )
    out.gauge("nokv_raft_first_index", "Oldest entry of the log.", status.first_index)
    out.gauge("nokv_raft_log_bytes", "Size of the log's records.", status.log_bytes)
    out.gauge(
        "nokv_raft_log_droppable_bytes", "Log that is kept for others only.", status.droppable_bytes
    )
    out.gauge(
        "nokv_raft_recent_sync_seconds",
        "Mean of the latest syncs of the log.",
        status.recent_sync_ns / _NS,
    )
    out.gauge(
        "nokv_raft_slow_disk", "1: syncs take a quarter of a heartbeat.", int(status.slow_disk)
    )
    out.gauge("nokv_raft_skips", "Entries that an operator had skipped.", len(status.skips))
    out.durations("nokv_raft_log_sync_seconds", "Writing and syncing the log.", status.log_sync)
    out.durations(
        "nokv_raft_commit_seconds",
        "At the leader, from a proposal to its being applied.",
        status.commit_latency,
    )
    out.durations(
        "nokv_raft_store_commit_seconds", "Durable commits of the store.", status.machine_commit
    )
    _peer_metrics(out, status.peers)
    images = [
        (f"{'to' if image.outgoing else 'from'} {image.peer}", image.size_bytes - image.done_bytes)
        for image in status.images
    ]
    out.gauges(
        "nokv_raft_image_left_bytes", "State images on their way: what is missing.", "image", images
    )
    counters = msgspec.structs.asdict(status.counters)
    failed = [(k.removeprefix(_FAILED), v) for k, v in counters.items() if k.startswith(_FAILED)]
    out.counters(
        "nokv_raft_proposals_failed_total", "Proposals that failed here.", "reason", failed
    )
    for name, value in counters.items():
        if not name.startswith(_FAILED):
            text = f"Replication: {name.replace('_', ' ')}."
            out.counter(f"nokv_raft_{name}_total", text, value)


def _peer_metrics(out: Exposition, peers: Sequence[PeerStatus]) -> None:
    """Add one sample a peer; all but `connected` are 0 at a node that does not lead."""
    samples: tuple[tuple[str, str, Callable[[PeerStatus], float]], ...] = (
        ("connected", "1 while connected.", lambda peer: int(peer.connected)),
        ("lag_entries", "Entries a peer lacks.", lambda peer: peer.lag_entries),
        ("inflight_bytes", "Sent and not acknowledged.", lambda peer: peer.inflight_bytes),
        ("free_bytes", "Disk space it told.", lambda peer: peer.free_bytes),
        ("sync_seconds", "Its recent syncs, as it told.", lambda peer: peer.sync_ns / _NS),
        ("clock_skew_seconds", "Its clock against ours.", lambda peer: peer.wall_skew_ns / _NS),
    )
    for name, text, value in samples:
        values = [(str(peer.node), value(peer)) for peer in peers]
        out.gauges(f"nokv_raft_peer_{name}", text, "peer", values)
