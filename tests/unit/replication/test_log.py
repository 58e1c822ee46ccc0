"""The log over both disks: one conformance suite, then what only a simulated disk can do to it."""

import contextlib
import errno
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.simulation.disk import WRITING_CALLS, Crash, SimDisk
from tests.simulation.script import NothingKept

from nokv_replication import (
    Disk,
    DiskFailed,
    GroupConfig,
    Identity,
    LogDamaged,
    StartRefused,
    initialise,
    records,
)
from nokv_replication.disk import OsDisk
from nokv_replication.log import Log
from nokv_replication.records import BATCH_START, HardState, RecordType
from nokv_replication.segments import segment_name

IDENTITY = Identity("c", 1, 11)
SMALL = GroupConfig(segment_bytes=1024, cache_bytes=256)


def create(disk: Disk, config: GroupConfig = SMALL) -> Log:
    initialise(disk, config, IDENTITY, Random(1))
    return Log.open(disk, config, IDENTITY, Random(2))


def reopen(disk: Disk, config: GroupConfig = SMALL) -> Log:
    return Log.open(disk, config, IDENTITY, Random(3))


def contents(log: Log) -> list[tuple[int, int, bytes]]:
    span = range(log.first_index, log.last_index + 1)
    return [(index, log.term_at(index), log.entry(index)) for index in span]


def fill(log: Log, count: int, term: int = 1, size: int = 50) -> None:
    for _ in range(count):
        index = log.last_index + 1
        log.append(b"%d:" % index + bytes(size), index, term)


