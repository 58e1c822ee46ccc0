"""The lagging side of state images: one at a time, beside the state in use, installed at its end.

Every piece is checked when it comes, the whole when it ended, and once more, right before it takes
the state's place, whether it is still needed. Nothing of the state in use changes before that.
"""

from collections.abc import Callable

import crc32c
import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
from nokv_replication.errors import ImageDamaged, ImageRefused
from nokv_replication.image_frames import (
    ImageAccept,
    ImageAck,
    ImageBody,
    ImageChunk,
    ImageEnd,
    ImageInstalled,
    ImageOffer,
    ImageRefusal,
    ImageRefuse,
    SendImage,
    decode_position,
)
from nokv_replication.log import Log
from nokv_replication.ports import ImageSink, Machine
from nokv_replication.receiver import Receiver
from nokv_replication.types import Applied, Counters, GroupConfig, ImageStatus

_MESSAGE_MAX = 512


class Incoming(msgspec.Struct):
    """The image that is being received."""

    peer: int
    image: int
    applied: Applied
    size_bytes: int
    sink: ImageSink
    offset: int = 0
    """Bytes received, in order."""
    ended: bool = False
    """Verified and durable: it waits to be installed."""
    touched_ns: int = 0


class ImageReceiver:
    """Receives images of one replica. Everything happens in `step`, or is called by one."""

    def __init__(
        self,
        core: Core,
        log: Log,
        machine: Machine,
        applier: Applier,
        receiver: Receiver,
        config: GroupConfig,
        counters: Counters,
        send: SendImage,
        on_installed: Callable[[Applied], None],
    ) -> None:
        self._core = core
        self._log = log
        self._machine = machine
        self._applier = applier
        self._receiver = receiver
        self._config = config
        self._counters = counters
        self._send = send
        self._on_installed = on_installed
        self._incoming: Incoming | None = None
        self._now_ns = 0

    def picture(self) -> list[ImageStatus]:
        """Return what is being received."""
        incoming = self._incoming
        if incoming is None:
            return []
        return [
            ImageStatus(
                peer=incoming.peer,
                outgoing=False,
                index=incoming.applied.index,
                done_bytes=incoming.offset,
                size_bytes=max(incoming.size_bytes, incoming.offset),
            )
        ]

    # ------------------------------------------------------------------ from the network

    def handle(self, peer: int, body: ImageBody, now_ns: int) -> None:
        """Take a frame of a sender."""
        self._now_ns = now_ns
        if isinstance(body, ImageOffer):
            self._on_offer(peer, body)
            return
        incoming = self._incoming
        if incoming is None or (incoming.peer, incoming.image) != (peer, body.image):
            if isinstance(body, ImageChunk | ImageEnd):
                self._refuse(peer, body.image, ImageRefusal.UNKNOWN, "it was not offered here")
            return
        incoming.touched_ns = now_ns
        if isinstance(body, ImageChunk):
            self._on_chunk(incoming, body)
        elif isinstance(body, ImageEnd):
            self._on_end(incoming, body)

    def _on_offer(self, peer: int, offer: ImageOffer) -> None:
        applied = decode_position(offer.applied)
        # A leader hears of a newer one by its appends. Others must not hold entries of a term that
        # they have not reached.
        if offer.term > self._core.term() and not self._core.is_leader():
            self._core.adopt_term(offer.term)
        refusal = self._refusal(offer.term, applied)
        if refusal is not None:
            self._refuse(peer, offer.image, *refusal)
            return
        incoming = self._incoming
        if incoming is None or (incoming.peer, incoming.image) != (peer, offer.image):
            self.abort()
            try:
                sink = self._machine.receive(applied)
            except ImageRefused as error:
                self._refuse(peer, offer.image, ImageRefusal.UNABLE, str(error))
                return
            incoming = Incoming(peer, offer.image, applied, offer.size_bytes, sink)
            self._incoming = incoming
        incoming.touched_ns = self._now_ns
        self._send(peer, ImageAccept(offer.image, incoming.offset))

    def _refusal(self, term: int, applied: Applied) -> tuple[ImageRefusal, str] | None:
        """Say why an offer is not taken, None if it is."""
        if term < self._core.term():
            return ImageRefusal.OLD_TERM, f"the term is {self._core.term()}"
        if applied.term > term:
            return ImageRefusal.DAMAGED, f"an image of term {applied.term}, offered in {term}"
        if self._core.is_leader():
            return ImageRefusal.LEADS, "this node leads"
        if self._is_covered(applied):
            return ImageRefusal.COVERED, ""
        if not self._receiver.accept_entries:
            return ImageRefusal.UNABLE, "the receiver is short of disk space"
        return None

    def _is_covered(self, applied: Applied) -> bool:
        """Whether state and log of this node hold everything up to there."""
        core, log, index = self._core, self._log, applied.index
        if index <= core.commit_index():
            return True
        return index <= log.last_index and log.term_at(index) == applied.term

    def _on_chunk(self, incoming: Incoming, chunk: ImageChunk) -> None:
        if chunk.offset != incoming.offset or incoming.ended:
            self._give_up(ImageRefusal.DAMAGED, f"byte {chunk.offset} after {incoming.offset}")
            return
        if crc32c.crc32c(chunk.piece) != chunk.crc:
            self._give_up(
                ImageRefusal.DAMAGED, f"the checksum of the piece at byte {chunk.offset} is wrong"
            )
            return
        try:
            incoming.sink.write(chunk.piece)
        except ImageRefused as error:
            self._give_up(_reason(error), str(error))
            return
        incoming.offset += len(chunk.piece)
        self._counters.image_bytes_received += len(chunk.piece)
        self._send(incoming.peer, ImageAck(incoming.image, incoming.offset))

    def _on_end(self, incoming: Incoming, end: ImageEnd) -> None:
        if incoming.ended:
            return
        if end.offset != incoming.offset:
            self._give_up(ImageRefusal.DAMAGED, f"it ends at {end.offset}, not {incoming.offset}")
            return
        try:
            incoming.sink.finish()
        except ImageRefused as error:
            self._give_up(_reason(error), str(error))
            return
        incoming.ended = True

    def _give_up(self, reason: ImageRefusal, message: str) -> None:
        incoming = self._incoming
        assert incoming is not None
        self.abort()
        self._refuse(incoming.peer, incoming.image, reason, message)

    def _refuse(self, peer: int, image: int, reason: ImageRefusal, message: str) -> None:
        self._counters.images_refused += 1
        self._send(peer, ImageRefuse(image, reason, message[:_MESSAGE_MAX]))

    def abort(self) -> None:
        """Discard what was received."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.sink.abort()

    # ------------------------------------------------------------------ the step

    def step(self, now_ns: int) -> None:
        """Install what is complete, between two entries; discard what nobody goes on with.

        Raises:
            Fatal: the log or the machine failed in it.
        """
        incoming = self._incoming
        if incoming is None:
            return
        if incoming.ended and self._applier.between_entries:
            self._install(incoming)
        elif now_ns - incoming.touched_ns >= self._config.image_hold_ns:
            self.abort()

    def _install(self, incoming: Incoming) -> None:
        if not self._may_install(incoming.applied):
            self._give_up(ImageRefusal.COVERED, "")
            return
        # Its configuration is in force at once. A candidate's votes were given under the one before
        # and are a number in the library: they must not count towards the new majority.
        self._core.stand_down()
        assert incoming.applied.term <= self._core.term()
        # First the state, then the log: a start in between finds a log that ends before the state,
        # or disagrees with it, and begins the log anew there (`roster.check_start`), as announced.
        self._log.announce_install(incoming.applied.index, incoming.applied.term)
        applied = self._machine.install(incoming.sink)
        assert (applied.index, applied.term) == (incoming.applied.index, incoming.applied.term)
        self._log.reset(applied.index, applied.term)
        self._core.start_at(applied.index)
        self._applier.installed(applied)
        self._receiver.too_far_base = None
        self._incoming = None
        self._counters.images_installed += 1
        self._on_installed(applied)
        self._send(incoming.peer, ImageInstalled(incoming.image))

    def _may_install(self, applied: Applied) -> bool:
        """Judge once more: entries may have come, been committed and acknowledged meanwhile."""
        return not self._core.is_leader() and not self._is_covered(applied)

    def next_deadline_ns(self) -> int | None:
        """Return when `step` has work to do, None for never."""
        incoming = self._incoming
        if incoming is None or incoming.ended:
            return None  # the rest of the entry is due at once anyway
        return incoming.touched_ns + self._config.image_hold_ns


def _reason(error: ImageRefused) -> ImageRefusal:
    damaged = isinstance(error, ImageDamaged)
    return ImageRefusal.DAMAGED if damaged else ImageRefusal.UNABLE
