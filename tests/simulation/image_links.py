"""Simulated connections for state images: one a direction of dialing, beside those of the pairs.

They delay, clog and break like the others. A bit of a piece may turn on its way: no checksum of
the transport protects it here, the image's own must.
"""

from functools import partial
from random import Random
from typing import TYPE_CHECKING

import msgspec

from nokv_replication import ProtocolError
from nokv_replication.frames import Purpose
from nokv_replication.image_frames import ImageChunk, ImageFrame

if TYPE_CHECKING:
    from tests.simulation.network import SimNetwork


class ImageLink:
    """A connection that is being dialed, or lives, for images of `dialer` to `listener`."""

    def __init__(self, dialer: int, listener: int) -> None:
        self.dialer, self.listener = dialer, listener
        self.last_arrival_ns = 0
        # Ends that talk on it and have not been told that it is gone.
        self.open_at: set[int] = set()
        self.broken = False
        self.old: ImageLink | None = None
        """The link before, which the listener may not know to be gone."""


class ImageLinks:
    """All image connections of a cluster."""

    def __init__(self, network: "SimNetwork", rng: Random) -> None:
        self._network = network
        self._rng = rng
        self._links: dict[tuple[int, int], ImageLink] = {}
        self.flips = 0.0
        """Share of pieces of which a bit turns on the way."""
        self.pieces = 0
        self.flipped = 0
        self.opened = 0

    def open(self, dialer: int, listener: int) -> None:
        """Dial: it ends in a connection at both ends, or in its loss at the dialer."""
        self.close(dialer, dialer, listener)
        link = ImageLink(dialer, listener)
        link.old = self._links.get((dialer, listener))
        self._links[dialer, listener] = link
        link.open_at.add(dialer)
        self._network.schedule_after(self._delay_ns(), partial(self._dial, link))

    def _delay_ns(self) -> int:
        low, high = self._network.delay_ns
        return low + int((high - low) * self._rng.random())

    def _dial(self, link: ImageLink) -> None:
        network, dialer, listener = self._network, link.dialer, link.listener
        if link.broken or dialer not in link.open_at:
            return
        if not network.may_talk(dialer, listener):
            self._lost(link)
            return
        here, there = network.groups[dialer], network.groups[listener]
        epoch = network.next_epoch()
        try:
            there.greet(here.hello(epoch, Purpose.IMAGE))
            here.greet(there.hello(0, Purpose.IMAGE))
        except ProtocolError:
            network.refused_handshakes += 1
            self._lost(link)
            return
        old, link.old = link.old, None
        while old is not None:
            self._lost(old)
            old = old.old
        link.open_at.add(listener)
        self.opened += 1
        here.image_connected(listener, epoch, outgoing=True)
        there.image_connected(dialer, epoch, outgoing=False)

    def send(self, sender: int, peer: int, frame: bytes, *, outgoing: bool, spent_ns: int) -> None:
        """Take a frame of one end for the other."""
        link = self._links.get((sender, peer) if outgoing else (peer, sender))
        network = self._network
        if link is None or link.broken or peer not in link.open_at or sender not in link.open_at:
            return
        if network.blocked and network.blocked.get((sender, peer)):
            return
        if outgoing:
            self.pieces += 1
            if self.flips and self._rng.random() < self.flips:
                frame = self._flip(frame)
        arrival = network.now_ns + spent_ns + self._delay_ns()
        if network.clogged_until_ns:
            arrival = max(arrival, network.clogged_until_ns.get((sender, peer), 0))
        link.last_arrival_ns = max(link.last_arrival_ns, arrival)
        network.schedule(link.last_arrival_ns, partial(self._arrive, link, sender, peer, frame))

    def _flip(self, data: bytes) -> bytes:
        frame = msgspec.msgpack.decode(data, type=ImageFrame)
        body = frame.body
        if not isinstance(body, ImageChunk):
            return data
        self.flipped += 1
        piece = bytearray(body.piece)
        piece[self._rng.randrange(len(piece))] ^= 1 << self._rng.randrange(8)
        body = msgspec.structs.replace(body, piece=bytes(piece))
        return msgspec.msgpack.encode(msgspec.structs.replace(frame, body=body))

    def _arrive(self, link: ImageLink, sender: int, receiver: int, frame: bytes) -> None:
        if link.broken:
            return
        if self._network.is_awake(receiver):
            self._deliver(link, sender, receiver, frame)
        else:
            deliver = partial(self._deliver, link, sender, receiver, frame)
            self._network.hold(receiver, deliver)

    def _deliver(self, link: ImageLink, sender: int, receiver: int, frame: bytes) -> None:
        group = self._network.groups.get(receiver)
        if group is None or link.broken or receiver not in link.open_at:
            return
        try:
            group.receive_image(sender, frame, outgoing=receiver == link.dialer)
        except ProtocolError:
            self._lost(link)

    def close(self, closer: int, dialer: int, listener: int) -> None:
        """Let the closer hear nothing more; the other end learns it behind what was queued."""
        link = self._links.get((dialer, listener))
        if link is None or closer not in link.open_at:
            return
        link.open_at.discard(closer)
        network = self._network
        arrival = max(link.last_arrival_ns, network.now_ns + self._delay_ns())
        network.schedule(arrival, partial(self._lost, link))

    def _lost(self, link: ImageLink) -> None:
        """Tell the ends that have not closed it; the next dial is the owner's own."""
        link.broken = True
        for node in sorted(link.open_at):
            link.open_at.discard(node)
            group = self._network.groups.get(node)
            if group is not None:
                peer = link.listener if node == link.dialer else link.dialer
                group.image_disconnected(peer, outgoing=node == link.dialer)
        if self._links.get((link.dialer, link.listener)) is link:
            del self._links[link.dialer, link.listener]

    def break_between(self, one: int, other: int) -> None:
        """Break the connections of a pair."""
        for pair in ((one, other), (other, one)):
            link = self._links.get(pair)
            if link is not None:
                self._lost(link)

    def node_died(self, node: int) -> None:
        """Break a dead node's connections; its peers notice at once."""
        for pair in sorted(self._links):
            if node in pair:
                link = self._links[pair]
                link.open_at.discard(node)
                self._lost(link)
