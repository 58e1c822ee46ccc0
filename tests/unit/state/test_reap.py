"""Background work in small steps, and replicas that do the same things to other stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.state.bodies import Files, stored
from tests.unit.state.programs import Programs
from tests.unit.state.shard import at
from tests.unit.state.test_session_any_command import run

from nokv.errors import InvalidArgument
from nokv.kv.lmdb_store import LmdbKV
from nokv.state import reap
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.port import KV
from nokv.types.commands import (
    Link,
    Mknod,
    PinView,
    Reap,
    RemoveTree,
    SetXattr,
    Symlink,
    UnpinView,
)
from nokv.types.results import Pinned, Reaped
from nokv.types.views import WorkspaceCreate


def rows(kv: KV) -> dict[Family, list[tuple[bytes, bytes]]]:
    return {family: list(kv.scan(family, b"\x00", b"\xff" * 9)) for family in Family}


def forest() -> Files:
    """Return a shard with removed trees, dropped pins and a name that remains."""
    files = Files()
    for name in ("keep", "d", "d/e", "d/e/f", "d/g"):
        files.mkdir(name)
    first = files.do(PinView(0))
    for i in range(6):
        files.publish(f"d/e/f/{i}", stored(10))
        files.do(SetXattr(at(f"d/e/f/{i}"), b"user.a", b"v"))
    files.do(Link(at("d/e/f/0"), at("keep"), b"x"))
    files.do(Link(at("d/e/f/0"), at("d/g"), b"y"))
    second = files.do(PinView(0))
    files.do(RemoveTree(at(), b"d"))
    for pin in (first, second):
        assert isinstance(pin, Pinned)
        files.do(UnpinView(0, pin.version, pin.pin))
    return files


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_small_steps_do_what_one_does(limit: int) -> None:
    small, large = forest(), forest()
    small.reap(limit)
    large.reap(1000)
    for files in (small, large):
        assert files.statfs() == (3, 10)
        assert files.stat("keep/x").nlink == 1
        assert files.usage() == (2, 10)
        files.check()
    volatile = {Family.META, Family.DROP, Family.INODE, Family.SESSION}
    one, other = rows(small.kv), rows(large.kv)
    for family in Family:
        if family not in volatile:
            assert one[family] == other[family], family.name
    assert len(one[Family.DROP]) == len(other[Family.DROP])
    assert small.quiesce() == large.quiesce()


def mixed() -> Files:
    """Return a shard with a removed tree of all sorts, and no pin."""
    files = Files()
    for name in ("keep", "d", "d/e"):
        files.mkdir(name)
    for directory in ("d", "d/e"):
        files.publish(f"{directory}/body", stored(10))
        files.publish(f"{directory}/linked", stored(20))
        files.publish(f"{directory}/twice", stored(30))
        files.publish(f"{directory}/named", stored(40))
        for name in ("empty", "void"):
            files.create(f"{directory}/{name}")
        files.do(SetXattr(at(f"{directory}/named"), b"user.a", b"v"))
        files.do(Symlink(at(directory), b"symbolic", b"to/somewhere"))
        files.do(Mknod(at(directory), b"fifo", 0o010644))
        files.do(Link(at(f"{directory}/linked"), at("keep"), directory.encode()[-1:]))
        files.do(Link(at(f"{directory}/twice"), at(directory), b"again"))
        files.do(WorkspaceCreate(at(directory), b"view", 0o755))
    files.do(RemoveTree(at(), b"d"))
    return files


@pytest.mark.parametrize("limit", [3, 5, 1000])
def test_plain_files_end_at_once_as_they_do_one_by_one(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, slow = mixed(), mixed()
    fast.reap(limit)
    monkeypatch.setattr(reap, "_end_plain", lambda _ctx, rows, _death: rows)
    slow.reap(limit)
    for files in (fast, slow):
        files.check()
        assert files.usage() == (3, 40)
    one, other = rows(fast.kv), rows(slow.kv)
    drops = [sorted(value for _, value in each.pop(Family.DROP)) for each in (one, other)]
    assert drops[0] == drops[1]
    assert len(drops[0]) >= 6
    for each in (one, other):  # the fingerprint is of results, whose steps are the same
        assert len(each.pop(Family.META)) > 1
    assert one == other
    assert fast.quiesce() == slow.quiesce()


def test_each_step_keeps_every_invariant() -> None:
    files = forest()
    steps = 0
    while files.machine.pending_work():
        step = files.internal(Reap(1))
        assert isinstance(step, Reaped)
        assert step.removed == 1
        files.check()
        steps += 1
    assert steps > 20


def test_the_bounds_of_a_step() -> None:
    files = Files()
    for limit in (0, -1, 65_537, 2**64 - 1):
        assert files.fails(Reap(limit), session=0) is InvalidArgument
    assert files.internal(Reap(65_536)) == Reaped(0, more=False)


@pytest.mark.seeds(5)
def test_replicas_agree_over_two_stores(seed: int, tmp_path: Path) -> None:
    """The same program twice in memory, and once in LMDB reopened in the middle."""
    memory, again = Files(MemoryKV()), Files(MemoryKV())
    lmdb = LmdbKV(tmp_path / "state")
    durable = Files(lmdb)
    for number in range(3):
        for files in (memory, again, durable):
            run(files, Programs(seed * 10 + number), 60)
        durable.machine.commit()
        durable.machine = StateMachine(lmdb)
        assert memory.machine.fingerprint() == again.machine.fingerprint()
        assert memory.machine.fingerprint() == durable.machine.fingerprint()
        assert rows(memory.kv) == rows(again.kv) == rows(durable.kv)
    lmdb.close()
