"""Where the bytes of a range are: the chunk records of the present, a pinned or a leased body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.errors import BodyGone, InvalidArgument, IsADirectory
from nokv.state import access, keys
from nokv.state.context import is_directory, is_regular, make_attr
from nokv.state.families import Family
from nokv.state.ops_session import lease_of
from nokv.state.pinned import PinnedSource, Source, shard_of
from nokv.state.records import body_of, decode_chunk, decode_session
from nokv.state.resolve import Found, resolve
from nokv.types.limits import CHUNK_BYTES, CHUNKS_MAX, UINT63_MAX
from nokv.types.reads import BodyMap, BodyMapReply, ChunkAt
from nokv.types.values import Caller, Lease, StoredChunk

REPLY_BYTES_MAX = 1024 * 1024
"""Rough size of one reply's chunk records; the rest comes from `next_chunk`."""

_EXTENT_BYTES = 32
_OBJECT_BYTES = 32


def body_map(source: Source, caller: Caller, request: BodyMap) -> BodyMapReply:
    """Answer `BodyMap`; the source shows the version that was asked for."""
    if not (0 <= request.offset <= UINT63_MAX and 0 <= request.length <= UINT63_MAX):
        message = f"a range of {request.length} bytes at {request.offset}"
        raise InvalidArgument(message)
    found = resolve(source, caller, request.session, request.at)
    if is_directory(found.inode):
        message = "a directory has no body"
        raise IsADirectory(message)
    if not is_regular(found.inode):
        message = "only regular files have bodies"
        raise InvalidArgument(message)
    access.need(found.inode, caller, access.R)
    attr = make_attr(found.view, found.ino, found.inode, found.version)
    body, size = found.inode.body, found.inode.size
    lease = _lease(source, request, found) if request.body else None
    if lease is not None:
        source, body, size = (
            PinnedSource(shard_of(source), lease.version, leased=True),
            lease.body,
            UINT63_MAX,
        )
    end = min(request.offset + request.length, size)
    if not body or request.offset >= end:
        return BodyMapReply(attr, (), 0)
    first, last = request.offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
    start = keys.chunk(found.view, found.ino, body, first)
    stop = keys.chunk(found.view, found.ino, body, min(last + 1, CHUNKS_MAX))
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


def _lease(source: Source, request: BodyMap, found: Found) -> Lease | None:
    """Return the session's lease of the body that it names: it shows the leased version.

    None where the body is the present one and not leased. Raises BodyGone otherwise.
    """
    in_range = 0 < request.session < 2**64
    row = source.get(Family.SESSION, keys.session(request.session)) if in_range else None
    session = None if row is None else decode_session(row)
    lease = None if session is None else lease_of(session, found.view, found.ino, request.body)
    if lease is None and request.body != found.inode.body:
        message = f"body {request.body} of inode {found.ino} was replaced, and is not leased"
        raise BodyGone(message)
    return lease


def _cost(chunk: StoredChunk) -> int:
    inline = sum(len(e.data) for e in chunk.extents)
    sums = sum(len(o.sums) + _OBJECT_BYTES for o in chunk.objects)
    return inline + sums + _EXTENT_BYTES * len(chunk.extents)


HANDLERS: dict[type, Callable[[Source, Caller, Any], Any]] = {BodyMap: body_map}
