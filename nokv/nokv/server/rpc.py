"""The RPC port: connections, frames, requests, deadlines, and the limits that bound all of it.

Nothing here makes a task or a future for a request. A read of the socket is cut into requests, each
goes to the `Handler`, which answers its `Call` now or later; what is answered within one turn of
the loop leaves in one write per connection. Whatever bytes arrive, the worst is the end of the
connection they came on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Final, Protocol, cast

import msgspec

from nokv.errors import (
    BadRequest,
    CursorTooOld,
    DeadlineExceeded,
    Forbidden,
    NokvError,
    NotReady,
    Overloaded,
    TooLarge,
    WrongCluster,
    WrongShard,
)
from nokv.server.acceptor import BACKLOG, TlsAcceptor
from nokv.server.config import RpcConfig
from nokv.server.metrics import Histogram
from nokv.server.tls import NodeTls
from nokv.types.values import Lenient
from nokv.wire.framing import HEADER, FrameParser, frame
from nokv.wire.identity import Identity, identity_of
from nokv.wire.rpc import (
    CloseWatch,
    ErrorReply,
    GrantWatch,
    Hello,
    HelloReply,
    Ping,
    Pong,
    Request,
    RequestBody,
    Response,
    ResponseBody,
    Role,
    request_codec,
    response_codec,
)

log = logging.getLogger("nokv.rpc")

OUTPUT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Answers that a client has not read; a connection with more of them is ended."""

TURN_REQUESTS_MAX: Final = 512
"""Requests taken from one connection before others, and replication, get their turn."""

SWEEP_S: Final = 0.05
"""Deadlines are looked at so often."""

STREAM_ERROR_ID: Final = 0
"""Id of an error that belongs to no request: the connection ends with it."""

_WRITE_HIGH_BYTES: Final = 1024 * 1024
_PONG: Final = Pong()
_encode: Final = msgspec.msgpack.encode


class Call:
    """One request on its way. Answered once; an answer after its deadline is dropped."""

    __slots__ = ("arrived_s", "connection", "deadline_s", "id", "open", "size_bytes")

    def __init__(
        self, connection: Connection, number: int, now_s: float, deadline_s: float, size_bytes: int
    ) -> None:
        self.connection = connection
        self.id = number
        self.arrived_s = now_s
        self.deadline_s = deadline_s
        self.size_bytes = size_bytes
        self.open = True
        """Whether an answer still finds somebody."""

    @property
    def role(self) -> int:
        """Who asks."""
        return self.connection.role

    def answer(self, body: ResponseBody) -> None:
        """Send the answer, unless the deadline or the connection is over."""
        if self.open:
            self.connection.finish(self, body)

    def fail(self, error: NokvError, leader: str = "") -> None:
        """Answer with a typed error."""
        if self.open:
            self.connection.finish(self, error_reply(error, leader))


class Stream(Protocol):
    """Whoever goes on sending after the first answer to a request (a watch)."""

    def grant(self, n_bytes: int) -> None:
        """Note that the client took so many bytes."""
        ...

    def writable(self) -> None:
        """Note that the connection takes bytes again, after it did not (`Connection.writable`)."""
        ...

    def ended(self) -> None:
        """Note that the client wants no more, or is gone; nothing may be sent any more."""
        ...


class Handler(Protocol):
    """What answers requests."""

    def hello(self, hello: Hello) -> HelloReply:
        """Return the answer to a connection's first request, or raise a typed error."""
        ...

    def handle(self, call: Call, body: RequestBody) -> None:
        """Take a request. Raise a typed error, or answer `call` now or later."""
        ...

    def end_of_batch(self) -> None:
        """Note that all requests of one read of a socket were handed over."""
        ...


def error_reply(error: NokvError, leader: str = "") -> ErrorReply:
    """Return the error as it crosses the wire; a hint of its class stays at home."""
    hint = "" if error.hint == error.default_hint else error.hint
    oldest = error.oldest if isinstance(error, CursorTooOld) else 0
    return ErrorReply(error.code, error.message, hint, leader, oldest)


class _Head(Lenient, frozen=True):
    """The start of a request that could not be decoded whole."""

    id: int


