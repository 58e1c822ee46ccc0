"""`python -m bench.gc`: how fast records are freed, alone and beside creates at full speed.

Three nodes, synced. A removed tree of empty files is taken apart: two records a file, its inode and
its name. A dropped snapshot of replaced attributes gives back two a file too: the old inode and its
index row. Ended bodies are two each, the chunk's and the queue's, and an object.

    python -m bench.gc --seconds 3 --repeats 3
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import uvloop

import nokv
from bench import workloads
from bench.report import Row, machine, show
from nokv.client.fs import AsyncClient
from nokv.server.datadir import read_identity
from nokv.testing.cluster import LocalCluster, Settings
from nokv.types.gc import GetWaiting, WaitingReply
from nokv.wire.rpc import GcStatus, RunGc

TITLE = "The collector, three nodes"
RECORDS_EACH = 2
BULK = 1000
POLL_S = 0.02
SYNC = "fdatasync"
_fresh = count()


def settings() -> Settings:
    """Return settings under which what ended may go after a second."""
    return {"worker.grace_ms": 1000, "worker.interval_ms": 200}


async def make_tree(fs: AsyncClient, files: int) -> str:
    """Make a directory of so many empty files; return its path."""
    top = f"/gc-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(top)
    for first in range(0, files, BULK):
        await fs.bulk_create(top, [b"%012d" % n for n in range(first, first + BULK)])
    return top


async def freed(fs: AsyncClient) -> int:
    """Return how many removals background work has made at the leader."""
    reply = await fs.core.router.call_leader(RunGc(run=False), 10.0)
    assert isinstance(reply, GcStatus)
    return reply.reaped


async def waits(fs: AsyncClient) -> int:
    """Return how many jobs wait."""
    reply = await fs.core.read(GetWaiting())
    assert isinstance(reply, WaitingReply)
    return reply.jobs


async def settled(fs: AsyncClient) -> None:
    """Return when no job waits."""
    while await waits(fs):  # noqa: ASYNC110 - the cluster has no such event
        await asyncio.sleep(POLL_S)


async def alone(fs: AsyncClient, files: int) -> float:
    """Return the records a second that the removal of a tree gives back with nothing beside it."""
    top = await make_tree(fs, files)
    before, started = await freed(fs), time.perf_counter()
    await fs.remove_tree(top)
    await settled(fs)
    return RECORDS_EACH * (await freed(fs) - before) / (time.perf_counter() - started)


async def beside(fs: AsyncClient, files: int, seconds: float) -> tuple[float, float]:
    """Return (creates, freed records) a second while both go on; the trees outlast the time."""
    top = await make_tree(fs, files)
    await fs.remove_tree(top)
    before, started = await freed(fs), time.perf_counter()
    creates = await workloads.single_creates(fs, seconds)
    gone = await freed(fs) - before
    elapsed_s = time.perf_counter() - started
    assert await waits(fs), "the tree was gone before the time was over"
    await settled(fs)
    return creates, RECORDS_EACH * gone / elapsed_s


def _token(cluster: LocalCluster) -> str:
    data_dir = cluster.folder.node_path(cluster.folder.members[0].node) / "data"
    return read_identity(data_dir).cluster.worker_token


async def rows(cluster: LocalCluster, seconds: float, repeats: int) -> list[Row]:
    """Measure in turns: creates alone, the collector alone, both."""
    plain = Row("creates, 64 outstanding, nothing to free", "1/s", SYNC, 3)
    free = Row("records freed, nothing beside", "1/s", SYNC, 3)
    both = Row("creates, 64 outstanding, beside the collector", "1/s", SYNC, 3)
    paced = Row("records freed beside them", "1/s", SYNC, 3, goal="20,000")
    ratio = Row("creates beside / alone", "ratio", "", 3, goal="0.8")
    async with nokv.connect(cluster.addresses, token=_token(cluster)) as fs:
        await workloads.single_creates(fs, 1.0)
        for _ in range(repeats):
            plain.values.append(await workloads.single_creates(fs, seconds))
            creates, records = await beside(fs, int(20_000 * (seconds + 1)), seconds)
            both.values.append(creates)
            paced.values.append(records)
            free.values.append(await alone(fs, 50_000))
    ratio.values = [a / b for a, b in zip(both.values, plain.values, strict=True)]
    return [plain, both, ratio, paced, free]


def main() -> None:
    """Run it by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nokv-bench-")))
        cluster = stack.enter_context(
            LocalCluster.start(3, directory=folder / "cluster", settings=settings())
        )
        found = uvloop.run(rows(cluster, options.seconds, options.repeats))
        show(TITLE, machine(folder), found)


if __name__ == "__main__":
    main()
