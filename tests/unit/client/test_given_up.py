"""What callers gave up, once or again while it was cleaned up: nothing of it stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.client.loopback import Cluster, Fault, cluster
from tests.unit.client.test_bodies import blocks, noise, run
from tests.unit.client.test_copies import many_chunks

from nokv.client import AsyncClient, calls, publish, segments, session
from nokv.client.files import AsyncWriter
from nokv.client.session import Session
from nokv.errors import SessionExpired, WindowFull
from nokv.state.ops_session import load_session
from nokv.types.commands import (
    Atomic,
    Command,
    LeaseUploads,
    Op,
    PinView,
    StageBegin,
    StageSwap,
    UnpinView,
)
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES

Work = Callable[[AsyncClient], Awaitable[object]]

DATA = noise(BLOCK_BYTES + 1)

TURNS = 12
"""Of the event loop: in each of so many a caller is cancelled again."""


async def quiet(fs: AsyncClient) -> Session:
    """Wait until nothing runs in the background; return the session."""
    core = fs._core
    session = await core.session(20.0)
    while True:
        assert await session.stream.drain(20)
        uploader = core._uploader
        work = {*core._background, *(uploader._cleanups if uploader is not None else ())}
        if not work:
            return session
        await asyncio.wait(work)


async def cancel(task: asyncio.Task[Any], turns: int, times: int = 3) -> None:
    """Cancel now, and again after so many turns of the loop, and so on; wait for the end."""
    for _ in range(times):
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
    await asyncio.gather(task, return_exceptions=True)


class Held:
    """Holds a client at a fault point."""

    def __init__(self, fs: AsyncClient, point: str) -> None:
        self.reached = asyncio.Event()
        self._point = point
        self._fs = fs
        fs._core.fault_point = self._hold  # type: ignore[misc]

    async def _hold(self, point: str) -> None:
        if point == self._point:
            self.reached.set()
            await asyncio.Event().wait()

    def remove(self) -> None:
        async def go_on(_: str) -> None:
            pass

        self._fs._core.fault_point = go_on  # type: ignore[misc]


def test_the_number_of_an_upload_ends_with_its_clean_up_not_with_who_waits() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        deleting = cluster.store.hold("delete", 1)
        held = Held(fs, "publish")
        task = asyncio.create_task(fs.write_bytes("/f", noise(10_000)))
        await held.reached.wait()
        task.cancel()
        await deleting.reached.wait()
        await cancel(task, 1)  # Ctrl-C, again
        session = await fs._core.session(20.0)
        assert session.uploads.in_flight == 1
        deleting.release()
        assert (await quiet(fs)).uploads.in_flight == 0
        assert blocks(cluster) == []

    run(test)


def test_a_number_is_in_flight_while_a_put_is_on_its_way() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        putting = cluster.store.hold("put", 1)
        task = asyncio.create_task(fs.write_bytes("/f", noise(10_000)))
        await putting.reached.wait()
        await cancel(task, 1)
        session = await fs._core.session(20.0)
        assert session.uploads.in_flight == 1
        putting.release()
        assert (await quiet(fs)).uploads.in_flight == 0
        assert blocks(cluster) == []

    run(test)


async def _write(fs: AsyncClient) -> None:
    writer = await fs.open("/f", "wb")
    assert isinstance(writer, AsyncWriter)
    async with writer:
        await writer.write(DATA)


async def _publish(fs: AsyncClient) -> None:
    await fs.publish("/f", {f"{number}": noise(10_000, number) for number in range(3)})


@pytest.mark.parametrize("work", [_write, _publish])
def test_cancelled_in_any_turn_of_its_clean_up(work: Work) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        for turns in range(TURNS):
            held = Held(fs, "publish")
            task = asyncio.ensure_future(work(fs))
            await held.reached.wait()
            await cancel(task, turns)
            held.remove()
            assert (await quiet(fs)).uploads.in_flight == 0, turns
            assert blocks(cluster) == [], turns
        assert not await fs.exists("/f")

    run(test)


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_in_any_turn_of_an_upload(times: int) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        for turns in range(40):
            task = asyncio.create_task(fs.write_bytes("/f", DATA))
            for _ in range(turns):
                await asyncio.sleep(0)
            await cancel(task, 1, times)
            assert (await quiet(fs)).uploads.in_flight == 0, turns
            if await fs.exists("/f"):
                assert await fs.read_bytes("/f") == DATA
                await fs.unlink("/f")
        mine = await fs._core.session(20.0)
        await mine.renew(20)
        assert cluster.session(mine.id).watermark == mine.uploads.watermark > 1

    run(test)


def test_numbers_whose_asker_was_cancelled_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_S", 60)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        cluster.faults = [Fault.HOLD]
        cluster.arrived.clear()
        asking = asyncio.create_task(session.take_upload())
        await cluster.arrived.wait()
        await cancel(asking, 1, 1)
        cluster.release()
        assert await session.stream.drain(20)
        assert session.uploads.watermark == 1
        assert await session.take_upload() == 1
        assert sum(isinstance(one.op, LeaseUploads) for one in cluster.commands) == 1
        session.uploads.settled(1)

    run(test)


def test_a_window_that_stays_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nokv.state.ops_session.UPLOAD_WINDOW", 64)
    monkeypatch.setattr(session, "WINDOW_WAIT_S", 0.0)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        mine = await fs._core.session(20.0)
        oldest = await mine.take_upload()  # as of a writer that nobody closes
        data = noise(5000)
        while mine.uploads.watermark + len(blocks(cluster)) < 48:  # 16, then 32 are leased
            await fs.write_bytes("/f", data)
        with pytest.raises(WindowFull) as caught:
            await fs.write_bytes("/f", data)
        assert "writers" in caught.value.hint
        assert f"upload {oldest}" in caught.value.message
        assert mine.uploads.in_flight == 1
        mine.uploads.settled(oldest)
        await mine.renew(20)
        await fs.write_bytes("/f", data)
        assert await fs.read_bytes("/f") == data
        assert cluster.session(mine.id).alive

    run(test)


# ---------------------------------------------------------------- pins and staged trees


def cancel_at(cluster: Cluster, kind: type[Op], task: asyncio.Future[Any]) -> None:
    """Cancel a task when such a command arrives: it is applied, and its answer is late."""

    def look(command: Command) -> None:
        ops = command.op.ops if isinstance(command.op, Atomic) else (command.op,)
        if any(isinstance(op, kind) for op in ops):
            task.cancel()

    cluster.refuse = look


async def nothing_is_left(cluster: Cluster, fs: AsyncClient) -> None:
    """Check that the session holds neither pins nor staged trees."""
    mine = await quiet(fs)
    cluster.refuse = lambda _: None
    txn = cluster.machine._txn
    found = load_session(txn, mine.id)
    assert found is not None
    assert (found.pins, found.stages, txn.pins(0)) == (0, (), ())
    assert mine.uploads.in_flight == 0
    cluster.reap()


async def _pin(fs: AsyncClient) -> None:
    async with fs.pinned():
        pass


@pytest.mark.parametrize("kind", [PinView, UnpinView])
def test_a_pin_whose_asker_was_cancelled_is_given_back(kind: type[Op]) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        task = asyncio.ensure_future(_pin(fs))
        cancel_at(cluster, kind, task)
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_is_left(cluster, fs)
        assert sum(isinstance(one.op, UnpinView) for one in cluster.commands) == 1

    run(test)


def test_a_pin_that_is_cancelled_in_any_turn() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.session_id()
        for turns in range(3 * TURNS):
            task = asyncio.ensure_future(_pin(fs))
            for _ in range(turns):
                await asyncio.sleep(0)
            await cancel(task, 1)
            await nothing_is_left(cluster, fs)

    run(test)


class Staging:
    """The three ways to stage, each making `/new`, which must not be there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, local: Path) -> None:
        monkeypatch.setattr(publish, "ATOMIC_BYTES", 1)
        monkeypatch.setattr(segments, "SEGMENT_BYTES", BLOCK_BYTES)
        monkeypatch.setattr("nokv.state.ops_copy.COPY_CHUNKS_MAX", 2)
        self.local = local / "local"
        with self.local.open("wb") as file:
            file.truncate(BLOCK_BYTES + 1)

    async def set(self, fs: AsyncClient) -> None:
        await fs.publish("/new", {"a": noise(10_000), "b/c": b"2"})

    async def file(self, fs: AsyncClient) -> None:
        await fs.put_file(self.local, "/new", if_absent=True)

    async def copy(self, fs: AsyncClient) -> None:
        await fs.copy("/many", "/new", replace=False)


