"""Random programs over views, against an oracle that copies deeply."""

from __future__ import annotations

import pytest
from tests.unit.state.view_world import World


@pytest.mark.seeds(40)
def test_views_show_what_deep_copies_would(seed: int) -> None:
    world = World(seed)
    try:
        for _ in range(40 + seed % 3 * 30):
            world.step()
        world.finish()
    except AssertionError:
        print("\n".join(world.log))
        raise
