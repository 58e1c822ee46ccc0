"""A state machine whose tests take snapshots and make views."""

from __future__ import annotations

from tests.unit.state.bodies import Files, stored
from tests.unit.state.shard import at

from nokv.types.commands import (
    Op,
)
from nokv.types.reads import (
    AttrReply,
    Event,
    EventsReply,
    GetAttr,
    ReadEvents,
)
from nokv.types.results import Done
from nokv.types.values import At, Attr
from nokv.types.views import (
    Clone,
    ListSnapshots,
    ListViews,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotMade,
    SnapshotReply,
    SnapshotsReply,
    ViewMade,
    ViewReply,
    ViewsReply,
    WorkspaceCreate,
)

SECOND_NS = 1_000_000_000
CENTURY_NS = 100 * 365 * 86_400 * SECOND_NS


class Views(Files):
    """A shard with the commands of views at hand."""

    def snapshot(self, path: str, name: str, ttl_ns: int = 0) -> SnapshotMade:
        made = self.do(SnapshotCreate(at(path), name, b"/" + path.encode(), ttl_ns))
        assert isinstance(made, SnapshotMade)
        return made

    def clone(self, source: str, target: str, snapshot: str = "") -> ViewMade:
        above, _, name = target.rpartition("/")
        made = self.do(Clone(at(source), at(above), name.encode(), snapshot))
        assert isinstance(made, ViewMade)
        return made

    def workspace(self, path: str) -> ViewMade:
        above, _, name = path.rpartition("/")
        made = self.do(WorkspaceCreate(at(above), name.encode(), 0o755))
        assert isinstance(made, ViewMade)
        return made

    def roll_back(self, path: str, snapshot: str, keep_ns: int = CENTURY_NS) -> RolledBack:
        above, _, name = path.rpartition("/")
        done = self.do(Rollback(at(above), name.encode(), snapshot, b"/", keep_ns))
        assert isinstance(done, RolledBack)
        return done

    def views(self) -> dict[int, ViewReply]:
        reply = self.read(ListViews())
        assert isinstance(reply, ViewsReply)
        return {row.view: row for row in reply.rows}

    def attr(self, where: At, version: int = 0) -> Attr:
        reply = self.read(GetAttr(where, version))
        assert isinstance(reply, AttrReply)
        return reply.attr

    def last_event(self) -> Event:
        reply = self.read(ReadEvents(0, 4096))
        assert isinstance(reply, EventsReply)
        return reply.events[-1]

    def settle(self) -> None:
        """Do all background work of the present."""
        for _ in range(6):
            self.reap(2)
            self.wait()
            self.raise_floor()
            self.collect()
            self.check()

    def done(self, op: Op) -> None:
        assert self.do(op) == Done()


def tree() -> Views:
    """Return a shard with /a: /a/x of 10 bytes, /a/d, /a/d/y."""
    shard = Views()
    shard.mkdir("a")
    shard.publish("a/x", stored(10))
    shard.mkdir("a/d")
    shard.create("a/d/y")
    return shard


# ---------------------------------------------------------------- snapshots


def automatic(shard: Views) -> list[SnapshotReply]:
    reply = shard.read(ListSnapshots())
    assert isinstance(reply, SnapshotsReply)
    return [row for row in reply.rows if row.automatic]
