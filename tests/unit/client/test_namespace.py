"""The namespace through a client: every method once as it succeeds and as it fails."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.client.loopback import client

import nokv
from nokv.client import AsyncClient
from nokv.errors import (
    AlreadyExists,
    CursorTooOld,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    PermissionDenied,
    PredicateFailed,
    ReadOnly,
)
from nokv.types.commands import Absent, TrimEvents, VersionIs, XattrFlag
from nokv.types.values import At, Caller


def run(test: Callable[[AsyncClient], Awaitable[None]], **how: object) -> None:
    async def main() -> None:
        async with client(**how) as (_, fs):  # type: ignore[arg-type]
            await test(fs)

    asyncio.run(main())


def test_mkdir() -> None:
    async def test(fs: AsyncClient) -> None:
        attr = await fs.mkdir("/a", 0o700)
        assert stat.S_ISDIR(attr.mode)
        assert stat.S_IMODE(attr.mode) == 0o700
        with pytest.raises(AlreadyExists):
            await fs.mkdir("/a")
        assert (await fs.mkdir("/a", exist_ok=True)).inode == attr.inode
        with pytest.raises(NotFound):
            await fs.mkdir("/x/y")
        await fs.mkdir("/x/y/z", parents=True)
        await fs.mkdir("/x/y/w", parents=True)
        with pytest.raises(AlreadyExists):
            await fs.mkdir("/x/y/z", parents=True)
        await fs.mkdir("/x/y/z", parents=True, exist_ok=True)
        await fs.create("/file")
        with pytest.raises(AlreadyExists):
            await fs.mkdir("/file", exist_ok=True)
        with pytest.raises(NotADirectory):
            await fs.mkdir("/file/below/it", parents=True)
        assert await fs.listdir("/x/y") == ["w", "z"]

    run(test)


def test_errors_are_the_builtin_ones_too() -> None:
    async def test(fs: AsyncClient) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await fs.stat("/missing")
        assert isinstance(caught.value, nokv.errors.NotFound)
        with pytest.raises(OSError):  # noqa: PT011  the point is the class
            await fs.rmdir("/missing")

    run(test)


def test_names_of_any_bytes() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.create(b"/\xff\xfe")
        assert await fs.listdir("/") == ["\udcff\udcfe"]
        assert await fs.exists("/\udcff\udcfe")
        (entry,) = [entry async for entry in fs.scandir(b"/")]
        assert entry.name_bytes == b"\xff\xfe"
        await fs.unlink(entry.path)

    run(test)


def test_links() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.write_bytes("/f", b"body")
        await fs.link("/f", "/g")
        assert (await fs.stat("/g")).nlink == 2
        await fs.symlink("f", "/s")
        assert await fs.readlink("/s") == "f"
        assert await fs.is_symlink("/s")
        assert await fs.read("/s") == b"body"
        assert (await fs.lstat("/s")).inode != (await fs.stat("/s")).inode
        await fs.symlink("nowhere", "/dangling")
        assert not await fs.exists("/dangling")
        assert await fs.is_symlink("/dangling")
        with pytest.raises(InvalidArgument):
            await fs.readlink("/f")

    run(test)


def test_removing() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.mkdir("/d/e", parents=True)
        await fs.create("/d/f")
        with pytest.raises(IsADirectory):
            await fs.unlink("/d")
        with pytest.raises(NotEmpty):
            await fs.rmdir("/d")
        with pytest.raises(NotADirectory):
            await fs.rmdir("/d/f")
        await fs.remove("/d/f")
        await fs.unlink("/d/f", missing_ok=True)
        await fs.rmdir("/d/e")
        await fs.mkdir("/d/e/f/g", parents=True)
        await fs.remove_tree("/d")
        await fs.remove_tree("/d", missing_ok=True)
        with pytest.raises(NotFound):
            await fs.remove_tree("/d")
        assert await fs.listdir("/") == []

    run(test)


def test_renaming() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.write_bytes("/a", b"a")
        await fs.write_bytes("/b", b"b")
        with pytest.raises(AlreadyExists):
            await fs.move("/a", "/b")
        await fs.rename("/a", "/b", exchange=True)
        assert (await fs.read("/a"), await fs.read("/b")) == (b"b", b"a")
        await fs.replace("/a", "/b")
        assert await fs.read("/b") == b"b"
        await fs.move("/b", "/c")
        assert await fs.listdir("/") == ["c"]
        with pytest.raises(NotFound):
            await fs.rename("/gone", "/x")

    run(test)


def test_attributes() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.write_bytes("/f", b"0123456789")
        assert stat.S_IMODE((await fs.chmod("/f", 0o640)).mode) == 0o640
        attr = await fs.chown("/f", 7, 8)
        assert (attr.uid, attr.gid) == (7, 8)
        attr = await fs.utime("/f", atime_ns=1, mtime_ns=2)
        assert (attr.atime_ns, attr.mtime_ns) == (1, 2)
        attr = await fs.utime("/f", atime_ns=None)
        assert attr.atime_ns == 1
        assert attr.mtime_ns > 2
        assert (await fs.truncate("/f", 4)).size == 4
        assert (await fs.truncate("/f", 6)).size == 6
        assert await fs.read("/f") == b"0123\0\0"
        await fs.setxattr("/f", "user.a", b"1")
        with pytest.raises(AlreadyExists):
            await fs.setxattr("/f", "user.a", b"2", XattrFlag.CREATE)
        assert await fs.getxattr("/f", "user.a") == b"1"
        assert await fs.listxattr("/f") == ["user.a"]
        await fs.removexattr("/f", "user.a")
        with pytest.raises(NoAttribute):
            await fs.getxattr("/f", "user.a")
        await fs.set_flags("/f", 1)
        with pytest.raises(nokv.errors.Immutable):
            await fs.chmod("/f", 0o600)

    run(test)


def test_special_files_and_bulk_creates() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.mknod("/fifo", stat.S_IFIFO | 0o600)
        assert stat.S_ISFIFO((await fs.stat("/fifo")).mode)
        made = await fs.bulk_create("/", [f"n{number}" for number in range(100)])
        assert made.count == 100
        assert (await fs.stat("/n99")).inode == made.first + 99
        with pytest.raises(AlreadyExists):
            await fs.bulk_create("/", ["fresh", "n0"])
        assert not await fs.exists("/fresh")

    run(test)


def test_predicates() -> None:
    async def test(fs: AsyncClient) -> None:
        attr = await fs.create("/f", predicates=(Absent(At(path=(b"g",))),))
        await fs.chmod("/f", 0o600)
        with pytest.raises(PredicateFailed):
            await fs.unlink("/f", predicates=(VersionIs(At(path=(b"f",)), attr.version),))
        now = await fs.stat("/f")
        await fs.unlink("/f", predicates=(VersionIs(At(path=(b"f",)), now.version),))

    run(test)


def test_the_caller_is_checked() -> None:
    async def test(fs: AsyncClient) -> None:
        with pytest.raises(PermissionDenied):
            await fs.mkdir("/a")
        assert await fs.access("/", os.R_OK | os.X_OK)
        assert not await fs.access("/", os.W_OK)
        assert await fs.access("/")
        assert not await fs.access("/gone")

    run(test, caller=Caller(1000, 1000))


def test_listings_are_paged_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nokv.client.reads.PAGE", 7)

    async def test(fs: AsyncClient) -> None:
        names = [f"{number:03}" for number in range(50)]
        await fs.bulk_create("/", names)
        await fs.mkdir("/dir")
        seen = []
        async for entry in fs.scandir("/"):
            assert entry.attr is not None
            seen.append(entry.name)
            if entry.name == "010":
                await fs.unlink("/011")
                await fs.unlink("/040")
                await fs.create("/012-new")
        assert seen == sorted(seen)
        # The page that held 011 was read before it went; what stayed is there exactly once.
        assert [n for n in seen if n not in {"011", "040", "012-new"}] == [
            *(n for n in names if n not in {"011", "040"}),
            "dir",
        ]
        assert "040" not in seen
        page = await fs.read_page("/", b"003", 2)
        assert [entry.name for entry in page.entries] == [b"004", b"005"]
        with pytest.raises(InvalidArgument):
            await fs.read_page("/", limit=0)
        with pytest.raises(NotFound):
            await fs.listdir("/gone")
        with pytest.raises(NotADirectory):
            await fs.listdir("/000")

    run(test)


async def small_tree(fs: AsyncClient) -> None:
    await fs.mkdir("/a/b/c", parents=True)
    for path in ("/a/1.txt", "/a/b/2.txt", "/a/b/c/3.txt", "/a/.hidden", "/4.md"):
        await fs.create(path)
    await fs.symlink("/a", "/a/b/loop")


def test_walk() -> None:
    async def test(fs: AsyncClient) -> None:
        await small_tree(fs)
        found = [
            (path, [e.name for e in directories], [e.name for e in others])
            async for path, directories, others in fs.walk("/")
        ]
        assert found == [
            ("/", ["a"], ["4.md"]),
            ("/a", ["b"], [".hidden", "1.txt"]),
            ("/a/b", ["c"], ["2.txt", "loop"]),
            ("/a/b/c", [], ["3.txt"]),
        ]
        pruned = []
        async for path, directories, _ in fs.walk("/a"):
            pruned.append(path)
            directories[:] = [entry for entry in directories if entry.name != "c"]
        assert pruned == ["/a", "/a/b"]
        with pytest.raises(NotFound):
            [path async for path in fs.walk("/gone")]

    run(test)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*", ["/4.md", "/a"]),
        ("/a/*.txt", ["/a/1.txt"]),
        ("/a/.h*", ["/a/.hidden"]),
        ("/**/*.txt", ["/a/1.txt", "/a/b/2.txt", "/a/b/c/3.txt"]),
        ("/a/**", ["/a", "/a/1.txt", "/a/b", "/a/b/2.txt", "/a/b/c", "/a/b/c/3.txt", "/a/b/loop"]),
        ("/a/[bc]/?.txt", ["/a/b/2.txt"]),
        ("/4.md", ["/4.md"]),
        ("/nothing", []),
        ("/gone/*", []),
        ("/*/b", ["/a/b"]),
    ],
)
def test_glob(pattern: str, expected: list[str]) -> None:
    async def test(fs: AsyncClient) -> None:
        await small_tree(fs)
        assert sorted([path async for path in fs.glob(pattern)]) == expected

    run(test)


def test_counts() -> None:
    async def test(fs: AsyncClient) -> None:
        await small_tree(fs)
        await fs.write_bytes("/a/b/2.txt", b"12345")
        usage = await fs.usage("/a")
        assert (usage.entries, usage.bytes) == (7, 5 + 2)
        counts = await fs.statfs()
        assert counts.files == 1 + 9

    run(test)


def test_events() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            page = await fs.read_events(0)
            await fs.mkdir("/b")
            await fs.mkdir("/c")
            assert [event.name async for event in fs.events(page.cursor)] == [b"b", b"c"]
            running.internal(TrimEvents(page.cursor + 1, 100))
            with pytest.raises(CursorTooOld):
                await fs.read_events(0)

    asyncio.run(main())


def test_a_pinned_view_shows_one_version() -> None:
    async def test(fs: AsyncClient) -> None:
        await fs.mkdir("/d")
        await fs.write_bytes("/d/f", b"old")
        await fs.write_bytes("/d/big", bytes(10_000))
        async with fs.pinned() as view:
            await fs.write_bytes("/d/f", b"new")
            await fs.write_bytes("/d/big", b"")
            await fs.remove_tree("/d")
            assert not await fs.exists("/d")
            assert await view.read("/d/f") == b"old"
            assert await view.read("/d/big") == bytes(10_000)
            assert await view.listdir("/d") == ["big", "f"]
            assert [path async for path in view.glob("/*/f")] == ["/d/f"]
            async with view.open("/d/f") as file:
                assert await file.read() == b"old"
            assert view.version > 0
            with pytest.raises(ReadOnly, match="this handle"):
                await view.open("/d/f", "wb")
            with pytest.raises(ReadOnly, match="watch"):
                view.watch("/")
            with pytest.raises(ReadOnly, match="mkdir"):
                await getattr(view, "mkdir")("/d")  # noqa: B009  a type checker refuses it too

    run(test)
