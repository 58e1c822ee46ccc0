"""renameat2(2), by the rules of docs/namespace.md."""

from __future__ import annotations

import pytest
from tests.unit.state.invariants import check
from tests.unit.state.shard import ALICE, BOB, Shard, at

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
    Stale,
)
from nokv.types.commands import Create, Link, Rename, RenameFlag, SetAttr, StageBegin
from nokv.types.events import EventKind
from nokv.types.reads import EventsReply, GetAttr, ReadEvents
from nokv.types.results import Done, Made
from nokv.types.values import InodeFlag

NOREPLACE, EXCHANGE = RenameFlag.NOREPLACE, RenameFlag.EXCHANGE


def move(source: str, target: str, flags: int = 0) -> Rename:
    """Return the renaming of one path to another."""
    above, _, name = source.rpartition("/")
    to_above, _, to_name = target.rpartition("/")
    return Rename(at(above), name.encode(), at(to_above), to_name.encode(), flags)


@pytest.fixture
def shard() -> Shard:
    """Return a shard with a/{f, sub/}, b/{g, full/x, empty/}."""
    shard = Shard()
    for path in ("a", "a/sub", "b", "b/full", "b/empty"):
        shard.mkdir(path)
    for path in ("a/f", "b/g", "b/full/x"):
        shard.create(path)
    shard.do(SetAttr(at("a/f"), size=10))
    shard.do(SetAttr(at("b/g"), size=3))
    return shard


def test_a_name_moves_within_its_directory(shard: Shard) -> None:
    ino = shard.stat("a/f").inode
    assert shard.do(move("a/f", "a/h")) == Done()
    moved = shard.stat("a/h")
    assert (moved.inode, moved.ctime_ns) == (ino, shard.wall_ns)
    assert moved.mtime_ns < shard.wall_ns
    assert shard.stat("a").mtime_ns == shard.wall_ns
    with pytest.raises(NotFound):
        shard.stat("a/f")
    check(shard)


def test_a_directory_moves_with_its_usage(shard: Shard) -> None:
    assert shard.usage("b") == (4, 3)
    shard.do(move("b/full", "a/sub/full"))
    assert shard.usage("b") == (2, 3)
    assert shard.usage("a") == (4, 10)
    assert shard.usage() == (8, 13)
    moved = shard.stat("a/sub/full")
    assert moved.parent == shard.stat("a/sub").inode
    assert shard.stat("a/sub/full/..").inode == moved.parent
    assert (shard.stat("b").nlink, shard.stat("a/sub").nlink) == (3, 3)
    check(shard)


def test_events_and_handles_follow_a_moved_directory(shard: Shard) -> None:
    full = shard.stat("b/full").inode
    shard.do(move("b/full", "a/sub/full"))
    before = shard.machine.version
    shard.do(Create(at(inode=full), b"y", 0o644))
    reply = shard.read(ReadEvents(before))
    assert isinstance(reply, EventsReply)
    assert reply.events[0].chain == (full, shard.stat("a/sub").inode, shard.stat("a").inode, 1)
    check(shard)


def test_a_file_replaces_a_file(shard: Shard) -> None:
    ino, gone = shard.stat("a/f").inode, shard.stat("b/g").inode
    shard.do(move("a/f", "b/g"))
    assert shard.stat("b/g").inode == ino
    with pytest.raises(Stale):
        shard.read(GetAttr(at(inode=gone)))
    assert shard.usage("b") == (4, 10)
    check(shard)


def test_a_directory_replaces_an_empty_one(shard: Shard) -> None:
    shard.do(move("b/full", "b/empty"))
    assert shard.stat("b/empty").children == 1
    assert (shard.stat("b").nlink, shard.stat("b").children) == (3, 2)
    shard.do(move("b/empty", "a/sub"))
    assert shard.stat("a/sub").children == 1
    check(shard)


