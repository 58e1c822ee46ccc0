"""Snapshots: what they show and hold, their names, leases and bounds."""

from __future__ import annotations

import pytest
from tests.unit.state.shard import ALICE, BOB, at
from tests.unit.state.viewing import CENTURY_NS, SECOND_NS, tree

from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    NameTooLong,
    NotADirectory,
    NotFound,
    NotPermitted,
    PermissionDenied,
    ResultTooLarge,
    Stale,
    VersionNotPinned,
)
from nokv.state import snapshots, views
from nokv.types.commands import (
    RemoveTree,
    SetAttr,
    StageBegin,
    Unlink,
)
from nokv.types.events import EventKind
from nokv.types.results import Done, Made, Reaped
from nokv.types.values import At
from nokv.types.views import (
    HELD,
    Clone,
    ExpireSnapshots,
    GetSnapshot,
    ListSnapshots,
    Rollback,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotRenew,
    SnapshotReply,
    SnapshotsReply,
)

DAY_NS = 86_400 * SECOND_NS


def test_a_snapshot_shows_what_was_just_before_it() -> None:
    shard = tree()
    before = shard.machine.version
    made = shard.snapshot("a", "s")
    assert made == SnapshotMade(before + 1, 0, shard.stat("a").inode, before, 0)
    shard.done(Unlink(at("a"), b"x"))
    shard.done(RemoveTree(at("a"), b"d"))
    shard.settle()
    where = At(made.view, made.inode, (b"x",))
    assert shard.attr(where, made.version).size == 10
    assert shard.attr(At(0, made.inode, (b"d", b"y")), made.version).nlink == 1
    with pytest.raises(VersionNotPinned):
        shard.attr(where, made.version - 1)
    shard.done(SnapshotDelete("s"))
    with pytest.raises(VersionNotPinned):
        shard.attr(where, made.version)
    shard.settle()
    assert shard.machine.counters.history == 0


def test_an_event_tells_of_a_snapshot() -> None:
    shard = tree()
    shard.snapshot("a/d", "deep")
    event = shard.last_event()
    assert event.kind == EventKind.SNAPSHOT
    assert (event.name, event.to_name, event.chain[0]) == (b"d", b"deep", shard.stat("a").inode)
    shard.snapshot("", "all")
    assert (shard.last_event().name, shard.last_event().to_name) == (b"", b"all")
    view = shard.clone("a", "b")
    shard.snapshot("b", "of-a-view")
    event = shard.last_event()
    assert (event.name, event.to_name, event.chain) == (b"b", b"of-a-view", (1,))
    assert event.inode == view.inode


@pytest.mark.parametrize(
    "name", ["", ".a", "a/b", "a b", "n" * 101, "é", "rollback-", "rollback-9"]
)
def test_names_that_a_snapshot_can_not_have(name: str) -> None:
    shard = tree()
    assert shard.fails(SnapshotCreate(at("a"), name, b"/a")) is InvalidArgument


@pytest.mark.parametrize("name", ["a", "_", "-", "0", "a.b:c-d_e", "n" * 100])
def test_names_that_a_snapshot_can_have(name: str) -> None:
    shard = tree()
    shard.snapshot("a", name)
    reply = shard.read(GetSnapshot(name))
    assert isinstance(reply, SnapshotReply)
    assert reply.name == name


def test_arguments_of_a_snapshot() -> None:
    shard = tree()
    for path in (b"", b"a", b"a/", b"/" + b"p" * 4096):
        assert shard.fails(SnapshotCreate(at("a"), "s", path)) is InvalidArgument
    for ttl_ns in (-1, 1, SECOND_NS - 1, CENTURY_NS + 1):
        assert shard.fails(SnapshotCreate(at("a"), "s", b"/", ttl_ns)) is InvalidArgument
        assert shard.fails(SnapshotRenew("s", ttl_ns)) is InvalidArgument
    long = At(0, 1, (b"n" * 256,))
    assert shard.fails(SnapshotCreate(long, ".", b"")) is NameTooLong
    for ttl_ns in (SECOND_NS, CENTURY_NS):
        shard.snapshot("a", f"s{ttl_ns}", ttl_ns)


