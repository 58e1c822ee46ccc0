"""Making a backup: hold, pull the image piece by piece, store it, and say so last.

A replica that fails while it is read costs its attempt: the hold goes, and another one is asked.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

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
from nokv.backup.gone import check_not_gone
from nokv.backup.manage import clear
from nokv.client.core import Core
from nokv.errors import (
    AlreadyExists,
    BackupDamaged,
    DeadlineExceeded,
    NokvError,
    NotReady,
    Unavailable,
)
from nokv.kv.errors import ImageDamaged
from nokv.kv.image import ImageChecker, LmdbImageSink
from nokv.kv.lmdb_store import INCOMING_SUFFIX, sync_directory
from nokv.objects.port import ObjectStore
from nokv.types.commands import CreateBackup, EndBackup, FinishBackup
from nokv.types.reads import VolumeReply
from nokv.types.values import Volume
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import (
    BackupOpened,
    BackupPieces,
    CloseBackup,
    OpenBackup,
    ReadBackup,
    RequestBody,
    ResponseBody,
    Status,
    StatusReply,
)

log = logging.getLogger("nokv.backup")

BUCKET: Final = "bucket"
OPEN_PAUSE_S: Final = 0.05
CLOSE_S: Final = 1.0
"""A replica is told so long that its image is done with; else it finds out by itself."""
TRIES_MAX: Final = 3
"""Replicas that are asked for one backup."""
LAG_ENTRIES_MAX: Final = 10_000
"""A replica that lacks more than these is asked last: it may be far from the backup's entry."""


