"""Locks as a program holds them: waiting, giving up, losing answers, losing the session."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.client.loopback import ROOT, Cluster, Fault, client, cluster

import nokv
from nokv.client import AsyncClient, calls
from nokv.errors import (
    InvalidArgument,
    LockDeadlock,
    LockHeld,
    NotFound,
    SessionExpired,
    Stale,
)
from nokv.state import lock_invariants
from nokv.state.collect import sessions_of
from nokv.types.commands import Unlink
from nokv.types.locks import CancelLock, LockConflict, LockKind, SetLock, TestLock, Unlock
from nokv.types.values import At

Test = Callable[[Cluster, AsyncClient, AsyncClient], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost answer is noticed soon; any other one arrives well before."""
    monkeypatch.setattr(calls, "ATTEMPT_S", 0.5)


def run(test: Test) -> None:
    """Run a test with two clients, each with a session of its own, and a file /f."""

    async def main() -> None:
        async with client(1) as (running, fs), running.connect() as other:
            await fs.create("/f")
            await other.session_id()
            await test(running, fs, other)
            source = running.machine._txn.present
            sessions = dict(sessions_of(source, 0))
            lock_invariants.check_locks(source, running.machine.counters, sessions)

    asyncio.run(main())


def is_locked(running: Cluster, kind: int = LockKind.FLOCK) -> bool:
    """Say whether somebody holds a lock of /f."""
    request = TestLock(At(path=(b"f",)), 0, kind, 0, write=True)
    found = running.machine.read(ROOT, request)[1]
    assert isinstance(found, LockConflict)
    return found.held


def sent(running: Cluster, kind: type) -> int:
    """Count the commands of a kind that arrived."""
    return sum(isinstance(command.op, kind) for command in running.commands)


async def arrived(running: Cluster, kind: type, count: int) -> None:
    """Wait until so many commands of a kind arrived."""
    while sent(running, kind) < count:
        running.arrived.clear()
        await running.arrived.wait()


def test_a_lock_is_held_for_the_length_of_a_block() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        async with fs.lock("/f") as lock:
            assert lock.held
            assert is_locked(running)
            with pytest.raises(LockHeld):
                await other.lock("/f", timeout_s=0).acquire()
            async with other.lock("/f", span=(0, 10)):
                assert is_locked(running, LockKind.RECORD)
        assert not lock.held
        assert not is_locked(running)
        with pytest.raises(Stale):
            lock.check()
        async with other.lock("/f", shared=True), fs.lock("/f", shared=True, timeout_s=0):
            pass
        op = next(c.op for c in running.commands if isinstance(c.op, SetLock))
        assert op.pid == os.getpid()

    run(test)


def test_a_lock_is_waited_for() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        order: list[int] = []

        async def hold(number: int, whose: AsyncClient) -> None:
            async with whose.lock("/f"):
                order.append(number)

        async with fs.lock("/f"):
            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(hold(number, (fs, other)[number % 2])))
                await arrived(running, SetLock, number + 2)
            assert order == []
        await asyncio.gather(*tasks)
        assert order == list(range(6))
        assert not is_locked(running)

    run(test)


def test_a_wait_ends_at_its_deadline() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        async with fs.lock("/f"):
            with pytest.raises(LockHeld):
                await other.lock("/f", timeout_s=0.05).acquire()
        async with fs.lock("/f", timeout_s=0):
            assert sent(running, CancelLock)

    run(test)


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        async with fs.lock("/f"):
            waiting = asyncio.create_task(other.lock("/f").acquire())
            await arrived(running, SetLock, 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await arrived(running, Unlock, 1)
        await fs.lock("/f", timeout_s=0).acquire()

    run(test)


def test_an_answer_after_its_caller_gave_up_is_undone() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        running.faults = [Fault.HOLD]
        asking = asyncio.create_task(fs.lock("/f").acquire())
        await arrived(running, SetLock, 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert is_locked(running)
        running.release()
        await arrived(running, Unlock, 1)
        await other.lock("/f").acquire()

    run(test)


@pytest.mark.parametrize("turns", range(4))
def test_a_release_that_is_cancelled_lets_go_all_the_same(turns: int) -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        lock = fs.lock("/f")
        await lock.acquire()
        releasing = asyncio.create_task(lock.release())
        for _ in range(turns):
            await asyncio.sleep(0)
        releasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        if turns:  # it had begun
            await other.lock("/f", timeout_s=20).acquire()
            assert not lock.held
        else:
            assert lock.held
            assert is_locked(running)
            await lock.release()

    run(test)


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.CUT_AFTER])
def test_a_lost_answer_takes_no_second_lock(fault: Fault) -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        running.faults = [fault]
        async with fs.lock("/f"):
            assert sent(running, SetLock) == 2
            with pytest.raises(LockHeld):
                await other.lock("/f", timeout_s=0).acquire()
            running.faults = [fault]
        assert not is_locked(running)

    run(test)


