"""Addresses: path_resolution(7) inside a view."""

from __future__ import annotations

import pytest
from tests.unit.state.invariants import check
from tests.unit.state.shard import ALICE, Shard, at

from nokv.errors import (
    InvalidArgument,
    NameTooLong,
    NotADirectory,
    NotFound,
    PermissionDenied,
    Stale,
    TooManyLinks,
)
from nokv.types.commands import Atomic, Create, Mkdir, Rename, Rmdir, SetAttr, StageBegin
from nokv.types.limits import DEPTH_MAX, SYMLINK_HOPS_MAX
from nokv.types.reads import GetAttr
from nokv.types.results import Done, Made
from nokv.types.values import At


@pytest.fixture
def shard() -> Shard:
    """Return a shard with a/b/f and links of many kinds."""
    shard = Shard()
    shard.mkdir("a")
    shard.mkdir("a/b")
    shard.create("a/b/f")
    for path, target in (
        ("abs", b"/a/b"),
        ("rel", b"a/b"),
        ("a/up", b"../a/b/f"),
        ("slash", b"a//b/"),
        ("fileslash", b"a/b/f/"),
        ("dot", b"."),
        ("root", b"/"),
        ("dangling", b"nowhere"),
        ("loop", b"loop"),
        ("chain", b"abs/../up"),
        ("long", b"x" * 256),
    ):
        shard.symlink(path, target)
    return shard


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("a/./b/f", "a/b/f"),
        ("a/b/../b/f", "a/b/f"),
        ("..", ""),
        ("../../a", "a"),
        ("abs/f", "a/b/f"),
        ("rel/f", "a/b/f"),
        ("abs", "a/b"),
        ("a/up", "a/b/f"),
        ("slash", "a/b"),
        ("slash/f", "a/b/f"),
        ("dot/dot/a", "a"),
        ("root", ""),
        ("a/b/../.." + "/" + "root/a", "a"),
        ("chain", "a/b/f"),
        ("abs/..", "a"),
    ],
)
def test_paths_that_show_the_same(shard: Shard, path: str, same: str) -> None:
    assert shard.stat(path) == shard.stat(same)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("a/m", NotFound),
        ("m/x", NotFound),
        ("a/b/f/.", NotADirectory),
        ("a/b/f/..", NotADirectory),
        ("a/b/f/x", NotADirectory),
        ("fileslash", NotADirectory),
        ("dangling", NotFound),
        ("dangling/x", NotFound),
        ("loop", TooManyLinks),
        ("loop/x", TooManyLinks),
        ("long", NameTooLong),
    ],
)
def test_paths_that_show_nothing(shard: Shard, path: str, error: type) -> None:
    with pytest.raises(error):
        shard.stat(path)


def test_the_last_link_is_followed_only_if_asked_to(shard: Shard) -> None:
    for name in ("abs", "dangling", "loop", "long"):
        assert shard.stat(name, follow=False).mode == 0o120777
    assert shard.stat("abs/.", follow=False) == shard.stat("a/b")
    assert shard.fails(Create(at("abs", follow=False), b"x", 0o644)) is NotADirectory
    link = shard.stat("abs", follow=False)
    assert shard.read(GetAttr(at(inode=link.inode))) == shard.read(GetAttr(at("abs", follow=False)))


def test_as_many_links_as_the_limit_are_followed() -> None:
    shard = Shard()
    shard.create("l0")
    for number in range(SYMLINK_HOPS_MAX + 1):
        shard.symlink(f"l{number + 1}", b"l%d" % number)
    assert shard.stat(f"l{SYMLINK_HOPS_MAX}") == shard.stat("l0")
    with pytest.raises(TooManyLinks):
        shard.stat(f"l{SYMLINK_HOPS_MAX + 1}")


def test_every_directory_on_the_way_needs_x(shard: Shard) -> None:
    shard.do(SetAttr(at("a"), mode=0o766))
    for path in ("a/b", "a/.", "a/..", "abs", "rel/f"):
        with pytest.raises(PermissionDenied):
            shard.read(GetAttr(at(path)), ALICE)
    inside = shard.stat("a/b")
    assert shard.read(GetAttr(at("f", inode=inside.inode)), ALICE)
    with pytest.raises(PermissionDenied):
        shard.read(GetAttr(at("../b", inode=inside.inode)), ALICE)


