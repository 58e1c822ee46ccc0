"""Reading a stopped node's log: all records shown, nothing changed, the verdict of a start."""

from random import Random

import pytest
from tests.simulation.disk import CALLS, SimDisk

from nokv_replication import (
    DiskFailed,
    GroupConfig,
    Identity,
    LogDamaged,
    StartRefused,
    Times,
    initialise,
    logtool,
)
from nokv_replication.frames import EntryKind, encode_entry
from nokv_replication.log import Log
from nokv_replication.records import HardState
from nokv_replication.segments import SPARE, segment_name

IDENTITY = Identity("c", 1, 11)
SMALL = GroupConfig(segment_bytes=1024, cache_bytes=256)


def filled(entries: int = 30) -> SimDisk:
    disk = SimDisk()
    initialise(disk, SMALL, IDENTITY, Random(1))
    log = Log.open(disk, SMALL, IDENTITY, Random(2))
    log.set_hard_state(3, 2)
    log.set_members(b"members")
    for index in range(1, entries + 1):
        log.append(encode_entry(Times(index, index), [b"%d" % index], EntryKind.COMMANDS), index, 3)
        log.sync()
    log.close()
    disk.kill()
    return disk


def torn() -> SimDisk:
    disk = filled()
    log = Log.open(disk, SMALL, IDENTITY, Random(3))
    end = log._segments[-1].used_bytes
    disk.pwrite(log._segments[-1].handle, b"\xff" * 40, end)
    log.close()
    return disk


def image(disk: SimDisk) -> dict[str, bytes]:
    return {name: disk.content(name) for name in disk.listdir()}


def examined(disk: SimDisk) -> str:
    try:
        report = logtool.examine(disk, IDENTITY)
    except (LogDamaged, StartRefused) as error:
        return str(error)
    return f"{report.first_index} to {report.last_index}"


def started(disk: SimDisk) -> str:
    try:
        log = Log.open(disk, SMALL, IDENTITY, Random(3))
    except (LogDamaged, StartRefused) as error:
        return str(error)
    return f"{log.first_index} to {log.last_index}"


class TestExamine:
    def test_a_whole_log(self) -> None:
        disk = filled()
        report = logtool.examine(disk, IDENTITY)
        assert (report.first_index, report.last_index, report.last_term) == (1, 30, 3)
        assert report.hard_state == HardState(3, 2)
        assert report.founded
        assert report.segments > 1
        assert (report.cuts, report.unreadable) == ((), 0)

    def test_a_torn_tail_is_reported_and_left(self) -> None:
        disk = torn()
        before = image(disk)
        (cut,) = logtool.examine(disk, IDENTITY).cuts
        assert cut.size_bytes == 40
        assert disk.content(cut.file)[cut.offset_bytes :].startswith(b"\xff" * 40)
        assert image(disk) == before

    def test_nothing_is_changed_and_no_file_stays_open(self) -> None:
        for make in (filled, torn):
            disk = make()
            disk.close(disk.create(SPARE))
            before = image(disk)

            def forbid(name: str) -> None:
                changing = {"create", "preallocate", "pwrite", "rename", "unlink"}
                assert name not in changing | {"fdatasync", "fsync_dir"}

            disk.on_call = forbid
            logtool.examine(disk, IDENTITY)
            list(logtool.dump(disk))
            assert image(disk) == before
            assert not disk._handles

    def test_unreadable_entries_are_counted_and_the_first_are_named(self) -> None:
        disk = filled(2)
        log = Log.open(disk, SMALL, IDENTITY, Random(3))
        for index in range(3, 3 + logtool.UNREADABLE_MAX + 5):
            log.append(b"\xc1", index, 3)
        log.sync()
        log.close()
        report = logtool.examine(disk, IDENTITY)
        assert report.unreadable == logtool.UNREADABLE_MAX + 5
        assert len(report.unreadable_first) == logtool.UNREADABLE_MAX
        assert report.unreadable_first[0][0] == 3
        assert "raft-log skip 3" in report.unreadable_first[0][1]

    def test_its_verdict_is_that_of_a_start(self) -> None:
        """For every single flipped byte: either both refuse alike, or both find the same log."""
        disk = filled(12)
        for name in disk.listdir():
            for offset in range(0, len(disk.content(name)), 7):
                disk.flip(name, offset)
                before = image(disk)
                verdict = examined(disk)
                assert image(disk) == before
                assert started(disk) == verdict
                disk.kill()
                for changed, content in before.items():
                    disk._names[changed].content = bytearray(content)
                disk.flip(name, offset)

    @pytest.mark.parametrize("call", ["listdir", "open", "size_bytes", "pread", "close"])
    def test_a_failing_disk_is_a_typed_error(self, call: str) -> None:
        assert call in CALLS
        disk = filled()
        disk.fail_at(call)
        with pytest.raises(DiskFailed):
            logtool.examine(disk, IDENTITY)
        disk.fail_at(call)
        with pytest.raises(DiskFailed):
            list(logtool.dump(disk))


