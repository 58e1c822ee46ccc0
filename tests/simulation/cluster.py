"""One simulated cluster: real `Group`s over simulated ports, driven from a seed.

A run has a safety phase with faults and a healing phase in which the cluster must converge. All
that happens is an event in one queue, ordered by simulated time; the run's `trace` is a hash of
them, equal for equal seeds whatever the process.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import msgspec
from tests.simulation.checker import Checker, Violation
from tests.simulation.disk import WRITING_CALLS, Crash, SimDisk
from tests.simulation.machine import ListStorage
from tests.simulation.ports import MS_NS, SECOND_NS, SimClock, SimNetwork, Storage, Watched

from nokv_replication import (
    DiskFailed,
    Group,
    GroupConfig,
    Identity,
    Outcome,
    ReadOutcome,
    initialise,
)

CONFIG = GroupConfig(
    segment_bytes=16 << 10,
    log_keep_bytes=1 << 30,
    cache_bytes=8 << 10,
    batch_bytes=2 << 10,
    inflight_bytes=8 << 10,
    entry_max_bytes=4 << 10,
    queue_max_proposals=200,
    apply_slice_ns=40_000,
    commit_interval_ns=200 * MS_NS,
    commit_bytes=32 << 10,
    tick_interval_ns=2 * SECOND_NS,
)
KEEP_LITTLE_BYTES = 24 << 10
HEAL_NS = 60 * SECOND_NS


class Swarm(NamedTuple):
    """A run's actions, in events a second, drawn for each seed (swarm testing, ISSTA 2012)."""

    nodes: int
    propose: float
    read: float
    kill: float
    power: float
    armed: float
    io_error: float
    cut: float
    flap: float
    pause: float
    wall: float
    loss: float
    delay_ns: tuple[int, int]
    keep_little: bool
    waiting: bool


def draw_swarm(rng: Random, nodes: int | None) -> Swarm:
    """Choose a run's faults: each is off in about a third of all runs."""

    def some(*levels: float) -> float:
        return rng.choice((0.0, *levels))

    return Swarm(
        nodes=nodes if nodes is not None else rng.choice((1, 3, 3, 3, 3, 5)),
        propose=rng.choice((10.0, 40.0, 120.0)),
        read=some(5.0, 40.0),
        kill=some(0.05, 0.3),
        power=some(0.05, 0.3),
        armed=some(0.1, 0.5),
        io_error=some(0.1),
        cut=some(0.1, 0.5),
        flap=some(0.3, 2.0),
        pause=some(0.1, 0.4),
        wall=some(0.2),
        loss=rng.choice((0.0, 0.0, 0.0, 0.01, 0.05)),
        delay_ns=rng.choice(((20_000, 300_000), (100_000, 30 * MS_NS), (1_000, 200 * MS_NS))),
        keep_little=rng.random() < 0.2,
        waiting=rng.random() < 0.3,
    )


class Node:
    """One replica's life over its crashes."""

    def __init__(self, node: int, storage: Storage, clock: SimClock) -> None:
        self.node = node
        self.disk = SimDisk()
        self.storage = storage
        self.clock = clock
        self.incarnation = 1000 + node
        self.group: Group | None = None
        self.watched: Watched | None = None
        self.lives = 0
        self.paused_until_ns = 0
        self.held_events: list[Callable[[], None]] = []
        # Token of the step that is scheduled; an older one does nothing when its time comes.
        self.step_token = 0
        self.step_at_ns = 0


