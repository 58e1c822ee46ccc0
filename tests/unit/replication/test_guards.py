"""Directed tests of single guards: schedules that neither the papers nor random search visit."""

import asyncio
from random import Random

import crc32c
import msgspec
import pytest
from tests.regressions.group import bodies, committed, led, replay
from tests.simulation.disk import Crash, SimDisk
from tests.simulation.machine import ListStorage
from tests.simulation.ports import SECOND_NS, SimClock
from tests.simulation.script import CONFIG, Script

from nokv_replication import (
    Applied,
    Committed,
    Fatal,
    Group,
    Identity,
    Member,
    MembershipRefused,
    OutcomeUnknown,
    ProtocolError,
    Role,
    Times,
    endpoint,
    initialise,
    records,
)
from nokv_replication.connection import HELLO_MAX_BYTES, Connection
from nokv_replication.frames import (
    FRAME_MAX_BYTES,
    Ack,
    Append,
    Body,
    EntryKind,
    Frame,
    PreVote,
    PreVoteGranted,
    Probe,
    ProbeOk,
    ReadAnswer,
    ReadAsk,
    Removed,
    RequestVote,
    Stale,
    TimeoutNow,
    Vote,
    encode,
    encode_entry,
)
from nokv_replication.image_frames import (
    ImageBody,
    ImageChunk,
    ImageFrame,
    ImageOffer,
    ImageRefusal,
    ImageRefuse,
    decode_image_frame,
    encode_image_frame,
)
from nokv_replication.log import Log
from nokv_replication.records import BATCH_START, RecordType
from nokv_replication.segments import segment_name
from nokv_replication.tcp import TcpNetwork


def ack(script: Script, *, success: bool, next_index: int) -> Ack:
    """An answer to the leader of the present term, as to its newest frame."""
    return Ack(
        term=script.groups[1].status().term,
        sequence=1 << 30,
        success=success,
        reset=not success,
        next_index=next_index,
        applied_index=0,
        fingerprint=b"",
        wall_ns=0,
        free_bytes=0,
    )


class TestAcknowledgements:
    def test_each_gap_is_filled_once(self) -> None:
        """Frames behind a lost one are refused one by one; only the first refusal is news."""
        script = led()
        script.propose(1, b"lost")
        script.links[1, 2].clear()
        for payload in (b"x", b"y", b"z"):
            script.propose(1, payload)
        script.deliver(1, 2)
        assert len(bodies(script, 2, 1, Ack)) == 3
        for _ in range(3):
            script.deliver(2, 1, 1)
        resent = [f for f in bodies(script, 1, 2, Append) if isinstance(f, Append) and f.entries]
        assert [frame.prev_index for frame in resent] == [2]
        assert script.groups[1].counters.resets_ignored == 2

    def test_a_reset_behind_the_log_does_not_hold_up_new_entries(self) -> None:
        script = led()
        script.isolate(3)
        replay(script, 2, 1, ack(script, success=False, next_index=17))
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert committed(script, b"x")

    def test_nothing_is_acknowledged_before_it_exists(self) -> None:
        script = led()
        script.isolate(3)
        script.propose(1, b"x")
        replay(script, 2, 1, ack(script, success=True, next_index=17))
        script.step(1)
        assert script.groups[1].status().commit_index == 2

    def test_a_conflict_is_answered_with_what_is_certain_to_match(self) -> None:
        script = led()
        script.isolate(1)
        for number in range(9):
            script.propose(1, b"tail%d" % number)
        # Of a leader of term 2 whose entries from 3 on are its own.
        replay(script, 2, 1, Append(2, 8, 2, 2, []))
        (answer,) = bodies(script, 1, 2, Ack)
        assert isinstance(answer, Ack)
        assert (answer.reset, answer.next_index) == (True, 3)


class TestApplying:
    def test_a_waiter_of_another_term_is_not_told_of_success(self) -> None:
        script = led()
        told: list[object] = []
        script.propose(1, b"x")
        applier = script.groups[1]._applier
        applier._waiters[3] = type(applier._waiters[3])(99, [told.append], 0)
        script.deliver(1, 2)
        script.deliver(2, 1)
        assert [type(outcome) for outcome in told] == [OutcomeUnknown]

    def test_time_that_falls_stops_the_node(self) -> None:
        script = led()
        script.groups[1]._core.append(encode_entry(Times(0, 0), [], EntryKind.TICK))
        script.step(1)
        script.deliver(1, 2)
        with pytest.raises(Fatal, match="time falls"):
            script.deliver(2, 1)

    def test_a_follower_applies_nothing_that_it_has_not_synced(self) -> None:
        """Entries that come with a commit index that covers them are synced first."""
        script = led()
        script.isolate(3)
        script.propose(1, b"x")
        script.deliver(1, 2)
        script.deliver(2, 1)
        script.connect(1, 3)
        script.step(1)
        script.disks[3].crash_at("fdatasync", 1, after=False)
        with pytest.raises(Crash):
            script.deliver(1, 3)
        assert script.machines[3].applied.index == 2
        script.crash(3)
        script.start(3)
        script.connect_all()
        script.settle(rounds=10)
        assert script.machines[3].items == [b"x"]

    def test_a_single_voter_applies_nothing_that_it_has_not_synced(self) -> None:
        """Its own copy is a majority at once, and durable only after the sync."""
        script = Script(1)
        script.wait(2 * SECOND_NS)
        script.disks[1].crash_at("fdatasync", 1, after=False)
        with pytest.raises(Crash):
            script.step(1)
        assert script.machines[1].applied.index == 0


