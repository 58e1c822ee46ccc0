"""The RPC messages between clients and nodes.

A connection carries frames; each is a `Request` or a `Response`. Requests are pipelined: answers
come in any order, matched by id. The first request is `Hello`; anything else before it costs the
connection. Requests are strict, replies lenient.
"""

from __future__ import annotations

from enum import IntEnum

from nokv.types.gc import GcTotals
from nokv.types.reads import Read, ReadValue, VolumeReply
from nokv.types.values import At, Caller, Lenient, Marks, Strict
from nokv.types.watch import BOOKMARK_MS_DEFAULT, SINCE_NOW, WatchEvent
from nokv.wire.codec import Codec

PROTOCOL = 1


class Role(IntEnum):
    """Who speaks on a connection."""

    CLIENT = 0
    WORKER = 1
    """A node's own worker: may send internal commands; proves itself by the cluster's token."""
    ADMIN = 2
    """An operator's tool: may change members and the leader, make, read and end backups, adopt a
    volume. Proves itself by the same token: who holds it could already send internal commands, and
    a caller's user id is only a claim."""


class Consistency(IntEnum):
    """How fresh a read is."""

    LINEARIZABLE = 0
    """ReadIndex: as fresh as any acknowledged command."""
    BOUNDED = 1
    """The node's own state, not older than `max_stale_ms`, else NotReady."""


class Hello(Strict, frozen=True, tag=1):
    """Opens a connection. Empty `cluster` or `volume` means: any (discovery)."""

    protocol: int
    cluster: str = ""
    volume: str = ""
    role: int = Role.CLIENT
    token: bytes = b""
    agent: str = ""
    """What the client calls itself, for the server's log; at most 255 characters."""


class Propose(Strict, frozen=True, tag=2):
    """An ordered batch of encoded commands, each independent. Reply: ResultsReply."""

    commands: tuple[bytes, ...]


class Query(Strict, frozen=True, tag=3):
    """One read. Reply: QueryReply."""

    caller: Caller
    read: Read
    consistency: int = Consistency.LINEARIZABLE
    max_stale_ms: int = 0


class Renew(Strict, frozen=True, tag=4):
    """Renews a session at the leader and carries its marks. Reply: RenewReply."""

    marks: Marks


class Status(Strict, frozen=True, tag=5):
    """What the node knows of itself and the group. Reply: StatusReply."""


class Ping(Strict, frozen=True, tag=6):
    """Keeps a connection alive. Reply: Pong."""


class MakeDigest(Strict, frozen=True, tag=7):
    """The digest of the last checkpoint that this node completed. Reply: DigestReply."""

    number: int
    """Of the checkpoint; 0: whatever is the latest."""


class AddMember(Strict, frozen=True, tag=8):
    """Makes a node a learner: the log is sent to it and it does not count. Leader only.

    Reply: MemberChanged. This and the other changes may be repeated: what is so already succeeds.
    """

    node: int
    """Larger than any number that was ever a member's."""
    incarnation: int
    """As `nokv init --join` drew it for the node's data directory."""
    peer: str
    """`host:port` for the other members."""
    rpc: str
    """`host:port` for clients."""


class PromoteMember(Strict, frozen=True, tag=9):
    """Makes a learner that has caught up a voter. Leader only. Reply: MemberChanged."""

    node: int


class RemoveMember(Strict, frozen=True, tag=10):
    """Removes a member that is not the leader, for ever. Leader only. Reply: MemberChanged."""

    node: int


class TransferLeadership(Strict, frozen=True, tag=11):
    """Hands leadership to a voter. Leader only. Reply: MemberChanged, once that node leads."""

    node: int = 0
    """0: the one that has most of the log."""


class OpenBackup(Strict, frozen=True, tag=12):
    """What a backup's image is, at the replica that the backup names. Reply: BackupOpened.

    NotReady while its entry is not applied there; BackupGone once nobody can read it any more. This
    and the next two show everything, so they need the cluster's token: Forbidden for Role.CLIENT.
    """

    backup: int


class ReadBackup(Strict, frozen=True, tag=13):
    """The next pieces of an open backup's image. Reply: BackupPieces."""

    backup: int
    offset: int
    """Bytes taken so far; the request before may be repeated."""


class CloseBackup(Strict, frozen=True, tag=14):
    """Lets go of an open backup's image. Reply: Pong."""

    backup: int


