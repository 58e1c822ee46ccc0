"""How a call is made: where it reads, how fresh, and how long it may take."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from nokv.client.core import Core
from nokv.client.nodes import Node
from nokv.errors import NotFound, SnapshotGone, Unavailable, VersionNotPinned
from nokv.types.reads import PRESENT, Read, ReadValue
from nokv.types.views import GetSnapshot, SnapshotReply
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
    snapshot: str = ""
    """The snapshot that `at_version` is of."""


async def query(core: Core, options: Options, read: Read) -> tuple[int, ReadValue]:
    """Return the version of the state that answered a read, and the answer.

    Raises:
        DeadlineExceeded, Unavailable: no node answered in time, or the client is closed.
        SnapshotGone: the snapshot that is read was deleted, or its lease ended.
        NokvError: what the read itself answered.
    """
    core.check_open()
    try:
        reply = await core.router.query(
            Query(core.caller, read, options.consistency, options.max_stale_ms),
            options.deadline_s,
            options.node,
        )
    except VersionNotPinned as error:
        if not options.snapshot:
            raise
        if options.consistency == Consistency.LINEARIZABLE:
            raise await _out_of_snapshot(core, options) from error
        # The node may not have seen the snapshot's making yet; what it shows is the same anywhere.
        return await query(core, options._replace(consistency=Consistency.LINEARIZABLE), read)
    session = core.session_now
    if session is not None:
        session.floors.note(reply.version)
    return reply.version, reply.value


async def find_snapshot(core: Core, options: Options, name: str) -> SnapshotReply:
    """Return a snapshot as it stands, linearizably.

    Raises:
        NotFound: there is none of that name, or its lease is over.
    """
    reply = await core.router.query(Query(core.caller, GetSnapshot(name)), options.deadline_s)
    return expect(reply.value, SnapshotReply)


async def _out_of_snapshot(core: Core, options: Options) -> VersionNotPinned:
    """Return why a read at a snapshot met something that nothing holds at its version."""
    name = options.snapshot
    try:
        gone = (await find_snapshot(core, options, name)).version != options.at_version
    except NotFound:
        gone = True
    if gone:
        message = f"snapshot {name!r} was deleted, or its lease ended, while it was read"
        hint = "hold what takes long to read: nokv snapshot create --hold, or renew its lease"
        return SnapshotGone(message, hint=hint)
    message = f"the path leads out of what snapshot {name!r} shows"
    return VersionNotPinned(message, hint="a link in it points elsewhere: read that at the present")


def expect(value: object, kind: type[T]) -> T:
    """Return `value`, which a correct node makes a `kind`.

    Raises:
        Unavailable: it is something else.
    """
    if not isinstance(value, kind):
        message = f"a node answered with {type(value).__name__} instead of {kind.__name__}"
        raise Unavailable(message)
    return value
