"""Facts of the machine, medians of interleaved repeats, tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")


@dataclass(slots=True)
class Row:
    """One line of the table. `values` are the repeats, in `unit`; none: NOT MEASURED."""

    name: str
    unit: str
    durable: str
    """What had been synced when a request was answered."""
    nodes: int
    values: list[float] = field(default_factory=list)
    goal: str = ""
    peer: str = ""
    """The original's figure on the same kind of machine, where there is one."""
    syncs: str = ""
    """Sync calls of all nodes in a run of one second of its own, counted by strace."""
    why: str = ""
    """Why it was not measured, or what to know about it."""

    @property
    def median(self) -> float | None:
        """Median of the repeats."""
        return statistics.median(self.values) if self.values else None


def sync_cost_us(directory: Path, count: int = 400) -> float:
    """Return the median cost of pwrite and fdatasync of 4 KiB in a written file, microseconds."""
    path = directory / "sync-cost"
    page = os.urandom(4096)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, page * 256)
        os.fsync(fd)
        costs = []
        for i in range(count):
            start = time.perf_counter()
            os.pwrite(fd, page, i % 256 * 4096)
            os.fdatasync(fd)
            costs.append(time.perf_counter() - start)
    finally:
        os.close(fd)
        path.unlink()
    return statistics.median(costs) * 1e6


def machine(directory: Path) -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    stat = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": stat.stdout.split()[0] if stat.stdout else "unknown",
        "sync_us": round(sync_cost_us(directory), 1),
    }


def show(title: str, facts: dict[str, Any], rows: list[Row]) -> None:
    """Print one table."""
    table = Table(title=title, caption=", ".join(f"{k} {v}" for k, v in facts.items()))
    for column in (
        "what",
        "median",
        "min - max",
        "unit",
        "durable",
        "nodes",
        "syncs in 1 s (strace)",
    ):
        table.add_column(column)
    table.add_column("goal")
    table.add_column("original")
    for row in rows:
        if row.median is None:
            table.add_row(row.name, "NOT MEASURED", "", row.unit, row.durable, "", row.why)
            continue
        table.add_row(
            row.name,
            _number(row.median),
            f"{_number(min(row.values))} - {_number(max(row.values))}",
            row.unit,
            row.durable,
            str(row.nodes),
            row.syncs,
            row.goal,
            row.peer,
        )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    for row in rows:
        if row.why and row.values:
            console.print(f"  {row.name}: {row.why}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def save(name: str, facts: dict[str, Any], rows: list[Row]) -> Path:
    """Write the JSON beside earlier ones, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    data = {"machine": facts, "rows": [{**asdict(row), "median": row.median} for row in rows]}
    path.write_text(json.dumps(data, indent=2) + "\n")
    return path
