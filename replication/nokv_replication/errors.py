"""The errors of one replication group.

`Refused` and its children settle a proposal: it did not pass the log and never will.
`OutcomeUnknown` does not: the entry may still be committed by another leader. `Fatal` is raised out
of `Group.step` and never caught inside this package: the process that owns the group must exit.
"""


class ReplicationError(Exception):
    """The root of this package's errors."""


class Refused(ReplicationError):
    """The request was not accepted; nothing of it entered the log."""


class NotLeader(Refused):
    """This node does not lead, or does not lead yet.

    `leader` is the id of the node believed to lead, or None while an election runs.
    """

    def __init__(self, leader: int | None) -> None:
        where = f"node {leader} does" if leader is not None else "no leader is known yet"
        super().__init__(f"this node does not lead the group: {where}; send it there or retry")
        self.leader = leader


class Overloaded(Refused):
    """A bounded queue of this node is full; retry later."""


class TooLarge(Refused):
    """The payload does not fit one log entry; split it."""


class TooFarBehind(Refused):
    """The entries this node needs are gone from its peers' logs; it serves nothing."""


class MembershipRefused(Refused):
    """The change of members is not safe now, or never; the message says what to do."""


class TransferFailed(Refused):
    """Leadership did not pass to the node it was meant for; whoever leads goes on."""


class Stopped(Refused):
    """The group was stopped on purpose."""


class OutcomeUnknown(ReplicationError):
    """The command entered the log and leadership was lost before its outcome was known.

    Retry it under the same identity at the new leader; only the state machine can tell.
    """


class ProtocolError(ReplicationError):
    """Bytes from a peer that no correct peer sends. Costs the connection, nothing else."""


class HandshakeRefused(ProtocolError):
    """The peer belongs to another cluster, list of members or incarnation."""


class SkipRefused(ReplicationError):
    """The entry can't be skipped: applied already, not in the log, too many, or no poisoned one."""


class RemovedFromGroup(HandshakeRefused):
    """A peer refuses this node because it was removed from the group."""


class ImageRefused(ReplicationError):
    """A state image is not taken: damaged, covered already, of a newer format, or without room.

    The transfer ends; nothing of the state in use has changed. The sender begins anew.
    """


class ImageDamaged(ImageRefused):
    """Bytes of a state image were changed on the way, or are missing."""


class ConfigurationError(ReplicationError):
    """A setting that this package refuses to run with."""


class Fatal(ReplicationError):
    """Continuing would break a promise: the process must exit and be started again."""


class LogDamaged(Fatal):
    """The log on disk holds valid records behind a damaged one, or a gap.

    `file` and `offset_bytes` say where, as far as it is one place; else "" and 0.
    """

    def __init__(self, message: str, file: str = "", offset_bytes: int = 0) -> None:
        super().__init__(message)
        self.file = file
        self.offset_bytes = offset_bytes


class StartRefused(Fatal):
    """Log, state machine and identity do not belong together."""


class Diverged(Fatal):
    """This node's results differ from the leader's at the same index."""


class DiskFailed(Fatal):
    """A write or sync of the log failed: what is on disk is unknown until it is read again."""
