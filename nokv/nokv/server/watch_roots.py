"""What watches ask of the state: events, names, and where the watched inodes are and were."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol

from nokv.errors import NokvError, Stale
from nokv.state.records import Counters, StoredEvent, View
from nokv.state.watching import Place
from nokv.types.limits import DEPTH_MAX, NESTED_VIEWS_MAX
from nokv.types.reads import Access, AttrReply, Read, ReadValue
from nokv.types.values import At, Attr, Caller, FileType

VIEWS_EXAMINED_MAX: Final = 4096
"""Views that the opening of a watch goes through, the newest first."""

LOOKS_MAX: Final = 256
"""Views in which an inode is looked for that rollbacks may have moved, the newest first."""

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

    def views(self) -> Iterator[tuple[int, View]]:
        """Yield (number, record) of the views, also of dead ones that wait, newest first."""
        ...

    def directories(self, view: int, inode: int) -> tuple[int, ...]:
        """Return an inode that exists and the directories above it, up to its view's root."""
        ...

    def name_in(self, place: Place, directory: Place) -> bytes:
        """Return the name of an inode in a directory, as it is now."""
        ...


class _Lines:
    """Which live views came from one by rollbacks, one after the other or beside each other.

    Numbers, identities and what was replaced never change: each view is read once, and those that
    died since are the caller's to remove.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._first: dict[int, int] = {}
        """View -> the one that its line began with."""
        self._views: dict[int, list[int]] = {}
        """First view -> those of its line, ascending."""
        self._next_view: dict[int, int] = {}
        """View -> the one that took its place."""
        self._newest: dict[Place, int] = {}
        """Identity -> the last view that has it."""
        self._next = 0
        """The first number that was not read."""

    def of(self, view: int) -> list[int]:
        """Return the views of a view's line, as far as it is known; all that are alive, ascending.

        Of a line without any the list is the caller's alone.
        """
        self._read()
        return self._views.get(self._first_of(view), [])

    def after(self, place: Place) -> Iterator[int]:
        """Yield the view that a directory became by rollbacks, and the one that its view became."""
        self._read()
        if place in self._newest:
            yield self._newest[place]
        view = place[0]
        while view in self._next_view:
            view = self._next_view[view]
        if view != place[0]:
            yield view

    def _read(self) -> None:
        if len(self._first) > 4 * VIEWS_EXAMINED_MAX:
            self._first.clear()
            self._views.clear()
            self._next_view.clear()
            self._newest.clear()
            self._next = 0
        end = self._machine.counters.next_view
        for number in range(max(1, self._next, end - VIEWS_EXAMINED_MAX), end):
            record = self._machine.view(number)
            if record is None:
                continue
            first = self._first_of(number)
            self._first[number] = first
            self._newest[record.identity] = number
            if record.replaces is not None:
                self._first[record.replaces] = first
                self._next_view[record.replaces] = number
            if not record.dead:
                self._views.setdefault(first, []).append(number)
        self._next = end

    def _first_of(self, view: int) -> int:
        """Follow identities down to the first view; they are handed on by rollbacks alone."""
        while view not in self._first:
            record = self._machine.view(view)
            if record is None or record.identity[0] == view:
                return view
            assert record.identity[0] < view, f"view {view} has the identity of a later one"
            view = record.identity[0]
        return self._first[view]


class Roots:
    """The inodes that are watched, between entries."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lines = _Lines(machine)
        self.looks = 0
        """Reads of the state for rollbacks so far: who calls shares the loop by them."""

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

    def before(self, root: Place) -> tuple[list[Place], int]:
        """Return where a watched inode was before rollbacks: events of then tell of it there.

        And the version since which that is known; 0: always.
        """
        inode = root[1]
        found, since = self._line(root[0])
        if len(found) == 1:
            return [], since
        above = self._machine.directories(*root)
        views = islice(self._machine.views(), VIEWS_EXAMINED_MAX)
        inside = [(n, r) for n, r in views if r.dead and r.identity[1] in above]
        while True:
            # What ended with a view of the line lay in what that view took the place of.
            records = [self._machine.view(view) for view in found]
            ended = {record.created for record in records if record is not None}
            more = [
                number
                for number, record in inside
                if number not in found and record.dead in ended and record.identity[0] in found
            ]
            if not more:
                break
            for number in more:
                line, known = self._line(number)
                found |= line
                since = max(since, known)
        places = [(view, inode) for view in sorted(found - {root[0]})]
        return [place for place in places if not self.is_alive(place)], since

    def now(self, place: Place) -> Place | None:
        """Return where an inode is, perhaps after rollbacks; None: nowhere that is known."""
        if self.is_alive(place):
            return place
        inode = place[1]
        # Others may show the inode too: of a directory above, rolled back when it had moved away.
        for number in self._lines.after(place):
            if self.is_alive((number, inode)):
                return number, inode
        numbers = self._lines.of(place[0])
        for number in numbers[-1 : -LOOKS_MAX - 1 : -1]:
            if number <= place[0]:
                break  # a rollback leads into a view that is made then
            record = self._machine.view(number)
            self.looks += 1
            if record is None or record.dead:
                numbers.remove(number)
            elif inode < record.first_inode and self.is_alive((number, inode)):
                return number, inode
        return None

    def may_concern(self, root: Place, event: StoredEvent) -> bool:
        """Whether a rollback may have taken a watched inode along, as told without a look at it."""
        old = self._replaced(event)[1]
        return any(place[0] == old for place in self._levels(root))

    def rolled_back(self, root: Place, event: StoredEvent) -> Place | None:
        """Return where a rollback that took a watched inode along put it; None: it did not.

        It did if what it replaced is the inode, or a directory or view above it.
        """
        number = event.inode_view
        assert number is not None, "a rollback leads into a view"
        view, old = self._replaced(event)
        whole = view is not None and view.replaces is not None
        for place in self._levels(root):
            gone = place[0] == old and not self.is_alive(place)
            if gone and (whole or self.now((number, place[1])) is not None):
                return self._inside(number, view, root[1])
        return None

    def _replaced(self, event: StoredEvent) -> tuple[View | None, int]:
        """Return the view that a rollback made, if it is still there, and the one it took from."""
        assert event.inode_view is not None, "a rollback leads into a view"
        view = self._machine.view(event.inode_view)
        return view, event.view if view is None or view.replaces is None else view.replaces

    def _inside(self, number: int, view: View | None, inode: int) -> Place:
        """Return where an inode is in the view that a rollback made, or in one nested in it."""
        if view is not None and not self.is_alive((number, inode)):
            # One command numbers its views in a row, the outermost first.
            for other in range(number + 1, number + 1 + NESTED_VIEWS_MAX):
                record = self._machine.view(other)
                if record is not None and record.created != view.created:
                    break
                if record is not None and self.is_alive((other, inode)):
                    return other, inode
                if other >= self._machine.counters.next_view:
                    break
        return number, inode

    def _levels(self, place: Place) -> Iterator[Place]:
        """Yield an inode, and the directories that hold the views above it."""
        for _ in range(DEPTH_MAX):
            yield place
            record = self._machine.view(place[0]) if place[0] else None
            if record is None or record.holder is None:
                return
            place = record.holder[:2]

    def _line(self, view: int) -> tuple[set[int], int]:
        """Return a view with those whose places it took by rollbacks, as far as they are known.

        And the version since which all are; 0: all of them.
        """
        found, todo, since = {view}, [view], 0
        while todo:
            number = todo.pop()
            record = self._machine.view(number)
            if record is None:
                continue
            since = max(since, self._began(number, record))
            lost = record.replaces is not None and self._machine.view(record.replaces) is None
            if lost or len(found) >= VIEWS_EXAMINED_MAX:
                since = max(since, record.created)
            if len(found) >= VIEWS_EXAMINED_MAX:
                break
            for before in (record.replaces, record.identity[0]):
                if before is not None and before not in found:
                    found.add(before)
                    todo.append(before)
        return found, since

    def _began(self, number: int, record: View) -> int:
        """Return the version of the rollback that made a view with one above it; 0: none did.

        Nothing says what such a nested view took the place of.
        """
        if record.identity[0] != number:
            return 0
        created = record.created
        while record.holder is not None and record.holder[0]:
            number = record.holder[0]
            above = self._machine.view(number)
            if above is None:
                return created  # both ended, and nothing says any more what made them
            if above.created != created:
                return 0
            if above.identity[0] != number:
                return created
            record = above
        return 0

    def is_alive(self, place: Place) -> bool:
        """Whether a name leads to the inode."""
        self.looks += 1
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
