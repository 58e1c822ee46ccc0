"""The model and the state machine side by side: apply to both, compare everything they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import msgspec
from tests.machine import comparing
from tests.machine.replay import ObservedModel

from nokv.errors import (
    BY_CODE,
    NameTooLong,
    NokvError,
    NotFound,
    NotPermitted,
    QuotaExceeded,
    Stale,
)
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.port import KV
from nokv.state.records import Position, body_of, decode_chunk, is_whiteout
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.limits import PAGE_MAX
from nokv.types.results import AtomicDone, Reaped, Result
from nokv.types.trash import EmptyTrash, ExpireTrash
from nokv.types.values import Attr, Caller, FileType
from nokv.types.views import ExpireSnapshots, SnapshotReply, SnapshotsReply, ViewReply, ViewsReply
from nokv.wire.codec import encode_command, result_codec
from nokv_model.body import Content, ObjectName, effective, objects_of, runs_of_stored, window
from nokv_model.tree import file_type

ROOT = Caller()
GRACE_NS = 3_600_000_000_000
REAP_LIMIT = 1_000
SETTLE_MAX = 200
"""Steps of background work after which a small world must be quiet."""


def internal(op: c.Op) -> c.Command:
    """A command of the node itself."""
    return c.Command(c.COMMAND_FORMAT, 0, 0, 0, ROOT, op)


F = TypeVar("F", bound=Callable[..., Any])


def recorded(method: F) -> F:
    """Note the outermost calls of a world, so that a failure can be replayed and made smaller."""

    @wraps(method)
    def call(self: World, *arguments: Any, **named: Any) -> Any:
        if self.depth == 0:
            self.actions.append((method.__name__, arguments, named))
        self.depth += 1
        try:
            return method(self, *arguments, **named)
        except BaseException:
            self.failed = True
            raise
        finally:
            self.depth -= 1

    return call  # type: ignore[return-value]


Action = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A method of a world and its arguments."""


@dataclass
class Applied:
    """An entry of the log, with what it answered."""

    position: Position
    wall_ns: int
    cluster_ns: int
    payloads: list[bytes]
    results: list[bytes]


