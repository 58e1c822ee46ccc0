"""Bodies whose map does not fit one command: uploaded and published segment by segment.

A segment is a body of its own, with an upload number of its own; the first one makes the file, the
others patch it. That happens where nobody sees it, in a staged tree or file, and one swap makes the
whole visible. The file's SHA-256 is not recorded then; every byte is verified by its sums as ever.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from nokv.client.core import Core
from nokv.client.options import Options, expect, query
from nokv.client.paths import AnyPath, split
from nokv.client.session import Session
from nokv.client.stage import staged
from nokv.client.upload import (
    BodyUpload,
    Carried,
    FileInfo,
    checked,
    propose_uploads,
)
from nokv.objects.source import Source, open_source
from nokv.objects.upload import Progress
from nokv.types.commands import (
    TIME_NOW,
    Atomic,
    InnerOp,
    Op,
    Predicate,
    PublishMode,
    SetAttr,
    StageBegin,
    StageMode,
    StageSwap,
)
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES
from nokv.types.reads import AttrReply, GetAttr
from nokv.types.results import AtomicDone, Published, Result
from nokv.types.values import At

SEGMENT_BYTES: Final = 512 * CHUNK_BYTES
"""32 GiB: a map of about 1.4 MB. A whole number of chunks, so that no object crosses one."""

Place = Callable[[BodyUpload, int], Awaitable[Published]]
"""Publishes an uploaded segment that begins at the given offset of the file."""


class _Segment:
    """The next bytes of a source, up to a segment's end."""

    def __init__(self, source: Source, n_bytes: int) -> None:
        self._source = source
        self._left = n_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._left:
            data = bytes(await self._source.read(min(self._left, BLOCK_BYTES)))
            if not data:
                return
            self._left -= len(data)
            yield data


async def upload_segments(
    core: Core,
    session: Session,
    local: os.PathLike[str],
    before: os.stat_result,
    place: Place,
    progress: Progress | None,
) -> Published:
    """Upload a local file in segments, each placed before the next one; return the last result.

    Raises:
        UploadFailed, SourceChanged, SessionExpired: segments that were placed stay placed.
    """
    uploader = await core.uploader(session)
    placed: Published | None = None
    with uploader.using() as threads:
        source = await open_source(local, threads, before=before)
        try:
            for offset in range(0, before.st_size, SEGMENT_BYTES):
                upload = BodyUpload(core, session)
                try:
                    n_bytes = min(SEGMENT_BYTES, before.st_size - offset)
                    await upload.upload(
                        _Segment(source, n_bytes),
                        offset=offset,
                        inline=False,
                        sha256=False,
                        progress=progress,
                    )
                    if offset + n_bytes == before.st_size:
                        await source.finish()
                    placed = await place(upload, offset)
                finally:
                    await upload.release()
        finally:
            await source.close()
    assert placed is not None, "a body of several segments is not empty"
    return placed


def segment_op(
    upload: BodyUpload, parent: At, name: bytes, offset: int, file_mode: int, mtime_ns: int
) -> InnerOp:
    """Return what publishes a segment: the first one makes the file, a later one patches it."""
    assert upload.body is not None
    if offset == 0 and name:
        return upload.op(parent, name, PublishMode.CREATE, file_mode=file_mode, mtime_ns=mtime_ns)
    end = offset + upload.body.length
    return upload.op(parent, name, PublishMode.PATCH, size=end, mtime_ns=mtime_ns)


async def write_large(
    core: Core,
    options: Options,
    path: AnyPath,
    local: os.PathLike[str],
    before: os.stat_result,
    *,
    mode: int,
    create: bool,
    predicates: tuple[Predicate, ...],
    mtime_ns: int = TIME_NOW,
    progress: Progress | None = None,
) -> FileInfo:
    """Make a large local file the body of a new file at `path`, in place of what is there.

    Unlike `write_bytes` of a smaller body this makes a new inode, and replaces a last symbolic link
    itself.

    Raises:
        NokvError: as `AsyncClient.write_bytes`; nothing is visible then, except perhaps after
            DeadlineExceeded.
    """
    parent, name = split(path)
    above = At(0, 1, parent)
    _, value = await query(core, options, GetAttr(above))
    view = expect(value, AttrReply).attr.view  # what is staged lies in the view that it will enter
    session = await core.session(options.deadline_s)
    begin = StageBegin(view, stat.S_IFREG | mode, above, name)
    async with staged(core, session, begin, options.deadline_s) as stage:
        root = stage.root

        async def send(op: Op, carried: Carried, when: tuple[Predicate, ...] = ()) -> Result:
            return checked(
                await propose_uploads(core, session, op, [carried], when, options.deadline_s)
            )

        async def place(upload: BodyUpload, offset: int) -> Published:
            op = segment_op(upload, root, b"", offset, mode, mtime_ns)
            return expect((await send(op, upload)).value, Published)

        await upload_segments(core, session, local, before, place, progress)
        kind = StageMode.CREATE if create else StageMode.REPLACE
        ops: list[InnerOp] = []
        if mtime_ns != TIME_NOW:
            ops.append(SetAttr(root, mtime_ns=mtime_ns))
        ops.append(StageSwap(root.view, root.inode, above, name, int(kind)))
        result = await send(Atomic(tuple(ops)), stage, predicates)
    done = expect(expect(result.value, AtomicDone).values[-1], Published)
    return FileInfo(done.generation, "", before.st_size, done.inode)