@pytest.fixture(params=["memory", "folder"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return SimDisk() if request.param == "memory" else OsDisk(tmp_path)


class TestConformance:
    def test_a_new_log_is_empty(self, disk: Disk) -> None:
        log = create(disk)
        assert (log.base_index, log.last_index, log.last_term) == (0, 0, 0)
        assert log.hard_state == HardState(0, 0)
        assert log.members == b""

    def test_initialising_twice_changes_nothing(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 3)
        log.sync()
        log.close()
        initialise(disk, SMALL, IDENTITY, Random(9))
        assert reopen(disk).last_index == 3

    def test_what_was_synced_is_read_back(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 40)
        log.set_hard_state(7, 2)
        log.set_members(b"members")
        log.sync()
        expected = contents(log)
        log.close()
        again = reopen(disk)
        assert contents(again) == expected
        assert again.hard_state == HardState(7, 2)
        assert again.members == b"members"
        assert again.synced_index == 40

    def test_entries_out_of_the_cache_come_from_disk(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 100)
        log.sync()
        assert log.entry(1).startswith(b"1:")
        assert len(log._cache) < 10

    def test_replaced_entries_stay_replaced(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 30)
        log.sync()
        log.truncate_from(11)
        fill(log, 3, term=2)
        log.sync()
        expected = contents(log)
        assert [term for _, term, _ in expected[9:]] == [1, 2, 2, 2]
        log.close()
        assert contents(reopen(disk)) == expected

    def test_truncation_alone_is_kept(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 5)
        log.sync()
        log.truncate_from(3)
        assert log.synced_index == 2
        log.sync()
        log.close()
        assert reopen(disk).last_index == 2

    def test_whole_segments_are_dropped_and_state_survives(self, disk: Disk) -> None:
        log = create(disk)
        log.set_hard_state(3, 1)
        log.set_members(b"m")
        fill(log, 60)
        log.sync()
        before = len(disk.listdir())
        assert log.drop_to(40, keep_bytes=0) > 0
        assert len(disk.listdir()) < before
        assert 0 < log.base_index <= 40
        expected = contents(log)
        log.close()
        again = reopen(disk)
        assert contents(again) == expected
        assert (again.base_index, again.base_term) == (log.base_index, 1)
        assert again.hard_state == HardState(3, 1)
        assert again.members == b"m"

    def test_the_newest_bytes_are_kept_for_slow_followers(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 60)
        log.sync()
        log.drop_to(60, keep_bytes=2000)
        assert 2000 <= log.size_bytes < 4000

    def test_a_segment_whose_entries_were_replaced_has_a_true_base(self, disk: Disk) -> None:
        log = create(disk)
        fill(log, 30)
        log.sync()
        log.truncate_from(4)  # far below the newest segment's header
        fill(log, 30, term=2)
        log.sync()
        log.drop_to(20, keep_bytes=0)
        assert log.base_term == (1 if log.base_index < 4 else 2)
        expected = contents(log)
        log.close()
        again = reopen(disk)
        assert contents(again) == expected
        assert (again.base_index, again.base_term) == (log.base_index, log.base_term)

    def test_reset_starts_anew(self, disk: Disk) -> None:
        log = create(disk)
        log.set_hard_state(5, 3)
        fill(log, 30)
        log.sync()
        log.reset(100, 4)
        assert (log.base_index, log.last_index, log.last_term) == (100, 100, 4)
        fill(log, 2, term=5)
        log.sync()
        log.close()
        again = reopen(disk)
        assert [index for index, _, _ in contents(again)] == [101, 102]
        assert again.hard_state == HardState(5, 3)

    def test_an_entry_larger_than_a_segment_gets_its_own(self, disk: Disk) -> None:
        log = create(disk)
        log.append(bytes(5000), 1, 1)
        log.sync()
        log.close()
        assert reopen(disk).entry(1) == bytes(5000)

    def test_the_next_segment_is_prepared_in_pieces(self, disk: Disk) -> None:
        config = GroupConfig(segment_bytes=4 << 20)
        log = create(disk, config)
        assert not log.prepare()
        log.append(bytes(3 << 20), 1, 1)
        log.sync()
        pieces = 1
        while log.prepare():
            pieces += 1
        assert pieces == 4
        log.append(bytes(2 << 20), 2, 1)
        log.sync()
        log.close()
        assert reopen(disk, config).last_index == 2

    def test_another_nodes_log_is_refused(self, disk: Disk) -> None:
        create(disk).close()
        for other in (Identity("d", 1, 11), Identity("c", 2, 11), Identity("c", 1, 12)):
            with pytest.raises(StartRefused, match="written by node 1"):
                Log.open(disk, SMALL, other, Random(0))

    def test_an_empty_folder_is_refused(self, disk: Disk) -> None:
        with pytest.raises(StartRefused, match="has no log"):
            reopen(disk)


class TestDamage:
    def filled(self) -> SimDisk:
        disk = SimDisk()
        log = create(disk)
        for _ in range(8):
            fill(log, 1)
            log.sync()
        return disk

    def test_a_flipped_byte_in_synced_records_stops_the_node(self) -> None:
        disk = self.filled()
        name = segment_name(1)
        offset = disk.content(name).index(b"3:")
        disk.flip(name, offset)
        with pytest.raises(LogDamaged, match="Keep all files"):
            reopen(disk)

    def test_a_missing_segment_stops_the_node(self) -> None:
        disk = SimDisk()
        log = create(disk)
        fill(log, 60)
        log.sync()
        log.close()
        disk.unlink(segment_name(3))
        with pytest.raises(LogDamaged, match="missing"):
            reopen(disk)

    def test_damage_is_seen_when_an_entry_is_read(self) -> None:
        disk = SimDisk()
        log = create(disk)
        fill(log, 60)
        log.sync()
        disk.flip(segment_name(1), disk.content(segment_name(1)).index(b"2:"))
        with pytest.raises(LogDamaged):
            log.entry(2)

    def test_a_torn_batch_is_cut_and_never_comes_back(self) -> None:
        config = GroupConfig(segment_bytes=64 << 10)
        disk = SimDisk()
        log = create(disk, config)
        fill(log, 3)
        log.sync()
        # The unsynced batch's first record is lost, its later ones reached the platter.
        start = log._segments[-1].used_bytes
        fill(log, 3, size=600)
        disk.pwrite(log._segments[-1].handle, log._pending, start)
        disk.pwrite(log._segments[-1].handle, bytes(512), start)
        disk.kill()
        again = reopen(disk, config)
        assert again.last_index == 3
        # Shorter records over the torn ones: nothing stale may line up behind them.
        fill(again, 1, term=2, size=600)
        again.sync()
        disk.kill()
        last = reopen(disk, config)
        assert [(i, t) for i, t, _ in contents(last)] == [(1, 1), (2, 1), (3, 1), (4, 2)]

    def test_a_record_inside_a_payload_is_no_record(self) -> None:
        config = GroupConfig(segment_bytes=64 << 10)
        disk = SimDisk()
        log = create(disk, config)
        fill(log, 2)
        log.sync()
        forged = bytearray(512 - log._segments[-1].used_bytes % 8)
        records.encode_into(forged, RecordType.ENTRY | BATCH_START, 9, 9, b"forged", 0)
        start = log._segments[-1].used_bytes
        log.append(bytes(forged), 3, 1)
        disk.pwrite(log._segments[-1].handle, log._pending, start)
        disk.pwrite(log._segments[-1].handle, b"\xff" * 16, start)
        disk.kill()
        assert reopen(disk, config).last_index == 2

    @pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
    def test_a_failed_write_is_final(self, call: str) -> None:
        disk = SimDisk()
        log = create(disk)
        fill(log, 1)
        disk.fail_at(call)
        with pytest.raises(DiskFailed, match="restart the process"):
            log.sync()

    def test_a_full_disk_is_a_typed_error(self) -> None:
        disk = SimDisk()
        log = create(disk)
        disk.fail_at("create", errno.ENOSPC)
        with pytest.raises(DiskFailed, match="armed"):
            fill(log, 60)


Operation = tuple[str, int]


def run_operations(log: Log, operations: list[Operation], synced: Callable[[], None]) -> None:
    for name, amount in operations:
        if name == "append":
            fill(log, amount, term=max(1, log.last_term), size=amount * 7)
        elif name == "truncate":
            index = max(log.first_index, log.last_index - amount + 1)
            log.truncate_from(index)
            fill(log, 1, term=log.last_term + 1)
        elif name == "vote":
            log.set_hard_state(log.hard_state.term + amount, amount)
        elif name == "drop":
            log.drop_to(max(0, log.synced_index - amount), keep_bytes=0)
        elif name == "reset":
            log.reset(log.last_index + amount, log.last_term)
        log.sync()
        synced()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["append", "append", "append", "truncate", "vote", "drop", "reset"]),
            st.integers(1, 12),
        ),
        min_size=1,
        max_size=20,
    ),
    call=st.sampled_from([*WRITING_CALLS, "close"]),
    count=st.integers(1, 25),
    after=st.booleans(),
    power=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_what_was_synced_survives_a_crash_at_any_call(
    operations: list[Operation], call: str, count: int, after: bool, power: bool, seed: int
) -> None:
    """The log reopened after a crash holds exactly what was synced, or that and all of one step."""
    disk = SimDisk()
    log = create(disk)
    history: list[tuple[HardState, list[tuple[int, int, bytes]]]] = []

    def synced() -> None:
        history.append((log.hard_state, contents(log)))

    synced()
    disk.crash_at(call, count, after=after)
    with contextlib.suppress(Crash):
        run_operations(log, operations, synced)
    disk.kill()
    if power:
        disk.power_cut(Random(seed))
    again = reopen(disk)
    state, entries = history[-1]
    # Dropping moves the start only; what is left must be a suffix of what was held, and what was
    # under way at the crash may have been done in part, record by record.
    held = {index: (term, data) for index, term, data in entries}
    assert again.hard_state.term >= state.term
    unsynced_replacement = False
    for index, term, data in contents(again):
        if index in held and held[index] != (term, data):
            unsynced_replacement = True
            assert term > held[index][0]
    if not unsynced_replacement and again.base_index < (entries[-1][0] if entries else 0):
        missing = [i for i in held if i > again.last_index]
        assert not missing or operations[len(history) - 1][0] == "truncate"