class Joined(Script):
    """A group of one that another node has joined as a learner."""

    def __init__(self) -> None:
        self.founders = {1: "node-1:1"}
        super().__init__(1)
        self.lead(1)
        told: list[object] = []
        self.groups[1].add_member(Member(2, 102, "node-2:1"), told.append)
        self.step(1)
        self.step(1)
        assert isinstance(told[0], Committed)
        self.addresses[2] = "node-2:1"
        self.disks[2], self.storages[2] = SimDisk(), ListStorage()
        self.clocks[2], self.incarnations[2] = SimClock(0, 0), 102
        initialise(self.disks[2], self.config, self.identity(2), Random(2))
        self.start(2)
        self.connect(1, 2)
        self.settle()
        assert self.log(2) == self.log(1)

    def identity(self, node: int) -> Identity:
        return Identity("scripted", node, self.incarnations[node], joining=node == 2)

    def start(self, node: int) -> Group:
        known, self.addresses = self.addresses, self.founders
        try:
            return super().start(node)
        finally:
            self.addresses = known


class TestSingleVoter:
    def test_a_term_is_durable_before_its_entries_leave(self) -> None:
        """A single voter stands, leads and appends in one step. Its learner must get none of that
        before it is synced: after a power cut the same term comes again, with other entries.
        """
        script = Joined()
        script.crash(1)
        script.start(1)
        script.connect(1, 2)
        script.wait(2 * SECOND_NS)
        script.disks[1].crash_at("fdatasync", 1, after=False)
        with pytest.raises(Crash):
            script.step(1)
        assert not bodies(script, 1, 2, Append)
        script.crash(1, power=True)
        script.start(1)
        script.connect(1, 2)
        script.wait(2 * SECOND_NS)
        script.settle()
        assert script.groups[1].status().term == 2
        assert script.log(2) == script.log(1)

    def test_a_learner_never_stands_and_has_no_vote(self) -> None:
        script = Joined()
        script.crash(1)
        for _ in range(50):
            script.wait(100_000_000)
            script.step(2)
        assert (script.role(2), script.groups[2].status().term) == (Role.FOLLOWER, 1)

    def test_a_learner_that_caught_up_becomes_a_voter(self) -> None:
        script = Joined()
        told: list[object] = []
        script.groups[1].promote_member(2, told.append)
        script.settle()
        assert isinstance(told[0], Committed)
        script.cut(1, 2)
        script.propose(1, b"x")
        script.step(1)
        assert not committed(script, b"x")  # two voters: one is no majority any more