def test_what_can_not_be_snapshot() -> None:
    shard = tree()
    assert shard.fails(SnapshotCreate(at("no"), "s", b"/")) is NotFound
    assert shard.fails(SnapshotCreate(at("a/x"), "s", b"/")) is NotADirectory
    assert shard.fails(SnapshotCreate(At(9), "s", b"/")) is Stale
    shard.do(SetAttr(at("a"), mode=0o711))
    assert shard.fails(SnapshotCreate(at("a"), "s", b"/"), ALICE) is PermissionDenied
    shard.do(SetAttr(at("a"), mode=0o744))
    assert shard.fails(SnapshotCreate(at("a"), "s", b"/"), ALICE) is PermissionDenied
    staged = shard.do(StageBegin(0, 0o040755))
    assert isinstance(staged, Made)
    assert shard.fails(SnapshotCreate(At(0, staged.attr.inode), "s", b"/")) is Stale
    shard.snapshot("a", "s")
    assert shard.fails(SnapshotCreate(at("a"), "s", b"/")) is AlreadyExists
    assert shard.fails(SnapshotCreate(at("a/x"), "s", b"/")) is NotADirectory
    shard.check()


def test_limits_of_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tree()
    shard.snapshot("a", "s1")
    monkeypatch.setattr(snapshots, "SNAPSHOTS_MAX", 2)
    shard.snapshot("a", "s2")
    assert shard.fails(SnapshotCreate(at("a"), "s3", b"/")) is ResultTooLarge
    assert shard.fails(SnapshotCreate(at("a"), "s2", b"/")) is AlreadyExists
    shard.done(SnapshotDelete("s1"))
    shard.snapshot("a", "s3")
    monkeypatch.setattr(snapshots, "SNAPSHOTS_MAX", 100)
    monkeypatch.setattr(views, "PINS_MAX", 2)
    assert shard.fails(SnapshotCreate(at("a"), "s4", b"/")) is ResultTooLarge
    assert shard.fails(Clone(at("a"), at(), b"b")) is ResultTooLarge
    monkeypatch.setattr(views, "PINS_MAX", 100)
    monkeypatch.setattr(views, "NESTED_VIEWS_MAX", 1)
    shard.workspace("a/w")
    shard.snapshot("a", "s4")
    shard.workspace("a/d/w")
    assert shard.fails(SnapshotCreate(at("a"), "s5", b"/")) is ResultTooLarge
    assert shard.fails(Clone(at("a"), at(), b"b")) is ResultTooLarge
    assert shard.fails(RemoveTree(at(), b"a")) is ResultTooLarge
    shard.snapshot("a/d", "s5")
    shard.check()


def test_who_may_end_a_snapshot() -> None:
    shard = tree()
    shard.do(SetAttr(at("a"), uid=ALICE.uid))
    shard.snapshot("a", "s", SECOND_NS)
    shard.do(SetAttr(at("a"), uid=BOB.uid))
    for op in (SnapshotRenew("s", 0), SnapshotDelete("s")):
        assert shard.fails(op, BOB) is NotPermitted
        assert shard.do(op, ALICE) is not None
    for name in ("s", "", "a/b", "x" * 5000):
        assert shard.fails(SnapshotRenew(name, 0)) is NotFound
        assert shard.fails(SnapshotDelete(name)) is NotFound
        with pytest.raises(NotFound):
            shard.read(GetSnapshot(name))


