"""Object stores side by side: PUT of 1 MiB and GET of 16 KiB at concurrency 16.

    python bench/objects.py [--seconds 2] [--repeats 5] [--json FILE]

Rows: aioboto3 and obstore as they come, and `S3Store` with retries, upload and read on top, against
rclone on loopback; the directory store beside them. Each with an idle event loop and with one that
is saturated by callbacks of 1 ms. Repeats are interleaved and the medians are
shown; the CPU time is the client's own and moves least when the machine does other work too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import uvloop
from rich.console import Console
from rich.table import Table

from nokv.objects.local import LocalStore
from nokv.objects.port import ObjectStore
from nokv.objects.read import Reader
from nokv.objects.retry import RetryingStore
from nokv.objects.s3 import S3Store
from nokv.objects.upload import Uploader
from nokv.testing.s3server import s3_server
from nokv.types.values import StoredChunk, StoredExtent, StoredObject

PUT_BYTES = 1024 * 1024
GET_BYTES = 16 * 1024
CONCURRENCY = 16
OBJECTS = 64
VOLUME = "0123456789abcdef" * 2
BUSY_NS = 1_000_000

Untyped: TypeAlias = Any

Call = Callable[[int], Awaitable[object]]
Client = tuple[str, Call, Call]
"""(name, put of the i-th object, get of the i-th object)."""


_numbers = itertools.count()


def _new_key(client: str) -> str:
    """Return a key as deep and as new as an upload's: the server makes directories for it."""
    return f"{client}/{VOLUME}/0/{next(_numbers):016x}/00000000/0000.0000"


async def _rate(call: Call, seconds: float) -> tuple[float, float]:
    """Return (calls that end in a second, CPU us of this process a call), CONCURRENCY in flight."""
    end = time.perf_counter() + seconds
    done = 0

    async def worker(first: int) -> None:
        nonlocal done
        at = first
        while time.perf_counter() < end:
            await call(at % OBJECTS)
            at += CONCURRENCY
            done += 1

    start, start_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(first) for first in range(CONCURRENCY)))
    spent, spent_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return done / spent, spent_cpu / done * 1e6


@contextlib.asynccontextmanager
async def _saturated(*, on: bool) -> AsyncIterator[None]:
    """Keep the loop busy with callbacks of BUSY_NS, back to back."""

    async def burn() -> None:
        while True:
            until = time.perf_counter_ns() + BUSY_NS
            while time.perf_counter_ns() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(burn()) if on else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _aioboto3(client: Untyped, data: bytes) -> Client:
    async def get(i: int) -> bytes:
        reply = await client.get_object(Bucket="bench", Key=f"small/{i}")
        async with reply["Body"] as body:
            return bytes(await body.read())

    async def put(_: int) -> object:
        return await client.put_object(Bucket="bench", Key=_new_key("aioboto3"), Body=data)

    return ("aioboto3", put, get)


def _obstore(endpoint: str, environment: dict[str, str], data: bytes) -> Client:
    import obstore
    from obstore.store import S3Store as Raw

    raw = Raw(
        "bench",
        endpoint=endpoint,
        region=environment["AWS_DEFAULT_REGION"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )

    async def get(i: int) -> bytes:
        return bytes(await (await obstore.get_async(raw, f"small/{i}")).bytes_async())

    async def put(_: int) -> object:
        return await obstore.put_async(raw, _new_key("obstore"), data, use_multipart=False)

    return ("obstore", put, get)


async def _nokv(name: str, store: ObjectStore, data: bytes) -> Client:
    """Return the client with everything on top: retries, budgets, sums, SHA-256, verified reads."""
    uploader = Uploader(store, volume=VOLUME, shard=0, session=1)
    reader = Reader(store, volume=VOLUME, shard=0)
    number = 0

    async def lease() -> int:
        nonlocal number
        number += 1
        return number

    small: list[dict[int, StoredChunk]] = []
    for i in range(OBJECTS):
        attempt = uploader.attempt(lease)
        body = await attempt.upload(data[i : i + GET_BYTES])
        assert attempt.number is not None
        (part,) = body.chunks[0].parts
        found = StoredObject(
            1, attempt.number, part.chunk, part.block, part.piece, part.length, part.sums
        )
        small.append({0: StoredChunk((found,), (StoredExtent(0, GET_BYTES, 0, 0, 1),))})

    async def get(i: int) -> bytes:
        return await reader.read(small[i], 0, GET_BYTES)

    async def put(_: int) -> object:
        return await uploader.attempt(lease).upload(data)

    return (name, put, get)


async def _measure(
    directory: Path, endpoint: str, environment: dict[str, str], seconds: float, repeats: int
) -> list[dict[str, Any]]:
    import aioboto3
    from botocore.config import Config

    data = os.urandom(PUT_BYTES)
    stores: list[ObjectStore] = []
    async with aioboto3.Session().client(
        "s3", endpoint_url=endpoint, config=Config(max_pool_connections=CONCURRENCY)
    ) as client:
        s3 = RetryingStore(S3Store("bench", endpoint=endpoint))
        local = RetryingStore(LocalStore(directory / "local"))
        stores += [s3, local]
        for store in stores:
            await store.ensure_bucket()
        for i in range(OBJECTS):
            await s3.put(f"small/{i}", data[i : i + GET_BYTES])
        clients = [
            _aioboto3(client, data),
            _obstore(endpoint, environment, data),
            await _nokv("nokv on S3", s3, data),
            await _nokv("nokv on a directory", local, data),
        ]
        found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        for _ in range(repeats):
            for busy in (False, True):
                for name, put, get in clients:
                    for what, call in (("PUT 1 MiB", put), ("GET 16 KiB", get)):
                        async with _saturated(on=busy):
                            rate = await _rate(call, seconds)
                        loop = "saturated" if busy else "idle"
                        found.setdefault((what, name, loop), []).append(rate)
        for store in stores:
            await store.close()
    return [
        {
            "what": what,
            "client": name,
            "loop": loop,
            "per_second": statistics.median(rate for rate, _ in rates),
            "cpu_us": statistics.median(cpu for _, cpu in rates),
        }
        for (what, name, loop), rates in sorted(found.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one repeat of one row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "s3").mkdir()
        with (
            s3_server(directory / "s3") as server,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            rows = runner.run(
                _measure(
                    directory,
                    server.endpoint,
                    server.environment,
                    arguments.seconds,
                    arguments.repeats,
                )
            )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = Table(title=f"objects ({machine})")
    for column in ("what", "client", "event loop", "a second", "client CPU us"):
        table.add_column(
            column, justify="right" if column in ("a second", "client CPU us") else "left"
        )
    for row in rows:
        # A saturated loop burns a whole core by itself.
        cpu = f"{row['cpu_us']:,.0f}" if row["loop"] == "idle" else ""
        rate = f"{row['per_second']:,.0f}"
        table.add_row(row["what"], row["client"], row["loop"], rate, cpu)
    Console(file=sys.stdout).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
