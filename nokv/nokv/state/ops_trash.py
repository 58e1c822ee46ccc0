"""Moving names into the trash and back, and what ends there (docs/namespace.md: trash)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.errors import (
    CrossesView,
    InvalidArgument,
    NotFound,
    NotPermitted,
    ResultTooLarge,
    Stale,
)
from nokv.state import keys
from nokv.state.access import need_owner
from nokv.state.arguments import check_at, check_name
from nokv.state.context import (
    Context,
    chain,
    is_directory,
    load_attr,
    load_dentry,
    root_of,
)
from nokv.state.families import Family
from nokv.state.naming import told, told_at
from nokv.state.ops_create import place
from nokv.state.ops_remove import deletable
from nokv.state.paths import path_of
from nokv.state.records import TrashEntry
from nokv.state.resolve import Found
from nokv.state.trash import (
    Entry,
    due_trashes,
    entries_of,
    keep_ns,
    load_entry,
    move,
    need_entry,
    put_entry,
    remove_entry,
    settle,
    take_entry,
    views_ending,
    weight,
)
from nokv.state.tree import announce, touch_directory
from nokv.state.views import need_room
from nokv.types.commands import RemoveTree
from nokv.types.events import EventKind
from nokv.types.limits import NESTED_VIEWS_MAX
from nokv.types.results import Done, Made, Reaped
from nokv.types.trash import (
    TRASH_EMPTY_MAX,
    TRASH_KEEP_NS_MAX,
    EmptyTrash,
    ExpireTrash,
    KeepTrash,
    RestoreTrash,
    Trash,
    Trashed,
)
from nokv.types.values import At

STEP_MAX = 65_536
"""Entries that one `ExpireTrash` may be asked to remove."""

VIEWS_A_STEP = 4096
"""It stops after the entry with which it has ended so many views, as `EmptyTrash` does."""


# ---------------------------------------------------------------- arguments


def check_trash(op: Trash) -> None:
    """Raise for a bad address or name."""
    check_at(op.parent)
    check_name(op.name)


def check_restore(op: RestoreTrash) -> None:
    """Raise for a bad address or name."""
    if op.parent is not None:
        check_at(op.parent)
    if op.name:
        check_name(op.name)


def check_empty(op: EmptyTrash) -> None:
    """Raise ResultTooLarge for more than one command removes."""
    if len(op.entries) > TRASH_EMPTY_MAX:
        message = f"{len(op.entries)} entries; {TRASH_EMPTY_MAX} are removed at a time"
        raise ResultTooLarge(message)


def check_keep(op: KeepTrash) -> None:
    """Raise InvalidArgument for a retention that can't be one."""
    if not 0 <= op.keep_ns <= TRASH_KEEP_NS_MAX:
        message = f"a retention of {op.keep_ns} ns"
        raise InvalidArgument(message, hint="at most a hundred years")


def check_expire(op: ExpireTrash) -> None:
    """Raise InvalidArgument for an unbounded step."""
    if not 1 <= op.limit <= STEP_MAX:
        message = f"a step of {op.limit} entries; 1 to {STEP_MAX}"
        raise InvalidArgument(message)


# ---------------------------------------------------------------- the user's


def trash(ctx: Context, op: Trash) -> Trashed:
    """Move a name into the trash of its view, with all below it."""
    parent, view, ino, inode = deletable(ctx, RemoveTree(op.parent, op.name))
    _need_reachable(ctx, parent)
    if is_directory(inode) and inode.children:
        need_owner(inode, ctx.caller)
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, op.name)
    assert dentry is not None, "an entry that may be deleted"
    less = weight(ctx.txn, (view, ino), inode, is_graft=dentry.view is not None)
    below = less.grafts - int(dentry.view is not None)
    if below > NESTED_VIEWS_MAX:
        path = told_at(op.parent, op.name)
        message = f"{below} views below {path}; the limit is {NESTED_VIEWS_MAX}"
        raise ResultTooLarge(message, hint="remove its subdirectories one by one")
    was = path_of(ctx.txn, parent.view, parent.ino).rstrip(b"/") + b"/" + op.name
    record = TrashEntry(was, parent.ino, op.name, ctx.caller.uid, ctx.wall_ns, ctx.cluster_ns)
    announce(ctx, EventKind.REMOVE, parent, op.name, ino, inode, inode_view=dentry.view)
    ctx.delete_dentry(parent.view, parent.ino, op.name)
    lost = int(is_directory(inode))
    touch_directory(ctx, parent.view, parent.ino, parent.inode, children=-1, nlink=-lost)
    ctx.add_usage(parent.view, parent.ino, -less.entries, -less.size_bytes, -less.grafts)
    return Trashed(parent.view, put_entry(ctx, parent.view, parent.ino, dentry, inode, record))


