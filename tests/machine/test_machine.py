"""The machine on both stores, with its rules' outcomes counted."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.machine.rules import NamespaceMachine


def test_memory() -> None:
    run_state_machine_as_test(
        NamespaceMachine,
        settings=settings(
            max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )
