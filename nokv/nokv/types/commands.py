"""The commands: all that can change a namespace. One `Command` is one version.

Operations are tagged arrays, `[tag, field, ...]`; tags are part of the log's format and are never
reused. `Atomic` holds operations and is itself none of those it may hold, so nothing recurses.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nokv.types.copies import Copy, CopyRange, SetQuota
from nokv.types.locks import CancelLock, SetLock, Unlock
from nokv.types.trash import EmptyTrash, ExpireTrash, KeepTrash, RestoreTrash, Trash
from nokv.types.values import At, Caller, ChunkMap, Marks, Strict, Volume
from nokv.types.views import (
    Clone,
    ExpireSnapshots,
    Flatten,
    Rollback,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotRenew,
    WorkspaceCreate,
)

COMMAND_FORMAT = 1

TIME_NOW = -1
"""A time of this value means the entry's wall clock (UTIME_NOW of utimensat(2))."""


class PublishMode(IntEnum):
    """What a publish does with the present body."""

    CREATE = 0
    """The name must be free (AlreadyExists)."""
    REPLACE = 1
    """Replaces the body of a regular file, or creates it."""
    REPLACE_GENERATION = 2
    """As REPLACE, only if the generation is `if_generation` (GenerationMismatch); 0 = no body."""
    PATCH = 3
    """Rewrites the ranges that the chunks cover; the file must exist."""
    APPEND = 4
    """The chunks' offsets count from the end of the file, chosen in apply."""
    FOLD = 5
    """As PATCH, with the bytes that stand there already, in fewer extents: an append-only file
    takes it too. Only if the generation is `if_generation` (GenerationMismatch)."""


class RenameFlag(IntFlag):
    """Flags of renameat2(2)."""

    NOREPLACE = 1
    EXCHANGE = 2


class XattrFlag(IntEnum):
    """Flags of setxattr(2)."""

    EITHER = 0
    CREATE = 1
    REPLACE = 2


class StageMode(IntEnum):
    """How a staged tree enters the namespace."""

    CREATE = 0
    """The name must be free."""
    REPLACE = 1
    """What the name shows is replaced whole; its tree is reaped in the background."""


# ---------------------------------------------------------------- operations inside Atomic too


class Mkdir(Strict, frozen=True, tag=1):
    """mkdirat(2). Result: Made."""

    parent: At
    name: bytes
    mode: int
    """Permission bits."""
    umask: int = 0
    """Bits to leave out, unless the parent has a default access list, which takes its place."""


class Create(Strict, frozen=True, tag=2):
    """Create an empty regular file; the name must be free. Result: Made."""

    parent: At
    name: bytes
    mode: int
    umask: int = 0


class BulkCreate(Strict, frozen=True, tag=3):
    """Create empty regular files of one mode in one parent, all or none. Result: MadeMany."""

    parent: At
    names: tuple[bytes, ...]
    """Distinct, at most BULK_NAMES_MAX."""
    mode: int
    umask: int = 0


class Mknod(Strict, frozen=True, tag=4):
    """mknod(2): FIFO, socket, device or regular file. Devices need uid 0. Result: Made."""

    parent: At
    name: bytes
    mode: int
    """With the type bits."""
    rdev: int = 0
    umask: int = 0


class Symlink(Strict, frozen=True, tag=5):
    """symlink(2). Result: Made."""

    parent: At
    name: bytes
    target: bytes


class Link(Strict, frozen=True, tag=6):
    """linkat(2): a further name of a file that is no directory. Result: Made."""

    source: At
    parent: At
    name: bytes


class Unlink(Strict, frozen=True, tag=7):
    """Remove a name that is no directory. Result: Done."""

    parent: At
    name: bytes


class Rmdir(Strict, frozen=True, tag=8):
    """Remove an empty directory. Result: Done."""

    parent: At
    name: bytes


class Rename(Strict, frozen=True, tag=9):
    """renameat2(2). Result: Done."""

    source: At
    source_name: bytes
    target: At
    target_name: bytes
    flags: int = 0


class SetAttr(Strict, frozen=True, tag=10):
    """chmod, chown, utimensat, truncate, inode flags: None leaves a field. Result: Made."""

    target: At
    mode: int | None = None
    """Permission bits (07777)."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    """TIME_NOW for the entry's time."""
    mtime_ns: int | None = None
    flags: int | None = None


class SetXattr(Strict, frozen=True, tag=11):
    """setxattr(2). Result: Done."""

    target: At
    name: bytes
    value: bytes
    flags: int = 0


class RemoveXattr(Strict, frozen=True, tag=12):
    """removexattr(2). Result: Done."""

    target: At
    name: bytes


