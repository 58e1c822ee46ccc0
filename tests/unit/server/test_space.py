"""Full disks: what the leader refuses, and what it puts off itself."""

from __future__ import annotations

import pytest
from tests.unit.server.test_leader import Leader

from nokv.server.service import Space
from nokv.types.commands import ExpireSession, Mkdir, Reap, TrimEvents
from nokv.types.values import At

GIB = 1 << 30


@pytest.mark.parametrize(
    ("own", "peers", "members", "low", "exhausted"),
    [
        (9, [9, 9], 3, False, False),
        (4, [9, 9], 3, False, False),
        (3, [9, 9], 3, True, False),
        (1, [9, 9], 3, True, True),
        # One of three that is low is no majority; two are.
        (9, [0, 9], 3, False, False),
        (9, [3, 3], 3, True, False),
        (9, [1, 1], 3, True, True),
        (9, [3, 1], 3, True, False),
        (9, [1, 9, 9, 9], 5, False, False),
        (9, [1, 1, 9, 9], 5, False, False),
        (9, [1, 1, 1, 9], 5, True, True),
        # Who has told nothing is not counted against the group.
        (9, [], 3, False, False),
        (9, [0], 3, False, False),
        (9, [], 1, False, False),
        (3, [], 1, True, False),
    ],
)
def test_growing_stops_before_a_quorum_is_full(
    own: int, peers: list[int], members: int, low: bool, exhausted: bool
) -> None:
    space = Space(4 * GIB)
    space.judge(own * GIB, [free * GIB for free in peers], members)
    assert (space.low, space.exhausted) == (low, exhausted)


def test_it_recovers_by_itself() -> None:
    space = Space(4 * GIB)
    space.judge(GIB, [], 1)
    assert space.exhausted
    space.judge(3 * GIB, [], 1)
    assert (space.low, space.exhausted) == (True, False)
    space.judge(4 * GIB, [], 1)
    assert (space.low, space.exhausted) == (False, False)


def test_the_leaders_own_commands_wait_while_the_disks_are_full() -> None:
    leader = Leader()
    full = False
    leader.duties._disks_full = lambda: full
    leader.duties.take_office()
    leader.shard.do(Mkdir(At(), b"d", 0o755), leader.open_session())
    full = True
    before = len(leader.shard.applied)
    for _ in range(10):
        leader.tick(seconds=60)
    assert len(leader.shard.applied) == before
    full = False
    for _ in range(10):
        leader.tick(seconds=60)
    assert leader.ops(ExpireSession)
    assert leader.ops(Reap) or leader.ops(TrimEvents)
