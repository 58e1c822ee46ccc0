"""Questions that wait at a node for locks, and the answer over real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.server.nodes import Caller1, Nodes, connect, leader

from nokv.errors import NokvError, NotLeader, SessionExpired
from nokv.server.lock_waits import POLL_S, LockWaits
from nokv.types.commands import Create, ExpireSession
from nokv.types.locks import (
    LockOutcome,
    LockSet,
    LocksWaited,
    LockWait,
    SetLock,
    Unlock,
    WaitLocks,
)
from nokv.types.values import At
from nokv.wire.rpc import QueryReply, ResponseBody


class Asked:
    """A question, and what it was answered."""

    def __init__(self) -> None:
        self.answers: list[ResponseBody | type[NokvError]] = []

    def answer(self, body: ResponseBody) -> None:
        self.answers.append(body)

    def fail(self, error: NokvError, leader: str = "") -> None:
        del leader
        self.answers.append(type(error))


def ask(waits: LockWaits, session: int, *tickets: int, now_s: float = 0.0) -> Asked:
    """Park a question and return it."""
    asked = Asked()
    rows = tuple(LockWait(0, 2, 1, ticket) for ticket in tickets)
    waits.park(asked, WaitLocks(session, rows), 7, now_s)
    return asked


def nothing(version: int) -> QueryReply:
    return QueryReply(version, LocksWaited(()))


def test_a_wait_that_is_over_answers_its_session_once() -> None:
    waits = LockWaits()
    asked, other = ask(waits, 1, 10, 11), ask(waits, 2, 20)
    over = LockOutcome(11, granted=True)
    waits.over(1, LockOutcome(12, granted=True), 8)
    waits.over(2, over, 8)  # another session's ticket
    assert asked.answers == other.answers == []
    waits.over(1, over, 9)
    waits.over(1, over, 9)
    assert asked.answers == [QueryReply(9, LocksWaited((over,)))]
    assert other.answers == []
    assert len(waits) == 1


def test_a_newer_question_ends_the_older_one() -> None:
    waits = LockWaits()
    older = ask(waits, 1, 10)
    newer = ask(waits, 1, 10, 11)
    assert older.answers == [nothing(7)]
    assert newer.answers == []
    assert len(waits) == 1


def test_a_question_is_answered_in_time() -> None:
    waits = LockWaits()
    asked = ask(waits, 1, 10, now_s=100.0)
    waits.tick(8, 100.0 + POLL_S - 0.01)
    assert asked.answers == []
    waits.tick(9, 100.0 + POLL_S)
    assert asked.answers == [nothing(9)]
    assert len(waits) == 0


def test_the_end_of_a_session_or_of_an_office_is_told() -> None:
    waits = LockWaits()
    asked, other, third = (ask(waits, session, 10) for session in (1, 2, 3))
    waits.fail(1, SessionExpired())
    waits.fail(9, SessionExpired())
    waits.fail_all(NotLeader())
    assert asked.answers == [SessionExpired]
    assert other.answers == third.answers == [NotLeader]
    assert len(waits) == 0


async def _wait(client: Caller1, owner: int, lock: LockSet) -> asyncio.Task[object]:
    wait = LockWait(lock.view, lock.inode, owner, lock.ticket)
    return asyncio.ensure_future(client.read(WaitLocks(client.session, (wait,))))


def test_a_node_tells_when_a_wait_is_over(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 1)
    nodes.start()

    async def main() -> None:
        address, connection = await leader(nodes.addresses)
        holder, waiter = Caller1(connection), Caller1(await connect(address))
        for client in (holder, waiter):
            await client.open(30_000_000_000)
        await holder.run(Create(At(), b"f", 0o644))
        at = At(path=(b"f",))
        held = await holder.run(SetLock(at, 0, 1, write=True))
        queued = await waiter.run(SetLock(at, 0, 1, write=True, wait=True))
        assert isinstance(held, LockSet)
        assert isinstance(queued, LockSet)
        assert (held.granted, queued.granted) == (True, False)
        asked = await _wait(waiter, 1, queued)
        again = await _wait(waiter, 1, queued)
        assert await asked == LocksWaited(())
        await holder.run(Unlock(0, held.inode, 0, 1))
        assert await again == LocksWaited((LockOutcome(queued.ticket, granted=True),))
        assert await (await _wait(waiter, 1, queued)) == await again
        more = await holder.run(SetLock(at, 0, 2, write=True, wait=True))
        assert isinstance(more, LockSet)
        last = await _wait(holder, 2, more)
        await waiter.raw(waiter.session, 9, ExpireSession(waiter.session))
        assert await last == LocksWaited((LockOutcome(more.ticket, granted=True),))
        with pytest.raises(SessionExpired):
            await (await _wait(waiter, 1, queued))
        await connection.close()
        await waiter.connection.close()

    try:
        asyncio.run(main())
        assert nodes.stop() == {1: 0}
    finally:
        nodes.close()
