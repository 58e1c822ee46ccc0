"""Reading a stopped node's log without changing it: what it holds, and whether a start would do.

`examine` runs the very code of a start, over a disk that drops every change. `dump` reads the
records as they lie, void and damaged ones included.
"""

import errno
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import crc32c
import msgspec

from nokv_replication import records
from nokv_replication.bootstrap import Identity
from nokv_replication.errors import LogDamaged
from nokv_replication.frames import Entry, decode_entry
from nokv_replication.log import Log
from nokv_replication.ports import Disk
from nokv_replication.records import HardState, RecordType, SegmentHeader
from nokv_replication.segments import disk_errors, segment_name, segment_sequences
from nokv_replication.types import GroupConfig

UNREADABLE_MAX = 16
"""Entries that can't be read are counted beyond this, not listed."""


class Cut(NamedTuple):
    """What a start would zero: the tail of a batch that was never synced."""

    file: str
    offset_bytes: int
    size_bytes: int


class ReadOnlyDisk:
    """The `Disk` port over another one; drops what would change it, and notes the writes."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._names: dict[int, str] = {}
        self.cuts: list[Cut] = []

    def listdir(self) -> list[str]:
        """Return the names in the folder."""
        return self._disk.listdir()

    def create(self, name: str) -> int:
        """Refuse: reading creates nothing."""
        raise OSError(errno.EROFS, "this disk is only read", name)

    def open(self, name: str) -> int:
        """Open a file."""
        handle = self._disk.open(name)
        self._names[handle] = name
        return handle

    def close(self, handle: int) -> None:
        """Close it."""
        del self._names[handle]
        self._disk.close(handle)

    def preallocate(self, handle: int, size_bytes: int, offset: int) -> None:
        """Refuse: reading prepares nothing."""
        del size_bytes, offset
        raise OSError(errno.EROFS, "this disk is only read", self._names[handle])

    def size_bytes(self, handle: int) -> int:
        """Return the file's size."""
        return self._disk.size_bytes(handle)

    def pread(self, handle: int, size_bytes: int, offset: int) -> bytes:
        """Read."""
        return self._disk.pread(handle, size_bytes, offset)

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Note what would be written, which is zeros over a torn tail."""
        self.cuts.append(Cut(self._names[handle], offset, len(data)))

    def fdatasync(self, handle: int) -> None:
        """Do nothing."""

    def fsync_dir(self) -> None:
        """Do nothing."""

    def rename(self, old: str, new: str) -> None:
        """Refuse: reading renames nothing."""
        raise OSError(errno.EROFS, "this disk is only read", f"{old} to {new}")

    def unlink(self, name: str) -> None:
        """Do nothing: what a start would remove stays."""

    def free_bytes(self) -> int:
        """Return the free space."""
        return self._disk.free_bytes()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A log that a node can start from."""

    segments: int
    size_bytes: int
    """Of the records."""
    first_index: int
    last_index: int
    """`first_index` - 1 when there is no entry."""
    last_term: int
    hard_state: HardState
    announced: tuple[int, int] | None
    """Index and term of the state image that was last about to be installed."""
    founded: bool
    """The list of members is known."""
    cuts: tuple[Cut, ...]
    """A torn tail: harmless, nothing in it was ever acknowledged."""
    unreadable: int
    """Entries that this program can't decode: the node would stop before it applies them."""
    unreadable_first: tuple[tuple[int, str], ...]
    """The first of them: index and reason."""


def open_read_only(disk: Disk, identity: Identity) -> tuple[Log, tuple[Cut, ...]]:
    """Open a log as a start would, changing nothing; return it and what a start would cut.

    Raises:
        StartRefused: there is no log, it is another node's, or of a format not known here.
        LogDamaged: synced records are unreadable or missing.
        DiskFailed: an operation of the disk failed.
    """
    reader = ReadOnlyDisk(disk)
    log = Log.open(reader, GroupConfig(cache_bytes=0), identity, Random(0))
    return log, tuple(reader.cuts)


