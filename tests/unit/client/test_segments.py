"""Bodies of more than one segment, with segments of a block instead of 32 GiB."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.client.loopback import Cluster, client

from nokv.client import AsyncClient, publish, segments
from nokv.errors import AlreadyExists, GenerationMismatch, ObjectStoreError, TooLarge, UploadFailed
from nokv.objects.memory import MemoryStore
from nokv.types.commands import StageDrop
from nokv.types.limits import BLOCK_BYTES

DATA = random.Random(3).randbytes(3 * BLOCK_BYTES + 12_345)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", BLOCK_BYTES)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(DATA)
    path.chmod(0o640)
    os.utime(path, ns=(1, 1_000_000_007))
    return path


def run(test: Callable[[Cluster, AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (cluster, fs):
            await test(cluster, fs)

    asyncio.run(main())


def test_a_large_file_is_swapped_in_whole(local: Path) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        uploads: list[int] = []
        seen: list[bool] = []

        async def point(name: str) -> None:
            if name == "publish":
                seen.append(await fs.exists("/f"))

        fs._core.fault_point = point  # type: ignore[misc]
        info = await fs.put_file(local, "/f", if_absent=True, progress=uploads.append)
        assert seen == [False] * 5
        assert sum(uploads) == info.size == len(DATA)
        attr = await fs.stat("/f")
        assert (attr.generation, attr.inode, attr.mode & 0o777) == (
            info.generation,
            info.inode,
            0o640,
        )
        assert await fs.read_bytes("/f") == DATA
        with pytest.raises(AlreadyExists):
            await fs.put_file(local, "/f", if_absent=True)
        with pytest.raises(GenerationMismatch):
            await fs.put_file(local, "/f", if_generation=info.generation + 1)
        again = await fs.put_file(local, "/f", if_generation=info.generation, keep_times=True)
        assert again.generation > info.generation
        assert (await fs.stat("/f")).mtime_ns == 1_000_000_007
        while fs._core._background:
            await asyncio.wait(set(fs._core._background))
        cluster.reap()
        counts = await fs.statfs()
        assert (counts.files, counts.bytes) == (2, len(DATA))

    run(test)


def test_a_failure_midway_leaves_the_stage_to_be_dropped(local: Path) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        cluster.store.fail("put", 3, error=ObjectStoreError)
        with pytest.raises(UploadFailed):
            await fs.put_file(local, "/f")
        while fs._core._background:
            await asyncio.wait(set(fs._core._background))
        assert any(isinstance(command.op, StageDrop) for command in cluster.commands)
        assert not await fs.exists("/f")
        assert (await fs._core.session(20.0)).uploads.in_flight == 0

    run(test)


@pytest.mark.parametrize("mode", ["create", "replace"])
def test_a_large_file_in_a_set(local: Path, mode: publish.Mode) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        done = await fs.publish("/set", {"d/large": local, "small": b"1"}, mode=mode)
        assert await fs.read_bytes("/set/d/large") == DATA
        assert await fs.read_bytes("/set/small") == b"1"
        attr = await fs.stat("/set/d/large")
        assert done.files["d/large"].generation == attr.generation
        assert done.files["d/large"].size == len(DATA)
        memory = cluster.store.inner
        assert isinstance(memory, MemoryStore)
        before = len(memory.names)
        with pytest.raises(TooLarge):
            await fs.publish("/set", {"x": local}, mode="merge")
        assert len(memory.names) == before

    run(test)
