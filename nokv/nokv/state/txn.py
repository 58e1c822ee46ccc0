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
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, KeysView, Mapping
from itertools import groupby, islice
from operator import itemgetter

import msgspec

from nokv.state import keys
from nokv.state.branches import LIVE, PRESENT, VERSIONED, Levels, Row, inherited, scan_at
from nokv.state.families import Family
from nokv.state.port import KV
from nokv.state.records import (
    BORN_BYTES,
    Counters,
    Pin,
    View,
    born_of,
    decode_pin,
    decode_view,
    is_whiteout,
    whiteout,
)
from nokv.types.formats import encode_at
from nokv.types.values import ROOT_VIEW

_Layer = list[dict[bytes, bytes | None]]
_FAMILIES = tuple(Family)
_INODE = Family.INODE
_PIN = Family.PIN
_VIEW = Family.VIEW


FRESH_MAX = 32
"""Up to so many new keys are put in order one by one."""

PARENTS_MAX = 65_536
"""Directories whose parents are remembered."""


def _layer() -> _Layer:
    return [{} for _ in _FAMILIES]


class Present:
    """A `Shard` that shows what is current between two entries: the store itself."""

    at_version = PRESENT

    def __init__(self, kv: KV, txn: Txn) -> None:
        self.own = kv.get
        self.own_scan = kv.scan
        self.parents = txn.parents
        self.shown = txn.shown
        self.view = txn.view
        self.pins = txn.pins
        self.pin_count = txn.pin_count
        self.readable = txn.readable
        self.get = kv.get
        self.scan = kv.scan

    def branch(self, *, branched: bool) -> None:
        """Say whether a view with an origin exists: while there is none the store shows all."""
        self.get = self._get if branched else self.own
        self.scan = self._scan if branched else self.own_scan

    def _get(self, family: Family, key: bytes) -> bytes | None:
        value = self.own(family, key)
        if key.startswith(LIVE) or family not in VERSIONED:
            return value
        return shown(self, family, key, value)

    def _scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[Row]:
        if start.startswith(LIVE) or family not in VERSIONED:
            return self.own_scan(family, start, end, reverse=reverse)
        return scan_at(self, family, start, end, PRESENT, reverse=reverse)

    def enter(self, number: int) -> None:
        """The present needs no pin."""


def shown(levels: Levels, family: Family, key: bytes, own: bytes | None) -> bytes | None:
    """Return what a view shows whose own record is `own`."""
    if own is None:
        return inherited(levels, family, key)
    return None if is_whiteout(own) else own


def _catch_up(ordered: list[bytes], rows: dict[bytes, bytes | None]) -> None:
    """Add to the ordered keys of a layer those that it got since: a dictionary's last ones.

    So a command that reads and writes by turns does not sort, or look at, all it wrote each time.
    """
    fresh = len(rows) - len(ordered)
    if fresh > FRESH_MAX:
        ordered.extend(islice(reversed(rows), fresh))
        ordered.sort()
    else:
        for key in islice(reversed(rows), fresh):
            insort(ordered, key)


