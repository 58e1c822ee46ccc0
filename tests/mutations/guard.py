"""One guard of replication: the text that switches it off, and the tests likely to notice."""

from pathlib import Path
from typing import NamedTuple

UNIT = "tests/unit/replication"
FIGURE2 = f"{UNIT}/test_figure2.py"
THESIS = f"{UNIT}/test_thesis.py"
GROUP = f"{UNIT}/test_group.py"
HANDSHAKES = f"{UNIT}/test_handshakes.py"
DIRECTED = f"{UNIT}/test_guards.py"
LOG = f"{UNIT}/test_log.py"
VALUES = f"{UNIT}/test_values.py"
REPLICATION = "tests/regressions/test_replication.py"
IMAGES = "tests/regressions/test_images.py"
RESTART = "tests/regressions/test_restart.py"
JOURNAL = "tests/regressions/test_journal.py"
MEMBERS = "tests/regressions/test_members.py"
APPLY = "tests/regressions/test_apply.py"
IMAGE_TESTS = f"{UNIT}/test_images.py"
COUNTING = f"{UNIT}/test_counting.py"
SET_BACK = f"{UNIT}/test_set_back.py"
SLOW = f"{UNIT}/test_slow_peers.py"
SKIPS = f"{UNIT}/test_skips.py"
DAMAGE = f"{UNIT}/test_damage.py"
TCP = f"{UNIT}/test_network.py"
DRIVER = f"{UNIT}/test_driver.py"
GOLDEN = "tests/golden"
SCENARIOS = "tests/simulation/test_scenarios.py"
RANDOM = "tests/simulation/test_simulation.py::test_random_schedules_keep_every_promise"


class Guard(NamedTuple):
    """`changes`: pairs of text in `module` and what takes its place."""

    module: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    package: str = "replication/nokv_replication"
    also: tuple[tuple[str, str, str], ...] = ()
    """(module, text, what takes its place) of a second line of defence, switched off with it."""


def off(module: str, old: str, new: str, *tests: str) -> Guard:
    return Guard(module, ((old, new),), tests)


def mutated(package: Path, guard: Guard) -> dict[Path, str]:
    """Return the changed modules of a package, by path, with the guard switched off.

    Raises:
        ValueError: some text of the guard is not there exactly once.
    """
    sources: dict[Path, str] = {}
    changes = [(guard.module, *change) for change in guard.changes]
    for module, old, new in (*changes, *guard.also):
        path = package / module
        source = sources[path] if path in sources else path.read_text()
        if source.count(old) != 1:
            message = f"{module} holds {old!r} {source.count(old)} times, not once"
            raise ValueError(message)
        sources[path] = source.replace(old, new)
    return sources
