"""How the first members of a group find each other, and who is refused afterwards.

Each node knows its own incarnation and learns the others' from their handshakes. Once all are known
the list is synced; only then does the node vote or stand. From then on a peer of another
incarnation, or with another list, is refused for good.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import msgspec

from nokv_replication.bootstrap import FORMAT, Identity, Member, Members, check_addresses
from nokv_replication.configurations import Configurations
from nokv_replication.errors import HandshakeRefused, LogDamaged, StartRefused
from nokv_replication.frames import REMOVED_PREFIX, Hello, Purpose, refuse_format
from nokv_replication.log import Log
from nokv_replication.ports import Disk
from nokv_replication.segments import KEEP
from nokv_replication.skips import Skips
from nokv_replication.types import Applied, GroupConfig

_REFUSAL_HOLDS_NS = 10_000_000_000
"""A node that is refused dials again within seconds: one not refused for so long has gone."""


class Refusal(NamedTuple):
    """A handshake that was refused."""

    node: int | None
    """Who was refused here; None where this node was."""
    at_ns: int
    """Time of the step before it."""
    text: str


class Roster:
    """The first members, learnt from handshakes until all are known; fixed ever after."""

    def __init__(
        self,
        identity: Identity,
        addresses: dict[int, str],
        synced: bytes,
        machine_format: int,
        skips: Skips,
        configurations: Configurations,
    ) -> None:
        check_addresses(identity, addresses)
        self._identity = identity
        self._addresses = addresses
        self._machine_format = machine_format
        self._skips = skips
        self._configurations = configurations
        self._machine_formats: dict[int, int] = {}
        self.needed_machine_format: Callable[[], int] = lambda: 0
        """A peer that applies less could not apply the log: it is refused."""
        self._incarnations = {identity.node: identity.incarnation}
        # Digests announced by peers whose list is complete while ours is not.
        self._foreign_digests: dict[int, bytes] = {}
        # Node to the incarnation of its latest accepted hello.
        self._greeted: dict[int, int] = {}
        self._digest = b""
        # A peer's list of founders that is not this node's.
        self._conflict = ""
        # The latest one, until that peer is accepted; it counts for `_REFUSAL_HOLDS_NS`.
        self._refusal: Refusal | None = None
        if synced:
            self._adopt(msgspec.msgpack.decode(synced, type=Members))

    def _adopt(self, members: Members) -> None:
        self._digest = members.founders
        if self._identity.joining:
            return
        mine = {member.node: member.incarnation for member in members.members}
        if mine.get(self._identity.node) != self._identity.incarnation:
            message = "the log's list of members does not have this node's incarnation"
            raise StartRefused(message)
        if set(mine) != set(self._addresses):
            message = (
                f"the group was founded by nodes {sorted(mine)}, the configuration names"
                f" {sorted(self._addresses)}: put the founders' list back"
            )
            raise StartRefused(message)
        self._incarnations = mine

    def open(self, log: Log, applied: Applied) -> None:
        """Derive the configuration in force from machine and log, at the start or after an image.

        Raises:
            LogDamaged: an entry is not readable.
        """
        founders = b"" if self._identity.joining else log.members
        self._configurations.begin(applied.config or founders, applied.index, log)
        self.learn_founders(log)

    def learn_founders(self, log: Log) -> None:
        """Remember, once and durably with the next sync, which group a node has joined."""
        members = self._configurations.in_force
        if members is not None and self._identity.joining and not log.members:
            self._digest = members.founders
            log.set_members(msgspec.msgpack.encode(members))

    @property
    def digest(self) -> bytes:
        """Digest of the founders, b"" while they are not known and synced."""
        return self._digest

    @property
    def members(self) -> Members | None:
        """The configuration in force."""
        return self._configurations.in_force

    @property
    def founding(self) -> bool:
        """Whether the founders' list is not complete and synced: nothing is promised before."""
        return not self._identity.joining and not self._digest

    @property
    def joining(self) -> bool:
        """Whether this node is no founder."""
        return self._identity.joining

    @property
    def joining_blind(self) -> bool:
        """Whether this node joins and no member has sent it anything."""
        return self._identity.joining and self.members is None

    @property
    def removed(self) -> bool:
        """Whether a configuration applied here says that this node is no member any more."""
        settled, identity = self._configurations.settled, self._identity
        if settled is None or identity.node > settled.highest:
            return False
        member = settled.get(identity.node)
        return member is None or member.incarnation != identity.incarnation

    def peers(self) -> dict[int, str]:
        """Return whom to connect to, and where; the owner's own addresses come first."""
        me, members = self._identity.node, self.members
        if members is None:
            return {node: at for node, at in self._addresses.items() if node != me}
        return {
            member.node: self._addresses.get(member.node, member.address)
            for member in members.members
            if member.node != me
        }

    def greeted(self, node: int) -> int:
        """Return the incarnation of a node's latest accepted hello."""
        return self._greeted[node]

    def candidate(self) -> Members | None:
        """Return the full list when every first member's incarnation is known, else None.

        None too, and for good, where a peer has synced a list that is not this one.
        """
        self._conflict = ""
        if set(self._incarnations) != set(self._addresses):
            return None
        members = Members.first(
            self._identity.cluster,
            tuple(
                Member(node, self._incarnations[node], self._addresses[node])
                for node in sorted(self._addresses)
            ),
        )
        digest = members.founders
        for node, other in self._foreign_digests.items():
            if other != digest:
                self._conflict = (
                    f"node {node} was founded with another list of members than the one this node"
                    " sees. If this node's data directory was wiped or replaced, it must not rejoin"
                    " under its old name; if another's was, while the group was being founded,"
                    " initialise all anew"
                )
                return None
        return members

    def found(self, members: Members) -> None:
        """Take the list that has just been synced as the group's."""
        self._adopt(members)

    def greet(self, hello: Hello, now_ns: int) -> int:
        """Check a peer's hello; return its node id.

        Raises:
            HandshakeRefused: it does not belong to this group.
        """
        try:
            self._check(hello)
        except HandshakeRefused as refusal:
            self.note_refusal(refusal, hello.node, now_ns)
            raise
        if self._refusal is not None and self._refusal.node == hello.node:
            self._refusal = None
        self._machine_formats[hello.node] = hello.machine_format
        if hello.skips and not self._skips.all:
            self._skips.adopt(hello.skips)
        self._greeted[hello.node] = hello.incarnation
        if self.founding:
            self._incarnations[hello.node] = hello.incarnation
            if hello.digest:
                self._foreign_digests[hello.node] = hello.digest
        return hello.node

    def machine_format(self, node: int) -> int:
        """Return the machine format of a peer's last handshake, 0 before one."""
        return self._machine_formats.get(node, 0)

    def note_refusal(self, refusal: HandshakeRefused, node: int | None, now_ns: int) -> None:
        """Keep the latest refusal for the operator: of peer `node`, or by one (None)."""
        self._refusal = Refusal(node, now_ns, str(refusal))

    def refusal(self, now_ns: int) -> str:
        """Return why a handshake fails at present, "" when none does."""
        latest = self._refusal
        holds = latest is not None and now_ns - latest.at_ns < _REFUSAL_HOLDS_NS
        return self._conflict or (latest.text if latest is not None and holds else "")

    def _check(self, hello: Hello) -> None:
        refuse_format(hello.format)
        if hello.cluster != self._identity.cluster:
            message = f"peer belongs to cluster {hello.cluster!r}, not {self._identity.cluster!r}"
            raise HandshakeRefused(message)
        needed = self.needed_machine_format()
        if hello.machine_format < needed:
            message = (
                f"node {hello.node} applies formats up to {hello.machine_format}, and the group is"
                f" at {needed}: upgrade node {hello.node} to the build of the other members"
            )
            raise HandshakeRefused(message)
        stranger = self.founding and hello.node not in self._addresses
        if hello.node == self._identity.node or stranger:
            message = f"node {hello.node} is no peer of node {self._identity.node}"
            raise HandshakeRefused(message)
        refusal = self._skips.refusal(hello.node, hello.skips)
        if refusal and not self._may_take_list(hello):
            raise HandshakeRefused(refusal)
        if hello.digest and self._digest and hello.digest != self._digest:
            message = f"node {hello.node} was founded with another list of members"
            raise HandshakeRefused(message)
        # Only what is committed refuses: a list that is not may be rolled back, by the very node
        # that it lacks. A number above all that were ever used belongs to a visitor: this node may
        # lag behind the configuration, and may have to be led by a node it does not know.
        settled = self._configurations.settled
        if settled is None or hello.node > settled.highest:
            return
        member = settled.get(hello.node)
        if member is None:
            message = f"{REMOVED_PREFIX}node {hello.node} is no member of this group any more"
            raise HandshakeRefused(message)
        if hello.incarnation != member.incarnation:
            message = (
                f"node {hello.node} comes back as another incarnation: its data directory was wiped"
                " or replaced, so it has forgotten what it promised. It must not rejoin under its"
                " old name"
            )
            raise HandshakeRefused(message)

    def _may_take_list(self, hello: Hello) -> bool:
        """Whether this node, or the peer, has not joined and takes the other's list of skips."""
        mine_is_new = not self._digest and not self._skips.all
        return mine_is_new or (not hello.digest and not hello.skips)

    def hello(self, epoch: int, purpose: Purpose) -> Hello:
        """Return this node's hello for a connection."""
        identity = self._identity
        return Hello(
            format=FORMAT,
            cluster=identity.cluster,
            node=identity.node,
            incarnation=identity.incarnation,
            digest=self._digest,
            epoch=epoch,
            purpose=purpose,
            machine_format=self._machine_format,
            skips=self._skips.all,
        )


