"""Whom a certificate names.

Whoever connects and whoever is connected to show a certificate of the cluster's own authority. Who
it is says a URI among its alternative names (RFC 5280, 4.2.1.6), whatever address it came from:

    nokv://CLUSTER/node/NUMBER       a node
    nokv://CLUSTER/client/NAME       a client
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from nokv.errors import Forbidden

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of a cluster or a client."""

_URI: Final = re.compile(rf"nokv://({NAME.pattern})/(node|client)/({NAME.pattern})")

Kind = Literal["node", "client"]


class Identity(NamedTuple):
    """Whom a certificate names."""

    cluster: str
    kind: Kind
    name: str
    """A node's number, or a client's name."""

    @property
    def uri(self) -> str:
        """The text that a certificate holds."""
        return f"nokv://{self.cluster}/{self.kind}/{self.name}"

    @property
    def node(self) -> int:
        """The node's number; 0 for a client, or for a node whose name is no number."""
        is_number = self.kind == "node" and self.name.isascii() and self.name.isdigit()
        return int(self.name) if is_number and len(self.name) <= 5 else 0


def identity_of(certificate: Mapping[str, Any] | None) -> Identity:
    """Return whom a verified certificate names; it is in the form of `SSLSocket.getpeercert`.

    Raises:
        Forbidden: nobody, or more than one.
    """
    names = (certificate or {}).get("subjectAltName", ())
    found = [_URI.fullmatch(text) for kind, text in names if kind == "URI"]
    matches = [match for match in found if match is not None]
    if len(matches) != 1:
        message = "the certificate does not name one node or client of a cluster"
        raise Forbidden(message, hint="it needs one URI as nokv://CLUSTER/node/1; see nokv certs")
    cluster, kind, name = matches[0].groups()
    return Identity(cluster, "node" if kind == "node" else "client", name)
