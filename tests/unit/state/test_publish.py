"""Publish in all its modes: what becomes visible, what is counted, what each retry answers."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files, inline, part, stored
from tests.unit.state.shard import ALICE, BOB, at

from nokv.errors import (
    AlreadyExists,
    FileTooLarge,
    GenerationMismatch,
    Immutable,
    InvalidArgument,
    IsADirectory,
    NotFound,
    NotSupported,
    PermissionDenied,
    ResultTooLarge,
    SessionExpired,
    UploadRefused,
)
from nokv.state.families import Family
from nokv.types.commands import (
    Atomic,
    ExpireSession,
    Link,
    Publish,
    PublishMode,
    RemoveTree,
    SessionMarks,
    SetAttr,
    Unlink,
)
from nokv.types.events import EventKind
from nokv.types.limits import CHUNK_BYTES, EXTENTS_PER_CHUNK_MAX, FILE_BYTES_MAX
from nokv.types.reads import EventsReply, ReadEvents
from nokv.types.results import AtomicDone, Published
from nokv.types.values import ChunkMap, Extent, InodeFlag

CREATE, REPLACE, IF_GENERATION, PATCH, APPEND, FOLD = PublishMode


@pytest.fixture
def files() -> Files:
    return Files()


def test_a_create_makes_dentry_inode_and_body_at_once(files: Files) -> None:
    done = files.publish("f", inline(b"hello"), publish_mode=CREATE, sha256=b"s" * 32, mtime_ns=7)
    attr = files.stat("f")
    assert done.attr == attr
    assert (attr.size, attr.generation, attr.mtime_ns) == (5, done.generation, 7)
    assert (attr.sha256, attr.ctime_ns, attr.nlink) == (b"s" * 32, files.wall_ns, 1)
    assert files.show("f") == b"hello"
    assert files.usage() == (1, 5)
    assert files.statfs() == (2, 5)
    files.check()


def test_a_create_of_a_taken_name_is_refused_and_leaves_the_upload(files: Files) -> None:
    files.create("f")
    upload = files.upload()
    op = files.publishing(at(), b"f", stored(10), mode=CREATE, upload=upload)
    assert files.fails(op) is AlreadyExists
    assert files.publish("g", stored(10), upload=upload).size == 10


def test_a_replace_drops_the_old_body_as_one_row(files: Files) -> None:
    first = files.publish("f", stored(10), inline(b"x", index=3))
    second = files.publish("f", stored(20))
    assert second.inode == first.inode
    assert second.generation > first.generation
    assert files.count(Family.DROP) == 1
    assert files.statfs() == (2, 20)
    assert files.usage() == (1, 20)
    files.check()


def test_an_empty_body_has_no_id(files: Files) -> None:
    files.publish("f", stored(10))
    files.publish("f", size=1000)
    assert files.stat("f").body == 0
    assert files.show("f") == bytes(1000)
    files.check()


def test_replace_if_generation(files: Files) -> None:
    wrong = files.publishing(at(), b"f", inline(b"x"), mode=IF_GENERATION, if_generation=5)
    assert files.fails(wrong) is GenerationMismatch
    made = files.publish("f", inline(b"x"), publish_mode=IF_GENERATION)
    assert files.fails(wrong) is GenerationMismatch
    files.publish("f", inline(b"y"), publish_mode=IF_GENERATION, if_generation=made.generation)
    assert files.show("f") == b"y"
    files.create("empty")
    files.publish("empty", inline(b"z"), publish_mode=IF_GENERATION, if_generation=0)
    assert files.show("empty") == b"z"


@pytest.mark.parametrize("mode", [PATCH, APPEND])
def test_patch_and_append_need_the_file(files: Files, mode: int) -> None:
    assert files.fails(files.publishing(at(), b"f", inline(b"x"), mode=mode)) is NotFound


def test_a_patch_merges_ranges_and_clears_the_sum(files: Files) -> None:
    made = files.publish("f", inline(b"0123456789"), sha256=b"s" * 32)
    done = files.publish("f", inline(b"ab", 4), size=6, publish_mode=PATCH)
    assert files.show("f") == b"0123ab6789"
    assert files.stat("f").sha256 == b""
    assert files.stat("f").body == (made.attr and made.attr.body)
    assert done.size == 10
    files.publish("f", inline(b"z", 12), size=20, publish_mode=PATCH)
    assert files.show("f") == b"0123ab6789\0\0z" + bytes(7)
    assert files.usage() == (1, 20)
    files.check()


def test_an_append_chooses_its_offset(files: Files) -> None:
    files.publish("f", inline(b"one"))
    done = files.publish("f", inline(b"two"), size=5, publish_mode=APPEND)
    assert (done.offset, done.size) == (3, 8)
    assert files.show("f") == b"onetwo\0\0"
    empty = files.create("g")
    done = files.publish_at(at(inode=empty.inode), b"", inline(b"x"), mode=APPEND)
    assert (done.offset, done.inode) == (0, empty.inode)
    files.check()


def test_an_append_over_a_chunk_leaves_a_hold_on_each_side(files: Files) -> None:
    files.publish("f", size=CHUNK_BYTES - 7)
    files.publish("f", stored(20), publish_mode=APPEND)
    assert files.count(Family.REF) == 2
    reply = files.body(at("f"))
    assert [
        (c.index, e.offset, e.length, e.object_offset)
        for c in reply.chunks
        for e in c.chunk.extents
    ] == [(0, CHUNK_BYTES - 7, 7, 0), (1, 0, 13, 7)]
    files.check()
    files.publish("f", stored(20), publish_mode=APPEND)
    assert files.count(Family.REF) == 2
    files.check()


def test_sizes_have_a_limit(files: Files) -> None:
    files.publish("f", size=FILE_BYTES_MAX)
    assert files.fails(files.publishing(at(), b"f", inline(b"x"), mode=APPEND)) is FileTooLarge
    assert files.fails(files.publishing(at(), b"f", size=FILE_BYTES_MAX + 1)) is FileTooLarge
    assert files.stat("f").size == FILE_BYTES_MAX


def test_a_chunk_has_a_limit_of_extents(files: Files) -> None:
    runs = tuple(Extent(2 * i, 1, data=b"x") for i in range(EXTENTS_PER_CHUNK_MAX))
    files.publish("f", ChunkMap(0, (), runs))
    more = files.publishing(at(), b"f", inline(b"y", 5000), mode=PATCH)
    assert files.fails(more) is ResultTooLarge
    files.publish("f", inline(b"y", 4), publish_mode=PATCH)
    files.check()


def test_a_merged_chunk_stays_readable_in_one_reply(files: Files) -> None:
    """Every publish carries few inline bytes, but a record of many must still fit a frame."""
    files.publish("f", inline(b"x" * 65_536))
    for _ in range(63):
        files.publish("f", inline(b"x" * 65_536), publish_mode=APPEND)
    full = files.publishing(at(), b"f", inline(b"x" * 65_536), mode=APPEND)
    assert files.fails(full) is ResultTooLarge
    assert len(files.body(at("f")).chunks) == 1


def test_what_has_no_body(files: Files) -> None:
    files.mkdir("d")
    files.symlink("l", b"d")
    assert files.fails(files.publishing(at(), b"d", inline(b"x"))) is IsADirectory
    assert files.fails(files.publishing(at("d"), b"", inline(b"x"))) is IsADirectory
    assert files.fails(files.publishing(at(), b"l", inline(b"x"))) is NotSupported


def test_permissions_and_flags(files: Files) -> None:
    files.create("f", 0o644)
    op = files.publishing(at(), b"f", inline(b"x"))
    assert files.fails(op, ALICE) is PermissionDenied
    assert files.fails(files.publishing(at(), b"new", inline(b"x")), ALICE) is PermissionDenied
    files.do(SetAttr(at("f"), flags=InodeFlag.APPEND))
    assert files.fails(op) is Immutable
    files.publish("f", inline(b"x"), publish_mode=APPEND)
    files.do(SetAttr(at("f"), flags=InodeFlag.IMMUTABLE))
    assert files.fails(files.publishing(at(), b"f", inline(b"x"), mode=APPEND)) is Immutable


def test_a_fold_of_an_append_only_file(files: Files) -> None:
    made = files.publish("f", inline(b"some "))
    made = files.publish("f", inline(b"text"), publish_mode=APPEND)
    files.do(SetAttr(at("f"), flags=InodeFlag.APPEND))
    text = inline(b"some text")

    def fold(size: int, generation: int) -> Publish:
        return files.publishing(at("f"), b"", text, size=size, mode=FOLD, if_generation=generation)

    assert files.fails(fold(9, made.generation - 1)) is GenerationMismatch
    assert files.fails(fold(10, made.generation)) is InvalidArgument
    assert files.fails(fold(9, made.generation), ALICE) is PermissionDenied
    folded = files.do(fold(9, made.generation))
    assert isinstance(folded, Published)
    assert (folded.size, folded.generation) == (9, files.stat("f").version)
    assert files.show("f") == b"some text"
    (chunk,) = files.body(at("f")).chunks
    assert len(chunk.chunk.extents) == 1
    missing = files.publishing(at(), b"none", text, mode=FOLD)
    assert files.fails(missing) is NotFound
    files.do(SetAttr(at("f"), flags=InodeFlag.IMMUTABLE))
    assert files.fails(fold(9, folded.generation)) is Immutable


def test_who_may_not_read_a_file_folds_nothing_of_it(files: Files) -> None:
    made = files.publish("f", inline(b"text"))
    files.do(SetAttr(at("f"), mode=0o622))
    op = files.publishing(at(), b"f", inline(b"lies"), mode=FOLD, if_generation=made.generation)
    assert files.fails(op, ALICE) is PermissionDenied


def test_a_publish_by_another_clears_privileges(files: Files) -> None:
    files.create("f", 0o6777)
    files.publish("f", inline(b"x"))
    assert files.stat("f").mode & 0o7777 == 0o6777
    files.publish("f", inline(b"x"), caller=BOB)
    assert files.stat("f").mode & 0o7777 == 0o777
    files.create("g", 0o2766)
    files.publish("g", inline(b"x"), caller=BOB)
    assert files.stat("g").mode & 0o7777 == 0o2766


def test_usage_counts_a_size_once_per_name(files: Files) -> None:
    for name in ("a", "b", "b/c"):
        files.mkdir(name)
    files.publish("a/f", inline(b"xx"))
    files.do(Link(at("a/f"), at("b/c"), b"g"))
    files.do(Link(at("a/f"), at("b/c"), b"h"))
    files.publish("b/c/g", inline(b"x" * 10))
    assert files.usage("a") == (1, 10)
    assert files.usage("b") == (3, 20)
    assert files.usage() == (6, 30)
    assert files.statfs() == (5, 10)
    files.check()
    files.do(SetAttr(at("a/f"), size=4))
    assert files.usage() == (6, 12)
    files.check()


def test_truncate_cuts_for_good(files: Files) -> None:
    files.publish("f", inline(b"0123456789"), stored(50, index=1), inline(b"x", index=2))
    generation = files.stat("f").generation
    files.do(SetAttr(at("f"), size=CHUNK_BYTES + 20))
    files.do(SetAttr(at("f"), size=3 * CHUNK_BYTES))
    chunks = files.body(at("f")).chunks
    assert [(c.index, c.chunk.extents[-1].length) for c in chunks] == [(0, 10), (1, 20)]
    files.do(SetAttr(at("f"), size=4))
    files.do(SetAttr(at("f"), size=12))
    assert files.show("f") == b"0123" + bytes(8)
    assert files.stat("f").generation > generation
    files.do(SetAttr(at("f"), size=0))
    assert files.stat("f").body == 0
    files.do(SetAttr(at("f"), size=5))
    assert files.show("f") == bytes(5)
    files.check()


# ---------------------------------------------------------------- uploads


def test_which_uploads_may_be_published(files: Files) -> None:
    op = files.publishing(at(), b"f", stored(10), upload=1)
    assert files.fails(op) is UploadRefused  # not leased
    files.upload(5)
    files.internal(SessionMarks((files.marks(1, watermark=3),)))
    assert files.fails(op) is UploadRefused  # abandoned
    files.publish("f", stored(10), upload=3)
    again = files.publishing(at(), b"g", stored(10), upload=3)
    assert files.fails(again) is UploadRefused  # published
    files.publish("g", stored(10), upload=5)
    assert files.fails(files.publishing(at(), b"g", stored(10), upload=6)) is UploadRefused
    assert files.fails(files.publishing(at(), b"g", stored(10), upload=-1)) is UploadRefused


def test_a_failed_publish_does_not_consume(files: Files) -> None:
    upload = files.upload()
    op = files.publishing(at("missing"), b"f", stored(10), upload=upload)
    assert files.fails(op) is NotFound
    files.mkdir("missing")
    files.do(op)


def test_a_retry_answers_the_first_result(files: Files) -> None:
    op = files.publishing(at(), b"f", stored(10), mode=CREATE)
    command = files.command(op)
    [first] = files.entry(command)
    [again] = files.entry(command)
    assert first == again
    assert isinstance(first.value, Published)
    files.do(ExpireSession(files.session), session=0)
    [after] = files.entry(command)
    assert first == after
    new = files.command(files_publish_of(op))
    [refused] = files.entry(new)
    assert refused.code == SessionExpired.code
    assert files.statfs() == (2, 10)
    files.check()


def files_publish_of(op: Publish) -> Publish:
    """Return the same publish under another name."""
    return Publish(op.parent, b"other", op.publish_mode, 0o644, op.size, op.upload, op.chunks)


def test_several_publishes_of_one_file_in_one_atomic(files: Files) -> None:
    ops = (
        files.publishing(at(), b"f", stored(10), mode=CREATE),
        files.publishing(at(), b"f", stored(5), mode=PATCH),
        files.publishing(at(), b"f", stored(20), mode=REPLACE),
        files.publishing(at(), b"f", stored(7), mode=APPEND),
    )
    done = files.do(Atomic(ops))
    assert isinstance(done, AtomicDone)
    assert [v.generation for v in done.values if isinstance(v, Published)] == [
        done.first_version + i for i in range(4)
    ]
    files.check()
    assert files.usage() == (1, 27)
    failing = Atomic((*ops[:0], files.publishing(at(), b"f", stored(10)), Unlink(at(), b"no")))
    before = files.stat("f")
    assert files.fails(failing) is NotFound
    assert files.stat("f") == before
    files.check()


def test_an_atomic_publishes_an_upload_once(files: Files) -> None:
    upload = files.upload()
    one = files.publishing(at(), b"f", stored(10), upload=upload)
    two = files.publishing(at(), b"g", stored(10), upload=upload)
    assert files.fails(Atomic((one, two))) is UploadRefused
    files.do(one)


# ---------------------------------------------------------------- events


def test_a_publish_by_handle_tells_where_the_file_is_reachable(files: Files) -> None:
    files.mkdir("gone")
    files.mkdir("here")
    made = files.publish("gone/f", inline(b"x"))
    files.do(Link(at("gone/f"), at("here"), b"f"))
    files.do(RemoveTree(at(), b"gone"))
    cursor = files.machine.version
    files.publish_at(at(inode=made.inode), b"", inline(b"yy"))
    reply = files.read(ReadEvents(cursor))
    assert isinstance(reply, EventsReply)
    [event] = reply.events
    assert event.kind == EventKind.PUBLISH
    assert event.chain == (files.stat("here").inode, 1)
    files.check()


# ---------------------------------------------------------------- body maps


def test_a_body_map_comes_in_pages(files: Files) -> None:
    maps = tuple(inline(b"x" * 60_000, index=i) for i in range(40))
    files.publish("f", *maps)
    seen: list[int] = []
    offset = 0
    pages = 0
    while True:
        reply = files.body(at("f"), offset)
        seen += [c.index for c in reply.chunks]
        pages += 1
        if not reply.next_chunk:
            break
        offset = reply.next_chunk * CHUNK_BYTES
    assert seen == list(range(40))
    assert pages > 1


def test_a_body_map_of_a_range(files: Files) -> None:
    files.publish("f", stored(10, index=0), stored(10, index=2), size=4 * CHUNK_BYTES)
    assert [c.index for c in files.body(at("f"), 0, 1).chunks] == [0]
    assert not files.body(at("f"), CHUNK_BYTES, CHUNK_BYTES).chunks
    assert [c.index for c in files.body(at("f"), CHUNK_BYTES, CHUNK_BYTES + 1).chunks] == [2]
    assert not files.body(at("f"), 4 * CHUNK_BYTES, 5).chunks
    assert not files.body(at("f"), 2**63 - 1, 2**63 - 1).chunks


def test_a_part_of_a_block_stands_with_its_sums(files: Files) -> None:
    name = part(300_000, 2)
    files.publish("f", ChunkMap(0, (name,), (Extent(5, 100, 0, 200_000),)))
    [chunk] = files.body(at("f")).chunks
    [obj] = chunk.chunk.objects
    assert (obj.session, obj.upload, obj.block, obj.length) == (files.session, 1, 2, 300_000)
    assert obj.sums == name.sums
    assert chunk.chunk.extents[0].object_offset == 200_000
