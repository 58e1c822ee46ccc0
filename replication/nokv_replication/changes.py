"""Changes of members, at the leader: one voter or learner at a time (Raft thesis, section 4.1).

Two majorities of configurations that differ by one voter overlap; of two changes under way at once
they need not. So a change is refused while the newest configuration is not committed, and before an
entry of the leader's own term is (the flaw of the thesis that was reported to raft-dev in 2015).
"""

import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.bootstrap import MEMBERS_MAX, NODES_MAX, Member, Members
from nokv_replication.configurations import Configurations
from nokv_replication.errors import MembershipRefused, OutcomeUnknown, ReplicationError
from nokv_replication.log import Log
from nokv_replication.peers import Peers
from nokv_replication.types import ChangeDone, Committed, GroupConfig


class Changes:
    """The one change that waits to be appended or committed."""

    def __init__(
        self,
        node: int,
        configurations: Configurations,
        core: Core,
        log: Log,
        peers: Peers,
        config: GroupConfig,
    ) -> None:
        self._node = node
        self._configurations = configurations
        self._core = core
        self._log = log
        self._peers = peers
        self._config = config
        self._queued: tuple[Members, ChangeDone] | None = None
        self._appended: tuple[int, ChangeDone] | None = None

    # ------------------------------------------------------------------ requests

    def add(self, member: Member, done: ChangeDone) -> None:
        """Queue the addition of a learner. Raises MembershipRefused."""
        members = self._check_guard()
        if member.node <= members.highest:
            message = (
                f"node id {member.node} was used already: ids are never used again, take"
                f" {members.highest + 1} or a larger one"
            )
            raise MembershipRefused(message)
        for other in members.members:
            if other.address == member.address or other.incarnation == member.incarnation:
                message = f"node {other.node} has that address or incarnation already"
                raise MembershipRefused(message)
        if len(members.members) >= MEMBERS_MAX:
            message = f"a group has at most {MEMBERS_MAX} members: remove one first"
            raise MembershipRefused(message)
        learner = msgspec.structs.replace(member, voter=False)
        listed = (*members.members, learner)
        self._queue(msgspec.structs.replace(members, members=listed, highest=member.node), done)

    def promote(self, node: int, done: ChangeDone, now_ns: int) -> None:
        """Queue making a learner a voter. Raises MembershipRefused."""
        members = self._check_guard()
        learner = members.get(node)
        if learner is None or learner.voter:
            what = "no member" if learner is None else "a voter already"
            message = f"node {node} is {what}"
            raise MembershipRefused(message)
        if len(members.voters()) >= NODES_MAX:
            message = f"a group has at most {NODES_MAX} voters: remove one first"
            raise MembershipRefused(message)
        match = self._core.match_index(node)
        lag = self._core.commit_index() - match
        # One that does not even hold the list it is in would not vote: the group could be stuck.
        unaware = match < self._configurations.index
        behind = unaware or lag > self._config.promote_lag_entries
        if behind or not self._is_active(node, now_ns):
            message = (
                f"node {node} has not caught up: it lacks {lag} entries, or is not connected. As a"
                " voter it would delay every commit; wait until it has"
            )
            raise MembershipRefused(message)
        listed = tuple(
            msgspec.structs.replace(member, voter=True) if member.node == node else member
            for member in members.members
        )
        self._queue(msgspec.structs.replace(members, members=listed), done)

    def remove(self, node: int, done: ChangeDone, now_ns: int) -> None:
        """Queue the removal of a member. Raises MembershipRefused."""
        members = self._check_guard()
        if members.get(node) is None:
            message = f"node {node} is no member"
            raise MembershipRefused(message)
        if node == self._node:
            message = f"node {node} leads the group: transfer leadership first, then remove it"
            raise MembershipRefused(message)
        listed = tuple(member for member in members.members if member.node != node)
        changed = msgspec.structs.replace(members, members=listed)
        voters = changed.voters()
        active = sum(other == self._node or self._is_active(other, now_ns) for other in voters)
        if active < len(voters) // 2 + 1:
            message = (
                f"without node {node} the group has {len(voters)} voters, of which {active} answer:"
                " it could not commit anything. Bring the others back or replace them first"
            )
            raise MembershipRefused(message)
        self._queue(changed, done)

    def _is_active(self, node: int, now_ns: int) -> bool:
        peer = self._peers.all.get(node)
        limit_ns = self._config.election_max_ns
        return peer is not None and peer.epoch > 0 and now_ns - peer.heard_ns < limit_ns

    def _check_guard(self) -> Members:
        """Return the configuration in force; the caller has checked that this node leads."""
        members = self._configurations.in_force
        if members is None or self._term_is_uncommitted():
            message = "this leader has not committed an entry of its own yet: retry"
            raise MembershipRefused(message)
        if self._queued is not None or self._change_is_uncommitted():
            message = "another change of members is under way: retry when it is committed"
            raise MembershipRefused(message)
        return members

    def _term_is_uncommitted(self) -> bool:
        return self._core.commit_index() < self._core.noop_index()

    def _change_is_uncommitted(self) -> bool:
        return self._configurations.index > self._core.commit_index() or self._appended is not None

    def _queue(self, members: Members, done: ChangeDone) -> None:
        listed = tuple(sorted(members.members, key=lambda member: member.node))
        members = msgspec.structs.replace(members, members=listed)
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(members), type=Members)
        except msgspec.ValidationError as error:
            message = f"that is no member: {error}"
            raise MembershipRefused(message) from error
        self._queued = (members, done)

    # ------------------------------------------------------------------ its way

    def __bool__(self) -> bool:
        return self._queued is not None

    @property
    def waits_for(self) -> int | None:
        """Index of the change that is appended and not settled."""
        return None if self._appended is None else self._appended[0]

    def payload(self) -> bytes:
        """Return the queued configuration, encoded, to be appended now."""
        assert self._queued is not None
        assert self._appended is None
        return msgspec.msgpack.encode(self._queued[0])

    def appended(self, index: int) -> None:
        """Say where the queued configuration was appended."""
        assert self._queued is not None
        self._appended, self._queued = (index, self._queued[1]), None

    def applied(self, index: int) -> None:
        """Tell whoever waits once the change is applied; this node still leads its term."""
        if self._appended is not None and self._appended[0] <= index:
            at, done = self._appended
            self._appended = None
            done(Committed(at, b""))

    def fail(self, error: ReplicationError) -> None:
        """Leadership is over: a queued change never was, an appended one may still come."""
        queued, self._queued = self._queued, None
        appended, self._appended = self._appended, None
        if queued is not None:
            queued[1](error)
        if appended is not None:
            appended[1](
                OutcomeUnknown("leadership was lost before the change was committed: list members")
            )
