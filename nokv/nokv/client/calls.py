"""The commands of one session on their way: sequence numbers, retries and outcomes.

A command is encoded once, with its session and sequence number, and the same bytes go to whichever
node leads until its outcome is known: the state machine answers a repeated number with the first
result. A refusal that did not pass the log settles a command only if every attempt of it was so
refused; after one lost answer only a result settles it, and what the caller was
told meanwhile (a deadline) changes nothing about that: the stream goes on asking, because the
session may acknowledge a sequence number, and an upload may end, only when the outcome is known.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from nokv.client.routing import Router, backoff_s
from nokv.errors import (
    DeadlineExceeded,
    NokvError,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    SequenceReused,
    SessionExpired,
    TooLarge,
    Unavailable,
    UnknownSession,
    WindowFull,
    from_wire,
)
from nokv.types.commands import COMMAND_FORMAT, Command, Op, Predicate
from nokv.types.limits import BATCH_MAX, COMMAND_BYTES_MAX, RESULT_WINDOW
from nokv.types.results import Result
from nokv.types.values import Caller
from nokv.wire.codec import encode_command, result_codec
from nokv.wire.connection import RpcConnection, error_of
from nokv.wire.rpc import Outcome, Propose, ResponseBody, ResultsReply

WINDOW: Final = RESULT_WINDOW - 64
"""Sequence numbers in use above the acknowledged one; must stay below RESULT_WINDOW."""

OPEN_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of all commands without an outcome; one command may pass it."""

BATCH_BYTES: Final = 2 * 1024 * 1024
"""A batch ends when it holds so much, so that a frame stays below FRAME_BYTES_MAX."""

ATTEMPT_S: Final = 5.0
"""For one node's answer to a batch; then its commands go out again."""

SWEEP_S: Final = 0.1
"""Deadlines are looked at so often."""

AGAIN: Final = (NotLeader, NotReady, Overloaded, WindowFull, Unavailable, DeadlineExceeded)
"""Errors of an attempt after which a further one may go through."""

Settled = Callable[[Result | NokvError], None]


class Call:
    """One command without an outcome."""

    __slots__ = (
        "answer",
        "data",
        "deadline_s",
        "failures",
        "on_settled",
        "queued",
        "refusal",
        "seq",
        "unresolved",
    )

    def __init__(
        self, seq: int, data: bytes, answer: asyncio.Future[Result], deadline_s: float
    ) -> None:
        self.seq = seq
        self.data = data
        """The encoded command; every attempt sends exactly these bytes."""
        self.answer = answer
        """What the caller waits for; may be done long before the outcome is known."""
        self.deadline_s = deadline_s
        """When the caller is told that it took too long, in the loop's time."""
        self.unresolved = 0
        """Attempts that were sent and not refused: while there are any, only a result settles."""
        self.failures = 0
        """Attempts that brought no outcome; sets the backoff."""
        self.refusal: NokvError | None = None
        """The last refusal."""
        self.queued = True
        """Waits to be sent (again)."""
        self.on_settled: Settled | None = None
        """Called once, when the outcome is known for certain."""


