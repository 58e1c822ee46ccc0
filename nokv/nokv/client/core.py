"""What all parts of one client share: the router, the session, the object store and its bounds."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from typing import Final, TypeVar

from nokv.client.arguments import check
from nokv.client.calls import Settled
from nokv.client.guard import GuardedStore
from nokv.client.routing import Router
from nokv.client.session import Session
from nokv.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NokvError,
    SessionExpired,
    Unavailable,
    from_wire,
)
from nokv.objects.budget import ByteBudget
from nokv.objects.cache import BlockCache
from nokv.objects.open import open_store
from nokv.objects.port import OBJECT_BYTES_MAX, ObjectStore
from nokv.objects.read import Reader
from nokv.objects.upload import Uploader
from nokv.objects.volume import await_volume
from nokv.types.commands import Op, Predicate
from nokv.types.limits import GROUPS_MAX, SESSION_TTL_NS_DEFAULT
from nokv.types.reads import Read, ReadValue, VolumeReply
from nokv.types.results import Result
from nokv.types.values import Caller
from nokv.wire.rpc import Query

log = logging.getLogger("nokv.client")

T = TypeVar("T")

MIB: Final = 1024 * 1024
RETIRED_SETTLE_S: Final = 600.0
"""A session that is over asks so long for the outcomes that are still open."""

RETIRED_MAX: Final = 16
"""Sessions that are over and still ask; the oldest is given up for a further one."""

CLAIM_S: Final = 10.0
"""A new cluster's worker marks the object store in its first seconds: a client waits so long."""

SHARD: Final = 0

FaultPoint = Callable[[str], Awaitable[None]]
"""Called, and waited for, at named points: a test or a demonstration holds or fails them there.

- `upload`: before the first object of a publish is uploaded,
- `uploaded`: after each file's objects are stored,
- `publish`: all is uploaded, before the command that makes it visible is sent,
- `sent`: that command was handed to the connection and its answer has not been looked at.
"""


