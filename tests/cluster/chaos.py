"""Three real nodes with TLS behind proxies that harm their connections, killed and suspended.

    python tests/cluster/chaos.py --seconds 600 --seed 1

Clients write, exchange and read registers, other clients keep journals, and all of it must hold
afterwards: every register is linearizable, nothing that was acknowledged is lost, nothing happened
twice, and the states of the nodes are equal. The seed draws faults and operations; what processes
and the network make of them differs from run to run. Prints what was done, and how to repeat it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from nokv.client.admin import Admin
from nokv.client.core import ClientConfig
from nokv.client.routing import parse_cluster
from nokv.errors import GenerationMismatch, NokvError
from nokv.server.datadir import read_identity
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests
from nokv.testing.folder import NodePorts, create
from nokv.testing.harness import Harness, harness
from nokv.testing.ports import free_ports
from nokv.testing.writers import Verdict, check_writers, writing
from nokv.types.limits import INLINE_BYTES_MAX
from nokv.wire.tls import connect_context
from nokv_model import checkers
from nokv_model.history import Recorder, operations

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a program, too

from tests.cluster.proxy import Proxies

NODES: Final = 3
CLIENTS: Final = 5
WRITERS: Final = 2
REGISTERS: Final = 3
ROUND_S: Final = 8.0
"""New registers are begun so often: their histories stay short enough to be searched."""
DEADLINES_S: Final = (0.3, 0.8, 3.0)
"""Of clients. The short ones give up during an election: what they asked for stays open."""
HEAL_PROBABILITY: Final = 0.6
"""After each fault; so some meet others."""
HEAL_S: Final = 180.0
FILES: Final = 2048
SETTINGS: Final = {
    "worker.interval_ms": 200,
    # A node that is away for some seconds needs a state image.
    "log.segment_bytes": 8 << 20,
    "log.keep_bytes": 0,
    "timing.commit_interval_ms": 100,
    "images.bytes_per_second": 32 << 20,
}


class Report(NamedTuple):
    """What a run showed."""

    faults: Counter[str]
    operations: int
    unknown: int
    registers: int
    verdict: checkers.Verdict
    writers: Verdict
    images: int
    """State images that nodes installed; at least, for a killed node forgets its last ones."""
    digests: int
    """Different digests of the nodes' states; 1 is right."""
    alarms: list[str]
    """Log lines of nodes that should not be there."""

    @property
    def holds(self) -> bool:
        linearizable = self.verdict == checkers.Verdict.LINEARIZABLE
        return linearizable and self.writers.holds and self.digests == 1 and not self.alarms


@contextmanager
def proxied_cluster(path: Path) -> Iterator[tuple[LocalCluster, Proxies]]:
    """Start a cluster with TLS; nodes and clients reach each port through a proxy."""
    ports = free_ports(5 * NODES, random.Random())
    members = [NodePorts(n + 1, *ports[5 * n : 5 * n + 5]) for n in range(NODES)]
    folder = create(path / "cluster", members, tls=True, settings=SETTINGS)
    between = {f"peer {m.node}": (m.peer_proxy, m.peer) for m in members}
    between |= {f"rpc {m.node}": (m.rpc_proxy, m.rpc) for m in members}
    before = {name: os.environ.get(name) for name in folder.environment}
    os.environ.update(folder.environment)
    cluster = LocalCluster(folder)
    try:
        with Proxies(between) as proxies:
            for node in cluster.nodes:
                cluster.start_node(node)
            cluster.wait_ready()
            yield cluster, proxies
    finally:
        cluster.close()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


# ---------------------------------------------------------------- faults


