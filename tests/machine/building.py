"""One builder for each kind of command: a function of what may be drawn and the session."""

from __future__ import annotations

import struct

from tests.machine.drawing import (
    BAD_SIZES,
    BAD_SNAPSHOTS,
    BAD_TARGETS,
    BAD_TIMES,
    BAD_XATTRS,
    SIZES,
    SNAPSHOTS,
    TARGETS,
    TIMES,
    XATTRS,
    Drawing,
    anything,
    directory,
    empty_directory,
    filled,
    regular,
    tagged,
    view_root,
)

from nokv.types import commands as c
from nokv.types.commands import PublishMode, RenameFlag, StageMode
from nokv.types.copies import Copy, CopyRange, SetQuota
from nokv.types.limits import CHUNK_BYTES
from nokv.types.locks import CancelLock, SetLock, Unlock
from nokv.types.trash import EmptyTrash, KeepTrash, RestoreTrash, Trash
from nokv.types.values import At, FileType
from nokv.types.views import (
    Clone,
    Rollback,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotRenew,
    WorkspaceCreate,
)
from nokv_model import acls

UMASKS = (0, 0, 0o022, 0o077)
NOBODY = 2**32 - 1
DAY_NS = 86_400 * 10**9


def mkdir(d: Drawing, s: int) -> c.InnerOp:
    return c.Mkdir(*d.place(s), d.mode(), d.often(UMASKS, (-1, 0o1000)))


def create(d: Drawing, s: int) -> c.InnerOp:
    return c.Create(*d.place(s), d.mode(), d.one(UMASKS))


def bulk_create(d: Drawing, s: int) -> c.InnerOp:
    names = d.often(((b"a", b"b"), (b"b", b"c", b"d"), (b"d",)), ((), (b"a", b"a"), (b"a", b"/")))
    return c.BulkCreate(d.parent(s), names, d.mode())


def mknod(d: Drawing, s: int) -> c.InnerOp:
    return c.Mknod(*d.place(s), d.node_type() | d.one((0o644, 0o600)), d.one((0, 5, -1)))


def symlink(d: Drawing, s: int) -> c.InnerOp:
    return c.Symlink(*d.place(s), d.often(TARGETS, BAD_TARGETS))


def link(d: Drawing, s: int) -> c.InnerOp:
    return c.Link(d.at(s, kind=regular if not d.chance(6) else anything), *d.place(s))


def unlink(d: Drawing, s: int) -> c.InnerOp:
    return c.Unlink(*d.entry(s, kind=regular if not d.chance(4) else anything))


def rmdir(d: Drawing, s: int) -> c.InnerOp:
    return c.Rmdir(*d.entry(s, kind=empty_directory if not d.chance(4) else anything))


def remove_tree(d: Drawing, s: int) -> c.InnerOp:
    return c.RemoveTree(*d.entry(s, kind=directory if not d.chance(4) else anything))


def rename(d: Drawing, s: int) -> c.InnerOp:
    target = d.entry(s) if d.chance(2) else d.place(s)
    flags = d.often((0, 0, RenameFlag.NOREPLACE), (3, 4, -1))
    return c.Rename(*d.entry(s), *target, int(flags))


def exchange(d: Drawing, s: int) -> c.InnerOp:
    return c.Rename(*d.entry(s), *d.entry(s), int(RenameFlag.EXCHANGE))


def chmod(d: Drawing, s: int) -> c.InnerOp:
    return c.SetAttr(d.at(s), mode=d.mode())


def chown(d: Drawing, s: int) -> c.InnerOp:
    ids = (None, 0, 1, 2, 3)
    return c.SetAttr(d.at(s), uid=d.often(ids, (-1, 2**32 - 1)), gid=d.one(ids))


def truncate(d: Drawing, s: int) -> c.InnerOp:
    at = d.at(s, kind=d.one((filled, filled, regular, anything)))
    return c.SetAttr(at, size=d.often(SIZES, BAD_SIZES))


def utimens(d: Drawing, s: int) -> c.InnerOp:
    atime = d.often((None, *TIMES), BAD_TIMES)
    return c.SetAttr(d.at(s), atime_ns=atime, mtime_ns=d.one((None, *TIMES)))


def set_flags(d: Drawing, s: int) -> c.InnerOp:
    return c.SetAttr(d.at(s), flags=d.often((0, 0, 0, 0, 1, 2, 3), (4, -1)))


def set_many(d: Drawing, s: int) -> c.InnerOp:
    return c.SetAttr(
        d.at(s, kind=regular),
        mode=d.one((None, 0o6755, 0o2711)),
        uid=d.one((None, 0, 1)),
        gid=d.one((None, 1, 2)),
        size=d.one((None, *SIZES)),
        mtime_ns=d.one((None, *TIMES)),
        flags=d.one((None, None, None, 0)),
    )


