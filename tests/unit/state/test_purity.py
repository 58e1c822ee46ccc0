"""The state is a pure function of the log: the same bytes on every replica and every store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.state.namespace_programs import Program
from tests.unit.state.shard import Shard, at

from nokv.kv.digest import digest
from nokv.kv.lmdb_store import LmdbKV
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.port import KV
from nokv.state.records import Position
from nokv.types.commands import Command, SetAttr
from nokv.types.results import Result
from nokv.wire.codec import encode_command

SEEDS = range(3)
STEPS = 300


class Recorded(Shard):
    """A shard that keeps its log, (wall_ns, cluster_ns, payloads) of each entry, and results."""

    def __init__(self, kv: KV | None = None) -> None:
        self.log: list[tuple[int, int, list[bytes]]] = []
        self.results: list[list[Result]] = []
        super().__init__(kv)

    def entry(self, *commands: Command) -> list[Result]:
        """Apply and record one entry."""
        results = super().entry(*commands)
        self.log.append((self.wall_ns, self.cluster_ns, [encode_command(c) for c in commands]))
        self.results.append(results)
        return results


def run(seed: int, kv: KV | None = None) -> Recorded:
    """Run a seeded program."""
    shard = Recorded(kv)
    shard.do(SetAttr(at(), mode=0o777))
    program = Program(shard, seed)
    for _ in range(STEPS):
        program.step()
    return shard


def replay(kv: KV, log: list[tuple[int, int, list[bytes]]], *, reopen: int = 0) -> StateMachine:
    """Apply a log to a store; every `reopen` entries a new machine starts over it."""
    machine = StateMachine(kv)
    for number, (wall_ns, cluster_ns, payloads) in enumerate(log):
        if reopen and number % reopen == 0:
            machine = StateMachine(kv)
        list(machine.apply(Position(number + 1, 1, b""), wall_ns, cluster_ns, payloads))
    return machine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbKV]:
    """Return a store that is closed at the end."""
    kv = LmdbKV(tmp_path / "store")
    yield kv
    kv.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_program_twice_gives_the_same_bytes(seed: int) -> None:
    first, second = run(seed), run(seed)
    assert isinstance(first.kv, MemoryKV)
    assert isinstance(second.kv, MemoryKV)
    assert first.log == second.log
    assert first.kv.snapshot() == second.kv.snapshot()
    assert first.machine.fingerprint() == second.machine.fingerprint()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("reopen", [0, 1, 7])
def test_a_replica_that_restarts_gets_the_same_bytes(seed: int, reopen: int) -> None:
    shard = run(seed)
    kv = MemoryKV()
    machine = replay(kv, shard.log, reopen=reopen)
    assert isinstance(shard.kv, MemoryKV)
    assert kv.snapshot() == shard.kv.snapshot()
    assert machine.fingerprint() == shard.machine.fingerprint()


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_and_lmdb_have_one_digest(seed: int, store: LmdbKV) -> None:
    shard = run(seed)
    replay(store, shard.log)
    assert digest(store) == digest(shard.kv)
    rows = list(store.scan(Family.INODE, b"", b"\xff" * 17))
    assert rows == list(shard.kv.scan(Family.INODE, b"", b"\xff" * 17))


def test_a_crash_and_a_replay_from_the_last_commit_end_at_the_same_bytes() -> None:
    shard = run(9)
    kv = MemoryKV()
    half = len(shard.log) // 2
    machine = replay(kv, shard.log[:half])
    machine.commit()
    committed = machine.applied().index
    for number, (wall_ns, cluster_ns, payloads) in enumerate(shard.log[half:], start=half):
        list(machine.apply(Position(number + 1, 1, b""), wall_ns, cluster_ns, payloads))
    kv.crash()
    again = StateMachine(kv)
    assert again.applied().index == committed
    for number, (wall_ns, cluster_ns, payloads) in enumerate(shard.log[half:], start=half):
        list(again.apply(Position(number + 1, 1, b""), wall_ns, cluster_ns, payloads))
    assert isinstance(shard.kv, MemoryKV)
    assert kv.snapshot() == shard.kv.snapshot()


def test_an_entry_of_many_commands_is_as_many_entries_but_for_events() -> None:
    shard = run(4)
    together, apart = MemoryKV(), MemoryKV()
    payloads = [one for _, _, entry in shard.log for one in entry]
    wall_ns, cluster_ns, _ = shard.log[-1]
    results = list(StateMachine(together).apply(Position(1, 1, b""), wall_ns, cluster_ns, payloads))
    machine = StateMachine(apart)
    for number, payload in enumerate(payloads):
        (result,) = machine.apply(Position(number + 1, 1, b""), wall_ns, cluster_ns, [payload])
        assert result == results[number]
    skipped = {Family.EVENT, Family.META}
    first, second = together.snapshot(), apart.snapshot()
    for family in set(Family) - skipped:
        assert first[family] == second[family], family
