"""The simulated network of one cluster: connections of pairs that delay, clog, break and lie.

Within a connection order holds; a break loses an unknown tail. What was delivered is recorded, so
that it can come again on the same connection or, much later, on another: a repeat must cost the
connection and nothing else.
"""

from collections.abc import Callable
from functools import partial
from random import Random

from tests.simulation.checker import Violation
from tests.simulation.image_links import ImageLinks
from tests.simulation.ports import SimClock

from nokv_replication import Group, ProtocolError
from nokv_replication.frames import encode

_KEPT_OLDEST = 4
_KEPT_RECENT = 12
_KEEP_EVERY = 16

Deliver = Callable[[], None]
Direction = tuple[int, int]
"""(sender, receiver)."""


class Connection:
    """A live connection of a pair."""

    def __init__(self, dialer: int, listener: int, epoch: int) -> None:
        self.dialer, self.listener = dialer, listener
        self.epoch = epoch
        self.last_arrival_ns = {dialer: 0, listener: 0}  # by receiver
        # Ends that have not noticed yet that the connection is gone.
        self.open_at = {dialer, listener}
        self.broken = False


class Recorder:
    """Some of the frames that were delivered in one direction: the very first, and recent ones."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._count = 0

    def note(self, frame: bytes) -> None:
        self._count += 1
        if len(self.frames) < _KEPT_OLDEST + _KEPT_RECENT:
            self.frames.append(frame)
        elif not self._count % _KEEP_EVERY:
            at = self._count // _KEEP_EVERY % _KEPT_RECENT
            self.frames[_KEPT_OLDEST + at] = frame


class SimNetwork:
    """All connections of a cluster."""

    def __init__(self, rng: Random, schedule: Callable[[int, Callable[[], None]], None]) -> None:
        self._rng = rng
        self.schedule = schedule
        self.delay_ns = (20_000, 300_000)
        self.loss = 0.0
        self.now_ns = 0
        self.groups: dict[int, Group] = {}
        # Whom each node may dial: its own configuration.
        self.dials: dict[int, frozenset[int]] = {}
        self.connections: dict[frozenset[int], Connection] = {}
        # A direction is blocked as often as faults block it.
        self.blocked: dict[Direction, int] = {}
        self.era = 0
        self.clogged_until_ns: dict[Direction, int] = {}
        self.recorded: dict[Direction, Recorder] = {}
        self.is_awake: Callable[[int], bool] = lambda _node: True
        self.hold: Callable[[int, Deliver], None] = lambda _node, action: action()
        self.on_frame: Callable[[int, int, bytes], None] | None = None
        """Sees every frame as it arrives; for the trace."""
        self.refused_handshakes = 0
        self.refused_frames = 0
        self._epoch = 0
        self.images = ImageLinks(self, rng)

    def schedule_after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run `action` a while from now."""
        self.schedule(self.now_ns + delay_ns, action)

    def next_epoch(self) -> int:
        """Return a number that no connection had before."""
        self._epoch += 1
        return self._epoch

    def may_talk(self, one: int, other: int) -> bool:
        """Whether a handshake of the two can succeed now."""
        if one not in self.groups or other not in self.groups:
            return False
        if self.blocked and (self.blocked.get((one, other)) or self.blocked.get((other, one))):
            return False
        return self.is_awake(one) and self.is_awake(other)

    # ------------------------------------------------------------------ frames

    def send(self, sender: int, receiver: int, frame: bytes, spent_ns: int = 0) -> None:
        """Take a frame that leaves `spent_ns` after the present moment."""
        connection = self.connections.get(frozenset((sender, receiver)))
        if connection is None or connection.broken:
            return
        direction = (sender, receiver)
        if self.blocked and self.blocked.get(direction):
            return
        rng = self._rng
        if self.loss and rng.random() < self.loss:
            return
        low, high = self.delay_ns
        arrival = self.now_ns + spent_ns + low + int((high - low) * rng.random())
        if self.clogged_until_ns:
            arrival = max(arrival, self.clogged_until_ns.get(direction, 0))
        arrival = max(arrival, connection.last_arrival_ns[receiver])
        connection.last_arrival_ns[receiver] = arrival
        self.schedule(arrival, partial(self._arrive, connection, sender, receiver, frame))

    def _arrive(self, connection: Connection, sender: int, receiver: int, frame: bytes) -> None:
        if connection.broken:
            return
        if self.is_awake(receiver):
            self._deliver(connection, sender, receiver, frame)
        else:
            self.hold(receiver, partial(self._deliver, connection, sender, receiver, frame))

    def _deliver(self, connection: Connection, sender: int, receiver: int, frame: bytes) -> None:
        group = self.groups.get(receiver)
        if group is None or connection.broken or receiver not in connection.open_at:
            return
        recorder = self.recorded.get((sender, receiver))
        if recorder is None:
            recorder = self.recorded[sender, receiver] = Recorder()
        recorder.note(frame)
        if self.on_frame is not None:
            self.on_frame(sender, receiver, frame)
        group.receive(sender, frame)

    def inject(self, sender: int, receiver: int, frame: bytes) -> bool:
        """Deliver bytes that no correct peer sends now; they must cost the connection.

        Returns whether there was a connection to put them on.
        """
        pair = frozenset((sender, receiver))
        connection = self.connections.get(pair)
        group = self.groups.get(receiver)
        if connection is None or connection.broken or receiver not in connection.open_at:
            return False
        if group is None or not self.is_awake(receiver):
            return False
        try:
            group.receive(sender, frame)
        except ProtocolError:
            self.refused_frames += 1
            self.break_connection(pair)
            return True
        message = f"node {receiver} takes bytes from {sender} that were not sent: {frame[:40]!r}"
        raise Violation(message)

    # ------------------------------------------------------------------ connections

    def connect(self, one: int, other: int) -> None:
        """Connect a pair if both are up, may reach each other, and one knows the other."""
        pair = frozenset((one, other))
        old = self.connections.get(pair)
        if old is not None and not old.broken:
            return
        if not self.may_talk(one, other):
            return
        low, high = (one, other) if one < other else (other, one)
        if high in self.dials[low]:
            self._dial(low, high)
        elif low in self.dials[high]:
            self._dial(high, low)

    def _dial(self, dialer: int, listener: int) -> None:
        pair = frozenset((dialer, listener))
        old = self.connections.get(pair)
        if old is not None:
            self.notice(old)
        epoch = self.next_epoch()
        here, there = self.groups[dialer], self.groups[listener]
        hello = here.hello(epoch)
        try:
            greeting = there.greet(hello)
            assert greeting[:2] == (dialer, epoch)
        except ProtocolError as refusal:
            self.refused_handshakes += 1
            # As the transport does: the dialer's operator learns why.
            try:
                here.greet(encode(str(refusal)[:512]))
            except ProtocolError:
                return
            message = "a refusal was taken for a hello"
            raise Violation(message) from refusal
        try:
            assert here.greet(there.hello(0))[0] == listener
        except ProtocolError:
            self.refused_handshakes += 1
            return
        self.connections[pair] = Connection(dialer, listener, epoch)
        here.connected(listener, epoch)
        there.connected(dialer, epoch)

    def break_connection(self, pair: frozenset[int]) -> None:
        """Lose what is on its way; both ends notice at once."""
        connection = self.connections.get(pair)
        if connection is not None:
            self.notice(connection)
        self.images.break_between(*sorted(pair))

    def notice(self, connection: Connection) -> None:
        """Tell the ends that are still up that the connection is gone."""
        connection.broken = True
        dialer, listener = connection.dialer, connection.listener
        for node, peer in ((dialer, listener), (listener, dialer)):
            if node in connection.open_at:
                connection.open_at.discard(node)
                group = self.groups.get(node)
                if group is not None:
                    group.disconnected(peer)

    def block(self, directions: list[Direction]) -> None:
        """Let nothing pass in these directions, and no connection begin, until `unblock`."""
        for direction in directions:
            self.blocked[direction] = self.blocked.get(direction, 0) + 1

    def unblock(self, directions: list[Direction], era: int) -> None:
        """End what `block` began in that era: what was sent is lost, so connections end too."""
        if era != self.era:
            return  # all was healed meanwhile
        for direction in directions:
            self.blocked[direction] -= 1
            if not self.blocked[direction]:
                del self.blocked[direction]
                self.break_connection(frozenset(direction))

    def heal(self) -> None:
        """End every block and clog, and with them an era."""
        self.era += 1
        for direction in sorted(self.blocked):
            self.break_connection(frozenset(direction))
        self.blocked.clear()
        self.clogged_until_ns.clear()

    def node_died(self, node: int, notice_after_ns: int) -> None:
        """Break a dead node's connections; its peers notice now or later."""
        self.groups.pop(node, None)
        self.images.node_died(node)
        for pair, connection in self.connections.items():
            if node in pair:
                connection.broken = True
                connection.open_at.discard(node)
                if notice_after_ns:
                    at = self.now_ns + notice_after_ns
                    self.schedule(at, partial(self.notice, connection))
                else:
                    self.notice(connection)


