"""State images of LMDB stores: equal bytes in, an equal store out, and every wrong bit refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import crc32c
import msgspec
import pytest

from nokv.kv import image, lmdb_store
from nokv.kv.digest import SCAN_END, combine, digest
from nokv.kv.errors import ImageDamaged, ImageNewer, StoreFailed
from nokv.kv.image import (
    PIECE_BYTES_MAX,
    ImageInfo,
    LmdbImageSink,
    LmdbImageSource,
    read_pieces,
    restore_image,
    source_pieces,
    verify_image,
)
from nokv.kv.lmdb_store import LmdbKV
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import Counters, Position, encode

SEED = 20_261_121


def fill(kv: LmdbKV, rows: int, *, index: int = 7, seed: int = SEED) -> None:
    """Write records of several families, short, long and empty, with a position, and commit."""
    rng = Random(seed)
    kv.write(Family.META, [(keys.COUNTERS, encode(Counters(version=index * 10, wall_ns=5)))])
    kv.write(Family.META, [(keys.POSITION, encode(Position(index, 3, b"members")))])
    for family in (Family.INODE, Family.DENTRY, Family.EVENT):
        items = {rng.randbytes(rng.randint(1, 511)): rng.randbytes(90) for _ in range(rows)}
        kv.write(family, sorted(items.items()))
    kv.write(Family.CHUNK, [(b"empty", b""), (b"huge", rng.randbytes(700_000)), (b"i", b"last")])
    kv.commit()


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[LmdbKV]:
    opened = LmdbKV(tmp_path / "state")
    yield opened
    opened.close()


def pieces_of(kv: LmdbKV) -> list[bytes]:
    source = LmdbImageSource(kv.open_reader())
    pieces = list(source_pieces(source))
    source.close()
    return pieces


def contents(kv: LmdbKV) -> dict[Family, list[tuple[bytes, bytes]]]:
    return {family: list(kv.scan(family, b"", SCAN_END)) for family in Family}


def receive(sink: LmdbImageSink, pieces: list[bytes]) -> ImageInfo:
    for piece in pieces:
        sink.write(piece)
    return sink.finish()


def test_an_image_makes_an_equal_store(kv: LmdbKV, tmp_path: Path) -> None:
    fill(kv, 3000)
    pieces = pieces_of(kv)
    assert max(map(len, pieces)) <= PIECE_BYTES_MAX
    info = restore_image(pieces, tmp_path / "copy")
    copy = LmdbKV(tmp_path / "copy")
    assert contents(copy) == contents(kv)
    assert info.digest == combine(digest(copy)) == combine(digest(kv))
    assert info.records == sum(map(len, contents(kv).values()))
    assert info.size_bytes == sum(map(len, pieces))
    assert (info.header.index, info.header.term, info.header.version) == (7, 3, 70)
    assert pieces_of(copy)[1:] == pieces[1:]
    copy.close()


def test_an_empty_store_has_an_image_too(kv: LmdbKV, tmp_path: Path) -> None:
    assert verify_image(pieces_of(kv)).records == 0
    restore_image(pieces_of(kv), tmp_path / "copy")
    LmdbKV(tmp_path / "copy").close()


def test_the_image_is_of_one_commit_whatever_is_written_meanwhile(kv: LmdbKV) -> None:
    fill(kv, 2000)
    expected = pieces_of(kv)
    source = LmdbImageSource(kv.open_reader())
    found = [source.read()]
    for number in range(len(expected) - 1):
        fill(kv, 50, index=8 + number, seed=number)
        found.append(source.read())
    assert found == expected
    assert source.read() == source.read() == b""
    source.close()


def test_passes_share_one_snapshot_and_are_equal(kv: LmdbKV) -> None:
    fill(kv, 2000)
    first = LmdbImageSource(kv.open_reader())
    head = [first.read() for _ in range(3)]
    second = first.again()
    fill(kv, 50, index=8)
    first.close()
    first.close()
    whole = list(source_pieces(second))
    assert whole[:3] == head
    assert verify_image(whole).header.index == 7
    second.close()


def test_files_hold_images(kv: LmdbKV) -> None:
    fill(kv, 500)
    stream = io.BytesIO(b"".join(pieces_of(kv)))
    assert list(read_pieces(stream)) == pieces_of(kv)
    cut = io.BytesIO(stream.getvalue()[:-5])
    with pytest.raises(ImageDamaged, match="middle of a piece"):
        verify_image(read_pieces(cut))
    with pytest.raises(ImageDamaged, match="impossible length"):
        verify_image(read_pieces(io.BytesIO(b"\xff" * 20)))
    with pytest.raises(ImageDamaged, match="ends early"):
        verify_image(read_pieces(io.BytesIO(b"")))


def test_one_wrong_bit_anywhere_is_refused(kv: LmdbKV) -> None:
    fill(kv, 20)
    pieces = pieces_of(kv)
    rng = Random(SEED)
    for _ in range(500):
        at = rng.randrange(len(pieces))
        piece = bytearray(pieces[at])
        piece[rng.randrange(len(piece))] ^= 1 << rng.randrange(8)
        with pytest.raises(ImageDamaged):
            verify_image([*pieces[:at], bytes(piece), *pieces[at + 1 :]])


def test_pieces_lost_repeated_or_swapped_are_refused(kv: LmdbKV) -> None:
    fill(kv, 3000)
    pieces = pieces_of(kv)
    assert len(pieces) > 5
    for at in range(len(pieces)):
        with pytest.raises(ImageDamaged):
            verify_image(pieces[:at] + pieces[at + 1 :])
        with pytest.raises(ImageDamaged):
            verify_image(pieces[: at + 1] + pieces[at:])
    for at in range(len(pieces) - 1):
        with pytest.raises(ImageDamaged):
            verify_image([*pieces[:at], pieces[at + 1], pieces[at], *pieces[at + 2 :]])


def reframed(piece: bytes, change: Callable[[list[object]], None]) -> bytes:
    """Change a piece's content with a checksum that fits: the wrong bit was there before it."""
    content = msgspec.msgpack.decode(piece[8:])
    change(content)
    payload = msgspec.msgpack.encode(content)
    return image._FRAME.pack(len(payload), crc32c.crc32c(payload)) + payload


