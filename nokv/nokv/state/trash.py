"""The trash of a view: a hidden directory that no path leads to, made when it is first needed.

It is the root of a tree of its own, as a staged one is: whatever lies in it is out of everybody's
usage and events, and an address in it is Stale. Entries are named by the version that put them
there, so they stand in order of age; where each came from is an attribute of the directory.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from nokv.errors import NotFound
from nokv.state import keys
from nokv.state.context import (
    DIRECTORY,
    Context,
    ended_at,
    enter,
    is_directory,
    load_dentry,
    load_usage,
    need_inode,
    view_of,
)
from nokv.state.detach import detach
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import (
    Dentry,
    Inode,
    TrashEntry,
    Usage,
    body_of,
    decode_count,
    decode_dentry,
    decode_trash_entry,
)
from nokv.state.tree import destroy, drop_name, move_name, touch_directory
from nokv.state.views import move_graft
from nokv.types.trash import TRASH_KEEP_NS_DEFAULT

_NAME_BYTES = 17
"""What an entry's attribute adds to the directory's `xattr_bytes`."""


class Entry(msgspec.Struct, frozen=True):
    """What lies in the trash of a view."""

    view: int
    trash: int
    record: TrashEntry
    dentry: Dentry
    node: tuple[int, int]
    """(view, inode) of what it is."""
    inode: Inode

    @property
    def name(self) -> bytes:
        """Its name in the hidden directory."""
        return name_of(self.trash)

    @property
    def is_graft(self) -> bool:
        """Whether it is another view."""
        return self.dentry.view is not None


def name_of(trash: int) -> bytes:
    """Return the name of an entry in the hidden directory."""
    return b"%016x" % trash


def keep_ns(source: Source) -> int:
    """Return for how long the volume keeps what is in its trash."""
    row = source.get(Family.META, keys.TRASH)
    return TRASH_KEEP_NS_DEFAULT if row is None else decode_count(row)


def trashes_of(source: Source, first: int = 0) -> Iterator[int]:
    """Yield the views from `first` on that have something in their trash, in order."""
    for key, _ in source.scan(Family.VIEW, keys.pack(first), b"\xff" * 9):
        number = int.from_bytes(key, "big")
        if view_of(source, number).trash and not ended_at(source, number):
            yield number


def due_trashes(source: Source, cluster_ns: int) -> Iterator[int]:
    """Yield the views with something in their trash since `cluster_ns`, longest first."""
    end = keys.trash_of(max(0, cluster_ns + 1), 0)
    for key, _ in source.scan(Family.META, keys.TRASH_OF_PREFIX, end):
        number = int.from_bytes(key[-keys.VIEW_BYTES :], "big")
        if not ended_at(source, number):
            yield number


def entries_of(source: Source, view: int, after: int = 0) -> Iterator[Entry]:
    """Yield the entries of a view's trash with an id above `after`, the oldest first."""
    directory = view_of(source, view).trash
    prefix = keys.inode(view, directory)
    rows = source.scan(Family.DENTRY, prefix + name_of(after) + b"\0", keys.after_prefix(prefix))
    for key, value in rows:
        yield _entry(source, view, directory, key[16:], decode_dentry(body_of(value)))


def load_entry(source: Source, view: int, trash: int) -> Entry | None:
    """Return an entry by its id; None for one that is not there."""
    record = source.view(view) if 0 <= view < 2**64 else None
    if record is None or not record.trash or not 0 < trash < 2**64 or ended_at(source, view):
        return None
    name = name_of(trash)
    dentry = load_dentry(source, view, record.trash, name)
    return None if dentry is None else _entry(source, view, record.trash, name, dentry)


def need_entry(source: Source, view: int, trash: int) -> Entry:
    """Return an entry by its id. Raises NotFound."""
    entry = load_entry(source, view, trash)
    if entry is None:
        message = f"no entry {view}-{trash} in the trash"
        raise NotFound(message, hint="see what there is: nokv trash list")
    return entry


def _entry(source: Source, view: int, directory: int, name: bytes, dentry: Dentry) -> Entry:
    value = source.get(Family.XATTR, keys.xattr(view, directory, name))
    assert value is not None, f"entry {name!r} of the trash of view {view} came from nowhere"
    node = enter(view, dentry)
    record = decode_trash_entry(body_of(value))
    return Entry(view, int(name, 16), record, dentry, node, need_inode(source, *node))


def weight(source: Source, node: tuple[int, int], inode: Inode, *, is_graft: bool) -> Usage:
    """Return what a name counts for in the usage of its directory."""
    if not is_directory(inode):
        return Usage(1, inode.size)
    inside = load_usage(source, *node)
    return Usage(1 + inside.entries, inside.size_bytes, inside.grafts + int(is_graft))


# ---------------------------------------------------------------- in and out