class OpenWatch(Strict, frozen=True, tag=15):
    """Tell every change of a directory, or below it. Reply: WatchOpened.

    Then WatchFrames follow under the same id, until CloseWatch, the end of the connection, or an
    ErrorReply: CursorTooOld where events that were not told yet were trimmed, Stale once the
    directory is gone, PermissionDenied once the caller may not read it any more.
    """

    caller: Caller
    root: At
    """A directory that the caller may read and search; or a file that it may read."""
    window_bytes: int
    """Frames that may be under way to the client; see GrantWatch."""
    recursive: bool = True
    """All below it, not only its own names."""
    kinds: tuple[int, ...] = ()
    """Tell only these (`EventKind`, `Moved`); empty: all."""
    since: int = SINCE_NOW
    """Cursor: tell what has a higher version."""
    bookmark_ms: int = BOOKMARK_MS_DEFAULT
    """While there is nothing to tell, say so often how far the cursor is."""


class GrantWatch(Strict, frozen=True, tag=16):
    """The client took so many bytes of frames: as many more may be sent. Never answered."""

    watch: int
    """Id of the OpenWatch."""
    n_bytes: int


class CloseWatch(Strict, frozen=True, tag=17):
    """Tell nothing more. Never answered, also if there is no such watch."""

    watch: int


class ReportGc(Strict, frozen=True, tag=18):
    """A worker tells its own node what it freed, and asks what to do. Reply: GcOrders."""

    totals: GcTotals
    office: int
    """Of the orders that it took last; 0: none."""
    finished: int
    """The newest run of that office that it has ended; 0: none."""
    error: str = ""
    """Why that run could not free everything, or empty."""
    gone: str | None = None
    """Which cluster has the volume because this one was stated to be gone; empty: none has. None:
    the worker has not found out yet."""


class RunGc(Strict, frozen=True, tag=19):
    """Orders a run of the collector, or asks how it goes; operators only. Reply: GcStatus.

    NotLeader at a node that does not lead: its worker does nothing.
    """

    run: bool


RequestBody = (
    Hello
    | Propose
    | Query
    | Renew
    | Status
    | Ping
    | MakeDigest
    | AddMember
    | PromoteMember
    | RemoveMember
    | TransferLeadership
    | OpenBackup
    | ReadBackup
    | CloseBackup
    | OpenWatch
    | GrantWatch
    | CloseWatch
    | ReportGc
    | RunGc
)


class Request(Strict, frozen=True):
    """One request of a connection."""

    id: int
    """Unique among the connection's open requests."""
    deadline_ms: int
    """Time left for the answer, counted from arrival; 0: the server's default."""
    shard: int
    body: RequestBody


class NodeAddress(Lenient, frozen=True):
    """A node of the group and where clients reach it."""

    node: int
    address: str


class HelloReply(Lenient, frozen=True, tag=1):
    """Who answers, and all that a client needs to know of the cluster."""

    protocol: int
    cluster: str
    node: int
    leader: str
    """The leader's RPC address, or empty."""
    nodes: tuple[NodeAddress, ...]
    volume: VolumeReply | None
    """None until the first command is applied here."""


class ErrorReply(Lenient, frozen=True, tag=8):
    """A typed error instead of an answer."""

    code: int
    message: str
    hint: str = ""
    leader: str = ""
    """With NotLeader: the leader's RPC address, or empty."""
    oldest: int = 0
    """With CursorTooOld: the oldest cursor that works."""


class Outcome(Lenient, frozen=True):
    """Of one command of a batch: its encoded `Result`, or why there is none."""

    result: bytes
    error: ErrorReply | None = None


class ResultsReply(Lenient, frozen=True, tag=2):
    """One outcome per command, in order."""

    outcomes: tuple[Outcome, ...]


class QueryReply(Lenient, frozen=True, tag=3):
    """A read's value."""

    version: int
    """The state's version that it was read at."""
    value: ReadValue


class RenewReply(Lenient, frozen=True, tag=4):
    """The session is alive for a further time to live from the sending of the renewal."""

    ttl_ns: int
    marks_number: int
    """The newest marks frame that is applied."""
    version: int


class PeerStatus(Lenient, frozen=True):
    """What the leader knows of a member."""

    node: int
    connected: bool
    match_index: int
    free_bytes: int
    lag_entries: int = 0
    """Entries of the leader's log that it lacks; 0 unless the asked node leads."""
    format_max: int = 0
    """Newest state format that it applies, as it said when it connected; 0: not heard."""


class Member(Lenient, frozen=True):
    """A member of the group's configuration."""

    node: int
    incarnation: int
    voter: bool
    """False: a learner, which is sent the log and does not count."""
    peer: str
    rpc: str