@pytest.mark.allow_logs("is over")
def test_a_lock_ends_with_its_session() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        lock = fs.lock("/f")
        await lock.acquire()
        session = fs.core.session_now
        assert session is not None
        waiting = asyncio.create_task(other.lock("/f").acquire())
        await arrived(running, SetLock, 2)
        running.expire(session.id)
        await waiting
        with pytest.raises(SessionExpired):
            await session.renew(5)
        session._die(SessionExpired("told by a renewal"))
        assert not lock.held
        await lock.release()
        with pytest.raises(LockHeld):
            await fs.lock("/f", timeout_s=0).acquire()

    run(test)


@pytest.mark.allow_logs("is over")
def test_a_session_that_ends_ends_its_waits() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        async with fs.lock("/f"):
            waiting = asyncio.create_task(other.lock("/f").acquire())
            await arrived(running, SetLock, 2)
            assert other.core.session_now is not None
            running.expire(other.core.session_now.id)
            with pytest.raises(SessionExpired):
                await waiting

    run(test)


def test_a_file_that_is_removed_ends_waits() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        async with fs.lock("/f") as lock:
            waiting = asyncio.create_task(other.lock("/f").acquire())
            await arrived(running, SetLock, 2)
            await fs.unlink("/f")
            with pytest.raises(Stale):
                await waiting
            assert lock.held  # nobody else can have it: the file is nobody's any more
        assert sent(running, Unlink) == 1

    run(test)


def test_ranges_and_circles() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        async with fs.lock("/f", span=(0, 10)), other.lock("/f", span=(10, 0), timeout_s=0):
            with pytest.raises(LockHeld):
                await fs.lock("/f", span=(9, 2), timeout_s=0).acquire()
        # Each lock object is an owner of its own, so two of one task are no circle.
        async with fs.lock("/f", span=(0, 1)):
            with pytest.raises(LockHeld):
                await fs.lock("/f", span=(0, 1), timeout_s=0.02).acquire()
        assert LockDeadlock.errno_value
        assert not is_locked(running, LockKind.RECORD)

    run(test)


def test_wrong_use() -> None:
    async def test(running: Cluster, fs: AsyncClient, other: AsyncClient) -> None:
        del running, other
        with pytest.raises(NotFound):
            await fs.lock("/none").acquire()
        with pytest.raises(InvalidArgument):
            fs.lock("/f", timeout_s=-1)
        with pytest.raises(InvalidArgument):
            await fs.lock("/f", span=(-1, 0)).acquire()
        lock = fs.lock("/f")
        with pytest.raises(InvalidArgument):
            await lock.release()
        async with lock:
            with pytest.raises(InvalidArgument):
                await lock.acquire()
        async with lock:  # again
            assert lock.held

    run(test)


def test_the_synchronous_form() -> None:
    async def main() -> None:
        async with cluster(1) as running:
            addresses = running.addresses

            def work() -> None:
                with nokv.connect_sync(addresses, store=running.store) as fs:
                    fs.create("/f")
                    with fs.lock("/f") as lock:
                        assert lock.held
                        lock.check()
                        with pytest.raises(LockHeld):
                            fs.lock("/f", timeout_s=0).acquire()
                    assert not lock.held
                    with fs.lock("/f", span=(0, 5), shared=True):
                        assert is_locked(running, LockKind.RECORD)

            await asyncio.to_thread(work)

    asyncio.run(main())
