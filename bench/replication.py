"""`nokv_replication` behind a network front, beside etcd: puts of 256 bytes, linearizable gets.

    python -m bench.replication [--seconds 2] [--repeats 3]

Three nodes of each, one client process, all on this machine; both sync before they answer. The
nodes are `bench.kvnode`: ordering, an LMDB state and a thin front, without the namespace. etcd is
driven through its own gRPC API from the same client process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import grpc.aio
import msgspec
import uvloop

from bench.etcd import PUT, RANGE, Etcd, encode_put, encode_range
from bench.kvnode import Kind, Reply, Request
from bench.report import Row, machine, save, show
from bench.workloads import keep_busy, serial_ms
from nokv.testing.ports import free_ports
from nokv.wire.framing import FrameParser, frame

VALUE_BYTES = 256
KEYS = 10_000
START_TIMEOUT_S = 20.0

Call = Callable[[], Awaitable[object]]


class KvClient(asyncio.Protocol):
    """One pipelined connection to a front."""

    def __init__(self) -> None:
        self._parser = FrameParser()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._decode = msgspec.msgpack.Decoder(Reply).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own type

    def data_received(self, data: bytes) -> None:
        """Settle the calls that are answered."""
        for payload in self._parser.feed(data):
            reply = self._decode(payload)
            self._waiting.pop(reply.number).set_result(reply)

    def connection_lost(self, _error: Exception | None) -> None:
        """Fail what waits."""
        for future in self._waiting.values():
            future.set_exception(ConnectionError("the node is gone"))
        self._waiting.clear()

    async def call(self, kind: Kind, key: bytes = b"", value: bytes = b"") -> Reply:
        """Send one request and wait for its answer."""
        number = next(self._numbers)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting[number] = future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame(self._encode(Request(number, kind, key, value))))
        return await future

    def _flush(self) -> None:
        out, self._out = self._out, []
        assert self._transport is not None
        self._transport.write(b"".join(out))

    async def succeed(self, kind: Kind, key: bytes, value: bytes = b"") -> None:
        """Send one request that must succeed."""
        reply = await self.call(kind, key, value)
        assert reply.ok, "a request was refused in a cluster without faults"

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class KvCluster:
    """Nodes of `bench.kvnode` under a directory; a context manager."""

    def __init__(self, directory: Path, nodes: int) -> None:
        self._directory = directory
        self._nodes: list[subprocess.Popen[bytes]] = []
        ports = free_ports(2 * nodes)
        self._peers, self.fronts = ports[:nodes], ports[nodes:]

    def __enter__(self) -> Self:
        """Start the nodes."""
        for node in range(1, len(self.fronts) + 1):
            folder = self._directory / f"kv-{node}"
            folder.mkdir()
            command: list[str] = [sys.executable, "-m", "bench.kvnode", "--node", str(node)]
            command += ["--peers", ",".join(map(str, self._peers))]
            command += ["--fronts", ",".join(map(str, self.fronts)), "--folder", str(folder)]
            self._nodes.append(subprocess.Popen(command))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the nodes."""
        for node in self._nodes:
            node.kill()
            node.wait()

    async def leader(self) -> KvClient:
        """Return a connection to the node that leads, once one does."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                for port in self.fronts:
                    try:
                        _, client = await loop.create_connection(KvClient, "127.0.0.1", port)
                    except OSError:
                        continue
                    if (await client.call(Kind.LEADS)).ok:
                        return client
                    client.close()
                await asyncio.sleep(0.05)


class Side:
    """One of the two services: how to put and how to get a key by its number."""

    def __init__(self, name: str, put: Callable[[int], Awaitable[object]], get: Call) -> None:
        self.name = name
        self.put = put
        self.get = get


def _kv_side(client: KvClient, value: bytes) -> Side:
    rng = random.Random(1)

    def put(number: int) -> Awaitable[object]:
        return client.succeed(Kind.PUT, b"/bench/%06d" % (number % KEYS), value)

    def get() -> Awaitable[object]:
        return client.succeed(Kind.GET, b"/bench/%06d" % rng.randrange(KEYS))

    return Side("nokv_replication", put, get)


def _etcd_side(channel: grpc.aio.Channel, value: bytes) -> Side:
    rng = random.Random(1)
    call_put, call_range = channel.unary_unary(PUT), channel.unary_unary(RANGE)

    async def put(number: int) -> None:
        await call_put(encode_put(b"/bench/%06d" % (number % KEYS), value))

    async def get() -> None:
        await call_range(encode_range(b"/bench/%06d" % rng.randrange(KEYS)))

    return Side("etcd", put, get)


async def _measure(side: Side, rows: Sequence[Row], seconds: float) -> None:
    numbers = itertools.count()
    serial, put_64, put_256, get_64 = rows
    serial.values.append(await serial_ms(seconds, side.put))
    put_64.values.append(await keep_busy(64, seconds, lambda: side.put(next(numbers))))
    put_256.values.append(await keep_busy(256, seconds, lambda: side.put(next(numbers))))
    get_64.values.append(await keep_busy(64, seconds, side.get))


def _rows(name: str, *, ours: bool) -> list[Row]:
    goals = ("0.6 of etcd", "13,500", "22,000", "13,400") if ours else ("", "", "", "")
    peers = ("", "", "", "") if ours else ("0.81", "6,750", "10,960", "6,730")
    what = (
        (f"{name}: put, serial", "ms p50"),
        (f"{name}: puts, 64 outstanding", "1/s"),
        (f"{name}: puts, 256 outstanding", "1/s"),
        (f"{name}: linearizable gets, 64 outstanding", "1/s"),
    )
    return [
        Row(text, unit, "-" if "gets" in text else "fdatasync", 3, goal=goal, peer=peer)
        for (text, unit), goal, peer in zip(what, goals, peers, strict=True)
    ]


async def replication(directory: Path, seconds: float, repeats: int) -> None:
    """Measure both services in turns; print the table and save it."""
    value = os.urandom(VALUE_BYTES)
    facts = machine(directory)
    ours = _rows("nokv_replication", ours=True)
    theirs = _rows("etcd", ours=False)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        cluster = stack.enter_context(KvCluster(root, 3))
        missing = Etcd.missing()
        etcd = None if missing else stack.enter_context(Etcd(root))
        async with AsyncExitStack() as clients:
            client = await cluster.leader()
            pairs = [(_kv_side(client, value), ours)]
            if etcd is not None:
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{etcd.leader_port()}")
                await clients.enter_async_context(channel)
                pairs.append((_etcd_side(channel, value), theirs))
            for _ in range(repeats):
                for side, rows in pairs:
                    await _measure(side, rows, seconds)
            client.close()
    for row in theirs:
        row.why = missing
    ratios = [
        Row(
            f"ratio: {what}",
            "to etcd",
            "",
            3,
            [a / b for a, b in zip(x.values, y.values, strict=True)],
            goal,
        )
        for what, x, y, goal in zip(
            ("serial latency", "puts at 64", "puts at 256", "gets at 64"),
            ours,
            theirs,
            ("at most 0.6", "at least 2", "at least 2", "at least 2"),
            strict=True,
        )
        if y.values
    ]
    title = "Ordering alone: 256-byte values from one client process, beside etcd"
    show(title, facts, [*ours, *theirs, *ratios])
    save("replication", facts, [*ours, *theirs, *ratios])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.replication", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="for the data")
    given = parser.parse_args()
    uvloop.run(replication(given.directory, given.seconds, given.repeats))


if __name__ == "__main__":
    main()
