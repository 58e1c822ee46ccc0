"""Which node to ask: connections, the leader, and where a read goes.

A router keeps at most one connection to each node, learns further nodes from their answers, and
finds the leader by asking all of them. A node that answers nothing is found out by pings, so a
stopped process costs a read PING_INTERVAL_S + PING_TIMEOUT_S at most and not its whole deadline.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

from nokv.client.clock import boot_ns
from nokv.client.nodes import NODES_MAX, Node, Nodes
from nokv.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    InvalidArgument,
    NokvError,
    NotLeader,
    NotReady,
    Overloaded,
    Unavailable,
    WrongCluster,
)
from nokv.types.reads import GetVolume, VolumeReply
from nokv.types.values import Caller
from nokv.wire.address import parse_address
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import (
    PROTOCOL,
    Consistency,
    Hello,
    Ping,
    Query,
    QueryReply,
    RequestBody,
    ResponseBody,
    Role,
    Status,
    StatusReply,
)

log = logging.getLogger("nokv.client")

CONNECT_TIMEOUT_S: Final = 2.0
PROBE_TIMEOUT_S: Final = 1.0
"""For one node's answer to who leads."""
CLAIM_WAIT_S: Final = 0.05
"""For the other nodes' answers once one claims to lead."""
READ_ATTEMPT_S: Final = 5.0
"""For one node's answer to a read; then another node is asked."""
VOLUME_STALE_MS: Final = 3_600_000
"""The volume record never changes."""
MEMBERS_INTERVAL_S: Final = 5.0
"""Between two questions for the members; a client also asks whenever it looks for the leader."""
PING_INTERVAL_S: Final = 0.3
PING_TIMEOUT_S: Final = 1.0
BACKOFF_MIN_S: Final = 0.02
BACKOFF_MAX_S: Final = 1.0

_PASSING = (Unavailable, DeadlineExceeded, NotReady, Overloaded, NotLeader)
"""Errors of a read that another node, or the same one a little later, may not have."""


def parse_cluster(text: str) -> tuple[str, ...]:
    """Return the addresses of a comma-separated list, as NOKV_CLUSTER holds it.

    Raises:
        ConfigError: the list is empty or an entry is no `host:port`.
    """
    addresses = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not addresses:
        message = "no node address is given"
        raise ConfigError(message, hint="set NOKV_CLUSTER=host:port,host:port,...")
    if len(addresses) > NODES_MAX:
        message = f"{len(addresses)} node addresses; the limit is {NODES_MAX}"
        raise ConfigError(message)
    for address in addresses:
        try:
            parse_address(address)
        except InvalidArgument as error:
            raise ConfigError(error.message, hint=error.hint) from None
    return addresses


def backoff_s(attempt: int, rng: random.Random) -> float:
    """Return the pause before retry number `attempt` (from 1), with full jitter; 0 for none."""
    if attempt <= 0:
        return 0.0
    return rng.uniform(0.0, min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(attempt, 16)))


