"""The only module that touches pysyncobj, and the only place that names its private attributes.

pysyncobj 0.3.17 decides elections, votes, log matching and commitment. As shipped it truncates
without a conflict check, counts acknowledgements of old terms, loses its log in several ways and
unpickles what it reads; the reasons are in DESIGN.md. `Core` cuts all of that off by overriding the
methods below and replacing journal, transport, serializer, poller, clock and random source. The
attributes used are private and tied to that release, so another version is refused at import.

Names used, all of `SyncObj`, each here and nowhere else:

- overridden methods: `__connectedToAnyone` (asked only when the election timer fired: pre-vote),
  `__applyLogEntries` (apply is ours), `__tryLogCompaction`, `__loadDumpFile` (no dumps),
  `__doApplyCommand`, `__parseChangeClusterRequest`, `__changeCluster` (they unpickle),
  `_checkCommandsToApply` (entries are appended at once, nothing is queued), `__getCurrentLogIndex`
  and `__getEntries` (asked many times a step: straight from the log);
- called methods: `__setCurrentTerm`, `__setState`, `__sendAppendEntries`, `__onMessageReceived`
  (through the transport's callback), `__generateRaftTimeout`, `doTick`;
- attributes read: `__raftState`, `__raftCurrentTerm`, `__raftLeader`, `__raftCommitIndex`,
  `__noopIDx`, `__raftNextIndex`, `__raftMatchIndex`, `__raftElectionDeadline`,
  `__newAppendEntriesTime`;
- attributes written: `__otherNodes` (peers that count), `__readonlyNodes` (peers that are sent to
  and do not count), `__raftMatchIndex` (also of a peer that connects anew), `__lastResponseTime`
  (of members that come and go: the quorum check looks at it), `__raftLeader` (a newer term was
  learnt), `__raftNextIndex` (repairs), `__raftLastApplied` (it logs by it),
  `__newAppendEntriesTime` (send now), `__transferInProgress` and `__raftElectionDeadline` (a
  request to stand is over), `__serializer` (replaced), `_poller` (replaced);
- module globals replaced: `createJournal`, `monotonicTime`, `random`.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Protocol

from nokv_replication.configurations import is_members
from nokv_replication.log import Log
from nokv_replication.types import GroupConfig, Role


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports in the block find a package missing, unless it is loaded already."""
    hide = package not in sys.modules
    if hide:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules[package]


# The library loads this where it is installed, for encryption that nothing here uses: 9 MiB a node.
with _hidden("cryptography"):
    import pysyncobj.syncobj as library
    from pysyncobj.config import SyncObjConf
    from pysyncobj.node import Node
    from pysyncobj.transport import Transport
    from pysyncobj.version import VERSION

SUPPORTED_VERSION = "0.3.17"
if VERSION != SUPPORTED_VERSION:
    _message = f"nokv_replication is written for pysyncobj {SUPPORTED_VERSION}, not {VERSION}"
    raise ImportError(_message)

_METHODS = (
    "__connectedToAnyone",
    "__applyLogEntries",
    "__tryLogCompaction",
    "__loadDumpFile",
    "__doApplyCommand",
    "__parseChangeClusterRequest",
    "__changeCluster",
    "_checkCommandsToApply",
    "__getCurrentLogIndex",
    "__getEntries",
    "__setCurrentTerm",
    "__setState",
    "__sendAppendEntries",
    "__onMessageReceived",
    "__generateRaftTimeout",
    "doTick",
)
_ATTRIBUTES = (
    "__raftState",
    "__raftCurrentTerm",
    "__raftLeader",
    "__raftCommitIndex",
    "__noopIDx",
    "__raftNextIndex",
    "__raftMatchIndex",
    "__raftElectionDeadline",
    "__newAppendEntriesTime",
    "__raftLastApplied",
    "__serializer",
    "__otherNodes",
    "__readonlyNodes",
    "__lastResponseTime",
    "__transferInProgress",
    "_poller",
)


