"""The records of the store, and how they become bytes.

A versioned record's value is `born (8 bytes, big-endian) | MessagePack array`: the version that
wrote it stands in front, so that history can be decided without decoding. A value that is only
`born | nil` is a whiteout. Unversioned rows (sessions, pins, queues) are the bare array.
Arrays are strict and append-only; the state format version in the counters says which fields exist.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from nokv.types.formats import FIRST_STATE_FORMAT
from nokv.types.values import Lease, StoredChunk, StoredObject, Strict

BORN_BYTES = 8
_NIL = b"\xc0"

T = TypeVar("T")


class Counters(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The scalars of a shard, one META row, written once an entry."""

    format: int = FIRST_STATE_FORMAT
    """The state format in force: every record is encoded at it. Never falls; raised by a command
    in the log alone, once all members apply the next one (`nokv.types.formats`)."""
    version: int = 0
    """Of the last command. Increases by one a command; never falls."""
    next_inode: int = 2
    """Never reused; 1 is the root."""
    next_body: int = 1
    next_session: int = 1
    """Low 32 bits of the next session's id."""
    owner_epoch: int = 0
    """High 32 bits of every session id."""
    next_drop: int = 1
    next_job: int = 1
    files: int = 0
    """Inodes of every kind, staged and not yet reaped ones too."""
    size_bytes: int = 0
    """Sizes of all regular files and symbolic links, once per inode."""
    wall_ns: int = 0
    """Of the last entry; never falls."""
    cluster_ns: int = 0
    """Of the last entry; never falls."""
    jobs: int = 0
    """Rows of the reap queue: whether background work waits."""
    drops: int = 0
    """Rows of the drop queue."""
    history: int = 0
    """Rows of HISTORY."""
    sessions: int = 0
    """Sessions and tombstones."""
    first_event: int = 0
    """Cursors below this are too old."""
    fingerprint: bytes = bytes(16)
    """xxh3-128 chain over all results: replicas at one index must agree."""
    next_view: int = 1
    """Never reused; 0 is the live tree."""
    snapshots: int = 0
    """Snapshots that exist, ended ones that wait for their deletion too."""
    leased_snapshots: int = 0
    """Those of them with a lease: whether cluster time has to be proposed for them."""
    locks: int = 0
    """Lock tables: without any, nothing has to be looked for when an inode goes."""
    event_bytes: int = 0
    """Encoded length of all event records: their retention is by size too."""
    trashes: int = 0
    """Views with something in their trash: whether cluster time has to be proposed for it."""


class Acls(Strict, frozen=True):
    """Access control lists of an inode, as `nokv.state.acl` keeps them; empty: there is none."""

    access: bytes
    """Says more than the mode bits."""
    default: bytes
    """Of a directory: what is made in it gets."""


class Inode(Strict, frozen=True):
    """An inode. Key (view, inode). See inode(7)."""

    mode: int
    uid: int
    gid: int
    nlink: int
    """Names of a file; 2 + subdirectories of a directory. A staged root has none: 0, or 2."""
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent: int
    """A directory naming it; 0 for the root of a view, of a staged or of a detached tree."""
    generation: int = 0
    """Version of the publish of the present body."""
    body: int = 0
    """Chunk records lie under this id; 0: there are none."""
    body_born: int = 0
    """Version at which the body id was minted: its holds begin no earlier."""
    children: int = 0
    """Entries of a directory: rmdir never scans."""
    rdev: int = 0
    flags: int = 0
    xattr_bytes: int = 0
    """Names of its extended attributes, each with a NUL."""
    sha256: bytes = b""
    target: bytes = b""
    """Of a symbolic link."""
    stage: int = 0
    """Of a staged root: the session that owns the tree."""
    name: bytes = b""
    """Its name in `parent`, so that a path is found from below. Empty: none, several, or unknown
    since one of several went; then the directory is searched."""
    acls: Acls | None = None
    """None: the mode bits say all, which is looked at before anything is decoded."""