_head_decoder = msgspec.msgpack.Decoder(_Head)


class RpcServer:
    """All connections of one node's RPC port. Belongs to one event loop."""

    def __init__(self, config: RpcConfig, handler: Handler, tls: NodeTls | None = None) -> None:
        self.config: Final = config
        self.handler: Final = handler
        self.tls: Final = tls
        self.loop: Final = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.requests = 0
        """Unanswered requests; at most `config.requests_max`."""
        self.request_bytes = 0
        """Their frames' bytes."""
        self.stopping = False
        """Refuses every further request with NotReady."""
        self.requests_total = 0
        self.overloaded_total = 0
        self.late_total = 0
        """Requests whose deadline passed."""
        self.hostile_total = 0
        """Connections that were ended for what they sent."""
        self.seconds = Histogram()
        """From a request's arrival to its answer."""
        self.taking = False
        """Requests are being taken: what is answered meanwhile goes out when that is done."""
        self._dirty: list[Connection] = []
        self._flush_due = False
        self._listener: asyncio.Server | None = None
        self._acceptor: TlsAcceptor | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the address that was bound. Raises OSError."""
        if self.tls is not None:
            self._acceptor = TlsAcceptor(
                lambda: Connection(self),
                self.tls.server,
                handshake_s=self.config.hello_ms / 1000,
                on_failure=self._count_failure,
            )
            bound = await self._acceptor.start(host, port)
        else:
            self._listener = await self.loop.create_server(
                lambda: Connection(self), host, port, reuse_address=True, backlog=BACKLOG
            )
            bound = self._listener.sockets[0].getsockname()
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        return bound[0], bound[1]

    def _count_failure(self) -> None:
        self.hostile_total += 1

    async def stop(self, wait_s: float) -> None:
        """Refuse what is new, wait at most `wait_s` for what is open, and end all connections."""
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        if self._acceptor is not None:
            await self._acceptor.stop()
        if self.requests:
            self._drained = self.loop.create_future()
            try:
                async with asyncio.timeout(wait_s):
                    await self._drained
            except TimeoutError:
                log.warning("stopped with %d requests unanswered", self.requests)
        self.flush()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.end()

    # ------------------------------------------------------------ output

    def mark_dirty(self, connection: Connection) -> None:
        """Have the connection's answers written at the end of this turn."""
        self._dirty.append(connection)
        if not self._flush_due and not self.taking:
            self._flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was answered, one write per connection."""
        self._flush_due = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()

    def settled(self) -> None:
        """Note that a request was answered."""
        if not self.requests and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # ------------------------------------------------------------ deadlines

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        now_s = time.monotonic()
        for connection in list(self.connections):
            connection.sweep(now_s)

    def full(self) -> bool:
        """Whether a further request must be refused."""
        config = self.config
        return (
            self.requests >= config.requests_max or self.request_bytes >= config.request_bytes_max
        )


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_backlog",
        "_began_s",
        "_calls",
        "_identity",
        "_output",
        "_parser",
        "_reading_paused",
        "_server",
        "_streams",
        "_take_due",
        "_transport",
        "_writing_paused",
        "greeted",
        "role",
    )

    def __init__(self, server: RpcServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = FrameParser()
        self._backlog: deque[bytes] = deque()
        # Frames of the last read that wait for room; reading is paused while there are any.
        self._calls: set[Call] = set()
        self._streams: dict[int, Stream] = {}
        # By the id of the request that opened it.
        self._output: list[bytes] = []
        self._reading_paused = False
        self._writing_paused = False
        self._take_due = False
        self._began_s = time.monotonic()
        self.greeted = False
        """Whether a hello was accepted."""
        self.role: int = Role.CLIENT
        self._identity: Identity | None = None
        # Whom its certificate names; None without TLS.

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, if there is room for it."""
        self._transport = cast("asyncio.Transport", transport)
        server = self._server
        if server.stopping or len(server.connections) >= server.config.connections_max:
            server.overloaded_total += 1
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        if server.tls is not None and not self._is_certified(server.tls):
            server.hostile_total += 1
            self._transport.abort()
            return
        server.connections.add(self)

    def _is_certified(self, tls: NodeTls) -> bool:
        """Note whom the verified certificate names; return whether it is of this cluster."""
        assert self._transport is not None
        try:
            self._identity = identity_of(self._transport.get_extra_info("peercert"))
        except Forbidden as error:
            log.warning("ended a connection: %s", error.message)
            return False
        if self._identity.cluster == tls.cluster:
            return True
        log.warning("ended a connection: %s is not of this cluster", self._identity.uri)
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Forget the connection. What it proposed goes on; nobody hears of it here."""
        server = self._server
        server.connections.discard(self)
        self._transport = None
        for call in self._calls:
            call.open = False
            server.requests -= 1
            server.request_bytes -= call.size_bytes
        self._calls.clear()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.ended()
        self._backlog.clear()
        self._output.clear()
        server.settled()

    def pause_writing(self) -> None:
        """The client does not read: take nothing more from it."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self._writing_paused = False
        self.flush()
        for stream in list(self._streams.values()):
            stream.writable()
        self._take_soon()

    def eof_received(self) -> bool:
        """A client that is done sending is done."""
        return False

    def data_received(self, data: bytes) -> None:
        """Cut the bytes into requests and take as many as there is room for."""
        try:
            frames = self._parser.feed(data)
        except TooLarge as error:
            self._condemn(error)
            return
        if frames:
            self._backlog.extend(frames)
            self._take()

    # ------------------------------------------------------------ requests

    def _take_soon(self) -> None:
        if not self._take_due and self._backlog:
            self._take_due = True
            self._server.loop.call_soon(self._take)

    def _has_room(self) -> bool:
        return (
            len(self._calls) < self._server.config.requests_per_connection_max
            and not self._writing_paused
        )

    def _take(self) -> None:
        """Take requests until they are all taken, or it is another's turn, or there is no room."""
        self._take_due = False
        backlog = self._backlog
        server = self._server
        now_s = time.monotonic()
        turn = TURN_REQUESTS_MAX
        server.taking = True
        try:
            while backlog and turn and self._transport is not None and self._has_room():
                turn -= 1
                self._take_one(backlog.popleft(), now_s)
            server.handler.end_of_batch()
        finally:
            server.taking = False
        server.flush()
        if self._transport is None:
            return
        if backlog:
            if not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()
            if not turn:
                self._take_soon()
        elif self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _take_one(self, data: bytes, now_s: float) -> None:
        server = self._server
        server.requests_total += 1
        try:
            request = request_codec.decode(data)
        except BadRequest as error:
            self._refuse_bytes(data, error)
            return
        body = request.body
        if not self.greeted:
            self._greet(request)
            return
        if isinstance(body, Ping):
            self._send(request.id, _PONG)
            return
        if isinstance(body, GrantWatch | CloseWatch):
            self._steer(body)
            return
        limit_ms = server.config.deadline_ms
        left_ms = min(request.deadline_ms or limit_ms, limit_ms)
        if server.full() or server.stopping or request.shard or left_ms < 0:
            self._send(request.id, error_reply(self._refusal(request)))
            return
        call = Call(self, request.id, now_s, now_s + left_ms / 1000, len(data))
        self._calls.add(call)
        server.requests += 1
        server.request_bytes += len(data)
        try:
            server.handler.handle(call, body)
        except NokvError as error:
            call.fail(error)

    def _steer(self, body: GrantWatch | CloseWatch) -> None:
        """Pass on what is never answered; a stream that is not there has just ended by itself."""
        stream = self._streams.get(body.watch)
        if stream is None:
            return
        if isinstance(body, GrantWatch):
            stream.grant(body.n_bytes)
        else:
            del self._streams[body.watch]
            stream.ended()

    def _refusal(self, request: Request) -> NokvError:
        if request.shard:
            return WrongShard(f"this process serves shard 0, not {request.shard}")
        if request.deadline_ms < 0:
            return BadRequest(f"a deadline of {request.deadline_ms} ms")
        if self._server.stopping:
            return NotReady("this node is stopping")
        self._server.overloaded_total += 1
        return Overloaded("too many requests are open at this node")

    def _greet(self, request: Request) -> None:
        """Take the first request: a hello, or the connection ends."""
        if not isinstance(request.body, Hello):
            self._condemn(WrongCluster("a connection starts with a hello"), request.id)
            return
        try:
            reply = self._server.handler.hello(request.body)
            certified = self._identity
            if request.body.role == Role.WORKER and certified and certified.kind != "node":
                raise Forbidden(f"{certified.uri} is no node's: its bearer is no worker")
        except NokvError as error:
            self._condemn(error, request.id)
            return
        self.greeted = True
        self.role = request.body.role
        self._send(request.id, reply)

    def _refuse_bytes(self, data: bytes, error: BadRequest) -> None:
        """Answer bytes that are no request: under their id where they have one."""
        try:
            number = _head_decoder.decode(data).id
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
            self._condemn(error)
            return
        if self.greeted:
            self._send(number, error_reply(error))
        else:
            self._condemn(error, number)

    def _condemn(self, error: NokvError, number: int = STREAM_ERROR_ID) -> None:
        """Say why, and end the connection."""
        self._server.hostile_total += 1
        self._backlog.clear()
        self._send(number, error_reply(error))
        self.flush()
        self.end()

    def sweep(self, now_s: float) -> None:
        """Answer what is over its deadline; end a connection that never says hello."""
        if not self.greeted and now_s - self._began_s > self._server.config.hello_ms / 1000:
            self._condemn(DeadlineExceeded("no hello came in time"))
            return
        for call in [call for call in self._calls if call.deadline_s <= now_s]:
            self._server.late_total += 1
            call.fail(DeadlineExceeded("the node could not answer in time"))

    # ------------------------------------------------------------ answers

    def finish(self, call: Call, body: ResponseBody) -> None:
        """Send the answer of an open call."""
        server = self._server
        call.open = False
        self._calls.discard(call)
        server.requests -= 1
        server.request_bytes -= call.size_bytes
        server.seconds.observe(time.monotonic() - call.arrived_s)
        self._send(call.id, body)
        if self._backlog:
            self._take_soon()
        if server.stopping:
            server.settled()

    # ------------------------------------------------------------ streams

    @property
    def writable(self) -> bool:
        """Whether the client reads what it is sent, so that a stream may send more."""
        return self._transport is not None and not self._writing_paused

    @property
    def streams(self) -> int:
        """How many requests go on being answered."""
        return len(self._streams)

    def open_stream(self, call: Call, stream: Stream) -> None:
        """Give the id of an open call to a stream. Raises BadRequest if a stream has it."""
        if call.id in self._streams:
            raise BadRequest(f"request {call.id} is a stream that goes on")
        self._streams[call.id] = stream

    def push(self, number: int, body: bytes) -> None:
        """Send an encoded body on a stream; many streams may share the bytes."""
        # An array of two: the id, and the body as it is.
        head = b"\x92" + _encode(number)
        if not self._output:
            self._server.mark_dirty(self)
        self._output.append(HEADER.pack(len(head) + len(body)) + head)
        self._output.append(body)

    def end_stream(self, number: int, error: NokvError) -> None:
        """Tell why a stream ends, and forget it."""
        if self._streams.pop(number, None) is not None and self._transport is not None:
            self._send(number, error_reply(error))

    def _send(self, number: int, body: ResponseBody) -> None:
        try:
            data = frame(response_codec.encode(Response(number, body)))
        except TooLarge:
            error = TooLarge("the answer does not fit a frame", hint="ask for less at a time")
            data = frame(response_codec.encode(Response(number, error_reply(error))))
        if not self._output:
            self._server.mark_dirty(self)
        self._output.append(data)

    def flush(self) -> None:
        """Hand the answers to the transport."""
        transport, output = self._transport, self._output
        if not output or transport is None:
            return
        self._output = []
        transport.write(output[0] if len(output) == 1 else b"".join(output))
        if self._writing_paused and transport.get_write_buffer_size() > OUTPUT_BYTES_MAX:
            log.warning("ended a connection that does not read its answers")
            self._server.hostile_total += 1
            transport.abort()

    def end(self) -> None:
        """Close after what was written; a client that does not read it is not waited for."""
        if self._transport is not None:
            self.flush()
            self._transport.close()
            self._server.loop.call_later(1.0, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
