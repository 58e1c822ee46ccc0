"""Each correction of the obvious rules, switched off, is found: by a few steps of a few kinds."""

from __future__ import annotations

import pytest
from tests.exhaustive.explore import Disagreement, Search
from tests.machine.bugs import BUGS

SEARCHES: dict[str, tuple[int, tuple[str, ...]]] = {
    "pbefore": (1, ("clone / /a/b",)),
    "nlink": (2, ("link /a/a /b", "clone /a /a/b")),
    "nested": (3, ("clone /a /a/b", "clone / /b", "publish /a/b/a")),
    "whist": (4, ("clone /a /b", "delete /b/a", "snapshot /b u", "publish /b/a")),
    "zombie": (
        5,
        ("clone /a /b", "snapshot /b u", "delete tree /b", "delete /a/a", "reap", "collect"),
    ),
    "born": (5, ("snapshot /a t", "patch /a/a", "patch the tail of /a/a", "collect")),
    "patch": (3, ("patch /a/a", "patch the tail of /a/a")),
    "hold": (5, ("stretch /a/a", "append to /a/a", "cut /a/a", "collect")),
    "flat": (3, ("clone /a /b", "clone /b /c", "flatten", "patch /a/a")),
}
"""Correction -> (longest program, the steps that it is made of)."""


@pytest.mark.parametrize("name", SEARCHES)
def test_a_correction_that_is_switched_off_is_found(name: str) -> None:
    depth, steps = SEARCHES[name]
    Search(depth, reduce=True, only=steps).run()
    with BUGS[name].planted(), pytest.raises(Disagreement) as found:
        Search(depth, reduce=True, only=steps).run()
    assert len(found.value.program) <= depth
