"""renameat2(2): move, replace, exchange (docs/namespace.md: rename).

All checks come first, over records as they are; then every record that changes is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from nokv.state.access import W, X, may_create, may_delete, need
from nokv.state.context import (
    Context,
    bytes_of,
    chain,
    enter,
    is_directory,
    load_dentry,
    need_inode,
)
from nokv.state.naming import told, told_at
from nokv.state.ops_remove import end_empty
from nokv.state.records import Dentry, Inode, Usage
from nokv.state.resolve import Found, resolve_parent
from nokv.state.tree import announce, drop_name, move_name, touch_directory
from nokv.state.views import move_graft
from nokv.types.commands import Rename, RenameFlag
from nokv.types.events import EventKind
from nokv.types.results import Done


class _End(msgspec.Struct, frozen=True):
    """One of the two names, and what it shows."""

    parent: Found
    chain: tuple[int, ...]
    """The parent and its ancestors."""
    name: bytes
    dentry: Dentry
    inode: Inode

    @property
    def node(self) -> tuple[int, int]:
        """(view, inode) of what the name shows."""
        return enter(self.parent.view, self.dentry)

    @property
    def ino(self) -> int:
        return self.dentry.inode

    @property
    def is_graft(self) -> bool:
        """Whether the name leads into another view."""
        return self.dentry.view is not None


def rename(ctx: Context, op: Rename) -> Done:
    """Move a name, over what stands at its target or in exchange with it."""
    txn, caller = ctx.txn, ctx.caller
    parent = resolve_parent(txn, caller, ctx.session_id, op.source)
    to_parent = resolve_parent(txn, caller, ctx.session_id, op.target)
    up = chain(txn, parent.view, parent.ino)
    to_up = up if to_parent.ino == parent.ino else chain(txn, to_parent.view, to_parent.ino)
    if parent.view != to_parent.view or up[-1] != to_up[-1]:
        message = "the two names lie in different views or staged trees"
        raise CrossesView(message)
    need(parent.inode, caller, X)
    need(to_parent.inode, caller, X)
    source = _look_up(ctx, parent, up, op.source_name)
    if source is None:
        message = f"{told_at(op.source, op.source_name)}: no such file or directory"
        raise NotFound(message)
    exchange = op.flags == RenameFlag.EXCHANGE
    target = _look_up(ctx, to_parent, to_up, op.target_name)
    if target is None and exchange:
        message = f"{told_at(op.target, op.target_name)}: no such file or directory"
        raise NotFound(message)
    if target is not None and op.flags == RenameFlag.NOREPLACE:
        message = f"{told_at(op.target, op.target_name)}: file exists"
        raise AlreadyExists(message)
    if target is not None and target.node == source.node:
        return Done()
    _check_loops(source, target, to_up, exchange=exchange)
    _check_access(ctx, source, target, to_parent, exchange=exchange)
    if target is not None and exchange:
        _exchange(ctx, source, target)
    else:
        _move(ctx, source, target, to_parent, to_up, op.target_name)
    announce(
        ctx,
        EventKind.EXCHANGE if exchange else EventKind.RENAME,
        parent,
        op.source_name,
        source.ino,
        source.inode,
        to_directory=to_parent.ino,
        to_name=op.target_name,
        inode_view=source.node[0],
    )
    return Done()


def _look_up(ctx: Context, parent: Found, up: tuple[int, ...], name: bytes) -> _End | None:
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, name)
    if dentry is None:
        return None
    return _End(parent, up, name, dentry, need_inode(ctx.txn, *enter(parent.view, dentry)))


# ---------------------------------------------------------------- checks


def _check_loops(
    source: _End, target: _End | None, to_up: tuple[int, ...], *, exchange: bool
) -> None:
    """Refuse to move a directory below itself. Raises InvalidArgument, NotEmpty.

    A graft has nothing of its parents' view below it.
    """
    if not source.is_graft and source.ino in to_up:
        message = "a directory can't move below itself"
        raise InvalidArgument(message)
    if target is not None and not target.is_graft and target.ino in source.chain:
        if exchange:
            message = "a directory can't move below itself"
            raise InvalidArgument(message)
        message = "the target holds the source"
        raise NotEmpty(message)


def _check_access(
    ctx: Context, source: _End, target: _End | None, to_parent: Found, *, exchange: bool
) -> None:
    """Check permissions, then types, then the directories that get another parent."""
    may_delete(source.parent.inode, source.inode, ctx.caller)
    if target is None:
        may_create(to_parent.inode, ctx.caller)
    else:
        may_delete(to_parent.inode, target.inode, ctx.caller)
        if not exchange:
            _check_replace(source, target)
    if source.parent.ino == to_parent.ino:
        return
    for end in (source, target if exchange else None):
        if end is not None and is_directory(end.inode):
            need(end.inode, ctx.caller, W)


def _check_replace(source: _End, target: _End) -> None:
    if is_directory(source.inode) and not is_directory(target.inode):
        message = f"{told(target.name)} is not a directory"
        raise NotADirectory(message)
    if is_directory(target.inode) and not is_directory(source.inode):
        message = f"{told(target.name)} is a directory"
        raise IsADirectory(message)
    if target.inode.children:
        message = f"{told(target.name)}: directory not empty"
        raise NotEmpty(message)


# ---------------------------------------------------------------- changes


def _move(
    ctx: Context,
    source: _End,
    target: _End | None,
    to_parent: Found,
    to_up: tuple[int, ...],
    to_name: bytes,
) -> None:
    view, directory = to_parent.view, int(is_directory(source.inode))
    freed = Usage(0, 0)
    if target is not None:
        freed = Usage(1, bytes_of(target.inode), int(target.is_graft))
    _shift_usage(ctx, view, source.chain, to_up, _weight(ctx, source), freed)
    ctx.delete_dentry(view, source.parent.ino, source.name)
    ctx.put_dentry(view, to_parent.ino, to_name, source.dentry)
    lost = gained = 0  # subdirectories of the target parent, and entries of it
    if target is not None:
        lost = int(is_directory(target.inode))
        gained = -1
    if source.parent.ino == to_parent.ino:
        touch_directory(ctx, view, to_parent.ino, to_parent.inode, children=gained, nlink=-lost)
    else:
        touch_directory(
            ctx, view, source.parent.ino, source.parent.inode, children=-1, nlink=-directory
        )
        touch_directory(
            ctx, view, to_parent.ino, to_parent.inode, children=gained + 1, nlink=directory - lost
        )
    _replant(ctx, source, to_parent.ino, to_name)
    if target is None:
        return
    if lost:
        end_empty(ctx, view, *target.node, target.inode)
    else:
        drop_name(ctx, view, target.ino, target.inode, to_parent.ino)


def _exchange(ctx: Context, source: _End, target: _End) -> None:
    parent, to_parent = source.parent, target.parent
    view = parent.view
    out, back = _weight(ctx, source), _weight(ctx, target)
    more = Usage(
        out.entries - back.entries, out.size_bytes - back.size_bytes, out.grafts - back.grafts
    )
    _shift_usage(ctx, view, source.chain, target.chain, more, Usage(0, 0))
    ctx.put_dentry(view, to_parent.ino, target.name, source.dentry)
    ctx.put_dentry(view, parent.ino, source.name, target.dentry)
    gained = int(is_directory(source.inode)) - int(is_directory(target.inode))
    if parent.ino == to_parent.ino:
        touch_directory(ctx, view, parent.ino, parent.inode)
    else:
        touch_directory(ctx, view, parent.ino, parent.inode, nlink=-gained)
        touch_directory(ctx, view, to_parent.ino, to_parent.inode, nlink=gained)
    _replant(ctx, source, to_parent.ino, target.name)
    _replant(ctx, target, parent.ino, source.name)


def _weight(ctx: Context, end: _End) -> Usage:
    """Return what a name counts for in usage."""
    if not is_directory(end.inode):
        return Usage(1, bytes_of(end.inode))
    inside = ctx.usage(*end.node)
    return Usage(1 + inside.entries, inside.size_bytes, inside.grafts + int(end.is_graft))


def _shift_usage(
    ctx: Context,
    view: int,
    up: tuple[int, ...],
    to_up: tuple[int, ...],
    more: Usage,
    freed: Usage,
) -> None:
    """Move usage from one directory's chain to another's, where something makes way for it.

    A quota sees both at once; what the chains share only loses what makes way.
    """
    entries, size, grafts = more.entries, more.size_bytes, more.grafts
    shared = set(up) & set(to_up)
    ctx.add_usage_to(view, [ino for ino in up if ino not in shared], -entries, -size, -grafts)
    ctx.add_usage_to(
        view,
        [ino for ino in to_up if ino not in shared],
        entries - freed.entries,
        size - freed.size_bytes,
        grafts - freed.grafts,
    )
    common = next(ino for ino in to_up if ino in shared)
    ctx.add_usage(view, common, -freed.entries, -freed.size_bytes, -freed.grafts)


def _replant(ctx: Context, end: _End, to_directory: int, to_name: bytes) -> None:
    """Write the moved inode, with its new parent and the time; of a view its new entry."""
    view, ino = end.node
    if end.is_graft:
        move_graft(ctx, view, to_directory, to_name)
        after = end.inode
    else:
        after = move_name(ctx, view, ino, end.inode, end.parent.ino, to_directory, to_name)
    ctx.store_inode(view, ino, replace(after, ctime_ns=ctx.wall_ns))


HANDLERS: dict[type, Callable[[Context, Any], Any]] = {Rename: rename}
