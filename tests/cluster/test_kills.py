"""Clusters whose nodes die: leaders, all of them, one that forgot everything."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.cluster.kill_leader import campaign

from nokv.client import connect
from nokv.errors import DeadlineExceeded, Unavailable
from nokv.objects.open import open_store
from nokv.server.config import load
from nokv.server.datadir import read_identity
from nokv.server.init import join
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_bucket, compare_digests
from nokv.testing.harness import harness
from nokv.testing.writers import Verdict, check_writers, writing

pytestmark = pytest.mark.cluster

LARGE = os.urandom(5 * 1024 * 1024)


async def in_thread(call: Callable[..., object], *arguments: object) -> None:
    await asyncio.to_thread(call, *arguments)


def test_mkdir_put_and_get_through_a_leaders_death(rough_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with connect(rough_cluster.addresses) as fs:
            await fs.mkdir("/smoke")
            await fs.write_bytes("/smoke/before", LARGE)
            killed = rough_cluster.leader()
            rough_cluster.kill(killed)
            await fs.write_bytes("/smoke/after", LARGE)
            assert await fs.read("/smoke/before") == LARGE
            assert await fs.read("/smoke/after") == LARGE
            assert await fs.listdir("/smoke") == ["after", "before"]
            await in_thread(rough_cluster.restart, killed)

    asyncio.run(main())


def test_every_node_answers_linearizable_reads(rough_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with connect(rough_cluster.addresses) as fs:
            await fs.mkdir("/reads")
            for number in range(30):
                info = await fs.write_bytes("/reads/file", str(number).encode())
                for node in rough_cluster.nodes:
                    one = fs.reading_from(node)
                    assert (await one.stat("/reads/file")).generation == info.generation
                    assert await one.read("/reads/file") == str(number).encode()

    asyncio.run(main())


def test_kill_the_leader(rough_cluster: LocalCluster) -> None:
    runs = asyncio.run(campaign(rough_cluster, 2, seed=7, quiet=True))
    assert [run.verdict.problems() for run in runs] == ["", ""]
    assert all(run.verdict.done > 100 for run in runs)
    assert all(run.gap_s > 0 for run in runs)


def test_two_of_three_are_a_majority_and_one_is_not(rough_cluster: LocalCluster) -> None:
    async def main() -> None:
        first, second, third = rough_cluster.nodes
        async with connect(rough_cluster.addresses) as fs:
            await fs.mkdir("/majority")
            rough_cluster.kill(first)
            await fs.mkdir("/majority/two")
            rough_cluster.kill(second)
            async with connect(rough_cluster.addresses) as alone:
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await alone.within(1.5).mkdir("/majority/one")
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await alone.within(1.5).listdir("/majority")
            await in_thread(rough_cluster.wait_not_ready, third)
            rough_cluster.start_node(first)
            await fs.mkdir("/majority/again")
            await in_thread(rough_cluster.restart, second)
            assert "again" in await fs.listdir("/majority")

    asyncio.run(main())


def test_all_nodes_killed_at_once_keep_everything(rough_cluster: LocalCluster) -> None:
    async def write() -> dict[str, int]:
        async with connect(rough_cluster.addresses) as fs:
            await fs.mkdir("/all")
            await fs.write_bytes("/all/large", LARGE)
            made = await asyncio.gather(*(fs.create(f"/all/{i:03}") for i in range(200)))
            return {f"{i:03}": attr.inode for i, attr in enumerate(made)}

    async def check(inodes: dict[str, int]) -> None:
        async with connect(rough_cluster.addresses) as fs:
            assert await fs.read("/all/large") == LARGE
            found = {entry.name: entry.inode async for entry in fs.scandir("/all")}
            del found["large"]
            assert found == inodes

    inodes = asyncio.run(write())
    for node in rough_cluster.nodes:
        rough_cluster.kill(node)
    for node in rough_cluster.nodes:
        rough_cluster.start_node(node)
    rough_cluster.wait_ready()
    asyncio.run(check(inodes))


def test_the_states_are_equal_and_the_bucket_has_what_they_name(
    rough_cluster: LocalCluster,
) -> None:
    async def main() -> None:
        async with harness(rough_cluster.addresses) as client:
            await client.fs.mkdir("/equal")
            await client.fs.write_bytes("/equal/file", LARGE)
            await client.fs.write_bytes("/equal/file", LARGE[::-1])
            store = open_store(client.core.volume)
            bucket = await compare_bucket(client, store)
            await store.close()
            assert (bucket.missing, bucket.orphans) == ([], [])
            assert bucket.named >= 2
            assert bucket.queued >= 2
        addresses = {member.node: member.rpc_address for member in rough_cluster.members}
        leader = await asyncio.to_thread(rough_cluster.leader)
        replies = await compare_digests(addresses[leader], addresses)
        assert len({reply.digest for reply in replies.values()}) == 1
        assert len(replies) == 3

    asyncio.run(main())


# ---------------------------------------------------------------- a node that forgot everything


def test_a_wiped_node_is_refused(rough_cluster: LocalCluster) -> None:
    """With its old configuration it does not start; made anew, the others do not know it."""
    node = rough_cluster.followers()[0]
    folder = rough_cluster.folder
    config = folder.node_path(node) / "node.toml"
    data_dir = Path(load(config).data_dir)
    kept = data_dir.with_name("kept")
    rough_cluster.stop(node)
    identity = read_identity(data_dir)
    data_dir.rename(kept)
    rough_cluster.start_node(node)
    assert rough_cluster.wait_exit(node) == 2
    assert "not an initialised data directory" in folder.log_tail(node)

    joining = folder.path / "join.json"
    joining.write_bytes(msgspec.json.encode(identity.cluster))
    join(config, joining, node=node)
    rough_cluster.start_node(node)
    try:
        rough_cluster.wait_ready([node], timeout_s=4.0)
    except (DeadlineExceeded, Unavailable):
        pass
    else:
        pytest.fail("a stranger was taken for the old node")

    async def main() -> None:
        async with connect(rough_cluster.addresses) as fs:
            await fs.mkdir("/stranger")

    asyncio.run(main())
    rough_cluster.kill(node)
    folder.wait_gone(node)
    shutil.rmtree(data_dir)
    kept.rename(data_dir)
    rough_cluster.restart(node)


# ---------------------------------------------------------------- the evidence can fail


def doctor(path: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def lie(lines: list[dict[str, object]], kind: str) -> None:
    """Claim one more acknowledged write than there was."""
    number = max(int(str(line["number"])) for line in lines) + 1
    lines.append({"number": number, "kind": kind})
    lines.append({"number": number, "outcome": "done", "generation": 1})


def deny(lines: list[dict[str, object]], kind: str) -> None:
    """Claim that an acknowledged write failed."""
    numbers = [line["number"] for line in lines if line.get("kind") == kind]
    for line in lines:
        if line["number"] == numbers[-1] and "outcome" in line:
            line["outcome"] = "failed"


def test_doctored_journals_are_found(rough_cluster: LocalCluster, tmp_path: Path) -> None:
    async def main() -> None:
        async with harness(rough_cluster.addresses) as client:
            attr = await client.fs.mkdir("/doctored")
            base = "/doctored/writers"
            async with writing(rough_cluster.addresses, base, tmp_path, 1) as writers:
                await writers[0].wait_acknowledged(12)
            journal = writers[0].journal.path
            true = journal.read_text()

            async def verdict() -> Verdict:
                found = await check_writers(client.fs, writers, attr.version)
                journal.write_text(true)
                return found

            assert (await verdict()).holds
            for kind in ("create", "set", "replace"):
                doctor(journal, lambda lines, kind=kind: lie(lines, kind))  # type: ignore[misc]
                assert (await verdict()).lost, kind
            doctor(journal, lambda lines: deny(lines, "create"))
            assert (await verdict()).wrong
            doctor(journal, lambda lines: deny(lines, "set"))
            assert (await verdict()).duplicated
            await client.fs.write_bytes(f"{base}/writer-0/state", b"somebody else's")
            assert (await verdict()).duplicated
            await client.fs.unlink(f"{base}/writer-0/file-3")
            assert (await verdict()).wrong

    asyncio.run(main())


# ---------------------------------------------------------------- the demonstration


def test_the_demonstration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nokv.testing.demo", "--stop"],
        env=os.environ | {"NOKV_DEMO_DIR": str(tmp_path / "demo"), "NOKV_DEMO_MIB": "32"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("    holds") == 7
    assert "proposed by the leader, not answered" in done.stdout
    assert "objects were stored" in done.stdout
