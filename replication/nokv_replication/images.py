"""State images of one replica: their connections, and the two sides that use them.

A node sends images on the connections it dials (`outgoing`) and receives them on those that its
peers dial. Frames are checked as those of the Raft connection are: sender, epoch, growing numbers.
Everything else happens in the group's step, in the order of arrival, for a slice of time.
"""

from collections import deque
from collections.abc import Callable
from random import Random

import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
from nokv_replication.errors import ProtocolError
from nokv_replication.image_frames import (
    ImageAccept,
    ImageAck,
    ImageBody,
    ImageChunk,
    ImageEnd,
    ImageFrame,
    ImageInstalled,
    ImageOffer,
    ImageRefuse,
    decode_image_frame,
    decode_position,
    encode_image_frame,
)
from nokv_replication.image_receiver import ImageReceiver
from nokv_replication.image_sender import ImageSender
from nokv_replication.log import Log
from nokv_replication.ports import Clock, Machine, Network
from nokv_replication.receiver import Receiver
from nokv_replication.types import Applied, Counters, GroupConfig, ImageStatus

PENDING_MAX_BYTES = 64 << 20
"""Of frames that wait for a step, at most: several windows, which a correct sender keeps to."""

_FROM_SENDER = (ImageOffer, ImageChunk, ImageEnd)
_FROM_RECEIVER = (ImageAccept, ImageAck, ImageRefuse, ImageInstalled)


class _Link(msgspec.Struct):
    """One image connection of a peer and a direction."""

    epoch: int = 0
    """0 while there is none."""
    sent_sequence: int = 0
    received_sequence: int = 0


class Images:
    """What a group does about state images. `step` is called at the end of each of its steps."""

    def __init__(
        self,
        *,
        node: int,
        core: Core,
        log: Log,
        machine: Machine,
        applier: Applier,
        receiver: Receiver,
        network: Network,
        clock: Clock,
        config: GroupConfig,
        counters: Counters,
        rng: Random,
        on_installed: Callable[[Applied], None],
    ) -> None:
        self._node = node
        self._network = network
        self._clock = clock
        self._config = config
        self._links: dict[tuple[int, bool], _Link] = {}
        # (peer, outgoing, epoch, what): a body, True for a connection, False for its end.
        self._inbox: deque[tuple[int, bool, int, ImageBody | bool]] = deque()
        self._pending_bytes = 0
        self.sender = ImageSender(
            core,
            log,
            applier,
            machine,
            config,
            counters,
            rng,
            self._open_outgoing,
            self._close_outgoing,
            self._send_outgoing,
        )
        self.receiver = ImageReceiver(
            core,
            log,
            machine,
            applier,
            receiver,
            config,
            counters,
            self._send_incoming,
            on_installed,
        )

    # ------------------------------------------------------------------ connections

    def connected(self, peer: int, epoch: int, *, outgoing: bool) -> None:
        """Announce a connection."""
        link = self._links.setdefault((peer, outgoing), _Link())
        assert epoch > 0
        assert link.epoch == 0, "the old connection must be reported as lost first"
        link.epoch, link.sent_sequence, link.received_sequence = epoch, 0, 0
        self._inbox.append((peer, outgoing, epoch, True))

    def disconnected(self, peer: int, *, outgoing: bool) -> None:
        """Announce that a connection is gone, or could not be dialed."""
        link = self._links.setdefault((peer, outgoing), _Link())
        link.epoch = 0
        self._inbox.append((peer, outgoing, 0, False))

    def receive(self, peer: int, data: bytes, *, outgoing: bool) -> None:
        """Take one frame; it is handled by the next step.

        Raises:
            ProtocolError: close the connection; nothing else happened.
        """
        frame, link = decode_image_frame(data), self._links[peer, outgoing]
        if (frame.sender, frame.epoch) != (peer, link.epoch):
            message = f"an image frame of node {frame.sender}, epoch {frame.epoch}, from {peer}"
            raise ProtocolError(message)
        if frame.sequence <= link.received_sequence:
            message = f"node {peer} repeats image frame {frame.sequence}"
            raise ProtocolError(message)
        if not isinstance(frame.body, _FROM_RECEIVER if outgoing else _FROM_SENDER):
            message = f"node {peer} sends {type(frame.body).__name__} in the wrong direction"
            raise ProtocolError(message)
        if isinstance(frame.body, ImageOffer):
            decode_position(frame.body.applied)
        if self._pending_bytes + len(data) > PENDING_MAX_BYTES:
            message = f"node {peer} sends images faster than they are acknowledged"
            raise ProtocolError(message)
        self._pending_bytes += len(data)
        link.received_sequence = frame.sequence
        self._inbox.append((peer, outgoing, link.epoch, frame.body))

    def _send_outgoing(self, peer: int, body: ImageBody) -> None:
        self._send(peer, body, outgoing=True)

    def _send_incoming(self, peer: int, body: ImageBody) -> None:
        self._send(peer, body, outgoing=False)

    def _send(self, peer: int, body: ImageBody, *, outgoing: bool) -> None:
        link = self._links.get((peer, outgoing))
        if link is not None and link.epoch:
            link.sent_sequence += 1
            frame = ImageFrame(self._node, link.epoch, link.sent_sequence, body)
            self._network.send_image(peer, encode_image_frame(frame), outgoing=outgoing)

    def _open_outgoing(self, peer: int) -> None:
        self._network.open_image(peer)

    def _close_outgoing(self, peer: int) -> None:
        link = self._links.get((peer, True))
        if link is not None:
            link.epoch = 0
        self._network.close_image(peer, outgoing=True)

    # ------------------------------------------------------------------ the step

    def step(self, now_ns: int, *, leads: bool, log_bytes_max: int) -> None:
        """Handle what arrived, for a slice of time; then send, install, and give up what is late.

        Raises:
            Fatal: an installation failed.
        """
        deadline_ns = self._clock.monotonic_ns() + self._config.apply_slice_ns
        while self._inbox:
            self._handle_next(now_ns)
            if self._clock.monotonic_ns() >= deadline_ns:
                break
        if not self._inbox:
            self._pending_bytes = 0
        if leads:
            self.sender.step(now_ns, log_bytes_max)
        self.receiver.step(now_ns)

    def _handle_next(self, now_ns: int) -> None:
        peer, outgoing, epoch, what = self._inbox.popleft()
        link = self._links[peer, outgoing]
        if epoch != link.epoch:
            return  # of a connection that is gone; its end comes, or came, by itself
        if isinstance(what, bool):
            if outgoing and what:
                self.sender.connected(peer, now_ns)
            elif outgoing:
                self.sender.disconnected(peer, now_ns)
        elif outgoing:
            self.sender.handle(peer, what, now_ns)
        else:
            self.receiver.handle(peer, what, now_ns)

    def step_down(self) -> None:
        """End what only a leader does."""
        self.sender.stop()

    def stop(self) -> None:
        """Let go of everything."""
        self.sender.stop()
        self.receiver.abort()

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """Return when `step` has work to do, None for never."""
        if self._inbox:
            return now_ns
        sends_ns, receives_ns = self.sender.next_deadline_ns(), self.receiver.next_deadline_ns()
        if sends_ns is None or receives_ns is None:
            return receives_ns if sends_ns is None else sends_ns
        return min(sends_ns, receives_ns)

    def pictures(self) -> tuple[ImageStatus, ...]:
        """Return all images on their way."""
        return (*self.sender.pictures(), *self.receiver.picture())
