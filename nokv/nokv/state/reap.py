"""Background work in bounded steps, each one command of the log."""

from __future__ import annotations

from itertools import islice

from nokv.state import keys
from nokv.state.branches import LIVE, Row
from nokv.state.context import (
    JOB_BACKUP,
    JOB_ORPHAN,
    JOB_TRIM,
    JOB_UNPIN,
    JOB_VIEW,
    Context,
    is_directory,
    need_inode,
)
from nokv.state.detach import detach_tree
from nokv.state.drops import drop_body
from nokv.state.families import Family
from nokv.state.ops_backup import unpin
from nokv.state.reap_views import reap_inherited, reap_view
from nokv.state.records import (
    BORN_BYTES,
    Dentry,
    Job,
    body_of,
    born_of,
    decode_dentry,
    decode_inode,
    decode_job,
)
from nokv.state.tree import destroy, drop_name
from nokv.types.commands import Reap
from nokv.types.results import Reaped
from nokv.types.values import ROOT_VIEW, FileType

_END = 2**64 - 1
_INODE = Family.INODE


def reap(ctx: Context, op: Reap) -> Reaped:
    """Do up to `limit` records of the oldest jobs; a job's row goes when it is finished."""
    left = op.limit
    while left > 0:
        jobs = _oldest(ctx, left)
        if not jobs:
            break
        for key, job in jobs:
            done, finished = _step(ctx, key, job, left)
            assert finished or done == left, "an unfinished step used less than it was given"
            if finished:
                ctx.txn.delete_row(Family.META, key)
                ctx.counters.jobs -= 1
                done += 1
            left -= done
            if left <= 0:
                break
    return Reaped(op.limit - max(left, 0), ctx.counters.jobs > 0)


def _oldest(ctx: Context, limit: int) -> list[tuple[bytes, Job]]:
    """Return the oldest jobs: many at once, as each scan looks at all that the step has written."""
    end = keys.after_prefix(keys.JOB_PREFIX)
    rows = islice(ctx.txn.scan(Family.META, keys.JOB_PREFIX, end), limit)
    return [(key, decode_job(value)) for key, value in rows]


def _step(ctx: Context, key: bytes, job: Job, limit: int) -> tuple[int, bool]:
    """Return (records done, finished)."""
    if job.kind == JOB_ORPHAN:
        return _orphan(ctx, job, limit)
    if job.kind == JOB_UNPIN:
        done, finished = _unpin(ctx, job, limit)
        if finished:
            ctx.view_may_end(job.view)
        return done, finished
    if job.kind == JOB_VIEW:
        return reap_view(ctx, job, limit)
    if job.kind == JOB_BACKUP:
        return unpin(ctx, key, job, limit)
    assert job.kind == JOB_TRIM, f"job kind {job.kind}"
    return _trim(ctx, job, limit)


# ---------------------------------------------------------------- detached trees


