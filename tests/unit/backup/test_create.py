"""Making a backup of a real state machine, whose replica sends an image that was prepared."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.backup.test_format import backup, head
from tests.unit.server.local import VOLUME, LocalShard

from nokv.backup.create import _Attempt
from nokv.backup.format import pieces_of, read_head
from nokv.backup.gone import state_gone
from nokv.backup.manage import names_of
from nokv.errors import ForeignVolume
from nokv.objects.faults import FaultyStore
from nokv.objects.memory import MemoryStore
from nokv.types.commands import Op
from nokv.types.reads import BackupsReply, ListBackups, VolumeReply
from nokv.types.results import Result
from nokv.wire.rpc import BackupOpened, BackupPieces, OpenBackup, Pong, ReadBackup, RequestBody

__all__ = ["backup"]


class Cluster:
    """What a maker asks of a cluster and of one of its nodes."""

    def __init__(self, image: list[bytes]) -> None:
        self.shard = LocalShard()
        self.session = self.shard.open_session()
        self.volume = VolumeReply(VOLUME, "memory", "", "", "", "", 0, 0, 0)
        self.config = SimpleNamespace(deadline_s=10.0)
        self.hello = SimpleNamespace(node=1, cluster="c1")
        self.image = image

    async def propose(self, op: Op, _payloads: tuple[()], _deadline_s: float) -> Result:
        return self.shard.do(op, self.session)

    async def call(self, body: RequestBody, *, timeout_s: float) -> object:
        del timeout_s
        if isinstance(body, OpenBackup):
            return BackupOpened(head().version, 1, head().index, 1, 0)
        if isinstance(body, ReadBackup):
            return BackupPieces(() if body.offset else tuple(self.image))
        return Pong()


def test_a_cluster_that_is_stated_to_be_gone_meanwhile_finishes_none(backup: bytes) -> None:
    """The statement comes right before the manifest: who stated it has looked, or looks later."""
    stream = io.BytesIO(backup)
    read_head(stream)
    cluster: Any = Cluster(list(pieces_of(stream)))
    store = MemoryStore()
    faulty = FaultyStore(store)

    async def main() -> None:
        manifest = await _Attempt(cluster, cluster).run(faulty, "first", 10**18, None, 0)
        assert len(manifest.parts) == 1
        gate = faulty.hold("put", 2)
        making = asyncio.create_task(
            _Attempt(cluster, cluster).run(faulty, "second", 10**18, None, 0)
        )
        await gate.reached.wait()
        await state_gone(store, VOLUME, {"c1"}, "c9")
        gate.release()
        with pytest.raises(ForeignVolume, match="c9 has the volume"):
            await making
        rows = (await cluster.shard.read(ListBackups(), BackupsReply)).rows
        assert [(row.name, row.complete) for row in rows] == [("first", True), ("second", False)]
        left = await names_of(store, f"backups/{VOLUME}/second/")
        assert left == []

    asyncio.run(main())
