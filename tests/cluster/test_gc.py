"""`nokv gc` and `nokv fsck` on a real cluster: what they show, do and return."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import Done

import nokv
from nokv.cli.gc import EXIT_DAMAGED, EXIT_REPAIRED
from nokv.cli.main import main
from nokv.client.fs import AsyncClient
from nokv.errors import Forbidden
from nokv.objects.layout import ObjectName, format_name
from nokv.objects.local import LocalStore
from nokv.testing.cluster import LocalCluster
from nokv.wire.rpc import RunGc

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("quiet")]

SETTINGS = {
    "worker.interval_ms": 100,
    "worker.grace_ms": 200,
    "worker.sweep_interval_ms": 3_600_000,
}
"""Sweeps are the test's own."""
SIZE = 20_000
Gc = Callable[..., Done]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(1, settings=SETTINGS) as made:
        yield made


@pytest.fixture
def run(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Gc:
    """Run the command line with the settings of a node, which lead to the token."""
    monkeypatch.setenv("NOKV_CLUSTER", cluster.addresses)
    settings = str(cluster.folder.node_path(1) / "node.toml")

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        operator = arguments[0] in ("gc", "fsck")
        code = main([*arguments, *(["--config", settings] if operator else [])])
        return Done(code, *capfd.readouterr())

    return call


def bodies(cluster: LocalCluster) -> set[Path]:
    """Every object of a body in the bucket."""
    return {
        path for path in (cluster.folder.path / "store" / "blocks").rglob("*.0*") if path.is_file()
    }


def write(cluster: LocalCluster, *names: str) -> None:
    async def work() -> None:
        async with nokv.connect(cluster.addresses) as fs:
            for name in names:
                await fs.write_bytes(name, os.urandom(SIZE))

    asyncio.run(work())


def freed(done: Done) -> dict[str, Any]:
    assert done.code == 0, done
    found: dict[str, Any] = json.loads(done.out)["freed"]
    return found


def test_what_waits_is_shown_and_goes_when_nothing_keeps_it(cluster: LocalCluster, run: Gc) -> None:
    assert run("mkdir", "/d").code == 0
    write(cluster, "/d/f")
    assert run("snapshot", "create", "/d", "--name", "before").code == 0
    before = bodies(cluster)
    write(cluster, "/d/f")
    (row,) = run("gc", "pending", "--json").json()
    assert (row["objects"], row["size_bytes"]) == (1, SIZE)
    assert ("snapshot", "before") in {(r["why"], r["name"]) for r in row["reasons"]}
    assert "snapshot before" in run("gc", "pending").out
    assert freed(run("gc", "run", "--json"))["objects"] == 0
    assert before < bodies(cluster)
    assert run("snapshot", "delete", "before").code == 0
    done = run("gc", "run", "--json")
    while bodies(cluster) & before:  # the grace may not have been over
        done = run("gc", "run", "--json")
    assert freed(done).keys() >= {"objects", "size_bytes", "orphans", "reaped", "rows"}
    assert len(bodies(cluster)) == 1
    assert run("gc", "pending", "--json").out == ""
    status = run("gc", "status", "--json").json()[0]
    assert status["freed"]["objects"] >= 1
    assert status["freed"]["size_bytes"] >= SIZE
    assert status["waiting"]["drops"] == 0
    assert status["adopted"]
    assert "freed " in run("gc", "status").out


def dead_session(run: Gc) -> int:
    """A session that ended, long enough ago for its uploads to be judged."""
    while True:
        for row in run("gc", "pending", "--sessions", "--json").json():
            if row["why"] == "answers":
                return int(row["session"], 16)


def stray(cluster: LocalCluster, session: int, upload: int) -> Path:
    """Put an object as a client does that dies before it publishes."""
    volume = cluster.folder.path / "store"
    (owner,) = (path.name for path in (volume / "blocks").iterdir())
    name = format_name(ObjectName(owner, 0, session, upload, 0, 0, 0))

    async def put() -> None:
        store = LocalStore(volume)
        await store.put(name, b"x" * 100)
        await store.close()

    asyncio.run(put())
    return volume / name


def test_orphans_are_shown_with_proof_and_go(cluster: LocalCluster, run: Gc) -> None:
    write(cluster, "/kept")
    session = dead_session(run)
    kept = bodies(cluster)
    lost = stray(cluster, session, 900)
    (row,) = run("gc", "orphans", "--dry-run", "--json").json()
    assert row["name"].endswith("/0000000000000384/00000000/0000.0000")
    assert row["size_bytes"] == 100
    assert f"session {session:016x} ended" in row["proof"]
    assert lost.exists()
    assert "1 orphan of 100 B found" in run("gc", "orphans", "--dry-run").out
    assert "1 orphan of 100 B deleted" in run("gc", "orphans").out
    assert bodies(cluster) == kept
    stray(cluster, session, 901)
    assert freed(run("gc", "run", "--json"))["orphans"] == 1
    assert run("fsck").code == 0


def test_fsck_says_how_it_ended(cluster: LocalCluster, run: Gc) -> None:
    write(cluster, "/checked", "/broken")
    done = run("fsck", "--deep")
    assert (done.code, done.out.splitlines()[-1]) == (0, "clean")
    assert run("fsck", "--repair").code == 2
    never_known = stray(cluster, dead_session(run) & ~0xFFFF_FFFF | 0xFFFF, 1)
    published = run("fsck", "--deep", "--json").json()[0]
    assert (published["unjudged"], published["damaged"]) == (1, 0)
    never_known.unlink()
    path = next(one for one in bodies(cluster) if one.stat().st_size == SIZE)
    twin = path.with_name("0009.0000")  # of an upload that was published without it
    twin.write_bytes(b"leaked")
    assert run("fsck").code == 0
    found = run("fsck", "--deep")
    assert (found.code, found.out.splitlines()[-1]) == (EXIT_DAMAGED, "damaged")
    assert twin.name in found.out
    repaired = run("fsck", "--deep", "--repair")
    assert (repaired.code, repaired.out.splitlines()[-1]) == (EXIT_REPAIRED, "repaired")
    assert not twin.exists()
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert run("fsck").code == 0
    assert "corrupt: " in run("fsck", "--deep").out
    path.unlink()
    lost = run("fsck", "--json")
    assert lost.code == EXIT_DAMAGED
    assert lost.json()[0]["counts"] == {"missing": 1}
    path.write_bytes(data)
    assert run("fsck", "--deep").code == 0


def test_fsck_of_a_volume_that_is_written_to_is_clean(cluster: LocalCluster, run: Gc) -> None:
    del run

    async def churn(fs: AsyncClient, stop: asyncio.Event) -> int:
        rounds = 0
        while not stop.is_set():
            await fs.mkdir(f"/churn{rounds}")
            for name in "abc":
                await fs.write_bytes(f"/churn{rounds}/{name}", os.urandom(SIZE))
            await fs.write_bytes(f"/churn{rounds}/a", os.urandom(SIZE))
            await fs.remove_tree(f"/churn{rounds}")
            rounds += 1
        return rounds

    async def check() -> int:
        settings = cluster.folder.node_path(1) / "node.toml"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nokv.cli", "fsck", "--deep", "--config", str(settings),
            env={**os.environ, "NOKV_CLUSTER": cluster.addresses},
        )  # fmt: skip
        return await process.wait()

    async def both() -> int:
        stop = asyncio.Event()
        async with nokv.connect(cluster.addresses) as fs:
            churning = asyncio.create_task(churn(fs, stop))
            codes = [await check() for _ in range(3)]
            stop.set()
            rounds = await churning
        assert codes == [0, 0, 0]
        return rounds

    assert asyncio.run(both()) > 3


