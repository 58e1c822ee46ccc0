"""What ordering costs: three processes on loopback, real fdatasync, an empty state machine.

    python bench/replication.py [--nodes 3] [--json]

The load runs in the leader's own process, so no RPC is in the figures: serial proposals, proposals
with 64 outstanding, the same in groups of 128 payloads, and ReadIndex reads.
"""

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import uvloop

from nokv_replication import Applied, Group, GroupConfig, Identity, Times, initialise
from nokv_replication.disk import OsDisk
from nokv_replication.driver import Driver, SystemClock
from nokv_replication.tcp import TcpNetwork

PAYLOAD = bytes(100)
SERIAL = 2_000
OUTSTANDING = 64
SINGLE = 40_000
GROUP = 128
GROUPED = 400_000


class NullMachine:
    """Answers every payload with nothing; its commit is free (see `Machine`)."""

    # ruff: noqa: D102 - the port's docstrings hold

    def __init__(self) -> None:
        self._applied = Applied()

    def open(self) -> Applied:
        return self._applied

    def apply(self, applied: Applied, _times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        self._applied = applied
        for _ in payloads:
            yield b""

    def commit(self) -> int:
        return self._applied.index

    def fingerprint(self) -> bytes:
        return b""

    def digest(self) -> bytes:
        return b""


def sync_cost_us(folder: Path) -> float:
    """Return the median of one 256-byte pwrite + fdatasync inside a preallocated file."""
    disk = OsDisk(folder)
    handle = disk.create("probe")
    disk.preallocate(handle, 1 << 20, 0)
    disk.fdatasync(handle)
    samples = []
    for i in range(300):
        started = time.perf_counter()
        disk.pwrite(handle, bytes(range(256)), i * 256)
        disk.fdatasync(handle)
        samples.append(time.perf_counter() - started)
    disk.close(handle)
    return sorted(samples)[150] * 1e6


async def timed(count: int, tasks: int, work: Callable[[], Awaitable[object]]) -> float:
    """Return calls of `work` a second with so many outstanding."""

    async def worker() -> None:
        for _ in range(count // tasks):
            await work()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    return count / (time.perf_counter() - started)


async def measure(driver: Driver, group: Group, folder: Path) -> dict[str, float]:
    """Run the load at the leader."""
    samples = []
    for _ in range(SERIAL):
        started = time.perf_counter()
        await driver.propose(PAYLOAD)
        samples.append(time.perf_counter() - started)
    samples.sort()
    before, cpu = group.status().counters, time.process_time()
    single = await timed(SINGLE, OUTSTANDING, lambda: driver.propose(PAYLOAD))
    cpu_us = (time.process_time() - cpu) / SINGLE * 1e6
    after = group.status().counters
    syncs = after.log_syncs - before.log_syncs

    async def many() -> None:
        await asyncio.gather(*(driver.propose(PAYLOAD) for _ in range(GROUP)))

    cpu = time.process_time()
    grouped = await timed(GROUPED // GROUP, 8, many) * GROUP
    grouped_cpu_us = (time.process_time() - cpu) / GROUPED * 1e6
    reads = await timed(SINGLE, OUTSTANDING, driver.read_index)
    return {
        "sync_us": round(sync_cost_us(folder), 1),
        "serial_p50_us": round(samples[len(samples) // 2] * 1e6, 1),
        "serial_p99_us": round(samples[len(samples) * 99 // 100] * 1e6, 1),
        "single_per_s": round(single),
        "single_leader_cpu_us": round(cpu_us, 2),
        "single_per_sync": round(SINGLE / max(1, syncs), 1),
        "grouped_per_s": round(grouped),
        "grouped_leader_cpu_us": round(grouped_cpu_us, 2),
        "reads_per_s": round(reads),
    }


async def run_node(node: int, ports: list[int], folder: Path) -> None:
    """Be one node; measure and print when this one leads."""
    addresses = {i + 1: f"127.0.0.1:{port}" for i, port in enumerate(ports)}
    identity = Identity("bench", node, 100 + node)
    config, rng, disk = GroupConfig(), random.Random(), OsDisk(folder)
    initialise(disk, config, identity, rng)
    network = TcpNetwork(node, addresses[node], addresses, rng)
    group = Group(
        identity=identity,
        addresses=addresses,
        config=config,
        machine=NullMachine(),
        disk=disk,
        network=network,
        clock=SystemClock(),
        rng=rng,
    )
    driver = Driver(group, network)
    await driver.start()
    while not group.status().leads:  # noqa: ASYNC110 - once, before anything is measured
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)  # let the followers settle
    print(json.dumps(await measure(driver, group, folder)), flush=True)
    await asyncio.Event().wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node is not None:
        ports = [int(port) for port in options.ports.split(",")]
        uvloop.run(run_node(options.node, ports, options.folder))
        return
    chosen = ",".join(str(port) for port in free_ports(options.nodes))
    with tempfile.TemporaryDirectory(prefix="bench-replication-", dir=".") as root:
        children = []
        output = Path(root) / "result"
        with output.open("wb") as sink:
            for node in range(1, options.nodes + 1):
                folder = Path(root) / str(node)
                folder.mkdir()
                command: list[str] = [
                    sys.executable,
                    __file__,
                    "--node",
                    str(node),
                    "--ports",
                    chosen,
                ]
                command += ["--folder", str(folder)]
                children.append(subprocess.Popen(command, stdout=sink))
            try:
                while not output.read_bytes().endswith(b"\n"):
                    time.sleep(0.1)
                    assert all(child.poll() is None for child in children), "a node died"
            finally:
                for child in children:
                    child.kill()
                    child.wait()
        result = json.loads(output.read_text())
    if options.json:
        print(json.dumps({"nodes": options.nodes, **result}))
    else:
        for name, value in {"nodes": options.nodes, **result}.items():
            print(f"{name:24} {value:>12,}")


if __name__ == "__main__":
    main()
