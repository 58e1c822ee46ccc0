"""The check of a whole volume while it serves: its metadata in itself, and against its bucket.

First the bucket is listed, then an image of the state is pulled, which holds all that it shows
until the check is over. So what the image names and nobody may delete is in the listing, or was
stored after it began: that is looked for one by one. And what was listed and the image does not
name has its judgement there (state/DESIGN.md): an object that no record names, whose session the
image knows to be dead, or to have published or given up the upload, or does not know although it is
of this volume's own numbers, or of those of a restored cluster that was stated to be gone, was
listed before that state: nobody can name it any more.

What is missing counts only if a second image, pulled after it was looked for, still needs it: what
the first one showed of trees that are being taken apart may have been collected meanwhile.

Memory is that of the image's records, decoded; names are compared in a scratch store on disk.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, cast

import msgspec

from nokv.backup.create import pull_image, release_image
from nokv.backup.epochs import epochs_of
from nokv.backup.gone import check_not_gone, stated
from nokv.client.core import Core
from nokv.errors import (
    NotPermitted,
    ObjectCorrupt,
    ObjectMissing,
    ResultTooLarge,
)
from nokv.kv.lmdb_store import LmdbKV, LmdbReader, open_reader
from nokv.objects.layout import ObjectName, format_name, verify, volume_prefix
from nokv.objects.port import DELETE_NAMES_MAX, ObjectStore
from nokv.server.collector import blocks_of
from nokv.server.datadir import SHARD
from nokv.state import invariants, keys
from nokv.state.collect import counters_of, is_safe, read_guards, sessions_of
from nokv.state.families import Family
from nokv.state.ops_backup import origin_of
from nokv.state.ops_session import consumed_ranges
from nokv.state.pinned import Source
from nokv.state.port import KV
from nokv.state.records import (
    Session,
    body_of,
    decode_chunk,
    decode_drop,
    is_whiteout,
)
from nokv.state.txn import Present, Txn
from nokv.types.values import StoredObject

log = logging.getLogger("nokv.check")

RECORDS_MAX: Final = 20_000_000
"""Inodes and rows of history, of a volume that can be checked: some 2 KB of memory each."""
HOLD_NS: Final = 7 * 86_400 * 1_000_000_000
"""The image's hold at most; it ends with the check, or with the session of who checks."""
FINDINGS_MAX: Final = 1000
"""Findings told of each kind; all are counted."""
READS_AT_ONCE: Final = 8
DIRTY_BYTES_MAX: Final = 16 * 1024 * 1024
"""The scratch store's open transaction."""
_NAME: Final = struct.Struct(">QQIHH")
"""Session, upload, chunk, block, piece."""
_LISTED: Final = struct.Struct(">Q?")
"""Length in the bucket; whether a record names it."""
_LAST = b"\xff" * 33
_TURN: Final = 1024
"""Objects between two turns of the loop, which keeps the session of the hold alive."""
_UNREADABLE = (AssertionError, LookupError, msgspec.DecodeError, struct.error)


class Finding(NamedTuple):
    """One thing that is not as it should be."""

    kind: str
    """metadata, missing, length, corrupt, leaked."""
    what: str
    """The object's name, or what was checked."""
    detail: str


class Report(msgspec.Struct):
    """What a check found. The counts are exact, `findings` is cut at FINDINGS_MAX a kind."""

    version: int = 0
    """Of the state that was checked."""
    inodes: int = 0
    objects: int = 0
    """Named by records."""
    size_bytes: int = 0
    """Their lengths."""
    listed: int = 0
    """Objects in the bucket."""
    read: int = 0
    """Objects whose bytes were read and verified."""
    waiting: int = 0
    """Objects that the collector's next sweeps delete: of uploads that were given up."""
    in_flight: int = 0
    """Objects of uploads that may still be published."""
    unjudged: int = 0
    """Objects that nothing here proves to be anybody's, or nobody's."""
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    """Findings by kind."""
    findings: list[Finding] = msgspec.field(default_factory=list)
    repaired: int = 0
    """Leaked objects that were deleted."""

    def add(self, kind: str, what: str, detail: str) -> None:
        """Note a finding."""
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count <= FINDINGS_MAX:
            self.findings.append(Finding(kind, what, detail))

    @property
    def damaged(self) -> int:
        """Findings that are still so."""
        return sum(self.counts.values()) - self.repaired


