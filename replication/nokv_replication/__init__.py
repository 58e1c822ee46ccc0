"""One Raft group that orders opaque bytes, durably, over a library core made safe from outside.

`Group` is the whole public surface; `Machine`, `Clock`, `Network` and `Disk` are the ports it runs
on; `driver` runs it in an asyncio loop over `tcp`. See DESIGN.md beside this file.
"""

from nokv_replication.bootstrap import Identity, Member, Members
from nokv_replication.errors import (
    ConfigurationError,
    DiskFailed,
    Diverged,
    Fatal,
    HandshakeRefused,
    LogDamaged,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    Refused,
    ReplicationError,
    StartRefused,
    Stopped,
    TooFarBehind,
    TooLarge,
)
from nokv_replication.group import Group
from nokv_replication.ports import Clock, Disk, Machine, Network
from nokv_replication.roster import initialise
from nokv_replication.types import (
    Applied,
    Committed,
    Counters,
    GroupConfig,
    Outcome,
    PeerStatus,
    ReadOutcome,
    Role,
    Status,
    SyncHistogram,
    Times,
)

__all__ = [
    "Applied",
    "Clock",
    "Committed",
    "ConfigurationError",
    "Counters",
    "Disk",
    "DiskFailed",
    "Diverged",
    "Fatal",
    "Group",
    "GroupConfig",
    "HandshakeRefused",
    "Identity",
    "LogDamaged",
    "Machine",
    "Member",
    "Members",
    "Network",
    "NotLeader",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "PeerStatus",
    "ProtocolError",
    "ReadOutcome",
    "Refused",
    "ReplicationError",
    "Role",
    "StartRefused",
    "Status",
    "Stopped",
    "SyncHistogram",
    "Times",
    "TooFarBehind",
    "TooLarge",
    "initialise",
]
