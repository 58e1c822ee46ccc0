"""The synchronous client: the same names, run by one event loop in a thread of its own.

Safe to use from any thread. Fork aware: a child process connects afresh, with a session of its
own, at its first call; files that were opened before the fork raise Stale in the child (their
session is the parent's), and the parent notices nothing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from nokv.client.arguments import checked, checked_methods
from nokv.client.connect import addresses_of, connect
from nokv.client.core import ClientConfig
from nokv.client.fs import AsyncClient
from nokv.client.locks import SyncLock
from nokv.client.paths import AnyPath
from nokv.client.readonly import CHANGES, PinnedView, SnapshotView, refused
from nokv.client.reads import ReadHandle
from nokv.client.syncfiles import ReaderFile, TextWriterFile, WriterFile, open_file
from nokv.client.trash import TrashCan
from nokv.client.views import Snapshots, Workspaces
from nokv.client.watch import WINDOW_BYTES, SyncWatch
from nokv.errors import InvalidArgument, Stale, Unavailable
from nokv.types.reads import VolumeReply
from nokv.types.values import Caller

P = ParamSpec("P")
T = TypeVar("T")
H = TypeVar("H")
R = TypeVar("R", bound=ReadHandle)

ITEMS: Final = 256
"""Entries that an iterator fetches from the loop's thread at a time."""

_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_abandoned: list[object] = []
"""What a child inherited and must never touch: its parent's loops, sockets and threads."""


class Owner:
    """One connected client and the thread that its event loop runs in."""

    def __init__(self, connecting: Callable[[], Awaitable[AsyncClient]]) -> None:
        self._connecting = connecting
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: AsyncClient | None = None
        self.epoch = 0
        """Raised in the child of a fork: what was opened before belongs to the parent."""
        self.closed = False
        _owners.add(self)

    def client(self) -> AsyncClient:
        """Return the client; connect it if this process has not yet.

        Raises:
            Unavailable: no node answers, or the client was closed.
        """
        client = self._client
        if client is not None:
            return client
        with self._lock:
            if self.closed:
                message = "the client is closed"
                raise Unavailable(message, hint="connect again")
            if self._client is None:
                self._start()
                try:
                    self._client = self.run(_awaited(self._connecting))
                except BaseException:
                    self._stop()
                    raise
            return self._client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop's thread and return its result.

        Raises:
            InvalidArgument: called from that thread itself (from a callback): it would wait for
                itself.
        """
        loop = self._loop
        if loop is None or threading.current_thread() is self._thread:
            work.close()
            message = "the synchronous client was called from its own event loop"
            raise InvalidArgument(message, hint="use nokv.connect in asynchronous code")
        done = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return done.result()
        except BaseException:
            done.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine in the loop's thread without waiting; for finalizers."""
        loop = self._loop
        if loop is None or not loop.is_running():
            work.close()
            return
        asyncio.run_coroutine_threadsafe(work, loop)

    def close(self) -> None:
        """Close the client and end the thread."""
        with self._lock:
            self.closed = True
            client, self._client = self._client, None
            if client is not None:
                try:
                    self.run(client.close())
                finally:
                    self._stop()

    def _start(self) -> None:
        loop = asyncio.new_event_loop()
        started = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(started.set)
            loop.run_forever()

        self._loop = loop
        self._thread = threading.Thread(target=serve, name="nokv-client", daemon=True)
        self._thread.start()
        started.wait()

    def _stop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_shut_down(loop), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def forked(self) -> None:
        """Forget, in a child, what belongs to the parent; keep it alive and untouched."""
        _abandoned.append((self._loop, self._thread, self._client))
        self._lock = threading.Lock()
        self._loop = self._thread = self._client = None
        self.epoch += 1


def _forget_parents() -> None:
    for owner in list(_owners):
        owner.forked()


os.register_at_fork(after_in_child=_forget_parents)


async def _awaited(make: Callable[[], Awaitable[T]]) -> T:
    return await make()


async def _shut_down(loop: asyncio.AbstractEventLoop) -> None:
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


