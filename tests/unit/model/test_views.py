"""Views in the model: examples that read like the rules of docs/namespace.md."""

from __future__ import annotations

import pytest
from tests.unit.model.test_model import ALICE, BOB, HOUR_NS, ROOT, SESSION, Shard, publish

from nokv import errors
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.copies import GetQuota, SetQuota
from nokv.types.events import EventKind
from nokv.types.values import At, Lease, Marks
from nokv.types.views import (
    HELD,
    Clone,
    ExpireSnapshots,
    Flatten,
    GetSnapshot,
    ListSnapshots,
    ListViews,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotRenew,
    SnapshotReply,
    SnapshotsReply,
    ViewMade,
    ViewsReply,
    WorkspaceCreate,
)
from nokv_model import views
from nokv_model.body import ObjectName

SECOND_NS = 1_000_000_000


def at(*path: bytes) -> At:
    return At(path=path)


def populated() -> Shard:
    """/a/f and /a/d, each file with a second name /g and /a/d/h."""
    shard = Shard()
    shard.do(c.Mkdir(At(), b"a", 0o777))
    shard.do(c.Create(at(b"a"), b"f", 0o666))
    shard.do(c.Mkdir(at(b"a"), b"d", 0o777))
    shard.do(c.Link(at(b"a", b"f"), At(), b"g"))
    shard.do(c.Link(at(b"a", b"f"), at(b"a", b"d"), b"h"))
    return shard


def snap(shard: Shard, where: At, name: str = "s", ttl_ns: int = HELD) -> SnapshotMade:
    made = shard.do(SnapshotCreate(where, name, b"/x", ttl_ns)).value
    assert isinstance(made, SnapshotMade)
    return made


def clone(shard: Shard, source: At, parent: At, name: bytes, snapshot: str = "") -> ViewMade:
    made = shard.do(Clone(source, parent, name, snapshot)).value
    assert isinstance(made, ViewMade)
    return made


def names(shard: Shard, where: At, version: int = 0) -> list[bytes]:
    page = shard.model.read(ROOT, r.ReadDir(where, at_version=version))
    assert isinstance(page, r.DirPage)
    return [entry.name for entry in page.entries]


def usage(shard: Shard, where: At) -> int:
    reply = shard.model.read(ROOT, r.GetUsage(where))
    assert isinstance(reply, r.UsageReply)
    return reply.entries


def test_a_snapshot_shows_what_was_there_and_a_clone_goes_on_by_itself() -> None:
    shard = populated()
    made = snap(shard, at(b"a"))
    view = clone(shard, at(b"a"), At(), b"b").view
    shard.do(c.Unlink(at(b"a"), b"f"))
    shard.do(c.Create(at(b"b"), b"new", 0o666))
    assert names(shard, At(made.view, made.inode), made.version) == [b"d", b"f"]
    assert names(shard, at(b"a")) == [b"d"]
    assert names(shard, at(b"b")) == names(shard, At(view, made.inode)) == [b"d", b"f", b"new"]
    assert usage(shard, At()) == 2 + 1 + (1 + 4) + 1  # a, g; d, h without f; b, d, f, h, new


def test_a_clone_is_of_the_snapshot_that_its_id_says() -> None:
    shard = populated()
    first = snap(shard, at(b"a")).snapshot
    shard.do(SnapshotDelete("s"))
    again = snap(shard, at(b"a")).snapshot
    assert shard.error(Clone(At(), At(), b"b", "s", first)) is errors.NotFound
    shard.do(Clone(At(), At(), b"b", "s", again))


def test_a_clone_counts_the_names_below_its_root() -> None:
    shard = populated()
    clone(shard, at(b"a"), At(), b"b")
    assert shard.attr(b"a", b"f").attr.nlink == 3
    assert shard.attr(b"b", b"f").attr.nlink == 2
    shard.do(c.Unlink(at(b"b"), b"f"))
    shard.do(c.Unlink(at(b"b", b"d"), b"h"))
    assert shard.attr(b"a", b"f").attr.nlink == 3