def test_who_may_hold_what_is_anothers() -> None:
    shard = tree()
    shard.do(SetAttr(at("a"), uid=ALICE.uid))
    held = SnapshotCreate(at("a"), "s", b"/a", HELD)
    leased = SnapshotCreate(at("a"), "s", b"/a", 30 * DAY_NS)
    longer = SnapshotCreate(at("a"), "s", b"/a", 30 * DAY_NS + 1)
    for op in (held, longer):
        assert shard.fails(op, BOB) is NotPermitted
    assert shard.fails(SnapshotCreate(at("no"), "s", b"/", HELD), BOB) is NotFound
    shard.do(leased, BOB)
    assert shard.fails(held, BOB) is NotPermitted  # before the name is looked at
    assert shard.fails(leased, BOB) is AlreadyExists
    reply = shard.read(GetSnapshot("s"))
    assert isinstance(reply, SnapshotReply)
    assert reply.maker == BOB.uid
    for ttl_ns in (HELD, 30 * DAY_NS + 1):
        assert shard.fails(SnapshotRenew("s", ttl_ns), BOB) is NotPermitted
    assert isinstance(shard.do(SnapshotRenew("s", SECOND_NS), BOB), SnapshotMade)
    assert shard.do(SnapshotDelete("s"), BOB) == Done()
    shard.do(leased, BOB)
    assert isinstance(shard.do(SnapshotRenew("s", HELD), ALICE), SnapshotMade)
    assert shard.do(SnapshotDelete("s"), ALICE) == Done()
    assert isinstance(shard.do(held, ALICE), SnapshotMade)
    assert shard.fails(SnapshotDelete("s"), BOB) is NotPermitted
    shard.done(SnapshotDelete("s"))
    shard.check()


def test_nobody_takes_all_the_snapshots_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOTS_PER_MAKER_MAX", 2)
    shard = tree()
    shard.do(SetAttr(at("a"), uid=ALICE.uid))

    def make(name: str) -> SnapshotCreate:
        return SnapshotCreate(at("a"), name, b"/a", SECOND_NS)

    for name in ("a1", "a2"):
        shard.do(make(name), ALICE)
    with pytest.raises(ResultTooLarge, match=f"uid {ALICE.uid} made 2 snapshots") as told:
        shard.do(make("a3"), ALICE)
    assert "snapshot delete" in (told.value.hint or "")
    assert shard.fails(make("a1"), ALICE) is AlreadyExists
    shard.do(SetAttr(at(), mode=0o777))
    assert shard.fails(Rollback(at(), b"a", "a1", b"/a", SECOND_NS), ALICE) is ResultTooLarge
    for number in range(3):  # root may
        shard.do(make(f"r{number}"))
    for name in ("b1", "b2"):
        shard.do(make(name), BOB)
    shard.check()
    shard.done(SnapshotDelete("a1"))
    shard.do(make("a3"), ALICE)
    shard.wait(2 * SECOND_NS)
    assert shard.fails(make("a4"), ALICE) is ResultTooLarge  # ended ones count until they go
    assert shard.internal(ExpireSnapshots(100)) == Reaped(7, more=False)
    shard.check()
    shard.do(make("a4"), ALICE)
    shard.check()


def test_a_clone_says_of_which_snapshot_it_is() -> None:
    shard = tree()
    first = shard.snapshot("a", "s")
    shard.do(Clone(at(), at(), b"b", "s", first.snapshot))
    shard.do(SnapshotDelete("s"))
    again = shard.snapshot("a", "s")
    assert shard.fails(Clone(at(), at(), b"c", "s", first.snapshot)) is NotFound
    shard.do(Clone(at(), at(), b"c", "s", again.snapshot))
    shard.do(Clone(at(), at(), b"d", "s"))
    shard.check()