async def _take(items: AsyncIterator[T], count: int) -> list[T]:
    taken: list[T] = []
    async for item in items:
        taken.append(item)
        if len(taken) == count:
            break
    return taken


def _sync(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Facade[Any], P], T]:
    """Return the synchronous form of a coroutine method, with its signature and documentation."""

    @functools.wraps(method)
    def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self._handle()
        return self._owner.run(method(handle, *args, **kwargs))

    return call


def _sync_iterator(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]], items: int = ITEMS
) -> Callable[Concatenate[Facade[Any], P], Iterator[T]]:
    """Return the synchronous form of an asynchronous generator method."""

    @functools.wraps(method)
    def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        found = method(self._handle(), *args, **kwargs)
        run = self._owner.run
        while batch := run(_take(found, items)):
            yield from batch
            if len(batch) < items:
                return

    return call


class Facade(Generic[H]):
    """The synchronous form of an asynchronous object, which is made in each process."""

    def __init__(self, owner: Owner, make: Callable[[AsyncClient], H]) -> None:
        self._owner = owner
        self._make = make
        self._made: tuple[int, H] | None = None

    def _handle(self) -> H:
        made = self._made
        if made is None or made[0] != self._owner.epoch or self._owner.closed:
            client = self._owner.client()
            made = self._made = (self._owner.epoch, self._make(client))
        return made[1]


@checked_methods
class SyncReadHandle(Facade[R]):
    """What reads; see `nokv.client.reads.ReadHandle`, whose methods these are."""

    def _with(self, change: Callable[[R], R]) -> Self:
        make = self._make
        found = object.__new__(type(self))
        Facade.__init__(found, self._owner, lambda client: change(make(client)))
        found._handle()
        return found

    def within(self, deadline_s: float) -> Self:
        """Return a handle whose calls may take so many seconds each."""
        return self._with(lambda handle: handle.within(deadline_s))

    def reading_from(self, node: int | str) -> Self:
        """Return a handle that reads from one node only, by its number or address."""
        return self._with(lambda handle: handle.reading_from(node))

    def stale(self, max_stale_s: float) -> Self:
        """Return a handle whose reads may show a state up to so many seconds old."""
        return self._with(lambda handle: handle.stale(max_stale_s))

    @property
    def volume(self) -> VolumeReply:
        """What the cluster says of its volume: id, kind of store, sizes."""
        return self._handle().volume

    locate = _sync(ReadHandle.locate)
    stat = _sync(ReadHandle.stat)
    lstat = _sync(ReadHandle.lstat)
    exists = _sync(ReadHandle.exists)
    is_dir = _sync(ReadHandle.is_dir)
    is_file = _sync(ReadHandle.is_file)
    is_symlink = _sync(ReadHandle.is_symlink)
    access = _sync(ReadHandle.access)
    readlink = _sync(ReadHandle.readlink)
    getxattr = _sync(ReadHandle.getxattr)
    listxattr = _sync(ReadHandle.listxattr)
    statfs = _sync(ReadHandle.statfs)
    usage = _sync(ReadHandle.usage)
    read_events = _sync(ReadHandle.read_events)
    events = _sync_iterator(ReadHandle.events)
    scandir = _sync_iterator(ReadHandle.scandir)
    listdir = _sync(ReadHandle.listdir)
    read_page = _sync(ReadHandle.read_page)
    walk = _sync_iterator(ReadHandle.walk, 1)  # a caller may prune before the next directory
    glob = _sync_iterator(ReadHandle.glob)
    read = _sync(ReadHandle.read)
    read_bytes = _sync(ReadHandle.read_bytes)
    read_text = _sync(ReadHandle.read_text)
    get_file = _sync(ReadHandle.get_file)

    def watch(
        self,
        path: AnyPath,
        *,
        recursive: bool = True,
        since: int | None = None,
        types: Iterable[str | int] = (),
        window_bytes: int = WINDOW_BYTES,
        bookmark_s: float = 10.0,
    ) -> SyncWatch:
        """Return a watch of a directory, or of one file; see `ReadHandle.watch`."""
        watch = self._handle().watch(
            path,
            recursive=recursive,
            since=since,
            types=types,
            window_bytes=window_bytes,
            bookmark_s=bookmark_s,
        )
        return SyncWatch(self._owner, watch)

    def open(
        self, path: AnyPath, mode: str = "rb", *, buffering: int = -1, encoding: str = "utf-8"
    ) -> Any:  # noqa: ANN401  as the builtin: the mode decides
        """Open a file: `rb` and `r` for reading, `wb`, `xb`, `ab`, `w`, `x`, `a` for writing.

        For reading it is an `io.BufferedReader` (buffering=0: the raw file), so that torch.load,
        zipfile, pyarrow and whatever else reads file objects can use it. For writing nothing is
        visible until it is closed; an exception inside its `with`, `abort()`, or losing it
        unclosed leaves the file as it was.
        """
        return open_file(self._owner, self._handle(), path, mode, buffering, encoding)


