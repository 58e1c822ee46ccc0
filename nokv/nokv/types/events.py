"""Kinds of events. The numbers are stored: append only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum


class EventKind(IntEnum):
    """What a command did to the namespace."""

    CREATE = 1
    """A name and its inode appeared: create, mkdir, mknod, symlink, bulk create."""
    REMOVE = 2
    """A name went; a whole tree where it was a directory removed recursively."""
    RENAME = 3
    """A name moved; what the target name showed before is gone."""
    EXCHANGE = 4
    """Two names changed places."""
    PUBLISH = 5
    """A file has a new generation, created by it or not."""
    SETATTR = 6
    XATTR = 7
    LINK = 8
    """A further name of an existing inode."""
    MOVE_IN = 9
    """A staged tree became visible: list the subtree at this version."""
    SNAPSHOT = 10
    CLONE = 11
    ROLLBACK = 12


def places(view: int, chain: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (view, directory) of an event's chain, from the innermost one up to the root.

    A chain lists inodes of the event's view up to that view's root; a negative number -1 - v says
    that what follows lies in view v, which holds the graft that leads to the one before.
    """
    for number in chain:
        if number < 0:
            view = -1 - number
        else:
            yield view, number
