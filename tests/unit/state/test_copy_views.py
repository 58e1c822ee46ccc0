"""Random programs of copies, views, the trash and the collector, against deep copies."""

from __future__ import annotations

import pytest
from tests.unit.state.copying import OPS, run

from nokv.state import collect, flatten
from nokv.state.context import Context
from nokv.state.records import View

STEPS = (12, 20, 40, 60)


@pytest.mark.parametrize("seed", range(24))
def test_programs(seed: int) -> None:
    run(seed, STEPS[seed % len(STEPS)])


@pytest.mark.parametrize("seed", range(100, 112))
def test_programs_that_flatten_often(seed: int) -> None:
    run(seed, STEPS[seed % len(STEPS)], [*OPS, *["flatten"] * 6, "gc", "gc"])


def test_the_programs_do_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among few programs views lose their origins, and a deposed collector deletes something."""
    ends: list[int] = []

    def counted(ctx: Context, number: int, view: View) -> View:
        ends.append(number)
        return flatten.end_origin(ctx, number, view)

    monkeypatch.setattr(collect, "end_origin", counted)
    ops = [*OPS, *["flatten"] * 6, *["gc", "plan", "exec"] * 2]
    stale = sum(run(seed, 40, ops).stale_deletions for seed in range(200, 212))
    assert ends
    assert stale
