"""A running cluster goes from one build to the next, whose state format is another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cluster.builds import make_next_build
from tests.fixtures import data_directory

from nokv.client import connect
from nokv.kv.lmdb_store import LmdbKV
from nokv.server.datadir import state_path
from nokv.state.families import Family
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests
from nokv.testing.folder import NodePorts, adopt
from nokv.testing.ports import free_ports
from nokv.testing.writers import Writer, check_writers, writing

pytestmark = pytest.mark.cluster

WRITERS = 3
DEADLINE_S = 60.0
FAST = {"worker.interval_ms": 200}


@asynccontextmanager
async def writers_of(cluster: LocalCluster, folder: Path) -> AsyncIterator[list[Writer]]:
    """Writers whose every attempt must succeed, judged at the end."""
    async with connect(cluster.addresses) as fs:
        cursor = (await fs.mkdir("/upgrade")).version
        async with writing(cluster.addresses, "/upgrade/writers", folder, WRITERS) as writers:
            yield writers
        verdict = await check_writers(fs, writers, cursor)
        assert verdict.problems() == ""
        assert verdict.done > 50


async def more(writers: list[Writer]) -> None:
    """Wait until each writer has had two further writes acknowledged."""
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(one.wait_acknowledged(one.acknowledged + 2) for one in writers))


async def in_thread(call: Callable[..., Any], *arguments: object) -> Any:
    return await asyncio.to_thread(call, *arguments)


def formats(cluster: LocalCluster) -> list[tuple[int, int]]:
    """(state format in force, newest that the build applies) of every node."""
    found = [cluster.status(node) for node in cluster.nodes]
    return [(one["format"], one["format_max"]) for one in found if one is not None]


async def equal_digests(cluster: LocalCluster) -> None:
    addresses = {member.node: member.rpc_address for member in cluster.members}
    leader = await in_thread(cluster.leader)
    replies = await compare_digests(addresses[leader], addresses)
    assert len(replies) == len(addresses)
    assert len({reply.digest for reply in replies.values()}) == 1


def inode_fields(data_dir: Path) -> list[int]:
    """How many fields each stored inode has, by the bytes."""
    kv = LmdbKV(state_path(data_dir))
    try:
        rows = kv.scan(Family.INODE, b"", b"\xff" * 32)
        return [len(msgspec.msgpack.decode(value[8:])) for _, value in rows]
    finally:
        kv.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


async def a_new_member_of_the_old_build(cluster: LocalCluster) -> None:
    """It could not apply what is in the log: whoever it connects to says so."""
    ports = NodePorts(4, *free_ports(3, random.Random()))
    incarnation = cluster.folder.add(ports, FAST)
    await in_thread(cluster.start_node, 4)
    async with cluster.admin() as admin:
        await admin.add(4, incarnation, ports.peer_address, ports.rpc_address)
        refusal = "upgrade node 4 to the build of the other members"
        await in_thread(until, lambda: refusal in cluster.folder.log_tail(4))
        await admin.remove(4)
    cluster.kill(4)
    cluster.folder.drop(4)


def test_a_rolling_upgrade_to_the_next_state_format(tmp_path: Path) -> None:
    following = make_next_build(tmp_path / "next")

    async def upgrade(cluster: LocalCluster) -> None:
        async with writers_of(cluster, tmp_path / "journals") as writers:
            await more(writers)
            for count, node in enumerate(cluster.nodes):
                assert formats(cluster) == [(1, 2)] * count + [(1, 1)] * (3 - count)
                assert await in_thread(cluster.stop, node) == 0
                await more(writers)
                await in_thread(cluster.restart, node, 30.0, following)
                await more(writers)
                if count < 2:
                    await equal_digests(cluster)
            await in_thread(until, lambda: formats(cluster) == [(2, 2)] * 3)
            await more(writers)
        await equal_digests(cluster)

    with LocalCluster.start(settings=FAST) as cluster:
        asyncio.run(upgrade(cluster))
        asyncio.run(a_new_member_of_the_old_build(cluster))
        node = cluster.followers()[0]
        data_dir = cluster.folder.node_path(node) / "data"
        assert cluster.stop(node) == 0
        counts = inode_fields(data_dir)
        older, newer = min(counts), max(counts)
        assert newer == older + 1, "records of both formats lie side by side"
        assert set(counts) == {older, newer}

        cluster.start_node(node)
        assert cluster.wait_exit(node) == 2, "a build that is too old refuses the state"
        tail = cluster.folder.log_tail(node)
        assert "the state is of state format 2, and this build knows formats up to 1" in tail
        assert "upgrade this node" in tail
        cluster.restart(node, environ=following)


@pytest.mark.allow_logs("disk.reserve_bytes = 0")
@pytest.mark.parametrize("kept", data_directory.kept(), ids=lambda path: path.name)
def test_a_node_serves_from_a_data_directory_of_every_format(kept: Path, tmp_path: Path) -> None:
    """The store of the directory is behind its log, whose tail has to be applied again."""
    home = tmp_path / "cluster"
    ports = NodePorts(1, *free_ports(3, random.Random()))
    folder = adopt(home, ports, {"worker.enabled": False, "disk.reserve_bytes": 0})
    text = data_directory.unpack(kept, folder.node_path(1))

    async def read() -> dict[str, Any]:
        async with connect(cluster.addresses) as fs:
            found = await data_directory.listing(fs)
            await fs.mkdir("/and-goes-on")
            return found

    with LocalCluster(folder) as cluster:
        cluster.start_node(1)
        cluster.wait_ready()
        found = asyncio.run(read())
        status = cluster.status(1)
        assert status is not None
        assert status["applied_index"] > text.pop("applied_index")
    assert found["entries"] == text["entries"]
    assert found["events"][: len(text["events"])] == text["events"]
