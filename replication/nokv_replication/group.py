"""`Group`: one replica of one Raft group, synchronous, on the ports it is given.

The owner calls `step` when frames, proposals or reads arrived (`wake` tells it) and at its deadline
(`next_deadline_ns`). A step drains what arrived, lets the library tick, applies what is committed,
appends one entry with all waiting proposals, syncs the log once, and releases its answers.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
from nokv_replication.bootstrap import Identity
from nokv_replication.changes import Changes
from nokv_replication.configurations import Configurations
from nokv_replication.elections import PreVotes
from nokv_replication.errors import NotLeader, OutcomeUnknown, ReplicationError, Stopped
from nokv_replication.frames import Body
from nokv_replication.images import Images
from nokv_replication.leadership import Leadership
from nokv_replication.log import Log
from nokv_replication.membership import Membership
from nokv_replication.outbox import Outbox
from nokv_replication.peers import Peers
from nokv_replication.ports import Clock, Disk, Machine, Network
from nokv_replication.reads import Reads
from nokv_replication.receiver import Receiver
from nokv_replication.roles import reason_of
from nokv_replication.roster import Roster, check_start
from nokv_replication.sending import Sending
from nokv_replication.skips import Skips
from nokv_replication.status import Picture
from nokv_replication.transfer import Transfer
from nokv_replication.types import (
    Applied,
    Counters,
    GroupConfig,
    ProposeDone,
    ReadDone,
    Role,
    Status,
)

_FREE_BYTES_PERIOD_NS = 1_000_000_000

RoleChange = Callable[[Role, int, str], None]
"""Called with a new role, the term and the reason, inside `step`."""


class Group(Membership):
    """One replica. All methods on one thread; callbacks run inside `step`, and must not step.

    `wake` is called when something arrived that a step should handle; the owner sets it.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        addresses: dict[int, str],
        config: GroupConfig,
        machine: Machine,
        disk: Disk,
        network: Network,
        clock: Clock,
        rng: Random,
        machine_format: int = 0,
        needed_machine_format: Callable[[], int] = lambda: 0,
        on_role_change: RoleChange | None = None,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Open log and machine and check that they belong together.

        `machine_format` is told to the peers (`PeerStatus.machine_format`); one whose is less than
        `needed_machine_format` is refused.

        Raises:
            ConfigurationError: the addresses do not fit the identity.
            StartRefused: log, machine and identity do not belong together.
            LogDamaged: the log lost synced records.
            DiskFailed: the disk failed.
        """
        self._identity = identity
        self._config = config
        self._disk = disk
        self._clock = clock
        self._rng = rng
        self._on_role_change = on_role_change
        self._free_bytes_source = free_bytes
        self._zero_ns = clock.monotonic_ns()
        self._now_ns = 0
        self.counters = Counters()
        self.warnings: deque[str] = deque(maxlen=16)
        """What an operator must hear of; the owner logs and takes it. The latest few."""
        self._log = Log.open(disk, config, identity, rng)
        skips = Skips(disk, identity.cluster)
        self._configurations = Configurations(identity, skips)
        self._roster = Roster(
            identity,
            addresses,
            self._log.members,
            machine_format,
            skips,
            self._configurations,
        )
        self._roster.needed_machine_format = needed_machine_format
        self._applier = Applier(machine, self._log, config, clock, self.counters, skips)
        check_start(self._log, self._applier.applied, self._roster)
        self._roster.open(self._log, self._applier.applied)
        self._network = network
        Core.enter(self._now_ns, rng)
        self._core = Core(identity.node, config, self._log, self)
        self._core.start_at(self._applier.applied.index)
        self._make_consensus()
        self._make_surroundings(machine)
        self.wake: Callable[[], None] = lambda: None
        self._inbox: deque[tuple[int, int, int, Body | None]] = deque()
        self._inbox_bytes: dict[int, int] = {}
        # As the library had role, term and leader when they were noted last.
        self._standing: tuple[object, ...] = ()
        self._role = Role.FOLLOWER
        self._term = self._core.term()
        self._leader: int | None = None
        self._send_now = False
        self._free_bytes_ns = -_FREE_BYTES_PERIOD_NS
        # Applied index whose consequences were drawn.
        self._applied_index = -1
        self._more_to_prepare = False
        self._keeping_log = True
        self._log_keep_bytes = config.log_keep_bytes
        self._stopped = self._failed = False
        self._reconfigure()

    def _make_consensus(self) -> None:
        """Make the parts that decide: who leads, who counts, what is appended and confirmed."""
        identity, config, clock = self._identity, self._config, self._clock
        core, log, counters = self._core, self._log, self.counters
        self._peers = Peers(core, log, config, counters)
        self._peers.warn = self.warnings.append
        self._pre_votes = PreVotes(core, log, config, counters)
        self._reads = Reads(config, counters, self._send)
        self._changes = Changes(identity.node, self._configurations, core, log, self._peers, config)
        self._leadership = Leadership(
            core,
            log,
            self._applier,
            self._roster,
            clock,
            config,
            counters,
            self._configurations,
            self._changes,
        )
        self._timekeeper = self._leadership.timekeeper
        self._proposals = self._leadership.proposals
        self._receiver = Receiver(
            core,
            log,
            self._peers,
            self._applier,
            self._pre_votes,
            self._reads,
            self._timekeeper,
            self._configurations,
            counters,
            self._send,
        )

    def _make_surroundings(self, machine: Machine) -> None:
        """Make the parts that carry: frames and images out, and the picture of it all."""
        identity, config, clock = self._identity, self._config, self._clock
        core, log, counters, network = self._core, self._log, self.counters, self._network
        self._outbox = Outbox(identity.node, log, network, clock, counters)
        self._transfer = Transfer(
            core,
            log,
            self._peers,
            self._outbox,
            self._timekeeper,
            config,
            counters,
            self._send,
        )
        self._sending = Sending(
            core,
            log,
            self._peers,
            self._receiver,
            self._applier,
            self._outbox,
            clock,
            self._send,
        )
        self._images = Images(
            node=identity.node,
            core=core,
            log=log,
            machine=machine,
            applier=self._applier,
            receiver=self._receiver,
            network=network,
            clock=clock,
            config=config,
            counters=counters,
            rng=self._rng,
            on_installed=self._image_installed,
        )
        self._sending.too_far = self._images.sender.need
        self._picture = Picture(
            transfer=self._transfer,
            images=self._images,
            identity=identity,
            config=config,
            core=core,
            log=log,
            roster=self._roster,
            applier=self._applier,
            peers=self._peers,
            receiver=self._receiver,
            leadership=self._leadership,
            outbox=self._outbox,
            clock=clock,
            counters=counters,
        )

    # ------------------------------------------------------------------ requests

    def propose(self, payload: bytes, done: ProposeDone) -> None:
        """Order a payload; `done` is called once, in a step, or here when it is refused at once."""
        self.counters.proposals += 1
        refusal = self._refusal(len(payload))
        if refusal is not None:
            done(refusal)
            return
        self._proposals.add(payload, done)
        self.wake()

    def _refusal(self, size_bytes: int) -> ReplicationError | None:
        if self._stopped:
            return Stopped("this group was stopped")
        if self._role != Role.LEADER:
            self.counters.failed_not_leader += 1
            return NotLeader(self._likely_leader())
        return self._proposals.refusal(size_bytes, self._applier.waiting)

    def read_index(self, done: ReadDone) -> None:
        """Call `done(index)` when the machine holds everything acknowledged before this call.

        It is called between two entries, in a step, at leader and follower alike; reading the
        machine inside the callback is linearizable. On failure it gets a `Refused` value.
        """
        if self._stopped:
            done(Stopped("this group was stopped"))
            return
        self._reads.add(done)
        self.wake()

    def set_waiting(self, waiting: bool) -> None:  # noqa: FBT001 - a switch with one meaning
        """Say whether something in the machine waits for `cluster_ns`: then the leader ticks."""
        self._leadership.waiting_for_time = waiting

    def set_accepting(self, accepting: bool) -> None:  # noqa: FBT001
        """Stop (or go on) storing new entries as a follower, for want of disk space."""
        self._receiver.accept_entries = accepting

    def set_keeping_log(self, keeping: bool) -> None:  # noqa: FBT001
        """Stop (or go on) keeping log for slow followers, for want of disk space."""
        self._keeping_log = keeping
        self._log_keep_bytes = self._config.log_keep_bytes if keeping else 0

    def cluster_ns(self) -> int:
        """Return the group's time: at the leader up to this step, else as last applied."""
        if self._role == Role.LEADER:
            return self._timekeeper.cluster_ns
        return self._applier.applied.times.cluster_ns

    def stop(self) -> None:
        """Commit the machine, fail what waits, close the log. A stopped group is not used again."""
        if self._stopped:
            return
        self._stopped = True
        self._fail_proposals(Stopped("this group was stopped"))
        self._reads.stop(Stopped("this group was stopped"))
        self._transfer.fail(Stopped("this group was stopped"))
        self._images.stop()
        self._applier.deliver()
        if not self._failed:
            if self._applier.between_entries and self._applier.applied.index:
                self._applier.commit()
            self._outbox.sync()
        self._log.close()

    # ------------------------------------------------------------------ the step

    def step(self) -> None:
        """Do all that is due. An exception is final: the process must exit.

        Raises:
            Fatal: see its children; `OSError`s and the machine's own exceptions come as they are.
        """
        assert not self._stopped
        assert not self._failed, "this group has failed; the process must exit"
        self._failed = True
        now_ns = self._clock.monotonic_ns() - self._zero_ns
        assert now_ns >= self._now_ns
        self._now_ns = self._sending.now_ns = now_ns
        self.counters.steps += 1
        Core.enter(now_ns, self._rng)
        self._applier.skips.keep()
        self._drain()
        if self._roster.founding:
            self._found()
        else:
            self._replicate()
        self._failed = False

    def _found(self) -> None:
        """Sync the list of first members once it is complete; until then do nothing else."""
        members = self._roster.candidate()
        if members is None:
            return
        self._log.set_members(msgspec.msgpack.encode(members))
        self._outbox.sync()
        self._roster.found(members)
        self._configurations.begin(self._log.members, self._applier.applied.index, self._log)
        self._reconfigure()

    def _replicate(self) -> None:
        core, log, applier, now_ns = self._core, self._log, self._applier, self._now_ns
        if now_ns - self._free_bytes_ns >= _FREE_BYTES_PERIOD_NS:
            self._measure_free_bytes()
        self._note_role()
        core.tick()
        if self._receiver.stand_term:
            self._receiver.stand_term = 0
            core.end_stand()
        self._peers.restore_held()
        self._note_role()
        leads = self._role == Role.LEADER
        if leads:
            self._timekeeper.advance(now_ns)
            if not self._reads.idle:
                self._reads.repeat_lost(self._peers.voters(), now_ns)
        # Before this step's own entries: what is counted as held here was synced by a step before.
        commit_index = core.commit_index()
        self._transfer.expire(now_ns)
        if leads and self._leads():
            self._transfer.hand_over_if_unfit(now_ns)
            if self._transfer.target is None:
                self._leadership.append(now_ns)
            self._transfer.pursue(now_ns)
        if not self._reads.idle:
            self._route_reads()
        if leads and self._peers.must_tell(commit_index, now_ns):
            self._send_now = True
        if leads and (self._send_now or self._peers.has_unsent()):
            self._send_now = False
            core.send_appends()
            self._peers.restore_held()
        self._outbox.release_appends()
        if not leads:
            # The leader waits for this acknowledgement; it need not wait for apply as well.
            self._outbox.sync_and_release()
        self._apply(min(commit_index, log.synced_index))
        self._outbox.sync_and_release()
        if applier.between_entries:
            self._reads.finish(applier.applied.index)
        # Where space is scarce nothing may be written, and so committed, for a long time.
        if applier.commit_if_due() or not self._log_keep_bytes:
            keep_index = self._images.sender.keep_index()
            drop_index = applier.durable_index
            if keep_index is not None:
                drop_index = min(drop_index, keep_index)
            dropped = log.drop_to(drop_index, self._log_keep_bytes)
            self.counters.segments_dropped += dropped
        self._more_to_prepare = log.prepare()
        log_bytes_max = 0
        if self._keeping_log:
            # What is kept for slow followers anyway is there for images too.
            log_bytes_max = max(self._config.image_log_bytes, self._log_keep_bytes)
        # Before an entry of its own term is committed too: a quorum may need the image for that.
        self._images.step(now_ns, leads=leads, log_bytes_max=log_bytes_max)

    def _apply(self, limit_index: int) -> None:
        """Apply what is committed and synced here, for one slice, and tell the results."""
        applier = self._applier
        applier.run(limit_index, self._on_entry)
        index = applier.applied.index
        moved = index != self._applied_index
        if moved:
            self._applied_index = index
            self._core.set_applied(index)
            self._proposals.applied(index)
            if self._configurations.applied(index):
                self._tell_removed()
        applier.deliver()
        if moved:
            self._changes.applied(index)

    def _image_installed(self, applied: Applied) -> None:
        """Go on from an image, which holds the configuration that is in force there."""
        self._proposals.applied(applied.index)
        self._roster.open(self._log, applied)
        self._reconfigure()
        self._on_entry(applied.index)

    def _on_entry(self, applied_index: int) -> None:
        if self._reads.waiting_for_apply:
            self._reads.finish(applied_index)

    def next_deadline_ns(self) -> int:
        """Return when the next `step` is due, on the clock's monotonic time."""
        return self._zero_ns + self._next_deadline_ns()

    def _next_deadline_ns(self) -> int:
        now, core, applier = self._now_ns, self._core, self._applier
        if self._inbox:
            return now
        if self._roster.founding:
            return now + self._config.heartbeat_ns
        quorum, transfer_ns = self._configurations.quorum, self._transfer.deadline_ns()
        # Without a quorum's clocks nothing is stamped; the acknowledgement that brings one wakes.
        # While leadership is being handed over nothing is appended either.
        may_append = transfer_ns is None and self._leads() and self._timekeeper.hears(quorum)
        if may_append and (self._proposals or self._changes) and self._leadership.founded:
            return now
        commit_index, synced_index = core.commit_index(), self._log.synced_index
        if not applier.between_entries or applier.applied.index < min(commit_index, synced_index):
            return now
        if quorum == 1 and commit_index < synced_index and core.is_leader():
            return now
        if self._more_to_prepare:
            return now + self._config.heartbeat_ns // 10
        first_ns = now + self._config.election_max_ns
        tick_ns = None
        if core.is_leader():
            first_ns = min(first_ns, core.heartbeat_deadline_ns(), self._peers.tell_due_ns)
            if may_append:
                tick_ns = self._leadership.tick_due_ns()
        elif self._may_stand():
            retry = self._pre_votes.retry_at_ns()
            deadline = core.election_deadline_ns()
            first_ns = min(first_ns, deadline if retry is None else max(deadline, retry))
        for due_ns in (
            tick_ns,
            self._reads.next_deadline_ns(),
            self._commit_due_ns(),
            self._images.next_deadline_ns(now),
            transfer_ns,
        ):
            if due_ns is not None and due_ns < first_ns:
                first_ns = due_ns
        return max(now, first_ns)

    def _commit_due_ns(self) -> int | None:
        due = self._applier.commit_due_ns()
        return None if due is None else due - self._zero_ns

    # ------------------------------------------------------------------ frames in

    def _drain(self) -> None:
        inbox = self._inbox
        while inbox:
            peer, epoch, sequence, body = inbox.popleft()
            if body is not None:
                # An older connection's are lost; until it is founded a node has nothing to say.
                if epoch == self._peers[peer].epoch and not self._roster.founding:
                    self._receiver.handle(peer, sequence, body, self._now_ns)
            elif sequence:
                self._core.connected(peer)
                self._peers.reconnected(self._peers[peer], self._now_ns)
            else:
                self._core.disconnected(peer)
                self._peers[peer].forget_inflight()
                self._reads.forget(peer)
        self._inbox_bytes.clear()
        self._peers.sweep()

    # ------------------------------------------------------------------ frames out

    def core_send(self, peer: int, message: dict[str, Any]) -> None:
        """Take a message of the library for a peer (`CoreOwner`)."""
        self._sending.message(peer, message)

    def _measure_free_bytes(self) -> None:
        self._free_bytes_ns = self._now_ns
        if self._free_bytes_source is not None:
            self._sending.free_bytes = self._free_bytes_source()
        else:
            droppable = self._log.droppable_bytes(self._applier.durable_index)
            self._sending.free_bytes = self._disk.free_bytes() + droppable

    # ------------------------------------------------------------------ leading

    def core_may_stand(self) -> bool:
        """Decide, the election timer having fired, whether to stand (`CoreOwner`)."""
        if not self._may_stand():
            return False
        voters, quorum = self._configurations.voters, self._configurations.quorum
        # The leader itself asked for this election: nobody is to be asked before it.
        told = self._receiver.stand_term > 0 and self._receiver.stand_term == self._core.term()
        if told or quorum == 1:
            self.counters.elections_started += 1
            return True
        if self._pre_votes.won(voters, quorum, self._now_ns):
            return True
        question = self._pre_votes.next_round(self._now_ns)
        if question is not None:
            for peer in self._peers.voters():
                self._send(peer, question)
        return False

    def core_make_noop(self) -> bytes:
        """Return this node's first entry as leader (`CoreOwner`)."""
        return self._leadership.make_noop(self._now_ns)

    def _may_confirm_reads(self) -> bool:
        """Rule 1 of `reads`: before its own first entry is committed a leader knows no index."""
        return self._leads()

    def _likely_leader(self) -> int | None:
        """Return the leader, or who was told to take over while there is none yet."""
        return self._leader if self._leader is not None else self._transfer.target

    def _note_role(self) -> None:
        core = self._core
        standing = core.standing()
        if standing == self._standing:
            return
        self._standing = standing
        role, term, leader = core.role(), core.term(), core.leader()
        if leader != self._leader:
            self._leader = leader
            self.counters.leader_changes += leader is not None
            self._transfer.note_leader(leader, self._identity.node)
        if role == self._role and term == self._term:
            return
        was, newer_term = self._role, term > self._term
        self._role, self._term = role, term
        lost_quorum = was == Role.LEADER and not newer_term and leader is None
        self._picture.lost_quorum_term = term if lost_quorum else 0
        if was == Role.LEADER:
            self.counters.step_downs += 1
            # Whoever is told to take over most likely does.
            self._fail_proposals(NotLeader(leader or self._transfer.target))
            self._reads.step_down(leader)
            self._images.step_down()
        if role == Role.LEADER:
            self.counters.elections_won += 1
            self._peers.begin_term(self._now_ns)
            self._send_now = True
        if self._on_role_change is not None and role != was:
            reason = reason_of(was, role, newer_term=newer_term, leader=leader)
            self._on_role_change(role, term, reason)

    def _fail_proposals(self, error: ReplicationError) -> None:
        """Leadership is over: what was appended is unknown, what waited is settled."""
        self._applier.abandon(
            OutcomeUnknown("leadership was lost before the entry was committed; ask the new leader")
        )
        self._proposals.fail(error)
        self._changes.fail(error)

    def _route_reads(self) -> None:
        reads, core = self._reads, self._core
        if self._may_confirm_reads():
            if reads.arrived:
                commit = core.commit_index()
                reads.start_round(core.term(), commit, self._peers.voters(), self._now_ns)
            answered = reads.confirm(
                core.term(), self._configurations.voters, self._configurations.quorum
            )
            self._send_now |= self._peers.behind(answered)
        elif self._role != Role.LEADER and reads.arrived:
            peer = None if self._leader is None else self._peers.get(self._leader)
            if self._leader is None or peer is None or not peer.epoch:
                reads.refuse_arrived(self._leader, core.term())
            else:
                reads.refuse_remote(core.term())
                reads.ask(core.term(), self._leader, self._now_ns)
        reads.expire(self._now_ns)

    # ------------------------------------------------------------------ status

    def status(self) -> Status:
        """Return a picture of this replica; call between steps."""
        return self._picture.take(
            removed=self._removed(),
            role=self._role,
            leads=self._leads(),
            leader=self._leader,
            cluster_ns=self.cluster_ns(),
            free_bytes=self._sending.free_bytes,
            now_ns=self._now_ns,
        )
