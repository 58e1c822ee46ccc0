"""All that the model remembers, and what must exist in the object store because of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nokv.types.commands import InitVolume
from nokv.types.reads import Event
from nokv.types.trash import TRASH_KEEP_NS_DEFAULT
from nokv.types.values import ROOT_INODE, ROOT_VIEW
from nokv_model.body import Content, ObjectName, objects_of
from nokv_model.locks import Tables, copy_of
from nokv_model.sessions import Session
from nokv_model.tree import Forest, Inode, Key

Pin = tuple[int, int, int]
"""(view, version, pin id)."""

BodyKey = tuple[int, int]
"""(view, body id): a clone's bodies keep their ids, and go on by themselves."""


@dataclass(frozen=True)
class Shown:
    """What a body showed from a version on; an empty content also stands for its end."""

    version: int
    cluster_ns: int
    content: Content


@dataclass(frozen=True)
class View:
    """A branch of the namespace. What it shows lies in the forest, and so does its holder."""

    number: int
    root: int
    created: int
    created_wall_ns: int
    identity: Key
    """What a rollback must have in common with a snapshot; inherited from what it replaces."""
    replaces: int = -1
    origins: tuple[tuple[int, int], ...] = ()
    """Every (view, version) that it was copied from, directly or through others."""
    dead: int = 0
    """Version at which it was removed; 0 while it lives."""


@dataclass(frozen=True)
class Snapshot:
    """A directory as it was, with every view that was grafted below it."""

    number: int
    name: str
    path: bytes
    root: Key
    """The directory."""
    identity: Key
    version: int
    created_wall_ns: int
    until_cluster_ns: int
    """0: held."""
    automatic: bool
    shown: Forest
    """Copies of the whole views."""
    maker: int
    """uid."""

    def over(self, cluster_ns: int) -> bool:
        """Say whether its lease has ended."""
        return 0 < self.until_cluster_ns <= cluster_ns


@dataclass(frozen=True)
class Discarded:
    """An entry of a trash; what it shows lies in the forest."""

    path: bytes
    """Where it was."""
    directory: Key
    name: bytes
    uid: int
    """Who put it there."""
    wall_ns: int
    cluster_ns: int


