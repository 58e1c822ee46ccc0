"""Copies, moves between views, and quotas through a client."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.client.loopback import Cluster, Fault, client

from nokv.client import AsyncClient
from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    IsADirectory,
    NotFound,
    NotPermitted,
    PermissionDenied,
    PredicateFailed,
    QuotaExceeded,
    SnapshotGone,
    SourceChanged,
)
from nokv.objects.memory import MemoryStore
from nokv.types.commands import Command, Exists
from nokv.types.copies import CopyRange
from nokv.types.limits import CHUNK_BYTES
from nokv.types.values import At, Caller

BIG = bytes(range(256)) * 400
"""Too much for the metadata: an object."""


def run(test: Callable[[AsyncClient, Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await test(fs, running)

    asyncio.run(main())


def puts(running: Cluster) -> int:
    assert isinstance(running.store.inner, MemoryStore)
    return len([name for name in running.store.inner.names if name.startswith("blocks/")])


def test_a_copy_moves_no_bytes() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        made = await fs.write_bytes("/a", BIG, mode=0o640)
        await fs.symlink("a", "/link")
        objects = puts(running)
        info = await fs.copy("/a", "/b")
        assert (info.size, info.sha256) == (len(BIG), made.sha256)
        assert await fs.read("/b") == BIG
        assert stat.S_IMODE((await fs.stat("/b")).mode) == 0o640
        await fs.copy("/link", "/c")
        assert stat.S_ISREG((await fs.lstat("/c")).mode)
        assert puts(running) == objects
        await fs.append("/b", b"more")
        await fs.write_bytes("/a", b"small")
        assert await fs.read("/c") == BIG
        assert await fs.read("/b") == BIG + b"more"
        again = await fs.copy("/a", "/b")
        assert await fs.read("/b") == b"small"
        assert again.inode == info.inode
        with pytest.raises(AlreadyExists):
            await fs.copy("/a", "/b", replace=False)
        await fs.mkdir("/d")
        for source, target in (("/d", "/e"), ("/a", "/d")):
            with pytest.raises(IsADirectory):
                await fs.copy(source, target)
        with pytest.raises(NotFound):
            await fs.copy("/none", "/e")
        with pytest.raises(NotFound):
            await fs.copy("/a", "/none/e")

    run(test)


def test_a_copy_of_what_was() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await fs.mkdir("/d")
        await fs.write_bytes("/d/f", BIG)
        await fs.snapshots.create("/d", "s")
        await fs.unlink("/d/f")
        await fs.copy("/d/f", "/d/back", at="s")
        assert await fs.read("/d/back") == BIG
        with pytest.raises(NotFound):
            await fs.copy("/d/g", "/d/x", at="s")
        with pytest.raises(SnapshotGone):
            await fs.copy("/d/f", "/d/x", at="none")

    run(test)


def test_ranges() -> None:
    async def test(fs: AsyncClient, _: Cluster) -> None:
        await fs.write_bytes("/a", BIG)
        await fs.write_bytes("/b", b"head")
        assert await fs.copy_range("/a", "/b", target_offset=4) == len(BIG)
        assert await fs.read("/b") == b"head" + BIG
        assert await fs.copy_range("/a", "/b", source_offset=10, target_offset=0, length=3) == 3
        assert await fs.read("/b") == BIG[10:13] + b"d" + BIG
        assert await fs.copy_range("/a", "/b", source_offset=len(BIG) - 2, length=100) == 2
        assert await fs.copy_range("/a", "/b", source_offset=10**9, length=5) == 0
        assert await fs.copy_range("/a", "/b", length=0) == 0
        for bad in ((-1, 0, 1), (0, -1, 1), (0, 0, -1)):
            with pytest.raises(InvalidArgument):
                await fs.copy_range(
                    "/a", "/b", source_offset=bad[0], target_offset=bad[1], length=bad[2]
                )

    run(test)


async def many_chunks(fs: AsyncClient, path: str, count: int) -> bytes:
    """A file with bytes in so many chunks; return those of the last one."""
    await fs.create(path)
    for index in range(count):
        await fs.patch(path, index * CHUNK_BYTES, b"chunk %d" % index)
    return b"chunk %d" % (count - 1)


def test_a_body_beyond_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied out of sight and appears whole."""
    monkeypatch.setattr("nokv.state.ops_copy.COPY_CHUNKS_MAX", 2)

    async def test(fs: AsyncClient, running: Cluster) -> None:
        last = await many_chunks(fs, "/a", 5)
        await fs.copy("/a", "/b", replace=False)
        assert await fs.read("/b", 4 * CHUNK_BYTES) == last
        ranges = [one for one in running.commands if _copies(one)]
        assert len(ranges) == 3
        await fs.copy("/a", "/b")
        with pytest.raises(AlreadyExists):
            await fs.copy("/a", "/b", replace=False)
        await fs.workspaces.create("/ws")
        await fs.copy("/a", "/ws/a")
        await fs.rename("/a", "/ws/moved")
        assert await fs.read("/ws/moved", 4 * CHUNK_BYTES) == last
        assert await fs.listdir("/") == ["b", "ws"]
        session = running.session(await fs.session_id())
        assert session.alive
        running.reap()

    run(test)


