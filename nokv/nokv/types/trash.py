"""Trash: what a command says and what it answers.

Each view has a hidden directory, owned by root, that no path leads to. A name moves there at once,
whatever lies below it, and comes back or is removed by its retention (docs/namespace.md: Trash).
"""

from __future__ import annotations

from nokv.types.values import At, Lenient, Strict

TRASH_KEEP_NS_DEFAULT = 7 * 86_400 * 1_000_000_000
TRASH_KEEP_NS_MAX = 100 * 365 * 86_400 * 1_000_000_000

TRASH_EMPTY_MAX = 1024
"""Entries that one EmptyTrash removes."""


class Trash(Strict, frozen=True, tag=18):
    """Move a name into the trash of its view. Result: Trashed."""

    parent: At
    name: bytes


class RestoreTrash(Strict, frozen=True, tag=19):
    """Give an entry of the trash a name again. Result: Made."""

    view: int
    trash: int
    """Its id."""
    parent: At | None = None
    """None: the directory that it was in."""
    name: bytes = b""
    """Empty: the name that it had."""


class EmptyTrash(Strict, frozen=True, tag=50):
    """Remove entries of the trash for good. Result: Reaped."""

    entries: tuple[tuple[int, int], ...]
    """(view, id), at most TRASH_EMPTY_MAX; those that are gone already are passed over."""


class KeepTrash(Strict, frozen=True, tag=51):
    """Set for how long the volume keeps what is in its trash; uid 0 only. Result: Done."""

    keep_ns: int
    """Cluster time, at most TRASH_KEEP_NS_MAX; 0: it goes at once."""


class ExpireTrash(Strict, frozen=True, tag=75):
    """Remove entries whose retention is over; internal. Result: Reaped."""

    limit: int


class Trashed(Lenient, frozen=True, tag=14):
    """Where a name went."""

    view: int
    trash: int
    """Its id: the version of the command."""


class ListTrash(Strict, frozen=True, tag=42):
    """A page of the caller's entries, of everybody's for uid 0; by view and age. Reply: TrashPage.

    The caller's are those he put there, and those whose inode he owns.
    """

    after_view: int = 0
    after: int = 0
    """(view, id) of the last entry of the page before."""
    limit: int = 256


class TrashRow(Lenient, frozen=True):
    """An entry of the trash."""

    view: int
    trash: int
    path: bytes
    """Where it was, absolute, when it was put here."""
    uid: int
    """Who put it here."""
    file_type: int
    """FileType."""
    inode_view: int
    """(inode_view, inode): what it is; the view is another one than its trash's for a clone."""
    inode: int
    entries: int
    """Names below it."""
    size_bytes: int
    trashed_wall_ns: int
    until_cluster_ns: int
    """End of its retention."""


class TrashPage(Lenient, frozen=True, tag=20):
    """A page; the cursor of the next one is the last row that was examined."""

    rows: tuple[TrashRow, ...]
    more: bool
    after_view: int
    after: int
    cluster_ns: int
    """Of the reply: until_cluster_ns counts in it."""