class StatusReply(Lenient, frozen=True, tag=5):
    """A node's view of itself."""

    node: int
    cluster: str
    role: str
    """'leader', 'follower', 'candidate'."""
    term: int
    leader: int
    """Node number, or 0 if unknown."""
    leader_address: str
    commit_index: int
    applied_index: int
    version: int
    log_bytes: int
    free_bytes: int
    wall_ns: int
    cluster_ns: int
    peers: tuple[PeerStatus, ...]
    counters: dict[str, int]
    format: int
    build: str
    fingerprint: bytes
    """Running hash of all results at `applied_index`."""
    clock_ns: int = 0
    """The node's own clock as it answers, ns since 1970; 0 from a node that does not say."""
    members: tuple[Member, ...] = ()
    """The configuration in force at this node; empty before it knows one."""
    format_max: int = 0
    """Newest state format that this node's build applies; `format` is the one in force."""
    recent_sync_ns: int = 0
    """How long the latest syncs of its log took, on average."""
    slow_disk: bool = False
    """They take so long that the node's part in the cluster is in danger."""
    not_ready: str = ""
    """Why it should not be asked, as `/readyz` says it; empty: it may be."""
    problem: str = ""
    """What its operator should look at, ready or not; empty: nothing."""
    reserve_bytes: int = 0
    """Below so much of `free_bytes` it counts as a node without space; 0: not said."""
    refuses_growth: bool = False
    """It leads, and refuses commands that grow the state: too few nodes have space."""


class Pong(Lenient, frozen=True, tag=6):
    """Alive."""


class MemberChanged(Lenient, frozen=True, tag=9):
    """The change is committed, or was so already."""

    node: int
    """Whom it is about; of a transfer: who leads now."""


class BackupOpened(Lenient, frozen=True, tag=12):
    """An image that is held open."""

    version: int
    format: int
    """State format of its records."""
    index: int
    term: int
    size_bytes: int
    """About the length of all pieces."""


class BackupPieces(Lenient, frozen=True, tag=13):
    """Pieces of `nokv.kv.image`; none at the end."""

    pieces: tuple[bytes, ...]


class WatchOpened(Lenient, frozen=True, tag=15):
    """What is watched from now on."""

    view: int
    inode: int
    file_type: int
    """FileType of the watched inode."""
    cursor: int
    """Everything with a higher version will be told."""


class WatchFrame(Lenient, frozen=True, tag=16):
    """Some events, in order; none: a bookmark."""

    cursor: int
    """Everything up to here was told: a watch since it goes on without gap or repetition."""
    version: int
    """The node's present one: how much more there is to look at."""
    oldest: int
    """The oldest cursor that works now."""
    events: tuple[WatchEvent, ...] = ()


class GcOrders(Lenient, frozen=True, tag=18):
    """What the worker's node wants of it."""

    office: int
    """Numbers of runs are those of one process of the node."""
    leads: bool
    """Only the leader's worker works."""
    run: int
    """Collect all that can go if this is newer than the run finished last."""
    busy: bool = False
    """Clients send commands: the worker keeps to its share."""


class GcStatus(Lenient, frozen=True, tag=19):
    """How the leader's collector stands. Its numbers begin anew with the process."""

    office: int
    """Another one than in the reply before: another process leads, and knows nothing of a run."""
    ordered: int
    """The newest run that was ordered."""
    finished: int
    """The newest that has ended."""
    error: str
    """Why it could not free everything, or empty."""
    totals: GcTotals
    reaped: int
    """Records that the leader's background work removed since it started."""
    reported_ms: int
    """Since the worker was heard; -1: not yet."""
    grace_ns: int


class DigestReply(Lenient, frozen=True, tag=7):
    """Per family the sum mod 2^128 of xxh3_128(key, value), at a checkpoint."""

    number: int
    version: int
    applied_index: int
    families: dict[str, bytes]
    digest: bytes


ResponseBody = (
    HelloReply
    | ResultsReply
    | QueryReply
    | RenewReply
    | StatusReply
    | Pong
    | DigestReply
    | MemberChanged
    | BackupOpened
    | BackupPieces
    | WatchOpened
    | WatchFrame
    | GcOrders
    | GcStatus
    | ErrorReply
)


class Response(Lenient, frozen=True):
    """The answer to the request of that id."""

    id: int
    body: ResponseBody


request_codec: Codec[Request] = Codec(Request, "request")
response_codec: Codec[Response] = Codec(Response, "response")
