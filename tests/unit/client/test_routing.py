"""Which node is asked: discovery, leaders that change, nodes that die or fall silent."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.unit.client.loopback import CLUSTER, Cluster, Node, client, cluster

from nokv.client import AsyncClient, ClientConfig, connect, routing
from nokv.client.routing import backoff_s, parse_cluster
from nokv.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    NotReady,
    Unavailable,
    WrongCluster,
)
from nokv.wire.rpc import Consistency, Query

SHORT = ClientConfig(deadline_s=0.5)


def test_parse_cluster() -> None:
    assert parse_cluster("a:1, b:2,,a:1") == ("a:1", "b:2")
    for text in ("", " , ", "a", "a:x", "a:1,b"):
        with pytest.raises(ConfigError) as caught:
            parse_cluster(text)
        assert caught.value.hint


def test_the_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOKV_CLUSTER", raising=False)
    with pytest.raises(ConfigError, match="no cluster"):
        connect()

    async def main() -> None:
        async with cluster() as running:
            monkeypatch.setenv("NOKV_CLUSTER", running.addresses)
            async with connect(store=running.store) as fs:
                await fs.mkdir("/a")

    asyncio.run(main())


def test_backoff_is_bounded_and_starts_at_once() -> None:
    rng = random.Random(1)
    assert backoff_s(0, rng) == 0
    assert all(backoff_s(attempt, rng) <= routing.BACKOFF_MAX_S for attempt in range(1, 100))


def test_one_known_node_leads_to_all() -> None:
    async def main() -> None:
        async with cluster() as running:
            running.leader = running.nodes[2]
            async with connect(running.nodes[0].address, store=running.store) as fs:
                await fs.mkdir("/a")
                assert {node.number for node in fs._core.router.nodes} == {1, 2, 3}

    asyncio.run(main())


def test_the_hint_of_a_refusal_is_followed() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            for number in (1, 2, 0):
                running.leader = running.nodes[number]
                await fs.mkdir(f"/{number}")
            assert len(await fs.listdir("/")) == 4

    asyncio.run(main())


def test_a_leader_that_dies_is_replaced() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            dead = running.leader
            assert dead is not None
            running.leader = None
            await dead.stop()
            making = asyncio.ensure_future(fs.mkdir("/b"))
            await asyncio.sleep(0)
            running.leader = running.nodes[1]
            await making
            assert await fs.exists("/b")

    asyncio.run(main())


def test_a_leader_that_falls_silent_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # The RPC port answers pings even of a silent handler, so here the attempt's limit counts.
    from nokv.client import calls

    monkeypatch.setattr(calls, "ATTEMPT_S", 0.2)

    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            assert running.leader is not None
            running.leader.silent = True
            running.leader = running.nodes[1]
            await fs.mkdir("/b")

    asyncio.run(main())


def test_a_process_that_stops_answering_costs_a_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(routing, "PING_TIMEOUT_S", 0.1)

    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            assert running.leader is not None
            for connection in running.leader.server.connections:
                assert connection._transport is not None
                connection._transport.pause_reading()  # as a stopped process: nothing is read
            running.leader = running.nodes[1]
            await asyncio.gather(*(fs.stat("/a") for _ in range(30)), fs.mkdir("/b"))

    asyncio.run(main())


def test_reads_spread_over_nodes_under_load_and_go_to_the_leader_without() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            await _connected(fs, 3)
            for node in running.nodes:
                node.reads.clear()
            for _ in range(10):
                await fs.stat("/a")
            assert [len(node.reads) for node in running.nodes] == [10, 0, 0]
            await asyncio.gather(*(fs.stat("/a") for _ in range(90)))
            assert all(len(node.reads) >= 20 for node in running.nodes)

    asyncio.run(main())


def test_reads_can_be_pinned_to_a_node() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            for node in running.nodes:
                node.reads.clear()
            await fs.reading_from(2).stat("/a")
            await fs.reading_from(running.nodes[2].address).listdir("/")
            assert [len(node.reads) for node in running.nodes] == [0, 1, 1]
            with pytest.raises(InvalidArgument, match="no node 9"):
                fs.reading_from(9)

    asyncio.run(main())


def test_reads_are_linearizable_unless_staleness_is_asked_for_by_name() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.stat("/")
            await fs.stale(1.5).stat("/")
            first, second = [query for node in running.nodes for query in node.reads]
            if first.consistency == Consistency.BOUNDED:
                first, second = second, first
            assert first.consistency == Consistency.LINEARIZABLE
            assert second.consistency == Consistency.BOUNDED
            assert second.max_stale_ms == 1500
            with pytest.raises(InvalidArgument):
                fs.stale(0)

    asyncio.run(main())


def test_a_node_that_is_not_ready_is_not_asked_again_while_others_are() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            await fs.mkdir("/a")
            await _connected(fs, 3)

            def refuse(node: Node, query: Query) -> None:
                del query
                if node.number != 3:
                    raise NotReady("behind")

            running.on_read = refuse
            for _ in range(5):
                await fs.stat("/a")
            assert len(running.nodes[2].reads) >= 5

    asyncio.run(main())


def test_errors_of_the_read_itself_are_not_retried() -> None:
    async def main() -> None:
        async with client() as (running, fs):
            with pytest.raises(NotFound):
                await fs.stat("/missing")
            assert running.reads == 1

    asyncio.run(main())


def test_no_node_at_all() -> None:
    async def main() -> None:
        async with cluster() as running:
            addresses = running.addresses
        with pytest.raises(Unavailable, match="no node of") as caught:
            await connect(addresses, config=SHORT)
        assert str(caught.value).count(caught.value.hint) == 1

    asyncio.run(main())


def test_why_a_node_was_not_reached_is_told_though_the_last_attempt_had_no_answer() -> None:
    async def main() -> None:
        attempts = 0

        async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """End the first connection, as a node that wants TLS does, and answer no other."""
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                await reader.read()  # until the client goes
            writer.close()

        async with await asyncio.start_server(turn_away, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            with pytest.raises(Unavailable, match="does it want TLS") as caught:
                await connect(f"{host}:{port}", config=ClientConfig(deadline_s=1.0))
            assert attempts > 1
            assert "name your certificate" in caught.value.hint

    asyncio.run(main())


def test_all_nodes_gone_is_told_at_the_deadline() -> None:
    async def main() -> None:
        async with client(config=SHORT) as (running, fs):
            await fs.stat("/")
            for node in running.nodes:
                await node.stop()
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await fs.stat("/")
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await fs.mkdir("/a")

    asyncio.run(main())


def test_a_node_of_another_cluster_is_refused() -> None:
    async def main() -> None:
        async with cluster() as running:
            async with connect(running.addresses, cluster_id=CLUSTER, store=running.store) as fs:
                await fs.stat("/")
            with pytest.raises(WrongCluster):
                await connect(running.addresses, cluster_id="another", config=SHORT)

    asyncio.run(main())


def test_a_volume_that_is_made_later_is_waited_for() -> None:
    async def main() -> None:
        async with cluster() as running:
            volume, running.volume_reply = running.volume_reply, None
            with_volume = asyncio.ensure_future(_connect(running))
            await asyncio.sleep(0)
            running.volume_reply = volume
            fs = await with_volume
            assert fs.volume == volume
            await fs.close()

    asyncio.run(main())


async def _connect(running: Cluster) -> AsyncClient:
    return await connect(running.addresses, store=running.store)


async def _connected(fs: object, count: int) -> None:
    """Wait until the client has connections to so many nodes."""
    router = fs._core.router  # type: ignore[attr-defined]
    for node in router.nodes[:count]:
        await router.connection(node)
