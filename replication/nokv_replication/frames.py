"""What peers say to each other, and what an entry of the log is, as MessagePack array structs.

Every frame carries sender, connection epoch and a sequence number that grows with each frame to a
peer as long as the process lives; bodies carry the term they belong to. Decoding is strict: what no
correct peer sends is a `ProtocolError`, which costs the connection.
"""

from enum import IntEnum
from typing import Annotated, NamedTuple

import msgspec

from nokv_replication.bootstrap import FORMAT, Incarnation, NodeId
from nokv_replication.errors import HandshakeRefused, LogDamaged, ProtocolError, RemovedFromGroup
from nokv_replication.types import Skip, Times

FRAME_MAX_BYTES = 8 << 20
"""One frame on the wire, at most."""
ENTRIES_MAX_BYTES = FRAME_MAX_BYTES - (64 << 10)
"""Entries in one append frame, at most; the rest is its envelope."""
ENTRIES_MAX = 65_536
REMOVED_PREFIX = "was removed: "
"""How a refusal begins that is for ever."""
SKIPS_MAX = 16
"""Skipped entries of a group, at most."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Fingerprint = Annotated[bytes, msgspec.Meta(max_length=32)]


class EntryKind(IntEnum):
    """Who an entry is for. Numbers are never reused."""

    COMMANDS = 0
    NOOP = 1
    """A new leader's first entry."""
    MEMBERS = 2
    """One payload: the encoded list of members. The group's first entry after its first no-op."""
    TICK = 3
    """No payload: moves `cluster_ns` on while something waits for time."""


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One entry of the log. Its first byte, 0x95, is no command type of the library's."""

    format: int
    wall_ns: int
    cluster_ns: int
    payloads: list[bytes]
    kind: EntryKind = EntryKind.COMMANDS

    @property
    def times(self) -> Times:
        """The two clocks of the entry."""
        return Times(self.wall_ns, self.cluster_ns)


_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(times: Times, payloads: list[bytes], kind: EntryKind) -> bytes:
    """Return the bytes of an entry in the current format."""
    return _encoder.encode(Entry(FORMAT, times.wall_ns, times.cluster_ns, payloads, kind))


def way_past(index: int) -> str:
    """Return what an operator can do about an entry that stops the node before it is applied."""
    return (
        "run the build that wrote it, or a newer one; if there is none that applies it, stop all"
        f" nodes and run `nokv raft-log skip {index}` on each (docs/operations.md: A poisoned"
        " entry)"
    )


def decode_entry(command: bytes, index: int) -> Entry:
    """Return the entry at `index`.

    Raises:
        LogDamaged: a newer program wrote it, or it is none; skipping it would be divergence.
    """
    try:
        entry = _entry_decoder.decode(command)
    except UNDECODABLE as error:
        message = f"entry {index} is not readable by this program ({error}): {way_past(index)}"
        raise LogDamaged(message) from error
    if entry.format != FORMAT:
        message = (
            f"entry {index} has format {entry.format}, this program reads {FORMAT}:"
            f" {way_past(index)}"
        )
        raise LogDamaged(message)
    return entry


