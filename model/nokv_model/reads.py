"""The reads: functions of the present tree, or of the copy that a pin keeps."""

from __future__ import annotations

from nokv.errors import (
    BodyGone,
    CursorTooOld,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotFound,
    NotSupported,
    Stale,
    VersionNotPinned,
)
from nokv.types import locks as k
from nokv.types import reads as r
from nokv.types import trash as t
from nokv.types import views as v
from nokv.types.copies import GetQuota, QuotaReply
from nokv.types.limits import CHUNK_BYTES, PAGE_MAX, RANGES_PAGE_MAX
from nokv.types.values import (
    Attr,
    Caller,
    FileType,
    Lease,
    StoredChunk,
    StoredExtent,
    StoredObject,
)
from nokv_model import access, acls, locking, trash
from nokv_model.access import R, Resolver, X, check_name
from nokv_model.arguments import check_xattr_name
from nokv_model.attributes import list_names
from nokv_model.body import Content, window
from nokv_model.sessions import Session
from nokv_model.state import Snapshot, State, View
from nokv_model.tree import ROOT, Forest, Inode, file_type


def run(state: State, version: int, cluster_ns: int, caller: Caller, read: r.Read) -> r.ReadValue:
    """Answer a read; NotSupported for those that show storage, which the model has none of."""
    match read:
        case r.StatFs():
            return r.StatFsReply(*state.forest.totals())
        case r.ReadEvents():
            access.require(caller, state.forest.inodes[ROOT], R)
            return _events(state, version, read)
        case r.GetSession():
            return _session(state, read.session).reply()
        case r.ListSessions():
            return _sessions(state, cluster_ns, read)
        case r.GetVolume():
            return _volume(state)
        case v.GetSnapshot():
            return _snapshot(state, cluster_ns, read)
        case v.ListSnapshots():
            return _snapshots(state, cluster_ns, read)
        case v.ListViews():
            return _views(state, read)
        case t.ListTrash():
            return trash.list_trash(state, cluster_ns, caller, read)
        case k.TestLock():
            access.check_at(read.at)
            return locking.test_lock(state, caller, read)
        case k.WaitLocks():
            return locking.wait_locks(state, read)
    at = read.parent if isinstance(read, r.Lookup) else read.at  # type: ignore[union-attr]
    access.check_at(at)
    forest = forest_at(state, cluster_ns, at.view, getattr(read, "at_version", r.PRESENT))
    if isinstance(read, r.BodyMap):
        return _body_map(state, Resolver(forest, caller, read.session), read)
    return _of_forest(Resolver(forest, caller), read)


def forest_at(state: State, cluster_ns: int, view: int, at_version: int) -> Forest:
    """Return what is present, or all that is pinned at a version.

    Raises VersionNotPinned unless the view is pinned there.
    """
    if at_version == r.PRESENT:
        return state.forest
    forest = state.forest_at(at_version, cluster_ns)
    assert forest.pinned is not None
    if view not in forest.pinned:
        message = f"no pin of view {view} at version {at_version}"
        raise VersionNotPinned(message)
    return forest


# ---------------------------------------------------------------- of what there is or was


def _of_forest(resolver: Resolver, read: r.Read) -> r.ReadValue:
    match read:
        case r.GetAttr():
            return r.AttrReply(resolver.forest.attr(resolver.resolve(read.at)))
        case r.Lookup():
            return _lookup(resolver, read)
        case r.ReadLink():
            inode = resolver.resolve(read.at)
            if not inode.is_symlink:
                message = "it is no symbolic link"
                raise InvalidArgument(message)
            return r.BytesReply(inode.target)
        case r.ReadDir():
            return _read_dir(resolver, read)
        case r.GetXattr():
            return _get_xattr(resolver, read)
        case r.ListXattr():
            inode = resolver.resolve(read.at)
            names = [n for n in inode.xattrs if _shown(resolver.caller, n)]
            return r.NamesReply(tuple(sorted(names + list_names(inode))))
        case r.GetUsage():
            return r.UsageReply(*resolver.forest.usage(resolver.parent(read.at)))
        case r.Access():
            return _access(resolver, read)
        case GetQuota():
            directory = resolver.parent(read.at)
            return QuotaReply(*resolver.forest.usage(directory), *directory.quota)
        case _:
            message = f"the model does not answer {type(read).__name__}"
            raise NotSupported(message)


def _lookup(resolver: Resolver, read: r.Lookup) -> r.AttrReply:
    check_name(read.name)
    parent = resolver.parent(read.parent)
    access.require(resolver.caller, parent, X)
    if read.name not in parent.entries:
        message = "no such name"
        raise NotFound(message)
    return r.AttrReply(resolver.forest.attr(resolver.forest.inode(parent.entries[read.name])))


