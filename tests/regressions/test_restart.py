"""Restarts as shipped: what a dump file does to the journal beside it."""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from tests.regressions.group import committed, led, survivors_hold
from tests.regressions.stock import StockCluster
from tests.simulation.script import CONFIG, Script

from nokv_replication import StartRefused
from nokv_replication._pysyncobj import Core

# The library leaves open files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

SMALL_LOG = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=0)


def filled_group() -> Script:
    """A group whose logs begin far behind their first entries."""
    script = led(config=SMALL_LOG)
    for number in range(60):
        script.propose(1, b"old%d" % number)
        script.settle(rounds=2)
    script.settle(rounds=60)
    assert all(group.status().first_index > 10 for group in script.groups.values())
    return script


class TestCompactedJournalWithoutADump:
    """A journal may be configured without a dump file: after compaction and a restart the state is
    gone, nothing is ever applied again, and the node still votes, acknowledges and leads.
    """

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("A", "ABC", tmp_path)
        for number in range(20):
            cluster.put("A", number)
        cluster.settle(rounds=4)
        for node in cluster.nodes.values():
            node.forceLogCompaction()
        cluster.settle(rounds=14)
        assert len(cluster["B"].applied) == 20
        for name in "ABC":
            cluster.crash(name)
        for name in "ABC":
            cluster.start(name)
        cluster.connect_all()
        cluster.elect("B", "A", "C")
        cluster.put("B", "new")
        cluster.settle(rounds=20)
        assert all(node.applied == [] for node in cluster.nodes.values())
        assert "new" not in cluster.results

    def test_group(self) -> None:
        script = filled_group()
        for node in (1, 2, 3):
            script.crash(node, power=True)
        for node in (1, 2, 3):
            script.start(node)
        script.connect_all()
        script.lead(2)
        script.propose(2, b"new")
        script.settle(rounds=6)
        assert committed(script, b"new")
        assert survivors_hold(script, 3, b"old0", b"old59", b"new")

    def test_group_refuses_a_log_that_begins_behind_its_state(self) -> None:
        script = filled_group()
        script.crash(2)
        script.storages[2] = type(script.storages[2])()  # an empty state beside the compacted log
        with pytest.raises(StartRefused, match="entries between are gone"):
            script.start(2)


class TestUnreadableDumpIsSwallowed:
    """A dump that cannot be read is skipped: the node starts empty, and still acknowledges."""

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("A", "ABC", tmp_path, dumps=True)
        for number in range(20):
            cluster.put("A", number)
        cluster.settle(rounds=4)
        cluster["B"].forceLogCompaction()
        cluster.settle(rounds=4)
        cluster.crash("B")
        (tmp_path / "B.dump").write_bytes(b"unreadable")
        cluster.start("B")
        cluster.connect_all()
        cluster.put("A", "later")
        cluster.settle(rounds=8)
        assert cluster["B"].applied == []
        assert cluster["A"].match("B") == cluster["A"].log()[-1][0]

    def test_group(self) -> None:
        """The machine opens itself: what it raises ends the start."""
        script = filled_group()
        script.crash(2)

        def unreadable() -> None:
            message = "the state cannot be read"
            raise OSError(message)

        machine = script.storages[2].machine
        script.storages[2].machine = lambda on_call: _Broken(machine(on_call), unreadable)  # type: ignore[assignment,method-assign,return-value]
        with pytest.raises(OSError, match="cannot be read"):
            script.start(2)


class _Broken:
    def __init__(self, inner: object, opened: object) -> None:
        self._inner = inner
        self.open = opened

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


class TestCrashBetweenDumpAndCompactionClearsTheJournal:
    """A dump that is newer than the journal's start makes the library clear the whole journal:
    every entry acknowledged after the dump is lost by one ordinary kill.
    """

    def test_stock(self, tmp_path: Path) -> None:
        cluster = StockCluster.led_by("A", "ABC", tmp_path, dumps=True)
        for number in range(10):
            cluster.put("A", f"old{number}")
        cluster.settle(rounds=4)
        cluster.crash("C")
        cluster["B"].forceLogCompaction()
        cluster.tick("B")  # the dump is in place; the journal is cut in the next tick
        new = [f"new{number}" for number in range(5)]
        for value in new:
            cluster.put("A", value)
        cluster.heartbeat("A")
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
        cluster.tick("A")
        assert all(cluster.succeeded(value) for value in new)
        cluster.crash("B")
        cluster.start("B")
        cluster.tick("B")
        cluster.crash("A")
        cluster.start("C")
        cluster.connect("B", "C")
        cluster.tick("C")
        cluster.elect("B", "C")
        cluster.settle(rounds=4)
        assert cluster.lost("B") == new

    def test_group(self) -> None:
        script = filled_group()
        script.crash(3)
        # Node 2 has committed its machine, and dies before it has cut its log behind that.
        script.groups[2]._applier.commit()
        new = [b"new%d" % number for number in range(5)]
        for payload in new:
            script.propose(1, payload)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert committed(script, *new)
        script.crash(2)
        script.start(2)
        script.crash(1)
        script.start(3)
        script.connect(2, 3)
        script.elect(2, 3)
        script.settle(2, 3)
        assert survivors_hold(script, 2, *new)


