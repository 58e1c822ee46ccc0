"""The leader's side of replication: what is on its way to each peer, and which answers count."""

from collections import deque
from collections.abc import Callable

import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.configurations import Configurations
from nokv_replication.frames import ENTRIES_MAX, ENTRIES_MAX_BYTES, Ack, Append, Body
from nokv_replication.log import Log
from nokv_replication.types import Counters, GroupConfig

_ENTRY_OVERHEAD_BYTES = 16
NEVER_NS = 1 << 62
"""A deadline that is not set."""


class Peer(msgspec.Struct):
    """What this node knows of one peer; sequence numbers live as long as the process."""

    node: int
    incarnation: int = 0
    """As greeted; another one than the member's is a stranger with its number."""
    member: bool = False
    """In the configuration in force: entries are sent to it."""
    voter: bool = False
    """Counts: its votes, confirmations, acknowledgements and clock."""
    heard_ns: int = -(1 << 62)
    """When it last acknowledged anything of this node's leadership."""
    epoch: int = 0
    """Connection in use, 0 while there is none."""
    sent_sequence: int = 0
    received_sequence: int = 0
    """Of the connection in use; frames must come with growing numbers."""
    reset_at: int = 0
    """Resets that answer frames up to this sequence number are of the past."""
    inflight: deque[tuple[int, int]] = msgspec.field(default_factory=deque)
    """(last index, bytes) of append frames not yet acknowledged."""
    inflight_bytes: int = 0
    progress_ns: int = 0
    """When `inflight` last shrank or began."""
    held_index: int = 0
    """Next index to restore after a send pass that a full window ended, 0 for none."""
    commit_sent: int = 0
    """Largest commit index sent on this connection in this term."""
    base_tried: int = -1
    """Base of this log that was tried as the entry before, since the peer last confirmed one."""
    applied_index: int = 0
    free_bytes: int = 0
    sync_ns: int = 0
    """How long its log syncs took of late."""
    vote_term: int = 0
    """Term of the vote counted last; a duplicate must not count twice."""
    owed_index: int = 0
    """Largest index acknowledged in this term before it connected anew, until it is once more."""
    owed_sequence: int = 0
    """First append on the connection in use that it can't refuse if it still has that entry."""
    lost_index: int = 0
    """Largest index that it acknowledged and came back without, 0 for none: never falls."""

    def number(self, body: Body) -> int:
        """Return the sequence number of a frame that leaves now."""
        self.sent_sequence += 1
        seeks = self.owed_index and not self.owed_sequence
        if seeks and isinstance(body, Append) and body.prev_index <= self.owed_index:
            self.owed_sequence = self.sent_sequence
        return self.sent_sequence

    def forget_inflight(self) -> None:
        """Drop the window: the frames are lost, or a newer answer makes them moot."""
        self.inflight.clear()
        self.inflight_bytes = 0


def set_back(node: int, index: int) -> str:
    """Return what to tell an operator of a peer that has lost what it acknowledged."""
    return (
        f"node {node} came back without entries up to {index} that it had acknowledged: its data"
        " directory is an older copy, and has forgotten votes too. Add a new node, and remove node"
        f" {node}: it can't be trusted under this number (docs/operations.md: A lost node)"
    )


