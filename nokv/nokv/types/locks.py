"""Advisory locks: what a command says, what it answers, what may be asked.

Record locks are those of fcntl(2), of byte ranges; flocks those of flock(2), of a whole file. The
two do not see each other, as on Linux. An owner is (session, number): the number is the process's
for a record lock (its `lock_owner` in FUSE), the open file's for a flock. Locks are on inodes, not
on names (docs/namespace.md: Locks).
"""

from __future__ import annotations

from enum import IntEnum

from nokv.types.values import At, Lenient, Strict

TO_THE_END = 0
"""As the length of a range: to the end of the file, however it grows (`l_len` of fcntl(2))."""


class LockKind(IntEnum):
    """Two families of locks, blind to each other."""

    RECORD = 0
    FLOCK = 1


class SetLock(Strict, frozen=True, tag=52):
    """F_SETLK, F_SETLKW with a read or write lock; LOCK_SH, LOCK_EX. Result: LockSet.

    A further one of the owner converts, splits or joins what the owner holds in the range.
    """

    at: At
    kind: int
    """LockKind."""
    owner: int
    """0 to 2^64 - 1; the command's session makes it unique."""
    write: bool
    start: int = 0
    length: int = TO_THE_END
    wait: bool = False
    """Where the lock is not free: take a place in the queue instead of failing with LockHeld."""
    pid: int = 0
    """Shown to others by TestLock."""


class Unlock(Strict, frozen=True, tag=53):
    """F_UNLCK, LOCK_UN. What is not held, and an inode that is gone, are fine. Result: Done."""

    view: int
    inode: int
    kind: int
    owner: int
    start: int = 0
    length: int = TO_THE_END


class CancelLock(Strict, frozen=True, tag=54):
    """Give a place in the queue up. Result: LockSet; `granted` where the lock came first."""

    view: int
    inode: int
    kind: int
    ticket: int


class LockSet(Lenient, frozen=True, tag=15):
    """Held, or waiting under a ticket."""

    view: int
    inode: int
    granted: bool
    ticket: int = 0
    """The place in the queue, unless granted: `WaitLocks` tells when it is reached."""


class TestLock(Strict, frozen=True, tag=49):
    """F_GETLK: what stands in the way of a lock, nothing being set. Reply: LockConflict."""

    __test__ = False  # a name that pytest would collect

    at: At
    session: int
    kind: int
    owner: int
    write: bool
    start: int = 0
    length: int = TO_THE_END


class LockConflict(Lenient, frozen=True, tag=27):
    """The conflicting lock with the smallest start; a request that waits is none."""

    held: bool
    """False: the lock could be had; the other fields mean nothing."""
    write: bool = False
    start: int = 0
    length: int = TO_THE_END
    session: int = 0
    owner: int = 0
    pid: int = 0


class LockWait(Strict, frozen=True):
    """A place in a queue, as `LockSet` gave it."""

    view: int
    inode: int
    owner: int
    ticket: int


class WaitLocks(Strict, frozen=True, tag=50):
    """Which of a session's waits are over. Reply: LocksWaited.

    Over RPC it is answered once at least one is over, when the session asks anew, or at the
    deadline (DeadlineExceeded). Asking twice does no harm: the answer is a function of the state.
    """

    session: int
    waits: tuple[LockWait, ...]
    """At most LOCKS_PER_SESSION_MAX."""


class LockOutcome(Lenient, frozen=True):
    """A wait that is over."""

    ticket: int
    granted: bool
    """False: the inode is gone, and its locks with it."""


class LocksWaited(Lenient, frozen=True, tag=28):
    """Those that are over; the others still wait."""

    over: tuple[LockOutcome, ...]
