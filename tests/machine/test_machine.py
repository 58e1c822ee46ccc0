"""The machine on both stores, its rules' outcomes counted, and every planted bug found."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.machine.bugs import BUGS
from tests.machine.rules import NamespaceMachine, Outcomes
from tests.machine.world import World

from nokv.kv.lmdb_store import LmdbKV

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
STEPS = 40
EXAMPLES = 150
LMDB_EXAMPLES = 15
BUG_EXAMPLES = 300
COVERED = 0.95


def _settings(examples: int, **more: Any) -> settings:
    """A bounded, repeatable run; the campaign profile has its own, larger numbers."""
    profile = settings.default
    assert profile is not None
    if not profile.derandomize:
        return settings(suppress_health_check=SLOW, **more)
    return settings(
        max_examples=examples, stateful_step_count=STEPS, suppress_health_check=SLOW, **more
    )


def _machine(name: str) -> type[NamespaceMachine]:
    """A machine class of its own, so that its outcomes are."""
    return type(name, (NamespaceMachine,), {"outcomes": Outcomes()})


def test_memory() -> None:
    """Model and state machine agree; nearly every rule succeeded and failed in the run."""
    machine = _machine("OnMemory")
    run_state_machine_as_test(machine, settings=_settings(EXAMPLES))
    seen = machine.outcomes
    rules = {rule.function.__name__ for rule in machine.rules()}
    lacking = {rule for rule in rules if not (seen.succeeded[rule] and seen.failed[rule])}
    assert len(lacking) <= (1 - COVERED) * len(rules), f"never both: {sorted(lacking)}"


class OnLmdb(NamespaceMachine):
    """Crashes close the store without a commit and open the file again."""

    outcomes = Outcomes()

    def make_world(self) -> World:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "state"

        def reopen(kv: LmdbKV) -> LmdbKV:
            kv.close()
            return LmdbKV(path)

        return World(LmdbKV(path), reopen)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.world.kv.close()
            self._folder.cleanup()


def test_lmdb() -> None:
    run_state_machine_as_test(OnLmdb, settings=_settings(LMDB_EXAMPLES))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug(name: str) -> None:
    """The machine finds every planted bug within a bounded number of examples."""
    bounded = _settings(BUG_EXAMPLES, phases=[Phase.generate], print_blob=False)
    with BUGS[name].planted(), pytest.raises(Exception):  # noqa: B017, PT011  found is found
        run_state_machine_as_test(_machine(name), settings=bounded)


def test_registry_covers_every_area() -> None:
    areas = [bug.area for bug in BUGS.values()]
    assert all(areas.count(area) >= 2 for area in ("dedupe", "names", "bodies", "history"))
