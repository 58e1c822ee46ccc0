"""The collector: objects whose holds are all safe, and uploads that nobody can publish any more.

Objects go first, then the rows that name them; a crash in between repeats deletions only. A sweep
judges an object by its session's record alone, read before the listing begins: dead stays dead, a
watermark never falls, and what is below it and was not published never will be. What is named by
no session that is known is nobody's business here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

from nokv.errors import InvalidArgument, ObjectStoreError
from nokv.objects.layout import ObjectName, format_name, parse_name, session_prefix
from nokv.objects.port import DELETE_NAMES_MAX, LIST_NAMES_MAX, ObjectStore
from nokv.server.datadir import SHARD
from nokv.state.ops_internal import TOMBSTONE_NS
from nokv.types.commands import Collected, Op, Swept
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

PAGE: Final = 256
"""Drop rows, or sessions, of one request."""
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


class Collector:
    """One volume's collector. Raises NokvError out of every round that could not end."""

    def __init__(self, node: Node, store: ObjectStore, *, volume: str, grace_ns: int) -> None:
        self._node = node
        self._store = store
        self._volume = volume
        self._grace_ns = grace_ns
        self._swept: dict[int, int] = {}
        """Session to the upload below which the last round found nothing."""
        self.deleted_total = 0
        self.orphans_total = 0

    # ------------------------------------------------------------ dropped bodies

    async def collect(self) -> int:
        """Delete what is safe to delete; return how many objects went."""
        before = self.deleted_total
        after = 0
        while True:
            page = await self._node.read(GetDrops(after, PAGE, self._grace_ns), DropsReply)
            collected = await self._delete_drops(page.drops)
            if collected:
                await self._node.run(Collected(tuple(collected)))
                log.debug("collected %d drops", len(collected))
            # Rows of large bodies come again with their next chunks: begin anew after progress.
            if page.more:
                after = page.after
            elif collected:
                after = 0
            else:
                return self.deleted_total - before

    async def _delete_drops(self, drops: Sequence[DropReply]) -> list[tuple[int, int]]:
        """Delete the objects of these rows; return the rows all of whose objects are gone."""
        names: dict[str, None] = {}
        by_row: list[tuple[DropReply, list[str]]] = []
        for drop in drops:
            own = [
                format_name(
                    ObjectName(self._volume, SHARD, o.session, o.upload, o.chunk, o.block, o.piece)
                )
                for o in drop.objects
            ]
            by_row.append((drop, own))
            names.update(dict.fromkeys(own))
        failed = await self._delete(list(names))
        self.deleted_total += len(names) - len(failed)
        return [
            (drop.drop, drop.through)
            for drop, own in by_row
            if not any(name in failed for name in own)
        ]

    async def _delete(self, names: list[str]) -> dict[str, ObjectStoreError]:
        failed: dict[str, ObjectStoreError] = {}
        for start in range(0, len(names), DELETE_NAMES_MAX):
            failed |= await self._store.delete(names[start : start + DELETE_NAMES_MAX])
        for name, error in list(failed.items())[:1]:
            log.warning("%d objects could not be deleted, %s: %s", len(failed), name, error)
        return failed

    # ------------------------------------------------------------ dead uploads

    async def sweep(self) -> int:
        """Delete the objects of uploads that were given up; return how many went."""
        before = self.orphans_total
        known, after = self._swept, 0
        self._swept = {}
        while True:
            page = await self._node.read(ListSessions(after, PAGE), SessionsReply)
            for session in page.sessions:
                below = await self._sweep_session(
                    session, known.get(session.session, 0), page.cluster_ns
                )
                self._swept[session.session] = below
                after = session.session
            if not page.more:
                return self.orphans_total - before

    async def _sweep_session(self, session: SessionReply, swept: int, cluster_ns: int) -> int:
        """Sweep what a session gave up; return the upload below which nothing is left.

        `swept` is what the round before returned: what was found clean is not listed again, but
        once more before the tombstone goes.
        """
        number = session.session
        # Of a live session this is when its watermark rose last.
        age_ns = cluster_ns - session.died_cluster_ns
        if age_ns <= self._grace_ns:
            return 0
        forget = not session.alive and age_ns >= TOMBSTONE_NS
        end = session.watermark if session.alive else UPLOAD_MAX
        if swept >= end and not forget:
            return swept
        found = 0
        for first, last in gaps(session.consumed, end):
            found += await self._sweep_range(number, first, last)
        if found:
            return 0
        if forget:
            await self._node.run(Swept(number, cluster_ns, self._grace_ns))
        return end

    async def _sweep_range(self, session: int, first: int, last: int) -> int:
        """Delete the objects of uploads [first, last]; return how many a whole listing found.

        Only a listing that found nothing proves that nothing is left.
        """
        prefix = session_prefix(self._volume, SHARD, session)
        after = f"{prefix}{first:016x}"
        found = 0
        while True:
            page = await self._store.list(prefix, after, LIST_NAMES_MAX)
            mine: list[str] = []
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
                mine.append(info.name)
            found += len(mine)
            failed = await self._delete(mine)
            self.orphans_total += len(mine) - len(failed)
            if beyond or not page.more:
                return found
            after = page.objects[-1].name


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