def _orphan(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Take one detached directory apart; its subdirectories become jobs of their own.

    Its names and bodies die, for history, when the tree was detached (`job.b`): a pin made since
    shows them nowhere. Directories die now: a file with another name elsewhere still points to
    them as its parent, also for such a pin, and whoever asks walks up to find the tree removed.
    """
    view, ino, death = job.view, job.a, job.b
    record = ctx.txn.view(view)
    if record is None or record.dead:
        return 0, True  # the job of the view takes all of its records
    if record.origin is not None:
        return reap_inherited(ctx, job, limit)
    inode = need_inode(ctx.txn, view, ino)
    assert inode.parent == 0, f"detached inode {view}:{ino} has a parent"
    if not is_directory(inode):
        destroy(ctx, view, ino, inode, death=death)
        return 0, True
    prefix = keys.inode(view, ino)
    rows = list(islice(ctx.txn.scan(Family.DENTRY, prefix, keys.after_prefix(prefix)), limit))
    for key, value in _end_plain(ctx, rows, death) if not view else rows:
        ctx.txn.delete(Family.DENTRY, key, death=death)
        dentry = decode_dentry(body_of(value))
        if dentry.view is None:  # another view died when the tree was detached
            _end_name(ctx, view, ino, dentry, death)
    if len(rows) == limit:
        return limit, False
    destroy(ctx, view, ino, inode)
    return len(rows), True


def _end_plain(ctx: Context, rows: list[Row], death: int) -> list[Row]:
    """End the files of the live tree that have a name alone and no attributes; return other names.

    What `_end_name` does, for most of what is ever reaped, while no pin and no lock is there.
    """
    txn, counters = ctx.txn, ctx.counters
    if txn.pins(ROOT_VIEW) or counters.locks:
        return rows
    others: list[Row] = []
    names, inodes, size_bytes = [], [], 0
    get, pack = txn.get, keys.pack
    for row in rows:
        dentry = decode_dentry(row[1][BORN_BYTES:])
        if dentry.file_type == FileType.DIRECTORY:
            others.append(row)
            continue
        key = LIVE + pack(dentry.inode)
        value = get(_INODE, key)
        assert value is not None, f"inode {dentry.inode} is named and does not exist"
        inode = decode_inode(value[BORN_BYTES:])
        if inode.nlink > 1 or inode.xattr_bytes:
            others.append(row)
            continue
        if inode.body:
            drop_body(ctx, ROOT_VIEW, dentry.inode, inode, death=max(death, born_of(value)))
        names.append(row[0])
        inodes.append(key)
        size_bytes += inode.size
    txn.delete_unpinned(Family.DENTRY, names)
    txn.delete_unpinned(_INODE, inodes)
    counters.files -= len(inodes)
    counters.size_bytes -= size_bytes
    assert counters.files >= 0, "fewer than no inodes"
    assert counters.size_bytes >= 0, "fewer than no bytes"
    return others


def _end_name(ctx: Context, view: int, directory: int, dentry: Dentry, death: int) -> None:
    """Do what follows when a name of a detached directory has gone.

    A file that had another name was reachable until that one went, maybe long after this tree
    was detached; the command that took it wrote the inode. So the file dies no earlier than then.
    """
    ino = dentry.inode
    value = ctx.txn.get(Family.INODE, keys.inode(view, ino))
    assert value is not None, f"inode {view}:{ino} is named and does not exist"
    inode = decode_inode(body_of(value))
    if is_directory(inode):
        detach_tree(ctx, view, ino, inode, death=death)
    else:
        drop_name(ctx, view, ino, inode, directory, death=max(death, born_of(value)))


# ---------------------------------------------------------------- history that only a pin held


def _unpin(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Reclaim what the pin at `a` alone held, by the reclaim index.

    With live neighbours prev < p < next: of each bucket q in [p, next) the births in (prev, p].
    """
    view, version = job.view, job.a
    pins = ctx.txn.pins(view)
    if version in pins:
        return 0, True
    before = max((p for p in pins if p < version), default=-1)
    after = min((p for p in pins if p > version), default=_END)
    done = 0
    bucket = version
    while True:
        start = keys.pack2(view, bucket) + keys.pack(before + 1)
        first = next(ctx.txn.scan(Family.RECLAIM, start, keys.pack2(view, after)), None)
        if first is None:
            break
        found, _, _, _, _ = keys.reclaim_parts(first[0])
        if found != bucket:
            bucket = found
            continue
        done += _reclaim_bucket(ctx, start, keys.pack2(view, bucket), version, limit - done)
        if done == limit:
            return done, False
        bucket += 1
    if before < 0:
        done += _forget_touched(ctx, view, after, limit - done)
        if done == limit:
            return done, False
    return done, True


def _reclaim_bucket(ctx: Context, start: bytes, bucket: bytes, newest: int, limit: int) -> int:
    end = bucket + keys.pack(newest + 1)
    rows = ctx.txn.scan(Family.RECLAIM, start, end)
    keys_found = [key for (key, _), _ in zip(rows, range(limit), strict=False)]
    for key in keys_found:
        _, _, family, record, death = keys.reclaim_parts(key)
        ctx.txn.delete_row(Family.RECLAIM, key)
        ctx.txn.delete_row(Family.HISTORY, keys.history(family, record, death))
        ctx.counters.history -= 1
    return len(keys_found)


def _forget_touched(ctx: Context, view: int, after: int, limit: int) -> int:
    """Without an older pin nobody can ask for the changes before the next one."""
    rows = ctx.txn.scan(Family.TOUCHED, keys.pack(view), keys.pack2(view, after))
    found = [key for (key, _), _ in zip(rows, range(limit), strict=False)]
    for key in found:
        ctx.txn.delete_row(Family.TOUCHED, key)
    return len(found)


# ---------------------------------------------------------------- forgotten sessions


def _trim(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Remove the rows that a forgotten session has left."""
    prefix = keys.pack(job.a)
    rows = ctx.txn.scan(Family.SESSION, prefix, keys.after_prefix(prefix))
    found = [key for (key, _), _ in zip(rows, range(limit), strict=False)]
    for key in found:
        ctx.txn.delete_row(Family.SESSION, key)
    return len(found), len(found) < limit