def examine(disk: Disk, identity: Identity) -> Report:
    """Check every record of a log and every entry in force; see `open_read_only` for errors."""
    log, cuts = open_read_only(disk, identity)
    unreadable: list[tuple[int, str]] = []
    count = 0
    for index in range(log.first_index, log.last_index + 1):
        command = log.entry(index)
        try:
            decode_entry(command, index)
        except LogDamaged as error:
            count += 1
            if len(unreadable) < UNREADABLE_MAX:
                unreadable.append((index, str(error)))
    report = Report(
        segments=log.segment_count,
        size_bytes=log.size_bytes,
        first_index=log.first_index,
        last_index=log.last_index,
        last_term=log.last_term,
        hard_state=log.hard_state,
        announced=log.announced,
        founded=bool(log.members),
        cuts=cuts,
        unreadable=count,
        unreadable_first=tuple(unreadable),
    )
    log.close()
    return report


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One record as it lies, or what lies where none is."""

    file: str
    offset_bytes: int
    size_bytes: int
    """With padding; of what is no record, up to the last byte that is not zero."""
    kind: str
    """A record's type in lower case; `torn` or `damaged` where there is no valid record."""
    index: int
    """Of an entry, of the first void one of a truncation, of what comes before a segment, of the
    position of a state image that was about to be installed."""
    term: int
    batch_start: bool
    """Everything before it was synced when it was written."""
    crc: int
    """CRC-32C of the payload: what `Skip.crc` is."""
    payload: bytes


def dump(disk: Disk) -> Iterator[Line]:
    """Yield every record of every segment, oldest first, one segment in memory at a time.

    Reads raw bytes: no identity, order or gap is checked. A place that holds no valid record ends
    its segment with a line of its own: `torn` where only the newest, never synced batch can lie,
    else `damaged`.

    Raises:
        DiskFailed: an operation of the disk failed.
    """
    with disk_errors():
        sequences = segment_sequences(disk.listdir())
    for sequence in sequences:
        name = segment_name(sequence)
        with disk_errors():
            handle = disk.open(name)
            data = memoryview(disk.pread(handle, disk.size_bytes(handle), 0))
            disk.close(handle)
        yield from _dump_segment(name, data, newest=sequence == sequences[-1])


def _dump_segment(name: str, data: memoryview, *, newest: bool) -> Iterator[Line]:
    first = records.decode_at(data, 0, 0)
    header = segment_header(first)
    if first is None or header is None:
        yield _hole(name, 0, data, "damaged")
        return
    yield _line(name, first)
    end = first.end
    for record in records.scan(data, end, header.salt):
        yield _line(name, record)
        end = record.end
    if records.written_end(data) > end:
        synced = not newest or records.synced_after(data, end, header.salt) is not None
        yield _hole(name, end, data, "damaged" if synced else "torn")


def segment_header(record: records.Record | None) -> SegmentHeader | None:
    """Return the header that a segment's first record is, None if it is none."""
    if record is None or record.type != RecordType.HEADER:
        return None
    try:
        return msgspec.msgpack.decode(record.payload, type=SegmentHeader)
    except msgspec.MsgspecError:
        return None


def _line(name: str, record: records.Record) -> Line:
    payload = bytes(record.payload)
    return Line(
        file=name,
        offset_bytes=record.offset,
        size_bytes=record.end - record.offset,
        kind=record.type.name.lower(),
        index=record.entry_index,
        term=record.term,
        batch_start=record.batch_start,
        crc=crc32c.crc32c(payload),
        payload=payload,
    )


def _hole(name: str, offset: int, data: memoryview, kind: str) -> Line:
    size = records.written_end(data) - offset
    return Line(
        file=name,
        offset_bytes=offset,
        size_bytes=size,
        kind=kind,
        index=0,
        term=0,
        batch_start=False,
        crc=0,
        payload=b"",
    )


def entry_of(line: Line) -> Entry | None:
    """Return what an entry's record holds, None where this program can't read it."""
    try:
        return decode_entry(line.payload, line.index)
    except LogDamaged:
        return None
