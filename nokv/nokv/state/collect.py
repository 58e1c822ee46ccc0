"""The collector's rules: which ended holds are safe, which objects go with them, and their end.

A hold [born, death) is safe when no pin of its view and no lease lies in it, every live session's
floor is at or above `death`, and the grace has passed. What the view shows of its origin is the
origin's hold, which a pin there keeps for it: a row without a body keeps that pin, for the readers
of a view that ended or needs its origin no more. Safe stays safe, so a worker may delete the
objects after it has read them here, also for a leader that is deposed meanwhile; only then the
rows go, by `Collected`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec
from msgspec.structs import replace

from nokv.state import kept, keys
from nokv.state.branches import Row
from nokv.state.context import Context, view_of
from nokv.state.drops import created_of
from nokv.state.extents import Hold, holds_of, name_of
from nokv.state.families import Family
from nokv.state.flatten import end_origin
from nokv.state.pinned import Shard, Source
from nokv.state.records import (
    Counters,
    Drop,
    Session,
    body_of,
    decode_chunk,
    decode_counters,
    decode_drop,
    decode_origin,
    decode_session,
    is_whiteout,
)
from nokv.types.commands import Collected
from nokv.types.limits import CHUNKS_MAX
from nokv.types.reads import DroppedObject, DropReply, DropsReply, GetDrops
from nokv.types.results import Reaped
from nokv.types.values import Caller, Lease, StoredObject

CHUNKS_A_STEP = 64
"""Chunk records of one dropped body that one step covers."""

DROPS_EXAMINED_MAX = 4096
DROPS_MAX = 1024

PAGE_COST_MAX = 8192
"""Chunk records and objects of one page of drops: bounds its reply, and the `Collected` of it."""

HOLDS_ONLY = -1
"""As `through` of a row: nothing may be deleted yet, first its holds of shared objects end."""

_LAST = b"\xff" * 9

_Ended = list[tuple[int, list[Hold]]]
"""(chunk, the holds of it that end)."""


class Guards(msgspec.Struct, frozen=True):
    """All that can keep a hold; floors and leases are read once for a whole page."""

    pins: Callable[[int], tuple[int, ...]]
    """Pinned versions of a view, ascending."""
    floor: int
    """The lowest of all live sessions; 2^63 - 1 without any."""
    leases: dict[tuple[int, ...], tuple[int, ...]]
    """The leased versions of each `leased` key, ascending."""
    cluster_ns: int
    foreign: int = -1
    """In a restored volume that is not adopted: its backup's version, else -1. Holds born up to it
    are the original's too."""


def counters_of(source: Source) -> Counters:
    """Return the scalars as stored."""
    row = source.get(Family.META, keys.COUNTERS)
    return Counters() if row is None else decode_counters(row)


def sessions_of(source: Source, after: int) -> Iterator[tuple[int, Session]]:
    """Yield (id, session or tombstone) with an id above `after`, ascending."""
    session_id = after
    while session_id < 2**64 - 1:
        start, end = keys.pack(session_id + 1), b"\xff" * 8
        row = next(iter(source.scan(Family.SESSION, start, end)), None)
        if row is None:
            return
        session_id = int.from_bytes(row[0][:8], "big")
        if row[0][8:] == keys.RECORD:
            yield session_id, decode_session(row[1])


def live_sessions_of(source: Source) -> Iterator[tuple[int, Session]]:
    """Yield (id, session) of every session that has not ended, ascending."""
    end = keys.after_prefix(keys.LIVE_PREFIX)
    for key, _ in source.scan(Family.META, keys.LIVE_PREFIX, end):
        session_id = int.from_bytes(key[len(keys.LIVE_PREFIX) :], "big")
        value = source.get(Family.SESSION, keys.session(session_id))
        assert value is not None, f"session {session_id:x} lives and has no record"
        yield session_id, decode_session(value)


def read_guards(source: Shard) -> Guards:
    """Collect floors and leases, beside the pins."""
    floor = 2**63 - 1
    leases: dict[tuple[int, ...], list[int]] = {}
    for _, session in live_sessions_of(source):
        floor = min(floor, session.floor)
        for lease in session.leases:
            for what in leased(lease):
                leases.setdefault(what, []).append(lease.version)
    origin = source.get(Family.META, keys.ORIGIN)
    foreign = -1
    if origin is not None and not (found := decode_origin(origin)).adopted:
        foreign = found.version
    versions = {what: tuple(sorted(found)) for what, found in leases.items()}
    return Guards(source.pins, floor, versions, counters_of(source).cluster_ns, foreign)


