"""Entries that an operator has every node pass over: the file, the choice, apply, handshakes."""

import errno
from collections.abc import Iterator, Sequence
from random import Random

import msgspec
import pytest
from tests.simulation.disk import WRITING_CALLS, Crash, SimDisk
from tests.simulation.script import CONFIG, NothingKept, Script

from nokv_replication import (
    Applied,
    Committed,
    DiskFailed,
    Fatal,
    HandshakeRefused,
    LogDamaged,
    Skip,
    SkipRefused,
    StartRefused,
    logtool,
    skips,
)
from nokv_replication.frames import SKIPS_MAX, EntryKind, encode_entry
from nokv_replication.types import Times

ONE = Skip(7, 3, 0xE3069283)
TWO = Skip(9, 3, 0x12345678)


class TestFile:
    def test_what_was_stored_is_loaded(self) -> None:
        disk = SimDisk()
        assert skips.load(disk, "c") == ()
        skips.store(disk, "c", (ONE, TWO))
        skips.store(disk, "c", (TWO,))
        disk.kill()
        disk.power_cut(NothingKept())
        assert skips.load(disk, "c") == (TWO,)

    def test_its_bytes_are_documented(self) -> None:
        disk = SimDisk()
        skips.store(disk, "c", (ONE,))
        data = disk.content(skips.FILE)
        assert msgspec.msgpack.decode(data[4:]) == [1, "c", [[7, 3, 0xE3069283]]]

    @pytest.mark.parametrize("call", [*WRITING_CALLS, "close"])
    @pytest.mark.parametrize("after", [False, True])
    def test_a_power_cut_at_any_call_leaves_the_old_or_the_new_list(
        self, call: str, after: bool
    ) -> None:
        for seed in range(10):
            disk = SimDisk()
            skips.store(disk, "c", (ONE,))
            disk.crash_at(call, 1, after=after)
            try:
                skips.store(disk, "c", (ONE, TWO))
                stored = True
            except Crash:
                stored = False
            disk.kill()
            disk.power_cut(Random(seed))
            found = skips.load(disk, "c")
            assert found == (ONE, TWO) if stored else found in ((ONE,), (ONE, TWO))
            skips.store(disk, "c", (TWO,))
            assert skips.load(disk, "c") == (TWO,)

    @pytest.mark.parametrize("call", ["listdir", "create", "pwrite", "fdatasync", "rename"])
    def test_a_failing_disk_is_a_typed_error(self, call: str) -> None:
        disk = SimDisk()
        disk.fail_at(call, errno.EIO)
        with pytest.raises(DiskFailed):
            skips.store(disk, "c", (ONE,))

    def test_a_damaged_file_is_refused_with_what_to_do(self) -> None:
        disk = SimDisk()
        skips.store(disk, "c", (ONE,))
        for offset in range(len(disk.content(skips.FILE))):
            disk.flip(skips.FILE, offset)
            with pytest.raises(StartRefused, match="name its entries again"):
                skips.load(disk, "c")
            disk.flip(skips.FILE, offset)

    def test_another_clusters_file_is_refused(self) -> None:
        disk = SimDisk()
        skips.store(disk, "c", (ONE,))
        with pytest.raises(StartRefused, match="cluster 'c'"):
            skips.load(disk, "d")


def stopped(entry: Sequence[object] = (2, 0, 0, [b"?"], 0, "new")) -> Script:
    """Three nodes at entry 3, whose fourth no build can read; none has passed it."""
    script = Script(3)
    script.lead(1)
    script.propose(1, b"good")
    script.settle()
    # What a build of a later format, that is gone again, would have written.
    poison(script, msgspec.msgpack.encode(entry))
    return script


