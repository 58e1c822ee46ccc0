"""The bytes of a backup: read back whole, and refused when anything in them is wrong."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.state.shard import VOLUME

from nokv.backup.create import BucketSink, FileSink, create_backup
from nokv.backup.format import (
    MANIFEST,
    MARK,
    PART_BYTES,
    Head,
    Manifest,
    encode_head,
    place,
    read_head,
)
from nokv.backup.manage import check_unmarked, clear, fetch, manifests, marks_of, verify_stream
from nokv.errors import AlreadyExists, BackupDamaged, BackupGone, NotPermitted
from nokv.kv.image import LmdbImageSource, source_pieces
from nokv.kv.lmdb_store import LmdbKV
from nokv.objects.memory import MemoryStore
from nokv.server.restore import mark
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import Counters, Position, encode


def head(version: int = 5) -> Head:
    return Head(
        cluster="c1", volume=VOLUME, name="b", backup=4, version=version, index=3, created_ns=1
    )


@pytest.fixture
def backup(tmp_path: Path) -> bytes:
    """A whole backup of a small state."""
    kv = LmdbKV(tmp_path / "state")
    kv.write(Family.META, [(keys.COUNTERS, encode(Counters(version=5)))])
    kv.write(Family.META, [(keys.POSITION, encode(Position(3, 1, b"")))])
    kv.write(Family.INODE, [(number.to_bytes(16, "big"), bytes(100)) for number in range(300)])
    kv.commit()
    source = LmdbImageSource(kv.open_reader())
    data = encode_head(head()) + b"".join(source_pieces(source))
    source.close()
    kv.close()
    return data


def test_a_whole_one(backup: bytes) -> None:
    found, info = verify_stream(io.BytesIO(backup))
    assert found == head()
    assert info.records == 302


def test_every_flipped_bit_is_found(backup: bytes) -> None:
    for offset in range(0, len(backup), 97):
        damaged = bytearray(backup)
        damaged[offset] ^= 1 << offset % 8
        with pytest.raises(BackupDamaged):
            verify_stream(io.BytesIO(bytes(damaged)))


def test_every_cut_is_found(backup: bytes) -> None:
    for length in range(0, len(backup), 89):
        with pytest.raises(BackupDamaged):
            verify_stream(io.BytesIO(backup[:length]))
    with pytest.raises(BackupDamaged):
        verify_stream(io.BytesIO(backup + b"x"))


def test_another_backups_head_is_refused(backup: bytes) -> None:
    body = backup[len(encode_head(head())) :]
    with pytest.raises(BackupDamaged, match="another"):
        verify_stream(io.BytesIO(encode_head(head(version=6)) + body))
    with pytest.raises(BackupDamaged):
        read_head(io.BytesIO(b"#!/bin/sh\n" * 20))


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "backup"
        sink = FileSink(path)
        await sink.write(b"abc")
        assert not path.exists()
        await sink.abort()
        assert not any(tmp_path.iterdir())  # noqa: ASYNC240
        sink = FileSink(path)
        await sink.write(b"abc")
        await sink.finish()
        assert path.read_bytes() == b"abc"
        assert [one.name for one in tmp_path.iterdir()] == ["backup"]  # noqa: ASYNC240

    asyncio.run(run())


def test_a_file_replaces_no_backup_that_is_there(tmp_path: Path) -> None:
    """Nor does its end take away what another one made; only a scheduled one's leftover goes."""

    async def run() -> None:
        path = tmp_path / "backup"
        path.write_bytes(b"first")
        nobody: Any = None  # neither the cluster nor the store is asked
        with pytest.raises(AlreadyExists, match="backup exists"):
            await create_backup(nobody, nobody, name="b", keep_ns=1, to=path)
        sink = FileSink(path)
        await sink.write(b"second")
        with pytest.raises(AlreadyExists, match="backup exists"):
            await sink.finish()
        await sink.abort()
        assert path.read_bytes() == b"first"
        again = FileSink(path, leftover=True)
        await again.write(b"third")
        await again.finish()
        assert path.read_bytes() == b"third"
        await again.abort()
        assert not any(tmp_path.iterdir())  # noqa: ASYNC240

    asyncio.run(run())


def test_a_file_system_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    test_a_file_is_whole_or_absent(tmp_path)
    (tmp_path / "backup").unlink()
    test_a_file_replaces_no_backup_that_is_there(tmp_path)


def test_two_makers_of_one_file_never_mix_their_bytes(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "backup"
        first, second = FileSink(path), FileSink(path)
        await first.write(b"a" * 10)
        await second.write(b"b" * 4)
        await first.write(b"a" * 10)
        await first.finish()
        await second.write(b"b" * 30)
        with pytest.raises(AlreadyExists):
            await second.finish()
        await second.abort()
        assert path.read_bytes() == b"a" * 20
        assert [one.name for one in tmp_path.iterdir()] == ["backup"]  # noqa: ASYNC240

    asyncio.run(run())


def test_parts_and_manifest() -> None:
    async def run() -> None:
        store, where = MemoryStore(), place(head())
        sink = BucketSink(store, where)
        data = bytes(range(256)) * (PART_BYTES // 256) + b"rest"
        await sink.write(data)
        parts = await sink.finish()
        assert parts == (PART_BYTES, 4)
        assert await manifests(store) == []
        manifest = Manifest(head=head(), where="bucket", size_bytes=1, digest="", parts=parts)
        await store.put(where + MANIFEST, msgspec.json.encode(manifest))
        assert await manifests(store, VOLUME.volume) == [manifest]
        found = io.BytesIO()
        await fetch(store, manifest, found)
        assert found.getvalue() == data
        await store.delete([where + "part-00000001"])
        with pytest.raises(BackupDamaged, match="missing"):
            await fetch(store, manifest, io.BytesIO())
        await store.put(where + "part-00000001", b"re")
        with pytest.raises(BackupDamaged, match="instead"):
            await fetch(store, manifest, io.BytesIO())

    asyncio.run(run())


def test_a_mark_and_a_deletion_see_each_other() -> None:
    async def run() -> None:
        store, where = MemoryStore(), place(head())
        manifest = Manifest(head=head(), where="bucket", size_bytes=1, digest="")
        await store.put(where + MANIFEST, msgspec.json.encode(manifest))
        await mark(store, head(), "c2", ())
        assert await marks_of(store, where) == ["c2"]
        with pytest.raises(NotPermitted, match="c2"):
            await check_unmarked(store, where, frozenset())
        assert not await clear(store, where), "its hold stays"
        with pytest.raises(BackupGone):
            await mark(store, head(), "c3", ("backups/x/",))
        assert await marks_of(store, where) == ["c2"], "what fails leaves no mark"
        assert not (await store.list("backups/x/")).objects
        assert await clear(store, where, gone=frozenset({"c2"}))
        assert not (await store.list(where + MARK)).objects

    asyncio.run(run())
