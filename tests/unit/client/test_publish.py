"""Publishing sets of files: all visible at once or nothing, in every mode and under every fault."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.client.loopback import Cluster, Fault
from tests.unit.client.test_bodies import blocks, noise, run

from nokv.client import AsyncClient, calls, plan, publish
from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    NokvError,
    NotADirectory,
    NotFound,
    NotSupported,
    ObjectStoreError,
    SourceChanged,
    TooLarge,
    UploadFailed,
)
from nokv.objects.source import SourceLike
from nokv.types.commands import Atomic, Command, StageBegin, StageDrop, StageSwap
from nokv.types.events import EventKind
from nokv.types.limits import BLOCK_BYTES


async def contents(fs: AsyncClient, path: str) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {
        entry.path[len(path) + 1 :]: await fs.read_bytes(entry.path)
        async for _, _, others in fs.walk(path)
        for entry in others
        if entry.is_file()
    }


@pytest.fixture
def small_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large for one command."""
    monkeypatch.setattr(publish, "ATOMIC_BYTES", 1)
    monkeypatch.setattr(publish, "BATCH_OPS", 3)


FILES = {"a": b"1", "b/c": noise(10_000), "b/d/e": noise(BLOCK_BYTES + 1), "empty": b""}


async def _check_set(cluster: Cluster, fs: AsyncClient, done: publish.Published) -> None:
    assert await contents(fs, "/set") == FILES
    assert set(done.files) == set(FILES)
    for name, data in FILES.items():
        info = done.files[name]
        attr = await fs.stat(f"/set/{name}")
        assert (info.generation, info.inode) == (attr.generation, attr.inode)
        assert info.sha256 == hashlib.sha256(data).hexdigest() == attr.sha256.hex()
        assert info.size == len(data)
        assert info.generation <= done.version
    assert done.version == cluster.machine.version
    assert (await fs._core.session(20.0)).uploads.in_flight == 0


def test_a_new_set_is_one_command() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        done = await fs.publish("/set", FILES)
        assert done.path == "/set"
        await _check_set(cluster, fs, done)
        assert len([c for c in cluster.commands if isinstance(c.op, Atomic)]) == 1
        with pytest.raises(AlreadyExists) as caught:
            await fs.publish("/set", FILES)
        assert "replace" in caught.value.hint
        with pytest.raises(NotFound):
            await fs.publish("/no/set", FILES)

    run(test)


@pytest.mark.usefixtures("small_commands")
def test_a_large_set_is_staged_and_swapped_in_by_one_command() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        done = await fs.publish("/set", FILES)
        await _check_set(cluster, fs, done)
        atomics = [c.op.ops for c in cluster.commands if isinstance(c.op, Atomic)]
        assert len(atomics) > 2
        assert [type(op) for op in atomics[-1]][-1] is StageSwap
        events = [event async for event in fs.events()]
        assert [event.kind for event in events] == [EventKind.MOVE_IN]
        assert events[0].version == done.version

    run(test)


@pytest.mark.parametrize("small", [False, True])
def test_replacing_a_directory(monkeypatch: pytest.MonkeyPatch, *, small: bool) -> None:
    if small:
        monkeypatch.setattr(publish, "BATCH_OPS", 2)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        first = await fs.publish("/set", {"old": noise(10_000), "keep/x": b"1"}, mode="replace")
        second = await fs.publish("/set", FILES, mode="replace")
        assert second.version > first.version
        await _check_set(cluster, fs, second)
        cluster.reap()
        assert await contents(fs, "/set") == FILES
        usage = await fs.usage("/")
        assert usage.bytes == sum(len(data) for data in FILES.values())

    run(test)


def test_merging() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.publish("/set", {"stays": b"0", "b/c": b"old", "b/other": b"2"})
        done = await fs.publish("/set", FILES, mode="merge")
        assert await contents(fs, "/set") == {**FILES, "stays": b"0", "b/other": b"2"}
        assert done.version == cluster.machine.version
        await fs.publish("/fresh", FILES, mode="merge")
        assert await contents(fs, "/fresh") == FILES
        with pytest.raises(NotADirectory):
            await fs.publish("/set", {"stays/x": b""}, mode="merge")
        with pytest.raises(IsADirectory):
            await fs.publish("/set", {"b": b""}, mode="merge")

    run(test)


