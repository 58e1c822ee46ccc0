"""A cluster that does nothing by itself: the test is the scheduler.

Nodes act only in `step`, frames move only in `deliver`, time passes only by `wait`. Order holds
within a connection; `cut` loses what is on its way.
"""

import contextlib
from collections import deque
from random import Random
from typing import Any

from tests.simulation.checker import Checker
from tests.simulation.disk import Crash, SimDisk
from tests.simulation.machine import ListMachine, ListStorage
from tests.simulation.ports import MS_NS, SECOND_NS, SimClock, Watched

from nokv_replication import (
    Group,
    GroupConfig,
    HandshakeRefused,
    Identity,
    Member,
    Outcome,
    ReadOutcome,
    Role,
    initialise,
)
from nokv_replication.frames import Frame, Purpose, decode_frame

CONFIG = GroupConfig(segment_bytes=64 << 10, log_keep_bytes=1 << 30)


class Script:
    """Nodes 1..n with everything under the test's control; all are checked as they go."""

    def __init__(self, nodes: int = 3, *, config: GroupConfig = CONFIG, found: bool = True) -> None:
        self.config = config
        self.now_ns = SECOND_NS
        self.addresses = {n: f"node-{n}:1" for n in range(1, nodes + 1)}
        self.founders = dict(self.addresses)
        self.joiners: set[int] = set()
        self.disks = {n: SimDisk() for n in self.addresses}
        self.storages = {n: ListStorage() for n in self.addresses}
        self.clocks = {n: SimClock(0, 0) for n in self.addresses}
        self.incarnations = {n: 100 + n for n in self.addresses}
        self.groups: dict[int, Group] = {}
        self.machines: dict[int, ListMachine] = {}
        # Node to the peers its group asked for.
        self.peers: dict[int, dict[int, str]] = {}
        self.links: dict[tuple[int, int], deque[bytes]] = {}
        # Image connections by (dialer, other): the frames on their way, by receiver.
        self.images: dict[tuple[int, int], dict[int, deque[bytes]]] = {}
        self.dialed_images: list[tuple[int, int]] = []
        self.images_fail = False
        """Whether no image connection can be dialed."""
        self.checker = Checker()
        self.outcomes: dict[bytes, Outcome] = {}
        self.reads: list[ReadOutcome] = []
        # Nodes whose time stands still: a virtual machine that is suspended now and then.
        self.frozen_ns: dict[int, int] = {}
        self._epoch = 0
        for n in self.addresses:
            initialise(self.disks[n], config, self.identity(n), Random(n))
            self.start(n)
        if found:
            self.connect_all()
            for n in self.addresses:
                self.step(n)

    def identity(self, node: int) -> Identity:
        joining = node in self.joiners
        return Identity("scripted", node, self.incarnations[node], joining=joining)

    def join(self, node: int, incarnation: int = 0) -> Member:
        """Start a node that joins, with an empty data directory, and connect it to all."""
        self.addresses[node] = f"node-{node}:1"
        self.joiners.add(node)
        self.disks[node], self.storages[node] = SimDisk(), ListStorage()
        self.clocks[node] = SimClock(0, 0)
        self.incarnations[node] = incarnation or 100 + node
        initialise(self.disks[node], self.config, self.identity(node), Random(node))
        self.start(node)
        self.connect_all()
        return Member(node, self.incarnations[node], self.addresses[node])

    # ------------------------------------------------------------------ processes

    def start(self, node: int) -> Group:
        self.clocks[node].enter(self.now_ns)
        machine = self.storages[node].machine(lambda _name: None)
        checker = self.checker

        def report(*entry: object) -> None:
            checker.stepped(node, self.groups[node])
            checker.entry_applied(node, *entry)  # type: ignore[arg-type]

        outer = self

        class Port:
            def send(self, peer: int, frame: bytes) -> None:
                link = outer.links.get((node, peer))
                if link is not None:
                    link.append(frame)

            def set_peers(self, peers: dict[int, str]) -> None:
                outer.peers[node] = peers

            def open_image(self, peer: int) -> None:
                outer.dialed_images.append((node, peer))

            def send_image(self, peer: int, frame: bytes, *, outgoing: bool) -> None:
                pair = (node, peer) if outgoing else (peer, node)
                if pair in outer.images:
                    outer.images[pair][peer].append(frame)

            def close_image(self, peer: int, *, outgoing: bool) -> None:
                pair = (node, peer) if outgoing else (peer, node)
                if pair in outer.dialed_images:
                    outer.dialed_images.remove(pair)
                if outer.images.pop(pair, None) is not None and peer in outer.groups:
                    outer.groups[peer].image_disconnected(node, outgoing=not outgoing)

        group = Group(
            identity=self.identity(node),
            addresses=self.founders,
            config=self.config,
            machine=Watched(machine, report),
            disk=self.disks[node],
            network=Port(),
            clock=self.clocks[node],
            rng=Random(node),
        )
        self.groups[node], self.machines[node] = group, machine
        checker.started(node, group)
        return group

    def crash(self, node: int, *, power: bool = False) -> None:
        """End a process; with `power` also all that it did not sync."""
        for peer in self.addresses:
            if peer != node:
                self.cut(node, peer)
        del self.groups[node]
        self.disks[node].kill()
        if power:
            self.disks[node].power_cut(NothingKept())

    # ------------------------------------------------------------------ network

    def connect(self, one: int, other: int) -> None:
        low, high = min(one, other), max(one, other)
        if (low, high) in self.links or low not in self.groups or high not in self.groups:
            return
        self._epoch += 1
        self.groups[high].greet(self.groups[low].hello(self._epoch))
        self.groups[low].greet(self.groups[high].hello(0))
        self.links[low, high], self.links[high, low] = deque(), deque()
        self.groups[low].connected(high, self._epoch)
        self.groups[high].connected(low, self._epoch)

    def connect_all(self) -> None:
        for one in self.addresses:
            for other in self.addresses:
                if one < other:
                    with contextlib.suppress(HandshakeRefused):
                        self.connect(one, other)

    def cut(self, one: int, other: int) -> None:
        for node, peer in ((one, other), (other, one)):
            if self.links.pop((node, peer), None) is not None and node in self.groups:
                self.groups[node].disconnected(peer)
            self.cut_image(node, peer)

    def isolate(self, node: int) -> None:
        for peer in self.addresses:
            if peer != node:
                self.cut(node, peer)

    def connect_images(self) -> None:
        """Make the image connections that were dialed, where the two nodes are connected at all."""
        dialed, self.dialed_images = self.dialed_images, []
        for dialer, other in dialed:
            if dialer not in self.groups:
                continue
            self.cut_image(dialer, other)
            if (dialer, other) not in self.links or self.images_fail:
                self.groups[dialer].image_disconnected(other, outgoing=True)
                continue
            self._epoch += 1
            self.groups[other].greet(self.groups[dialer].hello(self._epoch, Purpose.IMAGE))
            self.groups[dialer].greet(self.groups[other].hello(0, Purpose.IMAGE))
            self.images[dialer, other] = {dialer: deque(), other: deque()}
            self.groups[dialer].image_connected(other, self._epoch, outgoing=True)
            self.groups[other].image_connected(dialer, self._epoch, outgoing=False)

    def cut_image(self, dialer: int, other: int) -> None:
        """Lose an image connection with all that is on its way."""
        if self.images.pop((dialer, other), None) is not None:
            for node, peer, outgoing in ((dialer, other, True), (other, dialer, False)):
                if node in self.groups:
                    self.groups[node].image_disconnected(peer, outgoing=outgoing)

    def deliver_image(self, dialer: int, other: int, receiver: int, count: int = 1 << 30) -> int:
        """Hand over the first `count` frames on an image connection, and step the receiver."""
        sender = other if receiver == dialer else dialer
        moved = 0
        while moved < count and self.images.get((dialer, other), {}).get(receiver):
            frame = self.images[dialer, other][receiver].popleft()
            self.groups[receiver].receive_image(sender, frame, outgoing=receiver == dialer)
            moved += 1
        if moved:
            self.step(receiver)
        return moved

    def deliver_images(self) -> None:
        """Hand over all frames of all image connections."""
        self.connect_images()
        for dialer, other in list(self.images):
            self.deliver_image(dialer, other, other)
            self.deliver_image(dialer, other, dialer)

    def on_the_way(self, sender: int, receiver: int) -> list[Frame]:
        return [decode_frame(frame) for frame in self.links.get((sender, receiver), ())]

    def deliver(self, sender: int, receiver: int, count: int | None = None) -> int:
        """Hand over the first `count` frames on their way, or all, and step the receiver."""
        link = self.links.get((sender, receiver))
        moved = 0
        while link and (count is None or moved < count):
            self.groups[receiver].receive(sender, link.popleft())
            moved += 1
        if moved:
            self.step(receiver)
        return moved

    def lose(self, sender: int, receiver: int) -> None:
        """Lose what is on its way one way; no TCP does this, but a cut and a connect in one."""
        self.links[sender, receiver].clear()

    # ------------------------------------------------------------------ time

    def step(self, node: int) -> None:
        self.clocks[node].enter(self.frozen_ns.get(node, self.now_ns))
        group = self.groups[node]
        try:
            group.step()
        except Crash:
            self.checker.stepped(node, group)
            raise
        self.checker.stepped(node, group)

    def wait(self, duration_ns: int) -> None:
        self.now_ns += duration_ns

    def settle(self, *nodes: int, rounds: int = 30) -> None:
        """Let the given nodes (all, by default) talk and their timers run."""
        names = nodes or tuple(self.addresses)
        for _ in range(rounds):
            self.wait(20 * MS_NS)
            for node in names:
                if node in self.groups:
                    self.step(node)
            for one in names:
                for other in names:
                    self.deliver(one, other)
            self.deliver_images()

    def elect(self, node: int, *voters: int) -> None:
        """Make `node` win an election with these votes, its first entry not yet sent on."""
        self.wait(3 * SECOND_NS)
        for other in self.groups:
            if other != node:
                # Time passes for the voters too, or they would still believe in a leader.
                self.clocks[other].enter(self.now_ns)
        self.groups[node]._core.expire_election()
        self.step(node)  # asks for pre-votes
        for _ in range(2):  # pre-votes, then votes
            for voter in voters:
                self.groups[voter]._now_ns = self.now_ns - self.groups[voter]._zero_ns
                self.deliver(node, voter)
            for voter in voters:
                self.deliver(voter, node)
            self.step(node)
        assert self.role(node) == Role.LEADER, f"node {node} is {self.role(node).name}"

    def lead(self, node: int) -> None:
        """Elect `node` by all, and let it found the group."""
        self.elect(node, *(n for n in self.groups if n != node))
        self.settle(rounds=8)
        assert self.groups[node].status().leads

    # ------------------------------------------------------------------ clients

    def propose(self, node: int, payload: bytes) -> None:
        """Propose, and let the node append and send it."""

        def done(outcome: Outcome) -> None:
            self.checker.answered(payload, outcome)
            self.outcomes[payload] = outcome

        self.groups[node].propose(payload, done)
        self.step(node)

    def read(self, node: int) -> None:
        known, group = self.checker.known_index, self.groups[node]

        def done(outcome: ReadOutcome) -> None:
            self.reads.append(outcome)
            if isinstance(outcome, int):
                applied = group._applier.applied.index
                self.checker.read(node, known, outcome, applied, mid=False)

        group.read_index(done)
        self.step(node)

    def role(self, node: int) -> Role:
        return self.groups[node]._core.role()

    def log(self, node: int) -> list[tuple[int, int]]:
        """Return (index, term) of what a node holds."""
        log = self.groups[node]._log
        return [(i, log.term_at(i)) for i in range(log.first_index, log.last_index + 1)]


class NothingKept(Random):
    """Chooses the worst power cut: nothing that was not synced is kept."""

    def __init__(self) -> None:
        super().__init__(0)

    def randint(self, a: int, _b: int) -> int:
        return a

    def choice(self, seq: Any) -> Any:
        return seq[0]
