"""What changed between two sides of one directory, at a cost that follows the change.

Nothing walks a tree. What may differ is found in the change index: TOUCHED names every inode that
a view changed after a pin, and what two views have not in common lies in their own records. Each
such inode is then looked at on both sides by itself: its names, its path, its attributes. So a
page needs nothing of the pages before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from nokv.errors import InvalidArgument, NokvError, ResultTooLarge, VersionNotPinned
from nokv.state import keys
from nokv.state.arguments import check_at
from nokv.state.branches import PRESENT
from nokv.state.context import is_directory
from nokv.state.diff_side import Look, Side, Slot, lineage
from nokv.state.families import Family
from nokv.state.pinned import Shard
from nokv.state.records import Dentry, Inode, born_of
from nokv.state.txn import Txn
from nokv.types.diffs import Changed, Diff, DiffKind, DiffReply, DiffRow, Seen
from nokv.types.limits import NAME_BYTES_MAX, PAGE_MAX
from nokv.types.values import Caller, FileType

_GRAFT = b"\x00"
_INODE = b"\x01"
"""How cursors begin: the names of views come first, then the inodes, in the order of the keys."""

_CURSOR_BYTES = 1 + 8
_SKIPS = 16
"""Inodes that may be skipped for one that is examined."""

_Found = tuple[int, bool]
"""(inode, whether it may differ); else it only took the time to find that out."""

_LAST = 2**64 - 1
_DIRECTORY = FileType.DIRECTORY


def diff(txn: Txn, caller: Caller, request: Diff) -> DiffReply:
    """Answer `Diff`.

    Raises InvalidArgument for sides that are no states of one directory, VersionNotPinned,
    ResultTooLarge where one file's names are searched for in too many entries (SEARCH_ROWS_MAX),
    and what resolving the sides raises.
    """
    check_at(request.at)
    check_at(request.to)
    if not 1 <= request.limit <= PAGE_MAX:
        message = f"a page of {request.limit} inodes; 1 to {PAGE_MAX} are possible"
        raise InvalidArgument(message)
    start = _read_cursor(request.after)
    shard = txn.present
    left = Side(shard, caller, request.at, request.at_version)
    right = Side(shard, caller, request.to, request.to_version)
    if left.root != right.root:
        message = "the two are no states of one directory"
        hint = "compare a directory with a snapshot or a clone of it, or the ones that hold them"
        raise InvalidArgument(message, hint=hint)
    pages = _Page(left, right)
    left_over, after, present = request.limit * _SKIPS, request.after, txn.counters.version
    for cursor, examine in pages.candidates(*start):
        if left_over <= 0:
            return DiffReply(tuple(pages.rows), more=True, after=after, version=present)
        rows = len(pages.rows)
        try:
            if examine is not None:
                examine()
        except ResultTooLarge:
            if after == request.after:  # a page of its own has no room for it
                raise
            del pages.rows[rows:]
            return DiffReply(tuple(pages.rows), more=True, after=after, version=present)
        left_over -= 1 if examine is None else _SKIPS
        after = cursor
    return DiffReply(tuple(pages.rows), more=False, after=b"", version=present)


def _read_cursor(after: bytes) -> tuple[Slot | None, int]:
    """Return (last name of a view, last inode) that were examined."""
    kind, number, name = after[:1], after[1:_CURSOR_BYTES], after[_CURSOR_BYTES:]
    if not after:
        return (0, b""), 0
    ino = int.from_bytes(number, "big")
    if len(after) >= _CURSOR_BYTES and kind == _GRAFT and len(name) <= NAME_BYTES_MAX:
        return (ino, name), 0
    if len(after) == _CURSOR_BYTES and kind == _INODE and ino < _LAST:
        return None, ino
    message = "a cursor that no page answered"
    raise InvalidArgument(message)


# ---------------------------------------------------------------- what may differ


class _Span:
    """The parts of two lineages that are not common to both.

    A view that was flattened comes from nothing any more. Two without a common view are compared
    whole: an inode's number means the same in both, as their roots are one directory.
    """

    def __init__(self, shard: Shard, left: tuple[int, int], right: tuple[int, int]) -> None:
        a, b = lineage(shard, *left), lineage(shard, *right)
        below = [view for view, _ in b]
        common = next((i for i, (view, _) in enumerate(a) if view in below), None)
        if common is None:
            self.view = self.low = self.high = 0
            self.diverged = a + b
            return
        view, version = a[common]
        at = below.index(view)
        other = b[at][1]
        self.view = view
        self.low, self.high = min(version, other), max(version, other)
        """What the common view changed in (low, high] differs."""
        self.diverged = a[:common] + b[:at]
        """The views, each at its version, whose own records differ."""
        if self.low < self.high and self.low not in shard.pins(view):
            message = f"view {view} is not pinned at version {self.low}"
            raise VersionNotPinned(message)


def related(shard: Shard, left: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether two views, each at a version, can be compared: what they show is still held."""
    try:
        _Span(shard, left, right)
    except NokvError:
        return False
    return True


