"""What one command works with: the transaction, the entry's time, the caller and the session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import structs

from nokv.errors import NameTooLong, Stale
from nokv.state import kept, keys
from nokv.state.branches import PRESENT
from nokv.state.effects import Effect
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.quota import check_quota
from nokv.state.records import (
    Counters,
    Dentry,
    Drop,
    Inode,
    Job,
    Session,
    StoredEvent,
    Usage,
    View,
    body_of,
    born_of,
    decode_count,
    decode_dentry,
    decode_inode,
    decode_usage,
)
from nokv.state.txn import Txn
from nokv.types.events import EventKind
from nokv.types.limits import DEPTH_MAX
from nokv.types.values import ROOT_INODE, Attr, Caller, FileType

S_IFMT = 0o170000
DIRECTORY = FileType.DIRECTORY << 12
REGULAR = FileType.REGULAR << 12
SYMLINK = FileType.SYMLINK << 12
# Looking a member up in an enum class costs as much as a store's get on CPython 3.11.
_INODE = Family.INODE
_DENTRY = Family.DENTRY
_USAGE = Family.USAGE

JOB_ORPHAN = 1
"""A detached directory or file, to be taken apart from the top."""
JOB_UNPIN = 2
"""A dropped pin, whose history is to be reclaimed."""
JOB_TRIM = 3
"""Leftover rows of a session (results, consumed ranges) after its tombstone went."""
JOB_VIEW = 4
"""A dead view, whose records are to go."""
JOB_BACKUP = 5
"""A backup that was released, whose pins are to go."""


class Context:
    """One command being applied. `Atomic` uses one for all of its operations."""

    __slots__ = (
        "caller",
        "chains",
        "cluster_ns",
        "counters",
        "effects",
        "events",
        "newest_range",
        "seq",
        "session",
        "session_id",
        "txn",
        "wall_ns",
    )

    def __init__(
        self,
        txn: Txn,
        wall_ns: int,
        cluster_ns: int,
        caller: Caller,
        session_id: int,
        seq: int,
        session: Session | None,
    ) -> None:
        self.txn = txn
        self.counters: Counters = txn.counters
        self.wall_ns = wall_ns
        self.cluster_ns = cluster_ns
        self.caller = caller
        self.session_id = session_id
        self.seq = seq
        self.session = session
        """The session as this command leaves it; written back with the result."""
        self.events: list[StoredEvent] = []
        self.chains: dict[tuple[int, ...], int] = {}
        """Chains of the events, with the numbers that the events give them."""
        self.effects: list[Effect] = []
        self.newest_range: tuple[int, int] | None = None
        """The range of published uploads that this command wrote last: an `Atomic` of many
        publishes extends it each time, without a scan."""

    @property
    def version(self) -> int:
        """The version of the running operation."""
        return self.txn.version

    # ------------------------------------------------------------------ inodes and names

    def new_inode(self) -> int:
        """Return an inode number that was never used."""
        ino = self.counters.next_inode
        self.counters.next_inode += 1
        return ino

    def store_inode(self, view: int, ino: int, inode: Inode) -> None:
        """Write an inode record. The caller accounts for files and bytes."""
        if view:
            self._copy_up(view, ino, inode)
        self.txn.put(_INODE, keys.pack2(view, ino), self.txn.encode(inode))
        if inode.mode & S_IFMT == DIRECTORY:
            self.txn.set_parent(view, ino, inode.parent)

    def put_dentry(self, view: int, directory: int, name: bytes, dentry: Dentry) -> None:
        """Write a name."""
        self.txn.put(_DENTRY, keys.pack2(view, directory) + name, self.txn.encode(dentry))

    def delete_dentry(self, view: int, directory: int, name: bytes) -> None:
        """Remove a name."""
        self.txn.delete(_DENTRY, keys.dentry(view, directory, name))

    # ------------------------------------------------------------------ what a view inherits

    def _copy_up(self, view: int, ino: int, inode: Inode) -> None:
        """Do what comes with the first own record of an inode that the view inherits.

        It counts as an inode of its own from now on, and is noted in its directories: without
        that, taking a tree apart would have to look at all that the tree inherits.
        """
        record = self.txn.view(view)
        assert record is not None, f"an inode of view {view}, which does not exist"
        if record.origin is None:
            return
        key = keys.pack2(view, ino)
        own = self.txn.own(_INODE, key)
        value = self.txn.get(_INODE, key) if own is None and ino < record.first_inode else own
        if value is None:
            return  # a new one
        before = decode_inode(body_of(value))
        if own is None:
            self.counters.files += 1
            self.counters.size_bytes += before.size
            for directory in sorted(
                {inode.parent, *(d for d, _ in names_inside(self.txn, view, ino))}
            ):
                self.note_changed(view, directory, ino)
        # What a flattened view shows at an older version has its count right, and rows of names
        # outside.
        if (own is None or before.nlink > 1) and not is_directory(before):
            self._forget_outside(view, ino)

    def note_changed(self, view: int, directory: int, ino: int) -> None:
        """Note that `ino`, which a directory names, has own records of the view, or leads to some.

        So the own records of a tree are found from above. Nothing to do for a root.
        """
        record = self.txn.view(view)
        assert record is not None, f"a directory of view {view}, which does not exist"
        if not directory or ino == record.root or record.origin is None:
            return
        for above_it in upwards(self.txn, view, directory):
            key = keys.changed(view, above_it, ino)
            if self.txn.get(Family.META, key) is not None:
                return
            self.txn.set_row(Family.META, key, b"")
            ino = above_it

    def _forget_outside(self, view: int, ino: int) -> None:
        """Drop the backlinks of names that lie outside of the view's root, or were detached."""
        prefix = keys.inode(view, ino)
        inside = names_inside(self.txn, view, ino)
        kept = {directory for directory, _ in inside} if sum(n for _, n in inside) > 1 else set()
        rows = self.txn.scan(Family.BACKLINK, prefix, keys.after_prefix(prefix))
        for key in [key for key, _ in rows if int.from_bytes(key[16:], "big") not in kept]:
            self.txn.delete(Family.BACKLINK, key)

    # ------------------------------------------------------------------ usage

    def add_usage(
        self, view: int, directory: int, entries: int, size: int, grafts: int = 0
    ) -> None:
        """Add to the usage of a directory and of all above it.

        Up to its tree's root, and on through the graft that leads to its view.
        """
        if not entries and not size and not grafts:
            return
        place: tuple[int, int] | None = (view, directory)
        while place is not None:
            view, directory = place
            up = chain(self.txn, view, directory)
            self.add_usage_to(view, up, entries, size, grafts)
            holder = above(self.txn, view)
            inside = holder is not None and up[-1] == root_of(self.txn, view)
            place = (holder[0], holder[1]) if holder is not None and inside else None

    def add_usage_to(
        self, view: int, directories: Iterable[int], entries: int, size: int, grafts: int = 0
    ) -> None:
        """Add to the usage of just these directories."""
        if not entries and not size and not grafts:
            return
        get, put, pack = self.txn.get, self.txn.put, keys.pack2
        for ino in directories:
            key = pack(view, ino)
            value = get(_USAGE, key)
            new = Usage(entries, size, grafts)
            if value is not None:
                old = decode_usage(body_of(value))
                new = Usage(
                    old.entries + entries,
                    old.size_bytes + size,
                    old.grafts + grafts,
                    old.entries_max,
                    old.size_bytes_max,
                )
                if (old.entries_max or old.size_bytes_max) and self._is_shown(view, ino):
                    check_quota(self.txn, view, ino, old, new)
            assert new.entries >= 0, f"entries below inode {ino}: {new.entries}"
            assert new.size_bytes >= 0, f"bytes below inode {ino}: {new.size_bytes}"
            assert new.grafts >= 0, f"views below inode {ino}: {new.grafts}"
            put(_USAGE, key, self.txn.encode(new))

    def _is_shown(self, view: int, directory: int) -> bool:
        """Whether a directory lies in its view or in a staged tree, not in one that was removed."""
        top = chain(self.txn, view, directory)[-1]
        return top == root_of(self.txn, view) or need_inode(self.txn, view, top).stage > 0

    def usage(self, view: int, directory: int) -> Usage:
        """Return the usage of a directory's tree."""
        return load_usage(self.txn, view, directory)

    # ------------------------------------------------------------------ events

    def emit(
        self,
        kind: EventKind,
        view: int,
        directory: int,
        name: bytes,
        ino: int,
        *,
        to_directory: int = 0,
        to_name: bytes = b"",
        size: int = 0,
        generation: int = 0,
        names: tuple[bytes, ...] = (),
        inode_view: int | None = None,
    ) -> None:
        """Record an event below `directory`; inside a staged or detached tree there is none.

        `inode_view`: where the name is a graft, the view that it leads to.
        """
        at = self._chain(view, directory)
        if at < 0:
            return
        to = self._chain(view, to_directory) if to_directory else -1
        self.events.append(
            StoredEvent(
                self.version,
                kind,
                view,
                at,
                name,
                ino,
                to,
                to_name,
                size,
                generation,
                self.session_id,
                self.seq,
                names,
                None if inode_view == view else inode_view,
            )
        )

    def _chain(self, view: int, directory: int) -> int:
        """Return the number of a directory's chain up to the root of view 0 (`types.events`)."""
        found: tuple[int, ...] = ()
        while True:
            up = chain(self.txn, view, directory)
            if up[-1] != root_of(self.txn, view):
                return -1
            found += up
            holder = above(self.txn, view)
            if holder is None:
                return self.chains.setdefault(found, len(self.chains))
            view, directory, _ = holder
            found += (-1 - view,)

    # ------------------------------------------------------------------ views

    def new_view(self) -> int:
        """Return a view number that was never used."""
        number = self.counters.next_view
        self.counters.next_view += 1
        return number

    def store_view(self, number: int, view: View) -> None:
        """Write the record of a view."""
        self.txn.set_view(number, view)

    def view_may_end(self, number: int) -> None:
        """Say that something is gone which a dead view waited for: its job looks whether all is."""
        view = self.txn.view(number)
        if view is not None and view.dead:
            self.add_job(JOB_VIEW, number, view.dead)

    # ------------------------------------------------------------------ background work

    def add_job(self, kind: int, view: int, a: int, b: int = 0) -> None:
        """Queue background work for `Reap`."""
        number = self.counters.next_job
        self.counters.next_job += 1
        self.counters.jobs += 1
        self.txn.set_row(Family.META, keys.job(number), self.txn.encode(Job(kind, view, a, b)))

    def add_drop(self, drop: Drop) -> None:
        """Queue a hold that ended for the collector."""
        number = self.counters.next_drop
        self.counters.next_drop += 1
        self.counters.drops += 1
        self.txn.set_row(Family.DROP, keys.pack(number), self.txn.encode(kept.note(self.txn, drop)))
        if drop.view:
            record = view_of(self.txn, drop.view)
            self.store_view(drop.view, structs.replace(record, drops=record.drops + 1))


