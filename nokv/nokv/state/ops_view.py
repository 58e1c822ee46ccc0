"""Snapshots, clones, workspaces and rollback (docs/namespace.md: views).

Each of them costs what the views below the directory cost, whatever else lies there: a snapshot is
a pin of them, a copy a view over each of them, and what a rollback replaces ends in the background.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from nokv.errors import CrossesView, InvalidArgument, NotADirectory, NotFound
from nokv.state import snapshots
from nokv.state.access import PERMISSIONS, R, X, inherit, may_create, may_delete, need, need_owner
from nokv.state.acl import inherited
from nokv.state.arguments import check_at, check_name
from nokv.state.context import (
    DIRECTORY,
    Context,
    chain,
    enter,
    is_directory,
    load_dentry,
    need_inode,
    root_of,
    view_of,
)
from nokv.state.detach import detach
from nokv.state.naming import told_at
from nokv.state.ops_create import place
from nokv.state.ops_quota import set_limits
from nokv.state.pinned import PinnedSource
from nokv.state.records import Inode, Snapshot, View
from nokv.state.resolve import Found, resolve, resolve_parent
from nokv.state.snapshots import Subject, need_snapshot
from nokv.state.tree import touch_directory
from nokv.state.views import (
    Shown,
    identity_of,
    make_copy,
    need_room,
    need_room_in_itself,
    nested_below,
    plan_copy,
    put_graft,
)
from nokv.types.events import EventKind
from nokv.types.results import Done, Reaped
from nokv.types.values import At
from nokv.types.views import (
    Clone,
    ExpireSnapshots,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotRenew,
    ViewMade,
    WorkspaceCreate,
)

STEP_MAX = 65_536
"""Snapshots that one `ExpireSnapshots` may be asked to delete."""

PINS_A_STEP = 4096
"""It stops after the snapshot with which it has taken so many pins off."""


# ---------------------------------------------------------------- snapshots


def check_snapshot_create(op: SnapshotCreate) -> None:
    """Raise for an address, a name, a path or a lease that can't be one."""
    check_at(op.at)
    snapshots.check_name(op.name)
    snapshots.check_path(op.path)
    snapshots.check_lease(op.ttl_ns, may_hold=True)


def check_snapshot_renew(op: SnapshotRenew) -> None:
    """Raise InvalidArgument for a lease that can't be one."""
    snapshots.check_lease(op.ttl_ns, may_hold=True)


def snapshot_create(ctx: Context, op: SnapshotCreate) -> SnapshotMade:
    """Hold a directory, with every view nested below it, as it was before this command."""
    found = _readable(ctx, op.at, session=0)
    snapshots.need_may_hold(found.inode.uid, ctx.caller, op.ttl_ns)
    made = snapshots.hold(ctx, op.name, op.path, _subject(ctx, found), op.ttl_ns)
    _announce_snapshot(ctx, found, op.name)
    return snapshots.made(made)


def snapshot_renew(ctx: Context, op: SnapshotRenew) -> SnapshotMade:
    """Let the lease of a snapshot begin anew."""
    snapshot = need_snapshot(ctx.txn, op.name, ctx.cluster_ns)
    snapshots.need_say(snapshot, ctx.caller)
    snapshots.need_may_hold(snapshot.owner, ctx.caller, op.ttl_ns)
    return snapshots.made(snapshots.renew(ctx, op.name, snapshot, op.ttl_ns))


def snapshot_delete(ctx: Context, op: SnapshotDelete) -> Done:
    """Let a snapshot go."""
    snapshot = need_snapshot(ctx.txn, op.name, ctx.cluster_ns)
    snapshots.need_say(snapshot, ctx.caller)
    snapshots.let_go(ctx, op.name, snapshot)
    return Done()


def check_expire(op: ExpireSnapshots) -> None:
    """Raise InvalidArgument for an unbounded step."""
    if not 1 <= op.limit <= STEP_MAX:
        message = f"a step of {op.limit} snapshots; 1 to {STEP_MAX}"
        raise InvalidArgument(message)


def expire_snapshots(ctx: Context, op: ExpireSnapshots) -> Reaped:
    """Delete snapshots whose lease is over, at most `limit` and about PINS_A_STEP pins of them."""
    found = list(islice(snapshots.over(ctx.txn, ctx.cluster_ns), op.limit + 1))
    removed = pins = 0
    for name in found[: op.limit]:
        one = snapshots.stored(ctx.txn, name)
        assert one is not None, f"the lease of snapshot {name}, which does not exist"
        assert snapshots.is_over(one, ctx.cluster_ns), f"snapshot {name} is not over"
        pins += snapshots.let_go(ctx, name, one)
        removed += 1
        if pins >= PINS_A_STEP:
            break
    return Reaped(removed, more=removed < len(found))


