"""What a node shows on its HTTP port.

- `/healthz`: 200 while the process runs its loop. A process that can't vouch for its state is gone.
- `/readyz`: 200 where this node may be asked: within `http.ready_lag_ms` it has confirmed with a
  leader and a quorum that it had applied everything acknowledged until then. A follower that lags,
  a leader without a quorum, and a node that is starting or stopping answer 503 with the reason.
- `/status`: JSON, for people and scripts.
- `/metrics`: Prometheus.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from nokv.server.http import JSON, PROMETHEUS, TEXT, Answer
from nokv.server.metrics import Exposition, raft_metrics

if TYPE_CHECKING:
    from nokv.server.shard import Shard


class NodeView:
    """The pages of one shard process."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._started_s = time.time()

    def routes(self) -> Mapping[str, Callable[[], Answer]]:
        """Return path to page."""
        return {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/status": self.status,
            "/metrics": self.metrics,
        }

    def healthz(self) -> Answer:
        """Alive."""
        return Answer(HTTPStatus.OK, TEXT, b"ok\n")

    def not_ready(self) -> str:
        """Return why this node should not be asked, or empty."""
        shard = self._shard
        if shard.stopping:
            return "stopping"
        if shard.service.gc.gone:
            return shard.service.gc.gone
        problem = shard.group.status().problem
        age_ms = shard.service.freshness.age_ms()
        if age_ms <= shard.config.http.ready_lag_ms and shard.port.volume is not None:
            return ""
        if age_ms == float("inf"):
            return problem or "starting: no leader has confirmed this node's state yet"
        if shard.port.volume is None:
            return "no volume yet"
        return problem or f"lagging: the state was last known to be current {age_ms:.0f} ms ago"

    def readyz(self) -> Answer:
        """Ready to be asked, or why not."""
        reason = self.not_ready()
        if reason:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{reason}\n".encode())
        return Answer(HTTPStatus.OK, TEXT, b"ready\n")

    def status(self) -> Answer:
        """Everything a person asks first."""
        shard = self._shard
        status = shard.group.status()
        age_ms = shard.service.freshness.age_ms()
        value: dict[str, Any] = {
            "pid": os.getpid(),
            "ready": not self.not_ready(),
            "not_ready_reason": self.not_ready(),
            "problem": status.problem,
            "lag_ms": None if age_ms == float("inf") else round(age_ms, 3),
            "durable_index": status.durable_index,
            "first_index": status.first_index,
            "last_index": status.last_index,
            "uncommitted_ms": round(status.uncommitted_ns / 1e6, 3),
            "recent_sync_ms": round(status.recent_sync_ns / 1e6, 3),
            "slow_disk": status.slow_disk,
            "skips": status.skips,
            "followers": status.peers,
            "images": status.images,
            "raft": status.counters,
            "volume": shard.identity.cluster.volume.volume,
            "connections": len(shard.rpc.connections),
            "requests_open": shard.rpc.requests,
            "disk_low": shard.space.low,
            "tls_expires_s": None if shard.tls is None else shard.tls.expires_s,
            **msgspec.structs.asdict(shard.service.status()),
        }
        text = json.dumps(value, default=_plain, indent=2, sort_keys=True)
        return Answer(HTTPStatus.OK, JSON, text.encode() + b"\n")

    def metrics(self) -> Answer:
        """Counters, gauges and histograms."""
        out = Exposition()
        raft_metrics(out, self._shard.group.status())
        self._rpc(out)
        self._state(out)
        self._network(out)
        self._process(out)
        return Answer(HTTPStatus.OK, PROMETHEUS, out.render())

    def _rpc(self, out: Exposition) -> None:
        rpc = self._shard.rpc
        out.gauge("nokv_rpc_connections", "Open client connections.", len(rpc.connections))
        out.gauge("nokv_rpc_requests_open", "Requests not answered yet.", rpc.requests)
        out.gauge("nokv_rpc_request_bytes", "Their size.", rpc.request_bytes)
        out.counter("nokv_rpc_requests_total", "Requests received.", rpc.requests_total)
        out.counter("nokv_rpc_overloaded_total", "Refused for full queues.", rpc.overloaded_total)
        out.counter("nokv_rpc_deadline_exceeded_total", "Answered too late.", rpc.late_total)
        out.counter(
            "nokv_rpc_hostile_total", "Connections ended for their bytes.", rpc.hostile_total
        )
        seconds = rpc.seconds
        out.histogram(
            "nokv_rpc_request_seconds",
            "From a request's arrival to its answer.",
            seconds.bounds_s,
            seconds.counts,
            seconds.total_s,
        )

    def _state(self, out: Exposition) -> None:
        shard, counters = self._shard, self._shard.port.machine.counters
        out.gauge("nokv_state_version", "Version of the last command.", counters.version)
        out.gauge("nokv_state_files", "Inodes of every kind.", counters.files)
        out.gauge("nokv_state_size_bytes", "Bytes of all files.", counters.size_bytes)
        out.gauge("nokv_state_cluster_seconds", "Cluster time.", counters.cluster_ns / 1e9)
        out.gauge("nokv_state_jobs", "Background jobs that wait.", counters.jobs)
        out.gauge("nokv_state_drops", "Bodies that wait for collection.", counters.drops)
        out.gauge("nokv_state_history", "Rows of history.", counters.history)
        out.gauge("nokv_state_sessions", "Sessions and tombstones.", counters.sessions)
        out.gauge("nokv_state_store_bytes", "Size of the store's file.", shard.kv.file_bytes())
        out.gauge("nokv_disk_free_bytes", "Free for state and log.", shard.free_bytes)
        out.gauge("nokv_disk_low", "1 while growing commands are refused.", int(shard.space.low))
        gauges = ("sessions_live", "checkpoint", "watches_open", "watches_lagging")
        for name, value in shard.service.counters().items():
            text = f"Service: {name.replace('_', ' ')}."
            if name in gauges:
                out.gauge(f"nokv_{name}", text, value)
            else:
                out.counter(f"nokv_{name}_total", text, value)

    def _network(self, out: Exposition) -> None:
        shard = self._shard
        out.counter(
            "nokv_raft_connections_rejected_total",
            "Peer connections ended for their bytes, or for who they are.",
            shard.network.rejected,
        )
        if shard.tls is not None:
            out.gauge(
                "nokv_tls_expires_seconds",
                "When the certificate or its authority ends, since the epoch.",
                shard.tls.expires_s,
            )

    def _process(self, out: Exposition) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        out.counter("process_cpu_seconds_total", "Processor time.", usage.ru_utime + usage.ru_stime)
        out.gauge("process_resident_memory_max_bytes", "Peak memory.", usage.ru_maxrss * 1024)
        out.gauge("process_start_time_seconds", "Start, since the epoch.", self._started_s)


def _plain(value: object) -> object:
    """Return what JSON can hold of a struct or of bytes."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    raise TypeError(type(value).__name__)
