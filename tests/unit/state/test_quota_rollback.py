"""A rollback is no way around a quota."""

from __future__ import annotations

from tests.unit.state.shard import ALICE, at
from tests.unit.state.viewing import SECOND_NS, tree

from nokv.errors import QuotaExceeded
from nokv.types.commands import Create, SetAttr
from nokv.types.copies import GetQuota, QuotaReply, SetQuota
from nokv.types.views import HELD, Rollback, SnapshotCreate


def test_a_directory_that_is_rolled_back_keeps_its_quota() -> None:
    shard = tree()
    shard.do(SetAttr(at(), mode=0o777))
    shard.mkdir("mine", caller=ALICE)
    shard.do(SnapshotCreate(at("mine"), "free", b"/mine", HELD), ALICE)
    shard.do(SetQuota(at("mine"), 1, 500))
    create = Create(at("mine"), b"f", 0o644)
    for _ in range(2):
        shard.do(create, ALICE)
        assert shard.fails(Create(at("mine"), b"g", 0o644), ALICE) is QuotaExceeded
        shard.do(Rollback(at(), b"mine", "free", b"/mine", SECOND_NS), ALICE)
        assert shard.read(GetQuota(at("mine"))) == QuotaReply(0, 0, 1, 500)
        shard.check()
    shard.do(SetQuota(at("mine"), 0, 0))
    shard.do(SnapshotCreate(at("mine"), "second", b"/mine", HELD))
    shard.do(Rollback(at(), b"mine", "free", b"/mine", SECOND_NS), ALICE)
    assert shard.read(GetQuota(at("mine"))) == QuotaReply(0, 0, 0, 0)
    shard.settle()
