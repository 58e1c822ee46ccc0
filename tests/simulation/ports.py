"""Simulated clock and network of one cluster, and the wrapper that watches a state machine."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import Protocol

from nokv_replication import Applied, Group, Machine, ProtocolError, Times

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000


class SimClock:
    """A node's clocks: the world's time plus the little that its own computing takes.

    Each look at the clock costs `look_ns`, so that slices of work do end inside one step.
    """

    def __init__(self, wall_offset_ns: int, look_ns: int) -> None:
        self.world_ns = 0
        self.wall_offset_ns = wall_offset_ns
        self._look_ns = look_ns
        self._own_ns = 0

    def enter(self, world_ns: int) -> None:
        self.world_ns = world_ns

    def monotonic_ns(self) -> int:
        self._own_ns = max(self._own_ns + self._look_ns, self.world_ns)
        return self._own_ns

    def wall_ns(self) -> int:
        return self.world_ns + self.wall_offset_ns


class Storage(Protocol):
    """What of a state machine outlives its process; the simulator plugs any machine in by it."""

    def machine(self, on_call: Callable[[str], None]) -> Machine:
        """Return a machine that opens what is stored; `on_call` may raise at a named call."""

    def power_cut(self, rng: Random) -> None:
        """Lose or tear what was not synced."""


class Watched:
    """A `Machine` around another that reports what is applied, for the checker."""

    def __init__(
        self, inner: Machine, report: Callable[[Applied, Times, list[bytes], list[bytes]], None]
    ) -> None:
        self._inner = inner
        self._report = report
        self.applied = Applied()
        self.mid_entry = False

    def open(self) -> Applied:
        self.applied = self._inner.open()
        return self.applied

    def apply(self, applied: Applied, times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        assert not self.mid_entry
        assert applied.index == self.applied.index + 1
        self.mid_entry = True
        results = []
        for result in self._inner.apply(applied, times, payloads):
            results.append(result)
            yield result
        self.mid_entry = False
        self.applied = applied
        self._report(applied, times, list(payloads), results)

    def commit(self) -> int:
        assert not self.mid_entry
        return self._inner.commit()

    def fingerprint(self) -> bytes:
        assert not self.mid_entry
        return self._inner.fingerprint()

    def digest(self) -> bytes:
        assert not self.mid_entry
        return self._inner.digest()


class Pipe:
    """One direction of a connection: frames in order, each with its time of arrival."""

    def __init__(self) -> None:
        self.frames: deque[tuple[int, bytes]] = deque()
        self.last_arrival_ns = 0


class Connection:
    """A live connection of a pair."""

    def __init__(self, low: int, high: int, epoch: int) -> None:
        self.nodes = (low, high)
        self.epoch = epoch
        self.pipes = {low: Pipe(), high: Pipe()}  # by receiver
        # Ends that have not noticed yet that the connection is gone.
        self.open_at = {low, high}
        self.broken = False


class SimNetwork:
    """All connections of a cluster. Order holds within a direction; a break loses the tail."""

    def __init__(self, rng: Random, schedule: Callable[[int, Callable[[], None]], None]) -> None:
        self._rng = rng
        self._schedule = schedule
        self.delay_ns = (20_000, 300_000)
        self.loss = 0.0
        self.now_ns = 0
        self.groups: dict[int, Group] = {}
        self.connections: dict[frozenset[int], Connection] = {}
        self.blocked: set[frozenset[int]] = set()
        self.deliver_to: Callable[[int, Callable[[], None]], None] = lambda _node, action: action()
        self._epoch = 0

    def port(self, node: int) -> "NodePort":
        return NodePort(self, node)

    def send(self, sender: int, receiver: int, frame: bytes) -> None:
        connection = self.connections.get(frozenset((sender, receiver)))
        if connection is None or connection.broken:
            return
        if self.loss and self._rng.random() < self.loss:
            return
        pipe = connection.pipes[receiver]
        arrival = self.now_ns + self._rng.randint(*self.delay_ns)
        pipe.last_arrival_ns = max(pipe.last_arrival_ns, arrival)
        pipe.frames.append((pipe.last_arrival_ns, frame))
        self._schedule(pipe.last_arrival_ns, lambda: self._arrive(connection, sender, receiver))

    def _arrive(self, connection: Connection, sender: int, receiver: int) -> None:
        pipe = connection.pipes[receiver]
        if connection.broken or not pipe.frames:
            return
        _, frame = pipe.frames.popleft()

        def deliver() -> None:
            group = self.groups.get(receiver)
            if group is None or connection.broken or receiver not in connection.open_at:
                return
            group.receive(sender, frame)

        self.deliver_to(receiver, deliver)

    def connect(self, one: int, other: int) -> None:
        """Connect a pair if both are up and may reach each other."""
        pair = frozenset((one, other))
        low, high = min(one, other), max(one, other)
        if pair in self.blocked or low not in self.groups or high not in self.groups:
            return
        old = self.connections.get(pair)
        if old is not None and not old.broken:
            return
        if old is not None:
            self.notice(old)
        self._epoch += 1
        dialer, listener = self.groups[low], self.groups[high]
        try:
            node, epoch = listener.greet(dialer.hello(self._epoch))
            assert (node, epoch) == (low, self._epoch)
            node, _ = dialer.greet(listener.hello(0))
            assert node == high
        except ProtocolError:
            return
        connection = Connection(low, high, self._epoch)
        self.connections[pair] = connection
        dialer.connected(high, self._epoch)
        listener.connected(low, self._epoch)

    def break_connection(self, pair: frozenset[int]) -> None:
        """Lose what is on its way; both ends notice at once."""
        connection = self.connections.get(pair)
        if connection is not None:
            connection.broken = True
            self.notice(connection)

    def notice(self, connection: Connection) -> None:
        """Tell the ends that are still up that the connection is gone."""
        connection.broken = True
        low, high = connection.nodes
        for node, peer in ((low, high), (high, low)):
            if node in connection.open_at:
                connection.open_at.discard(node)
                group = self.groups.get(node)
                if group is not None:
                    group.disconnected(peer)

    def node_died(self, node: int, notice_after_ns: int) -> None:
        """Break a dead node's connections; its peers notice now or later."""
        self.groups.pop(node, None)
        for pair, connection in self.connections.items():
            if node in pair:
                connection.broken = True
                connection.open_at.discard(node)
                if notice_after_ns:
                    at = self.now_ns + notice_after_ns
                    self._schedule(at, partial(self.notice, connection))
                else:
                    self.notice(connection)


class NodePort:
    """The `Network` port of one node."""

    def __init__(self, network: SimNetwork, node: int) -> None:
        self._network = network
        self._node = node

    def send(self, peer: int, frame: bytes) -> None:
        self._network.send(self._node, peer, frame)