def root_of(source: Source, view: int) -> int:
    """Return the root inode of a view. Stale for an unknown one, and at the present a dead one."""
    if view == 0:
        return ROOT_INODE
    record = source.view(view) if 0 < view < 2**64 else None
    if record is None:
        message = f"no view {view}"
        raise Stale(message)
    if source.at_version == PRESENT and ended_at(source, view):
        message = f"view {view} was removed"
        raise Stale(message)
    return record.root


def view_of(source: Source, view: int) -> View:
    """Return the record of a view, also of a dead one. Stale for an unknown one."""
    record = source.view(view) if 0 <= view < 2**64 else None
    if record is None:
        message = f"no view {view}"
        raise Stale(message)
    return record


def ended_at(source: Source, view: int) -> int:
    """Return the version at which a view was removed, or one that holds it; 0 while it lives.

    What lies in the trash of a view that ends is marked dead by a later step (`reap_view`).
    """
    while view:
        record = source.view(view)
        assert record is not None, f"view {view} holds others and does not exist"
        if record.dead:
            return record.dead
        view = 0 if record.holder is None else record.holder[0]
    return 0


def is_alive(source: Source, view: int) -> bool:
    """Whether the view exists and was not removed."""
    return source.view(view) is not None and not ended_at(source, view)


def above(source: Source, view: int) -> tuple[int, int, bytes] | None:
    """Return (view, directory, name) of the graft that leads to a view; None for view 0."""
    record = source.view(view) if view else None
    return None if record is None else record.holder


