"""What a damaged, lost, foreign or absent object store does to a cluster's clients: real stores."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.unit.client import loopback

import nokv
from nokv.client import AsyncClient
from nokv.client.sync import Client
from nokv.errors import (
    ForeignVolume,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreUnavailable,
    UploadFailed,
)
from nokv.objects.layout import VOLUME_OBJECT
from nokv.objects.local import LocalStore
from nokv.objects.open import open_store
from nokv.objects.volume import await_volume, claim_volume
from nokv.testing.cluster import LocalCluster
from nokv.testing.folder import Store
from nokv.testing.s3server import S3Server, s3_server
from nokv.types.limits import BLOCK_BYTES, SUM_BYTES

pytestmark = pytest.mark.cluster

LENGTH = 2 * BLOCK_BYTES + SUM_BYTES + 7
PATIENCE_S = 30.0
VOLUME = "0123456789abcdef" * 2


class Place(NamedTuple):
    """A running node and the directory that holds its objects, whoever serves them."""

    cluster: LocalCluster
    root: Path

    @property
    def blocks(self) -> list[Path]:
        """The stored objects, in order of their names."""
        return sorted(path for path in (self.root / "blocks").rglob("*") if path.is_file())

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module", params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "local":
        with LocalCluster.start(1) as cluster:
            yield Place(cluster, cluster.folder.path / "store")
    else:
        server: S3Server = request.getfixturevalue("s3")
        store = Store("s3", "a-bucket", server.endpoint, "some/prefix", "us-east-1")
        with LocalCluster.start(1, store=store) as cluster:
            yield Place(cluster, server.directory / "a-bucket" / "some" / "prefix")


@pytest.fixture
def fs(place: Place) -> Iterator[Client]:
    with nokv.connect_sync(place.cluster.addresses) as client:
        client.mkdir("/d")
        yield client
        client.remove_tree("/d")


def stored(place: Place, fs: Client, data: bytes, path: str = "/d/f") -> list[Path]:
    """Publish a body; return its objects."""
    before = set(place.blocks)
    info = fs.put(path, data)
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    return [block for block in place.blocks if block not in before]


def flip(path: Path, offset: int) -> None:
    """Change one bit, where the server of the store sees it."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 0x10,)))


RANGES = [
    (0, LENGTH),  # whole
    (SUM_BYTES - 1, 2),  # across two sums
    (BLOCK_BYTES - 5, 10),  # across two blocks
    (BLOCK_BYTES, BLOCK_BYTES + 1),  # two blocks from a block's start
    (LENGTH - 3, 3),
]


