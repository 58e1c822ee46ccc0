"""What `nokv diff`, `history` and `revert` write."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.client.loopback import client

from nokv.cli import diff
from nokv.client import AsyncClient


def run(test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (_, fs):
            await fs.mkdir("/d/in", parents=True)
            await fs.write_bytes("/d/f", b"1234")
            await fs.write_bytes("/d/in/g", b"")
            await fs.snapshots.create("/d", "one")
            await fs.write_bytes("/d/f", b"123456")
            await fs.rename("/d/in", "/d/moved")
            await fs.mkdir("/d/new")
            await fs.write_bytes("/d/new/h", b"12")
            await fs.unlink("/d/moved/g")
            await test(fs)

    asyncio.run(main())


def parsed(add: Callable[[argparse.ArgumentParser], None], *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(words)


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(fs: AsyncClient) -> None:
        assert await diff._diff(fs, parsed(diff.add_diff, "one", "/d")) == 0
        wanted = ["M  f", "D  in/g", "R  in -> moved", "A  new", "A  new/h"]
        assert capsys.readouterr().out.splitlines() == wanted
        await diff._diff(fs, parsed(diff.add_diff, "one", "--shallow"))
        assert capsys.readouterr().out.splitlines() == wanted[:-1]
        await diff._diff(fs, parsed(diff.add_diff, "one", "--stat"))
        assert capsys.readouterr().out.splitlines() == [
            "M  f  4 B -> 6 B",
            "D  in/g  0 B",
            "R  in -> moved  1 entry, 0 B -> directory",
            "A  new  1 entry, 2 B",
            "A  new/h  2 B",
            "2 added, 1 deleted, 1 modified, 1 renamed; files: +4 B",
        ]
        await diff._diff(fs, parsed(diff.add_diff, "/d", "/d", "--stat"))
        assert capsys.readouterr().out == "no change; files: +0 B\n"

    run(test)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(fs: AsyncClient) -> None:
        await diff._diff(fs, parsed(diff.add_diff, "one", "--json", "--shallow"))
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(row["change"], row["path"]) for row in rows] == [
            ("M", "f"),
            ("D", "in/g"),
            ("R", "moved"),
            ("A", "new"),
        ]
        assert rows[0]["what"] == ["data"]
        assert (rows[0]["before"]["size"], rows[0]["after"]["size"]) == (4, 6)
        assert rows[0]["before"]["generation"] < rows[0]["after"]["generation"]
        assert rows[2]["old_path"] == "in"
        assert "after" not in rows[1]
        assert rows[3]["after"]["entries"] == 1

    run(test)


def test_history_and_revert(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(fs: AsyncClient) -> None:
        assert await diff._history(fs, parsed(diff.add_history, "/d/f")) == 0
        now, old = capsys.readouterr().out.splitlines()
        assert now.endswith("now")
        assert old.endswith("snapshot one")
        await diff._history(fs, parsed(diff.add_history, "/d/f", "--json"))
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["live"] for row in rows] == [True, False]
        assert rows[1]["held_by"] == ["snapshot one"]
        assert (rows[1]["size"], rows[1]["uid"]) == (4, 0)
        assert rows[1]["session"] == f"{await fs.session_id():x}"
        assert rows[1]["published_ns"] > 0
        number = str(rows[1]["generation"])
        assert await diff._revert(fs, parsed(diff.add_revert, "/d/f", "--generation", number)) == 0
        assert "4 B" in capsys.readouterr().out
        assert await fs.read_bytes("/d/f") == b"1234"

    run(test)
