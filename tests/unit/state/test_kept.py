"""What a snapshot alone keeps: exact, at a cost that does not grow with what it shows."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.unit.state.bodies import Files, stored
from tests.unit.state.namespace_programs import NAMES
from tests.unit.state.shard import Shard, at
from tests.unit.state.test_diff_views import Program
from tests.unit.state.test_file_history import publish, snapshot

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.invariants_holds import check_holds
from nokv.state.records import decode_drop, decode_snapshot
from nokv.types.commands import (
    Collected,
    Publish,
    PublishMode,
    Rename,
    SessionMarks,
    Unlink,
)
from nokv.types.copies import Copy, CopyMode
from nokv.types.reads import DropsReply, GetDrops
from nokv.types.values import At, ChunkMap, Extent, Marks
from nokv.types.views import (
    Clone,
    GetSnapshot,
    ListSnapshots,
    SnapshotDelete,
    SnapshotReply,
    SnapshotsReply,
)

SEEDS = range(10)
STEPS = 300


def kept(shard: Shard, name: str) -> int:
    reply = shard.read(GetSnapshot(name))
    assert isinstance(reply, SnapshotReply)
    return reply.alone_bytes


def collect(shard: Shard, number: int) -> int:
    """Raise the session's floor, and end all rows that are safe; return how many."""
    floor = shard.machine._txn.counters.version
    shard.do(SessionMarks((Marks(shard.session, number, floor, 1),)), session=0)
    page = shard.read(GetDrops(0, 1000, 0))
    assert isinstance(page, DropsReply)
    if page.drops:
        shard.do(Collected(tuple((row.drop, row.through) for row in page.drops)), session=0)
    return len(page.drops)


def counted(shard: Shard) -> dict[str, int]:
    """Return what each snapshot alone keeps, found by looking at every row of the drop queue."""
    pins: dict[int, Counter[int]] = {}
    for key, _ in shard.kv.scan(Family.PIN, b"", b"\xff" * 9):
        view, version, _ = keys.pin_parts(key)
        pins.setdefault(view, Counter())[version] += 1
    alone: Counter[tuple[int, int]] = Counter()
    for _, value in shard.kv.scan(Family.DROP, b"", b"\xff" * 9):
        drop = decode_drop(value)
        inside = [v for v in pins.get(drop.view, ()) if drop.born <= v < drop.death]
        if len(inside) == 1 and pins[drop.view][inside[0]] == 1:
            alone[drop.view, inside[0]] += drop.size_bytes
    found = {}
    end = keys.after_prefix(keys.SNAPSHOT_PREFIX)
    for key, value in shard.kv.scan(Family.META, keys.SNAPSHOT_PREFIX, end):
        one = decode_snapshot(value)
        views = (one.view, *(nested.view for nested in one.nested))
        name = key[len(keys.SNAPSHOT_PREFIX) :].decode()
        found[name] = sum(alone[view, one.version] for view in views)
    return found


class Publishing(Program):
    """As its base, but mostly publishes, and with few snapshots at a time."""

    def step(self) -> None:
        while len(self.snapshots) > 3:
            name = next(iter(self.snapshots))
            del self.snapshots[name]
            self.shard.do(SnapshotDelete(name))
        if self.rng.random() < 0.5:
            super().step()
            return
        there = At(path=self.rng.choice(sorted(self.directories())))
        size = self.rng.randrange(1, 100)
        body = (ChunkMap(0, (), (Extent(0, size, data=b"x" * size),)),)
        op = Publish(there, self.rng.choice(NAMES), PublishMode.REPLACE, 0o644, size, 0, body)
        self.shard.entry(self.shard.command(op))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_counts_are_those_of_the_rows(seed: int) -> None:
    program = Publishing(seed)
    shard = program.shard
    seen = ended = 0
    for number in range(STEPS):
        program.step()
        if number % 10 == 9:
            ended += collect(shard, number)
        if number % 5:
            continue
        reply = shard.read(ListSnapshots())
        assert isinstance(reply, SnapshotsReply)
        found = {row.name: row.alone_bytes for row in reply.rows}
        assert found == counted(shard), (seed, number)
        seen += sum(map(bool, found.values()))
        check_holds(shard.kv)
    assert seen, "no snapshot kept anything"
    assert ended, "nothing was collected"


