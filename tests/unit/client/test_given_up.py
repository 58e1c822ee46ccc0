"""What callers gave up, once or again while it was cleaned up: nothing of it stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from tests.unit.client.loopback import Cluster, Fault
from tests.unit.client.test_bodies import blocks, noise, run

from nokv.client import AsyncClient, calls, session
from nokv.client.files import AsyncWriter
from nokv.client.session import Session
from nokv.errors import WindowFull
from nokv.types.commands import LeaseUploads
from nokv.types.limits import BLOCK_BYTES

TURNS = 12
"""Of the event loop: in each of so many a caller is cancelled again."""


async def quiet(fs: AsyncClient) -> Session:
    """Wait until nothing runs in the background; return the session."""
    core = fs._core
    session = await core.session(20.0)
    uploader = core._uploader
    while cleanups := {*core._background, *(uploader._cleanups if uploader is not None else ())}:
        await asyncio.wait(cleanups)
    assert await session.stream.drain(20)
    return session


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
        await writer.write(noise(BLOCK_BYTES + 1))


async def _publish(fs: AsyncClient) -> None:
    await fs.publish("/f", {f"{number}": noise(10_000, number) for number in range(3)})


@pytest.mark.parametrize("work", [_write, _publish])
def test_cancelled_in_any_turn_of_its_clean_up(work: Any) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        for turns in range(TURNS):
            held = Held(fs, "publish")
            going: Coroutine[Any, Any, None] = work(fs)
            task = asyncio.create_task(going)
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
        data = noise(2 * BLOCK_BYTES + 5)
        for turns in range(40):
            task = asyncio.create_task(fs.write_bytes("/f", data))
            for _ in range(turns):
                await asyncio.sleep(0)
            await cancel(task, 1, times)
            assert (await quiet(fs)).uploads.in_flight == 0, turns
            if await fs.exists("/f"):
                assert await fs.read_bytes("/f") == data
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
