"""Removing names, by the rules of docs/namespace.md."""

from __future__ import annotations

import pytest
from tests.unit.state.invariants import check, reap
from tests.unit.state.shard import ALICE, BOB, ROOT, Shard, at

from nokv.errors import (
    Immutable,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    PermissionDenied,
    Stale,
)
from nokv.types.commands import (
    Create,
    Link,
    RemoveTree,
    Rmdir,
    SetAttr,
    SetXattr,
    StageBegin,
    Unlink,
)
from nokv.types.events import EventKind
from nokv.types.reads import EventsReply, GetAttr, ReadEvents, StatFs, StatFsReply
from nokv.types.results import Done, Made
from nokv.types.values import InodeFlag

Remove = type[Unlink | Rmdir | RemoveTree]


def test_the_last_name_takes_the_inode_along() -> None:
    shard = Shard()
    made = shard.create("f")
    shard.do(SetXattr(at("f"), b"user.a", b"1"))
    shard.do(SetAttr(at("f"), size=100))
    assert shard.do(Unlink(at(), b"f")) == Done()
    with pytest.raises(Stale):
        shard.read(GetAttr(at(inode=made.inode)))
    assert shard.usage() == (0, 0)
    assert shard.read(StatFs()) == StatFsReply(1, 0)
    root = shard.stat()
    assert (root.children, root.mtime_ns, root.ctime_ns) == (0, shard.wall_ns, shard.wall_ns)
    check(shard)


def test_other_names_keep_the_inode() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.create("f")
    shard.do(Link(at("f"), at("d"), b"g"))
    shard.do(Link(at("f"), at("d"), b"h"))
    for name, left in ((b"g", 2), (b"h", 1)):
        shard.do(Unlink(at("d"), name))
        kept = shard.stat("f")
        assert (kept.nlink, kept.ctime_ns, kept.parent) == (left, shard.wall_ns, 1)
        check(shard)
    shard.do(Link(at("f"), at("d"), b"g"))
    shard.do(Unlink(at(), b"f"))
    kept = shard.stat("d/g")
    assert (kept.nlink, kept.parent) == (1, shard.stat("d").inode)
    check(shard)


def test_rmdir_removes_an_empty_directory_only() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.mkdir("d/e")
    assert shard.fails(Rmdir(at(), b"d")) is NotEmpty
    shard.do(Rmdir(at("d"), b"e"))
    assert (shard.stat("d").nlink, shard.stat("d").children) == (2, 0)
    shard.do(Rmdir(at(), b"d"))
    assert shard.stat().nlink == 2
    check(shard)


@pytest.mark.parametrize("remove", [Unlink, Rmdir, RemoveTree])
def test_which_error_of_removing_wins(remove: Remove) -> None:
    shard = Shard()
    shard.mkdir("d", 0o700)
    shard.mkdir("d/e") if remove is Unlink else shard.create("d/e")
    wrong = IsADirectory if remove is Unlink else NotADirectory
    op, missing = remove(at("d"), b"e"), remove(at("d"), b"m")
    assert shard.fails(missing, ALICE) is PermissionDenied
    shard.do(SetAttr(at("d"), mode=0o705))
    assert shard.fails(missing, ALICE) is NotFound
    assert shard.fails(op, ALICE) is PermissionDenied
    shard.do(SetAttr(at("d"), mode=0o1707))
    assert shard.fails(op, ALICE) is NotPermitted
    shard.do(SetAttr(at("d"), flags=InodeFlag.APPEND))
    assert shard.fails(op, ALICE) is NotPermitted
    assert shard.fails(op) is Immutable
    shard.do(SetAttr(at("d"), flags=0))
    shard.do(SetAttr(at("d/e"), flags=InodeFlag.IMMUTABLE))
    assert shard.fails(op) is Immutable
    shard.do(SetAttr(at("d/e"), flags=0))
    assert shard.fails(op) is wrong
    assert shard.fails(remove(at("d/e"), b"x")) is (NotFound if remove is Unlink else NotADirectory)
    check(shard)


