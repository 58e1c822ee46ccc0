"""Clusters that an adoption stated to be gone for good, as the volume's bucket keeps it.

`gone/{volume}/{cluster}.json`, written before the adoption is proposed. Should such a cluster come
back after all, its worker finds it: the other one's collector ends what only this one needs, and
this one's must end nothing that the other needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from nokv.errors import ForeignVolume, ObjectMissing
from nokv.objects.port import ObjectStore

FORMAT: Final = 1
GONE: Final = "gone/"


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
    try:
        by = msgspec.json.decode(data, type=Gone).adopted_by
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        by = "unknown"
    raise ForeignVolume(
        f"cluster {by} adopted the volume: it was told that this cluster, {cluster}, is gone",
        hint=f"stop this one for good; if {by} is the one that ends, delete {name} in the bucket",
    )
