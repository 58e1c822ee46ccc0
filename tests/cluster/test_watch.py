"""Watches on a real cluster: leaders die, and every watcher is told every change once."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys

import pytest
from tests.cluster.conftest import Nokv

from nokv.client import AsyncClient, Change, connect
from nokv.testing.cluster import LocalCluster

pytestmark = pytest.mark.cluster

PROGRAM = [sys.executable, "-m", "nokv.cli"]
KILLS = 2
WRITERS = 4
BETWEEN = 60
"""Creates before and after each kill."""


async def until_the_end(cluster: LocalCluster, base: str, since: int, opened: asyncio.Semaphore,
                        node: int | None = None) -> list[Change]:  # fmt: skip
    """Return everything below `base` until the file `end` is made."""
    found: list[Change] = []
    async with connect(cluster.addresses) as fs:
        handle = fs if node is None else fs.reading_from(node)
        async with handle.watch(base, since=since) as watch:
            opened.release()
            async for change in watch:
                found.append(change)
                if change.path == f"{base}/end":
                    return found
    return found


async def create(fs: AsyncClient, directory: str, created: asyncio.Semaphore) -> None:
    await fs.mkdir(directory)
    number = 0
    while True:
        await fs.create(f"{directory}/{number}")
        created.release()
        number += 1


@pytest.mark.allow_logs("nokv.client")
def test_a_killed_leader_loses_and_doubles_nothing(rough_cluster: LocalCluster) -> None:
    async def main() -> None:
        cluster, base = rough_cluster, f"/watched-{os.getpid()}"
        async with connect(cluster.addresses) as fs:
            start = (await fs.mkdir(base)).version
            opened, created = asyncio.Semaphore(0), asyncio.Semaphore(0)
            watchers = [
                asyncio.create_task(until_the_end(cluster, base, start, opened)) for _ in range(4)
            ]
            for _ in watchers:
                await opened.acquire()
            writers = [
                asyncio.create_task(create(fs, f"{base}/{number}", created))
                for number in range(WRITERS)
            ]
            for _ in range(KILLS):
                for _ in range(BETWEEN):
                    await created.acquire()
                killed = await asyncio.to_thread(cluster.leader)
                await asyncio.to_thread(cluster.kill, killed)
                for _ in range(BETWEEN):
                    await created.acquire()
                await asyncio.to_thread(cluster.restart, killed)
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
            await fs.create(f"{base}/end")
            told = await asyncio.gather(*watchers)
            inode = (await fs.stat(base)).inode
            expected = [e.version async for e in fs.events(start) if inode in e.chain]
        assert len(expected) > KILLS * 2 * BETWEEN
        for found in told:
            assert [change.cursor for change in found] == expected
            assert [change.kind for change in found] == ["create"] * len(found)

    asyncio.run(main())


def test_every_node_can_be_watched(rough_cluster: LocalCluster) -> None:
    async def main() -> None:
        cluster, base = rough_cluster, f"/every-{os.getpid()}"
        async with connect(cluster.addresses) as fs:
            start = (await fs.mkdir(base)).version
            opened = asyncio.Semaphore(0)
            watchers = [
                asyncio.create_task(until_the_end(cluster, base, start, opened, node))
                for node in cluster.nodes
            ]
            for _ in watchers:
                await opened.acquire()
            for number in range(20):
                await fs.create(f"{base}/{number}")
            await fs.create(f"{base}/end")
            told = await asyncio.gather(*watchers)
        paths = [f"{base}/{number}" for number in range(20)] + [f"{base}/end"]
        assert [[change.path for change in found] for found in told] == [paths] * 3

    asyncio.run(main())


@pytest.mark.usefixtures("quiet")
def test_the_command(nokv: Nokv) -> None:
    base = "/cli-watch"
    assert nokv("mkdir", base).code == 0
    (made,) = nokv("stat", "--json", base).json()
    since = str(made["version"])
    assert nokv("mkdir", f"{base}/sub").code == 0
    assert nokv("mkdir", os.fsencode(f"{base}/sub/").decode() + "\udcff").code == 0
    assert nokv("mv", f"{base}/sub", "/cli-watch-moved").code == 0
    done = nokv("watch", base, "-r", "--since", since, "-n", "3", "--json")
    assert (done.code, done.err) == (0, "")
    rows = done.json()
    assert [row["type"] for row in rows] == ["create", "create", "moved_out"]
    assert [row["path"] for row in rows] == [f"{base}/sub", None, f"{base}/sub"]
    assert [row["cursor"] for row in rows] == sorted(row["cursor"] for row in rows)
    flat = nokv("watch", base, "--since", since, "-n", "2", "--types", "create,moved_out")
    assert [line.split()[2:] for line in flat.out.splitlines()] == [
        ["create", f"{base}/sub"],
        ["moved_out", f"{base}/sub"],
    ]
    _, inside, _ = nokv("watch", "/cli-watch-moved", "--since", since, "-n", "3", "--json").json()
    assert base64.b64decode(inside["path_b64"]) == b"/cli-watch-moved/\xff"
    assert "no kind of change" in nokv("watch", base, "--types", "x").err
    future = nokv("watch", base, "--since", str(10**9))
    assert (future.code, "above the present version" in future.err) == (1, True)
    assert nokv("watch", "/cli-none").code == 1


def test_an_interrupted_command_says_how_to_go_on(nokv_cluster: LocalCluster, nokv: Nokv) -> None:
    base = "/cli-interrupt"
    assert nokv("mkdir", base).code == 0
    (made,) = nokv("stat", "--json", base).json()
    assert nokv("mkdir", f"{base}/sub").code == 0
    with subprocess.Popen(
        [*PROGRAM, "watch", base, "--json", "--since", str(made["version"])],
        env=os.environ | {"NOKV_CLUSTER": nokv_cluster.addresses},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (rest, process.returncode) == ("", 130)
    assert first["path"] == f"{base}/sub"
    told, _, cursor = errors.rpartition(" ")
    assert told == "nokv: to go on: --since"
    assert int(cursor) >= first["cursor"]