def test_a_clone_of_the_root_into_itself_does_not_contain_itself() -> None:
    shard = populated()
    clone(shard, At(), at(b"a"), b"all")
    assert names(shard, at(b"a", b"all", b"a")) == [b"d", b"f"]
    clone(shard, At(), at(b"a"), b"twice")
    assert names(shard, at(b"a", b"twice", b"a", b"all")) == [b"a", b"g"]
    assert len(shard.model.state.live_views()) == 1 + 1 + 2


def test_nested_views_are_taken_along_and_die_with_what_holds_them() -> None:
    shard = populated()
    inner = shard.do(WorkspaceCreate(at(b"a"), b"w", 0o777)).value
    assert isinstance(inner, ViewMade)
    shard.do(c.Create(at(b"a", b"w"), b"x", 0o666))
    made = snap(shard, at(b"a"))
    clone(shard, at(b"a"), At(), b"b")
    shard.do(c.Create(at(b"b", b"w"), b"y", 0o666))
    assert names(shard, at(b"a", b"w")) == [b"x"]
    shard.do(c.RemoveTree(At(), b"a"))
    assert shard.error(c.Mkdir(At(inner.view, inner.inode), b"z", 0o777)) is errors.Stale
    assert names(shard, At(inner.view, inner.inode), made.version) == [b"x"]
    assert names(shard, At(made.view, made.inode, (b"w", b"..")), made.version) == [
        b"d",
        b"f",
        b"w",
    ]


def test_a_view_that_is_not_pinned_is_not_entered_at_a_version() -> None:
    shard = populated()
    shard.do(WorkspaceCreate(At(), b"w", 0o777))
    pinned = shard.do(c.PinView(0)).value
    assert names(shard, At(), pinned.version) == [b"a", b"g", b"w"]  # type: ignore[union-attr]
    with pytest.raises(errors.VersionNotPinned):
        names(shard, at(b"w"), pinned.version)  # type: ignore[union-attr]


def test_nothing_is_renamed_or_linked_across_views() -> None:
    shard = populated()
    clone(shard, at(b"a"), At(), b"b")
    rename = c.Rename(at(b"b"), b"f", at(b"a"), b"x")
    assert shard.error(rename) is errors.CrossesView
    assert shard.error(c.Link(at(b"b", b"f"), At(), b"x")) is errors.CrossesView
    shard.do(c.Rename(At(), b"b", at(b"a"), b"c"))
    assert names(shard, at(b"a", b"c")) == [b"d", b"f"]
    assert names(shard, at(b"a", b"c", b"..")) == [b"c", b"d", b"f"]


def test_what_lies_outside_of_a_clones_root_has_no_address_in_it() -> None:
    shard = populated()
    view = clone(shard, at(b"a", b"d"), At(), b"b").view
    outside = shard.attr(b"a").attr.inode
    with pytest.raises(errors.Stale):
        shard.model.read(ROOT, r.GetAttr(At(view, outside)))


def test_a_rollback_can_be_rolled_back() -> None:
    shard = populated()
    snap(shard, at(b"a"))
    shard.do(c.Unlink(at(b"a"), b"f"))
    old = shard.attr(b"a").attr.inode
    done = shard.do(Rollback(At(), b"a", "s", b"/a", SECOND_NS)).value
    assert isinstance(done, RolledBack)
    assert names(shard, at(b"a")) == [b"d", b"f"]
    with pytest.raises(errors.Stale):
        shard.model.read(ROOT, r.GetAttr(At(0, old)))
    again = shard.do(Rollback(At(), b"a", done.name, b"/a", SECOND_NS)).value
    assert names(shard, at(b"a")) == [b"d"]
    shard.do(Rollback(At(), b"a", "s", b"/a", SECOND_NS))
    assert names(shard, at(b"a")) == [b"d", b"f"]
    assert shard.model.state.views[3].replaces == again.view  # type: ignore[union-attr]