def enter(view: int, dentry: Dentry) -> tuple[int, int]:
    """Return (view, inode) of what a name in `view` shows."""
    return view if dentry.view is None else dentry.view, dentry.inode


def local(source: Source, view: int, ino: int, inode: Inode) -> Inode:
    """Return an inode as its view has it: the names of a file that lie below the view's root.

    A clone inherits the link count of a file together with names that lie outside of it.
    """
    if not view or inode.nlink <= 1 or inode.mode & S_IFMT == DIRECTORY:
        return inode
    inside = names_inside(source, view, ino)
    if not inside:
        return inode
    nlink = sum(count for _, count in inside)
    return structs.replace(inode, nlink=nlink, parent=inside[0][0])


def name_of(source: Source, view: int, directory: int) -> bytes:
    """Return a directory's name in the one above it; empty if it has none, or is gone."""
    record = source.view(view) if view else None
    if record is not None and directory == record.root:
        return b"" if record.holder is None else record.holder[2]
    value = source.get(_INODE, keys.inode(view, directory))
    return b"" if value is None else decode_inode(body_of(value)).name


def name_in(source: Source, place: tuple[int, int], directory: tuple[int, int]) -> bytes:
    """Return the name of (view, inode) in a directory; empty if there is none, or several."""
    view, ino = place
    record = source.view(view) if view else None
    if record is not None and ino == record.root:
        holder = record.holder
        return holder[2] if holder is not None and holder[:2] == directory else b""
    value = source.get(_INODE, keys.inode(view, ino)) if view == directory[0] else None
    inode = None if value is None else decode_inode(body_of(value))
    return inode.name if inode is not None and inode.parent == directory[1] else b""


