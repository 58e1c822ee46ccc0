"""Copies by metadata alone (docs/namespace.md: copies)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec
from msgspec.structs import replace

from nokv.errors import (
    AlreadyExists,
    CopyTooLarge,
    FileTooLarge,
    Immutable,
    InvalidArgument,
    IsADirectory,
    NotSupported,
    ResultTooLarge,
)
from nokv.state import access, keys
from nokv.state.acl import inherited
from nokv.state.arguments import check_at, check_name
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
from nokv.state.extents import EMPTY, clipped, overlay, raised, replaced
from nokv.state.families import Family
from nokv.state.holds import share
from nokv.state.links import home
from nokv.state.naming import told_at
from nokv.state.ops_publish import mint_body
from nokv.state.pinned import PinnedSource, Source
from nokv.state.records import Dentry, Inode, body_of, decode_chunk
from nokv.state.resolve import Found, resolve, resolve_parent
from nokv.state.tree import add_size, touch_directory
from nokv.types.copies import Copied, Copy, CopyMode, CopyRange
from nokv.types.events import EventKind
from nokv.types.limits import (
    CHUNK_BYTES,
    COPY_CHUNKS_MAX,
    COPY_HOLDS_MAX,
    COPY_INLINE_BYTES_MAX,
    EXTENTS_PER_CHUNK_MAX,
    FILE_BYTES_MAX,
    MERGED_INLINE_BYTES_MAX,
)
from nokv.types.results import Published
from nokv.types.values import At, FileType, InodeFlag, StoredChunk

_CHUNK = Family.CHUNK


# ---------------------------------------------------------------- arguments


def check_copy(op: Copy) -> None:
    """Raise for a bad address, name, mode or version."""
    check_at(op.source)
    check_at(op.parent)
    check_name(op.name)
    if op.copy_mode not in (CopyMode.CREATE, CopyMode.REPLACE):
        message = f"copy mode {op.copy_mode}"
        raise InvalidArgument(message)
    if op.mode & ~0o7777:
        message = f"mode {op.mode:o} has more than permission bits"
        raise InvalidArgument(message)
    _check_version(op.at_version)


def check_range(op: CopyRange) -> None:
    """Raise for a bad address, version or range."""
    check_at(op.source)
    check_at(op.target)
    if min(op.source_offset, op.target_offset, op.length) < 0:
        message = f"{op.length} bytes from {op.source_offset} to {op.target_offset}"
        raise InvalidArgument(message)
    if max(op.source_offset, op.target_offset) + op.length > FILE_BYTES_MAX:
        message = f"a range that ends beyond {FILE_BYTES_MAX}"
        raise FileTooLarge(message)
    _check_version(op.at_version)


def _check_version(version: int) -> None:
    if not 0 <= version < 2**63:
        message = f"version {version}"
        raise InvalidArgument(message)


# ---------------------------------------------------------------- sources


class _Body(msgspec.Struct, frozen=True):
    """A regular file that is copied, and what shows it."""

    source: Source
    found: Found

    @property
    def size(self) -> int:
        return self.found.inode.size

    def key(self, index: int) -> bytes:
        return keys.chunk(self.found.view, self.found.ino, self.found.inode.body, index)

    def chunk(self, index: int) -> StoredChunk:
        value = self.source.get(_CHUNK, self.key(index)) if self.found.inode.body else None
        return EMPTY if value is None else decode_chunk(body_of(value))


def _open(ctx: Context, at: At, version: int) -> _Body:
    """Return the file to copy. Raises VersionNotPinned, IsADirectory, NotSupported, ..."""
    source: Source = PinnedSource(ctx.txn, version) if version else ctx.txn
    found = resolve(source, ctx.caller, 0 if version else ctx.session_id, at)
    _need_regular(found.inode)
    access.need(found.inode, ctx.caller, access.R)
    return _Body(source, found)


def _need_regular(inode: Inode) -> None:
    if is_directory(inode):
        message = "a directory has no body"
        raise IsADirectory(message)
    if not is_regular(inode):
        message = "only regular files have bodies"
        raise NotSupported(message)


def _may_write(ctx: Context, inode: Inode) -> None:
    """Check that the caller may change the bytes of a regular file."""
    _need_regular(inode)
    access.need(inode, ctx.caller, access.W)
    if inode.flags & (InodeFlag.IMMUTABLE | InodeFlag.APPEND):
        message = "the file is immutable or append-only"
        raise Immutable(message)


# ---------------------------------------------------------------- whole files


def copy(ctx: Context, op: Copy) -> Published:
    """Make a name show what the source does."""
    body = _open(ctx, op.source, op.at_version)
    parent = resolve_parent(ctx.txn, ctx.caller, ctx.session_id, op.parent)
    access.need(parent.inode, ctx.caller, access.X)
    dentry = load_dentry(ctx.txn, parent.view, parent.ino, op.name)
    if dentry is None:
        return _make(ctx, op, body, parent)
    if op.copy_mode == CopyMode.CREATE:
        message = f"{told_at(op.parent, op.name)}: file exists"
        raise AlreadyExists(message)
    view, ino = enter(parent.view, dentry)
    inode = need_inode(ctx.txn, view, ino)
    _may_write(ctx, inode)
    rows = _read_whole(body)
    drop_body(ctx, view, ino, inode)
    after = _write_whole(ctx, body, rows, view, ino, inode)
    if ctx.caller.uid:
        after = replace(after, mode=access.clear_privileges(after.mode))
    ctx.store_inode(view, ino, after)
    _account(ctx, view, ino, inode, after)
    return _published(ctx, view, parent.ino, op.name, ino, after)


def _make(ctx: Context, op: Copy, body: _Body, parent: Found) -> Published:
    view, directory = parent.view, parent.ino
    access.may_create(parent.inode, ctx.caller)
    mode, gid = access.inherit(parent.inode, ctx.caller, REGULAR | op.mode)
    mode, acls = inherited(parent.inode, mode, 0)
    uid, now = ctx.caller.uid, ctx.wall_ns
    ino = ctx.new_inode()
    empty = Inode(mode, uid, gid, 1, 0, now, now, now, directory, name=op.name, acls=acls)
    after = _write_whole(ctx, body, _read_whole(body), view, ino, empty)
    ctx.store_inode(view, ino, after)
    ctx.put_dentry(view, directory, op.name, Dentry(FileType.REGULAR, ino))
    touch_directory(ctx, view, directory, parent.inode, children=1)
    ctx.counters.files += 1
    ctx.counters.size_bytes += after.size
    ctx.add_usage(view, directory, 1, after.size)
    return _published(ctx, view, directory, op.name, ino, after)


def _read_whole(body: _Body) -> list[tuple[bytes, StoredChunk]]:
    """Return the chunk records of the source. Raises CopyTooLarge."""
    found = body.found
    if not found.inode.body:
        return []
    start, end = keys.body_range(found.view, found.ino, found.inode.body)
    rows = []
    holds = inline = 0
    for key, value in islice(body.source.scan(_CHUNK, start, end), COPY_CHUNKS_MAX + 1):
        chunk = decode_chunk(body_of(value))
        rows.append((key, chunk))
        holds += len(chunk.objects)
        inline += _inline_bytes(chunk)
        if holds > COPY_HOLDS_MAX or inline > COPY_INLINE_BYTES_MAX:
            break
    if len(rows) > COPY_CHUNKS_MAX or holds > COPY_HOLDS_MAX or inline > COPY_INLINE_BYTES_MAX:
        message = f"a body of more than {COPY_CHUNKS_MAX} chunks, {COPY_HOLDS_MAX} objects or"
        message += f" {COPY_INLINE_BYTES_MAX} inline bytes"
        raise CopyTooLarge(message)
    return rows


def _inline_bytes(chunk: StoredChunk) -> int:
    return sum(len(e.data) for e in chunk.extents)


def _write_whole(
    ctx: Context,
    body: _Body,
    rows: list[tuple[bytes, StoredChunk]],
    view: int,
    ino: int,
    inode: Inode,
) -> Inode:
    """Return the inode with a body of its own that shows these chunks; the old one is dropped."""
    number = mint_body(ctx) if rows else 0
    for shown, chunk in rows:
        key = keys.chunk(view, ino, number, keys.chunk_parts(shown)[3])
        share(ctx, shown, chunk, key)
        ctx.txn.set_record(_CHUNK, key, ctx.txn.encode(raised(chunk, ctx.version)))
    return replace(
        inode,
        size=body.size,
        mtime_ns=ctx.wall_ns,
        ctime_ns=ctx.wall_ns,
        generation=ctx.version,
        body=number,
        body_born=ctx.version if number else 0,
        sha256=body.found.inode.sha256,
    )


def _account(ctx: Context, view: int, ino: int, before: Inode, after: Inode) -> None:
    delta = after.size - before.size
    ctx.counters.size_bytes += delta
    add_size(ctx, view, ino, before, delta)


def _published(
    ctx: Context, view: int, directory: int, name: bytes, ino: int, after: Inode
) -> Published:
    _announce(ctx, view, directory, name, ino, after)
    attr = load_attr(ctx.txn, view, ino)
    return Published(ino, after.generation, after.size, 0, attr)


def _announce(ctx: Context, view: int, directory: int, name: bytes, ino: int, after: Inode) -> None:
    ctx.emit(
        EventKind.PUBLISH,
        view,
        directory,
        name,
        ino,
        size=after.size,
        generation=after.generation,
    )


# ---------------------------------------------------------------- ranges


def copy_range(ctx: Context, op: CopyRange) -> Copied:
    """Make a range of the target show what a range of the source does."""
    body = _open(ctx, op.source, op.at_version)
    target = resolve(ctx.txn, ctx.caller, ctx.session_id, op.target)
    view, ino, inode = target.view, target.ino, target.inode
    _may_write(ctx, inode)
    same = (view, ino) == (body.found.view, body.found.ino) and not op.at_version
    if same and abs(op.source_offset - op.target_offset) < op.length:
        message = "the ranges overlap in one file"
        raise InvalidArgument(message)
    length = min(op.length, body.size - op.source_offset)
    if length <= 0:
        return Copied(ino, inode.generation, inode.size, 0, load_attr(ctx.txn, view, ino))
    number, born = (inode.body, inode.body_born) if inode.body else (mint_body(ctx), ctx.version)
    done = _copy_pieces(ctx, op, body, (view, ino, number), length)
    after = replace(
        inode,
        size=max(inode.size, op.target_offset + done),
        mtime_ns=ctx.wall_ns,
        ctime_ns=ctx.wall_ns,
        generation=ctx.version,
        body=number,
        body_born=born,
        sha256=b"",
    )
    if ctx.caller.uid:
        after = replace(after, mode=access.clear_privileges(after.mode))
    ctx.store_inode(view, ino, after)
    _account(ctx, view, ino, inode, after)
    directory, _ = home(ctx.txn, view, ino, inode, root_of(ctx.txn, view))
    _announce(ctx, view, directory, b"", ino, after)
    return Copied(ino, after.generation, after.size, done, load_attr(ctx.txn, view, ino))


def _copy_pieces(
    ctx: Context, op: CopyRange, body: _Body, to: tuple[int, int, int], length: int
) -> int:
    """Copy up to `length` bytes, each chunk of the target in one go; return how many it were.

    It ends early where the next chunk would pass what one command takes, never with the first.
    """
    done = pieces = holds = inline = 0
    while done < length and pieces < COPY_CHUNKS_MAX:
        index, start = divmod(op.target_offset + done, CHUNK_BYTES)
        step = min(length - done, CHUNK_BYTES - start)
        parts = _parts(body, op.source_offset + done, step, start)
        holds += sum(len(chunk.objects) for _, chunk in parts)
        inline += sum(_inline_bytes(chunk) for _, chunk in parts)
        if pieces and (holds > COPY_HOLDS_MAX or inline > COPY_INLINE_BYTES_MAX):
            break
        _write_piece(ctx, keys.chunk(*to, index), start, start + step, parts)
        done += step
        pieces += 1
    return done


def _parts(body: _Body, offset: int, length: int, start: int) -> list[tuple[bytes, StoredChunk]]:
    """Return (key, what it shows) of the source's chunks in a range, moved to `start`."""
    parts = []
    done = 0
    while done < length:
        index, low = divmod(offset + done, CHUNK_BYTES)
        step = min(length - done, CHUNK_BYTES - low)
        part = clipped(body.chunk(index), low, low + step, start + done - low)
        if part.extents:
            parts.append((body.key(index), part))
        done += step
    return parts


def _write_piece(
    ctx: Context, key: bytes, start: int, end: int, parts: list[tuple[bytes, StoredChunk]]
) -> None:
    """Let a chunk of the target show the parts in [start, end), and holes between them.

    ResultTooLarge where it would have too many extents or inline bytes.
    """
    piece = EMPTY
    for shown, part in parts:
        share(ctx, shown, part, key)
        piece = overlay(piece, raised(part, ctx.version))
    old = load_chunk(ctx, key)
    merged = replaced(old, start, end, piece)
    if len(merged.extents) > EXTENTS_PER_CHUNK_MAX:
        message = f"chunk {keys.chunk_parts(key)[3]} would have {len(merged.extents)} extents"
        raise ResultTooLarge(message, hint="copy the whole file")
    if _inline_bytes(merged) > MERGED_INLINE_BYTES_MAX:
        message = f"a chunk would have over {MERGED_INLINE_BYTES_MAX} inline bytes"
        raise ResultTooLarge(message, hint="publish the file again, as objects")
    if merged != old:
        write_chunk(ctx, key, merged)


CHECKS: dict[type, Callable[[Any], None]] = {Copy: check_copy, CopyRange: check_range}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {Copy: copy, CopyRange: copy_range}
