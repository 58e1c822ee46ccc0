"""Backups: the hold of what an image shows, and the origin of a restored state.

A backup pins every view at the last version of its entry, which is the version that its image
shows. Its record lives until it is released: being `ended` only says that nothing may rest on it
any more, and the node's worker releases it once its objects are gone and no restored cluster says
that it still needs what the hold keeps (`docs/namespace.md`: Backups). Who may do all this is not
the state's question: the node wants the cluster's token (`OPERATOR_OPS`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

from nokv.errors import AlreadyExists, InvalidArgument, NotFound, NotPermitted, ResultTooLarge
from nokv.state import keys
from nokv.state.context import JOB_BACKUP, JOB_UNPIN, Context, is_alive
from nokv.state.effects import BackupReached
from nokv.state.families import Family
from nokv.state.pinned import Rows, Source
from nokv.state.records import (
    Backup,
    Job,
    Origin,
    Pin,
    decode_backup,
    decode_origin,
    decode_session,
)
from nokv.state.txn import Txn
from nokv.types.commands import (
    AdoptVolume,
    CreateBackup,
    EndBackup,
    FinishBackup,
    RestoreVolume,
)
from nokv.types.results import Done

BACKUPS_MAX = 1024
"""Backups that a volume keeps; each is a pin of every view."""
PINS_A_BACKUP_MAX = 65_536
"""Views, and versions at which they are pinned, that one backup holds: a row for each is written by
the entry that makes it."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
WHERE_CHARACTERS_MAX = 4096
KEEP_NS_MAX = 100 * 365 * 86_400 * 1_000_000_000
DIGEST_BYTES = 16


def backups_of(source: Rows) -> Iterator[tuple[int, Backup]]:
    """Yield (id, record) of every backup, oldest first."""
    start, end = keys.BACKUP_PREFIX, keys.after_prefix(keys.BACKUP_PREFIX)
    for key, value in source.scan(Family.META, start, end):
        yield int.from_bytes(key[len(keys.BACKUP_PREFIX) :], "big"), decode_backup(value)


def origin_of(source: Rows) -> Origin | None:
    """Return where a restored state came from; None for one that was never restored."""
    row = source.get(Family.META, keys.ORIGIN)
    return None if row is None else decode_origin(row)


def check_create(op: CreateBackup) -> None:
    """Raise InvalidArgument for what names no backup."""
    if _NAME.fullmatch(op.name) is None:
        message = f"a backup can't be named {op.name[:120]!r}"
        raise InvalidArgument(message, hint="letters, digits, '.', '_' and '-', at most 100")
    if len(op.where) > WHERE_CHARACTERS_MAX or not 0 < len(op.cluster) <= 64:
        raise InvalidArgument("a place or cluster that can't be one")
    if not 0 < op.keep_ns <= KEEP_NS_MAX:
        raise InvalidArgument(f"a retention of {op.keep_ns} ns", hint="up to a hundred years")
    if not (0 < op.node < 65_536 and 0 <= op.slot < 2**63):
        raise InvalidArgument("a node or a slot outside its range")


def create_backup(ctx: Context, op: CreateBackup) -> Done:
    """Hold what is; the pins are set when the entry ends (`seal`)."""
    found = list(backups_of(ctx.txn))
    if len(found) >= BACKUPS_MAX:
        message = f"the volume has {BACKUPS_MAX} backups"
        raise ResultTooLarge(message, hint="delete some: nokv backup delete")
    if any(one.name == op.name and not one.ended_cluster_ns for _, one in found):
        message = f"a backup {op.name} exists"
        raise AlreadyExists(message, hint="choose another name, or delete it: nokv backup delete")
    if op.slot * 1_000_000 > ctx.wall_ns:
        # Its row would keep all that come before it from being made.
        message = f"slot {op.slot} is {op.slot * 1_000_000 - ctx.wall_ns} ns in the future"
        raise InvalidArgument(message, hint="does NTP run where the leader's worker does?")
    made = (one for _, one in found if one.complete or not one.ended_cluster_ns)
    if op.slot and any(one.slot >= op.slot and one.cluster == op.cluster for one in made):
        raise AlreadyExists(f"the scheduled backup of slot {op.slot} was made")
    if len(ctx.txn.views()) + sum(1 for _ in ctx.txn.versions_held()) > PINS_A_BACKUP_MAX:
        message = f"more than {PINS_A_BACKUP_MAX} views, and versions of them that are held"
        raise ResultTooLarge(message, hint="delete snapshots and clones")
    record = Backup(
        op.name,
        op.cluster,
        ctx.version,
        op.where,
        op.node,
        ctx.session_id,
        ctx.wall_ns,
        ctx.cluster_ns + op.keep_ns,
        slot=op.slot,
    )
    _save(ctx.txn, ctx.version, record)
    ctx.effects.append(BackupReached(ctx.version, op.node))
    return Done()


def seal(txn: Txn, number: int) -> None:
    """Pin every living view for a backup that the entry made, at the entry's last version.

    What is pinned now is pinned for it too: a restored volume's snapshots and clones show that.
    Called when all commands of the entry are applied: its image shows all of them.
    """
    value = txn.get(Family.META, keys.backup(number))
    if value is None:
        return
    version = txn.counters.version
    _save(txn, number, msgspec.structs.replace(decode_backup(value), version=version))
    present = {(view, version) for view in txn.views() if is_alive(txn, view)}
    for view, at in sorted(present.union(txn.versions_held())):
        txn.put_pin(view, at, number, Pin(0))


