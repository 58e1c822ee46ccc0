"""Access control lists, as acl(5) describes them: a list is a map from (tag, id) to permissions."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from nokv.errors import InvalidArgument, NotSupported, ResultTooLarge
from nokv.types.limits import ACL_ENTRIES_MAX
from nokv.types.values import Caller

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF
EACH_ONCE = ((USER_OBJ, NOBODY), (GROUP_OBJ, NOBODY), (OTHER, NOBODY))

Acl = Mapping[tuple[int, int], int]
"""(tag, id) -> permissions, by tag and id; never changed once made."""


def parse(value: bytes) -> Acl | None:
    """Return the list of an attribute's value; None for an empty one.

    Raises InvalidArgument, NotSupported (another version), ResultTooLarge.
    """
    if value == b"":
        return None
    if len(value) % 8 != 4:
        message = "no list has so many bytes"
        raise InvalidArgument(message)
    if value[:4] != b"\x02\x00\x00\x00":
        message = "another version"
        raise NotSupported(message)
    count = len(value) // 8
    if count > ACL_ENTRIES_MAX:
        message = "too many entries"
        raise ResultTooLarge(message)
    entries = [struct.unpack_from("<HHI", value, 4 + 8 * number) for number in range(count)]
    if not entries:
        return None
    found: dict[tuple[int, int], int] = {}
    for tag, permissions, number in entries:
        named = tag in (USER, GROUP)
        key = (tag, number if named else NOBODY)
        known = tag in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)
        if not known or permissions > 7 or key in found or (named and number == NOBODY):
            message = "an entry that can't be"
            raise InvalidArgument(message)
        found[key] = permissions
    in_order = [tag for tag, _, _ in entries] == sorted(tag for tag, _, _ in entries)
    complete = all(key in found for key in EACH_ONCE)
    named_ones = any(tag in (USER, GROUP) for tag, _ in found)
    if not in_order or not complete or (named_ones and (MASK, NOBODY) not in found):
        message = "entries are missing, or out of order"
        raise InvalidArgument(message)
    return dict(sorted(found.items()))


def value_of(acl: Acl) -> bytes:
    """Return a list as an attribute's value."""
    entries = [struct.pack("<HHI", tag, bits, number) for (tag, number), bits in acl.items()]
    return b"\x02\x00\x00\x00" + b"".join(entries)


def group_class(acl: Acl) -> tuple[int, int]:
    """Return the key of what corresponds to the group class of the mode bits."""
    return (MASK, NOBODY) if (MASK, NOBODY) in acl else (GROUP_OBJ, NOBODY)


def mode_bits(acl: Acl) -> int:
    """Return the mode bits that correspond to a list."""
    owner, others = acl[USER_OBJ, NOBODY], acl[OTHER, NOBODY]
    return owner << 6 | acl[group_class(acl)] << 3 | others


def is_minimal(acl: Acl) -> bool:
    """Say whether mode bits say the same."""
    return len(acl) == len(EACH_ONCE)


def after_chmod(acl: Acl, mode: int) -> Acl:
    """Return a list whose classes are those of the mode."""
    return {
        **acl,
        (USER_OBJ, NOBODY): mode >> 6 & 7,
        group_class(acl): mode >> 3 & 7,
        (OTHER, NOBODY): mode & 7,
    }


def of_new(default: Acl, mode: int) -> Acl:
    """Return the access list of what is made below a directory with a default list.

    Permissions that the mode does not ask for are taken away from the three classes.
    """
    asked = {
        (USER_OBJ, NOBODY): mode >> 6 & 7,
        group_class(default): mode >> 3 & 7,
        (OTHER, NOBODY): mode & 7,
    }
    return {key: bits & asked.get(key, 7) for key, bits in default.items()}


def allowed(acl: Acl, owner: int, group: int, caller: Caller, wanted: int) -> bool:
    """The access check algorithm of acl(5), step by step."""
    groups = {caller.gid, *caller.groups}
    mask = acl.get((MASK, NOBODY), 7)
    # 1. The effective user ID of the process matches the user ID of the file object owner.
    if caller.uid == owner:
        return wanted & ~acl[USER_OBJ, NOBODY] == 0
    # 2. ... matches the qualifier of any entry of type ACL_USER.
    if (USER, caller.uid) in acl:
        return wanted & ~(acl[USER, caller.uid] & mask) == 0
    # 3. The effective group ID or any supplementary group matches the file group or a qualifier.
    matching = [acl[GROUP, number] for tag, number in acl if tag == GROUP and number in groups]
    if group in groups:
        matching.append(acl[GROUP_OBJ, NOBODY])
    if matching:
        return any(wanted & ~(bits & mask) == 0 for bits in matching)
    # 4. Else the ACL_OTHER entry decides.
    return wanted & ~acl[OTHER, NOBODY] == 0
