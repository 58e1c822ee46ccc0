"""What the leader's worker does for backups: retention, the end of holds, the schedule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nokv.backup.create import create_backup
from nokv.backup.format import parse_place
from nokv.backup.gone import stated
from nokv.backup.manage import clear, complete, marks_of, place_of_row
from nokv.client.connect import connect
from nokv.errors import AlreadyExists, NokvError, Unavailable
from nokv.objects.port import ObjectStore
from nokv.server.collector import Node
from nokv.server.config import NodeConfig
from nokv.server.datadir import NodeFile
from nokv.types.commands import EndBackup
from nokv.types.reads import BackupRow, BackupsReply, ListBackups
from nokv.types.values import Caller
from nokv.wire.tls import TlsFiles

log = logging.getLogger("nokv.backup")

NAMED_CHARACTERS: Final = 8
"""Of the cluster, in the name of a scheduled backup."""


class BackupKeeper:
    """Ends what is over. What it does is safe for a worker whose node was deposed meanwhile."""

    def __init__(
        self, node: Node, store: ObjectStore, *, volume: str, cluster: str, grace_ns: int
    ) -> None:
        self._node: Final = node
        self._store: Final = store
        self._volume: Final = volume
        self._cluster: Final = cluster
        self._grace_ns: Final = grace_ns

    async def tidy(self, *, adopted: bool, scheduled: bool) -> tuple[BackupRow, ...]:
        """Do one round; return the backups as they were before it.

        Until it is adopted a restored volume leaves its original's backups alone. While more of
        them are `scheduled` the last one stays, whatever its retention: the next may fail.
        """
        there = await complete(self._store, self._volume)  # before the rows: those come first
        reply = await self._node.read(ListBackups(), BackupsReply)
        await self._drop_unheld(there, reply)
        if not reply.rows:
            return ()  # mostly: a round costs the bucket one listing less
        gone = await stated(self._store, self._volume)
        last = max((row.slot for row in reply.rows if self._is_kept(row)), default=0)
        for row in reply.rows:
            if row.cluster != self._cluster and not adopted:
                continue
            where = place_of_row(self._volume, row)
            if not row.ended_cluster_ns:
                over = row.complete and row.until_cluster_ns <= reply.cluster_ns
                if scheduled and row.slot == last and self._is_kept(row):
                    continue
                if over and not set(await marks_of(self._store, where)) - {self._cluster} - gone:
                    log.info("backup %s is over: its retention ended", row.name)
                    await self._node.run(EndBackup(row.backup))
            elif reply.cluster_ns - row.ended_cluster_ns > self._grace_ns and await clear(
                self._store, where, own=self._cluster, gone=gone
            ):
                await self._node.run(EndBackup(row.backup, release=True))
                log.info("backup %s is gone, and its hold", row.name)
        return reply.rows

    async def _drop_unheld(self, there: Sequence[str], reply: BackupsReply) -> None:
        """Delete this cluster's backups whose holds went before their manifests came.

        A maker that stalls for longer than its session and the grace may still store one.
        """
        held = {row.backup for row in reply.rows if row.cluster == self._cluster}
        for where in there:
            one = parse_place(where)
            if one is not None and one.cluster == self._cluster and one.backup not in held:
                log.warning(
                    "backup %s was finished when its hold was gone: it is deleted", one.name
                )
                await clear(self._store, where, own=self._cluster)

    def _is_kept(self, row: BackupRow) -> bool:
        """Return whether this cluster made a row's backup on its schedule, and it is whole."""
        scheduled = row.slot > 0 and row.cluster == self._cluster
        return scheduled and row.complete and not row.ended_cluster_ns

    def made(self, rows: Sequence[BackupRow], slot: int) -> bool:
        """Return whether this cluster made, or is making, the backup of a slot."""
        kept = (row for row in rows if row.complete or not row.ended_cluster_ns)
        return any(row.slot >= slot and row.cluster == self._cluster for row in kept)


async def make_scheduled(
    config: NodeConfig,
    identity: NodeFile,
    store: ObjectStore,
    slot: int,
) -> None:
    """Make the backup of a slot (ms since 1970 of its period's start), as any client would.

    Raises NokvError as `create_backup`, and Unavailable for what the file system refuses.
    """
    schedule = config.backup
    cluster = identity.cluster.cluster
    # Restored clusters share the bucket, and may have the same schedule.
    name = f"scheduled-{cluster[:NAMED_CHARACTERS]}-{slot}"
    to = None
    if schedule.to != "bucket":
        to = Path(schedule.to.removeprefix("file:")) / f"{name}.nokv"
    tls = None
    if config.tls.enabled:
        tls = TlsFiles(config.tls.ca, config.tls.cert, config.tls.key)
    token = identity.cluster.worker_token
    async with connect(
        config.rpc.listen, caller=Caller(), cluster_id=cluster, tls=tls, token=token
    ) as fs:
        try:
            made = await create_backup(
                fs.core, store, name=name, keep_ns=schedule.keep_ms * 1_000_000, to=to, slot=slot
            )
        except AlreadyExists:
            return
        except NokvError:
            raise
        except OSError as error:
            raise Unavailable(f"the backup of the schedule, {schedule.to}: {error}") from error
    log.info("backup %s made at version %d", name, made.head.version)