class NodePort:
    """The `Network` port of one process. `on_call` may end the process before a call's effect."""

    def __init__(
        self,
        network: SimNetwork,
        node: int,
        clock: SimClock,
        on_call: Callable[[str], None],
        watch: Callable[[bytes, int], None],
    ) -> None:
        self._network = network
        self._node = node
        self._clock = clock
        self._on_call = on_call
        self._watch = watch

    def send(self, peer: int, frame: bytes) -> None:
        self._on_call("network.send")
        self._watch(frame, peer)
        self._network.send(self._node, peer, frame, self._clock.spent_ns())

    def set_peers(self, peers: dict[int, str]) -> None:
        self._network.dials[self._node] = frozenset(peers)

    def open_image(self, peer: int) -> None:
        self._on_call("network.open_image")
        self._network.images.open(self._node, peer)

    def send_image(self, peer: int, frame: bytes, *, outgoing: bool) -> None:
        self._on_call("network.send_image")
        spent_ns = self._clock.spent_ns()
        self._network.images.send(self._node, peer, frame, outgoing=outgoing, spent_ns=spent_ns)

    def close_image(self, peer: int, *, outgoing: bool) -> None:
        pair = (self._node, peer) if outgoing else (peer, self._node)
        self._network.images.close(self._node, *pair)
