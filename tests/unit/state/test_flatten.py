"""Flattening: nothing that anybody reads changes, at any step; then the origin goes."""

from __future__ import annotations

from itertools import islice

import pytest
from tests.unit.state.bodies import Files, Name, inline, stored
from tests.unit.state.shard import at

from nokv.errors import InvalidArgument, NokvError
from nokv.state import flatten, keys
from nokv.state.families import Family
from nokv.types.commands import (
    Link,
    Op,
    PublishMode,
    RemoveTree,
    Rename,
    SessionMarks,
    SetAttr,
    SetXattr,
    Unlink,
)
from nokv.types.limits import CHUNK_BYTES
from nokv.types.reads import DirPage, ListXattr, NamesReply, ReadDir
from nokv.types.results import Reaped
from nokv.types.trash import RestoreTrash, Trash, Trashed
from nokv.types.values import At, Lease
from nokv.types.views import (
    Clone,
    Flatten,
    GetSnapshot,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotReply,
)

Seen = list[object]


@pytest.fixture
def files() -> Files:
    """A tree below /d, cloned to /c: plain files, links, attributes, a body of two chunks."""
    shard = Files()
    shard.mkdir("d")
    shard.mkdir("d/a")
    shard.mkdir("d/a/deep")
    shard.mkdir("d/z")
    shard.mkdir("d/z/sub")
    shard.publish("d/z/sub/k", stored(9))
    shard.publish("d/z/m", stored(8))
    shard.publish("d/f", stored(10), stored(20, 5, 1, 3), size=CHUNK_BYTES + 30)
    shard.publish("d/a/g", inline(b"inline"))
    shard.publish("d/a/deep/h", stored(7))
    shard.symlink("d/l", b"a/g")
    shard.do(Link(at("d/f"), at("d/z"), b"again"))
    shard.do(Link(at("d/f"), at(), b"outside"))
    shard.do(SetXattr(at("d/a"), b"user.x", b"1"))
    shard.do(SetXattr(at("d/f"), b"user.y", b"2"))
    shard.do(Clone(at("d"), at(), b"c"))
    return shard


def view_of(files: Files, path: str = "c") -> int:
    return files.stat(path).view


def see(files: Files, where: At, version: int = 0) -> Seen:
    """All that a reader sees below an address."""
    page = files.read(ReadDir(where, limit=1000, plus=True, at_version=version))
    assert isinstance(page, DirPage)
    seen: Seen = [page.directory]
    for entry in page.entries:
        below = At(where.view, where.inode, (*where.path, entry.name), follow=False)
        seen.append(entry)
        if entry.file_type != 0o12:
            names = files.read(ListXattr(below, version))
            assert isinstance(names, NamesReply)
            seen.append(names.names)
        if entry.file_type == 0o4:
            seen += see(files, below, version)
        elif entry.file_type == 0o10:
            reply = files.body(below, at_version=version)
            for one in reply.chunks:
                extents = [(e.offset, e.length, e.object_offset, e.data) for e in one.chunk.extents]
                objects = [one.chunk.objects[e.object] for e in one.chunk.extents if e.object >= 0]
                seen.append((one.index, extents, objects))
    return seen


def step(files: Files, view: int, limit: int = 1) -> bool:
    done = files.internal(Flatten(view, limit))
    assert isinstance(done, Reaped)
    files.check()
    return done.more


def origin(files: Files, view: int) -> int | None:
    record = files.machine._txn.present.view(view)
    assert record is not None
    return record.origin


def finish(files: Files, view: int) -> None:
    """Go on to the end, with nobody reading the past."""
    files.reap()  # it waits for trees that are taken apart
    while step(files, view, 5):
        pass
    files.raise_floor()
    files.wait()
    files.collect()
    assert origin(files, view) is None
    while step(files, view, 3):
        pass
    assert files.machine._txn.present.get(Family.META, keys.flatten(view)) is None
    prefix = keys.CHANGED_PREFIX + keys.pack(view)
    rows = files.kv.scan(Family.META, prefix, keys.after_prefix(prefix))
    assert not list(islice(rows, 1))
    files.check()


def rest(files: Files) -> set[Name]:
    """Let all that nobody reads end; return the objects that went."""
    gone: set[Name] = set()
    for _ in range(8):
        files.reap()
        files.raise_floor()
        files.wait()
        gone |= set(files.collect())
    files.check()
    assert not files.count(Family.DROP)
    return gone