@pytest.mark.parametrize(
    ("block", "offset"),
    [(0, SUM_BYTES - 1), (0, BLOCK_BYTES - 1), (1, 0), (2, SUM_BYTES + 6)],
)
def test_a_flipped_byte_is_an_error_that_names_the_object(
    place: Place, fs: Client, tmp_path: Path, block: int, offset: int
) -> None:
    data = os.urandom(LENGTH)
    blocks = stored(place, fs, data)
    assert [path.stat().st_size for path in blocks] == [BLOCK_BYTES, BLOCK_BYTES, SUM_BYTES + 7]
    flip(blocks[block], offset)
    at, name = block * BLOCK_BYTES + offset, place.name(blocks[block])
    # Each client has a cache of its own: nothing was read before the damage.
    asyncio.run(asynchronous(place.cluster.addresses, data, at, name))
    for start, length in RANGES:
        if damaged(start, length, at):
            with pytest.raises(ObjectCorrupt, match=name):
                fs.read("/d/f", start, length)
        else:
            assert fs.read("/d/f", start, length) == data[start : start + length]
    with fs.open("/d/f", "rb") as file, pytest.raises(ObjectCorrupt, match=name):
        file.read()
    with fs.open("/d/f", "rb") as file:
        file.seek(at)
        with pytest.raises(ObjectCorrupt, match=name):
            file.read(1)
    with pytest.raises(ObjectCorrupt, match=name):
        fs.get_file("/d/f", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def damaged(start: int, length: int, at: int) -> bool:
    """Whether the sums that a range needs cover the damage; a sum does not cross its block."""
    first = start - start % BLOCK_BYTES % SUM_BYTES
    last = start + length - 1
    end = last - last % BLOCK_BYTES % SUM_BYTES + SUM_BYTES
    return first <= at < end


async def asynchronous(addresses: str, data: bytes, at: int, name: str) -> None:
    async with nokv.connect(addresses) as fs:
        for start, length in [*RANGES, (at, 1)]:
            if damaged(start, length, at):
                with pytest.raises(ObjectCorrupt, match=name):
                    await fs.read("/d/f", start, length)
            else:
                assert await fs.read("/d/f", start, length) == data[start : start + length]
        with pytest.raises(ObjectCorrupt, match=name):
            await fs.read_bytes("/d/f")
        async with fs.open("/d/f", "rb") as file:
            with pytest.raises(ObjectCorrupt, match=name):
                await drain(file.chunks(), data)


async def drain(chunks: object, data: bytes) -> None:
    """Take what a stream gives; all of it must be right until it fails."""
    position = 0
    async for piece in chunks:  # type: ignore[attr-defined]
        assert piece == data[position : position + len(piece)]
        position += len(piece)


async def delete(place: Place, name: str) -> None:
    store = open_store(place.cluster.folder.store)
    assert await store.delete([name]) == {}
    await store.close()


def test_a_lost_object_is_named_and_nothing_else_is_lost(place: Place, fs: Client) -> None:
    data = os.urandom(LENGTH)
    blocks = stored(place, fs, data)
    fs.put("/d/whole", b"w" * 10_000)
    asyncio.run(delete(place, place.name(blocks[1])))
    with pytest.raises(ObjectMissing, match=place.name(blocks[1])):
        fs.read("/d/f")
    with pytest.raises(ObjectMissing, match=place.name(blocks[1])):
        fs.read("/d/f", BLOCK_BYTES, 1)
    assert fs.read("/d/f", 0, BLOCK_BYTES) == data[:BLOCK_BYTES]
    assert fs.read("/d/whole") == b"w" * 10_000
    # The damage is repaired as any file is replaced.
    fs.put("/d/f", data)
    assert fs.read("/d/f") == data


@pytest.mark.allow_logs("the object store is not ours")
def test_the_bucket_of_another_volume_is_refused_and_left_alone(
    place: Place, fs: Client, check_log: Callable[[Path], None]
) -> None:
    """The second cluster serves its metadata; its worker and its clients leave the bucket alone."""
    stored(place, fs, os.urandom(10_000))
    folder = place.cluster.folder
    store = folder.store if folder.store.kind == "s3" else Store(bucket=str(place.root))
    before = {path: path.read_bytes() for path in [place.root / VOLUME_OBJECT, *place.blocks]}
    settings = {"worker.interval_ms": 20, "worker.sweep_interval_ms": 20, "worker.grace_ms": 1}
    with LocalCluster.start(1, store=store, settings=settings) as other:
        check_log(other.folder.log_path(1))
        with nokv.connect_sync(other.addresses) as client:
            with pytest.raises(ForeignVolume, match="belongs to volume"):
                client.put("/f", bytes(10_000))
            assert not client.exists("/f")
            client.put("/small", b"lives in the metadata")
            assert client.read("/small") == b"lives in the metadata"
        until(lambda: "not ours" in other.folder.log_tail(1, 100))
        assert other.is_ready(1)
    after = {path: path.read_bytes() for path in [place.root / VOLUME_OBJECT, *place.blocks]}
    assert after == before


def until(condition: Callable[[], object]) -> None:
    """Wait for what a process brings about; poll, because nobody tells."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.s3
def test_a_store_that_is_down_stops_bodies_only(s3: S3Server) -> None:
    """Typed errors while it is down; the same client goes on when it is back."""
    store = Store("s3", "down", s3.endpoint, "", "us-east-1")

    async def scenario(fs: AsyncClient) -> None:
        data = os.urandom(20_000)
        await fs.write_bytes("/before", data)
        await asyncio.to_thread(s3.stop)
        try:
            with pytest.raises(UploadFailed, match="put blocks/") as failed:
                await fs.write_bytes("/refused", data)
            assert isinstance(failed.value.__cause__, ObjectStoreUnavailable)
            with pytest.raises(ObjectStoreUnavailable, match="get blocks/") as caught:
                await fs.read("/before")
            assert "endpoint" in caught.value.hint
            await fs.write_bytes("/small", b"lives in the metadata")
            assert await fs.read("/small") == b"lives in the metadata"
            assert await fs.listdir("/") == ["before", "small"]
        finally:
            await asyncio.to_thread(s3.start)
        assert await fs.read("/before") == data
        await fs.write_bytes("/after", data)
        assert await fs.read("/after") == data

    async def main(addresses: str) -> None:
        async with nokv.connect(addresses) as fs:
            await scenario(fs)

    with LocalCluster.start(1, store=store) as cluster:
        asyncio.run(main(cluster.addresses))
        assert cluster.is_ready(1)


def test_a_store_that_nobody_has_claimed_yet_is_waited_for(tmp_path: Path) -> None:
    """A client may be faster than the worker of the cluster that it connects to."""

    async def main() -> None:
        store = LocalStore(tmp_path / "store")
        await store.ensure_bucket()
        with pytest.raises(ForeignVolume, match="does not hold volume"):
            await await_volume(store, VOLUME, 0.0)
        waiting = asyncio.ensure_future(await_volume(store, VOLUME, PATIENCE_S))
        await asyncio.sleep(0)
        await claim_volume(store, VOLUME)
        await waiting
        with pytest.raises(ForeignVolume, match="belongs to volume"):
            await await_volume(store, "f" * 32, PATIENCE_S)
        await store.close()

    asyncio.run(main())


def test_a_slow_store_holds_up_nobody_but_who_waits_for_it() -> None:
    async def main() -> None:
        async with loopback.client() as (cluster, fs):
            data = os.urandom(20_000)
            await fs.write_bytes("/before", data)
            putting, getting = cluster.store.hold("put"), cluster.store.hold("get")
            writing = asyncio.ensure_future(fs.write_bytes("/slow", data))
            reading = asyncio.ensure_future(fs.read("/before"))
            await putting.reached.wait()
            await getting.reached.wait()
            await fs.mkdir("/metadata")
            await fs.write_bytes("/small", b"lives in the metadata")
            assert await fs.read("/small") == b"lives in the metadata"
            assert await fs.listdir("/") == ["before", "metadata", "small"]
            assert not writing.done()
            assert not reading.done()
            putting.release()
            getting.release()
            await writing
            assert await reading == data
            assert await fs.read("/slow") == data

    asyncio.run(main())