def _need_reachable(ctx: Context, parent: Found) -> None:
    if chain(ctx.txn, parent.view, parent.ino)[-1] != root_of(ctx.txn, parent.view):
        message = "a staged tree has no trash, and nothing comes back into one"
        raise CrossesView(message)


def restore(ctx: Context, op: RestoreTrash) -> Made:
    """Give an entry a name again."""
    entry = need_entry(ctx.txn, op.view, op.trash)
    _need_own(ctx, entry)
    name = op.name or entry.record.name
    parent = _target(ctx, op, entry, name)
    more = weight(ctx.txn, entry.node, entry.inode, is_graft=entry.is_graft)
    need_room(ctx, parent.view, parent.ino, more.grafts)
    hidden = take_entry(ctx, entry)
    lost = int(is_directory(entry.inode))
    ctx.put_dentry(parent.view, parent.ino, name, entry.dentry)
    touch_directory(ctx, parent.view, parent.ino, parent.inode, children=1, nlink=lost)
    move(ctx, entry.view, entry.dentry, entry.inode, hidden, (parent.ino, name))
    ctx.add_usage(parent.view, parent.ino, more.entries, more.size_bytes, more.grafts)
    settle(ctx, entry.view)
    ino, view = entry.node[1], entry.dentry.view
    announce(ctx, EventKind.MOVE_IN, parent, name, ino, entry.inode, inode_view=view)
    attr = load_attr(ctx.txn, *entry.node)
    assert attr is not None
    return Made(attr)


def _target(ctx: Context, op: RestoreTrash, entry: Entry, name: bytes) -> Found:
    """Return the directory where the entry goes. Raises NotFound where that is gone."""
    if op.parent is not None:
        parent = place(ctx, op.parent, name)
    else:
        try:
            parent = place(ctx, At(entry.view, entry.record.directory), name)
        except Stale:
            message = f"the directory of {told(entry.record.path)} is gone"
            raise NotFound(message, hint="say where to restore it to") from None
    if parent.view != entry.view:
        message = "the entry lies in the trash of another view"
        raise CrossesView(message, hint="restore it where it was, then copy it")
    _need_reachable(ctx, parent)
    return parent


def _need_own(ctx: Context, entry: Entry) -> None:
    if not is_own(ctx.caller.uid, entry):
        message = f"entry {entry.view}-{entry.trash} of the trash is another user's"
        raise NotPermitted(message)


def is_own(uid: int, entry: Entry) -> bool:
    """Whether a user sees an entry: root, who put it there, and who owns the inode."""
    return uid in (0, entry.record.uid, entry.inode.uid)


def empty(ctx: Context, op: EmptyTrash) -> Reaped:
    """Remove entries for good, until about VIEWS_A_STEP views have ended with them."""
    removed = ended = 0
    more = False
    for view, number in op.entries:
        entry = load_entry(ctx.txn, view, number)
        if entry is None:
            continue
        if ended >= VIEWS_A_STEP:
            more = True
            break
        _need_own(ctx, entry)
        ended += views_ending(ctx, entry)
        remove_entry(ctx, entry)
        removed += 1
    for view in sorted({view for view, _ in op.entries if 0 <= view < 2**64}):
        settle(ctx, view)
    return Reaped(removed, more)


def keep(ctx: Context, op: KeepTrash) -> Done:
    """Set the retention of the volume, also for what is in the trash already."""
    if ctx.caller.uid:
        message = "only root says for how long the trash is kept"
        raise NotPermitted(message)
    ctx.txn.set_row(Family.META, keys.TRASH, ctx.txn.encode(op.keep_ns))
    return Done()


# ---------------------------------------------------------------- the leader's


def expire(ctx: Context, op: ExpireTrash) -> Reaped:
    """Remove up to `limit` entries whose retention is over, with about VIEWS_A_STEP views."""
    due = ctx.cluster_ns - keep_ns(ctx.txn)
    removed = ended = 0
    while (view := next(due_trashes(ctx.txn, due), None)) is not None:
        before = removed
        for entry in entries_of(ctx.txn, view):
            if entry.record.cluster_ns > due:
                break
            if removed == op.limit or ended >= VIEWS_A_STEP:
                settle(ctx, view)
                return Reaped(removed, more=True)
            ended += views_ending(ctx, entry)
            remove_entry(ctx, entry)
            removed += 1
        assert removed > before, f"the oldest entry in the trash of view {view} is younger"
        settle(ctx, view)
    return Reaped(removed, more=False)


CHECKS: dict[type, Callable[[Any], None]] = {
    Trash: check_trash,
    RestoreTrash: check_restore,
    EmptyTrash: check_empty,
    KeepTrash: check_keep,
    ExpireTrash: check_expire,
}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    Trash: trash,
    RestoreTrash: restore,
    EmptyTrash: empty,
    KeepTrash: keep,
    ExpireTrash: expire,
}
