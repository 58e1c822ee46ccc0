"""The state machine of one shard: `apply(entry) -> results`, a pure function of (state, entry).

No clock, no random, no IO but the KV port. The driver pulls one result per command from the
iterator that `apply` returns; until it is exhausted there is no read, no commit and no digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import islice

import msgspec
import xxhash

from nokv.errors import (
    Internal,
    InvalidArgument,
    NokvError,
    SequenceReused,
    SessionExpired,
    TooLarge,
    UnknownSession,
    WindowFull,
)
from nokv.state import dispatch, flatten, keys, ops_backup, reads, snapshots
from nokv.state.context import Context, chain, name_in
from nokv.state.effects import BackupReached, Effect
from nokv.state.families import Family
from nokv.state.port import KV, StoreDamaged, StoreFailed
from nokv.state.predicates import check_predicates
from nokv.state.reads_trash import is_due
from nokv.state.records import (
    Counters,
    EventRecord,
    Origin,
    Position,
    Session,
    StoredEvent,
    View,
    decode_counters,
    decode_format,
    decode_position,
    decode_session,
    decode_view,
)
from nokv.state.txn import Txn
from nokv.state.watching import decode_age
from nokv.types.commands import Atomic, Command, RaiseFormat
from nokv.types.formats import STATE_FORMAT
from nokv.types.limits import ATOMIC_MAX, RESULT_WINDOW
from nokv.types.reads import Read, ReadValue
from nokv.types.results import AtomicDone, InnerValue, ResultValue
from nokv.types.values import Caller, Marks
from nokv.wire.codec import decode_command, encode_failure, encode_success

_SESSION = Family.SESSION
_META = Family.META
_UNSTORED = (UnknownSession, SessionExpired, SequenceReused, WindowFull)
"""Refusals about the session itself: no row keeps them (docs/namespace.md: sessions)."""
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding raises. Commands are decoded before: here it can only be a record of the store."""


class Incompatible(Exception):
    """State or log hold what this build can't read: the node stops before it touches them."""


def check_format(number: int, what: str) -> None:
    """Raise Incompatible if `what` is of a state format that this build does not know."""
    if number > STATE_FORMAT:
        message = (
            f"{what} is of state format {number}, and this build knows formats up to"
            f" {STATE_FORMAT}: upgrade this node to the build of the other members"
        )
        raise Incompatible(message)