def names_inside(source: Source, view: int, ino: int) -> list[tuple[int, int]]:
    """Return (directory, names there) of a file with several names, in order; else nothing.

    In a view with an origin only directories below its root count, at any depth.
    """
    prefix = keys.inode(view, ino)
    rows = source.scan(Family.BACKLINK, prefix, keys.after_prefix(prefix))
    found = [(int.from_bytes(key[16:], "big"), decode_count(body_of(value))) for key, value in rows]
    record = source.view(view) if view else None
    if record is None or record.origin is None:
        return found
    inside: dict[int, bool] = {}
    return [one for one in found if _is_inside(source, view, one[0], record, inside)]


def _is_inside(
    source: Source, view: int, directory: int, record: View, inside: dict[int, bool]
) -> bool:
    """Whether a directory lies below its view's root, in its trash, or in a staged tree.

    `inside` says so of some, and learns: names that were buried together share the walk up.
    """
    path: list[int] = []
    for ino in upwards(source, view, directory):
        if ino in inside:
            break
        path.append(ino)
    else:
        inside[ino] = _is_shown_root(source, view, ino, record)
    inside.update(dict.fromkeys(path, inside[ino]))
    return inside[ino]


def _is_shown_root(source: Source, view: int, top: int, record: View) -> bool:
    if top in (record.root, record.trash):
        return True
    value = source.get(_INODE, keys.inode(view, top))
    return value is not None and decode_inode(body_of(value)).stage > 0


def load_inode(source: Source, view: int, ino: int) -> Inode | None:
    """Return an inode record, or None."""
    value = source.get(_INODE, keys.inode(view, ino))
    return None if value is None else local(source, view, ino, decode_inode(body_of(value)))


