"""POSIX access control lists, acl(5): their binary form, who they let in, how they are inherited.

A list is kept as the kernel passes it (`linux/posix_acl_xattr.h`, version 2, little-endian), in
canonical form: entries ordered by tag and id, ids of unnamed ones all ones. A list that says no
more than mode bits is not kept at all, so each one that is has a mask. The owner's, the mask's and
the others' permissions always equal the three classes of the mode bits.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, NoReturn

from nokv.errors import InvalidArgument, NotSupported, ResultTooLarge
from nokv.state.records import Acls, Inode
from nokv.types.limits import ACL_ENTRIES_MAX
from nokv.types.values import Caller, FileType

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
NAMES = (ACCESS, DEFAULT)

VERSION = 2
NO_ID = 2**32 - 1
"""Of an entry that names nobody, and of no user or group."""

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_RWX = 7


class Tag(IntEnum):
    """Whom an entry is about."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_NAMED = (Tag.USER, Tag.GROUP)
_ORDER = tuple(Tag)


class Entry(NamedTuple):
    """One entry; `id` is a uid, a gid or NO_ID."""

    tag: int
    permissions: int
    id: int


# ---------------------------------------------------------------- the binary form


def parse(value: bytes) -> tuple[Entry, ...]:
    """Return the entries of a list in canonical order; none for an empty one, which removes.

    Raises InvalidArgument for what is no valid list by acl(5), NotSupported for another version,
    ResultTooLarge over ACL_ENTRIES_MAX.
    """
    if not value:
        return ()
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        _refuse(f"{len(value)} bytes")
    (version,) = _HEADER.unpack_from(value)
    if version != VERSION:
        message = f"an access control list of version {version}"
        raise NotSupported(message)
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    if len(entries) > ACL_ENTRIES_MAX:
        message = f"{len(entries)} entries; the limit is {ACL_ENTRIES_MAX}"
        raise ResultTooLarge(message)
    return _checked(entries)


def _checked(entries: list[Entry]) -> tuple[Entry, ...]:
    if not entries:
        return ()
    tags = [entry.tag for entry in entries]
    for entry in entries:
        if entry.tag not in _ORDER or entry.permissions & ~_RWX:
            _refuse(f"entry {tuple(entry)}")
        if entry.tag in _NAMED and entry.id == NO_ID:
            _refuse(f"entry {tuple(entry)} names nobody")
    if tags != sorted(tags):
        _refuse("its entries are out of order")
    for tag in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER):
        if tags.count(tag) != 1:
            _refuse(f"{tags.count(tag)} entries {tag.name}")
    named = [(entry.tag, entry.id) for entry in entries if entry.tag in _NAMED]
    if len(set(named)) != len(named):
        _refuse("an entry twice")
    if tags.count(Tag.MASK) > 1 or (named and Tag.MASK not in tags):
        _refuse(f"{tags.count(Tag.MASK)} masks")
    shown = [
        entry if entry.tag in _NAMED else Entry(entry.tag, entry.permissions, NO_ID)
        for entry in entries
    ]
    return tuple(sorted(shown, key=lambda entry: (entry.tag, entry.id)))


def _refuse(what: str) -> NoReturn:
    message = f"no valid access control list: {what}"
    raise InvalidArgument(message, hint="see acl(5)")


def encode(entries: tuple[Entry, ...]) -> bytes:
    """Return the binary form."""
    return _HEADER.pack(VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def decode(value: bytes) -> tuple[Entry, ...]:
    """Return the entries of a list that is kept."""
    return tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :]))


# ---------------------------------------------------------------- lists and mode bits


def mode_of(entries: tuple[Entry, ...]) -> tuple[int, bool]:
    """Return the permission bits that a list stands for, and whether they say all of it."""
    bits = {entry.tag: entry.permissions for entry in entries}
    group = bits.get(Tag.MASK, bits[Tag.GROUP_OBJ])
    mode = bits[Tag.USER_OBJ] << 6 | group << 3 | bits[Tag.OTHER]
    return mode, len(entries) == len((Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER))


def with_mode(value: bytes, mode: int) -> bytes:
    """Return an access list after chmod(2): owner, mask and others are the mode's."""
    bits = {Tag.USER_OBJ: mode >> 6 & _RWX, Tag.MASK: mode >> 3 & _RWX, Tag.OTHER: mode & _RWX}
    return encode(
        tuple(
            Entry(entry.tag, bits.get(Tag(entry.tag), entry.permissions), entry.id)
            for entry in decode(value)
        )
    )


def inherited(parent: Inode, mode: int, umask: int) -> tuple[int, Acls | None]:
    """Return mode and lists of a new inode in a directory, by its default list, else the umask.

    With a default list the umask does not count: the list is the new one's access list, cut to
    what the mode asks for (acl(5): object creation and default ACLs). Symbolic links get none.
    """
    default = parent.acls.default if parent.acls is not None else b""
    if not default or mode >> 12 == FileType.SYMLINK:
        return mode & ~umask, None
    masked = any(entry.tag == Tag.MASK for entry in decode(default))
    shifts = {Tag.USER_OBJ: 6, Tag.MASK if masked else Tag.GROUP_OBJ: 3, Tag.OTHER: 0}
    entries: list[Entry] = []
    for entry in decode(default):
        shift = shifts.get(Tag(entry.tag))
        if shift is None:
            entries.append(entry)
            continue
        permissions = entry.permissions & (mode >> shift)
        mode = mode & ~(_RWX << shift) | permissions << shift
        entries.append(Entry(entry.tag, permissions, entry.id))
    directory = mode >> 12 == FileType.DIRECTORY
    access = encode(tuple(entries)) if masked else b""
    return mode, lists(access, default if directory else b"")


def lists(access: bytes, default: bytes) -> Acls | None:
    """Return both lists as an inode keeps them: None without any."""
    return Acls(access, default) if access or default else None


# ---------------------------------------------------------------- who is let in


def allows(value: bytes, gid: int, caller: Caller, wanted: int) -> bool:
    """Whether an access list gives a caller, who is not the owner, all of `wanted`.

    The access check algorithm of acl(5): a named user's entry decides alone; else any entry of a
    group of the caller's that has all of it; both only within the mask; else the others' entry.
    """
    entries = decode(value)
    mask = next(entry.permissions for entry in entries if entry.tag == Tag.MASK)
    in_some_group = False
    for entry in entries:
        if entry.tag == Tag.USER and entry.id == caller.uid:
            return entry.permissions & mask & wanted == wanted
        if entry.tag in (Tag.GROUP_OBJ, Tag.GROUP):
            group = gid if entry.tag == Tag.GROUP_OBJ else entry.id
            if group == caller.gid or group in caller.groups:
                in_some_group = True
                if entry.permissions & wanted == wanted:
                    return mask & wanted == wanted
    if in_some_group:
        return False
    others = entries[-1]
    assert others.tag == Tag.OTHER, "a kept list ends with the others"
    return others.permissions & wanted == wanted


def names_bytes(inode: Inode) -> int:
    """Return what the lists add to the names of an inode's attributes, each with a NUL."""
    return sum(len(name) + 1 for name in names_of(inode))


def names_of(inode: Inode) -> tuple[bytes, ...]:
    """Return the names under which an inode's lists are shown."""
    if inode.acls is None:
        return ()
    both = ((ACCESS, inode.acls.access), (DEFAULT, inode.acls.default))
    return tuple(name for name, value in both if value)