class Sink(Protocol):
    """Where a backup's bytes go."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    async def finish(self) -> tuple[int, ...]:
        """Make all of it durable; return the lengths of the parts."""
        ...

    async def abort(self) -> None:
        """Leave no file behind; what is in the bucket goes with the manifest (`clear`)."""
        ...


class FileSink:
    """A file that is whole or absent: written under a name of its own, synced, then linked.

    What has its name is another backup's, maybe the last one, and is never replaced. Only the file
    that a scheduled backup left when it was cut short is, with `leftover`: nobody else makes that.
    """

    def __init__(self, path: Path, *, leftover: bool = False) -> None:
        self._path = path
        self._leftover = leftover
        self._finished = False
        self._fd, made = tempfile.mkstemp(".new", f".{path.name}.", path.parent)
        self._made = Path(made)

    async def write(self, data: bytes) -> None:
        """Write; the call blocks, and so does whoever pulls."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    async def finish(self) -> tuple[int, ...]:
        """Sync, give it its name, sync the directory. Raises AlreadyExists."""
        await asyncio.to_thread(os.fsync, self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._leftover:
            self._path.unlink(missing_ok=True)
        try:
            self._name()
        except FileExistsError:
            raise _exists(self._path) from None
        self._finished = True
        sync_directory(self._path.parent)
        return ()

    def _name(self) -> None:
        """Give the file its name. Raises FileExistsError."""
        try:
            os.link(self._made, self._path)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            # A file system without hard links: the name is taken first, and then replaced.
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._made.replace(self._path)
        else:
            self._made.unlink()

    async def abort(self) -> None:
        """Remove what was written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._made.unlink(missing_ok=True)
        if self._finished:
            self._path.unlink(missing_ok=True)


def check_absent(path: Path) -> None:
    """Raise AlreadyExists if a file has the name of one that is to be made."""
    if os.path.lexists(path):
        raise _exists(path)


def _exists(path: Path) -> AlreadyExists:
    return AlreadyExists(f"{path} exists", hint="a backup replaces no file: choose another name")


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
        """Leave it to `clear`, which lists."""


class _ReaderFailed(Exception):
    """The replica could not be read; another one may be."""

    def __init__(self, error: NokvError) -> None:
        super().__init__(str(error))
        self.error = error


async def create_backup(
    core: Core, store: ObjectStore, *, name: str, keep_ns: int, to: Path | None, slot: int = 0
) -> Manifest:
    """Make a backup of the cluster that `core` is connected to, with its token.

    A replica that dies, or falls behind, is given up for another, at most TRIES_MAX. The hold is
    the session's until the manifest is stored: whatever fails before, it goes.

    Raises:
        NokvError: AlreadyExists for a name, slot or file that is taken; Forbidden without the
            token; ForeignVolume if the cluster was stated to be gone; what the last replica failed
            with: Unavailable, BackupGone, DeadlineExceeded, BackupDamaged.
        OSError: of the file.
    """
    if to is not None and not slot:
        check_absent(to)
    tried: set[int] = set()
    failure: NokvError | None = None
    while len(tried) < TRIES_MAX:
        connection = await _reader(core, tried)
        if connection is None:
            break
        tried.add(connection.hello.node)
        try:
            return await _Attempt(core, connection).run(store, name, keep_ns, to, slot)
        except _ReaderFailed as failed:
            failure = failed.error
            log.warning("backup %s at node %d: %s", name, connection.hello.node, failure)
    raise failure or Unavailable("no replica can be read")


class Pulled(NamedTuple):
    """A state image in a local store, and what holds all that it shows."""

    backup: int
    """An unfinished backup: it ends with the session, or by `release_image`."""
    version: int


async def pull_image(core: Core, *, name: str, keep_ns: int, to: Path) -> Pulled:
    """Make the store `to`, which must not exist, of the cluster's state as it is now.

    It holds a backup that is never finished, so that nothing which the image shows is deleted.
    Raises as `create_backup`.
    """
    tried: set[int] = set()
    failure: NokvError | None = None
    while len(tried) < TRIES_MAX:
        connection = await _reader(core, tried)
        if connection is None:
            break
        tried.add(connection.hello.node)
        try:
            return await _Attempt(core, connection).pull(name, keep_ns, to)
        except _ReaderFailed as failed:
            failure = failed.error
            log.warning("an image of node %d: %s", connection.hello.node, failure)
    raise failure or Unavailable("no replica can be read")


async def release_image(core: Core, pulled: Pulled) -> None:
    """Let go of what an image holds: no bytes anywhere rest on it."""
    deadline_s = core.config.deadline_s
    await core.propose(EndBackup(pulled.backup), (), deadline_s)
    await core.propose(EndBackup(pulled.backup, release=True), (), deadline_s)


async def _reader(core: Core, tried: set[int]) -> RpcConnection | None:
    """Return a connection to a replica that was not tried: of those that the leader reaches.

    Learners come first, which nobody waits for, and the leader last; None if none is left.
    """
    status = await _leaders_status(core)
    peers = {peer.node: peer for peer in status.peers if peer.connected}
    ready = [
        (peers[member.node].lag_entries > LAG_ENTRIES_MAX, member.voter, member.node)
        for member in status.members
        if member.node in peers
    ]
    for node in [*(node for *_, node in sorted(ready)), status.node]:
        if node not in tried:
            try:
                return await core.router.connection(core.router.find_node(node))
            except NokvError as error:
                log.info("node %d is not asked for the backup: %s", node, error)
    return None


async def _leaders_status(core: Core) -> StatusReply:
    try:
        async with asyncio.timeout(core.config.deadline_s):
            while True:
                reply = await core.router.call_leader(Status(), core.config.deadline_s)
                if isinstance(reply, StatusReply) and reply.role == "leader":
                    return reply
                core.router.doubt_leader()
                await asyncio.sleep(OPEN_PAUSE_S)
    except TimeoutError:
        raise Unavailable(f"no node leads after {core.config.deadline_s:g} s") from None


class _Attempt:
    """One backup read from one replica."""

    def __init__(self, core: Core, connection: RpcConnection) -> None:
        self._core = core
        self._connection = connection
        self._deadline_s = core.config.deadline_s

    async def pull(self, name: str, keep_ns: int, to: Path) -> Pulled:
        """Make a store of the image; or leave no store and, if the cluster hears it, no hold."""
        hello = self._connection.hello
        op = CreateBackup(name, hello.node, keep_ns, f"file:{to}", hello.cluster)
        backup = (await self._core.propose(op, (), self._deadline_s)).version
        sink = LmdbImageSink(to.with_name(to.name + INCOMING_SUFFIX))
        try:
            async with self._image(backup) as opened:
                async for piece in self._pulled(backup):
                    sink.write(piece)
            sink.finish()
            sink.path.rename(to)
        except BaseException as error:
            await self._end(backup)
            if isinstance(error, ImageDamaged):
                damaged = BackupDamaged(f"the node sent what is no image: {error}")
                raise _ReaderFailed(damaged) from error
            raise
        finally:
            sink.abort()
        return Pulled(backup, opened.version)

    async def run(
        self, store: ObjectStore, name: str, keep_ns: int, to: Path | None, slot: int
    ) -> Manifest:
        """Make it; or leave neither bytes nor, if the cluster can be told, a hold."""
        node, cluster = self._connection.hello.node, self._connection.hello.cluster
        where = BUCKET if to is None else f"file:{to}"
        op = CreateBackup(name, node, keep_ns, where, cluster, slot)
        backup = (await self._core.propose(op, (), self._deadline_s)).version
        prefix = place_of(self._core.volume.volume, name, cluster, backup)
        sink: Sink | None = None
        try:
            async with self._image(backup) as opened:
                sink = BucketSink(store, prefix) if to is None else FileSink(to, leftover=slot > 0)
                head = Head(
                    cluster=cluster,
                    volume=_volume(self._core.volume),
                    name=name,
                    backup=backup,
                    version=opened.version,
                    index=opened.index,
                    created_ns=time.time_ns(),
                )
                assert place(head) == prefix, "a backup has one place"
                size, digest = await self._copy(head, sink)
            parts = await sink.finish()
            manifest = Manifest(
                head=head, where=where, size_bytes=size, digest=digest.hex(), parts=parts
            )
            await store.put(prefix + MANIFEST, msgspec.json.encode(manifest))
            # Whoever has the volume instead stated so before it looked for such manifests.
            await check_not_gone(store, self._core.volume.volume, cluster)
            finish = FinishBackup(backup, size, digest)
            await self._core.propose(finish, (), self._deadline_s)
        except BaseException:
            await self._end(backup)
            await self._clear(store, prefix, sink)
            raise
        return manifest

    async def _end(self, backup: int) -> None:
        """Give the backup up if the cluster can be told: else it ends with the session."""
        try:
            await self._core.propose(EndBackup(backup), (), self._deadline_s)
        except NokvError as error:
            log.warning("backup %d could not be given up: %s", backup, error)

    async def _clear(self, store: ObjectStore, prefix: str, sink: Sink | None) -> None:
        """Leave no bytes behind: what can't be removed goes with the worker's next round."""
        try:
            if sink is not None:
                await sink.abort()
                await clear(store, prefix)
        except NokvError as error:
            log.warning("%s could not be cleared: %s", prefix, error)

    async def _call(self, body: RequestBody) -> ResponseBody:
        try:
            return await self._connection.call(body, timeout_s=self._deadline_s)
        except NotReady:
            raise
        except NokvError as error:
            raise _ReaderFailed(error) from error

    @asynccontextmanager
    async def _image(self, backup: int) -> AsyncIterator[BackupOpened]:
        """Have the replica keep the image open meanwhile: it opens few at a time."""
        try:
            yield await self._opened(backup)
        finally:
            try:
                wait_s = min(CLOSE_S, self._deadline_s)
                await self._connection.call(CloseBackup(backup), timeout_s=wait_s)
            except NokvError as error:
                log.info("backup %d stays open until nobody asked for a while: %s", backup, error)

    async def _opened(self, backup: int) -> BackupOpened:
        """Wait until the replica has come to the backup's entry."""
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    try:
                        reply = await self._call(OpenBackup(backup))
                    except NotReady:
                        await asyncio.sleep(OPEN_PAUSE_S)
                        continue
                    assert isinstance(reply, BackupOpened), reply
                    return reply
        except TimeoutError:
            message = f"node {self._connection.hello.node} did not come to the backup in time"
            raise _ReaderFailed(DeadlineExceeded(message)) from None

    async def _copy(self, head: Head, sink: Sink) -> tuple[int, bytes]:
        """Copy the image; return the backup's length and the state digest."""
        checker = ImageChecker()
        data = encode_head(head)
        size = len(data)
        await sink.write(data)
        try:
            async for piece in self._pulled(head.backup):
                checker.take(piece)
                size += len(piece)
                await sink.write(piece)
            return size, checker.finish().digest
        except ImageDamaged as error:
            damaged = BackupDamaged(f"the node sent what is no image: {error}")
            raise _ReaderFailed(damaged) from error

    async def _pulled(self, backup: int) -> AsyncIterator[bytes]:
        offset = 0
        while True:
            try:
                reply = await self._call(ReadBackup(backup, offset))
            except NotReady as error:
                raise _ReaderFailed(error) from error
            assert isinstance(reply, BackupPieces), reply
            if not reply.pieces:
                break
            for piece in reply.pieces:
                offset += len(piece)
                yield piece


def _volume(reply: VolumeReply) -> Volume:
    return Volume(
        reply.volume,
        reply.kind,
        reply.endpoint,
        reply.bucket,
        reply.prefix,
        reply.region,
        reply.inline_max,
        reply.chunk_bytes,
        reply.block_bytes,
    )
