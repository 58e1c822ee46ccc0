"""Which events a watch tells, and how: pure functions of a stored record and what is watched.

A record has the chains of the directories that it touches as they were then, so whether an event
lies below a directory is decided without any other state, also long afterwards (docs/namespace.md:
Watches).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import msgspec

from nokv.state.records import EventRecord, StoredEvent
from nokv.types.events import EventKind, places
from nokv.types.watch import Moved, WatchEvent

Chain = tuple[int, ...]

Place = tuple[int, int]
"""(view, inode)."""

NameIn = Callable[[Place, Place], bytes]
"""The name of an inode in a directory; empty if it is not there now, or has several names."""

_MOVES = (EventKind.RENAME, EventKind.EXCHANGE)


class Scope(msgspec.Struct, frozen=True):
    """What a watch shows. Watches with equal scopes are told the same bytes."""

    roots: frozenset[tuple[int, int]]
    """(view, inode) of the watched inode; several where rollbacks gave it further views."""
    recursive: bool = True
    kinds: frozenset[int] = frozenset()
    """Empty: all."""


class EventAge(msgspec.Struct, array_like=True, frozen=True):
    """An `EventRecord` of which only the time is looked at."""

    wall_ns: int
    chains: msgspec.Raw
    events: msgspec.Raw
    cluster_ns: int


decode_age = msgspec.msgpack.Decoder(EventAge).decode


def inodes_of(record: EventRecord) -> Iterator[int]:
    """Yield the inodes whose watches may have to be told of the record; some several times."""
    for chain in record.chains:
        yield from chain
    for event in record.events:
        yield event.inode


def tell(record: EventRecord, scope: Scope, after: int, name_in: NameIn) -> list[WatchEvent]:
    """Return what a watch tells of a record's events with a version above `after`."""
    told: list[WatchEvent] = []
    kinds = scope.kinds
    # Chains repeat within a record.
    found: dict[tuple[int, int], _Spot] = {}
    for event in record.events:
        if event.version <= after:
            continue
        key = (event.view, event.chain)
        at = found.get(key) or found.setdefault(key, _spot(record, scope, *key, name_in))
        to = _OUTSIDE
        if event.to_chain >= 0:
            key = (event.view, event.to_chain)
            to = found.get(key) or found.setdefault(key, _spot(record, scope, *key, name_in))
        if not (at.chain or to.chain) and not _is_root(event, scope):
            continue
        one = _told(event, at, to, record.wall_ns, name_in)
        if not kinds or one.kind in kinds:
            told.append(one)
    return told


def _is_root(event: StoredEvent, scope: Scope) -> bool:
    view = event.view if event.inode_view is None else event.inode_view
    inode = event.inode
    if event.kind == EventKind.ROLLBACK:
        # Also of a directory above: the new view is one where the watched inode was or is.
        inode = min(scope.roots)[1]
    return (view, inode) in scope.roots


class _Spot(NamedTuple):
    """Where a directory lies as the watch sees it."""

    chain: Chain
    """Empty: outside."""
    path: bytes | None


_OUTSIDE = _Spot((), b"")


def _spot(record: EventRecord, scope: Scope, view: int, number: int, name_in: NameIn) -> _Spot:
    chain = cut(record.chains[number], view, scope)
    return _Spot(chain, path_below(chain, view, name_in)) if chain else _OUTSIDE


def cut(chain: Chain, view: int, scope: Scope) -> Chain:
    """Return a directory's chain up to the watched one; empty if it is not shown.

    `view` is the one that the chain begins in; `-1 - v` in it says that v follows.
    """
    roots = scope.roots
    for position, step in enumerate(chain):
        if step < 0:
            view = -1 - step
        elif (view, step) in roots:
            return chain[: position + 1]
        elif not scope.recursive:
            break
    return ()


def path_below(chain: Chain, view: int, name_in: NameIn) -> bytes | None:
    """Return the path from the last directory of a cut chain to the first; None if unknown."""
    names: list[bytes] = []
    for directory, above in pairwise(places(view, chain)):
        name = name_in(directory, above)
        if not name:
            return None
        names.append(name)
    names.reverse()
    return b"/".join(names)


def _told(event: StoredEvent, at: _Spot, to: _Spot, wall_ns: int, name_in: NameIn) -> WatchEvent:
    """Return the event without what lies outside."""
    kind: int = event.kind
    name, to_name = event.name, event.to_name
    view = event.view if event.inode_view is None else event.inode_view
    if at.chain and not name and not event.names:
        name = name_in((view, event.inode), (event.view, at.chain[0]))
    if kind in _MOVES and bool(at.chain) != bool(to.chain):
        if kind == EventKind.RENAME and at.chain:
            kind, to_name = Moved.OUT.value, b""
        elif kind == EventKind.RENAME:
            kind, at, name, to, to_name = Moved.IN.value, to, to_name, _OUTSIDE, b""
        elif at.chain:
            to_name = b""
        else:
            name = b""
    return WatchEvent(
        event.version,
        kind,
        event.view,
        at.chain,
        at.path,
        name,
        view,
        event.inode,
        to.chain,
        to.path,
        to_name,
        event.size,
        event.generation,
        event.session,
        event.seq,
        event.names,
        wall_ns,
    )
