"""The machine on both stores, its rules' outcomes counted, and every planted bug found."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.machine.bugs import BUGS
from tests.machine.limits import small_limits
from tests.machine.rules import NamespaceMachine, Outcomes
from tests.machine.shrinking import Shrinker, program
from tests.machine.world import World

from nokv.kv.lmdb_store import LmdbKV

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
STEPS = 40
EXAMPLES = 300
LMDB_EXAMPLES = 60
SMALL_EXAMPLES = 200
BUG_EXAMPLES = 3_000
COVERED = 0.95
FOCUS = {
    "dedupe": "mkdir unlink lease_uploads publish_create open_session expire_session retry node",
    "names": "mkdir create link unlink rmdir remove_tree rename exchange chmod chown truncate",
    "bodies": "publish_create publish_replace publish_patch publish_append truncate lease_uploads",
    "lists": "mkdir create set_list chmod chown access get_attr",
    "trash": "trash restore_trash empty_trash keep_trash list_trash node mkdir link remove_tree"
    " publish_create workspace_create read_dir",
}
"""Area -> the rules that its bugs are looked for with, where that is quicker than with all."""
DIRECTED = {"views", "holds"}
"""Areas whose bugs take the right five steps in a row: tests/exhaustive finds them."""


def _repeatable() -> bool:
    """Whether the run is always the same: not so in a campaign."""
    profile = settings.default
    assert profile is not None
    return profile.derandomize


def _settings(examples: int) -> settings:
    """A bounded, repeatable run; the campaign profile has its own, larger numbers.

    Examples are not shrunk by Hypothesis: the world's own actions shrink better and quicker.
    """
    bounded = settings(
        phases=[Phase.generate],
        suppress_health_check=SLOW,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    if not _repeatable():
        return bounded
    return settings(bounded, max_examples=examples, stateful_step_count=STEPS)


def _machine(name: str, base: type[NamespaceMachine]) -> type[NamespaceMachine]:
    """A machine class of its own, so that its outcomes and worlds are."""
    return type(name, (base,), {"outcomes": Outcomes()})


def _focused(name: str, area: str) -> type[NamespaceMachine]:
    """A machine with the rules of an area alone; in a campaign with all."""
    machine = _machine(name, NamespaceMachine)
    if area not in FOCUS or not _repeatable():
        return machine
    kept = set(FOCUS[area].split())
    every = {rule.function.__name__ for rule in machine().rules}
    assert kept <= every, f"no rules: {kept - every}"
    for rule in every - kept:
        setattr(machine, rule, None)
    machine.builders = tuple(build for build in machine.builders if build.__name__ in kept)
    return type(name, (machine,), {})


def run(machine: type[NamespaceMachine], examples: int) -> None:
    """Run a machine; a failure is raised as the fewest actions that show it."""
    try:
        run_state_machine_as_test(machine, settings=_settings(examples))
    except Exception as error:
        if not machine.world.failed:
            raise
        actions = Shrinker(machine.make_world, error).shrink(machine.world.actions)
        message = f"{error}\n\n{program(actions)}"
        raise AssertionError(message) from error


@pytest.mark.timeout(900)  # a minute with a core to itself
def test_memory() -> None:
    """Model and state machine agree; nearly every rule succeeded and failed in the run."""
    machine = _machine("OnMemory", NamespaceMachine)
    run(machine, EXAMPLES)
    seen = machine.outcomes
    rules = {rule.function.__name__ for rule in machine().rules}
    lacking = {rule for rule in rules if not (seen.succeeded[rule] and seen.failed[rule])}
    assert len(lacking) <= (1 - COVERED) * len(rules), f"never both: {sorted(lacking)}"


def test_small_limits() -> None:
    """The same with limits that are met all the time."""
    with small_limits():
        run(_machine("WithSmallLimits", NamespaceMachine), SMALL_EXAMPLES)


class OnLmdb(NamespaceMachine):
    """Crashes close the store without a commit and open the file again."""

    @classmethod
    def make_world(cls) -> World:
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "state"

        def reopen(kv: LmdbKV) -> LmdbKV:
            kv.close()
            return LmdbKV(path)

        world = World(LmdbKV(path), reopen)
        world.folder = folder
        return world


def test_lmdb() -> None:
    run(_machine("OnLmdb", OnLmdb), LMDB_EXAMPLES)


@pytest.mark.parametrize("name", [name for name in BUGS if BUGS[name].area not in DIRECTED])
def test_planted_bug(name: str) -> None:
    """The machine finds every planted bug within a bounded number of examples."""
    machine = _focused(name, BUGS[name].area)
    with BUGS[name].planted(), pytest.raises(Exception) as found:  # noqa: PT011  found is found
        run_state_machine_as_test(machine, settings=_settings(BUG_EXAMPLES))
    assert "Internal @" not in str(found.value), "the bug itself fails: it no longer fits the code"


def test_a_failure_is_told_in_few_actions() -> None:
    """The shrinker leaves what matters: here a file, a truncate and what grows it again."""
    machine = _machine("tail_comes_back", NamespaceMachine)
    with BUGS["tail_comes_back"].planted(), pytest.raises(AssertionError) as caught:
        run(machine, BUG_EXAMPLES)
    told = str(caught.value)
    assert "SetAttr" in told
    assert told.count("Command(") <= 20, told


def test_registry_covers_every_area() -> None:
    areas = [bug.area for bug in BUGS.values()]
    assert all(areas.count(area) >= 2 for area in ("dedupe", "names", "bodies", "history", "trash"))
