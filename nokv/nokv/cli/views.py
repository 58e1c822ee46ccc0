"""`nokv clone`, `workspace`, `rollback`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from nokv.cli import output
from nokv.cli.client import duration_ns, each, with_client
from nokv.cli.main import add_action, add_cluster
from nokv.cli.names import octal
from nokv.errors import UsageError

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient
    from nokv.types.views import ViewMade, ViewReply


# ---------------------------------------------------------------- clone


def add_clone(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv clone`."""
    parser.add_argument("source", metavar="SOURCE", help="a directory")
    parser.add_argument("target", metavar="TARGET", help="the copy's path, which must be free")
    _add_snapshot(parser, "--at")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_clone))


def _add_snapshot(parser: argparse.ArgumentParser, flag: str) -> None:
    parser.add_argument(
        flag, default=None, metavar="SNAPSHOT",
        help="what this snapshot of the source shows (default: what is there now)",
    )  # fmt: skip


async def _clone(fs: AsyncClient, options: argparse.Namespace) -> int:
    made = await fs.clone(options.source, options.target, at=options.at)
    _tell(options, made, f"{output.shown(options.target)} is a copy of ", options.source)
    return 0


def _tell(options: argparse.Namespace, made: ViewMade, text: str, source: str) -> None:
    if getattr(options, "json", False):
        fields = {"view": made.view, "inode": made.inode, "version": made.created}
        path = options.target if hasattr(options, "target") else options.path
        output.line(output.named("path", path) | fields)
        return
    at = f" at snapshot {options.at}" if source and options.at else ""
    print(f"{text}{output.shown(source)}{at}, view {made.view}")


# ---------------------------------------------------------------- workspace


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv workspace`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = add_action(
        actions,
        "create",
        "make a directory that is a view of its own, so that its snapshots hold nothing else",
    )
    create.add_argument("path", metavar="PATH", help="its path, which must be free")
    create.add_argument(
        "--from", dest="source", default=None, metavar="SOURCE",
        help="begin with a copy of this directory (default: empty)",
    )  # fmt: skip
    _add_snapshot(create, "--at")
    create.add_argument(
        "-m", "--mode", type=octal, default=None, help="octal permission bits, of an empty one"
    )
    create.add_argument("--json", action="store_true", help="one JSON object")
    add_cluster(create)
    create.set_defaults(run=with_client(_create))
    listing = add_action(
        actions, "list", "list the directories that are views of their own, clones too"
    )
    listing.add_argument(
        "--own", action="store_true",
        help="also the bytes that each has by itself; costs what was written to it",
    )  # fmt: skip
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    add_cluster(listing)
    listing.set_defaults(run=with_client(_list))
    delete = add_action(
        actions, "delete", "remove such directories with all in them; clones of them stay"
    )
    delete.add_argument("paths", nargs="+", metavar="PATH")
    add_cluster(delete)
    delete.set_defaults(run=with_client(_delete))


async def _create(fs: AsyncClient, options: argparse.Namespace) -> int:
    path, source = options.path, options.source
    if source is None:
        if options.at is not None:
            raise UsageError("--at says what a copy shows", hint="name its source: --from PATH")
        made = await fs.workspaces.create(path, 0o755 if options.mode is None else options.mode)
        _tell(options, made, f"{output.shown(path)} is an empty workspace", "")
        return 0
    if options.mode is not None:
        raise UsageError("a copy has the mode of its source", hint="leave --mode out; then chmod")
    made = await fs.clone(source, path, at=options.at)
    _tell(options, made, f"{output.shown(path)} is a copy of ", source)
    return 0


async def _list(fs: AsyncClient, options: argparse.Namespace) -> int:
    rows = await fs.workspaces.list()
    for row in rows:
        if row.dead:
            continue
        fields = _fields(row)
        if options.own:
            fields["own_bytes"] = await fs.workspaces.own_bytes(row.view)
        if options.json:
            output.line(fields)
            continue
        age = output.duration(max(0.0, time.time() - row.created_wall_ns / 1e9))
        origin = output.shown(fields["origin_path"] or f"what was in view {row.origin}")
        lineage = f"of {origin}" if row.origin >= 0 else "of nothing"
        if row.depth > 1:
            lineage += f", {row.depth} deep"
        kind = "rolled back" if row.replaces >= 0 else "copy" if row.origin >= 0 else "workspace"
        size = f"{output.plural(row.entries, 'entry', 'entries')}, {output.size(row.size_bytes)}"
        if options.own:
            size += f", {output.size(fields['own_bytes'])} its own"
        print(f"{output.shown(_path(row))}  view {row.view}  {kind} {lineage}  {age}  {size}")
    return 0


def _path(row: ViewReply) -> str:
    from nokv.client.paths import decode_name

    return decode_name(row.path)


def _fields(row: ViewReply) -> dict[str, Any]:
    from nokv.client.paths import decode_name

    origin = output.named("origin_path", decode_name(row.origin_path))
    return {
        **output.named("path", _path(row)),
        "view": row.view,
        "root": row.root,
        "version": row.created,
        "created_ns": row.created_wall_ns,
        "origin": None if row.origin < 0 else row.origin,
        **(origin if row.origin_path else {"origin_path": None}),
        "origin_version": None if row.origin < 0 else row.origin_version,
        "depth": row.depth,
        "replaces": None if row.replaces < 0 else row.replaces,
        "parent_view": row.parent_view,
        "entries": row.entries,
        "bytes": row.size_bytes,
    }


async def _delete(fs: AsyncClient, options: argparse.Namespace) -> int:
    return await each(options.paths, fs.workspaces.delete)


# ---------------------------------------------------------------- rollback


def add_rollback(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv rollback`."""
    parser.epilog = (
        "The directory keeps its present quota. Directories below it have again what the snapshot"
        " shows, quotas too: where these changed since, set them anew (nokv quota set)."
    )
    parser.add_argument("path", metavar="PATH", help="a directory")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="a snapshot of that very directory")
    parser.add_argument(
        "--keep", type=duration_ns, default=duration_ns("7d"), metavar="TIME",
        help="what was there before stays as a snapshot for so long (default: 7d)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_rollback))


async def _rollback(fs: AsyncClient, options: argparse.Namespace) -> int:
    keep_s = options.keep / 1e9
    undo = await fs.rollback(options.path, options.snapshot, keep_s=keep_s)
    if options.json:
        fields = {"snapshot": options.snapshot, "before": undo, "keep_s": keep_s}
        output.line(output.named("path", options.path) | fields)
        return 0
    path = output.shown(options.path)
    print(f"{path} is what snapshot {options.snapshot} shows")
    print(f"to undo it, within {output.duration(keep_s)}: nokv rollback {path} {undo}")
    return 0
