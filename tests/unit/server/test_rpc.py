"""The RPC port: any bytes cost their connection only; queues, deadlines and order hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv.errors import (
    BadRequest,
    DeadlineExceeded,
    NokvError,
    NotReady,
    Overloaded,
    TooLarge,
    Unavailable,
    WrongCluster,
    WrongShard,
)
from nokv.server.config import RpcConfig
from nokv.server.rpc import Call, RpcServer
from nokv.types.limits import FRAME_BYTES_MAX
from nokv.wire.connection import RpcConnection
from nokv.wire.framing import HEADER_BYTES, frame
from nokv.wire.rpc import (
    PROTOCOL,
    ErrorReply,
    Hello,
    HelloReply,
    MakeDigest,
    Ping,
    Pong,
    Propose,
    Request,
    RequestBody,
    ResultsReply,
    Status,
    request_codec,
    response_codec,
)


class Echo:
    """Answers a digest's number with itself as the only result; 'Status' is held until told."""

    def __init__(self) -> None:
        self.held: list[Call] = []
        self._arrived = asyncio.Event()
        self.batches = 0

    async def have(self, count: int) -> None:
        """Wait until so many calls were held."""
        while len(self.held) < count:
            self._arrived.clear()
            await self._arrived.wait()

    def hello(self, hello: Hello) -> HelloReply:
        if hello.protocol != PROTOCOL:
            raise WrongCluster("another protocol")
        return HelloReply(PROTOCOL, "c", 1, "", (), None)

    def handle(self, call: Call, body: RequestBody) -> None:
        if isinstance(body, MakeDigest):
            call.fail(BadRequest(str(body.number)))
        elif isinstance(body, Status):
            self.held.append(call)
            self._arrived.set()
        elif isinstance(body, Propose):
            call.answer(ResultsReply(()))
        else:
            raise NotReady("nothing else")

    def end_of_batch(self) -> None:
        self.batches += 1


@contextlib.asynccontextmanager
async def serving(config: RpcConfig | None = None) -> AsyncIterator[tuple[RpcServer, Echo, str]]:
    echo = Echo()
    server = RpcServer(config or RpcConfig(listen="127.0.0.1:0"), echo)
    host, port = await server.start("127.0.0.1", 0)
    try:
        yield server, echo, f"{host}:{port}"
    finally:
        await server.stop(0.01 if server.requests else 5)


def run(test: Callable[[RpcServer, Echo, str], Awaitable[None]], **limits: int) -> None:
    async def main() -> None:
        async with serving(msgspec.structs.replace(RpcConfig(listen="127.0.0.1:0"), **limits)) as (
            server,
            echo,
            address,
        ):
            await test(server, echo, address)

    asyncio.run(main())


