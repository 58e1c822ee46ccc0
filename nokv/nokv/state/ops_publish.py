"""Publish: uploaded bytes become a file's new generation (docs/namespace.md: publish)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from nokv.errors import (
    AlreadyExists,
    FileTooLarge,
    GenerationMismatch,
    Immutable,
    InvalidArgument,
    IsADirectory,
    NotFound,
    NotSupported,
    ResultTooLarge,
)
from nokv.state import access, keys
from nokv.state.acl import inherited
from nokv.state.context import (
    REGULAR,
    Context,
    enter,
    is_directory,
    is_regular,
    load_attr,
    load_dentry,
    need_inode,
    root_of,
)
from nokv.state.drops import drop_body, load_chunk, write_chunk
from nokv.state.extents import from_publish, move, overlay
from nokv.state.families import Family
from nokv.state.links import home
from nokv.state.naming import told_at
from nokv.state.ops_session import check_upload, consume_upload, need_session
from nokv.state.publish_arguments import check_publish
from nokv.state.records import Dentry, Inode
from nokv.state.resolve import resolve, resolve_parent
from nokv.state.tree import add_size, touch_directory
from nokv.types.commands import TIME_NOW, Publish, PublishMode
from nokv.types.events import EventKind
from nokv.types.limits import EXTENTS_PER_CHUNK_MAX, FILE_BYTES_MAX, MERGED_INLINE_BYTES_MAX
from nokv.types.results import Published
from nokv.types.values import FileType, InodeFlag, StoredChunk

_KEEPS_BODY = (PublishMode.PATCH, PublishMode.APPEND, PublishMode.FOLD)
_KEEPS_BYTES = (PublishMode.APPEND, PublishMode.FOLD)
"""What an append-only file takes."""
_NEEDS_GENERATION = (PublishMode.REPLACE_GENERATION, PublishMode.FOLD)


def publish(ctx: Context, op: Publish) -> Published:
    """Apply one publish."""
    if op.upload:
        need_session(ctx)
        check_upload(ctx, op.upload)
    if not op.name:
        found = resolve(ctx.txn, ctx.caller, ctx.session_id, op.parent)
        root = root_of(ctx.txn, found.view)
        directory, _ = home(ctx.txn, found.view, found.ino, found.inode, root)
        result = _rewrite(ctx, op, found.view, found.ino, found.inode, directory, b"")
    else:
        parent = resolve_parent(ctx.txn, ctx.caller, ctx.session_id, op.parent)
        access.need(parent.inode, ctx.caller, access.X)
        dentry = load_dentry(ctx.txn, parent.view, parent.ino, op.name)
        if dentry is None:
            result = _make(ctx, op, parent.view, parent.ino, parent.inode)
        else:
            if op.publish_mode == PublishMode.CREATE:
                message = f"{told_at(op.parent, op.name)}: file exists"
                raise AlreadyExists(message)
            view, ino = enter(parent.view, dentry)
            inode = need_inode(ctx.txn, view, ino)
            result = _rewrite(ctx, op, view, ino, inode, parent.ino, op.name)
    if op.upload:
        consume_upload(ctx, op.upload)
    return result


def _make(ctx: Context, op: Publish, view: int, directory: int, parent: Inode) -> Published:
    if op.publish_mode in _KEEPS_BODY:
        message = f"{told_at(op.parent, op.name)}: no such file or directory"
        raise NotFound(message)
    if op.publish_mode == PublishMode.REPLACE_GENERATION and op.if_generation:
        path = told_at(op.parent, op.name)
        message = f"{path} does not exist; generation {op.if_generation} was expected"
        raise GenerationMismatch(message)
    access.may_create(parent, ctx.caller)
    mode, gid = access.inherit(parent, ctx.caller, REGULAR | op.mode)
    mode, acls = inherited(parent, mode, op.umask)
    uid, now = ctx.caller.uid, ctx.wall_ns
    ino = ctx.new_inode()
    empty = Inode(mode, uid, gid, 1, 0, now, now, now, directory, name=op.name, acls=acls)
    after = _new_body(ctx, op, view, ino, empty)
    ctx.store_inode(view, ino, after)
    ctx.put_dentry(view, directory, op.name, Dentry(FileType.REGULAR, ino))
    touch_directory(ctx, view, directory, parent, children=1)
    ctx.counters.files += 1
    ctx.counters.size_bytes += after.size
    ctx.add_usage(view, directory, 1, after.size)
    return _published(ctx, op.name, view, ino, directory, after, 0)


def _rewrite(
    ctx: Context, op: Publish, view: int, ino: int, inode: Inode, directory: int, name: bytes
) -> Published:
    """Publish over an existing inode."""
    if is_directory(inode):
        message = "a directory has no body"
        raise IsADirectory(message)
    if not is_regular(inode):
        message = "only regular files have bodies"
        raise NotSupported(message, hint="publish to the link's target, or another name")
    access.need(inode, ctx.caller, access.W)
    append_only = inode.flags & InodeFlag.APPEND and op.publish_mode not in _KEEPS_BYTES
    if inode.flags & InodeFlag.IMMUTABLE or append_only:
        message = "the file is immutable or append-only"
        raise Immutable(message)
    if op.publish_mode in _NEEDS_GENERATION and inode.generation != op.if_generation:
        message = f"generation {inode.generation}; {op.if_generation} was expected"
        raise GenerationMismatch(message)
    if op.publish_mode == PublishMode.FOLD:
        access.need(inode, ctx.caller, access.R)
        if op.size > inode.size:
            message = f"a fold up to {op.size} of a file of {inode.size} bytes"
            raise InvalidArgument(message)
    offset = inode.size if op.publish_mode == PublishMode.APPEND else 0
    if op.publish_mode in _KEEPS_BODY:
        after = _merge_body(ctx, op, view, ino, inode)
    else:
        drop_body(ctx, view, ino, inode)
        after = _new_body(ctx, op, view, ino, inode)
    if ctx.caller.uid:
        after = replace(after, mode=access.clear_privileges(after.mode))
    ctx.store_inode(view, ino, after)
    delta = after.size - inode.size
    ctx.counters.size_bytes += delta
    add_size(ctx, view, ino, inode, delta)
    return _published(ctx, name, view, ino, directory, after, offset)


def _published(
    ctx: Context, name: bytes, view: int, ino: int, directory: int, after: Inode, offset: int
) -> Published:
    ctx.emit(
        EventKind.PUBLISH,
        view,
        directory,
        name,
        ino,
        size=after.size,
        generation=after.generation,
    )
    attr = load_attr(ctx.txn, view, ino)
    return Published(ino, after.generation, after.size, offset, attr)


def _mtime(ctx: Context, op: Publish) -> int:
    return ctx.wall_ns if op.mtime_ns == TIME_NOW else op.mtime_ns


def mint_body(ctx: Context) -> int:
    """Return a body id that was never used."""
    body = ctx.counters.next_body
    ctx.counters.next_body += 1
    return body


def _new_body(ctx: Context, op: Publish, view: int, ino: int, inode: Inode) -> Inode:
    """Return the inode with the publish's body as its own; the old one is the caller's."""
    body = mint_body(ctx) if op.chunks else 0
    rows = [
        (
            keys.chunk(view, ino, body, chunk.index),
            ctx.txn.encode(from_publish(chunk, ctx.session_id, op.upload, ctx.version)),
        )
        for chunk in op.chunks
    ]
    for key, record in rows:
        ctx.txn.set_record(Family.CHUNK, key, record)
    return replace(
        inode,
        size=op.size,
        mtime_ns=_mtime(ctx, op),
        ctime_ns=ctx.wall_ns,
        generation=ctx.version,
        body=body,
        body_born=ctx.version if body else 0,
        sha256=op.sha256,
    )


def _merge_body(ctx: Context, op: Publish, view: int, ino: int, inode: Inode) -> Inode:
    """Return the inode after a patch, fold or append: ranges go into the present records."""
    if op.publish_mode == PublishMode.APPEND:
        size = inode.size + op.size
        base = inode.size
    else:
        size = max(inode.size, op.size)
        base = 0
    if size > FILE_BYTES_MAX:
        message = f"the file would have {size} bytes; the limit is {FILE_BYTES_MAX}"
        raise FileTooLarge(message)
    body, born = inode.body, inode.body_born
    if not body and op.chunks:
        body, born = mint_body(ctx), ctx.version
    for index, new in _placed(ctx, op, base).items():
        key = keys.chunk(view, ino, body, index)
        merged = overlay(load_chunk(ctx, key), new)
        if len(merged.extents) > EXTENTS_PER_CHUNK_MAX:
            message = f"chunk {index} would have {len(merged.extents)} extents"
            raise ResultTooLarge(message, hint="publish the whole file again")
        if sum(len(e.data) for e in merged.extents) > MERGED_INLINE_BYTES_MAX:
            message = f"chunk {index} would have over {MERGED_INLINE_BYTES_MAX} inline bytes"
            raise ResultTooLarge(message, hint="publish the whole file again, as objects")
        write_chunk(ctx, key, merged)
    if op.publish_mode == PublishMode.APPEND:
        _note_shared(ctx, op, view, ino, body, base)
    return replace(
        inode,
        size=size,
        mtime_ns=_mtime(ctx, op),
        ctime_ns=ctx.wall_ns,
        generation=ctx.version,
        body=body,
        body_born=born,
        sha256=b"",
    )


def _placed(ctx: Context, op: Publish, base: int) -> dict[int, StoredChunk]:
    """Return the publish's chunks where they go in the file, each index once."""
    if op.publish_mode != PublishMode.APPEND:
        return {c.index: from_publish(c, ctx.session_id, op.upload, ctx.version) for c in op.chunks}
    placed: dict[int, StoredChunk] = {}
    for chunk in op.chunks:
        for index, piece in move(chunk, ctx.session_id, op.upload, ctx.version, base).items():
            there = placed.get(index)
            placed[index] = piece if there is None else overlay(there, piece)
    return placed


def _note_shared(ctx: Context, op: Publish, view: int, ino: int, body: int, base: int) -> None:
    """Write a REF row a side for each object that now stands in two chunk records."""
    where: dict[bytes, list[bytes]] = {}
    for index, chunk in _placed(ctx, op, base).items():
        for obj in chunk.objects:
            hold = keys.ref(obj, view, ino, body, index, ctx.version)
            where.setdefault(keys.object_prefix(obj), []).append(hold)
    for holds in where.values():
        if len(holds) > 1:
            for hold in holds:
                ctx.txn.set_row(Family.REF, hold, b"")


CHECKS: dict[type, Callable[[Any], None]] = {Publish: check_publish}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {Publish: publish}
