"""The reads at present."""

from __future__ import annotations

import pytest
from tests.unit.state.namespace_programs import entries
from tests.unit.state.shard import ALICE, BOB, ROOT, VOLUME, Shard, at

from nokv.errors import (
    CursorTooOld,
    InvalidArgument,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotSupported,
    PermissionDenied,
    VersionNotPinned,
)
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.port import StoreDamaged
from nokv.types.commands import (
    BulkCreate,
    Create,
    Mkdir,
    RemoveTree,
    SetAttr,
    SetXattr,
    TrimEvents,
    Unlink,
)
from nokv.types.limits import BULK_NAMES_MAX, PAGE_MAX
from nokv.types.reads import (
    Access,
    AttrReply,
    BytesReply,
    DirPage,
    EventsReply,
    GetAttr,
    GetUsage,
    GetVolume,
    GetXattr,
    ListXattr,
    Lookup,
    NamesReply,
    Read,
    ReadDir,
    ReadEvents,
    ReadLink,
    StatFs,
    StatFsReply,
    VolumeReply,
)
from nokv.types.values import At, Caller


def test_a_record_that_does_not_decode_is_damage_of_the_store() -> None:
    shard = Shard()
    shard.create("f")
    ((key, _),) = shard.kv.scan(Family.DENTRY, b"", b"\xff" * 32)
    shard.kv.write(Family.DENTRY, [(key, b"\xc1")])
    with pytest.raises(StoreDamaged, match="A lost node"):
        shard.stat("f")
    with pytest.raises(StoreDamaged, match="A lost node"):
        shard.do(Unlink(at(), b"f"))


def test_counters_that_do_not_decode_are_damage_of_the_store() -> None:
    shard = Shard()
    shard.kv.write(Family.META, [(keys.POSITION, b"\xc1")])
    with pytest.raises(StoreDamaged, match="A lost node"):
        StateMachine(shard.kv)


@pytest.fixture
def shard() -> Shard:
    """Return a shard with d/{a..e}, a link and attributes."""
    shard = Shard()
    shard.mkdir("d")
    shard.do(BulkCreate(at("d"), (b"c", b"a", b"e", b"b", b"d"), 0o640))
    shard.symlink("l", b"d/a")
    shard.do(SetXattr(at("d/a"), b"user.z", b"1"))
    shard.do(SetXattr(at("d/a"), b"trusted.t", b"2"))
    shard.do(SetXattr(at("d/a"), b"user.a", b""))
    return shard


# ---------------------------------------------------------------- inodes


def test_lookup_shows_one_name_and_follows_nothing(shard: Shard) -> None:
    reply = shard.read(Lookup(at(), b"l"))
    assert isinstance(reply, AttrReply)
    assert reply.attr == shard.stat("l", follow=False)
    for read, error in (
        (Lookup(at(), b"m"), NotFound),
        (Lookup(at("d/a"), b"m"), NotADirectory),
        (Lookup(at("l"), b"m"), NotADirectory),
        (Lookup(at(), b".."), InvalidArgument),
        (Lookup(at(), b"x" * 256), NameTooLong),
        (Lookup(at("d//a"), b"x"), InvalidArgument),
    ):
        with pytest.raises(error):
            shard.read(read)
    shard.do(SetAttr(at("d"), mode=0o744))
    with pytest.raises(PermissionDenied):
        shard.read(Lookup(at("d"), b"m"), ALICE)


def test_read_link(shard: Shard) -> None:
    assert shard.read(ReadLink(at("l", follow=False))) == BytesReply(b"d/a")
    with pytest.raises(InvalidArgument):
        shard.read(ReadLink(at("l")))


