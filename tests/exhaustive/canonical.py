"""States that differ only in how far their counters went are the same state.

Nothing in the state machine depends on a version, an inode or a view number but by their order, and
nothing depends on time but by whether a lease or the grace is over. So a state is told by its rows
with every such number replaced by its rank. To tell the numbers apart wherever they stand, in keys
and in values, each kind counts in a range of its own (`RANGES`).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from nokv.state.families import Family
from nokv.state.keys import COUNTERS, POSITION, RECORD
from nokv.state.memory import MemoryKV

MILLION = 1_000_000
SPAN = 100_000
VERSIONS, INODES, BODIES, DROPS, JOBS, VIEWS, SEQUENCES, FRAMES = (
    kind * MILLION for kind in range(1, 9)
)
RANGES = (VERSIONS, INODES, BODIES, DROPS, JOBS, VIEWS, SEQUENCES, FRAMES)
TIMES = range(10**12, 10**17)
"""Cluster times; wall time stands still."""

WORD_BYTES = 8
BORN_BYTES = 8
LEFT_OUT = frozenset({Family.EVENT})
"""What no command and no read of the tree looks at."""

Rows = dict[Family, dict[bytes, bytes]]


def _kind(number: int) -> int:
    """Return the range that a number counts in; 0 for a number that means itself."""
    if number in TIMES:
        return TIMES.start
    kind = number // MILLION * MILLION
    return kind if kind in RANGES and number - kind < SPAN else 0


def _kept(rows: Rows) -> list[tuple[Family, bytes, Any]]:
    """Return the rows that make the state what it is, values decoded."""
    found: list[tuple[Family, bytes, Any]] = []
    for family, table in rows.items():
        for key, value in table.items():
            if family in LEFT_OUT or (family == Family.META and key in {COUNTERS, POSITION}):
                continue
            if family == Family.SESSION and key[WORD_BYTES:] != RECORD:
                continue
            found.append((family, key, _decoded(value)))
    return found


def _decoded(value: bytes) -> Any:
    """Return a value as plain objects: most records stand behind the version that wrote them."""
    for skip in (BORN_BYTES, 0):
        try:
            return value[:skip], msgspec.msgpack.decode(value[skip:])
        except msgspec.DecodeError:
            continue
    return value, None


def _numbers(thing: Any, found: set[int]) -> None:
    """Collect every number that only its rank matters of."""
    if isinstance(thing, bytes):
        at = 0
        while at + WORD_BYTES <= len(thing):
            number = int.from_bytes(thing[at : at + WORD_BYTES], "big")
            if _kind(number):
                found.add(number)
                at += WORD_BYTES
            else:
                at += 1
    elif isinstance(thing, int):
        if _kind(thing):
            found.add(thing)
    elif isinstance(thing, (list, tuple)):
        for inner in thing:
            _numbers(inner, found)


def _ranked(thing: Any, ranks: dict[int, int]) -> Any:
    """Replace the numbers by their ranks."""
    if isinstance(thing, bytes):
        parts, at = [], 0
        while at < len(thing):
            number = int.from_bytes(thing[at : at + WORD_BYTES], "big")
            if number in ranks and at + WORD_BYTES <= len(thing):
                parts.append(b"%d;" % ranks[number])
                at += WORD_BYTES
            else:
                parts.append(thing[at : at + 1])
                at += 1
        return b"".join(parts)
    if isinstance(thing, int):
        return ("#", _kind(thing), ranks[thing]) if thing in ranks else thing
    if isinstance(thing, (list, tuple)):
        return tuple(_ranked(inner, ranks) for inner in thing)
    return thing


def canonical(kv: MemoryKV, more: tuple[Any, ...] = ()) -> bytes:
    """Return a hash that states have in common which behave alike; `more` belongs to the state."""
    kept = _kept(kv.snapshot())
    numbers: set[int] = set()
    for _, key, value in kept:
        _numbers(key, numbers)
        _numbers(value, numbers)
    _numbers(more, numbers)
    ranks: dict[int, int] = {}
    for kind in (*RANGES, TIMES.start):
        ordered = sorted(number for number in numbers if _kind(number) == kind)
        ranks.update({number: rank for rank, number in enumerate(ordered)})
    rows = sorted((int(f), _ranked(key, ranks), repr(_ranked(v, ranks))) for f, key, v in kept)
    return blake2b(repr((rows, _ranked(more, ranks))).encode(), digest_size=16).digest()
