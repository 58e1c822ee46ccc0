"""Copies by metadata alone: what they show, whom they keep alive, what they refuse."""

from __future__ import annotations

import random

import pytest
from tests.unit.state.bodies import Files, inline, stored
from tests.unit.state.shard import ALICE, BOB, at

from nokv.errors import (
    AlreadyExists,
    CopyTooLarge,
    FileTooLarge,
    GenerationMismatch,
    Immutable,
    InvalidArgument,
    IsADirectory,
    NotFound,
    NotSupported,
    PermissionDenied,
    VersionNotPinned,
)
from nokv.state.families import Family
from nokv.types.commands import (
    Atomic,
    GenerationIs,
    PublishMode,
    SetAttr,
    StageBegin,
    StageSwap,
    Unlink,
    UnpinView,
)
from nokv.types.copies import Copied, Copy, CopyMode, CopyRange
from nokv.types.limits import CHUNK_BYTES, COPY_CHUNKS_MAX, FILE_BYTES_MAX
from nokv.types.results import Made, Published
from nokv.types.values import ChunkMap, Extent


@pytest.fixture
def files() -> Files:
    return Files()


def whole(source: str, name: str, mode: int = CopyMode.CREATE, **rest: int) -> Copy:
    return Copy(at(source), at(), name.encode(), mode, 0o640, **rest)


def copy(files: Files, source: str, name: str, mode: int = CopyMode.CREATE, **rest: int) -> None:
    made = files.do(whole(source, name, mode, **rest))
    assert isinstance(made, Published)
    files.check()


def copy_range(
    files: Files, source: str, target: str, offset: int, to: int, length: int, **rest: int
) -> int:
    done = files.do(CopyRange(at(source), at(target), offset, to, length, **rest))
    assert isinstance(done, Copied)
    files.check()
    return done.copied_bytes


def test_a_copy_shows_what_its_source_does(files: Files) -> None:
    digest = bytes(range(32))
    files.publish("f", stored(10), stored(7, 100, 1, 3), size=CHUNK_BYTES + 200, sha256=digest)
    copy(files, "f", "g")
    attr = files.stat("g")
    assert (attr.size, attr.sha256, attr.mode & 0o7777) == (CHUNK_BYTES + 200, digest, 0o640)
    assert attr.generation == attr.version == files.machine.version
    maps = [[c.chunk.objects for c in files.body(at(name)).chunks] for name in "fg"]
    assert maps[0] == maps[1]
    assert files.usage() == (2, 2 * (CHUNK_BYTES + 200))
    assert files.count(Family.REF) == 4
    assert not files.collect()


@pytest.mark.parametrize("first", ["f", "g", "h"])
def test_an_object_goes_with_its_last_holder(files: Files, first: str) -> None:
    files.publish("f", stored(10))
    copy(files, "f", "g")
    copy(files, "g", "h")
    names = [first, *(n for n in "fgh" if n != first)]
    for name in names[:2]:
        files.do(Unlink(at(), name.encode()))
        files.raise_floor()
        files.wait()
        assert files.collect() == []
        files.check()
    assert files.show(names[2]) == b"\1" * 10
    files.do(Unlink(at(), names[2].encode()))
    files.raise_floor()
    files.wait()
    assert files.collect() == [(files.session, 1, 0, 0, 0)]
    assert not files.count(Family.REF)
    files.check()


def test_replacing_drops_the_old_body(files: Files) -> None:
    files.publish("f", stored(10))
    files.publish("g", stored(20))
    copy(files, "f", "g", CopyMode.REPLACE)
    assert files.show("g") == b"\1" * 10
    files.raise_floor()
    files.wait()
    assert files.collect() == [(files.session, 2, 0, 0, 0)]
    copy(files, "g", "g", CopyMode.REPLACE)
    assert files.show("g") == b"\1" * 10
    assert files.quiesce() == set()


def test_inline_bytes_and_empty_files(files: Files) -> None:
    files.publish("f", inline(b"bytes", 3))
    files.create("e")
    copy(files, "f", "g")
    copy(files, "e", "e2")
    assert files.show("g") == bytes(3) + b"bytes"
    assert files.stat("e2").body == 0
    assert not files.count(Family.REF)


def test_a_pinned_version_comes_back(files: Files) -> None:
    files.publish("f", stored(10))
    pin = files.pin()
    files.publish("f", stored(20, block=1))
    copy(files, "f", "f", CopyMode.REPLACE, at_version=pin)
    assert files.show("f") == b"\1" * 10
    assert files.fails(whole("f", "g", at_version=pin + 1)) is VersionNotPinned
    files.do(UnpinView(0, pin, pin + 1))
    files.reap()
    files.raise_floor()
    files.wait()
    assert files.collect() == [(files.session, 2, 0, 1, 0)]
    assert files.show("f") == b"\1" * 10
    files.check()


