"""Bodies that are replaced while somebody reads them: floors, leases, starting over."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.client.loopback import Cluster, Node
from tests.unit.client.test_bodies import blocks, noise, run

from nokv.client import AsyncClient, bodies
from nokv.client.session import Session
from nokv.errors import BodyGone
from nokv.types.commands import SessionMarks
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES
from nokv.types.reads import BodyMap
from nokv.types.values import Marks
from nokv.wire.rpc import Consistency, Query


def test_a_read_whose_body_was_collected_starts_over() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        old, new = noise(10_000, 1), noise(10_000, 2)
        await fs.write_bytes("/f", old)
        names = blocks(cluster)
        async with cluster.connect() as reader:
            gate = cluster.store.hold("get", 2)  # the first one is volume.json
            reading = asyncio.ensure_future(reader.read_bytes("/f"))
            await gate.reached.wait()
            await fs.write_bytes("/f", new)
            await cluster.store.inner.delete(names)  # the collector, after its grace
            gate.release()
            assert await reading == new

    run(test)


def test_an_open_file_shows_what_it_showed_and_holds_the_floor() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        old = noise(3 * BLOCK_BYTES)
        await fs.write_bytes("/f", old)
        async with fs.open("/f") as file:
            opened = file.body.version
            await fs.write_bytes("/f", b"new")
            await fs.mkdir("/later")
            await fs.stat("/later")
            await session.renew(5)
            assert cluster.session(session.id).floor == opened
            assert await file.read() == old
        await session.renew(5)
        assert cluster.session(session.id).floor > opened

    run(test)


@pytest.mark.parametrize("how", ["read", "readinto", "stream"])
def test_what_is_being_fetched_is_held_beyond_the_close(how: str) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        old = noise(BLOCK_BYTES)
        await fs.write_bytes("/f", old)
        file = await fs.open("/f")
        body = file.body

        async def fetch() -> bytes:
            if how == "read":
                return await body.read(0, len(old))
            if how == "readinto":
                out = bytearray(len(old))
                assert await body.readinto(0, memoryview(out)) == len(old)
                return bytes(out)
            return b"".join([data async for data in body.stream(0)])

        gate = cluster.store.hold("get", 1)
        reading = asyncio.ensure_future(fetch())
        await gate.reached.wait()
        await file.close()
        await fs.write_bytes("/f", b"new")
        for _ in range(2):
            await session.renew(5)
        assert cluster.session(session.id).floor == body.version
        gate.release()
        assert await reading == old
        await session.renew(5)
        assert cluster.session(session.id).floor > body.version

    run(test)


@pytest.fixture
def one_eager_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the map only the first chunk is read when a file is opened."""
    monkeypatch.setattr(bodies, "EAGER_CHUNKS", 1)


async def leasing_at_once(fs: AsyncClient) -> Session:
    """Return the client's session, whose open files ask for leases in its next marks."""
    session = await fs._core.session(20.0)
    session.floors._lease_after_ns = 0  # type: ignore[misc]
    return session


@pytest.mark.parametrize("kind", ["empty", "inline", "holes"])
def test_a_file_without_objects_holds_nothing(kind: str) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        await fs.write_bytes("/f", b"inline" if kind == "inline" else b"")
        if kind == "holes":
            await fs.truncate("/f", (bodies.EAGER_CHUNKS + 1) * CHUNK_BYTES)
        async with fs.open("/f") as file:
            size = file.size
            await fs.write_bytes("/f", noise(10_000))
            await fs.unlink("/f")
            await session.renew(5)  # brings the newest version
            await session.renew(5)  # says it
            floor = cluster.session(session.id).floor
            assert floor > file.body.version
            tail = await file.pread(max(0, size - 6), 6)
            assert tail == {"empty": b"", "inline": b"inline", "holes": bytes(6)}[kind]

    run(test)