@pytest.mark.parametrize(
    "address", [At(view=1), At(view=-1), at(inode=0), at(inode=-5), at(inode=2**63), at(inode=999)]
)
def test_unknown_starts_are_stale(shard: Shard, address: At) -> None:
    with pytest.raises(Stale):
        shard.read(GetAttr(address))


def test_a_link_in_a_staged_tree(shard: Shard) -> None:
    stage = shard.do(StageBegin(0, 0o040755))
    assert isinstance(stage, Made)
    ino = stage.attr.inode
    shard.do(Mkdir(at(inode=ino), b"s", 0o755))
    made = shard.do(Create(at("s/..", inode=ino), b"x", 0o644))
    assert isinstance(made, Made)
    assert made.attr.parent == ino
    made = shard.do(Create(at("..", inode=ino), b"y", 0o644))
    assert isinstance(made, Made)
    assert made.attr.parent == ino
    with pytest.raises(Stale):
        shard.read(GetAttr(at(inode=ino)))
    check(shard)


def dig(shard: Shard, name: bytes, depth: int) -> list[int]:
    """Make a chain of directories below the root; return their inodes from the top."""
    first = shard.machine.counters.next_inode
    parents = [1, *range(first, first + depth - 1)]
    names = [name] + [b"d"] * (depth - 1)
    commands = [
        shard.command(Mkdir(at(inode=parent), one, 0o755))
        for parent, one in zip(parents, names, strict=True)
    ]
    assert not any(result.code for result in shard.entry(*commands))
    return list(range(first, first + depth))


def test_a_tree_deeper_than_the_limit_is_refused_with_a_type() -> None:
    shard = Shard()
    half = DEPTH_MAX // 2 + 1
    upper, lower = dig(shard, b"a", half), dig(shard, b"b", half)
    assert shard.do(Rename(at(), b"b", at(inode=upper[-1]), b"b")) == Done()
    assert shard.fails(Create(at(inode=lower[-1]), b"x", 0o644)) is NameTooLong
    with pytest.raises(NameTooLong):
        shard.read(GetAttr(at(inode=lower[-1])))
    assert shard.do(Rename(at(inode=upper[-1]), b"b", at(), b"b")) == Done()
    assert isinstance(shard.do(Create(at(inode=lower[-1]), b"x", 0o644)), Made)


def test_a_chain_as_deep_as_the_limit_works() -> None:
    shard = Shard()
    deepest = dig(shard, b"a", DEPTH_MAX)[-1]
    assert isinstance(shard.do(Create(at(inode=deepest), b"f", 0o644)), Made)
    assert shard.fails(Create(at("d/x", inode=deepest), b"f", 0o644)) is NotFound
    made = shard.do(Mkdir(at(inode=deepest), b"d", 0o755))
    assert isinstance(made, Made)
    assert shard.fails(Create(at(inode=made.attr.inode), b"f", 0o644)) is NameTooLong
    assert shard.do(Rmdir(at(inode=deepest), b"d")) == Done()


def test_an_undone_directory_leaves_no_memory_of_where_it_was() -> None:
    shard = Shard()
    shard.mkdir("a")
    top = shard.stat("a").inode
    ino = shard.machine.counters.next_inode
    undone = Atomic(
        (
            Mkdir(at("a"), b"x", 0o755),
            Create(at(inode=ino), b"f", 0o644),
            Rename(at(), b"a", at(inode=ino), b"loop"),
        )
    )
    assert shard.fails(undone) is InvalidArgument
    again = shard.mkdir("y")
    assert again.inode == ino
    shard.do(Create(at(inode=ino), b"f", 0o644))
    assert shard.usage("y") == (1, 0)
    assert shard.usage("a") == (0, 0)
    assert shard.stat("y/..").inode == 1 != top
    check(shard)


def test_an_undone_move_leaves_no_memory_of_where_it_went() -> None:
    shard = Shard()
    for path in ("d", "d/sub", "e"):
        shard.mkdir(path)
    undone = Atomic((Rename(at(), b"d", at("e"), b"d"), Create(at("e/d/x"), b"f", 0o644)))
    assert shard.fails(undone) is NotFound
    shard.do(Create(at("d/sub"), b"f", 0o644))
    assert (shard.usage("d"), shard.usage("e")) == ((2, 0), (0, 0))
    check(shard)
