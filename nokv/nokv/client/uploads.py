"""Upload numbers: leased in blocks, in flight until their publish is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from nokv.types.results import Leased

BLOCK_MIN: Final = 16
BLOCK_MAX: Final = 1024
"""Numbers of one lease: doubles from BLOCK_MIN each time a block is used up."""


class UploadNumbers:
    """The upload numbers of one session.

    A number is in flight from `take` until `settled`: when the answer to its publish has arrived,
    or, if that was never sent, when all its puts have ended.

    Args:
        lease: leases so many numbers from the cluster; hands them to `leased` before it returns,
            and also when it was cancelled meanwhile.
    """

    def __init__(self, lease: Callable[[int], Awaitable[None]]) -> None:
        self._lease = lease
        self._next = 0
        """The next unused number; 0 before the first lease."""
        self._end = 0
        """One past the last number leased; never below `_next`."""
        self._block = BLOCK_MIN
        self._in_flight: set[int] = set()
        self._leasing = asyncio.Lock()

    @property
    def in_flight(self) -> int:
        """How many numbers are in flight."""
        return len(self._in_flight)

    @property
    def watermark(self) -> int:
        """The smallest number in flight, else the next unused one; 0 before the first lease."""
        return min(self._in_flight, default=self._next)

    async def take(self) -> int:
        """Return a number that nobody else has, now in flight.

        Raises:
            NokvError: as the lease command.
        """
        if self._next == self._end:
            async with self._leasing:
                while self._next == self._end:
                    await self._lease(self._block)
        number = self._next
        self._next += 1
        self._in_flight.add(number)
        return number

    def leased(self, block: Leased) -> None:
        """Take numbers that were leased: else the watermark stayed below them, and never moved."""
        assert block.count > 0
        if block.first < self._end:
            return  # overtaken by a later block: nothing was or will be stored under these
        if block.first != self._end:
            self._next = block.first
        self._end = block.first + block.count
        self._block = min(BLOCK_MAX, self._block * 2)

    def settled(self, number: int) -> None:
        """End the flight of a number."""
        self._in_flight.remove(number)
