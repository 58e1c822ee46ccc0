"""The end of what is in the trash where many views would end with it."""

from __future__ import annotations

import pytest
from tests.unit.state.shard import at
from tests.unit.state.viewing import Views, tree

from nokv.errors import Stale
from nokv.state import ops_trash, views
from nokv.types.commands import CreateBackup, Mkdir, PinView, Reap, RemoveTree
from nokv.types.results import Reaped
from nokv.types.trash import EmptyTrash, ExpireTrash, KeepTrash, ListTrash, Trash, TrashPage
from nokv.types.values import At
from nokv.types.views import ViewMade


def trash(shard: Views, path: str) -> None:
    parent, _, name = path.rpartition("/")
    shard.do(Trash(at(parent), name.encode()))


def over(shard: Views) -> Views:
    """Let the retention of all that is in the trash be over."""
    shard.do(KeepTrash(0))
    shard.do(Mkdir(at(), b"later", 0o755))
    return shard


def with_full_trash() -> tuple[Views, list[ViewMade]]:
    """Return a shard with the view /w, in whose trash are three others, one with a view in it."""
    shard = tree()
    made = [shard.workspace("w")]
    for name in ("one", "two", "three"):
        made.append(shard.workspace(f"w/{name}"))
        if name == "two":
            made.append(shard.workspace("w/two/in"))
            shard.clone("a", "w/two/clone")
            shard.do(Trash(at("w/two"), b"clone"))
        trash(shard, f"w/{name}")
    return shard, made


def test_what_a_view_has_in_its_trash_ends_with_it_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "NESTED_VIEWS_MAX", 3)
    shard, made = with_full_trash()
    for one in made[1:]:
        assert shard.attr(At(one.view, one.inode)).view == one.view, "a handle of it is good"
    before = shard.machine.counters.drops
    shard.do(RemoveTree(at(), b"w"))
    assert shard.machine.counters.drops == before + 1, "one command ends one view"
    for one in made:
        assert shard.fails(Mkdir(At(one.view, one.inode), b"d", 0o755)) is Stale
        assert shard.fails(PinView(one.view)) is Stale
        with pytest.raises(Stale):
            shard.attr(At(one.view, one.inode))
    assert {row.dead for row in shard.views().values()} == {shard.views()[made[0].view].dead}
    page = shard.read(ListTrash())
    assert isinstance(page, TrashPage)
    assert not page.rows
    shard.check()
    while shard.machine.pending_work():
        shard.internal(Reap(1))
        shard.check()
    assert not shard.machine.has_trash()
    shard.settle()
    assert not shard.views()


def test_a_backup_holds_none_of_them() -> None:
    shard, made = with_full_trash()
    shard.do(RemoveTree(at(), b"w"))
    shard.do(CreateBackup("b", 1, 10**15, "bucket", "c" * 32))
    assert not any(shard.machine._txn.pins(one.view) for one in made)
    shard.settle()


def test_entries_go_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_trash, "VIEWS_A_STEP", 2)
    shard = tree()
    for name in ("u", "v", "w"):
        shard.workspace(name)
        shard.workspace(f"{name}/inner")
        trash(shard, name)
    page = shard.read(ListTrash())
    assert isinstance(page, TrashPage)
    op = EmptyTrash(tuple((row.view, row.trash) for row in page.rows))
    steps = [shard.do(op) for _ in range(4)]
    assert steps == [
        Reaped(1, more=True),
        Reaped(1, more=True),
        Reaped(1, more=False),
        Reaped(0, more=False),
    ]
    shard.settle()
    assert not shard.views()


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
