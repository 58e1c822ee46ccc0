"""Applying as shipped: exceptions, callbacks, forwarded commands."""

from collections.abc import Iterator

import pytest
from tests.regressions.group import led, survivors_hold
from tests.regressions.stock import SUCCESS, StockCluster, library
from tests.simulation.ports import SECOND_NS

from nokv_replication import Committed, NotLeader, OutcomeUnknown


def ticked(cluster: StockCluster, error: type[Exception], rounds: int) -> int:
    """Settle nodes whose ticks may raise; return how many did."""
    raised = 0
    for _ in range(rounds):
        cluster.clock.now_s += 0.11
        for name in cluster.nodes:
            try:
                cluster.tick(name)
            except error:
                raised += 1
        for one in cluster.nodes:
            for other in cluster.nodes:
                cluster.deliver(one, other)
    return raised


class TestExceptionOfACallbackAppliesTwice:
    """An exception of a client's callback leaves the entry unaccounted: that node applies it again,
    and differs from the others.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")

        def broken(_result: object, _reason: int) -> None:
            message = "a client's mistake"
            raise ValueError(message)

        cluster["A"].put("once", callback=broken)
        cluster["A"].put("after")
        assert ticked(cluster, ValueError, 8) == 1
        assert cluster["A"].applied == ["once", "once", "after"]
        assert cluster["B"].applied == ["once", "after"]

    def test_group(self) -> None:
        script = led()

        def broken(_outcome: object) -> None:
            message = "a client's mistake"
            raise ValueError(message)

        script.groups[1].propose(b"once", broken)
        script.step(1)
        script.deliver(1, 2)
        with pytest.raises(ValueError, match="mistake"):
            script.deliver(2, 1)
        assert script.machines[1].items == [b"once"]
        with pytest.raises(AssertionError, match="must exit"):
            script.groups[1].step()
        script.crash(1)
        script.start(1)
        script.connect_all()
        script.elect(2, 1, 3)
        script.settle()
        assert all(machine.items == [b"once"] for machine in script.machines.values())


class TestExceptionOfApplyIsRetriedForEver:
    """An exception while applying is retried in every tick, before heartbeats: no node of the
    cluster does anything else ever again.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        for node in cluster.nodes.values():
            node.poison = "poison"
        cluster.put("A", "poison")
        cluster.put("A", "after")
        term = cluster["A"].raftCurrentTerm
        assert ticked(cluster, RuntimeError, 400) > 400
        assert all(node.applied == [] for node in cluster.nodes.values())
        assert "after" not in cluster.results
        assert max(node.raftCurrentTerm for node in cluster.nodes.values()) > term + 10

    def test_group(self) -> None:
        """Only the node whose machine raises stops, at once and for good; the others go on."""
        script = led()

        def broken(*_args: object) -> Iterator[bytes]:
            message = "the map is full"
            raise MemoryError(message)
            yield b""

        script.groups[2]._applier._machine._inner.apply = broken  # type: ignore[attr-defined]
        script.propose(1, b"poison")
        with pytest.raises(MemoryError):
            script.settle(rounds=10)
        script.crash(2)
        script.propose(1, b"after")
        script.settle(1, 3)
        assert isinstance(script.outcomes[b"after"], Committed)


class TestUnknownCodeVersionAppliesTheNextEntryTwice:
    """An entry that asks for a newer code version is not accounted for: the rest of its batch is
    applied twice.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster["A"]._applyCommand(library.pickle.dumps(7), None, 3)
        for value in "xyz":
            cluster.put("A", value)
        cluster.settle(rounds=8)
        assert cluster["B"].applied.count("z") == 2

    def test_group(self) -> None:
        """An entry of a newer format stops the node before anything of it is applied."""
        script = led()
        entry = b"\x95\x7f" + b"\0" * 2 + b"\x90\0"
        script.groups[1]._core.append(entry)
        script.propose(1, b"z")
        with pytest.raises(Exception, match="format 127"):
            script.settle(rounds=5)
        assert all(b"z" not in machine.items for machine in script.machines.values())


class TestForwardedCommandIsNeverAnswered:
    """A command that a follower forwards is lost with its connection, and nobody is told."""

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.put("B", "forwarded")
        cluster.tick("B")
        cluster.flap("A", "B")
        cluster.settle(rounds=200)
        assert "forwarded" not in cluster.results
        assert "forwarded" not in cluster["A"].applied
        assert len(cluster["B"].private("commandsWaitingReply")) == 1

    def test_group(self) -> None:
        """Nothing is forwarded: a follower names the leader at once."""
        script = led()
        script.propose(2, b"x")
        outcome = script.outcomes[b"x"]
        assert isinstance(outcome, NotLeader)
        assert outcome.leader == 1


class TestReplyOfAnOldProcessAnswersANewCommand:
    """Request numbers begin at 1 again with each process: the reply to an old command tells the
    client of a new one SUCCESS, and that one never ran.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.put("B", "old")
        cluster.tick("B")
        cluster.deliver("B", "A")
        cluster.crash("B")
        cluster.start("B")
        cluster.connect("A", "B")
        cluster.connect("B", "C")
        cluster["B"].set_private("raftLeader", library.Node("A"))
        cluster.tick("A", 0.11)
        cluster.put("B", "new")
        cluster.tick("B")
        cluster.deliver("A", "B")
        cluster.flap("A", "B")  # the new command is lost
        cluster.settle(rounds=6)
        assert cluster.results["new"][1] == SUCCESS
        assert "new" not in cluster["A"].applied

    def test_group(self) -> None:
        """A proposal is answered by the process that took it, or not at all."""
        script = led()
        script.propose(1, b"old")
        script.crash(1)
        script.start(1)
        script.connect_all()
        script.elect(1, 2, 3)
        script.propose(1, b"new")
        script.isolate(1)
        script.elect(2, 3)
        script.settle(2, 3)
        script.wait(3 * SECOND_NS)
        script.step(1)
        assert b"old" not in script.outcomes
        assert isinstance(script.outcomes[b"new"], OutcomeUnknown | NotLeader)
        assert not survivors_hold(script, 2, b"new")


class TestQueuedCommandIsReportedAsFailed:
    """Without batches a wake-up pipe fills at 65,536 commands: the call raises, and the command
    runs all the same.
    """

    def test_stock(self) -> None:
        cluster = StockCluster("A", appendEntriesUseBatch=False)
        cluster.expire("A")
        number = 0

        def fill() -> None:
            nonlocal number
            for number in range(70_000):
                cluster["A"].put(number)

        with pytest.raises(BlockingIOError):
            fill()
        for _ in range(3):
            cluster.tick("A", 0.11)
        assert number in cluster["A"].applied

    def test_group(self) -> None:
        """A refused proposal has not entered the log, and every accepted one is answered once."""
        script = led(1)
        told: dict[int, list[object]] = {
            n: [] for n in range(script.config.queue_max_proposals + 9)
        }
        for number, outcomes in told.items():
            script.groups[1].propose(b"%d" % number, outcomes.append)
        refused = {n for n, outcomes in told.items() if outcomes}
        assert len(refused) == 9
        script.settle(1, rounds=8)
        assert {len(outcomes) for outcomes in told.values()} == {1}
        held = set(script.machines[1].items)
        assert held == {b"%d" % n for n in told if n not in refused}
