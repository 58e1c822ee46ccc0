"""`nokv volume`: what a cluster's volume is, and the statement that its original is gone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import add_config, with_client
from nokv.cli.main import add_action, add_cluster
from nokv.errors import NotPermitted, UsageError

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient
    from nokv.types.reads import OriginReply


def add_volume(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv volume`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = add_action(actions, "show", "show the volume, and where it was restored from")
    add_cluster(show)
    show.set_defaults(run=with_client(_show))
    adopt = add_action(
        actions,
        "adopt",
        "state that the original of a restored volume is gone for good: from then on objects that "
        "only the original needed are deleted",
    )
    add_cluster(adopt)
    add_config(adopt)
    adopt.add_argument(
        "--gone", action="append", default=[], metavar="CLUSTER",
        help="another cluster that was restored from a backup of this volume and is gone too",
    )  # fmt: skip
    adopt.add_argument(
        "--abandon", action="store_true", help="give up the original's later backups"
    )
    adopt.set_defaults(run=with_client(_adopt, operator=True))


async def _origin(fs: AsyncClient) -> OriginReply:
    from nokv.types.reads import GetOrigin, OriginReply

    reply = await fs.core.read(GetOrigin())
    assert isinstance(reply, OriginReply)
    return reply


async def _show(fs: AsyncClient, options: argparse.Namespace) -> int:
    del options
    volume, origin = fs.core.volume, await _origin(fs)
    output.line(
        {
            "volume": volume.volume,
            "kind": volume.kind,
            "endpoint": volume.endpoint,
            "bucket": volume.bucket,
            "prefix": volume.prefix,
            "region": volume.region,
            "owner_epoch": volume.owner_epoch,
            "restored": origin.restored,
            "adopted": origin.adopted,
            "restored_version": origin.version,
            "lineage": [list(link) for link in origin.lineage],
        }
    )
    return 0


def _check_gone(gone: list[str], restored: set[str], originals: set[str]) -> None:
    """Raise UsageError unless each cluster that is said to be gone is one of these."""
    for name in gone:
        if name not in restored | originals:
            known = ", ".join(sorted(restored))
            hint = f"restored from it: {known}" if known else "none was: leave --gone out"
            raise UsageError(
                f"--gone {name}: no such cluster was restored from this volume", hint=hint
            )


async def _adopt(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.backup.format import MANIFEST, place
    from nokv.backup.gone import state_gone
    from nokv.backup.manage import manifests, restored
    from nokv.types.commands import AdoptVolume
    from nokv.types.reads import BackupsReply, ListBackups

    core, origin = fs.core, await _origin(fs)
    store = await core.object_store()
    cluster = (await core.router.find_leader(options.timeout)).hello.cluster
    originals = {one for one, _ in origin.lineage}
    others = await restored(store, core.volume.volume) - {cluster}
    _check_gone(options.gone, others, originals)
    left = sorted(others - originals - set(options.gone))
    if left:
        message = f"cluster {', '.join(left)} was restored from a backup of this volume too"
        raise NotPermitted(message, hint="if it is gone for good too, say --gone CLUSTER")
    rows = await core.read(ListBackups())
    assert isinstance(rows, BackupsReply)
    known = {(row.cluster, row.backup) for row in rows.rows}
    unknown = [
        one
        for one in await manifests(store, core.volume.volume)
        if (one.head.cluster, one.head.backup) not in known
    ]
    if unknown and not options.abandon:
        names = ", ".join(one.head.name for one in unknown)
        message = f"backups {names} are later than this volume's: nobody would hold their bodies"
        raise NotPermitted(message, hint="restore the latest instead, or say --abandon")
    gone = (originals | set(options.gone)) - {cluster}
    await state_gone(store, core.volume.volume, gone, cluster)
    await store.delete([place(one.head) + MANIFEST for one in unknown])
    await core.propose(AdoptVolume(), (), options.timeout)
    print("the volume is this cluster's alone: the collector begins")
    return 0
