"""What a restore refuses, and what it leaves behind when it is cut short."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.unit.backup.test_format import backup, head
from tests.unit.state.shard import VOLUME

from nokv.backup.format import MANIFEST, Manifest, place
from nokv.backup.manage import marks_of
from nokv.errors import BackupDamaged, BackupGone, DataDirectoryError, ForeignVolume
from nokv.kv.lmdb_store import LmdbKV
from nokv.objects.memory import MemoryStore
from nokv.objects.volume import claim_volume
from nokv.server import restore as restoring
from nokv.server.config import NodeConfig, load
from nokv.server.datadir import read_identity, state_path
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
    source: Path, config: NodeConfig, *, manifest: bool = True, volume: str = VOLUME.volume
) -> tuple[Restored, MemoryStore]:
    async def work() -> tuple[Restored, MemoryStore]:
        store = MemoryStore()
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


def test_another_volumes_bucket_is_refused(source: Path, config: NodeConfig) -> None:
    with pytest.raises(ForeignVolume):
        run(source, config, volume="f" * 32)


@pytest.mark.parametrize("step", ["restore_image", "mark", "_rewrite", "fsck", "_found_log"])
def test_one_that_was_cut_short_may_be_repeated(
    source: Path, config: NodeConfig, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, step, dies)
        with pytest.raises(KeyboardInterrupt):
            run(source, config)
    with pytest.raises(DataDirectoryError):
        read_identity(Path(config.data_dir))
    run(source, config)
