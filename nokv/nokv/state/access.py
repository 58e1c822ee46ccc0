"""Who may do what: POSIX permission bits and lists, the sticky bit, inode flags.

Pure functions of records and the caller. uid 0 passes every check but those of inode flags.
"""

from __future__ import annotations

from nokv.errors import Immutable, NotPermitted, PermissionDenied
from nokv.state.acl import allows
from nokv.state.records import Inode
from nokv.types.values import Caller, FileType, InodeFlag

R, W, X = 4, 2, 1

SET_UID = 0o4000
SET_GID = 0o2000
STICKY = 0o1000
GROUP_X = 0o010
PERMISSIONS = 0o7777

_DIRECTORY = int(FileType.DIRECTORY)
_IMMUTABLE = int(InodeFlag.IMMUTABLE)
_FROZEN = int(InodeFlag.IMMUTABLE | InodeFlag.APPEND)


def in_group(caller: Caller, gid: int) -> bool:
    """Whether the group is the caller's own or a supplementary one."""
    return gid == caller.gid or gid in caller.groups


def owns(inode: Inode, caller: Caller) -> bool:
    """Whether the caller is the owner, or root."""
    return caller.uid in (0, inode.uid)


def may(inode: Inode, caller: Caller, mask: int) -> bool:
    """Whether the caller's class, or the access list, has all the bits of `mask` (R | W | X)."""
    uid = caller.uid
    if uid == 0:
        return True
    mode = inode.mode
    if uid == inode.uid:
        mode >>= 6
    elif inode.acls is not None and inode.acls.access:
        return allows(inode.acls.access, inode.gid, caller, mask)
    elif in_group(caller, inode.gid):
        mode >>= 3
    return mode & mask == mask


def need(inode: Inode, caller: Caller, mask: int) -> None:
    """Raise PermissionDenied unless `may`."""
    if caller.uid and not may(inode, caller, mask):
        wanted = "".join(letter for letter, bit in zip("rwx", (R, W, X), strict=True) if mask & bit)
        message = f"uid {caller.uid} lacks {wanted} on mode {inode.mode & PERMISSIONS:04o}"
        raise PermissionDenied(message)


def need_owner(inode: Inode, caller: Caller) -> None:
    """Raise NotPermitted unless the caller is the owner or root."""
    if not owns(inode, caller):
        message = f"uid {caller.uid} is not the owner, {inode.uid}"
        raise NotPermitted(message)


def need_root(caller: Caller, what: str) -> None:
    """Raise NotPermitted unless the caller is root."""
    if caller.uid:
        message = f"{what} needs uid 0"
        raise NotPermitted(message)


def may_create(parent: Inode, caller: Caller) -> None:
    """Check a new name in `parent`; x, and that the name is free, were checked before.

    Raises PermissionDenied (no w), Immutable.
    """
    need(parent, caller, W)
    if parent.flags & _IMMUTABLE:
        message = "the directory is immutable"
        raise Immutable(message)


def may_delete(parent: Inode, entry: Inode, caller: Caller) -> None:
    """Check the removal of a name; x was checked, and the entry looked up, before.

    Raises PermissionDenied (no w), NotPermitted (sticky), Immutable.
    """
    need(parent, caller, W)
    if parent.mode & STICKY and not (owns(parent, caller) or owns(entry, caller)):
        message = "the directory is sticky, and neither it nor the entry is the caller's"
        raise NotPermitted(message)
    need_not_frozen(parent, "the directory")
    need_not_frozen(entry, "the entry")


def need_not_frozen(inode: Inode, what: str) -> None:
    """Raise Immutable if the inode has IMMUTABLE or APPEND."""
    if inode.flags & _FROZEN:
        message = f"{what} is immutable or append-only"
        raise Immutable(message)


def clear_privileges(mode: int) -> int:
    """Return the mode without 04000, and without 02000 where 00010 makes it a privilege."""
    return mode & ~(SET_UID | SET_GID) if mode & GROUP_X else mode & ~SET_UID


def inherit(parent: Inode, caller: Caller, mode: int) -> tuple[int, int]:
    """Return (mode, gid) of a new inode whose mode, type bits included, was asked for."""
    directory = mode >> 12 == _DIRECTORY
    gid = caller.gid
    if parent.mode & SET_GID:
        gid = parent.gid
        if directory:
            mode |= SET_GID
    privileged = mode & (SET_GID | GROUP_X) == SET_GID | GROUP_X
    if privileged and not directory and caller.uid and not in_group(caller, gid):
        mode &= ~SET_GID
    return mode, gid
