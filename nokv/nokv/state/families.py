"""The record families of the state machine: one B-tree each (DESIGN.md: formats)."""

from __future__ import annotations

from enum import IntEnum


class Family(IntEnum):
    """One ordered map of the store. The number is part of the on-disk format: append only."""

    META = 0
    """Counters, clocks, format, volume; one row a name."""
    INODE = 1
    """(view, inode) -> Inode."""
    DENTRY = 2
    """(view, directory inode, name) -> Dentry."""
    XATTR = 3
    """(view, inode, name) -> value."""
    CHUNK = 4
    """(view, inode, body, chunk) -> Chunk: extents and the objects they lie in."""
    VIEW = 5
    """(view) -> View."""
    PIN = 6
    """(view, version, pin id) -> Pin."""
    SESSION = 7
    """(session, tag, ...) -> session record, result rows, consumed uploads."""
    LOCK = 8
    """Record locks and leases (reserved rows; see DESIGN)."""
    HISTORY = 9
    """(view, family, key, 0x00, death) -> the record as it was."""
    RECLAIM = 10
    """(view, newest pin at death, birth, family, key, 0x00, death) -> empty."""
    DROP = 11
    """(queue number) -> a body or tree whose holds ended."""
    REF = 12
    """(object, view, inode, chunk, born) -> one hold of a shared object."""
    TOUCHED = 13
    """(view, newest pin, family, key) -> empty: an inode's record, changed since that pin."""
    USAGE = 14
    """(view, directory inode) -> Usage of the tree below it."""
    EVENT = 15
    """(last version of the entry) -> the typed events of one entry."""
    FIELDS = 16
    """Indexed values (reserved for the agent verbs)."""
    BACKLINK = 17
    """(view, inode, directory) -> names of the inode there, kept for files with several names."""


REPLICATED = tuple(Family)
"""All families enter the digest."""
