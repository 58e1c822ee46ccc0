"""The collector and the sweep, stopped at every one of their external calls.

A story of publishes, copies, snapshots, failed uploads and ended sessions runs once with each
external call noted by its name and number. Then once for each of them and each way to fail there:
the process dies before the call or after it took effect, the call fails, its answer is lost, or the
worker is deposed there, and what it still does comes after all that the next leader's worker did.
After every call what must exist does; at the end the bucket has what is named and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from tests.unit.state.bodies import DAY_NS, GRACE_NS, Files
from tests.unit.state.shard import VOLUME, at

from nokv.errors import NokvError, ObjectStoreError, ObjectStoreUnavailable, Unavailable
from nokv.objects.layout import ObjectName, format_name, sums_of
from nokv.objects.memory import MemoryStore
from nokv.objects.port import LIST_NAMES_MAX, Data, Page
from nokv.server.collector import Collector
from nokv.server.volume_check import _named
from nokv.state.families import Family
from nokv.types.commands import (
    ExpireSession,
    LeaseUploads,
    Mkdir,
    Op,
    Publish,
    PublishMode,
    RemoveTree,
    SessionMarks,
    StageBegin,
    StageMode,
    StageSwap,
    Unlink,
)
from nokv.types.copies import Copy, CopyMode
from nokv.types.reads import Read
from nokv.types.results import Leased, Made
from nokv.types.values import At, ChunkMap, Extent, ObjectPart
from nokv.types.views import HELD, Clone, SnapshotCreate, SnapshotDelete

V = TypeVar("V")
DATA = b"0123456789"
LISTED_MAX = 2
"""Names of one page, so that a listing takes several calls."""


class Way(enum.Enum):
    """How a call goes wrong."""

    KILLED_BEFORE = "the process dies before it"
    KILLED_AFTER = "the process dies when it has taken effect"
    FAILS = "it fails"
    ANSWER_LOST = "it takes effect, and fails"
    DEPOSED = "it comes after all that the next leader's worker does"


class Killed(BaseException):
    """The process that made the call is gone."""


class Calls:
    """Every external call of one process, by name; one of them may go wrong."""

    def __init__(self, at_call: str = "", way: Way = Way.FAILS) -> None:
        self.names: list[str] = []
        self.at_call = at_call
        self.way = way
        self.met = False
        self.after_each: Callable[[], None] = lambda: None
        self.meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def make(self, name: str, call: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Make the call under its name, unless it is the one that goes wrong."""
        number = sum(one.startswith(f"{name} #") for one in self.names) + 1
        self.names.append(f"{name} #{number}")
        wrong = self.names[-1] == self.at_call and not self.met
        if wrong:
            self.met = True
            await self._before(name)
        value = await call()
        self.after_each()
        if wrong and self.way == Way.KILLED_AFTER:
            raise Killed
        if wrong and self.way == Way.ANSWER_LOST:
            raise self._error(name)
        return value

    async def _before(self, name: str) -> None:
        if self.way == Way.KILLED_BEFORE:
            raise Killed
        if self.way == Way.FAILS:
            raise self._error(name)
        if self.way == Way.DEPOSED and self.meanwhile is not None:
            await self.meanwhile()

    @staticmethod
    def _error(name: str) -> NokvError:
        in_store = name in ("put", "list", "delete")
        return ObjectStoreUnavailable(name) if in_store else Unavailable(name)


class CalledStore:
    """What a process sees of the store."""

    def __init__(self, store: MemoryStore, calls: Calls) -> None:
        self._store = store
        self._calls = calls

    async def put(self, name: str, data: Data) -> None:
        await self._calls.make("put", lambda: self._store.put(name, data))

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        page = min(limit, LISTED_MAX)
        return await self._calls.make("list", lambda: self._store.list(prefix, after, page))

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        return await self._calls.make("delete", lambda: self._store.delete(names))


