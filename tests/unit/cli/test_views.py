"""What `nokv snapshot`, `clone`, `workspace`, `rollback` and `--at` write."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.client.loopback import client

from nokv.cli import files, listing, output, snapshot, views
from nokv.cli.client import duration_ns, seconds
from nokv.client import AsyncClient
from nokv.client.reads import ReadHandle
from nokv.errors import NotFound, UsageError

Command = Callable[[AsyncClient, argparse.Namespace], Awaitable[int]]


def run(test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (_, fs):
            await fs.mkdir("/runs/7/sub", parents=True)
            await fs.write_bytes("/runs/7/f", b"old")
            await fs.symlink("f", "/runs/7/link")
            await fs.snapshots.create("/runs/7", "before", ttl_s=3600)
            await fs.write_bytes("/runs/7/f", b"new one")
            await fs.rmdir("/runs/7/sub")
            await test(fs)

    asyncio.run(main())


def parsed(add: Callable[[argparse.ArgumentParser], None], *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(words)


class Shell:
    """Runs commands and returns the lines that they write."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    async def __call__(
        self, handle: ReadHandle, work: Callable[..., Awaitable[int]], options: argparse.Namespace
    ) -> list[str]:
        assert await work(handle, options) == 0
        return self.capsys.readouterr().out.splitlines()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_reading_at_a_snapshot(shell: Shell, tmp_path: Path) -> None:
    async def test(fs: AsyncClient) -> None:
        old = fs.at("before")
        names = await shell(old, listing._ls, parsed(listing.add_ls, "/runs/7"))
        assert names == ["f", "link", "sub"]
        assert await shell(old, listing._ls, parsed(listing.add_ls)) == names
        [row] = await shell(old, listing._stat, parsed(listing.add_stat, "--json", "/runs/7/f"))
        assert json.loads(row)["size"] == 3
        [link] = await shell(old, listing._stat, parsed(listing.add_stat, "--json", "/runs/7/link"))
        assert json.loads(link)["target"] == "f"
        tree = await shell(old, listing._tree, parsed(listing.add_tree))
        assert tree[0] == "/runs/7"
        assert tree[-1] == "1 directory, 2 files"
        [du] = await shell(old, listing._du, parsed(listing.add_du, "--json"))
        assert json.loads(du) == {"path": "/runs/7", "entries": 3, "bytes": 4}
        options = parsed(files.add_get, "-r", "/runs/7", str(tmp_path / "out"))
        await shell(old, files._get, options)
        assert (tmp_path / "out" / "f").read_bytes() == b"old"
        assert await old.read("/runs/7/f") == b"old"

    run(test)


def test_at_is_an_option_of_every_reading_command() -> None:
    for add, words in (
        (listing.add_ls, ["/a"]),
        (listing.add_stat, ["/a"]),
        (listing.add_tree, ["/a"]),
        (listing.add_du, ["/a"]),
        (files.add_cat, ["/a"]),
        (files.add_get, ["/a", "b"]),
    ):
        assert parsed(add, *words).at == ""
        assert parsed(add, "--at", "s", *words).at == "s"


