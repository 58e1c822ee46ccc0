"""`nokv mkdir`, `rm`, `mv`, `ln`, `chmod`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nokv.cli.client import basename, each, is_directory, join, stat_or_none, with_client
from nokv.cli.main import add_cluster
from nokv.errors import IsADirectory, NotADirectory, UsageError

if TYPE_CHECKING:
    from nokv.client.fs import AsyncClient


def octal(text: str) -> int:
    """Return permission bits; for argparse."""
    mode = int(text, 8)
    if not 0 <= mode <= 0o7777:
        raise ValueError(text)
    return mode


# ---------------------------------------------------------------- mkdir


def add_mkdir(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv mkdir`."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-p", "--parents", action="store_true", help="make parents; a directory may be there"
    )
    parser.add_argument("-m", "--mode", type=octal, default=0o755, help="octal permission bits")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_mkdir))


async def _mkdir(fs: AsyncClient, options: argparse.Namespace) -> int:
    async def one(path: str) -> None:
        await fs.mkdir(path, options.mode, parents=options.parents, exist_ok=options.parents)

    return await each(options.paths, one)


# ---------------------------------------------------------------- rm


def add_rm(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv rm`."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories too, each as one atomic change"
    )
    parser.add_argument("-f", "--force", action="store_true", help="what is missing is fine")
    parser.add_argument(
        "--trash", action="store_true",
        help="so that it can come back, directories too: nokv trash restore PATH",
    )  # fmt: skip
    add_cluster(parser)
    parser.set_defaults(run=with_client(_rm))


async def _rm(fs: AsyncClient, options: argparse.Namespace) -> int:
    async def one(path: str) -> None:
        if options.trash:
            await fs.trash.put(path, missing_ok=options.force)
            return
        try:
            await fs.unlink(path, missing_ok=options.force)
        except IsADirectory as error:
            if not options.recursive:
                raise IsADirectory(error.message, hint="remove a directory with -r") from None
            await fs.remove_tree(path, missing_ok=options.force)

    return await each(options.paths, one)


# ---------------------------------------------------------------- mv


def add_mv(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv mv`."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", help="a new path, or a directory to move into")
    parser.add_argument("-n", "--no-replace", action="store_true", help="the target must be free")
    parser.add_argument("--exchange", action="store_true", help="the two paths change places")
    parser.add_argument(
        "-T", "--no-target-directory", action="store_true", help="TARGET is the new path itself"
    )
    add_cluster(parser)
    parser.set_defaults(run=with_client(_mv))


async def _mv(fs: AsyncClient, options: argparse.Namespace) -> int:
    into = False
    if not (options.exchange or options.no_target_directory):
        into = await is_target_directory(fs, options.target, len(options.sources))
    elif len(options.sources) > 1:
        raise UsageError("one source only can take exactly that place")

    async def one(source: str) -> None:
        target = join(options.target, basename(source)) if into else options.target
        await fs.rename(source, target, replace=not options.no_replace, exchange=options.exchange)

    return await each(options.sources, one, target=options.target)


async def is_target_directory(fs: AsyncClient, target: str, sources: int) -> bool:
    """Return whether things go into `target` instead of taking its place.

    Raises:
        NotADirectory: several things, and it is no directory.
    """
    attr = await stat_or_none(fs, target)
    into = attr is not None and is_directory(attr)
    if not into and (sources > 1 or target.endswith("/")):
        raise NotADirectory(f"{target} is no directory", hint="make it first: nokv mkdir")
    return into


# ---------------------------------------------------------------- ln


def add_ln(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv ln`."""
    parser.add_argument("target", metavar="TARGET", help="a file; with -s any text")
    parser.add_argument("path", metavar="PATH", help="the new name")
    parser.add_argument("-s", "--symbolic", action="store_true", help="make a symbolic link")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_ln))


async def _ln(fs: AsyncClient, options: argparse.Namespace) -> int:
    path = options.path
    if await is_target_directory(fs, path, 1):
        path = join(path, basename(options.target))
    if options.symbolic:
        return await each([path], lambda new: fs.symlink(options.target, new))
    return await each([options.target], lambda old: fs.link(old, path), target=path)


# ---------------------------------------------------------------- chmod


def add_chmod(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv chmod`."""
    parser.add_argument("mode", type=octal, metavar="MODE", help="octal permission bits")
    parser.add_argument("paths", nargs="+", metavar="PATH")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_chmod))


async def _chmod(fs: AsyncClient, options: argparse.Namespace) -> int:
    async def one(path: str) -> None:
        await fs.chmod(path, options.mode)

    return await each(options.paths, one)
