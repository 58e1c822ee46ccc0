"""Making names, by the rules of docs/namespace.md."""

from __future__ import annotations

import pytest
from tests.unit.state.invariants import check
from tests.unit.state.shard import ALICE, BOB, ROOT, Shard, at

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    Immutable,
    InvalidArgument,
    LinkLimit,
    NameTooLong,
    NotADirectory,
    NotFound,
    NotPermitted,
    PermissionDenied,
    ResultTooLarge,
    Stale,
)
from nokv.types.commands import (
    BulkCreate,
    Create,
    Link,
    Mkdir,
    Mknod,
    Op,
    SetAttr,
    StageBegin,
    Symlink,
    Unlink,
)
from nokv.types.events import EventKind
from nokv.types.limits import BULK_NAMES_MAX, LINK_MAX
from nokv.types.reads import EventsReply, ReadEvents
from nokv.types.results import Made, MadeMany
from nokv.types.values import At, Caller, FileType, InodeFlag

REGULAR = FileType.REGULAR << 12
FIFO = FileType.FIFO << 12
CHARACTER = FileType.CHARACTER << 12
FOREVER = b"x" * 256


def test_a_new_directory_has_two_links_and_its_parent_one_more() -> None:
    shard = Shard()
    shard.do(SetAttr(at(), mode=0o777))
    made = shard.mkdir("d", 0o750, ALICE)
    assert (made.mode, made.uid, made.gid) == (0o040750, 1000, 100)
    assert (made.nlink, made.children, made.size, made.parent) == (2, 0, 0, 1)
    root = shard.stat()
    assert (root.nlink, root.children) == (3, 1)
    assert root.mtime_ns == root.ctime_ns == made.ctime_ns == shard.wall_ns
    assert root.version == made.version
    check(shard)


def test_a_new_file_is_empty_and_counted() -> None:
    shard = Shard()
    shard.mkdir("d")
    made = shard.create("d/f", 0o640)
    assert (made.mode, made.nlink, made.size, made.generation) == (0o100640, 1, 0, 0)
    assert made.atime_ns == made.mtime_ns == made.ctime_ns == shard.wall_ns
    assert made == shard.stat("d/f")
    assert shard.usage() == (2, 0)
    assert shard.usage("d") == (1, 0)
    assert shard.machine.counters.files == 3
    check(shard)


def test_a_symlink_counts_its_target_as_bytes() -> None:
    shard = Shard()
    made = shard.symlink("l", b"over/there")
    assert (made.mode, made.size, made.nlink) == (0o120777, 10, 1)
    assert shard.usage() == (1, 10)
    check(shard)


