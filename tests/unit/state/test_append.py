"""Appends: the offset is chosen in apply, whoever else appends, and is told again to a retry."""

from __future__ import annotations

import random

import pytest
from tests.unit.state.bodies import Files, content, inline
from tests.unit.state.shard import ROOT, at

from nokv.types.commands import COMMAND_FORMAT, Atomic, Command, Publish, PublishMode, SetAttr
from nokv.types.results import AtomicDone, Published, Result
from nokv.types.values import At

WRITERS = 3
STEPS = 120


def appending(data: bytes) -> Publish:
    """Return an append to /log."""
    return Publish(at(), b"log", PublishMode.APPEND, 0o644, len(data), 0, (inline(data),))


class Writers:
    """Sessions that append to one file, batched, repeated, and cut by a truncate now and then."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = Files()
        self.files.create("log", 0o666)
        nonces = (b"%016d" % number for number in range(WRITERS))
        self.sessions = [self.files.open(nonce) for nonce in nonces]
        self.numbers = dict.fromkeys(self.sessions, 0)
        self.shown = b""
        self.answered: list[tuple[Command, Result]] = []

    def command(self) -> Command:
        """Return the next command of some session: one append, or several in one."""
        session = self.rng.choice(self.sessions)
        self.numbers[session] += 1
        seq = self.numbers[session]
        texts = [b"%d.%d.%d;" % (session % 10, seq, part) for part in range(3)]
        op = appending(texts[0])
        if self.rng.random() < 0.3:
            atomic = Atomic(tuple(map(appending, texts)))
            return Command(COMMAND_FORMAT, session, seq, 0, ROOT, atomic)
        return Command(COMMAND_FORMAT, session, seq, 0, ROOT, op)

    def take(self, command: Command, result: Result) -> None:
        """Check where each append went, and keep what the file shows."""
        assert not result.code, result
        many = isinstance(command.op, Atomic)
        ops = command.op.ops if isinstance(command.op, Atomic) else (command.op,)
        assert isinstance(result.value, AtomicDone if many else Published)
        values = result.value.values if isinstance(result.value, AtomicDone) else (result.value,)
        for op, value in zip(ops, values, strict=True):
            assert isinstance(op, Publish)
            assert isinstance(value, Published)
            assert value.offset == len(self.shown)
            self.shown += op.chunks[0].extents[0].data
            assert value.size == len(self.shown)
        self.answered.append((command, result))

    def step(self) -> None:
        """Apply an entry of fresh and repeated appends."""
        fresh = [self.command() for _ in range(self.rng.randint(1, 4))]
        again = [self.rng.choice(self.answered)[0] for _ in range(2)] if self.answered else []
        commands = [*fresh, *again, fresh[0]]
        results = self.files.entry(*commands)
        for command, result in zip(fresh, results, strict=False):
            self.take(command, result)
        known = {(one.session, one.seq): result for one, result in self.answered}
        for command, result in zip(commands, results, strict=True):
            assert result == known[command.session, command.seq]
        if self.rng.random() < 0.1:
            size = self.rng.randint(0, len(self.shown))
            self.files.do(SetAttr(at("log"), size=size))
            self.shown = self.shown[:size]

    def check(self) -> None:
        """Compare the file with what was appended."""
        reply = self.files.body(At(0, self.files.stat("log").inode))
        assert content([(one.index, one.chunk) for one in reply.chunks], len(self.shown)) == (
            self.shown
        )
        assert self.files.usage() == (1, len(self.shown))
        self.files.check()


@pytest.mark.parametrize("seed", range(5))
def test_appends_of_many_never_overlap_and_are_applied_once(seed: int) -> None:
    writers = Writers(seed)
    for _ in range(STEPS):
        writers.step()
    writers.check()
    assert len(writers.answered) > 2 * STEPS
