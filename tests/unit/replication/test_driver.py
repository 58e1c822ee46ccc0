"""Real processes' parts: TCP on loopback, a real folder, the asyncio driver."""

import asyncio
import contextlib
import copy
import random
import shutil
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import uvloop
from tests.simulation.machine import ListMachine, ListStorage
from tests.unit.replication.networks import peer_tls

from nokv.server import certs
from nokv.testing.ports import free_ports, release_ports
from nokv_replication import (
    Committed,
    ConfigurationError,
    Group,
    GroupConfig,
    Identity,
    NotLeader,
    ReplicationError,
    initialise,
)
from nokv_replication import connection as connections
from nokv_replication.bootstrap import FORMAT
from nokv_replication.disk import OsDisk
from nokv_replication.driver import EXIT_FATAL, Driver, SystemClock
from nokv_replication.frames import Hello, encode
from nokv_replication.tcp import TcpNetwork, check_loopback, parse_address

CLUSTER = "tcp"
CONFIG = GroupConfig(
    segment_bytes=1 << 20,
    heartbeat_ns=30_000_000,
    election_min_ns=150_000_000,
    election_max_ns=300_000_000,
)
"""Quick, but a machine that stands still for a moment elects another leader: use `propose`."""
STEADY = GroupConfig(
    segment_bytes=1 << 20,
    heartbeat_ns=100_000_000,
    election_min_ns=1_000_000_000,
    election_max_ns=2_000_000_000,
)
"""For tests that need the same leader all the time."""


