"""The commands and reads of locks, over the tables of `nokv_model.locks`."""

from __future__ import annotations

from nokv.errors import (
    InvalidArgument,
    LockDeadlock,
    LockHeld,
    LockLimit,
    ResultTooLarge,
    SessionExpired,
    Stale,
    UnknownSession,
)
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
from nokv_model import access
from nokv_model.access import R, Resolver, W
from nokv_model.locks import (
    U64_MAX,
    Request,
    Table,
    check_range,
    first_conflict,
    waits_for_itself,
)
from nokv_model.state import State
from nokv_model.step import Step
from nokv_model.tree import Inode


def _request(op: SetLock | TestLock, session: int, ticket: int) -> Request:
    end = LOCK_OFFSET_END if op.length == TO_THE_END else op.start + op.length
    pid = getattr(op, "pid", 0)
    return Request(ticket, (session, op.owner), op.start, end, op.write, pid)


def _require_lockable(caller: Caller, inode: Inode, kind: int, *, write: bool) -> None:
    if inode.is_symlink:
        message = "a symbolic link can't be locked"
        raise InvalidArgument(message)
    if kind == LockKind.RECORD:
        access.require(caller, inode, W if write else R)
    elif not access.allowed(caller, inode, W):
        access.require(caller, inode, R)


# ---------------------------------------------------------------- commands


def set_lock(step: Step, op: SetLock) -> LockSet:
    """Grant a lock, or put the request into the queue."""
    inode = step.resolver.resolve(op.at)
    _require_lockable(step.caller, inode, op.kind, write=op.write)
    place = (*inode.key, op.kind)
    tables = step.state.locks
    table = tables.setdefault(place, Table())
    request = _request(op, step.session_number, step.version)
    if sum(one.count(step.session_number) for one in tables.values()) >= LOCKS_PER_SESSION_MAX:
        message = "the session has too many locks"
        raise LockLimit(message)
    if not table.blockers(request):
        before = _ranges(table)
        table.done.append(request)
        _require_room(table, before)
        table.grant()
        return LockSet(*inode.key, granted=True)
    if not op.wait:
        message = "somebody else's lock stands in the way"
        raise LockHeld(message)
    waits = len(table.queue) + 1
    if waits > LOCK_WAITS_MAX or _ranges(table) * waits > LOCK_WORK_MAX:
        message = "too many requests wait"
        raise LockLimit(message)
    if op.kind == LockKind.FLOCK:
        table.release(request.owner)
    elif waits_for_itself(tables, place, request):
        message = "the owner would wait for itself"
        raise LockDeadlock(message)
    table.queue.append(request)
    table.grant()
    waiting = request in table.queue
    return LockSet(*inode.key, granted=not waiting, ticket=step.version if waiting else 0)


def _ranges(table: Table) -> int:
    return table.count() - len(table.queue)


def _require_room(table: Table, before: int) -> None:
    ranges, waits = _ranges(table), len(table.queue)
    if ranges > before and (ranges > LOCK_RANGES_MAX or ranges * waits > LOCK_WORK_MAX):
        message = "too many ranges of one inode"
        raise LockLimit(message)


def unlock(step: Step, op: Unlock) -> Done:
    """Let a range go."""
    table = step.state.locks.get((op.view, op.inode, op.kind))
    if table is not None:
        before = _ranges(table)
        end = LOCK_OFFSET_END if op.length == TO_THE_END else op.start + op.length
        table.release((step.session_number, op.owner), op.start, end)
        _require_room(table, before)
        table.grant()
    return Done()


def cancel_lock(step: Step, op: CancelLock) -> LockSet:
    """Give a place in the queue up, unless the lock came first."""
    table = step.state.locks.get((op.view, op.inode, op.kind), Table())
    for one in table.queue:
        if one.ticket == op.ticket and one.owner[0] == step.session_number:
            table.queue.remove(one)
            table.grant()
            return LockSet(op.view, op.inode, granted=False)
    there = _reachable(step.state, step.session_number, op.view, op.inode)
    return LockSet(op.view, op.inode, granted=there)


def _reachable(state: State, session: int, view: int, inode: int) -> bool:
    try:
        Resolver(state.forest, Caller(), session).resolve(At(view, inode))
    except Stale:
        return False
    return True


# ---------------------------------------------------------------- reads


def test_lock(state: State, caller: Caller, read: TestLock) -> LockConflict:
    """F_GETLK."""
    check_range(read)
    inode = Resolver(state.forest, caller, read.session).resolve(read.at)
    _require_lockable(caller, inode, LockKind.FLOCK, write=False)
    table = state.locks.get((*inode.key, read.kind), Table())
    found = first_conflict(table, _request(read, read.session, 0))
    if found is None:
        return LockConflict(held=False)
    (session, owner), (start, end, write, pid) = found
    length = TO_THE_END if end == LOCK_OFFSET_END else end - start
    return LockConflict(True, write, start, length, session, owner, pid)  # noqa: FBT003


def wait_locks(state: State, read: WaitLocks) -> LocksWaited:
    """Say which waits are over."""
    session = state.sessions.get(read.session)
    if session is None:
        message = f"no session {read.session}"
        raise UnknownSession(message)
    if session.died:
        message = f"session {read.session} has ended"
        raise SessionExpired(message)
    if len(read.waits) > LOCKS_PER_SESSION_MAX:
        message = "too many waits"
        raise ResultTooLarge(message)
    over = []
    for wait in read.waits:
        if not all(0 <= number <= U64_MAX for number in (wait.view, wait.inode, wait.owner)):
            message = "a number out of range"
            raise InvalidArgument(message)
        queued = any(
            one.ticket == wait.ticket and one.owner == (read.session, wait.owner)
            for table in state.locks.values()
            for one in table.queue
        )
        there = _reachable(state, read.session, wait.view, wait.inode)
        if not there or not queued:
            over.append(LockOutcome(wait.ticket, there))
    return LocksWaited(tuple(over))
