"""A generation that a lease and a snapshot show is reverted to as the snapshot shows it; one that
only a lease shows is listed as what can't be reverted to."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.client.loopback import client

from nokv.client import bodies
from nokv.errors import NotSupported
from nokv.types.diffs import HolderKind


def test_a_generation_that_is_open_too_is_read_by_its_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "EAGER_CHUNKS", 1)

    async def test() -> None:
        async with client() as (_, fs):
            session = await fs._core.session(20.0)
            session.floors._lease_after_ns = 0  # type: ignore[misc]
            await fs.mkdir("/d")
            await fs.write_bytes("/d/f", b"first")
            await fs.patch("/d/f", 2**27, b"tail")
            first = (await fs.stat("/d/f")).generation
            file = await fs.open("/d/f")
            await session.renew(5)
            await session.renew(5)
            await fs.mkdir("/d/later")
            await fs.snapshots.create("/d", "s")
            await fs.write_bytes("/d/f", b"second")
            _, old = await fs.history("/d/f")
            assert old.revertible
            kinds = {holder.kind for holder in old.holders}
            assert (old.generation, kinds) == (first, {HolderKind.LEASE, HolderKind.SNAPSHOT})
            attr = await fs.revert("/d/f", first)
            assert attr.size == 2**27 + 4
            await file.close()

    asyncio.run(test())


def test_what_only_an_open_file_shows_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "EAGER_CHUNKS", 1)

    async def test() -> None:
        async with client() as (_, fs):
            session = await fs._core.session(20.0)
            session.floors._lease_after_ns = 0  # type: ignore[misc]
            await fs.write_bytes("/f", b"first")
            await fs.patch("/f", 2**27, b"tail")
            file = await fs.open("/f")
            await session.renew(5)
            await session.renew(5)
            await fs.mkdir("/other")
            await fs.snapshots.create("/other", "s")  # keeps records, and shows none of the file
            await fs.write_bytes("/f", b"second")
            live, old = await fs.history("/f")
            assert (live.revertible, old.revertible) == (True, False)
            assert {holder.kind for holder in old.holders} == {HolderKind.LEASE}
            with pytest.raises(NotSupported, match="of /f is shown by an open file alone") as found:
                await fs.revert("/f", old.generation)
            assert found.value.hint
            assert await fs.read("/f") == b"second"
            await file.close()

    asyncio.run(test())
