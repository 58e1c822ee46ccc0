"""The object that says whose a bucket is: a volume refuses a store that belongs to another."""

from __future__ import annotations

import asyncio

import msgspec

from nokv.errors import ForeignVolume, ObjectMissing, ObjectStoreError
from nokv.objects.layout import VOLUME_OBJECT, check_volume_id
from nokv.objects.port import ObjectStore
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, SUM_BYTES

FORMAT = 1
_POLL_S = 0.05


class VolumeObject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `volume.json`: written once, when the volume is made."""

    format: int = FORMAT
    volume: str
    """32 lower-case hex digits."""
    chunk_bytes: int = CHUNK_BYTES
    block_bytes: int = BLOCK_BYTES
    sum_bytes: int = SUM_BYTES


async def claim_volume(store: ObjectStore, volume: str) -> bool:
    """Make the store this volume's unless it is somebody's; return whether it was nobody's.

    Two volumes that claim one empty store at the same instant may both succeed, because not every
    store can refuse the second writer; the loser finds out at its next start, and neither ever
    touches the other's objects, whose names carry the volume.

    Raises:
        ForeignVolume: the store belongs to another volume, or to another format.
    """
    wanted = VolumeObject(volume=check_volume_id(volume))
    created = False
    try:
        found = await store.get(VOLUME_OBJECT)
    except ObjectMissing:
        created = True
        await store.put(VOLUME_OBJECT, msgspec.json.format(msgspec.json.encode(wanted)) + b"\n")
        found = await store.get(VOLUME_OBJECT)
    _compare(found, wanted)
    return created


async def check_volume(store: ObjectStore, volume: str) -> None:
    """Return if the store is this volume's, as a client asks before it writes.

    Raises:
        ForeignVolume: it is another volume's, or nobody's.
    """
    wanted = VolumeObject(volume=check_volume_id(volume))
    try:
        found = await store.get(VOLUME_OBJECT)
    except ObjectMissing as error:
        raise ForeignVolume(
            f"the store has no {VOLUME_OBJECT}, so it does not hold volume {volume}",
            hint="check the volume's endpoint, bucket and prefix",
        ) from error
    _compare(found, wanted)


async def await_volume(store: ObjectStore, volume: str, patience_s: float) -> None:
    """Do as `check_volume`, but give a store that is nobody's yet so long to become the volume's.

    A new cluster serves its metadata at once, while a worker still makes bucket and object.

    Raises:
        ForeignVolume: it is another volume's, or still nobody's.
        ObjectStoreError: there is still no bucket, or the store fails.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + patience_s
    while True:
        try:
            await check_volume(store, volume)
        except ObjectStoreError as error:
            missing = type(error) is ObjectStoreError or isinstance(error.__cause__, ObjectMissing)
            if not missing or loop.time() >= end_s:
                raise
        else:
            return
        await asyncio.sleep(_POLL_S)


def _compare(found: bytes, wanted: VolumeObject) -> None:
    try:
        volume = msgspec.json.decode(found, type=VolumeObject)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ForeignVolume(f"{VOLUME_OBJECT} in the store is not NoKV's: {error}") from error
    if volume.volume != wanted.volume:
        raise ForeignVolume(f"the store belongs to volume {volume.volume}, not {wanted.volume}")
    if volume != wanted:
        raise ForeignVolume(f"volume {volume.volume} in the store has another format: {volume}")
