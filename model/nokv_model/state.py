"""All that the model remembers, and what must exist in the object store because of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nokv.types.commands import InitVolume
from nokv.types.reads import Event
from nokv.types.values import ROOT_INODE
from nokv_model.body import Content, ObjectName, objects_of
from nokv_model.sessions import Session
from nokv_model.tree import Tree

Pin = tuple[int, int, int]
"""(view, version, pin id)."""


@dataclass(frozen=True)
class Shown:
    """What a body showed from a version on; an empty content also stands for its end."""

    version: int
    cluster_ns: int
    content: Content


@dataclass
class State:
    """What a failed command goes back to."""

    tree: Tree = field(default_factory=Tree)
    next_inode: int = ROOT_INODE + 1
    next_body: int = 1
    next_session: int = 1
    sessions: dict[int, Session] = field(default_factory=dict)
    pins: dict[Pin, tuple[int, Tree]] = field(default_factory=dict)
    """Pin -> (its session, the tree as it was)."""
    bodies: dict[int, list[Shown]] = field(default_factory=dict)
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

    def copy(self) -> State:
        """Return an independent copy; pins and past contents never change and are shared."""
        return State(
            self.tree.copy(),
            self.next_inode,
            self.next_body,
            self.next_session,
            {number: session.copy() for number, session in self.sessions.items()},
            dict(self.pins),
            {body: list(shown) for body, shown in self.bodies.items()},
            dict(self.objects),
            self.volume,
            list(self.events),
            self.first_event,
            set(self.loosened),
            set(self.linked),
        )

    def show(self, body: int, version: int, cluster_ns: int, content: Content) -> None:
        """Record that a body shows `content` from `version` on."""
        if body:
            self.bodies.setdefault(body, []).append(Shown(version, cluster_ns, content))

    def content_at(self, body: int, version: int) -> Content:
        """Return what a body showed at a version."""
        content: Content = ()
        for shown in self.bodies.get(body, []):
            if shown.version <= version:
                content = shown.content
        return content

    def named_objects(self) -> set[ObjectName]:
        """Return the objects that must exist: live, staged, pinned or leased bytes lie in them."""
        named: set[ObjectName] = set()
        for tree in [self.tree, *(tree for _, tree in self.pins.values())]:
            for inode in tree.inodes.values():
                named |= objects_of(inode.content)
        for session in self.sessions.values():
            for lease in session.leases:
                named |= objects_of(self.content_at(lease.body, lease.version))
        return named

    def droppable(self, cluster_ns: int, grace_ns: int) -> set[ObjectName]:
        """Return the objects that a collector may delete: every hold [born, c) of them is safe.

        A hold is safe when no pin and no lease lies in it, every floor is at or above c, and the
        grace has passed since c.
        """
        floors = [session.floor for session in self.sessions.values() if not session.died]
        return {
            name
            for name, (_, death, death_ns) in self.ended_holds().items()
            if all(floor >= death for floor in floors) and death_ns + grace_ns <= cluster_ns
        } - self.named_objects()

    def ended_holds(self) -> dict[ObjectName, tuple[int, int, int]]:
        """Return object -> (born, death, cluster_ns of the death) of what is no longer shown.

        An object belongs to one body and is published once, so it has one hold.
        """
        ended: dict[ObjectName, tuple[int, int, int]] = {}
        for history in self.bodies.values():
            born: dict[ObjectName, int] = {}
            for shown in history:
                now = objects_of(shown.content)
                for name in list(born):
                    if name not in now:
                        ended[name] = (born.pop(name), shown.version, shown.cluster_ns)
                for name in now:
                    born.setdefault(name, shown.version)
        return ended
