"""Reads for the worker and the operator: drops, sessions, what waits, what fsck compares."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from nokv.errors import InvalidArgument, NotFound
from nokv.state import keys
from nokv.state.collect import counters_of, get_drops, sessions_of
from nokv.state.families import Family
from nokv.state.ops_backup import backups_of, origin_of
from nokv.state.ops_session import consumed_above
from nokv.state.pinned import Shard, Source
from nokv.state.port import KEY_BYTES_MAX
from nokv.state.records import Session, body_of, decode_chunk, decode_session, is_whiteout
from nokv.types.limits import PAGE_MAX, RANGES_PAGE_MAX
from nokv.types.reads import (
    BackupRow,
    BackupsReply,
    BodiesReply,
    BodyRow,
    DroppedObject,
    GetDrops,
    GetOrigin,
    GetPending,
    GetSession,
    ListBackups,
    ListBodies,
    ListSessions,
    OriginReply,
    PendingReply,
    SessionReply,
    SessionsReply,
)
from nokv.types.values import Caller

_LIVE = b"\x00"
_PAST = b"\x01"


def get_session(source: Source, _caller: Caller, request: GetSession) -> SessionReply:
    """Answer `GetSession`, with the lowest ranges; NotFound for one that was never, or is gone."""
    in_range = 0 < request.session < 2**64
    row = source.get(Family.SESSION, keys.session(request.session)) if in_range else None
    if row is None:
        message = f"no session {request.session:x}"
        raise NotFound(message)
    ranges = tuple(islice(consumed_above(source, request.session, 0), RANGES_PAGE_MAX))
    return _session_reply(request.session, decode_session(row), ranges)


def list_sessions(source: Source, _caller: Caller, request: ListSessions) -> SessionsReply:
    """Answer `ListSessions`."""
    limit = max(1, min(request.limit, PAGE_MAX))
    above = max(0, request.above)
    start = max(0, request.after - 1 if above else request.after)
    replies: list[SessionReply] = []
    cut, left = 0, RANGES_PAGE_MAX
    more = False
    for session_id, session in sessions_of(source, start):
        if len(replies) == limit or not left:
            more = True
            break
        rows = consumed_above(source, session_id, above if session_id == request.after else 0)
        ranges = tuple(islice(rows, left))
        replies.append(_session_reply(session_id, session, ranges))
        left -= len(ranges)
        if not left and next(rows, None) is not None:
            cut = ranges[-1][1]
    return SessionsReply(tuple(replies), more, counters_of(source).cluster_ns, cut)


def _session_reply(
    session_id: int, s: Session, ranges: tuple[tuple[int, int], ...]
) -> SessionReply:
    return SessionReply(
        session_id,
        not s.died,
        s.ttl_ns,
        s.opened,
        s.acked,
        s.watermark,
        s.next_upload,
        s.floor,
        s.number,
        s.died,
        s.died_cluster_ns if s.died else s.abandoned_cluster_ns,
        ranges,
    )


def get_pending(source: Source, _caller: Caller, _request: GetPending) -> PendingReply:
    """Answer `GetPending`, O(1)."""
    c = counters_of(source)
    return PendingReply(c.drops, c.history, c.jobs, c.sessions)


def list_bodies(source: Shard, _caller: Caller, request: ListBodies) -> BodiesReply:
    """Answer `ListBodies`: current chunk records, then those in history.

    Raises InvalidArgument for a cursor that no page can have answered.
    """
    limit = max(1, min(request.limit, PAGE_MAX))
    rows: list[BodyRow] = []
    after = request.after
    if after[:1] not in (b"", _LIVE, _PAST) or len(after) > KEY_BYTES_MAX:
        message = "a cursor that no page answered"
        raise InvalidArgument(message)
    if not 0 <= request.view + 1 < 2**63:
        message = f"no view {request.view}"
        raise InvalidArgument(message)
    first, end = b"", b"\xff" * 33
    if request.view >= 0:
        first, end = keys.pack(request.view), keys.pack(request.view + 1)
    if not after.startswith(_PAST):
        start = max(after[1:] + b"\x00", first) if after.startswith(_LIVE) else first
        for key, value in islice(source.own_scan(Family.CHUNK, start, end), limit):
            rows.append(_body_row(key, value, live=True))
            after = _LIVE + key
        if len(rows) == limit:
            return BodiesReply(tuple(rows), more=True, after=after)
        after = _PAST
    if request.view >= 0:
        return BodiesReply(tuple(rows), more=False, after=after)
    examined = len(rows)
    for key, value in source.own_scan(Family.HISTORY, after[1:] + b"\x00", b"\xff" * 33):
        examined += 1
        after = _PAST + key
        family, record, _ = keys.history_parts(key)
        if family == Family.CHUNK:
            rows.append(_body_row(record, value, live=False))
        if examined >= limit:
            return BodiesReply(tuple(rows), more=True, after=after)
    return BodiesReply(tuple(rows), more=False, after=after)


def _body_row(key: bytes, value: bytes, *, live: bool) -> BodyRow:
    view, ino, body, index = keys.chunk_parts(key)
    objects = () if is_whiteout(value) else decode_chunk(body_of(value)).objects
    names = tuple(DroppedObject(o.session, o.upload, o.chunk, o.block, o.piece) for o in objects)
    return BodyRow(view, ino, body, index, live, names, tuple(o.length for o in objects))


def list_backups(source: Source, _caller: Caller, _request: ListBackups) -> BackupsReply:
    """Answer `ListBackups`."""
    rows = tuple(
        BackupRow(
            number,
            one.name,
            one.cluster,
            one.version,
            one.where,
            one.node,
            one.created_wall_ns,
            one.until_cluster_ns,
            one.complete,
            one.ended_cluster_ns,
            one.size_bytes,
            one.digest,
            one.slot,
        )
        for number, one in backups_of(source)
    )
    return BackupsReply(rows, counters_of(source).cluster_ns)


def get_origin(source: Source, _caller: Caller, _request: GetOrigin) -> OriginReply:
    """Answer `GetOrigin`."""
    origin = origin_of(source)
    if origin is None:
        return OriginReply(restored=False, ready=True, adopted=True, version=0, lineage=())
    return OriginReply(
        restored=True,
        ready=origin.ready,
        adopted=origin.adopted,
        version=origin.version,
        lineage=origin.lineage,
    )


HANDLERS: dict[type, Callable[[Any, Caller, Any], Any]] = {
    GetDrops: get_drops,
    GetSession: get_session,
    ListSessions: list_sessions,
    GetPending: get_pending,
    ListBodies: list_bodies,
    ListBackups: list_backups,
    GetOrigin: get_origin,
}
