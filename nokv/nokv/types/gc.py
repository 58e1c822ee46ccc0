"""What waits for the collector, and why: the questions of `nokv gc`, and their answers."""

from __future__ import annotations

from enum import IntEnum

from nokv.types.values import Lenient, Strict

ROWS_COUNTED_MAX = 8_192
"""Rows that one answer counts; a number at this bound means: at least so many."""


class Why(IntEnum):
    """What keeps a row of the drop queue. Its fields `by`, `at` and `name` say which one."""

    SNAPSHOT = 1
    """Snapshot `name` holds version `at`."""
    CLONE = 2
    """View `by` began as what version `at` shows."""
    SESSION_PIN = 3
    """Session `by` has pinned version `at`."""
    BACKUP = 4
    """Backup `name` holds version `at`, or its end waits for the grace."""
    LEASE = 5
    """Session `by` has leased the body as of version `at`."""
    FLOOR = 6
    """Session `by` may still read from version `at` on."""
    GRACE = 7
    """The grace ends at cluster time `at`, in ns."""
    FOREIGN = 8
    """The restored volume is not adopted: the original may need what was born up to `at`."""
    SHARED = 9
    """`at` of its holds are of objects that a copy holds too: the last of them deletes."""


class Reason(Lenient, frozen=True):
    """One thing that a row waits for. A row without any goes with the collector's next round."""

    why: int
    """Why."""
    by: int = 0
    at: int = 0
    name: str = ""


class GetPendingDrops(Strict, frozen=True, tag=53):
    """A page of the drop queue, each row with all that keeps it. Reply: PendingDropsReply."""

    after: int = 0
    """The last row of the page before."""
    limit: int = 256
    grace_ns: int = 0
    """The collector's (`worker.grace_ms`): the state does not know it."""


class PendingDrop(Lenient, frozen=True):
    """Holds that ended: of a whole body, or of what one chunk lost."""

    drop: int
    view: int
    inode: int
    body: int
    """0: of all that the view shows."""
    chunk: int
    """-1: of the whole body."""
    born: int
    death: int
    cluster_ns: int
    """When they ended."""
    objects: int
    """Objects of it; of a whole body those of its first chunks."""
    size_bytes: int
    """Their lengths."""
    reasons: tuple[Reason, ...]


class PendingDropsReply(Lenient, frozen=True, tag=31):
    """A page, oldest first."""

    rows: tuple[PendingDrop, ...]
    more: bool
    after: int
    cluster_ns: int


class GetWaiting(Strict, frozen=True, tag=54):
    """How much waits, by kind. Reply: WaitingReply. Counts at most ROWS_COUNTED_MAX jobs."""


class WaitingReply(Lenient, frozen=True, tag=32):
    """Rows that wait. All but `jobs_by_kind` and `views_dead` are exact and O(1)."""

    drops: int
    history: int
    jobs: int
    sessions: int
    """Live ones and tombstones."""
    snapshots: int
    jobs_by_kind: dict[str, int]
    """tree, unpin, session, view."""
    views_dead: int
    """Removed views that something waits for."""
    cluster_ns: int


class WhySession(IntEnum):
    """What a session, or its tombstone, waits for."""

    ALIVE = 1
    """Alive, with nothing abandoned."""
    ABANDONED = 2
    """Alive; uploads below its watermark wait for the grace, or for the sweep after it. The time is
    that of the last that it gave up: older ones go earlier."""
    GRACE = 3
    """Dead; a PUT of it may still arrive."""
    ANSWERS = 4
    """Dead; its tombstone answers retries until `until_cluster_ns`."""
    SWEEP = 5
    """Dead and old enough: it goes when a whole listing finds nothing of it left."""


class ListWaitingSessions(Strict, frozen=True, tag=55):
    """A page of sessions and tombstones, with what each waits for. Reply: WaitingSessionsReply."""

    after: int = 0
    limit: int = 256
    grace_ns: int = 0


class WaitingSession(Lenient, frozen=True):
    """A session or tombstone."""

    session: int
    why: int
    """WhySession."""
    until_cluster_ns: int
    """When that wait is over; 0: it does not end by time."""
    abandoned: int
    """Uploads given up and never published, those included whose objects are gone already."""
    pins: int
    leases: int
    stages: int
    floor: int
    """Of a live session: it keeps what died above."""


class WaitingSessionsReply(Lenient, frozen=True, tag=33):
    """A page."""

    rows: tuple[WaitingSession, ...]
    more: bool
    cluster_ns: int


class GcTotals(Lenient, frozen=True):
    """What a worker freed since it started."""

    rounds: int = 0
    """Rounds of collection that came to their end."""
    failures: int = 0
    """Rounds that did not."""
    rows: int = 0
    """Rows of the drop queue, some in several steps."""
    objects: int = 0
    """Objects of ended holds that were deleted."""
    size_bytes: int = 0
    """Their lengths."""
    orphans: int = 0
    """Objects of uploads that were given up, deleted."""
    orphan_bytes: int = 0
    sessions: int = 0
    """Sessions that were forgotten."""
