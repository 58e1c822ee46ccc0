"""Who holds what a snapshot shows, by name, and where the origin of a copy is."""

from __future__ import annotations

from tests.unit.state.shard import Shard, at

from nokv.types.commands import CreateBackup, RemoveTree, Rename
from nokv.types.views import (
    HOLDERS_MAX,
    Clone,
    GetSnapshot,
    ListViews,
    SnapshotCreate,
    SnapshotReply,
    ViewsReply,
)

DAY_NS = 86_400_000_000_000


def snapshot_of(shard: Shard, name: str) -> SnapshotReply:
    """Return a snapshot as it stands."""
    found = shard.read(GetSnapshot(name))
    assert isinstance(found, SnapshotReply)
    return found


def origins(shard: Shard) -> list[bytes]:
    """Return the origin's path of each view but the first."""
    found = shard.read(ListViews())
    assert isinstance(found, ViewsReply)
    return [row.origin_path for row in found.rows if row.view]


def test_holders_have_names() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.do(SnapshotCreate(at("d"), "s", b"/d", DAY_NS))
    found = snapshot_of(shard, "s")
    assert (found.clones, found.clone_paths, found.backups, found.backup_names) == (0, (), 0, ())
    shown = at(inode=found.inode)
    for number in range(HOLDERS_MAX + 1):
        shard.do(Clone(shown, at(), b"c%02d" % number, "s"))
    shard.do(CreateBackup("nightly", 1, DAY_NS, "bucket", "cluster"))
    found = snapshot_of(shard, "s")
    assert (found.clones, found.backups) == (HOLDERS_MAX + 1, 1)
    assert found.clone_paths == tuple(b"/c%02d" % number for number in range(HOLDERS_MAX))
    assert found.backup_names == ("nightly",)
    shard.do(RemoveTree(at(), b"c00"))
    assert snapshot_of(shard, "s").clone_paths[:2] in ((b"", b"/c01"), (b"/c01", b"/c02"))


def test_an_origin_is_told_where_it_is_now() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.mkdir("e")
    shard.do(Clone(at("d"), at(), b"c"))
    assert origins(shard) == [b"/d"]
    shard.do(Rename(at(), b"d", at("e"), b"moved", 0))
    assert origins(shard) == [b"/e/moved"]
    shard.do(RemoveTree(at("e"), b"moved"))
    assert origins(shard) == [b""]