def test_no_sync_no_promise() -> None:
    """With fdatasync taken away, a power cut must lose something: the tests can tell."""
    disk = SimDisk()
    log = create(disk)
    disk.loses_syncs = True
    fill(log, 3)
    log.sync()
    disk.kill()
    disk.power_cut(NothingKept())
    assert reopen(disk).last_index == 0


def test_hard_state_record_is_what_msgpack_says() -> None:
    assert msgspec.msgpack.encode(HardState(3, 2)) == b"\x92\x03\x02"


class SkippingDisk(SimDisk):
    """Does not sync where one function of the log asks for it."""

    def __init__(self, call: str, caller: str) -> None:
        super().__init__()
        self.skip = (call, caller)
        self.skipped = 0

    def _skips(self, call: str) -> bool:
        skips = (call, sys._getframe(2).f_code.co_name) == self.skip
        self.skipped += skips
        return skips

    def fdatasync(self, handle: int) -> None:
        if not self._skips("fdatasync"):
            super().fdatasync(handle)

    def fsync_dir(self) -> None:
        if not self._skips("fsync_dir"):
            super().fsync_dir()


def live(disk: SimDisk, seed: int) -> None:
    """Fill, drop and cut the power again and again; what was synced must be there each time."""
    rng = Random(seed)
    log = create(disk)
    expected: list[tuple[int, int, bytes]] = []
    for _ in range(30):
        fill(log, rng.randint(1, 12), size=rng.randint(0, 100))
        log.prepare()
        log.sync()
        if rng.random() < 0.3:
            log.drop_to(log.synced_index, keep_bytes=0)
        expected = contents(log)
        if rng.random() < 0.5:
            continue
        death = rng.choice(("now", "between write and sync", "after a rename", "at any call"))
        if death == "between write and sync":
            # What the next life of the process reads, it relies on.
            fill(log, 1)
            disk.crash_at("fdatasync", 1, after=False)
            with contextlib.suppress(Crash):
                log.sync()
            disk.kill()
            log = reopen(disk)
            expected = contents(log)
        elif death == "after a rename":
            # The new segment's name is there, and not yet durable; the next life writes into it.
            disk.crash_at("fsync_dir", 1, after=False)
            with contextlib.suppress(Crash):
                fill(log, 30)
            disk.kill()
            log = reopen(disk)
            fill(log, 1)
            log.sync()
            expected = contents(log)
        elif death == "at any call":
            disk.crash_at(rng.choice(WRITING_CALLS), 1, after=rng.random() < 0.5)
            with contextlib.suppress(Crash):
                fill(log, 12)
                log.sync()
                expected = contents(log)
        disk.kill()
        disk.power_cut(rng)
        log = reopen(disk)
        held = contents(log)
        needed = [entry for entry in expected if entry[0] > log.base_index]
        assert needed
        assert all(entry in held for entry in needed)