class Peers:
    """The peers of one leader, with a window of bytes on the way to each."""

    def __init__(self, core: Core, log: Log, config: GroupConfig, counters: Counters) -> None:
        self._core = core
        self._log = log
        self._config = config
        self._counters = counters
        self.all: dict[int, Peer] = {}
        """Members, connected or not, and connected visitors."""
        self.warn: Callable[[str], None] = lambda _text: None
        """Told of what an operator must hear of."""
        self.tell_due_ns = NEVER_NS
        """When members are told of a commit that no entry behind it has told them of."""
        self._told_index = 0
        """Commit index that they were told of so: a member that takes no entries is told once."""

    def __getitem__(self, node: int) -> Peer:
        return self.all[node]

    def get(self, node: int) -> Peer | None:
        """Return a peer, None for one that is neither a member nor connected."""
        return self.all.get(node)

    def admit(self, node: int, incarnation: int) -> Peer:
        """Return the peer of a connection that was just greeted."""
        peer = self.all.setdefault(node, Peer(node))
        peer.incarnation = incarnation
        return peer

    def configure(self, me: int, configurations: Configurations) -> None:
        """Follow the configuration in force."""
        members = configurations.in_force
        for member in members.members if members is not None else ():
            if member.node != me and member.node not in self.all:
                self.all[member.node] = Peer(member.node, incarnation=member.incarnation)
        for peer in self.all.values():
            peer.member = configurations.member(peer.node, peer.incarnation)
            peer.voter = peer.member and peer.node in configurations.voters

    def behind(self, commit_index: int) -> bool:
        """Whether a connected member was not told of that commit index."""
        peers = self.all.values()
        return any(p.member and p.epoch and p.commit_sent < commit_index for p in peers)

    def must_tell(self, commit_index: int, now_ns: int) -> bool:
        """Whether some member has waited long enough to be told of a commit.

        The next entry tells it for nothing; where none follows, who follows a member's state, as a
        watch does, would wait for the heartbeat.
        """
        if commit_index <= self._told_index or not self.behind(commit_index):
            self.tell_due_ns = NEVER_NS
        elif self.tell_due_ns == NEVER_NS:
            self.tell_due_ns = now_ns + self._config.heartbeat_ns // 20
        elif now_ns >= self.tell_due_ns:
            self.tell_due_ns, self._told_index = NEVER_NS, commit_index
            return True
        return False

    def sweep(self) -> None:
        """Forget visitors that are gone; only while nothing of them waits in the inbox."""
        for node, peer in tuple(self.all.items()):
            if not peer.member and not peer.epoch:
                del self.all[node]

    def visitors(self) -> int:
        """Return how many connected peers are no members."""
        return sum(not peer.member and peer.epoch > 0 for peer in self.all.values())

    def voters(self) -> list[int]:
        """Return the ids of connected voters, in order of admission."""
        return [node for node, peer in self.all.items() if peer.epoch and peer.voter]

    def begin_term(self, now_ns: int) -> None:
        """Start to lead: nothing is on its way in this term."""
        self.tell_due_ns, self._told_index = NEVER_NS, 0
        for peer in self.all.values():
            peer.forget_inflight()
            peer.commit_sent = 0
            peer.base_tried = -1
            peer.held_index = 0
            peer.progress_ns = now_ns
            peer.heard_ns = now_ns - self._config.election_max_ns
            peer.owed_index = peer.owed_sequence = 0

    def reconnected(self, peer: Peer, now_ns: int) -> None:
        """Send again what the broken connection may have lost.

        What the peer acknowledged counts again once it acknowledged it again: it may have been
        started over an older copy of its directory.
        """
        peer.forget_inflight()
        peer.commit_sent = 0
        peer.base_tried = -1
        peer.progress_ns = now_ns
        peer.owed_sequence = 0
        if not self._core.is_leader() or not peer.member:
            peer.owed_index = 0
            return
        peer.owed_index = self._acknowledged(peer)
        if peer.owed_index:
            self._core.forget_match(peer.node)
            self._core.set_next_index(peer.node, peer.owed_index + 1)

    def _acknowledged(self, peer: Peer) -> int:
        """Return the largest index a peer acknowledged in this term, before it came back too."""
        return max(self._core.match_index(peer.node), peer.owed_index)

    # ------------------------------------------------------------------ sending

    def make_append(
        self,
        peer: Peer,
        prev: tuple[int, int] | None,
        entries: list[tuple[bytes, int, int]],
        now_ns: int,
    ) -> Append:
        """Return the frame for a library append, cut to the window and the frame size.

        `prev` is (index, term) of the entry before, None where the library ran past the log.
        """
        core, log = self._core, self._log
        if prev is None:
            # The library's next index lies beyond this log, which it never repairs by itself.
            self._counters.next_index_repairs += 1
            core.set_next_index(peer.node, log.last_index + 1)
            prev, entries = (log.last_index, log.last_term), []
        if entries and peer.inflight_bytes >= self._config.inflight_bytes:
            # A plain heartbeat instead; setting the next index to the end stops the library's
            # loop, `restore_held` puts it back after the pass.
            self._counters.window_full += 1
            peer.held_index = self._resume_index(peer, entries[0][1], now_ns)
            core.set_next_index(peer.node, log.last_index + 1)
            match = max(self._acknowledged(peer), log.base_index)
            prev, entries = (match, log.term_at(match)), []
        if entries:
            entries = self._fit(entries)
            last = entries[-1][1]
            core.set_next_index(peer.node, last + 1)
            size = sum(len(command) for command, _, _ in entries)
            if not peer.inflight:
                peer.progress_ns = now_ns
            peer.inflight.append((last, size))
            peer.inflight_bytes += size
        # A single voter counts its own copy at once; what it tells its learners has to be synced.
        commit_index = min(core.commit_index(), log.synced_index)
        peer.commit_sent = max(peer.commit_sent, commit_index)
        wire = [(term, command) for command, _, term in entries]
        return Append(core.term(), prev[0], prev[1], commit_index, wire)

    def _resume_index(self, peer: Peer, next_index: int, now_ns: int) -> int:
        if now_ns - peer.progress_ns < self._config.election_max_ns:
            return next_index
        # Nothing came back for so long that what is on its way is taken for lost.
        peer.forget_inflight()
        peer.progress_ns = now_ns
        match = self._acknowledged(peer)
        return match + 1 if match > 0 else next_index

    @staticmethod
    def _fit(entries: list[tuple[bytes, int, int]]) -> list[tuple[bytes, int, int]]:
        size = 0
        for count, (command, _, _) in enumerate(entries):
            size += len(command) + _ENTRY_OVERHEAD_BYTES
            if count and (size > ENTRIES_MAX_BYTES or count >= ENTRIES_MAX):
                return entries[:count]
        return entries

    def restore_held(self) -> None:
        """Put back the next index of peers whose window was full; after each send pass."""
        for peer in self.all.values():
            if peer.held_index:
                if self._core.is_leader():
                    self._core.set_next_index(peer.node, peer.held_index)
                peer.held_index = 0

    def has_unsent(self) -> bool:
        """Whether a connected peer with room in its window lacks entries."""
        core, last, limit = self._core, self._log.last_index, self._config.inflight_bytes
        for peer in self.all.values():
            reachable = peer.member and peer.epoch and peer.inflight_bytes < limit
            if reachable and core.next_index(peer.node) <= last:
                return True
        return False

    # ------------------------------------------------------------------ answers

    def is_current(self, ack: Ack) -> bool:
        """Whether an acknowledgement speaks of this node's present leadership.

        The library's own message has no term: one sent in an older term would count entries that
        were overwritten since as replicated.
        """
        return self._core.is_leader() and ack.term == self._core.term()

    def on_ack(self, peer: Peer, ack: Ack, now_ns: int) -> None:
        """Hand a current acknowledgement to the library, filtered."""
        core, log = self._core, self._log
        peer.heard_ns = now_ns
        if ack.next_index > log.last_index + 1 and ack.success:
            self._counters.acks_stale += 1
            return
        if ack.reset and peer.owed_sequence and ack.sequence == peer.owed_sequence:
            self._set_back(peer)
        reset = ack.reset
        if reset and ack.sequence <= peer.reset_at:
            # It answers a frame sent before the last reset was obeyed: what it complains of has
            # been sent again already. Obeying each would resend the log many times over.
            self._counters.resets_ignored += 1
            reset = False
        elif reset:
            peer.reset_at = peer.sent_sequence
            peer.forget_inflight()
        next_index = min(max(ack.next_index, 1), log.last_index + 1)
        if ack.success:
            peer.base_tried = -1
            self._shrink_window(peer, ack.next_index - 1, now_ns)
            if ack.next_index > peer.owed_index:
                peer.owed_index = peer.owed_sequence = 0
        elif reset and next_index <= log.base_index and peer.base_tried != log.base_index:
            # The peer is certain only of entries that are dropped here, but may hold more: try
            # this log's base once, before it is told that it is too far behind.
            peer.base_tried = log.base_index
            next_index = log.base_index + 1
        before = core.next_index(peer.node)
        core.deliver(
            peer.node,
            {
                "type": "next_node_idx",
                "next_node_idx": next_index,
                "reset": reset,
                "success": ack.success,
            },
        )
        if ack.success and not reset and core.next_index(peer.node) < before:
            # The library goes back to the acknowledged index and sends again what is on its way.
            core.set_next_index(peer.node, before)

    def _set_back(self, peer: Peer) -> None:
        """Note that a peer refused what follows an entry that it had acknowledged in this term.

        A leader's entries are never replaced in its term, and what is acknowledged is synced: so
        the peer runs over an older copy of its log, and has forgotten votes as well, perhaps.
        """
        peer.lost_index = max(peer.lost_index, peer.owed_index)
        peer.owed_index = peer.owed_sequence = 0
        self._counters.peers_set_back += 1
        self.warn(set_back(peer.node, peer.lost_index))

    @staticmethod
    def _shrink_window(peer: Peer, match_index: int, now_ns: int) -> None:
        inflight = peer.inflight
        while inflight and inflight[0][0] <= match_index:
            peer.inflight_bytes -= inflight.popleft()[1]
            peer.progress_ns = now_ns
