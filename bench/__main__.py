"""`python -m bench`: the tables of the README, and JSON in bench/results.

    python -m bench                      everything, three interleaved repeats
    python -m bench creates stat         only these groups: creates serial stat bodies size failover
                                         idle replication views diff watch gc
    python -m bench --repeats 1 --seconds 1

Nodes, client and etcd share this machine. *Unsynced* means that the nodes' data lie on tmpfs, where
a sync costs nothing; everything else is the same program. Rows of one table are measured in turns,
repeat after repeat, and the median is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import grpc
import grpc.aio
import obstore
import obstore.store
import uvloop

import nokv
from bench import branches, diff, gc, watch, workloads
from bench import views as in_apply
from bench.etcd import PUT, Etcd, encode_put
from bench.replication import replication
from bench.report import Row, machine, save, show
from nokv.client.fs import AsyncClient
from nokv.objects.local import LocalStore
from nokv.testing.cluster import LocalCluster, Settings
from nokv.testing.folder import Store
from nokv.testing.s3server import REGION, s3_server

SHM = Path("/dev/shm")
READ_FILES = 2000
NO_SYNC = "no: tmpfs"
SYNC = "fdatasync"
Workload = Callable[[AsyncClient, float], Awaitable[float]]


class Bench:
    """One run: where data lie, how long and how often each row is measured."""

    def __init__(self, directory: Path, seconds: float, repeats: int) -> None:
        self.directory = directory
        self.seconds = seconds
        self.repeats = repeats
        self.facts = machine(directory)

    def cluster(
        self,
        stack: ExitStack,
        nodes: int,
        *,
        synced: bool = True,
        store: Store | None = None,
        settings: Settings | None = None,
    ) -> LocalCluster:
        """Start a cluster on the disk, or on tmpfs."""
        base = self.directory if synced else SHM
        path = tempfile.mkdtemp(prefix="nokv-bench-", dir=base)
        stack.callback(_remove, path)
        return stack.enter_context(
            LocalCluster.start(
                nodes, directory=Path(path) / "cluster", store=store, settings=settings
            )
        )

    def show(self, name: str, title: str, rows: list[Row]) -> None:
        """Print a table and save its JSON."""
        show(title, self.facts, rows)
        save(name, self.facts, rows)


def _remove(path: str) -> None:
    subprocess.run(["rm", "-rf", path], check=False)


def _shard_pids(cluster: LocalCluster) -> list[int]:
    pids = []
    for node in cluster.nodes:
        status = cluster.status(node)
        if status is not None and "pid" in status:
            pids.append(int(status["pid"]))
    return pids


async def count_syncs(cluster: LocalCluster, fs: AsyncClient, workload: Workload) -> str:
    """Return syncs and calls of a short run of its own under strace, which slows the nodes down."""
    command = ["strace", "-f", "-q", "-c", "-e", "trace=fdatasync,fsync,msync"]
    for pid in _shard_pids(cluster):
        command += ["-p", str(pid)]
    if "-p" not in command:
        return "no pid"
    with tempfile.NamedTemporaryFile("r") as out:
        try:
            process = await asyncio.create_subprocess_exec(*command, "-o", out.name)
        except FileNotFoundError:
            return "no strace"
        await asyncio.sleep(0.5)
        await workload(fs, 1.0)
        process.terminate()
        await process.wait()
        return _count_calls(out.read())


def _count_calls(table: str) -> str:
    """Return the calls of strace's summary: % time, seconds, usecs/call, calls, [errors], name."""
    names = {"fdatasync", "fsync", "msync"}
    rows = [line.split() for line in table.splitlines()]
    found = [f"{row[3]} {row[-1]}" for row in rows if len(row) >= 5 and row[-1] in names]
    return ", ".join(found) or "none"


# ---------------------------------------------------------------- creates


