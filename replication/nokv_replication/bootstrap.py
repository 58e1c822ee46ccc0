"""Who a node is, and how the first members find each other.

A node's *incarnation* is a random number minted once with its data directory. The group consists of
incarnations, not of names: a node whose disk was wiped returns under another incarnation and is
refused, because it forgot its votes and its acknowledgements.
"""

import hashlib
from typing import Annotated

import msgspec

from nokv_replication.errors import ConfigurationError

FORMAT = 1
"""Format of the log, of frames and of the values here. A peer of another format is refused."""

NODES_MAX = 7

NodeId = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Incarnation = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class Identity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What `init` mints once for a data directory; never changes afterwards."""

    cluster: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    node: NodeId
    incarnation: Incarnation
    format: int = FORMAT


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One first member: its incarnation and the address its peers dial."""

    node: NodeId
    incarnation: Incarnation
    address: Annotated[str, msgspec.Meta(max_length=255)]


class Members(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The full list of first members, ordered by node id: the content of the first entry."""

    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=NODES_MAX)]
    format: int = FORMAT

    def digest(self, cluster: str) -> bytes:
        """Return 16 bytes over (cluster, {node: incarnation}); addresses may change, these not."""
        pairs = [(member.node, member.incarnation) for member in self.members]
        return hashlib.sha256(msgspec.msgpack.encode([cluster, pairs])).digest()[:16]

    def addresses(self) -> dict[int, str]:
        """Return node id to address."""
        return {member.node: member.address for member in self.members}


def check_addresses(identity: Identity, addresses: dict[int, str]) -> None:
    """Raise `ConfigurationError` unless `addresses` is a list of first members with this node."""
    if identity.node not in addresses:
        message = f"node {identity.node} is not among the members {sorted(addresses)}"
        raise ConfigurationError(message)
    if not 1 <= len(addresses) <= NODES_MAX:
        message = f"a group has 1 to {NODES_MAX} members, not {len(addresses)}"
        raise ConfigurationError(message)
    if identity.format != FORMAT:
        message = f"the data directory has format {identity.format}, this program speaks {FORMAT}"
        raise ConfigurationError(message)
