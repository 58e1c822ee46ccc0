"""What a view shows: its own records over what its origin shows at the origin's version.

A view without a record of its own at a key shows what its origin does there, and so on down the
chain; a whiteout is an own record that shows nothing. What an origin shows at a version that is
pinned never changes, so it is remembered (`Levels.shown`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import BORN_BYTES, View, born_of, is_whiteout

VERSIONED = frozenset(
    {
        Family.INODE,
        Family.DENTRY,
        Family.XATTR,
        Family.CHUNK,
        Family.USAGE,
        Family.BACKLINK,
    }
)

SHOWN_MAX = 65_536
"""Inherited records that are remembered."""

_SMALL = VERSIONED - {Family.CHUNK, Family.XATTR}
"""Families whose records are remembered."""

PRESENT = 2**64 - 1
"""As a version: the view's current records."""

LIVE = bytes(keys.VIEW_BYTES)
"""How the keys of view 0 begin: it has no origin."""

Row = tuple[bytes, bytes]


class Levels(Protocol):
    """What the records of single views are read from: a transaction, or the store."""

    shown: dict[tuple[Family, bytes], bytes | None]
    """Inherited records by the key they are seen under: never more than SHOWN_MAX."""

    def own(self, family: Family, key: bytes) -> bytes | None:
        """Return the view's own current record, also a whiteout; None if it has none."""
        ...

    def own_scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[Row]:
        """Yield own current records of [start, end), whiteouts too."""
        ...

    def view(self, number: int) -> View | None:
        """Return a view's record; None for one that never was, or is gone."""
        ...


def own_at(levels: Levels, family: Family, key: bytes, version: int) -> bytes | None:
    """Return the record of the key's own view at a version, also a whiteout."""
    value = levels.own(family, key)
    if value is not None and born_of(value) <= version:
        return value
    if version == PRESENT:
        return None
    start = keys.history(family, key, version + 1)
    end = keys.history(family, key, PRESENT)
    for _, old in levels.own_scan(Family.HISTORY, start, end):
        return old if born_of(old) <= version else None
    return None


def inherited(levels: Levels, family: Family, key: bytes) -> bytes | None:
    """Return what the origin of the key's view shows there; None also where it shows nothing."""
    shown = levels.shown
    if (family, key) in shown:
        return shown[family, key]
    value: bytes | None = None
    rest = key[keys.VIEW_BYTES :]
    top = view = levels.view(int.from_bytes(key[: keys.VIEW_BYTES], "big"))
    while view is not None and view.origin is not None:
        value = own_at(levels, family, keys.pack(view.origin) + rest, view.origin_version)
        if value is not None:
            break
        view = levels.view(view.origin)
    if value is not None:
        value = None if is_whiteout(value) or top is None else _as_of(top, value)
    if family in _SMALL:
        if len(shown) >= SHOWN_MAX:
            shown.clear()
        shown[family, key] = value
    return value


def _as_of(view: View, value: bytes) -> bytes:
    """Return an inherited record as its view has it: no older than the view.

    So it has one version there, also when the view was flattened, and copied it.
    """
    return view.created.to_bytes(BORN_BYTES, "big") + value[BORN_BYTES:]


def get_at(levels: Levels, family: Family, key: bytes, version: int) -> bytes | None:
    """Return what the key's view shows at a version."""
    value = own_at(levels, family, key, version)
    if value is None:
        return None if key.startswith(LIVE) else inherited(levels, family, key)
    return None if is_whiteout(value) else value


# ---------------------------------------------------------------- scans


def scan_at(
    levels: Levels, family: Family, start: bytes, end: bytes, version: int, *, reverse: bool
) -> Iterator[Row]:
    """Yield what one view shows of [start, end) at a version: both lie in that view."""
    for key, value in _merged(levels, family, start, end, version, reverse=reverse):
        if not is_whiteout(value):
            yield key, value


def _merged(
    levels: Levels, family: Family, start: bytes, end: bytes, version: int, *, reverse: bool
) -> Iterator[Row]:
    """Yield the uppermost record of each key, whiteouts too."""
    view = levels.view(int.from_bytes(start[: keys.VIEW_BYTES], "big"))
    own = _own_rows(levels, family, start, end, version, reverse=reverse)
    if view is None or view.origin is None:
        return own
    below, origin = start[: keys.VIEW_BYTES], keys.pack(view.origin)
    low, high = _moved(start, end, origin)
    deeper = (
        (below + key[keys.VIEW_BYTES :], _as_of(view, value))
        for key, value in _merged(levels, family, low, high, view.origin_version, reverse=reverse)
    )
    return _upper(own, deeper, reverse=reverse)


def _upper(own: Iterator[Row], deeper: Iterator[Row], *, reverse: bool) -> Iterator[Row]:
    last = None
    # A merge is stable: of one key the own record comes first.
    for key, value in heapq.merge(own, deeper, key=_key, reverse=reverse):
        if key != last:
            yield key, value
        last = key


