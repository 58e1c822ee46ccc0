"""Snapshots, clones, workspaces and rollback through a client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.client.loopback import Cluster, Fault, client

from nokv.client import AsyncClient, ClientConfig, views
from nokv.client.core import Core
from nokv.client.options import Options, find_snapshot
from nokv.client.readonly import CHANGES
from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    NotFound,
    NotPermitted,
    ObjectMissing,
    ReadOnly,
    SnapshotGone,
    Stale,
    VersionNotPinned,
)
from nokv.types.values import Caller
from nokv.types.views import ExpireSnapshots, SnapshotReply

BIG = bytes(range(256)) * 400
"""Too much for the metadata: an object."""


def run(test: Callable[[AsyncClient, Cluster], Awaitable[None]], **how: object) -> None:
    async def main() -> None:
        async with client(**how) as (running, fs):  # type: ignore[arg-type]
            await test(fs, running)

    asyncio.run(main())


async def populate(fs: AsyncClient) -> None:
    """A run with a small and a large file, a directory and links."""
    await fs.mkdir("/runs/7/sub", parents=True)
    await fs.write_bytes("/runs/7/small", b"old")
    await fs.write_bytes("/runs/7/sub/big", BIG)
    await fs.symlink("sub/big", "/runs/7/link")
    await fs.symlink("../../out", "/runs/7/sub/up")
    await fs.symlink("/runs/7/small", "/runs/7/absolute")
    await fs.write_bytes("/runs/out", b"outside")
    await fs.setxattr("/runs/7/small", "user.note", b"v1")


async def spoil(fs: AsyncClient) -> None:
    """Change everything of it."""
    await fs.write_bytes("/runs/7/small", b"new")
    await fs.setxattr("/runs/7/small", "user.note", b"v2")
    await fs.remove_tree("/runs/7/sub")
    await fs.unlink("/runs/7/link")
    await fs.write_bytes("/runs/7/later", b"later")


def test_a_snapshot_is_read_under_its_own_paths(tmp_path: Path) -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await populate(fs)
        made = await fs.snapshots.create("/runs/7/", "before-sweep")
        await spoil(fs)
        running.reap()
        old = fs.at("before-sweep")
        assert old.name == "before-sweep"
        assert (await old.info()).version == made.version
        assert await old.read("/runs/7/small") == b"old"
        assert await old.read_text("/runs/./7/small") == "old"
        assert await old.listdir("/runs/7") == ["absolute", "link", "small", "sub"]
        assert await old.read_bytes("/runs/7/link") == BIG
        assert await old.read("/runs/7/sub/up") == b"outside"
        assert await old.read("/runs/7/absolute") == b"old"
        assert await old.readlink("/runs/7/link") == "sub/big"
        assert (await old.stat("/runs/7/link")).size == len(BIG)
        assert (await old.lstat("/runs/7/link")).size == len("sub/big")
        assert await old.getxattr("/runs/7/small", "user.note") == b"v1"
        assert await old.listxattr("/runs/7/small") == ["user.note"]
        assert (await old.usage("/runs/7")).entries == 6
        assert (await fs.usage("/runs/7")).entries == 3
        assert (await old.read_page("/runs/7/sub/", limit=1)).entries[0].name == b"big"
        assert await old.is_dir("/runs/7/sub")
        assert await old.access("/runs/7/small", 4)
        assert not await old.exists("/runs/7/later")
        walked = [path async for path, _, _ in old.walk("/runs/7")]
        assert walked == ["/runs/7", "/runs/7/sub"]
        assert [p async for p in old.glob("/runs/7/**/big")] == ["/runs/7/sub/big"]
        async with old.open("/runs/7/sub/big") as file:
            assert await file.read() == BIG
        await old.get_file("/runs/7/sub/big", tmp_path / "big")
        assert (tmp_path / "big").read_bytes() == BIG
        assert await old.within(5).stale(10).read("/runs/7/small") == b"old"

    run(test)


def test_paths_outside_of_a_snapshot() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        for path in ("/", "/runs", "/runs/out", "/runs/77", "/other"):
            with pytest.raises(NotFound, match="does not show") as caught:
                await fs.at("s").stat(path)
            assert caught.value.hint == "it shows /runs/7"
            assert not await fs.at("s").exists(path)
        await fs.snapshots.create("/", "whole", hold=True)
        assert await fs.at("whole").read("/runs/out") == b"outside"
        assert await fs.at("whole").listdir() == ["runs"]

    run(test)


def test_a_snapshot_of_a_name_that_is_no_text() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await fs.mkdir(b"/\xff")
        await fs.write_bytes(b"/\xff/\xfe", b"old")
        await fs.snapshots.create(b"/\xff", "s")
        await fs.write_bytes(b"/\xff/\xfe", b"new")
        assert await fs.at("s").read(b"/\xff/\xfe") == b"old"
        assert (await fs.snapshots.get("s")).path == b"/\xff"
        await fs.rollback(b"/\xff", "s")
        assert await fs.read(b"/\xff/\xfe") == b"old"
        await fs.clone(b"/\xff", "/c", at="s")
        assert await fs.read(b"/c/\xfe") == b"old"

    run(test)


def test_a_snapshot_never_changes() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        old = fs.at("s")
        for name in CHANGES:
            with pytest.raises(ReadOnly, match=name) as caught:
                await getattr(old, name)("/runs/7/small")
            assert "clone" in caught.value.hint
        for mode in ("wb", "xb", "ab", "w"):
            with pytest.raises(ReadOnly):
                await old.open("/runs/7/small", mode)

    run(test)


def test_snapshots_are_listed_renewed_and_deleted() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "b", ttl_s=60)
        await fs.snapshots.create("/runs", "a", hold=True)
        with pytest.raises(AlreadyExists):
            await fs.snapshots.create("/runs", "a")
        rows = await fs.snapshots.list()
        assert [(row.name, row.path) for row in rows] == [("a", b"/runs"), ("b", b"/runs/7")]
        assert [row.name for row in await fs.snapshots.list("/runs/7")] == ["b"]
        assert [row.name for row in await fs.snapshots.list("/run")] == []
        assert rows[0].left_s is None
        assert 59 < (rows[1].left_s or 0) <= 60
        await fs.snapshots.renew("b", ttl_s=1000)
        assert 999 < ((await fs.snapshots.get("b")).left_s or 0) <= 1000
        await fs.snapshots.renew("b", hold=True)
        assert (await fs.snapshots.get("b")).left_s is None
        await fs.snapshots.delete("b")
        for call in (fs.snapshots.get, fs.snapshots.delete, fs.snapshots.renew):
            with pytest.raises(NotFound):
                await call("b")
        for bad in (0.5, float("nan"), float("inf"), -1.0):
            with pytest.raises(InvalidArgument):
                await fs.snapshots.create("/runs", "c", ttl_s=bad)
        with pytest.raises(InvalidArgument, match="both"):
            await fs.snapshots.create("/runs", "c", ttl_s=5, hold=True)
        with pytest.raises(InvalidArgument):
            await fs.snapshots.create("/runs", "rollback-1")
        with pytest.raises(NotFound):
            await fs.snapshots.create("/none", "c")

    run(test)


def test_more_snapshots_than_a_page() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        names = [f"s{number:04}" for number in range(600)]
        await asyncio.gather(*(fs.snapshots.create("/", name) for name in names))
        assert [row.name for row in await fs.snapshots.list()] == names

    run(test)


def test_what_is_not_there_is_told() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        with pytest.raises(SnapshotGone, match="no snapshot 'none'") as caught:
            await fs.at("none").read("/x")
        assert caught.value.hint == "see what there is: nokv snapshot list"
        with pytest.raises(SnapshotGone):  # a missing snapshot is not a missing file
            await fs.at("none").exists("/x")

    run(test)


def test_a_lease_that_ends_while_it_is_read() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s", ttl_s=60)
        old = fs.at("s")
        listing = old.scandir("/runs/7")
        assert (await anext(listing)).name == "absolute"
        async with old.open("/runs/7/sub/big") as file:
            assert await file.pread(0, 4) == BIG[:4]
            await fs.remove_tree("/runs/7/sub")
            running.cluster_ns += 61 * 10**9
            running.internal(ExpireSnapshots(100))
            running.reap()
            for read in (
                old.read("/runs/7/small"),
                old.stat("/runs/7"),
                old.listdir("/runs/7"),
                old.exists("/runs/7"),
                old.usage("/runs/7"),
                old.get_file("/runs/7/small", "/nowhere/x"),
            ):
                with pytest.raises(SnapshotGone, match="lease ended") as caught:
                    await read
                assert "--hold" in caught.value.hint
            # Its objects are there until they are collected: right bytes, or an error.
            assert await file.pread(50_000, 4) == BIG[50_000:50_004]
            await collect(running)
            with pytest.raises(SnapshotGone):
                await file.pread(90_000, 20_000)
            with pytest.raises(SnapshotGone):
                [piece async for piece in file.chunks()]

    run(test, config=ClientConfig(deadline_s=20.0, cache_bytes=0))


async def collect(running: Cluster) -> None:
    """Delete every object, as the collector would once nothing holds it."""
    page = await running.store.inner.list("blocks/")
    await running.store.inner.delete([found.name for found in page.objects])


def test_a_lost_object_of_a_snapshot_is_no_ended_lease() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        async with fs.at("s").open("/runs/7/sub/big") as file:
            await collect(running)
            with pytest.raises(ObjectMissing):
                await file.read()

    run(test)


def test_a_snapshot_made_anew_is_another_one() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        old = fs.at("s")
        assert await old.read("/runs/7/small") == b"old"
        await spoil(fs)
        await fs.snapshots.delete("s")
        await fs.snapshots.create("/runs/7", "s")
        with pytest.raises(SnapshotGone):
            await old.read("/runs/7/small")
        with pytest.raises(SnapshotGone, match="anew"):
            await old.within(5).read("/runs/7/small")
        assert await fs.at("s").read("/runs/7/small") == b"new"

    run(test)


def test_a_link_that_leads_out_of_a_workspace_snapshot() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await fs.write_bytes("/base", b"base")
        await fs.workspaces.create("/ws")
        await fs.symlink("/base", "/ws/out")
        await fs.snapshots.create("/ws", "s")
        with pytest.raises(VersionNotPinned, match="leads out") as caught:
            await fs.at("s").read("/ws/out")
        assert not isinstance(caught.value, SnapshotGone)

    run(test)


def test_clone() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        await fs.write_bytes("/runs/7/small", b"new")
        made = await fs.clone("/runs/7", "/runs/8")
        assert (await fs.stat("/runs/8")).view == made.view
        assert await fs.read("/runs/8/small") == b"new"
        assert await fs.read("/runs/8/link") == BIG
        await fs.clone("/runs/7", "/runs/9", at="s")
        assert await fs.read("/runs/9/small") == b"old"
        await fs.write_bytes("/runs/9/small", b"9")
        await fs.append("/runs/8/sub/big", b"more")
        assert await fs.read("/runs/7/small") == b"new"
        assert await fs.read("/runs/8/sub/big") == BIG + b"more"
        assert await fs.read("/runs/9/sub/big") == BIG
        await fs.clone("/runs/9", "/runs/10")
        assert await fs.read("/runs/10/small") == b"9"
        assert (await fs.snapshots.get("s")).clones == 1
        with pytest.raises(AlreadyExists):
            await fs.clone("/runs/7", "/runs/8")
        with pytest.raises(NotFound, match="not of") as caught:
            await fs.clone("/runs/7/sub", "/x", at="s")
        assert caught.value.hint == "it is of /runs/7"
        with pytest.raises(NotFound):
            await fs.clone("/runs/7", "/x", at="none")
        with pytest.raises(InvalidArgument):
            await fs.clone("/runs/7", "/")

    run(test)


def test_a_clone_is_of_the_snapshot_that_was_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")

        async def remake(core: Core, options: Options, name: str) -> SnapshotReply:
            found = await find_snapshot(core, options, name)
            await fs.snapshots.delete(name)
            await fs.snapshots.create("/runs/7/sub", name)
            return found

        monkeypatch.setattr(views, "find_snapshot", remake)
        with pytest.raises(NotFound, match="made since"):
            await fs.clone("/runs/7", "/x", at="s")
        assert not await fs.exists("/x")

    run(test)


def test_a_clone_at_a_snapshot_goes_by_the_directory() -> None:
    """Wherever it was moved, through a link, and after rollbacks; another one is refused."""

    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        await fs.symlink("/runs/7", "/link")
        await fs.clone("/link", "/by-link", at="s")
        await fs.rename("/runs/7", "/moved")
        await fs.clone("/moved", "/by-move", at="s")
        await fs.clone("/runs/7", "/by-path", at="s")  # nothing is there any more
        await fs.write_bytes("/moved/small", b"new")
        await fs.rollback("/moved", "s")
        await fs.rename("/moved", "/again")
        await fs.snapshots.create("/again", "t")
        for snapshot in ("s", "t"):
            await fs.clone("/again", f"/rolled-{snapshot}", at=snapshot)
        for path in ("/by-link", "/by-move", "/by-path", "/rolled-s", "/rolled-t"):
            assert await fs.read(f"{path}/small") == b"old"
        for other in ("/again/sub", "/by-link", "/runs"):
            with pytest.raises(NotFound, match="snapshot 's' is not of") as caught:
                await fs.clone(other, "/x", at="s")
            assert caught.value.hint == "it is of /runs/7"

    run(test)


def test_workspaces() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await fs.mkdir("/agents/plain", parents=True)
        a1 = await fs.workspaces.create("/agents/a1")
        await fs.write_bytes("/agents/a1/f", b"1")
        a2 = await fs.clone("/agents/a1", "/agents/a2")
        inner = await fs.workspaces.create("/agents/a2/inner")
        rows = {row.path: row for row in await fs.workspaces.list()}
        assert {path: row.view for path, row in rows.items()} == {
            b"/agents/a1": a1.view,
            b"/agents/a2": a2.view,
            b"/agents/a2/inner": inner.view,
        }
        assert rows[b"/agents/a1"].origin == -1
        assert rows[b"/agents/a2"].origin == a1.view
        for path in ("/agents/plain", "/agents/a1/f", "/", "/agents"):
            with pytest.raises(InvalidArgument):
                await fs.workspaces.delete(path)
        with pytest.raises(NotFound):
            await fs.workspaces.delete("/agents/none")
        await fs.workspaces.delete("/agents/a1")
        assert await fs.listdir("/agents") == ["a2", "plain"]
        assert await fs.read("/agents/a2/f") == b"1"

    run(test)


def test_a_workspace_that_changes_while_it_is_deleted() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.workspaces.create("/ws")
        busy = 0

        def change(*_: object) -> None:
            nonlocal busy
            busy += 1

        running.on_read = change
        async with running.connect() as other:
            deletion = asyncio.create_task(fs.workspaces.delete("/ws"))
            while not deletion.done():
                try:
                    await other.create(f"/ws/f{busy}")
                except (NotFound, AlreadyExists):
                    await asyncio.sleep(0)
            await deletion
        assert not await fs.exists("/ws")

    run(test)


def test_rollback_and_back() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.snapshots.create("/runs/7", "s")
        await spoil(fs)
        async with fs.open("/runs/7/small") as file:
            undo = await fs.rollback("/runs/7", "s", keep_s=3600)
            assert await file.read() == b"new"
        assert await fs.read("/runs/7/small") == b"old"
        assert await fs.read("/runs/7/sub/big") == BIG
        kept = await fs.snapshots.get(undo)
        assert kept.automatic
        assert kept.path == b"/runs/7"
        assert await fs.at(undo).read("/runs/7/later") == b"later"
        again = await fs.rollback("/runs/7", undo)
        assert again != undo
        assert await fs.read("/runs/7/later") == b"later"
        assert await fs.read("/runs/7/small") == b"new"
        with pytest.raises(InvalidArgument):
            await fs.rollback("/runs", "s")
        with pytest.raises(InvalidArgument):
            await fs.rollback("/", "s")
        with pytest.raises(NotFound):
            await fs.rollback("/runs/7", "none")

    run(test)


def test_only_the_owner_rolls_back_and_deletes() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.mkdir("/d", 0o777)
        await fs.chmod("/", 0o777)
        await fs.snapshots.create("/d", "s")
        async with running.connect(caller=Caller(uid=5, gid=5)) as other:
            for call in (other.rollback("/d", "s"), other.snapshots.delete("s")):
                with pytest.raises(NotPermitted):
                    await call
            assert await other.at("s").listdir("/d") == []

    run(test)


def test_moves_and_handles_over_views() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await fs.workspaces.create("/ws")
        await fs.mkdir("/d")
        with pytest.raises(CrossesView):
            await fs.rename("/d", "/ws/d")
        attr = await fs.create("/ws/f")
        await fs.workspaces.delete("/ws")
        with pytest.raises((Stale, NotFound)):
            await fs.stat("/ws/f")
        assert attr.view

    run(test)


def test_publishes_into_every_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is staged lies in the view that it enters, a plain directory's or a clone's."""
    monkeypatch.setattr("nokv.client.publish.ATOMIC_MAX", 4)
    monkeypatch.setattr("nokv.client.segments.SEGMENT_BYTES", 64 * 1024 * 1024)
    files = {f"part-{number}": b"%d" % number for number in range(20)}
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 5)

    async def test(fs: AsyncClient, _: Cluster) -> None:
        await populate(fs)
        await fs.clone("/runs/7", "/runs/8")
        await fs.workspaces.create("/ws")
        await fs.snapshots.create("/runs/7", "s")
        await fs.rollback("/runs/7", "s")
        for base in ("/runs/8", "/ws", "/runs/7", "/runs"):
            await fs.publish(f"{base}/set", files)
            await fs.publish(f"{base}/set", {"one": b"1"}, "replace")
            assert await fs.listdir(f"{base}/set") == ["one"]
            await fs.publish(f"{base}/set", {"two": b"2"}, "merge")
            info = await fs.put_file(tmp_path / "large", f"{base}/large")
            assert (await fs.stat(f"{base}/large")).size == info.size == 64 * 1024 * 1024 + 5
        # A workspace itself can be replaced by a published tree, too.
        await fs.publish("/ws", files, "replace")
        assert len(await fs.listdir("/ws")) == 20
        assert not (await fs.stat("/ws")).view

    run(test)


