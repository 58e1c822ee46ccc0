"""The state machine under replication's `Machine` port, and what follows from an applied entry.

It knows whether an entry is half applied, bounds what the store's transaction holds, commits
exactly at a checkpoint and holds the next commit until the checkpoint was opened for reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from nokv.kv import errors as kv_errors
from nokv.kv.errors import StoreFailed
from nokv.kv.image import LmdbImageSink, LmdbImageSource
from nokv.kv.lmdb_store import DIRTY_BYTES_MAX, LmdbKV
from nokv.state.effects import (
    BackupReached,
    CheckpointReached,
    Effect,
    LockWaitOver,
    SessionDead,
    SessionLive,
)
from nokv.state.machine import StateMachine
from nokv.state.records import Counters, Origin, Position
from nokv.types.reads import GetVolume, VolumeReply
from nokv.types.values import Caller
from nokv_replication import Applied, ImageDamaged, ImageRefused, ImageSink, Skip, Times

DIRTY_CHECK_ENTRIES: Final = 8
"""The transaction's size is looked at every so many entries; one entry's writes are bounded."""


class Effects(Protocol):
    """Who acts on what entries did. Called between entries, inside a step."""

    def session_live(self, session: int, ttl_ns: int) -> None:
        """A session was opened, or its opening repeated."""
        ...

    def session_dead(self, session: int) -> None:
        """A session ended."""
        ...

    def lock_wait_over(self, session: int, ticket: int, granted: bool) -> None:  # noqa: FBT001
        """A request for a lock waits no more."""
        ...

    def checkpoint(self, number: int, applied_index: int, version: int) -> None:
        """Everything up to here, and nothing more, is committed."""
        ...

    def backup(self, backup: int, node: int) -> None:
        """A backup was made that a node is to read exactly here."""
        ...

    def state_replaced(self) -> None:
        """A state image took the place of the whole state."""
        ...

    def applied(self) -> None:
        """An entry was applied to its end; the state may be read."""
        ...


class PortSource:
    """One pass over an image of the store (`nokv_replication.ImageSource`)."""

    def __init__(self, source: LmdbImageSource) -> None:
        self._source = source
        self.applied: Final = applied_of(source.position, source.counters)
        self.size_bytes: Final = source.size_bytes

    def read(self) -> bytes:
        """Return the next piece, b"" after the last."""
        return self._source.read()

    def again(self) -> PortSource:
        """Return another pass over the same state."""
        return PortSource(self._source.again())

    def close(self) -> None:
        """Let go of the state."""
        self._source.close()


class PortSink:
    """An image on its way into a store beside the one in use (`nokv_replication.ImageSink`)."""

    def __init__(self, sink: LmdbImageSink, applied: Applied) -> None:
        self.path: Final = sink.path
        self._sink = sink
        self._applied = applied

    def write(self, piece: bytes) -> None:
        """Take the next piece. Raises ImageRefused."""
        with _refusing():
            self._sink.write(piece)

    def finish(self) -> None:
        """Verify the whole, also that it stands where it was offered. Raises ImageRefused."""
        with _refusing():
            header = self._sink.finish().header
        offered = (self._applied.index, self._applied.term)
        if (header.index, header.term) != offered:
            message = f"it stands at {(header.index, header.term)}, and was offered at {offered}"
            raise ImageDamaged(message)

    def abort(self) -> None:
        """Discard what was received."""
        self._sink.abort()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Tell what is wrong with an image, or with the store it goes to, as replication knows it."""
    try:
        yield
    except kv_errors.ImageDamaged as error:
        raise ImageDamaged(str(error)) from error
    except (kv_errors.ImageNewer, StoreFailed) as error:
        raise ImageRefused(str(error)) from error


def position_of(applied: Applied) -> Position:
    """Return replication's position as the state stores it; the times are in its counters."""
    skips = tuple((skip.index, skip.term, skip.crc) for skip in applied.skips)
    return Position(applied.index, applied.term, applied.config, skips)