class Txn:
    """One entry's changes. `begin` a command, then `merge` or `abort` it; `flush` the entry."""

    at_version = PRESENT

    def __init__(self, kv: KV, counters: Counters) -> None:
        self._kv = kv
        self._overlay = _layer()
        self._own = _layer()
        self._overlay_order: list[list[bytes]] = [[] for _ in _FAMILIES]
        self._own_order: list[list[bytes]] = [[] for _ in _FAMILIES]
        """Keys of the layers in order, as far as a scan has needed it: see `_catch_up`."""
        self._pins: dict[int, tuple[int, ...]] = {}
        """Pinned versions of each view that has any, ascending."""
        self._pin_counts: dict[int, int] = {}
        """PIN rows of each view that has any."""
        self._pin_twins: dict[tuple[int, int], int] = {}
        """(view, version) -> its PIN rows but one, where it has several."""
        self._pin_changes: list[tuple[int, int, int]] = []
        """(view, version, 1 or -1) of the rows that the running command has put and deleted."""
        self._views: dict[int, View] = {}
        self._branches: set[int] = set()
        """Views with an origin."""
        self._branched = False
        """Whether there are any, the running command's own among them."""
        self.shown: dict[tuple[Family, bytes], bytes | None] = {}
        self.parents: dict[tuple[int, int], int] = {}
        """(view, directory) -> its parent, as the running command sees it: walks to the root are
        frequent. Never more than PARENTS_MAX after an entry."""
        self._replanted = False
        """Whether the running command made or moved a directory."""
        self.present = Present(kv, self)
        self.counters = counters
        self.version = counters.version
        """Version of the running command: every versioned write is born with it."""
        self._load(kv)

    def _load(self, kv: KV) -> None:
        self._load_pins(kv)
        for key, value in kv.scan(Family.VIEW, b"", b"\xff" * 9):
            self._note_view(int.from_bytes(key, "big"), decode_view(value))
        self._branched = bool(self._branches)
        self.present.branch(branched=self._branched)

    def _note_view(self, number: int, view: View | None) -> None:
        if view is None:
            self._views.pop(number, None)
            self._branches.discard(number)
        else:
            self._views[number] = view
            if view.origin is not None or view.whiteouts:
                self._branches.add(number)
            else:
                self._branches.discard(number)

    # ------------------------------------------------------------------ commands

    def begin(self) -> None:
        """Take the next version for a command."""
        self.counters.version += 1
        self.version = self.counters.version

    def merge(self) -> None:
        """Keep the command's writes."""
        overlay = self._overlay
        self._pin_changes.clear()
        if self._own[_VIEW]:
            self._keep_views(self._own[_VIEW])
        for number, own in enumerate(self._own):
            if own:
                overlay[number].update(own)
                own.clear()
                self._own_order[number].clear()
        self._replanted = False

    def abort(self) -> None:
        """Drop the command's writes. The counters are the caller's to put back."""
        if self._own[_VIEW]:
            # The numbers of its views are given again.
            self.shown.clear()
            self._replanted = True
            self._branched = bool(self._branches)
        for own, order in zip(self._own, self._own_order, strict=True):
            own.clear()
            order.clear()
        while self._pin_changes:
            view, version, change = self._pin_changes.pop()
            self._count_pin(view, version, -change)
        if self._replanted:
            self.parents.clear()
            self._replanted = False

    def flush(self) -> None:
        """Hand the overlay to the store, family by family, in the order of the keys."""
        assert not any(self._own), "a command is still open"
        for number, overlay in enumerate(self._overlay):
            if overlay:
                self._kv.write(_FAMILIES[number], sorted(overlay.items()))
                overlay.clear()
                self._overlay_order[number].clear()
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
        """Return the value that this command sees: what the key's view shows, or None."""
        layer = self._own[family]
        if key in layer:
            value = layer[key]
        else:
            layer = self._overlay[family]
            value = layer[key] if key in layer else self._kv.get(family, key)
        if not self._branched or key.startswith(LIVE) or family not in VERSIONED:
            return value
        return shown(self, family, key, value)

    def own(self, family: Family, key: bytes) -> bytes | None:
        """Return the row itself that this command sees, also a whiteout; None if there is none."""
        layer = self._own[family]
        if key in layer:
            return layer[key]
        layer = self._overlay[family]
        if key in layer:
            return layer[key]
        return self._kv.get(family, key)

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[Row]:
        """Yield what this command sees of [start, end); writes during the scan are not seen.

        Of a versioned family the range lies in one view, and the rows are what that shows.
        """
        if not self._branched or start.startswith(LIVE) or family not in VERSIONED:
            return self.own_scan(family, start, end, reverse=reverse)
        return scan_at(self, family, start, end, PRESENT, reverse=reverse)

    def own_scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[Row]:
        """Yield the rows themselves of [start, end), whiteouts too."""
        if not self._overlay[family] and not self._own[family]:
            return self._kv.scan(family, start, end, reverse=reverse)
        return self._changed_scan(family, start, end, reverse=reverse)

    def _changed_scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool
    ) -> Iterator[Row]:
        changed: dict[bytes, bytes | None] = {}
        for layer, order in ((self._overlay, self._overlay_order), (self._own, self._own_order)):
            rows, ordered = layer[family], order[family]
            _catch_up(ordered, rows)
            at, to = bisect_left(ordered, start), bisect_left(ordered, end)
            changed.update((key, rows[key]) for key in ordered[at:to])
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
        if not key.startswith(LIVE):
            self._mark_changed(key)
        self._own[family][key] = self.version.to_bytes(BORN_BYTES, "big") + body

    def put_fresh(self, family: Family, rows: list[tuple[bytes, bytes]]) -> None:
        """Write many records of one view that are known not to exist, as `put` would."""
        if not rows:
            return
        if not rows[0][0].startswith(LIVE):  # a whiteout may stand there
            for key, body in rows:
                self.put(family, key, body)
            return
        born = self.version.to_bytes(BORN_BYTES, "big")
        self._own[family].update([(key, born + body) for key, body in rows])
        pins = self._pins.get(ROOT_VIEW, ()) if family is _INODE else ()
        below = bisect_left(pins, self.version)
        if below:
            head = keys.touched(pins[below - 1], family, LIVE)
            self._own[Family.TOUCHED].update(
                [(head + key[keys.VIEW_BYTES :], b"") for key, _ in rows]
            )

    def delete(self, family: Family, key: bytes, *, death: int | None = None) -> None:
        """Delete a record that died with this command, or at the earlier version `death`.

        Where the origin shows the key a whiteout takes its place. With a `death` an inode alone
        leaves one: what dies so is reaped, nothing leads there any more but a handle.
        """
        if self._pins:
            # What is reaped was told of when its tree was detached.
            at = self.version if death is None else death
            self._retire(family, key, at, touch=death is None)
        if key.startswith(LIVE):
            self._own[family][key] = None
        else:
            born = self.version if death is None else death
            self._end_in_branch(family, key, born, hide=death is None or family is _INODE)

    def delete_unpinned(self, family: Family, gone: list[bytes]) -> None:
        """Delete records of the live tree, as `delete` would, while it has no pin."""
        assert ROOT_VIEW not in self._pins, "what a pin shows goes to history"
        self._own[family].update(dict.fromkeys(gone))

    def forget(self, family: Family, key: bytes, *, death: int) -> None:
        """Take a record away from a view that died at `death`: nothing looks for it there now."""
        self._retire(family, key, death, touch=False)
        self._own[family][key] = None

    def set_record(self, family: Family, key: bytes, body: bytes) -> None:
        """Write a record whose history the caller has kept (chunk records)."""
        if not key.startswith(LIVE):
            self._mark_changed(key)
        self._own[family][key] = self.version.to_bytes(BORN_BYTES, "big") + body

    def end_record(self, family: Family, key: bytes) -> None:
        """Delete a record whose history the caller has kept (chunk records)."""
        if key.startswith(LIVE):
            self._own[family][key] = None
        else:
            self._end_in_branch(family, key, self.version, hide=True)

    def _end_in_branch(self, family: Family, key: bytes, born: int, *, hide: bool) -> None:
        self._mark_changed(key)
        hides = hide and inherited(self, family, key) is not None
        self._own[family][key] = whiteout(born) if hides else None

    def _mark_changed(self, key: bytes) -> None:
        """Note the first record of its own that a view gets."""
        number = int.from_bytes(key[: keys.VIEW_BYTES], "big")
        view = self.view(number)
        assert view is not None, f"a record of view {number}, which does not exist"
        if not view.changed:
            self.set_view(number, msgspec.structs.replace(view, changed=self.version))

    def keep(self, family: Family, key: bytes, value: bytes, death: int) -> bytes:
        """Put `value` into history whether pinned or not (chunk records), and return its key.

        It is indexed for reclaiming only under a pin: otherwise its drop row owns it.
        """
        row = keys.history(family, key, death)
        assert self.own(Family.HISTORY, row) is None, "one record dies once at a version"
        self._own[Family.HISTORY][row] = value
        self.counters.history += 1
        return row

    def _retire(self, family: Family, key: bytes, death: int, *, touch: bool = True) -> None:
        view = int.from_bytes(key[: keys.VIEW_BYTES], "big")
        pins = self._pins.get(view)
        if not pins:
            return
        below = bisect_left(pins, death)
        if not below:
            return
        newest = pins[below - 1]
        old = self.own(family, key)
        born = None if old is None else born_of(old)
        if touch and family is _INODE and (born is None or born <= newest):
            self._own[Family.TOUCHED][keys.touched(newest, family, key)] = b""
        if old is not None and born is not None and born <= newest:
            assert born < death, "a record dies after its birth"
            self.keep(family, key, old, death)
            self._own[Family.RECLAIM][keys.reclaim(newest, born, family, key, death)] = b""

    # ------------------------------------------------------------------ pins

    def pins(self, view: int) -> tuple[int, ...]:
        """Return the versions at which the view is pinned, ascending, each once."""
        return self._pins.get(view, ())

    def readable(self, view: int, version: int) -> bool:
        """Whether a pin holds the view at the version that is not that of an ended snapshot."""
        if version not in self.pins(view):
            return False
        if not self.counters.leased_snapshots:
            return True
        prefix = keys.pack2(view, version)
        rows = self.own_scan(_PIN, prefix, keys.after_prefix(prefix))
        ends = [decode_pin(value).until_cluster_ns for _, value in rows]
        return any(not end or end > self.counters.cluster_ns for end in ends)

    def pinned_within(self, view: int, born: int, death: int) -> bool:
        """Whether a pin of the view lies in [born, death)."""
        pins = self._pins.get(view, ())
        at = bisect_left(pins, born)
        return at < len(pins) and pins[at] < death

    def versions_held(self) -> Iterator[tuple[int, int]]:
        """Yield (view, version) of all that is pinned, each once."""
        return ((view, version) for view, pins in self._pins.items() for version in pins)

    def pin_count(self, view: int) -> int:
        """Return how many PIN rows the view has: one version may have several."""
        return self._pin_counts.get(view, 0)

    def put_pin(self, view: int, version: int, pin_id: int, pin: Pin) -> None:
        """Write a pin. It counts at once for all that this command writes from now on."""
        key = keys.pin(view, version, pin_id)
        if self.own(_PIN, key) is None:
            self._pin_changes.append((view, version, 1))
            self._count_pin(view, version, 1)
        self.set_row(_PIN, key, self.encode(pin))
        if pin.session:
            self.set_row(Family.META, keys.session_pin(pin.session, key), b"")

    def delete_pin(self, view: int, version: int, pin_id: int) -> None:
        """Delete a pin that there is; from now on it counts no more."""
        key = keys.pin(view, version, pin_id)
        row = self.own(_PIN, key)
        assert row is not None, f"no pin {pin_id} of view {view} at version {version}"
        session = decode_pin(row).session
        if session:
            self.delete_row(Family.META, keys.session_pin(session, key))
        self.delete_row(_PIN, key)
        self._pin_changes.append((view, version, -1))
        self._count_pin(view, version, -1)

    def _count_pin(self, view: int, version: int, change: int) -> None:
        """Follow a PIN row that was put (1) or deleted (-1)."""
        count = self._pin_counts.pop(view, 0) + change
        assert count >= 0, f"fewer than no pins of view {view}"
        if count:
            self._pin_counts[view] = count
        pins = self._pins.get(view, ())
        at = bisect_left(pins, version)
        if at == len(pins) or pins[at] != version:
            assert change > 0, f"view {view} is not pinned at version {version}"
            self._pins[view] = (*pins[:at], version, *pins[at:])
            return
        twins = self._pin_twins.pop((view, version), 0) + change
        if twins > 0:
            self._pin_twins[view, version] = twins
        elif twins < 0 and count:
            self._pins[view] = pins[:at] + pins[at + 1 :]
        elif twins < 0:
            del self._pins[view]

    def _load_pins(self, kv: KV) -> None:
        rows = (keys.pin_parts(key) for key, _ in kv.scan(_PIN, b"", b"\xff" * 9))
        for view, pins in groupby(rows, itemgetter(0)):
            versions = Counter(version for _, version, _ in pins)
            self._pins[view] = tuple(versions)
            self._pin_counts[view] = versions.total()
            for version, count in versions.items():
                if count > 1:
                    self._pin_twins[view, version] = count - 1

    # ------------------------------------------------------------------ views

    def view(self, number: int) -> View | None:
        """Return a view's record as this command sees it; None if there is none."""
        own = self._own[_VIEW]
        if own and (key := keys.pack(number)) in own:
            value = own[key]
            return None if value is None else decode_view(value)
        return self._views.get(number)

    def views(self) -> KeysView[int]:
        """Return the numbers of all views between two commands, dead ones too."""
        return self._views.keys()

    def set_view(self, number: int, view: View) -> None:
        """Write a view's record."""
        self.set_row(Family.VIEW, keys.pack(number), self.encode(view))
        if view.origin is not None:
            self._branched = True

    def delete_view(self, number: int) -> None:
        """Delete the record of a view that nothing needs any more."""
        self.delete_row(Family.VIEW, keys.pack(number))

    def enter(self, number: int) -> None:
        """The present needs no pin."""

    def _keep_views(self, rows: Mapping[bytes, bytes | None]) -> None:
        for key, value in rows.items():
            view = None if value is None else decode_view(value)
            self._note_view(int.from_bytes(key, "big"), view)
        self._branched = bool(self._branches)
        self.present.branch(branched=self._branched)