def test_a_merge_of_nothing_changes_nothing(tmp_path: Path) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.publish("/set", FILES)
        before = cluster.machine.version
        for done in (
            await fs.publish("/set", {}, mode="merge"),
            await fs.publish("/set", {}, mode="merge"),
        ):
            assert done == (before, "/set", {})
        await fs.publish("/new", {}, mode="merge")
        assert await contents(fs, "/new") == {}
        done = await fs.publish_tree(tmp_path, "/set", mode="merge")
        assert (done.version, done.files) == (cluster.machine.version, {})
        assert await contents(fs, "/set") == FILES

    run(test)


def test_a_merge_that_does_not_fit_is_refused_before_anything_is_uploaded() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.mkdir("/set")
        many = {f"{number}": b"" for number in range(4000)}
        with pytest.raises(TooLarge) as caught:
            await fs.publish("/set", {**many, "big": noise(10_000)}, mode="merge")
        assert caught.value.hint
        assert blocks(cluster) == []
        await fs.publish("/many", many)  # a new directory of as many is staged
        assert len(await fs.listdir("/many")) == 4000

    run(test)


def test_a_merge_looks_again_when_what_was_there_changed() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.mkdir("/set")
        turned = 0

        async def point(name: str) -> None:
            nonlocal turned
            if name == "publish":
                turned += 1
                if turned == 1:
                    await fs.mkdir("/set/b")
                elif turned == 2:
                    await fs.rmdir("/set/b")

        fs._core.fault_point = point  # type: ignore[misc]
        await fs.publish("/set", FILES, mode="merge")
        assert turned == 3
        assert await contents(fs, "/set") == FILES
        assert len(blocks(cluster)) == 3  # nothing was uploaded twice

    run(test)


def test_sources_and_names(tmp_path: Path) -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        local = tmp_path / "local"
        local.write_bytes(noise(100_000))
        local.chmod(0o600)

        async def stream() -> AsyncIterator[bytes]:
            yield noise(50_000)

        with local.open("rb") as opened:
            await fs.publish(
                "/set",
                {
                    "path": local,
                    "object": opened,
                    "stream": stream(),
                    "\udcff": b"raw",
                    "m": "x"[:0].encode(),
                },
            )
        assert await fs.read_bytes("/set/path") == noise(100_000)
        assert await fs.read_bytes("/set/object") == noise(100_000)
        assert await fs.read_bytes("/set/stream") == noise(50_000)
        assert await fs.read_bytes(b"/set/\xff") == b"raw"
        assert (await fs.stat("/set/path")).mode & 0o777 == 0o600

    run(test)


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"../x": b""}, InvalidArgument),
        ({"/x": b""}, InvalidArgument),
        ({"a//b": b""}, InvalidArgument),
        ({"": b""}, InvalidArgument),
        ({"a": b"", "a/b": b""}, InvalidArgument),
        ({"x" * 256: b""}, NokvError),
        ({"x": Path("/no/such/file")}, NotFound),
        ({"x": Path("/")}, IsADirectory),
        ({"x": Path("/dev/null")}, InvalidArgument),
    ],
)
def test_bad_sets(files: dict[str, SourceLike], error: type[NokvError]) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        with pytest.raises(error):
            await fs.publish("/set", files)
        with pytest.raises(InvalidArgument):
            await fs.publish("/set", {}, mode="wrong")  # type: ignore[arg-type]
        assert await fs.listdir("/") == []
        assert blocks(cluster) == []

    run(test)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("mode", ["create", "replace", "merge"])
def test_a_failing_store_leaves_nothing(mode: publish.Mode) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        files = {f"{number}": noise(10_000, number) for number in range(40)}
        cluster.store.fail("put", 20, error=ObjectStoreError)
        with pytest.raises(UploadFailed, match="put blocks/"):
            await fs.publish("/set", files, mode=mode)
        assert blocks(cluster) == []
        assert await fs.listdir("/") == []
        assert (await fs._core.session(20.0)).uploads.in_flight == 0
        await fs.publish("/set", files, mode=mode)
        assert len(await fs.listdir("/set")) == 40

    run(test)


