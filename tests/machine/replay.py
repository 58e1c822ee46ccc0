"""Events from a cursor, and a listing where one says so, rebuild the namespace."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from nokv.types import commands as c
from nokv.types.events import EventKind, places
from nokv.types.reads import Event
from nokv.types.results import Result
from nokv_model.model import Model
from nokv_model.tree import ROOT, Forest, Key

LISTED = frozenset({EventKind.MOVE_IN, EventKind.CLONE, EventKind.ROLLBACK})
"""Kinds that tell of a whole tree at once: the consumer lists it."""

NAMED = frozenset({EventKind.CREATE, EventKind.LINK, EventKind.PUBLISH, *LISTED})
"""Kinds after which a name shows the event's inode."""

Body = tuple[int, int]
"""(size, generation)."""


@dataclass
class Seen:
    """What a consumer of events knows: names of directories, and bodies of files."""

    names: defaultdict[Key, dict[bytes, Key]] = field(default_factory=lambda: defaultdict(dict))
    bodies: dict[Key, Body] = field(default_factory=dict)
    listed: dict[Key, int] = field(default_factory=dict)
    """Directory or file -> the version of its listing: its older events say nothing new."""

    def reachable(self) -> tuple[dict[Key, dict[bytes, Key]], dict[Key, Body]]:
        """Return what is left of it below the root: the order of events took the rest away."""
        names: dict[Key, dict[bytes, Key]] = {}
        bodies: dict[Key, Body] = {}
        pending = [ROOT]
        while pending:
            key = pending.pop()
            if key in self.bodies:
                bodies[key] = self.bodies[key]
            if key not in names and self.names.get(key):
                names[key] = self.names[key]
                pending += self.names[key].values()
        return names, bodies

    def add(self, other: Seen, version: int) -> None:
        """Take a listing over that was made after the command of `version`."""
        for key, names in other.names.items():
            self.names[key], self.listed[key] = dict(names), version
        for key, body in other.bodies.items():
            self.bodies[key], self.listed[key] = body, version

    def tell(self, event: Event) -> None:
        """Apply one event."""
        parent = next(places(event.view, event.chain))
        inode = (event.inode_view, event.inode)
        if event.kind in {EventKind.RENAME, EventKind.EXCHANGE}:
            target = next(places(event.view, event.to_chain))
            other = self.names[target].get(event.to_name)
            self._set(
                event, parent, event.name, other if event.kind == EventKind.EXCHANGE else None
            )
            self._set(event, target, event.to_name, inode)
            return
        for number, name in enumerate(event.names or (event.name,)):
            if event.kind == EventKind.REMOVE:
                self._set(event, parent, name, None)
            elif event.kind in NAMED and name:
                self._set(event, parent, name, (inode[0], inode[1] + number))
        if event.kind in {EventKind.CREATE, EventKind.PUBLISH, EventKind.SETATTR}:
            for number in range(len(event.names) or 1):
                if event.version > self.listed.get(inode, 0):
                    self.bodies[inode[0], inode[1] + number] = event.size, event.generation

    def _set(self, event: Event, directory: Key, name: bytes, inode: Key | None) -> None:
        if event.version <= self.listed.get(directory, 0):
            return
        if inode is None:
            self.names[directory].pop(name, None)
        else:
            self.names[directory][name] = inode


def seen(forest: Forest, start: Key) -> Seen:
    """List all below a directory, through grafts."""
    found = Seen()
    for inode in forest.walk(forest.inodes[start]):
        if inode.is_directory:
            found.names[inode.key] = dict(inode.entries)
        else:
            found.bodies[inode.key] = inode.size, inode.generation
    return found


class ObservedModel(Model):
    """The model, with the listings that a consumer makes, and cursors to begin at."""

    def __init__(self) -> None:
        super().__init__()
        self.listings: dict[int, tuple[int, Seen]] = {}
        """Version of an event -> (version of the listing, what it showed)."""
        self.cursors: dict[int, Seen] = {}
        """Version between two entries -> the whole namespace."""

    def apply(self, wall_ns: int, cluster_ns: int, commands: list[c.Command]) -> list[Result]:
        results = super().apply(wall_ns, cluster_ns, commands)
        if len(self.state.events) % CURSORS_EVERY == 0 and ROOT in self.state.forest.inodes:
            self.cursors.setdefault(self.version, seen(self.state.forest, ROOT))
        return results

    def _command(self, command: c.Command, events: list[Event]) -> Result:
        told = len(events)
        result = super()._command(command, events)
        for event in events[told:]:
            if event.kind in LISTED:
                self._list(event)
        return result

    def _list(self, event: Event) -> None:
        start = (event.inode_view, event.inode)
        if start in self.state.forest.inodes:
            self.listings[event.version] = self.version, seen(self.state.forest, start)


CURSORS_EVERY = 6


def check_replay(model: ObservedModel, events: list[Event]) -> None:
    """Replay from every cursor that still has all its events."""
    want = seen(model.state.forest, ROOT).reachable()
    for cursor, start in model.cursors.items():
        if cursor < model.state.first_event:
            continue
        replayed = Seen()
        replayed.add(start, 0)
        for event in events:
            if event.version > cursor:
                replayed.tell(event)
                if event.version in model.listings:
                    version, listing = model.listings[event.version]
                    replayed.add(listing, version)
        got = replayed.reachable()
        assert got[0] == want[0], f"replay from {cursor}: names {got[0]}, not {want[0]}"
        bodies = {key: got[1].get(key) for key in want[1]}  # no event tells what a directory is
        assert bodies == want[1], f"replay from {cursor}: bodies {bodies}, not {want[1]}"
