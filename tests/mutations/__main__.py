"""`python -m tests.mutations [NAME ...]`: switch off each guard; the tests must notice.

For each guard the package is copied, the guard's text replaced, and the tests named for it run
against the copy, fail-fast. A guard whose tests pass has survived: then either the guard or a test
is missing. The tests of all guards run once unchanged first: a kill by a broken test is none.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.mutations.guard import Guard, mutated
from tests.mutations.guards import GUARDS

ROOT = Path(__file__).parents[2]
LIMIT_S = 240
"""One run of tests; a mutant that never ends is one that was noticed."""


class Verdict(NamedTuple):
    """How one run ended: what failed first, None when nothing did."""

    killer: str | None
    took_s: float


def run_tests(tests: list[str], package: Path) -> Verdict:
    """Run tests with `package` in the place of the project's own."""
    path = (package, ROOT, ROOT / "replication", ROOT / "nokv")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NOKV_SIMULATION_SECONDS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:randomly", *tests]
    started = time.monotonic()
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict("(no end)", time.monotonic() - started)
    took_s = time.monotonic() - started
    if result.returncode == 0:
        return Verdict(None, took_s)
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    if found is None:
        # A mutant may end the test process itself; anything else must be seen.
        return Verdict(f"(exit {result.returncode})", took_s)
    return Verdict(found[1], took_s)


def try_guard(guard: Guard, folder: Path) -> Verdict:
    """Switch one guard off in a copy of its package, and run its tests."""
    source = ROOT / guard.package
    copy = folder / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path, changed in mutated(copy, guard).items():
        path.write_text(changed)
    try:
        return run_tests(list(guard.tests), folder)
    finally:
        shutil.rmtree(copy)


def main() -> int:
    """Return the number of guards that survived, or 1 where the tests fail without any."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="guards to switch off; all by default")
    options = parser.parse_args()
    names = options.names or sorted(GUARDS)
    started = time.monotonic()
    every = sorted({test for name in names for test in GUARDS[name].tests})
    with tempfile.TemporaryDirectory() as empty:
        baseline = run_tests(every, Path(empty))
    if baseline.killer is not None:
        print(f"the tests fail unchanged: {baseline.killer}")
        return 1
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            verdict = try_guard(GUARDS[name], Path(folder))
            killer = verdict.killer or "SURVIVED"
            print(f"{name:42} {verdict.took_s:5.1f} s  {killer}", flush=True)
            if verdict.killer is None:
                survivors.append(name)
    took_s = time.monotonic() - started
    print(f"{len(names)} guards switched off in {took_s:.0f} s, {len(survivors)} survived")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main())
