"""Record locks and flocks, by the rules of docs/namespace.md."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files
from tests.unit.state.shard import ALICE, BOB, at

from nokv.errors import (
    InvalidArgument,
    LockDeadlock,
    LockHeld,
    LockLimit,
    NotFound,
    PermissionDenied,
    ResultTooLarge,
    SessionExpired,
    Stale,
    UnknownSession,
)
from nokv.state.effects import LockWaitOver
from nokv.state.families import Family
from nokv.types.commands import Create, ExpireSession, Link, RemoveTree, Rename, SetAttr, Unlink
from nokv.types.limits import (
    LOCK_OFFSET_END,
    LOCK_RANGES_MAX,
    LOCK_WAITS_MAX,
    LOCKS_PER_SESSION_MAX,
)
from nokv.types.locks import (
    CancelLock,
    LockConflict,
    LockKind,
    LockOutcome,
    LockSet,
    LocksWaited,
    LockWait,
    SetLock,
    TestLock,
    Unlock,
    WaitLocks,
)
from nokv.types.values import At, Caller
from nokv.types.views import Clone

RECORD, FLOCK = LockKind.RECORD, LockKind.FLOCK


class Locks(Files):
    """A shard with a file f and a second session, and short forms of the commands."""

    def __init__(self) -> None:
        super().__init__()
        self.create("f", 0o666)
        self.create("g", 0o666)
        self.other = self.open(b"other".ljust(16))

    def set(
        self,
        owner: int,
        start: int = 0,
        length: int = 0,
        *,
        write: bool = True,
        wait: bool = True,
        path: str = "f",
        kind: int = RECORD,
        session: int | None = None,
    ) -> LockSet:
        """Ask for a lock."""
        op = SetLock(at(path), kind, owner, write, start, length, wait, owner)
        value = self.do(op, session=session)
        assert isinstance(value, LockSet)
        return value

    def drop(
        self, owner: int, start: int = 0, length: int = 0, *, path: str = "f", kind: int = RECORD
    ) -> None:
        """Let a range go."""
        self.do(Unlock(0, self.stat(path).inode, kind, owner, start, length))

    def waits(self, owner: int, lock: LockSet, *, session: int | None = None) -> bool | None:
        """Return None while a wait goes on, then whether the lock was granted."""
        one = self.session if session is None else session
        wait = LockWait(lock.view, lock.inode, owner, lock.ticket)
        reply = self.read(WaitLocks(one, (wait,)))
        assert isinstance(reply, LocksWaited)
        return reply.over[0].granted if reply.over else None

    def modes(self, owner: int, n_bytes: int, path: str = "f") -> str:
        """Return what an owner holds of each byte: '.', 'r' or 'w', by what stops another."""
        shown = ""
        for byte in range(n_bytes):
            found = [
                self.read(TestLock(at(path), self.session, RECORD, 10**6, write, byte, 1))
                for write in (False, True)
            ]
            assert all(isinstance(one, LockConflict) for one in found)
            read, write_ = (one.held and one.owner == owner for one in found)  # type: ignore[union-attr]
            shown += "w" if read else "r" if write_ else "."
        return shown


@pytest.fixture
def locks() -> Locks:
    """Return such a shard."""
    return Locks()


# ---------------------------------------------------------------- ranges


def test_a_lock_is_split_joined_and_converted(locks: Locks) -> None:
    locks.set(1, 0, 10)
    assert locks.modes(1, 12) == "wwwwwwwwww.."
    locks.set(1, 3, 2, write=False)
    assert locks.modes(1, 12) == "wwwrrwwwww.."
    locks.drop(1, 6, 2)
    assert locks.modes(1, 12) == "wwwrrw..ww.."
    locks.set(1, 5, 3, write=False)
    locks.set(1, 8, 2, write=False)
    assert locks.modes(1, 12) == "wwwrrrrrrr.."
    assert locks.count(Family.LOCK) == 2  # the table and its index row
    locks.set(1, 0, 0)
    found = locks.read(TestLock(at("f"), locks.session, RECORD, 2, write=False, start=100))
    assert found == LockConflict(True, True, 0, 0, locks.session, 1, 1)
    locks.check()
    locks.drop(1)
    assert locks.count(Family.LOCK) == 0


def test_the_first_conflict_is_told(locks: Locks) -> None:
    locks.set(1, 4, 2)
    locks.set(2, 1, 2, write=False)
    ask = TestLock(at("f"), locks.session, RECORD, 3, write=True)
    assert locks.read(ask) == LockConflict(True, False, 1, 2, locks.session, 2, 2)
    ask = TestLock(at("f"), locks.session, RECORD, 3, write=False)
    assert locks.read(ask) == LockConflict(True, True, 4, 2, locks.session, 1, 1)
    ask = TestLock(at("f"), locks.other, RECORD, 1, write=False, start=4)
    found = locks.read(ask)
    assert isinstance(found, LockConflict)
    assert found.held  # the number alone is no owner: the session counts too


def test_readers_share_and_owners_do_not_stop_themselves(locks: Locks) -> None:
    assert locks.set(1, write=False, wait=False).granted
    assert locks.set(2, write=False, wait=False).granted
    assert locks.fails(SetLock(at("f"), RECORD, 1, True)) is LockHeld
    locks.drop(2)
    assert locks.set(1, wait=False).granted
    assert locks.fails(SetLock(at("f"), RECORD, 2, False)) is LockHeld


def test_locks_are_of_the_inode_and_not_of_a_name(locks: Locks) -> None:
    locks.do(Link(at("f"), at(), b"h"))
    locks.set(1)
    locks.do(Rename(at(), b"f", at(), b"i"))
    for path in ("h", "i"):
        assert locks.fails(SetLock(at(path), RECORD, 2, True)) is LockHeld
    locks.do(Unlink(at(), b"i"))
    assert locks.fails(SetLock(at("h"), RECORD, 2, True)) is LockHeld
    locks.do(Unlink(at(), b"h"))
    assert locks.count(Family.LOCK) == 0
    locks.check()


def test_record_locks_and_flocks_do_not_see_each_other(locks: Locks) -> None:
    assert locks.set(1, kind=RECORD, wait=False).granted
    assert locks.set(2, kind=FLOCK, wait=False).granted
    assert locks.fails(SetLock(at("f"), FLOCK, 1, False)) is LockHeld
    locks.drop(2, kind=FLOCK)
    assert locks.set(1, kind=FLOCK, wait=False).granted
    locks.check()


def test_unlocking_what_is_not_held_is_fine(locks: Locks) -> None:
    locks.drop(1)
    locks.set(2)
    locks.drop(1)
    for view, inode in ((0, 999), (7, 1), (-1, -1), (2**64 - 1, 2**64 - 1), (2**63, 2**63)):
        locks.do(Unlock(view, inode, RECORD, 1))
        assert locks.do(CancelLock(view, inode, RECORD, 5)) == LockSet(view, inode, granted=False)
    assert locks.fails(SetLock(at("f"), RECORD, 1, True)) is LockHeld


# ---------------------------------------------------------------- queues


def test_a_writer_that_waits_is_not_passed_by_later_readers(locks: Locks) -> None:
    locks.set(1, write=False)
    writer = locks.set(2)
    assert not writer.granted
    reader = locks.set(3, write=False)
    assert not reader.granted
    assert locks.fails(SetLock(at("f"), RECORD, 4, False)) is LockHeld
    assert locks.set(1, 5, 5, write=False).granted  # the writer waits for this very owner
    locks.machine.take_effects()
    locks.drop(1)
    assert locks.machine.take_effects() == [LockWaitOver(locks.session, writer.ticket, True)]
    assert (locks.waits(2, writer), locks.waits(3, reader)) == (True, None)
    locks.drop(2)
    assert locks.waits(3, reader) is True
    locks.check()


def test_what_does_not_conflict_is_not_queued(locks: Locks) -> None:
    locks.set(1, 0, 10)
    locks.set(2, 0, 10)
    assert locks.set(3, 10, 10).granted
    assert not locks.set(4, 5, 10, write=False).granted
    assert locks.set(5, 20, 1).granted


def test_a_conversion_that_was_waited_for_frees_an_earlier_request(locks: Locks) -> None:
    locks.set(1, 0, 10)
    locks.set(3, 10, 10)
    reader = locks.set(2, 0, 5, write=False)
    conversion = locks.set(1, 0, 20, write=False)
    assert (reader.granted, conversion.granted) == (False, False)
    locks.drop(3)
    assert locks.waits(1, conversion) is True
    assert locks.waits(2, reader) is True
    locks.check()


def test_a_place_in_the_queue_is_given_up(locks: Locks) -> None:
    locks.set(1, write=False)
    writer, reader = locks.set(2), locks.set(3, write=False)
    cancel = CancelLock(0, writer.inode, RECORD, writer.ticket)
    assert locks.do(cancel, session=locks.other) == LockSet(0, writer.inode, granted=True)
    assert locks.waits(2, writer) is None  # another session's ticket was not touched
    assert locks.do(cancel) == LockSet(0, writer.inode, granted=False)
    assert locks.waits(3, reader) is True
    late = CancelLock(0, reader.inode, RECORD, reader.ticket)
    assert locks.do(late) == LockSet(0, reader.inode, granted=True)
    locks.check()


def test_a_repeated_command_takes_one_place(locks: Locks) -> None:
    locks.set(1)
    command = locks.command(SetLock(at("f"), RECORD, 2, True, wait=True))
    (first,), (again,) = locks.entry(command), locks.entry(command)
    assert first == again
    assert isinstance(first.value, LockSet)
    locks.drop(1)
    assert locks.waits(2, first.value) is True
    locks.check()


def test_the_end_of_a_session_lets_its_locks_go(locks: Locks) -> None:
    locks.set(1, 0, 5, session=locks.other)
    locks.set(1, 5, 5, write=False, session=locks.other)
    locks.set(1, kind=FLOCK, session=locks.other)
    waiting = locks.set(7, 0, 20)
    flock = locks.set(8, kind=FLOCK)
    queued = locks.set(2, 0, 20, write=False, session=locks.other)
    assert not queued.granted
    locks.do(ExpireSession(locks.other), session=0)
    assert locks.waits(7, waiting) is True
    assert locks.waits(8, flock) is True
    with pytest.raises(SessionExpired):
        locks.waits(2, queued, session=locks.other)
    locks.check()
    locks.do(ExpireSession(locks.session))
    assert locks.count(Family.LOCK) == 0
    locks.check()


def test_the_end_of_the_inode_ends_waits(locks: Locks) -> None:
    locks.set(1)
    wait = locks.set(2, session=locks.other)
    locks.machine.take_effects()
    locks.do(Unlink(at(), b"f"))
    assert locks.machine.take_effects() == [LockWaitOver(locks.other, wait.ticket, False)]
    assert locks.waits(2, wait, session=locks.other) is False
    assert locks.fails(SetLock(at(inode=wait.inode), RECORD, 3, True)) is Stale
    locks.check()


def test_a_tree_that_is_removed_ends_waits_before_it_is_reaped(locks: Locks) -> None:
    locks.mkdir("d")
    locks.create("d/h")
    locks.set(1, path="d/h")
    wait = locks.set(2, path="d/h")
    locks.do(RemoveTree(at(), b"d"))
    assert locks.waits(2, wait) is False
    locks.check()
    locks.reap()
    assert locks.waits(2, wait) is False
    assert locks.count(Family.LOCK) == 0
    locks.check()


def test_a_clone_has_locks_of_its_own(locks: Locks) -> None:
    locks.mkdir("d")
    locks.create("d/h", 0o666)
    locks.set(1, path="d/h")
    locks.do(Clone(at("d"), at(), b"c"))
    held = locks.set(1, path="c/h", session=locks.other)
    wait = locks.set(2, path="c/h")
    assert held.view != 0
    assert (held.granted, wait.granted) == (True, False)
    locks.do(RemoveTree(at(), b"c"))
    assert locks.waits(2, wait) is False
    assert locks.fails(SetLock(At(held.view, held.inode), RECORD, 3, True)) is Stale
    locks.reap()
    assert locks.count(Family.LOCK) == 2  # of d/h alone
    locks.check()


# ---------------------------------------------------------------- circles


def test_a_circle_over_two_files_is_refused(locks: Locks) -> None:
    locks.set(1, path="f")
    locks.set(2, path="g", session=locks.other)
    assert not locks.set(1, path="g").granted
    op = SetLock(at("f"), RECORD, 2, True, wait=True)
    assert locks.fails(op, session=locks.other) is LockDeadlock
    locks.check()


def test_a_circle_of_three_over_ranges(locks: Locks) -> None:
    for owner in range(3):
        locks.set(owner, 10 * owner, 10)
    assert not locks.set(0, 10, 1).granted
    assert not locks.set(1, 20, 1).granted
    assert locks.fails(SetLock(at("f"), RECORD, 2, True, 0, 1, True)) is LockDeadlock
    locks.drop(0)
    assert locks.set(2, 0, 1, wait=False).granted
    locks.check()


def test_flocks_are_not_searched_for_circles(locks: Locks) -> None:
    locks.set(1, path="f", kind=FLOCK)
    locks.set(2, path="g", kind=FLOCK)
    assert not locks.set(1, path="g", kind=FLOCK).granted
    assert not locks.set(2, path="f", kind=FLOCK).granted


def test_two_readers_that_convert_do_not_wait_for_each_other(locks: Locks) -> None:
    """Record locks tell the second one; a flock lets what it has go, as flock(2) says."""
    locks.set(1, write=False)
    locks.set(2, write=False)
    assert not locks.set(1).granted
    assert locks.fails(SetLock(at("f"), RECORD, 2, True, wait=True)) is LockDeadlock
    for owner in (1, 2):
        locks.set(owner, write=False, kind=FLOCK)
    first = locks.set(1, kind=FLOCK)
    second = locks.set(2, kind=FLOCK)
    assert (first.granted, second.granted) == (False, True)  # the first one let go to wait
    locks.drop(2, kind=FLOCK)
    assert locks.waits(1, first) is True
    locks.check()


def test_a_conversion_that_fails_keeps_what_was_held(locks: Locks) -> None:
    for kind in (RECORD, FLOCK):
        for owner in (1, 2):
            locks.set(owner, write=False, kind=kind)
        assert locks.fails(SetLock(at("f"), kind, 1, True)) is LockHeld
        locks.drop(2, kind=kind)
        assert locks.fails(SetLock(at("f"), kind, 2, True)) is LockHeld


# ---------------------------------------------------------------- who may, and what


def test_who_may_lock(locks: Locks) -> None:
    locks.do(SetAttr(at(), mode=0o777))
    locks.do(Create(at(), b"p", 0o640), ALICE)
    group = Caller(2000, 100)
    read = SetLock(at("p"), RECORD, 1, write=False)
    write = SetLock(at("p"), RECORD, 1, write=True)
    exclusive = SetLock(at("p"), FLOCK, 1, write=True)
    locks.do(read, group)
    assert locks.fails(write, group) is PermissionDenied
    locks.do(exclusive, group)  # an open file is enough, however it was opened
    assert locks.fails(read, BOB) is PermissionDenied
    assert locks.fails(exclusive, BOB) is PermissionDenied
    with pytest.raises(PermissionDenied):
        locks.read(TestLock(at("p"), locks.session, RECORD, 1, write=False), BOB)
    locks.do(SetAttr(at("p"), mode=0o200), ALICE)
    assert locks.fails(read, ALICE) is PermissionDenied
    locks.do(write, ALICE)


@pytest.mark.parametrize(
    "op",
    [
        SetLock(at("f"), 2, 1, True),
        SetLock(at("f"), -1, 1, True),
        SetLock(at("f"), RECORD, -1, True),
        SetLock(at("f"), RECORD, 1, True, -1),
        SetLock(at("f"), RECORD, 1, True, 0, -1),
        SetLock(at("f"), RECORD, 1, True, LOCK_OFFSET_END, 0),
        SetLock(at("f"), RECORD, 1, True, 1, LOCK_OFFSET_END),
        SetLock(at("f"), FLOCK, 1, True, 1),
        SetLock(at("f"), FLOCK, 1, True, 0, 1),
        SetLock(at("f"), RECORD, 1, True, pid=2**32),
        Unlock(0, 2, 3, 1),
        Unlock(0, 2, FLOCK, 1, 1),
        CancelLock(0, 2, 2, 1),
    ],
)
def test_bad_arguments(locks: Locks, op: SetLock | Unlock | CancelLock) -> None:
    assert locks.fails(op) is InvalidArgument


def test_what_can_be_locked(locks: Locks) -> None:
    locks.symlink("l", b"f")
    locks.mkdir("d")
    assert locks.fails(SetLock(at("l", follow=False), FLOCK, 1, True)) is InvalidArgument
    assert locks.set(1, path="l").inode == locks.stat("f").inode
    assert locks.set(1, path="d", kind=FLOCK).granted
    assert locks.fails(SetLock(at("none"), FLOCK, 1, True)) is NotFound
    edge = locks.set(1, LOCK_OFFSET_END - 1, 1, path="g")
    assert edge.granted
    op = SetLock(at("f"), RECORD, 1, True)
    assert locks.fails(op, session=0) is UnknownSession


# ---------------------------------------------------------------- bounds


def test_ranges_of_an_inode_are_bounded(locks: Locks) -> None:
    for number in range(LOCK_RANGES_MAX):
        locks.set(1, 2 * number, 1)
    assert locks.fails(SetLock(at("f"), RECORD, 2, True, 2**40, 1)) is LockLimit
    locks.set(1, 0, 3)  # joins two
    locks.set(1, 2**40, 4)
    inode = locks.stat("f").inode
    assert locks.fails(Unlock(0, inode, RECORD, 1, 2**40 + 1, 1)) is LockLimit
    locks.drop(1)
    locks.check()


def test_a_queue_is_bounded(locks: Locks) -> None:
    locks.set(1)
    for number in range(LOCK_WAITS_MAX):
        locks.set(2 + number)
    assert locks.set(1, write=False).granted  # no request waits for its own owner
    locks.set(1)
    assert locks.fails(SetLock(at("f"), RECORD, 10**6, True, wait=True)) is LockLimit
    assert locks.fails(SetLock(at("f"), RECORD, 10**6, True)) is LockHeld


def test_locks_of_a_session_are_bounded_and_end_together(locks: Locks) -> None:
    per_file = LOCK_RANGES_MAX
    for number in range(LOCKS_PER_SESSION_MAX // per_file):
        locks.create(f"n{number}", 0o666)
        for byte in range(per_file):
            locks.set(1, 2 * byte, 1, path=f"n{number}")
    assert locks.fails(SetLock(at("f"), RECORD, 1, True)) is LockLimit
    other = locks.command(SetLock(at("f"), RECORD, 1, True), session=locks.other, seq=1)
    assert not locks.entry(other)[0].code
    waits = tuple(LockWait(0, 2, 1, n) for n in range(LOCKS_PER_SESSION_MAX + 1))
    with pytest.raises(ResultTooLarge):
        locks.read(WaitLocks(locks.session, waits))
    locks.do(ExpireSession(locks.session))
    assert locks.count(Family.LOCK) == 2
    locks.check()


def test_a_wait_is_asked_for_by_its_numbers(locks: Locks) -> None:
    locks.set(1)
    wait = locks.set(2)
    asked = (
        LockWait(0, wait.inode, 2, wait.ticket),
        LockWait(0, wait.inode, 3, wait.ticket),
        LockWait(0, 999, 2, wait.ticket),
        LockWait(9, 1, 2, 5),
    )
    reply = locks.read(WaitLocks(locks.session, asked))
    over = (
        LockOutcome(wait.ticket, granted=True),
        LockOutcome(wait.ticket, granted=False),
        LockOutcome(5, granted=False),
    )
    assert reply == LocksWaited(over)
    for session in (0, -1, 2**64, 5):
        with pytest.raises(UnknownSession):
            locks.read(WaitLocks(session, ()))
    with pytest.raises(InvalidArgument):
        locks.read(WaitLocks(locks.session, (LockWait(0, -1, 0, 0),)))
