"""The leader's side of state images: one held state, at most two receivers, a window and a rate.

A receiver that needs entries which the log no longer holds is offered the state as of the last
durable commit. The log after that position is kept until the receiver has caught up, up to a limit.
A cut connection goes on where the receiver stands, from the window, which is kept in memory; all
else begins anew.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from random import Random

import crc32c
import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
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
)
from nokv_replication.log import Log
from nokv_replication.ports import IMAGE_PIECE_MAX_BYTES, ImageSource, Machine
from nokv_replication.types import Applied, Counters, GroupConfig, ImageStatus

RECEIVERS_MAX = 2
"""Receivers of one held state, at most; others wait."""
BURST_BYTES = 4 * IMAGE_PIECE_MAX_BYTES
"""What may leave at once after a pause, about; a tenth of a second's worth where that is less."""

_SECOND_NS = 1_000_000_000
_BACKOFF_SHIFT_MAX = 4


class Stage(Enum):
    """Where the transfer to one receiver stands."""

    WAITING = 0
    """Until `retry_ns`: to dial, first or again."""
    DIALING = 1
    OFFERED = 2
    SENDING = 3
    ENDED = 4
    """All is sent; the receiver verifies and installs."""
    CATCHING_UP = 5
    """Installed; the log is kept until appends have brought the receiver to `target_index`."""


class Held(msgspec.Struct):
    """The state that is being sent, unchanged while anybody receives it."""

    image: int
    source: ImageSource
    receivers: int = 0

    @property
    def applied(self) -> Applied:
        """Where it stands."""
        return self.source.applied


class Transfer(msgspec.Struct):
    """One receiver; `held` is None while it has no image."""

    peer: int
    stage: Stage = Stage.WAITING
    retry_ns: int = 0
    held: Held | None = None
    source: ImageSource | None = None
    sent_bytes: int = 0
    """Offset after the last piece that was read from the source."""
    acked_bytes: int = 0
    window: deque[tuple[int, bytes]] = msgspec.field(default_factory=deque)
    """(offset, piece) of what is not acknowledged, in order."""
    unsent: int = 0
    """How many pieces at the end of `window` have to be sent again after a cut."""
    progress_ns: int = 0
    """When the receiver last moved on."""
    lost_ns: int | None = None
    """Since when it has not accepted anything."""
    failures: int = 0
    """Refusals in a row."""
    reason: str = ""
    """The last refusal, for the operator."""
    index: int = 0
    """Of the image that was installed; the log after it, and after the match, is kept."""
    target_index: int = 0


