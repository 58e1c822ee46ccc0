"""TLS for the connections between nodes, over memory.

The bytes of a socket go in, and the bytes for it come out at once: a frame leaves when it is
written, before the caller goes on to sync, which the TLS transports of event loops do not promise.
"""

import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nokv_replication.errors import ProtocolError

HANDSHAKE_MAX_BYTES = 64 << 10
"""What a peer may send before its certificate is verified."""

_RECORD_BYTES = 16 << 10
"""Plaintext of one record, at most (RFC 8446, 5.1)."""


class PeerTls(NamedTuple):
    """What a node needs to talk TLS with its peers.

    Both contexts must demand and verify a certificate. `node_of` returns the node's number that a
    verified certificate names, in the form of `SSLSocket.getpeercert`, or raises `HandshakeRefused`
    if it names no node of this cluster.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    node_of: Callable[[Mapping[str, Any]], int]


class TlsStream:
    """One connection's TLS. After every call, `take` has the bytes to send."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        assert context.verify_mode == ssl.CERT_REQUIRED, "the peer must show a certificate"
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._received_bytes = 0
        self.ready = False
        """The peer's certificate is verified, and `write` may be called."""
        if not server:
            self._shake_hands()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the socket; return what they say.

        Raises:
            ProtocolError: they are no TLS, or the peer's certificate is not accepted, or the peer
                does not accept this node's. `take` has the alert for it.
        """
        self._incoming.write(data)
        if not self.ready:
            self._received_bytes += len(data)
            if self._received_bytes > HANDSHAKE_MAX_BYTES:
                message = f"a TLS handshake of more than {HANDSHAKE_MAX_BYTES} bytes"
                raise ProtocolError(message)
            self._shake_hands()
            if not self.ready:
                return b""
        pieces = []
        try:
            while piece := self._object.read(_RECORD_BYTES):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise _refusal(error) from error
        return b"".join(pieces)

    def write(self, data: bytes) -> None:
        """Encrypt; memory takes any amount at once."""
        assert self.ready
        written = self._object.write(data)
        assert written == len(data)

    def take(self) -> bytes:
        """Return the bytes that belong on the socket now, and forget them."""
        return self._outgoing.read() if self._outgoing.pending else b""

    @property
    def certificate(self) -> Mapping[str, Any]:
        """The peer's certificate, once `ready`."""
        certificate = self._object.getpeercert()
        assert certificate is not None
        return certificate

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise _refusal(error) from error
        self.ready = True


def _refusal(error: ssl.SSLError) -> ProtocolError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ProtocolError(f"its certificate is not accepted: {error.verify_message}")
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        return ProtocolError(f"it does not accept this node's certificate, or TLS: {reason}")
    return ProtocolError(f"TLS failed: {reason}")
