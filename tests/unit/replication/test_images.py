"""State images between scripted nodes: catching up, cuts, damage, old images, crashes, limits."""

from random import Random

import msgspec
import pytest
from tests.simulation.disk import Crash
from tests.simulation.machine import ListMachine, ListSink, ListSource
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import Script
from tests.unit.replication.image_scripts import (
    SMALL,
    caught_up,
    fallen_behind,
    frames,
    pump,
    to_offer,
    until,
)

from nokv_replication import (
    Applied,
    Committed,
    ImageRefused,
    ProtocolError,
    Role,
)
from nokv_replication.image_frames import (
    ImageAck,
    ImageChunk,
    ImageInstalled,
    ImageOffer,
    ImageRefusal,
    ImageRefuse,
    decode_image_frame,
    decode_position,
    encode_image_frame,
)
from nokv_replication.image_sender import Stage


class TestCatchingUp:
    def test_a_node_too_far_behind_catches_up_by_itself(self) -> None:
        script = fallen_behind()
        script.connect_all()
        until(script, lambda: caught_up(script, 3))
        status = script.groups[3].status()
        assert status.problem == ""
        assert status.counters.images_installed == 1
        assert script.groups[1].status().counters.images_sent == 1
        assert script.groups[3]._applier.fingerprint() == script.groups[1]._applier.fingerprint()

    def test_it_takes_proposals_and_votes_afterwards(self) -> None:
        script = fallen_behind()
        script.connect_all()
        until(script, lambda: caught_up(script, 3))
        script.isolate(2)
        script.propose(1, b"after")
        script.settle(1, 3)
        assert isinstance(script.outcomes[b"after"], Committed)
        script.connect_all()
        script.elect(3, 1, 2)
        script.settle()
        script.propose(3, b"led")
        script.settle()
        assert isinstance(script.outcomes[b"led"], Committed)

    def test_the_group_commits_while_an_image_is_sent(self) -> None:
        config = msgspec.structs.replace(SMALL, image_bytes_per_second=50_000)
        script = fallen_behind(config=config, entries=400)
        script.connect_all()
        sent = 0
        while not script.groups[3].counters.images_installed:
            payload = b"during %d" % sent
            script.propose(1, payload)
            script.settle(rounds=2)
            assert isinstance(script.outcomes[payload], Committed)
            sent += 1
            assert sent < 500
        assert sent > 10
        until(script, lambda: caught_up(script, 3))

    def test_the_log_after_the_image_is_kept_until_the_receiver_has_it(self) -> None:
        config = msgspec.structs.replace(SMALL, image_bytes_per_second=20_000)
        script = fallen_behind(config=config)
        script.connect_all()
        until(script, lambda: script.groups[3].status().images)
        (image,) = script.groups[3].status().images
        for i in range(40):
            script.propose(1, b"more %d" % i + bytes(100))
            script.settle(rounds=1)
            kept = script.groups[1]._log.base_index
            installed = script.groups[3].status().counters.images_installed
            assert installed or kept <= image.index
        until(script, lambda: caught_up(script, 3))
        assert script.groups[3].status().counters.images_installed == 1
        script.settle(rounds=20)
        assert script.groups[1]._images.sender.keep_index() is None
        assert script.groups[1]._log.base_index > image.index

    def test_two_receivers_share_one_image_and_a_third_waits(self) -> None:
        config = msgspec.structs.replace(SMALL, image_bytes_per_second=20_000)
        script = Script(7, config=config)
        script.lead(1)
        script.settle()
        for node in (5, 6, 7):
            script.isolate(node)
        for i in range(150):
            script.propose(1, b"%d" % i + bytes(100))
            script.settle(1, 2, 3, 4, rounds=2)
        script.settle(1, 2, 3, 4, rounds=20)
        script.connect_all()
        until(script, lambda: len(script.groups[1].status().images) == 2)
        images = script.groups[1].status().images
        assert {image.index for image in images} == {images[0].index}
        until(script, lambda: all(caught_up(script, n) for n in (5, 6, 7)), rounds=4000)
        assert script.groups[1].status().counters.images_sent == 3

    def test_the_rate_is_kept(self) -> None:
        config = msgspec.structs.replace(
            SMALL, image_bytes_per_second=10_000, image_window_bytes=1 << 20
        )
        script = fallen_behind(config=config, entries=150)
        script.connect_all()
        start_ns = script.now_ns
        until(script, lambda: caught_up(script, 3), rounds=2000)
        size = script.groups[3].status().counters.image_bytes_received
        assert size > 15_000
        assert (script.now_ns - start_ns) * 10_000 >= (size - 10_000) * SECOND_NS

    def test_no_more_than_the_window_is_on_its_way(self) -> None:
        script = fallen_behind(entries=300)
        script.connect_all()
        to_offer(script)
        script.deliver_image(1, 3, 3)
        script.deliver_image(1, 3, 1)
        for _ in range(100):
            script.wait(MS_NS)
            script.step(1)
        chunks = [f.body for f in frames(script, 3) if isinstance(f.body, ImageChunk)]
        assert len(chunks) > 1
        total = sum(len(chunk.piece) for chunk in chunks)
        assert total < SMALL.image_window_bytes + len(chunks[-1].piece) + 2500


