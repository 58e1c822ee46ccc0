"""The bytes of a backup: a head, then the pieces of one state image, trailer last.

    "NoKVbackup" | length u32 | CRC-32C u32 (little-endian) | head: JSON | pieces of nokv.kv.image

A file holds them as they are. In a bucket they are cut into objects `part-{number:08x}` below the
backup's place, `backups/{volume}/{name}/{cluster}-{id:016x}/`, and `manifest.json` beside them is
written last: without it there is no backup.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, NamedTuple

import crc32c
import msgspec

from nokv.errors import BackupDamaged
from nokv.kv.errors import ImageDamaged, ImageNewer
from nokv.kv.image import read_pieces
from nokv.types.values import Volume

FORMAT: Final = 1
MAGIC: Final = b"NoKVbackup"
HEAD_BYTES_MAX: Final = 65_536
PART_BYTES: Final = 8 * 1024 * 1024
MANIFEST: Final = "manifest.json"
MARK: Final = "restored-"
"""Objects beside the manifest: clusters that were restored from it and may need what it holds."""
_FRAME = struct.Struct("<II")
_PLACE = re.compile(r"backups/([^/]+)/([^/]+)/([^/]+)-([0-9a-f]{16})/")


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup is of."""

    format: int = FORMAT
    cluster: str
    volume: Volume
    """With where its bodies are: a backup holds no bodies."""
    name: str
    backup: int
    """Its number in the cluster."""
    version: int
    """The state's version that the image shows."""
    index: int
    """Entries applied."""
    created_ns: int
    """Wall clock of the maker, ns since 1970."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The object that makes a backup one. Of a file it says that the hold is kept."""

    head: Head
    where: str
    size_bytes: int
    digest: str
    """The state digest of the image's trailer, 32 hex digits."""
    parts: tuple[int, ...] = ()
    """Length of each part object; none of a backup in a file."""


def place_of(volume: str, name: str, cluster: str, backup: int) -> str:
    """Return what the names of all objects of a backup start with. No two backups share it."""
    return f"backups/{volume}/{name}/{cluster}-{backup:016x}/"


class Place(NamedTuple):
    """What the place of a backup says of it."""

    volume: str
    name: str
    cluster: str
    backup: int


def parse_place(where: str) -> Place | None:
    """Return what a place says; None if `place_of` returns no such."""
    parts = _PLACE.fullmatch(where)
    return parts and Place(parts[1], parts[2], parts[3], int(parts[4], 16))


def mark_of(where: str, cluster: str) -> str:
    """Return the name of the mark that a restored cluster leaves at the place of a backup."""
    return f"{where}{MARK}{cluster}.json"


def parse_mark(name: str) -> tuple[str, str] | None:
    """Return (place, cluster) of a mark's name; None if it is none."""
    where, _, file = name.rpartition("/")
    if not file.startswith(MARK):
        return None
    return f"{where}/", file.removeprefix(MARK).removesuffix(".json")


def place(head: Head) -> str:
    """Return the place of the backup with this head."""
    return place_of(head.volume.volume, head.name, head.cluster, head.backup)


def encode_head(head: Head) -> bytes:
    """Return the first bytes of a backup."""
    data = msgspec.json.encode(head)
    assert len(data) <= HEAD_BYTES_MAX
    return MAGIC + _FRAME.pack(len(data), crc32c.crc32c(data)) + data


def read_head(stream: BinaryIO) -> Head:
    """Read a backup's head; the stream stands at its first piece then. Raises BackupDamaged."""
    start = stream.read(len(MAGIC) + _FRAME.size)
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + _FRAME.size:
        raise BackupDamaged("it does not begin as a backup does")
    length, crc = _FRAME.unpack_from(start, len(MAGIC))
    data = stream.read(length) if length <= HEAD_BYTES_MAX else b""
    if len(data) != length or crc32c.crc32c(data) != crc:
        raise BackupDamaged("its head is damaged")
    try:
        head = msgspec.json.decode(data, type=Head)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"its head is of another format: {error}") from error
    if head.format != FORMAT:
        raise BackupDamaged(f"it has format {head.format}; this build reads {FORMAT}")
    return head


@contextmanager
def naming_damage(stream: BinaryIO, name: str) -> Iterator[None]:
    """Name the backup, and the byte before which it is damaged, in what is raised while it is read.

    Raises BackupDamaged for itself, ImageDamaged and ImageNewer.
    """
    try:
        yield
    except (BackupDamaged, ImageDamaged, ImageNewer) as error:
        reason = error.message if isinstance(error, BackupDamaged) else str(error)
        raise BackupDamaged(f"{name}, before byte {stream.tell()}: {reason}") from error


def pieces_of(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the pieces behind the head. Raises BackupDamaged where they are cut."""
    try:
        yield from read_pieces(stream)
    except ImageDamaged as error:
        raise BackupDamaged(str(error)) from error