def _copies(command: Command) -> bool:
    return any(isinstance(one, CopyRange) for one in getattr(command.op, "ops", ()))


def test_a_large_body_that_changes_while_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nokv.state.ops_copy.COPY_CHUNKS_MAX", 2)

    async def test(fs: AsyncClient, running: Cluster) -> None:
        await many_chunks(fs, "/a", 5)
        await fs.snapshots.create("/", "s")
        async with running.connect() as other:
            await other.create("/other")
            # The answers to the copy, to the staging, and to the first range.
            running.faults = [Fault.HOLD, Fault.HOLD, Fault.HOLD]
            running.arrived.clear()
            copying = asyncio.create_task(fs.copy("/a", "/b"))
            for _ in range(2):
                await running.arrived.wait()
                running.arrived.clear()
                running.release()
            await running.arrived.wait()
            await other.patch("/a", 0, b"changed")
            running.release()
            with pytest.raises(SourceChanged) as caught:
                await copying
        assert "snapshot" in caught.value.hint
        assert not await fs.exists("/b")
        await fs.copy("/a", "/c", at="s")  # what a snapshot shows never changes
        assert (await fs.stat("/c")).size == (await fs.at("s").stat("/a")).size

    run(test)


def test_moves_between_views() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.workspaces.create("/ws")
        await fs.write_bytes("/f", BIG, mode=0o4750)
        await fs.chown("/f", 7, 8)
        await fs.chmod("/f", 0o4750)
        await fs.utime("/f", atime_ns=1, mtime_ns=2_000_000_001)
        await fs.setxattr("/f", "user.note", b"kept")
        await fs.symlink("/f", "/link")
        await fs.mknod("/pipe", stat.S_IFIFO | 0o600)
        before = await fs.stat("/f")
        objects = puts(running)
        await fs.rename("/f", "/ws/f")
        after = await fs.stat("/ws/f")
        for field in ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns", "sha256"):
            assert getattr(after, field) == getattr(before, field), field
        assert after.view != before.view
        assert await fs.getxattr("/ws/f", "user.note") == b"kept"
        assert await fs.read("/ws/f") == BIG
        assert puts(running) == objects
        await fs.rename("/link", "/ws/link")
        await fs.rename("/pipe", "/ws/pipe")
        assert await fs.readlink("/ws/link") == "/f"
        assert await fs.listdir("/") == ["ws"]
        # Back again, over what is there.
        await fs.write_bytes("/f", b"in the way")
        with pytest.raises(AlreadyExists):
            await fs.move("/ws/f", "/f")
        await fs.replace("/ws/f", "/f")
        assert await fs.read("/f") == BIG
        assert await fs.listdir("/ws") == ["link", "pipe"]
        await fs.mkdir("/d")
        with pytest.raises(IsADirectory):
            await fs.rename("/ws/link", "/d")
        with pytest.raises(CrossesView, match="is a directory") as caught:
            await fs.rename("/d", "/ws/d")
        assert "nokv clone" in caught.value.hint
        with pytest.raises(CrossesView):
            await fs.rename("/f", "/ws/link", exchange=True)
        with pytest.raises(NotFound):
            await fs.rename("/none", "/ws/none")
        with pytest.raises(PredicateFailed):
            await fs.rename("/f", "/ws/f", predicates=(Exists(At(path=(b"none",))),))
        assert await fs.exists("/f")

    run(test)


