"""`nokv diff`, `history`, `revert`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from nokv.cli import output
from nokv.cli.client import count, with_client
from nokv.cli.main import add_cluster

if TYPE_CHECKING:
    from nokv.client.diff import Difference, Generation
    from nokv.client.fs import AsyncClient
    from nokv.types.diffs import Holder, Seen


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


# ---------------------------------------------------------------- diff


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv diff`."""
    parser.add_argument(
        "left",
        metavar="A",
        help="a snapshot by its name, or an absolute path: what is there now",
    )
    parser.add_argument(
        "right",
        metavar="B",
        nargs="?",
        default=None,
        help="likewise; by default what is now where snapshot A was made",
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default="", help="only below this path, relative to both"
    )
    parser.add_argument(
        "--shallow",
        action="store_true",
        help="a directory that came or went stands for what is below it, with its counts",
    )
    parser.add_argument("--stat", action="store_true", help="sizes, and a summary")
    _json(parser)
    add_cluster(parser)
    parser.set_defaults(run=with_client(_diff))


async def _diff(fs: AsyncClient, options: argparse.Namespace) -> int:
    totals = _Totals()
    changes = fs.diff(options.left, options.right, options.path, expand=not options.shallow)
    async for change in changes:
        totals.add(change)
        if options.json:
            output.line(_fields(change))
        else:
            print(_line(change, sizes=options.stat))
    if options.stat and not options.json:
        print(totals.text())
    return 0


def _line(change: Difference, *, sizes: bool) -> str:
    path = output.shown(change.path or ".")
    text = f"{change.kind}  {path}"
    if change.old_path is not None:
        text = f"{change.kind}  {output.shown(change.old_path)} -> {path}"
    if not sizes:
        return text
    before, after = (_size(seen) for seen in (change.before, change.after))
    if before and after:
        return f"{text}  {before}" if before == after else f"{text}  {before} -> {after}"
    return f"{text}  {before or after}"


def _size(seen: Seen | None) -> str:
    """Return a size as it is shown; empty where there is nothing to show."""
    if seen is None:
        return ""
    if seen.file_type == 0o4 and not seen.entries:
        return "directory"
    if seen.file_type == 0o4:
        return f"{output.plural(seen.entries, 'entry', 'entries')}, {output.size(seen.size)}"
    return output.size(seen.size)


def _fields(change: Difference) -> dict[str, Any]:
    """Return what JSON says of a change."""
    fields: dict[str, Any] = {"change": change.kind, **output.named("path", change.path)}
    if change.old_path is not None:
        fields |= output.named("old_path", change.old_path)
    names = [flag.name.lower() for flag in change.what if flag.name is not None]
    if names:
        fields["what"] = names
    for side, seen in (("before", change.before), ("after", change.after)):
        if seen is not None:
            fields[side] = _seen_fields(seen)
    return fields


def _seen_fields(seen: Seen) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": output.TYPES.get(seen.file_type, "unknown"),
        "view": seen.view,
        "inode": seen.inode,
        "size": seen.size,
        "generation": seen.generation,
        "mode": f"{seen.mode:04o}",
        "uid": seen.uid,
        "gid": seen.gid,
        "mtime_ns": seen.mtime_ns,
    }
    if seen.file_type == 0o4:
        fields["entries"] = seen.entries
    return fields


class _Totals:
    """The summary of `--stat`."""

    _WORDS = (
        ("A", "added"),
        ("D", "deleted"),
        ("M", "modified"),
        ("R", "renamed"),
        ("T", "of another type"),
    )

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._bytes = 0

    def add(self, change: Difference) -> None:
        """Count a change."""
        self._counts[change.kind] = self._counts.get(change.kind, 0) + 1
        for seen, sign in ((change.before, -1), (change.after, 1)):
            if seen is not None and seen.file_type != 0o4:
                self._bytes += sign * seen.size

    def text(self) -> str:
        """Return the summary."""
        parts = [f"{self._counts[k]} {word}" for k, word in self._WORDS if k in self._counts]
        sign = "-" if self._bytes < 0 else "+"
        return f"{', '.join(parts) or 'no change'}; files: {sign}{output.size(abs(self._bytes))}"


# ---------------------------------------------------------------- history, revert


def add_history(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv history`."""
    parser.add_argument("path", metavar="PATH", help="a regular file")
    _json(parser)
    add_cluster(parser)
    parser.set_defaults(run=with_client(_history))


async def _history(fs: AsyncClient, options: argparse.Namespace) -> int:
    for one in await fs.history(options.path):
        if options.json:
            output.line(_generation_fields(one))
        else:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_when(one) / 1e9))
            who = f"{one.uid:>5}  session {one.session:x}" if one.session else f"{one.uid:>5}"
            names = ["now"] if one.live else []
            names += [_holder(holder) for holder in one.holders]
            if not one.revertible:
                names.append("can't be reverted to")
            print(f"{one.generation:>8}  {when}  {one.size:>12}  {who}  {', '.join(names)}")
    return 0


def _when(one: Generation) -> int:
    return one.published_ns or one.mtime_ns


def _holder(holder: Holder) -> str:
    from nokv.types.diffs import HolderKind

    kind = HolderKind(holder.kind).name.lower()
    if holder.name:
        return f"{kind} {holder.name}"
    number = f"{holder.number:x}" if kind in ("session", "lease") else str(holder.number)
    return f"{kind} {number}" if holder.number else kind


def _generation_fields(one: Generation) -> dict[str, Any]:
    return {
        "generation": one.generation,
        "live": one.live,
        "size": one.size,
        "mtime_ns": one.mtime_ns,
        "published_ns": one.published_ns,
        "uid": one.uid,
        "gid": one.gid,
        "session": f"{one.session:x}" if one.session else "",
        "sha256": one.sha256.hex(),
        "held_by": [_holder(holder) for holder in one.holders],
        "revertible": one.revertible,
    }


def add_revert(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv revert`."""
    parser.add_argument("path", metavar="PATH", help="a regular file")
    parser.add_argument(
        "--generation",
        type=count,
        required=True,
        metavar="N",
        help="of those that nokv history lists",
    )
    add_cluster(parser)
    parser.set_defaults(run=with_client(_revert))


async def _revert(fs: AsyncClient, options: argparse.Namespace) -> int:
    attr = await fs.revert(options.path, options.generation)
    print(f"{output.shown(options.path)}: generation {attr.generation}, {output.size(attr.size)}")
    return 0
