"""Keys: big-endian, starting with the view (sessions, queues and counters apart).

History and reclaim keys carry another record's key inside. Names hold no NUL, and all other keys
of a family have one length, so `rest | 0x00 | death` keeps the order of the records themselves.
"""

from __future__ import annotations

import struct

from nokv.state.families import Family
from nokv.types.values import StoredObject

U64 = struct.Struct(">Q")
U64X2 = struct.Struct(">QQ")
U64X4 = struct.Struct(">QQQQ")
pack = U64.pack
pack2 = U64X2.pack
VIEW_BYTES = 8
_OBJECT = struct.Struct(">QQIHH")
_REF = struct.Struct(">QQQQQ")

COUNTERS = b"counters"
POSITION = b"position"
VOLUME = b"volume"
JOB_PREFIX = b"job/"
BACKUP_PREFIX = b"backup/"
ORIGIN = b"origin"
SNAPSHOT_PREFIX = b"snapshot/"
LEASE_PREFIX = b"lease/"
MAKER_PREFIX = b"maker/"
TRASH = b"trash"
TRASH_OF_PREFIX = b"trash-of/"
FLATTEN_PREFIX = b"flatten/"
FLATTEN_TODO_PREFIX = b"flatten-todo/"
GRAFT_PREFIX = b"graft/"
KEPT_PREFIX = b"kept/"
LIVE_PREFIX = b"live/"
CHANGED_PREFIX = b"changed/"
SESSION_PIN_PREFIX = b"session-pin/"

RECORD = b"\x00"
RESULT = b"\x01"
CONSUMED = b"\x02"
NONCE_PREFIX = bytes(8) + b"\x03"

LOCK_INDEX = b"\xff" * 8
"""Stands where a view would: what sessions hold and wait for."""


def inode(view: int, ino: int) -> bytes:
    """INODE and USAGE."""
    return pack2(view, ino)


def dentry(view: int, directory: int, name: bytes) -> bytes:
    """DENTRY."""
    return pack2(view, directory) + name


def xattr(view: int, ino: int, name: bytes) -> bytes:
    """XATTR."""
    return pack2(view, ino) + name


def chunk(view: int, ino: int, body: int, index: int) -> bytes:
    """CHUNK."""
    return U64X4.pack(view, ino, body, index)


def chunk_parts(key: bytes) -> tuple[int, int, int, int]:
    """(view, inode, body, chunk) of a CHUNK key."""
    view, ino, body, index = U64X4.unpack(key)
    return view, ino, body, index


def body_range(view: int, ino: int, body: int) -> tuple[bytes, bytes]:
    """CHUNK: from the first to behind the last chunk of a body."""
    return U64X4.pack(view, ino, body, 0), U64X4.pack(view, ino, body + 1, 0)


def backlink(view: int, ino: int, directory: int) -> bytes:
    """BACKLINK."""
    return pack2(view, ino) + pack(directory)


def pin(view: int, version: int, pin_id: int) -> bytes:
    """PIN."""
    return pack2(view, version) + pack(pin_id)


def session_pin(session_id: int, pin_key: bytes = b"") -> bytes:
    """META: a pin that ends with the session, by its key; without one where all of them begin."""
    return SESSION_PIN_PREFIX + pack(session_id) + pin_key


def pin_parts(key: bytes) -> tuple[int, int, int]:
    """(view, version, pin id) of a PIN key."""
    view, version = U64X2.unpack_from(key)
    return view, version, int.from_bytes(key[16:], "big")


def session(session_id: int) -> bytes:
    """SESSION: the record."""
    return pack(session_id) + RECORD


def result(session_id: int, seq: int) -> bytes:
    """SESSION: a result row."""
    return pack(session_id) + RESULT + pack(seq)


def consumed(session_id: int, first: int) -> bytes:
    """SESSION: a range of published uploads, [first, value]."""
    return pack(session_id) + CONSUMED + pack(first)


def live(session_id: int) -> bytes:
    """META: the session has not ended. Tombstones outnumber the living."""
    return LIVE_PREFIX + pack(session_id)


def nonce(value: bytes) -> bytes:
    """SESSION: the session that an opening's nonce made."""
    return NONCE_PREFIX + value


def lock(view: int, ino: int, kind: int) -> bytes:
    """LOCK: a table."""
    return b"%b%c" % (pack2(view, ino), kind)


def lock_parts(key: bytes) -> tuple[int, int, int]:
    """(view, inode, kind) of a table's key."""
    view, ino = U64X2.unpack_from(key)
    return view, ino, key[16]


def locks_of(session_id: int) -> bytes:
    """LOCK: all tables in which a session holds or waits, by owner."""
    return b"%b%b\x00" % (LOCK_INDEX, pack(session_id))


def lock_of(session_id: int, owner: int, place: bytes = b"") -> bytes:
    """LOCK: an owner holds or waits in the table of that key."""
    return locks_of(session_id) + pack(owner) + place


def lock_waits(session_id: int, owner: int) -> bytes:
    """LOCK: all requests of an owner that wait."""
    return b"%b%b\x01%b" % (LOCK_INDEX, pack(session_id), pack(owner))


