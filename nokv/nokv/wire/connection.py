"""One RPC connection to a node, for whoever calls: clients, the worker, tools.

Calls are pipelined. What is sent within one turn of the event loop leaves in one write, answers
come in any order, and what is in flight is bounded by count and by bytes: a further call waits.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from nokv.errors import (
    CursorTooOld,
    DeadlineExceeded,
    InvalidArgument,
    NokvError,
    Overloaded,
    Unavailable,
    WrongCluster,
    from_wire,
)
from nokv.wire.address import parse_address
from nokv.wire.framing import FrameParser, frame
from nokv.wire.identity import identity_of
from nokv.wire.rpc import (
    CloseWatch,
    ErrorReply,
    Hello,
    HelloReply,
    Request,
    RequestBody,
    ResponseBody,
    request_codec,
    response_codec,
)
from nokv.wire.tls import CLIENT_HINT, PLAIN_HINT, reason_of

IN_FLIGHT_MAX: Final = 1024
"""Unanswered calls of one connection; must not exceed what a server takes from one."""

IN_FLIGHT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Bytes of unanswered calls; one call may pass it, so that the largest frame can be sent."""

_SWEEP_S: Final = 0.02
"""Deadlines are looked at so often: an expired call is told at most so much late."""

_WRITE_BUFFER_BYTES: Final = 1024 * 1024

OnFrame = Callable[["ResponseBody | NokvError", int], None]
"""Takes what a stream sends after its first answer, with its bytes; an error is the last."""


class _Call(NamedTuple):
    answer: asyncio.Future[ResponseBody]
    deadline: float
    """In the loop's time."""
    size_bytes: int


def error_of(reply: ErrorReply) -> NokvError:
    """Return the typed error that a reply carries."""
    error = from_wire(reply.code, reply.message, reply.hint)
    if isinstance(error, CursorTooOld):
        error.oldest = reply.oldest
    return error


