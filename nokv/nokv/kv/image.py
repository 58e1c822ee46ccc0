"""State images: a whole store as a stream of checked pieces, and back (DESIGN.md: Images).

The same bytes go to a lagging replica and into a backup. A piece is at most `PIECE_BYTES_MAX` and
stands for itself: `length u32 | CRC-32C u32 | MessagePack`, little-endian. The first is a `Header`,
then come the records of each family in order of their keys, the last is the `Trailer` with counts
and the state digest. Equal states give equal pieces.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import crc32c
import lmdb
import msgspec
from xxhash import xxh3_128_intdigest

from nokv.kv.digest import DIGEST_BYTES, combine
from nokv.kv.errors import ImageDamaged, ImageNewer, StoreFailed
from nokv.kv.lmdb_store import (
    INCOMING_SUFFIX,
    LmdbReader,
    family_name,
    make_environment,
    open_environment,
    rename,
    store_failed,
    sync_directory,
)
from nokv.state import keys
from nokv.state.families import REPLICATED, Family
from nokv.state.port import KEY_BYTES_MAX
from nokv.state.records import Counters, Position, decode_counters, decode_position
from nokv.types.formats import STATE_FORMAT

FORMAT: Final = 1
"""Of the pieces. A newer one is refused with `ImageNewer`."""

MAGIC: Final = b"NoKV image"

PIECE_BYTES_MAX: Final = 256 << 10
"""One piece, its frame included, at most."""

VALUE_BYTES_MAX: Final = 64 << 20
"""One record's value, at most: a reader holds one whole. An entry of the log bounds it at 4 MiB."""

TRANSACTION_BYTES: Final = 8 << 20
"""A sink commits, synced, after so many bytes of pieces: that bounds its memory and each sync."""

_FRAME = struct.Struct("<II")
_RECORDS_BYTES = PIECE_BYTES_MAX - 1024
"""Records in one piece with their own envelopes, at most; the rest is the piece's."""
_ITEM_BYTES = 5
"""MessagePack's head of one byte string, at most."""
_MASK = (1 << 128) - 1
_LENGTHS = tuple(size.to_bytes(2, "big") for size in range(KEY_BYTES_MAX + 1))

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Sum = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Header(msgspec.Struct, tag=1, frozen=True, array_like=True):
    """What the image is of. Fields are appended only; a reader ignores those it does not know."""

    magic: bytes
    format: int
    state_format: int
    """Of the records (`nokv.types.formats`)."""
    index: Count
    term: Count
    """Of the last entry applied."""
    version: Count
    """Of the last command applied."""
    wall_ns: int
    """Of that entry: about when the state was so."""
    size_bytes: Count
    """About the length of all pieces, as the store's pages tell; 0 in an empty one."""


