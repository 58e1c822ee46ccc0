"""What a session still reads from: its floor, and leases for handles that stay open long.

The collector keeps every body that was current at or after the floor of some session. A read in
flight holds the version that was the newest when it began, a handle the version it was opened at;
the floor is the smallest of these, else the newest version seen, and never decreases. A handle
that stays open longer than `lease_after_ns` asks for a lease on its one body and holds the floor
until the lease is known to be applied, so that one slow reader does not stop collection.

Handles of one body at one version share one lease. A frame that says what is applied already is
not logged again, so a lease counts from the first frame of an unbroken run of frames that carry
it; and what is carried or left out stays so until that is known to be applied. Until then every
frame differs from the applied one, so it is logged, and no wait lasts for ever:

    (none) -> sent: until a frame with it is applied -> held: while a handle wants it
           -> left out: until a frame without it is applied -> (none)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nokv.types.limits import LEASES_MAX
from nokv.types.values import Lease


class Hold:
    """One reader's claim: everything current at `version` and later stays readable."""

    __slots__ = ("begun_ns", "lease", "version")

    def __init__(self, version: int, begun_ns: int) -> None:
        self.version = version
        """Never below the floor that was announced while this hold counts towards it."""
        self.begun_ns = begun_ns
        self.lease: Lease | None = None
        """What would do instead of the floor; None: nothing (yet). Of `version`."""


class Floors:
    """The holds of one session.

    Args:
        floor: the version of the session's opening.
        lease_after_ns: age at which a handle asks for a lease.
    """

    def __init__(self, floor: int, lease_after_ns: int) -> None:
        self.floor = floor
        """What was announced; never decreases. Replies at an older version are discarded."""
        self.seen = floor
        """The newest version that any answer has shown; never below `floor`."""
        self._lease_after_ns: Final = lease_after_ns
        self._holds: set[Hold] = set()
        self._sent: dict[Lease, int] = {}
        """The first frame with the lease; none of those with it is known to be applied."""
        self._held: set[Lease] = set()
        """In the applied frame, and in every later one."""
        self._left: dict[Lease, int] = {}
        """The first frame without the lease; none of those without it is known to be applied."""

    def note(self, version: int) -> None:
        """Take note of an answer's version."""
        self.seen = max(self.seen, version)

    def begin(self, now_ns: int) -> Hold:
        """Return a hold of the newest version that was seen; end it with `end`."""
        hold = Hold(self.seen, now_ns)
        self._holds.add(hold)
        return hold

    def move(self, hold: Hold, version: int) -> bool:
        """Let `hold` mean the answer's version; False if the answer is older than the floor."""
        assert hold in self._holds
        if version < self.floor:
            return False
        self.note(version)
        hold.version = version
        return True

    def end(self, hold: Hold) -> None:
        """Give a hold up, and its lease."""
        self._holds.discard(hold)

    @contextmanager
    def reading(self, now_ns: int) -> Iterator[Hold]:
        """Hold for the length of a block."""
        hold = self.begin(now_ns)
        try:
            yield hold
        finally:
            self.end(hold)

    def want_lease(self, hold: Hold, view: int, inode: int, body: int) -> None:
        """Name the body that a long-lived handle reads, so that it may become a lease."""
        assert hold in self._holds
        hold.lease = Lease(view, inode, body, hold.version)

    def marks(self, frame: int, now_ns: int) -> tuple[int, tuple[Lease, ...]]:
        """Return the floor and the leases that marks frame number `frame` carries."""
        for lease in self._held - {hold.lease for hold in self._holds}:
            self._held.remove(lease)
            self._left[lease] = frame
        room = LEASES_MAX - len(self._sent) - len(self._held)
        self._sent |= dict.fromkeys(self._due(now_ns)[:room], frame)
        leases = {*self._sent, *self._held}
        assert len(leases) <= LEASES_MAX, "the leader refuses a longer frame"
        low = min(
            (hold.version for hold in self._holds if not self.leased(hold)), default=self.seen
        )
        assert low >= self.floor, "a hold below the announced floor"
        self.floor = low
        return low, tuple(sorted(leases, key=lambda at: (at.view, at.inode, at.body, at.version)))

    def _due(self, now_ns: int) -> list[Lease]:
        """Return the leases to be asked for, each once, those of the oldest holds first."""
        known = self._sent.keys() | self._held | self._left.keys()
        due = [
            hold
            for hold in self._holds
            if hold.lease is not None
            and hold.lease not in known
            and now_ns - hold.begun_ns >= self._lease_after_ns
        ]
        due.sort(key=lambda hold: hold.begun_ns)
        return list(dict.fromkeys(hold.lease for hold in due if hold.lease is not None))

    def applied(self, frame: int) -> None:
        """Marks frame number `frame` was the last one that was applied when this was answered."""
        held = {lease for lease, first in self._sent.items() if first <= frame}
        self._sent = {lease: first for lease, first in self._sent.items() if lease not in held}
        self._held |= held
        self._left = {lease: first for lease, first in self._left.items() if first > frame}

    def leased(self, hold: Hold) -> bool:
        """Whether the hold's lease is held, now and as long as the hold is not ended."""
        return hold.lease in self._held

    @property
    def waiting_for_lease(self) -> bool:
        """Whether a lease was sent, or its end, and some hold waits until that is applied."""
        return any(hold.lease in self._sent or hold.lease in self._left for hold in self._holds)
