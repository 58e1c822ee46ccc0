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
    is_directory,
    load_dentry,
    need_inode,
)
from nokv.state.records import Dentry, Inode
from nokv.state.resolve import Found, resolve_parent
from nokv.state.tree import announce, destroy, drop_name, move_name, touch_directory
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
    def ino(self) -> int:
        return self.dentry.inode


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
        message = f"no entry {op.source_name!r}"
        raise NotFound(message)
    exchange = op.flags == RenameFlag.EXCHANGE
    target = _look_up(ctx, to_parent, to_up, op.target_name)
    if target is None and exchange:
        message = f"no entry {op.target_name!r}"
        raise NotFound(message)
    if target is not None and op.flags == RenameFlag.NOREPLACE:
        message = f"{op.target_name!r} exists"
        raise AlreadyExists(message)
    if target is not None and target.ino == source.ino:
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
    )
    return Done()


def _look_up(ctx: Context, parent: Found, up: tuple[int, ...], name: bytes) -> _End | None:
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, name)
    if dentry is None:
        return None
    return _End(parent, up, name, dentry, need_inode(ctx.txn, parent.view, dentry.inode))


# ---------------------------------------------------------------- checks


def _check_loops(
    source: _End, target: _End | None, to_up: tuple[int, ...], *, exchange: bool
) -> None:
    """Refuse to move a directory below itself. Raises InvalidArgument, NotEmpty."""
    if source.ino in to_up:
        message = "a directory can't move below itself"
        raise InvalidArgument(message)
    if target is not None and target.ino in source.chain:
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
        message = f"{target.name!r} is not a directory"
        raise NotADirectory(message)
    if is_directory(target.inode) and not is_directory(source.inode):
        message = f"{target.name!r} is a directory"
        raise IsADirectory(message)
    if target.inode.children:
        message = f"{target.name!r} has {target.inode.children} entries"
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
    entries, size = _weight(ctx, view, source)
    _shift_usage(ctx, view, source.chain, to_up, entries, size)
    ctx.delete_dentry(view, source.parent.ino, source.name)
    ctx.put_dentry(view, to_parent.ino, to_name, source.dentry)
    lost = gained = 0  # subdirectories of the target parent, and entries of it
    if target is not None:
        lost = int(is_directory(target.inode))
        gained = -1
        ctx.add_usage(view, to_parent.ino, -1, -bytes_of(target.inode))
    if source.parent.ino == to_parent.ino:
        touch_directory(ctx, view, to_parent.ino, to_parent.inode, children=gained, nlink=-lost)
    else:
        touch_directory(
            ctx, view, source.parent.ino, source.parent.inode, children=-1, nlink=-directory
        )
        touch_directory(
            ctx, view, to_parent.ino, to_parent.inode, children=gained + 1, nlink=directory - lost
        )
    _replant(ctx, view, source, to_parent.ino, to_name)
    if target is None:
        return
    if lost:
        destroy(ctx, view, target.ino, target.inode)
    else:
        drop_name(ctx, view, target.ino, target.inode, to_parent.ino)


def _exchange(ctx: Context, source: _End, target: _End) -> None:
    parent, to_parent = source.parent, target.parent
    view = parent.view
    entries, size = _weight(ctx, view, source)
    to_entries, to_size = _weight(ctx, view, target)
    _shift_usage(ctx, view, source.chain, target.chain, entries - to_entries, size - to_size)
    ctx.put_dentry(view, to_parent.ino, target.name, source.dentry)
    ctx.put_dentry(view, parent.ino, source.name, target.dentry)
    gained = int(is_directory(source.inode)) - int(is_directory(target.inode))
    if parent.ino == to_parent.ino:
        touch_directory(ctx, view, parent.ino, parent.inode)
    else:
        touch_directory(ctx, view, parent.ino, parent.inode, nlink=-gained)
        touch_directory(ctx, view, to_parent.ino, to_parent.inode, nlink=gained)
    _replant(ctx, view, source, to_parent.ino, target.name)
    _replant(ctx, view, target, parent.ino, source.name)


def _weight(ctx: Context, view: int, end: _End) -> tuple[int, int]:
    """Return what a name counts for in usage: (entries, bytes)."""
    if not is_directory(end.inode):
        return 1, bytes_of(end.inode)
    inside = ctx.usage(view, end.ino)
    return 1 + inside.entries, inside.size_bytes


def _shift_usage(
    ctx: Context,
    view: int,
    up: tuple[int, ...],
    to_up: tuple[int, ...],
    entries: int,
    size: int,
) -> None:
    """Move usage from one directory's chain to another's; what they share stays as it is."""
    shared = set(up) & set(to_up)
    ctx.add_usage_to(view, [ino for ino in up if ino not in shared], -entries, -size)
    ctx.add_usage_to(view, [ino for ino in to_up if ino not in shared], entries, size)


def _replant(ctx: Context, view: int, end: _End, to_directory: int, to_name: bytes) -> None:
    """Write the moved inode, with its new parent and the time."""
    after = move_name(ctx, view, end.ino, end.inode, end.parent.ino, to_directory, to_name)
    ctx.store_inode(view, end.ino, replace(after, ctime_ns=ctx.wall_ns))


HANDLERS: dict[type, Callable[[Context, Any], Any]] = {Rename: rename}