def initialise(disk: Disk, config: GroupConfig, identity: Identity, rng: Random) -> None:
    """Found a node's log in an empty folder. A crash in it may be repeated; done twice is done.

    Raises:
        DiskFailed: an operation of the disk failed.
    """
    Log.create(disk, config, identity, rng)


def check_start(log: Log, applied: Applied, roster: Roster) -> None:
    """Compare machine and log: the machine is the truth for what it applied durably.

    The log may reach further back and further on. One that ends before the machine's position, or
    disagrees with it, starts anew there if the position is that of a state image that was being
    installed; else it has lost entries, and votes, that were synced. One that begins behind the
    position leaves a gap that nothing here can fill.

    Raises:
        StartRefused: they do not belong together.
        LogDamaged: the log has lost its tail.
    """
    installing = log.announced == (applied.index, applied.term)
    if log.base_index > applied.index:
        message = (
            f"the log starts after entry {log.base_index}, the state machine stands at"
            f" {applied.index}: the entries between are gone. The state was restored from an"
            " older copy. Keep this node stopped; the others go on while they are a majority"
            " (docs/operations.md: A lost node)"
        )
        raise StartRefused(message)
    if applied.config and not installing:
        founded = msgspec.msgpack.decode(applied.config, type=Members)
        known = roster.digest
        if known != founded.founders and (known or not roster.joining):
            message = (
                "the state machine belongs to a group with other members than the log's: the"
                " data directory was mixed up; put the right state beside the right log"
            )
            raise StartRefused(message)
    lost_tail = log.last_index < applied.index
    if lost_tail or log.term_at(applied.index) != applied.term:
        if not installing:
            message = (
                f"the state machine stands at entry {applied.index} of term {applied.term}, the log"
                f" ends at entry {log.last_index} of term {log.last_term}: it has lost its tail,"
                f" and votes perhaps. {KEEP}"
            )
            raise LogDamaged(message)
        log.reset(applied.index, applied.term)