def test_a_replaced_file_with_other_names_stays(shard: Shard) -> None:
    shard.do(Link(at("b/g"), at(), b"keep"))
    shard.do(move("a/f", "b/g"))
    kept = shard.stat("keep")
    assert (kept.nlink, kept.ctime_ns) == (1, shard.wall_ns)
    check(shard)


def test_a_file_with_several_names_moves(shard: Shard) -> None:
    shard.do(Link(at("b/g"), at("b"), b"g2"))
    shard.do(Link(at("b/g"), at(), b"g3"))
    shard.do(move("b/g", "a/sub/g"))
    assert shard.stat("a/sub/g").nlink == 3
    check(shard)
    shard.do(move("g3", "b/g3"))
    assert shard.stat("b/g3").parent == min(shard.stat("b").inode, shard.stat("a/sub").inode)
    check(shard)


def test_exchange_swaps_a_file_with_a_full_directory(shard: Shard) -> None:
    ino, directory = shard.stat("a/f").inode, shard.stat("b/full").inode
    shard.do(move("a/f", "b/full", EXCHANGE))
    assert shard.stat("a/f").inode == directory
    assert shard.stat("b/full").inode == ino
    assert shard.stat("a").nlink == 4
    assert shard.usage("a") == (3, 0)
    assert shard.usage("b") == (3, 13)
    check(shard)
    shard.do(move("a/f", "a/sub", EXCHANGE))
    assert shard.stat("a/sub").inode == directory
    check(shard)


@pytest.mark.parametrize("flags", [0, EXCHANGE])
def test_names_of_one_inode_change_nothing(shard: Shard, flags: int) -> None:
    shard.do(Link(at("a/f"), at("b"), b"f2"))
    before, version = shard.stat("a/f"), shard.machine.version
    shard.do(move("a/f", "b/f2", flags))
    shard.do(move("a/f", "a/f", flags))
    shard.do(move("b/full", "b/full", flags))
    assert shard.stat("a/f") == before == shard.stat("b/f2")
    reply = shard.read(ReadEvents(version))
    assert isinstance(reply, EventsReply)
    assert reply.events == ()
    check(shard)


@pytest.mark.parametrize(
    ("source", "target", "flags", "error"),
    [
        ("a/f", "b/g", 4, InvalidArgument),
        ("a/f", "b/g", NOREPLACE | EXCHANGE, InvalidArgument),
        ("a/f", "b/g", -1, InvalidArgument),
        ("a/.", "b/g", 0, InvalidArgument),
        ("a/f", "b/..", 0, InvalidArgument),
        ("a/f", "b/" + "x" * 256, 0, NameTooLong),
        ("a/f/x", "b/g", 0, NotADirectory),
        ("a/f", "b/g/x", 0, NotADirectory),
        ("m/f", "b/g", 0, NotFound),
        ("a/m", "b/g", 0, NotFound),
        ("a/m", "a/m", 0, NotFound),
        ("a/f", "b/m", EXCHANGE, NotFound),
        ("a/f", "b/g", NOREPLACE, AlreadyExists),
        ("a/f", "a/f", NOREPLACE, AlreadyExists),
        ("b", "b/full/b", 0, InvalidArgument),
        ("b", "b/full/x", 0, InvalidArgument),
        ("b", "b/b", 0, InvalidArgument),
        ("b", "b/full/x", EXCHANGE, InvalidArgument),
        ("b/full/x", "b", EXCHANGE, InvalidArgument),
        ("b/full/x", "b", 0, NotEmpty),
        ("b/full/x", "b/full", 0, NotEmpty),
        ("a/sub", "b/g", 0, NotADirectory),
        ("a/f", "b/empty", 0, IsADirectory),
        ("a/f", "b/full", 0, IsADirectory),
        ("a/sub", "b/full", 0, NotEmpty),
    ],
)
def test_refused_renames_change_nothing(
    shard: Shard, source: str, target: str, flags: int, error: type
) -> None:
    before = [shard.stat(path) for path in ("", "a", "b", "a/f", "b/full")]
    assert shard.fails(move(source, target, flags)) is error
    assert [shard.stat(path) for path in ("", "a", "b", "a/f", "b/full")] == before
    check(shard)