async def creates(bench: Bench) -> None:
    """Bulk and single creates on three kinds of cluster."""
    kinds = [("1 node", 1, False), ("1 node", 1, True), ("3 nodes", 3, True)]
    table: list[tuple[str, Workload, str, dict[tuple[int, bool], str]]] = [
        (
            "bulk creates, one directory",
            workloads.bulk_sequential,
            "63,500 (unsynced, 1 process)",
            {(1, False): "127,000", (1, True): "95,000", (3, True): "60,000"},
        ),
        (
            "bulk creates, 32 directories",
            workloads.bulk_random,
            "54,800 (unsynced, 64 directories)",
            {(1, False): "90,000", (1, True): "70,000", (3, True): "45,000"},
        ),
        (
            "creates, 64 outstanding",
            workloads.single_creates,
            "19,700 (unsynced)",
            {(1, True): "20,000", (3, True): "12,000"},
        ),
    ]
    rows: list[Row] = []
    for label, nodes, synced in kinds:
        group = [
            (
                Row(
                    f"{name}, {label}",
                    "1/s",
                    SYNC if synced else NO_SYNC,
                    nodes,
                    goal=goals.get((nodes, synced), ""),
                    peer=peer,
                ),
                workload,
            )
            for name, workload, peer, goals in table
        ]
        with ExitStack() as stack:
            cluster = bench.cluster(stack, nodes, synced=synced)
            async with nokv.connect(cluster.addresses) as fs:
                for _ in range(bench.repeats):
                    for row, workload in group:
                        row.values.append(await workload(fs, bench.seconds))
                if synced:
                    for row, workload in group:
                        row.syncs = await count_syncs(cluster, fs, workload)
        rows += [row for row, _ in group]
    bench.show("creates", "Creates", rows)


# ---------------------------------------------------------------- one commit at a time


async def serial(bench: Bench) -> None:
    """Latency of one durable commit, three nodes, beside three nodes of etcd."""
    ours = Row("create, serial", "ms p50", SYNC, 3)
    one = Row("create, serial, 1 node", "ms p50", SYNC, 1)
    theirs = Row("etcd put, serial", "ms p50", "fdatasync", 3, why=Etcd.missing())
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3)
        single = bench.cluster(stack, 1)
        etcd = None
        if not theirs.why:
            path = tempfile.mkdtemp(prefix="etcd-", dir=bench.directory)
            stack.callback(_remove, path)
            etcd = stack.enter_context(Etcd(Path(path)))
        async with AsyncExitStack() as clients:
            fs = await clients.enter_async_context(nokv.connect(cluster.addresses))
            alone = await clients.enter_async_context(nokv.connect(single.addresses))
            for _ in range(bench.repeats):
                ours.values.append(await workloads.serial_commit_ms(fs, bench.seconds))
                one.values.append(await workloads.serial_commit_ms(alone, bench.seconds))
                if etcd is not None:
                    theirs.values.append(await _etcd_serial(etcd, bench.seconds))
            ours.syncs = await count_syncs(cluster, fs, workloads.serial_commit_ms)
    bench.show("serial", "One durable commit at a time", [ours, one, theirs])


async def _etcd_serial(etcd: Etcd, seconds: float) -> float:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{etcd.client_port}") as channel:
        put = channel.unary_unary(PUT)
        return await workloads.serial_ms(
            seconds, lambda n: put(encode_put(b"/serial/%012d" % n, bytes(100)))
        )


# ---------------------------------------------------------------- stat


async def stat(bench: Bench) -> None:
    """Stat by path, linearizable, one node and three."""
    rows = [
        Row("stat by path, serial", "1/s", "-", 1, goal="15,000", peer="9,300"),
        Row("stat by path, 16 outstanding", "1/s", "-", 1, goal="30,000", peer="20,200"),
        Row("stat by path, serial, 3 nodes", "1/s", "-", 3),
        Row("stat by path, 16 outstanding, 3 nodes", "1/s", "-", 3),
    ]
    for nodes, (alone, many) in ((1, rows[:2]), (3, rows[2:])):
        with ExitStack() as stack:
            cluster = bench.cluster(stack, nodes)
            async with nokv.connect(cluster.addresses) as fs:
                directory = await workloads.make_stat_files(fs)
                for _ in range(bench.repeats):
                    alone.values.append(await workloads.stats(fs, directory, 1, bench.seconds))
                    many.values.append(await workloads.stats(fs, directory, 16, bench.seconds))
    bench.show("stat", "Stat", rows)


# ---------------------------------------------------------------- bodies


