"""History of a file: what snapshots, clones, pins, leases and the live tree still show."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.state.namespace_programs import entries
from tests.unit.state.shard import ALICE, ROOT, Shard, at
from tests.unit.state.test_diff_views import Program

from nokv.errors import InvalidArgument, IsADirectory, NotFound, PermissionDenied
from nokv.state.context import DIRECTORY, REGULAR, S_IFMT
from nokv.types.commands import (
    Collected,
    Link,
    Publish,
    PublishMode,
    Reap,
    Rename,
    SessionMarks,
    SetAttr,
    Unlink,
)
from nokv.types.diffs import History, HistoryReply, HolderKind, Showing
from nokv.types.reads import DropsReply, GetDrops
from nokv.types.trash import RestoreTrash, Trash, Trashed
from nokv.types.values import At, Caller, ChunkMap, Extent, Lease, Marks
from nokv.types.views import (
    Clone,
    Flatten,
    ListSnapshots,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotsReply,
    WorkspaceCreate,
)

LEASE_NS = 10**15
GRACE_NS = 3600 * 10**9


def publish(shard: Shard, path: str, data: bytes, caller: Caller = ROOT) -> int:
    """Replace a file's body; return its generation."""
    above, _, name = path.rpartition("/")
    body = (ChunkMap(0, (), (Extent(0, len(data), data=data),)),) if data else ()
    mode = PublishMode.REPLACE
    shard.do(Publish(at(above), name.encode(), mode, 0o644, len(data), 0, body), caller)
    return shard.stat(path).generation


def snapshot(shard: Shard, path: str, name: str, ttl_ns: int = 0) -> None:
    shard.do(SnapshotCreate(at(path), name, b"/" + path.encode(), ttl_ns))


def page(shard: Shard, path: str, caller: Caller = ROOT, **rest: Any) -> HistoryReply:
    reply = shard.read(History(at(path), **rest), caller)
    assert isinstance(reply, HistoryReply)
    return reply


def rows(shard: Shard, path: str, limit: int = 1024) -> list[Showing]:
    found: list[Showing] = []
    after, more = b"", True
    while more:
        one = page(shard, path, after=after, limit=limit)
        found += one.rows
        after, more = one.after, one.more
    return found


def shown(shard: Shard, path: str) -> dict[int, list[str]]:
    """Return who holds each generation: a snapshot's name, or the kind of holder."""
    found: dict[int, list[str]] = {}
    assert rows(shard, path) == rows(shard, path, 1)
    for row in rows(shard, path):
        names = [holder.name or HolderKind(holder.kind).name for holder in row.holders]
        found.setdefault(row.generation, []).extend(names)
    return found


def planted() -> Shard:
    shard = Shard()
    shard.mkdir("d")
    shard.mkdir("e")
    return shard


def test_a_generation_is_listed_as_long_as_something_shows_it() -> None:
    shard = planted()
    first = publish(shard, "d/f", b"1")
    second = publish(shard, "d/f", b"22")
    snapshot(shard, "d", "one")
    snapshot(shard, "", "two")
    third = publish(shard, "d/f", b"333")
    assert shown(shard, "d/f") == {third: ["LIVE"], second: ["one", "two"]}
    assert first not in shown(shard, "d/f")
    shard.do(SnapshotDelete("one"))
    assert shown(shard, "d/f") == {third: ["LIVE"], second: ["two"]}
    shard.do(SnapshotDelete("two"))
    assert shown(shard, "d/f") == {third: ["LIVE"]}


def test_what_a_row_says() -> None:
    shard = planted()
    generation = publish(shard, "d/f", b"1234")
    wall_ns = shard.wall_ns
    snapshot(shard, "d", "one")
    publish(shard, "d/f", b"")
    row = next(row for row in rows(shard, "d/f") if row.generation == generation)
    assert (row.size, row.uid, row.session, row.wall_ns) == (4, 0, shard.session, wall_ns)
    assert shard.stat("d/f", at_version=row.version).generation == generation


def test_a_snapshot_of_another_directory_shows_nothing_of_it() -> None:
    shard = planted()
    generation = publish(shard, "d/f", b"1")
    snapshot(shard, "e", "elsewhere")
    live = publish(shard, "d/f", b"2")
    assert shown(shard, "d/f") == {live: ["LIVE"]}
    assert generation != live


def test_a_snapshot_whose_lease_is_over_shows_nothing() -> None:
    shard = planted()
    publish(shard, "d/f", b"1")
    snapshot(shard, "d", "short", 10**9)
    live = publish(shard, "d/f", b"2")
    assert len(shown(shard, "d/f")) == 2
    shard.cluster_ns += 10**9
    shard.create("e/tick")
    assert shown(shard, "d/f") == {live: ["LIVE"]}