@pytest.mark.parametrize("make", [Mkdir, Create])
def test_a_name_is_made_once(make: type[Mkdir | Create]) -> None:
    shard = Shard()
    shard.create("f")
    assert shard.fails(make(at(), b"f", 0o644)) is AlreadyExists
    assert shard.fails(make(at("f"), b"g", 0o644)) is NotADirectory
    assert shard.fails(make(at("missing"), b"g", 0o644)) is NotFound
    assert shard.fails(make(at(inode=99), b"g", 0o644)) is Stale
    assert shard.fails(make(At(view=7), b"g", 0o644)) is Stale
    check(shard)


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (Create(at(), b"", 0o644), InvalidArgument),
        (Create(at(), b".", 0o644), InvalidArgument),
        (Create(at(), b"..", 0o644), InvalidArgument),
        (Create(at(), b"a/b", 0o644), InvalidArgument),
        (Create(at(), b"a\0b", 0o644), InvalidArgument),
        (Create(at(), FOREVER, 0o644), NameTooLong),
        (Create(at(), b"f", 0o10000), InvalidArgument),
        (Create(at(), b"f", -1), InvalidArgument),
        (Mkdir(at(), b"f", 0o10000), InvalidArgument),
        (Create(At(path=(b"",)), b"f", 0o644), InvalidArgument),
        (Create(At(path=(b"a/b",)), b"f", 0o644), InvalidArgument),
        (Create(At(path=(FOREVER,)), b"f", 0o644), NameTooLong),
        (Create(At(path=(b"x" * 255,) * 17), b"f", 0o644), NameTooLong),
        (Mknod(at(), b"n", 0o644), InvalidArgument),
        (Mknod(at(), b"n", 0o040755), InvalidArgument),
        (Mknod(at(), b"n", 0o120777), InvalidArgument),
        (Mknod(at(), b"n", FIFO | 0o200000), InvalidArgument),
        (Mknod(at(), b"n", FIFO, -1), InvalidArgument),
        (Symlink(at(), b"l", b""), InvalidArgument),
        (Symlink(at(), b"l", b"a\0"), InvalidArgument),
        (Symlink(at(), b"l", b"x" * 4096), NameTooLong),
        (Link(at(), at(), b".."), InvalidArgument),
        (BulkCreate(at(), (), 0o644), InvalidArgument),
        (BulkCreate(at(), (b"a", b"a"), 0o644), InvalidArgument),
        (BulkCreate(at(), (b"a", b""), 0o644), InvalidArgument),
        (BulkCreate(at(), (b"a", b".."), 0o644), InvalidArgument),
        (BulkCreate(at(), (b"a", b"b/c"), 0o644), InvalidArgument),
        (BulkCreate(at(), (b"a", b"b\0"), 0o644), InvalidArgument),
        (BulkCreate(at(), (b"a", FOREVER), 0o644), NameTooLong),
        (BulkCreate(at(), (b"a",), 0o10000), InvalidArgument),
        (
            BulkCreate(at(), tuple(b"%d" % n for n in range(BULK_NAMES_MAX + 1)), 0),
            ResultTooLarge,
        ),
    ],
)
def test_arguments_are_checked_before_the_state(op: Op, error: type) -> None:
    shard = Shard()
    assert shard.fails(op) is error
    assert shard.stat().children == 0


def test_255_bytes_make_a_name_and_4096_a_path() -> None:
    shard = Shard()
    shard.mkdir("d" * 255)
    assert shard.create("d" * 255 + "/" + "f" * 255).parent == shard.stat("d" * 255).inode
    path = (b"." * 1,) * 2048
    assert shard.do(Create(At(path=path), b"long", 0o644))


@pytest.mark.parametrize(
    ("mode", "caller", "error"),
    [
        (0o700, ALICE, PermissionDenied),
        (0o701, ALICE, PermissionDenied),
        (0o702, ALICE, PermissionDenied),
        (0o703, ALICE, None),
        (0o070, Caller(1, 0), None),
        (0o070, Caller(1, 1, (0,)), None),
        (0o007, Caller(1, 0), PermissionDenied),
        (0o000, ROOT, None),
    ],
)
def test_making_needs_x_and_w(mode: int, caller: Caller, error: type | None) -> None:
    shard = Shard()
    shard.mkdir("d", mode)
    op = Create(at("d"), b"f", 0o644)
    if error is None:
        assert isinstance(shard.do(op, caller), Made)
    else:
        assert shard.fails(op, caller) is error


def test_the_owners_class_decides_even_where_others_may_more() -> None:
    shard = Shard()
    shard.mkdir("d", 0o077)
    shard.do(SetAttr(at("d"), uid=1000))
    assert shard.fails(Create(at("d"), b"f", 0o644), ALICE) is PermissionDenied


def test_which_error_of_making_wins() -> None:
    shard = Shard()
    shard.mkdir("d", 0o755)
    shard.create("d/f")
    shard.do(SetAttr(at("d"), flags=InodeFlag.IMMUTABLE))
    assert shard.fails(Create(at("d"), b"f", 0o644), ALICE) is AlreadyExists
    assert shard.fails(Create(at("d"), b"g", 0o644), ALICE) is PermissionDenied
    assert shard.fails(Create(at("d"), b"g", 0o644)) is Immutable
    assert shard.fails(BulkCreate(at("d"), (b"h", b"f"), 0o644)) is AlreadyExists
    assert shard.fails(BulkCreate(at("d"), (b"h",), 0o644)) is Immutable
    shard.do(SetAttr(at("d"), flags=0))
    shard.do(SetAttr(at("d"), mode=0o700))
    assert shard.fails(Create(at("d"), b"f", 0o644), ALICE) is PermissionDenied


