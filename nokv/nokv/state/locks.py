"""Lock tables as values: ranges as fcntl(2) splits and joins them, and a fair queue.

A table holds the locks of one inode and kind. Ranges are [start, end). Two requests conflict when
they overlap, are of different owners, and one of them writes. A request is granted when no held
range conflicts with it and no earlier request that waits does: so whoever waits is not passed for
ever by those who come later. One exception keeps that from becoming a deadlock of its own: an
owner passes an earlier request that waits for what this very owner holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    session, owner, write = request.session, request.owner, request.write
    start, end = request.start, request.end
    lo, hi = start, end
    after: list[Hold] = []
    for hold in holds:
        if hold.owner != owner or hold.session != session or hold.end < start or hold.start > end:
            after.append(hold)
        elif hold.write != write:
            after += _outside(hold, start, end)
        else:
            lo, hi = min(lo, hold.start), max(hi, hold.end)
    after.append(Hold(lo, hi, session, owner, write, request.pid))
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
    holds.sort(key=_place)  # nearly in order: a run or two, which costs little
    return tuple(holds)


def _place(hold: Hold) -> tuple[int, int, int]:
    return hold.start, hold.session, hold.owner


def first_conflict(table: LockTable, request: Wait) -> Hold | None:
    """Return the conflicting hold with the smallest start, as F_GETLK does."""
    return next((hold for hold in table.holds if conflict(hold, request)), None)


def blockers(table: LockTable, request: Wait) -> set[Owner]:
    """Return whom a new request waits for: holders, and those in the queue."""
    found = {owner_of(hold) for hold in table.holds if conflict(hold, request)}
    found.update(
        owner_of(wait) for wait in table.waits if _stands_before(table.holds, wait, request)
    )
    return found


def waits_for(table: LockTable, wait: Wait, owner: Owner) -> bool:
    """Whether a request of the queue waits for an owner: for a lock of his, or behind him."""
    if any(owner_of(hold) == owner and conflict(hold, wait) for hold in table.holds):
        return True
    return any(
        earlier.ticket < wait.ticket
        and owner_of(earlier) == owner
        and _stands_before(table.holds, earlier, wait)
        for earlier in table.waits
    )


def is_free(table: LockTable, request: Wait) -> bool:
    """Whether a new request can be granted at once."""
    return not _is_blocked(table.holds, table.waits, request)


def _is_blocked(holds: Sequence[Hold], earlier: Sequence[Wait], request: Wait) -> bool:
    start, end, write = request.start, request.end, request.write
    for hold in holds:  # as `conflict`, but a thousand of them are looked at a thousand times
        if (write or hold.write) and hold.start < end and start < hold.end:  # noqa: SIM102
            if hold.owner != request.owner or hold.session != request.session:
                return True
    return any(_stands_before(holds, wait, request) for wait in earlier)


def _stands_before(holds: Sequence[Hold], wait: Wait, request: Wait) -> bool:
    """Whether `request` has to wait behind an earlier one, which does not wait for its owner."""
    if not conflict(wait, request):
        return False
    own = owner_of(request)
    return not any(owner_of(hold) == own and conflict(hold, wait) for hold in holds)


def settle(table: LockTable) -> Settled:
    """Grant what can be granted, oldest first, until nothing more can."""
    holds, waits = table.holds, list(table.waits)
    granted: list[Wait] = []
    counts = Counter(map(owner_of, waits))
    again = bool(waits)
    while again:
        again = False
        left: list[Wait] = []
        for number, wait in enumerate(waits):
            if _is_blocked(holds, left, wait):
                left.append(wait)
                continue
            own = owner_of(wait)
            granted.append(wait)
            # Granting may let an earlier request go: by a conversion, or one of the same owner.
            again = counts[own] > 1 or (
                not wait.write and any(hold.write and owner_of(hold) == own for hold in holds)
            )
            counts[own] -= 1
            holds = with_range(holds, wait)
            if again:
                left += waits[number + 1 :]
                break
        waits = left
    return Settled(LockTable(holds, tuple(waits)) if granted else table, tuple(granted))
