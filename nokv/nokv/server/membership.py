"""The group's members as a node knows them, and the changes that an operator asks for.

The list is replication's: a configuration in its log. What it does not know of a member, where
clients reach it, rides in the member's `info`; of the first members it is what `nokv init` wrote.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from nokv.errors import ChangeRefused, Forbidden, InvalidArgument, NotLeader
from nokv.server.config import NodeConfig
from nokv.server.datadir import MemberAddress, NodeFile
from nokv.server.mapping import change_error
from nokv.server.rpc import Call
from nokv.types.formats import STATE_FORMAT
from nokv.wire.address import is_loopback, parse_address
from nokv.wire.rpc import (
    AddMember,
    MemberChanged,
    PromoteMember,
    RemoveMember,
    Role,
    TransferLeadership,
)
from nokv.wire.rpc import Member as WireMember
from nokv_replication import Committed, Group, Member, Outcome
from nokv_replication import NotLeader as NotLeading
from nokv_replication.tcp import TcpNetwork

log = logging.getLogger("nokv.membership")

Change = AddMember | PromoteMember | RemoveMember | TransferLeadership

HAND_OVER_PAUSE_S: Final = 0.1
"""Before a transfer that failed is tried again: a new leader has not heard of everybody yet."""
NODE_MAX: Final = 65_535
INCARNATION_MAX: Final = (1 << 63) - 1
ADDRESS_CHARACTERS_MAX: Final = 255


def for_operators(what: str) -> Forbidden:
    """Return the refusal of what needs the cluster's token."""
    return Forbidden(
        f"{what} is for the cluster's operators",
        hint="run it where a node's node.json can be read: it holds the cluster's token",
    )


def configured_members(
    identity: NodeFile, config: NodeConfig
) -> tuple[dict[int, MemberAddress], frozenset[int]]:
    """Return where members are reached by a node's own files, and for which that is final.

    `node.json` has the first members; `[members]` and `advertise` in `node.toml` replace what it
    or the group's own list says.
    """
    members = {member.node: member for member in identity.cluster.members}
    named = {int(key): MemberAddress(int(key), m.peer, m.rpc) for key, m in config.members.items()}
    members |= named
    own = identity.node
    here = members.get(own) or MemberAddress(own, config.peer.listen, config.rpc.listen)
    peer, rpc = config.peer.advertise or here.peer, config.rpc.advertise or here.rpc
    members[own] = MemberAddress(own, peer, rpc)
    advertised = {own} if config.peer.advertise or config.rpc.advertise else set()
    return members, frozenset(named) | advertised


class PeerNetwork(TcpNetwork):
    """The peers' connections, with addresses of this node's own configuration before others."""

    overriding: Mapping[int, str] = {}

    def set_peers(self, peers: dict[int, str]) -> None:
        """Dial these from now on (`Network`)."""
        super().set_peers({n: self.overriding.get(n, address) for n, address in peers.items()})


