"""Reading a local directory into a plan. Blocking: runs in a thread."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nokv.client.paths import Components, decode_name
from nokv.client.plan import Plan, PlannedDirectory, PlannedFile, PlannedLink
from nokv.errors import IsADirectory, NameTooLong, NotADirectory, NotSupported, SourceChanged
from nokv.types.limits import DEPTH_MAX, NAME_BYTES_MAX

MODE_BITS = 0o7777


def scan(local: str, *, skip_special: bool) -> Plan:
    """Return the plan of a local tree, in the order of the names' bytes.

    Args:
        local: the directory; a symbolic link to one is followed, those below it are kept.
        skip_special: leave out FIFOs, sockets and devices.

    Raises:
        NotADirectory: it is none.
        NotSupported: it holds a FIFO, socket or device.
        SourceChanged: something vanished while it was read.
        OSError: it can't be read.
    """
    root = os.fsencode(local)
    try:
        found = Path(decode_name(root)).stat()
    except NotADirectoryError:
        raise NotADirectory(f"{local!r} is not a local directory") from None
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectory(f"{local!r} is not a local directory", hint="publish files with put")
    plan = Plan(PlannedDirectory((), found.st_mode & MODE_BITS, found.st_mtime_ns))
    waiting: list[Components] = [()]
    while waiting:
        directory = waiting.pop()
        if len(directory) > DEPTH_MAX:
            raise NameTooLong(f"{local!r} is nested more than {DEPTH_MAX} directories deep")
        below = _scan_one(root, directory, plan, skip_special=skip_special)
        waiting.extend(reversed(below))
    return plan


def _scan_one(
    root: bytes, directory: Components, plan: Plan, *, skip_special: bool
) -> list[Components]:
    """Add one directory's entries to the plan and return its directories."""
    here = b"/".join((root, *directory))
    below: list[Components] = []
    try:
        with os.scandir(here) as entries:
            found = sorted(
                ((entry.name, entry.stat(follow_symlinks=False)) for entry in entries),
                key=lambda one: one[0],
            )
    except FileNotFoundError as error:
        raise SourceChanged(f"{decode_name(here)!r} changed while it was read") from error
    for name, info in found:
        path, full = (*directory, name), here + b"/" + name
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(f"{decode_name(full)!r} has a name over {NAME_BYTES_MAX} bytes")
        if stat.S_ISDIR(info.st_mode):
            mode = info.st_mode & MODE_BITS
            plan.directories.append(PlannedDirectory(path, mode, info.st_mtime_ns))
            below.append(path)
        elif stat.S_ISREG(info.st_mode):
            mode = info.st_mode & MODE_BITS
            source = Path(decode_name(full))
            plan.files.append(PlannedFile(path, source, info.st_size, mode, info.st_mtime_ns, info))
        elif stat.S_ISLNK(info.st_mode):
            plan.links.append(PlannedLink(path, _target(full), info.st_mtime_ns))
        elif not skip_special:
            raise NotSupported(
                f"{decode_name(full)!r} is a FIFO, socket or device",
                hint="leave it out: skip_special=True, --skip-special",
            )
    return below


def _target(path: bytes) -> bytes:
    try:
        return os.readlink(path)  # noqa: PTH115  bytes in, bytes out
    except OSError as error:
        raise SourceChanged(f"{decode_name(path)!r} changed while it was read") from error


def check_file(local: str) -> os.stat_result:
    """Return what stat says of a local regular file (blocking).

    Raises:
        IsADirectory, NotSupported: it is something else.
        OSError: it can't be looked at.
    """
    found = Path(local).stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectory(f"{local!r} is a local directory", hint="use publish_tree, or -r")
    if not stat.S_ISREG(found.st_mode):
        raise NotSupported(f"{local!r} is no regular file", hint="open it and pass the file object")
    return found