async def _no_fault(point: str) -> None:
    """Hold nothing up."""
    del point


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The bounds and defaults of one client. Times are seconds, sizes bytes."""

    deadline_s: float = 30.0
    """For each call that names none; uploads and downloads of bodies have no deadline of their
    own, only their metadata calls and each object operation do."""
    session_ttl_s: float = SESSION_TTL_NS_DEFAULT / 1e9
    upload_bytes: int = 128 * MIB
    """Read from sources and not yet stored, of all uploads."""
    read_bytes: int = 128 * MIB
    """Being fetched, of all reads."""
    cache_bytes: int = 64 * MIB
    """Verified sub-blocks kept for further reads."""
    parallel: int = 16
    """Object operations of each kind in flight, and files published side by side."""
    agent: str = field(default_factory=lambda: f"nokv-python/{socket.gethostname()}:{os.getpid()}")

    def __post_init__(self) -> None:
        for one in fields(self):
            check("ClientConfig", one.name, str(one.type), getattr(self, one.name))
        if not 0 < self.deadline_s < 1e6:
            message = f"a deadline of {self.deadline_s} s"
            raise InvalidArgument(message, hint="give seconds, more than 0")
        if self.parallel < 1:
            message = f"{self.parallel} operations at a time"
            raise InvalidArgument(message)
        for name in ("upload_bytes", "read_bytes"):
            if getattr(self, name) < OBJECT_BYTES_MAX:
                message = f"{name} of {getattr(self, name)}"
                raise InvalidArgument(message, hint=f"an object has up to {OBJECT_BYTES_MAX} bytes")


def own_caller() -> Caller:
    """Return who this process is: its user, group and supplementary groups."""
    groups = tuple(group for group in os.getgroups() if group != os.getgid())
    return Caller(os.geteuid(), os.getegid(), groups[:GROUPS_MAX])


class Core:
    """Shared by all handles of one client. Belongs to one event loop.

    Args:
        router: not yet started.
        config: bounds.
        caller: on whose behalf everything runs.
        store: the object store; None makes it from what the volume says.
        fault_point: see `FaultPoint`.
        rng: for jitter.
    """

    def __init__(
        self,
        router: Router,
        config: ClientConfig,
        caller: Caller,
        *,
        store: ObjectStore | None = None,
        fault_point: FaultPoint | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.router: Final = router
        self.config: Final = config
        self.caller: Final = caller
        self.fault_point: Final = fault_point or _no_fault
        self.session_now: Session | None = None
        """The session, if one was opened; it may be over."""
        self._given_store = store
        self._store: ObjectStore | None = None
        self._reader: Reader | None = None
        self._uploader: Uploader | None = None
        self._upload_budget = ByteBudget(config.upload_bytes)
        self._rng = rng or random.Random()
        self._opening = asyncio.Lock()
        self._preparing = asyncio.Lock()
        self._retired: dict[Session, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[object]] = set()
        self._closed = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Find the cluster."""
        await self.router.start(self.config.deadline_s)

    async def close(self) -> None:
        """End everything; background work gets a moment to end by itself."""
        self._closed = True
        if self._background:
            await asyncio.wait(set(self._background), timeout=5.0)
        for task in [*self._background, *self._retired.values()]:
            task.cancel()
        await asyncio.gather(*self._background, *self._retired.values(), return_exceptions=True)
        if self._uploader is not None:
            await self._uploader.close()
        for session in list(self._retired):
            await session.stream.close()
        if self.session_now is not None:
            await self.session_now.close()
        await self.router.close()
        if self._store is not None and self._given_store is None:
            await self._store.close()

    def spawn(self, work: Awaitable[object]) -> asyncio.Task[object]:
        """Run `work` to its end even if whoever asked for it is gone."""
        task: asyncio.Task[object] = asyncio.ensure_future(_awaited(work))
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("background work failed: %s", error)

    def check_open(self) -> None:
        """Return unless the client was closed.

        Raises:
            Unavailable: it was.
        """
        if self._closed:
            message = "the client is closed"
            raise Unavailable(message, hint="connect again")

    # ------------------------------------------------------------ session

    async def session(self, deadline_s: float) -> Session:
        """Return a session that is valid now; open one if there is none.

        Raises:
            Unavailable, DeadlineExceeded: no leader answered in time.
        """
        session = self.session_now
        if session is not None and session.valid:
            return session
        self.check_open()
        try:
            async with asyncio.timeout(deadline_s):
                await self._opening.acquire()
        except TimeoutError:
            message = f"no session was opened within {deadline_s:g} s"
            raise DeadlineExceeded(message) from None
        try:
            session = self.session_now
            if session is not None and session.valid:
                return session
            if session is not None:
                self.session_now = None
                self._retire(session)
            opened = await Session.open(
                self.router,
                ttl_ns=int(self.config.session_ttl_s * 1e9),
                caller=self.caller,
                timeout_s=deadline_s,
                rng=self._rng,
            )
            self.session_now = opened
            return opened
        finally:
            self._opening.release()

    def _retire(self, session: Session) -> None:
        if self._uploader is not None:
            self.spawn(self._uploader.close())
            self._uploader = None
        while len(self._retired) >= RETIRED_MAX:
            oldest, task = next(iter(self._retired.items()))
            del self._retired[oldest]
            task.cancel()
            self.spawn(oldest.stream.close())
        task = asyncio.get_running_loop().create_task(session.retire(RETIRED_SETTLE_S))
        self._retired[session] = task
        task.add_done_callback(lambda _: self._retired.pop(session, None))

    async def propose(self, op: Op, predicates: tuple[Predicate, ...], timeout_s: float) -> Result:
        """Run a command and return its successful result.

        A command of a session that ended before it was applied certainly had no effect; it is run
        once more, in a new session.

        Raises:
            NokvError: as the command failed.
        """
        session = self.session_now
        if session is None or not session.valid:
            session = await self.session(timeout_s)
        result = await self.submit(session, op, predicates, timeout_s)
        if result is not None:
            return result
        return await self._propose_again(op, predicates, timeout_s)

    async def submit(
        self,
        session: Session,
        op: Op,
        predicates: tuple[Predicate, ...],
        timeout_s: float,
        on_settled: Settled | None = None,
    ) -> Result | None:
        """Run a command in `session`; None: the session ended and it was never applied."""
        stream = session.stream
        if stream.full:
            await stream.room(timeout_s)
        try:
            result = await stream.submit(
                op, timeout_s=timeout_s, predicates=predicates, on_settled=on_settled
            )
        except SessionExpired:
            return None
        if result.code:
            raise from_wire(result.code, result.message, result.hint)
        return result

    async def acquire(
        self, session: Session, op: Op, timeout_s: float, undo: Callable[[Result], Op]
    ) -> Result | None:
        """Run a command that makes something of the session's, which its caller has to end.

        If the caller is cancelled, or its time is over, before it learns of a success, what
        `undo` makes of the result is sent instead. Returns and raises as `submit`.
        """
        made: Result | None = None
        left = False

        def settled(outcome: Result | NokvError) -> None:
            nonlocal made
            if isinstance(outcome, Result) and outcome.code == 0:
                made = outcome
                if left:
                    self.undo(session, undo(made))

        try:
            return await self.submit(session, op, (), timeout_s, settled)
        except BaseException:
            left = True
            if made is not None:
                self.undo(session, undo(made))
            raise

    def undo(self, session: Session, op: Op) -> asyncio.Task[object] | None:
        """Send what ends something of the session's, whoever waits, as long as the session lives.

        None: the client is being closed, and everything of the session ends with it.
        """
        if self._closed:
            return None
        return self.spawn(self.submit(session, op, (), session.ttl_ns / 1e9))

    async def _propose_again(
        self, op: Op, predicates: tuple[Predicate, ...], timeout_s: float
    ) -> Result:
        session = await self.session(timeout_s)
        result = await self.submit(session, op, predicates, timeout_s)
        if result is None:
            message = "the session ended twice before the command was applied"
            raise SessionExpired(message)
        return result

    # ------------------------------------------------------------ bodies

    @property
    def volume(self) -> VolumeReply:
        """The volume record."""
        assert self.router.volume is not None, "the router has started"
        return self.router.volume

    async def read(self, request: Read) -> ReadValue:
        """Read the present state, linearizably. Raises NokvError as the read failed."""
        query = Query(self.caller, request)
        return (await self.router.query(query, self.config.deadline_s)).value

    async def object_store(self) -> ObjectStore:
        """Return the volume's object store. Raises ForeignVolume, ObjectStoreError."""
        return await self._open_store()

    async def _open_store(self) -> ObjectStore:
        if self._store is None:
            async with self._preparing:
                if self._store is None:
                    given = self._given_store
                    store = given or open_store(self.volume)
                    try:
                        patience_s = CLAIM_S if given is None else 0.0
                        await await_volume(store, self.volume.volume, patience_s)
                    except BaseException:
                        if self._given_store is None:
                            await store.close()
                        raise
                    self._store = store
        return self._store

    async def reader(self) -> Reader:
        """Return what reads bodies.

        Raises:
            ForeignVolume: the store is another volume's.
            ObjectStoreError: the store can't be used.
        """
        if self._reader is None:
            store = await self._open_store()
            config = self.config
            self._reader = self._reader or Reader(
                store,
                volume=self.volume.volume,
                shard=SHARD,
                parallel=config.parallel,
                budget=ByteBudget(config.read_bytes),
                cache=BlockCache(config.cache_bytes),
            )
        return self._reader

    async def uploader(self, session: Session) -> Uploader:
        """Return what uploads bodies for `session`, which must be the present one.

        Raises:
            SessionExpired: it is not any more.
            Unavailable: the client was closed.
            ForeignVolume, ObjectStoreError: as `reader`.
        """
        store = await self._open_store()
        self.check_open()
        if session is not self.session_now:
            message = f"session {session.id:x} is over"
            raise SessionExpired(message)
        if self._uploader is None or self._uploader.session != session.id:
            self._uploader = Uploader(
                GuardedStore(store, session),
                volume=self.volume.volume,
                shard=SHARD,
                session=session.id,
                parallel=self.config.parallel,
                budget=self._upload_budget,
            )
        return self._uploader


async def _awaited(work: Awaitable[T]) -> T:
    return await work
