"""Internal commands: the leader's and the worker's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.errors import AlreadyExists, InvalidArgument, NotFound, NotPermitted
from nokv.state import keys
from nokv.state.arguments import ID_MAX, PERMISSIONS
from nokv.state.collect import collected
from nokv.state.context import DIRECTORY, JOB_TRIM, Context
from nokv.state.effects import CheckpointReached
from nokv.state.families import Family
from nokv.state.ops_session import load_session
from nokv.state.reap import reap
from nokv.state.records import Inode, View
from nokv.types.commands import (
    Checkpoint,
    Collected,
    InitVolume,
    RaiseFormat,
    Reap,
    Swept,
    TrimEvents,
)
from nokv.types.formats import STATE_FORMAT
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, INLINE_BYTES_CAP
from nokv.types.results import Checkpointed, Done, Reaped
from nokv.types.values import ROOT_INODE, ROOT_VIEW

TOMBSTONE_NS = 24 * 3600 * 1_000_000_000
"""Cluster time for which a session's tombstone answers retries."""

STEP_MAX = 65_536
"""Records that one internal command may remove."""


def check_init(op: InitVolume) -> None:
    """Raise InvalidArgument for a volume record that nobody could use."""
    volume = op.volume
    if len(volume.volume) != 32 or set(volume.volume) - set("0123456789abcdef"):
        message = "a volume id is 32 lower-case hex digits"
        raise InvalidArgument(message)
    if not 0 <= volume.inline_max <= INLINE_BYTES_CAP:
        message = f"inline_max {volume.inline_max}; 0 to {INLINE_BYTES_CAP}"
        raise InvalidArgument(message)
    if volume.chunk_bytes != CHUNK_BYTES or volume.block_bytes != BLOCK_BYTES:
        message = f"this build has chunks of {CHUNK_BYTES} and blocks of {BLOCK_BYTES} bytes"
        raise InvalidArgument(message)
    if not 1 <= op.owner_epoch < 2**32:
        message = "an owner epoch has 32 bits and is not zero"
        raise InvalidArgument(message)
    if not 0 <= op.mode <= PERMISSIONS:
        message = f"mode {op.mode:o}"
        raise InvalidArgument(message)
    if not (0 <= op.uid <= ID_MAX and 0 <= op.gid <= ID_MAX):
        message = f"an owner {op.uid}:{op.gid}"
        raise InvalidArgument(message)


def init_volume(ctx: Context, op: InitVolume) -> Done:
    """Make the volume, view 0 and the root directory; once."""
    if ctx.txn.get(Family.META, keys.VOLUME) is not None:
        message = "the volume is initialised"
        raise AlreadyExists(message)
    now = ctx.wall_ns
    root = Inode(DIRECTORY | op.mode, op.uid, op.gid, 2, 0, now, now, now, 0)
    ctx.txn.set_row(Family.META, keys.VOLUME, ctx.txn.encode(op.volume))
    view = View(ROOT_INODE, ctx.version)
    ctx.txn.set_row(Family.VIEW, keys.pack(ROOT_VIEW), ctx.txn.encode(view))
    ctx.store_inode(ROOT_VIEW, ROOT_INODE, root)
    ctx.counters.files += 1
    ctx.counters.owner_epoch = op.owner_epoch
    return Done()


def swept(ctx: Context, op: Swept) -> Done:
    """Forget a session whose uploads a whole listing, begun late enough, has shown to be gone."""
    session = load_session(ctx.txn, op.target)
    if session is None:
        message = f"no session {op.target:016x}"
        raise NotFound(message)
    if not session.died:
        message = f"session {op.target:016x} is alive"
        raise NotPermitted(message)
    old = ctx.cluster_ns - session.died_cluster_ns >= TOMBSTONE_NS
    graced_ns = session.died_cluster_ns + max(0, op.grace_ns)
    if not old or not graced_ns <= op.begun_cluster_ns <= ctx.cluster_ns:
        return Done()
    ctx.txn.delete_row(Family.SESSION, keys.session(op.target))
    ctx.txn.delete_row(Family.SESSION, keys.nonce(session.nonce))
    ctx.counters.sessions -= 1
    ctx.add_job(JOB_TRIM, ROOT_VIEW, op.target)
    return Done()


def checkpoint(ctx: Context, op: Checkpoint) -> Checkpointed:
    """Ask every replica to commit here and to digest what it committed."""
    ctx.effects.append(CheckpointReached(op.number))
    return Checkpointed(op.number)


def check_step(op: Reap | TrimEvents) -> None:
    """Raise InvalidArgument for an unbounded step."""
    if not 1 <= op.limit <= STEP_MAX:
        message = f"a step of {op.limit} records; 1 to {STEP_MAX}"
        raise InvalidArgument(message)


def trim_events(ctx: Context, op: TrimEvents) -> Reaped:
    """Drop event records with keys below a version; cursors below it are too old from now on."""
    if not 0 <= op.below <= ctx.version:
        message = f"events below {op.below}, which is not yet"
        raise InvalidArgument(message)
    rows = ctx.txn.scan(Family.EVENT, keys.pack(0), keys.pack(op.below))
    removed = 0
    last = 0
    for key, value in rows:
        if removed == op.limit:
            break
        ctx.txn.delete_row(Family.EVENT, key)
        ctx.counters.event_bytes -= len(value)
        last = int.from_bytes(key, "big")
        removed += 1
    assert ctx.counters.event_bytes >= 0, "fewer than no bytes of events"
    ctx.counters.first_event = max(ctx.counters.first_event, last)
    return Reaped(removed, removed == op.limit)


def raise_format(ctx: Context, op: RaiseFormat) -> Done:
    """Raise the state format; never lower it. What follows in the entry is of the new one."""
    assert op.format <= STATE_FORMAT, "the machine refuses an entry with an unknown format"
    if op.format < ctx.counters.format:
        message = f"state format {op.format}; it is {ctx.counters.format} already"
        raise InvalidArgument(message)
    ctx.counters.format = op.format
    return Done()


CHECKS: dict[type, Callable[[Any], None]] = {
    InitVolume: check_init,
    Reap: check_step,
    TrimEvents: check_step,
}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    InitVolume: init_volume,
    Reap: reap,
    Collected: collected,
    Swept: swept,
    Checkpoint: checkpoint,
    TrimEvents: trim_events,
    RaiseFormat: raise_format,
}