def missing_names(cls: type) -> list[str]:
    """Return the private names this module relies on that a class `SyncObj` does not have.

    Methods are looked up; attributes must be among the names that its constructor assigns.
    """
    assigned = cls.__init__.__code__.co_names  # type: ignore[misc]

    def mangled(name: str) -> str:
        return f"_SyncObj{name}" if name.startswith("__") else name

    methods = [name for name in _METHODS if not hasattr(cls, mangled(name))]
    return methods + [name for name in _ATTRIBUTES if mangled(name) not in assigned]


if _missing := missing_names(library.SyncObj):
    _message = f"pysyncobj {VERSION} is not as released: its SyncObj lacks {', '.join(_missing)}"
    raise ImportError(_message)

_NOOP = bytes([1])
_ROLES = tuple(Role)
_SECOND_NS = 1_000_000_000
# Larger than any entry, so that the library never cuts one in pieces (its flag for the last piece
# is wrong). What one frame may hold is decided by whoever sends it.
_BATCH_BYTES = 1 << 30

# The library logs what it overrides away; this package reports its own events.
logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)


class _Ambient:
    """The clock and random source of the group that is stepping now.

    The library reads both through module globals. One thread steps one group at a time, so every
    entry into the library sets them first; two groups in one process may have different clocks.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.rng = Random(0)

    def monotonic_time(self) -> float:
        """Stand in for the library's clock."""
        return self.now_s

    def random(self) -> float:
        """Stand in for `random.random`: the library draws election timeouts with it."""
        return self.rng.random()


_ambient = _Ambient()
library.monotonicTime = _ambient.monotonic_time
library.random = _ambient
library.createJournal = lambda journal: journal


class Peer(int, Node):  # type: ignore[misc]
    """An interned node that is its number, so that sets of nodes iterate the same everywhere.

    Hash and equality are those of integers: most of a node's cost, and the library's maps of nodes
    can be asked by number.
    """


class _Journal:
    """The library's position-based journal over `Log`; position 0 is the entry before the first.

    The owner replaces the library's no-op by an entry with times, and hears of configurations the
    moment they enter or leave the log.
    """

    def __init__(self, log: Log, owner: "CoreOwner", batch_bytes: int) -> None:
        self._log = log
        self._owner = owner
        self._batch_bytes = batch_bytes
        self.commit_index = 0

    def __len__(self) -> int:
        return self._log.last_index - self._log.base_index + 1

    def __getitem__(self, at: int) -> tuple[bytes, int, int]:
        log = self._log
        # The library asks single positions for index and term only: the first and the last.
        if at == -1:
            return (b"", log.last_index, log.last_term)
        assert at == 0
        return (b"", log.base_index, log.base_term)

    def entries(self, first: int, count: int | None) -> list[tuple[bytes, int, int]]:
        """Return what the library looks at from index `first` on: one entry, or a batch."""
        log, base = self._log, self._log.base_index
        if first < base:
            return []
        if count is not None:
            assert count == 1, "a single entry is asked for its term only"
            return [(b"", first, log.term_at(first))] if first <= log.last_index else []
        # Open-ended: two entries at least, which is all a truncation check looks at, and else
        # about one batch, so that a long tail is not read at once.
        entries: list[tuple[bytes, int, int]] = []
        size = 0
        for index in range(first, log.last_index + 1):
            if len(entries) >= 2 and size >= self._batch_bytes:
                break
            command = log.entry(index) if index > base else b""
            entries.append((command, index, log.term_at(index)))
            size += len(command)
        return entries

    @property
    def last_index(self) -> int:
        return self._log.last_index

    def add(self, command: bytes, index: int, term: int) -> None:
        entry = self._owner.core_make_noop() if command == _NOOP else command
        self._log.append(entry, index, term)
        if is_members(entry):
            self._owner.core_members_appended(index, entry)

    def deleteEntriesFrom(self, position: int) -> None:  # noqa: N802
        index = self._log.base_index + position
        self._log.truncate_from(index)
        self._owner.core_truncated(index)

    def setCurrentTerm(self, term: int, vote: int | None) -> None:  # noqa: N802
        self._log.set_hard_state(term, vote or 0)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._log.hard_state.term

    def getVotedForNodeId(self) -> int | None:  # noqa: N802
        return self._log.hard_state.vote or None

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        """Forget it: a stored commit index is only ever newer than what it speaks of."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self.commit_index

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Nothing is deferred to a timer here."""

    def _destroy(self) -> None:
        """The log is closed by its owner."""