async def raw(address: str, data: bytes) -> list[bytes]:
    """Send bytes, end the stream, and return the frames that were answered before the end."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answers: list[bytes] = []
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        everything = await reader.read()
        while everything:
            length = int.from_bytes(everything[:HEADER_BYTES], "big")
            answers.append(everything[HEADER_BYTES : HEADER_BYTES + length])
            everything = everything[HEADER_BYTES + length :]
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answers


HELLO = frame(request_codec.encode(Request(1, 0, 0, Hello(PROTOCOL))))


def test_calls_are_pipelined_and_matched_by_id() -> None:
    async def test(_server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        held = asyncio.ensure_future(connection.call(Status()))
        answers = await asyncio.gather(
            *(connection.call(MakeDigest(n)) for n in range(500)), return_exceptions=True
        )
        assert [str(a.args[1]) for a in answers if isinstance(a, NokvError)] == [
            str(n) for n in range(500)
        ]
        (call,) = echo.held
        assert not held.done()
        call.answer(Pong())
        assert await held == Pong()
        await connection.close()

    run(test)


def test_a_connection_that_does_not_say_hello_ends() -> None:
    async def test(server: RpcServer, _echo: Echo, address: str) -> None:
        (answer,) = await raw(address, frame(request_codec.encode(Request(7, 0, 0, Ping()))))
        response = response_codec.decode(answer)
        assert (response.id, response.body.code) == (7, WrongCluster.code)  # type: ignore[union-attr]
        with pytest.raises(WrongCluster, match="another protocol"):
            await RpcConnection.connect(address, Hello(PROTOCOL + 1))
        assert server.hostile_total == 2

    run(test)


def test_silence_instead_of_a_hello_ends_the_connection() -> None:
    async def test(server: RpcServer, _echo: Echo, address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert b"no hello" in await reader.read()
        writer.close()
        await writer.wait_closed()
        assert not server.connections

    run(test, hello_ms=60)


def test_a_request_of_an_unknown_kind_gets_its_error_and_the_connection_lives() -> None:
    async def test(_server: RpcServer, _echo: Echo, address: str) -> None:
        unknown = frame(msgspec.msgpack.encode([9, 0, 0, [99, "new"]]))
        extra = frame(msgspec.msgpack.encode([10, 0, 0, [6], "field"]))
        ping = frame(request_codec.encode(Request(11, 0, 0, Ping())))
        answers = await raw(address, HELLO + unknown + extra + ping)
        decoded = [response_codec.decode(answer) for answer in answers]
        assert [response.id for response in decoded] == [1, 9, 10, 11]
        for response in decoded[1:3]:
            assert isinstance(response.body, ErrorReply)
            assert response.body.code == BadRequest.code
        assert decoded[3].body == Pong()

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        frame(b"\xc1"),
        frame(b""),
        frame(b"\x91" * 100_000),
        (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 64,
    ],
)
def test_bytes_that_are_no_request_end_the_connection_with_an_error(data: bytes) -> None:
    async def test(_server: RpcServer, _echo: Echo, address: str) -> None:
        *_, last = await raw(address, HELLO + data)
        response = response_codec.decode(last)
        assert response.id == 0
        assert isinstance(response.body, ErrorReply)
        assert response.body.code in (BadRequest.code, TooLarge.code)

    run(test)


def test_any_bytes_cost_the_connection_only() -> None:
    bodies: list[RequestBody] = [Ping(), MakeDigest(3), Propose((b"x",)), Hello(PROTOCOL)]
    valid = st.sampled_from(bodies).map(
        lambda body: frame(request_codec.encode(Request(5, 0, 0, body)))
    )
    framed = st.binary(max_size=64).map(frame)
    pieces = st.lists(valid | framed | st.binary(max_size=64), max_size=6).map(b"".join)

    @settings(max_examples=40)
    @given(samples=st.lists(st.tuples(st.booleans(), pieces), max_size=8))
    def play(samples: list[tuple[bool, bytes]]) -> None:
        async def test(server: RpcServer, _echo: Echo, address: str) -> None:
            witness = await RpcConnection.connect(address, Hello(PROTOCOL))
            for greet, data in samples:
                for answer in await raw(address, (HELLO if greet else b"") + data):
                    response_codec.decode(answer)
            assert await witness.call(Ping()) == Pong()
            await witness.close()
            assert server.requests == 0
            assert server.request_bytes == 0

        run(test)

    play()


def test_a_deadline_is_told_and_a_late_answer_dropped() -> None:
    async def test(server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        # The deadline on the wire is the server's to tell: a second one here never comes true.
        request = Request(77, 1, 0, Status())
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(HELLO + frame(request_codec.encode(request)))
        size = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size)
        size = int.from_bytes(await reader.readexactly(4), "big")
        response = response_codec.decode(await reader.readexactly(size))
        assert response.id == 77
        assert isinstance(response.body, ErrorReply)
        assert response.body.code == DeadlineExceeded.code
        echo.held[0].answer(Pong())
        assert (server.late_total, server.requests) == (1, 0)
        assert await connection.call(Ping()) == Pong()
        writer.close()
        await writer.wait_closed()
        await connection.close()

    run(test)


def test_a_full_node_refuses_and_recovers() -> None:
    async def test(server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        held = [asyncio.ensure_future(connection.call(Status())) for _ in range(3)]
        await echo.have(3)
        with pytest.raises(Overloaded):
            await connection.call(MakeDigest(1))
        assert await connection.call(Ping()) == Pong()
        for call in echo.held:
            call.answer(Pong())
        assert await asyncio.gather(*held) == [Pong()] * 3
        with pytest.raises(BadRequest, match="1"):
            await connection.call(MakeDigest(1))
        assert server.overloaded_total == 1
        await connection.close()

    run(test, requests_max=3)


def test_one_connection_cannot_have_more_open_than_its_share() -> None:
    async def test(server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        held = [asyncio.ensure_future(connection.call(Status())) for _ in range(20)]
        # Another connection is served; this one waits in its own backlog, and nothing is lost.
        other = await RpcConnection.connect(address, Hello(PROTOCOL))
        with pytest.raises(BadRequest):
            await other.call(MakeDigest(1))
        await echo.have(4)
        assert server.requests == 4
        answered = 0
        while answered < 20:
            assert len(echo.held) - answered <= 4
            while answered < len(echo.held):
                echo.held[answered].answer(Pong())
                answered += 1
            await asyncio.sleep(0)
        assert await asyncio.gather(*held) == [Pong()] * 20
        await connection.close()
        await other.close()

    run(test, requests_per_connection_max=4)


def test_connections_are_bounded() -> None:
    async def test(_server: RpcServer, _echo: Echo, address: str) -> None:
        first = await RpcConnection.connect(address, Hello(PROTOCOL))
        with pytest.raises(Unavailable):
            await RpcConnection.connect(address, Hello(PROTOCOL))
        await first.close()

    run(test, connections_max=1)


def test_another_shard_and_an_impossible_deadline_are_refused() -> None:
    async def test(_server: RpcServer, _echo: Echo, address: str) -> None:
        shard = frame(request_codec.encode(Request(2, 0, 5, Status())))
        late = frame(request_codec.encode(Request(3, -1, 0, Status())))
        answers = [response_codec.decode(a).body for a in await raw(address, HELLO + shard + late)]
        codes = [a.code for a in answers if isinstance(a, ErrorReply)]
        assert codes == [WrongShard.code, BadRequest.code]

    run(test)


def test_an_answer_over_the_frame_limit_becomes_an_error() -> None:
    async def test(_server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        held = asyncio.ensure_future(connection.call(Status()))
        await echo.have(1)
        echo.held[0].answer(ErrorReply(1, "x" * FRAME_BYTES_MAX))
        with pytest.raises(TooLarge):
            await held
        await connection.close()

    run(test)


def test_stopping_refuses_what_is_new_and_waits_for_what_is_open() -> None:
    async def test(server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        held = asyncio.ensure_future(connection.call(Status()))
        await echo.have(1)
        stopping = asyncio.ensure_future(server.stop(30))
        await asyncio.sleep(0)
        assert server.stopping
        with pytest.raises(NotReady):
            await connection.call(Status())
        assert not stopping.done()
        echo.held[0].answer(Pong())
        await stopping
        assert await held == Pong()
        with pytest.raises(Unavailable):
            await connection.call(Ping())
        await connection.close()

    run(test)


@pytest.mark.allow_logs("does not read its answers")
def test_a_client_that_does_not_read_is_sent_away() -> None:
    async def test(server: RpcServer, echo: Echo, address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        transport = writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        requests = [frame(request_codec.encode(Request(n, 0, 0, Status()))) for n in range(2, 42)]
        writer.write(HELLO + b"".join(requests))
        await echo.have(40)
        for call in echo.held:
            call.answer(ErrorReply(1, "x" * (4 * 1024 * 1024)))
        (it,) = server.connections
        it.flush()
        assert server.hostile_total == 1
        transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            await reader.read()
        assert server.requests == 0
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    run(test)


def test_a_client_waits_for_room_and_keeps_its_deadline() -> None:
    async def test(_server: RpcServer, echo: Echo, address: str) -> None:
        connection = await RpcConnection.connect(address, Hello(PROTOCOL))
        held = [asyncio.ensure_future(connection.call(Status())) for _ in range(1024)]
        await echo.have(1024)
        with pytest.raises(Overloaded):
            await connection.call(Ping(), timeout_s=0.05)
        waiting = asyncio.ensure_future(connection.call(Ping()))
        await asyncio.sleep(0)
        for call in echo.held:
            call.answer(Pong())
        assert await waiting == Pong()
        assert await asyncio.gather(*held) == [Pong()] * 1024
        await connection.close()

    run(test)


def test_a_client_is_told_of_the_end_and_of_its_own_deadline() -> None:
    async def test(server: RpcServer, echo: Echo, address: str) -> None:
        ends: list[NokvError] = []
        connection = await RpcConnection.connect(address, Hello(PROTOCOL), on_close=ends.append)
        with pytest.raises(DeadlineExceeded):
            await connection.call(Status(), timeout_s=0.02)
        held = asyncio.ensure_future(connection.call(Status()))
        await echo.have(2)
        (serving_it,) = server.connections
        serving_it._abort()
        with pytest.raises(Unavailable):
            await held
        assert [type(end) for end in ends] == [Unavailable]
        assert connection.closed
        await connection.close()

    run(test)
