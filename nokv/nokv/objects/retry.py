"""Deadlines and retries, the same for every store.

Each operation may be repeated, because objects are never rewritten. So each is: on
`ObjectStoreUnavailable` and on an attempt that takes too long, and on nothing else, with
exponential backoff and full jitter (Brooker, "Exponential Backoff And Jitter", 2015), until the
operation's deadline or the last attempt.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nokv.errors import ObjectStoreError, ObjectStoreUnavailable
from nokv.objects.port import (
    LIST_NAMES_MAX,
    Data,
    ObjectInfo,
    ObjectStore,
    Operation,
    Page,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long an operation is tried. Times are seconds."""

    attempts: int = 6
    deadline_s: float = 60.0
    """For the whole operation, the pauses included."""
    attempt_deadline_s: float = 20.0
    """For one attempt: a connection that hangs is given up and another one tried."""
    backoff_s: float = 0.05
    """Upper bound of the first pause; it doubles with each."""
    backoff_max_s: float = 2.0

    def __post_init__(self) -> None:
        assert self.attempts >= 1
        assert 0 < self.attempt_deadline_s <= self.deadline_s

    def pause_s(self, attempt: int, rng: random.Random) -> float:
        """Return how long to wait after the failed attempt number `attempt` (from 1)."""
        return rng.uniform(0, min(self.backoff_max_s, self.backoff_s * 2 ** (attempt - 1)))


class RetryingStore:
    """An `ObjectStore` that tries another one's operations again.

    Args:
        store: the store that does the work.
        policy: the bounds.
        rng: for the jitter.
        sleep: how to wait, in seconds.
    """

    def __init__(
        self,
        store: ObjectStore,
        policy: RetryPolicy | None = None,
        *,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.inner = store
        self._policy = policy or RetryPolicy()
        self._rng = rng or random.Random()
        self._sleep = sleep

    async def put(self, name: str, data: Data) -> None:
        """Store an object."""
        await self._retry("put", name, lambda: self.inner.put(name, data))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of an object."""
        return await self._retry("get", name, lambda: self.inner.get(name, offset, length))

    async def head(self, name: str) -> ObjectInfo:
        """Return an object's length and time."""
        return await self._retry("head", name, lambda: self.inner.head(name))

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Return a page of a listing."""
        return await self._retry("list", prefix, lambda: self.inner.list(prefix, after, limit))

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Delete objects, those that passingly failed again."""
        failed: dict[str, ObjectStoreError] = {}
        left = list(names)

        async def attempt() -> None:
            nonlocal failed, left
            failed = await self.inner.delete(left)
            again = [n for n, error in failed.items() if isinstance(error, ObjectStoreUnavailable)]
            if again:
                final.update({n: e for n, e in failed.items() if n not in again})
                left = again
                raise failed[again[0]]

        final: dict[str, ObjectStoreError] = {}
        try:
            await self._retry("delete", f"{len(left)} objects", attempt)
        except ObjectStoreUnavailable as error:
            return final | {name: failed.get(name, error) for name in left}
        return final | failed

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""
        await self._retry("ensure_bucket", "", self.inner.ensure_bucket)

    async def abort_stale(self, prefix: str, before_ns: int) -> int:
        """Remove the remains of old uploads."""
        return await self._retry(
            "abort_stale", prefix, lambda: self.inner.abort_stale(prefix, before_ns)
        )

    async def close(self) -> None:
        """Close the store below."""
        await self.inner.close()

    async def _retry(self, operation: Operation, name: str, call: Callable[[], Awaitable[T]]) -> T:
        policy = self._policy
        clock = asyncio.get_running_loop().time
        end = clock() + policy.deadline_s
        attempt = 1
        while True:
            try:
                async with asyncio.timeout_at(min(end, clock() + policy.attempt_deadline_s)):
                    return await call()
            except ObjectStoreUnavailable as error:
                failure: ObjectStoreUnavailable = error
            except TimeoutError as error:
                failure = ObjectStoreUnavailable(f"{operation} {name}: no answer in time")
                failure.__cause__ = error
            pause_s = policy.pause_s(attempt, self._rng)
            if attempt == policy.attempts or clock() + pause_s >= end:
                raise failure
            attempt += 1
            await self._sleep(pause_s)
