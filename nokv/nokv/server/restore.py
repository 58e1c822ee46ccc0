"""`nokv backup restore`: a new cluster's data directory, made of a backup.

The state is the backup's, under a new cluster, at a new log that begins behind it: nobody can join
by the log alone, every further member takes an image. What makes it a restored one is a row in the
state from the start: until an operator adopts the volume nothing of the bucket is deleted.

The identity is drawn and written first, under another name, and renamed last: a restore that was
cut short serves nothing, and one that is repeated is the same cluster. Its mark in the bucket comes
right before that, so a cluster that never was keeps no backup from being deleted.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from nokv.backup.format import (
    MANIFEST,
    Head,
    Manifest,
    mark_of,
    naming_damage,
    pieces_of,
    place,
    read_head,
)
from nokv.backup.gone import check_not_gone
from nokv.backup.manage import read_manifest, verify_stream
from nokv.errors import (
    BackupDamaged,
    BackupGone,
    DataDirectoryError,
    ForeignVolume,
    WrongCluster,
)
from nokv.kv.errors import StoreFailed
from nokv.kv.image import restore_image
from nokv.kv.lmdb_store import LmdbKV
from nokv.objects.port import ObjectStore
from nokv.objects.volume import check_volume
from nokv.server import init
from nokv.server.config import NodeConfig
from nokv.server.datadir import (
    IDENTITY_FILE,
    ClusterFile,
    MemberAddress,
    NodeFile,
    lock,
    log_path,
    make_directory,
    replication_identity,
    state_path,
    sync_directory,
    write_durably,
)
from nokv.server.fsck import Missing, fsck
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.ops_backup import backups_of, origin_of
from nokv.state.port import KV
from nokv.state.records import (
    Origin,
    Position,
    decode_position,
    decode_session,
    encode,
)
from nokv_replication import DiskFailed, GroupConfig
from nokv_replication.bootstrap import Member, Members
from nokv_replication.disk import OsDisk
from nokv_replication.log import Log

RESTORING_FILE: Final = f"{IDENTITY_FILE}.restoring"
"""The identity of a restore that has not ended."""
MADE: Final = "state.restored"
"""The state until it is whole, beside its final name."""


class Restored(msgspec.Struct, frozen=True):
    """What a restore made."""

    identity: NodeFile
    version: int
    files: int
    missing: tuple[Missing, ...]


async def mark(
    store: ObjectStore, head: Head, cluster: str, lineage: Iterable[str], *, held: bool = True
) -> None:
    """Leave the mark of a restored cluster, and see that it may still be restored.

    In this order: whoever ends the backup deletes its manifest first and looks for marks then, so
    one of both sees the other. What was looked at before is there, then: nothing was let go of.
    Raises as `check_allowed`; no mark is left.
    """
    marks = [mark_of(where, cluster) for where in (place(head), *lineage)]
    for name in marks:
        await store.put(name, b'{"format":1}')
    try:
        await check_allowed(store, head, held=held)
    except (BackupGone, BackupDamaged, ForeignVolume):
        await store.delete(marks)
        raise


async def check_allowed(store: ObjectStore, head: Head, *, held: bool) -> None:
    """Return if a backup is kept, or (not `held`) if its maker was not stated to be gone.

    Whoever has the volume after such a statement deletes what only that cluster's backups show.
    Raises BackupGone, BackupDamaged for another's manifest, ForeignVolume.
    """
    if held:
        found: Manifest = await read_manifest(store, place(head))
        if found.head != head:
            raise BackupDamaged(f"{place(head)}{MANIFEST} is another backup's")
        return
    try:
        await check_not_gone(store, head.volume.volume, head.cluster)
    except ForeignVolume as error:
        raise ForeignVolume(
            f"cluster {head.cluster}, which made the backup, was stated to be gone: another one"
            " has the volume and deletes what it shows",
            hint="restore a backup of that one, or copy the files from there",
        ) from error


async def restore(
    source: Path,
    store: ObjectStore,
    config: NodeConfig,
    *,
    node: int,
    peer: str,
    rpc: str,
    silence_ns: int,
    join_file: Path | None = None,
    held: bool = True,
    name: str = "",
) -> Restored:
    """Make the data directory of `config` from the backup in the file `source`.

    `held` False goes on where the cluster that made the backup does not keep it any more; the mark
    is left all the same, for others that share the bucket. Errors call the backup by `name`, or
    else by its file.

    Raises:
        BackupDamaged: nothing was made.
        BackupGone: nobody holds what the backup shows.
        ForeignVolume, WrongCluster: the bucket is another volume's; or it is not `held`, and the
            cluster that made it was stated to be gone.
        DataDirectoryError: the directory is initialised, not writable, or another process holds it.
    """
    data_dir = Path(config.data_dir)
    with source.open("rb") as stream:
        head, _ = verify_stream(stream, name or str(source))
    await check_volume(store, head.volume.volume)
    make_directory(data_dir)
    locked = lock(data_dir)
    try:
        before = _cut_short(data_dir)
        init._refuse_initialised(data_dir)  # noqa: SLF001 - one rule for both ways to begin
        identity = _identity(head, before, MemberAddress(node, peer, rpc))
        made = state_path(data_dir).with_name(MADE)
        make_directory(log_path(data_dir))
        encoded = msgspec.json.format(msgspec.json.encode(identity), indent=2)
        write_durably(data_dir / RESTORING_FILE, encoded)
        _receive(source, made)
        kv = LmdbKV(made)
        try:
            lineage = _lineage(kv)
            await check_allowed(store, head, held=held)
            position = _rewrite(kv, head, identity, lineage, silence_ns)
            missing, files = await fsck(kv, store, head.volume.volume, made.with_name("fsck"))
        except StoreFailed as error:
            raise DataDirectoryError(str(error)) from error
        finally:
            kv.close()
        _found_log(data_dir, config, identity, position)
        _rename(made, state_path(data_dir))
        linked = [where for _, where in lineage]
        await mark(store, head, identity.cluster.cluster, linked, held=held)
        if join_file is not None:
            write_durably(join_file, msgspec.json.format(msgspec.json.encode(identity.cluster)))
        _rename(data_dir / RESTORING_FILE, data_dir / IDENTITY_FILE)
    finally:
        os.close(locked)
    return Restored(identity, head.version, files, tuple(missing))


def _cut_short(data_dir: Path) -> NodeFile | None:
    """Return the identity of a restore that did not end; what it left makes room for another.

    A state under its final name is only taken away if it is that restore's own and never served.
    """
    try:
        before = msgspec.json.decode((data_dir / RESTORING_FILE).read_bytes(), type=NodeFile)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    state = state_path(data_dir)
    if state.exists() and not (data_dir / IDENTITY_FILE).exists():
        kv = LmdbKV(state)
        try:
            origin = origin_of(kv)
        finally:
            kv.close()
        if origin is not None and origin.cluster == before.cluster.cluster and not origin.ready:
            shutil.rmtree(state.with_name(MADE), ignore_errors=True)
            _rename(state, state.with_name(MADE))
    return before


def _rename(made: Path, to: Path) -> None:
    """Give a file or folder its final name, durably. Raises DataDirectoryError."""
    try:
        made.rename(to)
        sync_directory(to.parent)
    except OSError as error:
        raise DataDirectoryError(f"{to}: {error.strerror}") from error


def _receive(source: Path, made: Path) -> None:
    """Make a store of the backup's image, in the place of what a restore before left there."""
    shutil.rmtree(made, ignore_errors=True)
    try:
        with source.open("rb") as stream, naming_damage(stream, str(source)):
            read_head(stream)
            restore_image(pieces_of(stream), made)
    except StoreFailed as error:
        raise DataDirectoryError(str(error)) from error


