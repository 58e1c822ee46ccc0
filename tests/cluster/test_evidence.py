"""What the demonstration claims can be found false: each check fails on what it must find."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from nokv.client import ClientConfig
from nokv.objects.open import open_store
from nokv.testing.cluster import LocalCluster
from nokv.testing.demo.report import Report
from nokv.testing.evidence import check_once, compare_bucket, compare_tree, count_objects
from nokv.testing.harness import Harness, Sent, harness
from nokv.types.limits import INLINE_BYTES_MAX

pytestmark = pytest.mark.cluster

Change = Callable[[Path], None]


def source(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"inline")
    (root / "sub" / "b").write_bytes(os.urandom(5 << 20))
    (root / "link").symlink_to("a")
    return root


def flip(path: Path) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("sub")


def last_object(bucket: str) -> Path:
    return max(path for path in Path(bucket).glob("blocks/**/*") if path.is_file())


CHANGES: dict[str, Change] = {
    "other bytes": lambda root: flip(root / "sub" / "b"),
    "other bytes inline": lambda root: flip(root / "a"),
    "a mode": lambda root: (root / "a").chmod(0o600),
    "a directory's mode": lambda root: (root / "sub").chmod(0o700),
    "a time": lambda root: os.utime(root / "a", ns=(1, 2)),
    "a link": lambda root: relink(root / "link"),
    "a name more": lambda root: (root / "more").touch(),
    "a name less": lambda root: (root / "link").unlink(),
}


@pytest.mark.parametrize("what", [*CHANGES])
def test_a_tree_that_differs(what: str, nokv_cluster: LocalCluster, tmp_path: Path) -> None:
    async def main() -> None:
        root = source(tmp_path / "source")
        path = f"/evidence-{what.replace(' ', '-')}"
        async with harness(nokv_cluster.addresses) as client:
            await client.fs.publish_tree(root, path)
            same = await compare_tree(client.fs, path, root)
            assert same.problems == []
            assert (same.files, same.links, same.directories) == (2, 1, 1)
            CHANGES[what](root)
            assert len((await compare_tree(client.fs, path, root)).problems) == 1

    asyncio.run(main())


def test_a_publish_that_happened_twice(nokv_cluster: LocalCluster, tmp_path: Path) -> None:
    async def main() -> None:
        root = source(tmp_path / "source")
        assert count_objects(root, INLINE_BYTES_MAX) == 2
        sent: list[Sent] = []
        client: Harness

        async def keep(point: str) -> None:
            if point == "sent":
                sent.append(await client.newest_command())

        async with harness(nokv_cluster.addresses, fault_point=keep) as client:
            cursor = (await client.fs.stat("/")).version
            done = await client.fs.publish_tree(root, "/evidence-twice")
            command = sent[-1].command
            again = await client.send_again(sent[-1].data)
            assert again.version == done.version
            assert (await check_once(client.fs, done, command, cursor)).problems == []
            await client.fs.write_bytes("/evidence-twice/a", b"another generation")
            found = await check_once(client.fs, done, command, cursor)
            assert any("generation" in problem for problem in found.problems)
            await client.fs.publish_tree(root, "/evidence-twice", "replace")
            found = await check_once(client.fs, done, command, cursor)
            assert any("appeared 2 times" in problem for problem in found.problems)

    asyncio.run(main())


def test_a_bucket_that_differs(nokv_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with harness(nokv_cluster.addresses, config=ClientConfig(parallel=4)) as client:
            store = open_store(client.core.volume)
            await client.fs.write_bytes("/evidence-object", os.urandom(5 << 20))
            before = await compare_bucket(client, store)
            assert before.missing == []
            swept_later = set(before.orphans)  # uploads that other tests gave up
            one = last_object(client.core.volume.bucket)
            kept = one.read_bytes()
            stray = one.with_name("ffff.0000")
            stray.write_bytes(kept)
            found = await compare_bucket(client, store, tries=2)
            assert (found.missing, len({*found.orphans} - swept_later)) == ([], 1)
            stray.unlink()
            one.unlink()
            found = await compare_bucket(client, store, tries=2)
            assert (len(found.missing), {*found.orphans} - swept_later) == (1, set())
            one.write_bytes(kept)
            await store.close()

    asyncio.run(main())


def test_a_broken_claim_breaks_the_report() -> None:
    shown = io.StringIO()
    report = Report(Console(file=shown, width=200))
    for problems, holds in (("", True), ("it is not", False), ("", False)):
        report.check("[all] is well", problems)
        assert report.holds == holds
    assert "BROKEN  [all] is well: it is not" in shown.getvalue()
