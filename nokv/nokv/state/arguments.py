"""What an operation may say, checked without looking at the state, in the order of its fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from nokv.errors import (
    FileTooLarge,
    InvalidArgument,
    NameTooLong,
    NotSupported,
    ResultTooLarge,
)
from nokv.state import acl
from nokv.state.naming import told
from nokv.types.commands import (
    TIME_NOW,
    BulkCreate,
    Create,
    Link,
    Mkdir,
    Mknod,
    RemoveTree,
    RemoveXattr,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    SetXattr,
    Symlink,
    Unlink,
    XattrFlag,
)
from nokv.types.limits import (
    BULK_NAMES_MAX,
    FILE_BYTES_MAX,
    GROUPS_MAX,
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    PRINCIPAL_BYTES_MAX,
    SYMLINK_TARGET_BYTES_MAX,
    UINT63_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from nokv.types.values import At, Caller, FileType, InodeFlag

ID_MAX = 2**32 - 2
"""Largest uid or gid; 2^32-1 means 'leave it' in chown(2)."""

PERMISSIONS = 0o7777
UMASK_MAX = 0o777
RDEV_MAX = 2**64 - 1
DEVICES = frozenset({FileType.CHARACTER, FileType.BLOCK})
_NODES = DEVICES | {FileType.REGULAR, FileType.FIFO, FileType.SOCKET}
_FLAGS = int(InodeFlag.IMMUTABLE | InodeFlag.APPEND)
_DOTS = frozenset({b".", b".."})
_XATTR_SPACES = (b"user.", b"trusted.", b"security.")


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise InvalidArgument(message, hint=hint)


# ---------------------------------------------------------------- values


def check_caller(caller: Caller) -> None:
    """Raise InvalidArgument for a caller that can't be one."""
    if not 0 <= caller.uid <= ID_MAX or not 0 <= caller.gid <= ID_MAX:
        _refuse(f"caller {caller.uid}:{caller.gid}")
    groups = caller.groups
    if groups and (len(groups) > GROUPS_MAX or min(groups) < 0 or max(groups) > ID_MAX):
        _refuse(f"{len(groups)} supplementary groups; at most {GROUPS_MAX}, each up to {ID_MAX}")
    if caller.principal and len(caller.principal.encode()) > PRINCIPAL_BYTES_MAX:
        _refuse(f"a principal of more than {PRINCIPAL_BYTES_MAX} bytes")


def check_name(name: bytes) -> None:
    """Raise NameTooLong or InvalidArgument unless `name` may name a directory entry."""
    _check_component(name)
    if name in _DOTS:
        _refuse(f"'{told(name)}' can't name an entry")


