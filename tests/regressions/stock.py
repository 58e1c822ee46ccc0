"""The stock library under a scheduler that is the test.

Each regression test first shows that its schedule breaks a promise of the library as it is shipped:
a test that could not fail would prove nothing. `nokv_replication` replaces globals of the library's
module (clock, random source, journal), so the stock one is a second, untouched copy of that module.

Nodes act only in `tick`, messages move only in `deliver`, time passes only where a test says so.
Order holds within a connection; `cut` loses what is on its way, both ways.
"""

import copy
import importlib.util
import logging
import pickle
import sys
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

SUCCESS = 0
Message = dict[str, Any]


def _second_copy() -> ModuleType:
    """Load the library's main module again, so that nobody's replacements are in it."""
    found = importlib.util.find_spec("pysyncobj.syncobj")
    assert found is not None
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location("pysyncobj.stock", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    # It logs what it survives as errors; here those are the findings.
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
    module.logger.setLevel(logging.CRITICAL + 1)
    return module


library: Any = _second_copy()

OPEN: list["StockCluster"] = []
"""Clusters of the running test; their files are closed behind it."""


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class _Wire(Transport):  # type: ignore[misc]
    """One node's end of a `StockCluster`."""

    ready = True

    def __init__(self, cluster: "StockCluster", name: str) -> None:
        super().__init__(None, None, None)
        self._cluster = cluster
        self._name = name

    def send(self, node: Node, message: Message) -> bool:
        return self._cluster.send(self._name, node.id, message)

    def addNode(self, node: Node) -> None:  # noqa: N802
        """Connections are the test's business."""

    def dropNode(self, node: Node) -> None:  # noqa: N802
        self._cluster.cut(self._name, node.id)

    def destroy(self) -> None:
        """Nothing is open."""

    def receive(self, sender: str, message: Message) -> None:
        self._onMessageReceived(Node(sender), message)

    def connected(self, peer: str) -> None:
        self._onNodeConnected(Node(peer))

    def disconnected(self, peer: str) -> None:
        self._onNodeDisconnected(Node(peer))


class StockNode(library.SyncObj):  # type: ignore[misc]
    """A replicated list; `poison` is a value whose application raises."""

    poison: object = None

    def __init__(self, name: str, others: list[str], conf: SyncObjConf, wire: _Wire) -> None:
        # Set before the library looks: what exists then stays out of its dumps.
        self.wire = wire
        super().__init__(Node(name), [Node(other) for other in others], conf, transport=wire)
        self.applied: list[object] = []

    @library.replicated
    def put(self, value: object) -> int:
        if self.poison is not None and value == self.poison:
            message = f"cannot apply {value!r}"
            raise RuntimeError(message)
        self.applied.append(value)
        return len(self.applied)

    def private(self, name: str) -> Any:
        return getattr(self, f"_SyncObj__{name}")

    def set_private(self, name: str, value: object) -> None:
        setattr(self, f"_SyncObj__{name}", value)

    def leads(self) -> bool:
        return bool(self.private("raftState") == 2)

    def entries(self) -> list[tuple[bytes, int, int]]:
        """(command, index, term) of all that the node holds."""
        journal = self.private("raftLog")
        return [journal[at] for at in range(len(journal))]

    def log(self) -> list[tuple[int, int]]:
        """(index, term) of all that the node holds."""
        return [(index, term) for _, index, term in self.entries()]

    def match(self, peer: str) -> int:
        return int(self.private("raftMatchIndex")[Node(peer)])

    def next(self, peer: str) -> int:
        return int(self.private("raftNextIndex")[Node(peer)])


class StockCluster:
    """Nodes "A", "B", ... ; keywords are settings of the library for all of them.

    With `folder` each node has the library's journal there, with `dumps` its dump file too; else
    both are in memory and lost with the process.
    """

    def __init__(
        self, names: str = "ABC", folder: Path | None = None, *, dumps: bool = False, **conf: Any
    ) -> None:
        self.clock = _Clock()
        library.monotonicTime = self.clock
        self.folder = folder
        self.dumps = dumps
        self.conf: dict[str, Any] = {
            "autoTick": False,
            "raftMinTimeout": 0.4,
            "raftMaxTimeout": 1.4,
            "appendEntriesPeriod": 0.1,
            "appendEntriesUseBatch": True,
            "useFork": False,
            **conf,
        }
        self.peers = {name: [other for other in names if other != name] for name in names}
        self.nodes: dict[str, StockNode] = {}
        self.links: dict[tuple[str, str], deque[Message]] = {}
        self.results: dict[object, tuple[object, int]] = {}
        """What the client of each value was told: (result, the library's reason code)."""
        self.handler_errors: list[Exception] = []
        OPEN.append(self)
        for name in names:
            self.start(name)
        self.connect_all()

    @classmethod
    def led_by(cls, leader: str, names: str = "ABC", *args: Any, **conf: Any) -> "StockCluster":
        """A cluster whose first leader is elected by all and has committed its first entry."""
        cluster = cls(names, *args, **conf)
        cluster.elect(leader, *cluster.peers[leader])
        cluster.settle(rounds=3)
        return cluster

    def __getitem__(self, name: str) -> StockNode:
        return self.nodes[name]

    # ------------------------------------------------------------------ processes

    def start(self, name: str, peers: list[str] | None = None) -> StockNode:
        if peers is not None:
            self.peers[name] = peers
        conf = dict(self.conf)
        if self.folder is not None:
            conf["journalFile"] = str(self.folder / f"{name}.journal")
            if self.dumps:
                conf["fullDumpFile"] = str(self.folder / f"{name}.dump")
        node = StockNode(name, self.peers[name], SyncObjConf(**conf), _Wire(self, name))
        self.nodes[name] = node
        return node

    def crash(self, name: str) -> None:
        """End a process: its connections break, what is on its way is lost."""
        self.nodes.pop(name).private("raftLog")._destroy()
        for other in self.peers:
            self.cut(name, other)

    # ------------------------------------------------------------------ network

    def connect(self, one: str, other: str) -> None:
        if (one, other) in self.links:
            return
        self.links[one, other], self.links[other, one] = deque(), deque()
        self.nodes[one].wire.connected(other)
        self.nodes[other].wire.connected(one)

    def connect_all(self) -> None:
        for one in self.nodes:
            for other in self.nodes:
                if one < other:
                    self.connect(one, other)

    def cut(self, one: str, other: str) -> None:
        for node, peer in ((one, other), (other, one)):
            if self.links.pop((node, peer), None) is not None and node in self.nodes:
                self.nodes[node].wire.disconnected(peer)

    def flap(self, one: str, other: str) -> None:
        """Lose what is on its way, and connect again."""
        self.cut(one, other)
        self.connect(one, other)

    def isolate(self, name: str) -> None:
        for other in list(self.nodes):
            self.cut(name, other)

    def send(self, sender: str, receiver: str, message: Message) -> bool:
        link = self.links.get((sender, receiver))
        if link is None:
            return False
        link.append(copy.deepcopy(message))
        return True

    def on_the_way(self, sender: str, receiver: str) -> list[Message]:
        return list(self.links.get((sender, receiver), ()))

    def deliver(self, sender: str, receiver: str, count: int | None = None) -> int:
        """Hand over the first `count` messages on their way, or all; return how many."""
        moved = 0
        while count is None or moved < count:
            link = self.links.get((sender, receiver))
            if not link:
                break
            message = link.popleft()
            moved += 1
            try:
                self.nodes[receiver].wire.receive(sender, message)
            except Exception as error:  # noqa: BLE001 - the TCP transport would drop the rest
                self.handler_errors.append(error)
        return moved

    # ------------------------------------------------------------------ time

    def tick(self, name: str, wait_s: float = 0.0) -> None:
        self.clock.now_s += wait_s
        self.nodes[name].doTick(0)

    def heartbeat(self, name: str) -> None:
        """Append what waits, and send it with the next heartbeat."""
        self.tick(name)
        self.tick(name, 0.11)

    def settle(self, names: str | None = None, *, rounds: int = 30) -> None:
        for _ in range(rounds):
            self.clock.now_s += 0.11
            live = [name for name in self.nodes if names is None or name in names]
            for name in live:
                self.tick(name)
            for one in live:
                for other in live:
                    self.deliver(one, other)

    def expire(self, name: str) -> None:
        """Let a node's election timer fire; the others are not scheduled."""
        deadline_s = self.nodes[name].private("raftElectionDeadline")
        self.clock.now_s = max(self.clock.now_s, deadline_s) + 0.001
        self.tick(name)

    def elect(self, name: str, *voters: str) -> None:
        self.expire(name)
        for voter in voters:
            self.deliver(name, voter)
        for voter in voters:
            self.deliver(voter, name)
        assert self.nodes[name].leads()

    # ------------------------------------------------------------------ clients

    def put(self, name: str, value: object) -> None:
        """Propose a value; the node takes it in its next tick."""

        def told(result: object, reason: int) -> None:
            self.results[value] = (result, reason)

        self.nodes[name].put(value, callback=told)

    def succeeded(self, value: object) -> bool:
        """Whether the client was told that its value is committed and applied."""
        return value in self.results and self.results[value][1] == SUCCESS

    def lost(self, name: str) -> list[object]:
        """Values whose clients were told SUCCESS and that a node has not applied."""
        applied = self.nodes[name].applied
        return [v for v in self.results if self.succeeded(v) and v not in applied]


def pickled_size(message: Message) -> int:
    return len(pickle.dumps(message, 2))
