"""Power cuts under the LMDB store, on a disk that loses what was not synced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.powercut.disk import PowerCutDisk, why_unusable
from tests.powercut.harness import DIGESTS, DiedError, Workload, first_problem, run_steps

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(bool(why_unusable()), reason=why_unusable() or "usable"),
]

COMMANDS = ("step", "step", "reopen", "step", "step", "step")


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[], PowerCutDisk]]:
    disks: list[PowerCutDisk] = []

    def make() -> PowerCutDisk:
        place = tmp_path / f"disk-{len(disks)}"
        (place / "mount").mkdir(parents=True)
        (place / "backing").mkdir()
        disks.append(PowerCutDisk(place / "mount", place / "backing"))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


INSTALLS = ("step", "step", "install", "step")


def problem_of_a_run(
    disk: PowerCutDisk, images: Path, seeds: list[int], commands: Sequence[str] = COMMANDS
) -> tuple[int, str]:
    """Run the commands, cut the power at every event, and judge every survivor."""
    disk.take_images(images, seeds)
    workload = Workload(disk.mountpoint / "state")
    try:
        acknowledged = run_steps(workload, commands, lambda: len(disk.events()))
    finally:
        workload.kill()
    disk.take_image()
    return first_problem(images, "state", acknowledged)


def test_a_cut_at_any_event_leaves_a_committed_state(
    new_disk: Callable[[], PowerCutDisk], tmp_path: Path
) -> None:
    disk, seeds = new_disk(), [1, 2, 3, 4]
    judged, problem = problem_of_a_run(disk, tmp_path / "images", seeds)
    assert problem == ""
    assert judged == (len(disk.events()) + 1) * (len(seeds) + 1)
    # Creation, two openings and five steps, each a sync of the data and one of the meta page; and
    # the two directories of the creation.
    assert len(disk.syncs()) == 2 * (1 + 2 + 5) + 2, disk.syncs()


def test_any_one_sync_taken_away_is_found(
    new_disk: Callable[[], PowerCutDisk], tmp_path: Path
) -> None:
    found: dict[int, str] = {}
    number, syncs = 0, 1
    while number < syncs:
        disk = new_disk()
        disk.ignore_sync(number)
        _, problem = problem_of_a_run(disk, tmp_path / f"images-{number}", [1])
        found[number] = f"{disk.syncs()[number]}: {problem}"
        assert problem, f"nobody missed sync {number}, {disk.syncs()[number]}"
        number, syncs = number + 1, len(disk.syncs())
        disk.close()
    print(*found.values(), sep="\n")
    assert len(found) == 18


def test_a_cut_at_any_event_of_an_installation_leaves_old_or_new(
    new_disk: Callable[[], PowerCutDisk], tmp_path: Path
) -> None:
    disk, seeds = new_disk(), [1, 2]
    judged, problem = problem_of_a_run(disk, tmp_path / "images", seeds, INSTALLS)
    assert problem == ""
    assert judged == (len(disk.events()) + 1) * (len(seeds) + 1)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (13, "sync data.mdb"),
        (14, "sync of a synchronous write of data.mdb"),
        (17, "sync directory /"),
    ],
)
def test_the_syncs_of_an_installation_are_missed(
    new_disk: Callable[[], PowerCutDisk], tmp_path: Path, number: int, name: str
) -> None:
    """The image's last commit, and its new name. The others only repeat what a later one does."""
    disk = new_disk()
    disk.ignore_sync(number)
    _, problem = problem_of_a_run(disk, tmp_path / "images", [1], INSTALLS)
    assert disk.syncs()[number] == name
    assert problem


def test_machines_that_lose_power_again_and_again(new_disk: Callable[[], PowerCutDisk]) -> None:
    """The real thing: the running process gets errors, and the next one opens the same mount."""
    disk = new_disk()
    committed = opens = 0
    for number in range(30):
        disk.cut_at(len(disk.events()) + number)
        workload = Workload(disk.mountpoint / "state")
        try:
            _, opened, step, digest = workload.listen()
            assert step in {committed, committed + 1}, f"cut {number}"
            assert digest == DIGESTS[step], f"cut {number}"
            assert opened > opens, f"cut {number}"
            committed, opens = step, opened
            while True:
                committed = workload.ask("step")[1]
        except DiedError:
            pass
        finally:
            workload.kill()
        disk.cut(seed=None if number % 3 == 0 else number)
    assert committed > 20
