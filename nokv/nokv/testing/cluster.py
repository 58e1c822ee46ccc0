"""A cluster of real node processes for tests: free loopback ports, a folder of its own.

    from nokv.testing.cluster import LocalCluster

    with LocalCluster.start() as cluster:
        with nokv.connect_sync(cluster.addresses) as fs:
            fs.mkdir("/a")
            cluster.kill(cluster.leader())
            fs.mkdir("/b")

With pytest, the fixture `nokv_cluster` of the installed package is one such cluster of three
nodes for the whole session. The processes end with this one, however it ends.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nokv.client.admin import Admin
from nokv.errors import DeadlineExceeded, Unavailable
from nokv.testing.folder import ClusterFolder, NodePorts, Store, create
from nokv.testing.ports import free_ports, release_ports

READY_S: Final = 30.0
"""A cluster that is not ready after so long has failed."""

POLL_S: Final = 0.02
PROBE_S: Final = 10.0
"""A page that nobody has answered by then says that the node does not."""
ROUND_PROBE_S: Final = 2.0
"""For one page where all nodes are asked round and round: a paused one must not hold that up."""
STOP_S: Final = 30.0
"""A node that was told to stop and still runs is killed then."""

Settings = Mapping[str, "str | int | bool"]


def probe(address: str, path: str, timeout_s: float = PROBE_S) -> tuple[int, bytes]:
    """Return the HTTP status and body of one of a node's pages; status 0: nobody answered."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


