"""What listings return, and how names match patterns."""

from __future__ import annotations

import fnmatch
import re
from typing import NamedTuple

from nokv.client.paths import decode_name
from nokv.types.reads import DirEntry
from nokv.types.values import Attr, FileType


class Entry(NamedTuple):
    """One name of a directory, with the attributes of what it names."""

    name: str
    """With surrogateescape where the name is not UTF-8 (`nokv.client.paths.encode_name`)."""
    path: str
    """The directory's path as it was given, '/', and the name."""
    file_type: FileType
    inode: int
    attr: Attr | None
    """None where the listing was asked for without attributes."""

    @property
    def name_bytes(self) -> bytes:
        """The name itself."""
        return self.name.encode("utf-8", "surrogateescape")

    def is_dir(self) -> bool:
        """Whether it is a directory; a symbolic link is none."""
        return self.file_type == FileType.DIRECTORY

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.file_type == FileType.REGULAR

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self.file_type == FileType.SYMLINK


def entry_of(directory: str, found: DirEntry) -> Entry:
    """Return what a listing of `directory` shows of one name."""
    name = decode_name(found.name)
    path = f"/{name}" if directory == "/" else f"{directory}/{name}"
    return Entry(name, path, FileType(found.file_type), found.inode, found.attr)


def file_type(attr: Attr) -> FileType:
    """Return the type of what `attr` describes."""
    return FileType(attr.mode >> 12)


def has_magic(part: str) -> bool:
    """Return whether a component of a pattern matches more than one name."""
    return any(character in part for character in "*?[")


def matcher(part: str) -> re.Pattern[str]:
    """Return what matches the names that a component of a pattern means (fnmatch(3))."""
    return re.compile(fnmatch.translate(part))