class ImageSender:
    """Sends images of one leader's machine. Everything happens in `step`, or is called by one."""

    def __init__(
        self,
        core: Core,
        log: Log,
        applier: Applier,
        machine: Machine,
        config: GroupConfig,
        counters: Counters,
        rng: Random,
        open_: Callable[[int], None],
        close: Callable[[int], None],
        send: SendImage,
    ) -> None:
        self._core = core
        self._log = log
        self._applier = applier
        self._machine = machine
        self._open = open_
        self._close = close
        self._config = config
        self._counters = counters
        self._rng = rng
        self._send = send
        self._transfers: dict[int, Transfer] = {}
        self._held: Held | None = None
        self._burst_bytes = min(BURST_BYTES, config.image_bytes_per_second // 10)
        self._tokens_bytes = self._burst_bytes
        self._refilled_ns = 0
        self._now_ns = 0

    # ------------------------------------------------------------------ from the group

    def need(self, peer: int, now_ns: int) -> None:
        """Note that a peer needs entries that this log no longer holds."""
        transfer = self._transfers.get(peer)
        if transfer is None:
            self._transfers[peer] = Transfer(peer, retry_ns=now_ns, progress_ns=now_ns)
        elif transfer.stage == Stage.CATCHING_UP and transfer.index < self._log.base_index:
            transfer.stage, transfer.retry_ns = Stage.WAITING, now_ns

    def keep_only(self, members: set[int]) -> None:
        """End the transfers to peers that are no members any more."""
        for peer in sorted(self._transfers.keys() - members):
            self.forget(peer)

    def forget(self, peer: int) -> None:
        """End the transfer to a peer."""
        transfer = self._transfers.pop(peer, None)
        if transfer is not None:
            self._release(transfer)
            self._close(peer)

    def stop(self) -> None:
        """End all transfers: this node leads no more, or stops."""
        for peer in list(self._transfers):
            self.forget(peer)
        assert self._held is None

    def keep_index(self) -> int | None:
        """Return the index after which the log has to be kept for receivers, None for no need."""
        floors = [
            transfer.held.applied.index
            if transfer.held is not None
            else max(transfer.index, self._core.match_index(transfer.peer))
            for transfer in self._transfers.values()
            if transfer.held is not None or transfer.stage == Stage.CATCHING_UP
        ]
        return min(floors, default=None)

    def pictures(self) -> list[ImageStatus]:
        """Return what is being sent."""
        return [
            ImageStatus(
                peer=transfer.peer,
                outgoing=True,
                index=transfer.held.applied.index,
                done_bytes=transfer.acked_bytes,
                size_bytes=max(transfer.held.source.size_bytes, transfer.sent_bytes),
                failures=transfer.failures,
                reason=transfer.reason,
            )
            for transfer in self._transfers.values()
            if transfer.held is not None
        ]

    # ------------------------------------------------------------------ from the network

    def connected(self, peer: int, now_ns: int) -> None:
        """Offer the image: the connection that was dialed is there."""
        transfer = self._transfers.get(peer)
        if transfer is None or transfer.stage != Stage.DIALING:
            self._close(peer)
            return
        held = transfer.held
        assert held is not None
        transfer.stage, transfer.progress_ns = Stage.OFFERED, now_ns
        position = msgspec.msgpack.encode(held.applied)
        offer = ImageOffer(self._core.term(), held.image, position, held.source.size_bytes)
        self._send(peer, offer)

    def disconnected(self, peer: int, now_ns: int) -> None:
        """Dial again soon: the connection is gone, or never came."""
        transfer = self._transfers.get(peer)
        if transfer is None or transfer.stage in {Stage.WAITING, Stage.CATCHING_UP}:
            return
        if transfer.lost_ns is None:
            transfer.lost_ns = now_ns
        transfer.stage = Stage.WAITING
        transfer.retry_ns = now_ns + 2 * self._config.heartbeat_ns

    def handle(self, peer: int, body: ImageBody, now_ns: int) -> None:
        """Take a receiver's answer; one that fits nothing is of the past and means nothing."""
        transfer = self._transfers.get(peer)
        held = transfer.held if transfer is not None else None
        if transfer is None or held is None or body.image != held.image:
            return
        transfer.progress_ns = now_ns
        if isinstance(body, ImageAccept):
            self._accepted(transfer, held, body.offset)
        elif isinstance(body, ImageAck):
            self._acknowledged(transfer, body.offset)
        elif isinstance(body, ImageInstalled):
            self._counters.images_sent += 1
            self._installed(transfer, held.applied.index)
        elif isinstance(body, ImageRefuse):
            if body.reason == ImageRefusal.COVERED:
                self._installed(transfer, held.applied.index)
            else:
                self._fail(transfer, body.message)

    def _accepted(self, transfer: Transfer, held: Held, offset: int) -> None:
        if transfer.stage != Stage.OFFERED:
            return
        if offset == 0:
            self._rewind(transfer, held)
        elif not transfer.acked_bytes <= offset <= transfer.sent_bytes:
            self._fail(transfer, f"it goes on at byte {offset}, which was never sent")
            return
        else:
            self._counters.images_resumed += 1
            self._acknowledged(transfer, offset)
        transfer.unsent = len(transfer.window)
        transfer.stage, transfer.lost_ns = Stage.SENDING, None

    def _rewind(self, transfer: Transfer, held: Held) -> None:
        if transfer.source is not None:
            transfer.source.close()
        transfer.source = held.source.again()
        transfer.sent_bytes = transfer.acked_bytes = 0
        transfer.window.clear()

    @staticmethod
    def _acknowledged(transfer: Transfer, offset: int) -> None:
        if not transfer.acked_bytes < offset <= transfer.sent_bytes:
            return
        transfer.acked_bytes = offset
        window = transfer.window
        while window and window[0][0] < offset:
            window.popleft()
        transfer.unsent = min(transfer.unsent, len(window))

    def _installed(self, transfer: Transfer, index: int) -> None:
        """Go on with appends after the image, which are answered as all appends are."""
        core, log, peer = self._core, self._log, transfer.peer
        self._release(transfer)
        self._close(peer)
        transfer.stage, transfer.failures, transfer.reason = Stage.CATCHING_UP, 0, ""
        transfer.index, transfer.target_index = index, log.last_index
        if core.match_index(peer) < index and index >= log.base_index:
            core.set_next_index(peer, index + 1)

    def _fail(self, transfer: Transfer, reason: str) -> None:
        """Give the image up, and begin anew with another after a growing pause."""
        self._counters.images_failed += 1
        self._release(transfer)
        self._close(transfer.peer)
        shift = min(transfer.failures, _BACKOFF_SHIFT_MAX)
        transfer.failures += 1
        transfer.reason = reason
        transfer.stage = Stage.WAITING
        transfer.retry_ns = self._now_ns + (self._config.election_max_ns << shift)

    def _release(self, transfer: Transfer) -> None:
        held, transfer.held = transfer.held, None
        if transfer.source is not None:
            transfer.source.close()
        transfer.source, transfer.lost_ns = None, None
        transfer.window.clear()
        transfer.sent_bytes = transfer.acked_bytes = transfer.unsent = 0
        if held is not None:
            held.receivers -= 1
            if not held.receivers:
                assert self._held is held
                held.source.close()
                self._held = None

    # ------------------------------------------------------------------ the step

    def step(self, now_ns: int, log_bytes_max: int) -> None:
        """Dial, send at most one piece to each receiver, and give up what takes too long.

        `log_bytes_max`: where more than this of the log behind the durable commit is kept for
        receivers, what it is kept for ends; 0 while nothing may be kept.
        """
        self._now_ns = now_ns
        if not self._transfers:
            return
        self._refill(now_ns)
        too_long = self._kept_bytes() > log_bytes_max
        for transfer in list(self._transfers.values()):
            if too_long and transfer.stage == Stage.CATCHING_UP:
                del self._transfers[transfer.peer]
            elif too_long and transfer.held is not None:
                self._fail(transfer, "the log that was kept for it became too long")
            elif not log_bytes_max and transfer.stage == Stage.WAITING and transfer.held is None:
                transfer.retry_ns = now_ns + self._config.election_max_ns
            else:
                self._advance(transfer, now_ns)

    def _kept_bytes(self) -> int:
        """Return the size of the log that could be dropped but for receivers."""
        keep_index = self.keep_index()
        if keep_index is None:
            return 0
        droppable = self._log.droppable_bytes
        return max(0, droppable(self._applier.durable_index) - droppable(keep_index))

    def _advance(self, transfer: Transfer, now_ns: int) -> None:
        stage, config = transfer.stage, self._config
        if stage == Stage.WAITING:
            lost_ns = transfer.lost_ns
            if lost_ns is not None and now_ns - lost_ns >= config.image_hold_ns:
                self.forget(transfer.peer)
            elif now_ns >= transfer.retry_ns:
                self._dial(transfer, now_ns)
        elif stage == Stage.CATCHING_UP:
            match = self._core.match_index(transfer.peer)
            if match > transfer.index:
                transfer.index, transfer.progress_ns = match, now_ns
            done = match >= transfer.target_index
            if done or now_ns - transfer.progress_ns >= config.image_hold_ns:
                del self._transfers[transfer.peer]
        elif now_ns >= transfer.progress_ns + self._patience_ns(transfer):
            self._close(transfer.peer)
            self.disconnected(transfer.peer, now_ns)
        elif stage == Stage.SENDING:
            self._pump(transfer, now_ns)

    def _patience_ns(self, transfer: Transfer) -> int:
        """A receiver at rest has nothing to acknowledge; one that installs syncs the whole."""
        config = self._config
        if transfer.stage == Stage.SENDING and transfer.window:
            return config.image_timeout_ns
        return config.image_timeout_ns if transfer.stage == Stage.OFFERED else config.image_hold_ns

    def _dial(self, transfer: Transfer, now_ns: int) -> None:
        if transfer.held is None:
            held = self._hold()
            if held is None:
                transfer.retry_ns = now_ns + self._config.heartbeat_ns
                return
            held.receivers += 1
            transfer.held = held
        transfer.stage, transfer.progress_ns = Stage.DIALING, now_ns
        self._open(transfer.peer)

    def _hold(self) -> Held | None:
        """Return the state to send, None while all its receivers are taken."""
        held = self._held
        if held is None:
            source = self._machine.image()
            assert source.applied.index >= self._log.base_index, "the log follows the state"
            self._held = held = Held(self._rng.getrandbits(62) + 1, source)
        return held if held.receivers < RECEIVERS_MAX else None

    def _refill(self, now_ns: int) -> None:
        rate = self._config.image_bytes_per_second
        earned = (now_ns - self._refilled_ns) * rate // _SECOND_NS
        if earned:
            self._tokens_bytes = min(self._burst_bytes, self._tokens_bytes + earned)
            self._refilled_ns = now_ns

    def _may_send(self, transfer: Transfer) -> bool:
        if transfer.stage != Stage.SENDING:
            return False
        in_flight = transfer.sent_bytes - transfer.acked_bytes
        return transfer.unsent > 0 or in_flight < self._config.image_window_bytes

    def _pump(self, transfer: Transfer, now_ns: int) -> None:
        held, source = transfer.held, transfer.source
        assert held is not None
        assert source is not None
        if self._tokens_bytes <= 0 or not self._may_send(transfer):
            return
        if transfer.unsent:
            offset, piece = transfer.window[-transfer.unsent]
            transfer.unsent -= 1
        else:
            offset, piece = transfer.sent_bytes, source.read()
            if not piece:
                transfer.stage, transfer.progress_ns = Stage.ENDED, now_ns
                self._send(transfer.peer, ImageEnd(held.image, offset))
                return
            assert len(piece) <= IMAGE_PIECE_MAX_BYTES
            if not transfer.window:
                transfer.progress_ns = now_ns
            transfer.window.append((offset, piece))
            transfer.sent_bytes += len(piece)
        self._tokens_bytes -= len(piece)
        self._counters.image_bytes_sent += len(piece)
        crc = crc32c.crc32c(piece)
        self._send(transfer.peer, ImageChunk(held.image, offset, crc, piece))

    def next_deadline_ns(self) -> int | None:
        """Return when `step` has work to do, None for never."""
        if not self._transfers:
            return None
        return min(map(self._due_ns, self._transfers.values()))

    def _due_ns(self, transfer: Transfer) -> int:
        if transfer.stage == Stage.WAITING:
            return transfer.retry_ns
        if transfer.stage == Stage.CATCHING_UP:
            return transfer.progress_ns + self._config.image_hold_ns
        if self._may_send(transfer):
            short = max(0, 1 - self._tokens_bytes)
            rate = self._config.image_bytes_per_second
            # Rounded up, so that the step that it wakes can send.
            return self._refilled_ns + (short * _SECOND_NS + rate - 1) // rate
        return transfer.progress_ns + self._patience_ns(transfer)
