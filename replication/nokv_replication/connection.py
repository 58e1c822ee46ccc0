"""One TCP connection between two nodes: its TLS, its frames and its handshake."""

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, cast

from nokv_replication.errors import HandshakeRefused, ProtocolError
from nokv_replication.frames import FRAME_MAX_BYTES, Purpose, encode
from nokv_replication.tls import TlsStream

if TYPE_CHECKING:
    from nokv_replication.tcp import TcpNetwork

HELLO_MAX_BYTES = 4096
"""The first frame, and so all that a connection may hold before it said who it is."""
HANDSHAKE_TIMEOUT_S = 2.0
BUFFER_MAX_BYTES = 64 << 20
"""Bytes waiting for a peer that does not read; more, and the connection is given up."""
_LENGTH = struct.Struct(">I")
_UNACKED_TIMEOUT_MS = 5_000
_CLOSE_TIMEOUT_S = 2.0
"""What was written has so long to leave after `close`."""

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """One connection, before and after its handshake. `dialed` is the peer that was dialed."""

    def __init__(
        self,
        network: "TcpNetwork",
        dialed: int | None = None,
        purpose: Purpose = Purpose.RAFT,
    ) -> None:
        self._network = network
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._tls: TlsStream | None = None
        self._certified: int | None = None
        # Closed, or closing: nothing more of it is delivered.
        self._ended = False
        self.dialed = dialed
        self.purpose = purpose
        self.began_s = asyncio.get_running_loop().time()
        """When it was begun, in the loop's time."""
        self.peer: int | None = None
        """Who it is, once the handshake is over; never changes afterwards."""
        self.epoch = network.new_epoch() if dialed is not None else 0
        self.settled = asyncio.Event()
        """The handshake is over, one way or the other."""
        self.closed = asyncio.Event()

    @property
    def name(self) -> str:
        """Who it is, as far as this is known."""
        for node in (self.peer, self._certified, self.dialed):
            if node is not None:
                return f"node {node}"
        return "an unknown peer"

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with TLS, or with the hello."""
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's own type
        if self._ended:
            transport.abort()  # its dial was cancelled meanwhile
            return
        # Frames leave when they are written, not when the loop turns: the caller goes on to sync.
        transport.set_write_buffer_limits(high=0)
        tune(transport.get_extra_info("socket"))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HANDSHAKE_TIMEOUT_S, self._too_slow)
        self._network.opened(self)
        tls = self._network.tls
        if tls is not None:
            server = self.dialed is None
            self._tls = TlsStream(tls.server if server else tls.client, server=server)
            self._flush_tls()
        elif self.dialed is not None:
            self._say_hello()

    def data_received(self, data: bytes) -> None:
        """Take bytes; whatever they are, the worst is the end of this connection."""
        if self._ended:
            return
        try:
            if self._tls is not None:
                data = self._decrypt(self._tls, data)
            self._take(data)
        except HandshakeRefused as refusal:
            self._refuse(refusal)
        except ProtocolError as error:
            self._network.reject(self, str(error))
            self._flush_tls()  # the alert
            self.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell the network."""
        self._end()
        self._network.forget(self)
        self.closed.set()

    # ------------------------------------------------------------------ bytes in

    def _decrypt(self, tls: TlsStream, data: bytes) -> bytes:
        """Return what the bytes say; greet, and check the certificate, when TLS stands."""
        was_ready = tls.ready
        data = tls.feed(data)
        self._flush_tls()
        if tls.ready and not was_ready:
            assert self._network.tls is not None
            self._certified = self._network.tls.node_of(tls.certificate)
            if self.dialed is not None:
                if self._certified != self.dialed:
                    message = f"node {self._certified} answers at the address of node {self.dialed}"
                    raise ProtocolError(message)
                self._say_hello()
        return data

    def _take(self, data: bytes) -> None:
        """Cut the bytes into frames."""
        buffer = self._buffer
        buffer += data
        position, size = 0, len(buffer)
        while size - position >= _LENGTH.size and not self._ended:
            (length,) = _LENGTH.unpack_from(buffer, position)
            limit = FRAME_MAX_BYTES if self.peer is not None else HELLO_MAX_BYTES
            if not 0 < length <= limit:
                message = f"a frame of {length} bytes, {limit} is the limit"
                raise ProtocolError(message)
            end = position + _LENGTH.size + length
            if end > size:
                break
            self._frame(bytes(memoryview(buffer)[position + _LENGTH.size : end]))
            position = end
        del buffer[:position]

    def _frame(self, data: bytes) -> None:
        if self.peer is not None:
            self._network.deliver(self, data)
            return
        greeting = self._network.endpoint.greet(data)
        if self._certified is not None and greeting.node != self._certified:
            message = f"node {self._certified}, by its certificate, says it is node {greeting.node}"
            raise HandshakeRefused(message)
        if self.dialed is None:
            if greeting.epoch == 0:
                message = f"node {greeting.node} dials, and gives the connection no epoch"
                raise ProtocolError(message)
            self.epoch = greeting.epoch
            self.purpose = greeting.purpose
            admitted = self._network.admit(self, greeting.node)
            if admitted:
                self.write(self._network.endpoint.hello(0, self.purpose))
        else:
            if greeting.node != self.dialed:
                message = f"node {greeting.node} answers at the address of node {self.dialed}"
                raise HandshakeRefused(message)
            if greeting.purpose != self.purpose:
                message = f"node {greeting.node} answers for another purpose"
                raise ProtocolError(message)
            admitted = self._network.admit(self, greeting.node)
        if not admitted:
            log.debug("a second connection with node %d is closed", greeting.node)
            self.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        self.peer = greeting.node
        self._network.established(self)
        self.settled.set()

    def _refuse(self, refusal: HandshakeRefused) -> None:
        self._network.reject(self, str(refusal))
        if self.dialed is None:
            self.write(encode(str(refusal)[:512]))
        self.close()

    def _too_slow(self) -> None:
        self._network.reject(self, f"no hello within {HANDSHAKE_TIMEOUT_S:g} s")
        self.abort()

    # ------------------------------------------------------------------ bytes out

    def _say_hello(self) -> None:
        self.write(self._network.endpoint.hello(self.epoch, self.purpose))

    def write(self, frame: bytes) -> None:
        """Send one frame; a peer that does not read loses the connection."""
        transport = self._transport
        if self._ended or transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > BUFFER_MAX_BYTES:
            log.warning("%s does not read; closing the connection", self.name)
            self.abort()
            return
        data = _LENGTH.pack(len(frame)) + frame
        if self._tls is None:
            transport.write(data)
        elif self._tls.ready:
            self._tls.write(data)
            transport.write(self._tls.take())

    def _flush_tls(self) -> None:
        data = self._tls.take() if self._tls is not None else b""
        if data and self._transport is not None:
            self._transport.write(data)

    # ------------------------------------------------------------------ the end

    def abort(self) -> None:
        """Close at once."""
        self._end()
        if self._transport is not None:
            self._transport.abort()
        # Whatever else has arrived on it must not be delivered.
        self._network.lost(self)

    def close(self) -> None:
        """Close once what was written has left, or after a while; nothing more is delivered."""
        self._end()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_CLOSE_TIMEOUT_S, self._transport.abort)
        self._network.lost(self)

    def _end(self) -> None:
        self._ended = True
        self._buffer.clear()
        self.settled.set()
        if self._timer is not None:
            self._timer.cancel()


def tune(sock: socket.socket) -> None:
    """Set what finds out a dead peer: keepalive, and a limit for what stays unacknowledged."""
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
