"""A shard without replication: a real state machine in memory whose log is this object."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from nokv.errors import from_wire
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.records import Position
from nokv.types.commands import (
    COMMAND_FORMAT,
    Command,
    InitVolume,
    LeaseUploads,
    Op,
    OpenSession,
    Publish,
    PublishMode,
)
from nokv.types.reads import Read, ReadValue
from nokv.types.results import Leased, Result, SessionOpened
from nokv.types.values import At, Caller, ChunkMap, Extent, ObjectPart, Volume
from nokv.wire.codec import encode_command, result_codec
from nokv_replication import Committed, NotLeader, Outcome

S = 1_000_000_000
VOLUME = "ab" * 16
V = TypeVar("V")


class LocalShard:
    """Applies what is proposed at once, or when told; its clocks are `now_ns` and `wall_ns`."""

    def __init__(self, *, initialise: bool = True) -> None:
        self.machine = StateMachine(MemoryKV())
        self.now_ns = 0
        self.wall_ns = 0
        self.index = 0
        self.held: list[tuple[bytes, Callable[[Outcome], None]]] | None = None
        """Proposals that wait for `release` or `refuse`; None: they are applied at once."""
        self.applied: list[Op] = []
        self.seqs: dict[int, int] = {}
        if initialise:
            self.do(InitVolume(Volume(VOLUME, "memory"), 1))

    def cluster_ns(self) -> int:
        return self.now_ns

    def propose(self, payload: bytes, done: Callable[[Outcome], None]) -> None:
        if self.held is None:
            done(Committed(self.index + 1, self.apply(payload)))
        else:
            self.held.append((payload, done))

    def release(self) -> None:
        held, self.held = self.held, None
        for payload, done in held or []:
            self.propose(payload, done)

    def refuse(self) -> None:
        held, self.held = self.held, []
        for _, done in held or []:
            done(NotLeader(None))

    def apply(self, payload: bytes) -> bytes:
        from nokv.wire.codec import decode_command

        self.applied.append(decode_command(payload).op)
        self.index += 1
        (result,) = self.machine.apply(
            Position(self.index, 1, b""), self.wall_ns, self.now_ns, [payload]
        )
        return result

    def do(self, op: Op, session: int = 0) -> Result:
        """Run one command; raise its error."""
        seq = self.seqs[session] = self.seqs.get(session, 0) + 1 if session else 0
        command = Command(COMMAND_FORMAT, session, seq, max(0, seq - 1), Caller(), op)
        result = result_codec.decode(self.apply(encode_command(command)))
        if result.code:
            raise from_wire(result.code, result.message, result.hint)
        return result

    def open_session(self, ttl_ns: int = 10 * S) -> int:
        value = self.do(OpenSession(os.urandom(16), ttl_ns)).value
        assert isinstance(value, SessionOpened)
        return value.session

    def lease(self, session: int, count: int = 1) -> int:
        value = self.do(LeaseUploads(count), session).value
        assert isinstance(value, Leased)
        return value.first

    def publish(self, session: int, upload: int, name: bytes, length: int = 10) -> Result:
        part = ObjectPart(0, 0, 0, length, bytes(8))
        chunk = ChunkMap(0, (part,), (Extent(0, length, 0),))
        op = Publish(At(), name, PublishMode.REPLACE, 0o644, length, upload, (chunk,))
        return self.do(op, session)

    # The collector's node.

    async def read(self, request: Read, kind: type[V]) -> V:
        _, value = self.machine.read(Caller(), request)
        found: ReadValue = value
        assert isinstance(found, kind)
        return found

    async def run(self, op: Op) -> Result:
        return self.do(op)
