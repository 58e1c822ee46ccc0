"""What changed between two states of a directory, and which generations of a file are still shown.

Two sides are two versions of one directory: of one view, or of views that come from one another by
clone or rollback. Things are told apart by their inode numbers, which a clone and a rollback keep
(docs/namespace.md: Diff).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nokv.types.values import At, Lenient, Strict

PRESENT = 0
"""As a version: what is current."""


class DiffKind(IntEnum):
    """What a row of a diff says."""

    ADDED = 1
    DELETED = 2
    MODIFIED = 3
    RENAMED = 4
    TYPE = 5
    """The name shows something of another type."""
    LEFT = 6
    """Not a change by itself: what this name showed is told as RENAMED, at its new path."""
    ENTERED = 7
    """Not a change by itself: a view below both sides, to be compared on its own."""


class Changed(IntFlag):
    """What differs of something that both sides have."""

    DATA = 1
    """Its bytes, a link's target; for a file that another one replaced always."""
    ATTRIBUTES = 2
    """Mode, owner, access control lists, flags; the mtime of what is no directory, where its data
    are the same."""
    XATTRS = 4


class Diff(Strict, frozen=True, tag=45):
    """What changed from one side to the other below a directory. Reply: DiffReply."""

    at: At
    to: At
    at_version: int = PRESENT
    to_version: int = PRESENT
    after: bytes = b""
    """Cursor: `after` of the page before."""
    limit: int = 1024
    """Inodes and views to be examined: what bounds the work of a page."""


class Seen(Lenient, frozen=True):
    """What one side shows at a path."""

    view: int
    inode: int
    file_type: int
    """FileType."""
    size: int
    """Bytes; of a directory those of all below it."""
    generation: int
    entries: int = 0
    """Of a directory: names below it, at any depth."""
    mode: int = 0
    """Permission bits."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0


class DiffRow(Lenient, frozen=True):
    """One change."""

    kind: int
    """DiffKind."""
    path: bytes
    """Below the directory, names joined by '/'; empty: the directory itself."""
    before: Seen | None = None
    after: Seen | None = None
    what: int = 0
    """Changed; of MODIFIED, RENAMED and TYPE."""
    old_path: bytes = b""
    """Below the directory on the left side; of RENAMED, ENTERED and TYPE. Of LEFT its new path."""


class DiffReply(Lenient, frozen=True, tag=23):
    """A page, in no order that means anything: the client sorts by path."""

    rows: tuple[DiffRow, ...]
    more: bool
    after: bytes
    version: int
    """The present version."""


class History(Strict, frozen=True, tag=46):
    """The generations of a file that something still shows. Reply: HistoryReply."""

    at: At
    after: bytes = b""
    """Cursor: `after` of the page before."""
    limit: int = 1024
    """Pins to be examined."""


class HolderKind(IntEnum):
    """What keeps a generation readable."""

    LIVE = 1
    """It is what the path shows now."""
    SNAPSHOT = 2
    CLONE = 3
    """A view whose origin shows it."""
    SESSION = 4
    """A pin that ends with its session."""
    LEASE = 5
    """A file that a session has open."""
    BACKUP = 6


class Holder(Lenient, frozen=True):
    """What keeps a generation readable."""

    kind: int
    """HolderKind."""
    name: str = ""
    """Of a snapshot."""
    number: int = 0
    """The view of a clone, the session of a pin or lease."""


class Showing(Lenient, frozen=True):
    """A generation, and where it can be read: inode (view, inode) at `version`."""

    view: int
    inode: int
    version: int
    """PRESENT, or one that is pinned in `view`."""
    generation: int
    size: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int
    sha256: bytes
    body: int
    holders: tuple[Holder, ...]
    session: int = 0
    """That published it, while its event is kept; 0: not known."""
    wall_ns: int = 0
    """Of the entry that published it, while its event is kept; 0: not known."""


class HistoryReply(Lenient, frozen=True, tag=24):
    """A page; the same generation can come again on the next one, with other holders."""

    rows: tuple[Showing, ...]
    more: bool
    after: bytes