def leased(lease: Lease) -> tuple[tuple[int, ...], ...]:
    """Return what a lease keeps, as `leases_of` asks for it: a body, and its view."""
    return (lease.view,), (lease.view, lease.inode, lease.body)


def leases_of(drop: Drop) -> tuple[int, ...]:
    """Return whose leases keep a row: a body's, or without one all of the view."""
    return (drop.view, drop.inode, drop.body) if drop.body else (drop.view,)


def is_safe(drop: Drop, guards: Guards, grace_ns: int) -> bool:
    """Whether nobody can read the hold any more."""
    if drop.born <= guards.foreign or drop.death > guards.floor:
        return False
    if guards.cluster_ns - drop.cluster_ns <= grace_ns:
        return False
    # When flat, the view itself has all that its pins show.
    if not drop.flat and _any_within(guards.pins(drop.view), drop):
        return False
    return not _any_within(guards.leases.get(leases_of(drop), ()), drop)


def _any_within(versions: tuple[int, ...], drop: Drop) -> bool:
    """Whether one of these ascending versions lies in the hold."""
    at = bisect_left(versions, drop.born)
    return at < len(versions) and versions[at] < drop.death


def get_drops(source: Shard, _caller: Caller, request: GetDrops) -> DropsReply:
    """Answer `GetDrops`: safe rows above the cursor, with the objects to delete for each."""
    cluster_ns = counters_of(source).cluster_ns
    guards: Guards | None = None
    copies = False
    found: list[DropReply] = []
    after = min(max(0, request.after), 2**63)
    limit = max(1, min(request.limit, DROPS_MAX))
    rows = source.scan(Family.DROP, keys.pack(after + 1), b"\xff" * 8)
    more, cost = False, 0
    for examined, (key, value) in enumerate(rows):
        if len(found) == limit or examined == DROPS_EXAMINED_MAX or cost >= PAGE_COST_MAX:
            more = True
            break
        drop = decode_drop(value)
        if cluster_ns - drop.cluster_ns <= request.grace_ns:
            break  # rows are numbered as they end: those behind it are younger
        after = int.from_bytes(key, "big")
        if guards is None:
            guards, copies = read_guards(source), _has_copies(source)
        if is_safe(drop, guards, request.grace_ns):
            ended = _ended(source, drop, _chunks(source, drop), CHUNKS_MAX)
            found.append(_reply(source, after, drop, ended, copies=copies))
            cost += sum(1 + len(holds) for _, holds in ended)
    return DropsReply(tuple(found), more, after)


def _has_copies(source: Shard) -> bool:
    """Whether any object is shared: else no row needs to be looked for."""
    return next(iter(source.own_scan(Family.REF, b"", _LAST)), None) is not None


def _reply(source: Shard, number: int, drop: Drop, ended: _Ended, *, copies: bool) -> DropReply:
    if copies and _shared(source, drop, ended):
        return DropReply(number, HOLDS_ONLY, ())
    through = ended[-1][0] if ended else 0
    gone = {name_of(obj): obj for _, holds in ended for obj, _ in holds}
    free = (obj for obj in gone.values() if not (copies and _is_held(source, obj)))
    return DropReply(number, through, tuple(map(_name, free)))


def _ended(source: Shard, drop: Drop, chunks: list[Row], through: int) -> _Ended:
    """Return (chunk, holds) that one step of the row covers, no chunk beyond `through`.

    Of a whole body the view's own records, and of them the holds that began in the view: others
    are its origin's to end.
    """
    if drop.history:
        return [(_chunk_index(drop), list(zip(drop.objects, drop.births, strict=True)))]
    created = created_of(source, drop.view)
    found = ((keys.chunk_parts(key)[3], value) for key, value in chunks[:CHUNKS_A_STEP])
    return [
        (index, [] if is_whiteout(value) else _holds(value, created))
        for index, value in found
        if index <= through
    ]


def _holds(value: bytes, since: int) -> list[Hold]:
    return holds_of(decode_chunk(body_of(value)), since)


def _chunks(source: Shard, drop: Drop) -> list[Row]:
    """Return the view's own first chunk records of a dropped body: one more than a step covers."""
    if not drop.body:
        return []
    start, end = keys.body_range(drop.view, drop.inode, drop.body)
    return list(islice(source.own_scan(Family.CHUNK, start, end), CHUNKS_A_STEP + 1))


