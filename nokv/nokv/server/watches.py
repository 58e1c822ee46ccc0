"""Watches: events pushed to whoever watches a directory, right after the entry that made them.

A watch is *live* while it was told all that this node has applied, else it *lags*. The live ones
with one scope form a group: each record is decoded once, put into frames once a group, and the same
bytes go to all of its members. A watch whose client does not take them leaves its group with its
cursor, and no more than that is kept for it: it goes on from the stored events when it can. So
memory is bounded by the number of watches, whatever happens, and one mechanism serves resumed,
slow and late ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

import msgspec

from nokv.errors import (
    CursorTooOld,
    Internal,
    InvalidArgument,
    NokvError,
    NotReady,
    Overloaded,
    Stale,
)
from nokv.kv.errors import StoreDamaged, StoreFailed
from nokv.server.rpc import Call, Connection
from nokv.server.watch_frames import Frames
from nokv.server.watch_roots import Machine, Roots
from nokv.state.reads import too_old
from nokv.state.records import EventRecord, decode_events
from nokv.state.watching import Place, Scope, inodes_of, tell
from nokv.types.events import EventKind
from nokv.types.limits import UINT63_MAX
from nokv.types.values import At
from nokv.types.watch import (
    BOOKMARK_MS_MAX,
    BOOKMARK_MS_MIN,
    SINCE_NOW,
    WATCH_KINDS_MAX,
    WATCH_WINDOW_BYTES_MAX,
    WATCH_WINDOW_BYTES_MIN,
)
from nokv.wire.rpc import OpenWatch, WatchFrame, WatchOpened

log = logging.getLogger("nokv.watch")

WATCHES_MAX: Final = 4096
"""Open watches of a node; a further one is refused."""

PUSH_S: Final = 20e-6
"""About what sending a frame costs the loop, the write to its socket included."""

REST_PUSHES: Final = 64
"""After more frames in one turn than this, as much time goes to others before the next ones."""

DUE_MAX: Final = 256
"""Bookmarks of one tick; with WATCHES_MAX watches each still gets one in two seconds."""

SLICE_BYTES: Final = 128 * 1024
"""Stored events that are looked at before replication and requests get their turn."""

LOOK_BYTES: Final = 1024
"""A look at the state, or one watch's turn, takes about as long as so much of them."""

DECODED_BYTES: Final = 1024 * 1024
"""Stored bytes of records that stay decoded, for watches that lag a little; one may pass it."""

_encode: Final = msgspec.msgpack.Encoder().encode


def _decode(data: bytes) -> EventRecord:
    try:
        return decode_events(data)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"a stored record of events does not decode ({error})") from error


def _unknown_before(cursor: int, since: int) -> CursorTooOld:
    message = (
        f"what is watched came with the rollback of version {since}, and where it was before, at"
        f" cursor {cursor}, is not known: the oldest cursor that works is {since}"
    )
    error = CursorTooOld(message)
    error.oldest = since
    return error


class Watch:
    """One watch of one connection (`nokv.server.rpc.Stream`)."""

    __slots__ = ("_hub", "bookmark_s", "caller", "connection", "credit", "cursor", "due_s", "live",
                 "number", "root", "scope")  # fmt: skip

    def __init__(
        self,
        hub: Watches,
        call: Call,
        body: OpenWatch,
        roots: Sequence[Place],
        cursor: int,
        now_s: float,
    ) -> None:
        self._hub = hub
        self.connection: Connection = call.connection
        self.number = call.id
        """The request's id."""
        self.caller = body.caller
        self.root = roots[0]
        """Where the watched inode is now: changes with a rollback."""
        self.scope = Scope(frozenset(roots), body.recursive, frozenset(body.kinds))
        self.cursor = cursor
        """Told up to here, while it lags; a live one was told all up to the hub's head."""
        self.credit = body.window_bytes
        """Bytes that may be sent; the frame that makes it negative is the last one."""
        self.live = False
        self.bookmark_s = body.bookmark_ms / 1000
        self.due_s = now_s + self.bookmark_s
        """When the next bookmark goes out, and the root is looked at."""

    @property
    def ready(self) -> bool:
        """Whether something may be sent."""
        return self.credit > 0 and self.connection.writable

    def push(self, payload: bytes) -> None:
        """Send a frame."""
        self.credit -= len(payload)
        self.connection.push(self.number, payload)

    # nokv.server.rpc.Stream

    def grant(self, n_bytes: int) -> None:
        """Let so many more bytes be sent."""
        if n_bytes < 1 or self.credit + n_bytes > WATCH_WINDOW_BYTES_MAX:
            self._hub.end(self, InvalidArgument(f"a grant of {n_bytes} bytes"))
            return
        self.credit += n_bytes
        self._hub.resumed(self)

    def writable(self) -> None:
        """Go on where the connection was full."""
        self._hub.resumed(self)

    def ended(self) -> None:
        """Forget the watch."""
        self._hub.forget(self)