@pytest.mark.parametrize(
    ("mask", "caller", "allowed"),
    [
        (0, BOB, True),
        (4, BOB, False),
        (4, Caller(5, 0), True),
        (6, Caller(5, 0), False),
        (6, Caller(5, 6, (0,)), False),
        (7, ROOT, True),
    ],
)
def test_access(shard: Shard, mask: int, caller: Caller, *, allowed: bool) -> None:
    request = Access(at("d/a"), mask)
    if allowed:
        assert shard.read(request, caller) == shard.read(GetAttr(at("d/a")))
    else:
        with pytest.raises(PermissionDenied):
            shard.read(request, caller)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Access(at(), 8), InvalidArgument),
        (Access(at(), -1), InvalidArgument),
        (GetUsage(at("d/a")), NotADirectory),
        (GetAttr(At(path=(b"",))), InvalidArgument),
        (GetAttr(at(), 1), VersionNotPinned),
        (GetAttr(at(), -1), VersionNotPinned),
        (GetAttr(at(), 2**63), VersionNotPinned),
        (ReadDir(at(), limit=0), InvalidArgument),
        (ReadDir(at(), limit=PAGE_MAX + 1), InvalidArgument),
        (ReadDir(at(), b"x" * 256), NameTooLong),
        (ReadDir(at("d/a")), NotADirectory),
        (GetXattr(at(), b"foo.x"), NotSupported),
        (GetXattr(at(), b"user.x"), NoAttribute),
        (ReadEvents(-1), CursorTooOld),
        (ReadEvents(10**6), InvalidArgument),
        (ReadEvents(0, 0), InvalidArgument),
    ],
)
def test_refused_reads(shard: Shard, request_: Read, error: type) -> None:
    with pytest.raises(error):
        shard.read(request_)


def test_a_callers_own_data_are_checked_for_reads_too(shard: Shard) -> None:
    with pytest.raises(InvalidArgument):
        shard.read(StatFs(), Caller(-1))


# ---------------------------------------------------------------- directories


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6])
def test_pages_of_a_directory_in_the_order_of_the_bytes(shard: Shard, limit: int) -> None:
    names = [name for name, _ in entries(shard, at("d"), 0, limit)]
    assert names == [b"a", b"b", b"c", b"d", b"e"]


def test_what_a_page_says(shard: Shard) -> None:
    page = shard.read(ReadDir(at("d"), b"b", 2))
    assert isinstance(page, DirPage)
    assert [entry.name for entry in page.entries] == [b"c", b"d"]
    assert (page.more, page.after, page.directory) == (True, b"d", shard.stat("d"))
    assert page.entries[0].attr is None
    assert page.entries[0].inode == shard.stat("d/c").inode
    rest = shard.read(ReadDir(at("d"), page.after, 2, plus=True))
    assert isinstance(rest, DirPage)
    assert (len(rest.entries), rest.more, rest.entries[0].attr) == (1, False, shard.stat("d/e"))
    empty = shard.read(ReadDir(at("d"), b"e", 2))
    assert isinstance(empty, DirPage)
    assert (empty.entries, empty.more, empty.after) == ((), False, b"e")


def test_names_that_stay_are_listed_once_whatever_happens_between_the_pages(shard: Shard) -> None:
    first = shard.read(ReadDir(at("d"), limit=2))
    assert isinstance(first, DirPage)
    shard.do(Unlink(at("d"), b"b"))
    shard.do(Create(at("d"), b"aa", 0o644))
    shard.do(Create(at("d"), b"bb", 0o644))
    rest = shard.read(ReadDir(at("d"), first.after))
    assert isinstance(rest, DirPage)
    assert [entry.name for entry in rest.entries] == [b"bb", b"c", b"d", b"e"]


def test_listing_needs_r(shard: Shard) -> None:
    shard.do(SetAttr(at("d"), mode=0o711))
    with pytest.raises(PermissionDenied):
        shard.read(ReadDir(at("d")), ALICE)
    assert shard.read(ReadDir(at("d")))


# ---------------------------------------------------------------- attributes, totals, volume


