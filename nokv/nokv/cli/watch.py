"""`nokv watch`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

from nokv.cli import output
from nokv.cli.client import count, with_client
from nokv.cli.main import add_cluster

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient
    from nokv.client.watch import Change


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv watch`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="all below the directory, not its names only"
    )
    parser.add_argument(
        "--since",
        type=count,
        default=None,
        metavar="CURSOR",
        help="the changes after a cursor, as an earlier watch told it (default: from now on)",
    )
    parser.add_argument(
        "--types",
        default="",
        metavar="TYPE,...",
        help="only these: create, remove, rename, moved_in, moved_out, publish, setattr, ...",
    )
    parser.add_argument(
        "-n", "--count", type=count, default=0, metavar="N", help="end after so many; 0: never"
    )
    parser.add_argument(
        "--bookmarks", action="store_true", help="with --json: also how far it is while idle"
    )
    add_cluster(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=with_client(_watch))


async def _watch(fs: AsyncClient, options: argparse.Namespace) -> int:
    types = [one for one in options.types.split(",") if one]
    watch = fs.watch(options.path, recursive=options.recursive, since=options.since, types=types)
    show = _show_json if options.json else _show
    left = options.count
    told = options.since
    try:
        async with watch:
            told = watch.cursor
            while True:
                changes = await watch.take(min(left, 1024) if options.count else 1024, 1.0)
                for change in changes:
                    show(change)
                    told = change.cursor
                if not changes and options.bookmarks and options.json and watch.cursor != told:
                    output.line({"type": "bookmark", "cursor": watch.cursor})
                told = watch.cursor
                sys.stdout.flush()
                left -= len(changes)
                if options.count and left <= 0:
                    return 0
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"nokv: to go on: --since {told}", file=sys.stderr)
        raise


def _show_json(change: Change) -> None:
    event = change.event
    fields: dict[str, Any] = {"type": change.kind, "cursor": change.cursor}
    for key, path in (("path", change.path), ("to_path", change.to_path)):
        if path is not None:
            fields |= output.named(key, path)
        elif key == "path":
            fields[key] = None
    if change.kind in {"snapshot", "rollback"}:
        fields["snapshot"] = event.to_name.decode(errors="replace")
    if change.names:
        fields["names"] = [output.named("name", name) for name in change.names]
    fields |= {
        "inode": change.inode,
        "view": change.view,
        "size": change.size,
        "generation": change.generation,
        "time_ns": change.wall_ns,
        "session": event.session,
        "seq": event.seq,
    }
    output.line(fields)


def _show(change: Change) -> None:
    seconds, rest_ns = divmod(change.wall_ns, 1_000_000_000)
    when = time.strftime("%H:%M:%S", time.localtime(seconds))
    path = f"inode {change.inode}" if change.path is None else output.shown(change.path)
    if change.to_path is not None:
        path += f" -> {output.shown(change.to_path)}"
    if change.names:
        path += f": {output.plural(len(change.names), 'file')}"
    print(f"{when}.{rest_ns // 1_000_000:03d}  {change.cursor:>10}  {change.kind:<9}  {path}")
