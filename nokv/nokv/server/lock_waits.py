"""Who waits at this node to hear that a request for a lock is over.

A `WaitLocks` that finds nothing over is kept here, one a session, and answered by the entry that
ends one of its waits, by a newer one of the session, or with nothing after POLL_S: then the client
asks again, here or at whoever leads by then. What is lost here costs a client time, never a lock.
"""

from __future__ import annotations

from typing import Final, Protocol

from nokv.errors import NokvError
from nokv.types.locks import LockOutcome, LocksWaited, WaitLocks
from nokv.wire.rpc import QueryReply, ResponseBody

POLL_S: Final = 3.0
"""Longest time that a question stays unanswered; below the clients' patience with one node."""


class Caller(Protocol):
    """A request that is open (`nokv.server.rpc.Call`)."""

    def answer(self, body: ResponseBody) -> None:
        """Answer it, unless that is too late."""
        ...

    def fail(self, error: NokvError, leader: str = "") -> None:
        """Answer it with an error."""
        ...


class LockWaits:
    """The questions that wait, at most one of each live session."""

    def __init__(self) -> None:
        self._parked: dict[int, tuple[Caller, frozenset[int], float]] = {}
        """Session -> (its question, the tickets, when to answer it with nothing)."""

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._parked)

    def park(self, call: Caller, request: WaitLocks, version: int, now_s: float) -> None:
        """Keep a question; the one that the session asked before is answered with nothing."""
        self._answer(request.session, LocksWaited(()), version)
        tickets = frozenset(wait.ticket for wait in request.waits)
        self._parked[request.session] = (call, tickets, now_s + POLL_S)

    def over(self, session: int, outcome: LockOutcome, version: int) -> None:
        """A wait is over: answer who asked for it."""
        parked = self._parked.get(session)
        if parked is not None and outcome.ticket in parked[1]:
            self._answer(session, LocksWaited((outcome,)), version)

    def tick(self, version: int, now_s: float) -> None:
        """Answer what waited long enough."""
        for session in [s for s, (_, _, due_s) in self._parked.items() if due_s <= now_s]:
            self._answer(session, LocksWaited(()), version)

    def fail(self, session: int, error: NokvError) -> None:
        """Tell one session's question that there is nothing to wait for."""
        parked = self._parked.pop(session, None)
        if parked is not None:
            parked[0].fail(error)

    def fail_all(self, error: NokvError, leader: str = "") -> None:
        """Send everybody elsewhere."""
        parked, self._parked = self._parked, {}
        for call, _, _ in parked.values():
            call.fail(error, leader)

    def _answer(self, session: int, value: LocksWaited, version: int) -> None:
        parked = self._parked.pop(session, None)
        if parked is not None:
            parked[0].answer(QueryReply(version, value))
