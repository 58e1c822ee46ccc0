"""The collector: what may be deleted, when, once, and all of it."""

from __future__ import annotations

import random

import pytest
from tests.unit.state.bodies import GRACE_NS, Files, inline, stored
from tests.unit.state.shard import at

from nokv.errors import BodyGone
from nokv.state import collect
from nokv.state.collect import CHUNKS_A_STEP, HOLDS_ONLY
from nokv.state.families import Family
from nokv.state.records import Drop
from nokv.types.commands import (
    Collected,
    Link,
    PublishMode,
    RemoveTree,
    SessionMarks,
    SetAttr,
    Unlink,
    UnpinView,
)
from nokv.types.limits import CHUNK_BYTES
from nokv.types.results import Reaped
from nokv.types.values import Lease


@pytest.fixture
def files() -> Files:
    return Files()


def age(files: Files) -> None:
    """Let the grace pass, with nobody reading the past."""
    files.raise_floor()
    files.wait()


def test_a_replaced_body_goes_after_the_grace(files: Files) -> None:
    files.publish("f", stored(10))
    files.publish("f", stored(20))
    files.raise_floor()
    assert not files.drops().drops
    files.wait(GRACE_NS)
    assert files.collect() == [(files.session, 1, 0, 0, 0)]
    assert not files.count(Family.DROP)
    assert files.named() == {(files.session, 2, 0, 0, 0)}
    files.check()


def test_a_floor_keeps_what_died_above_it(files: Files) -> None:
    files.publish("f", stored(10))
    seen = files.machine.version
    files.do(Unlink(at(), b"f"))
    died = files.machine.version
    files.internal(SessionMarks((files.marks(1, floor=seen),)))
    files.wait()
    assert not files.drops().drops
    other = files.open(b"\x02" * 16)
    files.internal(SessionMarks((files.marks(2, floor=died),)))
    assert len(files.drops().drops) == 1
    assert files.machine.marks_of(other) is not None


def test_a_pin_keeps_what_it_shows(files: Files) -> None:
    files.publish("f", stored(10))
    pin = files.pin()
    files.publish("f", stored(20))
    later = files.pin()
    age(files)
    assert not files.drops().drops
    files.do(UnpinView(0, pin, pin + 1))
    assert [d.objects[0].upload for d in files.drops().drops] == [1]
    assert files.show("f", at_version=later) == b"\1" * 20
    files.collect()
    files.check()
    assert files.show("f") == b"\1" * 20


def test_a_lease_keeps_one_body(files: Files) -> None:
    made = files.publish("f", stored(10))
    files.publish("g", stored(10))
    lease = Lease(0, made.inode, files.stat("f").body, files.machine.version)
    files.publish("f", stored(20))
    files.publish("g", stored(20))
    files.internal(SessionMarks((files.marks(1, floor=files.machine.version, leases=(lease,)),)))
    files.wait()
    assert files.collect() == [(files.session, 2, 0, 0, 0)]
    files.internal(SessionMarks((files.marks(2, floor=files.machine.version),)))
    assert files.collect() == [(files.session, 1, 0, 0, 0)]


def test_a_leased_body_shows_as_of_its_lease_also_after_a_patch(files: Files) -> None:
    made = files.publish("f", inline(b"before"))
    body = files.stat("f").body
    lease = Lease(0, made.inode, body, files.machine.version)
    files.publish("f", inline(b"AFTER"), publish_mode=PublishMode.PATCH)
    leased = {"session": files.session, "body": body, "lease_version": lease.version}
    with pytest.raises(BodyGone):
        files.show("f", **leased)
    files.internal(SessionMarks((files.marks(1, floor=files.machine.version, leases=(lease,)),)))
    assert files.show("f", **leased) == b"before"
    assert files.show("f") == b"AFTERe"
    files.wait()
    assert files.collect() == []
    assert files.show("f", **leased) == b"before"


def test_a_pin_after_the_death_holds_nothing(files: Files) -> None:
    files.publish("f", stored(10))
    files.do(Unlink(at(), b"f"))
    files.pin()
    age(files)
    assert files.collect() == [(files.session, 1, 0, 0, 0)]


