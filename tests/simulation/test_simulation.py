"""Random schedules of whole groups: safety under faults, then convergence."""

import os
import subprocess
import sys
import time

import pytest
from tests.simulation.bugs import BUGS, planted
from tests.simulation.cluster import Simulation

BUDGET_S = float(os.environ.get("NOKV_SIMULATION_SECONDS", "25"))
START = int(os.environ.get("NOKV_SIMULATION_START", "0"))
SEEDS_AT_LEAST = 10
HUNT_SEEDS = 80

# Found by directed schedules only: see test_scenarios.
DIRECTED = {
    "answers before sync",
    "tail acknowledged",
    "old acks counted",
    "read rule 3",
    "vote forgotten",
}


def test_random_schedules_keep_every_promise() -> None:
    started, seed = time.monotonic(), START
    while seed < START + SEEDS_AT_LEAST or time.monotonic() - started < BUDGET_S:
        try:
            Simulation(seed).run()
        except Exception as error:  # noqa: BLE001 - each of them is a finding
            command = f"python -m tests.simulation --seeds 1 --start {seed}"
            pytest.fail(f"seed {seed}: {error}\nreplay with: {command}")
        seed += 1
    print(f"seeds {START}..{seed - 1}")


@pytest.mark.parametrize("nodes", [1, 2, 4, 5, 7])
def test_groups_of_other_sizes(nodes: int) -> None:
    for seed in range(2):
        Simulation(seed, nodes=nodes).run(8 * 1_000_000_000)


@pytest.mark.parametrize("bug", sorted(set(BUGS) - DIRECTED))
def test_random_search_finds_planted_bug(bug: str) -> None:
    with planted(bug):
        for seed in range(HUNT_SEEDS):
            try:
                Simulation(seed).run()
            except Exception as found:  # noqa: BLE001 - whatever shows it
                print(f"{bug}: seed {seed}: {type(found).__name__}: {str(found)[:100]}")
                return
    pytest.fail(f"{HUNT_SEEDS} seeds did not find {bug!r}")


def test_a_seed_is_the_same_run_in_every_process() -> None:
    outputs = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seeds", "3", "--trace"]
        result = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append([line for line in result.stdout.splitlines() if line.startswith("seed ")])
    assert len(outputs[0]) == 3
    assert outputs[0] == outputs[1]
