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
"""Voters of a group, at most: each more makes every commit wait for more disks."""
MEMBERS_MAX = 9
"""Voters and learners together, at most."""

NodeId = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Incarnation = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class Identity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What `init` mints once for a data directory; never changes afterwards."""

    cluster: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    node: NodeId
    incarnation: Incarnation
    format: int = FORMAT
    joining: bool = False
    """Not among the founders: it learns the members from the log or an image of its group."""


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member: its incarnation and the address its peers dial.

    A member that is no `voter` is a learner: entries are sent to it, but it is not counted and
    never stands. `info` is the owner's and means nothing here.
    """

    node: NodeId
    incarnation: Incarnation
    address: Annotated[str, msgspec.Meta(max_length=255)]
    voter: bool = True
    info: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class Members(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A configuration: the full list of members, ordered by node id. A MEMBERS entry holds one.

    `founders` is the digest of the first list, the same for ever: the group's name in handshakes.
    `highest` is the largest node id ever used; ids are never used again, so an id up to it that is
    not in the list belongs to a member that was removed.
    """

    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]
    format: int = FORMAT
    founders: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    highest: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0

    @classmethod
    def first(cls, cluster: str, members: tuple[Member, ...]) -> "Members":
        """Return the configuration that founds a group; `members` are ordered by node id."""
        pairs = [(member.node, member.incarnation) for member in members]
        digest = hashlib.sha256(msgspec.msgpack.encode([cluster, pairs])).digest()[:16]
        return cls(members, FORMAT, digest, max(member.node for member in members))

    def get(self, node: int) -> Member | None:
        """Return the member with that id, None where there is none."""
        return next((member for member in self.members if member.node == node), None)

    def voters(self) -> frozenset[int]:
        """Return the ids that count."""
        return frozenset(member.node for member in self.members if member.voter)

    def addresses(self) -> dict[int, str]:
        """Return node id to address."""
        return {member.node: member.address for member in self.members}


def check_addresses(identity: Identity, addresses: dict[int, str]) -> None:
    """Raise `ConfigurationError` unless `addresses` is a list of first members with this node."""
    if identity.joining:
        if not addresses:
            message = "a node that joins needs the address of a member at least"
            raise ConfigurationError(message)
    elif identity.node not in addresses:
        message = f"node {identity.node} is not among the members {sorted(addresses)}"
        raise ConfigurationError(message)
    limit = MEMBERS_MAX if identity.joining else NODES_MAX
    if not 1 <= len(addresses) <= limit:
        message = f"a group has 1 to {limit} members, not {len(addresses)}"
        raise ConfigurationError(message)
    if identity.format != FORMAT:
        message = f"the data directory has format {identity.format}, this program speaks {FORMAT}"
        raise ConfigurationError(message)