@pytest.fixture(autouse=True)
def patient_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection ends because its two ends, which share a loop, were slow to shake hands."""
    monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT_S", 60.0)


class Nodes:
    """Three drivers in one loop."""

    def __init__(self, root: Path, tls: Path | None = None, config: GroupConfig = CONFIG) -> None:
        self.root = root
        self.tls = tls
        self.config = config
        self.ports = free_ports(3)
        self.addresses = {i + 1: f"127.0.0.1:{port}" for i, port in enumerate(self.ports)}
        self.listens = dict(self.addresses)
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
        initialise(disk, self.config, identity, rng)
        tls = None if self.tls is None else peer_tls(self.tls, f"node-{node}", cluster=CLUSTER)
        network = TcpNetwork(node, self.listens[node], self.addresses, rng, tls)
        self.machines[node] = self.storages[node].machine(lambda _name: None)
        self.groups[node] = Group(
            identity=identity,
            addresses=self.addresses,
            config=self.config,
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


class Wire:
    """Stands before a node, keeps what its peers send, and harms it if told to."""

    def __init__(self, node: int, flips: random.Random | None = None) -> None:
        self.node = node
        self.recordings: list[bytearray] = []
        self.flips = flips
        self.flipped = 0
        self._target = ("", 0)
        self._server: asyncio.Server | None = None

    async def stand_before(self, cluster: Nodes) -> None:
        self._target = parse_address(cluster.listens[self.node])
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        cluster.addresses[self.node] = f"127.0.0.1:{port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recording = bytearray()
        self.recordings.append(recording)
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(*self._target)
            ways = (self._pump(reader, back, recording), self._pump(there, writer, None))
            await asyncio.wait(map(asyncio.ensure_future, ways))
        writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        recording: bytearray | None,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := bytearray(await reader.read(65_536)):
                if recording is not None:
                    recording += data
                    if self.flips is not None and self.flips.random() < 0.02:
                        data[self.flips.randrange(len(data))] ^= 1 << self.flips.randrange(8)
                        self.flipped += 1
                writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


async def say(address: str, data: bytes) -> bytes:
    """Send bytes as they are; return what comes back until the end."""
    reader, writer = await asyncio.open_connection(*parse_address(address))
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def propose(cluster: Nodes, payload: bytes) -> Committed:
    """Propose at whoever leads until somebody commits it; it may be applied more than once."""
    while True:
        leader = await cluster.leader()
        try:
            return await cluster.drivers[leader].propose(payload)
        except ReplicationError:
            await asyncio.sleep(0.01)


def applied(cluster: Nodes, node: int) -> list[bytes]:
    """What a node applied, each payload once, in the order of the first times."""
    return list(dict.fromkeys(cluster.machines[node].items))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certs")
    certs.make_authority(path / "ours", CLUSTER)
    for node in (1, 2, 3):
        certs.make_node(path / "ours", node)
    return path


@pytest.fixture(params=["tls", "clear"])
def either(request: pytest.FixtureRequest, certificates: Path) -> Path | None:
    return certificates if request.param == "tls" else None


@contextlib.asynccontextmanager
async def nodes(
    root: Path, tls: Path | None, wires: list["Wire"], config: GroupConfig
) -> AsyncIterator[Nodes]:
    cluster = Nodes(root, tls, config)
    for wire in wires:
        await wire.stand_before(cluster)
    for node in cluster.addresses:
        await cluster.start(node)
    try:
        yield cluster
    finally:
        for driver in cluster.drivers.values():
            await driver.close()
        for wire in wires:
            await wire.close()
        release_ports(cluster.ports)


def run(
    scenario: Callable[[Nodes], Awaitable[None]],
    root: Path,
    *,
    uv: bool = True,
    tls: Path | None = None,
    wires: Sequence["Wire"] = (),
    config: GroupConfig = CONFIG,
) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), nodes(root, tls, list(wires), config) as cluster:
            await scenario(cluster)

    (uvloop.run if uv else asyncio.run)(main())


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_three_nodes_order_commands_and_read_them_anywhere(
    tmp_path: Path, uv: bool, either: Path | None
) -> None:
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

    run(scenario, tmp_path, uv=uv, tls=either, config=STEADY)


def test_the_group_survives_its_leader_and_the_leader_its_restart(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        await propose(cluster, b"before")
        first = await cluster.leader()
        await cluster.drivers[first].close()
        await propose(cluster, b"after")
        await cluster.start(first)
        await cluster.until(lambda: applied(cluster, first) == [b"before", b"after"])

    run(scenario, tmp_path)


def test_a_caller_that_gives_up_does_not_disturb_the_command(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        while True:
            leader = await cluster.leader()
            cluster.drivers[leader].propose(b"abandoned").cancel()
            try:
                await cluster.drivers[leader].propose(b"last")
                break
            except ReplicationError:
                await asyncio.sleep(0.01)
        assert cluster.machines[leader].items[-2:] == [b"abandoned", b"last"]

    run(scenario, tmp_path)


@pytest.mark.allow_logs("closing the connection")
def test_hostile_bytes_cost_their_connection_only(tmp_path: Path) -> None:
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
            await say(cluster.addresses[leader], data)
        # Even one that knows the right hello: the pair's own connection comes back.
        await say(cluster.addresses[3], good + struct.pack(">I", 3) + b"\x93\x01\x02")
        await propose(cluster, b"still here")
        assert cluster.exits == []

    run(scenario, tmp_path)


@pytest.mark.allow_logs("closing the connection")
def test_a_replayed_connection_changes_nothing(tmp_path: Path, either: Path | None) -> None:
    """All that one node sent another, sent once more: in the middle of it, and later.

    With TLS it ends in the handshake. In the clear it is taken for the peer's newer connection, and
    every frame of it is one that was handled before.
    """
    wire = Wire(3)

    async def scenario(cluster: Nodes) -> None:
        payloads = [b"%d" % i for i in range(60)]
        for number, payload in enumerate(payloads):
            await propose(cluster, payload)
            if number % 15 == 14:
                assert wire.recordings
                for recording in list(wire.recordings):
                    await say(cluster.listens[3], bytes(recording))
        await propose(cluster, b"last")
        await cluster.until(
            lambda: all(m.items[-1:] == [b"last"] for m in cluster.machines.values())
        )
        items = [machine.items for machine in cluster.machines.values()]
        assert items[0] == items[1] == items[2]
        assert applied(cluster, 1) == [*payloads, b"last"]
        assert cluster.exits == []

    run(scenario, tmp_path, tls=either, wires=[wire])


@pytest.mark.allow_logs("closing the connection", "TLS failed")
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_cost_the_connection_only(
    tmp_path: Path, certificates: Path, seed: int
) -> None:
    """TLS finds every one of them; a new connection takes over."""
    wires = [Wire(node, random.Random(10 * seed + node)) for node in (1, 2, 3)]

    async def scenario(cluster: Nodes) -> None:
        payloads = [b"%d" % i for i in range(150)]
        for payload in payloads:
            await propose(cluster, payload)
        for wire in wires:
            wire.flips = None
        await propose(cluster, b"last")
        await cluster.until(
            lambda: all(m.items[-1:] == [b"last"] for m in cluster.machines.values())
        )
        items = [machine.items for machine in cluster.machines.values()]
        assert items[0] == items[1] == items[2]
        assert applied(cluster, 1) == [*payloads, b"last"]
        assert cluster.exits == []
        assert sum(wire.flipped for wire in wires) > 0

    run(scenario, tmp_path, tls=certificates, wires=wires)


@pytest.mark.allow_logs("closing the connection")
@pytest.mark.parametrize("seed", range(8))
def test_random_frames_cost_their_connection_only(tmp_path: Path, seed: int) -> None:
    """In the clear, some from one that knows the right hello: MessagePack of every kind."""
    rng = random.Random(seed)

    def value(depth: int) -> object:
        kinds: list[Callable[[], object]] = [
            lambda: rng.choice([0, 1, -1, 255, 1 << 31, 1 << 63, (1 << 64) - 1]),
            lambda: rng.randbytes(rng.randrange(40)),
            lambda: rng.choice(["", "raft", "\u20ac" * 10, None, True, 1.5]),
        ]
        if depth:
            kinds += [
                lambda: [value(depth - 1) for _ in range(rng.randrange(7))],
                lambda: {rng.randrange(9): value(depth - 1) for _ in range(rng.randrange(3))},
            ]
        return rng.choice(kinds)()

    def framed(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    async def scenario(cluster: Nodes) -> None:
        await propose(cluster, b"before")
        hello = framed(cluster.groups[1].hello(1 + rng.getrandbits(60)))
        for _ in range(40):
            frames = [
                framed(msgspec.msgpack.encode([rng.choice([1, 2, value(1)]), *[value(3)] * 3]))
                for _ in range(rng.randrange(1, 4))
            ]
            data = (hello if rng.random() < 0.7 else b"") + b"".join(frames)
            await say(cluster.addresses[3], data[: rng.randrange(1, len(data) + 1)])
        await propose(cluster, b"after")
        assert cluster.exits == []
        await cluster.until(
            lambda: all(applied(cluster, n) == [b"before", b"after"] for n in cluster.machines)
        )

    run(scenario, tmp_path)


@pytest.mark.allow_logs("closing the connection")
def test_a_peer_of_another_cluster_is_refused(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        await propose(cluster, b"before")
        hello = Hello(FORMAT, "another", 2, cluster.incarnations[2], b"", 77)
        answer = await say(
            cluster.addresses[3], struct.pack(">I", len(encode(hello))) + encode(hello)
        )
        assert b"peer belongs to cluster 'another'" in answer
        await propose(cluster, b"after")

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
        await propose(cluster, b"x")
        assert cluster.machines[victim].items == []

    run(scenario, tmp_path)


@pytest.mark.allow_logs("came back without entries")
def test_an_older_copy_of_a_directory_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def round_trip(cluster: Nodes, number: int) -> None:
        """Put node 3's directory back to what it was before it acknowledged another entry."""
        await cluster.drivers[3].close()
        folder, older = tmp_path / "3-103", tmp_path / f"older-{number}"
        shutil.copytree(folder, older)
        storage = copy.deepcopy(cluster.storages[3])
        await cluster.start(3)
        await propose(cluster, b"%d" % number)
        await cluster.until(lambda: b"%d" % number in cluster.machines[3].items)
        await cluster.drivers[3].close()
        shutil.rmtree(folder)
        older.rename(folder)
        cluster.storages[3] = storage
        await cluster.start(3)
        await cluster.until(lambda: b"%d" % number in cluster.machines[3].items)

    async def scenario(cluster: Nodes) -> None:
        number = 0
        # A leader of another term than that of the acknowledgement can't know.
        while not any(cluster.groups[n].counters.peers_set_back for n in (1, 2)):
            await round_trip(cluster, number)
            number += 1

    run(scenario, tmp_path)
    assert [r.levelname for r in caplog.records if "node 3 came back" in r.message][:1] == [
        "WARNING"
    ]


@pytest.mark.allow_logs("replication stops this process")
def test_a_fatal_error_exits_the_process(tmp_path: Path) -> None:
    async def scenario(cluster: Nodes) -> None:
        leader = await cluster.leader()
        victim = next(n for n in cluster.drivers if n != leader)
        cluster.machines[victim]._hash = b"diverged"
        await cluster.drivers[leader].propose(b"x")
        await cluster.until(lambda: bool(cluster.exits))
        assert cluster.exits == [EXIT_FATAL]

    run(scenario, tmp_path, config=STEADY)


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
