"""`nokv volume`: what a cluster's volume is, and the statement that its original is gone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import add_config, add_gone, own_cluster, with_client
from nokv.cli.main import add_action, add_cluster

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
    add_gone(adopt, "another cluster that may share the bucket, and is gone for good too")
    adopt.add_argument(
        "--abandon", action="store_true", help="give up the original's later backups"
    )
    adopt.set_defaults(run=with_client(_adopt, operator=True))
    reclaim = add_action(
        actions,
        "reclaim",
        "take the volume back from a cluster that adopted it by mistake and was stopped for good",
    )
    add_cluster(reclaim)
    add_config(reclaim)
    add_gone(reclaim, "the one that adopted it; also each that was restored from its backups")
    reclaim.set_defaults(run=with_client(_reclaim, operator=True))


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


async def _adopt(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.backup.ending import adopt

    core = fs.core
    store, own = await core.object_store(), await own_cluster(core, options)
    gone = await adopt(
        core, store, own, options.gone, abandon=options.abandon, timeout_s=options.timeout
    )
    if gone:
        print(f"stated to be gone for good: cluster {', '.join(gone)}")
    print("the volume is this cluster's alone: the collector begins")
    return 0


async def _reclaim(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.backup.ending import reclaim

    core = fs.core
    store, own = await core.object_store(), await own_cluster(core, options)
    by = await reclaim(store, core.volume.volume, own, options.gone)
    print(f"the volume is this cluster's again, and cluster {by} is stated to be gone")
    print("what that one deleted is gone: nokv fsck --deep lists it")
    return 0
