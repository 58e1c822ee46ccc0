"""Real processes' parts: TCP on loopback, a real folder, the asyncio driver."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from tests.simulation.machine import ListMachine, ListStorage

from nokv_replication import (
    Committed,
    ConfigurationError,
    Group,
    GroupConfig,
    Identity,
    NotLeader,
    initialise,
)
from nokv_replication.disk import OsDisk
from nokv_replication.driver import EXIT_FATAL, Driver, SystemClock
from nokv_replication.tcp import TcpNetwork, check_loopback, parse_address

CONFIG = GroupConfig(
    segment_bytes=1 << 20,
    heartbeat_ns=30_000_000,
    election_min_ns=150_000_000,
    election_max_ns=300_000_000,
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Nodes:
    """Three drivers in one loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ports = free_ports(3)
        self.addresses = {i + 1: f"127.0.0.1:{port}" for i, port in enumerate(ports)}
        self.storages = {n: ListStorage() for n in self.addresses}
        self.drivers: dict[int, Driver] = {}
        self.groups: dict[int, Group] = {}
        self.machines: dict[int, ListMachine] = {}
        self.exits: list[int] = []
        self.incarnations = {n: 100 + n for n in self.addresses}

    async def start(self, node: int) -> None:
        folder = self.root / f"{node}-{self.incarnations[node]}"
        folder.mkdir(exist_ok=True)
        identity = Identity("tcp", node, self.incarnations[node])
        disk, rng = OsDisk(folder), random.Random(node)
        initialise(disk, CONFIG, identity, rng)
        network = TcpNetwork(node, self.addresses[node], self.addresses, rng)
        self.machines[node] = self.storages[node].machine(lambda _name: None)
        self.groups[node] = Group(
            identity=identity,
            addresses=self.addresses,
            config=CONFIG,
            machine=self.machines[node],
            disk=disk,
            network=network,
            clock=SystemClock(),
            rng=rng,
        )
        driver = Driver(self.groups[node], network, exit_process=self.exits.append)
        self.drivers[node] = driver
        await driver.start()

    async def leader(self) -> int:
        while True:
            for node, driver in self.drivers.items():
                if not driver._closed and self.groups[node].status().leads:
                    return node
            await asyncio.sleep(0.01)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - the condition is anybody's
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def nodes(root: Path) -> AsyncIterator[Nodes]:
    cluster = Nodes(root)
    for node in cluster.addresses:
        await cluster.start(node)
    try:
        yield cluster
    finally:
        for driver in cluster.drivers.values():
            await driver.close()


def run(scenario: Callable[[Nodes], Awaitable[None]], root: Path, *, uv: bool = True) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), nodes(root) as cluster:
            await scenario(cluster)

    (uvloop.run if uv else asyncio.run)(main())


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_three_nodes_order_commands_and_read_them_anywhere(tmp_path: Path, uv: bool) -> None:
    async def scenario(cluster: Nodes) -> None:
        leader = await cluster.leader()
        payloads = [b"%d" % i for i in range(200)]
        results = await asyncio.gather(*(cluster.drivers[leader].propose(p) for p in payloads))
        assert [r.result for r in results] == [b"%d" % (i + 1) for i in range(200)]
        for node, driver in cluster.drivers.items():
            index = await driver.read_index()
            assert index >= results[-1].index
            assert cluster.machines[node].items == payloads
        follower = next(n for n in cluster.drivers if n != leader)
        with pytest.raises(NotLeader, match=f"node {leader} does"):
            await cluster.drivers[follower].propose(b"x")
        steps = cluster.groups[leader].counters.steps
        await asyncio.sleep(0.3)
        assert cluster.groups[leader].counters.steps - steps < 100  # it does not spin

    run(scenario, tmp_path, uv=uv)


def test_the_group_survives_its_leader_and_the_leader_its_restart(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        leader = await cluster.leader()
        await cluster.drivers[leader].propose(b"before")
        await cluster.drivers[leader].close()
        second = await cluster.leader()
        assert second != leader
        await cluster.drivers[second].propose(b"after")
        await cluster.start(leader)
        await cluster.until(lambda: cluster.machines[leader].items == [b"before", b"after"])
        # A caller that gives up does not disturb the command.
        cluster.drivers[second].propose(b"abandoned").cancel()
        done = await cluster.drivers[second].propose(b"last")
        assert isinstance(done, Committed)
        assert cluster.machines[second].items[-2:] == [b"abandoned", b"last"]

    run(scenario, tmp_path)


@pytest.mark.allow_logs("closing the connection")
def test_hostile_bytes_cost_their_connection_only(tmp_path: Path) -> None:
    async def attack(address: str, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*parse_address(address))
        writer.write(data)
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def scenario(cluster: Nodes) -> None:
        leader = await cluster.leader()
        hello = cluster.groups[1].hello(12345)
        good = struct.pack(">I", len(hello)) + hello
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            struct.pack(">I", 0),
            struct.pack(">I", 1 << 31),
            struct.pack(">I", 5) + b"\xff" * 5,
            struct.pack(">I", 40_000) + bytes(100),
            struct.pack(">I", 8) + b"\xa7strange",
        ):
            await attack(cluster.addresses[leader], data)
        # Even one that knows the right hello: the pair's own connection comes back.
        await attack(cluster.addresses[3], good + struct.pack(">I", 3) + b"\x93\x01\x02")
        leader = await cluster.leader()
        done = await cluster.drivers[leader].propose(b"still here")
        assert isinstance(done, Committed)
        assert cluster.exits == []

    run(scenario, tmp_path)


@pytest.mark.allow_logs("closing the connection")
def test_a_wiped_node_is_told_why_it_is_refused(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        leader = await cluster.leader()
        victim = next(n for n in (3, 2, 1) if n != leader)
        await cluster.drivers[victim].close()
        cluster.incarnations[victim] = 999
        cluster.storages[victim] = ListStorage()
        await cluster.start(victim)
        group = cluster.groups[victim]
        await cluster.until(lambda: "must not rejoin" in group.status().problem)
        assert not group.status().ready
        leader = await cluster.leader()
        assert isinstance(await cluster.drivers[leader].propose(b"x"), Committed)
        assert cluster.machines[victim].items == []

    run(scenario, tmp_path)


@pytest.mark.allow_logs("replication stops this process")
def test_a_fatal_error_exits_the_process(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        leader = await cluster.leader()
        victim = next(n for n in cluster.drivers if n != leader)
        cluster.machines[victim]._hash = b"diverged"
        await cluster.drivers[leader].propose(b"x")
        await cluster.until(lambda: bool(cluster.exits))
        assert cluster.exits == [EXIT_FATAL]

    run(scenario, tmp_path)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.org:1"])
def test_without_tls_only_loopback_is_used(address: str) -> None:
    with pytest.raises(ConfigurationError, match="not loopback"):
        check_loopback(address)
    with pytest.raises(ConfigurationError):
        TcpNetwork(1, address, {1: "127.0.0.1:1"}, random.Random(0))


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:70000"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="write host:port"):
        parse_address(address)


def test_addresses_may_be_version_6() -> None:
    assert parse_address("[::1]:7000") == ("::1", 7000)
    check_loopback("[::1]:7000")
    check_loopback("localhost:7000")