@pytest.mark.parametrize("mode", ["create", "replace"])
@pytest.mark.usefixtures("small_commands")
def test_a_cancelled_publish_leaves_nothing_visible_and_drops_its_stage(mode: publish.Mode) -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        files = {f"{number}": noise(10_000, number) for number in range(40)}
        gate = cluster.store.hold("put", 25)
        task = asyncio.ensure_future(fs.publish("/set", files, mode=mode))
        await gate.reached.wait()
        task.cancel()
        gate.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        while fs._core._background:
            await asyncio.wait(set(fs._core._background))
        assert any(isinstance(command.op, StageDrop) for command in cluster.commands)
        assert await fs.listdir("/") == []
        cluster.reap()
        counts = await fs.statfs()
        assert (counts.files, counts.bytes) == (1, 0)
        assert (await fs._core.session(20.0)).uploads.in_flight == 0

    run(test)


@pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.CUT_AFTER, Fault.DROP_BEFORE])
@pytest.mark.parametrize("staged", [False, True])
def test_a_lost_answer_publishes_once(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, *, staged: bool
) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_S", 0.1)
    if staged:
        monkeypatch.setattr(publish, "ATOMIC_BYTES", 1)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        sends = 0

        async def point(name: str) -> None:
            nonlocal sends
            if name == "publish":
                sends += 1
                cluster.faults = [fault]

        fs._core.fault_point = point  # type: ignore[misc]
        done = await fs.publish("/set", FILES)
        assert sends >= 1
        assert await contents(fs, "/set") == FILES
        events = [event async for event in fs.events()]
        assert len({(event.session, event.seq) for event in events}) == 1
        last: dict[tuple[int, int], Command] = {}
        for command in cluster.commands:
            if isinstance(command.op, Atomic):
                assert last.setdefault((command.session, command.seq), command) == command
        assert done.version == max(event.version for event in events)

    run(test)


def test_proposed_and_not_answered_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_S", 0.1)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        points: list[str] = []
        held, go_on = asyncio.Event(), asyncio.Event()

        async def point(name: str) -> None:
            points.append(name)
            if name == "publish":
                cluster.faults = [Fault.DROP_AFTER]
                cluster.arrived.clear()
            if name == "sent":
                await cluster.arrived.wait()
                held.set()
                await go_on.wait()

        fs._core.fault_point = point  # type: ignore[misc]
        task = asyncio.ensure_future(fs.publish("/set", {"a": noise(10_000), "b": b"2"}))
        await held.wait()
        applied = cluster.machine.version
        cluster.leader = cluster.nodes[1]
        go_on.set()
        done = await task
        assert done.version == applied
        assert points == ["upload", "uploaded", "uploaded", "publish", "sent"]

    run(test)


def test_a_publish_keeps_a_bounded_number_of_bytes_in_memory() -> None:
    async def test(_: Cluster, fs: AsyncClient) -> None:
        files = {f"{number}": noise(3 * BLOCK_BYTES, number) for number in range(12)}
        await fs.publish("/set", files)
        budget = fs._core._upload_budget
        assert budget.held_bytes == 0
        assert budget.peak_bytes <= budget.limit_bytes

    run(test)


# ---------------------------------------------------------------- trees


def make_tree(root: Path) -> None:
    """A tree with everything that is kept."""
    root.mkdir()
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"hello")
    (root / "big").write_bytes(noise(5_000_000))
    (root / "sub" / "run.sh").write_bytes(noise(6000))
    (root / "sub" / "run.sh").chmod(0o755)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"not utf-8")
    (root / "link").symlink_to("sub/run.sh")
    (root / "sub" / "dangling").symlink_to("/nowhere")
    (root / "empty").mkdir()
    (root / "sub" / "deep" / "x").write_bytes(b"")
    os.utime(root / "a.txt", ns=(5, 1_000_000_007))
    os.utime(root / "link", ns=(6, 1_000_000_009), follow_symlinks=False)
    os.utime(root / "sub" / "deep", ns=(7, 1_000_000_011))
    (root / "sub" / "deep").chmod(0o500)
    os.utime(root, ns=(8, 1_000_000_013))