class Publish(Strict, frozen=True, tag=13):
    """Make an uploaded body visible as a new generation. Result: Published.

    An empty `name` addresses the file by `parent` itself (a handle), which then must exist.
    """

    parent: At
    name: bytes
    publish_mode: int
    mode: int
    """Permission bits of a file that this creates."""
    size: int
    """CREATE, REPLACE: the size. PATCH: at least so large afterwards. APPEND: bytes appended.
    FOLD: at most the size."""
    upload: int
    """The session's upload that holds the parts; 0 where every extent is inline."""
    chunks: tuple[ChunkMap, ...]
    if_generation: int = 0
    sha256: bytes = b""
    mtime_ns: int = TIME_NOW
    umask: int = 0


class StageSwap(Strict, frozen=True, tag=14):
    """Make a staged tree or file visible under a name, atomically. Result: Published."""

    view: int
    stage: int
    """The staged root's inode."""
    parent: At
    name: bytes
    stage_mode: int


class RemoveTree(Strict, frozen=True, tag=15):
    """Detach a whole tree; the caller needs write permission in it. Result: Done.

    Refused with NotPermitted unless the caller is root or owns every directory that is checked:
    the directory itself (the tree below is reaped without further checks).
    """

    parent: At
    name: bytes


InnerOp = (
    Mkdir
    | Create
    | BulkCreate
    | Mknod
    | Symlink
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetAttr
    | SetXattr
    | RemoveXattr
    | Publish
    | StageSwap
    | RemoveTree
    | Copy
    | CopyRange
    | SetQuota
    | Trash
    | RestoreTrash
)


# ---------------------------------------------------------------- operations that stand alone


class Atomic(Strict, frozen=True, tag=32):
    """All of the operations or none, each with its own version. Result: AtomicDone."""

    ops: tuple[InnerOp, ...]


class StageBegin(Strict, frozen=True, tag=33):
    """Make a hidden root that only this session addresses. Result: Made."""

    view: int
    mode: int
    """With the type bits: a directory, or a regular file."""
    parent: At | None = None
    """The directory that a tree is to enter: quotas above it are then checked as it is built."""
    name: bytes = b""
    """The name that it is to take there, perhaps another tree's."""


class StageDrop(Strict, frozen=True, tag=34):
    """Give a staged tree up; it is reaped. Result: Done."""

    view: int
    stage: int


class OpenSession(Strict, frozen=True, tag=35):
    """Open a session; the nonce makes a repeated opening the same one. Result: SessionOpened."""

    nonce: bytes
    """16 random bytes."""
    ttl_ns: int


class ExpireSession(Strict, frozen=True, tag=36):
    """End a session: by its own client, or by the leader after a full time to live."""

    target: int


class LeaseUploads(Strict, frozen=True, tag=37):
    """Lease numbers for uploads. Result: Leased."""

    count: int


class PinView(Strict, frozen=True, tag=38):
    """Hold the view's content as it was before this command. Result: Pinned.

    The pin belongs to the session and ends with it.
    """

    view: int


class UnpinView(Strict, frozen=True, tag=39):
    """Let a pin go; what only it held is reaped. Result: Done."""

    view: int
    version: int
    pin: int


class CreateBackup(Strict, frozen=True, tag=40):
    """Hold the volume as it is after this command's entry. Result: Done; its version is the id.

    Given up when its session ends before `FinishBackup`.
    """

    name: str
    node: int
    """The replica that opens the image."""
    keep_ns: int
    """Retention, in cluster time."""
    where: str
    cluster: str
    slot: int = 0
    """Of a scheduled one, ms since 1970: AlreadyExists unless it is above the slots of all that
    were not given up half made, InvalidArgument above the entry's wall clock."""


class FinishBackup(Strict, frozen=True, tag=41):
    """All bytes of a backup are stored. Result: Done."""

    backup: int
    size_bytes: int
    digest: bytes


class EndBackup(Strict, frozen=True, tag=42):
    """Give a backup up; with `release` let go of what it held. Result: Done."""

    backup: int
    release: bool = False


class AdoptVolume(Strict, frozen=True, tag=43):
    """State that every other cluster of this volume is gone. Result: Done."""


# ---------------------------------------------------------------- internal: leader and worker only


class InitVolume(Strict, frozen=True, tag=64):
    """The first command of a cluster: volume, root directory, owner epoch. Result: Done."""

    volume: Volume
    owner_epoch: int
    """High 32 bits of every session id; drawn anew by a restore."""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


class SessionMarks(Strict, frozen=True, tag=65):
    """The marks that changed in the last second, of all sessions. Result: Done."""

    frames: tuple[Marks, ...]


class Reap(Strict, frozen=True, tag=66):
    """One bounded step of background work. Result: Reaped."""

    limit: int
    """Records that this step may remove."""


