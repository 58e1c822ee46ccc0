"""Read plans against a model, and what a read fetches."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.objects.bodies import VOLUME

from nokv.errors import ObjectCorrupt, ObjectStoreUnavailable, ResultTooLarge
from nokv.objects.budget import ByteBudget
from nokv.objects.cache import BlockCache
from nokv.objects.faults import FaultyStore
from nokv.objects.layout import sums_of
from nokv.objects.memory import MemoryStore
from nokv.objects.port import OBJECT_BYTES_MAX
from nokv.objects.read import READ_BYTES_MAX, Chunks, Reader, plan_read
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, SUM_BYTES
from nokv.types.values import StoredChunk, StoredExtent, StoredObject


class Body:
    """A file in a store, written extent by extent, beside the bytes it must show."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.store = FaultyStore(self.memory)
        self.reader = Reader(self.store, volume=VOLUME, shard=1)
        self._extents: dict[int, list[tuple[int, bytes, StoredObject | None, int]]] = {}
        self._upload = 0

    async def object(self, data: bytes) -> StoredObject:
        """Store an object of its own upload."""
        self._upload += 1
        found = StoredObject(3, self._upload, 0, 0, 0, len(data), sums_of(data))
        await self.store.put(self.reader.name(found), data)
        return found

    def extent(self, offset: int, data: bytes, found: StoredObject | None, at: int) -> None:
        """Show `data`, which `found` holds from `at` on, at a file offset in one chunk."""
        index, within = divmod(offset, CHUNK_BYTES)
        assert within + len(data) <= CHUNK_BYTES
        self._extents.setdefault(index, []).append((within, data, found, at))

    @property
    def chunks(self) -> Chunks:
        made = {}
        for index, extents in self._extents.items():
            objects = list(dict.fromkeys(o for _, _, o, _ in extents if o is not None))
            made[index] = StoredChunk(
                tuple(objects),
                tuple(
                    StoredExtent(within, len(data), -1, 0, 1, data)
                    if found is None
                    else StoredExtent(within, len(data), objects.index(found), at, 1)
                    for within, data, found, at in sorted(extents, key=lambda e: e[0])
                ),
            )
        return made

    def expected(self, offset: int, length: int) -> bytes:
        out = bytearray(length)
        for index, extents in self._extents.items():
            for within, data, _, _ in extents:
                start = index * CHUNK_BYTES + within - offset
                low, high = max(0, start), min(length, start + len(data))
                if low < high:
                    out[low:high] = data[low - start : high - start]
        return bytes(out)


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int, str, int]]:
    """Disjoint extents around a chunk boundary: (offset, length, kind, offset in the object)."""
    cuts = sorted(
        draw(
            st.sets(
                st.one_of(
                    st.integers(-2 * BLOCK_BYTES, 2 * BLOCK_BYTES),
                    st.integers(-8, 8).map(lambda i: i * SUM_BYTES),
                ),
                min_size=2,
                max_size=10,
            )
        )
    )
    found = []
    for start, end in itertools.pairwise(cuts):
        kind = draw(st.sampled_from(["new", "shared", "inline", "hole"]))
        length = min(end - start, BLOCK_BYTES, 5000 if kind == "inline" else BLOCK_BYTES)
        if start < 0:
            length = min(length, -start)
        found.append((CHUNK_BYTES + start, length, kind, draw(st.integers(0, SUM_BYTES + 5))))
    return found


@settings(max_examples=60)
@given(layouts(), st.data())
def test_any_range_of_any_layout_reads_as_the_model_says(
    layout: list[tuple[int, int, str, int]], data: st.DataObject
) -> None:
    rng = random.Random(len(layout))
    start = CHUNK_BYTES - 2 * BLOCK_BYTES - 10
    ranges = [
        (start + first, length)
        for first, length in data.draw(
            st.lists(
                st.tuples(st.integers(0, 4 * BLOCK_BYTES), st.integers(0, BLOCK_BYTES)),
                min_size=1,
                max_size=4,
            )
        )
    ]

    async def main() -> None:
        body = Body()
        shared_bytes = rng.randbytes(BLOCK_BYTES + 2 * SUM_BYTES)
        shared = await body.object(shared_bytes)
        for offset, length, kind, skip in layout:
            if kind == "inline":
                body.extent(offset, rng.randbytes(length), None, 0)
            elif kind == "shared":
                body.extent(offset, shared_bytes[skip : skip + length], shared, skip)
            elif kind == "new":
                content = rng.randbytes(skip + length + 3)
                found = await body.object(content)
                body.extent(offset, content[skip : skip + length], found, skip)
        cached = Reader(body.store, volume=VOLUME, shard=1, cache=BlockCache(3 * SUM_BYTES))
        for offset, length in ranges:
            wanted = body.expected(offset, length)
            assert await body.reader.read(body.chunks, offset, length) == wanted
            assert await cached.read(body.chunks, offset, length) == wanted
            out = bytearray(b"\xff" * length)
            await body.reader.readinto(body.chunks, offset, memoryview(out))
            assert out == wanted
            plan = plan_read(body.chunks, offset, length)
            runs = [(f.object, i) for f in plan.fetches for i in range(f.first, f.end)]
            assert len(runs) == len(set(runs)), "a sub-block is fetched once"
        assert body.reader.budget.held_bytes == 0

    asyncio.run(main())


