"""`nokv put`, `get`, `cat`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeVar

from nokv.cli import output
from nokv.cli.client import basename, each, is_directory, join, with_client
from nokv.cli.main import EXIT_FAILED, add_cluster, complain
from nokv.cli.names import is_target_directory
from nokv.errors import IsADirectory, NokvError, NotSupported, UsageError

if TYPE_CHECKING:
    from nokv.client.entries import Entry
    from nokv.client.fs import AsyncClient
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
    parser.set_defaults(run=with_client(_put))


def _standard_input() -> BinaryIO | AsyncIterator[bytes]:
    """Return what is read: a file as it is, a pipe or terminal without a thread that waits for it.

    A thread in read(2) cannot be interrupted, so that Ctrl-C would wait for the other end.
    """
    fd = sys.stdin.fileno()
    mode = os.fstat(fd).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
    return _read_pipe(fd) if waits else sys.stdin.buffer


async def _read_pipe(fd: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            data = os.read(fd, PIPE_BYTES)
            if not data:
                return
            yield data
    finally:
        loop.remove_reader(fd)


class _Upload(NamedTuple):
    local: Path
    path: str
    found: os.stat_result


async def _put(fs: AsyncClient, options: argparse.Namespace) -> int:
    sources: list[str] = options.sources
    if STANDARD in sources:
        if len(sources) > 1:
            raise UsageError("standard input can be the only source")
        with output.progress("standard input", None) as done:
            await fs.write_bytes(
                options.target, _standard_input(), if_absent=options.no_replace, progress=done
            )
        return 0
    into = await is_target_directory(fs, options.target, len(sources))
    uploads: list[_Upload] = []
    for source in sources:
        local = _scan(source, recursive=options.recursive)
        target = join(options.target, local.name) if into else options.target
        for below, mode in local.directories:
            await fs.mkdir(_below(target, below), mode, exist_ok=True)
        for below, text in local.links:
            await fs.symlink(text, _below(target, below))
        uploads += [_Upload(path, _below(target, below), st) for below, path, st in local.files]
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

        return await in_parallel(uploads, one, lambda upload: upload.path)


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


def _scan(source: str, *, recursive: bool) -> _Local:
    """Look at what is to be copied.

    Raises:
        IsADirectory: without `recursive`.
        OSError: it can't be read.
    """
    root = Path(source)
    local = _Local(root.resolve().name, [], [], [])
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
    add_cluster(parser)
    parser.set_defaults(run=with_client(_get))


class _Download(NamedTuple):
    path: str
    local: Path
    n_bytes: int


class _Directory(NamedTuple):
    local: Path
    attr: Attr


async def _get(fs: AsyncClient, options: argparse.Namespace) -> int:
    if options.local == STANDARD:
        return await each(options.paths, lambda path: copy_out(fs, path))
    base, into = _place(options.local)
    if not into and (len(options.paths) > 1 or options.local.endswith("/")):
        raise UsageError(f"{options.local} is no local directory")
    downloads: list[_Download] = []
    directories: list[_Directory] = []
    for path in options.paths:
        local = base / (basename(path) or "root") if into else base
        attr = await fs.stat(path)
        if not is_directory(attr):
            downloads.append(_Download(path, local, attr.size))
        elif not options.recursive:
            raise IsADirectory(f"{path} is a directory", hint="copy it with -r")
        else:
            await _take_tree(fs, path, local, attr, downloads, directories)
    total = sum(download.n_bytes for download in downloads)
    with output.progress(f"get {output.plural(len(downloads), 'file')}", total) as done:
        code = await in_parallel(
            downloads,
            lambda one: fs.get_file(one.path, one.local, progress=done),
            lambda one: one.path,
        )
    for directory in reversed(directories):
        directory.local.chmod(directory.attr.mode & 0o777)
        os.utime(directory.local, ns=(directory.attr.atime_ns, directory.attr.mtime_ns))
    return code


def _place(local: str) -> tuple[Path, bool]:
    """Return a local path, and whether it is a directory."""
    path = Path(local)
    return path, path.is_dir()


def _make_link(local: Path, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        local.unlink()
    local.symlink_to(target)


async def _take_tree(
    fs: AsyncClient,
    path: str,
    local: Path,
    root: Attr,
    downloads: list[_Download],
    directories: list[_Directory],
) -> None:
    """Make a tree's directories and links here; add its files to `downloads`."""
    places = {path.rstrip("/") or "/": (local, root)}
    async for found, below, others in fs.walk(path):
        here, attr = places.pop(found)
        here.mkdir(mode=0o700, exist_ok=True)
        directories.append(_Directory(here, attr))
        for entry in below:
            assert entry.attr is not None
            places[entry.path] = (here / entry.name, entry.attr)
        for entry in others:
            await _take(fs, entry, here / entry.name, downloads)


async def _take(fs: AsyncClient, entry: Entry, local: Path, downloads: list[_Download]) -> None:
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
    parser.add_argument("--offset", type=int, default=0, help="first byte")
    parser.add_argument("--length", type=int, default=-1, help="bytes; default: to the end")
    add_cluster(parser)
    parser.set_defaults(run=with_client(_cat))


async def _cat(fs: AsyncClient, options: argparse.Namespace) -> int:
    if options.offset < 0:
        raise UsageError("--offset is at least 0")
    return await each(
        options.paths, lambda path: copy_out(fs, path, options.offset, options.length)
    )


async def copy_out(fs: AsyncClient, path: str, offset: int = 0, length: int = -1) -> None:
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
