"""Programs on which model and state machine once differed, as short as they became."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.machine.limits import small_limits
from tests.machine.replay import ObservedModel
from tests.machine.rules import VOLUME, NamespaceMachine
from tests.machine.world import World, internal

from nokv.errors import NameTooLong, PermissionDenied, QuotaExceeded, Stale
from nokv.types import commands as c
from nokv.types.copies import SetQuota
from nokv.types.locks import SetLock
from nokv.types.results import Made, Result
from nokv.types.trash import Trash
from nokv.types.values import At, Caller
from nokv.types.views import Clone, Flatten, SnapshotCreate, WorkspaceCreate

ALICE = Caller(1, 1)


class Shard:
    """A world with one session."""

    def __init__(self) -> None:
        self.world: World = NamespaceMachine.make_world()
        self.world.apply([internal(c.InitVolume(VOLUME, 7, 0o777))])
        self.world.apply([internal(c.OpenSession(b"n" * 16, 10**9))])
        self.seq = 0

    def send(self, op: c.Op, caller: Caller = Caller()) -> Result:  # noqa: B008  a constant
        self.seq += 1
        command = c.Command(c.COMMAND_FORMAT, 7 << 32 | 1, self.seq, self.seq - 1, caller, op)
        return self.world.apply([command])[0]

    def do(self, *ops: c.Op) -> Result:
        for op in ops:
            result = self.send(op)
            assert not result.code, result
        return result


@pytest.fixture
def shard() -> Iterator[Shard]:
    shard = Shard()
    yield shard
    shard.world.compare()
    shard.world.finish()


def at(*path: bytes) -> At:
    return At(path=path)


def stage(shard: Shard, view: int = 0) -> int:
    made = shard.do(c.StageBegin(view, 0o040777)).value
    assert isinstance(made, Made)
    return made.attr.inode


def test_events_of_a_graft_name_its_view(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o755), WorkspaceCreate(at(b"a"), b"w", 0o777))
    shard.do(c.SetAttr(at(b"a", b"w"), mode=0o700))
    shard.do(c.Rename(at(b"a"), b"w", At(), b"w"), c.RemoveTree(At(), b"w"))


def test_a_change_of_a_clones_root_is_told(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o755), c.Mkdir(at(b"a"), b"b", 0o755))
    shard.do(Clone(at(b"a", b"b"), At(), b"c"), c.SetAttr(at(b"c"), mode=0o700))
    assert isinstance(shard.world.model, ObservedModel)


def test_a_clone_of_a_snapshot_needs_what_the_directory_asks(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o700), SnapshotCreate(at(b"a"), "s", b"/a"))
    result = shard.send(Clone(At(), At(), b"b", "s"), ALICE)
    assert result.code == PermissionDenied.code


def test_what_was_staged_has_no_address_in_a_clone(shard: Shard) -> None:
    root = stage(shard)
    shard.do(c.Mkdir(At(), b"a", 0o777), c.Create(At(0, root), b"f", 0o666))
    shard.do(Clone(at(b"a"), At(), b"b"))
    assert shard.send(c.Create(At(1, root), b"g", 0o666)).code == Stale.code
    assert shard.send(c.SetAttr(At(1, root + 2), mode=0)).code == Stale.code


def test_a_flattened_clone_counts_no_name_of_a_removed_tree(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o777), c.Create(at(b"a"), b"f", 0o666))
    shard.do(c.Link(at(b"a", b"f"), At(), b"g"), c.Mkdir(At(), b"d", 0o777))
    shard.do(Clone(At(), at(b"d"), b"c"), c.SetAttr(at(b"d", b"c", b"g"), size=3))
    shard.do(c.RemoveTree(at(b"d", b"c"), b"a"))
    shard.world.apply([internal(Flatten(1, 100))])
    shard.world.settle()
    shard.world.compare_quiet()


def test_a_swap_keeps_the_count_of_locks_that_end_with_what_it_replaces(shard: Shard) -> None:
    shard.do(c.Create(At(), b"a", 0o666), SetLock(at(b"a"), 0, 2, write=True))
    made = shard.do(c.StageBegin(0, 0o100666)).value
    assert isinstance(made, Made)
    shard.do(c.StageSwap(0, made.attr.inode, At(), b"a", 1))


def test_the_quota_of_a_removed_directory_refuses_nothing(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o777), c.Create(at(b"a"), b"f", 0o666))
    shard.do(c.Link(at(b"a", b"f"), At(), b"g"), SetQuota(at(b"a"), 0, 60))
    assert shard.send(c.SetAttr(at(b"g"), size=61)).code == QuotaExceeded.code
    shard.do(c.RemoveTree(At(), b"a"), c.SetAttr(at(b"g"), size=61))


def test_a_swap_that_shrinks_passes_a_quota_that_is_exceeded(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o777), c.Create(at(b"a"), b"f", 0o666), SetQuota(At(), 1, 0))
    shard.do(c.StageSwap(0, stage(shard), At(), b"a", 1))


def test_a_quota_below_a_name_that_is_not_utf8_is_told(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"\xff", 0o777), SetQuota(at(b"\xff"), 1, 0))
    shard.do(c.Create(at(b"\xff"), b"f", 0o666))
    assert shard.send(c.Create(at(b"\xff"), b"g", 0o666)).code == QuotaExceeded.code


def test_what_was_staged_in_a_removed_view_leaves_room_for_more(shard: Shard) -> None:
    shard.do(WorkspaceCreate(At(), b"w", 0o777))
    for _ in range(64):
        stage(shard, 1)
    shard.do(c.RemoveTree(At(), b"w"))
    stage(shard)


def test_views_nested_at_one_depth_and_deeper_are_numbered_in_order(shard: Shard) -> None:
    shard.do(c.Mkdir(At(), b"a", 0o777), WorkspaceCreate(at(b"a"), b"x", 0o777))
    shard.do(WorkspaceCreate(at(b"a"), b"y", 0o777))
    shard.do(WorkspaceCreate(at(b"a", b"x"), b"z", 0o777))
    shard.do(WorkspaceCreate(at(b"a", b"y"), b"z", 0o777))
    shard.do(Clone(at(b"a"), At(), b"b"), Clone(At(), at(b"a"), b"c"))


def test_a_rename_of_a_name_to_itself_in_a_directory_that_lies_too_deep() -> None:
    with small_limits():
        shard = Shard()
        shard.do(c.Mkdir(At(), b"a", 0o777), c.Mkdir(at(b"a"), b"b", 0o777))
        shard.do(c.Mkdir(at(b"a", b"b"), b"c", 0o777))
        made = shard.do(c.Mkdir(At(), b"d", 0o777)).value
        assert isinstance(made, Made)
        shard.do(c.Mknod(at(b"d"), b"f", 0o100666))
        shard.do(c.Rename(At(), b"d", at(b"a", b"b", b"c"), b"d"))
        buried = At(inode=made.attr.inode)
        assert shard.send(c.Rename(buried, b"f", buried, b"f")).code == NameTooLong.code
        shard.world.compare()
        shard.world.finish()


def test_a_view_with_as_many_below_as_there_may_be_goes_to_the_trash() -> None:
    with small_limits():
        shard = Shard()
        shard.do(WorkspaceCreate(At(), b"w", 0o777), WorkspaceCreate(at(b"w"), b"x", 0o777))
        shard.do(WorkspaceCreate(at(b"w"), b"y", 0o777), Trash(At(), b"w"))
        shard.world.compare()
        shard.world.finish()


def test_a_file_with_a_name_that_a_rename_buried_is_where_another_one_is() -> None:
    with small_limits():
        shard = Shard()
        shard.do(c.Mkdir(At(), b"a", 0o777), c.Mkdir(at(b"a"), b"b", 0o777))
        shard.do(c.Create(at(b"a", b"b"), b"f", 0o666), c.Mkdir(at(b"a"), b"c", 0o777))
        shard.do(c.Link(at(b"a", b"b", b"f"), at(b"a", b"c"), b"f"))
        shard.do(c.Mkdir(at(b"a", b"c"), b"d", 0o777))
        shard.do(c.Rename(at(b"a"), b"b", at(b"a", b"c", b"d"), b"b"))
        shard.do(c.Link(at(b"a", b"c", b"f"), at(b"a"), b"f"), c.SetAttr(At(0, 4), mode=0o600))
        assert shard.send(c.SetAttr(At(0, 4), size=1)).code == NameTooLong.code
        shard.world.compare()
        shard.world.finish()