def _read_dir(resolver: Resolver, read: r.ReadDir) -> r.DirPage:
    if not 1 <= read.limit <= PAGE_MAX:
        message = "a page out of range"
        raise InvalidArgument(message)
    forest, directory = resolver.forest, resolver.parent(read.at)
    access.require(resolver.caller, directory, R)
    names = sorted(name for name in directory.entries if name > read.after)
    page = names[: read.limit]
    entries = []
    for name in page:
        view, number = directory.entries[name]
        if read.plus or view == directory.view:
            inode = forest.inode((view, number))
            kind, attr = file_type(inode.mode), forest.attr(inode) if read.plus else None
        else:
            kind, attr = FileType.DIRECTORY, None
        entries.append(r.DirEntry(name, number, kind, view, attr))
    after = page[-1] if page else read.after
    return r.DirPage(tuple(entries), len(page) < len(names), forest.attr(directory), after)


def _shown(caller: Caller, name: bytes) -> bool:
    return name.startswith(b"user.") or access.is_root(caller)


def _get_xattr(resolver: Resolver, read: r.GetXattr) -> r.BytesReply:
    check_xattr_name(read.name)
    inode = resolver.resolve(read.at)
    if read.name in (acls.ACCESS, acls.DEFAULT):
        if inode.is_symlink:
            message = "a symbolic link has no list"
            raise NotSupported(message)
        kept = inode.access_list if read.name == acls.ACCESS else inode.default_list
        if kept is None:
            message = "no such list"
            raise NoAttribute(message)
        return r.BytesReply(acls.value_of(kept))
    if read.name.startswith(b"user."):
        access.require(resolver.caller, inode, R)
    if not _shown(resolver.caller, read.name) or read.name not in inode.xattrs:
        message = "no such attribute"
        raise NoAttribute(message)
    return r.BytesReply(inode.xattrs[read.name])


def _access(resolver: Resolver, read: r.Access) -> r.AttrReply:
    if read.mask & ~0o7:
        message = "unknown access bits"
        raise InvalidArgument(message)
    inode = resolver.resolve(read.at)
    access.require(resolver.caller, inode, read.mask)
    return r.AttrReply(resolver.forest.attr(inode))


# ---------------------------------------------------------------- bodies


def _body_map(state: State, resolver: Resolver, read: r.BodyMap) -> r.BodyMapReply:
    if read.offset < 0 or read.length < 0:
        message = "a negative range"
        raise InvalidArgument(message)
    end = read.offset + read.length
    try:
        inode = resolver.resolve(read.at)
    except Stale:
        gone = _leased_only(state, read)
        if gone is None:
            raise
        return r.BodyMapReply(_nameless(read), stored_chunks(state, gone, read.offset, end), 0)
    if inode.is_directory:
        message = "it is a directory"
        raise IsADirectory(message)
    if not inode.is_regular:
        message = "only a regular file has a body"
        raise InvalidArgument(message)
    access.require(resolver.caller, inode, R)
    content = _leased(state, inode.key, read) if read.body else inode.content
    if content is None:
        message = f"body {read.body} is not leased at version {read.lease_version}"
        raise BodyGone(message)
    chunks = stored_chunks(state, content, read.offset, end)
    return r.BodyMapReply(resolver.forest.attr(inode), chunks, 0)


