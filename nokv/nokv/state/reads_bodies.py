"""Where the bytes of a range are: the chunk records of the present, a pinned or a leased body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.errors import BodyGone, InvalidArgument, IsADirectory, Stale
from nokv.state import access, keys
from nokv.state.context import REGULAR, is_directory, is_regular, make_attr
from nokv.state.families import Family
from nokv.state.pinned import PinnedSource, Source, shard_of
from nokv.state.records import body_of, decode_chunk, decode_session
from nokv.state.resolve import resolve
from nokv.types.limits import CHUNK_BYTES, CHUNKS_MAX, UINT63_MAX
from nokv.types.reads import BodyMap, BodyMapReply, ChunkAt
from nokv.types.values import Attr, Caller, Lease, StoredChunk

REPLY_BYTES_MAX = 1024 * 1024
"""Rough size of one reply's chunk records; the rest comes from `next_chunk`."""

_EXTENT_BYTES = 32
_OBJECT_BYTES = 32


def body_map(source: Source, caller: Caller, request: BodyMap) -> BodyMapReply:
    """Answer `BodyMap`; the source shows the version that was asked for."""
    if not (0 <= request.offset <= UINT63_MAX and 0 <= request.length <= UINT63_MAX):
        message = f"a range of {request.length} bytes at {request.offset}"
        raise InvalidArgument(message)
    attr, lease, body, size = _shown(source, caller, request)
    if lease is not None:
        source = PinnedSource(shard_of(source), lease.version, leased=True)
        body, size = lease.body, UINT63_MAX
    end = min(request.offset + request.length, size)
    if not body or request.offset >= end:
        return BodyMapReply(attr, (), 0)
    first, last = request.offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
    start = keys.chunk(attr.view, attr.inode, body, first)
    stop = keys.chunk(attr.view, attr.inode, body, min(last + 1, CHUNKS_MAX))
    chunks: list[ChunkAt] = []
    cost = 0
    for key, value in source.scan(Family.CHUNK, start, stop):
        index = keys.chunk_parts(key)[3]
        if cost >= REPLY_BYTES_MAX:
            return BodyMapReply(attr, tuple(chunks), index)
        chunk = decode_chunk(body_of(value))
        chunks.append(ChunkAt(index, chunk))
        cost += _cost(chunk)
    return BodyMapReply(attr, tuple(chunks), 0)


def _shown(source: Source, caller: Caller, request: BodyMap) -> tuple[Attr, Lease | None, int, int]:
    """Return the file's attributes, the session's lease that is named, the present body, size.

    Of a file that is gone a lease still shows the body: whoever has one was let in when the file
    was opened. Its attributes say that no name is left, and no more. Raises BodyGone where the
    request names a lease that the session does not have, though the body be the present one: a
    patch leaves a body its number.
    """
    view, ino = request.at.view, request.at.inode
    try:
        found = resolve(source, caller, request.session, request.at)
    except Stale:
        lease = None if request.at.path else _lease(source, request, view, ino)
        if lease is None:
            raise
        return Attr(view, ino, REGULAR, 0, 0, 0, 0, 0, 0, 0, 0, 0), lease, 0, 0
    if is_directory(found.inode):
        message = "a directory has no body"
        raise IsADirectory(message)
    if not is_regular(found.inode):
        message = "only regular files have bodies"
        raise InvalidArgument(message)
    access.need(found.inode, caller, access.R)
    lease = _lease(source, request, found.view, found.ino)
    if lease is None and request.body:
        message = (
            f"body {request.body} of inode {found.ino} is not leased at {request.lease_version}"
        )
        raise BodyGone(message)
    attr = make_attr(found.view, found.ino, found.inode, found.version)
    return attr, lease, found.inode.body, found.inode.size


def _lease(source: Source, request: BodyMap, view: int, ino: int) -> Lease | None:
    """Return the lease that the request names, if the session has exactly that; None if not."""
    if not request.body or not 0 < request.session < 2**64:
        return None
    row = source.get(Family.SESSION, keys.session(request.session))
    lease = Lease(view, ino, request.body, request.lease_version)
    return lease if row is not None and lease in decode_session(row).leases else None


def _cost(chunk: StoredChunk) -> int:
    inline = sum(len(e.data) for e in chunk.extents)
    sums = sum(len(o.sums) + _OBJECT_BYTES for o in chunk.objects)
    return inline + sums + _EXTENT_BYTES * len(chunk.extents)


HANDLERS: dict[type, Callable[[Source, Caller, Any], Any]] = {BodyMap: body_map}