def test_an_append_only_directory_takes_new_names() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.do(SetAttr(at("d"), flags=InodeFlag.APPEND))
    assert shard.create("d/f").nlink == 1


def test_set_gid_directories_pass_their_group_on() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.do(SetAttr(at("d"), mode=0o2777, gid=55))
    inner = shard.mkdir("d/e", 0o755, ALICE)
    assert (inner.gid, inner.mode) == (55, 0o042755)
    assert shard.create("d/f", 0o2644, ALICE).mode == 0o102644
    assert shard.create("d/g", 0o2755, ALICE).mode == 0o100755
    assert shard.create("d/h", 0o2755, Caller(1, 1, (55,))).mode == 0o102755
    assert shard.create("d/i", 0o2755).mode == 0o102755
    bulk = shard.do(BulkCreate(at("d"), (b"j",), 0o2755), ALICE)
    assert isinstance(bulk, MadeMany)
    assert (shard.stat("d/j").mode, shard.stat("d/j").gid) == (0o100755, 55)


def test_mknod_makes_nodes_and_only_root_devices() -> None:
    shard = Shard()
    shard.do(SetAttr(at(), mode=0o777))
    device = shard.do(Mknod(at(), b"null", CHARACTER | 0o666, 259))
    assert isinstance(device, Made)
    assert (device.attr.mode, device.attr.rdev) == (0o020666, 259)
    fifo = shard.do(Mknod(at(), b"fifo", FIFO | 0o600, 259), ALICE)
    assert isinstance(fifo, Made)
    assert (fifo.attr.mode, fifo.attr.rdev) == (0o010600, 0)
    assert isinstance(shard.do(Mknod(at(), b"file", REGULAR | 0o600), ALICE), Made)
    assert shard.fails(Mknod(at(), b"n", CHARACTER | 0o600), ALICE) is NotPermitted
    assert shard.fails(Mknod(at(), b"fifo", CHARACTER | 0o600), ALICE) is AlreadyExists
    shard.do(SetAttr(at(), mode=0o755))
    assert shard.fails(Mknod(at(), b"n", CHARACTER | 0o600), ALICE) is PermissionDenied
    check(shard)


def test_a_bulk_create_is_all_or_nothing_with_consecutive_inodes() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.create("d/x")
    names = (b"b", b"a", b"c")
    assert shard.fails(BulkCreate(at("d"), (*names, b"x"), 0o644)) is AlreadyExists
    many = shard.do(BulkCreate(at("d"), names, 0o640))
    assert isinstance(many, MadeMany)
    assert many.count == 3
    for number, name in enumerate(names):
        made = shard.stat("d/" + name.decode())
        assert (made.inode, made.mode) == (many.first + number, 0o100640)
        assert made.version == shard.machine.version
    assert shard.stat("d").children == 4
    reply = shard.read(ReadEvents(0))
    assert isinstance(reply, EventsReply)
    last = reply.events[-1]
    assert (last.kind, last.names, last.inode) == (EventKind.CREATE, names, many.first)
    check(shard)


def test_a_link_is_a_further_name_of_the_same_file() -> None:
    shard = Shard()
    shard.mkdir("d")
    made = shard.create("f")
    linked = shard.do(Link(at("f"), at("d"), b"g"))
    assert isinstance(linked, Made)
    assert (linked.attr.inode, linked.attr.nlink) == (made.inode, 2)
    assert linked.attr.ctime_ns == shard.wall_ns > linked.attr.mtime_ns
    shard.do(Link(at(inode=made.inode), at("d"), b"h"))
    assert shard.stat("f").nlink == 3
    shard.do(SetAttr(at("d/g"), size=10))
    assert shard.usage() == (4, 30)
    assert shard.usage("d") == (2, 20)
    check(shard)


