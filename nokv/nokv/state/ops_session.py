"""Sessions: opening, expiry, uploads, marks and pins ("sessions fence writers")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from nokv.errors import (
    InvalidArgument,
    NotFound,
    NotPermitted,
    ResultTooLarge,
    UnknownSession,
    UploadRefused,
    WindowFull,
)
from nokv.state import keys
from nokv.state.context import JOB_UNPIN, Context, is_alive, need_inode, root_of
from nokv.state.detach import detach_tree
from nokv.state.effects import SessionDead, SessionLive
from nokv.state.families import Family
from nokv.state.lock_tables import end_session_locks
from nokv.state.ops_backup import abandon_of
from nokv.state.pinned import Source
from nokv.state.records import Pin, Session, decode_pin, decode_session
from nokv.state.txn import Txn
from nokv.types.commands import (
    ExpireSession,
    LeaseUploads,
    OpenSession,
    PinView,
    SessionMarks,
    UnpinView,
)
from nokv.types.limits import (
    LEASES_MAX,
    PINS_MAX,
    PINS_PER_SESSION_MAX,
    SESSION_TTL_NS_MAX,
    SESSION_TTL_NS_MIN,
    UPLOAD_WINDOW,
)
from nokv.types.results import Done, Leased, Pinned, SessionOpened
from nokv.types.values import Marks

NONCE_BYTES = 16
LEASE_COUNT_MAX = 4096


def load_session(txn: Txn, session_id: int) -> Session | None:
    """Return a session or tombstone, or None, for any number."""
    if not 0 < session_id < 2**64:
        return None
    row = txn.get(Family.SESSION, keys.session(session_id))
    return None if row is None else decode_session(row)


def save_session(ctx: Context, session_id: int, session: Session) -> None:
    """Write a session; the running command's own is written with its result."""
    if session_id == ctx.session_id:
        ctx.session = session
    else:
        ctx.txn.set_row(Family.SESSION, keys.session(session_id), ctx.txn.encode(session))


# ---------------------------------------------------------------- opening and ending


def check_open(op: OpenSession) -> None:
    """Raise InvalidArgument for a malformed opening."""
    if len(op.nonce) != NONCE_BYTES:
        message = f"a nonce of {len(op.nonce)} bytes; it has {NONCE_BYTES}"
        raise InvalidArgument(message)
    if not SESSION_TTL_NS_MIN <= op.ttl_ns <= SESSION_TTL_NS_MAX:
        message = f"a time to live of {op.ttl_ns} ns"
        raise InvalidArgument(message, hint="between a second and an hour")


def open_session(ctx: Context, op: OpenSession) -> SessionOpened:
    """Open a session, or answer again for the nonce that opened one."""
    row = ctx.txn.get(Family.SESSION, keys.nonce(op.nonce))
    if row is not None:
        session_id = int.from_bytes(row, "big")
        known = load_session(ctx.txn, session_id)
        assert known is not None, "a nonce without its session"
        if not known.died:
            ctx.effects.append(SessionLive(session_id, known.ttl_ns))
        return SessionOpened(session_id, known.ttl_ns, known.opened)
    counters = ctx.counters
    assert counters.next_session < 2**32, "session numbers of this owner epoch are used up"
    session_id = counters.owner_epoch << 32 | counters.next_session
    counters.next_session += 1
    counters.sessions += 1
    session = Session(op.nonce, op.ttl_ns, ctx.version, floor=ctx.version)
    ctx.txn.set_row(Family.SESSION, keys.session(session_id), ctx.txn.encode(session))
    ctx.txn.set_row(Family.SESSION, keys.nonce(op.nonce), keys.pack(session_id))
    ctx.txn.set_row(Family.META, keys.live(session_id), b"")
    ctx.effects.append(SessionLive(session_id, op.ttl_ns))
    return SessionOpened(session_id, op.ttl_ns, ctx.version)


