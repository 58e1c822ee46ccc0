"""Random programs of locks: the state machine and the model answer and hold the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from tests.unit.state.bodies import Files
from tests.unit.state.shard import ROOT, START_NS, STEP_NS, VOLUME, at

from nokv.errors import BY_CODE, NokvError
from nokv.state import locks, ops_lock, ops_session, tree
from nokv.state.effects import LockWaitOver
from nokv.state.locks import Settled
from nokv.types.commands import (
    COMMAND_FORMAT,
    Command,
    Create,
    ExpireSession,
    InitVolume,
    Op,
    OpenSession,
    Rename,
    Unlink,
)
from nokv.types.limits import SESSION_TTL_NS_DEFAULT
from nokv.types.locks import CancelLock, LockSet, LockWait, SetLock, TestLock, Unlock, WaitLocks
from nokv.types.reads import Read
from nokv.types.results import Result, SessionOpened
from nokv.types.values import Caller
from nokv_model.model import Model

SEEDS = range(16)
STEPS = 120
SIZE = 8
"""Locks begin and end in so many bytes, or reach to the end of the file."""

REACHED = (
    "SetLock True",
    "SetLock False",
    "SetLock LockHeld",
    "SetLock LockDeadlock",
    "CancelLock False",
    "CancelLock True",
    "over True",
    "over False",
)


class Twin:
    """A shard and a model that get the same commands."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = Files()
        self.model = Model()
        self.clock = 0
        self.numbers: dict[int, int] = {}
        self.waits: list[tuple[int, LockWait]] = []
        self.nonces = 0
        self.seen: Counter[str] = Counter()
        self._model(Command(COMMAND_FORMAT, 0, 0, 0, ROOT, InitVolume(VOLUME, 1)))
        opening = OpenSession(b"\x01" * 16, SESSION_TTL_NS_DEFAULT)
        self._model(Command(COMMAND_FORMAT, 0, 0, 0, ROOT, opening))
        self.sessions = [self.files.session]
        for _ in range(2):
            self.open()
        for name in (b"a", b"b"):
            self.do(self.sessions[0], Create(at(), name, 0o666))

    def _model(self, command: Command) -> Result:
        self.clock += 1
        now_ns = STEP_NS * self.clock
        return self.model.apply(START_NS + now_ns, now_ns, [command])[0]

    def do(self, session: int, op: Op, caller: Caller = ROOT) -> Result:
        """Give both the command; return what both answer."""
        seq = self.numbers[session] = self.numbers.get(session, 0) + 1
        command = Command(
            COMMAND_FORMAT,
            session,
            seq if session else 0,
            max(seq - 1, 0) if session else 0,
            caller,
            op,
        )
        (got,) = self.files.entry(command)
        wanted = self._model(command)
        assert (got.version, got.code, got.value) == (wanted.version, wanted.code, wanted.value)
        self.note(op, got)
        return got

    def note(self, op: Op, result: Result) -> None:
        """Count what became of a command."""
        error = BY_CODE[result.code].__name__ if result.code else ""
        granted = isinstance(result.value, LockSet) and result.value.granted
        self.seen[f"{type(op).__name__} {error or granted}"] += 1
        effects = self.files.machine.take_effects()
        for effect in effects:
            if isinstance(effect, LockWaitOver):
                self.seen[f"over {effect.granted}"] += 1

    def open(self) -> None:
        """Open a further session."""
        self.nonces += 1
        nonce = b"%016d" % self.nonces
        opened = self.do(0, OpenSession(nonce, SESSION_TTL_NS_DEFAULT)).value
        assert isinstance(opened, SessionOpened)
        self.sessions.append(opened.session)

    def same(self, read: Read) -> None:
        """Compare what both say to a read."""
        answers: list[object] = []
        for ask in (self.files.machine.read, lambda *args: (0, self.model.read(*args))):
            try:
                answers.append(ask(ROOT, read)[1])
            except NokvError as error:
                answers.append(type(error))
        assert answers[0] == answers[1], read

    # ------------------------------------------------------------------ drawing

    def step(self) -> None:
        """Send one command."""
        rng, session = self.rng, self.rng.choice(self.sessions)
        draw = rng.random()
        if draw < 0.55:
            self.lock(session)
        elif draw < 0.85:
            kind, start, length = self.range()
            inode = self.inode(rng.choice(("a", "b")))
            self.do(session, Unlock(0, inode, kind, rng.randrange(3), start, length))
        elif draw < 0.93 and self.waits:
            owner, wait = rng.choice(self.waits)
            kind = rng.randrange(2)
            self.do(owner, CancelLock(wait.view, wait.inode, kind, wait.ticket))
        elif draw < 0.96:
            self.do(0, ExpireSession(session))
            self.sessions.remove(session)
            self.open()
        else:
            name = rng.choice((b"a", b"b"))
            other = rng.choice((b"a", b"b"))
            self.do(session, rng.choice((Unlink(at(), name), Rename(at(), name, at(), other))))
            for missing in (b"a", b"b"):
                if not self.inode(missing.decode()):
                    self.do(session, Create(at(), missing, 0o666))

    def range(self) -> tuple[int, int, int]:
        """Return kind, start and length."""
        if self.rng.random() < 0.3:
            return 1, 0, 0
        start = self.rng.randrange(SIZE)
        return 0, start, self.rng.randrange(SIZE - start + 1)

    def inode(self, name: str) -> int:
        """Return a file's number; 0 if it is not there."""
        try:
            return self.files.stat(name).inode
        except NokvError:
            return 0

    def lock(self, session: int) -> None:
        """Ask for a lock, mostly waiting for it."""
        rng = self.rng
        kind, start, length = self.range()
        write, wait, owner = rng.random() < 0.4, rng.random() < 0.8, rng.randrange(3)
        name = rng.choice(("a", "b"))
        op = SetLock(at(name), kind, owner, write, start, length, wait, 100 + owner)
        value = self.do(session, op).value
        if isinstance(value, LockSet) and not value.granted:
            self.waits.append((session, LockWait(value.view, value.inode, owner, value.ticket)))

    def compare(self) -> None:
        """Compare all that can be asked of locks."""
        for name in ("a", "b"):
            for byte in (*range(SIZE + 1), 2**62):
                for write in (False, True):
                    self.same(TestLock(at(name), self.sessions[0], 0, 7, write, byte, 1))
            self.same(TestLock(at(name), self.sessions[-1], 1, 0, write=True))
        for session in self.sessions:
            mine = tuple(wait for owner, wait in self.waits if owner == session)
            self.same(WaitLocks(session, mine))
        self.waits = self.waits[-50:]
        self.files.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_state_machine_and_the_model_lock_alike(seed: int) -> None:
    twin = Twin(seed)
    for _ in range(STEPS):
        twin.step()
        twin.compare()


