"""What changes to names mean for inodes: link counts, backlinks, usage, the inode's end.

An inode's `parent` is the smallest directory that names it.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from nokv.state import keys
from nokv.state.context import Context, above, chain, is_directory, names_inside, root_of
from nokv.state.drops import drop_body
from nokv.state.families import Family
from nokv.state.flatten import moved
from nokv.state.lock_tables import end_inode_locks
from nokv.state.records import Inode, body_of, decode_count
from nokv.state.resolve import Found
from nokv.types.events import EventKind

_BACKLINK = Family.BACKLINK


def add_size(ctx: Context, view: int, ino: int, inode: Inode, delta: int) -> None:
    """Add to the usage above every name of the inode, each directory once.

    `counters.size_bytes` is the caller's.
    """
    if not delta:
        return
    if inode.nlink <= 1:
        if inode.parent:
            ctx.add_usage(view, inode.parent, 0, delta)
        return
    ancestors: Counter[int] = Counter()
    for directory, count in names_inside(ctx.txn, view, ino):
        for ancestor in chain(ctx.txn, view, directory):
            ancestors[ancestor] += count
    for ancestor, count in ancestors.items():
        ctx.add_usage_to(view, (ancestor,), 0, delta * count)
    holder = above(ctx.txn, view)
    if holder is not None:
        ctx.add_usage(holder[0], holder[1], 0, delta * ancestors[root_of(ctx.txn, view)])


def touch_directory(
    ctx: Context, view: int, ino: int, directory: Inode, *, children: int = 0, nlink: int = 0
) -> Inode:
    """Write a directory whose entries changed, with the entry's time; return it."""
    now = ctx.wall_ns
    after = replace(
        directory,
        mtime_ns=now,
        ctime_ns=now,
        children=directory.children + children,
        nlink=directory.nlink + nlink,
    )
    assert after.children >= 0, f"directory {ino} with fewer than no entries"
    assert after.nlink >= 2, f"directory {ino} with {after.nlink} links"
    ctx.store_inode(view, ino, after)
    return after


def add_name(ctx: Context, view: int, ino: int, inode: Inode, directory: int) -> Inode:
    """Return the file with one more name, which lies in `directory`; the record is unwritten."""
    if inode.nlink == 1 and ctx.txn.get(_BACKLINK, keys.backlink(view, ino, inode.parent)) is None:
        _count(ctx, view, ino, inode.parent, 1)
    _count(ctx, view, ino, directory, 1)
    parent = min(inode.parent, directory)
    moved(ctx, view, ino)
    return replace(inode, nlink=inode.nlink + 1, parent=parent, name=b"")


def drop_name(
    ctx: Context, view: int, ino: int, inode: Inode, directory: int, *, death: int | None = None
) -> None:
    """Do what follows for a file when a name in `directory` has gone; the last takes it along.

    The name's record, its usage and its directory are the caller's.
    """
    if inode.nlink <= 1:
        destroy(ctx, view, ino, inode, death=death)
        return
    if not _count(ctx, view, ino, directory, -1):
        _unnote(ctx, view, directory, ino)
    left = names_inside(ctx.txn, view, ino)
    assert sum(count for _, count in left) == inode.nlink - 1, f"inode {ino}: names are missing"
    parent = left[0][0]
    if inode.nlink == 2:
        _count(ctx, view, ino, parent, -1)
    after = replace(inode, nlink=inode.nlink - 1, parent=parent, ctime_ns=ctx.wall_ns)
    ctx.store_inode(view, ino, after)


def move_name(
    ctx: Context,
    view: int,
    ino: int,
    inode: Inode,
    directory: int,
    to_directory: int,
    to_name: bytes,
) -> Inode:
    """Return the inode one of whose names moved between directories; the record is unwritten."""
    moved(ctx, view, ino)
    if is_directory(inode) or inode.nlink <= 1:
        _unnote(ctx, view, directory, ino)
        return replace(inode, parent=to_directory, name=to_name)
    if not _count(ctx, view, ino, directory, -1):
        _unnote(ctx, view, directory, ino)
    _count(ctx, view, ino, to_directory, 1)
    return replace(inode, parent=names_inside(ctx.txn, view, ino)[0][0])


def _unnote(ctx: Context, view: int, directory: int, ino: int) -> None:
    """The directory no longer names the inode, which a view may have changed."""
    if view:
        ctx.txn.delete_row(Family.META, keys.changed(view, directory, ino))


def _count(ctx: Context, view: int, ino: int, directory: int, more: int) -> int:
    """Add to the number of the file's names in a directory; return it."""
    key = keys.backlink(view, ino, directory)
    value = ctx.txn.get(Family.BACKLINK, key)
    count = more if value is None else decode_count(body_of(value)) + more
    assert count >= 0, f"inode {ino} has {count} names in directory {directory}"
    if count:
        ctx.txn.put(Family.BACKLINK, key, ctx.txn.encode(count))
    else:
        ctx.txn.delete(Family.BACKLINK, key)
    return count


def announce(
    ctx: Context,
    kind: EventKind,
    parent: Found,
    name: bytes,
    ino: int,
    inode: Inode,
    *,
    to_directory: int = 0,
    to_name: bytes = b"",
    inode_view: int | None = None,
) -> None:
    """Record an event of a name in `parent` that shows an inode, perhaps of another view."""
    ctx.emit(
        kind,
        parent.view,
        parent.ino,
        name,
        ino,
        to_directory=to_directory,
        to_name=to_name,
        size=inode.size,
        generation=inode.generation,
        inode_view=inode_view,
    )


def destroy(ctx: Context, view: int, ino: int, inode: Inode, *, death: int | None = None) -> None:
    """Remove an inode that no name shows: record, attributes, body, and its counts.

    `death` is the version at which history lets it end: this command's, or the earlier one at
    which its tree was detached.
    """
    drop_body(ctx, view, ino, inode, death=death)
    end_inode_locks(ctx, view, ino)
    key = keys.inode(view, ino)
    own = not view or ctx.txn.own(Family.INODE, key) is not None
    _destroy_rows(ctx, view, ino, inode, death)
    ctx.txn.delete(Family.INODE, key, death=death)
    ctx.txn.parents.pop((view, ino), None)
    if not own:  # its origin's record is what was counted
        return
    ctx.counters.files -= 1
    ctx.counters.size_bytes -= inode.size
    assert ctx.counters.files >= 0, "fewer than no inodes"
    assert ctx.counters.size_bytes >= 0, "fewer than no bytes"


def _destroy_rows(ctx: Context, view: int, ino: int, inode: Inode, death: int | None) -> None:
    """Remove what hangs on an inode; in a view its own rows alone: a whiteout hides the rest."""
    if not view and not inode.xattr_bytes and not is_directory(inode):
        return
    prefix = keys.inode(view, ino)
    end = keys.after_prefix(prefix)
    families = [Family.XATTR] if inode.xattr_bytes or view else []
    if view:
        _unnote(ctx, view, inode.parent, ino)
        death = ctx.version if death is None else death
        families.append(Family.BACKLINK)
    for family in families:
        for key in [key for key, _ in ctx.txn.own_scan(family, prefix, end)]:
            ctx.txn.delete(family, key, death=death)
    if is_directory(inode) and (not view or ctx.txn.own(Family.USAGE, prefix) is not None):
        ctx.txn.delete(Family.USAGE, prefix, death=death)