def test_an_object_with_a_patched_middle_is_fetched_around_it() -> None:
    async def main() -> None:
        body = Body()
        old = os.urandom(BLOCK_BYTES)
        found = await body.object(old)
        patch = os.urandom(4096)
        middle = BLOCK_BYTES // 2
        body.extent(0, old[:middle], found, 0)
        body.extent(middle, patch, await body.object(patch), 0)
        body.extent(middle + 4096, old[middle + 4096 :], found, middle + 4096)
        plan = plan_read(body.chunks, 0, BLOCK_BYTES)
        assert sorted((f.object.upload, f.first, f.end) for f in plan.fetches) == [
            (1, 0, 16),
            (2, 0, 1),
        ]
        assert await body.reader.read(body.chunks, 0, BLOCK_BYTES) == body.expected(0, BLOCK_BYTES)

    asyncio.run(main())


def test_holes_fetch_nothing() -> None:
    async def main() -> None:
        body = Body()
        assert await body.reader.read({}, 5, 100_000) == bytes(100_000)
        assert await body.reader.read({}, 0, 0) == b""
        assert body.store.calls["get"] == 0

    asyncio.run(main())


def test_too_much_at_once_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ResultTooLarge, match="stream it"):
            await Body().reader.read({}, 0, READ_BYTES_MAX + 1)

    asyncio.run(main())


SUMS = bytes(8)


@pytest.mark.parametrize(
    "chunk",
    [
        StoredChunk((), (StoredExtent(0, 10, 0, 0, 1),)),
        StoredChunk((StoredObject(1, 1, 0, 0, 0, 5, SUMS),), (StoredExtent(0, 10, 0, 0, 1),)),
        StoredChunk((StoredObject(1, 1, 0, 0, 0, 10, SUMS),), (StoredExtent(0, 10, 0, 1, 1),)),
        StoredChunk((StoredObject(1, 1, 0, 0, 0, 10, b""),), (StoredExtent(0, 10, 0, 0, 1),)),
        StoredChunk((StoredObject(1, 1, 0, 0, 0, 10, SUMS * 2),), (StoredExtent(0, 10, 0, 0, 1),)),
        StoredChunk((StoredObject(1, 1, 0, 0, 0, 20, SUMS),), (StoredExtent(0, 10, 0, -1, 1),)),
        StoredChunk((StoredObject(1, 1, 0, 0, 0, 2**40, b""),), (StoredExtent(0, 10, 0, 0, 1),)),
    ],
)
def test_a_record_that_contradicts_itself_is_corruption(chunk: StoredChunk) -> None:
    with pytest.raises(ObjectCorrupt, match="chunk record"):
        plan_read({0: chunk}, 0, 10)


# ---------------------------------------------------------------- streams and bounds


