"""Where operators order runs of the collector, and the worker of the leader takes the orders.

The worker asks its own node a few times a second, so nobody has to reach it. Everything here is
forgotten with the process, and `office` tells another process apart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from nokv.types.gc import GcTotals
from nokv.wire.rpc import GcOrders, GcStatus, ReportGc

BUSY_PER_S: Final = 200
"""Commands a second from which on the collector is not alone; it sends far fewer itself."""


class GcDesk:
    """The orders of one shard process."""

    def __init__(self, grace_ns: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._grace_ns: Final = grace_ns
        self._now_s = now_s
        self._office: Final = secrets.randbits(48) | 1
        self._ordered = 0
        self._finished = 0
        self._error = ""
        self._commands = 0
        self._reported_s: float | None = None
        self.totals = GcTotals()
        """As the worker told last; it begins anew with its process."""
        self.gone = ""
        """Why nothing may be written here, as the worker told last: another cluster has the volume.
        Empty: none has."""

    def report(self, body: ReportGc, *, leads: bool, commands: int) -> GcOrders:
        """Take what the worker tells; return what it is to do.

        `commands` counts those that this node proposed since its start.
        """
        now_s, before_s = self._now_s(), self._reported_s
        sent, self._commands = commands - self._commands, commands
        busy = before_s is not None and sent > BUSY_PER_S * (now_s - before_s)
        self._reported_s = now_s
        self.totals = body.totals
        if body.gone is not None:
            self.gone = body.gone
        if body.office == self._office and self._finished < body.finished <= self._ordered:
            self._finished, self._error = body.finished, body.error
        return GcOrders(self._office, leads, self._ordered, busy)

    def order(self) -> None:
        """Ask for a run: the worker does the newest one, which is for all before it too."""
        self._ordered += 1

    def status(self, reaped: int) -> GcStatus:
        """Return how things stand."""
        reported = self._reported_s
        return GcStatus(
            self._office,
            self._ordered,
            self._finished,
            self._error,
            self.totals,
            reaped,
            -1 if reported is None else round((self._now_s() - reported) * 1000),
            self._grace_ns,
        )
