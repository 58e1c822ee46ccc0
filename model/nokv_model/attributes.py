"""SetAttr and extended attributes."""

from __future__ import annotations

from nokv.errors import (
    AlreadyExists,
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotPermitted,
    NotSupported,
    PermissionDenied,
    ResultTooLarge,
)
from nokv.types.commands import TIME_NOW, RemoveXattr, SetAttr, SetXattr, XattrFlag
from nokv.types.events import EventKind
from nokv.types.limits import (
    CHUNK_BYTES,
    TRUNCATE_CHUNKS_MAX,
    XATTR_LIST_BYTES_MAX,
)
from nokv.types.results import Done, Made
from nokv.types.values import Caller
from nokv_model import access, acls
from nokv_model.access import FROZEN, SETGID, STICKY, W
from nokv_model.arguments import given
from nokv_model.body import EMPTY, Content, cut
from nokv_model.step import Step
from nokv_model.tree import Inode

BEYOND = 2**63


def set_attr(step: Step, op: SetAttr) -> Made:
    """chmod, chown, truncate, utimensat and inode flags, all or none."""
    inode = step.resolver.resolve(op.target)
    if given(op) - {"flags"}:
        access.require_flags_clear(inode, FROZEN)
    before = inode.copy()
    _set_flags(step, op, inode)
    _set_owner(step, op, inode, before)
    _set_mode(step, op, inode, before)
    _set_size(step, op, inode, before)
    _set_times(step, op, inode, before)
    step.touch(inode)
    step.event_of(EventKind.SETATTR, inode)
    return Made(step.forest.attr(inode))


def _set_flags(step: Step, op: SetAttr, inode: Inode) -> None:
    if op.flags is None:
        return
    if not access.is_root(step.caller):
        message = "inode flags are root's to set"
        raise NotPermitted(message)
    if not inode.is_directory and not inode.is_regular:
        message = "only directories and regular files have flags"
        raise NotSupported(message)
    inode.flags = op.flags


def _set_owner(step: Step, op: SetAttr, inode: Inode, before: Inode) -> None:
    if op.uid is None and op.gid is None:
        return
    if not access.is_root(step.caller):
        owned = step.caller.uid == before.uid
        given_away = op.uid not in {None, before.uid}
        foreign_group = op.gid is not None and not access.in_group(step.caller, op.gid)
        if not owned or given_away or foreign_group:
            message = "only root gives a file away"
            raise NotPermitted(message)
    inode.uid = before.uid if op.uid is None else op.uid
    inode.gid = before.gid if op.gid is None else op.gid
    if not inode.is_directory:
        step.clear_privileges(inode)


def _set_mode(step: Step, op: SetAttr, inode: Inode, before: Inode) -> None:
    if op.mode is None:
        return
    if not access.owns(step.caller, before):
        message = "only the owner changes the mode"
        raise NotPermitted(message)
    if inode.is_symlink:
        message = "a symbolic link has no mode of its own"
        raise NotSupported(message)
    mode = op.mode
    if not access.is_root(step.caller) and not access.in_group(step.caller, inode.gid):
        mode &= ~SETGID
    inode.mode = inode.mode >> 12 << 12 | mode
    if inode.access_list is not None:
        inode.access_list = acls.after_chmod(inode.access_list, mode)


def _set_size(step: Step, op: SetAttr, inode: Inode, before: Inode) -> None:
    if op.size is None:
        return
    if inode.is_directory:
        message = "a directory has no size to set"
        raise IsADirectory(message)
    if not inode.is_regular:
        message = "only a regular file has a size to set"
        raise InvalidArgument(message)
    access.require(step.caller, before, W)
    if op.size != inode.size:
        inode.generation, inode.sha256 = step.version, b""
        inode.mtime_ns = step.wall_ns
        kept = _truncated(inode, op.size)
        step.resized(inode)
        body = inode.body if op.size else 0
        step.set_content(inode, kept if body else EMPTY, body=body)
        inode.size = op.size
    if not access.is_root(step.caller):
        step.clear_privileges(inode)


