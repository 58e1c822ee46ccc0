"""The network port over TCP, for asyncio (uvloop): with mutual TLS, or in the clear on loopback.

One Raft connection per pair: the node with the smaller id dials, and the other one too where none
came for a second, for a node that lags does not know the newest peers yet. A state image travels on
a connection of its own, dialed by whoever sends it. A frame is a four-byte big-endian length and
that many bytes, at most 8 MiB. The dialer's hello comes first and names the connection's epoch; the
other side answers with its own, or with a sentence of refusal. Bytes that make no sense cost their
connection and nothing else.
"""

import asyncio
import ipaddress
import logging
from random import Random
from typing import Protocol

from nokv_replication.connection import HANDSHAKE_TIMEOUT_S, Connection
from nokv_replication.errors import ConfigurationError, HandshakeRefused
from nokv_replication.frames import Greeting, Purpose
from nokv_replication.tls import PeerTls

_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 1.0
_CONNECT_TIMEOUT_S = 2.0
_DIAL_MAX_S = _CONNECT_TIMEOUT_S + HANDSHAKE_TIMEOUT_S + 1.0
DEFER_S = 1.0
"""The larger id dials after so long without a connection."""
PENDING_MAX = 64
"""Inbound connections that have not said who they are; a further one costs the oldest."""
VISITORS_MAX = 8
"""Nodes that are connected and not among the peers that this node knows."""
_WARN_PAUSE_S = 1.0
"""Between two warnings of strangers; the others are counted."""

log = logging.getLogger(__name__)


class Endpoint(Protocol):
    """What a network needs of the group it serves."""

    def hello(self, epoch: int, purpose: Purpose = Purpose.RAFT) -> bytes:
        """Return the first frame for a connection."""

    def greet(self, data: bytes) -> Greeting:
        """Check a peer's first frame; return who it is and what the connection is for."""

    def connected(self, peer: int, epoch: int) -> None:
        """Announce a connection."""

    def disconnected(self, peer: int) -> None:
        """Announce its end."""

    def receive(self, peer: int, data: bytes) -> None:
        """Take a frame."""

    def image_connected(self, peer: int, epoch: int, *, outgoing: bool) -> None:
        """Announce an image connection, dialed by this node (`outgoing`) or by the peer."""

    def image_disconnected(self, peer: int, *, outgoing: bool) -> None:
        """Announce its end, or that it could not be dialed."""

    def receive_image(self, peer: int, data: bytes, *, outgoing: bool) -> None:
        """Take a frame of an image connection."""


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
    """Raise `ConfigurationError` unless the address is loopback, where no TLS is needed."""
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


