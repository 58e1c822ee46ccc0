"""Values at the boundary of one replication group."""

from collections.abc import Callable
from enum import IntEnum

import msgspec

from nokv_replication.bootstrap import Member
from nokv_replication.errors import ReplicationError

MS = 1_000_000
MIB = 1 << 20


class Role(IntEnum):
    """A node's part in its current term."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


class Times(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The two clocks of an entry.

    `wall_ns`: nanoseconds since the epoch, for people; never falls from one entry to the next.
    `cluster_ns`: nanoseconds of leadership the group has lived through; the only clock that leases
    and retentions may use; never falls.
    """

    wall_ns: int = 0
    cluster_ns: int = 0


class Skip(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry that an operator has every node apply as if it held nothing.

    `crc` is the CRC-32C of the entry's bytes: another entry at that index is not skipped.
    """

    index: int
    term: int
    crc: int


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """The position of a state machine, stored by it in the same transaction as the effects.

    `index`, `term`: of the last applied entry; (0, 0) for a machine that never applied one.
    `config`: opaque bytes of the group's members as of `index`, b"" before the first such entry.
    `times`: of the last applied entry. `skips`: the entries up to `index` that were skipped, in
    order of index. A machine stores and returns the value whole.
    """

    index: int = 0
    term: int = 0
    config: bytes = b""
    times: Times = Times()
    skips: tuple[Skip, ...] = ()


class Committed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A proposal that was applied at `index` with `result`, durable on a quorum."""

    index: int
    result: bytes


Outcome = Committed | ReplicationError
"""What a proposal ends with: a `Committed`, or a `Refused` (settled) or `OutcomeUnknown` value."""

ReadOutcome = int | ReplicationError
"""What a read ends with: the read index, already applied when it is told; or an error value."""

ChangeDone = Callable[[Outcome], None]
"""Told once, with the outcome of a change of members or of a transfer."""

ProposeDone = Callable[[Outcome], None]
ReadDone = Callable[[ReadOutcome], None]


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and periods of one group. Every node of a group should use the same."""

    heartbeat_ns: int = 100 * MS
    election_min_ns: int = 600 * MS
    election_max_ns: int = 1200 * MS
    entry_max_bytes: int = 4 * MIB
    """Encoded size of one log entry, at most."""
    queue_max_proposals: int = 65_536
    """Proposals waiting for the next step, and again proposals in the log not yet applied."""
    queue_max_bytes: int = 64 * MIB
    reads_max: int = 65_536
    """Reads waiting for their probe or for apply."""
    apply_slice_ns: int = 20 * MS
    """Apply runs this long at most, then replication steps."""
    commit_interval_ns: int = 500 * MS
    commit_bytes: int = 32 * MIB
    """The machine commits when this many bytes of entries were applied, or the interval is over."""
    segment_bytes: int = 64 * MIB
    log_keep_bytes: int = 256 * MIB
    """Log kept behind the machine's durable commit for followers that are slow."""
    cache_bytes: int = 32 * MIB
    """Recent entries kept in memory."""
    batch_bytes: int = MIB
    """Entries in one append frame, about; a single larger entry goes alone."""
    inflight_bytes: int = 16 * MIB
    """Entries on the way to one follower and not yet acknowledged, at most."""
    promote_lag_entries: int = 1024
    """A learner that lacks more committed entries than this is not made a voter."""
    handover_retry_ns: int = 10_000 * MS
    """An unfit leader tries to hand over at most this often."""
    tick_interval_ns: int = 10_000 * MS
    """While something waits for time, an empty entry is proposed at least this often."""
    image_bytes_per_second: int = 32 * MIB
    """State images leave a node at this rate, at most, all receivers together."""
    image_window_bytes: int = 4 * MIB
    """Of an image on its way to one receiver and not yet acknowledged, at most; held in memory."""
    image_log_bytes: int = 1024 * MIB
    """Log kept for the receivers of an image; where it needs more, the image is begun anew."""
    image_timeout_ns: int = 10_000 * MS
    """A receiver that acknowledges nothing for so long loses its connection."""
    image_hold_ns: int = 60_000 * MS
    """An image, and what a receiver has of it, is held so long after its connection was lost."""


class ImageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One state image on its way, at its sender (`outgoing`) or its receiver."""

    peer: int
    outgoing: bool
    index: int
    """The position it stands at."""
    done_bytes: int
    """Acknowledged, or received."""
    size_bytes: int
    """Of the whole, about."""
    failures: int = 0
    """Images in a row that this peer refused."""
    reason: str = ""
    """The last refusal."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What this node knows of a peer; replication fields are 0 unless this node leads."""

    node: int
    connected: bool
    match_index: int
    lag_entries: int
    inflight_bytes: int
    applied_index: int
    free_bytes: int
    wall_skew_ns: int
    machine_format: int
    """As its last handshake said; 0 before one."""
    sync_ns: int
    """Its recent log syncs, as its acknowledgements say."""
    lost_index: int = 0
    """Largest index that it acknowledged to this process, as leader, and came back without."""


class DurationHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """Durations since this process started: counts per upper bound, Prometheus style."""

    bounds_ns: tuple[int, ...]
    counts: tuple[int, ...]
    """One per bound and one more for everything above; not cumulative."""
    total_ns: int


class Counters(msgspec.Struct, kw_only=True):
    """Monotonic counters since this process started."""

    steps: int = 0
    elections_started: int = 0
    elections_won: int = 0
    pre_votes_started: int = 0
    leader_changes: int = 0
    step_downs: int = 0
    transfers_started: int = 0
    transfers_done: int = 0
    handovers: int = 0
    """Transfers that a leader began by itself, for its clock or its disk."""
    members_changed: int = 0
    removed_told: int = 0
    """Answers to nodes that were removed."""
    proposals: int = 0
    proposals_committed: int = 0
    failed_not_leader: int = 0
    failed_overloaded: int = 0
    failed_too_large: int = 0
    failed_unknown: int = 0
    reads: int = 0
    reads_failed: int = 0
    read_probes: int = 0
    entries_appended: int = 0
    entries_applied: int = 0
    entries_skipped: int = 0
    """Entries of an append that the follower held already."""
    appends_stale: int = 0
    acks_stale: int = 0
    resets_ignored: int = 0
    reset_hints: int = 0
    next_index_repairs: int = 0
    peers_set_back: int = 0
    """Members that came back without entries they had acknowledged to this leader."""
    window_full: int = 0
    machine_commits: int = 0
    log_syncs: int = 0
    segments_dropped: int = 0
    wall_clamped: int = 0
    frames_received: int = 0
    frames_sent: int = 0
    images_sent: int = 0
    images_installed: int = 0
    images_refused: int = 0
    """Of offers and transfers to this node."""
    images_failed: int = 0
    """Of this node to others: refused, or given up."""
    images_resumed: int = 0
    image_bytes_sent: int = 0
    image_bytes_received: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of one group at one node, taken between steps."""

    cluster: str
    node: int
    role: Role
    ready: bool
    """The full list of first members is known and synced: this node votes and stands."""
    leads: bool
    """Leader, with an entry of its own term committed: it serves proposals and reads."""
    term: int
    leader: int | None
    commit_index: int
    applied_index: int
    durable_index: int
    """Applied index of the machine's last durable commit."""
    first_index: int
    last_index: int
    log_bytes: int
    droppable_bytes: int
    """Log behind the durable commit, that compaction may drop."""
    free_bytes: int
    cluster_ns: int
    members: tuple[Member, ...]
    """The configuration in force, ordered by node id; empty before one is known."""
    removed: bool
    """This node was a member and is none any more: it neither stands nor serves."""
    transferring_to: int | None
    """Who is to take over leadership, None while no transfer is under way."""
    peers: tuple[PeerStatus, ...]
    counters: Counters
    log_sync: DurationHistogram
    """Writing and syncing the log."""
    commit_latency: DurationHistogram
    """Of proposals to this node as leader: from the oldest of an entry's to all being applied."""
    machine_commit: DurationHistogram
    """Durable commits of the machine."""
    recent_sync_ns: int
    """Mean of the latest syncs of the log, 0 before the first."""
    slow_disk: bool
    """`recent_sync_ns` is above a quarter of the heartbeat: it will cost leadership if it grows."""
    uncommitted_ns: int
    """How long the machine's oldest applied entry has waited for its durable commit; 0: none."""
    skips: tuple[Skip, ...]
    """Entries that an operator has this node pass over, applied or not."""
    images: tuple[ImageStatus, ...]
    """State images on their way from and to this node."""
    problem: str
    """A sentence for the operator, "" when all is well."""
