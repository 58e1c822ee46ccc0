"""Run seeds by hand: `python -m tests.simulation --seeds 100 --start 0 --steps 4000 --jobs 2`."""

import argparse
import os
import sys
import time
from pathlib import Path

from tests.simulation import bugs, campaign
from tests.simulation.cluster import Simulation
from tests.simulation.ports import SECOND_NS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=None)
    parser.add_argument("--seconds", type=int, default=20, help="simulated, of the safety phase")
    parser.add_argument("--steps", type=int, default=None, help="of the safety phase, instead")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--totals", type=Path, default=None, help="add to this file, go on from it")
    parser.add_argument("--sum", type=Path, default=None, help="print the sums of a totals file")
    parser.add_argument("--bug", default=None, choices=sorted(bugs.BUGS), help="plant a bug")
    parser.add_argument("--trace", action="store_true", help="print a line an event")
    parser.add_argument("--hash", action="store_true", help="print each seed's trace hash")
    options = parser.parse_args()
    if options.sum is not None:
        for totals in campaign.summed(options.sum).values():
            print(campaign.describe(totals))
        return 0
    common = campaign.Options(options.nodes, options.seconds, options.steps, options.bug)
    if options.trace or options.hash:
        for seed in range(options.start, options.start + options.seeds):
            with bugs.planted(options.bug):
                simulation = Simulation(
                    seed, nodes=options.nodes, out=print if options.trace else None
                )
                simulation.run(options.seconds * SECOND_NS, steps=options.steps)
            print(f"seed {seed}: {simulation.trace.hexdigest()}")
        return 0
    started = time.monotonic_ns()
    totals = campaign.run(common, options.start, options.seeds, options.jobs, options.totals)
    print(campaign.describe(totals, time.monotonic_ns() - started))
    return 1 if totals.failed else 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
