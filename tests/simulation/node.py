"""One simulated replica's life over its crashes."""

from collections.abc import Callable

from tests.simulation.disk import SimDisk
from tests.simulation.ports import SimClock, Storage, Watched

from nokv_replication import Group


class Node:
    """What outlives a node's processes, and the process that runs now, if any."""

    def __init__(self, node: int, incarnation: int, storage: Storage, clock: SimClock) -> None:
        self.node = node
        self.incarnation = incarnation
        self.disk = SimDisk()
        self.storage = storage
        self.clock = clock
        self.group: Group | None = None
        self.watched: Watched | None = None
        self.lives = 0
        self.paused_until_ns = 0
        self.held: list[Callable[[], None]] = []
        """Frames that wait in a suspended process's sockets."""
        self.slow_until_ns = 0
        self.sync_ns = 0
        """What a sync takes until `slow_until_ns`."""
        self.dead = ""
        """Why it never starts again, "" while it may."""
        self.tampered = False
        """Bits of its disk were turned: it may find its log damaged."""
        self.stranger = False
        # It holds the list of the first members.
        self.founded = False
        """It came back with an empty disk under its old number: nobody talks to it."""
        self.joins: dict[int, str] = {}
        """Addresses of the members it was made to join; a founder has none."""
        # Token of the step that is scheduled; an older one does nothing when its time comes.
        self.step_token = 0
        self.step_at_ns = 0
        self.hurried_steps = 0
        """Steps in a row that the group wanted at once."""
