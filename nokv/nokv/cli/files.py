"""`nokv put`, `get`, `cat`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeVar

from nokv.cli import output
from nokv.cli.client import (
    add_at,
    basename,
    count,
    each,
    is_directory,
    join,
    with_client,
    with_reader,
)
from nokv.cli.main import EXIT_FAILED, add_cluster, complain
from nokv.cli.names import is_target_directory
from nokv.errors import AlreadyExists, IsADirectory, NokvError, NotSupported, UsageError

if TYPE_CHECKING:
    from nokv.client.entries import Entry
    from nokv.client.fs import AsyncClient
    from nokv.client.reads import ReadHandle
    from nokv.types.values import Attr

T = TypeVar("T")

Progress = Callable[[int], None]

PARALLEL: Final = 8
"""Files copied side by side."""

PIECE_BYTES: Final = 4 * 1024 * 1024
PIPE_BYTES: Final = 256 * 1024

STANDARD: Final = "-"
"""Standard input or output."""


# ---------------------------------------------------------------- put


def add_put(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv put`."""
    parser.add_argument(
        "sources", nargs="+", metavar="LOCAL", help="local paths; -: standard input"
    )
    parser.add_argument("target", metavar="PATH", help="a new path, or a directory to copy into")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories too, file by file (see publish)"
    )
    parser.add_argument("-n", "--no-replace", action="store_true", help="the paths must be free")
    parser.add_argument("-p", "--keep-times", action="store_true", help="keep modification times")
    add_cluster(parser)
    parser.set_defaults(run=_run_put)


def _run_put(options: argparse.Namespace) -> int:
    if STANDARD in options.sources:
        if len(options.sources) > 1:
            raise UsageError("standard input can be the only source")
        if sys.stdin is None:
            raise UsageError("standard input is closed")
    return with_client(_put)(options)


def _standard_input() -> BinaryIO | AsyncIterator[bytes]:
    """Return what is read: a file as it is, a pipe or terminal without a thread that waits for it.

    A thread in read(2) cannot be interrupted, so that Ctrl-C would wait for the other end.
    """
    fd = sys.stdin.fileno()
    mode = os.fstat(fd).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
    return _read_pipe(fd) if waits else sys.stdin.buffer


async def _read_pipe(fd: int) -> AsyncIterator[bytes]:
    """Yield what a pipe or terminal holds whenever it holds something, until its end.

    It is watched only while there is nothing to do but wait, so each wake-up stands for bytes that
    are there, or the end: read(2) does not block. Making it non-blocking instead would change it
    for every process that shares it.
    """
    while True:
        await _readable(fd)
        data = os.read(fd, PIPE_BYTES)
        if not data:
            return
        yield data


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class _Upload(NamedTuple):
    local: Path
    path: str
    found: os.stat_result


async def _put(fs: AsyncClient, options: argparse.Namespace) -> int:
    sources: list[str] = options.sources
    if STANDARD in sources:
        with output.progress("standard input", None) as done:
            await fs.write_bytes(
                options.target, _standard_input(), if_absent=options.no_replace, progress=done
            )
        return 0
    into = await is_target_directory(fs, options.target, len(sources))
    uploads: list[_Upload] = []
    code = 0
    for source in sources:
        try:
            local = _scan(source, recursive=options.recursive)
        except OSError as error:
            complain(error)
            code = EXIT_FAILED
            continue
        target = join(options.target, local.name) if into else options.target
        failed = await _make_tree(fs, local, target, replace=not options.no_replace)
        if failed:
            code = EXIT_FAILED
        uploads += [
            _Upload(path, _below(target, below), st)
            for below, path, st in local.files
            if not _is_in(below, failed)
        ]
    total = sum(upload.found.st_size for upload in uploads)
    with output.progress(f"put {output.plural(len(uploads), 'file')}", total) as done:

        async def one(upload: _Upload) -> None:
            if not (stat.S_ISREG(upload.found.st_mode)):
                message = f"{upload.local} is no regular file"
                raise NotSupported(message, hint="copy files, directories and symbolic links")
            await fs.put_file(
                upload.local,
                upload.path,
                if_absent=options.no_replace,
                keep_times=options.keep_times,
                progress=done,
            )

        return await in_parallel(uploads, one, lambda upload: upload.path) or code