@dataclass
class State:
    """What a failed command goes back to."""

    forest: Forest = field(default_factory=Forest)
    views: dict[int, View] = field(default_factory=dict)
    """Every view there ever was."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    """By name; those whose lease is over too, until they are expired."""
    next_inode: int = ROOT_INODE + 1
    next_body: int = 1
    next_session: int = 1
    next_view: int = ROOT_VIEW + 1
    sessions: dict[int, Session] = field(default_factory=dict)
    pins: dict[Pin, tuple[int, Forest]] = field(default_factory=dict)
    """Pin -> (its session, a copy of the view as it was)."""
    bodies: dict[BodyKey, list[Shown]] = field(default_factory=dict)
    """Body -> everything it ever showed."""
    objects: dict[ObjectName, tuple[int, bytes]] = field(default_factory=dict)
    """Object -> (its length, its sums), of everything ever published."""
    volume: InitVolume | None = None
    events: list[tuple[int, tuple[Event, ...]]] = field(default_factory=list)
    """(key, events) of each entry that made some."""
    first_event: int = 0
    loosened: set[int] = field(default_factory=set)
    """Files that lost a name with a detached tree: the reaper counts it down when it comes by."""

    linked: set[int] = field(default_factory=set)
    """Files that had several names at some time."""

    locks: Tables = field(default_factory=dict)

    trash: dict[tuple[int, int], Discarded] = field(default_factory=dict)
    """(view, id) -> an entry of the view's trash."""
    keep_ns: int = TRASH_KEEP_NS_DEFAULT
    """For how long."""

    def copy(self) -> State:
        """Return an independent copy; pins, snapshots and past contents never change: shared."""
        return replace(
            self,
            forest=self.forest.copy(),
            views=dict(self.views),
            snapshots=dict(self.snapshots),
            sessions={number: session.copy() for number, session in self.sessions.items()},
            pins=dict(self.pins),
            bodies={body: list(shown) for body, shown in self.bodies.items()},
            objects=dict(self.objects),
            events=list(self.events),
            loosened=set(self.loosened),
            linked=set(self.linked),
            locks=copy_of(self.locks),
            trash=dict(self.trash),
        )

    # ------------------------------------------------------------------ views

    def root_of(self, view: int) -> Key:
        """Return the key of a view's root."""
        return view, self.views[view].root

    def identity(self, directory: Inode) -> Key:
        """Return what a rollback of the directory must have in common with a snapshot of it."""
        if directory.key == self.root_of(directory.view):
            return self.views[directory.view].identity
        return directory.key

    def live_views(self) -> list[View]:
        """Return the views that live, by their numbers."""
        return [view for view in self.views.values() if not view.dead]

    def snapshot(self, name: str, cluster_ns: int) -> Snapshot | None:
        """Return a snapshot that a command or a read may use; None if there is none any more."""
        found = self.snapshots.get(name)
        return None if found is None or found.over(cluster_ns) else found

    def renewed(self, snapshot: Snapshot, until_cluster_ns: int) -> Snapshot:
        """Give a snapshot another lease; return it."""
        renewed = replace(snapshot, until_cluster_ns=until_cluster_ns)
        self.snapshots[snapshot.name] = renewed
        return renewed

    def copies(self, cluster_ns: int) -> Iterator[tuple[int, Forest]]:
        """Yield (version, copies of views) of everything that can be read at a version."""
        for (_, version, _), (_, forest) in self.pins.items():
            yield version, forest
        for snapshot in self.snapshots.values():
            if not snapshot.over(cluster_ns):
                yield snapshot.version, snapshot.shown

    def forest_at(self, version: int, cluster_ns: int) -> Forest:
        """Return all views that are pinned at a version, as they were."""
        merged = Forest(pinned=frozenset())
        for at, forest in self.copies(cluster_ns):
            if at == version:
                assert merged.pinned is not None
                assert forest.pinned is not None
                merged = Forest(
                    {**merged.inodes, **forest.inodes},
                    {**merged.staged, **forest.staged},
                    merged.pinned | forest.pinned,
                )
        return merged

    # ------------------------------------------------------------------ bodies and objects

    def show(self, body: BodyKey, version: int, cluster_ns: int, content: Content) -> None:
        """Record that a body shows `content` from `version` on."""
        if body[1]:
            self.bodies.setdefault(body, []).append(Shown(version, cluster_ns, content))

    def content_at(self, body: BodyKey, version: int) -> Content:
        """Return what a body showed at a version; before its view was made, what it began with."""
        every = self.bodies.get(body, [])
        shown = [one.content for one in every if one.version <= version]
        return shown[-1] if shown else every[0].content if every else ()

    def named_objects(self, cluster_ns: int) -> set[ObjectName]:
        """Return the objects that must exist: live, staged, pinned or leased bytes lie in them."""
        named: set[ObjectName] = set()
        for forest in [self.forest, *(kept for _, kept in self.copies(cluster_ns))]:
            for inode in forest.inodes.values():
                named |= objects_of(inode.content)
        return named | self.leased_objects()

    def leased_objects(self) -> set[ObjectName]:
        """Return the objects that leases name."""
        named: set[ObjectName] = set()
        for session in self.sessions.values():
            for lease in session.leases:
                named |= objects_of(self.content_at((lease.view, lease.body), lease.version))
        return named

    def droppable(self, cluster_ns: int, grace_ns: int) -> set[ObjectName]:
        """Return the objects that a collector may delete: every hold [born, c) of them is safe.

        A hold is safe when no pin and no lease lies in it, every floor is at or above c, and the
        grace has passed since c. The holds of an object are those of all views that showed it.
        """
        floors = [session.floor for session in self.sessions.values() if not session.died]
        return {
            name
            for name, (death, death_ns) in self.last_shown().items()
            if all(floor >= death for floor in floors) and death_ns + grace_ns <= cluster_ns
        } - self.named_objects(cluster_ns)

    def last_shown(self) -> dict[ObjectName, tuple[int, int]]:
        """Return object -> (version, cluster_ns) from which on no present body shows it.

        What is still shown somewhere may be among them: `named_objects` knows.
        """
        ended: dict[ObjectName, tuple[int, int]] = {}
        for history in self.bodies.values():
            before: set[ObjectName] = set()
            for shown in history:
                now = objects_of(shown.content)
                for name in before - now:
                    ended[name] = max(ended.get(name, (0, 0)), (shown.version, shown.cluster_ns))
                before = now
        return ended
