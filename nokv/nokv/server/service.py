"""What requests mean: commands to the log, reads after a ReadIndex, renewals, status, digests."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from typing import Final

from nokv.errors import (
    BadRequest,
    Forbidden,
    ForeignVolume,
    Internal,
    InvalidArgument,
    NokvError,
    NoSpace,
    NotLeader,
    NotReady,
    SessionExpired,
    TooLarge,
    UnknownSession,
    WrongCluster,
)
from nokv.kv.errors import StoreFailed
from nokv.server.backups import BackupImages
from nokv.server.datadir import NodeFile
from nokv.server.digests import Digests
from nokv.server.gc_desk import GcDesk
from nokv.server.leader import LeaderDuties
from nokv.server.lock_waits import LockWaits
from nokv.server.machine import MachinePort
from nokv.server.mapping import proposal_error, read_error
from nokv.server.membership import Change, Membership, for_operators
from nokv.server.rpc import Call, error_reply
from nokv.server.sessions import SessionAges
from nokv.server.watches import Watches
from nokv.types.commands import (
    INTERNAL_OPS,
    OPERATOR_OPS,
    SHRINKING_OPS,
    Command,
    ExpireSession,
    RaiseFormat,
)
from nokv.types.formats import STATE_FORMAT, needed_format
from nokv.types.limits import BATCH_MAX, LEASES_MAX, UINT63_MAX
from nokv.types.locks import LocksWaited, WaitLocks
from nokv.types.values import Marks
from nokv.wire.codec import decode_command
from nokv.wire.rpc import (
    PROTOCOL,
    CloseBackup,
    Consistency,
    Hello,
    HelloReply,
    MakeDigest,
    NodeAddress,
    OpenBackup,
    OpenWatch,
    Pong,
    Propose,
    Query,
    QueryReply,
    ReadBackup,
    Renew,
    RenewReply,
    ReportGc,
    RequestBody,
    ResultsReply,
    Role,
    RunGc,
    Status,
    StatusReply,
)
from nokv.wire.rpc import Outcome as WireOutcome
from nokv.wire.rpc import PeerStatus as WirePeerStatus
from nokv_replication import Committed, Group, Outcome, ReadOutcome, ReplicationError

log = logging.getLogger("nokv.service")

AGENT_CHARACTERS_MAX: Final = 255
_NOTHING_OVER: Final = LocksWaited(())


class Space:
    """Whether the disks have room, as the leader judges it."""

    def __init__(self, reserve_bytes: int) -> None:
        self.reserve_bytes: Final = reserve_bytes
        self.low = False
        """Commands that grow the state are refused."""
        self.exhausted = False
        """Below half of the reserve: every command is refused."""

    def judge(self, own_free_bytes: int, peers_free_bytes: list[int], members: int) -> None:
        """Judge anew; `peers_free_bytes` has the peers that have told."""
        self.low = self._short(own_free_bytes, peers_free_bytes, members, self.reserve_bytes)
        self.exhausted = self._short(
            own_free_bytes, peers_free_bytes, members, self.reserve_bytes // 2
        )

    @staticmethod
    def _short(own: int, peers: list[int], members: int, reserve: int) -> bool:
        short = sum(free < reserve for free in peers)
        quorum = members // 2 + 1
        return own < reserve or members - short < quorum


class Freshness:
    """When this node last knew that it had applied everything acknowledged by then."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._known_s: float | None = None

    def confirmed(self, asked_s: float) -> None:
        """Take the answer of a ReadIndex that was asked for at `asked_s`."""
        self._known_s = asked_s if self._known_s is None else max(asked_s, self._known_s)

    def age_ms(self) -> float:
        """Return how old this node's state may be; infinite before the first answer."""
        return float("inf") if self._known_s is None else (self._now_s() - self._known_s) * 1000


