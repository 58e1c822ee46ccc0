"""`python -m bench.views`: what snapshot, clone, rollback and removal cost inside apply, by size.

One replica's share over LMDB, without replication and sockets: decode, apply, encode the result,
flush the entry. Wall time; commits are not timed. A tree has directories of 1,000 files.

    python -m bench.views                    trees of 1,000, 100,000 and 1,000,000 files
    python -m bench.views --sizes 1000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from bench.apply import ROOT, Driver
from bench.report import Row
from nokv.kv.lmdb_store import LmdbKV
from nokv.types.commands import BulkCreate, Create, Mkdir, Op, Reap, RemoveTree
from nokv.types.reads import GetAttr
from nokv.types.values import At
from nokv.types.views import Clone, Rollback, SnapshotCreate, SnapshotDelete

FILES = 1000
REPEATS = 9
READS = 3000
DEPTH = 8
DAY_NS = 86_400 * 1_000_000_000
TREE = At(path=(b"tree",))


class Tree:
    """A state machine over LMDB that holds `/tree` with so many files."""

    def __init__(self, directory: Path, size: int) -> None:
        self.kv = LmdbKV(directory / "state")
        self.driver = Driver(self.kv)
        self.numbers = count()
        self.do(Mkdir(At(), b"tree", 0o755))
        names = tuple(b"file-%04d" % number for number in range(FILES))
        for number in range(size // FILES):
            self.do(Mkdir(TREE, b"dir-%04d" % number, 0o755))
            self.do(BulkCreate(At(path=(b"tree", b"dir-%04d" % number)), names, 0o644))
        self.kv.commit()

    def do(self, *ops: Op) -> float:
        """Apply the operations as one entry; return the seconds that it took."""
        payloads = [self.driver.encode(op) for op in ops]
        started = time.perf_counter()
        result = self.driver.apply_encoded(*payloads)
        elapsed = time.perf_counter() - started
        self.driver.check(result)
        return elapsed

    def fresh(self) -> int:
        """Return a number that was not used for a name yet."""
        return next(self.numbers)

    def snapshot(self) -> str:
        """Take a snapshot of the tree; return its name."""
        name = f"s{self.fresh()}"
        self.do(SnapshotCreate(TREE, name, b"/tree"))
        return name


def _medians(tree: Tree) -> Iterator[tuple[str, float]]:
    """Yield (what, microseconds), the median of some interleaved repeats."""
    found: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        found.setdefault(what, []).append(seconds * 1e6)

    for _ in range(REPEATS):
        number = tree.fresh()
        snapshot, clone = f"s{number}", b"c%d" % number
        note("create", tree.do(Create(TREE, b"f%d" % number, 0o644)))
        note("snapshot", tree.do(SnapshotCreate(TREE, snapshot, b"/tree")))
        tree.do(Create(TREE, b"g%d" % number, 0o644))
        note("clone", tree.do(Clone(TREE, At(), clone)))
        tree.do(Create(At(path=(clone,)), b"h", 0o644))
        note("rollback of the clone", _rollback(tree, clone))
        note("removal of the clone", tree.do(RemoveTree(At(), clone)))
        note("snapshot delete", tree.do(SnapshotDelete(snapshot)))
    for what, values in found.items():
        yield what, statistics.median(values)


def _rollback(tree: Tree, clone: bytes) -> float:
    name = f"r{tree.fresh()}"
    tree.do(SnapshotCreate(At(path=(clone,)), name, b"/clone"))
    tree.do(Create(At(path=(clone,)), b"later", 0o644))
    return tree.do(Rollback(At(), clone, name, b"/clone", DAY_NS))


def _reads(tree: Tree) -> Iterator[tuple[str, float]]:
    """Yield microseconds a getattr of a path of three, live and through clones of clones."""
    places = [b"tree"]
    for depth in range(DEPTH):
        name = b"deep-%d" % depth
        tree.do(Clone(At(path=(places[-1],)), At(), name))
        tree.do(Create(At(path=(name,)), b"own-%d" % depth, 0o644))
        places.append(name)
    found: dict[int, list[float]] = {}
    names = [b"file-%04d" % (7 * number % FILES) for number in range(READS)]
    for _ in range(3):
        for depth in (0, 1, DEPTH):
            read = tree.driver.machine.read
            requests = [GetAttr(At(path=(places[depth], b"dir-0000", name))) for name in names]
            started = time.perf_counter()
            for request in requests:
                read(ROOT, request)
            found.setdefault(depth, []).append((time.perf_counter() - started) / READS * 1e6)
    for depth, values in found.items():
        yield f"getattr through {depth} clones", statistics.median(values)


def _creates(tree: Tree) -> Iterator[tuple[str, float]]:
    """Yield microseconds a file, without and with a snapshot of the whole tree."""
    found: dict[str, list[float]] = {}

    def run(kind: str, what: str, ops: Callable[[], list[Op]], files: int) -> None:
        seconds = sum(tree.do(*ops()) for _ in range(20))
        found.setdefault(f"{kind}, {what}", []).append(seconds / 20 / files * 1e6)

    def single() -> list[Op]:
        return [Create(TREE, b"x%08d" % tree.fresh(), 0o644) for _ in range(64)]

    def bulk() -> list[Op]:
        names = tuple(b"y%08d" % tree.fresh() for _ in range(1024))
        return [BulkCreate(TREE, names, 0o644)]

    for _ in range(5):
        for what in ("no snapshot", "a snapshot of the tree"):
            name = tree.snapshot() if what != "no snapshot" else ""
            run("create, 64 an entry", what, single, 64)
            run("bulk create of 1,024", what, bulk, 1024)
            if name:
                tree.do(SnapshotDelete(name))
                while tree.driver.machine.pending_work():
                    tree.do(Reap(10_000))
    for what, values in sorted(found.items()):
        yield what, statistics.median(values)


def rows(directory: Path, size: int) -> list[Row]:
    """Return the rows of a tree of so many files, kept in a folder below `directory` meanwhile."""
    found = []
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        tree = Tree(Path(folder), size)
        for measure in (_creates, _medians, _reads):  # the later ones leave pins behind
            for what, microseconds in measure(tree):
                title = f"{what}, in apply, {size:,} files"
                found.append(Row(title, "us", "no commit", 1, [microseconds]))
        tree.kv.close()
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    options = parser.parse_args()
    for size in options.sizes:
        for row in rows(Path(tempfile.gettempdir()), size):
            print(f"{row.name:<62} {row.median:10.1f} us", flush=True)


if __name__ == "__main__":
    main()
