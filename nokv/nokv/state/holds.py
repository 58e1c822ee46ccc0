"""Sharing an object: one REF row for each of its holds, from the moment that it has two.

An object in one chunk record has one hold and no row. Whoever shares it writes a row for the new
hold and one for the hold that it was found under; the second is there already unless this is the
first time. So either every hold of an object has a row, or there is one hold and none.
"""

from __future__ import annotations

from nokv.state import keys
from nokv.state.context import Context, view_of
from nokv.state.extents import holds_of
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.types.values import StoredChunk


def native(source: Source, view: int, born: int) -> tuple[int, int]:
    """Return (view, birth) of the hold behind an extent that `view` shows.

    The view that it began in is the first of the chain that is old enough. One that was flattened
    on the way has a hold of its own, born with it.
    """
    while view:
        record = view_of(source, view)
        if born >= record.created:
            break
        if record.origin is None:
            return view, record.created
        view = record.origin
    return view, born


def share(ctx: Context, shown: bytes, chunk: StoredChunk, key: bytes) -> None:
    """Write the REF rows for the objects of `chunk` that a record at `key` names from now on.

    `chunk` holds them as they are shown at `shown`, the key of a chunk record in the view that it
    was read in; that hold and the new one may be of different views.
    """
    view, ino, body, index = keys.chunk_parts(shown)
    to = keys.chunk_parts(key)
    for obj, born in holds_of(chunk):
        holder, birth = native(ctx.txn, view, born)
        ctx.txn.set_row(Family.REF, keys.ref(obj, holder, ino, body, index, birth), b"")
        ctx.txn.set_row(Family.REF, keys.ref(obj, *to, ctx.version), b"")
