"""Exactly once: what a client concludes from answers, refusals and silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.client.loopback import Cluster, Fault, client

from nokv.client import AsyncClient, ClientConfig, calls
from nokv.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ForeignVolume,
    NokvError,
    NoSpace,
    NotFound,
    Overloaded,
    TooLarge,
)
from nokv.types.commands import Command, Create, Mkdir
from nokv.types.values import At

Test = Callable[[Cluster, AsyncClient], Awaitable[None]]


def run(test: Test, **how: object) -> None:
    async def main() -> None:
        async with client(**how) as (cluster, fs):  # type: ignore[arg-type]
            await test(cluster, fs)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def short_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost answer is noticed soon; any other one arrives well before."""
    monkeypatch.setattr(calls, "ATTEMPT_S", 0.5)


def creates(cluster: Cluster) -> list[Command]:
    return [command for command in cluster.commands if isinstance(command.op, Create)]


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.CUT_AFTER])
def test_a_lost_attempt_is_repeated_with_the_same_bytes_and_applied_once(fault: Fault) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.session_id()
        cluster.faults = [fault, fault]
        attr = await fs.create("/a")
        sent = creates(cluster)
        assert len(sent) == 3
        assert len({command.seq for command in sent}) == 1
        assert sent[0] == sent[1] == sent[2]
        assert attr.inode == (await fs.stat("/a")).inode
        events = [event async for event in fs.events()]
        assert len(events) == 1
        assert (events[0].session, events[0].seq) == (sent[0].session, sent[0].seq)

    run(test)


def test_a_refusal_alone_is_repeated_until_it_goes_through() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.session_id()
        cluster.faults = [Fault.REFUSE, Fault.REFUSE]
        await fs.create("/a")
        assert len(creates(cluster)) == 3

    run(test)


@pytest.mark.parametrize("error", [ForeignVolume, NoSpace, TooLarge])
def test_a_final_refusal_settles_if_every_attempt_was_refused(error: type[NokvError]) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        cluster.refuse = lambda command: error("no") if isinstance(command.op, Create) else None
        with pytest.raises(error):
            await fs.create("/a")
        assert session.stream.open_count == 0
        assert session.stream.acked == 1
        cluster.refuse = lambda _: None
        await fs.create("/a")

    run(test)


def test_a_final_refusal_of_the_session_is_told_at_once() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        asked = 0

        def refuse(_: Command) -> NokvError:
            nonlocal asked
            asked += 1
            return NoSpace("the disk is full")

        cluster.refuse = refuse
        with pytest.raises(NoSpace):
            await fs.create("/a")
        assert asked == 1

    run(test)


def test_a_refusal_after_a_lost_answer_settles_nothing() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        refused = 0

        def refuse(command: Command) -> NokvError | None:
            nonlocal refused
            if isinstance(command.op, Create) and len(creates(cluster)) in {2, 3}:
                refused += 1
                return NoSpace("the disk is full")
            return None

        cluster.refuse = refuse
        cluster.faults = [Fault.DROP_AFTER]
        attr = await fs.create("/a")
        assert refused == 2
        assert attr == await fs.stat("/a")
        assert session.stream.acked == 1

    run(test)


def test_a_deadline_leaves_the_outcome_open_and_it_goes_on_being_asked_for() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        cluster.faults = [Fault.DROP_BEFORE] * 1000
        with pytest.raises(DeadlineExceeded, match="may yet be applied"):
            await fs.within(0.2).create("/a")
        cluster.faults.clear()
        assert session.stream.open_count == 1
        assert session.stream.acked == 0
        assert await session.stream.drain(20)
        assert session.stream.acked == 1
        assert await fs.exists("/a")
        with pytest.raises(AlreadyExists):
            await fs.create("/a")

    run(test)


def test_what_was_never_sent_is_given_up_at_the_deadline() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        leader, cluster.leader = cluster.leader, None
        with pytest.raises(DeadlineExceeded, match="not applied"):
            await fs.within(0.3).create("/a")
        assert session.stream.open_count == 0
        cluster.leader = leader
        await fs.create("/b")
        assert not await fs.exists("/a")

    run(test)


def test_overload_is_retried_and_reported_at_the_deadline() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.session_id()
        cluster.refuse = lambda _: Overloaded("the queue is full")
        with pytest.raises(DeadlineExceeded, match="the queue is full"):
            await fs.within(0.3).create("/a")
        assert len(creates(cluster)) > 1
        cluster.refuse = lambda _: None
        await fs.create("/a")

    run(test)


