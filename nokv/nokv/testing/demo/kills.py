"""Killing the leader in the middle of a publish, and telling whether it was in the middle.

Both are fault points of the publishing client (`nokv.client.core.FaultPoint`): the publish waits
while the leader is killed, so that what is said of that moment is so.
"""

from __future__ import annotations

import time
from typing import Final

from nokv.objects.port import ObjectStore
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import list_session
from nokv.testing.harness import Harness, Sent


class Kill:
    """Base: what is known of one kill."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster: Final = cluster
        self.client: Harness | None = None
        """Of the publish; set before it begins."""
        self.node = 0
        """Killed; 0: none yet."""
        self.moment_s = 0.0
        """When, by the monotonic clock."""
        self.counts = False
        """Whether it was in the middle."""
        self.evidence = ""
        """Why it counts, or why not."""
        self.sent: Sent | None = None
        """The last command that the publish sent: the one that made it visible."""

    async def __call__(self, point: str) -> None:
        """Be called by the client."""
        assert self.client is not None
        if point == "sent":
            self.sent = await self.client.newest_command()
        if not self.node:
            await self.consider(point)

    async def consider(self, point: str) -> None:
        """Kill the leader if this is the moment."""
        raise NotImplementedError

    async def kill_leader(self) -> bool:
        """Kill whoever leads; False: nobody does."""
        assert self.client is not None
        status = await self.client.leader_status()
        if status is None:
            self.evidence = "nobody led at that moment"
            return False
        self.node = status.node
        self.moment_s = time.monotonic()
        self.cluster.kill(status.node)
        return True


class KillWhileUploading(Kill):
    """Kills after so many files; counts if some but not all objects were stored at that moment."""

    def __init__(
        self, cluster: LocalCluster, store: ObjectStore, after_files: int, objects: int
    ) -> None:
        super().__init__(cluster)
        self._store = store
        self._after_files = after_files
        self._objects = objects
        """Of the whole publish."""
        self._files = 0

    async def consider(self, point: str) -> None:
        """Count files, and kill; objects only get more, so the two listings bound that moment."""
        if point != "uploaded":
            return
        self._files += 1
        if self._files != self._after_files:
            return
        before = await self._stored()
        if not await self.kill_leader():
            return
        after = await self._stored()
        self.counts = before > 0 and after < self._objects
        self.evidence = f"{before} to {after} of {self._objects} objects were stored"

    async def _stored(self) -> int:
        assert self.client is not None
        session = self.client.core.session_now
        assert session is not None
        return len(await list_session(self._store, self.client.core.volume.volume, session.id))


class KillWhileProposed(Kill):
    """Kills a leader that has proposed the publish and cannot have answered it.

    The followers are paused (SIGSTOP) before the command is sent, so that it cannot be committed;
    the leader says that it has taken the command, and is killed; then the followers go on. What it
    sent them is in their sockets, so the entry may survive or not: either way the client's retry
    must end in exactly one publish.
    """

    async def consider(self, point: str) -> None:
        """Pause the followers at `publish`, kill at `sent`."""
        assert self.client is not None
        if point == "publish":
            status = await self.client.leader_status()
            self._paused = [
                node
                for node in self.cluster.nodes
                if status is not None and node != status.node and self.cluster.is_running(node)
            ]
            for node in self._paused:
                self.cluster.pause(node)
        elif point == "sent":
            assert self.sent is not None
            try:
                if not await self.kill_leader():
                    return
                session = self.client.core.session_now
                open_commands = session.stream.open_commands() if session is not None else []
                self.counts = len(self._paused) == 2 and self.sent.data in open_commands
                self.evidence = "proposed by the leader, not answered"
                if not self.counts:
                    self.evidence = "the publish was answered before"
            finally:
                for node in self._paused:
                    self.cluster.resume(node)
