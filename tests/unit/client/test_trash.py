"""The trash through a client and the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.client.loopback import Cluster, client

from nokv.cli import names, trash
from nokv.client import AsyncClient
from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    NotFound,
    NotPermitted,
    ReadOnly,
    UsageError,
)
from nokv.types.values import Caller


def run(test: Callable[[AsyncClient, Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/d/in", parents=True)
            await fs.write_bytes("/d/in/f", bytes(10_000))
            await fs.write_bytes("/d/g", b"g")
            await test(fs, running)

    asyncio.run(main())


def parsed(add: Callable[[argparse.ArgumentParser], None], *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(words)


def test_in_and_out() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        entry = await fs.trash.put("/d")
        assert entry is not None
        assert await fs.listdir("/") == []
        assert (await fs.usage("/")).entries == 0
        [row] = await fs.trash.list()
        assert (row.path, row.entries, row.size_bytes) == (b"/d", 3, 10_001)
        attr = await fs.trash.restore(entry)
        assert (await fs.stat("/d")).inode == attr.inode
        assert await fs.read("/d/in/f") == bytes(10_000)
        entry = await fs.trash.put("/d/g")
        assert entry is not None
        await fs.trash.restore((entry.view, entry.trash), "/elsewhere")
        assert await fs.read("/elsewhere") == b"g"
        with pytest.raises(NotFound):
            await fs.trash.restore(entry)
        await fs.trash.put("/elsewhere")
        await fs.create("/elsewhere")
        [row] = await fs.trash.list()
        with pytest.raises(AlreadyExists):
            await fs.trash.restore(row)
        assert await fs.trash.put("/none", missing_ok=True) is None
        with pytest.raises(NotFound):
            await fs.trash.put("/none")
        await fs.workspaces.create("/ws")
        with pytest.raises(CrossesView):
            await fs.trash.restore(row, "/ws/x")
        await fs.trash.put("/ws")
        await fs.trash.restore(next(one for one in await fs.trash.list() if one.path == b"/ws"))
        assert await fs.listdir("/ws") == []

    run(test)


def test_empty_and_keep() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        for number in range(1500):
            await fs.create(f"/n{number}")
        await asyncio.gather(*(fs.trash.put(f"/n{number}") for number in range(1500)))
        await fs.chmod("/", 0o777)
        async with running.connect(caller=Caller(uid=5)) as other:
            await other.create("/mine")
            await other.trash.put("/mine")
            assert [row.path for row in await other.trash.list()] == [b"/mine"]
            foreign = (await fs.trash.list())[0]
            with pytest.raises(NotPermitted):
                await other.trash.restore(foreign)
            with pytest.raises(NotPermitted):
                await other.trash.empty([foreign])
            with pytest.raises(NotPermitted):
                await other.trash.keep(1)
            assert await other.trash.empty() == 1
        rows = await fs.trash.list()
        assert len(rows) == 1500
        assert await fs.trash.empty(rows[:2]) == 2
        assert await fs.trash.empty() == 1498
        assert await fs.trash.list() == ()
        await fs.trash.keep(60)
        for bad in (-1.0, float("nan"), 1e11):
            with pytest.raises(InvalidArgument):
                await fs.trash.keep(bad)
        async with fs.pinned() as view:
            with pytest.raises(ReadOnly):
                await getattr(view, "unlink")("/x")  # noqa: B009

    run(test)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        def said() -> list[str]:
            return capsys.readouterr().out.splitlines()

        rm, add = names.add_rm, trash.add_trash
        assert await names._rm(fs, parsed(rm, "--trash", "/d/g", "/d/in")) == 0
        assert await names._rm(fs, parsed(rm, "--trash", "/none")) == 1
        assert await names._rm(fs, parsed(rm, "--trash", "-f", "/none")) == 0
        await trash._list(fs, parsed(add, "list"))
        first, second = said()
        assert first.split()[-3:] == ["/d/g", "1", "B"]
        assert second.endswith("  /d/in  1 entry, 9.8 KiB")
        await trash._list(fs, parsed(add, "list", "--json"))
        rows = [json.loads(row) for row in said()]
        assert [(row["path"], row["type"]) for row in rows] == [
            ("/d/g", "file"),
            ("/d/in", "directory"),
        ]
        assert await trash._restore(fs, parsed(add, "restore", "/d/in/", "/d/none")) == 1
        assert said() == ["/d/in is there again"]
        assert await fs.read("/d/in/f") == bytes(10_000)
        words = ("restore", rows[0]["id"], "--to", "/h")
        assert await trash._restore(fs, parsed(add, *words)) == 0
        assert await fs.read("/h") == b"g"
        with pytest.raises(UsageError):
            await trash._restore(fs, parsed(add, "restore", "a", "b", "--to", "/h"))
        await fs.trash.put("/h")
        await fs.create("/h")
        await fs.trash.put("/h")
        said()
        await trash._empty(fs, parsed(add, "empty", "--older-than", "1h"))
        assert said() == ["0 entries removed for good"]
        await trash._restore(fs, parsed(add, "restore", "/h"))
        assert await fs.read("/h") == b""  # the newest of that path
        said()
        await trash._empty(fs, parsed(add, "empty", "/h"))
        assert said() == ["1 entry removed for good"]
        assert await trash._keep(fs, parsed(add, "keep", "30d")) == 0

    run(test)
