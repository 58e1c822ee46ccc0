"""Checkpoints at this replica: the hold of the next commit, and the digests the worker made.

A checkpoint is a command of the log. Each replica commits exactly after its entry and makes no
further commit until its worker has a read transaction open there (a second at most), so the digests
of all replicas are of one state. The worker checks in the store itself which entry it sees: an
answer is never about another state.
"""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nokv.errors import NotFound, Overloaded
from nokv.server import channel
from nokv.server.machine import MachinePort
from nokv.server.rpc import Call
from nokv.wire.rpc import DigestReply

log = logging.getLogger("nokv.digest")

HOLD_S: Final = 1.0
KEPT_MAX: Final = 16
"""Digests kept for callers that come later."""
WAITING_MAX: Final = 1024


class Digests:
    """The shard's side of the channel to the worker."""

    def __init__(
        self, port: MachinePort, end: socket.socket | None, now_s: Callable[[], float]
    ) -> None:
        self._port = port
        self._end = end
        self._now_s = now_s
        self._worker_listens = False
        """Nothing is held for a worker that was too late, until it says anything again."""
        self._open: OrderedDict[int, channel.CheckpointMade] = OrderedDict()
        self._made: OrderedDict[int, DigestReply] = OrderedDict()
        self._missed: OrderedDict[int, str] = OrderedDict()
        """Checkpoints that will have no digest here, and why."""
        self._waiting: list[tuple[int, Call]] = []
        self.made_total = 0
        self.missed_total = 0

    @property
    def latest(self) -> int:
        """Number of the newest checkpoint that is digested; 0 before the first."""
        return next(reversed(self._made), 0)

    def reached(self, number: int, applied_index: int, version: int) -> None:
        """Take note of a checkpoint that has just been committed, and hold the next commit."""
        if self._end is None or not self._worker_listens:
            self._miss(number, "no worker listens")
            return
        made = channel.CheckpointMade(number, applied_index, version)
        self._open[number] = made
        if len(self._open) > KEPT_MAX:
            self._miss(next(iter(self._open)), "later checkpoints came first")
        if not channel.send(self._end, made):
            self._worker_listens = False
            self._miss(number, "the worker does not read")
            return
        until_s = self._now_s() + HOLD_S
        self._port.hold_until = lambda: self._holds(number, until_s)

    def _holds(self, number: int, until_s: float) -> bool:
        if self._now_s() < until_s:
            return True
        self._worker_listens = False
        self._miss(number, "the worker did not open it in time")
        return False

    def state_replaced(self) -> None:
        """Give up the checkpoints of a state that was replaced: the worker finds another one."""
        for number in list(self._open):
            self._miss(number, "a state image took the place of the state")

    def tick(self) -> None:
        """End a hold that is over, also where no commit is due that would ask."""
        hold = self._port.hold_until
        if hold is not None and not hold():
            self._port.hold_until = None

    def readable(self) -> None:
        """Take the worker's messages."""
        assert self._end is not None, "readable without a channel"
        for message in channel.receive(self._end):
            self._worker_listens = True
            if isinstance(message, channel.WorkerReady):
                for number in list(self._open):
                    self._miss(number, "the worker was started again")
            elif isinstance(message, channel.CheckpointOpened):
                if message.number == next(reversed(self._open), None):
                    self._port.hold_until = None
            elif isinstance(message, channel.CheckpointDigested):
                self._digested(message)
            elif isinstance(message, channel.CheckpointMissed):
                self._miss(message.number, message.reason)

    def _digested(self, message: channel.CheckpointDigested) -> None:
        made = self._open.pop(message.number, None)
        if made is None:
            return
        self.made_total += 1
        reply = DigestReply(
            made.number, made.version, made.applied_index, message.families, message.digest
        )
        self._made[made.number] = reply
        while len(self._made) > KEPT_MAX:
            self._made.popitem(last=False)
        waiting, self._waiting = self._waiting, []
        for number, call in waiting:
            if number == made.number:
                call.answer(reply)
            elif call.open:
                self._waiting.append((number, call))

    def _miss(self, number: int, reason: str) -> None:
        self.missed_total += 1
        log.info("checkpoint %d is not digested here: %s", number, reason)
        if number == next(reversed(self._open), None):
            self._port.hold_until = None
        self._open.pop(number, None)
        self._missed[number] = reason
        while len(self._missed) > KEPT_MAX:
            self._missed.popitem(last=False)
        waiting, self._waiting = self._waiting, []
        for wanted, call in waiting:
            if call.open:
                self.answer(wanted, call)

    def answer(self, number: int, call: Call) -> None:
        """Answer with a checkpoint's digest, now or when it is made; 0: the latest there is."""
        number = number or self.latest
        found = self._made.get(number)
        if found is not None:
            call.answer(found)
            return
        reason = self._missed.get(number)
        if reason is not None:
            call.fail(NotFound(f"checkpoint {number} was not digested here: {reason}"))
            return
        if number <= self.latest:
            call.fail(NotFound(f"no digest of checkpoint {number} is kept here"))
            return
        self._waiting = [(wanted, other) for wanted, other in self._waiting if other.open]
        if len(self._waiting) >= WAITING_MAX:
            call.fail(Overloaded("too many callers wait for digests"))
            return
        self._waiting.append((number, call))