def test_a_pin_between_two_patches_keeps_the_older_hold(files: Files) -> None:
    """An object that a rewritten record keeps was born with its publish, not with the record."""
    files.publish("f", stored(10), size=30)
    pin = files.pin()
    files.publish("f", stored(5, 20), publish_mode=PublishMode.PATCH)
    files.publish("f", stored(10), publish_mode=PublishMode.PATCH)
    age(files)
    assert files.collect() == []
    assert files.show("f", at_version=pin) == b"\1" * 10 + bytes(20)
    files.do(UnpinView(0, pin, pin + 1))
    assert files.collect() == [(files.session, 1, 0, 0, 0)]
    files.check()


def test_collected_is_idempotent(files: Files) -> None:
    files.publish("f", stored(10))
    files.do(Unlink(at(), b"f"))
    files.publish("g", stored(10))
    files.do(Unlink(at(), b"g"))
    age(files)
    [first, _] = files.drops().drops
    one = Collected(((first.drop, first.through),))
    assert files.internal(one) == Reaped(1, more=True)
    assert files.internal(one) == Reaped(0, more=True)
    odd = Collected(((-1, 0), (0, 0), (99, 0), (2**64 - 1, -5)))
    assert files.internal(odd) == Reaped(0, more=True)
    assert files.collect() == [(files.session, 2, 0, 0, 0)]
    files.check()


def test_a_row_under_a_pin_stays_whoever_collects_it(files: Files) -> None:
    files.publish("f", stored(10))
    pin = files.pin()
    files.do(Unlink(at(), b"f"))
    assert files.internal(Collected(((1, 0),))) == Reaped(0, more=True)
    assert files.show("f", at_version=pin) == b"\1" * 10
    files.check()


def test_a_large_body_goes_in_rounds(files: Files) -> None:
    count = 2 * CHUNKS_A_STEP + 7
    files.publish("f", *(stored(10, index=i) for i in range(count)))
    files.do(Unlink(at(), b"f"))
    age(files)
    deleted = []
    rounds = 0
    while page := files.drops().drops:
        [row] = page
        assert len(row.objects) <= CHUNKS_A_STEP
        deleted += [o.chunk for o in row.objects]
        rows = files.count(Family.CHUNK)
        files.internal(Collected(((row.drop, row.through),)))
        assert files.count(Family.CHUNK) == rows - len(row.objects)
        files.internal(Collected(((row.drop, row.through),)))
        assert files.count(Family.CHUNK) == rows - len(row.objects)
        files.check()
        rounds += 1
    assert rounds == 3
    assert deleted == list(range(count))
    assert not files.count(Family.DROP)


def test_pages_of_rows(files: Files) -> None:
    for i in range(7):
        files.publish(f"f{i}", stored(10))
        files.do(Unlink(at(), b"f%d" % i))
    age(files)
    rows, after = [], 0
    while True:
        page = files.drops(3, after=after)
        rows += [d.drop for d in page.drops]
        after = page.after
        if not page.more:
            break
    assert len(set(rows)) == len(rows) == 7
    for odd in (-1, 2**63, 2**64 - 1):
        assert len(files.drops(3, after=odd).drops) == (3 if odd < 0 else 0)


# ---------------------------------------------------------------- objects in two chunks


def crossing(files: Files) -> None:
    """Make a file whose second object lies on a chunk's border."""
    files.publish("f", inline(b"x"), size=CHUNK_BYTES - 5)
    files.publish("f", stored(20), publish_mode=PublishMode.APPEND)
    assert files.count(Family.REF) == 2


def test_both_holds_end_in_one_command(files: Files) -> None:
    crossing(files)
    files.do(SetAttr(at("f"), size=CHUNK_BYTES - 6))
    age(files)
    through = [d.through for d in files.drops().drops]  # the first: what the append overwrote
    assert through == [0, HOLDS_ONLY, HOLDS_ONLY]
    assert set(files.collect()) == {(files.session, 1, 0, 0, 0)}
    assert not files.count(Family.REF)
    files.check()


