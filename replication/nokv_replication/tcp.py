"""The network port over plain TCP on loopback, for asyncio (uvloop).

One connection per pair: the node with the smaller id dials. A frame is a four-byte big-endian
length and that many bytes, at most 8 MiB. The dialer's hello comes first and names the connection's
epoch; the other side answers with its own, or with a sentence of refusal. Bytes that make no sense
cost their connection and nothing else. Without TLS only loopback addresses are used.
"""

import asyncio
import ipaddress
import logging
import socket
import struct
from random import Random
from typing import Protocol, cast

from nokv_replication.errors import ConfigurationError, HandshakeRefused, ProtocolError
from nokv_replication.frames import FRAME_MAX_BYTES, encode

_LENGTH = struct.Struct(">I")
_HELLO_MAX_BYTES = 4096
_HANDSHAKE_TIMEOUT_S = 2.0
_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 1.0
_BUFFER_MAX_BYTES = 64 << 20
"""Bytes waiting for a peer that does not read; more, and the connection is given up."""
_UNACKED_TIMEOUT_MS = 5_000

log = logging.getLogger(__name__)


class Endpoint(Protocol):
    """What a network needs of the group it serves."""

    def hello(self, epoch: int) -> bytes:
        """Return the first frame for a connection."""

    def greet(self, data: bytes) -> tuple[int, int]:
        """Check a peer's first frame; return (node, epoch)."""

    def connected(self, peer: int, epoch: int) -> None:
        """Announce a connection."""

    def disconnected(self, peer: int) -> None:
        """Announce its end."""

    def receive(self, peer: int, data: bytes) -> None:
        """Take a frame."""


