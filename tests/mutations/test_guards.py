"""Every guard in the list is still there; what its absence does is `make mutate`'s business."""

from pathlib import Path

import pytest
from tests.mutations.guard import mutated
from tests.mutations.guards import GUARDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(GUARDS))
def test_the_guard_can_be_switched_off(name: str) -> None:
    guard = GUARDS[name]
    for path, changed in mutated(ROOT / guard.package, guard).items():
        compile(changed, path, "exec")
    for test in guard.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test


def test_the_list_is_long_enough() -> None:
    assert len(GUARDS) >= 25
