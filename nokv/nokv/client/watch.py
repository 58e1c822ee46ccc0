"""Watching a directory: changes as they happen, each exactly once, whatever happens to nodes.

A watch is one stream from one node. What is kept here is bounded by a window: the node sends more
only as the changes are taken. When the stream ends for a passing reason (its node died, lags, is
overloaded) another node goes on from the last frame that arrived, so nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from nokv.client.arguments import checked, checked_methods
from nokv.client.core import Core
from nokv.client.nodes import Node
from nokv.client.options import Options
from nokv.client.paths import AnyPath, at, components, decode_name, join
from nokv.client.routing import READ_ATTEMPT_S, backoff_s
from nokv.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NokvError,
    NotReady,
    Overloaded,
    Unavailable,
)
from nokv.types.values import At
from nokv.types.watch import (
    BOOKMARK_MS_MAX,
    BOOKMARK_MS_MIN,
    KIND_NAMES,
    SINCE_NOW,
    WATCH_WINDOW_BYTES_MAX,
    WATCH_WINDOW_BYTES_MIN,
    WatchEvent,
    kind_name,
)
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import CloseWatch, GrantWatch, OpenWatch, ResponseBody, WatchFrame, WatchOpened

if TYPE_CHECKING:
    from nokv.client.sync import Owner

WINDOW_BYTES: Final = 1024 * 1024
"""Frames on their way or not yet taken."""

SILENCE_BOOKMARKS: Final = 3
"""A node that has not even sent a bookmark for so many of their periods is given up."""

SILENCE_MIN_S: Final = 5.0

WINDOW_BYTES_MAX: Final = WATCH_WINDOW_BYTES_MAX // 2
"""What arrived from a node that died is granted to the next one beside its own window."""

TAKE: Final = 1024
"""Changes that iteration takes at a time."""

_PASSING = (Unavailable, DeadlineExceeded, NotReady, Overloaded)
_KINDS: Final = {name: kind for kind, name in KIND_NAMES.items()}


class Change(NamedTuple):
    """One change below what is watched. Paths begin with the path that the watch was given."""

    kind: str
    """`create`, `remove`, `rename`, `exchange`, `publish`, `setattr`, `xattr`, `link`, `move_in`,
    `snapshot`, `clone`, `rollback`; `moved_in` and `moved_out` of names that come from elsewhere
    or leave. After move_in, moved_in, clone and rollback of a directory, list it."""
    path: str | None
    """None where the node does not know it any more. Of a bulk create: the directory's."""
    to_path: str | None
    """Of a rename or exchange: the other end, if it is below what is watched too."""
    names: tuple[str, ...]
    """Of a bulk create: the names in the directory."""
    inode: int
    view: int
    size: int
    generation: int
    cursor: int
    """Version of the command: a watch since it goes on after this change."""
    wall_ns: int
    """When, ns since 1970, by the cluster's clock."""
    event: WatchEvent
    """All that the node told."""


def kinds_of(types: Iterable[str | int]) -> tuple[int, ...]:
    """Return the numbers of kinds given by name.

    Raises:
        InvalidArgument: there is no such kind.
    """
    found: list[int] = []
    for one in types:
        kind = _KINDS.get(one.replace("-", "_")) if isinstance(one, str) else one
        if not isinstance(kind, int) or kind not in KIND_NAMES:
            message = f"{one!r} is no kind of change"
            raise InvalidArgument(message, hint="one of " + ", ".join(_KINDS))
        found.append(kind)
    return tuple(found)


class _Stream:
    """One opened watch at one node; what arrives after it was given up is not looked at."""

    __slots__ = ("connection", "error", "node", "number", "watch")

    def __init__(self, watch: Watch, node: Node, connection: RpcConnection) -> None:
        self.watch = watch
        self.node = node
        self.connection = connection
        self.number = 0
        self.error: NokvError | None = None

    def take(self, body: ResponseBody | NokvError, size_bytes: int) -> None:
        """Take what the node sends (`nokv.wire.connection.OnFrame`)."""
        if isinstance(body, NokvError):
            self.error = body
        elif not isinstance(body, WatchFrame):
            self.error = Unavailable(f"{self.connection.address} sent what is no frame of a watch")
        self.watch.arrived(self, body, size_bytes)

    def close(self) -> None:
        """Tell the node that nobody listens."""
        self.connection.close_stream(self.number)
        self.connection.post(CloseWatch(self.number))