def lock_wait(session_id: int, owner: int, ticket: int) -> bytes:
    """LOCK: one of them; its value is the table's key."""
    return lock_waits(session_id, owner) + pack(ticket)


def job(number: int) -> bytes:
    """META: background work."""
    return JOB_PREFIX + pack(number)


def backup(number: int) -> bytes:
    """META: a backup."""
    return BACKUP_PREFIX + pack(number)


def snapshot(name: str) -> bytes:
    """META: a snapshot."""
    return SNAPSHOT_PREFIX + name.encode()


def maker(uid: int) -> bytes:
    """META: how many of the snapshots a uid made."""
    return MAKER_PREFIX + pack(uid)


def lease(until_cluster_ns: int, name: str) -> bytes:
    """META: the lease of a snapshot ends then."""
    return LEASE_PREFIX + pack(until_cluster_ns) + name.encode()


def lease_parts(key: bytes) -> tuple[int, str]:
    """(end, name) of such a key."""
    start = len(LEASE_PREFIX)
    return int.from_bytes(key[start : start + 8], "big"), key[start + 8 :].decode()


def flatten(view: int) -> bytes:
    """META: how far a view is flattened."""
    return FLATTEN_PREFIX + pack(view)


def flatten_todo(view: int, ino: int) -> bytes:
    """META: an inode whose records are still to be copied."""
    return FLATTEN_TODO_PREFIX + pack2(view, ino)


def trash_of(cluster_ns: int, view: int) -> bytes:
    """META: the oldest entry of a view's trash was put there at that cluster time."""
    return TRASH_OF_PREFIX + pack2(cluster_ns, view)


def graft(view: int, directory: int, name: bytes) -> bytes:
    """META: the number of the view that a name leads into."""
    return GRAFT_PREFIX + pack2(view, directory) + name


def graft_parts(key: bytes) -> tuple[int, int, bytes]:
    """(view, directory, name) of such a key."""
    start = len(GRAFT_PREFIX)
    view, directory = U64X2.unpack_from(key, start)
    return view, directory, key[start + 16 :]


def changed(view: int, directory: int, ino: int) -> bytes:
    """META: what the origin shows as `ino` in a directory has own records, or leads to some."""
    return CHANGED_PREFIX + pack2(view, directory) + pack(ino)


def history(family: Family, key: bytes, death: int) -> bytes:
    """HISTORY: the record `key` as it was until `death`."""
    return b"%b%c%b\x00%b" % (key[:VIEW_BYTES], family, key[VIEW_BYTES:], pack(death))


def history_parts(key: bytes) -> tuple[Family, bytes, int]:
    """(family, record key, death) of a HISTORY key."""
    family = Family(key[VIEW_BYTES])
    return family, key[:VIEW_BYTES] + key[VIEW_BYTES + 1 : -9], int.from_bytes(key[-8:], "big")


def reclaim(newest_pin: int, born: int, family: Family, key: bytes, death: int) -> bytes:
    """RECLAIM: (view, newest pin at death, birth, family, key, death)."""
    view = key[:VIEW_BYTES]
    rest = key[VIEW_BYTES:]
    return b"%b%b%c%b\x00%b" % (view, pack2(newest_pin, born), family, rest, pack(death))


def reclaim_parts(key: bytes) -> tuple[int, int, Family, bytes, int]:
    """(newest pin, birth, family, record key, death) of a RECLAIM key."""
    newest, born = U64X2.unpack_from(key, VIEW_BYTES)
    family = Family(key[24])
    return newest, born, family, key[:VIEW_BYTES] + key[25:-9], int.from_bytes(key[-8:], "big")


def touched(newest_pin: int, family: Family, key: bytes) -> bytes:
    """TOUCHED: a key first changed since that pin."""
    return b"%b%b%c%b" % (key[:VIEW_BYTES], pack(newest_pin), family, key[VIEW_BYTES:])


def kept(view: int, newest_pin: int, oldest_pin: int) -> bytes:
    """META: what ended and waits for the pins of a view between these two."""
    return KEPT_PREFIX + pack2(view, newest_pin) + pack(oldest_pin)


def kept_first(key: bytes) -> int:
    """Return the oldest pin of such a key."""
    return int.from_bytes(key[-8:], "big")


def object_prefix(obj: StoredObject) -> bytes:
    """REF: all holds of one object."""
    return _OBJECT.pack(obj.session, obj.upload, obj.chunk, obj.block, obj.piece)


def ref(obj: StoredObject, view: int, ino: int, body: int, index: int, born: int) -> bytes:
    """REF: one hold."""
    return object_prefix(obj) + _REF.pack(view, ino, body, index, born)


def after_prefix(prefix: bytes) -> bytes:
    """The smallest key above every key that starts with `prefix` (which is not all 0xff)."""
    trimmed = prefix.rstrip(b"\xff")
    assert trimmed, "a prefix of 0xff bytes has no end"
    return trimmed[:-1] + bytes([trimmed[-1] + 1])
