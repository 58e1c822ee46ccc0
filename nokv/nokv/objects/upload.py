"""Uploading a body: cut into blocks, summed, hashed and stored in parallel, in bounded memory.

An `Uploader` is shared by all uploads of a session and holds the bounds; an `UploadAttempt` is one
body's way into the store, under an upload number of its own. Until the publish of an attempt is
first sent, an attempt that fails or is cancelled deletes what it stored; afterwards the client
deletes nothing, because the publish may yet be applied, and the collector decides.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from nokv.errors import FileTooLarge, ObjectStoreError, UploadFailed
from nokv.objects.budget import ByteBudget
from nokv.objects.layout import ObjectName, check_volume_id, format_name, sums_of
from nokv.objects.port import DELETE_NAMES_MAX, Data, ObjectStore
from nokv.objects.source import Source, SourceLike, open_source
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX, INLINE_BYTES_CAP
from nokv.types.values import ChunkMap, Extent, ObjectPart

T = TypeVar("T")

PARALLEL_DEFAULT = 16
"""Blocks being stored at the same time by all uploads of one session."""

BUDGET_BYTES_DEFAULT = 128 * 1024 * 1024
"""Bytes read from sources and not yet stored, of all uploads of one session."""

SETTLE_S_DEFAULT = 5.0
"""How long an upload that is given up waits for its puts in flight before it cancels them."""

HASH_INLINE_BYTES = 64 * 1024
"""What is hashed in the event loop: less than a hop to a thread and back costs."""

PIECES_MAX = 2**16

Progress = Callable[[int], None]
"""Called with the bytes of each block when it is stored; of an inline body once, with all."""


class UploadedBody(NamedTuple):
    """What a publish says of a body."""

    length: int
    """Bytes uploaded."""
    sha256: bytes
    """Of those bytes; empty if it was not asked for."""
    chunks: tuple[ChunkMap, ...]
    """Ascending; empty for an empty body."""


class Uploader:
    """The bounds and the threads that all uploads of one session share.

    Args:
        store: where objects go.
        volume, shard, session: the owner part of the objects' names.
        parallel: puts in flight.
        budget: bytes in flight; not the readers' budget (see `ByteBudget`).
        settle_s: see SETTLE_S_DEFAULT.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        volume: str,
        shard: int,
        session: int,
        parallel: int = PARALLEL_DEFAULT,
        budget: ByteBudget | None = None,
        settle_s: float = SETTLE_S_DEFAULT,
        threads: int = 4,
    ) -> None:
        self.store = store
        self.volume = check_volume_id(volume)
        self.shard = shard
        self.session = session
        self.budget = budget or ByteBudget(BUDGET_BYTES_DEFAULT)
        assert self.budget.limit_bytes >= BLOCK_BYTES
        self.slots = asyncio.Semaphore(parallel)
        self.settle_s = settle_s
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="nokv-upload")
        self._cleanups: set[asyncio.Task[Any]] = set()
        self._users = 0
        """Blocks of `using`: the threads are kept for them."""
        self._closed = False

    def attempt(self, lease: Callable[[], Awaitable[int]]) -> UploadAttempt:
        """Return a new attempt; `lease` gets its upload number, just before the first put."""
        return UploadAttempt(self, lease)

    def begin_cleanup(self, cleanup: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Run a cleanup to its end, whoever waits for it and is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(cleanup)
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)
        return task

    @contextmanager
    def using(self) -> Iterator[ThreadPoolExecutor]:
        """Keep the threads for the length of a block, also if `close` is called meanwhile."""
        self._users += 1
        try:
            yield self.threads
        finally:
            self._users -= 1
            self._end_threads()

    async def close(self) -> None:
        """Wait for cleanups and end the threads, once no upload runs. The store stays open."""
        self._closed = True
        self._end_threads()
        while self._cleanups:
            await asyncio.wait(set(self._cleanups))

    def _end_threads(self) -> None:
        if self._closed and not self._users:
            self.threads.shutdown(wait=False)