class Watch:
    """The changes of a directory: `async with fs.watch("/runs") as changes`, then `async for`.

    Without the `async with` it is opened by the first change that is waited for. Belongs to one
    event loop and one consumer. Errors of passing nature are survived; raised are CursorTooOld
    (events that were not told yet were trimmed, or lie behind a rollback; `error.oldest` works),
    Stale (what was watched is gone), PermissionDenied, and Unavailable if no node answers within
    the handle's deadline, after which one may ask again: nothing was lost.
    """

    def __init__(
        self,
        core: Core,
        options: Options,
        path: AnyPath,
        *,
        recursive: bool = True,
        since: int | None = None,
        types: Iterable[str | int] = (),
        window_bytes: int = WINDOW_BYTES,
        bookmark_s: float = 10.0,
    ) -> None:
        if not WATCH_WINDOW_BYTES_MIN <= window_bytes <= WINDOW_BYTES_MAX:
            message = f"a window of {window_bytes} bytes"
            hint = f"{WATCH_WINDOW_BYTES_MIN} to {WINDOW_BYTES_MAX}"
            raise InvalidArgument(message, hint=hint)
        if not BOOKMARK_MS_MIN <= bookmark_s * 1000 <= BOOKMARK_MS_MAX:
            message = f"a bookmark every {bookmark_s} s"
            hint = f"{BOOKMARK_MS_MIN / 1000:g} to {BOOKMARK_MS_MAX / 1000:g} s"
            raise InvalidArgument(message, hint=hint)
        self.cursor: int | None = since
        """Everything up to here was handed out; None until a watch that begins now is open."""
        self.behind = 0
        """Versions that the node had and had not told, by its last frame."""
        self.oldest = 0
        """The oldest cursor that works, by the last frame."""
        self._core = core
        self._options = options
        self._root: At = at(path)
        self._prefix = decode_name(join(components(path))).rstrip("/")
        self._recursive = recursive
        self._kinds = kinds_of(types)
        self._window_bytes = window_bytes
        self._bookmark_s = bookmark_s
        self._rng = random.Random()
        self._received = SINCE_NOW if since is None else since
        """Where another node goes on: all frames up to here have arrived."""
        self._frames: deque[tuple[WatchFrame, int]] = deque()
        self._next = 0
        """How many events of the first frame were handed out."""
        self._stream: _Stream | None = None
        self._wake: asyncio.Future[None] | None = None
        self._changes: deque[Change] = deque()
        self._closed = False

    # ------------------------------------------------------------ life

    async def open(self) -> Self:
        """Open the stream, unless it is open; from now on nothing is missed.

        Raises:
            NotFound, PermissionDenied, InvalidArgument, CursorTooOld, Stale, Unavailable.
        """
        if self._stream is None:
            await self._connect(None)
        return self

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the watch; who iterates comes to the end."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._notify()

    # ------------------------------------------------------------ taking

    def __aiter__(self) -> AsyncIterator[Change]:
        """Return itself."""
        return self

    async def __anext__(self) -> Change:
        """Return the next change; wait for it."""
        if not self._changes:
            self._changes.extend(await self.take(TAKE))
            if not self._changes:
                raise StopAsyncIteration
        change = self._changes.popleft()
        self.cursor = change.cursor
        return change

    @checked
    async def take(self, limit: int = TAKE, timeout_s: float | None = None) -> list[Change]:
        """Return the changes that are there, at most `limit`; wait for at least one.

        None are returned after `timeout_s`, or once the watch was closed. Errors: see the class.
        """
        loop = asyncio.get_running_loop()
        end = None if timeout_s is None else loop.time() + timeout_s
        while not self._closed:
            found = self._take_arrived(limit)
            if found:
                return found
            stream = self._stream
            if stream is None or stream.error is not None:
                await self._connect(stream)
                continue
            if not await self._wait(end):
                return []
        return []

    def _take_arrived(self, limit: int) -> list[Change]:
        found: list[Change] = []
        while self._frames and len(found) < limit:
            frame, size_bytes = self._frames[0]
            events = frame.events[self._next : self._next + limit - len(found)]
            found.extend([self._change(event) for event in events])
            self._next += len(events)
            if self._next < len(frame.events):
                self.cursor = events[-1].version
                break
            self._frames.popleft()
            self._next = 0
            self.cursor = frame.cursor
            if frame.events and self._stream is not None and self._stream.number:
                self._stream.connection.post(GrantWatch(self._stream.number, size_bytes))
        return found

    async def _wait(self, end: float | None) -> bool:
        """Wait until something arrived; False if the caller's time is over first.

        A node that sends not even bookmarks is given up.
        """
        loop = asyncio.get_running_loop()
        silence_s = max(SILENCE_MIN_S, SILENCE_BOOKMARKS * self._bookmark_s)
        silent_at = loop.time() + silence_s
        until = silent_at if end is None else min(end, silent_at)
        self._wake = loop.create_future()
        try:
            async with asyncio.timeout_at(until):
                await self._wake
        except TimeoutError:
            if until == end:
                return False
            stream = self._stream
            if stream is not None:
                message = f"{stream.connection.address} has told nothing for {silence_s:g} s"
                stream.error = Unavailable(message)
        finally:
            self._wake = None
        return True

    # ------------------------------------------------------------ arriving

    def arrived(self, stream: _Stream, body: ResponseBody | NokvError, size_bytes: int) -> None:
        """Take a frame, or the end, of a stream."""
        if stream is not self._stream:
            return
        if isinstance(body, WatchFrame):
            assert body.cursor >= self._received, "a node told events again"
            self._received = body.cursor
            self.behind = max(0, body.version - body.cursor)
            self.oldest = body.oldest
            if self._frames and not body.events and not self._frames[-1][0].events:
                self._frames.pop()  # only the newest bookmark counts
            self._frames.append((body, size_bytes))
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # ------------------------------------------------------------ connecting

    async def _connect(self, failed: _Stream | None) -> None:
        """Open a stream at some node, from where the last one was."""
        if failed is not None:
            assert failed.error is not None
            self._stream = None
            failed.close()
            if not isinstance(failed.error, _PASSING):
                self.close()
                raise failed.error
        self._core.check_open()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.deadline_s
        attempt = 0
        last: NokvError | None = None if failed is None else failed.error
        while True:
            for node in self._order(None if failed is None else failed.node):
                try:
                    await self._open_at(node, max(0.05, end - loop.time()))
                except _PASSING as error:
                    last = error
                else:
                    return
                if loop.time() >= end:
                    break
            attempt += 1
            failed = None
            pause = backoff_s(attempt, self._rng)
            if loop.time() + pause >= end:
                message = f"no node can be watched: {last.message if last else 'none is known'}"
                raise Unavailable(message)
            await asyncio.sleep(pause)

    def _order(self, failed: Node | None) -> list[Node]:
        """Return the nodes in the order to try them: any will do, the failed one last.

        The leader first: of an idle cluster's commits a follower hears up to 5 ms later.
        """
        if self._options.node is not None:
            return [self._options.node]
        router = self._core.router
        nodes = list(router.nodes)
        self._rng.shuffle(nodes)
        nodes.sort(
            key=lambda node: (node is failed, node.live is None, node.live is not router.leader)
        )
        return nodes

    async def _open_at(self, node: Node, timeout_s: float) -> None:
        timeout_s = min(timeout_s, READ_ATTEMPT_S)
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._core.router.connection(node)
        except TimeoutError:
            message = f"{node.address} could not be connected in time"
            raise Unavailable(message) from None
        # What follows the first answer may come before this task goes on.
        stream = self._stream = _Stream(self, node, connection)
        body = OpenWatch(
            self._core.caller,
            self._root,
            self._window_left(),
            self._recursive,
            self._kinds,
            self._received,
            round(self._bookmark_s * 1000),
        )
        try:
            stream.number, opened = await connection.open_stream(
                body, stream.take, timeout_s=timeout_s
            )
        except BaseException:
            self._stream = None
            raise
        if not isinstance(opened, WatchOpened):
            self._stream = None
            message = f"{node.address} answered a watch with {type(opened).__name__}"
            raise Unavailable(message)
        # By its number, not by its path, it is found again wherever it was moved to.
        self._root = At(opened.view, opened.inode)
        if self._received == SINCE_NOW:
            self._received = self.cursor = opened.cursor

    def _window_left(self) -> int:
        """Return the window of a new stream: what arrived on an old one still counts."""
        held_bytes = sum(size_bytes for frame, size_bytes in self._frames if frame.events)
        return max(WATCH_WINDOW_BYTES_MIN, self._window_bytes - held_bytes)

    # ------------------------------------------------------------ changes

    def _change(self, event: WatchEvent) -> Change:
        path: str | None
        if event.chain:
            path = self._path(event.directory, event.name or None, here=bool(event.names))
        else:
            # Of what is watched itself, or of an exchange with what lies outside.
            path = None if event.to_chain else self._prefix or "/"
        to_path = None
        if event.to_chain:
            to_path = self._path(event.to_directory, event.to_name, here=False)
        return Change(
            kind_name(event.kind),
            path,
            to_path,
            tuple([decode_name(name) for name in event.names]),
            event.inode,
            event.inode_view,
            event.size,
            event.generation,
            event.version,
            event.wall_ns,
            event,
        )

    def _path(self, directory: bytes | None, name: bytes | None, *, here: bool) -> str | None:
        """Return the path of a name in a directory, or with `here` of the directory itself."""
        if directory is None or (name is None and not here):
            return None
        base = f"{self._prefix}/{decode_name(directory)}" if directory else self._prefix
        return base or "/" if name is None else f"{base}/{decode_name(name)}"