@pytest.mark.parametrize("fault", [Fault.CUT_AFTER, Fault.REFUSE])
def test_a_lost_answer_changes_nothing_twice(fault: Fault) -> None:
    """Every command of views is repeated under its number, and has one effect."""

    async def test(fs: AsyncClient, running: Cluster) -> None:
        await populate(fs)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: fs.snapshots.create("/runs/7", "s"),
            lambda: fs.snapshots.renew("s", hold=True),
            lambda: fs.clone("/runs/7", "/runs/8", at="s"),
            lambda: fs.workspaces.create("/ws"),
            lambda: fs.rollback("/runs/7", "s"),
            lambda: fs.copy("/runs/7/sub/big", "/ws/big"),
            lambda: fs.rename("/runs/7/small", "/ws/small"),
            lambda: fs.trash.put("/runs/8"),
            fs.trash.empty,
            lambda: fs.workspaces.delete("/ws"),
            lambda: fs.snapshots.delete("s"),
        ]
        for call in calls:
            running.faults = [fault]
            version = running.machine.version
            await call()
            assert not running.faults
            results = [one for one in running.results if one.version > version]
            assert {one.code for one in results} <= {0, CrossesView.code}
        assert {row.path for row in await fs.workspaces.list() if row.path} == {b"/runs/7"}
        assert [row.automatic for row in await fs.snapshots.list()] == [True]
        assert await fs.listdir("/runs/7") == ["absolute", "link", "sub"]

    run(test)
