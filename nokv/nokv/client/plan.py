"""What a publish of several files is made of, and the operations that make it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from nokv.client.paths import Components, join, relative
from nokv.errors import InvalidArgument, IsADirectory, NotFound
from nokv.objects.source import SourceLike, refuse_text
from nokv.types.commands import TIME_NOW, InnerOp, Mkdir, SetAttr, Symlink
from nokv.types.limits import BLOCK_BYTES, SUM_BYTES
from nokv.types.values import At

OP_BYTES: Final = 96
"""What an operation takes beside its names and its map, rounded up."""

PART_BYTES: Final = 56
"""What an object takes in a map beside its sums, rounded up."""

OWNER_ALL: Final = 0o700
"""A directory is made with these, so that its owner can fill it, and gets its mode at the end."""


class PlannedFile(NamedTuple):
    """A file to publish."""

    path: Components
    """Below the published directory."""
    source: SourceLike
    size: int | None
    """Bytes, where that is known before."""
    mode: int
    mtime_ns: int = TIME_NOW
    before: os.stat_result | None = None
    """What the local file was when the plan was made."""


class PlannedDirectory(NamedTuple):
    """A directory below the published one."""

    path: Components
    mode: int
    mtime_ns: int | None = None


class PlannedLink(NamedTuple):
    """A symbolic link."""

    path: Components
    target: bytes
    mtime_ns: int | None = None


@dataclass(slots=True)
class Plan:
    """A tree to publish; every directory comes before what is in it."""

    root: PlannedDirectory
    directories: list[PlannedDirectory] = field(default_factory=list)
    links: list[PlannedLink] = field(default_factory=list)
    files: list[PlannedFile] = field(default_factory=list)

    def op_count(self) -> int:
        """Return how many operations the whole plan takes at most, its root included."""
        return 2 + 2 * len(self.directories) + 3 * len(self.links) + 2 * len(self.files)

    def estimate_bytes(self, base_bytes: int, inline_max: int) -> int:
        """Return about how many bytes the operations take together.

        Args:
            base_bytes: of the path of the published directory.
            inline_max: bodies up to this travel in the operation itself.
        """
        total = 0
        for directory in [self.root, *self.directories]:
            total += 2 * (OP_BYTES + base_bytes + _path_bytes(directory.path))
        for link in self.links:
            total += 2 * (OP_BYTES + base_bytes + _path_bytes(link.path)) + len(link.target)
        for file in self.files:
            total += OP_BYTES + base_bytes + _path_bytes(file.path)
            total += body_bytes(file.size or 0, inline_max)
        return total


def body_bytes(size: int, inline_max: int) -> int:
    """Return about how many bytes the map of a body takes in its publish."""
    if size <= inline_max:
        return size
    parts = -(-size // BLOCK_BYTES)
    return parts * PART_BYTES + 8 * -(-size // SUM_BYTES)


def _path_bytes(path: Components) -> int:
    return sum(len(name) + 5 for name in path)


def plan_files(files: Mapping[str, SourceLike], file_mode: int, directory_mode: int) -> Plan:
    """Return the plan for files given by name; looks at local files (blocking).

    Raises:
        InvalidArgument, NameTooLong: a name that can't be, or one that is a file and a directory; a
            `str` as a source.
        NotFound, IsADirectory: a local path that is no file.
    """
    plan = Plan(PlannedDirectory((), directory_mode))
    made: set[Components] = set()
    named: set[Components] = set()
    for name, source in files.items():
        path = relative(name)
        for depth in range(1, len(path)):
            if path[:depth] not in made:
                made.add(path[:depth])
                plan.directories.append(PlannedDirectory(path[:depth], directory_mode))
        if path in named:
            message = f"{join(path)!r} is named twice"
            raise InvalidArgument(message)
        named.add(path)
        plan.files.append(_planned(path, source, file_mode))
    both = named & made
    if both:
        message = f"{join(min(both))!r} would be a file and a directory"
        raise InvalidArgument(message)
    return plan


def _planned(path: Components, source: SourceLike, file_mode: int) -> PlannedFile:
    if isinstance(source, bytes | bytearray | memoryview):
        return PlannedFile(path, source, memoryview(source).nbytes, file_mode)
    refuse_text(source)
    if not isinstance(source, os.PathLike):
        return PlannedFile(path, source, None, file_mode)
    try:
        found = Path(source).stat()
    except FileNotFoundError:
        message = f"there is no local file {os.fspath(source)!r}"
        raise NotFound(message) from None
    if stat.S_ISDIR(found.st_mode):
        message = f"{os.fspath(source)!r} is a local directory"
        raise IsADirectory(message, hint="publish a directory with publish_tree")
    return PlannedFile(path, source, found.st_size, found.st_mode & 0o777, TIME_NOW, found)


# ---------------------------------------------------------------- operations


def below(base: At, path: Components) -> At:
    """Return the address of `path` below `base`."""
    return At(base.view, base.inode, base.path + path)


def directory_op(base: At, directory: PlannedDirectory) -> Mkdir:
    """Return what makes a directory of the plan; it can be filled until `finish_ops`."""
    parent, name = below(base, directory.path[:-1]), directory.path[-1]
    return Mkdir(parent, name, directory.mode | OWNER_ALL)


def link_ops(base: At, link: PlannedLink) -> Iterator[InnerOp]:
    """Yield what makes a symbolic link with its time."""
    yield Symlink(below(base, link.path[:-1]), link.path[-1], link.target)
    if link.mtime_ns is not None:
        where = below(base, link.path)
        yield SetAttr(
            At(where.view, where.inode, where.path, follow=False),
            atime_ns=link.mtime_ns,
            mtime_ns=link.mtime_ns,
        )


def finish_op(base: At, directory: PlannedDirectory) -> SetAttr | None:
    """Return what gives a directory that was filled its mode and time; None: nothing is left."""
    late_mode = directory.mode & OWNER_ALL != OWNER_ALL
    if directory.mtime_ns is None and not late_mode:
        return None
    return SetAttr(
        below(base, directory.path),
        mode=directory.mode if late_mode else None,
        atime_ns=directory.mtime_ns,
        mtime_ns=directory.mtime_ns,
    )


def finish_ops(base: At, plan: Plan) -> Iterator[InnerOp]:
    """Yield `finish_op` of all directories, the deepest first: each can still be reached then."""
    for directory in [*reversed(plan.directories), plan.root]:
        op = finish_op(base, directory)
        if op is not None:
            yield op
