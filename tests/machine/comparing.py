"""Comparisons of everything that the model and the state machine show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.machine.replay import check_replay

from nokv.errors import NokvError
from nokv.state import invariants, keys
from nokv.state.families import Family
from nokv.state.records import is_whiteout
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.copies import GetQuota
from nokv.types.trash import EmptyTrash, ListTrash
from nokv.types.values import ROOT_VIEW, At, Caller
from nokv.types.views import ExpireSnapshots, ListSnapshots, ListViews, SnapshotDelete
from nokv_model.tree import NOBODY, ROOT, Forest, Inode, Key

if TYPE_CHECKING:
    from tests.machine.world import World

MANY = 1_000
CALLER = Caller()


def compare(world: World) -> None:
    """Compare everything that both show, at present and at everything that is pinned."""
    invariants.check(world.kv)
    state = world.model.state
    _compare_forest(world, state.forest, ROOT, r.PRESENT)
    for view in state.live_views():
        _compare_handles(world, state.forest, view.number, r.PRESENT)
    seen: set[tuple[int, int]] = set()
    for version, kept in state.copies(world.cluster_ns):
        forest = state.forest_at(version, world.cluster_ns)
        for number in sorted(kept.pinned or ()):
            if (number, version) not in seen:
                seen.add((number, version))
                _compare_forest(world, forest, state.root_of(number), version, inside=True)
                _compare_handles(world, forest, number, version)
    for snapshot in state.snapshots.values():
        if not snapshot.over(world.cluster_ns):
            forest = state.forest_at(snapshot.version, world.cluster_ns)
            _compare_forest(world, forest, snapshot.root, snapshot.version)
    for request in (
        r.StatFs(),
        r.ReadEvents(state.first_event, MANY),
        r.ListSessions(0, MANY),
        ListSnapshots("", MANY),
        ListViews(0, MANY),
        ListTrash(0, 0, MANY),
    ):
        world.read(CALLER, request)
    for inode in state.forest.inodes.values():
        if inode.is_directory and not state.forest.owner_session(inode):
            world.read(CALLER, GetQuota(At(*inode.key)))
    compare_objects(world)
    check_replay(world.model, _all_events(world))


def _all_events(world: World) -> list[r.Event]:
    events: list[r.Event] = []
    cursor = world.model.state.first_event
    while True:
        page = world.ask(r.ReadEvents(cursor, MANY))
        events += page.events
        if not page.more:
            return events
        cursor = page.cursor


def _compare_forest(
    world: World, forest: Forest, start: Key, version: int, *, inside: bool = False
) -> None:
    """Compare all below a directory by path; with `inside` nothing that lies in another view."""
    pending: list[tuple[Key, tuple[bytes, ...]]] = [(start, ())]
    while pending:
        key, path = pending.pop()
        inode, at = forest.inodes[key], At(*start, path, follow=False)
        _compare_xattrs(world, at, inode, version)
        if not inode.is_directory:
            _compare_file(world, at, inode, version)
            continue
        entered = all(below[0] in (forest.pinned or {below[0]}) for below in inode.entries.values())
        world.read(CALLER, r.ReadDir(at, b"", MANY, plus=entered, at_version=version))
        pending += [
            (below, (*path, name))
            for name, below in inode.entries.items()
            if not inside or below[0] == key[0]
        ]


def _compare_handles(world: World, forest: Forest, view: int, version: int) -> None:
    """Compare by handle, which is refused below DEPTH_MAX directories."""
    for key, inode in forest.inodes.items():
        if key[0] == view and forest.owner_session(inode) in {0, NOBODY}:
            world.read(CALLER, r.GetAttr(At(*key), version))


def _compare_file(world: World, at: At, inode: Inode, version: int) -> None:
    parent = world.ask(r.GetAttr(at, version)).attr.parent
    unreaped = inode.number in world.model.state.loosened and (version or not world.settled)
    named_by = {directory for (_, directory), _ in inode.names}
    assert unreaped or parent in named_by, f"{parent} names no {at}"
    if inode.is_symlink:
        world.read(CALLER, r.ReadLink(at, version))
    elif inode.is_regular:
        world.read(CALLER, r.BodyMap(at, 0, inode.size, version))


def _compare_xattrs(world: World, at: At, inode: Inode, version: int) -> None:
    world.read(CALLER, r.ListXattr(at, version))
    for name in inode.xattrs:
        world.read(CALLER, r.GetXattr(at, name, version))


def compare_objects(world: World) -> None:
    """Compare the objects that must exist with those that records name, and that are left."""
    must = world.model.state.named_objects(world.cluster_ns)
    named = world.stored_objects()
    assert must <= named, f"objects that no record names: {must - named}"
    assert not must & world.deleted, f"objects deleted too early: {must & world.deleted}"


# ---------------------------------------------------------------- settled


def compare_quiet(world: World) -> None:
    """Compare link counts, and the rows of the live tree with what it shows."""
    state = world.model.state
    for key, inode in state.forest.inodes.items():
        if inode.number in state.loosened and not state.forest.owner_session(inode):
            _compare_link_count(world, key, len(inode.names))
    inodes = _own_rows(world, Family.INODE)
    want = {key for key in state.forest.inodes if key[0] == ROOT_VIEW}
    got = {key for key in inodes if key[0] == ROOT_VIEW}
    assert got == want, f"inodes {got ^ want}"
    live = {view.number for view in state.live_views()}
    beyond = {key for key in inodes if key[0] in live} - set(state.forest.inodes)
    assert not beyond, f"inodes that are not shown: {beyond}"
    named = {name for key in want for name in state.forest.inodes[key].names}
    named |= {name for view in live - {ROOT_VIEW} for name in _root(world, view).names}
    in_live_tree = {name for name in named if name[0][0] == ROOT_VIEW}
    got_names = {
        (keys.U64X2.unpack(key[:16]), key[16:])
        for key, value in world.rows(Family.DENTRY)
        if not is_whiteout(value) and keys.U64X2.unpack(key[:16])[0] == ROOT_VIEW
    }
    assert got_names == in_live_tree, f"names {got_names ^ in_live_tree}"
    kept = {
        (int.from_bytes(key[:8], "big"), int.from_bytes(key[9:], "big"))
        for key, _ in world.rows(Family.SESSION)
        if key[8:9] == keys.RESULT and int.from_bytes(key[:8], "big")
    }
    results = set(world.model.results.kept)
    assert kept == results, f"result rows {sorted(kept ^ results)}"


def _root(world: World, view: int) -> Inode:
    return world.model.state.forest.inodes[world.model.state.root_of(view)]


def _own_rows(world: World, family: Family) -> set[Key]:
    """Keys (view, inode) of the records that views have of their own, whiteouts apart."""
    return {
        keys.U64X2.unpack(key[:16]) for key, value in world.rows(family) if not is_whiteout(value)
    }


def _compare_link_count(world: World, key: Key, want: int) -> None:
    try:
        attr = world.ask(r.GetAttr(At(*key))).attr
    except NokvError:
        return  # too deep for a handle
    assert attr.nlink == want, f"link count {attr.nlink} of {key}, not {want}"


def compare_stored(world: World) -> None:
    """Compare the bucket with the records of a quiet state.

    Where there is neither a pin nor another view, the records name exactly what is shown. A pin
    keeps a replaced body whole, also the objects that came into it after the pin.
    """
    compare(world)
    compare_quiet(world)
    stored, state = world.stored_objects(), world.model.state
    bucket = set(state.objects) - world.deleted
    assert bucket == stored, f"objects in the bucket that no record names: {bucket - stored}"
    views = {int.from_bytes(key[:8], "big") for key, _ in world.rows(Family.VIEW)}
    if views == {ROOT_VIEW} and not list(world.rows(Family.PIN)):
        named = state.named_objects(world.cluster_ns)
        assert stored == named, f"records name what nothing shows: {stored - named}"


def remove_views(world: World) -> bool:
    """Remove all trash, snapshots and views; say whether all could be reached."""
    state = world.model.state
    opened = world.internal(c.OpenSession(b"remove all views", 10**9))
    session = opened.value.session  # type: ignore[union-attr]
    ops: list[c.Op] = [EmptyTrash((entry,)) for entry in state.trash]
    ops += [SnapshotDelete(name) for name in state.snapshots]
    for view in state.live_views():
        for directory, name in _root(world, view.number).names:
            if directory[0] == ROOT_VIEW and not state.forest.staged.get(directory):
                ops.append(c.SetAttr(At(*directory), flags=0))
                ops.append(c.SetAttr(At(view.number, view.root), flags=0))
                ops.append(c.RemoveTree(At(*directory), name))
    for seq, op in enumerate(ops, 1):
        world.apply([c.Command(c.COMMAND_FORMAT, session, seq, seq - 1, CALLER, op)])
    world.internal(ExpireSnapshots(MANY))
    world.internal(c.ExpireSession(session))
    return len(world.model.state.live_views()) == 1 and not world.model.state.trash


def compare_bare(world: World) -> None:
    """Compare what is left where there is neither a pin nor a view but the live tree."""
    compare_stored(world)
    for family in (Family.HISTORY, Family.RECLAIM, Family.DROP, Family.TOUCHED, Family.PIN):
        left = list(world.rows(family))
        assert not left, f"rows left in {family.name}: {left[:3]}"
    views = [key for key, _ in world.rows(Family.VIEW)]
    assert len(views) == 1, f"views left: {views}"
