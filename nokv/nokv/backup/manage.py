"""Backups that exist: finding, reading, verifying and ending them.

Ending goes manifest first, then the marks of restored clusters are looked for, then the parts go,
and only then, after a grace that is longer than any PUT, the hold. So a crash anywhere leaves a
hold too many, never a backup without its hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import BinaryIO, Final

import msgspec

from nokv.backup.format import (
    MANIFEST,
    MARK,
    Head,
    Manifest,
    mark_of,
    naming_damage,
    parse_mark,
    parse_place,
    pieces_of,
    place,
    place_of,
    read_head,
)
from nokv.errors import (
    BackupDamaged,
    BackupGone,
    NotPermitted,
    ObjectMissing,
    ObjectStoreError,
    UsageError,
)
from nokv.kv.image import ImageInfo, verify_image
from nokv.objects.port import DELETE_NAMES_MAX, ObjectStore
from nokv.types.reads import BackupRow

BACKUPS: Final = "backups/"
KNOWN_MAX: Final = 8
"""Backups that an error names at most, the last in order of names."""


async def names_of(store: ObjectStore, prefix: str) -> list[str]:
    """Return the names of all objects below a prefix."""
    found: list[str] = []
    after = ""
    while True:
        page = await store.list(prefix, after)
        found += [info.name for info in page.objects]
        if not page.more:
            return found
        after = found[-1]


async def read_manifest(store: ObjectStore, where: str) -> Manifest:
    """Return the manifest of the backup at a place. Raises BackupGone, BackupDamaged."""
    try:
        data = await store.get(where + MANIFEST)
    except ObjectMissing as error:
        raise BackupGone(f"no complete backup is at {where}") from error
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"{where}{MANIFEST}: {error}") from error


async def complete(store: ObjectStore, volume: str = "") -> list[str]:
    """Return the places of all complete backups in a bucket; no manifest is read."""
    names = await names_of(store, f"{BACKUPS}{volume}/" if volume else BACKUPS)
    return [name.removesuffix(MANIFEST) for name in names if name.endswith(f"/{MANIFEST}")]


async def manifests(store: ObjectStore, volume: str = "") -> list[Manifest]:
    """Return every complete backup in a bucket, oldest first; one that goes meanwhile is left out.

    Raises BackupDamaged: one can't be read, and nobody knows what it holds.
    """
    found = []
    for where in await complete(store, volume):
        with contextlib.suppress(BackupGone):
            found.append(await read_manifest(store, where))
    return sorted(found, key=lambda one: one.head.created_ns)


async def find(store: ObjectStore, source: str) -> Manifest:
    """Return the backup that `NAME`, or `NAME/CLUSTER`, is in a bucket; others are not read.

    Raises:
        BackupGone: none is.
        UsageError: clusters that share the bucket have each one of that name.
        BackupDamaged: its manifest can't be read.
    """
    name, _, cluster = source.partition("/")
    all_places = {where: parse_place(where) for where in await complete(store)}
    known = {where: one for where, one in all_places.items() if one is not None}
    # Of one cluster the last: its names end with numbers that rise.
    found = {
        one.cluster: where
        for where, one in sorted(known.items(), key=lambda item: item[1].backup)
        if one.name == name and cluster in {"", one.cluster}
    }
    if not found:
        names = ", ".join(sorted({one.name for one in known.values()})[-KNOWN_MAX:])
        hint = f"complete there: {names}" if names else "no complete backup is there"
        raise BackupGone(f"no complete backup is named {source}", hint=hint)
    if len(found) > 1:
        choice = ", ".join(f"{name}/{one}" for one in sorted(found))
        message = f"{len(found)} clusters made backups named {name}"
        raise UsageError(message, hint=f"say which: {choice}")
    (where,) = found.values()
    return await read_manifest(store, where)


async def fetch(store: ObjectStore, manifest: Manifest, to: BinaryIO) -> None:
    """Copy a backup's parts into a file, one in memory at a time. Raises BackupDamaged."""
    prefix = place(manifest.head)
    for number, length in enumerate(manifest.parts):
        name = f"{prefix}part-{number:08x}"
        try:
            data = await store.get(name)
        except ObjectMissing as error:
            raise BackupDamaged(f"{name} is missing") from error
        if len(data) != length:
            raise BackupDamaged(f"{name} has {len(data)} bytes instead of {length}")
        to.write(data)
    to.flush()
    to.seek(0)


async def marks_of(store: ObjectStore, where: str) -> list[str]:
    """Return the clusters that were restored from a backup."""
    marks = map(parse_mark, await names_of(store, where + MARK))
    return [cluster for _, cluster in filter(None, marks)]


async def restored(store: ObjectStore, volume: str) -> set[tuple[str, str]]:
    """Return (maker, cluster) of every cluster that was restored from a backup of a volume.

    Also from one that was ended since. The maker is empty where a place does not tell it.
    """
    marks = map(parse_mark, await names_of(store, f"{BACKUPS}{volume}/"))
    found = {(parse_place(where), cluster) for where, cluster in filter(None, marks)}
    return {("" if of is None else of.cluster, cluster) for of, cluster in found}


async def delete_all(store: ObjectStore, names: Sequence[str]) -> dict[str, ObjectStoreError]:
    """Delete any number of objects; return those that are left, with why."""
    failed: dict[str, ObjectStoreError] = {}
    for start in range(0, len(names), DELETE_NAMES_MAX):
        failed |= await store.delete(names[start : start + DELETE_NAMES_MAX])
    return failed


def place_of_row(volume: str, row: BackupRow) -> str:
    """Return the place of a backup that the state knows."""
    return place_of(volume, row.name, row.cluster, row.backup)


async def clear(
    store: ObjectStore, where: str, *, own: str = "", gone: frozenset[str] = frozenset()
) -> bool:
    """Delete an ended backup's objects; return whether its hold may go.

    A cluster that was restored from it, that is not `own` and was not said to be `gone`, keeps the
    hold, whatever else is deleted. False too while anything is left to delete. The mark of `own`
    stays: it tells others of a cluster that lives.
    """
    if await store.delete([where + MANIFEST]):
        return False
    if set(await marks_of(store, where)) - {own} - gone:
        return False
    mine = mark_of(where, own)
    return not await delete_all(
        store, [name for name in await names_of(store, where) if name != mine]
    )


async def check_unmarked(store: ObjectStore, where: str, gone: frozenset[str]) -> None:
    """Raise NotPermitted if a restored cluster still needs a backup's hold."""
    left = sorted(set(await marks_of(store, where)) - gone)
    if left:
        message = f"cluster {', '.join(left)} was restored from it and needs what it holds"
        raise NotPermitted(message, hint="if it is gone for good, say --gone CLUSTER")


def verify_stream(stream: BinaryIO, name: str = "the backup") -> tuple[Head, ImageInfo]:
    """Read all of a backup and check every digest. Raises BackupDamaged, which names it."""
    with naming_damage(stream, name):
        head = read_head(stream)
        info = verify_image(pieces_of(stream))
        if (info.header.version, info.header.index) != (head.version, head.index):
            raise BackupDamaged("its head is another backup's")
    return head, info
