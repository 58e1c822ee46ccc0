"""Which objects a restored volume's files name, also in snapshots and clones, and its bucket lacks.

The names are collected into a scratch store on disk, the bucket is listed, and what is listed is
struck off: what stays is missing. Memory is a page of the listing and a transaction, whatever the
volume's size, and a record for each object that is missing.
"""

from __future__ import annotations

import shutil
import struct
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from nokv.errors import InvalidArgument
from nokv.kv.lmdb_store import LmdbKV
from nokv.objects.layout import ObjectName, format_name, parse_name, volume_prefix
from nokv.objects.port import ObjectStore
from nokv.server.datadir import SHARD
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.port import KV
from nokv.state.records import body_of, decode_chunk, decode_drop, is_whiteout
from nokv.types.values import StoredObject

DIRTY_BYTES_MAX: Final = 16 * 1024 * 1024
"""The scratch store's open transaction."""
_NAME: Final = struct.Struct(">QQIHH")
"""Session, upload, chunk, block, piece."""
_USER: Final = struct.Struct(">QQQ")
"""Inode, body, chunk."""
_BODY: Final = struct.Struct(">QQQ")
"""View, inode, body."""


class Missing(msgspec.Struct, frozen=True):
    """An object that a file names and the bucket does not have."""

    inode: int
    body: int
    chunk: int
    object: tuple[int, int, int, int, int]
    """Session, upload, chunk, block, piece: what the object's name says."""

    def name(self, volume: str) -> str:
        """Return the object's name in the store of a volume."""
        return format_name(ObjectName(volume, SHARD, *self.object))


async def fsck(
    state: KV, store: ObjectStore, volume: str, scratch: Path
) -> tuple[list[Missing], int]:
    """Return the objects that the bucket lacks, ordered by name, and how many files have objects.

    `scratch` is the folder of the scratch store, removed before and afterwards. Raises
    ObjectStoreError, StoreFailed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    named = LmdbKV(scratch)
    try:
        files = _collect(state, named)
        await _strike(named, store, volume)
        missing = []
        for key, _ in named.scan(Family.META, b"", b"\xff" * _NAME.size):
            inode, body, chunk = _USER.unpack(key[_NAME.size :])
            missing.append(Missing(inode, body, chunk, _NAME.unpack(key[: _NAME.size])))
    finally:
        named.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return missing, files


def _collect(state: KV, named: LmdbKV) -> int:
    """Put what each body that is shown names into the scratch store; return how many files have.

    A body that ended is shown as long as its view is pinned in between.
    """
    pins: dict[int, list[int]] = {}
    for key, _ in state.scan(Family.PIN, b"", b"\xff" * 9):
        view, version, _ = keys.pin_parts(key)
        pins.setdefault(view, []).append(version)
    for _, value in state.scan(Family.DROP, b"", b"\xff" * 9):
        drop = decode_drop(value)
        versions = pins.get(drop.view, [])
        at = bisect_left(versions, drop.born)
        pinned = at < len(versions) and versions[at] < drop.death
        if drop.history and pinned:
            _, record, _ = keys.history_parts(drop.history)
            _name(named, record, drop.objects)
        elif drop.body and not pinned:
            named.write(Family.DROP, [(_BODY.pack(drop.view, drop.inode, drop.body), b"")])
            _settle(named)
    files = 0
    last = (-1, -1)
    for key, value in state.scan(Family.CHUNK, b"", b"\xff" * 33):
        view, inode, body, _ = keys.chunk_parts(key)
        if (view, inode) != last:
            last = (view, inode)
            files += 1
        ended = named.get(Family.DROP, _BODY.pack(view, inode, body)) is not None
        if not ended and not is_whiteout(value):
            _name(named, key, decode_chunk(body_of(value)).objects)
    return files


def _name(named: LmdbKV, record: bytes, objects: Iterable[StoredObject]) -> None:
    """Note the objects of a chunk record."""
    _, inode, body, chunk = keys.chunk_parts(record)
    user = _USER.pack(inode, body, chunk)
    names = {_NAME.pack(o.session, o.upload, o.chunk, o.block, o.piece) for o in objects}
    named.write(Family.META, [(name + user, b"") for name in sorted(names)])
    _settle(named)


async def _strike(named: LmdbKV, store: ObjectStore, volume: str) -> None:
    """Remove what the bucket has from the scratch store."""
    prefix, after = volume_prefix(volume), ""
    while True:
        page = await store.list(prefix, after)
        found: list[tuple[bytes, bytes | None]] = []
        for info in page.objects:
            try:
                name: ObjectName = parse_name(info.name)
            except InvalidArgument:
                continue  # nobody's object
            start = _NAME.pack(*name[2:])
            users = named.scan(Family.META, start, start + b"\xff" * _USER.size)
            found += [(key, None) for key, _ in users]
        named.write(Family.META, found)
        _settle(named)
        if not page.more:
            return
        after = page.objects[-1].name


def _settle(named: LmdbKV) -> None:
    if named.dirty_bytes >= DIRTY_BYTES_MAX:
        named.commit()
