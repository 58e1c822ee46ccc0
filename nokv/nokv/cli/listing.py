"""`nokv ls`, `stat`, `tree`, `du`."""

from __future__ import annotations

import argparse
import stat
import time
from typing import TYPE_CHECKING

from nokv.cli import output
from nokv.cli.client import add_at, count, each, is_directory, top, with_reader
from nokv.cli.main import add_cluster

if TYPE_CHECKING:
    from nokv.client.entries import Entry
    from nokv.client.reads import ReadHandle
    from nokv.types.values import Attr


def _common(parser: argparse.ArgumentParser) -> None:
    add_at(parser)
    add_cluster(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


# ---------------------------------------------------------------- ls


def add_ls(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv ls`."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="default: all that there is")
    parser.add_argument("-l", "--long", action="store_true", help="with attributes")
    parser.add_argument(
        "-d", "--directory", action="store_true", help="directories themselves, not what is in them"
    )
    _common(parser)
    parser.set_defaults(run=with_reader(_ls))


async def _ls(fs: ReadHandle, options: argparse.Namespace) -> int:
    several = len(options.paths) > 1 and not options.json

    async def one(path: str) -> None:
        attr = await fs.lstat(path)
        if stat.S_ISLNK(attr.mode) and not (options.long or options.directory):
            attr = await fs.stat(path)
        if options.directory or not is_directory(attr):
            await _show(fs, options, path, path, attr)
            return
        if several:
            print(f"{output.shown(path)}:")
        async for entry in fs.scandir(path, attrs=options.long or options.json):
            await _show(fs, options, entry.name, entry.path, entry.attr)

    return await each(options.paths or [await top(fs)], one)


async def _show(
    fs: ReadHandle, options: argparse.Namespace, name: str, path: str, attr: Attr | None
) -> None:
    if options.json:
        assert attr is not None
        fields = {**output.named("name", name), **output.named("path", path)}
        output.line(fields | output.attr_fields(attr))
    elif options.long:
        assert attr is not None
        text = output.shown(name)
        if stat.S_ISLNK(attr.mode):
            text += f" -> {output.shown(await fs.readlink(path))}"
        print(output.long_line(attr, text))
    else:
        print(output.bare(name))


# ---------------------------------------------------------------- stat


def add_stat(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv stat`."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("-L", "--follow", action="store_true", help="follow a symbolic link")
    _common(parser)
    parser.set_defaults(run=with_reader(_stat))


async def _stat(fs: ReadHandle, options: argparse.Namespace) -> int:
    async def one(path: str) -> None:
        attr = await (fs.stat(path) if options.follow else fs.lstat(path))
        fields = output.named("path", path) | output.attr_fields(attr)
        if stat.S_ISLNK(attr.mode):
            fields |= output.named("target", await fs.readlink(path))
        if options.json:
            output.line(fields)
            return
        for key, value in fields.items():
            text = _time(int(value)) if key.endswith("time_ns") else output.shown(str(value))
            print(f"{key.removesuffix('_ns'):>12}  {text}")

    return await each(options.paths, one)


def _time(ns: int) -> str:
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns // 1_000_000_000))
    return f"{whole}.{ns % 1_000_000_000:09d}"


# ---------------------------------------------------------------- tree


def add_tree(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv tree`."""
    parser.add_argument(
        "path", nargs="?", default="", metavar="PATH", help="default: all that there is"
    )
    parser.add_argument("-L", "--level", type=count, default=0, help="descend so deep; 0: all")
    _common(parser)
    parser.set_defaults(run=with_reader(_tree))


async def _tree(fs: ReadHandle, options: argparse.Namespace) -> int:
    root = options.path or await top(fs)
    if not options.json:
        print(output.shown(root))
    counts = [0, 0]
    code = await each([root], lambda path: _branch(fs, options, path, "", 1, counts))
    if not options.json and not code:
        directories = output.plural(counts[0], "directory", "directories")
        print(f"\n{directories}, {output.plural(counts[1], 'file')}")
    return code


async def _branch(
    fs: ReadHandle,
    options: argparse.Namespace,
    path: str,
    indent: str,
    depth: int,
    counts: list[int],
) -> None:
    """Show what is in one directory; at most DEPTH_MAX of the namespace deep."""
    held: Entry | None = None
    async for entry in fs.scandir(path, attrs=options.json):
        if held is not None:
            await _twig(fs, options, held, indent, depth, counts, last=False)
        held = entry
    if held is not None:
        await _twig(fs, options, held, indent, depth, counts, last=True)


async def _twig(
    fs: ReadHandle,
    options: argparse.Namespace,
    entry: Entry,
    indent: str,
    depth: int,
    counts: list[int],
    *,
    last: bool,
) -> None:
    counts[0 if entry.is_dir() else 1] += 1
    if options.json:
        assert entry.attr is not None
        fields = {**output.named("path", entry.path), "depth": depth}
        output.line(fields | output.attr_fields(entry.attr))
    else:
        mark = "" if not entry.is_symlink() else f" -> {await fs.readlink(entry.path)}"
        print(f"{indent}{'└── ' if last else '├── '}{output.shown(entry.name + mark)}")
    if entry.is_dir() and (not options.level or depth < options.level):
        further = indent + ("    " if last else "│   ")
        await _branch(fs, options, entry.path, further, depth + 1, counts)


# ---------------------------------------------------------------- du


def add_du(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv du`."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="default: all that there is")
    parser.add_argument(
        "-d", "--depth", type=count, default=0, metavar="N",
        help="of the directories below too, so deep (default: 0)",
    )  # fmt: skip
    _common(parser)
    parser.set_defaults(run=with_reader(_du))


async def _du(fs: ReadHandle, options: argparse.Namespace) -> int:
    async def one(path: str) -> None:
        await _count(fs, options, path, options.depth)

    return await each(options.paths or [await top(fs)], one)


async def _count(fs: ReadHandle, options: argparse.Namespace, path: str, depth: int) -> None:
    """Show what is below a directory; one read each, however much it is."""
    usage = await fs.usage(path)
    if options.json:
        fields = {"entries": usage.entries, "bytes": usage.bytes}
        output.line(output.named("path", path) | fields)
    else:
        shown = output.shown(path)
        print(f"{output.size(usage.bytes):>12} {usage.entries:>12} entries  {shown}")
    if depth:
        async for entry in fs.scandir(path, attrs=False):
            if entry.is_dir():
                await _count(fs, options, entry.path, depth - 1)
