"""Real nodes that fell behind their peers' logs catch up by themselves, by a state image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nokv.client import AsyncClient, connect
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests

pytestmark = pytest.mark.cluster

MIB = 1 << 20
DEADLINE_S = 90.0

SETTINGS: dict[str, str | int | bool] = {
    "log.segment_bytes": 8 * MIB,
    "log.keep_bytes": 0,
    "timing.commit_interval_ms": 100,
    "images.bytes_per_second": 8 * MIB,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(settings=SETTINGS) as made:
        yield made


async def until(what: Callable[[], Any]) -> None:
    """Wait, without a bound of its own on how long it may take but the last one."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not await asyncio.to_thread(what):
        if time.monotonic() > deadline_s:
            pytest.fail("it did not come to be")
        await asyncio.sleep(0.02)


def status(cluster: LocalCluster, node: int) -> dict[str, Any]:
    return cluster.status(node) or {}


def first_index(cluster: LocalCluster, node: int) -> int:
    return int(status(cluster, node).get("first_index", 0))


def applied(cluster: LocalCluster, node: int) -> int:
    return int(status(cluster, node).get("applied_index", 0))


async def fill(fs: AsyncClient, folder: str, files: int) -> None:
    """Make files whose bodies of 4 KiB lie in the state."""
    await fs.mkdir(folder)
    for start in range(0, files, 64):
        names = range(start, min(start + 64, files))
        await asyncio.gather(
            *(fs.write_bytes(f"{folder}/{name}", b"%04d" % name * 1024) for name in names)
        )


@asynccontextmanager
async def load(fs: AsyncClient, folder: str) -> AsyncIterator[list[int]]:
    """Write small files until the end; yields the list of those that were acknowledged."""
    await fs.mkdir(folder)
    written: list[int] = []

    async def write() -> None:
        while True:
            await fs.write_bytes(f"{folder}/{len(written)}", b"x")
            written.append(len(written))

    task = asyncio.create_task(write())
    try:
        yield written
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def drop_log(cluster: LocalCluster, fs: AsyncClient, behind: int, folder: str) -> None:
    """Write until every node that is left has dropped what a stopped node has not got."""
    leader = await asyncio.to_thread(cluster.leader)
    start = status(cluster, leader)["last_index"]
    rest = [node for node in cluster.nodes if node != behind]
    for round_ in range(12):
        await fill(fs, f"{folder}-{round_}", 1500)
        await until(lambda: applied(cluster, rest[0]) == applied(cluster, rest[1]))
        if min(first_index(cluster, node) for node in rest) > start:
            return
    pytest.fail("the log was not dropped")


async def check_equal(cluster: LocalCluster) -> None:
    addresses = {member.node: member.rpc_address for member in cluster.members}
    leader = await asyncio.to_thread(cluster.leader)
    replies = await compare_digests(addresses[leader], addresses)
    assert len(replies) == 3
    assert len({reply.digest for reply in replies.values()}) == 1


def installed(cluster: LocalCluster, node: int) -> int:
    return int(status(cluster, node).get("raft", {}).get("images_installed", 0))


def receiving(cluster: LocalCluster, node: int) -> int:
    """Bytes that a node has received of the image that is on its way to it."""
    images = status(cluster, node).get("images", [])
    return max((int(i["done_bytes"]) for i in images if not i["outgoing"]), default=0)


def caught_up(cluster: LocalCluster, node: int, index: int) -> bool:
    return applied(cluster, node) >= index and cluster.is_ready(node)


def test_a_node_that_was_away_too_long_catches_up_under_load(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with connect(cluster.addresses) as fs:
            node = cluster.followers()[0]
            await asyncio.to_thread(cluster.stop, node)
            await drop_log(cluster, fs, node, "/away")
            async with load(fs, "/load") as written:
                cluster.start_node(node)
                await until(lambda: installed(cluster, node))
                before = len(written)
                index = status(cluster, cluster.leader())["last_index"]
                await until(lambda: caught_up(cluster, node, index))
                assert before > 0
            one = fs.reading_from(node)
            assert len(await one.listdir("/away-0")) == 1500
            assert await one.read("/away-0/7") == b"0007" * 1024
            assert len(await one.listdir("/load")) >= len(written)
            await check_equal(cluster)

    asyncio.run(main())


def test_receiver_and_sender_are_killed_in_the_middle(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with connect(cluster.addresses) as fs:
            node = cluster.followers()[0]
            await asyncio.to_thread(cluster.stop, node)
            await drop_log(cluster, fs, node, "/killed")
            cluster.start_node(node)
            await until(lambda: receiving(cluster, node) > MIB)
            cluster.kill(node)
            cluster.start_node(node)
            await until(lambda: receiving(cluster, node) > MIB)
            sender = await asyncio.to_thread(cluster.leader)
            cluster.kill(sender)
            # The rest has no quorum without the lagging node: it is the image that makes one.
            await until(lambda: installed(cluster, node))
            await asyncio.to_thread(cluster.restart, sender)
            await fs.mkdir("/afterwards")
            index = status(cluster, await asyncio.to_thread(cluster.leader))["last_index"]
            await until(lambda: all(caught_up(cluster, each, index) for each in cluster.nodes))
            assert len(await fs.reading_from(node).listdir("/killed-0")) == 1500
            await check_equal(cluster)

    asyncio.run(main())