def test_which_error_of_permission_wins(shard: Shard) -> None:
    op = move("a/f", "b/g")
    shard.do(SetAttr(at("a"), mode=0o704))
    assert shard.fails(move("a/m", "b/g"), ALICE) is PermissionDenied
    shard.do(SetAttr(at("a"), mode=0o705))
    assert shard.fails(move("a/m", "b/g"), ALICE) is NotFound
    assert shard.fails(op, ALICE) is PermissionDenied
    shard.do(SetAttr(at("a"), mode=0o1777))
    assert shard.fails(op, ALICE) is NotPermitted
    shard.do(SetAttr(at("a"), mode=0o777))
    assert shard.fails(op, ALICE) is PermissionDenied
    shard.do(SetAttr(at("b"), mode=0o1777))
    assert shard.fails(op, ALICE) is NotPermitted
    assert shard.do(move("a/f", "b/new"), ALICE) == Done()
    shard.do(SetAttr(at("b/g"), uid=1001))
    assert shard.do(move("b/g", "a/g"), BOB) == Done()
    check(shard)


@pytest.mark.parametrize("path", ["a", "a/f", "b", "b/g"])
@pytest.mark.parametrize("flag", [InodeFlag.IMMUTABLE, InodeFlag.APPEND])
def test_flags_forbid_renames(shard: Shard, path: str, flag: InodeFlag) -> None:
    shard.do(SetAttr(at(path), flags=flag))
    assert shard.fails(move("a/f", "b/g")) is Immutable
    assert shard.fails(move("a/f", "b/g", EXCHANGE)) is Immutable


def test_a_new_name_in_an_append_only_directory(shard: Shard) -> None:
    shard.do(SetAttr(at("b"), flags=InodeFlag.APPEND))
    assert shard.do(move("a/f", "b/new")) == Done()
    shard.do(SetAttr(at("a"), flags=InodeFlag.IMMUTABLE))
    assert shard.fails(move("b/new", "a/new")) is Immutable


def test_a_directory_that_changes_parent_needs_w_on_itself(shard: Shard) -> None:
    for path in ("a", "b"):
        shard.do(SetAttr(at(path), mode=0o777))
    assert shard.do(move("b/full", "b/full2"), ALICE) == Done()
    assert shard.fails(move("b/full2", "a/full"), ALICE) is PermissionDenied
    assert shard.fails(move("a/f", "b/full2", EXCHANGE), ALICE) is PermissionDenied
    shard.do(SetAttr(at("b/full2"), mode=0o777))
    assert shard.do(move("b/full2", "a/full"), ALICE) == Done()
    check(shard)


def test_nothing_moves_into_or_out_of_a_staged_tree(shard: Shard) -> None:
    stage = shard.do(StageBegin(0, 0o040755))
    assert isinstance(stage, Made)
    inside = at(inode=stage.attr.inode)
    shard.do(Create(inside, b"s", 0o644))
    assert shard.fails(Rename(at("a"), b"f", inside, b"f")) is CrossesView
    assert shard.fails(Rename(inside, b"s", at("a"), b"s")) is CrossesView
    assert shard.do(Rename(inside, b"s", inside, b"t")) == Done()
    check(shard)


def test_events_of_renames(shard: Shard) -> None:
    version = shard.machine.version
    a, b, ino = (shard.stat(path).inode for path in ("a", "b", "a/f"))
    shard.do(move("a/f", "b/h"))
    shard.do(move("b/h", "b/g", EXCHANGE))
    reply = shard.read(ReadEvents(version))
    assert isinstance(reply, EventsReply)
    first, second = reply.events
    assert (first.kind, first.chain, first.name, first.inode) == (
        EventKind.RENAME,
        (a, 1),
        b"f",
        ino,
    )
    assert (first.to_chain, first.to_name, first.size) == ((b, 1), b"h", 10)
    assert (second.kind, second.to_name) == (EventKind.EXCHANGE, b"g")