def changed_inodes(shard: Shard, span: _Span, after: int) -> Iterator[_Found]:
    """Yield, ascending and each once, the inodes above `after` that may differ, or are skipped."""
    streams = [_touched(shard, span.view, bucket, after) for bucket in _buckets(shard, span)]
    for view, version in span.diverged:
        streams.append(_own(shard, view, version, after))
        if version != PRESENT:
            streams.append(_past(shard, view, version, after))
    merged = heapq.merge(*streams, key=_inode_of)
    for ino, found in groupby(merged, key=_inode_of):
        yield ino, any(may_differ for _, may_differ in found)


def _inode_of(found: _Found) -> int:
    return found[0]


def _buckets(shard: Shard, span: _Span) -> Iterator[int]:
    """Yield the newest pins under which the common view noted changes of the span."""
    bucket, end = span.low, keys.pack2(span.view, min(span.high, _LAST))
    while bucket < span.high:
        start = keys.pack2(span.view, bucket)
        first = next(shard.own_scan(Family.TOUCHED, start, end), None)
        if first is None:
            return
        bucket = keys.U64X2.unpack_from(first[0])[1]
        yield bucket
        bucket += 1


def _touched(shard: Shard, view: int, bucket: int, after: int) -> Iterator[_Found]:
    prefix = keys.pack2(view, bucket) + bytes([Family.INODE])
    start = prefix + keys.pack(after + 1)
    for key, _ in shard.own_scan(Family.TOUCHED, start, keys.after_prefix(prefix)):
        yield int.from_bytes(key[len(prefix) :], "big"), True


def _own(shard: Shard, view: int, version: int, after: int) -> Iterator[_Found]:
    end = keys.after_prefix(keys.pack(view))
    for key, value in shard.own_scan(Family.INODE, keys.pack2(view, after + 1), end):
        yield int.from_bytes(key[keys.VIEW_BYTES :], "big"), born_of(value) <= version


def _past(shard: Shard, view: int, version: int, after: int) -> Iterator[_Found]:
    prefix = keys.pack(view) + bytes([Family.INODE])
    start = prefix + keys.pack(after + 1)
    for row, value in shard.own_scan(Family.HISTORY, start, keys.after_prefix(prefix)):
        _, key, death = keys.history_parts(row)
        yield int.from_bytes(key[keys.VIEW_BYTES :], "big"), born_of(value) <= version < death


# ---------------------------------------------------------------- how it differs


