"""Adoption, the end of a backup and the way back: what is asked, stated and deleted, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from nokv.backup.ending import _ask, adopt, end_backup, reclaim
from nokv.backup.format import MANIFEST, Head, Manifest, place
from nokv.backup.gone import state_gone, statements
from nokv.client.core import Core
from nokv.errors import ForeignVolume, NokvError, NotPermitted, ObjectStoreError, UsageError
from nokv.objects.faults import FaultyStore
from nokv.objects.memory import MemoryStore
from nokv.types.commands import AdoptVolume, EndBackup
from nokv.types.reads import BackupRow, BackupsReply, GetOrigin, ListBackups, OriginReply
from nokv.types.values import Volume

VOLUME = "a" * 32
ORIGINAL, OWN, OTHER = "c0", "c1", "c2"


def head(cluster: str, backup: int) -> Head:
    volume = Volume(volume=VOLUME, kind="local", bucket="b")
    name = f"{cluster}-backup"
    return Head(
        cluster=cluster, volume=volume, name=name, backup=backup, version=1, index=1, created_ns=0
    )


def row_of(one: Head, **fields: Any) -> BackupRow:
    values: dict[str, Any] = dict.fromkeys(BackupRow.__struct_fields__, 0)
    values |= {"name": one.name, "cluster": one.cluster, "backup": one.backup, "where": "bucket"}
    return BackupRow(**(values | fields))


class World:
    """A bucket, and one cluster's answers."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.store = FaultyStore(self.memory)
        self.origin = OriginReply(True, True, False, 5, ((ORIGINAL, "b"),))
        self.rows: list[BackupRow] = []
        self.proposed: list[object] = []
        self.core = cast(
            "Core",
            SimpleNamespace(
                volume=SimpleNamespace(volume=VOLUME), read=self._read, propose=self._propose
            ),
        )

    async def _read(self, request: object) -> object:
        if isinstance(request, GetOrigin):
            return self.origin
        assert isinstance(request, ListBackups)
        return BackupsReply(tuple(self.rows), 0)

    async def _propose(self, op: object, grows: object, timeout_s: float) -> None:
        del grows, timeout_s
        self.proposed.append(op)

    def put(self, name: str, data: bytes = b"{}") -> None:
        asyncio.run(self.memory.put(name, data))

    def back_up(self, cluster: str, backup: int, *marks: str, known: bool = False) -> Head:
        """Put a backup of a cluster, and marks of those that were restored from it."""
        one = head(cluster, backup)
        manifest = Manifest(head=one, where="bucket", size_bytes=1, digest="0" * 32)
        self.put(place(one) + MANIFEST, msgspec.json.encode(manifest))
        for mark in marks:
            self.put(f"{place(one)}restored-{mark}.json")
        if known:
            self.rows.append(row_of(one))
        return one

    def adopt(self, *said: str, abandon: bool = False) -> list[str]:
        return asyncio.run(adopt(self.core, self.store, OWN, said, abandon=abandon, timeout_s=1.0))

    def end(self, row: BackupRow, *said: str, abandon: bool = False) -> bool:
        return asyncio.run(
            end_backup(self.core, self.store, OWN, row, said, abandon=abandon, timeout_s=1.0)
        )

    def gone(self) -> dict[str, str]:
        return asyncio.run(statements(self.memory, VOLUME))

    def refused(self, call: Callable[[], object], kind: type[NokvError], match: str) -> None:
        """See a call refused with nothing stated, deleted or proposed."""
        before, proposed = self.memory.names, list(self.proposed)
        with pytest.raises(kind, match=match):
            call()
        assert (self.memory.names, self.proposed) == (before, proposed)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("reads", range(3))
def test_an_own_backup_that_is_made_meanwhile_stays(world: World, reads: int) -> None:
    """Its row comes before its manifest, so it is never one that this cluster does not know."""
    world.back_up(ORIGINAL, 1, OWN, known=True)
    own, seen = head(OWN, 9), 0
    read = world.core.read

    async def late(request: Any) -> Any:
        nonlocal seen
        reply = await read(request)
        if isinstance(request, ListBackups):
            if seen == reads:
                world.rows.append(row_of(own))
                made = Manifest(head=own, where="bucket", size_bytes=1, digest="0" * 32)
                await world.memory.put(place(own) + MANIFEST, msgspec.json.encode(made))
            seen += 1
        return reply

    world.core.read = late  # type: ignore[method-assign]
    assert world.adopt(abandon=True) == [ORIGINAL]
    assert seen > reads
    assert place(own) + MANIFEST in world.memory.names
    assert any(isinstance(op, AdoptVolume) for op in world.proposed)


