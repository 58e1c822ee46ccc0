"""What ends as a whole never holds more views than one command takes along."""

from __future__ import annotations

import pytest
from tests.unit.state.shard import at
from tests.unit.state.viewing import Views, tree

from nokv.errors import ResultTooLarge
from nokv.state import ops_trash, views
from nokv.types.commands import Mkdir, RemoveTree, Rename
from nokv.types.trash import RestoreTrash, Trash, Trashed
from nokv.types.values import At
from nokv.types.views import Clone, Rollback, WorkspaceCreate


@pytest.fixture(autouse=True)
def _three_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "NESTED_VIEWS_MAX", 3)


def test_copies_of_a_directory_into_itself_end_where_it_can_still_go() -> None:
    shard = tree()
    shard.clone("a", "a/c0")
    shard.clone("a", "a/c1")
    assert shard.fails(Clone(at("a"), at("a"), b"c2")) is ResultTooLarge
    assert shard.fails(Clone(at("a"), at("a/c1"), b"c2")) is ResultTooLarge
    shard.snapshot("a", "s")
    assert shard.fails(Clone(at(), at("a"), b"c2", "s")) is ResultTooLarge
    shard.clone("a", "elsewhere")
    shard.do(RemoveTree(at(), b"a"))
    shard.settle()


def test_a_plain_directory_holds_any_number_of_views() -> None:
    shard = tree()
    for number in range(5):
        shard.workspace(f"a/w{number}")
    assert shard.fails(RemoveTree(at(), b"a")) is ResultTooLarge
    for number in range(3):
        shard.do(RemoveTree(at("a"), b"w%d" % number))
    shard.do(RemoveTree(at(), b"a"))
    shard.settle()


def full() -> Views:
    """Return a shard with the workspace /w, in which there are three views, the last one deeper."""
    shard = tree()
    for path in ("w", "w/one", "w/two", "w/two/three"):
        shard.workspace(path)
    return shard


def test_a_view_with_as_many_as_it_may_have_goes_to_the_trash_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops_trash, "NESTED_VIEWS_MAX", 3)
    shard = full()
    trashed = shard.do(Trash(at(), b"w"))
    assert isinstance(trashed, Trashed)
    shard.do(RestoreTrash(trashed.view, trashed.trash))
    shard.workspace("a/w")
    shard.do(Rename(at(), b"w", at("a"), b"v"))
    assert shard.fails(Trash(at(), b"a")) is ResultTooLarge


def test_no_view_above_gets_more() -> None:
    shard = full()
    for place in ("w", "w/one", "w/two/three"):
        assert shard.fails(WorkspaceCreate(at(place), b"more", 0o755)) is ResultTooLarge
        assert shard.fails(Clone(at("a"), at(place), b"more")) is ResultTooLarge
    shard.mkdir("w/plain")
    assert shard.fails(WorkspaceCreate(at("w/plain"), b"more", 0o755)) is ResultTooLarge
    shard.do(RemoveTree(at("w/two"), b"three"))
    shard.clone("w/one", "w/plain/more")
    shard.do(RemoveTree(at(), b"w"))
    shard.settle()


def test_rollback_and_restore_ask_too() -> None:
    shard = full()
    shard.mkdir("w/d")
    shard.do(RemoveTree(at("w"), b"one"))
    shard.workspace("w/d/one")
    shard.snapshot("w/d", "s")
    assert shard.fails(Rollback(at("w"), b"d", "s", b"/w/d", 10**9)) is ResultTooLarge
    shard.do(RemoveTree(at("w/d"), b"one"))
    gone = shard.do(Trash(at("w"), b"two"))
    assert isinstance(gone, Trashed)
    shard.do(Rollback(at("w"), b"d", "s", b"/w/d", 10**9))
    assert shard.fails(RestoreTrash(gone.view, gone.trash)) is ResultTooLarge
    shard.do(RemoveTree(at("w"), b"d"))
    shard.do(RestoreTrash(gone.view, gone.trash))
    shard.settle()


def test_an_entry_of_a_trash_gets_no_more_than_can_end_with_it() -> None:
    shard = tree()
    made = [shard.workspace(f"a/w{number}") for number in range(2)]
    shard.do(Trash(at(), b"a"))
    shard.do(WorkspaceCreate(At(made[0].view, made[0].inode), b"in", 0o755))
    for one in made:
        into = At(one.view, one.inode)
        assert shard.fails(WorkspaceCreate(into, b"more", 0o755)) is ResultTooLarge
    shard.do(Mkdir(At(made[0].view, made[0].inode), b"plain", 0o755))
    shard.check()
