"""One simulated cluster: real `Group`s over simulated ports, driven from a seed.

A run has a safety phase with faults and then a healing phase: a quorum at least is made whole, the
rest stays broken for ever, and what was healed must converge. All that happens is an event in one
queue, ordered by simulated time; the run's `trace` is equal for equal seeds whatever the process.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import msgspec
from tests.simulation.atlas import Atlas
from tests.simulation.checker import Checker, Configuration, Violation
from tests.simulation.disk import Crash, SimDisk
from tests.simulation.faults import Faults
from tests.simulation.machine import ListStorage
from tests.simulation.network import NodePort, SimNetwork
from tests.simulation.node import Node
from tests.simulation.ports import MS_NS, SECOND_NS, SimClock, Storage, Watched
from tests.simulation.swarm import CONFIG, KEEP_LITTLE_BYTES, Swarm, draw_swarm
from tests.simulation.trace import Trace

from nokv_replication import (
    DiskFailed,
    Group,
    GroupConfig,
    Identity,
    LogDamaged,
    Outcome,
    ReadOutcome,
    initialise,
)

HEAL_NS = 60 * SECOND_NS
STALLED_NS = 3600 * SECOND_NS
"""A safety phase that is counted in steps ends after this long in any case."""

HURRIED_STEPS_MAX = 2000
NONE = Configuration(0, 0, frozenset(), frozenset())


class Simulation:
    """See the module. `storage` makes what outlives a machine's process, per node.

    `out` gets the trace, a line an event.
    """

    def __init__(
        self,
        seed: int,
        *,
        nodes: int | None = None,
        storage: Callable[[], Storage] = ListStorage,
        config: GroupConfig = CONFIG,
        swarm: Swarm | None = None,
        out: Callable[[str], None] | None = None,
    ) -> None:
        self.rng = Random(seed)
        self.swarm = swarm if swarm is not None else draw_swarm(self.rng, nodes)
        if self.swarm.keep_little:
            config = msgspec.structs.replace(config, log_keep_bytes=KEEP_LITTLE_BYTES)
        self.config = config
        self.now_ns = SECOND_NS
        self.steps = 0
        self.checker = Checker()
        self.stats: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        """Sums of the groups' own counters, of processes that ended and of those that live."""
        self.trace = Trace(out)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._event_number = 0
        self._payload_number = 0
        self._healing = False
        self._storage = storage
        self.network = SimNetwork(self.rng, self.at)
        self.network.delay_ns = self.swarm.delay_ns
        self.network.loss = self.swarm.loss
        self.network.images.flips = self.swarm.image_flips
        self.network.is_awake = self._is_awake
        self.network.hold = lambda number, action: self.nodes[number].held.append(action)
        if self.trace.printing:
            self.network.on_frame = lambda *frame: self.trace.frame(self.now_ns, *frame)
        self.addresses = {n: f"node-{n}:1" for n in range(1, self.swarm.nodes + 1)}
        self.atlas = Atlas(frozenset(self.addresses), self.checker.possible_configurations)
        self.nodes = {n: self._new_node(n) for n in self.addresses}
        for node in self.nodes.values():
            self.start(node)
        self.faults = Faults(self)

    def _new_node(self, number: int, joins: dict[int, str] | None = None) -> Node:
        drift_ppm = self.rng.randint(-self.swarm.drift_ppm, self.swarm.drift_ppm)
        clock = SimClock(self.rng.randint(-SECOND_NS, SECOND_NS), 1_000, drift_ppm)
        node = Node(number, 1000 + number, self._storage(), clock)
        node.joins = joins or {}
        self._plug(node)
        return node

    def new_joiner(self, members: dict[int, str]) -> Node:
        """Start a new machine that is to join these members."""
        number = max(self.nodes) + 1
        node = self._new_node(number, {**members, number: f"node-{number}:1"})
        self.nodes[number] = node
        self.start(node)
        return node

    def _plug(self, node: Node) -> None:
        """Give a node its (new) disk's hooks and an empty log."""

        def on_sync() -> None:
            if self.now_ns < node.slow_until_ns:
                node.clock.spend(int(node.sync_ns * self.rng.random()))

        node.disk.on_sync = on_sync
        initialise(node.disk, self.config, self._identity(node), self.rng)

    # ------------------------------------------------------------------ events

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Run `action` at that simulated time."""
        self._event_number += 1
        heapq.heappush(self._events, (time_ns, self._event_number, action))

    def run_until(self, time_ns: int, steps: int | None = None) -> None:
        """Run all events up to that time, or until so many steps were made in all."""
        events, network, pop = self._events, self.network, heapq.heappop
        while events and events[0][0] <= time_ns:
            if steps is not None and self.steps >= steps:
                return
            now_ns, _, action = pop(events)
            self.now_ns = network.now_ns = now_ns
            action()
        self.now_ns = network.now_ns = time_ns

    def note(self, node: int, words: str) -> None:
        """Add an event of a node, 0 for the world, to the trace."""
        self.trace.note(self.now_ns, f"{node} {words}")

    def _is_awake(self, number: int) -> bool:
        return self.nodes[number].paused_until_ns <= self.now_ns

    # ------------------------------------------------------------------ processes

    def _identity(self, node: Node) -> Identity:
        return Identity("simulated", node.node, node.incarnation, joining=bool(node.joins))

    def start(self, node: Node) -> bool:
        """Start a node's process; it may die of an armed fault while it opens."""
        if node.group is not None or node.dead:
            return True
        node.lives += 1
        node.clock.restart()
        node.clock.enter(self.now_ns)
        disk = node.disk
        machine = node.storage.machine(lambda name: disk.on_call(f"machine.{name}"))
        watched = Watched(machine, partial(self._applied, node))

        def on_call(name: str) -> None:
            disk.on_call(name)

        port = NodePort(
            self.network, node.node, node.clock, on_call,
            partial(self._sends, node),
        )  # fmt: skip
        try:
            group = Group(
                identity=self._identity(node),
                addresses=node.joins or self.addresses,
                config=self.config,
                machine=watched,
                disk=disk,
                network=port,
                clock=node.clock,
                rng=Random(self.rng.getrandbits(64)),
            )
        except (Crash, DiskFailed) as error:
            self.stats[
                f"died opening at {error}" if isinstance(error, Crash) else "disk failures"
            ] += 1
            disk.kill()
            return False
        except LogDamaged:
            self._damaged(node)
            return True
        node.group, node.watched = group, watched
        node.paused_until_ns = 0
        node.held.clear()
        self.network.groups[node.node] = group
        group.wake = partial(self._wake, node, group)
        group.set_waiting(self.swarm.waiting)
        with disk.unharmed():
            self.checker.started(node.node, group)
        self.note(node.node, "start")
        self._schedule_step(node, self.now_ns + 1)
        return True

    def _damaged(self, node: Node) -> None:
        """A node found its log damaged and stops for good; only a tampered disk may do that."""
        if not node.tampered:
            message = f"node {node.node} finds its log damaged, and nobody touched it"
            raise Violation(message)
        self.stats["logs found damaged"] += 1
        self.note(node.node, "log damaged")
        node.dead = "its log is damaged"
        if node.group is not None:
            self.crash(node, power=False)
        node.disk.kill()

    def _applied(self, node: Node, *entry: object) -> None:
        group = node.group
        assert group is not None
        self._look(node, group)
        self.checker.entry_applied(node.node, *entry)  # type: ignore[arg-type]

    def _sends(self, node: Node, frame: bytes, peer: int) -> None:
        assert node.group is not None
        self.checker.promised(node.node, node.group, node.disk, frame, peer)

    def crash(self, node: Node, *, power: bool) -> None:
        """End a node's process, perhaps with its machine's power."""
        group = node.group
        if group is None:
            return
        self._count(group)
        node.group = None
        node.step_token += 1
        node.held.clear()
        node.disk.kill()
        if power:
            node.disk.power_cut(self.rng)
            node.storage.power_cut(self.rng)
        self.note(node.node, "power cut" if power else "killed")
        late = self.rng.randint(1, 2 * SECOND_NS) if power else 0
        self.network.node_died(node.node, late)

    def _count(self, group: Group) -> None:
        counters = group.counters
        for name in counters.__struct_fields__:
            self.counters[name] += getattr(counters, name)
        self.counters["wall_clamped"] = max(
            self.counters["wall_clamped"], group._timekeeper.clamped
        )

    def restart_later(self, node: Node) -> None:
        """Start a node's process again after a while, until it stays up."""

        def restart() -> None:
            if not self.start(node):
                self.restart_later(node)

        self.at(self.now_ns + self.rng.randint(1, 3000) * MS_NS, restart)

    def may_wipe(self, node: Node) -> bool:
        """Whether a node's disk may be lost: all know the first members, and enough will be left.

        While the first members are not known to all, a wiped one ends the founding for ever.
        """
        founded = all(n.founded or n.stranger or n.joins for n in self.nodes.values())
        known = self.checker.possible_configurations()
        return founded and bool(known) and self.atlas.may_lose(node.node)

    def wipe(self, node: Node) -> None:
        """Give a dead node an empty disk, and so another incarnation."""
        assert node.group is None
        node.disk = SimDisk()
        node.storage = self._storage()
        node.incarnation += 1000
        node.stranger = True
        node.tampered = False
        self.checker.forget(node.node)
        self._plug(node)
        self.note(node.node, "wiped")

    def pause(self, node: Node, until_ns: int) -> None:
        """Suspend a process: its peers' frames wait in its sockets."""
        node.paused_until_ns = until_ns
        self.note(node.node, "paused")
        self.at(until_ns, partial(self._resume, node))

    def _resume(self, node: Node) -> None:
        if node.paused_until_ns > self.now_ns:
            return
        held, node.held = node.held, []
        for action in held:
            action()
        if node.group is not None:
            self._schedule_step(node, self.now_ns)

    # ------------------------------------------------------------------ steps

    def _wake(self, node: Node, group: Group) -> None:
        if node.group is group:
            self._schedule_step(node, self.now_ns + 1_000 + int(99_000 * self.rng.random()))

    def _schedule_step(self, node: Node, time_ns: int) -> None:
        # A process in a slow sync sees nothing that wakes it. Were it stepped all the same, its
        # clock would run ahead of the world, and then stand still for as long.
        time_ns = max(time_ns, node.clock.free_at_ns())
        if node.step_at_ns > self.now_ns and node.step_at_ns <= time_ns and node.step_token:
            return
        node.step_token += 1
        node.step_at_ns = time_ns
        self.at(time_ns, partial(self._step, node, node.step_token))

    def _step(self, node: Node, token: int) -> None:
        group = node.group
        if group is None or token != node.step_token:
            return
        if node.paused_until_ns > self.now_ns:
            return
        clock = node.clock
        clock.enter(self.now_ns)
        node.step_at_ns = 0
        if node.disk.room is not None:
            self._mind_space(node, group)
        try:
            group.step()
        except Crash as crash:
            self.stats[f"died at {crash}"] += 1
            self._check(node, group, died=True)
            self.crash(node, power=self.rng.random() < 0.6)
            return
        except DiskFailed:
            self.stats["disk failures"] += 1
            self._check(node, group, died=True)
            self.crash(node, power=False)
            self.restart_later(node)
            return
        except LogDamaged:
            self._damaged(node)
            return
        self.steps += 1
        self._check(node, group)
        core = group._core
        self.trace.note(
            self.now_ns,
            f"{node.node} {'FCL'[core.role()]} t{core.term()} c{core.commit_index()}"
            f" a{group._applier.applied.index} l{group._log.last_index}",
        )
        due = clock.world_at(group.next_deadline_ns())
        busy_until = self.now_ns + clock.spent_ns()
        node.hurried_steps = node.hurried_steps + 1 if due <= busy_until else 0
        if node.hurried_steps > HURRIED_STEPS_MAX:
            message = (
                f"node {node.node} asks for step after step and does nothing: {group.status()}"
            )
            raise Violation(message)
        self._schedule_step(node, max(due, busy_until, self.now_ns + 1_000))

    def _mind_space(self, node: Node, group: Group) -> None:
        """Do what the owner of a group does as its disk fills up, and when space returns."""
        room = node.disk.room
        assert room is not None
        group.set_keeping_log(room >= 2 * self.config.segment_bytes)
        group.set_accepting(room >= self.config.segment_bytes)
        if room > 1 << 30:
            node.disk.room = None

    def _look(self, node: Node, group: Group, *, died: bool = False) -> None:
        if node.disk.armed:
            # No armed fault strikes the checker.
            with node.disk.unharmed():
                self.checker.stepped(node.node, group, died=died)
        else:
            self.checker.stepped(node.node, group, died=died)

    def _check(self, node: Node, group: Group, *, died: bool = False) -> None:
        self._look(node, group, died=died)
        if group.counters.peers_set_back:
            # No disk goes back in a simulation: what was acknowledged is there.
            message = f"node {node.node} says of another: {list(group.warnings)}"
            raise Violation(message)
        node.founded = not group._roster.founding
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
        group.propose(payload, partial(self._answered, payload))
        return payload

    def _answered(self, payload: bytes, outcome: Outcome) -> None:
        self.stats[type(outcome).__name__] += 1
        self.checker.answered(payload, outcome)

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

    def run(self, duration_ns: int = 20 * SECOND_NS, *, steps: int | None = None) -> None:
        """Do the safety phase and the healing; raise `Violation` if a promise is broken.

        The safety phase lasts `duration_ns`, or until `steps` steps of groups if that is given.
        """
        self._reconnect_forever()
        self.faults.begin()
        if steps is None:
            self.run_until(self.now_ns + duration_ns)
        else:
            self.run_until(self.now_ns + STALLED_NS, steps)
        self.faults.end()
        self.heal()
        for node in self.nodes.values():
            if node.group is not None:
                self._count(node.group)
        self.stats["handshakes refused"] += self.network.refused_handshakes

    def _reconnect_forever(self) -> None:
        names, connect = list(self.nodes), self.network.connect
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                connect(one, other)
        self.at(self.now_ns + self.rng.randint(10, 200) * MS_NS, self._reconnect_forever)

    # ------------------------------------------------------------------ healing

    def _choose_core(self) -> list[Node]:
        """Return the nodes to heal: a majority at least, of those that lost nothing."""
        configurations = self.atlas.voters()
        members = self._members().union(*configurations)
        able = [n for n in self.nodes.values() if n.node in members - set(self.atlas.lost)]
        self.rng.shuffle(able)
        core: list[Node] = []
        for node in able:
            has = {n.node for n in core}
            if not self.swarm.heals_all and all(2 * len(v & has) > len(v) for v in configurations):
                break
            core.append(node)
        has = {n.node for n in core}
        assert all(2 * len(v & has) > len(v) for v in configurations), "the atlas lost count"
        return sorted(core, key=lambda node: node.node)

    def _members(self) -> frozenset[int]:
        """Return the members of the newest configuration that is committed."""
        (newest, *_) = self.checker.possible_configurations() or [NONE]
        return newest.voters | newest.learners

    def heal(self) -> None:
        """Make a core whole and leave the rest broken; the core must become whole and go on."""
        self._healing = True
        core = self._choose_core()
        for node in self.nodes.values():
            if node not in core and not node.dead:
                self._break_for_ever(node)
        self.network.loss = self.network.images.flips = 0.0
        self.network.delay_ns = (20_000, 300_000)
        self.network.heal()
        self._isolate([n.node for n in self.nodes.values() if n not in core])
        for node in core:
            self._repair(node)
        self.note(0, f"healed {' '.join(str(n.node) for n in core)}")
        deadline = self.now_ns + HEAL_NS
        probe: bytes | None = None
        while self.now_ns < deadline:
            self.run_until(self.now_ns + 200 * MS_NS)
            if probe not in self.checker.acked:
                leaders = [node for node in self.leaders() if node in core]
                probe = self.propose(leaders[-1]) if leaders else None
                for node in core:
                    self.read(node)
            elif self._converged(core):
                self._check_end(core)
                return
        raise Violation(f"not converged after healing: {self.describe()}")

    def _break_for_ever(self, node: Node) -> None:
        """It stays dead, or goes on alone."""
        if self.rng.random() < 0.5:
            self.crash(node, power=self.rng.random() < 0.5)
            node.dead = "broken for ever"

    def _isolate(self, outside: list[int]) -> None:
        """Cut the nodes that are not healed from those that are; they may talk to each other."""
        inside = [n for n in self.nodes if n not in outside]
        pairs = [(a, b) for a in inside for b in outside]
        self.network.block([*pairs, *((b, a) for a, b in pairs)])
        for one, other in pairs:
            self.network.break_connection(frozenset((one, other)))

    def _repair(self, node: Node) -> None:
        node.disk.disarm()
        node.disk.room = None
        node.slow_until_ns = 0
        node.paused_until_ns = 0
        if node.group is not None:
            node.group.set_accepting(True)
            node.group.set_keeping_log(True)
        self._resume(node)
        if not self.start(node):
            message = f"node {node.node} does not start without faults"
            raise Violation(message)

    def _converged(self, core: list[Node]) -> bool:
        members = self._members()
        groups = [node.group for node in core if node.node in members]
        if not groups or any(group is None for group in groups):
            return False
        applied = {group._applier.applied.index for group in groups if group is not None}
        last = {group._log.last_index for group in groups if group is not None}
        return len(applied) == 1 and applied == last

    def _check_end(self, core: list[Node]) -> None:
        for payload, index in self.checker.acked.items():
            if self.checker.where.get(payload) != index:
                message = f"acknowledged {payload[:12]!r} is lost"
                raise Violation(message)
        members = self._members()
        digests = {
            node.watched.digest()
            for node in core
            if node.watched is not None and node.node in members
        }
        if len(digests) != 1:
            message = f"replicas differ: {digests}"
            raise Violation(message)

    def describe(self) -> str:
        """Return one line a node, for a failure's report."""
        lines = []
        for node in self.nodes.values():
            group = node.group
            if group is None:
                lines.append(f"{node.node}: down {node.dead}")
                continue
            core, log = group._core, group._log
            lines.append(
                f"{node.node}: {core.role().name} term {core.term()} leader {core.leader()}"
                f" commit {core.commit_index()} applied {group._applier.applied.index}"
                f" log {log.base_index}..{log.last_index} t{log.last_term}"
                f" problem {group.status().problem!r}"
            )
        return "\n  ".join(["", *lines, repr(self.swarm)])
