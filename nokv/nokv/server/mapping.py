"""Replication's errors as NoKV's, mapped in this one place."""

from __future__ import annotations

import nokv_replication as replication
from nokv.errors import (
    ChangeRefused,
    NokvError,
    NotLeader,
    NotReady,
    Overloaded,
    TooLarge,
    Unavailable,
)


def proposal_error(error: replication.ReplicationError) -> NokvError:
    """Return what a command's sender is told.

    An outcome that is unknown is Unavailable: the sender retries under the same session and
    sequence number, and the state machine answers.
    """
    if isinstance(error, replication.NotLeader):
        return NotLeader("this node does not lead")
    if isinstance(error, replication.Overloaded):
        return Overloaded("the leader's queue is full")
    if isinstance(error, replication.TooLarge):
        return TooLarge("the command does not fit a log entry")
    if isinstance(error, replication.Refused):
        return NotReady(str(error))
    return Unavailable("leadership was lost before the outcome was known")


def change_error(error: replication.ReplicationError) -> NokvError:
    """Return what an operator is told who asked for a change of members or of the leader."""
    if isinstance(error, replication.MembershipRefused | replication.TransferFailed):
        return ChangeRefused(str(error))
    return proposal_error(error)


def read_error(error: replication.ReplicationError) -> NokvError:
    """Return what a reader is told; it may ask this node again, or another one."""
    if isinstance(error, replication.Overloaded):
        return Overloaded("too many reads wait at this node")
    if isinstance(error, replication.NotLeader):
        return NotReady("no leader confirmed how far the log is committed")
    return NotReady(str(error))