@pytest.mark.usefixtures("one_eager_chunk")
def test_a_file_that_stays_open_gets_a_lease_and_frees_the_floor() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await leasing_at_once(fs)
        await fs.create("/f")
        tail = noise(10_000)
        await fs.patch("/f", 2 * CHUNK_BYTES, tail)
        file = await fs.open("/f")
        lazy = await fs.open("/f")
        await session.renew(5)
        assert session.floors.waiting_for_lease
        await session.renew(5)
        assert not session.floors.waiting_for_lease
        await fs.write_bytes("/f", b"new")
        await fs.stat("/f")
        await session.renew(5)
        assert cluster.session(session.id).floor > file.body.version
        # The map of this range was not read before the file was replaced: the lease shows it.
        assert await file.pread(2 * CHUNK_BYTES, 10_000) == tail
        assert await lazy.pread(2 * CHUNK_BYTES, 10_000) == tail
        await file.close()
        await lazy.close()
        await session.renew(5)
        assert cluster.renewals[-1].leases == ()

    run(test)


@pytest.mark.usefixtures("one_eager_chunk")
def test_handles_of_one_body_read_the_generation_that_each_was_opened_at() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await leasing_at_once(fs)
        asked: list[BodyMap] = []

        def on_read(_: Node, query: Query) -> None:
            if isinstance(query.read, BodyMap) and query.read.body:
                assert query.consistency == Consistency.LINEARIZABLE
                asked.append(query.read)

        cluster.on_read = on_read
        at = 2 * CHUNK_BYTES
        await fs.create("/f")
        await fs.patch("/f", at, b"old")
        first = await fs.open("/f")
        await session.renew(5)
        await session.renew(5)
        await fs.patch("/f", at, b"new")  # the body keeps its number
        assert await first.pread(at, 3) == b"old"
        second = await fs.stale(1000).open("/f")
        assert second.attr.body == first.attr.body
        await session.renew(5)
        assert await second.pread(at, 3) == b"new"
        await session.renew(5)
        await fs.patch("/f", at, b"***")
        assert await first.pread(at, 3) == b"old"
        assert await second.pread(at, 3) == b"new"
        await first.close()
        assert await second.pread(at, 3) == b"new"
        await session.renew(5)
        await fs.unlink("/f")
        assert await second.pread(at, 3) == b"new"
        assert len({read.lease_version for read in asked}) == 2
        await second.close()

    run(test)


@pytest.mark.usefixtures("one_eager_chunk")
def test_a_lease_that_the_cluster_does_not_have_shows_nothing() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await leasing_at_once(fs)
        await fs.create("/f")
        await fs.patch("/f", 2 * CHUNK_BYTES, b"tail")
        async with fs.open("/f") as file:
            await session.renew(5)
            await session.renew(5)
            cluster.internal(SessionMarks((Marks(session.id, 1000, 0, 0),)))
            with pytest.raises(BodyGone, match="not leased"):
                await file.pread(2 * CHUNK_BYTES, 4)

    run(test)


@pytest.mark.usefixtures("one_eager_chunk")
def test_without_its_lease_a_large_body_that_was_replaced_is_gone() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.create("/f")
        await fs.patch("/f", 2 * CHUNK_BYTES, b"tail")
        async with fs.open("/f") as file:
            assert await file.pread(2 * CHUNK_BYTES, 4) == b"tail"
            await fs.patch("/f", 2 * CHUNK_BYTES, b"TAIL")
            with pytest.raises(BodyGone):
                await file.pread(2 * CHUNK_BYTES, 4)

    run(test)


def test_an_answer_older_than_the_floor_is_asked_for_again() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/f", b"body")
        session = await fs._core.session(20.0)
        await session.renew(5)
        stale = session.floors.floor - 1
        seen = 0
        machine_read = cluster.machine.read

        def on_read(node: Node, query: Query) -> None:
            nonlocal seen
            del node
            seen += 1
            cluster.machine.read = machine_read  # type: ignore[method-assign]
            if query.consistency:
                value = machine_read(query.caller, query.read)[1]
                cluster.machine.read = lambda *_: (stale, value)  # type: ignore[method-assign]

        cluster.on_read = on_read
        assert await fs.stale(10).read("/f") == b"body"
        assert seen == 2

    run(test)
