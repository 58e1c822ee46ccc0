"""Background work in bounded steps, each one command of the log (design section 3: reaping)."""

from __future__ import annotations

from collections.abc import Iterator

from nokv.state import keys
from nokv.state.context import (
    JOB_ORPHAN,
    JOB_TRIM,
    JOB_UNPIN,
    Context,
    is_directory,
    load_inode,
    need_inode,
)
from nokv.state.detach import detach_tree
from nokv.state.families import Family
from nokv.state.records import Job, body_of, decode_dentry, decode_job
from nokv.state.tree import destroy, drop_name
from nokv.types.commands import Reap
from nokv.types.results import Reaped
from nokv.types.values import FileType

_END = 2**64 - 1


def reap(ctx: Context, op: Reap) -> Reaped:
    """Do up to `limit` records of the oldest jobs; a job's row goes when it is finished."""
    left = op.limit
    while left > 0:
        row = next(iter(_jobs(ctx)), None)
        if row is None:
            break
        key, job = row
        done, finished = _step(ctx, job, left)
        assert finished or done == left, "an unfinished step used less than it was given"
        if finished:
            ctx.txn.delete_row(Family.META, key)
            ctx.counters.jobs -= 1
            done += 1
        left -= done
    return Reaped(op.limit - max(left, 0), ctx.counters.jobs > 0)


def _jobs(ctx: Context) -> Iterator[tuple[bytes, Job]]:
    end = keys.after_prefix(keys.JOB_PREFIX)
    for key, value in ctx.txn.scan(Family.META, keys.JOB_PREFIX, end):
        yield key, decode_job(value)


def _step(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Return (records done, finished)."""
    if job.kind == JOB_ORPHAN:
        return _orphan(ctx, job, limit)
    if job.kind == JOB_UNPIN:
        return _unpin(ctx, job, limit)
    assert job.kind == JOB_TRIM, f"job kind {job.kind}"
    return _trim(ctx, job, limit)


# ---------------------------------------------------------------- detached trees


def _orphan(ctx: Context, job: Job, limit: int) -> tuple[int, bool]:
    """Take one detached directory apart; its subdirectories become jobs of their own."""
    view, ino, death = job.view, job.a, job.b
    inode = load_inode(ctx.txn, view, ino)
    assert inode is not None, f"detached inode {view}:{ino} is gone before its job"
    assert inode.parent == 0, f"detached inode {view}:{ino} has a parent"
    done = 0
    if is_directory(inode):
        prefix = keys.inode(view, ino)
        rows = ctx.txn.scan(Family.DENTRY, prefix, keys.after_prefix(prefix))
        for key, value in [row for _, row in zip(range(limit), rows, strict=False)]:
            _take_name(ctx, view, ino, key, value, death)
            done += 1
        if done == limit:
            return done, False
        ctx.txn.delete(Family.USAGE, prefix, death=death)
    destroy(ctx, view, ino, inode, death=death)
    return done, True


def _take_name(
    ctx: Context, view: int, directory: int, key: bytes, value: bytes, death: int
) -> None:
    dentry = decode_dentry(body_of(value))
    inode = need_inode(ctx.txn, view, dentry.inode)
    ctx.txn.delete(Family.DENTRY, key, death=death)
    if dentry.file_type == FileType.DIRECTORY:
        detach_tree(ctx, view, dentry.inode, inode, death=death)
    else:
        drop_name(ctx, view, dentry.inode, inode, directory, death=death)


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
