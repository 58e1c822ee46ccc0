"""What is measured: each workload drives one client for a time and returns a rate or a latency."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable

from nokv.client.fs import AsyncClient

BULK = 128
DIRECTORIES = 32
STAT_FILES = 10_000
PUBLISH_BYTES = 1024 * 1024
READ_BYTES = 16 * 1024

_fresh = itertools.count()


async def keep_busy(
    outstanding: int, seconds: float, one: Callable[[], Awaitable[object]]
) -> float:
    """Call `one` from so many loops for a time; return calls a second."""
    end = time.perf_counter() + seconds
    start = time.perf_counter()
    count = 0

    async def loop() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await one()
            count += 1

    await asyncio.gather(*(loop() for _ in range(outstanding)))
    return count / (time.perf_counter() - start)


async def bulk_sequential(fs: AsyncClient, seconds: float) -> float:
    """Creates a second: ascending names in one directory, 128 a request, 4 requests in flight."""
    directory = f"/bulk-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(directory)
    numbers = itertools.count()

    async def one() -> None:
        first = next(numbers) * BULK
        await fs.bulk_create(directory, [b"%012d" % n for n in range(first, first + BULK)])

    return await keep_busy(4, seconds, one) * BULK


async def fill(fs: AsyncClient, directory: str, files: int) -> None:
    """Make a directory of so many empty files, 1,000 to a subdirectory."""
    await fs.mkdir(directory)
    names = [b"file-%04d" % number for number in range(1000)]
    for number in range(max(1, files // 1000)):
        below = f"{directory}/dir-{number:04d}"
        await fs.mkdir(below)
        await fs.bulk_create(below, names[:files])


async def bulk_random(fs: AsyncClient, seconds: float) -> float:
    """The same with random names over 32 directories."""
    top = f"/random-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(top)
    directories = [f"{top}/{i}" for i in range(DIRECTORIES)]
    for directory in directories:
        await fs.mkdir(directory)
    rng = random.Random(1)
    turns = itertools.cycle(directories)

    async def one() -> None:
        names = [b"%016x" % rng.getrandbits(64) for _ in range(BULK)]
        await fs.bulk_create(next(turns), names)

    return await keep_busy(4, seconds, one) * BULK


async def single_creates(fs: AsyncClient, seconds: float) -> float:
    """Creates a second, one a request, 64 outstanding."""
    directory = f"/single-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(directory)
    numbers = itertools.count()
    return await keep_busy(64, seconds, lambda: fs.create(f"{directory}/{next(numbers):012d}"))


async def serial_commit_ms(fs: AsyncClient, seconds: float) -> float:
    """Median milliseconds of one create after the other."""
    directory = f"/serial-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(directory)
    return await serial_ms(seconds, lambda n: fs.create(f"{directory}/{n:012d}"))


async def serial_ms(seconds: float, one: Callable[[int], Awaitable[object]]) -> float:
    """Median milliseconds of calls made one after the other."""
    end = time.perf_counter() + seconds
    costs = []
    for n in itertools.count():
        start = time.perf_counter()
        if start >= end:
            break
        await one(n)
        costs.append(time.perf_counter() - start)
    return statistics.median(costs) * 1e3


async def make_stat_files(fs: AsyncClient) -> str:
    """Make what the stat workloads look at, once."""
    top = f"/stat-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(top)
    await fs.mkdir(f"{top}/a")
    for first in range(0, STAT_FILES, 1000):
        await fs.bulk_create(f"{top}/a", [b"%06d" % n for n in range(first, first + 1000)])
    return f"{top}/a"


async def stats(fs: AsyncClient, directory: str, outstanding: int, seconds: float) -> float:
    """Stats by path a second."""
    rng = random.Random(2)
    return await keep_busy(
        outstanding, seconds, lambda: fs.stat(f"{directory}/{rng.randrange(STAT_FILES):06d}")
    )


async def publishes(fs: AsyncClient, seconds: float) -> float:
    """Publishes of 1 MiB a second at concurrency 16."""
    top = f"/publish-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(top)
    data = os.urandom(PUBLISH_BYTES)
    numbers = itertools.count()
    return await keep_busy(16, seconds, lambda: fs.write_bytes(f"{top}/{next(numbers):08d}", data))


async def make_read_files(fs: AsyncClient, count: int) -> list[str]:
    """Publish files of 16 KiB to read once each."""
    top = f"/read-{os.getpid()}-{next(_fresh)}"
    await fs.mkdir(top)
    names = [f"{top}/{n:06d}" for n in range(count)]
    gate = asyncio.Semaphore(16)

    async def one(name: str) -> None:
        async with gate:
            await fs.write_bytes(name, os.urandom(READ_BYTES))

    await asyncio.gather(*map(one, names))
    return names