class _NoSerializer:
    """No dumps: the library sends `serialized=None`, which `core_send` turns into `TooFar`."""

    def getTransmissionData(self, _node: Peer) -> None:  # noqa: N802
        return None

    def cancelTransmisstion(self, _node: Peer) -> None:  # noqa: N802
        return None


class _NoPoller:
    def poll(self, _timeout_s: float) -> None:
        return None


class CoreOwner(Protocol):
    """Who a `Core` calls while it steps."""

    def core_send(self, peer: int, message: dict[str, Any]) -> None:
        """Take a message of the library for a peer."""

    def core_may_stand(self) -> bool:
        """Decide, now that the election timer has fired, whether to become a candidate."""

    def core_make_noop(self) -> bytes:
        """Return the first entry of this node's new term as leader."""

    def core_members_appended(self, index: int, command: bytes) -> None:
        """Put the configuration that was just appended in force."""

    def core_truncated(self, index: int) -> None:
        """Entries from `index` on are gone, and the configurations among them."""


class _Outgoing(Transport):  # type: ignore[misc]
    def __init__(self, owner: CoreOwner) -> None:
        super().__init__(None, None, None)
        self._owner = owner

    def send(self, node: Peer, message: dict[str, Any]) -> bool:
        self._owner.core_send(node.id, message)
        return True

    def deliver(self, node: Peer, message: dict[str, Any]) -> None:
        self._onMessageReceived(node, message)

    def connected(self, node: Peer) -> None:
        self._onNodeConnected(node)

    def disconnected(self, node: Peer) -> None:
        self._onNodeDisconnected(node)


