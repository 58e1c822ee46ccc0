"""`python -m bench watch`: events to consumers, from their commit on, and what idle watches cost.

The writer is a process of its own, so that neither its work nor the consumer's delays the other's
clock; both read CLOCK_MONOTONIC. A commit is counted from when its answer was back at the writer,
which is after the commit, or from when the command was sent, which is long before it: the truth
lies between the two.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence

import uvloop

import nokv
from bench.report import Row
from nokv.testing.cluster import LocalCluster
from nokv.types.commands import Atomic, Create
from nokv.types.values import At, Caller
from nokv.types.watch import WATCH_WINDOW_BYTES_MIN
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import PROTOCOL, Hello, OpenWatch

REPLAYED = 200_000
ATOMIC = 256
IDLE = 1000

# ---------------------------------------------------------------- the writer


async def _write(addresses: str, directory: str, seconds: float, outstanding: int, size: int,
                 rate: float) -> None:  # fmt: skip
    """Create for a time; print [sent, answered, versions] of each command, in seconds."""
    commands: list[tuple[float, float, int, int]] = []
    async with nokv.connect(addresses) as fs:
        parent = (await fs.mkdir(directory)).inode
        begun = time.monotonic()
        end = begun + seconds
        number = 0

        async def loop() -> None:
            nonlocal number
            while time.monotonic() < end:
                due = begun + number * size / rate if rate else 0.0
                first, number = number, number + 1
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                sent = time.monotonic()
                names = [b"%08d-%04d" % (first, n) for n in range(size)]
                if size == 1:
                    version = (await fs.create(f"{directory}/{names[0].decode()}")).version
                else:
                    creates = tuple(Create(At(0, parent), name, 0o644) for name in names)
                    version = (await fs.core.propose(Atomic(creates), (), 30.0)).version
                commands.append((sent, time.monotonic(), version - size + 1, version))

        await asyncio.gather(*(loop() for _ in range(outstanding)))
    json.dump(commands, sys.stdout)


async def _writer(cluster: LocalCluster, directory: str, seconds: float, outstanding: int,
                  size: int, rate: float = 0.0) -> asyncio.subprocess.Process:  # fmt: skip
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.watch", cluster.addresses, directory, str(seconds),
        str(outstanding), str(size), str(rate), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


# ---------------------------------------------------------------- the consumer


async def _follow(
    cluster: LocalCluster, seconds: float, outstanding: int, size: int, rate: float = 0.0
) -> tuple[float, list[float], list[float]]:
    """Watch a writer; return events a second, ms since the answer, and ms since the sending."""
    arrived: dict[int, float] = {}
    directory = f"/watch-{time.monotonic_ns()}"
    async with nokv.connect(cluster.addresses) as fs, fs.watch("/", types=["create"]) as watch:
        writer = await _writer(cluster, directory, seconds, outstanding, size, rate)
        done = asyncio.create_task(writer.communicate())
        while True:
            changes = await watch.take(4096, 0.2)
            now = time.monotonic()
            for change in changes:
                arrived[change.cursor] = now
            if done.done() and not changes:
                break
        commands = json.loads((await done)[0])
    answered, sent = [], []
    for began, ended, first, last in commands:
        for version in range(first, last + 1):
            answered.append(max(0.0, (arrived[version] - ended) * 1000))
            sent.append((arrived[version] - began) * 1000)
    took = max(arrived.values()) - min(began for began, _, _, _ in commands)
    return len(answered) / took, answered, sent


async def _replay(cluster: LocalCluster, count: int) -> float:
    """Return events a second of a watch that starts in the past."""
    async with nokv.connect(cluster.addresses) as fs:
        watch = fs.watch("/", since=0)
        seen = 0
        begun = time.perf_counter()
        while seen < count:
            seen += len(await watch.take(4096))
        took = time.perf_counter() - begun
        watch.close()
        return seen / took


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share does not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def rates(cluster: LocalCluster, seconds: float, repeats: int) -> list[Row]:
    """Return how fast and how soon one consumer is told."""
    nodes = len(cluster.nodes)
    one = Row("watch beside 64 outstanding creates: delivered", "1/s", "", nodes)
    one_95 = Row("  after the answer, p95", "ms", "", nodes, goal="20")
    many = Row(f"watch beside atomic creates of {ATOMIC}: delivered", "1/s", "", nodes)
    many_95 = Row("  after the answer, p95", "ms", "", nodes, goal="20")
    paced = Row("watch beside 10,000 creates/s, atomic: delivered", "1/s", "", nodes)
    paced_95 = Row("  after the sending, p95", "ms", "", nodes)
    replay = Row("watch from an old cursor: delivered", "1/s", "", nodes, goal="50,000")
    for _ in range(repeats):
        for row, late, how in (
            (one, one_95, (64, 1, 0.0)),
            (many, many_95, (4, ATOMIC, 0.0)),
            (paced, paced_95, (8, 100, 10_000.0)),
        ):
            rate, answered, sent = await _follow(cluster, seconds, *how)
            row.values.append(rate)
            late.values.append(percentile(sent if late is paced_95 else answered, 0.95))
            row.why = (
                f"after the answer: p50 {statistics.median(answered):.1f}, p99"
                f" {percentile(answered, 0.99):.1f} ms; after the sending: p50"
                f" {statistics.median(sent):.1f}, p95 {percentile(sent, 0.95):.1f} ms"
            )
    async with nokv.connect(cluster.addresses) as fs:
        parent = (await fs.mkdir("/replayed")).inode
        for first in range(0, REPLAYED, 4096):
            names = (b"%08d" % n for n in range(first, first + 4096))
            creates = tuple(Create(At(0, parent), name, 0o644) for name in names)
            await fs.core.propose(Atomic(creates), (), 30.0)
    for _ in range(repeats):
        replay.values.append(await _replay(cluster, REPLAYED))
    return [one, one_95, many, many_95, paced, paced_95, replay]


# ---------------------------------------------------------------- idle watches


def _shard_bytes(cluster: LocalCluster, node: int) -> int:
    status = cluster.status(node)
    assert status is not None
    with open(f"/proc/{status['pid']}/smaps_rollup", encoding="ascii") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    message = "the kernel does not say"
    raise AssertionError(message)


async def idle_watches(cluster: LocalCluster) -> Row:
    """Return what a thousand watches, each on a connection of its own, add to a node."""
    row = Row(f"{IDLE} idle watches, a connection each", "MiB", "", len(cluster.nodes), goal="100")
    address = cluster.addresses.split(",")[0]
    async with nokv.connect(cluster.addresses) as fs:
        roots = [(await fs.mkdir(f"/idle-{n}")).inode for n in range(IDLE)]
    before = await asyncio.to_thread(_shard_bytes, cluster, cluster.nodes[0])
    connections = []
    bookmarks = asyncio.Semaphore(0)

    def take(body: object, size_bytes: int) -> None:
        del body, size_bytes
        bookmarks.release()

    for root in roots:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        body = OpenWatch(
            Caller(), At(0, root), WATCH_WINDOW_BYTES_MIN, recursive=True, bookmark_ms=1000
        )
        await connection.open_stream(body, take, timeout_s=10.0)
        connections.append(connection)
    for _ in range(2 * IDLE):
        await bookmarks.acquire()
    after = await asyncio.to_thread(_shard_bytes, cluster, cluster.nodes[0])
    row.values.append((after - before) / 2**20)
    row.why = "growth of the shard process's PSS, after two bookmarks for each"
    for connection in connections:
        await connection.close()
    return row


def settings() -> dict[str, str | int | bool]:
    """Return what the measured nodes need beside their defaults."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    return {"rpc.connections_max": 4 * IDLE}


if __name__ == "__main__":
    _addresses, _directory, _seconds, _outstanding, _size, _rate = sys.argv[1:]
    uvloop.run(
        _write(_addresses, _directory, float(_seconds), int(_outstanding), int(_size), float(_rate))
    )
