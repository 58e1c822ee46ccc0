"""Uploads: how a body is cut, what a failure leaves, what a source may do, how much memory."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from tests.unit.objects.bodies import VOLUME, stored

from nokv.errors import (
    FileTooLarge,
    InvalidArgument,
    ObjectStoreDenied,
    ObjectStoreUnavailable,
    SourceChanged,
    UploadFailed,
)
from nokv.objects.budget import ByteBudget
from nokv.objects.faults import FaultyStore
from nokv.objects.layout import sums_of
from nokv.objects.memory import MemoryStore
from nokv.objects.read import Reader
from nokv.objects.source import SourceLike
from nokv.objects.upload import UploadAttempt, UploadedBody, Uploader
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX, SUM_BYTES
from nokv.types.values import ChunkMap, Extent, ObjectPart

SESSION = 5
PREFIX = f"blocks/{VOLUME}/0001-{SESSION:016x}/"


class Case:
    """A memory store, an uploader, and how many uploads were leased."""

    def __init__(self, *, parallel: int = 16, budget_bytes: int = 32 * BLOCK_BYTES) -> None:
        self.memory = MemoryStore()
        self.store = FaultyStore(self.memory)
        self.uploader = Uploader(
            self.store,
            volume=VOLUME,
            shard=1,
            session=SESSION,
            parallel=parallel,
            budget=ByteBudget(budget_bytes),
            settle_s=0.05,
        )
        self.leased = 0

    async def lease(self) -> int:
        self.leased += 1
        return self.leased

    def attempt(self) -> UploadAttempt:
        return self.uploader.attempt(self.lease)

    async def check(self, body: UploadedBody, data: bytes, *, upload: int = 1) -> None:
        """Compare what was uploaded with `data`, byte by byte, through a read."""
        assert body.length == len(data)
        assert body.sha256 == hashlib.sha256(data).digest()
        reader = Reader(self.store, volume=VOLUME, shard=1)
        chunks = stored(body, session=SESSION, upload=upload)
        assert await reader.read(chunks, 0, len(data)) == data
        named = sorted(reader.name(o) for c in chunks.values() for o in c.objects)
        assert self.memory.names == named
        await self.done()

    async def done(self) -> None:
        assert self.uploader.budget.held_bytes == 0
        await self.uploader.close()


def run(body: Callable[[Case], object], **bounds: int) -> None:
    async def main() -> None:
        await body(Case(**bounds))  # type: ignore[misc]

    asyncio.run(main())


# ---------------------------------------------------------------- cutting


def test_a_small_body_is_one_object() -> None:
    async def body(case: Case) -> None:
        data = os.urandom(5000)
        done = await case.attempt().upload(data)
        part = ObjectPart(0, 0, 0, 5000, sums_of(data))
        assert done.chunks == (ChunkMap(0, (part,), (Extent(0, 5000, 0),)),)
        assert case.memory.names == [PREFIX + "0000000000000001/00000000/0000.0000"]
        await case.check(done, data)

    run(body)


def test_an_empty_body_has_no_object_and_no_lease() -> None:
    async def body(case: Case) -> None:
        told: list[int] = []
        done = await case.attempt().upload(b"", progress=told.append)
        assert done == UploadedBody(0, hashlib.sha256().digest(), ())
        assert (case.leased, told) == (0, [0])
        await case.check(done, b"")

    run(body)


@pytest.mark.parametrize(("length", "inline"), [(1, True), (4096, True), (4097, False)])
def test_up_to_inline_max_there_is_no_object(length: int, *, inline: bool) -> None:
    async def body(case: Case) -> None:
        data = os.urandom(length)
        done = await case.attempt().upload(data, inline_max=4096)
        assert (case.leased == 0) == inline
        assert (done.chunks[0].parts == ()) == inline
        if inline:
            assert done.chunks == (ChunkMap(0, (), (Extent(0, length, data=data),)),)
        await case.check(done, data)

    run(body)


def test_a_large_body_is_cut_into_blocks_and_chunks() -> None:
    async def body(case: Case) -> None:
        data = random.Random(1).randbytes(CHUNK_BYTES + BLOCK_BYTES + 10)
        told: list[int] = []
        done = await case.attempt().upload(data, progress=told.append)
        assert [chunk.index for chunk in done.chunks] == [0, 1]
        assert [len(chunk.parts) for chunk in done.chunks] == [16, 2]
        last = done.chunks[1].parts[1]
        assert (last.chunk, last.block, last.piece, last.length) == (1, 1, 0, 10)
        assert done.chunks[1].extents[1] == Extent(BLOCK_BYTES, 10, 1)
        assert sum(told) == len(data)
        assert len(told) == 18
        await case.check(done, data)

    run(body)


def test_a_patch_is_cut_where_the_file_is() -> None:
    async def body(case: Case) -> None:
        start = CHUNK_BYTES - SUM_BYTES
        data = os.urandom(SUM_BYTES + 100)
        attempt = case.attempt()
        done = await attempt.upload(data, offset=start)
        assert [chunk.index for chunk in done.chunks] == [0, 1]
        assert done.chunks[0].extents == (Extent(start, SUM_BYTES, 0),)
        assert done.chunks[1].extents == (Extent(0, 100, 0),)
        again = await attempt.upload(data[:50], offset=start)
        assert [(p.chunk, p.block, p.piece) for p in again.chunks[0].parts] == [(0, 15, 1)]
        assert case.leased == 1
        inline = await attempt.upload(data[:30], offset=CHUNK_BYTES - 10, inline_max=30)
        assert inline.chunks == (
            ChunkMap(0, (), (Extent(CHUNK_BYTES - 10, 10, data=data[:10]),)),
            ChunkMap(1, (), (Extent(0, 20, data=data[10:30]),)),
        )
        assert len(case.memory.names) == 3
        await case.done()

    run(body)


def test_more_than_a_file_may_have_is_refused() -> None:
    async def body(case: Case) -> None:
        with pytest.raises(FileTooLarge):
            await case.attempt().upload(b"xx", offset=FILE_BYTES_MAX - 1)
        done = await case.attempt().upload(b"x", offset=FILE_BYTES_MAX - 1)
        assert done.length == 1
        await case.done()

    run(body)


# ---------------------------------------------------------------- sources


def source_kinds(data: bytes, tmp_path: Path) -> dict[str, SourceLike]:
    path = tmp_path / "file"
    path.write_bytes(data)

    async def pieces() -> AsyncIterator[bytes]:
        rng = random.Random(2)
        at = 0
        while at < len(data):
            n_bytes = rng.choice([0, 1, 1000, SUM_BYTES, 3 * BLOCK_BYTES])
            yield data[at : at + n_bytes]
            at += n_bytes

    return {
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "path": path,
        "file object": io.BytesIO(data),
        "short reads": cast("BinaryIO", _ShortReads(data)),
        "async iterator": pieces(),
    }


class _ShortReads(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, 100_000))


@pytest.mark.parametrize(
    "length", [0, 1, 65_536, 65_537, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES]
)
def test_every_kind_of_source_uploads_the_same(length: int, tmp_path: Path) -> None:
    data = random.Random(length).randbytes(length)
    for source in source_kinds(data, tmp_path).values():

        async def body(case: Case, source: SourceLike = source) -> None:
            await case.check(await case.attempt().upload(source), data)

        run(body)


@pytest.mark.parametrize("length", [10, BLOCK_BYTES, 3 * BLOCK_BYTES])
@pytest.mark.parametrize("change", ["append", "truncate", "rewrite", "replace", "unlink", "touch"])
def test_a_file_that_changes_is_an_error_and_leaves_nothing(
    length: int, change: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(length))
    before = path.stat()
    actions: dict[str, Callable[[], object]] = {
        "append": lambda: path.write_bytes(path.read_bytes() + b"x"),
        "truncate": lambda: os.truncate(path, length - 1),
        "rewrite": lambda: path.write_bytes(os.urandom(length)),
        "replace": lambda: (path.rename(tmp_path / "old"), path.write_bytes(b"x" * length)),
        "unlink": path.unlink,
        "touch": lambda: os.utime(path, ns=(1, 1)),
    }

    async def while_reading(case: Case) -> None:
        from nokv.objects import source as module

        reads = module.FileSource._finish
        changed = threading.Event()

        def act_first(self: module.FileSource) -> None:
            if not changed.is_set():
                changed.set()
                actions[change]()
            reads(self)

        module.FileSource._finish = act_first  # type: ignore[method-assign]
        try:
            with pytest.raises(SourceChanged, match="file"):
                await case.attempt().upload(path)
        finally:
            module.FileSource._finish = reads  # type: ignore[method-assign]
        assert case.memory.names == []
        await case.done()

    run(while_reading)

    async def between_scan_and_upload(case: Case) -> None:
        with pytest.raises(SourceChanged, match="file"):
            await case.attempt().upload(path, before=before)
        assert case.leased == 0
        await case.done()

    run(between_scan_and_upload)


def test_a_file_that_shrinks_between_two_blocks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 * BLOCK_BYTES))

    async def body(case: Case) -> None:
        gate = case.store.hold("put", 1)
        task = asyncio.ensure_future(case.attempt().upload(path))
        await gate.reached.wait()
        os.truncate(path, BLOCK_BYTES + 5)
        gate.release()
        with pytest.raises(SourceChanged):
            await task
        assert case.memory.names == []
        await case.done()

    run(body, parallel=1, budget_bytes=BLOCK_BYTES)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def body(case: Case) -> None:
        for bad in (fifo, Path("/dev/null"), tmp_path):
            with pytest.raises(InvalidArgument, match="not a regular file"):
                await case.attempt().upload(bad)
        with pytest.raises(FileNotFoundError):
            await case.attempt().upload(tmp_path / "none")
        with pytest.raises(InvalidArgument):
            await case.attempt().upload(7)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match=r"pathlib\.Path"):
            await case.attempt().upload(str(fifo))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="no binary file object"):
            await case.attempt().upload(io.StringIO("text"))  # type: ignore[arg-type]
        await case.done()

    run(body)


def test_the_error_of_a_source_passes_and_nothing_stays() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * (2 * BLOCK_BYTES)
        raise OSError(errno.EIO, "the source broke")

    async def body(case: Case) -> None:
        with pytest.raises(OSError, match="the source broke"):
            await case.attempt().upload(pieces())
        assert case.memory.names == []
        await case.done()

    run(body)


# ---------------------------------------------------------------- failures


DATA = random.Random(4).randbytes(6 * BLOCK_BYTES)


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("after", [False, True])
def test_a_failed_put_fails_the_upload_and_deletes_the_rest(nth: int, *, after: bool) -> None:
    async def body(case: Case) -> None:
        case.store.fail("put", nth, after=after, error=ObjectStoreUnavailable)
        with pytest.raises(UploadFailed, match=r"put blocks/.*injected") as caught:
            await case.attempt().upload(DATA)
        assert isinstance(caught.value.__cause__, ObjectStoreUnavailable)
        assert caught.value.hint == ObjectStoreUnavailable.default_hint
        assert case.memory.names == []
        await case.done()

    run(body)


def test_a_failure_stops_a_source_that_has_nothing_to_say() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * BLOCK_BYTES
        await asyncio.Event().wait()

    async def body(case: Case) -> None:
        case.store.fail("put", error=ObjectStoreDenied)
        with pytest.raises(UploadFailed):
            await case.attempt().upload(pieces())
        assert case.memory.names == []
        await case.done()

    run(body)


@pytest.mark.parametrize("held", range(1, 7))
@pytest.mark.parametrize("after", [False, True])
def test_a_cancelled_upload_waits_for_its_puts_and_deletes(held: int, *, after: bool) -> None:
    async def body(case: Case) -> None:
        gate = case.store.hold("put", held, after=after)
        task = asyncio.ensure_future(case.attempt().upload(DATA))
        await gate.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        puts = [name for operation, name in case.store.log if operation == "put"]
        deletes = [name for operation, name in case.store.log if operation == "delete"]
        assert sorted(puts) == sorted(deletes)
        assert case.memory.names == []
        await case.done()

    run(body)


def test_a_put_that_never_ends_does_not_hold_a_cancelled_upload() -> None:
    async def body(case: Case) -> None:
        gate = case.store.hold("put", 2)
        task = asyncio.ensure_future(case.attempt().upload(DATA))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert case.memory.names == []
        await case.done()

    run(body)


def test_a_second_cancellation_does_not_stop_the_cleanup() -> None:
    async def body(case: Case) -> None:
        put, delete = case.store.hold("put", 3), case.store.hold("delete")
        task = asyncio.ensure_future(case.attempt().upload(DATA))
        await put.reached.wait()
        task.cancel()
        put.release()
        await delete.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert case.memory.names != []
        delete.release()
        await case.uploader.close()
        assert case.memory.names == []

    run(body)


def test_a_failed_lease_stores_nothing() -> None:
    async def body(case: Case) -> None:
        async def lease() -> int:
            raise ConnectionError("no leader")

        with pytest.raises(ConnectionError):
            await case.uploader.attempt(lease).upload(DATA)
        assert case.store.calls["put"] == case.store.calls["delete"] == 0
        await case.done()

    run(body)


def test_before_the_publish_is_sent_everything_can_be_discarded() -> None:
    async def body(case: Case) -> None:
        attempt = case.attempt()
        await attempt.upload(DATA)
        assert len(case.memory.names) == 6
        assert await attempt.discard() == ()
        assert case.memory.names == []
        assert await attempt.discard() == ()
        await case.done()

    run(body)


def test_once_the_publish_was_sent_nothing_is_deleted() -> None:
    async def body(case: Case) -> None:
        attempt = case.attempt()
        await attempt.upload(DATA)
        attempt.publish_sent = True
        names = tuple(case.memory.names)
        assert await attempt.discard() == names
        assert tuple(case.memory.names) == names
        assert case.store.calls["delete"] == 0
        await case.done()

    run(body)


def test_a_delete_that_fails_leaves_the_names_to_the_collector() -> None:
    async def body(case: Case) -> None:
        attempt = case.attempt()
        await attempt.upload(DATA)
        names = tuple(case.memory.names)
        case.store.fail("delete", error=ObjectStoreDenied)
        assert await attempt.discard() == names
        await case.done()

    run(body)


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_memory_stays_within_the_budget(blocks: int) -> None:
    """What the store was handed and has not stored is counted at its own door."""

    async def body(case: Case) -> None:
        in_flight = peak = 0
        put = case.memory.put

        async def counting(name: str, data: bytes) -> None:
            nonlocal in_flight, peak
            in_flight += len(data)
            peak = max(peak, in_flight)
            for _ in range(5):
                await asyncio.sleep(0)
            await put(name, data)
            in_flight -= len(data)

        case.memory.put = counting  # type: ignore[method-assign, assignment]
        attempts = [case.attempt() for _ in range(4)]
        await asyncio.gather(*(attempt.upload(DATA) for attempt in attempts))
        budget = case.uploader.budget
        assert BLOCK_BYTES <= peak <= budget.peak_bytes <= budget.limit_bytes
        await case.done()

    run(body, budget_bytes=blocks * BLOCK_BYTES)


def test_puts_in_flight_are_bounded_across_uploads() -> None:
    async def body(case: Case) -> None:
        gates = [case.store.hold("put", nth) for nth in range(1, 13)]
        tasks = [asyncio.ensure_future(case.attempt().upload(DATA)) for _ in range(2)]
        for gate in gates[:3]:
            await gate.reached.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert case.store.calls["put"] == 3
        for gate in gates:
            gate.release()
        await asyncio.gather(*tasks)
        assert case.store.calls["put"] == 12
        await case.done()

    run(body, parallel=3)


def test_small_files_do_not_take_a_block_of_the_budget(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(50)]
    for path in paths:
        path.write_bytes(b"x" * 1000)

    async def body(case: Case) -> None:
        await asyncio.gather(*(case.attempt().upload(path) for path in paths))
        assert case.uploader.budget.peak_bytes <= 50 * 1000
        assert len(case.memory.names) == 50
        await case.done()

    run(body)
