"""Copies, trash and quotas with any argument: a typed error or a sound state, never a defect."""

from __future__ import annotations

import random

import pytest
from tests.unit.state.bodies import Files, inline, stored
from tests.unit.state.shard import ALICE, ROOT

from nokv.errors import Internal
from nokv.types.commands import Mkdir, Op, SetAttr
from nokv.types.copies import Copy, CopyRange, SetQuota
from nokv.types.trash import EmptyTrash, ExpireTrash, KeepTrash, ListTrash, RestoreTrash, Trash
from nokv.types.values import At
from nokv.types.views import Clone, Flatten, WorkspaceCreate

NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 5, 10, 2**26, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = (b"a", b"b", b"c", b"f", b"w", b"", b".", b"..", b"x/y", b"\0", b"n" * 256)


class Odd:
    """A source of commands, half of their arguments usual."""

    def __init__(self, seed: int, files: Files) -> None:
        self.rng = random.Random(seed)
        self.files = files

    def number(self) -> int:
        usual = self.rng.randrange(8)
        return self.rng.choice(NUMBERS) if self.rng.random() < 0.3 else usual

    def name(self) -> bytes:
        return self.rng.choice(NAMES if self.rng.random() < 0.2 else NAMES[:5])

    def at(self) -> At:
        path = tuple(self.name() for _ in range(self.rng.randrange(3)))
        if self.rng.random() < 0.8:
            return At(0, 1, path, self.rng.random() < 0.8)
        return At(abs(self.number()) % 2**63, abs(self.number()) % 2**63, path)

    def op(self) -> Op:
        entries = tuple((self.number(), self.number()) for _ in range(self.rng.randrange(3)))
        makers = (
            lambda: Copy(
                self.at(), self.at(), self.name(), self.rng.randrange(3), 0o644, self.number()
            ),
            lambda: CopyRange(
                self.at(), self.at(), self.number(), self.number(), self.number(), self.number()
            ),
            lambda: CopyRange(self.at(), self.at(), self.number(), self.number(), 4),
            lambda: SetQuota(self.at(), self.number(), self.number()),
            lambda: Trash(self.at(), self.name()),
            lambda: RestoreTrash(self.number(), self.files.machine.version - self.rng.randrange(9)),
            lambda: RestoreTrash(self.number(), self.number(), self.at(), self.name()),
            lambda: EmptyTrash(entries),
            lambda: KeepTrash(self.number()),
            lambda: ExpireTrash(self.number()),
            lambda: Flatten(self.number(), self.number()),
            lambda: Clone(self.at(), self.at(), self.name()),
            lambda: Mkdir(self.at(), self.name(), 0o777),
            lambda: WorkspaceCreate(self.at(), self.name(), 0o777),
        )
        made: Op = self.rng.choice(makers)()
        return made


@pytest.mark.parametrize("seed", range(12))
def test_any_argument(seed: int) -> None:
    files = Files()
    files.do(SetAttr(At(), mode=0o777))
    files.mkdir("a", 0o777)
    files.publish("a/f", stored(10))
    files.publish("f", inline(b"text"))
    odd = Odd(seed, files)
    for _ in range(120):
        op = odd.op()
        internal = isinstance(op, ExpireTrash | Flatten)
        caller = odd.rng.choice((ROOT, ROOT, ALICE))
        command = files.command(op, caller, session=0 if internal else None)
        (result,) = files.entry(command)
        assert result.code != Internal.code, f"seed {seed}: {op}: {result}"
        files.check()
        files.read(ListTrash(odd.number(), odd.number(), odd.number()), caller)
