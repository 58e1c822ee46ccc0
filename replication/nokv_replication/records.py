"""Encoding of the log's records, and the scan that finds where a segment ends.

A record is `{length u32, crc32c u32, index u64, term u64, type u8, bytes}`, little-endian, padded
with zeros to a multiple of eight bytes. `length` counts what follows the checksum and is therefore
never zero: zeros mark the end. The checksum (Castagnoli, RFC 3720 appendix B.4) covers all but
itself and starts from the segment's random salt, so that a record stored inside a payload is never
mistaken for one of the log.

The high bit of the type marks the first record of a *batch*: everything before it was synced when
it was written. A bad record followed by such a mark lies in synced data and is damage; a bad record
followed by none lies in the one batch that was never synced, and is a torn tail.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import crc32c
import msgspec

ALIGNMENT = 8
BATCH_START = 0x80

_PREFIX = struct.Struct("<IIQQB")
_SUMMED = struct.Struct("<IQQB")
PREFIX_BYTES = _PREFIX.size
_AFTER_CHECKSUM = PREFIX_BYTES - 8


class RecordType(IntEnum):
    """What a record is; numbers are never reused."""

    HEADER = 1
    """First of a segment: a `SegmentHeader`; index and term are those of the entry before it."""
    ENTRY = 2
    TRUNCATE = 3
    """Entries at `index` and above are void; `term` is that of the entry before."""
    HARD_STATE = 4
    MEMBERS = 5
    INSTALL = 6
    """A state image that stands at (index, term) is about to take the place of the state: a start
    that finds the state there, and the log elsewhere, begins the log anew."""


class HardState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Current term and the vote given in it; `vote` 0 is none. Durable before any answer leaves."""

    term: int = 0
    vote: int = 0


class SegmentHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The state a segment starts from, so that older segments may be dropped without a rewrite.

    `reset`: entries of older segments are void; the log starts anew after (index, term).
    `members`: encoded `Members`, b"" until the list is complete.
    `capacity_bytes`: size of the file, zeros included; a shorter one was truncated.
    """

    format: int
    cluster: str
    node: int
    incarnation: int
    sequence: int
    salt: int
    reset: bool
    hard_state: HardState
    members: bytes
    capacity_bytes: int


class Record(NamedTuple):
    """One decoded record: `offset` and `end` in its segment, `payload` without prefix."""

    offset: int
    end: int
    type: RecordType
    batch_start: bool
    entry_index: int
    term: int
    payload: memoryview


def padded(size_bytes: int) -> int:
    """Return the space a record of this payload size takes."""
    return (PREFIX_BYTES + size_bytes + ALIGNMENT - 1) & -ALIGNMENT


def encode_into(
    buffer: bytearray, kind: int, index: int, term: int, payload: bytes, salt: int
) -> None:
    """Append one record to `buffer`; `kind` is a `RecordType`, perhaps with `BATCH_START`."""
    length = _AFTER_CHECKSUM + len(payload)
    start = crc32c.crc32c(_SUMMED.pack(length, index, term, kind), salt)
    checksum = crc32c.crc32c(payload, start)
    buffer += _PREFIX.pack(length, checksum, index, term, kind)
    buffer += payload
    buffer += b"\0" * (-(PREFIX_BYTES + len(payload)) % ALIGNMENT)


def decode_at(data: memoryview, offset: int, salt: int) -> Record | None:
    """Return the record at `offset`, or None if there is no valid one."""
    if offset + PREFIX_BYTES > len(data):
        return None
    length, checksum, index, term, kind = _PREFIX.unpack_from(data, offset)
    end = offset + 8 + length
    if length < _AFTER_CHECKSUM or end > len(data):
        return None
    payload = data[offset + PREFIX_BYTES : end]
    start = crc32c.crc32c(_SUMMED.pack(length, index, term, kind), salt)
    if crc32c.crc32c(payload, start) != checksum:
        return None
    try:
        record_type = RecordType(kind & ~BATCH_START)
    except ValueError:
        return None
    aligned = (end + ALIGNMENT - 1) & -ALIGNMENT
    return Record(offset, aligned, record_type, bool(kind & BATCH_START), index, term, payload)


def scan(data: memoryview, offset: int, salt: int) -> Iterator[Record]:
    """Yield the valid records from `offset` up to the first place that holds none."""
    while (record := decode_at(data, offset, salt)) is not None:
        yield record
        offset = record.end


def synced_after(data: memoryview, offset: int, salt: int) -> int | None:
    """Return the offset of a valid batch start behind `offset`: proof that `offset` was synced."""
    end = min(written_end(data), len(data) - PREFIX_BYTES)
    for position in range(offset + ALIGNMENT, end, ALIGNMENT):
        if data[position + PREFIX_BYTES - 1] < BATCH_START:
            continue  # the type is the prefix's last byte
        record = decode_at(data, position, salt)
        if record is not None and record.batch_start:
            return position
    return None


def written_end(data: memoryview) -> int:
    """Return the offset behind the last byte that is not zero."""
    chunk_bytes = 1 << 16
    end = len(data)
    while end > 0:
        start = max(0, end - chunk_bytes)
        chunk = bytes(data[start:end]).rstrip(b"\0")
        if chunk:
            return start + len(chunk)
        end = start
    return 0
