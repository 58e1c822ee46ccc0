"""What `nokv cp`, `quota`, `du` and `mv` between views do and write."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.cli.test_views import Shell, parsed
from tests.unit.client.loopback import client

from nokv.cli import copy, listing, names, quota
from nokv.client import AsyncClient
from nokv.errors import SnapshotGone, UsageError


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def run(test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (_, fs):
            await fs.mkdir("/d/in", 0o750, parents=True)
            await fs.write_bytes("/d/f", b"old")
            await fs.write_bytes("/d/in/g", b"12345")
            await fs.symlink("f", "/d/link")
            await fs.snapshots.create("/d", "s")
            await fs.write_bytes("/d/f", b"newer")
            await test(fs)

    asyncio.run(main())


async def contents(fs: AsyncClient, path: str) -> list[str]:
    return [found async for found in fs.glob(f"{path}/**")]


def test_cp(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        async def cp(*words: str) -> int:
            return await copy._cp(fs, parsed(copy.add_cp, *words))

        assert await cp("/d/f", "/g") == 0
        assert await fs.read("/g") == b"newer"
        assert await cp("/none", "/d/f", "/d/in/g", "/d/in") == 1  # what fails stops nothing else
        assert await fs.read("/d/in/f") == b"newer"
        assert await fs.read("/d/in/g") == b"12345"  # onto itself
        assert shell.capsys.readouterr().err.startswith("nokv: /none: ")
        assert await cp("-n", "/d/f", "/g") == 1
        assert await cp("--at", "s", "/d/f", "/g") == 0
        assert await fs.read("/g") == b"old"
        assert await cp("/d", "/e") == 1
        shell.capsys.readouterr()
        assert await cp("-r", "/d", "/e") == 0
        below = ["", "/f", "/in", "/in/f", "/in/g", "/link"]
        assert await contents(fs, "/e") == [f"/e{one}" for one in below]
        assert (await fs.stat("/e/in")).mode & 0o777 == 0o750
        assert await cp("-r", "--at", "s", "/d", "/e") == 0  # into the directory that is there
        assert await fs.read("/e/d/f") == b"old"
        assert await cp("-r", "/d", "/d/in") == 1
        assert "into itself" in shell.capsys.readouterr().err
        assert await cp("/none", "/x") == 1
        with pytest.raises(SnapshotGone):
            await cp("--at", "none", "/d/f", "/x")

    run(test)


def test_quota(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        add = quota.add_quota
        words = ("set", "/d", "--bytes", "1KiB", "--entries", "10")
        assert await shell(fs, quota._set, parsed(add, *words)) == []
        assert await shell(fs, quota._get, parsed(add, "get", "/d")) == [
            "11 B of 1.0 KiB  4 entries of 10  /d"
        ]
        [row] = await shell(fs, quota._get, parsed(add, "get", "/d/in", "--json"))
        assert json.loads(row) == {
            "path": "/d/in",
            "entries": 1,
            "bytes": 5,
            "entries_max": None,
            "bytes_max": None,
        }
        await shell(fs, quota._clear, parsed(add, "clear", "/d"))
        assert (await shell(fs, quota._get, parsed(add, "get", "/d")))[0].startswith(
            "11 B of no limit  4 entries of no limit"
        )
        with pytest.raises(UsageError):
            await quota._set(fs, parsed(add, "set", "/d"))

    run(test)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("4096", 4096), ("7B", 7), ("1K", 1024), ("2Mi", 2 << 20), ("10GiB", 10 << 30)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert quota.size_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "x", "-1", "1KB", "1.5G", "iB", "1X"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        quota.size_bytes(text)


def test_du_to_a_depth(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.mkdir("/d/in/deep")
        rows = await shell(fs, listing._du, parsed(listing.add_du, "--json", "--depth", "2"))
        assert [json.loads(row)["path"] for row in rows] == ["/", "/d", "/d/in"]
        rows = await shell(fs.at("s"), listing._du, parsed(listing.add_du, "-d", "9"))
        assert [row.split()[-1] for row in rows] == ["/d", "/d/in"]

    run(test)


def test_mv_between_views() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.workspaces.create("/ws")
        assert await names._mv(fs, parsed(names.add_mv, "/d/f", "/d/link", "/ws")) == 0
        assert await fs.listdir("/ws") == ["f", "link"]
        assert await fs.listdir("/d") == ["in"]
        assert await names._mv(fs, parsed(names.add_mv, "/d", "/ws")) == 1

    run(test)