def test_damage_under_a_right_checksum_fails_the_digest(kv: LmdbKV) -> None:
    fill(kv, 20)
    pieces = pieces_of(kv)

    def flip(content: list[object]) -> None:
        items = content[2]
        assert isinstance(items, list)
        items[-1] = b"x" + items[-1][1:]

    at = next(
        n for n, piece in enumerate(pieces) if msgspec.msgpack.decode(piece[8:])[:2] == [2, 1]
    )
    with pytest.raises(ImageDamaged, match="digest"):
        verify_image([*pieces[:at], reframed(pieces[at], flip), *pieces[at + 1 :]])


def test_a_newer_image_is_refused_as_such(kv: LmdbKV) -> None:
    fill(kv, 1)
    pieces = pieces_of(kv)
    for field in (2, 3):

        def newer(content: list[object], field: int = field) -> None:
            content[field] = 99

        with pytest.raises(ImageNewer, match="use a newer build"):
            verify_image([reframed(pieces[0], newer), *pieces[1:]])


def test_a_header_that_lies_is_refused(kv: LmdbKV) -> None:
    fill(kv, 1)
    pieces = pieces_of(kv)

    def lie(content: list[object]) -> None:
        content[4] = 8

    with pytest.raises(ImageDamaged, match="position"):
        verify_image([reframed(pieces[0], lie), *pieces[1:]])


def test_the_format_is_what_it_was() -> None:
    """Golden bytes of each kind of piece: backups of older releases stay readable."""
    messages = (
        image.Header(image.MAGIC, 1, 1, 7, 3, 70, 5, 8192),
        image.Records(Family.INODE, [b"key", b"value"]),
        image.Part(Family.CHUNK, b"huge", b"begin", more=True),
        image.Trailer([(Family.INODE, 1, bytes(16))], bytes(range(16))),
    )
    assert [image._frame(message).hex() for message in messages] == GOLDEN


