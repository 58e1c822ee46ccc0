"""What must hold of bodies, their ended holds and shared objects, recomputed from all records."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import cast

from nokv.state import keys
from nokv.state.branches import PRESENT, get_at
from nokv.state.collect import counters_of
from nokv.state.extents import Hold, holds_of
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.port import KV
from nokv.state.records import (
    Drop,
    Inode,
    body_of,
    born_of,
    decode_chunk,
    decode_drop,
    decode_inode,
    decode_kept,
    decode_session,
    is_whiteout,
)
from nokv.state.txn import Present, Txn
from nokv.types.limits import CHUNK_BYTES, EXTENTS_PER_CHUNK_MAX
from nokv.types.values import StoredChunk

ChunkKey = tuple[int, int, int, int]
"""(view, inode, body, chunk)."""

_LAST = b"\xff" * 9


def check_holds(source: KV | Source) -> None:
    """Raise AssertionError, naming the record, for the first thing that does not hold."""
    state = _State(source)
    _check_bodies(state)
    _check_drops(state)
    _check_kept(state)
    _check_refs(state)
    _check_views(state)


class _State:
    """The records that the checks compare, decoded; and what each view shows."""

    def __init__(self, source: KV | Source) -> None:
        self.counters = counters_of(cast("Source", source))
        if isinstance(source, Present):
            self.present = source
        else:
            self.present = Txn(cast("KV", source), self.counters).present
        self.chunks: dict[ChunkKey, StoredChunk] = {
            keys.chunk_parts(key): decode_chunk(body_of(value))
            for key, value in self.rows(Family.CHUNK)
            if not is_whiteout(value)
        }
        self.drops: dict[int, Drop] = {
            int.from_bytes(key, "big"): decode_drop(value) for key, value in self.rows(Family.DROP)
        }
        self.history = dict(self.rows(Family.HISTORY))

    def rows(self, family: Family) -> list[tuple[bytes, bytes]]:
        """Return a whole family."""
        return list(self.present.own_scan(family, b"\x00", _LAST))

    def inode(self, view: int, ino: int) -> Inode | None:
        """Return what a view shows as an inode, whether anything leads to it or not."""
        value = get_at(self.present, Family.INODE, keys.inode(view, ino), PRESENT)
        return None if value is None else decode_inode(body_of(value))

    def created(self, view: int) -> int:
        """Return the version from which on holds are the view's own."""
        record = self.present.view(view)
        assert record is not None, f"records of view {view}, which does not exist"
        return record.created if view else 0

    def is_live(self, key: ChunkKey) -> bool:
        """Whether the chunk belongs to the body that its file has now, in a view that lives."""
        view, owner = self.present.view(key[0]), self.inode(key[0], key[1])
        dead = view is not None and view.dead
        return not dead and owner is not None and owner.body == key[2]


def _check_bodies(state: _State) -> None:
    """Chunk records belong to the body of an inode or to a drop row, and are well formed."""
    dropped = {
        (drop.view, drop.inode, drop.body) for drop in state.drops.values() if not drop.history
    }
    for row, value in state.rows(Family.INODE):
        if is_whiteout(value):
            continue
        node, inode = keys.U64X2.unpack(row), decode_inode(body_of(value))
        assert inode.body < state.counters.next_body, f"body {inode.body} was never minted"
        if inode.body:
            assert (*node, inode.body) not in dropped, f"the body of {node} is its own and dropped"
    for key, chunk in state.chunks.items():
        live, view = state.is_live(key), state.present.view(key[0])
        assert live or key[:3] in dropped or (view is not None and view.dead), (
            f"chunk {key} belongs to no body"
        )
        _check_chunk(state, key, chunk)
        owner = state.inode(key[0], key[1])
        if live and owner is not None:
            last = chunk.extents[-1]
            end = key[3] * CHUNK_BYTES + last.offset + last.length
            assert end <= owner.size, f"chunk {key} ends at {end}, beyond the size {owner.size}"


def _check_chunk(state: _State, key: ChunkKey, chunk: StoredChunk) -> None:
    assert 1 <= len(chunk.extents) <= EXTENTS_PER_CHUNK_MAX, f"extents of chunk {key}"
    end = 0
    for extent in chunk.extents:
        assert extent.offset >= end, f"extents of chunk {key} overlap"
        assert extent.length > 0, f"chunk {key} has an extent of no bytes"
        end = extent.offset + extent.length
        assert 0 < extent.born <= state.counters.version, f"chunk {key} has an unborn hold"
        if extent.object < 0:
            assert len(extent.data) == extent.length, f"inline data of chunk {key}"
        else:
            length = chunk.objects[extent.object].length
            assert extent.object_offset + extent.length <= length, f"objects of chunk {key}"
    assert end <= CHUNK_BYTES, f"chunk {key} ends beyond its size"
    used = {extent.object for extent in chunk.extents if extent.object >= 0}
    assert used == set(range(len(chunk.objects))), f"objects of chunk {key} that nothing uses"


