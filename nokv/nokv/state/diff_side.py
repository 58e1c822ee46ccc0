"""One side of a diff: a directory in a view, at the present or at a pinned version."""

from __future__ import annotations

import msgspec

from nokv.errors import NameTooLong, ResultTooLarge, Stale, VersionNotPinned
from nokv.state import keys
from nokv.state.access import R, X, may, need
from nokv.state.branches import PRESENT
from nokv.state.context import is_directory, load_dentry, load_usage, names_inside
from nokv.state.families import Family
from nokv.state.pinned import PinnedSource, Shard, Source
from nokv.state.records import (
    Dentry,
    Inode,
    body_of,
    decode_dentry,
    decode_inode,
    decode_snapshot,
)
from nokv.state.resolve import resolve
from nokv.state.views import grafts_of
from nokv.types.diffs import Seen
from nokv.types.limits import DEPTH_MAX
from nokv.types.values import At, Caller

Slot = tuple[int, bytes]
"""A name: (directory, name)."""

SEARCH_ROWS_MAX = 131_072
"""Entries that one side of a page looks through for the names of files with several."""

Place = tuple[bytes, bool]
"""(Path below the side's root, whether the caller may read and search all directories on it)."""


class Look(msgspec.Struct, frozen=True, gc=False):
    """An inode as a side shows it."""

    inode: Inode
    slots: frozenset[Slot]
    """Its names below the side's root."""


