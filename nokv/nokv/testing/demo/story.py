"""The demonstration from start to end, and every claim that it makes, checked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final, NamedTuple

from nokv.client.publish import Published
from nokv.objects.open import open_store
from nokv.objects.port import ObjectStore
from nokv.testing.cluster import LocalCluster
from nokv.testing.commits import SerialCommits, committing
from nokv.testing.demo.kills import Kill, KillWhileProposed, KillWhileUploading
from nokv.testing.demo.report import Report
from nokv.testing.demo.sources import Source
from nokv.testing.evidence import (
    check_once,
    compare_bucket,
    compare_digests,
    compare_tree,
    count_objects,
)
from nokv.testing.harness import Harness, harness
from nokv.testing.writers import check_writers, writing

ATTEMPTS: Final = 5
"""A kill that was not in the middle is repeated so often at most."""

BASE: Final = "/demo"


class Shown(NamedTuple):
    """One publish that lived through a kill."""

    source: Source
    path: str
    published: Published
    kill: Kill
    took_s: float
    gap_s: float
    leader: int
    """Afterwards."""
    back_s: float
    """From the start of the killed node until it had caught up."""
    retry_version: int
    """What a retry of the command returned after it had succeeded."""
    cursor: int


class Story:
    """Tells the story on a running cluster."""

    def __init__(self, cluster: LocalCluster, journals: Path, report: Report) -> None:
        self._cluster = cluster
        self._journals = journals
        self._report = report

    async def tell(self, library: Source, checkpoint: Source) -> bool:
        """Publish both through kills and check everything; return whether all of it holds."""
        addresses = self._cluster.addresses
        async with harness(addresses) as client:
            store = open_store(client.core.volume)
            try:
                await client.fs.mkdir(BASE)
                cursor = (await client.fs.stat(BASE)).version
                async with (
                    writing(addresses, f"{BASE}/writers", self._journals) as writers,
                    committing(addresses, f"{BASE}/serial") as commits,
                ):
                    self._report.step(f"{len(writers)} writers and a serial one work beside it")
                    await commits.wait_after(time.monotonic())
                    first = await self._through_kill(client, store, commits, library, "upload")
                    second = await self._through_kill(
                        client, store, commits, checkpoint, "proposal"
                    )
                self._report.publishes([first, second])
                verdict = await check_writers(client.fs, writers, cursor)
                self._report.check(
                    f"{verdict.done} acknowledged writes are there, each once; "
                    f"{verdict.unknown} unknown, of them {verdict.unknown_applied} there",
                    verdict.problems(),
                )
                for shown in (first, second):
                    await self._check(client, shown)
                await self._check_bucket(client, store)
                await self._check_digests()
            finally:
                await store.close()
        return self._report.holds

    # ------------------------------------------------------------ publishing

    async def _through_kill(
        self,
        client: Harness,
        store: ObjectStore,
        commits: SerialCommits,
        source: Source,
        when: str,
    ) -> Shown:
        for attempt in range(ATTEMPTS):
            suffix = f"-{attempt + 1}" if attempt else ""
            path = f"{BASE}/{source.path.name}{suffix}"
            kill: Kill
            if when == "upload":
                objects = count_objects(source.path, client.core.volume.inline_max)
                kill = KillWhileUploading(self._cluster, store, source.files * 2 // 5, objects)
            else:
                kill = KillWhileProposed(self._cluster)
            shown = await self._publish(commits, source, path, kill)
            if kill.counts:
                return shown
            self._report.step(f"again: the kill did not count, {kill.evidence or 'none happened'}")
        message = f"no kill in {ATTEMPTS} was in the middle of the publish of {source.title}"
        raise RuntimeError(message)

    async def _publish(
        self, commits: SerialCommits, source: Source, path: str, kill: Kill
    ) -> Shown:
        self._report.step(f"publishing {source.title}: {source.files} files as {path}")
        async with harness(self._cluster.addresses, fault_point=kill) as publisher:
            kill.client = publisher
            cursor = (await publisher.fs.stat(BASE)).version
            started_s = time.monotonic()
            published = await publisher.fs.publish_tree(source.path, path)
            took_s = time.monotonic() - started_s
            assert kill.sent is not None, "a publish sends a command"
            retry = await publisher.send_again(kill.sent.data)
        gap_s = back_s = 0.0
        leader = await asyncio.to_thread(self._cluster.leader)
        if kill.node:
            await commits.wait_after(kill.moment_s)
            gap_s = commits.gap_after(kill.moment_s) or 0.0
            self._report.step(
                f"kill -9 of node {kill.node}, which led: {kill.evidence}; "
                f"node {leader} leads, {gap_s:.2f} s without commits"
            )
            restarted_s = time.monotonic()
            await asyncio.to_thread(self._cluster.restart, kill.node)
            await asyncio.to_thread(self._cluster.wait_caught_up, kill.node)
            back_s = time.monotonic() - restarted_s
            self._report.step(f"node {kill.node} is back and caught up after {back_s:.1f} s")
        return Shown(
            *(source, path, published, kill, took_s, gap_s, leader, back_s),
            *(retry.version, cursor),
        )

    # ------------------------------------------------------------ checks

    async def _check(self, client: Harness, shown: Shown) -> None:
        assert shown.kill.sent is not None
        command = shown.kill.sent.command
        once = await check_once(client.fs, shown.published, command, shown.cursor)
        problems = list(once.problems)
        if shown.retry_version != shown.published.version:
            problems.append(
                f"a retry returned version {shown.retry_version}, not {shown.published.version}"
            )
        self._report.check(
            f"{shown.path} happened once: {once.events} publish event(s) of session "
            f"{command.session:x} seq {command.seq}, {once.generations} files of one generation "
            f"each; a retry returned version {shown.retry_version} again",
            "; ".join(problems),
        )
        node = shown.kill.node
        leader = await asyncio.to_thread(self._cluster.leader)
        if node == leader:
            node = next(other for other in self._cluster.nodes if other != leader)
        compared = await compare_tree(client.fs.reading_from(node), shown.path, shown.source.path)
        self._report.check(
            f"{shown.path} read back through follower {node}: {compared.files} files, "
            f"{compared.links} links, {compared.directories} directories, "
            f"{compared.n_bytes / (1 << 20):.0f} MiB; "
            "SHA-256, modes, times and links are the source's",
            "; ".join(compared.problems),
        )

    async def _check_bucket(self, client: Harness, store: ObjectStore) -> None:
        bucket = await compare_bucket(client, store)
        problems = [f"{name} is missing" for name in bucket.missing[:3]]
        problems += [f"{name} is named by nothing" for name in bucket.orphans[:3]]
        self._report.check(
            f"{bucket.stored} objects in the bucket = {bucket.named} named "
            f"+ {bucket.queued} queued for collection",
            "; ".join(problems),
        )

    async def _check_digests(self) -> None:
        addresses = {member.node: member.rpc_address for member in self._cluster.members}
        leader = await asyncio.to_thread(self._cluster.leader)
        replies = await compare_digests(addresses[leader], addresses)
        one = replies[leader]
        different = [
            f"node {node}, {family}"
            for node, reply in replies.items()
            for family, digest in reply.families.items()
            if digest != one.families.get(family)
        ]
        if len({reply.digest for reply in replies.values()}) > 1:
            different.append("the digests of the whole state differ")
        self._report.check(
            f"the {len(replies)} nodes have the same state at entry {one.applied_index}: "
            f"digest {one.digest.hex()[:16]}...",
            "; ".join(different),
        )