def test_it_follows_the_file_and_its_name() -> None:
    shard = planted()
    first = publish(shard, "d/old", b"1")
    snapshot(shard, "", "one")
    shard.do(Rename(at("d"), b"old", at("d"), b"f"))
    second = publish(shard, "d/f", b"2")
    snapshot(shard, "", "two")
    third = publish(shard, "d/new", b"3")
    shard.do(Rename(at("d"), b"new", at("d"), b"f"))
    assert shown(shard, "d/f") == {third: ["LIVE"], second: ["two"]}
    shard.do(Unlink(at("d"), b"f"))
    with pytest.raises(NotFound):
        page(shard, "d/f")
    assert first != second


def test_a_clone_shows_what_its_origin_showed() -> None:
    shard = planted()
    first = publish(shard, "d/f", b"1")
    shard.do(Clone(at("d"), at(), b"copy"))
    second = publish(shard, "d/f", b"2")
    third = publish(shard, "copy/f", b"3")
    assert shown(shard, "copy/f") == {third: ["LIVE"], first: ["CLONE"]}
    assert shown(shard, "d/f") == {second: ["LIVE"], first: ["CLONE"]}
    snapshot(shard, "copy", "of-copy")
    fourth = publish(shard, "copy/f", b"4")
    assert shown(shard, "copy/f") == {fourth: ["LIVE"], first: ["CLONE"], third: ["of-copy"]}


@pytest.mark.parametrize("turns", [1, 2])
def test_a_rollback_goes_on_with_the_file(turns: int) -> None:
    shard = planted()
    first = publish(shard, "d/f", b"1")
    snapshot(shard, "d", "one")
    for turn in range(turns):
        second = publish(shard, "d/f", b"2")
        value = shard.do(Rollback(at(), b"d", "one", b"/d", LEASE_NS))
        automatic = value.name  # type: ignore[union-attr]
        found = shown(shard, "d/f")
        assert "LIVE" in found[first], turn
        assert automatic in found[second], turn


def settle(shard: Shard) -> None:
    """Reap, flatten and collect until nothing is left to do."""
    for frame in range(1, 8):
        while shard.machine.pending_work():
            shard.do(Reap(100), session=0)
        if view := shard.machine.flatten_due():
            shard.do(Flatten(view, 100), session=0)
        shard.cluster_ns += 2 * GRACE_NS
        marks = Marks(shard.session, frame, shard.machine.version, 0, ())
        shard.do(SessionMarks((marks,)), session=0)
        reply = shard.read(GetDrops(0, 100, GRACE_NS))
        assert isinstance(reply, DropsReply)
        ended = tuple((one.drop, one.through) for one in reply.drops)
        if ended:
            shard.do(Collected(ended), session=0)


def rolled_back(turns: int) -> tuple[Shard, list[tuple[str, int]]]:
    """Return a workspace `w` that was rolled back, and the snapshots with the generations of f."""
    shard = planted()
    shard.do(WorkspaceCreate(at(), b"w", 0o755))
    publish(shard, "w/f", b"1")
    snapshot(shard, "w", "one")
    kept = []
    for _ in range(turns):
        generation = publish(shard, "w/f", b"22")
        made = shard.do(Rollback(at(), b"w", "one", b"/w", LEASE_NS))
        assert isinstance(made, RolledBack)
        kept.append((made.name, generation))
    return shard, kept


def test_a_view_that_is_flattened_goes_on_with_what_it_replaced() -> None:
    shard, ((gone, _), (kept, second)) = rolled_back(2)
    first = shard.stat("w/f").generation
    shard.do(SnapshotDelete("one"))
    shard.do(SnapshotDelete(gone))
    settle(shard)
    record = shard.machine._txn.view(shard.stat("w").view)
    assert record is not None
    assert record.origin is None, "it was to be flattened"
    found = shown(shard, "w/f")
    assert found.keys() == {first, second}
    assert found[second] == [kept]


def test_a_rollback_in_between_whose_view_is_gone_hides_none_before_it() -> None:
    shard, kept = rolled_back(4)
    gone, _ = kept.pop(2)
    reply = shard.read(ListSnapshots("", 10))
    assert isinstance(reply, SnapshotsReply)
    (view,) = [row.view for row in reply.rows if row.name == gone]
    shard.do(SnapshotDelete(gone))
    settle(shard)
    assert shard.machine._txn.view(view) is None
    found = shown(shard, "w/f")
    for name, generation in kept:
        assert found[generation] == [name]


def test_what_replaced_the_origin_of_a_clone_later_is_none_of_the_clone() -> None:
    shard, ((before, generation),) = rolled_back(1)
    publish(shard, "w/f", b"1")  # else the clone is of what the rollback shows
    shard.do(Clone(at("w"), at(), b"copy"))
    later = publish(shard, "w/f", b"333")
    shard.do(Rollback(at(), b"w", "one", b"/w", LEASE_NS))
    assert later in shown(shard, "w/f")
    found = shown(shard, "copy/f")
    assert later not in found
    assert found[generation] == [before]