class Nemesis:
    """Draws faults and undoes them. At most one node is down or suspended at a time."""

    def __init__(self, cluster: LocalCluster, proxies: Proxies, rng: random.Random) -> None:
        self._cluster = cluster
        self._proxies = proxies
        self._rng = rng
        self.faults: Counter[str] = Counter()
        self.images = 0
        self._faults: list[tuple[Callable[[], None], int]] = [
            (self._cut, 4),
            (self._isolate, 3),
            (self._slow, 3),
            (self._stop_one_way, 3),
            (self._truncate, 4),
            (self._reorder, 5),
            (self._kill, 3),
            (self._suspend, 3),
            (self._hand_over, 3),
        ]

    def run(self, until_s: float) -> None:
        """Harm the cluster until then, and then undo everything; blocks."""
        works, weights = zip(*self._faults, strict=True)
        while time.monotonic() < until_s:
            time.sleep(self._rng.uniform(0.02, 0.4))
            (work,) = self._rng.choices(works, weights)
            work()
            if self._rng.random() < HEAL_PROBABILITY or time.monotonic() >= until_s:
                for name in self._proxies.names:
                    self._proxies.heal(name)

    def _pause(self, most_s: float) -> None:
        time.sleep(self._rng.uniform(0.05, most_s))

    def _target(self) -> str:
        # Connections between nodes are few and matter most.
        names = [name for name in self._proxies.names if name.startswith("peer")]
        return self._rng.choice([*names, *self._proxies.names])

    def _cut(self) -> None:
        self.faults["cuts"] += self._proxies.cut(self._target(), self._rng)

    def _isolate(self) -> None:
        self.faults["isolations"] += self._proxies.isolate(self._target())
        self._pause(2.0)

    def _slow(self) -> None:
        delay_s = self._rng.choice([0.005, 0.05, 0.3])
        self.faults["delays"] += self._proxies.slow(self._target(), self._rng, delay_s)
        self._pause(2.0)

    def _stop_one_way(self) -> None:
        way = self._rng.choice(["up", "down"])
        count = self._proxies.stop(self._target(), self._rng, "up" if way == "up" else "down")
        self.faults["one-way stops"] += count
        self._pause(2.5)

    def _truncate(self) -> None:
        self.faults["truncations"] += self._proxies.truncate(self._target(), self._rng)

    def _reorder(self) -> None:
        name = self._target()
        self._proxies.hold(name, self._rng)
        self._pause(0.3)
        self.faults["reorderings"] += self._proxies.reorder(name)

    def count_images(self, node: int) -> None:
        """Note what a node that is about to end has installed."""
        status = self._cluster.status(node)
        if status is not None:
            self.images += int(status.get("raft", {}).get("images_installed", 0))

    def _kill(self) -> None:
        node = self._rng.choice(self._cluster.nodes)
        self.count_images(node)
        self._cluster.kill(node)
        self.faults["kills"] += 1
        self._pause(self._rng.choice([0.2, 1.5, 6.0]))
        self._cluster.start_node(node)
        self._pause(1.5)

    def _hand_over(self) -> None:
        """Have an operator hand leadership over; in the middle of faults it may fail."""
        node = self._rng.choice(self._cluster.nodes)
        try:
            asyncio.run(_transfer(self._cluster, node))
        except NokvError:
            self.faults["transfers that failed"] += 1
        else:
            self.faults["transfers"] += 1

    def _suspend(self) -> None:
        node = self._rng.choice(self._cluster.nodes)
        self._cluster.pause(node)
        self.faults["suspensions"] += 1
        self._pause(3.0)
        self._cluster.resume(node)


# ---------------------------------------------------------------- clients