ORPHAN = """
import os, signal, sys
from pathlib import Path
from tests.regressions.stock import StockCluster

cluster = StockCluster("A", Path(sys.argv[1]), dumps=True, useFork=True)
cluster.expire("A")
for number in range(20000):
    cluster.put("A", "state" + str(number))
while cluster["A"].raftLastApplied < 20001:
    cluster.tick("A")
cluster["A"].forceLogCompaction()
cluster.tick("A")  # forks the writer of the dump
for number in range(100):
    cluster.put("A", "acked" + str(number))
for _ in range(3):
    cluster.tick("A")
assert all(cluster.succeeded("acked" + str(number)) for number in range(100))
os.kill(os.getpid(), signal.SIGKILL)
"""


class TestOrphanedDumpWriterClearsTheJournal:
    """The forked writer of a dump outlives the node: when it renames its file into place, the next
    start clears the journal, and all that was acknowledged after the fork is lost by one kill.
    """

    def test_stock(self, tmp_path: Path) -> None:
        child = subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path)], check=False)
        assert child.returncode == -signal.SIGKILL
        while not (tmp_path / "A.dump").exists():  # the test's own time limit bounds this
            time.sleep(0.01)
        cluster = StockCluster("A", tmp_path, dumps=True)
        cluster.tick("A")
        cluster.tick("A")
        lost = [n for n in range(100) if f"acked{n}" not in cluster["A"].applied]
        assert len(lost) == 100

    def test_group(self) -> None:
        """No process writes beside a group, and no dump exists that could come late."""
        script = led(1)
        with pytest.raises(AssertionError, match="dump file"):
            script.groups[1]._core._SyncObj__loadDumpFile(True)
        assert "_SyncObj__tryLogCompaction" in Core.__dict__
        script.groups[1]._core._SyncObj__tryLogCompaction()
        calls: list[str] = []
        script.disks[1].after_call = calls.append
        for number in range(50):
            script.propose(1, b"%d" % number)
        assert set(calls) <= {"pwrite", "fdatasync", "create", "preallocate"}


class TestJournalIsCutBeforeTheDumpExists:
    """With an asynchronous writer the library takes the dump for done as soon as the function that
    starts it returns: the journal is cut, and after a restart there is neither dump nor journal.
    """

    def test_stock(self, tmp_path: Path) -> None:
        job: list[tuple[str, bytes]] = []
        states = [0]

        def serializer(name: str, data: object) -> None:
            job.append((name, pickle.dumps(data)))  # to be written later
            states[:] = [1, 2]

        def checker() -> int:
            state = states.pop(0) if states else 0
            if state == 1:
                Path(job[0][0]).write_bytes(job[0][1])
            return state

        def deserializer(name: str) -> object:
            return pickle.loads(Path(name).read_bytes())

        cluster = StockCluster(
            "A",
            tmp_path,
            dumps=True,
            serializer=serializer,
            deserializer=deserializer,
            serializeChecker=checker,
        )
        cluster.expire("A")
        for number in range(10):
            cluster.put("A", number)
        for _ in range(3):
            cluster.tick("A", 0.1)
        assert len(cluster["A"].applied) == 10
        cluster["A"].forceLogCompaction()
        for _ in range(6):
            cluster.tick("A", 0.1)
        assert not (tmp_path / "A.dump").exists()
        cluster.crash("A")
        cluster.start("A")
        for _ in range(20):
            cluster.tick("A", 0.2)
        assert cluster["A"].applied == []

    def test_group(self) -> None:
        """The log is cut only behind what the machine says it has committed durably."""
        script = led(1, config=SMALL_LOG)
        storage = script.storages[1]
        for number in range(100):
            script.propose(1, b"%d" % number)
            script.settle(1, rounds=3)
            assert script.groups[1].status().first_index <= storage.applied.index + 1
        assert script.groups[1].counters.segments_dropped > 0
        script.crash(1, power=True)
        script.start(1)
        script.elect(1)
        script.settle(1, rounds=6)
        assert survivors_hold(script, 1, *(b"%d" % number for number in range(100)))
