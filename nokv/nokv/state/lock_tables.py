"""Where lock tables are stored, who has what in which, and how they end with inode and session."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from msgspec.structs import replace

from nokv.state import keys
from nokv.state.context import Context
from nokv.state.effects import LockWaitOver
from nokv.state.families import Family
from nokv.state.locks import (
    EMPTY,
    LockTable,
    Owner,
    Settled,
    Wait,
    blockers,
    decode_table,
    owner_of,
    settle,
    waits_for,
)
from nokv.state.pinned import Source
from nokv.state.records import decode_session
from nokv.types.locks import LockKind

DEADLOCK_WAITS_MAX = 1024
"""Requests that one search for a circle looks at; a longer chain is not followed."""

_LOCK = Family.LOCK
_KINDS = (LockKind.RECORD, LockKind.FLOCK)


def load_table(source: Source, view: int, ino: int, kind: int) -> LockTable:
    """Return the locks of an inode; none are an empty table."""
    row = source.get(_LOCK, keys.lock(view, ino, kind))
    return EMPTY if row is None else decode_table(row)


def save_table(
    ctx: Context,
    place: tuple[int, int, int],
    before: LockTable,
    settled: Settled,
) -> None:
    """Write a table (view, inode, kind), its index, the sessions' counts, and who waits no more."""
    after = settled.table
    if after == before:
        return
    txn, key = ctx.txn, keys.lock(*place)
    if after == EMPTY:
        txn.delete_row(_LOCK, key)
        ctx.counters.locks -= 1
        assert ctx.counters.locks >= 0, "fewer than no lock tables"
    else:
        txn.set_row(_LOCK, key, txn.encode(after))
        ctx.counters.locks += int(before == EMPTY)
    had, has = _counts(before), _counts(after)
    sessions: Counter[int] = Counter()
    for owner in sorted(had.keys() | has.keys()):
        if had[owner] != has[owner]:
            sessions[owner[0]] += has[owner] - had[owner]
        if not has[owner]:
            txn.delete_row(_LOCK, keys.lock_of(*owner, key))
        elif not had[owner]:
            txn.set_row(_LOCK, keys.lock_of(*owner, key), b"")
    for session, more in sorted(sessions.items()):
        if more:
            _count(ctx, session, more)
    queued = {wait.ticket for wait in after.waits}
    granted = {wait.ticket for wait in settled.granted}
    for wait in before.waits:
        if wait.ticket not in queued:
            txn.delete_row(_LOCK, keys.lock_wait(wait.session, wait.owner, wait.ticket))
            ctx.effects.append(LockWaitOver(wait.session, wait.ticket, wait.ticket in granted))
    known = {wait.ticket for wait in before.waits}
    for wait in after.waits:
        if wait.ticket not in known:
            index = keys.lock_wait(wait.session, wait.owner, wait.ticket)
            txn.set_row(_LOCK, index, keys.lock(*place))


def _counts(table: LockTable) -> Counter[Owner]:
    return Counter(map(owner_of, table.holds)) + Counter(map(owner_of, table.waits))


def _count(ctx: Context, session_id: int, more: int) -> None:
    """Add to the number of a session's locks and waits."""
    if session_id == ctx.session_id:
        assert ctx.session is not None, "a command of a session that it does not have"
        ctx.session = replace(ctx.session, locks=ctx.session.locks + more)
        assert ctx.session.locks >= 0, f"session {session_id:x}: fewer than no locks"
        return
    key = keys.session(session_id)
    row = ctx.txn.get(Family.SESSION, key)
    assert row is not None, f"locks of session {session_id:x}, which does not exist"
    session = decode_session(row)
    assert session.locks + more >= 0, f"session {session_id:x}: fewer than no locks"
    after = replace(session, locks=session.locks + more)
    ctx.txn.set_row(Family.SESSION, key, ctx.txn.encode(after))


# ---------------------------------------------------------------- who waits for whom


def _tables_of(source: Source, owner: Owner) -> list[bytes]:
    """Return the keys of the tables of record locks in which an owner holds or waits."""
    prefix = keys.lock_of(*owner)
    rows = source.scan(_LOCK, prefix, keys.after_prefix(prefix))
    found = [key[len(prefix) :] for key, _ in rows]
    return [key for key in found if keys.lock_parts(key)[2] == LockKind.RECORD]


def is_waiting(source: Source, owner: Owner, ticket: int) -> bool:
    """Whether a ticket is in some queue."""
    return source.get(_LOCK, keys.lock_wait(*owner, ticket)) is not None


def closes_circle(source: Source, table: LockTable, request: Wait) -> bool:
    """Whether its owner would wait, over others, for itself (EDEADLK). Record locks only.

    The search starts from those who wait for the owner, who mostly are none. As on Linux it is
    bounded: after DEADLOCK_WAITS_MAX requests waiting is allowed, and ends by a signal or a
    deadline.
    """
    goal = blockers(table, request)
    own = owner_of(request)
    todo, reached = [own], {own}
    tables: dict[bytes, tuple[LockTable, list[Wait]]] = {}
    left = DEADLOCK_WAITS_MAX
    while todo:
        owner = todo.pop()
        for key in _tables_of(source, owner):
            if key not in tables:
                found = load_table(source, *keys.lock_parts(key))
                tables[key] = (found, list(found.waits))
            there, waits = tables[key]
            left -= len(waits)
            if left < 0:
                return False
            behind = [wait for wait in waits if waits_for(there, wait, owner)]
            tables[key] = (there, [wait for wait in waits if wait not in behind])
            for other in map(owner_of, behind):
                if other in goal:
                    return True
                if other not in reached:
                    reached.add(other)
                    todo.append(other)
    return False


# ---------------------------------------------------------------- how locks end


def end_inode_locks(ctx: Context, view: int, ino: int) -> None:
    """Remove the locks of an inode that goes; who waits for one is told."""
    if not ctx.counters.locks:
        return
    for kind in _KINDS:
        table = load_table(ctx.txn, view, ino, kind)
        save_table(ctx, (view, ino, kind), table, Settled(EMPTY, ()))


def end_view_locks(ctx: Context, view: int, limit: int) -> int:
    """Remove at most `limit` tables of a dead view; return how many there were."""
    rows = ctx.txn.scan(_LOCK, keys.pack(view), keys.pack(view + 1))
    found = list(islice(rows, limit))
    for key, value in found:
        place = keys.lock_parts(key)
        save_table(ctx, place, decode_table(value), Settled(EMPTY, ()))
    return len(found)


def end_session_locks(ctx: Context, session_id: int) -> None:
    """Let all locks and waits of a session go, and grant what waited for them."""
    if not ctx.counters.locks:
        return
    prefix = keys.locks_of(session_id)
    rows = ctx.txn.scan(_LOCK, prefix, keys.after_prefix(prefix))
    owner_bytes = len(prefix) + 8
    for place in sorted({keys.lock_parts(key[owner_bytes:]) for key, _ in rows}):
        before = load_table(ctx.txn, *place)
        left = LockTable(
            tuple(hold for hold in before.holds if hold.session != session_id),
            tuple(wait for wait in before.waits if wait.session != session_id),
        )
        save_table(ctx, place, before, settle(left))
