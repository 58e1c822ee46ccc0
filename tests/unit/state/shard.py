"""A state machine with a session, driven one command an entry, as the tests of the state use it."""

from __future__ import annotations

from typing import TypeVar

from nokv.errors import NokvError, from_wire
from nokv.state.machine import StateMachine
from nokv.state.memory import MemoryKV
from nokv.state.port import KV
from nokv.state.records import Position
from nokv.types.commands import (
    COMMAND_FORMAT,
    Command,
    Create,
    InitVolume,
    Mkdir,
    Op,
    OpenSession,
    PinView,
    Predicate,
    Symlink,
)
from nokv.types.limits import SESSION_TTL_NS_DEFAULT
from nokv.types.reads import AttrReply, GetAttr, GetUsage, Read, ReadValue, UsageReply
from nokv.types.results import Made, Pinned, Result, ResultValue, SessionOpened
from nokv.types.values import ROOT_INODE, ROOT_VIEW, At, Attr, Caller, Volume
from nokv.wire.codec import encode_command, result_codec

ROOT = Caller()
ALICE = Caller(1000, 100, (200,))
BOB = Caller(1001, 101)
VOLUME = Volume("0123456789abcdef" * 2, "memory")
START_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000
"""From one entry to the next, of both clocks."""

T = TypeVar("T")


def at(path: str | bytes = b"", *, inode: int = ROOT_INODE, follow: bool = True) -> At:
    """Return the address of a path like b"a/b" below an inode, by default the root."""
    raw = path.encode() if isinstance(path, str) else path
    return At(ROOT_VIEW, inode, tuple(raw.split(b"/")) if raw else (), follow)


class Shard:
    """One initialised shard over a KV, with an open session."""

    def __init__(self, kv: KV | None = None) -> None:
        self.kv: KV = MemoryKV() if kv is None else kv
        self.machine = StateMachine(self.kv)
        self.wall_ns, self.cluster_ns = START_NS, 0
        self.seq = 0
        self.session = 0
        self.do(InitVolume(VOLUME, 1))
        self.session = self.open(b"\x01" * 16)

    # ------------------------------------------------------------------ commands

    def open(self, nonce: bytes) -> int:
        """Open another session."""
        opened = self.do(OpenSession(nonce, SESSION_TTL_NS_DEFAULT), session=0)
        assert isinstance(opened, SessionOpened)
        return opened.session

    def command(
        self,
        op: Op,
        caller: Caller = ROOT,
        *,
        session: int | None = None,
        seq: int | None = None,
        predicates: tuple[Predicate, ...] = (),
    ) -> Command:
        """Return the next command of the session; every result before it is acknowledged."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        one = self.session if session is None else session
        acked = seq - 1 if one == self.session else 0
        return Command(COMMAND_FORMAT, one, seq if one else 0, acked, caller, op, predicates)

    def entry(self, *commands: Command) -> list[Result]:
        """Apply one entry."""
        position = self.machine.applied()
        self.wall_ns += STEP_NS
        self.cluster_ns += STEP_NS
        at_index = Position(position.index + 1, 1, b"")
        payloads = [encode_command(command) for command in commands]
        results = self.machine.apply(at_index, self.wall_ns, self.cluster_ns, payloads)
        return [result_codec.decode(result) for result in results]

    def do(
        self,
        op: Op,
        caller: Caller = ROOT,
        *,
        session: int | None = None,
        predicates: tuple[Predicate, ...] = (),
    ) -> ResultValue:
        """Apply one command in an entry of its own; raise its error, or return its value."""
        (result,) = self.entry(self.command(op, caller, session=session, predicates=predicates))
        if result.code:
            raise from_wire(result.code, result.message, result.hint)
        assert result.value is not None
        return result.value

    def fails(self, op: Op, caller: Caller = ROOT, **rest: object) -> type[NokvError]:
        """Apply a command that must fail; return the class of its error."""
        try:
            value = self.do(op, caller, **rest)  # type: ignore[arg-type]
        except NokvError as error:
            return type(error)
        message = f"{op} made {value}"
        raise AssertionError(message)

    # ------------------------------------------------------------------ shorthands

    def mkdir(self, path: str, mode: int = 0o755, caller: Caller = ROOT) -> Attr:
        """Make a directory at a path."""
        parent, name = _split(path)
        return _made(self.do(Mkdir(parent, name, mode), caller))

    def create(self, path: str, mode: int = 0o644, caller: Caller = ROOT) -> Attr:
        """Make a file at a path."""
        parent, name = _split(path)
        return _made(self.do(Create(parent, name, mode), caller))

    def symlink(self, path: str, target: bytes, caller: Caller = ROOT) -> Attr:
        """Make a symbolic link at a path."""
        parent, name = _split(path)
        return _made(self.do(Symlink(parent, name, target), caller))

    def pin(self) -> int:
        """Pin the present and return its version."""
        pinned = self.do(PinView(ROOT_VIEW))
        assert isinstance(pinned, Pinned)
        return pinned.version

    # ------------------------------------------------------------------ reads

    def read(self, request: Read, caller: Caller = ROOT) -> ReadValue:
        """Answer a read."""
        return self.machine.read(caller, request)[1]

    def stat(self, path: str = "", *, follow: bool = True, at_version: int = 0) -> Attr:
        """Return the attributes at a path."""
        reply = self.read(GetAttr(at(path, follow=follow), at_version))
        assert isinstance(reply, AttrReply)
        return reply.attr

    def usage(self, path: str = "") -> tuple[int, int]:
        """Return (entries, bytes) below a directory."""
        reply = self.read(GetUsage(at(path)))
        assert isinstance(reply, UsageReply)
        return reply.entries, reply.bytes


def _split(path: str) -> tuple[At, bytes]:
    above, _, name = path.rpartition("/")
    return at(above), name.encode()


def _made(value: ResultValue) -> Attr:
    assert isinstance(value, Made)
    return value.attr
