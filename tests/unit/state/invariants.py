"""What must hold of every state: counts, parents and usage, recomputed from the names."""

from __future__ import annotations

from collections import Counter

from tests.unit.state.shard import Shard

from nokv.state import keys
from nokv.state.context import DIRECTORY, S_IFMT
from nokv.state.families import Family
from nokv.state.port import KV
from nokv.state.records import (
    Dentry,
    Inode,
    Usage,
    body_of,
    decode_count,
    decode_counters,
    decode_dentry,
    decode_inode,
    decode_usage,
)
from nokv.types.commands import Reap
from nokv.types.results import Reaped
from nokv.types.values import ROOT_INODE


def rows(kv: KV, family: Family) -> list[tuple[bytes, bytes]]:
    """Return a family of view 0."""
    return list(kv.scan(family, bytes(8), keys.pack(1)))


def _ino(key: bytes) -> int:
    return int.from_bytes(key[8:16], "big")


def reap(shard: Shard) -> None:
    """Do all background work."""
    while True:
        done = shard.do(Reap(64), session=0)
        assert isinstance(done, Reaped)
        if not done.more:
            return


def check(shard: Shard) -> None:
    """Reap what is detached, then recompute every count from the names."""
    reap(shard)
    kv = shard.kv
    inodes = {_ino(k): decode_inode(body_of(v)) for k, v in rows(kv, Family.INODE)}
    dentries = {(_ino(k), k[16:]): decode_dentry(body_of(v)) for k, v in rows(kv, Family.DENTRY)}
    names: dict[int, list[int]] = {ino: [] for ino in inodes}
    for (directory, _), dentry in dentries.items():
        names[dentry.inode].append(directory)
        assert dentry.file_type == inodes[dentry.inode].mode >> 12
    _check_links(kv, inodes, dentries, names)
    _check_usage(kv, inodes, dentries)
    _check_xattrs(kv, inodes)
    row = kv.get(Family.META, keys.COUNTERS)
    assert row is not None
    counters = decode_counters(row)
    assert counters.files == len(inodes)
    assert counters.size_bytes == sum(inode.size for inode in inodes.values())


def _check_links(
    kv: KV,
    inodes: dict[int, Inode],
    dentries: dict[tuple[int, bytes], Dentry],
    names: dict[int, list[int]],
) -> None:
    backlinks = {
        (_ino(k), int.from_bytes(k[16:], "big")): decode_count(body_of(v))
        for k, v in rows(kv, Family.BACKLINK)
    }
    wanted: dict[tuple[int, int], int] = {}
    for ino, inode in inodes.items():
        below = [d for (directory, _), d in dentries.items() if directory == ino]
        if inode.mode & S_IFMT == DIRECTORY:
            assert inode.children == len(below), f"children of {ino}"
            assert inode.nlink == 2 + sum(d.file_type << 12 == DIRECTORY for d in below)
            assert len(names[ino]) == (0 if ino == ROOT_INODE or inode.stage else 1)
        else:
            assert not below
            assert inode.nlink == len(names[ino])
        assert inode.parent == min(names[ino], default=0), f"parent of {ino}"
        if len(names[ino]) > 1:
            wanted |= {(ino, d): count for d, count in Counter(names[ino]).items()}
    assert backlinks == wanted


def _check_usage(
    kv: KV, inodes: dict[int, Inode], dentries: dict[tuple[int, bytes], Dentry]
) -> None:
    stored = {_ino(k): decode_usage(body_of(v)) for k, v in rows(kv, Family.USAGE)}
    assert set(stored) <= set(inodes), "usage of an inode that is gone"

    def below(ino: int) -> tuple[int, int]:
        entries = size = 0
        for (directory, _), dentry in dentries.items():
            if directory == ino:
                more = below(dentry.inode)
                entries += 1 + more[0]
                size += inodes[dentry.inode].size + more[1]
        return entries, size

    for ino, inode in inodes.items():
        if inode.mode & S_IFMT == DIRECTORY:
            usage = stored.get(ino, Usage(0, 0))
            assert (usage.entries, usage.size_bytes) == below(ino), f"usage of {ino}"


def _check_xattrs(kv: KV, inodes: dict[int, Inode]) -> None:
    sizes: Counter[int] = Counter()
    for key, _ in rows(kv, Family.XATTR):
        sizes[_ino(key)] += len(key) - 16 + 1
    assert set(sizes) <= set(inodes), "attributes of an inode that is gone"
    for ino, inode in inodes.items():
        assert inode.xattr_bytes == sizes[ino]