class Dentry(Strict, frozen=True):
    """A name. Key (view, directory, name). With `view` set it is a graft into another view."""

    file_type: int
    inode: int
    view: int | None = None
    shard: int | None = None


class Usage(Strict, frozen=True):
    """What lies below a directory. Key (view, directory)."""

    entries: int
    size_bytes: int
    grafts: int = 0
    """Views below it, nested ones too: what takes them along finds none at once."""
    entries_max: int = 0
    """The directory's quota: growth of `entries` beyond it is refused. 0: there is none."""
    size_bytes_max: int = 0
    """Likewise of `size_bytes`."""


class View(Strict, frozen=True):
    """A branch of the namespace. Key (view)."""

    root: int
    created: int
    origin: int | None = None
    origin_version: int = 0
    holder: tuple[int, int, bytes] | None = None
    """(view, directory, name) of the dentry that enters it."""
    replaces: int | None = None
    dead: int = 0
    """Version of its deletion; 0 while it lives."""
    created_wall_ns: int = 0
    identity: tuple[int, int] = (0, 0)
    """What a snapshot of its root must be of, for a rollback: handed on by rollbacks alone."""
    changed: int = 0
    """Version of its first own record; 0: it shows what its origin does. Never changes again."""
    drops: int = 0
    """Rows of the drop queue that name it; a dead view waits for them."""
    first_inode: int = 0
    """Inodes from this number on are none of its origin's. Never changes."""
    trash: int = 0
    """Its hidden trash directory; 0 while nothing lies there."""
    whiteouts: bool = False
    """It was flattened, and still has whiteouts, which hide nothing any more."""
    trash_cluster_ns: int | None = None
    """When the oldest of what lies in its trash was put there; None: nothing lies there."""


class TrashEntry(Strict, frozen=True):
    """Where something in the trash came from. Key XATTR (view, trash directory, name there)."""

    path: bytes
    """Absolute, as it was then."""
    directory: int
    """The directory that it was in."""
    name: bytes
    uid: int
    """Who put it there."""
    wall_ns: int
    cluster_ns: int
    """When: its retention counts from here."""


class Flattening(Strict, frozen=True):
    """How far a view is flattened. Key META (b"flatten/", view)."""

    at: int = 0
    """What is walked: the pinned version, 0 for the present."""
    live: int = 0
    """Version from which on the view has all that it shows itself; 0 until then."""
    pins: tuple[int, ...] = ()
    """Pinned versions that were walked."""
    done: int = 0
    """Version from which on nothing is to be copied; 0 until then. The origin goes when nobody
    reads what the view showed before."""
    swept: bytes = b""
    """Family (a byte) and key of the last own record that was looked at for a whiteout, when the
    origin has gone."""


class FlattenTodo(Strict, frozen=True):
    """An inode whose records are still to be copied. Key META (b"flatten-todo/", view, inode)."""

    after: bytes = b""
    """Of a directory: the last name that was copied."""
    chunk: int = 0
    """Of a file: the next chunk."""


class Pin(Strict, frozen=True):
    """A hold of a view's content. Key (view, version, pin id)."""

    session: int
    """Ends with this session; 0: held by something else."""
    snapshot: int = 0
    """The snapshot that holds it; 0: none."""
    clone: int = 0
    """The view whose origin it keeps; 0: none."""
    until_cluster_ns: int = 0
    """End of the lease of its snapshot: nobody reads by it from then on. 0: there is none."""


class Nested(Strict, frozen=True):
    """A view that a snapshot took along, and the graft that led to it at its version."""

    view: int
    in_view: int
    directory: int
    name: bytes


class Snapshot(Strict, frozen=True):
    """A snapshot. Key META (b"snapshot/", name)."""

    snapshot: int
    """Its id, the version of its command; also the id of its pins."""
    path: bytes
    view: int
    inode: int
    version: int
    """Of what it shows; all its views are pinned there."""
    identity: tuple[int, int]
    """Of the directory: what a rollback compares."""
    owner: int
    """uid of the directory's owner as it shows it."""
    created_wall_ns: int
    until_cluster_ns: int = 0
    """End of its lease; 0: held."""
    automatic: bool = False
    nested: tuple[Nested, ...] = ()
    maker: int = 0
    """uid of who made it: may renew and delete it, whoever owns the directory."""


