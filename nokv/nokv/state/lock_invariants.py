"""What holds of all lock tables between two entries (see `nokv.state.invariants`)."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.locks import EMPTY, LockTable, conflict, decode_table, owner_of, settle
from nokv.state.pinned import Source
from nokv.state.records import Counters, Session


def check_locks(source: Source, counters: Counters, sessions: dict[int, Session]) -> None:
    """Raise AssertionError for a table, an index row or a count that should not be."""
    index: set[bytes] = set()
    waits: dict[bytes, bytes] = {}
    counts: Counter[int] = Counter()
    tables = 0
    for key, value in source.scan(Family.LOCK, b"", keys.LOCK_INDEX):
        place, table = keys.lock_parts(key), decode_table(value)
        tables += 1
        assert table != EMPTY, f"an empty lock table {place}"
        _check_table(place, table)
        for owner in (*map(owner_of, table.holds), *map(owner_of, table.waits)):
            counts[owner[0]] += 1
            index.add(keys.lock_of(*owner, key))
        waits |= {keys.lock_wait(w.session, w.owner, w.ticket): key for w in table.waits}
    rows = dict(source.scan(Family.LOCK, keys.LOCK_INDEX, b"\xff" * 9))
    assert rows == dict.fromkeys(index, b"") | waits, "the index of locks"
    assert counters.locks == tables, f"{tables} lock tables, {counters.locks} counted"
    for number, session in sessions.items():
        assert session.locks == counts[number], f"session {number:x}: a wrong count of locks"
        assert not (session.died and counts[number]), f"locks of session {number:x}, which ended"
    assert set(counts) <= set(sessions), "locks of no session"


def _check_table(place: tuple[int, int, int], table: LockTable) -> None:
    for number, hold in enumerate(table.holds):
        assert 0 <= hold.start < hold.end, f"an empty range in {place}"
        for other in table.holds[number + 1 :]:
            assert not conflict(hold, other), f"two locks of {place} conflict"
    for owner in sorted({owner_of(hold) for hold in table.holds}):
        for one, other in pairwise(hold for hold in table.holds if owner_of(hold) == owner):
            assert one.end <= other.start, f"ranges of one owner overlap in {place}"
            joined = one.end == other.start and one.write == other.write
            assert not joined, f"neighbouring ranges alike in {place}"
    starts = [(hold.start, hold.session, hold.owner) for hold in table.holds]
    assert starts == sorted(starts), f"ranges out of order in {place}"
    tickets = [wait.ticket for wait in table.waits]
    assert tickets == sorted(set(tickets)), f"the queue of {place} is out of order"
    assert not settle(table).granted, f"a request in {place} waits for nothing"
