"""What the owner of the connections calls of a `Group`: handshakes, connections, frames.

Nothing is done here but checked and queued; the next step handles it.
"""

from collections import deque
from collections.abc import Callable

from nokv_replication.bootstrap import MEMBERS_MAX, Identity
from nokv_replication.configurations import Configurations
from nokv_replication.errors import HandshakeRefused, ProtocolError, RemovedFromGroup
from nokv_replication.frames import (
    Body,
    Greeting,
    Purpose,
    decode_frame,
    decode_hello,
    encode,
)
from nokv_replication.images import Images
from nokv_replication.peers import Peers
from nokv_replication.receiver import Receiver
from nokv_replication.roster import Roster
from nokv_replication.types import Counters

INBOX_MAX_BYTES = 64 << 20
"""Frames of one peer that wait for the next step, at most: a few windows of entries."""
# A short frame takes more memory once it is decoded.
_FRAME_BYTES = 512


class Endpoint:
    """The side of a group that faces its network."""

    wake: Callable[[], None]
    counters: Counters
    _identity: Identity
    _roster: Roster
    _configurations: Configurations
    _peers: Peers
    _receiver: Receiver
    _images: Images
    # (peer, epoch, sequence, body); without a body sequence 1 is a connection, 0 its end.
    _inbox: deque[tuple[int, int, int, Body | None]]
    # Peer to what its frames in the inbox take.
    _inbox_bytes: dict[int, int]
    # Of the latest step.
    _now_ns: int

    def hello(self, epoch: int, purpose: Purpose = Purpose.RAFT) -> bytes:
        """Return this node's first frame on a connection with that epoch."""
        return encode(self._roster.hello(epoch, purpose))

    def greet(self, data: bytes) -> Greeting:
        """Check a peer's first frame; return who it is, the epoch it proposes, and what for.

        Raises:
            HandshakeRefused: the peer does not belong here; tell it why and close.
            ProtocolError: it is no hello.
        """
        try:
            hello = decode_hello(data)
        except HandshakeRefused as refusal:
            self._roster.note_refusal(refusal, None, self._now_ns)
            self._receiver.told_removed |= isinstance(refusal, RemovedFromGroup)
            raise
        if hello.node not in self._peers.all and self._peers.visitors() >= MEMBERS_MAX:
            message = "too many nodes that are no members are connected already"
            raise HandshakeRefused(message)
        node = self._roster.greet(hello, self._now_ns)
        if self._roster.founding:
            self.wake()
        return Greeting(node, hello.epoch, hello.purpose)

    def connected(self, peer: int, epoch: int) -> None:
        """Announce a connection that was greeted; its `epoch` was never used before."""
        state = self._peers.admit(peer, self._roster.greeted(peer))
        assert epoch > 0
        assert state.epoch == 0, "the old connection must be reported as lost first"
        state.epoch = epoch
        state.received_sequence = 0
        self._peers.configure(self._identity.node, self._configurations)
        self._inbox.append((peer, epoch, 1, None))
        self.wake()

    def disconnected(self, peer: int) -> None:
        """Announce that the connection is gone."""
        self._peers[peer].epoch = 0
        self._inbox.append((peer, 0, 0, None))
        self.wake()

    def receive(self, peer: int, data: bytes) -> None:
        """Take one frame of the present connection of a peer; it is handled by the next step.

        Raises:
            ProtocolError: close the connection; nothing else happened.
        """
        frame = decode_frame(data)
        state = self._peers[peer]
        if (frame.sender, frame.epoch) != (peer, state.epoch):
            message = f"a frame of node {frame.sender}, epoch {frame.epoch}, from node {peer}"
            raise ProtocolError(message)
        if frame.sequence <= state.received_sequence:
            message = f"node {peer} repeats frame {frame.sequence}"
            raise ProtocolError(message)
        waiting = self._inbox_bytes.get(peer, 0) + len(data) + _FRAME_BYTES
        if waiting > INBOX_MAX_BYTES:
            message = f"node {peer} sends faster than its frames are handled"
            raise ProtocolError(message)
        self._inbox_bytes[peer] = waiting
        state.received_sequence = frame.sequence
        self.counters.frames_received += 1
        self._inbox.append((peer, frame.epoch, frame.sequence, frame.body))
        self.wake()

    def image_connected(self, peer: int, epoch: int, *, outgoing: bool) -> None:
        """Announce an image connection that was greeted, dialed by this node or by the peer.

        Its `epoch` was never used before; the old one of that direction was reported as lost.
        """
        self._images.connected(peer, epoch, outgoing=outgoing)
        self.wake()

    def image_disconnected(self, peer: int, *, outgoing: bool) -> None:
        """Announce that an image connection is gone, or that dialing it failed."""
        self._images.disconnected(peer, outgoing=outgoing)
        self.wake()

    def receive_image(self, peer: int, data: bytes, *, outgoing: bool) -> None:
        """Take one frame of an image connection; it is handled by a later step.

        Raises:
            ProtocolError: close the connection; nothing else happened.
        """
        self._images.receive(peer, data, outgoing=outgoing)
        self.wake()