class UploadAttempt:
    """One body on its way into the store.

    Several ranges of one file (patches) may be uploaded one after the other by one attempt; they
    share its number.
    """

    def __init__(self, uploader: Uploader, lease: Callable[[], Awaitable[int]]) -> None:
        self._uploader = uploader
        self._lease = lease
        self.number: int | None = None
        """The upload number, once one was needed. While it is None there are no objects."""
        self.publish_sent = False
        """Set by the caller before it first sends the publish. Never cleared."""
        self._places: dict[tuple[int, int], int] = {}
        """(chunk, block) -> objects begun there: the next piece number."""
        self._puts: set[asyncio.Task[None]] = set()
        """Puts in flight. None begins once the attempt is given up."""
        self._given_up = False
        self._discarding: asyncio.Task[tuple[str, ...]] | None = None
        """Set by `give_up`."""

    async def upload(
        self,
        source: SourceLike,
        *,
        offset: int = 0,
        inline_max: int = 0,
        sha256: bool = True,
        before: os.stat_result | None = None,
        progress: Progress | None = None,
    ) -> UploadedBody:
        """Store the bytes of `source` as file bytes from `offset` on.

        Args:
            source: bytes, a local file's path, a binary file object, an async iterable of bytes.
            offset: where in the file the bytes belong (patches); of an append 0.
            inline_max: a body of at most so many bytes becomes extents with bytes, without objects.
            sha256: whether to hash the whole.
            before: the stat of a local file when the caller decided to upload it.
            progress: told of each block that is stored.

        Raises:
            UploadFailed: an object could not be stored; its cause is the store's error.
            SourceChanged: a local file changed or vanished meanwhile.
            FileTooLarge: more bytes than a file may have.
            InvalidArgument, OSError: the source cannot be read.

        On any of these, and when cancelled, what was stored has been deleted as far as it could be.
        """
        assert not self._given_up
        assert not self.publish_sent
        assert 0 <= inline_max <= INLINE_BYTES_CAP
        try:
            with self._uploader.using() as threads:
                opened = await open_source(source, threads, before=before)
                try:
                    body = _Body(self, opened, offset, progress, sha256=sha256)
                    return await body.run(inline_max)
                finally:
                    await opened.close()
        except BaseException as error:
            await asyncio.shield(self.give_up())
            if isinstance(error, ObjectStoreError):
                raise UploadFailed(f"upload failed: {error.message}", hint=error.hint) from error
            raise

    def give_up(self) -> asyncio.Task[tuple[str, ...]]:
        """Begin to `discard`, once; nobody has to wait. When it is done no put is in flight."""
        if self._discarding is None:
            self._discarding = self._uploader.begin_cleanup(self.discard())
        return self._discarding

    async def discard(self) -> tuple[str, ...]:
        """Give the attempt up: delete what it stored, unless its publish was sent.

        Return the names of the objects that may be left to the collector.
        """
        self._given_up = True
        await self._settle()
        names = tuple(
            self._name(chunk, block, piece)
            for (chunk, block), pieces in self._places.items()
            for piece in range(pieces)
        )
        if self.publish_sent:
            return names
        left: list[str] = []
        for at in range(0, len(names), DELETE_NAMES_MAX):
            batch = names[at : at + DELETE_NAMES_MAX]
            try:
                left += await self._uploader.store.delete(batch)
            except ObjectStoreError:
                left += batch
        return tuple(left)

    async def _settle(self) -> None:
        # A put that is cancelled may still take effect after the delete that follows; so the
        # puts in flight get some time to end. What slips through is the collector's.
        if self._puts:
            await asyncio.wait(set(self._puts), timeout=self._uploader.settle_s)
        for put in self._puts:
            put.cancel()
        if self._puts:
            await asyncio.wait(set(self._puts))

    async def ensure_number(self) -> None:
        """Lease the upload number unless there is one."""
        if self.number is None:
            self.number = await self._lease()

    def begin_put(
        self, chunk: int, block: int, data: Data, n_bytes: int, digest: asyncio.Future[bytes]
    ) -> _Put:
        """Start to store a block.

        The slot is released when it is stored, the budget's `n_bytes` once it is also hashed.
        """
        assert not self._given_up
        piece = self._places.get((chunk, block), 0)
        assert piece < PIECES_MAX
        self._places[chunk, block] = piece + 1
        name = self._name(chunk, block, piece)
        task = asyncio.ensure_future(self._put(name, data, n_bytes, digest))
        self._puts.add(task)
        task.add_done_callback(self._ended)
        return _Put(piece, task)

    async def _put(
        self, name: str, data: Data, n_bytes: int, digest: asyncio.Future[bytes]
    ) -> None:
        try:
            await self._uploader.store.put(name, data)
        finally:
            self._uploader.slots.release()
            try:
                if not digest.done():
                    await asyncio.wait([digest])
            finally:
                self._uploader.budget.release(n_bytes)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._puts.discard(task)
        if not task.cancelled():
            task.exception()  # also told to whoever waits for the put, if anybody still does

    def _name(self, chunk: int, block: int, piece: int) -> str:
        assert self.number is not None
        owner = self._uploader
        return format_name(
            ObjectName(owner.volume, owner.shard, owner.session, self.number, chunk, block, piece)
        )


class _Put(NamedTuple):
    piece: int
    task: asyncio.Task[None]


