"""The shard process: one thread, one uvloop, in it replication, state machine, RPC and HTTP.

It holds the data directory's lock as long as it runs. Whatever casts doubt on what it has promised
ends the process at once, with `EXIT_FATAL` and a log line: what was promised is on disk, and the
next process starts from there.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from nokv._guard import refuse_optimised
from nokv.errors import (
    ConfigError,
    DataDirectoryError,
    NokvError,
    NotLeader,
    NotReady,
    SessionExpired,
)
from nokv.kv.errors import StoreBusy, StoreFailed
from nokv.kv.lmdb_store import LmdbKV
from nokv.server import logs
from nokv.server.backups import BackupImages
from nokv.server.config import NodeConfig, reserve_warning
from nokv.server.datadir import (
    lock,
    log_path,
    read_identity,
    replication_identity,
    state_path,
)
from nokv.server.digests import Digests
from nokv.server.gc_desk import GcDesk
from nokv.server.http import HttpServer
from nokv.server.leader import TICK_MS, LeaderDuties
from nokv.server.machine import MachinePort
from nokv.server.membership import Membership, PeerNetwork, configured_members
from nokv.server.process import ProcessSpec, die_with_parent
from nokv.server.rpc import RpcServer
from nokv.server.service import Service, Space
from nokv.server.sessions import SessionAges
from nokv.server.tls import load_tls
from nokv.server.views import NodeView
from nokv.server.watches import Watches
from nokv.state.machine import Incompatible, StateMachine
from nokv.types.commands import InitVolume
from nokv.types.formats import STATE_FORMAT
from nokv.types.locks import LockOutcome
from nokv.wire.address import format_address, parse_address
from nokv_replication import (
    ConfigurationError,
    Fatal,
    Group,
    GroupConfig,
    ReadOutcome,
    Role,
    Status,
)
from nokv_replication.disk import OsDisk
from nokv_replication.driver import EXIT_FATAL, Driver, SystemClock

log = logging.getLogger("nokv.shard")

EXIT_REFUSED: Final = 2
"""The configuration, the data directory or the machine is refused: trying again cannot help."""

HOUSEKEEPING_S: Final = 1.0
"""Free space, freshness and dead readers are looked at so often."""

HAND_OVER_S: Final = 1.0
"""A leader that is told to stop waits so long for another one to take over."""

_READER_CHECK_ROUNDS: Final = 30
_EXPIRY_ROUNDS: Final = 86_400
"""A certificate that ends soon is warned of at the start and once a day."""
_MS: Final = 1_000_000


def group_config(config: NodeConfig) -> GroupConfig:
    """Return replication's settings."""
    timing = config.timing
    return GroupConfig(
        heartbeat_ns=timing.heartbeat_ms * _MS,
        election_min_ns=timing.election_min_ms * _MS,
        election_max_ns=timing.election_max_ms * _MS,
        commit_interval_ns=timing.commit_interval_ms * _MS,
        segment_bytes=config.log.segment_bytes,
        log_keep_bytes=config.log.keep_bytes,
        image_bytes_per_second=config.images.bytes_per_second,
        image_log_bytes=config.images.log_bytes,
    )


