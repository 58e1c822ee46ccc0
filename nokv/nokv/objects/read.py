"""Reading a body: a plan of verified ranges, fetched in parallel, in bounded memory.

A plan turns a byte range of a file and the chunk records it touches into the fewest fetches that
can be verified: whole sub-blocks of 256 KiB, merged where they touch. What no extent covers reads
as zeros. No byte is ever returned that was not checked against its sum.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

from nokv.errors import ObjectCorrupt, ResultTooLarge
from nokv.objects.budget import ByteBudget
from nokv.objects.cache import BlockCache
from nokv.objects.layout import (
    DIGEST_BYTES,
    ObjectName,
    check_volume_id,
    format_name,
    sums_count,
    verify,
)
from nokv.objects.port import OBJECT_BYTES_MAX, ObjectStore
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, SUM_BYTES
from nokv.types.values import StoredChunk, StoredExtent, StoredObject

READ_BYTES_MAX = 1024 * 1024 * 1024
"""What one `read` may return; longer ranges are streamed."""

PARALLEL_DEFAULT = 16
"""Gets in flight of all reads that share a `Reader`."""

BUDGET_BYTES_DEFAULT = 128 * 1024 * 1024
"""Bytes being fetched by all reads that share a `Reader`."""

READ_AHEAD_DEFAULT = 4
"""Pieces of BLOCK_BYTES that a stream fetches before they are asked for."""

Chunks = Mapping[int, StoredChunk]
"""Chunk records by the chunk's index. One that is missing is a hole."""

ChunkLookup = Callable[[int, int], Awaitable[Chunks]]
"""(file offset, length in bytes) -> the chunk records of that range."""

_Key = tuple[int, int, int, int, int]


class Fetch(NamedTuple):
    """A run of whole sub-blocks of one object."""

    object: StoredObject
    first: int
    """Index of the first sub-block."""
    end: int
    """One past the last one."""

    @property
    def offset(self) -> int:
        """Of the first byte, within the object."""
        return self.first * SUM_BYTES

    @property
    def length(self) -> int:
        """Bytes."""
        return min(self.end * SUM_BYTES, self.object.length) - self.offset


class Copy(NamedTuple):
    """Bytes of a fetch and where they belong."""

    fetch: int
    """Index into the plan's fetches."""
    start: int
    """Of the first byte, within the fetch."""
    length: int
    target: int
    """Of the first byte, within the range that is read."""


class Plan(NamedTuple):
    """How to read one range. What neither `copies` nor `inline` covers is zeros."""

    length: int
    fetches: tuple[Fetch, ...]
    copies: tuple[Copy, ...]
    inline: tuple[tuple[int, bytes], ...]
    """(where it belongs within the range, bytes)."""


