"""Chunk records as values: build, overlay, cut. Pure functions over `StoredChunk`.

Extents are ascending and disjoint; what none covers reads as zeros. Each extent carries the
version at which its hold of the object began, and keeps it when it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable

from nokv.types.limits import CHUNK_BYTES
from nokv.types.values import ChunkMap, StoredChunk, StoredExtent, StoredObject

ObjectName = tuple[int, int, int, int, int]
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
    """Return the chunk with only the objects that an extent names, renumbered in order."""
    used = sorted({e.object for e in chunk.extents if e.object >= 0})
    if len(used) == len(chunk.objects):
        return chunk
    place = {old: new for new, old in enumerate(used)}
    extents = tuple(
        e
        if e.object < 0
        else StoredExtent(e.offset, e.length, place[e.object], e.object_offset, e.born, b"")
        for e in chunk.extents
    )
    return StoredChunk(tuple(chunk.objects[i] for i in used), extents)


def gone(old: StoredChunk, new: StoredChunk) -> tuple[list[StoredObject], int]:
    """Return the objects of `old` that `new` no longer names, and the earliest of their holds.

    The second is 2^63 - 1 where there are none.
    """
    left = {name_of(obj) for obj in new.objects}
    lost = [i for i, obj in enumerate(old.objects) if name_of(obj) not in left]
    born = min((e.born for e in old.extents if e.object in lost), default=2**63 - 1)
    return [old.objects[i] for i in lost], born


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
