"""Removing names: unlink, rmdir, and whole trees (docs/namespace.md: removing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.errors import IsADirectory, NotADirectory, NotEmpty, NotFound
from nokv.state import keys
from nokv.state.access import X, may_delete, need, need_owner
from nokv.state.context import Context, enter, is_directory, load_dentry, need_inode
from nokv.state.detach import detach, detach_tree
from nokv.state.families import Family
from nokv.state.naming import told_at
from nokv.state.records import Inode, Usage
from nokv.state.resolve import Found, resolve_parent
from nokv.state.tree import announce, destroy, drop_name, touch_directory
from nokv.state.views import kill
from nokv.types.commands import RemoveTree, Rmdir, Unlink
from nokv.types.events import EventKind
from nokv.types.results import Done


def deletable(ctx: Context, op: Unlink | Rmdir | RemoveTree) -> tuple[Found, int, int, Inode]:
    """Return the parent, and (view, inode, record) of the entry that the caller may remove."""
    parent = resolve_parent(ctx.txn, ctx.caller, ctx.session_id, op.parent)
    need(parent.inode, ctx.caller, X)
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, op.name)
    if dentry is None:
        message = f"{told_at(op.parent, op.name)}: no such file or directory"
        raise NotFound(message)
    view, ino = enter(parent.view, dentry)
    inode = need_inode(ctx.txn, view, ino)
    may_delete(parent.inode, inode, ctx.caller)
    return parent, view, ino, inode


def _need_directory(inode: Inode, op: Rmdir | RemoveTree) -> None:
    if not is_directory(inode):
        message = f"{told_at(op.parent, op.name)} is not a directory"
        raise NotADirectory(message)


def unlink(ctx: Context, op: Unlink) -> Done:
    """Remove a name that is no directory; the last one takes the inode along."""
    parent, _, ino, inode = deletable(ctx, op)
    if is_directory(inode):
        message = f"{told_at(op.parent, op.name)} is a directory"
        raise IsADirectory(message)
    ctx.delete_dentry(parent.view, parent.ino, op.name)
    touch_directory(ctx, parent.view, parent.ino, parent.inode, children=-1)
    ctx.add_usage(parent.view, parent.ino, -1, -inode.size)
    drop_name(ctx, parent.view, ino, inode, parent.ino)
    announce(ctx, EventKind.REMOVE, parent, op.name, ino, inode)
    return Done()


def rmdir(ctx: Context, op: Rmdir) -> Done:
    """Remove an empty directory."""
    parent, view, ino, inode = deletable(ctx, op)
    _need_directory(inode, op)
    if inode.children:
        message = f"{told_at(op.parent, op.name)}: directory not empty"
        raise NotEmpty(message)
    _take_directory(ctx, parent, op.name)
    ctx.add_usage(parent.view, parent.ino, -1, 0, -int(view != parent.view))
    end_empty(ctx, parent.view, view, ino, inode)
    announce(ctx, EventKind.REMOVE, parent, op.name, ino, inode, inode_view=view)
    return Done()


def remove_tree(ctx: Context, op: RemoveTree) -> Done:
    """Detach a directory with all below it; it is reaped in the background."""
    parent, view, ino, inode = deletable(ctx, op)
    _need_directory(inode, op)
    need_owner(inode, ctx.caller)
    freed = take_tree(ctx, parent, op.name, view, ino, inode)
    ctx.add_usage(parent.view, parent.ino, -freed.entries, -freed.size_bytes, -freed.grafts)
    announce(ctx, EventKind.REMOVE, parent, op.name, ino, inode, inode_view=view)
    return Done()


def end_empty(ctx: Context, holder: int, view: int, ino: int, inode: Inode) -> None:
    """Do what follows when the name of an empty directory, or of a view that is one, has gone."""
    if view != holder:
        kill(ctx, view)
    elif _leaves_rows(ctx, view, ino):
        detach_tree(ctx, view, ino, inode)
    else:
        destroy(ctx, view, ino, inode)


def _leaves_rows(ctx: Context, view: int, ino: int) -> bool:
    """Whether an empty directory has whiteouts, of which there may be many."""
    if not view:
        return False
    prefix = keys.inode(view, ino)
    rows = ctx.txn.own_scan(Family.DENTRY, prefix, keys.after_prefix(prefix))
    return next(iter(rows), None) is not None


def take_tree(ctx: Context, parent: Found, name: bytes, view: int, ino: int, inode: Inode) -> Usage:
    """Remove the name of a directory with all below it. Raises ResultTooLarge (`detach`).

    What it counted, which is returned, is the caller's to take off the parent.
    """
    inside = ctx.usage(view, ino)
    _take_directory(ctx, parent, name)
    detach(ctx, parent.view, view, ino, inode)
    grafts = inside.grafts + int(view != parent.view)
    return Usage(1 + inside.entries, inside.size_bytes, grafts)


def _take_directory(ctx: Context, parent: Found, name: bytes) -> None:
    ctx.delete_dentry(parent.view, parent.ino, name)
    touch_directory(ctx, parent.view, parent.ino, parent.inode, children=-1, nlink=-1)


HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    Unlink: unlink,
    Rmdir: rmdir,
    RemoveTree: remove_tree,
}
