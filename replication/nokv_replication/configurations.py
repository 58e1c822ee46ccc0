"""The configurations of one node's log (Raft thesis, section 4.1).

A configuration is in force at a node as soon as it is in its log, committed or not, and out of
force again when another leader's entries take its place. Below all that are in the log lies the
settled one: of the state machine, or the list of founders; it is never rolled back.
"""

import msgspec

from nokv_replication.bootstrap import Identity, Members
from nokv_replication.errors import LogDamaged
from nokv_replication.frames import EntryKind, decode_entry
from nokv_replication.log import Log
from nokv_replication.skips import Skips

_MEMBERS = bytes([EntryKind.MEMBERS])


def is_members(command: bytes) -> bool:
    """Whether an encoded entry is a configuration; its kind is the last byte."""
    return command[-1:] == _MEMBERS


class Configurations:
    """A stack of (index of the entry, configuration); the last one is in force."""

    def __init__(self, identity: Identity, skips: Skips) -> None:
        self._identity = identity
        # An entry that is skipped is no configuration, whatever it looks like.
        self._skips = skips
        self._settled: Members | None = None
        self._settled_index = 0
        self._applied_index = 0
        # Configurations above the settled one, by growing index.
        self._above: list[tuple[int, Members]] = []
        self.voters: frozenset[int] = frozenset()
        """Who counts, this node included if it does."""
        self.quorum = 1
        """How many of them are a majority."""

    @property
    def in_force(self) -> Members | None:
        """The newest configuration, None while this node knows none."""
        return self._above[-1][1] if self._above else self._settled

    @property
    def index(self) -> int:
        """Index of the entry with the configuration in force.

        After a start or an image, where that entry may not be in the log, the state's position.
        """
        return self._above[-1][0] if self._above else self._settled_index

    @property
    def settled(self) -> Members | None:
        """The newest configuration that is applied here: committed for good."""
        return self._settled

    @property
    def is_voter(self) -> bool:
        """Whether this node counts."""
        return self._identity.node in self.voters

    def begin(self, settled: bytes, index: int, log: Log) -> None:
        """Start from what the machine holds at `index`, or from the founders at 0, and the log.

        Raises:
            LogDamaged: an entry is not readable.
        """
        self._settled = msgspec.msgpack.decode(settled, type=Members) if settled else None
        self._settled_index = self._applied_index = index
        self._above = []
        for at in range(max(index, log.base_index) + 1, log.last_index + 1):
            command = log.entry(at)
            if is_members(command) and self._skips.at(at) is None:
                self._above.append((at, self._decode(command, at)))
        self._count()

    def appended(self, index: int, command: bytes) -> None:
        """Put the configuration of an entry that was just appended in force."""
        assert index > max(self.index, self._applied_index)
        if self._skips.at(index) is not None:
            return
        self._above.append((index, self._decode(command, index)))
        self._count()

    def truncated(self, index: int) -> bool:
        """Entries from `index` on are void; return whether the configuration changed."""
        assert index > self._applied_index
        before = len(self._above)
        while self._above and self._above[-1][0] >= index:
            self._above.pop()
        self._count()
        return len(self._above) != before

    def applied(self, index: int) -> bool:
        """Everything up to `index` is applied; return whether a configuration was settled."""
        settled = False
        while self._above and self._above[0][0] <= index:
            self._settled_index, self._settled = self._above.pop(0)
            settled = True
        self._applied_index = max(index, self._applied_index)
        return settled

    def _decode(self, command: bytes, index: int) -> Members:
        entry = decode_entry(command, index)
        try:
            return msgspec.msgpack.decode(entry.payloads[0], type=Members)
        except (msgspec.MsgspecError, IndexError) as error:
            message = f"entry {index} holds no readable list of members ({error}); upgrade"
            raise LogDamaged(message) from error

    def _count(self) -> None:
        members = self.in_force
        self.voters = frozenset() if members is None else members.voters()
        self.quorum = len(self.voters) // 2 + 1

    def member(self, node: int, incarnation: int) -> bool:
        """Whether that incarnation of a node is a member now."""
        members = self.in_force
        found = members.get(node) if members is not None else None
        return found is not None and found.incarnation == incarnation

    def was_removed(self, node: int) -> bool:
        """Whether a node has been a member and, by a committed configuration, is none any more."""
        settled = self._settled
        return settled is not None and node <= settled.highest and settled.get(node) is None
