"""The leader beside many views: it looks at some of them in each tick."""

from __future__ import annotations

import pytest
from tests.unit.server.local import S
from tests.unit.server.test_leader import Leader, clones_of_clones

from nokv.state import flatten
from nokv.types.values import At
from nokv.types.views import Flatten, WorkspaceCreate


def test_a_view_to_be_flattened_is_found_in_several_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "SEARCH_MAX", 32)
    leader = Leader()
    session = leader.open_session(3600 * S)
    for number in range(60):
        leader.shard.do(WorkspaceCreate(At(), b"w%d" % number, 0o755), session)
    clones_of_clones(leader)
    leader.duties.take_office()
    ticks = 0
    while not leader.ops(Flatten):
        leader.tick()
        ticks += 1
        assert ticks < 60, "it does not wait for the next round"
    assert ticks > 5