def test_a_rollback_needs_a_snapshot_of_that_directory() -> None:
    shard = populated()
    snap(shard, at(b"a"))
    clone(shard, At(), At(), b"b", "s")
    back = Rollback(At(), b"b", "s", b"/b", SECOND_NS)
    assert shard.error(back) is errors.InvalidArgument
    assert shard.error(Rollback(At(), b"g", "s", b"/g", SECOND_NS)) is errors.NotADirectory
    assert shard.error(Rollback(At(), b"a", "none", b"/a", SECOND_NS)) is errors.NotFound
    assert shard.error(Rollback(At(), b"a", "s", b"/a", 1)) is errors.InvalidArgument


def test_a_lease_ends_in_cluster_time_and_the_name_with_its_expiry() -> None:
    shard = populated()
    made = snap(shard, at(b"a"), ttl_ns=SECOND_NS)
    assert isinstance(shard.model.read(ROOT, GetSnapshot("s")), SnapshotReply)
    shard.internal(c.Checkpoint(1), SECOND_NS)
    with pytest.raises(errors.NotFound):
        shard.model.read(ROOT, GetSnapshot("s"))
    with pytest.raises(errors.VersionNotPinned):
        names(shard, At(made.view, made.inode), made.version)
    assert shard.error(SnapshotRenew("s", HELD)) is errors.NotFound
    assert shard.error(SnapshotCreate(at(b"a"), "s", b"/a")) is errors.AlreadyExists
    shard.internal(ExpireSnapshots(1))
    snap(shard, at(b"a"))


def test_whose_the_directory_was_may_delete_the_snapshot() -> None:
    shard = populated()
    shard.do(c.SetAttr(at(b"a"), uid=1))
    snap(shard, at(b"a"))
    shard.do(c.SetAttr(at(b"a"), uid=2))
    assert shard.error(SnapshotDelete("s"), BOB) is errors.NotPermitted
    shard.do(SnapshotRenew("s", SECOND_NS), ALICE)
    shard.do(SnapshotDelete("s"), ALICE)
    assert shard.error(SnapshotDelete("s"), ALICE) is errors.NotFound


@pytest.mark.parametrize("name", ["", "rollback-7", ".s", "a/b", "n" * 101, "é"])
def test_names_that_no_snapshot_may_have(name: str) -> None:
    assert populated().error(SnapshotCreate(At(), name, b"/")) is errors.InvalidArgument


def test_listings() -> None:
    shard = populated()
    snap(shard, at(b"a"), "t")
    snap(shard, At(), "s", SECOND_NS)
    clone(shard, at(b"a"), At(), b"b", "t")
    page = shard.model.read(ROOT, ListSnapshots("", 1))
    assert isinstance(page, SnapshotsReply)
    assert ([row.name for row in page.rows], page.more) == (["s"], True)
    listed = shard.model.read(ROOT, ListViews())
    assert isinstance(listed, ViewsReply)
    [view] = listed.rows
    assert (view.view, view.parent, view.name, view.entries) == (1, 1, b"b", 3)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "PINS_MAX", 2)
    monkeypatch.setattr(views, "NESTED_VIEWS_MAX", 1)
    shard = populated()
    snap(shard, At())
    shard.do(c.PinView(0))
    assert shard.error(SnapshotCreate(At(), "t", b"/")) is errors.ResultTooLarge
    shard.do(WorkspaceCreate(At(), b"w", 0o777))
    shard.do(WorkspaceCreate(at(b"w"), b"w", 0o777))
    assert shard.error(Clone(At(), At(), b"b")) is errors.ResultTooLarge


def test_a_rollback_leaves_the_quota_of_its_directory_alone() -> None:
    shard = populated()
    shard.do(SetQuota(at(b"a", b"d"), 5, 0))
    snap(shard, at(b"a"))
    shard.do(SetQuota(at(b"a", b"d"), 9, 0))
    shard.do(SetQuota(at(b"a"), 7, 0))
    shard.do(Rollback(At(), b"a", "s", b"/a", SECOND_NS))
    replies = [shard.model.read(ROOT, GetQuota(at(*path))) for path in ((b"a",), (b"a", b"d"))]
    assert [reply.entries_max for reply in replies] == [7, 5]  # type: ignore[union-attr]


