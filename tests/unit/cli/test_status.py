"""`nokv status` and `doctor`: what a node's own answer does not hide."""

from __future__ import annotations

import msgspec

from nokv.cli.cluster_checks import _disks, _lags, _node
from nokv.cli.status import Seen, _row, trouble
from nokv.types.reads import VolumeReply
from nokv.wire.rpc import PROTOCOL, HelloReply, PeerStatus, StatusReply

VOLUME = VolumeReply("v", "local", "/store", "", "", "", 0, 0, 0)


def answered(node: int, *, leader: int = 1, volume: VolumeReply | None = VOLUME) -> Seen:
    role = "leader" if leader == node else "follower"
    peers = (PeerStatus(2, True, 9, 0), PeerStatus(3, False, 0, 0)) if node == leader else ()
    free_bytes = 0 if node == 3 else 2**40
    status = StatusReply(
        node=node, cluster="c", role=role, term=1, leader=leader, leader_address="",
        commit_index=9, applied_index=9, version=9, log_bytes=1, free_bytes=free_bytes,
        wall_ns=0, cluster_ns=0, peers=peers, counters={}, format=1, build="b", fingerprint=b"",
    )  # fmt: skip
    hello = HelloReply(PROTOCOL, "c", node, "", (), volume)
    return Seen(f"127.0.0.1:{node}", hello, status)


def test_what_keeps_a_node_from_being_ready() -> None:
    seen = [answered(1), answered(2), answered(3)]
    assert [trouble(one, seen) for one in seen[:2]] == ["", ""]
    assert trouble(seen[2], seen) == "node 1, which leads, does not reach it"
    assert trouble(answered(2, volume=None), seen) == "it has no state yet"
    assert trouble(answered(2, leader=0), seen) == "it knows no leader"
    assert trouble(Seen("a", None, None, "refused"), seen) == "unreachable: refused"


def test_a_slow_disk_is_shown() -> None:
    seen = answered(1)
    assert seen.status is not None
    status = msgspec.structs.replace(seen.status, slow_disk=True, recent_sync_ns=40_000_000)
    slow = seen._replace(status=status)
    assert _row(slow, 9)[-1] == "ready, slow disk: a sync takes 40 ms"
    (disks,) = _disks([slow])
    assert (disks.level, disks.text) == ("warning", "a sync of its log takes 40 ms")


def test_a_node_that_is_not_ready_is_no_success() -> None:
    seen = [answered(1), answered(2), answered(3)]
    seen = [one._replace(trouble=trouble(one, seen)) for one in seen]
    assert [_node(one).level for one in seen] == ["ok", "ok", "failure"]
    (lag,) = _lags(seen)
    assert (lag.level, lag.text) == ("warning", "2 of 3 nodes follow")
    (disks,) = _disks(seen)
    assert (disks.level, disks.text) == ("ok", "space on 2 of 3 nodes; unknown of the others")
    assert _row(seen[0], 9)[-1] == "ready"
    assert _row(seen[2], 9)[-2:] == ("?", f"not ready: {seen[2].trouble}")