def test_a_lease_ends_in_cluster_time_whoever_comes_by() -> None:
    shard = tree()
    made = shard.snapshot("a", "s", 5 * SECOND_NS)
    assert made.until_cluster_ns == shard.cluster_ns + 5 * SECOND_NS
    held = shard.snapshot("a", "held")
    shard.clone("a", "b", "held")
    where = At(0, made.inode)
    shard.wait(4 * SECOND_NS)
    again = shard.do(SnapshotRenew("s", 5 * SECOND_NS))
    assert isinstance(again, SnapshotMade)
    shard.wait(again.until_cluster_ns - shard.cluster_ns - 3_000_000)
    shard.attr(where, made.version)
    assert shard.internal(ExpireSnapshots(10)) == Reaped(0, more=False)
    shard.entry()
    assert shard.cluster_ns >= again.until_cluster_ns
    assert shard.fails(SnapshotRenew("s", 0)) is NotFound
    assert shard.fails(SnapshotDelete("s")) is NotFound
    assert shard.fails(Clone(at(), at(), b"c", "s")) is NotFound
    assert shard.fails(Rollback(at(), b"a", "s", b"/", SECOND_NS)) is NotFound
    assert shard.fails(SnapshotCreate(at("a"), "s", b"/")) is AlreadyExists
    with pytest.raises(VersionNotPinned):
        shard.attr(where, made.version)
    shard.attr(where, held.version)
    reply = shard.read(ListSnapshots())
    assert isinstance(reply, SnapshotsReply)
    assert [row.name for row in reply.rows] == ["held"]
    assert shard.internal(ExpireSnapshots(1)) == Reaped(1, more=False)
    shard.snapshot("a", "s")
    assert shard.stat("b/x").size == 10
    shard.check()


def test_ended_snapshots_go_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tree()
    for number in range(5):
        shard.snapshot("a", f"s{number}", SECOND_NS)
    shard.wait(2 * SECOND_NS)
    assert shard.fails(ExpireSnapshots(0), session=0) is InvalidArgument
    assert shard.fails(ExpireSnapshots(65_537), session=0) is InvalidArgument
    assert shard.internal(ExpireSnapshots(2)) == Reaped(2, more=True)
    monkeypatch.setattr("nokv.state.ops_view.PINS_A_STEP", 1)
    assert shard.internal(ExpireSnapshots(10)) == Reaped(1, more=True)
    monkeypatch.undo()
    assert shard.internal(ExpireSnapshots(10)) == Reaped(2, more=False)
    assert shard.internal(ExpireSnapshots(10)) == Reaped(0, more=False)
    shard.check()


def test_snapshots_are_listed_by_name_in_pages() -> None:
    shard = tree()
    for name in ("b", "a", "c"):
        shard.snapshot("a", name)
    shard.clone("", "copy", "b")
    first = shard.read(ListSnapshots("", 2))
    assert isinstance(first, SnapshotsReply)
    assert ([row.name for row in first.rows], first.more) == (["a", "b"], True)
    assert [row.clones for row in first.rows] == [0, 1]
    second = shard.read(ListSnapshots("b", 2))
    assert isinstance(second, SnapshotsReply)
    assert ([row.name for row in second.rows], second.more) == (["c"], False)
    assert shard.read(ListSnapshots("z" * 5000)) == SnapshotsReply((), more=False)


def test_a_snapshot_holds_the_views_below_it() -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.create("a/w/f")
    inner = shard.workspace("a/w/v")
    shard.create("a/w/v/g")
    made = shard.snapshot("a", "s")
    reply = shard.read(GetSnapshot("s"))
    assert isinstance(reply, SnapshotReply)
    assert reply.views == 3
    shard.done(Unlink(at("a/w"), b"f"))
    shard.done(RemoveTree(at("a/w"), b"v"))
    shard.settle()
    assert shard.views()[inner.view].dead
    for path in ((b"w", b"f"), (b"w", b"v", b"g"), (b"w", b"v", b"..", b"f")):
        shard.attr(At(0, made.inode, path), made.version)
    with pytest.raises(Stale):
        shard.attr(At(inner.view, inner.inode))
    shard.done(SnapshotDelete("s"))
    shard.settle()
    assert inner.view not in shard.views()


# ---------------------------------------------------------------- clones
