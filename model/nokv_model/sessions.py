"""Sessions: who may send what, which sequence numbers are answered, uploads, marks, pins."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nokv.errors import (
    InvalidArgument,
    SequenceReused,
    SessionExpired,
    UnknownSession,
    UploadRefused,
    WindowFull,
)
from nokv.types.commands import INTERNAL_OPS, Command, ExpireSession, OpenSession
from nokv.types.limits import LEASES_MAX, RANGES_PAGE_MAX, RESULT_WINDOW, UPLOAD_WINDOW
from nokv.types.reads import SessionReply
from nokv.types.results import Result
from nokv.types.values import Lease, Marks


@dataclass
class Session:
    """A session, or its tombstone."""

    number: int
    nonce: bytes
    ttl_ns: int
    opened: int
    floor: int
    acked: int = 0
    marks_number: int = 0
    watermark: int = 1
    next_upload: int = 1
    leases: tuple[Lease, ...] = ()
    consumed: set[int] = field(default_factory=set)
    died: int = 0
    died_cluster_ns: int = 0
    abandoned_cluster_ns: int = 0
    """When the watermark rose last."""

    def copy(self) -> Session:
        """Return an independent copy."""
        return replace(self, consumed=set(self.consumed))

    def reply(self, above: int = 0, most: int = RANGES_PAGE_MAX) -> SessionReply:
        """Return what is told of it, with at most so many ranges, of uploads beyond `above`."""
        return SessionReply(
            session=self.number,
            alive=not self.died,
            ttl_ns=self.ttl_ns,
            opened=self.opened,
            acked=self.acked,
            watermark=self.watermark,
            next_upload=self.next_upload,
            floor=self.floor,
            marks_number=self.marks_number,
            died=self.died,
            died_cluster_ns=self.died_cluster_ns if self.died else self.abandoned_cluster_ns,
            consumed=self.published(above)[:most],
        )

    def published(self, above: int) -> tuple[tuple[int, int], ...]:
        """Return the ranges of its published uploads beyond `above`."""
        return ranges({upload for upload in self.consumed if upload > above})

    def lease_uploads(self, count: int) -> int:
        """Lease `count` upload numbers; return the first."""
        if self.next_upload + count - self.watermark > UPLOAD_WINDOW:
            message = "too many uploads above the watermark"
            raise WindowFull(message)
        first = self.next_upload
        self.next_upload += count
        return first

    def check_upload(self, upload: int) -> None:
        """Raise UploadRefused unless a publish may consume this upload."""
        if not self.watermark <= upload < self.next_upload or upload in self.consumed:
            message = f"upload {upload} is not leased, abandoned, or published already"
            raise UploadRefused(message)


def ranges(numbers: set[int]) -> tuple[tuple[int, int], ...]:
    """Return the numbers as ascending ranges [first, last]."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


@dataclass
class Results:
    """What was answered: the first result of each sequence number that is not acknowledged."""

    kept: dict[tuple[int, int], Result] = field(default_factory=dict)

    def acknowledge(self, session: Session, acked: int) -> None:
        """Drop every result up to `acked`, which the client has received."""
        session.acked = max(session.acked, acked)
        for number, seq in list(self.kept):
            if number == session.number and seq <= session.acked:
                del self.kept[number, seq]

    def forget(self, session: Session) -> None:
        """Drop all that is known of a session."""
        self.acknowledge(session, 2**63)


def admit(
    command: Command, sessions: dict[int, Session], results: Results
) -> Session | Result | None:
    """Decide who sends the command: its session, None for the node itself, or the first result.

    Raises UnknownSession, SessionExpired, SequenceReused, InvalidArgument or WindowFull, none of
    which is stored.
    """
    if command.session == 0:
        if isinstance(command.op, (OpenSession, ExpireSession, *INTERNAL_OPS)):
            return None
        message = "the operation needs a session"
        raise UnknownSession(message)
    session = sessions.get(command.session)
    if session is None:
        message = f"no session {command.session}"
        raise UnknownSession(message)
    first = results.kept.get((command.session, command.seq))
    if first is not None:
        return first
    if session.died:
        message = f"session {command.session} has ended"
        raise SessionExpired(message)
    if command.seq < 1 or command.seq <= session.acked:
        message = f"sequence number {command.seq} was acknowledged"
        raise SequenceReused(message)
    if not 0 <= command.acked < command.seq:
        message = "a command acknowledges less than nothing, or itself"
        raise InvalidArgument(message)
    if command.seq > max(session.acked, command.acked) + RESULT_WINDOW:
        message = "too many unacknowledged results"
        raise WindowFull(message)
    return session


def apply_marks(sessions: dict[int, Session], frame: Marks, version: int, cluster_ns: int) -> None:
    """Apply one frame of marks, unless it is old or its session has ended.

    What it says of versions and uploads that do not exist yet counts as the newest there is.
    """
    session = sessions.get(frame.session)
    if session is None or session.died or frame.number <= session.marks_number:
        return
    session.marks_number = frame.number
    # A batch applies leases before floors: a lease must name a version at or above the old floor.
    session.leases = tuple(
        lease
        for lease in frame.leases[:LEASES_MAX]
        if lease in session.leases or session.floor <= lease.version <= version
    )
    session.floor = max(session.floor, min(frame.floor, version))
    watermark = min(frame.watermark, session.next_upload)
    if watermark > session.watermark:
        session.watermark, session.abandoned_cluster_ns = watermark, cluster_ns
