"""Copying a record that a view inherits into it, without that anything it shows changes.

A copy is born with the view. At the present it becomes the view's own record; at a pinned version
that the view has changed since, a row of history from its birth to the change.
"""

from __future__ import annotations

from bisect import bisect_left

from nokv.state import keys
from nokv.state.branches import inherited, own_at
from nokv.state.context import Context, is_directory, local, names_inside
from nokv.state.extents import Hold, holds_of, name_of, raised
from nokv.state.families import Family
from nokv.state.holds import native
from nokv.state.pinned import Source
from nokv.state.records import (
    BORN_BYTES,
    Drop,
    body_of,
    born_of,
    decode_chunk,
    decode_inode,
    is_whiteout,
    whiteout,
)
from nokv.types.values import StoredObject

_INODE = Family.INODE
_CHUNK = Family.CHUNK
_HISTORY = Family.HISTORY


class Copier:
    """Copies of what one view shows, at the present or at a pinned version."""

    def __init__(self, ctx: Context, number: int, version: int | None, source: Source) -> None:
        view = ctx.txn.view(number)
        assert view is not None, f"view {number} is flattened and does not exist"
        self.ctx = ctx
        self.number = number
        self.version = version
        """The pinned version; None for the present."""
        self.source = source
        """What the view shows there."""
        self.created = view.created
        self._born = view.created.to_bytes(BORN_BYTES, "big")

    def _has(self, family: Family, key: bytes) -> bool:
        """Whether what the view shows at the key is its own."""
        txn = self.ctx.txn
        if self.version is None:
            return txn.own(family, key) is not None
        return own_at(txn, family, key, self.version) is not None

    # ------------------------------------------------------------------ plain records

    def record(self, family: Family, key: bytes, value: bytes) -> None:
        """Copy a record that the view shows with `value`, unless it is its own."""
        if self._has(family, key):
            return
        txn, copy = self.ctx.txn, self._born + body_of(value)
        if self.version is None:
            txn.set_row(family, key, copy)
            return
        death = self._death(family, key)
        txn.keep(family, key, copy, death)
        pins = txn.pins(self.number)
        newest = pins[bisect_left(pins, death) - 1]
        assert self.version <= newest < death, "a copy for a pin that is not there"
        born = self.created
        txn.set_row(Family.RECLAIM, keys.reclaim(newest, born, family, key, death), b"")

    def _death(self, family: Family, key: bytes) -> int:
        """Return when the view first had a record of its own; now, where it never had one.

        What it showed is then no longer reachable, else the present would have it.
        """
        return min((born_of(value) for _, value in self._own_rows(family, key)), default=self._now)

    @property
    def _now(self) -> int:
        return self.ctx.version

    def _own_rows(self, family: Family, key: bytes) -> list[tuple[bytes, bytes]]:
        """Return (key of the HISTORY row or b'' for the current one, value), the oldest first."""
        txn = self.ctx.txn
        low, high = keys.history(family, key, 0), keys.history(family, key, 2**64 - 1)
        rows = list(txn.own_scan(_HISTORY, low, high))
        current = txn.own(family, key)
        return rows if current is None else [*rows, (b"", current)]

    def inode(self, ino: int) -> int:
        """Copy an inode with all that hangs on it but names and chunks; return the records."""
        view, source = self.number, self.source
        key = keys.inode(view, ino)
        value = source.get(_INODE, key)
        assert value is not None, f"inode {view}:{ino} is walked and does not exist"
        inode = decode_inode(body_of(value))
        directories = [inode.parent]
        count = 1
        if is_directory(inode):
            usage = source.get(Family.USAGE, key)
            if usage is not None:
                self.record(Family.USAGE, key, usage)
        elif inode.nlink > 1:
            names = names_inside(source, view, ino)
            directories = [one for one, _ in names]
            inode = local(source, view, ino, inode)
            rows, hidden = self._backlinks(key, {one for one, _ in names}, inode.nlink)
            count += rows
            if hidden and self._has(_INODE, key):
                # It counts names of a detached tree whose backlinks were hidden just now. Those
                # that the view has itself the reaper counts down.
                self.ctx.txn.put(_INODE, key, self.ctx.txn.encode(inode))
        if inode.xattr_bytes:
            for row, one in list(source.scan(Family.XATTR, key, keys.after_prefix(key))):
                self.record(Family.XATTR, row, one)
                count += 1
        if self.version is None and not self._has(_INODE, key):
            self.ctx.counters.files += 1
            self.ctx.counters.size_bytes += inode.size
            for directory in sorted(set(directories)):
                self.ctx.note_changed(view, directory, ino)
        self.record(_INODE, key, value[:BORN_BYTES] + self.ctx.txn.encode(inode))
        return count

    def _backlinks(self, key: bytes, inside: set[int], nlink: int) -> tuple[int, bool]:
        """Copy the backlinks of names that the view shows, and hide others.

        Returns how many rows there were, and whether some were hidden.
        """
        rows = list(self.source.scan(Family.BACKLINK, key, keys.after_prefix(key)))
        hidden = False
        for row, value in rows:
            if nlink > 1 and int.from_bytes(row[-8:], "big") in inside:
                self.record(Family.BACKLINK, row, value)
            elif self.version is None and not self._has(Family.BACKLINK, row):
                self.ctx.txn.set_row(Family.BACKLINK, row, whiteout(self.created))
                hidden = True
        return len(rows), hidden

    # ------------------------------------------------------------------ chunks

    def chunk(self, key: bytes) -> int:
        """Copy a chunk record, and make holds of what it has inherited; return the records.

        Also of what the view has had there in between: a record that it patched names objects of
        its origin too.
        """
        txn = self.ctx.txn
        fresh = b""
        if not self._has(_CHUNK, key):
            value = inherited(txn, _CHUNK, key)
            assert value is not None, "a chunk record that comes from nowhere"
            copy = self._born + body_of(value)
            if self.version is None:
                txn.set_row(_CHUNK, key, copy)
            else:
                fresh = txn.keep(_CHUNK, key, copy, self._death(_CHUNK, key))
        last: dict[tuple[int, ...], tuple[bytes, Hold]] = {}
        for row, value in self._own_rows(_CHUNK, key):
            for hold in self._raise(key, row, value):
                last[name_of(hold[0])] = row, hold
        ended: dict[bytes, list[StoredObject]] = {fresh: []} if fresh else {}
        for row, hold in last.values():
            if self._share(key, hold) and row:
                ended.setdefault(row, []).append(hold[0])
        for row, objects in ended.items():
            self._end(key, row, objects)
        return 1 + len(last)

    def _raise(self, key: bytes, row: bytes, value: bytes) -> list[Hold]:
        """Let every hold of an own record begin with the view at the earliest.

        Returns those that began before, as they were.
        """
        if is_whiteout(value):
            return []
        chunk = decode_chunk(body_of(value))
        after = raised(chunk, self.created)
        if after == chunk:
            return []
        record = value[:BORN_BYTES] + self.ctx.txn.encode(after)
        self.ctx.txn.set_row(_HISTORY if row else _CHUNK, row or key, record)
        return [hold for hold in holds_of(chunk) if hold[1] < self.created]

    def _share(self, key: bytes, hold: Hold) -> bool:
        """Write the REF rows of an inherited hold and the view's new one; whether that is new.

        One that is not ends by itself: with a record of the present, or by a drop row of a later
        record than those that are copied now.
        """
        txn, (obj, born) = self.ctx.txn, hold
        _, ino, body, index = keys.chunk_parts(key)
        holder, birth = native(txn, self.number, born)
        own = keys.ref(obj, self.number, ino, body, index, self.created)
        new = txn.own(Family.REF, own) is None
        txn.set_row(Family.REF, keys.ref(obj, holder, ino, body, index, birth), b"")
        txn.set_row(Family.REF, own, b"")
        return new

    def _end(self, key: bytes, row: bytes, objects: list[StoredObject]) -> None:
        """Queue holds of the view that ended with a record that is history now."""
        _, ino, body, _ = keys.chunk_parts(key)
        _, _, death = keys.history_parts(row)
        births = (self.created,) * len(objects)
        self.ctx.add_drop(
            Drop(
                self.number,
                ino,
                body,
                self.created,
                death,
                self.ctx.cluster_ns,
                tuple(objects),
                row,
                births,
                size_bytes=sum(obj.length for obj in objects),
            )
        )