def applied_of(position: Position, counters: Counters) -> Applied:
    """Return what the state stores as replication's position."""
    times = Times(counters.wall_ns, counters.cluster_ns)
    skips = tuple(Skip(*skip) for skip in position.skips)
    return Applied(position.index, position.term, position.config, times, skips)


class MachinePort:
    """`nokv_replication.Machine` over a `StateMachine` and its LMDB store."""

    def __init__(self, machine: StateMachine, kv: LmdbKV) -> None:
        self.machine: Final = machine
        self.kv: Final = kv
        self.effects: Effects | None = None
        self.between_entries = True
        """Whether the state may be read."""
        self.hold_until: Callable[[], bool] | None = None
        """While it returns True no commit is made: a checkpoint waits to be opened."""
        self.volume: VolumeReply | None = None
        """The volume record, once it exists; it never changes."""
        self.origin: Origin | None = None
        """Where a restored volume came from; looked at anew whenever it changes."""
        self.commits = 0
        self._durable_index = machine.applied().index
        self._entries = 0
        self._look_for_volume()

    def open(self) -> Applied:
        """Return the position of the last commit."""
        return applied_of(self.machine.applied(), self.machine.counters)

    def apply(self, applied: Applied, times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        """Apply one entry as a stepper; its effects follow when it ends."""
        self.between_entries = False
        position = position_of(applied)
        yield from self.machine.apply(position, times.wall_ns, times.cluster_ns, payloads)
        self.between_entries = True
        self._entries += 1
        self._act(self.machine.take_effects())
        if self.effects is not None:
            self.effects.applied()
        if self.volume is None or (self.origin is not None and not self.origin.adopted):
            self._look_for_volume()
        if not self._entries % DIRTY_CHECK_ENTRIES and self.kv.dirty_bytes >= DIRTY_BYTES_MAX:
            self.hold_until = None
            self.commit()

    def _act(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, CheckpointReached):
                self._checkpoint(effect.number)
            elif self.effects is None:
                continue
            elif isinstance(effect, BackupReached):
                self.effects.backup(effect.backup, effect.node)
            elif isinstance(effect, SessionLive):
                self.effects.session_live(effect.session, effect.ttl_ns)
            elif isinstance(effect, LockWaitOver):
                self.effects.lock_wait_over(effect.session, effect.ticket, effect.granted)
            else:
                assert isinstance(effect, SessionDead)
                self.effects.session_dead(effect.session)

    def _checkpoint(self, number: int) -> None:
        self.hold_until = None
        index = self.commit()
        if self.effects is not None:
            self.effects.checkpoint(number, index, self.machine.version)

    def commit(self) -> int:
        """Make the state durable, unless a checkpoint holds it; return the index it stands at."""
        if self.hold_until is not None:
            if self.hold_until():
                return self._durable_index
            self.hold_until = None
        self._durable_index = self.machine.commit()
        self.commits += 1
        return self._durable_index

    def fingerprint(self) -> bytes:
        """Return the running hash of all results."""
        return self.machine.fingerprint()

    def digest(self) -> bytes:
        """Refuse: here the worker digests a checkpoint from its own process."""
        raise AssertionError("only the simulator digests inside a replica")

    def image(self) -> PortSource:
        """Return the state as of the last commit, held until it is closed."""
        return PortSource(LmdbImageSource(self.kv.open_reader()))

    def receive(self, applied: Applied) -> PortSink:
        """Prepare a store beside the one in use. Raises ImageRefused."""
        with _refusing():
            return PortSink(LmdbImageSink(self.kv.incoming), applied)

    def install(self, sink: ImageSink) -> Applied:
        """Put the received store in the place of the one in use, and look at it anew."""
        assert isinstance(sink, PortSink)
        assert self.between_entries
        self.hold_until = None
        self.kv.replace(sink.path)
        self.machine.reload()
        self._durable_index = self.machine.applied().index
        self._look_for_volume()
        if self.effects is not None:
            self.effects.state_replaced()
        return self.open()

    def _look_for_volume(self) -> None:
        self.origin = self.machine.origin()
        if self.machine.initialised():
            _, value = self.machine.read(Caller(), GetVolume())
            assert isinstance(value, VolumeReply)
            self.volume = value