async def compare(fs: AsyncClient, root: Path, path: str) -> None:
    """Compare types, modes, times, targets and bytes of every name."""
    seen = {path}
    roots = [(Path(root), path)]
    for local_dir, remote_dir in roots:
        for local in local_dir.iterdir():
            remote = f"{remote_dir}/{local.name}"
            seen.add(remote)
            there, found = await fs.lstat(remote), local.lstat()
            assert there.mode == found.st_mode, remote
            assert there.mtime_ns == found.st_mtime_ns, remote
            if stat.S_ISDIR(found.st_mode):
                roots.append((local, remote))
            elif stat.S_ISLNK(found.st_mode):
                assert await fs.readlink(remote) == str(local.readlink())
            else:
                assert await fs.read_bytes(remote) == local.read_bytes()
    names = {entry.path async for _, dirs, others in fs.walk(path) for entry in dirs + others}
    assert names | {path} == seen
    assert (await fs.stat(path)).mtime_ns == 1_000_000_013


@pytest.mark.parametrize("mode", ["create", "replace", "merge"])
@pytest.mark.parametrize("small", [False, True])
def test_a_tree_comes_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: publish.Mode, *, small: bool
) -> None:
    if small and mode != "merge":
        monkeypatch.setattr(publish, "ATOMIC_BYTES", 1)
        monkeypatch.setattr(publish, "BATCH_OPS", 2)
    make_tree(tmp_path / "tree")

    async def test(_: Cluster, fs: AsyncClient) -> None:
        seen: list[int] = []
        done = await fs.publish_tree(tmp_path / "tree", "/copy", mode=mode, progress=seen.append)
        await compare(fs, tmp_path / "tree", "/copy")
        assert sum(seen) == sum(info.size for info in done.files.values())
        assert "\udcff\udcfe" in done.files
        if mode != "create":
            again = await fs.publish_tree(tmp_path / "tree", "/copy", mode=mode)
            assert again.version > done.version
            files = {name: info.sha256 for name, info in again.files.items()}
            assert files == {name: info.sha256 for name, info in done.files.items()}

    run(test)


def test_special_files_are_refused_before_anything_is_uploaded(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    make_tree(root)
    os.mkfifo(root / "sub" / "fifo")

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        with pytest.raises(NotSupported, match="fifo"):
            await fs.publish_tree(root, "/copy")
        assert blocks(cluster) == []
        assert not await fs.exists("/copy")
        done = await fs.publish_tree(root, "/copy", skip_special=True)
        assert "sub/fifo" not in done.files
        with pytest.raises(NotADirectory):
            await fs.publish_tree(root / "a.txt", "/file")
        with pytest.raises(FileNotFoundError):
            await fs.publish_tree(root / "gone", "/file")

    run(test)


@pytest.mark.parametrize("vanish", [False, True])
@pytest.mark.parametrize("mode", ["create", "replace"])
def test_a_file_that_changes_meanwhile(tmp_path: Path, mode: publish.Mode, *, vanish: bool) -> None:
    root = tmp_path / "tree"
    make_tree(root)

    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        async def point(name: str) -> None:
            if name == "upload":
                if vanish:
                    (root / "big").unlink()
                else:
                    (root / "big").write_bytes(noise(5_000_000, 2))

        fs._core.fault_point = point  # type: ignore[misc]
        with pytest.raises(SourceChanged, match="big"):
            await fs.publish_tree(root, "/copy", mode=mode)
        assert not await fs.exists("/copy")

        async def nothing(name: str) -> None:
            del name

        fs._core.fault_point = nothing  # type: ignore[misc]
        await fs.publish_tree(root, "/copy", mode=mode)
        del cluster

    run(test)


def test_the_estimate_is_never_below_what_is_sent() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        files = {f"dir-{n % 7}/file-{n}": noise(n * 97 % 9000, n) for n in range(300)}
        await fs.publish("/estimated", files)
        (atomic,) = [command for command in cluster.commands if isinstance(command.op, Atomic)]
        from nokv.wire.codec import encode_command

        planned = plan.plan_files(files, 0o644, 0o755)
        estimate = planned.estimate_bytes(16 + len("estimated") + 5, 4096)
        assert estimate >= len(encode_command(atomic))
        assert planned.op_count() >= len(atomic.op.ops)  # type: ignore[union-attr]

    run(test)


def test_a_stage_is_begun_only_where_it_is_needed() -> None:
    async def test(cluster: Cluster, fs: AsyncClient) -> None:
        await fs.publish("/a", FILES)
        assert not any(isinstance(command.op, StageBegin) for command in cluster.commands)
        await fs.publish("/a", FILES, mode="replace")
        assert sum(isinstance(command.op, StageBegin) for command in cluster.commands) == 1

    run(test)
