"""Trees that a rename buried deeper than handles are followed, in views that inherit."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files, stored
from tests.unit.state.shard import at

from nokv.errors import NameTooLong
from nokv.state import context
from nokv.types.commands import Link, RemoveTree, Rename, SetAttr, Unlink
from nokv.types.diffs import History, HistoryReply
from nokv.types.reads import AttrReply, GetAttr
from nokv.types.results import Done, Reaped
from nokv.types.trash import ExpireTrash, KeepTrash, ListTrash, Trash, Trashed, TrashPage
from nokv.types.values import At, Attr
from nokv.types.views import Clone, Flatten, Rollback, SnapshotCreate, WorkspaceCreate

DEPTH = 8


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow handles for few directories."""
    monkeypatch.setattr(context, "DEPTH_MAX", DEPTH)


@pytest.fixture
def files() -> Files:
    """A tree /d, in which d/A and d/B are deep, and a file at B's end is d/g, too."""
    files = Files()
    files.mkdir("d")
    for name in "AB":
        for depth in range(1, DEPTH - 1):
            files.mkdir("/".join(("d", name, *"abcdefgh"))[: 2 * depth + 1])
    files.publish(f"{end_of('d', 'B')}/f", stored(10))
    files.do(Link(at(f"{end_of('d', 'B')}/f"), at("d"), b"g"))
    return files


def end_of(top: str, name: str) -> str:
    return "/".join((top, name, *"abcdefgh"))[: len(top) + 2 * (DEPTH - 2)]


def bury(files: Files, top: str) -> None:
    """Move B to the end of A."""
    assert files.do(Rename(at(top), b"B", at(end_of(top, "A")), b"B")) == Done()


def buried(files: Files, top: str) -> Attr:
    """Return the file at B's end, which no handle is followed to."""
    where = files.stat(f"{top}/A")
    path = (*end_of(top, "A").split("/")[2:], *end_of(top, "B").split("/")[1:], "f")
    reply = files.read(GetAttr(At(where.view, where.inode, tuple(map(str.encode, path)))))
    assert isinstance(reply, AttrReply)
    return reply.attr


def end(files: Files) -> None:
    """Remove the clone: nothing of it may stay."""
    files.do(RemoveTree(at(), b"c"))
    files.quiesce()


def cloned(files: Files, *, before: bool) -> int:
    """Clone /d to /c and bury B there, or the other way round; return the clone's view."""
    if before:
        bury(files, "d")
    files.do(Clone(at("d"), at(), b"c"))
    if not before:
        bury(files, "c")
    view = files.stat("c").view
    assert view
    return view


@pytest.mark.parametrize("before", [False, True])
def test_a_file_is_there_by_its_shallow_name(files: Files, *, before: bool) -> None:
    view = cloned(files, before=before)
    assert files.stat("c/g").nlink == 2
    shown = At(view, files.stat("c/g").inode)
    files.do(SetAttr(shown, mode=0o600))
    assert buried(files, "c").mode & 0o777 == files.stat("c/g").mode & 0o777 == 0o600
    files.check()
    assert files.do(Unlink(at("c"), b"g")) == Done()
    assert buried(files, "c").nlink == 1
    with pytest.raises(NameTooLong):
        files.read(GetAttr(shown))
    files.check()
    files.do(RemoveTree(at("c"), b"A"))
    files.reap()
    files.check()
    assert files.stat("d/g").nlink == 2
    end(files)


@pytest.mark.parametrize("before", [False, True])
def test_its_name_in_the_trash_expires_as_any_other(files: Files, *, before: bool) -> None:
    if before:
        bury(files, "d")
    files.do(Clone(at("d"), at(), b"c"))
    files.do(KeepTrash(0))
    assert isinstance(files.do(Trash(at("c"), b"g")), Trashed)
    files.create("innocent")
    files.wait()
    files.do(Trash(at(), b"innocent"))
    if not before:
        bury(files, "c")
    page = files.read(ListTrash())
    assert isinstance(page, TrashPage)
    assert len(page.rows) == 2
    files.check()
    files.wait()
    assert files.internal(ExpireTrash(10)) == Reaped(2, more=False)
    assert buried(files, "c").nlink == 1
    files.check()
    end(files)


@pytest.mark.parametrize("before", [False, True])
def test_it_is_flattened_and_reaped(files: Files, *, before: bool) -> None:
    view = cloned(files, before=before)
    for _ in range(1000):
        step = files.internal(Flatten(view, 3))
        assert isinstance(step, Reaped)
        files.check()
        files.raise_floor()
        files.wait()
        files.collect()
        if not step.more and files.machine.view(view).origin is None:  # type: ignore[union-attr]
            break
    else:
        pytest.fail("it is never flat")
    assert buried(files, "c").nlink == 2
    files.do(RemoveTree(at("c"), b"A"))
    files.reap()
    files.check()
    assert files.stat("c/g").nlink == 1
    end(files)


def test_its_history_is_told_by_its_shallow_name(files: Files) -> None:
    files.do(SnapshotCreate(at("d"), "s", b"/d"))
    bury(files, "d")
    files.do(SnapshotCreate(at("d"), "t", b"/d"))
    reply = files.read(History(at("d/g")))
    assert isinstance(reply, HistoryReply)
    assert [holder.name for row in reply.rows for holder in row.holders] == ["", "s", "t"]


def test_a_tree_with_a_buried_view_is_copied(files: Files) -> None:
    files.do(WorkspaceCreate(at(end_of("d", "B")), b"w", 0o755))
    bury(files, "d")
    files.do(SnapshotCreate(at("d"), "s", b"/d"))
    files.do(Clone(at("d"), at(), b"c"))
    files.check()
    files.do(Rollback(at(), b"d", "s", b"/d", 10**9))
    files.check()
    files.do(RemoveTree(at(), b"c"))
    files.reap()
    files.check()
