"""Access control lists, by the rules of docs/namespace.md; beside the kernel's: test_acl_kernel."""

from __future__ import annotations

import struct

import pytest
from tests.unit.state.bodies import Files, inline
from tests.unit.state.shard import ALICE, BOB, ROOT, at

from nokv.errors import (
    Immutable,
    InvalidArgument,
    NoAttribute,
    NokvError,
    NotPermitted,
    NotSupported,
    PermissionDenied,
    ResultTooLarge,
)
from nokv.state import acl, keys
from nokv.state.families import Family
from nokv.state.records import body_of, decode_inode
from nokv.types.commands import (
    BulkCreate,
    Create,
    Mkdir,
    Mknod,
    PublishMode,
    RemoveXattr,
    SetAttr,
    SetXattr,
    StageBegin,
    StageMode,
    StageSwap,
    XattrFlag,
)
from nokv.types.limits import ACL_ENTRIES_MAX, XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from nokv.types.reads import Access, BytesReply, GetXattr, ListXattr, NamesReply
from nokv.types.results import Made
from nokv.types.values import Caller, FileType, InodeFlag
from nokv.types.views import Clone, WorkspaceCreate

ACCESS, DEFAULT = acl.ACCESS, acl.DEFAULT
NOBODY = 2**32 - 1
CAROL = Caller(1002, 102, (300,))


