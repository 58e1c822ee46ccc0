"""What may have happened to a node's files: each ends in a typed error that says what to do.

A file that is missing, swapped, truncated, flipped or another's; a state newer or older than the
log; an I/O error at every named call.
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from tests.simulation.disk import CALLS, SimDisk
from tests.simulation.script import CONFIG, NothingKept, Script

from nokv_replication import (
    Applied,
    Committed,
    DiskFailed,
    Fatal,
    GroupConfig,
    Identity,
    LogDamaged,
    StartRefused,
    Times,
    initialise,
)
from nokv_replication.disk import OsDisk
from nokv_replication.frames import EntryKind, encode_entry
from nokv_replication.log import Log
from nokv_replication.segments import segment_name

IDENTITY = Identity("c", 1, 11)
SMALL = GroupConfig(segment_bytes=1024, cache_bytes=256)
WHAT_TO_DO = "docs/operations.md: A lost node"


def fill(folder: Path, identity: Identity = IDENTITY, entries: int = 60) -> OsDisk:
    folder.mkdir(exist_ok=True)
    disk = OsDisk(folder)
    initialise(disk, SMALL, identity, Random(identity.node))
    log = Log.open(disk, SMALL, identity, Random(2))
    for index in range(log.last_index + 1, entries + 1):
        log.append(b"%d:" % index + bytes(50), index, 1)
        log.sync()
    log.close()
    return disk


def opened(disk: OsDisk) -> Log:
    return Log.open(disk, SMALL, IDENTITY, Random(3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "log")
    return tmp_path / "log"


class TestFiles:
    def test_the_folder_has_several_segments(self, folder: Path) -> None:
        log = opened(OsDisk(folder))
        assert log.segment_count >= 5
        log.close()

    @pytest.mark.parametrize("sequence", [2, 3, 4])
    def test_a_segment_missing_in_the_middle(self, folder: Path, sequence: int) -> None:
        (folder / segment_name(sequence)).unlink()
        with pytest.raises(LogDamaged, match=WHAT_TO_DO) as raised:
            opened(OsDisk(folder))
        assert raised.value.file == segment_name(sequence + 1)
        assert "missing" in str(raised.value)

    def test_all_segments_missing(self, folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        with pytest.raises(StartRefused, match=WHAT_TO_DO):
            opened(OsDisk(folder))

    def test_the_oldest_missing_is_a_log_that_starts_later(self, folder: Path) -> None:
        """Compaction removes the oldest; whether the state covers it is for the start rules."""
        (folder / segment_name(1)).unlink()
        log = opened(OsDisk(folder))
        assert log.base_index > 0
        log.close()

    def test_two_segments_swapped(self, folder: Path) -> None:
        two, three = folder / segment_name(2), folder / segment_name(3)
        two.rename(folder / "aside")
        three.rename(two)
        (folder / "aside").rename(three)
        with pytest.raises(LogDamaged, match="swapped or renamed"):
            opened(OsDisk(folder))

    def test_a_copy_under_another_name(self, folder: Path) -> None:
        shutil.copy(folder / segment_name(2), folder / "00000000000000ff.log")
        with pytest.raises(LogDamaged, match="holds segment 0000000000000002"):
            opened(OsDisk(folder))

    @pytest.mark.parametrize("keep", [0, 20, 300, 1000])
    @pytest.mark.parametrize("which", ["first", "middle", "newest"])
    def test_a_truncated_segment(self, folder: Path, keep: int, which: str) -> None:
        paths = sorted(folder.glob("*.log"))
        path = paths[{"first": 0, "middle": 2, "newest": -1}[which]]
        with path.open("r+b") as file:
            file.truncate(keep)
        with pytest.raises(LogDamaged, match=WHAT_TO_DO) as raised:
            opened(OsDisk(folder))
        assert raised.value.file == path.name

    @pytest.mark.parametrize(
        "other", [Identity("c", 2, 11), Identity("d", 1, 11), Identity("c", 1, 12)]
    )
    def test_a_segment_of_another_node_or_cluster(
        self, folder: Path, tmp_path: Path, other: Identity
    ) -> None:
        fill(tmp_path / "other", other)
        shutil.copy(tmp_path / "other" / segment_name(3), folder / segment_name(3))
        with pytest.raises(StartRefused, match="put the right one back"):
            opened(OsDisk(folder))

    def test_files_that_are_no_segments_are_left_alone(self, folder: Path) -> None:
        for name in ("x.log", "00000000000000zz.log", "notes", "0.log"):
            (folder / name).write_bytes(b"?")
        log = opened(OsDisk(folder))
        assert log.last_index == 60
        log.close()


class TestFlips:
    """Every byte of a small log, flipped: never another entry than was written."""

    def disk(self) -> SimDisk:
        disk = SimDisk()
        initialise(disk, SMALL, IDENTITY, Random(1))
        log = Log.open(disk, SMALL, IDENTITY, Random(2))
        for index in range(1, 25):
            log.append(b"%d:" % index + bytes(50), index, 1)
            log.sync()
        log.close()
        disk.kill()
        return disk

    def open(self, disk: SimDisk) -> tuple[Log | None, LogDamaged]:
        try:
            return Log.open(disk, SMALL, IDENTITY, Random(3)), LogDamaged("")
        except LogDamaged as error:
            return None, error

    def test_every_byte(self) -> None:
        whole = self.disk()
        found = {"damaged": 0, "refused": 0, "shorter": 0, "equal": 0}
        names = whole.listdir()
        for name in names:
            for offset in range(len(whole.content(name))):
                disk = self.disk()
                disk.flip(name, offset)
                log, error = self.open(disk)
                if log is None:
                    found["damaged"] += 1
                    assert WHAT_TO_DO in str(error)
                    assert error.file in names
                    continue
                for index in range(1, log.last_index + 1):
                    assert log.entry(index) == b"%d:" % index + bytes(50)
                # Only in the very last batch can a flip look like a tail that was never synced.
                assert log.last_index >= 23
                found["shorter" if log.last_index == 23 else "equal"] += 1
        assert found["damaged"] > 1000
        assert found["equal"] > 0
        assert 0 < found["shorter"] < 100


class TestStartRules:
    def started(self, change: Callable[[Script], None]) -> Script:
        script = Script(3)
        script.lead(1)
        for number in range(5):
            script.propose(1, b"%d" % number)
        script.settle()
        script.isolate(2)
        script.groups[2].stop()
        del script.groups[2]
        script.disks[2].kill()
        change(script)
        return script

    def test_a_state_older_than_the_log_begins(self) -> None:
        def change(script: Script) -> None:
            log = Log.open(script.disks[2], CONFIG, script.identity(2), Random(0))
            log.reset(log.last_index, log.last_term)
            log.close()
            script.storages[2].applied = Applied(3, 1, script.storages[2].applied.config)

        script = self.started(change)
        with pytest.raises(StartRefused, match=f"older copy.*{WHAT_TO_DO}"):
            script.start(2)

    @pytest.mark.parametrize("other_term", [False, True])
    def test_a_state_newer_than_the_log(self, other_term: bool) -> None:
        """What is applied was synced in the log before: the log has lost it, and votes perhaps."""

        def change(script: Script) -> None:
            log = Log.open(script.disks[2], CONFIG, script.identity(2), Random(0))
            log.truncate_from(4)
            if other_term:
                for index in range(4, 10):
                    log.append(encode_entry(Times(), [], EntryKind.NOOP), index, 9)
            log.sync()
            log.close()
            script.checker.replicas[2].damaged = True

        script = self.started(change)
        with pytest.raises(LogDamaged, match=f"lost its tail.*{WHAT_TO_DO}"):
            script.start(2)

    def test_a_state_image_that_was_being_installed_is_no_damage(self) -> None:
        def change(script: Script) -> None:
            applied = script.storages[2].applied
            log = Log.open(script.disks[2], CONFIG, script.identity(2), Random(0))
            log.truncate_from(4)
            log.announce_install(applied.index, applied.term)
            log.close()
            script.checker.replicas[2].damaged = True

        script = self.started(change)
        script.start(2)
        log = script.groups[2]._log
        assert (log.base_index, log.last_index) == (7, 7)
        script.connect_all()
        script.propose(1, b"after")
        script.settle()
        assert isinstance(script.outcomes[b"after"], Committed)
        assert script.machines[2].items[-1] == b"after"

    def test_an_image_announced_long_ago_excuses_nothing(self) -> None:
        """It was never installed, the log went past it, and then lost what it had synced."""

        def change(script: Script) -> None:
            applied = script.storages[2].applied
            log = Log.open(script.disks[2], CONFIG, script.identity(2), Random(0))
            log.truncate_from(4)
            log.announce_install(applied.index, applied.term)
            for index in range(4, applied.index + 1):
                log.append(encode_entry(Times(), [], EntryKind.NOOP), index, applied.term)
            log.truncate_from(4)
            log.sync()
            log.close()
            script.checker.replicas[2].damaged = True

        script = self.started(change)
        with pytest.raises(LogDamaged, match="lost its tail"):
            script.start(2)

    def test_an_image_announced_and_not_installed_changes_nothing(self) -> None:
        def change(script: Script) -> None:
            log = Log.open(script.disks[2], CONFIG, script.identity(2), Random(0))
            log.announce_install(99, 1)
            log.close()

        script = self.started(change)
        script.start(2)
        assert script.groups[2]._log.last_index == 7

    def test_a_state_of_another_group(self) -> None:
        def change(script: Script) -> None:
            other = Script(1)
            other.wait(3_000_000_000)
            other.settle(rounds=5)
            other.groups[1].stop()
            script.storages[2].applied = other.storages[1].applied

        script = self.started(change)
        with pytest.raises(StartRefused, match="put the right state beside the right log"):
            script.start(2)


OPENING = ("listdir", "open", "size_bytes", "pread", "fdatasync")
RUNNING = ("create", "preallocate", "pwrite", "fdatasync", "rename", "fsync_dir", "unlink", "close")


class TestIoErrors:
    def test_every_named_call_is_covered(self) -> None:
        assert {*OPENING, *RUNNING, "free_bytes"} == set(CALLS)

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
    @pytest.mark.parametrize("call", OPENING)
    def test_at_a_start(self, call: str, code: int) -> None:
        script = Script(3)
        script.lead(1)
        script.crash(2)
        script.disks[2].fail_at(call, code)
        with pytest.raises(DiskFailed, match="repair or free the disk first"):
            script.start(2)
        script.disks[2].kill()
        script.start(2)

    @pytest.mark.parametrize("node", [1, 2])
    @pytest.mark.parametrize("call", RUNNING)
    def test_while_running_the_node_stops_and_nothing_is_lost(self, call: str, node: int) -> None:
        config = GroupConfig(segment_bytes=4096, log_keep_bytes=0, commit_interval_ns=1)
        script = Script(3, config=config)
        script.lead(1)
        script.disks[node].fail_at(call)

        def work() -> None:
            for number in range(100):
                script.propose(1, b"%d:" % number + bytes(200))
                script.settle(rounds=3)

        with pytest.raises(DiskFailed, match="restart the process"):
            work()
        acknowledged = [p for p, o in script.outcomes.items() if isinstance(o, Committed)]
        script.crash(node, power=True)
        script.start(node)
        script.connect_all()
        script.settle(rounds=100)
        for machine in script.machines.values():
            assert set(acknowledged) <= set(machine.items)

    def test_free_space_that_cannot_be_asked_for(self) -> None:
        script = Script(3)
        script.lead(1)
        script.disks[1].fail_at("free_bytes")
        script.wait(2_000_000_000)
        with pytest.raises((OSError, Fatal)):
            script.step(1)


def test_the_worst_power_cut_while_a_segment_is_begun_loses_no_acknowledged_entry() -> None:
    config = GroupConfig(segment_bytes=4096, log_keep_bytes=0)
    for seed in range(20):
        disk = SimDisk()
        initialise(disk, config, IDENTITY, Random(1))
        log = Log.open(disk, config, IDENTITY, Random(2))
        rng = Random(seed)
        synced = 0
        for index in range(1, rng.randint(20, 80)):
            log.append(bytes(rng.randint(1, 400)), index, 1)
            log.sync()
            synced = index
        disk.kill()
        disk.power_cut(NothingKept())
        again = Log.open(disk, config, IDENTITY, Random(3))
        assert again.last_index == synced