def need_inode(source: Source, view: int, ino: int) -> Inode:
    """Return an inode record that a name or a parent promises."""
    value = source.get(_INODE, keys.inode(view, ino))
    assert value is not None, f"inode {view}:{ino} is named and does not exist"
    return local(source, view, ino, decode_inode(body_of(value)))


def load_dentry(source: Source, view: int, directory: int, name: bytes) -> Dentry | None:
    """Return a name's record, or None."""
    value = source.get(_DENTRY, keys.dentry(view, directory, name))
    return None if value is None else decode_dentry(body_of(value))


def load_usage(source: Source, view: int, directory: int) -> Usage:
    """Return the usage record of a directory; absent means empty."""
    value = source.get(_USAGE, keys.inode(view, directory))
    return Usage(0, 0) if value is None else decode_usage(body_of(value))


def chain(source: Source, view: int, directory: int) -> tuple[int, ...]:
    """Return the directory and its ancestors, up to the root of its tree, both included.

    The last one is the view's root, or the root of a staged or detached tree; in a clone also that
    of its origin, for a directory outside of what was cloned. A renamed tree can
    get deeper than DEPTH_MAX, as nobody knows its height: NameTooLong then.
    """
    parents: dict[tuple[int, int], int] = getattr(source, "parents", {})
    root = _root_of(source, view)
    found = [directory]
    ino = directory
    while ino != root:
        parent = parents.get((view, ino))
        if parent is None:
            parent = _find_parent(source, parents, view, ino)
        if not parent:
            break
        found.append(parent)
        ino = parent
        if len(found) > DEPTH_MAX + 1:
            message = f"inode {view}:{directory} lies more than {DEPTH_MAX} directories deep"
            raise NameTooLong(message, hint="move the tree up")
    return tuple(found)


def upwards(source: Source, view: int, directory: int) -> Iterator[int]:
    """Yield what `chain` returns, at any depth: for what must go on where a tree was buried."""
    parents: dict[tuple[int, int], int] = getattr(source, "parents", {})
    root = _root_of(source, view)
    yield directory
    ino = directory
    while ino != root and (ino := _find_parent(source, parents, view, ino)):
        yield ino


def _root_of(source: Source, view: int) -> int:
    record = source.view(view) if view else None
    return ROOT_INODE if record is None else record.root


def _find_parent(source: Source, parents: dict[tuple[int, int], int], view: int, ino: int) -> int:
    """Return the directory above one that is not its view's root; 0: there is none."""
    parent = parents.get((view, ino))
    if parent is not None:
        return parent
    value = source.get(_INODE, keys.inode(view, ino))
    if value is None:
        assert view, f"inode {view}:{ino} is named and does not exist"
        return 0  # what it named of the origin's is reachable by nothing
    parent = parents[view, ino] = decode_inode(body_of(value)).parent
    return parent


def is_directory(inode: Inode) -> bool:
    """Whether the inode is a directory."""
    return inode.mode & S_IFMT == DIRECTORY


def is_regular(inode: Inode) -> bool:
    """Whether the inode is a regular file."""
    return inode.mode & S_IFMT == REGULAR


def is_symlink(inode: Inode) -> bool:
    """Whether the inode is a symbolic link."""
    return inode.mode & S_IFMT == SYMLINK


def bytes_of(inode: Inode) -> int:
    """What the inode adds to usage: a directory or special file nothing."""
    return inode.size


def load_attr(source: Source, view: int, ino: int) -> Attr | None:
    """Return an inode's attributes, or None."""
    value = source.get(_INODE, keys.inode(view, ino))
    if value is None:
        return None
    inode = local(source, view, ino, decode_inode(body_of(value)))
    return make_attr(view, ino, inode, born_of(value))


def make_attr(view: int, ino: int, inode: Inode, version: int) -> Attr:
    """Return the attributes of a record that was written by `version`."""
    return Attr(
        view,
        ino,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.nlink,
        inode.size,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        version,
        inode.generation,
        inode.rdev,
        inode.flags,
        inode.children,
        inode.body,
        inode.sha256,
        inode.parent,
        0 if inode.acls is None else bool(inode.acls.access) | bool(inode.acls.default) << 1,
    )