class Session(Strict, frozen=True):
    """A session, or its tombstone. Key (session, 0)."""

    nonce: bytes
    ttl_ns: int
    opened: int
    acked: int = 0
    """Every result up to here was received; their rows are gone. Never falls."""
    number: int = 0
    """Of the newest marks frame that was applied. Never falls."""
    floor: int = 0
    """Never falls."""
    watermark: int = 1
    """Uploads below, unpublished, are abandoned. Never falls."""
    next_upload: int = 1
    leases: tuple[Lease, ...] = ()
    stages: tuple[tuple[int, int], ...] = ()
    """(view, inode) of its staged roots."""
    died: int = 0
    """Version of its end; 0 while alive."""
    died_cluster_ns: int = 0
    results: int = 0
    """Result rows that are kept."""
    abandoned_cluster_ns: int = 0
    """When the watermark last rose: the grace of abandoned uploads counts from here."""
    locks: int = 0
    """Ranges that its owners hold, and requests of theirs that wait."""
    pins: int = 0
    """Pins that end with it."""


class Drop(Strict, frozen=True):
    """Holds that ended. Key (queue number).

    With an empty `history` the whole body (view, inode, body) went, its chunk records still there;
    else `objects` went from one chunk, and the HISTORY row of that key showed them. Body 0 stands
    for all that the view shows: the view itself ended, or needs its origin no more (`flat`).
    """

    view: int
    inode: int
    body: int
    born: int
    """Earliest begin of its holds."""
    death: int
    """Version of the command that ended them."""
    cluster_ns: int
    """Of that command: the grace counts from here."""
    objects: tuple[StoredObject, ...] = ()
    history: bytes = b""
    """Key of the HISTORY row that goes with it; empty for a whole body."""
    births: tuple[int, ...] = ()
    """When the hold of each of `objects` began."""
    flat: bool = False
    """Of body 0: the view has copied all that it shows, and with the row loses its origin."""
    size_bytes: int = 0
    """Of a body that began in the view its size, of objects their lengths: what `Kept` counts."""
    pins: tuple[int, int] | None = None
    """The oldest and the newest pin that kept it when it ended; None: none, or it has no bytes."""


class Kept(Strict, frozen=True):
    """Holds that ended and wait for the same pins. Key META (b"kept/", view, newest, oldest)."""

    size_bytes: int = 0
    holds: int = 0
    """Rows of the drop queue; the record goes with the last."""


class Job(Strict, frozen=True):
    """Background work, done in bounded steps. Key META (b"job", number)."""

    kind: int
    """JobKind."""
    view: int
    a: int
    """ORPHAN: the directory or file. UNPIN: the pin's version. SESSION: the session. BACKUP: its
    number."""
    b: int = 0
    """ORPHAN: the version at which it was detached. SESSION: unused."""
    pin: tuple[int, int] = (0, 0)
    """BACKUP: (version, id) behind the last pin of `view` that was looked at."""


class Backup(Strict, frozen=True):
    """A backup. Key META (b"backup/", version of its command)."""

    name: str
    cluster: str
    """The cluster that made it: a restored one knows its original's too."""
    version: int
    """What its image shows: the last version of its entry. Every view is pinned there."""
    where: str
    """'bucket', or 'file:' and a path on the machine that asked for it."""
    node: int
    """The replica that reads it."""
    session: int
    """Its maker's, with which an unfinished one is given up; 0 afterwards."""
    created_wall_ns: int
    until_cluster_ns: int
    """End of its retention."""
    complete: bool = False
    """All of its bytes are stored."""
    ended_cluster_ns: int = 0
    """When it was given up; 0 while it is kept. The hold goes later, with the record."""
    size_bytes: int = 0
    digest: bytes = b""
    slot: int = 0
    """Number of the period that a scheduled one is of; 0: made by hand."""


