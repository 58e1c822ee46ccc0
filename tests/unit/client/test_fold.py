"""Appends and patches without end: crowded chunks are folded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.client.loopback import Cluster, client

from nokv.client import AsyncClient, fold
from nokv.errors import Immutable, ResultTooLarge
from nokv.state import invariants_holds, ops_publish
from nokv.types.values import Caller, InodeFlag

EXTENTS = 8


def run(test: Callable[[Cluster, AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await test(running, fs)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chunk have few extents."""
    for module in (ops_publish, invariants_holds):
        monkeypatch.setattr(module, "EXTENTS_PER_CHUNK_MAX", EXTENTS)
    monkeypatch.setattr(fold, "CROWDED_EXTENTS", EXTENTS // 2)


def test_appends_never_end() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/log", b"")
        lines = [b"%d\n" % number for number in range(10 * EXTENTS)]
        for line in lines:
            await fs.append("/log", line)
        assert await fs.read_bytes("/log") == b"".join(lines)
        async with await fs.open("/log", "ab") as file:
            await file.write(b"end")
        assert await fs.read_bytes("/log") == b"".join(lines) + b"end"

    run(test)


def test_appends_to_an_append_only_file_never_end() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/log", b"")
        await fs.set_flags("/log", int(InodeFlag.APPEND))
        lines = [b"%d\n" % number for number in range(4 * EXTENTS)]
        for line in lines:
            await fs.append("/log", line)
        assert await fs.read_bytes("/log") == b"".join(lines)
        with pytest.raises(Immutable):
            await fs.patch("/log", 0, b"x")

    run(test)


def test_several_append_to_one_file() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/log", b"")

        async def append(who: int) -> dict[int, bytes]:
            lines = {}
            for number in range(4 * EXTENTS):
                line = b"%d says %d\n" % (who, number)
                lines[(await fs.append("/log", line)).offset] = line
            return lines

        found = await asyncio.gather(*(append(who) for who in range(4)))
        told = {offset: line for lines in found for offset, line in lines.items()}
        assert len(told) == 16 * EXTENTS
        assert await fs.read_bytes("/log") == b"".join(told[offset] for offset in sorted(told))

    run(test)


def test_patches_of_a_file_with_holes() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        rng = random.Random(5)
        expected = bytearray(100_000)
        await fs.write_bytes("/f", b"")
        await fs.truncate("/f", len(expected))
        for number in range(6 * EXTENTS):
            offset = rng.randrange(len(expected) - 10)
            expected[offset : offset + 3] = b"%03d" % number
            await fs.patch("/f", offset, b"%03d" % number)
        assert await fs.read_bytes("/f") == bytes(expected)

    run(test)


def test_folding_keeps_what_a_snapshot_shows() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        await fs.mkdir("/d")
        await fs.write_bytes("/d/log", b"")
        for number in range(EXTENTS):
            await fs.append("/d/log", b"%d" % number)
        before = await fs.read_bytes("/d/log")
        await fs.snapshots.create("/d", "then")
        await fs.append("/d/log", b"more")
        assert await fs.at("then").read_bytes("/d/log") == before
        assert await fs.read_bytes("/d/log") == before + b"more"

    run(test)


def test_who_may_not_read_can_fold_nothing() -> None:
    async def test(running: Cluster, fs: AsyncClient) -> None:
        await fs.write_bytes("/log", b"")
        await fs.chmod("/log", 0o222)
        async with running.connect(caller=Caller(uid=5, gid=5)) as other:
            for _ in range(EXTENTS):
                await other.append("/log", b"x")
            with pytest.raises(ResultTooLarge):
                await other.append("/log", b"x")
        await fs.append("/log", b"y")
        assert await fs.read_bytes("/log") == b"x" * EXTENTS + b"y"

    run(test)