class Records(msgspec.Struct, tag=2, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Records of one family: key, value, key, value ..., ascending over all pieces."""

    family: int
    items: list[bytes]


class Part(msgspec.Struct, tag=3, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A piece of a record too large for one piece; `more` follows."""

    family: int
    key: bytes
    data: bytes
    more: bool


class Trailer(msgspec.Struct, tag=4, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end: per family that has records its number, count and digest; and all of them as one."""

    families: list[tuple[int, Count, Sum]]
    digest: Sum


class ImageInfo(msgspec.Struct, frozen=True):
    """What a whole image was found to hold."""

    header: Header
    records: int
    size_bytes: int
    """All pieces."""
    digest: bytes
    """The state digest, as `nokv.kv.digest.combine` gives it; 16 bytes."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header | Records | Part | Trailer)


def _frame(message: Header | Records | Part | Trailer) -> bytes:
    payload = _encoder.encode(message)
    assert _FRAME.size + len(payload) <= PIECE_BYTES_MAX
    return _FRAME.pack(len(payload), crc32c.crc32c(payload)) + payload


def _unframe(piece: bytes) -> Header | Records | Part | Trailer:
    if not _FRAME.size < len(piece) <= PIECE_BYTES_MAX:
        raise ImageDamaged(f"a piece of {len(piece)} bytes")
    length, crc = _FRAME.unpack_from(piece)
    payload = memoryview(piece)[_FRAME.size :]
    if length != len(payload) or crc32c.crc32c(payload) != crc:
        raise ImageDamaged("a piece whose checksum is wrong")
    try:
        message: Header | Records | Part | Trailer = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ImageDamaged(f"a piece that is none of this format: {error}") from error
    return message


# ---------------------------------------------------------------------- source


class _Shared:
    """A snapshot with the number of passes that read it."""

    def __init__(self, reader: LmdbReader) -> None:
        self.reader = reader
        self.passes = 0


class LmdbImageSource:
    """One pass over the store as a reader shows it: `read` until it returns b"".

    It takes the reader over: the reader is closed with the last pass. Memory is one piece, and the
    largest value. Raises `StoreFailed`.
    """

    def __init__(self, reader: LmdbReader | _Shared) -> None:
        self._shared = reader if isinstance(reader, _Shared) else _Shared(reader)
        self._shared.passes += 1
        self._closed = False
        reader = self._shared.reader
        row = reader.get(Family.META, keys.COUNTERS)
        self.counters: Final = Counters() if row is None else decode_counters(row)
        row = reader.get(Family.META, keys.POSITION)
        self.position: Final = Position(0, 0, b"") if row is None else decode_position(row)
        self.size_bytes: Final = reader.used_bytes()
        self._pieces = self._make_pieces()

    @property
    def header(self) -> Header:
        """The first piece's content."""
        counters, position = self.counters, self.position
        return Header(
            MAGIC,
            FORMAT,
            counters.format,
            position.index,
            position.term,
            counters.version,
            counters.wall_ns,
            self.size_bytes,
        )

    def read(self) -> bytes:
        """Return the next piece; b"" after the trailer, for ever."""
        assert not self._closed
        return next(self._pieces, b"")

    def again(self) -> LmdbImageSource:
        """Return another pass from the start over the same snapshot."""
        assert not self._closed
        return LmdbImageSource(self._shared)

    def close(self) -> None:
        """Let go of the snapshot, with the last pass for good. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._pieces.close()
        self._shared.passes -= 1
        if not self._shared.passes:
            self._shared.reader.close()

    def _make_pieces(self) -> Generator[bytes]:
        yield _frame(self.header)
        found: list[tuple[int, int, bytes]] = []
        sums: dict[Family, int] = {}
        for family in REPLICATED:
            records = total = 0
            for count, share, piece in self._family_pieces(family):
                records += count
                total += share
                yield piece
            if records:
                sums[family] = total & _MASK
                found.append((family, records, sums[family].to_bytes(DIGEST_BYTES, "big")))
        yield _frame(Trailer(found, combine(sums)))

    def _family_pieces(self, family: Family) -> Iterator[tuple[int, int, bytes]]:
        """Yield (records that end in the piece, their share of the digest, piece)."""
        items: list[bytes] = []
        total = size = 0
        for key, value in self._shared.reader.scan(family, b"", _SCAN_END):
            size += len(key) + len(value) + 2 * _ITEM_BYTES
            if size > _RECORDS_BYTES:
                if items:
                    yield len(items) // 2, total, _frame(Records(family, items))
                items, total = [], 0
                size = len(key) + len(value) + 2 * _ITEM_BYTES
                if size > _RECORDS_BYTES:
                    yield from _parts(family, key, value)
                    size = 0
                    continue
            items.append(key)
            items.append(value)
            total += xxh3_128_intdigest(_LENGTHS[len(key)] + key + value)
        if items:
            yield len(items) // 2, total, _frame(Records(family, items))


_SCAN_END = b"\xff" * (KEY_BYTES_MAX + 1)


def _parts(family: Family, key: bytes, value: bytes) -> Iterator[tuple[int, int, bytes]]:
    assert len(value) <= VALUE_BYTES_MAX
    room = _RECORDS_BYTES - len(key)
    for start in range(0, len(value), room):
        more = start + room < len(value)
        share = 0 if more else xxh3_128_intdigest(_LENGTHS[len(key)] + key + value)
        yield int(not more), share, _frame(Part(family, key, value[start : start + room], more))


# ---------------------------------------------------------------------- verifying


class ImageChecker:
    """Takes the pieces of one image in order and says what is wrong with them.

    Holds one piece and the largest value. After the trailer `info` is what the image holds.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.info: ImageInfo | None = None
        self._family = Family.META
        self._last_key = b""
        self._part: tuple[bytes, bytearray] | None = None
        self._counts: dict[Family, int] = {}
        self._sums: dict[Family, int] = {}
        self._size_bytes = 0
        self._position: bytes | None = None
        self._counters: bytes | None = None

    def take(self, piece: bytes) -> tuple[Family, list[tuple[bytes, bytes]]] | None:
        """Check the next piece; return the records that it completes, with their family.

        Raises:
            ImageDamaged: it is not what `LmdbImageSource.read` returned next.
            ImageNewer: this build cannot read the image.
        """
        message = _unframe(piece)
        self._size_bytes += len(piece)
        if self.info is not None:
            raise ImageDamaged("bytes after the trailer")
        if self.header is None:
            self._take_header(message)
            return None
        if isinstance(message, Records):
            if self._part is not None or len(message.items) % 2:
                raise ImageDamaged("a record is cut off")
            return self._records(message.family, message.items[::2], message.items[1::2])
        if isinstance(message, Part):
            return self._take_part(message)
        if not isinstance(message, Trailer):
            raise ImageDamaged("a second header")
        self._take_trailer(message)
        return None

    def _take_header(self, message: Header | Records | Part | Trailer) -> None:
        if not isinstance(message, Header) or message.magic != MAGIC:
            raise ImageDamaged("it does not begin with an image's header")
        if message.format > FORMAT or message.state_format > STATE_FORMAT:
            raise ImageNewer(
                f"the image has format {message.format} and state format {message.state_format};"
                f" this build reads {FORMAT} and {STATE_FORMAT}: use a newer build of nokv"
            )
        self.header = message

    def _take_part(self, part: Part) -> tuple[Family, list[tuple[bytes, bytes]]] | None:
        if self._part is None:
            self._part = (part.key, bytearray())
        key, value = self._part
        value += part.data
        if key != part.key or len(value) > VALUE_BYTES_MAX:
            raise ImageDamaged("a record is cut off, or too large")
        if part.more:
            return None
        self._part = None
        return self._records(part.family, [key], [bytes(value)])

    def _records(
        self, number: int, names: list[bytes], values: list[bytes]
    ) -> tuple[Family, list[tuple[bytes, bytes]]]:
        try:
            family = Family(number)
        except ValueError:
            raise ImageDamaged(f"records of family {number}, which does not exist") from None
        if family != self._family:
            if family < self._family:
                raise ImageDamaged("families out of order")
            self._family, self._last_key = family, b""
        total, last = self._sums.get(family, 0), self._last_key
        for key, value in zip(names, values, strict=True):
            # Ascending, so never empty; and a longer key than a store takes is no key.
            if key <= last or len(key) > KEY_BYTES_MAX:
                raise ImageDamaged("keys out of order")
            last = key
            total += xxh3_128_intdigest(_LENGTHS[len(key)] + key + value)
        self._last_key = last
        self._sums[family] = total & _MASK
        self._counts[family] = self._counts.get(family, 0) + len(names)
        records = list(zip(names, values, strict=True))
        if family == Family.META:
            for key, value in records:
                if key == keys.POSITION:
                    self._position = value
                elif key == keys.COUNTERS:
                    self._counters = value
        return family, records

    def _take_trailer(self, trailer: Trailer) -> None:
        assert self.header is not None
        if self._part is not None:
            raise ImageDamaged("a record is cut off")
        mine = [
            (int(family), count, self._sums[family].to_bytes(DIGEST_BYTES, "big"))
            for family, count in self._counts.items()
        ]
        digest = combine(self._sums)
        if trailer.families != mine or trailer.digest != digest:
            raise ImageDamaged("its records are not those that its digest was made of")
        self._check_position(self.header)
        records = sum(self._counts.values())
        self.info = ImageInfo(self.header, records, self._size_bytes, digest)

    def _check_position(self, header: Header) -> None:
        try:
            position = decode_position(self._position) if self._position else Position(0, 0, b"")
            counters = decode_counters(self._counters) if self._counters else Counters()
        except msgspec.MsgspecError as error:
            raise ImageDamaged(f"its position is not readable: {error}") from error
        found = (position.index, position.term, counters.version, counters.format)
        if found != (header.index, header.term, header.version, header.state_format):
            raise ImageDamaged("its header tells another position than its records")

    def finish(self) -> ImageInfo:
        """Return what was found. Raises ImageDamaged if the trailer is missing."""
        if self.info is None:
            raise ImageDamaged("it ends early")
        return self.info


# ---------------------------------------------------------------------- sink


class LmdbImageSink:
    """Receives an image into a new store in the directory `path`, which is emptied first.

    Records are appended in order in transactions of `TRANSACTION_BYTES`, each synced. After
    `finish` the directory holds a store that `LmdbKV` opens, durable but for its own name in its
    parent. `write` and `finish` raise `ImageDamaged`, `ImageNewer`, and `StoreFailed` of this new
    store alone: the caller aborts, and whatever else it has open is not touched.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.checker: Final = ImageChecker()
        self._bytes = 0
        try:
            make_environment(path)
            self._env = open_environment(path, readonly=False)
            self._dbs = {f: self._env.open_db(family_name(f), create=False) for f in Family}
            self._txn: lmdb.Transaction[Any] | None = self._env.begin(write=True)
        except (OSError, lmdb.Error) as error:
            store_failed(f"create {path}", error)

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        found = self.checker.take(piece)
        if found is None:
            return
        family, records = found
        assert self._txn is not None
        try:
            _, added = self._txn.cursor(self._dbs[family]).putmulti(records, append=True)
            assert added == len(records), "the checker has seen the order"
            self._bytes += len(piece)
            if self._bytes >= TRANSACTION_BYTES:
                self._txn.commit()
                self._txn = self._env.begin(write=True)
                self._bytes = 0
        except lmdb.Error as error:
            store_failed("write an image", error)

    def finish(self) -> ImageInfo:
        """Verify the whole and make it durable; return what it holds."""
        info = self.checker.finish()
        assert self._txn is not None
        try:
            self._txn.commit()
            self._txn = None
            self._env.close()
            sync_directory(self.path)
        except (OSError, lmdb.Error) as error:
            store_failed("finish an image", error)
        return info

    def abort(self) -> None:
        """Discard what was received; fine at any time, also twice."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
        self._env.close()
        shutil.rmtree(self.path, ignore_errors=True)


# ---------------------------------------------------------------------- files


def read_pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the pieces of an image in a file or pipe, to the end of it.

    Each is for `ImageChecker.take` or `LmdbImageSink.write`, which check it. Raises ImageDamaged
    where it is cut in the middle of one or its length is impossible.
    """
    while frame := stream.read(_FRAME.size):
        length = _FRAME.unpack(frame)[0] if len(frame) == _FRAME.size else 0
        if not 0 < length <= PIECE_BYTES_MAX - _FRAME.size:
            raise ImageDamaged("a piece of an impossible length")
        payload = stream.read(length)
        if len(payload) != length:
            raise ImageDamaged("it ends in the middle of a piece")
        yield frame + payload


def source_pieces(source: LmdbImageSource) -> Iterator[bytes]:
    """Yield the pieces of a source; `source.close` stays the caller's."""
    return iter(source.read, b"")


def verify_image(pieces: Iterable[bytes]) -> ImageInfo:
    """Check a whole image without storing it. Raises ImageDamaged, ImageNewer."""
    checker = ImageChecker()
    for piece in pieces:
        checker.take(piece)
    return checker.finish()


def restore_image(pieces: Iterable[bytes], path: Path) -> ImageInfo:
    """Make the store `path`, which must not exist, of an image; whole and durable, or not at all.

    Raises ImageDamaged, ImageNewer, StoreFailed.
    """
    if path.exists():
        raise StoreFailed(f"{path} exists")
    sink = LmdbImageSink(path.with_name(path.name + INCOMING_SUFFIX))
    try:
        for piece in pieces:
            sink.write(piece)
        info = sink.finish()
        rename(sink.path, path)
        sync_directory(path.parent)
    except OSError as error:
        store_failed(f"restore {path}", error)
    finally:
        sink.abort()
    return info