def expire_session(ctx: Context, op: ExpireSession) -> Done:
    """End a session: its uploads can't be published, its pins, leases, stages and locks end."""
    if ctx.session_id and op.target != ctx.session_id:
        message = "a session ends itself only"
        raise NotPermitted(message)
    own = op.target == ctx.session_id
    session = ctx.session if own else load_session(ctx.txn, op.target)
    if session is None:
        message = f"no session {op.target:016x}"
        raise NotFound(message)
    if session.died:
        return Done()
    for view, ino in session.stages:
        if is_alive(ctx.txn, view):  # the others went with their view
            detach_tree(ctx, view, ino, need_inode(ctx.txn, view, ino))
    prefix = keys.session_pin(op.target)
    for key, _ in list(ctx.txn.scan(Family.META, prefix, keys.after_prefix(prefix))):
        _remove_pin(ctx, *keys.pin_parts(key[len(prefix) :]))
    abandon_of(ctx, op.target)
    end_session_locks(ctx, op.target)
    ended = msgspec.structs.replace(
        session,
        died=ctx.version,
        died_cluster_ns=ctx.cluster_ns,
        leases=(),
        stages=(),
        locks=0,
        pins=0,
    )
    save_session(ctx, op.target, ended)
    ctx.txn.delete_row(Family.META, keys.live(op.target))
    ctx.effects.append(SessionDead(op.target))
    return Done()


# ---------------------------------------------------------------- uploads


def check_lease(op: LeaseUploads) -> None:
    """Raise InvalidArgument for a count outside its bounds."""
    if not 1 <= op.count <= LEASE_COUNT_MAX:
        message = f"{op.count} uploads; 1 to {LEASE_COUNT_MAX} are leased at a time"
        raise InvalidArgument(message)


def lease_uploads(ctx: Context, op: LeaseUploads) -> Leased:
    """Lease the next numbers to the session."""
    session = ctx.session
    assert session is not None
    first = session.next_upload
    if first + op.count - session.watermark > UPLOAD_WINDOW:
        message = f"uploads from {session.watermark} to {first + op.count} in flight"
        raise WindowFull(message, hint="finish uploads and send the marks")
    ctx.session = msgspec.structs.replace(session, next_upload=first + op.count)
    return Leased(first, op.count)


def consumed_ranges(source: Source, session_id: int) -> list[tuple[int, int]]:
    """Return the [first, last] ranges of a session's published uploads, ascending."""
    return list(consumed_above(source, session_id, 0))