class Simulation:
    """See the module. `storage` makes what outlives a machine's process, per node."""

    def __init__(
        self,
        seed: int,
        *,
        nodes: int | None = None,
        storage: Callable[[], Storage] = ListStorage,
        config: GroupConfig = CONFIG,
        swarm: Swarm | None = None,
    ) -> None:
        self.rng = Random(seed)
        self.swarm = swarm if swarm is not None else draw_swarm(self.rng, nodes)
        if self.swarm.keep_little:
            config = msgspec.structs.replace(config, log_keep_bytes=KEEP_LITTLE_BYTES)
        self.config = config
        self.now_ns = SECOND_NS
        self.checker = Checker()
        self.stats: Counter[str] = Counter()
        self.trace = hashlib.blake2b(digest_size=16)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._event_number = 0
        self._payload_number = 0
        self.network = SimNetwork(self.rng, self.at)
        self.network.delay_ns = self.swarm.delay_ns
        self.network.loss = self.swarm.loss
        self.network.deliver_to = self._when_awake
        self.addresses = {n: f"node-{n}:1" for n in range(1, self.swarm.nodes + 1)}
        self.nodes = {
            n: Node(n, storage(), SimClock(self.rng.randint(-SECOND_NS, SECOND_NS), 1_000))
            for n in self.addresses
        }
        for node in self.nodes.values():
            initialise(node.disk, config, self._identity(node), self.rng)
            self.start(node)

    # ------------------------------------------------------------------ events

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Run `action` at that simulated time."""
        self._event_number += 1
        heapq.heappush(self._events, (time_ns, self._event_number, action))

    def run_until(self, time_ns: int) -> None:
        """Run all events up to that time."""
        events = self._events
        while events and events[0][0] <= time_ns:
            self.now_ns, _, action = heapq.heappop(events)
            self.network.now_ns = self.now_ns
            action()
        self.now_ns = self.network.now_ns = time_ns

    def note(self, *words: object) -> None:
        """Add to the trace."""
        self.trace.update(repr((self.now_ns, *words)).encode())

    def _when_awake(self, number: int, action: Callable[[], None]) -> None:
        node = self.nodes[number]
        if node.paused_until_ns > self.now_ns:
            node.held_events.append(action)
        else:
            action()

    # ------------------------------------------------------------------ processes

    def _identity(self, node: Node) -> Identity:
        return Identity("simulated", node.node, node.incarnation)

    def start(self, node: Node) -> bool:
        """Start a node's process; it may die of an armed fault while it opens."""
        if node.group is not None:
            return True
        node.lives += 1
        node.clock.enter(self.now_ns)
        checker = self.checker

        def report(*entry: object) -> None:
            assert node.group is not None
            with node.disk.unharmed():
                checker.stepped(node.node, node.group)
            checker.entry_applied(node.node, *entry)  # type: ignore[arg-type]

        machine = node.storage.machine(lambda name: node.disk.on_call(f"machine.{name}"))
        watched = Watched(machine, report)
        try:
            group = Group(
                identity=self._identity(node),
                addresses=self.addresses,
                config=self.config,
                machine=watched,
                disk=node.disk,
                network=self.network.port(node.node),
                clock=node.clock,
                rng=Random(self.rng.getrandbits(64)),
            )
        except (Crash, DiskFailed):
            node.disk.kill()
            return False
        node.group, node.watched = group, watched
        node.paused_until_ns = 0
        node.held_events.clear()
        self.network.groups[node.node] = group
        group.wake = lambda: self._wake(node, group)
        group.set_waiting(self.swarm.waiting)
        self.checker.started(node.node, group)
        self.note("start", node.node)
        self._schedule_step(node, self.now_ns + 1)
        return True

    def crash(self, node: Node, *, power: bool) -> None:
        """End a node's process, perhaps with its machine's power."""
        if node.group is None:
            return
        node.group = None
        node.step_token += 1
        node.held_events.clear()
        node.disk.kill()
        if power:
            node.disk.power_cut(self.rng)
            node.storage.power_cut(self.rng)
        self.note("crash", node.node, power)
        self.stats["power cuts" if power else "kills"] += 1
        late = self.rng.randint(1, 2 * SECOND_NS) if power else 0
        self.network.node_died(node.node, late)

    def pause(self, node: Node, duration_ns: int) -> None:
        """Suspend a process: its peers' frames wait in its sockets."""
        if node.group is None:
            return
        node.paused_until_ns = self.now_ns + duration_ns
        self.stats["pauses"] += 1
        self.at(node.paused_until_ns, lambda: self._resume(node))

    def _resume(self, node: Node) -> None:
        if node.paused_until_ns > self.now_ns:
            return
        held, node.held_events = node.held_events, []
        for action in held:
            action()
        if node.group is not None:
            self._schedule_step(node, self.now_ns)

    # ------------------------------------------------------------------ steps

    def _wake(self, node: Node, group: Group) -> None:
        if node.group is group:
            self._schedule_step(node, self.now_ns + self.rng.randint(1_000, 100_000))

    def _schedule_step(self, node: Node, time_ns: int) -> None:
        if node.step_at_ns > self.now_ns and node.step_at_ns <= time_ns and node.step_token:
            return
        node.step_token += 1
        node.step_at_ns = time_ns
        token = node.step_token
        self.at(time_ns, lambda: self._step(node, token))

    def _step(self, node: Node, token: int) -> None:
        group = node.group
        if group is None or token != node.step_token:
            return
        if node.paused_until_ns > self.now_ns:
            return
        node.clock.enter(self.now_ns)
        node.step_at_ns = 0
        try:
            group.step()
        except Crash as crash:
            self.stats[f"died at {crash}"] += 1
            self._check(node, group)
            self.crash(node, power=self.rng.random() < 0.6)
            return
        except DiskFailed:
            self.stats["disk failures"] += 1
            self.crash(node, power=False)
            return
        self.stats["steps"] += 1
        self._check(node, group)
        core = group._core
        self.note(node.node, core.role(), core.term(), core.commit_index())
        due = group.next_deadline_ns()
        busy_until = node.clock.monotonic_ns()
        self._schedule_step(node, max(due, busy_until, self.now_ns + 1_000))

    def _check(self, node: Node, group: Group) -> None:
        with node.disk.unharmed():
            self.checker.stepped(node.node, group)
        applier = group._applier
        if applier.between_entries:
            self.checker.fingerprint(node.node, applier.applied.index, applier.fingerprint())

    # ------------------------------------------------------------------ clients

    def propose(self, node: Node) -> bytes | None:
        """Propose a fresh payload at a node."""
        group = node.group
        if group is None or node.paused_until_ns > self.now_ns:
            return None
        self._payload_number += 1
        padding = self.rng.choice((0, 10, 100, 100, 1000))
        payload = b"%d." % self._payload_number + bytes(padding)
        checker, stats = self.checker, self.stats

        def done(outcome: Outcome) -> None:
            stats[type(outcome).__name__] += 1
            checker.answered(payload, outcome)

        group.propose(payload, done)
        return payload

    def read(self, node: Node) -> None:
        """Read at a node."""
        group, watched = node.group, node.watched
        if group is None or watched is None or node.paused_until_ns > self.now_ns:
            return
        known, checker, stats = self.checker.known_index, self.checker, self.stats

        def done(outcome: ReadOutcome) -> None:
            if isinstance(outcome, int):
                mid = watched.mid_entry
                checker.read(node.node, known, outcome, watched.applied.index, mid=mid)
                stats["reads"] += 1
            else:
                stats["failed reads"] += 1

        group.read_index(done)

    def leaders(self) -> list[Node]:
        """Return the nodes that believe to lead."""
        return [n for n in self.nodes.values() if n.group is not None and n.group._core.is_leader()]

    # ------------------------------------------------------------------ a run

    def run(self, duration_ns: int = 20 * SECOND_NS) -> None:
        """Do the safety phase and the healing; raise `Violation` if a promise is broken."""
        self._reconnect_forever()
        self._act_forever(self.now_ns + duration_ns)
        self.run_until(self.now_ns + duration_ns)
        self.heal()

    def _reconnect_forever(self) -> None:
        names = sorted(self.nodes)
        for one in names:
            for other in names:
                if one < other:
                    self.network.connect(one, other)
        self.at(self.now_ns + self.rng.randint(10, 200) * MS_NS, self._reconnect_forever)

    def _act_forever(self, until_ns: int) -> None:
        """Do one thing to the cluster, and come back after a while."""
        if self.now_ns >= until_ns:
            return
        swarm, rng = self.swarm, self.rng
        actions = (
            (swarm.propose, self._act_propose),
            (swarm.read, self._act_read),
            (swarm.kill, lambda: self._act_crash(power=False)),
            (swarm.power, lambda: self._act_crash(power=True)),
            (swarm.armed, self._act_arm),
            (swarm.io_error, self._act_io_error),
            (swarm.cut, self._act_cut),
            (swarm.flap, self._act_flap),
            (swarm.pause, self._act_pause),
            (swarm.wall, self._act_wall),
        )
        total = sum(weight for weight, _ in actions)
        ((_, action),) = rng.choices(actions, [weight for weight, _ in actions])
        action()
        gap_ns = int(rng.expovariate(total / SECOND_NS))
        self.at(self.now_ns + gap_ns, lambda: self._act_forever(until_ns))

    def _any_node(self) -> Node:
        return self.nodes[self.rng.randint(1, len(self.nodes))]

    def _act_propose(self) -> None:
        leaders = self.leaders()
        node = self.rng.choice(leaders) if leaders and self.rng.random() < 0.9 else self._any_node()
        for _ in range(self.rng.choice((1, 1, 2, 20))):
            self.propose(node)

    def _act_read(self) -> None:
        leaders = self.leaders()
        node = self.rng.choice(leaders) if leaders and self.rng.random() < 0.5 else self._any_node()
        self.read(node)

    def _act_crash(self, *, power: bool) -> None:
        leaders = self.leaders()
        node = self.rng.choice(leaders) if leaders and self.rng.random() < 0.5 else self._any_node()
        victims = list(self.nodes.values()) if power and self.rng.random() < 0.2 else [node]
        for victim in victims:
            self.crash(victim, power=power)
            self._restart_later(victim)

    def _restart_later(self, node: Node) -> None:
        def restart() -> None:
            if not self.start(node):
                self._restart_later(node)

        self.at(self.now_ns + self.rng.randint(1, 3000) * MS_NS, restart)

    def _act_arm(self) -> None:
        node = self._any_node()
        call = self.rng.choice((*WRITING_CALLS, "fdatasync", "pwrite", "machine.commit"))
        node.disk.crash_at(call, self.rng.choice((1, 1, 3)), after=self.rng.random() < 0.5)
        self._revive_soon(node)

    def _act_io_error(self) -> None:
        node = self._any_node()
        node.disk.fail_at(self.rng.choice(("pwrite", "fdatasync", "create", "pread")))
        self._revive_soon(node)

    def _revive_soon(self, node: Node) -> None:
        def revive() -> None:
            node.disk.disarm()
            if not self.start(node):
                self._restart_later(node)

        self.at(self.now_ns + self.rng.randint(100, 3000) * MS_NS, revive)

    def _act_cut(self) -> None:
        """Cut one node off, or one pair apart, for a while."""
        names = sorted(self.nodes)
        if len(names) == 1:
            return
        one = self.rng.choice([n.node for n in self.leaders()] or names)
        others = [n for n in names if n != one]
        if self.rng.random() < 0.5:
            others = [self.rng.choice(others)]
        pairs = {frozenset((one, other)) for other in others}
        self.network.blocked |= pairs
        silent = self.rng.random() < 0.5
        for pair in sorted(pairs, key=sorted):
            connection = self.network.connections.get(pair)
            if connection is not None and silent:
                connection.broken = True  # nobody notices until the pair connects again
            elif connection is not None:
                self.network.break_connection(pair)
        self.note("cut", sorted(map(sorted, pairs)))
        self.stats["cuts"] += 1

        def mend() -> None:
            self.network.blocked -= pairs

        self.at(self.now_ns + self.rng.randint(50, 5000) * MS_NS, mend)

    def _act_flap(self) -> None:
        pairs = sorted(self.network.connections, key=sorted)
        if pairs:
            self.network.break_connection(self.rng.choice(pairs))
            self.stats["flaps"] += 1

    def _act_pause(self) -> None:
        self.pause(self._any_node(), self.rng.randint(10, 4000) * MS_NS)

    def _act_wall(self) -> None:
        jump = self.rng.choice((-1, 1)) * self.rng.randint(1, 3600) * SECOND_NS
        self._any_node().clock.wall_offset_ns += jump

    # ------------------------------------------------------------------ healing

    def heal(self) -> None:
        """Undo all faults; within a minute the cluster must be whole and take a command."""
        self.network.loss = 0.0
        self.network.delay_ns = (20_000, 300_000)
        self.network.blocked.clear()
        for node in self.nodes.values():
            node.disk.disarm()
            node.paused_until_ns = 0
            self._resume(node)
            if not self.start(node):
                raise Violation(f"node {node.node} does not start without faults")
        deadline = self.now_ns + HEAL_NS
        probe: bytes | None = None
        while self.now_ns < deadline:
            self.run_until(self.now_ns + 200 * MS_NS)
            if probe not in self.checker.acked:
                leaders = self.leaders()
                probe = self.propose(leaders[-1]) if leaders else None
                for node in self.nodes.values():
                    self.read(node)
            elif self._converged():
                self._check_end()
                return
        raise Violation(f"not converged after healing: {self.describe()}")

    def _converged(self) -> bool:
        groups = [node.group for node in self.nodes.values()]
        assert all(group is not None for group in groups)
        able = [g for g in groups if g is not None and g._receiver.too_far_base is None]
        missing = len(groups) - len(able)
        if len(able) <= missing or (missing and not self.swarm.keep_little):
            return False
        applied = {group._applier.applied.index for group in able}
        last = {group._log.last_index for group in able}
        return len(applied) == 1 and applied == last

    def _check_end(self) -> None:
        for payload, index in self.checker.acked.items():
            if self.checker.where.get(payload) != index:
                raise Violation(f"acknowledged {payload[:12]!r} is lost")
        digests = {
            node.watched.digest()
            for node in self.nodes.values()
            if node.watched is not None
            and node.group is not None
            and node.group._receiver.too_far_base is None
        }
        if len(digests) != 1:
            raise Violation(f"replicas differ: {digests}")

    def describe(self) -> str:
        """Return one line a node, for a failure's report."""
        lines = []
        for node in self.nodes.values():
            group = node.group
            if group is None:
                lines.append(f"{node.node}: down")
                continue
            core, log = group._core, group._log
            lines.append(
                f"{node.node}: {core.role().name} term {core.term()} leader {core.leader()}"
                f" commit {core.commit_index()} applied {group._applier.applied.index}"
                f" log {log.base_index}..{log.last_index} t{log.last_term}"
                f" next {[core.next_index(p) for p in self.addresses if p != node.node]}"
                f" problem {group._problem()!r}"
            )
        return "\n  ".join(["", *lines, repr(self.swarm)])
