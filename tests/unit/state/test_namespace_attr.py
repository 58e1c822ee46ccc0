"""Attributes and predicates, by the rules of docs/namespace.md."""

from __future__ import annotations

import pytest
from tests.unit.state.invariants import check
from tests.unit.state.shard import ALICE, BOB, ROOT, Shard, at

from nokv.errors import (
    AlreadyExists,
    FileTooLarge,
    GenerationMismatch,
    Immutable,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotPermitted,
    NotSupported,
    PermissionDenied,
    PredicateFailed,
    ResultTooLarge,
    TooLarge,
    TooManyLinks,
)
from nokv.types.commands import (
    TIME_NOW,
    Absent,
    Create,
    Exists,
    GenerationIs,
    Link,
    Mkdir,
    Mknod,
    Op,
    Predicate,
    RemoveXattr,
    SetAttr,
    SetXattr,
    VersionIs,
    XattrFlag,
)
from nokv.types.events import EventKind
from nokv.types.limits import (
    FILE_BYTES_MAX,
    PREDICATES_MAX,
    UINT63_MAX,
    XATTR_LIST_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from nokv.types.reads import BytesReply, EventsReply, GetXattr, ReadEvents, StatFs, StatFsReply
from nokv.types.results import Done, Made
from nokv.types.values import Attr, Caller, FileType, InodeFlag

FIFO = FileType.FIFO << 12


def set_attr(shard: Shard, op: SetAttr, caller: Caller = ROOT) -> Attr:
    """Apply a SetAttr and return what it made of the inode."""
    made = shard.do(op, caller)
    assert isinstance(made, Made)
    return made.attr


@pytest.fixture
def shard() -> Shard:
    """Return a shard with ALICE's d/ and f, root's r, a fifo and a link to f."""
    shard = Shard()
    shard.do(SetAttr(at(), mode=0o777))
    shard.mkdir("d", 0o755, ALICE)
    shard.create("f", 0o644, ALICE)
    shard.create("r", 0o644)
    shard.symlink("l", b"f", ALICE)
    shard.do(Mknod(at(), b"fifo", FIFO | 0o644), ALICE)
    return shard


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (SetAttr(at("f")), InvalidArgument),
        (SetAttr(at("f"), mode=0o10000), InvalidArgument),
        (SetAttr(at("f"), mode=-1), InvalidArgument),
        (SetAttr(at("f"), uid=-1), InvalidArgument),
        (SetAttr(at("f"), gid=2**32 - 1), InvalidArgument),
        (SetAttr(at("f"), size=-1), InvalidArgument),
        (SetAttr(at("f"), size=FILE_BYTES_MAX + 1), FileTooLarge),
        (SetAttr(at("f"), atime_ns=-2), InvalidArgument),
        (SetAttr(at("f"), mtime_ns=UINT63_MAX + 1), InvalidArgument),
        (SetAttr(at("f"), flags=4), InvalidArgument),
        (SetAttr(at("f"), flags=-1), InvalidArgument),
        (SetAttr(at("f"), mode=0o644, size=-1), InvalidArgument),
        (SetXattr(at("f"), b"", b""), InvalidArgument),
        (SetXattr(at("f"), b"user.a\0", b""), InvalidArgument),
        (SetXattr(at("f"), b"user." + b"x" * 251, b""), NameTooLong),
        (SetXattr(at("f"), b"user.", b""), NotSupported),
        (SetXattr(at("f"), b"user", b""), NotSupported),
        (SetXattr(at("f"), b"system.posix_acl", b""), NotSupported),
        (SetXattr(at("f"), b"user.a", b"x" * (XATTR_VALUE_BYTES_MAX + 1)), ResultTooLarge),
        (SetXattr(at("f"), b"user.a", b"", 3), InvalidArgument),
        (SetXattr(at("f"), b"user.a", b"", -1), InvalidArgument),
        (RemoveXattr(at("f"), b"foo.a"), NotSupported),
    ],
)
def test_arguments_are_checked_before_the_state(shard: Shard, op: Op, error: type) -> None:
    assert shard.fails(op) is error


# ---------------------------------------------------------------- owner and mode


