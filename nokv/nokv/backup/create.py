"""Making a backup: hold, pull the image piece by piece, store it, and say so last."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from nokv.backup.format import (
    MANIFEST,
    PART_BYTES,
    Head,
    Manifest,
    encode_head,
    place,
    place_of,
)
from nokv.client.core import Core
from nokv.errors import BackupDamaged, NokvError, NotReady, Unavailable
from nokv.kv.errors import ImageDamaged
from nokv.kv.image import ImageChecker
from nokv.objects.port import ObjectStore
from nokv.types.commands import CreateBackup, EndBackup, FinishBackup
from nokv.types.values import Volume
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import BackupOpened, BackupPieces, CloseBackup, OpenBackup, ReadBackup

BUCKET: Final = "bucket"
OPEN_PAUSE_S: Final = 0.05


class Sink(Protocol):
    """Where a backup's bytes go."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    async def finish(self) -> tuple[int, ...]:
        """Make all of it durable; return the lengths of the parts."""
        ...

    async def abort(self) -> None:
        """Leave nothing behind."""
        ...


class FileSink:
    """A file that is whole or absent: written under another name, synced, renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = path.with_name(f".{path.name}.new")
        self._fd = os.open(self._made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    async def write(self, data: bytes) -> None:
        """Write; the call blocks, and so does whoever pulls."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    async def finish(self) -> tuple[int, ...]:
        """Sync, rename, sync the directory."""
        await asyncio.to_thread(os.fsync, self._fd)
        os.close(self._fd)
        self._fd = -1
        self._made.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return ()

    async def abort(self) -> None:
        """Remove what was written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._made.unlink(missing_ok=True)


class BucketSink:
    """Parts of PART_BYTES in the volume's own bucket; one is held in memory."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._buffer = bytearray()
        self._parts: list[int] = []

    async def write(self, data: bytes) -> None:
        """Collect, and store what fills a part."""
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            await self._put(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    async def _put(self, data: bytes) -> None:
        await self._store.put(f"{self._prefix}part-{len(self._parts):08x}", data)
        self._parts.append(len(data))

    async def finish(self) -> tuple[int, ...]:
        """Store the rest."""
        if self._buffer:
            await self._put(bytes(self._buffer))
        return tuple(self._parts)

    async def abort(self) -> None:
        """Delete what was stored; the worker sweeps what is left."""
        names = [f"{self._prefix}part-{number:08x}" for number in range(len(self._parts) + 1)]
        for start in range(0, len(names), 1000):
            await self._store.delete(names[start : start + 1000])


async def create_backup(
    core: Core, store: ObjectStore, *, name: str, keep_ns: int, to: Path | None, slot: int = 0
) -> Manifest:
    """Make a backup of the cluster that `core` is connected to; return its manifest.

    The hold is the session's until the manifest is stored: whatever fails before, it goes.

    Raises:
        NokvError: AlreadyExists for a name or slot that is taken; BackupGone if the node that read
            the image stopped; OSError of the file.
    """
    connection = await _reader(core)
    node, cluster = connection.hello.node, connection.hello.cluster
    where = BUCKET if to is None else f"file:{to}"
    op = CreateBackup(name, node, keep_ns, where, cluster, slot)
    result = await core.propose(op, (), core.config.deadline_s)
    backup = result.version
    prefix = place_of(core.volume.volume, name, cluster, backup)
    sink: Sink | None = None
    try:
        opened = await _opened(core, connection, backup)
        sink = BucketSink(store, prefix) if to is None else FileSink(to)
        v = core.volume
        volume = Volume(
            v.volume,
            v.kind,
            v.endpoint,
            v.bucket,
            v.prefix,
            v.region,
            v.inline_max,
            v.chunk_bytes,
            v.block_bytes,
        )
        head = Head(
            cluster=cluster,
            volume=volume,
            name=name,
            backup=backup,
            version=opened.version,
            index=opened.index,
            created_ns=time.time_ns(),
        )
        assert place(head) == prefix, "a backup has one place"
        size, digest = await _copy(core, connection, head, sink)
        parts = await sink.finish()
        manifest = Manifest(
            head=head, where=where, size_bytes=size, digest=digest.hex(), parts=parts
        )
        await store.put(prefix + MANIFEST, msgspec.json.encode(manifest))
        await core.propose(FinishBackup(backup, size, digest), (), core.config.deadline_s)
    except BaseException:
        if sink is not None:
            await sink.abort()
        await core.propose(EndBackup(backup), (), core.config.deadline_s)
        raise
    return manifest


async def _reader(core: Core) -> RpcConnection:
    """Return a connection to a replica that does not lead, or to the only one."""
    leader = await core.router.find_leader(core.config.deadline_s)
    for node in core.router.nodes:
        try:
            connection = await core.router.connection(node)
        except NokvError:
            continue
        if connection.hello.node != leader.hello.node:
            return connection
    return leader


async def _opened(core: Core, connection: RpcConnection, backup: int) -> BackupOpened:
    """Wait until the replica has come to the backup's entry."""
    async with asyncio.timeout(core.config.deadline_s):
        while True:
            try:
                reply = await connection.call(OpenBackup(core.caller, backup))
            except NotReady:
                await asyncio.sleep(OPEN_PAUSE_S)
                continue
            if isinstance(reply, BackupOpened):
                return reply
            raise Unavailable(f"the node answered {reply!r:.100}")


async def _copy(core: Core, connection: RpcConnection, head: Head, sink: Sink) -> tuple[int, bytes]:
    """Copy the image; return the backup's length and the state digest."""
    checker = ImageChecker()
    data = encode_head(head)
    size = len(data)
    await sink.write(data)
    try:
        async for piece in _pulled(core, connection, head.backup):
            checker.take(piece)
            size += len(piece)
            await sink.write(piece)
        return size, checker.finish().digest
    except ImageDamaged as error:
        raise BackupDamaged(f"the node sent what is no image: {error}") from error


async def _pulled(core: Core, connection: RpcConnection, backup: int) -> AsyncIterator[bytes]:
    offset = 0
    while True:
        reply = await connection.call(ReadBackup(core.caller, backup, offset))
        assert isinstance(reply, BackupPieces), reply
        if not reply.pieces:
            break
        for piece in reply.pieces:
            offset += len(piece)
            yield piece
    await connection.call(CloseBackup(core.caller, backup))
