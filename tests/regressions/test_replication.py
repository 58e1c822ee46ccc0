"""Replication as shipped: what is truncated, whose acknowledgements count, who catches up."""

import os

import msgspec
from tests.regressions.group import bodies, committed, led, replay, survivors_hold
from tests.regressions.stock import StockCluster, library
from tests.simulation.ports import MS_NS
from tests.simulation.script import CONFIG

from nokv_replication.frames import Ack, Append


class TestDuplicateAppendTruncatesAcknowledgedEntries:
    """A success moves the leader's next index back, so entries on their way are sent again; the
    follower truncates behind every append, conflict or not. One crash then loses a committed entry.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.put("A", "first")
        cluster.heartbeat("A")
        large = [letter * 40_000 for letter in "pqr"]
        for value in large:
            cluster.put("A", value)
        cluster.heartbeat("A")
        cluster.deliver("A", "B")  # B holds all and says so, in three answers
        cluster.deliver("B", "A", 1)
        assert cluster["A"].next("B") < 7  # it was 7
        cluster.tick("A", 0.11)  # sends 4.. again, in pieces of 64 KiB
        cluster.deliver("B", "A")
        cluster.tick("A")
        assert all(cluster.succeeded(value) for value in large)
        cluster.deliver("A", "B", 1)  # of the duplicates, only the first piece arrives
        cluster.crash("A")
        cluster.elect("B", "C")
        cluster.settle(rounds=5)
        cluster.put("B", "next")
        cluster.settle(rounds=5)
        assert cluster.lost("B") == [large[2]]

    def test_group(self) -> None:
        script = led()
        large = [letter * 40_000 for letter in (b"p", b"q", b"r")]
        for payload in large:
            script.propose(1, payload)
        sent = bodies(script, 1, 2, Append)
        assert len(sent) == 3
        script.deliver(1, 2)
        script.deliver(2, 1, 1)
        assert not bodies(script, 1, 2, Append)  # nothing of it is sent again
        script.deliver(2, 1)
        assert committed(script, *large)
        replay(script, 1, 2, sent[0], sent[1])
        assert script.log(2) == script.log(1)
        script.crash(1)
        script.elect(2, 3)
        script.settle(2, 3)
        assert survivors_hold(script, 2, *large)


class TestAcknowledgementOfAnOlderTermCounts:
    """An acknowledgement names no term: one of term 1 that arrives in term 3 counts entries that
    were overwritten since, so two copies of five pass for a majority.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("L", "LFNPQ")
        for value in ("u3", "u4", "u5"):
            cluster.put("L", value)
        cluster.heartbeat("L")
        cluster.deliver("L", "F")  # F's answers stay on their way
        for other in "NPQ":
            cluster.flap("L", other)
        cluster.elect("N", "P", "Q")
        for other in "FLPQ":
            cluster.deliver("N", other)
        for other in "FLPQ":
            if other != "F":
                cluster.deliver(other, "N")
        cluster.tick("N", 0.11)
        for other in "FLPQ":
            cluster.deliver("N", other)
        for other in "NPQ":
            cluster.deliver("L", other)
        cluster.elect("L", "P", "Q")
        for value in ("w5", "w6"):
            cluster.put("L", value)
        cluster.heartbeat("L")
        cluster.deliver("L", "P")
        cluster.deliver("P", "L")  # only P holds w5 and w6
        cluster.tick("L")
        assert not cluster.succeeded("w5")
        cluster.deliver("F", "L")  # of term 1
        cluster.tick("L")
        assert cluster.succeeded("w5")
        cluster.crash("L")
        cluster.crash("P")
        cluster.elect("Q", "F", "N")
        cluster.settle(rounds=6)
        cluster.put("Q", "z")
        cluster.settle(rounds=6)
        assert cluster.lost("Q")[0] == "w5"

    def test_group(self) -> None:
        script = led(5)
        for payload in (b"u3", b"u4", b"u5"):
            script.propose(1, payload)
        for other in (3, 4, 5):
            script.cut(1, other)
            script.connect(1, other)
        script.deliver(1, 2)
        old = bodies(script, 2, 1, Ack)[-1]
        assert isinstance(old, Ack)
        script.elect(3, 4, 5)
        script.settle(1, 2, 3, 4, 5, rounds=4)
        assert script.log(2) == script.log(3)  # the three are overwritten
        script.lead(1)
        for peer in (2, 3, 5):
            script.cut(1, peer)
        for payload in (b"w5", b"w6"):
            script.propose(1, payload)
        script.deliver(1, 4)
        script.deliver(4, 1)
        commit = script.groups[1].status().commit_index
        stale = script.groups[1].counters.acks_stale
        end = script.groups[1].status().last_index
        replay(script, 2, 1, msgspec.structs.replace(old, next_index=end + 1))
        script.step(1)
        assert script.groups[1].status().commit_index == commit
        assert script.groups[1].counters.acks_stale == stale + 1
        assert not committed(script, b"w5")