class Registers:
    """Files that clients write, exchange and read; all bodies differ."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.round = 0
        self._next_process = 0

    def new_process(self) -> int:
        """Return a number that no operation has had."""
        self._next_process += 1
        return self._next_process

    async def begin(self, client: Harness) -> None:
        """Make the registers of the next round; clients go over to them."""
        for key in range(REGISTERS):
            await client.fs.write_bytes(f"/registers/{self.round + 1}-{key}", b"first")
        self.round += 1


async def use_registers(
    registers: Registers, name: str, rng: random.Random, stop: asyncio.Event
) -> None:
    """One client: operations on random registers until told to stop."""
    recorder = registers.recorder
    process = registers.new_process()
    config = ClientConfig(agent=f"chaos-{name}", deadline_s=rng.choice(DEADLINES_S))
    seen: dict[str, tuple[int, str]] = {}  # path -> generation and body of the last own write
    number = 0
    async with harness(os.environ["NOKV_CLUSTER"], config=config) as client:
        while not stop.is_set():
            number += 1
            path = f"/registers/{registers.round}-{rng.randrange(REGISTERS)}"
            body = f"{name}-{number}"
            generation, old = seen.get(path, (0, ""))
            kind = rng.choice(["read", "read", "write", "cas" if old else "write"])
            argument = {"read": ("read",), "write": ("write", body), "cas": ("cas", old, body)}
            recorder.invoke(process, (path, *argument[kind]))
            try:
                if kind == "read":
                    recorder.ok(process, (await client.fs.read(path)).decode())
                    continue
                expected = generation if kind == "cas" else None
                info = await client.fs.write_bytes(path, body.encode(), if_generation=expected)
                recorder.ok(process, True)
                seen[path] = (info.generation, body)
            except GenerationMismatch:
                recorder.ok(process, False)
                del seen[path]
            except NokvError:
                if kind == "read":
                    recorder.fail(process)
                else:
                    # Whatever it was, the command may be on its way.
                    recorder.unknown(process)
                    process = registers.new_process()


async def _transfer(cluster: LocalCluster, node: int) -> None:
    token = read_identity(cluster.folder.node_path(node) / "data").cluster.worker_token
    addresses = parse_cluster(cluster.addresses)
    async with Admin(addresses, token, timeout_s=2.0, tls=connect_context()) as admin:
        await admin.transfer(node)


async def fill(stop: asyncio.Event) -> None:
    """Make the log grow, and the state large enough for an image to take its time."""
    config = ClientConfig(agent="chaos-filler", deadline_s=1.0)
    number = 0
    async with harness(os.environ["NOKV_CLUSTER"], config=config) as client:
        with contextlib.suppress(NokvError):
            await client.fs.mkdir("/filler")
        while not stop.is_set():
            number += 4
            paths = [f"/filler/{(number + i) % FILES}" for i in range(4)]
            body = b"%08d" % number * (INLINE_BYTES_MAX // 8)
            writes = [client.fs.write_bytes(path, body) for path in paths]
            for outcome in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, NokvError):
                    raise outcome


def judge(recorder: Recorder) -> tuple[checkers.Verdict, int, int, int]:
    """Return the verdict, and how many operations, unknown ones and registers there were."""
    history = list(operations(recorder.lines))
    parts = [
        [msgspec.structs.replace(one, argument=one.argument[1:]) for one in part]
        for part in checkers.by_key(history, lambda operation: operation.argument[0])
    ]
    verdict = checkers.check(parts, "first", checkers.register)
    return verdict, len(history), sum(not one.known for one in history), len(parts)


# ---------------------------------------------------------------- a run


async def campaign(
    cluster: LocalCluster, proxies: Proxies, path: Path, seconds: float, seed: int
) -> Report:
    """Harm a cluster for so long while clients use it, heal it, and check everything."""
    rng = random.Random(seed)
    nemesis = Nemesis(cluster, proxies, random.Random(rng.getrandbits(64)))
    recorder = Recorder(time.monotonic_ns)
    registers = Registers(recorder)
    stop = asyncio.Event()
    addresses = cluster.addresses
    async with harness(addresses) as client:
        cursor = (await client.fs.mkdir("/registers")).version
        await registers.begin(client)
        async with (
            writing(addresses, "/journals", path / "journals", WRITERS) as writers,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(CLIENTS):
                own = random.Random(rng.getrandbits(64))
                tasks.create_task(use_registers(registers, f"c{number}", own, stop))
            tasks.create_task(fill(stop))
            end_s = time.monotonic() + seconds
            harming = asyncio.ensure_future(asyncio.to_thread(nemesis.run, end_s))
            while not harming.done():
                await asyncio.wait([harming], timeout=ROUND_S)
                await registers.begin(client)
            await harming
            await asyncio.to_thread(cluster.wait_ready, None, HEAL_S)
            stop.set()
        for node in cluster.nodes:
            await asyncio.to_thread(nemesis.count_images, node)
        verdict, total, unknown, parts = judge(recorder)
        if verdict != checkers.Verdict.LINEARIZABLE:
            (path / "history.jsonl").write_bytes(recorder.dump())
        kept = await check_writers(client.fs, writers, cursor)
    for node in cluster.nodes:
        await asyncio.to_thread(cluster.wait_caught_up, node, HEAL_S)
    by_node = {member.node: member.rpc_address for member in cluster.members}
    leader = await asyncio.to_thread(cluster.leader)
    replies = await compare_digests(by_node[leader], by_node)
    digests = len({reply.digest for reply in replies.values()})
    alarms = find_alarms(cluster)
    images = nemesis.images
    return Report(nemesis.faults, total, unknown, parts, verdict, kept, images, digests, alarms)


def find_alarms(cluster: LocalCluster) -> list[str]:
    """Return what no fault of this kind may make a node say."""
    return [
        f"node {node}: {line[:300]}"
        for node in cluster.nodes
        for line in cluster.folder.log_path(node).read_text(errors="replace").splitlines()
        if '"critical"' in line or "Traceback" in line
    ]


def run(seconds: float, seed: int, path: Path) -> Report:
    """Run one campaign in a folder."""
    with proxied_cluster(path) as (cluster, proxies):
        return asyncio.run(campaign(cluster, proxies, path, seconds, seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    again = f"python tests/cluster/chaos.py --seconds {options.seconds:g} --seed {seed}"
    print(f"seed {seed}; again: {again}", flush=True)
    path = Path(tempfile.mkdtemp(prefix="nokv-chaos-"))
    report = run(options.seconds, seed, path)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(report.faults.items()))
    print(f"faults: {faults}")
    print(
        f"{report.operations} operations on {report.registers} registers, {report.unknown} unknown:"
        f" {report.verdict.value}"
    )
    writers = report.writers
    print(f"journals: {writers.done} acknowledged, {writers.unknown} unknown; {writers.problems()}")
    print(f"{report.images} state images installed; {report.digests} digest(s) of the state")
    if not report.holds:
        print("\n".join(["NOT AS PROMISED", *report.alarms, f"kept: {path}", f"again: {again}"]))
        return 1
    shutil.rmtree(path)
    print("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
