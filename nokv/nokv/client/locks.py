"""Advisory locks of files, as asyncio's own are used: flock(2), or fcntl(2) for a range of bytes.

A lock belongs to the session and ends with it, so a client that can't renew its session in time
believes in no lock any more (`held`). Whatever happens to the call that asks for it, nothing stays
behind: an answer that comes after its caller gave up is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from itertools import count
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from nokv.client.core import Core
from nokv.client.options import Options, expect, query
from nokv.client.session import Session
from nokv.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LockHeld,
    NokvError,
    SessionExpired,
    Stale,
    from_wire,
)
from nokv.types.commands import Op
from nokv.types.locks import (
    TO_THE_END,
    CancelLock,
    LockKind,
    LockSet,
    LockWait,
    SetLock,
    Unlock,
)
from nokv.types.reads import AttrReply, GetAttr
from nokv.types.results import Result
from nokv.types.values import At

T = TypeVar("T")

_owners = count(1)
"""Lock owners of this process: every acquisition is one of its own."""


class AsyncLock:
    """A lock of a file: `async with fs.lock(path):`, or `acquire` and `release`.

    Made by `AsyncClient.lock`; free until it is acquired, and again after its release.
    """

    def __init__(
        self,
        core: Core,
        options: Options,
        at: At,
        *,
        shared: bool,
        span: tuple[int, int] | None,
        timeout_s: float | None,
    ) -> None:
        self._core = core
        self._options = options
        self._at = at
        self._shared = shared
        self._kind = LockKind.FLOCK if span is None else LockKind.RECORD
        self._start, self._length = span or (0, TO_THE_END)
        self._timeout_s = timeout_s
        self._owner = 0
        """Another one each time: what undoes an older request can't touch a later one."""
        self._session: Session | None = None
        self._file: tuple[int, int] | None = None
        """(view, inode) of what is locked."""

    @property
    def held(self) -> bool:
        """Whether the lock is certainly held: it was acquired, and its session is alive."""
        return self._session is not None and self._session.valid

    def check(self) -> None:
        """Return if the lock is held.

        Raises:
            Stale: it was not acquired, or its session is over, and the lock with it.
        """
        if not self.held:
            message = "the lock is not held"
            raise Stale(message, hint="what it protected may have changed: acquire it again")

    async def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            LockHeld: it was not free in time.
            LockDeadlock: of ranges: to wait would close a circle of owners.
            LockLimit: too many locks.
            NokvError: as for the file's path; DeadlineExceeded, Unavailable: nothing is known, and
                the lock is let go once it is.
        """
        if self._session is not None:
            message = "the lock is acquired already"
            raise InvalidArgument(message)
        for _ in range(2):
            session = await self._core.session(self._options.deadline_s)
            granted = await self._acquire_in(session)
            if granted is not None:
                return
        message = "the session ended twice before the lock was asked for"
        raise SessionExpired(message)

    async def _acquire_in(self, session: Session) -> bool | None:
        """Acquire the lock; None: the session ended and the request was never applied."""
        _, value = await query(self._core, self._options, GetAttr(self._at))
        attr = expect(value, AttrReply).attr
        view, ino = attr.view, attr.inode
        self._owner = next(_owners)
        op = SetLock(
            At(view, ino),
            self._kind,
            self._owner,
            not self._shared,
            self._start,
            self._length,
            self._timeout_s != 0,
            os.getpid(),
        )
        given_up = _Undo(self._core, session, (view, ino, self._kind), self._owner)
        try:
            result = await self._submit(session, op, given_up.settled)
            if result is None:
                return None
            answer = expect(result.value, LockSet)
            if not answer.granted:
                await self._wait(session, answer)
            session.check()
        except BaseException:
            given_up.undo()
            raise
        self._session, self._file = session, (view, ino)
        return True

    async def _submit(
        self, session: Session, op: Op, on_settled: Callable[[Result | NokvError], None]
    ) -> Result | None:
        stream = session.stream
        if stream.full:
            await stream.room(self._options.deadline_s)
        try:
            result = await stream.submit(
                op, timeout_s=self._options.deadline_s, on_settled=on_settled
            )
        except SessionExpired:
            return None
        if result.code:
            raise from_wire(result.code, result.message, result.hint)
        return result

    async def _wait(self, session: Session, answer: LockSet) -> None:
        wait = LockWait(answer.view, answer.inode, self._owner, answer.ticket)
        try:
            async with asyncio.timeout(self._timeout_s):
                granted = await session.lock_waits.wait(wait)
        except TimeoutError:
            cancel = CancelLock(answer.view, answer.inode, self._kind, answer.ticket)
            given_up = await self._core.submit(session, cancel, (), self._options.deadline_s)
            if given_up is not None and expect(given_up.value, LockSet).granted:
                return
            message = f"the lock was not free within {self._timeout_s:g} s"
            raise LockHeld(message) from None
        if not granted:
            message = "the file was removed while its lock was waited for"
            raise Stale(message)

    async def release(self) -> None:
        """Let the lock go; one that ended with its session is gone already.

        Never raises for a cluster that does not answer, and cancelling it changes nothing: the
        command is repeated as long as the session lives, and the lock with it.
        """
        session, file = self._session, self._file
        if session is None or file is None:
            message = "the lock is not acquired"
            raise InvalidArgument(message)
        self._session = self._file = None
        if not session.valid:
            return
        asked = self._core.undo(session, Unlock(*file, self._kind, self._owner))
        if asked is None:
            return
        with contextlib.suppress(TimeoutError, DeadlineExceeded):
            async with asyncio.timeout(self._options.deadline_s):
                await asyncio.shield(asked)

    async def __aenter__(self) -> Self:
        """Acquire it."""
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it."""
        await self.release()


