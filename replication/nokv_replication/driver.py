"""Runs a `Group` in an asyncio loop: steps it when something arrived, and at its deadlines.

Raft, state machine and the caller's own protocol share one loop and one thread. A Raft thread
beside a busy loop is woken after 60 to 230 ms on CPython, which is longer than a heartbeat.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable

from nokv_replication.errors import ReplicationError
from nokv_replication.group import Group
from nokv_replication.tcp import TcpNetwork
from nokv_replication.types import Committed, Outcome, ReadOutcome

EXIT_FATAL = 70
"""Exit status after a fatal error: EX_SOFTWARE of sysexits.h."""

_LATE_NS = 50_000_000
_POLL_S = 0.001

log = logging.getLogger(__name__)


class SystemClock:
    """The `Clock` port of the operating system."""

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()


class Driver:
    """Owns the stepping of one group in the running loop.

    A fatal error ends the process through `exit_process` without any clean-up: what was promised is
    on disk, and nothing in memory can be trusted to be.
    """

    def __init__(
        self,
        group: Group,
        network: TcpNetwork,
        *,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._group = group
        self._network = network
        self._exit_process = exit_process
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._closed = False
        group.wake = self._wake

    async def start(self) -> None:
        """Listen and begin to step.

        Raises:
            OSError: the listen address cannot be bound.
        """
        await self._network.start(self._group)
        self._wake()

    async def close(self) -> None:
        """Stop: commit the machine, settle what waits, close the log and the connections."""
        if not self._closed:
            self._closed = True
            self._group.stop()
        if self._timer is not None:
            self._timer.cancel()
        await self._network.close()

    # ------------------------------------------------------------------ stepping

    def _wake(self) -> None:
        # Everything that arrives before the loop gets round to the step goes into that one step.
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        try:
            self._group.step()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the promises are at stake
            self._fail(error)
            return
        while self._group.warnings:
            log.warning("%s", self._group.warnings.popleft())
        self._arm()

    def _fail(self, error: BaseException) -> None:
        self._closed = True
        reason = "; ".join((str(error), *getattr(error, "__notes__", ())))
        log.critical("replication stops this process: %s", reason, exc_info=error)
        for handler in logging.getLogger().handlers:
            handler.flush()
        self._exit_process(EXIT_FATAL)

    def _arm(self) -> None:
        due_ns = self._group.next_deadline_ns()
        now_ns = time.monotonic_ns()
        if due_ns <= now_ns:
            self._wake()
            return
        if self._timer is not None:
            if self._timer_ns <= due_ns:
                return  # it fires early, finds nothing due and is set anew: cheaper than this
            self._timer.cancel()
        self._set_timer(due_ns, now_ns)

    def _set_timer(self, due_ns: int, now_ns: int) -> None:
        self._timer_ns = due_ns
        self._timer = self._loop.call_later((due_ns - now_ns) / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._closed:
            return
        now_ns = time.monotonic_ns()
        due_ns = self._group.next_deadline_ns()
        if due_ns > now_ns:
            self._set_timer(due_ns, now_ns)
        elif now_ns - due_ns > _LATE_NS:
            # The process was suspended or starved: what its peers sent meanwhile is still in the
            # sockets, and must be heard before any timeout is believed.
            self._timer_ns = due_ns
            self._timer = self._loop.call_later(_POLL_S, self._wake_late)
        else:
            self._wake()

    def _wake_late(self) -> None:
        self._timer = None
        self._wake()

    # ------------------------------------------------------------------ requests

    def propose(self, payload: bytes) -> "asyncio.Future[Committed]":
        """Order a payload; the future holds its result, or raises a `ReplicationError`."""
        future: asyncio.Future[Committed] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if future.done():
                return  # the caller gave up; the command goes its way
            if isinstance(outcome, Committed):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self._group.propose(payload, done)
        return future

    def read_index(self) -> "asyncio.Future[int]":
        """Wait until the machine holds everything acknowledged before the call.

        The future's callbacks run after the step: between entries only if the caller reads at once
        in `Group.read_index`'s own callback; a coroutine sees the machine as of its next turn,
        perhaps in the middle of a sliced entry. Servers use `Group.read_index`.
        """
        future: asyncio.Future[int] = self._loop.create_future()

        def done(outcome: ReadOutcome) -> None:
            if future.done():
                return
            if isinstance(outcome, ReplicationError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._group.read_index(done)
        return future
