"""The trash: out of sight at once, back as it was, gone after its retention."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import DAY_NS, Files, inline, stored
from tests.unit.state.shard import ALICE, BOB, ROOT, at

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    InvalidArgument,
    NotFound,
    NotPermitted,
    PermissionDenied,
    QuotaExceeded,
    ResultTooLarge,
    Stale,
)
from nokv.state.families import Family
from nokv.types.commands import (
    Link,
    Mkdir,
    RemoveTree,
    Rename,
    Rmdir,
    SetAttr,
    StageBegin,
    Unlink,
)
from nokv.types.copies import SetQuota
from nokv.types.events import EventKind
from nokv.types.limits import PAGE_MAX
from nokv.types.reads import AttrReply, DirPage, EventsReply, GetAttr, ReadDir, ReadEvents
from nokv.types.results import Made, Reaped
from nokv.types.trash import (
    TRASH_EMPTY_MAX,
    TRASH_KEEP_NS_DEFAULT,
    TRASH_KEEP_NS_MAX,
    EmptyTrash,
    ExpireTrash,
    KeepTrash,
    ListTrash,
    RestoreTrash,
    Trash,
    Trashed,
    TrashPage,
    TrashRow,
)
from nokv.types.values import At, Caller
from nokv.types.views import Clone, Rollback, SnapshotCreate, WorkspaceCreate


@pytest.fixture
def files() -> Files:
    """A tree that everybody may write in."""
    shard = Files()
    shard.do(SetAttr(at(), mode=0o777))
    shard.mkdir("d", 0o777)
    shard.publish("d/f", stored(10))
    shard.publish("d/g", inline(b"text"))
    return shard


def trash(files: Files, path: str, caller: Caller = ROOT) -> tuple[int, int]:
    above, _, name = path.rpartition("/")
    made = files.do(Trash(at(above), name.encode()), caller)
    assert isinstance(made, Trashed)
    files.check()
    return made.view, made.trash


def listed(files: Files, caller: Caller = ROOT, **rest: int) -> tuple[TrashRow, ...]:
    page = files.read(ListTrash(**rest), caller)
    assert isinstance(page, TrashPage)
    return page.rows


def names(files: Files, path: str = "") -> list[bytes]:
    page = files.read(ReadDir(at(path)))
    assert isinstance(page, DirPage)
    return [entry.name for entry in page.entries]


def test_a_tree_goes_and_comes_back(files: Files) -> None:
    before, ino = files.usage(), files.stat("d").inode
    key = trash(files, "d")
    assert names(files) == []
    assert files.usage() == (0, 0)
    [row] = listed(files)
    assert (row.view, row.trash) == key
    assert (row.path, row.uid, row.entries, row.size_bytes) == (b"/d", 0, 2, 14)
    assert row.until_cluster_ns == files.cluster_ns + TRASH_KEEP_NS_DEFAULT
    with pytest.raises(Stale):
        files.read(GetAttr(at("f", inode=ino)))
    made = files.do(RestoreTrash(*key))
    assert isinstance(made, Made)
    assert made.attr.inode == ino
    assert files.usage() == before
    assert files.show("d/f") == b"\1" * 10
    assert listed(files) == ()
    assert files.statfs()[0] == 4
    files.check()


def test_no_address_leads_into_it(files: Files) -> None:
    trash(files, "d/f")
    hidden = files.machine.counters.next_inode - 1
    with pytest.raises(Stale):
        files.read(ReadDir(at(inode=hidden)))
    assert files.fails(Unlink(at(inode=hidden), b"%016x" % files.machine.version)) is Stale
    assert names(files, "d") == [b"g"]


def test_it_comes_back_elsewhere_under_another_name(files: Files) -> None:
    key = trash(files, "d/f")
    files.create("d/f")
    assert files.fails(RestoreTrash(*key)) is AlreadyExists
    files.do(RestoreTrash(*key, at(), b"again"))
    assert files.show("again") == b"\1" * 10
    assert files.stat("again").parent == 1
    assert files.fails(RestoreTrash(*key)) is NotFound
    files.check()


def test_its_directory_may_have_moved_or_gone(files: Files) -> None:
    first, second = trash(files, "d/f"), trash(files, "d/g")
    files.do(Rename(at(), b"d", at(), b"e"))
    files.do(RestoreTrash(*first))
    assert names(files, "e") == [b"f"]
    files.do(RemoveTree(at(), b"e"))
    assert files.fails(RestoreTrash(*second)) is NotFound
    files.reap()
    assert files.fails(RestoreTrash(*second)) is NotFound
    files.do(RestoreTrash(*second, at()))
    assert files.show("g") == b"text"


def test_what_was_trashed_with_its_directory(files: Files) -> None:
    inner = trash(files, "d/f")
    outer = trash(files, "d")
    assert files.fails(RestoreTrash(*inner)) is NotFound
    files.do(RestoreTrash(*outer))
    files.do(RestoreTrash(*inner))
    assert names(files, "d") == [b"f", b"g"]
    files.check()


def test_a_file_with_another_name(files: Files) -> None:
    files.do(Link(at("d/f"), at(), b"other"))
    key = trash(files, "d/f")
    files.publish("other", stored(20))
    files.do(Unlink(at(), b"other"))
    files.do(RestoreTrash(*key))
    assert files.show("d/f") == b"\1" * 20
    assert files.stat("d/f").nlink == 1
    files.check()


def test_who_may(files: Files) -> None:
    files.do(Mkdir(at(), b"a", 0o755), ALICE)
    files.do(Mkdir(at("a"), b"b", 0o755), ALICE)
    assert files.fails(Trash(at("a"), b"b"), BOB) is PermissionDenied
    files.do(SetAttr(at("a"), mode=0o777))
    assert files.fails(Trash(at(), b"a"), BOB) is NotPermitted  # not empty, and not his
    mine = trash(files, "a/b", ALICE)
    roots = trash(files, "d")
    assert [row.trash for row in listed(files)] == [mine[1], roots[1]]
    assert [row.trash for row in listed(files, ALICE)] == [mine[1]]
    assert listed(files, BOB) == ()
    assert files.fails(RestoreTrash(*mine), BOB) is NotPermitted
    assert files.fails(EmptyTrash((mine,)), BOB) is NotPermitted
    assert files.fails(EmptyTrash((mine, roots)), ALICE) is NotPermitted
    files.do(SetAttr(at(), mode=0o755))
    assert files.fails(RestoreTrash(*mine, at(), b"x"), ALICE) is PermissionDenied
    files.do(RestoreTrash(*mine), ALICE)
    files.check()


def test_who_trashes_another_s_file_and_its_owner_see_it(files: Files) -> None:
    files.do(Mkdir(at(), b"a", 0o777), ALICE)
    key = trash(files, "a", BOB)
    for caller in (ALICE, BOB):
        assert [row.trash for row in listed(files, caller)] == [key[1]]
    files.do(EmptyTrash((key, key, (0, 1), (77, 5))), ALICE)
    assert listed(files) == ()


def test_pages(files: Files) -> None:
    for i in range(7):
        files.create(f"f{i}")
        trash(files, f"f{i}")
    view = trashed = 0
    found = []
    while True:
        page = files.read(ListTrash(view, trashed, 3))
        assert isinstance(page, TrashPage)
        found += [row.path for row in page.rows]
        view, trashed = page.after_view, page.after
        if not page.more:
            break
    assert found == [b"/f%d" % i for i in range(7)]
    assert len(listed(files, limit=10 * PAGE_MAX)) == 7
    for odd in (-1, 2**63, 2**64):
        listed(files, after=odd, after_view=odd)


def test_retention(files: Files) -> None:
    trash(files, "d/f")
    files.wait(DAY_NS)
    second = trash(files, "d")
    expire = ExpireTrash(10)
    assert files.internal(expire) == Reaped(0, more=False)
    files.do(KeepTrash(DAY_NS))
    assert files.machine.trash_due(files.cluster_ns)
    assert files.internal(expire) == Reaped(1, more=False)
    assert not files.machine.trash_due(files.cluster_ns)
    assert [row.trash for row in listed(files)] == [second[1]]
    files.wait(DAY_NS)
    assert files.internal(expire) == Reaped(1, more=False)
    assert files.machine.counters.trashes == 0
    files.reap()
    assert files.statfs() == (1, 0)
    assert files.quiesce() == {(files.session, 1, 0, 0, 0)}


def test_the_end_comes_in_steps(files: Files) -> None:
    files.do(KeepTrash(0))
    for name in ("d/f", "d/g", "d"):
        trash(files, name)
    assert files.internal(ExpireTrash(2)) == Reaped(2, more=True)
    assert files.internal(ExpireTrash(2)) == Reaped(1, more=False)
    files.check()


def test_arguments(files: Files) -> None:
    assert files.fails(KeepTrash(-1)) is InvalidArgument
    assert files.fails(KeepTrash(TRASH_KEEP_NS_MAX + 1)) is InvalidArgument
    assert files.fails(KeepTrash(0), ALICE) is NotPermitted
    assert files.fails(ExpireTrash(0), session=0) is InvalidArgument
    assert files.fails(EmptyTrash(((0, 1),) * (TRASH_EMPTY_MAX + 1))) is ResultTooLarge
    assert files.fails(Trash(at(), b"..")) is InvalidArgument
    assert files.fails(Trash(at(), b"nothing")) is NotFound
    for view, number in ((0, 0), (-1, 5), (2**64 - 1, 2**64 - 1), (0, -1)):
        assert files.fails(RestoreTrash(view, number)) is NotFound
    begun = files.do(StageBegin(0, 0o040755))
    assert isinstance(begun, Made)
    stage = at(inode=begun.attr.inode)
    files.do(Mkdir(stage, b"x", 0o755))
    assert files.fails(Trash(stage, b"x")) is CrossesView
    key = trash(files, "d/f")
    assert files.fails(RestoreTrash(*key, stage)) is CrossesView


def test_a_quota_may_refuse_what_comes_back(files: Files) -> None:
    key = trash(files, "d/f")
    files.do(SetQuota(at("d"), 1, 0))
    assert files.fails(RestoreTrash(*key)) is QuotaExceeded
    files.check()
    files.do(Unlink(at("d"), b"g"))
    files.do(RestoreTrash(*key))


def test_events(files: Files) -> None:
    start = files.machine.version
    key = trash(files, "d")
    files.do(RestoreTrash(*key, at(), b"e"))
    reply = files.read(ReadEvents(start))
    assert isinstance(reply, EventsReply)
    assert [(event.kind, event.name) for event in reply.events] == [
        (EventKind.REMOVE, b"d"),
        (EventKind.MOVE_IN, b"e"),
    ]


def test_a_pin_shows_what_was_trashed(files: Files) -> None:
    pin = files.pin()
    key = trash(files, "d")
    assert files.show("d/g", at_version=pin) == b"text"
    files.do(EmptyTrash((key,)))
    files.reap()
    assert files.show("d/f", at_version=pin) == b"\1" * 10
    files.check()


# ---------------------------------------------------------------- views


def test_a_clone_in_the_trash(files: Files) -> None:
    files.do(Clone(at("d"), at(), b"c"))
    view = files.stat("c").view
    key = trash(files, "c")
    [row] = listed(files)
    assert (row.inode_view, row.entries) == (view, 2)
    files.publish_at(At(view, row.inode), b"n", inline(b"by a handle"))
    [row] = listed(files)
    assert row.entries == 3
    files.check()
    files.do(RestoreTrash(*key, at(), b"c2"))
    assert names(files, "c2") == [b"f", b"g", b"n"]
    files.check()
    files.do(EmptyTrash((trash(files, "c2"),)))
    files.reap()
    files.raise_floor()
    files.wait()
    files.collect()
    files.reap()
    assert files.count(Family.VIEW) == 1
    files.check()


def test_nothing_leads_up_from_a_view_in_the_trash(files: Files) -> None:
    files.do(WorkspaceCreate(at("d"), b"w", 0o777))
    found = files.stat("d/w")
    for path in ("d/w", "d"):
        key = trash(files, path)
        with pytest.raises(Stale):
            files.read(ReadDir(At(found.view, found.inode, (b"..",))))
        files.do(RestoreTrash(*key))
        files.read(ReadDir(At(found.view, found.inode, (b"..",))))


def test_a_view_s_trash_is_its_own_and_goes_with_it(files: Files) -> None:
    files.do(WorkspaceCreate(at(), b"w", 0o777))
    files.do(WorkspaceCreate(at("w"), b"inner", 0o777))
    files.create("w/x")
    inner = trash(files, "w/inner")
    key = trash(files, "w/x")
    assert inner[0] == key[0] == files.stat("w").view
    assert files.fails(RestoreTrash(*key, at())) is CrossesView
    assert len(listed(files)) == 2
    files.do(RemoveTree(at(), b"w"))
    files.check()
    assert listed(files) == ()
    assert files.fails(RestoreTrash(*key)) is NotFound
    files.quiesce()
    files.internal(ExpireTrash(5))
    assert files.count(Family.VIEW) == 1


def test_a_snapshot_of_all_takes_no_trashed_view_along(files: Files) -> None:
    files.do(WorkspaceCreate(at("d"), b"w", 0o777))
    trash(files, "d")
    files.do(SnapshotCreate(at(), "s", b"/"))
    files.do(Clone(at(), at(), b"copy"))
    assert names(files, "copy") == []
    files.check()


def test_up_from_a_view_that_was_elsewhere_at_the_snapshot(files: Files) -> None:
    files.do(WorkspaceCreate(at("d"), b"w", 0o777))
    files.mkdir("e")
    found, above = files.stat("d/w"), files.stat("d").inode
    files.do(SnapshotCreate(at(), "s", b"/"))
    version = files.machine.version - 1
    up, down_and_up = At(found.view, found.inode, (b"..",)), At(path=(b"d", b"w", b".."))

    def shown(address: At) -> int:
        reply = files.read(GetAttr(address, version))
        assert isinstance(reply, AttrReply)
        return reply.attr.inode

    assert shown(up) == shown(down_and_up) == above
    files.do(Rename(at("d"), b"w", at("e"), b"w"))
    for path in ("e/w", "e"):
        with pytest.raises(Stale):
            shown(up)
        assert shown(down_and_up) == above
        trash(files, path)
    with pytest.raises(Stale):
        shown(up)


def test_what_a_clone_inherits(files: Files) -> None:
    files.do(Link(at("d/f"), at("d"), b"h"))
    files.do(Clone(at("d"), at(), b"c"))
    key = trash(files, "c/f")
    files.do(Unlink(at("c"), b"h"))
    files.check()
    files.do(RestoreTrash(*key))
    assert files.show("c/f") == b"\1" * 10
    assert names(files, "c") == [b"f", b"g"]
    assert names(files, "d") == [b"f", b"g", b"h"]
    files.check()


def test_a_rollback_ends_the_trash_of_what_it_replaces(files: Files) -> None:
    files.do(WorkspaceCreate(at(), b"w", 0o777))
    files.create("w/x")
    files.do(SnapshotCreate(at("w"), "s", b"/w"))
    key = trash(files, "w/x")
    files.do(Rollback(at(), b"w", "s", b"/w", 10**9))
    assert names(files, "w") == [b"x"]
    assert files.fails(RestoreTrash(*key)) is NotFound
    files.check()
    assert files.fails(Rmdir(at(), b"w")) is not None
