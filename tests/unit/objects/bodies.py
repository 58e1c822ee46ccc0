"""From an uploaded body to the chunk records that a reader gets."""

from __future__ import annotations

from nokv.objects.upload import UploadedBody
from nokv.types.values import ChunkMap, StoredChunk, StoredExtent, StoredObject

VOLUME = "0123456789abcdef" * 2
BORN = 11


def stored(body: UploadedBody, *, session: int, upload: int) -> dict[int, StoredChunk]:
    return {chunk.index: _chunk(chunk, session, upload) for chunk in body.chunks}


def _chunk(chunk: ChunkMap, session: int, upload: int) -> StoredChunk:
    return StoredChunk(
        tuple(
            StoredObject(session, upload, p.chunk, p.block, p.piece, p.length, p.sums)
            for p in chunk.parts
        ),
        tuple(
            StoredExtent(e.offset, e.length, e.part, e.part_offset, BORN, e.data)
            for e in chunk.extents
        ),
    )
