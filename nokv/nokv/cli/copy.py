"""`nokv cp`: copies inside the namespace, by metadata alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from nokv.cli.client import add_at, basename, is_directory, join, with_client
from nokv.cli.files import in_parallel
from nokv.cli.main import EXIT_FAILED, add_cluster, complain
from nokv.cli.names import is_target_directory
from nokv.errors import IsADirectory, NokvError, NotSupported

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient
    from nokv.client.reads import ReadHandle


def add_cp(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv cp`."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", help="a new path, or a directory to copy into")
    parser.add_argument(
        "-r", "--recursive", action="store_true",
        help="directories too, file by file; `nokv clone` copies one at once",
    )  # fmt: skip
    parser.add_argument("-n", "--no-replace", action="store_true", help="the paths must be free")
    add_at(parser)
    add_cluster(parser)
    parser.set_defaults(run=with_client(_cp))


class _File(NamedTuple):
    source: str
    target: str


async def _cp(fs: AsyncClient, options: argparse.Namespace) -> int:
    shown: ReadHandle = fs
    if options.at:
        snapshot = fs.at(options.at)
        await snapshot.info()
        shown = snapshot
    into = await is_target_directory(fs, options.target, len(options.sources))
    files: list[_File] = []
    code = 0
    for source in options.sources:
        target = join(options.target, basename(source)) if into else options.target
        try:
            if not is_directory(await shown.stat(source)):
                files.append(_File(source, target))
            elif options.recursive:
                code = await _tree(fs, shown, source, target, files) or code
            else:
                hint = "copy it with -r, or at once: nokv clone"
                raise IsADirectory(f"{source} is a directory", hint=hint)
        except NokvError as error:
            complain(error, about=source)
            code = EXIT_FAILED

    async def one(file: _File) -> None:
        at, replace = options.at or None, not options.no_replace
        await fs.copy(file.source, file.target, at=at, replace=replace)

    return await in_parallel(files, one, lambda file: file.source) or code


async def _tree(
    fs: AsyncClient, shown: ReadHandle, source: str, target: str, files: list[_File]
) -> int:
    """Make a tree's directories and links; add its files to those that are to be copied."""
    top = source.rstrip("/") or "/"
    if f"{target}/".startswith(f"{top.rstrip('/')}/") and shown is fs:
        message = f"{source} can't be copied into itself"
        raise NotSupported(message, hint="clone it: nokv clone")
    code = 0
    modes = {top: (await shown.stat(top)).mode & 0o7777}
    async for directory, below, others in shown.walk(top):
        here = target + directory[len(top.rstrip("/")) :]
        try:
            await fs.mkdir(here, modes.pop(directory) | 0o700, exist_ok=True)
        except NokvError as error:
            complain(error, about=here)
            below.clear()  # one complaint stands for all that is in it
            code = EXIT_FAILED
            continue
        for entry in below:
            assert entry.attr is not None
            modes[entry.path] = entry.attr.mode & 0o7777
        for entry in others:
            path = join(here, entry.name)
            if entry.is_file():
                files.append(_File(entry.path, path))
                continue
            try:
                if not entry.is_symlink():
                    message = f"{entry.path} is a device, FIFO or socket"
                    raise NotSupported(message, hint="it was left out")
                await fs.symlink(await shown.readlink(entry.path), path)
            except NokvError as error:
                complain(error, about=path)
                code = EXIT_FAILED
    return code