def test_snapshots(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        add = snapshot.add_snapshot
        said = await shell(fs, snapshot._create, parsed(add, "create", "/runs", "--name", "held",
                                                        "--hold"))  # fmt: skip
        assert said[0].startswith("snapshot held of /runs at version ")
        assert said[0].endswith(", held until it is deleted")
        said = await shell(fs, snapshot._create, parsed(add, "create", "/", "--name", "w",
                                                        "--ttl", "36h"))  # fmt: skip
        assert said[0].endswith(", for 1 d 12 h")
        said = await shell(fs, snapshot._create, parsed(add, "create", "/", "--name", "week"))
        assert said[0].endswith(", for 7 d")
        rows = await shell(fs, snapshot._list, parsed(add, "list"))
        assert [row.split()[0] for row in rows] == ["before", "held", "w", "week"]
        assert rows[1].split("  ")[-1] == "held, by uid 0"
        [row] = await shell(fs, snapshot._list, parsed(add, "list", "/runs/7", "--json"))
        fields = json.loads(row)
        assert (fields["name"], fields["path"]) == ("before", "/runs/7")
        assert 3590 < fields["left_s"] <= 3600
        assert (fields["automatic"], fields["maker"]) == (False, 0)
        await shell(fs, snapshot._renew, parsed(add, "renew", "before", "w", "--hold"))
        rows = await shell(fs, snapshot._list, parsed(add, "list", "--json"))
        assert [json.loads(row)["left_s"] is None for row in rows] == [True, True, True, False]
        await shell(fs, snapshot._delete, parsed(add, "delete", "w", "held"))
        assert [row.name for row in await fs.snapshots.list()] == ["before", "week"]
        assert await snapshot._delete(fs, parsed(add, "delete", "w")) == 1
        assert "nokv: " in shell.capsys.readouterr().err

    run(test)


def test_a_path_that_is_no_text(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.workspaces.create(b"/\xff")
        await fs.snapshots.create(b"/\xff", "odd")
        listed = parsed(snapshot.add_snapshot, "list", "--json")
        rows = [json.loads(row) for row in await shell(fs, snapshot._list, listed)]
        assert (rows[1]["path"], rows[1]["path_b64"]) == ("/\udcff", "L/8=")
        listed = parsed(views.add_workspace, "list", "--json")
        [row] = await shell(fs, views._list, listed)
        assert json.loads(row)["path_b64"] == "L/8="

    run(test)


def test_clones_and_workspaces(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        clone, workspace = views.add_clone, views.add_workspace
        said = await shell(fs, views._clone, parsed(clone, "/runs/7", "/runs/8", "--at", "before"))
        assert said == ["/runs/8 is a copy of /runs/7 at snapshot before, view 1"]
        assert await fs.read("/runs/8/f") == b"old"
        said = await shell(fs, views._clone, parsed(clone, "/runs/7", "/runs/9", "--json"))
        fields = json.loads(said[0])
        assert (fields["path"], fields["view"]) == ("/runs/9", 2)
        said = await shell(fs, views._create, parsed(workspace, "create", "/ws", "-m", "700"))
        assert said == ["/ws is an empty workspace, view 3"]
        assert (await fs.stat("/ws")).mode & 0o777 == 0o700
        words = ("create", "/ws/a", "--from", "/runs/8")
        said = await shell(fs, views._create, parsed(workspace, *words))
        assert said == ["/ws/a is a copy of /runs/8, view 4"]
        rows = await shell(fs, views._list, parsed(workspace, "list"))
        assert [row.split("  ")[:3] for row in rows] == [
            ["/runs/8", "view 1", "copy of /runs/7"],
            ["/runs/9", "view 2", "copy of /runs/7"],
            ["/ws", "view 3", "workspace of nothing"],
            ["/ws/a", "view 4", "copy of /runs/7"],  # of /runs/8, which changed nothing of its own
        ]
        row = json.loads((await shell(fs, views._list, parsed(workspace, "list", "--json")))[0])
        assert (row["path"], row["origin"], row["origin_path"], row["entries"]) == (
            "/runs/8",
            0,
            "/runs/7",
            3,
        )
        await fs.rename("/runs/7", "/seven\n")
        rows = await shell(fs, views._list, parsed(workspace, "list"))
        assert rows[0].split("  ")[2] == "copy of /seven\\n"
        await fs.rename("/seven\n", "/runs/7")
        held = parsed(snapshot.add_snapshot, "list")
        [row] = await shell(fs, snapshot._list, held)
        assert row.endswith(", 2 clones (/runs/8, /ws/a)")
        held.json = True
        fields = json.loads((await shell(fs, snapshot._list, held))[0])
        assert (fields["clones"], fields["backup_names"]) == (2, [])
        assert fields["clone_paths"] == ["/runs/8", "/ws/a"]
        await fs.write_bytes("/runs/9/big", bytes(100_000))
        rows = await shell(fs, views._list, parsed(workspace, "list", "--own"))
        assert [row.rsplit(", ", 1)[1] for row in rows] == [
            "0 B its own",
            "97.7 KiB its own",
            "0 B its own",
            "0 B its own",
        ]
        await shell(fs, views._delete, parsed(workspace, "delete", "/ws"))
        assert [row.split()[0] for row in await shell(fs, views._list,
                parsed(workspace, "list"))] == ["/runs/8", "/runs/9"]  # fmt: skip
        assert await views._delete(fs, parsed(workspace, "delete", "/runs", "/none")) == 1
        complaints = shell.capsys.readouterr().err.splitlines()
        assert complaints[0] == "nokv: /runs is no workspace"
        with pytest.raises(UsageError):
            await views._create(fs, parsed(workspace, "create", "/x", "--at", "before"))
        with pytest.raises(UsageError):
            await views._create(fs, parsed(workspace, *words, "-m", "700"))

    run(test)


def test_rollback_says_how_to_undo_it(shell: Shell) -> None:
    async def test(fs: AsyncClient) -> None:
        said = await shell(fs, views._rollback, parsed(views.add_rollback, "/runs/7", "before"))
        assert said[0] == "/runs/7 is what snapshot before shows"
        assert await fs.read("/runs/7/f") == b"old"
        begin, _, command = said[1].partition(": nokv rollback ")
        assert begin == "to undo it, within 7 d"
        words = command.split()
        await shell(fs, views._rollback, parsed(views.add_rollback, *words, "--json"))
        assert await fs.read("/runs/7/f") == b"new one"
        rows = await shell(fs, snapshot._list, parsed(snapshot.add_snapshot, "list", "/runs/7"))
        assert sum(row.endswith("automatic") for row in rows) == 2
        with pytest.raises(NotFound):
            await views._rollback(fs, parsed(views.add_rollback, "/runs/7", "none"))

    run(test)


@pytest.mark.parametrize(
    ("length_s", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (86_400 + 59, "1 d"),
        (7 * 86_400, "7 d"),
        (86_400 * 6 + 82_900, "6 d 23 h"),
    ],
)
def test_durations(length_s: float, text: str) -> None:
    assert output.duration(length_s) == text


def test_durations_are_read() -> None:
    assert duration_ns("7d") == 7 * 86_400 * 10**9
    for bad in ("7", "36501d", "999999999w"):
        with pytest.raises(argparse.ArgumentTypeError):
            duration_ns(bad)
    assert seconds("0.5") == 0.5
    for bad in ("nan", "-1", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            seconds(bad)