def test_one_hold_alone_deletes_nothing(files: Files) -> None:
    crossing(files)
    files.do(SetAttr(at("f"), size=CHUNK_BYTES))
    age(files)
    assert files.collect() == []
    assert files.count(Family.REF) == 1
    assert files.named() == {(files.session, 1, 0, 0, 0)}
    files.check()
    files.do(Unlink(at(), b"f"))
    age(files)
    assert files.collect() == [(files.session, 1, 0, 0, 0)]
    assert not files.count(Family.REF)
    files.check()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_of_two_pages_that_share_an_object(files: Files, order: tuple[int, int]) -> None:
    """A worker that reads both rows before either ends, and ends them in any order."""
    crossing(files)
    files.do(SetAttr(at("f"), size=CHUNK_BYTES - 6))
    age(files)
    deleted: set[int] = set()
    first = files.drops().drops[0]
    files.internal(Collected(((first.drop, first.through),)))
    for _ in range(4):
        page = files.drops().drops
        for number in order:
            if number < len(page):
                row = page[number]
                deleted |= {o.upload for o in row.objects}
                files.internal(Collected(((row.drop, row.through),)))
                files.check()
    assert deleted == {1}
    assert not files.count(Family.DROP)


def test_a_crossing_object_of_a_dropped_body(files: Files) -> None:
    crossing(files)
    files.publish("f", stored(5))
    files.check()
    assert files.quiesce() == {(files.session, 1, 0, 0, 0)}
    assert files.named() == {(files.session, 2, 0, 0, 0)}


# ---------------------------------------------------------------- names in removed trees


def test_a_file_with_a_name_outside_lives_until_that_one_goes(files: Files) -> None:
    files.mkdir("d")
    files.mkdir("e")
    files.publish("d/f", stored(10))
    files.do(Link(at("d/f"), at("e"), b"f"))
    files.do(RemoveTree(at(), b"d"))
    pin = files.pin()
    files.do(Unlink(at("e"), b"f"))
    files.reap(1)
    age(files)
    assert files.collect() == []
    assert files.show("e/f", at_version=pin) == b"\1" * 10
    files.check()
    files.do(UnpinView(0, pin, pin + 1))
    assert files.collect() == [(files.session, 1, 0, 0, 0)]
    files.check()


def test_a_body_published_through_the_name_outside(files: Files) -> None:
    files.mkdir("d")
    files.mkdir("e")
    files.publish("d/f", stored(10))
    files.do(Link(at("d/f"), at("e"), b"f"))
    files.do(RemoveTree(at(), b"d"))
    files.publish("e/f", stored(20))
    files.do(Unlink(at("e"), b"f"))
    files.check()
    files.reap(1)
    files.check()
    assert {name[1] for name in files.quiesce()} == {1, 2}


def test_a_removed_tree_gives_every_object_back(files: Files) -> None:
    files.mkdir("d")
    files.mkdir("d/e")
    for i in range(5):
        files.publish(f"d/e/f{i}", stored(10), stored(10, index=2))
    files.publish("d/inline", inline(b"x"))
    files.do(RemoveTree(at(), b"d"))
    files.pin()
    gone = files.quiesce()
    assert gone == {(files.session, u, c, 0, 0) for u in range(1, 6) for c in (0, 2)}
    assert files.statfs() == (1, 0)
    assert not files.named()
    assert not files.count(Family.CHUNK)


@pytest.mark.parametrize("seed", range(20))
def test_leases_are_judged_by_their_order_as_one_by_one(seed: int) -> None:
    rng = random.Random(seed)

    def number() -> int:
        return rng.randrange(3)

    leases = [Lease(number(), number(), number() + 1, rng.randrange(60)) for _ in range(40)]
    keyed: dict[tuple[int, ...], list[int]] = {}
    for lease in leases:
        for key in collect.leased(lease):
            keyed.setdefault(key, []).append(lease.version)
    versions = {key: tuple(sorted(found)) for key, found in keyed.items()}
    guards = collect.Guards(lambda _: (), 2**63 - 1, versions, 10**9)
    answers = set()
    for _ in range(200):
        born = rng.randrange(60)
        drop = Drop(number(), number(), rng.randrange(4), born, born + rng.randrange(8), 0)
        holding = [
            lease
            for lease in leases
            if lease.view == drop.view
            and (not drop.body or (lease.inode, lease.body) == (drop.inode, drop.body))
            and drop.born <= lease.version < drop.death
        ]
        assert collect.is_safe(drop, guards, 0) == (not holding), (drop, holding)
        answers.add(not holding)
    assert answers == {True, False}