class Origin(Strict, frozen=True):
    """Where a restored state came from. Key META (b"origin"); absent in all others."""

    cluster: str
    """The restored cluster's own id."""
    version: int
    """What the backup's image showed: no hold born up to it is safe before the adoption."""
    lineage: tuple[tuple[str, str], ...]
    """(cluster, its backup's place in the bucket) that this one may share objects with."""
    silence_ns: int
    """Nothing is served for so long."""
    ready: bool = False
    """The new owner epoch is drawn and every session of the backup ended. Never falls."""
    adopted: bool = False
    """An operator stated that the original is gone. Never falls."""
    epochs: tuple[int, ...] = ()
    """Owner epochs of the states before."""


class StoredEvent(Strict, frozen=True):
    """One change, as stored: chains are indexes into the record's list."""

    version: int
    kind: int
    view: int
    chain: int
    name: bytes
    inode: int
    to_chain: int = -1
    to_name: bytes = b""
    size: int = 0
    generation: int = 0
    session: int = 0
    seq: int = 0
    names: tuple[bytes, ...] = ()
    inode_view: int | None = None
    """View of `inode` where that is not `view`: behind a graft."""


class EventRecord(Strict, frozen=True):
    """All events of one entry. Key (last version of the entry)."""

    wall_ns: int
    chains: tuple[tuple[int, ...], ...]
    """Directories from a parent up to its root, both included."""
    events: tuple[StoredEvent, ...]
    cluster_ns: int = 0
    """Of the entry: retention counts in it."""


class Position(Strict, frozen=True):
    """How far the log is applied; opaque to the commands."""

    index: int
    term: int
    config: bytes
    skips: tuple[tuple[int, int, int], ...] = ()
    """Entries up to `index` that were skipped: index, term and CRC-32C of each."""


encode = msgspec.msgpack.Encoder().encode
decode_inode = msgspec.msgpack.Decoder(Inode).decode
decode_dentry = msgspec.msgpack.Decoder(Dentry).decode
decode_usage = msgspec.msgpack.Decoder(Usage).decode
decode_view = msgspec.msgpack.Decoder(View).decode
decode_pin = msgspec.msgpack.Decoder(Pin).decode
decode_session = msgspec.msgpack.Decoder(Session).decode
decode_kept = msgspec.msgpack.Decoder(Kept).decode
decode_drop = msgspec.msgpack.Decoder(Drop).decode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_events = msgspec.msgpack.Decoder(EventRecord).decode
decode_backup = msgspec.msgpack.Decoder(Backup).decode
decode_origin = msgspec.msgpack.Decoder(Origin).decode
decode_flattening = msgspec.msgpack.Decoder(Flattening).decode
decode_flatten_todo = msgspec.msgpack.Decoder(FlattenTodo).decode
decode_trash_entry = msgspec.msgpack.Decoder(TrashEntry).decode
decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
decode_counters = msgspec.msgpack.Decoder(Counters).decode
decode_position = msgspec.msgpack.Decoder(Position).decode
decode_count = msgspec.msgpack.Decoder(int).decode
decode_value = msgspec.msgpack.Decoder(bytes).decode
_decode_array = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
decode_chunk = msgspec.msgpack.Decoder(StoredChunk).decode


def decode_format(counters: bytes) -> int:
    """Return the state format in force by encoded counters, also of a newer build."""
    return decode_count(_decode_array(counters)[0])


def whiteout(version: int) -> bytes:
    """Return the value that hides what a view's origin shows, written by `version`."""
    return version.to_bytes(BORN_BYTES, "big") + _NIL


def is_whiteout(value: bytes) -> bool:
    """Whether a versioned value hides what the origin shows."""
    return len(value) == BORN_BYTES + 1 and value[BORN_BYTES:] == _NIL


def body_of(value: bytes) -> bytes:
    """Return a versioned value without its `born`."""
    return value[BORN_BYTES:]


def born_of(value: bytes) -> int:
    """Return the version that wrote a versioned value."""
    return int.from_bytes(value[:BORN_BYTES], "big")