def _readable(ctx: Context, at: At, *, session: int) -> Found:
    """Return a directory that the caller may list and search."""
    found = resolve(ctx.txn, ctx.caller, session, at)
    if not is_directory(found.inode):
        message = "not a directory"
        raise NotADirectory(message)
    need(found.inode, ctx.caller, R | X)
    return found


def _subject(ctx: Context, found: Found) -> Subject:
    view, ino = found.view, found.ino
    nested = nested_below(ctx, view, ino)
    return Subject(view, ino, found.inode.uid, identity_of(ctx.txn, view, ino), nested)


def _announce_snapshot(ctx: Context, found: Found, name: str) -> None:
    """Record the event at the entry that shows the directory; that of `/` at itself."""
    view, directory, entry = found.view, found.inode.parent, found.inode.name
    if found.ino == root_of(ctx.txn, view):
        view, directory, entry = view_of(ctx.txn, view).holder or (view, found.ino, b"")
    ctx.emit(
        EventKind.SNAPSHOT,
        view,
        directory,
        entry,
        found.ino,
        to_name=name.encode(),
        inode_view=found.view,
    )


# ---------------------------------------------------------------- clones and workspaces


def check_clone(op: Clone) -> None:
    """Raise for an address or a name that can't be one."""
    check_at(op.source)
    check_at(op.parent)
    check_name(op.name)


def clone(ctx: Context, op: Clone) -> ViewMade:
    """Make a writable copy of a directory, as it is or as a snapshot shows it."""
    parent = place(ctx, op.parent, op.name)
    if op.snapshot:
        shown = _shown(_snapshot_of(ctx, op))
        then = PinnedSource(ctx.txn, shown.version)
        need(need_inode(then, shown.view, shown.ino), ctx.caller, R | X)
        _need_reachable(ctx, parent)
    else:
        source = _readable(ctx, op.source, session=ctx.session_id)
        _need_reachable(ctx, source)
        _need_reachable(ctx, parent)
        nested = nested_below(ctx, source.view, source.ino)
        shown = Shown(source.view, source.ino, ctx.version - 1, nested)
    more = 1 + len(shown.nested)
    need_room(ctx, parent.view, parent.ino, more)
    need_room_in_itself(ctx, (shown.view, shown.ino), parent.view, parent.ino, more)
    copy = plan_copy(ctx, shown, (parent.view, parent.ino, op.name))
    make_copy(ctx, copy)
    touch_directory(ctx, parent.view, parent.ino, parent.inode, children=1, nlink=1)
    inside = ctx.usage(copy.number, shown.ino)
    entries, grafts = inside.entries + 1, inside.grafts + 1
    ctx.add_usage(parent.view, parent.ino, entries, inside.size_bytes, grafts)
    place_of = (parent.view, parent.ino, op.name)
    ctx.emit(EventKind.CLONE, *place_of, shown.ino, inode_view=copy.number)
    return ViewMade(copy.number, shown.ino, ctx.version)


def _snapshot_of(ctx: Context, op: Clone) -> Snapshot:
    """Return the snapshot that a clone is made of. Raises NotFound."""
    snapshot = need_snapshot(ctx.txn, op.snapshot, ctx.cluster_ns)
    if op.snapshot_id not in (0, snapshot.snapshot):
        message = f"snapshot {op.snapshot!r} is another one than was looked up: it was made since"
        raise NotFound(message, hint="look at it, and try again")
    return snapshot


def check_workspace(op: WorkspaceCreate) -> None:
    """Raise for an address, a name or permission bits that can't be one."""
    check_at(op.parent)
    check_name(op.name)
    if not 0 <= op.mode <= PERMISSIONS:
        message = f"mode {op.mode:o}"
        raise InvalidArgument(message)


def workspace_create(ctx: Context, op: WorkspaceCreate) -> ViewMade:
    """Make an empty directory that is a view of its own."""
    parent = place(ctx, op.parent, op.name)
    _need_reachable(ctx, parent)
    need_room(ctx, parent.view, parent.ino, 1)
    mode, gid = inherit(parent.inode, ctx.caller, DIRECTORY | op.mode)
    mode, acls = inherited(parent.inode, mode, 0)
    now, number, ino = ctx.wall_ns, ctx.new_view(), ctx.new_inode()
    record = View(
        ino,
        ctx.version,
        holder=(parent.view, parent.ino, op.name),
        created_wall_ns=now,
        identity=(number, ino),
    )
    put_graft(ctx, number, record)
    root = Inode(mode, ctx.caller.uid, gid, 2, 0, now, now, now, 0, acls=acls)
    ctx.store_inode(number, ino, root)
    touch_directory(ctx, parent.view, parent.ino, parent.inode, children=1, nlink=1)
    ctx.add_usage(parent.view, parent.ino, 1, 0, 1)
    ctx.counters.files += 1
    ctx.emit(EventKind.CREATE, parent.view, parent.ino, op.name, ino, inode_view=number)
    return ViewMade(number, ino, ctx.version)


