"""Diff: what it says is what the two trees say, at a cost that follows the change."""

from __future__ import annotations

import random

import pytest
from tests.unit.state.diffing import asked, naive
from tests.unit.state.namespace_programs import Program
from tests.unit.state.shard import Shard, at

SEEDS = range(12)
STEPS = 300


@pytest.mark.parametrize("seed", SEEDS)
def test_a_diff_says_what_two_trees_say(seed: int) -> None:
    shard = Shard()
    program = Program(shard, seed)
    rng = random.Random(seed)
    for number in range(STEPS):
        program.step()
        if number % 30 == 29 and program.pins:
            versions = [0, *sorted({pin.version for pin in program.pins})]
            left, right = rng.choice(versions), rng.choice(versions)
            limit = rng.choice((1, 3, 4096))
            wanted = naive(shard, (at(), left), (at(), right))
            assert asked(shard, (at(), left), (at(), right), limit) == wanted, (seed, number)