class Core(library.SyncObj):  # type: ignore[misc]
    """The library's Raft of one group: passive, single-threaded, without disk, network or clock.

    `enter(now_ns, rng)` must precede any other call of a step.
    """

    def __init__(self, node: int, config: GroupConfig, log: Log, owner: CoreOwner) -> None:
        self._owner = owner
        # One for each number ever seen; at most 65,535 by the type of a node id.
        self._peers: dict[int, Peer] = {}
        self._outgoing = _Outgoing(owner)
        self._journal = _Journal(log, owner, config.batch_bytes)
        settings = SyncObjConf(
            autoTick=False,
            commandsWaitLeader=False,
            commandsQueueSize=0,
            appendEntriesUseBatch=True,
            appendEntriesBatchSizeBytes=_BATCH_BYTES,
            appendEntriesPeriod=config.heartbeat_ns / _SECOND_NS,
            raftMinTimeout=config.election_min_ns / _SECOND_NS,
            raftMaxTimeout=config.election_max_ns / _SECOND_NS,
            # Quorum check: an isolated leader steps down after the longest election timeout.
            leaderFallbackTimeout=config.election_max_ns / _SECOND_NS,
            connectionTimeout=2 * config.election_max_ns / _SECOND_NS,
            dynamicMembershipChange=False,
            journalFile=self._journal,
        )
        super().__init__(Peer(node), [], settings, transport=self._outgoing)
        self._SyncObj__serializer = _NoSerializer()
        self._poller = _NoPoller()

    def _node(self, peer: int) -> Peer:
        node = self._peers.get(peer)
        if node is None:
            node = self._peers[peer] = Peer(peer)
        return node

    def configure(self, voters: list[int], learners: list[int]) -> None:
        """Replicate to these peers from now on, and count the voters; this node is in neither.

        What the library asks of its two sets is their union where it sends, and the first where it
        counts votes, matches and answers; the maps hold every member while this node leads.
        """
        others = {self._node(peer) for peer in voters}
        # Votes are counted as a number: one given under another configuration must never be in it.
        assert self.role() != Role.CANDIDATE, "a candidate's configuration changes"
        readonly = {self._node(peer) for peer in learners}
        members = others | readonly
        next_index, match_index = self._SyncObj__raftNextIndex, self._SyncObj__raftMatchIndex
        answered = self._SyncObj__lastResponseTime
        for gone in [node for node in next_index if node not in members]:
            del next_index[gone]
            match_index.pop(gone, None)
            answered.pop(gone, None)
        for node in sorted(members, key=lambda member: int(member.id)):
            if node not in next_index:
                next_index[node] = self._journal.last_index + 1
                match_index[node] = 0
            # Its time to answer begins now: a new voter must not end the leader's quorum.
            answered.setdefault(node, _ambient.now_s)
        self._SyncObj__otherNodes = others
        self._SyncObj__readonlyNodes = readonly

    @staticmethod
    def enter(now_ns: int, rng: Random) -> None:
        """Make this instant and random source the library's, for the calls that follow."""
        _ambient.now_s = now_ns / _SECOND_NS
        _ambient.rng = rng

    def start_at(self, applied_index: int) -> None:
        """Begin from a machine that has applied up to `applied_index`: all of it is committed."""
        assert self.role() == Role.FOLLOWER
        self._SyncObj__raftLastApplied = applied_index
        self._SyncObj__raftCommitIndex = applied_index

    # ------------------------------------------------------------------ state

    def role(self) -> Role:
        """Part in the current term."""
        return _ROLES[self._SyncObj__raftState]

    def standing(self) -> tuple[int, int, Peer | None]:
        """Return (role, term, leader) as the library has them, to be compared only."""
        return self._SyncObj__raftState, self._SyncObj__raftCurrentTerm, self._SyncObj__raftLeader

    def is_leader(self) -> bool:
        """Whether this node leads its term; it may have been deposed without knowing."""
        return bool(self._SyncObj__raftState == 2)

    def term(self) -> int:
        """Current term."""
        term: int = self._SyncObj__raftCurrentTerm
        return term

    def leader(self) -> int | None:
        """Node believed to lead the current term."""
        leader = self._SyncObj__raftLeader
        return None if leader is None else int(leader.id)

    def commit_index(self) -> int:
        """Largest index known to be committed."""
        index: int = self._SyncObj__raftCommitIndex
        return index

    def noop_index(self) -> int:
        """Index of the first entry of this node's last term as leader."""
        index: int | None = self._SyncObj__noopIDx
        return index or 0

    def next_index(self, peer: int) -> int:
        """Next index to send to a peer; 0 before this node ever led."""
        index: int = self._SyncObj__raftNextIndex.get(peer, 0)
        return index

    def set_next_index(self, peer: int, index: int) -> None:
        """Repair the next index to send to a peer."""
        self._SyncObj__raftNextIndex[self._node(peer)] = index

    def match_index(self, peer: int) -> int:
        """Largest index a peer acknowledged in this term."""
        index: int = self._SyncObj__raftMatchIndex.get(peer, 0)
        return index

    def forget_match(self, peer: int) -> None:
        """Count nothing that a peer acknowledged until it acknowledges it again."""
        node = self._node(peer)
        assert node in self._SyncObj__raftMatchIndex
        self._SyncObj__raftMatchIndex[node] = 0

    def election_deadline_ns(self) -> int:
        """When the election timer fires."""
        return int(self._SyncObj__raftElectionDeadline * _SECOND_NS) + 1_000

    def expire_election(self, at_ns: int = 0) -> None:
        """Let the election timer fire at the first tick after `at_ns`: for tests and scripts."""
        self._SyncObj__raftElectionDeadline = at_ns / _SECOND_NS

    def heartbeat_deadline_ns(self) -> int:
        """When a leader sends its next heartbeat."""
        return int(self._SyncObj__newAppendEntriesTime * _SECOND_NS) + 1_000

    # ------------------------------------------------------------------ events

    def connected(self, peer: int) -> None:
        """Tell the library that messages to a peer can be sent."""
        self._outgoing.connected(self._node(peer))

    def disconnected(self, peer: int) -> None:
        """Tell the library not to send to a peer."""
        self._outgoing.disconnected(self._node(peer))

    def deliver(self, peer: int, message: dict[str, Any]) -> None:
        """Hand a filtered message to the library."""
        self._outgoing.deliver(self._node(peer), message)

    def tick(self) -> None:
        """Let timers fire, elections run, and the commit index move."""
        if self._SyncObj__raftState != 2 and self._SyncObj__raftElectionDeadline >= _ambient.now_s:
            return  # only a leader does more than to look at its election timer
        self.doTick(0.0)

    def append(self, command: bytes) -> None:
        """Append an entry as leader; it is sent by the next `send_appends`."""
        assert self.is_leader()
        self._journal.add(command, self._journal.last_index + 1, self.term())

    def send_appends(self) -> None:
        """Send each peer what it lacks, or a heartbeat."""
        self._SyncObj__sendAppendEntries()

    def set_applied(self, index: int) -> None:
        """Keep the library's idea of what is applied."""
        self._SyncObj__raftLastApplied = index

    def adopt_term(self, term: int) -> None:
        """Become a follower of a newer term that a peer told of, without a vote in it."""
        assert term > self.term()
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(0)
        self._SyncObj__raftLeader = None

    def stand_down(self) -> None:
        """Become a follower if this node is a candidate; its term and its own vote stay."""
        if self.role() == Role.CANDIDATE:
            self._SyncObj__setState(0)

    def end_stand(self) -> None:
        """Take back a leader's request to stand at once; this node stood, or its term is over.

        The library does so only where it stands. Else it would let no heartbeat of the next leader
        put the election off.
        """
        self._SyncObj__transferInProgress = False
        if not self._SyncObj__raftElectionDeadline:  # it did not stand
            timeout_s = self._SyncObj__generateRaftTimeout()
            self._SyncObj__raftElectionDeadline = _ambient.now_s + timeout_s

    # ------------------------------------------------------------------ overrides

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        return self._owner.core_may_stand()

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Nothing is queued: `append` appends at once."""

    def _SyncObj__getCurrentLogIndex(self) -> int:  # noqa: N802
        return self._journal.last_index

    def _SyncObj__getEntries(  # noqa: N802
        self,
        fromIDx: int,  # noqa: N803
        count: int | None = None,
        maxSizeBytes: int | None = None,  # noqa: N803, ARG002 - a batch is bounded by the journal
    ) -> list[tuple[bytes, int, int]]:
        return self._journal.entries(fromIDx, count)

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        return False

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        return None

    def _SyncObj__loadDumpFile(self, *_args: object, **_kwargs: object) -> None:  # noqa: N802
        message = "a dump file was asked for"
        raise AssertionError(message)

    def _SyncObj__doApplyCommand(self, _command: bytes) -> None:  # noqa: N802
        message = "the library was asked to apply"
        raise AssertionError(message)

    def _SyncObj__parseChangeClusterRequest(self, _command: bytes) -> None:  # noqa: N802
        message = "the library was asked to change members"
        raise AssertionError(message)

    def _SyncObj__changeCluster(self, _request: object) -> bool:  # noqa: N802
        message = "the library was asked to change members"
        raise AssertionError(message)