class RpcConnection(asyncio.Protocol):
    """A connection that has said hello. Make one with `connect`; it never reconnects.

    Belongs to one event loop. After `closed` is set every call raises Unavailable.
    """

    def __init__(
        self, address: str, shard: int, on_close: Callable[[NokvError], None] | None
    ) -> None:
        self.address: Final = address
        """Where this connection was made to."""
        self.leader = ""
        """The leader's RPC address by the last answer that named one; empty before."""
        self.hello: HelloReply
        """What the node said of itself and the cluster when it answered."""
        self._shard = shard
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = FrameParser()
        self._calls: dict[int, _Call] = {}
        self._streams: dict[int, OnFrame] = {}
        self._in_flight_bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._outgoing: list[bytes] = []
        self._flush_due = False
        self._write_paused = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._next_id = 0
        self._error: NokvError | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def connect(
        cls,
        address: str,
        hello: Hello,
        *,
        timeout_s: float = 5.0,
        shard: int = 0,
        tls: ssl.SSLContext | None = None,
        on_close: Callable[[NokvError], None] | None = None,
    ) -> RpcConnection:
        """Return a connection to `address` on which `hello` was accepted.

        With `tls` the node must show a certificate that the context accepts, and that names the
        node and the cluster which answer. `on_close` is called once with the reason when the
        connection ends, however it ends. Raises Unavailable if nobody answers in time or TLS fails,
        WrongCluster or Forbidden if the node refuses the hello or is not whom its certificate
        names, InvalidArgument for an address that is none.
        """
        host, port = parse_address(address)
        loop = asyncio.get_running_loop()
        connection = cls(address, shard, on_close)
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: connection, host, port, ssl=tls)
                reply = await connection.call(hello, timeout_s=timeout_s)
            if not isinstance(reply, HelloReply):
                message = f"{address} answered a hello with {type(reply).__name__}"
                raise Unavailable(message)
            if tls is not None:
                connection.check_certificate(reply)
        except BaseException as error:
            ended = connection.closed
            connection.abort()
            if isinstance(error, TimeoutError):
                message = f"{address} did not answer within {timeout_s:g} s"
                raise Unavailable(message) from None
            if isinstance(error, ssl.SSLError):
                message = f"no TLS with {address}: {reason_of(error)}"
                if isinstance(error, ssl.SSLCertVerificationError):
                    message = f"the certificate of {address} is not accepted: {reason_of(error)}"
                raise Unavailable(message, hint=CLIENT_HINT) from None
            if isinstance(error, Unavailable) and ended:
                # A node that wants TLS makes this of a hello; and in TLS 1.3 a certificate that it
                # does not accept is told only after the client's side of the handshake is over.
                message = f"{error.message} before a hello was answered"
                message += "; does it want TLS?" if tls is None else ""
                raise Unavailable(
                    message, hint=PLAIN_HINT if tls is None else CLIENT_HINT
                ) from None
            if isinstance(error, OSError) and not isinstance(error, NokvError):
                message = f"no connection to {address}: {error.strerror or error}"
                raise Unavailable(message) from None
            raise
        connection.hello = reply
        connection.leader = reply.leader
        return connection

    def check_certificate(self, reply: HelloReply) -> None:
        """Raise WrongCluster unless the node's certificate says what its answer does."""
        assert self._transport is not None, "a hello was answered"
        identity = identity_of(self._transport.get_extra_info("peercert"))
        if (identity.cluster, identity.node) != (reply.cluster, reply.node):
            message = (
                f"{self.address} says it is node {reply.node} of cluster {reply.cluster}, and shows"
                f" the certificate of {identity.uri}"
            )
            raise WrongCluster(message)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, or is being closed."""
        return self._error is not None

    @property
    def in_flight(self) -> int:
        """Calls that were sent and not yet answered."""
        return len(self._calls)

    @property
    def streams(self) -> int:
        """Streams that go on."""
        return len(self._streams)

    async def call(self, body: RequestBody, *, timeout_s: float = 30.0) -> ResponseBody:
        """Send one request and return its answer.

        The node gets what is left of `timeout_s` as its deadline. A batch's errors are in its
        outcomes; every other typed error is raised. Raises DeadlineExceeded when the time is over
        and Unavailable when the connection ends first: in both cases a command may yet be applied.
        A cancelled call may be applied, too. Raises Overloaded if there was no room to send it.
        """
        if not 0 < timeout_s < math.inf:
            message = f"a deadline of {timeout_s} seconds"
            raise InvalidArgument(message)
        deadline = self._loop.time() + timeout_s
        if self.full:
            await self._wait_for_room(deadline)
        answer = self._send(body, deadline)
        if self._waiting:
            self._wake()
        return await answer

    def send(self, body: RequestBody, *, timeout_s: float) -> asyncio.Future[ResponseBody]:
        """Send one request at once and return the future of its answer; else as `call`.

        For callers that look at `full` first. Raises Unavailable if the connection has ended.
        """
        assert not self.full, "look at `full` first, or use `call`"
        return self._send(body, self._loop.time() + timeout_s)

    async def open_stream(
        self, body: RequestBody, on_frame: OnFrame, *, timeout_s: float
    ) -> tuple[int, ResponseBody]:
        """Send a request that goes on being answered; return its id and the first answer.

        What comes then goes to `on_frame`, in order, until an error, which the end of the
        connection is too, or `close_stream`. Raises as `call`.
        """
        deadline = self._loop.time() + timeout_s
        if self.full:
            await self._wait_for_room(deadline)
        answer = self._send(body, deadline)
        number = self._next_id
        self._streams[number] = on_frame
        try:
            return number, await answer
        except BaseException:
            # The node may have begun already, or begin yet.
            self._streams.pop(number, None)
            self.post(CloseWatch(number))
            raise

    def close_stream(self, number: int) -> None:
        """Hear nothing more of a stream. What the node is to be told, the caller posts."""
        self._streams.pop(number, None)

    def post(self, body: RequestBody) -> None:
        """Send a request that is never answered; nothing where the connection has ended."""
        if self._error is None:
            self._write_later(frame(request_codec.encode(Request(0, 0, self._shard, body))))

    async def close(self) -> None:
        """End the connection; open calls raise Unavailable. Returns when it is gone."""
        self._fail(Unavailable(f"the connection to {self.address} was closed"))
        if self._transport is not None:
            self._transport.abort()
            await asyncio.shield(self._lost)

    def abort(self) -> None:
        """Drop the connection without waiting."""
        self._fail(Unavailable(f"the connection to {self.address} was dropped"))
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ sending

    @property
    def full(self) -> bool:
        """Whether a further call has to wait for room."""
        return (
            len(self._calls) >= IN_FLIGHT_MAX
            or self._in_flight_bytes >= IN_FLIGHT_BYTES_MAX
            or bool(self._waiting)
        )

    async def _wait_for_room(self, deadline: float) -> None:
        room: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(room)
        try:
            async with asyncio.timeout_at(deadline):
                await room
        except BaseException as error:
            if room in self._waiting:
                self._waiting.remove(room)
            else:
                self._wake()
            if not isinstance(error, TimeoutError):
                raise
            message = f"{self.address} has too much in flight to take a further call in time"
            raise Overloaded(message) from None

    def _wake(self) -> None:
        """Let waiting calls go on, one per free place; a woken one wakes the next."""
        if len(self._calls) < IN_FLIGHT_MAX and self._in_flight_bytes < IN_FLIGHT_BYTES_MAX:
            while self._waiting:
                room = self._waiting.popleft()
                if not room.done():
                    room.set_result(None)
                    return

    def _send(self, body: RequestBody, deadline: float) -> asyncio.Future[ResponseBody]:
        if self._error is not None:
            raise Unavailable(self._error.message)
        self._next_id += 1
        left_ms = max(1, int((deadline - self._loop.time()) * 1000))
        request = Request(self._next_id, left_ms, self._shard, body)
        data = frame(request_codec.encode(request))
        answer: asyncio.Future[ResponseBody] = self._loop.create_future()
        self._calls[self._next_id] = _Call(answer, deadline, len(data))
        self._in_flight_bytes += len(data)
        if len(self._calls) == 1 and not self._outgoing and not self._write_paused:
            # Nothing else is under way, so nothing will come that could share the write.
            assert self._transport is not None, "an open connection has a transport"
            self._transport.write(data)
        else:
            self._write_later(data)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        return answer

    def _write_later(self, data: bytes) -> None:
        self._outgoing.append(data)
        if not self._flush_due and not self._write_paused:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._error is None and self._outgoing and self._transport is not None:
            data, self._outgoing = self._outgoing, []
            self._transport.write(data[0] if len(data) == 1 else b"".join(data))

    def _sweep(self) -> None:
        """Tell the calls whose time is over. An answer that comes later finds nobody."""
        self._sweeper = None
        now = self._loop.time()
        late = [number for number, call in self._calls.items() if call.deadline <= now]
        for number in late:
            call = self._settle(number)
            assert call is not None, "a call vanished while it was looked at"
            if not call.answer.done():
                message = f"{self.address} did not answer in time"
                call.answer.set_exception(DeadlineExceeded(message))
        if self._calls and self._error is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _settle(self, number: int) -> _Call | None:
        call = self._calls.pop(number, None)
        if call is not None:
            self._in_flight_bytes -= call.size_bytes
            assert self._in_flight_bytes >= 0, "more bytes answered than sent"
            if self._waiting:
                self._wake()
        return call

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Hand each answer to its call; bytes that are no answer end the connection."""
        try:
            for payload in self._parser.feed(data):
                self._answer(payload)
        except NokvError as error:
            message = f"{self.address} sent what is no answer: {error.message}"
            self._fail(Unavailable(message))
            self.abort()

    def _answer(self, payload: bytes) -> None:
        response = response_codec.decode(payload)
        body = response.body
        call = self._settle(response.id)
        if call is None and response.id in self._streams:
            self._stream(response.id, body, len(payload))
            return
        if isinstance(body, ErrorReply):
            if body.leader:
                self.leader = body.leader
            if call is not None and not call.answer.done():
                call.answer.set_exception(error_of(body))
        elif call is not None and not call.answer.done():
            call.answer.set_result(body)

    def _stream(self, number: int, body: ResponseBody, size_bytes: int) -> None:
        if isinstance(body, ErrorReply):
            self._streams.pop(number)(error_of(body), size_bytes)
        else:
            self._streams[number](body, size_bytes)

    def pause_writing(self) -> None:
        """Hold back further frames; calls in flight stay bounded meanwhile."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Send what was held back."""
        self._write_paused = False
        self._flush()

    def eof_received(self) -> bool:
        """The node is done with this connection."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every open call."""
        told = reason_of(exc) if isinstance(exc, ssl.SSLError) else str(exc or "")
        reason = f": {told}" if told else ""
        self._fail(Unavailable(f"the connection to {self.address} ended{reason}"))
        if not self._lost.done():
            self._lost.set_result(None)

    def _fail(self, error: NokvError) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        calls, self._calls = self._calls, {}
        self._in_flight_bytes = 0
        self._outgoing.clear()
        for call in calls.values():
            if not call.answer.done():
                call.answer.set_exception(Unavailable(error.message))
        streams, self._streams = self._streams, {}
        for on_frame in streams.values():
            on_frame(Unavailable(error.message), 0)
        for room in self._waiting:
            if not room.done():
                room.set_result(None)
        self._waiting.clear()
        if self._on_close is not None:
            self._on_close(error)