class _Undo:
    """Lets a lock go whose caller gave up, once it is known what became of the request."""

    def __init__(
        self, core: Core, session: Session, place: tuple[int, int, int], owner: int
    ) -> None:
        self._core = core
        self._session = session
        self._place = place
        """(view, inode, kind)."""
        self._owner = owner
        self._answer: LockSet | None = None
        self._known = False
        self._given_up = False

    def settled(self, outcome: Result | NokvError) -> None:
        """Take the outcome, which comes once."""
        self._known = True
        if isinstance(outcome, Result) and isinstance(outcome.value, LockSet):
            self._answer = outcome.value
        if self._given_up:
            self._undo()

    def undo(self) -> None:
        """Give up, now or as soon as the outcome is known."""
        self._given_up = True
        if self._known:
            self._undo()

    def _undo(self) -> None:
        answer = self._answer
        if answer is None or not self._session.valid:
            return
        unlock = Unlock(*self._place, self._owner)
        if answer.granted:
            self._core.undo(self._session, unlock)
            return
        asked = self._core.undo(self._session, CancelLock(*self._place, answer.ticket))
        if asked is not None:  # only then: a grant in between is let go all the same
            asked.add_done_callback(lambda _: self._core.undo(self._session, unlock))


class Runner(Protocol):
    """What runs coroutines for synchronous callers (`nokv.client.sync.Owner`)."""

    epoch: int

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result."""
        ...


class SyncLock:
    """`AsyncLock` for synchronous code: `with fs.lock(path):`."""

    def __init__(self, owner: Runner, lock: AsyncLock) -> None:
        self._runner = owner
        self._epoch = owner.epoch
        self._lock = lock

    @property
    def held(self) -> bool:
        """Whether the lock is certainly held; never in the child of a fork."""
        return self._epoch == self._runner.epoch and self._lock.held

    def check(self) -> None:
        """Return if the lock is held; raises Stale if not."""
        self._check_process()
        self._lock.check()

    def acquire(self) -> None:
        """Wait for the lock; raises as `AsyncLock.acquire`."""
        self._check_process()
        self._runner.run(self._lock.acquire())

    def release(self) -> None:
        """Let it go."""
        self._check_process()
        self._runner.run(self._lock.release())

    def _check_process(self) -> None:
        if self._epoch != self._runner.epoch:
            message = "the lock was made before a fork"
            raise Stale(message, hint="make one in this process")

    def __enter__(self) -> Self:
        """Acquire it."""
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()
