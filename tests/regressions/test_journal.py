"""The journal as shipped: nothing is synced, nothing is checked, and it is rewritten in place."""

import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import msgspec
import pytest
from pysyncobj.journal import FileJournal
from tests.regressions.group import committed, led
from tests.regressions.stock import StockCluster
from tests.simulation.disk import WRITING_CALLS, Crash, SimDisk
from tests.simulation.script import CONFIG, NothingKept, Script

from nokv_replication import DiskFailed, Identity, LogDamaged, Role, initialise
from nokv_replication.frames import RequestVote
from nokv_replication.log import Log
from nokv_replication.segments import segment_name

# The library leaves open files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

IDENTITY = Identity("c", 1, 11)
SMALL = msgspec.structs.replace(CONFIG, segment_bytes=4096)


def new_log(disk: SimDisk) -> Log:
    initialise(disk, SMALL, IDENTITY, Random(1))
    return Log.open(disk, SMALL, IDENTITY, Random(2))


def reopened(disk: SimDisk) -> Log:
    return Log.open(disk, SMALL, IDENTITY, Random(3))


KILLED_WHILE_COMPACTING = """
import os, signal, sys
from pysyncobj.journal import FileJournal

journal = FileJournal(sys.argv[1])
for index in range(1, 2001):
    journal.add(bytes(100), index, 1)
plain, calls = FileJournal.add, []

def add(*entry):
    calls.append(1)
    if len(calls) == 300:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(*entry)

FileJournal.add = add
journal.deleteEntriesTo(1000)
"""


class TestKillDuringCompactionLosesTheTail:
    """Compaction clears the journal and adds the rest again, in place: a kill loses what it had
    not come to yet.
    """

    def test_stock(self, tmp_path: Path) -> None:
        name = str(tmp_path / "journal")
        command = [sys.executable, "-c", KILLED_WHILE_COMPACTING, name]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        journal = FileJournal(name)
        assert journal[-1][1] == 1299  # it was 2000
        journal._destroy()

    @pytest.mark.parametrize("call", WRITING_CALLS)
    @pytest.mark.parametrize("after", [False, True])
    def test_group(self, call: str, after: bool) -> None:
        disk = SimDisk()
        log = new_log(disk)
        for index in range(1, 401):
            log.append(bytes(100), index, 1)
            log.sync()
        disk.crash_at(call, 1, after=after)
        try:
            log.drop_to(300, 0)
        except Crash:
            disk.power_cut(NothingKept())
        disk.disarm()
        again = reopened(disk)
        assert again.last_index == 400
        assert again.base_index <= 300
        assert again.term_at(301) == 1


class TestJournalBreaksAtFourGibibytes:
    """Offsets have 32 bits: at 4 GiB every append raises, after memory was changed already."""

    def test_stock(self, tmp_path: Path) -> None:
        journal = FileJournal(str(tmp_path / "journal"))
        journal.add(b"\0", 1, 0)
        journal._FileJournal__journalFile._ResizableFile__resizeFactor = 1.0
        journal._FileJournal__currentOffset = (1 << 32) - 200

        def fill() -> None:
            for index in range(2, 10):
                journal.add(bytes(100), index, 1)

        with pytest.raises(struct.error):
            fill()
        broken = journal[-1][1]
        with pytest.raises(struct.error):
            journal.add(bytes(100), broken + 1, 1)
        journal._destroy()

    def test_group(self) -> None:
        """No offset is stored: files are small and numbered with 64 bits, as indices are."""
        assert len(segment_name((1 << 64) - 1)) == len(segment_name(1))
        disk = SimDisk()
        log = new_log(disk)
        log.reset(1 << 40, 7)
        log.append(b"far", (1 << 40) + 1, 7)
        log.sync()
        again = reopened(disk)
        assert (again.last_index, again.entry(again.last_index)) == ((1 << 40) + 1, b"far")


class TestVoteIsForgotten:
    """Term and vote are written without a sync: after a power cut a node votes again in a term it
    voted in, and two leaders share it.
    """

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("A", "ABC", tmp_path)
        cluster.settle(rounds=14)
        cluster.isolate("A")
        durable = {path: path.read_bytes() for path in tmp_path.glob("B.*")}
        cluster.elect("C", "B")
        cluster.crash("B")
        for path, content in durable.items():  # nothing was synced since
            path.write_bytes(content)
        cluster.start("B")
        cluster.tick("A", 31)  # alone for so long, it no longer leads
        cluster.connect("A", "B")
        cluster.elect("A", "B")
        assert cluster["A"].leads()
        assert cluster["C"].leads()
        assert cluster["A"].raftCurrentTerm == cluster["C"].raftCurrentTerm

    def test_group(self) -> None:
        script = led()
        script.isolate(1)
        script.elect(3, 2)
        term, position = script.groups[3].status().term, script.groups[3].status().last_index
        script.crash(2, power=True)
        script.start(2)
        script.connect(1, 2)
        request = RequestVote(term, position + 5, term)
        script.groups[2]._receiver.handle(1, 1, request, script.groups[2]._now_ns)
        script.step(2)
        assert script.groups[2].status().term == term
        script.deliver(2, 1)
        assert script.role(1) != Role.LEADER or script.groups[1].status().term < term


class TestUnreadableVoteCountsAsNone:
    """A vote file that cannot be read is silently skipped: the node votes again."""

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("A", "ABC", tmp_path)
        assert cluster["B"].private("votedForNodeId") == "A"
        cluster.crash("B")
        (tmp_path / "B.journal.meta").write_bytes(b"unreadable")
        again = cluster.start("B")
        assert again.raftCurrentTerm == 1
        assert again.private("votedForNodeId") is None

    def test_group(self) -> None:
        disk = SimDisk()
        log = new_log(disk)
        log.set_hard_state(7, 2)
        start = log._segments[-1].used_bytes - 1
        log.sync()
        log.append(b"later", 1, 7)
        log.sync()
        disk.kill()
        disk.flip(segment_name(1), start - 8)
        with pytest.raises(LogDamaged, match="damaged"):
            reopened(disk)


