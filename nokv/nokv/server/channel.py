"""Between a shard process and its node's worker: a few small messages about checkpoints.

The supervisor makes one socket pair of type SOCK_SEQPACKET (unix(7)) for the life of the shard
process and hands its other end to each worker in turn, so that a worker that dies leaves no half
message behind. A message that does not fit the socket's buffer is dropped: checkpoints are retried.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from nokv.types.values import Strict

MESSAGE_BYTES_MAX: Final = 16_384


class WorkerReady(Strict, frozen=True, tag=1):
    """Worker to shard: somebody listens."""


class CheckpointMade(Strict, frozen=True, tag=2):
    """Shard to worker: the store's last commit is this checkpoint, for as long as I hold it."""

    number: int
    applied_index: int
    version: int


class CheckpointOpened(Strict, frozen=True, tag=3):
    """Worker to shard: a read transaction at the checkpoint is open; go on committing."""

    number: int


class CheckpointDigested(Strict, frozen=True, tag=4):
    """Worker to shard: the digest."""

    number: int
    families: dict[str, bytes]
    """16 bytes for each replicated family, big-endian."""
    digest: bytes


class CheckpointMissed(Strict, frozen=True, tag=5):
    """Worker to shard: the store had moved on, or could not be read."""

    number: int
    reason: str


Message = WorkerReady | CheckpointMade | CheckpointOpened | CheckpointDigested | CheckpointMissed

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Return the shard's and the worker's end; both inheritable, neither blocks."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(0)
        end.set_inheritable(True)
    return ends


def send(end: socket.socket, message: Message) -> bool:
    """Send a message; return False where the other side does not read, or is gone."""
    data = msgspec.msgpack.encode(message)
    assert len(data) <= MESSAGE_BYTES_MAX, "a channel message over its limit"
    try:
        end.send(data)
    except OSError:
        return False
    return True


def receive(end: socket.socket) -> list[Message]:
    """Return the messages that have arrived. Raises EOFError when the other side is gone."""
    found: list[Message] = []
    while True:
        try:
            data = end.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return found
        if not data:
            if found:
                return found
            raise EOFError
        found.append(_decoder.decode(data))
