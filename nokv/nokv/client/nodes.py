"""The nodes of a cluster as one client knows them: learnt from answers, forgotten when removed.

A node has a number, which is never used again, and may be reached at another address than the one
that the others know it by.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from nokv.errors import InvalidArgument
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import Member

log = logging.getLogger("nokv.client")

NODES_MAX: Final = 64
"""Nodes that a client remembers; further ones that answers name are ignored."""


class Node:
    """One node as the client sees it."""

    def __init__(self, address: str) -> None:
        self.address: Final = address
        self.number = 0
        """What the node calls itself; 0 until it answered."""
        self.connection: RpcConnection | None = None
        self.failures = 0
        """Failed attempts since the last success; sets the backoff."""
        self.rest_until_s = 0.0
        """Not chosen for reads before this time of the loop, unless no other node is left."""
        self.opening: asyncio.Task[RpcConnection] | None = None

    @property
    def live(self) -> RpcConnection | None:
        """The open connection, if there is one."""
        connection = self.connection
        return connection if connection is not None and not connection.closed else None


class Nodes:
    """At most NODES_MAX nodes, by address and by number.

    Args:
        addresses: where to begin; at least one.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        assert addresses, "a cluster has nodes"
        self._by_address = {address: Node(address) for address in addresses}
        self._advertised: dict[str, int] = {}
        """By what address the cluster knows a node, and its number."""
        self._by_number: dict[int, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(tuple(self._by_address.values()))

    @property
    def addresses(self) -> str:
        """All addresses, for people."""
        return ", ".join(self._by_address)

    def answered(self, node: Node, number: int) -> None:
        """Note what a node calls itself."""
        node.number = number
        self._by_number.setdefault(number, node)

    def learn(self, number: int, address: str) -> None:
        """Take note of a node that an answer names."""
        self._advertised[address] = number
        if number not in self._by_number and len(self._by_address) < NODES_MAX:
            node = self._by_address.setdefault(address, Node(address))
            node.number = node.number or number
            self._by_number[number] = node

    def keep(self, members: Sequence[Member]) -> list[Node]:
        """Learn a leader's list of members, and forget nodes that are not in it; return those.

        A node that never answered stays: which one it is, is not known. So does one that is in use.
        """
        for member in members:
            self.learn(member.node, member.rpc)
        numbers = {member.node for member in members}
        gone = [
            node
            for node in self
            if node.number
            and node.number not in numbers
            and (node.live is None or not node.live.in_flight)
        ]
        for node in gone:
            log.info("node %d at %s is no member any more", node.number, node.address)
            del self._by_address[node.address]
            if self._by_number.get(node.number) is node:
                del self._by_number[node.number]
        if gone:
            left = {address: n for address, n in self._advertised.items() if n in numbers}
            self._advertised = left
        assert self._by_address, "a leader is a member"
        return gone

    def resolve(self, address: str) -> Node:
        """Return the node that others know by `address`; it may be reached by another one."""
        number = self._advertised.get(address, 0)
        known = self._by_number.get(number) or self._by_address.get(address)
        if known is None:
            known = Node(address)
            if len(self._by_address) < NODES_MAX:
                self._by_address[address] = known
        return known

    def find(self, which: int | str) -> Node:
        """Return a node by its number or address.

        Raises:
            InvalidArgument: no node of that name has been heard of.
        """
        if isinstance(which, int):
            node = self._by_number.get(which)
        else:
            number = self._advertised.get(which, 0)
            node = self._by_address.get(which) or self._by_number.get(number)
        if node is None:
            known = ", ".join(f"{node.number or '?'} at {node.address}" for node in self)
            message = f"no node {which!r} is known"
            raise InvalidArgument(message, hint=f"known: {known}")
        return node