def listed(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """Return a list of (tag, permissions) and (tag, permissions, id)."""
    packed = [struct.pack("<HHI", *(*entry, NOBODY)[:3]) for entry in entries]
    return struct.pack("<I", 2) + b"".join(packed)


FOR_BOB = listed((1, 6), (2, 6, BOB.uid), (4, 4), (16, 6), (32, 0))
"""Owner rw, BOB rw, group r, others nothing."""


class Lists(Files):
    """A shard with ALICE's d/ and d/f."""

    def __init__(self) -> None:
        super().__init__()
        self.do(SetAttr(at(), mode=0o777))
        self.mkdir("d", 0o755, ALICE)
        self.create("d/f", 0o640, ALICE)

    def set(self, path: str, value: bytes, name: bytes = ACCESS, caller: Caller = ALICE) -> None:
        """Set a list."""
        self.do(SetXattr(at(path), name, value), caller)

    def shown(self, path: str, name: bytes = ACCESS) -> bytes:
        """Return a list; b"" for none."""
        try:
            reply = self.read(GetXattr(at(path), name))
        except NoAttribute:
            return b""
        assert isinstance(reply, BytesReply)
        return reply.data

    def names(self, path: str) -> tuple[bytes, ...]:
        """Return the names of all attributes."""
        reply = self.read(ListXattr(at(path)), BOB)
        assert isinstance(reply, NamesReply)
        return reply.names

    def may(self, path: str, caller: Caller, mask: int) -> bool:
        """Ask access(2)."""
        try:
            self.read(Access(at(path), mask), caller)
        except PermissionDenied:
            return False
        return True


@pytest.fixture
def lists() -> Lists:
    """Return such a shard."""
    return Lists()


# ---------------------------------------------------------------- lists and modes


def test_a_list_lets_in_whom_the_mode_does_not(lists: Lists) -> None:
    assert not lists.may("d/f", BOB, 4)
    lists.set("d/f", FOR_BOB)
    assert lists.stat("d/f").mode & 0o7777 == 0o660
    assert lists.may("d/f", BOB, 6)
    assert not lists.may("d/f", CAROL, 4)
    assert lists.names("d/f") == (ACCESS,)
    assert lists.stat("d/f").acls == 1
    lists.publish("d/f", inline(b"by bob"), caller=BOB)
    lists.check()


def test_chmod_changes_the_mask_and_not_the_group(lists: Lists) -> None:
    lists.set("d/f", FOR_BOB)
    lists.do(SetAttr(at("d/f"), mode=0o604), ALICE)
    masked = listed((1, 6), (2, 6, BOB.uid), (4, 4), (16, 0), (32, 4))
    assert lists.shown("d/f") == masked
    # A mask of nothing: acl(5) gives a named user nothing. (Linux takes a short way there and
    # gives what others get.)
    assert not lists.may("d/f", BOB, 4)
    assert lists.may("d/f", CAROL, 4)
    lists.do(SetAttr(at("d/f"), mode=0o670), ALICE)
    assert lists.shown("d/f") == listed((1, 6), (2, 6, BOB.uid), (4, 4), (16, 7), (32, 0))
    assert lists.may("d/f", BOB, 6)


def test_what_the_mode_can_say_is_no_list(lists: Lists) -> None:
    lists.set("d/f", FOR_BOB)
    lists.set("d/f", listed((1, 7), (4, 5), (32, 1)))
    assert (lists.shown("d/f"), lists.names("d/f"), lists.stat("d/f").acls) == (b"", (), 0)
    assert lists.stat("d/f").mode & 0o7777 == 0o751
    row = lists.kv.get(Family.INODE, keys.inode(0, lists.stat("d/f").inode))
    assert row is not None
    assert decode_inode(body_of(row)).acls is None


def test_a_list_is_kept_in_order_with_ids_where_they_mean_something(lists: Lists) -> None:
    lists.set(
        "d/f", listed((1, 6, 5), (2, 4, 9), (2, 6, 8), (4, 4, 1), (8, 1, 7), (16, 6), (32, 0))
    )
    ordered = listed((1, 6), (2, 6, 8), (2, 4, 9), (4, 4), (8, 1, 7), (16, 6), (32, 0))
    assert lists.shown("d/f") == ordered


def test_removing_leaves_the_mode(lists: Lists) -> None:
    for value in (b"", listed()):
        lists.set("d/f", FOR_BOB)
        lists.set("d/f", value)
        assert lists.shown("d/f") == b""
        assert lists.stat("d/f").mode & 0o7777 == 0o660
    lists.set("d/f", FOR_BOB)
    lists.do(RemoveXattr(at("d/f"), ACCESS), ALICE)
    lists.do(RemoveXattr(at("d/f"), ACCESS), ALICE)  # what is not there may be removed
    lists.do(RemoveXattr(at("d/f"), DEFAULT), BOB)  # and what a file never has, by anybody
    assert not lists.may("d/f", BOB, 4)
    assert lists.names("d/f") == ()


def test_a_foreign_group_loses_set_gid(lists: Lists) -> None:
    lists.do(SetAttr(at("d/f"), gid=999, mode=0o2750))
    lists.set("d/f", FOR_BOB)
    assert lists.stat("d/f").mode & 0o7777 == 0o660
    lists.do(SetAttr(at("d/f"), mode=0o2750))
    lists.set("d/f", FOR_BOB, caller=ROOT)
    assert lists.stat("d/f").mode & 0o7777 == 0o2660


def test_every_command_asks_the_list(lists: Lists) -> None:
    assert lists.fails(Create(at("d"), b"x", 0o644), BOB) is PermissionDenied
    lists.set("d", listed((1, 7), (2, 7, BOB.uid), (4, 5), (8, 5, 300), (16, 7), (32, 0)))
    lists.do(Create(at("d"), b"x", 0o644), BOB)
    assert lists.fails(Create(at("d"), b"y", 0o644), CAROL) is PermissionDenied
    assert lists.may("d/f", CAROL, 0)  # a group of hers may search
    assert lists.fails(Create(at("d"), b"y", 0o644), Caller(7, 7)) is PermissionDenied
    with pytest.raises(PermissionDenied):
        lists.read(Access(at("d/f"), 0), Caller(7, 7))
    lists.do(Mkdir(at("d"), b"e", 0o755), ROOT)


# ---------------------------------------------------------------- inheritance

INHERITED = listed((1, 7), (2, 6, BOB.uid), (4, 5), (16, 6), (32, 0))


def test_what_is_made_below_inherits(lists: Lists) -> None:
    lists.set("d", INHERITED, DEFAULT)
    assert lists.names("d") == (DEFAULT,)
    assert lists.stat("d").acls == 2
    made = listed((1, 6), (2, 6, BOB.uid), (4, 5), (16, 4), (32, 0))
    lists.do(Create(at("d"), b"create", 0o644, 0o077), ALICE)
    lists.do(BulkCreate(at("d"), (b"bulk",), 0o644, 0o077), ALICE)
    lists.do(Mknod(at("d"), b"fifo", FileType.FIFO << 12 | 0o644, 0, 0o077), ALICE)
    lists.publish_at(at("d"), b"publish", inline(b"x"), mode=PublishMode.CREATE, umask=0o077)
    for name in ("create", "bulk", "fifo", "publish"):
        assert lists.shown(f"d/{name}") == made, name
        assert lists.shown(f"d/{name}", DEFAULT) == b""
        assert lists.stat(f"d/{name}").mode & 0o7777 == 0o640
    lists.do(Mkdir(at("d"), b"e", 0o777, 0o022), ALICE)
    assert lists.shown("d/e") == listed((1, 7), (2, 6, BOB.uid), (4, 5), (16, 6), (32, 0))
    assert lists.shown("d/e", DEFAULT) == INHERITED
    lists.do(WorkspaceCreate(at("d"), b"w", 0o777), ALICE)
    assert lists.shown("d/w", DEFAULT) == INHERITED
    lists.symlink("d/l", b"f", ALICE)
    with pytest.raises(NotSupported):
        lists.read(GetXattr(at("d/l", follow=False), ACCESS))
    assert lists.stat("d/l", follow=False).mode & 0o7777 == 0o777
    lists.check()


def test_a_default_list_without_names_only_cuts_the_mode(lists: Lists) -> None:
    lists.set("d", listed((1, 7), (4, 5), (32, 1)), DEFAULT)
    lists.do(Create(at("d"), b"g", 0o666, 0o777), ALICE)
    assert (lists.names("d/g"), lists.stat("d/g").mode & 0o7777) == ((), 0o640)
    lists.do(Mkdir(at("d"), b"e", 0o777), ALICE)
    assert (lists.names("d/e"), lists.stat("d/e").mode & 0o7777) == ((DEFAULT,), 0o751)


def test_the_umask_counts_without_a_default_list(lists: Lists) -> None:
    lists.do(Create(at("d"), b"g", 0o666, 0o027), ALICE)
    lists.do(BulkCreate(at("d"), (b"h",), 0o666, 0o077), ALICE)
    lists.do(Mkdir(at("d"), b"e", 0o1777, 0o022), ALICE)
    modes = [lists.stat(f"d/{name}").mode & 0o7777 for name in "ghe"]
    assert modes == [0o640, 0o600, 0o1755]
    for umask in (-1, 0o1000):
        assert lists.fails(Create(at("d"), b"z", 0o666, umask), ALICE) is InvalidArgument
        assert lists.fails(Mkdir(at("d"), b"z", 0o666, umask), ALICE) is InvalidArgument


def test_what_is_staged_inherits_as_it_enters(lists: Lists) -> None:
    lists.set("d", INHERITED, DEFAULT)
    for mode, name in ((0o040777, b"tree"), (0o100644, b"file")):
        made = lists.do(StageBegin(0, mode), ALICE)
        assert isinstance(made, Made)
        lists.do(StageSwap(0, made.attr.inode, at("d"), name, StageMode.CREATE), ALICE)
    assert lists.shown("d/tree", DEFAULT) == INHERITED
    assert lists.shown("d/file") == listed((1, 6), (2, 6, BOB.uid), (4, 5), (16, 4), (32, 0))
    made = lists.do(StageBegin(0, 0o100644), ALICE)
    assert isinstance(made, Made)
    where = at(inode=made.attr.inode)
    lists.do(SetXattr(where, ACCESS, FOR_BOB), ALICE)
    lists.do(StageSwap(0, made.attr.inode, at("d"), b"own", StageMode.CREATE), ALICE)
    assert lists.shown("d/own") == FOR_BOB


def test_a_clone_and_a_pin_keep_lists(lists: Lists) -> None:
    lists.set("d/f", FOR_BOB)
    lists.set("d", INHERITED, DEFAULT)
    pinned = lists.pin()
    lists.do(Clone(at("d"), at(), b"c"))
    lists.do(RemoveXattr(at("d/f"), ACCESS), ALICE)
    lists.do(RemoveXattr(at("d"), DEFAULT), ALICE)
    assert lists.shown("c/f") == FOR_BOB
    assert lists.shown("c", DEFAULT) == INHERITED
    assert lists.may("c/f", BOB, 6)
    assert not lists.may("d/f", BOB, 6)
    reply = lists.read(GetXattr(at("d/f"), ACCESS, pinned))
    assert reply == BytesReply(FOR_BOB)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"\x02", InvalidArgument),
        (FOR_BOB[:-1], InvalidArgument),
        (b"\x01\0\0\0" + FOR_BOB[4:], NotSupported),
        (listed((1, 7), (4, 7)), InvalidArgument),
        (listed((1, 7), (2, 7, 5), (4, 7), (32, 7)), InvalidArgument),
        (listed((1, 7), (2, 7), (4, 7), (16, 7), (32, 7)), InvalidArgument),
        (listed((1, 7), (2, 7, 5), (2, 6, 5), (4, 7), (16, 7), (32, 7)), InvalidArgument),
        (listed((1, 8), (4, 7), (32, 7)), InvalidArgument),
        (listed((1, 7), (4, 7), (3, 7), (32, 7)), InvalidArgument),
        (listed((4, 7), (1, 7), (32, 7)), InvalidArgument),
        (listed((1, 7), (4, 7), (16, 7), (16, 7), (32, 7)), InvalidArgument),
        (listed(*((2, 7, n) for n in range(ACL_ENTRIES_MAX + 1))), ResultTooLarge),
        (bytes(XATTR_VALUE_BYTES_MAX + 1), ResultTooLarge),
    ],
)
def test_what_is_no_list(lists: Lists, value: bytes, error: type[NokvError]) -> None:
    for name in (ACCESS, DEFAULT):
        assert lists.fails(SetXattr(at("d"), name, value), ALICE) is error
    assert lists.names("d") == ()


