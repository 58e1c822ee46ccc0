"""How the first members of a group find each other, and who is refused afterwards.

Each node knows its own incarnation and learns the others' from their handshakes. Once all are known
the list is synced; only then does the node vote or stand. From then on a peer of another
incarnation, or with another list, is refused for good.
"""

from collections.abc import Callable
from random import Random

import msgspec

from nokv_replication.bootstrap import FORMAT, Identity, Member, Members, check_addresses
from nokv_replication.errors import HandshakeRefused, LogDamaged, StartRefused
from nokv_replication.frames import Hello, Purpose, refuse_format
from nokv_replication.log import Log
from nokv_replication.ports import Disk
from nokv_replication.segments import KEEP
from nokv_replication.skips import Skips
from nokv_replication.types import Applied, GroupConfig


class Roster:
    """The first members, learnt from handshakes until all are known; fixed ever after."""

    def __init__(
        self,
        identity: Identity,
        addresses: dict[int, str],
        synced: bytes,
        machine_format: int,
        skips: Skips,
    ) -> None:
        check_addresses(identity, addresses)
        self._identity = identity
        self._addresses = addresses
        self._machine_format = machine_format
        self._skips = skips
        self._machine_formats: dict[int, int] = {}
        self.needed_machine_format: Callable[[], int] = lambda: 0
        """A peer that applies less could not apply the log: it is refused."""
        self._incarnations = {identity.node: identity.incarnation}
        # Digests announced by peers whose list is complete while ours is not.
        self._foreign_digests: dict[int, bytes] = {}
        # The synced list; None while some incarnation is unknown or the list is not durable.
        self.members: Members | None = None
        self._digest = b""
        self.refusals = 0
        self.last_refusal = ""
        if synced:
            self._adopt(msgspec.msgpack.decode(synced, type=Members))

    def _adopt(self, members: Members) -> None:
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
        self.members = members
        self._digest = members.founders

    @property
    def digest(self) -> bytes:
        """Digest of the synced list, b"" before."""
        return self._digest

    def candidate(self) -> Members | None:
        """Return the full list when every first member's incarnation is known, else None.

        None too, and for good, where a peer has synced a list that is not this one.
        """
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
                self.last_refusal = (
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

    def greet(self, hello: Hello) -> int:
        """Check a peer's hello; return its node id.

        Raises:
            HandshakeRefused: it does not belong to this group.
        """
        try:
            self._check(hello)
        except HandshakeRefused as refusal:
            self.note_refusal(refusal)
            raise
        self._machine_formats[hello.node] = hello.machine_format
        if hello.skips and not self._skips.all:
            self._skips.adopt(hello.skips)
        if self.members is None:
            self._incarnations[hello.node] = hello.incarnation
            if hello.digest:
                self._foreign_digests[hello.node] = hello.digest
        return hello.node

    def machine_format(self, node: int) -> int:
        """Return the machine format of a peer's last handshake, 0 before one."""
        return self._machine_formats.get(node, 0)

    def note_refusal(self, refusal: HandshakeRefused) -> None:
        """Keep the latest refusal, of a peer or by one, for the operator."""
        self.refusals += 1
        self.last_refusal = str(refusal)

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
        if hello.node == self._identity.node or hello.node not in self._addresses:
            message = f"node {hello.node} is no peer of node {self._identity.node}"
            raise HandshakeRefused(message)
        refusal = self._skips.refusal(hello.node, hello.skips)
        if refusal and not self._may_take_list(hello):
            raise HandshakeRefused(refusal)
        if self.members is None:
            return
        if hello.incarnation != self._incarnations[hello.node]:
            message = (
                f"node {hello.node} comes back as another incarnation: its data directory was wiped"
                " or replaced, so it has forgotten what it promised. It must not rejoin under its"
                " old name"
            )
            raise HandshakeRefused(message)
        if hello.digest and hello.digest != self._digest:
            message = f"node {hello.node} was founded with another list of members"
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
        synced = roster.members
        if synced is None or founded.founders != synced.founders:
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
