"""How a body is cut into objects, how objects are named, and how their bytes are summed.

A file is cut into chunks of 64 MiB and those into blocks of 4 MiB; a block is one object, and a
later patch of a part of it is a further object, a piece. An object's name is

    blocks/{volume:32}/{shard:4}-{session:16}/{upload:16}/{chunk:8}/{block:4}.{piece:4}

in fixed-width lower-case hex, so that names sort by volume, session, upload and place, and the
name alone tells the collector which session may judge it. Names are never reused.

Each 256 KiB of an object (the last one: of the rest) has its xxh3-64, stored big-endian in one
vector beside the object's length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import xxhash

from nokv.errors import InvalidArgument, ObjectCorrupt
from nokv.objects.port import Data
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, SUM_BYTES

BLOCKS_PREFIX = "blocks/"
"""Everything below it that belongs to a volume is the collector's; nothing else ever is."""

VOLUME_OBJECT = "volume.json"

DIGEST_BYTES = 8
"""Bytes of one xxh3-64."""

_VOLUME = re.compile(r"[0-9a-f]{32}")
_OBJECT = re.compile(
    r"blocks/([0-9a-f]{32})/([0-9a-f]{4})-([0-9a-f]{16})/([0-9a-f]{16})"
    r"/([0-9a-f]{8})/([0-9a-f]{4})\.([0-9a-f]{4})"
)

assert CHUNK_BYTES % BLOCK_BYTES == 0
assert BLOCK_BYTES % SUM_BYTES == 0


class ObjectName(NamedTuple):
    """The parts of an object's name. Only `volume` is a string: 32 lower-case hex digits."""

    volume: str
    shard: int
    session: int
    upload: int
    """Leased by the session; one per body and attempt."""
    chunk: int
    """Where the block lies in the uploaded body: file offset // CHUNK_BYTES."""
    block: int
    """Within the chunk: its offset // BLOCK_BYTES."""
    piece: int
    """Counts the objects that one upload made for the same block."""


def format_name(name: ObjectName) -> str:
    """Return the object's name in the store.

    Raises:
        InvalidArgument: a part does not fit its field.
    """
    volume, shard, session, upload, chunk, block, piece = name
    owner = f"{volume}/{shard:04x}-{session:016x}"
    text = f"blocks/{owner}/{upload:016x}/{chunk:08x}/{block:04x}.{piece:04x}"
    if _OBJECT.fullmatch(text) is None:
        raise InvalidArgument(f"no object can be named {name}")
    return text


def parse_name(text: str) -> ObjectName:
    """Return the parts of a name, strictly: `format_name` of them is `text` again.

    Raises:
        InvalidArgument: `text` is not the name of a block.
    """
    match = _OBJECT.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"{text[:160]!r} is not the name of a block")
    volume, *numbers = match.groups()
    return ObjectName(volume, *(int(number, 16) for number in numbers))


def check_volume_id(volume: str) -> str:
    """Return `volume` if it is 32 lower-case hex digits.

    Raises:
        InvalidArgument: it is not.
    """
    if _VOLUME.fullmatch(volume) is None:
        raise InvalidArgument(f"volume id {volume[:80]!r} is not 32 lower-case hex digits")
    return volume


def volume_prefix(volume: str) -> str:
    """Return what the names of all objects of a volume start with."""
    return f"{BLOCKS_PREFIX}{check_volume_id(volume)}/"


def session_prefix(volume: str, shard: int, session: int) -> str:
    """Return what the names of all objects of a session start with."""
    return f"{volume_prefix(volume)}{shard:04x}-{session:016x}/"


def upload_prefix(volume: str, shard: int, session: int, upload: int) -> str:
    """Return what the names of all objects of an upload start with."""
    return f"{session_prefix(volume, shard, session)}{upload:016x}/"


def sums_count(length_bytes: int) -> int:
    """Return how many sums an object of that length has."""
    return -(-length_bytes // SUM_BYTES)


def sums_of(data: Data) -> bytes:
    """Return the vector of sums: one big-endian xxh3-64 for each SUM_BYTES of `data`."""
    if len(data) <= SUM_BYTES:
        return xxhash.xxh3_64_digest(data) if len(data) else b""
    view = memoryview(data)
    digest = xxhash.xxh3_64_digest
    return b"".join([digest(view[at : at + SUM_BYTES]) for at in range(0, len(view), SUM_BYTES)])


def verify(name: str, data: Data, first_sum: int, sums: bytes) -> None:
    """Return if `data`, which starts at sum `first_sum` of the object, matches its sums.

    Args:
        name: the object, for the error.
        data: whole sub-blocks: from `first_sum * SUM_BYTES` to a multiple of SUM_BYTES or to the
            object's end.
        first_sum: index of the first sum.
        sums: the object's whole vector.

    Raises:
        ObjectCorrupt: naming the object and the offset of the first sub-block that differs.
    """
    found = sums_of(data)
    start = first_sum * DIGEST_BYTES
    wanted = sums[start : start + len(found)]
    if found == wanted:
        return
    for index in range(0, len(found), DIGEST_BYTES):
        if found[index : index + DIGEST_BYTES] != wanted[index : index + DIGEST_BYTES]:
            offset = (first_sum + index // DIGEST_BYTES) * SUM_BYTES
            raise ObjectCorrupt(f"get {name}: the bytes at {offset} do not match their sum")
    raise AssertionError("the vectors differ, so one of their sums does")