def test_a_copy_in_a_pin_keeps_its_object(files: Files) -> None:
    files.publish("f", stored(10))
    copy(files, "f", "g")
    pin = files.pin()
    for name in (b"f", b"g"):
        files.do(Unlink(at(), name))
    files.raise_floor()
    files.wait()
    assert files.collect() == []
    assert files.show("g", at_version=pin) == b"\1" * 10
    files.do(UnpinView(0, pin, pin + 1))
    assert set(files.collect()) == {(files.session, 1, 0, 0, 0)}


def test_what_a_copy_refuses(files: Files) -> None:
    files.publish("f", stored(10))
    files.mkdir("d")
    files.symlink("l", b"nowhere")
    assert files.fails(whole("x", "g")) is NotFound
    assert files.fails(whole("d", "g")) is IsADirectory
    assert files.fails(whole("f", "f")) is AlreadyExists
    assert files.fails(whole("f", "d", CopyMode.REPLACE)) is IsADirectory
    assert files.fails(whole("f", "l", CopyMode.REPLACE)) is NotSupported
    assert files.fails(whole("f", "g", 7)) is InvalidArgument
    assert files.fails(whole("f", "", CopyMode.REPLACE)) is InvalidArgument
    assert files.fails(whole("f", "g", at_version=-1)) is InvalidArgument
    assert files.fails(whole("f", "g"), ALICE) is PermissionDenied
    files.do(SetAttr(at("f"), mode=0o600))
    files.do(SetAttr(at(""), mode=0o777))
    assert files.fails(whole("f", "g"), ALICE) is PermissionDenied
    files.do(SetAttr(at("f"), mode=0o644))
    files.do(whole("f", "g"), ALICE)
    assert files.stat("g").uid == ALICE.uid
    assert files.fails(whole("f", "g", CopyMode.REPLACE), BOB) is PermissionDenied
    files.do(SetAttr(at("g"), flags=2))
    assert files.fails(whole("f", "g", CopyMode.REPLACE)) is Immutable
    old = GenerationIs(at("f"), 1)
    assert files.fails(whole("f", "h"), predicates=(old,)) is GenerationMismatch
    files.check()


