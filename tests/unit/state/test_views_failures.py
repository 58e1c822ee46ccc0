"""Commands that fail after their pins count: nothing of them stays."""

from __future__ import annotations

from tests.unit.state.shard import at
from tests.unit.state.viewing import SECOND_NS, tree

from nokv.errors import QuotaExceeded
from nokv.state.machine import StateMachine
from nokv.types.commands import Unlink
from nokv.types.copies import SetQuota
from nokv.types.views import Clone, Rollback


def test_a_copy_that_a_quota_refuses_pins_nothing() -> None:
    shard = tree()
    shard.mkdir("q")
    shard.done(SetQuota(at("q"), 1, 0))
    assert shard.fails(Clone(at("a"), at("q"), b"c")) is QuotaExceeded
    assert shard.machine._txn.pins(0) == StateMachine(shard.kv)._txn.pins(0) == ()
    history = shard.machine.counters.history
    shard.done(Unlink(at("a"), b"x"))
    assert shard.machine.counters.history == history
    shard.check()


def test_a_rollback_that_a_quota_refuses_leaves_the_pins_as_they_were() -> None:
    shard = tree()
    shard.snapshot("a", "s")
    shard.done(Unlink(at("a"), b"x"))
    shard.done(SetQuota(at(), 0, 1))
    pins = shard.machine._txn.pins(0)
    assert shard.fails(Rollback(at(), b"a", "s", b"/a", SECOND_NS)) is QuotaExceeded
    assert shard.machine._txn.pins(0) == StateMachine(shard.kv)._txn.pins(0) == pins
    shard.check()
