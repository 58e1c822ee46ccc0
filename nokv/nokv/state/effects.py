"""What an applied entry asks of the node around the state machine: plain values, in order."""

from __future__ import annotations

import msgspec


class SessionLive(msgspec.Struct, frozen=True):
    """A session was opened (or opened again with its nonce): its time to live starts anew."""

    session: int
    ttl_ns: int


class SessionDead(msgspec.Struct, frozen=True):
    """A session has ended."""

    session: int


class CheckpointReached(msgspec.Struct, frozen=True):
    """Commit exactly after this entry, and digest what was committed."""

    number: int


class BackupReached(msgspec.Struct, frozen=True):
    """A backup was made: its node commits exactly after this entry and reads what it committed."""

    backup: int
    node: int


class LockWaitOver(msgspec.Struct, frozen=True):
    """A request for a lock waits no more."""

    session: int
    ticket: int
    granted: bool
    """False: its session gave it up, or it ended with its session or inode."""


Effect = SessionLive | SessionDead | CheckpointReached | BackupReached | LockWaitOver
