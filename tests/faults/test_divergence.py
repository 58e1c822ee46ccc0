"""One byte of one replica's state: whatever family it lies in, the digests differ and name it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import nokv
from nokv.client import AsyncClient
from nokv.kv.digest import SCAN_END, combine, digest
from nokv.kv.lmdb_store import LmdbKV
from nokv.server.datadir import state_path
from nokv.state.families import REPLICATED, Family
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests
from nokv.types.values import Caller

pytestmark = pytest.mark.cluster

RESERVED = {Family.LOCK, Family.REF, Family.FIELDS}
"""Nothing writes them yet."""


async def fill(fs: AsyncClient) -> None:
    """Make records of every family; the caller holds a pin, so there is history too."""
    await fs.write_bytes("/d/body", os.urandom(10_000))  # replaced: history, and a queued body
    await fs.setxattr("/d/body", "user.x", b"value")
    await fs.link("/d/body", "/d/second")
    await fs.symlink("body", "/d/link")
    await fs.unlink("/d/old")


def other_key(key: bytes) -> bytes:
    """Change one bit of a key; small numbers end there, so that no other record has it."""
    return key[:-1] + bytes((key[-1] ^ 0x80,))


def flip(kv: LmdbKV, family: Family) -> tuple[bytes, bytes]:
    """Change one bit of a record, of its value or else of its key; return the record as it was."""
    key, value = next(iter(kv.scan(family, b"", SCAN_END)))
    if value:
        kv.write(family, [(key, value[:-1] + bytes((value[-1] ^ 1,)))])
    else:
        kv.write(family, [(key, None), (other_key(key), value)])
    return key, value


def restore(kv: LmdbKV, family: Family, key: bytes, value: bytes) -> None:
    if not value:
        kv.write(family, [(other_key(key), None)])
    kv.write(family, [(key, value)])


def one_byte_in_each_family(path: Path) -> None:
    """In the stopped node's own store; at the end an extended attribute stays changed."""
    kv = LmdbKV(path)
    whole = digest(kv)
    # A digest of nothing is nothing: such a family would be tested in name only.
    assert {family for family in REPLICATED if not whole[family]} == RESERVED
    for family in REPLICATED:
        if family not in RESERVED:
            record = flip(kv, family)
            found = digest(kv)
            assert {f for f in REPLICATED if found[f] != whole[f]} == {family}
            assert combine(found) != combine(whole)
            restore(kv, family, *record)
            assert digest(kv) == whole, family
    key, value = next(iter(kv.scan(Family.XATTR, b"", SCAN_END)))
    kv.write(Family.XATTR, [(key, value[:-1] + bytes((value[-1] ^ 1,)))])
    kv.commit()
    kv.close()


def test_one_byte_in_any_family_of_one_replica_changes_its_digest() -> None:
    async def main(cluster: LocalCluster) -> None:
        addresses = {member.node: member.rpc_address for member in cluster.members}
        async with nokv.connect(cluster.addresses, caller=Caller()) as fs:
            await fs.mkdir("/d")
            await fs.create("/d/old")
            await fs.write_bytes("/d/body", os.urandom(10_000))
            async with fs.pinned():
                await fill(fs)
                leader = await asyncio.to_thread(cluster.leader)
                replies = await compare_digests(addresses[leader], addresses)
                assert len({reply.digest for reply in replies.values()}) == 1
                victim = cluster.followers()[0]
                assert await asyncio.to_thread(cluster.stop, victim) == 0
                path = state_path(cluster.folder.node_path(victim) / "data")
                await asyncio.to_thread(one_byte_in_each_family, path)
                await asyncio.to_thread(cluster.restart, victim)
                leader = await asyncio.to_thread(cluster.leader)
                replies = await compare_digests(addresses[leader], addresses)
        right = replies[leader]
        for node, reply in replies.items():
            differs = {
                name for name in right.families if reply.families[name] != right.families[name]
            }
            assert differs == ({"xattr"} if node == victim else set())
            assert (reply.digest == right.digest) == (node != victim)

    with LocalCluster.start() as cluster:
        asyncio.run(main(cluster))