def _truncated(inode: Inode, size: int) -> Content:
    chunks = {run.offset // CHUNK_BYTES for run in inode.content}
    last_kept = size // CHUNK_BYTES
    if 0 < size < inode.size and sum(i >= last_kept for i in chunks) > TRUNCATE_CHUNKS_MAX:
        message = "a truncate that cuts too many chunks"
        raise FileTooLarge(message)
    return cut(inode.content, size, BEYOND)


def _set_times(step: Step, op: SetAttr, inode: Inode, before: Inode) -> None:
    times = (op.atime_ns, op.mtime_ns)
    explicit = any(time not in {None, TIME_NOW} for time in times)
    if explicit and not access.owns(step.caller, before):
        message = "only the owner sets an explicit time"
        raise NotPermitted(message)
    if TIME_NOW in times and not access.owns(step.caller, before):
        access.require(step.caller, before, W)
    if op.atime_ns is not None:
        inode.atime_ns = step.wall_ns if op.atime_ns == TIME_NOW else op.atime_ns
    if op.mtime_ns is not None:
        inode.mtime_ns = step.wall_ns if op.mtime_ns == TIME_NOW else op.mtime_ns


# ---------------------------------------------------------------- extended attributes


def privileged(name: bytes) -> bool:
    """Say whether only root sees and changes the attribute."""
    return not name.startswith(b"user.")


def _require_changeable(caller: Caller, inode: Inode, name: bytes) -> None:
    if privileged(name) and not access.is_root(caller):
        message = "the attribute is root's"
        raise NotPermitted(message)
    if not privileged(name):
        if not inode.is_regular and not inode.is_directory:
            message = "only regular files and directories have user attributes"
            raise NotPermitted(message)
        if inode.is_directory and inode.mode & STICKY and not access.owns(caller, inode):
            message = "the directory is sticky and another's"
            raise NotPermitted(message)
        access.require(caller, inode, W)
    access.require_flags_clear(inode, FROZEN)


def _change_list(step: Step, op: SetXattr | RemoveXattr) -> Done:
    """Set or remove an access control list; flags do not count."""
    inode = step.resolver.resolve(op.target)
    access.require_flags_clear(inode, FROZEN)
    if inode.is_symlink:
        message = "a symbolic link has no list"
        raise NotSupported(message)
    made = acls.parse(op.value) if isinstance(op, SetXattr) else None
    if op.name == acls.DEFAULT and not inode.is_directory:
        if made is None:
            return Done()
        message = "only a directory has a default list"
        raise PermissionDenied(message)
    if not access.owns(step.caller, inode):
        message = "the lists are the owner's"
        raise NotPermitted(message)
    if op.name == acls.DEFAULT:
        inode.default_list = made
    else:
        inode.access_list = None if made is None or acls.is_minimal(made) else made
        if made is not None:
            inode.mode = inode.mode & ~0o777 | acls.mode_bits(made)
            if not access.is_root(step.caller) and not access.in_group(step.caller, inode.gid):
                inode.mode &= ~SETGID
    if _names_bytes(inode) > XATTR_LIST_BYTES_MAX:
        message = "the names of all attributes are over the limit"
        raise ResultTooLarge(message)
    step.touch(inode)
    step.event_of(EventKind.XATTR, inode)
    return Done()


def list_names(inode: Inode) -> list[bytes]:
    """Return the names under which its access lists are shown."""
    both = ((acls.ACCESS, inode.access_list), (acls.DEFAULT, inode.default_list))
    return [name for name, acl in both if acl is not None]


def _names_bytes(inode: Inode) -> int:
    return sum(len(name) + 1 for name in (*inode.xattrs, *list_names(inode)))


def set_xattr(step: Step, op: SetXattr) -> Done:
    """setxattr(2)."""
    if op.name in (acls.ACCESS, acls.DEFAULT):
        return _change_list(step, op)
    inode = step.resolver.resolve(op.target)
    _require_changeable(step.caller, inode, op.name)
    if op.flags == XattrFlag.CREATE and op.name in inode.xattrs:
        message = "the attribute exists"
        raise AlreadyExists(message)
    if op.flags == XattrFlag.REPLACE and op.name not in inode.xattrs:
        message = "no such attribute"
        raise NoAttribute(message)
    inode.xattrs[op.name] = op.value
    if _names_bytes(inode) > XATTR_LIST_BYTES_MAX:
        message = "the names of all attributes are over the limit"
        raise ResultTooLarge(message)
    step.touch(inode)
    step.event_of(EventKind.XATTR, inode)
    return Done()


def remove_xattr(step: Step, op: RemoveXattr) -> Done:
    """removexattr(2)."""
    if op.name in (acls.ACCESS, acls.DEFAULT):
        return _change_list(step, op)
    inode = step.resolver.resolve(op.target)
    _require_changeable(step.caller, inode, op.name)
    if op.name not in inode.xattrs:
        message = "no such attribute"
        raise NoAttribute(message)
    del inode.xattrs[op.name]
    step.touch(inode)
    step.event_of(EventKind.XATTR, inode)
    return Done()
