"""A bounded cache of verified sub-blocks, so that small reads in one place fetch once."""

from __future__ import annotations

from collections import OrderedDict


class BlockCache:
    """The least recently used sub-blocks, up to a number of bytes, all of them verified.

    Objects never change and names are never reused, so an entry is never stale. Args:
        limit_bytes: bytes of all entries; what is larger than that is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        assert limit_bytes >= 0
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        """Bytes of all entries; never above `limit_bytes`."""
        self.hits = 0
        self.misses = 0
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, name: str, index: int) -> bytes | None:
        """Return sub-block `index` of the object, or None."""
        data = self._blocks.get((name, index))
        if data is None:
            self.misses += 1
            return None
        self.hits += 1
        self._blocks.move_to_end((name, index))
        return data

    def put(self, name: str, index: int, data: bytes) -> None:
        """Keep a sub-block whose sum was verified."""
        if len(data) > self.limit_bytes:
            return
        old = self._blocks.pop((name, index), None)
        if old is not None:
            self.held_bytes -= len(old)
        self._blocks[name, index] = data
        self.held_bytes += len(data)
        while self.held_bytes > self.limit_bytes:
            _, dropped = self._blocks.popitem(last=False)
            self.held_bytes -= len(dropped)
        assert self.held_bytes >= len(data)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.held_bytes = 0
