"""State formats: what is written at which, what refuses which, and that old states open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import pytest
from tests.fixtures import data_directory

from nokv.kv.lmdb_store import LmdbKV
from nokv.server.datadir import state_path
from nokv.state import machine as state_machine
from nokv.state import ops_internal
from nokv.state.families import Family
from nokv.state.invariants import check as check_invariants
from nokv.state.keys import COUNTERS
from nokv.state.machine import Incompatible, StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.records import Counters, Position, decode_counters
from nokv.state.txn import Txn
from nokv.types import formats
from nokv.types.commands import COMMAND_FORMAT, Command, RaiseFormat
from nokv.types.formats import STATE_FORMAT, encode_at, needed_format, since
from nokv.types.values import Caller, Lenient, Strict
from nokv.wire.codec import encode_command, result_codec

NEXT = STATE_FORMAT + 1


class Inner(Strict, frozen=True):
    size: int
    colour: Annotated[str, since(2)] = ""


class Outer(Strict, frozen=True):
    first: int
    parts: tuple[Inner, ...] = ()
    count: Annotated[int, since(3)] = 0


class Tagged(Strict, frozen=True, tag=7):
    value: int
    more: Annotated[int | None, since(2)] = None


class NewOp(Strict, frozen=True, tag=8):
    SINCE: ClassVar[int] = 3

    value: int


class Envelope(Lenient, frozen=True):
    op: Tagged | NewOp


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that knows state format 3."""
    monkeypatch.setattr(formats, "STATE_FORMAT", 3)


def plain(value: object, number: int) -> object:
    return msgspec.msgpack.decode(encode_at(value, number))


@pytest.mark.usefixtures("future")
def test_a_record_has_the_fields_of_the_format_in_force() -> None:
    assert plain(Outer(1, (Inner(5),)), 1) == [1, [[5]]]
    assert plain(Outer(1, (Inner(5, "red"),)), 2) == [1, [[5, "red"]]]
    assert plain(Outer(1, (Inner(5, "red"),), 9), 3) == [1, [[5, "red"]], 9]
    assert plain(Envelope(Tagged(4)), 1) == [[7, 4]]
    assert plain(Envelope(Tagged(4, 6)), 2) == [[7, 4, 6]]


@pytest.mark.usefixtures("future")
def test_what_a_format_does_not_have_is_not_set_at_it() -> None:
    with pytest.raises(AssertionError, match=r"Inner\.colour of format 2 is set at 1"):
        encode_at(Outer(1, (Inner(5, "red"),)), 1)
    with pytest.raises(AssertionError, match=r"Outer\.count of format 3 is set at 2"):
        encode_at(Outer(1, (), 9), 2)


@pytest.mark.usefixtures("future")
def test_older_bytes_are_read_with_the_defaults() -> None:
    old = encode_at(Outer(1, (Inner(5),)), 1)
    assert msgspec.msgpack.decode(old, type=Outer) == Outer(1, (Inner(5),))


def test_what_a_command_needs() -> None:
    assert needed_format(Outer(1, (Inner(5),))) == 1
    assert needed_format(Outer(1, (Inner(5, "red"), Inner(6)))) == 2
    assert needed_format(Outer(1, (), 1)) == 3
    assert needed_format(Envelope(Tagged(1))) == 1
    assert needed_format(Envelope(Tagged(1, 2))) == 2
    assert needed_format(Envelope(NewOp(1))) == 3
    assert needed_format((Inner(1), Inner(1, "x"))) == 2
    assert needed_format(Command(COMMAND_FORMAT, 0, 0, 0, Caller(), RaiseFormat(1))) == 1


def test_newer_fields_stand_behind_older_ones() -> None:
    class Wrong(Strict, frozen=True):
        new: Annotated[int, since(2)] = 0
        old: int = 0

    with pytest.raises(AssertionError, match="newer fields stand behind"):
        needed_format(Wrong(1))


# ---------------------------------------------------------------- the machine


def stored(kv: MemoryKV, number: int) -> None:
    row = msgspec.msgpack.encode([number, *msgspec.to_builtins(Counters())[1:], "of the future"])
    kv.write(Family.META, [(COUNTERS, row)])


def test_a_new_state_begins_at_the_first_format() -> None:
    assert StateMachine(MemoryKV()).format == formats.FIRST_STATE_FORMAT == 1


def test_a_newer_state_is_refused_whatever_its_counters_hold() -> None:
    kv = MemoryKV()
    stored(kv, NEXT)
    with pytest.raises(Incompatible) as refused:
        StateMachine(kv)
    assert str(refused.value) == (
        f"the state is of state format {NEXT}, and this build knows formats up to {STATE_FORMAT}:"
        " upgrade this node to the build of the other members"
    )


def entry(machine: StateMachine, *ops: RaiseFormat) -> list[bytes]:
    payloads = [encode_command(Command(COMMAND_FORMAT, 0, 0, 0, Caller(), op)) for op in ops]
    at = Position(machine.applied().index + 1, 1, b"")
    return list(machine.apply(at, 0, 0, payloads))


def test_an_entry_that_raises_it_too_far_stops_the_node_before_anything_is_applied() -> None:
    machine = StateMachine(MemoryKV())
    with pytest.raises(Incompatible, match="what follows entry 1 of the log is of"):
        entry(machine, RaiseFormat(STATE_FORMAT), RaiseFormat(NEXT))
    assert (machine.version, machine.applied().index) == (0, 0)


def test_it_never_falls() -> None:
    machine = StateMachine(MemoryKV())
    (same, lower) = map(result_codec.decode, entry(machine, RaiseFormat(1), RaiseFormat(0)))
    assert same.code == 0
    assert "it is 1 already" in lower.message


def test_what_follows_in_the_entry_is_of_the_new_format(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (formats, state_machine, ops_internal):
        monkeypatch.setattr(module, "STATE_FORMAT", NEXT)
    machine = StateMachine(MemoryKV())
    assert result_codec.decode(entry(machine, RaiseFormat(NEXT))[0]).code == 0
    assert machine.format == NEXT


# ---------------------------------------------------------------- what older builds wrote


@pytest.mark.parametrize("kept", data_directory.kept(), ids=lambda path: path.name)
def test_the_store_of_every_format_opens(kept: Path, tmp_path: Path) -> None:
    number = int(kept.name.rpartition("-")[2])
    text = data_directory.unpack(kept, tmp_path)
    kv = LmdbKV(state_path(tmp_path / "data"))
    try:
        machine = StateMachine(kv)
        assert 1 <= machine.format <= number
        assert 0 < machine.applied().index < text["applied_index"]
        assert machine.initialised()
        row = kv.get(Family.META, COUNTERS)
        assert row is not None
        assert decode_counters(row) == machine.counters
        check_invariants(Txn(kv, decode_counters(row)).present)
    finally:
        kv.close()


def test_the_present_format_is_kept() -> None:
    assert f"data-format-{STATE_FORMAT}" in [path.name for path in data_directory.kept()]
