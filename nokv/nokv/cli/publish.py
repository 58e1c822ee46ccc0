"""`nokv publish`: a whole directory as one atomic change."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import with_client
from nokv.cli.main import add_cluster
from nokv.errors import NotADirectory

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient


def add_publish(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv publish`."""
    parser.add_argument("local", metavar="DIR", help="a local directory")
    parser.add_argument("path", metavar="PATH", help="where its copy becomes visible")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--replace", action="store_true", help="what PATH shows is replaced whole")
    how.add_argument(
        "--merge",
        action="store_true",
        help="add to the directory that is there; refused if it does not fit one log entry",
    )
    parser.add_argument("-p", "--parents", action="store_true", help="make the parents of PATH")
    parser.add_argument(
        "--skip-special", action="store_true", help="leave FIFOs, sockets and devices out"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_publish))


async def _publish(fs: AsyncClient, options: argparse.Namespace) -> int:
    local = Path(options.local)
    total = _size_of(local)
    parent = options.path.rstrip("/").rpartition("/")[0]
    if options.parents and parent:
        await fs.mkdir(parent, parents=True, exist_ok=True)
    started_s = time.monotonic()
    with output.progress(f"publish {options.path}", total) as done:
        published = await fs.publish_tree(
            local,
            options.path,
            "replace" if options.replace else "merge" if options.merge else "create",
            skip_special=options.skip_special,
            progress=done,
        )
    took_s = time.monotonic() - started_s
    n_bytes = sum(info.size for info in published.files.values())
    if options.json:
        files = [
            output.named("name", name)
            | {"generation": info.generation, "size": info.size, "sha256": info.sha256}
            for name, info in published.files.items()
        ]
        fields = {**output.named("path", published.path), "version": published.version}
        output.line(fields | {"bytes": n_bytes, "files": files})
        return 0
    print(
        f"published {output.shown(published.path)} at version {published.version}: "
        f"{output.plural(len(published.files), 'file')}, {output.size(n_bytes)} in {took_s:.1f} s"
    )
    return 0


def _size_of(local: Path) -> int:
    """Return the bytes of all regular files below; what vanishes meanwhile counts nothing."""
    if not local.is_dir():
        message = f"{local} is no local directory"
        raise NotADirectory(message, hint="put single files with: nokv put")
    total = 0
    waiting = [os.fspath(local)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