class Shard:
    """One replica with everything around it, in the running loop."""

    def __init__(self, config: NodeConfig, channel_end: socket.socket | None) -> None:
        """Open the data directory. Raises DataDirectoryError, ConfigError, StoreFailed, Fatal."""
        data_dir = Path(config.data_dir)
        self.config: Final = config
        self.identity: Final = read_identity(data_dir)
        self._lock_fd = lock(data_dir)
        self._loop = asyncio.get_running_loop()
        self._channel_end = channel_end
        self._rng = random.Random(secrets.randbits(128))
        configured, overriding = configured_members(self.identity, config)
        self.tls: Final = load_tls(config.tls, self.identity.cluster.cluster, self.identity.node)
        try:
            self.kv: Final = LmdbKV(state_path(data_dir))
        except StoreBusy as error:
            raise DataDirectoryError(f"{data_dir} is in use: {error}") from error
        self.port: Final = MachinePort(StateMachine(self.kv), self.kv)
        self._disk = OsDisk(log_path(data_dir))
        peers = {node: member.peer for node, member in configured.items()}
        # Of a node that joins later: whom to ask first.
        founders = {member.node: peers[member.node] for member in self.identity.cluster.members}
        try:
            self.network: Final = PeerNetwork(
                self.identity.node,
                config.peer.listen,
                {node: peers[node] for node in overriding} | founders,
                self._rng,
                tls=None if self.tls is None else self.tls.peers,
            )
            self.network.overriding = {node: peers[node] for node in overriding}
            self.group: Final = Group(
                identity=replication_identity(self.identity),
                addresses=founders,
                config=group_config(config),
                machine=self.port,
                disk=self._disk,
                network=self.network,
                clock=SystemClock(),
                rng=self._rng,
                machine_format=STATE_FORMAT,
                needed_machine_format=lambda: self.port.machine.format,
                on_role_change=self._role_changed,
                free_bytes=lambda: self.free_bytes,
            )
        except ConfigurationError as error:
            raise ConfigError(str(error)) from error
        self.membership: Final = Membership(
            self.group, self.identity.node, configured, overriding, tls=self.tls is not None
        )
        self.free_bytes = self._disk.free_bytes()
        """Free for state and log: file system, free pages of LMDB, log that may be dropped."""
        self.role = Role.FOLLOWER
        self.stopping = False
        self.service: Final = self._make_service()
        self.driver: Final = Driver(self.group, self.network)
        self.rpc: Final = RpcServer(config.rpc, self.service, self.tls)
        view = NodeView(self)
        self.service.not_ready = view.not_ready
        self.http: Final = HttpServer(config.http, view)
        self._rounds = 0
        self._timers: list[asyncio.TimerHandle] = []

    def _make_service(self) -> Service:
        machine = self.port.machine
        ages = SessionAges(machine.live_sessions())
        self.digests = Digests(self.port, self._channel_end, time.monotonic)
        self.backups = BackupImages(self.kv, self.identity.node, time.monotonic)
        self.watches = Watches(machine, lambda: self.port.between_entries)
        self.duties = LeaderDuties(
            machine=machine,
            ages=ages,
            propose=self.group.propose,
            cluster_ns=self.group.cluster_ns,
            config=self.config.sessions,
            init_volume=self._init_volume,
            common_format=self.membership.common_format,
            disks_full=lambda: self.space.exhausted,
            disks_low=lambda: self.space.low,
        )
        self.ages = ages
        self.space = Space(self.config.disk.reserve_bytes)
        self.port.effects = self
        service = Service(
            group=self.group,
            port=self.port,
            identity=self.identity,
            membership=self.membership,
            duties=self.duties,
            ages=ages,
            digests=self.digests,
            space=self.space,
            backups=self.backups,
            watches=self.watches,
            gc=GcDesk(self.config.worker.grace_ms * 1_000_000),
            build=build_version(),
        )
        service.leader_node = self.leader
        return service

    def _init_volume(self) -> InitVolume:
        cluster = self.identity.cluster
        # Session ids are epoch * 2**32 + counter and stay below 2**63.
        epoch = 1 + secrets.randbelow((1 << 31) - 1)
        return InitVolume(cluster.volume, epoch, 0o755, cluster.root_uid, cluster.root_gid)

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen everywhere and begin to step. Raises ConfigError if an address is taken."""
        try:
            await self.driver.start()
            host, port = await self.rpc.start(*parse_address(self.config.rpc.listen))
            http = await self.http.start()
        except OSError as error:
            message = f"cannot listen: {error.strerror or error}"
            raise ConfigError(message, hint="is the port taken? see peer, rpc and http") from error
        if self._channel_end is not None:
            self._loop.add_reader(self._channel_end.fileno(), self._channel_readable)
        self._loop.call_soon(self._tick)
        self._loop.call_soon(self._keep_house)
        if reserve_warning(self.config):
            log.warning("%s", reserve_warning(self.config))
        fields = {"rpc": format_address(host, port), "http": http, "pid": os.getpid()}
        log.info("node serves", extra={"fields": fields})

    async def stop(self) -> None:
        """Finish what is open, commit, and close."""
        self.stopping = True
        log.info("node stops")
        self.service.lock_waits.fail_all(NotReady("this node is stopping"))
        if self.role == Role.LEADER:
            await self.membership.hand_over(HAND_OVER_S)
        self.watches.close()
        await self.rpc.stop(self.config.timing.stop_ms / 1000)
        await self.http.stop()
        for timer in self._timers:
            timer.cancel()
        if self._channel_end is not None:
            self._loop.remove_reader(self._channel_end.fileno())
        self.port.hold_until = None
        self.backups.close_all()
        await self.driver.close()
        self.kv.close()
        os.close(self._lock_fd)

    # ------------------------------------------------------------ leadership

    def leader(self) -> int | None:
        """Return who leads as far as this node knows."""
        return self.identity.node if self.role == Role.LEADER else self.group.status().leader

    def _role_changed(self, role: Role, term: int, reason: str) -> None:
        """Log it; duties begin once leadership is confirmed and the term's entry applied."""
        was, self.role = self.role, role
        fields = {"role": role.name.lower(), "term": term, "was": was.name.lower()}
        log.info("role changes: %s", reason, extra={"fields": fields})
        if self.duties.active:
            self.duties.step_down()
        self.service.lock_waits.fail_all(NotLeader("the leader changes"))
        if role == Role.LEADER:
            self._loop.call_soon(self._ask_for_office, term)

    def _ask_for_office(self, term: int) -> None:
        def confirmed(outcome: ReadOutcome) -> None:
            if isinstance(outcome, int) and self.role == Role.LEADER and not self.duties.active:
                log.debug("leader takes office", extra={"fields": {"term": term}})
                self.duties.take_office()

        if self.role == Role.LEADER and not self.stopping:
            self.group.read_index(confirmed)

    # ------------------------------------------------------------ effects of entries

    def session_live(self, session: int, ttl_ns: int) -> None:
        """A session was opened."""
        self.ages.opened(session, ttl_ns, self.group.cluster_ns())

    def session_dead(self, session: int) -> None:
        """A session ended."""
        self.ages.ended(session)
        self.service.lock_waits.fail(session, SessionExpired(f"session {session:016x} has ended"))

    def lock_wait_over(self, session: int, ticket: int, granted: bool) -> None:  # noqa: FBT001
        """A request for a lock waits no more."""
        outcome = LockOutcome(ticket, granted)
        self.service.lock_waits.over(session, outcome, self.port.machine.version)

    def checkpoint(self, number: int, applied_index: int, version: int) -> None:
        """A checkpoint is committed."""
        self.digests.reached(number, applied_index, version)

    def backup(self, backup: int, node: int) -> None:
        """A backup was made."""

        def commit() -> None:
            self.port.hold_until = None
            self.port.commit()

        self.backups.reached(backup, node, commit)

    def state_replaced(self) -> None:
        """A state image was installed: nothing known of the old state holds."""
        machine = self.port.machine
        self.ages.reload(machine.live_sessions())
        self.service.lock_waits.fail_all(NotReady("this node took over another state"))
        self.backups.close_all()
        self.digests.state_replaced()
        self.watches.state_replaced()
        position = machine.applied()
        fields = {"index": position.index, "term": position.term, "version": machine.version}
        log.info("a state image is installed", extra={"fields": fields})

    def applied(self) -> None:
        """An entry was applied: whoever watches is told in this turn of the loop's queue."""
        self.watches.applied()

    # ------------------------------------------------------------ timers

    def _later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(delay_s, callback))

    def _tick(self) -> None:
        if self.stopping:
            return
        self._later(TICK_MS / 1000, self._tick)
        if self.role == Role.LEADER and not self.duties.active:
            self._ask_for_office(self.group.status().term)
        self.digests.tick()
        self.backups.tick()
        self.service.lock_waits.tick(self.port.machine.version, time.monotonic())
        if self.watches.count:
            self.watches.tick(self._loop.time(), self.service.not_ready())
        if self.port.between_entries:
            self.duties.tick()
        machine = self.port.machine
        # Ended bodies wait for the grace, sessions and tombstones for their end.
        graced = machine.counters.drops > 0 or machine.counters.sessions > 0
        waiting = self.duties.waits_for_time or graced or machine.has_backups()
        self.group.set_waiting(self.duties.active and waiting and not self.space.exhausted)

    def _keep_house(self) -> None:
        """Measure free space, confirm freshness, and free what dead readers hold."""
        if self.stopping:
            return
        self._later(HOUSEKEEPING_S, self._keep_house)
        status = self.group.status()
        self._measure_space(status)
        asked_s = time.monotonic()

        def confirmed(outcome: ReadOutcome) -> None:
            if isinstance(outcome, int):
                self.service.freshness.confirmed(asked_s)

        self.group.read_index(confirmed)
        if self.tls is not None and not self._rounds % _EXPIRY_ROUNDS and self.tls.warning():
            log.warning("%s", self.tls.warning())
        self._rounds += 1
        if not self._rounds % _READER_CHECK_ROUNDS:
            self.kv.reader_check()

    def _measure_space(self, status: Status) -> None:
        try:
            disk_bytes = self._disk.free_bytes()
        except OSError as error:
            self.fail(error)
            return
        self.free_bytes = disk_bytes + self.kv.free_bytes() + status.droppable_bytes
        # A peer that has not acknowledged anything yet has told nothing.
        voters = self.membership.voters()
        told = [p.free_bytes for p in status.peers if p.match_index and p.node in voters]
        # Log that is kept for others counts as free, so it goes as soon as the space is needed.
        self.group.set_keeping_log(disk_bytes >= self.config.disk.reserve_bytes)
        # A follower that is low alone stops storing; the leader's quorum goes on without it.
        self.group.set_accepting(self.free_bytes >= self.config.disk.reserve_bytes // 2)
        was_low = self.space.low
        self.space.judge(self.free_bytes, told, len(voters))
        if self.space.low != was_low:
            fields = {"free_bytes": self.free_bytes, "low": self.space.low}
            log.warning("disk space is %s", "low" if self.space.low else "enough again",
                        extra={"fields": fields})  # fmt: skip

    def _channel_readable(self) -> None:
        assert self._channel_end is not None
        try:
            self.digests.readable()
        except (EOFError, OSError, msgspec.DecodeError) as error:
            log.warning("the channel to the worker ended: %r", error)
            self._loop.remove_reader(self._channel_end.fileno())

    # ------------------------------------------------------------ failure

    def fail(self, error: BaseException) -> None:
        """End the process: nothing in memory may be trusted."""
        log.critical("the shard process stops: %s", error, exc_info=error)
        _exit_at_once(EXIT_FATAL)


def build_version() -> str:
    """Return the installed version of NoKV."""
    try:
        return importlib.metadata.version("nokv")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def _exit_at_once(code: int) -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(code)


async def _serve(spec: ProcessSpec) -> int:
    loop = asyncio.get_running_loop()
    end = socket.socket(fileno=spec.channel_fd) if spec.channel_fd >= 0 else None
    if end is not None:
        end.settimeout(0)
    try:
        shard = Shard(spec.config, end)
    except (NokvError, StoreFailed, Incompatible, Fatal) as error:
        log.critical("the node does not start: %s", error)
        refused = isinstance(error, NokvError | Incompatible)
        return EXIT_REFUSED if refused else EXIT_FATAL
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, StoreFailed | MemoryError | AssertionError):
            shard.fail(error)
        loop.default_exception_handler(context)

    loop.set_exception_handler(on_exception)
    try:
        await shard.start()
    except NokvError as error:
        log.critical("the node does not start: %s", error)
        return EXIT_REFUSED
    # What is alive now stays alive: the collector need not look at it again. Requests leave few
    # cycles behind, so it may look at the rest less often than after every 700 objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    await stop.wait()
    try:
        await shard.stop()
    except BaseException as error:  # noqa: BLE001 - a failed last commit is a crash like any other
        shard.fail(error)
    return 0


def main() -> int:
    """Run a shard process as the supervisor starts it; return the exit code."""
    refuse_optimised()
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProcessSpec)
    die_with_parent(spec.parent)
    identity = read_identity(Path(spec.config.data_dir))
    logs.configure(
        spec.config.logging.level, spec.config.logging.format, node=identity.node, process="shard"
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(spec))


if __name__ == "__main__":
    sys.exit(main())
