"""Each rule of views, switched off, is missed by the tests: they see what they claim to see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from tests.unit.state import test_views
from tests.unit.state.view_world import World

from nokv.errors import NokvError
from nokv.state import detach, ops_view, reap_views, views
from nokv.state.context import Context, view_of
from nokv.state.families import Family
from nokv.state.records import Pin
from nokv.state.txn import Txn

SEEDS = 60

Patch = tuple[object, str, Callable[..., Any]]


def _nothing(*_: object, **__: object) -> None:
    """Take the place of what is switched off."""


def _no_views(*_: object) -> tuple[()]:
    return ()


def _past_all(source: Any, view: int, version: int) -> tuple[int, int]:
    record = view_of(source, view)
    while record.origin is not None:
        view, version = record.origin, record.origin_version
        record = view_of(source, view)
    return view, version


def _end_at_once(ctx: Context, number: int) -> None:
    record = ctx.txn.view(number)
    if record is not None and record.dead:
        views.release_origin(ctx, number, record)
        ctx.txn.delete_view(number)


_put_pin, _merge, _abort = Txn.put_pin, Txn.merge, Txn.abort
_late: list[tuple[int, int, int, Pin]] = []


def _put_pin_late(self: Txn, view: int, version: int, pin_id: int, pin: Pin) -> None:
    del self
    _late.append((view, version, pin_id, pin))


def _merge_late(self: Txn) -> None:
    for one in _late:
        _put_pin(self, *one)
    _late.clear()
    _merge(self)


def _abort_late(self: Txn) -> None:
    _late.clear()
    _abort(self)


_end_in_branch = Txn._end_in_branch


def _no_late_whiteout(self: Txn, family: Family, key: bytes, born: int, *, hide: bool) -> None:
    _end_in_branch(self, family, key, born, hide=hide and born == self.version)


def _no_whiteout(self: Txn, family: Family, key: bytes, born: int, *, hide: bool) -> None:
    del hide
    _end_in_branch(self, family, key, born, hide=False)


RULES: dict[str, Iterable[Patch]] = {
    "pins count before their command writes": [
        (Txn, "put_pin", _put_pin_late),
        (Txn, "merge", _merge_late),
        (Txn, "abort", _abort_late),
    ],
    "own records are noted from above": [(Context, "note_changed", _nothing)],
    "snapshots and copies take nested views along": [(ops_view, "nested_below", _no_views)],
    "views below a detached tree die": [(detach, "kill_below", _nothing)],
    "an origin with own records is not passed over": [(views, "origin_at", _past_all)],
    "a dead view waits": [(reap_views, "end_view", _end_at_once)],
    "a reaped inode hides what the origin shows": [(Txn, "_end_in_branch", _no_late_whiteout)],
    "removals hide what the origin shows": [(Txn, "_end_in_branch", _no_whiteout)],
    "the origin ends with its last clone": [(views, "release_origin", _nothing)],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_switched_off_is_missed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, instead in RULES[rule]:
        monkeypatch.setattr(where, name, instead)
    for seed in range(SEEDS):
        world = World(seed)
        try:
            for _ in range(60):
                world.step()
            world.finish()
        except (AssertionError, NokvError, KeyError):
            return
    pytest.fail(f"{SEEDS} programs went well without: {rule}")


def test_backlinks_from_outside_are_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "_forget_outside", _nothing)
    with pytest.raises(AssertionError):
        test_views.test_names_outside_of_a_clone_do_not_count_there()