def test_runs_are_for_operators(cluster: LocalCluster) -> None:
    async def ask() -> None:
        async with nokv.connect(cluster.addresses) as fs:
            with pytest.raises(Forbidden, match="operators"):
                await fs.core.router.call_leader(RunGc(run=True), 5.0)

    asyncio.run(ask())


def test_leaders_killed_while_bodies_come_and_go(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost, and at rest nothing is left that no record names."""

    async def churn(cluster: LocalCluster) -> None:
        rng = random.Random(7)
        async with nokv.connect(cluster.addresses) as fs:
            await fs.mkdir("/churn")
            for turn in range(3):
                leader = await asyncio.to_thread(cluster.leader)
                writes = [
                    fs.write_bytes(f"/churn/{rng.randrange(8)}", os.urandom(SIZE))
                    for _ in range(60)
                ]
                going = asyncio.gather(*writes)
                await fs.mkdir(f"/churn/{turn}-d")
                cluster.kill(leader)
                await going
                await fs.remove_tree(f"/churn/{turn}-d")
                await asyncio.to_thread(cluster.restart, leader)
                await asyncio.to_thread(cluster.wait_caught_up, leader)
            for name in range(8):
                if await fs.exists(f"/churn/{name}"):
                    assert len(await fs.read_bytes(f"/churn/{name}")) == SIZE

    with LocalCluster.start(3, settings=SETTINGS) as cluster:
        asyncio.run(churn(cluster))
        monkeypatch.setenv("NOKV_CLUSTER", cluster.addresses)
        settings = str(cluster.folder.node_path(1) / "node.toml")

        def call(*arguments: str) -> Done:
            capfd.readouterr()
            return Done(main([*arguments, "--config", settings]), *capfd.readouterr())

        report: dict[str, Any] = {"listed": -1}
        while report["listed"] != report.get("objects"):  # the grace has to pass
            assert call("gc", "run", "--json").code == 0
            done = call("fsck", "--deep", "--json")
            assert done.code == 0, done
            (report,) = done.json()
        assert report["objects"] == report["read"] <= 8
        assert (report["waiting"], report["unjudged"]) == (0, 0)
