"""Snapshots, clones, workspaces and rollback: copies, and copies under another view's number."""

from __future__ import annotations

from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    NotADirectory,
    NotFound,
    NotPermitted,
    ResultTooLarge,
)
from nokv.types.events import EventKind
from nokv.types.limits import (
    NESTED_VIEWS_MAX,
    PINS_MAX,
    SNAPSHOT_FOREIGN_TTL_NS_MAX,
    SNAPSHOTS_MAX,
    SNAPSHOTS_PER_MAKER_MAX,
)
from nokv.types.results import Done, Reaped
from nokv.types.values import FileType
from nokv.types.views import (
    HELD,
    Clone,
    ExpireSnapshots,
    Flatten,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotRenew,
    ViewMade,
    WorkspaceCreate,
)
from nokv_model import access
from nokv_model.access import R, Resolver, X
from nokv_model.state import Snapshot, State, View
from nokv_model.step import Step
from nokv_model.tree import ROOT, Forest, Inode, Key

# ---------------------------------------------------------------- snapshots


def snapshot_create(step: Step, op: SnapshotCreate) -> SnapshotMade:
    """Keep a directory, and every view nested below it, as they were before this command."""
    directory = Resolver(step.forest, step.caller).parent(op.at)
    access.require(step.caller, directory, R | X)
    _require_may_hold(step, directory, op.ttl_ns)
    if op.name in step.state.snapshots:
        message = "a snapshot of that name"
        raise AlreadyExists(message)
    until = step.cluster_ns + op.ttl_ns if op.ttl_ns != HELD else 0
    snapshot = _taken(step, directory, op.name, op.path, until, automatic=False)
    [(parent, name)] = directory.names or {(directory.key, b"")}
    place = (step.forest.inodes[parent], name)
    step.event(EventKind.SNAPSHOT, directory, place, to_name=op.name.encode())
    return _made(snapshot)


def snapshot_renew(step: Step, op: SnapshotRenew) -> SnapshotMade:
    """Set a snapshot's lease anew."""
    snapshot = _own(step, op.name)
    _require_may_hold(step, snapshot.shown.inodes[snapshot.root], op.ttl_ns)
    until = step.cluster_ns + op.ttl_ns if op.ttl_ns != HELD else 0
    return _made(step.state.renewed(snapshot, until))


def snapshot_delete(step: Step, op: SnapshotDelete) -> Done:
    """Let a snapshot go."""
    del step.state.snapshots[_own(step, op.name).name]
    return Done()


def expire_snapshots(step: Step, op: ExpireSnapshots) -> Reaped:
    """Let snapshots go whose lease is over, in the order of their ends and names."""
    over = [one for one in step.state.snapshots.values() if one.over(step.cluster_ns)]
    over.sort(key=lambda one: (one.until_cluster_ns, one.name))
    for snapshot in over[: op.limit]:
        del step.state.snapshots[snapshot.name]
    return Reaped(min(op.limit, len(over)), more=len(over) > op.limit)


def _taken(
    step: Step, directory: Inode, name: str, path: bytes, until: int, *, automatic: bool
) -> Snapshot:
    """Keep a directory; raise ResultTooLarge over a limit."""
    views = step.forest.views_below(directory)
    if len(step.state.snapshots) >= SNAPSHOTS_MAX:
        message = "the volume has too many snapshots"
        raise ResultTooLarge(message)
    maker = step.caller.uid
    made = sum(one.maker == maker for one in step.state.snapshots.values())
    if maker and made >= SNAPSHOTS_PER_MAKER_MAX:
        message = "the caller has too many snapshots"
        raise ResultTooLarge(message)
    _require_few(views)
    require_pinnable(step.state, views)
    shown = Forest(pinned=frozenset(views))
    for view in views:
        copy = step.forest.of_view(view)
        shown.inodes.update(copy.inodes)
        shown.staged.update(copy.staged)
    snapshot = Snapshot(
        number=step.version,
        name=name,
        path=path,
        root=directory.key,
        identity=step.state.identity(directory),
        version=step.version - 1,
        created_wall_ns=step.wall_ns,
        until_cluster_ns=until,
        automatic=automatic,
        shown=shown,
        maker=maker,
    )
    step.state.snapshots[name] = snapshot
    return snapshot


