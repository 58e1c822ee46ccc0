"""`nokv snapshot`: make, list, renew and delete snapshots."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import duration_ns, each, with_client
from nokv.cli.main import add_action, add_cluster

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient
    from nokv.types.views import SnapshotReply


def add_snapshot(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv snapshot`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = add_action(
        actions, "create", "keep a directory, of any size, readable as it is now: --at NAME"
    )
    create.add_argument("path", metavar="PATH", help="a directory")
    create.add_argument(
        "--name", required=True, help="unique in the volume: letters, digits, '.', '_', ':', '-'"
    )
    _add_lease(create)
    create.add_argument("--json", action="store_true", help="one JSON object")
    add_cluster(create)
    create.set_defaults(run=with_client(_create))
    listing = add_action(actions, "list", "list the snapshots")
    listing.add_argument(
        "path", metavar="PATH", nargs="?", default=None, help="only of this path and below it"
    )
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    add_cluster(listing)
    listing.set_defaults(run=with_client(_list))
    renew = add_action(actions, "renew", "let leases begin anew, or hold snapshots")
    renew.add_argument("names", nargs="+", metavar="NAME")
    _add_lease(renew)
    add_cluster(renew)
    renew.set_defaults(run=with_client(_renew))
    delete = add_action(actions, "delete", "delete snapshots; clones that were made of them stay")
    delete.add_argument("names", nargs="+", metavar="NAME")
    add_cluster(delete)
    delete.set_defaults(run=with_client(_delete))


def _add_lease(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--ttl", type=duration_ns, default=None, metavar="TIME",
        help="it goes by itself after so long: 30d, 12h, 5m, 10s (default: 7d)",
    )  # fmt: skip
    how.add_argument("--hold", action="store_true", help="until it is deleted; only its owner")


def _ttl_s(options: argparse.Namespace) -> float | None:
    return None if options.ttl is None else options.ttl / 1e9


async def _create(fs: AsyncClient, options: argparse.Namespace) -> int:
    name = options.name
    made = await fs.snapshots.create(options.path, name, ttl_s=_ttl_s(options), hold=options.hold)
    if options.json:
        output.line({"name": name, **output.named("path", options.path), "version": made.version})
        return 0
    ends = "held until it is deleted" if options.hold else f"for {_ttl(options)}"
    print(f"snapshot {name} of {output.shown(options.path)} at version {made.version}, {ends}")
    return 0


def _ttl(options: argparse.Namespace) -> str:
    from nokv.client.views import LEASE_S

    return output.duration(LEASE_S if options.ttl is None else options.ttl / 1e9)


async def _list(fs: AsyncClient, options: argparse.Namespace) -> int:
    for row in await fs.snapshots.list(options.path):
        if options.json:
            output.line(_fields(row))
        else:
            print(_line(row))
    return 0


def _fields(row: SnapshotReply) -> dict[str, object]:
    return {
        "name": row.name,
        **output.named("path", _path(row)),
        "version": row.version,
        "created_ns": row.created_wall_ns,
        "left_s": row.left_s,
        "automatic": row.automatic,
        "maker": row.maker,
        "views": row.views,
        "clones": row.clones,
        "backups": row.backups,
        **_holders(row),
        "alone_bytes": row.alone_bytes,
        "view": row.view,
        "inode": row.inode,
    }


def _path(row: SnapshotReply) -> str:
    from nokv.client.paths import decode_name

    return decode_name(row.path)


def _holders(row: SnapshotReply) -> dict[str, list[str]]:
    """Return who holds what a snapshot shows; a clone that was removed has no path."""
    from nokv.client.paths import decode_name

    clones = [decode_name(path) for path in row.clone_paths if path]
    return {"clone_paths": clones, "backup_names": list(row.backup_names)}


def _named(count: str, names: list[str]) -> str:
    return f"{count} ({', '.join(map(output.shown, names))})" if names else count


def _line(row: SnapshotReply) -> str:
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created_wall_ns / 1e9))
    ends = "held" if row.left_s is None else f"{output.duration(row.left_s)} left"
    marks = [ends, f"by uid {row.maker}"]
    holders = _holders(row)
    if row.clones:
        marks.append(_named(output.plural(row.clones, "clone"), holders["clone_paths"]))
    if row.backups:
        marks.append(_named(output.plural(row.backups, "backup"), holders["backup_names"]))
    if row.views > 1:
        marks.append(f"{output.plural(row.views - 1, 'view')} inside")
    if row.automatic:
        marks.append("automatic")
    if row.alone_bytes:
        marks.append(f"alone shows {output.size(row.alone_bytes)}")
    path = output.shown(_path(row))
    return f"{row.name}  {path}  version {row.version}  {made}  {', '.join(marks)}"


async def _renew(fs: AsyncClient, options: argparse.Namespace) -> int:
    async def one(name: str) -> None:
        await fs.snapshots.renew(name, ttl_s=_ttl_s(options), hold=options.hold)

    return await each(options.names, one)


async def _delete(fs: AsyncClient, options: argparse.Namespace) -> int:
    return await each(options.names, fs.snapshots.delete)
