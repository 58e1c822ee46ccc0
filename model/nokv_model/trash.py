"""The trash of a view: a hidden directory, kept like a staged tree that is nobody's."""

from __future__ import annotations

from nokv.errors import CrossesView, NotFound, NotPermitted, ResultTooLarge, Stale
from nokv.types.events import EventKind
from nokv.types.limits import DEPTH_MAX, NESTED_VIEWS_MAX, PAGE_MAX
from nokv.types.results import Done, Made, Reaped
from nokv.types.trash import (
    EmptyTrash,
    ExpireTrash,
    KeepTrash,
    ListTrash,
    RestoreTrash,
    Trash,
    Trashed,
    TrashPage,
    TrashRow,
)
from nokv.types.values import At, Caller, FileType
from nokv_model import access
from nokv_model.state import Discarded, State
from nokv_model.step import Step
from nokv_model.tree import NOBODY, ROOT, Forest, Inode, file_type
from nokv_model.views import require_room

PRIVATE = FileType.DIRECTORY << 12 | 0o700

# ---------------------------------------------------------------- in and out


def trash(step: Step, op: Trash) -> Trashed:
    """Move a name into the trash of its view."""
    parent = step.resolver.parent(op.parent)
    inode = access.require_deletable(step.forest, step.caller, parent, op.name)
    access.require_unstaged(step.forest, parent)
    if inode.is_directory:
        if inode.entries and not access.owns(step.caller, inode):
            message = "the directory is another's, and has entries"
            raise NotPermitted(message)
        if len(step.forest.views_below(inode)) - 1 > NESTED_VIEWS_MAX:
            message = "too many views below the directory"
            raise ResultTooLarge(message)
    path = shown_path(step.forest, parent, op.name)
    step.event(EventKind.REMOVE, inode, (parent, op.name))
    step.detach(parent, op.name)
    hidden = _hidden(step, parent.view)
    step.forest.attach(hidden, name_of(step.version), inode)
    step.touch(inode)
    step.state.trash[parent.view, step.version] = Discarded(
        path, parent.key, op.name, step.caller.uid, step.wall_ns, step.cluster_ns
    )
    return Trashed(parent.view, step.version)


def name_of(trash: int) -> bytes:
    """Return an entry's name in the hidden directory; it shows as that of a view there."""
    return b"%016x" % trash


def _hidden(step: Step, view: int) -> Inode:
    """Return the hidden directory of a view; it is made if there is none."""
    hidden = step.forest.hidden(view)
    if hidden is None:
        now = step.wall_ns
        hidden = Inode(view, step.state.next_inode, PRIVATE, 0, 0, now, now, now, step.version)
        step.state.next_inode += 1
        step.forest.inodes[hidden.key] = hidden
        step.forest.staged[hidden.key] = NOBODY
    return hidden


def restore(step: Step, op: RestoreTrash) -> Made:
    """Give an entry a name again."""
    if (op.view, op.trash) not in step.state.trash:
        message = "no such entry"
        raise NotFound(message)
    entry = step.state.trash[op.view, op.trash]
    inode = shown(step.state, op.view, op.trash)
    _require_own(step.caller, entry, inode)
    name = op.name or entry.name
    parent = _target(step, op.parent, entry)
    access.require_makeable(step.caller, parent, name)
    if parent.view != op.view:
        message = "the entry lies in the trash of another view"
        raise CrossesView(message)
    access.require_unstaged(step.forest, parent)
    taken = len(step.forest.views_below(inode)) if inode.is_directory else 1
    require_room(step, parent, taken - int(inode.view == op.view))
    _take(step, op.view, op.trash)
    step.attach(parent, name, inode)
    step.touch(inode)
    step.event(EventKind.MOVE_IN, inode, (parent, name))
    return Made(step.forest.attr(inode))


def _target(step: Step, at: At | None, entry: Discarded) -> Inode:
    if at is not None:
        return step.resolver.parent(at)
    try:
        return step.resolver.parent(At(*entry.directory))
    except Stale:
        message = "the directory that it was in is gone"
        raise NotFound(message) from None