class Router:
    """The nodes of one cluster. Belongs to one event loop; every method but `close` may raise.

    Args:
        addresses: where to begin; at least one.
        cluster: refuse nodes of any other cluster id; empty takes the first answer's.
        agent: what the client calls itself in the nodes' logs.
        rng: for jitter and order.
        tls: for every connection; None: in the clear.
        token: the cluster's, of an operator's tool; empty: an ordinary client.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        cluster: str = "",
        agent: str = "",
        rng: random.Random | None = None,
        tls: ssl.SSLContext | None = None,
        token: bytes = b"",
    ) -> None:
        self.cluster = cluster
        self.volume: VolumeReply | None = None
        """The volume record, once a node that has one answered."""
        self.on_leader: Callable[[], None] | None = None
        """Called when a leader was found."""
        self._agent = agent
        self._tls = tls
        self._token = token
        self._rng = rng or random.Random()
        self._nodes = Nodes(addresses)
        self._leader: Node | None = None
        self._finding: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    # ------------------------------------------------------------ life

    async def start(self, timeout_s: float) -> None:
        """Connect to some node that knows its volume.

        Raises:
            Unavailable: none answered in time; the message has each node's reason.
            WrongCluster: a node answered and belongs to another cluster.
            Forbidden: the token is not the cluster's.
        """
        loop = asyncio.get_running_loop()
        self._watch = loop.create_task(self._ping_forever(), name="nokv-router-watch")
        end = loop.time() + timeout_s
        attempt = 0
        errors: dict[str, NokvError] = {}
        while True:
            # The last round may be too short for answers: a node's reason holds until its next.
            left_s = max(0.05, end - loop.time())
            errors |= await self._connect_all(min(CONNECT_TIMEOUT_S, left_s))
            if self.volume is None:
                await self._ask_for_volume()
            if self.volume is not None:
                return
            attempt += 1
            pause = backoff_s(attempt, self._rng)
            if loop.time() + pause >= end:
                raise self._unreachable(tuple(errors.values()))
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """End all connections; what is open on them raises Unavailable."""
        self._closed = True
        openings = [node.opening for node in self._nodes]
        tasks = [task for task in (self._watch, self._finding, *openings) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in self._nodes:
            if node.connection is not None:
                await node.connection.close()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are known."""
        return tuple(self._nodes)

    def find_node(self, which: int | str) -> Node:
        """Return a node by its number or address.

        Raises:
            InvalidArgument: no node of that name has been heard of.
        """
        return self._nodes.find(which)

    # ------------------------------------------------------------ connections

    async def connection(self, node: Node) -> RpcConnection:
        """Return the node's open connection, or make one; attempts are shared.

        Raises:
            Unavailable, WrongCluster, Forbidden, BadRequest: as `RpcConnection.connect`.
        """
        live = node.live
        if live is not None:
            return live
        if self._closed:
            message = "the client is closed"
            raise Unavailable(message)
        return await asyncio.shield(node.opening or self._begin_opening(node))

    def _begin_opening(self, node: Node) -> asyncio.Task[RpcConnection]:
        task = asyncio.get_running_loop().create_task(
            self._open(node), name=f"nokv-connect-{node.address}"
        )
        node.opening = task
        task.add_done_callback(lambda done: _forget(node, done))
        return task

    async def _open(self, node: Node) -> RpcConnection:
        role = Role.ADMIN if self._token else Role.CLIENT
        hello = Hello(PROTOCOL, self.cluster, role=role, token=self._token, agent=self._agent[:255])
        try:
            connection = await RpcConnection.connect(
                node.address, hello, timeout_s=CONNECT_TIMEOUT_S, tls=self._tls
            )
        except NokvError:
            self._rest(node)
            raise
        reply = connection.hello
        if self.cluster and reply.cluster != self.cluster:
            await connection.close()
            message = f"{node.address} belongs to cluster {reply.cluster}, not {self.cluster}"
            raise WrongCluster(message, hint="give the addresses of one cluster only")
        self.cluster = reply.cluster
        self.volume = self.volume or reply.volume
        node.connection = connection
        node.failures = 0
        node.rest_until_s = 0.0
        self._nodes.answered(node, reply.node)
        for other in reply.nodes:
            self._nodes.learn(other.node, other.address)
        if reply.leader and self.leader is None:
            self._leader = self._nodes.resolve(reply.leader)
        return connection

    def _take_members(self, status: StatusReply) -> None:
        """Learn the members that a node knows; what a leader no longer has is forgotten."""
        if status.role != "leader":
            for member in status.members:
                self._nodes.learn(member.node, member.rpc)
            return
        for node in self._nodes.keep(status.members) if status.members else ():
            if node is self._leader:
                self._leader = None
            if node.live is not None:
                node.live.abort()

    def _rest(self, node: Node) -> None:
        node.failures += 1
        now = asyncio.get_running_loop().time()
        node.rest_until_s = now + backoff_s(node.failures + 2, self._rng)

    async def _connect_all(self, timeout_s: float) -> dict[str, NokvError]:
        """Try every node; return once one told its volume, or all failed, or the time is over.

        Returns address to why there is no connection, of the nodes whose attempt is over.
        """
        nodes = self.nodes
        tasks = [asyncio.ensure_future(self.connection(node)) for node in nodes]
        try:
            async with asyncio.timeout(timeout_s):
                for next_done in asyncio.as_completed(tasks):
                    try:
                        await next_done
                    except NokvError:
                        continue
                    if self.volume is not None:
                        break
        except TimeoutError:
            pass
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        ended = zip(nodes, results, strict=True)
        errors = {node.address: error for node, error in ended if isinstance(error, NokvError)}
        for error in errors.values():
            if isinstance(error, WrongCluster | BadRequest | Forbidden) and self.volume is None:
                raise error
        return errors

    async def _ask_for_volume(self) -> None:
        """Ask the nodes that had no volume yet when they were connected."""
        for node in self.nodes:
            connection = node.live
            if connection is None or self.volume is not None:
                continue
            try:
                query = Query(Caller(), GetVolume(), Consistency.BOUNDED, VOLUME_STALE_MS)
                reply = await connection.call(query, timeout_s=PROBE_TIMEOUT_S)
            except NokvError:
                continue
            if isinstance(reply, QueryReply) and isinstance(reply.value, VolumeReply):
                self.volume = reply.value

    def _unreachable(self, errors: Sequence[NokvError]) -> NokvError:
        if any(node.live for node in self.nodes):
            message = "the cluster has no volume yet"
            return NotReady(message, hint="wait until a majority of its nodes runs: nokv status")
        reasons = "; ".join(error.message for error in islice(errors, 8)) or "no answer"
        message = f"no node of {self._nodes.addresses} could be reached: {reasons}"
        # A node that does not answer says little; one that ends a connection says more.
        hints = (error.hint for error in errors)
        telling = (hint for hint in hints if hint and hint != Unavailable.default_hint)
        return Unavailable(message, hint=next(telling, ""))

    # ------------------------------------------------------------ leader

    @property
    def leader(self) -> RpcConnection | None:
        """The connection to the leader, as far as is known; None: find it first."""
        return self._leader.live if self._leader is not None else None

    def doubt(self, connection: RpcConnection, error: NokvError) -> None:
        """Take note that `connection` is not, or may no longer be, the leader's."""
        node = self._leader
        if node is None or (node.connection is not None and node.connection is not connection):
            return
        self._leader = None
        if isinstance(error, NotLeader) and connection.leader:
            hinted = self._nodes.resolve(connection.leader)
            if hinted is not node:
                self._leader = hinted

    def doubt_leader(self) -> None:
        """Look for the leader anew before the next call: the one that is known does not lead."""
        self._leader = None

    async def find_leader(self, timeout_s: float) -> RpcConnection:
        """Return a connection to the node that leads.

        Raises:
            Unavailable: no leader was found in time.
        """
        live = self.leader
        if live is not None:
            return live
        if self._finding is None:
            self._finding = asyncio.get_running_loop().create_task(
                self._find_forever(), name="nokv-find-leader"
            )
            self._finding.add_done_callback(self._found)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._finding)
        except TimeoutError:
            pass
        live = self.leader
        if live is None:
            message = f"no leader was found among {self._nodes.addresses} within {timeout_s:g} s"
            raise Unavailable(message)
        return live

    def _found(self, task: asyncio.Task[None]) -> None:
        self._finding = None
        if not task.cancelled() and task.exception() is None and self.on_leader is not None:
            self.on_leader()

    async def _find_forever(self) -> None:
        attempt = 0
        while True:
            hinted = self._leader
            if hinted is not None:
                try:
                    await self.connection(hinted)
                except NokvError:
                    self._leader = None
                else:
                    return
            self._leader = await self._ask_for_leader()
            if self._leader is None:
                attempt += 1
                await asyncio.sleep(backoff_s(attempt + 1, self._rng))

    async def _ask_for_leader(self) -> Node | None:
        """Ask all nodes at once; the claim of the highest term wins.

        Once a node says that it leads itself, those that have not answered get CLAIM_WAIT_S more.
        """
        loop = asyncio.get_running_loop()
        asked = {loop.create_task(self._status(node)): node for node in self.nodes}
        waiting = set(asked)
        end = loop.time() + PROBE_TIMEOUT_S
        best: tuple[int, bool] = (-1, False)
        found: Node | None = None
        while waiting and loop.time() < end:
            done, waiting = await asyncio.wait(
                waiting, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                status = task.result()
                if status is None:
                    continue
                own = status.role == "leader"
                named = asked[task] if own else None
                if named is None and status.leader_address:
                    named = self._nodes.resolve(status.leader_address)
                if named is not None and (status.term, own) > best:
                    best, found = (status.term, own), named
            if best[1]:
                end = min(end, loop.time() + CLAIM_WAIT_S)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return found

    async def _status(self, node: Node) -> StatusReply | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                connection = await self.connection(node)
                reply = await connection.call(Status(), timeout_s=PROBE_TIMEOUT_S)
        except (NokvError, TimeoutError):
            return None
        if not isinstance(reply, StatusReply):
            return None
        self._take_members(reply)
        return reply

    async def call_leader(self, body: RequestBody, timeout_s: float) -> ResponseBody:
        """Send a request that may be repeated to the leader, whichever node that is.

        Raises:
            Unavailable, DeadlineExceeded: no leader answered in time.
            NokvError: what the leader answered.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        attempt = 0
        while True:
            connection = await self.find_leader(max(0.001, end - loop.time()))
            left_s = max(0.001, end - loop.time())
            try:
                return await connection.call(body, timeout_s=min(left_s, READ_ATTEMPT_S))
            except _PASSING as error:
                self.doubt(connection, error)
                pause = backoff_s(attempt, self._rng)
                if loop.time() + pause >= end:
                    if isinstance(error, NotLeader):
                        raise Unavailable(f"no node leads after {timeout_s:g} s") from None
                    raise
                attempt += 1
                await asyncio.sleep(pause)

    # ------------------------------------------------------------ reads

    def pick(self) -> RpcConnection | None:
        """Return the connection with the fewest open calls; the leader's if there are several."""
        best = self.leader
        if best is not None and best.in_flight == 0:
            return best
        now = asyncio.get_running_loop().time()
        for node in self._nodes:
            live = node.live
            if live is None or node.rest_until_s > now:
                continue
            if best is None or live.in_flight < best.in_flight:
                best = live
        return best

    async def query(self, query: Query, timeout_s: float, node: Node | None = None) -> QueryReply:
        """Return the answer to a read from some node, or from `node` alone.

        Raises:
            DeadlineExceeded, Unavailable: no node answered in time.
            NokvError: what the read itself answered.
        """
        connection = self.pick() if node is None else node.live
        if connection is not None:
            try:
                reply = await connection.call(query, timeout_s=min(timeout_s, READ_ATTEMPT_S))
            except _PASSING as error:
                return await self._query_again(query, timeout_s, node, connection, error)
            if isinstance(reply, QueryReply):
                return reply
            message = f"{connection.address} answered a read with {type(reply).__name__}"
            raise Unavailable(message)
        return await self._query_again(query, timeout_s, node, None, None)

    async def _query_again(
        self,
        query: Query,
        timeout_s: float,
        only: Node | None,
        failed: RpcConnection | None,
        error: NokvError | None,
    ) -> QueryReply:
        """Go round the nodes until one answers; `timeout_s` counts from now at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        attempt = 0
        reasons: dict[str, str] = {}
        if failed is not None and error is not None:
            reasons[failed.address] = error.message
        while True:
            for node in self._order(failed) if only is None else (only,):
                left_s = end - loop.time()
                if left_s <= 0:
                    raise _no_answer(reasons)
                try:
                    async with asyncio.timeout(left_s):
                        connection = await self.connection(node)
                    left_s = max(0.001, end - loop.time())
                    reply = await connection.call(query, timeout_s=min(left_s, READ_ATTEMPT_S))
                except _PASSING as passed:
                    reasons[node.address] = passed.message
                    self._rest(node)
                except TimeoutError:
                    reasons[node.address] = "no connection in time"
                    self._rest(node)
                else:
                    node.failures = 0
                    if isinstance(reply, QueryReply):
                        return reply
                    reasons[node.address] = f"answered with {type(reply).__name__}"
            attempt += 1
            failed = None
            pause = backoff_s(attempt, self._rng)
            if loop.time() + pause >= end:
                raise _no_answer(reasons)
            await asyncio.sleep(pause)

    def _order(self, failed: RpcConnection | None) -> list[Node]:
        """Nodes in the order to try: rested ones, the leader first, the failed one last."""
        now = asyncio.get_running_loop().time()

        def rank(node: Node) -> tuple[bool, bool, bool, bool, float]:
            just_failed = failed is not None and node.connection is failed
            resting = node.rest_until_s > now
            return (
                just_failed,
                resting,
                node is not self._leader,
                node.live is None,
                self._rng.random(),
            )

        return sorted(self._nodes, key=rank)

    # ------------------------------------------------------------ liveness

    async def _ping_forever(self) -> None:
        """Close connections whose node answers nothing; connect to nodes that have none."""
        loop = asyncio.get_running_loop()
        members_due_s = loop.time() + MEMBERS_INTERVAL_S
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            if loop.time() >= members_due_s:
                members_due_s = loop.time() + MEMBERS_INTERVAL_S
                await self._ask_for_members()
            for node in self.nodes:
                if node.live is None and node.opening is None and node.rest_until_s <= loop.time():
                    self._begin_opening(node)
            busy = (node for node in self.nodes if node.live is not None)
            waiting = [node for node in busy if (c := node.live) and (c.in_flight or c.streams)]
            await asyncio.gather(*(self._ping(node) for node in waiting))

    async def _ask_for_members(self) -> None:
        """Hear of members that were added or removed before those that are known are gone."""
        known = [node for node in self.nodes if node.live is not None]
        if known:
            leads = self._leader if self._leader in known else None
            await self._status(leads or self._rng.choice(known))

    async def _ping(self, node: Node) -> None:
        connection = node.live
        if connection is None:
            return
        started_ns = boot_ns()
        try:
            await connection.call(Ping(), timeout_s=PING_TIMEOUT_S)
        except (Unavailable, DeadlineExceeded):
            waited_ms = (boot_ns() - started_ns) // 1_000_000
            log.info("%s answered no ping in %d ms: reconnecting", node.address, waited_ms)
            self._rest(node)
            self.doubt(connection, Unavailable(f"{node.address} does not answer"))
            await connection.close()
        except NokvError:
            return


def _no_answer(reasons: Mapping[str, str]) -> Unavailable:
    """Return the error of a read that no node answered, with each node's reason."""
    told = "; ".join(f"{address}: {reason}" for address, reason in reasons.items())
    return Unavailable(f"no node answered the read in time: {told or 'none is connected'}")


def _forget(node: Node, task: asyncio.Task[RpcConnection]) -> None:
    """Drop a finished attempt; mark its error as seen even if nobody waits any more."""
    if node.opening is task:
        node.opening = None
    if not task.cancelled():
        task.exception()
