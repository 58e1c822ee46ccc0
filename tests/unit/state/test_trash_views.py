"""The end of what is in the trash where many views would end with it."""

from __future__ import annotations

import pytest
from tests.unit.state.shard import at
from tests.unit.state.viewing import Views, tree

from nokv.state import ops_trash, views
from nokv.types.commands import Mkdir
from nokv.types.results import Reaped
from nokv.types.trash import ExpireTrash, KeepTrash, Trash


def trash(shard: Views, path: str) -> None:
    parent, _, name = path.rpartition("/")
    shard.do(Trash(at(parent), name.encode()))


def over(shard: Views) -> Views:
    """Let the retention of all that is in the trash be over."""
    shard.do(KeepTrash(0))
    shard.do(Mkdir(at(), b"later", 0o755))
    return shard


def test_a_view_whose_own_trash_is_full_of_views_keeps_nothing_else_from_going(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "NESTED_VIEWS_MAX", 2)
    shard = tree()
    shard.workspace("w")
    for name in ("one", "two", "three"):
        shard.workspace(f"w/{name}")
        trash(shard, f"w/{name}")
    trash(shard, "w")
    trash(shard, "a/x")
    over(shard)
    assert shard.internal(ExpireTrash(10)) == Reaped(4, more=False)
    assert shard.machine.has_trash()
    assert shard.internal(ExpireTrash(10)) == Reaped(1, more=False)
    assert not shard.machine.has_trash()
    shard.settle()
    assert not shard.views()
    shard.check()


def test_a_step_ends_so_many_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_trash, "VIEWS_A_STEP", 3)
    shard = tree()
    for name in ("u", "v", "w"):
        shard.workspace(name)
        shard.workspace(f"{name}/inner")
        trash(shard, name)
    over(shard)
    assert shard.internal(ExpireTrash(10)) == Reaped(2, more=True)
    assert shard.internal(ExpireTrash(10)) == Reaped(1, more=False)
    shard.settle()
    assert not shard.views()