def test_a_large_file_goes_in_ranges_through_a_stage(files: Files) -> None:
    count = COPY_CHUNKS_MAX + 2
    for first in range(0, count, 256):
        chunks = [stored(10, index=i) for i in range(first, min(first + 256, count))]
        size = min(first + 256, count) * CHUNK_BYTES
        mode = PublishMode.PATCH if first else PublishMode.REPLACE
        files.publish("f", *chunks, size=size, publish_mode=mode)
    assert files.fails(whole("f", "g")) is CopyTooLarge
    begun = files.do(StageBegin(0, 0o100644))
    assert isinstance(begun, Made)
    stage = begun.attr.inode
    done = 0
    while done < count * CHUNK_BYTES:
        step = files.do(CopyRange(at("f"), at(inode=stage), done, done, 2**55))
        assert isinstance(step, Copied)
        assert step.copied_bytes == min(COPY_CHUNKS_MAX, count - done // CHUNK_BYTES) * CHUNK_BYTES
        done += step.copied_bytes
    files.do(StageSwap(0, stage, at(), b"g", 0))
    assert files.stat("g").size == files.stat("f").size
    last = [files.body(at(name), (count - 1) * CHUNK_BYTES, 10).chunks for name in "fg"]
    assert last[0][0].chunk.objects == last[1][0].chunk.objects
    files.do(Unlink(at(), b"f"))
    files.check()
    assert files.quiesce() == set()


# ---------------------------------------------------------------- ranges


def test_a_range_brings_its_holes(files: Files) -> None:
    runs = (Extent(2, 3, data=b"abc"), Extent(10, 3, data=b"xyz"))
    files.publish("f", ChunkMap(0, (), runs), size=20)
    files.publish("g", inline(b"g" * 30))
    assert copy_range(files, "f", "g", 0, 5, 15) == 15
    want = bytearray(b"g" * 30)
    want[5:20] = files.show("f")[:15]
    assert files.show("g") == bytes(want)
    assert copy_range(files, "f", "g", 10, 28, 100) == 10
    want[28:38] = files.show("f")[10:20]
    assert files.show("g") == bytes(want)
    assert files.stat("g").sha256 == b""


def test_a_range_behind_the_end_copies_nothing(files: Files) -> None:
    files.publish("f", inline(b"abc"))
    before = files.publish("g", inline(b"g")).generation
    for offset in (3, 4, 1000):
        assert copy_range(files, "f", "g", offset, 0, 5) == 0
    assert copy_range(files, "f", "g", 0, 0, 0) == 0
    assert files.stat("g").generation == before


def test_a_range_within_one_file(files: Files) -> None:
    files.publish("f", stored(10))
    assert copy_range(files, "f", "f", 0, 10, 10) == 10
    assert files.show("f") == b"\1" * 20
    assert files.count(Family.REF) == 2
    assert files.fails(CopyRange(at("f"), at("f"), 0, 19, 20)) is InvalidArgument
    assert copy_range(files, "f", "f", 10, 0, 10) == 10
    files.raise_floor()
    files.wait()
    assert files.collect() == []
    files.do(Unlink(at(), b"f"))
    assert files.quiesce() == {(files.session, 1, 0, 0, 0)}


def test_a_range_over_borders_of_chunks(files: Files) -> None:
    files.publish("f", stored(20, CHUNK_BYTES - 20), stored(30, 0, 1, 2))
    assert copy_range(files, "f", "f", CHUNK_BYTES - 10, 2 * CHUNK_BYTES - 15, 30) == 30
    shown = files.body(at("f"), 2 * CHUNK_BYTES - 15, 30).chunks
    assert [(c.index, [(e.offset, e.length) for e in c.chunk.extents][-2:]) for c in shown] == [
        (1, [(CHUNK_BYTES - 15, 10), (CHUNK_BYTES - 5, 5)]),
        (2, [(0, 15)]),
    ]
    files.do(Unlink(at(), b"f"))
    assert files.quiesce() == {(files.session, 1, c, b, 0) for c, b in ((0, 0), (1, 2))}


def test_what_a_range_refuses(files: Files) -> None:
    files.publish("f", inline(b"abc"))
    files.mkdir("d")
    for odd in ((-1, 0, 1), (0, -1, 1), (0, 0, -1)):
        assert files.fails(CopyRange(at("f"), at("f"), *odd)) is InvalidArgument
    assert files.fails(CopyRange(at("f"), at("f"), 0, FILE_BYTES_MAX, 1)) is FileTooLarge
    assert files.fails(CopyRange(at("d"), at("f"), 0, 0, 1)) is IsADirectory
    assert files.fails(CopyRange(at("f"), at("d"), 0, 0, 1)) is IsADirectory
    assert files.fails(CopyRange(at("f"), at("f"), 0, 9, 1), ALICE) is PermissionDenied


def test_copies_in_an_atomic_are_all_or_none(files: Files) -> None:
    files.publish("f", stored(10))
    ops = (whole("f", "g"), whole("g", "h"), CopyRange(at("h"), at("f"), 0, 40, 10))
    files.do(Atomic(ops))
    assert files.show("f") == b"\1" * 10 + bytes(30) + b"\1" * 10
    files.check()
    assert files.fails(Atomic((whole("f", "i"), whole("f", "g")))) is AlreadyExists
    files.check()
    for name in (b"f", b"g", b"h"):
        files.do(Unlink(at(), name))
    assert files.quiesce() == {(files.session, 1, 0, 0, 0)}


@pytest.mark.parametrize("seed", range(12))
def test_random_ranges_against_arrays(files: Files, seed: int) -> None:
    rng = random.Random(seed)
    shown: dict[str, bytearray] = {}
    pins: list[tuple[int, dict[str, bytes]]] = []
    for step in range(60):
        name = rng.choice("fgh")
        kind = rng.randrange(8)
        if kind < 2 or not shown:
            size, offset = rng.randint(1, 30), rng.randrange(20)
            block = rng.randrange(5)
            files.publish(name, stored(size, offset, block=block))
            shown[name] = bytearray(offset) + bytes([block + 1]) * size
        elif kind < 6:
            source = rng.choice(sorted(shown))
            name = rng.choice(sorted(shown))
            offset, to, length = (rng.randrange(40) for _ in range(3))
            if source == name and abs(offset - to) < length:
                continue
            done = copy_range(files, source, name, offset, to, length)
            part = shown[source][offset : offset + length]
            assert done == len(part)
            if part:
                shown[name].extend(bytes(max(0, to + done - len(shown[name]))))
                shown[name][to : to + done] = part
        elif kind == 6 and len(pins) < 3:
            pins.append((files.pin(), {n: bytes(d) for n, d in shown.items()}))
        elif kind == 7 and name in shown:
            files.do(Unlink(at(), name.encode()))
            del shown[name]
        if step % 7 == 0:
            files.raise_floor()
            files.wait()
            files.collect(rng.randint(1, 3))
        files.check()
        assert {n: files.show(n) for n in shown} == shown, f"seed {seed} step {step}"
        for pin, then in pins:
            assert {n: files.show(n, at_version=pin) for n in then} == then
    for name in shown:
        files.do(Unlink(at(), name.encode()))
    files.quiesce()
    assert not files.named()