def _check_component(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        message = f"a name of {len(name)} bytes; the limit is {NAME_BYTES_MAX}"
        raise NameTooLong(message)
    if not name or b"/" in name or b"\0" in name:
        _refuse(f"'{told(name)}' is empty, or has '/' or NUL")


def check_at(at: At) -> None:
    """Raise NameTooLong or InvalidArgument for a path that no state makes valid."""
    path = at.path
    if not path:
        return
    size = len(path) - 1
    for name in path:
        size += len(name)
        _check_component(name)
    if size > PATH_BYTES_MAX:
        message = f"a path of {size} bytes; the limit is {PATH_BYTES_MAX}"
        raise NameTooLong(message)


def _check_permissions(mode: int) -> None:
    if not 0 <= mode <= PERMISSIONS:
        _refuse(f"mode {mode:o} (octal)", f"permission bits only, 0 to {PERMISSIONS:o}")


def check_umask(umask: int) -> None:
    """Raise InvalidArgument for bits that no umask has."""
    if not 0 <= umask <= UMASK_MAX:
        _refuse(f"umask {umask:o} (octal)", f"0 to {UMASK_MAX:o}")


def check_xattr_name(name: bytes) -> None:
    """Raise NameTooLong, InvalidArgument, or NotSupported for a foreign name space."""
    if len(name) > NAME_BYTES_MAX:
        message = f"an attribute name of {len(name)} bytes"
        raise NameTooLong(message, hint=f"the limit is {NAME_BYTES_MAX}")
    if not name or b"\0" in name:
        _refuse(f"'{told(name)}' can't name an attribute")
    if (not name.startswith(_XATTR_SPACES) or name in _XATTR_SPACES) and name not in acl.NAMES:
        message = f"attribute {told(name)}"
        raise NotSupported(message, hint="names start with user., trusted. or security.")


# ---------------------------------------------------------------- operations


def _check_make(op: Mkdir | Create) -> None:
    check_at(op.parent)
    check_name(op.name)
    _check_permissions(op.mode)
    check_umask(op.umask)


def _check_bulk(op: BulkCreate) -> None:
    check_at(op.parent)
    names = op.names
    if not names:
        message = "a bulk create without names"
        raise InvalidArgument(message, hint="give at least one")
    if len(names) > BULK_NAMES_MAX:
        message = f"{len(names)} names; the limit is {BULK_NAMES_MAX}"
        raise ResultTooLarge(message)
    distinct = set(names)
    joined = b"/".join(names)
    lengths = list(map(len, names))
    doubtful = min(lengths) < 1 or max(lengths) > NAME_BYTES_MAX or distinct & _DOTS
    if doubtful or b"\0" in joined or joined.count(b"/") != len(names) - 1:
        for name in names:
            check_name(name)
    if len(distinct) != len(names):
        _refuse("a bulk create with a name twice")
    _check_permissions(op.mode)
    check_umask(op.umask)


def _check_mknod(op: Mknod) -> None:
    check_at(op.parent)
    check_name(op.name)
    if op.mode >> 12 not in _NODES:
        _refuse(
            f"mknod makes no mode {op.mode:o} (octal)",
            "the type bits of a FIFO, socket, device or regular file, with permission bits",
        )
    if not 0 <= op.rdev <= RDEV_MAX:
        _refuse(f"device number {op.rdev}", f"0 to {RDEV_MAX}")
    check_umask(op.umask)


def _check_symlink(op: Symlink) -> None:
    check_at(op.parent)
    check_name(op.name)
    if len(op.target) > SYMLINK_TARGET_BYTES_MAX:
        message = f"a target of {len(op.target)} bytes; the limit is {SYMLINK_TARGET_BYTES_MAX}"
        raise NameTooLong(message)
    if not op.target or b"\0" in op.target:
        _refuse("a link's target is empty or has a NUL")


def _check_link(op: Link) -> None:
    check_at(op.source)
    check_at(op.parent)
    check_name(op.name)


def _check_remove(op: Unlink | Rmdir | RemoveTree) -> None:
    check_at(op.parent)
    check_name(op.name)


def _check_rename(op: Rename) -> None:
    check_at(op.source)
    check_name(op.source_name)
    check_at(op.target)
    check_name(op.target_name)
    if op.flags not in (0, RenameFlag.NOREPLACE, RenameFlag.EXCHANGE):
        _refuse(f"rename flags {op.flags}")


def check_size(size: int) -> None:
    """Raise InvalidArgument or FileTooLarge for a size that no file can have."""
    if size < 0:
        _refuse(f"size {size}", f"0 to {FILE_BYTES_MAX}")
    if size > FILE_BYTES_MAX:
        message = f"a file of {size} bytes"
        raise FileTooLarge(message, hint=f"the limit is {FILE_BYTES_MAX}")


def _check_set_attr(op: SetAttr) -> None:
    check_at(op.target)
    if op.mode is not None:
        _check_permissions(op.mode)
    for number in (op.uid, op.gid):
        if number is not None and not 0 <= number <= ID_MAX:
            _refuse(f"uid or gid {number}", f"0 to {ID_MAX}")
    if op.size is not None:
        check_size(op.size)
    for time in (op.atime_ns, op.mtime_ns):
        if time is not None and not TIME_NOW <= time <= UINT63_MAX:
            _refuse(f"time {time}", "nanoseconds since 1970, in 63 bits")
    if op.flags is not None and op.flags & ~_FLAGS:
        _refuse(f"inode flags {op.flags}", "of nokv.types.values.InodeFlag")
    given = (op.mode, op.uid, op.gid, op.size, op.atime_ns, op.mtime_ns, op.flags)
    if all(field is None for field in given):
        _refuse("a SetAttr that sets nothing")


def _check_set_xattr(op: SetXattr) -> None:
    check_at(op.target)
    check_xattr_name(op.name)
    if len(op.value) > XATTR_VALUE_BYTES_MAX:
        message = f"a value of {len(op.value)} bytes; the limit is {XATTR_VALUE_BYTES_MAX}"
        raise ResultTooLarge(message)
    if not XattrFlag.EITHER <= op.flags <= XattrFlag.REPLACE:
        _refuse(f"attribute flags {op.flags}", "one of XattrFlag: EITHER, CREATE, REPLACE")
    if op.name in acl.NAMES:
        acl.parse(op.value)


def _check_remove_xattr(op: RemoveXattr) -> None:
    check_at(op.target)
    check_xattr_name(op.name)


CHECKS: dict[type, Callable[[Any], None]] = {
    Mkdir: _check_make,
    Create: _check_make,
    BulkCreate: _check_bulk,
    Mknod: _check_mknod,
    Symlink: _check_symlink,
    Link: _check_link,
    Unlink: _check_remove,
    Rmdir: _check_remove,
    RemoveTree: _check_remove,
    Rename: _check_rename,
    SetAttr: _check_set_attr,
    SetXattr: _check_set_xattr,
    RemoveXattr: _check_remove_xattr,
}
