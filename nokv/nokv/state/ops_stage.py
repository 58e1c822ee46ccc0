"""Staged trees: built out of sight in bounded commands, made visible by one small one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    Stale,
    WindowFull,
)
from nokv.state import access
from nokv.state.acl import inherited
from nokv.state.arguments import check_at, check_name
from nokv.state.context import (
    DIRECTORY,
    REGULAR,
    S_IFMT,
    Context,
    chain,
    enter,
    is_alive,
    is_directory,
    load_attr,
    load_dentry,
    need_inode,
    root_of,
)
from nokv.state.detach import detach_tree
from nokv.state.naming import told_at
from nokv.state.ops_quota import room_below, set_limits
from nokv.state.ops_remove import take_tree
from nokv.state.ops_session import need_session
from nokv.state.records import Dentry, Inode, Session, Usage
from nokv.state.resolve import Found, resolve_parent
from nokv.state.tree import drop_name, touch_directory
from nokv.types.commands import StageBegin, StageDrop, StageMode, StageSwap
from nokv.types.copies import NO_LIMIT
from nokv.types.events import EventKind
from nokv.types.results import Done, Made, Published

STAGES_MAX = 64
"""Open staged roots of one session."""


def check_begin(op: StageBegin) -> None:
    """Raise InvalidArgument for a type that can't be staged."""
    if op.mode & S_IFMT not in (DIRECTORY, REGULAR) or op.mode & ~(S_IFMT | 0o7777):
        message = f"mode {op.mode:o} is no directory's or regular file's"
        raise InvalidArgument(message)
    if op.parent is not None:
        check_at(op.parent)
        check_name(op.name)


def check_swap(op: StageSwap) -> None:
    """Raise for a bad address, name or mode."""
    check_at(op.parent)
    check_name(op.name)
    if op.stage_mode not in (StageMode.CREATE, StageMode.REPLACE):
        message = f"stage mode {op.stage_mode}"
        raise InvalidArgument(message)


def stage_begin(ctx: Context, op: StageBegin) -> Made:
    """Make a hidden root, counted by statfs alone."""
    root_of(ctx.txn, op.view)
    session = need_session(ctx)
    stages = tuple(stage for stage in session.stages if _lives(ctx, stage[0]))
    if len(stages) >= STAGES_MAX:
        message = f"the session has {STAGES_MAX} staged trees"
        raise WindowFull(message, hint="swap or drop one of them")
    now = ctx.wall_ns
    ino = ctx.new_inode()
    inode = Inode(
        op.mode,
        ctx.caller.uid,
        ctx.caller.gid,
        2 if op.mode & S_IFMT == DIRECTORY else 0,
        0,
        now,
        now,
        now,
        0,
        stage=ctx.session_id,
    )
    ctx.store_inode(op.view, ino, inode)
    if op.parent is not None:
        _limit(ctx, op, ino, resolve_parent(ctx.txn, ctx.caller, ctx.session_id, op.parent))
    ctx.counters.files += 1
    ctx.session = replace(session, stages=(*stages, (op.view, ino)))
    attr = load_attr(ctx.txn, op.view, ino)
    assert attr is not None
    return Made(attr)


def _lives(ctx: Context, view: int) -> bool:
    """Whether a view lives: what was staged in it has ended with it."""
    return is_alive(ctx.txn, view)


def _limit(ctx: Context, op: StageBegin, ino: int, parent: Found) -> None:
    """Give a staged root, as its own quota, the room under those above where it is to go.

    So what would not fit is refused before more of it is uploaded; the swap checks what is true
    then.
    """
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, op.name)
    freed = Usage(0, 0)
    if dentry is not None:
        view, target = enter(parent.view, dentry)
        inode = need_inode(ctx.txn, view, target)
        inside = ctx.usage(view, target) if is_directory(inode) else Usage(0, inode.size)
        freed = Usage(1 + inside.entries, inside.size_bytes)
    entries, size_bytes = room_below(ctx, parent.view, parent.ino, freed)
    if op.mode & S_IFMT == DIRECTORY and (entries or size_bytes):
        set_limits(ctx, op.view, ino, max(entries - 1, 1) if entries else 0, size_bytes)


def _own_stage(ctx: Context, session: Session, view: int, stage: int) -> Inode | None:
    """Return a staged root of the session; None if it went with its view. Raises Stale."""
    if (view, stage) not in session.stages:
        message = f"{view}:{stage} is no staged tree of this session"
        raise Stale(message)
    if not is_alive(ctx.txn, view):
        return None
    inode = need_inode(ctx.txn, view, stage)
    assert inode.stage == ctx.session_id, "a session's list and the inode disagree"
    return inode


