"""`nokv status` and `doctor`: what a node's own answer does not hide."""

from __future__ import annotations

import msgspec

from nokv.cli.cluster_checks import _backups, _disks, _lags, _node
from nokv.cli.status import Seen, _row, trouble
from nokv.types.reads import BackupRow, VolumeReply
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
    space, disk = _disks([slow, slow])[:2]
    assert (space.level, space.text[:8]) == ("ok", "space on"), "what is slow may have space"
    assert (disk.level, disk.text) == ("warning", "a sync of its log takes 40 ms")


def test_what_a_ready_node_says_is_wrong_is_shown() -> None:
    seen = answered(1)
    assert seen.status is not None
    problem = "node 3 came back without entries up to 512 that it had acknowledged"
    told = seen._replace(status=msgspec.structs.replace(seen.status, problem=problem))
    assert _row(told, 9)[-1] == f"ready, but: {problem}"
    assert (_node(told).level, _node(told).text) == ("warning", problem)
    assert _node(seen).level == "ok"


def test_advice_about_a_node_that_cannot_be_asked() -> None:
    stopped = Seen("a", None, None, "no connection", trouble="unreachable")
    assert _node(stopped).advice.startswith("start it")
    assert _node(stopped._replace(advice="check the certificates")).advice[:5] == "check"


def test_a_node_says_itself_why_it_is_not_ready() -> None:
    seen = answered(2, leader=0)
    assert seen.status is not None
    reason = "this node skips entries none; node 1 skips 7: all must skip the same"
    told = seen._replace(status=msgspec.structs.replace(seen.status, not_ready=reason))
    assert trouble(told, [told]) == reason
    shown = told._replace(trouble=trouble(told, [told]))
    assert _row(shown, 9)[-1] == f"not ready: {reason}"
    assert reason in _node(shown).text


def test_a_lack_of_space_is_shown_of_a_node_that_is_ready() -> None:
    seen = answered(1)
    assert seen.status is not None
    full = msgspec.structs.replace(seen.status, free_bytes=168 << 10, reserve_bytes=64 << 20)
    leader = msgspec.structs.replace(full, refuses_growth=True)
    roomy = msgspec.structs.replace(leader, free_bytes=1 << 40)
    rows = [_row(seen._replace(status=status), 9)[-1] for status in (full, leader, roomy)]
    lack = "ready, no space: less than its reserve of 64.0 MiB is free"
    refuses = "ready, no space on too many nodes: writes are refused"
    assert rows == [lack, f"{lack}, and writes are refused", refuses]
    (found,) = _disks([seen._replace(status=full)])
    assert (found.level, "168.0 KiB free" in found.text) == ("failure", True)


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


def test_old_backups_are_told_of_where_a_schedule_is_known() -> None:
    hour_ns = 3_600_000_000_000
    made, never = backup_row(1, hour_ns), backup_row(2, 9 * hour_ns, complete=False)
    now_ns, hour_ms = 4 * hour_ns, 3_600_000
    (found,) = _backups((made, never), now_ns, 0)
    assert (found.level, found.text) == ("ok", "the newest complete one is 3.0 h old")
    (found,) = _backups((made, never), now_ns, 2 * hour_ms)
    assert found.level == "ok"
    (found,) = _backups((made, never), now_ns, hour_ms)
    assert found.level == "warning"
    assert found.text.endswith("3.0 h old, and one is to be made every 1 h")
    (found,) = _backups((never,), now_ns, hour_ms)
    assert (found.level, found.text[:16]) == ("warning", "none is complete")
    assert _backups((), now_ns, 0) == []


def backup_row(backup: int, created_ns: int, *, complete: bool = True) -> BackupRow:
    return BackupRow(backup, "b", "c", 1, "bucket", 1, created_ns, 0, complete, 0, 0, b"", 0)
