"""State images as shipped: what a snapshot does to a follower's log, state and waiting clients."""

import os

import msgspec
from tests.regressions.group import committed, led, survivors_hold
from tests.regressions.stock import StockCluster
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Applied, OutcomeUnknown
from nokv_replication.image_frames import (
    ImageBody,
    ImageEnd,
    ImageFrame,
    ImageOffer,
    ImageRefusal,
    ImageRefuse,
    decode_image_frame,
    encode_image_frame,
)

SMALL_LOG = msgspec.structs.replace(CONFIG, segment_bytes=1024, log_keep_bytes=2048)


def away_and_compacted(cluster: StockCluster) -> None:
    """B was away while A and C committed twenty entries and compacted their logs."""
    for number in range(20):
        cluster.put("A", f"old{number}")
    cluster.heartbeat("A")
    cluster.cut("A", "B")
    cluster.cut("B", "C")
    cluster.settle("AC", rounds=4)
    cluster["A"].forceLogCompaction()
    cluster.settle("AC", rounds=4)


def group_away_and_compacted(count: int = 60) -> Script:
    """Node 2 was away while the others committed, and dropped what it needs from their logs."""
    script = led(config=SMALL_LOG)
    script.isolate(2)
    for number in range(count):
        script.propose(1, b"old%d" % number)
        script.settle(1, 3, rounds=2)
    script.settle(1, 3, rounds=60)
    assert script.groups[1].status().first_index > 10
    return script


class TestOldSnapshotReplacesNewerState:
    """Each heartbeat on its way earns one more reset, each reset one more copy of the snapshot,
    and no snapshot names its index: a follower that is ahead of one installs it all the same.
    """

    def test_stock_state_goes_backwards(self) -> None:
        cluster = StockCluster.led_by("A")
        away_and_compacted(cluster)
        cluster.connect("A", "B")
        cluster.tick("A", 0.11)
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B")
        cluster.deliver("B", "A", 1)
        for number in range(3):
            cluster.put("A", f"new{number}")
        cluster.heartbeat("A")
        for _ in range(2):
            cluster.deliver("A", "C")
            cluster.deliver("C", "A")
            cluster.tick("A")
        cluster.deliver("B", "A", 1)
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B", 4)
        cluster.tick("B")
        before = len(cluster["B"].applied)
        cluster.deliver("A", "B", 1)
        cluster.tick("B")
        assert len(cluster["B"].applied) < before

    def test_stock_acknowledged_entries_are_lost(self) -> None:
        cluster = StockCluster.led_by("A")
        away_and_compacted(cluster)
        cluster.crash("C")
        cluster.connect("A", "B")
        cluster.tick("A", 0.11)
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B")
        cluster.deliver("B", "A", 1)
        for number in range(3):
            cluster.put("A", f"new{number}")
        cluster.heartbeat("A")
        cluster.deliver("B", "A", 1)
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B", 3)
        cluster.tick("B")
        cluster.deliver("B", "A")
        cluster.tick("A")
        assert cluster.succeeded("new2")
        cluster.deliver("A", "B", 2)  # the second copy alone; the rest is lost with A
        cluster.tick("B")
        cluster.crash("A")
        cluster.start("C")
        cluster.connect("B", "C")
        cluster.elect("B", "C")
        cluster.settle(rounds=4)
        assert cluster.lost("B") == ["new0", "new1", "new2"]

    def test_group_takes_one_image_and_goes_on_with_entries(self) -> None:
        script = group_away_and_compacted()
        for _ in range(3):  # every heartbeat on its way, and every answer, may ask for an image
            script.connect(1, 2)
            script.wait(100 * MS_NS)
            script.step(1)
            script.step(1)
            script.deliver(1, 2)
            script.deliver(2, 1)
            script.cut(1, 2)
        script.connect_all()
        seen = 0
        for number in range(60):
            script.propose(1, b"new%d" % number)
            script.settle(rounds=2)
            applied = script.groups[2].status().applied_index
            assert applied >= seen
            seen = applied
        assert committed(script, b"new59")
        script.settle(rounds=10)
        assert script.groups[2].counters.images_installed == 1
        assert script.machines[2].items == script.machines[1].items

    def test_group_refuses_an_older_image_at_its_offer(self) -> None:
        script = group_away_and_compacted()
        script.connect_all()
        script.settle(rounds=60)
        items = list(script.machines[2].items)
        assert items == script.machines[1].items
        old = msgspec.msgpack.encode(Applied(5, 1))
        script.dialed_images.append((1, 2))
        script.connect_images()
        image_frame(script, 1, 2, ImageOffer(1, 77, old, 100))
        refusal = decode_image_frame(script.images[1, 2][1].pop()).body
        assert refusal == ImageRefuse(77, ImageRefusal.COVERED, "")
        assert script.machines[2].items == items

    def test_group_judges_again_before_it_installs(self) -> None:
        """What was behind when an image was offered may be ahead of it when it is complete."""
        script = led(config=SMALL_LOG)
        script.crash(3)
        script.config = msgspec.structs.replace(CONFIG, segment_bytes=1024)
        script.start(3)  # it keeps all of its log
        script.connect_all()
        script.isolate(2)
        for number in range(60):
            script.propose(1, b"old%d" % number)
            script.settle(1, 3, rounds=2)
        script.settle(1, 3, rounds=60)
        script.connect(1, 2)
        end = received_up_to_its_end(script)
        script.isolate(1)
        script.connect(2, 3)
        script.elect(3, 2)
        script.settle(2, 3)
        items = list(script.machines[2].items)
        assert len(items) == 60
        script.connect(1, 2)
        script.dialed_images.append((1, 2))
        script.connect_images()
        image_frame(script, 1, 2, end)
        assert script.groups[2].counters.images_installed == 0
        assert script.groups[2].counters.images_refused == 1
        assert script.machines[2].items == items


