"""A small HTTP/1.1 server (RFC 9112) for probes and metrics: GET and HEAD, one answer a request.

By hand, because all it may ever do is bounded: a request line and headers of 8 KiB, no bodies, a
few connections, a few seconds. Any other bytes get a 4xx or 5xx and the end of the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol, cast

from nokv.server.config import HttpConfig
from nokv.wire.address import format_address, parse_address

log = logging.getLogger("nokv.http")

HEAD_BYTES_MAX: Final = 8 * 1024
IDLE_S: Final = 10.0
"""A connection that has not sent a whole request for so long is closed."""

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"

_METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
_TOKEN: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


class Answer(NamedTuple):
    """What a page is."""

    status: HTTPStatus
    content_type: str
    body: bytes


class Pages(Protocol):
    """The pages by path."""

    def routes(self) -> Mapping[str, Callable[[], Answer]]:
        """Return path to page."""
        ...


class BadHead(Exception):
    """Bytes that are no acceptable request."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Head(NamedTuple):
    """A request without a body."""

    method: str
    path: str
    keep_alive: bool


def parse_head(data: bytes) -> Head:
    """Return the request that `data`, up to its empty line, states. Raises BadHead."""
    lines = data.split(b"\r\n")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or any(byte < 0x21 or byte > 0x7E for part in parts for byte in part):
        raise BadHead(HTTPStatus.BAD_REQUEST, "not a request line")
    method, target, version = (part.decode("ascii") for part in parts)
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        known = version.startswith("HTTP/")
        status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED if known else HTTPStatus.BAD_REQUEST
        raise BadHead(status, "not HTTP/1.1")
    if not target.startswith("/"):
        raise BadHead(HTTPStatus.BAD_REQUEST, "not a path")
    headers = _headers(lines[1:])
    if version == "HTTP/1.1" and "host" not in headers:
        raise BadHead(HTTPStatus.BAD_REQUEST, "no Host")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadHead(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no request here has a body")
    if method not in _METHODS:
        raise BadHead(HTTPStatus.NOT_IMPLEMENTED, "no such method")
    wish = headers.get("connection", "").lower()
    keep = wish != "close" if version == "HTTP/1.1" else wish == "keep-alive"
    return Head(method, target.partition("?")[0], keep)


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name):
            raise BadHead(HTTPStatus.BAD_REQUEST, "not a header")
        if any(byte < 0x20 and byte != 0x09 for byte in value):
            raise BadHead(HTTPStatus.BAD_REQUEST, "a control character in a header")
        key = name.decode("ascii").lower()
        if key in headers and key in ("host", "content-length"):
            raise BadHead(HTTPStatus.BAD_REQUEST, f"{key} twice")
        headers[key] = value.decode("latin-1").strip()
    return headers


class HttpServer:
    """The HTTP port of one node."""

    def __init__(self, config: HttpConfig, pages: Pages) -> None:
        self.config: Final = config
        self.routes: Final = pages.routes()
        self.connections: set[HttpConnection] = set()
        self._listener: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen if the configuration says so; return the address, or empty. Raises OSError."""
        if not self.config.listen:
            return ""
        host, port = parse_address(self.config.listen)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: HttpConnection(self), host, port)
        bound = self._listener.sockets[0].getsockname()
        return format_address(bound[0], bound[1])

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.end()

    def answer(self, head: Head) -> Answer:
        """Return the page, or why there is none."""
        page = self.routes.get(head.path)
        if page is None:
            known = ", ".join(sorted(self.routes))
            return Answer(HTTPStatus.NOT_FOUND, TEXT, f"no such page; there are {known}\n".encode())
        if head.method not in ("GET", "HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET and HEAD only\n")
        return page()


class HttpConnection(asyncio.Protocol):
    """One connection: requests one after another."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, if there is room."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= self._server.config.connections_max:
            self._transport.abort()
            return
        self._server.connections.add(self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Forget it."""
        self._server.connections.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        buffer = self._buffer
        buffer += data
        try:
            while self._transport is not None and not self._transport.is_closing():
                end = buffer.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX + 4)
                if end < 0:
                    if len(buffer) > HEAD_BYTES_MAX:
                        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                        raise BadHead(status, "a request over 8 KiB")
                    return
                head = parse_head(bytes(buffer[:end]))
                del buffer[: end + 4]
                self._wait()
                self._send(head, self._server.answer(head))
        except BadHead as error:
            head = Head("GET", "/", keep_alive=False)
            self._send(head, Answer(error.status, TEXT, f"{error}\n".encode()))

    def pause_writing(self) -> None:
        """A client that asks without reading is sent away."""
        if self._transport is not None:
            self._transport.abort()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_S, self.end)

    def _send(self, head: Head, answer: Answer) -> None:
        assert self._transport is not None, "an answer without a connection"
        status = answer.status
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Cache-Control: no-store",
        ]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")
        if not head.keep_alive:
            lines.append("Connection: close")
        text = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        self._transport.write(text if head.method == "HEAD" else text + answer.body)
        if not head.keep_alive:
            self._transport.close()

    def end(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
