"""The collector's rules: which ended holds are safe, which objects go with them, and their end.

A hold [born, death) is safe when no pin of its view and no lease lies in it, every live session's
floor is at or above `death`, and the grace has passed. Safe stays safe, so a worker may delete the
objects after it has read them here, also for a leader that is deposed meanwhile; only then the
rows go, by `Collected`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice

import msgspec

from nokv.state import keys
from nokv.state.context import Context
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import (
    Counters,
    Drop,
    Session,
    body_of,
    decode_chunk,
    decode_counters,
    decode_drop,
    decode_session,
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


class Guards(msgspec.Struct, frozen=True):
    """All that can keep a hold, read once for a whole page."""

    pins: dict[int, tuple[int, ...]]
    floor: int
    """The lowest of all live sessions; 2^63 - 1 without any."""
    leases: tuple[Lease, ...]
    cluster_ns: int


def counters_of(source: Source) -> Counters:
    """Return the scalars as stored."""
    row = source.get(Family.META, keys.COUNTERS)
    return Counters() if row is None else decode_counters(row)


def sessions_of(source: Source, after: int) -> Iterator[tuple[int, Session]]:
    """Yield (id, session or tombstone) with an id above `after`, ascending."""
    session_id = after
    while True:
        start, end = keys.pack(session_id + 1), b"\xff" * 8
        row = next(iter(source.scan(Family.SESSION, start, end)), None)
        if row is None:
            return
        session_id = int.from_bytes(row[0][:8], "big")
        if row[0][8:] == keys.RECORD:
            yield session_id, decode_session(row[1])


def read_guards(source: Source) -> Guards:
    """Collect pins, floors and leases."""
    pins: dict[int, list[int]] = {}
    for key, _ in source.scan(Family.PIN, b"", b"\xff" * 8):
        view, version, _ = keys.pin_parts(key)
        pins.setdefault(view, []).append(version)
    floor = 2**63 - 1
    leases: list[Lease] = []
    for _, session in sessions_of(source, 0):
        if not session.died:
            floor = min(floor, session.floor)
            leases.extend(session.leases)
    ordered = {view: tuple(versions) for view, versions in pins.items()}
    return Guards(ordered, floor, tuple(leases), counters_of(source).cluster_ns)


def is_safe(drop: Drop, guards: Guards, grace_ns: int) -> bool:
    """Whether nobody can read the hold any more."""
    if drop.death > guards.floor or guards.cluster_ns - drop.cluster_ns <= grace_ns:
        return False
    pins = guards.pins.get(drop.view, ())
    at = bisect_left(pins, drop.born)
    if at < len(pins) and pins[at] < drop.death:
        return False
    return not any(
        lease.view == drop.view
        and lease.inode == drop.inode
        and lease.body == drop.body
        and drop.born <= lease.version < drop.death
        for lease in guards.leases
    )


def get_drops(source: Source, _caller: Caller, request: GetDrops) -> DropsReply:
    """Answer `GetDrops`: safe rows above the cursor, with the objects to delete for each."""
    guards = read_guards(source)
    found: list[DropReply] = []
    after = max(0, request.after)
    limit = max(1, min(request.limit, DROPS_MAX))
    rows = source.scan(Family.DROP, keys.pack(after + 1), b"\xff" * 8)
    more = False
    for examined, (key, value) in enumerate(rows):
        if len(found) == limit or examined == DROPS_EXAMINED_MAX:
            more = True
            break
        after = int.from_bytes(key, "big")
        drop = decode_drop(value)
        if is_safe(drop, guards, request.grace_ns):
            found.append(_reply(source, after, drop))
    return DropsReply(tuple(found), more, after)


def _reply(source: Source, number: int, drop: Drop) -> DropReply:
    if drop.history:
        index = _chunk_index(drop)
        mine = [obj for obj in drop.objects if not _held_elsewhere(source, obj, drop, index)]
        return DropReply(number, index, tuple(map(_name, mine)))
    objects: list[DroppedObject] = []
    through = -1
    for key, value in _chunks(source, drop, CHUNKS_MAX):
        through = keys.chunk_parts(key)[3]
        held = decode_chunk(body_of(value)).objects
        objects += [_name(obj) for obj in held if not _held_elsewhere(source, obj, drop, None)]
    return DropReply(number, max(through, 0), tuple(objects))


def _chunks(source: Source, drop: Drop, through: int) -> list[tuple[bytes, bytes]]:
    """Return the first chunk records of a dropped body, none beyond `through`."""
    start = keys.chunk(drop.view, drop.inode, drop.body, 0)
    end = keys.chunk(drop.view, drop.inode, drop.body, through + 1)
    return list(islice(source.scan(Family.CHUNK, start, end), CHUNKS_A_STEP))


def _chunk_index(drop: Drop) -> int:
    _, record, _ = keys.history_parts(drop.history)
    return keys.chunk_parts(record)[3]


def _holds(source: Source, obj: StoredObject) -> list[bytes]:
    prefix = keys.object_prefix(obj)
    return [key for key, _ in source.scan(Family.REF, prefix, keys.after_prefix(prefix))]


def _held_elsewhere(source: Source, obj: StoredObject, drop: Drop, index: int | None) -> bool:
    """Whether a shared object has holds besides those that end with this row."""
    own = keys.object_prefix(obj) + keys.pack2(drop.view, drop.inode) + keys.pack(drop.body)
    if index is not None:
        own += keys.pack(index)
    return any(not key.startswith(own) for key in _holds(source, obj))


def _name(obj: StoredObject) -> DroppedObject:
    return DroppedObject(obj.session, obj.upload, obj.chunk, obj.block, obj.piece)


# ---------------------------------------------------------------- the end of a row


def collected(ctx: Context, op: Collected) -> Reaped:
    """Remove rows whose objects are deleted; a repeated or late one removes nothing else."""
    removed = 0
    for number, through in op.drops[:DROPS_MAX]:
        key = keys.pack(number)
        value = ctx.txn.get(Family.DROP, key)
        if value is None:
            continue
        drop = decode_drop(value)
        assert not ctx.txn.pinned_within(drop.view, drop.born, drop.death), (
            f"drop {number} was collected under a pin"
        )
        if drop.history:
            _end_holds(ctx, drop, _chunk_index(drop), drop.objects)
            ctx.txn.delete_row(Family.HISTORY, drop.history)
            ctx.counters.history -= 1
            finished = True
        else:
            finished = _remove_chunks(ctx, drop, through)
        if finished:
            ctx.txn.delete_row(Family.DROP, key)
            ctx.counters.drops -= 1
        removed += 1
    return Reaped(removed, ctx.counters.drops > 0)


def _remove_chunks(ctx: Context, drop: Drop, through: int) -> bool:
    for key, value in _chunks(ctx.txn, drop, min(max(through, 0), CHUNKS_MAX)):
        objects = decode_chunk(body_of(value)).objects
        _end_holds(ctx, drop, keys.chunk_parts(key)[3], objects)
        ctx.txn.delete_row(Family.CHUNK, key)
    return not _chunks(ctx.txn, drop, CHUNKS_MAX)


def _end_holds(ctx: Context, drop: Drop, index: int, objects: tuple[StoredObject, ...]) -> None:
    for obj in objects:
        own = keys.object_prefix(obj) + keys.pack2(drop.view, drop.inode) + keys.pack(drop.body)
        own += keys.pack(index)
        for key in _holds(ctx.txn, obj):
            if key.startswith(own):
                ctx.txn.delete_row(Family.REF, key)