def _name(hold: Hold) -> tuple[bytes, int]:
    obj, born = hold
    return keys.object_prefix(obj), born


def _check_drops(state: _State) -> None:
    """A drop row ends holds that no record of the present has, and owns the history it names."""
    for number, drop in state.drops.items():
        assert number < state.counters.next_drop, f"drop row {number} was never numbered"
        assert drop.born <= drop.death <= state.counters.version, f"drop row {number}: {drop}"
        assert drop.born >= state.created(drop.view), f"drop row {number} ends what is not its own"
        if not drop.history:
            assert not drop.objects, f"drop row {number} of a whole body names objects"
            continue
        value = state.history.get(drop.history)
        if value is None:
            continue
        family, record, death = keys.history_parts(drop.history)
        assert family == Family.CHUNK, f"drop row {number} names a {family.name} row"
        assert death == drop.death, f"drop row {number} and its history end apart"
        present = state.chunks.get(keys.chunk_parts(record))
        named = set() if present is None else set(map(_name, holds_of(present)))
        ended = set(map(_name, zip(drop.objects, drop.births, strict=True)))
        assert not named & ended, f"drop row {number} ends what the chunk still has"
        before = set() if is_whiteout(value) else holds_of(decode_chunk(body_of(value)))
        assert ended <= set(map(_name, before)), f"drop row {number} ends what was never there"
        assert drop.born <= min(drop.births, default=drop.death), f"drop row {number} is too young"
    owned = {drop.history for drop in state.drops.values() if drop.history}
    for row, value in state.history.items():
        if row[keys.VIEW_BYTES] == Family.CHUNK:
            assert row in owned, f"history of a chunk that no drop row owns: {row.hex()}"
            youngest = min(d.born for d in state.drops.values() if d.history == row)
            assert youngest <= born_of(value), f"a drop row younger than its record: {row.hex()}"


def _check_kept(state: _State) -> None:
    """The counts of what pins keep are those of the drop rows, each under the pins of its time."""
    wanted: dict[bytes, list[int]] = defaultdict(lambda: [0, 0])
    for number, drop in state.drops.items():
        if drop.pins is None:
            continue
        oldest, newest = drop.pins
        assert drop.born <= oldest <= newest < drop.death, f"drop row {number}: pins {drop.pins}"
        count = wanted[keys.kept(drop.view, newest, oldest)]
        count[0] += drop.size_bytes
        count[1] += 1
    end = keys.after_prefix(keys.KEPT_PREFIX)
    rows = state.present.own_scan(Family.META, keys.KEPT_PREFIX, end)
    found = {key: decode_kept(value) for key, value in rows}
    assert {k: [v.size_bytes, v.holds] for k, v in found.items()} == wanted, "bytes of pins"


def _check_refs(state: _State) -> None:
    """Once an object has several holds each has a REF row, until it ends; no row is without one."""
    live: dict[bytes, set[bytes]] = defaultdict(set)
    ended: dict[bytes, set[bytes]] = defaultdict(set)
    for key, chunk in state.chunks.items():
        holds = live if state.is_live(key) else ended
        for obj, born in holds_of(chunk, state.created(key[0])):
            holds[keys.object_prefix(obj)].add(keys.ref(obj, *key, born))
        for obj in chunk.objects:
            _check_leased(state, obj.session, obj.upload)
    for drop in state.drops.values():
        if drop.history:
            key = keys.chunk_parts(keys.history_parts(drop.history)[1])
            for obj, born in zip(drop.objects, drop.births, strict=True):
                ended[keys.object_prefix(obj)].add(keys.ref(obj, *key, born))
    refs: dict[bytes, set[bytes]] = defaultdict(set)
    for row, _ in state.rows(Family.REF):
        refs[row[:-40]].add(row)
    for name, rows in refs.items():
        loose = rows - live[name] - ended[name]
        assert not loose, f"REF rows {[row.hex() for row in loose]} without a hold"
    for name, rows in live.items():
        if name in refs:
            assert rows <= refs[name], f"a hold without a REF row, of the shared {name.hex()}"
        else:
            assert len(rows | ended[name]) == 1, f"a shared object without REF rows: {name.hex()}"


def _check_leased(state: _State, session_id: int, upload: int) -> None:
    value = state.present.own(Family.SESSION, keys.session(session_id))
    if value is not None:
        assert upload < decode_session(value).next_upload, "an object lies in no leased upload"


def _check_views(state: _State) -> None:
    """Each view counts the drop rows that name it."""
    waiting = Counter(drop.view for drop in state.drops.values() if drop.view)
    for row, _ in state.rows(Family.VIEW):
        number = int.from_bytes(row, "big")
        view = state.present.view(number)
        assert view is not None
        assert view.drops == waiting.pop(number, 0), f"drop rows of view {number}: {view.drops}"
    assert not waiting, f"drop rows of views that are gone: {sorted(waiting)}"
