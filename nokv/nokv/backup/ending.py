"""What an operator states of clusters that share a volume, and what follows from it.

Each function refuses before it states anything, states before it deletes anything, and deletes
before it proposes: one that is cut short is repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from nokv.backup.format import MANIFEST, Manifest, place
from nokv.backup.gone import UNKNOWN, check_not_gone, state_gone, stated, statements, take_back
from nokv.backup.manage import (
    check_unmarked,
    clear,
    delete_all,
    manifests,
    marks_of,
    place_of_row,
    restored,
)
from nokv.errors import NotPermitted, ObjectStoreUnavailable, UsageError
from nokv.objects.port import ObjectStore
from nokv.types.commands import AdoptVolume, EndBackup
from nokv.types.reads import BackupRow, BackupsReply, GetOrigin, ListBackups, OriginReply

if TYPE_CHECKING:
    from nokv.client.core import Core


async def adopt(
    core: Core,
    store: ObjectStore,
    own: str,
    said: Collection[str],
    *,
    abandon: bool,
    timeout_s: float,
) -> list[str]:
    """Make a restored volume cluster `own`'s alone; return which clusters are stated to be gone.

    The cluster that it was restored from is meant without being named. All others that may share
    the bucket must be in `said`: restored ones, those before its original, those that adopted.

    Raises:
        NotPermitted: one is not, or, without `abandon`, the bucket has backups that this cluster
            does not know and so does not hold.
        UsageError: `said` names one that has nothing to do with the volume.
        ForeignVolume: this cluster itself was stated to be gone.
    """
    volume, origin = core.volume.volume, await core.read(GetOrigin())
    assert isinstance(origin, OriginReply)
    if origin.restored and origin.adopted:
        return []
    if not origin.restored:
        raise NotPermitted("the volume was never restored: it has no other original")
    if not origin.ready:
        raise NotPermitted("the restored volume does not serve yet")
    await check_not_gone(store, volume, own)
    before = await statements(store, volume)
    original = origin.lineage[-1][0]
    copies = {cluster for _, cluster in await restored(store, volume)}
    others = (copies | {who for who, _ in origin.lineage} | {*before.values()}) - {own}
    _ask(said, others, {original, *before}, "may share the bucket")
    await _unknown(core, store, abandon=abandon)
    gone = {original, *said} - {own}
    await state_gone(store, volume, gone, own)
    # From here on none of those finishes a backup. One may have, or have been restored, before.
    await _drop(store, await _unknown(core, store, abandon=abandon))
    later = {cluster for _, cluster in await restored(store, volume)} - others - {own}
    if later or await _unknown(core, store, abandon=True):
        message = "a backup was made or restored meanwhile"
        raise NotPermitted(message, hint="nothing is adopted yet: say it again")
    await core.propose(AdoptVolume(), (), timeout_s)
    return sorted(gone)


async def end_backup(
    core: Core,
    store: ObjectStore,
    own: str,
    row: BackupRow,
    said: Collection[str],
    *,
    abandon: bool,
    timeout_s: float,
) -> bool:
    """End a backup; return whether all its objects are gone: else the collector goes on with it.

    Raises:
        NotPermitted: a cluster that was restored from it is not stated to be gone; or, without
            `abandon`, one that is made backups; or it is the original's, and nothing is adopted.
        ForeignVolume: this cluster itself was stated to be gone.
    """
    volume, origin = core.volume.volume, await core.read(GetOrigin())
    assert isinstance(origin, OriginReply)
    await check_not_gone(store, volume, own)
    if row.cluster != own and not origin.adopted:
        message = f"backup {row.name} is cluster {row.cluster}'s, and the volume is not adopted"
        raise NotPermitted(message, hint="delete it there, or see nokv volume adopt")
    where = place_of_row(volume, row)
    gone = frozenset((*said, *await stated(store, volume), own))
    await check_unmarked(store, where, gone)
    ended = {*await marks_of(store, where)} & {*said} - {own}
    await _theirs(store, volume, ended, abandon=abandon)
    await state_gone(store, volume, ended, own)
    await _drop(store, await _theirs(store, volume, ended, abandon=abandon))
    await core.propose(EndBackup(row.backup), (), timeout_s)
    return await clear(store, where, own=own, gone=gone)


async def reclaim(store: ObjectStore, volume: str, own: str, said: Collection[str]) -> str:
    """Take the volume back from the cluster that adopted it by mistake; return which that was.

    Raises:
        NotPermitted: nobody adopted it from cluster `own`; or the one that did, or one that came of
            that one by restores and adoptions and needs what only it held, is not in `said`.
        UsageError: `said` names another one.
    """
    before = await statements(store, volume)
    if own not in before:
        raise NotPermitted("nobody stated that this cluster is gone")
    by = before[own]
    if by not in said:
        message = f"cluster {by} has the volume"
        raise NotPermitted(message, hint=f"if it was stopped for good: --gone {by}")
    # From a cluster to one that was restored from its backups, or that adopted the volume from it.
    passed = await restored(store, volume) | {*before.items()}
    heirs = {by}
    while more := {to for of, to in passed if of in heirs} - {own, UNKNOWN, *heirs}:
        heirs |= more
    _ask(said, heirs, {*before}, f"may share what cluster {by} stored")
    await state_gone(store, volume, said, own)  # first: at no time do both delete
    await take_back(store, volume, own)
    return by


def _ask(said: Collection[str], others: set[str], known: set[str], may: str) -> None:
    """Return if each of `others` is in `said` or in `known`, and `said` names none but them.

    Raises UsageError, NotPermitted.
    """
    for name in said:
        if name not in others:
            names = ", ".join(sorted(others))
            hint = f"these may share it: {names}" if names else "there is none: leave --gone out"
            raise UsageError(f"--gone {name}: no such cluster shared this volume", hint=hint)
    if left := sorted(others - known - {*said}):
        message = f"cluster {', '.join(left)} {may}"
        raise NotPermitted(message, hint="for each that is gone for good too, say --gone CLUSTER")


async def _unknown(core: Core, store: ObjectStore, *, abandon: bool) -> list[Manifest]:
    """Return the backups in the bucket that this cluster does not know."""
    # The manifests first: one of its own that comes meanwhile had its row before.
    found = await manifests(store, core.volume.volume)
    rows = await core.read(ListBackups())
    assert isinstance(rows, BackupsReply)
    known = {(row.cluster, row.backup) for row in rows.rows}
    unknown = [one for one in found if (one.head.cluster, one.head.backup) not in known]
    if unknown and not abandon:
        message = f"backups {_names(unknown)} are unknown here: nobody would hold their bodies"
        raise NotPermitted(message, hint="restore the latest instead, or say --abandon")
    return unknown


async def _theirs(
    store: ObjectStore, volume: str, clusters: set[str], *, abandon: bool
) -> list[Manifest]:
    """Return the backups that these clusters made."""
    found = [one for one in await manifests(store, volume) if one.head.cluster in clusters]
    if found and not abandon:
        message = f"backups {_names(found)} are of clusters said to be gone and need what it holds"
        raise NotPermitted(message, hint="keep it until they are deleted, or say --abandon")
    return found


def _names(found: Sequence[Manifest]) -> str:
    return ", ".join(one.head.name for one in found)


async def _drop(store: ObjectStore, found: Sequence[Manifest]) -> None:
    """Make these backups none. Raises ObjectStoreUnavailable if one is left."""
    failed = await delete_all(store, [place(one.head) + MANIFEST for one in found])
    for name, error in failed.items():
        raise ObjectStoreUnavailable(f"{name} could not be deleted: {error}")