def put_entry(
    ctx: Context, view: int, directory: int, dentry: Dentry, inode: Inode, record: TrashEntry
) -> int:
    """Put into the trash of a view what a name in `directory` of it showed; return its id.

    The name, with all that its directory counts, is taken away already.
    """
    trash, name = ctx.version, name_of(ctx.version)
    hidden = _hidden(ctx, view)
    before = need_inode(ctx.txn, view, hidden)
    after = touch_directory(ctx, view, hidden, before, children=1, nlink=int(is_directory(inode)))
    ctx.store_inode(view, hidden, replace(after, xattr_bytes=after.xattr_bytes + _NAME_BYTES))
    ctx.put_dentry(view, hidden, name, dentry)
    ctx.txn.put(Family.XATTR, keys.xattr(view, hidden, name), ctx.txn.encode(record))
    move(ctx, view, dentry, inode, directory, (hidden, name))
    more = weight(ctx.txn, enter(view, dentry), inode, is_graft=dentry.view is not None)
    ctx.add_usage(view, hidden, more.entries, more.size_bytes, more.grafts)
    if view_of(ctx.txn, view).trash_cluster_ns is None:
        _set_oldest(ctx, view, record.cluster_ns)
    return trash


def move(
    ctx: Context,
    view: int,
    dentry: Dentry,
    inode: Inode,
    directory: int,
    to: tuple[int, bytes],
) -> None:
    """Let what a name of `directory` showed know its new (directory, name) in the same view."""
    number, ino = enter(view, dentry)
    if dentry.view is not None:
        move_graft(ctx, number, *to)
        after = inode
    else:
        after = move_name(ctx, view, ino, inode, directory, *to)
    ctx.store_inode(number, ino, replace(after, ctime_ns=ctx.wall_ns))


def take_entry(ctx: Context, entry: Entry) -> int:
    """Take an entry's name out of the hidden directory, which is returned; it is left there.

    What the entry shows is the caller's, who afterwards tidies up (`settle`).
    """
    view, hidden = entry.view, view_of(ctx.txn, entry.view).trash
    less = weight(ctx.txn, entry.node, entry.inode, is_graft=entry.is_graft)
    ctx.add_usage(view, hidden, -less.entries, -less.size_bytes, -less.grafts)
    ctx.delete_dentry(view, hidden, entry.name)
    ctx.txn.delete(Family.XATTR, keys.xattr(view, hidden, entry.name))
    before = need_inode(ctx.txn, view, hidden)
    lost = int(is_directory(entry.inode))
    after = touch_directory(ctx, view, hidden, before, children=-1, nlink=-lost)
    ctx.store_inode(view, hidden, replace(after, xattr_bytes=after.xattr_bytes - _NAME_BYTES))
    return hidden


def remove_entry(ctx: Context, entry: Entry) -> None:
    """Remove an entry for good. The caller afterwards tidies up (`settle`)."""
    hidden = take_entry(ctx, entry)
    if is_directory(entry.inode):
        detach(ctx, entry.view, *entry.node, entry.inode)
    else:
        drop_name(ctx, entry.view, entry.node[1], entry.inode, hidden)


def views_ending(ctx: Context, entry: Entry) -> int:
    """Return how many views end with an entry at once."""
    return weight(ctx.txn, entry.node, entry.inode, is_graft=entry.is_graft).grafts


def settle(ctx: Context, view: int) -> None:
    """Note the oldest entry when some were taken, or remove a hidden directory without any.

    Nothing to do where the view ended with what was taken.
    """
    record = ctx.txn.view(view)
    if record is None or not record.trash or ended_at(ctx.txn, view):
        return
    inode = need_inode(ctx.txn, view, record.trash)
    if inode.children:
        _set_oldest(ctx, view, next(entries_of(ctx.txn, view)).record.cluster_ns)
        return
    _set_oldest(ctx, view, None)
    destroy(ctx, view, record.trash, inode)
    ctx.store_view(view, replace(view_of(ctx.txn, view), trash=0))
    ctx.counters.trashes -= 1


def _set_oldest(ctx: Context, view: int, cluster_ns: int | None) -> None:
    record = view_of(ctx.txn, view)
    if record.trash_cluster_ns is not None:
        ctx.txn.delete_row(Family.META, keys.trash_of(record.trash_cluster_ns, view))
    if cluster_ns is not None:
        ctx.txn.set_row(Family.META, keys.trash_of(cluster_ns, view), b"")
    ctx.store_view(view, replace(record, trash_cluster_ns=cluster_ns))


def _hidden(ctx: Context, view: int) -> int:
    """Return the hidden directory of a view; it is made if there is none."""
    record = view_of(ctx.txn, view)
    if record.trash:
        return record.trash
    now, ino = ctx.wall_ns, ctx.new_inode()
    ctx.store_inode(view, ino, Inode(DIRECTORY | 0o700, 0, 0, 2, 0, now, now, now, 0))
    ctx.store_view(view, replace(view_of(ctx.txn, view), trash=ino))
    ctx.counters.files += 1
    ctx.counters.trashes += 1
    return ino