def set_xattr(d: Drawing, s: int) -> c.InnerOp:
    value = d.one((b"", b"v", b"x" * 65_537))
    return c.SetXattr(d.at(s), d.often(XATTRS, BAD_XATTRS), value, d.often((0, 0, 1, 2), (3, -1)))


def set_list(d: Drawing, s: int) -> c.InnerOp:
    """An access control list, of few entries, of many, or of none that may be."""
    named = [(2, number) for number in d.some((0, 1, 2), 0, 2)]
    groups = [(8, number) for number in d.some((1, 2, 3), 0, 2)]
    keys = [(1, NOBODY), *sorted(named), (4, NOBODY), *sorted(groups), (16, NOBODY), (32, NOBODY)]
    if not named and not groups and d.chance(2):
        keys.remove((16, NOBODY))
    if d.chance(12):
        keys.remove(d.one(keys))
    entries = [struct.pack("<HHI", tag, d.one((0, 4, 5, 6, 7, 7)), number) for tag, number in keys]
    value = d.often((struct.pack("<I", 2) + b"".join(entries),), (b"", b"\2\0\0\0", b"\3\0\0\0"))
    name = d.one((acls.ACCESS, acls.DEFAULT))
    kind = directory if name == acls.DEFAULT and not d.chance(6) else anything
    if d.chance(4):
        return c.RemoveXattr(d.at(s, kind=kind), name)
    return c.SetXattr(d.at(s, kind=kind), name, value)


def set_lock(d: Drawing, s: int) -> SetLock:
    kind = d.often((0, 0, 1), (2, -1))
    start, length = (0, 0) if kind == 1 else (d.number(0, 4), d.number(0, 4))
    at = d.at(s, kind=regular if not d.chance(6) else anything)
    return SetLock(at, kind, d.number(0, 2), d.chance(2), start, length, not d.chance(4))


def unlock(d: Drawing, _s: int) -> Unlock:
    kind = d.one((0, 0, 1))
    start, length = (0, 0) if kind == 1 else (d.number(0, 4), d.number(0, 4))
    view, inode, _ = d.lock()
    return Unlock(view, inode, kind, d.number(0, 2), start, length)


def cancel_lock(d: Drawing, _s: int) -> CancelLock:
    view, inode, ticket = d.lock()
    return CancelLock(view, inode, d.one((0, 1)), ticket)


def remove_xattr(d: Drawing, s: int) -> c.InnerOp:
    at = d.at(s, kind=anything if d.chance(6) else tagged)
    return c.RemoveXattr(at, d.attribute(at))


def _publish(d: Drawing, s: int, mode: PublishMode) -> c.InnerOp:
    new = mode in {PublishMode.CREATE, PublishMode.REPLACE, PublishMode.REPLACE_GENERATION}
    if new and not d.chance(2 if mode != PublishMode.CREATE else 8):
        parent, name = d.place(s)
    else:
        parent, name = d.entry(s, kind=d.one((filled, filled, filled, regular, anything)))
    return _published(d, s, mode, parent, name)


def _published(d: Drawing, s: int, mode: int, parent: At, name: bytes) -> c.InnerOp:
    size, upload, chunks = d.body(s, mode)
    return c.Publish(
        parent,
        name,
        int(mode),
        d.mode(),
        size,
        upload,
        chunks,
        if_generation=d.generation(parent, name),
        sha256=d.often((b"", b"s" * 32), (b"s",)),
        mtime_ns=d.often(TIMES, BAD_TIMES),
    )


def publish_create(d: Drawing, s: int) -> c.InnerOp:
    return _publish(d, s, PublishMode.CREATE)


def publish_replace(d: Drawing, s: int) -> c.InnerOp:
    return _publish(d, s, PublishMode.REPLACE)


def publish_generation(d: Drawing, s: int) -> c.InnerOp:
    return _publish(d, s, PublishMode.REPLACE_GENERATION)


def publish_patch(d: Drawing, s: int) -> c.InnerOp:
    return _publish(d, s, PublishMode.PATCH)


def publish_append(d: Drawing, s: int) -> c.InnerOp:
    return _publish(d, s, PublishMode.APPEND)


def publish_handle(d: Drawing, s: int) -> c.InnerOp:
    mode = d.often((1, 2, 3, 3, 4, 5, 5), (0, 6, -1))
    return _published(d, s, mode, d.at(s, kind=regular if d.chance(4) else filled), b"")


def stage_swap(d: Drawing, s: int) -> c.InnerOp:
    mode = d.often(tuple(StageMode), (2, -1))
    where = d.entry() if d.chance(2) else d.place(s if d.chance(8) else 0)
    return c.StageSwap(*d.stage(s), *where, int(mode))


# ---------------------------------------------------------------- views


def snapshot_create(d: Drawing, s: int) -> c.Op:
    s = s if d.chance(8) else 0
    name = d.often(SNAPSHOTS, BAD_SNAPSHOTS)
    path = d.often((b"/", b"/a/\xff"), (b"a", b"", b"/" * 4097))
    return SnapshotCreate(d.parent(s), name, path, d.lease())