def shown(state: State, view: int, trash: int) -> Inode:
    """Return what an entry shows."""
    hidden = state.forest.hidden(view)
    assert hidden is not None, f"view {view} has no trash"
    return state.forest.inodes[hidden.entries[name_of(trash)]]


def _take(step: Step, view: int, trash: int) -> Inode:
    """Take an entry out, and an empty hidden directory away; return what the entry showed."""
    hidden = step.forest.hidden(view)
    assert hidden is not None, f"view {view} has no trash"
    inode = step.forest.detach(hidden, name_of(trash))
    del step.state.trash[view, trash]
    if not hidden.entries:
        step.drop(hidden)
    return inode


def is_own(caller: Caller, entry: Discarded, inode: Inode) -> bool:
    """Say whether the caller sees an entry."""
    return access.owns(caller, inode) or caller.uid == entry.uid


def _require_own(caller: Caller, entry: Discarded, inode: Inode) -> None:
    if not is_own(caller, entry, inode):
        message = "the entry is another's"
        raise NotPermitted(message)


# ---------------------------------------------------------------- the end


def empty(step: Step, op: EmptyTrash) -> Reaped:
    """Remove entries for good."""
    removed = 0
    for key in op.entries:
        if key in step.state.trash:
            _require_own(step.caller, step.state.trash[key], shown(step.state, *key))
            _end(step, *key)
            removed += 1
    return Reaped(removed, more=False)


def _end(step: Step, view: int, trash: int) -> None:
    inode = shown(step.state, view, trash)
    _take(step, view, trash)
    step.let_go(inode)


def keep(step: Step, op: KeepTrash) -> Done:
    """Set the retention of all that is in the trash."""
    if not access.is_root(step.caller):
        message = "only root says for how long the trash is kept"
        raise NotPermitted(message)
    step.state.keep_ns = op.keep_ns
    return Done()


def expire(step: Step, op: ExpireTrash) -> Reaped:
    """Remove what was kept for long enough, from the trash with the oldest entry first."""
    over = step.cluster_ns - step.state.keep_ns
    removed = 0
    while due := [(one.cluster_ns, *key) for key, one in step.state.trash.items()]:
        since, view, _ = min(due)
        if since > over:
            break
        for cluster_ns, _, trash in sorted(entry for entry in due if entry[1] == view):
            if cluster_ns > over:
                break
            if removed == op.limit:
                return Reaped(removed, more=True)
            _end(step, view, trash)
            removed += 1
    return Reaped(removed, more=False)


# ---------------------------------------------------------------- what there is


def list_trash(state: State, cluster_ns: int, caller: Caller, read: ListTrash) -> TrashPage:
    """Return the caller's of the next entries, by view and age."""
    after = max(0, read.after_view), max(0, read.after)
    limit = max(1, min(read.limit, PAGE_MAX))
    left = [key for key in sorted(state.trash) if key > after]
    page = left[:limit]
    rows = tuple(
        _row(state, *key) for key in page if is_own(caller, state.trash[key], shown(state, *key))
    )
    return TrashPage(rows, len(page) < len(left), *(page[-1] if page else after), cluster_ns)


def _row(state: State, view: int, trash: int) -> TrashRow:
    entry, inode = state.trash[view, trash], shown(state, view, trash)
    entries, size = state.forest.usage(inode) if inode.is_directory else (0, inode.counted_bytes)
    return TrashRow(
        view=view,
        trash=trash,
        path=entry.path,
        uid=entry.uid,
        file_type=file_type(inode.mode),
        inode_view=inode.view,
        inode=inode.number,
        entries=entries,
        size_bytes=size,
        trashed_wall_ns=entry.wall_ns,
        until_cluster_ns=entry.cluster_ns + state.keep_ns,
    )


def shown_path(forest: Forest, directory: Inode, name: bytes) -> bytes:
    """Return a name's path from the root of view 0; `...` stands for what is too deep or hidden."""
    names = [name]
    while directory.names and len(names) <= DEPTH_MAX:
        [(above, own)] = directory.names
        names.insert(0, own)
        directory = forest.inodes[above]
    known = directory.key == ROOT and len(names) <= DEPTH_MAX
    return b"/".join([b"" if known else b"...", *names])