class _Local(NamedTuple):
    """A local file or tree; every path is relative to it, and '.' is itself."""

    name: str
    directories: list[tuple[str, int]]
    """Path and permission bits, parents first."""
    links: list[tuple[str, str]]
    """Path and target."""
    files: list[tuple[str, Path, os.stat_result]]


def _below(target: str, below: str) -> str:
    return target if below == "." else join(target, below)


def _is_in(below: str, failed: set[str]) -> bool:
    """Return whether a path lies in one of those directories; '.' holds all."""
    return bool(failed) and ("." in failed or any(str(p) in failed for p in Path(below).parents))


async def _make_tree(fs: AsyncClient, local: _Local, target: str, *, replace: bool) -> set[str]:
    """Make the directories and links; return those that failed, complained about."""
    failed: set[str] = set()

    parts: list[tuple[str, int | str]] = [*local.directories, *local.links]
    for below, made in parts:
        if _is_in(below, failed):
            continue
        path = _below(target, below)
        try:
            if isinstance(made, int):
                await fs.mkdir(path, made, exist_ok=True)
            else:
                await _put_link(fs, made, path, replace=replace)
        except NokvError as error:
            complain(error, about=path)
            failed.add(below)
    return failed


async def _put_link(fs: AsyncClient, text: str, path: str, *, replace: bool) -> None:
    """Make a symbolic link, in the place of what is no directory; at no moment is neither there."""
    try:
        await fs.symlink(text, path)
    except AlreadyExists:
        if not replace:
            raise
    else:
        return
    aside = f"{path.rpartition('/')[0]}/.{os.urandom(8).hex()}"
    await fs.symlink(text, aside)
    try:
        await fs.rename(aside, path)
    except BaseException:
        await fs.unlink(aside, missing_ok=True)
        raise


def _scan(source: str, *, recursive: bool) -> _Local:
    """Look at what is to be copied.

    Raises:
        IsADirectory: without `recursive`.
        OSError: it can't be read.
    """
    root = Path(source)
    # A link has its own name here, as with cp: what it leads to is copied, not its name.
    name = root.name if root.name not in {"", ".."} else root.resolve().name
    local = _Local(name, [], [], [])
    found = root.stat()
    if not stat.S_ISDIR(found.st_mode):
        local.files.append((".", root, found))
        return local
    if not recursive:
        raise IsADirectory(f"{source} is a directory", hint="copy it with -r, or publish it")
    for folder, directories, names in os.walk(root, onerror=_raise):
        here = Path(folder)
        # Its owner must be able to fill it, whatever the local one allows.
        mode = here.stat().st_mode & 0o7777 | 0o700
        local.directories.append((os.path.relpath(folder, root), mode))
        for name in [*directories, *names]:
            path = here / name
            found = path.lstat()
            below = os.path.relpath(path, root)
            if stat.S_ISLNK(found.st_mode):
                local.links.append((below, str(path.readlink())))
            elif not stat.S_ISDIR(found.st_mode):
                local.files.append((below, path, found))
    return local


def _raise(error: OSError) -> None:
    raise error


async def in_parallel(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], name: Callable[[T], str]
) -> int:
    """Do `work` for all items, PARALLEL at a time; what fails is complained about."""
    waiting = iter(items)
    code = 0

    async def worker() -> None:
        nonlocal code
        for item in waiting:
            try:
                await work(item)
            except (NokvError, OSError) as error:
                complain(error, about=name(item))
                code = EXIT_FAILED

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(PARALLEL):
                workers.create_task(worker())
    except* BrokenPipeError as errors:
        raise errors.exceptions[0] from None
    return code


# ---------------------------------------------------------------- get


