"""The RPC messages between clients and nodes.

A connection carries frames; each is a `Request` or a `Response`. Requests are pipelined: answers
come in any order, matched by id. The first request is `Hello`; anything else before it costs the
connection. Requests are strict, replies lenient.
"""

from __future__ import annotations

from enum import IntEnum

from nokv.types.reads import Read, ReadValue, VolumeReply
from nokv.types.values import Caller, Lenient, Marks, Strict
from nokv.wire.codec import Codec

PROTOCOL = 1


class Role(IntEnum):
    """Who speaks on a connection."""

    CLIENT = 0
    WORKER = 1
    """A node's own worker: may send internal commands; proves itself by the cluster's token."""


class Consistency(IntEnum):
    """How fresh a read is."""

    LINEARIZABLE = 0
    """ReadIndex: as fresh as any acknowledged command."""
    BOUNDED = 1
    """The node's own state, not older than `max_stale_ms`, else NotReady."""


class Hello(Strict, frozen=True, tag=1):
    """Opens a connection. Empty `cluster` or `volume` means: any (discovery)."""

    protocol: int
    cluster: str = ""
    volume: str = ""
    role: int = Role.CLIENT
    token: bytes = b""
    agent: str = ""
    """What the client calls itself, for the server's log; at most 255 characters."""


class Propose(Strict, frozen=True, tag=2):
    """An ordered batch of encoded commands, each independent. Reply: ResultsReply."""

    commands: tuple[bytes, ...]


class Query(Strict, frozen=True, tag=3):
    """One read. Reply: QueryReply."""

    caller: Caller
    read: Read
    consistency: int = Consistency.LINEARIZABLE
    max_stale_ms: int = 0


class Renew(Strict, frozen=True, tag=4):
    """Renews a session at the leader and carries its marks. Reply: RenewReply."""

    marks: Marks


class Status(Strict, frozen=True, tag=5):
    """What the node knows of itself and the group. Reply: StatusReply."""


class Ping(Strict, frozen=True, tag=6):
    """Keeps a connection alive. Reply: Pong."""


class MakeDigest(Strict, frozen=True, tag=7):
    """The digest of the last checkpoint that this node completed. Reply: DigestReply."""

    number: int
    """Of the checkpoint; 0: whatever is the latest."""


RequestBody = Hello | Propose | Query | Renew | Status | Ping | MakeDigest


class Request(Strict, frozen=True):
    """One request of a connection."""

    id: int
    """Unique among the connection's open requests."""
    deadline_ms: int
    """Time left for the answer, counted from arrival; 0: the server's default."""
    shard: int
    body: RequestBody


class NodeAddress(Lenient, frozen=True):
    """A node of the group and where clients reach it."""

    node: int
    address: str


class HelloReply(Lenient, frozen=True, tag=1):
    """Who answers, and all that a client needs to know of the cluster."""

    protocol: int
    cluster: str
    node: int
    leader: str
    """The leader's RPC address, or empty."""
    nodes: tuple[NodeAddress, ...]
    volume: VolumeReply | None
    """None until the first command is applied here."""


class ErrorReply(Lenient, frozen=True, tag=8):
    """A typed error instead of an answer."""

    code: int
    message: str
    hint: str = ""
    leader: str = ""
    """With NotLeader: the leader's RPC address, or empty."""


class Outcome(Lenient, frozen=True):
    """Of one command of a batch: its encoded `Result`, or why there is none."""

    result: bytes
    error: ErrorReply | None = None


class ResultsReply(Lenient, frozen=True, tag=2):
    """One outcome per command, in order."""

    outcomes: tuple[Outcome, ...]


class QueryReply(Lenient, frozen=True, tag=3):
    """A read's value."""

    version: int
    """The state's version that it was read at."""
    value: ReadValue


class RenewReply(Lenient, frozen=True, tag=4):
    """The session is alive for a further time to live from the sending of the renewal."""

    ttl_ns: int
    marks_number: int
    """The newest marks frame that is applied."""
    version: int


class PeerStatus(Lenient, frozen=True):
    """What the leader knows of a member."""

    node: int
    connected: bool
    match_index: int
    free_bytes: int


class StatusReply(Lenient, frozen=True, tag=5):
    """A node's view of itself."""

    node: int
    cluster: str
    role: str
    """'leader', 'follower', 'candidate'."""
    term: int
    leader: int
    """Node number, or 0 if unknown."""
    leader_address: str
    commit_index: int
    applied_index: int
    version: int
    log_bytes: int
    free_bytes: int
    wall_ns: int
    cluster_ns: int
    peers: tuple[PeerStatus, ...]
    counters: dict[str, int]
    format: int
    build: str
    fingerprint: bytes
    """Running hash of all results at `applied_index`."""
    clock_ns: int = 0
    """The node's own clock as it answers, ns since 1970; 0 from a node that does not say."""


class Pong(Lenient, frozen=True, tag=6):
    """Alive."""


class DigestReply(Lenient, frozen=True, tag=7):
    """Per family the sum mod 2^128 of xxh3_128(key, value), at a checkpoint."""

    number: int
    version: int
    applied_index: int
    families: dict[str, bytes]
    digest: bytes


ResponseBody = (
    HelloReply
    | ResultsReply
    | QueryReply
    | RenewReply
    | StatusReply
    | Pong
    | DigestReply
    | ErrorReply
)


class Response(Lenient, frozen=True):
    """The answer to the request of that id."""

    id: int
    body: ResponseBody


request_codec: Codec[Request] = Codec(Request, "request")
response_codec: Codec[Response] = Codec(Response, "response")
