"""Folding: the small extents of a crowded chunk become few objects, so that appends never end.

A chunk record holds a bounded number of extents, and small appends and patches add one each. When
one is refused for that (ResultTooLarge), the client reads the part of the chunk behind its last
whole block, stores it as objects and publishes it over itself (FOLD), which the file takes only
while it is of the generation that was read, and if it is append-only too. Then the append is sent
again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from nokv.client.bodies import fetch_map, read_at
from nokv.client.core import Core
from nokv.client.options import Options, expect, query
from nokv.client.upload import (
    BodyUpload,
    FileInfo,
    begin_upload,
    checked,
    file_info,
    propose_uploads,
)
from nokv.errors import (
    AlreadyExists,
    GenerationMismatch,
    NotFound,
    PermissionDenied,
    ResultTooLarge,
)
from nokv.types.commands import Publish, PublishMode
from nokv.types.limits import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    EXTENTS_PER_CHUNK_MAX,
    MERGED_INLINE_BYTES_MAX,
)
from nokv.types.reads import AttrReply, GetAttr
from nokv.types.results import Result
from nokv.types.values import At, StoredChunk

TRIES: Final = 16
"""How often an append or patch is sent; others may fold, and fill, the same chunk meanwhile."""

CREATE_TRIES: Final = 8
"""How often a file that was missing is appended to after all, because others make it too."""

CROWDED_EXTENTS: Final = EXTENTS_PER_CHUNK_MAX // 2
CROWDED_INLINE_BYTES: Final = MERGED_INLINE_BYTES_MAX // 2
"""A chunk with more than either is folded: half of what its record may hold."""


async def propose_part(core: Core, options: Options, upload: BodyUpload, op: Publish) -> Result:
    """Send an append or patch; fold what is too crowded for it, and send it again.

    Returns the result of the last attempt, a failed one too. Raises as `propose_uploads`, and as
    the reads and uploads of folding.
    """
    for _ in range(TRIES - 1):
        result = await propose_uploads(core, upload.session, op, [upload], (), options.deadline_s)
        if result.code != ResultTooLarge.code:
            return result
        try:
            folded = await _fold_for(core, options, upload, op)
        except PermissionDenied:  # of reading it
            folded = False
        if not folded:
            return result
    return await propose_uploads(core, upload.session, op, [upload], (), options.deadline_s)


async def append_or_create(
    core: Core,
    options: Options,
    upload: BodyUpload,
    op: Publish,
    create: Callable[[], Awaitable[FileInfo]],
) -> FileInfo:
    """Append to the file that is there, or make it; each looks again when the other came first.

    Raises:
        AlreadyExists: the name leads nowhere (a dangling symbolic link), or comes and goes.
    """
    for _ in range(CREATE_TRIES):
        result = await propose_part(core, options, upload, op)
        if result.code != NotFound.code:
            return file_info(upload, checked(result))
        with suppress(AlreadyExists):  # somebody else made it in between
            return await create()
    return await create()


async def _fold_for(core: Core, options: Options, upload: BodyUpload, op: Publish) -> bool:
    """Fold the first crowded chunk that the operation reaches; False if there is none to fold."""
    _, value = await query(core, options, GetAttr(op.parent))
    attr = expect(value, AttrReply).attr
    assert upload.body is not None
    end = op.size + (attr.size if op.publish_mode == PublishMode.APPEND else 0)
    first = (end - upload.body.length) // CHUNK_BYTES
    n_bytes = end - first * CHUNK_BYTES
    handle = At(attr.view, attr.inode)
    view = await fetch_map(core, options, handle, first * CHUNK_BYTES, n_bytes)
    for index, chunk in sorted(view.chunks.items()):
        if _is_crowded(chunk):
            return await _fold(core, options, handle, view.attr.generation, index, chunk)
    return view.attr.generation != attr.generation


def _is_crowded(chunk: StoredChunk) -> bool:
    inline_bytes = sum(len(extent.data) for extent in chunk.extents)
    return len(chunk.extents) > CROWDED_EXTENTS or inline_bytes > CROWDED_INLINE_BYTES


async def _fold(
    core: Core, options: Options, handle: At, generation: int, index: int, chunk: StoredChunk
) -> bool:
    """Rewrite a chunk from its first small extent on; False if that was refused."""
    first = index * CHUNK_BYTES
    start = first + min(one.offset for one in chunk.extents if one.length < BLOCK_BYTES)
    end = first + max(one.offset + one.length for one in chunk.extents)
    attr, data = await read_at(core, options, handle, start, end - start)
    if attr.generation != generation:
        return True
    upload = await begin_upload(core, options.deadline_s)
    try:
        await upload.upload(data, offset=start, inline=False, sha256=False)
        size, mtime_ns = start + len(data), attr.mtime_ns
        op = upload.op(
            handle,
            b"",
            PublishMode.FOLD,
            size=size,
            if_generation=generation,
            mtime_ns=mtime_ns,
        )
        result = await propose_uploads(core, upload.session, op, [upload], (), options.deadline_s)
    finally:
        await upload.release()
    return result.code in {0, GenerationMismatch.code}