def test_the_sticky_bit_lets_owners_remove() -> None:
    shard = Shard()
    shard.mkdir("tmp", 0o1777)
    for name in ("a", "b", "c"):
        shard.create(f"tmp/{name}", caller=ALICE)
    assert shard.fails(Unlink(at("tmp"), b"a"), BOB) is NotPermitted
    assert shard.do(Unlink(at("tmp"), b"a"), ALICE) == Done()
    assert shard.do(Unlink(at("tmp"), b"b"), ROOT) == Done()
    shard.do(SetAttr(at("tmp"), uid=1001))
    assert shard.do(Unlink(at("tmp"), b"c"), BOB) == Done()


def test_a_removed_tree_is_out_of_usage_at_once_and_out_of_statfs_when_reaped() -> None:
    shard = Shard()
    for path in ("d", "d/e", "d/e/f"):
        shard.mkdir(path)
    inner = shard.create("d/e/f/file")
    shard.do(SetAttr(at("d/e/f/file"), size=7))
    deep = shard.stat("d/e/f").inode
    assert shard.do(RemoveTree(at(), b"d")) == Done()
    assert shard.usage() == (0, 0)
    assert shard.stat().nlink == 2
    assert shard.machine.counters.files == 5
    assert shard.machine.pending_work()
    for ino in (deep, inner.inode):
        with pytest.raises(Stale):
            shard.read(GetAttr(at(inode=ino)))
    assert shard.fails(Create(at(inode=deep), b"x", 0o644)) is Stale
    reap(shard)
    assert shard.machine.counters.files == 1
    assert not shard.machine.pending_work()
    check(shard)


def test_a_removed_tree_leaves_files_with_names_elsewhere() -> None:
    shard = Shard()
    shard.mkdir("a")
    shard.mkdir("b")
    made = shard.create("a/f")
    shard.do(Link(at("a/f"), at("b"), b"g"))
    shard.do(RemoveTree(at(), b"a"))
    assert shard.stat("b/g").inode == made.inode
    by_handle = shard.read(GetAttr(at(inode=made.inode)))
    assert by_handle == shard.read(GetAttr(at("b/g")))
    shard.do(SetAttr(at(inode=made.inode), size=5))
    reply = shard.read(ReadEvents(shard.machine.version - 1))
    assert isinstance(reply, EventsReply)
    assert reply.events[0].chain == (shard.stat("b").inode, 1)
    assert shard.usage("b") == (1, 5)
    reap(shard)
    kept = shard.stat("b/g")
    assert (kept.nlink, kept.parent) == (1, shard.stat("b").inode)
    check(shard)


def test_only_its_owner_removes_a_tree() -> None:
    shard = Shard()
    shard.do(SetAttr(at(), mode=0o777))
    shard.mkdir("d", 0o755, ALICE)
    shard.create("d/f", caller=ALICE)
    assert shard.fails(RemoveTree(at(), b"d"), BOB) is NotPermitted
    assert shard.do(RemoveTree(at(), b"d"), ALICE) == Done()
    check(shard)


def test_the_root_has_no_name_to_remove() -> None:
    shard = Shard()
    shard.mkdir("d")
    assert shard.fails(Rmdir(at("d"), b"..")) is not NotFound
    assert shard.stat("..").inode == 1


def test_inside_a_staged_tree_there_are_no_events_and_no_usage_outside() -> None:
    shard = Shard()
    stage = shard.do(StageBegin(0, 0o040755))
    assert isinstance(stage, Made)
    before = shard.machine.version
    inside = at(inode=stage.attr.inode)
    shard.do(Create(inside, b"f", 0o644))
    shard.do(Unlink(inside, b"f"))
    reply = shard.read(ReadEvents(before))
    assert isinstance(reply, EventsReply)
    assert reply.events == ()
    assert shard.usage() == (0, 0)
    other = shard.open(b"\x02" * 16)
    assert shard.fails(Create(inside, b"g", 0o644), session=other) is Stale
    check(shard)


def test_events_of_removals() -> None:
    shard = Shard()
    shard.mkdir("d")
    made = shard.create("d/f")
    shard.do(Unlink(at("d"), b"f"))
    shard.do(Rmdir(at(), b"d"))
    reply = shard.read(ReadEvents(0))
    assert isinstance(reply, EventsReply)
    kinds = [(event.kind, event.name) for event in reply.events]
    assert kinds == [
        (EventKind.CREATE, b"d"),
        (EventKind.CREATE, b"f"),
        (EventKind.REMOVE, b"f"),
        (EventKind.REMOVE, b"d"),
    ]
    assert reply.events[2].inode == made.inode
    assert reply.events[2].chain == (made.parent, 1)
