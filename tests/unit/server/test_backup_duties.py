"""What the leader's worker does for backups, against a real state machine and a store in memory."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.server.local import VOLUME, LocalShard, S

from nokv.backup.format import MANIFEST, place_of
from nokv.backup.gone import state_gone
from nokv.objects.memory import MemoryStore
from nokv.server.backup_duties import BackupKeeper
from nokv.types.commands import CreateBackup, FinishBackup, Reap
from nokv.types.reads import BackupsReply, ListBackups

OWN = "c1"
KEEP_S = 100


class World:
    def __init__(self) -> None:
        self.shard = LocalShard()
        self.shard.wall_ns = S
        self.store = MemoryStore()
        self.keeper = BackupKeeper(
            self.shard, self.store, volume=VOLUME, cluster=OWN, grace_ns=10 * S
        )

    def make(self, name: str, *, slot: int = 0, cluster: str = OWN, finish: bool = True) -> int:
        """Make a backup; return its number."""
        op = CreateBackup(name, 1, KEEP_S * S, "bucket", cluster, slot)
        session = self.shard.open_session()
        backup = self.shard.do(op, session).version
        if finish:
            self.shard.do(FinishBackup(backup, 5, bytes(16)), session)
        return backup

    def tick(self, seconds: int) -> None:
        self.shard.now_ns += seconds * S
        self.shard.do(Reap(1))

    def tidy(self, *, scheduled: bool = False) -> list[str]:
        """Do one round; return the backups that were not ended."""
        asyncio.run(self.keeper.tidy(adopted=True, scheduled=scheduled))
        reply = asyncio.run(self.shard.read(ListBackups(), BackupsReply))
        return [row.name for row in reply.rows if not row.ended_cluster_ns]


@pytest.fixture
def world() -> World:
    return World()


def test_a_retention_that_is_over_ends_a_backup(world: World) -> None:
    world.make("by-hand")
    world.make("scheduled", slot=5)
    world.tick(KEEP_S - 1)
    assert world.tidy() == ["by-hand", "scheduled"]
    world.tick(2)
    assert world.tidy() == []


def test_the_last_one_of_a_schedule_stays_while_there_is_a_schedule(world: World) -> None:
    world.make("by-hand")
    world.make("first", slot=5)
    world.make("last", slot=6)
    world.make("of-the-original", slot=9, cluster="c0")
    world.tick(KEEP_S + 1)
    world.make("at-work", slot=7, finish=False)
    assert world.tidy(scheduled=True) == ["last", "at-work"]
    assert world.tidy() == ["at-work"], "there is no schedule any more"


def test_a_mark_of_a_cluster_that_was_stated_to_be_gone_keeps_nothing(world: World) -> None:
    number = world.make("b")
    where = place_of(VOLUME, "b", OWN, number)
    for name in (MANIFEST, "part-00000000", "restored-c7.json"):
        asyncio.run(world.store.put(where + name, b"{}"))
    world.tick(KEEP_S + 1)
    assert world.tidy() == ["b"], "c7 may need it"
    asyncio.run(state_gone(world.store, VOLUME, ["c7"], by=OWN))
    assert world.tidy() == []
    world.tick(11)
    world.tidy()
    assert asyncio.run(world.shard.read(ListBackups(), BackupsReply)).rows == ()
    assert not [name for name in world.store.names if name.startswith(where)]


@pytest.mark.allow_logs("when its hold was gone")
def test_a_manifest_that_came_after_the_release_goes(world: World) -> None:
    """Its maker stalled; what others made is theirs."""
    at_work, kept = world.make("at-work", finish=False), world.make("kept")
    released = kept + 1
    places = [
        place_of(VOLUME, name, cluster, number)
        for name, cluster, number in (
            *(("at-work", OWN, at_work), ("kept", OWN, kept)),
            *(("other", "c0", released), ("late", OWN, released)),
        )
    ]
    for where in places:
        asyncio.run(world.store.put(f"{where}part-00000000", b"x"))
        asyncio.run(world.store.put(where + MANIFEST, b"{}"))
    world.tidy()
    left = sorted({name.rpartition("/")[0] + "/" for name in world.store.names})
    assert left == sorted(places[:3])