class World:
    """One shard twice. `crash` loses what was not committed and replays the log's tail."""

    def __init__(self, kv: Any, reopen: Callable[[Any], Any]) -> None:
        self.kv = kv
        self._reopen = reopen
        """Crashes the store and returns it as it comes back."""
        self.model = ObservedModel()
        self.machine = StateMachine(kv)
        self.log: list[Applied] = []
        self.index = 0
        self.wall_ns = 10**18
        self.cluster_ns = 0
        self.settled = True
        """Nothing that was detached waits for the reaper."""
        self.folder: Any = None
        """Where the store lies, if it does: lives as long as the world."""
        self.actions: list[Action] = []
        self.failed = False
        self.depth = 0
        """Of the recorded method that runs; 0 between them."""
        self.deleted: set[ObjectName] = set()
        """Objects that a collector was told to delete."""

    def close(self) -> None:
        """Let the store go."""
        close = getattr(self.kv, "close", None)
        if close is not None:
            close()
        if self.folder is not None:
            self.folder.cleanup()

    # ------------------------------------------------------------------ applying

    @recorded
    def apply(
        self, commands: list[c.Command], *, wall_step: int = 1, cluster_step: int = 1
    ) -> list[Result]:
        """Apply one entry to both; return the results, on which they agree."""
        self.wall_ns += wall_step
        self.cluster_ns += cluster_step
        self.index += 1
        position = Position(self.index, 1, b"")
        payloads = [encode_command(command) for command in commands]
        answers = list(self.machine.apply(position, self.wall_ns, self.cluster_ns, payloads))
        self.log.append(Applied(position, self.wall_ns, self.cluster_ns, payloads, answers))
        self.settled = self.settled and not self.machine.pending_work()
        expected = self.model.apply(self.wall_ns, self.cluster_ns, commands)
        got = [result_codec.decode(answer) for answer in answers]
        assert len(got) == len(expected)
        for command, want, have in zip(commands, expected, got, strict=True):
            self._compare_result(command, want, have)
        assert self.model.version == self.machine.version
        return got

    def internal(self, op: c.Op) -> Result:
        """Apply one command of the node itself."""
        return self.apply([internal(op)])[0]

    @recorded
    def commit(self) -> None:
        """Make everything so far durable."""
        assert self.machine.commit() == self.index
        self.log.clear()

    @recorded
    def crash(self) -> None:
        """Lose what was not committed, start again, and replay: the same answers, same state."""
        fingerprint = self.machine.fingerprint()
        self.kv = self._reopen(self.kv)
        self.machine = StateMachine(self.kv)
        assert self.machine.applied().index == self.index - len(self.log)
        for entry in self.log:
            results = list(
                self.machine.apply(entry.position, entry.wall_ns, entry.cluster_ns, entry.payloads)
            )
            assert results == entry.results, "a replay answers otherwise"
        assert self.machine.fingerprint() == fingerprint

    def _compare_result(self, command: c.Command, want: Result, have: Result) -> None:
        context = f"{command}\nmodel: {_brief(want)}\nstate: {_brief(have)} {have.message}"
        same = _same_outcome(want.code, have.code)
        if isinstance(command.op, c.UnpinView) and {want.code, have.code} == NOT_OWN_PIN:
            same = len(self.model.state.views) > 1 or bool(self.model.state.snapshots)
        assert same, f"another outcome for {context}"
        assert want.version == have.version, f"another version for {context}"
        if isinstance(want.value, Reaped) and not isinstance(command.op, OF_TRASH):
            return
        assert self._plain(want.value) == self._plain(have.value), f"another value for {context}"

    # ------------------------------------------------------------------ what is left open

    def _plain(self, value: Any) -> Any:
        """A value without what docs/namespace.md leaves open."""
        if isinstance(value, AtomicDone):
            return (value.first_version, tuple(self._plain(inner) for inner in value.values))
        attr = getattr(value, "attr", None)
        if isinstance(attr, Attr):
            return msgspec.structs.replace(value, attr=self.plain_attr(attr))
        return value

    def plain_attr(self, attr: Attr) -> Attr:
        """Open are which directory is the parent of a file or root, and when the reaper comes."""
        view = self.model.state.views.get(attr.view)
        root = view is not None and attr.inode == view.root
        if root or file_type(attr.mode) != FileType.DIRECTORY:
            attr = msgspec.structs.replace(attr, parent=0)
        if attr.inode in self.model.state.loosened:
            attr = msgspec.structs.replace(attr, nlink=0, ctime_ns=0, version=0)
        return attr

    # ------------------------------------------------------------------ reads

    @recorded
    def read(self, caller: Caller, request: r.Read) -> int:
        """Read from both and compare; return the error code that both gave, or 0."""
        code, want = _outcome(lambda: self.model.read(caller, request))
        state_code, have = _outcome(lambda: self.machine.read(caller, request)[1])
        names = f"{_name(code)} / {_name(state_code)}"
        if state_code == Stale.code and _may_climb(request):
            return code
        assert _same_outcome(code, state_code), (
            f"another outcome for {caller} {request}: model/state {names}"
        )
        if not code and isinstance(request, r.ReadDir) and self._paged(request):
            # Pages are bounded by the names examined: only all of them together are given.
            want = self.model.read(caller, msgspec.structs.replace(request, limit=PAGE_MAX))
            have = self._pages(caller, request)
        if not code:
            plain = self._plain_reply(want, request), self._plain_reply(have, request)
            assert plain[0] == plain[1], (
                f"another reply for {caller} {request}\n{_differing(*plain)}"
            )
        return code

    def _paged(self, request: r.ReadDir) -> bool:
        """Say whether names may be examined that are not shown: at a pin, or in a clone."""
        return bool(request.at_version) or len(self.model.state.views) > 1

    def _pages(self, caller: Caller, request: r.ReadDir) -> r.DirPage:
        """Every page of a listing as one."""
        entries: list[r.DirEntry] = []
        while True:
            page = self.machine.read(caller, request)[1]
            assert isinstance(page, r.DirPage)
            assert len(page.entries) <= request.limit
            assert page.after > request.after or not page.more, "a cursor that stands still"
            entries += page.entries
            if not page.more:
                after = entries[-1].name if entries else page.after
                return msgspec.structs.replace(page, entries=tuple(entries), after=after)
            request = msgspec.structs.replace(request, after=page.after)

    def ask(self, request: r.Read) -> Any:
        """Read from the state machine alone."""
        return self.machine.read(ROOT, request)[1]

    def _plain_reply(self, reply: Any, request: r.Read) -> Any:
        match reply:
            case r.AttrReply():
                return self.plain_attr(reply.attr)
            case r.DirPage() if isinstance(request, r.ReadDir):
                entries = [
                    (e.name, e.inode, e.file_type, e.view, e.attr and self.plain_attr(e.attr))
                    for e in reply.entries
                ]
                after = b"" if self._paged(request) else reply.after
                return entries, reply.more, self.plain_attr(reply.directory), after
            case r.BodyMapReply() if isinstance(request, r.BodyMap):
                shown = window(content_of(reply), request.offset, request.offset + request.length)
                return self.plain_attr(reply.attr), effective(shown), reply.next_chunk
            case r.EventsReply():
                events = tuple(self.plain_event(event) for event in reply.events)
                return events, reply.cursor, reply.more
            case r.StatFsReply() if not self.settled or len(self.model.state.views) > 1:
                return None  # what a view inherits is counted when it is written
            case SnapshotReply():
                return _plain_snapshot(reply)
            case SnapshotsReply():
                return [_plain_snapshot(row) for row in reply.rows], reply.more
            case ViewsReply():
                return [_plain_view(row) for row in reply.rows if row.view and not row.dead]
            case _:
                return reply

    def plain_event(self, event: r.Event) -> r.Event:
        """Which name of a file with several an event of the file gives is open."""
        if event.inode in self.model.state.linked and event.kind in OF_INODE:
            return msgspec.structs.replace(event, chain=(), name=b"")
        return event

    # ------------------------------------------------------------------ whole comparisons

    @recorded
    def compare(self) -> None:
        """Compare everything that both show, at present and at every pin."""
        comparing.compare(self)

    # ------------------------------------------------------------------ objects

    def rows(self, family: Family) -> Iterator[tuple[bytes, bytes]]:
        """Every row of a family."""
        kv: KV = self.kv
        return kv.scan(family, b"", b"\xff" * 512)

    def stored_objects(self) -> set[ObjectName]:
        """Every object that some chunk record names, live or historic."""
        found: set[ObjectName] = set()
        for _, value in self.rows(Family.CHUNK):
            if not is_whiteout(value):
                found |= objects_of(runs_of_stored(0, decode_chunk(body_of(value))))
        for key, value in self.rows(Family.HISTORY):
            if keys.history_parts(key)[0] == Family.CHUNK and not is_whiteout(value):
                found |= objects_of(runs_of_stored(0, decode_chunk(body_of(value))))
        return found

    @recorded
    def collect(self, *, limit: int = REAP_LIMIT) -> bool:
        """Ask what may be deleted, check it, delete it and tell the log; say whether there was."""
        reply = self.ask(r.GetDrops(0, limit, GRACE_NS))
        may = self.model.state.droppable(self.cluster_ns, GRACE_NS)
        for drop in reply.drops:
            objects = {
                ObjectName(o.session, o.upload, o.chunk, o.block, o.piece) for o in drop.objects
            }
            assert objects <= may, f"unsafe drops: {objects - may}"
            self.deleted |= objects
        done = tuple((drop.drop, drop.through) for drop in reply.drops)
        if done:
            self.apply([internal(c.Collected(done))])
        return bool(done)

    @recorded
    def settle(self) -> None:
        """Run background work until there is none."""
        for _ in range(SETTLE_MAX):
            [result] = self.apply([internal(c.Reap(REAP_LIMIT))])
            assert isinstance(result.value, Reaped)
            if not result.value.more:
                assert not self.machine.pending_work()
                self.settled = True
                return
        message = "background work without end"
        raise AssertionError(message)

    @recorded
    def compare_quiet(self) -> None:
        """Compare what only a settled state must show: link counts, and no row too many."""
        assert self.settled
        comparing.compare_quiet(self)

    @recorded
    def finish(self) -> None:
        """End every session, reap, wait and collect: exactly what is named is stored.

        Then let every snapshot and view go: exactly the live tree is left.
        """
        self.expire()
        self.drain()
        comparing.compare_stored(self)
        if comparing.remove_views(self):
            self.drain()
            comparing.compare_bare(self)

    def expire(self) -> None:
        """End every session."""
        live = [s.number for s in self.model.state.sessions.values() if not s.died]
        if live:
            self.apply([internal(c.ExpireSession(number)) for number in live])

    def drain(self) -> None:
        """Reap, let the grace and leases pass, and collect until nothing is left to do."""
        self.settle()
        self.apply([internal(ExpireSnapshots(REAP_LIMIT))], cluster_step=2 * GRACE_NS)
        self.settle()
        for _ in range(SETTLE_MAX):
            if not self.collect(limit=3):
                return
            self.settle()
        message = "collecting without end"
        raise AssertionError(message)


