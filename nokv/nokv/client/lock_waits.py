"""The requests for locks of one session that wait, and how it hears that one is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from nokv.client.routing import Router, backoff_s
from nokv.errors import NokvError, SessionExpired
from nokv.types.locks import LocksWaited, LockWait, WaitLocks
from nokv.types.values import Caller
from nokv.wire.rpc import Query, QueryReply

POLL_TIMEOUT_S: Final = 10.0
"""For one question whether waits are over; a node answers it in three seconds at the latest."""

PAUSE_S: Final = 0.05
"""After an answer that nothing is over."""


class LockWaits:
    """The requests of one session that wait, and one question for all of them at the leader.

    Args:
        router: finds the leader.
        session: whose waits they are.
        caller: who asks.
        valid: whether the session lives.
    """

    def __init__(
        self, router: Router, session: int, caller: Caller, valid: Callable[[], bool]
    ) -> None:
        self._router = router
        self._session = session
        self._caller = caller
        self._valid = valid
        self._rng = random.Random()
        self._waits: dict[int, tuple[LockWait, asyncio.Future[bool]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def wait(self, wait: LockWait) -> bool:
        """Return once a request waits no more: whether it was granted, or its file is gone.

        Raises:
            SessionExpired: the session is over.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waits[wait.ticket] = (wait, done)
        self._ask_anew()
        try:
            return await done
        finally:
            self._waits.pop(wait.ticket, None)
            if not self._waits:
                self.close()

    def close(self) -> None:
        """Stop asking; whoever waits gets SessionExpired."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._fail(SessionExpired("the session that waited for the lock is over"))

    def _ask_anew(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.get_running_loop().create_task(self._ask(), name="nokv-lock-waits")

    async def _ask(self) -> None:
        failures = 0
        while self._waits:
            if not self._valid():
                self._fail(SessionExpired(f"session {self._session:x} is over"))
                return
            waits = tuple(wait for wait, _ in self._waits.values())
            request = Query(self._caller, WaitLocks(self._session, waits))
            try:
                reply = await self._router.call_leader(request, POLL_TIMEOUT_S)
            except SessionExpired as error:
                self._fail(error)
                return
            except NokvError:
                failures += 1
                await asyncio.sleep(backoff_s(failures, self._rng))
                continue
            failures = 0
            value = reply.value if isinstance(reply, QueryReply) else None
            over = value.over if isinstance(value, LocksWaited) else ()
            for outcome in over:
                found = self._waits.pop(outcome.ticket, None)
                if found is not None and not found[1].done():
                    found[1].set_result(outcome.granted)
            if not over:
                await asyncio.sleep(PAUSE_S)

    def _fail(self, error: NokvError) -> None:
        waits, self._waits = self._waits, {}
        for _, done in waits.values():
            if not done.done():
                done.set_exception(error)
