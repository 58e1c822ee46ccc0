"""A rollback is no way around a quota."""

from __future__ import annotations

from tests.unit.state.shard import ALICE, at
from tests.unit.state.viewing import SECOND_NS, tree

from nokv.errors import QuotaExceeded
from nokv.types.commands import Create, SetAttr
from nokv.types.copies import GetQuota, QuotaReply, SetQuota
from nokv.types.views import HELD, Rollback, SnapshotCreate


def test_below_it_the_quotas_are_those_of_the_snapshot() -> None:
    shard = tree()
    shard.mkdir("mine")
    for name in ("lower", "raised", "gone", "late"):
        shard.mkdir(f"mine/{name}")
    shard.workspace("mine/view")
    for name, limit in (("lower", 5), ("raised", 5), ("gone", 5), ("view", 5)):
        shard.do(SetQuota(at(f"mine/{name}"), limit, 0))
    shard.do(SnapshotCreate(at("mine"), "s", b"/mine", HELD))
    for name, limit in (("lower", 1), ("raised", 9), ("gone", 0), ("late", 3), ("view", 1)):
        shard.do(SetQuota(at(f"mine/{name}"), limit, 0))
    shard.do(SetQuota(at("mine"), 6, 0))
    for _ in range(2):
        shard.do(Rollback(at(), b"mine", "s", b"/mine", SECOND_NS))
        for name, limit in (("lower", 5), ("raised", 5), ("gone", 5), ("late", 0), ("view", 5)):
            assert shard.read(GetQuota(at(f"mine/{name}"))) == QuotaReply(0, 0, limit, 0), name
        assert shard.read(GetQuota(at("mine"))) == QuotaReply(5, 0, 6, 0)
    shard.do(Create(at("mine/raised"), b"f", 0o644))
    assert shard.fails(Create(at("mine/raised"), b"g", 0o644)) is QuotaExceeded, "by that above"
    shard.check()
    shard.settle()


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
