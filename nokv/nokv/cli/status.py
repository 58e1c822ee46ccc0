"""`nokv status`: the nodes of a cluster, who leads and who lags."""

from __future__ import annotations

import argparse
import asyncio
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from nokv.cli import output
from nokv.cli.client import cluster_of
from nokv.cli.main import EXIT_FAILED, add_cluster

if TYPE_CHECKING:
    from nokv.wire.rpc import HelloReply, StatusReply

PROBE_S = 2.0


def add_status(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv status`."""
    add_cluster(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a node, one a line")
    parser.set_defaults(run=_status)


class Seen(NamedTuple):
    """A node as it answered, or why it did not."""

    address: str
    hello: HelloReply | None
    status: StatusReply | None
    error: str = ""
    skew_ns: int = 0
    """How far the node's clock is ahead of this machine's, ns; half a round trip uncertain."""
    trouble: str = ""
    """Why the node is not ready, in its own words where it has any; empty: it is."""
    advice: str = ""
    """What to do where the node could not be asked, if the error tells more than that."""

    @property
    def free_bytes(self) -> int | None:
        """Free space for metadata; None: unknown. A node that never was ready says 0."""
        if self.status is None or (self.trouble and not self.status.free_bytes):
            return None
        return self.status.free_bytes

    @property
    def warning(self) -> str:
        """What a node that is ready says is wrong, such as a member that was set back; or empty."""
        if self.status is None or self.trouble or self.status.slow_disk:
            return ""  # a slow disk is told in words of its own
        return self.status.problem

    @property
    def lacks_space(self) -> str:
        """What the node's lack of space means, or empty. It may well be ready to be asked."""
        status, free_bytes = self.status, self.free_bytes
        if status is None or free_bytes is None:
            return ""
        found = ""
        if free_bytes < status.reserve_bytes:
            found = (
                f"no space: less than its reserve of {output.size(status.reserve_bytes)} is free"
            )
        if status.refuses_growth:
            found += ", and " if found else "no space on too many nodes: "
            found += "writes are refused"
        return found


async def look(cluster: str) -> list[Seen]:
    """Ask the named nodes, and those that they know, for their status.

    Raises:
        ConfigError: the addresses are none, or a TLS file of the environment is missing.
    """
    from nokv.client.routing import parse_cluster
    from nokv.wire.tls import connect_context

    tls = connect_context()
    seen: dict[str, Seen] = {}
    waiting = set(parse_cluster(cluster))
    while waiting:
        for found in await asyncio.gather(*(_ask(address, tls) for address in sorted(waiting))):
            seen[found.address] = found
        numbers = {one.status.node for one in seen.values() if one.status is not None}
        waiting = {
            other.address
            for one in seen.values()
            if one.hello is not None
            for other in one.hello.nodes
            if other.node not in numbers and other.address not in seen
        }
    nodes = sorted(seen.values(), key=_order)
    return [one._replace(trouble=trouble(one, nodes)) for one in nodes]


def trouble(one: Seen, seen: list[Seen]) -> str:
    """Return why a node can't be ready, as far as the nodes' answers tell; or empty."""
    if one.status is None or one.hello is None:
        return f"unreachable: {one.error}"
    if one.status.not_ready:
        return one.status.not_ready
    if one.hello.volume is None:
        return "it has no state yet"
    if not one.status.leader:
        return "it knows no leader"
    for other in seen:
        if other.status is None or other.status.role != "leader":
            continue
        for peer in other.status.peers:
            if peer.node == one.status.node and not peer.connected:
                return f"node {other.status.node}, which leads, does not reach it"
    return ""


def _order(one: Seen) -> tuple[int, str]:
    return (one.status.node if one.status is not None else 1 << 16, one.address)


async def _ask(address: str, tls: ssl.SSLContext | None) -> Seen:
    import time

    from nokv.errors import NokvError, Unavailable
    from nokv.wire.connection import RpcConnection
    from nokv.wire.rpc import PROTOCOL, Hello, Status, StatusReply

    try:
        connection = await RpcConnection.connect(
            address, Hello(PROTOCOL, agent="nokv status"), timeout_s=PROBE_S, tls=tls
        )
    except NokvError as error:
        advice = error.hint if error.hint != Unavailable.default_hint else ""
        return Seen(address, None, None, error.message, advice=advice)
    sent_ns = time.time_ns()
    try:
        reply = await connection.call(Status(), timeout_s=PROBE_S)
        answered_ns = time.time_ns()
    except NokvError as error:
        return Seen(address, connection.hello, None, error.message)
    finally:
        await connection.close()
    assert isinstance(reply, StatusReply)
    skew_ns = reply.clock_ns - (sent_ns + answered_ns) // 2 if reply.clock_ns else 0
    return Seen(address, connection.hello, reply, "", skew_ns)


def has_quorum(seen: list[Seen]) -> bool:
    """Return whether some node leads and hears a majority of those that vote."""
    for one in seen:
        if one.status is not None and one.status.role == "leader":
            voters = {member.node for member in one.status.members if member.voter}
            connected = {one.status.node}
            connected |= {peer.node for peer in one.status.peers if peer.connected}
            return len(voters & connected) > len(voters) // 2
    return False


def _status(options: argparse.Namespace) -> int:
    seen = asyncio.run(look(cluster_of(options)))
    commit = max((one.status.commit_index for one in seen if one.status is not None), default=0)
    if options.json:
        for one in seen:
            output.line(_fields(one, commit))
    else:
        rows = [_row(one, commit) for one in seen]
        head = ("node", "address", "role", "term", "version", "lag", "log", "free", "state")
        print(table(head, rows))
    return 0 if has_quorum(seen) else EXIT_FAILED


def _fields(one: Seen, commit: int) -> dict[str, Any]:
    status = one.status
    if status is None:
        return {"address": one.address, "reachable": False, "ready": False, "error": one.error}
    return {
        "address": one.address,
        "reachable": True,
        "ready": not one.trouble,
        "not_ready_reason": one.trouble,
        "node": status.node,
        "cluster": status.cluster,
        "role": status.role,
        "term": status.term,
        "leader": status.leader,
        "leader_address": status.leader_address,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "lag_entries": max(0, commit - status.applied_index),
        "version": status.version,
        "fingerprint": status.fingerprint.hex(),
        "problem": status.problem,
        "log_bytes": status.log_bytes,
        "free_bytes": status.free_bytes,
        "reserve_bytes": status.reserve_bytes,
        "lacks_space": one.lacks_space,
        "wall_ns": status.wall_ns,
        "clock_ns": status.clock_ns,
        "cluster_ns": status.cluster_ns,
        "format": status.format,
        "build": status.build,
        "recent_sync_ns": status.recent_sync_ns,
        "slow_disk": status.slow_disk,
        "peers": [
            {"node": peer.node, "connected": peer.connected, "match_index": peer.match_index}
            for peer in status.peers
        ],
        "counters": status.counters,
    }


def _row(one: Seen, commit: int) -> tuple[str, ...]:
    status = one.status
    if status is None:
        return ("?", one.address, one.trouble, *[""] * 6)
    lag = str(max(0, commit - status.applied_index))
    free = "?" if one.free_bytes is None else output.size(one.free_bytes)
    state = f"not ready: {output.shown(one.trouble)}" if one.trouble else "ready"
    if one.lacks_space:
        state += f", {one.lacks_space}"
    if one.warning:
        state += f", but: {output.shown(one.warning)}"
    if status.slow_disk:
        state += f", slow disk: a sync takes {status.recent_sync_ns / 1e6:.0f} ms"
    sizes = (output.size(status.log_bytes), free, state)
    who = (str(status.node), one.address, status.role, str(status.term), str(status.version))
    return (*who, lag, *sizes)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return rows below a head, in columns as wide as they must be."""
    full = [r for r in rows if any(r[3:])]
    widths = [max(len(row[i]) for row in [head, *full]) for i in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
