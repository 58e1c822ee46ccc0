"""What a bucket lacks of what clones and snapshots show."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.state.bodies import stored
from tests.unit.state.shard import VOLUME, at
from tests.unit.state.viewing import Views, tree

from nokv.objects.memory import MemoryStore
from nokv.server.fsck import fsck
from nokv.types.commands import SetAttr, Unlink
from nokv.types.views import SnapshotDelete


def lacking(shard: Views, folder: Path) -> set[tuple[int, int]]:
    """Return (session, upload) of every object that an empty bucket lacks."""
    found, _ = asyncio.run(fsck(shard.kv, MemoryStore(), VOLUME.volume, folder / "scratch"))
    return {one.object[:2] for one in found}


def test_whiteouts_of_a_clone_name_nothing_and_what_it_inherits_is_looked_for(
    tmp_path: Path,
) -> None:
    shard = tree()
    held = lacking(shard, tmp_path)
    shard.publish("a/big", stored(10))
    named = lacking(shard, tmp_path)
    assert len(named) == len(held) + 1
    shard.clone("a", "c")
    shard.do(SetAttr(at("c/big"), size=5))
    shard.done(Unlink(at("c"), b"big"))
    assert lacking(shard, tmp_path) == named
    shard.clone("a", "d")
    shard.done(Unlink(at("a"), b"big"))
    assert lacking(shard, tmp_path) == named
    shard.done(Unlink(at("d"), b"big"))


def test_what_a_snapshot_alone_shows_is_looked_for_until_it_goes(tmp_path: Path) -> None:
    shard = tree()
    held = lacking(shard, tmp_path)
    shard.publish("a/big", stored(10))
    named = lacking(shard, tmp_path)
    shard.snapshot("a", "s")
    shard.done(Unlink(at("a"), b"big"))
    assert lacking(shard, tmp_path) == named
    shard.settle()
    assert lacking(shard, tmp_path) == named
    shard.done(SnapshotDelete("s"))
    assert lacking(shard, tmp_path) == held
