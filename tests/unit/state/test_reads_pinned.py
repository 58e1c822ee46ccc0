"""Reads at pinned versions: what was there is shown for ever, as it was."""

from __future__ import annotations

import pytest
from tests.unit.state.invariants import check, reap
from tests.unit.state.namespace_programs import Program, entries, listing
from tests.unit.state.shard import Shard, at

from nokv.errors import NotFound, VersionNotPinned
from nokv.state.families import Family
from nokv.types.commands import (
    Create,
    PinView,
    Reap,
    RemoveTree,
    Rename,
    SetAttr,
    SetXattr,
    Unlink,
    UnpinView,
)
from nokv.types.reads import GetAttr, Lookup, ReadDir
from nokv.types.results import Pinned

SEEDS = range(8)
STEPS = 400


def names(shard: Shard, version: int, limit: int = 100) -> list[bytes]:
    """Return the root's names at a version."""
    return [name for name, _ in entries(shard, at(), version, limit)]


def test_a_pin_shows_the_state_before_it() -> None:
    shard = Shard()
    made = shard.create("f")
    version = shard.pin()
    assert version == made.version
    shard.do(SetAttr(at("f"), size=5))
    shard.create("g")
    assert shard.stat("f", at_version=version) == made
    assert names(shard, version) == [b"f"]
    assert names(shard, 0) == [b"f", b"g"]
    with pytest.raises(NotFound):
        shard.stat("g", at_version=version)
    with pytest.raises(NotFound):
        shard.read(Lookup(at(), b"g", version))
    with pytest.raises(VersionNotPinned):
        shard.stat("f", at_version=version + 1)


def test_a_name_that_comes_and_goes() -> None:
    shard = Shard()
    versions = [shard.pin()]
    inodes: list[int | None] = [None]
    for _ in range(3):
        inodes.append(shard.create("f").inode)
        versions.append(shard.pin())
        shard.do(Unlink(at(), b"f"))
        inodes.append(None)
        versions.append(shard.pin())
    for version, ino in zip(versions, inodes, strict=True):
        shown = {name: attr.inode for name, attr in entries(shard, at(), version, 1)}
        assert shown == ({} if ino is None else {b"f": ino})
    check(shard)


def test_a_removed_tree_stays_readable_at_its_pin() -> None:
    shard = Shard()
    for path in ("d", "d/e"):
        shard.mkdir(path)
    shard.create("d/e/f")
    shard.do(SetXattr(at("d/e/f"), b"user.a", b"1"))
    handle = shard.stat("d/e").inode
    version = shard.pin()
    before = listing(shard, version)
    shard.do(RemoveTree(at(), b"d"))
    assert listing(shard, version) == before
    while shard.machine.pending_work():
        shard.do(Reap(1), session=0)
        assert listing(shard, version) == before
    assert shard.read(GetAttr(at("f", inode=handle), version))
    check(shard)


def test_a_page_at_a_pin_examines_a_bounded_number_of_names() -> None:
    shard = Shard()
    shard.mkdir("d")
    for name in (b"m", b"z"):
        shard.do(Create(at("d"), name, 0o644))
    version = shard.pin()
    shard.do(Rename(at("d"), b"m", at("d"), b"n"))
    for number in range(20):
        shard.do(Create(at("d"), b"a%02d" % number, 0o644))
    page = shard.read(ReadDir(at("d"), limit=5, at_version=version))
    assert (page.entries, page.more, page.after) == ((), True, b"a04")  # type: ignore[union-attr]
    for limit in (1, 2, 3, 30):
        shown = [name for name, _ in entries(shard, at("d"), version, limit)]
        assert shown == [b"m", b"z"]


def test_one_name_with_much_history_does_not_stop_a_listing() -> None:
    shard = Shard()
    shard.create("f")
    shard.create("g")
    versions = []
    for _ in range(10):
        versions.append(shard.pin())
        shard.do(Unlink(at(), b"f"))
        shard.create("f")
    for version in versions:
        for limit in (1, 2, 5):
            assert names(shard, version, limit) == [b"f", b"g"]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_pin_shows_what_was_listed_when_it_was_made(seed: int) -> None:
    shard = Shard()
    shard.do(SetAttr(at(), mode=0o777))
    program = Program(shard, seed)
    expected: dict[int, dict[bytes, object]] = {}
    for step in range(STEPS):
        pinned = program.step()
        if pinned is not None:
            expected[pinned.version] = listing(shard)
        live = {pin.version for pin in program.pins}
        if step % 10 == 0:
            for version in live:
                limit = program.rng.choice((1, 2, 3, 100))
                assert listing(shard, version, limit) == expected[version], version
    assert program.succeeded > STEPS // 8
    check(shard)
    for pin in program.pins:
        assert listing(shard, pin.version) == expected[pin.version]
    for pin in list(program.pins):
        shard.do(UnpinView(0, pin.version, pin.pin))
    reap(shard)
    left = [key for key, _ in shard.kv.scan(Family.RECLAIM, b"", b"\xff" * 64)]
    assert left == [], "history that nobody can read"
    assert not list(shard.kv.scan(Family.TOUCHED, b"", b"\xff" * 64))


def test_two_pins_of_one_version_end_one_by_one() -> None:
    shard = Shard()
    shard.create("f")
    first = shard.do(PinView(0))
    assert isinstance(first, Pinned)
    shard.do(Unlink(at(), b"f"))
    assert names(shard, first.version) == [b"f"]
    shard.do(UnpinView(0, first.version, first.pin))
    with pytest.raises(VersionNotPinned):
        names(shard, first.version)
