"""The worker process: everything of a node that touches the object store or scans the state.

It speaks RPC like any client, with the cluster's token, and only with its own node: the worker of
the node that leads does the work. A worker whose node was deposed meanwhile harms nothing: it
deletes only what is safe to delete for ever (state/DESIGN.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from nokv._guard import EXIT_REFUSED, refuse_optimised
from nokv.backup.epochs import tell_epoch
from nokv.backup.gone import check_not_gone
from nokv.errors import ConfigError, ForeignVolume, NokvError, Unavailable, from_wire
from nokv.objects.layout import volume_prefix
from nokv.objects.open import open_store
from nokv.objects.port import ObjectStore
from nokv.objects.volume import claim_volume
from nokv.server import logs
from nokv.server.backup_duties import BackupKeeper, make_scheduled
from nokv.server.collector import IDLE_PAGES_MAX, Collector
from nokv.server.config import NodeConfig
from nokv.server.datadir import NodeFile, read_identity, state_path
from nokv.server.digester import Digester
from nokv.server.process import ProcessSpec, die_with_parent
from nokv.server.tls import NodeTls, load_tls
from nokv.types.commands import COMMAND_FORMAT, Command, Op
from nokv.types.reads import (
    GetOrigin,
    GetPending,
    GetVolume,
    OriginReply,
    PendingReply,
    Read,
    ReadValue,
    VolumeReply,
)
from nokv.types.results import Result
from nokv.types.values import Caller
from nokv.wire.codec import encode_command, result_codec
from nokv.wire.connection import RpcConnection, error_of
from nokv.wire.rpc import (
    PROTOCOL,
    GcOrders,
    Hello,
    Propose,
    Query,
    QueryReply,
    ReportGc,
    RequestBody,
    ResponseBody,
    ResultsReply,
    Role,
    Status,
    StatusReply,
)

log = logging.getLogger("nokv.worker")

CALL_S: Final = 10.0
"""Deadline of one call to the node."""
STALE_PERIOD_S: Final = 3600.0
FOREIGN_S: Final = 10.0
"""Pause before a store that belongs to somebody else is looked at again."""
ORDERS_S: Final = 0.5
"""Pause between two questions whether a run of the collector is ordered."""
RUN_ROUNDS_MAX: Final = 1000
"""Rounds of an ordered run: while others go on removing, there would always be something."""
JOBS_PAUSE_S: Final = 0.05
"""An ordered run waits so between two looks at the leader's background work."""
WARN_PAUSE_S: Final = 10.0
WARN_PAUSE_MAX_S: Final = 600.0
"""Pauses between two warnings of one trouble with the store: the first, doubled up to the last."""
QUIET_S: Final = 10.0
"""A worker and its node start together: so long it is no news that the node does not answer."""
_MS: Final = 1_000_000

V = TypeVar("V")


class NodeClient:
    """The worker's connection to its own node, made anew when it ended."""

    def __init__(self, address: str, identity: NodeFile, tls: ssl.SSLContext | None = None) -> None:
        cluster = identity.cluster
        self._address = address
        self._tls = tls
        self._hello = Hello(
            PROTOCOL,
            cluster.cluster,
            cluster.volume.volume,
            Role.WORKER,
            cluster.worker_token.encode(),
            f"worker {identity.node}",
        )
        self._connection: RpcConnection | None = None

    async def call(self, body: RequestBody) -> ResponseBody:
        """Send one request. Raises every typed error."""
        if self._connection is None or self._connection.closed:
            self._connection = await RpcConnection.connect(
                self._address, self._hello, tls=self._tls
            )
        return await self._connection.call(body, timeout_s=CALL_S)

    async def leads(self) -> bool:
        """Return whether the node leads."""
        reply = await self.call(Status())
        return isinstance(reply, StatusReply) and reply.role == "leader"

    async def read(self, request: Read, kind: type[V]) -> V:
        """Read the present state, linearizably."""
        reply = await self.call(Query(Caller(), request))
        assert isinstance(reply, QueryReply), reply
        value: ReadValue = reply.value
        if not isinstance(value, kind):
            raise Unavailable(f"the node answered {type(request).__name__} with {value!r:.100}")
        return value

    async def run(self, op: Op) -> Result:
        """Run an internal command; return its result. Raises its error."""
        data = encode_command(Command(COMMAND_FORMAT, 0, 0, 0, Caller(), op))
        reply = await self.call(Propose((data,)))
        assert isinstance(reply, ResultsReply), reply
        outcome = reply.outcomes[0]
        if outcome.error is not None:
            raise error_of(outcome.error)
        result = result_codec.decode(outcome.result)
        if result.code:
            raise from_wire(result.code, result.message, result.hint)
        return result

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            await self._connection.close()