def poison(script: Script, command: bytes) -> None:
    for node in (1, 2, 3):
        script.isolate(node)
    for node in (1, 2, 3):
        script.groups[node].stop()
        script.disks[node].kill()
        log, _ = logtool.open_read_only(script.disks[node], script.identity(node))
        index, term = log.last_index + 1, log.last_term
        live = type(log).open(script.disks[node], CONFIG, script.identity(node), Random(0))
        live.append(command, index, term)
        live.sync()
        live.close()
        del script.groups[node]


def start_all(script: Script) -> None:
    for node in (1, 2, 3):
        script.disks[node].kill()
        script.start(node)
    script.connect_all()


def choose(script: Script, node: int, index: int, given: Skip | None = None) -> Skip:
    disk = script.disks[node]
    log, _ = logtool.open_read_only(disk, script.identity(node))
    applied = script.storages[node].applied
    chosen = skips.choose(log, applied, skips.load(disk, "scripted"), index, given)
    log.close()
    return chosen


def skip(script: Script, node: int, index: int) -> Skip:
    chosen = choose(script, node, index)
    skips.store(script.disks[node], "scripted", (chosen,))
    return chosen


class TestGroup:
    def test_a_poisoned_entry_stops_every_node_and_names_the_way_past(self) -> None:
        script = stopped()
        start_all(script)
        with pytest.raises(LogDamaged, match="nokv raft-log skip 4"):
            script.settle(rounds=300)

    @pytest.mark.parametrize(
        "entry",
        [
            [2, 0, 0, [b"?"], 0, "new"],
            # As if of a configuration, by the place where its kind stands.
            [2, 0, 0, [b"?"], int(EntryKind.MEMBERS)],
        ],
    )
    def test_skipped_everywhere_the_group_goes_on(self, entry: list[object]) -> None:
        script = stopped(entry)
        chosen = [skip(script, node, 4) for node in (1, 2, 3)]
        assert len(set(chosen)) == 1
        start_all(script)
        script.lead(1)
        script.propose(1, b"after")
        script.settle()
        assert isinstance(script.outcomes[b"after"], Committed)
        for node in (1, 2, 3):
            assert script.machines[node].items == [b"good", b"after"]
            applied = script.groups[node]._applier.applied
            assert applied.skips == (chosen[0],)
            assert applied.config
            assert script.groups[node].status().skips == (chosen[0],)
        # The file is no longer needed: the machine remembers.
        for node in (1, 2, 3):
            script.isolate(node)
            script.groups[node].stop()
            del script.groups[node]
            script.disks[node].unlink(skips.FILE)
        start_all(script)
        assert script.groups[2].status().skips == (chosen[0],)

    def test_an_exception_of_the_machine_names_the_entry(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = Script(3)
        script.lead(1)

        def broken(*_arguments: object) -> Iterator[bytes]:
            message = "a defect"
            raise RuntimeError(message)
            yield b""

        monkeypatch.setattr(script.machines[1], "apply", broken)
        script.propose(1, b"x")
        with pytest.raises(RuntimeError, match="a defect") as raised:
            script.settle()
        assert "nokv raft-log skip 3" in "".join(raised.value.__notes__)

    def test_nodes_with_different_lists_refuse_each_other(self) -> None:
        script = stopped()
        skip(script, 1, 4)
        skip(script, 2, 4)
        for node in (1, 2, 3):
            script.start(node)
        script.connect(1, 2)
        for one, other in ((1, 3), (3, 1)):
            with pytest.raises(HandshakeRefused, match="must skip the same"):
                script.groups[one].greet(script.groups[other].hello(9))
        assert "skips entries" in script.groups[3].status().problem

    def test_a_node_that_has_not_joined_takes_the_list(self) -> None:
        script = Script(3, found=False)
        skips.store(script.disks[1], "scripted", (ONE,))
        script.start(1)
        # Whoever dials: the one without a list takes it, and keeps it.
        script.groups[1].greet(script.groups[2].hello(1))
        script.groups[2].greet(script.groups[1].hello(0))
        assert script.groups[2].status().skips == (ONE,)
        script.step(2)
        assert skips.load(script.disks[2], "scripted") == (ONE,)

    def test_a_list_that_cannot_be_kept_ends_the_step(self) -> None:
        script = Script(3, found=False)
        skips.store(script.disks[1], "scripted", (ONE,))
        script.start(1)
        script.groups[2].greet(script.groups[1].hello(1))
        script.disks[2].fail_at("rename")
        with pytest.raises(DiskFailed):
            script.step(2)

    def test_another_entry_at_that_index_is_fatal(self) -> None:
        script = Script(3)
        script.lead(1)
        last = script.groups[1].status().last_index
        for node in (1, 2, 3):
            script.groups[node]._applier.skips.all = (Skip(last + 1, 1, 0),)
        script.propose(1, b"x")
        with pytest.raises(Fatal, match="skip 3 --remove"):
            script.settle()

    def test_a_state_that_holds_the_entry_does_not_start(self) -> None:
        disk = SimDisk()
        skips.store(disk, "c", (ONE,))
        with pytest.raises(StartRefused, match="holds it"):
            skips.Skips(disk, "c").opened(Applied(8, 3))

    def test_an_image_brings_its_list(self) -> None:
        disk = SimDisk()
        skips.store(disk, "c", (TWO,))
        listed = skips.Skips(disk, "c")
        listed.opened(Applied(3, 1))
        listed.opened(Applied(8, 3, skips=(ONE,)))
        assert listed.all == (ONE, TWO)

    def test_a_leader_takes_its_times_from_before_the_entry(self) -> None:
        script = stopped()
        for node in (1, 2, 3):
            skip(script, node, 4)
        before = script.storages[1].applied.times
        start_all(script)
        script.lead(2)
        assert script.groups[2].status().cluster_ns >= before.cluster_ns


class TestChoice:
    def test_an_entry_that_is_applied_durably_is_refused(self) -> None:
        script = stopped()
        with pytest.raises(SkipRefused, match="holds entry 3 already"):
            choose(script, 1, 3)

    def test_an_entry_that_is_not_there_is_refused_unless_it_is_named(self) -> None:
        script = stopped()
        with pytest.raises(SkipRefused, match=r"holds 1 to 4.*--entry TERM:CRC"):
            choose(script, 1, 5)
        given = Skip(5, 1, 77)
        assert choose(script, 1, 5, given) == given

    def test_another_entry_than_named_is_refused(self) -> None:
        script = stopped()
        found = choose(script, 1, 4)
        assert choose(script, 1, 4, found) == found
        with pytest.raises(SkipRefused, match="another entry"):
            choose(script, 1, 4, Skip(4, found.term, found.crc ^ 1))

    def test_twice_is_once_and_taking_back_is_possible(self) -> None:
        script = stopped()
        chosen = skip(script, 1, 4)
        assert choose(script, 1, 4) == chosen
        applied = script.storages[1].applied
        assert skips.without(applied, (chosen,), 4) == ()
        with pytest.raises(SkipRefused, match="does not skip"):
            skips.without(applied, (), 4)
        with pytest.raises(SkipRefused, match="already"):
            skips.without(Applied(4, 1, skips=(chosen,)), (chosen,), 4)

    def test_no_more_than_the_limit(self) -> None:
        script = stopped()
        held = tuple(Skip(100 + i, 1, i) for i in range(SKIPS_MAX))
        skips.store(script.disks[1], "scripted", held)
        with pytest.raises(SkipRefused, match="16 entries"):
            choose(script, 1, 4)

    @pytest.mark.parametrize("kind", [EntryKind.NOOP, EntryKind.TICK, EntryKind.MEMBERS])
    def test_entries_of_replication_itself_are_refused(self, kind: EntryKind) -> None:
        script = Script(3)
        script.lead(1)
        poison(script, encode_entry(Times(1 << 60, 1 << 60), [], kind))
        index = script.storages[1].applied.index + 1
        with pytest.raises(SkipRefused, match=kind.name.lower()):
            choose(script, 1, index)
