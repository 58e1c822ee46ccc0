"""Power cuts under the LMDB store, judged from the file's image at each of its syncs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.powercut.harness import first_problem, run_steps
from tests.powercut.sync_watch import WatchedWorkload, why_unwatchable

pytestmark = pytest.mark.skipif(bool(why_unwatchable()), reason=why_unwatchable() or "usable")

COMMANDS = ("step", "step", "reopen", "step", "step")


def problem_of_a_run(
    place: Path, seeds: list[int], ignored_sync: int = -1
) -> tuple[int, str, list[str]]:
    """Run COMMANDS, take images at every sync, and judge them all."""
    root, images = place / "root", place / "images"
    root.mkdir(parents=True)
    workload = WatchedWorkload(root, images, seeds, ignored_sync)
    try:
        if workload.unusable:
            pytest.skip(f"this kernel lets nobody watch syncs: {workload.unusable}")
        acknowledged = run_steps(workload, COMMANDS, lambda: len(workload.syncs))
        workload.take_image()
    finally:
        workload.kill()
    return *first_problem(images / "at", "state", acknowledged), workload.syncs


def test_an_image_at_any_sync_is_a_committed_state(tmp_path: Path) -> None:
    judged, problem, syncs = problem_of_a_run(tmp_path, [1, 2, 3])
    assert problem == ""
    assert len(syncs) == 2 * (1 + 2 + 4), syncs
    assert judged == (len(syncs) + 1) * 4


def test_any_one_sync_taken_away_is_found(tmp_path: Path) -> None:
    found: list[str] = []
    total = 1
    while len(found) < total:
        number = len(found)
        _, problem, syncs = problem_of_a_run(tmp_path / str(number), [1], number)
        assert problem, f"nobody missed sync {number}, {syncs[number]}"
        found.append(f"{syncs[number]}: {problem}")
        total = len(syncs)
    print(*found, sep="\n")
    assert total == 14