def test_nothing_changes_at_any_step(files: Files) -> None:
    view, before, original = view_of(files), see(files, at("c")), see(files, at("d"))
    statfs = files.statfs()
    steps = 0
    while step(files, view):
        steps += 1
        assert see(files, at("c")) == before
    assert steps > 6
    assert see(files, at("c")) == before
    finish(files, view)
    assert see(files, at("c")) == before
    assert see(files, at("d")) == original
    assert files.statfs()[0] > statfs[0]
    files.do(RemoveTree(at(), b"d"))
    files.do(Unlink(at(), b"outside"))
    files.reap()
    files.raise_floor()
    files.wait()
    assert files.collect() == []
    assert see(files, at("c")) == before
    assert files.count(Family.HISTORY) == 0


def test_what_the_clone_has_changed_stays(files: Files) -> None:
    view = view_of(files)
    files.publish("c/f", stored(4, 2, block=7), publish_mode=PublishMode.PATCH)
    files.do(SetAttr(at("c/a/deep/h"), size=3))
    files.do(Unlink(at("c/z"), b"again"))
    files.do(RemoveTree(at("c"), b"z"))
    files.do(Rename(at("c/a"), b"deep", at("c"), b"shallow"))
    files.create("c/new")
    before = see(files, at("c"))
    finish(files, view)
    assert see(files, at("c")) == before
    files.do(RemoveTree(at(), b"c"))
    files.do(RemoveTree(at(), b"d"))
    files.do(Unlink(at(), b"outside"))
    assert len(rest(files)) == 6
    assert files.count(Family.VIEW) == 1


def test_pins_show_what_they_did(files: Files) -> None:
    view = view_of(files)
    shown = []
    changes: tuple[Op, ...] = (
        SetAttr(at("c/f"), mode=0o600),
        SetAttr(at("c/f"), size=5),
        Unlink(at("c"), b"f"),
        RemoveTree(at("c"), b"a"),
        Rename(at("c"), b"z", at("c"), b"y"),
    )
    for number, change in enumerate(changes):
        files.do(SnapshotCreate(at("c"), f"s{number}", b"/c"))
        reply = files.read(GetSnapshot(f"s{number}"))
        assert isinstance(reply, SnapshotReply)
        where = At(reply.view, reply.inode)
        shown.append((where, reply.version, see(files, where, reply.version)))
        files.do(change)
    files.reap()
    before = see(files, at("c"))
    more = True
    while more:
        more = step(files, view, 2)
        for where, version, then in shown:
            assert see(files, where, version) == then
    finish(files, view)
    files.do(RemoveTree(at(), b"d"))
    files.do(Unlink(at(), b"outside"))
    files.reap()
    files.raise_floor()
    files.wait()
    files.collect()
    assert see(files, at("c")) == before
    for where, version, then in shown:
        assert see(files, where, version) == then
    for number in range(5):
        files.do(SnapshotDelete(f"s{number}"))
    files.do(RemoveTree(at(), b"c"))
    rest(files)
    assert not files.named()
    assert files.count(Family.VIEW) == 1


def test_a_snapshot_that_goes_while_it_is_walked(files: Files) -> None:
    view = view_of(files)
    files.do(SnapshotCreate(at("c"), "s", b"/c"))
    files.do(Unlink(at("c"), b"f"))
    state = None
    while state is None or not state.at:
        assert step(files, view)
        state = flatten.load(files.machine._txn.present, view)
    step(files, view, 2)
    files.do(SnapshotDelete("s"))
    files.reap()
    finish(files, view)


@pytest.mark.parametrize("steps", range(12))
def test_what_moves_ahead_of_the_walk_is_not_missed(files: Files, steps: int) -> None:
    """From a directory that the walk did not come to, to one where it was."""
    view = view_of(files)
    for _ in range(steps):
        step(files, view)
    files.do(Rename(at("c/z"), b"sub", at("c/a"), b"sub"))
    files.do(Link(at("c/z/m"), at("c/a"), b"m"))
    files.do(Unlink(at("c/z"), b"m"))
    key = files.do(Trash(at("c"), b"z"))
    assert isinstance(key, Trashed)
    files.do(RestoreTrash(key.view, key.trash, at("c/a")))
    before = see(files, at("c"))
    finish(files, view)
    files.do(RemoveTree(at(), b"d"))
    files.do(Unlink(at(), b"outside"))
    files.reap()
    assert see(files, at("c")) == before


