"""Every program of a few steps on a tiny tree: `python -m tests.exhaustive` goes deeper."""

from __future__ import annotations

import pytest
from tests.exhaustive.canonical import canonical
from tests.exhaustive.explore import Disagreement, Search
from tests.exhaustive.programs import CORE, alphabet, start
from tests.machine.bugs import BUGS

DEPTH = 3
TRASH = (
    "trash /a/a",
    "trash /a",
    "restore",
    "restore /c",
    "empty",
    "expire trash",
    "reap",
    "crash",
)
TRASH_AND_NAMES = (*TRASH, "link /a/a /b", "trash /b", "delete tree /a", "rename /a/a /a/b")
TRASH_AND_VIEWS = (
    *TRASH,
    "snapshot /a t",
    "rollback /a t",
    "clone /a /b",
    "trash /b",
    "trash /b/a",
)
REFUSED_AT_FIRST = {"drop s", "drop t", "clone @s /b", "clone @t /b", "rollback /a t"}


@pytest.mark.timeout(900)  # a minute with a core to itself
def test_every_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Model and state machine agree after every step of every program of DEPTH steps."""
    explored = Search(DEPTH, reduce=True).run()
    with capsys.disabled():
        print(f"\n{explored.told()}")
    lacking = set(alphabet()) - set(explored.succeeded)
    assert not lacking, f"steps that no program of {DEPTH} steps succeeds with: {lacking}"


def test_every_program_of_one_step_of_each_kind() -> None:
    """Without going on from a state once only: the reduction is not what agrees."""
    every = Search(DEPTH, reduce=False, only=CORE).run()
    reduced = Search(DEPTH, reduce=True, only=CORE).run()
    assert every.states == reduced.states
    assert every.steps > reduced.steps


def test_every_program_of_the_trash() -> None:
    """Beside what else holds files: other names, clones, snapshots and what a rollback replaces."""
    for kinds in (TRASH_AND_NAMES, TRASH_AND_VIEWS):
        explored = Search(DEPTH, reduce=True, only=kinds).run()
        lacking = set(kinds) - set(explored.succeeded)
        assert not lacking, f"steps that no program of {DEPTH} steps succeeds with: {lacking}"


def test_states_that_differ_in_counters_only_are_one() -> None:
    """A refused command uses a version, and changes nothing else."""
    tiny = start()
    before = canonical(tiny.world.kv)
    other = tiny.fork()
    for name in sorted(REFUSED_AT_FIRST):
        result = alphabet()[name](other)
        assert result is not None
        assert result.code, name
    assert canonical(other.world.kv) == before
    alphabet()["snapshot / s"](other)
    assert canonical(other.world.kv) != before


def test_a_planted_bug_is_found_by_its_shortest_program() -> None:
    """A record that was born just before a pin leaves no history."""
    with BUGS["off_by_one"].planted(), pytest.raises(Disagreement) as found:
        Search(2, reduce=True).run()
    assert len(found.value.program) == 2
