"""Clusters that an adoption stated to be gone for good, as the volume's bucket keeps it.

`gone/{volume}/{cluster}.json`, written before the adoption is proposed. Should such a cluster come
back after all, its worker finds it: the other one's collector ends what only this one needs, and
this one's must end nothing that the other needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

import msgspec

from nokv.backup.manage import names_of
from nokv.errors import ForeignVolume, ObjectMissing
from nokv.objects.port import ObjectStore

FORMAT: Final = 1
GONE: Final = "gone/"
UNKNOWN: Final = "unknown"
"""Instead of the cluster that was told so, where a statement can't be read."""


class Gone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of one such object."""

    format: int = FORMAT
    adopted_by: str
    """The cluster that has the volume alone."""


def _name(volume: str, cluster: str) -> str:
    return f"{GONE}{volume}/{cluster}.json"


async def state_gone(store: ObjectStore, volume: str, clusters: Iterable[str], by: str) -> None:
    """State that these clusters are gone and that cluster `by` has the volume alone.

    Raises ObjectStoreError; then the adoption must not go on.
    """
    data = msgspec.json.encode(Gone(adopted_by=by))
    for cluster in sorted(clusters):
        assert cluster != by
        await store.put(_name(volume, cluster), data)


async def stated(store: ObjectStore, volume: str) -> frozenset[str]:
    """Return every cluster that was stated to be gone. Raises ObjectStoreError."""
    names = await names_of(store, f"{GONE}{volume}/")
    return frozenset(name.rpartition("/")[2].removesuffix(".json") for name in names)


async def statements(store: ObjectStore, volume: str) -> dict[str, str]:
    """Return every cluster that was stated to be gone, and the one that was told so, or UNKNOWN.

    Raises ObjectStoreError.
    """
    found: dict[str, str] = {}
    for cluster in sorted(await stated(store, volume)):
        with contextlib.suppress(ObjectMissing):  # taken back meanwhile
            found[cluster] = _read(await store.get(_name(volume, cluster)))
    return found


async def take_back(store: ObjectStore, volume: str, cluster: str) -> None:
    """Take back the statement that a cluster is gone. Raises ObjectStoreError."""
    for error in (await store.delete([_name(volume, cluster)])).values():
        raise error


def _read(data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=Gone).adopted_by
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return UNKNOWN


async def check_not_gone(store: ObjectStore, volume: str, cluster: str) -> None:
    """Return if nobody stated that a cluster is gone.

    Raises:
        ForeignVolume: somebody did. An object there that can't be read counts as well.
        ObjectStoreError: it can't be told.
    """
    name = _name(volume, cluster)
    try:
        data = await store.get(name)
    except ObjectMissing:
        return
    by = _read(data)
    raise ForeignVolume(
        f"cluster {by} has the volume: it was told that this one, {cluster}, is gone",
        hint=f"stop this one for good; if that one ends instead: nokv volume reclaim --gone {by}",
    )
