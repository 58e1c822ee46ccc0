"""The outside world of a group, as arguments: clock, network, disk, state machine.

The simulator and production implement the same protocols, so the simulator drives the same code.
Randomness is a `random.Random` argument beside these.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from nokv_replication.types import Applied, Times


class Clock(Protocol):
    """The node's clocks, in nanoseconds."""

    def monotonic_ns(self) -> int:
        """Return a clock that never falls; its zero means nothing."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the epoch, as this node believes."""


class Network(Protocol):
    """One ordered, unreliable byte-frame connection per peer.

    The owner of the connections calls `Group.hello`, `Group.greet`, `Group.connected`,
    `Group.receive` and `Group.disconnected`. A connection that breaks loses an unknown tail of the
    frames sent; nothing of it arrives after a newer connection (another epoch) was announced.
    """

    def send(self, peer: int, frame: bytes) -> None:
        """Queue one frame; drop it silently when there is no connection.

        Never calls back into the group, never blocks.
        """


class Disk(Protocol):
    """Every file operation of the log, by name, on names inside one folder.

    Each method is one external call, so that a test can fail, or cut the power at, that one.
    All raise `OSError`. Names have no folders in them.
    """

    def listdir(self) -> list[str]:
        """Return the names in the folder, in any order."""

    def create(self, name: str) -> int:
        """Create a file that must not exist, for reading and writing; return its handle."""

    def open(self, name: str) -> int:
        """Open an existing file for reading and writing; return its handle."""

    def close(self, handle: int) -> None:
        """Close a handle; the data written through it is not thereby durable."""

    def preallocate(self, handle: int, size_bytes: int, offset: int) -> None:
        """Write `size_bytes` zero bytes at `offset`, so that later syncs change no metadata."""

    def size_bytes(self, handle: int) -> int:
        """Return the file's size."""

    def pread(self, handle: int, size_bytes: int, offset: int) -> bytes:
        """Read up to `size_bytes` at `offset`; short only at the end of the file."""

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""

    def fdatasync(self, handle: int) -> None:
        """Make the file's data durable (fdatasync(2))."""

    def fsync_dir(self) -> None:
        """Make creations, renames and removals in the folder durable."""

    def rename(self, old: str, new: str) -> None:
        """Rename atomically, replacing `new`."""

    def unlink(self, name: str) -> None:
        """Remove a name."""

    def free_bytes(self) -> int:
        """Return the bytes that an unprivileged writer may still allocate."""


class Machine(Protocol):
    """A deterministic state machine. Called by one group, on one thread, never re-entered.

    An exception out of any method stops the group: it is raised as it is out of `Group.step`.
    """

    def open(self) -> Applied:
        """Return the position as of the last durable commit; called once, before anything else."""

    def apply(self, applied: Applied, times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        """Apply one entry as a stepper that yields one result per payload, in order.

        `applied` is the position after this entry (`applied.times == times`); it is stored in the
        transaction that holds the effects. Entries of the group itself (a new leader's first entry,
        the members, a tick) have no payloads: the stepper yields nothing and still must run to
        its end. The group pulls until its slice of time is over, then lets replication step, and
        goes on; until the stepper is exhausted there is no read, no `commit` and no `digest`.
        """

    def commit(self) -> int:
        """Make everything applied durable; return the applied index it covers."""

    def fingerprint(self) -> bytes:
        """Return the running hash of all results up to the applied index (at most 32 bytes)."""

    def digest(self) -> bytes:
        """Return a hash of the whole state; only the simulator calls it."""
