"""Staged trees: out of sight while they are built, then visible at once, or reaped."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files, inline, stored
from tests.unit.state.shard import ALICE, ROOT, at

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    IsADirectory,
    NokvError,
    NotADirectory,
    NotPermitted,
    PermissionDenied,
    Stale,
    WindowFull,
)
from nokv.state.families import Family
from nokv.types.commands import (
    Atomic,
    Create,
    ExpireSession,
    Link,
    Mkdir,
    Op,
    PublishMode,
    Rename,
    StageBegin,
    StageDrop,
    StageMode,
    StageSwap,
    Unlink,
)
from nokv.types.events import EventKind
from nokv.types.reads import EventsReply, GetAttr, ReadEvents
from nokv.types.results import Made, Published
from nokv.types.values import At

DIRECTORY = 0o040755
REGULAR = 0o100644


@pytest.fixture
def files() -> Files:
    return Files()


def begin(files: Files, mode: int = DIRECTORY, **rest: int) -> int:
    made = files.do(StageBegin(0, mode), **rest)  # type: ignore[arg-type]
    assert isinstance(made, Made)
    return made.attr.inode


def swap(stage: int, name: bytes, mode: int = StageMode.CREATE, parent: At | None = None) -> Op:
    return StageSwap(0, stage, at() if parent is None else parent, name, mode)


def test_a_staged_tree_is_out_of_sight(files: Files) -> None:
    cursor = files.machine.version
    stage = begin(files)
    inside = At(0, stage)
    files.do(Mkdir(inside, b"d", 0o755))
    files.publish_at(At(0, stage, (b"d",)), b"f", stored(10))
    assert files.usage() == (0, 0)
    assert files.statfs() == (4, 10)
    other = files.open(b"\x02" * 16)
    for address in (inside, At(0, stage, (b"d",)), At(0, stage + 1)):
        with pytest.raises(Stale):
            files.read(GetAttr(address))
    [refused] = files.entry(files.command(Create(inside, b"x", 0o644), session=other, seq=1))
    assert refused.code == Stale.code
    events = files.read(ReadEvents(cursor))
    assert isinstance(events, EventsReply)
    assert not events.events
    files.check()


def test_the_swap_shows_it_at_once(files: Files) -> None:
    stage = begin(files)
    files.do(Mkdir(At(0, stage), b"d", 0o755))
    made = files.publish_at(At(0, stage, (b"d",)), b"f", inline(b"body"))
    cursor = files.machine.version
    done = files.do(swap(stage, b"tree"))
    assert isinstance(done, Published)
    assert done.inode == stage
    assert done.generation == files.machine.version
    assert files.show("tree/d/f") == b"body"
    assert files.stat("tree/d/f").generation == made.generation
    assert files.usage() == (3, 4)
    assert files.usage("tree") == (2, 4)
    assert files.stat("").nlink == 3
    events = files.read(ReadEvents(cursor))
    assert isinstance(events, EventsReply)
    assert [(e.kind, e.name) for e in events.events] == [(EventKind.MOVE_IN, b"tree")]
    assert files.fails(StageDrop(0, stage)) is Stale
    assert files.fails(swap(stage, b"again")) is Stale
    files.check()


def test_a_staged_file_becomes_a_generation(files: Files) -> None:
    stage = begin(files, REGULAR)
    files.publish_at(At(0, stage), b"", inline(b"x"), mode=PublishMode.PATCH)
    files.publish_at(At(0, stage), b"", inline(b"y", 1), mode=PublishMode.PATCH)
    assert files.usage() == (0, 0)
    cursor = files.machine.version
    done = files.do(swap(stage, b"f"))
    assert isinstance(done, Published)
    attr = files.stat("f")
    assert (attr.generation, attr.nlink, attr.size) == (done.generation, 1, 2)
    assert files.show("f") == b"xy"
    events = files.read(ReadEvents(cursor))
    assert isinstance(events, EventsReply)
    assert [(e.kind, e.generation) for e in events.events] == [(EventKind.PUBLISH, done.generation)]
    files.publish("f", inline(b"new"))
    assert files.usage() == (1, 3)
    files.check()


def test_a_replaced_tree_is_detached(files: Files) -> None:
    old = files.mkdir("t")
    files.publish("t/old", stored(10))
    stage = begin(files)
    files.publish_at(At(0, stage), b"new", inline(b"12"))
    assert files.fails(swap(stage, b"t")) is AlreadyExists
    files.do(swap(stage, b"t", StageMode.REPLACE))
    assert files.usage() == (2, 2)
    assert files.stat("").nlink == 3
    with pytest.raises(Stale):
        files.read(GetAttr(At(0, old.inode)))
    files.check()
    files.reap(1)
    files.check()
    assert files.statfs() == (3, 2)
    assert files.quiesce() == {(files.session, 1, 0, 0, 0)}


def test_what_a_swap_may_replace(files: Files) -> None:
    files.mkdir("d", 0o777)
    files.mkdir("d/root", 0o755)
    files.create("d/f")
    tree, one = begin(files), begin(files, REGULAR)
    parent = at("d")
    replace = StageMode.REPLACE
    refusals: list[tuple[int, bytes, type[NokvError]]] = [
        (tree, b"f", NotADirectory),
        (one, b"root", IsADirectory),
    ]
    for stage, name, error in refusals:
        assert files.fails(swap(stage, name, replace, parent)) is error
    assert files.fails(swap(tree, b"root", replace, parent), ALICE) is NotPermitted
    assert files.fails(swap(tree, b"new", replace), ALICE) is PermissionDenied
    assert files.fails(swap(tree, b"a/b", replace)) is InvalidArgument
    assert files.fails(swap(tree, b"x", 7)) is InvalidArgument
    assert files.fails(StageSwap(0, tree, At(0, 1, (b"",)), b"x", 0)) is InvalidArgument
    files.do(swap(one, b"f", replace, parent))
    files.check()


def test_staged_trees_never_nest(files: Files) -> None:
    outer, inner = begin(files), begin(files)
    files.do(Mkdir(At(0, outer), b"d", 0o755))
    assert files.fails(swap(inner, b"x", parent=At(0, outer))) is CrossesView
    assert files.fails(swap(inner, b"x", parent=At(0, outer, (b"d",)))) is CrossesView
    assert files.fails(swap(outer, b"x", parent=At(0, outer, (b"d",)))) is CrossesView
    files.create("f")
    assert files.fails(Link(at("f"), At(0, outer), b"f")) is CrossesView
    assert files.fails(Rename(at(), b"f", At(0, outer), b"f")) is CrossesView
    assert files.fails(Rename(At(0, outer), b"d", at(), b"d")) is CrossesView
    one = begin(files, REGULAR)
    assert files.fails(Link(At(0, one), at(), b"g")) is CrossesView
    files.check()


def test_the_limit_of_open_stages(files: Files) -> None:
    stages = [begin(files) for _ in range(64)]
    assert files.fails(StageBegin(0, DIRECTORY)) is WindowFull
    files.do(StageDrop(0, stages[7]))
    begin(files)
    files.reap(1)
    files.check()


def test_expiry_detaches_what_is_staged(files: Files) -> None:
    other = files.open(b"\x02" * 16)
    stage = begin(files)
    files.publish_at(At(0, stage), b"f", stored(10))
    begin(files, REGULAR)
    files.do(ExpireSession(files.session), session=0)
    files.check()
    files.session, files.seq = other, 0
    assert files.fails(Create(At(0, stage), b"x", 0o644)) is Stale
    files.reap(1)
    assert files.statfs() == (1, 0)
    files.check()
    files.quiesce()


def test_odd_stages(files: Files) -> None:
    for mode in (0o120777, 0o755, -1, 2**32 | DIRECTORY, 0o020600):
        assert files.fails(StageBegin(0, mode)) is InvalidArgument
    assert files.fails(StageBegin(1, DIRECTORY)) is Stale
    for stage in (-1, 0, 1, 99, 2**64 - 1):
        assert files.fails(StageDrop(0, stage)) is Stale
        assert files.fails(swap(stage, b"x")) is Stale
    assert files.fails(StageDrop(-1, 5)) is Stale


def test_a_failed_atomic_leaves_the_stage_open(files: Files) -> None:
    stage = begin(files)
    bad = Atomic((StageSwap(0, stage, at(), b"t", 0), Unlink(at(), b"missing")))
    files.fails(bad)
    files.check()
    files.do(Atomic((StageSwap(0, stage, at(), b"t", 0), Create(at("t"), b"f", 0o644))), ROOT)
    assert files.usage() == (2, 0)
    files.check()
    assert not files.count(Family.DROP)
