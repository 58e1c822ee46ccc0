"""Chunk records as values, against an array of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.state.bodies import content, part

from nokv.state.extents import (
    EMPTY,
    ObjectName,
    cut,
    from_publish,
    gone,
    holds_of,
    move,
    name_of,
    outside,
    overlay,
)
from nokv.types.limits import CHUNK_BYTES
from nokv.types.values import ChunkMap, Extent, ObjectPart, StoredChunk, StoredExtent

SIZE = 60


@st.composite
def chunk_maps(draw: st.DrawFn, upload: int = 0) -> ChunkMap:
    """A chunk of a publish: objects and inline runs with gaps between them, below SIZE."""
    parts: list[ObjectPart] = []
    extents: list[Extent] = []
    offset = 0
    while offset < SIZE - 1 and len(extents) < 4:
        offset += draw(st.integers(0, 15))
        length = draw(st.integers(1, 12))
        if offset + length > SIZE:
            break
        if draw(st.booleans()):
            skip = draw(st.integers(0, 3))
            parts.append(part(length + skip, upload * 10 + len(parts)))
            extents.append(Extent(offset, length, len(parts) - 1, skip))
        else:
            data = draw(st.binary(min_size=length, max_size=length))
            extents.append(Extent(offset, length, data=data))
        offset += length
    if not extents:
        extents.append(Extent(0, 1, data=b"x"))
    return ChunkMap(0, tuple(parts), tuple(extents))


def stored(chunk: ChunkMap, upload: int) -> StoredChunk:
    return from_publish(chunk, 1, upload, upload)


def shown(chunk: StoredChunk) -> bytes:
    return content([(0, chunk)], SIZE)


def laid_over(below: bytes, chunk: StoredChunk) -> bytes:
    """Return the bytes with those that the chunk's extents cover taken from it."""
    result = bytearray(below)
    over = shown(chunk)
    for extent in chunk.extents:
        end = extent.offset + extent.length
        result[extent.offset : end] = over[extent.offset : end]
    return bytes(result)


def holds(chunk: StoredChunk) -> set[tuple[int, ObjectName]]:
    """Return (begin, object) of each extent's hold."""
    return {(e.born, name_of(chunk.objects[e.object])) for e in chunk.extents if e.object >= 0}


def well_formed(chunk: StoredChunk) -> None:
    end = 0
    for extent in chunk.extents:
        assert extent.offset >= end
        assert extent.length > 0
        end = extent.offset + extent.length
    used = {e.object for e in chunk.extents if e.object >= 0}
    assert used == set(range(len(chunk.objects)))


@given(st.lists(chunk_maps(), min_size=1, max_size=5), st.integers(0, SIZE))
def test_overlay_and_cut_show_what_an_array_shows(maps: list[ChunkMap], size: int) -> None:
    record, data = EMPTY, bytes(SIZE)
    for upload, one in enumerate(maps, 1):
        new = stored(one, upload)
        after = overlay(record, new)
        well_formed(after)
        data = laid_over(data, new)
        assert shown(after) == data
        before = {(name_of(obj), born) for obj, born in holds_of(record)}
        left = {(name_of(obj), born) for obj, born in holds_of(after)}
        assert {(name_of(obj), born) for obj, born in gone(record, after)} == before - left
        assert all(born >= upload for _, born in gone(record, after, upload))
        kept = {
            (e.born, name_of(record.objects[e.object])) for e in record.extents if e.object >= 0
        }
        now = {(e.born, name_of(after.objects[e.object])) for e in after.extents if e.object >= 0}
        assert {hold for hold in now if hold[0] < upload} <= kept
        record = after
    shorter = cut(record, size)
    well_formed(shorter)
    assert shown(shorter) == data[:size] + bytes(SIZE - size)


@given(chunk_maps(), st.integers(0, CHUNK_BYTES - 1), st.booleans())
def test_a_moved_chunk_shows_the_same_bytes_elsewhere(
    chunk: ChunkMap, base: int, near: bool
) -> None:
    base = CHUNK_BYTES - base % SIZE if near else base
    pieces = move(chunk, 1, 1, 7, base)
    assert len(pieces) <= 2
    flat: dict[int, int] = {}
    for index, piece in pieces.items():
        well_formed(piece)
        for extent in piece.extents:
            assert extent.offset + extent.length <= CHUNK_BYTES
            small = content([(0, StoredChunk(piece.objects, (_at_zero(extent),)))], extent.length)
            for i in range(extent.length):
                flat[index * CHUNK_BYTES + extent.offset + i - base] = small[i]
    want = shown(stored(chunk, 1))
    covered = {i for e in chunk.extents for i in range(e.offset, e.offset + e.length)}
    assert flat == {i: want[i] for i in covered}


def _at_zero(extent: StoredExtent) -> StoredExtent:
    return StoredExtent(0, extent.length, extent.object, extent.object_offset, 1, extent.data)


@given(chunk_maps(), st.integers(0, SIZE), st.integers(0, SIZE))
def test_outside_leaves_nothing_inside(chunk: ChunkMap, one: int, two: int) -> None:
    start, end = sorted((one, two))
    record = stored(chunk, 1)
    left = outside(record.extents, start, end)
    inside = set(range(start, end))
    covered = {i for e in left for i in range(e.offset, e.offset + e.length)}
    before = {i for e in record.extents for i in range(e.offset, e.offset + e.length)}
    assert covered == before - inside
