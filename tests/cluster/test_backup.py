"""Backup and restore over real processes: the original goes on writing to the same bucket.

Also: replicas that die while they are read, learners, and members of a restored cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nokv
from nokv.backup import create
from nokv.backup.create import create_backup
from nokv.backup.format import Manifest
from nokv.backup.manage import manifests
from nokv.client.connect import Connecting
from nokv.client.core import ClientConfig
from nokv.client.fs import AsyncClient
from nokv.errors import ForeignVolume, NokvError, Unavailable
from nokv.server.datadir import read_identity
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests
from nokv.testing.folder import NodePorts, Store
from nokv.testing.ports import free_ports
from nokv.testing.s3server import REGION, s3_server
from nokv.types.limits import BLOCK_BYTES
from nokv.types.reads import BackupRow, BackupsReply, ListBackups
from nokv.types.values import Caller
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import ReadBackup, RequestBody, ResponseBody

# A group of its own: with these in the others' one, the other worker would be done long before.
pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("backups")]

SETTINGS = {"worker.interval_ms": 100, "worker.grace_ms": 200, "worker.sweep_interval_ms": 300}
PATIENCE_S = 60.0
SHORT = ClientConfig(session_ttl_s=10.0)
"""A restored cluster waits for as long as a session of the original may live."""


def settings(cluster: LocalCluster) -> Path:
    """Return a node's settings, which lead to the cluster's token."""
    return cluster.folder.node_path(1) / "node.toml"


def run(*arguments: str | Path, cluster: str = "") -> str:
    environ = {**os.environ, "NOKV_CLUSTER": cluster}
    done = subprocess.run(
        [sys.executable, "-m", "nokv.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
    return done.stdout


def largest(store: Path) -> int:
    """Length of the largest object of a body, bytes; what goes meanwhile is skipped."""
    found = 0
    for folder, _, names in os.walk(store / "blocks"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = max(found, (Path(folder) / name).stat().st_size)
    return found


async def write(cluster: str, stop: asyncio.Event, rng: random.Random) -> int:
    """Overwrite and remove files until told to stop; return how often."""
    count = 0
    async with nokv.connect(cluster, config=SHORT) as fs:
        while not stop.is_set():
            count += 1
            name = f"/busy-{rng.randrange(4)}"
            await fs.write_bytes(name, rng.randbytes(rng.choice((100, 20_000, 300_000))))
            if rng.random() < 0.3:
                await fs.remove(name)
    return count


async def wait_for(condition: object, what: str) -> None:
    assert callable(condition)
    end_s = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < end_s, f"{what} did not happen in {PATIENCE_S:g} s"
        await asyncio.sleep(0.1)


class RestoredNode:
    """One node of a restored cluster."""

    def __init__(self, folder: Path, name: str = "restored") -> None:
        peer, rpc, http = free_ports(3)
        self.config = folder / f"{name}.toml"
        self.data_dir = folder / name
        self.peer = f"127.0.0.1:{peer}"
        self.address = f"127.0.0.1:{rpc}"
        self.log = folder / f"{name}.log"
        self.config.write_text(
            f'data_dir = "{name}"\n[peer]\nlisten = "{self.peer}"\n'
            f'[rpc]\nlisten = "{self.address}"\n[http]\nlisten = "127.0.0.1:{http}"\n'
            "[worker]\ninterval_ms = 100\ngrace_ms = 200\nsweep_interval_ms = 300\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nokv.cli", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)


# ---------------------------------------------------------------- beside the original


class Beside:
    """A cluster, its backup, and a cluster that is restored of it while it goes on."""

    def __init__(self, cluster: LocalCluster, folder: Path, blocks: Path) -> None:
        self.cluster = cluster
        self.restored = RestoredNode(folder)
        self.blocks = blocks
        """Where the bucket's objects are as files."""
        self.store: list[str] = ["--store", f"local:{blocks}"]
        rng = random.Random(7)
        sizes = (0, 10, 5000, 300_000, 9_000_000)
        self.bodies = {f"/kept-{size}": rng.randbytes(size) for size in sizes}

    async def nokv(self, *arguments: str | Path, cluster: str = "") -> str:
        return await asyncio.to_thread(run, *arguments, cluster=cluster)

    async def operate(self, *arguments: str) -> str:
        """Run a command on the original, with its token."""
        named = ("--config", settings(self.cluster))
        return await self.nokv(*arguments, *named, cluster=self.cluster.addresses)

    async def operate_copy(self, *arguments: str) -> str:
        named = ("--config", self.restored.config)
        return await self.nokv(*arguments, *named, cluster=self.restored.address)

    async def back_up_and_restore(self) -> None:
        async with as_operator(self.cluster) as fs:
            for name, body in self.bodies.items():
                await fs.write_bytes(name, body)
            told = await make(fs, "b1")
            # The original replaces and removes all of it, and collects what it may.
            for number, name in enumerate(self.bodies):
                if number % 2:
                    await fs.remove(name)
                else:
                    await fs.write_bytes(name, b"x" * 200_000)
        named = [*self.store, "--config", str(self.restored.config), "--silence", "1s", "--json"]
        found = json.loads(await self.nokv("backup", "restore", "b1", *named))
        assert found["missing"] == []
        assert found["version"] == told.head.version

    async def write_to_both(self) -> None:
        self.restored.start()
        await _compare(self.restored.address, self.bodies)
        async with nokv.connect(self.restored.address) as copy:
            await copy.write_bytes("/new", b"y" * 100_000)
            await copy.remove("/kept-9000000")
        async with nokv.connect(self.cluster.addresses) as fs:
            await fs.write_bytes("/new", b"z" * 100_000)
        del self.bodies["/kept-9000000"]
        await _compare(self.restored.address, self.bodies)
        with pytest.raises(AssertionError, match="was restored from it"):
            await self.operate("backup", "delete", "b1")
        assert largest(self.blocks) == BLOCK_BYTES

    async def adopt(self) -> None:
        """The original is gone; the copy takes the volume over and its collector works."""
        for node in self.cluster.nodes:
            self.cluster.kill(node)
        # One of a backup that the copy knows nothing of shares the bucket too.
        async with nokv.connect(self.restored.address, config=SHORT) as fs:
            store = await fs.core.object_store()
            place = f"backups/{fs.core.volume.volume}/b0/c9-0000000000000001/"
            await store.put(f"{place}restored-c8.json", b"{}")
        with pytest.raises(AssertionError, match="cluster c8 may share the bucket"):
            await self.operate_copy("volume", "adopt")
        await self.operate_copy("volume", "adopt", "--gone", "c8")
        await self.operate_copy("backup", "delete", "b1")
        await _compare(self.restored.address, self.bodies)

        async def collected() -> bool:
            async with nokv.connect(self.restored.address) as copy:
                await copy.write_bytes("/tick", b"")
            return largest(self.blocks) < BLOCK_BYTES

        await wait_for(collected, "the end of the removed body's objects")
        await self.come_back()
        await _compare(self.restored.address, self.bodies)

    async def come_back(self) -> None:
        """The original was not gone after all: it says what happened, and writes nothing."""
        for node in self.cluster.nodes:
            self.cluster.start_node(node)

        async def told() -> bool:
            pages = [self.cluster.status(node) for node in self.cluster.nodes]
            return all(
                page is not None and "has the volume: it was told" in page["not_ready_reason"]
                for page in pages
            )

        await wait_for(told, "the original's notice that it was adopted")
        async with nokv.connect(self.cluster.addresses, config=SHORT) as fs:
            with pytest.raises(ForeignVolume, match="has the volume: it was told"):
                await fs.write_bytes("/late", b"x")

    async def run(self) -> None:
        stop = asyncio.Event()
        writer = asyncio.create_task(write(self.cluster.addresses, stop, random.Random(1)))
        try:
            await self.back_up_and_restore()
            await self.write_to_both()
        finally:
            stop.set()
            assert await writer > 0
        await self.adopt()