class SyncReadOnlyHandle(SyncReadHandle[R]):
    """Reads; whatever changes the namespace raises ReadOnly here."""


def _refuse(name: str) -> None:
    def refuse(self: SyncReadOnlyHandle[Any], *args: object, **kwargs: object) -> None:
        del self, args, kwargs
        raise refused(name)

    refuse.__name__ = name
    refuse.__doc__ = "Raise ReadOnly."
    setattr(SyncReadOnlyHandle, name, refuse)


for _name in CHANGES:
    _refuse(_name)


class SyncPinnedView(SyncReadOnlyHandle[PinnedView]):
    """The live tree as it was at one version: read-only, until its block ends."""

    @property
    def version(self) -> int:
        """The version that it shows."""
        return self._handle().version


class SyncSnapshotView(SyncReadOnlyHandle[SnapshotView]):
    """What a snapshot shows; see `nokv.client.readonly.SnapshotView`."""

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return self._handle().name

    info = _sync(SnapshotView.info)


class SyncSnapshots(Facade[Snapshots]):
    """The snapshots of a volume; see `nokv.client.views.Snapshots`."""

    create = _sync(Snapshots.create)
    get = _sync(Snapshots.get)
    list = _sync(Snapshots.list)
    renew = _sync(Snapshots.renew)
    delete = _sync(Snapshots.delete)


class SyncWorkspaces(Facade[Workspaces]):
    """Directories that are views of their own; see `nokv.client.views.Workspaces`."""

    create = _sync(Workspaces.create)
    list = _sync(Workspaces.list)
    own_bytes = _sync(Workspaces.own_bytes)
    delete = _sync(Workspaces.delete)


class SyncTrashCan(Facade[TrashCan]):
    """What was removed and can come back; see `nokv.client.trash.TrashCan`."""

    put = _sync(TrashCan.put)
    list = _sync(TrashCan.list)
    restore = _sync(TrashCan.restore)
    empty = _sync(TrashCan.empty)
    keep = _sync(TrashCan.keep)