def test_a_move_that_is_overtaken() -> None:
    """What changes between the look and the change is looked at again; nothing is lost."""

    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.workspaces.create("/ws")
        await fs.write_bytes("/f", b"one")
        written = 0

        async with running.connect() as other:

            async def write() -> None:
                nonlocal written
                while await fs.exists("/f") and written < 50:
                    written += 1
                    try:
                        await other.patch("/f", 0, b"%03d" % written)
                    except NotFound:
                        written -= 1
                        return

            writing = asyncio.create_task(write())
            try:
                await fs.rename("/f", "/ws/f")
            except PredicateFailed:
                await writing
                await fs.rename("/f", "/ws/f")
            await writing
        assert await fs.listdir("/") == ["ws"]
        assert await fs.read("/ws/f") in (b"%03d" % written, b"one")

    run(test)


def test_a_move_by_somebody_else() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.chmod("/", 0o777)
        await fs.workspaces.create("/ws", 0o777)
        await fs.write_bytes("/f", b"x", mode=0o4755)
        await fs.write_bytes("/secret", b"x", mode=0o600)
        async with running.connect(caller=Caller(uid=5, gid=5)) as other:
            await other.rename("/f", "/ws/f")
            with pytest.raises(PermissionDenied):
                await other.rename("/secret", "/ws/secret")
        attr = await fs.stat("/ws/f")
        assert (attr.uid, stat.S_IMODE(attr.mode)) == (5, 0o755)

    run(test)


def test_quotas() -> None:
    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.mkdir("/d")
        await fs.set_quota("/d", entries=3, size_bytes=200_000)
        await fs.write_bytes("/d/a", BIG)
        quota = await fs.quota("/d")
        assert (quota.entries, quota.entries_max) == (1, 3)
        assert (quota.size_bytes, quota.size_bytes_max) == (len(BIG), 200_000)
        with pytest.raises(QuotaExceeded):
            await fs.write_bytes("/d/b", BIG)
        with pytest.raises(QuotaExceeded):
            await fs.copy("/d/a", "/d/b")
        await fs.set_quota("/d", entries=3)
        await fs.copy("/d/a", "/d/b")
        await fs.create("/d/c")
        with pytest.raises(QuotaExceeded):
            await fs.create("/d/d")
        await fs.set_quota("/d")
        await fs.create("/d/d")
        assert (await fs.quota("/d")).entries_max == 0
        for bad in (0, -1):
            with pytest.raises(InvalidArgument):
                await fs.set_quota("/d", entries=bad)
        async with running.connect(caller=Caller(uid=5)) as other:
            with pytest.raises(NotPermitted):
                await other.set_quota("/d", entries=1)

    run(test)


def test_a_quota_is_known_before_anything_is_uploaded(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(20 << 20)

    async def test(fs: AsyncClient, running: Cluster) -> None:
        await fs.mkdir("/d/in", parents=True)
        await fs.set_quota("/d", size_bytes=10 << 20)
        for source in (tmp_path / "large", bytes(20 << 20)):
            with pytest.raises(QuotaExceeded, match="below /d, which"):
                await fs.write_bytes("/d/in/f", source)
        assert puts(running) == 0
        await fs.set_quota("/d", size_bytes=30 << 20)
        await fs.write_bytes("/d/in/f", tmp_path / "large")
        await fs.write_bytes("/d/in/f", tmp_path / "large")  # it takes its own place
        with pytest.raises(QuotaExceeded):
            await fs.write_bytes("/d/in/g", tmp_path / "large")
        with pytest.raises(NotFound):
            await fs.write_bytes("/none/f", tmp_path / "large")

    run(test)