def _without(session: Session, view: int, stage: int) -> Session:
    return replace(session, stages=tuple(s for s in session.stages if s != (view, stage)))


def stage_drop(ctx: Context, op: StageDrop) -> Done:
    """Give a staged tree up."""
    session = need_session(ctx)
    inode = _own_stage(ctx, session, op.view, op.stage)
    if inode is not None:
        detach_tree(ctx, op.view, op.stage, inode)
    ctx.session = _without(need_session(ctx), op.view, op.stage)  # locks may have ended
    return Done()


def stage_swap(ctx: Context, op: StageSwap) -> Published:
    """Make a staged tree visible, and detach what the name showed before."""
    session = need_session(ctx)
    staged = _own_stage(ctx, session, op.view, op.stage)
    root = root_of(ctx.txn, op.view)
    assert staged is not None, "a staged tree of a living view"
    parent = resolve_parent(ctx.txn, ctx.caller, ctx.session_id, op.parent)
    if parent.view != op.view or chain(ctx.txn, op.view, parent.ino)[-1] != root:
        message = "a staged tree enters its own view's tree, not another staged one"
        raise CrossesView(message)
    access.need(parent.inode, ctx.caller, access.X)
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, op.name)
    freed = Usage(0, 0)
    if dentry is not None:
        if op.stage_mode == StageMode.CREATE:
            message = f"{told_at(op.parent, op.name)}: file exists"
            raise AlreadyExists(message)
        freed = _replace_target(ctx, op, staged, parent, dentry)
    else:
        access.may_create(parent.inode, ctx.caller)
    directory = is_directory(staged)
    before = need_inode(ctx.txn, parent.view, parent.ino)
    touch_directory(ctx, parent.view, parent.ino, before, children=1, nlink=1 if directory else 0)
    mode, acls = staged.mode, staged.acls
    if acls is None:
        mode, acls = inherited(before, mode, 0)
    after = replace(
        staged,
        mode=mode,
        acls=acls,
        parent=parent.ino,
        name=op.name,
        stage=0,
        nlink=staged.nlink if directory else 1,
        generation=staged.generation if directory else ctx.version,
        ctime_ns=ctx.wall_ns,
    )
    ctx.store_inode(op.view, op.stage, after)
    ctx.put_dentry(op.view, parent.ino, op.name, Dentry(staged.mode >> 12, op.stage))
    inside = ctx.usage(op.view, op.stage)
    if inside.entries_max or inside.size_bytes_max:
        set_limits(ctx, op.view, op.stage, NO_LIMIT, NO_LIMIT)
    ctx.add_usage(  # a quota sees both at once
        op.view,
        parent.ino,
        inside.entries + 1 - freed.entries,
        inside.size_bytes + after.size - freed.size_bytes,
        -freed.grafts,
    )
    ctx.session = _without(need_session(ctx), op.view, op.stage)  # locks may have ended
    ctx.emit(
        EventKind.MOVE_IN if directory else EventKind.PUBLISH,
        op.view,
        parent.ino,
        op.name,
        op.stage,
        size=after.size,
        generation=ctx.version,
    )
    attr = load_attr(ctx.txn, op.view, op.stage)
    return Published(op.stage, ctx.version, after.size, 0, attr)


def _replace_target(
    ctx: Context, op: StageSwap, staged: Inode, parent: Found, dentry: Dentry
) -> Usage:
    """Take what the name shows away: a file by its name, a directory as a whole.

    What it counted is returned, and still counts.
    """
    view, ino = enter(parent.view, dentry)
    target = need_inode(ctx.txn, view, ino)
    access.may_delete(parent.inode, target, ctx.caller)
    if is_directory(staged) and not is_directory(target):
        message = f"{told_at(op.parent, op.name)} is not a directory"
        raise NotADirectory(message)
    if not is_directory(staged) and is_directory(target):
        message = f"{told_at(op.parent, op.name)} is a directory"
        raise IsADirectory(message)
    if not is_directory(target):
        ctx.delete_dentry(view, parent.ino, op.name)
        touch_directory(ctx, view, parent.ino, parent.inode, children=-1)
        drop_name(ctx, view, dentry.inode, target, parent.ino)
        return Usage(1, target.size)
    access.need_owner(target, ctx.caller)
    return take_tree(ctx, parent, op.name, view, ino, target)


CHECKS: dict[type, Callable[[Any], None]] = {StageBegin: check_begin, StageSwap: check_swap}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    StageBegin: stage_begin,
    StageDrop: stage_drop,
    StageSwap: stage_swap,
}