def _identity(head: Head, before: NodeFile | None, member: MemberAddress) -> NodeFile:
    """Return who the new cluster's first node is: as `before`, if a restore was cut short."""
    cluster = ClusterFile(
        cluster=before.cluster.cluster if before else secrets.token_hex(16),
        volume=head.volume,
        worker_token=before.cluster.worker_token if before else secrets.token_hex(32),
        members=(member,),
        root_uid=os.getuid(),
        root_gid=os.getgid(),
    )
    if cluster.cluster == head.cluster:
        raise WrongCluster("a restored cluster has a name of its own")
    incarnation = before.incarnation if before else secrets.randbits(62) + 1
    return NodeFile(node=member.node, incarnation=incarnation, cluster=cluster)


def _lineage(kv: KV) -> tuple[tuple[str, str], ...]:
    origin = origin_of(kv)
    return () if origin is None or origin.adopted else origin.lineage


def _rewrite(
    kv: LmdbKV,
    head: Head,
    identity: NodeFile,
    lineage: tuple[tuple[str, str], ...],
    silence_ns: int,
) -> Position:
    """Turn the original's state into the new cluster's; return where it stands."""
    row = kv.get(Family.META, keys.POSITION)
    assert row is not None, "a backup is a command, so an entry was applied"
    member = identity.cluster.members[0]
    members = Members.first(
        identity.cluster.cluster,
        (Member(identity.node, identity.incarnation, member.peer, info=member.rpc),),
    )
    old = decode_position(row)
    position = Position(old.index, old.term, msgspec.msgpack.encode(members))
    before = origin_of(kv)
    ttls = [
        session.ttl_ns
        for key, value in kv.scan(Family.SESSION, keys.pack(1), b"\xff" * 9)
        if key[8:] == keys.RECORD and not (session := decode_session(value)).died
    ]
    origin = Origin(
        identity.cluster.cluster,
        head.version,
        (*lineage, (head.cluster, place(head))),
        max([silence_ns, *ttls]),
        epochs=() if before is None else before.epochs,
    )
    rows: list[tuple[bytes, bytes | None]] = [
        (keys.POSITION, encode(position)),
        (keys.ORIGIN, encode(origin)),
    ]
    for number, record in list(backups_of(kv)):
        # Whether it was completed the image can't know; the manifest in the bucket does.
        kept = msgspec.structs.replace(record, complete=True, session=0, ended_cluster_ns=0)
        rows.append((keys.backup(number), encode(kept)))
    kv.write(Family.META, sorted(rows))
    kv.commit()
    return position


def _found_log(data_dir: Path, config: NodeConfig, identity: NodeFile, at: Position) -> None:
    """Make a log that begins behind the state."""
    group = GroupConfig(segment_bytes=config.log.segment_bytes)
    who, rng = replication_identity(identity), random.Random(secrets.randbits(128))
    try:
        disk = OsDisk(log_path(data_dir))
        Log.create(disk, group, who, rng)
        log = Log.open(disk, group, who, rng)
        if not log.members:
            log.set_members(at.config)
        log.sync()
        log.announce_install(at.index, at.term)
        log.reset(at.index, at.term)
        log.close()
    except DiskFailed as error:
        raise DataDirectoryError(f"{log_path(data_dir)}: {error}") from error