class _Group:
    """The live watches with one scope."""

    __slots__ = ("members", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.members: dict[Watch, None] = {}


class Watches:
    """All watches of one node. Belongs to the loop that steps the group.

    Args:
        machine: the state.
        between_entries: whether it may be read now.
    """

    def __init__(
        self,
        machine: Machine,
        between_entries: Callable[[], bool],
        *,
        limit: int = WATCHES_MAX,
    ) -> None:
        self._machine = machine
        self._roots = Roots(machine)
        self._between_entries = between_entries
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._all: dict[Watch, None] = {}
        self._groups: dict[Scope, _Group] = {}
        self._by_inode: dict[int, dict[_Group, None]] = {}
        self._ready: dict[Watch, None] = {}
        """Watches that lag and can be sent something, longest waiting first."""
        self.head = machine.version
        """Live watches were told everything up to here; never above the machine's version."""
        self._decoded: dict[int, tuple[int, EventRecord]] = {}
        """By key: (stored bytes, record), in the order of their decoding."""
        self._decoded_bytes = 0
        self._names: dict[tuple[Place, Place], bytes] = {}
        """What `_name_in` found during one slice: the state does not change meanwhile."""
        self._pump_due = False
        self._pushes = 0
        """Frames sent in this turn."""
        self._rest_until_s = 0.0
        """Nothing is sent before, in the loop's time."""
        self._closed = False
        self.opened_total = 0
        self.events_total = 0
        """Events put into frames, once for each group or lagging watch."""

    @property
    def count(self) -> int:
        """Open watches."""
        return len(self._all)

    @property
    def lagging(self) -> int:
        """Those that were not told everything that is applied here."""
        return sum(not watch.live for watch in self._all)

    # ------------------------------------------------------------ opening and ending

    @staticmethod
    def check(body: OpenWatch) -> None:
        """Raise InvalidArgument for what no state makes valid."""
        if not WATCH_WINDOW_BYTES_MIN <= body.window_bytes <= WATCH_WINDOW_BYTES_MAX:
            raise InvalidArgument(f"a window of {body.window_bytes} bytes")
        if not BOOKMARK_MS_MIN <= body.bookmark_ms <= BOOKMARK_MS_MAX:
            raise InvalidArgument(f"a bookmark every {body.bookmark_ms} ms")
        if not SINCE_NOW <= body.since <= UINT63_MAX:
            raise InvalidArgument(f"cursor {body.since}")
        if len(body.kinds) > WATCH_KINDS_MAX:
            raise InvalidArgument(f"{len(body.kinds)} kinds; the limit is {WATCH_KINDS_MAX}")

    def open(self, call: Call, body: OpenWatch) -> None:
        """Open a checked watch and answer; the state is at least as new as the request.

        Raises Overloaded, InvalidArgument for a cursor from the future, CursorTooOld, and the
        errors of resolving and reading the root.
        """
        if len(self._all) >= self._limit:
            raise Overloaded(f"{self._limit} watches are open at this node")
        attr = self._roots.find(body.caller, body.root)
        counters = self._machine.counters
        cursor = counters.version if body.since == SINCE_NOW else body.since
        if cursor > counters.version:
            message = f"cursor {cursor} is above the present version, {counters.version}"
            raise InvalidArgument(message, hint="a cursor is of one volume only")
        if cursor < counters.first_event:
            raise too_old(cursor, counters.first_event)
        place = attr.view, attr.inode
        before, since = self._roots.before(place)
        if cursor < since:
            raise _unknown_before(cursor, since)
        roots = [place, *before]
        watch = Watch(self, call, body, roots, cursor, self._loop.time())
        call.connection.open_stream(call, watch)
        self._all[watch] = None
        self.opened_total += 1
        call.answer(WatchOpened(attr.view, attr.inode, attr.mode >> 12, cursor))
        self.resumed(watch)

    def end(self, watch: Watch, error: NokvError) -> None:
        """Tell why a watch ends."""
        self.forget(watch)
        watch.connection.end_stream(watch.number, error)

    def forget(self, watch: Watch) -> None:
        """Drop every trace of a watch."""
        self._leave(watch, self.head)
        self._ready.pop(watch, None)
        self._all.pop(watch, None)

    def end_all(self, error: NokvError) -> None:
        """End every watch; their clients go on elsewhere from where they were."""
        for watch in list(self._all):
            self.end(watch, error)

    def close(self) -> None:
        """End every watch, and tell nothing more: the node stops."""
        self._closed = True
        self.end_all(NotReady("this node is stopping"))

    # ------------------------------------------------------------ groups

    def _join(self, watch: Watch) -> None:
        """Make a watch live: it was told everything up to the head."""
        assert watch.cursor == self.head, "a live watch with a gap"
        if len(watch.scope.roots) > 1 and self._roots.is_alive(watch.root):
            # What happened where it was before has been told.
            watch.scope = msgspec.structs.replace(watch.scope, roots=frozenset({watch.root}))
        group = self._groups.get(watch.scope)
        if group is None:
            group = self._groups[watch.scope] = _Group(watch.scope)
            for _, inode in watch.scope.roots:
                self._by_inode.setdefault(inode, {})[group] = None
        group.members[watch] = None
        watch.live = True
        self._ready.pop(watch, None)

    def _leave(self, watch: Watch, cursor: int) -> None:
        """Let a live watch lag from `cursor` on."""
        if not watch.live:
            return
        watch.live, watch.cursor = False, cursor
        group = self._groups[watch.scope]
        del group.members[watch]
        if not group.members:
            del self._groups[watch.scope]
            for inode in {inode for _, inode in watch.scope.roots}:
                mine = self._by_inode[inode]
                del mine[group]
                if not mine:
                    del self._by_inode[inode]

    def resumed(self, watch: Watch) -> None:
        """Note that a watch may be sendable again."""
        if not watch.live and watch in self._all and watch.ready:
            self._ready[watch] = None
            self._wake()

    # ------------------------------------------------------------ rollbacks

    def _follow(self, watch: Watch, record: EventRecord) -> None:
        """Let a lagging watch go where the record's rollbacks took its root."""
        for event in record.events:
            if event.kind != EventKind.ROLLBACK or event.version <= watch.cursor:
                continue
            place = self._roots.rolled_back(watch.root, event)
            if place is not None:
                assert event.inode_view is not None
                watch.root = place
                roots = watch.scope.roots | {place, (event.inode_view, place[1])}
                watch.scope = msgspec.structs.replace(watch.scope, roots=roots)

    def _let_lag(self, record: EventRecord, start: int) -> list[_Group]:
        """Let the watches lag whose root a rollback may have taken along: they look and follow."""
        found: list[_Group] = []
        for event in record.events:
            if event.kind != EventKind.ROLLBACK:
                continue
            for group in list(self._groups.values()):
                watches = list(group.members)
                if self._roots.may_concern(watches[0].root, event):
                    found.append(group)
                    for watch in watches:
                        self._leave(watch, start)
                        self.resumed(watch)
        return found

    # ------------------------------------------------------------ pumping

    def applied(self) -> None:
        """Note that an entry was applied to its end."""
        if self._all:
            self._wake()
        else:
            self.head = self._machine.version

    def state_replaced(self) -> None:
        """Note that an image took the place of the state."""
        self._decoded.clear()
        self._decoded_bytes = 0
        self.applied()

    def _wake(self) -> None:
        if self._pump_due or self._closed:
            return
        self._pump_due = True
        wait_s = self._rest_until_s - self._loop.time()
        if wait_s > 0:
            # So many watches of one busy directory that telling them would be all that is done.
            self._loop.call_later(wait_s, self._pump)
        else:
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send a slice of what is new, and of what lagging watches miss."""
        self._pump_due = False
        if self._closed or not self._between_entries():
            return  # the end of the entry wakes it
        self._names.clear()
        self._pushes = 0
        try:
            more = self._broadcast()
            left_bytes = SLICE_BYTES
            for watch in list(self._ready):
                looks = self._roots.looks
                left_bytes -= self._replay(watch, left_bytes)
                left_bytes -= (1 + self._roots.looks - looks) * LOOK_BYTES
                if left_bytes <= 0:
                    break
        except (StoreFailed, MemoryError, AssertionError):
            raise
        except Exception as error:
            # A defect costs the watches and not the node; their clients hear of it.
            log.exception("events could not be told")
            self.end_all(Internal(repr(error)[:500]))
            return
        if self._pushes > REST_PUSHES:
            self._rest_until_s = self._loop.time() + 2 * self._pushes * PUSH_S
        if more or self._ready:
            self._wake()

    def _name_in(self, place: Place, directory: Place) -> bytes:
        key = (place, directory)
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = self._machine.name_in(place, directory)
        return name

    def _rows(self, after: int) -> Iterator[tuple[int, int, EventRecord]]:
        """Yield (key, stored bytes, record), each record decoded once while it is new."""
        decoded = self._decoded
        for key, data in self._machine.event_rows(after):
            known = decoded.get(key)
            if known is None:
                known = decoded[key] = (len(data), _decode(data))
                self._decoded_bytes += len(data)
                while self._decoded_bytes > DECODED_BYTES and len(decoded) > 1:
                    self._decoded_bytes -= decoded.pop(next(iter(decoded)))[0]
            yield key, len(data), known[1]

    def _broadcast(self) -> bool:
        """Tell the live watches what is new; return whether there is more of it."""
        counters, start = self._machine.counters, self.head
        if start == counters.version:
            return False
        if start < counters.first_event:
            # An image of a much later state, say: nobody can be told what lies in between.
            for watch in [watch for group in self._groups.values() for watch in group.members]:
                self._leave(watch, start)
                self.resumed(watch)
        if not self._groups:
            self.head = counters.version
            return False
        frames: dict[_Group, Frames] = {}
        end, seen_bytes = counters.version, 0
        for key, size_bytes, record in self._rows(start):
            for group in self._let_lag(record, start):
                frames.pop(group, None)
            for group in self._touched(record):
                events = tell(record, group.scope, start, self._name_in)
                if events:
                    self.events_total += len(events)
                    frames.setdefault(group, Frames()).add(events, counters)
            seen_bytes += size_bytes
            if seen_bytes >= SLICE_BYTES:
                end = key
                break
        self.head = end
        for group, built in frames.items():
            built.cut(end, counters)
            for watch in list(group.members):
                self._send(watch, start, built.done)
                if built.removed:
                    watch.due_s = 0.0
        return end < counters.version

    def _touched(self, record: EventRecord) -> dict[_Group, None]:
        by_inode = self._by_inode
        touched = by_inode.keys() & set(inodes_of(record))
        return dict.fromkeys(chain.from_iterable(by_inode[inode] for inode in touched))

    def _send(self, watch: Watch, start: int, frames: list[tuple[int, bytes]]) -> None:
        """Send a live watch the frames after `start`; where it takes no more, it lags."""
        told = start
        for cursor, payload in frames:
            if not watch.ready:
                self._leave(watch, told)
                return
            watch.push(payload)
            self._pushes += 1
            told = cursor

    def _replay(self, watch: Watch, limit_bytes: int) -> int:
        """Tell a lagging watch a slice of what is stored; return the stored bytes looked at."""
        counters, head = self._machine.counters, self.head
        self._ready.pop(watch, None)
        if watch.cursor < counters.first_event:
            self.end(watch, too_old(watch.cursor, counters.first_event))
            return 0
        built, end, seen_bytes = Frames(), head, 0
        for key, size_bytes, record in self._rows(watch.cursor) if watch.cursor < head else ():
            if key > head:
                break
            self._follow(watch, record)
            events = tell(record, watch.scope, watch.cursor, self._name_in)
            self.events_total += len(events)
            built.add(events, counters)
            seen_bytes += size_bytes
            if seen_bytes >= limit_bytes or built.done:
                end = key
                break
        built.cut(end, counters)
        for cursor, payload in built.done:
            if not watch.ready:
                return seen_bytes
            watch.push(payload)
            self._pushes += 1
            watch.cursor = cursor
        # Opened at a version that the live ones were not told yet: it joins when they were.
        watch.cursor = max(watch.cursor, end)
        if watch.cursor == self.head:
            self._join(watch)
        elif watch.ready:
            self._ready[watch] = None
        return seen_bytes

    # ------------------------------------------------------------ bookmarks

    def tick(self, now_s: float, not_ready: str = "") -> None:
        """Send the bookmarks that are due, and look whether their roots may still be watched.

        `not_ready`: why this node can't promise to be up to date; its watches end.
        """
        if not_ready and self._all:
            self.end_all(NotReady(f"this node is not ready: {not_ready}"))
        if not self._between_entries():
            return
        settled = self.head == self._machine.version
        shared: dict[int, bytes] = {}
        due = (watch for watch in self._all if watch.due_s <= now_s)
        for watch in list(islice(due, DUE_MAX)):
            try:
                self._roots.root(watch.caller, At(*watch.root))
            except NokvError as error:
                # First a watch is told what happened before its directory went.
                if not isinstance(error, Stale) or (watch.live and settled):
                    self.end(watch, error)
                    continue
            watch.due_s = now_s + watch.bookmark_s
            cursor = self.head if watch.live else watch.cursor
            payload = shared.get(cursor)
            if payload is None:
                counters = self._machine.counters
                frame = WatchFrame(cursor, counters.version, counters.first_event)
                payload = shared[cursor] = _encode(frame)
            # No window holds it back: to a client that is slow it says how slow.
            if watch.connection.writable:
                watch.connection.push(watch.number, payload)
