"""`nokv quota`: what directories may hold."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import each, with_client
from nokv.cli.main import add_action, add_cluster
from nokv.errors import UsageError

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient


def size_bytes(text: str) -> int:
    """Return what `10GiB`, `500M` (binary too) or `4096` means, bytes; for argparse."""
    match = re.fullmatch(r"(\d{1,15})(?:([KMGTP])(?:iB|i)?|B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 10GiB, 500MiB or 4096")
    return int(match[1]) << 10 * (1 + "KMGTP".index(match[2]) if match[2] else 0)


def add_quota(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv quota`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    change = add_action(
        actions, "set", "limit what a directory and all below it may hold, in place of its limits"
    )
    change.add_argument("path", metavar="PATH")
    change.add_argument(
        "--bytes", type=size_bytes, default=None, dest="size_bytes", metavar="SIZE",
        help="of all files: 10GiB, 500MiB (default: no limit)",
    )  # fmt: skip
    change.add_argument(
        "--entries", type=int, default=None, metavar="N",
        help="files and directories, at any depth (default: no limit)",
    )  # fmt: skip
    add_cluster(change)
    change.set_defaults(run=with_client(_set))
    get = add_action(actions, "get", "show limits, and what counts for them")
    get.add_argument("paths", nargs="+", metavar="PATH")
    get.add_argument("--json", action="store_true", help="one JSON object a line")
    add_cluster(get)
    get.set_defaults(run=with_client(_get))
    clear = add_action(actions, "clear", "take the limits off")
    clear.add_argument("paths", nargs="+", metavar="PATH")
    add_cluster(clear)
    clear.set_defaults(run=with_client(_clear))


async def _set(fs: AsyncClient, options: argparse.Namespace) -> int:
    if options.size_bytes is None and options.entries is None:
        raise UsageError("no limit is given", hint="--bytes, --entries; to have none: quota clear")
    await fs.set_quota(options.path, entries=options.entries, size_bytes=options.size_bytes)
    return 0


async def _get(fs: AsyncClient, options: argparse.Namespace) -> int:
    async def one(path: str) -> None:
        quota = await fs.quota(path)
        limits = quota.entries_max or None, quota.size_bytes_max or None
        if options.json:
            used = {"entries": quota.entries, "bytes": quota.size_bytes}
            most = {"entries_max": limits[0], "bytes_max": limits[1]}
            output.line({**output.named("path", path), **used, **most})
            return
        entries, n_bytes = (
            "no limit" if limits[0] is None else str(limits[0]),
            "no limit" if limits[1] is None else output.size(limits[1]),
        )
        text = f"{output.size(quota.size_bytes)} of {n_bytes}  {quota.entries} entries of {entries}"
        print(f"{text}  {output.shown(path)}")

    return await each(options.paths, one)


async def _clear(fs: AsyncClient, options: argparse.Namespace) -> int:
    return await each(options.paths, fs.set_quota)
