"""The reads: functions of the state at present, or at a version that is pinned in their view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nokv.errors import (
    CursorTooOld,
    InvalidArgument,
    NameTooLong,
    NoAttribute,
    NotFound,
    VersionNotPinned,
)
from nokv.state import (
    acl,
    keys,
    ops_acl,
    ops_lock,
    reads_admin,
    reads_bodies,
    reads_diff,
    reads_gc,
    reads_history,
    reads_trash,
    reads_view,
)
from nokv.state.access import R, X, need
from nokv.state.arguments import check_at, check_name, check_xattr_name
from nokv.state.branches import PRESENT, page_at
from nokv.state.context import (
    enter,
    is_symlink,
    load_attr,
    load_usage,
    make_attr,
    need_inode,
)
from nokv.state.families import Family
from nokv.state.naming import told, told_at
from nokv.state.ops_quota import get_quota
from nokv.state.pinned import PinnedSource, Source, shard_of
from nokv.state.records import (
    Dentry,
    StoredEvent,
    body_of,
    decode_dentry,
    decode_events,
    decode_value,
)
from nokv.state.resolve import Found, resolve, resolve_parent
from nokv.state.txn import Txn
from nokv.types.copies import GetQuota
from nokv.types.limits import NAME_BYTES_MAX, PAGE_MAX
from nokv.types.reads import (
    Access,
    AttrReply,
    BodyMap,
    BytesReply,
    DirEntry,
    DirPage,
    Event,
    EventsReply,
    GetAttr,
    GetUsage,
    GetVolume,
    GetXattr,
    ListXattr,
    Lookup,
    NamesReply,
    Read,
    ReadDir,
    ReadEvents,
    ReadLink,
    ReadValue,
    StatFs,
    StatFsReply,
    UsageReply,
    VolumeReply,
)
from nokv.types.values import ROOT_INODE, Attr, Caller, Volume

EVENTS_BYTES_MAX = 2 * 1024 * 1024
"""Rough size of one reply of events; what does not fit comes with the next cursor."""

_EVENT_BYTES = 128
_ID_BYTES = 9
_decode_volume = msgspec.msgpack.Decoder(Volume).decode
_INODE = Family.INODE
_DENTRY = Family.DENTRY


def run(txn: Txn, caller: Caller, request: Read) -> ReadValue:
    """Answer a checked caller's read between two entries.

    Raises the errors of docs/namespace.md; VersionNotPinned for a version that no pin of the view
    holds.
    """
    kind = type(request)
    handler = _IN_TREE.get(kind)
    if handler is None:
        value: ReadValue = _IN_SHARD[kind](txn, caller, request)
        return value
    at = request.parent if isinstance(request, Lookup) else request.at  # type: ignore[union-attr]
    check_at(at)
    source: Source = txn.present
    version: int = getattr(request, "at_version", 0)
    if version:
        if not 0 < version < PRESENT:
            message = f"no version {version}"
            raise VersionNotPinned(message)
        source = PinnedSource(txn.present, version)
        source.enter(at.view)
    answer: ReadValue = handler(source, caller, request)
    return answer


# ---------------------------------------------------------------- inodes


def _attr(found: Found) -> AttrReply:
    return AttrReply(make_attr(found.view, found.ino, found.inode, found.version))


def _get_attr(source: Source, caller: Caller, request: GetAttr) -> AttrReply:
    return _attr(resolve(source, caller, 0, request.at))


def _lookup(source: Source, caller: Caller, request: Lookup) -> AttrReply:
    check_name(request.name)
    parent = resolve_parent(source, caller, 0, request.parent)
    need(parent.inode, caller, X)
    view = parent.view
    value = source.get(_DENTRY, keys.dentry(view, parent.ino, request.name))
    if value is None:
        message = f"{told_at(request.parent, request.name)}: no such file or directory"
        raise NotFound(message)
    return AttrReply(_named(source, view, decode_dentry(body_of(value))))


def _named(source: Source, view: int, dentry: Dentry) -> Attr:
    """Return the attributes of what a name in `view` shows."""
    view, ino = enter(view, dentry)
    source.enter(view)
    attr = load_attr(source, view, ino)
    assert attr is not None, f"inode {view}:{ino} is named and does not exist"
    return attr


def _access(source: Source, caller: Caller, request: Access) -> AttrReply:
    if not 0 <= request.mask <= 7:
        message = f"access mask {request.mask}"
        raise InvalidArgument(message)
    found = resolve(source, caller, 0, request.at)
    need(found.inode, caller, request.mask)
    return _attr(found)


def _read_link(source: Source, caller: Caller, request: ReadLink) -> BytesReply:
    found = resolve(source, caller, 0, request.at)
    if not is_symlink(found.inode):
        message = "not a symbolic link"
        raise InvalidArgument(message)
    return BytesReply(found.inode.target)


def _get_usage(source: Source, caller: Caller, request: GetUsage) -> UsageReply:
    found = resolve_parent(source, caller, 0, request.at)
    usage = load_usage(source, found.view, found.ino)
    return UsageReply(usage.entries, usage.size_bytes)


# ---------------------------------------------------------------- directories


def _read_dir(source: Source, caller: Caller, request: ReadDir) -> DirPage:
    if not 1 <= request.limit <= PAGE_MAX:
        message = f"a page of {request.limit} names; 1 to {PAGE_MAX} are possible"
        raise InvalidArgument(message)
    if len(request.after) > NAME_BYTES_MAX:
        message = f"a cursor of {len(request.after)} bytes"
        raise NameTooLong(message)
    found = resolve_parent(source, caller, 0, request.at)
    need(found.inode, caller, R)
    prefix = keys.inode(found.view, found.ino)
    version = source.at_version
    rows, cut = page_at(shard_of(source), _DENTRY, prefix, request.after, request.limit, version)
    entries = tuple(
        _entry(source, found.view, key[16:], value, plus=request.plus) for key, value in rows
    )
    last = rows[-1][0] if rows else None
    after = request.after if last is None else last[16:]
    if cut is not None:
        after = cut[16:]
    attr = make_attr(found.view, found.ino, found.inode, found.version)
    return DirPage(entries, cut is not None, attr, after)


def _entry(source: Source, view: int, name: bytes, value: bytes, *, plus: bool) -> DirEntry:
    dentry = decode_dentry(body_of(value))
    attr = _named(source, view, dentry) if plus else None
    shown, ino = enter(view, dentry)
    return DirEntry(name, ino, dentry.file_type, shown, attr)


# ---------------------------------------------------------------- extended attributes


def _shown(caller: Caller, name: bytes) -> bool:
    """Whether the caller may know of the attribute."""
    return caller.uid == 0 or name.startswith(b"user.")


def _get_xattr(source: Source, caller: Caller, request: GetXattr) -> BytesReply:
    check_xattr_name(request.name)
    found = resolve(source, caller, 0, request.at)
    if request.name in acl.NAMES:
        return BytesReply(ops_acl.shown(found.inode, request.name))
    if request.name.startswith(b"user."):
        need(found.inode, caller, R)
    value = None
    if _shown(caller, request.name):
        value = source.get(Family.XATTR, keys.xattr(found.view, found.ino, request.name))
    if value is None:
        message = f"no attribute {told(request.name)}"
        raise NoAttribute(message)
    return BytesReply(decode_value(body_of(value)))


def _list_xattr(source: Source, caller: Caller, request: ListXattr) -> NamesReply:
    found = resolve(source, caller, 0, request.at)
    lists = acl.names_of(found.inode)
    if not found.inode.xattr_bytes:
        return NamesReply(lists)
    prefix = keys.inode(found.view, found.ino)
    rows = source.scan(Family.XATTR, prefix, keys.after_prefix(prefix))
    names = [key[16:] for key, _ in rows if _shown(caller, key[16:])]
    return NamesReply(tuple(sorted((*names, *lists))))


# ---------------------------------------------------------------- the whole shard


def _stat_fs(txn: Txn, _caller: Caller, _request: StatFs) -> StatFsReply:
    return StatFsReply(txn.counters.files, txn.counters.size_bytes)


def _get_volume(txn: Txn, _caller: Caller, _request: GetVolume) -> VolumeReply:
    row = txn.present.get(Family.META, keys.VOLUME)
    if row is None:
        message = "the volume is not initialised"
        raise NotFound(message)
    v = _decode_volume(row)
    return VolumeReply(
        v.volume,
        v.kind,
        v.endpoint,
        v.bucket,
        v.prefix,
        v.region,
        v.inline_max,
        v.chunk_bytes,
        v.block_bytes,
        txn.counters.owner_epoch,
    )


def _read_events(txn: Txn, caller: Caller, request: ReadEvents) -> EventsReply:
    """Answer events above the cursor: whole records, but the last one may be cut by size.

    They tell the names of the whole tree, so its root asks for what a watch of it asks for.
    """
    need(need_inode(txn.present, 0, ROOT_INODE), caller, R)
    present, cursor = txn.counters.version, request.cursor
    if cursor < txn.counters.first_event:
        raise too_old(cursor, txn.counters.first_event)
    if cursor > present:
        message = f"cursor {cursor} is above the present version, {present}"
        raise InvalidArgument(message)
    if not 1 <= request.limit <= PAGE_MAX:
        message = f"a page of {request.limit} records; 1 to {PAGE_MAX} are possible"
        raise InvalidArgument(message)
    events: list[Event] = []
    size = 0
    rows = txn.present.scan(Family.EVENT, keys.pack(cursor + 1), keys.pack(present + 1))
    for number, (key, value) in enumerate(rows):
        if number == request.limit:
            return EventsReply(tuple(events), cursor, more=True)
        record = decode_events(value)
        for stored in record.events:
            if stored.version <= cursor:
                continue
            event = _event(stored, record.chains, record.wall_ns)
            size += _size_of(event)
            if events and size > EVENTS_BYTES_MAX:
                return EventsReply(tuple(events), events[-1].version, more=True)
            events.append(event)
        cursor = int.from_bytes(key, "big")
    return EventsReply(tuple(events), present, more=False)


def too_old(cursor: int, oldest: int) -> CursorTooOld:
    """Return what a cursor below the last trimmed key is told."""
    message = f"events after cursor {cursor} were trimmed: the oldest cursor that works is {oldest}"
    error = CursorTooOld(message)
    error.oldest = oldest
    return error


def _event(stored: StoredEvent, chains: tuple[tuple[int, ...], ...], wall_ns: int) -> Event:
    return Event(
        stored.version,
        stored.kind,
        stored.view,
        chains[stored.chain],
        stored.name,
        stored.inode,
        chains[stored.to_chain] if stored.to_chain >= 0 else (),
        stored.to_name,
        stored.size,
        stored.generation,
        stored.session,
        stored.seq,
        stored.names,
        wall_ns,
        stored.view if stored.inode_view is None else stored.inode_view,
    )


def _size_of(event: Event) -> int:
    ids = len(event.chain) + len(event.to_chain)
    names = len(event.name) + len(event.to_name) + sum(len(name) + 2 for name in event.names)
    return _EVENT_BYTES + _ID_BYTES * ids + names


_IN_TREE: dict[type, Callable[[Source, Caller, Any], Any]] = {
    GetAttr: _get_attr,
    Lookup: _lookup,
    ReadLink: _read_link,
    ReadDir: _read_dir,
    GetXattr: _get_xattr,
    ListXattr: _list_xattr,
    GetUsage: _get_usage,
    GetQuota: get_quota,
    Access: _access,
    BodyMap: reads_bodies.HANDLERS[BodyMap],
    **ops_lock.READS_IN_TREE,
}
"""Reads that start at an address, over the store or a pinned version of it."""

_IN_SHARD: dict[type, Callable[[Any, Caller, Any], Any]] = {
    StatFs: _stat_fs,
    ReadEvents: _read_events,
    GetVolume: _get_volume,
    **reads_admin.HANDLERS,
    **reads_trash.HANDLERS,
    **reads_diff.HANDLERS,
    **reads_history.HANDLERS,
    **reads_gc.HANDLERS,
    **reads_view.HANDLERS,
    **ops_lock.READS_IN_SHARD,
}
"""Reads of the shard as a whole."""
