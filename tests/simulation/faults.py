"""What is done to a simulated cluster, one method for each kind of fault.

Every fault that destroys a copy asks the atlas first. All others end by themselves after a while.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
from tests.simulation.disk import CALLS, WRITING_CALLS
from tests.simulation.network import Direction
from tests.simulation.node import Node
from tests.simulation.operations import Operations
from tests.simulation.ports import MS_NS, SECOND_NS

from nokv_replication import records
from nokv_replication.records import SegmentHeader

if TYPE_CHECKING:
    from tests.simulation.cluster import Simulation

MACHINE_CALLS = (
    "machine.open",
    "machine.commit",
    "machine.committed",
    "machine.image",
    "machine.receive",
    "machine.image_write",
    "machine.image_finish",
    "machine.image_finished",
    "machine.install",
    "machine.installed",
)
NETWORK_CALLS = ("network.send", "network.open_image", "network.send_image")
NAMED_CALLS = (*CALLS, *MACHINE_CALLS, *NETWORK_CALLS)


class Faults:
    """Chooses and does one thing after the other, by the rates of the run's swarm."""

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.rng = simulation.rng
        swarm = simulation.swarm
        operations = Operations(simulation)
        acts: list[tuple[str, Callable[[], bool]]] = [
            ("propose", self.propose),
            ("read", self.read),
            ("kill", partial(self.crash, power=False)),
            ("power", partial(self.crash, power=True)),
            ("blackout", self.blackout),
            ("armed", self.arm),
            ("io_error", self.io_error),
            ("no_space", self.no_space),
            ("slow_sync", self.slow_sync),
            ("flip", self.flip),
            ("lose_disk", self.lose_disk),
            ("cut", self.cut),
            ("one_way", self.one_way),
            ("shape", self.shape),
            ("clog", self.clog),
            ("flap", self.flap),
            ("repeat", self.repeat),
            ("garbage", self.garbage),
            ("pause", self.pause),
            ("wall", self.wall),
            ("transfer", operations.transfer),
            ("member", operations.change),
        ]
        acts = [(name, act) for name, act in acts if getattr(swarm, name) > 0]
        self._acts = acts
        self._weights = list(accumulate(getattr(swarm, name) for name, _ in acts))
        self._rate = self._weights[-1] / SECOND_NS
        self._on = True

    # ------------------------------------------------------------------ the loop

    def begin(self) -> None:
        """Do something, and come back after a while, until `end`."""
        if not self._on:
            return
        ((name, act),) = self.rng.choices(self._acts, cum_weights=self._weights)
        if act():
            self.simulation.stats[f"fault {name}"] += 1
        gap_ns = int(self.rng.expovariate(self._rate))
        self.simulation.at(self.simulation.now_ns + gap_ns, self.begin)

    def end(self) -> None:
        """Do nothing more."""
        self._on = False

    # ------------------------------------------------------------------ choices

    def _later_ns(self, low_ms: int, high_ms: int) -> int:
        return self.simulation.now_ns + self.rng.randint(low_ms, high_ms) * MS_NS

    def _any(self) -> Node:
        return self.rng.choice(list(self.simulation.nodes.values()))

    def _leader_or_any(self, leader_share: float) -> Node:
        leaders = self.simulation.leaders()
        if leaders and self.rng.random() < leader_share:
            return self.rng.choice(leaders)
        return self._any()

    # ------------------------------------------------------------------ clients

    def propose(self) -> bool:
        """A client proposes, mostly at a leader."""
        node = self._leader_or_any(0.9)
        for _ in range(self.rng.choice((1, 1, 1, 2, 10))):
            self.simulation.propose(node)
        return False

    def read(self) -> bool:
        """A client reads, at a leader or anywhere."""
        self.simulation.read(self._leader_or_any(0.5))
        return False

    # ------------------------------------------------------------------ processes

    def crash(self, *, power: bool) -> bool:
        """A process dies, perhaps with its machine's power, and comes back."""
        node = self._leader_or_any(0.5)
        if node.group is None:
            return False
        self.simulation.crash(node, power=power)
        self.simulation.restart_later(node)
        return True

    def blackout(self) -> bool:
        """All machines lose their power."""
        for node in self.simulation.nodes.values():
            self.simulation.crash(node, power=True)
            self.simulation.restart_later(node)
        return True

    def arm(self) -> bool:
        """A process will die at a named external call, before or after its effect."""
        node = self._any()
        call = self.rng.choice(
            (*NAMED_CALLS, *WRITING_CALLS, "fdatasync", "pwrite", "machine.commit", "network.send")
        )
        after = self.rng.random() < 0.5 and call in WRITING_CALLS
        node.disk.crash_at(call, self.rng.choice((1, 1, 3, 10)), after=after)
        self._revive_later(node)
        return True

    def io_error(self) -> bool:
        """The next call of a kind fails, once."""
        node = self._any()
        node.disk.fail_at(self.rng.choice((*WRITING_CALLS, "pread", "open", "listdir", "pwrite")))
        self._revive_later(node)
        return True

    def _revive_later(self, node: Node) -> None:
        def revive() -> None:
            node.disk.disarm()
            if node.group is None:
                self.simulation.restart_later(node)

        self.simulation.at(self._later_ns(100, 3000), revive)

    def pause(self) -> bool:
        """A process is suspended, sometimes for longer than an election."""
        node = self._leader_or_any(0.4)
        if node.group is None or node.paused_until_ns > self.simulation.now_ns:
            return False
        self.simulation.pause(node, self._later_ns(10, 4000))
        return True

    def wall(self) -> bool:
        """A system clock jumps."""
        jump = self.rng.choice((-1, 1)) * self.rng.randint(1, 3600) * SECOND_NS
        self._any().clock.wall_offset_ns += jump
        return True

    # ------------------------------------------------------------------ disks

    def no_space(self) -> bool:
        """A disk is full, or nearly so, for a while."""
        node = self._leader_or_any(0.3)
        if node.disk.room is not None:
            return False
        node.disk.room = self.rng.choice((0, 5_000, 20_000, 60_000))
        self.simulation.note(node.node, f"room {node.disk.room}")

        def space_returns() -> None:
            node.disk.room = 1 << 40  # until its owner has noticed

        self.simulation.at(self._later_ns(200, 5000), space_returns)
        return True

    def slow_sync(self) -> bool:
        """A disk's syncs take long for a while."""
        node = self._leader_or_any(0.5)
        node.sync_ns = self.rng.choice((5, 50, 300, 2000)) * MS_NS
        node.slow_until_ns = self._later_ns(200, 5000)
        return True

    def flip(self) -> bool:
        """A bit turns in a log, in a place that provably was synced."""
        node = self._any()
        atlas = self.simulation.atlas
        if node.dead or node.stranger or not self.simulation.may_wipe(node):
            return False
        names = [name for name in node.disk.names() if name.endswith(".log")]
        if not names:
            return False
        name = self.rng.choice(names)
        end = provably_synced(node, name, newest=name == names[-1])
        if end == 0:
            return False
        offset = self.rng.randrange(end)
        atlas.lose(node.node, "bit flip")
        node.tampered = True
        self.simulation.checker.replicas[node.node].damaged = True
        node.disk.flip(name, offset, 1 << self.rng.randrange(8))
        self.simulation.note(node.node, f"flip {name} at {offset}")
        return True

    def lose_disk(self) -> bool:
        """A machine dies with its disk; sometimes an empty one comes back under its number."""
        node = self._any()
        if node.dead or node.stranger or not self.simulation.may_wipe(node):
            return False
        self.simulation.crash(node, power=True)
        self.simulation.atlas.lose(node.node, "disk lost")
        # The only first member would found anew, which in life is another cluster.
        founds_alone = not node.joins and len(self.simulation.addresses) == 1
        if self.rng.random() < 0.5 and not founds_alone:
            self.simulation.wipe(node)
            self.simulation.restart_later(node)
        else:
            node.dead = "its disk is lost"
        return True

    # ------------------------------------------------------------------ network

    def _block(self, directions: list[Direction], *, loud: bool, high_ms: int = 5000) -> bool:
        if not directions:
            return False
        network = self.simulation.network
        network.block(directions)
        if loud:
            for one, other in directions:
                network.break_connection(frozenset((one, other)))
        words = " ".join(f"{one}>{other}" for one, other in directions)
        self.simulation.note(0, f"cut {words}")
        end = partial(network.unblock, directions, network.era)
        self.simulation.at(self._later_ns(50, high_ms), end)
        return True

    def cut(self) -> bool:
        """One node is off, or one pair apart, both ways."""
        one = self._leader_or_any(0.7).node
        others = [n for n in self.simulation.nodes if n != one]
        if others and self.rng.random() < 0.5:
            others = [self.rng.choice(others)]
        directions = [pair for n in others for pair in ((one, n), (n, one))]
        return self._block(directions, loud=self.rng.random() < 0.5)

    def one_way(self) -> bool:
        """A node is not heard, or does not hear, by one peer or all; nobody notices."""
        one = self._leader_or_any(0.7).node
        others = [n for n in self.simulation.nodes if n != one]
        if others and self.rng.random() < 0.5:
            others = [self.rng.choice(others)]
        outwards = self.rng.random() < 0.5
        return self._block([(one, n) if outwards else (n, one) for n in others], loud=False)

    def shape(self) -> bool:
        """The whole cluster falls apart: in two, in two with one bridge, or in a ring."""
        names = list(self.simulation.nodes)
        if len(names) < 3:
            return False
        self.rng.shuffle(names)
        kind = self.rng.choice(("halves", "bridge", "ring"))
        allowed = set()
        if kind == "ring":
            # Each sees a majority of all, and no two see the same one.
            reach = len(names) // 2 // 2 + (len(names) // 2) % 2
            for at, name in enumerate(names):
                for step in range(1, reach + 1):
                    other = names[(at + step) % len(names)]
                    allowed |= {(name, other), (other, name)}
        else:
            middle = self.rng.randint(1, len(names) - 1)
            sides = [names[:middle], names[middle:]]
            if kind == "bridge":
                sides[0] = [*sides[0], sides[1][0]]
            for side in sides:
                allowed |= {(a, b) for a in side for b in side}
        directions = [(a, b) for a in names for b in names if a != b and (a, b) not in allowed]
        return self._block(sorted(directions), loud=self.rng.random() < 0.5, high_ms=8000)

    def clog(self) -> bool:
        """Some links stall one after the other, then let all go at once."""
        network, names = self.simulation.network, list(self.simulation.nodes)
        pairs = [(a, b) for a in names for b in names if a != b]
        if not pairs:
            return False
        for direction in self.rng.sample(pairs, self.rng.randint(1, min(4, len(pairs)))):
            network.clogged_until_ns[direction] = self._later_ns(50, 3000)
        return True

    def flap(self) -> bool:
        """A connection breaks."""
        pairs = sorted(self.simulation.network.connections, key=sorted)
        if not pairs:
            return False
        self.simulation.network.break_connection(self.rng.choice(pairs))
        return True

    def repeat(self) -> bool:
        """A frame that was delivered comes again, the very first ones included."""
        recorded = self.simulation.network.recorded
        if not recorded:
            return False
        direction = self.rng.choice(sorted(recorded))
        frame = self.rng.choice(recorded[direction].frames)
        return self.simulation.network.inject(*direction, frame)

    def garbage(self) -> bool:
        """Bytes that are no frame arrive."""
        recorded = self.simulation.network.recorded
        if not recorded:
            return False
        direction = self.rng.choice(sorted(recorded))
        frame = self.rng.choice(recorded[direction].frames)
        if self.rng.random() < 0.5:
            frame = frame[: self.rng.randrange(len(frame))]
        else:
            frame = self.rng.randbytes(self.rng.randint(1, 100))
        return self.simulation.network.inject(*direction, frame)


def provably_synced(node: Node, name: str, *, newest: bool) -> int:
    """Return up to where a segment's bytes are followed by a record that proves them synced.

    Damage behind that can't be told from a batch that was torn by a power cut.
    """
    data = memoryview(node.disk.content(name))
    end = records.written_end(data)
    if not newest:
        return end
    first = records.decode_at(data, 0, 0)
    if first is None:
        return 0
    salt = msgspec.msgpack.decode(first.payload, type=SegmentHeader).salt
    marks = [r.offset for r in records.scan(data, first.end, salt) if r.batch_start]
    return marks[-1] if marks else 0
