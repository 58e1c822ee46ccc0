"""Copies of files and ranges: the content of one body under another one."""

from __future__ import annotations

from nokv.errors import (
    AlreadyExists,
    CopyTooLarge,
    InvalidArgument,
    IsADirectory,
    NotSupported,
)
from nokv.types.copies import Copied, Copy, CopyMode, CopyRange
from nokv.types.events import EventKind
from nokv.types.limits import (
    CHUNK_BYTES,
    COPY_CHUNKS_MAX,
    COPY_HOLDS_MAX,
    COPY_INLINE_BYTES_MAX,
)
from nokv.types.results import Published
from nokv.types.values import At, FileType
from nokv_model import access, reads
from nokv_model.access import FROZEN, R, Resolver, W, X
from nokv_model.body import Content, cut, merge, window
from nokv_model.step import Step
from nokv_model.tree import Inode


def copy(step: Step, op: Copy) -> Published:
    """Make a name show what another file shows, now or at a pinned version."""
    source = _source(step, op.source, op.at_version)
    size, content, sha256 = source.size, source.content, source.sha256
    parent = step.resolver.parent(op.parent)
    access.require(step.caller, parent, X)
    if op.name in parent.entries:
        if op.copy_mode == CopyMode.CREATE:
            message = "the name is taken"
            raise AlreadyExists(message)
        inode = step.forest.inodes[parent.entries[op.name]]
        _require_writable(step, inode)
        if not access.is_root(step.caller):
            step.clear_privileges(inode)
    else:
        access.require_writable_parent(step.caller, parent)
        inode = step.make(FileType.REGULAR << 12 | op.mode, parent)
        step.attach(parent, op.name, inode)
    _require_few(content)
    if inode.size != size:
        step.resized(inode)
    step.set_content(inode, content, body=step.new_body() if content else 0)
    inode.size, inode.sha256, inode.generation = size, sha256, step.version
    step.touch(inode, modified=True)
    step.event(EventKind.PUBLISH, inode, (parent, op.name))
    return Published(inode.number, step.version, size, 0, step.forest.attr(inode))


def copy_range(step: Step, op: CopyRange) -> Copied:
    """copy_file_range(2)."""
    source = _source(step, op.source, op.at_version)
    inode = step.resolver.resolve(op.target)
    _require_writable(step, inode)
    start, to = op.source_offset, op.target_offset
    if source is inode and abs(start - to) < op.length:
        message = "ranges of one file that overlap"
        raise InvalidArgument(message)
    copied = max(0, min(op.length, source.size - start))
    if not copied:
        return Copied(inode.number, inode.generation, inode.size, 0, step.forest.attr(inode))
    moved = _moved(window(source.content, start, start + copied), to - start)
    content = merge(cut(inode.content, to, to + copied), moved)
    body = inode.body or step.new_body()
    step.set_content(inode, content, body=body)
    size = max(inode.size, to + copied)
    if size != inode.size:
        step.resized(inode)
    inode.size, inode.sha256, inode.generation = size, b"", step.version
    step.touch(inode, modified=True)
    if not access.is_root(step.caller):
        step.clear_privileges(inode)
    step.event_of(EventKind.PUBLISH, inode)
    return Copied(inode.number, step.version, size, copied, step.forest.attr(inode))


def _source(step: Step, at: At, version: int) -> Inode:
    """Return the regular file that is copied."""
    resolver = step.resolver
    if version:
        forest = reads.forest_at(step.state, step.cluster_ns, at.view, version)
        resolver = Resolver(forest, step.caller)
    inode = resolver.resolve(at)
    _require_regular(inode)
    access.require(step.caller, inode, R)
    return inode


def _require_regular(inode: Inode) -> None:
    if inode.is_directory:
        message = "it is a directory"
        raise IsADirectory(message)
    if not inode.is_regular:
        message = "only a regular file has a body"
        raise NotSupported(message)


def _require_writable(step: Step, inode: Inode) -> None:
    _require_regular(inode)
    access.require(step.caller, inode, W)
    access.require_flags_clear(inode, FROZEN)


def _require_few(content: Content) -> None:
    """Raise CopyTooLarge for more than one command takes."""
    chunks = {run.offset // CHUNK_BYTES for run in content}
    holds = {(run.offset // CHUNK_BYTES, run.object) for run in content if run.object is not None}
    inline = sum(len(run.data) for run in content)
    few = len(chunks) <= COPY_CHUNKS_MAX and len(holds) <= COPY_HOLDS_MAX
    if not few or inline > COPY_INLINE_BYTES_MAX:
        message = "a body that one command can't take"
        raise CopyTooLarge(message)


def _moved(content: Content, by: int) -> Content:
    """Return the content at other offsets, split at the borders of chunks."""
    moved = []
    for run in content:
        start, end = run.offset + by, run.end + by
        run = run._replace(offset=start)  # noqa: PLW2901
        border = (start // CHUNK_BYTES + 1) * CHUNK_BYTES
        if border < end:
            moved += [run.part(start, border), run.part(border, end)]
        else:
            moved.append(run)
    return tuple(moved)
