"""Retries: only what may pass, a bounded number of times, within the deadline, with jitter."""

from __future__ import annotations

import asyncio
import random

import pytest

from nokv.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreDenied,
    ObjectStoreError,
    ObjectStoreUnavailable,
)
from nokv.objects.faults import FaultyStore
from nokv.objects.memory import MemoryStore
from nokv.objects.port import OPERATIONS, Operation
from nokv.objects.retry import RetryingStore, RetryPolicy

CALLS: dict[Operation, tuple[object, ...]] = {
    "put": ("x", b"data"),
    "get": ("x",),
    "head": ("x",),
    "list": ("",),
    "delete": (["x"],),
    "ensure_bucket": (),
    "abort_stale": ("", 1),
}


class Case:
    def __init__(self, policy: RetryPolicy | None = None) -> None:
        self.pauses: list[float] = []
        self.faulty = FaultyStore(MemoryStore())
        self.store = RetryingStore(self.faulty, policy, rng=random.Random(3), sleep=self._note)

    async def _note(self, pause_s: float) -> None:
        self.pauses.append(pause_s)

    async def call(self, operation: Operation) -> object:
        return await getattr(self.store, operation)(*CALLS[operation])


def test_every_operation_has_its_case() -> None:
    assert tuple(CALLS) == OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_passing_failure_is_tried_again(operation: Operation) -> None:
    async def main() -> None:
        case = Case()
        await case.store.put("x", b"data")
        before = case.faulty.calls[operation]
        case.faulty.fail(operation, times=5)
        await case.call(operation)
        assert case.faulty.calls[operation] == before + 6
        assert len(case.pauses) == 5
        bounds = [0.05, 0.1, 0.2, 0.4, 0.8]
        assert all(0 <= pause <= bound for pause, bound in zip(case.pauses, bounds, strict=True))
        assert len(set(case.pauses)) == 5

    asyncio.run(main())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_last_attempt_is_the_last(operation: Operation) -> None:
    async def main() -> None:
        case = Case(RetryPolicy(attempts=3))
        await case.store.put("x", b"data")
        before = case.faulty.calls[operation]
        case.faulty.fail(operation, times=100)
        if operation == "delete":
            failed = await case.store.delete(["x"])
            assert isinstance(failed["x"], ObjectStoreUnavailable)
        else:
            with pytest.raises(ObjectStoreUnavailable, match="injected"):
                await case.call(operation)
        assert case.faulty.calls[operation] == before + 3

    asyncio.run(main())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "error", [ObjectStoreError, ObjectMissing, ObjectCorrupt, ObjectStoreDenied, RuntimeError]
)
def test_what_does_not_pass_is_not_tried_again(
    operation: Operation, error: type[Exception]
) -> None:
    async def main() -> None:
        case = Case()
        await case.store.put("x", b"data")
        before = case.faulty.calls[operation]
        case.faulty.fail(operation, error=error)
        with pytest.raises(error, match="injected"):
            await case.call(operation)
        assert case.faulty.calls[operation] == before + 1
        assert case.pauses == []

    asyncio.run(main())


def test_a_timeout_after_success_is_repeated_harmlessly() -> None:
    async def main() -> None:
        case = Case()
        case.faulty.fail("put", after=True)
        await case.store.put("x", b"data")
        assert await case.store.get("x") == b"data"
        case.faulty.fail("delete", after=True)
        assert await case.store.delete(["x"]) == {}
        assert case.faulty.calls["put"] == case.faulty.calls["delete"] == 2

    asyncio.run(main())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_call_that_hangs_is_given_up_and_tried_again(operation: Operation) -> None:
    async def main() -> None:
        policy = RetryPolicy(attempts=2, deadline_s=30, attempt_deadline_s=0.01)
        case = Case(policy)
        await case.faulty.inner.put("x", b"data")
        case.faulty.hold(operation)
        await case.call(operation)
        assert case.faulty.calls[operation] == 2

    asyncio.run(main())


def test_the_deadline_bounds_all_attempts() -> None:
    async def main() -> None:
        policy = RetryPolicy(attempts=1000, deadline_s=0.05, attempt_deadline_s=0.01)
        case = Case(policy)
        for nth in range(1, 1000):
            case.faulty.hold("get", nth)
        with pytest.raises(ObjectStoreUnavailable, match="get x: no answer in time"):
            await case.store.get("x")
        assert case.faulty.calls["get"] < 1000

    asyncio.run(main())


def test_a_cancelled_call_is_not_tried_again() -> None:
    async def main() -> None:
        case = Case()
        gate = case.faulty.hold("put")
        task = asyncio.ensure_future(case.store.put("x", b"data"))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert case.faulty.calls["put"] == 1

    asyncio.run(main())


class Stubborn(MemoryStore):
    """Refuses some objects for good and some for a number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.passing = {"b": 2, "d": 1}
        self.asked: list[list[str]] = []

    async def delete(self, names: object) -> dict[str, ObjectStoreError]:
        assert isinstance(names, (list, tuple))
        self.asked.append(list(names))
        failed: dict[str, ObjectStoreError] = {}
        for name in names:
            if name == "c":
                failed[name] = ObjectStoreDenied("delete c: no")
            elif self.passing.get(name, 0) > 0:
                self.passing[name] -= 1
                failed[name] = ObjectStoreUnavailable(f"delete {name}: later")
        await super().delete([name for name in names if name not in failed])
        return failed


def test_a_delete_repeats_only_the_names_that_may_pass() -> None:
    async def main() -> None:
        inner = Stubborn()
        for name in "abcd":
            await inner.put(name, b"")

        async def no_sleep(_: float) -> None:
            return

        store = RetryingStore(inner, sleep=no_sleep)
        failed = await store.delete(list("abcd"))
        assert list(failed) == ["c"]
        assert isinstance(failed["c"], ObjectStoreDenied)
        assert inner.asked == [["a", "b", "c", "d"], ["b", "d"], ["b"]]
        assert inner.names == ["c"]

        inner.passing = {"c2": 1000}
        await inner.put("c2", b"")
        failed = await store.delete(["c", "c2", "gone"])
        assert {n: type(e) for n, e in failed.items()} == {
            "c": ObjectStoreDenied,
            "c2": ObjectStoreUnavailable,
        }

    asyncio.run(main())