OF_TRASH = (EmptyTrash, ExpireTrash)
"""What counts what the namespace shows."""

FOUND_ABOVE = {NameTooLong.code, QuotaExceeded.code}
"""Errors of the directories above."""

NOT_OWN_PIN = {NotFound.code, NotPermitted.code}
"""Which one a pin that views and snapshots hold among themselves gives is open."""

OF_INODE = frozenset({5, 6, 7})
"""Kinds of events that tell of an inode and not of a name: publish, setattr, xattr."""


def _differing(want: Any, have: Any) -> str:
    """Show what differs: of two sequences only those items."""
    if isinstance(want, (tuple, list)) and len(want) == len(have):
        pairs = [(a, b) for a, b in zip(want, have, strict=True) if a != b]
        return "\n".join(_differing(a, b) for a, b in pairs)
    if isinstance(want, (tuple, list)) and isinstance(have, (tuple, list)):
        want, have = [a for a in want if a not in have], [b for b in have if b not in want]
    return f"model: {want}\nstate: {have}"


def _plain_snapshot(reply: SnapshotReply) -> SnapshotReply:
    """Without what is open: what still depends on it, after others were flattened or skipped."""
    return msgspec.structs.replace(reply, clones=0, clone_paths=(), alone_bytes=0)


def _plain_view(row: ViewReply) -> ViewReply:
    """Without what is open: where a lookup goes on that finds nothing in the view itself."""
    last = row.path.rsplit(b"/", 1)[-1]  # what stands before it is cut where it lies too deep
    return msgspec.structs.replace(
        row, origin=0, origin_version=0, depth=0, path=last, origin_path=b""
    )


def content_of(reply: r.BodyMapReply) -> Content:
    """The runs of a body map."""
    return tuple(run for at in reply.chunks for run in runs_of_stored(at.index, at.chunk))


def _outcome(read: Callable[[], Any]) -> tuple[int, Any]:
    try:
        return 0, read()
    except NokvError as error:
        return error.code, None


def _may_climb(request: Any) -> bool:
    """Whether an address may lead up from a view's root at a version.

    Where it led then is not known if the view has been moved since.
    """
    at = getattr(request, "parent", None) or getattr(request, "at", None)
    return bool(at and at.view and at.path and getattr(request, "at_version", 0))


def _same_outcome(want: int, have: int) -> bool:
    """Which error wins over those that are said when a walk up finds them is open."""
    return want == have or (want != 0 != have and bool(FOUND_ABOVE & {want, have}))


def _name(code: int) -> str:
    return BY_CODE[code].__name__ if code in BY_CODE else "success"


def _brief(result: Result) -> str:
    return f"{_name(result.code)} @{result.version} {result.value}"
