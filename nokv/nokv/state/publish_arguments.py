"""What a publish may say, checked without looking at the state (docs/namespace.md: publish)."""

from __future__ import annotations

from nokv.errors import FileTooLarge, InvalidArgument
from nokv.state.arguments import check_at, check_name, check_umask
from nokv.types.commands import TIME_NOW, Publish, PublishMode
from nokv.types.limits import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    CHUNKS_MAX,
    EXTENTS_PER_CHUNK_MAX,
    FILE_BYTES_MAX,
    INLINE_BYTES_CAP,
    SUM_BYTES,
    UINT63_MAX,
)
from nokv.types.values import ChunkMap, ObjectPart

_SUM_SIZE = 8
_SHA256_SIZES = (0, 32)


def check_publish(op: Publish) -> None:
    """Raise InvalidArgument, NameTooLong or FileTooLarge for what no state makes valid."""
    check_at(op.parent)
    if op.name:
        check_name(op.name)
    if not 0 <= op.publish_mode <= PublishMode.FOLD:
        _refuse(f"publish mode {op.publish_mode}")
    if not op.name and op.publish_mode == PublishMode.CREATE:
        _refuse("a publish by handle can't create")
    if not 0 <= op.mode <= 0o7777:
        _refuse(f"mode {op.mode:o}")
    if op.size < 0:
        _refuse(f"size {op.size}")
    if op.size > FILE_BYTES_MAX:
        message = f"size {op.size}; the limit is {FILE_BYTES_MAX}"
        raise FileTooLarge(message)
    last = -1
    seen: set[tuple[int, int, int]] = set()
    for chunk in op.chunks:
        if not last < chunk.index < CHUNKS_MAX:
            _refuse("chunks ascend, each once")
        last = chunk.index
        _check_chunk(chunk, op.size, seen)
    if bool(op.upload) != bool(seen):
        _refuse("an upload number goes with parts, and only with them")
    if not 0 <= op.if_generation <= UINT63_MAX:
        _refuse(f"generation {op.if_generation}")
    if len(op.sha256) not in _SHA256_SIZES:
        _refuse("a SHA-256 has 32 bytes")
    if not TIME_NOW <= op.mtime_ns <= UINT63_MAX:
        _refuse(f"mtime {op.mtime_ns}")
    check_umask(op.umask)


def _check_chunk(chunk: ChunkMap, size: int, seen: set[tuple[int, int, int]]) -> None:
    if len(chunk.extents) > EXTENTS_PER_CHUNK_MAX:
        _refuse(f"{len(chunk.extents)} extents in a chunk; the limit is {EXTENTS_PER_CHUNK_MAX}")
    if not chunk.extents:
        _refuse("a chunk without extents")
    for part in chunk.parts:
        _check_part(part)
        name = (part.chunk, part.block, part.piece)
        if name in seen:
            _refuse(f"part {name} stands twice")
        seen.add(name)
    end = inline = 0
    used: set[int] = set()
    for extent in chunk.extents:
        if extent.offset < end or extent.length < 1:
            _refuse("extents ascend, are disjoint and hold a byte")
        end = extent.offset + extent.length
        if end > CHUNK_BYTES:
            _refuse("an extent ends beyond its chunk")
        if extent.part == -1:
            inline += extent.length
            if len(extent.data) != extent.length or extent.part_offset:
                _refuse("an inline extent carries exactly its bytes")
            continue
        if not 0 <= extent.part < len(chunk.parts) or extent.data:
            _refuse("an extent names a part of its chunk, or carries bytes")
        used.add(extent.part)
        if extent.part_offset < 0 or (
            extent.part_offset + extent.length > chunk.parts[extent.part].length
        ):
            _refuse("an extent lies outside its part")
    if inline > INLINE_BYTES_CAP:
        _refuse(f"{inline} inline bytes in a chunk; the limit is {INLINE_BYTES_CAP}")
    if len(used) != len(chunk.parts):
        _refuse("a part that no extent uses")
    if chunk.index * CHUNK_BYTES + end > size:
        _refuse("an extent ends beyond the size")


def _check_part(part: ObjectPart) -> None:
    if not 1 <= part.length <= BLOCK_BYTES:
        _refuse(f"a part of {part.length} bytes; 1 to {BLOCK_BYTES} are possible")
    if len(part.sums) != -(-part.length // SUM_BYTES) * _SUM_SIZE:
        _refuse("a part has a checksum for each 256 KiB")
    if not (0 <= part.chunk < 2**32 and 0 <= part.block < 2**16 and 0 <= part.piece < 2**16):
        _refuse("a part's number is out of range")


def _refuse(message: str) -> None:
    raise InvalidArgument(message)