class Collected(Strict, frozen=True, tag=67):
    """The objects of these drop rows are deleted from the store. Result: Reaped.

    As `GetDrops` answered them, so that a repeated one removes nothing else.
    """

    drops: tuple[tuple[int, int], ...]
    """(drop row, last chunk whose objects are gone)."""


class Swept(Strict, frozen=True, tag=68):
    """A whole listing begun at `begun_cluster_ns` found nothing left of a dead session's uploads.

    Result: Done. Removes a tombstone that is old enough, if the listing began when the session had
    been dead for the grace: a PUT that was under way at its death has ended by then.
    """

    target: int
    begun_cluster_ns: int
    """Read from the state before the listing began."""
    grace_ns: int = 0
    """The collector's (`worker.grace_ms`)."""


class Checkpoint(Strict, frozen=True, tag=69):
    """Every replica commits exactly here and digests its state. Result: Done."""

    number: int


class TrimEvents(Strict, frozen=True, tag=70):
    """Drop event records whose key is below this version. Result: Reaped."""

    below: int
    limit: int


class RaiseFormat(Strict, frozen=True, tag=71):
    """Raise the state format version, once all members speak it. Result: Done."""

    format: int


class RestoreVolume(Strict, frozen=True, tag=72):
    """End a restored volume's silence: a new owner epoch. Result: Done."""

    owner_epoch: int


Op = (
    Mkdir
    | Create
    | BulkCreate
    | Mknod
    | Symlink
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetAttr
    | SetXattr
    | RemoveXattr
    | Publish
    | StageSwap
    | RemoveTree
    | Copy
    | CopyRange
    | SetQuota
    | Trash
    | RestoreTrash
    | Atomic
    | StageBegin
    | StageDrop
    | OpenSession
    | ExpireSession
    | LeaseUploads
    | PinView
    | UnpinView
    | CreateBackup
    | FinishBackup
    | EndBackup
    | AdoptVolume
    | SnapshotCreate
    | SnapshotRenew
    | SnapshotDelete
    | Clone
    | WorkspaceCreate
    | Rollback
    | EmptyTrash
    | KeepTrash
    | SetLock
    | Unlock
    | CancelLock
    | InitVolume
    | SessionMarks
    | Reap
    | Collected
    | Swept
    | Checkpoint
    | TrimEvents
    | RaiseFormat
    | RestoreVolume
    | ExpireSnapshots
    | Flatten
    | ExpireTrash
)

INTERNAL_OPS: tuple[type[Strict], ...] = (
    InitVolume,
    SessionMarks,
    Reap,
    Collected,
    Swept,
    Checkpoint,
    TrimEvents,
    RaiseFormat,
    RestoreVolume,
    ExpireSnapshots,
    Flatten,
    ExpireTrash,
)
"""Accepted from the node itself and its worker only."""

OPERATOR_OPS: tuple[type[Strict], ...] = (CreateBackup, FinishBackup, EndBackup, AdoptVolume)
"""Accepted from whoever proves himself by the cluster's token."""

SHRINKING_OPS: tuple[type[Strict], ...] = (
    Unlink,
    Rmdir,
    RemoveTree,
    StageDrop,
    OpenSession,
    ExpireSession,
    UnpinView,
    FinishBackup,
    EndBackup,
    SessionMarks,
    Reap,
    Collected,
    Swept,
    TrimEvents,
    Checkpoint,
    RestoreVolume,
    SnapshotDelete,
    ExpireSnapshots,
    EmptyTrash,
    ExpireTrash,
    Unlock,
    CancelLock,
)
"""Go on while the disk is nearly full; a client needs a session to remove anything."""


# ---------------------------------------------------------------- predicates


class Exists(Strict, frozen=True, tag=1):
    """The address shows something."""

    at: At


class Absent(Strict, frozen=True, tag=2):
    """The address shows nothing."""

    at: At


class VersionIs(Strict, frozen=True, tag=3):
    """The inode record was written last by this version."""

    at: At
    version: int


class GenerationIs(Strict, frozen=True, tag=4):
    """The file's present body was published by this version."""

    at: At
    generation: int


Predicate = Exists | Absent | VersionIs | GenerationIs


class Command(Strict, frozen=True):
    """One command of the log, independent of its neighbours."""

    format: int
    """COMMAND_FORMAT."""
    session: int
    """0 for openings and internal commands, which are not deduplicated by sequence."""
    seq: int
    """Unique in the session, ascending from 1; a retry carries the same."""
    acked: int
    """Every result up to this sequence number has reached the client: the server drops them."""
    caller: Caller
    op: Op
    predicates: tuple[Predicate, ...] = ()
