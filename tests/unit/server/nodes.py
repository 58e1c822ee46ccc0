"""Real nodes of a real cluster on loopback, for the tests of this folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nokv.errors import NokvError, from_wire
from nokv.server.datadir import MemberAddress
from nokv.server.init import StoreSpec, init_cluster, join
from nokv.testing.ports import free_ports, release_ports
from nokv.types.commands import COMMAND_FORMAT, Command, Op
from nokv.types.reads import Read, ReadValue
from nokv.types.results import ResultValue, SessionOpened
from nokv.types.values import Caller
from nokv.wire.codec import encode_command, result_codec
from nokv.wire.connection import RpcConnection, error_of
from nokv.wire.rpc import (
    PROTOCOL,
    Consistency,
    Hello,
    Propose,
    Query,
    QueryReply,
    ResultsReply,
    Status,
    StatusReply,
)

DEADLINE_S = 60.0
"""A condition that has not come true by then never will."""

RUN = """
import sys
from pathlib import Path
from nokv.server.run import serve
sys.exit(serve(Path(sys.argv[1]), with_parent=True))
"""


class Nodes:
    """The processes of one cluster."""

    def __init__(self, folder: Path, count: int, extra: str = "") -> None:
        self.folder = folder
        self.ports = ports = free_ports(3 * count)
        self.members = [
            MemberAddress(n + 1, f"127.0.0.1:{ports[3 * n]}", f"127.0.0.1:{ports[3 * n + 1]}")
            for n in range(count)
        ]
        self.http = [f"127.0.0.1:{ports[3 * n + 2]}" for n in range(count)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for member in self.members:
            self.config(member.node).write_text(
                f'data_dir = "data{member.node}"\n'
                f'[peer]\nlisten = "{member.peer}"\n[rpc]\nlisten = "{member.rpc}"\n'
                f'[http]\nlisten = "{self.http[member.node - 1]}"\n'
                f"[log]\nsegment_bytes = 8388608\n{extra}"
            )
        store = StoreSpec(kind="local", bucket=str(folder / "objects"))
        init_cluster(
            self.config(1),
            node=1,
            members=self.members,
            store=store,
            join_file=folder / "join.json",
        )
        for member in self.members[1:]:
            join(self.config(member.node), folder / "join.json", node=member.node)

    def config(self, node: int) -> Path:
        return self.folder / f"node{node}.toml"

    def log(self, node: int) -> Path:
        return self.folder / f"node{node}.log"

    @property
    def addresses(self) -> list[str]:
        return [member.rpc for member in self.members]

    def start(self, *nodes: int) -> None:
        for node in nodes or [member.node for member in self.members]:
            with self.log(node).open("ab") as output:
                self.processes[node] = subprocess.Popen(
                    [sys.executable, "-c", RUN, str(self.config(node))],
                    stdout=output,
                    stderr=output,
                    env={k: v for k, v in os.environ.items() if not k.startswith("NOKV_")},
                )

    def signal(self, node: int, number: int) -> None:
        self.processes[node].send_signal(number)

    def kill(self, node: int) -> None:
        """Kill -9 the supervisor: the system takes its children along."""
        process = self.processes.pop(node)
        process.kill()
        process.wait()

    def stop(self) -> dict[int, int]:
        """Stop all gracefully; return the exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        codes = {node: process.wait(DEADLINE_S) for node, process in self.processes.items()}
        self.processes.clear()
        return codes

    def close(self) -> None:
        for node in list(self.processes):
            self.kill(node)
        release_ports(self.ports)


class Caller1:
    """A client of one session over one connection, as simple as can be."""

    def __init__(self, connection: RpcConnection) -> None:
        self.connection = connection
        self.session = 0
        self.seq = 0

    async def raw(self, session: int, seq: int, op: Op) -> ResultValue | None:
        command = Command(COMMAND_FORMAT, session, seq, max(0, seq - 1), Caller(), op)
        reply = await self.connection.call(Propose((encode_command(command),)))
        assert isinstance(reply, ResultsReply)
        (outcome,) = reply.outcomes
        if outcome.error is not None:
            raise error_of(outcome.error)
        result = result_codec.decode(outcome.result)
        if result.code:
            raise from_wire(result.code, result.message, result.hint)
        return result.value

    async def open(self, ttl_ns: int) -> None:
        from nokv.types.commands import OpenSession

        value = await self.raw(0, 0, OpenSession(os.urandom(16), ttl_ns))
        assert isinstance(value, SessionOpened)
        self.session = value.session

    async def run(self, op: Op) -> ResultValue | None:
        self.seq += 1
        return await self.raw(self.session, self.seq, op)

    async def read(
        self, read: Read, consistency: int = Consistency.LINEARIZABLE, max_stale_ms: int = 0
    ) -> ReadValue:
        reply = await self.connection.call(Query(Caller(), read, consistency, max_stale_ms))
        assert isinstance(reply, QueryReply)
        return reply.value


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that another process brings about; poll, because nobody tells."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"never: {what}")
        await asyncio.sleep(0.02)


async def connect(address: str, hello: Hello | None = None) -> RpcConnection:
    """Connect as soon as the node listens."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return await RpcConnection.connect(address, hello or Hello(PROTOCOL))
        except NokvError:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.05)


async def leader(addresses: Sequence[str]) -> tuple[str, RpcConnection]:
    """Return the leader's address and a connection, once there is one that has a volume."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        for address in addresses:
            try:
                connection = await RpcConnection.connect(address, Hello(PROTOCOL))
                status = await connection.call(Status(), timeout_s=5)
            except NokvError:
                continue
            assert isinstance(status, StatusReply)
            if status.role == "leader" and status.version >= 1:
                return address, connection
            await connection.close()
        await asyncio.sleep(0.05)
    raise AssertionError("no leader came")