def _chunk_index(drop: Drop) -> int:
    _, record, _ = keys.history_parts(drop.history)
    return keys.chunk_parts(record)[3]


def _is_held(source: Shard, obj: StoredObject) -> bool:
    """Whether the object has a REF row: a hold beside those that end."""
    prefix = keys.object_prefix(obj)
    rows = source.own_scan(Family.REF, prefix, keys.after_prefix(prefix))
    return next(iter(rows), None) is not None


def _shared(source: Shard, drop: Drop, ended: _Ended) -> list[bytes]:
    """Return the REF rows of the holds that end here.

    An object with REF rows has several holds, in any views, which may end in any order and in one
    page. It is deleted with a row that is read when no REF row is left: so the row that ends the
    last one is read once more, and neither is the object deleted too early nor never.
    """
    rows = [
        keys.ref(obj, drop.view, drop.inode, drop.body, index, born)
        for index, holds in ended
        for obj, born in holds
    ]
    return [row for row in rows if source.own(Family.REF, row) is not None]


def _name(obj: StoredObject) -> DroppedObject:
    return DroppedObject(obj.session, obj.upload, obj.chunk, obj.block, obj.piece, obj.length)


# ---------------------------------------------------------------- the end of a row


def collected(ctx: Context, op: Collected) -> Reaped:
    """Remove rows whose objects are deleted; a repeated or late one removes nothing else.

    A row under a pin stays, whoever names it: it can't have been answered as safe.
    """
    removed = 0
    copies = _has_copies(ctx.txn)
    for number, drop, chunks, through in _named_rows(ctx, op):
        if _end_row(ctx, drop, chunks, through, copies=copies):
            ctx.txn.delete_row(Family.DROP, keys.pack(number))
            kept.forget(ctx.txn, drop)
            ctx.counters.drops -= 1
            _release(ctx, drop)
        removed += 1
    return Reaped(removed, ctx.counters.drops > 0)


def _named_rows(ctx: Context, op: Collected) -> Iterator[tuple[int, Drop, list[Row], int]]:
    """Yield each row that is named, with its chunk records and how far its objects are gone.

    Records of many rows are read before the first of them ends: a scan looks at all that its
    family's writes of the command may have changed.
    """
    txn = ctx.txn
    named: list[tuple[int, Drop, list[Row], int]] = []
    cost = 0
    for number, through in dict(op.drops[:DROPS_MAX]).items():
        value = txn.get(Family.DROP, keys.pack(number)) if 0 < number < 2**64 else None
        if value is None:
            continue
        drop = decode_drop(value)
        if not drop.flat and txn.pinned_within(drop.view, drop.born, drop.death):
            continue
        chunks = _chunks(txn, drop)
        named.append((number, drop, chunks, through))
        cost += 1 + len(chunks)
        if cost >= PAGE_COST_MAX:
            yield from named
            named, cost = [], 0
    yield from named


def _release(ctx: Context, drop: Drop) -> None:
    """Do what a view waited for the row with."""
    if not drop.view:
        return
    view = view_of(ctx.txn, drop.view)
    assert view.drops > 0, f"view {drop.view} with fewer than no drop rows"
    left = replace(view, drops=view.drops - 1)
    if drop.flat:
        left = end_origin(ctx, drop.view, left)
    ctx.store_view(drop.view, left)
    if left.dead and not left.drops:
        ctx.view_may_end(drop.view)


def _end_row(ctx: Context, drop: Drop, chunks: list[Row], through: int, *, copies: bool) -> bool:
    """Do one step of a row; return whether nothing is left of it."""
    txn = ctx.txn
    holds_only = through == HOLDS_ONLY
    ended = _ended(txn, drop, chunks, CHUNKS_MAX if holds_only else through)
    shared = _shared(txn, drop, ended) if copies else []
    if holds_only or shared:
        for row in shared if holds_only else ():
            txn.delete_row(Family.REF, row)
        return False
    if drop.history:
        if txn.own(Family.HISTORY, drop.history) is not None:  # else a twin has taken it along
            txn.delete_row(Family.HISTORY, drop.history)
            ctx.counters.history -= 1
        return True
    for index, _ in ended:
        txn.delete_row(Family.CHUNK, keys.chunk(drop.view, drop.inode, drop.body, index))
    return len(ended) == len(chunks)
