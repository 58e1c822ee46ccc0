"""Bodies through upload and read, on every store: what goes in comes out, or nothing does."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable

import pytest
from tests.stores.conftest import OpenStore
from tests.unit.objects.bodies import VOLUME, stored

from nokv.errors import ForeignVolume, ObjectCorrupt, ObjectMissing
from nokv.objects.cache import BlockCache
from nokv.objects.faults import FaultyStore, flip_bit
from nokv.objects.layout import VOLUME_OBJECT, parse_name, upload_prefix, volume_prefix
from nokv.objects.port import ObjectStore
from nokv.objects.read import Chunks, Reader
from nokv.objects.upload import UploadedBody, Uploader
from nokv.objects.volume import check_volume, claim_volume
from nokv.types.limits import BLOCK_BYTES, SUM_BYTES

LENGTH = 2 * BLOCK_BYTES + 3 * SUM_BYTES + 123
"""Three blocks, the last one short and not a multiple of the sums' unit."""

Body = Callable[["Case"], Awaitable[None]]


class Case:
    """A body of LENGTH bytes in a store, and what reads it."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = FaultyStore(store)
        self.uploader = Uploader(self.store, volume=VOLUME, shard=2, session=7)
        self.reader = Reader(self.store, volume=VOLUME, shard=2)
        self.data = os.urandom(LENGTH)
        self.uploaded: UploadedBody
        self.chunks: Chunks

    async def upload(self) -> None:
        attempt = self.uploader.attempt(lease)
        self.uploaded = await attempt.upload(self.data)
        assert attempt.number is not None
        self.chunks = stored(self.uploaded, session=7, upload=attempt.number)

    @property
    def names(self) -> list[str]:
        return [self.reader.name(found) for found in self.chunks[0].objects]

    async def read(self, offset: int, length: int) -> bytes:
        return await self.reader.read(self.chunks, offset, length)

    async def read_stream(self) -> bytes:
        async def lookup(offset: int, length: int) -> Chunks:
            assert 0 <= offset < offset + length <= LENGTH
            return self.chunks

        return b"".join([piece async for piece in self.reader.stream(lookup, 0, LENGTH)])


async def lease() -> int:
    return 9


def with_body(open_store: OpenStore, body: Body) -> None:
    async def main() -> None:
        store = open_store()
        try:
            await store.ensure_bucket()
            case = Case(store)
            await case.upload()
            await body(case)
            await case.uploader.close()
        finally:
            await store.close()

    asyncio.run(main())


RANGES = [
    (0, LENGTH),
    (0, 1),
    (LENGTH - 1, 1),
    (SUM_BYTES - 1, 2),
    (BLOCK_BYTES - 1, 2),
    (BLOCK_BYTES - SUM_BYTES, 2 * SUM_BYTES),
    (100, BLOCK_BYTES * 2),
    (2 * BLOCK_BYTES, LENGTH - 2 * BLOCK_BYTES),
]


def test_bodies_come_back(open_store: OpenStore) -> None:
    async def body(case: Case) -> None:
        assert case.uploaded.length == LENGTH
        assert case.uploaded.sha256 == hashlib.sha256(case.data).digest()
        for offset, length in RANGES:
            assert await case.read(offset, length) == case.data[offset : offset + length]
            out = bytearray(os.urandom(length))
            await case.reader.readinto(case.chunks, offset, memoryview(out))
            assert out == case.data[offset : offset + length]
        assert await case.read_stream() == case.data
        names = [info.name for info in (await case.store.list(volume_prefix(VOLUME))).objects]
        assert names == case.names
        assert all(name.startswith(upload_prefix(VOLUME, 2, 7, 9)) for name in names)
        assert [parse_name(name).block for name in names] == [0, 1, 2]

    with_body(open_store, body)


def test_a_small_read_fetches_one_sub_block(open_store: OpenStore) -> None:
    async def body(case: Case) -> None:
        lengths: list[int] = []

        def note(data: bytes) -> bytes:
            lengths.append(len(data))
            return data

        for nth in (1, 2):
            case.store.damage(nth, note)
        assert await case.read(SUM_BYTES + 5, 4096) == case.data[SUM_BYTES + 5 : SUM_BYTES + 4101]
        assert await case.read(LENGTH - 10, 10) == case.data[-10:]
        assert lengths == [SUM_BYTES, 123]

    with_body(open_store, body)


@pytest.mark.parametrize(
    ("block", "at"),
    [(0, 0), (0, SUM_BYTES - 1), (0, BLOCK_BYTES - 1), (1, SUM_BYTES), (2, 3 * SUM_BYTES + 122)],
)
def test_a_flipped_bit_is_an_error_and_never_bytes(
    open_store: OpenStore, block: int, at: int
) -> None:
    async def body(case: Case) -> None:
        name = case.names[block]
        await flip_bit(case.store, name, at)
        where = block * BLOCK_BYTES + at
        offset = at - at % SUM_BYTES
        for start, length in [
            (0, LENGTH),
            (where, 1),
            (max(0, where - 5), 5 + min(5, LENGTH - where)),
            (block * BLOCK_BYTES, min(BLOCK_BYTES, LENGTH - block * BLOCK_BYTES)),
            (max(0, where - SUM_BYTES), 1 + min(where, SUM_BYTES)),
        ]:
            with pytest.raises(ObjectCorrupt, match=f"{name}: the bytes at {offset} "):
                await case.read(start, length)
            with pytest.raises(ObjectCorrupt, match=name):
                await case.reader.readinto(case.chunks, start, memoryview(bytearray(length)))
        with pytest.raises(ObjectCorrupt, match=name):
            await case.read_stream()
        for start, length in RANGES:
            inside = start - start % SUM_BYTES <= where < start + length + SUM_BYTES
            if not inside:
                assert await case.read(start, length) == case.data[start : start + length]

    with_body(open_store, body)


@pytest.mark.parametrize("cut", [1, SUM_BYTES, BLOCK_BYTES])
def test_a_shorter_or_longer_object_is_an_error(open_store: OpenStore, cut: int) -> None:
    async def body(case: Case) -> None:
        name = case.names[1]
        data = await case.store.get(name)
        await case.store.put(name, data[: BLOCK_BYTES - cut])
        for start, length in [(0, LENGTH), (2 * BLOCK_BYTES - 1, 1), (BLOCK_BYTES, BLOCK_BYTES)]:
            with pytest.raises(ObjectCorrupt, match=name):
                await case.read(start, length)
        await case.store.put(name, data + b"x")
        with pytest.raises(ObjectCorrupt, match=name):
            await case.read(BLOCK_BYTES, BLOCK_BYTES)

    with_body(open_store, body)


def test_a_lost_object_is_named(open_store: OpenStore) -> None:
    async def body(case: Case) -> None:
        name = case.names[1]
        assert await case.store.delete([name]) == {}
        for start, length in [(0, LENGTH), (2 * BLOCK_BYTES - 1, 1), (BLOCK_BYTES, BLOCK_BYTES)]:
            with pytest.raises(ObjectMissing, match=name):
                await case.read(start, length)
        with pytest.raises(ObjectMissing, match=name):
            await case.read_stream()
        assert await case.read(0, BLOCK_BYTES) == case.data[:BLOCK_BYTES]

    with_body(open_store, body)


def test_the_cache_holds_verified_bytes_only(open_store: OpenStore) -> None:
    async def body(case: Case) -> None:
        cache = BlockCache(64 * 1024 * 1024)
        reader = Reader(case.store, volume=VOLUME, shard=2, cache=cache)
        name = case.names[0]
        await flip_bit(case.store, name, 0)
        for _ in range(2):
            with pytest.raises(ObjectCorrupt):
                await reader.read(case.chunks, 0, 10)
        assert len(cache) == 0
        await flip_bit(case.store, name, 0)
        assert await reader.read(case.chunks, 0, LENGTH) == case.data
        gets = case.store.calls["get"]
        assert await reader.read(case.chunks, 0, LENGTH) == case.data
        assert case.store.calls["get"] == gets

    with_body(open_store, body)


def test_a_cancelled_upload_leaves_nothing(open_store: OpenStore) -> None:
    async def body(case: Case) -> None:
        await case.store.delete(case.names)
        gate = case.store.hold("put", 2, after=True)
        task = asyncio.ensure_future(case.uploader.attempt(lease).upload(case.data))
        await gate.reached.wait()
        task.cancel()
        gate.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await case.store.list(volume_prefix(VOLUME)) == ((), False)

    with_body(open_store, body)


def test_a_volume_claims_its_store_and_refuses_a_foreign_one(open_store: OpenStore) -> None:
    other = "f" * 32

    async def body(case: Case) -> None:
        store = case.store
        with pytest.raises(ForeignVolume, match="does not hold"):
            await check_volume(store, VOLUME)
        assert await claim_volume(store, VOLUME)
        assert not await claim_volume(store, VOLUME)
        await check_volume(store, VOLUME)
        for refuse in (claim_volume, check_volume):
            with pytest.raises(ForeignVolume, match=f"belongs to volume {VOLUME}"):
                await refuse(store, other)
        for content in (b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"volume": 5}'):
            await store.put(VOLUME_OBJECT, content)
            with pytest.raises(ForeignVolume, match=r"not NoKV's"):
                await claim_volume(store, VOLUME)
            assert await store.get(VOLUME_OBJECT) == content

    with_body(open_store, body)