class _Page:
    """The rows of one page."""

    def __init__(self, left: Side, right: Side) -> None:
        self.left, self.right = left, right
        self.rows: list[DiffRow] = []
        self._span = _Span(left.shard, (left.view, left.version), (right.view, right.version))

    def candidates(
        self, slot: Slot | None, ino: int
    ) -> Iterator[tuple[bytes, Callable[[], None] | None]]:
        """Yield (cursor, what adds the rows) of all that may differ behind the cursor given.

        None for what need not be examined.
        """
        if slot is not None:
            for one in sorted(s for s in {**self.left.grafts(), **self.right.grafts()} if s > slot):
                cursor = _GRAFT + keys.pack(one[0]) + one[1]
                yield cursor, partial(self._graft, one)
        for number, may_differ in changed_inodes(self.left.shard, self._span, ino):
            cursor = _INODE + keys.pack(number)
            yield cursor, partial(self._inode, number) if may_differ else None

    def _add(
        self,
        kind: DiffKind,
        path: bytes | None,
        before: Seen | None,
        after: Seen | None,
        what: int = 0,
        old_path: bytes | None = b"",
    ) -> None:
        """Add a row, if the caller may see both of its paths."""
        if path is not None and old_path is not None:
            self.rows.append(DiffRow(kind, path, before, after, what, old_path))

    # ------------------------------------------------------------------ inodes

    def _inode(self, ino: int) -> None:
        left, right = self.left.look(ino), self.right.look(ino)
        if left is None and right is None:
            return
        if left is not None and right is not None:
            self._both(ino, left, right)
            return
        for slot in sorted(left.slots if left is not None else ()):
            self._lost(Dentry(0, ino), slot)
        for slot in sorted(right.slots if right is not None else ()):
            self._gained(Dentry(0, ino), slot)

    def _both(self, ino: int, left: Look, right: Look) -> None:
        what, moved = self._what(ino, left.inode, right.inode), self._moved(ino)
        if what or moved:
            before = self.left.seen_inode(ino, left.inode)
            after = self.right.seen_inode(ino, right.inode)
            if ino == self.left.root:
                self._add(DiffKind.MODIFIED, b"", before, after, what)
            elif moved:
                (slot,), (to,) = left.slots, right.slots
                self._renamed(slot, to, before, after, what)
                return
            for slot in sorted(left.slots & right.slots):
                if self.left.path(slot) is not None:
                    self._add(DiffKind.MODIFIED, self.right.path(slot), before, after, what)
        for slot in sorted(left.slots - right.slots):
            self._lost(Dentry(0, ino), slot)
        for slot in sorted(right.slots - left.slots):
            self._gained(Dentry(0, ino), slot)

    def _what(self, ino: int, left: Inode, right: Inode) -> int:
        """Return what differs of an inode: Changed. What its entries do to a directory is not."""
        what = 0
        data = _data(left) != _data(right)
        if not is_directory(left) and data:
            what |= Changed.DATA
        touched = left.mtime_ns != right.mtime_ns and not is_directory(left) and not data
        if touched or _attributes(left) != _attributes(right):
            what |= Changed.ATTRIBUTES
        if left.xattr_bytes != right.xattr_bytes or (
            left.xattr_bytes and self.left.xattrs(ino) != self.right.xattrs(ino)
        ):
            what |= Changed.XATTRS
        return what

    def _moved(self, ino: int) -> bool:
        """Whether an inode has one name on each side, and another one."""
        if ino == self.left.root:
            return False
        left, right = self.left.look(ino), self.right.look(ino)
        if left is None or right is None:
            return False
        return len(left.slots) == len(right.slots) == 1 and left.slots != right.slots

    def _renamed(self, slot: Slot, to: Slot, before: Seen, after: Seen, what: int) -> None:
        old, new = self.left.path(slot), self.right.path(to)
        self._add(DiffKind.RENAMED, new, before, after, what, old)
        self._add(DiffKind.LEFT, old, before, after, 0, new)

    # ------------------------------------------------------------------ names

    def _lost(self, entry: Dentry, slot: Slot) -> None:
        """Tell of a name that shows something else now, or nothing."""
        if self.right.place(slot[0]) is None:
            return  # what holds it is told as deleted
        shown, other = self.left.entry(slot), self.right.entry(slot)
        assert shown is not None, f"{slot} showed {entry.inode}, and is not there"
        if other is not None and (self._same(shown, other) or self._replaced(shown, other)):
            return
        self._add(DiffKind.DELETED, self.left.path(slot), self.left.seen(shown), None)

    def _gained(self, entry: Dentry, slot: Slot) -> None:
        """Tell of a name that showed something else before, or nothing."""
        if self.left.place(slot[0]) is None:
            return  # what holds it is told as added
        other, shown = self.left.entry(slot), self.right.entry(slot)
        assert shown is not None, f"{slot} shows {entry.inode}, and is not there"
        after = self.right.seen(shown)
        if other is not None and self._same(other, shown):
            return
        if other is None or not self._replaced(other, shown):
            self._add(DiffKind.ADDED, self.right.path(slot), None, after)
            return
        kind = DiffKind.MODIFIED if other.file_type == shown.file_type else DiffKind.TYPE
        before, old = self.left.seen(other), self.left.path(slot)
        if old is not None:
            old = old if kind == DiffKind.TYPE else b""
            self._add(kind, self.right.path(slot), before, after, Changed.DATA, old)

    def _same(self, left: Dentry, right: Dentry) -> bool:
        """Whether two entries, one of them a graft, are two versions of one directory."""
        if left.view is None and right.view is None:
            return False
        if left.inode != right.inode or not left.file_type == right.file_type == _DIRECTORY:
            return False
        one = self.left.view if left.view is None else left.view
        two = self.right.view if right.view is None else right.view
        shard = self.left.shard
        return related(shard, (one, self.left.version), (two, self.right.version))

    def _replaced(self, left: Dentry, right: Dentry) -> bool:
        """Whether one thing took the other's place: neither moved, and not two directories."""
        if left.file_type == right.file_type == _DIRECTORY:
            return False
        return not self._entry_moved(left) and not self._entry_moved(right)

    def _entry_moved(self, entry: Dentry) -> bool:
        if entry.view is None:
            return self._moved(entry.inode)
        return self._graft_moved(entry.view) is not None

    # ------------------------------------------------------------------ views

    def _graft_moved(self, view: int) -> tuple[Slot, Slot] | None:
        """Return the two names of a view that both sides hold under different ones."""
        slot = next((s for s, v in self.left.grafts().items() if v == view), None)
        to = next((s for s, v in self.right.grafts().items() if v == view), None)
        return (slot, to) if slot is not None and to is not None and slot != to else None

    def _graft(self, slot: Slot) -> None:
        """Tell of a name that leads into a view, on a side at least."""
        left, right = self.left.entry(slot), self.right.entry(slot)
        if left is not None and right is not None and self._same(left, right):
            self._entered(slot, slot)
            return
        if left is not None and left.view is not None and self._graft_moved(left.view) is None:
            self._lost(left, slot)
        if right is None or right.view is None:
            return
        moved = self._graft_moved(right.view)
        if moved is None:
            self._gained(right, slot)
            return
        before = self.left.entry(moved[0])
        assert before is not None, f"view {right.view} is not at {moved[0]}"
        self._renamed(*moved, self.left.seen(before), self.right.seen(right), 0)
        self._entered(*moved)

    def _entered(self, slot: Slot, to: Slot) -> None:
        left, right = self.left.entry(slot), self.right.entry(to)
        assert left is not None, f"nothing at {slot}"
        assert right is not None, f"nothing at {to}"
        before, after = self.left.seen(left), self.right.seen(right)
        self._add(DiffKind.ENTERED, self.right.path(to), before, after, 0, self.left.path(slot))


def _data(inode: Inode) -> tuple[object, ...]:
    return inode.generation, inode.size, inode.target, inode.rdev


def _attributes(inode: Inode) -> tuple[object, ...]:
    return inode.mode, inode.uid, inode.gid, inode.flags, inode.acls


HANDLERS: dict[type, Callable[[Any, Caller, Any], Any]] = {Diff: diff}
