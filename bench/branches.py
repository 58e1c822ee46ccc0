"""Views on real nodes: snapshot, clone, rollback and removal beside a plain create.

`python -m bench views` runs it; `python -m bench.views` shows what they cost inside apply.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable

from bench import workloads
from bench.report import Row
from nokv.client.fs import AsyncClient

ROUNDS = 25
"""Calls of each kind in one repeat, in turns."""

CLONES = 8
"""Clones of clones that the deepest reads go through."""

SYNC = "fdatasync"


async def _ms(call: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1000


async def latencies(fs: AsyncClient, files: int, repeats: int) -> list[Row]:
    """Return rows of the median latency of each call, over a directory of so many files."""
    tree = f"/tree-{files}"
    await workloads.fill(fs, tree, files)
    numbers = itertools.count()

    async def one_round(found: dict[str, list[float]]) -> None:
        def note(what: str, ms: float) -> None:
            found.setdefault(what, []).append(ms)

        number = next(numbers)
        name, clone = f"s{files}-{number}", f"/c{files}-{number}"
        note("create", await _ms(lambda: fs.create(f"{tree}/new-{number}")))
        note("snapshot", await _ms(lambda: fs.snapshots.create(tree, name)))
        note("clone", await _ms(lambda: fs.clone(tree, clone)))
        await fs.snapshots.create(clone, f"{name}-c")
        await fs.create(f"{clone}/later")
        note("rollback", await _ms(lambda: fs.rollback(clone, f"{name}-c")))
        note("removal of a clone", await _ms(lambda: fs.remove_tree(clone)))
        note("snapshot delete", await _ms(lambda: fs.snapshots.delete(name)))

    rows: dict[str, Row] = {}
    for _ in range(repeats):
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            await one_round(found)
        for what, values in found.items():
            title = f"{what}, {files:,} files"
            row = rows.setdefault(what, Row(title, "ms p50", SYNC, 3))
            row.values.append(sorted(values)[len(values) // 2])
    return list(rows.values())


async def creates_under_a_snapshot(fs: AsyncClient, seconds: float, repeats: int) -> list[Row]:
    """Return creates a second without and with a snapshot of the whole tree, and their ratios."""
    rows: list[Row] = []
    loads = [
        ("creates, 64 outstanding", workloads.single_creates, "0.8"),
        ("bulk creates", workloads.bulk_sequential, "0.6"),
    ]
    for title, workload, goal in loads:
        plain = Row(title, "1/s", SYNC, 3)
        held = Row(f"{title}, a snapshot of /", "1/s", SYNC, 3)
        for turn in range(repeats):
            plain.values.append(await workload(fs, seconds))
            name = f"all-{goal}-{turn}"
            await fs.snapshots.create("/", name)
            held.values.append(await workload(fs, seconds))
            await fs.snapshots.delete(name)
        share = Row(f"{title}, with / without", "ratio", "", 3, goal=goal)
        share.values = [a / b for a, b in zip(held.values, plain.values, strict=True)]
        rows += [plain, held, share]
    return rows


async def reads_through_clones(fs: AsyncClient, seconds: float, repeats: int) -> list[Row]:
    """Return stats a second of the live tree and through clones of clones, and their ratio.

    Each clone has a file of its own, so that none is skipped.
    """
    live = (await workloads.make_stat_files(fs)).removesuffix("/a")
    places = [live]
    for depth in range(CLONES):
        place = f"{live}-clone-{depth}"
        await fs.clone(places[-1], place)
        await fs.create(f"{place}/own-{depth}")
        places.append(place)
    rows: list[Row] = []
    for outstanding in (1, 16):
        title = f"stats, {outstanding} outstanding"
        plain = Row(title, "1/s", "", 3)
        deep = Row(f"{title}, through {CLONES} clones", "1/s", "", 3)
        for _ in range(repeats):
            for row, place in ((plain, places[0]), (deep, places[-1])):
                row.values.append(await workloads.stats(fs, f"{place}/a", outstanding, seconds))
        share = Row(f"{title}, clone / live", "ratio", "", 3, goal="0.5")
        share.values = [a / b for a, b in zip(deep.values, plain.values, strict=True)]
        rows += [plain, deep, share]
    return rows
