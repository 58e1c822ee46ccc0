"""Sessions: how long one counts as alive, what its renewals carry, and what ends with it."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.unit.client.loopback import ROOT, Fault, client, cluster

from nokv.client import AsyncClient, ClientConfig
from nokv.client.session import MARGIN_NS, Session
from nokv.errors import (
    DeadlineExceeded,
    InvalidArgument,
    SessionExpired,
    Stale,
    Unavailable,
    VersionNotPinned,
)
from nokv.types.commands import OpenSession
from nokv.types.limits import BLOCK_BYTES, UPLOAD_WINDOW

S = 1_000_000_000


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ns = 1000 * S

    def __call__(self) -> int:
        return self.ns


async def open_session(fs: AsyncClient, clock: Clock, ttl_s: int = 30) -> Session:
    return await Session.open(
        fs._core.router,
        ttl_ns=ttl_s * S,
        caller=ROOT,
        timeout_s=5,
        rng=random.Random(1),
        clock_ns=clock,
    )


def test_validity_counts_from_sending_and_ends_a_margin_early() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            clock = Clock()
            session = await open_session(fs, clock)
            margin = MARGIN_NS + 30 * S // 1000
            clock.ns += 30 * S - margin - 1
            assert session.valid
            clock.ns += 1
            assert not session.valid
            clock.ns -= 10 * S
            original = running.renew

            def slow(call: object, marks: object) -> None:
                clock.ns += 5 * S  # the answer takes its time
                original(call, marks)

            running.renew = slow
            sent = clock.ns
            await session.renew(5)
            clock.ns = sent + 30 * S - margin - 1
            assert session.valid
            clock.ns += 1
            assert not session.valid
            with pytest.raises(SessionExpired):
                session.check()
            await session.close()

    asyncio.run(main())


def test_an_opening_counts_from_its_first_attempt() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            clock = Clock()
            leader, running.leader = running.leader, None
            opening = asyncio.ensure_future(open_session(fs, clock))
            await asyncio.sleep(0.05)
            clock.ns += 25 * S
            running.leader = leader
            session = await opening
            assert session.valid
            clock.ns += 5 * S
            assert not session.valid
            await session.close()

    asyncio.run(main())


def test_an_opening_that_is_repeated_is_one_session() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            running.faults = [Fault.CUT_AFTER, Fault.REFUSE]
            first = await fs.session_id()
            openings = [c for c in running.commands if isinstance(c.op, OpenSession)]
            assert len(openings) == 3
            assert len(set(openings)) == 1
            assert running.session(first).alive

    asyncio.run(main())


def test_renewals_carry_growing_numbers_the_floor_and_the_watermark() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            session = await fs._core.session(20.0)
            await session.renew(5)
            one = await session.take_upload()
            two = await session.take_upload()
            await fs.mkdir("/a")
            session.uploads.settled(one)
            await session.renew(5)
            first, second = running.renewals[-2:]
            assert second.number > first.number
            assert second.floor >= first.floor
            assert (first.watermark, second.watermark) == (0, two)
            await session.renew(5)
            assert running.renewals[-1].floor == running.session(session.id).floor
            session.uploads.settled(two)

    asyncio.run(main())


def test_a_session_is_renewed_in_time() -> None:
    async def main() -> None:
        config = ClientConfig(session_ttl_s=5.0)
        async with client(config=config) as (running, fs):
            session = await fs._core.session(20.0)
            session.renew_soon()
            for _ in range(2):
                running.renewed.clear()
                await running.renewed.wait()
            assert session.valid

    asyncio.run(main())


@pytest.mark.allow_logs("is over")
def test_after_expiry_commands_run_in_a_new_session() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            first = await fs.session_id()
            await fs.mkdir("/a")
            running.expire(first)
            await fs.mkdir("/b")  # the old session answers SessionExpired: never applied
            second = await fs.session_id()
            assert second != first
            assert await fs.listdir("/") == ["a", "b"]
            assert len([e async for e in fs.events()]) == 2

    asyncio.run(main())


@pytest.mark.allow_logs("is over")
def test_a_session_that_the_cluster_ended_is_noticed_by_a_renewal() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            session = await fs._core.session(20.0)
            running.expire(session.id)
            with pytest.raises(SessionExpired):
                await session.renew(5)
            session.renew_soon()
            assert session._keeper is not None
            await session._keeper
            assert not session.valid
            assert await fs.session_id() != session.id

    asyncio.run(main())


@pytest.mark.allow_logs("is over")
def test_nothing_is_carried_into_a_new_session() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            data = bytes(100_000)
            await fs.write_bytes("/f", data)
            file = await fs.open("/f")
            writer = await fs.open("/g", "wb")
            await writer.write(data)
            session = await fs._core.session(20.0)
            async with fs.pinned() as view:
                assert await view.exists("/f")
                running.expire(session.id)
                session._die(SessionExpired("ended by the test"))
                with pytest.raises(Stale, match="session"):
                    await file.read()
                with pytest.raises(SessionExpired):
                    await session.take_upload()
                with pytest.raises(SessionExpired):
                    await writer.close()
                with pytest.raises(VersionNotPinned):
                    await view.stat("/f")
            await file.close()
            assert not await fs.exists("/g")
            await fs.write_bytes("/g", data)
            assert await fs.read_bytes("/f") == data

    asyncio.run(main())


def test_closing_ends_the_session_in_the_cluster() -> None:
    async def main() -> None:
        async with cluster() as running:
            async with running.connect() as fs:
                number = await fs.session_id()
                assert running.session(number).alive
            assert not running.session(number).alive
            with pytest.raises(Unavailable, match="closed"):
                await fs.mkdir("/a")

    asyncio.run(main())


def test_a_client_that_only_reads_opens_no_session() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.write_bytes("/f", b"x")
            async with running.connect() as reader:
                assert await reader.read_bytes("/f") == b"x"
                assert reader._core.session_now is None

    asyncio.run(main())


@pytest.mark.parametrize("ttl_s", [1, 7200])
def test_a_time_to_live_out_of_bounds(ttl_s: int) -> None:
    async def main() -> None:
        async with client(config=ClientConfig(session_ttl_s=ttl_s)) as (_, fs):
            with pytest.raises(InvalidArgument):
                await fs.mkdir("/a")

    asyncio.run(main())


def test_no_session_without_a_leader() -> None:
    async def main() -> None:
        async with client(config=ClientConfig(deadline_s=0.3)) as (running, fs):
            running.leader = None
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await fs.mkdir("/a")

    asyncio.run(main())


def test_a_session_is_opened_within_the_deadline_of_the_call() -> None:
    async def main() -> None:
        async with client(config=ClientConfig(deadline_s=60)) as (running, fs):
            running.leader = None
            short = fs.within(0.3)
            async with asyncio.timeout(20):
                for call in (
                    short.write_bytes("/a", b"x" * 5000),
                    short.snapshots.create("/", "s"),
                    short.lock("/").acquire(),
                ):
                    with pytest.raises((Unavailable, DeadlineExceeded)):
                        await call

    asyncio.run(main())


def test_the_watermark_reaches_the_cluster() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            session = await fs._core.session(20.0)
            taken = [await session.take_upload() for _ in range(5)]
            assert running.session(session.id).next_upload > taken[-1]
            for number in taken:
                session.uploads.settled(number)
            await session.renew(5)
            assert running.session(session.id).watermark == taken[-1] + 1

    asyncio.run(main())


def test_uploads_wait_while_the_window_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nokv.client.session.LEASE_POLL_S", 0.01)

    async def main() -> None:
        async with client() as (running, fs):
            session = await fs._core.session(20.0)
            taken: list[int] = []
            while len(taken) < UPLOAD_WINDOW - 2048:
                taken.append(await session.take_upload())
            waiting = [asyncio.ensure_future(session.take_upload()) for _ in range(4096)]
            running.renewed.clear()
            await running.renewed.wait()  # the full window asks for a renewal
            assert not waiting[-1].done()
            for number in taken:
                session.uploads.settled(number)
            more = await asyncio.gather(*waiting)
            assert len({*taken, *more}) == len(taken) + len(more)

    asyncio.run(main())


@pytest.mark.allow_logs("is over")
def test_no_put_starts_once_the_session_is_over() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            session = await fs._core.session(20.0)
            gate = running.store.hold("put", 1)
            writing = asyncio.ensure_future(fs.write_bytes("/f", bytes(64 * BLOCK_BYTES)))
            await gate.reached.wait()
            session._die(SessionExpired("ended by the test"))
            gate.release()
            with pytest.raises(SessionExpired):
                await writing
            assert running.store.calls["put"] < 64
            await fs.write_bytes("/f", bytes(BLOCK_BYTES))

    asyncio.run(main())
