"""Backup and restore over real processes: the original goes on writing to the same bucket."""

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
from nokv.errors import NokvError
from nokv.testing.cluster import LocalCluster
from nokv.testing.ports import free_ports
from nokv.types.limits import BLOCK_BYTES

SETTINGS = {"worker.interval_ms": 100, "worker.grace_ms": 200, "worker.sweep_interval_ms": 300}
PATIENCE_S = 60.0


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
    async with nokv.connect(cluster) as fs:
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

    def __init__(self, folder: Path) -> None:
        peer, rpc, http = free_ports(3)
        self.config = folder / "restored.toml"
        self.address = f"127.0.0.1:{rpc}"
        self.log = folder / "restored.log"
        self.config.write_text(
            f'data_dir = "restored"\n[peer]\nlisten = "127.0.0.1:{peer}"\n'
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


@pytest.mark.parametrize("where", ["bucket", "file"])
def test_restore_beside_the_original(tmp_path: Path, where: str) -> None:
    restored = RestoredNode(tmp_path)
    rng = random.Random(7)
    bodies = {f"/kept-{size}": rng.randbytes(size) for size in (0, 10, 5000, 300_000, 9_000_000)}
    with LocalCluster.start(settings=SETTINGS) as cluster:
        store = cluster.folder.path / "store"
        try:
            asyncio.run(_restore_beside(cluster, restored, store, bodies, where, tmp_path))
        finally:
            restored.stop()


async def _restore_beside(
    cluster: LocalCluster,
    restored: RestoredNode,
    store: Path,
    bodies: dict[str, bytes],
    where: str,
    tmp_path: Path,
) -> None:
    async with nokv.connect(cluster.addresses) as fs:
        for name, body in bodies.items():
            await fs.write_bytes(name, body)
        stop = asyncio.Event()
        writer = asyncio.create_task(write(cluster.addresses, stop, random.Random(1)))
        path = tmp_path / "backup.nokv"
        to = "bucket" if where == "bucket" else f"file:{path}"
        create = ("backup", "create", "--name", "b1", "--to", to, "--json")
        made = json.loads(await asyncio.to_thread(run, *create, cluster=cluster.addresses))
        source = "b1" if where == "bucket" else f"file:{path}"
        named = ("--store", f"local:{store}")
        await asyncio.to_thread(run, "backup", "verify", source, *named)
        # The original replaces and removes all of it, and collects what it may.
        for number, name in enumerate(bodies):
            if number % 2:
                await fs.remove(name)
            else:
                await fs.write_bytes(name, b"x" * 200_000)
        restore = ("backup", "restore", source, *named, "--config", restored.config)
        found = json.loads(await asyncio.to_thread(run, *restore, "--silence", "1s", "--json"))
        assert found["missing"] == []
        assert found["version"] == made["version"]
        restored.start()
        await _compare(restored.address, bodies)
        async with nokv.connect(restored.address) as copy:
            await copy.write_bytes("/new", b"y" * 100_000)
            await copy.remove("/kept-9000000")
        await fs.write_bytes("/new", b"z" * 100_000)
        del bodies["/kept-9000000"]
        await _compare(restored.address, bodies)
        stop.set()
        assert await writer > 0
        with pytest.raises(AssertionError, match="was restored from it"):
            await asyncio.to_thread(run, "backup", "delete", "b1", cluster=cluster.addresses)
        assert largest(store) == BLOCK_BYTES
    # The original is gone; the copy takes the volume over and its collector works.
    for node in cluster.nodes:
        cluster.kill(node)
    await asyncio.to_thread(run, "volume", "adopt", cluster=restored.address)
    await asyncio.to_thread(run, "backup", "delete", "b1", cluster=restored.address)
    await _compare(restored.address, bodies)

    async def collected() -> bool:
        async with nokv.connect(restored.address) as copy:
            await copy.write_bytes("/tick", b"")
        return largest(store) < BLOCK_BYTES

    await wait_for(collected, "the end of the removed body's objects")
    await _compare(restored.address, bodies)


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