async def check_volume(
    core: Core, store: ObjectStore, folder: Path, *, cluster: str, deep: bool, repair: bool
) -> Report:
    """Check the cluster that `core` is connected to, with its token, working in an empty folder.

    `deep` reads and verifies every object that a record names, and judges what no session's record
    speaks for; with `repair` too, what is leaked is deleted.

    Raises:
        NotPermitted: `repair` of a restored volume that is not adopted.
        ForeignVolume: `repair`, and `cluster`, this one, was stated to be gone.
        ResultTooLarge: more than RECORDS_MAX records.
        NokvError: as `pull_image` and the store.
    """
    listed = LmdbKV(folder / "listed")
    try:
        report = Report()
        report.listed = await _list(store, core.volume.volume, listed)
        check = _Check(store, core.volume.volume, cluster, listed, report)
        async with _image(core, folder / "state") as state:
            await check.run(state, deep=deep, repair=repair)
        if check.missing:
            async with _image(core, folder / "later") as state:
                check.confirm(state)
    finally:
        listed.close()
    return report


@asynccontextmanager
async def _image(core: Core, path: Path) -> AsyncIterator[LmdbReader]:
    """Pull an image and read it, held until the end of the block."""
    name = f"fsck-{secrets.token_hex(8)}"
    pulled = await pull_image(core, name=name, keep_ns=HOLD_NS, to=path)
    try:
        with open_reader(path, at_rest=True) as state:
            yield state
    finally:
        await release_image(core, pulled)


async def _list(store: ObjectStore, volume: str, listed: LmdbKV) -> int:
    """Put every object of the volume into the scratch store; return how many there are."""
    prefix, after, count = volume_prefix(volume), "", 0
    while True:
        page = await store.list(prefix, after)
        rows: list[tuple[bytes, bytes | None]] = []
        for info, name in blocks_of(page.objects, log):
            if name.shard == SHARD:
                rows.append((_NAME.pack(*name[2:]), _listing(info.length)))
        listed.write(Family.META, rows)
        _settle(listed)
        count += len(rows)
        if not page.more:
            return count
        after = page.objects[-1].name


def _listing(length: int, *, named: bool = False) -> bytes:
    return _LISTED.pack(length, named)


def _settle(scratch: LmdbKV) -> None:
    if scratch.dirty_bytes >= DIRTY_BYTES_MAX:
        scratch.commit()


