"""File bodies through a client: written whole, in parts, as files; read verified, whole."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from tests.unit.client.loopback import Cluster, Fault, client

from nokv.client import AsyncClient, calls
from nokv.errors import (
    AlreadyExists,
    ForeignVolume,
    GenerationMismatch,
    InvalidArgument,
    IsADirectory,
    NotFound,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreError,
    SourceChanged,
    UploadFailed,
    UploadRefused,
)
from nokv.objects.faults import flip_bit
from nokv.objects.memory import MemoryStore
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES

Test = Callable[[Cluster, AsyncClient], Awaitable[None]]


def run(test: Test, **how: object) -> None:
    async def main() -> None:
        async with client(**how) as (cluster, fs):  # type: ignore[arg-type]
            await test(cluster, fs)

    asyncio.run(main())


def noise(n_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


def blocks(cluster: Cluster) -> list[str]:
    memory = cluster.store.inner
    assert isinstance(memory, MemoryStore)
    return [name for name in memory.names if name.startswith("blocks/")]


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 4097, BLOCK_BYTES, BLOCK_BYTES + 1, 9_000_001])
def test_a_body_comes_back(n_bytes: int) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        data = noise(n_bytes)
        info = await fs.write_bytes("/f", data)
        assert info.size == n_bytes
        assert info.sha256 == hashlib.sha256(data).hexdigest()
        attr = await fs.stat("/f")
        assert (attr.generation, attr.inode, attr.size) == (info.generation, info.inode, n_bytes)
        assert attr.sha256.hex() == info.sha256
        assert await fs.read_bytes("/f") == data
        assert len(blocks(cluster)) == (0 if n_bytes <= 4096 else -(-n_bytes // BLOCK_BYTES))
        for offset, length in ((0, 10), (n_bytes // 2, 300_000), (max(0, n_bytes - 5), 100)):
            assert await fs.read("/f", offset, length) == data[offset : offset + length]
        assert await fs.read("/f", n_bytes + 10, 5) == b""

    run(test)


def test_sources(tmp_path: Path) -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        data = noise(5_000_000)
        local = tmp_path / "f"
        local.write_bytes(data)
        local.chmod(0o640)

        async def stream() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 700_000):
                yield data[at : at + 700_000]

        await fs.write_bytes("/memory", memoryview(data))
        await fs.write_bytes("/path", local)
        await fs.write_bytes("/object", io.BytesIO(data))
        await fs.write_bytes("/stream", stream())
        await fs.put_file(local, "/file")
        for name in ("memory", "path", "object", "stream", "file"):
            assert await fs.read_bytes(f"/{name}") == data
        assert (await fs.stat("/file")).mode & 0o777 == 0o640
        with pytest.raises(IsADirectory):
            await fs.put_file(tmp_path, "/x")
        with pytest.raises(FileNotFoundError):
            await fs.put_file(tmp_path / "gone", "/x")

    run(test)


def test_a_str_is_no_body(tmp_path: Path) -> None:
    local = tmp_path / "done"
    local.write_bytes(b"a local file")

    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/f", b"kept")
        for text in ("done", str(local)):
            for refused in (
                fs.write_bytes("/f", text),  # type: ignore[arg-type]
                fs.put("/f", text),  # type: ignore[arg-type]
                fs.append("/f", text),  # type: ignore[arg-type]
                fs.patch("/f", 0, text),  # type: ignore[arg-type]
                fs.publish("/d", {"f": text}),  # type: ignore[dict-item]
            ):
                with pytest.raises(InvalidArgument, match=r"encode it, or pass a pathlib\.Path"):
                    await refused
        assert await fs.read_bytes("/f") == b"kept"
        assert not await fs.exists("/d")
        await fs.put_file(str(local), "/f")
        await fs.publish("/d", {"f": local})
        assert await fs.read_bytes("/f") == await fs.read_bytes("/d/f") == b"a local file"

    run(test)


def test_bad_arguments() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/f", b"x")
        for offset, length in ((-1, 1), (0, -1), (2**63, 1)):
            with pytest.raises(InvalidArgument, match=r"read: (offset|length)|a read from"):
                await fs.read("/f", offset, length)
        with pytest.raises(InvalidArgument):
            await fs.patch("/f", -1, b"x")
        with pytest.raises(InvalidArgument):
            await fs.write_bytes("/f", b"", if_absent=True, if_generation=3)
        with pytest.raises(InvalidArgument):
            await fs.write_bytes("/f", 7)  # type: ignore[arg-type]
        for mode in ("q", "rb+", "w+", "", "rw"):
            with pytest.raises(InvalidArgument, match="mode"):
                fs.open("/f", mode)  # type: ignore[call-overload]
        with pytest.raises(IsADirectory):
            await fs.read("/")
        with pytest.raises(NotFound):
            await fs.read("/gone")

    run(test)


def test_conditions() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        info = await fs.write_bytes("/f", b"1", if_absent=True)
        with pytest.raises(AlreadyExists):
            await fs.write_bytes("/f", b"2", if_absent=True)
        again = await fs.write_bytes("/f", noise(10_000), if_generation=info.generation)
        with pytest.raises(GenerationMismatch):
            await fs.write_bytes("/f", noise(10_000), if_generation=info.generation)
        assert (await fs.stat("/f")).generation == again.generation

    run(test)


def test_writing_through_a_symbolic_link() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/f", b"1")
        await fs.symlink("f", "/s")
        await fs.write_bytes("/s", noise(10_000))
        assert await fs.is_symlink("/s")
        assert (await fs.stat("/f")).size == 10_000
        await fs.append("/s", b"+")
        await fs.patch("/s", 0, b"-")
        assert (await fs.stat("/f")).size == 10_001

    run(test)


def test_appends_and_patches() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        data = bytearray(noise(200_000))
        await fs.write_bytes("/f", bytes(data))
        info = await fs.append("/f", noise(5_000, 2))
        assert info.offset == len(data)
        data += noise(5_000, 2)
        await fs.patch("/f", 1000, b"small")
        data[1000:1005] = b"small"
        await fs.patch("/f", 100_000, noise(50_000, 3))
        data[100_000:150_000] = noise(50_000, 3)
        await fs.patch("/f", len(data) + 10, b"beyond")
        data += bytes(10) + b"beyond"
        assert await fs.read_bytes("/f") == bytes(data)
        assert (await fs.stat("/f")).sha256 == b""
        with pytest.raises(NotFound):
            await fs.append("/gone", b"x")

    run(test)


def test_a_patch_across_a_chunk_and_its_hole() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.create("/f")
        start = CHUNK_BYTES - 3_000_000
        data = noise(6_000_000)
        await fs.patch("/f", start, data)
        assert (await fs.stat("/f")).size == start + len(data)
        assert await fs.read("/f", start - 100, 200) == bytes(100) + data[:100]
        assert await fs.read("/f", start, len(data)) == data
        assert await fs.read("/f", 0, 1000) == bytes(1000)

    run(test)


def test_reading_as_a_file() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        data = b"".join(b"line %d of the text\n" % number for number in range(300_000))
        await fs.write_bytes("/f", data)
        async with fs.open("/f") as file:
            assert file.size == len(data)
            assert await file.read(10) == data[:10]
            assert await file.read(10) == data[10:20]
            assert file.tell() == 20
            assert file.seek(-5, io.SEEK_END) == len(data) - 5
            assert await file.read() == data[-5:]
            assert await file.read(1) == b""
            file.seek(0)
            buffer = bytearray(100)
            assert await file.readinto(buffer) == 100
            assert bytes(buffer) == data[:100]
            big = bytearray(len(data))
            file.seek(0)
            assert await file.readinto(big) == len(data)
            assert bytes(big) == data
            file.seek(4)
            assert await file.readline() == data[4 : data.index(b"\n") + 1]
            assert await file.readline(3) == b"lin"
            file.seek(len(data) - 40)
            assert [line async for line in file] == data[-40:].splitlines(keepends=True)
            file.seek(7)
            assert b"".join([piece async for piece in file.chunks()]) == data[7:]
            with pytest.raises(InvalidArgument):
                file.seek(-1)
            with pytest.raises(InvalidArgument):
                file.seek(0, 9)
        with pytest.raises(ValueError, match="closed"):
            await file.read()
        plain = await fs.open("/f", "rb")
        assert await plain.pread(5, 10) == data[5:15]
        await plain.close()
        async with fs.open("/f", "r") as text:
            assert await text.readline() == "line 0 of the text\n"
            assert (await text.read()).startswith("line 1")

    run(test)


def test_sequential_small_reads_fetch_each_block_once() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        data = noise(3 * BLOCK_BYTES)
        await fs.write_bytes("/f", data)
        async with fs.open("/f") as file:
            read = b""
            while piece := await file.read(50_000):
                read += piece
        assert read == data
        assert cluster.store.calls["get"] <= 7

    run(test)


def test_writing_as_a_file() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        data = noise(3 * BLOCK_BYTES + 17)
        async with fs.open("/f", "wb") as file:
            for at in range(0, len(data), 1_000_000):
                await file.write(data[at : at + 1_000_000])
            assert file.tell() == len(data)
            assert not await fs.exists("/f")
        assert file.info is not None
        assert file.info.sha256 == hashlib.sha256(data).hexdigest()
        assert await fs.read_bytes("/f") == data
        async with fs.open("/f", "ab") as file:
            await file.write(b"tail")
        async with fs.open("/new", "ab") as file:
            await file.write(b"head")
        assert await fs.read("/f", len(data)) == b"tail"
        assert await fs.read("/new") == b"head"
        with pytest.raises(AlreadyExists):
            async with fs.open("/f", "xb") as file:
                await file.write(b"x")
        async with fs.open("/empty", "xb"):
            pass
        async with fs.open("/text", "w") as text:
            await text.write("grüße\n")
        assert await fs.read_text("/text") == "grüße\n"
        before = len(blocks(cluster))
        with pytest.raises(RuntimeError, match="midway"):
            await _fail_midway(fs)
        assert not await fs.exists("/never")
        assert len(blocks(cluster)) == before
        session = await fs._core.session(20.0)
        assert session.uploads.in_flight == 0

    run(test)


def test_a_file_that_two_open_to_append_to_and_both_make() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        for data, other_data in ((b"mine", b"theirs"), (noise(10_000), noise(20_000))):
            async with cluster.connect() as other:
                sends = 0

                async def point(name: str, other: AsyncClient, other_data: bytes) -> None:
                    nonlocal sends
                    sends += name == "publish"
                    if name == "publish" and sends == 2:  # not there: it is to be made
                        async with other.open("/log", "ab") as file:
                            await file.write(other_data)

                fs._core.fault_point = partial(  # type: ignore[misc]
                    point, other=other, other_data=other_data
                )
                async with fs.open("/log", "ab") as file:
                    await file.write(data)
                assert sends == 3  # the append, the making, and the append again
            assert await fs.read_bytes("/log") == other_data + data
            assert file.info is not None
            assert file.info.offset == len(other_data)
            assert (await fs._core.session(20.0)).uploads.in_flight == 0
            await fs.unlink("/log")

    run(test)


def test_appending_through_a_link_that_leads_nowhere() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.symlink("nowhere", "/log")
        file = await fs.open("/log", "ab")
        await file.write(noise(10_000))
        with pytest.raises(AlreadyExists):
            await file.close()
        assert (await fs._core.session(20.0)).uploads.in_flight == 0
        assert await fs.readlink("/log") == "nowhere"

    run(test)


async def _fail_midway(fs: AsyncClient) -> None:
    async with fs.open("/never", "wb") as file:
        await file.write(noise(2 * BLOCK_BYTES))
        raise RuntimeError("midway")


async def _write_blocks(fs: AsyncClient, count: int) -> None:
    async with fs.open("/f", "wb") as file:
        for _ in range(count):
            await file.write(noise(BLOCK_BYTES))


def test_a_writer_learns_of_a_failing_store_and_leaves_nothing() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        cluster.store.fail("put", 2, times=1, error=ObjectStoreError)
        with pytest.raises(UploadFailed, match="put blocks/"):
            await _write_blocks(fs, 12)
        assert not await fs.exists("/f")
        assert blocks(cluster) == []
        assert (await fs._core.session(20.0)).uploads.in_flight == 0

    run(test)


def test_a_failed_upload_leaves_nothing() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        cluster.store.fail("put", 3, error=ObjectStoreError)
        with pytest.raises(UploadFailed):
            await fs.write_bytes("/f", noise(5 * BLOCK_BYTES))
        assert blocks(cluster) == []
        assert not await fs.exists("/f")
        await fs.write_bytes("/f", noise(5 * BLOCK_BYTES))

    run(test)


def test_a_cancelled_upload_leaves_nothing() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        gate = cluster.store.hold("put", 3)
        task = asyncio.ensure_future(fs.write_bytes("/f", noise(5 * BLOCK_BYTES)))
        await gate.reached.wait()
        task.cancel()
        gate.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert blocks(cluster) == []
        assert not await fs.exists("/f")
        assert (await fs._core.session(20.0)).uploads.in_flight == 0

    run(test)


def test_an_upload_stays_in_flight_until_its_publish_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_S", 60)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        session = await fs._core.session(20.0)
        held = asyncio.Event()

        async def point(name: str) -> None:
            if name == "publish":
                cluster.faults = [Fault.HOLD]
                cluster.arrived.clear()
                held.set()

        fs._core.fault_point = point  # type: ignore[misc]
        task = asyncio.ensure_future(fs.write_bytes("/f", noise(10_000)))
        await held.wait()
        await cluster.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.uploads.in_flight == 1
        assert len(blocks(cluster)) == 1  # nothing is deleted once the publish was sent
        cluster.release()
        assert await session.stream.drain(10)
        assert session.uploads.in_flight == 0
        assert (await fs.stat("/f")).size == 10_000

    run(test)


def test_a_failed_publish_gives_its_upload_up_and_an_older_one_is_refused() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/f", noise(10_000))
        with pytest.raises(AlreadyExists):
            await fs.write_bytes("/f", noise(10_000), if_absent=True)
        session = await fs._core.session(20.0)
        assert session.uploads.in_flight == 0
        number = await session.take_upload()
        session.uploads.settled(number)
        await session.renew(5)
        from nokv.client.upload import BodyUpload

        upload = BodyUpload(fs._core, session)
        await upload.upload(noise(10_000))
        session.uploads.settled(upload.number)
        await session.renew(5)  # the watermark passes it: abandoned
        with pytest.raises(UploadRefused):
            await fs._publish_body(upload, "/g", 1, 0o644)  # type: ignore[arg-type]
        assert cluster.session(session.id).watermark > upload.number
        upload._settled = True

    run(test)


def test_a_file_that_changes_during_its_upload(tmp_path: Path) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        local = tmp_path / "f"
        local.write_bytes(noise(3 * BLOCK_BYTES))
        gate = cluster.store.hold("put", 1)
        task = asyncio.ensure_future(fs.put_file(local, "/f"))
        await gate.reached.wait()
        with local.open("ab") as file:
            file.write(b"more")
        gate.release()
        with pytest.raises(SourceChanged, match="changed"):
            await task
        assert blocks(cluster) == []
        assert not await fs.exists("/f")

    run(test)


# ---------------------------------------------------------------- verification


@pytest.mark.parametrize("offset", [0, 300_000, BLOCK_BYTES - 1])
def test_a_flipped_bit_never_gets_through(offset: int, tmp_path: Path) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        data = noise(2 * BLOCK_BYTES)
        await fs.write_bytes("/f", data)
        name = blocks(cluster)[0]
        await flip_bit(cluster.store.inner, name, offset)
        with pytest.raises(ObjectCorrupt, match=name):
            await fs.read_bytes("/f")
        with pytest.raises(ObjectCorrupt, match=name):
            await fs.read("/f", offset, 1)
        async with fs.open("/f") as file:
            with pytest.raises(ObjectCorrupt, match=name):
                await file.read()
            file.seek(0)
            with pytest.raises(ObjectCorrupt, match=name):
                [piece async for piece in file.chunks()]
        with pytest.raises(ObjectCorrupt, match=name):
            await fs.get_file("/f", tmp_path / "f")

    run(test)
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_really_missing_is_named() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/f", noise(10_000))
        (name,) = blocks(cluster)
        await cluster.store.inner.delete([name])
        with pytest.raises(ObjectMissing, match=name):
            await fs.read_bytes("/f")
        async with fs.open("/f") as file:
            with pytest.raises(ObjectMissing, match=name):
                await file.read()

    run(test)


def test_a_store_of_another_volume_is_refused() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        with pytest.raises(ForeignVolume):
            await fs.write_bytes("/f", noise(10_000))
        await fs.write_bytes("/small", b"lives in the metadata")
        assert await fs.read("/small") == b"lives in the metadata"

    run(test, store=MemoryStore())


# ---------------------------------------------------------------- replaced while it is read


def test_downloads(tmp_path: Path) -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        data = noise(9_000_000)
        await fs.write_bytes("/f", data, mode=0o640)
        await fs.utime("/f", mtime_ns=1_000_000_000)
        seen: list[int] = []
        target = tmp_path / "copy"
        attr = await fs.get_file("/f", target, progress=seen.append)
        assert target.read_bytes() == data
        assert sum(seen) == attr.size == len(data)
        assert target.stat().st_mode & 0o777 == 0o640
        assert target.stat().st_mtime_ns == 1_000_000_000
        await fs.write_bytes("/f", b"short")
        await fs.get_file("/f", target)
        assert target.read_bytes() == b"short"
        with pytest.raises(NotFound):
            await fs.get_file("/gone", target)
        with pytest.raises(FileNotFoundError):
            await fs.get_file("/f", tmp_path / "no" / "copy")

    run(test)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
