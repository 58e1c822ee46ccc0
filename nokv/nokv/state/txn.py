"""The transaction of one entry: an overlay over the store, and a write set over the overlay.

Every command reads through its own writes, then the overlay, then the store. A command's write
set is merged into the overlay when it succeeds and dropped when it fails; the overlay goes to the
store, sorted, when the entry ends. Versioned writes decide here, and only here, what is kept:

    a record of birth b, changed at c, goes to history iff the newest pin of its view below c
    is at or above b,

and it is then indexed for reclaiming under that pin, so that dropping a pin finds exactly what
it alone held.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.port import KV
from nokv.state.records import BORN_BYTES, Counters, born_of
from nokv.types.formats import encode_at

_Layer = list[dict[bytes, bytes | None]]
_FAMILIES = tuple(Family)


PARENTS_MAX = 65_536
"""Directories whose parents are remembered."""


def _layer() -> _Layer:
    return [{} for _ in _FAMILIES]


class Present:
    """A `Source` that shows what is current between two entries: the store itself."""

    __slots__ = ("get", "parents", "scan")

    def __init__(self, kv: KV, parents: dict[tuple[int, int], int]) -> None:
        self.get = kv.get
        self.scan = kv.scan
        self.parents = parents


class Txn:
    """One entry's changes. `begin` a command, then `merge` or `abort` it; `flush` the entry."""

    def __init__(self, kv: KV, counters: Counters) -> None:
        self._kv = kv
        self._overlay = _layer()
        self._own = _layer()
        self._pins: dict[int, tuple[int, ...]] = {}
        self._pins_changed = False
        self.parents: dict[tuple[int, int], int] = {}
        """(view, directory) -> its parent, as the running command sees it: walks to the root are
        frequent. Never more than PARENTS_MAX after an entry."""
        self._replanted = False
        """Whether the running command made or moved a directory."""
        self.present = Present(kv, self.parents)
        self.counters = counters
        self.version = counters.version
        """Of the running command: every versioned write is born with it."""
        self._reload_pins()

    # ------------------------------------------------------------------ commands

    def begin(self) -> None:
        """Take the next version for a command."""
        self.counters.version += 1
        self.version = self.counters.version

    def merge(self) -> None:
        """Keep the command's writes."""
        overlay = self._overlay
        for number, own in enumerate(self._own):
            if own:
                overlay[number].update(own)
                own.clear()
        self._replanted = False
        if self._pins_changed:
            self._reload_pins()

    def abort(self) -> None:
        """Drop the command's writes. The counters are the caller's to put back."""
        for own in self._own:
            own.clear()
        if self._replanted:
            self.parents.clear()
            self._replanted = False
        if self._pins_changed:
            self._reload_pins()

    def flush(self) -> None:
        """Hand the overlay to the store, family by family, in the order of the keys."""
        assert not any(self._own), "a command is still open"
        for number, overlay in enumerate(self._overlay):
            if overlay:
                self._kv.write(_FAMILIES[number], sorted(overlay.items()))
                overlay.clear()
        if len(self.parents) > PARENTS_MAX:
            self.parents.clear()

    def set_parent(self, view: int, directory: int, parent: int) -> None:
        """Note where a directory that this command writes lies."""
        key = (view, directory)
        if self.parents.get(key) != parent:
            self.parents[key] = parent
            self._replanted = True

    # ------------------------------------------------------------------ reading

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value that this command sees, or None."""
        layer = self._own[family]
        if key in layer:
            return layer[key]
        layer = self._overlay[family]
        if key in layer:
            return layer[key]
        return self._kv.get(family, key)

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield what this command sees of [start, end). Writes during the scan are not seen."""
        changed = {
            key: value
            for layer in (self._overlay[family], self._own[family])
            for key, value in layer.items()
            if start <= key < end
        }
        stored = self._kv.scan(family, start, end, reverse=reverse)
        if not changed:
            yield from stored
            return
        fresh = ((k, v) for k, v in sorted(changed.items(), reverse=reverse) if v is not None)
        kept = (row for row in stored if row[0] not in changed)
        yield from heapq.merge(fresh, kept, key=lambda row: row[0], reverse=reverse)

    def encode(self, record: object) -> bytes:
        """Return a record's bytes at the state format in force."""
        return encode_at(record, self.counters.format)

    # ------------------------------------------------------------------ unversioned rows

    def set_row(self, family: Family, key: bytes, value: bytes) -> None:
        """Put a row that has no history of its own."""
        self._own[family][key] = value

    def delete_row(self, family: Family, key: bytes) -> None:
        """Delete such a row; an absent one is no error."""
        self._own[family][key] = None

    # ------------------------------------------------------------------ versioned records

    def put(self, family: Family, key: bytes, body: bytes) -> None:
        """Write a record, born with the running version; what a pin shows goes to history."""
        if self._pins:
            self._retire(family, key, self.version)
        self._own[family][key] = self.version.to_bytes(BORN_BYTES, "big") + body

    def put_fresh(self, family: Family, rows: list[tuple[bytes, bytes]]) -> None:
        """Write many records that are known not to exist, as `put` would."""
        if self._pins:
            for key, body in rows:
                self.put(family, key, body)
            return
        born = self.version.to_bytes(BORN_BYTES, "big")
        self._own[family].update([(key, born + body) for key, body in rows])

    def delete(self, family: Family, key: bytes, *, death: int | None = None) -> None:
        """Delete a record that died with this command, or at the earlier version `death`."""
        if self._pins:
            self._retire(family, key, self.version if death is None else death)
        self._own[family][key] = None

    def set_record(self, family: Family, key: bytes, body: bytes) -> None:
        """Write a record whose history the caller has kept (chunk records)."""
        self._own[family][key] = self.version.to_bytes(BORN_BYTES, "big") + body

    def keep(self, family: Family, key: bytes, value: bytes, death: int) -> bytes:
        """Put `value` into history whether pinned or not (chunk records), and return its key.

        It is indexed for reclaiming only under a pin: otherwise its drop row owns it.
        """
        row = keys.history(family, key, death)
        assert self.get(Family.HISTORY, row) is None, "one record dies once at a version"
        self._own[Family.HISTORY][row] = value
        self.counters.history += 1
        return row

    def _retire(self, family: Family, key: bytes, death: int) -> None:
        view = int.from_bytes(key[: keys.VIEW_BYTES], "big")
        pins = self._pins.get(view)
        if not pins:
            return
        below = bisect_left(pins, death)
        if not below:
            return
        newest = pins[below - 1]
        old = self.get(family, key)
        born = None if old is None else born_of(old)
        if born is None or born <= newest:
            self._own[Family.TOUCHED][keys.touched(newest, family, key)] = b""
        if old is not None and born is not None and born <= newest:
            assert born < death, "a record dies after its birth"
            self.keep(family, key, old, death)
            self._own[Family.RECLAIM][keys.reclaim(newest, born, family, key, death)] = b""

    # ------------------------------------------------------------------ pins

    def pins(self, view: int) -> tuple[int, ...]:
        """Return the versions at which the view is pinned, ascending, each once."""
        return self._pins.get(view, ())

    def pins_changed(self) -> None:
        """Say that this command wrote PIN rows: it must pin and unpin nothing and write no more."""
        self._pins_changed = True

    def pinned_within(self, view: int, born: int, death: int) -> bool:
        """Whether a pin of the view lies in [born, death)."""
        pins = self._pins.get(view, ())
        at = bisect_left(pins, born)
        return at < len(pins) and pins[at] < death

    def _reload_pins(self) -> None:
        found: dict[int, list[int]] = {}
        for key, _ in self.scan(Family.PIN, b"", b"\xff" * 8):
            view, version = keys.U64X2.unpack_from(key)
            versions = found.setdefault(view, [])
            if not versions or versions[-1] != version:
                versions.append(version)
        self._pins = {view: tuple(versions) for view, versions in found.items()}
        self._pins_changed = False
