"""Every argument that no client of ours sends: a typed error, and not a record changes.

The commands go to the state machine as they would out of the log, so no front end helps.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from tests.unit.state.shard import ROOT, Shard, at

from nokv.errors import (
    FileTooLarge,
    GenerationMismatch,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NokvError,
    NotFound,
    PredicateFailed,
    Stale,
    TooLarge,
    WindowFull,
    from_wire,
)
from nokv.kv.digest import digest
from nokv.state.families import Family
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.copies import Copy, CopyMode, CopyRange, SetQuota
from nokv.types.limits import (
    ATOMIC_MAX,
    BULK_NAMES_MAX,
    COMMAND_BYTES_MAX,
    PREDICATES_MAX,
    SYMLINK_TARGET_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from nokv.types.trash import ExpireTrash, KeepTrash, RestoreTrash, Trash
from nokv.types.values import At, Caller, ChunkMap, Extent, ObjectPart
from nokv.types.views import (
    Clone,
    ExpireSnapshots,
    Rollback,
    SnapshotCreate,
    WorkspaceCreate,
)

BAD_NAMES = {
    "empty": (b"", InvalidArgument),
    "NUL": (b"a\0b", InvalidArgument),
    "slash": (b"a/b", InvalidArgument),
    "256 bytes": (b"n" * 256, NameTooLong),
}
NOT_UTF8 = (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80")
BAD_SIZES = (-1, -(2**63), 2**63, 2**64 - 1)

Row = tuple[c.Op, tuple[type[NokvError], ...]]


def filled() -> Shard:
    """A directory `d` with a file `f` and a symbolic link in it."""
    shard = Shard()
    shard.mkdir("d")
    shard.create("d/f")
    shard.symlink("d/link", b"f")
    return shard


def untouched(shard: Shard) -> dict[Family, int]:
    """All records but those that a failed command writes too: its result and the counters."""
    return {f: d for f, d in digest(shard.kv).items() if f not in (Family.SESSION, Family.META)}


def named(name: bytes) -> list[c.Op]:
    """Every command that takes a new or an old name."""
    d = at("d")
    return [
        c.Mkdir(d, name, 0o755),
        c.Create(d, name, 0o644),
        c.BulkCreate(d, (b"ok", name), 0o644),
        c.Mknod(d, name, 0o010644),
        c.Symlink(d, name, b"f"),
        c.Link(at("d/f"), d, name),
        c.Unlink(d, name),
        c.Rmdir(d, name),
        c.RemoveTree(d, name),
        c.Rename(d, b"f", d, name),
        c.Rename(d, name, d, b"g"),
        c.Publish(d, name, c.PublishMode.REPLACE, 0o644, 0, 0, ()),
        c.StageSwap(0, 9, d, name, c.StageMode.CREATE),
        c.Atomic((c.Mkdir(d, b"ok", 0o755), c.Create(d, name, 0o644))),
        Clone(d, d, name),
        WorkspaceCreate(d, name, 0o755),
        Rollback(d, name, "s", b"/d", 10**9),
        Copy(at("d/f"), d, name, CopyMode.REPLACE, 0o644),
        Trash(d, name),
    ]


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_names_that_are_none(kind: str) -> None:
    name, error = BAD_NAMES[kind]
    shard = filled()
    before = untouched(shard)
    for op in named(name):
        # A publish without a name is one of the inode at its address, here a directory.
        nameless = isinstance(op, c.Publish) and not name
        assert shard.fails(op) is (IsADirectory if nameless else error), op
    for place in (At(0, 1, (b"d", name)), At(0, 1, (name, b"f"))):
        assert shard.fails(c.Create(place, b"x", 0o644)) is error
        for read in (r.GetAttr(place), r.ReadDir(place), r.BodyMap(place, 0, 1)):
            with pytest.raises(error):
                shard.read(read)
    with pytest.raises(error):
        shard.read(r.Lookup(at("d"), name))
    assert untouched(shard) == before


@pytest.mark.parametrize("name", NOT_UTF8)
def test_names_are_bytes_in_any_encoding_or_none(name: bytes) -> None:
    shard = filled()
    shard.do(c.Create(at("d"), name, 0o644))
    page = shard.read(r.ReadDir(at("d")))
    assert isinstance(page, r.DirPage)
    assert name in [entry.name for entry in page.entries]
    shard.do(c.Unlink(at("d"), name))


def test_dots_make_nothing_and_never_lead_out() -> None:
    shard = filled()
    before = untouched(shard)
    for name in (b".", b".."):
        for op in named(name):
            shard.fails(op)
    root = shard.stat()
    for path in (b"..", b"../..", b"d/../..", b"d/../../.."):
        assert shard.stat(path.decode()).inode == root.inode
    assert untouched(shard) == before


def sized(size: int) -> Iterator[c.Op]:
    """Every command that takes a size, an offset, a time or a number of something."""
    d, f = at("d"), at("d/f")
    part = ObjectPart(0, 0, 0, 10, bytes(8))
    yield c.SetAttr(f, size=size)
    yield c.Publish(d, b"new", c.PublishMode.REPLACE, 0o644, size, 0, ())
    for extent in (Extent(size, 10, 0), Extent(0, size, 0), Extent(0, 10, 0, size)):
        chunk = ChunkMap(0, (part,), (extent,))
        yield c.Publish(d, b"new", c.PublishMode.REPLACE, 0o644, 10, 1, (chunk,))
    for chunk in (
        ChunkMap(size, (part,), (Extent(0, 10, 0),)),
        ChunkMap(0, (ObjectPart(0, 0, 0, size, bytes(8)),), (Extent(0, 10, 0),)),
        ChunkMap(0, (ObjectPart(size, 0, 0, 10, bytes(8)),), (Extent(0, 10, 0),)),
    ):
        yield c.Publish(d, b"new", c.PublishMode.REPLACE, 0o644, 10, 1, (chunk,))
    yield SnapshotCreate(d, "s", b"/d", size)
    yield Rollback(at(), b"d", "s", b"/d", size)
    yield Copy(f, d, b"new", CopyMode.REPLACE, 0o644, size)
    yield Copy(f, d, b"new", size, 0o644)
    for numbers in ((size, 0, 1), (0, size, 1), (0, 0, size)):
        yield CopyRange(f, f, *numbers)
    yield SetQuota(d, size, 0)
    yield SetQuota(d, 0, size)
    yield RestoreTrash(size, 1)
    yield RestoreTrash(0, size)
    yield KeepTrash(size)
    yield ExpireSnapshots(size)
    yield ExpireTrash(size)
    yield c.LeaseUploads(size)
    yield c.OpenSession(bytes(16), size)


@pytest.mark.parametrize("size", BAD_SIZES)
def test_sizes_below_zero_and_from_2_to_the_63_on(size: int) -> None:
    shard = filled()
    before = untouched(shard)
    for op in sized(size):
        assert shard.fails(op) is not NokvError, op
    assert shard.fails(c.SetAttr(at("d/f"), size=size)) in (InvalidArgument, FileTooLarge)
    for read in (
        r.BodyMap(at("d/f"), size, 1),
        r.BodyMap(at("d/f"), 0, size),
        r.GetAttr(At(0, size)),
        r.GetAttr(At(size, 1)),
        r.GetAttr(at("d"), size),
        r.ReadDir(at("d"), b"", size),
    ):
        with pytest.raises(NokvError):
            shard.read(read)
    assert untouched(shard) == before


def test_lists_over_their_limits() -> None:
    shard = filled()
    before = untouched(shard)
    names = tuple(b"%d" % i for i in range(BULK_NAMES_MAX + 1))
    mkdirs = tuple(c.Mkdir(at("d"), b"%d" % i, 0o755) for i in range(ATOMIC_MAX + 1))
    over: tuple[c.Op, ...] = (
        c.BulkCreate(at("d"), names, 0o644),
        c.Atomic(mkdirs),
        c.SetXattr(at("d/f"), b"user.x", bytes(XATTR_VALUE_BYTES_MAX + 1)),
        c.Symlink(at("d"), b"s", b"t" * (SYMLINK_TARGET_BYTES_MAX + 1)),
        c.BulkCreate(at("d"), (), 0o644),
        c.BulkCreate(at("d"), (b"twice", b"twice"), 0o644),
    )
    for op in over:
        with pytest.raises(NokvError) as caught:
            shard.do(op)
        assert caught.value.code != NokvError.code
    op, predicates = c.Mkdir(at(), b"x", 0o755), (c.Exists(at("d")),) * (PREDICATES_MAX + 1)
    assert shard.fails(op, predicates=predicates) is TooLarge
    groups = Caller(1000, 100, tuple(range(65)))
    assert shard.fails(c.Mkdir(at(), b"x", 0o755), groups) is InvalidArgument
    assert untouched(shard) == before
    assert sum(map(len, names)) < COMMAND_BYTES_MAX  # it was the count that was refused


def test_predicates_on_what_is_not_there() -> None:
    shard = filled()
    before = untouched(shard)
    op = c.Mkdir(at(), b"x", 0o755)
    missing, below_a_file, gone = at("d/none"), at("d/f/none"), At(0, 999_999)
    for place in (missing, at("none/none")):
        for predicate in (c.Exists(place), c.VersionIs(place, 5), c.GenerationIs(place, 5)):
            error = shard.fails(op, predicates=(predicate,))
            assert issubclass(error, PredicateFailed | NotFound), predicate
    for predicate in (c.Exists(gone), c.VersionIs(gone, 1), c.GenerationIs(below_a_file, 1)):
        assert issubclass(shard.fails(op, predicates=(predicate,)), NokvError)
    assert shard.fails(op, predicates=(c.GenerationIs(at("d/f"), 77),)) is GenerationMismatch
    # One that holds does not make up for one that does not.
    mixed = (c.Exists(at("d")), c.Absent(at("d/f")))
    assert shard.fails(op, predicates=mixed) is PredicateFailed
    assert untouched(shard) == before
    assert shard.do(op, predicates=(c.Absent(missing),))


def test_addresses_of_nothing_are_stale_or_not_found() -> None:
    shard = filled()
    before = untouched(shard)
    for start, errors in ((At(0, 999_999), (Stale,)), (At(7, 1), (Stale, NotFound))):
        for op in (c.Create(start, b"x", 0o644), c.Unlink(start, b"f"), c.SetAttr(start, mode=0)):
            assert issubclass(shard.fails(op), errors)
    assert untouched(shard) == before


def test_sequence_numbers_and_sessions() -> None:
    """Reused, ancient, out of bounds or of nobody: the namespace is as it was."""
    shard = filled()
    op = c.Mkdir(at(), b"x", 0o755)
    command = shard.command(op)
    (first,) = shard.entry(command)
    before = untouched(shard)
    assert shard.entry(command) == [first]  # a retry: the first result
    other = shard.command(c.Mkdir(at(), b"y", 0o755), seq=command.seq)
    assert shard.entry(other) == [first]  # another command under a used number: never applied
    for _ in range(3):
        shard.do(c.SetAttr(at("d"), mode=0o755))
    before = untouched(shard)
    for seq in (command.seq, 1, 0, -1, 1 - 2**63):
        (result,) = shard.entry(shard.command(c.Mkdir(at(), b"z", 0o755), seq=seq))
        assert result.code, seq
        assert type(from_wire(result.code, "")) is not NokvError
    far = msgspec.structs.replace(shard.command(op, seq=2**62), acked=0)
    (result,) = shard.entry(far)
    assert result.code == WindowFull.code
    ended = shard.open(b"\x02" * 16)
    shard.do(c.ExpireSession(ended), session=0)
    for session in (ended, 12345, 2**63, 2**64 - 1, -1):
        late = shard.command(c.Mkdir(at(), b"z", 0o755), ROOT, session=session, seq=1)
        (result,) = shard.entry(late)
        assert result.code, session
    assert untouched(shard) == before
