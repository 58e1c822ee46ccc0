"""The collector: objects whose holds are all safe, and uploads that nobody can publish any more.

Objects go first, then the rows that name them; a crash in between repeats deletions only. A sweep
judges an object by its session's record alone, read before the listing begins: dead stays dead, a
watermark never falls, and what is below it and was not published never will be. What is named by
no session that is known is nobody's business here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
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
RISES_IN_GRACE: Final = 16
"""Watermarks remembered of a session: what it gives up goes a sixteenth of the grace late at most,
and the pause between two sweeps."""
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


class _Told(NamedTuple):
    session: SessionReply
    above: int
    """If not 0, it has published uploads beyond this one that are to be asked for."""
    cluster_ns: int
    """When the session was so."""


class _Rise(NamedTuple):
    watermark: int
    at_ns: int
    """Cluster time by which the session's watermark was there."""


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
        self._rises: dict[int, deque[_Rise]] = {}
        """Session to its watermarks as they were read, ascending: the newest that the grace is over
        for, if any, and RISES_IN_GRACE + 1 younger ones at most."""
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
        for start in range(0, len(names), DELETE_NAMES_MAX):
            if self._check is not None:
                await self._check()
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
        known = {} if anew else self._swept
        self._swept = {}
        async for told in self._sessions():
            number = told.session.session
            self._swept[number] = await self._sweep_session(told, known.get(number, 0))
        for forgotten in self._rises.keys() - self._swept.keys():
            del self._rises[forgotten]
        return self.orphans - before

    async def find_orphans(self) -> AsyncIterator[Orphan]:
        """Yield what a sweep would delete, in the order of the names; nothing is deleted.

        A collector that has not swept before knows of a live session only when it last gave
        something up: it shows none of its orphans until the grace is over since.
        """
        async for told in self._sessions():
            spans = self._unpublished(told, 0, self._end_of(told))
            async for infos in self._listed(told.session.session, spans):
                for info in infos:
                    yield Orphan(info, told.session)

    async def _sessions(self) -> AsyncIterator[_Told]:
        after = 0
        while True:
            page = await self._node.read(ListSessions(after, SESSIONS_PAGE), SessionsReply)
            for session in page.sessions:
                after = session.session
                above = page.above if session is page.sessions[-1] else 0
                yield _Told(session, above, page.cluster_ns)
            if not page.more:
                return

    def _end_of(self, told: _Told) -> int:
        """Return the upload below which, for the grace already, nothing can be published any more.

        The record says when the watermark rose last. A session that works on raises it all the
        time, so where it was at earlier rounds is remembered here: watermarks never fall.
        """
        session, _, cluster_ns = told
        rises = self._rises.setdefault(session.session, deque())
        spacing_ns = self._grace_ns // RISES_IN_GRACE
        if not rises or (
            session.watermark > rises[-1].watermark and cluster_ns - rises[-1].at_ns > spacing_ns
        ):
            rises.append(_Rise(session.watermark, cluster_ns))
        while len(rises) > 1 and cluster_ns - rises[1].at_ns > self._grace_ns:
            rises.popleft()
        # Of a live session `died_cluster_ns` is when its watermark rose last.
        if cluster_ns - session.died_cluster_ns > self._grace_ns:
            return session.watermark if session.alive else UPLOAD_MAX
        return rises[0].watermark if cluster_ns - rises[0].at_ns > self._grace_ns else 0

    async def _sweep_session(self, told: _Told, swept: int) -> int:
        """Sweep what a session gave up; return the upload below which nothing is left.

        `swept` is what the round before returned: what was found clean is not listed again, but
        once more before the tombstone goes. Only a listing that found nothing proves that nothing
        is left.
        """
        session, _, cluster_ns = told
        end = self._end_of(told)
        old = cluster_ns - session.died_cluster_ns >= TOMBSTONE_NS
        forget = end == UPLOAD_MAX and old
        if swept >= end and not forget:
            return swept
        found = 0
        spans = self._unpublished(told, 0 if forget else swept, end)
        async for infos in self._listed(session.session, spans):
            found += len(infos)
            failed = await self._delete([info.name for info in infos])
            gone = [info.length for info in infos if info.name not in failed]
            self.orphans += len(gone)
            self.orphan_bytes += sum(gone)
        if found:
            return swept
        if forget:
            await self._node.run(Swept(session.session, cluster_ns, self._grace_ns))
            self.sessions += 1
        return end

    async def _unpublished(
        self, told: _Told, first: int, end: int
    ) -> AsyncGenerator[tuple[int, int], None]:
        """Yield the ranges [first, last] of uploads in [first, end) that were not published.

        What no page could hold of a session is asked for as it is needed. A later answer proves no
        less: nothing below `end` is published any more.
        """
        session, above, _ = told
        ranges = session.consumed
        while True:
            through = min(end, above + 1) if above else end
            for span in gaps(ranges, first, through):
                yield span
            if through == end:
                return
            first = max(first, through)
            request = ListSessions(session.session, 1, first - 1)
            page = await self._node.read(request, SessionsReply)
            if not page.sessions or page.sessions[0].session != session.session:
                return  # forgotten meanwhile: another worker found nothing of it left
            ranges, above = page.sessions[0].consumed, page.above

    async def _listed(
        self, session: int, spans: AsyncGenerator[tuple[int, int], None]
    ) -> AsyncIterator[list[ObjectInfo]]:
        """Yield the objects of these ranges of a session's uploads, page by page.

        One listing goes through all of them: past the names between two, or, where those fill more
        than a page, straight to the next.
        """
        prefix = session_prefix(self._volume, SHARD, session)
        after = ""
        async with aclosing(spans):
            span = await anext(spans, None)
            while span is not None:
                start = f"{prefix}{span[0]:016x}"
                page = await self._store.list(prefix, max(after, start), LIST_NAMES_MAX)
                mine: list[ObjectInfo] = []
                for info, name in blocks_of(page.objects, log):
                    assert (name.volume, name.session) == (self._volume, session), "a foreign name"
                    while span is not None and span[1] < name.upload:
                        span = await anext(spans, None)
                    if span is None:
                        break
                    if span[0] <= name.upload:
                        mine.append(info)
                yield mine
                if not page.more:
                    return
                after = page.objects[-1].name


def blocks_of(
    found: Iterable[ObjectInfo], log: logging.Logger
) -> Iterator[tuple[ObjectInfo, ObjectName]]:
    """Yield what was listed with its name's parts; warn of what is none of ours, and leave it."""
    for info in found:
        try:
            name = parse_name(info.name)
        except InvalidArgument:
            log.warning("%s is no object of ours; left alone", info.name[:160])
        else:
            yield info, name


def gaps(ranges: Sequence[tuple[int, int]], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges [first, last] of the numbers in [first, end) that are in none of `ranges`.

    `ranges` is ascending and disjoint, both ends included.
    """
    for low, high in ranges:
        if low >= end:
            break
        if first < low:
            yield first, low - 1
        first = max(first, high + 1)
    if first < end:
        yield first, end - 1
