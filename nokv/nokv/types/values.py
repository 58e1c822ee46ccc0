"""The values of the vocabulary: who calls, how a thing is named, what an inode looks like.

Everything that is stored or that enters the log derives from `Strict`, which refuses unknown
fields; what a server answers derives from `Lenient`, so that an older client reads a newer reply.
Both are arrays on the wire: fields are appended, never moved or removed.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import msgspec

ROOT_VIEW = 0
ROOT_INODE = 1


class Strict(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Base of what is stored, logged or sent to a server."""


class Lenient(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of what a server answers: unknown trailing fields are dropped."""


class FileType(IntEnum):
    """The type bits of a mode, shifted right by 12 (inode(7))."""

    FIFO = 0o1
    CHARACTER = 0o2
    DIRECTORY = 0o4
    BLOCK = 0o6
    REGULAR = 0o10
    SYMLINK = 0o12
    SOCKET = 0o14


class InodeFlag(IntFlag):
    """Inode flags that the state machine enforces (ioctl_iflags(2)); set by root only."""

    IMMUTABLE = 1
    APPEND = 2


class Caller(Strict, frozen=True):
    """On whose behalf a command or a read runs; checked in apply by POSIX rules."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    """Supplementary groups, at most GROUPS_MAX."""
    principal: str = ""
    """Who authenticated the connection; empty until there is authentication."""


class At(Strict, frozen=True):
    """An address like openat(2): start at (view, inode) and walk the components.

    Resolved in apply, with the caller's permissions; nobody resolves first and acts later.
    """

    view: int = ROOT_VIEW
    inode: int = ROOT_INODE
    path: tuple[bytes, ...] = ()
    """Names without '/' or NUL. '.' and '..' are walked as POSIX says."""
    follow: bool = True
    """Whether a symbolic link in the last component is followed."""


class Attr(Lenient, frozen=True):
    """What stat(2) and more say of an inode. Times are ns since 1970, sizes bytes."""

    view: int
    inode: int
    mode: int
    """Type and permission bits (st_mode)."""
    uid: int
    gid: int
    nlink: int
    size: int
    """Bytes of the body; of a symbolic link its target's; of a directory 0."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    """The version of the command that wrote this record last."""
    generation: int
    """The version of the command that published the present body; 0 before the first."""
    rdev: int = 0
    flags: int = 0
    children: int = 0
    """Entries of a directory, '.' and '..' apart."""
    body: int = 0
    """Id of the body the chunk records are stored under; 0 while there is none."""
    sha256: bytes = b""
    """Of the whole body, where its publish recorded it; 32 bytes or empty."""
    parent: int = 0
    """A directory that names the inode (of a directory: its '..')."""
    acls: int = 0
    """1: it has an access control list; 2: a directory's default one. Mode bits say all else."""


class ObjectPart(Strict, frozen=True):
    """One object of the upload that a publish consumes; names count within that upload."""

    chunk: int
    block: int
    piece: int
    length: int
    """Bytes of the whole object."""
    sums: bytes
    """xxh3-64, big-endian, of each SUM_BYTES of the object: 8 bytes each, the last of the rest."""


class Extent(Strict, frozen=True):
    """A run of bytes of a file inside one chunk, as a publish names it."""

    offset: int
    """Of the first byte, within the chunk."""
    length: int
    part: int = -1
    """Index into the chunk's parts, or -1: the bytes are in `data`."""
    part_offset: int = 0
    data: bytes = b""


class ChunkMap(Strict, frozen=True):
    """The extents of one chunk, ascending and disjoint; what no extent covers reads as zeros."""

    index: int
    """The chunk covers file bytes [index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES)."""
    parts: tuple[ObjectPart, ...]
    extents: tuple[Extent, ...]


class StoredObject(Strict, frozen=True):
    """An object named by a chunk record, with all that its name needs and its checksums."""

    session: int
    upload: int
    chunk: int
    block: int
    piece: int
    length: int
    sums: bytes


class StoredExtent(Strict, frozen=True):
    """An extent of a chunk record."""

    offset: int
    length: int
    object: int
    """Index into the chunk's objects, or -1: inline."""
    object_offset: int
    born: int
    """Version at which this hold of the object began; never the record's."""
    data: bytes = b""


class StoredChunk(Strict, frozen=True):
    """A chunk record, also as readers get it."""

    objects: tuple[StoredObject, ...]
    extents: tuple[StoredExtent, ...]


class Lease(Strict, frozen=True):
    """A reader's hold of one body at a version."""

    view: int
    inode: int
    body: int
    version: int


class Marks(Strict, frozen=True):
    """All of one session's marks; a frame with a number not above the last one is dropped."""

    session: int
    number: int
    floor: int
    """Oldest version the client still reads from; never decreases."""
    watermark: int
    """Smallest upload still in flight; older unpublished ones are abandoned."""
    leases: tuple[Lease, ...] = ()


class Volume(Strict, frozen=True):
    """Where bodies live. Clients learn it when they connect; it never holds a secret."""

    volume: str
    """32 lower-case hex digits."""
    kind: str
    """'local', 's3' or 'memory'."""
    endpoint: str = ""
    bucket: str = ""
    """Bucket name, or the directory of a local store."""
    prefix: str = ""
    region: str = ""
    inline_max: int = 4096
    chunk_bytes: int = 64 * 1024 * 1024
    block_bytes: int = 4 * 1024 * 1024
