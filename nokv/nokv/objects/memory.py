"""The object store in memory: for tests, the simulator and a volume of kind `memory`."""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence

from nokv.errors import ObjectCorrupt, ObjectMissing, ObjectStoreError
from nokv.objects.port import (
    DELETE_NAMES_MAX,
    LIST_NAMES_MAX,
    OBJECT_BYTES_MAX,
    Data,
    ObjectInfo,
    Page,
    check_name,
    check_prefix,
)


class MemoryStore:
    """An `ObjectStore` in a dictionary. Wrap it in `FaultyStore` to fail it by operation name."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._names: list[str] = []
        """The keys of `_objects`, ascending."""
        self._now_ns = now_ns

    @property
    def names(self) -> list[str]:
        """All names, ascending."""
        return list(self._names)

    async def put(self, name: str, data: Data) -> None:
        """Store a copy of `data`."""
        check_name(name)
        assert len(data) <= OBJECT_BYTES_MAX
        if name not in self._objects:
            insort(self._names, name)
        self._objects[name] = (bytes(data), self._now_ns())

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a copy of the range."""
        data, _ = self._find("get", name)
        return exact_range("get", name, data, offset, length)

    async def head(self, name: str) -> ObjectInfo:
        """Return the object's length and time."""
        data, modified_ns = self._find("head", name)
        return ObjectInfo(name, len(data), modified_ns)

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Return a page of the names."""
        check_prefix(prefix)
        assert 1 <= limit <= LIST_NAMES_MAX
        start = bisect_right(self._names, after) if after else 0
        found = [name for name in self._names[start:] if name.startswith(prefix)]
        page = tuple(
            ObjectInfo(name, len(self._objects[name][0]), self._objects[name][1])
            for name in found[:limit]
        )
        return Page(page, more=len(found) > limit)

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Forget the objects."""
        assert len(names) <= DELETE_NAMES_MAX
        for name in names:
            check_name(name)
            if self._objects.pop(name, None) is not None:
                self._names.remove(name)
        return {}

    async def ensure_bucket(self) -> None:
        """Do nothing: memory is there."""

    async def abort_stale(self, prefix: str, before_ns: int) -> int:  # noqa: ARG002 - the port's
        """Do nothing: a put here is never half done."""
        check_prefix(prefix)
        return 0

    async def close(self) -> None:
        """Keep the objects: a test looks at them after the client is gone."""

    def _find(self, operation: str, name: str) -> tuple[bytes, int]:
        found = self._objects.get(check_name(name))
        if found is None:
            raise ObjectMissing(f"{operation} {name}: no such object")
        return found


def exact_range(operation: str, name: str, data: bytes, offset: int, length: int | None) -> bytes:
    """Return `data[offset : offset + length]` if the object has all of it.

    Raises:
        ObjectCorrupt: it has not.
    """
    assert offset >= 0
    assert length is None or length > 0
    end = len(data) if length is None else offset + length
    if offset > len(data) or end > len(data):
        raise ObjectCorrupt(
            f"{operation} {name}: bytes [{offset}, {end}) of an object of {len(data)} bytes"
        )
    return data[offset:end] if offset or end != len(data) else data