def test_a_maker_has_a_share_and_says_over_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SNAPSHOTS_PER_MAKER_MAX", 1)
    shard = populated()
    assert shard.error(SnapshotCreate(At(), "s", b"/"), ALICE) is errors.NotPermitted
    shard.do(SnapshotCreate(At(), "s", b"/", SECOND_NS), ALICE)
    assert shard.error(SnapshotCreate(At(), "t", b"/", SECOND_NS), ALICE) is errors.ResultTooLarge
    assert shard.error(SnapshotRenew("s", 0), ALICE) is errors.NotPermitted
    shard.do(SnapshotDelete("s"), ALICE)


def test_events() -> None:
    shard = populated()
    cursor = shard.model.version
    snap(shard, at(b"a", b"d"))
    clone(shard, at(b"a"), At(), b"b")
    shard.do(c.Create(at(b"b", b"d"), b"x", 0o666))
    shard.do(Rollback(at(b"a"), b"d", "s", b"/a/d", SECOND_NS))
    reply = shard.model.read(ROOT, r.ReadEvents(cursor))
    assert isinstance(reply, r.EventsReply)
    told = [(e.kind, e.view, e.chain, e.name, e.inode, e.to_name) for e in reply.events]
    assert told == [
        (EventKind.SNAPSHOT, 0, (2, 1), b"d", 4, b"s"),
        (EventKind.CLONE, 0, (1,), b"b", 2, b""),
        (EventKind.CREATE, 1, (4, 2, ~0, 1), b"x", 5, b""),
        (EventKind.ROLLBACK, 0, (2, 1), b"d", 4, b"s"),
    ]


def test_what_a_clone_shows_must_exist_and_a_reader_of_it_is_given_the_grace() -> None:
    shard = Shard()
    shard.do(c.LeaseUploads(2))
    shard.do(c.Mkdir(At(), b"a", 0o777))
    shard.do(c.Publish(at(b"a"), b"f", 1, 0o666, 8, 1, publish(b"f", 1).chunks))
    first = ObjectName(SESSION, 1, 0, 0, 0)
    clone(shard, at(b"a"), At(), b"b")
    shard.do(c.Unlink(at(b"a"), b"f"))
    shard.internal(Flatten(1, 1))
    model = shard.model
    shard.internal(c.SessionMarks((Marks(SESSION, 1, 2**62, 1, ()),)), 9 * HOUR_NS)
    assert first in model.state.named_objects(model.cluster_ns)
    inode, version = model.state.forest.inodes[1, 3], model.version
    lease = Lease(1, inode.number, inode.body, version)
    shard.internal(c.SessionMarks((Marks(SESSION, 2, 2**62, 1, (lease,)),)))
    shard.do(c.RemoveTree(At(), b"b"))
    assert first in model.state.named_objects(model.cluster_ns)
    shard.internal(c.SessionMarks((Marks(SESSION, 3, 2**62, 1, ()),)))
    assert model.state.droppable(model.cluster_ns, HOUR_NS) == set()
    assert model.state.droppable(model.cluster_ns + HOUR_NS, HOUR_NS) == {first}


def test_views_of_staged_trees() -> None:
    shard = populated()
    stage = shard.do(c.StageBegin(0, 0o040777)).value.attr.inode  # type: ignore[union-attr]
    assert shard.error(Clone(at(b"a"), At(0, stage), b"b")) is errors.CrossesView
    assert shard.error(Clone(At(0, stage), At(), b"b")) is errors.CrossesView
    assert shard.error(WorkspaceCreate(At(0, stage), b"b", 0o777)) is errors.CrossesView
    assert shard.error(SnapshotCreate(At(0, stage), "s", b"/")) is errors.Stale
    view = clone(shard, at(b"a"), At(), b"b").view
    assert shard.error(c.StageSwap(0, stage, at(b"b"), b"x", 0)) is errors.CrossesView
    other = shard.do(c.StageBegin(view, 0o040777)).value.attr.inode  # type: ignore[union-attr]
    shard.do(c.StageSwap(view, other, at(b"b"), b"x", 0))
    assert names(shard, at(b"b")) == [b"d", b"f", b"x"]