class CalledNode:
    """What a process sees of its node."""

    def __init__(self, files: Files, calls: Calls) -> None:
        self._files = files
        self._calls = calls

    async def call(self, name: str, call: Callable[[], Coroutine[Any, Any, V]]) -> V:
        return await self._calls.make(name, call)

    async def read(self, request: Read, kind: type[V]) -> V:
        async def call() -> V:
            value = self._files.read(request)
            assert isinstance(value, kind)
            return value

        return await self._calls.make(f"read {type(request).__name__}", call)

    async def run(self, op: Op) -> Any:
        async def call() -> object:
            return self._files.internal(op)

        return await self._calls.make(f"run {type(op).__name__}", call)


class Story:
    """The volume, its bucket, and who works on it."""

    def __init__(self, calls: Calls) -> None:
        self.files = Files()
        self.store = MemoryStore()
        self.calls = calls
        self.calls.after_each = self.nothing_lost
        self.calls.meanwhile = self.next_leader
        self.worker = self.new_worker(calls)

    def new_worker(self, calls: Calls) -> Collector:
        node, store = CalledNode(self.files, calls), CalledStore(self.store, calls)
        return Collector(node, store, volume=VOLUME.volume, grace_ns=GRACE_NS)  # type: ignore[arg-type]

    def nothing_lost(self) -> None:
        """What a record names that is not over exists."""
        for obj, needed in _named(self.files.machine._txn.present):
            assert not needed or self.name(*_parts(obj)) in self.store.names, obj

    def name(
        self, session: int, upload: int, chunk: int = 0, block: int = 0, piece: int = 0
    ) -> str:
        return format_name(ObjectName(VOLUME.volume, 0, session, upload, chunk, block, piece))

    # -------------------------------------------------------------- the client

    async def stage(self, session: int, name: bytes) -> None:
        """Build a tree out of sight and swap it in, as a publish of a directory does."""
        node = CalledNode(self.files, self.calls)
        made = self.files.do(StageBegin(0, 0o040755), session=session)
        assert isinstance(made, Made)
        root = made.attr.inode
        for file in (b"x", b"y"):
            await self.write(session, file.decode(), 1, At(0, root))
        swap = StageSwap(0, root, at(), name, StageMode.REPLACE)
        with contextlib.suppress(Killed, NokvError):  # its outcome is open
            await node.call("propose StageSwap", lambda: self.propose(swap, session))

    async def write(
        self, session: int, path: str, blocks: int = 2, parent: At | None = None
    ) -> None:
        """Upload and publish as a client does; a client that dies leaves its session to expire."""
        store, node = CalledStore(self.store, self.calls), CalledNode(self.files, self.calls)
        leased = self.files.do(LeaseUploads(1), session=session)
        assert isinstance(leased, Leased)
        upload = leased.first
        try:
            for block in range(blocks):
                await store.put(self.name(session, upload, 0, block), DATA)
            parts = tuple(ObjectPart(0, b, 0, len(DATA), sums_of(DATA)) for b in range(blocks))
            extents = tuple(Extent(b * len(DATA), len(DATA), b) for b in range(blocks))
            above, _, last = path.rpartition("/")
            op = Publish(
                parent or at(above),
                last.encode(),
                PublishMode.REPLACE,
                0o644,
                blocks * len(DATA),
                upload,
                (ChunkMap(0, parts, extents),),
            )
            await node.call("propose Publish", lambda: self.propose(op, session))
        except (Killed, NokvError):
            pass  # its outcome is open: it is settled by the session's end

    async def propose(self, op: Op, session: int) -> object:
        return self.files.do(op, session=session)

    # -------------------------------------------------------------- the worker

    async def work(self) -> None:
        """Collect and sweep; a process that died or failed is followed by the next one."""
        while True:
            try:
                await self.worker.collect()
                await self.worker.sweep()
            except Killed:
                self.worker = self.new_worker(self.calls)
            except NokvError:
                continue
            else:
                return

    async def next_leader(self) -> None:
        """Another node leads for days, and its worker does everything there is to do."""
        quiet = Calls()
        quiet.after_each = self.nothing_lost
        worker = self.new_worker(quiet)
        session = self.files.session
        calls, self.calls = self.calls, quiet
        await self.write(session, "by-the-next", 1)
        await self.write(session, "by-the-next", 1)
        self.calls = calls
        for _ in range(3):
            self.files.reap()
            self.files.raise_floor()
            self.files.wait(GRACE_NS + DAY_NS)
            await worker.collect()
            await worker.sweep()


