"""The HTTP port: pages, and any other bytes get a 4xx or 5xx and the end of the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from http import HTTPStatus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nokv.server.config import HttpConfig
from nokv.server.http import HEAD_BYTES_MAX, TEXT, Answer, BadHead, HttpServer, parse_head


class Pages:
    def routes(self) -> Mapping[str, Callable[[], Answer]]:
        return {"/healthz": lambda: Answer(HTTPStatus.OK, TEXT, b"ok\n")}


async def exchange(address: str, *pieces: bytes) -> bytes:
    """Send the pieces on a fresh connection; return all that is answered until it closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def talk(*pieces: bytes) -> bytes:
    """Send the pieces to a fresh server and return all that it answers until it closes."""
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), Pages())
    address = await server.start()
    try:
        return await exchange(address, *pieces)
    finally:
        await server.stop()


def ask(*pieces: bytes) -> bytes:
    return asyncio.run(talk(*pieces))


def test_a_page() -> None:
    answer = ask(b"GET /healthz?x=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok\n")


def test_pieces_and_pipelining() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    assert ask(request[:7], request[7:] + request).count(b"200 OK") == 2


def test_head_has_no_body() -> None:
    answer = ask(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"Content-Length: 3" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\nHost: a\n\n\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * HEAD_BYTES_MAX, 431),
    ],
)
def test_what_is_refused(request_bytes: bytes, status: int) -> None:
    assert ask(request_bytes).startswith(b"HTTP/1.1 %d " % status)


def test_connections_are_bounded() -> None:
    async def main() -> None:
        server = HttpServer(HttpConfig(listen="127.0.0.1:0", connections_max=1), Pages())
        address = await server.start()
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await reader.readuntil(b"ok\n")
        answer = b""
        with contextlib.suppress(OSError):
            answer = await exchange(address, b"GET /healthz HTTP/1.0\r\n\r\n")
        assert answer == b""
        writer.close()
        await writer.wait_closed()
        await server.stop()

    asyncio.run(main())


@given(data=st.binary(max_size=300))
@example(data=b"GET / HTTP/1.1")
@example(data=b"GET / HTTP/1.1\r\n:\r\n")
def test_any_head_is_parsed_or_refused(data: bytes) -> None:
    path, status = "/", 400
    try:
        path = parse_head(data).path
    except BadHead as error:
        status = error.status
    assert path.startswith("/")
    assert 400 <= status < 600


def test_any_bytes_cost_one_connection_only() -> None:
    config = HttpConfig(listen="127.0.0.1:0")

    async def main(samples: list[bytes]) -> None:
        server = HttpServer(config, Pages())
        address = await server.start()
        for data in samples:
            answer = await exchange(address, data + b"\r\n\r\n")
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), (data, answer)
        assert b"200 OK" in await exchange(address, b"GET /healthz HTTP/1.0\r\n\r\n")
        await server.stop()

    @given(samples=st.lists(st.binary(max_size=2000).filter(lambda d: b"\r\n\r\n" not in d)))
    def run(samples: list[bytes]) -> None:
        asyncio.run(main(samples))

    run()