def plan_read(chunks: Chunks, offset: int, length: int) -> Plan:
    """Return the plan for file bytes [offset, offset + length); a pure function.

    Raises:
        ObjectCorrupt: a chunk record contradicts itself: an extent reaches beyond its object, or
            a vector of sums has not the length that its object needs.
    """
    assert offset >= 0
    assert length >= 0
    wanted: list[tuple[StoredObject, int, int, int]] = []  # object, start, length, target
    inline: list[tuple[int, bytes]] = []
    end = offset + length
    for index in range(offset // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
        record = chunks.get(index)
        if record is None:
            continue
        base = index * CHUNK_BYTES
        for extent in record.extents:
            start = max(offset, base + extent.offset)
            stop = min(end, base + extent.offset + extent.length)
            if start >= stop:
                continue
            skip = start - base - extent.offset
            if extent.object < 0:
                inline.append((start - offset, extent.data[skip : skip + stop - start]))
                continue
            found = _object_of(record, extent)
            wanted.append((found, extent.object_offset + skip, stop - start, start - offset))
    fetches, copies = _merge(wanted)
    return Plan(length, fetches, copies, tuple(inline))


def _object_of(record: StoredChunk, extent: StoredExtent) -> StoredObject:
    if extent.object >= len(record.objects):
        raise ObjectCorrupt(f"a chunk record names object {extent.object} of {len(record.objects)}")
    found = record.objects[extent.object]
    if (
        extent.object_offset < 0
        or extent.object_offset + extent.length > found.length
        or found.length > OBJECT_BYTES_MAX
        or len(found.sums) != sums_count(found.length) * DIGEST_BYTES
    ):
        raise ObjectCorrupt(
            f"the chunk record of object {_key(found)} contradicts itself: bytes "
            f"[{extent.object_offset}, {extent.object_offset + extent.length}) of {found.length}, "
            f"{len(found.sums)} bytes of sums"
        )
    return found


def _key(found: StoredObject) -> _Key:
    return (found.session, found.upload, found.chunk, found.block, found.piece)


def _merge(
    wanted: list[tuple[StoredObject, int, int, int]],
) -> tuple[tuple[Fetch, ...], tuple[Copy, ...]]:
    """Round out to sub-blocks and merge, for each object, the runs that touch."""
    if len(wanted) == 1:
        found, start, length, target = wanted[0]
        fetch = Fetch(found, start // SUM_BYTES, -(-(start + length) // SUM_BYTES))
        return (fetch,), (Copy(0, start - fetch.offset, length, target),)
    by_object: dict[_Key, list[tuple[StoredObject, int, int, int]]] = {}
    for one in wanted:
        by_object.setdefault(_key(one[0]), []).append(one)
    fetches: list[Fetch] = []
    copies: list[Copy] = []
    for group in by_object.values():
        group.sort(key=lambda one: one[1])
        opened = False
        for found, start, length, target in group:
            first, end = start // SUM_BYTES, -(-(start + length) // SUM_BYTES)
            if opened and first <= fetches[-1].end:
                last = fetches[-1]
                fetches[-1] = Fetch(found, last.first, max(last.end, end))
            else:
                fetches.append(Fetch(found, first, end))
                opened = True
            copies.append(Copy(len(fetches) - 1, start - fetches[-1].offset, length, target))
    return tuple(fetches), tuple(copies)


class Reader:
    """The bounds that all reads of one client share.

    Args:
        store: where the objects are.
        volume, shard: the owner part of the objects' names that a chunk record leaves out.
        parallel: gets in flight.
        budget: bytes being fetched; not the uploads' budget (see `ByteBudget`).
        cache: verified sub-blocks to look in first, and to fill.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        volume: str,
        shard: int,
        parallel: int = PARALLEL_DEFAULT,
        budget: ByteBudget | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        self._store = store
        self._volume = check_volume_id(volume)
        self._shard = shard
        self._slots = asyncio.Semaphore(parallel)
        self.budget = budget or ByteBudget(BUDGET_BYTES_DEFAULT)
        assert self.budget.limit_bytes >= OBJECT_BYTES_MAX
        self.cache = cache

    def name(self, found: StoredObject) -> str:
        """Return the object's name in the store."""
        return format_name(ObjectName(self._volume, self._shard, *_key(found)))

    async def read(self, chunks: Chunks, offset: int, length: int) -> bytes:
        """Return exactly the file bytes [offset, offset + length), verified; holes are zeros.

        The caller has cut the range to the file's size.

        Raises:
            ObjectCorrupt: an object's bytes do not match its sums; names object and offset.
            ObjectMissing: an object is not there.
            ObjectStoreError: the store failed.
            ResultTooLarge: more than READ_BYTES_MAX at once.
        """
        if length > READ_BYTES_MAX:
            raise ResultTooLarge(
                f"a read of {length} bytes is over {READ_BYTES_MAX}", hint="stream it instead"
            )
        plan = plan_read(chunks, offset, length)
        if len(plan.copies) == 1 and plan.copies[0].length == length:
            (copy,) = plan.copies
            data = await self._fetch(plan.fetches[0])
            return data if len(data) == length else data[copy.start : copy.start + length]
        out = bytearray(length)
        await self._fill(plan, memoryview(out))
        return bytes(out)

    async def readinto(self, chunks: Chunks, offset: int, out: memoryview) -> None:
        """Fill `out` with the file bytes from `offset` on; raises like `read`.

        After an error `out` holds verified bytes and old ones, mixed.
        """
        plan = plan_read(chunks, offset, out.nbytes)
        covered = sum(copy.length for copy in plan.copies) + sum(len(d) for _, d in plan.inline)
        if covered < plan.length:
            out[:] = bytes(plan.length)
        await self._fill(plan, out)

    async def stream(
        self,
        lookup: ChunkLookup,
        offset: int,
        length: int,
        *,
        read_ahead: int = READ_AHEAD_DEFAULT,
    ) -> AsyncIterator[bytes]:
        """Yield the file bytes [offset, offset + length) in order, in pieces of up to BLOCK_BYTES.

        Up to `read_ahead` pieces beyond the one that is yielded are fetched or held. They do not
        count in the budget once they are fetched, so streams that are read side by side cannot
        wait for each other.

        Raises:
            The errors of `read` and of `lookup`, before any byte of the piece that failed.
        """
        assert read_ahead >= 0
        end = offset + length
        ahead: deque[asyncio.Task[bytes]] = deque()
        try:
            while offset < end or ahead:
                while offset < end and len(ahead) <= read_ahead:
                    piece = min(end, offset - offset % BLOCK_BYTES + BLOCK_BYTES) - offset
                    ahead.append(asyncio.ensure_future(self._piece(lookup, offset, piece)))
                    offset += piece
                data = await ahead[0]
                ahead.popleft()
                yield data
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _piece(self, lookup: ChunkLookup, offset: int, length: int) -> bytes:
        return await self.read(await lookup(offset, length), offset, length)

    async def _fill(self, plan: Plan, out: memoryview) -> None:
        for target, data in plan.inline:
            out[target : target + len(data)] = data
        by_fetch: list[list[Copy]] = [[] for _ in plan.fetches]
        for copy in plan.copies:
            by_fetch[copy.fetch].append(copy)
        if len(plan.fetches) == 1:
            await self._fetch_into(plan.fetches[0], by_fetch[0], out)
            return
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as fetching:
                for fetch, copies in zip(plan.fetches, by_fetch, strict=True):
                    fetching.create_task(self._fetch_into(fetch, copies, out))
        except BaseExceptionGroup as errors:
            failure = errors.exceptions[0]
        if failure is not None:
            raise failure

    async def _fetch_into(self, fetch: Fetch, copies: list[Copy], out: memoryview) -> None:
        data = memoryview(await self._fetch(fetch))
        for copy in copies:
            out[copy.target : copy.target + copy.length] = data[
                copy.start : copy.start + copy.length
            ]

    async def _fetch(self, fetch: Fetch) -> bytes:
        """Return the verified bytes of a fetch, from the cache as far as they are there."""
        name = self.name(fetch.object)
        if self.cache is None:
            return await self._get(name, fetch)
        blocks = {i: self.cache.get(name, i) for i in range(fetch.first, fetch.end)}
        missing = [index for index, data in blocks.items() if data is None]
        if missing:
            part = Fetch(fetch.object, missing[0], missing[-1] + 1)
            data = await self._get(name, part)
            for index in range(part.first, part.end):
                at = (index - part.first) * SUM_BYTES
                blocks[index] = data[at : at + SUM_BYTES]
                self.cache.put(name, index, data[at : at + SUM_BYTES])
            if part == fetch:
                return data
        return b"".join([data for data in blocks.values() if data is not None])

    async def _get(self, name: str, fetch: Fetch) -> bytes:
        length = fetch.length
        whole = length == fetch.object.length
        async with self._slots:
            await self.budget.acquire(length)
            try:
                # Without a range where the whole object is wanted: some servers are faster then.
                data = await self._store.get(name, fetch.offset, None if whole else length)
            finally:
                self.budget.release(length)
        if len(data) != length:
            raise ObjectCorrupt(f"get {name}: {len(data)} bytes instead of {length}")
        verify(name, data, fetch.first, fetch.object.sums)
        return data
