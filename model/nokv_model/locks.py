"""Advisory locks by their definition: a byte's lock is what its owner last asked for it.

Nothing is split or joined: a table remembers every request that was granted and every unlock, in
order, and looks at single bytes. Only the bytes where some request begins can differ from those
before them, so no others are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from nokv.errors import InvalidArgument
from nokv.types.limits import LOCK_OFFSET_END
from nokv.types.locks import CancelLock, LockKind, SetLock, TestLock, Unlock
from nokv_model.access import check_at

Owner = tuple[int, int]
"""(session, number)."""

Place = tuple[int, int, int]
"""(view, inode, kind)."""

Run = tuple[int, int, bool, int]
"""(start, end, write, process) of bytes that one owner holds alike."""


U64_MAX = 2**64 - 1
PID_MAX = 2**32 - 1


def check_lock(op: object) -> None:
    """Check the arguments of a command of locks; others have nothing to check here."""
    if isinstance(op, SetLock):
        check_at(op.at)
    if isinstance(op, SetLock | Unlock):
        check_range(op)
    elif isinstance(op, CancelLock):
        check_cancel(op)


def check_range(op: SetLock | Unlock | TestLock) -> None:
    """Check kind, owner, range and process; raise InvalidArgument."""
    right = (
        op.kind in set(LockKind)
        and 0 <= op.owner <= U64_MAX
        and op.start >= 0
        and op.length >= 0
        and op.start < LOCK_OFFSET_END
        and op.start + op.length <= LOCK_OFFSET_END
        and not (op.kind == LockKind.FLOCK and (op.start or op.length))
        and 0 <= getattr(op, "pid", 0) <= PID_MAX
    )
    if not right:
        message = "a lock that can't be"
        raise InvalidArgument(message)


def check_cancel(op: CancelLock) -> None:
    """Check the kind; raise InvalidArgument."""
    if op.kind not in set(LockKind):
        message = "no such kind of lock"
        raise InvalidArgument(message)


@dataclass(frozen=True)
class Request:
    """A request for [start, end); `write` None lets go."""

    ticket: int
    owner: Owner
    start: int
    end: int
    write: bool | None
    pid: int = 0


@dataclass
class Table:
    """The locks of one inode and kind."""

    done: list[Request] = field(default_factory=list)
    """Granted requests and unlocks, in order."""
    queue: list[Request] = field(default_factory=list)

    def copy(self) -> Table:
        """Return an independent copy."""
        return Table(list(self.done), list(self.queue))

    def last(self, owner: Owner, byte: int) -> Request | None:
        """Return the request by which an owner holds a byte."""
        for one in reversed(self.done):
            if one.owner == owner and one.start <= byte < one.end:
                return one if one.write is not None else None
        return None

    def mode(self, owner: Owner, byte: int) -> bool | None:
        """Return whether an owner may write a byte, or None where it holds no lock."""
        held = self.last(owner, byte)
        return None if held is None else held.write

    def owners(self) -> list[Owner]:
        """Return all that ever held something."""
        return sorted({one.owner for one in self.done})

    def points(self, start: int, end: int) -> list[int]:
        """Return the bytes of [start, end) before which something may change."""
        edges = {start} | {edge for one in self.done for edge in (one.start, one.end)}
        return sorted(edge for edge in edges if start <= edge < end)

    def in_conflict(self, owner: Owner, request: Request) -> bool:
        """Say whether what an owner holds stands against a request."""
        if owner == request.owner:
            return False
        modes = [self.mode(owner, byte) for byte in self.points(request.start, request.end)]
        return any(mode is not None and (mode or request.write) for mode in modes)

    def holders(self, request: Request) -> list[Owner]:
        """Return the owners whose locks stand against a request."""
        return [owner for owner in self.owners() if self.in_conflict(owner, request)]

    def before(self, request: Request) -> list[Owner]:
        """Return the owners of earlier requests that a request waits behind."""
        return [
            one.owner
            for one in self.queue
            if one.ticket < request.ticket
            and one.owner != request.owner
            and (one.write or request.write)
            and max(one.start, request.start) < min(one.end, request.end)
            and not self.in_conflict(request.owner, one)
        ]

    def blockers(self, request: Request) -> list[Owner]:
        """Return all that a request waits for."""
        return self.holders(request) + self.before(request)

    def release(self, owner: Owner, start: int = 0, end: int = LOCK_OFFSET_END) -> None:
        """Let a range of an owner go."""
        self.done.append(Request(0, owner, start, end, None))

    def grant(self) -> list[Request]:
        """Grant what can be, the oldest first, from the start again after each; return them."""
        granted: list[Request] = []
        while True:
            free = next((one for one in self.queue if not self.blockers(one)), None)
            if free is None:
                return granted
            self.queue.remove(free)
            self.done.append(free)
            granted.append(free)

    def runs(self, owner: Owner) -> list[Run]:
        """Return what an owner holds as (start, end, write, pid), neighbours alike as one."""
        found: list[Run] = []
        points = [*self.points(0, LOCK_OFFSET_END), LOCK_OFFSET_END]
        for byte, after in pairwise(points):
            held = self.last(owner, byte)
            if held is None or held.write is None:
                continue
            if found and found[-1][1] == byte and found[-1][2] == held.write:
                found[-1] = (found[-1][0], after, held.write, held.pid)
            else:
                found.append((byte, after, held.write, held.pid))
        return found

    def count(self, session: int | None = None) -> int:
        """Count the ranges and waits, of one session or of all."""
        ours = [one for one in self.owners() if session in {None, one[0]}]
        waits = [one for one in self.queue if session in {None, one.owner[0]}]
        return sum(len(self.runs(owner)) for owner in ours) + len(waits)

    def end_session(self, session: int) -> None:
        """Forget all of a session, and grant what waited for it."""
        self.done = [one for one in self.done if one.owner[0] != session]
        self.queue = [one for one in self.queue if one.owner[0] != session]
        self.grant()


Tables = dict[Place, Table]


def copy_of(tables: Tables) -> Tables:
    """Return an independent copy of all tables."""
    return {place: table.copy() for place, table in tables.items()}


def waits_for_itself(tables: Tables, place: Place, request: Request) -> bool:
    """Say whether the owner of a new request would wait for itself, over record locks of others."""
    waiting = [(place, request)] + [
        (other, one)
        for other, table in tables.items()
        if other[2] == place[2]
        for one in table.queue
    ]
    reached: set[Owner] = set()
    todo = [(place, request)]
    while todo:
        where, one = todo.pop()
        for owner in tables[where].blockers(one):
            if owner == request.owner:
                return True
            if owner not in reached:
                reached.add(owner)
                todo += [(w, o) for w, o in waiting if o.owner == owner]
    return False


def first_conflict(table: Table, request: Request) -> tuple[Owner, Run] | None:
    """Return the conflicting range with the smallest start, and its owner."""
    found = [
        (run[0], owner, run)
        for owner in table.owners()
        if owner != request.owner
        for run in table.runs(owner)
        if (run[2] or request.write) and run[0] < request.end and request.start < run[1]
    ]
    if not found:
        return None
    _, owner, run = min(found)
    return owner, run