@pytest.mark.parametrize("way", ["set", "file", "copy"])
def test_what_was_staged_for_nobody_is_dropped(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work: Work = getattr(Staging(monkeypatch, tmp_path), way)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await many_chunks(fs, "/many", 5)
        task = asyncio.ensure_future(work(fs))
        cancel_at(cluster, StageBegin, task)
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_is_left(cluster, fs)
        assert not await fs.exists("/new")
        await work(fs)
        await nothing_is_left(cluster, fs)
        assert await fs.exists("/new")

    run(test)


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("way", ["set", "file", "copy"])
def test_a_swap_that_nobody_waits_for_decides_what_is_dropped(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, taken: bool
) -> None:
    work: Work = getattr(Staging(monkeypatch, tmp_path), way)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await many_chunks(fs, "/many", 5)
        before = (await fs.statfs()).files

        def look(command: Command) -> None:
            if isinstance(command.op, Atomic) and isinstance(command.op.ops[-1], StageSwap):
                task.cancel()

        async def point(name: str) -> None:
            if name == "publish" and not await fs.exists("/new"):
                await fs.mkdir("/new")

        if taken:  # by the time that the swap is applied
            fs._core.fault_point = point  # type: ignore[misc]
        task = asyncio.ensure_future(work(fs))
        cluster.refuse = look
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_is_left(cluster, fs)
        if taken:
            assert await fs.listdir("/new") == []
            assert (await fs.statfs()).files == before + 1
        else:
            assert (await fs.lstat("/new")).size in {0, BLOCK_BYTES + 1, 4 * CHUNK_BYTES + 7}

    run(test)


# ---------------------------------------------------------------- uploads of a session that is over


class Blocks:
    """A source whose blocks come one by one, as the test hands them out."""

    def __init__(self, count: int) -> None:
        self.asked = asyncio.Event()
        """The last block is waited for."""
        self.go_on = asyncio.Event()
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number in range(self._count):
            if number == self._count - 1:
                self.asked.set()
                await self.go_on.wait()
            yield DATA[:BLOCK_BYTES]


@pytest.mark.allow_logs("is over")
def test_an_upload_that_runs_while_its_session_is_replaced_is_told_so() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        old = await fs._core.session(20.0)
        source = Blocks(3)
        task = asyncio.ensure_future(fs.write_bytes("/f", source))
        await source.asked.wait()
        old._die(SessionExpired("ended by the test"))
        await fs.write_bytes("/g", DATA)  # opens a new session; the old one is retired
        await quiet(fs)
        source.go_on.set()
        with pytest.raises(SessionExpired):
            await task
        await quiet(fs)
        assert old.uploads.in_flight == 0
        assert not await fs.exists("/f")
        assert len(blocks(cluster)) == 2  # of /g

    run(test)


@pytest.mark.allow_logs("is over")
def test_a_file_in_segments_is_told_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local = Staging(monkeypatch, tmp_path).local

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        old = await fs._core.session(20.0)
        held = asyncio.Event(), asyncio.Event()

        async def point(name: str) -> None:
            if name == "publish" and not held[0].is_set():  # of the first segment
                held[0].set()
                await held[1].wait()

        fs._core.fault_point = point  # type: ignore[misc]
        task = asyncio.ensure_future(fs.put_file(local, "/f"))
        await held[0].wait()
        old._die(SessionExpired("ended by the test"))
        await fs.write_bytes("/g", DATA)
        held[1].set()
        with pytest.raises(SessionExpired):
            await task
        assert (await quiet(fs)) is not old
        assert old.uploads.in_flight == 0
        assert not await fs.exists("/f")
        assert len(blocks(cluster)) >= 2  # of /g

    run(test)


@pytest.mark.allow_logs("is over")
def test_an_upload_that_runs_while_the_client_is_closed_is_told_so() -> None:
    async def main() -> None:
        async with cluster() as running:
            source = Blocks(3)
            async with running.connect() as fs:
                task = asyncio.ensure_future(fs.write_bytes("/f", source))
                await source.asked.wait()
            source.go_on.set()
            with pytest.raises(SessionExpired):
                await task
            async with running.connect() as fs:
                assert not await fs.exists("/f")

    asyncio.run(main())