def test_restore_beside_the_original(tmp_path: Path) -> None:
    with LocalCluster.start(settings=SETTINGS) as cluster:
        beside = Beside(cluster, tmp_path, cluster.folder.path / "store")
        try:
            asyncio.run(beside.run())
        finally:
            beside.restored.stop()


@pytest.mark.s3
def test_restore_beside_the_original_over_s3(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as server:
        store = Store("s3", "bucket", server.endpoint, region=REGION)
        with LocalCluster.start(1, store=store, settings=SETTINGS) as cluster:
            beside = Beside(cluster, tmp_path, tmp_path / "s3" / "bucket")
            beside.store = ["--store", "s3://bucket", "--endpoint", server.endpoint]
            beside.store += ["--region", REGION]
            try:
                asyncio.run(beside.run())
            finally:
                beside.restored.stop()


# ---------------------------------------------------------------- replicas that fail


def as_operator(cluster: LocalCluster) -> Connecting:
    token = read_identity(cluster.folder.node_path(1) / "data").cluster.worker_token
    return nokv.connect(cluster.addresses, token=token, caller=Caller(), config=SHORT)


async def rows_of(fs: AsyncClient) -> tuple[BackupRow, ...]:
    reply = await fs.core.read(ListBackups())
    assert isinstance(reply, BackupsReply)
    return reply.rows


async def make(fs: AsyncClient, name: str, to: Path | None = None) -> Manifest:
    store = await fs.core.object_store()
    return await create_backup(fs.core, store, name=name, keep_ns=10**15, to=to)


async def add_learner(cluster: LocalCluster) -> int:
    node = max(cluster.nodes) + 1
    member = NodePorts(node, *free_ports(3))
    incarnation = cluster.folder.add(member)
    cluster.start_node(node)
    async with cluster.admin() as admin:
        await admin.add(node, incarnation, member.peer_address, member.rpc_address)

        async def heard() -> bool:
            peers = (await admin.status()).peers
            return any(one.node == node and one.connected and not one.lag_entries for one in peers)

        await wait_for(heard, "the learner's acknowledgement")
    return node


LIST = ("backup", "list", "--json")


@pytest.mark.allow_logs("backup (b|never) at node")
def test_a_replica_that_dies_costs_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner is asked first and killed, then all are cut off: a typed error, and no hold."""
    own = RpcConnection.call
    asked: list[int] = []

    async def main(cluster: LocalCluster) -> None:
        learner = await add_learner(cluster)

        async def call(
            self: RpcConnection, body: RequestBody, *, timeout_s: float = 30.0
        ) -> ResponseBody:
            if isinstance(body, ReadBackup):
                if not asked:
                    cluster.kill(self.hello.node)
                elif asked[0] != learner:
                    self.abort()
                asked.append(self.hello.node)
            return await own(self, body, timeout_s=timeout_s)

        async with as_operator(cluster) as fs:
            store = await fs.core.object_store()
            await fs.write_bytes("/f", b"x" * 10_000)
            monkeypatch.setattr(RpcConnection, "call", call)
            await make(fs, "b")
            assert asked[0] == learner
            assert len(set(asked)) == 2
            assert [one.head.name for one in await manifests(store)] == ["b"]
            *lost, kept = await rows_of(fs)  # the keeper may have let go of the lost one by now
            for one in lost:
                assert (one.node, one.complete, one.ended_cluster_ns > 0) == (learner, False, True)
            assert (kept.node, kept.complete, kept.ended_cluster_ns) == (asked[1], True, 0)
            asked[:] = [0]
            with pytest.raises(Unavailable):
                await make(fs, "never")
            assert len(set(asked)) == 1 + create.TRIES_MAX
            assert [one.head.name for one in await manifests(store)] == ["b"]

            async def released() -> bool:
                await fs.write_bytes("/tick", b"")
                return [row.name for row in await rows_of(fs)] == ["b"]

            await wait_for(released, "the end of the holds")

    def by_hand(cluster: LocalCluster) -> None:
        """The same cluster, a node short, at the command line."""
        at, named = cluster.addresses, ("--config", settings(cluster))
        path = tmp_path / "by-hand.nokv"
        run("backup", "verify", "b", "--store", f"local:{cluster.folder.path / 'store'}")
        told = run("backup", "create", "--to", f"file:{path}", "--json", *named, cluster=at)
        made = json.loads(told)
        run("backup", "verify", f"file:{path}")
        rows = [json.loads(line) for line in run(*LIST, cluster=at).splitlines()]
        states = [(row["name"], row["state"]) for row in rows]
        assert states == [("b", "complete"), (made["name"], "complete")]
        assert rows[1]["size_bytes"] == path.stat().st_size
        run("backup", "delete", "b", *named, cluster=at)
        assert '"complete"' in run(*LIST, cluster=at)
        with pytest.raises(AssertionError, match="no backup is named"):
            run("backup", "delete", "absent", *named, cluster=at)

    with LocalCluster.start(directory=tmp_path / "c", settings=SETTINGS) as cluster:
        asyncio.run(main(cluster))
        by_hand(cluster)


# ---------------------------------------------------------------- members of a restored cluster


def test_a_member_joins_a_restored_cluster(tmp_path: Path) -> None:
    """It has to take an image: the log begins behind the backup."""
    first, second = RestoredNode(tmp_path), RestoredNode(tmp_path, "second")
    folder = tmp_path / "scheduled"
    schedule: dict[str, str | int | bool] = {
        "backup.every_ms": 3_600_000,
        "backup.to": f"file:{folder}",
        **SETTINGS,
    }
    with LocalCluster.start(1, settings=schedule) as cluster:
        asyncio.run(fill(cluster, tmp_path / "b"))
        asyncio.run(scheduled(cluster, folder))
        named = ("--config", first.config, "--silence", "1s")
        run("backup", "restore", f"file:{tmp_path / 'b'}", *named, "--join-file", tmp_path / "join")
        try:
            first.start()
            run("init", "--config", second.config, "--join", tmp_path / "join", "--node", "2")
            second.start()
            incarnation = read_identity(second.data_dir).incarnation
            asyncio.run(_compare(first.address, {"/f1": b"1" * 6000}))
            place = ("--peer", second.peer, "--rpc", second.address, "--config", first.config)
            number = ("--incarnation", str(incarnation))
            run("member", "add", "2", *number, *place, "--wait", cluster=first.address)
            asyncio.run(_compare(second.address, {"/f2": b"2" * 6000}))
            asyncio.run(equal({1: first.address, 2: second.address}))
            with pytest.raises(AssertionError, match="token is wrong"):
                run("backup", "create", "--config", settings(cluster), cluster=first.address)
        finally:
            second.stop()
            first.stop()
        lists_what_is_missing(tmp_path, cluster.folder.path / "store")
    assert "a state image is installed" in second.log.read_text()


async def fill(cluster: LocalCluster, backup: Path) -> None:
    async with as_operator(cluster) as fs:
        for number in range(30):
            await fs.write_bytes(f"/f{number}", str(number).encode() * 6000)
        for _ in range(3):  # one image more than a node keeps open
            with pytest.raises(FileNotFoundError):
                await make(fs, "never", backup / "no-folder" / "b")
        await make(fs, "b", backup)


async def scheduled(cluster: LocalCluster, folder: Path) -> None:
    """A directory that can't be used costs the worker its rounds, not its life."""

    async def failed() -> bool:
        return "No such file" in cluster.folder.log_path(1).read_text()

    await wait_for(failed, "the failure of a scheduled backup")
    await asyncio.to_thread(folder.mkdir)
    async with as_operator(cluster) as fs:

        async def made() -> bool:
            await fs.write_bytes("/tick", b"")
            return any(row.slot and row.complete for row in await rows_of(fs))

        await wait_for(made, "the scheduled backup")


def lists_what_is_missing(folder: Path, store: Path) -> None:
    """A restore beside a bucket that lacks a body ends with 1 and names the body."""
    next(path for path in sorted((store / "blocks").rglob("*")) if path.is_file()).unlink()
    node = RestoredNode(folder, "third")
    with pytest.raises(AssertionError, match=r"missing: inode \d+, chunk 0: blocks/"):
        run("backup", "restore", f"file:{folder / 'b'}", "--config", node.config)
    assert node.data_dir.joinpath("node.json").exists()


async def equal(addresses: dict[int, str]) -> None:
    async def leads() -> bool:
        for address in addresses.values():
            try:
                replies = await compare_digests(address, addresses)
            except NokvError:
                continue
            return len({one.digest for one in replies.values()}) == 1 and len(replies) == 2
        return False

    await wait_for(leads, "equal digests")


async def _compare(address: str, bodies: dict[str, bytes]) -> None:
    async def serves() -> bool:
        try:
            async with nokv.connect(address) as fs:
                for name, body in bodies.items():
                    assert await fs.read_bytes(name) == body, name
        except NokvError as error:
            if isinstance(error, FileNotFoundError):
                raise
            return False
        return True

    await wait_for(serves, "an answer of the restored cluster")
