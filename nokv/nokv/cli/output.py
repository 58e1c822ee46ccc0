"""What commands write: JSON lines, names on a terminal, sizes, and progress."""

from __future__ import annotations

import base64
import json
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nokv.types.values import Attr

TYPES: Final = {
    0o1: "fifo",
    0o2: "character",
    0o4: "directory",
    0o6: "block",
    0o10: "file",
    0o12: "symlink",
    0o14: "socket",
}

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def line(value: dict[str, Any]) -> None:
    """Write one JSON object on one line. A name's surrogates become `\\udcXX`, so it is ASCII."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")


def named(key: str, text: str) -> dict[str, str]:
    """Return `{key: text}`, with `key_b64` beside it where the name is not UTF-8."""
    fields = {key: text}
    try:
        text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogateescape")
        fields[f"{key}_b64"] = base64.b64encode(data).decode()
    return fields


def attr_fields(attr: Attr) -> dict[str, Any]:
    """Return what JSON says of an inode. Times are ns since 1970, sizes bytes."""
    return {
        "type": TYPES.get(attr.mode >> 12, "unknown"),
        "inode": attr.inode,
        "view": attr.view,
        "mode": f"{attr.mode & 0o7777:04o}",
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink": attr.nlink,
        "size": attr.size,
        "children": attr.children,
        "atime_ns": attr.atime_ns,
        "mtime_ns": attr.mtime_ns,
        "ctime_ns": attr.ctime_ns,
        "rdev": attr.rdev,
        "flags": attr.flags,
        "version": attr.version,
        "generation": attr.generation,
        "sha256": attr.sha256.hex(),
    }


def shown(name: str) -> str:
    """Return a name as lines show it: control characters and what is not UTF-8 as `\\n`, `\\xff`.

    So a name can't make a line of its own, or write to the terminal; JSON has it as it is.
    """
    return name if name.isprintable() else "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte, by surrogateescape
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def bare(name: str) -> str:
    """Return a name that is a line by itself: for other programs as it is, as ls(1) does."""
    return shown(name) if sys.stdout.isatty() else name


def long_line(attr: Attr, name: str) -> str:
    """Return one line of `ls -l`."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attr.mtime_ns / 1e9))
    count = attr.children if attr.mode >> 12 == 0o4 else attr.size
    who = f"{attr.uid:>5} {attr.gid:>5}"
    return f"{stat.filemode(attr.mode)} {attr.nlink:>3} {who} {count:>12} {when} {name}"


def size(n_bytes: float) -> str:
    """Return a size in binary units."""
    for unit in UNITS[:-1]:
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} {UNITS[-1]}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units, as `6 d 23 h`."""
    left = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        many, left = divmod(left, length)
        if many or parts or unit == "s":
            parts.append(f"{many} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or parts[0]


def plural(count: int, one: str, many: str = "") -> str:
    """Return `1 file`, `2 files`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _ignore(n_bytes: int) -> None:
    del n_bytes


@contextmanager
def progress(what: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, if that is a terminal; yield what to call with bytes done."""
    if not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)