@checked_methods
class Client(SyncReadHandle[AsyncClient]):
    """A connected client. Make one with `nokv.connect_sync`; see `AsyncClient` for the methods."""

    def close(self) -> None:
        """End the session and all connections."""
        self._owner.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    session_id = _sync(AsyncClient.session_id)
    mkdir = _sync(AsyncClient.mkdir)
    create = _sync(AsyncClient.create)
    bulk_create = _sync(AsyncClient.bulk_create)
    mknod = _sync(AsyncClient.mknod)
    symlink = _sync(AsyncClient.symlink)
    link = _sync(AsyncClient.link)
    unlink = _sync(AsyncClient.unlink)
    remove = _sync(AsyncClient.remove)
    rmdir = _sync(AsyncClient.rmdir)
    remove_tree = _sync(AsyncClient.remove_tree)
    rename = _sync(AsyncClient.rename)
    move = _sync(AsyncClient.move)
    replace = _sync(AsyncClient.replace)
    chmod = _sync(AsyncClient.chmod)
    chown = _sync(AsyncClient.chown)
    utime = _sync(AsyncClient.utime)
    truncate = _sync(AsyncClient.truncate)
    set_flags = _sync(AsyncClient.set_flags)
    setxattr = _sync(AsyncClient.setxattr)
    removexattr = _sync(AsyncClient.removexattr)
    write_bytes = _sync(AsyncClient.write_bytes)
    put = _sync(AsyncClient.put)
    put_file = _sync(AsyncClient.put_file)
    append = _sync(AsyncClient.append)
    patch = _sync(AsyncClient.patch)
    publish = _sync(AsyncClient.publish)
    publish_tree = _sync(AsyncClient.publish_tree)
    clone = _sync(AsyncClient.clone)
    rollback = _sync(AsyncClient.rollback)
    copy = _sync(AsyncClient.copy)
    copy_range = _sync(AsyncClient.copy_range)
    quota = _sync(AsyncClient.quota)
    set_quota = _sync(AsyncClient.set_quota)
    diff = _sync_iterator(AsyncClient.diff)
    history = _sync(AsyncClient.history)
    revert = _sync(AsyncClient.revert)

    @property
    def snapshots(self) -> SyncSnapshots:
        """The snapshots of the volume: create, get, list, renew, delete."""
        make = self._make
        return SyncSnapshots(self._owner, lambda client: make(client).snapshots)

    @property
    def workspaces(self) -> SyncWorkspaces:
        """Directories that are views of their own: create, list, delete."""
        make = self._make
        return SyncWorkspaces(self._owner, lambda client: make(client).workspaces)

    @property
    def trash(self) -> SyncTrashCan:
        """What was removed and can come back: put, list, restore, empty, keep."""
        make = self._make
        return SyncTrashCan(self._owner, lambda client: make(client).trash)

    def at(self, snapshot: str) -> SyncSnapshotView:
        """Return a handle that reads what a snapshot shows, under the same absolute paths."""
        make = self._make
        return SyncSnapshotView(self._owner, lambda client: make(client).at(snapshot))

    def lock(
        self,
        path: AnyPath,
        *,
        shared: bool = False,
        span: tuple[int, int] | None = None,
        timeout_s: float | None = None,
    ) -> SyncLock:
        """Return an advisory lock: `with fs.lock(path):`; see `AsyncClient.lock`."""
        lock = self._handle().lock(path, shared=shared, span=span, timeout_s=timeout_s)
        return SyncLock(self._owner, lock)

    @contextmanager
    def pinned(self) -> Iterator[SyncPinnedView]:
        """Pin the live tree for the length of a block and yield a view of it as it is now."""
        owner = self._owner
        block = self._handle().pinned()
        view = owner.run(block.__aenter__())
        epoch = owner.epoch

        def pinned_here(client: AsyncClient) -> PinnedView:
            del client
            if owner.epoch != epoch:
                message = "the view was pinned before a fork"
                raise Stale(message, hint="pin one in this process")
            return view

        try:
            yield SyncPinnedView(owner, pinned_here)
        except BaseException as error:
            self._owner.run(block.__aexit__(type(error), error, None))
            raise
        self._owner.run(block.__aexit__(None, None, None))


@checked
def connect_sync(
    cluster: str | Sequence[str] | None = None,
    *,
    config: ClientConfig | None = None,
    caller: Caller | None = None,
    cluster_id: str = "",
    **how: Any,  # noqa: ANN401  the other arguments of `connect`
) -> Client:
    """Connect to a cluster and return a synchronous client; arguments as `nokv.connect`.

    Raises:
        ConfigError: for addresses that are none.
        Unavailable: no node answers in time.
    """
    addresses = addresses_of(cluster)

    def connecting() -> Awaitable[AsyncClient]:
        return connect(addresses, config=config, caller=caller, cluster_id=cluster_id, **how)

    owner = Owner(connecting)
    owner.client()
    return Client(owner, lambda client: client)


__all__ = ["Client", "ReaderFile", "TextWriterFile", "WriterFile", "connect_sync"]
