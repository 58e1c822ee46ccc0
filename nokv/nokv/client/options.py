"""How a call is made: where it reads, how fresh, and how long it may take."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from nokv.client.core import Core
from nokv.client.nodes import Node
from nokv.errors import Unavailable
from nokv.types.reads import PRESENT, Read, ReadValue
from nokv.wire.rpc import Consistency, Query

T = TypeVar("T")


class Options(NamedTuple):
    """The options of a client handle; a handle with other options shares everything else."""

    deadline_s: float
    """For one call."""
    at_version: int = PRESENT
    """A version that is pinned, or the present."""
    node: Node | None = None
    """Read from this node only; None: from whichever has the least to do."""
    consistency: int = Consistency.LINEARIZABLE
    max_stale_ms: int = 0
    """With Consistency.BOUNDED."""


async def query(core: Core, options: Options, read: Read) -> tuple[int, ReadValue]:
    """Return the version of the state that answered a read, and the answer.

    Raises:
        DeadlineExceeded, Unavailable: no node answered in time.
        NokvError: what the read itself answered.
    """
    reply = await core.router.query(
        Query(core.caller, read, options.consistency, options.max_stale_ms),
        options.deadline_s,
        options.node,
    )
    session = core.session_now
    if session is not None:
        session.floors.note(reply.version)
    return reply.version, reply.value


def expect(value: object, kind: type[T]) -> T:
    """Return `value`, which a correct node makes a `kind`.

    Raises:
        Unavailable: it is something else.
    """
    if not isinstance(value, kind):
        message = f"a node answered with {type(value).__name__} instead of {kind.__name__}"
        raise Unavailable(message)
    return value
