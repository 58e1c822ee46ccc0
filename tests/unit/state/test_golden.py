"""The bytes of every record and key: a changed, moved or removed field changes a line here.

After a field was appended on purpose, write the file anew:
`python -m tests.unit.state.test_golden > tests/unit/state/golden.txt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from tests.unit.state.shard import Shard

from nokv.state import keys, records
from nokv.state.families import Family
from nokv.state.locks import Hold, LockTable, Wait
from nokv.state.records import (
    Acls,
    Backup,
    Counters,
    Dentry,
    Drop,
    EventRecord,
    Flattening,
    FlattenTodo,
    Inode,
    Job,
    Kept,
    Nested,
    Origin,
    Pin,
    Position,
    Session,
    Snapshot,
    StoredEvent,
    TrashEntry,
    Usage,
    View,
    encode,
)
from nokv.types.values import Lease, StoredChunk, StoredExtent, StoredObject, Volume

GOLDEN = Path(__file__).with_name("golden.txt")

OBJECT = StoredObject(2**40 + 1, 7, 3, 2, 1, 1000, b"\x01" * 8)
EVENT = StoredEvent(9, 1, 0, 0, b"name", 5, 1, b"to", 100, 8, 2**32 + 1, 4, (b"a", b"b"))
RECORDS: dict[str, msgspec.Struct] = {
    "counters": Counters(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, bytes(16)),
    "inode": Inode(
        0o100644, 1000, 100, 2, 2**40, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 11, b"\x02" * 32, b"t", 12
    ),
    "inode with lists": Inode(
        0o040750, 0, 0, 2, 0, 1, 1, 1, 0, acls=Acls(b"\x02\0\0\0a", b"\x02\0\0\0d")
    ),
    "lock table": LockTable(
        (Hold(0, 9, 2**32 + 1, 7, True, 3),), (Wait(8, 4, 2**63, 2**32 + 2, 6, False, 5),)
    ),
    "inode, defaults": Inode(0o040755, 0, 0, 2, 0, 1, 1, 1, 0),
    "dentry": Dentry(8, 5),
    "dentry of a graft": Dentry(4, 1, 7, 2),
    "usage": Usage(3, 2**40),
    "view": View(1, 2, 3, 4, (0, 1, b"n"), 5, 6),
    "pin": Pin(2**32 + 1),
    "session": Session(
        b"\x03" * 16, 30, 1, 2, 3, 4, 5, 6, (Lease(0, 1, 2, 3),), ((0, 9),), 7, 8, 9, 10
    ),
    "drop of a body": Drop(0, 5, 2, 3, 4, 5),
    "drop of objects": Drop(
        0, 5, 2, 3, 4, 5, (OBJECT,), b"history", (3,), size_bytes=6, pins=(7, 8)
    ),
    "kept": Kept(1, 2),
    "job": Job(1, 0, 5, 6),
    "drop with births": Drop(0, 5, 2, 3, 4, 5, (OBJECT,), b"history", (3,), size_bytes=7),
    "drop of an origin": Drop(1, 5, 0, 3, 4, 5, flat=True),
    "trash entry": TrashEntry(b"/a/b", 5, b"b", 1000, 7, 8),
    "flattening": Flattening(7, 6, (5, 4), 9, b"\x01key"),
    "flatten todo": FlattenTodo(b"name", 3),
    "usage with a quota": Usage(3, 2**40, 1, 10, 2**50),
    "events": EventRecord(123, ((5, 1), (1,)), (EVENT,)),
    "backup": Backup("b", "c", 9, "bucket", 2, 2**32 + 1, 3, 4, True, 5, 6, b"\x04" * 16, 7),
    "origin": Origin("c", 9, (("c1", "backups/x/"),), 5, True, True, (1, 2)),
    "snapshot": Snapshot(
        9, b"/a", 1, 2, 8, (1, 2), 7, 3, 2**32 + 1, True, (Nested(2, 1, 5, b"n"),), 12
    ),
    "position": Position(10, 2, b"config", ((7, 1, 0xE3069283),)),
    "chunk": StoredChunk(
        (OBJECT,), (StoredExtent(0, 5, 0, 10, 3), StoredExtent(5, 1, -1, 0, 4, b"x"))
    ),
    "volume": Volume("0" * 32, "s3", "http://e", "bucket", "prefix", "region"),
}

DENTRY = keys.dentry(0, 3, b"name")
KEYS: dict[str, bytes] = {
    "key inode": keys.inode(1, 2),
    "key dentry": DENTRY,
    "key xattr": keys.xattr(0, 2, b"user.a"),
    "key chunk": keys.chunk(0, 2, 3, 4),
    "key backlink": keys.backlink(0, 2, 3),
    "key pin": keys.pin(0, 5, 6),
    "key session": keys.session(2**32 + 1),
    "key result": keys.result(2**32 + 1, 7),
    "key consumed": keys.consumed(2**32 + 1, 8),
    "key nonce": keys.nonce(b"\x04" * 16),
    "key live": keys.live(2**32 + 1),
    "key lock": keys.lock(1, 2, 1),
    "key lock of an owner": keys.lock_of(2**32 + 1, 7, keys.lock(1, 2, 1)),
    "key lock wait": keys.lock_wait(2**32 + 1, 7, 8),
    "key job": keys.job(9),
    "key backup": keys.backup(9),
    "key snapshot": keys.snapshot("s"),
    "key maker": keys.maker(9),
    "key trash": keys.TRASH,
    "key flatten": keys.flatten(1),
    "key flatten todo": keys.flatten_todo(1, 2),
    "key graft": keys.graft(1, 2, b"name"),
    "key kept": keys.kept(1, 3, 2),
    "key changed": keys.changed(1, 2, 3),
    "key history": keys.history(Family.DENTRY, DENTRY, 10),
    "key reclaim": keys.reclaim(8, 7, Family.DENTRY, DENTRY, 10),
    "key touched": keys.touched(8, Family.DENTRY, DENTRY),
    "key ref": keys.ref(OBJECT, 0, 2, 3, 4, 5),
}


def _values() -> dict[str, bytes]:
    """Return what golden.txt must hold."""
    return {name: encode(record) for name, record in RECORDS.items()} | KEYS


def _lines() -> dict[str, str]:
    return dict(line.rsplit(": ", 1) for line in GOLDEN.read_text().splitlines())


def test_every_record_and_key_has_golden_bytes() -> None:
    assert {name: value.hex() for name, value in _values().items()} == _lines()


def test_every_record_type_has_a_line() -> None:
    kinds = {
        kind
        for kind in vars(records).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == records.__name__
    }
    nested = {Acls, StoredEvent, Nested}
    assert kinds - nested <= {type(record) for record in RECORDS.values()}


@pytest.mark.parametrize("name", RECORDS)
def test_records_decode_again_and_with_an_independent_decoder(name: str) -> None:
    record = RECORDS[name]
    data = bytes.fromhex(_lines()[name])
    assert msgspec.msgpack.decode(data, type=type(record)) == record
    assert msgpack.unpackb(data) == _plain(record)


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_a_later_release_are_refused(name: str) -> None:
    record = RECORDS[name]
    longer = msgspec.msgpack.encode([*_plain(record), "more"])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(longer, type=type(record))


def test_keys_take_each_other_apart() -> None:
    assert keys.history_parts(KEYS["key history"]) == (Family.DENTRY, DENTRY, 10)
    assert keys.reclaim_parts(KEYS["key reclaim"]) == (8, 7, Family.DENTRY, DENTRY, 10)
    assert keys.lock_parts(KEYS["key lock"]) == (1, 2, 1)
    assert keys.chunk_parts(KEYS["key chunk"]) == (0, 2, 3, 4)
    assert keys.graft_parts(KEYS["key graft"]) == (1, 2, b"name")
    assert keys.kept_first(KEYS["key kept"]) == 2


def test_family_numbers_do_not_change() -> None:
    names = (
        "META INODE DENTRY XATTR CHUNK VIEW PIN SESSION LOCK HISTORY RECLAIM DROP REF TOUCHED "
        "USAGE EVENT FIELDS BACKLINK"
    )
    assert [family.name for family in Family] == names.split()
    assert [family.value for family in Family] == list(range(18))


def test_a_stored_record_is_its_version_and_an_array() -> None:
    shard = Shard()
    made = shard.create("f")
    row = shard.kv.get(Family.DENTRY, keys.dentry(0, 1, b"f"))
    assert row is not None
    assert int.from_bytes(row[:8], "big") == made.version
    assert msgpack.unpackb(row[8:]) == [8, made.inode, None, None]


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return [_plain(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


if __name__ == "__main__":
    for key, golden in _values().items():
        sys.stdout.write(f"{key}: {golden.hex()}\n")
