"""`nokv backup`: make, list, verify and delete backups, and restore one as a new cluster."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nokv.cli import output
from nokv.cli.client import add_config, add_gone, cluster_of, duration_ns, own_cluster, with_client
from nokv.cli.main import EXIT_FAILED, add_action, add_cluster
from nokv.errors import BackupDamaged, BackupGone, ConfigError, UsageError

if TYPE_CHECKING:
    from nokv.backup.format import Manifest
    from nokv.client.core import Core
    from nokv.client.fs import AsyncClient
    from nokv.objects.port import ObjectStore
    from nokv.testing.folder import Store
    from nokv.types.reads import BackupRow, BackupsReply
    from nokv.types.values import Volume


def add_backup(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv backup`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = add_action(actions, "create", "hold the volume as it is and store its metadata")
    add_cluster(create)
    add_config(create)
    create.add_argument(
        "--to", default="bucket", help="file:PATH, or bucket, the volume's own (default)"
    )
    create.add_argument("--name", default="", help="what to call it (default: the time)")
    create.add_argument(
        "--retention", type=duration_ns, default=duration_ns("30d"), metavar="TIME",
        help="keep it, and all that it shows, for so long, as 12h or 30d (default: 30d)",
    )  # fmt: skip
    create.add_argument("--json", action="store_true", help="one JSON object")
    create.set_defaults(run=with_client(_create, operator=True))
    listing = add_action(actions, "list", "show the backups of a cluster")
    add_cluster(listing)
    listing.add_argument("--json", action="store_true", help="one JSON object a backup, a line")
    listing.set_defaults(run=with_client(_list))
    verify = add_action(actions, "verify", "read a whole backup and check every digest")
    _add_source(verify)
    add_cluster(verify)
    verify.set_defaults(run=_verify)
    delete = add_action(actions, "delete", "delete a backup; what it held may go then")
    add_cluster(delete)
    add_config(delete)
    delete.add_argument("name", metavar="NAME", help="as nokv backup list shows it")
    add_gone(
        delete, "a cluster that was restored from it and is gone for good: it needs nothing of it"
    )
    delete.add_argument(
        "--abandon", action="store_true",
        help="with --gone: give up the backups that those clusters made",
    )  # fmt: skip
    delete.set_defaults(run=with_client(_delete, operator=True))
    restore = add_action(actions, "restore", "make a new cluster of a backup")
    _add_source(restore)
    restore.add_argument(
        "--config", type=Path, required=True, metavar="FILE",
        help="settings of the new cluster's first node, whose data directory is made",
    )  # fmt: skip
    restore.add_argument(
        "--node", type=int, default=1, metavar="NUMBER", help="of that node (default: 1)"
    )
    where = "(default: as its settings say)"
    restore.add_argument(
        "--peer", default="", metavar="ADDRESS", help=f"where members reach it {where}"
    )
    restore.add_argument(
        "--rpc", default="", metavar="ADDRESS", help=f"where clients reach it {where}"
    )
    restore.add_argument(
        "--join-file", type=Path, metavar="FILE", help="where to write what other nodes join with"
    )
    restore.add_argument(
        "--silence", type=duration_ns, default=duration_ns("30s"), metavar="TIME",
        help="serve nothing for so long at least: the longest time to live of the original's"
        " sessions (default 30s)",
    )  # fmt: skip
    restore.add_argument(
        "--unheld", action="store_true",
        help="go on though the original does not keep the backup: only if it is gone for good",
    )  # fmt: skip
    restore.add_argument("--json", action="store_true", help="one JSON object")
    restore.set_defaults(run=_restore)


def _add_source(parser: argparse.ArgumentParser) -> None:
    from nokv.cli.local import add_store

    parser.add_argument(
        "source", metavar="SOURCE", help="file:PATH, or a backup's name, or NAME/CLUSTER"
    )
    add_store(parser)


async def _create(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.backup.create import create_backup

    core = _core(fs)
    path = _file_of(options.to)
    if path is None and options.to != "bucket":
        raise UsageError(f"--to {options.to}", hint="write file:PATH or bucket")
    name = options.name or time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    store = await core.object_store()
    manifest = await create_backup(core, store, name=name, keep_ns=options.retention, to=path)
    fields = _fields(manifest)
    if options.json:
        output.line(fields)
    else:
        size = output.size(manifest.size_bytes)
        print(f"backup {name} at version {manifest.head.version}, {size}, in {manifest.where}")
    return 0


def _fields(manifest: Manifest) -> dict[str, Any]:
    head = manifest.head
    return {
        "name": head.name,
        "backup": head.backup,
        "cluster": head.cluster,
        "version": head.version,
        "created_ns": head.created_ns,
        "size_bytes": manifest.size_bytes,
        "where": manifest.where,
        "digest": manifest.digest,
    }


def _core(fs: AsyncClient) -> Core:
    return fs.core


async def _rows(fs: AsyncClient) -> BackupsReply:
    from nokv.types.reads import BackupsReply, ListBackups

    reply = await _core(fs).read(ListBackups())
    assert isinstance(reply, BackupsReply)
    return reply


async def _list(fs: AsyncClient, options: argparse.Namespace) -> int:
    reply = await _rows(fs)
    core = _core(fs)
    store = await core.object_store()
    for row in reply.rows:
        state = await _state(store, core.volume.volume, row, reply.cluster_ns)
        if options.json:
            output.line(
                {
                    "name": row.name,
                    "backup": row.backup,
                    "cluster": row.cluster,
                    "state": state,
                    "version": row.version,
                    "created_ns": row.created_wall_ns,
                    "keep_s": max(0, row.until_cluster_ns - reply.cluster_ns) / 1e9,
                    "size_bytes": row.size_bytes,
                    "where": row.where,
                }
            )
            continue
        age_h = max(0, time.time_ns() - row.created_wall_ns) / 3.6e12
        size = output.size(row.size_bytes)
        what = f"{row.name}  {state}  version {row.version}"
        print(f"{what}  {size}  {age_h:.1f} h  {output.shown(row.where)}")
    return 0


async def _state(store: ObjectStore, volume: str, row: BackupRow, cluster_ns: int) -> str:
    from nokv.backup.manage import place_of_row, read_manifest

    if row.ended_cluster_ns:
        return "ending"
    try:
        await read_manifest(store, place_of_row(volume, row))
    except BackupGone:
        return "incomplete"
    except BackupDamaged:
        return "damaged"
    if not row.complete:
        return "incomplete"
    return "expiring" if row.until_cluster_ns <= cluster_ns else "complete"


async def _delete(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.backup.ending import end_backup

    core = _core(fs)
    rows = [one for one in (await _rows(fs)).rows if one.name == options.name]
    if not rows:
        raise BackupGone(f"no backup is named {options.name}")
    own, store = await own_cluster(core, options), await core.object_store()
    whole = True
    for row in rows:
        whole &= await end_backup(
            core, store, own, row, options.gone, abandon=options.abandon, timeout_s=options.timeout
        )
        if row.where.startswith("file:"):
            print(f"its bytes stay where they were stored: {output.shown(row.where)}")
    left = "" if whole else "; not all of its objects could be deleted, the worker goes on with it"
    print(f"backup {options.name} is deleted; what it held goes after the collector's grace{left}")
    return 0


def _file_of(text: str) -> Path | None:
    return Path(text.removeprefix("file:")).absolute() if text.startswith("file:") else None


def _store_named(options: argparse.Namespace) -> Store:
    from nokv.cli.local import parse_store

    return parse_store(options.store, options.endpoint, options.region)


async def _store_of(options: argparse.Namespace) -> ObjectStore:
    """Return the store that a backup named by its name is in: as given, or the cluster's volume's.

    Raises:
        UsageError: none is given, and no cluster could say.
    """
    from nokv.objects.open import open_store

    if options.store:
        return open_store(_store_named(options))
    hint = "give where it is: --store s3://bucket/prefix, or file:PATH instead of its name"
    message = f"{options.source} is a backup by its name, and no store is given"
    if options.run is not _verify:  # a restore is for when there is no cluster to ask
        raise UsageError(message, hint=hint)
    from nokv.client.connect import connect
    from nokv.client.core import ClientConfig

    try:
        cluster = cluster_of(options)
    except ConfigError:
        raise UsageError(message, hint=f"{hint}; or a cluster: --cluster") from None
    async with connect(cluster, config=ClientConfig(deadline_s=options.timeout)) as fs:
        return open_store(fs.volume)


async def _fetched(options: argparse.Namespace, scratch: Path) -> tuple[Path, ObjectStore | None]:
    """Return the backup as a local file, and the store it came from if it came from one."""
    from nokv.backup.manage import fetch, find

    path = _file_of(options.source)
    if path is not None:
        return path, None
    store = await _store_of(options)
    try:
        manifest = await find(store, options.source)
        if not manifest.parts:
            message = f"backup {options.source} is in {manifest.where}"
            raise BackupGone(message, hint="name that instead of its name, where the file is")
        local = scratch / "backup"
        with local.open("wb") as stream:
            await fetch(store, manifest, stream)
    except BaseException:
        await store.close()
        raise
    return local, store


def _verify(options: argparse.Namespace) -> int:
    return asyncio.run(_verified(options))


async def _verified(options: argparse.Namespace) -> int:
    from nokv.backup.manage import verify_stream
    from nokv.cli.main import complain

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path, store = await _fetched(options, Path(scratch))
            if store is not None:
                await store.close()
            with path.open("rb") as stream:
                head, info = verify_stream(stream, options.source)
        except BackupDamaged as error:
            complain(error)
            return EXIT_FAILED
        except FileNotFoundError as error:
            raise BackupGone(f"{options.source}: {error.strerror}") from error
    print(f"{head.name} is whole: version {head.version}, {info.records} records")
    return 0


def _tell_other_store(options: argparse.Namespace, volume: Volume) -> None:
    """Tell whoever restores from a copy of the bucket that the volume itself stays where it is."""
    if not options.store:
        return
    given = _store_named(options)
    there = (volume.kind, volume.endpoint, volume.bucket, volume.prefix)
    if (given.kind, given.endpoint, given.bucket, given.prefix) != there:
        place = "/".join(part for part in (volume.endpoint.rstrip("/"), volume.bucket) if part)
        text = f"--store is not the volume's own: the new cluster uses the {volume.kind} store"
        sys.stderr.write(f"nokv: {text} {place}\n")


def _restore(options: argparse.Namespace) -> int:
    return asyncio.run(_restored(options))


async def _restored(options: argparse.Namespace) -> int:
    from nokv.backup.manage import verify_stream
    from nokv.objects.open import open_store
    from nokv.server.config import load
    from nokv.server.restore import restore

    config = load(options.config, {})
    with tempfile.TemporaryDirectory() as scratch:
        path, fetched_from = await _fetched(options, Path(scratch))
        if fetched_from is not None:
            await fetched_from.close()
        if not path.exists():
            raise BackupGone(f"no file {path}")
        with path.open("rb") as stream:
            head, _ = verify_stream(stream, options.source)
        _tell_other_store(options, head.volume)
        # The volume's own: the new cluster serves from it, whatever the backup was read from.
        store = open_store(head.volume)
        try:
            made = await restore(
                path,
                store,
                config,
                node=options.node,
                peer=options.peer or config.peer.advertise or config.peer.listen,
                rpc=options.rpc or config.rpc.advertise or config.rpc.listen,
                silence_ns=options.silence,
                join_file=options.join_file,
                held=not options.unheld,
                name=options.source,
            )
        finally:
            await store.close()
    volume = made.identity.cluster.volume.volume
    if options.json:
        output.line(
            {
                "cluster": made.identity.cluster.cluster,
                "version": made.version,
                "files": made.files,
                "missing": [
                    {"inode": one.inode, "chunk": one.chunk, "object": one.name(volume)}
                    for one in made.missing
                ],
            }
        )
    else:
        print(f"cluster {made.identity.cluster.cluster} has version {made.version} of the volume")
        for one in made.missing:
            print(f"missing: inode {one.inode}, chunk {one.chunk}: {one.name(volume)}")
        print("it deletes nothing from the bucket until: nokv volume adopt")
    return EXIT_FAILED if made.missing else 0
