"""Reading at a pinned version: the current record where it is old enough, else history's."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import born_of

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


class Source(Protocol):
    """What records are read from: the store, an entry's transaction, or a pinned version."""

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return a value or None."""
        ...

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows of [start, end) in order."""
        ...


class PinnedSource:
    """A `Source` that shows the versioned families as they were at `version`.

    Right only while a pin or lease holds that version; the caller checks it.
    """

    def __init__(self, source: Source, version: int) -> None:
        self._source = source
        self._version = version

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value of a record at the version, or None."""
        value = self._source.get(family, key)
        if family not in VERSIONED or (value is not None and born_of(value) <= self._version):
            return value
        start = keys.history(family, key, self._version + 1)
        end = keys.history(family, key, 2**64 - 1)
        for _, old in self._source.scan(Family.HISTORY, start, end):
            return old if born_of(old) <= self._version else None
        return None

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the records of [start, end), which lie in one view, at the version."""
        if family not in VERSIONED:
            yield from self._source.scan(family, start, end, reverse=reverse)
            return
        current = (
            (key, value)
            for key, value in self._source.scan(family, start, end, reverse=reverse)
            if born_of(value) <= self._version
        )
        rows = heapq.merge(
            current, self._old(family, start, end, reverse=reverse), key=_key, reverse=reverse
        )
        last = None
        for key, value in rows:
            assert key != last, "two records of one key at one version"
            last = key
            yield key, value

    def page(
        self, family: Family, prefix: bytes, after: bytes, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return the first records under `prefix` behind `prefix + after`, and where they were cut.

        At most `limit` records, found by examining at most `limit` current and `limit` historic
        rows, however many came or went since. The cut is the last key that was examined (there is
        more behind it), None at the end. An empty `after` starts at the prefix itself.
        """
        start, end = prefix, keys.after_prefix(prefix)
        low, high = _history_range(family, start, end)
        if after:
            start = prefix + after + b"\0"
            low = keys.history(family, prefix + after, 2**64 - 1) + b"\0"
        current = list(islice(self._source.scan(family, start, end), limit + 1))
        past = list(islice(self._source.scan(Family.HISTORY, low, high), limit + 1))
        cuts = []
        if len(current) > limit:
            del current[limit:]
            cuts.append(current[-1][0])
        found = {key: value for key, value in current if born_of(value) <= self._version}
        if len(past) > limit:
            del past[limit:]
            _, key, _ = keys.history_parts(past[-1][0])
            cuts.append(key)
            last = self.get(family, key)  # more of its history may lie behind the cut
            if last is not None:
                found[key] = last
        for row, value in past:
            _, key, death = keys.history_parts(row)
            if born_of(value) <= self._version < death:
                found[key] = value
        cut = min(cuts, default=None)
        rows = sorted(row for row in found.items() if cut is None or row[0] <= cut)
        if len(rows) > limit:
            return rows[:limit], rows[limit - 1][0]
        return rows, cut

    def _old(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        low, high = _history_range(family, start, end)
        for row, value in self._source.scan(Family.HISTORY, low, high, reverse=reverse):
            _, key, death = keys.history_parts(row)
            if start <= key < end and born_of(value) <= self._version < death:
                yield key, value


def _history_range(family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes]:
    """Return the HISTORY keys that hold the history of the records [start, end) of one view."""
    view = start[: keys.VIEW_BYTES]
    prefix = view + bytes([family])
    low = prefix + start[keys.VIEW_BYTES :]
    same_view = end[: keys.VIEW_BYTES] == view
    return low, prefix + end[keys.VIEW_BYTES :] if same_view else keys.after_prefix(prefix)


def _key(row: tuple[bytes, bytes]) -> bytes:
    return row[0]
