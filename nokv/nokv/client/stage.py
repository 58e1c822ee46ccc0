"""A staged tree or file: made out of sight, filled, and then swapped in or dropped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from nokv.client.core import Core
from nokv.client.options import expect
from nokv.client.session import Session
from nokv.errors import NokvError, SessionExpired
from nokv.types.commands import StageBegin, StageDrop
from nokv.types.results import Made, Result
from nokv.types.values import At


class Stage:
    """The root of what is staged. Name it among what the swap's command carries."""

    def __init__(self, core: Core, session: Session, root: At) -> None:
        self.session: Final = session
        self.root: Final = root
        self._core = core
        self._swap_open = False
        """The swap was sent and its outcome is not known."""
        self._swapped = False
        self._left = False
        """Nobody fills it or swaps it any more."""

    def sent(self) -> None:
        """Take note that the swap goes out now: until its outcome is known nothing is dropped."""
        self._swap_open = True

    def answered(self, outcome: Result | NokvError) -> None:
        """Take note of the swap's outcome."""
        self._swap_open = False
        self._swapped = isinstance(outcome, Result) and outcome.code == 0
        self._drop_if_left()

    def leave(self) -> None:
        """Be done with it: unless it is swapped in, or may be, it is dropped."""
        self._left = True
        self._drop_if_left()

    def _drop_if_left(self) -> None:
        if self._left and not self._swap_open and not self._swapped:
            self._core.undo(self.session, _drop(self.root))


@asynccontextmanager
async def staged(
    core: Core, session: Session, begin: StageBegin, deadline_s: float
) -> AsyncIterator[Stage]:
    """Stage something for the length of a block; what was not swapped in by then is dropped.

    So is what was made for a caller that did not wait for it; and if the outcome of the swap is
    open at the end of the block, that decides when it is known.

    Raises:
        SessionExpired: the session ended before; there is nothing to drop.
        NokvError: as `begin` failed.
    """
    begun = await core.acquire(session, begin, deadline_s, lambda made: _drop(_root(made)))
    if begun is None:
        message = f"session {session.id:x} ended before anything was staged"
        raise SessionExpired(message, hint="try again")
    stage = Stage(core, session, _root(begun))
    try:
        yield stage
    finally:
        stage.leave()


def _root(made: Result) -> At:
    attr = expect(made.value, Made).attr
    return At(attr.view, attr.inode)


def _drop(root: At) -> StageDrop:
    return StageDrop(root.view, root.inode)
