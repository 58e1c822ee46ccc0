"""A view that ends while it is flattened."""

from __future__ import annotations

import pytest
from tests.unit.state.shard import at
from tests.unit.state.viewing import tree

from nokv.state import keys
from nokv.state.families import Family
from nokv.types.commands import RemoveTree
from nokv.types.views import Flatten


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_nothing_is_left_of_a_flattening_whose_view_is_reaped_first(limit: int) -> None:
    shard = tree()
    made = shard.clone("a", "b")
    shard.create("b/own")
    shard.internal(Flatten(made.view, 1))
    shard.done(RemoveTree(at(), b"b"))
    shard.reap(limit)
    shard.settle()
    assert made.view not in shard.views()
    for prefix in (keys.FLATTEN_PREFIX, keys.FLATTEN_TODO_PREFIX):
        assert list(shard.kv.scan(Family.META, prefix, keys.after_prefix(prefix))) == []
    shard.check()