class Streamed(Body):
    """A body of `blocks` blocks, each in an object of its own."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.length = blocks * BLOCK_BYTES - 100
        self.looked_up: list[tuple[int, int]] = []

    async def fill(self) -> None:
        for block in range(self.blocks):
            data = random.Random(block).randbytes(BLOCK_BYTES)
            self.extent(block * BLOCK_BYTES, data, await self.object(data), 0)

    async def lookup(self, offset: int, length: int) -> Chunks:
        self.looked_up.append((offset, length))
        return self.chunks

    def stream(self, offset: int = 0, **options: int) -> AsyncIterator[bytes]:
        length = self.length - offset
        return self.reader.stream(self.lookup, offset, length, **options)


def test_a_stream_gives_the_file_in_order_and_reads_ahead() -> None:
    async def main() -> None:
        body = Streamed(6)
        await body.fill()
        pieces = [piece async for piece in body.stream(1000, read_ahead=2)]
        assert b"".join(pieces) == body.expected(1000, body.length - 1000)
        assert [len(piece) for piece in pieces[:2]] == [BLOCK_BYTES - 1000, BLOCK_BYTES]
        gates = [body.store.hold("get", nth) for nth in range(1, 4)]
        async with aclosing(body.stream(read_ahead=2)) as stream:  # type: ignore[type-var]
            first = asyncio.ensure_future(anext(stream))
            for gate in gates:
                await gate.reached.wait()
            before = body.store.calls["get"]
            for _ in range(50):
                await asyncio.sleep(0)
            assert body.store.calls["get"] == before, "no further than it was told"
            for gate in reversed(gates):
                gate.release()
            assert await first == body.expected(0, BLOCK_BYTES)
        assert body.reader.budget.held_bytes == 0

    asyncio.run(main())


def test_a_stream_that_fails_gives_what_was_before_and_then_the_error() -> None:
    async def main() -> None:
        body = Streamed(5)
        await body.fill()
        body.store.fail("get", 3, error=ObjectStoreUnavailable)
        stream = body.stream(read_ahead=4)
        got = await anext(stream) + await anext(stream)
        assert got == body.expected(0, 2 * BLOCK_BYTES)
        with pytest.raises(ObjectStoreUnavailable):
            await anext(stream)
        assert body.reader.budget.held_bytes == 0

    asyncio.run(main())


def test_streams_side_by_side_do_not_wait_for_each_other() -> None:
    """The budget is less than the read-ahead of either: what is fetched must not count in it."""

    async def main() -> None:
        body = Streamed(5)
        body.reader.budget = ByteBudget(OBJECT_BYTES_MAX)
        await body.fill()
        one, two = body.stream(read_ahead=4), body.stream(read_ahead=4)
        async for piece in one:
            assert piece == await anext(two)
        assert body.reader.budget.peak_bytes <= OBJECT_BYTES_MAX

    asyncio.run(main())


def test_fetches_stay_within_the_budget_and_the_slots() -> None:
    async def main() -> None:
        body = Streamed(12)
        await body.fill()
        budget = ByteBudget(OBJECT_BYTES_MAX)
        body.reader = Reader(body.store, volume=VOLUME, shard=1, parallel=3, budget=budget)
        in_flight = peak = 0
        get = body.memory.get

        async def counting(name: str, offset: int = 0, length: int | None = None) -> bytes:
            nonlocal in_flight, peak
            in_flight += 1
            peak = max(peak, in_flight)
            for _ in range(5):
                await asyncio.sleep(0)
            in_flight -= 1
            return await get(name, offset, length)

        body.memory.get = counting  # type: ignore[method-assign]
        data = await body.reader.read(body.chunks, 0, body.length)
        assert data == body.expected(0, body.length)
        assert peak == 2, "eight megabytes are two blocks"
        assert budget.peak_bytes == OBJECT_BYTES_MAX

    asyncio.run(main())


@pytest.mark.parametrize("held", [1, 2, 3])
def test_a_cancelled_read_gives_everything_back(held: int) -> None:
    async def main() -> None:
        body = Streamed(4)
        await body.fill()
        gate = body.store.hold("get", held)
        task = asyncio.ensure_future(body.reader.read(body.chunks, 0, body.length))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert body.reader.budget.held_bytes == 0
        assert await body.reader.read(body.chunks, 0, 10) == body.expected(0, 10)

    asyncio.run(main())


@pytest.mark.parametrize("byte", [0, SUM_BYTES, BLOCK_BYTES - 1])
def test_bytes_damaged_on_their_way_are_not_returned(byte: int) -> None:
    async def main() -> None:
        body = Streamed(2)
        await body.fill()
        body.store.damage(1, lambda d: d[:byte] + bytes([d[byte] ^ 4]) + d[byte + 1 :])
        with pytest.raises(ObjectCorrupt, match=f"the bytes at {byte - byte % SUM_BYTES} "):
            await body.reader.read(body.chunks, 0, body.length)
        body.store.damage(1, lambda d: d[:-1])
        with pytest.raises(ObjectCorrupt, match="bytes instead of"):
            await body.reader.read(body.chunks, 0, 10)
        assert await body.reader.read(body.chunks, 0, 10) == body.expected(0, 10)

    asyncio.run(main())
