"""A byte budget: a bound on the memory that transfers in flight may hold together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """A counting semaphore over bytes, first come first served.

    First come first served, so that a large request is not starved by small ones. Uploads and
    reads have budgets of their own: an upload holds its share while it waits for a source, and a
    source may be a read.
    """

    def __init__(self, limit_bytes: int) -> None:
        assert limit_bytes > 0
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        """Bytes given out; never above `limit_bytes`."""
        self.peak_bytes = 0
        """Highest `held_bytes` so far."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, n_bytes: int) -> None:
        """Wait until `n_bytes` are free and take them; at most `limit_bytes` at a time."""
        assert 0 <= n_bytes <= self.limit_bytes, f"{n_bytes} of {self.limit_bytes} bytes"
        if not self._waiting and self.held_bytes + n_bytes <= self.limit_bytes:
            self._take(n_bytes)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((n_bytes, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(n_bytes)  # granted and cancelled in the same turn of the loop
            else:
                self._waiting.remove((n_bytes, granted))
                self._grant()
            raise

    def release(self, n_bytes: int) -> None:
        """Give `n_bytes` back."""
        assert 0 <= n_bytes <= self.held_bytes
        self.held_bytes -= n_bytes
        self._grant()

    @asynccontextmanager
    async def hold(self, n_bytes: int) -> AsyncIterator[None]:
        """Hold `n_bytes` for the length of a block."""
        await self.acquire(n_bytes)
        try:
            yield
        finally:
            self.release(n_bytes)

    def _take(self, n_bytes: int) -> None:
        self.held_bytes += n_bytes
        assert self.held_bytes <= self.limit_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def _grant(self) -> None:
        while self._waiting:
            n_bytes, granted = self._waiting[0]
            if granted.cancelled():
                return  # its waiter is about to run, removes itself and grants again
            if self.held_bytes + n_bytes > self.limit_bytes:
                return
            self._waiting.popleft()
            self._take(n_bytes)
            granted.set_result(None)