def _shown(snapshot: Snapshot) -> Shown:
    return Shown(snapshot.view, snapshot.inode, snapshot.version, snapshot.nested)


def _need_reachable(ctx: Context, found: Found) -> None:
    """Raise CrossesView for a directory in a staged tree."""
    if chain(ctx.txn, found.view, found.ino)[-1] != root_of(ctx.txn, found.view):
        message = "a staged tree has no views, and none is made of it"
        raise CrossesView(message)


# ---------------------------------------------------------------- rollback


def check_rollback(op: Rollback) -> None:
    """Raise for an address, a name, a path or a lease that can't be one."""
    check_at(op.parent)
    check_name(op.name)
    snapshots.check_path(op.path)
    snapshots.check_lease(op.keep_ns, may_hold=False)


def rollback(ctx: Context, op: Rollback) -> RolledBack:
    """Make a directory again what a snapshot of it shows; what it was stays as another snapshot."""
    parent = resolve_parent(ctx.txn, ctx.caller, ctx.session_id, op.parent)
    need(parent.inode, ctx.caller, X)
    before = _entry(ctx, parent, op.parent, op.name)
    may_delete(parent.inode, before.inode, ctx.caller)
    may_create(parent.inode, ctx.caller)
    need_owner(before.inode, ctx.caller)
    snapshot = need_snapshot(ctx.txn, op.snapshot, ctx.cluster_ns)
    identity = identity_of(ctx.txn, before.view, before.ino)
    if snapshot.identity != identity:
        message = f"snapshot {op.snapshot!r} is of another directory"
        raise InvalidArgument(message, hint="clone it, and move the clone to its place")
    name = f"{snapshots.AUTOMATIC}{ctx.version}"
    subject = _subject(ctx, before)
    kept = snapshots.hold(ctx, name, op.path, subject, op.keep_ns, automatic=True)
    replaced = before.view if before.view != parent.view else None
    more = int(replaced is None) + len(snapshot.nested) - len(subject.nested)
    need_room(ctx, parent.view, parent.ino, more)
    holder = (parent.view, parent.ino, op.name)
    copy = plan_copy(ctx, _shown(snapshot), holder, identity=identity, replaces=replaced)
    was = ctx.usage(before.view, before.ino)
    detach(ctx, parent.view, before.view, before.ino, before.inode)
    make_copy(ctx, copy)
    touch_directory(ctx, parent.view, parent.ino, parent.inode)
    now = ctx.usage(copy.number, snapshot.inode)
    limits = was.entries_max, was.size_bytes_max
    if limits != (now.entries_max, now.size_bytes_max):  # who rolls back need not be root
        set_limits(ctx, copy.number, snapshot.inode, *limits)
    ctx.add_usage(
        parent.view,
        parent.ino,
        now.entries - was.entries,
        now.size_bytes - was.size_bytes,
        now.grafts - was.grafts + int(replaced is None),
    )
    ctx.emit(
        EventKind.ROLLBACK,
        *holder,
        snapshot.inode,
        to_name=op.snapshot.encode(),
        inode_view=copy.number,
    )
    return RolledBack(copy.number, snapshot.inode, kept.snapshot, name)


def _entry(ctx: Context, parent: Found, at: At, name: bytes) -> Found:
    """Return the directory that a name shows. Raises NotFound, NotADirectory."""
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, name)
    if dentry is None:
        message = f"{told_at(at, name)}: no such file or directory"
        raise NotFound(message)
    view, ino = enter(parent.view, dentry)
    inode = need_inode(ctx.txn, view, ino)
    if not is_directory(inode):
        message = f"{told_at(at, name)} is not a directory"
        raise NotADirectory(message)
    return Found(view, ino, inode, 0)


CHECKS: dict[type, Callable[[Any], None]] = {
    SnapshotCreate: check_snapshot_create,
    SnapshotRenew: check_snapshot_renew,
    Clone: check_clone,
    WorkspaceCreate: check_workspace,
    Rollback: check_rollback,
    ExpireSnapshots: check_expire,
}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    SnapshotCreate: snapshot_create,
    SnapshotRenew: snapshot_renew,
    SnapshotDelete: snapshot_delete,
    ExpireSnapshots: expire_snapshots,
    Clone: clone,
    WorkspaceCreate: workspace_create,
    Rollback: rollback,
}