class _Body:
    """The walk over one source: read a block, hash it, store it beside the next one."""

    def __init__(
        self,
        attempt: UploadAttempt,
        source: Source,
        offset: int,
        progress: Progress | None,
        *,
        sha256: bool,
    ) -> None:
        self._attempt = attempt
        self._uploader = attempt._uploader  # noqa: SLF001 - two halves of one upload
        self._source = source
        self._start = offset
        self._offset = offset
        """File offset of the next byte to read."""
        self._progress = progress
        self._hash = hashlib.sha256() if sha256 else None
        self._chunks: dict[int, tuple[list[ObjectPart], list[Extent]]] = {}

    async def run(self, inline_max: int) -> UploadedBody:
        """Upload everything and return the map of it."""
        n_bytes = self._next_bytes()
        remaining = self._source.remaining
        if remaining is not None and remaining <= inline_max:
            n_bytes = remaining  # also over a block boundary
        await self._uploader.budget.acquire(n_bytes)
        held = n_bytes
        try:
            data = await self._source.read(n_bytes)
            last = len(data) < n_bytes or self._source.remaining == 0
            if last:
                await self._source.finish()
            if last and len(data) <= inline_max:
                self._inline(data)
                return self._result()
            held = 0  # from here on `_store` answers for it
            if last:
                await self._wait(await self._store(data, n_bytes), len(data))
            else:
                await self._run_parallel(data, n_bytes)
        finally:
            self._uploader.budget.release(held)
        return self._result()

    async def _run_parallel(self, data: Data, n_bytes: int) -> None:
        """Store the block and all that follow, several at a time."""
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as waiters:
                while data:
                    put = await self._store(data, n_bytes)
                    waiters.create_task(self._wait(put, len(data)))
                    if len(data) < n_bytes or self._source.remaining == 0:
                        break
                    data = b""  # the budget counts it for as long as its put runs
                    n_bytes = self._next_bytes()
                    data = await self._read(n_bytes)
                await self._source.finish()
        except BaseExceptionGroup as errors:
            failure = _first(errors)
        if failure is not None:
            raise failure

    async def _read(self, n_bytes: int) -> Data:
        """Read a block; hold `n_bytes` of the budget for it unless there is none."""
        budget = self._uploader.budget
        await budget.acquire(n_bytes)
        data: Data = b""
        try:
            data = await self._source.read(n_bytes)
        finally:
            if not data:
                budget.release(n_bytes)
        return data

    async def _wait(self, put: asyncio.Task[None], n_bytes: int) -> None:
        await asyncio.shield(put)
        self._report(n_bytes)

    def _next_bytes(self) -> int:
        """Return the length of the next block: up to a block boundary of the file."""
        remaining = self._source.remaining
        if self._offset + (1 if remaining is None else remaining) > FILE_BYTES_MAX:
            raise FileTooLarge(f"{self._source.label} has more bytes than a file may have")
        room = BLOCK_BYTES - self._offset % BLOCK_BYTES
        return room if remaining is None else min(room, remaining)

    async def _store(self, data: Data, n_bytes: int) -> asyncio.Task[None]:
        """Put a block and hash it meanwhile; take over `n_bytes` of the budget."""
        slot = False
        try:
            assert data
            await self._attempt.ensure_number()
            await self._uploader.slots.acquire()
            slot = True
            digest = self._digest(data)
            chunk, within = divmod(self._offset, CHUNK_BYTES)
            block = within // BLOCK_BYTES
            put = self._attempt.begin_put(chunk, block, data, n_bytes, digest)
        except BaseException:
            if slot:
                self._uploader.slots.release()
            self._uploader.budget.release(n_bytes)
            raise
        sums = await asyncio.shield(digest)
        parts, extents = self._chunks.setdefault(chunk, ([], []))
        extents.append(Extent(within, len(data), len(parts)))
        parts.append(ObjectPart(chunk, block, put.piece, len(data), sums))
        self._offset += len(data)
        return put.task

    def _inline(self, data: Data) -> None:
        """Make extents with bytes, one a chunk."""
        if self._hash is not None:
            self._hash.update(data)
        rest = bytes(data)
        while rest:
            chunk, within = divmod(self._offset, CHUNK_BYTES)
            piece = rest[: CHUNK_BYTES - within]
            self._chunks[chunk] = ([], [Extent(within, len(piece), data=piece)])
            self._offset += len(piece)
            rest = rest[len(piece) :]
        self._report(len(data))

    def _digest(self, data: Data) -> asyncio.Future[bytes]:
        """Begin to hash a block: little data here, more in a thread, so that the loop goes on.

        Blocks are hashed in order, because the next one is read only when this one is done.
        """
        loop = asyncio.get_running_loop()
        if len(data) > HASH_INLINE_BYTES:
            return loop.run_in_executor(self._uploader.threads, self._hash_block, data)
        done: asyncio.Future[bytes] = loop.create_future()
        done.set_result(self._hash_block(data))
        return done

    def _hash_block(self, data: Data) -> bytes:
        if self._hash is not None:
            self._hash.update(data)
        return sums_of(data)

    def _report(self, n_bytes: int) -> None:
        if self._progress is not None:
            self._progress(n_bytes)

    def _result(self) -> UploadedBody:
        chunks = tuple(
            ChunkMap(index, tuple(parts), tuple(extents))
            for index, (parts, extents) in sorted(self._chunks.items())
        )
        digest = self._hash.digest() if self._hash is not None else b""
        return UploadedBody(self._offset - self._start, digest, chunks)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first single error of a group: what failed first cancelled the others."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
