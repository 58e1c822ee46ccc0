"""Run seeds by hand: `python -m tests.simulation --seeds 100 --start 0`."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.cluster import Simulation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=None)
    parser.add_argument("--seconds", type=int, default=20, help="simulated, of the safety phase")
    parser.add_argument("--bug", default=None, help="plant a bug of tests.simulation.bugs")
    parser.add_argument("--trace", action="store_true", help="print each seed's trace hash")
    options = parser.parse_args()
    from tests.simulation import bugs

    stats: Counter[str] = Counter()
    failed = 0
    started = time.perf_counter()
    for seed in range(options.start, options.start + options.seeds):
        with bugs.planted(options.bug):
            try:
                simulation = Simulation(seed, nodes=options.nodes)
                simulation.run(options.seconds * 1_000_000_000)
            except Exception as error:
                failed += 1
                print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
                if options.seeds == 1:
                    raise
                continue
        stats.update(simulation.stats)
        if options.trace:
            print(f"seed {seed}: {simulation.trace.hexdigest()}")
    took = time.perf_counter() - started
    print(f"{options.seeds} seeds, {failed} failed, {took:.1f} s: {dict(sorted(stats.items()))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
