"""Many views at once: what each step does grows with the views that it takes, and no faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.state.bodies import stored
from tests.unit.state.counting import work
from tests.unit.state.shard import at
from tests.unit.state.test_views_costs import CountingKV
from tests.unit.state.viewing import SECOND_NS, Views

from nokv.state import flatten, invariants
from nokv.types.commands import Collected, Reap, RemoveTree, Unlink
from nokv.types.reads import DropsReply, GetDrops
from nokv.types.results import Reaped
from nokv.types.trash import ExpireTrash, KeepTrash, ListTrash, Trash, TrashPage
from nokv.types.views import Clone, ExpireSnapshots, Flatten, GetSnapshot, SnapshotReply


def doubling(times: int) -> tuple[Views, CountingKV]:
    """Return a shard where /e was cloned into itself so often: 2 ** times - 1 views."""
    kv = CountingKV()
    shard = Views(kv)
    shard.mkdir("e")
    for number in range(times):
        shard.do(Clone(at("e"), at("e"), f"c{number}".encode()))
        shard.create(f"e/f{number}")
    return shard, kv


def ending(times: int) -> dict[str, tuple[int, int]]:
    """Return the work and the rows of what ends so many views, one command of each kind."""
    shard, kv = doubling(times)
    found: dict[str, tuple[int, int]] = {}

    def measure(what: str, call: Callable[[], object]) -> None:
        before = kv.rows
        done = work(call)
        found[what] = done, kv.rows - before

    last = f"c{times - 1}".encode()
    source = at(f"e/c{times - 1}")
    measure("clone", lambda: shard.do(Clone(source, at(), b"copy")))
    measure("remove", lambda: shard.do(RemoveTree(at("e"), last)))
    shard.do(RemoveTree(at("e"), b"c0"))
    shard.do(RemoveTree(at(), b"copy"))
    measure("reap", lambda: shard.do(Reap(65_536), session=0))
    measure("what is to be flattened", shard.machine.flatten_due)
    shard.wait()
    shard.raise_floor()
    reply = shard.read(GetDrops(0, 512, 0))
    assert isinstance(reply, DropsReply)
    rows = tuple((one.drop, one.through) for one in reply.drops)
    measure("page", lambda: shard.read(GetDrops(0, 512, 0)))
    measure("collected", lambda: shard.do(Collected(rows), session=0))
    measure("last reap", lambda: shard.do(Reap(65_536), session=0))
    invariants.check(shard.machine._txn.present)
    return found


def test_the_end_of_many_views_costs_what_each_of_them_does() -> None:
    few, many = ending(5), ending(7)
    for what in few:
        for kind in (0, 1):
            assert many[what][kind] <= 5 * few[what][kind], (what, few[what], many[what])


def test_the_search_for_what_is_to_be_flattened_goes_on_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, kv = doubling(6)
    shard.mkdir("o")
    shard.create("o/x")
    shard.clone("o", "c")
    shard.create("c/own")
    for number in range(20):
        shard.clone("c", f"k{number}")
    shard.do(RemoveTree(at(), b"c"))
    found = shard.machine.flatten_due()
    assert found
    monkeypatch.setattr(flatten, "SEARCH_MAX", 16)
    search, steps = flatten.Search(), 0
    while not search.over:
        before = kv.rows
        have = shard.machine.flatten_due(search)
        steps += 1
        assert kv.rows - before <= 16 + 20 + 5, "one view more, with the pins of its origin"
    assert have == found
    assert steps > 10
    shard.do(Flatten(found, 1), session=0)
    assert shard.machine.flatten_due(flatten.Search()) == found, "what is begun is found at once"


def trashed(views: int) -> tuple[Views, CountingKV]:
    """Return a shard with so many views, something in the trash of each."""
    kv = CountingKV()
    shard = Views(kv)
    for number in range(views):
        shard.workspace(f"w{number}")
        shard.create(f"w{number}/f")
        shard.do(Trash(at(f"w{number}"), b"f"))
    return shard, kv


def test_whether_the_trash_is_due_is_a_look_at_the_oldest_one() -> None:
    costs = []
    for views in (3, 30):
        shard, kv = trashed(views)
        shard.do(KeepTrash(10**9))
        before = kv.rows
        assert not shard.machine.trash_due(shard.cluster_ns)
        assert shard.machine.trash_due(shard.cluster_ns + 10**9)
        costs.append(kv.rows - before)
        shard.do(KeepTrash(0))
        shard.internal(ExpireTrash(2))
        left = shard.read(ListTrash())
        assert isinstance(left, TrashPage)
        assert [row.view for row in left.rows] == list(range(3, views + 1)), "the oldest go first"
        shard.check()
    assert costs[0] == costs[1] < 10


def test_a_page_of_the_collector_looks_at_no_pins_of_other_views() -> None:
    costs = []
    for pins in (3, 60):
        shard, kv = trashed(2)
        shard.publish("f", stored(10))
        for number in range(pins):
            shard.snapshot("w0", f"s{number}")
        shard.do(Unlink(at(), b"f"))
        shard.wait()
        shard.raise_floor()
        before = kv.rows
        reply = shard.read(GetDrops(0, 512, 0))
        costs.append(kv.rows - before)
        assert isinstance(reply, DropsReply)
        assert len(reply.drops) == 1
    assert costs[0] == costs[1]


def test_the_first_lease_to_end_is_a_look_at_one_row() -> None:
    costs = []
    for count in (3, 60):
        shard, kv = trashed(1)
        for number in range(count):
            shard.snapshot("w0", f"s{number:02}", (100 - number) * SECOND_NS)
        before = kv.rows
        end = shard.machine.first_lease_end()
        costs.append(kv.rows - before)
        last = shard.read(GetSnapshot(f"s{count - 1:02}"))
        assert isinstance(last, SnapshotReply)
        assert end == last.until_cluster_ns
        while shard.cluster_ns < end:
            shard.wait(end - shard.cluster_ns)
        assert shard.internal(ExpireSnapshots(1)) == Reaped(1, more=False)
        assert shard.machine.first_lease_end() > end
        shard.check()
    assert costs[0] == costs[1]
