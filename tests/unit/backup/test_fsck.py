"""What a bucket lacks of what live files name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.state.bodies import Files, stored
from tests.unit.state.shard import VOLUME, at

from nokv.objects.layout import volume_prefix
from nokv.objects.memory import MemoryStore
from nokv.server import fsck as checking
from nokv.server.fsck import Missing, fsck
from nokv.types.commands import Unlink


def run(files: Files, store: MemoryStore, folder: Path) -> tuple[list[Missing], int]:
    found = asyncio.run(fsck(files.kv, store, VOLUME.volume, folder / "scratch"))
    assert not (folder / "scratch").exists()
    return found


@pytest.mark.parametrize("dirty_bytes", [checking.DIRTY_BYTES_MAX, 0])
def test_what_is_not_there_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dirty_bytes: int
) -> None:
    monkeypatch.setattr(checking, "DIRTY_BYTES_MAX", dirty_bytes)
    files, store = Files(), MemoryStore()
    for number in range(20):
        files.publish(f"f{number}", stored(10))
    files.publish("gone", stored(10))
    files.do(Unlink(at(), b"gone"))
    missing, count = run(files, store, tmp_path)
    assert len({one.object for one in missing}) == len(missing) == 20
    assert count >= 20
    names = [one.name(VOLUME.volume) for one in missing]

    async def fill() -> None:
        await store.put(volume_prefix(VOLUME.volume) + "stray", b"x")
        for name in [*names[:7], *names[8:]]:
            await store.put(name, b"x")

    asyncio.run(fill())
    assert run(files, store, tmp_path)[0] == [missing[7]]