class _Check:
    """One image against one listing."""

    def __init__(
        self, store: ObjectStore, volume: str, cluster: str, listed: LmdbKV, report: Report
    ) -> None:
        self._store = store
        self._volume = volume
        self._cluster = cluster
        self._listed = listed
        self._report = report
        self.missing: dict[bytes, str] = {}
        """Names of objects that are not in the bucket, with what was said of each."""

    async def run(self, state: LmdbReader, *, deep: bool, repair: bool) -> None:
        """Do all of it but `confirm`."""
        report, present = self._report, _present(state)
        counters = counters_of(present)
        report.version, report.inodes = counters.version, counters.files
        if counters.files + counters.history > RECORDS_MAX:
            message = f"a volume of {counters.files} inodes and {counters.history} rows of history"
            raise ResultTooLarge(message, hint=f"at most {RECORDS_MAX} can be checked")
        origin = origin_of(present)
        shared = origin is not None and not origin.adopted
        if repair and shared:
            message = "the restored volume is not adopted: its original may need what is leaked"
            raise NotPermitted(message, hint="if the original is gone for good: nokv volume adopt")
        await self._compare(present)
        await asyncio.to_thread(self._check_metadata, present)
        if deep:
            await self._read_all(present)
        judged, epochs = deep and not shared, frozenset[int]()
        if judged:
            gone = await stated(self._store, self._volume)
            epochs = await epochs_of(self._store, self._volume, gone)
        judge = _Judge(present, epochs, deep=judged)
        await self._judge(judge, repair=repair)

    def confirm(self, state: LmdbReader) -> None:
        """Tell what is missing and still needed by a state that is newer than the look for it."""
        for obj, needed in _named(_present(state)):
            if needed and (said := self.missing.pop(_key(obj), "")):
                self._report.add("missing", self._name(_key(obj)), said)

    def _name(self, parts: bytes) -> str:
        return format_name(ObjectName(self._volume, SHARD, *_NAME.unpack(parts)))

    # ------------------------------------------------------------ metadata

    def _check_metadata(self, present: Present) -> None:
        """Recompute everything that the records say of each other."""
        try:
            for what, check in invariants.checks(present):
                try:
                    check()
                except (AssertionError, LookupError) as error:
                    self._report.add("metadata", what, str(error)[:1000] or repr(error))
        except _UNREADABLE as error:
            self._report.add("metadata", "records", f"{type(error).__name__}: {error}"[:1000])

    # ------------------------------------------------------------ what records name

    async def _compare(self, present: Present) -> None:
        """Compare what must exist with the listing; what was not listed is looked for."""
        batch: list[StoredObject] = []
        for count, (obj, needed) in enumerate(_named(present)):
            if not count % _TURN:
                await asyncio.sleep(0)
            key = _key(obj)
            row = self._listed.get(Family.META, key)
            length, seen = (-1, False) if row is None else _LISTED.unpack(row)
            if seen:
                continue
            self._report.objects += 1
            self._report.size_bytes += obj.length
            # Noted also where it is missing: each is told once.
            self._listed.write(Family.META, [(key, _listing(max(length, 0), named=True))])
            _settle(self._listed)
            if not needed:
                continue
            if length < 0:
                batch.append(obj)
            elif length != obj.length:
                detail = f"{length} bytes in the bucket, {obj.length} in the metadata"
                self._report.add("length", self._name(key), detail)
            if len(batch) >= READS_AT_ONCE:
                await asyncio.gather(*map(self._look_for, batch))
                batch = []
        await asyncio.gather(*map(self._look_for, batch))

    async def _look_for(self, obj: StoredObject) -> None:
        try:
            await self._store.head(self._name(_key(obj)))
        except ObjectMissing:
            self.missing[_key(obj)] = "named by the metadata, not in the bucket"

    async def _read_all(self, present: Present) -> None:
        """Read and verify what must exist; an object with several holds comes several times."""
        batch: list[StoredObject] = []
        for obj, needed in _named(present):
            if needed and _key(obj) not in self.missing:
                batch.append(obj)
            if len(batch) >= READS_AT_ONCE:
                await asyncio.gather(*map(self._verify, batch))
                batch = []
        await asyncio.gather(*map(self._verify, batch))

    async def _verify(self, obj: StoredObject) -> None:
        name = self._name(_key(obj))
        try:
            data = await self._store.get(name)
            self._report.read += 1
            if len(data) == obj.length:  # else it is told by its length
                verify(name, data, 0, obj.sums)
        except ObjectMissing:
            self.missing[_key(obj)] = "listed, and gone when it was read"
        except ObjectCorrupt as error:
            self._report.add("corrupt", name, str(error))

    # ------------------------------------------------------------ what nothing names

    async def _judge(self, judge: _Judge, *, repair: bool) -> None:
        """Tell of what was listed and nothing names who may still name it, or that it leaked."""
        leaked: list[str] = []
        for key in self._unnamed():
            verdict = judge.verdict(key)
            if verdict == "leaked":
                name = self._name(key)
                if await self._exists(name):
                    self._report.add("leaked", name, "named by nothing, and never will be")
                    leaked.append(name)
            elif verdict == "waiting":
                self._report.waiting += 1
            elif verdict == "in flight":
                self._report.in_flight += 1
            else:
                self._report.unjudged += 1
            if repair and len(leaked) >= DELETE_NAMES_MAX:
                await self._remove(leaked)
                leaked = []
        if repair and leaked:
            await self._remove(leaked)

    def _unnamed(self) -> Iterator[bytes]:
        for key, value in self._listed.scan(Family.META, b"", _LAST):
            if not _LISTED.unpack(value)[1]:
                yield key

    async def _exists(self, name: str) -> bool:
        """Whether the collector has not deleted it since it was listed."""
        try:
            await self._store.head(name)
        except ObjectMissing:
            return False
        return True

    async def _remove(self, names: list[str]) -> None:
        await check_not_gone(self._store, self._volume, self._cluster)
        failed = await self._store.delete(names)
        self._report.repaired += len(names) - len(failed)
        for name, error in list(failed.items())[:1]:
            log.warning("%d objects could not be deleted, %s: %s", len(failed), name, error)


