"""A file's content as runs: which object, or which inline bytes, each range of the file shows."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from nokv.errors import FileTooLarge, InvalidArgument, ResultTooLarge
from nokv.types.commands import Publish, PublishMode
from nokv.types.limits import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    CHUNKS_MAX,
    EXTENTS_PER_CHUNK_MAX,
    FILE_BYTES_MAX,
    INLINE_BYTES_CAP,
    MERGED_INLINE_BYTES_MAX,
    SUM_BYTES,
)
from nokv.types.values import ChunkMap, Extent, StoredChunk


class ObjectName(NamedTuple):
    """An object of the store, by all that its name is made of."""

    session: int
    upload: int
    chunk: int
    block: int
    piece: int


class Run(NamedTuple):
    """File bytes [offset, offset + length) and where they are. A run never crosses a chunk."""

    offset: int
    length: int
    object: ObjectName | None
    """None: the bytes are in `data`."""
    object_offset: int
    data: bytes

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.length

    def part(self, start: int, end: int) -> Run:
        """Return the bytes [start, end) of the file, which lie inside this run."""
        assert self.offset <= start < end <= self.end
        skip = start - self.offset
        data = self.data[skip : skip + end - start]
        return Run(
            start, end - start, self.object, self.object_offset + skip * bool(self.object), data
        )


Content = tuple[Run, ...]
"""Ascending, disjoint; what no run covers reads as zeros."""

EMPTY: Content = ()


def objects_of(content: Content) -> set[ObjectName]:
    """Return the objects that some byte of the content lies in."""
    return {run.object for run in content if run.object is not None}


def cut(content: Content, start: int, end: int) -> Content:
    """Return the content without the bytes [start, end)."""
    kept = []
    for run in content:
        if run.end <= start or end <= run.offset:
            kept.append(run)
            continue
        if run.offset < start:
            kept.append(run.part(run.offset, start))
        if end < run.end:
            kept.append(run.part(end, run.end))
    return tuple(kept)


def window(content: Content, start: int, end: int) -> Content:
    """Return only the bytes [start, end) of the content."""
    return cut(cut(content, 0, start), end, FILE_BYTES_MAX + CHUNK_BYTES)


def merge(content: Content, runs: Content) -> Content:
    """Return the content with `runs` laid over it; raise ResultTooLarge over a chunk's limit."""
    for run in runs:
        content = cut(content, run.offset, run.end)
    content = tuple(sorted(content + runs))
    extents = Counter(run.offset // CHUNK_BYTES for run in content)
    inline: Counter[int] = Counter()
    for run in content:
        inline[run.offset // CHUNK_BYTES] += len(run.data)
    changed = {run.offset // CHUNK_BYTES for run in runs}
    for chunk in changed:
        if extents[chunk] > EXTENTS_PER_CHUNK_MAX or inline[chunk] > MERGED_INLINE_BYTES_MAX:
            message = "a chunk would get too many extents or inline bytes"
            raise ResultTooLarge(message)
    return content


def _continues(last: Run, run: Run) -> bool:
    if last.end != run.offset or last.object != run.object:
        return False
    return run.object is None or last.object_offset + last.length == run.object_offset


def effective(content: Content) -> Content:
    """Return the content with the neighbours joined that continue each other."""
    joined: list[Run] = []
    for run in content:
        if joined and _continues(joined[-1], run):
            last = joined.pop()
            run = last._replace(length=last.length + run.length, data=last.data + run.data)  # noqa: PLW2901
        joined.append(run)
    return tuple(joined)


def runs_of(op: Publish, session: int, base: int) -> Content:
    """Return the published extents as runs of the file, `base` added, split at chunk borders."""
    runs = []
    for chunk in op.chunks:
        for extent in chunk.extents:
            start = base + chunk.index * CHUNK_BYTES + extent.offset
            if extent.part == -1:
                run = Run(start, extent.length, None, 0, extent.data)
            else:
                part = chunk.parts[extent.part]
                name = ObjectName(session, op.upload, part.chunk, part.block, part.piece)
                run = Run(start, extent.length, name, extent.part_offset, b"")
            border = (start // CHUNK_BYTES + 1) * CHUNK_BYTES
            if border < run.end:
                runs += [run.part(start, border), run.part(border, run.end)]
            else:
                runs.append(run)
    return tuple(runs)


def runs_of_stored(index: int, chunk: StoredChunk) -> Content:
    """Return a chunk record as runs of the file."""
    runs = []
    for extent in chunk.extents:
        start = index * CHUNK_BYTES + extent.offset
        if extent.object == -1:
            runs.append(Run(start, extent.length, None, 0, bytes(extent.data)))
        else:
            o = chunk.objects[extent.object]
            name = ObjectName(o.session, o.upload, o.chunk, o.block, o.piece)
            runs.append(Run(start, extent.length, name, extent.object_offset, b""))
    return tuple(runs)


# ---------------------------------------------------------------- arguments of a publish


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidArgument(message)


def check_body(op: Publish) -> None:
    """Check upload and chunks of a publish; raise InvalidArgument."""
    parts = [part for chunk in op.chunks for part in chunk.parts]
    _require((op.upload == 0) == (not parts), "an upload without parts, or parts without one")
    indexes = [chunk.index for chunk in op.chunks]
    _require(indexes == sorted(set(indexes)), "chunks out of order")
    _require(not indexes or 0 <= indexes[0] <= indexes[-1] < CHUNKS_MAX, "a chunk out of range")
    for chunk in op.chunks:
        _check_chunk(chunk)
        ends = [chunk.index * CHUNK_BYTES + e.offset + e.length for e in chunk.extents]
        _require(all(end <= op.size for end in ends), "an extent beyond the size")
    names = [(part.chunk, part.block, part.piece) for part in parts]
    _require(len(names) == len(set(names)), "a part named twice")


def _check_chunk(chunk: ChunkMap) -> None:
    for part in chunk.parts:
        _require(0 < part.length <= BLOCK_BYTES, "a part of a bad length")
        _require(len(part.sums) == -(-part.length // SUM_BYTES) * 8, "sums of a bad length")
        _require(0 <= part.chunk < 2**32, "a part's chunk out of range")
        _require(0 <= part.block < 2**16, "a part's block out of range")
        _require(0 <= part.piece < 2**16, "a part's piece out of range")
    _require(chunk.extents, "a chunk without extents")
    _require(len(chunk.extents) <= EXTENTS_PER_CHUNK_MAX, "too many extents")
    position = 0
    for extent in chunk.extents:
        _require(extent.offset >= position, "extents out of order")
        _require(extent.length >= 1, "an extent of no bytes")
        position = extent.offset + extent.length
        _require(position <= CHUNK_BYTES, "an extent beyond its chunk")
        _check_source(chunk, extent)
    inline = sum(extent.length for extent in chunk.extents if extent.part == -1)
    _require(inline <= INLINE_BYTES_CAP, "too many inline bytes")
    used = {extent.part for extent in chunk.extents}
    _require(set(range(len(chunk.parts))) <= used, "a part that no extent uses")


def _check_source(chunk: ChunkMap, extent: Extent) -> None:
    if extent.part == -1:
        _require(len(extent.data) == extent.length, "inline data of another length")
        _require(extent.part_offset == 0, "inline data has no offset")
        return
    _require(0 <= extent.part < len(chunk.parts), "an extent of no part")
    length = chunk.parts[extent.part].length
    _require(extent.part_offset >= 0, "a negative offset in a part")
    _require(extent.part_offset + extent.length <= length, "an extent beyond its part")
    _require(not extent.data, "an extent with a part and with data")


def content_after(op: Publish, session: int, size: int, content: Content) -> tuple[int, Content]:
    """Return (size, content) that the publish makes of a file of `size` with `content`.

    Raises FileTooLarge for an append or patch beyond the largest file, ResultTooLarge for a chunk
    with too many extents.
    """
    if op.publish_mode == PublishMode.APPEND:
        new_size, base = size + op.size, size
    elif op.publish_mode in {PublishMode.PATCH, PublishMode.FOLD}:
        new_size, base = max(size, op.size), 0
    else:
        return op.size, runs_of(op, session, 0)
    if new_size > FILE_BYTES_MAX:
        message = "the file would grow over the limit"
        raise FileTooLarge(message)
    return new_size, merge(content, runs_of(op, session, base))
