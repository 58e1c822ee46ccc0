"""Many seeds over several processes, with totals that a later run goes on from.

A totals file is append-only: one JSON line for each batch of seeds, with the commit it ran on.
"""

import json
import multiprocessing
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from tests.simulation import bugs, coverage
from tests.simulation.cluster import Simulation
from tests.simulation.ports import SECOND_NS

BATCH_SEEDS = 20


class Options(NamedTuple):
    """What every seed of a run has in common."""

    nodes: int | None
    seconds: int
    steps: int | None
    bug: str | None

    def flags(self) -> str:
        """Return the options as they are given on the command line."""
        words = [f"--nodes {self.nodes}"] if self.nodes is not None else []
        words.append(f"--steps {self.steps}" if self.steps else f"--seconds {self.seconds}")
        if self.bug is not None:
            words.append(f"--bug {self.bug!r}")
        return " ".join(words)


class Totals(msgspec.Struct):
    """Sums over a batch of seeds, or over many."""

    commit: str = ""
    steps_a_seed: int = 0
    first: int = 0
    seeds: int = 0
    steps: int = 0
    simulated_ns: int = 0
    took_ns: int = 0
    """Of one process; batches run side by side."""
    failed: list[int] = msgspec.field(default_factory=list)
    faults: dict[str, int] = msgspec.field(default_factory=dict)
    guards: dict[str, int] = msgspec.field(default_factory=dict)
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)

    def add(self, other: "Totals") -> None:
        """Add another batch."""
        self.seeds += other.seeds
        self.steps += other.steps
        self.simulated_ns += other.simulated_ns
        self.took_ns += other.took_ns
        self.failed += other.failed
        for mine, theirs in (
            (self.faults, other.faults),
            (self.guards, other.guards),
            (self.outcomes, other.outcomes),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count


def commit() -> str:
    """Return the commit of the tree this runs in, with a plus where it was changed."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def run_batch(options: Options, first: int, seeds: int) -> tuple[Totals, list[str]]:
    """Run some seeds; return their sums and what failed."""
    totals = Totals(first=first, seeds=seeds, steps_a_seed=options.steps or 0)
    reports = []
    faults: Counter[str] = Counter()
    guards: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    coverage.hits.clear()
    started = time.monotonic_ns()
    for seed in range(first, first + seeds):
        with bugs.planted(options.bug):
            simulation = None
            try:
                simulation = Simulation(seed, nodes=options.nodes)
                simulation.run(options.seconds * SECOND_NS, steps=options.steps)
            except Exception as error:  # noqa: BLE001 - each of them is a finding
                totals.failed.append(seed)
                reports.append(report(seed, error, options))
            if simulation is None:
                continue
        totals.steps += simulation.steps
        totals.simulated_ns += simulation.now_ns
        for name, count in simulation.stats.items():
            kind = name.startswith(("fault ", "died ", "disk ", "logs "))
            (faults if kind else outcomes)[name] += count
        images = simulation.network.images
        faults["fault image flip"] += images.flipped
        outcomes["image pieces"] += images.pieces
        outcomes["image connections"] += images.opened
        guards.update({name: simulation.counters[name] for name in coverage.COUNTED})
    guards.update(coverage.hits)
    totals.took_ns = time.monotonic_ns() - started
    totals.faults, totals.guards, totals.outcomes = dict(faults), dict(guards), dict(outcomes)
    return totals, reports


def report(seed: int, error: Exception, options: Options) -> str:
    """Return what failed, and the one command that shows it."""
    command = f"python -m tests.simulation --start {seed} {options.flags()} --trace"
    return f"seed {seed}: {type(error).__name__}: {error}\n  replay with: {command}"


def run(options: Options, first: int, seeds: int, jobs: int, file: Path | None) -> Totals:
    """Run all seeds that the totals file does not hold yet; print failures as they come."""
    mark = commit()
    done = set() if file is None else set(_done(file, options.steps or 0))
    starts = [s for s in range(first, first + seeds, BATCH_SEEDS) if s not in done]
    batches = [(s, min(BATCH_SEEDS, first + seeds - s)) for s in starts]
    totals = Totals(commit=mark, first=first, steps_a_seed=options.steps or 0)
    coverage.install()  # before the fork: a guard that is gone ends the run at once
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for batch, reports in pool.imap_unordered(partial(_batch, options), batches):
            batch.commit = mark
            totals.add(batch)
            for text in reports:
                print(text, flush=True)
            if file is not None:
                with file.open("ab") as out:
                    out.write(msgspec.json.encode(batch) + b"\n")
    return totals


def _batch(options: Options, batch: tuple[int, int]) -> tuple[Totals, list[str]]:
    return run_batch(options, *batch)


def _done(file: Path, steps: int) -> Iterator[int]:
    if file.exists():
        for line in file.read_text().splitlines():
            batch = json.loads(line)
            if batch["steps_a_seed"] == steps and batch["seeds"] == BATCH_SEEDS:
                yield batch["first"]


def summed(file: Path) -> dict[str, Totals]:
    """Return the sums of a totals file by commit."""
    sums: dict[str, Totals] = {}
    for line in file.read_bytes().splitlines():
        batch = msgspec.json.decode(line, type=Totals)
        sums.setdefault(batch.commit, Totals(commit=batch.commit)).add(batch)
    return sums


def describe(totals: Totals, wall_ns: int | None = None) -> str:
    """Return the totals for people."""
    wall_ns = wall_ns or totals.took_ns
    simulated_s, wall_s = totals.simulated_ns / 1e9, wall_ns / 1e9
    missed = [name for name in coverage.names() if not totals.guards.get(name)]
    hit = [f"{name} {totals.guards[name]:,}" for name in coverage.names() if name not in missed]

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))

    failed = f"{len(totals.failed)} failed {totals.failed[:10] or ''}"
    rate = f"{simulated_s / wall_s:,.0f} times real time"
    lines = (
        f"commit {totals.commit}: {totals.seeds:,} seeds, {failed}",
        f"simulated {simulated_s:,.0f} s in {wall_s:,.1f} s, {rate}; {totals.steps:,} steps",
        f"faults: {listed(totals.faults)}",
        f"outcomes: {listed(totals.outcomes)}",
        f"guards hit: {', '.join(hit)}",
        f"guards never hit: {', '.join(missed) or 'none'}",
    )
    return "\n".join(lines)
