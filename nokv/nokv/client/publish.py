"""Publishing several files as one change.

Small sets go as one `Atomic`. A larger one, and one that replaces a directory, is staged: a hidden
directory is filled in bounded commands and one command swaps it in. Either way there is exactly one
command that makes anything visible; whatever fails or is cancelled before it is sent leaves nothing
but a hidden directory, which is dropped, and objects, which are deleted as far as possible.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

from nokv.client import segments
from nokv.client.core import Core
from nokv.client.options import Options, expect, query
from nokv.client.paths import AnyPath, Components, decode_name, join, split
from nokv.client.plan import (
    OWNER_ALL,
    Plan,
    PlannedFile,
    below,
    directory_op,
    finish_op,
    finish_ops,
    link_ops,
)
from nokv.client.segments import segment_op
from nokv.client.session import Session
from nokv.client.stage import staged
from nokv.client.upload import (
    BodyUpload,
    Carried,
    FileInfo,
    checked,
    propose_uploads,
)
from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    NotADirectory,
    NotFound,
    Stale,
    TooLarge,
)
from nokv.objects.upload import Progress
from nokv.types.commands import (
    Atomic,
    InnerOp,
    Mkdir,
    PublishMode,
    SetAttr,
    StageBegin,
    StageMode,
    StageSwap,
    Unlink,
)
from nokv.types.limits import ATOMIC_MAX, COMMAND_BYTES_MAX
from nokv.types.reads import AttrReply, GetAttr
from nokv.types.results import AtomicDone, Result
from nokv.types.results import Published as PublishedValue
from nokv.types.values import At, Attr, FileType
from nokv.wire.codec import encode

T = TypeVar("T")

Mode = Literal["create", "replace", "merge"]

ATOMIC_BYTES: Final = COMMAND_BYTES_MAX - 128 * 1024
"""Estimated bytes up to which a set goes as one command."""

BATCH_OPS: Final = 256
BATCH_BYTES: Final = 1024 * 1024
"""Of one command that fills a staged tree: apply must not hold replication up for long."""

MERGE_TRIES: Final = 8
"""How often a merge looks again at what is there, because that changed."""

LOOK_PARALLEL: Final = 64
"""Reads in flight while a merge looks at what is there."""


class Published(NamedTuple):
    """What a publish made visible."""

    version: int
    """Of the command that made it visible: the version to read it at, or to wait for."""
    path: str
    files: dict[str, FileInfo]
    """By name below `path`."""


class _Ready(NamedTuple):
    file: PlannedFile
    upload: BodyUpload
    op: InnerOp


async def run(
    core: Core,
    options: Options,
    path: AnyPath,
    plan: Plan,
    mode: Mode,
    progress: Progress | None,
) -> Published:
    """Publish a plan; see `AsyncClient.publish` and `publish_tree`.

    Raises:
        AlreadyExists: "create", and the path is taken.
        TooLarge: "merge" of more than one entry of the log can hold; nothing was uploaded.
        UploadFailed, SourceChanged: nothing was published.
        SessionExpired: the session ended before the set was complete; nothing was published.
    """
    if mode not in {"create", "replace", "merge"}:
        message = f"a publish can't {mode!r}"
        raise InvalidArgument(message, hint="use create, replace or merge")
    core.check_open()
    parent, name = split(path)
    job = _Job(core, options, plan, parent, name, progress)
    await job.look_first(mode)
    session = await core.session(options.deadline_s)
    fits = job.fits()
    await core.fault_point("upload")
    if mode == "merge":
        if not fits:
            message = f"{len(plan.files)} files do not fit one entry of the log"
            raise TooLarge(message, hint="merge fewer files at a time, or publish a directory anew")
        return await job.merge(session)
    if mode == "create" and fits:
        return await job.atomic(session)
    return await job.staged(session, StageMode.CREATE if mode == "create" else StageMode.REPLACE)


class _Job:
    """One publish of a plan at one place."""

    def __init__(
        self,
        core: Core,
        options: Options,
        plan: Plan,
        parent: Components,
        name: bytes,
        progress: Progress | None,
    ) -> None:
        self._core = core
        self._options = options
        self._plan = plan
        self._parent = At(0, 1, parent)
        self._name = name
        self._target = At(0, 1, (*parent, name))
        self._progress = progress
        self._view = 0
        """Of the parent: what is staged lies in the view that it will enter."""
        self._files: dict[str, FileInfo] = {}

    # ------------------------------------------------------------ before

    async def look_first(self, mode: Mode) -> None:
        """Find out what would fail anyway before anything is uploaded."""
        attr = await self._attr(self._parent)
        if attr is None:
            message = f"there is no directory {decode_name(join(self._parent.path))!r}"
            raise NotFound(message, hint="make it first: mkdir(parents=True), nokv mkdir -p")
        self._view = attr.view
        if mode == "create" and await self._attr(self._target) is not None:
            message = f"{self._shown()!r} is there already"
            raise AlreadyExists(message, hint="publish with mode replace or merge")

    def fits(self) -> bool:
        """Return whether the whole set goes as one command, as far as can be told before."""
        inline_max = self._core.volume.inline_max
        base_bytes = 16 + sum(len(part) + 5 for part in self._target.path)
        estimated = self._plan.estimate_bytes(base_bytes, inline_max)
        large = any((file.size or 0) > segments.SEGMENT_BYTES for file in self._plan.files)
        return not large and self._plan.op_count() <= ATOMIC_MAX and estimated <= ATOMIC_BYTES

    async def _attr(self, where: At) -> Attr | None:
        try:
            _, value = await query(self._core, self._options, GetAttr(where))
        except NotFound:
            return None
        return expect(value, AttrReply).attr

    def _shown(self) -> str:
        return decode_name(join(self._target.path))

    # ------------------------------------------------------------ one command

    async def atomic(self, session: Session) -> Published:
        """Make a new directory with one `Atomic`; stage it if it turns out to be too large."""
        plan, base = self._plan, self._target
        ops: list[InnerOp] = [Mkdir(self._parent, self._name, plan.root.mode | OWNER_ALL)]
        ops += [directory_op(base, directory) for directory in plan.directories]
        for link in plan.links:
            ops += link_ops(base, link)
        uploads = await self._upload_all(session)
        try:
            first_file = len(ops)
            ops += self._file_ops(base, uploads, PublishMode.CREATE)
            ops += finish_ops(base, plan)
            try:
                result = await self._send(session, Atomic(tuple(ops)), uploads)
            except TooLarge:
                return await self._staged(session, StageMode.CREATE, uploads)
            done = expect(checked(result).value, AtomicDone)
            self._note(uploads, done.values[first_file : first_file + len(uploads)])
            return Published(result.version, self._shown(), self._files)
        finally:
            await _release(uploads)

    def _file_ops(
        self, base: At, uploads: Sequence[BodyUpload], mode: PublishMode
    ) -> list[InnerOp]:
        files = self._plan.files
        return [
            upload.op(
                below(base, file.path[:-1]),
                file.path[-1],
                mode,
                file_mode=file.mode,
                mtime_ns=file.mtime_ns,
            )
            for file, upload in zip(files, uploads, strict=True)
        ]

    def _note(self, uploads: Sequence[BodyUpload], values: Sequence[object]) -> None:
        for file, upload, value in zip(self._plan.files, uploads, values, strict=True):
            self._note_one(file, upload, expect(value, PublishedValue))

    def _note_one(self, file: PlannedFile, upload: BodyUpload, value: PublishedValue) -> None:
        assert upload.body is not None
        sha256, length = upload.body.sha256.hex(), upload.body.length
        info = FileInfo(value.generation, sha256, length, value.inode)
        self._files[decode_name(b"/".join(file.path))] = info

    async def _send(self, session: Session, op: Atomic, carried: Sequence[Carried]) -> Result:
        return await propose_uploads(self._core, session, op, carried, (), self._options.deadline_s)

    # ------------------------------------------------------------ merge

    async def merge(self, session: Session) -> Published:
        """Add the files to the directory that is there, or make it, with one `Atomic`.

        What to do depends on what is there, and that is looked at before the command is made; if
        it changed until the command is applied, that fails whole, and is made again.
        """
        uploads = await self._upload_all(session)
        try:
            for _ in range(MERGE_TRIES):
                ops, first_file = await self._merge_ops(uploads)
                if not ops:  # a directory that is there, and nothing to add: a version shows it
                    version, _ = await query(self._core, self._options, GetAttr(self._target))
                    return Published(version, self._shown(), self._files)
                result = await self._send(session, Atomic(tuple(ops)), uploads)
                if result.code in {AlreadyExists.code, NotFound.code}:
                    continue
                done = expect(checked(result).value, AtomicDone)
                self._note(uploads, done.values[first_file : first_file + len(uploads)])
                return Published(result.version, self._shown(), self._files)
            message = f"{self._shown()!r} changes faster than files can be merged into it"
            raise Stale(message, hint="publish again")
        finally:
            await _release(uploads)

    async def _merge_ops(self, uploads: Sequence[BodyUpload]) -> tuple[list[InnerOp], int]:
        plan, base = self._plan, self._target
        directories = [plan.root, *plan.directories]
        paths = [one.path for one in directories]
        paths += [one.path for one in plan.links]
        paths += [one.path for one in plan.files]
        found = dict(zip(paths, await self._look(paths), strict=True))
        ops: list[InnerOp] = []
        finish: list[InnerOp] = []
        for directory in directories:
            there = found[directory.path]
            if there is None:
                where = below(base, directory.path)
                parent = At(where.view, where.inode, where.path[:-1])
                ops.append(Mkdir(parent, where.path[-1], directory.mode | OWNER_ALL))
                last = finish_op(base, directory)
                if last is not None:
                    finish.insert(0, last)
            elif there.mode >> 12 != FileType.DIRECTORY:
                shown = decode_name(join(below(base, directory.path).path))
                message = f"{shown!r} is no directory"
                raise NotADirectory(message, hint="remove it first")
        for link in plan.links:
            if found[link.path] is not None:
                ops.append(Unlink(below(base, link.path[:-1]), link.path[-1]))
            ops += link_ops(base, link)
        first_file = len(ops)
        ops += self._file_ops(base, uploads, PublishMode.REPLACE)
        for file in plan.files:
            there = found[file.path]
            if there is not None and there.mode & 0o7777 != file.mode and file.before is not None:
                ops.append(SetAttr(below(base, file.path), mode=file.mode))
        return ops + finish, first_file

    async def _look(self, paths: Sequence[Components]) -> list[Attr | None]:
        """Return what each path shows now, symbolic links not followed."""
        places = asyncio.Semaphore(LOOK_PARALLEL)

        async def look(path: Components) -> Attr | None:
            where = below(self._target, path)
            async with places:
                return await self._attr(At(where.view, where.inode, where.path, follow=not path))

        return list(await asyncio.gather(*(look(path) for path in paths)))

    # ------------------------------------------------------------ uploads

    async def _upload_all(self, session: Session) -> list[BodyUpload]:
        """Upload every file, several side by side; after a failure nothing is left."""
        uploads = [BodyUpload(self._core, session) for _ in self._plan.files]
        pairs = list(zip(self._plan.files, uploads, strict=True))

        async def one(pair: tuple[PlannedFile, BodyUpload]) -> None:
            await self._upload_one(*pair)

        try:
            await _in_parallel(pairs, one, self._core.config.parallel)
        except BaseException:
            await _release(uploads)
            raise
        return uploads

    async def _upload_one(self, file: PlannedFile, upload: BodyUpload) -> None:
        await upload.upload(file.source, before=file.before, progress=self._progress)
        await self._core.fault_point("uploaded")

    # ------------------------------------------------------------ staged

    async def staged(self, session: Session, mode: StageMode) -> Published:
        """Fill a hidden directory as the uploads end, then swap it in."""
        return await self._staged(session, mode, None)

    async def _staged(
        self, session: Session, mode: StageMode, uploaded: Sequence[BodyUpload] | None
    ) -> Published:
        kind = stat.S_IFDIR | self._plan.root.mode | OWNER_ALL
        begin = StageBegin(self._view, kind, self._parent, self._name)
        async with staged(self._core, session, begin, self._options.deadline_s) as stage:
            base = stage.root
            swap = StageSwap(base.view, base.inode, self._parent, self._name, int(mode))
            made: list[InnerOp] = [directory_op(base, one) for one in self._plan.directories]
            for link in self._plan.links:
                made += link_ops(base, link)
            for batch in batches(made):
                checked(await self._send(session, Atomic(batch), ()))
            await self._fill(session, base, uploaded)
            *early, last = batches([*finish_ops(base, self._plan), swap])
            for batch in early:
                checked(await self._send(session, Atomic(batch), ()))
            result = checked(await self._send(session, Atomic(last), [stage]))
        return Published(result.version, self._shown(), self._files)

    async def _fill(
        self,
        session: Session,
        base: At,
        uploaded: Sequence[BodyUpload] | None,
    ) -> None:
        """Upload what is not uploaded yet, and publish it into the staged tree in batches."""
        filler = _Filler(self._core, session, self._options.deadline_s)
        uploads = uploaded or [BodyUpload(self._core, session) for _ in self._plan.files]
        pairs = list(zip(self._plan.files, uploads, strict=True))

        async def one(pair: tuple[PlannedFile, BodyUpload]) -> None:
            file, upload = pair
            if (file.size or 0) > segments.SEGMENT_BYTES and file.before is not None:
                await self._upload_large(session, base, file)
                return
            if uploaded is None:
                await self._upload_one(file, upload)
            op = upload.op(
                below(base, file.path[:-1]),
                file.path[-1],
                PublishMode.CREATE,
                file_mode=file.mode,
                mtime_ns=file.mtime_ns,
            )
            for ready, value in await filler.add(_Ready(file, upload, op)):
                self._note_one(ready.file, ready.upload, value)

        try:
            await _in_parallel(pairs, one, self._core.config.parallel)
            for ready, value in await filler.flush():
                self._note_one(ready.file, ready.upload, value)
        finally:
            await _release(uploads)

    async def _upload_large(self, session: Session, base: At, file: PlannedFile) -> None:
        """Upload a file into the staged tree segment by segment."""
        assert isinstance(file.source, os.PathLike)
        assert file.before is not None
        parent, name = below(base, file.path[:-1]), file.path[-1]

        async def place(upload: BodyUpload, offset: int) -> PublishedValue:
            op = segment_op(upload, parent, name, offset, file.mode, file.mtime_ns)
            done = expect(
                checked(await self._send(session, Atomic((op,)), [upload])).value, AtomicDone
            )
            return expect(done.values[0], PublishedValue)

        value = await segments.upload_segments(
            self._core, session, file.source, file.before, place, self._progress
        )
        await self._core.fault_point("uploaded")
        info = FileInfo(value.generation, "", file.before.st_size, value.inode)
        self._files[decode_name(b"/".join(file.path))] = info


class _Filler:
    """Collects publishes into commands of a good size; whoever completes one sends it."""

    def __init__(self, core: Core, session: Session, deadline_s: float) -> None:
        self._core = core
        self._session = session
        self._deadline_s = deadline_s
        self._ready: list[_Ready] = []
        self._bytes = 0

    async def add(self, ready: _Ready) -> list[tuple[_Ready, PublishedValue]]:
        """Add a publish; return those that were sent meanwhile, with their results."""
        self._ready.append(ready)
        self._bytes += len(encode(ready.op))
        if len(self._ready) < BATCH_OPS and self._bytes < BATCH_BYTES:
            return []
        return await self.flush()

    async def flush(self) -> list[tuple[_Ready, PublishedValue]]:
        """Send what was collected and return it with its results."""
        ready, self._ready, self._bytes = self._ready, [], 0
        if not ready:
            return []
        op = Atomic(tuple([one.op for one in ready]))
        uploads = [one.upload for one in ready]
        result = await propose_uploads(self._core, self._session, op, uploads, (), self._deadline_s)
        done = expect(checked(result).value, AtomicDone)
        return [
            (one, expect(value, PublishedValue))
            for one, value in zip(ready, done.values, strict=True)
        ]


def batches(ops: Iterable[InnerOp]) -> list[tuple[InnerOp, ...]]:
    """Cut operations, in their order, into commands of a good size."""
    found: list[tuple[InnerOp, ...]] = []
    batch: list[InnerOp] = []
    n_bytes = 0
    for op in ops:
        size = len(encode(op))
        if batch and (len(batch) == BATCH_OPS or n_bytes + size > BATCH_BYTES):
            found.append(tuple(batch))
            batch, n_bytes = [], 0
        batch.append(op)
        n_bytes += size
    if batch:
        found.append(tuple(batch))
    return found


async def _release(uploads: Sequence[BodyUpload]) -> None:
    """Be done with all uploads; the deletions run side by side, also if this is cancelled."""
    endings = [ending for upload in uploads if (ending := upload.give_up()) is not None]
    if endings:
        await asyncio.wait(endings)


async def _in_parallel(
    items: Sequence[T], work: Callable[[T], Awaitable[None]], parallel: int
) -> None:
    """Run `work` for all items, so many side by side; the first failure stops the others."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(parallel, len(items))):
                workers.create_task(worker())
    except BaseExceptionGroup as errors:
        failure: BaseException = errors
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from None
