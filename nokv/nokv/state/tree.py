"""What changes to names mean for inodes: link counts, backlinks, usage, the inode's end.

Backlinks are kept for files with several names only: (inode, directory, name) for each of them.
An inode's `parent` is always the directory of one of its names.
"""

from __future__ import annotations

from msgspec.structs import replace

from nokv.state import keys
from nokv.state.context import Context
from nokv.state.drops import drop_body
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import Inode


def names_of(source: Source, view: int, ino: int) -> list[tuple[int, bytes]]:
    """Return (directory, name) of each name of an inode with several; of others nothing."""
    prefix = keys.inode(view, ino)
    rows = source.scan(Family.BACKLINK, prefix, keys.after_prefix(prefix))
    return [(int.from_bytes(key[16:24], "big"), key[24:]) for key, _ in rows]


def add_size(ctx: Context, view: int, ino: int, inode: Inode, delta: int) -> None:
    """Add to the usage above every name of the inode. `counters.size_bytes` is the caller's."""
    if not delta:
        return
    if inode.nlink > 1:
        for directory, _ in names_of(ctx.txn, view, ino):
            ctx.add_usage(view, directory, 0, delta)
    elif inode.parent:
        ctx.add_usage(view, inode.parent, 0, delta)


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


def add_backlink(ctx: Context, view: int, ino: int, directory: int, name: bytes) -> None:
    """Record one name of an inode with several."""
    ctx.txn.put(Family.BACKLINK, keys.backlink(view, ino, directory, name), b"")


def delete_backlink(ctx: Context, view: int, ino: int, directory: int, name: bytes) -> None:
    """Forget one."""
    ctx.txn.delete(Family.BACKLINK, keys.backlink(view, ino, directory, name))


def drop_name(
    ctx: Context,
    view: int,
    ino: int,
    inode: Inode,
    directory: int,
    name: bytes,
    *,
    death: int | None = None,
) -> None:
    """Do what follows for a file when one of its names has gone; the last takes the inode along.

    The name's record, its usage and its directory are the caller's.
    """
    if inode.nlink <= 1:
        destroy(ctx, view, ino, inode, death=death)
        return
    delete_backlink(ctx, view, ino, directory, name)
    left = names_of(ctx.txn, view, ino)
    assert len(left) == inode.nlink - 1, f"inode {ino} has {len(left)} names left"
    parent = left[0][0]
    if len(left) == 1:
        delete_backlink(ctx, view, ino, *left[0])
    after = replace(inode, nlink=len(left), parent=parent, ctime_ns=ctx.wall_ns)
    ctx.store_inode(view, ino, after)


def destroy(ctx: Context, view: int, ino: int, inode: Inode, *, death: int | None = None) -> None:
    """Remove an inode that no name shows: record, attributes, body, and its counts.

    `death` is the version at which history lets it end: this command's, or the earlier one at
    which its tree was detached.
    """
    drop_body(ctx, view, ino, inode, death=death)
    prefix = keys.inode(view, ino)
    if inode.xattr_bytes:
        rows = ctx.txn.scan(Family.XATTR, prefix, keys.after_prefix(prefix))
        for key in [key for key, _ in rows]:
            ctx.txn.delete(Family.XATTR, key, death=death)
    ctx.txn.delete(Family.INODE, prefix, death=death)
    ctx.counters.files -= 1
    ctx.counters.size_bytes -= inode.size
    assert ctx.counters.files >= 0, "fewer than no inodes"
    assert ctx.counters.size_bytes >= 0, "fewer than no bytes"