def image_frame(script: Script, dialer: int, other: int, body: ImageBody) -> None:
    """Hand an image frame to a node, on a connection that just began."""
    data = encode_image_frame(ImageFrame(dialer, script._epoch, 1 << 20, body))
    script.groups[other].receive_image(dialer, data, outgoing=False)
    script.step(other)


def received_up_to_its_end(script: Script) -> ImageBody:
    """Let node 2 receive all of an image of node 1 but the last frame, which is returned."""
    for _ in range(300):
        script.wait(20 * MS_NS)
        for node in (1, 2):
            script.step(node)
        script.deliver(1, 2)
        script.deliver(2, 1)
        script.connect_images()
        link = script.images.get((1, 2))
        if link is None:
            continue
        while link[2]:
            body = decode_image_frame(link[2][0]).body
            if isinstance(body, ImageEnd):
                return body
            script.deliver_image(1, 2, 2, 1)
        script.deliver_image(1, 2, 1)
    message = "no image came to its end"
    raise AssertionError(message)


class TestFailedSnapshotIsAcknowledged:
    """A transfer goes on after a reconnect, with a hole; its load fails, the error is swallowed,
    and the follower acknowledges its own log's end: entries without a second copy are committed.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("B", "ABC", logCompactionBatchSize=64)
        plain = cluster.send

        def slow(sender: str, receiver: str, message: dict[str, object]) -> bool:
            if message.get("serialized"):
                cluster.clock.now_s += 0.02  # a piece of a snapshot takes 20 ms to send
            return plain(sender, receiver, message)

        cluster.send = slow  # type: ignore[method-assign]
        cluster.isolate("B")
        for number in range(40):
            cluster.put("B", f"tail{number}")
        cluster.tick("B")
        cluster.elect("A", "C")
        for _ in range(20):
            cluster.put("A", os.urandom(20).hex())
        cluster.settle("AC", rounds=4)
        cluster["A"].forceLogCompaction()
        cluster.settle("AC", rounds=4)
        late = [f"late{number}" for number in range(10)]
        for value in late:
            cluster.put("A", value)
        cluster.tick("A")
        cluster.crash("C")  # from here on they exist in A's log alone
        cluster.connect("A", "B")
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B", 2)
        cluster.tick("B")
        cluster.flap("A", "B")
        for _ in range(40):
            cluster.tick("A", 0.11)
            cluster.deliver("A", "B")
            if cluster.on_the_way("B", "A"):
                break
        cluster.deliver("B", "A")
        cluster.tick("A")
        assert all(cluster.succeeded(value) for value in late)
        held = dict(cluster["B"].log())
        assert [i for i in range(24, cluster["A"].raftCommitIndex + 1) if held.get(i) != 2]

    def test_group(self) -> None:
        script = led(config=SMALL_LOG)
        script.isolate(1)
        for number in range(90):
            script.propose(1, b"tail%d" % number)
        script.elect(2, 3)
        script.settle(2, 3, rounds=8)
        for number in range(60):
            script.propose(2, b"%d" % number)
            script.settle(2, 3, rounds=2)
        script.settle(2, 3, rounds=60)
        late = [b"late%d" % number for number in range(10)]
        script.crash(3)
        for payload in late:
            script.propose(2, payload)
        commit = script.groups[2].status().commit_index
        for _ in range(10):  # connections that break before anything is complete
            script.connect(1, 2)
            script.wait(100 * MS_NS)
            script.step(2)
            script.deliver(2, 1, 1)
            script.deliver(1, 2)
            script.cut(1, 2)
        # Node 1's tail reaches beyond them: its own end must not pass for theirs.
        assert script.groups[1].status().last_index > script.groups[2].status().last_index
        assert script.groups[2].status().commit_index == commit
        assert not committed(script, *late)


class TestSnapshotMessageCommitsTheFollowersOwnTail:
    """Every message of a snapshot moves the commit index to the follower's own log end, matched or
    not: a deposed leader applies its uncommitted entries and tells their clients SUCCESS.
    """

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("B", "ABC", logCompactionBatchSize=64)
        cluster.isolate("B")
        ghosts = [f"ghost{number}" for number in range(5)]
        for value in ghosts:
            cluster.put("B", value)
        cluster.tick("B")
        cluster.elect("A", "C")
        for number in range(20):
            cluster.put("A", f"real{number}")
        cluster.settle("AC", rounds=4)
        cluster["A"].forceLogCompaction()
        cluster.settle("AC", rounds=4)
        cluster.connect("A", "B")
        cluster.tick("A", 0.11)
        cluster.deliver("A", "B", 1)  # one piece of the snapshot
        cluster.tick("B")
        assert cluster["B"].applied == ghosts
        assert all(cluster.succeeded(value) for value in ghosts)

    def test_group(self) -> None:
        script = led(config=SMALL_LOG)
        script.isolate(1)
        ghosts = [b"ghost%d" % number for number in range(5)]
        for payload in ghosts:
            script.propose(1, payload)
        script.elect(2, 3)
        script.settle(2, 3, rounds=8)
        for number in range(60):
            script.propose(2, b"real%d" % number)
            script.settle(2, 3, rounds=2)
        script.settle(2, 3, rounds=60)
        assert script.groups[2].status().first_index > 10
        script.connect_all()
        script.settle(rounds=30)
        assert not set(ghosts) & set(script.machines[1].items)
        assert all(isinstance(script.outcomes[payload], OutcomeUnknown) for payload in ghosts)


class TestWaiterJumpedByASnapshotIsNeverCalled:
    """A deposed leader whose entries a snapshot jumps over never tells their clients anything."""

    def test_stock(self) -> None:
        cluster = StockCluster.led_by("A")
        cluster.isolate("A")
        cluster.put("A", "waits")
        cluster.tick("A")
        cluster.elect("B", "C")
        for number in range(10):
            cluster.put("B", number)
        cluster.settle("BC", rounds=5)
        cluster["B"].forceLogCompaction()
        cluster.settle("BC", rounds=4)
        cluster.connect("A", "B")
        cluster.connect("A", "C")
        cluster.settle(rounds=60)
        assert cluster["A"].raftLastApplied > 10
        assert "waits" not in cluster["A"].applied
        assert "waits" not in cluster.results

    def test_group(self) -> None:
        script = led(config=SMALL_LOG)
        script.isolate(1)
        script.propose(1, b"waits")
        script.elect(2, 3)
        script.settle(2, 3, rounds=8)
        for number in range(60):
            script.propose(2, b"%d" % number)
            script.settle(2, 3, rounds=2)
        script.wait(2 * SECOND_NS)
        script.connect_all()
        script.settle(rounds=60)
        assert isinstance(script.outcomes[b"waits"], OutcomeUnknown)
        assert not survivors_hold(script, 2, b"waits")
