"""A client whose inside can be reached, for faults at named points and for evidence afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from nokv.client.connect import addresses_of
from nokv.client.core import ClientConfig, Core, own_caller
from nokv.client.fs import AsyncClient
from nokv.client.options import Options
from nokv.client.routing import Router
from nokv.errors import NokvError, Unavailable
from nokv.types.commands import Command
from nokv.types.results import Result
from nokv.wire.codec import decode_command, result_codec
from nokv.wire.rpc import Propose, ResultsReply, Status, StatusReply
from nokv.wire.tls import connect_context

LOOP_TURNS: Final = 16
"""More turns of the event loop than a command takes from its submission to its socket."""


class Sent(NamedTuple):
    """A command that was sent."""

    data: bytes
    command: Command


class Harness:
    """A client with its parts."""

    def __init__(self, core: Core) -> None:
        self.core: Final = core
        self.fs: Final = AsyncClient(core, Options(core.config.deadline_s))

    async def newest_command(self) -> Sent:
        """Return the newest command of the session that has no outcome.

        Called at the fault point `sent`, that is the command which was just sent.
        """
        session = self.core.session_now
        assert session is not None, "something was sent"
        data = session.stream.open_commands()[-1]
        return Sent(data, decode_command(data))

    async def leader_status(self) -> StatusReply | None:
        """Return the leader's status, asked after everything that was submitted before; or None.

        A connection is answered in order of its frames, so the leader has proposed by then what
        was submitted before.
        """
        for _ in range(LOOP_TURNS):
            await asyncio.sleep(0)
        connection = self.core.router.leader
        if connection is None:
            return None
        try:
            reply = await connection.call(Status(), timeout_s=1.0)
        except NokvError:
            return None
        return reply if isinstance(reply, StatusReply) and reply.role == "leader" else None

    async def send_again(self, data: bytes) -> Result:
        """Send an encoded command once more to the leader, as a client that lost the answer does.

        Raises:
            Unavailable: no leader answered.
        """
        connection = await self.core.router.find_leader(10.0)
        reply = await connection.call(Propose((data,)), timeout_s=10.0)
        if not isinstance(reply, ResultsReply) or reply.outcomes[0].error is not None:
            message = f"a retry was answered with {reply}"
            raise Unavailable(message)
        return result_codec.decode(reply.outcomes[0].result)


@asynccontextmanager
async def harness(
    cluster: str,
    *,
    config: ClientConfig | None = None,
    fault_point: Callable[[str], Awaitable[None]] | None = None,
) -> AsyncIterator[Harness]:
    """Connect a client for the length of a block."""
    config = config or ClientConfig()
    router = Router(addresses_of(cluster), agent=config.agent, tls=connect_context())
    core = Core(router, config, own_caller(), fault_point=fault_point)
    try:
        await core.start()
        yield Harness(core)
    finally:
        await core.close()
