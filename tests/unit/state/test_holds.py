"""Holds over views: each ends its own, and what it shows of its origin outlives its readers."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files, stored
from tests.unit.state.shard import at

from nokv.state.families import Family
from nokv.types.commands import PublishMode, RemoveTree, SessionMarks, SetAttr, Unlink
from nokv.types.copies import Copy, CopyMode
from nokv.types.limits import CHUNK_BYTES
from nokv.types.values import Lease
from nokv.types.views import Clone


@pytest.fixture
def files() -> Files:
    """A file of two chunks in /d, and its clone in /c."""
    shard = Files()
    shard.mkdir("d")
    shard.publish("d/f", stored(10), stored(10, 0, 1, 1), size=CHUNK_BYTES + 10)
    shard.do(Clone(at("d"), at(), b"c"))
    return shard


def gone(files: Files) -> set[tuple[int, int]]:
    """Let time pass without readers of the past; return (upload, block) of what was deleted."""
    found = set()
    for _ in range(4):
        files.reap()
        files.raise_floor()
        files.wait()
        found |= {(upload, block) for _, upload, _, block, _ in files.collect()}
        files.check()
    return found


def test_an_inherited_body_ends_without_a_row(files: Files) -> None:
    files.publish("c/f", stored(5))
    assert not files.count(Family.DROP)
    files.do(Unlink(at("c"), b"f"))
    assert files.count(Family.DROP) == 1
    assert gone(files) == {(2, 0)}
    assert files.show("d/f", length=10)[:10] == b"\1" * 10


def test_of_a_patched_body_only_what_is_the_view_s_goes(files: Files) -> None:
    files.publish("c/f", stored(5, 2, block=7), publish_mode=PublishMode.PATCH)
    assert not files.count(Family.DROP)  # the record that it covers is the origin's
    files.publish("c/f", stored(3, 3, block=8), publish_mode=PublishMode.PATCH)
    files.do(Unlink(at("c"), b"f"))
    assert gone(files) == {(2, 7), (3, 8)}
    assert not files.count(Family.DROP)
    files.do(Unlink(at("d"), b"f"))
    assert gone(files) == set()  # the clone's pin
    files.do(RemoveTree(at(), b"c"))
    assert gone(files) == {(1, 0), (1, 1)}


def test_what_a_clone_cut_off_does_not_come_back(files: Files) -> None:
    files.do(SetAttr(at("c/f"), size=4))
    files.do(SetAttr(at("c/f"), size=CHUNK_BYTES + 10))
    assert [c.index for c in files.body(at("c/f")).chunks] == [0]
    assert [c.index for c in files.body(at("d/f")).chunks] == [0, 1]
    files.check()
    files.publish("c/f", stored(6, 0, 1, 5), publish_mode=PublishMode.PATCH)
    assert gone(files) == set()
    files.do(RemoveTree(at(), b"c"))
    assert gone(files) == {(2, 5)}
    assert files.count(Family.VIEW) == 1


@pytest.mark.parametrize("leased", [False, True])
def test_readers_of_a_removed_clone(files: Files, leased: bool) -> None:
    """The origin has replaced what the clone showed: its pin goes only behind the last reader."""
    files.publish("d/f", stored(20))
    attr = files.stat("c/f")
    seen = files.machine.version
    lease = Lease(attr.view, attr.inode, attr.body, seen)
    files.do(RemoveTree(at(), b"c"))
    files.reap()
    floor = files.machine.version if leased else seen
    leases = (lease,) if leased else ()
    files.internal(SessionMarks((files.marks(1, floor=floor, leases=leases),)))
    for _ in range(3):
        files.wait()
        assert files.collect() == []
        files.reap()
    assert files.count(Family.VIEW) == 2
    files.internal(SessionMarks((files.marks(2, floor=files.machine.version),)))
    assert gone(files) == {(1, 0), (1, 1)}
    assert files.count(Family.VIEW) == 1


@pytest.mark.parametrize("order", [("c", "d", "out"), ("out", "d", "c"), ("d", "c", "out")])
def test_holders_in_several_views_in_any_order(files: Files, order: tuple[str, ...]) -> None:
    files.mkdir("out")
    files.do(Copy(at("c/f"), at("out"), b"f", CopyMode.CREATE, 0o644))
    files.do(Copy(at("out/f"), at("c"), b"again", CopyMode.CREATE, 0o644))
    files.do(Clone(at("c"), at(), b"e"))
    files.do(Copy(at("e/again"), at("e"), b"third", CopyMode.CREATE, 0o644))
    for name in (*order, "e"):
        assert gone(files) == set()
        files.do(RemoveTree(at(), name.encode()))
    assert gone(files) == {(1, 0), (1, 1)}
    assert not files.count(Family.REF)
    assert files.count(Family.VIEW) == 1
