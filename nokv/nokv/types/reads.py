"""The reads. Each is a pure function of the state: at present, or at a version that is pinned."""

from __future__ import annotations

from nokv.types.copies import GetQuota, QuotaReply
from nokv.types.diffs import Diff, DiffReply, History, HistoryReply
from nokv.types.gc import (
    GetPendingDrops,
    GetWaiting,
    ListWaitingSessions,
    PendingDropsReply,
    WaitingReply,
    WaitingSessionsReply,
)
from nokv.types.locks import LockConflict, LocksWaited, TestLock, WaitLocks
from nokv.types.trash import ListTrash, TrashPage
from nokv.types.values import At, Attr, Lenient, StoredChunk, Strict
from nokv.types.views import (
    GetSnapshot,
    ListSnapshots,
    ListViews,
    SnapshotReply,
    SnapshotsReply,
    ViewsReply,
)

PRESENT = 0
"""As `at_version`: read what is current."""


class GetAttr(Strict, frozen=True, tag=1):
    """Resolve an address. Reply: AttrReply."""

    at: At
    at_version: int = PRESENT


class Lookup(Strict, frozen=True, tag=2):
    """One name in a directory, a symbolic link not followed. Reply: AttrReply."""

    parent: At
    name: bytes
    at_version: int = PRESENT


class ReadLink(Strict, frozen=True, tag=3):
    """readlink(2). Reply: BytesReply."""

    at: At
    at_version: int = PRESENT


class ReadDir(Strict, frozen=True, tag=4):
    """A page of a directory in the order of the names' bytes. Reply: DirPage.

    An entry that is there during the whole listing is returned exactly once, whatever happens to
    the others between the pages.
    """

    at: At
    after: bytes = b""
    """The last name of the page before; empty at the start."""
    limit: int = 1024
    plus: bool = False
    """With attributes (readdirplus)."""
    at_version: int = PRESENT


class BodyMap(Strict, frozen=True, tag=5):
    """The chunks that a range of a regular file touches. Reply: BodyMapReply."""

    at: At
    offset: int
    length: int
    at_version: int = PRESENT
    session: int = 0
    """A reader with leases names its session, so that a leased old body stays readable."""
    body: int = 0
    """With `session`: the body of a lease, shown as of `lease_version`; 0 reads the present one."""
    lease_version: int = 0
    """With `body`: the version of the lease, of which a session may have several for one body."""


class GetXattr(Strict, frozen=True, tag=6):
    """getxattr(2). Reply: BytesReply."""

    at: At
    name: bytes
    at_version: int = PRESENT


class ListXattr(Strict, frozen=True, tag=7):
    """listxattr(2). Reply: NamesReply."""

    at: At
    at_version: int = PRESENT


class StatFs(Strict, frozen=True, tag=8):
    """Exact counts of the whole volume, O(1). Reply: StatFsReply."""


class GetUsage(Strict, frozen=True, tag=9):
    """Exact entries and bytes of the tree below a directory, O(1). Reply: UsageReply."""

    at: At
    at_version: int = PRESENT


class ReadEvents(Strict, frozen=True, tag=10):
    """Events with a version above the cursor. Reply: EventsReply, or CursorTooOld."""

    cursor: int
    limit: int = 256
    """Event records of the page."""


class GetSession(Strict, frozen=True, tag=11):
    """What is known of a session. Reply: SessionReply."""

    session: int


class Access(Strict, frozen=True, tag=12):
    """access(2) for the caller. Reply: AttrReply, or PermissionDenied."""

    at: At
    mask: int
    """R_OK | W_OK | X_OK."""
    at_version: int = PRESENT


class GetDrops(Strict, frozen=True, tag=32):
    """Drop rows whose holds are all safe, with the objects to delete. Reply: DropsReply."""

    after: int
    limit: int
    grace_ns: int


class ListSessions(Strict, frozen=True, tag=33):
    """Sessions and tombstones in the order of their ids. Reply: SessionsReply."""

    after: int
    limit: int
    above: int = 0
    """If not 0, session `after` comes first, with its ranges beyond this upload only."""


class GetPending(Strict, frozen=True, tag=34):
    """How much background work waits. Reply: PendingReply."""


class ListBodies(Strict, frozen=True, tag=35):
    """Chunk records in key order, live and historic: what fsck compares. Reply: BodiesReply."""

    after: bytes
    limit: int
    view: int = -1
    """Only this view's own, and only the live ones; -1: all."""


class GetVolume(Strict, frozen=True, tag=36):
    """The volume record. Reply: VolumeReply."""


class ListBackups(Strict, frozen=True, tag=37):
    """Every backup. Reply: BackupsReply."""


class GetOrigin(Strict, frozen=True, tag=38):
    """Whether the volume was restored, and from what. Reply: OriginReply."""


Read = (
    GetAttr
    | Lookup
    | ReadLink
    | ReadDir
    | BodyMap
    | GetXattr
    | ListXattr
    | StatFs
    | GetUsage
    | ReadEvents
    | GetSession
    | Access
    | GetDrops
    | ListSessions
    | GetPending
    | ListBodies
    | GetVolume
    | ListBackups
    | GetOrigin
    | GetSnapshot
    | ListSnapshots
    | ListViews
    | GetQuota
    | ListTrash
    | Diff
    | History
    | TestLock
    | WaitLocks
    | GetPendingDrops
    | GetWaiting
    | ListWaitingSessions
)


# ---------------------------------------------------------------- replies


class AttrReply(Lenient, frozen=True, tag=1):
    """One inode."""

    attr: Attr


class BytesReply(Lenient, frozen=True, tag=2):
    """A link's target or an attribute's value."""

    data: bytes


