"""A client that commits one small command after the other, and how long it could not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from nokv.client.core import ClientConfig
from nokv.testing.harness import harness

SETTLED: Final = 50
"""So many commits are more than were on their way at any moment: there is one at a time."""


class SerialCommits:
    """When each of a series of commands was acknowledged, by the monotonic clock."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._arrived = asyncio.Event()

    async def run(self, cluster: str, path: str, stop: asyncio.Event) -> None:
        """Commit one command after the other until told to stop."""
        config = ClientConfig(agent="serial-commits")
        async with harness(cluster, config=config) as client:
            await client.fs.create(path)
            number = 0
            while not stop.is_set():
                number += 1
                await client.fs.setxattr(path, "user.commit", str(number).encode())
                self.times_s.append(time.monotonic())
                self._arrived.set()

    def gap_after(self, moment_s: float, within_s: float = 30.0) -> float | None:
        """Return the longest time without an acknowledged commit that begins after `moment_s`.

        An answer that was on its way at that moment does not end it: the time runs from
        `moment_s`, or from the last answer before the pause. None: there was no commit yet.
        """
        longest = None
        before = moment_s
        for at in self.times_s:
            if at <= moment_s:
                continue
            if at > moment_s + within_s and longest is not None:
                break
            longest = max(longest or 0.0, at - before)
            before = at
        return longest

    async def wait_after(self, moment_s: float, timeout_s: float = 30.0) -> None:
        """Wait until SETTLED commits were acknowledged after `moment_s`: the pause is over then.

        Raises:
            TimeoutError: it is not.
        """
        async with asyncio.timeout(timeout_s):
            while len(self.times_s) < SETTLED or self.times_s[-SETTLED] <= moment_s:
                self._arrived.clear()
                await self._arrived.wait()


@asynccontextmanager
async def committing(cluster: str, path: str) -> AsyncIterator[SerialCommits]:
    """Commit serially for the length of a block."""
    commits = SerialCommits()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(commits.run(cluster, path, stop))
        try:
            yield commits
        finally:
            stop.set()
