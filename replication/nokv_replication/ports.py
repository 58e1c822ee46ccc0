"""The outside world of a group, as arguments: clock, network, disk, state machine.

The simulator and production implement the same protocols, so the simulator drives the same code.
Randomness is a `random.Random` argument beside these.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from nokv_replication.types import Applied, Times

IMAGE_PIECE_MAX_BYTES = 256 << 10
"""A piece of a state image, at most: one chunk on the wire."""


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

    def set_peers(self, peers: dict[int, str]) -> None:
        """Connect to these nodes, at these addresses, from now on.

        Called whenever the members change, once before the group's constructor returns. Never
        raises, an address that is none included; never calls back into the group, never blocks. A
        connection to a node that is not among them may stay until it breaks.
        """

    def open_image(self, peer: int) -> None:
        """Dial one more connection to a peer, for a state image; whoever sends the image dials.

        Tried once: it ends in `Group.image_connected(peer, epoch, outgoing=True)` or in
        `Group.image_disconnected(peer, outgoing=True)`, never inside this call. The group tries
        again by itself, later. At most one such connection a direction and pair: a newer one that
        a peer dials replaces the older, which is reported as lost first.
        """

    def send_image(self, peer: int, frame: bytes, *, outgoing: bool) -> None:
        """Queue one frame on the image connection that this node (`outgoing`) or the peer dialed.

        As `send`: dropped silently when there is none, in order, never blocks.
        """

    def close_image(self, peer: int, *, outgoing: bool) -> None:
        """Close that connection, or stop dialing it, once what is queued has left.

        Nothing of it is delivered from now on, and its end is not reported.
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


class ImageSource(Protocol):
    """One pass over a machine's state as of a durable commit: equal bytes in every pass."""

    @property
    def applied(self) -> Applied:
        """The position the image stands at."""

    @property
    def size_bytes(self) -> int:
        """About how many bytes all pieces will have; to show progress."""

    def read(self) -> bytes:
        """Return the next piece, of 1 to `IMAGE_PIECE_MAX_BYTES`; b"" after the last, for ever."""

    def again(self) -> "ImageSource":
        """Return another pass from the start over the same state: the same pieces.

        The state is held until every pass is closed.
        """

    def close(self) -> None:
        """Let go of the state. Closing twice is fine."""


class ImageSink(Protocol):
    """A state image on its way in, beside the state in use; lost if the process ends."""

    def write(self, piece: bytes) -> None:
        """Take the next piece, as `ImageSource.read` returned it.

        Raises:
            ImageRefused: it is no piece of an image at that position, or there is no room.
        """

    def finish(self) -> None:
        """Verify the whole image against its own digest and position, and make it durable.

        Raises:
            ImageRefused: it is damaged or incomplete, or this machine can't read its format.
        """

    def abort(self) -> None:
        """Discard it. Aborting twice, or after a failed call, is fine."""


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

    def image(self) -> ImageSource:
        """Return the state as of the last durable commit, unchanged until it is closed.

        The group holds one state at a time. May be called inside an entry.
        """

    def receive(self, applied: Applied) -> ImageSink:
        """Prepare to receive the image that stands at `applied`; at most one at a time.

        Raises:
            ImageRefused: there is no room, or no way to.
        """

    def install(self, sink: ImageSink) -> Applied:
        """Put a finished image in the place of the state, durably and all or nothing.

        Between entries only. Afterwards the machine is as if opened anew: the position returned
        is the image's, and what was applied or waited for commit before is gone. A crash in it
        leaves the old state or the new one.
        """