class Append(msgspec.Struct, tag=1, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Entries after (prev_index, prev_term); the i-th has index prev_index + 1 + i."""

    term: Count
    prev_index: Count
    prev_term: Count
    commit_index: Count
    entries: Annotated[list[tuple[Count, bytes]], msgspec.Meta(max_length=ENTRIES_MAX)]


class Ack(msgspec.Struct, tag=2, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Answer to the append frame `sequence` of `term`: durable here before it is sent.

    `success`: the log equals the leader's up to `next_index` - 1. `reset`: it does not; continue
    at `next_index`. The rest is the follower's own: its applied position with the running hash of
    its results, its wall clock and free disk space, and how long its log syncs took of late.
    """

    term: Count
    sequence: Count
    success: bool
    reset: bool
    next_index: Count
    applied_index: Count
    fingerprint: Fingerprint
    wall_ns: Count
    free_bytes: Count
    sync_ns: Count = 0


class RequestVote(msgspec.Struct, tag=3, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A candidate of `term` asks for a vote."""

    term: Count
    last_index: Count
    last_term: Count


class Vote(msgspec.Struct, tag=4, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The vote of `term`, durable at the voter."""

    term: Count


class PreVote(msgspec.Struct, tag=5, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Would you vote for this log in a term after `term`? Changes nothing at the voter."""

    term: Count
    last_index: Count
    last_term: Count
    round: Count


class PreVoteGranted(
    msgspec.Struct, tag=6, frozen=True, array_like=True, forbid_unknown_fields=True
):
    """Yes to `round`."""

    term: Count
    round: Count


class Probe(msgspec.Struct, tag=7, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Is `term` still yours? The ReadIndex round `nonce` (Raft thesis, section 6.4)."""

    term: Count
    nonce: Count


class ProbeOk(msgspec.Struct, tag=8, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Yes: no newer term was known here when this was sent, and that is durable."""

    term: Count
    nonce: Count


class ReadAsk(msgspec.Struct, tag=9, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A follower asks its leader for a confirmed read index."""

    term: Count
    nonce: Count


class ReadAnswer(msgspec.Struct, tag=10, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The read index of `nonce`; `ok` False when the asked node cannot confirm that it leads."""

    term: Count
    nonce: Count
    ok: bool
    index: Count


class Stale(msgspec.Struct, tag=11, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Your term is over; mine is `term`."""

    term: Count


class TooFar(msgspec.Struct, tag=12, frozen=True, array_like=True, forbid_unknown_fields=True):
    """You may need entries that my log, starting after (base_index, base_term), does not hold."""

    term: Count
    base_index: Count
    base_term: Count


class Mismatch(msgspec.Struct, tag=13, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Your results up to `index` differ from the leader's, whose running hash is `fingerprint`."""

    term: Count
    index: Count
    fingerprint: Fingerprint


class TimeoutNow(msgspec.Struct, tag=14, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The leader of `term` hands over: stand at once (Raft thesis, section 3.10)."""

    term: Count


class Removed(msgspec.Struct, tag=15, frozen=True, array_like=True, forbid_unknown_fields=True):
    """You are no member any more: the list that lacks you is committed, up to `index`."""

    index: Count


Body = (
    Append
    | Ack
    | RequestVote
    | Vote
    | PreVote
    | PreVoteGranted
    | Probe
    | ProbeOk
    | ReadAsk
    | ReadAnswer
    | Stale
    | TooFar
    | Mismatch
    | TimeoutNow
    | Removed
)


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One message: `epoch` names the connection, `sequence` the frame."""

    sender: NodeId
    epoch: Count
    sequence: Count
    body: Body


class Purpose(IntEnum):
    """What a connection is for. Numbers are never reused."""

    RAFT = 0
    IMAGE = 1


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """First on a connection, both ways.

    `digest` is that of the founders, b"" while they are not known. `machine_format` is the owner's:
    the newest format its state machine can apply. `skips` are the entries this node skips.
    """

    format: Count
    cluster: Annotated[str, msgspec.Meta(max_length=64)]
    node: NodeId
    incarnation: Incarnation
    digest: Annotated[bytes, msgspec.Meta(max_length=16)]
    epoch: Count
    purpose: Purpose = Purpose.RAFT
    machine_format: Count = 0
    skips: Annotated[tuple[Skip, ...], msgspec.Meta(max_length=SKIPS_MAX)] = ()


class Greeting(NamedTuple):
    """What an accepted hello says: who, and which connection."""

    node: int
    epoch: int
    purpose: Purpose


# msgspec lets what its C code hits pass: deep nesting, and text that is not UTF-8.
UNDECODABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

_frame_decoder = msgspec.msgpack.Decoder(Frame)
Refusal = Annotated[str, msgspec.Meta(max_length=512)]
"""Instead of a hello: why the connection is refused, for the other side's operator."""

_array_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_count_decoder: msgspec.msgpack.Decoder[int] = msgspec.msgpack.Decoder(Count)
_hello_decoder: msgspec.msgpack.Decoder[Hello | Refusal] = msgspec.msgpack.Decoder(Hello | Refusal)


def encode(message: Frame | Hello | str) -> bytes:
    """Return the bytes of a frame, hello or refusal."""
    return _encoder.encode(message)


def decode_frame(data: bytes) -> Frame:
    """Return the frame in `data`.

    Raises:
        ProtocolError: it is none, or says what no correct peer says.
    """
    try:
        frame = _frame_decoder.decode(data)
    except UNDECODABLE as error:
        message = f"undecodable frame of {len(data)} bytes: {error}"
        raise ProtocolError(message) from error
    body = frame.body
    if isinstance(body, Append):
        term = body.prev_term
        for entry_term, _ in body.entries:
            if entry_term < term:
                message = "an append frame whose terms fall"
                raise ProtocolError(message)
            term = entry_term
        if term > body.term:
            message = f"an append frame of term {body.term} with an entry of term {term}"
            raise ProtocolError(message)
    return frame


def refuse_format(number: int) -> None:
    """Raise `HandshakeRefused` unless a peer of that group format may be spoken to."""
    if number != FORMAT:
        older = "this node" if number > FORMAT else "the peer"
        message = (
            f"the peer speaks group format {number}, this node {FORMAT}: upgrade {older} to the"
            " build of the other members"
        )
        raise HandshakeRefused(message)


def _format_of(data: bytes) -> int:
    """Return the format that a hello begins with, in whatever else it differs."""
    try:
        return _count_decoder.decode(_array_decoder.decode(data)[0])
    except (*UNDECODABLE, IndexError):
        return FORMAT


def decode_hello(data: bytes) -> Hello:
    """Return the hello in `data`.

    Raises:
        HandshakeRefused: the peer refuses this node and says why, or is of another format.
        ProtocolError: it is no hello.
    """
    try:
        hello = _hello_decoder.decode(data)
    except UNDECODABLE as error:
        refuse_format(_format_of(data))
        message = f"undecodable hello of {len(data)} bytes: {error}"
        raise ProtocolError(message) from error
    if isinstance(hello, str) and hello.startswith(REMOVED_PREFIX):
        message = f"a peer says that this node {hello}"
        raise RemovedFromGroup(message)
    if isinstance(hello, str):
        message = f"the peer refuses this node: {hello}"
        raise HandshakeRefused(message)
    return hello
