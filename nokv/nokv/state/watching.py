"""Which events a watch tells, and how: pure functions of a stored record and what is watched.

A record has the chains of the directories that it touches as they were then, so whether an event
lies below a directory is decided without any other state, also long afterwards (docs/namespace.md:
Watches).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nokv.state.records import EventRecord, StoredEvent
from nokv.types.events import EventKind
from nokv.types.watch import Moved, WatchEvent

Chain = tuple[int, ...]

_MOVES = (EventKind.RENAME, EventKind.EXCHANGE)


class Scope(msgspec.Struct, frozen=True):
    """What a watch shows. Watches with equal scopes are told the same bytes."""

    roots: frozenset[tuple[int, int]]
    """(view, inode) of the watched inode; several where rollbacks gave it further views."""
    recursive: bool = True
    kinds: frozenset[int] = frozenset()
    """Empty: all."""


def inodes_of(record: EventRecord) -> Iterator[int]:
    """Yield the inodes whose watches may have to be told of the record; some several times."""
    for chain in record.chains:
        yield from chain
    for event in record.events:
        yield event.inode


def tell(record: EventRecord, scope: Scope, after: int) -> list[WatchEvent]:
    """Return what a watch tells of a record's events with a version above `after`."""
    told: list[WatchEvent] = []
    kinds = scope.kinds
    # Chains repeat within a record; a chain is cut in the view that its events name.
    cuts: dict[tuple[int, int], Chain] = {}
    for event in record.events:
        if event.version <= after:
            continue
        chain = _cut_once(record, scope, event.view, event.chain, cuts)
        to_chain: Chain = ()
        if event.to_chain >= 0:
            to_chain = _cut_once(record, scope, event.view, event.to_chain, cuts)
        itself = (event.view, event.inode) in scope.roots
        if not (chain or to_chain or itself):
            continue
        one = _told(event, chain, to_chain, record.wall_ns)
        if not kinds or one.kind in kinds:
            told.append(one)
    return told


def _cut_once(
    record: EventRecord, scope: Scope, view: int, number: int, cuts: dict[tuple[int, int], Chain]
) -> Chain:
    key = (view, number)
    found = cuts.get(key)
    if found is None:
        found = cuts[key] = cut(record.chains[number], view, scope)
    return found


def cut(chain: Chain, view: int, scope: Scope) -> Chain:
    """Return a directory's chain up to the watched one; empty if it is not shown.

    `view` is the one that the chain begins in; `~view` in it says which one follows.
    """
    roots = scope.roots
    for position, step in enumerate(chain):
        if step < 0:
            view = ~step
        elif (view, step) in roots:
            return chain[: position + 1]
        elif not scope.recursive:
            break
    return ()


def _told(event: StoredEvent, chain: Chain, to_chain: Chain, wall_ns: int) -> WatchEvent:
    """Return the event without what lies outside."""
    kind: int = event.kind
    name, to_name = event.name, event.to_name
    if kind in _MOVES and bool(chain) != bool(to_chain):
        if kind == EventKind.RENAME and chain:
            kind, to_name = Moved.OUT.value, b""
        elif kind == EventKind.RENAME:
            kind, chain, name = Moved.IN.value, to_chain, to_name
            to_chain, to_name = (), b""
        elif chain:
            to_name = b""
        else:
            name = b""
    return WatchEvent(
        event.version,
        kind,
        event.view,
        chain,
        name,
        event.view,
        event.inode,
        to_chain,
        to_name,
        event.size,
        event.generation,
        event.session,
        event.seq,
        event.names,
        wall_ns,
    )
