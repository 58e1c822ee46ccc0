"""What a pin alone keeps: bytes whose holds ended, counted by the pins that they wait for.

A hold [born, death) waits for the pins in it, which are neighbours: from the first at or above its
birth to the newest below its death. A row of META counts the holds of a view by that pair, as it
was when they ended. Pins arise later only above every death, or where one is, and they go: so the
pair that counts today is found from the stored one and the pins of today, and no row moves.

It counts holds, each in full, by the contents that they show. Whether another hold, live or kept by
another pin, has the same objects is not asked: that would take all references of each object of
each body, and an answer would be old with the next copy.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.pinned import Shard
from nokv.state.records import Drop, Kept, Snapshot, decode_kept
from nokv.state.txn import Txn

_META = Family.META


def note(txn: Txn, drop: Drop) -> Drop:
    """Count a hold that ends, if a pin keeps it; return its row, which says under which pins."""
    if not drop.size_bytes:
        return drop
    pins = txn.pins(drop.view)
    first, behind = bisect_left(pins, drop.born), bisect_left(pins, drop.death)
    if first == behind:
        return drop
    counted = msgspec.structs.replace(drop, pins=(pins[first], pins[behind - 1]))
    _add(txn, counted, 1)
    return counted


def forget(txn: Txn, drop: Drop) -> None:
    """Count a hold no more: its row goes."""
    if drop.pins is not None:
        _add(txn, drop, -1)


def _add(txn: Txn, drop: Drop, sign: int) -> None:
    assert drop.pins is not None, "a hold that no pin keeps"
    first, last = drop.pins
    key = keys.kept(drop.view, last, first)
    value = txn.get(_META, key)
    old = Kept() if value is None else decode_kept(value)
    new = Kept(old.size_bytes + sign * drop.size_bytes, old.holds + sign)
    assert new.size_bytes >= 0, f"{new.size_bytes} bytes are kept"
    if new.holds:
        txn.set_row(_META, key, txn.encode(new))
    else:
        assert not new.size_bytes, f"{new.size_bytes} bytes of nothing are kept"
        txn.delete_row(_META, key)


def alone(shard: Shard, snapshot: Snapshot) -> Kept:
    """Return what nothing but one snapshot keeps, leases and the collector's grace apart."""
    size_bytes = holds = 0
    for view in (snapshot.view, *(one.view for one in snapshot.nested)):
        found = _alone(shard, view, snapshot.version)
        size_bytes, holds = size_bytes + found.size_bytes, holds + found.holds
    return Kept(size_bytes, holds)


def _alone(shard: Shard, view: int, version: int) -> Kept:
    """Return what one pinned version of a view keeps alone: nothing where it has several pins."""
    prefix = keys.pack2(view, version)
    rows = shard.own_scan(Family.PIN, prefix, keys.after_prefix(prefix))
    next(rows, None)
    if next(rows, None) is not None:
        return Kept()
    pins = shard.pins(view)
    at = bisect_left(pins, version)
    if at == len(pins) or pins[at] != version:
        return Kept()
    before = pins[at - 1] if at else -1
    end = pins[at + 1] if at + 1 < len(pins) else 2**64 - 1
    size_bytes = holds = 0
    start, stop = keys.kept(view, version, 0), keys.kept(view, end, 0)
    for key, value in shard.own_scan(_META, start, stop):
        if before < keys.kept_first(key) <= version:
            kept = decode_kept(value)
            size_bytes, holds = size_bytes + kept.size_bytes, holds + kept.holds
    return Kept(size_bytes, holds)