def test_what_two_snapshots_keep_neither_keeps_alone() -> None:
    shard = Shard()
    shard.mkdir("d")
    publish(shard, "d/f", b"12345")
    snapshot(shard, "d", "one")
    assert kept(shard, "one") == 0
    snapshot(shard, "d", "two")
    publish(shard, "d/f", b"1")
    assert (kept(shard, "one"), kept(shard, "two")) == (0, 0)
    shard.do(SnapshotDelete("two"))
    assert kept(shard, "one") == 5
    shard.do(Clone(at("d"), at(), b"copy", "one"))
    assert kept(shard, "one") == 0


def copied(source: str, name: str, mode: int = CopyMode.CREATE, **rest: int) -> Copy:
    return Copy(at(f"d/{source}"), at("d"), name.encode(), mode, 0o640, **rest)


def with_file() -> Files:
    files = Files()
    files.mkdir("d")
    files.publish("d/f", stored(10))
    return files


def test_copies_inside_a_snapshot_count_once_each() -> None:
    files = with_file()
    files.do(copied("f", "g"))
    snapshot(files, "d", "s")
    files.do(Unlink(at("d"), b"f"))
    assert kept(files, "s") == 10  # g still keeps the object: it is what s alone shows
    files.do(Unlink(at("d"), b"g"))
    assert kept(files, "s") == 20
    files.do(SnapshotDelete("s"))
    assert len(files.quiesce()) == 1, "the object of both"


def test_a_copy_that_lives_keeps_what_a_snapshot_alone_shows() -> None:
    files = with_file()
    snapshot(files, "d", "s")
    files.do(copied("f", "g"))
    files.do(Unlink(at("d"), b"f"))
    assert kept(files, "s") == 10
    files.do(SnapshotDelete("s"))
    assert files.quiesce() == set(), "the copy has the object"


def test_what_was_reverted_to_is_shown_by_the_snapshot_too() -> None:
    files = with_file()
    snapshot(files, "d", "s")
    version = files.machine.version - 1
    files.publish("d/f", stored(7))
    assert kept(files, "s") == 10
    files.do(copied("f", "f", CopyMode.REPLACE, at_version=version))
    assert kept(files, "s") == 10
    files.do(SnapshotDelete("s"))
    assert len(files.quiesce()) == 1, "what was published in between"
    assert files.stat("d/f").size == 10


def test_copies_across_snapshots_count_for_what_each_alone_shows() -> None:
    files = with_file()
    snapshot(files, "d", "one")
    files.do(copied("f", "g"))
    snapshot(files, "d", "two")
    files.do(Unlink(at("d"), b"f"))
    files.do(Unlink(at("d"), b"g"))
    assert (kept(files, "one"), kept(files, "two")) == (0, 10)
    files.do(SnapshotDelete("one"))
    assert kept(files, "two") == 20
    files.check()


def test_what_came_after_a_snapshot_is_the_next_ones() -> None:
    shard = Shard()
    shard.mkdir("d")
    publish(shard, "d/old", b"1" * 10)
    snapshot(shard, "d", "one")
    publish(shard, "d/new", b"2" * 100)
    publish(shard, "d/old", b"3")
    snapshot(shard, "d", "two")
    shard.do(Unlink(at("d"), b"new"))
    shard.do(Rename(at("d"), b"old", at("d"), b"moved"))
    assert (kept(shard, "one"), kept(shard, "two")) == (10, 100)
    shard.do(SnapshotDelete("one"))
    assert kept(shard, "two") == 100
    shard.cluster_ns += 10**12
    shard.create("d/tick")
    assert collect(shard, 1)
    assert kept(shard, "two") == 100
