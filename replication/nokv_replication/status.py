"""The picture of one replica for people and for the owner: reads everything, changes nothing."""

import msgspec

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
from nokv_replication.bootstrap import Identity
from nokv_replication.images import Images
from nokv_replication.leadership import Leadership
from nokv_replication.log import Log
from nokv_replication.outbox import Outbox
from nokv_replication.peers import Peers, set_back
from nokv_replication.ports import Clock
from nokv_replication.receiver import Receiver
from nokv_replication.roster import Roster
from nokv_replication.transfer import Transfer
from nokv_replication.types import Counters, GroupConfig, PeerStatus, Role, Status

_SLOW_DISK_SHARE = 4


class Picture:
    """Takes the `Status` of a group between steps."""

    def __init__(
        self,
        *,
        images: Images,
        transfer: Transfer,
        identity: Identity,
        config: GroupConfig,
        core: Core,
        log: Log,
        roster: Roster,
        applier: Applier,
        peers: Peers,
        receiver: Receiver,
        leadership: Leadership,
        outbox: Outbox,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._images = images
        self._transfer = transfer
        self.lost_quorum_term = 0
        """Term in which this node led until no quorum answered it, while nobody leads since."""
        self._identity = identity
        self._config = config
        self._core = core
        self._log = log
        self._roster = roster
        self._applier = applier
        self._peers = peers
        self._receiver = receiver
        self._leadership = leadership
        self._outbox = outbox
        self._clock = clock
        self._counters = counters

    def take(
        self,
        *,
        removed: bool,
        role: Role,
        leads: bool,
        leader: int | None,
        cluster_ns: int,
        free_bytes: int,
        now_ns: int,
    ) -> Status:
        """Return the picture; the arguments are what only the group itself knows."""
        core, log, applier = self._core, self._log, self._applier
        members = self._roster.members
        recent_sync_ns = self._outbox.recent_sync_ns()
        self._counters.wall_clamped = self._leadership.timekeeper.clamped
        return Status(
            cluster=self._identity.cluster,
            node=self._identity.node,
            role=role,
            ready=members is not None,
            leads=leads and self._leadership.founded,
            term=core.term(),
            leader=leader,
            commit_index=core.commit_index(),
            applied_index=applier.applied.index,
            durable_index=applier.durable_index,
            first_index=log.first_index,
            last_index=log.last_index,
            log_bytes=log.size_bytes,
            droppable_bytes=log.droppable_bytes(applier.durable_index),
            free_bytes=free_bytes,
            cluster_ns=cluster_ns,
            members=members.members if members is not None else (),
            removed=removed,
            transferring_to=self._transfer.target,
            peers=tuple(
                self._peer(node, role, now_ns)
                for node, peer in sorted(self._peers.all.items())
                if peer.member
            ),
            counters=msgspec.structs.replace(self._counters),
            log_sync=self._outbox.histogram(),
            commit_latency=applier.latency.picture(),
            machine_commit=applier.commits.picture(),
            recent_sync_ns=recent_sync_ns,
            slow_disk=bool(self._slow_disk()),
            uncommitted_ns=applier.uncommitted_ns(),
            skips=applier.skips.all,
            images=self._images.pictures(),
            problem=self.problem(role, now_ns),
        )

    def _peer(self, node: int, role: Role, now_ns: int) -> PeerStatus:
        peer, leads = self._peers[node], role == Role.LEADER
        match = self._core.match_index(node) if leads else 0
        wall_ns = self._clock.wall_ns()
        skew_ns = self._leadership.timekeeper.skew_ns(node, wall_ns, now_ns)
        return PeerStatus(
            node=node,
            connected=peer.epoch > 0,
            match_index=match,
            lag_entries=self._log.last_index - match if leads else 0,
            inflight_bytes=peer.inflight_bytes,
            applied_index=peer.applied_index if leads else 0,
            free_bytes=peer.free_bytes if leads else 0,
            wall_skew_ns=skew_ns if leads else 0,
            machine_format=self._roster.machine_format(node),
            sync_ns=peer.sync_ns if leads else 0,
            lost_index=peer.lost_index,
        )

    def problem(self, role: Role, now_ns: int) -> str:
        """Return a sentence for the operator, "" when all is well."""
        refusal = self._roster.refusal(now_ns)
        if self._receiver.told_removed or self._roster.removed:
            return (
                "this node was removed from the group: it neither votes nor stands, and serves"
                " nothing new. Stop it; to use the machine again, initialise a new data directory"
                " with another node id (docs/operations.md)"
            )
        if self._receiver.too_far_base is not None:
            return self._behind(self._receiver.too_far_base)
        if self._roster.joining_blind:
            return (
                "this node waits to be added to the group: run the `nokv member add` line that"
                " `nokv init --join` printed. " + refusal
            ).rstrip()
        if self._roster.members is None:
            return "waiting for the other first members: " + (
                refusal or "not all have been reached yet"
            )
        if self.lost_quorum_term and self._core.leader() is None:
            return (
                f"this node led term {self.lost_quorum_term} and stepped down: no quorum answered"
                " it in time. Check the network between the members, and whether they run"
            )
        if role == Role.LEADER and self._leadership.timekeeper.clamped_now:
            return "this node's clock is more than 10 s from its peers': check time synchronisation"
        return self._set_back() or refusal or self._slow_disk()

    def _set_back(self) -> str:
        """Return a sentence on a member that lost what it acknowledged, "" without one."""
        for node, peer in sorted(self._peers.all.items()):
            if peer.member and peer.lost_index:
                return set_back(node, peer.lost_index)
        return ""

    def _slow_disk(self) -> str:
        sync_ns = self._outbox.recent_sync_ns()
        if sync_ns <= self._config.heartbeat_ns // _SLOW_DISK_SHARE:
            return ""
        return (
            f"the log's disk is slow: its latest syncs took {sync_ns / 1e6:.0f} ms, heartbeats are"
            f" due every {self._config.heartbeat_ns / 1e6:.0f} ms (docs/operations.md: A slow disk)"
        )

    def _behind(self, base_index: int) -> str:
        progress = "waits for a state image"
        for image in self._images.receiver.picture():
            progress = (
                f"receives a state image of node {image.peer}"
                f" ({image.done_bytes} of about {image.size_bytes} bytes)"
            )
        return (
            f"this node needs the entries after {self._log.last_index}, its peers hold those"
            f" after {base_index} only: it {progress}, and serves nothing until then"
        )
