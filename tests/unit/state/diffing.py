"""Diffs the naive way: both trees are read in full, and compared name by name."""

from __future__ import annotations

from typing import NamedTuple

from tests.unit.state.namespace_programs import _more, entries
from tests.unit.state.shard import Shard

from nokv.state.context import DIRECTORY, S_IFMT
from nokv.types.diffs import Changed, Diff, DiffKind, DiffReply, DiffRow
from nokv.types.reads import AttrReply, GetAttr
from nokv.types.values import At, Attr

Slot = tuple[int, bytes]


class Row(NamedTuple):
    """What a diff says of a path, in the order of rows."""

    path: bytes
    kind: int
    old_path: bytes
    what: int
    before: tuple[int, ...] | None
    """(inode, type, size, generation); of a directory (inode, type)."""
    after: tuple[int, ...] | None


class Item(NamedTuple):
    """One name, and what it shows."""

    path: bytes
    attr: Attr
    more: tuple[object, ...]
    graft: bool


class Tree:
    """All that one view shows below a directory. Other views are only entered by name."""

    def __init__(self, shard: Shard, root: At, version: int) -> None:
        reply = shard.read(GetAttr(root, version))
        assert isinstance(reply, AttrReply)
        self.root = reply.attr
        view = self.root.view
        self.root_more = _more(shard, At(view, self.root.inode), self.root, version)
        self.items: dict[Slot, Item] = {}
        self.slots: dict[int, set[Slot]] = {}
        """Of the view's own inodes."""
        self.directories = {self.root.inode}
        todo = [(b"", self.root.inode)]
        while todo:
            path, directory = todo.pop()
            for name, attr in entries(shard, At(view, directory), version, 4096):
                there = path + b"/" + name if path else name
                graft = attr.view != view
                more = _more(shard, At(attr.view, attr.inode), attr, version)
                slot = directory, name
                self.items[slot] = Item(there, attr, more, graft)
                if graft:
                    continue
                self.slots.setdefault(attr.inode, set()).add(slot)
                if attr.mode & S_IFMT == DIRECTORY:
                    self.directories.add(attr.inode)
                    todo.append((there, attr.inode))

    def moved(self, item: Item, other: Tree) -> Slot | None:
        """Return the one other name under which the other tree has it, as this one has one."""
        if item.graft:
            here = [s for s, i in self.items.items() if i.graft and i.attr.view == item.attr.view]
            there = [s for s, i in other.items.items() if i.graft and i.attr.view == item.attr.view]
        else:
            here = list(self.slots.get(item.attr.inode, ()))
            there = list(other.slots.get(item.attr.inode, ()))
        if len(here) == len(there) == 1 and here != there:
            return there[0]
        return None


def naive(shard: Shard, left: tuple[At, int], right: tuple[At, int]) -> list[Row]:
    """Return the rows that `asked` must return too."""
    one, two = Tree(shard, *left), Tree(shard, *right)
    rows = []
    what = _what(one.root, two.root, one.root_more, two.root_more)
    if what:
        rows.append(Row(b"", DiffKind.MODIFIED, b"", what, _seen(one.root), _seen(two.root)))
    for slot, item in one.items.items():
        other = two.items.get(slot)
        if to := one.moved(item, two):
            rows += _moved(shard, item, two.items[to], left[1], right[1])
        elif other is not None and _same(item, other):
            rows += _kept(shard, item, other, left[1], right[1])
        elif slot[0] not in two.directories:
            continue
        elif other is not None and _replaced(one, two, item, other):
            same = item.attr.mode >> 12 == other.attr.mode >> 12
            kind = DiffKind.MODIFIED if same else DiffKind.TYPE
            before, after = _seen(item.attr), _seen(other.attr)
            old = b"" if same else item.path
            rows.append(Row(other.path, kind, old, Changed.DATA, before, after))
        else:
            rows.append(Row(item.path, DiffKind.DELETED, b"", 0, _seen(item.attr), None))
    for slot, item in two.items.items():
        other = one.items.get(slot)
        if two.moved(item, one) or slot[0] not in one.directories:
            continue
        if other is not None and (_same(other, item) or _replaced(one, two, other, item)):
            continue
        rows.append(Row(item.path, DiffKind.ADDED, b"", 0, None, _seen(item.attr)))
    return sorted(rows)