async def bodies(bench: Bench) -> None:
    """Publishes and cold reads as a share of what the raw client does in the same run."""
    with ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="raw-", dir=bench.directory))
        stack.callback(_remove, str(path))
        local = LocalStore(path)
        await _bodies(bench, "a local directory (fsync)", None, local.put, _get_of(local))
        await local.close()
    with ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="s3-", dir=bench.directory))
        stack.callback(_remove, str(path))
        server = stack.enter_context(s3_server(path))
        store = Store("s3", "bench", server.endpoint, region=REGION)
        (path / "raw").mkdir()
        raw = obstore.store.S3Store(
            "raw",
            endpoint=server.endpoint,
            region=REGION,
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

        async def put(name: str, data: bytes) -> None:
            await obstore.put_async(raw, name, data, use_multipart=False)

        async def get(name: str) -> int:
            return len(bytes(await (await obstore.get_async(raw, name)).bytes_async()))

        await _bodies(bench, "S3: rclone on loopback, raw is obstore", store, put, get)


def _get_of(store: LocalStore) -> Callable[[str], Awaitable[int]]:
    async def get(name: str) -> int:
        return len(await store.get(name, 0, workloads.READ_BYTES))

    return get


async def _bodies(
    bench: Bench,
    title: str,
    store: Store | None,
    raw_put: Callable[[str, bytes], Awaitable[object]],
    raw_get: Callable[[str], Awaitable[int]],
) -> None:
    put = Row("raw PUT of 1 MiB, concurrency 16", "1/s", "the store's", 0)
    publish = Row("publish 1 MiB, concurrency 16", "1/s", "store, then fdatasync", 1)
    share = Row("publish / raw", "ratio", "", 1, goal="0.95", peer="0.92")
    get = Row("raw GET of 16 KiB, concurrency 16", "1/s", "-", 0)
    read = Row("cold read of 16 KiB, concurrency 16", "1/s", "-", 1)
    read_share = Row("cold read / raw", "ratio", "", 1, goal="0.8", peer="0.32")
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 1, store=store)
        for turn in range(bench.repeats):
            async with nokv.connect(cluster.addresses) as fs:
                put.values.append(await _raw_puts(raw_put, turn, bench.seconds))
                publish.values.append(await workloads.publishes(fs, bench.seconds))
                names = await workloads.make_read_files(fs, READ_FILES)
            raw = [f"small/{turn}/{n:08d}/0" for n in range(READ_FILES)]
            await _each(raw, lambda name: raw_put(name, os.urandom(workloads.READ_BYTES)))
            get.values.append(READ_FILES / await _each(raw, raw_get))
            async with nokv.connect(cluster.addresses) as fs:
                read.values.append(READ_FILES / await _each(names, fs.read_bytes))
    share.values = [a / b for a, b in zip(publish.values, put.values, strict=True)]
    read_share.values = [a / b for a, b in zip(read.values, get.values, strict=True)]
    rows = [put, publish, share, get, read, read_share]
    bench.show(f"bodies-{'local' if store is None else store.kind}", f"Bodies in {title}", rows)


async def _raw_puts(
    raw_put: Callable[[str, bytes], Awaitable[object]], turn: int, seconds: float
) -> float:
    data = os.urandom(workloads.PUBLISH_BYTES)
    numbers = itertools.count()
    return await workloads.keep_busy(
        16, seconds, lambda: raw_put(f"{turn}/{next(numbers):08d}/0", data)
    )


async def _each(names: list[str], one: Callable[[str], Awaitable[object]]) -> float:
    """Call `one` for every name at concurrency 16; return the seconds it took."""
    left = iter(names)
    start = time.perf_counter()

    async def loop() -> None:
        for name in left:
            await one(name)

    await asyncio.gather(*(loop() for _ in range(16)))
    return time.perf_counter() - start


# ---------------------------------------------------------------- size

FILES = 1_000_000


async def size(bench: Bench) -> None:
    """Disk bytes a file, and anonymous memory of a node with a million files."""
    rows = []
    memory = Row("anonymous memory of a node's 3 processes, 1 M files", "MiB", "", 1, goal="200")
    for label, one, goal in (
        ("sequential", _sequential_names, "250"),
        ("random", _random_names, "400"),
    ):
        row = Row(f"state bytes a file, {label} names", "bytes", "", 1, goal=goal)
        with ExitStack() as stack:
            cluster = bench.cluster(stack, 1)
            async with nokv.connect(cluster.addresses) as fs:
                await one(fs)
            memory.values.append(_memory_mib(_process_groups(cluster)[0], "Anonymous"))
            state = _state_file(cluster)
            await asyncio.to_thread(cluster.stop, 1)
            row.values.append(state.stat().st_size / FILES)
        rows.append(row)
    bench.show("size", "Size", [*rows, memory])


