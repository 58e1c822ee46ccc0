"""What every object store does: one suite, three implementations."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import pytest
from tests.stores.conftest import OpenStore

from nokv.errors import InvalidArgument, ObjectCorrupt, ObjectMissing
from nokv.objects.port import DELETE_NAMES_MAX, ObjectStore

Body = Callable[[ObjectStore], Awaitable[None]]


def with_store(open_store: OpenStore, body: Body) -> None:
    async def main() -> None:
        store = open_store()
        try:
            await store.ensure_bucket()
            await body(store)
        finally:
            await store.close()

    asyncio.run(main())


def test_what_was_put_is_got_whole_and_in_ranges(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        data = os.urandom(300_000)
        await store.put("a/b/c", data)
        assert await store.get("a/b/c") == data
        for offset, length in [(0, 1), (0, 300_000), (299_999, 1), (1000, 262_144), (17, 0x1000)]:
            assert await store.get("a/b/c", offset, length) == data[offset : offset + length]
        assert await store.get("a/b/c", 299_000) == data[299_000:]
        assert isinstance(await store.get("a/b/c"), bytes)

    with_store(open_store, body)


def test_an_empty_object_is_an_object(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("empty", b"")
        assert await store.get("empty") == b""
        assert (await store.head("empty")).length == 0
        assert [info.name for info in (await store.list("")).objects] == ["empty"]

    with_store(open_store, body)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_put_takes_any_bytes(open_store: OpenStore, wrap: Callable[[bytes], bytes]) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("x", wrap(b"0123456789"))
        assert await store.get("x") == b"0123456789"

    with_store(open_store, body)


def test_a_block_fits(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        data = os.urandom(4 * 1024 * 1024)
        await store.put("block", memoryview(data))
        assert await store.get("block") == data
        assert await store.get("block", 4 * 1024 * 1024 - 10, 10) == data[-10:]

    with_store(open_store, body)


def test_a_second_put_of_the_same_is_a_retry(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("x", b"same")
        await store.put("x", b"same")
        assert await store.get("x") == b"same"
        assert len((await store.list("")).objects) == 1

    with_store(open_store, body)


def test_an_object_that_is_not_there_is_named(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("blocks/x/y", b"")
        for name in ("blocks/nowhere", "blocks/x", "blocks/x/y/z"):
            with pytest.raises(ObjectMissing, match=f"get {name}: "):
                await store.get(name)
            with pytest.raises(ObjectMissing, match=f"get {name}: "):
                await store.get(name, 5, 5)
            with pytest.raises(ObjectMissing, match=f"head {name}: "):
                await store.head(name)

    with_store(open_store, body)


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (10, 1), (11, 1), (11, None)])
def test_a_range_beyond_the_end_is_corruption(
    open_store: OpenStore, offset: int, length: int | None
) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("short", b"0123456789")
        with pytest.raises(ObjectCorrupt, match="get short: "):
            await store.get("short", offset, length)

    with_store(open_store, body)


def test_head_says_length_and_time(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("x", b"12345")
        info = await store.head("x")
        assert (info.name, info.length) == ("x", 5)
        assert abs(info.modified_ns - time.time_ns()) < 3_600 * 10**9

    with_store(open_store, body)


NAMES = ["a", "a-b", "a.b", "a/b", "a/b-c", "a/b.c/d", "a/b/c", "a0", "ab/c/d/e", "b/a", "b/b", "c"]
"""In an order that directories do not have by themselves: '-' < '.' < '/' < '0'."""

FILES = [name for name in NAMES if not any(other.startswith(name + "/") for other in NAMES)]
"""Without those that would be a file and a directory at once."""


def test_a_listing_is_in_byte_order_and_pages_add_up(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        for name in reversed(FILES):
            await store.put(name, name.encode())
        for prefix in ("", "a", "a/", "a/b", "a/b.c/", "ab/c/d/e", "b/", "zz", "a-"):
            wanted = [name for name in sorted(FILES) if name.startswith(prefix)]
            page = await store.list(prefix)
            assert [info.name for info in page.objects] == wanted
            assert [info.length for info in page.objects] == [len(name) for name in wanted]
            assert not page.more
            for limit in (1, 2, 3):
                assert await _all(store, prefix, limit) == wanted
        for after in [*NAMES, "a/a", "a/", "b0", "zzz"]:
            page = await store.list("", after)
            assert [i.name for i in page.objects] == [n for n in sorted(FILES) if n > after]

    with_store(open_store, body)


async def _all(store: ObjectStore, prefix: str, limit: int) -> list[str]:
    names: list[str] = []
    while True:
        page = await store.list(prefix, names[-1] if names else "", limit)
        assert len(page.objects) <= limit
        assert page.objects or not page.more
        names += [info.name for info in page.objects]
        if not page.more:
            return names


def test_an_empty_store_lists_nothing(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        assert await store.list("") == ((), False)
        assert await store.list("blocks/") == ((), False)

    with_store(open_store, body)


def test_what_was_deleted_is_gone(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        for name in FILES:
            await store.put(name, b"x")
        assert await store.delete(["a/b.c/d", "never/there", "b/a", "c", "c/below"]) == {}
        left = sorted(set(FILES) - {"a/b.c/d", "b/a", "c"})
        assert [info.name for info in (await store.list("")).objects] == left
        with pytest.raises(ObjectMissing):
            await store.get("b/a")
        assert await store.get("b/b") == b"x"
        assert await store.delete([]) == {}
        assert await store.delete(left) == {}
        assert await store.list("") == ((), False)
        await store.put("a/b.c/d", b"again")
        assert await store.get("a/b.c/d") == b"again"

    with_store(open_store, body)


def test_a_thousand_go_at_once(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        names = [f"d{i % 7}/{i:04x}" for i in range(DELETE_NAMES_MAX)]
        for at in range(0, len(names), 50):
            await asyncio.gather(*(store.put(name, b"") for name in names[at : at + 50]))
        assert len((await store.list("")).objects) == DELETE_NAMES_MAX
        assert await store.delete(names) == {}
        assert await store.list("") == ((), False)

    with_store(open_store, body)


def test_puts_and_deletes_in_one_directory_do_not_disturb_each_other(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        async def turn(i: int) -> None:
            for _ in range(5):
                await store.put(f"deep/er/{i}/x", b"%d" % i)
                assert await store.get(f"deep/er/{i}/x") == b"%d" % i
                assert await store.delete([f"deep/er/{i}/x"]) == {}

        await asyncio.gather(*(turn(i) for i in range(16)))
        assert await store.list("") == ((), False)

    with_store(open_store, body)


def test_a_store_that_is_opened_again_has_its_objects(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("blocks/kept", b"kept")
        again = open_store()
        await again.ensure_bucket()
        assert await again.get("blocks/kept") == b"kept"
        await again.close()

    with_store(open_store, body)


def test_a_cancelled_put_leaves_all_or_nothing(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        data = os.urandom(2 * 1024 * 1024)
        for turns in range(12):
            name = f"cancelled/{turns}"
            put = asyncio.ensure_future(store.put(name, data))
            for _ in range(turns):
                await asyncio.sleep(0)
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
            try:
                assert await store.get(name) == data
            except ObjectMissing:
                continue

    with_store(open_store, body)


BAD_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    "./a",
    ".tmp/x",
    "a\0",
    "a\n",
    "\xe9",
    " ",
]


def test_names_that_are_none_are_refused(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        for bad in BAD_NAMES:
            for call in (
                store.put(bad, b"x"),
                store.get(bad),
                store.head(bad),
                store.delete([bad]),
            ):
                with pytest.raises(InvalidArgument):
                    await call
        assert await store.list("") == ((), False)

    with_store(open_store, body)


def test_a_name_that_is_too_long_is_refused(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        with pytest.raises(InvalidArgument):
            await store.put("a" * 1025, b"")
        with pytest.raises(InvalidArgument):
            await store.list("../")

    with_store(open_store, body)


def test_aborting_stale_uploads_leaves_objects_alone(open_store: OpenStore) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put("x", b"x")
        for prefix in ("", "x", "x/"):
            assert await store.abort_stale(prefix, time.time_ns() + 10**12) == 0
        with pytest.raises(InvalidArgument):
            await store.abort_stale("../", 1)
        assert await store.get("x") == b"x"

    with_store(open_store, body)