def consumed_above(source: Source, session_id: int, above: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges [first, last] of a session's published uploads beyond `above`, ascending.

    One that reaches across is cut: it may have grown since the page that ended at `above`.
    """
    if above >= 2**64 - 1:
        return
    first, end = keys.consumed(session_id, above + 1), keys.consumed(session_id, 2**64 - 1)
    start = keys.consumed(session_id, 0)
    for _, value in source.scan(Family.SESSION, start, first, reverse=True):
        last = int.from_bytes(value, "big")
        if last > above:
            yield above + 1, last
        break
    for key, value in source.scan(Family.SESSION, first, end):
        yield int.from_bytes(key[-8:], "big"), int.from_bytes(value, "big")


def _range_at(ctx: Context, upload: int) -> tuple[int, int] | None:
    """Return the consumed range that begins at or below `upload`, nearest to it."""
    newest = ctx.newest_range
    if newest is not None and newest[1] == upload - 1:
        return newest  # a range that held `upload` too would have been merged with it
    start = keys.consumed(ctx.session_id, 0)
    end = keys.consumed(ctx.session_id, upload + 1)
    for key, value in ctx.txn.scan(Family.SESSION, start, end, reverse=True):
        return int.from_bytes(key[-8:], "big"), int.from_bytes(value, "big")
    return None


def check_upload(ctx: Context, upload: int) -> None:
    """Raise UploadRefused unless this session may publish the upload now."""
    session = ctx.session
    assert session is not None
    if not 0 < upload < session.next_upload:
        message = f"upload {upload} was not leased"
        raise UploadRefused(message)
    below = _range_at(ctx, upload)
    if below is not None and below[1] >= upload:
        message = f"upload {upload} is published already"
        raise UploadRefused(message)
    if upload < session.watermark:
        message = f"upload {upload} was abandoned: the watermark is {session.watermark}"
        raise UploadRefused(message)


def consume_upload(ctx: Context, upload: int) -> None:
    """Note that the upload is published; neighbouring ranges become one row."""
    first = last = upload
    below = _range_at(ctx, upload)
    if below is not None:
        assert below[1] < upload, "an upload is published once"
        if below[1] == upload - 1:
            first = below[0]
    above = keys.consumed(ctx.session_id, upload + 1)
    value = ctx.txn.get(Family.SESSION, above)
    if value is not None:
        last = int.from_bytes(value, "big")
        ctx.txn.delete_row(Family.SESSION, above)
    ctx.txn.set_row(Family.SESSION, keys.consumed(ctx.session_id, first), keys.pack(last))
    ctx.newest_range = (first, last)


# ---------------------------------------------------------------- marks


def session_marks(ctx: Context, op: SessionMarks) -> Done:
    """Apply the frames that are newer than the last applied ones; leases before floors."""
    for frame in op.frames:
        session = load_session(ctx.txn, frame.session)
        if session is None or session.died or frame.number <= session.number:
            continue
        save_session(ctx, frame.session, _marked(ctx, session, frame))
    return Done()


def _marked(ctx: Context, session: Session, frame: Marks) -> Session:
    held = set(session.leases)
    leases = tuple(
        lease
        for lease in frame.leases[:LEASES_MAX]
        if lease in held or (session.floor <= lease.version <= ctx.version)
    )
    watermark = max(session.watermark, min(frame.watermark, session.next_upload))
    rose = watermark > session.watermark
    return msgspec.structs.replace(
        session,
        number=frame.number,
        floor=max(session.floor, min(frame.floor, ctx.version)),
        watermark=watermark,
        leases=leases,
        abandoned_cluster_ns=ctx.cluster_ns if rose else session.abandoned_cluster_ns,
    )


# ---------------------------------------------------------------- pins


def pin_view(ctx: Context, op: PinView) -> Pinned:
    """Hold the view as it was before this command."""
    root_of(ctx.txn, op.view)
    if ctx.txn.pin_count(op.view) >= PINS_MAX:
        message = f"view {op.view} has {PINS_MAX} pins"
        raise ResultTooLarge(message, hint="let some of them go")
    session = need_session(ctx)
    if session.pins >= PINS_PER_SESSION_MAX:
        message = f"the session has {PINS_PER_SESSION_MAX} pins"
        raise ResultTooLarge(message, hint="let some of them go")
    ctx.session = msgspec.structs.replace(session, pins=session.pins + 1)
    version = ctx.version - 1
    ctx.txn.put_pin(op.view, version, ctx.version, Pin(ctx.session_id))
    return Pinned(op.view, version, ctx.version)


def unpin_view(ctx: Context, op: UnpinView) -> Done:
    """Let a pin of this session go."""
    possible = all(0 <= number < 2**64 for number in (op.view, op.version, op.pin))
    key = keys.pin(op.view, op.version, op.pin) if possible else b""
    row = ctx.txn.get(Family.PIN, key) if key else None
    if row is None:
        message = f"no pin {op.pin} of view {op.view} at version {op.version}"
        raise NotFound(message)
    if decode_pin(row).session != ctx.session_id:
        message = f"pin {op.pin} is another session's"
        raise NotPermitted(message)
    _remove_pin(ctx, op.view, op.version, op.pin)
    session = need_session(ctx)
    ctx.session = msgspec.structs.replace(session, pins=session.pins - 1)
    return Done()


def _remove_pin(ctx: Context, view: int, version: int, pin_id: int) -> None:
    ctx.txn.delete_pin(view, version, pin_id)
    ctx.add_job(JOB_UNPIN, view, version)


def need_session(ctx: Context) -> Session:
    """Return the command's session, which an operation without one can't use."""
    if ctx.session is None:
        message = "this command needs a session"
        raise UnknownSession(message)
    return ctx.session


CHECKS: dict[type, Callable[[Any], None]] = {
    OpenSession: check_open,
    LeaseUploads: check_lease,
}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    OpenSession: open_session,
    ExpireSession: expire_session,
    LeaseUploads: lease_uploads,
    SessionMarks: session_marks,
    PinView: pin_view,
    UnpinView: unpin_view,
}
