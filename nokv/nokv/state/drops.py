"""Holds that end: replaced bodies, overwritten chunks, cut tails. Nothing is deleted here.

A body that goes is one DROP row; its chunk records stay until the collector has deleted their
objects. A chunk record that is overwritten always goes to history, and that row is its drop row's:
a pin or lease reads it there, and it is removed only together with the drop.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from nokv.errors import FileTooLarge
from nokv.state import keys
from nokv.state.context import Context
from nokv.state.extents import EMPTY, cut, gone
from nokv.state.families import Family
from nokv.state.records import Drop, Inode, body_of, born_of, decode_chunk
from nokv.types.limits import CHUNK_BYTES, CHUNKS_MAX, TRUNCATE_CHUNKS_MAX
from nokv.types.values import StoredChunk


def drop_body(ctx: Context, view: int, ino: int, inode: Inode, *, death: int | None = None) -> None:
    """Queue the body of an inode that goes or gets another one. Nothing to do without a body."""
    if not inode.body:
        return
    ended = ctx.version if death is None else death
    assert inode.body_born <= ended, "a body ends before it began"
    ctx.add_drop(Drop(view, ino, inode.body, inode.body_born, ended, ctx.cluster_ns))


def load_chunk(ctx: Context, key: bytes) -> StoredChunk:
    """Return a chunk record as this command sees it; absent is empty."""
    value = ctx.txn.get(Family.CHUNK, key)
    return EMPTY if value is None else decode_chunk(body_of(value))


def write_chunk(ctx: Context, key: bytes, new: StoredChunk) -> None:
    """Write or (empty) remove a chunk record; what it showed before goes to history and a drop."""
    txn = ctx.txn
    value = txn.get(Family.CHUNK, key)
    if value is not None:
        old = decode_chunk(body_of(value))
        lost, born = gone(old, new)
        record_born = born_of(value)
        assert record_born < ctx.version, "a chunk is written once a command"
        row = txn.keep(Family.CHUNK, key, value, ctx.version)
        view, ino, body, _ = keys.chunk_parts(key)
        ctx.add_drop(
            Drop(
                view,
                ino,
                body,
                min(born, record_born),
                ctx.version,
                ctx.cluster_ns,
                tuple(lost),
                row,
            )
        )
    if new.extents:
        txn.set_record(Family.CHUNK, key, txn.encode(new))
    elif value is not None:
        txn.delete_row(Family.CHUNK, key)


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
    rows = list(islice(ctx.txn.scan(Family.CHUNK, start, end), TRUNCATE_CHUNKS_MAX + 1))
    if len(rows) > TRUNCATE_CHUNKS_MAX:
        message = f"a truncate that cuts more than {TRUNCATE_CHUNKS_MAX} chunks"
        raise FileTooLarge(message, hint="truncate in steps of 256 GiB")
    for key, value in rows:
        old = decode_chunk(body_of(value))
        new = cut(old, offset) if key == start else EMPTY
        if new != old:
            write_chunk(ctx, key, new)
    return msgspec.structs.replace(inode, size=size)
