"""What a watch tells: events as the one who watches a directory sees them.

A watch shows a directory, or all below it. A name that a rename brings in from elsewhere is told
as MOVED_IN, one that leaves as MOVED_OUT; what lies outside is never told (docs/namespace.md:
Watches).
"""

from __future__ import annotations

from enum import IntEnum

from nokv.types.events import EventKind
from nokv.types.values import Lenient

SINCE_NOW = -1
"""As a cursor: events of commands that come after the opening."""

WATCH_KINDS_MAX = 64
"""Kinds that one watch names."""

WATCH_WINDOW_BYTES_MIN = 64 * 1024
WATCH_WINDOW_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of events under way to one watch; the frame that passes the window is still sent."""

BOOKMARK_MS_MIN = 100
BOOKMARK_MS_MAX = 600_000
BOOKMARK_MS_DEFAULT = 10_000


class Moved(IntEnum):
    """Kinds that only a watch knows: an `EventKind.RENAME` across the border of what it shows."""

    IN = 100
    """A name came from outside; of a directory, with all below it: list it."""
    OUT = 101
    """A name left, with all below it."""


class WatchEvent(Lenient, frozen=True):
    """One change, as a watch tells it.

    `chain` and `to_chain` lead from the directory of the name up to the watched one, both
    included: inode numbers, and `~view` where what follows lies in another view. They are empty
    outside of what is watched; an event of the watched inode itself has both empty.
    """

    version: int
    """Of the command; a cursor."""
    kind: int
    """`EventKind` or `Moved`."""
    view: int
    """That `chain` begins in."""
    chain: tuple[int, ...]
    directory: bytes | None
    """Path of the first of `chain` below the watched directory, as the node found it when it told
    the event; empty for the watched one itself, None where it was gone."""
    name: bytes
    """Where an inode changed and not a name: the one that it has in the directory now, if one."""
    inode_view: int
    inode: int
    to_chain: tuple[int, ...] = ()
    """Of a rename or exchange; both ends lie in one view."""
    to_directory: bytes | None = b""
    to_name: bytes = b""
    size: int = 0
    generation: int = 0
    session: int = 0
    seq: int = 0
    names: tuple[bytes, ...] = ()
    """Of a bulk create: their inodes count up from `inode`."""
    wall_ns: int = 0


KIND_NAMES: dict[int, str] = {kind.value: kind.name.lower() for kind in EventKind} | {
    Moved.IN: "moved_in",
    Moved.OUT: "moved_out",
}
"""Kinds as people write them."""


def kind_name(kind: int) -> str:
    """Return the name of a kind; one of a newer node is `kind-N`."""
    return KIND_NAMES.get(kind, f"kind-{kind}")
