"""Chunk records as values: build, overlay, cut. Pure functions over `StoredChunk`.

Extents are ascending and disjoint; what none covers reads as zeros. Each extent carries the
version at which its hold of the object began, and keeps it when it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable

from nokv.types.limits import CHUNK_BYTES
from nokv.types.values import ChunkMap, StoredChunk, StoredExtent, StoredObject

ObjectName = tuple[int, int, int, int, int]
Hold = tuple[StoredObject, int]
"""(object, version at which the record's hold of it began)."""

EMPTY = StoredChunk((), ())


def name_of(obj: StoredObject) -> ObjectName:
    """Return what identifies an object: (session, upload, chunk, block, piece)."""
    return obj.session, obj.upload, obj.chunk, obj.block, obj.piece


def from_publish(chunk: ChunkMap, session: int, upload: int, born: int) -> StoredChunk:
    """Return the record of a chunk as a publish names it, all its holds born now."""
    objects = tuple(
        StoredObject(session, upload, p.chunk, p.block, p.piece, p.length, p.sums)
        for p in chunk.parts
    )
    extents = tuple(
        StoredExtent(e.offset, e.length, e.part, e.part_offset, born, e.data) for e in chunk.extents
    )
    return StoredChunk(objects, extents)


def slice_extent(extent: StoredExtent, start: int, end: int) -> StoredExtent:
    """Return the part of an extent that covers [start, end) of the chunk."""
    skip = start - extent.offset
    assert 0 <= skip < extent.length, "a slice begins inside its extent"
    assert start < end <= extent.offset + extent.length, "a slice ends inside its extent"
    length = end - start
    if extent.object < 0:
        data = extent.data[skip : skip + length]
        return StoredExtent(start, length, -1, 0, extent.born, data)
    return StoredExtent(start, length, extent.object, extent.object_offset + skip, extent.born, b"")


def outside(extents: Iterable[StoredExtent], start: int, end: int) -> list[StoredExtent]:
    """Return the parts of the extents that lie outside [start, end)."""
    kept = []
    for extent in extents:
        stop = extent.offset + extent.length
        if stop <= start or extent.offset >= end:
            kept.append(extent)
            continue
        if extent.offset < start:
            kept.append(slice_extent(extent, extent.offset, start))
        if stop > end:
            kept.append(slice_extent(extent, end, stop))
    return kept


def overlay(old: StoredChunk, new: StoredChunk) -> StoredChunk:
    """Return `old` with the extents of `new` over it; objects that none names are left out."""
    kept = list(old.extents)
    for extent in new.extents:
        kept = outside(kept, extent.offset, extent.offset + extent.length)
    shift = len(old.objects)
    fresh = [
        e
        if e.object < 0
        else StoredExtent(e.offset, e.length, e.object + shift, e.object_offset, e.born, b"")
        for e in new.extents
    ]
    merged = sorted(kept + fresh, key=lambda e: e.offset)
    return compact(StoredChunk(old.objects + new.objects, tuple(merged)))


def cut(chunk: StoredChunk, size: int) -> StoredChunk:
    """Return the chunk without anything at or beyond `size`, which never comes back."""
    return compact(StoredChunk(chunk.objects, tuple(outside(chunk.extents, size, CHUNK_BYTES))))


def compact(chunk: StoredChunk) -> StoredChunk:
    """Return the chunk with only the objects that an extent names, each once, in order."""
    used = sorted({e.object for e in chunk.extents if e.object >= 0})
    first: dict[ObjectName, int] = {}
    for number in used:
        first.setdefault(name_of(chunk.objects[number]), number)
    if len(first) == len(chunk.objects):
        return chunk
    kept = sorted(first.values())
    order = {old: new for new, old in enumerate(kept)}
    place = {number: order[first[name_of(chunk.objects[number])]] for number in used}
    extents = tuple(
        e
        if e.object < 0
        else StoredExtent(e.offset, e.length, place[e.object], e.object_offset, e.born, b"")
        for e in chunk.extents
    )
    return StoredChunk(tuple(chunk.objects[i] for i in kept), extents)


def holds_of(chunk: StoredChunk, since: int = 0) -> list[Hold]:
    """Return the holds that the chunk's record has, each once, that were born at `since` or later.

    What a record has of an object from one version on is one hold, in however many extents.
    """
    found = {(e.object, e.born): None for e in chunk.extents if e.object >= 0 and e.born >= since}
    return [(chunk.objects[number], born) for number, born in found]


def gone(old: StoredChunk, new: StoredChunk, since: int = 0) -> list[Hold]:
    """Return the holds of `old`, born at `since` or later, that `new` no longer has."""
    left = {(name_of(obj), born) for obj, born in holds_of(new, since)}
    return [hold for hold in holds_of(old, since) if (name_of(hold[0]), hold[1]) not in left]


def raised(chunk: StoredChunk, born: int) -> StoredChunk:
    """Return the chunk with every hold born before `born` born then."""
    extents = tuple(
        e
        if e.born >= born
        else StoredExtent(e.offset, e.length, e.object, e.object_offset, born, e.data)
        for e in chunk.extents
    )
    return StoredChunk(chunk.objects, extents)


def clipped(chunk: StoredChunk, start: int, end: int, shift: int) -> StoredChunk:
    """Return what [start, end) of the chunk shows, moved by `shift`."""
    extents = []
    for extent in chunk.extents:
        low, high = max(extent.offset, start), min(extent.offset + extent.length, end)
        if low < high:
            part = slice_extent(extent, low, high)
            extents.append(
                StoredExtent(
                    low + shift, part.length, part.object, part.object_offset, part.born, part.data
                )
            )
    return compact(StoredChunk(chunk.objects, tuple(extents)))


def replaced(old: StoredChunk, start: int, end: int, new: StoredChunk) -> StoredChunk:
    """Return `old` that shows in [start, end) what `new` does, its holes too."""
    cleared = StoredChunk(old.objects, tuple(outside(old.extents, start, end)))
    return overlay(cleared, new)


def move(
    chunk: ChunkMap, session: int, upload: int, born: int, base: int
) -> dict[int, StoredChunk]:
    """Return an append's chunk with its offsets counted from `base`, per chunk of the file.

    An extent that crosses a chunk is split, and the object then stands in both records.
    """
    placed = from_publish(chunk, session, upload, born)
    first = chunk.index * CHUNK_BYTES + base
    per_chunk: dict[int, list[StoredExtent]] = {}
    for e in placed.extents:
        at, left, skip = first + e.offset, e.length, 0
        while left:
            index, offset = divmod(at, CHUNK_BYTES)
            length = min(left, CHUNK_BYTES - offset)
            part = slice_extent(e, e.offset + skip, e.offset + skip + length)
            moved = StoredExtent(
                offset, length, part.object, part.object_offset, part.born, part.data
            )
            per_chunk.setdefault(index, []).append(moved)
            at, left, skip = at + length, left - length, skip + length
    return {
        index: compact(StoredChunk(placed.objects, tuple(extents)))
        for index, extents in per_chunk.items()
    }