def _state_file(cluster: LocalCluster) -> Path:
    files = sorted(cluster.folder.path.rglob("data.mdb"), key=lambda path: path.stat().st_size)
    return files[-1]


async def _sequential_names(fs: AsyncClient) -> None:
    await fs.mkdir("/size")
    await fs.mkdir("/size/0")
    for first in range(0, FILES, 1000):
        await fs.bulk_create("/size/0", [b"%012d" % n for n in range(first, first + 1000)])


async def _random_names(fs: AsyncClient) -> None:
    await fs.mkdir("/size")
    for directory in range(32):
        await fs.mkdir(f"/size/{directory}")
    for turn in range(FILES // 1000):
        await fs.bulk_create(f"/size/{turn % 32}", [os.urandom(8).hex() for _ in range(1000)])


def _process_groups(cluster: LocalCluster) -> list[list[int]]:
    """Return supervisor, shard and worker of each node: they are one process group."""
    groups: dict[int, list[int]] = {os.getpgid(pid): [] for pid in _shard_pids(cluster)}
    for path in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, ValueError):
            groups.get(os.getpgid(int(path.name)), []).append(int(path.name))
    return list(groups.values())


def _memory_mib(pids: list[int], kind: str) -> float:
    """Return the processes' memory of one kind (proc(5): smaps_rollup)."""
    kib = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(rf"^{kind}:\s+(\d+) kB", rollup, re.MULTILINE)
        assert found is not None
        kib += int(found[1])
    return kib / 1024


# ---------------------------------------------------------------- idle

IDLE_S = 20.0


async def idle(bench: Bench) -> None:
    """What a node costs that has nothing to do, fresh and after a load."""
    cpu = Row("CPU of an idle node", "% of a core", "", 3, goal="1")
    fresh = Row("memory of an idle node", "MiB PSS", "", 3, goal="80")
    after = Row("memory of a node after a load of bulk creates", "MiB PSS", "", 3)
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3)
        await asyncio.sleep(IDLE_S / 4)
        nodes = _process_groups(cluster)
        before = [_cpu_s(pids) for pids in nodes]
        await asyncio.sleep(IDLE_S)
        for pids, spent_s in zip(nodes, before, strict=True):
            cpu.values.append((_cpu_s(pids) - spent_s) / IDLE_S * 100)
            fresh.values.append(_memory_mib(pids, "Pss"))
        async with nokv.connect(cluster.addresses) as fs:
            await workloads.bulk_sequential(fs, bench.seconds)
        after.values += [_memory_mib(pids, "Pss") for pids in nodes]
    cpu.why = f"supervisor, shard and worker of each of three nodes, over {IDLE_S:.0f} s"
    bench.show("idle", "An idle node, its three processes together", [cpu, fresh, after])


