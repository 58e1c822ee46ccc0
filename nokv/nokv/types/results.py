"""What commands answer. A result is stored with its session and answers every retry alike."""

from __future__ import annotations

from nokv.types.copies import Copied
from nokv.types.locks import LockSet
from nokv.types.trash import Trashed
from nokv.types.values import Attr, Lenient
from nokv.types.views import RolledBack, SnapshotMade, ViewMade


class Done(Lenient, frozen=True, tag=1):
    """Nothing more to say."""


class Made(Lenient, frozen=True, tag=2):
    """The inode that was made or changed, as it is after the command."""

    attr: Attr


class MadeMany(Lenient, frozen=True, tag=3):
    """Files [first, first + count), in the order of the names."""

    first: int
    count: int


class Published(Lenient, frozen=True, tag=4):
    """A new generation. For a staged tree the staged root's inode."""

    inode: int
    generation: int
    size: int
    offset: int = 0
    """Where an append went."""
    attr: Attr | None = None


class SessionOpened(Lenient, frozen=True, tag=5):
    """A session; its id is never used again."""

    session: int
    ttl_ns: int
    floor: int
    """The version of the opening: the session's first floor."""


class Leased(Lenient, frozen=True, tag=6):
    """Uploads [first, first + count)."""

    first: int
    count: int


class Pinned(Lenient, frozen=True, tag=7):
    """Read the view at `version` while this pin lives."""

    view: int
    version: int
    pin: int


class Reaped(Lenient, frozen=True, tag=8):
    """What a background step removed, and whether it would find more at once."""

    removed: int
    more: bool


class Checkpointed(Lenient, frozen=True, tag=9):
    """The checkpoint's number and the version it stands at."""

    number: int


InnerValue = Done | Made | MadeMany | Published | Copied | Trashed


class AtomicDone(Lenient, frozen=True, tag=32):
    """The results of the operations, in their order; versions count up from `first_version`."""

    first_version: int
    values: tuple[InnerValue, ...]


ResultValue = (
    Done
    | Made
    | MadeMany
    | Published
    | Copied
    | Trashed
    | SessionOpened
    | Leased
    | Pinned
    | Reaped
    | Checkpointed
    | SnapshotMade
    | ViewMade
    | RolledBack
    | LockSet
    | AtomicDone
)


class Result(Lenient, frozen=True):
    """The outcome of one command: a value, or an error by its stable code."""

    version: int
    """Of the command; of an `Atomic` its last one. A failed command has a version too."""
    code: int = 0
    """0: success; otherwise `nokv.errors.BY_CODE`."""
    message: str = ""
    hint: str = ""
    value: ResultValue | None = None
