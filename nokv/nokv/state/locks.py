"""Lock tables as values: ranges as fcntl(2) splits and joins them, and a fair queue.

A table holds the locks of one inode and kind. Ranges are [start, end). Two requests conflict when
they overlap, are of different owners, and one of them writes. A request is granted when no held
range conflicts with it and no earlier request that waits does: so whoever waits is not passed for
ever by those who come later. One exception keeps that from becoming a deadlock of its own: an
owner passes an earlier request that waits for what this very owner holds.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nokv.types.values import Strict

Owner = tuple[int, int]
"""(session, number)."""


class Hold(Strict, frozen=True):
    """A locked range."""

    start: int
    end: int
    session: int
    owner: int
    write: bool
    pid: int = 0


class Wait(Strict, frozen=True):
    """A request in the queue."""

    ticket: int
    """Version of its command; ascending along the queue."""
    start: int
    end: int
    session: int
    owner: int
    write: bool
    pid: int = 0


class LockTable(Strict, frozen=True):
    """All locks of one inode and kind. Key LOCK (view, inode, kind)."""

    holds: tuple[Hold, ...] = ()
    """By start, session, owner. Those of one owner are disjoint; neighbours alike are one."""
    waits: tuple[Wait, ...] = ()
    """Oldest first."""


EMPTY = LockTable()
decode_table = msgspec.msgpack.Decoder(LockTable).decode


class Settled(NamedTuple):
    """A table in which nothing that waits could be granted."""

    table: LockTable
    granted: tuple[Wait, ...]


def owner_of(request: Hold | Wait) -> Owner:
    """Return who holds or asks."""
    return request.session, request.owner


def conflict(one: Hold | Wait, other: Hold | Wait) -> bool:
    """Whether the two can't be held at once."""
    return (
        (one.write or other.write)
        and one.start < other.end
        and other.start < one.end
        and (one.owner != other.owner or one.session != other.session)
    )


def with_range(holds: tuple[Hold, ...], request: Wait) -> tuple[Hold, ...]:
    """Return the holds after a granted request: its bytes are the owner's, in its mode.

    What the owner had there is converted; neighbouring ranges of one mode are joined, those of
    the other mode cut (fcntl(2)).
    """
    lo, hi = request.start, request.end
    after: list[Hold] = []
    for hold in holds:
        if owner_of(hold) != owner_of(request) or hold.end < lo or hold.start > hi:
            after.append(hold)
        elif hold.write != request.write:
            after += _outside(hold, request.start, request.end)
    joined = [
        hold
        for hold in holds
        if owner_of(hold) == owner_of(request)
        and hold.write == request.write
        and hold.end >= lo
        and hold.start <= hi
    ]
    lo = min([lo, *(hold.start for hold in joined)])
    hi = max([hi, *(hold.end for hold in joined)])
    after.append(Hold(lo, hi, request.session, request.owner, request.write, request.pid))
    return _ordered(after)


def without_range(holds: tuple[Hold, ...], owner: Owner, start: int, end: int) -> tuple[Hold, ...]:
    """Return the holds after the owner let [start, end) go."""
    after: list[Hold] = []
    for hold in holds:
        if owner_of(hold) != owner:
            after.append(hold)
        else:
            after += _outside(hold, start, end)
    return _ordered(after)


def _outside(hold: Hold, start: int, end: int) -> list[Hold]:
    """Return what of a hold lies before `start` or from `end` on."""
    parts = ((hold.start, min(hold.end, start)), (max(hold.start, end), hold.end))
    return [
        Hold(lo, hi, hold.session, hold.owner, hold.write, hold.pid) for lo, hi in parts if lo < hi
    ]


def _ordered(holds: list[Hold]) -> tuple[Hold, ...]:
    return tuple(sorted(holds, key=lambda hold: (hold.start, hold.session, hold.owner)))


def first_conflict(table: LockTable, request: Wait) -> Hold | None:
    """Return the conflicting hold with the smallest start, as F_GETLK does."""
    return next((hold for hold in table.holds if conflict(hold, request)), None)


def blockers(table: LockTable, request: Wait) -> set[Owner]:
    """Return whom a request waits for: holders, and those before it in the queue."""
    found = {owner_of(hold) for hold in table.holds if conflict(hold, request)}
    for wait in table.waits:
        if wait.ticket >= request.ticket:
            break
        if _stands_before(table, wait, request):
            found.add(owner_of(wait))
    return found


def is_free(table: LockTable, request: Wait) -> bool:
    """Whether the request can be granted now."""
    if first_conflict(table, request) is not None:
        return False
    for wait in table.waits:
        if wait.ticket >= request.ticket:
            break
        if _stands_before(table, wait, request):
            return False
    return True


def _stands_before(table: LockTable, wait: Wait, request: Wait) -> bool:
    """Whether `request` has to wait behind an earlier one, which does not wait for its owner."""
    if not conflict(wait, request):
        return False
    own = owner_of(request)
    return not any(owner_of(hold) == own and conflict(hold, wait) for hold in table.holds)


def settle(table: LockTable) -> Settled:
    """Grant what can be granted, oldest first, until nothing more can."""
    granted: list[Wait] = []
    again = True
    while again:
        again = False
        for wait in table.waits:
            if not is_free(table, wait):
                continue
            granted.append(wait)
            again = _frees_others(table, wait)
            waits = tuple(other for other in table.waits if other is not wait)
            table = LockTable(with_range(table.holds, wait), waits)
            if again:
                break
    return Settled(table, tuple(granted))


def _frees_others(table: LockTable, wait: Wait) -> bool:
    """Whether granting may let an earlier request go: by a conversion, or of the same owner."""
    own = owner_of(wait)
    converts = not wait.write and any(hold.write and owner_of(hold) == own for hold in table.holds)
    return converts or any(other is not wait and owner_of(other) == own for other in table.waits)
