"""One body on its way: uploaded under a number of its own, then named by exactly one publish."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from nokv.client.core import Core
from nokv.client.options import expect
from nokv.client.session import Session
from nokv.errors import NokvError, from_wire
from nokv.objects.source import SourceLike
from nokv.objects.upload import Progress, UploadAttempt, UploadedBody
from nokv.types.commands import TIME_NOW, Op, Predicate, Publish, PublishMode
from nokv.types.limits import CHUNK_BYTES
from nokv.types.results import Published, Result
from nokv.types.values import At, ChunkMap, Extent


class FileInfo(NamedTuple):
    """What a publish made of one file."""

    generation: int
    """The version of the command that published the body."""
    sha256: str
    """Of the body, in hex; empty where the publish wrote a part of the file only."""
    size: int
    """Bytes published."""
    inode: int
    offset: int = 0
    """Where an append went."""


class BodyUpload:
    """A body between its first byte and the answer to its publish.

    The upload number, once there is one, is in flight until then, or until `release` if the publish
    is not sent.
    """

    def __init__(self, core: Core, session: Session) -> None:
        self.session: Final = session
        self.body: UploadedBody | None = None
        """Set by a successful `upload`."""
        self._core = core
        self._attempt: UploadAttempt | None = None
        self._number = 0
        self._outcome_open = False
        """A publish was sent and its outcome is not known."""
        self._released = False
        self._settled = False

    @property
    def number(self) -> int:
        """The upload number to publish; 0 while nothing is stored as an object."""
        return self._number

    async def _lease(self) -> int:
        self._number = await self.session.take_upload()
        return self._number

    async def upload(
        self,
        source: SourceLike,
        *,
        offset: int = 0,
        inline: bool = True,
        sha256: bool = True,
        before: os.stat_result | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Store a body, or the bytes of a patch that begins at `offset`.

        Raises:
            UploadFailed, SourceChanged, FileTooLarge, InvalidArgument, OSError: nothing is left.
            SessionExpired: the session was over before a block could be stored.
        """
        assert self.body is None
        self.session.check()
        if inline and isinstance(source, bytes) and len(source) <= self._core.volume.inline_max:
            small = _inline_body(source, offset, sha256=sha256)
            if small is not None:
                self.body = small
                if progress is not None:
                    progress(small.length)
                return
        uploader = await self._core.uploader(self.session)
        self._attempt = uploader.attempt(self._lease)
        try:
            self.body = await self._attempt.upload(
                source,
                offset=offset,
                inline_max=self._core.volume.inline_max if inline else 0,
                sha256=sha256,
                before=before,
                progress=progress,
            )
        except BaseException:
            self.give_up()
            raise

    def op(
        self,
        parent: At,
        name: bytes,
        mode: PublishMode,
        *,
        file_mode: int = 0o644,
        size: int | None = None,
        if_generation: int = 0,
        mtime_ns: int = TIME_NOW,
    ) -> Publish:
        """Return the command that publishes this body; `size` as in `Publish`, else its length."""
        assert self.body is not None, "a body is uploaded before it is published"
        whole = mode not in {PublishMode.PATCH, PublishMode.APPEND, PublishMode.FOLD}
        return Publish(
            parent,
            name,
            int(mode),
            file_mode,
            self.body.length if size is None else size,
            self._number,
            self.body.chunks,
            if_generation,
            self.body.sha256 if whole else b"",
            mtime_ns,
        )

    def sent(self) -> None:
        """Take note that the publish goes out now: nothing is deleted here any more."""
        self._outcome_open = True
        if self._attempt is not None:
            self._attempt.publish_sent = True

    def answered(self, outcome: Result | NokvError) -> None:
        """Take note of the publish's outcome; after a failure it may be sent again, changed."""
        self._outcome_open = False
        if self._released or (isinstance(outcome, Result) and outcome.code == 0):
            self._settle()

    async def release(self) -> None:
        """Be done with it: delete what was stored, unless the publish was ever sent.

        As `give_up`, and waits; a cancellation ends the waiting only.
        """
        ending = self.give_up()
        if ending is not None:
            await asyncio.shield(ending)

    def give_up(self) -> asyncio.Future[tuple[str, ...]] | None:
        """Be done with it; return what deletes the rest of it, if that takes time.

        This or `release` must be called in the end, whatever happened; then the number is in flight
        only as long as the outcome of a publish is open, or a put may still be on its way.
        """
        self._released = True
        if self._outcome_open or self._settled:
            return None
        ending = None
        if self._attempt is not None and not self._attempt.publish_sent:
            ending = self._attempt.give_up()
        if ending is None or ending.done():
            self._settle()
            return None
        ending.add_done_callback(lambda _: self._settle())
        return ending

    def _settle(self) -> None:
        if self._number and not self._settled:
            self.session.uploads.settled(self._number)
        self._settled = True


def _inline_body(data: bytes, offset: int, *, sha256: bool) -> UploadedBody | None:
    """Return the map of a small body in one chunk, without any object; None where it has two."""
    chunk, within = divmod(offset, CHUNK_BYTES)
    if within + len(data) > CHUNK_BYTES:
        return None
    digest = hashlib.sha256(data).digest() if sha256 else b""
    if not data:
        return UploadedBody(0, digest, ())
    extent = Extent(within, len(data), data=data)
    return UploadedBody(len(data), digest, (ChunkMap(chunk, (), (extent,)),))


async def begin_upload(core: Core, deadline_s: float) -> BodyUpload:
    """Return a new upload in the present session.

    Raises:
        Unavailable, DeadlineExceeded: no session could be opened.
    """
    core.check_open()
    return BodyUpload(core, await core.session(deadline_s))


class Carried(Protocol):
    """What hangs on the outcome of one command: an upload, a staged tree."""

    @property
    def session(self) -> Session:
        """Whose it is."""
        ...

    def sent(self) -> None:
        """Take note that the command goes out now."""
        ...

    def answered(self, outcome: Result | NokvError) -> None:
        """Take note of its outcome, which comes once, even if nobody waits any more."""
        ...


async def propose_uploads(
    core: Core,
    session: Session,
    op: Op,
    carried: Sequence[Carried],
    predicates: tuple[Predicate, ...],
    deadline_s: float,
) -> Result:
    """Send the command that publishes what it carries and return its result, a failed one too.

    Raises:
        TooLarge: the command passes its limit; it was not sent.
        SessionExpired: the session ended first; the command was not applied and never will be.
        DeadlineExceeded: it may yet be applied, and goes on being asked for.
        NokvError: the refusal of every attempt.
    """
    assert all(one.session is session for one in carried), "one session, its own uploads"
    await core.fault_point("publish")
    stream = session.stream
    if stream.full:
        await stream.room(deadline_s)

    def settled(outcome: Result | NokvError) -> None:
        for one in carried:
            one.answered(outcome)

    answer = stream.submit(op, timeout_s=deadline_s, predicates=predicates, on_settled=settled)
    for one in carried:
        one.sent()
    try:
        await core.fault_point("sent")
    except BaseException:
        answer.cancel()
        raise
    return await answer


def file_info(upload: BodyUpload, result: Result) -> FileInfo:
    """Return what a successful publish made of an upload."""
    assert upload.body is not None
    value = expect(result.value, Published)
    sha256 = upload.body.sha256.hex()
    return FileInfo(value.generation, sha256, upload.body.length, value.inode, value.offset)


def checked(result: Result) -> Result:
    """Return a result that succeeded.

    Raises:
        NokvError: the error that it holds.
    """
    if result.code:
        raise from_wire(result.code, result.message, result.hint)
    return result
