"""A leased body stays readable by its session, whatever becomes of the file's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.state.bodies import Files, content, inline, stored
from tests.unit.state.shard import ALICE, at

from nokv.errors import BodyGone, NokvError, PermissionDenied, Stale
from nokv.types.commands import (
    ExpireSession,
    PublishMode,
    RemoveTree,
    Rename,
    SessionMarks,
    SetAttr,
    StageBegin,
    StageMode,
    StageSwap,
    Unlink,
)
from nokv.types.reads import BodyMap, BodyMapReply
from nokv.types.results import Made
from nokv.types.values import At, Lease
from nokv.types.views import Clone


class Reader:
    """One open file of another session: its lease, and what it reads by it."""

    def __init__(self, files: Files, path: str) -> None:
        self.files = files
        self.session = files.open(b"reader".ljust(16))
        attr = files.stat(path)
        self.lease = Lease(0, attr.inode, attr.body, files.machine.version)
        frame = files.marks(
            1, session=self.session, floor=files.machine.version, leases=(self.lease,)
        )
        files.internal(SessionMarks((frame,)))

    def map(self, **changes: int) -> BodyMapReply:
        """Ask for the leased body by its handle."""
        lease = self.lease
        asked = {"session": self.session, "body": lease.body, "lease_version": lease.version}
        asked |= changes
        where = At(lease.view, lease.inode)
        value = self.files.read(BodyMap(where, 0, 2**62, **asked))
        assert isinstance(value, BodyMapReply)
        return value

    def show(self, size: int) -> bytes:
        """Return the first bytes of the leased body."""
        return content([(one.index, one.chunk) for one in self.map().chunks], size)

    def fails(self, **changes: int) -> type[NokvError]:
        """Ask for it and return the class of the error."""
        with pytest.raises(NokvError) as caught:
            self.map(**changes)
        return caught.type


def _unlink(files: Files) -> None:
    files.do(Unlink(at("d"), b"f"))


def _rename_over(files: Files) -> None:
    files.publish("d/g", inline(b"other"))
    files.do(Rename(at("d"), b"g", at("d"), b"f"))


def _swap_over(files: Files) -> None:
    made = files.do(StageBegin(0, 0o100644))
    assert isinstance(made, Made)
    files.do(StageSwap(0, made.attr.inode, at("d"), b"f", StageMode.REPLACE))


def _remove_tree(files: Files) -> None:
    files.do(RemoveTree(at(), b"d"))


def _remove_tree_and_reap(files: Files) -> None:
    files.do(RemoveTree(at(), b"d"))
    files.reap(1)


GONE: list[Callable[[Files], None]] = [
    _unlink,
    _rename_over,
    _swap_over,
    _remove_tree,
    _remove_tree_and_reap,
]


def _pass_time(files: Files) -> None:
    """Let the node's own session read on, the grace pass and the reaper come by."""
    files.raise_floor()
    files.reap()
    files.wait()


@pytest.fixture
def files() -> Files:
    """Return a shard with d/f, of one object and one run of bytes."""
    files = Files()
    files.mkdir("d")
    files.publish("d/f", stored(10), size=20)
    files.publish("d/f", inline(b"tail", 16), publish_mode=PublishMode.PATCH)
    return files


@pytest.mark.parametrize("end", GONE)
def test_a_file_that_is_gone_stays_readable(files: Files, end: Callable[[Files], None]) -> None:
    reader = Reader(files, "d/f")
    before = reader.show(20)
    assert before[:10] == b"\1" * 10
    assert before[16:] == b"tail"
    end(files)
    assert reader.show(20) == before
    _pass_time(files)
    assert files.collect() == []
    assert reader.show(20) == before
    assert reader.map().attr.nlink == 0
    assert reader.fails(body=0) is Stale
    assert reader.fails(body=reader.lease.body + 1) is Stale
    assert reader.fails(session=files.session) is Stale
    files.check()


@pytest.mark.parametrize("end", GONE)
def test_the_end_of_the_session_ends_it(files: Files, end: Callable[[Files], None]) -> None:
    reader = Reader(files, "d/f")
    end(files)
    files.internal(ExpireSession(reader.session))
    assert reader.fails() is Stale
    _pass_time(files)
    assert files.collect() == [(files.session, 1, 0, 0, 0)]
    assert reader.fails() is Stale
    files.check()


