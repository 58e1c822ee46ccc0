"""Real networks of some nodes on loopback, what they tell, and a peer made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import uvloop

from nokv.server.tls import NodeTls
from nokv.testing.ports import free_ports, release_ports
from nokv.wire.tls import TlsFiles, client_context, server_context
from nokv_replication import tcp
from nokv_replication.bootstrap import FORMAT
from nokv_replication.frames import Greeting, Hello, Purpose, decode_hello, encode
from nokv_replication.tcp import TcpNetwork
from nokv_replication.tls import PeerTls, TlsStream

CLUSTER = "abcdef"
LENGTH = struct.Struct(">I")


class End:
    """What a network tells its group, written down."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.said: list[tuple[object, ...]] = []
        self._told = asyncio.Event()

    def _say(self, *what: object) -> None:
        self.said.append(what)
        self._told.set()

    async def until(self, *what: object, times: int = 1) -> None:
        while self.said.count(what) < times:
            self._told.clear()
            await self._told.wait()

    def hello(self, epoch: int, purpose: Purpose = Purpose.RAFT) -> bytes:
        return encode(Hello(FORMAT, CLUSTER, self.node, 7, b"", epoch, purpose))

    def greet(self, data: bytes) -> Greeting:
        hello = decode_hello(data)
        return Greeting(hello.node, hello.epoch, hello.purpose)

    def connected(self, peer: int, epoch: int) -> None:
        assert epoch > 0
        self._say("connected", peer)

    def disconnected(self, peer: int) -> None:
        self._say("disconnected", peer)

    def receive(self, peer: int, data: bytes) -> None:
        self._say("frame", peer, data)

    def image_connected(self, peer: int, epoch: int, *, outgoing: bool) -> None:
        assert epoch > 0
        self._say("image", peer, outgoing)

    def image_disconnected(self, peer: int, *, outgoing: bool) -> None:
        self._say("no image", peer, outgoing)

    def receive_image(self, peer: int, data: bytes, *, outgoing: bool) -> None:
        self._say("piece", peer, data, outgoing)


def peer_tls(folder: Path, stem: str, whose: str = "ours", cluster: str = CLUSTER) -> PeerTls:
    files = TlsFiles(
        str(folder / "ours" / "ca.crt"),
        str(folder / whose / f"{stem}.crt"),
        str(folder / whose / f"{stem}.key"),
    )
    return NodeTls(server_context(files), client_context(files), cluster, 0.0).peers


class Net:
    """Networks of some nodes on loopback."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.ports = free_ports(4, random.Random())
        self.addresses = {n + 1: f"127.0.0.1:{port}" for n, port in enumerate(self.ports)}
        self.networks: dict[int, TcpNetwork] = {}
        self.ends: dict[int, End] = {}

    async def start(self, node: int, peers: tuple[int, ...], tls: PeerTls | None = None) -> End:
        if tls is None and self.folder is not None:
            tls = peer_tls(self.folder, f"node-{node}")
        network = TcpNetwork(
            node,
            self.addresses[node],
            {peer: self.addresses[peer] for peer in peers},
            random.Random(node),
            tls,
        )
        self.networks[node], self.ends[node] = network, End(node)
        await network.start(self.ends[node])
        return self.ends[node]

    async def close(self) -> None:
        for network in self.networks.values():
            await network.close()
        release_ports(self.ports)

    async def until_rejected(self, node: int) -> None:
        while not self.networks[node].rejected:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


def run(scenario: Callable[[Net], Awaitable[None]], folder: Path | None, uv: bool = True) -> None:
    async def main() -> None:
        net = Net(folder)
        async with asyncio.timeout(40):
            try:
                async with asyncio.timeout(30):
                    await scenario(net)
            finally:
                await net.close()

    (uvloop.run if uv else asyncio.run)(main())


class Stranger:
    """A hand-made peer: a blocking socket and TLS over it."""

    def __init__(self, address: str, tls: PeerTls | None) -> None:
        self.socket = socket.create_connection(tcp.parse_address(address))
        self.socket.settimeout(5)
        self.stream = None if tls is None else TlsStream(tls.client, server=False)
        self._plain = bytearray()

    async def shake_hands(self) -> None:
        assert self.stream is not None
        while not self.stream.ready:
            self._push()
            self._plain += self.stream.feed(await self._receive())
        self._push()

    def _push(self) -> None:
        if self.stream is not None and (data := self.stream.take()):
            self.socket.sendall(data)

    async def _receive(self) -> bytes:
        data = await asyncio.to_thread(self.socket.recv, 65_536)
        if not data:
            raise ConnectionResetError
        return data

    def send(self, frame: bytes) -> None:
        data = LENGTH.pack(len(frame)) + frame
        if self.stream is None:
            self.socket.sendall(data)
        else:
            self.stream.write(data)
            self._push()

    def receive_now(self) -> bytes:
        """Return what the kernel has, without the loop turning."""
        data = self.socket.recv(65_536)
        return data if self.stream is None else self.stream.feed(data)

    async def receive(self) -> bytes:
        while len(self._plain) < 4 or len(self._plain) < 4 + LENGTH.unpack(self._plain[:4])[0]:
            data = await self._receive()
            self._plain += data if self.stream is None else self.stream.feed(data)
        (length,) = LENGTH.unpack(self._plain[:4])
        frame = bytes(self._plain[4 : 4 + length])
        del self._plain[: 4 + length]
        return frame

    async def ended(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while True:
                await self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()