class Side:
    """What one end of a comparison shows. Remembers what it read: it lives for one page."""

    def __init__(self, shard: Shard, caller: Caller, address: At, version: int) -> None:
        if not 0 <= version < PRESENT:
            message = f"no version {version}"
            raise VersionNotPinned(message)
        self.shard = shard
        self.caller = caller
        self.source: Source = PinnedSource(shard, version) if version else shard
        found = resolve(self.source, caller, 0, address)
        need(found.inode, caller, R | X if is_directory(found.inode) else R)
        self.view, self.root = found.view, found.ino
        self.version = version or PRESENT
        self._places: dict[int, Place | None] = {self.root: (b"", True)}
        self._looks: dict[int, Look | None] = {}
        self._searched: dict[int, dict[int, list[bytes]]] = {}
        self._search_left = SEARCH_ROWS_MAX
        self._grafts: dict[Slot, int] | None = None

    # ------------------------------------------------------------------ inodes and their names

    def inode(self, ino: int) -> Inode | None:
        """Return an inode, wherever it lies."""
        value = self.source.get(Family.INODE, keys.inode(self.view, ino))
        return None if value is None else decode_inode(body_of(value))

    def look(self, ino: int) -> Look | None:
        """Return what the side shows of an inode; None if it has no name below the root."""
        if ino not in self._looks:
            self._looks[ino] = self._look(ino)
        return self._looks[ino]

    def _look(self, ino: int) -> Look | None:
        inode = self.inode(ino)
        if inode is None:
            return None
        if ino == self.root:
            return Look(inode, frozenset())
        names = self._names(ino, inode)
        slots = frozenset(slot for slot in names if self.place(slot[0]) is not None)
        return Look(inode, slots) if slots else None

    def _names(self, ino: int, inode: Inode) -> list[Slot]:
        """Return every name of an inode. Directories are searched for those of a hard link.

        Raises ResultTooLarge where that would be more than the page has room for.
        """
        if inode.name:
            return [(inode.parent, inode.name)]
        if not inode.parent:
            return []
        directories = {inode.parent}
        if not is_directory(inode):
            directories.update(d for d, _ in names_inside(self.source, self.view, ino))
        return [(d, name) for d in sorted(directories) for name in self._search(d).get(ino, ())]

    def _search(self, directory: int) -> dict[int, list[bytes]]:
        """Return the names of a directory by what they show, grafts apart."""
        known = self._searched.get(directory)
        if known is not None:
            return known
        inode = self.inode(directory)
        self._search_left -= inode.children if inode is not None else 0
        if self._search_left < 0:
            message = f"the names of a file are searched for in over {SEARCH_ROWS_MAX} entries"
            raise ResultTooLarge(message, hint="compare a directory below, without that file")
        found: dict[int, list[bytes]] = {}
        prefix = keys.inode(self.view, directory)
        rows = self.source.scan(Family.DENTRY, prefix, keys.after_prefix(prefix))
        for key, value in rows:
            dentry = decode_dentry(body_of(value))
            if dentry.view is None:
                found.setdefault(dentry.inode, []).append(key[len(prefix) :])
        self._searched[directory] = found
        return found

    def entry(self, slot: Slot) -> Dentry | None:
        """Return what a name shows, if its directory lies below the root."""
        if self.place(slot[0]) is None:
            return None
        return load_dentry(self.source, self.view, *slot)

    # ------------------------------------------------------------------ paths

    def place(self, directory: int) -> Place | None:
        """Return where a directory lies below the root; None: it does not.

        Raises NameTooLong for one that lies deeper than handles are followed.
        """
        todo: list[tuple[int, Inode]] = []
        ino = directory
        while ino not in self._places:
            inode = self.inode(ino)
            if inode is None or not inode.parent or not is_directory(inode):
                self._places[ino] = None
                break
            todo.append((ino, inode))
            if len(todo) > DEPTH_MAX:
                message = f"inode {self.view}:{directory} lies over {DEPTH_MAX} directories deep"
                raise NameTooLong(message, hint="move the tree up")
            ino = inode.parent
        above = self._places[ino]
        for ino, inode in reversed(todo):
            if above is not None:
                (slot,) = self._names(ino, inode)
                readable = above[1] and may(inode, self.caller, R | X)
                above = join(above[0], slot[1]), readable
            self._places[ino] = above
        return above

    def path(self, slot: Slot) -> bytes | None:
        """Return a name's path; None if the caller may not read and search its directories."""
        place = self.place(slot[0])
        return join(place[0], slot[1]) if place is not None and place[1] else None

    # ------------------------------------------------------------------ what it shows

    def seen(self, entry: Dentry) -> Seen:
        """Return what a name shows, as a row tells it."""
        view = self.view if entry.view is None else entry.view
        self.source.enter(view)
        value = self.source.get(Family.INODE, keys.inode(view, entry.inode))
        assert value is not None, f"inode {view}:{entry.inode} is named and does not exist"
        return self._seen(view, entry.inode, decode_inode(body_of(value)))

    def seen_inode(self, ino: int, inode: Inode) -> Seen:
        """Return an inode of the side's own view, as a row tells it."""
        return self._seen(self.view, ino, inode)

    def _seen(self, view: int, ino: int, inode: Inode) -> Seen:
        size, entries = inode.size, 0
        if is_directory(inode):
            usage = load_usage(self.source, view, ino)
            size, entries = usage.size_bytes, usage.entries
        return Seen(
            view,
            ino,
            inode.mode >> 12,
            size,
            inode.generation,
            entries,
            inode.mode & 0o7777,
            inode.uid,
            inode.gid,
            inode.mtime_ns,
        )

    def xattrs(self, ino: int) -> list[tuple[bytes, bytes]]:
        """Return the extended attributes of an inode."""
        prefix = keys.inode(self.view, ino)
        rows = self.source.scan(Family.XATTR, prefix, keys.after_prefix(prefix))
        return [(key[len(prefix) :], body_of(value)) for key, value in rows]

    # ------------------------------------------------------------------ views below it

    def grafts(self) -> dict[Slot, int]:
        """Return the names below the root that lead into other views, with their views."""
        if self._grafts is None:
            self._grafts = {}
            if not load_usage(self.source, self.view, self.root).grafts:
                return self._grafts
            for directory, name, view in _grafts(self.shard, self.view, self.version):
                entry = self.entry((directory, name))
                if entry is not None and entry.view == view:
                    self._grafts[directory, name] = view
        return self._grafts


def join(path: bytes, name: bytes) -> bytes:
    """Return the path of a name below a directory's path."""
    return path + b"/" + name if path else name


def lineage(shard: Shard, view: int, version: int) -> list[tuple[int, int]]:
    """Return the views that a view shows at a version, the uppermost first, each with its version.

    Raises Stale for a view that is gone.
    """
    found = [(view, version)]
    while view:
        record = shard.view(view)
        if record is None:
            message = f"no view {view}"
            raise Stale(message)
        if record.origin is None:
            break
        view, version = record.origin, record.origin_version
        found.append((view, version))
    return found


def _grafts(shard: Shard, view: int, version: int) -> list[tuple[int, bytes, int]]:
    """Return (directory, name, view) of what may be the views entered from one, at a version.

    A snapshot notes the views it took along; the holders of today serve the present, and pins that
    are no snapshot's.
    """
    found: set[tuple[int, bytes, int]] = set()
    if version != PRESENT:
        end = keys.after_prefix(keys.SNAPSHOT_PREFIX)
        for _, value in shard.own_scan(Family.META, keys.SNAPSHOT_PREFIX, end):
            snapshot = decode_snapshot(value)
            if snapshot.version == version:
                nested = snapshot.nested
                found.update((n.directory, n.name, n.view) for n in nested if n.in_view == view)
    found.update(grafts_of(shard, view))
    return sorted(found)
