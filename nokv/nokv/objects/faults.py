"""Faults by operation name, over any store: what a test uses to fail exactly one call.

Set a fault with `FaultyStore.fail`, `hold`, `damage` or `stale`; `flip_bit` damages what is stored.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nokv.errors import ObjectStoreError, ObjectStoreUnavailable
from nokv.objects.port import LIST_NAMES_MAX, Data, ObjectInfo, ObjectStore, Operation, Page


@dataclass(slots=True)
class Gate:
    """A call that is held."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the call has arrived."""
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let the call go on."""
        self._open.set()

    async def _pass(self) -> None:
        self.reached.set()
        await self._open.wait()


@dataclass(slots=True)
class _Fault:
    first: int
    last: int
    """Calls of the operation that it meets, counted from the store's first."""
    after: bool
    error: Callable[[str], BaseException] | None = None
    gate: Gate | None = None
    damage: Callable[[bytes], bytes] | None = None
    stale: bool = False


class FaultyStore:
    """An `ObjectStore` that passes calls on, except where a fault is set."""

    def __init__(self, store: ObjectStore) -> None:
        self.inner = store
        self.calls: Counter[Operation] = Counter()
        """How often each operation was called."""
        self.log: list[tuple[Operation, str]] = []
        """Every call in order, with its object (`list`: prefix, `delete`: one row a name)."""
        self._faults: dict[Operation, list[_Fault]] = {}
        self._listed: dict[tuple[str, str, int], Page] = {}
        """The first answer to each listing: what a stale one says again."""

    def fail(
        self,
        operation: Operation,
        nth: int = 1,
        *,
        times: int = 1,
        after: bool = False,
        error: Callable[[str], BaseException] = ObjectStoreUnavailable,
    ) -> None:
        """Fail the `nth` call from now on and the `times - 1` that follow it.

        `error` makes what is raised from a message. With `after` the call takes effect first: an
        answer that was lost.
        """
        self._add(operation, nth, times, after=after).error = error

    def hold(self, operation: Operation, nth: int = 1, *, after: bool = False) -> Gate:
        """Stop the `nth` call from now on until the gate is released."""
        fault = self._add(operation, nth, 1, after=after)
        fault.gate = Gate()
        return fault.gate

    def damage(self, nth: int, change: Callable[[bytes], bytes], *, times: int = 1) -> None:
        """Pass what the `nth` get from now on returns through `change`."""
        self._add("get", nth, times, after=True).damage = change

    def stale(self, nth: int = 1, *, times: int = 1) -> None:
        """Answer the `nth` list from now on with what the same listing said first."""
        self._add("list", nth, times, after=True).stale = True

    def _add(self, operation: Operation, nth: int, times: int, *, after: bool) -> _Fault:
        assert nth >= 1
        assert times >= 1
        first = self.calls[operation] + nth
        fault = _Fault(first, first + times - 1, after)
        self._faults.setdefault(operation, []).append(fault)
        return fault

    async def _enter(self, operation: Operation, name: str) -> list[_Fault]:
        self.calls[operation] += 1
        self.log.append((operation, name))
        number = self.calls[operation]
        met = [f for f in self._faults.get(operation, ()) if f.first <= number <= f.last]
        await self._meet(operation, name, [f for f in met if not f.after])
        return [f for f in met if f.after]

    @staticmethod
    async def _meet(operation: Operation, name: str, faults: Sequence[_Fault]) -> None:
        for fault in faults:
            if fault.gate is not None:
                await fault.gate._pass()  # noqa: SLF001 - the two are one thing
            if fault.error is not None:
                raise fault.error(f"{operation} {name}: injected fault")

    async def put(self, name: str, data: Data) -> None:
        """Pass on, or fail."""
        after = await self._enter("put", name)
        await self.inner.put(name, data)
        await self._meet("put", name, after)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Pass on, or fail, or damage."""
        after = await self._enter("get", name)
        data = await self.inner.get(name, offset, length)
        await self._meet("get", name, after)
        for fault in after:
            if fault.damage is not None:
                data = fault.damage(data)
        return data

    async def head(self, name: str) -> ObjectInfo:
        """Pass on, or fail."""
        after = await self._enter("head", name)
        found = await self.inner.head(name)
        await self._meet("head", name, after)
        return found

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Pass on, or fail."""
        faults = await self._enter("list", prefix)
        page = await self.inner.list(prefix, after, limit)
        await self._meet("list", prefix, faults)
        first = self._listed.setdefault((prefix, after, limit), page)
        return first if any(fault.stale for fault in faults) else page

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Pass on, or fail."""
        after = await self._enter("delete", names[0] if names else "")
        self.log.extend(("delete", name) for name in names[1:])
        failed = await self.inner.delete(names)
        await self._meet("delete", "", after)
        return failed

    async def ensure_bucket(self) -> None:
        """Pass on, or fail."""
        after = await self._enter("ensure_bucket", "")
        await self.inner.ensure_bucket()
        await self._meet("ensure_bucket", "", after)

    async def abort_stale(self, prefix: str, before_ns: int) -> int:
        """Pass on, or fail."""
        after = await self._enter("abort_stale", prefix)
        removed = await self.inner.abort_stale(prefix, before_ns)
        await self._meet("abort_stale", prefix, after)
        return removed

    async def close(self) -> None:
        """Close the store below."""
        await self.inner.close()


async def flip_bit(store: ObjectStore, name: str, offset: int) -> None:
    """Change one bit of the byte at `offset` of a stored object."""
    data = bytearray(await store.get(name))
    data[offset] ^= 1
    await store.put(name, data)
