"""A cluster for client tests: the real state machine behind the real RPC port, on loopback.

Replication is left out: all nodes serve one `StateMachine`, and the test says who leads. What a
network and a failing cluster do to a client is done here by name: drop an answer, refuse, delay,
cut the connection after the command was applied.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nokv.client import AsyncClient, ClientConfig, connect
from nokv.client.connect import Connecting
from nokv.errors import NokvError, NotLeader, NotReady, SessionExpired, UnknownSession, from_wire
from nokv.objects.faults import FaultyStore
from nokv.objects.memory import MemoryStore
from nokv.objects.volume import claim_volume
from nokv.server.config import RpcConfig
from nokv.server.rpc import Call, RpcServer, error_reply
from nokv.server.watches import Watches
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.records import Position
from nokv.types.commands import Command, ExpireSession, InitVolume, Op, Reap, SessionMarks
from nokv.types.reads import GetSession, GetVolume, SessionReply, VolumeReply
from nokv.types.results import Result
from nokv.types.values import Caller, Marks, Volume
from nokv.wire.codec import decode_command, encode_command, result_codec
from nokv.wire.rpc import (
    PROTOCOL,
    Hello,
    HelloReply,
    Member,
    MemberChanged,
    NodeAddress,
    OpenWatch,
    Outcome,
    Propose,
    Query,
    QueryReply,
    Renew,
    RenewReply,
    RequestBody,
    ResultsReply,
    Status,
    StatusReply,
    TransferLeadership,
)

VOLUME = "0123456789abcdef0123456789abcdef"
CLUSTER = "test-cluster"
ROOT = Caller()
ENDS_S = 20.0
"""Clients have closed by then: their connections, and the requests on them, have ended here too."""


class Fault(enum.Enum):
    """What happens to one Propose."""

    DROP_BEFORE = "the request is lost: nothing is applied, nothing answered"
    DROP_AFTER = "applied, and the answer is lost"
    CUT_AFTER = "applied, and the connection ends before the answer"
    REFUSE = "answered NotReady without being applied"
    HOLD = "applied at once; answered when `release` is called"


class Node:
    """One address of the cluster; the `Handler` of its own RPC port."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.address = ""
        self.silent = False
        """Answers nothing any more, like a stopped process; connections stay."""
        self.reads: list[Query] = []
        self.server = RpcServer(RpcConfig(listen="127.0.0.1:0"), self)
        self.watches = Watches(cluster.machine, lambda: True)

    async def start(self) -> None:
        host, port = await self.server.start("127.0.0.1", 0)
        self.address = f"{host}:{port}"

    async def stop(self, wait_s: float = 0.0) -> None:
        """Stop; wait so long for open requests to be answered, or their connections to end."""
        await self.server.stop(wait_s)

    def cut(self) -> None:
        """End all connections."""
        for connection in list(self.server.connections):
            connection.end()

    # Handler

    def hello(self, hello: Hello) -> HelloReply:
        del hello
        cluster = self.cluster
        nodes = tuple(NodeAddress(node.number, node.address) for node in cluster.nodes)
        return HelloReply(
            PROTOCOL, CLUSTER, self.number, cluster.leader_address(), nodes, cluster.volume_reply
        )

    def end_of_batch(self) -> None:
        """Nothing is collected."""

    def handle(self, call: Call, body: RequestBody) -> None:
        cluster = self.cluster
        if self.silent:
            return
        if isinstance(body, Query):
            self.reads.append(body)
            cluster.reads += 1
            if cluster.on_read is not None:
                cluster.on_read(self, body)
            version, value = cluster.machine.read(body.caller, body.read)
            call.answer(QueryReply(version, value))
        elif isinstance(body, OpenWatch):
            self.watches.check(body)
            self.watches.open(call, body)
        elif isinstance(body, Status):
            call.answer(cluster.status(self))
        elif cluster.leader is not self:
            call.fail(NotLeader("this node does not lead"), cluster.leader_address())
        elif isinstance(body, Renew):
            cluster.renew(call, body.marks)
        elif isinstance(body, Propose):
            cluster.propose(call, body)
        elif isinstance(body, TransferLeadership) and cluster.on_transfer is not None:
            call.answer(MemberChanged(cluster.on_transfer(body.node)))
        else:
            raise NotReady("not spoken here")