def _cpu_s(pids: list[int]) -> float:
    """Return user and system time of processes so far (proc(5): stat, fields 14 and 15)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- failover


async def failover(bench: Bench) -> None:
    """Seconds from kill -9 of the leader to the next commit, as one client sees it."""
    row = Row("leader kill -9 to next commit", "s", SYNC, 3, goal="1.2", peer="etcd 1.5")
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3)
        async with nokv.connect(cluster.addresses) as fs:
            await fs.mkdir("/failover")
            for turn in range(20):
                leader = await asyncio.to_thread(cluster.leader)
                await fs.create(f"/failover/{turn}-before")
                start = time.perf_counter()
                cluster.kill(leader)
                await fs.create(f"/failover/{turn}-after")
                row.values.append(time.perf_counter() - start)
                await asyncio.to_thread(cluster.restart, leader)
                await asyncio.to_thread(cluster.wait_caught_up, leader)
    quartiles = [round(q, 2) for q in statistics.quantiles(row.values, n=4)]
    row.why = f"{len(row.values)} kills, worst {max(row.values):.2f} s, quartiles {quartiles}"
    bench.show("failover", "Failover", [row, *await _hand_overs(bench)])


async def _hand_overs(bench: Bench) -> tuple[Row, Row]:
    """Leadership on request, and a rolling restart, as a client that writes sees them."""
    transfer = Row("transfer asked for to next commit", "ms", SYNC, 3, goal="100")
    rolling = Row("longest write in a rolling restart", "s", SYNC, 3, goal="1")
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3)
        async with nokv.connect(cluster.addresses) as fs, cluster.admin() as admin:
            await fs.mkdir("/transfer")
            for turn in range(20):
                await fs.create(f"/transfer/{turn}-before")
                start = time.perf_counter()
                await admin.transfer()
                await fs.create(f"/transfer/{turn}-after")
                transfer.values.append((time.perf_counter() - start) * 1000)
            for turn in range(3):
                rolling.values.append(await _rolling(cluster, fs, f"/rolling-{turn}"))
    transfer.why = f"{len(transfer.values)} transfers, worst {max(transfer.values):.0f} ms"
    rolling.why = "each of three nodes stopped and started, the leader first"
    return transfer, rolling


async def _rolling(cluster: LocalCluster, fs: AsyncClient, directory: str) -> float:
    """Restart every node; return the longest that one of the writes meanwhile took, in seconds."""
    await fs.mkdir(directory)

    async def restart() -> None:
        for _ in cluster.nodes:
            leader = await asyncio.to_thread(cluster.leader)
            await asyncio.to_thread(cluster.stop, leader)
            await asyncio.to_thread(cluster.restart, leader)

    restarting = asyncio.create_task(restart())
    longest_s, number = 0.0, 0
    while not restarting.done():
        number += 1
        start = time.perf_counter()
        await fs.create(f"{directory}/{number}")
        longest_s = max(longest_s, time.perf_counter() - start)
        await asyncio.sleep(0.005)
    await restarting
    return longest_s


async def ordering(bench: Bench) -> None:
    """Replication alone beside etcd; `python -m bench.replication` runs it by itself."""
    await replication(bench.directory, bench.seconds, bench.repeats)


async def diffs(bench: Bench) -> None:
    """Diffs whose cost follows the change; `python -m bench.diff` runs it by itself."""
    bench.show("diff", diff.TITLE, await asyncio.to_thread(diff.rows, bench.directory))


async def views(bench: Bench) -> None:
    """Snapshots, clones and rollbacks of trees of several sizes, and creates under a snapshot."""
    rows: list[Row] = []
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3)
        async with nokv.connect(cluster.addresses) as fs:
            rows += await branches.creates_under_a_snapshot(fs, bench.seconds, bench.repeats)
            rows += await branches.reads_through_clones(fs, bench.seconds, bench.repeats)
            for files in (1_000, 100_000, 1_000_000):
                rows += await branches.latencies(fs, files, bench.repeats)
    for files in (1_000, 100_000, 1_000_000):
        rows += await asyncio.to_thread(in_apply.rows, bench.directory, files)
    bench.show("views", "Views", rows)


async def watches(bench: Bench) -> None:
    """What watchers are told how soon, and what a thousand of them cost."""
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3, settings=watch.settings())
        idle_row = await watch.idle_watches(cluster)
        rows = await watch.rates(cluster, bench.seconds, bench.repeats)
    bench.show("watch", "Watches", [*rows, idle_row])


async def collector(bench: Bench) -> None:
    """What is freed a second, alone and beside creates; `python -m bench.gc` runs it by itself."""
    with ExitStack() as stack:
        cluster = bench.cluster(stack, 3, settings=gc.settings())
        found = await gc.rows(cluster, bench.seconds, bench.repeats)
    bench.show("gc", gc.TITLE, found)


GROUPS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "creates": creates,
    "serial": serial,
    "stat": stat,
    "bodies": bodies,
    "size": size,
    "failover": failover,
    "idle": idle,
    "replication": ordering,
    "views": views,
    "diff": diffs,
    "watch": watches,
    "gc": collector,
}


async def run(bench: Bench, groups: list[str]) -> None:
    """Run the named groups in order."""
    for name in groups:
        await GROUPS[name](bench)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=3.0, help="per row and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="for the data")
    given = parser.parse_args()
    bench = Bench(given.directory, given.seconds, given.repeats)
    uvloop.run(run(bench, given.groups))


if __name__ == "__main__":
    main()
