"""Holds that end: replaced bodies, overwritten chunks, cut tails. Nothing is deleted here.

A body that goes is one DROP row; its chunk records stay until the collector has deleted their
objects. A chunk record that is overwritten always goes to history, and that row is its drop row's:
a pin or lease reads it there, and it is removed only together with the drop.

A view ends the holds that began in it (born >= view.created) and no others: what it shows of its
origin is the origin's to end. So a body that a clone inherits and never patched ends without a row.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from nokv.errors import FileTooLarge
from nokv.state import keys
from nokv.state.context import Context
from nokv.state.extents import EMPTY, cut, gone
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import Drop, Inode, View, body_of, born_of, decode_chunk, is_whiteout
from nokv.types.limits import CHUNK_BYTES, CHUNKS_MAX, TRUNCATE_CHUNKS_MAX
from nokv.types.values import StoredChunk

_CHUNK = Family.CHUNK


def created_of(source: Source, view: int) -> int:
    """Return the version from which on holds are the view's own; 0 for the live tree."""
    if not view:
        return 0
    record = source.view(view)
    assert record is not None, f"records of view {view}, which does not exist"
    return record.created


def drop_body(ctx: Context, view: int, ino: int, inode: Inode, *, death: int | None = None) -> None:
    """Queue the body of an inode that goes or gets another one. Nothing to do without a body."""
    if not inode.body:
        return
    ended = ctx.version if death is None else death
    born, created, size_bytes = inode.body_born, created_of(ctx.txn, view), inode.size
    if born < created:
        start, end = keys.body_range(view, ino, inode.body)
        if next(iter(ctx.txn.own_scan(_CHUNK, start, end)), None) is None:
            return
        born, size_bytes = created, 0  # what the view patched of it, and nobody counted
    assert born <= ended, "a body ends before it began"
    drop = Drop(view, ino, inode.body, born, ended, ctx.cluster_ns, size_bytes=size_bytes)
    ctx.add_drop(drop)


def drop_view(ctx: Context, number: int, view: View) -> None:
    """Queue all that a view shows, as it is marked dead.

    Its readers may still read what it has of its origin, so its hold of that may not go before the
    row: it counts in `view.drops` as any other. The view's record is written.
    """
    assert 0 < view.dead <= ctx.version, "a view is queued when it dies"
    ctx.store_view(number, view)
    ctx.add_drop(Drop(number, view.root, 0, view.created, view.dead, ctx.cluster_ns))


def load_chunk(ctx: Context, key: bytes) -> StoredChunk:
    """Return a chunk record as this command sees it; absent is empty."""
    value = ctx.txn.get(_CHUNK, key)
    return EMPTY if value is None else decode_chunk(body_of(value))


def write_chunk(ctx: Context, key: bytes, new: StoredChunk) -> None:
    """Write or (empty) remove a chunk record; what it showed before goes to history and a drop.

    A record that the view inherits stays where it is, and its extents keep their births here.
    """
    txn = ctx.txn
    value = txn.own(_CHUNK, key)
    if value is not None:
        _end_record(ctx, key, value, new)
    if new.extents:
        txn.set_record(_CHUNK, key, txn.encode(new))
    else:
        txn.end_record(_CHUNK, key)


def _end_record(ctx: Context, key: bytes, value: bytes, new: StoredChunk) -> None:
    view, ino, body, _ = keys.chunk_parts(key)
    old = EMPTY if is_whiteout(value) else decode_chunk(body_of(value))
    lost = gone(old, new, created_of(ctx.txn, view))
    births = tuple(born for _, born in lost)
    record_born = born_of(value)
    assert record_born < ctx.version, "a chunk is written once a command"
    row = ctx.txn.keep(_CHUNK, key, value, ctx.version)
    ctx.add_drop(
        Drop(
            view,
            ino,
            body,
            min(record_born, *births) if births else record_born,
            ctx.version,
            ctx.cluster_ns,
            tuple(obj for obj, _ in lost),
            row,
            births,
            size_bytes=sum(obj.length for obj in dict.fromkeys(obj for obj, _ in lost)),
        )
    )


def truncate_body(ctx: Context, view: int, ino: int, inode: Inode, size: int) -> Inode:
    """Return the inode with `size`; bytes beyond are cut eagerly, so they never come back.

    Raises FileTooLarge where more than TRUNCATE_CHUNKS_MAX chunk records would be cut.
    """
    if size >= inode.size or not inode.body:
        return msgspec.structs.replace(inode, size=size)
    if size == 0:
        drop_body(ctx, view, ino, inode)
        return msgspec.structs.replace(inode, size=0, body=0, body_born=0)
    index, offset = divmod(size, CHUNK_BYTES)
    start = keys.chunk(view, ino, inode.body, index)
    end = keys.chunk(view, ino, inode.body, CHUNKS_MAX)
    rows = list(islice(ctx.txn.scan(_CHUNK, start, end), TRUNCATE_CHUNKS_MAX + 1))
    if len(rows) > TRUNCATE_CHUNKS_MAX:
        message = f"a truncate that cuts more than {TRUNCATE_CHUNKS_MAX} chunks"
        raise FileTooLarge(message, hint="truncate in steps of 256 GiB")
    for key, value in rows:
        old = decode_chunk(body_of(value))
        new = cut(old, offset) if key == start else EMPTY
        if new != old:
            write_chunk(ctx, key, new)
    return msgspec.structs.replace(inode, size=size)