class TestConflictingFollowerNeverCatchesUp:
    """The answers to frames on their way reset the leader's next index to and fro for ever once
    the leader is more than one batch ahead.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.isolate("A")
        for value in ("t1", "t2", "t3"):
            cluster.put("A", value)
        cluster.tick("A")
        cluster.elect("B", "C")
        for number in range(200):
            cluster.put("B", f"{number}" + "y" * 1000)
        cluster.settle("BC", rounds=6)
        cluster.connect("A", "B")
        cluster.tick("B", 0.11)
        cluster.flap("A", "B")
        cluster.connect("A", "C")
        cluster.settle(rounds=600)  # more than a minute of a perfect network
        assert cluster["A"].log()[-1] != cluster["B"].log()[-1]

    def test_group(self) -> None:
        script = led(config=msgspec.structs.replace(CONFIG, batch_bytes=1000))
        script.isolate(1)
        for payload in (b"t1", b"t2", b"t3"):
            script.propose(1, payload)
        script.elect(2, 3)
        script.settle(2, 3, rounds=6)
        for number in range(200):
            script.propose(2, b"%d" % number + bytes(1000))
            script.settle(2, 3, rounds=1)
        script.connect(1, 2)
        script.step(2)
        script.cut(1, 2)
        script.connect_all()
        script.settle(rounds=30)
        assert script.log(1) == script.log(2)


class TestResetBeyondTheLogStopsReplication:
    """A late reset puts the next index behind the leader's log; the leader then sends no previous
    entry, and a follower with a longer tail of its own answers with one more such reset.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.isolate("A")
        for number in range(20):
            cluster.put("A", number)
        cluster.tick("A")
        cluster.elect("B", "C")
        cluster.settle("BC", rounds=4)
        cluster.connect_all()
        late = {"type": "next_node_idx", "next_node_idx": 20, "reset": True, "success": False}
        cluster.links["A", "B"].append(late)
        cluster.deliver("A", "B")
        cluster.settle(rounds=300)
        assert cluster["B"].next("A") > cluster["B"].log()[-1][0] + 1
        assert cluster["A"].log()[-1] != cluster["B"].log()[-1]

    def test_group(self) -> None:
        script = led()
        script.isolate(1)
        for number in range(20):
            script.propose(1, b"%d" % number)
        script.elect(2, 3)
        script.settle(2, 3, rounds=4)
        script.connect_all()
        term, base = script.groups[2].status().term, script.groups[2].status().last_index
        late = Ack(
            term=term,
            sequence=1 << 30,
            success=False,
            reset=True,
            next_index=base + 15,
            applied_index=0,
            fingerprint=b"",
            wall_ns=0,
            free_bytes=0,
        )
        replay(script, 1, 2, late)
        script.settle(rounds=30)
        assert script.log(1) == script.log(2)


class TestLaggingFollowerIsFlooded:
    """While the leader has dropped entries and has no dump to send, every heartbeat spins for a
    whole period and queues thousands of empty messages to the peer that lags.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A", "AB")
        for number in range(10):
            cluster.put("A", number)
        cluster.settle(rounds=4)
        leader = cluster["A"]
        leader.private("raftLog").deleteEntriesTo(8)
        leader.set_private("raftNextIndex", {library.Node("B"): 3})

        def one_look_costs_20_us() -> float:
            cluster.clock.now_s += 20e-6
            return cluster.clock.now_s

        library.monotonicTime = one_look_costs_20_us
        cluster.tick("A", 0.11)
        assert len(cluster.on_the_way("A", "B")) > 1000

    def test_group(self) -> None:
        script = led(config=msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=0))
        script.isolate(3)
        for number in range(60):
            script.propose(1, b"%d" % number)
            script.settle(1, 2, rounds=2)
        script.settle(1, 2, rounds=60)
        assert script.groups[1].status().first_index > 10
        script.connect_all()
        for _ in range(5):
            script.wait(100 * MS_NS)
            script.step(1)
            script.step(1)
            assert len(script.on_the_way(1, 3)) <= 3
            script.deliver(1, 3)
            script.links[3, 1].clear()


class TestLargeEntryIsCutInWrongPieces:
    """The library marks too many pieces as the last one: its length is that of the command, not
    of what it sends. The receiver's handler raises for each, which ends its TCP connection.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A", "AB")
        command = b"\x00" + library.pickle.dumps((0, (os.urandom(1 << 20),)))
        cluster["A"]._applyCommand(command, None)
        cluster.heartbeat("A")
        last = [m for m in cluster.on_the_way("A", "B") if m.get("transmission") == "finish"]
        assert len(last) > 1
        cluster.deliver("A", "B")
        assert len(cluster.handler_errors) == len(last) - 1

    def test_group(self) -> None:
        script = led()
        payload = os.urandom(1 << 20)
        script.propose(1, payload)
        (sent,) = bodies(script, 1, 2, Append)
        assert isinstance(sent, Append)
        assert len(sent.entries) == 1
        script.settle(rounds=10)
        assert committed(script, payload)
        assert survivors_hold(script, 2, payload)


class TestCommandWaitsForTheNextHeartbeat:
    """With batches, which is the default, a command leaves with the next heartbeat: a tenth of a
    second for a lone one.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.put("A", "alone")
        cluster.tick("A")
        cluster.tick("A", 0.05)
        assert not cluster.on_the_way("A", "B")

    def test_group(self) -> None:
        """It leaves in the step that takes it; no time passes here at all."""
        script = led()
        script.propose(1, b"alone")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert committed(script, b"alone")