def test_only_the_cluster_it_was_restored_from_is_meant_unnamed(world: World) -> None:
    world.origin = msgspec.structs.replace(world.origin, lineage=(("cx", "b"), (ORIGINAL, "b")))
    world.back_up(ORIGINAL, 1, OWN, known=True)
    world.refused(world.adopt, NotPermitted, "cluster cx may share the bucket")
    world.refused(lambda: world.adopt("cx", "typo"), UsageError, "no such cluster")
    assert world.adopt("cx") == [ORIGINAL, "cx"]
    assert world.gone() == {ORIGINAL: OWN, "cx": OWN}
    assert world.proposed == [AdoptVolume()]


def test_every_cluster_that_may_live_is_asked_of(world: World) -> None:
    world.back_up(ORIGINAL, 1, OWN, known=True)
    world.back_up("c8", 1, OTHER)
    world.refused(lambda: world.adopt(abandon=True), NotPermitted, "cluster c2 may share")
    # One that adopted is known by what it stated, whatever became of its marks.
    asyncio.run(state_gone(world.memory, VOLUME, ["c5"], by="c6"))
    world.refused(lambda: world.adopt(OTHER, abandon=True), NotPermitted, "cluster c6 may share")
    assert world.adopt(OTHER, "c6", abandon=True) == [ORIGINAL, OTHER, "c6"]


def test_backups_that_nobody_would_hold_end_before_the_adoption(world: World) -> None:
    world.back_up(ORIGINAL, 1, OWN, known=True)
    later = world.back_up(ORIGINAL, 2)
    world.refused(world.adopt, NotPermitted, "backups c0-backup are unknown here")
    world.store.fail("delete")
    with pytest.raises(ObjectStoreError):
        world.adopt(abandon=True)
    assert not world.proposed
    assert world.adopt(abandon=True) == [ORIGINAL]
    assert place(later) + MANIFEST not in world.memory.names


def test_a_restore_beside_the_adoption_is_noticed(world: World) -> None:
    world.back_up(ORIGINAL, 1, OWN, known=True)
    later = world.back_up(ORIGINAL, 2)
    gate = world.store.hold("delete")

    async def main() -> None:
        task = asyncio.create_task(
            adopt(world.core, world.store, OWN, (), abandon=True, timeout_s=1.0)
        )
        await gate.reached.wait()
        await world.memory.put(f"{place(later)}restored-{OTHER}.json", b"{}")
        gate.release()
        with pytest.raises(NotPermitted, match="restored meanwhile"):
            await task

    asyncio.run(main())
    assert not world.proposed


@pytest.mark.parametrize(
    ("origin", "match"),
    [
        (OriginReply(False, True, True, 0, ()), "never restored"),
        (OriginReply(True, False, False, 5, ((ORIGINAL, "b"),)), "does not serve yet"),
    ],
)
def test_what_cannot_adopt_states_nothing(world: World, origin: OriginReply, match: str) -> None:
    world.origin = origin
    world.back_up(ORIGINAL, 1, OTHER)
    world.refused(lambda: world.adopt(OTHER, abandon=True), NotPermitted, match)


def test_an_adoption_that_took_effect_may_be_repeated(world: World) -> None:
    world.origin = OriginReply(True, True, True, 5, ())
    world.back_up(OWN, 7, OTHER)
    assert world.adopt("whoever") == []
    assert (world.gone(), world.proposed) == ({}, [])


def test_one_that_is_gone_itself_states_nothing_of_others(world: World) -> None:
    row = row_of(world.back_up(OWN, 1, OTHER, known=True))
    asyncio.run(state_gone(world.memory, VOLUME, [OWN], by=OTHER))
    world.refused(lambda: world.adopt(OTHER, abandon=True), ForeignVolume, "cluster c2 has")
    world.refused(lambda: world.end(row, OTHER, abandon=True), ForeignVolume, "cluster c2 has")