class TestStoredCommitIndexCoversOldEntries:
    """The commit index is stored apart from the entries and may be newer on disk: after a power
    cut a node applies old, uncommitted entries, alone.
    """

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("B", "ABC", tmp_path)
        cluster.settle(rounds=12)
        cluster.isolate("B")
        for number in range(3):
            cluster.put("B", f"ghost{number}")
        cluster.tick("B")
        written_back = (tmp_path / "B.journal").read_bytes()
        cluster.elect("A", "C")
        for number in range(3):
            cluster.put("A", f"real{number}")
        cluster.settle("AC", rounds=4)
        cluster.connect("A", "B")
        cluster.settle("AB", rounds=14)
        assert cluster["B"].applied == ["real0", "real1", "real2"]
        cluster.crash("B")
        (tmp_path / "B.journal").write_bytes(written_back)
        cluster.start("B")
        cluster.tick("B")  # no message has arrived
        assert "ghost0" in cluster["B"].applied

    def test_group(self) -> None:
        script = led()
        script.isolate(1)
        for number in range(3):
            script.propose(1, b"ghost%d" % number)
        script.crash(1, power=True)
        script.start(1)
        script.step(1)
        status = script.groups[1].status()
        assert status.last_index == 5
        # Only what its machine has durably applied counts as committed until a leader says more.
        assert status.commit_index == script.storages[1].applied.index == 2
        assert status.applied_index == status.commit_index


DISK_FULL = """
import os, sys
from pysyncobj.journal import FileJournal

class FullDisk:
    # A mapped page for which the file system finds no block, as behind the end of a file.
    def __init__(self, mapped):
        self.mapped, self.size = mapped, mapped.size
    def __setitem__(self, where, data):
        os.truncate(sys.argv[1], 0)
        self.mapped[where] = data

journal = FileJournal(sys.argv[1])
file = journal._FileJournal__journalFile
file._ResizableFile__mm = FullDisk(file._ResizableFile__mm)
journal.add(bytes(100), 1, 1)
"""


class TestFullDiskKillsTheProcess:
    """The journal is a mapped file: where no block can be had, a write to it is a SIGBUS."""

    def test_stock(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "journal")]
        limit = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, limit[1]))
        try:
            result = subprocess.run(command, check=False, capture_output=True)
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, limit)
        assert result.returncode == -signal.SIGBUS

    def test_group(self) -> None:
        script = led(config=msgspec.structs.replace(CONFIG, segment_bytes=1024))
        script.disks[2].fail_at("create", 28)  # ENOSPC

        def fill() -> None:
            for number in range(60):
                script.propose(1, b"%d" % number)
                script.deliver(1, 2)

        with pytest.raises(DiskFailed, match="disk failed"):
            fill()
        script.crash(2)
        script.settle(1, 3)
        assert committed(script, b"0")


class TestTornRecordIsACrashLoop:
    """Records have no checksum: a torn one is read as lengths and terms."""

    def test_stock(self, tmp_path: Path) -> None:
        name = tmp_path / "journal"
        journal = FileJournal(str(name))
        for index in range(1, 11):
            journal.add(bytes([index]) * 100, index, 1)
        journal._destroy()
        content = bytearray(name.read_bytes())
        # The header's sector was written back, that of the last records was not.
        content[800:] = bytes(len(content) - 800)
        name.write_bytes(content)
        with pytest.raises(struct.error):
            FileJournal(str(name))

    def test_group(self) -> None:
        disk = SimDisk()
        log = new_log(disk)
        for index in range(1, 11):
            log.append(bytes([index]) * 100, index, 1)
            log.sync()
        log.append(b"torn" * 500, 11, 1)
        disk.crash_at("fdatasync", 1, after=False)
        with pytest.raises(Crash):
            log.sync()
        disk.power_cut(Random(4))
        again = reopened(disk)
        assert again.last_index in {10, 11}
        assert again.entry(10) == bytes([10]) * 100


class TestJournalInMemoryForgetsItsVote:
    """Without a journal file, which is the default, a restart forgets log, term and vote."""

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.crash("B")
        cluster.start("B")
        assert cluster["B"].raftCurrentTerm == 0
        assert cluster["B"].log() == [(1, 0)]

    def test_group(self) -> None:
        """There is no group without a disk, and none starts where its log is gone."""
        script: Script = led()
        script.crash(2)
        script.disks[2] = SimDisk()
        with pytest.raises(Exception, match="must not start"):
            script.start(2)


class TestJournalIsAllInMemory:
    """The file is only ever written: every entry since the last compaction is in memory too."""

    def test_stock(self, tmp_path: Path) -> None:
        journal = FileJournal(str(tmp_path / "journal"))
        for index in range(1, 101):
            journal.add(bytes(1000), index, 1)
        held = sum(len(command) for command, _, _ in journal._FileJournal__journal)
        assert held == 100_000
        journal._destroy()

    def test_group(self) -> None:
        disk = SimDisk()
        config = msgspec.structs.replace(SMALL, cache_bytes=5000)
        initialise(disk, config, IDENTITY, Random(1))
        log = Log.open(disk, config, IDENTITY, Random(2))
        for index in range(1, 101):
            log.append(bytes(1000), index, 1)
            log.sync()
        assert sum(map(len, log._cache.values())) <= 5000
        assert log.entry(1) == bytes(1000)