def _made(snapshot: Snapshot) -> SnapshotMade:
    return SnapshotMade(
        snapshot.number, *snapshot.root, snapshot.version, snapshot.until_cluster_ns
    )


def _known(step: Step, name: str) -> Snapshot:
    snapshot = step.state.snapshot(name, step.cluster_ns)
    if snapshot is None:
        message = "no such snapshot"
        raise NotFound(message)
    return snapshot


def _own(step: Step, name: str) -> Snapshot:
    """Return a snapshot that the caller made, or of a directory that was the caller's."""
    snapshot = _known(step, name)
    if snapshot.maker != step.caller.uid:
        _require_owner(step, snapshot.shown.inodes[snapshot.root])
    return snapshot


def _require_may_hold(step: Step, directory: Inode, ttl_ns: int) -> None:
    """Raise NotPermitted for who may not keep a directory for so long."""
    if ttl_ns == HELD or ttl_ns > SNAPSHOT_FOREIGN_TTL_NS_MAX:
        _require_owner(step, directory)


def _require_owner(step: Step, directory: Inode) -> None:
    if not access.owns(step.caller, directory):
        message = "the directory is another's"
        raise NotPermitted(message)


def _require_few(views: list[int]) -> None:
    """Raise ResultTooLarge with too many views below the first one."""
    if len(views) - 1 > NESTED_VIEWS_MAX:
        message = "too many views below the directory"
        raise ResultTooLarge(message)


def require_pinnable(state: State, views: list[int]) -> None:
    """Raise ResultTooLarge if one of the views has as many pins as it may have."""
    pinned = [view for view, _, _ in state.pins]
    for snapshot in state.snapshots.values():
        pinned += snapshot.shown.pinned or ()
    if any(pinned.count(view) >= PINS_MAX for view in views):
        message = "a view has too many pins"
        raise ResultTooLarge(message)


def require_room(step: Step, parent: Inode, more: int) -> None:
    """Raise ResultTooLarge if something that ends as a whole would get too many views in it.

    That is a view that the parent lies in, or an entry of a trash.
    """
    forest, up = step.forest, parent
    while more > 0:
        directories = _upwards(forest, up)
        top = directories[-1]
        if top.key in forest.staged:
            if len(directories) > 1:
                _require_fit(forest, directories[-2], more)
            return
        if top.key == ROOT:
            return
        _require_fit(forest, top, more)
        [(above, _)] = top.names
        up = forest.inodes[above]


def _require_room_in_itself(step: Step, source: Key, parent: Inode, more: int) -> None:
    """Raise ResultTooLarge if a directory would get too many views by copies into itself."""
    forest, up = step.forest, parent
    while True:
        directories = _upwards(forest, up)
        if source in (one.key for one in directories):
            _require_fit(forest, forest.inodes[source], more)
            return
        if not directories[-1].names:
            return  # the root of view 0, or of a trash
        [(above, _)] = directories[-1].names
        up = forest.inodes[above]


def _upwards(forest: Forest, directory: Inode) -> list[Inode]:
    """Return a directory and those above it in its view."""
    return [forest.inodes[directory.view, number] for number in forest.chain(directory)]


def _require_fit(forest: Forest, directory: Inode, more: int) -> None:
    if len(forest.views_below(directory)) - 1 + more > NESTED_VIEWS_MAX:
        message = "too many views below a directory above it"
        raise ResultTooLarge(message)


# ---------------------------------------------------------------- new views


def workspace_create(step: Step, op: WorkspaceCreate) -> ViewMade:
    """Make an empty directory that is a view of its own."""
    parent = step.resolver.parent(op.parent)
    access.require_makeable(step.caller, parent, op.name)
    access.require_unstaged(step.forest, parent)
    require_room(step, parent, 1)
    view = step.state.next_view
    root = step.make(FileType.DIRECTORY << 12 | op.mode, parent, view)
    _enter(step, View(view, root.number, step.version, step.wall_ns, root.key))
    step.attach(parent, op.name, root)
    step.event(EventKind.CREATE, root, (parent, op.name))
    return ViewMade(view, root.number, step.version)


