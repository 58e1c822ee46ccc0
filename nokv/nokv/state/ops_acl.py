"""Setting, removing and showing access control lists: attributes that are part of the inode."""

from __future__ import annotations

from msgspec.structs import replace

from nokv.errors import NoAttribute, NotSupported, PermissionDenied, ResultTooLarge
from nokv.state import acl
from nokv.state.access import SET_GID, in_group, need_not_frozen, need_owner
from nokv.state.context import S_IFMT, Context, is_directory, is_symlink
from nokv.state.naming import told
from nokv.state.records import Inode
from nokv.state.resolve import Found, resolve
from nokv.types.commands import RemoveXattr, SetXattr
from nokv.types.limits import XATTR_LIST_BYTES_MAX

_PERMISSIONS = 0o777


def changed(ctx: Context, op: SetXattr | RemoveXattr) -> tuple[Found, Inode] | None:
    """Return the inode with the list that is asked for set or removed; the record is unwritten.

    None where there is nothing to do: what is no directory has no default list to remove.

    Flags of setxattr(2) do not count, and what is not there may be removed, as on Linux. Removing
    the access list leaves the mode bits as they are.
    """
    found = resolve(ctx.txn, ctx.caller, ctx.session_id, op.target)
    inode = found.inode
    need_not_frozen(inode, "the inode")
    if is_symlink(inode):
        message = "a symbolic link has no access control list"
        raise NotSupported(message)
    entries = acl.parse(op.value) if isinstance(op, SetXattr) else ()
    access = inode.acls.access if inode.acls is not None else b""
    default = inode.acls.default if inode.acls is not None else b""
    mode = inode.mode
    if op.name == acl.DEFAULT:
        if not is_directory(inode):
            if not entries:
                return None
            message = "only a directory has a default access control list"
            raise PermissionDenied(message)
        default = acl.encode(entries) if entries else b""
    need_owner(inode, ctx.caller)
    if op.name == acl.ACCESS:
        access = b""
        if entries:
            bits, all_said = acl.mode_of(entries)
            access = b"" if all_said else acl.encode(entries)
            mode = mode & ~_PERMISSIONS | bits
            if ctx.caller.uid and not in_group(ctx.caller, inode.gid):
                mode &= ~SET_GID
    assert mode & S_IFMT == inode.mode & S_IFMT, "a list changes permission bits only"
    after = replace(inode, mode=mode, acls=acl.lists(access, default), ctime_ns=ctx.wall_ns)
    if after.xattr_bytes + acl.names_bytes(after) > XATTR_LIST_BYTES_MAX:
        message = f"names of attributes over {XATTR_LIST_BYTES_MAX} bytes"
        raise ResultTooLarge(message)
    return found, after


def shown(inode: Inode, name: bytes) -> bytes:
    """Return a list as an attribute's value. Raises NoAttribute, NotSupported."""
    if is_symlink(inode):
        message = "a symbolic link has no access control list"
        raise NotSupported(message)
    value = b""
    if inode.acls is not None:
        value = inode.acls.access if name == acl.ACCESS else inode.acls.default
    if not value:
        message = f"no attribute {told(name)}"
        raise NoAttribute(message)
    return value