def test_the_parent_of_a_file_is_the_smallest_directory_that_names_it() -> None:
    shard = Shard()
    for path in ("a", "b"):
        shard.mkdir(path)
    shard.create("b/f")
    for name, parent in ((b"a", "a"), (b"", "")):
        made = shard.do(Link(at("b/f"), at(parent), b"g" + name))
        assert isinstance(made, Made)
        assert made.attr.parent == shard.stat(parent).inode
        check(shard)


def test_which_error_of_linking_wins() -> None:
    shard = Shard()
    shard.mkdir("d")
    shard.create("f")
    shard.create("d/g")
    assert shard.fails(Link(at("missing"), at("d"), b"g")) is NotFound
    assert shard.fails(Link(at("f"), at("d"), b"g"), ALICE) is AlreadyExists
    assert shard.fails(Link(at("f"), at("d"), b"h"), ALICE) is PermissionDenied
    assert shard.fails(Link(at("d"), at("d"), b"h")) is NotPermitted
    assert shard.fails(Link(at("f"), at("f"), b"h")) is NotADirectory
    shard.do(SetAttr(at("f"), flags=InodeFlag.APPEND))
    assert shard.fails(Link(at("f"), at("d"), b"h")) is Immutable
    shard.do(SetAttr(at("f"), flags=0))
    shard.do(SetAttr(at("d"), flags=InodeFlag.IMMUTABLE))
    assert shard.fails(Link(at("f"), at("d"), b"h")) is Immutable
    stage = shard.do(StageBegin(0, 0o040755))
    assert isinstance(stage, Made)
    assert shard.fails(Link(at("f"), at(inode=stage.attr.inode), b"h")) is CrossesView
    check(shard)


def test_a_link_of_a_symlink_follows_it_only_if_asked_to() -> None:
    shard = Shard()
    made = shard.create("f")
    link = shard.symlink("l", b"f")
    shard.do(Link(at("l", follow=False), at(), b"l2"))
    shard.do(Link(at("l"), at(), b"f2"))
    assert shard.stat("l2", follow=False).inode == link.inode
    assert shard.stat("f2", follow=False).inode == made.inode
    check(shard)


def test_a_file_has_at_most_link_max_names() -> None:
    shard = Shard()
    shard.create("f")
    for start in range(1, LINK_MAX, 128):
        numbers = range(start, min(start + 128, LINK_MAX))
        shard.entry(*[shard.command(Link(at("f"), at(), b"l%d" % n)) for n in numbers])
    assert shard.stat("f").nlink == LINK_MAX
    assert shard.fails(Link(at("f"), at(), b"more")) is LinkLimit
    shard.do(Unlink(at(), b"f"))
    assert shard.stat("l1").nlink == LINK_MAX - 1
    check(shard)


def test_a_caller_that_cannot_be_is_refused() -> None:
    shard = Shard()
    op = Create(at(), b"f", 0o644)
    callers = [
        Caller(-1),
        Caller(2**32 - 1),
        Caller(0, 2**32 - 1),
        Caller(0, 0, (-1,)),
        Caller(0, 0, (0,) * 65),
        Caller(0, 0, (), "é" * 128),
    ]
    assert [shard.fails(op, caller) for caller in callers] == [InvalidArgument] * len(callers)
    assert shard.do(op, Caller(0, 0, (0,) * 64, "p" * 255))


def test_nobody_may_in_anothers_directory() -> None:
    shard = Shard()
    shard.mkdir("a", 0o700)
    shard.do(SetAttr(at("a"), uid=1000, gid=100))
    shard.create("a/f", caller=ALICE)
    assert shard.fails(Create(at("a"), b"g", 0o644), BOB) is PermissionDenied