def _parts(obj: Any) -> tuple[int, int, int, int, int]:
    return obj.session, obj.upload, obj.chunk, obj.block, obj.piece


async def tell(story: Story) -> None:
    """Everything that makes work for the collector and the sweep."""
    files = story.files
    me, other = files.session, files.open(b"\x02" * 16)
    files.do(Mkdir(at(), b"d", 0o755))
    await story.write(me, "d/f")
    await story.write(me, "d/f", 1)
    await story.write(me, "d/g", 3)
    await story.write(other, "d/lost", 1)
    await story.stage(me, b"tree")
    await story.stage(me, b"tree")
    left = files.do(StageBegin(0, 0o040755), session=other)
    assert isinstance(left, Made)
    await story.write(other, "never-seen", 1, At(0, left.attr.inode))
    if files.machine.version and _exists(files, "d/g"):
        files.do(Copy(at("d/g"), at(), b"copy", CopyMode.CREATE, 0o644))
    files.do(SnapshotCreate(at("d"), "s", b"/d", HELD))
    files.do(Clone(at("d"), at(), b"clone", "s"))
    await story.write(me, "clone/f", 1)
    await story.write(me, "d/g", 1)
    given_up = files.upload()
    await story.store.put(story.name(me, given_up), DATA)
    files.internal(SessionMarks((files.marks(1, watermark=given_up + 1),)))
    late = files.upload(session=other)
    files.internal(ExpireSession(other))
    settle(story)
    await story.work()
    if files.machine.marks_of(other) is not None:  # else days have gone by: no PUT takes so long
        await story.store.put(story.name(other, late), DATA)
    if _exists(files, "d/f"):
        files.do(Unlink(at("d"), b"f"))
    if _exists(files, "copy"):
        files.do(Unlink(at(), b"copy"))
    files.do(SnapshotDelete("s"))
    settle(story)
    await story.work()
    files.do(RemoveTree(at(), b"clone"))
    if _exists(files, "tree"):
        files.do(RemoveTree(at(), b"tree"))
    files.do(RemoveTree(at(), b"d"))
    settle(story, DAY_NS)
    await story.work()
    settle(story)
    await story.work()


def settle(story: Story, more_ns: int = 0) -> None:
    """Background work is done, nobody reads the past, and the grace is over."""
    story.files.reap()
    story.files.raise_floor()
    story.files.wait(GRACE_NS + more_ns + 1)


def _exists(files: Files, path: str) -> bool:
    try:
        files.stat(path)
    except NokvError:
        return False
    return True


async def rest(story: Story) -> None:
    """After quiescence the bucket has what is named, and nothing waits."""
    files = story.files
    for _ in range(4):
        settle(story)
        await story.work()
    # What clients that died have left of the live session goes with it, staged trees too.
    for session, _ in files.machine.live_sessions():
        files.internal(ExpireSession(session))
    files.reap()
    files.wait(DAY_NS + GRACE_NS)
    await story.work()
    await story.work()
    files.reap()
    assert set(story.store.names) == {story.name(*name) for name in files.named()}
    assert not files.count(Family.DROP)
    assert not files.count(Family.REF)
    assert not files.count(Family.SESSION)
    files.check()


def clean_run() -> list[str]:
    story = Story(Calls())
    asyncio.run(tell(story))
    names = list(story.calls.names)
    asyncio.run(rest(story))
    assert not story.files.named()
    return names


NAMES = clean_run()


def test_the_story_makes_every_kind_of_call() -> None:
    kinds = {name.partition(" #")[0] for name in NAMES}
    assert kinds == {
        "put",
        "propose Publish",
        "propose StageSwap",
        "read GetDrops",
        "delete",
        "run Collected",
        "read ListSessions",
        "list",
        "run Swept",
    }
    assert len(NAMES) > 40


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("name", NAMES)
def test_at_every_call(name: str, way: Way) -> None:
    story = Story(Calls(name, way))
    asyncio.run(tell(story))
    assert story.calls.met
    asyncio.run(rest(story))
