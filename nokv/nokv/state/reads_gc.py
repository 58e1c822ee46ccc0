"""What waits for the collector, and why: each row with everything that keeps it, by name.

A row of the drop queue is `is_safe` exactly when no reason is found for it here, but for the
objects that a copy holds too: their holds end first, with a round of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

from nokv.state import keys
from nokv.state.collect import (
    CHUNKS_A_STEP,
    PAGE_COST_MAX,
    Guards,
    counters_of,
    leased,
    leases_of,
    live_sessions_of,
    read_guards,
    sessions_of,
)
from nokv.state.context import JOB_ORPHAN, JOB_TRIM, JOB_UNPIN, JOB_VIEW
from nokv.state.extents import holds_of
from nokv.state.families import Family
from nokv.state.ops_backup import backups_of
from nokv.state.ops_internal import TOMBSTONE_NS
from nokv.state.ops_session import consumed_ranges
from nokv.state.pinned import Shard, Source
from nokv.state.records import (
    Drop,
    Pin,
    Session,
    body_of,
    decode_chunk,
    decode_drop,
    decode_job,
    decode_pin,
    decode_view,
    is_whiteout,
)
from nokv.state.snapshots import snapshots_of
from nokv.types.gc import (
    ROWS_COUNTED_MAX,
    GetPendingDrops,
    GetWaiting,
    ListWaitingSessions,
    PendingDrop,
    PendingDropsReply,
    Reason,
    WaitingReply,
    WaitingSession,
    WaitingSessionsReply,
    Why,
    WhySession,
)
from nokv.types.limits import CHUNKS_MAX, PAGE_MAX
from nokv.types.values import Caller, StoredObject

REASONS_MAX = 32
"""Reasons told of one row: who knows these knows enough."""

_JOBS = {JOB_ORPHAN: "tree", JOB_UNPIN: "unpin", JOB_TRIM: "session", JOB_VIEW: "view"}

_PinRow = tuple[int, int, Pin]
"""(version, pin id, record)."""


class _Holders(msgspec.Struct, frozen=True):
    """All that can keep a row, with whose it is."""

    guards: Guards
    pins: dict[int, list[_PinRow]]
    """By view, ascending by version."""
    floors: tuple[tuple[int, int], ...]
    """(floor, session) of live sessions, ascending."""
    leases: dict[tuple[int, ...], list[tuple[int, int]]]
    """(version, session) of the leases of each `leased` key, ascending."""
    snapshots: dict[int, str]
    backups: dict[int, str]


def _holders(source: Shard) -> _Holders:
    pins: dict[int, list[_PinRow]] = defaultdict(list)
    for key, value in source.scan(Family.PIN, b"", b"\xff" * 8):
        view, version, pin_id = keys.pin_parts(key)
        pins[view].append((version, pin_id, decode_pin(value)))
    live = list(live_sessions_of(source))
    leases: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for number, session in live:
        for lease in session.leases:
            for kept in leased(lease):
                leases[kept].append((lease.version, number))
    for found in leases.values():
        found.sort()
    return _Holders(
        read_guards(source),
        pins,
        tuple(sorted((s.floor, number) for number, s in live)),
        leases,
        {one.snapshot: name for name, one in snapshots_of(source)},
        {number: one.name for number, one in backups_of(source)},
    )


# ---------------------------------------------------------------- drops


def get_pending_drops(
    source: Shard, _caller: Caller, request: GetPendingDrops
) -> PendingDropsReply:
    """Answer `GetPendingDrops`."""
    limit = max(1, min(request.limit, PAGE_MAX))
    after = min(max(0, request.after), 2**63)
    holders = _holders(source)
    found: list[PendingDrop] = []
    more, cost = False, 0
    for key, value in source.scan(Family.DROP, keys.pack(after + 1), b"\xff" * 8):
        if len(found) == limit or cost >= PAGE_COST_MAX:
            more = True
            break
        after = int.from_bytes(key, "big")
        found.append(_pending(source, after, decode_drop(value), holders, request.grace_ns))
        cost += 1 + found[-1].objects
    return PendingDropsReply(tuple(found), more, after, holders.guards.cluster_ns)


def _pending(
    source: Shard, number: int, drop: Drop, holders: _Holders, grace_ns: int
) -> PendingDrop:
    objects = _objects(source, drop)
    shared = sum(_is_shared(source, obj) for obj in objects)
    reasons = list(islice(_reasons(drop, holders, grace_ns), REASONS_MAX))
    if shared:
        reasons.append(Reason(Why.SHARED, at=shared))
    chunk = -1
    if drop.history:
        _, record, _ = keys.history_parts(drop.history)
        chunk = keys.chunk_parts(record)[3]
    return PendingDrop(
        number,
        drop.view,
        drop.inode,
        drop.body,
        chunk,
        drop.born,
        drop.death,
        drop.cluster_ns,
        len(objects),
        sum(obj.length for obj in objects),
        tuple(reasons),
    )


def _objects(source: Shard, drop: Drop) -> list[StoredObject]:
    """Return the objects that go with a row: of a whole body those of its first chunks."""
    if drop.history:
        return list(dict.fromkeys(drop.objects))
    if not drop.body:
        return []
    view = source.view(drop.view)
    created = view.created if view is not None and drop.view else 0
    start = keys.chunk(drop.view, drop.inode, drop.body, 0)
    end = keys.chunk(drop.view, drop.inode, drop.body, CHUNKS_MAX)
    rows = islice(source.own_scan(Family.CHUNK, start, end), CHUNKS_A_STEP)
    chunks = (decode_chunk(body_of(value)) for _, value in rows if not is_whiteout(value))
    return list(dict.fromkeys(obj for chunk in chunks for obj, _ in holds_of(chunk, created)))


def _is_shared(source: Shard, obj: StoredObject) -> bool:
    prefix = keys.object_prefix(obj)
    rows = source.own_scan(Family.REF, prefix, keys.after_prefix(prefix))
    return next(iter(rows), None) is not None


def _reasons(drop: Drop, holders: _Holders, grace_ns: int) -> Iterator[Reason]:
    """Yield all that keeps the row, as `collect.is_safe` judges it."""
    guards = holders.guards
    if drop.born <= guards.foreign:
        yield Reason(Why.FOREIGN, at=guards.foreign)
    if not drop.flat:
        pins = holders.pins.get(drop.view, [])
        first = bisect_left(pins, drop.born, key=lambda pin: pin[0])
        for version, pin_id, pin in pins[first:]:
            if version >= drop.death:
                break
            yield _pin_reason(version, pin_id, pin, holders)
    leases = holders.leases.get(leases_of(drop), [])
    for version, session in leases[bisect_left(leases, (drop.born, 0)) :]:
        if version >= drop.death:
            break
        yield Reason(Why.LEASE, by=session, at=version)
    for floor, session in holders.floors:
        if floor >= drop.death:
            break
        yield Reason(Why.FLOOR, by=session, at=floor)
    if guards.cluster_ns - drop.cluster_ns <= grace_ns:
        yield Reason(Why.GRACE, at=drop.cluster_ns + grace_ns)


def _pin_reason(version: int, pin_id: int, pin: Pin, holders: _Holders) -> Reason:
    if pin.snapshot:
        name = holders.snapshots.get(pin.snapshot, "")
        return Reason(Why.SNAPSHOT, by=pin.snapshot, at=version, name=name)
    if pin.clone:
        return Reason(Why.CLONE, by=pin.clone, at=version)
    if pin.session:
        return Reason(Why.SESSION_PIN, by=pin.session, at=version)
    return Reason(Why.BACKUP, by=pin_id, at=version, name=holders.backups.get(pin_id, ""))


# ---------------------------------------------------------------- the rest


def get_waiting(source: Shard, _caller: Caller, _request: GetWaiting) -> WaitingReply:
    """Answer `GetWaiting`."""
    counters = counters_of(source)
    jobs: Counter[str] = Counter()
    end = keys.after_prefix(keys.JOB_PREFIX)
    for _, value in islice(source.scan(Family.META, keys.JOB_PREFIX, end), ROWS_COUNTED_MAX):
        job = decode_job(value)
        jobs[_JOBS.get(job.kind, str(job.kind))] += 1
    views = islice(source.scan(Family.VIEW, b"", b"\xff" * 9), ROWS_COUNTED_MAX)
    return WaitingReply(
        counters.drops,
        counters.history,
        counters.jobs,
        counters.sessions,
        counters.snapshots,
        dict(sorted(jobs.items())),
        sum(1 for _, value in views if decode_view(value).dead),
        counters.cluster_ns,
    )


def list_waiting_sessions(
    source: Shard, _caller: Caller, request: ListWaitingSessions
) -> WaitingSessionsReply:
    """Answer `ListWaitingSessions`."""
    limit = max(1, min(request.limit, PAGE_MAX))
    pins: Counter[int] = Counter()
    for _, value in source.scan(Family.PIN, b"", b"\xff" * 8):
        pins[decode_pin(value).session] += 1
    cluster_ns = counters_of(source).cluster_ns
    rows: list[WaitingSession] = []
    more, cost = False, 0
    for number, session in sessions_of(source, max(0, request.after)):
        if len(rows) == limit or cost >= PAGE_COST_MAX:
            more = True
            break
        abandoned, ranges = _abandoned(source, number, session)
        cost += 1 + ranges
        why, until_ns = _why_session(session, abandoned, cluster_ns, request.grace_ns)
        rows.append(
            WaitingSession(
                number,
                why,
                until_ns,
                abandoned,
                pins[number],
                len(session.leases),
                len(session.stages),
                session.floor,
            )
        )
    return WaitingSessionsReply(tuple(rows), more, cluster_ns)


def _abandoned(source: Source, number: int, session: Session) -> tuple[int, int]:
    """Return how many uploads were given up and never published, and how many ranges were."""
    end = session.next_upload if session.died else session.watermark
    ranges = consumed_ranges(source, number)
    published = sum(min(last, end - 1) - first + 1 for first, last in ranges if first < end)
    return end - 1 - published, len(ranges)


def _why_session(
    session: Session, abandoned: int, cluster_ns: int, grace_ns: int
) -> tuple[int, int]:
    """Return (WhySession, cluster time at which that wait is over or 0).

    Of a live session the time is that of what it gave up last: the record knows no other. The
    collector remembers more, and what was given up earlier goes earlier.
    """
    if not session.died:
        graced_ns = session.abandoned_cluster_ns + grace_ns
        if not abandoned:
            return WhySession.ALIVE, 0
        return WhySession.ABANDONED, graced_ns if cluster_ns <= graced_ns else 0
    graced_ns = session.died_cluster_ns + grace_ns
    kept_ns = session.died_cluster_ns + TOMBSTONE_NS
    if cluster_ns <= graced_ns:
        return WhySession.GRACE, graced_ns
    if cluster_ns < kept_ns:
        return WhySession.ANSWERS, kept_ns
    return WhySession.SWEEP, 0


HANDLERS: dict[type, Callable[[Any, Caller, Any], Any]] = {
    GetPendingDrops: get_pending_drops,
    GetWaiting: get_waiting,
    ListWaitingSessions: list_waiting_sessions,
}
