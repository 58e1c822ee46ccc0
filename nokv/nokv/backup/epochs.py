"""Owner epochs of restored clusters, as the volume's bucket keeps them.

`epochs/{volume}/{cluster}-{epoch}.json`, the epoch in eight hex digits, written by the cluster's
worker and never deleted. What a restored cluster stored is in sessions of an epoch that it drew
itself, so nobody else's metadata tells whose it is. When that cluster is stated to be gone, this
does: the objects are named by nobody who is left.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from nokv.backup.manage import names_of
from nokv.objects.port import ObjectStore

EPOCHS: Final = "epochs/"
_FILE: Final = re.compile(r"(.+)-([0-9a-f]{8})\.json")


async def tell_epoch(store: ObjectStore, volume: str, cluster: str, epoch: int) -> None:
    """Leave the owner epoch (32 bits) of a restored cluster. Raises ObjectStoreError."""
    await store.put(f"{EPOCHS}{volume}/{cluster}-{epoch:08x}.json", b'{"format":1}')


async def epochs_of(store: ObjectStore, volume: str, clusters: Container[str]) -> frozenset[int]:
    """Return the owner epochs that these clusters left. Raises ObjectStoreError."""
    prefix = f"{EPOCHS}{volume}/"
    files = [_FILE.fullmatch(name, len(prefix)) for name in await names_of(store, prefix)]
    return frozenset(int(one[2], 16) for one in files if one is not None and one[1] in clusters)
