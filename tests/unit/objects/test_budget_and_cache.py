"""The two bounds on memory: what is in flight, and what is kept."""

from __future__ import annotations

import asyncio
import random

import pytest

from nokv.objects.budget import ByteBudget
from nokv.objects.cache import BlockCache


def test_a_budget_is_never_exceeded_and_ends_empty() -> None:
    async def main() -> None:
        rng = random.Random(5)
        budget = ByteBudget(100)

        async def user() -> None:
            for _ in range(20):
                async with budget.hold(rng.randint(0, 100)):
                    assert budget.held_bytes <= 100
                    for _ in range(rng.randint(0, 3)):
                        await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(user()) for _ in range(30)]
        for turn in range(200):
            await asyncio.sleep(0)
            if turn % 10 == 0:
                tasks[rng.randrange(len(tasks))].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.held_bytes == 0
        assert 0 < budget.peak_bytes <= 100
        await budget.acquire(100)
        budget.release(100)

    asyncio.run(main())


def test_a_budget_serves_in_order() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        served: list[int] = []

        async def take(number: int, n_bytes: int) -> None:
            await budget.acquire(n_bytes)
            served.append(number)

        await take(0, 6)
        large = asyncio.ensure_future(take(1, 9))
        small = asyncio.ensure_future(take(2, 1))
        await asyncio.sleep(0)
        assert served == [0]
        budget.release(6)
        await asyncio.gather(large, small)
        assert served == [0, 1, 2]

    asyncio.run(main())


def test_a_waiter_that_gives_up_lets_the_next_one_pass() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        await budget.acquire(6)
        large = asyncio.ensure_future(budget.acquire(9))
        small = asyncio.ensure_future(budget.acquire(4))
        await asyncio.sleep(0)
        large.cancel()
        await small
        assert budget.held_bytes == 10

    asyncio.run(main())


def test_a_grant_that_meets_a_cancellation_is_given_back() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        await budget.acquire(10)
        waiter = asyncio.ensure_future(budget.acquire(10))
        await asyncio.sleep(0)
        budget.release(10)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert budget.held_bytes == 0

    asyncio.run(main())


def test_more_than_the_budget_is_a_defect() -> None:
    async def main() -> None:
        with pytest.raises(AssertionError):
            await ByteBudget(10).acquire(11)

    asyncio.run(main())


def test_the_cache_keeps_the_most_recently_used_within_its_bytes() -> None:
    cache = BlockCache(30)
    for index in range(3):
        cache.put("x", index, bytes([index]) * 10)
    assert cache.get("x", 0) == b"\0" * 10
    cache.put("y", 0, b"y" * 10)
    assert cache.get("x", 1) is None
    assert cache.get("x", 0) is not None
    assert cache.get("y", 0) == b"y" * 10
    assert (cache.held_bytes, len(cache)) == (30, 3)
    cache.put("z", 0, b"z" * 25)
    assert (cache.held_bytes, len(cache)) == (25, 1)
    cache.put("large", 0, b"l" * 31)
    assert cache.get("large", 0) is None
    cache.put("z", 0, b"z" * 5)
    assert cache.held_bytes == 5
    cache.clear()
    assert (cache.held_bytes, len(cache)) == (0, 0)


def test_the_cache_against_a_model() -> None:
    rng = random.Random(11)
    cache = BlockCache(1000)
    model: dict[tuple[str, int], bytes] = {}
    for _ in range(5000):
        key = (rng.choice("abc"), rng.randrange(20))
        if rng.random() < 0.5:
            data = rng.randbytes(rng.randrange(200))
            cache.put(*key, data)
            model.pop(key, None)
            model[key] = data
            while sum(map(len, model.values())) > 1000:
                del model[next(iter(model))]
        else:
            found = cache.get(*key)
            assert found == model.get(key)
            if found is not None:
                model[key] = model.pop(key)
        assert cache.held_bytes == sum(map(len, model.values())) <= 1000