class TestCuts:
    def test_a_cut_transfer_goes_on_where_it_was(self) -> None:
        script = fallen_behind(entries=400)
        script.connect_all()
        to_offer(script)
        pump(script, 12)
        (before,) = script.groups[3].status().images
        assert before.done_bytes > 4000
        script.cut_image(1, 3)
        until(script, lambda: caught_up(script, 3))
        counters = script.groups[1].status().counters
        assert counters.images_resumed == 1
        assert script.groups[3].status().counters.images_installed == 1
        received = script.groups[3].status().counters.image_bytes_received
        assert received < counters.image_bytes_sent + 1
        assert counters.image_bytes_sent - received < 2 * SMALL.image_window_bytes

    def test_cuts_at_every_point_end_well(self) -> None:
        rng = Random(7)
        script = fallen_behind(entries=400)
        script.connect_all()
        for _ in range(12):
            script.settle(rounds=rng.randint(1, 12))
            script.cut_image(1, 3)
        until(script, lambda: caught_up(script, 3))

    def test_a_receiver_that_was_restarted_begins_anew(self) -> None:
        script = fallen_behind(entries=400)
        script.connect_all()
        to_offer(script)
        pump(script, 12)
        script.crash(3)
        script.start(3)
        script.connect_all()
        until(script, lambda: caught_up(script, 3))
        assert script.groups[3].status().counters.images_installed == 1

    def test_a_new_leader_begins_anew(self) -> None:
        script = fallen_behind(entries=400)
        script.connect_all()
        to_offer(script)
        pump(script, 12)
        script.crash(1)
        script.elect(2, 3)
        script.settle(2, 3, rounds=100)
        assert script.machines[3].items == script.machines[2].items
        assert script.groups[2].status().counters.images_sent == 1

    def test_an_image_that_nobody_takes_is_let_go(self) -> None:
        script = fallen_behind()
        script.connect_all()
        to_offer(script)
        pump(script, 6)
        script.isolate(3)
        assert script.groups[1]._images.sender.keep_index() is not None
        script.wait(SMALL.image_hold_ns)
        script.settle(1, 2, rounds=20)
        assert script.groups[1]._images.sender.keep_index() is None
        assert script.groups[1].status().images == ()
        script.wait(SMALL.image_hold_ns)
        script.step(3)
        script.step(3)
        assert script.groups[3].status().images == ()

    def test_a_silent_receiver_loses_its_connection(self) -> None:
        script = fallen_behind(entries=300)
        script.connect_all()
        to_offer(script)
        script.deliver_image(1, 3, 3)
        script.deliver_image(1, 3, 1)
        script.step(1)
        assert (1, 3) in script.images
        script.wait(SMALL.image_timeout_ns)
        # Its peers are heard, or it would step down.
        for _ in range(4):
            script.step(1)
            script.deliver(1, 2)
            script.deliver(2, 1)
        assert (1, 3) not in script.images or script.role(1) != Role.LEADER


