"""What watches ask of the state: events, names, and where the watched inodes are and were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from nokv.errors import NokvError, Stale
from nokv.state.records import Counters, View
from nokv.state.watching import Place
from nokv.types.reads import Access, AttrReply, Read, ReadValue
from nokv.types.values import At, Attr, Caller, FileType

_READ, _SEARCH = 4, 1


class Machine(Protocol):
    """What is asked of the state, between entries."""

    @property
    def version(self) -> int:
        """Version of the last command."""
        ...

    @property
    def counters(self) -> Counters:
        """The scalars."""
        ...

    def event_rows(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield (key, encoded record) of the stored events with a key above `after`."""
        ...

    def read(self, caller: Caller, request: Read) -> tuple[int, ReadValue]:
        """Answer a read."""
        ...

    def view(self, number: int) -> View | None:
        """Return a view's record; None for one that never was, or is gone."""
        ...

    def lineage(self, view: int) -> Iterator[int]:
        """Yield the views whose place one took by rollbacks, the newest first."""
        ...

    def successors(self, view: int) -> Iterator[int]:
        """Yield the living views that took the place of one, or of parts of it, newest first."""
        ...

    def name_in(self, place: Place, directory: Place) -> bytes:
        """Return the name of an inode in a directory, as it is now."""
        ...


class Roots:
    """The inodes that are watched, between entries."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def find(self, caller: Caller, at: At) -> Attr:
        """Return the watched inode; one that is named by its number also where a rollback put it.

        So a watch that was cut off meanwhile goes on.
        """
        try:
            return self.root(caller, at)
        except Stale:
            moved = None if at.path else self.now((at.view, at.inode))
            if moved is None:
                raise
            return self.root(caller, At(*moved))

    def before(self, root: Place) -> Iterator[Place]:
        """Yield where the inode was before rollbacks: events of then tell of it there."""
        for view in self._machine.lineage(root[0]):
            if not self.is_alive((view, root[1])):
                yield view, root[1]

    def now(self, place: Place) -> Place | None:
        """Return where an inode is, perhaps after rollbacks; None: nowhere."""
        if self.is_alive(place):
            return place
        views = self._machine.successors(place[0])
        return next((one for view in views if self.is_alive(one := (view, place[1]))), None)

    def is_alive(self, place: Place) -> bool:
        """Whether a name leads to the inode."""
        try:
            self._machine.read(Caller(), Access(At(*place), 0))
        except NokvError:
            return False
        return True

    def root(self, caller: Caller, at: At) -> Attr:
        """Return the watched inode if the caller may see what is told of it."""
        machine = self._machine
        _, found = machine.read(caller, Access(at, 0))
        assert isinstance(found, AttrReply)
        directory = found.attr.mode >> 12 == FileType.DIRECTORY
        machine.read(caller, Access(at, _READ | _SEARCH if directory else _READ))
        return found.attr
