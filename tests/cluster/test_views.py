"""Views on a real cluster: leaders die around every command, nodes restart, replicas agree."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.cluster.conftest import Nokv

from nokv.client import AsyncClient, ClientConfig, connect
from nokv.errors import NotFound, ReadOnly, SnapshotGone
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests

pytestmark = pytest.mark.cluster

BIG = os.urandom(700_000)
FILES = 40


async def shown(fs: AsyncClient, path: str, at: str = "") -> dict[str, bytes]:
    """Return every file below a directory, at present or at a snapshot."""
    handle = fs.at(at) if at else fs
    found = {}
    async for directory, _, others in handle.walk(path):
        for entry in others:
            found[f"{directory}/{entry.name}"[len(path) + 1 :]] = await handle.read(entry.path)
    return found


async def digests(cluster: LocalCluster) -> set[bytes]:
    """Return the different digests of the replicas' states: one is right."""
    for node in cluster.nodes:
        await asyncio.to_thread(cluster.wait_caught_up, node)
    by_node = {member.node: member.rpc_address for member in cluster.members}
    leader = await asyncio.to_thread(cluster.leader)
    replies = await compare_digests(by_node[leader], by_node)
    return {reply.digest for reply in replies.values()}


async def kill_leader(cluster: LocalCluster) -> int:
    killed = await asyncio.to_thread(cluster.leader)
    await asyncio.to_thread(cluster.kill, killed)
    return killed


@pytest.mark.allow_logs("nokv.client")
def test_a_run_and_its_copies_through_kills(rough_cluster: LocalCluster) -> None:
    async def main() -> None:
        cluster, base = rough_cluster, f"/views-{os.getpid()}"
        run, copy = f"{base}/7", f"{base}/8"
        snap = f"before-{os.getpid()}"
        async with connect(cluster.addresses, config=ClientConfig(deadline_s=60.0)) as fs:
            await fs.mkdir(base)
            names = {f"part-{number}/data": b"%d" % number for number in range(FILES)}
            await fs.publish(run, {**names, "model": BIG})
            before = await shown(fs, run)
            assert len(before) == FILES + 1

            # Each command is sent while the leader dies under it: it happens exactly once.
            killing = asyncio.create_task(kill_leader(cluster))
            await fs.snapshots.create(run, snap, hold=True)
            await asyncio.to_thread(cluster.restart, await killing)
            killing = asyncio.create_task(kill_leader(cluster))
            await fs.clone(run, copy, at=snap)
            await asyncio.to_thread(cluster.restart, await killing)

            # Both sides go their own ways.
            await asyncio.gather(
                *(fs.write_bytes(f"{run}/part-{n}/data", b"live") for n in range(0, FILES, 2)),
                *(fs.write_bytes(f"{copy}/part-{n}/data", b"copy") for n in range(0, FILES, 3)),
                fs.remove_tree(f"{run}/part-1"),
                fs.append(f"{copy}/model", b"tail"),
                fs.rename(f"{copy}/part-2", f"{copy}/moved"),
            )
            live, cloned = await shown(fs, run), await shown(fs, copy)
            assert await shown(fs, run, snap) == before
            assert cloned["model"] == BIG + b"tail"
            assert live["model"] == BIG
            assert "part-1/data" not in live
            assert cloned["part-1/data"] == b"1"
            assert cloned["moved/data"] == b"2"

            killing = asyncio.create_task(kill_leader(cluster))
            undo = await fs.rollback(run, snap)
            await asyncio.to_thread(cluster.restart, await killing)
            assert await shown(fs, run) == before
            assert await shown(fs, run, undo) == live
            assert await shown(fs, copy) == cloned

            # Every replica starts anew from its disk and shows the same.
            for node in cluster.nodes:
                assert await asyncio.to_thread(cluster.stop, node) == 0
            for node in cluster.nodes:
                await asyncio.to_thread(cluster.start_node, node)
            await asyncio.to_thread(cluster.wait_ready)
            redo = await fs.rollback(run, undo)
            assert await shown(fs, run) == live
            assert await shown(fs, run, redo) == before
            for node in cluster.nodes:
                assert await shown(fs.reading_from(node), copy) == cloned
                old = fs.at(snap).reading_from(node)
                assert await old.read(f"{run}/model") == BIG
            assert len(await digests(cluster)) == 1

            for name in (snap, undo, redo):
                await fs.snapshots.delete(name)
            await fs.workspaces.delete(copy)
            assert await shown(fs, run) == live
            with pytest.raises(SnapshotGone):
                await fs.at(snap).read(f"{run}/model")
            assert len(await digests(cluster)) == 1

    asyncio.run(main())