class StateMachine:
    """One shard's state over a KV. Not thread-safe; its owner is one step loop."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.reload()

    def reload(self) -> None:
        """Look at the store anew: another state took the place of its content.

        Everything that was read of the old one, and the effects not yet taken, are forgotten.
        """
        kv = self._kv
        row = kv.get(_META, keys.COUNTERS)
        at = kv.get(_META, keys.POSITION)
        try:
            if row is not None:
                check_format(decode_format(row), "the state")
            self._counters = Counters() if row is None else decode_counters(row)
            self._position = Position(0, 0, b"") if at is None else decode_position(at)
        except _UNREADABLE as error:
            raise _damaged(error) from error
        self._txn = Txn(kv, self._counters)
        self._effects: list[Effect] = []
        self._busy = False

    # ------------------------------------------------------------------ the port of the log

    def applied(self) -> Position:
        """Return how far the log is applied, with the configuration that came with it."""
        return self._position

    @property
    def version(self) -> int:
        """Version of the last command."""
        return self._counters.version

    @property
    def counters(self) -> Counters:
        """The scalars, to look at only."""
        return self._counters

    @property
    def format(self) -> int:
        """The state format in force."""
        return self._counters.format

    def fingerprint(self) -> bytes:
        """Return the hash over all results so far, 16 bytes: equal on replicas at one index."""
        return self._counters.fingerprint

    def commit(self) -> int:
        """Make the applied state durable; return the index it stands at. Raises StoreFailed."""
        assert not self._busy, "a commit inside an entry"
        self._kv.commit()
        return self._position.index

    def apply(
        self, position: Position, wall_ns: int, cluster_ns: int, payloads: Sequence[bytes]
    ) -> Iterator[bytes]:
        """Apply one entry; yield the encoded `Result` of each command, in order.

        Raises Incompatible, before anything is applied, for a payload that can't be decoded.
        AssertionError, StoreFailed, OSError, MemoryError and RecursionError are for the process
        to die of; so is StoreDamaged, for a stored record that does not decode: the other
        replicas apply the command.
        """
        assert not self._busy, "the entry before is not finished"
        assert position.index == self._position.index + 1 or self._position.index == 0, (
            f"entry {position.index} after {self._position.index}"
        )
        counters = self._counters
        assert cluster_ns >= counters.cluster_ns, "cluster time fell"
        assert wall_ns >= counters.wall_ns, "wall time fell"
        commands = [self._decode(position.index, payload) for payload in payloads]
        self._busy = True
        first_effect = len(self._effects)
        counters.wall_ns, counters.cluster_ns = wall_ns, cluster_ns
        events: list[StoredEvent] = []
        chains: dict[tuple[int, ...], int] = {}
        hasher = xxhash.xxh3_128(counters.fingerprint)
        try:
            for command in commands:
                result = self._apply_one(command, wall_ns, cluster_ns, events, chains)
                hasher.update(result)
                yield result
            if commands:
                counters.fingerprint = hasher.digest()
            for effect in self._effects[first_effect:]:
                if isinstance(effect, BackupReached):
                    ops_backup.seal(self._txn, effect.backup)
            self._finish(position, wall_ns, events, chains)
        except _UNREADABLE as error:
            raise _damaged(error) from error
        self._busy = False

    def take_effects(self) -> list[Effect]:
        """Return what the entries since the last call ask of the node, and forget it."""
        effects, self._effects = self._effects, []
        return effects

    def _decode(self, index: int, payload: bytes) -> Command:
        try:
            command = decode_command(payload)
        except NokvError as error:
            message = (
                f"entry {index} holds a command that this build can't read ({error}): run the build"
                " of the other members on this node"
            )
            raise Incompatible(message) from error
        if isinstance(command.op, RaiseFormat):
            check_format(command.op.format, f"what follows entry {index} of the log")
        return command

    def _finish(
        self,
        position: Position,
        wall_ns: int,
        events: list[StoredEvent],
        chains: dict[tuple[int, ...], int],
    ) -> None:
        txn = self._txn
        if events:
            cluster_ns = self._counters.cluster_ns
            record = txn.encode(EventRecord(wall_ns, tuple(chains), tuple(events), cluster_ns))
            self._counters.event_bytes += len(record)
            txn.set_row(Family.EVENT, keys.pack(self._counters.version), record)
        self._position = position
        txn.set_row(_META, keys.COUNTERS, txn.encode(self._counters))
        txn.set_row(_META, keys.POSITION, txn.encode(position))
        txn.merge()
        txn.flush()

    # ------------------------------------------------------------------ one command

    def _apply_one(
        self,
        command: Command,
        wall_ns: int,
        cluster_ns: int,
        events: list[StoredEvent],
        chains: dict[tuple[int, ...], int],
    ) -> bytes:
        txn, counters = self._txn, self._counters
        txn.begin()
        saved = copy(counters)
        session: Session | None = None
        try:
            if command.session:
                stored, session = self._admit(command)
                if stored is not None:
                    txn.abort()
                    return stored
            elif not isinstance(command.op, dispatch.SESSIONLESS):
                message = "this command needs a session"
                raise UnknownSession(message)
        except NokvError as error:
            txn.abort()
            return encode_failure(txn.version, error)
        ctx = Context(
            txn, wall_ns, cluster_ns, command.caller, command.session, command.seq, session
        )
        try:
            value = self._run(ctx, command)
            result = encode_success(txn.version, value, counters.format)
        except Exception as error:
            if not isinstance(error, NokvError) and isinstance(
                error,
                (AssertionError, OSError, MemoryError, RecursionError, StoreFailed, *_UNREADABLE),
            ):
                raise
            failure = error if isinstance(error, NokvError) else _internal(error)
            result = self._roll_back(saved, failure)
            ctx.session = session
            stored = b"" if isinstance(failure, _UNSTORED) else result
        else:
            events.extend(_renumber(ctx, chains))
            self._effects.extend(ctx.effects)
            stored = result
        if ctx.session is not None:
            self._close(command, ctx.session, stored)
        txn.merge()
        return result

    def _roll_back(self, saved: Counters, error: NokvError) -> bytes:
        txn, counters = self._txn, self._counters
        txn.abort()
        version = counters.version
        for field in Counters.__struct_fields__:
            setattr(counters, field, getattr(saved, field))
        counters.version = txn.version = version
        return encode_failure(version, error)

    def _run(self, ctx: Context, command: Command) -> ResultValue:
        op = command.op
        dispatch.check_caller(command.caller)
        if not isinstance(op, Atomic):
            dispatch.check_arguments(op)
            check_predicates(ctx, command.predicates)
            return dispatch.run(ctx, op)
        if not op.ops:
            message = "an Atomic without operations"
            raise InvalidArgument(message)
        if len(op.ops) > ATOMIC_MAX:
            message = f"an Atomic of {len(op.ops)} operations; the limit is {ATOMIC_MAX}"
            raise TooLarge(message)
        first = ctx.version
        self._counters.version = ctx.txn.version = first + len(op.ops) - 1
        values: list[InnerValue] = []
        for number, inner in enumerate(op.ops):
            try:
                dispatch.check_arguments(inner)
            except NokvError as error:
                raise _inner_error(number, len(op.ops), error) from None
        ctx.txn.version = first
        check_predicates(ctx, command.predicates)
        for number, inner in enumerate(op.ops):
            ctx.txn.version = first + number
            try:
                value = dispatch.run(ctx, inner)
            except NokvError as error:
                ctx.txn.version = first + len(op.ops) - 1
                raise _inner_error(number, len(op.ops), error) from None
            assert isinstance(value, InnerValue)
            values.append(value)
        return AtomicDone(first, tuple(values))

    # ------------------------------------------------------------------ exactly once

    def _admit(self, command: Command) -> tuple[bytes | None, Session]:
        """Return a stored result, or None, and the session to run in."""
        txn = self._txn
        known = 0 < command.session < 2**64
        row = txn.get(_SESSION, keys.session(command.session)) if known else None
        if row is None:
            message = f"no session {command.session:016x}"
            raise UnknownSession(message)
        session = decode_session(row)
        if command.seq >= 1 and command.seq > session.acked:
            stored = txn.get(_SESSION, keys.result(command.session, command.seq))
            if stored is not None:
                return stored, session
        if session.died:
            message = f"session {command.session:016x} ended at version {session.died}"
            raise SessionExpired(message)
        if command.seq < 1 or command.seq <= session.acked:
            message = f"sequence number {command.seq} was acknowledged ({session.acked})"
            raise SequenceReused(message)
        if not 0 <= command.acked < command.seq:
            message = f"command {command.seq} acknowledges {command.acked}"
            raise InvalidArgument(message)
        acked = max(session.acked, command.acked)
        if command.seq > acked + RESULT_WINDOW:
            message = f"command {command.seq} with results kept from {acked + 1}"
            raise WindowFull(message)
        return None, session

    def _close(self, command: Command, session: Session, result: bytes) -> None:
        """Write the session as its command leaves it, with the result unless that is empty.

        What the command acknowledges is trimmed here, whether it succeeded or not: the writes of
        a failed command are dropped, and the trimming must not go with them.
        """
        txn, session_id, results = self._txn, command.session, session.results
        acked = max(session.acked, command.acked)
        for seq in range(session.acked + 1, min(acked, session.acked + RESULT_WINDOW) + 1):
            key = keys.result(session_id, seq)
            if txn.get(_SESSION, key) is not None:
                txn.delete_row(_SESSION, key)
                results -= 1
        if result:
            txn.set_row(_SESSION, keys.result(session_id, command.seq), result)
            results += 1
        assert 0 <= results <= RESULT_WINDOW, f"{results} results are kept"
        after = msgspec.structs.replace(session, acked=acked, results=results)
        txn.set_row(_SESSION, keys.session(session_id), txn.encode(after))

    # ------------------------------------------------------------------ reads and duties

    def read(self, caller: Caller, request: Read) -> tuple[int, ReadValue]:
        """Answer a read at the present state (or the pin that it names), with the version.

        Raises the typed errors of docs/namespace.md, and StoreDamaged for a stored record that does
        not decode: what else of this copy is damaged, nobody knows.
        """
        assert not self._busy, "a read inside an entry"
        dispatch.check_caller(caller)
        try:
            value = reads.run(self._txn, caller, request)
        except _UNREADABLE as error:
            raise _damaged(error) from error
        return self._counters.version, value

    def event_rows(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield (key, encoded `EventRecord`) with a key above `after`, between two entries."""
        assert not self._busy, "a read inside an entry"
        start, end = keys.pack(after + 1), keys.pack(self._counters.version + 1)
        for key, value in self._kv.scan(Family.EVENT, start, end):
            yield int.from_bytes(key, "big"), value

    def events_to_trim(self, old_cluster_ns: int, keep_bytes: int, limit: int) -> tuple[int, bool]:
        """Return below which version events are too old or too many, and whether there are more.

        0: none. Looks at `limit` records at most, from the oldest one on.
        """
        below, excess_bytes = 0, self._counters.event_bytes - keep_bytes
        rows = self._kv.scan(Family.EVENT, keys.pack(0), keys.pack(self._counters.version + 1))
        for key, value in islice(rows, limit):
            try:
                age = decode_age(value)
            except msgspec.DecodeError as error:
                raise _damaged(error) from error
            if excess_bytes <= 0 and age.cluster_ns > old_cluster_ns:
                return below, False
            excess_bytes -= len(value)
            below = int.from_bytes(key, "big") + 1
        return below, below > 0

    def view(self, number: int) -> View | None:
        """Return a view's record; None for one that never was, or is gone."""
        return self._txn.view(number)

    def views(self) -> Iterator[tuple[int, View]]:
        """Yield (number, record) of the views, also of dead ones that wait, the newest first."""
        rows = self._kv.scan(Family.VIEW, keys.pack(0), keys.pack(2**64 - 1), reverse=True)
        for key, value in rows:
            yield int.from_bytes(key, "big"), decode_view(value)

    def directories(self, view: int, inode: int) -> tuple[int, ...]:
        """Return an inode that exists and the directories above it, up to its view's root."""
        return chain(self._txn.present, view, inode)

    def name_in(self, place: tuple[int, int], directory: tuple[int, int]) -> bytes:
        """Return the name of (view, inode) in a directory; empty if there is none, or several."""
        return name_in(self._txn.present, place, directory)

    def pending_work(self) -> bool:
        """Whether a `Reap` would find something to do."""
        return self._counters.jobs > 0

    def trash_due(self, cluster_ns: int) -> bool:
        """Whether an `ExpireTrash` at this time would find something to do."""
        return self._counters.trashes > 0 and is_due(self._txn.present, cluster_ns)

    def flatten_due(self, search: flatten.Search | None = None) -> int:
        """Return a view that a `Flatten` would bring further; 0: there is none.

        With a search by one step of it: 0 may then mean that it is not over yet.
        """
        present = self._txn.present
        return flatten.due(present) if search is None else search.step(present)

    def has_trash(self) -> bool:
        """Whether something in a trash waits for time."""
        return self._counters.trashes > 0

    def initialised(self) -> bool:
        """Whether the volume record exists: the first command was applied."""
        return self._kv.get(_META, keys.VOLUME) is not None

    def has_backups(self) -> bool:
        """Whether there are backups: their retention counts in cluster time."""
        return any(True for _ in ops_backup.backups_of(self._txn.present))

    def has_leases(self) -> bool:
        """Whether some snapshot has a lease: they count in cluster time."""
        return self._counters.leased_snapshots > 0

    def first_lease_end(self) -> int:
        """Return the cluster time at which the first lease of a snapshot ends; 0: none has one."""
        return snapshots.first_end(self._txn.present) if self._counters.leased_snapshots else 0

    def origin(self) -> Origin | None:
        """Return where a restored state came from; None for all others."""
        return ops_backup.origin_of(self._txn.present)

    def live_sessions(self) -> list[tuple[int, int]]:
        """Return (session, time to live in ns) of every session that has not ended."""
        found = []
        for key, value in self._kv.scan(_SESSION, keys.pack(1), b"\xff" * 9):
            if key[8:] == keys.RECORD:
                session = decode_session(value)
                if not session.died:
                    found.append((int.from_bytes(key[:8], "big"), session.ttl_ns))
        return found

    def marks_of(self, session_id: int) -> Marks | None:
        """Return the newest applied marks of a session, or None if it is unknown."""
        known = 0 < session_id < 2**64
        row = self._kv.get(_SESSION, keys.session(session_id)) if known else None
        if row is None:
            return None
        s = decode_session(row)
        return Marks(session_id, s.number, s.floor, s.watermark, s.leases)


def _inner_error(number: int, count: int, error: NokvError) -> NokvError:
    """Return the error of an operation, with its number from 0 on where there are several."""
    which = f"operation {number}: " if count > 1 else ""
    return type(error)(f"{which}{error.message}", hint=error.hint)


def _damaged(error: Exception) -> StoreDamaged:
    return StoreDamaged(f"a stored record does not decode ({error})")


def _internal(error: Exception) -> Internal:
    """Name the exception by its class alone: messages of the interpreter differ by its version."""
    return Internal(f"the command raised {type(error).__name__}")


def _renumber(ctx: Context, chains: dict[tuple[int, ...], int]) -> Iterator[StoredEvent]:
    """Move a command's events over to the entry's chains."""
    if not ctx.events:
        return
    where = {old: chains.setdefault(one, len(chains)) for one, old in ctx.chains.items()}
    where[-1] = -1
    for event in ctx.events:
        at, to = where[event.chain], where[event.to_chain]
        if at == event.chain and to == event.to_chain:
            yield event
        else:
            yield msgspec.structs.replace(event, chain=at, to_chain=to)
