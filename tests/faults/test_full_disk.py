"""Full disks under a real cluster: each node's data directory is a small file system of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import NO_HELLO

import nokv
from nokv.client import AsyncClient, ClientConfig
from nokv.errors import NoSpace
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests

MIB = 1 << 20
DISK_BYTES = 176 * MIB
RESERVE_BYTES = 64 * MIB
LOW_BYTES = 52 * MIB
"""Below the reserve and above its half."""
EXHAUSTED_BYTES = 14 * MIB
"""Below half of the reserve, and less than the writes of the test need."""
SLACK_BYTES = 2 * MIB
VALUE = os.urandom(65_536)
VALUES = 400
"""So many attributes do not fit what EXHAUSTED_BYTES leaves."""
PATIENCE_S = 30.0

SETTINGS = {
    "disk.reserve_bytes": RESERVE_BYTES,
    "log.segment_bytes": 8 * MIB,
    "log.keep_bytes": 64 * MIB,
    "timing.commit_interval_ms": 100,
    # The test says which node leads while which is full: no starved machine may change that.
    "timing.election_min_ms": 3000,
    "timing.election_max_ms": 4000,
}


def why_not() -> str:
    return "" if os.geteuid() == 0 and os.uname().sysname == "Linux" else "mounts need root"


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "usable"),
    pytest.mark.allow_logs("disk space is", NO_HELLO),
]


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what a process brings about; poll, because nobody tells."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


class Disks:
    """The nodes' file systems, and files of ballast on them."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def _ballast(self, node: int) -> Path:
        return self.cluster.folder.node_path(node) / "data" / "ballast"

    def free_bytes(self, node: int) -> int:
        """Return what the node says."""
        status = self.cluster.status(node)
        return int(status["free_bytes"]) if status is not None else 1 << 60

    def fill(self, node: int, left_bytes: int) -> None:
        """Leave so much by the node's own count, which trails the disk by its period."""
        end = time.monotonic() + PATIENCE_S
        while (free := self.free_bytes(node)) > left_bytes + SLACK_BYTES:
            assert time.monotonic() < end, f"node {node} is not to be filled"
            # The count has log that may be dropped in it: that takes the node a moment to do.
            disk = os.statvfs(self._ballast(node).parent)
            more = min(free - left_bytes, disk.f_bavail * disk.f_frsize - SLACK_BYTES)
            if more < MIB:
                time.sleep(0.02)
                continue
            with self._ballast(node).open("ab") as file:
                os.posix_fallocate(file.fileno(), file.tell(), more)
            # Nearly all of it: the node may look in the middle of the allocation.
            known = free - more + min(more // 2, 8 * MIB)
            until(lambda: self.free_bytes(node) < known, f"less room at node {node}")  # noqa: B023

    def clear(self, node: int) -> None:
        """Take the ballast away and wait until the node has noticed."""
        self._ballast(node).unlink()
        until(lambda: self.free_bytes(node) > RESERVE_BYTES, f"room at node {node}")


@pytest.fixture
def disks(tmp_path: Path, check_log: Callable[[Path], None]) -> Iterator[Disks]:
    folders = [tmp_path / f"node-{node}" / "data" for node in (1, 2, 3)]
    for folder in folders:
        folder.mkdir(parents=True)
    mounted: list[Path] = []
    try:
        for folder in folders:
            size = f"size={DISK_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "nokv", folder], check=True)
            mounted.append(folder)
        with LocalCluster.start(directory=tmp_path, settings=SETTINGS) as cluster:
            for node in cluster.nodes:
                check_log(cluster.folder.log_path(node))
            yield Disks(cluster)
    finally:
        for folder in mounted:
            subprocess.run(["umount", folder], check=True)


async def refuses(fs: AsyncClient, name: str) -> None:
    """Growth is refused once the leader has heard of it, and nothing is left of the refused."""
    end = time.monotonic() + PATIENCE_S
    number = 0
    refusal: NoSpace | None = None
    while time.monotonic() < end:
        number += 1
        try:
            await fs.create(f"/{name}-{number}")
        except NoSpace as caught:
            refusal = caught
            break
        await asyncio.sleep(0.05)
    assert refusal is not None, "nothing was refused"
    assert "free disk space" in refusal.hint
    assert not await fs.exists(f"/{name}-{number}")


async def takes(fs: AsyncClient, path: str) -> None:
    """Growth works again, without anybody's help, once the leader has heard of it."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            await fs.create(path)
        except NoSpace:
            assert time.monotonic() < end, "it never recovers"
            await asyncio.sleep(0.05)
        else:
            return


def test_full_disks_at_one_node_and_at_a_quorum(disks: Disks) -> None:
    asyncio.run(scenario(disks))


async def scenario(disks: Disks) -> None:
    cluster = disks.cluster
    config = ClientConfig(deadline_s=20.0)
    async with nokv.connect(cluster.addresses, config=config) as fs:
        for name in ("/a", "/b", "/c", "/values"):
            await fs.create(name)
        await one_follower(disks, fs)
        leader = cluster.leader()
        followers = [node for node in cluster.nodes if node != leader]
        for name, full in (("/a", [leader]), ("/b", followers)):
            for node in full:
                await asyncio.to_thread(disks.fill, node, LOW_BYTES)
            await refuses(fs, name[1:])
            # Removals go on, of a client too that comes now and needs a session for it.
            async with nokv.connect(cluster.addresses, config=config) as other:
                await other.unlink(name)
            assert not await fs.exists(name)
            for node in full:
                await asyncio.to_thread(disks.clear, node)
            await takes(fs, name)
        # Below half of the reserve nothing at all is taken; reads go on.
        await asyncio.to_thread(disks.fill, cluster.leader(), EXHAUSTED_BYTES)
        await refuses(fs, "never")
        with pytest.raises(NoSpace):
            await fs.unlink("/c")
        assert await fs.exists("/c")
        await asyncio.to_thread(disks.clear, cluster.leader())
        await takes(fs, "/d")
        await fs.unlink("/c")
    assert all(cluster.is_running(node) for node in cluster.nodes)
    await the_same_everywhere(cluster)


async def one_follower(disks: Disks, fs: AsyncClient) -> None:
    """A follower that is full alone stops storing, and lives; the others go on without it."""
    cluster = disks.cluster
    victim = cluster.followers()[0]
    await asyncio.to_thread(disks.fill, victim, EXHAUSTED_BYTES)
    pid = (cluster.status(victim) or {})["pid"]
    await asyncio.gather(*(fs.setxattr("/values", f"user.{i}", VALUE) for i in range(VALUES)))
    behind, leads = cluster.status(victim), cluster.status(cluster.leader())
    assert behind is not None
    assert leads is not None
    assert behind["pid"] == pid
    assert behind["applied_index"] < leads["commit_index"]
    await asyncio.to_thread(disks.clear, victim)
    await asyncio.to_thread(cluster.wait_caught_up, victim)


async def the_same_everywhere(cluster: LocalCluster) -> None:
    addresses = {member.node: member.rpc_address for member in cluster.members}
    digests = await compare_digests(addresses[cluster.leader()], addresses)
    assert len({reply.digest for reply in digests.values()}) == 1