class Cluster:
    """Nodes, one state, and the faults that the next proposals meet."""

    def __init__(self, store: FaultyStore, inline_max: int) -> None:
        self.machine = StateMachine(MemoryKV())
        self.store = store
        self.nodes: list[Node] = []
        self.leader: Node | None = None
        self.volume = Volume(VOLUME, "memory", inline_max=inline_max)
        self.volume_reply: VolumeReply | None = None
        self.faults: list[Fault] = []
        """One per Propose, from the next one on."""
        self.refuse: Callable[[Command], NokvError | None] = lambda _: None
        """Refuses single commands without applying them."""
        self.on_read: Callable[[Node, Query], None] | None = None
        self.on_transfer: Callable[[int], int] | None = None
        """Takes whom leadership is for; returns who leads then."""
        self.voters: tuple[int, ...] | None = None
        """Who votes, as a status has it; None: it has no members."""
        self.commands: list[Command] = []
        """All that arrived at the leader, repetitions too."""
        self.results: list[Result] = []
        """All that was applied."""
        self.renewals: list[Marks] = []
        self.renewed = asyncio.Event()
        """Set whenever a renewal arrived."""
        self.lose_renewals = False
        self.reads = 0
        self.arrived = asyncio.Event()
        """Set whenever a Propose was applied."""
        self.cluster_ns = 1
        self._index = 0
        self._held: list[tuple[Call, ResultsReply]] = []

    async def start(self, count: int) -> None:
        await claim_volume(self.store.inner, VOLUME)
        self.internal(InitVolume(self.volume, 7))
        _, volume = self.machine.read(ROOT, GetVolume())
        assert isinstance(volume, VolumeReply)
        self.volume_reply = volume
        self.nodes = [Node(self, number) for number in range(1, count + 1)]
        for node in self.nodes:
            await node.start()
        self.leader = self.nodes[0]

    async def stop(self) -> None:
        for node in self.nodes:
            node.silent = False
            await node.stop(ENDS_S)

    @property
    def addresses(self) -> str:
        return ",".join(node.address for node in self.nodes)

    def leader_address(self) -> str:
        return self.leader.address if self.leader is not None else ""

    # ------------------------------------------------------------ state

    def apply(self, payloads: list[bytes]) -> list[bytes]:
        self._index += 1
        self.cluster_ns += 1_000_000
        results = list(
            self.machine.apply(
                Position(self._index, 1, b""),
                max(time.time_ns(), self.machine.counters.wall_ns),
                self.cluster_ns,
                payloads,
            )
        )
        self.results += [result_codec.decode(result) for result in results]
        for node in self.nodes:
            node.watches.applied()
        return results

    def internal(self, op: Op) -> Result:
        """Apply a command of the cluster's own."""
        (result,) = self.apply([encode_command(Command(1, 0, 0, 0, ROOT, op))])
        done = result_codec.decode(result)
        if done.code:
            raise from_wire(done.code, done.message, done.hint)
        return done

    def expire(self, session: int) -> None:
        self.internal(ExpireSession(session))

    def reap(self) -> None:
        while self.machine.pending_work():
            self.internal(Reap(1000))

    def session(self, session: int) -> SessionReply:
        _, value = self.machine.read(ROOT, GetSession(session))
        assert isinstance(value, SessionReply)
        return value

    # ------------------------------------------------------------ requests

    def propose(self, call: Call, body: Propose) -> None:
        fault = self.faults.pop(0) if self.faults else None
        commands = [decode_command(data) for data in body.commands]
        self.commands += commands
        if fault is Fault.DROP_BEFORE:
            self.arrived.set()
            return
        if fault is Fault.REFUSE:
            call.fail(NotReady("refused by the test"))
            return
        outcomes: list[Outcome] = []
        for data, command in zip(body.commands, commands, strict=True):
            error = self.refuse(command)
            if error is not None:
                outcomes.append(Outcome(b"", error_reply(error)))
            else:
                outcomes.append(Outcome(self.apply([data])[0]))
        self.arrived.set()
        reply = ResultsReply(tuple(outcomes))
        if fault is Fault.CUT_AFTER:
            call.connection.end()
        elif fault is Fault.HOLD:
            self._held.append((call, reply))
        elif fault is not Fault.DROP_AFTER:
            call.answer(reply)

    def release(self) -> None:
        """Answer what was held."""
        held, self._held = self._held, []
        for call, reply in held:
            call.answer(reply)

    def renew(self, call: Call, marks: Marks) -> None:
        self.renewals.append(marks)
        self.renewed.set()
        if self.lose_renewals:
            return
        session = self.machine.marks_of(marks.session)
        if session is None:
            call.fail(UnknownSession("no such session"))
            return
        known = self.session(marks.session)
        if not known.alive:
            call.fail(SessionExpired("the session has ended"))
            return
        call.answer(RenewReply(known.ttl_ns, session.number, self.machine.version))
        self.internal(SessionMarks((marks,)))

    def status(self, node: Node) -> StatusReply:
        leader = self.leader
        return StatusReply(
            node=node.number,
            cluster=CLUSTER,
            role="leader" if leader is node else "follower",
            term=1,
            leader=leader.number if leader is not None else 0,
            leader_address=self.leader_address(),
            commit_index=self._index,
            applied_index=self._index,
            version=self.machine.version,
            log_bytes=0,
            free_bytes=1 << 40,
            wall_ns=0,
            cluster_ns=self.cluster_ns,
            peers=(),
            counters={},
            format=1,
            build="test",
            fingerprint=b"",
            members=tuple(
                Member(one.number, 1, one.number in self.voters, "", one.address)
                for one in self.nodes
                if self.voters is not None
            ),
        )

    # ------------------------------------------------------------ clients

    def connect(self, **how: Any) -> Connecting:
        """Return a client to be entered, with bounds that suit a test."""
        how.setdefault("config", ClientConfig(deadline_s=20.0))
        how.setdefault("caller", ROOT)
        how.setdefault("store", self.store)
        return connect(self.addresses, **how)


@asynccontextmanager
async def cluster(count: int = 3, inline_max: int = 4096) -> AsyncIterator[Cluster]:
    """Run a cluster of `count` addresses for the length of a block."""
    running = Cluster(FaultyStore(MemoryStore()), inline_max)
    await running.start(count)
    try:
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def client(
    count: int = 3, inline_max: int = 4096, **how: Any
) -> AsyncIterator[tuple[Cluster, AsyncClient]]:
    """Run a cluster and one client of it."""
    async with cluster(count, inline_max) as running, running.connect(**how) as fs:
        yield running, fs


def local_files(root: Path) -> dict[bytes, bytes]:
    """Return the regular files below a directory by their relative names."""
    return {
        bytes(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
