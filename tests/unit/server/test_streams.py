"""Streams of the RPC port: requests that go on being answered, and what belongs to none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from nokv.errors import BadRequest, NokvError, NotReady, Stale, Unavailable
from nokv.server.config import RpcConfig
from nokv.server.rpc import Call, RpcServer
from nokv.types.values import At, Caller
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import (
    PROTOCOL,
    CloseWatch,
    GrantWatch,
    Hello,
    HelloReply,
    OpenWatch,
    Ping,
    Pong,
    RequestBody,
    ResponseBody,
    WatchFrame,
    WatchOpened,
)

OPEN = OpenWatch(Caller(), At(), 1 << 20)


class Teller:
    """One opened stream."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.granted: list[int] = []
        self.is_writable = asyncio.Event()
        self.has_ended = asyncio.Event()

    def grant(self, n_bytes: int) -> None:
        self.granted.append(n_bytes)

    def writable(self) -> None:
        self.is_writable.set()

    def ended(self) -> None:
        self.has_ended.set()

    def tell(self, cursor: int) -> bytes:
        body = msgspec.msgpack.encode(WatchFrame(cursor, cursor, 0))
        self.call.connection.push(self.call.id, body)
        return body


class Handler:
    """Opens a stream for every `OpenWatch`."""

    def __init__(self) -> None:
        self.tellers: list[Teller] = []
        self.refuses: NokvError | None = None

    def hello(self, hello: Hello) -> HelloReply:
        del hello
        return HelloReply(PROTOCOL, "c", 1, "", (), None)

    def handle(self, call: Call, body: RequestBody) -> None:
        assert isinstance(body, OpenWatch)
        if self.refuses is not None:
            raise self.refuses
        teller = Teller(call)
        call.connection.open_stream(call, teller)
        self.tellers.append(teller)
        call.answer(WatchOpened(0, 1, 4, 7))
        teller.tell(8)

    def end_of_batch(self) -> None: ...


class Listener:
    """The client's end of a stream."""

    def __init__(self) -> None:
        self.heard: list[ResponseBody | NokvError] = []
        self.sizes: list[int] = []
        self._more = asyncio.Event()

    def take(self, body: ResponseBody | NokvError, size_bytes: int) -> None:
        self.heard.append(body)
        self.sizes.append(size_bytes)
        self._more.set()

    async def have(self, count: int) -> None:
        while len(self.heard) < count:
            self._more.clear()
            await self._more.wait()

    @property
    def cursors(self) -> list[int]:
        return [body.cursor for body in self.heard if isinstance(body, WatchFrame)]


def run(test: Callable[[Handler, RpcConnection, RpcServer], Awaitable[None]]) -> None:
    async def main() -> None:
        handler = Handler()
        server = RpcServer(RpcConfig(listen="127.0.0.1:0"), handler)
        host, port = await server.start("127.0.0.1", 0)
        connection = await RpcConnection.connect(f"{host}:{port}", Hello(PROTOCOL))
        try:
            await test(handler, connection, server)
        finally:
            await connection.close()
            await server.stop(1)

    asyncio.run(main())


def test_frames_follow_the_first_answer() -> None:
    async def test(handler: Handler, connection: RpcConnection, server: RpcServer) -> None:
        listener, other = Listener(), Listener()
        number, opened = await connection.open_stream(OPEN, listener.take, timeout_s=5)
        assert opened == WatchOpened(0, 1, 4, 7)
        second, _ = await connection.open_stream(OPEN, other.take, timeout_s=5)
        assert second != number
        assert (connection.streams, connection.in_flight, server.requests) == (2, 0, 0)
        for cursor in range(9, 20):
            body = handler.tellers[0].tell(cursor)
        await listener.have(12)
        assert listener.cursors == list(range(8, 20))
        assert other.cursors == [8]
        assert len(body) <= listener.sizes[-1] <= len(body) + 10, "and the id"
        assert await connection.call(Ping()) == Pong()

    run(test)


def test_grants_and_closing_reach_their_stream() -> None:
    async def test(handler: Handler, connection: RpcConnection, _: RpcServer) -> None:
        listener = Listener()
        number, _opened = await connection.open_stream(OPEN, listener.take, timeout_s=5)
        (teller,) = handler.tellers
        for body in (GrantWatch(number, 5), GrantWatch(number + 1, 6), GrantWatch(0, 7)):
            connection.post(body)
        connection.post(CloseWatch(number + 1))
        await connection.call(Ping())
        assert teller.granted == [5]
        connection.close_stream(number)
        connection.post(CloseWatch(number))
        await teller.has_ended.wait()
        connection.post(GrantWatch(number, 8))
        connection.post(CloseWatch(number))
        assert await connection.call(Ping()) == Pong(), "nobody minds what is over"
        assert teller.granted == [5]

    run(test)


def test_an_error_ends_a_stream_and_not_the_connection() -> None:
    async def test(handler: Handler, connection: RpcConnection, _: RpcServer) -> None:
        listener = Listener()
        number, _opened = await connection.open_stream(OPEN, listener.take, timeout_s=5)
        (teller,) = handler.tellers
        teller.call.connection.end_stream(number, Stale("gone"))
        await listener.have(2)
        assert isinstance(listener.heard[1], Stale)
        assert connection.streams == 0
        assert not teller.has_ended.is_set(), "it ended itself"
        handler.refuses = NotReady("not yet")
        with pytest.raises(NotReady):
            await connection.open_stream(OPEN, listener.take, timeout_s=5)
        assert connection.streams == 0

    run(test)


def test_both_sides_hear_of_the_end_of_the_connection() -> None:
    async def test(handler: Handler, connection: RpcConnection, _: RpcServer) -> None:
        listener = Listener()
        await connection.open_stream(OPEN, listener.take, timeout_s=5)
        await listener.have(1)
        connection.abort()
        assert isinstance(listener.heard[1], Unavailable)
        await handler.tellers[0].has_ended.wait()
        connection.post(GrantWatch(1, 1))
        with pytest.raises(Unavailable):
            await connection.open_stream(OPEN, listener.take, timeout_s=5)

    run(test)


def test_an_id_is_one_stream() -> None:
    async def test(handler: Handler, connection: RpcConnection, _: RpcServer) -> None:
        await connection.open_stream(OPEN, Listener().take, timeout_s=5)
        (teller,) = handler.tellers
        with pytest.raises(BadRequest):
            teller.call.connection.open_stream(teller.call, teller)

    run(test)
