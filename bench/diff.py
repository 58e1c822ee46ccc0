"""`python -m bench.diff`: a diff of 100 changes in trees of 10K and 1M entries, over LMDB.

Processor time of the read inside the state machine: no replication, no sockets. The same changes
in both trees: 20 creates, 20 removals, 20 publishes, 20 renames and 20 chmods in 100 directories.
And what the change index costs a create: with a pin and without.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bench.apply import ROOT, Driver
from bench.report import Row, machine, save, show
from nokv.kv.lmdb_store import LmdbKV
from nokv.state.families import Family
from nokv.types.commands import (
    BulkCreate,
    Create,
    Mkdir,
    Op,
    PinView,
    Publish,
    PublishMode,
    Rename,
    SetAttr,
    Unlink,
)
from nokv.types.diffs import Diff, DiffReply
from nokv.types.values import At, ChunkMap, Extent
from nokv.wire.codec import result_codec

SIZES = (10_000, 1_000_000)
CHANGES = 100
DIRECTORIES = {10_000: 100, 1_000_000: 1000}
READS = 30
COMMANDS = 4096
TITLE = "Diff, in one process over LMDB"
REPEATS = 5


def _directory(number: int) -> At:
    return At(path=(b"d%06d" % number,))


def _plant(driver: Driver, entries: int) -> None:
    """Make a tree."""
    directories = DIRECTORIES[entries]
    names = tuple(b"f%06d" % number for number in range(entries // directories))
    for number in range(directories):
        driver.apply(Mkdir(At(), b"d%06d" % number, 0o755))
        driver.apply(BulkCreate(_directory(number), names, 0o644))
        if number % 100 == 99:
            driver.machine.commit()
    driver.machine.commit()


def _changes(entries: int) -> Iterator[Op]:
    """Yield CHANGES changes, spread over the tree."""
    step = DIRECTORIES[entries] // CHANGES
    body = (ChunkMap(0, (), (Extent(0, 5, data=b"hello"),)),)
    for number in range(CHANGES):
        there, name = _directory(number * step), b"f%06d" % number
        match number % 5:
            case 0:
                yield Create(there, b"new%d" % number, 0o644)
            case 1:
                yield Unlink(there, name)
            case 2:
                yield Publish(there, name, PublishMode.REPLACE, 0o644, 5, 0, body)
            case 3:
                yield Rename(
                    there, name, _directory((number + 50) % CHANGES * step), b"r%d" % number
                )
            case _:
                yield SetAttr(At(path=(*there.path, name)), mode=0o600)


def _pin(driver: Driver) -> int:
    """Pin the live tree; return the version."""
    pinned = result_codec.decode(driver.apply(PinView(0))).value
    version: int = pinned.version  # type: ignore[union-attr]
    return version


def _diff_ms(entries: int, directory: Path) -> list[float]:
    """Return the milliseconds of each read of one diff."""
    store = LmdbKV(directory / str(entries))
    driver = Driver(store)
    _plant(driver, entries)
    version = _pin(driver)
    for op in _changes(entries):
        driver.check(driver.apply(op))
    found = []
    for _ in range(READS):
        started = time.process_time()
        _, reply = driver.machine.read(ROOT, Diff(At(), At(), version))
        found.append((time.process_time() - started) * 1e3)
        assert isinstance(reply, DiffReply)
        assert not reply.more
        changed = {row.after or row.before for row in reply.rows}
        assert len(changed) == CHANGES, f"{len(changed)} changes of {CHANGES}"
    store.close()
    return found


def _create_us(directory: Path, *, pinned: bool) -> tuple[list[float], float]:
    """Return the microseconds of a create of each repeat, and index keys a create."""
    store = LmdbKV(directory / f"create-{pinned}")
    driver = Driver(store)
    driver.apply(Mkdir(At(), b"d", 0o755))
    if pinned:
        _pin(driver)
    there, found = At(path=(b"d",)), []
    names = (b"f%08d" % number for number in range(COMMANDS * REPEATS))
    for _ in range(REPEATS):
        payloads = [driver.encode(Create(there, n, 0o644)) for n in islice(names, COMMANDS)]
        started = time.process_time()
        for first in range(0, COMMANDS, 64):
            driver.apply_encoded(*payloads[first : first + 64])
        found.append((time.process_time() - started) / COMMANDS * 1e6)
    touched = sum(1 for _ in store.scan(Family.TOUCHED, b"", b"\xff" * 9))
    store.close()
    return found, touched / COMMANDS / REPEATS


def rows(base: Path) -> list[Row]:
    """Measure everything."""
    table = []
    with tempfile.TemporaryDirectory(dir=base) as directory:
        for entries in SIZES:
            row = Row(f"diff, {CHANGES} changes in {entries:,} entries", "ms", "-", 0, goal="20")
            row.values = _diff_ms(entries, Path(directory))
            table.append(row)
        small, large = (statistics.median(row.values) for row in table)
        ratio = Row("diff in 1M / diff in 10K entries", "ratio", "-", 0, goal="2")
        ratio.values = [large / small]
        table.append(ratio)
        for pinned in (False, True):
            row = Row(f"create, {'with a pin' if pinned else 'no pin'}", "us", "-", 0)
            row.values, touched = _create_us(Path(directory), pinned=pinned)
            row.why = f"{touched:.2f} keys of the change index each"
            table.append(row)
    return table


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="for the data")
    base = parser.parse_args().directory
    table = rows(base)
    facts = machine(base)
    show(TITLE, facts, table)
    save("diff", facts, table)


if __name__ == "__main__":
    main()
