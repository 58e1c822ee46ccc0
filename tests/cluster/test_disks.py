"""Disks that are full, and object stores that fail: typed errors, and nothing half done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.cluster.conftest import Nokv

from nokv.client import AsyncClient, ClientConfig, connect
from nokv.errors import (
    NoSpace,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreError,
    UploadFailed,
)
from nokv.testing.cluster import LocalCluster
from nokv.testing.folder import NodePorts, Store, create
from nokv.testing.ports import free_ports
from nokv.testing.s3server import REGION, S3Server

pytestmark = pytest.mark.cluster

MIB = 1 << 20
LARGE = os.urandom(5 * MIB)


# ---------------------------------------------------------------- metadata disks


@pytest.fixture(scope="module")
def small_disks() -> Iterator[LocalCluster]:
    """Three nodes, each with its data on a disk of 160 MiB and a reserve of 64 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    base = Path(tempfile.mkdtemp(prefix="nokv-disks-"))
    ports = free_ports(9)
    members = [NodePorts(i + 1, *ports[3 * i : 3 * i + 3]) for i in range(3)]
    settings: dict[str, str | int | bool] = {
        "disk.reserve_bytes": 64 * MIB,
        "log.segment_bytes": 8 * MIB,
        "log.keep_bytes": 8 * MIB,
    }
    folder = create(base, members, settings=settings)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        for node in (1, 2, 3):
            data = folder.node_path(node) / "data"
            made = data.rename(data.with_name("made"))
            data.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=160m,mode=700", "tmpfs", str(data)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                pytest.skip(f"mount: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", str(data)], check=True)
            shutil.copytree(made, data, dirs_exist_ok=True)
        cluster = LocalCluster(folder)
        stack.callback(cluster.close)
        for node in cluster.nodes:
            cluster.start_node(node)
        cluster.wait_ready()
        yield cluster


def ballast(cluster: LocalCluster, node: int) -> Path:
    return cluster.folder.node_path(node) / "data" / "ballast"


def fill(cluster: LocalCluster, node: int, left_bytes: int) -> None:
    path = ballast(cluster, node)
    size = shutil.disk_usage(path.parent).free - left_bytes
    path.write_bytes(bytes(size))


async def until_refused(fs: AsyncClient, base: str) -> int:
    """Create until it is refused for space; return how many were made."""
    made = 0
    while True:
        try:
            await fs.create(f"{base}/{made}")
        except NoSpace:
            return made
        made += 1


async def until_taken(fs: AsyncClient, path: str) -> None:
    """Create until it is not refused any more."""
    while True:
        try:
            await fs.create(path)
        except NoSpace:
            continue
        return


@pytest.mark.parametrize("who", ["the leader", "two followers"])
def test_full_disks_refuse_growth_and_take_removals(small_disks: LocalCluster, who: str) -> None:
    cluster = small_disks
    config = ClientConfig(deadline_s=2.0)

    async def main() -> None:
        async with connect(cluster.addresses, config=config) as fs:
            base = f"/{who.replace(' ', '-')}"
            await fs.mkdir(base)
            await fs.create(f"{base}/removed")
            leader = cluster.leader()
            full = [leader] if who == "the leader" else cluster.followers()
            for node in full:
                fill(cluster, node, 48 * MIB)
            made = await until_refused(fs, base)
            assert len(await fs.listdir(base)) == made + 1
            await fs.unlink(f"{base}/removed")
            for node in full:
                ballast(cluster, node).unlink()
            await until_taken(fs, f"{base}/after")
            assert not await fs.exists(f"{base}/removed")

    asyncio.run(main())


def test_one_full_follower_costs_nobody_anything(small_disks: LocalCluster) -> None:
    cluster = small_disks

    async def main() -> None:
        async with connect(cluster.addresses) as fs:
            await fs.mkdir("/lone")
            node = cluster.followers()[0]
            fill(cluster, node, 8 * MIB)
            for number in range(300):
                await fs.create(f"/lone/{number}")
            ballast(cluster, node).unlink()
            await asyncio.to_thread(cluster.wait_caught_up, node)
            assert len(await fs.reading_from(node).listdir("/lone")) == 300

    asyncio.run(main())


# ---------------------------------------------------------------- the object store


@asynccontextmanager
async def connected(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    async with connect(cluster.addresses, config=ClientConfig(deadline_s=10.0)) as fs:
        yield fs


def object_files(cluster: LocalCluster) -> list[Path]:
    blocks = Path(cluster.folder.store.bucket) / "blocks"
    return sorted(path for path in blocks.rglob("*") if path.is_file())


def test_a_store_that_loses_or_changes_an_object(rough_cluster: LocalCluster, nokv: Nokv) -> None:
    cluster = ["--cluster", rough_cluster.addresses]

    async def make() -> list[Path]:
        async with connected(rough_cluster) as fs:
            await fs.mkdir("/objects")
            before = set(object_files(rough_cluster))
            await fs.write_bytes("/objects/file", LARGE)
            return sorted(set(object_files(rough_cluster)) - before)

    async def read(error: type[ObjectStoreError], name: str) -> None:
        async with connected(rough_cluster) as fs:
            with pytest.raises(error, match=name):
                await fs.read("/objects/file")
            with pytest.raises(error, match=name):
                await fs.read("/objects/file", len(LARGE) - 10, 10)
            assert await fs.read("/objects/file", 0, 100) == LARGE[:100]

    first, second = asyncio.run(make())
    name = f"{second.parent.name}/{second.name}"
    whole = second.read_bytes()
    second.chmod(0o644)
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    asyncio.run(read(ObjectCorrupt, name))
    shown = nokv("cat", *cluster, "--offset", str(len(LARGE) - 10), "/objects/file")
    assert (shown.code, shown.out) == (1, "")
    assert name in shown.err
    got = nokv("get", *cluster, "/objects/file", rough_cluster.folder.path / "got")
    assert got.code == 1
    assert not list(rough_cluster.folder.path.glob("*got*"))
    second.unlink()
    asyncio.run(read(ObjectMissing, name))
    second.write_bytes(whole)
    assert nokv("cat", *cluster, "--length", "3", "/objects/file").code == 0
    assert first.exists()


def test_a_store_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies fail with a typed error, names go on, and nothing half is visible."""
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = Store("s3", "bucket", server.endpoint, "", REGION)
        with LocalCluster.start(1, store=store) as cluster:

            async def main() -> None:
                async with connected(cluster) as fs:
                    await fs.write_bytes("/file", LARGE)
                    await asyncio.to_thread(server.stop)
                    with pytest.raises(UploadFailed):
                        await fs.write_bytes("/file", LARGE[::-1])
                    with pytest.raises(UploadFailed):
                        await fs.publish("/published", {"a": LARGE, "b": b"small"})
                    assert await fs.listdir("/") == ["file"]
                    await fs.write_bytes("/small", b"in the metadata")
                    assert await fs.read("/small") == b"in the metadata"
                    await asyncio.to_thread(server.start)
                    assert await fs.read("/file") == LARGE
                    await fs.publish("/published", {"a": LARGE, "b": b"small"})

            asyncio.run(main())
