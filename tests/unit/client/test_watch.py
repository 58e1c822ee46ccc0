"""Watches through the client: each change once, whatever becomes of nodes and connections."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.client.loopback import Cluster, client, cluster

from nokv.client import Change, ClientConfig, Watch
from nokv.client.sync import connect_sync
from nokv.client.watch import WINDOW_BYTES_MAX
from nokv.errors import (
    CursorTooOld,
    InvalidArgument,
    NotFound,
    NotReady,
    PermissionDenied,
    Stale,
    Unavailable,
)
from nokv.server import rpc
from nokv.types.commands import TrimEvents
from nokv.types.values import Caller
from nokv.types.watch import WATCH_WINDOW_BYTES_MIN


async def taken(watch: Watch, count: int) -> list[Change]:
    """Return the next `count` changes; more must not be there."""
    found: list[Change] = []
    while len(found) < count:
        found += await watch.take(count - len(found))
    return found


def shown(changes: list[Change]) -> list[tuple[str, str | None, str | None]]:
    return [(one.kind, one.path, one.to_path) for one in changes]


def test_what_happens_below_a_directory() -> None:
    async def main() -> None:
        async with client() as (_, fs):
            await fs.mkdir("/runs")
            await fs.mkdir("/other")
            async with fs.watch("/runs") as watch:
                await fs.mkdir("/runs/7")
                await fs.create("/runs/7/a")
                await fs.rename("/runs/7/a", "/runs/7/b")
                await fs.rename("/runs/7/b", "/other/b")
                await fs.create("/other/c")
                await fs.rename("/other/c", "/runs/c")
                await fs.bulk_create("/runs/7", [b"x", b"\xff"])
                await fs.setxattr("/runs/c", "user.k", b"v")
                await fs.write_bytes("/runs/c", b"12345")
                await fs.remove_tree("/runs/7")
                found = await taken(watch, 9)
        assert shown(found) == [
            ("create", "/runs/7", None),
            ("create", "/runs/7/a", None),
            ("rename", "/runs/7/a", "/runs/7/b"),
            ("moved_out", "/runs/7/b", None),
            ("moved_in", "/runs/c", None),
            ("create", "/runs/7", None),
            ("xattr", "/runs/c", None),
            ("publish", "/runs/c", None),
            ("remove", "/runs/7", None),
        ]
        assert found[5].names == ("x", "\udcff")
        assert found[7].size == 5
        assert found[7].generation == found[7].cursor == found[7].event.version
        assert [one.cursor for one in found] == sorted({one.cursor for one in found})

    asyncio.run(main())


def test_the_root_and_the_directory_itself() -> None:
    async def main() -> None:
        async with client() as (_, fs):
            await fs.mkdir("/d")
            async with fs.watch("/", recursive=False) as top, fs.watch("/d") as own:
                await fs.chmod("/d", 0o700)
                await fs.create("/d/x")
                await fs.rename("/d", "/e")
                await fs.create("/e/y")
                await fs.create("/last")
                assert shown(await taken(top, 3)) == [
                    ("setattr", "/d", None),
                    ("rename", "/d", "/e"),
                    ("create", "/last", None),
                ]
                assert shown(await taken(own, 4)) == [
                    ("setattr", "/d", None),
                    ("create", "/d/x", None),
                    ("rename", "/d", None),
                    ("create", "/d/y", None),
                ]

    asyncio.run(main())


def test_kinds() -> None:
    async def main() -> None:
        async with client() as (_, fs):
            async with fs.watch("/", types=["moved-out", "remove"]) as watch:
                await fs.create("/a")
                await fs.unlink("/a")
                await fs.create("/b")
                await fs.unlink("/b")
                assert [one.kind for one in await taken(watch, 2)] == ["remove"] * 2
            with pytest.raises(InvalidArgument, match="no kind"):
                fs.watch("/", types=["explode"])

    asyncio.run(main())


def test_a_change_says_where_to_go_on() -> None:
    async def main() -> None:
        async with client() as (_, fs):
            watch = fs.watch("/", since=0)
            for number in range(20):
                await fs.create(f"/{number}")
            everything = await taken(watch, 20)
            for position, change in enumerate(everything):
                async with fs.watch("/", since=change.cursor) as again:
                    rest = everything[position + 1 :]
                    assert shown(await taken(again, len(rest))) == shown(rest)
            half = fs.watch("/", since=0)
            count = 0
            async for change in half:
                assert half.cursor == change.cursor
                count += 1
                if count == 7:
                    break
            resumed = fs.watch("/", since=half.cursor)
            assert shown(await taken(resumed, 13)) == shown(everything[7:])
            for one in (watch, half, resumed):
                one.close()

    asyncio.run(main())


def test_a_cut_connection_loses_and_doubles_nothing() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            made: list[int] = []

            async def write() -> None:
                for number in range(300):
                    made.append((await fs.create(f"/{number}")).version)
                    if not number % 60:
                        for node in running.nodes:
                            for watch in list(node.watches._all):
                                watch.connection.end()

            async with fs.watch("/") as watch:
                writing = asyncio.create_task(write())
                found = await taken(watch, 300)
                await writing
            assert [one.cursor for one in found] == made

    asyncio.run(main())


def test_a_node_that_lags_or_is_silent_is_left() -> None:
    async def main() -> None:
        async with client(2) as (running, fs), fs.watch("/", bookmark_s=0.1) as watch:
            await fs.create("/a")
            assert len(await taken(watch, 1)) == 1
            (at,) = [node for node in running.nodes if node.watches.count]
            at.watches.end_all(NotReady("lags"))
            await fs.create("/b")
            assert [one.path for one in await taken(watch, 1)] == ["/b"]

    asyncio.run(main())


def test_errors_that_do_not_pass() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            with pytest.raises(NotFound):
                await fs.watch("/no").open()
            made = [(await fs.create(f"/{number}")).version for number in range(5)]
            running.internal(TrimEvents(made[2], 100))
            with pytest.raises(CursorTooOld) as caught:
                await fs.watch("/", since=0).take()
            assert caught.value.oldest == made[1]
            async with fs.watch("/", since=caught.value.oldest) as watch:
                assert [one.cursor for one in await taken(watch, 3)] == made[2:]
            with pytest.raises(InvalidArgument, match="above the present"):
                await fs.watch("/", since=10**6).open()
            for wrong in ({"since": -2}, {"window_bytes": 1}, {"bookmark_s": 0.0}):
                with pytest.raises(InvalidArgument):
                    fs.watch("/", **wrong)
            with pytest.raises(InvalidArgument):
                fs.watch("/", window_bytes=WINDOW_BYTES_MAX + 1)

    asyncio.run(main())


def test_permissions_and_the_end_of_a_directory() -> None:
    async def main() -> None:
        async with (
            cluster() as running,
            running.connect() as fs,
            running.connect(caller=Caller(1000, 100)) as user,
        ):
            await fs.mkdir("/private", 0o700)
            with pytest.raises(PermissionDenied):
                await user.watch("/private").open()
            await fs.mkdir("/public")
            async with user.watch("/public") as watch:
                await fs.remove_tree("/public")
                assert [one.kind for one in await taken(watch, 1)] == ["remove"]
                end_watches_that_are_over(running)
                with pytest.raises(Stale):
                    await watch.take()
                assert await watch.take() == [], "it is closed"

    asyncio.run(main())


def end_watches_that_are_over(running: Cluster) -> None:
    for node in running.nodes:
        node.watches.tick(1e12)


def test_a_slow_consumer_holds_the_node_back() -> None:
    async def main() -> None:
        async with client(1) as (running, fs):
            watch = fs.watch("/", window_bytes=WATCH_WINDOW_BYTES_MIN, since=0)
            await watch.open()
            for number in range(40):
                names = [b"%02d-%0240d" % (number, n) for n in range(64)]
                await fs.bulk_create("/", names)
            node = running.nodes[0].watches
            assert node.lagging == 1
            node.tick(1e12)
            assert len(await taken(watch, 40)) == 40
            assert watch.behind < 40
            watch.close()

    asyncio.run(main())


def test_bookmarks_move_the_cursor() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/quiet")
            async with fs.watch("/quiet") as watch:
                for number in range(5):
                    await fs.create(f"/{number}")
                before = watch.cursor
                await asyncio.sleep(0)
                end_watches_that_are_over(running)
                assert await watch.take(timeout_s=0.2) == []
                assert watch.cursor is not None
                assert before is not None
                assert watch.cursor == before + 5

    asyncio.run(main())


def test_closing_ends_the_iteration_and_tells_the_node() -> None:
    async def main() -> None:
        async with client(1) as (running, fs):
            watch = await fs.watch("/").open()
            waiting = asyncio.create_task(anext(aiter(watch), None))
            await asyncio.sleep(0)
            watch.close()
            assert await waiting is None
            await fs.exists("/")  # what was sent before is handled before
            assert running.nodes[0].watches.count == 0

    asyncio.run(main())


def test_no_node_is_told_and_one_may_ask_again() -> None:
    async def main() -> None:
        config = ClientConfig(deadline_s=0.5)
        async with client(1, config=config) as (running, fs), fs.watch("/") as watch:
            await fs.create("/a")
            assert len(await taken(watch, 1)) == 1
            await running.nodes[0].stop()
            with pytest.raises(Unavailable):
                await watch.take()

    asyncio.run(main())


def test_the_synchronous_form() -> None:
    async def main() -> None:
        async with cluster() as running:

            def use() -> None:
                with connect_sync(running.addresses, caller=Caller(), store=running.store) as fs:
                    fs.mkdir("/d")
                    with fs.watch("/d") as watch:
                        fs.create("/d/a")
                        fs.create("/d/b")
                        assert [next(watch).path, next(watch).path] == ["/d/a", "/d/b"]
                        cursor = watch.cursor
                        assert watch.take(timeout_s=0.05) == []
                        fs.create("/d/c")
                    for change in fs.watch("/d", since=cursor):
                        assert change.path == "/d/c"
                        break
                    assert watch.behind == 0

            await asyncio.to_thread(use)

    asyncio.run(main())


def test_the_port_counts_streams_apart_from_requests() -> None:
    async def main() -> None:
        async with client(1) as (running, fs), fs.watch("/"):
            server = running.nodes[0].server
            (connection,) = [one for one in server.connections if one.streams]
            assert connection.streams == 1
            assert server.requests == 0
            assert isinstance(connection, rpc.Connection)

    asyncio.run(main())