def test_a_lease_ends_by_itself_on_an_idle_cluster(nokv_cluster: LocalCluster) -> None:
    """Only the node's own clock can end it: nobody sends a command."""

    async def main() -> None:
        name = f"short-{os.getpid()}"
        async with connect(nokv_cluster.addresses) as fs:
            await fs.snapshots.create("/", name, ttl_s=60.0)
            await fs.at(name).listdir("/")
            await fs.snapshots.renew(name, ttl_s=1.0)
        async with connect(nokv_cluster.addresses) as fs:
            async with asyncio.timeout(60):
                while name in {row.name for row in await fs.snapshots.list()}:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            with pytest.raises(SnapshotGone):
                await fs.at(name).listdir("/")
            with pytest.raises(NotFound):
                await fs.snapshots.renew(name)
            # Its name is free again once the leader has deleted it.
            await fs.snapshots.create("/", name, ttl_s=60.0)
            await fs.snapshots.delete(name)

    asyncio.run(main())


@pytest.mark.usefixtures("quiet")
def test_the_command_line(nokv: Nokv, tmp_path: Path) -> None:
    base, snap = f"/views-cli-{os.getpid()}", f"s-{os.getpid()}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.bin").write_bytes(BIG)
    (tmp_path / "run" / "@at@").write_text("@ means nothing")
    assert nokv("mkdir", base).code == 0
    assert nokv("publish", tmp_path / "run", f"{base}/7").code == 0
    made = nokv("snapshot", "create", f"{base}/7", "--name", snap, "--ttl", "7d")
    assert made.code == 0
    assert made.out.endswith(", for 7 d\n")
    assert nokv("rm", f"{base}/7/model.bin").code == 0
    assert nokv("cat", f"{base}/7/model.bin").code == 1
    assert nokv("get", "--at", snap, f"{base}/7/model.bin", tmp_path / "back").code == 0
    assert (tmp_path / "back").read_bytes() == BIG
    assert nokv("cat", f"{base}/7/@at@", "--at", snap).out == "@ means nothing"
    assert nokv("ls", "--at", snap).out == "@at@\nmodel.bin\n"
    assert nokv("get", "-r", "--at", snap, f"{base}/7", tmp_path / "tree").code == 0
    assert (tmp_path / "tree" / "model.bin").read_bytes() == BIG
    missing = nokv("cat", "--at", "none", f"{base}/7/a", f"{base}/7/b")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.splitlines() == [
        "nokv: there is no snapshot 'none'",
        "hint: see what there is: nokv snapshot list",
    ]
    outside = nokv("cat", "--at", snap, f"{base}/8/a")
    assert outside.err.splitlines()[1] == f"hint: it shows {base}/7"
    assert nokv("clone", f"{base}/7", f"{base}/8", "--at", snap).code == 0
    assert nokv("ls", f"{base}/8").out == "@at@\nmodel.bin\n"
    assert nokv("workspace", "create", f"{base}/w", "--from", f"{base}/8").code == 0
    rows = [row for row in nokv("workspace", "list", "--json").json() if base in row["path"]]
    assert [row["path"] for row in rows] == [f"{base}/8", f"{base}/w"]
    back = nokv("rollback", f"{base}/7", snap)
    assert back.code == 0
    assert nokv("ls", f"{base}/7").out == "@at@\nmodel.bin\n"
    undo = back.out.splitlines()[1].partition(": nokv ")[2].split()
    assert nokv(*undo).code == 0
    assert nokv("ls", f"{base}/7").out == "@at@\n"
    refused = nokv("rollback", f"{base}/8", snap)
    assert refused.code == 1
    assert "another directory" in refused.err
    [row] = [row for row in nokv("snapshot", "list", f"{base}/7", "--json").json()
             if row["name"] == snap]  # fmt: skip
    assert not row["automatic"]
    assert nokv("workspace", "delete", f"{base}/w", f"{base}/8").code == 0
    names = [one["name"] for one in nokv("snapshot", "list", base, "--json").json()]
    assert len(names) == 3
    assert nokv("snapshot", "delete", *names).code == 0
    assert nokv("snapshot", "list", base).out == ""


