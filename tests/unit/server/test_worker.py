"""What the worker says while the store or its node does not answer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from tests.unit.server.local import LocalShard
from tests.unit.server.test_init import init_first

from nokv.backup.epochs import epochs_of
from nokv.backup.gone import state_gone
from nokv.errors import ForeignVolume, ObjectStoreUnavailable, Unavailable
from nokv.objects.faults import FaultyStore
from nokv.objects.memory import MemoryStore
from nokv.objects.port import ObjectStore
from nokv.server.config import load
from nokv.server.worker import Worker
from nokv.types.reads import GetOrigin, OriginReply, Read

V = TypeVar("V")


class DownStore(MemoryStore):
    """A store that is down for its first calls."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def ensure_bucket(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ObjectStoreUnavailable("it is down")
        await super().ensure_bucket()


def make_worker(tmp_path: Path, store: ObjectStore) -> Worker:
    identity = init_first(tmp_path)
    overrides = {"worker.interval_ms": "1", "rpc.listen": "127.0.0.1:1"}
    return Worker(load(tmp_path / "node1.toml", overrides, {}), identity, store)


@pytest.mark.allow_logs("the object store cannot be used")
def test_a_store_that_is_down_is_warned_of_once_and_tried_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DownStore(5)
    asyncio.run(make_worker(tmp_path, store)._claim())
    assert store.failures == 0
    assert len(store.names) == 1
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage()[:35] for record in warnings] == [
        "the object store cannot be used: it"
    ]


@pytest.mark.allow_logs("has the volume: it was told")
def test_a_cluster_that_was_stated_to_be_gone_deletes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    worker = make_worker(tmp_path, store)
    cluster = worker.identity.cluster
    caplog.set_level(logging.INFO, "nokv.worker")

    async def main() -> None:
        await worker._claim()
        await state_gone(store, cluster.volume.volume, [cluster.cluster], by="c2")
        with pytest.raises(ForeignVolume, match="cluster c2 has the volume"):
            await worker._backups()
        with pytest.raises(ForeignVolume, match="cluster c2 has the volume"):
            await worker.collector._delete(["blocks/x"])
        for _ in range(3):
            await worker._look_gone()
        assert not await worker._may_delete()  # without asking the node, which does not run
        assert "cluster c2 has the volume" in await worker._ordered_run()
        await store.delete([name for name in store.names if name.startswith("gone/")])
        await worker._look_gone()
        assert worker._gone == ""

    asyncio.run(main())
    said = [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records]
    assert said[1:] == [
        ("ERROR", "cluster c2 has the volume"),
        ("INFO", "the volume is this cluster's again"),
    ]


def test_a_restored_cluster_leaves_its_epoch_in_the_bucket_once_it_serves(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    worker = make_worker(tmp_path, store)
    cluster = worker.identity.cluster
    shard = LocalShard()
    restored = OriginReply(restored=True, ready=False, adopted=False, version=9, lineage=())
    origins = [restored, *[msgspec.structs.replace(restored, ready=True)] * 4]

    async def read(request: Read, kind: type[V]) -> V:
        reply = origins.pop(0) if isinstance(request, GetOrigin) else None
        return reply if isinstance(reply, kind) else await shard.read(request, kind)

    worker.client.read = read  # type: ignore[method-assign]

    async def main() -> None:
        await worker._claim()
        before = {*store.inner.names}  # type: ignore[attr-defined]
        await worker._collect()
        store.fail("put")
        with pytest.raises(ObjectStoreUnavailable):
            await worker._collect()
        await worker._collect()
        assert await epochs_of(store, cluster.volume.volume, {cluster.cluster}) == {1}
        assert len({*store.inner.names} - before) == 1  # type: ignore[attr-defined]

    asyncio.run(main())
    assert worker._told_epoch


def test_a_node_that_starts_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "nokv.worker")
    worker = make_worker(tmp_path, MemoryStore())
    levels: list[int] = []

    async def leads() -> bool:
        if len(levels) == 3:
            raise asyncio.CancelledError
        levels.append(len(levels))
        worker._seen_node = len(levels) == 3
        raise Unavailable("no connection")

    async def main() -> None:
        worker.client.leads = leads  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await worker._repeat("collect", 1, worker._collect)

    asyncio.run(main())
    said = [r.levelno for r in caplog.records if "no connection" in r.getMessage()]
    assert said == [logging.DEBUG, logging.DEBUG, logging.INFO]


def test_a_trouble_that_lasts_is_told_once_and_when_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nokv.worker")
    worker = make_worker(tmp_path, MemoryStore())
    rounds = iter(["silence", "silence", "silence", "other", "", "", "silence"])

    async def leads() -> bool:
        worker._seen_node = True
        return True

    async def work() -> None:
        reason = next(rounds, None)
        if reason is None:
            raise asyncio.CancelledError
        if reason:
            raise Unavailable(reason)

    async def main() -> None:
        worker.client.leads = leads  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await worker._repeat("collect", 1, work)

    asyncio.run(main())
    said = [record.getMessage().split(" (")[0] for record in caplog.records]
    over = "collect: no trouble any more"
    assert said == ["collect: silence", "collect: other", over, "collect: silence"]


def test_remains_of_uploads_go_below_the_volume_s_blocks_only(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    worker = make_worker(tmp_path, store)
    worker._gone = ""

    async def main() -> None:
        worker.client.read = LocalShard().read  # type: ignore[method-assign]
        for _ in range(2):  # the second is not due
            await worker._sweep()

    asyncio.run(main())
    prefix = f"blocks/{worker.identity.cluster.volume.volume}/"
    assert [call for call in store.log if call[0] == "abort_stale"] == [("abort_stale", prefix)]
