"""The checks of an operation's arguments, in field order, which never look at the state."""

from __future__ import annotations

import string

from nokv.errors import (
    FileTooLarge,
    InvalidArgument,
    NameTooLong,
    NotSupported,
    ResultTooLarge,
)
from nokv.types import commands as c
from nokv.types import trash as t
from nokv.types import views as v
from nokv.types.copies import Copy, CopyMode, CopyRange, SetQuota
from nokv.types.limits import (
    BULK_NAMES_MAX,
    FILE_BYTES_MAX,
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    SESSION_TTL_NS_MAX,
    SESSION_TTL_NS_MIN,
    SNAPSHOT_NAME_CHARACTERS_MAX,
    SNAPSHOT_TTL_NS_MAX,
    SNAPSHOT_TTL_NS_MIN,
    SYMLINK_TARGET_BYTES_MAX,
    UINT63_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from nokv.types.values import FileType
from nokv_model import acls
from nokv_model.access import FROZEN, check_at, check_name
from nokv_model.body import check_body
from nokv_model.locks import check_lock
from nokv_model.tree import file_type

PERMISSIONS = 0o7777
UMASK_MAX = 0o777
ID_MAX = 2**32 - 2
UPLOADS_LEASED_MAX = 4096
NONCE_BYTES = 16
SHA256_BYTES = 32
STEP_MAX = 65_536

DEVICES = frozenset({FileType.CHARACTER, FileType.BLOCK})
NODES = DEVICES | {FileType.REGULAR, FileType.FIFO, FileType.SOCKET}


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidArgument(message)


def _permissions(mode: int) -> None:
    _require(0 <= mode <= PERMISSIONS, "mode bits beyond 7777")


def _time(time: int | None) -> None:
    _require(time is None or c.TIME_NOW <= time <= UINT63_MAX, "a time out of range")


def check_xattr_name(name: bytes) -> None:
    """Check the name of an extended attribute: NameTooLong, InvalidArgument or NotSupported."""
    if len(name) > NAME_BYTES_MAX:
        message = "an attribute name over the limit"
        raise NameTooLong(message)
    _require(name and b"\0" not in name, "an empty attribute name, or one with NUL")
    space, _, rest = name.partition(b".")
    of_list = name in (acls.ACCESS, acls.DEFAULT)
    if (space not in {b"user", b"trusted", b"security"} or not rest) and not of_list:
        message = "an attribute outside user., trusted. and security."
        raise NotSupported(message)


def check_arguments(op: c.Op | c.InnerOp) -> None:
    """Check the arguments of one operation; an `Atomic` is checked operation by operation."""
    match op:
        case c.Mkdir() | c.Create() | c.BulkCreate() | c.Mknod() | c.Symlink():
            _check_making(op)
        case c.Link():
            check_at(op.source)
            check_at(op.parent)
            check_name(op.name)
        case c.Unlink() | c.Rmdir() | c.RemoveTree():
            check_at(op.parent)
            check_name(op.name)
        case c.Rename():
            check_at(op.source)
            check_name(op.source_name)
            check_at(op.target)
            check_name(op.target_name)
            flags = {0, c.RenameFlag.NOREPLACE, c.RenameFlag.EXCHANGE}
            _require(op.flags in flags, "rename flags that do not go together")
        case c.SetAttr():
            _check_set_attr(op)
        case c.SetXattr():
            check_at(op.target)
            check_xattr_name(op.name)
            if len(op.value) > XATTR_VALUE_BYTES_MAX:
                message = "a value over the limit"
                raise ResultTooLarge(message)
            _require(op.flags in set(c.XattrFlag), "xattr flags out of range")
            if op.name in (acls.ACCESS, acls.DEFAULT):
                acls.parse(op.value)
        case c.RemoveXattr():
            check_at(op.target)
            check_xattr_name(op.name)
        case c.Publish():
            _check_publish(op)
        case c.StageSwap():
            check_at(op.parent)
            check_name(op.name)
            _require(op.stage_mode in set(c.StageMode), "no such stage mode")
        case c.StageBegin():
            roots = {FileType.DIRECTORY, FileType.REGULAR}
            _require(file_type(op.mode) in roots, "a staged root is a directory or a regular file")
        case c.OpenSession():
            _require(len(op.nonce) == NONCE_BYTES, "a nonce of another length")
            _require(SESSION_TTL_NS_MIN <= op.ttl_ns <= SESSION_TTL_NS_MAX, "a ttl out of range")
        case c.LeaseUploads():
            _require(1 <= op.count <= UPLOADS_LEASED_MAX, "too many uploads, or none")
        case c.Reap() | c.TrimEvents() | v.ExpireSnapshots() | v.Flatten() | t.ExpireTrash():
            _require(1 <= op.limit <= STEP_MAX, "a step out of range")
        case _:
            _check_copies_and_views(op)


def _check_copies_and_views(op: c.Op | c.InnerOp) -> None:
    match op:
        case Copy():
            check_at(op.source)
            check_at(op.parent)
            check_name(op.name)
            _require(op.copy_mode in set(CopyMode), "no such copy mode")
            _permissions(op.mode)
            _require(0 <= op.at_version <= UINT63_MAX, "a version out of range")
        case SetQuota():
            check_at(op.at)
            _require(0 <= op.entries <= UINT63_MAX, "a limit out of range")
            _require(0 <= op.size_bytes <= UINT63_MAX, "a limit out of range")
        case CopyRange():
            check_at(op.source)
            check_at(op.target)
            _require(min(op.source_offset, op.target_offset, op.length) >= 0, "a negative range")
            _check_size(max(op.source_offset, op.target_offset) + op.length)
            _require(0 <= op.at_version <= UINT63_MAX, "a version out of range")
        case v.SnapshotCreate():
            check_at(op.at)
            _require(is_snapshot_name(op.name), "no name for a snapshot")
            _check_shown_path(op.path)
            _check_lease(op.ttl_ns, held=True)
        case v.SnapshotRenew():
            _check_lease(op.ttl_ns, held=True)
        case v.Clone():
            check_at(op.source)
            check_at(op.parent)
            check_name(op.name)
        case v.WorkspaceCreate():
            check_at(op.parent)
            check_name(op.name)
            _permissions(op.mode)
        case v.Rollback():
            check_at(op.parent)
            check_name(op.name)
            _check_shown_path(op.path)
            _check_lease(op.keep_ns, held=False)
        case t.Trash() | t.RestoreTrash() | t.EmptyTrash() | t.KeepTrash():
            _check_trash(op)
        case _:
            check_lock(op)


def _check_trash(op: t.Trash | t.RestoreTrash | t.EmptyTrash | t.KeepTrash) -> None:
    match op:
        case t.Trash():
            check_at(op.parent)
            check_name(op.name)
        case t.RestoreTrash():
            if op.parent is not None:
                check_at(op.parent)
            if op.name:
                check_name(op.name)
        case t.EmptyTrash():
            if len(op.entries) > t.TRASH_EMPTY_MAX:
                message = "too many entries"
                raise ResultTooLarge(message)
        case t.KeepTrash():
            _require(0 <= op.keep_ns <= t.TRASH_KEEP_NS_MAX, "a retention out of range")


def is_snapshot_name(name: str) -> bool:
    """Say whether a user may give a snapshot this name."""
    letters = string.ascii_letters + string.digits
    return (
        1 <= len(name) <= SNAPSHOT_NAME_CHARACTERS_MAX
        and not name.startswith("rollback-")
        and name[0] in letters + "_-"
        and set(name) <= set(letters + "._:-")
    )


def _check_shown_path(path: bytes) -> None:
    _require(path.startswith(b"/"), "a path that is not absolute")
    _require(len(path) <= PATH_BYTES_MAX, "a path over the limit")


def _check_lease(ttl_ns: int, *, held: bool) -> None:
    fits = SNAPSHOT_TTL_NS_MIN <= ttl_ns <= SNAPSHOT_TTL_NS_MAX
    _require(fits or (held and ttl_ns == v.HELD), "a lease out of range")


def _check_making(op: c.Mkdir | c.Create | c.BulkCreate | c.Mknod | c.Symlink) -> None:
    check_at(op.parent)
    if isinstance(op, c.BulkCreate):
        _require(op.names, "no names")
        if len(op.names) > BULK_NAMES_MAX:
            message = "too many names"
            raise ResultTooLarge(message)
        for name in op.names:
            check_name(name)
        _require(len(set(op.names)) == len(op.names), "a name twice")
    else:
        check_name(op.name)
    if isinstance(op, c.Symlink):
        if len(op.target) > SYMLINK_TARGET_BYTES_MAX:
            message = "a target over the limit"
            raise NameTooLong(message)
        _require(op.target and b"\0" not in op.target, "an empty target, or one with NUL")
    elif isinstance(op, c.Mknod):
        _require(file_type(op.mode) in NODES, "a type that mknod does not make")
        _require(0 <= op.rdev < 2**64, "a device number out of range")
    else:
        _permissions(op.mode)
    if not isinstance(op, c.Symlink):
        _umask(op.umask)


def _check_set_attr(op: c.SetAttr) -> None:
    check_at(op.target)
    if op.mode is not None:
        _permissions(op.mode)
    for identity in (op.uid, op.gid):
        _require(identity is None or 0 <= identity <= ID_MAX, "a uid or gid out of range")
    if op.size is not None:
        _check_size(op.size)
    _time(op.atime_ns)
    _time(op.mtime_ns)
    _require(op.flags is None or not op.flags & ~int(FROZEN), "unknown inode flags")
    _require(given(op), "nothing to set")


def _umask(umask: int) -> None:
    _require(0 <= umask <= UMASK_MAX, "a umask out of range")


def given(op: c.SetAttr) -> set[str]:
    """Return the fields that a SetAttr sets."""
    fields = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns", "flags")
    return {field for field in fields if getattr(op, field) is not None}


def _check_size(size: int) -> None:
    _require(size >= 0, "a negative size")
    if size > FILE_BYTES_MAX:
        message = "a size over the limit"
        raise FileTooLarge(message)


def _check_publish(op: c.Publish) -> None:
    check_at(op.parent)
    if op.name:
        check_name(op.name)
    _require(op.publish_mode in set(c.PublishMode), "no such publish mode")
    _require(op.name or op.publish_mode != c.PublishMode.CREATE, "a handle's file exists already")
    _permissions(op.mode)
    _check_size(op.size)
    check_body(op)
    _require(0 <= op.if_generation <= UINT63_MAX, "a generation out of range")
    _require(len(op.sha256) in {0, SHA256_BYTES}, "a SHA-256 of another length")
    _time(op.mtime_ns)
    _umask(op.umask)
