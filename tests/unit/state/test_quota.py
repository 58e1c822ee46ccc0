"""Quotas of directories: what grows beyond them is refused, whatever the command."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files, inline, stored
from tests.unit.state.shard import ALICE, ROOT, at

from nokv.errors import (
    InvalidArgument,
    NokvError,
    NotADirectory,
    NotPermitted,
    QuotaExceeded,
    from_wire,
)
from nokv.types.commands import (
    Atomic,
    BulkCreate,
    Create,
    Link,
    Mkdir,
    Op,
    PublishMode,
    Rename,
    RenameFlag,
    SetAttr,
    StageBegin,
    StageSwap,
    Symlink,
    Unlink,
)
from nokv.types.copies import Copy, CopyMode, CopyRange, GetQuota, QuotaReply, SetQuota
from nokv.types.results import Made
from nokv.types.views import Clone, Rollback, SnapshotCreate, WorkspaceCreate


@pytest.fixture
def files() -> Files:
    """A directory d of three entries and ten bytes, with a quota of four and twenty."""
    shard = Files()
    shard.mkdir("d")
    shard.mkdir("d/e")
    shard.publish("d/e/f", inline(b"x" * 10))
    shard.create("d/g")
    shard.mkdir("out")
    shard.publish("out/big", inline(b"y" * 15))
    shard.do(SetQuota(at("d"), 4, 20))
    return shard


def quota(files: Files, path: str) -> tuple[int, int, int, int]:
    reply = files.read(GetQuota(at(path)))
    assert isinstance(reply, QuotaReply)
    return reply.entries, reply.size_bytes, reply.entries_max, reply.size_bytes_max


def refused(files: Files, op: Op) -> str:
    """The command must pass a quota; return the message and the hint."""
    before = [files.usage(path) for path in ("", "d", "d/e", "out")]
    (result,) = files.entry(files.command(op))
    error: NokvError = from_wire(result.code, result.message, result.hint)
    assert isinstance(error, QuotaExceeded), error
    assert [files.usage(path) for path in ("", "d", "d/e", "out")] == before
    files.check()
    return str(error)


def test_it_tells_the_directory(files: Files) -> None:
    files.create("d/e/h")
    message = refused(files, Create(at("d/e"), b"i", 0o644))
    assert "5 entries below /d" in message
    assert "may hold 4" in message
    assert quota(files, "d") == (4, 10, 4, 20)
    assert quota(files, "d/e") == (2, 10, 0, 0)


@pytest.mark.parametrize(
    "op",
    [
        BulkCreate(at("d/e"), (b"1", b"2"), 0o644),
        Atomic((Mkdir(at("d"), b"1", 0o755), Mkdir(at("d/1"), b"2", 0o755))),
        Symlink(at("d"), b"l", b"t" * 11),
        SetAttr(at("d/g"), size=11),
        Rename(at("out"), b"big", at("d"), b"big"),
        Rename(at("out"), b"big", at("d/e"), b"f2"),
        Rename(at("out"), b"big", at("d"), b"g", RenameFlag.EXCHANGE),
        Copy(at("out/big"), at("d"), b"c", CopyMode.CREATE, 0o644),
        Copy(at("out/big"), at("d"), b"g", CopyMode.REPLACE, 0o644),
        CopyRange(at("out/big"), at("d/g"), 0, 0, 15),
        Link(at("d/e/f"), at("d"), b"again"),
        Clone(at("out"), at("d"), b"clone"),
    ],
)
def test_growth_is_refused(files: Files, op: Op) -> None:
    if isinstance(op, Link):
        files.publish("d/e/f", inline(b"x" * 11))
    refused(files, op)


def test_publishing_is_refused(files: Files) -> None:
    for mode, path in ((PublishMode.CREATE, "d/n"), (PublishMode.REPLACE, "d/g")):
        parent, name = at("d"), path[2:].encode()
        refused(files, files.publishing(parent, name, stored(11), mode=mode))
    refused(files, files.publishing(at("d"), b"g", inline(b"z" * 11), mode=PublishMode.APPEND))
    files.publish("d/g", inline(b"z" * 10), publish_mode=PublishMode.APPEND)


def test_what_stays_within_or_shrinks_is_not(files: Files) -> None:
    files.do(SetQuota(at("d"), 1, 1))
    files.do(Rename(at("d/e"), b"f", at("d"), b"f"))
    files.do(Rename(at("d"), b"f", at("d"), b"g"))
    files.do(SetAttr(at("d/g"), size=9))
    files.do(SetAttr(at("d/g"), mode=0o600))
    files.do(Rename(at("d"), b"g", at("out"), b"g"))
    refused(files, Create(at("d"), b"n", 0o644))
    files.check()


def test_a_replaced_target_makes_room(files: Files) -> None:
    files.publish("d/g", inline(b"z" * 10))
    files.do(SetQuota(at("d"), 3, 25))
    files.do(Rename(at("out"), b"big", at("d"), b"g"))
    assert quota(files, "d") == (3, 25, 3, 25)
    files.check()


def test_a_smaller_one_takes_the_place_of_a_larger_one_also_over_the_quota(files: Files) -> None:
    files.do(SetQuota(at("d"), 0, 5))
    files.publish("out/small", inline(b"z" * 8))
    files.do(Rename(at("out"), b"small", at("d/e"), b"f"))
    assert files.usage("d") == (3, 8)


def test_a_swap_grows_by_the_difference_also_over_the_quota(files: Files) -> None:
    for mode, name in ((0o040755, b"e"), (0o100644, b"g")):
        begun = files.do(StageBegin(0, mode))
        assert isinstance(begun, Made)
        files.do(SetQuota(at("d"), 1, 1))
        files.do(StageSwap(0, begun.attr.inode, at("d"), name, 1))
        files.check()
    assert quota(files, "d") == (2, 0, 1, 1)


def test_limits_are_gone_with_zero(files: Files) -> None:
    files.do(SetQuota(at("d"), 0, 0))
    files.do(BulkCreate(at("d"), tuple(b"%d" % i for i in range(50)), 0o644))
    assert quota(files, "d")[2:] == (0, 0)


def test_who_sets_it_and_where(files: Files) -> None:
    assert files.fails(SetQuota(at("d"), 1, 1), ALICE) is NotPermitted
    assert files.fails(SetQuota(at("d/g"), 1, 1)) is NotADirectory
    assert files.fails(SetQuota(at("d"), -1, 1)) is InvalidArgument
    assert files.fails(SetQuota(at("d"), 1, 2**63)) is InvalidArgument
    files.do(SetQuota(at("d/e"), 1, 5), ROOT)
    refused(files, Create(at("d/e"), b"n", 0o644))


def test_through_the_root_of_a_view(files: Files) -> None:
    files.do(WorkspaceCreate(at("d"), b"w", 0o755))
    message = refused(files, Create(at("d/w"), b"n", 0o644))
    assert "below /d" in message
    files.do(Unlink(at("d"), b"g"))
    files.create("d/w/n")
    assert quota(files, "d")[0] == 4
    files.do(SetQuota(at("d/w"), 1, 3))
    assert "below /d/w" in refused(files, files.publishing(at("d/w"), b"n", inline(b"long")))


def test_a_clone_has_the_quotas_of_its_source(files: Files) -> None:
    files.do(Clone(at("d"), at("out"), b"c"))
    assert quota(files, "out/c") == (3, 10, 4, 20)
    files.create("out/c/n")
    refused(files, Create(at("out/c"), b"m", 0o644))
    files.create("d/n")


def test_a_rollback_that_grows_is_refused(files: Files) -> None:
    files.do(SnapshotCreate(at("d/e"), "before", b"/d/e"))
    files.do(Unlink(at("d/e"), b"f"))
    files.publish("d/g", inline(b"z" * 15))
    refused(files, Rollback(at("d"), b"e", "before", b"/d/e", 10**9))


def test_a_staged_tree_is_checked_early(files: Files) -> None:
    begun = files.do(StageBegin(0, 0o040755, at("d"), b"t"))
    assert isinstance(begun, Made)
    stage = begun.attr.inode
    inside = at(inode=stage)
    assert files.fails(files.publishing(inside, b"x", inline(b"z" * 11))) is QuotaExceeded
    assert files.fails(BulkCreate(inside, (b"1", b"2"), 0o644)) is QuotaExceeded
    files.create("d/n")
    assert files.fails(StageBegin(0, 0o040755, at("d"), b"t")) is QuotaExceeded
    again = files.do(StageBegin(0, 0o040755, at("d"), b"e"))
    assert isinstance(again, Made)
    stage = again.attr.inode
    files.publish_at(at(inode=stage), b"f", inline(b"z" * 20))
    files.do(StageSwap(0, stage, at("d"), b"e", 1))
    assert quota(files, "d") == (4, 20, 4, 20)
    assert quota(files, "d/e") == (1, 20, 0, 0)
    files.check()