def _own_rows(
    levels: Levels, family: Family, start: bytes, end: bytes, version: int, *, reverse: bool
) -> Iterator[Row]:
    current = levels.own_scan(family, start, end, reverse=reverse)
    if version == PRESENT:
        return current
    young = ((key, value) for key, value in current if born_of(value) <= version)
    old = _history(levels, family, start, end, version, reverse=reverse)
    return heapq.merge(young, old, key=_key, reverse=reverse)


def _history(
    levels: Levels, family: Family, start: bytes, end: bytes, version: int, *, reverse: bool
) -> Iterator[Row]:
    low, high = _history_range(family, start, end)
    for row, value in levels.own_scan(Family.HISTORY, low, high, reverse=reverse):
        _, key, death = keys.history_parts(row)
        if start <= key < end and born_of(value) <= version < death:
            yield key, value


def _history_range(family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes]:
    """Return the HISTORY keys that hold the history of the records [start, end) of one view."""
    view = start[: keys.VIEW_BYTES]
    prefix = view + bytes([family])
    low = prefix + start[keys.VIEW_BYTES :]
    same_view = end[: keys.VIEW_BYTES] == view
    return low, prefix + end[keys.VIEW_BYTES :] if same_view else keys.after_prefix(prefix)


def _moved(start: bytes, end: bytes, view: bytes) -> tuple[bytes, bytes]:
    """Return a range of one view's keys as the same range of another view."""
    same_view = end[: keys.VIEW_BYTES] == start[: keys.VIEW_BYTES]
    high = view + end[keys.VIEW_BYTES :] if same_view else keys.after_prefix(view)
    return view + start[keys.VIEW_BYTES :], high


def _key(row: Row) -> bytes:
    return row[0]


# ---------------------------------------------------------------- pages


def page_at(
    levels: Levels, family: Family, prefix: bytes, after: bytes, limit: int, version: int
) -> tuple[list[Row], bytes | None]:
    """Return the first records under `prefix` behind `prefix + after`, and where they were cut.

    At most `limit` records, found by examining at most `limit` current and `limit` historic rows
    of each view of the chain, however many came or went since. The cut is the last key that was
    examined (there is more behind it), None at the end. An empty `after` starts at the prefix.
    """
    own_view, rest = prefix[: keys.VIEW_BYTES], prefix[keys.VIEW_BYTES :]
    number: int | None = int.from_bytes(own_view, "big")
    record = levels.view(int.from_bytes(own_view, "big"))
    alone = record is None or (record.origin is None and not record.whiteouts)
    if alone and version == PRESENT:  # nothing to merge, and nothing is hidden
        start = prefix + after + b"\0" if after else prefix
        rows = list(islice(levels.own_scan(family, start, keys.after_prefix(prefix)), limit + 1))
        return rows[:limit], rows[limit - 1][0] if len(rows) > limit else None
    found: dict[bytes, bytes] = {}
    cuts: list[bytes] = []
    top: View | None = None
    while number is not None:
        page, cut = _own_page(levels, family, keys.pack(number) + rest, after, limit, version)
        for key, value in page.items():
            shown_value = value if top is None else _as_of(top, value)
            found.setdefault(own_view + key[keys.VIEW_BYTES :], shown_value)
        if cut is not None:
            cuts.append(own_view + cut[keys.VIEW_BYTES :])
        view = levels.view(number)
        top = top or view
        number = None if view is None else view.origin
        version = 0 if view is None else view.origin_version
    end = min(cuts, default=None)
    shown = sorted(
        row for row in found.items() if (end is None or row[0] <= end) and not is_whiteout(row[1])
    )
    if len(shown) > limit:
        return shown[:limit], shown[limit - 1][0]
    return shown, end


def _own_page(
    levels: Levels, family: Family, prefix: bytes, after: bytes, limit: int, version: int
) -> tuple[dict[bytes, bytes], bytes | None]:
    """Return the records of one view at a version, whiteouts too, and where they were cut."""
    start, end = prefix, keys.after_prefix(prefix)
    low, high = _history_range(family, start, end)
    if after:
        start = prefix + after + b"\0"
        low = keys.history(family, prefix + after, PRESENT) + b"\0"
    current = list(islice(levels.own_scan(family, start, end), limit + 1))
    cuts = []
    if len(current) > limit:
        del current[limit:]
        cuts.append(current[-1][0])
    found = {key: value for key, value in current if born_of(value) <= version}
    if version == PRESENT:
        return found, min(cuts, default=None)
    past = list(islice(levels.own_scan(Family.HISTORY, low, high), limit + 1))
    if len(past) > limit:
        del past[limit:]
        _, key, _ = keys.history_parts(past[-1][0])
        cuts.append(key)
        last = own_at(levels, family, key, version)  # more of its history may lie behind the cut
        if last is not None:
            found[key] = last
    for row, value in past:
        _, key, death = keys.history_parts(row)
        if born_of(value) <= version < death:
            found[key] = value
    return found, min(cuts, default=None)