class TestBadImages:
    @pytest.mark.parametrize("bit", [0, 17, 1000])
    def test_one_bit_wrong_on_the_way_is_refused_and_sent_again(self, bit: int) -> None:
        script = fallen_behind(entries=200)
        script.connect_all()
        to_offer(script)
        script.deliver_image(1, 3, 3)
        script.deliver_image(1, 3, 1)
        queue = script.images[1, 3][3]
        frame = decode_image_frame(queue.pop())
        assert isinstance(frame.body, ImageChunk)
        piece = bytearray(frame.body.piece)
        at = bit % (8 * len(piece))
        piece[at // 8] ^= 1 << at % 8
        body = msgspec.structs.replace(frame.body, piece=bytes(piece))
        queue.append(encode_image_frame(msgspec.structs.replace(frame, body=body)))
        script.deliver_image(1, 3, 3)
        (refusal,) = [f.body for f in frames(script, 1) if isinstance(f.body, ImageRefuse)]
        assert refusal.reason == ImageRefusal.DAMAGED
        assert "checksum" in refusal.message
        until(script, lambda: caught_up(script, 3))
        assert script.groups[1].status().counters.images_failed == 1

    def test_damage_that_checksums_miss_fails_the_digest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = fallen_behind(entries=200)
        real = ListSource.read
        damaged = 0

        def read(self: ListSource) -> bytes:
            nonlocal damaged
            piece = real(self)
            if len(piece) > 1000 and damaged < 2:
                damaged += 1
                return piece[:-1] + bytes([piece[-1] ^ 1])
            return piece

        monkeypatch.setattr(ListSource, "read", read)
        script.connect_all()
        until(script, lambda: script.groups[1].status().counters.images_failed == 1)
        assert "digest" in script.groups[1]._images.sender._transfers[3].reason
        until(script, lambda: caught_up(script, 3))

    def test_the_pause_grows_with_each_refusal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = fallen_behind()

        def refuse(_self: ListMachine, _applied: Applied) -> ListSink:
            raise ImageRefused("no room")

        monkeypatch.setattr(ListMachine, "receive", refuse)
        script.connect_all()
        moments = []
        for failures in (1, 2, 3):
            for _ in range(2000):
                if script.groups[1].counters.images_failed == failures:
                    break
                script.settle(rounds=1)
            moments.append(script.now_ns)
        assert script.groups[1].counters.images_failed == 3
        assert moments[2] - moments[1] > 1.5 * (moments[1] - moments[0])
        monkeypatch.undo()
        until(script, lambda: caught_up(script, 3), rounds=2000)

    def test_bytes_that_make_no_sense_cost_the_connection_only(self) -> None:
        script = fallen_behind()
        script.connect_all()
        to_offer(script)
        rng = Random(3)
        (offer,) = script.images[1, 3][3]
        for _ in range(300):
            mutated = bytearray(offer)
            mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
            try:
                script.groups[3]._images.receive(1, bytes(mutated), outgoing=False)
            except ProtocolError:
                continue
            # It is a frame like another: the offer of another image, say.
            script.groups[3]._images._links[1, False].received_sequence = 0
        script.groups[3]._images._inbox.clear()
        for data in (b"", b"\x00", rng.randbytes(100)):
            with pytest.raises(ProtocolError):
                script.groups[3].receive_image(1, data, outgoing=False)
        until(script, lambda: caught_up(script, 3), rounds=2000)

    def test_a_frame_in_the_wrong_direction_or_twice_is_none(self) -> None:
        script = fallen_behind()
        script.connect_all()
        to_offer(script)
        (data,) = script.images[1, 3][3]
        frame = decode_image_frame(data)
        wrong = msgspec.structs.replace(frame, body=ImageAck(1, 1))
        with pytest.raises(ProtocolError, match="direction"):
            script.groups[3].receive_image(1, encode_image_frame(wrong), outgoing=False)
        script.groups[3].receive_image(1, data, outgoing=False)
        with pytest.raises(ProtocolError, match="repeats"):
            script.groups[3].receive_image(1, data, outgoing=False)
        stranger = msgspec.structs.replace(frame, epoch=frame.epoch + 1, sequence=9)
        with pytest.raises(ProtocolError, match="epoch"):
            script.groups[3].receive_image(1, encode_image_frame(stranger), outgoing=False)


class TestOldImages:
    def offer(self, script: Script, **changes: object) -> ImageRefuse:
        """Offer node 3 the leader's image with changes; return the refusal."""
        (data,) = script.images[1, 3][3]
        frame = decode_image_frame(data)
        assert isinstance(frame.body, ImageOffer)
        body = msgspec.structs.replace(frame.body, **changes)
        script.images[1, 3][3].clear()
        script.images[1, 3][3].append(encode_image_frame(msgspec.structs.replace(frame, body=body)))
        script.deliver_image(1, 3, 3)
        (answer,) = frames(script, 1)
        assert isinstance(answer.body, ImageRefuse)
        assert script.groups[3].status().images == ()
        return answer.body

    def test_a_covered_image_is_refused_at_its_offer(self) -> None:
        script = fallen_behind()
        script.connect_all()
        to_offer(script)
        applied = script.groups[3]._applier.applied
        position = msgspec.msgpack.encode(applied)
        assert self.offer(script, applied=position).reason == ImageRefusal.COVERED

    def test_an_image_of_an_older_term_is_refused(self) -> None:
        script = fallen_behind()
        script.connect_all()
        to_offer(script)
        term = script.groups[3]._core.term()
        assert self.offer(script, term=term - 1).reason == ImageRefusal.OLD_TERM

    def test_a_node_without_space_refuses(self) -> None:
        script = fallen_behind()
        script.groups[3].set_accepting(False)
        script.connect_all()
        to_offer(script)
        refusal = self.offer(script)
        assert refusal.reason == ImageRefusal.UNABLE
        assert "space" in refusal.message

    def test_an_image_that_became_old_on_its_way_is_not_installed(self) -> None:
        """Entries up to it came, were committed and applied while its last frame was on its way."""
        script = fallen_behind()
        script.connect_all()
        to_offer(script)
        pump(script, 60)
        incoming = script.groups[3]._images.receiver._incoming
        assert incoming is None or incoming.ended
        until(script, lambda: caught_up(script, 3))
        group, applied = script.groups[3], script.groups[3]._applier.applied
        # The very image again, as a duplicate from before: complete, verified and old.
        sink = script.machines[3].receive(applied)
        source = script.machines[1].image()
        while piece := source.read():
            sink.write(piece)
        older = msgspec.structs.replace(applied, index=applied.index - 5)
        from nokv_replication.image_receiver import Incoming

        group._images.receiver._incoming = Incoming(1, 77, older, 0, sink, ended=True)
        script.settle(rounds=4)
        assert group._applier.applied.index >= applied.index
        assert group._images.receiver._incoming is None
        assert caught_up(script, 3)

    def test_a_position_that_is_none_costs_the_connection(self) -> None:
        for position in (b"", b"\xc1", msgspec.msgpack.encode(Applied())):
            with pytest.raises(ProtocolError):
                decode_position(position)


class TestCrashes:
    POINTS = (
        *("machine:" + name for name in ("receive", "image_write", "image_finish")),
        *("machine:" + name for name in ("image_finished", "install", "installed", "open")),
        *("disk:" + name for name in ("create", "pwrite", "fdatasync", "rename", "fsync_dir")),
        *("disk:" + name for name in ("close", "unlink", "preallocate")),
    )

    @pytest.mark.parametrize("power", [False, True])
    @pytest.mark.parametrize("point", POINTS)
    def test_a_crash_at_any_call_leaves_before_or_after(self, point: str, *, power: bool) -> None:
        script = fallen_behind(entries=60)
        script.connect_all()
        where, name = point.split(":")
        calls = 0

        def dying(called: str) -> None:
            nonlocal calls
            if called == name:
                calls += 1
                if calls == 1:
                    raise Crash(name)

        to_offer(script)
        group = script.groups[3]
        if where == "machine":
            script.machines[3]._on_call = dying
        else:
            real = group._images.receiver._install

            def install(incoming: object) -> None:
                script.disks[3].crash_at(name, 1, after=power)
                real(incoming)  # type: ignore[arg-type]

            group._images.receiver._install = install  # type: ignore[method-assign]
        before = group._applier.applied.index
        died = False
        try:
            until(script, lambda: caught_up(script, 3))
        except Crash:
            died = True
            script.disks[3].disarm()
            script.crash(3, power=power)
            script.start(3)
            index = script.groups[3]._applier.applied.index
            assert index in {before, script.storages[3].applied.index}
            log = script.groups[3]._log
            assert log.base_index <= index <= log.last_index
            script.connect_all()
            until(script, lambda: caught_up(script, 3))
        assert died or where == "disk"


class TestLimits:
    def test_a_log_that_grows_too_long_ends_the_image(self) -> None:
        config = msgspec.structs.replace(
            SMALL, image_bytes_per_second=2_000, image_log_bytes=16 << 10
        )
        script = fallen_behind(config=config, entries=150)
        script.connect_all()
        to_offer(script)
        assert script.groups[1]._images.sender._kept_bytes() == 0
        for i in range(200):
            script.propose(1, b"%d" % i + bytes(200))
            script.settle(rounds=1)
            if script.groups[1].status().counters.images_failed:
                break
        assert script.groups[1].status().counters.images_failed
        transfer = script.groups[1]._images.sender._transfers[3]
        assert transfer.stage == Stage.WAITING
        assert "too long" in transfer.reason

    def test_without_room_for_log_nothing_is_kept_for_images(self) -> None:
        config = msgspec.structs.replace(SMALL, log_keep_bytes=1 << 20)
        script = fallen_behind(config=SMALL, entries=150)
        assert config.log_keep_bytes
        script.connect_all()
        to_offer(script)
        script.groups[1].set_keeping_log(False)
        for i in range(20):
            script.propose(1, b"%d" % i + bytes(300))
            script.step(1)
            script.deliver(1, 2)
            script.deliver(2, 1)
            script.wait(2 * MS_NS)
        assert script.groups[1].status().images == ()
        assert script.groups[1].status().droppable_bytes == 0


def test_installed_tells_the_sender() -> None:
    script = fallen_behind(entries=60)
    script.connect_all()
    to_offer(script)
    told = []
    for _ in range(60):
        script.wait(MS_NS)
        script.step(1)
        script.deliver_image(1, 3, 3)
        if (1, 3) not in script.images:
            break
        told += [f.body for f in frames(script, 1) if isinstance(f.body, ImageInstalled)]
        script.deliver_image(1, 3, 1)
    assert told
    assert script.groups[1]._images.sender._transfers[3].stage == Stage.CATCHING_UP
