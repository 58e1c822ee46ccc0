"""Attributes: chmod, chown, truncate, utimensat, inode flags, extended attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotPermitted,
    NotSupported,
    ResultTooLarge,
)
from nokv.state import acl, keys, ops_acl
from nokv.state.access import (
    SET_GID,
    STICKY,
    W,
    clear_privileges,
    in_group,
    need,
    need_not_frozen,
    need_owner,
    need_root,
    owns,
)
from nokv.state.context import (
    S_IFMT,
    Context,
    is_directory,
    is_regular,
    is_symlink,
    make_attr,
    root_of,
)
from nokv.state.drops import truncate_body
from nokv.state.families import Family
from nokv.state.links import home
from nokv.state.naming import told
from nokv.state.records import Inode
from nokv.state.resolve import Found, resolve
from nokv.state.tree import add_size
from nokv.types.commands import TIME_NOW, RemoveXattr, SetAttr, SetXattr, XattrFlag
from nokv.types.events import EventKind
from nokv.types.limits import XATTR_LIST_BYTES_MAX
from nokv.types.results import Done, Made
from nokv.types.values import Caller

USER = b"user."


def set_attr(ctx: Context, op: SetAttr) -> Made:
    """Set what is given, all or none, judged by the inode as it was before."""
    found = resolve(ctx.txn, ctx.caller, ctx.session_id, op.target)
    view, ino, before = found.view, found.ino, found.inode
    given = (op.mode, op.uid, op.gid, op.size, op.atime_ns, op.mtime_ns)
    if any(field is not None for field in given):
        need_not_frozen(before, "the inode")
    after = before
    if op.flags is not None:
        after = _with_flags(ctx.caller, after, op.flags)
    if op.uid is not None or op.gid is not None:
        after = _with_owner(ctx.caller, after, op)
    if op.mode is not None:
        after = _with_mode(ctx.caller, before, after, op.mode)
    if op.size is not None:
        after = _with_size(ctx, found, after, op.size)
    if op.atime_ns is not None or op.mtime_ns is not None:
        after = _with_times(ctx, before, after, op)
    after = replace(after, ctime_ns=ctx.wall_ns)
    ctx.store_inode(view, ino, after)
    add_size(ctx, view, ino, after, after.size - before.size)
    ctx.counters.size_bytes += after.size - before.size
    _announce(ctx, EventKind.SETATTR, found, after)
    return Made(make_attr(view, ino, after, ctx.version))


def _with_flags(caller: Caller, inode: Inode, flags: int) -> Inode:
    need_root(caller, "setting inode flags")
    if not is_directory(inode) and not is_regular(inode):
        message = "only directories and regular files have flags"
        raise NotSupported(message)
    return replace(inode, flags=flags)


def _with_owner(caller: Caller, inode: Inode, op: SetAttr) -> Inode:
    if caller.uid:
        need_owner(inode, caller)
        foreign = op.gid is not None and not in_group(caller, op.gid)
        if op.uid not in (None, inode.uid) or foreign:
            message = f"uid {caller.uid} can't give the inode to {op.uid}:{op.gid}"
            raise NotPermitted(message)
    return replace(
        inode,
        uid=inode.uid if op.uid is None else op.uid,
        gid=inode.gid if op.gid is None else op.gid,
        mode=inode.mode if is_directory(inode) else clear_privileges(inode.mode),
    )


def _with_mode(caller: Caller, before: Inode, inode: Inode, mode: int) -> Inode:
    need_owner(before, caller)
    if is_symlink(inode):
        message = "a symbolic link has no mode of its own"
        raise NotSupported(message)
    if caller.uid and not in_group(caller, inode.gid):
        mode &= ~SET_GID
    acls = inode.acls
    if acls is not None and acls.access:
        acls = replace(acls, access=acl.with_mode(acls.access, mode))
    return replace(inode, mode=inode.mode & S_IFMT | mode, acls=acls)


def _with_size(ctx: Context, found: Found, inode: Inode, size: int) -> Inode:
    if is_directory(inode):
        message = "a directory has no size to set"
        raise IsADirectory(message)
    if not is_regular(inode):
        message = "only a regular file has a size to set"
        raise InvalidArgument(message)
    need(found.inode, ctx.caller, W)
    if size != inode.size:
        cut = truncate_body(ctx, found.view, found.ino, inode, size)
        inode = replace(cut, generation=ctx.version, sha256=b"", mtime_ns=ctx.wall_ns)
    return replace(inode, mode=clear_privileges(inode.mode)) if ctx.caller.uid else inode


def _with_times(ctx: Context, before: Inode, inode: Inode, op: SetAttr) -> Inode:
    times = [time for time in (op.atime_ns, op.mtime_ns) if time is not None]
    if not owns(before, ctx.caller):
        if any(time != TIME_NOW for time in times):
            need_owner(before, ctx.caller)
        need(before, ctx.caller, W)
    now = ctx.wall_ns
    changes = {
        field: now if time == TIME_NOW else time
        for field, time in (("atime_ns", op.atime_ns), ("mtime_ns", op.mtime_ns))
        if time is not None
    }
    return replace(inode, **changes)


def _announce(ctx: Context, kind: EventKind, found: Found, after: Inode) -> None:
    """Record a change of an inode under a directory that names it; no name is known to be it."""
    root = root_of(ctx.txn, found.view)
    directory, _ = home(ctx.txn, found.view, found.ino, after, root)
    ctx.emit(
        kind,
        found.view,
        directory,
        b"",
        found.ino,
        size=after.size,
        generation=after.generation,
    )


# ---------------------------------------------------------------- extended attributes


def _changeable(ctx: Context, op: SetXattr | RemoveXattr) -> tuple[Found, bytes | None]:
    """Return the inode and the present value of the attribute that the caller may change."""
    caller = ctx.caller
    found = resolve(ctx.txn, caller, ctx.session_id, op.target)
    inode = found.inode
    if not op.name.startswith(USER):
        need_root(caller, "a trusted or security attribute")
    else:
        if not is_regular(inode) and not is_directory(inode):
            message = "only regular files and directories have user attributes"
            raise NotPermitted(message)
        if is_directory(inode) and inode.mode & STICKY:
            need_owner(inode, caller)
        need(inode, caller, W)
    need_not_frozen(inode, "the inode")
    return found, ctx.txn.get(Family.XATTR, keys.xattr(found.view, found.ino, op.name))


def _change_list(ctx: Context, op: SetXattr | RemoveXattr) -> Done:
    changed = ops_acl.changed(ctx, op)
    if changed is not None:
        found, after = changed
        ctx.store_inode(found.view, found.ino, after)
        _announce(ctx, EventKind.XATTR, found, after)
    return Done()


def _write_back(ctx: Context, found: Found, more_bytes: int) -> None:
    inode = found.inode
    after = replace(inode, xattr_bytes=inode.xattr_bytes + more_bytes, ctime_ns=ctx.wall_ns)
    assert after.xattr_bytes >= 0, f"inode {found.ino}: attribute names below zero bytes"
    ctx.store_inode(found.view, found.ino, after)
    _announce(ctx, EventKind.XATTR, found, after)


def set_xattr(ctx: Context, op: SetXattr) -> Done:
    """Set an extended attribute."""
    if op.name in acl.NAMES:
        return _change_list(ctx, op)
    found, present = _changeable(ctx, op)
    if present is not None and op.flags == XattrFlag.CREATE:
        message = f"attribute {told(op.name)} exists"
        raise AlreadyExists(message)
    if present is None and op.flags == XattrFlag.REPLACE:
        message = f"no attribute {told(op.name)}"
        raise NoAttribute(message)
    more = len(op.name) + 1 if present is None else 0
    names_bytes = found.inode.xattr_bytes + acl.names_bytes(found.inode)
    if names_bytes + more > XATTR_LIST_BYTES_MAX:
        message = f"names of attributes over {XATTR_LIST_BYTES_MAX} bytes"
        raise ResultTooLarge(message)
    ctx.txn.put(Family.XATTR, keys.xattr(found.view, found.ino, op.name), ctx.txn.encode(op.value))
    _write_back(ctx, found, more)
    return Done()


def remove_xattr(ctx: Context, op: RemoveXattr) -> Done:
    """Remove an extended attribute."""
    if op.name in acl.NAMES:
        return _change_list(ctx, op)
    found, present = _changeable(ctx, op)
    if present is None:
        message = f"no attribute {told(op.name)}"
        raise NoAttribute(message)
    ctx.txn.delete(Family.XATTR, keys.xattr(found.view, found.ino, op.name))
    _write_back(ctx, found, -len(op.name) - 1)
    return Done()


HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    SetAttr: set_attr,
    SetXattr: set_xattr,
    RemoveXattr: remove_xattr,
}