def _nameless(read: r.BodyMap) -> Attr:
    """Return what is said of a file of which only a leased body is left."""
    mode = FileType.REGULAR << 12
    return Attr(read.at.view, read.at.inode, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _leased_only(state: State, read: r.BodyMap) -> Content | None:
    """Return what the session's lease of a file that is gone shows; None without one."""
    if read.at.path:
        return None
    return _leased(state, (read.at.view, read.at.inode), read)


def _leased(state: State, file: tuple[int, int], read: r.BodyMap) -> Content | None:
    """Return what the lease that is named shows; None if the session does not have it."""
    session = state.sessions.get(read.session)
    lease = Lease(*file, read.body, read.lease_version)
    if not read.body or session is None or lease not in session.leases:
        return None
    return state.content_at((lease.view, lease.body), lease.version)


def stored_chunks(state: State, content: Content, start: int, end: int) -> tuple[r.ChunkAt, ...]:
    """Return the chunks that [start, end) touches, whole."""
    first, last = start // CHUNK_BYTES, max(start, end - 1) // CHUNK_BYTES
    found = []
    for index in sorted({run.offset // CHUNK_BYTES for run in content}):
        if first <= index <= last and start < end:
            base = index * CHUNK_BYTES
            runs = window(content, base, base + CHUNK_BYTES)
            found.append(r.ChunkAt(index, _stored(state, runs, base)))
    return tuple(found)


def _stored(state: State, runs: Content, base: int) -> StoredChunk:
    names = sorted({run.object for run in runs if run.object is not None})
    objects = tuple(StoredObject(*name, *state.objects[name]) for name in names)
    extents = tuple(
        StoredExtent(
            run.offset - base,
            run.length,
            -1 if run.object is None else names.index(run.object),
            run.object_offset,
            0,
            run.data,
        )
        for run in runs
    )
    return StoredChunk(objects, extents)


# ---------------------------------------------------------------- sessions, events, volume


def _session(state: State, number: int) -> Session:
    if number not in state.sessions:
        message = f"no session {number}"
        raise NotFound(message)
    return state.sessions[number]


def _sessions(state: State, cluster_ns: int, read: r.ListSessions) -> r.SessionsReply:
    first = read.after if read.above else read.after + 1
    numbers = sorted(number for number in state.sessions if number >= first)
    page: list[r.SessionReply] = []
    cut, left = 0, RANGES_PAGE_MAX
    for number in numbers[: read.limit]:
        above = read.above if number == read.after else 0
        reply = state.sessions[number].reply(above, left)
        page.append(reply)
        left -= len(reply.consumed)
        if not left:
            last = reply.consumed[-1][1]
            cut = last if state.sessions[number].published(last) else 0
            break
    return r.SessionsReply(tuple(page), len(page) < len(numbers), cluster_ns, cut)


def _events(state: State, version: int, read: r.ReadEvents) -> r.EventsReply:
    if read.cursor < state.first_event:
        message = f"events up to {state.first_event} were trimmed"
        raise CursorTooOld(message)
    if read.cursor > version or not 1 <= read.limit <= PAGE_MAX:
        message = "a cursor that is not yet, or a page out of range"
        raise InvalidArgument(message)
    records = [record for record in state.events if record[0] > read.cursor]
    page = records[: read.limit]
    events = tuple(e for _, inner in page for e in inner if e.version > read.cursor)
    more = len(page) < len(records)
    cursor = page[-1][0] if more else version
    return r.EventsReply(events, cursor, more)


# ---------------------------------------------------------------- snapshots and views


def _snapshot(state: State, cluster_ns: int, read: v.GetSnapshot) -> v.SnapshotReply:
    snapshot = state.snapshot(read.name, cluster_ns)
    if snapshot is None:
        message = "no such snapshot"
        raise NotFound(message)
    return _snapshot_reply(state, cluster_ns, snapshot)


def _snapshot_reply(state: State, cluster_ns: int, snapshot: Snapshot) -> v.SnapshotReply:
    assert snapshot.shown.pinned is not None
    kept = (snapshot.root[0], snapshot.version)
    return v.SnapshotReply(
        snapshot=snapshot.number,
        name=snapshot.name,
        path=snapshot.path,
        view=snapshot.root[0],
        inode=snapshot.root[1],
        version=snapshot.version,
        created_wall_ns=snapshot.created_wall_ns,
        until_cluster_ns=snapshot.until_cluster_ns,
        automatic=snapshot.automatic,
        views=len(snapshot.shown.pinned),
        clones=sum(kept in view.origins for view in state.live_views()),
        cluster_ns=cluster_ns,
        maker=snapshot.maker,
        identity=snapshot.identity,
    )


def _snapshots(state: State, cluster_ns: int, read: v.ListSnapshots) -> v.SnapshotsReply:
    names = sorted(
        name for name in state.snapshots if name > read.after and state.snapshot(name, cluster_ns)
    )
    page = names[: read.limit]
    rows = tuple(_snapshot_reply(state, cluster_ns, state.snapshots[name]) for name in page)
    return v.SnapshotsReply(rows, len(page) < len(names))


def _views(state: State, read: v.ListViews) -> v.ViewsReply:
    every = [view for view in state.live_views() if view.number > read.after]
    page = every[: read.limit]
    return v.ViewsReply(tuple(_view_reply(state, view) for view in page), len(page) < len(every))


def _view_reply(state: State, view: View) -> v.ViewReply:
    """Say what is known of a view; what it falls through to, and how often, is open."""
    root = state.forest.inodes[state.root_of(view.number)]
    [((parent_view, parent), name)] = root.names or {((-1, 0), b"")}
    origin, origin_version = view.origins[0] if view.origins else (-1, 0)
    entries, size = state.forest.usage(root)
    return v.ViewReply(
        view=view.number,
        root=view.root,
        created=view.created,
        created_wall_ns=view.created_wall_ns,
        origin=origin,
        origin_version=origin_version,
        parent_view=parent_view,
        parent=parent,
        name=name,
        replaces=view.replaces,
        dead=0,
        depth=len(view.origins),
        entries=entries,
        size_bytes=size,
        path=_path(state, root),
        identity=view.identity,
    )


def _path(state: State, inode: Inode) -> bytes:
    """Return where a directory is, from the root of view 0; empty where nothing leads there."""
    path = b""
    while inode.names:
        [(above, name)] = inode.names
        path = b"/" + name + path
        inode = state.forest.inodes[above]
    return path


def _volume(state: State) -> r.VolumeReply:
    if state.volume is None:
        message = "no volume yet"
        raise NotFound(message)
    v = state.volume.volume
    return r.VolumeReply(
        v.volume,
        v.kind,
        v.endpoint,
        v.bucket,
        v.prefix,
        v.region,
        v.inline_max,
        v.chunk_bytes,
        v.block_bytes,
        state.volume.owner_epoch,
    )
