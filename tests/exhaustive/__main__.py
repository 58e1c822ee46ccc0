"""`python -m tests.exhaustive --depth N`: the search, with what it went through on the output."""

from __future__ import annotations

import argparse
import sys
import time

from tests.exhaustive.explore import Disagreement, Search
from tests.exhaustive.programs import CORE


def main() -> int:
    """Search every program to a depth; 1 after a disagreement."""
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive", description=__doc__)
    parser.add_argument("--depth", type=int, default=3, help="steps of the longest programs")
    parser.add_argument("--reduce", action="store_true", help="go on from a canonical state once")
    parser.add_argument("--core", action="store_true", help="one step of each kind only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    chosen = parser.parse_args()
    until = time.monotonic() + chosen.seconds
    for depth in range(1, chosen.depth + 1):
        only = CORE if chosen.core else ()
        search = Search(depth, reduce=chosen.reduce, only=only, until=until)
        try:
            explored = search.run()
        except Disagreement as found:
            print(f"after {search.explored.steps} steps: {found}")
            return 1
        cut = time.monotonic() > until
        how = "each state once" if chosen.reduce else "every program"
        print(explored.told(), f"({how}{', cut off' if cut else ''})", flush=True)
        if cut:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