def clone(step: Step, op: Clone) -> ViewMade:
    """Make a writable copy of a directory, or of what a snapshot shows."""
    parent = step.resolver.parent(op.parent)
    access.require_makeable(step.caller, parent, op.name)
    if op.snapshot:
        snapshot = _known(step, op.snapshot)
        if op.snapshot_id and op.snapshot_id != snapshot.number:
            message = "another snapshot of that name"
            raise NotFound(message)
        shown, version = snapshot.shown, snapshot.version
        source = shown.inodes[snapshot.root]
    else:
        shown, version = step.forest, step.version - 1
        source = step.resolver.parent(op.source)
    access.require(step.caller, source, R | X)
    if not op.snapshot:
        access.require_unstaged(step.forest, source)
    access.require_unstaged(step.forest, parent)
    more = len(shown.views_below(source))
    require_room(step, parent, more)
    _require_room_in_itself(step, source.key, parent, more)
    root = _copied(step, shown, source, version)
    step.attach(parent, op.name, root)
    step.event(EventKind.CLONE, root, (parent, op.name))
    return ViewMade(root.view, root.number, step.version)


def rollback(step: Step, op: Rollback) -> RolledBack:
    """Make a directory again what a snapshot of it shows."""
    parent = step.resolver.parent(op.parent)
    access.require(step.caller, parent, X)
    if op.name not in parent.entries:
        message = "no such name"
        raise NotFound(message)
    directory = step.forest.inodes[parent.entries[op.name]]
    if not directory.is_directory:
        message = "it is no directory"
        raise NotADirectory(message)
    access.require_deletable_entry(step.caller, parent, directory)
    _require_owner(step, directory)
    snapshot = _known(step, op.snapshot)
    if snapshot.identity != step.state.identity(directory):
        message = "the snapshot is of another directory"
        raise InvalidArgument(message)
    name = f"rollback-{step.version}"
    identity = snapshot.identity
    replaces = directory.view if directory.view != parent.view else -1
    _taken(step, directory, name, op.path, step.cluster_ns + op.keep_ns, automatic=True)
    source = snapshot.shown.inodes[snapshot.root]
    more = len(snapshot.shown.views_below(source)) - len(step.forest.views_below(directory))
    require_room(step, parent, more + int(replaces < 0))
    step.remove(parent, op.name)
    root = _copied(step, snapshot.shown, source, snapshot.version, identity, replaces)
    root.quota = directory.quota
    step.attach(parent, op.name, root)
    step.event(EventKind.ROLLBACK, root, (parent, op.name), to_name=op.snapshot.encode())
    return RolledBack(root.view, root.number, step.version, name)


def flatten(step: Step, op: Flatten) -> Reaped:
    """Change nothing: a copy depends on nothing here."""
    del step, op
    return Reaped(0, more=False)


def _copied(
    step: Step,
    shown: Forest,
    source: Inode,
    version: int,
    identity: Key | None = None,
    replaces: int = -1,
) -> Inode:
    """Copy a directory and all below it into fresh views; return the copy, which has no name."""
    origins = shown.views_below(source)
    _require_few(origins)
    first = step.state.next_view
    copied = shown.clone(source, {origin: first + at for at, origin in enumerate(origins)})
    step.forest.inodes.update(copied.inodes)
    for number, origin in enumerate(origins, first):
        [root] = [i for i in copied.inodes.values() if i.view == number and _is_root(copied, i)]
        top = number == first
        view = View(
            number,
            root.number,
            step.version,
            step.wall_ns,
            identity if top and identity else root.key,
            replaces if top else -1,
            ((origin, version), *step.state.views[origin].origins),
        )
        _enter(step, view)
    for inode in copied.inodes.values():
        inode.version = step.version  # the copy is no older than its view
        step.state.show((inode.view, inode.body), step.version, step.cluster_ns, inode.content)
        if len(inode.names) > 1:
            step.state.linked.add(inode.number)
    return copied.inodes[first, source.number]


def _is_root(copied: Forest, inode: Inode) -> bool:
    return copied.top(inode) is inode


def _enter(step: Step, view: View) -> None:
    """Note a new view; numbers count up and are never used again."""
    assert view.number == step.state.next_view
    step.state.next_view += 1
    step.state.views[view.number] = view