class Worker:
    """The duties of one worker process, in the running loop."""

    def __init__(
        self,
        config: NodeConfig,
        identity: NodeFile,
        store: ObjectStore,
        tls: NodeTls | None = None,
    ) -> None:
        self.config: Final = config
        self.identity: Final = identity
        self.store: Final = store
        context = None if tls is None else tls.client
        self.client: Final = NodeClient(config.rpc.listen, identity, context)
        self.collector: Final = Collector(
            self.client,
            store,
            volume=identity.cluster.volume.volume,
            grace_ns=config.worker.grace_ms * _MS,
            pace=self._pace,
            check=self._check_mine,
        )
        self._busy = False
        """Clients send commands to the node."""
        self._paced_s = 0.0
        """Until when the rows collected so far are as many as a busy node should bear."""
        self._collecting: Final = asyncio.Lock()
        """One round at a time: an ordered run, or one of the worker's own."""
        self._run = (0, 0, "")
        """(office, number, error) of the last ordered run."""
        self._claimed = False
        """The bucket is this volume's; never falls."""
        self._gone: str | None = None
        """Why this cluster must delete nothing any more: another one has the volume. Empty: none
        has. None: nothing was found out yet."""
        self._told_epoch = False
        """If this cluster is a restored one, the bucket has its owner epoch; never falls."""
        self._stale_due_s = 0.0
        self._started_s: Final = time.monotonic()
        self._seen_node = False
        """The node has answered once."""

    async def run(self) -> None:
        """Work until cancelled."""
        worker = self.config.worker
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_orders())
            await self._claim()
            tasks.create_task(self._watch_gone())
            tasks.create_task(self._repeat("collect", worker.interval_ms, self._collect))
            tasks.create_task(self._repeat("backups", worker.sweep_interval_ms, self._backups))
            tasks.create_task(self._repeat("sweep", worker.sweep_interval_ms, self._sweep))

    async def _claim(self) -> None:
        """Make the bucket and mark it as this volume's.

        Every node's worker does so at its start: all write the same, and whoever is first spares
        the clients the wait for a leader's.
        """
        warn_due_s, warn_pause_s = 0.0, WARN_PAUSE_S
        while True:
            try:
                await self.store.ensure_bucket()
                if await claim_volume(self.store, self.identity.cluster.volume.volume):
                    log.info("the object store is this volume's from now on")
                await self._look_gone()
            except ForeignVolume as error:
                log.error("the object store is not ours, nothing is collected: %s", error)
                await asyncio.sleep(FOREIGN_S)
            except NokvError as error:
                if time.monotonic() >= warn_due_s:
                    log.warning("the object store cannot be used: %s", error)
                    warn_due_s = time.monotonic() + warn_pause_s
                    warn_pause_s = min(2 * warn_pause_s, WARN_PAUSE_MAX_S)
                await asyncio.sleep(self.config.worker.interval_ms / 1000)
            else:
                if warn_due_s:
                    log.info("the object store can be used now")
                self._claimed = True
                return

    async def _look_gone(self) -> None:
        """Find out whether this cluster still has the volume. Raises NokvError if unknown."""
        try:
            await self._check_mine()
        except ForeignVolume as error:
            if not self._gone:
                log.error("%s; nothing is collected, and writes are refused", error)
            self._gone = error.message
        else:
            if self._gone:
                log.info("the volume is this cluster's again")
            self._gone = ""

    async def _watch_gone(self) -> None:
        """Look again and again: an adoption may also be a mistake, beside a cluster that runs."""
        while True:
            await asyncio.sleep(self.config.worker.sweep_interval_ms / 1000)
            with contextlib.suppress(NokvError):  # the duties tell of a store that fails
                await self._look_gone()

    async def _check_mine(self) -> None:
        cluster = self.identity.cluster
        await check_not_gone(self.store, cluster.volume.volume, cluster.cluster)

    async def _repeat(
        self, name: str, interval_ms: int, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do `work` again and again while the node leads; a typed error ends one round.

        What fails in the same way again and again is told once, and when it is over.
        """
        told = ""
        while True:
            try:
                leads = await self.client.leads()
                self._seen_node = True
                if leads:
                    await work()
            except NokvError as error:
                starting = not self._seen_node and time.monotonic() < self._started_s + QUIET_S
                level = logging.DEBUG if starting or str(error) == told else logging.INFO
                log.log(level, "%s: %s", name, error)
                told = "" if starting else str(error)
            else:
                if told:
                    log.info("%s: no trouble any more", name)
                told = ""
            await asyncio.sleep(interval_ms / 1000)

    async def _may_delete(self) -> bool:
        """Whether this cluster alone has the volume."""
        return not self._gone and (await self.client.read(GetOrigin(), OriginReply)).adopted

    async def _backups(self) -> None:
        """End backups whose time is over, let go of what ended, and make the one that is due."""
        await self._check_mine()
        keeper = BackupKeeper(
            self.client,
            self.store,
            volume=self.identity.cluster.volume.volume,
            cluster=self.identity.cluster.cluster,
            grace_ns=self.config.worker.grace_ms * _MS,
        )
        schedule = self.config.backup
        rows = await keeper.tidy(adopted=await self._may_delete(), scheduled=schedule.every_ms > 0)
        if schedule.every_ms:
            now_ms = time.time_ns() // _MS
            slot = now_ms - now_ms % schedule.every_ms
            if not keeper.made(rows, slot):
                await make_scheduled(self.config, self.identity, self.store, slot)

    async def _tell_epoch(self) -> None:
        """Leave a restored cluster's owner epoch in the bucket, for who outlives it."""
        origin = await self.client.read(GetOrigin(), OriginReply)
        if not origin.ready:
            return
        if origin.restored:
            epoch = (await self.client.read(GetVolume(), VolumeReply)).owner_epoch
            cluster = self.identity.cluster
            await tell_epoch(self.store, cluster.volume.volume, cluster.cluster, epoch)
        self._told_epoch = True

    async def _collect(self) -> None:
        if not self._told_epoch:
            await self._tell_epoch()
        if not await self._may_delete():
            return
        async with self._collecting:
            await self._counted(self.collector.collect(IDLE_PAGES_MAX))

    async def _sweep(self) -> None:
        if not await self._may_delete():
            return
        async with self._collecting:
            await self._counted(self.collector.sweep())
        if time.monotonic() >= self._stale_due_s:
            self._stale_due_s = time.monotonic() + STALE_PERIOD_S
            before_ns = time.time_ns() - self.config.worker.stale_upload_ms * _MS
            # Nothing outside: other programs keep uploads of their own in the bucket.
            prefix = volume_prefix(self.identity.cluster.volume.volume)
            removed = await self.store.abort_stale(prefix, before_ns)
            if removed:
                log.info("removed the remains of %d uploads", removed)

    async def _counted(self, work: Awaitable[int]) -> int:
        try:
            freed = await work
        except NokvError:
            self.collector.failures += 1
            raise
        self.collector.rounds += 1
        return freed

    # ------------------------------------------------------------ ordered runs

    async def _take_orders(self) -> None:
        """Tell the node what was freed, and do what an operator has ordered there."""
        told = ""
        running: asyncio.Task[None] | None = None
        while True:
            try:
                reply = await self.client.call(
                    ReportGc(self.collector.totals(), *self._run, self._gone)
                )
                assert isinstance(reply, GcOrders), reply
                told = ""
                self._busy = reply.busy
                order = (reply.office, reply.run)
                if running is not None and running.done():
                    running.result()
                    running = None
                wanted = reply.run and order != self._run[:2]
                if self._claimed and reply.leads and wanted and running is None:
                    running = asyncio.create_task(self._ordered(*order))
            except NokvError as error:
                if str(error) != told:
                    log.debug("orders: %s", error)
                told = str(error)
            await asyncio.sleep(ORDERS_S)

    async def _ordered(self, office: int, number: int) -> None:
        self._run = (office, number, await self._ordered_run())

    async def _pace(self, rows: int) -> None:
        """Wait until the node may bear more, after so many rows."""
        now_s = time.monotonic()
        self._paced_s = max(self._paced_s, now_s) + rows / self.config.worker.collect_busy_per_s
        if self._busy:
            await asyncio.sleep(self._paced_s - now_s)
        else:
            self._paced_s = now_s

    async def _ordered_run(self) -> str:
        """Free all that can go; return why that was not everything, or empty."""
        try:
            if self._gone:
                return self._gone
            if not await self._may_delete():
                return "the restored volume is not adopted: its original may need what would go"
            for _ in range(RUN_ROUNDS_MAX):
                freed = await self._free()
                waiting = await self.client.read(GetPending(), PendingReply)
                if not freed and not waiting.jobs:
                    return ""
                await asyncio.sleep(JOBS_PAUSE_S if waiting.jobs else 0)
        except NokvError as error:
            log.info("the ordered run could not end: %s", error)
            return str(error)
        return "more is removed all the time: the collector goes on by itself"

    async def _free(self) -> int:
        async with self._collecting:
            freed = await self._counted(self.collector.collect())
            return freed + await self._counted(self.collector.sweep(anew=True))


async def _serve(spec: ProcessSpec, identity: NodeFile, tls: NodeTls | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = open_store(identity.cluster.volume)
    worker = Worker(spec.config, identity, store, tls)
    digester: Digester | None = None
    if spec.channel_fd >= 0 and spec.config.worker.digest:
        end = socket.socket(fileno=spec.channel_fd)
        end.settimeout(0)
        digester = Digester(end, state_path(Path(spec.config.data_dir)))
        digester.start()  # it says that it listens: nothing slow may come before the loop turns
    running = asyncio.ensure_future(worker.run())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    running.cancel()
    results = await asyncio.gather(running, return_exceptions=True)
    if digester is not None:
        await digester.stop()
    await worker.client.close()
    await store.close()
    failure = results[0]
    if isinstance(failure, Exception):
        log.critical("the worker fails: %s", failure, exc_info=failure)
        return 1
    return 0


def main() -> int:
    """Run a worker process as the supervisor starts it; return the exit code."""
    refuse_optimised()
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProcessSpec)
    die_with_parent(spec.parent)
    identity = read_identity(Path(spec.config.data_dir))
    logging_config = spec.config.logging
    logs.configure(
        logging_config.level, logging_config.format, node=identity.node, process="worker"
    )
    try:
        tls = load_tls(spec.config.tls, identity.cluster.cluster, identity.node)
    except ConfigError as error:
        log.error("the worker does not start: %s", error)
        return EXIT_REFUSED
    return asyncio.run(_serve(spec, identity, tls))


if __name__ == "__main__":
    sys.exit(main())