def parse_address(address: str) -> tuple[str, int]:
    """Return (host, port) of "host:port", "[v6]:port" included.

    Raises:
        ConfigurationError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        message = f"{address!r} is no address: write host:port"
        raise ConfigurationError(message)
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_loopback(address: str) -> None:
    """Raise `ConfigurationError` unless the address is loopback: this transport has no TLS."""
    host, _ = parse_address(address)
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        message = (
            f"peer address {address} is not loopback: without TLS, replication listens and dials"
            " on 127.0.0.0/8, ::1 and localhost only"
        )
        raise ConfigurationError(message)


class _Connection(asyncio.Protocol):
    """One TCP connection, before and after its handshake."""

    def __init__(self, network: "TcpNetwork", dialed: int | None) -> None:
        self._network = network
        self._dialed = dialed
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.peer: int | None = None
        self.epoch = network.new_epoch() if dialed is not None else 0
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's own type
        self.transport = transport
        # Frames leave when they are written, not when the loop turns: the caller goes on to sync.
        transport.set_write_buffer_limits(high=0)
        _tune(transport.get_extra_info("socket"))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_HANDSHAKE_TIMEOUT_S, self.abort)
        self._network.opened(self)
        if self._dialed is not None:
            self.write(self._network.endpoint.hello(self.epoch))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position, size = 0, len(buffer)
        try:
            while size - position >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, position)
                limit = FRAME_MAX_BYTES if self.peer is not None else _HELLO_MAX_BYTES
                if not 0 < length <= limit:
                    message = f"a frame of {length} bytes, {limit} is the limit"
                    raise ProtocolError(message)
                end = position + _LENGTH.size + length
                if end > size:
                    break
                self._frame(bytes(memoryview(buffer)[position + _LENGTH.size : end]))
                position = end
        except HandshakeRefused as refusal:
            self._refuse(refusal)
            return
        except ProtocolError as error:
            self._network.report(self._name(), str(error))
            self.abort()
            return
        del buffer[:position]

    def _frame(self, data: bytes) -> None:
        endpoint = self._network.endpoint
        if self.peer is not None:
            endpoint.receive(self.peer, data)
            return
        node, epoch = endpoint.greet(data)
        if self._dialed is None:
            if node > self._network.node or epoch == 0:
                message = f"node {node} dials node {self._network.node}: the smaller id dials"
                raise ProtocolError(message)
            self.epoch = epoch
            self.write(endpoint.hello(0))
        elif node != self._dialed:
            message = f"node {node} answers at the address of node {self._dialed}"
            raise HandshakeRefused(message)
        if self._timer is not None:
            self._timer.cancel()
        self.peer = node
        self._network.established(self)

    def _refuse(self, refusal: HandshakeRefused) -> None:
        self._network.report(self._name(), str(refusal))
        if self._dialed is None:
            self.write(encode(str(refusal)[:512]))
        if self.transport is not None:
            self.transport.close()

    def _name(self) -> str:
        if self.peer is not None:
            return f"node {self.peer}"
        return f"node {self._dialed}" if self._dialed is not None else "an unknown peer"

    def write(self, frame: bytes) -> None:
        """Send one frame; a peer that does not read loses the connection."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > _BUFFER_MAX_BYTES:
            log.warning("%s does not read; closing the connection", self._name())
            self.abort()
            return
        transport.write(_LENGTH.pack(len(frame)) + frame)

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()
        # Whatever else has arrived on it must not be delivered.
        self._network.lost(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._network.lost(self)
        self.closed.set()


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", _UNACKED_TIMEOUT_MS),
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
    ):
        option = getattr(socket, name, None)  # tcp(7); absent on macOS
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class TcpNetwork:
    """The connections of one node of one group. Create, hand to `Group`, then `start`."""

    def __init__(self, node: int, listen: str, addresses: dict[int, str], rng: Random) -> None:
        """Check the addresses; `listen` may differ from the advertised `addresses[node]`.

        Raises:
            ConfigurationError: an address is malformed or not loopback.
        """
        for address in (listen, *addresses.values()):
            check_loopback(address)
        self.node = node
        self._listen = listen
        self._addresses = addresses
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._dialers: list[asyncio.Task[None]] = []
        self._open: set[_Connection] = set()
        self._established: dict[int, _Connection] = {}
        self._endpoint: Endpoint | None = None
        self._closing = False
        self._reported: dict[str, str] = {}

    @property
    def endpoint(self) -> Endpoint:
        """The group served."""
        assert self._endpoint is not None
        return self._endpoint

    def new_epoch(self) -> int:
        """Return a number for a connection that no other has."""
        return self._rng.getrandbits(62) + 1

    async def start(self, endpoint: Endpoint) -> None:
        """Listen, and dial the peers with larger ids for ever.

        Raises:
            OSError: the address cannot be bound.
        """
        self._endpoint = endpoint
        host, port = parse_address(self._listen)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, None), host, port)
        self._dialers = [
            loop.create_task(self._dial(peer), name=f"dial node {peer}")
            for peer in sorted(self._addresses)
            if peer > self.node
        ]

    @property
    def port(self) -> int:
        """The port bound, for a configuration that asked for port 0."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _dial(self, peer: int) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = _BACKOFF_MIN_S
        while True:
            host, port = parse_address(self._addresses[peer])
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, peer), host, port
                )
                await connection.closed.wait()
                if connection.peer is not None:
                    backoff_s = _BACKOFF_MIN_S
            except OSError as error:
                log.debug("node %d at %s:%d: %s", peer, host, port, error)
            await asyncio.sleep(backoff_s * (0.5 + self._rng.random()))
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    def opened(self, connection: _Connection) -> None:
        """A connection exists; it has yet to say who it is."""
        self._open.add(connection)
        if self._closing:
            connection.abort()

    def report(self, peer: str, reason: str) -> None:
        """Log why a connection was closed; once, while a peer that dials again fails the same."""
        level = logging.DEBUG if self._reported.get(peer) == reason else logging.WARNING
        self._reported[peer] = reason
        log.log(level, "closing the connection with %s: %s", peer, reason)

    def established(self, connection: _Connection) -> None:
        """A connection passed its handshake; it replaces an older one with that peer."""
        peer = connection.peer
        assert peer is not None
        old = self._established.get(peer)
        if old is not None:
            old.abort()
        self._established[peer] = connection
        self._reported.pop(f"node {peer}", None)
        self.endpoint.connected(peer, connection.epoch)

    def lost(self, connection: _Connection) -> None:
        """A connection is gone; may be told twice."""
        self._open.discard(connection)
        peer = connection.peer
        if peer is not None and self._established.get(peer) is connection:
            del self._established[peer]
            self.endpoint.disconnected(peer)

    def send(self, peer: int, frame: bytes) -> None:
        """Queue one frame; dropped silently when there is no connection (`Network`)."""
        connection = self._established.get(peer)
        if connection is not None:
            connection.write(frame)

    async def close(self) -> None:
        """Stop listening and dialing, close all connections, and wait until they are closed."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task in self._dialers:
            task.cancel()
        await asyncio.gather(*self._dialers, return_exceptions=True)
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.closed.wait() for connection in connections))
        if self._server is not None:
            await self._server.wait_closed()