@pytest.mark.parametrize("steps", range(1, 30, 3))
def test_writes_between_the_steps(files: Files, steps: int) -> None:
    view = view_of(files)
    for _ in range(steps):
        step(files, view)
    files.publish("c/f", stored(3, 1, block=5), publish_mode=PublishMode.PATCH)
    files.do(SnapshotCreate(at("c"), "s", b"/c"))
    files.publish("c/f", stored(9, 30, block=6), publish_mode=PublishMode.PATCH)
    files.do(RemoveTree(at("c"), b"a"))
    reply = files.read(GetSnapshot("s"))
    assert isinstance(reply, SnapshotReply)
    where = At(reply.view, reply.inode)
    before, then = see(files, at("c")), see(files, where, reply.version)
    files.reap(3)
    finish(files, view)
    files.do(RemoveTree(at(), b"d"))
    files.do(Unlink(at(), b"outside"))
    files.reap()
    files.raise_floor()
    files.wait()
    files.collect()
    assert see(files, at("c")) == before
    assert see(files, where, reply.version) == then
    files.check()


def test_readers_keep_the_origin(files: Files) -> None:
    """What a reader of the past, or a lease, needs of the view goes with the origin."""
    view = view_of(files)
    attr = files.stat("c/f")
    lease = Lease(view, attr.inode, attr.body, files.machine.version)
    files.do(Unlink(at("c"), b"f"))
    files.do(Unlink(at("c/z"), b"again"))
    while step(files, view, 5):
        pass
    files.wait()
    assert files.collect() == []
    assert origin(files, view) == 0  # the session's floor is older
    number = (files.machine.marks_of(files.session) or files.marks(0)).number + 1
    floor = files.machine.version
    files.internal(SessionMarks((files.marks(number, floor=floor, leases=(lease,)),)))
    files.wait()
    files.collect()
    assert origin(files, view) == 0
    files.internal(SessionMarks((files.marks(number + 1, floor=floor),)))
    files.wait()
    files.collect()
    assert origin(files, view) is None


def test_a_clone_of_a_flattened_clone(files: Files) -> None:
    files.publish("c/f", stored(4, 2, block=7), publish_mode=PublishMode.PATCH)
    files.do(Clone(at("c"), at(), b"e"))
    files.publish("e/f", stored(3, 20, block=8), publish_mode=PublishMode.PATCH)
    before = see(files, at("e"))
    finish(files, view_of(files))
    assert see(files, at("e")) == before
    files.do(Clone(at("c"), at(), b"e2"))
    assert files.show("e2/a/g") == b"inline"
    finish(files, view_of(files, "e"))
    files.do(RemoveTree(at(), b"c"))
    files.do(RemoveTree(at(), b"d"))
    files.do(RemoveTree(at(), b"e2"))
    files.do(Unlink(at(), b"outside"))
    rest(files)
    assert see(files, at("e")) == before


def test_a_view_that_ends_meanwhile(files: Files) -> None:
    view = view_of(files)
    for _ in range(6):
        step(files, view)
    files.do(RemoveTree(at(), b"c"))
    assert files.machine.flatten_due() == view
    while step(files, view):
        pass
    assert files.machine.flatten_due() == 0
    files.do(RemoveTree(at(), b"d"))
    files.do(Unlink(at(), b"outside"))
    rest(files)
    assert not files.named()
    assert files.count(Family.VIEW) == 1


def test_what_is_due(files: Files) -> None:
    assert files.machine.flatten_due() == 0
    above = "c"
    for number in range(flatten.DEPTH_DEFAULT + 2):
        files.create(f"{above}/n{number}")
        files.do(Clone(at(above), at(), b"c%d" % number))
        above = f"c{number}"
    deepest, due = view_of(files, above), files.machine.flatten_due()
    assert due == view_of(files, f"c{flatten.DEPTH_DEFAULT - 1}") < deepest
    finish(files, due)
    assert files.machine.flatten_due() == 0


def test_the_copy_of_a_removed_clone_is_due(files: Files) -> None:
    files.create("c/x")
    files.do(Clone(at("c"), at(), b"e"))
    files.do(SnapshotCreate(at("c"), "s", b"/c"))
    files.do(RemoveTree(at(), b"c"))
    assert files.machine.flatten_due() == 0
    files.do(SnapshotDelete("s"))
    view = view_of(files, "e")
    assert files.machine.flatten_due() == view
    finish(files, view)
    files.reap()
    files.raise_floor()
    files.wait()
    files.collect()
    files.reap()
    assert files.count(Family.VIEW) == 2
    assert files.machine.flatten_due() == 0


def test_odd_requests(files: Files) -> None:
    for view in (0, -1, 99, 2**64 - 1):
        assert files.internal(Flatten(view, 5)) == Reaped(0, more=False)
    for limit in (0, -1, 2**40):
        with pytest.raises(InvalidArgument):
            files.internal(Flatten(1, limit))
    assert issubclass(InvalidArgument, NokvError)