class TestStrangers:
    """Node 3 was removed, and its connections stand still: nothing it says counts."""

    @staticmethod
    def without_node_3() -> Script:
        script = led()
        script.groups[1].remove_member(3, lambda _outcome: None)
        script.step(1)
        script.settle(1, 2)
        assert [member.node for member in script.groups[2].status().members] == [1, 2]
        return script

    @staticmethod
    def says(script: Script, to: int, body: Body) -> None:
        group = script.groups[to]
        group._receiver.handle(3, 1 << 30, body, group._now_ns)
        script.step(to)

    def test_its_acknowledgement_commits_nothing(self) -> None:
        script = self.without_node_3()
        script.propose(1, b"x")
        end = script.groups[1].status().last_index
        self.says(script, 1, ack(script, success=True, next_index=end + 1))
        assert script.groups[1].status().commit_index == end - 1

    def test_its_confirmation_serves_no_read(self) -> None:
        script = self.without_node_3()
        script.read(1)
        (probe,) = bodies(script, 1, 2, Probe)
        assert isinstance(probe, Probe)
        self.says(script, 1, ProbeOk(probe.term, probe.nonce))
        assert script.reads == []

    def test_its_pre_vote_is_no_majority(self) -> None:
        script = self.without_node_3()
        script.crash(1)
        script.wait(2 * SECOND_NS)
        script.step(2)
        term, round_ = script.groups[2].status().term, script.groups[2]._pre_votes._round
        self.says(script, 2, PreVoteGranted(term, round_))
        assert script.role(2) == Role.FOLLOWER

    def test_its_vote_is_no_majority(self) -> None:
        script = self.without_node_3()
        script.groups[1].transfer(2, lambda _outcome: None)
        script.step(1)
        script.deliver(1, 2)
        assert script.role(2) == Role.CANDIDATE
        self.says(script, 2, Vote(script.groups[2].status().term))
        assert script.role(2) == Role.CANDIDATE

    def test_a_removal_that_leaves_no_quorum_is_refused(self) -> None:
        script = led()
        script.crash(2)
        script.wait(SECOND_NS)
        script.settle(1, 3, rounds=60)
        told: list[object] = []
        script.groups[1].remove_member(3, told.append)
        script.step(1)
        assert isinstance(told[0], MembershipRefused)

    def test_a_transfer_bypasses_the_pre_vote_once(self) -> None:
        script = led()
        group = script.groups[2]
        group._receiver.handle(1, 1, TimeoutNow(1), group._now_ns)
        group._core.expire_election(script.now_ns + 10 * SECOND_NS)  # and the timer has not fired
        script.step(2)
        group._core.expire_election()
        script.step(2)
        assert script.role(2) == Role.FOLLOWER
        assert bodies(script, 2, 1, PreVote)

    def test_a_request_to_stand_that_came_too_late_is_forgotten(self) -> None:
        """Another candidate of the next term was faster; its heartbeats put elections off."""
        script = led()
        script.groups[3]._receiver.handle(1, 1, TimeoutNow(1), script.groups[3]._now_ns)
        script.step(3)
        script.groups[2]._receiver.handle(1, 1, TimeoutNow(1), script.groups[2]._now_ns)
        script.deliver(3, 2)
        script.deliver(2, 3)
        assert (script.role(3), script.groups[3].status().term) == (Role.LEADER, 2)
        script.settle(rounds=4)
        before = script.groups[2].counters.pre_votes_started
        script.settle(rounds=100)
        assert script.groups[2].counters.pre_votes_started == before
        assert script.role(3) == Role.LEADER


class TestRemoved:
    """That a node was removed is believed of members, until a leader sends it entries."""

    def test_a_stranger_is_not_believed(self) -> None:
        script = led()
        script.join(4)
        script.groups[3]._receiver.handle(4, 1, Removed(1), script.groups[3]._now_ns)
        assert not script.groups[3].status().removed

    def test_a_leader_proves_the_contrary(self) -> None:
        script = led()
        script.groups[3]._receiver.handle(2, 1, Removed(1), script.groups[3]._now_ns)
        assert script.groups[3].status().removed
        script.settle(rounds=10)
        assert not script.groups[3].status().removed
        script.elect(3, 1, 2)


class TestInbox:
    """What a peer sends between two steps."""

    @staticmethod
    def send(script: Script, sender: int, receiver: int, body: Body) -> None:
        peer = script.groups[receiver]._peers[sender]
        frame = Frame(sender, peer.epoch, peer.received_sequence + 1, body)
        script.groups[receiver].receive(sender, encode(frame))

    def flood(self, script: Script, count: int) -> None:
        for _ in range(count):
            self.send(script, 2, 1, ReadAsk(1, 1))

    def test_it_is_bounded_for_each_peer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint, "INBOX_MAX_BYTES", 8192)
        script = led()
        for _ in range(2):  # a step makes room again
            self.flood(script, 8)
            with pytest.raises(ProtocolError, match="faster"):
                self.flood(script, 8)
            self.send(script, 3, 1, ReadAsk(1, 1))
            script.step(1)

    def test_questions_of_followers_are_bounded_and_refused_beyond(self) -> None:
        script = Script(3, config=msgspec.structs.replace(CONFIG, reads_max=4))
        script.lead(1)
        script.settle()
        term = script.groups[1].status().term
        for _ in range(3):  # of several steps together: no round is confirmed
            for nonce in (1, 2, 3):
                self.send(script, 2, 1, ReadAsk(term, nonce))
            script.step(1)
        answers = bodies(script, 1, 2, ReadAnswer)
        assert [answer.ok for answer in answers if isinstance(answer, ReadAnswer)] == [False] * 5
        script.deliver(1, 3)
        script.deliver(3, 1)  # four are confirmed: there is room again
        self.send(script, 2, 1, ReadAsk(term, 9))
        script.step(1)
        answers = bodies(script, 1, 2, ReadAnswer)[5:]
        assert [answer.ok for answer in answers if isinstance(answer, ReadAnswer)] == [True] * 4

    def test_frames_of_a_lost_connection_are_lost(self) -> None:
        """Who said it was known of that connection; the next may be another incarnation's."""
        script = led()
        self.send(script, 2, 3, Stale(99))
        script.cut(2, 3)
        script.connect(2, 3)
        script.step(3)
        assert script.groups[3].status().term == 1