def test_a_cancelled_call_settles_in_the_background() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        cluster.faults = [Fault.HOLD]
        cluster.arrived.clear()
        task = asyncio.ensure_future(fs.create("/a"))
        await cluster.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.stream.open_count == 1
        cluster.release()
        assert await session.stream.drain(10)
        assert await fs.exists("/a")

    run(test)


def test_a_call_cancelled_before_it_was_sent_is_never_sent() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        answer = session.stream.submit(Mkdir(fs_root(), b"a", 0o755), timeout_s=5)
        answer.cancel()
        assert await session.stream.drain(10)
        assert not any(isinstance(command.op, Mkdir) for command in cluster.commands)
        await fs.mkdir("/b")

    run(test)


def test_answers_in_any_order_acknowledge_only_without_a_gap() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        cluster.faults = [Fault.HOLD]
        cluster.arrived.clear()
        first = asyncio.ensure_future(fs.create("/a"))
        await cluster.arrived.wait()
        await fs.create("/b")
        await fs.create("/c")
        assert session.stream.acked == 0
        assert cluster.commands[-1].acked == 0
        cluster.release()
        await first
        assert session.stream.acked == 3
        await fs.create("/d")
        assert cluster.commands[-1].acked == 3
        assert cluster.session(session.id).acked == 3

    run(test)


def test_the_window_holds_further_commands_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WINDOW", 8)
    monkeypatch.setattr(calls, "ATTEMPT_S", 60)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        cluster.faults = [Fault.HOLD]
        cluster.arrived.clear()
        stuck = asyncio.ensure_future(fs.create("/stuck"))
        await cluster.arrived.wait()
        others = asyncio.gather(*(fs.create(f"/{number}") for number in range(40)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded, match="no outcome yet"):
            await fs.within(0.2).create("/late")
        assert max(command.seq for command in cluster.commands) <= 8
        assert session.stream.full
        cluster.release()
        await stuck
        await others
        assert len(await fs.listdir("/")) == 41
        assert all(command.seq - command.acked <= 8 for command in creates(cluster))

    run(test)


def test_commands_of_one_turn_go_as_one_batch_and_fail_each_for_itself() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.mkdir("/d")
        results = await asyncio.gather(
            fs.create("/d/a"), fs.create("/d/a"), fs.create("/missing/x"), return_exceptions=True
        )
        assert not isinstance(results[0], BaseException)
        assert isinstance(results[1], AlreadyExists)
        assert isinstance(results[2], NotFound)

    run(test)


def test_a_command_over_the_limit_is_refused_before_it_is_sent() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        with pytest.raises(TooLarge, match="the limit is"):
            await fs.setxattr("/", "user.x", bytes(5_000_000))
        await fs.mkdir("/a")
        assert session.stream.acked == 1

    run(test)


@pytest.mark.seeds(3)
def test_a_storm_of_faults_loses_and_repeats_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    monkeypatch.setattr(calls, "ATTEMPT_S", 0.1)  # an answer that is only late is part of it

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        rng = random.Random(seed)
        print(f"seed {seed}")
        await fs.mkdir("/d")
        done: list[str] = []

        async def writer(number: int) -> None:
            for turn in range(30):
                name = f"/d/{number}-{turn}"
                await fs.create(name)
                done.append(name)

        async def chaos() -> None:
            while len(done) < 8 * 30:
                if rng.random() < 0.3:
                    cluster.faults.append(rng.choice([*Fault][:4]))
                if rng.random() < 0.2:
                    cluster.leader = rng.choice(cluster.nodes)
                if rng.random() < 0.1:
                    rng.choice(cluster.nodes).cut()
                cluster.arrived.clear()
                await cluster.arrived.wait()

        trouble = asyncio.ensure_future(chaos())
        await asyncio.gather(*(writer(number) for number in range(8)))
        trouble.cancel()
        assert sorted(await fs.listdir("/d")) == sorted(name[3:] for name in done)
        events = [event async for event in fs.events()]
        assert len({(event.session, event.seq) for event in events}) == len(events) == 241

    run(test, config=ClientConfig(deadline_s=60))


def fs_root() -> At:
    return At()