def _same(left: Item, right: Item) -> bool:
    if left.attr.inode != right.attr.inode:
        return False
    return not (left.graft or right.graft) or left.attr.mode >> 12 == right.attr.mode >> 12 == 4


def _replaced(one: Tree, two: Tree, left: Item, right: Item) -> bool:
    if left.attr.mode >> 12 == right.attr.mode >> 12 == 4:
        return False
    return one.moved(left, two) is None and two.moved(right, one) is None


def _moved(shard: Shard, left: Item, right: Item, version: int, to_version: int) -> list[Row]:
    what = 0 if left.graft else _what(left.attr, right.attr, left.more, right.more)
    before, after = _seen(left.attr), _seen(right.attr)
    rows = [
        Row(right.path, DiffKind.RENAMED, left.path, what, before, after),
        Row(left.path, DiffKind.LEFT, right.path, 0, before, after),
    ]
    return rows + (_below(shard, left, right, version, to_version) if left.graft else [])


def _kept(shard: Shard, left: Item, right: Item, version: int, to_version: int) -> list[Row]:
    if left.graft or right.graft:
        return _below(shard, left, right, version, to_version)
    what = _what(left.attr, right.attr, left.more, right.more)
    if not what:
        return []
    before, after = _seen(left.attr), _seen(right.attr)
    return [Row(right.path, DiffKind.MODIFIED, b"", what, before, after)]


def _below(shard: Shard, left: Item, right: Item, version: int, to_version: int) -> list[Row]:
    inside = naive(
        shard,
        (At(left.attr.view, left.attr.inode), version),
        (At(right.attr.view, right.attr.inode), to_version),
    )
    return [_put(row, left.path, right.path) for row in inside]


def _put(row: Row, old: bytes, new: bytes) -> Row:
    """Return the row of a view below as the one above it tells it."""
    gone = row.kind in (DiffKind.LEFT, DiffKind.DELETED)
    path = _join(old if gone else new, row.path)
    moved = row.old_path
    if row.kind in (DiffKind.RENAMED, DiffKind.TYPE):
        moved = _join(old, moved)
    elif row.kind == DiffKind.LEFT:
        moved = _join(new, moved)
    return row._replace(path=path, old_path=moved)


def _join(path: bytes, below: bytes) -> bytes:
    return path + b"/" + below if below else path


def _what(left: Attr, right: Attr, left_more: object, right_more: object) -> int:
    directory = left.mode & S_IFMT == DIRECTORY
    data = not directory and (left.generation, left.size) != (right.generation, right.size)
    what = Changed.DATA if data else 0
    if (left.mode, left.uid, left.gid, left.flags) != (
        right.mode,
        right.uid,
        right.gid,
        right.flags,
    ) or (not data and not directory and left.mtime_ns != right.mtime_ns):
        what |= Changed.ATTRIBUTES
    return what | (Changed.XATTRS if left_more != right_more else 0)


def _seen(attr: Attr) -> tuple[int, ...]:
    if attr.mode & S_IFMT == DIRECTORY:
        return attr.inode, 4
    return attr.inode, attr.mode >> 12, attr.size, attr.generation


# ---------------------------------------------------------------- the read


def asked(
    shard: Shard, left: tuple[At, int], right: tuple[At, int], limit: int = 4096
) -> list[Row]:
    """Return the rows of the reads of a diff, views below it entered."""
    rows: list[Row] = []
    after = b""
    while True:
        page = shard.read(Diff(left[0], right[0], left[1], right[1], after, limit))
        assert isinstance(page, DiffReply)
        for row in page.rows:
            if row.kind == DiffKind.ENTERED:
                assert row.before is not None
                assert row.after is not None
                inside = asked(
                    shard,
                    (At(row.before.view, row.before.inode), left[1]),
                    (At(row.after.view, row.after.inode), right[1]),
                    limit,
                )
                rows += [_put(one, row.old_path, row.path) for one in inside]
            else:
                rows.append(_row(row))
        if not page.more:
            return sorted(rows)
        assert page.after > after, "a page without progress"
        after = page.after


def _row(row: DiffRow) -> Row:
    sides = [
        None
        if seen is None
        else (seen.inode, 4)
        if seen.file_type == 4
        else (seen.inode, seen.file_type, seen.size, seen.generation)
        for seen in (row.before, row.after)
    ]
    return Row(row.path, row.kind, row.old_path, row.what, *sides)