class NamesReply(Lenient, frozen=True, tag=3):
    """Names of extended attributes, in order."""

    names: tuple[bytes, ...]


class DirEntry(Lenient, frozen=True):
    """One name of a directory."""

    name: bytes
    inode: int
    file_type: int
    """FileType."""
    view: int
    attr: Attr | None = None


class DirPage(Lenient, frozen=True, tag=4):
    """Entries after the cursor."""

    entries: tuple[DirEntry, ...]
    more: bool
    directory: Attr
    after: bytes
    """Cursor of the next page: pages are bounded by names examined, not returned."""


class ChunkAt(Lenient, frozen=True):
    """One chunk of a body."""

    index: int
    chunk: StoredChunk


class BodyMapReply(Lenient, frozen=True, tag=5):
    """The file as it is, and the chunks of the range that have a record."""

    attr: Attr
    chunks: tuple[ChunkAt, ...]
    next_chunk: int
    """First chunk not examined, where the reply was cut; 0: complete."""


class StatFsReply(Lenient, frozen=True, tag=6):
    """Exact totals. Staged files count."""

    files: int
    """Inodes of every type."""
    bytes: int
    """Sum of the sizes of all regular files and symbolic links' targets."""


class UsageReply(Lenient, frozen=True, tag=7):
    """Exact totals of one tree, the directory itself not counted; once per name."""

    entries: int
    bytes: int


class Event(Lenient, frozen=True):
    """One change. `chain` and `to_chain` are directory chains from the parent to the root."""

    version: int
    kind: int
    """EventKind."""
    view: int
    chain: tuple[int, ...]
    name: bytes
    inode: int
    to_chain: tuple[int, ...]
    to_name: bytes
    size: int
    generation: int
    session: int
    seq: int
    names: tuple[bytes, ...]
    """Of a bulk create; inodes count up from `inode`."""
    wall_ns: int
    inode_view: int = 0
    """View of `inode`; another one than `view` where the name is a graft."""


class EventsReply(Lenient, frozen=True, tag=8):
    """Whole records; the next cursor is the last record's key, or the present version."""

    events: tuple[Event, ...]
    cursor: int
    more: bool


class SessionReply(Lenient, frozen=True, tag=9):
    """A session, or its tombstone."""

    session: int
    alive: bool
    ttl_ns: int
    opened: int
    acked: int
    watermark: int
    next_upload: int
    floor: int
    marks_number: int
    died: int
    """Version of its expiry; 0 while alive."""
    died_cluster_ns: int
    consumed: tuple[tuple[int, int], ...] = ()
    """Ranges [first, last] of published uploads, ascending; RANGES_PAGE_MAX in one reply."""


class SessionsReply(Lenient, frozen=True, tag=10):
    """A page."""

    sessions: tuple[SessionReply, ...]
    more: bool
    cluster_ns: int
    above: int = 0
    """If not 0, the last session has published uploads beyond this one that did not fit: they are
    asked for with its id and this number."""


class DroppedObject(Lenient, frozen=True):
    """An object to delete."""

    session: int
    upload: int
    chunk: int
    block: int
    piece: int
    length: int = 0
    """Bytes."""


class DropReply(Lenient, frozen=True):
    """One drop row and the objects that go with it: a large body comes in several pages."""

    drop: int
    through: int
    """Last chunk that `objects` covers; `Collected` names it."""
    objects: tuple[DroppedObject, ...]


class DropsReply(Lenient, frozen=True, tag=11):
    """A page of what may be deleted now."""

    drops: tuple[DropReply, ...]
    more: bool
    after: int


class PendingReply(Lenient, frozen=True, tag=12):
    """Rows of background work."""

    drops: int
    history: int
    jobs: int
    sessions: int


class BodyRow(Lenient, frozen=True):
    """One chunk record."""

    view: int
    inode: int
    body: int
    chunk: int
    live: bool
    objects: tuple[DroppedObject, ...]
    lengths: tuple[int, ...]


class BodiesReply(Lenient, frozen=True, tag=13):
    """A page of chunk records."""

    rows: tuple[BodyRow, ...]
    more: bool
    after: bytes


class VolumeReply(Lenient, frozen=True, tag=14):
    """The volume record, and the owner epoch."""

    volume: str
    kind: str
    endpoint: str
    bucket: str
    prefix: str
    region: str
    inline_max: int
    chunk_bytes: int
    block_bytes: int
    owner_epoch: int = 0


class BackupRow(Lenient, frozen=True):
    """A backup as the state knows it."""

    backup: int
    name: str
    cluster: str
    version: int
    where: str
    node: int
    created_wall_ns: int
    until_cluster_ns: int
    complete: bool
    ended_cluster_ns: int
    size_bytes: int
    digest: bytes
    slot: int


class BackupsReply(Lenient, frozen=True, tag=15):
    """All of them, oldest first."""

    rows: tuple[BackupRow, ...]
    cluster_ns: int


class OriginReply(Lenient, frozen=True, tag=16):
    """Of a volume that was never restored: adopted, with no lineage."""

    restored: bool
    ready: bool
    adopted: bool
    version: int
    lineage: tuple[tuple[str, str], ...]


ReadValue = (
    AttrReply
    | BytesReply
    | NamesReply
    | DirPage
    | BodyMapReply
    | StatFsReply
    | UsageReply
    | EventsReply
    | SessionReply
    | SessionsReply
    | DropsReply
    | PendingReply
    | BodiesReply
    | VolumeReply
    | BackupsReply
    | OriginReply
    | SnapshotReply
    | SnapshotsReply
    | ViewsReply
    | QuotaReply
    | TrashPage
    | DiffReply
    | HistoryReply
    | LockConflict
    | LocksWaited
    | PendingDropsReply
    | WaitingReply
    | WaitingSessionsReply
)