GOLDEN = [
    "17000000a842b1319901c40a4e6f4b5620696d616765010107034605cd2000",
    "10000000ab6ea1a493020192c4036b6579c40576616c7565",
    "11000000c37d107a950304c40468756765c405626567696ec3",
    "2a00000064a592a0930491930101c41000000000000000000000000000000000c410000102030405060708090a0b0c0d0e0f",
]


def test_a_sink_can_be_aborted_and_begun_anew(kv: LmdbKV) -> None:
    fill(kv, 1000)
    pieces = pieces_of(kv)
    sink = LmdbImageSink(kv.incoming)
    for piece in pieces[:3]:
        sink.write(piece)
    sink.abort()
    sink.abort()
    assert not kv.incoming.exists()
    again = LmdbImageSink(kv.incoming)
    with pytest.raises(ImageDamaged):
        again.finish()
    again.abort()


def test_a_store_is_replaced_in_place(kv: LmdbKV, tmp_path: Path) -> None:
    fill(kv, 100)
    other = LmdbKV(tmp_path / "other")
    fill(other, 2000, index=99, seed=4)
    sink = LmdbImageSink(kv.incoming)
    receive(sink, pieces_of(other))
    kv.replace(sink.path)
    assert contents(kv) == contents(other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "state"]
    fill(kv, 10, index=100)
    expected = contents(kv)
    kv.close()
    again = LmdbKV(tmp_path / "state")
    assert contents(again) == expected
    again.close()
    other.close()


@pytest.mark.parametrize("name", ["rename", "sync_directory", "remove_tree"])
@pytest.mark.parametrize("call", range(1, 4))
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_call_of_a_replacement_leaves_old_or_new(
    kv: LmdbKV,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
    *,
    after: bool,
) -> None:
    fill(kv, 100)
    old = contents(kv)
    other = LmdbKV(tmp_path / "other")
    fill(other, 300, index=99, seed=4)
    new = contents(other)
    sink = LmdbImageSink(kv.incoming)
    receive(sink, pieces_of(other))
    other.close()

    class Killed(BaseException):
        pass

    real = getattr(lmdb_store, name)
    calls = 0

    def dying(*arguments: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        real(*arguments)
        if calls == call:
            raise Killed

    monkeypatch.setattr(lmdb_store, name, dying)
    died = False
    try:
        kv.replace(sink.path)
    except Killed:
        died = True
    monkeypatch.setattr(lmdb_store, name, real)
    kv.close()
    again = LmdbKV(tmp_path / "state")
    found = contents(again)
    assert found in (old, new)
    assert died or found == new
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "state"]


def test_a_failed_replacement_fails_the_store(
    kv: LmdbKV, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(kv, 10)
    sink = LmdbImageSink(kv.incoming)
    receive(sink, pieces_of(kv))

    def failing(_source: Path, _target: Path) -> None:
        raise OSError(5, "EIO")

    monkeypatch.setattr(lmdb_store, "rename", failing)
    with pytest.raises(StoreFailed):
        kv.replace(sink.path)
    with pytest.raises(StoreFailed):
        kv.commit()
    monkeypatch.undo()
    kv.close()
    LmdbKV(tmp_path / "state").close()


def test_restoring_needs_a_free_name(kv: LmdbKV, tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="exists"):
        restore_image(pieces_of(kv), tmp_path / "state")
    with pytest.raises(ImageDamaged):
        restore_image(pieces_of(kv)[:-1], tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_memory_stays_flat(kv: LmdbKV, tmp_path: Path) -> None:
    """100 MiB go through a source and a sink; the campaign does it with 2 GiB."""
    for batch in range(25):
        rows = [(b"%04d%06d" % (batch, n), bytes(4000)) for n in range(1000)]
        kv.write(Family.XATTR, rows)
        kv.commit()
    source = LmdbImageSource(kv.open_reader())
    sink = LmdbImageSink(tmp_path / "copy")
    anonymous = _anonymous_bytes()
    highest = 0
    for number, piece in enumerate(source_pieces(source)):
        sink.write(piece)
        if not number % 20:
            highest = max(highest, _anonymous_bytes())
    sink.finish()
    source.close()
    assert highest - anonymous < 32 << 20


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10
