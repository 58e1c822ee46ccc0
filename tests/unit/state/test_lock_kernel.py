"""Record locks beside the kernel's: the same programs of some processes on a local file."""

from __future__ import annotations

import fcntl
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from tests.unit.state.bodies import Files
from tests.unit.state.shard import at

from nokv.errors import NokvError
from nokv.types.locks import LockConflict, LockKind, SetLock, TestLock, Unlock

FLOCK = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2): type, whence, start, length, process."""

TYPES = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
PROCESSES = 3
SIZE = 8
SEEDS = range(8)
STEPS = 150


def serve(path: Path, lines: TextIO, answers: TextIO) -> None:
    """Lock as the lines say (command, type, start, length); answer [errno] or the struct."""
    descriptor = os.open(path, os.O_RDWR)
    for line in lines:
        command, kind, start, length = json.loads(line)
        asked = FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        try:
            answer = list(FLOCK.unpack(fcntl.fcntl(descriptor, command, asked)))
        except OSError as error:
            answer = [error.errno]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Process:
    """A fork of this process with the file open: record locks are a process's."""

    def __init__(self, path: Path) -> None:
        (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(in_write)
            os.close(out_read)
            try:
                serve(path, os.fdopen(in_read), os.fdopen(out_write, "w"))
            finally:
                os._exit(0)
        os.close(in_read)
        os.close(out_write)
        self._lines, self._answers = os.fdopen(in_write, "w"), os.fdopen(out_read)

    def ask(self, command: int, kind: int, start: int, length: int) -> list[int]:
        """Call fcntl(2) in the process."""
        self._lines.write(json.dumps((command, kind, start, length)) + "\n")
        self._lines.flush()
        answer: list[int] = json.loads(self._answers.readline())
        return answer

    def close(self) -> None:
        """End it, and its locks."""
        self._lines.close()
        self._answers.close()
        os.waitpid(self.pid, 0)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Process]]:
    """Return the processes with one file open."""
    path = tmp_path / "file"
    path.touch()
    found = [Process(path) for _ in range(PROCESSES)]
    yield found
    for process in reversed(found):  # the last one holds copies of the others' pipes
        process.close()


class Both:
    """The same calls to a shard and to the kernel."""

    def __init__(self, processes: list[Process], seed: int) -> None:
        self.processes = processes
        self.files = Files()
        self.inode = self.files.create("f", 0o666).inode
        self.rng = random.Random(seed)
        self.refused = 0

    def set(self, number: int, kind: int, start: int, length: int) -> None:
        """Let a process lock or unlock without waiting, and compare whether it could."""
        wanted = self.processes[number].ask(fcntl.F_SETLK, kind, start, length)
        record = LockKind.RECORD
        pid = self.processes[number].pid
        if kind == fcntl.F_UNLCK:
            self.files.do(Unlock(0, self.inode, record, number, start, length))
            assert len(wanted) > 1
            return
        write = kind == fcntl.F_WRLCK
        try:
            self.files.do(SetLock(at("f"), record, number, write, start, length, pid=pid))
        except NokvError as error:
            assert [error.errno_value] == wanted  # noqa: PT017  both sides must fail alike
            self.refused += 1
        else:
            assert len(wanted) > 1

    def compare(self, number: int, kind: int, start: int, length: int) -> None:
        """Compare what stands in the way of a process; the kernel's may be any that does."""
        answer = self.processes[number].ask(fcntl.F_GETLK, kind, start, length)
        read = TestLock(
            at("f"),
            self.files.session,
            LockKind.RECORD,
            number,
            kind == fcntl.F_WRLCK,
            start,
            length,
        )
        found = self.files.read(read)
        assert isinstance(found, LockConflict)
        assert found.held == (answer[0] != fcntl.F_UNLCK)
        if found.held and length == 1:
            holders = {process.pid: n for n, process in enumerate(self.processes)}
            kernel_kind, _, first, n_bytes, pid = answer
            if holders[pid] == found.owner:
                told = (found.write, found.start, found.length, found.pid)
                assert told == (kernel_kind == fcntl.F_WRLCK, first, n_bytes, pid)

    def step(self) -> None:
        """Do one thing and look at every byte as every process."""
        number, kind = self.rng.randrange(PROCESSES), self.rng.choice(TYPES)
        start = self.rng.randrange(SIZE)
        self.set(number, kind, start, self.rng.randrange(SIZE - start + 1))
        for process in range(PROCESSES):
            for byte in range(SIZE + 1):
                self.compare(process, self.rng.choice(TYPES[:2]), byte, 1)
            self.compare(process, self.rng.choice(TYPES[:2]), 0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_record_locks_do_what_the_kernel_does(processes: list[Process], seed: int) -> None:
    both = Both(processes, seed)
    for _ in range(STEPS):
        both.step()
    both.files.check()
    assert both.refused > STEPS // 10