class TestFounding:
    def test_no_vote_before_the_members_are_known(self) -> None:
        script = Script(3, found=False)
        script.connect(1, 2)
        replay(script, 1, 2, RequestVote(1, 0, 0))
        assert script.groups[2]._core.term() == 0
        assert not script.groups[2]._log.dirty


class TestRecords:
    def test_a_record_inside_a_payload_is_none(self) -> None:
        """It would prove that a torn record before it was synced: the salt keeps it from that."""
        config = msgspec.structs.replace(CONFIG, segment_bytes=4096)
        identity, disk = Identity("c", 1, 11), SimDisk()
        initialise(disk, config, identity, Random(1))
        log = Log.open(disk, config, identity, Random(2))
        inner = bytearray(-records.PREFIX_BYTES % records.ALIGNMENT)
        records.encode_into(inner, RecordType.ENTRY | BATCH_START, 1, 1, b"inner", 0)
        start = log._segments[-1].used_bytes
        log.append(bytes(inner), 1, 1)
        log.sync()
        disk.kill()
        disk.flip(segment_name(1), start)
        assert Log.open(disk, config, identity, Random(3)).last_index == 0


class TestImages:
    """Node 2 is offered an image by a peer that says what a correct one never says."""

    @staticmethod
    def offered(*frames: ImageBody, term: int, of: int = 1) -> Script:
        script = led()
        script.isolate(3)
        script.groups[2]._core.adopt_term(2)
        script.dialed_images.append((1, 2))
        script.connect_images()
        offer = ImageOffer(term, 77, msgspec.msgpack.encode(Applied(99, of)), 100)
        for sequence, body in enumerate((offer, *frames), 1):
            data = encode_image_frame(ImageFrame(1, script._epoch, sequence, body))
            script.groups[2].receive_image(1, data, outgoing=False)
        script.step(2)
        return script

    def answers(self, *frames: ImageBody, term: int = 1, of: int = 1) -> list[ImageBody]:
        script = self.offered(*frames, term=term, of=of)
        return [decode_image_frame(data).body for data in script.images[1, 2][1]]

    def test_an_offer_tells_of_a_newer_term(self) -> None:
        assert self.offered(term=3).groups[2]._core.term() == 3

    def test_an_offer_of_a_term_that_is_still_to_come_is_refused(self) -> None:
        (refusal,) = self.answers(term=2, of=3)
        assert isinstance(refusal, ImageRefuse)
        assert refusal.reason == ImageRefusal.DAMAGED

    def test_an_offer_of_an_old_term_is_refused(self) -> None:
        (refusal,) = self.answers(term=1)
        assert isinstance(refusal, ImageRefuse)
        assert refusal.reason == ImageRefusal.OLD_TERM

    def test_a_piece_with_a_wrong_checksum_ends_it(self) -> None:
        _, refusal = self.answers(ImageChunk(77, 0, 5, b"piece"), term=2)
        assert isinstance(refusal, ImageRefuse)
        assert (refusal.reason, "checksum" in refusal.message) == (ImageRefusal.DAMAGED, True)

    def test_a_missing_piece_ends_it(self) -> None:
        piece = msgspec.msgpack.encode([1, Applied(99, 1), 0, b""])
        chunk = ImageChunk(77, 10, crc32c.crc32c(piece), piece)
        _, refusal = self.answers(chunk, term=2)
        assert isinstance(refusal, ImageRefuse)
        assert refusal.reason == ImageRefusal.DAMAGED


class TestConnections:
    @pytest.mark.parametrize(
        ("peer", "limit"), [(None, HELLO_MAX_BYTES), (2, FRAME_MAX_BYTES)], ids=["hello", "frame"]
    )
    def test_a_length_over_the_limit_is_refused_before_its_bytes(
        self, peer: int | None, limit: int
    ) -> None:
        async def take() -> None:
            network = TcpNetwork(1, "127.0.0.1:1", {2: "127.0.0.1:2"}, Random(1))
            connection = Connection(network)
            connection.peer = peer
            connection._take(limit.to_bytes(4, "big"))  # the rest may come
            with pytest.raises(ProtocolError, match="is the limit"):
                Connection(network, 2)._take((FRAME_MAX_BYTES + 1).to_bytes(4, "big"))

        asyncio.run(take())
