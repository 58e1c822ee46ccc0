"""Taking apart what a view has of its own: a detached tree of a clone, and a whole dead view.

What a clone inherits below a detached directory has no records to free, and nothing leads there any
more: the own names of a directory, and the rows of what was changed in it (`keys.changed`), lead to
all own records below it, so the work is what is freed. An inode whose own record goes leaves a
whiteout where the origin shows it, as a handle of it could be followed up to a living directory.
"""

from __future__ import annotations

from itertools import islice

from msgspec.structs import replace

from nokv.state import keys
from nokv.state.context import Context, is_directory, view_of
from nokv.state.detach import detach_tree
from nokv.state.drops import drop_body
from nokv.state.families import Family
from nokv.state.lock_tables import end_view_locks
from nokv.state.records import (
    Inode,
    Job,
    body_of,
    born_of,
    decode_count,
    decode_dentry,
    decode_inode,
    is_whiteout,
)
from nokv.state.tree import destroy
from nokv.state.views import end_view, kill_held

_OWN = (Family.DENTRY, Family.XATTR, Family.USAGE, Family.BACKLINK)
"""Families whose records of a dead view go as they are. Chunks go with their bodies."""


# ---------------------------------------------------------------- a detached tree of a clone


def reap_inherited(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Take one detached directory or file of a view with an origin apart.

    Returns (records done, finished), and takes `limit` records unless it finishes.
    """
    view, ino, death = job.view, job.a, job.b
    inode = _own_inode(ctx, view, ino)
    assert inode is not None, f"detached inode {view}:{ino} has no record of its own"
    assert inode.parent == 0, f"detached inode {view}:{ino} has a parent"
    if not is_directory(inode):
        destroy(ctx, view, ino, inode, death=death)
        return 0, True
    done = _own_names(ctx, view, ino, death, limit)
    if done < limit:
        done += _changed(ctx, view, ino, death, limit - done)
    if done == limit:
        return limit, False
    destroy(ctx, view, ino, inode)
    return done, True


def _own_names(ctx: Context, view: int, ino: int, death: int, limit: int) -> int:
    """End names of a directory that are the view's own; return how many."""
    prefix = keys.inode(view, ino)
    rows = list(islice(ctx.txn.own_scan(Family.DENTRY, prefix, keys.after_prefix(prefix)), limit))
    for key, value in rows:
        ctx.txn.delete(Family.DENTRY, key, death=death)
        if is_whiteout(value):
            continue
        dentry = decode_dentry(body_of(value))
        if dentry.view is None:  # another view died when the tree was detached
            _end_names(ctx, view, ino, dentry.inode, death)
    return len(rows)


def _changed(ctx: Context, view: int, ino: int, death: int, limit: int) -> int:
    """End inherited names of a directory that lead to own records; return how many."""
    prefix = keys.CHANGED_PREFIX + keys.inode(view, ino)
    rows = list(islice(ctx.txn.scan(Family.META, prefix, keys.after_prefix(prefix)), limit))
    for key, _ in rows:
        ctx.txn.delete_row(Family.META, key)
        _end_names(ctx, view, ino, int.from_bytes(key[-8:], "big"), death)
    return len(rows)


def _end_names(ctx: Context, view: int, directory: int, ino: int, death: int) -> None:
    """Do what follows when all names of an inode in a detached directory have gone.

    Nothing does where the inode has no own record, or moved away, or does not count these names: a
    command that wrote it since the tree was detached has left them out.
    """
    inode = _own_inode(ctx, view, ino)
    if inode is None:
        if ctx.txn.own(Family.INODE, keys.inode(view, ino)) is None:
            _end_inherited(ctx, view, directory, ino, death)
        return
    if is_directory(inode) or inode.nlink <= 1:
        if inode.parent != directory:
            return
        if is_directory(inode):
            detach_tree(ctx, view, ino, inode, death=death)
        else:
            destroy(ctx, view, ino, inode, death=max(death, _born(ctx, view, ino)))
        return
    prefix = keys.inode(view, ino)
    rows = ctx.txn.scan(Family.BACKLINK, prefix, keys.after_prefix(prefix))
    left = {int.from_bytes(key[16:], "big"): decode_count(body_of(value)) for key, value in rows}
    lost = left.pop(directory, 0)
    if not lost:
        return
    if not left:
        destroy(ctx, view, ino, inode, death=max(death, _born(ctx, view, ino)))
        return
    assert sum(left.values()) == inode.nlink - lost, f"inode {view}:{ino}: names are missing"
    gone = [directory, *(left if inode.nlink - lost == 1 else ())]
    for one in gone:
        ctx.txn.delete(Family.BACKLINK, keys.backlink(view, ino, one))
    after = replace(
        inode, nlink=inode.nlink - lost, parent=min(left), ctime_ns=ctx.wall_ns, name=b""
    )
    ctx.txn.put(Family.INODE, prefix, ctx.txn.encode(after))


def _end_inherited(ctx: Context, view: int, directory: int, ino: int, death: int) -> None:
    """Detach a directory that has no own record, but leads to some."""
    value = ctx.txn.get(Family.INODE, keys.inode(view, ino))
    if value is None:
        return
    inode = decode_inode(body_of(value))
    if is_directory(inode) and inode.parent == directory:
        detach_tree(ctx, view, ino, inode, death=death)


def _own_inode(ctx: Context, view: int, ino: int) -> Inode | None:
    value = ctx.txn.own(Family.INODE, keys.inode(view, ino))
    return None if value is None or is_whiteout(value) else decode_inode(body_of(value))


def _born(ctx: Context, view: int, ino: int) -> int:
    value = ctx.txn.own(Family.INODE, keys.inode(view, ino))
    assert value is not None, f"inode {view}:{ino} has no record of its own"
    return born_of(value)


# ---------------------------------------------------------------- a dead view


def reap_view(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Take the records of a dead view away; the view itself goes when nothing waits for it.

    A record goes at once when no pin of the view lies between its birth and the view's death, else
    it moves to history. Returns (records done, finished).
    """
    number = job.view
    if ctx.txn.view(number) is None:
        return 0, True
    death = view_of(ctx.txn, number).dead
    assert death == job.a, f"view {number} died at {death}, not at {job.a}"
    start, end = keys.pack(number), keys.pack(number + 1)
    done = kill_held(ctx, number, limit)
    for family in _OWN:
        for key, _ in list(islice(ctx.txn.own_scan(family, start, end), limit - done)):
            ctx.txn.forget(family, key, death=death)
            done += 1
    for key, value in list(islice(ctx.txn.own_scan(Family.INODE, start, end), limit - done)):
        if not is_whiteout(value):
            _end_inode(ctx, key, decode_inode(body_of(value)), death)
        ctx.txn.forget(Family.INODE, key, death=death)
        done += 1
    done += end_view_locks(ctx, number, limit - done)
    for notes in (keys.CHANGED_PREFIX, keys.FLATTEN_TODO_PREFIX):
        prefix = notes + start
        rows = ctx.txn.scan(Family.META, prefix, keys.after_prefix(prefix))
        for key, _ in list(islice(rows, limit - done)):
            ctx.txn.delete_row(Family.META, key)
            done += 1
    if done == limit:
        return limit, False
    ctx.txn.delete_row(Family.META, keys.flatten(number))
    end_view(ctx, number)
    return done, True


def _end_inode(ctx: Context, key: bytes, inode: Inode, death: int) -> None:
    view, ino = keys.U64X2.unpack(key)
    drop_body(ctx, view, ino, inode, death=death)
    ctx.txn.parents.pop((view, ino), None)
    ctx.counters.files -= 1
    ctx.counters.size_bytes -= inode.size