class _Batch:
    """The outcomes of one Propose, collected in the order of its commands."""

    __slots__ = ("_call", "_left", "_outcomes", "_service")

    def __init__(self, service: Service, call: Call, count: int) -> None:
        self._service = service
        self._call = call
        self._left = count
        self._outcomes: list[WireOutcome | None] = [None] * count

    def refuse(self, position: int, error: NokvError) -> None:
        """Settle one command without the log."""
        leader = self._service.leader_address() if isinstance(error, NotLeader) else ""
        self._settle(position, WireOutcome(b"", error_reply(error, leader)))

    def done_at(self, position: int) -> Callable[[Outcome], None]:
        """Return what replication calls with one command's outcome."""

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Committed):
                self._settle(position, WireOutcome(outcome.result))
            else:
                self.refuse(position, proposal_error(outcome))

        return done

    def is_settled(self, position: int) -> bool:
        """Return whether the command's outcome is known."""
        return self._outcomes[position] is not None

    def _settle(self, position: int, outcome: WireOutcome) -> None:
        assert self._outcomes[position] is None, "a command with two outcomes"
        self._outcomes[position] = outcome
        self._left -= 1
        if not self._left:
            self._call.answer(ResultsReply(tuple(o for o in self._outcomes if o is not None)))


class Service:
    """The `Handler` of a shard's RPC port."""

    def __init__(
        self,
        *,
        group: Group,
        port: MachinePort,
        identity: NodeFile,
        membership: Membership,
        duties: LeaderDuties,
        ages: SessionAges,
        digests: Digests,
        space: Space,
        backups: BackupImages,
        watches: Watches,
        gc: GcDesk,
        build: str,
    ) -> None:
        self._group = group
        self._port = port
        self._machine = port.machine
        self._identity = identity
        self._membership = membership
        self._duties = duties
        self._ages = ages
        self._digests = digests
        self._space = space
        self.backups: Final = backups
        self._watches = watches
        self.gc: Final = gc
        self._build = build
        self.freshness = Freshness()
        self.lock_waits: Final = LockWaits()
        self.leader_node: Callable[[], int | None] = lambda: None
        """Who leads, as this node knows it."""
        self.not_ready: Callable[[], str] = lambda: ""
        """Why this node should not be asked, or empty."""
        self._reads: list[tuple[Call, Query | Renew | OpenWatch]] = []
        # Of the sockets that are being read: they share one ReadIndex.
        self._checkpoint_calls: list[Call] = []
        # Callers at the leader that wait for the checkpoint in flight.
        self.commands_total = 0
        self.reads_total = 0
        self.renewals_total = 0
        self.no_space_total = 0

    # ------------------------------------------------------------ hello

    def hello(self, hello: Hello) -> HelloReply:
        """Check that the client means this cluster; a worker must hold the cluster's token."""
        cluster = self._identity.cluster
        if hello.protocol != PROTOCOL:
            message = f"protocol {hello.protocol}; this node speaks {PROTOCOL}"
            raise WrongCluster(message, hint="upgrade the older side")
        if hello.cluster and hello.cluster != cluster.cluster:
            raise WrongCluster(f"this is cluster {cluster.cluster}, not {hello.cluster[:64]!r}")
        if hello.volume and hello.volume != cluster.volume.volume:
            raise WrongCluster(f"this is volume {cluster.volume.volume}, not {hello.volume[:64]!r}")
        roles = (Role.CLIENT, Role.WORKER, Role.ADMIN)
        if hello.role not in roles or len(hello.agent) > AGENT_CHARACTERS_MAX:
            raise BadRequest("a hello of an unknown role, or with a name too long")
        if hello.role != Role.CLIENT:
            token = cluster.worker_token.encode()
            if not hmac.compare_digest(hello.token, token):
                raise Forbidden("the cluster's token is wrong", hint="use this cluster's node.json")
        return HelloReply(
            PROTOCOL,
            cluster.cluster,
            self._identity.node,
            self.leader_address(),
            tuple(NodeAddress(n, a) for n, a in self._membership.addresses().items()),
            self._port.volume,
        )

    def leader_address(self) -> str:
        """Return where clients reach the leader, or empty."""
        return self._membership.address(self.leader_node())

    # ------------------------------------------------------------ requests

    def handle(self, call: Call, body: RequestBody) -> None:
        """Take one request."""
        if isinstance(body, Query):
            self._query(call, body)
        elif isinstance(body, Propose):
            self._propose(call, body)
        elif isinstance(body, Renew):
            self._renew(call, body)
        elif isinstance(body, OpenWatch):
            self._check_serving()
            self._watches.check(body)
            self._reads.append((call, body))
        elif isinstance(body, Status):
            call.answer(self.status())
        elif isinstance(body, MakeDigest):
            self._make_digest(call, body)
        elif isinstance(body, OpenBackup | ReadBackup | CloseBackup):
            self._backup(call, body)
        elif isinstance(body, ReportGc | RunGc):
            self._gc(call, body)
        elif isinstance(body, Change):
            leads = self.leader_node() == self._identity.node
            if leads and not self._duties.active:
                raise NotReady("this node has just been elected and has not taken office yet")
            self._membership.handle(call, body, leads=leads, leader=self.leader_address())
        else:
            raise BadRequest("a connection says hello once")

    # ------------------------------------------------------------ backups

    def _backup(self, call: Call, body: OpenBackup | ReadBackup | CloseBackup) -> None:
        if call.role == Role.CLIENT:
            raise for_operators(type(body).__name__)
        if not self._port.between_entries:
            raise NotReady("an entry is being applied")
        version = self._machine.version
        if isinstance(body, OpenBackup):
            call.answer(self.backups.open(body.backup, version))
        elif isinstance(body, ReadBackup):
            call.answer(self.backups.read(body.backup, body.offset, version))
        else:
            self.backups.close(body.backup)
            call.answer(Pong())

    # ------------------------------------------------------------ the collector

    def _gc(self, call: Call, body: ReportGc | RunGc) -> None:
        leads = self.leader_node() == self._identity.node and self._duties.active
        if isinstance(body, ReportGc):
            if call.role != Role.WORKER:
                raise Forbidden("ReportGc is for the cluster itself")
            call.answer(self.gc.report(body, leads=leads, commands=self.commands_total))
            return
        if call.role == Role.CLIENT:
            raise for_operators("RunGc")
        if not leads:
            call.fail(NotLeader("this node does not lead"), self.leader_address())
            return
        if body.run:
            self.gc.order()
        call.answer(self.gc.status(self._duties.reaped_total))

    def _check_serving(self) -> None:
        """Raise NotReady while a restored volume waits for the silence to end."""
        origin = self._port.origin
        if origin is not None and not origin.ready:
            seconds = origin.silence_ns / 1e9
            raise NotReady(f"the restored volume serves after {seconds:.0f} s of silence")

    # ------------------------------------------------------------ commands

    def _propose(self, call: Call, body: Propose) -> None:
        self._check_serving()
        commands = body.commands
        if len(commands) > BATCH_MAX:
            raise TooLarge(f"a batch of {len(commands)} commands; the limit is {BATCH_MAX}")
        if not commands:
            call.answer(ResultsReply(()))
            return
        if self.leader_node() != self._identity.node:
            call.fail(NotLeader("this node does not lead"), self.leader_address())
            return
        if self.gc.gone and call.role != Role.WORKER:
            raise ForeignVolume(self.gc.gone, hint="stop this cluster; `nokv doctor` says more")
        self.commands_total += len(commands)
        batch = _Batch(self, call, len(commands))
        propose = self._group.propose
        refused = False
        for position, data in enumerate(commands):
            try:
                self._check(decode_command(data), call)
            except NokvError as error:
                batch.refuse(position, error)
                continue
            if refused:
                # What came before it in the batch was refused by a full queue or a new leader.
                batch.refuse(position, NotReady("a command before it in the batch was refused"))
                continue
            propose(data, batch.done_at(position))
            refused = batch.is_settled(position)

    def _check(self, command: Command, call: Call) -> None:
        """Refuse what must not enter the log."""
        op = command.op
        in_force = self._machine.counters.format
        if in_force < STATE_FORMAT and (needed := needed_format(command)) > in_force:
            message = f"this needs state format {needed}, and the cluster is at {in_force}"
            raise BadRequest(message, hint="finish the upgrade of all nodes first")
        if isinstance(op, RaiseFormat):
            raise Forbidden("the leader itself raises the state format, once all members speak it")
        if call.role != Role.WORKER:
            if isinstance(op, INTERNAL_OPS):
                raise Forbidden(f"{type(op).__name__} is for the cluster itself")
            if isinstance(op, ExpireSession) and not command.session:
                raise Forbidden("a session is ended by itself, or by the cluster")
        if call.role == Role.CLIENT and isinstance(op, OPERATOR_OPS):
            raise for_operators(type(op).__name__)
        space = self._space
        if space.exhausted:
            self.no_space_total += 1
            raise NoSpace("the disks of the metadata nodes are full: removals are refused too")
        if space.low and not isinstance(op, SHRINKING_OPS):
            self.no_space_total += 1
            message = "the disks of the metadata nodes are nearly full"
            raise NoSpace(message, hint="remove files, or free disk space on the metadata nodes")

    # ------------------------------------------------------------ reads

    def _query(self, call: Call, query: Query) -> None:
        self._check_serving()
        if query.consistency == Consistency.BOUNDED:
            if query.max_stale_ms < 0:
                raise InvalidArgument(f"a staleness of {query.max_stale_ms} ms")
            if self._port.between_entries and self.freshness.age_ms() <= query.max_stale_ms:
                self._serve(call, query)
                return
        elif query.consistency != Consistency.LINEARIZABLE:
            raise BadRequest(f"consistency {query.consistency}")
        self._reads.append((call, query))

    def end_of_batch(self) -> None:
        """Ask for one ReadIndex for the reads that arrived together."""
        if not self._reads:
            return
        reads, self._reads = self._reads, []
        asked_s = time.monotonic()
        alone = self._membership.is_alone() and self._duties.active
        if alone and self._port.between_entries:
            # Nobody else can lead, and what was acknowledged here is applied here.
            self._confirmed(reads, asked_s, self._machine.applied().index)
            return
        self._group.read_index(lambda outcome: self._confirmed(reads, asked_s, outcome))

    def _confirmed(
        self,
        reads: list[tuple[Call, Query | Renew | OpenWatch]],
        asked_s: float,
        outcome: ReadOutcome,
    ) -> None:
        """Answer the reads; the state is at least as new as their arrival."""
        if isinstance(outcome, ReplicationError):
            error = read_error(outcome)
            for call, _ in reads:
                call.fail(error, self.leader_address())
            return
        assert self._port.between_entries, "a read inside an entry"
        self.freshness.confirmed(asked_s)
        for call, request in reads:
            if not call.open:
                continue
            if isinstance(request, Query):
                self._serve(call, request)
            elif isinstance(request, OpenWatch):
                self._open_watch(call, request)
            else:
                self._renewed(call, request.marks)

    def _serve(self, call: Call, query: Query) -> None:
        """Read the state as it is. A defect found by a read costs that read, not the node."""
        self.reads_total += 1
        try:
            version, value = self._machine.read(query.caller, query.read)
        except NokvError as error:
            call.fail(error)
        except (StoreFailed, MemoryError):
            raise
        except Exception as error:
            log.exception("a read failed: %s", type(query.read).__name__)
            call.fail(Internal(repr(error)[:500]))
        else:
            read = query.read
            if isinstance(read, WaitLocks) and read.waits and value == _NOTHING_OVER:
                self.lock_waits.park(call, read, version, time.monotonic())
            else:
                call.answer(QueryReply(version, value))

    def _open_watch(self, call: Call, body: OpenWatch) -> None:
        """Begin a watch at the state as it is: it holds all that was acknowledged before."""
        try:
            self._watches.open(call, body)
        except NokvError as error:
            call.fail(error)

    # ------------------------------------------------------------ sessions

    def _renew(self, call: Call, body: Renew) -> None:
        self._check_serving()
        marks = body.marks
        numbers = (marks.session, marks.number, marks.floor, marks.watermark)
        leased = (n for lease in marks.leases for n in (lease.view, lease.inode, lease.body))
        versions = (lease.version for lease in marks.leases)
        if len(marks.leases) > LEASES_MAX:
            raise TooLarge(f"{len(marks.leases)} leases; the limit is {LEASES_MAX}")
        if not all(0 <= n <= UINT63_MAX for n in (*numbers, *leased, *versions)):
            raise InvalidArgument("a mark outside 0 to 2^63 - 1")
        if not self._duties.active:
            call.fail(NotLeader("this node does not lead"), self.leader_address())
            return
        self._reads.append((call, body))

    def _renewed(self, call: Call, marks: Marks) -> None:
        """Answer a renewal: leadership is confirmed, and all that was committed is applied."""
        if not self._duties.active:
            call.fail(NotLeader("this node does not lead"), self.leader_address())
            return
        session = marks.session
        ttl_ns = self._ages.ttl_ns(session)
        applied = self._machine.marks_of(session)
        if applied is None:
            call.fail(UnknownSession(f"no session {session:016x}"))
        elif ttl_ns is None:
            call.fail(SessionExpired(f"session {session:016x} has ended"))
        elif not self._ages.renew(session, self._group.cluster_ns()):
            call.fail(NotReady(f"session {session:016x} is being ended"))
        else:
            self.renewals_total += 1
            self._duties.take_marks(marks)
            call.answer(RenewReply(ttl_ns, applied.number, self._machine.version))

    # ------------------------------------------------------------ digests

    def _make_digest(self, call: Call, body: MakeDigest) -> None:
        """Answer a checkpoint's digest; number 0 at the leader makes a new checkpoint."""
        if body.number < 0:
            raise InvalidArgument(f"checkpoint {body.number}")
        if body.number or not self._duties.active:
            self._digests.answer(body.number, call)
            return
        self._checkpoint_calls.append(call)
        if len(self._checkpoint_calls) == 1:
            self._duties.checkpoint(self._checkpointed)

    def _checkpointed(self, number: int | None) -> None:
        calls, self._checkpoint_calls = self._checkpoint_calls, []
        for call in calls:
            if number is None:
                call.fail(NotReady("the checkpoint was not committed"))
            else:
                self._digests.answer(number, call)

    # ------------------------------------------------------------ status

    def counters(self) -> dict[str, int]:
        """Return this process's counters."""
        return {
            "commands": self.commands_total,
            "reads": self.reads_total,
            "renewals": self.renewals_total,
            "no_space": self.no_space_total,
            "sessions_live": self._ages.live,
            "sessions_expired": self._duties.expired_total,
            "reaps": self._duties.reaps_total,
            "reaped_records": self._duties.reaped_total,
            "gc_rows": self.gc.totals.rows,
            "gc_objects": self.gc.totals.objects,
            "gc_bytes": self.gc.totals.size_bytes,
            "gc_orphans": self.gc.totals.orphans,
            "gc_orphan_bytes": self.gc.totals.orphan_bytes,
            "marks": self._duties.marks_total,
            "snapshots_expired": self._duties.snapshots_expired_total,
            "trash_expired": self._duties.trash_expired_total,
            "flatten_steps": self._duties.flatten_steps_total,
            "digests": self._digests.made_total,
            "digests_missed": self._digests.missed_total,
            "checkpoint": self._digests.latest,
            "store_commits": self._port.commits,
            "watches_open": self._watches.count,
            "watches_lagging": self._watches.lagging,
            "watches": self._watches.opened_total,
            "watch_events": self._watches.events_total,
        }

    def status(self) -> StatusReply:
        """Return what the node knows of itself. Called between steps."""
        status, machine = self._group.status(), self._machine
        peers = tuple(
            WirePeerStatus(
                peer.node,
                peer.connected,
                peer.match_index,
                peer.free_bytes,
                peer.lag_entries,
                peer.machine_format,
            )
            for peer in status.peers
        )
        return StatusReply(
            node=status.node,
            cluster=status.cluster,
            role=status.role.name.lower(),
            term=status.term,
            leader=status.leader or 0,
            leader_address=self.leader_address(),
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            version=machine.version,
            log_bytes=status.log_bytes,
            free_bytes=status.free_bytes,
            wall_ns=machine.counters.wall_ns,
            cluster_ns=status.cluster_ns,
            peers=peers,
            counters=self.counters(),
            format=machine.counters.format,
            build=self._build,
            fingerprint=machine.fingerprint(),
            clock_ns=time.time_ns(),
            recent_sync_ns=status.recent_sync_ns,
            slow_disk=status.slow_disk,
            members=self._membership.members(),
            format_max=STATE_FORMAT,
            not_ready=self.not_ready(),
            problem=status.problem,
            reserve_bytes=self._space.reserve_bytes,
            refuses_growth=status.leads and self._space.low,
        )
