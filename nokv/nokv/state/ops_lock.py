"""Advisory locks: record locks of fcntl(2), flock(2), their queues (docs/namespace.md: Locks)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.errors import (
    InvalidArgument,
    LockDeadlock,
    LockHeld,
    LockLimit,
    NameTooLong,
    ResultTooLarge,
    SessionExpired,
    Stale,
    UnknownSession,
)
from nokv.state import keys
from nokv.state.access import R, W, may, need
from nokv.state.arguments import check_at
from nokv.state.context import Context, is_symlink
from nokv.state.families import Family
from nokv.state.lock_tables import closes_circle, is_waiting, load_table, save_table
from nokv.state.locks import (
    LockTable,
    Settled,
    Wait,
    first_conflict,
    is_free,
    settle,
    with_range,
    without_range,
)
from nokv.state.ops_session import need_session
from nokv.state.pinned import Source
from nokv.state.records import Inode, decode_session
from nokv.state.resolve import resolve
from nokv.types.limits import (
    LOCK_OFFSET_END,
    LOCK_RANGES_MAX,
    LOCK_WAITS_MAX,
    LOCK_WORK_MAX,
    LOCKS_PER_SESSION_MAX,
)
from nokv.types.locks import (
    TO_THE_END,
    CancelLock,
    LockConflict,
    LockKind,
    LockOutcome,
    LockSet,
    LocksWaited,
    SetLock,
    TestLock,
    Unlock,
    WaitLocks,
)
from nokv.types.results import Done
from nokv.types.values import At, Caller

PID_MAX = 2**32 - 1
_U64 = 2**64
_NEWEST = _U64
"""As the ticket of a request without one: it stands behind all that wait."""


# ---------------------------------------------------------------- arguments


def _check_range(op: SetLock | Unlock | TestLock) -> None:
    if op.kind not in (LockKind.RECORD, LockKind.FLOCK):
        message = f"lock kind {op.kind}"
        raise InvalidArgument(message)
    if not 0 <= op.owner < _U64:
        message = f"lock owner {op.owner}"
        raise InvalidArgument(message)
    inside = 0 <= op.start < LOCK_OFFSET_END and 0 <= op.length <= LOCK_OFFSET_END - op.start
    if not inside:
        message = f"a lock of {op.length} bytes at {op.start}"
        raise InvalidArgument(message)
    if op.kind == LockKind.FLOCK and (op.start or op.length != TO_THE_END):
        message = "a flock is of the whole file"
        raise InvalidArgument(message)


def check_set(op: SetLock) -> None:
    """Raise for a bad address, kind, owner, range or process number."""
    check_at(op.at)
    _check_range(op)
    if not 0 <= op.pid <= PID_MAX:
        message = f"process {op.pid}"
        raise InvalidArgument(message)


def check_cancel(op: CancelLock) -> None:
    """Raise InvalidArgument for a kind that is none."""
    if op.kind not in (LockKind.RECORD, LockKind.FLOCK):
        message = f"lock kind {op.kind}"
        raise InvalidArgument(message)


def _end(op: SetLock | Unlock | TestLock) -> int:
    return LOCK_OFFSET_END if op.length == TO_THE_END else op.start + op.length


def _possible(view: int, ino: int) -> bool:
    return 0 <= view < _U64 - 1 and 0 <= ino < _U64


# ---------------------------------------------------------------- commands


def _need_lockable(inode: Inode, caller: Caller, kind: int, *, write: bool) -> None:
    """Raise unless the caller may lock the inode so.

    As with a file that was opened for it: a record lock needs r or w by its mode, a flock one of
    the two.
    """
    if is_symlink(inode):
        message = "a symbolic link can't be locked"
        raise InvalidArgument(message)
    if kind == LockKind.RECORD:
        need(inode, caller, W if write else R)
    elif not may(inode, caller, W):
        need(inode, caller, R)


def set_lock(ctx: Context, op: SetLock) -> LockSet:
    """Grant a lock, or queue the request for it."""
    session = need_session(ctx)
    found = resolve(ctx.txn, ctx.caller, ctx.session_id, op.at)
    _need_lockable(found.inode, ctx.caller, op.kind, write=op.write)
    place = (found.view, found.ino, op.kind)
    before = load_table(ctx.txn, *place)
    request = Wait(ctx.version, op.start, _end(op), ctx.session_id, op.owner, op.write, pid=op.pid)
    if session.locks >= LOCKS_PER_SESSION_MAX:
        message = f"the session has {session.locks} locks and waits"
        raise LockLimit(message)
    if is_free(before, request):
        holds = with_range(before.holds, request)
        _need_room(len(holds), before)
        save_table(ctx, place, before, settle(LockTable(holds, before.waits)))
        return LockSet(found.view, found.ino, granted=True)
    if not op.wait:
        message = "another owner holds a lock there, or waits for one"
        raise LockHeld(message)
    after = _queued(ctx, before, request, op.kind)
    save_table(ctx, place, before, after)
    waiting = request not in after.granted
    ticket = request.ticket if waiting else 0
    return LockSet(found.view, found.ino, granted=not waiting, ticket=ticket)


def _queued(ctx: Context, before: LockTable, request: Wait, kind: int) -> Settled:
    """Return the table with the request in its queue. Raises LockLimit, LockDeadlock."""
    waits, holds = (*before.waits, request), before.holds
    if len(waits) > LOCK_WAITS_MAX:
        message = f"{len(before.waits)} requests wait for locks of this inode"
        raise LockLimit(message)
    _need_work(len(holds), len(waits))
    if kind == LockKind.FLOCK:
        # flock(2) lets what is converted go first, or two readers would wait for each other.
        owner = (request.session, request.owner)
        holds = without_range(holds, owner, request.start, request.end)
    elif closes_circle(ctx.txn, before, request):
        message = "its owner would wait for itself, over others"
        raise LockDeadlock(message)
    after = LockTable(holds, waits)
    return Settled(after, ()) if holds == before.holds else settle(after)


def _need_room(holds: int, before: LockTable) -> None:
    """Raise LockLimit for more ranges than an inode may have, where they grow."""
    if holds <= len(before.holds):
        return
    if holds > LOCK_RANGES_MAX:
        message = f"{holds} ranges of this inode would be locked; the limit is {LOCK_RANGES_MAX}"
        raise LockLimit(message)
    _need_work(holds, len(before.waits))


def _need_work(ranges: int, waits: int) -> None:
    if ranges * waits > LOCK_WORK_MAX:
        message = f"{waits} requests wait for locks of this inode beside {ranges} locked ranges"
        raise LockLimit(message)


def unlock(ctx: Context, op: Unlock) -> Done:
    """Let a range go, and grant what waited for it."""
    need_session(ctx)
    if not _possible(op.view, op.inode):
        return Done()
    place = (op.view, op.inode, op.kind)
    before = load_table(ctx.txn, *place)
    holds = without_range(before.holds, (ctx.session_id, op.owner), op.start, _end(op))
    _need_room(len(holds), before)
    save_table(ctx, place, before, settle(LockTable(holds, before.waits)))
    return Done()


def cancel_lock(ctx: Context, op: CancelLock) -> LockSet:
    """Give a place in the queue up; a ticket that is in none was granted, if the inode is there."""
    need_session(ctx)
    if not _possible(op.view, op.inode):
        return LockSet(op.view, op.inode, granted=False)
    place = (op.view, op.inode, op.kind)
    before = load_table(ctx.txn, *place)
    left = tuple(
        wait for wait in before.waits if wait.ticket != op.ticket or wait.session != ctx.session_id
    )
    if len(left) == len(before.waits):
        granted = _reachable(ctx.txn, ctx.session_id, op.view, op.inode)
        return LockSet(op.view, op.inode, granted=granted)
    save_table(ctx, place, before, settle(LockTable(before.holds, left)))
    return LockSet(op.view, op.inode, granted=False)


def _reachable(source: Source, session_id: int, view: int, ino: int) -> bool:
    """Whether an inode is there: locks in a tree that was removed end when it is reaped."""
    try:
        resolve(source, Caller(), session_id, At(view, ino))
    except Stale:
        return False
    except NameTooLong:
        return True
    return True


# ---------------------------------------------------------------- reads


def test_lock(source: Source, caller: Caller, request: TestLock) -> LockConflict:
    """Answer `TestLock`."""
    _check_range(request)
    found = resolve(source, caller, request.session, request.at)
    _need_lockable(found.inode, caller, LockKind.FLOCK, write=False)
    table = load_table(source, found.view, found.ino, request.kind)
    wanted = Wait(
        _NEWEST, request.start, _end(request), request.session, request.owner, request.write
    )
    hold = first_conflict(table, wanted)
    if hold is None:
        return LockConflict(held=False)
    length = TO_THE_END if hold.end == LOCK_OFFSET_END else hold.end - hold.start
    return LockConflict(
        held=True,
        write=hold.write,
        start=hold.start,
        length=length,
        session=hold.session,
        owner=hold.owner,
        pid=hold.pid,
    )


def wait_locks(source: Source, _caller: Caller, request: WaitLocks) -> LocksWaited:
    """Answer `WaitLocks` for what is so now; to wait is the node's.

    Raises UnknownSession, SessionExpired, ResultTooLarge.
    """
    in_range = 0 < request.session < _U64
    row = source.get(Family.SESSION, keys.session(request.session)) if in_range else None
    if row is None:
        message = f"no session {request.session:x}"
        raise UnknownSession(message)
    if decode_session(row).died:
        message = f"session {request.session:x} has ended"
        raise SessionExpired(message)
    if len(request.waits) > LOCKS_PER_SESSION_MAX:
        message = f"{len(request.waits)} waits; the limit is {LOCKS_PER_SESSION_MAX}"
        raise ResultTooLarge(message)
    over: list[LockOutcome] = []
    for wait in request.waits:
        numbers = (wait.view, wait.inode, wait.owner, wait.ticket)
        if not all(0 <= number < _U64 for number in numbers):
            message = f"a wait with the numbers {numbers}"
            raise InvalidArgument(message)
        if not _reachable(source, request.session, wait.view, wait.inode):
            over.append(LockOutcome(wait.ticket, granted=False))
        elif not is_waiting(source, (request.session, wait.owner), wait.ticket):
            over.append(LockOutcome(wait.ticket, granted=True))
    return LocksWaited(tuple(over))


CHECKS: dict[type, Callable[[Any], None]] = {
    SetLock: check_set,
    Unlock: _check_range,
    CancelLock: check_cancel,
}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    SetLock: set_lock,
    Unlock: unlock,
    CancelLock: cancel_lock,
}
READS_IN_TREE: dict[type, Callable[[Source, Caller, Any], Any]] = {TestLock: test_lock}
READS_IN_SHARD: dict[type, Callable[[Source, Caller, Any], Any]] = {WaitLocks: wait_locks}
