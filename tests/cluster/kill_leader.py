"""Kill the leader of a real cluster again and again: nothing may be lost, nothing may happen twice.

    python tests/cluster/kill_leader.py --runs 200 --seed 1

Each run: eight writers and a serial one work, after a random while the leader is killed with
`kill -9`, the next commit is waited for, the killed node is started again and catches up, and then
everything that was acknowledged is looked for. Prints a line a run and the median time from the
kill to the next commit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from nokv.testing.cluster import LocalCluster
from nokv.testing.commits import committing
from nokv.testing.harness import harness
from nokv.testing.writers import Verdict, check_writers, writing


class Run(NamedTuple):
    """What one kill showed."""

    killed: int
    leader: int
    gap_s: float
    """From the kill to the next commit."""
    back_s: float
    """From the start of the killed node until it had caught up."""
    verdict: Verdict


async def one_run(
    cluster: LocalCluster, base: str, journals: Path, rng: random.Random, writers: int = 8
) -> Run:
    """Kill the leader once, below the new directory `base`."""
    async with harness(cluster.addresses) as client:
        cursor = (await client.fs.mkdir(base)).version
        async with (
            writing(cluster.addresses, f"{base}/writers", journals, writers) as working,
            committing(cluster.addresses, f"{base}/serial") as commits,
        ):
            started_s = time.monotonic()
            await commits.wait_after(started_s)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            killed = await asyncio.to_thread(cluster.leader)
            moment_s = time.monotonic()
            cluster.kill(killed)
            await commits.wait_after(moment_s)
            gap_s = commits.gap_after(moment_s)
            assert gap_s is not None
            restarted_s = time.monotonic()
            await asyncio.to_thread(cluster.restart, killed)
            await asyncio.to_thread(cluster.wait_caught_up, killed)
            back_s = time.monotonic() - restarted_s
            leader = await asyncio.to_thread(cluster.leader)
        verdict = await check_writers(client.fs, working, cursor)
        await client.fs.remove_tree(base)
    return Run(killed, leader, gap_s, back_s, verdict)


async def campaign(
    cluster: LocalCluster, runs: int, seed: int, *, quiet: bool = False
) -> list[Run]:
    """Return what `runs` kills showed; stop at the first that does not hold."""
    rng = random.Random(seed)
    done: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="nokv-journals-") as folder:
        for number in range(runs):
            base = f"/kill-{seed}-{number}"
            run = await one_run(cluster, base, Path(folder) / str(number), rng)
            done.append(run)
            verdict = run.verdict
            if not quiet:
                print(
                    f"{number + 1:>4}  killed {run.killed}, next commit after "
                    f"{run.gap_s * 1000:.0f} ms from {run.leader}, back after {run.back_s:.2f} s: "
                    f"{verdict.done} acknowledged, {verdict.unknown} unknown, "
                    f"{len(verdict.lost)} lost, {len(verdict.duplicated)} duplicated",
                    flush=True,
                )
            if not verdict.holds:
                break
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end only")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    if not options.json:
        print(f"seed {seed}")
    with LocalCluster.start() as cluster:
        runs = asyncio.run(campaign(cluster, options.runs, seed, quiet=options.json))
    gaps_ms = [run.gap_s * 1000 for run in runs]
    broken = [run.verdict.problems() for run in runs if not run.verdict.holds]
    summary = {
        "runs": len(runs),
        "seed": seed,
        "gap_ms_median": round(statistics.median(gaps_ms), 1),
        "gap_ms_max": round(max(gaps_ms), 1),
        "acknowledged": sum(run.verdict.done for run in runs),
        "unknown": sum(run.verdict.unknown for run in runs),
        "problems": broken,
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print(
            f"{summary['runs']} kills, {summary['acknowledged']} acknowledged: median "
            f"{summary['gap_ms_median']} ms, at most {summary['gap_ms_max']} ms to the next commit"
        )
        print("\n".join(["NOT AS PROMISED", *broken]) if broken else "nothing lost, nothing twice")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