@checked_methods
class SyncWatch:
    """The synchronous form of `Watch`: iterate over it, in a `with` block or without one."""

    def __init__(self, owner: Owner, watch: Watch) -> None:
        self._owner = owner
        self._watch = watch
        self._epoch = owner.epoch
        self._changes: deque[Change] = deque()
        self.cursor: int | None = watch.cursor
        """Everything up to here was handed out."""

    @property
    def behind(self) -> int:
        """Versions that the node had and had not told, by its last frame."""
        return self._watch.behind

    def open(self) -> Self:
        """As `Watch.open`."""
        self._owner.run(self._here().open())
        self.cursor = self._watch.cursor
        return self

    def take(self, limit: int = TAKE, timeout_s: float | None = None) -> list[Change]:
        """As `Watch.take`."""
        found = self._owner.run(self._here().take(limit, timeout_s))
        self.cursor = self._watch.cursor
        return found

    def close(self) -> None:
        """End the watch."""
        if self._epoch == self._owner.epoch and not self._owner.closed:
            self._owner.run(_close(self._watch))

    def _here(self) -> Watch:
        if self._epoch != self._owner.epoch:
            message = "the watch was opened before a fork"
            raise InvalidArgument(message, hint="watch again in this process, since its cursor")
        return self._watch

    def __enter__(self) -> Self:
        """Open it."""
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Change:
        """Return the next change; wait for it."""
        if not self._changes:
            self._changes.extend(self._owner.run(self._here().take(TAKE)))
            if not self._changes:
                raise StopIteration
        change = self._changes.popleft()
        self.cursor = change.cursor
        return change


async def _close(watch: Watch) -> None:
    watch.close()