def test_programs_reach_what_they_are_for() -> None:
    """Locks are granted, refused, queued, granted later, cancelled, and found in a circle."""
    seen: Counter[str] = Counter()
    for seed in range(10):
        twin = Twin(seed)
        for _ in range(STEPS):
            twin.step()
        seen += twin.seen
    assert min(seen[name] for name in REACHED) > 10, seen


@pytest.mark.parametrize(
    ("where", "name", "instead"),
    [
        (locks, "_stands_before", lambda *_: False),
        (locks, "_outside", lambda hold, start, end: [] if start < end else [hold]),
        (ops_lock, "settle", lambda table: Settled(table, ())),
        (ops_lock, "closes_circle", lambda *_: False),
        (tree, "end_inode_locks", lambda *_: None),
        (ops_session, "end_session_locks", lambda *_: None),
    ],
    ids=["no queue", "no split", "nobody is woken", "no circles", "inodes", "sessions"],
)
def test_planted_bugs_are_found(
    monkeypatch: pytest.MonkeyPatch, where: ModuleType, name: str, instead: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, instead)
    with pytest.raises((AssertionError, NokvError)):  # noqa: PT012  any step may be the one
        for seed in SEEDS:
            twin = Twin(seed)
            for _ in range(STEPS):
                twin.step()
                twin.compare()
