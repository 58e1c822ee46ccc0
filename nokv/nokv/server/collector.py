"""The collector: objects whose holds are all safe, and uploads that nobody can publish any more.

Objects go first, then the rows that name them; a crash in between repeats deletions only. A sweep
judges an object by its session's record alone, read before the listing begins: dead stays dead, a
watermark never falls, and what is below it and was not published never will be. What is named by
no session that is known is nobody's business here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from nokv.errors import InvalidArgument, ObjectStoreError
from nokv.objects.layout import ObjectName, format_name, parse_name, session_prefix
from nokv.objects.port import DELETE_NAMES_MAX, LIST_NAMES_MAX, ObjectInfo, ObjectStore
from nokv.server.datadir import SHARD
from nokv.state.ops_internal import TOMBSTONE_NS
from nokv.types.commands import Collected, Op, Swept
from nokv.types.gc import GcTotals
from nokv.types.reads import (
    DropReply,
    DropsReply,
    GetDrops,
    ListSessions,
    Read,
    SessionReply,
    SessionsReply,
)
from nokv.types.results import Result

log = logging.getLogger("nokv.collector")

DROPS_PAGE: Final = 512
"""Drop rows of one request, and of the command that removes them."""
SESSIONS_PAGE: Final = 256
IDLE_PAGES_MAX: Final = 2
"""Pages without anything to free that one round asks for: what a snapshot keeps for a year is not
looked at every second. The next round goes on behind them."""
UPLOAD_MAX: Final = (1 << 64) - 1

V = TypeVar("V")


class Node(Protocol):
    """What the collector asks of its node."""

    async def read(self, request: Read, kind: type[V]) -> V:
        """Read linearizably."""
        ...

    async def run(self, op: Op) -> Result:
        """Run an internal command."""
        ...


class Orphan(NamedTuple):
    """An object of an upload that was given up, with the proof."""

    info: ObjectInfo
    session: SessionReply
    """As read before the listing: dead, or with a watermark above the upload."""


class Collector:
    """One volume's collector. Raises NokvError out of every round that could not end."""

    def __init__(
        self,
        node: Node,
        store: ObjectStore,
        *,
        volume: str,
        grace_ns: int,
        pace: Callable[[int], Awaitable[None]] | None = None,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`pace(rows)` returns when the next rows may be collected after so many.

        `check()` comes right before each batch of deletions and raises if this cluster must delete
        nothing any more.
        """
        self._pace = pace
        self._check = check
        self._node = node
        self._store = store
        self._volume = volume
        self._grace_ns = grace_ns
        self._after = 0
        """Drop row that the last round has come to."""
        self._swept: dict[int, int] = {}
        """Session to the upload below which the last round found nothing."""
        self.rounds = 0
        self.failures = 0
        self.rows = 0
        self.objects = 0
        self.size_bytes = 0
        self.orphans = 0
        self.orphan_bytes = 0
        self.sessions = 0

    def totals(self) -> GcTotals:
        """Return what was freed since the start."""
        return GcTotals(
            self.rounds,
            self.failures,
            self.rows,
            self.objects,
            self.size_bytes,
            self.orphans,
            self.orphan_bytes,
            self.sessions,
        )

    # ------------------------------------------------------------ dropped bodies

    async def collect(self, idle_pages_max: int | None = None) -> int:
        """Delete what is safe to delete; return how many rows ended.

        Looks at every row, or goes on where the last round stopped and stops after so many pages
        in which nothing was safe.
        """
        before, idle, progress = self.rows, 0, False
        if idle_pages_max is None:
            self._after = 0
        while True:
            request = GetDrops(self._after, DROPS_PAGE, self._grace_ns)
            page = await self._node.read(request, DropsReply)
            collected = await self._delete_drops(page.drops)
            if collected:
                await self._node.run(Collected(tuple(collected)))
                self.rows += len(collected)
                progress, idle = True, 0
                if self._pace is not None:
                    await self._pace(len(collected))
            else:
                idle += 1
            # Rows of large bodies come again with their next chunks: begin anew after progress.
            self._after = page.after if page.more else 0
            if idle == idle_pages_max or not (page.more or progress):
                return self.rows - before
            progress = progress and page.more

    async def _delete_drops(self, drops: Sequence[DropReply]) -> list[tuple[int, int]]:
        """Delete the objects of these rows; return the rows all of whose objects are gone."""
        lengths: dict[str, int] = {}
        by_row: list[tuple[DropReply, list[str]]] = []
        for drop in drops:
            own = {
                format_name(
                    ObjectName(self._volume, SHARD, o.session, o.upload, o.chunk, o.block, o.piece)
                ): o.length
                for o in drop.objects
            }
            by_row.append((drop, list(own)))
            lengths.update(own)
        failed = await self._delete(list(lengths))
        gone = [length for name, length in lengths.items() if name not in failed]
        self.objects += len(gone)
        self.size_bytes += sum(gone)
        return [
            (drop.drop, drop.through)
            for drop, own in by_row
            if not any(name in failed for name in own)
        ]

    async def _delete(self, names: list[str]) -> dict[str, ObjectStoreError]:
        failed: dict[str, ObjectStoreError] = {}
        if names and self._check is not None:
            await self._check()
        for start in range(0, len(names), DELETE_NAMES_MAX):
            failed |= await self._store.delete(names[start : start + DELETE_NAMES_MAX])
        for name, error in list(failed.items())[:1]:
            log.warning("%d objects could not be deleted, %s: %s", len(failed), name, error)
        return failed

    # ------------------------------------------------------------ dead uploads

    async def sweep(self, *, anew: bool = False) -> int:
        """Delete the objects of uploads that were given up; return how many went.

        What was found clean before is listed again only `anew`.
        """
        before = self.orphans
        known, after = {} if anew else self._swept, 0
        self._swept = {}
        while True:
            page = await self._sessions(after)
            for session in page.sessions:
                below = await self._sweep_session(
                    session, known.get(session.session, 0), page.cluster_ns
                )
                self._swept[session.session] = below
                after = session.session
            if not page.more:
                return self.orphans - before

    async def find_orphans(self) -> AsyncIterator[Orphan]:
        """Yield what a sweep would delete, in the order of the names; nothing is deleted."""
        after = 0
        while True:
            page = await self._sessions(after)
            for session in page.sessions:
                after = session.session
                if not self._is_judged(session, page.cluster_ns):
                    continue
                for first, last in gaps(session.consumed, _end_of(session)):
                    async for infos in self._listed(session.session, first, last):
                        for info in infos:
                            yield Orphan(info, session)
            if not page.more:
                return

    async def _sessions(self, after: int) -> SessionsReply:
        return await self._node.read(ListSessions(after, SESSIONS_PAGE), SessionsReply)

    def _is_judged(self, session: SessionReply, cluster_ns: int) -> bool:
        """Whether the grace has passed since what the session gave up was given up."""
        # Of a live session `died_cluster_ns` is when its watermark rose last.
        return cluster_ns - session.died_cluster_ns > self._grace_ns

    async def _sweep_session(self, session: SessionReply, swept: int, cluster_ns: int) -> int:
        """Sweep what a session gave up; return the upload below which nothing is left.

        `swept` is what the round before returned: what was found clean is not listed again, but
        once more before the tombstone goes.
        """
        if not self._is_judged(session, cluster_ns):
            return 0
        old = cluster_ns - session.died_cluster_ns >= TOMBSTONE_NS
        forget = not session.alive and old
        end = _end_of(session)
        if swept >= end and not forget:
            return swept
        found = 0
        for first, last in gaps(session.consumed, end):
            found += await self._sweep_range(session.session, first, last)
        if found:
            return 0
        if forget:
            await self._node.run(Swept(session.session, cluster_ns, self._grace_ns))
            self.sessions += 1
        return end

    async def _sweep_range(self, session: int, first: int, last: int) -> int:
        """Delete the objects of uploads [first, last]; return how many a whole listing found.

        Only a listing that found nothing proves that nothing is left.
        """
        found = 0
        async for infos in self._listed(session, first, last):
            found += len(infos)
            failed = await self._delete([info.name for info in infos])
            gone = [info.length for info in infos if info.name not in failed]
            self.orphans += len(gone)
            self.orphan_bytes += sum(gone)
        return found

    async def _listed(self, session: int, first: int, last: int) -> AsyncIterator[list[ObjectInfo]]:
        """Yield the objects of a session's uploads [first, last], page by page."""
        prefix = session_prefix(self._volume, SHARD, session)
        after = f"{prefix}{first:016x}"
        while True:
            page = await self._store.list(prefix, after, LIST_NAMES_MAX)
            mine: list[ObjectInfo] = []
            beyond = False
            for info in page.objects:
                try:
                    name = parse_name(info.name)
                except InvalidArgument:
                    log.warning("%s is no object of ours; left alone", info.name[:160])
                    continue
                if name.upload > last:
                    beyond = True
                    break
                assert (name.volume, name.session) == (self._volume, session), "a foreign name"
                assert first <= name.upload, "a name before the cursor"
                mine.append(info)
            yield mine
            if beyond or not page.more:
                return
            after = page.objects[-1].name


def _end_of(session: SessionReply) -> int:
    """Return the upload below which what was not published never will be."""
    return session.watermark if session.alive else UPLOAD_MAX


def gaps(consumed: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges [first, last] of uploads below `end` that are in none of `consumed`.

    `consumed` is ascending and disjoint, both ends included.
    """
    first = 0
    for low, high in consumed:
        if low >= end:
            break
        if first < low:
            yield first, low - 1
        first = high + 1
    if first < end:
        yield first, end - 1
