"""`nokv trash`: what was removed with `rm --trash`, restored or removed for good."""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import duration_ns, each, with_client
from nokv.cli.main import add_action, add_cluster
from nokv.errors import NotFound, UsageError

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient
    from nokv.types.trash import TrashRow

_ID = re.compile(r"(\d{1,19})-(\d{1,19})")


def add_trash(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv trash`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = add_action(actions, "list", "list what is in the trash: yours, everything for root")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    add_cluster(listing)
    listing.set_defaults(run=with_client(_list))
    restore = add_action(actions, "restore", "give entries of the trash their names again")
    restore.add_argument("entries", nargs="+", metavar="ENTRY", help="an id, or the path that it "
                         "had: the newest of that path")  # fmt: skip
    restore.add_argument("--to", default=None, metavar="PATH", help="another path, for one entry")
    add_cluster(restore)
    restore.set_defaults(run=with_client(_restore))
    empty = add_action(actions, "empty", "remove entries of the trash for good")
    empty.add_argument("entries", nargs="*", metavar="ENTRY", help="ids or paths (default: all)")
    empty.add_argument(
        "--older-than", type=duration_ns, default=0, metavar="TIME",
        help="only what has been there for so long: 7d, 12h",
    )  # fmt: skip
    add_cluster(empty)
    empty.set_defaults(run=with_client(_empty))
    keep = add_action(actions, "keep", "set for how long the volume keeps its trash; root only")
    keep.add_argument("time", type=duration_ns, metavar="TIME", help="30d, 12h; 0s: not at all")
    add_cluster(keep)
    keep.set_defaults(run=with_client(_keep))


async def _list(fs: AsyncClient, options: argparse.Namespace) -> int:
    for row in await fs.trash.list():
        if options.json:
            kind = output.TYPES.get(row.file_type, "unknown")
            output.line(
                {
                    "id": _id(row),
                    **output.named("path", _path(row)),
                    "type": kind,
                    "entries": row.entries,
                    "bytes": row.size_bytes,
                    "uid": row.uid,
                    "trashed_ns": row.trashed_wall_ns,
                    "view": row.inode_view,
                    "inode": row.inode,
                }
            )
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.trashed_wall_ns / 1e9))
        size = output.size(row.size_bytes)
        if row.entries:
            size = f"{output.plural(row.entries, 'entry', 'entries')}, {size}"
        print(f"{_id(row):>12}  {when}  {output.shown(_path(row))}  {size}")
    return 0


def _id(row: TrashRow) -> str:
    return f"{row.view}-{row.trash}"


def _path(row: TrashRow) -> str:
    from nokv.client.paths import decode_name

    return decode_name(row.path)


def _find(rows: tuple[TrashRow, ...], name: str) -> TrashRow:
    """Return the entry of an id, or the newest one of a path. Raises NotFound."""
    if _ID.fullmatch(name):
        found = [row for row in rows if _id(row) == name]
    else:
        path = name.rstrip("/")
        found = [row for row in rows if _path(row) == path]
    if not found:
        message = f"{name} is not in the trash"
        raise NotFound(message, hint="see what there is: nokv trash list")
    return max(found, key=lambda row: row.trash)


async def _restore(fs: AsyncClient, options: argparse.Namespace) -> int:
    if options.to is not None and len(options.entries) > 1:
        raise UsageError("one entry only can go to a path")
    rows = await fs.trash.list()

    async def one(name: str) -> None:
        row = _find(rows, name)
        await fs.trash.restore(row, options.to)
        print(f"{output.shown(options.to or _path(row))} is there again")

    return await each(options.entries, one)


async def _empty(fs: AsyncClient, options: argparse.Namespace) -> int:
    rows = await fs.trash.list()
    if options.entries:
        rows = tuple(_find(rows, name) for name in options.entries)
    last_ns = time.time_ns() - options.older_than
    removed = await fs.trash.empty(row for row in rows if row.trashed_wall_ns <= last_ns)
    print(f"{output.plural(removed, 'entry', 'entries')} removed for good")
    return 0


async def _keep(fs: AsyncClient, options: argparse.Namespace) -> int:
    await fs.trash.keep(options.time / 1e9)
    return 0