class TcpNetwork:
    """The connections of one node of one group. Create, hand to `Group`, then `start`."""

    def __init__(
        self,
        node: int,
        listen: str,
        addresses: dict[int, str],
        rng: Random,
        tls: PeerTls | None = None,
    ) -> None:
        """Check the addresses; `listen` may differ from the advertised `addresses[node]`.

        Raises:
            ConfigurationError: an address is malformed, or not loopback and there is no TLS.
        """
        self.node = node
        self.tls = tls
        for address in (listen, *addresses.values()):
            self._check(address)
        self._listen = listen
        self._peers = {peer: address for peer, address in addresses.items() if peer != node}
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._dialers: dict[int, asyncio.Task[None]] = {}
        self._image_dialers: dict[int, asyncio.Task[None]] = {}
        self._open: set[Connection] = set()
        # Inbound connections before their hello, the oldest first.
        self._pending: dict[Connection, None] = {}
        self._raft: dict[int, Connection] = {}
        self._images: dict[tuple[int, bool], Connection] = {}
        self._endpoint: Endpoint | None = None
        self._closing = False
        self._reported: dict[str, str] = {}
        self._warn_after_s = 0.0
        self.rejected = 0
        """Connections ended for what they sent, or for who they are."""

    def _check(self, address: str) -> None:
        if self.tls is None:
            check_loopback(address)
        else:
            parse_address(address)

    @property
    def endpoint(self) -> Endpoint:
        """The group served."""
        assert self._endpoint is not None
        return self._endpoint

    @property
    def port(self) -> int:
        """The port bound, for a configuration that asked for port 0."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def new_epoch(self) -> int:
        """Return a number for a connection that no other has."""
        return self._rng.getrandbits(62) + 1

    # ------------------------------------------------------------------ life

    async def start(self, endpoint: Endpoint) -> None:
        """Listen, and dial the peers for ever.

        Raises:
            OSError: the address cannot be bound.
        """
        self._endpoint = endpoint
        host, port = parse_address(self._listen)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port)
        self._start_dialers()

    async def close(self) -> None:
        """Stop listening and dialing, close all connections, and wait until they are closed."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        tasks = [*self._dialers.values(), *self._image_dialers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.closed.wait() for connection in connections))
        if self._server is not None:
            await self._server.wait_closed()

    def set_peers(self, peers: dict[int, str]) -> None:
        """Dial these from now on (`Network`); unusable addresses are reported and not dialed."""
        usable = {}
        for peer, address in peers.items():
            try:
                self._check(address)
            except ConfigurationError as error:
                self.report(f"node {peer}", str(error))
            else:
                if peer != self.node:
                    usable[peer] = address
        old, self._peers = self._peers, usable
        for peer in [peer for peer in self._dialers if old.get(peer) != usable.get(peer)]:
            self._dialers.pop(peer).cancel()
        if self._server is not None and not self._closing:
            self._start_dialers()
            gone = old.keys() - usable.keys()
            if gone:
                asyncio.get_running_loop().call_soon(self._drop, gone)

    def _drop(self, gone: set[int]) -> None:
        """Close the connections of nodes that are no peers any more."""
        for peer in sorted(gone - self._peers.keys()):
            for connection in (
                self._raft.get(peer),
                self._images.get((peer, True)),
                self._images.get((peer, False)),
            ):
                if connection is not None:
                    connection.close()

    # ------------------------------------------------------------------ dialing

    def _start_dialers(self) -> None:
        loop = asyncio.get_running_loop()
        for peer in sorted(self._peers.keys() - self._dialers.keys()):
            self._dialers[peer] = loop.create_task(self._dial_forever(peer), name=f"dial {peer}")

    async def _dial_forever(self, peer: int) -> None:
        """Dial whenever there is no connection; the larger id waits for the smaller one first."""
        defer_s = DEFER_S if peer < self.node else 0.0
        pause_s = 0.0
        while True:
            await asyncio.sleep(defer_s + pause_s * (0.5 + self._rng.random()))
            present = self._raft.get(peer)
            if present is not None:
                await present.closed.wait()
                pause_s = _BACKOFF_MIN_S
                continue
            connection = await self._dial(peer, Purpose.RAFT)
            if connection is not None:
                await connection.settled.wait()
            if connection is not None and connection.peer is not None:
                pause_s = 0.0
            else:
                pause_s = min(max(2 * pause_s, _BACKOFF_MIN_S), _BACKOFF_MAX_S)

    async def _dial(self, peer: int, purpose: Purpose) -> Connection | None:
        """Return a connection that was made, before its handshake; None: nobody answers."""
        host, port = parse_address(self._peers[peer])
        loop, connection = asyncio.get_running_loop(), Connection(self, peer, purpose)
        made = False
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: connection, host, port)
            made = True
        except (OSError, UnicodeError) as error:  # a timeout; a name that is none
            log.debug("node %d at %s:%d: %s", peer, host, port, error)
            return None
        finally:
            if not made:
                # uvloop closes the socket of a dial that was cancelled and tells nobody, although
                # it may have said that the connection is made, or will.
                connection.connection_lost(None)
        return connection

    async def _dial_image(self, peer: int) -> None:
        connection = None
        try:
            if peer in self._peers:
                connection = await self._dial(peer, Purpose.IMAGE)
            if connection is not None:
                await connection.settled.wait()
        except asyncio.CancelledError:
            # `close_image` or `close`: nobody waits for it any more.
            if connection is not None:
                connection.abort()
            raise
        if self._image_dialers.get(peer) is asyncio.current_task():
            del self._image_dialers[peer]
        if (connection is None or connection.peer is None) and not self._closing:
            self.endpoint.image_disconnected(peer, outgoing=True)

    # ------------------------------------------------------------------ connections

    def opened(self, connection: Connection) -> None:
        """A connection exists; it has yet to say who it is."""
        self._open.add(connection)
        if self._closing:
            connection.abort()
        elif connection.dialed is None:
            self._pending[connection] = None
            if len(self._pending) > PENDING_MAX:
                oldest = next(iter(self._pending))
                self.reject(oldest, f"{PENDING_MAX} newer connections have not said hello either")
                oldest.abort()

    def admit(self, connection: Connection, peer: int) -> bool:
        """Return whether a peer that passed the handshake may have this connection.

        Of two between one pair the one that the smaller id dialed is kept. One that is older than
        any dial can take is no reason: a peer that dials has lost it.

        Raises:
            HandshakeRefused: it may not, and should be told why.
        """
        if peer == self.node:
            message = f"node {peer} connects to itself: does another node use its number?"
            raise HandshakeRefused(message)
        if peer not in self._peers:
            visitors = {*self._raft, *(other for other, _ in self._images)} - self._peers.keys()
            if len(visitors - {peer}) >= VISITORS_MAX:
                message = f"too many nodes that node {self.node} does not know are connected to it"
                raise HandshakeRefused(message)
        present = self._raft.get(peer)
        if connection.purpose != Purpose.RAFT or present is None:
            return True
        young = asyncio.get_running_loop().time() < present.began_s + _DIAL_MAX_S
        return not (young and self._wins(present, peer) and not self._wins(connection, peer))

    def _wins(self, connection: Connection, peer: int) -> bool:
        """Return whether the smaller id dialed it: that one is kept of two."""
        dialer = peer if connection.dialed is None else self.node
        return dialer == min(peer, self.node)

    def established(self, connection: Connection) -> None:
        """A connection passed its handshake; it replaces an older one with that peer."""
        peer = connection.peer
        assert peer is not None
        self._pending.pop(connection, None)
        self._reported.pop(f"node {peer}", None)
        if connection.purpose == Purpose.IMAGE:
            self._established_image(connection, peer)
            return
        old = self._raft.get(peer)
        if old is not None:
            old.abort()
        assert peer not in self._raft, "the old connection must be reported as lost first"
        self._raft[peer] = connection
        self.endpoint.connected(peer, connection.epoch)

    def _established_image(self, connection: Connection, peer: int) -> None:
        outgoing = connection.dialed is not None
        if outgoing and self._image_dialers.get(peer) is None:
            connection.abort()  # it was closed before it was open
            return
        old = self._images.get((peer, outgoing))
        if old is not None:
            old.abort()
        self._images[peer, outgoing] = connection
        self.endpoint.image_connected(peer, connection.epoch, outgoing=outgoing)

    def deliver(self, connection: Connection, data: bytes) -> None:
        """Hand a frame to the group, if the connection is still the one that counts."""
        peer = connection.peer
        assert peer is not None
        if connection.purpose == Purpose.RAFT:
            if self._raft.get(peer) is connection:
                self.endpoint.receive(peer, data)
            return
        outgoing = connection.dialed is not None
        if self._images.get((peer, outgoing)) is connection:
            self.endpoint.receive_image(peer, data, outgoing=outgoing)

    def lost(self, connection: Connection) -> None:
        """A connection is gone, or about to be; may be told twice."""
        self._pending.pop(connection, None)
        peer = connection.peer
        if peer is None:
            return
        if self._raft.get(peer) is connection:
            del self._raft[peer]
            self.endpoint.disconnected(peer)
        outgoing = connection.dialed is not None
        if self._images.get((peer, outgoing)) is connection:
            del self._images[peer, outgoing]
            self.endpoint.image_disconnected(peer, outgoing=outgoing)

    def forget(self, connection: Connection) -> None:
        """A connection's socket is closed."""
        self.lost(connection)
        self._open.discard(connection)

    # ------------------------------------------------------------------ frames out

    def send(self, peer: int, frame: bytes) -> None:
        """Queue one frame; dropped silently when there is no connection (`Network`)."""
        connection = self._raft.get(peer)
        if connection is not None:
            connection.write(frame)

    def open_image(self, peer: int) -> None:
        """Dial an image connection (`Network`)."""
        self.close_image(peer, outgoing=True)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._dial_image(peer), name=f"dial {peer} for an image")
        self._image_dialers[peer] = task

    def send_image(self, peer: int, frame: bytes, *, outgoing: bool) -> None:
        """Queue one frame of an image connection (`Network`)."""
        connection = self._images.get((peer, outgoing))
        if connection is not None:
            connection.write(frame)

    def close_image(self, peer: int, *, outgoing: bool) -> None:
        """Close an image connection once it is written, or stop dialing it (`Network`)."""
        if outgoing:
            task = self._image_dialers.pop(peer, None)
            if task is not None:
                task.cancel()
        connection = self._images.pop((peer, outgoing), None)
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------------ trouble

    def reject(self, connection: Connection, reason: str) -> None:
        """Count and log a connection that is ended for what it sent."""
        self.rejected += 1
        self.report(connection.name, reason)

    def report(self, peer: str, reason: str) -> None:
        """Log why a connection was closed; once, while a peer that dials again fails the same.

        Strangers, who may say anything, get a warning a second at most.
        """
        level = logging.DEBUG if self._reported.get(peer) == reason else logging.WARNING
        self._reported[peer] = reason
        if not peer.startswith("node ") and level == logging.WARNING:
            now_s = asyncio.get_running_loop().time()
            if now_s < self._warn_after_s:
                level = logging.DEBUG
            else:
                self._warn_after_s = now_s + _WARN_PAUSE_S
        log.log(level, "closing the connection with %s: %s", peer, reason)