class LocalCluster:
    """Node processes in a folder, and everything that can be done to them.

    Methods block the calling thread: from a coroutine, call them through `asyncio.to_thread`.

    Args:
        folder: a cluster that was made there.
        owned: remove the folder at the end.
        detached: the nodes go on when this process ends without `close`.
    """

    def __init__(
        self, folder: ClusterFolder, *, owned: bool = False, detached: bool = False
    ) -> None:
        self.folder: Final = folder
        self._owned = owned
        self._detached = detached
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._read_fd, self._write_fd = os.pipe()
        self._closed = False

    @classmethod
    def start(
        cls,
        nodes: int = 3,
        *,
        directory: str | os.PathLike[str] | None = None,
        store: Store | None = None,
        settings: Settings | None = None,
        tls: bool = False,
        detached: bool = False,
        timeout_s: float = READY_S,
    ) -> Self:
        """Make a cluster, start its nodes and wait until all of them are ready.

        Args:
            nodes: 1 to 7.
            directory: where; it stays. None: a temporary one, removed at the end.
            store: where bodies go; None: a directory beside the nodes.
            settings: for every `node.toml`, as `{"timing.commit_interval_ms": 100}`.
            tls: all connections are TLS; clients need `folder.environment`.
            detached: the nodes go on when this process ends without `close`.
            timeout_s: for becoming ready.

        Raises:
            Unavailable: a node ended; the message has the end of its log.
            DeadlineExceeded: not ready in time.
        """
        path = Path(directory) if directory is not None else Path(tempfile.mkdtemp(prefix="nokv-"))
        ports = free_ports(3 * nodes, random.Random())
        members = [NodePorts(i + 1, *ports[3 * i : 3 * i + 3]) for i in range(nodes)]
        cluster: Self | None = None
        try:
            folder = create(path, members, store=store, settings=settings, tls=tls)
            cluster = cls(folder, owned=directory is None, detached=detached)
            for member in members:
                cluster.start_node(member.node)
            cluster.wait_ready(timeout_s=timeout_s)
        except BaseException:
            if cluster is not None:
                cluster.close()
            release_ports(ports)
            if directory is None:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return cluster

    @property
    def members(self) -> tuple[NodePorts, ...]:
        """The nodes and their ports."""
        return self.folder.members

    @property
    def addresses(self) -> str:
        """All nodes' RPC addresses, as `nokv.connect` and NOKV_CLUSTER take them."""
        return self.folder.addresses

    @property
    def nodes(self) -> tuple[int, ...]:
        """The numbers of all nodes, running or not."""
        return tuple(member.node for member in self.members)

    # ------------------------------------------------------------ processes

    def start_node(self, node: int, environ: Mapping[str, str] | None = None) -> None:
        """Start a node that does not run; return at once. `environ` is added to its environment."""
        self.folder.wait_gone(node)
        self._processes[node] = self.folder.spawn(
            node, lifeline_fd=-1 if self._detached else self._read_fd, environ=environ
        )

    def is_running(self, node: int) -> bool:
        """Return whether the node's processes run."""
        process = self._processes.get(node)
        return process is not None and process.poll() is None

    def kill(self, node: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes of a node at once: `kill -9` unless another is named."""
        process = self._processes[node]
        if process.poll() is None:
            os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            process.wait()

    def pause(self, node: int) -> None:
        """Stop a node's processes where they are (SIGSTOP)."""
        self.kill(node, signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """Let a paused node go on (SIGCONT)."""
        self.kill(node, signal.SIGCONT)

    def stop(self, node: int) -> int:
        """Stop a node gracefully and return its exit code."""
        process = self._processes[node]
        process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill(node)
            return process.wait()

    def restart(
        self,
        node: int,
        timeout_s: float = READY_S,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Start a node that was killed or stopped, and wait until it is ready."""
        self.start_node(node, environ)
        self.wait_ready([node], timeout_s)

    def wait_exit(self, node: int, timeout_s: float = READY_S) -> int:
        """Wait until a node ends by itself; return its exit code.

        Raises:
            DeadlineExceeded: it still runs.
        """
        try:
            return self._processes[node].wait(timeout_s)
        except subprocess.TimeoutExpired:
            message = f"node {node} still runs after {timeout_s:g} s"
            raise DeadlineExceeded(message) from None

    # ------------------------------------------------------------ members

    def admin(self, timeout_s: float = READY_S) -> Admin:
        """Return an operator's connection to the cluster, to be entered in a coroutine."""
        from nokv.server.datadir import read_identity
        from nokv.wire.tls import connect_context, files_from_environment

        path = self.folder.node_path(self.members[0].node) / "data"
        token = read_identity(path).cluster.worker_token
        tls = connect_context(files_from_environment(self.folder.environment))
        return Admin(self.addresses.split(","), token, timeout_s=timeout_s, tls=tls)

    def add_node(self, settings: Settings | None = None, timeout_s: float = READY_S) -> int:
        """Make a further node, start it, and wait until it is a voter; return its number."""
        node = max(self.nodes) + 1
        member = NodePorts(node, *free_ports(3, random.Random()))
        incarnation = self.folder.add(member, settings)
        self.start_node(node)

        async def add() -> None:
            async with self.admin(timeout_s) as admin:
                await admin.add(node, incarnation, member.peer_address, member.rpc_address)
                await admin.wait_and_promote(node, timeout_s)

        asyncio.run(add())
        self.wait_ready([node], timeout_s)
        return node

    def remove_node(self, node: int, timeout_s: float = READY_S) -> None:
        """Remove a node from the cluster, running or not, and kill what of it still runs."""

        async def remove() -> None:
            async with self.admin(timeout_s) as admin:
                await admin.remove(node)

        asyncio.run(remove())
        if node in self._processes:
            self.kill(node)
            self.folder.wait_gone(node)
            del self._processes[node]
        _release(self.folder.member(node))
        self.folder.drop(node)

    # ------------------------------------------------------------ what nodes say

    def status(self, node: int, timeout_s: float = PROBE_S) -> dict[str, Any] | None:
        """Return a node's `/status`, or None if it does not answer."""
        code, body = probe(self.folder.member(node).http_address, "/status", timeout_s)
        if code != 200:
            return None
        value: dict[str, Any] = json.loads(body)
        return value

    def is_ready(self, node: int) -> bool:
        """Return whether a node's `/readyz` says yes."""
        return probe(self.folder.member(node).http_address, "/readyz", ROUND_PROBE_S)[0] == 200

    def wait_ready(self, nodes: Iterable[int] | None = None, timeout_s: float = READY_S) -> None:
        """Wait until nodes (all that were started) are ready.

        Raises:
            Unavailable: one ended; the message has the end of its log.
            DeadlineExceeded: one is not ready in time; the message has its reason.
        """
        left = list(self._processes if nodes is None else nodes)

        def ready() -> bool:
            left[:] = [node for node in left if not self._ready_or_raise(node)]
            return not left

        try:
            _wait(ready, timeout_s)
        except TimeoutError:
            reasons = []
            for node in left:
                address = self.folder.member(node).http_address
                code, body = probe(address, "/readyz", ROUND_PROBE_S)
                reason = body.decode(errors="replace").strip() if code else "no answer"
                reasons.append(f"node {node}: {reason}\n{self.folder.log_tail(node)}")
            message = f"not ready after {timeout_s:g} s: " + "\n".join(reasons)
            raise DeadlineExceeded(message) from None

    def wait_not_ready(self, node: int, timeout_s: float = READY_S) -> None:
        """Wait until a node says that it should not be asked: its last proof has grown old.

        Raises:
            DeadlineExceeded: it stays ready.
        """
        try:
            _wait(lambda: not self.is_ready(node), timeout_s)
        except TimeoutError:
            message = f"node {node} is still ready after {timeout_s:g} s"
            raise DeadlineExceeded(message) from None

    def _ready_or_raise(self, node: int) -> bool:
        if not self.is_running(node):
            code = self._processes[node].wait()
            message = f"node {node} ended with {code}:\n{self.folder.log_tail(node)}"
            raise Unavailable(message, hint=f"its log is {self.folder.log_path(node)}")
        return self.is_ready(node)

    def leader(self, timeout_s: float = READY_S) -> int:
        """Return the node that leads, as a majority of the nodes sees it; wait until there is one.

        Raises:
            DeadlineExceeded: there was none in time.
        """
        found = 0

        def known() -> bool:
            nonlocal found
            found = self._leader_now()
            return found != 0

        try:
            _wait(known, timeout_s)
        except TimeoutError:
            message = f"no leader after {timeout_s:g} s"
            raise DeadlineExceeded(message) from None
        return found

    def _leader_now(self) -> int:
        votes: dict[int, int] = {}
        leads = set()
        for node in self.nodes:
            status = self.status(node, ROUND_PROBE_S) if self.is_running(node) else None
            if status is not None:
                votes[status["leader"]] = votes.get(status["leader"], 0) + 1
                if status["role"] == "leader":
                    leads.add(node)
        for node, count in votes.items():
            if node in leads and count > len(self.nodes) // 2:
                return node
        return 0

    def followers(self) -> list[int]:
        """Return the running nodes that do not lead."""
        leader = self.leader()
        return [node for node in self.nodes if node != leader and self.is_running(node)]

    def wait_caught_up(self, node: int, timeout_s: float = READY_S) -> None:
        """Wait until a node has applied all that was committed when this was called.

        Raises:
            DeadlineExceeded: it has not in time.
        """
        target = max(
            (status["commit_index"] for n in self.nodes if (status := self.status(n)) is not None),
            default=0,
        )

        def reached() -> bool:
            status = self.status(node)
            return status is not None and status["applied_index"] >= target

        try:
            _wait(reached, timeout_s)
        except TimeoutError:
            message = f"node {node} has not applied entry {target} after {timeout_s:g} s"
            raise DeadlineExceeded(message) from None

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Kill what runs and remove the folder, if it is a temporary one."""
        if self._closed:
            return
        self._closed = True
        for node in self._processes:
            self.kill(node)
        for node in self._processes:
            self.folder.wait_gone(node)
        for member in self.members:
            _release(member)
        os.close(self._write_fd)
        os.close(self._read_fd)
        if self._owned:
            shutil.rmtree(self.folder.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _release(member: NodePorts) -> None:
    release_ports((member.peer, member.rpc, member.http))


def _wait(condition: Callable[[], bool], timeout_s: float) -> None:
    """Ask until the answer is yes. Raises TimeoutError."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(POLL_S)