class Membership:
    """The members of one group at one node.

    Args:
        group: whose members.
        node: this node.
        configured: where members are reached by this node's own files: those of the first members,
            and what `[members]` in `node.toml` says of any.
        overriding: the numbers in `configured` that come before what the group's list says.
        tls: whether nodes may be reached beyond loopback.
    """

    def __init__(
        self,
        group: Group,
        node: int,
        configured: Mapping[int, MemberAddress],
        overriding: frozenset[int] = frozenset(),
        *,
        tls: bool = False,
    ) -> None:
        self._group = group
        self._node = node
        self._configured = dict(configured)
        self._overriding = overriding
        self._tls = tls

    # ------------------------------------------------------------ who is a member

    def members(self) -> tuple[WireMember, ...]:
        """Return the configuration in force; empty before one is known."""
        return tuple(
            WireMember(m.node, m.incarnation, m.voter, m.address, self._rpc_address(m))
            for m in self._group.members
        )

    def addresses(self) -> dict[int, str]:
        """Return node to RPC address; before a configuration is known, of the first members."""
        members = self._group.members
        if members:
            return {member.node: self._rpc_address(member) for member in members}
        return {node: member.rpc for node, member in sorted(self._configured.items())}

    def address(self, node: int | None) -> str:
        """Return where clients reach a node, empty if that is not known."""
        return "" if node is None else self.addresses().get(node, "")

    def _rpc_address(self, member: Member) -> str:
        own = self._configured.get(member.node)
        if own is not None and (member.node in self._overriding or not member.info):
            return own.rpc
        return member.info

    def voters(self) -> frozenset[int]:
        """Return the nodes that count; before a configuration is known, the first members."""
        members = self._group.members
        if members:
            return frozenset(member.node for member in members if member.voter)
        return frozenset(self._configured)

    def is_alone(self) -> bool:
        """Return whether no other node could lead, or be needed for a majority."""
        members = self._group.members
        return bool(members) and self.voters() == {self._node}

    def common_format(self) -> int:
        """Return the newest state format that every member applies; 0 while one was not heard."""
        heard = {p.node: p.machine_format for p in self._group.status().peers if p.connected}
        heard[self._node] = STATE_FORMAT
        return min((heard.get(member.node, 0) for member in self._group.members), default=0)

    # ------------------------------------------------------------ changes

    def handle(self, call: Call, change: Change, *, leads: bool, leader: str) -> None:
        """Take a change. Raises Forbidden, NotLeader, InvalidArgument, ChangeRefused."""
        if call.role != Role.ADMIN:
            raise for_operators(type(change).__name__)
        if not leads:
            call.fail(NotLeader("this node does not lead"), leader)
            return
        if isinstance(change, TransferLeadership):
            self._transfer(call, change)
            return
        members = {member.node: member for member in self._group.members}
        done = self._done(call, change.node)
        fields = {"change": type(change).__name__, "node": change.node}
        log.info("a change of members is asked for", extra={"fields": fields})
        found = members.get(change.node)
        if isinstance(change, AddMember):
            self._add(call, change, members, done)
        elif isinstance(change, PromoteMember):
            if found is None:
                raise ChangeRefused(f"node {change.node} is no member", hint="add it first")
            if found.voter:
                call.answer(MemberChanged(change.node))
            else:
                self._group.promote_member(change.node, done)
        elif change.node == self._node:
            message = f"node {change.node} leads, and a leader does not remove itself"
            raise ChangeRefused(message, hint="nokv member transfer, then ask again")
        elif found is None:
            call.answer(MemberChanged(change.node))
        else:
            self._group.remove_member(change.node, done)

    def _add(
        self,
        call: Call,
        change: AddMember,
        members: Mapping[int, Member],
        done: Callable[[Outcome], None],
    ) -> None:
        if not (1 <= change.node <= NODE_MAX and 1 <= change.incarnation <= INCARNATION_MAX):
            raise InvalidArgument(f"member {change.node}, incarnation {change.incarnation}")
        for address in (change.peer, change.rpc):
            if len(address) > ADDRESS_CHARACTERS_MAX:
                raise InvalidArgument("an address of more than 255 characters")
            host, _ = parse_address(address)
            if not self._tls and not is_loopback(host):
                message = f"{address} is not a loopback address, and this node has no TLS"
                raise InvalidArgument(message, hint="no node would dial it: set [tls] first")
        found = members.get(change.node)
        if found is not None:
            if found.incarnation == change.incarnation:
                call.answer(MemberChanged(change.node))
                return
            message = f"another node is member {change.node}: numbers are not used twice"
            raise ChangeRefused(message, hint="initialise the new node with a larger number")
        taken = {
            address for member in members.values() for address in (member.address, member.info)
        }
        taken |= set(self.addresses().values())
        if change.peer == change.rpc or taken & {change.peer, change.rpc}:
            raise InvalidArgument(f"an address of node {change.node} is another's already")
        member = Member(change.node, change.incarnation, change.peer, False, change.rpc)  # noqa: FBT003
        self._group.add_member(member, done)

    def _transfer(self, call: Call, change: TransferLeadership) -> None:
        if change.node == self._node:
            call.answer(MemberChanged(self._node))
            return
        if change.node and change.node not in self.voters():
            raise ChangeRefused(f"node {change.node} is no voter: it can't lead")
        log.info("leadership is to be handed over", extra={"fields": {"to": change.node or "any"}})
        self._group.transfer(change.node or None, self._done(call, change.node))

    def _done(self, call: Call, node: int) -> Callable[[Outcome], None]:
        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Committed):
                call.answer(MemberChanged(node or self._group.status().leader or 0))
            else:
                call.fail(change_error(outcome), self.address(self._group.status().leader))

        return done

    async def hand_over(self, timeout_s: float) -> bool:
        """Hand leadership to the best other voter; return whether one took it in time."""
        if len(self.voters()) < 2:
            return False
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while not isinstance(outcome := await self._try_to_hand_over(), Committed):
                    if isinstance(outcome, NotLeading):
                        break
                    await asyncio.sleep(HAND_OVER_PAUSE_S)
        except TimeoutError:
            log.info("nobody took over leadership in %g s: %s", timeout_s, outcome or "no answer")
            return False
        log.info("leadership was handed over")
        return True

    def _try_to_hand_over(self) -> asyncio.Future[Outcome]:
        told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not told.done():
                told.set_result(outcome)

        self._group.transfer(None, done)
        return told