def test_the_end_of_a_backup_asks_states_and_keeps_ones_own_mark(world: World) -> None:
    world.origin = OriginReply(True, True, True, 5, ())
    one = world.back_up(ORIGINAL, 1, OWN, OTHER, known=True)
    theirs = world.back_up(OTHER, 3)
    (row,) = world.rows
    world.refused(lambda: world.end(row), NotPermitted, "cluster c2 was restored from it")
    world.refused(lambda: world.end(row, OTHER), NotPermitted, "backups c2-backup are of clusters")
    assert world.end(row, OTHER, abandon=True)
    assert world.proposed == [EndBackup(1)]
    assert world.gone() == {OTHER: OWN}
    left = [name for name in world.memory.names if name.startswith("backups/")]
    assert left == [f"{place(one)}restored-{OWN}.json"]
    assert place(theirs) + MANIFEST not in left


def test_the_originals_backup_is_not_ended_before_the_adoption(world: World) -> None:
    row = row_of(world.back_up(ORIGINAL, 1, OWN, OTHER))
    world.refused(lambda: world.end(row, OTHER, abandon=True), NotPermitted, "is not adopted")


def test_the_way_back_asks_of_all_that_came_of_the_adopter(world: World) -> None:
    """c1 adopted from c0, c2 of c1's backup from c1, c3 of c2's from c2: c3 lives."""

    def back(*said: str) -> str:
        return asyncio.run(reclaim(world.store, VOLUME, ORIGINAL, said))

    asyncio.run(state_gone(world.memory, VOLUME, [ORIGINAL], by=OWN))
    asyncio.run(state_gone(world.memory, VOLUME, [OWN], by=OTHER))
    asyncio.run(state_gone(world.memory, VOLUME, [OTHER], by="c3"))
    world.back_up(OTHER, 1, "c4")
    world.refused(lambda: back(OWN), NotPermitted, "cluster c3, c4 may share")
    assert back(OWN, "c3", "c4") == OWN


def test_a_statement_that_cannot_be_read_has_an_unknown_maker(world: World) -> None:
    world.back_up(ORIGINAL, 1, OWN, known=True)
    world.put(f"gone/{VOLUME}/c9.json", b"\xff")
    world.refused(world.adopt, NotPermitted, "cluster unknown may share")
    assert world.adopt("unknown") == [ORIGINAL, "unknown"]


def test_the_way_back_states_first_that_the_adopter_is_gone(world: World) -> None:
    def back(*said: str) -> str:
        return asyncio.run(reclaim(world.store, VOLUME, ORIGINAL, said))

    world.refused(back, NotPermitted, "nobody stated")
    asyncio.run(state_gone(world.memory, VOLUME, [ORIGINAL, OTHER], by=OWN))
    world.refused(back, NotPermitted, "cluster c1 has the volume")
    world.back_up(OWN, 1, "c7")
    world.refused(lambda: back(OWN), NotPermitted, "cluster c7 may share what cluster c1")
    world.refused(lambda: back(OWN, "c7", "c9"), UsageError, "no such cluster")
    world.store.fail("delete")
    with pytest.raises(ObjectStoreError):
        back(OWN, "c7")
    assert world.gone() == {
        ORIGINAL: OWN,
        OTHER: OWN,
        OWN: ORIGINAL,
        "c7": ORIGINAL,
    }, "all stand still"
    assert back(OWN) == OWN
    assert world.gone() == {OTHER: OWN, OWN: ORIGINAL, "c7": ORIGINAL}


def test_who_is_said_to_be_gone_must_have_been_there() -> None:
    _ask([], set(), set(), "may share")
    _ask(["copy"], {"copy", "other"}, {"other"}, "may share")
    with pytest.raises(UsageError, match=r"abc.*these may share it: copy, other"):
        _ask(["copy", "abc"], {"other", "copy"}, set(), "may share")
    with pytest.raises(UsageError, match="leave --gone out"):
        _ask(["abc"], set(), set(), "may share")