def snapshot_renew(d: Drawing, s: int) -> c.Op:
    del s
    return SnapshotRenew(d.snapshot(), d.lease())


def snapshot_delete(d: Drawing, s: int) -> c.Op:
    del s
    return SnapshotDelete(d.snapshot())


def clone(d: Drawing, s: int) -> c.Op:
    if d.crowded():
        return snapshot_delete(d, s)
    snapshot = d.snapshot() if d.chance(2) else ""
    where = d.parent(s if d.chance(8) else 0), *d.place(s if d.chance(8) else 0)
    return Clone(*where, snapshot, d.snapshot_id(snapshot))


def workspace_create(d: Drawing, s: int) -> c.Op:
    return WorkspaceCreate(*d.place(s if d.chance(8) else 0), d.mode())


def rollback(d: Drawing, s: int) -> c.Op:
    del s
    if d.crowded():
        return remove_view(d, 0)
    return Rollback(*d.rolled_back(), b"/a", d.lease(held=False))


def remove_view(d: Drawing, s: int) -> c.Op:
    remove = c.Rmdir if d.chance(4) else c.RemoveTree
    return remove(*d.entry(s, kind=view_root))


def copy(d: Drawing, s: int) -> c.InnerOp:
    source, version = d.shown(kind=d.one((filled, filled, regular, anything)), climbing=False)
    target = d.entry(s, kind=filled) if d.chance(2) else d.place(s)
    return Copy(source, *target, d.often((0, 1), (2, -1)), d.mode(), version)


def copy_range(d: Drawing, s: int) -> c.InnerOp:
    source, version = d.shown(kind=d.one((filled, filled, regular)), climbing=False)
    target = d.at(s, kind=d.one((filled, regular, regular, anything)))
    return CopyRange(
        source,
        target,
        d.often((0, 0, 1, 5, CHUNK_BYTES - 2), (-1,)),
        d.often((0, 0, 3, CHUNK_BYTES - 4), (-1, 2**62)),
        d.one((0, 4, 8, 100, CHUNK_BYTES, 2 * CHUNK_BYTES + 9)),
        version,
    )


def set_quota(d: Drawing, s: int) -> c.InnerOp:
    entries = d.often((0, 0, 3, 6, 12), (-1, 2**63))
    return SetQuota(d.parent(s), entries, d.one((0, 0, 0, 60, 3 * CHUNK_BYTES)))


# ---------------------------------------------------------------- trash


def trash(d: Drawing, s: int) -> c.InnerOp:
    return Trash(*d.entry(s, kind=d.one((anything, directory, view_root))))


def restore_trash(d: Drawing, s: int) -> c.InnerOp:
    parent, name = d.place(s) if d.chance(2) else (None, d.one((b"", b"", d.name())))
    return RestoreTrash(*d.trash(), parent, name)


def empty_trash(d: Drawing, s: int) -> c.Op:
    del s
    return EmptyTrash(tuple(d.trash() for _ in range(d.number(0, 3))))


def keep_trash(d: Drawing, s: int) -> c.Op:
    del s
    return KeepTrash(d.often((0, 10**9, DAY_NS, 7 * DAY_NS), (-1, 2**62)))


INNER = (
    trash,
    restore_trash,
    set_quota,
    copy,
    copy_range,
    mkdir,
    create,
    bulk_create,
    mknod,
    symlink,
    link,
    unlink,
    rmdir,
    remove_tree,
    rename,
    exchange,
    chmod,
    chown,
    truncate,
    utimens,
    set_flags,
    set_many,
    set_xattr,
    remove_xattr,
    publish_create,
    publish_replace,
    publish_generation,
    publish_patch,
    publish_append,
    publish_handle,
    stage_swap,
)

TRAFFIC = (
    *INNER,
    *(publish_patch, publish_patch, publish_patch, publish_append, publish_replace, truncate),
    *(mkdir, link, rename, rename, unlink),
)
"""What the machine does besides: mostly what has a history."""


def atomic(d: Drawing, s: int) -> c.Op:
    count = d.number(0, 3)
    return c.Atomic(tuple(d.one(INNER)(d, s) for _ in range(count)))


def stage_begin(d: Drawing, s: int) -> c.Op:
    del s
    kinds = d.often((FileType.DIRECTORY, FileType.DIRECTORY, FileType.REGULAR), (FileType.FIFO, 0))
    return c.StageBegin(d.view(), kinds << 12 | d.one((0o777, 0o2755)))


def stage_drop(d: Drawing, s: int) -> c.Op:
    return c.StageDrop(*d.stage(s))


def lease_uploads(d: Drawing, s: int) -> c.Op:
    del s
    return c.LeaseUploads(d.often((1, 2, 5), (0, -1, 4_097)))


def pin_view(d: Drawing, s: int) -> c.Op:
    del s
    return c.PinView(d.view())


def unpin_view(d: Drawing, s: int) -> c.Op:
    del s
    return c.UnpinView(*d.pin())