class _Judge:
    """Who may still name an object that no record names: asked of its session alone."""

    def __init__(self, source: Present, gone: frozenset[int], *, deep: bool) -> None:
        """`gone` are owner epochs of clusters that were stated to be gone."""
        counters, origin = counters_of(source), origin_of(source)
        self._sessions: dict[int, Session] = dict(sessions_of(source, 0))
        self._consumed = {number: consumed_ranges(source, number) for number in self._sessions}
        """Ascending and disjoint."""
        self._epochs = {*gone, *(() if origin is None else origin.epochs)}
        self._epoch = counters.owner_epoch
        self._next = counters.next_session
        self._deep = deep

    def verdict(self, key: bytes) -> str:
        """Return 'leaked', 'waiting', 'in flight' or 'unjudged'."""
        number, upload, *_ = _NAME.unpack(key)
        session = self._sessions.get(number)
        if session is None:
            epoch, low = number >> 32, number & 0xFFFF_FFFF
            forgotten = epoch in self._epochs or (epoch == self._epoch and low < self._next)
            return "leaked" if self._deep and forgotten else "unjudged"
        ranges = self._consumed[number]
        below = bisect_right(ranges, upload, key=lambda one: one[0]) - 1
        if below >= 0 and upload <= ranges[below][1]:
            return "leaked" if self._deep else "unjudged"
        if session.died or upload < session.watermark:
            return "waiting"
        return "in flight"


def _present(state: LmdbReader) -> Present:
    """Return an image as the state machine would show it."""
    kv = cast("KV", state)  # which nothing here writes
    return Txn(kv, counters_of(cast("Source", state))).present


def _named(present: Present) -> Iterator[tuple[StoredObject, bool]]:
    """Yield every object that a record names, and whether it must exist; those that must first.

    It must unless all that names it are ended holds that are safe: these the collector may have
    deleted. The grace is not asked for: what it alone keeps may be gone before the check is over.
    """
    guards = read_guards(present)
    bodies: dict[tuple[int, int, int], bool] = {}
    unsafe: list[tuple[StoredObject, ...]] = []
    safe: list[tuple[StoredObject, ...]] = []
    for _, value in present.own_scan(Family.DROP, b"", _LAST):
        drop = decode_drop(value)
        is_over = is_safe(drop, guards, -1)
        if drop.history:
            (safe if is_over else unsafe).append(drop.objects)
        elif drop.body:
            bodies[drop.view, drop.inode, drop.body] = is_over
    for key, value in present.own_scan(Family.CHUNK, b"", _LAST):
        if is_whiteout(value):
            continue
        objects = decode_chunk(body_of(value)).objects
        if bodies.get(keys.chunk_parts(key)[:3], False):
            safe.append(objects)
        else:
            yield from ((obj, True) for obj in objects)
    yield from ((obj, True) for objects in unsafe for obj in objects)
    yield from ((obj, False) for objects in safe for obj in objects)


def _key(obj: StoredObject) -> bytes:
    return _NAME.pack(obj.session, obj.upload, obj.chunk, obj.block, obj.piece)