def test_who_may_set_what(lists: Lists) -> None:
    assert lists.fails(SetXattr(at("d/f"), ACCESS, FOR_BOB), BOB) is NotPermitted
    assert lists.fails(RemoveXattr(at("d/f"), ACCESS), BOB) is NotPermitted
    assert lists.fails(SetXattr(at("d/f"), DEFAULT, FOR_BOB), ALICE) is PermissionDenied
    lists.do(SetXattr(at("d/f"), ACCESS, FOR_BOB, XattrFlag.REPLACE), ALICE)
    lists.do(SetXattr(at("d/f"), ACCESS, FOR_BOB, XattrFlag.CREATE), ALICE)
    lists.symlink("l", b"d/f", ALICE)
    assert lists.fails(SetXattr(at("l", follow=False), ACCESS, FOR_BOB), ALICE) is NotSupported
    lists.do(SetAttr(at("d/f"), flags=InodeFlag.IMMUTABLE))
    assert lists.fails(SetXattr(at("d/f"), ACCESS, FOR_BOB), ALICE) is Immutable


def test_lists_count_among_the_names_of_attributes(lists: Lists) -> None:
    left = XATTR_LIST_BYTES_MAX
    for number in range(256):
        name = b"user.%03d" % number + b"x" * 247
        lists.do(SetXattr(at("d/f"), name, b""), ALICE)
        left -= len(name) + 1
    assert left == 0
    assert lists.fails(SetXattr(at("d/f"), ACCESS, FOR_BOB), ALICE) is ResultTooLarge
    lists.do(RemoveXattr(at("d/f"), name), ALICE)
    lists.set("d/f", FOR_BOB)
    assert lists.fails(SetXattr(at("d/f"), name, b""), ALICE) is ResultTooLarge
    lists.do(SetXattr(at("d/f"), name[: -len(ACCESS) - 1], b""), ALICE)
    lists.check()


def test_the_largest_list(lists: Lists) -> None:
    named = tuple((2, 4, 10_000 + n) for n in range(ACL_ENTRIES_MAX - 4))
    value = listed((1, 6), *named, (4, 4), (16, 6), (32, 0))
    lists.set("d/f", value)
    assert lists.shown("d/f") == value
    assert lists.may("d/f", Caller(10_000, 1), 4)
    assert not lists.may("d/f", Caller(9_999, 1), 4)
