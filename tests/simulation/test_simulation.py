"""Random schedules of whole groups: safety under faults, then convergence."""

import os
import subprocess
import sys
import time

import pytest
from tests.simulation.bugs import BUGS, planted
from tests.simulation.campaign import Options, report
from tests.simulation.cluster import Simulation
from tests.simulation.ports import SECOND_NS

BUDGET_S = float(os.environ.get("NOKV_SIMULATION_SECONDS", "60"))
START = int(os.environ.get("NOKV_SIMULATION_START", "0"))
SEEDS_AT_LEAST = 10
STEPS = 4000
HUNT_SEEDS = 80
HUNT_STEPS = 2500
# Where a search begins that would take long from 0 on; it finds its bug soon after.
HUNT_FROM = {"two changes at once": 30, "votes counted twice": 50}

# Found by directed schedules only: see test_scenarios and test_operator_scenarios.
DIRECTED = {
    "old acks counted",
    "read rule 3",
    "stranger accepted",
    "pre-vote never again",
    "old image installed",
    "candidate installs",
    "digest not checked",
    "any entry skipped",
    "skip lists differ",
}

# Each showed a bug of the layer, or of this simulator, when it was found.
ONCE_FOUND = {
    36: "a log opened after a kill between rename and fsync_dir lost its newest segment's name",
    2: "a single voter's commit index runs ahead of its own sync",
    23: "a leader with a due tick that hands over asked for step after step",
    2038: "a leader whose quorum's clocks left with removed members asked for step after step",
    5121: "a process in a slow sync was stepped again and again, its clock ran ahead",
    3014: "a learner that held nothing was promoted; it did not vote, and the group was stuck",
    400041: "two votes of two terms in one step, and two segments filled after them",
    0: "two votes of two terms in one step, both durable",
    261: "a leader counted what a disk that was lost since had acknowledged",
    1667: "an image took the place of a change of members that was never committed",
    2894: "entries acknowledged to one leader were replaced by the next one's in the same step",
    5529: "a disk was lost while a node that was down did not know all first members yet",
    8978: "a founder alone led again before an entry named the members",
    9168: "a single voter told its learner of a commit in a new segment before it was synced",
    15168: "a leader whose disk failed as it wrote the term that deposed it was taken to lead that",
    1000623: "the only first member came back with an empty disk and founded again",
    1001291: "an answer to a question of a reader's process before: a stale read",
}


def run_seed(seed: int, *, nodes: int | None = None, steps: int = STEPS) -> Simulation:
    try:
        simulation = Simulation(seed, nodes=nodes)
        simulation.run(steps=steps)
    except Exception as error:  # noqa: BLE001 - each of them is a finding
        pytest.fail(report(seed, error, Options(nodes, 20, steps, None)))
    return simulation


def test_random_schedules_keep_every_promise() -> None:
    started, seed = time.monotonic(), START
    while seed < START + SEEDS_AT_LEAST or time.monotonic() - started < BUDGET_S:
        run_seed(seed)
        seed += 1
    print(f"seeds {START}..{seed - 1}")


@pytest.mark.parametrize("seed", ONCE_FOUND, ids=lambda seed: f"seed{seed}")
def test_seeds_that_once_failed(seed: int) -> None:
    run_seed(seed)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6, 7])
def test_groups_of_every_size(nodes: int) -> None:
    for seed in range(2):
        run_seed(1000 + seed, nodes=nodes, steps=2000)


@pytest.mark.parametrize("bug", sorted(set(BUGS) - DIRECTED))
def test_random_search_finds_planted_bug(bug: str) -> None:
    start = HUNT_FROM.get(bug, 0)
    with planted(bug):
        for seed in range(start, start + HUNT_SEEDS):
            try:
                Simulation(seed).run(steps=HUNT_STEPS)
            except Exception as found:  # noqa: BLE001 - whatever shows it
                print(f"{bug}: seed {seed}: {type(found).__name__}: {str(found)[:100]}")
                return
    pytest.fail(f"{HUNT_SEEDS} seeds from {start} on did not find {bug!r}")


def test_a_seed_is_the_same_run_in_every_process() -> None:
    outputs = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation"]
        command += ["--seeds", "4", "--steps", "1500", "--hash"]
        result = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append([line for line in result.stdout.splitlines() if line.startswith("seed ")])
    assert len(outputs[0]) == 4
    assert outputs[0] == outputs[1]


def test_what_a_run_does_to_its_cluster_is_what_it_says() -> None:
    # A fault that is never injected, or always fails to be, would prove nothing.
    kinds = set()
    for seed in range(30):
        simulation = run_seed(seed, steps=1000)
        kinds |= {name.split()[1] for name in simulation.stats if name.startswith("fault ")}
        assert simulation.now_ns > 2 * SECOND_NS
    wanted = {"kill", "power", "armed", "cut", "one_way", "shape", "clog", "flap", "repeat"}
    wanted |= {"garbage", "pause", "wall", "no_space", "slow_sync", "io_error"}
    assert wanted <= kinds