def test_entries_of_any_bytes_are_unreadable_and_no_more() -> None:
    rng = Random(5)
    hostile = [b"", b"\xc1", b"\x95" + b"\x91" * 100_000, b"\x95\x01\x00\x00\x90\xa1\xff"]
    hostile += [rng.randbytes(rng.randint(1, 60)) for _ in range(200)]
    config = GroupConfig(segment_bytes=1 << 20)
    disk = SimDisk()
    initialise(disk, config, IDENTITY, Random(1))
    log = Log.open(disk, config, IDENTITY, Random(2))
    for index, command in enumerate(hostile, 1):
        log.append(command, index, 1)
    log.sync()
    log.close()
    report = logtool.examine(disk, IDENTITY)
    assert (report.last_index, report.unreadable) == (len(hostile), len(hostile))
    lines = [line for line in logtool.dump(disk) if line.kind == "entry"]
    assert [line.payload for line in lines] == hostile
    assert all(logtool.entry_of(line) is None for line in lines)


class TestDump:
    def test_records_as_they_lie(self) -> None:
        lines = list(logtool.dump(filled()))
        entries = [line for line in lines if line.kind == "entry"]
        assert [line.index for line in entries] == list(range(1, 31))
        assert {line.term for line in entries} == {3}
        entry = logtool.entry_of(entries[4])
        assert entry is not None
        assert entry.payloads == [b"5"]
        assert [line.kind for line in lines[:3]] == ["header", "hard_state", "members"]
        headers = [line for line in lines if line.kind == "header"]
        assert [line.file for line in headers] == [segment_name(i + 1) for i in range(len(headers))]

    def test_void_entries_are_shown_with_what_voids_them(self) -> None:
        disk = filled(5)
        log = Log.open(disk, SMALL, IDENTITY, Random(3))
        log.truncate_from(4)
        log.append(encode_entry(Times(9, 9), [], EntryKind.NOOP), 4, 4)
        log.sync()
        log.close()
        shown = [(line.kind, line.index) for line in logtool.dump(disk)][-4:]
        assert shown == [("entry", 4), ("entry", 5), ("truncate", 4), ("entry", 4)]

    def test_a_torn_and_a_damaged_place(self) -> None:
        assert [line.kind for line in logtool.dump(torn())][-1] == "torn"
        disk = filled()
        inside = [line for line in logtool.dump(disk) if line.file == segment_name(1)][3]
        disk.flip(segment_name(1), inside.offset_bytes + 12)
        holes = [line for line in logtool.dump(disk) if line.kind == "damaged"]
        assert [line.file for line in holes] == [segment_name(1)]
        assert list(logtool.dump(disk))[-1].index == 30
        disk.flip(segment_name(1), 3)
        first = next(logtool.dump(disk))
        assert (first.kind, first.offset_bytes) == ("damaged", 0)