def finish_backup(ctx: Context, op: FinishBackup) -> Done:
    """Make a backup whose bytes are all stored independent of its maker; done twice is done."""
    record = need_backup(ctx.txn, op.backup)
    if record.ended_cluster_ns:
        raise NotFound(f"backup {record.name} was given up")
    if len(op.digest) != DIGEST_BYTES or not 0 <= op.size_bytes < 2**63:
        raise InvalidArgument("a digest has 16 bytes, and a backup a length")
    done = msgspec.structs.replace(
        record, session=0, complete=True, size_bytes=op.size_bytes, digest=op.digest
    )
    _save(ctx.txn, op.backup, done)
    return Done()


def end_backup(ctx: Context, op: EndBackup) -> Done:
    """Give a backup up, or (`release`) let go of what it held. An absent one is done.

    A restored cluster that is not adopted ends nothing that its original made.
    """
    value = ctx.txn.get(Family.META, keys.backup(op.backup)) if 0 < op.backup < 2**64 else None
    if value is None:
        return Done()
    record = decode_backup(value)
    origin = origin_of(ctx.txn)
    if origin is not None and not origin.adopted and record.cluster != origin.cluster:
        message = f"backup {record.name} is of cluster {record.cluster}, which may still need it"
        raise NotPermitted(message, hint="if that cluster is gone for good: nokv volume adopt")
    if not op.release:
        give_up(ctx, op.backup, record)
        return Done()
    if not record.ended_cluster_ns:
        raise InvalidArgument(f"backup {record.name} is kept: end it first")
    ctx.txn.delete_row(Family.META, keys.backup(op.backup))
    ctx.add_job(JOB_BACKUP, 0, op.backup)
    return Done()


def unpin(ctx: Context, key: bytes, job: Job, limit: int) -> tuple[int, bool]:
    """Look at `limit` pins behind those that a job has looked at; take off those of its backup.

    Returns (pins looked at, finished).
    """
    start = keys.pin(job.view, *job.pin)
    rows = list(islice(ctx.txn.scan(Family.PIN, start, b"\xff" * 9), limit))
    for found, _ in rows:
        view, version, pin_id = keys.pin_parts(found)
        if pin_id == job.a:
            ctx.txn.delete_pin(view, version, pin_id)
            ctx.add_job(JOB_UNPIN, view, version)
    if len(rows) < limit:
        return len(rows), True
    view, version, pin_id = keys.pin_parts(rows[-1][0])
    after = msgspec.structs.replace(job, view=view, pin=(version, pin_id + 1))
    ctx.txn.set_row(Family.META, key, ctx.txn.encode(after))
    return limit, False


def give_up(ctx: Context, number: int, record: Backup) -> None:
    """Note that nothing may rest on a backup from now on."""
    if not record.ended_cluster_ns:
        ended = msgspec.structs.replace(record, ended_cluster_ns=max(1, ctx.cluster_ns), session=0)
        _save(ctx.txn, number, ended)


def abandon_of(ctx: Context, session: int) -> None:
    """Give up the unfinished backups of a session that ends."""
    for number, record in list(backups_of(ctx.txn)):
        if record.session == session and not record.complete:
            give_up(ctx, number, record)


def need_backup(source: Source, number: int) -> Backup:
    """Return a backup's record. Raises NotFound."""
    value = source.get(Family.META, keys.backup(number)) if 0 < number < 2**64 else None
    if value is None:
        raise NotFound(f"no backup {number}")
    return decode_backup(value)


def _save(txn: Txn, number: int, record: Backup) -> None:
    txn.set_row(Family.META, keys.backup(number), txn.encode(record))


# ---------------------------------------------------------------- restored states


def check_restore(op: RestoreVolume) -> None:
    """Raise InvalidArgument for an epoch that can't be one."""
    if not 1 <= op.owner_epoch < 2**32:
        raise InvalidArgument("an owner epoch has 32 bits and is not zero")


def restore_volume(ctx: Context, op: RestoreVolume) -> Done:
    """Begin a restored volume's own life: a new owner epoch, once no session of before lives."""
    origin = origin_of(ctx.txn)
    if origin is None or origin.ready:
        raise AlreadyExists("the volume serves already")
    if op.owner_epoch in (ctx.counters.owner_epoch, *origin.epochs):
        raise InvalidArgument("an owner epoch that was used before")
    for key, value in ctx.txn.scan(Family.SESSION, keys.pack(1), b"\xff" * 9):
        if key[8:] == keys.RECORD and not decode_session(value).died:
            raise NotPermitted("a session of the backup is not ended yet")
    epochs = (*origin.epochs, ctx.counters.owner_epoch)
    ready = msgspec.structs.replace(origin, ready=True, epochs=epochs)
    ctx.txn.set_row(Family.META, keys.ORIGIN, ctx.txn.encode(ready))
    ctx.counters.owner_epoch = op.owner_epoch
    return Done()


def adopt_volume(ctx: Context, _op: AdoptVolume) -> Done:
    """Take it that all other clusters of this volume are gone: the collector may begin."""
    origin = origin_of(ctx.txn)
    if origin is None:
        raise NotPermitted("the volume was never restored: it has no other original")
    if not origin.ready:
        raise NotPermitted("the restored volume does not serve yet")
    adopted = msgspec.structs.replace(origin, adopted=True, lineage=())
    ctx.txn.set_row(Family.META, keys.ORIGIN, ctx.txn.encode(adopted))
    return Done()


CHECKS: dict[type, Callable[[Any], None]] = {
    CreateBackup: check_create,
    RestoreVolume: check_restore,
}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    CreateBackup: create_backup,
    FinishBackup: finish_backup,
    EndBackup: end_backup,
    AdoptVolume: adopt_volume,
    RestoreVolume: restore_volume,
}