def test_the_synchronous_client(nokv_cluster: LocalCluster) -> None:
    import nokv as package

    path, name = f"/views-sync-{os.getpid()}", f"sync-{os.getpid()}"
    with package.connect_sync(nokv_cluster.addresses) as fs:
        fs.publish(path, {"f": b"old", "big": BIG})
        fs.snapshots.create(path, name)
        fs.write_bytes(f"{path}/f", b"new")
        old = fs.at(name)
        assert old.read(f"{path}/f") == b"old"
        with old.open(f"{path}/big") as file:
            assert file.read() == BIG
        with pytest.raises(ReadOnly):
            old.open(f"{path}/f", "wb")
        fs.snapshots.delete(name)


@pytest.mark.usefixtures("quiet")
def test_copies_trash_and_quotas(nokv: Nokv, tmp_path: Path) -> None:
    base = f"/copies-{os.getpid()}"
    (tmp_path / "big").write_bytes(BIG)
    assert nokv("mkdir", "-p", f"{base}/in").code == 0
    assert nokv("workspace", "create", f"{base}/ws").code == 0
    assert nokv("put", tmp_path / "big", f"{base}/big").code == 0
    assert nokv("cp", f"{base}/big", f"{base}/in").code == 0
    assert nokv("cp", "-r", f"{base}/in", f"{base}/ws").code == 0
    assert nokv("mv", f"{base}/big", f"{base}/ws").code == 0
    assert nokv("ls", f"{base}/ws").out == "big\nin\n"
    for path in ("in/big", "ws/big", "ws/in/big"):
        assert nokv("get", f"{base}/{path}", tmp_path / "back").code == 0
        assert (tmp_path / "back").read_bytes() == BIG
    moved = nokv("mv", f"{base}/in", f"{base}/ws/dir")
    assert moved.code == 1
    assert "nokv clone" in moved.err
    assert nokv("rm", "--trash", f"{base}/in").code == 0
    assert nokv("ls", base).out == "ws\n"
    [row] = [one for one in nokv("trash", "list", "--json").json() if base in one["path"]]
    assert (row["path"], row["type"], row["entries"]) == (f"{base}/in", "directory", 1)
    assert nokv("trash", "restore", f"{base}/in").code == 0
    assert nokv("ls", f"{base}/in").out == "big\n"
    assert nokv("rm", "--trash", f"{base}/in").code == 0
    assert nokv("trash", "empty", row["path"]).out == "1 entry removed for good\n"
    assert nokv("trash", "restore", f"{base}/in").code == 1
    assert nokv("quota", "set", f"{base}/ws", "--entries", "3").code == 0
    assert nokv("mkdir", f"{base}/ws/more").code == 1
    [row] = nokv("quota", "get", f"{base}/ws", "--json").json()
    assert (row["entries"], row["entries_max"], row["bytes_max"]) == (3, 3, None)
    assert nokv("quota", "clear", f"{base}/ws").code == 0
    assert nokv("mkdir", f"{base}/ws/more").code == 0
    rows = nokv("du", "--depth", "1", "--json", base).json()
    assert [one["path"] for one in rows] == [base, f"{base}/ws"]
    assert [one["bytes"] for one in rows] == [2 * len(BIG)] * 2
