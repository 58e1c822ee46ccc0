"""The ordered-KV port in memory: for tests, models and simulations."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from nokv.state.families import Family
from nokv.state.port import KEY_BYTES_MAX

_INSORT_MAX = 16
"""Up to this many new keys are inserted one by one; more are cheaper sorted in together."""

_STALE_MIN = 64
"""Fewer deleted keys than this are not worth a compaction of the key list."""


class _Table:
    """One family: a dictionary of values and a key list that is sorted when somebody scans."""

    __slots__ = ("_fresh", "_keys", "_stale", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        """Sorted. With `_fresh` it holds each key of `values` and of `_stale` exactly once."""
        self._fresh: list[bytes] = []
        """Keys since the last scan, in order of arrival."""
        self._stale: set[bytes] = set()
        """Deleted keys that are still in `_keys` or `_fresh`; never in `values`."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key`, in O(1)."""
        if key not in self.values:
            if key in self._stale:
                self._stale.discard(key)
            else:
                self._fresh.append(key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key` if it is there, in O(1)."""
        if self.values.pop(key, None) is not None:
            self._stale.add(key)

    def sorted_keys(self) -> list[bytes]:
        """Return the keys in order; some of them may be deleted ones."""
        if len(self._stale) > _STALE_MIN + len(self.values):
            self._keys, self._fresh = sorted(self.values), []
            self._stale.clear()
        elif len(self._fresh) <= _INSORT_MAX:
            for key in self._fresh:
                insort(self._keys, key)
            self._fresh.clear()
        else:
            self._keys += self._fresh
            self._keys.sort()
            self._fresh.clear()
        return self._keys


class MemoryKV:
    """`nokv.state.port.KV` in memory, with the crash that a process would have.

    `crash` goes back to the last `commit`: an undo journal holds the value that each key had then,
    so both cost only what was written in between.
    """

    def __init__(self) -> None:
        self._tables = {family: _Table() for family in Family}
        self._undo: dict[tuple[Family, bytes], bytes | None] = {}
        """What each key written since the last commit held at that commit."""
        self._writes = 0
        """Number of writes, commits and crashes so far: an older iterator is refused."""

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        return self._tables[family].values.get(key)

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < end, ascending or descending by bytes."""
        writes, table = self._writes, self._tables[family]
        keys, values = table.sorted_keys(), table.values
        first, last = bisect_left(keys, start), bisect_left(keys, end)
        positions = range(last - 1, first - 1, -1) if reverse else range(first, last)
        for position in positions:
            assert writes == self._writes, "a scan was used after a write or a commit"
            key = keys[position]
            value = values.get(key)
            if value is not None:
                yield key, value

    def write(self, family: Family, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put each (key, value), or delete the key where the value is None."""
        self._writes += 1
        table, undo = self._tables[family], self._undo
        for key, value in items:
            assert 1 <= len(key) <= KEY_BYTES_MAX, f"a key of {len(key)} bytes"
            undo.setdefault((family, key), table.values.get(key))
            if value is None:
                table.delete(key)
            else:
                table.put(key, value)

    def commit(self) -> None:
        """Keep every write so far through a `crash`."""
        self._writes += 1
        self._undo.clear()

    def crash(self) -> None:
        """Go back to the last commit, as a process does that was killed."""
        self._writes += 1
        for (family, key), value in self._undo.items():
            if value is None:
                self._tables[family].delete(key)
            else:
                self._tables[family].put(key, value)
        self._undo.clear()

    def snapshot(self) -> dict[Family, dict[bytes, bytes]]:
        """Return a copy of everything, uncommitted writes included, in key order."""
        return {
            family: dict(sorted(table.values.items())) for family, table in self._tables.items()
        }
