"""Power cuts under a whole node: log and LMDB of a real shard process on a disk that forgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.powercut.disk import PowerCutDisk, why_unusable
from tests.unit.server.nodes import Caller1, leader

from nokv.errors import NokvError, Unavailable
from nokv.testing.cluster import LocalCluster
from nokv.types.commands import Create
from nokv.types.reads import DirPage, ReadDir
from nokv.types.results import Made
from nokv.types.values import At

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_unusable()), reason=why_unusable() or "usable"),
    # The shard process says why it stops, and its supervisor passes the code on.
    pytest.mark.allow_logs("stops", "does not start"),
]

EXIT_FATAL = 70
CUTS = 9
EVENTS_MAX = 120
"""Events of the disk between the first command after a start, or the start, and the cut."""

QUICK: dict[str, str | int | bool] = {
    "worker.enabled": False,
    "log.segment_bytes": 8 << 20,
    "timing.heartbeat_ms": 20,
    "timing.election_min_ms": 80,
    "timing.election_max_ms": 160,
}
COMMITS = {**QUICK, "timing.commit_interval_ms": 50}
NO_COMMITS = {**QUICK, "timing.commit_interval_ms": 3_600_000}
"""The state is never committed by time, so each sync of the disk is one of the log."""


class Machine:
    """A node whose data directory lies on the disk, and a client that knows what it was told."""

    def __init__(self, place: Path, settings: dict[str, str | int | bool]) -> None:
        (place / "mount").mkdir(parents=True)
        (place / "backing").mkdir()
        self.disk = PowerCutDisk(place / "mount", place / "backing")
        try:
            where = {"data_dir": str(self.disk.mountpoint / "data")}
            self.cluster = LocalCluster.start(
                1, directory=place / "node", settings=settings | where
            )
        except BaseException:
            self.disk.close()
            raise
        self.session = 0
        self.seq = 0
        self.acknowledged: dict[int, int] = {}
        """Sequence number to the version it was answered with."""

    def close(self) -> None:
        self.cluster.close()
        self.disk.close()

    def cut(self, seed: int | None) -> None:
        """Lose power and start the machine again."""
        self.cluster.kill(1)
        self.disk.cut(seed)
        self.cluster.restart(1)

    async def connect(self) -> Caller1:
        _, connection = await leader([self.cluster.addresses])
        client = Caller1(connection)
        if not self.session:
            await client.open(3600 * 10**9)
            self.session = client.session
        client.session = self.session
        return client

    async def create(self, client: Caller1, seq: int) -> None:
        """Create the file that `seq` names; note the answer, which must be the first one."""
        value = await client.raw(self.session, seq, Create(At(), b"%06d" % seq, 0o644))
        assert isinstance(value, Made)
        version = value.attr.version
        assert self.acknowledged.setdefault(seq, version) == version, f"{seq} was done twice"

    async def create_until(self, event: int) -> None:
        """Create file after file until the power goes off, so many events from now.

        The last one's outcome stays unknown.
        """
        client = await self.connect()
        self.disk.cut_at(len(self.disk.events()) + event)
        try:
            while True:
                self.seq += 1
                await self.create(client, self.seq)
        except NokvError:
            return
        finally:
            await client.connection.close()

    async def create_with_an_ignored_sync(self) -> None:
        """Create files until one was answered after exactly one sync, which did nothing."""
        client = await self.connect()
        syncs = -1
        while len(self.disk.syncs()) != syncs + 1:
            syncs = len(self.disk.syncs())
            self.disk.ignore_sync(syncs)
            self.seq += 1
            await self.create(client, self.seq)
        assert ".log" in self.disk.syncs()[syncs]
        await client.connection.close()

    async def missing(self) -> list[int]:
        """Settle the unknown outcome by a retry; return what was acknowledged and is not there."""
        client = await self.connect()
        before = set(self.acknowledged)
        there = await self.names(client)
        lost = sorted(before - there)
        assert there - before <= {self.seq}, "a file that nobody asked for"
        if self.seq and not lost:
            await self.create(client, self.seq)
            assert await self.names(client) == before | {self.seq}
        await client.connection.close()
        return lost

    async def names(self, client: Caller1) -> set[int]:
        names: set[int] = set()
        after, more = b"", True
        while more:
            page = await client.read(ReadDir(At(), after))
            assert isinstance(page, DirPage)
            names.update(int(entry.name) for entry in page.entries)
            more, after = page.more, page.entries[-1].name if page.entries else b""
        return names


@pytest.fixture
def new_machine(
    tmp_path: Path, check_log: Callable[[Path], None]
) -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def make(settings: dict[str, str | int | bool]) -> Machine:
        machines.append(Machine(tmp_path / f"machine-{len(machines)}", settings))
        check_log(machines[-1].cluster.folder.log_path(1))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def test_what_was_acknowledged_survives_any_cut(new_machine: Callable[..., Machine]) -> None:
    machine, rng = new_machine(COMMITS), random.Random(2)
    for number in range(CUTS):
        asyncio.run(machine.create_until(rng.randrange(1, EVENTS_MAX)))
        assert machine.cluster.wait_exit(1) == EXIT_FATAL, f"cut {number}"
        machine.disk.cut(None if number % 3 == 0 else number)
        if number % 4 == 3:
            # The next start is cut too: what it had made durable by then is enough.
            machine.disk.cut_at(len(machine.disk.events()) + rng.randrange(1, 12))
            machine.cluster.start_node(1)
            assert machine.cluster.wait_exit(1) == EXIT_FATAL, f"cut {number}"
            machine.disk.cut(number)
        machine.cluster.restart(1)
        assert asyncio.run(machine.missing()) == [], f"cut {number}"
    print(f"{len(machine.acknowledged)} creates, {len(machine.disk.events())} events")
    assert len(machine.acknowledged) > CUTS


def test_a_sync_of_the_log_that_does_nothing_is_found(new_machine: Callable[..., Machine]) -> None:
    """The proof that the test above can fail: the same disk, and one fdatasync taken away."""
    machine = new_machine(NO_COMMITS)
    asyncio.run(machine.create_with_an_ignored_sync())
    machine.cut(None)
    assert asyncio.run(machine.missing()) == [machine.seq]


def test_a_failed_sync_of_the_log_stops_the_node_and_answers_nobody(
    new_machine: Callable[..., Machine],
) -> None:
    machine = new_machine(NO_COMMITS)

    async def create() -> None:
        client = await machine.connect()
        await machine.create(client, 1)
        machine.seq = 2
        before = len(machine.disk.events())
        machine.disk.cut_at(before + 1)
        with pytest.raises(Unavailable):
            await machine.create(client, 2)
        (written,) = machine.disk.events()[before:]
        assert written.startswith("write")
        assert ".log" in written
        await client.connection.close()

    asyncio.run(create())
    assert machine.cluster.wait_exit(1) == EXIT_FATAL
    assert "disk failed" in machine.cluster.folder.log_tail(1)
    machine.disk.cut(None)
    machine.cluster.restart(1)
    assert asyncio.run(machine.missing()) == []
    assert set(machine.acknowledged) == {1, 2}
