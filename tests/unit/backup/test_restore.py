"""What a restore refuses, and what it leaves behind when it is cut short."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.backup.test_format import backup, head
from tests.unit.state.shard import VOLUME

from nokv.backup.format import MANIFEST, Manifest, place
from nokv.backup.gone import state_gone
from nokv.backup.manage import marks_of
from nokv.errors import BackupDamaged, BackupGone, DataDirectoryError, ForeignVolume
from nokv.kv.lmdb_store import LmdbKV
from nokv.objects.memory import MemoryStore
from nokv.objects.volume import claim_volume
from nokv.server import restore as restoring
from nokv.server.config import NodeConfig, load
from nokv.server.datadir import lock, read_identity, state_path
from nokv.server.restore import Restored, restore
from nokv.state.ops_backup import origin_of

__all__ = ["backup"]


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    path = tmp_path / "node.toml"
    path.write_text(
        'data_dir = "data"\n[peer]\nlisten = "127.0.0.1:7201"\n[rpc]\nlisten = "127.0.0.1:7101"\n'
    )
    return load(path, {}, {})


def run(
    source: Path,
    config: NodeConfig,
    *,
    manifest: bool = True,
    volume: str = VOLUME.volume,
    store: MemoryStore | None = None,
    held: bool = True,
) -> tuple[Restored, MemoryStore]:
    store = store or MemoryStore()

    async def work() -> tuple[Restored, MemoryStore]:
        await claim_volume(store, volume)
        if manifest:
            kept = Manifest(head=head(), where="bucket", size_bytes=1, digest="")
            await store.put(place(head()) + MANIFEST, msgspec.json.encode(kept))
        made = await restore(
            source,
            store,
            config,
            node=1,
            peer="127.0.0.1:7201",
            rpc="127.0.0.1:7101",
            silence_ns=5,
            held=held,
        )
        assert await marks_of(store, place(head())) == [made.identity.cluster.cluster]
        return made, store

    return asyncio.run(work())


@pytest.fixture
def source(tmp_path: Path, backup: bytes) -> Path:
    path = tmp_path / "backup.nokv"
    path.write_bytes(backup)
    return path


def test_a_restored_directory(source: Path, config: NodeConfig) -> None:
    made, _ = run(source, config)
    data_dir = Path(config.data_dir)
    assert read_identity(data_dir) == made.identity
    assert made.identity.cluster.cluster != "c1"
    assert made.identity.cluster.volume == VOLUME
    kv = LmdbKV(state_path(data_dir))
    origin = origin_of(kv)
    kv.close()
    assert origin is not None
    assert (origin.version, origin.silence_ns, origin.adopted, origin.ready) == (5, 5, False, False)
    with pytest.raises(DataDirectoryError, match="initialised already"):
        run(source, config)


def test_a_damaged_one_leaves_nothing(source: Path, config: NodeConfig) -> None:
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    source.write_bytes(data)
    with pytest.raises(BackupDamaged):
        run(source, config)
    assert not Path(config.data_dir).exists()
    with pytest.raises(FileNotFoundError):
        run(source.with_name("absent"), config)


def test_one_that_nobody_holds_is_refused(source: Path, config: NodeConfig) -> None:
    with pytest.raises(BackupGone):
        run(source, config, manifest=False)
    run(source, config)


def test_one_that_nobody_holds_is_restored_with_a_mark(source: Path, config: NodeConfig) -> None:
    """Others that share the bucket must hear of it before they adopt the volume."""
    run(source, config, manifest=False, held=False)  # which looks at the marks


@pytest.mark.parametrize("late", [False, True])
def test_one_of_a_cluster_that_is_stated_to_be_gone_is_refused_unless_it_is_held(
    source: Path, config: NodeConfig, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """Early, or while the restore is at work."""
    store = MemoryStore()
    state = state_gone(store, VOLUME.volume, {"c1"}, "c9")
    if late:
        own = restoring.mark

        async def mark(*args: Any, **named: Any) -> None:
            await state
            await own(*args, **named)

        monkeypatch.setattr(restoring, "mark", mark)
    else:
        asyncio.run(state)
    with pytest.raises(ForeignVolume, match="cluster c1, which made the backup, was stated"):
        run(source, config, manifest=False, held=False, store=store)
    assert not asyncio.run(marks_of(store, place(head())))
    assert not (Path(config.data_dir) / "node.json").exists()
    monkeypatch.undo()
    run(source, config, store=store)


def test_two_at_a_time_are_refused(source: Path, config: NodeConfig) -> None:
    """Each would take the other's identity, and its state away."""
    data_dir = Path(config.data_dir)
    data_dir.mkdir()
    held = lock(data_dir)
    with pytest.raises(DataDirectoryError, match="in use by process"):
        run(source, config)
    os.close(held)
    run(source, config)


def test_another_volumes_bucket_is_refused(source: Path, config: NodeConfig) -> None:
    with pytest.raises(ForeignVolume):
        run(source, config, volume="f" * 32)


STEPS = ("write_durably", "restore_image", "mark", "_rewrite", "fsck", "_found_log", "_rename")


@pytest.mark.parametrize("passes", [0, 1])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_cut_short_may_be_repeated(
    source: Path,
    config: NodeConfig,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    *,
    before: bool,
    passes: int,
) -> None:
    """Cut before or after a step, or the step's second call: it is the same cluster that comes."""
    own, calls, store = getattr(restoring, step), itertools.count(), MemoryStore()

    def cut(*, now: bool) -> None:
        if now:
            raise KeyboardInterrupt

    async def awaited(*args: Any, **named: Any) -> Any:
        last = next(calls) == passes
        cut(now=last and before)
        done = await own(*args, **named)
        cut(now=last)
        return done

    def called(*args: Any, **named: Any) -> Any:
        last = next(calls) == passes
        cut(now=last and before)
        done = own(*args, **named)
        cut(now=last)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(restoring, step, awaited if inspect.iscoroutinefunction(own) else called)
        with contextlib.suppress(KeyboardInterrupt):
            run(source, config, store=store)
    data_dir = Path(config.data_dir)
    if (data_dir / "node.json").exists():
        read_identity(data_dir)  # the cut came behind the last step, or there was none
        return
    if step not in {"mark", "_rename"}:
        assert not asyncio.run(marks_of(store, place(head()))), "a cluster that never was"
    drawn = data_dir / restoring.RESTORING_FILE
    name = msgspec.json.decode(drawn.read_bytes())["cluster"]["cluster"] if drawn.exists() else ""
    made, _ = run(source, config, store=store)
    assert name in {"", made.identity.cluster.cluster}
    assert not drawn.exists()
    assert sorted(one.name for one in (data_dir / "shard-0").iterdir()) == ["log", "state"]


def test_a_state_of_somebody_else_is_not_taken_away(source: Path, config: NodeConfig) -> None:
    made, store = run(source, config)
    data_dir = Path(config.data_dir)
    identity = data_dir / "node.json"
    other = msgspec.json.decode(identity.read_bytes())
    other["cluster"]["cluster"] = "f" * 32
    for content in (msgspec.json.encode(other), b"{"):
        identity.unlink(missing_ok=True)
        (data_dir / restoring.RESTORING_FILE).write_bytes(content)
        with pytest.raises(DataDirectoryError, match="a state but no identity"):
            run(source, config, store=store)
    kv = LmdbKV(state_path(data_dir))
    origin = origin_of(kv)
    kv.close()
    assert origin is not None
    assert origin.cluster == made.identity.cluster.cluster
