"""`fs.diff`, `fs.history`, `fs.revert` against the real state machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from msgspec import structs
from tests.unit.client.loopback import client

from nokv.client import AsyncClient, Difference
from nokv.client import diff as module
from nokv.errors import (
    GenerationMismatch,
    InvalidArgument,
    NotFound,
    ReadOnly,
    ResultTooLarge,
)
from nokv.types.diffs import Changed, Holder, HolderKind, Showing
from nokv.types.values import FileType


def run(test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (_, fs):
            await test(fs)

    asyncio.run(main())


async def told(fs: AsyncClient, *sides: str, expand: bool = True) -> list[str]:
    """Return a line of each difference."""
    return [_line(change) async for change in fs.diff(*sides, expand=expand)]


def _line(change: Difference) -> str:
    old = f" < {change.old_path}" if change.old_path is not None else ""
    return f"{change.kind} {change.path}{old}"


async def planted(fs: AsyncClient) -> None:
    """Make a tree, with a workspace in it, and a snapshot `one` of all of it."""
    await fs.mkdir("/run/a/in", parents=True)
    await fs.mkdir("/run/b")
    for path in ("/run/a/f", "/run/a/in/g", "/run/b/h", "/run/b.txt"):
        await fs.write_bytes(path, path.encode())
    await fs.workspaces.create("/run/w")
    await fs.write_bytes("/run/w/x", b"x")
    await fs.snapshots.create("/run", "one")


def test_a_diff_is_in_the_order_of_paths() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        await fs.write_bytes("/run/b.txt", b"other")
        await fs.create("/run/b/z")
        await fs.write_bytes("/run/w/x", b"yy")
        await fs.rename("/run/a", "/run/b/moved")
        await fs.unlink("/run/b/moved/f")
        assert (
            await told(fs, "one", "/run")
            == await told(fs, "one")
            == [
                "D a/f",
                "R b/moved < a",
                "A b/z",
                "M b.txt",
                "M w/x",
            ]
        )
        assert await told(fs, "/run", "one") == [
            "R a < b/moved",
            "A a/f",
            "D b/z",
            "M b.txt",
            "M w/x",
        ]

    run(test)


def test_only_what_is_below_a_path() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        await fs.create("/run/a/new")
        await fs.create("/run/b/new")
        assert await told(fs, "one", "/run", "a") == ["A new"]
        with pytest.raises(NotFound):
            await told(fs, "one", "/run", "none")
        with pytest.raises(InvalidArgument):
            await told(fs, "one", "/run", "/a")

    run(test)


def test_new_and_removed_directories_are_expanded() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        await fs.mkdir("/run/new/deep", parents=True)
        await fs.create("/run/new/deep/file")
        await fs.rename("/run/b", "/run/new/b")
        await fs.create("/run/new/b/added")
        await fs.rename("/run/a/in", "/run/kept")
        await fs.remove_tree("/run/a")
        await fs.remove_tree("/run/w")
        assert await told(fs, "one") == [
            "D a",
            "D a/f",
            "R kept < a/in",
            "A new",
            "R new/b < b",
            "A new/b/added",
            "A new/deep",
            "A new/deep/file",
            "D w",
            "D w/x",
        ]
        shallow = [
            "D a",
            "R kept < a/in",
            "A new",
            "R new/b < b",
            "A new/b/added",
            "D w",
        ]
        assert await told(fs, "one", expand=False) == shallow
        changes = {change.path: change async for change in fs.diff("one", expand=False)}
        after = changes["new"].after
        assert after is not None
        assert (after.file_type, after.entries) == (FileType.DIRECTORY, 5)

    run(test)


def test_what_lay_in_a_directory_that_a_file_replaced_is_told_where_it_lay() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.mkdir("/run/p/x", parents=True)
        await fs.create("/run/p/x/f")
        await fs.create("/run/p/x/g")
        await fs.workspaces.create("/run/w")
        await fs.mkdir("/run/w/d/x", parents=True)
        await fs.create("/run/w/d/x/h")
        await fs.snapshots.create("/run", "one")
        await fs.rename("/run/p/x/f", "/run/p/y")
        await fs.remove_tree("/run/p/x")
        await fs.create("/run/p/x")
        await fs.rename("/run/p", "/run/q")
        await fs.remove_tree("/run/w/d/x")
        await fs.create("/run/w/d/x")
        await fs.rename("/run/w/d", "/run/w/e")
        await fs.rename("/run/w", "/run/v")
        assert await told(fs, "one") == [
            "D p/x/g",
            "R q < p",
            "T q/x",
            "R q/y < p/x/f",
            "R v < w",
            "R v/e < w/d",
            "T v/e/x",
            "D w/d/x/h",
        ]

    run(test)


def test_a_clone_and_its_origin() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        await fs.clone("/run", "/copy")
        assert await told(fs, "/run", "/copy") == []
        await fs.write_bytes("/copy/w/x", b"in the copy")
        await fs.chmod("/copy/b", 0o700)
        await fs.create("/run/a/here")
        assert await told(fs, "/run", "/copy") == ["D a/here", "M b", "M w/x"]
        assert await told(fs, "one", "/copy") == ["M b", "M w/x"]
        (change,) = [one async for one in fs.diff("one", "/copy") if one.path == "b"]
        assert change.what == Changed.ATTRIBUTES

    run(test)


def test_before_and_after_a_rollback() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        await fs.unlink("/run/b/h")
        await fs.create("/run/new")
        automatic = await fs.rollback("/run", "one")
        assert await told(fs, "one", "/run") == []
        assert await told(fs, automatic, "/run") == ["A b/h", "D new"]
        assert await told(fs, "one", automatic) == ["D b/h", "A new"]

    run(test)


def test_pages_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)

    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        names = sorted(f"f{number:03}" for number in range(30))
        await fs.bulk_create("/run", names)
        assert await told(fs, "one") == [f"A {name}" for name in names]
        monkeypatch.setattr(module, "ROWS_MAX", 20)
        with pytest.raises(ResultTooLarge):
            await told(fs, "one")

    run(test)


def test_sides_that_are_no_states_of_one_directory() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        for sides in (("/run/a", "/run/b"), ("one", "/run/a"), ("/run",)):
            with pytest.raises(InvalidArgument):
                await told(fs, *sides)
        with pytest.raises(NotFound):
            await told(fs, "none", "/run")

    run(test)


# ---------------------------------------------------------------- history


def test_history_and_revert() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        first = (await fs.stat("/run/a/f")).generation
        await fs.write_bytes("/run/a/f", b"later")
        await fs.snapshots.create("/run/a", "two")
        await fs.write_bytes("/run/a/f", b"now")
        found = await fs.history("/run/a/f")
        assert [one.live for one in found] == [True, False, False]
        assert [[h.name for h in one.holders] for one in found] == [[], ["two"], ["one"]]
        assert found[2].generation == first
        assert found[2].session == await fs.session_id()
        attr = await fs.revert("/run/a/f", first)
        assert await fs.read_bytes("/run/a/f") == b"/run/a/f"
        assert attr.generation > found[0].generation
        assert (await fs.history("/run/a/f"))[0].generation == attr.generation
        assert await fs.at("two").read_bytes("/run/a/f") == b"later"
        same = await fs.revert("/run/a/f", attr.generation)
        assert same.generation == attr.generation

    run(test)


@pytest.mark.parametrize("target", ["f", "../a/f", "/run/a/f", "other", "up/a//f"])
def test_a_symbolic_link_is_followed_and_stays(target: str) -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        first = (await fs.stat("/run/a/f")).generation
        await fs.symlink("in/../f", "/run/a/other")
        await fs.symlink("..", "/run/a/up")
        await fs.symlink(target, "/run/a/link")
        await fs.write_bytes("/run/a/f", b"later")
        assert [one.generation for one in await fs.history("/run/a/link")][1:] == [first]
        attr = await fs.revert("/run/a/link", first)
        assert await fs.read_bytes("/run/a/f") == b"/run/a/f"
        assert attr.inode == (await fs.stat("/run/a/f")).inode
        assert await fs.readlink("/run/a/link") == target

    run(test)


def test_a_generation_that_nothing_shows_is_not_revived() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        first = (await fs.stat("/run/a/f")).generation
        await fs.write_bytes("/run/a/f", b"later")
        await fs.snapshots.delete("one")
        assert [one.live for one in await fs.history("/run/a/f")] == [True]
        with pytest.raises(NotFound, match=f"generation {first}"):
            await fs.revert("/run/a/f", first)
        await fs.snapshots.create("/run", "two")
        with pytest.raises(ReadOnly):
            await fs.at("two").revert("/run/a/f", first)  # type: ignore[attr-defined]

    run(test)


def test_what_clones_keep_is_in_the_history() -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        await fs.snapshots.delete("one")
        made = await fs.clone("/run", "/copy")
        await fs.write_bytes("/run/a/f", b"later")
        _, old = await fs.history("/run/a/f")
        assert [(h.kind, h.number) for h in old.holders] == [(HolderKind.CLONE, made.view)]
        await fs.revert("/run/a/f", old.generation)
        assert await fs.read_bytes("/run/a/f") == b"/run/a/f"

    run(test)


def test_a_revert_does_not_lose_a_publish_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fs: AsyncClient) -> None:
        await planted(fs)
        first = (await fs.stat("/run/a/f")).generation
        await fs.write_bytes("/run/a/f", b"seen")
        history = fs.history

        async def raced(path: str) -> list[module.Generation]:
            found = await history(path)
            await fs.write_bytes(path, b"not seen")
            return found

        monkeypatch.setattr(fs, "history", raced)
        with pytest.raises(GenerationMismatch):
            await fs.revert("/run/a/f", first)
        assert await fs.read_bytes("/run/a/f") == b"not seen"

    run(test)


def test_who_keeps_a_generation_in_several_views_is_told_once() -> None:
    backup, clone = Holder(HolderKind.BACKUP), Holder(HolderKind.CLONE, "", 2)
    one = Showing(0, 2, 5, 9, 10, 0, 0, 0, 0, b"", 0, (backup,))
    both = module._both(one, structs.replace(one, view=2, holders=(backup, clone)))
    assert both.holders == (backup, clone)
