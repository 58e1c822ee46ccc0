"""`python -m bench.apply`: microseconds per command inside apply, over memory and over LMDB.

What a node spends on a command besides replication and sockets: decode, apply, encode the result,
flush the entry. Processor time; commits are not timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from nokv.kv.lmdb_store import LmdbKV
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.port import KV
from nokv.state.records import Position
from nokv.types.commands import (
    COMMAND_FORMAT,
    BulkCreate,
    Command,
    Create,
    InitVolume,
    Mkdir,
    Op,
    OpenSession,
    Rename,
    SetAttr,
    Unlink,
)
from nokv.types.limits import SESSION_TTL_NS_DEFAULT
from nokv.types.reads import GetAttr, Lookup, Read, ReadDir
from nokv.types.values import At, Caller, Volume
from nokv.wire.codec import encode_command, result_codec

BULK = 128
BATCH = 64
"""Commands of an entry, but where a row says otherwise."""

ROOT = Caller()
DIRECTORY = At(path=(b"a", b"b"))
REPEATS = 5


class Driver:
    """A state machine, its session, and where the log stands."""

    def __init__(self, kv: KV) -> None:
        self.machine = StateMachine(kv)
        self.session = 0
        self.seq = 0
        self.apply(InitVolume(Volume("0" * 32, "memory"), 1))
        opened = result_codec.decode(self.apply(OpenSession(b"\x01" * 16, SESSION_TTL_NS_DEFAULT)))
        self.session = opened.value.session  # type: ignore[union-attr]
        self.seq = 0

    def encode(self, op: Op) -> bytes:
        """Return the session's next command."""
        self.seq += 1
        seq = self.seq if self.session else 0
        return encode_command(Command(COMMAND_FORMAT, self.session, seq, max(seq - 1, 0), ROOT, op))

    def apply(self, op: Op) -> bytes:
        """Apply one operation."""
        return self.apply_encoded(self.encode(op))

    def apply_encoded(self, *payloads: bytes) -> bytes:
        """Apply encoded commands as one entry; return the last result."""
        index = self.machine.applied().index + 1
        now = index * 1_000_000
        return list(self.machine.apply(Position(index, 1, b""), now, now, payloads))[-1]

    def check(self, result: bytes) -> None:
        """Fail if the command did."""
        decoded = result_codec.decode(result)
        if decoded.code:
            raise SystemExit(f"{decoded.code}: {decoded.message}")


def _time_commands(driver: Driver, ops: Iterator[Op], count: int, batch: int) -> float:
    """Return the seconds that `count` of the operations take in entries of `batch` of them."""
    payloads = [driver.encode(op) for op in islice(ops, count)]
    started = time.process_time()
    for first in range(0, count, batch):
        result = driver.apply_encoded(*payloads[first : first + batch])
    elapsed = time.process_time() - started
    driver.check(result)
    return elapsed


def _time_reads(driver: Driver, request: Read, count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        driver.machine.read(ROOT, request)
    return time.process_time() - started


def _names(prefix: str) -> Iterator[bytes]:
    number = 0
    while True:
        yield f"{prefix}{number:08d}".encode()
        number += 1


def _bulks() -> Iterator[Op]:
    names = _names("bulk-")
    while True:
        yield BulkCreate(DIRECTORY, tuple(next(names) for _ in range(BULK)), 0o644)


def measure(driver: Driver, count: int) -> Iterator[tuple[str, float]]:
    """Yield (what, microseconds each), the median of some repeats."""
    driver.apply(Mkdir(At(), b"a", 0o755))
    driver.apply(Mkdir(At(path=(b"a",)), b"b", 0o755))
    creates = (Create(DIRECTORY, name, 0o644) for name in _names("file-"))
    chmods = (SetAttr(At(path=(b"a", b"b", name)), mode=0o600) for name in _names("file-"))
    renames = (Rename(DIRECTORY, name, DIRECTORY, name + b"x") for name in _names("file-"))
    unlinks = (Unlink(DIRECTORY, name + b"x") for name in _names("file-"))
    path = At(path=(b"a", b"b", b"bulk-00000017"))
    commands: list[tuple[str, Iterator[Op], int, int]] = [
        ("create, alone in its entry", creates, 1, 1),
        ("create", creates, BATCH, 1),
        ("bulk create of 128, a name", _bulks(), 1, BULK),
        ("setattr mode", chmods, BATCH, 1),
        ("rename in a directory", renames, BATCH, 1),
        ("unlink", unlinks, BATCH, 1),
    ]
    for what, ops, batch, names in commands:
        each = max(1, count // names)
        runs = [_time_commands(driver, ops, each, batch) / each / names for _ in range(REPEATS)]
        yield what, statistics.median(runs) * 1e6
        driver.machine.commit()
    reads: list[tuple[str, Callable[[], float]]] = [
        ("getattr of a path of 3", lambda: _time_reads(driver, GetAttr(path), count) / count),
        (
            "lookup by handle",
            lambda: _time_reads(driver, Lookup(At(inode=3), path.path[-1]), count) / count,
        ),
        (
            "readdir page of 128, a name",
            lambda: _time_reads(driver, ReadDir(DIRECTORY, limit=BULK), count // BULK) / count,
        ),
        (
            "readdirplus page of 128, a name",
            lambda: (
                _time_reads(driver, ReadDir(DIRECTORY, limit=BULK, plus=True), count // BULK)
                / count
            ),
        ),
    ]
    for what, run in reads:
        yield what, statistics.median([run() for _ in range(REPEATS)]) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4096, help="commands of each row and repeat")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as directory:
        store = LmdbKV(Path(directory) / "store")
        rows = zip(measure(Driver(MemoryKV()), count), measure(Driver(store), count), strict=True)
        print(f"{'us':34} {'memory':>8} {'LMDB':>8}")
        for (what, memory), (_, lmdb) in rows:
            print(f"{what:34} {memory:8.2f} {lmdb:8.2f}")
        store.close()


if __name__ == "__main__":
    main()
