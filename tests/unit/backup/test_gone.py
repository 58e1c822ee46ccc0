"""What the bucket keeps of an operator's word that a cluster is gone."""

from __future__ import annotations

import asyncio

import pytest

from nokv.backup.format import place_of
from nokv.backup.gone import check_not_gone, state_gone
from nokv.backup.manage import restored
from nokv.errors import ForeignVolume, ObjectStoreUnavailable
from nokv.objects.faults import FaultyStore
from nokv.objects.memory import MemoryStore

VOLUME = "a" * 32


def test_only_whom_it_names_is_gone() -> None:
    store = MemoryStore()

    async def main() -> None:
        await state_gone(store, VOLUME, {"c1", "c2"}, by="c3")
        await state_gone(store, VOLUME, {"c1", "c2"}, by="c3")
        assert store.names == [f"gone/{VOLUME}/{one}.json" for one in ("c1", "c2")]
        assert await store.get(store.names[0]) == b'{"format":1,"adopted_by":"c3"}'
        await check_not_gone(store, VOLUME, "c3")
        await check_not_gone(store, "b" * 32, "c1")
        with pytest.raises(ForeignVolume, match="cluster c3 has the volume") as found:
            await check_not_gone(store, VOLUME, "c2")
        assert "nokv volume reclaim --gone c3" in found.value.hint

    asyncio.run(main())


def test_what_cannot_be_read_is_never_taken_for_permission() -> None:
    store = MemoryStore()
    faulty = FaultyStore(store)

    async def main() -> None:
        await store.put(f"gone/{VOLUME}/c1.json", b"\xff{")
        with pytest.raises(ForeignVolume, match="cluster unknown has"):
            await check_not_gone(faulty, VOLUME, "c1")
        faulty.fail("get")
        with pytest.raises(ObjectStoreUnavailable):
            await check_not_gone(faulty, VOLUME, "c2")

    asyncio.run(main())


def test_every_restored_cluster_is_found_whatever_became_of_its_backup() -> None:
    store = MemoryStore()

    async def main() -> None:
        for name in (
            f"{place_of(VOLUME, 'b1', 'c0', 1)}manifest.json",
            f"{place_of(VOLUME, 'b1', 'c0', 1)}restored-c1.json",
            f"{place_of(VOLUME, 'restored-name', 'c1', 1)}manifest.json",
            f"{place_of(VOLUME, 'restored-name', 'c1', 1)}restored-c2.json",
            f"{place_of('b' * 32, 'b1', 'c7', 1)}restored-c8.json",
            f"backups/{VOLUME}/no-place/restored-c3.json",
        ):
            await store.put(name, b"{}")
        assert await restored(store, VOLUME) == {("c0", "c1"), ("c1", "c2"), ("", "c3")}

    asyncio.run(main())