def add_get(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv get`."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "local", metavar="LOCAL", help="a new local path, or a directory; -: standard output"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="directories too")
    add_at(parser)
    add_cluster(parser)
    parser.set_defaults(run=with_reader(_get))


class _Download(NamedTuple):
    path: str
    local: Path
    n_bytes: int


class _Directory(NamedTuple):
    local: Path
    attr: Attr


async def _get(fs: ReadHandle, options: argparse.Namespace) -> int:
    if options.local == STANDARD:
        return await each(options.paths, lambda path: copy_out(fs, path))
    base, into = _place(options.local)
    if not into and (len(options.paths) > 1 or options.local.endswith("/")):
        raise UsageError(f"{options.local} is no local directory")
    tree = _Tree([], [], 0)
    try:
        for path in options.paths:
            local = base / (basename(path) or "root") if into else base
            try:
                await _look(fs, path, local, tree, recursive=options.recursive)
            except (NokvError, OSError) as error:
                complain(error, about=path)
                tree.code = EXIT_FAILED
        total = sum(download.n_bytes for download in tree.downloads)
        with output.progress(f"get {output.plural(len(tree.downloads), 'file')}", total) as done:
            code = await in_parallel(
                tree.downloads,
                lambda one: fs.get_file(one.path, one.local, progress=done),
                lambda one: one.path,
            )
    finally:
        # The inner ones first: writing into a directory changes its times.
        for directory in reversed(tree.directories):
            _finish(directory, tree)
    return code or tree.code


@dataclasses.dataclass
class _Tree:
    """What a `get` makes."""

    downloads: list[_Download]
    directories: list[_Directory]
    code: int

    def fail(self, error: OSError) -> None:
        """Complain; the rest goes on."""
        complain(error)
        self.code = EXIT_FAILED


def _finish(directory: _Directory, tree: _Tree) -> None:
    """Give a directory its mode and times, now that it is full."""
    try:
        directory.local.chmod(directory.attr.mode & 0o777)
        os.utime(directory.local, ns=(directory.attr.atime_ns, directory.attr.mtime_ns))
    except OSError as error:
        tree.fail(error)


async def _look(fs: ReadHandle, path: str, local: Path, tree: _Tree, *, recursive: bool) -> None:
    attr = await fs.stat(path)
    if not is_directory(attr):
        tree.downloads.append(_Download(path, local, attr.size))
    elif not recursive:
        raise IsADirectory(f"{path} is a directory", hint="copy it with -r")
    else:
        await _take_tree(fs, path, local, attr, tree)


def _place(local: str) -> tuple[Path, bool]:
    """Return a local path, and whether it is a directory."""
    path = Path(local)
    return path, path.is_dir()


def _make_link(local: Path, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        local.unlink()
    local.symlink_to(target)


async def _take_tree(fs: ReadHandle, path: str, local: Path, root: Attr, tree: _Tree) -> None:
    """Make a tree's directories and links here; add its files to the downloads."""
    places = {path.rstrip("/") or "/": (local, root)}
    async for found, below, others in fs.walk(path):
        here, attr = places.pop(found)
        try:
            here.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            # One complaint stands for all that is below it.
            tree.fail(error)
            below.clear()
            continue
        tree.directories.append(_Directory(here, attr))
        for entry in below:
            assert entry.attr is not None
            places[entry.path] = (here / entry.name, entry.attr)
        for entry in others:
            try:
                await _take(fs, entry, here / entry.name, tree.downloads)
            except OSError as error:
                tree.fail(error)


async def _take(fs: ReadHandle, entry: Entry, local: Path, downloads: list[_Download]) -> None:
    if entry.is_symlink():
        _make_link(local, await fs.readlink(entry.path))
    elif entry.is_file():
        assert entry.attr is not None
        downloads.append(_Download(entry.path, local, entry.attr.size))
    else:
        message = f"{entry.path} is a device, FIFO or socket"
        complain(NotSupported(message, hint="it was left out"))


# ---------------------------------------------------------------- cat


def add_cat(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv cat`."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--offset", type=count, default=0, help="first byte")
    parser.add_argument("--length", type=count, default=-1, help="bytes; default: to the end")
    add_at(parser)
    add_cluster(parser)
    parser.set_defaults(run=with_reader(_cat))


async def _cat(fs: ReadHandle, options: argparse.Namespace) -> int:
    return await each(
        options.paths, lambda path: copy_out(fs, path, options.offset, options.length)
    )


async def copy_out(fs: ReadHandle, path: str, offset: int = 0, length: int = -1) -> None:
    """Write a file, or a range of it, to standard output: no byte that was not verified."""
    sys.stdout.flush()
    out = sys.stdout.buffer
    async with fs.open(path, "rb") as file:
        file.seek(offset)
        left = file.size if length < 0 else length
        while left > 0 and (data := await file.read(min(left, PIECE_BYTES))):
            out.write(data)
            left -= len(data)
    out.flush()
