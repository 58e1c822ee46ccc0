"""Reads of snapshots and views."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from nokv.state import keys
from nokv.state.collect import counters_of
from nokv.state.context import ended_at, load_usage
from nokv.state.families import Family
from nokv.state.kept import alone
from nokv.state.ops_backup import need_backup
from nokv.state.paths import UNKNOWN, path_of
from nokv.state.pinned import Shard
from nokv.state.records import Snapshot, View, decode_pin, decode_view
from nokv.state.snapshots import is_over, need_snapshot, snapshots_of
from nokv.state.views import depth_of, identity_of, origin_at
from nokv.types.limits import PAGE_MAX
from nokv.types.values import Caller
from nokv.types.views import (
    HOLDERS_MAX,
    GetSnapshot,
    ListSnapshots,
    ListViews,
    SnapshotReply,
    SnapshotsReply,
    ViewReply,
    ViewsReply,
)


def get_snapshot(source: Shard, _caller: Caller, request: GetSnapshot) -> SnapshotReply:
    """Answer `GetSnapshot`. Raises NotFound, also for one whose lease is over."""
    cluster_ns = counters_of(source).cluster_ns
    snapshot = need_snapshot(source, request.name, cluster_ns)
    return _snapshot_reply(source, request.name, snapshot, cluster_ns)


def list_snapshots(source: Shard, _caller: Caller, request: ListSnapshots) -> SnapshotsReply:
    """Answer `ListSnapshots`: what exists, without those whose lease is over."""
    limit = max(1, min(request.limit, PAGE_MAX))
    cluster_ns = counters_of(source).cluster_ns
    found = snapshots_of(source, request.after)
    alive = ((name, one) for name, one in found if not is_over(one, cluster_ns))
    page = list(islice(alive, limit + 1))
    rows: list[SnapshotReply] = []
    views = 0
    for name, one in page[:limit]:
        if rows and views >= PAGE_MAX:
            break
        rows.append(_snapshot_reply(source, name, one, cluster_ns))
        views += 1 + len(one.nested)
    return SnapshotsReply(tuple(rows), len(page) > len(rows))


def _snapshot_reply(source: Shard, name: str, s: Snapshot, cluster_ns: int) -> SnapshotReply:
    clones, backups = _clones(source, s), _backups(source, s)
    return SnapshotReply(
        s.snapshot,
        name,
        s.path,
        s.view,
        s.inode,
        s.version,
        s.created_wall_ns,
        s.until_cluster_ns,
        s.automatic,
        1 + len(s.nested),
        len(clones),
        cluster_ns,
        alone(source, s).size_bytes,
        len(backups),
        s.maker,
        tuple(_path_of_view(source, number) for number in clones[:HOLDERS_MAX]),
        tuple(need_backup(source, number).name for number in backups[:HOLDERS_MAX]),
        s.identity,
    )


def _clones(source: Shard, snapshot: Snapshot) -> list[int]:
    """Return the views that have what the snapshot shows as their origin."""
    prefix = keys.pack2(*origin_at(source, snapshot.view, snapshot.version))
    rows = source.scan(Family.PIN, prefix, keys.after_prefix(prefix))
    return [number for _, value in rows if (number := decode_pin(value).clone)]


def _backups(source: Shard, snapshot: Snapshot) -> list[int]:
    """Return the backups that pin the version of a snapshot too; not what is released already."""
    prefix = keys.pack2(snapshot.view, snapshot.version)
    found: list[int] = []
    for key, row in source.scan(Family.PIN, prefix, keys.after_prefix(prefix)):
        pin = decode_pin(row)
        number = keys.pin_parts(key)[2]
        others = pin.session or pin.snapshot or pin.clone
        if not others and source.get(Family.META, keys.backup(number)) is not None:
            found.append(number)
    return found


def _path_of_view(source: Shard, number: int) -> bytes:
    """Return where a view is now; empty where nothing leads to it."""
    record = source.view(number)
    gone = record is None or record.holder is None or ended_at(source, number)
    return b"" if record is None or gone else _path(source, number, record.root)


def _path(source: Shard, view: int, directory: int) -> bytes:
    path = path_of(source, view, directory)
    return b"" if path.startswith(UNKNOWN) else path


def list_views(source: Shard, _caller: Caller, request: ListViews) -> ViewsReply:
    """Answer `ListViews`: dead ones that wait for something too."""
    limit = max(1, min(request.limit, PAGE_MAX))
    start = keys.pack(min(max(0, request.after), 2**63) + 1)
    found = list(islice(source.scan(Family.VIEW, start, b"\xff" * 9), limit + 1))
    rows = [
        _view_reply(source, int.from_bytes(key, "big"), decode_view(value))
        for key, value in found[:limit]
    ]
    return ViewsReply(tuple(rows), len(found) > limit)


def _view_reply(source: Shard, number: int, v: View) -> ViewReply:
    usage = load_usage(source, number, v.root)
    ended = ended_at(source, number)
    entered = v.holder is not None and not ended
    parent_view, parent, name = v.holder if v.holder is not None and entered else (-1, 0, b"")
    return ViewReply(
        number,
        v.root,
        v.created,
        v.created_wall_ns,
        -1 if v.origin is None else v.origin,
        v.origin_version,
        parent_view,
        parent,
        name,
        -1 if v.replaces is None else v.replaces,
        ended,
        depth_of(source, number),
        usage.entries,
        usage.size_bytes,
        path_of(source, number, v.root) if entered else b"",
        b"" if v.origin is None else _path(source, v.origin, v.root),
        identity_of(source, number, v.root),
    )


HANDLERS: dict[type, Callable[[Any, Caller, Any], Any]] = {
    GetSnapshot: get_snapshot,
    ListSnapshots: list_snapshots,
    ListViews: list_views,
}
