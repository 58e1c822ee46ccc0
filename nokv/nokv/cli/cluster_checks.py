"""The checks of `nokv doctor` that ask a running cluster."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nokv.cli import output
from nokv.cli.checks import Finding
from nokv.cli.status import Seen, has_quorum, look
from nokv.errors import ConfigError, NokvError

if TYPE_CHECKING:
    from nokv.objects.port import ObjectStore
    from nokv.types.reads import BackupRow, VolumeReply

Tell = Callable[[Finding], None]

SKEW_NS_MAX: Final = 2_000_000_000
"""Clocks that differ by more than this make file times wrong; at 10 s the leader clamps them."""
LAG_ENTRIES_MAX: Final = 10_000
FREE_BYTES_MIN: Final = 1 << 30
PROBE: Final = "doctor/probe"
NEW_S: Final = 10.0
"""So long a new cluster may take to make its bucket and its object there."""
STORE_S: Final = 15.0
"""A store that takes longer for three small requests is of no use."""


def run(cluster: str, tell: Tell, backup_every_ms: int = 0) -> None:
    """Look at the nodes, then at the object store that they name, and at the backups.

    `backup_every_ms` is the period in which a backup is made, 0 if there is none.
    """
    asyncio.run(_run(cluster, tell, backup_every_ms))


async def _run(cluster: str, tell: Tell, backup_every_ms: int) -> None:
    try:
        seen = await look(cluster)
    except ConfigError as error:
        tell(Finding("failure", "cluster", error.message, error.hint))
        return
    for one in seen:
        tell(_node(one))
    answered = [one for one in seen if one.status is not None]
    if not answered:
        return
    tell(_quorum(seen))
    for finding in (*_lags(seen), *_disks(seen), *_one_cluster(answered)):
        tell(finding)
    tell(_clocks(answered))
    if has_quorum(seen):
        await _round_trips(cluster, tell, backup_every_ms)


def _node(one: Seen) -> Finding:
    if one.status is None:
        advice = one.advice or "start it, or look at its log; is the address right?"
        return Finding("failure", f"node at {one.address}", f"no answer: {one.error}", advice)
    subject = f"node {one.status.node} at {one.address}"
    if one.trouble:
        return Finding("failure", subject, f"not ready: {one.trouble}", "look at its log")
    if one.warning:
        return Finding("warning", subject, one.warning, "see docs/operations.md")
    text = f"{one.status.role} in term {one.status.term}, build {one.status.build}"
    return Finding("ok", subject, text)


def _quorum(seen: list[Seen]) -> Finding:
    for one in seen:
        if one.status is not None and one.status.role == "leader":
            cut = [str(peer.node) for peer in one.status.peers if not peer.connected]
            text = f"node {one.status.node} leads"
            if not has_quorum(seen):
                advice = "start the other nodes: without a majority nothing is committed"
                return Finding("failure", "quorum", f"{text} without a majority", advice)
            if cut:
                advice = "start them, or repair the network between the nodes"
                text += f", but does not reach node {', '.join(cut)}"
                return Finding("warning", "quorum", text, advice)
            return Finding("ok", "quorum", f"{text} and reaches all others")
    advice = "start a majority of the nodes, and see that their peer ports reach each other"
    return Finding("failure", "quorum", "no node leads", advice)


def _lags(seen: list[Seen]) -> list[Finding]:
    commit = max(one.status.commit_index for one in seen if one.status is not None)
    found, follow = [], []
    for one in seen:
        if one.status is None or one.trouble:
            continue
        lag = commit - one.status.applied_index
        if lag > LAG_ENTRIES_MAX:
            advice = "is its disk or its processor too slow? compare: nokv doctor --dir"
            text = f"{lag} entries behind"
            found.append(Finding("warning", f"node {one.status.node}", text, advice))
        else:
            follow.append(one)
    if len(follow) == len(seen):
        return [Finding("ok", "lag", "every node follows")]
    if not found:
        text = f"{len(follow)} of {len(seen)} nodes follow"
        found.append(Finding("warning", "lag", text, "repair the nodes that are not ready"))
    return found


def _disks(seen: list[Seen]) -> list[Finding]:
    found, slow = [], []
    unknown = 0
    for one in seen:
        if one.status is None or one.free_bytes is None:
            unknown += 1
        elif one.lacks_space:
            advice = "free disk there: growing commands are refused while too few nodes have space"
            text = f"{output.size(one.free_bytes)} free for metadata; {one.lacks_space}"
            found.append(Finding("failure", f"node {one.status.node}", text, advice))
        elif one.free_bytes < FREE_BYTES_MIN:
            advice = "free disk there, before it falls below the node's reserve"
            text = f"{output.size(one.free_bytes)} free for metadata"
            found.append(Finding("warning", f"node {one.status.node}", text, advice))
        if one.status is not None and one.status.slow_disk:
            advice = "writes wait for it: move what shares that disk (docs/operations.md)"
            text = f"a sync of its log takes {one.status.recent_sync_ns / 1e6:.0f} ms"
            slow.append(Finding("warning", f"node {one.status.node}", text, advice))
    if not found:
        text = "space on every node"
        if unknown:
            text = f"space on {len(seen) - unknown} of {len(seen)} nodes; unknown of the others"
        found.append(Finding("ok", "metadata disks", text))
    return found + slow


def _one_cluster(answered: list[Seen]) -> list[Finding]:
    names = {one.status.cluster for one in answered if one.status is not None}
    builds = {one.status.build for one in answered if one.status is not None}
    found = []
    if len(names) > 1:
        advice = "name the nodes of one cluster only"
        text = f"the nodes belong to {len(names)} clusters: {', '.join(sorted(names))}"
        found.append(Finding("failure", "cluster", text, advice))
    if len(builds) > 1:
        advice = "fine during an upgrade; finish it"
        found.append(Finding("warning", "versions", ", ".join(sorted(builds)), advice))
    return found


def _clocks(answered: list[Seen]) -> Finding:
    """Compare the nodes' clocks with each other and with this machine's."""
    skews = {one.status.node: one.skew_ns for one in answered if one.status is not None}
    spread_ns = max(*skews.values(), 0) - min(*skews.values(), 0)
    text = ", ".join(f"node {node} {skew / 1e6:+.1f} ms" for node, skew in sorted(skews.items()))
    if spread_ns > SKEW_NS_MAX:
        advice = "run NTP on the nodes and here: timedatectl; file times follow the leader's clock"
        return Finding("warning", "clocks", f"against this machine's: {text}", advice)
    return Finding("ok", "clocks", f"against this machine's: {text}")


# ---------------------------------------------------------------- a read, and the object store


async def _round_trips(cluster: str, tell: Tell, backup_every_ms: int) -> None:
    from nokv.client.connect import connect
    from nokv.types.reads import BackupsReply, ListBackups

    try:
        async with connect(cluster) as fs:
            started_s = time.perf_counter()
            counts = await fs.statfs()
            took_ms = (time.perf_counter() - started_s) * 1e3
            text = f"a linearizable one took {took_ms:.1f} ms; {counts.files} files, "
            tell(Finding("ok", "read", f"{text}{output.size(counts.bytes)}"))
            started_s = time.perf_counter()
            await fs.session_id()
            took_ms = (time.perf_counter() - started_s) * 1e3
            tell(Finding("ok", "commit", f"opening a session took {took_ms:.1f} ms"))
            tell(await _volume_store(fs.volume))
            kept = await fs.core.read(ListBackups())
            assert isinstance(kept, BackupsReply)
            for finding in _backups(kept.rows, time.time_ns(), backup_every_ms):
                tell(finding)
    except NokvError as error:
        tell(Finding("failure", "cluster", error.message, error.hint))


def _backups(rows: tuple[BackupRow, ...], now_ns: int, every_ms: int) -> list[Finding]:
    """Compare the age of the newest backup with the schedule."""
    made = [row.created_wall_ns for row in rows if row.complete and not row.ended_cluster_ns]
    if not made:
        text, late = "none is complete", every_ms > 0
    else:
        age_ns = max(0, now_ns - max(made))
        text = f"the newest complete one is {age_ns / 3.6e12:.1f} h old"
        late = every_ms > 0 and age_ns > 2 * every_ms * 1_000_000
    if late:
        advice = "the log of the leader's worker says why; or make one: nokv backup create"
        text += f", and one is to be made every {every_ms / 3.6e6:g} h"
        return [Finding("warning", "backups", text, advice)]
    return [Finding("ok", "backups", text)] if made else []


async def check_store(cluster: str) -> Finding:
    """Look whether this process can use the store that a cluster, maybe a new one, names.

    Raises:
        NokvError: the cluster does not answer.
    """
    from nokv.client.connect import connect

    async with connect(cluster) as fs:
        return await _volume_store(fs.volume, NEW_S)


async def _volume_store(volume: VolumeReply, patience_s: float = 0.0) -> Finding:
    from nokv.objects.open import open_store

    place = "/".join(part for part in (volume.endpoint.rstrip("/"), volume.bucket) if part)
    subject = f"{volume.kind} store {place}"
    try:
        store = open_store(volume)
    except NokvError as error:
        return Finding("failure", subject, error.message, error.hint)
    try:
        async with asyncio.timeout(STORE_S):
            return await _store(store, subject, volume.volume, patience_s)
    except TimeoutError:
        advice = "check endpoint and network"
        return Finding("failure", subject, f"no answer in {STORE_S:g} s", advice)
    finally:
        await store.close()


async def _store(store: ObjectStore, subject: str, volume: str, patience_s: float) -> Finding:
    """Put, get and delete one object outside of every volume's own names."""
    from nokv.objects.volume import await_volume

    name = f"{PROBE}-{os.urandom(8).hex()}"
    data = os.urandom(4096)
    try:
        await await_volume(store, volume, patience_s)
        started_s = time.perf_counter()
        await store.put(name, data)
        back = await store.get(name)
        left = await store.delete([name])
    except NokvError as error:
        advice = error.hint or "check endpoint, bucket, and the credentials of this process"
        return Finding("failure", subject, error.message, advice)
    if back != data:
        return Finding("failure", subject, "other bytes came back", "this store can't be trusted")
    if left:
        reason = str(next(iter(left.values())))
        return Finding("failure", subject, f"no delete: {reason}", "allow s3:DeleteObject")
    took_ms = (time.perf_counter() - started_s) * 1e3
    return Finding("ok", subject, f"put, get and delete of 4 KiB took {took_ms:.1f} ms")
