"""One session: its life, its marks, and all that ends with it.

The session counts as alive from the *sending* of the last renewal that was answered, for its time
to live less a margin, on a clock that runs through suspend. So the client's count always ends
before the leader may propose to expire it. When it is over no PUT and no GET starts, handles are
stale, and nothing is carried into the next session; only commands already sent are still asked
for, because their outcome exists.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable
from typing import Final

from nokv.client.calls import AGAIN, CommandStream
from nokv.client.clock import boot_ns
from nokv.client.floors import Floors
from nokv.client.lock_waits import LockWaits
from nokv.client.routing import Router, backoff_s
from nokv.client.uploads import UploadNumbers
from nokv.errors import (
    InvalidArgument,
    NokvError,
    SessionExpired,
    Unavailable,
    WindowFull,
    from_wire,
)
from nokv.types.commands import COMMAND_FORMAT, Command, ExpireSession, LeaseUploads, OpenSession
from nokv.types.limits import SESSION_TTL_NS_MAX, UPLOAD_WINDOW
from nokv.types.results import Leased, Result, SessionOpened
from nokv.types.values import Caller, Marks
from nokv.wire.codec import encode_command, result_codec
from nokv.wire.rpc import Propose, Renew, RenewReply, ResultsReply

log = logging.getLogger("nokv.client")

TTL_NS_MIN: Final = 5_000_000_000
"""Shortest time to live that a client asks for: the margin must stay a small part of it."""

MARGIN_NS: Final = 1_000_000_000
"""The client stops so long before its time to live is over ..."""
DRIFT_PARTS: Final = 1000
"""... and a thousandth of it earlier still: more than two clocks drift apart in that time."""

RENEWALS_PER_TTL: Final = 6
LEASE_POLL_S: Final = 1.0
"""Renewals follow so fast while a read lease waits for its result."""


class Session:
    """A session that is open. Make one with `Session.open`; `close` ends it everywhere.

    Belongs to one event loop.
    """

    def __init__(
        self,
        router: Router,
        opened: SessionOpened,
        first_attempt_ns: int,
        caller: Caller,
        rng: random.Random,
        clock_ns: Callable[[], int],
    ) -> None:
        self.id: Final = opened.session
        self.ttl_ns: Final = opened.ttl_ns
        self.stream: Final = CommandStream(router, opened.session, caller, rng)
        self.floors: Final = Floors(opened.floor, opened.ttl_ns // 2)
        self.uploads: Final = UploadNumbers(self._lease_uploads)
        self.lock_waits: Final = LockWaits(router, opened.session, caller, lambda: self.valid)
        self._router = router
        self._rng = rng
        self._clock_ns = clock_ns
        self._margin_ns = MARGIN_NS + opened.ttl_ns // DRIFT_PARTS
        self._valid_until_ns = first_attempt_ns + opened.ttl_ns - self._margin_ns
        self._dead: NokvError | None = None
        self._closing = False
        self._frame = 0
        self._full_since_s = (-1, 0.0)
        """The watermark at which the window of uploads was full, and since when, in loop time."""
        self._renewed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.stream.on_dead = self._die
        self._keeper = asyncio.get_running_loop().create_task(
            self._keep_alive(), name=f"nokv-session-{opened.session:x}"
        )

    @classmethod
    async def open(
        cls,
        router: Router,
        *,
        ttl_ns: int,
        caller: Caller,
        timeout_s: float,
        rng: random.Random | None = None,
        clock_ns: Callable[[], int] = boot_ns,
    ) -> Session:
        """Open a session; an opening that is repeated after a lost answer is the same one.

        Raises:
            InvalidArgument: a time to live outside TTL_NS_MIN and SESSION_TTL_NS_MAX.
            Unavailable, DeadlineExceeded: no leader answered in time.
        """
        if not TTL_NS_MIN <= ttl_ns <= SESSION_TTL_NS_MAX:
            message = f"a session of {ttl_ns / 1e9:g} s"
            raise InvalidArgument(message, hint=f"{TTL_NS_MIN / 1e9:g} s at least, an hour at most")
        rng = rng or random.Random()
        first_attempt_ns = clock_ns()
        op = OpenSession(os.urandom(16), ttl_ns)
        data = encode_command(Command(COMMAND_FORMAT, 0, 0, 0, caller, op))
        result = await _propose_until(router, data, timeout_s, rng)
        if not isinstance(result.value, SessionOpened):
            raise from_wire(result.code, result.message, result.hint)
        return cls(router, result.value, first_attempt_ns, caller, rng, clock_ns)

    # ------------------------------------------------------------ life

    @property
    def valid(self) -> bool:
        """Whether the session is certainly alive: PUTs and GETs may start."""
        return self._dead is None and self._clock_ns() < self._valid_until_ns

    def check(self) -> None:
        """Return if the session is valid.

        Raises:
            SessionExpired: its time is over.
        """
        if not self.valid:
            message = f"session {self.id:x} is over"
            raise SessionExpired(
                self._dead.message if self._dead is not None else message,
                hint="open the file, or begin the upload, again",
            )

    def now_ns(self) -> int:
        """Return the session's clock."""
        return self._clock_ns()

    def _die(self, error: NokvError) -> None:
        if self._dead is None:
            if not self._closing:
                log.warning("session %x is over: %s", self.id, error.message)
            self._dead = error

    async def _keep_alive(self) -> None:
        interval_s = self.ttl_ns / 1e9 / RENEWALS_PER_TTL
        while self.valid:
            pause_s = min(interval_s, LEASE_POLL_S) if self.floors.waiting_for_lease else interval_s
            try:
                async with asyncio.timeout(pause_s):
                    await self._renewed.wait()
            except TimeoutError:
                pass
            self._renewed.clear()
            try:
                await self.renew(interval_s)
            except SessionExpired as error:
                self._die(error)
            except NokvError as error:
                log.info("session %x was not renewed: %s", self.id, error.message)
        self._die(SessionExpired(f"session {self.id:x} could not be renewed in time"))

    def renew_soon(self) -> None:
        """Send the marks without waiting for the next renewal's time."""
        self._renewed.set()

    async def renew(self, timeout_s: float) -> None:
        """Renew, and carry the marks to the leader.

        Raises:
            SessionExpired: the cluster says that it is over.
            Unavailable, DeadlineExceeded: no leader answered in time.
        """
        sent_ns = self._clock_ns()
        self._frame += 1
        floor, leases = self.floors.marks(self._frame, sent_ns)
        marks = Marks(self.id, self._frame, floor, self.uploads.watermark, leases)
        reply = await self._router.call_leader(Renew(marks), timeout_s)
        if not isinstance(reply, RenewReply):
            message = f"a renewal was answered with {type(reply).__name__}"
            raise Unavailable(message)
        until_ns = sent_ns + min(reply.ttl_ns, self.ttl_ns) - self._margin_ns
        self._valid_until_ns = max(self._valid_until_ns, until_ns)
        self.floors.note(reply.version)
        self.floors.applied(reply.marks_number)

    async def close(self, timeout_s: float = 2.0) -> None:
        """End the session: wait for outcomes, then tell the cluster. Never raises for faults."""
        self._closing = True
        self.lock_waits.close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        settled = await self.stream.drain(timeout_s)
        if settled and self.valid:
            answer = self.stream.submit(ExpireSession(self.id), timeout_s=timeout_s)
            await asyncio.wait([answer], timeout=timeout_s)
        self._dead = self._dead or SessionExpired("the client was closed")
        await self.stream.close()

    async def retire(self, settle_s: float) -> None:
        """After its time: ask on for open outcomes for a while, then give them up."""
        assert not self.valid
        self.lock_waits.close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.stream.drain(settle_s)
        await self.stream.close(self._dead or SessionExpired(f"session {self.id:x} is over"))

    # ------------------------------------------------------------ uploads

    async def take_upload(self) -> int:
        """Return a fresh upload number, in flight until `uploads.settled`.

        Raises:
            SessionExpired: the session is over, so that no PUT may start.
            NokvError: as LeaseUploads.
        """
        self.check()
        return await self.uploads.take()

    async def _lease_uploads(self, count: int) -> None:
        attempt = 0
        while True:
            if self.stream.full:
                await self.stream.room(_LEASE_TIMEOUT_S)
            result = await self.stream.submit(
                LeaseUploads(count), timeout_s=_LEASE_TIMEOUT_S, on_settled=self._leased
            )
            if result.code == 0:
                return
            error = from_wire(result.code, result.message, result.hint)
            if not isinstance(error, WindowFull):
                raise error
            # The window moves with the watermark, which travels with the marks once a second.
            self.check()
            self.renew_soon()
            self._check_window()
            attempt += 1
            await asyncio.sleep(LEASE_POLL_S + backoff_s(attempt, self._rng))

    def _check_window(self) -> None:
        """Take note that the window of upload numbers is full.

        Raises:
            WindowFull: the same upload has held it up for long, so nobody waits any more.
        """
        now_s = asyncio.get_running_loop().time()
        oldest = self.uploads.watermark
        if self._full_since_s[0] != oldest:
            self._full_since_s = oldest, now_s
        if now_s - self._full_since_s[1] < WINDOW_WAIT_S:
            return
        message = f"upload {oldest} has not ended; {UPLOAD_WINDOW} numbers from it are taken"
        raise WindowFull(message, hint="close or abort writers that were left open, then try again")

    def _leased(self, outcome: Result | NokvError) -> None:
        if isinstance(outcome, Result) and isinstance(outcome.value, Leased):
            self.uploads.leased(outcome.value)


_LEASE_TIMEOUT_S: Final = 30.0

WINDOW_WAIT_S: Final = 30.0
"""Uploads wait so long, all together, for an old one that holds the window of numbers up."""


async def _propose_until(
    router: Router, data: bytes, timeout_s: float, rng: random.Random
) -> Result:
    """Propose a command that may be applied twice until it has a result."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    attempt = 0
    while True:
        reply = await router.call_leader(Propose((data,)), max(0.001, end - loop.time()))
        if not isinstance(reply, ResultsReply) or len(reply.outcomes) != 1:
            message = f"a command was answered with {type(reply).__name__}"
            raise Unavailable(message)
        outcome = reply.outcomes[0]
        if outcome.error is None:
            return result_codec.decode(outcome.result)
        error = from_wire(outcome.error.code, outcome.error.message, outcome.error.hint)
        attempt += 1
        pause_s = backoff_s(attempt, rng)
        if not isinstance(error, AGAIN) or loop.time() + pause_s >= end:
            raise error
        leader = router.leader
        if leader is not None:
            router.doubt(leader, error)
        await asyncio.sleep(pause_s)
