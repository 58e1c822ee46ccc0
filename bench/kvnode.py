"""One node of a small key-value service on `nokv_replication`: what the replication bench loads.

Opaque keys and values, a state in LMDB with the commits of a real node, and a network front of
length-prefixed MessagePack. It exists to measure ordering without the namespace's own work.

    python -m bench.kvnode --node 1 --peers PORT,PORT,PORT --fronts PORT,PORT,PORT --folder DIR
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from nokv.kv.lmdb_store import LmdbKV
from nokv.state.families import Family
from nokv.wire.framing import FrameParser, frame
from nokv_replication import (
    Applied,
    Committed,
    Group,
    GroupConfig,
    Identity,
    Outcome,
    ReadOutcome,
    Times,
    initialise,
)
from nokv_replication.disk import OsDisk
from nokv_replication.driver import Driver, SystemClock
from nokv_replication.ports import ImageSink, ImageSource
from nokv_replication.tcp import TcpNetwork

_APPLIED = b"applied"
_HASH = b"hash"
_NO_IMAGES = "no node of a bench falls so far behind"


class Kind(IntEnum):
    """What a request asks for."""

    PUT = 0
    GET = 1
    LEADS = 2


class Request(msgspec.Struct, frozen=True, array_like=True):
    """`value` of a put alone."""

    number: int
    kind: Kind
    key: bytes = b""
    value: bytes = b""


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """`ok` is False for anything but success; `value` of a get alone."""

    number: int
    ok: bool
    value: bytes = b""


_decode_request = msgspec.msgpack.Decoder(Request).decode
_encode = msgspec.msgpack.Encoder().encode


class PairMachine:
    """Key-value pairs in LMDB under the `Machine` port; the payload of an entry is [key, value]."""

    # ruff: noqa: D102 - the port's docstrings hold

    def __init__(self, kv: LmdbKV) -> None:
        self._kv = kv
        stored = kv.get(Family.META, _APPLIED)
        self._applied = msgspec.msgpack.decode(stored, type=Applied) if stored else Applied()
        self._hash = kv.get(Family.META, _HASH) or b""
        self._decode = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode

    def open(self) -> Applied:
        return self._applied

    def apply(self, applied: Applied, _times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        self._kv.write(Family.INODE, [self._decode(payload) for payload in payloads])
        if payloads:
            digest = hashlib.blake2b(self._hash, digest_size=16)
            for payload in payloads:
                digest.update(payload)
            self._hash = digest.digest()
        self._applied = applied
        for _ in payloads:
            yield b""

    def commit(self) -> int:
        position = msgspec.msgpack.encode(self._applied)
        self._kv.write(Family.META, [(_APPLIED, position), (_HASH, self._hash)])
        self._kv.commit()
        return self._applied.index

    def fingerprint(self) -> bytes:
        return self._hash

    def digest(self) -> bytes:
        return self._hash

    def image(self) -> ImageSource:
        raise AssertionError(_NO_IMAGES)

    def receive(self, _applied: Applied) -> ImageSink:
        raise AssertionError(_NO_IMAGES)

    def install(self, _sink: ImageSink) -> Applied:
        raise AssertionError(_NO_IMAGES)

    def get(self, key: bytes) -> bytes:
        return self._kv.get(Family.INODE, key) or b""


class Front(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, group: Group, machine: PairMachine) -> None:
        self._group = group
        self._machine = machine
        self._parser = FrameParser()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for payload in self._parser.feed(data):
            self._take(_decode_request(payload))

    def _take(self, request: Request) -> None:
        number = request.number
        if request.kind == Kind.PUT:

            def put(outcome: Outcome) -> None:
                self._answer(Reply(number, isinstance(outcome, Committed)))

            self._group.propose(_encode((request.key, request.value)), put)
        elif request.kind == Kind.GET:
            key = request.key

            def read(outcome: ReadOutcome) -> None:
                ok = isinstance(outcome, int)
                self._answer(Reply(number, ok, self._machine.get(key) if ok else b""))

            self._group.read_index(read)
        else:
            self._answer(Reply(number, self._group.status().leads))

    def _answer(self, reply: Reply) -> None:
        # What one step answers leaves in one write.
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(frame(_encode(reply)))

    def _flush(self) -> None:
        out, self._out = self._out, []
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(b"".join(out))


async def serve(node: int, peers: list[int], fronts: list[int], folder: Path) -> None:
    """Be one node until the process is ended."""
    addresses = {i + 1: f"127.0.0.1:{port}" for i, port in enumerate(peers)}
    config, rng = GroupConfig(), random.Random()
    log = folder / "log"
    if not log.exists():
        log.mkdir()
        initialise(OsDisk(log), config, Identity("bench", node, 100 + node), rng)
    machine = PairMachine(LmdbKV(folder / "state"))
    network = TcpNetwork(node, addresses[node], addresses, rng)
    group = Group(
        identity=Identity("bench", node, 100 + node),
        addresses=addresses,
        config=config,
        machine=machine,
        disk=OsDisk(log),
        network=network,
        clock=SystemClock(),
        rng=rng,
    )
    driver = Driver(group, network)
    await driver.start()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Front(group, machine), "127.0.0.1", fronts[node - 1])
    await asyncio.Event().wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.kvnode")
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--fronts", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    peers = [int(port) for port in given.peers.split(",")]
    fronts = [int(port) for port in given.fronts.split(",")]
    uvloop.run(serve(given.node, peers, fronts, given.folder))


if __name__ == "__main__":
    main()
