"""Members and leadership as a `Group` is asked to change them, and what follows from a change."""

from collections.abc import Callable

from nokv_replication._pysyncobj import Core
from nokv_replication.bootstrap import Member
from nokv_replication.changes import Changes
from nokv_replication.endpoint import Endpoint
from nokv_replication.errors import (
    MembershipRefused,
    NotLeader,
    Refused,
    Stopped,
    TransferFailed,
)
from nokv_replication.frames import Body, Removed
from nokv_replication.leadership import Leadership
from nokv_replication.log import Log
from nokv_replication.outbox import Outbox
from nokv_replication.ports import Network
from nokv_replication.timekeeping import Timekeeper
from nokv_replication.transfer import Transfer
from nokv_replication.types import ChangeDone, Role


class Membership(Endpoint):
    """The side of a group that knows who belongs to it."""

    _core: Core
    _log: Log
    _network: Network
    _changes: Changes
    _transfer: Transfer
    _leadership: Leadership
    _timekeeper: Timekeeper
    _outbox: Outbox
    _role: Role
    _leader: int | None
    _now_ns: int
    _send_now: bool
    _stopped: bool

    # ------------------------------------------------------------------ requests

    def add_member(self, member: Member, done: ChangeDone) -> None:
        """Add a learner; its node id must be larger than any ever used. `done` is called once.

        With `Committed`, with `MembershipRefused` or another `Refused`, or with `OutcomeUnknown`.
        """
        self._change(lambda: self._changes.add(member, done), done)

    def promote_member(self, node: int, done: ChangeDone) -> None:
        """Make a learner that has caught up a voter; `done` as for `add_member`."""
        self._change(lambda: self._changes.promote(node, done, self._now_ns), done)

    def remove_member(self, node: int, done: ChangeDone) -> None:
        """Remove a member, not the leader itself; `done` as for `add_member`."""
        self._change(lambda: self._changes.remove(node, done, self._now_ns), done)

    def transfer(self, target: int | None, done: ChangeDone) -> None:
        """Hand leadership to a voter, None for the most caught-up one; `done` is called once.

        With `Committed` once that node leads, or with `TransferFailed` or another `Refused`.
        """
        self._change(lambda: self._transfer.begin(target, done, self._now_ns), done)

    def _change(self, change: Callable[[], None], done: ChangeDone) -> None:
        """Begin a change of members or leader, or say why not."""
        try:
            if self._stopped:
                raise Stopped("this group was stopped")
            if self._role != Role.LEADER:
                raise NotLeader(self._leader)
            if self._transfer.target is not None:
                message = f"leadership is on its way to node {self._transfer.target}: retry there"
                raise TransferFailed(message)
            if not (self._leads() and self._leadership.founded):
                message = "this leader has not committed an entry of its own yet: retry"
                raise MembershipRefused(message)
            change()
        except Refused as refusal:
            done(refusal)
            return
        self.wake()

    # ------------------------------------------------------------------ configurations

    @property
    def members(self) -> tuple[Member, ...]:
        """The configuration in force, ordered by node id; empty before one is known."""
        members = self._roster.members
        return () if members is None else members.members

    def _reconfigure(self) -> None:
        """Follow the configuration in force: whom to reach, to replicate to, and to count."""
        configurations, me = self._configurations, self._identity.node
        self._peers.configure(me, configurations)
        others = [member for member in self.members if member.node != me]
        voters = [member.node for member in others if member.voter]
        self._core.configure(voters, [member.node for member in others if not member.voter])
        self._timekeeper.keep(configurations.voters)
        self._network.set_peers(self._roster.peers())
        self._images.sender.keep_only({member.node for member in others})
        self._send_now = True

    def core_members_appended(self, index: int, command: bytes) -> None:
        """Put the configuration that was just appended in force (`CoreOwner`)."""
        self._configurations.appended(index, command)
        self._roster.learn_founders(self._log)
        self._reconfigure()

    def core_truncated(self, index: int) -> None:
        """Go back to the configuration before entry `index` (`CoreOwner`)."""
        if self._configurations.truncated(index):
            self._reconfigure()

    def _may_stand(self) -> bool:
        """Learners, nodes that join, and nodes that were removed never stand."""
        return self._configurations.is_voter and not self._removed()

    def _removed(self) -> bool:
        return self._receiver.told_removed or self._roster.removed

    def _tell_removed(self) -> None:
        """Tell nodes that a committed change removed; each asks for votes in vain otherwise."""
        if self._role == Role.LEADER:
            for peer in self._peers.all.values():
                if peer.epoch and self._configurations.was_removed(peer.node):
                    self._send(peer.node, Removed(self._configurations.index))

    # ------------------------------------------------------------------ of the group

    def _leads(self) -> bool:
        """Whether this node leads and an entry of its own term is committed."""
        return self._role == Role.LEADER and self._core.commit_index() >= self._core.noop_index()

    def _send(self, peer: int, body: Body) -> None:
        state = self._peers.get(peer)
        if state is not None:
            self._outbox.put(state, body)
