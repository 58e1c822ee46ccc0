"""How much memory a state image costs a real leader that sends it while the group goes on writing.

    python -m tests.cluster.image_transfer --mib 2048

Three nodes; one is stopped, the others fill their state (extended attributes of 60 KiB) and drop
the log that it lacks; it is started again and catches up by an image. What counts is memory that
the system cannot take back (`RssAnon` of proc_pid_status(5)), of all processes of a node, looked at
ten times a second; the leader's must stay below `SENDER_MAX_BYTES` above what it was before.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from tests.cluster.image_memory import MIB, SENDER_MAX_BYTES
from tests.cluster.test_images import check_equal, fill, first_index, installed, load, status

from nokv.client import AsyncClient, connect
from nokv.testing.cluster import LocalCluster

VALUE_BYTES = 60 * 1024
LOOK_S = 0.1
SETTINGS: dict[str, str | int | bool] = {"log.segment_bytes": 8 * MIB, "log.keep_bytes": 0}


def anonymous_bytes(group: int) -> int:
    """Return the memory of a process group's processes that is backed by no file."""
    total = 0
    for path in Path("/proc").iterdir():
        try:
            if not path.name.isdigit() or os.getpgid(int(path.name)) != group:
                continue
            lines = (path / "status").read_text().splitlines()
        except (ProcessLookupError, FileNotFoundError):
            continue  # it ended meanwhile
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
    return total


async def fill_state(fs: AsyncClient, size_bytes: int) -> None:
    """Store about so many bytes of extended attributes."""
    await fs.mkdir("/big")
    count = size_bytes // VALUE_BYTES
    for first in range(0, count, 64):
        names = range(first, min(first + 64, count))
        await fs.bulk_create("/big", [b"%d" % name for name in names])
        await asyncio.gather(
            *(fs.setxattr(f"/big/{n}", "user.x", os.urandom(VALUE_BYTES)) for n in names)
        )


async def transfer(cluster: LocalCluster, size_bytes: int) -> bool:
    """Run it, print the figures and return whether the leader's memory stayed flat."""
    async with connect(cluster.addresses) as fs:
        leader = await asyncio.to_thread(cluster.leader)
        node = cluster.followers()[0]
        await asyncio.to_thread(cluster.stop, node)
        last = status(cluster, leader)["last_index"]
        started_s = time.monotonic()
        await fill_state(fs, size_bytes)
        print(f"{size_bytes / MIB:.0f} MiB written in {time.monotonic() - started_s:.0f} s")
        rest = [one for one in cluster.nodes if one != node]
        while min([await asyncio.to_thread(first_index, cluster, one) for one in rest]) <= last:
            await fill(fs, f"/more-{time.monotonic_ns()}", 500)
        group = os.getpgid(status(cluster, leader)["pid"])
        async with load(fs, "/load") as written:
            before = highest = anonymous_bytes(group)
            started_s, acknowledged = time.monotonic(), len(written)
            cluster.start_node(node)
            while not await asyncio.to_thread(installed, cluster, node):
                highest = max(highest, await asyncio.to_thread(anonymous_bytes, group))
                await asyncio.sleep(LOOK_S)
            took_s = time.monotonic() - started_s
            acknowledged = len(written) - acknowledged
        if await asyncio.to_thread(cluster.leader) != leader:
            sys.exit("another node leads now: no figure of one sender")
        await asyncio.to_thread(cluster.wait_caught_up, node, 120.0)
    await check_equal(cluster)
    print(f"leader: {before / MIB:.0f} MiB before, {(highest - before) / MIB:.1f} MiB extra")
    print(f"installed after {took_s:.0f} s; {acknowledged} writes acknowledged meanwhile")
    return highest - before <= SENDER_MAX_BYTES


def main() -> None:
    """Run it on a cluster of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=2048)
    arguments = parser.parse_args()
    with LocalCluster.start(settings=SETTINGS) as cluster:
        if not asyncio.run(transfer(cluster, arguments.mib * MIB)):
            sys.exit("the leader's memory grew too much")


if __name__ == "__main__":
    main()