def test_extended_attributes_by_caller(shard: Shard) -> None:
    names = NamesReply((b"trusted.t", b"user.a", b"user.z"))
    assert shard.read(ListXattr(at("d/a"))) == names
    assert shard.read(ListXattr(at("d/a")), ALICE) == NamesReply((b"user.a", b"user.z"))
    assert shard.read(GetXattr(at("d/a"), b"trusted.t")) == BytesReply(b"2")
    with pytest.raises(NoAttribute):
        shard.read(GetXattr(at("d/a"), b"trusted.t"), ALICE)
    with pytest.raises(PermissionDenied):
        shard.read(GetXattr(at("d/a"), b"user.a"), ALICE)
    shard.do(SetAttr(at("d/a"), mode=0o644))
    assert shard.read(GetXattr(at("d/a"), b"user.a"), ALICE) == BytesReply(b"")


def test_totals_and_volume(shard: Shard) -> None:
    shard.do(SetAttr(at("d/a"), size=50))
    assert shard.read(StatFs()) == StatFsReply(8, 53)
    assert shard.usage("d") == (5, 50)
    reply = shard.read(GetVolume())
    assert isinstance(reply, VolumeReply)
    assert (reply.volume, reply.kind, reply.owner_epoch) == (VOLUME.volume, "memory", 1)
    with pytest.raises(NotFound):
        StateMachine(MemoryKV()).read(ROOT, GetVolume())


# ---------------------------------------------------------------- events


def events(shard: Shard, cursor: int, limit: int = 256) -> EventsReply:
    """Read one page of events."""
    reply = shard.read(ReadEvents(cursor, limit))
    assert isinstance(reply, EventsReply)
    return reply


def test_the_feed_is_for_those_who_may_list_the_root() -> None:
    shard = Shard()
    shard.do(SetAttr(at(), mode=0o711))
    events(shard, 0)
    with pytest.raises(PermissionDenied):
        shard.machine.read(ALICE, ReadEvents(0))


def test_a_cursor_gives_every_event_above_it_once() -> None:
    shard = Shard()
    start = shard.machine.version
    shard.entry(*[shard.command(Mkdir(at(), b"%d" % n, 0o755)) for n in range(5)])
    shard.entry(*[shard.command(Create(at("0"), b"%d" % n, 0o755)) for n in range(5)])
    shard.fails(Create(at("0"), b"0", 0o644))
    present = shard.machine.version
    everything = events(shard, start)
    assert [event.version for event in everything.events] == list(range(start + 1, start + 11))
    assert (everything.cursor, everything.more) == (present, False)
    assert everything.events[0].wall_ns == everything.events[4].wall_ns == shard.stat("4").ctime_ns
    assert everything.events[0].session == shard.session
    for cursor in range(start, present + 1):
        left = [event.version for event in events(shard, cursor).events]
        assert left == list(range(cursor + 1, start + 11))
    first = events(shard, start, 1)
    assert (len(first.events), first.cursor, first.more) == (5, start + 5, True)
    second = events(shard, first.cursor, 1)
    assert (len(second.events), second.cursor, second.more) == (5, present, False)
    assert events(shard, present) == EventsReply((), present, more=False)


def test_a_trimmed_cursor_is_too_old() -> None:
    shard = Shard()
    start = shard.machine.version
    for n in range(4):
        shard.mkdir(str(n))
    shard.do(TrimEvents(start + 3, 100), session=0)
    with pytest.raises(CursorTooOld):
        events(shard, start)
    below = shard.machine.counters.first_event
    assert [event.version for event in events(shard, below).events] == [start + 3, start + 4]


def test_a_page_of_events_is_bounded_by_its_size() -> None:
    shard = Shard()
    start, count = shard.machine.version, 4
    for part in range(count):
        names = tuple(b"%d-%0240d" % (part, n) for n in range(BULK_NAMES_MAX))
        shard.do(BulkCreate(at(), names, 0o644))
    seen, cursor, pages = [], start, 0
    while True:
        page = events(shard, cursor)
        seen += [event.version for event in page.events]
        pages += 1
        if not page.more:
            break
        assert page.cursor > cursor
        cursor = page.cursor
    assert seen == list(range(start + 1, start + 1 + count))
    assert pages > 1


def test_a_removed_tree_makes_one_event(shard: Shard) -> None:
    version = shard.machine.version
    shard.do(RemoveTree(at(), b"d"))
    assert [(event.name, event.chain) for event in events(shard, version).events] == [(b"d", (1,))]
