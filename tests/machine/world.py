"""The model and the state machine side by side: apply to both, compare everything they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import msgspec

from nokv.errors import BY_CODE, NameTooLong, NokvError
from nokv.state import invariants, keys
from nokv.state.context import load_inode
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.port import KV
from nokv.state.records import Position, body_of, decode_chunk
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.limits import PAGE_MAX
from nokv.types.results import AtomicDone, Reaped, Result
from nokv.types.values import ROOT_INODE, ROOT_VIEW, At, Attr, Caller, FileType
from nokv.wire.codec import encode_command, result_codec
from nokv_model.body import Content, ObjectName, effective, objects_of, runs_of_stored, window
from nokv_model.model import Model
from nokv_model.tree import Inode, Tree, file_type

ROOT = Caller()
GRACE_NS = 3_600_000_000_000
REAP_LIMIT = 1_000
SETTLE_MAX = 200
"""Steps of background work after which a small world must be quiet."""


def internal(op: c.Op) -> c.Command:
    """A command of the node itself."""
    return c.Command(c.COMMAND_FORMAT, 0, 0, 0, ROOT, op)


def rows(kv: KV, family: Family) -> Iterator[tuple[bytes, bytes]]:
    """Every row of a family."""
    return kv.scan(family, b"", b"\xff" * 512)


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
        self.model = Model()
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
        assert _same_outcome(want.code, have.code), f"another outcome for {context}"
        assert want.version == have.version, f"another version for {context}"
        if isinstance(want.value, Reaped):
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
        """Which of a file's directories is its parent is open, and so is when the reaper comes."""
        if file_type(attr.mode) != FileType.DIRECTORY:
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
        assert _same_outcome(code, state_code), (
            f"another outcome for {caller} {request}: model/state {names}"
        )
        if not code and isinstance(request, r.ReadDir) and request.at_version:
            # Pages of a pin are bounded by the names examined: only all of them together are given.
            want = self.model.read(caller, msgspec.structs.replace(request, limit=PAGE_MAX))
            have = self._pages(caller, request)
        if not code:
            assert self._plain_reply(want, request) == self._plain_reply(have, request), (
                f"another reply for {caller} {request}\nmodel: {want}\nstate: {have}"
            )
        return code

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
                after = b"" if request.at_version else reply.after
                return entries, reply.more, self.plain_attr(reply.directory), after
            case r.BodyMapReply() if isinstance(request, r.BodyMap):
                shown = window(content_of(reply), request.offset, request.offset + request.length)
                return self.plain_attr(reply.attr), effective(shown), reply.next_chunk
            case r.EventsReply():
                events = tuple(self.plain_event(event) for event in reply.events)
                return events, reply.cursor, reply.more
            case r.StatFsReply() if not self.settled:
                return None
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
        invariants.check(self.kv)
        state = self.model.state
        self._compare_tree(state.tree, r.PRESENT)
        for (_, version, _), (_, tree) in state.pins.items():
            self._compare_tree(tree, version)
        self.read(ROOT, r.StatFs())
        for inode in state.tree.inodes.values():
            if inode.is_directory and not state.tree.owner_session(inode):
                self.read(ROOT, r.GetUsage(At(ROOT_VIEW, inode.number)))
        self.read(ROOT, r.ReadEvents(state.first_event, 1_000))
        self.read(ROOT, r.ListSessions(0, 1_000))
        self._compare_objects()

    def _compare_tree(self, tree: Tree, version: int) -> None:
        """Compare by path; and by handle, which is refused below DEPTH_MAX directories."""
        pending: list[tuple[int, tuple[bytes, ...]]] = [(ROOT_INODE, ())]
        while pending:
            number, path = pending.pop()
            inode, at = tree.inodes[number], At(ROOT_VIEW, ROOT_INODE, path, follow=False)
            self.read(ROOT, r.GetAttr(At(ROOT_VIEW, number), version))
            self._compare_xattrs(at, inode, version)
            if inode.is_directory:
                self.read(ROOT, r.ReadDir(at, b"", 1_000, plus=True, at_version=version))
                pending += [(child, (*path, name)) for name, child in inode.entries.items()]
            else:
                self._compare_file(at, inode, version)

    def _compare_file(self, at: At, inode: Inode, version: int) -> None:
        parent = self.ask(r.GetAttr(at, version)).attr.parent
        unreaped = inode.number in self.model.state.loosened and (version or not self.settled)
        named_by = {directory for directory, _ in inode.names}
        assert unreaped or parent in named_by, f"{parent} names no {at}"
        if inode.is_symlink:
            self.read(ROOT, r.ReadLink(at, version))
        elif inode.is_regular:
            self.read(ROOT, r.BodyMap(at, 0, inode.size, version))

    def _compare_xattrs(self, at: At, inode: Inode, version: int) -> None:
        self.read(ROOT, r.ListXattr(at, version))
        for name in inode.xattrs:
            self.read(ROOT, r.GetXattr(at, name, version))

    # ------------------------------------------------------------------ objects

    def _compare_objects(self) -> None:
        must = self.model.state.named_objects()
        named = self.stored_objects()
        assert must <= named, f"objects that no record names: {must - named}"
        assert not must & self.deleted, f"objects deleted too early: {must & self.deleted}"

    def stored_objects(self) -> set[ObjectName]:
        """Every object that some chunk record names, live or historic."""
        found: set[ObjectName] = set()
        for _, value in rows(self.kv, Family.CHUNK):
            found |= objects_of(runs_of_stored(0, decode_chunk(body_of(value))))
        for key, value in rows(self.kv, Family.HISTORY):
            if keys.history_parts(key)[0] == Family.CHUNK:
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
        tree = self.model.state.tree
        for number in self.model.state.loosened & set(tree.inodes):
            record = load_inode(self.kv, ROOT_VIEW, number)
            assert record is not None
            assert record.nlink == len(tree.inodes[number].names), f"link count of {number}"
        inodes = {keys.U64X2.unpack(key)[1] for key, _ in rows(self.kv, Family.INODE)}
        assert inodes == set(tree.inodes), f"inodes {inodes ^ set(tree.inodes)}"
        names = {
            (keys.U64X2.unpack(key[:16])[1], key[16:]) for key, _ in rows(self.kv, Family.DENTRY)
        }
        assert names == {name for inode in tree.inodes.values() for name in inode.names}
        kept = {
            (int.from_bytes(key[:8], "big"), int.from_bytes(key[9:], "big"))
            for key, _ in rows(self.kv, Family.SESSION)
            if key[8:9] == keys.RESULT and int.from_bytes(key[:8], "big")
        }
        want = set(self.model.results.kept)
        assert kept == want, f"result rows {sorted(kept ^ want)}"

    @recorded
    def finish(self) -> None:
        """End every session, reap, wait and collect: exactly what is named is stored."""
        live = [s.number for s in self.model.state.sessions.values() if not s.died]
        if live:
            self.apply([internal(c.ExpireSession(number)) for number in live])
        self.settle()
        self.apply([internal(c.Checkpoint(1))], cluster_step=2 * GRACE_NS)
        for _ in range(SETTLE_MAX):
            if not self.collect(limit=3):
                break
            self.settle()
        self.compare()
        self.compare_quiet()
        assert self.stored_objects() == self.model.state.named_objects()
        for family in (Family.HISTORY, Family.RECLAIM, Family.DROP, Family.TOUCHED, Family.PIN):
            left = list(rows(self.kv, family))
            assert not left, f"rows left in {family.name}: {left[:3]}"


OF_INODE = frozenset({5, 6, 7})
"""Kinds of events that tell of an inode and not of a name: publish, setattr, xattr."""


def content_of(reply: r.BodyMapReply) -> Content:
    """The runs of a body map."""
    return tuple(run for at in reply.chunks for run in runs_of_stored(at.index, at.chunk))


def _outcome(read: Callable[[], Any]) -> tuple[int, Any]:
    try:
        return 0, read()
    except NokvError as error:
        return error.code, None


def _same_outcome(want: int, have: int) -> bool:
    """Too deep is said when a walk up finds it: which other error it comes before is open."""
    return want == have or (want != 0 != have and NameTooLong.code in {want, have})


def _name(code: int) -> str:
    return BY_CODE[code].__name__ if code in BY_CODE else "success"


def _brief(result: Result) -> str:
    return f"{_name(result.code)} @{result.version} {result.value}"