SYNCS = [
    ("fdatasync", "_flush"),
    ("fdatasync", "_start_segment"),
    ("fdatasync", "_read_segment"),
    ("fsync_dir", "_start_segment"),
    ("fsync_dir", "_remove"),
    ("fsync_dir", "open"),
]


@pytest.mark.parametrize(("call", "caller"), SYNCS, ids=[" in ".join(sync) for sync in SYNCS])
def test_taking_any_one_sync_away_loses_something(call: str, caller: str) -> None:
    skipped = 0

    def search() -> None:
        nonlocal skipped
        for seed in range(100):
            disk = SkippingDisk(call, caller)
            try:
                live(disk, seed)
            finally:
                skipped += disk.skipped

    with pytest.raises((AssertionError, LogDamaged, StartRefused)):
        search()
    assert skipped


def test_with_all_its_syncs_nothing_is_lost() -> None:
    for seed in range(50):
        live(SimDisk(), seed)


def test_a_prepared_segment_leaves_nothing_for_a_later_sync_to_write() -> None:
    config = GroupConfig(segment_bytes=4 << 20)
    disk = SimDisk()
    log = create(disk, config)
    log.append(bytes(3 << 20), 1, 1)
    log.sync()
    while log.prepare():
        assert not disk._names["spare"].dirty


def test_the_list_of_syncs_is_complete() -> None:
    source = inspect.getsource(Log)
    functions = re.split(r"\n    (?=def |@)", source)
    found = {
        (call, re.search(r"def (\w+)", function).group(1))  # type: ignore[union-attr]
        for function in functions
        for call in re.findall(r"disk\.(fdatasync|fsync_dir)\(", function)
    }
    assert found == {*SYNCS, ("fdatasync", "_prepare_spare")}