def test_a_leased_generation_is_listed_with_its_session() -> None:
    shard = planted()
    publish(shard, "d/f", b"1")
    attr = shard.stat("d/f")
    version = shard.machine._txn.counters.version
    lease = Lease(attr.view, attr.inode, attr.body, version)
    snapshot(shard, "e", "keeps-the-record")
    shard.do(SessionMarks((Marks(shard.session, 1, version, 1, (lease,)),)), session=0)
    live = publish(shard, "d/f", b"2")
    assert shown(shard, "d/f") == {live: ["LIVE"], attr.generation: ["LEASE"]}


def test_bad_arguments_and_permissions() -> None:
    shard = planted()
    publish(shard, "d/f", b"1")
    shard.do(SetAttr(at("d/f"), mode=0o600))
    with pytest.raises(PermissionDenied):
        page(shard, "d/f", ALICE)
    with pytest.raises(IsADirectory):
        page(shard, "d")
    shard.symlink("d/dangling", b"nothing")
    with pytest.raises(NotFound):
        page(shard, "d/dangling")
    with pytest.raises(InvalidArgument):
        page(shard, "d/f", limit=0)
    with pytest.raises(InvalidArgument):
        page(shard, "d/f", after=b"x")


def test_generations_that_the_caller_may_not_read_are_left_out() -> None:
    shard = planted()
    publish(shard, "d/f", b"1")
    shard.do(SetAttr(at("d/f"), mode=0o600))
    snapshot(shard, "d", "private")
    live = publish(shard, "d/f", b"2")
    shard.do(SetAttr(at("d/f"), mode=0o644))
    assert [row.generation for row in page(shard, "d/f", ALICE).rows] == [live]
    assert len(page(shard, "d/f").rows) == 2


# ---------------------------------------------------------------- against what snapshots list


def listed(shard: Shard, made: SnapshotMade) -> set[tuple[int, int, int]]:
    """Return (view, inode, generation) of every regular file that a snapshot shows."""
    found = set()
    todo = [At(made.view, made.inode)]
    while todo:
        for _, attr in entries(shard, todo.pop(), made.version, 4096):
            if attr.mode & S_IFMT == DIRECTORY:
                todo.append(At(attr.view, attr.inode))
            elif attr.mode & S_IFMT == REGULAR:
                found.add((attr.view, attr.inode, attr.generation))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_it_lists_what_snapshots_show_and_nothing_else(seed: int) -> None:
    program = Program(seed)
    shard = program.shard
    compared = 0
    for number in range(160):
        program.step()
        if number % 20 != 19:
            continue
        shows = {name: listed(shard, made) for name, made in program.snapshots.items()}
        for path in program.directories():
            for name, attr in entries(shard, At(path=path), 0, 4096):
                if attr.mode & S_IFMT != REGULAR:
                    continue
                file = "/".join(part.decode() for part in (*path, name))
                held = {
                    (row.view, row.inode, row.generation, holder.name)
                    for row in rows(shard, file)
                    for holder in row.holders
                    if holder.kind == HolderKind.SNAPSHOT
                }
                for view, ino, generation, snapshot_name in held:
                    if snapshot_name in shows:  # else an automatic one of a rollback
                        assert (view, ino, generation) in shows[snapshot_name], (seed, number)
                for snapshot_name, files in shows.items():
                    for view, ino, generation in files:
                        if (view, ino) == (attr.view, attr.inode):
                            one = (view, ino, generation, snapshot_name)
                            assert one in held, (seed, number, file)
                            compared += 1
    assert compared, "no snapshot showed a live file"


def test_any_name_of_a_file_may_lie_below_the_snapshot() -> None:
    shard = planted()
    generation = publish(shard, "d/f", b"1")
    shard.do(Link(at("d/f"), at("e"), b"link"))
    snapshot(shard, "e", "of-e")
    live = publish(shard, "d/f", b"2")
    assert shown(shard, "d/f") == {live: ["LIVE"], generation: ["of-e"]}


def test_what_lay_in_the_trash_of_a_nested_view_was_shown_by_no_snapshot() -> None:
    shard = planted()
    shard.do(WorkspaceCreate(at("d"), b"w", 0o755))
    first = publish(shard, "d/w/f", b"1")
    trashed = shard.do(Trash(at("d/w"), b"f"))
    assert isinstance(trashed, Trashed)
    snapshot(shard, "d", "without")
    shard.do(RestoreTrash(trashed.view, trashed.trash))
    snapshot(shard, "d", "with")
    second = publish(shard, "d/w/f", b"22")
    assert shown(shard, "d/w/f") == {second: ["LIVE"], first: ["with"]}
    shard.do(SnapshotDelete("with"))
    assert shown(shard, "d/w/f") == {second: ["LIVE"]}
