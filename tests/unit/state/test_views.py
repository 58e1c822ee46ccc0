"""Clones, workspaces, rollback and the removal of views."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import stored
from tests.unit.state.shard import ALICE, at
from tests.unit.state.viewing import CENTURY_NS, SECOND_NS, automatic, tree

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    Immutable,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    PermissionDenied,
    ResultTooLarge,
    Stale,
    VersionNotPinned,
)
from nokv.state import views
from nokv.types.commands import (
    Create,
    CreateBackup,
    EndBackup,
    ExpireSession,
    Link,
    Mkdir,
    PinView,
    Reap,
    RemoveTree,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    StageBegin,
    StageDrop,
    StageMode,
    StageSwap,
    Unlink,
    UnpinView,
)
from nokv.types.events import EventKind
from nokv.types.reads import (
    GetUsage,
    ReadEvents,
    StatFs,
    StatFsReply,
)
from nokv.types.results import Made, Pinned, Reaped
from nokv.types.values import At, InodeFlag
from nokv.types.views import (
    Clone,
    ExpireSnapshots,
    Rollback,
    SnapshotDelete,
    ViewMade,
    WorkspaceCreate,
)


def test_a_clone_is_a_writable_copy() -> None:
    shard = tree()
    source = shard.stat("a")
    made = shard.clone("a", "b")
    assert (made.inode, made.created) == (source.inode, shard.machine.version)
    copy = shard.stat("b")
    assert (copy.view, copy.inode, copy.mtime_ns) == (made.view, source.inode, source.mtime_ns)
    assert (copy.children, copy.nlink, copy.mode) == (2, 3, source.mode)
    assert shard.usage("b") == shard.usage("a") == (3, 10)
    assert shard.usage() == (8, 20)
    assert (shard.stat().children, shard.stat().nlink) == (2, 4)
    shard.publish("b/x", stored(20))
    shard.done(Unlink(at("b/d"), b"y"))
    shard.create("a/new")
    assert (shard.stat("a/x").size, shard.stat("b/x").size) == (10, 20)
    assert shard.fails(Unlink(at("b"), b"new")) is NotFound
    shard.stat("a/d/y")
    event = shard.read(ReadEvents(0, 100)).events  # type: ignore[union-attr]
    clones = [one for one in event if one.kind == EventKind.CLONE]
    assert [(one.name, one.chain) for one in clones] == [(b"b", (1,))]
    row = shard.views()[made.view]
    assert (row.root, row.created, row.origin) == (made.inode, made.created, 0)
    assert (row.origin_version, row.parent_view, row.parent) == (made.created - 1, 0, 1)
    assert (row.name, row.replaces, row.dead, row.depth) == (b"b", -1, 0, 1)
    assert (row.entries, row.size_bytes) == (2, 20)
    shard.settle()


def test_the_root_can_be_cloned_into_itself() -> None:
    shard = tree()
    shard.clone("", "a/all")
    assert shard.usage("a/all") == (4, 10)
    assert shard.fails(Unlink(at("a/all/a"), b"all")) is NotFound
    shard.clone("", "again")
    assert shard.usage("again") == (9, 20)
    shard.done(RemoveTree(at(), b"again"))
    shard.done(RemoveTree(at("a"), b"all"))
    assert shard.usage() == (4, 10)
    shard.settle()
    assert not shard.views()


def test_what_can_not_be_cloned() -> None:
    shard = tree()
    shard.mkdir("p", 0o755)
    assert shard.fails(Clone(at("a"), at("a/x"), b"b")) is NotADirectory
    assert shard.fails(Clone(at("no"), at(), b"a")) is AlreadyExists
    assert shard.fails(Clone(at("a"), at("p"), b"b"), ALICE) is PermissionDenied
    assert shard.fails(Clone(at("no"), at(), b"b")) is NotFound
    assert shard.fails(Clone(at("a/x"), at(), b"b")) is NotADirectory
    assert shard.fails(Clone(at(), at(), b"b", "no")) is NotFound
    for name in (b"", b".", b"a/b"):
        assert shard.fails(Clone(at("a"), at(), name)) is InvalidArgument
    assert shard.fails(Clone(at("a"), at(), b"n" * 256)) is NameTooLong
    shard.do(SetAttr(at("a"), mode=0o700))
    shard.do(SetAttr(at("p"), mode=0o777))
    assert shard.fails(Clone(at("a"), at("p"), b"b"), ALICE) is PermissionDenied
    shard.do(SetAttr(at("p"), flags=int(InodeFlag.IMMUTABLE)))
    assert shard.fails(Clone(at("a"), at("p"), b"b")) is Immutable
    staged = shard.do(StageBegin(0, 0o040755))
    assert isinstance(staged, Made)
    stage = At(0, staged.attr.inode)
    assert shard.fails(Clone(stage, at(), b"b")) is CrossesView
    assert shard.fails(Clone(at("a"), stage, b"b")) is CrossesView
    assert shard.fails(WorkspaceCreate(stage, b"b", 0o755)) is CrossesView
    assert not shard.views()
    shard.check()


def test_origins_that_add_nothing_are_passed_over() -> None:
    shard = tree()
    first = shard.clone("a", "b")
    second = shard.clone("b", "c")
    shard.create("b/new")
    third = shard.clone("b", "d")
    rows = shard.views()
    assert (rows[second.view].origin, rows[second.view].origin_version) == (0, first.created - 1)
    assert (rows[third.view].origin, rows[third.view].depth) == (first.view, 2)
    assert shard.fails(Unlink(at("c"), b"new")) is NotFound
    shard.done(RemoveTree(at(), b"b"))
    shard.settle()
    assert set(shard.views()) == {first.view, second.view, third.view}
    shard.stat("d/new")
    shard.done(RemoveTree(at(), b"d"))
    shard.settle()
    assert set(shard.views()) == {second.view}


def test_a_chain_of_clones_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tree()
    monkeypatch.setattr(views, "VIEW_DEPTH_MAX", 3)
    shard.snapshot("a", "s")
    for number in range(3):
        source = "a" if not number else f"c{number - 1}"
        shard.clone(source, f"c{number}")
        shard.create(f"c{number}/f{number}")
    assert shard.fails(Clone(at("c2"), at(), b"c3")) is ResultTooLarge
    shard.snapshot("c2", "deep")
    assert shard.fails(Rollback(at(), b"c2", "deep", b"/", SECOND_NS)) is ResultTooLarge
    shard.clone("a", "c3")
    assert shard.views()[3].depth == 3
    shard.check()


def test_views_below_a_clone_are_cloned_too() -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.create("a/w/f")
    shard.workspace("a/d/v")
    shard.clone("a", "b")
    assert len(shard.views()) == 5
    shard.create("b/w/g")
    shard.create("b/d/v/h")
    assert shard.fails(Unlink(at("a/w"), b"g")) is NotFound
    assert shard.usage("b") == (8, 10)
    shard.done(Unlink(at("b/w"), b"f"))
    shard.stat("a/w/f")
    shard.check()
    shard.done(RemoveTree(at("b"), b"d"))
    assert sum(1 for row in shard.views().values() if row.dead) == 1
    shard.settle()
    assert len(shard.views()) == 4


def test_a_clone_of_a_snapshot_is_what_the_snapshot_shows() -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.create("a/w/f")
    shard.snapshot("a", "s")
    shard.done(RemoveTree(at(), b"a"))
    shard.settle()
    shard.clone("", "b", "s")
    assert shard.usage("b") == (5, 10)
    shard.stat("b/w/f")
    shard.done(SnapshotDelete("s"))
    shard.settle()
    assert shard.usage("b") == (5, 10)
    assert shard.stat("b/x").size == 10
    shard.done(RemoveTree(at(), b"b"))
    shard.settle()
    assert not shard.views()
    assert shard.machine.counters.history == 0


def test_names_outside_of_a_clone_do_not_count_there() -> None:
    shard = tree()
    shard.do(Link(at("a/x"), at("a/d"), b"x2"))
    shard.do(Link(at("a/x"), at(), b"x3"))
    assert shard.stat("a/x").nlink == 3
    shard.clone("a", "b")
    assert shard.stat("b/x").nlink == 2
    shard.do(SetAttr(at("b/x"), mode=0o600))
    assert (shard.stat("b/x").nlink, shard.stat("b/d/x2").mode) == (2, 0o100600)
    shard.done(Unlink(at("b"), b"x"))
    assert shard.stat("b/d/x2").nlink == 1
    assert shard.usage("b") == (3, 10)
    shard.check()
    shard.do(Link(at("b/d/x2"), at("b"), b"again"))
    assert shard.stat("b/again").nlink == 2
    shard.done(Unlink(at("b"), b"again"))
    shard.done(Unlink(at("b/d"), b"x2"))
    with pytest.raises(Stale):
        shard.attr(At(1, shard.stat("a/x").inode))
    assert shard.stat("x3").nlink == 3
    shard.settle()


# ---------------------------------------------------------------- workspaces and ends of views


def test_a_workspace_is_an_empty_directory() -> None:
    shard = tree()
    shard.do(SetAttr(at("a"), mode=0o2777, gid=77))
    made = shard.do(WorkspaceCreate(at("a"), b"w", 0o750), ALICE)
    assert isinstance(made, ViewMade)
    root = shard.stat("a/w")
    assert (root.uid, root.gid, root.mode, root.nlink) == (ALICE.uid, 77, 0o042750, 2)
    assert (root.view, root.inode) == (made.view, made.inode)
    assert shard.usage("a") == (4, 10)
    assert shard.last_event().kind == EventKind.CREATE
    assert shard.fails(WorkspaceCreate(at("a"), b"w", 0o755)) is AlreadyExists
    assert shard.fails(WorkspaceCreate(at("a/x"), b"v", 0o755)) is NotADirectory
    assert shard.fails(WorkspaceCreate(at(), b"v", 0o755), ALICE) is PermissionDenied
    assert shard.fails(WorkspaceCreate(at(), b"v", 0o10000)) is InvalidArgument
    assert shard.fails(WorkspaceCreate(at(), b"..", 0o755)) is InvalidArgument
    assert shard.attr(At(0, 1, (b"a", b"w", b".."))).inode == shard.stat("a").inode


def test_removing_a_view() -> None:
    shard = tree()
    made = shard.clone("a", "b")
    shard.create("b/new")
    held = shard.do(PinView(made.view))
    assert isinstance(held, Pinned)
    assert shard.fails(Unlink(at(), b"b")) is IsADirectory
    assert shard.fails(Rmdir(at(), b"b")) is NotEmpty
    assert shard.fails(RemoveTree(at(), b"b"), ALICE) is PermissionDenied
    shard.done(RemoveTree(at(), b"b"))
    assert shard.usage() == (4, 10)
    for op in (
        Create(At(made.view, made.inode), b"f", 0o644),
        PinView(made.view),
        StageBegin(made.view, 0o040755),
    ):
        assert shard.fails(op) is Stale
    with pytest.raises(Stale):
        shard.read(GetUsage(At(made.view, made.inode)))
    shard.settle()
    shard.attr(At(made.view, made.inode, (b"new",)), held.version)
    shard.attr(At(made.view, made.inode, (b"d", b"y")), held.version)
    assert shard.views()[made.view].dead
    shard.done(UnpinView(made.view, held.version, held.pin))
    shard.settle()
    assert not shard.views()


def test_an_empty_view_is_an_empty_directory() -> None:
    shard = tree()
    shard.workspace("w")
    shard.done(Rmdir(at(), b"w"))
    shard.workspace("w")
    shard.mkdir("e")
    shard.done(Rename(at(), b"e", at(), b"w"))
    assert shard.stat("w").view == 0
    shard.workspace("v")
    shard.done(Rename(at(), b"v", at(), b"w"))
    assert shard.stat("w").view == 3
    assert shard.usage() == (5, 10)
    shard.check()
    shard.settle()
    assert set(shard.views()) == {3}


def test_staged_trees_go_with_their_view() -> None:
    shard = tree()
    made = shard.clone("a", "b")
    ends: list[int] = []
    for _ in range(3):
        staged = shard.do(StageBegin(made.view, 0o040755))
        assert isinstance(staged, Made)
        ends.append(staged.attr.inode)
    shard.do(Mkdir(At(made.view, ends[0]), b"d", 0o755))
    shard.do(Create(At(made.view, ends[0]), b"f", 0o644))
    shard.do(Link(At(made.view, ends[0], (b"f",)), At(made.view, ends[0], (b"d",)), b"g"))
    shard.check()
    shard.done(Unlink(At(made.view, ends[0]), b"f"))
    shard.do(StageSwap(made.view, ends[0], at("b"), b"swapped", StageMode.CREATE))
    assert shard.usage("b") == (6, 10)
    shard.done(RemoveTree(at(), b"b"))
    shard.settle()
    swap = StageSwap(made.view, ends[1], at("a"), b"s", StageMode.CREATE)
    assert shard.fails(swap) is Stale
    shard.done(StageDrop(made.view, ends[1]))
    assert shard.fails(StageDrop(made.view, ends[1])) is Stale
    shard.done(ExpireSession(shard.session))
    shard.reap()
    shard.check()
    assert shard.read(StatFs()) == StatFsReply(5, 10)


def test_a_removed_directory_of_a_clone_costs_what_changed_in_it() -> None:
    shard = tree()
    shard.mkdir("a/d/deep")
    for number in range(50):
        shard.create(f"a/d/deep/f{number}")
    made = shard.clone("a", "b")
    shard.do(SetAttr(at("b/d/deep/f7"), mode=0o600))
    shard.done(Rename(at("b/d/deep"), b"f8", at("b"), b"f8"))
    pin = shard.do(PinView(made.view))
    assert isinstance(pin, Pinned)
    gone = shard.stat("b/d/deep")
    shard.done(RemoveTree(at("b"), b"d"))
    assert shard.usage("b") == (2, 10)
    work = shard.reap(3)
    assert work < 15
    shard.check()
    for inode in (gone.inode, shard.stat("a/d").inode, shard.stat("a/d/deep/f7").inode):
        with pytest.raises(Stale):
            shard.attr(At(made.view, inode))
    shard.stat("b/f8")
    inside = At(made.view, made.inode, (b"d", b"deep", b"f7"))
    assert shard.attr(inside, pin.version).mode == 0o100600
    shard.done(UnpinView(made.view, pin.version, pin.pin))
    shard.done(RemoveTree(at(), b"b"))
    shard.settle()
    assert not shard.views()
    assert shard.machine.counters.history == 0


# ---------------------------------------------------------------- renames


def test_a_graft_moves_like_a_directory() -> None:
    shard = tree()
    made = shard.workspace("w")
    shard.publish("w/f", stored(5))
    shard.done(Rename(at(), b"w", at("a/d"), b"w2"))
    assert shard.usage("a") == (5, 15)
    row = shard.views()[made.view]
    assert (row.parent, row.name) == (shard.stat("a/d").inode, b"w2")
    assert shard.stat("a/d/w2").ctime_ns == shard.wall_ns
    assert shard.attr(At(made.view, made.inode, (b"..",))).inode == shard.stat("a/d").inode
    shard.workspace("v")
    shard.done(Rename(at(), b"v", at("a/d"), b"w2", RenameFlag.EXCHANGE))
    shard.done(Rename(at("a"), b"x", at(), b"w", RenameFlag.NOREPLACE))
    shard.done(Rename(at(), b"w", at("a"), b"d", RenameFlag.EXCHANGE))
    shard.check()
    assert shard.usage("v") == (1, 5)
    shard.done(RemoveTree(at(), b"w"))
    shard.settle()
    assert set(shard.views()) == {made.view}


def test_names_of_two_views_do_not_meet() -> None:
    shard = tree()
    shard.workspace("w")
    shard.create("w/f")
    shard.create("f")
    for flags in (RenameFlag(0), RenameFlag.NOREPLACE, RenameFlag.EXCHANGE):
        assert shard.fails(Rename(at(), b"f", at("w"), b"g", flags)) is CrossesView
        assert shard.fails(Rename(at("w"), b"f", at(), b"g", flags)) is CrossesView
    assert shard.fails(Link(at("f"), at("w"), b"g")) is CrossesView
    assert shard.fails(Rename(at(), b"w", at("w"), b"w")) is CrossesView
    assert shard.fails(Rename(at(), b"w", at("a"), b"x")) is NotADirectory
    assert shard.fails(Rename(at("a"), b"x", at(), b"w")) is IsADirectory
    assert shard.fails(Rename(at(), b"a", at(), b"w")) is NotEmpty
    shard.clone("", "c")
    shard.done(Rename(at(), b"c", at("a/d"), b"c"))
    shard.check()


# ---------------------------------------------------------------- rollback


def test_a_rollback_and_back() -> None:
    shard = tree()
    shard.snapshot("a", "s")
    shard.publish("a/x", stored(30))
    shard.create("a/new")
    handle = shard.stat("a/new")
    done = shard.roll_back("a", "s")
    assert done.name == f"rollback-{done.snapshot}"
    assert (shard.stat("a").view, shard.stat("a").inode) == (done.view, done.inode)
    assert shard.stat("a/x").size == 10
    assert shard.usage() == (4, 10)
    assert shard.last_event().kind == EventKind.ROLLBACK
    with pytest.raises(Stale):
        shard.attr(At(0, handle.inode))
    shard.settle()
    again = shard.roll_back("a", done.name)
    assert shard.views()[again.view].replaces == done.view
    assert shard.stat("a/x").size == 30
    shard.stat("a/new")
    shard.roll_back("a", "s")
    shard.settle()
    assert shard.stat("a/x").size == 10
    for name in ("s", *(row.name for row in automatic(shard))):
        shard.done(SnapshotDelete(name))
    shard.done(RemoveTree(at(), b"a"))
    shard.settle()
    assert not shard.views()
    assert shard.machine.counters.history == 0


def test_what_can_not_be_rolled_back() -> None:
    shard = tree()
    shard.mkdir("b")
    shard.snapshot("a", "s")
    shard.snapshot("a/d", "d")

    def refused(name: bytes, snapshot: str = "s", caller: object = None) -> type[Exception]:
        op = Rollback(at(), name, snapshot, b"/", SECOND_NS)
        return shard.fails(op) if caller is None else shard.fails(op, caller)  # type: ignore[arg-type]

    shard.create("f")
    assert refused(b"no", "no") is NotFound
    assert refused(b"f", "no") is NotADirectory
    assert refused(b"a", "no") is NotFound
    assert refused(b"b") is InvalidArgument
    assert refused(b"a", "d") is InvalidArgument
    assert refused(b"..") is InvalidArgument
    assert refused(b"a", "s", ALICE) is PermissionDenied
    shard.do(SetAttr(at(), mode=0o777))
    assert refused(b"a", "s", ALICE) is NotPermitted
    shard.do(SetAttr(at(), mode=0o1777))
    assert refused(b"a", "s", ALICE) is NotPermitted
    for keep_ns in (0, SECOND_NS - 1, CENTURY_NS + 1):
        assert shard.fails(Rollback(at(), b"a", "s", b"/", keep_ns)) is InvalidArgument
    assert shard.fails(Rollback(at(), b"a", "s", b"", SECOND_NS)) is InvalidArgument
    assert shard.fails(Rollback(at("f"), b"a", "s", b"/", SECOND_NS)) is NotADirectory
    shard.do(SetAttr(at("a"), flags=int(InodeFlag.IMMUTABLE)))
    assert refused(b"a") is Immutable
    shard.do(SetAttr(at("a"), flags=0))
    shard.clone("a", "c")
    assert refused(b"c") is InvalidArgument
    shard.snapshot("c", "of-c")
    shard.roll_back("c", "of-c")
    shard.done(Rename(at(), b"a", at("b"), b"moved"))
    shard.roll_back("b/moved", "s")
    shard.check()


def test_a_rollback_takes_nested_views_along() -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.create("a/w/f")
    shard.snapshot("a", "s")
    shard.done(Unlink(at("a/w"), b"f"))
    old = shard.workspace("a/later")
    done = shard.roll_back("a", "s", SECOND_NS)
    shard.stat("a/w/f")
    assert shard.fails(Unlink(at("a"), b"later")) is NotFound
    with pytest.raises(Stale):
        shard.attr(At(old.view, old.inode))
    assert shard.views()[done.view].replaces == -1
    shard.check()
    shard.settle()
    shard.wait(2 * SECOND_NS)
    assert shard.internal(ExpireSnapshots(10)) == Reaped(1, more=False)
    shard.settle()
    assert old.view not in shard.views()
    shard.stat("a/w/f")


def test_each_step_of_the_reaper_keeps_every_invariant() -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.create("a/w/f")
    shard.clone("a", "b")
    shard.create("b/w/g")
    shard.publish("b/x", stored(7))
    shard.snapshot("b", "s")
    shard.done(RemoveTree(at("b"), b"d"))
    shard.roll_back("b", "s", SECOND_NS)
    shard.done(RemoveTree(at(), b"b"))
    steps = 0
    while shard.machine.pending_work():
        shard.internal(Reap(1))
        shard.check()
        steps += 1
    assert steps > 5


# ---------------------------------------------------------------- beside other holds


def test_a_backup_holds_what_snapshots_and_clones_show() -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.create("a/w/f")
    held = shard.snapshot("a", "s")
    shard.clone("", "b", "s")
    shard.publish("a/x", stored(99))
    shard.done(Unlink(at("a/w"), b"f"))
    gone = shard.workspace("gone")
    shard.done(Rmdir(at(), b"gone"))
    shard.do(CreateBackup("nightly", 1, CENTURY_NS, "bucket", "c" * 32))
    backup = shard.machine.version
    shard.done(SnapshotDelete("s"))
    shard.done(RemoveTree(at(), b"b"))
    shard.done(RemoveTree(at(), b"a"))
    shard.settle()
    assert gone.view not in shard.views()
    assert shard.attr(At(0, held.inode, (b"x",)), held.version).size == 10
    shard.attr(At(0, held.inode, (b"w", b"f")), held.version)
    assert shard.attr(at("a/x"), backup).size == 99
    assert shard.attr(at("b/x"), backup).size == 10
    shard.done(EndBackup(backup))
    shard.done(EndBackup(backup, release=True))
    shard.settle()
    assert not shard.views()
    assert shard.machine.counters.history == 0


def test_a_failed_command_leaves_no_pin_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tree()
    shard.workspace("a/w")
    shard.clone("a", "b")
    shard.create("b/new")
    shard.create("b/w/new")
    shard.snapshot("b", "s")
    monkeypatch.setattr(views, "VIEW_DEPTH_MAX", 1)
    pins = {view: shard.machine._txn.pins(view) for view in range(4)}
    assert shard.fails(Rollback(at(), b"b", "s", b"/b", SECOND_NS)) is ResultTooLarge
    assert shard.fails(Clone(at("b"), at("b"), b"c")) is ResultTooLarge
    assert {view: shard.machine._txn.pins(view) for view in range(4)} == pins
    monkeypatch.undo()
    shard.check()
    made = shard.clone("b", "b/c")
    assert shard.views()[made.view].depth == 2
    assert shard.fails(Unlink(at("b/c"), b"c")) is NotFound
    shard.check()


def test_reads_name_the_views_that_they_pass() -> None:
    shard = tree()
    inner = shard.workspace("a/w")
    shard.symlink("a/w/up", b"../x")
    shard.symlink("a/w/top", b"/a/x")
    made = shard.clone("a", "b")
    assert shard.stat("b/w/up").view == made.view
    assert shard.stat("b/w/top").view == 0
    held = shard.do(PinView(0))
    assert isinstance(held, Pinned)
    shard.attr(at("a/x"), held.version)
    with pytest.raises(VersionNotPinned):
        shard.attr(at("a/w"), held.version)
    with pytest.raises(VersionNotPinned):
        shard.attr(At(inner.view, inner.inode), held.version)
    with pytest.raises(Stale):
        shard.attr(At(99))
