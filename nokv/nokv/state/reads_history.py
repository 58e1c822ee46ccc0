"""The generations of a file that something still shows.

A file is followed by its inode, and by its name where another inode stood there; through the
views that it came from, and through rollbacks. Each pin on that way is asked what it shows: the
cost grows with the pins, not with the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

from nokv.errors import InvalidArgument, IsADirectory
from nokv.state import keys
from nokv.state.access import R, may, need
from nokv.state.arguments import check_at
from nokv.state.branches import PRESENT
from nokv.state.collect import counters_of, live_sessions_of
from nokv.state.context import (
    is_directory,
    is_regular,
    load_dentry,
    load_inode,
    names_inside,
    root_of,
    upwards,
)
from nokv.state.families import Family
from nokv.state.pinned import PinnedSource, Shard, Source
from nokv.state.records import Inode, Pin, Snapshot, decode_events, decode_pin
from nokv.state.resolve import Found, resolve
from nokv.state.snapshots import is_over, snapshots_of
from nokv.state.txn import Txn
from nokv.types.diffs import History, HistoryReply, Holder, HolderKind, Showing
from nokv.types.events import EventKind
from nokv.types.limits import PAGE_MAX
from nokv.types.values import Caller

_CURSOR_BYTES = 16


def history(txn: Txn, caller: Caller, request: History) -> HistoryReply:
    """Answer `History`: on the first page also what is live, and leased.

    Raises what resolving the file raises, IsADirectory, and InvalidArgument for what has no body.
    """
    check_at(request.at)
    if not 1 <= request.limit <= PAGE_MAX:
        message = f"a page of {request.limit} holds; 1 to {PAGE_MAX} are possible"
        raise InvalidArgument(message)
    if len(request.after) not in (0, _CURSOR_BYTES):
        message = "a cursor that no page answered"
        raise InvalidArgument(message)
    shard = txn.present
    found = resolve(shard, caller, 0, request.at)
    if is_directory(found.inode):
        message = "a directory has no generations"
        raise IsADirectory(message, hint="compare its snapshots: nokv diff")
    if not is_regular(found.inode):
        message = "only regular files have generations"
        raise InvalidArgument(message)
    need(found.inode, caller, R)
    file = _File(shard, caller, found)
    rows = [] if request.after else [*file.live(), *file.leased()]
    after = request.after
    for number, (view, version) in enumerate(_holds(txn, found.view, after)):
        if number == request.limit:
            return HistoryReply(tuple(rows), more=True, after=after)
        rows += file.shown(view, version)
        after = keys.pack2(view, version)
    return HistoryReply(tuple(rows), more=False, after=b"")


def _holds(txn: Txn, view: int, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield (view, pinned version) of all that may show the file, in order, behind the cursor."""
    first = keys.U64X2.unpack(after) if after else (-1, 0)
    for one, until in sorted(_lineage(txn, view).items()):
        for version in txn.present.pins(one):
            if version <= until and (one, version) > first:
                yield one, version


def _lineage(txn: Txn, view: int) -> dict[int, int]:
    """Return the views that a file of a view came through, with the last version that counts.

    Of an origin what came after the copy is another file's; but a rollback goes on with the file
    that it replaced, whatever became of that: also once the view is flattened, or a view that was
    replaced in between is gone.
    """
    found: dict[int, int] = {}
    latest: dict[tuple[int, int], int] = {}
    """Identity -> the newest of its views whose forerunners were added."""
    todo = [(view, PRESENT)]
    while todo:
        number, until = todo.pop()
        record = txn.view(number) if number else None
        if found.get(number, -1) >= until or (number and record is None):
            continue
        found[number] = until
        if record is None:
            continue
        is_rollback = record.identity not in ((0, 0), (number, record.root))
        if record.origin is not None:
            last = PRESENT if is_rollback else min(until, record.origin_version)
            todo.append((record.origin, last))
        if is_rollback and number > latest.get(record.identity, 0):
            latest[record.identity] = number
            todo.append((record.identity[0], PRESENT))
            todo += [(one, PRESENT) for one in _forerunners(txn, number, record.identity)]
    return found


def _forerunners(txn: Txn, number: int, identity: tuple[int, int]) -> Iterator[int]:
    """Yield the views that stood where a rollback put one, as far as their records are there.

    One at a time has an identity, and numbers grow: they are those of a lower number. `replaces`
    would lead no further than to a view that is gone.
    """
    for one in txn.views():
        record = txn.view(one) if one < number else None
        if record is not None and record.identity == identity:
            yield one