def test_a_body_that_was_patched_and_then_unlinked(files: Files) -> None:
    reader = Reader(files, "d/f")
    before = reader.show(20)
    files.publish("d/f", stored(10), publish_mode=PublishMode.PATCH)
    files.do(Unlink(at("d"), b"f"))
    _pass_time(files)
    assert files.collect() == []  # one row for the body: also for what no lease shows
    assert reader.show(20) == before
    files.internal(ExpireSession(reader.session))
    assert sorted(files.collect()) == [(files.session, n, 0, 0, 0) for n in (1, 2)]
    files.check()


def test_each_lease_of_a_body_shows_its_own_version(files: Files) -> None:
    first = Reader(files, "d/f")
    before = first.show(20)
    files.publish("d/f", inline(b"TAIL", 16), publish_mode=PublishMode.PATCH)
    second = Lease(0, first.lease.inode, first.lease.body, files.machine.version)
    leases = (first.lease, second)
    files.internal(SessionMarks((files.marks(2, session=first.session, leases=leases),)))
    files.publish("d/f", inline(b"last", 16), publish_mode=PublishMode.PATCH)

    def show(version: int) -> bytes:
        found = first.map(lease_version=version).chunks
        return content([(one.index, one.chunk) for one in found], 20)

    assert show(first.lease.version) == before
    assert show(second.version) == before[:16] + b"TAIL"
    for version in (0, first.lease.version + 1, files.machine.version, 2**63 - 1):
        assert first.fails(lease_version=version) is BodyGone
    files.internal(SessionMarks((files.marks(3, session=first.session, leases=leases[:1]),)))
    assert show(first.lease.version) == before
    assert first.fails(lease_version=second.version) is BodyGone
    files.do(Unlink(at("d"), b"f"))
    assert show(first.lease.version) == before
    assert first.fails(lease_version=second.version) is Stale
    files.check()


def test_a_replaced_body(files: Files) -> None:
    reader = Reader(files, "d/f")
    before = reader.show(20)
    files.publish("d/f", stored(5))
    _pass_time(files)
    assert files.collect() == []
    assert reader.show(20) == before
    assert reader.map().attr.size == 5
    assert reader.fails(session=files.session) is BodyGone
    files.internal(ExpireSession(reader.session))
    assert reader.fails() is BodyGone
    files.check()


def test_a_file_that_is_there_asks_for_permission(files: Files) -> None:
    reader = Reader(files, "d/f")
    files.do(SetAttr(at("d/f"), mode=0o600))
    lease = reader.lease
    where = At(0, lease.inode)
    request = BodyMap(where, 0, 9, 0, reader.session, lease.body, lease.version)
    with pytest.raises(PermissionDenied):
        files.read(request, ALICE)


def test_a_lease_that_is_given_up(files: Files) -> None:
    first = Reader(files, "d/f")
    files.do(Unlink(at("d"), b"f"))
    frame = files.marks(2, session=first.session, floor=files.machine.version)
    files.internal(SessionMarks((frame,)))
    assert first.fails() is Stale
    _pass_time(files)
    assert files.collect() == [(files.session, 1, 0, 0, 0)]


def _in_clone(files: Files) -> Reader:
    """Return a reader of c/f, a clone's file that has no record of its own."""
    files.do(Clone(at("d"), at(), b"c"))
    attr = files.stat("c/f")
    reader = Reader(files, "d/f")
    lease = Lease(attr.view, attr.inode, attr.body, files.machine.version)
    frame = files.marks(2, session=reader.session, floor=files.machine.version, leases=(lease,))
    files.internal(SessionMarks((frame,)))
    reader.lease = lease
    return reader


@pytest.mark.parametrize("how", ["unlinked", "replaced", "removed", "source removed"])
def test_a_file_of_a_clone_stays_readable(files: Files, how: str) -> None:
    reader = _in_clone(files)
    before = reader.show(20)
    assert before[16:] == b"tail"
    if how == "unlinked":
        files.do(Unlink(at("c"), b"f"))
    elif how == "replaced":
        files.publish("c/f", inline(b"new"))
    elif how == "removed":
        files.do(RemoveTree(at(), b"c"))
    else:
        files.do(Unlink(at("d"), b"f"))
        files.do(RemoveTree(at(), b"d"))
        files.do(Unlink(at("c"), b"f"))
    _pass_time(files)
    assert files.collect() == []
    assert reader.show(20) == before
    files.check()
    files.internal(ExpireSession(reader.session))
    assert reader.fails() in (Stale, BodyGone)
    if how == "source removed":
        files.do(RemoveTree(at(), b"c"))
        _pass_time(files)
        files.collect()
        _pass_time(files)
        files.collect()
        assert files.named() == set()
    files.check()