@pytest.mark.parametrize(
    ("op", "caller", "error"),
    [
        (SetAttr(at("f"), mode=0o600), BOB, NotPermitted),
        (SetAttr(at("f"), uid=1001), ALICE, NotPermitted),
        (SetAttr(at("f"), uid=1000), ALICE, None),
        (SetAttr(at("f"), gid=200), ALICE, None),
        (SetAttr(at("f"), gid=101), ALICE, NotPermitted),
        (SetAttr(at("f"), gid=101), BOB, NotPermitted),
        (SetAttr(at("f"), uid=1000), BOB, NotPermitted),
        (SetAttr(at("l", follow=False), mode=0o600), ALICE, NotSupported),
        (SetAttr(at("l", follow=False), mode=0o600), BOB, NotPermitted),
        (SetAttr(at("l", follow=False), gid=200), ALICE, None),
        (SetAttr(at("l"), mode=0o600), ALICE, None),
        (SetAttr(at("f"), flags=1), ALICE, NotPermitted),
        (SetAttr(at("fifo"), flags=1), ALICE, NotPermitted),
        (SetAttr(at("fifo"), flags=1), Caller(), NotSupported),
        (SetAttr(at("l", follow=False), flags=1), Caller(), NotSupported),
        (SetAttr(at("d"), size=0), ALICE, IsADirectory),
        (SetAttr(at("d"), size=0), BOB, IsADirectory),
        (SetAttr(at("fifo"), size=0), BOB, InvalidArgument),
        (SetAttr(at("l", follow=False), size=0), ALICE, InvalidArgument),
        (SetAttr(at("f"), size=0), BOB, PermissionDenied),
        (SetAttr(at("f"), atime_ns=5), BOB, NotPermitted),
        (SetAttr(at("f"), atime_ns=TIME_NOW), BOB, PermissionDenied),
        (SetAttr(at("f"), atime_ns=TIME_NOW, mtime_ns=5), BOB, NotPermitted),
        (SetAttr(at("f"), atime_ns=5), ALICE, None),
        (SetAttr(at("f"), mode=0o600, size=0), BOB, NotPermitted),
        (SetAttr(at("f"), mode=0o600, flags=1), BOB, NotPermitted),
    ],
)
def test_who_may_set_what(shard: Shard, op: SetAttr, caller: Caller, error: type | None) -> None:
    before = shard.stat("f")
    if error is None:
        assert set_attr(shard, op, caller).ctime_ns == shard.wall_ns
    else:
        assert shard.fails(op, caller) is error
        assert shard.stat("f") == before
    check(shard)


def test_chown_clears_privileges_of_files_only(shard: Shard) -> None:
    set_attr(shard, SetAttr(at("f"), mode=0o6755))
    assert set_attr(shard, SetAttr(at("f"), uid=5)).mode == 0o100755
    set_attr(shard, SetAttr(at("f"), mode=0o6745))
    assert set_attr(shard, SetAttr(at("f"), gid=5)).mode == 0o102745
    set_attr(shard, SetAttr(at("d"), mode=0o6755))
    assert set_attr(shard, SetAttr(at("d"), uid=5)).mode == 0o046755
    assert set_attr(shard, SetAttr(at("f"), uid=6, mode=0o4755)).mode == 0o104755


def test_chmod_clears_set_gid_for_strangers_to_the_group(shard: Shard) -> None:
    set_attr(shard, SetAttr(at("f"), gid=300))
    assert set_attr(shard, SetAttr(at("f"), mode=0o2755), ALICE).mode == 0o100755
    assert set_attr(shard, SetAttr(at("f"), mode=0o2755, gid=200), ALICE).mode == 0o102755
    set_attr(shard, SetAttr(at("d"), gid=300))
    assert set_attr(shard, SetAttr(at("d"), mode=0o2755), ALICE).mode == 0o040755
    assert set_attr(shard, SetAttr(at("f"), gid=300, mode=0o2755)).mode == 0o102755


def test_the_owner_before_the_command_sets_the_mode(shard: Shard) -> None:
    made = set_attr(shard, SetAttr(at("f"), uid=1001, mode=0o4711))
    assert (made.uid, made.mode) == (1001, 0o104711)


# ---------------------------------------------------------------- size and times


def test_a_change_of_size(shard: Shard) -> None:
    version = shard.machine.version
    made = set_attr(shard, SetAttr(at("f"), size=100), ALICE)
    assert (made.size, made.mtime_ns) == (100, shard.wall_ns)
    assert made.generation == made.version == version + 1
    again = set_attr(shard, SetAttr(at("f"), size=100), ALICE)
    assert (again.generation, again.mtime_ns) == (made.generation, made.mtime_ns)
    assert again.ctime_ns == shard.wall_ns
    given = set_attr(shard, SetAttr(at("f"), size=40, mtime_ns=7), ALICE)
    assert (given.size, given.mtime_ns) == (40, 7)
    assert shard.usage() == (5, 41)
    assert shard.read(StatFs()) == StatFsReply(6, 41)
    check(shard)