class _File:
    """A file, and what is shown of it."""

    def __init__(self, shard: Shard, caller: Caller, found: Found) -> None:
        self._shard = shard
        self._caller = caller
        self._view, self._ino, self._inode = found.view, found.ino, found.inode
        self._cluster_ns = counters_of(shard).cluster_ns
        self._snapshots: dict[int, tuple[str, Snapshot]] | None = None

    def live(self) -> Iterator[Showing]:
        """Yield what is there now."""
        holder = Holder(HolderKind.LIVE)
        yield self._showing(self._view, self._ino, 0, self._inode, (holder,))

    def leased(self) -> Iterator[Showing]:
        """Yield what sessions have open, where its record is still there."""
        for number, session in live_sessions_of(self._shard):
            for lease in session.leases:
                if (lease.view, lease.inode) != (self._view, self._ino):
                    continue
                source = PinnedSource(self._shard, lease.version, leased=True)
                inode = load_inode(source, lease.view, lease.inode)
                if inode is not None and inode.body == lease.body:
                    holder = Holder(HolderKind.LEASE, "", number)
                    yield self._showing(self._view, self._ino, lease.version, inode, (holder,))

    def shown(self, view: int, version: int) -> Iterator[Showing]:
        """Yield what one pin shows of the file."""
        source = PinnedSource(self._shard, version)
        for ino in self._inodes(source, view):
            inode = load_inode(source, view, ino)
            if inode is None or not is_regular(inode) or not inode.parent:
                continue
            if not may(inode, self._caller, R):
                continue
            holders = tuple(self._holders(source, view, version, ino, inode))
            if holders:
                yield self._showing(view, ino, version, inode, holders)

    def _inodes(self, source: Source, view: int) -> list[int]:
        """Return the file's own inode, and the one that stood at its name."""
        found = [self._ino]
        if self._inode.name:
            dentry = load_dentry(source, view, self._inode.parent, self._inode.name)
            if dentry is not None and dentry.view is None and dentry.inode != self._ino:
                found.append(dentry.inode)
        return found

    def _holders(
        self, source: Source, view: int, version: int, ino: int, inode: Inode
    ) -> Iterator[Holder]:
        """Yield who holds a version of a view, and shows the file there."""
        directories = {inode.parent}
        if inode.nlink > 1:
            directories.update(directory for directory, _ in names_inside(source, view, ino))
        above: set[int] = set()
        for directory in directories:
            above.update(takewhile(lambda one: one not in above, upwards(source, view, directory)))
        if root_of(source, view) not in above:
            return  # it lay in the trash
        prefix = keys.pack2(view, version)
        for _, value in self._shard.scan(Family.PIN, prefix, keys.after_prefix(prefix)):
            holder = self._holder(decode_pin(value), view, above)
            if holder is not None:
                yield holder

    def _holder(self, pin: Pin, view: int, above: set[int]) -> Holder | None:
        if pin.snapshot:
            name, snapshot = self._by_id().get(pin.snapshot, ("", None))
            if snapshot is None or is_over(snapshot, self._cluster_ns):
                return None
            inside = snapshot.view != view or snapshot.inode in above
            return Holder(HolderKind.SNAPSHOT, name) if inside else None
        if pin.clone:
            clone = self._shard.view(pin.clone)
            if clone is None or clone.root not in above:
                return None
            over = clone.dead and not self._shard.pins(pin.clone)
            return None if over else Holder(HolderKind.CLONE, "", pin.clone)
        if pin.session:
            return Holder(HolderKind.SESSION, "", pin.session)
        return Holder(HolderKind.BACKUP)

    def _by_id(self) -> dict[int, tuple[str, Snapshot]]:
        if self._snapshots is None:
            self._snapshots = {one.snapshot: (name, one) for name, one in snapshots_of(self._shard)}
        return self._snapshots

    def _showing(
        self, view: int, ino: int, version: int, inode: Inode, holders: tuple[Holder, ...]
    ) -> Showing:
        session, wall_ns = _published(self._shard, inode.generation)
        return Showing(
            view,
            ino,
            version,
            inode.generation,
            inode.size,
            inode.mtime_ns,
            inode.ctime_ns,
            inode.uid,
            inode.gid,
            inode.sha256,
            inode.body,
            holders,
            session,
            wall_ns,
        )


def _published(shard: Shard, generation: int) -> tuple[int, int]:
    """Return (session, wall time) of what made a generation, while its event is kept."""
    if generation <= 0:
        return 0, 0
    rows = shard.scan(Family.EVENT, keys.pack(generation), b"\xff" * 9)
    first = next(rows, None)
    if first is None:
        return 0, 0
    record = decode_events(first[1])
    kinds = (EventKind.PUBLISH, EventKind.SETATTR)
    for event in record.events:
        if event.version == generation and event.kind in kinds:
            return event.session, record.wall_ns
    return 0, 0


HANDLERS: dict[type, Callable[[Any, Caller, Any], Any]] = {History: history}
