"""A node's TLS: one certificate for its peer port, its RPC port and all that it dials."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from nokv.errors import ConfigError, Forbidden
from nokv.server.config import TlsConfig
from nokv.wire.identity import Identity, identity_of
from nokv.wire.tls import TlsFiles, client_context, reason_of, server_context
from nokv_replication import HandshakeRefused
from nokv_replication.tls import PeerTls

EXPIRY_WARN_S: Final = 30 * 86_400
"""So long before a certificate ends the node warns."""


class NodeTls(NamedTuple):
    """What a node's processes need."""

    server: ssl.SSLContext
    """For both ports."""
    client: ssl.SSLContext
    """For what the node dials, its own RPC port included."""
    cluster: str
    expires_s: float
    """When the first of the node's certificate and its authority's ends, since the epoch."""

    @property
    def peers(self) -> PeerTls:
        """What replication needs: a peer shows the certificate of a node of this cluster."""
        return PeerTls(self.server, self.client, self._node_of)

    def _node_of(self, certificate: Mapping[str, Any]) -> int:
        try:
            identity = identity_of(certificate)
        except Forbidden as error:
            raise HandshakeRefused(error.message) from None
        if identity.cluster != self.cluster or not identity.node:
            message = f"its certificate is that of {identity.uri}, not of a node of this cluster"
            raise HandshakeRefused(message)
        return identity.node

    @property
    def left_s(self) -> float:
        """Return the seconds until `expires_s`."""
        return self.expires_s - time.time()

    def warning(self) -> str:
        """Return what to say of an end that is near, or empty."""
        if self.left_s > EXPIRY_WARN_S:
            return ""
        when = time.strftime("%Y-%m-%d", time.gmtime(self.expires_s))
        return f"the TLS certificate or its authority ends on {when}: make another and restart"


def load_tls(config: TlsConfig, cluster: str, node: int) -> NodeTls | None:
    """Return a node's TLS, tried out against itself; None where none is configured.

    Raises:
        ConfigError: a file is missing, the certificate is not valid now, not signed by the
            authority, or that of another node or cluster.
    """
    if not config.enabled:
        return None
    files = TlsFiles(config.ca, config.cert, config.key)
    server, client = server_context(files), client_context(files)
    try:
        certificate = _shake_hands(server, client)
    except ssl.SSLError as error:
        message = f"{files.cert} would not be accepted with {files.ca}: {reason_of(error)}"
        raise ConfigError(message, hint="make another: nokv certs node") from None
    try:
        identity = identity_of(certificate)
    except Forbidden as error:
        raise ConfigError(f"{files.cert}: {error.message}", hint=error.hint) from None
    if identity != Identity(cluster, "node", str(node)):
        message = f"{files.cert} is the certificate of {identity.uri}"
        wanted = Identity(cluster, "node", str(node)).uri
        raise ConfigError(message, hint=f"this is {wanted}: make its own with nokv certs node")
    ends = [certificate, *client.get_ca_certs()]
    expires_s = min(ssl.cert_time_to_seconds(str(one["notAfter"])) for one in ends)
    return NodeTls(server, client, cluster, float(expires_s))


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, Any]:
    """Let a node connect to itself in memory: both sides must accept the one certificate.

    Returns it. Raises ssl.SSLError with the reason of the side that does not.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialer = client.wrap_bio(to_client, to_server)
    listener = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [dialer, listener]
    for _ in range(8):  # TLS 1.3 needs two rounds
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
        if not waiting:
            break
    certificate = dialer.getpeercert()
    assert not waiting, "a handshake in memory ends"
    assert certificate is not None, "the context demands one"
    return certificate
