"""Diff: what it says is what the two trees say, at a cost that follows the change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.state.diffing import asked, naive
from tests.unit.state.namespace_programs import Program
from tests.unit.state.shard import ALICE, ROOT, Shard, at

from nokv.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResultTooLarge,
    VersionNotPinned,
)
from nokv.state import acl, diff_side
from nokv.state.families import Family
from nokv.state.memory import MemoryKV
from nokv.types.commands import (
    BulkCreate,
    Link,
    Reap,
    RemoveTree,
    Rename,
    RenameFlag,
    SetAttr,
    SetXattr,
    Unlink,
)
from nokv.types.diffs import Changed, Diff, DiffKind, DiffReply
from nokv.types.values import At, Caller
from nokv.types.views import Clone, SnapshotCreate, SnapshotMade

SEEDS = range(12)
STEPS = 300


@pytest.mark.parametrize("seed", SEEDS)
def test_a_diff_says_what_two_trees_say(seed: int) -> None:
    shard = Shard()
    program = Program(shard, seed)
    rng = random.Random(seed)
    for number in range(STEPS):
        program.step()
        if number % 30 == 29 and program.pins:
            versions = [0, *sorted({pin.version for pin in program.pins})]
            left, right = rng.choice(versions), rng.choice(versions)
            limit = rng.choice((1, 3, 4096))
            wanted = naive(shard, (at(), left), (at(), right))
            assert asked(shard, (at(), left), (at(), right), limit) == wanted, (seed, number)


# ---------------------------------------------------------------- what it says


def told(shard: Shard, version: int, to: int = 0, below: str = "") -> list[tuple[str, str, str]]:
    """Return (letter, path, old path) of each row, those that are no change left out."""
    rows = asked(shard, (at(below), version), (at(below), to))
    found = [
        (DiffKind(row.kind).name[0], row.path.decode(), row.old_path.decode())
        for row in rows
        if row.kind != DiffKind.LEFT
    ]
    assert rows == naive(shard, (at(below), version), (at(below), to))
    return sorted(found, key=lambda one: one[1])


def planted() -> Shard:
    shard = Shard()
    for directory in ("a", "a/in", "b"):
        shard.mkdir(directory)
    for name in ("a/f", "a/in/g", "b/h"):
        shard.create(name)
    return shard


def test_a_directory_that_moved_is_one_rename() -> None:
    shard = planted()
    version = shard.pin()
    shard.do(Rename(at(), b"a", at("b"), b"moved"))
    assert told(shard, version) == [("R", "b/moved", "a")]
    assert told(shard, 0, version) == [("R", "a", "b/moved")]
    shard.do(SetAttr(at("b/moved/in/g"), size=3))
    assert told(shard, version) == [("R", "b/moved", "a"), ("M", "b/moved/in/g", "")]


def test_the_other_way_round_what_was_added_is_deleted() -> None:
    shard = planted()
    version = shard.pin()
    shard.create("b/new")
    shard.do(Unlink(at("a"), b"f"))
    assert told(shard, version) == [("D", "a/f", ""), ("A", "b/new", "")]
    newer = shard.pin()
    assert told(shard, newer, version) == [("A", "a/f", ""), ("D", "b/new", "")]
    assert told(shard, newer) == told(shard, newer, newer) == []


def test_a_new_or_removed_directory_stands_for_what_is_below() -> None:
    shard = planted()
    version = shard.pin()
    shard.mkdir("new")
    shard.create("new/one")
    shard.do(Rename(at("b"), b"h", at("new"), b"h"))
    shard.do(RemoveTree(at(), b"a"))
    assert told(shard, version) == [("D", "a", ""), ("A", "new", ""), ("R", "new/h", "b/h")]
    (row,) = [row for row in page(shard, version).rows if row.path == b"new"]
    assert row.after is not None
    assert row.after.entries == 2
    while shard.machine.pending_work():
        shard.do(Reap(100), session=0)
    assert told(shard, version) == [("D", "a", ""), ("A", "new", ""), ("R", "new/h", "b/h")]


def test_a_file_over_a_file_is_modified_and_another_type_is_told() -> None:
    shard = planted()
    version = shard.pin()
    shard.create("b/temporary")
    shard.do(Rename(at("b"), b"temporary", at("b"), b"h"))
    shard.do(Unlink(at("a"), b"f"))
    shard.mkdir("a/f")
    assert told(shard, version) == [("T", "a/f", "a/f"), ("M", "b/h", "")]
    shard.do(Rename(at(), b"a", at("b"), b"moved"))
    rows = [("M", "b/h", ""), ("R", "b/moved", "a"), ("T", "b/moved/f", "a/f")]
    assert told(shard, version) == rows


def test_an_exchange_is_two_renames_and_a_move_over_a_file_deletes_it() -> None:
    shard = planted()
    version = shard.pin()
    shard.do(Rename(at("a"), b"f", at("b"), b"h", RenameFlag.EXCHANGE))
    assert told(shard, version) == [("R", "a/f", "b/h"), ("R", "b/h", "a/f")]
    shard.do(Rename(at("a"), b"f", at("a/in"), b"g"))
    assert ("D", "a/in/g", "") in told(shard, version)
    assert ("R", "a/in/g", "b/h") in told(shard, version)


def test_times_and_entries_of_a_directory_are_no_change() -> None:
    shard = planted()
    version = shard.pin()
    shard.create("b/new")
    shard.do(Unlink(at("b"), b"new"))
    shard.do(SetAttr(at("b/h"), atime_ns=1))
    assert told(shard, version) == []
    shard.do(SetAttr(at("b/h"), mtime_ns=1))
    shard.do(SetAttr(at("b"), mode=0o700))
    shard.do(SetXattr(at("a"), b"user.x", b"1"))
    rows = {row.path: row.what for row in page(shard, version).rows}
    assert rows == {
        b"b/h": Changed.ATTRIBUTES,
        b"b": Changed.ATTRIBUTES,
        b"a": Changed.XATTRS,
    }


def test_an_access_control_list_is_an_attribute() -> None:
    shard = planted()
    version = shard.pin()
    entries = [
        acl.Entry(acl.Tag.USER_OBJ, 6, acl.NO_ID),
        acl.Entry(acl.Tag.USER, 6, 1001),
        acl.Entry(acl.Tag.GROUP_OBJ, 4, acl.NO_ID),
        acl.Entry(acl.Tag.MASK, 4, acl.NO_ID),
        acl.Entry(acl.Tag.OTHER, 4, acl.NO_ID),
    ]
    shard.do(SetXattr(at("b/h"), acl.ACCESS, acl.encode(tuple(entries))))
    assert {row.path: row.what for row in page(shard, version).rows} == {b"b/h": Changed.ATTRIBUTES}


def test_every_name_of_a_file_that_changed_is_told() -> None:
    shard = planted()
    shard.do(Link(at("a/f"), at("b"), b"link"))
    version = shard.pin()
    shard.do(SetAttr(at("a/f"), size=5))
    assert told(shard, version) == [("M", "a/f", ""), ("M", "b/link", "")]
    assert told(shard, version, below="b") == [("M", "link", "")]
    shard.do(Unlink(at("a"), b"f"))
    assert told(shard, version) == [("D", "a/f", ""), ("M", "b/link", "")]


def test_a_page_looks_for_names_of_hard_links_in_so_many_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = Shard()
    for directory in "abcdef":
        shard.mkdir(directory)
        for number in range(10):
            shard.create(f"{directory}/{number}")
        shard.do(Link(at(f"{directory}/3"), at(directory), b"link"))  # 11 entries
    version = shard.pin()
    for directory in "abcdef":
        shard.do(SetAttr(at(f"{directory}/3"), size=5))
        shard.do(Unlink(at(directory), b"7"))  # it has one name, and needs no search
    wanted = naive(shard, (at(), version), (at(), 0))
    assert len(wanted) == 18
    pages = 0
    read = shard.read

    def counting(request: Any, *rest: Any) -> Any:
        nonlocal pages
        pages += 1
        return read(request, *rest)

    monkeypatch.setattr(shard, "read", counting)
    for limit, expected in ((11 * 6, 1), (11 * 2, 3), (11, 6)):
        monkeypatch.setattr(diff_side, "SEARCH_ROWS_MAX", limit)
        pages = 0
        assert asked(shard, (at(), version), (at(), 0)) == wanted
        assert pages == expected
    monkeypatch.setattr(diff_side, "SEARCH_ROWS_MAX", 10)
    with pytest.raises(ResultTooLarge, match="in over 10 entries"):
        asked(shard, (at(), version), (at(), 0))


def test_below_a_directory_moves_over_its_edge_are_additions_and_deletions() -> None:
    shard = planted()
    version = shard.pin()
    shard.do(Rename(at("a"), b"in", at("b"), b"in"))
    assert told(shard, version, below="a") == [("D", "in", "")]
    assert told(shard, version, below="b") == [("A", "in", "")]


# ---------------------------------------------------------------- refusals and permissions


def page(shard: Shard, version: int, caller: Caller = ROOT, **rest: Any) -> DiffReply:
    reply = shard.read(Diff(at(), at(), version, **rest), caller)
    assert isinstance(reply, DiffReply)
    return reply


def test_bad_arguments_are_refused() -> None:
    shard = planted()
    version = shard.pin()
    with pytest.raises(VersionNotPinned):
        page(shard, version + 1)
    for limit in (0, 4097):
        with pytest.raises(InvalidArgument):
            page(shard, version, limit=limit)
    for after in (
        b"x",
        b"\x01" + bytes(7),
        b"\x01" + b"\xff" * 8,
        b"\x02" + bytes(8),
        b"\x00" + bytes(8) + b"n" * 256,
    ):
        with pytest.raises(InvalidArgument):
            page(shard, version, after=after)
    with pytest.raises(InvalidArgument, match="no states of one directory"):
        shard.read(Diff(at("a"), at("b"), version))
    with pytest.raises(NotFound):
        shard.read(Diff(at("a"), at("none"), version))


def test_nothing_is_told_of_directories_that_the_caller_may_not_read() -> None:
    shard = planted()
    shard.mkdir("private", 0o700)
    version = shard.pin()
    shard.create("private/secret")
    shard.create("b/open")
    assert [row.path for row in page(shard, version, ALICE).rows] == [b"b/open"]
    with pytest.raises(PermissionDenied):
        shard.read(Diff(at("private"), at("private"), version), ALICE)


# ---------------------------------------------------------------- cost


class Counted(MemoryKV):
    """A store that counts what is read of it."""

    calls = 0

    def get(self, family: Family, key: bytes) -> bytes | None:
        self.calls += 1
        return super().get(family, key)

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self.calls += 1
        for row in super().scan(family, start, end, reverse=reverse):
            self.calls += 1
            yield row


def cost(files: int, pins: int) -> int:
    """Return how much is read for a diff of six changes in a tree."""
    store = Counted()
    shard = Shard(store)
    for number in range(3):
        shard.mkdir(f"d{number}")
        names = tuple(b"%d" % one for one in range(files))
        shard.do(BulkCreate(at(f"d{number}"), names, 0o600))
    version = shard.pin()
    shard.create("d0/new")
    shard.do(SetAttr(at("d1/3"), size=5))
    shard.do(SetAttr(at("d2/7"), mode=0o644))
    for _ in range(pins):
        shard.pin()
    shard.do(Unlink(at("d1"), b"4"))
    shard.do(Rename(at("d1"), b"6", at("d2"), b"new"))
    shard.do(SetAttr(at("d2"), mode=0o700))
    store.calls = 0
    assert len(told_of(shard, version)) == 6
    return store.calls


def told_of(shard: Shard, version: int) -> list[bytes]:
    return [row.path for row in page(shard, version).rows if row.kind != DiffKind.LEFT]


def test_the_cost_follows_the_change() -> None:
    small, large = cost(10, 0), cost(4000, 0)
    assert large == small
    assert small < 200
    assert cost(10, 50) - small < 20 * 2


def test_a_page_is_bounded_also_where_nothing_differs() -> None:
    store = Counted()
    shard = Shard(store)
    shard.mkdir("d")
    shard.do(Clone(at("d"), at(), b"copy"))
    made = shard.do(SnapshotCreate(at("copy"), "early", b"/copy", 0))
    assert isinstance(made, SnapshotMade)
    shard.do(BulkCreate(at("copy"), tuple(b"%d" % one for one in range(300)), 0o600))
    left, right = At(made.view, made.inode), at("d")
    pages, after, more = 0, b"", True
    while more:
        store.calls = 0
        reply = shard.read(Diff(left, right, made.version, 0, after, 1))
        assert isinstance(reply, DiffReply)
        assert not reply.rows
        assert store.calls < 100
        after, more, pages = reply.after, reply.more, pages + 1
    assert pages > 10