def test_truncating_clears_privileges_unless_root_does_it(shard: Shard) -> None:
    set_attr(shard, SetAttr(at("r"), mode=0o6777))
    assert set_attr(shard, SetAttr(at("r"), size=0)).mode == 0o106777
    assert set_attr(shard, SetAttr(at("r"), size=0), ALICE).mode == 0o100777
    set_attr(shard, SetAttr(at("f"), gid=100))
    assert set_attr(shard, SetAttr(at("f"), mode=0o6765, size=1), ALICE).mode == 0o102765


def test_times(shard: Shard) -> None:
    made = set_attr(shard, SetAttr(at("f"), atime_ns=1, mtime_ns=UINT63_MAX), ALICE)
    assert (made.atime_ns, made.mtime_ns, made.ctime_ns) == (1, UINT63_MAX, shard.wall_ns)
    now = set_attr(shard, SetAttr(at("f"), atime_ns=TIME_NOW), ALICE)
    assert (now.atime_ns, now.mtime_ns) == (shard.wall_ns, UINT63_MAX)
    set_attr(shard, SetAttr(at("f"), mode=0o666))
    now = set_attr(shard, SetAttr(at("f"), atime_ns=TIME_NOW, mtime_ns=TIME_NOW), BOB)
    assert now.atime_ns == now.mtime_ns == shard.wall_ns
    assert shard.fails(SetAttr(at("f"), atime_ns=0), BOB) is NotPermitted


def test_flags_freeze_everything_but_themselves(shard: Shard) -> None:
    set_attr(shard, SetAttr(at("f"), flags=InodeFlag.APPEND))
    for op in (
        SetAttr(at("f"), mode=0o600),
        SetAttr(at("f"), size=0),
        SetAttr(at("f"), atime_ns=1),
        SetAttr(at("f"), uid=1, flags=0),
        SetXattr(at("f"), b"user.a", b""),
    ):
        assert shard.fails(op) is Immutable
    assert set_attr(shard, SetAttr(at("f"), flags=0)).flags == 0
    assert set_attr(shard, SetAttr(at("f"), mode=0o600, flags=1)).flags == 1


def test_events_of_attributes(shard: Shard) -> None:
    version, made = shard.machine.version, shard.stat("f")
    shard.do(SetAttr(at("l"), size=3))
    shard.do(SetXattr(at("d"), b"user.a", b""))
    shard.do(SetAttr(at(), mode=0o755))
    reply = shard.read(ReadEvents(version))
    assert isinstance(reply, EventsReply)
    kinds = [(event.kind, event.chain, event.inode) for event in reply.events]
    assert kinds == [
        (EventKind.SETATTR, (1,), made.inode),
        (EventKind.XATTR, (1,), shard.stat("d").inode),
        (EventKind.SETATTR, (1,), 1),
    ]
    assert (reply.events[0].size, reply.events[0].generation) == (3, version + 1)


# ---------------------------------------------------------------- extended attributes


def test_extended_attributes_are_set_replaced_and_removed(shard: Shard) -> None:
    create = SetXattr(at("f"), b"user.a", b"\xc0", XattrFlag.CREATE)
    assert shard.fails(SetXattr(at("f"), b"user.a", b"", XattrFlag.REPLACE)) is NoAttribute
    assert shard.do(create, ALICE) == Done()
    assert shard.fails(create) is AlreadyExists
    assert shard.read(GetXattr(at("f"), b"user.a")) == BytesReply(b"\xc0")
    assert shard.do(SetXattr(at("f"), b"user.a", b"", XattrFlag.REPLACE)) == Done()
    assert shard.stat("f").ctime_ns == shard.wall_ns
    assert shard.do(RemoveXattr(at("f"), b"user.a")) == Done()
    assert shard.fails(RemoveXattr(at("f"), b"user.a")) is NoAttribute
    check(shard)


