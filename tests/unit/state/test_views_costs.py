"""What the commands of views cost, in records touched: nothing that grows with the entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from tests.unit.state.shard import at
from tests.unit.state.viewing import SECOND_NS, Views

from nokv.state.families import Family
from nokv.state.memory import MemoryKV
from nokv.types.commands import BulkCreate, Op, Reap, RemoveTree, SetAttr
from nokv.types.views import Clone, Rollback, SnapshotCreate, SnapshotDelete, WorkspaceCreate

BULK = 1000


class CountingKV(MemoryKV):
    """A store that counts the rows it hands out and takes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def get(self, family: Family, key: bytes) -> bytes | None:
        self.rows += 1
        return super().get(family, key)

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for row in super().scan(family, start, end, reverse=reverse):
            self.rows += 1
            yield row

    def write(self, family: Family, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        listed = list(changes)
        self.rows += len(listed)
        super().write(family, listed)


def costs(entries: int, views: int) -> dict[str, int]:
    """Return the rows that each command touches beside so many entries and nested views."""
    kv = CountingKV()
    shard = Views(kv)
    shard.mkdir("a")
    shard.mkdir("a/sub")
    for first in range(0, entries, BULK):
        names = tuple(b"%d" % number for number in range(first, first + BULK))
        shard.do(BulkCreate(at("a/sub"), names, 0o644))
    for number in range(views):
        shard.workspace(f"a/w{number}")
    found: dict[str, int] = {}

    def measure(what: str, op: Op, *, session: int | None = None) -> None:
        before = kv.rows
        shard.do(op, session=session)
        found[what] = kv.rows - before

    measure("snapshot", SnapshotCreate(at("a"), "s", b"/a"))
    measure("clone", Clone(at("a"), at(), b"b"))
    measure("clone of a snapshot", Clone(at(), at(), b"c", "s"))
    measure("clone of a clone", Clone(at("b"), at("b"), b"d"))
    measure("workspace", WorkspaceCreate(at("a/sub"), b"w", 0o755))
    shard.do(SetAttr(at("b/sub/7"), mode=0o600))
    measure("a changed directory of a clone", RemoveTree(at("b"), b"sub"))
    measure("reap of it", Reap(1000), session=0)
    measure("rollback", Rollback(at(), b"a", "s", b"/a", SECOND_NS))
    measure("rollback of a view", Rollback(at(), b"a", "s", b"/a", SECOND_NS))
    measure("delete of a clone", RemoveTree(at(), b"b"))
    measure("delete of a snapshot", SnapshotDelete("s"))
    return found


@pytest.mark.parametrize("views", [0, 3])
def test_costs_do_not_grow_with_the_entries(views: int) -> None:
    small, large = costs(1000, views), costs(100_000, views)
    assert small == large
    assert max(small.values()) < 150 + 120 * views, small


def test_costs_grow_with_the_views_below() -> None:
    few, many = costs(1000, 2), costs(1000, 20)
    for what in ("snapshot", "clone", "rollback", "delete of a clone"):
        assert few[what] < many[what] < 40 * few[what], what
    assert many["workspace"] == few["workspace"]


def beside(others: int) -> dict[str, int]:
    """Return the rows that commands touch beside so many views elsewhere, older and younger."""
    kv = CountingKV()
    shard = Views(kv)
    shard.mkdir("old")
    for number in range(others):
        shard.workspace(f"old/w{number}")
    for path in ("a", "a/sub"):
        shard.mkdir(path)
        shard.workspace(f"{path}/w")
    shard.workspace("a/w/inner")
    shard.mkdir("young")
    for number in range(others):
        shard.workspace(f"young/w{number}")
    ops: dict[str, Op] = {
        "snapshot": SnapshotCreate(at("a"), "s", b"/a"),
        "clone": Clone(at("a"), at(), b"b"),
        "rollback": Rollback(at(), b"a", "s", b"/a", SECOND_NS),
        "delete": RemoveTree(at(), b"b"),
    }
    found = {}
    for what, op in ops.items():
        before = kv.rows
        shard.do(op)
        found[what] = kv.rows - before
    shard.check()
    return found


def test_costs_do_not_grow_with_views_elsewhere() -> None:
    assert beside(2) == beside(50)