class CommandStream:
    """The ordered commands of one session. Belongs to one event loop.

    Args:
        router: finds the leader.
        session: the session's id; 0 while it is being opened.
        caller: on whose behalf commands run, unless `submit` says otherwise.
        rng: for jitter.
    """

    def __init__(
        self, router: Router, session: int, caller: Caller, rng: random.Random | None = None
    ) -> None:
        self.session = session
        self.caller = caller
        self.acked = 0
        """Every outcome up to this sequence number is known here; never decreases."""
        self.version = 0
        """The highest version of a result so far."""
        self.on_dead: Callable[[NokvError], None] | None = None
        """Called when a result says that the session is over."""
        self._router = router
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()
        self._next_seq = 1
        self._open: dict[int, Call] = {}
        self._settled_above: set[int] = set()
        """Settled sequence numbers above `acked`."""
        self._open_bytes = 0
        self._outbox: deque[Call] = deque()
        self._again: list[Call] = []
        """Calls whose last attempt came to nothing."""
        self._flush_due = False
        self._batches: set[asyncio.Future[ResponseBody]] = set()
        self._pump: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._closed = False
        self._closed_for: NokvError | None = None
        """What `close` was told."""

    # ------------------------------------------------------------ submitting

    @property
    def open_count(self) -> int:
        """Commands without an outcome."""
        return len(self._open)

    def open_commands(self) -> list[bytes]:
        """Return the encoded commands without an outcome, by sequence number."""
        return [call.data for _, call in sorted(self._open.items())]

    @property
    def full(self) -> bool:
        """Whether a further command must wait (`room`)."""
        return self._over() or bool(self._waiting)

    async def room(self, timeout_s: float) -> None:
        """Wait until a command may be submitted.

        Raises:
            DeadlineExceeded: the window stayed full.
        """
        first = True
        try:
            async with asyncio.timeout(timeout_s):
                while first or self._over():
                    room: asyncio.Future[None] = self._loop.create_future()
                    # Woken but late, because another took the place: it is its turn still.
                    self._waiting.append(room) if first else self._waiting.appendleft(room)
                    first = False
                    if not self._over():
                        self._wake()
                    try:
                        await room
                    finally:
                        if room in self._waiting:
                            self._waiting.remove(room)
        except TimeoutError:
            message = f"{len(self._open)} commands have no outcome yet: no further one was sent"
            raise DeadlineExceeded(message, hint="check the cluster: nokv status") from None
        finally:
            self._loop.call_soon(self._wake)

    def _over(self) -> bool:
        return self._next_seq - self.acked > WINDOW or self._open_bytes >= OPEN_BYTES_MAX

    def submit(
        self,
        op: Op,
        *,
        timeout_s: float,
        predicates: tuple[Predicate, ...] = (),
        on_settled: Settled | None = None,
        caller: Caller | None = None,
    ) -> asyncio.Future[Result]:
        """Send a command and return the future of its result; nobody has to wait for it.

        The future holds the result, a failed one too, or one of: DeadlineExceeded (the outcome may
        be unknown; it goes on being asked for), the refusal, OutcomeUnknown.

        Raises:
            TooLarge: the command passes COMMAND_BYTES_MAX; it was not sent.
            Unavailable: the stream was closed; or as `close` was told.
        """
        if self._closed:
            error = self._closed_for or Unavailable("the client is closed", hint="connect again")
            raise from_wire(error.code, error.message, error.hint)
        assert self._next_seq - self.acked <= RESULT_WINDOW, "the window is the caller's to keep"
        seq = self._next_seq
        data = encode_command(
            Command(
                COMMAND_FORMAT,
                self.session,
                seq,
                self.acked,
                self.caller if caller is None else caller,
                op,
                predicates,
            )
        )
        if len(data) > COMMAND_BYTES_MAX:
            message = f"a command of {len(data)} bytes; the limit is {COMMAND_BYTES_MAX}"
            raise TooLarge(message)
        self._next_seq = seq + 1
        answer: asyncio.Future[Result] = self._loop.create_future()
        call = Call(seq, data, answer, self._loop.time() + timeout_s)
        call.on_settled = on_settled
        self._open[seq] = call
        self._open_bytes += len(data)
        self._outbox.append(call)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        return answer

    # ------------------------------------------------------------ sending

    def _flush(self) -> None:
        self._flush_due = False
        if self._closed or not self._outbox:
            return
        connection = self._router.leader
        if connection is None:
            self._start_pump()
            return
        while self._outbox:
            batch: list[Call] = []
            n_bytes = 0
            while self._outbox and len(batch) < BATCH_MAX:
                call = self._outbox[0]
                if batch and n_bytes + len(call.data) > BATCH_BYTES:
                    break
                self._outbox.popleft()
                if call.answer.done() and call.unresolved == 0:
                    self._settle(call, DeadlineExceeded("given up before it was sent"))
                    continue
                call.unresolved += 1
                call.queued = False
                n_bytes += len(call.data)
                batch.append(call)
            if batch:
                self._deliver(connection, batch)

    def _deliver(self, connection: RpcConnection, batch: list[Call]) -> None:
        """Send a batch; without a task of its own where there is room for it."""
        body = Propose(tuple([call.data for call in batch]))
        answer: asyncio.Future[ResponseBody]
        if connection.full or connection.closed:
            answer = self._loop.create_task(connection.call(body, timeout_s=ATTEMPT_S))
        else:
            answer = connection.send(body, timeout_s=ATTEMPT_S)
        self._batches.add(answer)
        answer.add_done_callback(lambda done: self._delivered(connection, batch, done))

    def _delivered(
        self,
        connection: RpcConnection,
        batch: list[Call],
        answer: asyncio.Future[ResponseBody],
    ) -> None:
        self._batches.discard(answer)
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, NokvError):
            self._router.doubt(connection, error)
            for call in batch:
                self._failed(call, error)
            return
        reply = answer.result()
        if not isinstance(reply, ResultsReply) or len(reply.outcomes) != len(batch):
            lost = Unavailable(f"{connection.address} answered a batch with something else")
            for call in batch:
                self._failed(call, lost)
            return
        for call, outcome in zip(batch, reply.outcomes, strict=True):
            if outcome.error is None:
                self._result(call, outcome)
                continue
            refusal = error_of(outcome.error)
            if isinstance(refusal, NotLeader):
                self._router.doubt(connection, refusal)
            self._failed(call, refusal)

    def _result(self, call: Call, outcome: Outcome) -> None:
        """A result is certain, whatever became of other attempts, if it says what was applied."""
        if call.seq not in self._open or self._open[call.seq] is not call:
            return
        result = result_codec.decode(outcome.result)
        self.version = max(self.version, result.version)
        if result.code in _SESSION_CODES:
            error: NokvError = from_wire(result.code, result.message, result.hint)
            forgotten = isinstance(error, UnknownSession | SequenceReused)
            if forgotten and call.unresolved > 1:
                message = f"an earlier attempt may have been applied: {error.message}"
                error = OutcomeUnknown(message)
            self._settle(call, error)
            if isinstance(error, SessionExpired) and self.on_dead is not None:
                self.on_dead(error)
            return
        self._settle(call, result)

    def _failed(self, call: Call, error: NokvError) -> None:
        """An attempt came to nothing: by a refusal, or nobody knows how."""
        if self._open.get(call.seq) is not call:
            return
        if error.refused:
            call.unresolved -= 1
            call.refusal = error
            assert call.unresolved >= 0, "more refusals than attempts"
        if call.unresolved == 0 and (call.answer.done() or not isinstance(error, AGAIN)):
            self._settle(call, error)
            return
        if not call.queued:
            call.queued = True
            call.failures += 1
            self._again.append(call)
            self._start_pump()

    def _start_pump(self) -> None:
        if self._pump is None and not self._closed:
            self._pump = self._loop.create_task(self._send_again(), name="nokv-retry")

    async def _send_again(self) -> None:
        """Find the leader and send what waits, until nothing waits."""
        try:
            while self._again or self._outbox:
                failures = min((call.failures for call in self._again), default=1)
                await asyncio.sleep(backoff_s(failures - 1, self._rng))
                try:
                    await self._router.find_leader(ATTEMPT_S)
                except NokvError:
                    continue
                again, self._again = self._again, []
                again.sort(key=lambda call: call.seq)
                self._outbox.extendleft(reversed(again))
                self._flush()
        finally:
            self._pump = None

    # ------------------------------------------------------------ settling

    def _settle(self, call: Call, outcome: Result | NokvError) -> None:
        """The outcome is known: tell the caller, and acknowledge as far as all are known."""
        found = self._open.pop(call.seq, None)
        assert found is call, "a command settles once"
        self._open_bytes -= len(call.data)
        if call.seq == self.acked + 1:
            self.acked += 1
            while self.acked + 1 in self._settled_above:
                self.acked += 1
                self._settled_above.remove(self.acked)
        else:
            self._settled_above.add(call.seq)
        if not call.answer.done():
            if isinstance(outcome, NokvError):
                call.answer.set_exception(outcome)
            else:
                call.answer.set_result(outcome)
        if call.on_settled is not None:
            call.on_settled(outcome)
        if self._waiting:
            self._wake()
        if not self._open:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()

    def _wake(self) -> None:
        while self._waiting and not self._over():
            room = self._waiting.popleft()
            if not room.done():
                room.set_result(None)
                return

    def _sweep(self) -> None:
        """Tell callers whose deadline passed. Their commands stay open unless never applied."""
        self._sweeper = None
        now = self._loop.time()
        late = [c for c in self._open.values() if c.deadline_s <= now and not c.answer.done()]
        for call in late:
            call.answer.set_exception(self._too_late(call))
            call.answer.exception()  # seen: the caller may have gone
        if self._open and not self._closed:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        if late:
            self._drop_unsent()

    def _drop_unsent(self) -> None:
        """Settle queued commands that nobody waits for and that certainly never took effect."""
        gone = [
            call
            for call in self._open.values()
            if call.queued and call.unresolved == 0 and call.answer.done()
        ]
        for call in gone:
            self._settle(call, DeadlineExceeded("given up before it was sent"))
        if gone:
            self._outbox = deque(c for c in self._outbox if self._open.get(c.seq) is c)
            self._again = [c for c in self._again if self._open.get(c.seq) is c]

    def _too_late(self, call: Call) -> NokvError:
        if call.unresolved == 0:
            reason = f": {call.refusal.message}" if call.refusal is not None else ""
            message = f"no leader took the command in time; it was not applied{reason}"
            return DeadlineExceeded(message, hint="check the cluster: nokv status")
        message = "the command was sent and not answered in time; it may yet be applied"
        return DeadlineExceeded(message, hint="read the namespace to see, or wait longer")

    # ------------------------------------------------------------ end

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every outcome is known; return whether that was so in time."""
        if not self._open:
            return True
        idle: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(idle)
        try:
            async with asyncio.timeout(timeout_s):
                await idle
        except TimeoutError:
            return False
        return True

    async def close(self, error: NokvError | None = None) -> None:
        """Stop. Commands without an outcome end with OutcomeUnknown, or `error` if unsent.

        So does what is submitted later.
        """
        self._closed = True
        self._closed_for = self._closed_for or error
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks: list[asyncio.Future[Any]] = [*self._batches]
        if self._pump is not None:
            tasks.append(self._pump)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in list(self._open.values()):
            if call.unresolved:
                self._settle(call, OutcomeUnknown("the client was closed before the answer came"))
            else:
                self._settle(call, error or Unavailable("the client was closed"))
            if call.answer.done() and not call.answer.cancelled():
                call.answer.exception()


_SESSION_CODES: Final = frozenset({SessionExpired.code, UnknownSession.code, SequenceReused.code})
