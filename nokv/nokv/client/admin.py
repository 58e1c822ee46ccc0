"""What operators do to a cluster's members: by hand through `nokv member`, or from a program.

Every change goes to the leader, may be repeated safely, and is answered once it is committed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from nokv.client.arguments import checked_methods
from nokv.client.routing import Router
from nokv.errors import ChangeRefused, DeadlineExceeded, InvalidArgument, Unavailable
from nokv.wire.rpc import (
    AddMember,
    Member,
    MemberChanged,
    PeerStatus,
    PromoteMember,
    RemoveMember,
    RequestBody,
    Status,
    StatusReply,
    TransferLeadership,
)

POLL_S: Final = 0.1
"""Between two looks at a learner that is catching up."""

HAND_OVER_S: Final = 10.0
"""A transfer that failed is asked for again so long, while there is a voter to hand over to."""

HAND_OVER_PAUSE_MAX_S: Final = 1.0
"""Between two attempts, of which each may hold writes up for an election timeout; from POLL_S."""

CONNECT_S: Final = 10.0


@checked_methods
class Admin:
    """A connection of an operator's tool: `async with Admin(addresses, token) as admin:`.

    Args:
        addresses: `host:port` of some nodes.
        token: the cluster's; empty is enough to look, changes need it.
        timeout_s: for each answer of the leader.
        tls: for every connection; None: in the clear.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        token: str = "",
        *,
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._router = Router(addresses, agent="nokv admin", tls=tls, token=token.encode())
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        """Connect. Raises Unavailable, WrongCluster, Forbidden."""
        try:
            await self._router.start(min(CONNECT_S, self._timeout_s))
        except BaseException:
            await self._router.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._router.close()

    # ------------------------------------------------------------ looking

    async def status(self) -> StatusReply:
        """Return the leader's status: it has the members, and how far each of them is."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        while True:
            left_s = max(0.001, end - loop.time())
            reply = await self._router.call_leader(Status(), left_s)
            assert isinstance(reply, StatusReply), reply
            if reply.role == "leader":
                return reply
            if loop.time() >= end:
                raise Unavailable(f"no node leads after {self._timeout_s:g} s")
            self._router.doubt_leader()
            await asyncio.sleep(POLL_S)

    async def member(self, node: int) -> Member:
        """Return a member. Raises InvalidArgument if there is none of that number."""
        members = (await self.status()).members
        for member in members:
            if member.node == node:
                return member
        numbers = ", ".join(str(member.node) for member in members)
        raise InvalidArgument(f"node {node} is no member", hint=f"the members are {numbers}")

    # ------------------------------------------------------------ changing

    async def add(self, node: int, incarnation: int, peer: str, rpc: str) -> None:
        """Make a node a learner. Raises ChangeRefused, InvalidArgument, Forbidden."""
        await self._change(AddMember(node, incarnation, peer, rpc))

    async def promote(self, node: int) -> None:
        """Make a learner a voter. Raises ChangeRefused if it has not caught up."""
        await self._change(PromoteMember(node))

    async def wait_and_promote(self, node: int, timeout_s: float) -> None:
        """Wait until a learner has caught up, and make it a voter.

        Raises:
            DeadlineExceeded: it has not in time; it stays a learner, and the call may be repeated.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            status = await self.status()
            peer = next((peer for peer in status.peers if peer.node == node), None)
            reason = _not_caught_up(node, peer)
            if not reason:
                try:
                    await self.promote(node)
                except ChangeRefused as error:
                    reason = error.message
                else:
                    return
            if loop.time() >= end:
                message = f"node {node} is no voter after {timeout_s:g} s: {reason}"
                hint = "is it running, at the addresses that were given? nokv member list"
                raise DeadlineExceeded(message, hint=hint)
            await asyncio.sleep(POLL_S)

    async def remove(self, node: int) -> None:
        """Remove a member for ever; a leader hands over first. Raises ChangeRefused."""
        if (await self.status()).node == node:
            await self.transfer()
        await self._change(RemoveMember(node))

    async def transfer(self, node: int = 0) -> int:
        """Hand leadership to a voter, 0 for the best one; return who leads then.

        A leader that was just elected may not have heard of the others yet: it is asked again.

        Raises:
            ChangeRefused: the node is no voter, or there is no other; or nobody could take over
                for HAND_OVER_S.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + HAND_OVER_S
        pause_s = POLL_S
        while True:
            try:
                return await self._change(TransferLeadership(node))
            except ChangeRefused:
                if loop.time() >= end or not _may_take_over(node, await self.status()):
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, HAND_OVER_PAUSE_MAX_S)

    async def _change(self, change: RequestBody) -> int:
        reply = await self._router.call_leader(change, self._timeout_s)
        assert isinstance(reply, MemberChanged), reply
        return reply.node


def _may_take_over(node: int, status: StatusReply) -> bool:
    """Return whether the members have whom a transfer is for; 0: any voter but the leader."""
    voters = {member.node for member in status.members if member.voter}
    return node in voters if node else bool(voters - {status.node})


def _not_caught_up(node: int, peer: PeerStatus | None) -> str:
    if peer is None or not peer.connected:
        return f"the leader does not reach node {node}"
    if not peer.match_index:
        return f"node {node} has acknowledged nothing yet"
    return ""
