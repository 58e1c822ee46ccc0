"""Files of the log: their names, their headers, and what is wrong with them."""

import re

import msgspec

from nokv_replication.bootstrap import FORMAT, Identity
from nokv_replication.errors import DiskFailed, LogDamaged, StartRefused
from nokv_replication.records import HardState, Record, SegmentHeader

SPARE = "spare"
KEEP = (
    "Keep all files for inspection (nokv raft-log verify) and this node stopped; the others go on"
    " while they are a majority (docs/operations.md: A lost node)"
)
_SUFFIX = ".log"
_SEGMENT_NAME = re.compile(r"([0-9a-f]{16})\.log")


def segment_name(sequence: int) -> str:
    """Return the file name of a segment; names sort by age."""
    return f"{sequence:016x}{_SUFFIX}"


def segment_sequences(names: list[str]) -> list[int]:
    """Return the sequences of the segments among file names, oldest first."""
    matches = (_SEGMENT_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1], 16) for match in matches if match)


class disk_errors:  # noqa: N801 - a context manager; a class, for each sync enters one
    """Turn an `OSError` of the disk into `DiskFailed`."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            message = (
                f"the log's disk failed: {error}; restart the process, it reads the log again"
                " (repair or free the disk first)"
            )
            raise DiskFailed(message) from error


class Segment(msgspec.Struct):
    """One open file of the log."""

    sequence: int
    handle: int
    capacity_bytes: int
    salt: int
    base_index: int
    """Last live entry before this segment: where the log would start if older ones were dropped."""
    base_term: int
    used_bytes: int


def check_header(name: str, payload: memoryview, identity: Identity) -> SegmentHeader:
    """Return the header of a segment file.

    Raises:
        StartRefused: it is another node's, or of a format not known here.
    """
    try:
        header = msgspec.msgpack.decode(payload, type=SegmentHeader)
    except msgspec.MsgspecError as error:
        message = (
            f"log segment {name} has a header that this program cannot read ({error}): run the"
            " build that wrote it, or a newer one"
        )
        raise StartRefused(message) from error
    mine = (header.cluster, header.node, header.incarnation)
    if mine != (identity.cluster, identity.node, identity.incarnation):
        message = (
            f"log segment {name} was written by node {header.node} (incarnation"
            f" {header.incarnation}) of cluster {header.cluster!r}, not by this one: the data"
            " directory was mixed up; put the right one back"
        )
        raise StartRefused(message)
    if header.format != FORMAT:
        message = (
            f"log segment {name} has format {header.format}, this program reads {FORMAT}: run"
            " the build that wrote it, or a newer one"
        )
        raise StartRefused(message)
    return header


def check_place(
    sequence: int, header: SegmentHeader, size_bytes: int, before: Segment | None
) -> None:
    """Refuse a file that is not the one of its name, is not whole, or follows a gap.

    `before` is the segment read before it, None for the first.

    Raises:
        LogDamaged: it is.
    """
    name = segment_name(sequence)
    if header.sequence != sequence:
        what = f"holds segment {segment_name(header.sequence)}: files were swapped or renamed"
    elif size_bytes < header.capacity_bytes:
        what = f"has {size_bytes} of {header.capacity_bytes} bytes: it was truncated"
    elif before is not None and not header.reset and sequence != before.sequence + 1:
        what = f"follows {segment_name(before.sequence)}: a file is missing between"
    else:
        return
    raise LogDamaged(f"log segment {name} {what}. {KEEP}", name)


def decode_hard_state(segment: Segment, record: Record) -> HardState:
    """Return the term and vote of a record.

    Raises:
        StartRefused: it is of a format not known here.
    """
    try:
        return msgspec.msgpack.decode(record.payload, type=HardState)
    except msgspec.MsgspecError as error:
        name = segment_name(segment.sequence)
        message = (
            f"log segment {name} has a vote at byte {record.offset} that this program cannot"
            f" read ({error}): run the build that wrote it, or a newer one"
        )
        raise StartRefused(message) from error


def damaged(name: str, offset: int) -> LogDamaged:
    """Return what is raised where synced records are unreadable."""
    message = (
        f"log segment {name} is damaged at byte {offset} although it was synced: this node may"
        f" have lost entries it acknowledged. {KEEP}"
    )
    return LogDamaged(message, name, offset)
