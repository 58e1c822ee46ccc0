"""Making names: mkdir, create, bulk create, mknod, symlink, link (docs/namespace.md: creating)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from nokv.errors import AlreadyExists, CrossesView, LinkLimit, NotPermitted
from nokv.state import keys
from nokv.state.access import X, inherit, may_create, need, need_not_frozen, need_root
from nokv.state.acl import inherited
from nokv.state.arguments import DEVICES
from nokv.state.context import (
    DIRECTORY,
    REGULAR,
    S_IFMT,
    SYMLINK,
    Context,
    chain,
    is_directory,
    make_attr,
)
from nokv.state.families import Family
from nokv.state.links import home
from nokv.state.naming import told_at
from nokv.state.records import Dentry, Inode
from nokv.state.resolve import Found, resolve, resolve_parent
from nokv.state.tree import add_name, announce, touch_directory
from nokv.types.commands import BulkCreate, Create, Link, Mkdir, Mknod, Symlink
from nokv.types.events import EventKind
from nokv.types.limits import LINK_MAX
from nokv.types.results import Made, MadeMany
from nokv.types.values import At

_CREATE = EventKind.CREATE
_INODE = Family.INODE
_DENTRY = Family.DENTRY
_MARK = b"\x00a name goes here"
"""Stands for the name in the record that all inodes of a bulk create share: no name has a NUL."""


def place(ctx: Context, at: At, name: bytes) -> Found:
    """Return the directory in which the free `name` may be made."""
    parent = resolve_parent(ctx.txn, ctx.caller, ctx.session_id, at)
    need(parent.inode, ctx.caller, X)
    need_free(ctx, parent, at, name)
    may_create(parent.inode, ctx.caller)
    return parent


def need_free(ctx: Context, parent: Found, at: At, name: bytes) -> None:
    """Raise AlreadyExists if the directory, which the command called `at`, has the name."""
    key = keys.pack2(parent.view, parent.ino) + name
    if ctx.txn.get(_DENTRY, key) is not None:
        message = f"{told_at(at, name)}: file exists"
        raise AlreadyExists(message)


def _make(
    ctx: Context,
    parent: Found,
    name: bytes,
    mode: int,
    *,
    umask: int = 0,
    rdev: int = 0,
    target: bytes = b"",
) -> Made:
    view, directory = parent.view, mode & S_IFMT == DIRECTORY
    mode, gid = inherit(parent.inode, ctx.caller, mode)
    mode, acls = inherited(parent.inode, mode, umask)
    now, size = ctx.wall_ns, len(target)
    inode = Inode(
        mode,
        ctx.caller.uid,
        gid,
        2 if directory else 1,
        size,
        now,
        now,
        now,
        parent.ino,
        rdev=rdev,
        target=target,
        acls=acls,
        name=name,
    )
    ino = ctx.new_inode()
    ctx.store_inode(view, ino, inode)
    ctx.put_dentry(view, parent.ino, name, Dentry(mode >> 12, ino))
    touch_directory(ctx, view, parent.ino, parent.inode, children=1, nlink=int(directory))
    ctx.add_usage(view, parent.ino, 1, size)
    ctx.counters.files += 1
    ctx.counters.size_bytes += size
    ctx.emit(_CREATE, view, parent.ino, name, ino, size=size)
    return Made(make_attr(view, ino, inode, ctx.version))


def mkdir(ctx: Context, op: Mkdir) -> Made:
    """Make a directory."""
    return _make(ctx, place(ctx, op.parent, op.name), op.name, DIRECTORY | op.mode, umask=op.umask)


def create(ctx: Context, op: Create) -> Made:
    """Make an empty regular file."""
    return _make(ctx, place(ctx, op.parent, op.name), op.name, REGULAR | op.mode, umask=op.umask)


def mknod(ctx: Context, op: Mknod) -> Made:
    """Make a special file, or an empty regular one."""
    parent = place(ctx, op.parent, op.name)
    device = op.mode >> 12 in DEVICES
    if device:
        need_root(ctx.caller, "a device")
    rdev = op.rdev if device else 0
    return _make(ctx, parent, op.name, op.mode, umask=op.umask, rdev=rdev)


def symlink(ctx: Context, op: Symlink) -> Made:
    """Make a symbolic link."""
    parent = place(ctx, op.parent, op.name)
    return _make(ctx, parent, op.name, SYMLINK | 0o777, target=op.target)


def bulk_create(ctx: Context, op: BulkCreate) -> MadeMany:
    """Make many empty files: one parent update, one usage walk, one event for all of them."""
    txn, caller, names = ctx.txn, ctx.caller, op.names
    parent = resolve_parent(txn, caller, ctx.session_id, op.parent)
    need(parent.inode, caller, X)
    if parent.inode.children:
        for name in names:
            need_free(ctx, parent, op.parent, name)
    may_create(parent.inode, caller)
    view, now, count = parent.view, ctx.wall_ns, len(names)
    mode, gid = inherit(parent.inode, caller, REGULAR | op.mode)
    mode, acls = inherited(parent.inode, mode, op.umask)
    inode = Inode(mode, caller.uid, gid, 1, 0, now, now, now, parent.ino, name=_MARK, acls=acls)
    head, tail = txn.encode(inode).split(txn.encode(_MARK), 1)
    first = ctx.counters.next_inode
    ctx.counters.next_inode += count
    numbers = range(first, first + count)
    pack, prefix, file_type = keys.pack2, keys.pack2(view, parent.ino), mode >> 12
    encode, rows = txn.encode, list(zip(names, numbers, strict=True))
    txn.put_fresh(_INODE, [(pack(view, ino), head + encode(name) + tail) for name, ino in rows])
    txn.put_fresh(_DENTRY, [(prefix + name, encode(Dentry(file_type, ino))) for name, ino in rows])
    touch_directory(ctx, view, parent.ino, parent.inode, children=count)
    ctx.add_usage(view, parent.ino, count, 0)
    ctx.counters.files += count
    ctx.emit(_CREATE, view, parent.ino, b"", first, names=names)
    return MadeMany(first, count)


def link(ctx: Context, op: Link) -> Made:
    """Give a file a further name."""
    txn, caller = ctx.txn, ctx.caller
    source = resolve(txn, caller, ctx.session_id, op.source)
    parent = resolve_parent(txn, caller, ctx.session_id, op.parent)
    view, ino, inode = source.view, source.ino, source.inode
    need(parent.inode, caller, X)
    need_free(ctx, parent, op.parent, op.name)
    root = chain(txn, parent.view, parent.ino)[-1]
    if parent.view != view or home(txn, view, ino, inode, root)[1] != root:
        message = "the file and its new name lie in different views or staged trees"
        raise CrossesView(message)
    may_create(parent.inode, caller)
    need_not_frozen(inode, "the file")
    if is_directory(inode):
        message = "a directory has one name"
        raise NotPermitted(message)
    if inode.nlink >= LINK_MAX:
        message = f"the file has {inode.nlink} names"
        raise LinkLimit(message)
    after = add_name(ctx, view, ino, replace(inode, ctime_ns=ctx.wall_ns), parent.ino)
    ctx.store_inode(view, ino, after)
    ctx.put_dentry(view, parent.ino, op.name, Dentry(inode.mode >> 12, ino))
    touch_directory(ctx, view, parent.ino, parent.inode, children=1)
    ctx.add_usage(view, parent.ino, 1, inode.size)
    announce(ctx, EventKind.LINK, parent, op.name, ino, after)
    return Made(make_attr(view, ino, after, ctx.version))


HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    Mkdir: mkdir,
    Create: create,
    BulkCreate: bulk_create,
    Mknod: mknod,
    Symlink: symlink,
    Link: link,
}