@pytest.mark.parametrize(
    ("path", "name", "caller", "error"),
    [
        ("f", b"user.a", ALICE, None),
        ("f", b"user.a", BOB, PermissionDenied),
        ("f", b"trusted.a", ALICE, NotPermitted),
        ("f", b"security.a", ALICE, NotPermitted),
        ("f", b"trusted.a", Caller(), None),
        ("fifo", b"user.a", Caller(), NotPermitted),
        ("fifo", b"trusted.a", Caller(), None),
        ("l", b"user.a", Caller(), NotPermitted),
        ("d", b"user.a", BOB, PermissionDenied),
    ],
)
def test_who_may_change_attributes(
    shard: Shard, path: str, name: bytes, caller: Caller, error: type | None
) -> None:
    op = SetXattr(at(path, follow=False), name, b"v")
    if error is None:
        assert shard.do(op, caller) == Done()
        assert shard.do(RemoveXattr(at(path, follow=False), name), caller) == Done()
    else:
        assert shard.fails(op, caller) is error
        assert shard.fails(RemoveXattr(at(path, follow=False), name), caller) is error


def test_attributes_of_a_sticky_directory_are_its_owners(shard: Shard) -> None:
    set_attr(shard, SetAttr(at("d"), mode=0o1777))
    assert shard.fails(SetXattr(at("d"), b"user.a", b""), BOB) is NotPermitted
    assert shard.do(SetXattr(at("d"), b"user.a", b""), ALICE) == Done()


def test_names_of_attributes_are_bounded(shard: Shard) -> None:
    name = b"user." + b"x" * 247
    count, size = 0, 0
    while size + len(name) + 4 <= XATTR_LIST_BYTES_MAX:
        shard.do(SetXattr(at("f"), name + b"%03d" % count, b""))
        count, size = count + 1, size + len(name) + 4
    assert shard.fails(SetXattr(at("f"), name + b"999", b"")) is ResultTooLarge
    assert shard.do(SetXattr(at("f"), name + b"000", b"new")) == Done()
    left = XATTR_LIST_BYTES_MAX - size
    assert left < 256
    check(shard)


# ---------------------------------------------------------------- predicates


def test_predicates_are_checked_in_order_as_the_caller(shard: Shard) -> None:
    made = set_attr(shard, SetAttr(at("f"), size=1))
    op = Mkdir(at(), b"new", 0o755)
    table: list[tuple[Predicate, type | None]] = [
        (Exists(at("f")), None),
        (Exists(at("m")), PredicateFailed),
        (Exists(at("f/x")), PredicateFailed),
        (Exists(at("m/x")), PredicateFailed),
        (Absent(at("m")), None),
        (Absent(at("f/x")), None),
        (Absent(at("f")), PredicateFailed),
        (VersionIs(at("f"), made.version), None),
        (VersionIs(at("f"), made.version - 1), PredicateFailed),
        (VersionIs(at("m"), 1), PredicateFailed),
        (GenerationIs(at("f"), made.generation), None),
        (GenerationIs(at("f"), 0), GenerationMismatch),
        (GenerationIs(at("r"), 0), None),
        (GenerationIs(at("m"), 0), PredicateFailed),
        (Exists(at("a//b")), InvalidArgument),
    ]
    for number, (predicate, error) in enumerate(table):
        one = Mkdir(at(), b"new%d" % number, 0o755)
        if error is None:
            assert isinstance(shard.do(one, predicates=(predicate,)), Made)
        else:
            assert shard.fails(one, predicates=(predicate,)) is error, predicate
    both = (Absent(at("f")), GenerationIs(at("f"), 0))
    assert shard.fails(op, predicates=both) is PredicateFailed
    assert shard.fails(op, predicates=both[::-1]) is GenerationMismatch
    assert shard.fails(op, predicates=(Absent(at("m")),) * (PREDICATES_MAX + 1)) is TooLarge
    check(shard)


def test_other_errors_of_a_predicates_address_are_the_commands(shard: Shard) -> None:
    shard.symlink("loop", b"loop")
    set_attr(shard, SetAttr(at("d"), mode=0o700))
    op = Create(at(), b"new", 0o644)
    assert shard.fails(op, predicates=(Exists(at("loop")),)) is TooManyLinks
    assert shard.fails(op, BOB, predicates=(Absent(at("d/x")),)) is PermissionDenied


def test_a_link_of_a_set_uid_file_keeps_its_mode(shard: Shard) -> None:
    set_attr(shard, SetAttr(at("f"), mode=0o4755))
    made = shard.do(Link(at("f"), at(), b"g"), ALICE)
    assert isinstance(made, Made)
    assert made.attr.mode == 0o104755
