"""The server's machine port makes, receives and installs images of the LMDB state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nokv.kv.digest import combine, digest
from nokv.kv.lmdb_store import LmdbKV
from nokv.server.machine import MachinePort
from nokv.state.machine import StateMachine
from nokv.types.commands import COMMAND_FORMAT, Command, InitVolume, OpenSession
from nokv.types.values import Caller, Volume
from nokv.wire.codec import encode_command
from nokv_replication import Applied, ImageDamaged, ImageRefused, Times


class Replica:
    """A machine over LMDB, and what it tells its node."""

    def __init__(self, path: Path) -> None:
        self.kv = LmdbKV(path)
        self.port = MachinePort(StateMachine(self.kv), self.kv)
        self.port.effects = self
        self.index = self.port.open().index
        self.replaced = 0

    def session_live(self, session: int, ttl_ns: int) -> None: ...

    def session_dead(self, session: int) -> None: ...

    def lock_wait_over(self, session: int, ticket: int, granted: bool) -> None: ...

    def backup(self, backup: int, node: int) -> None: ...

    def checkpoint(self, number: int, applied_index: int, version: int) -> None: ...

    def state_replaced(self) -> None:
        self.replaced += 1

    def applied(self) -> None: ...

    def apply(self, op: InitVolume | OpenSession) -> None:
        self.index += 1
        payload = encode_command(Command(COMMAND_FORMAT, 0, 0, 0, Caller(), op))
        applied = Applied(self.index, 1, b"members", Times(self.index, self.index))
        list(self.port.apply(applied, applied.times, [payload]))

    def fill(self, sessions: int) -> None:
        if not self.index:
            self.apply(InitVolume(Volume("ab" * 16, "memory"), 1))
        for number in range(sessions):
            self.apply(OpenSession(b"%016d" % (self.index + number), 10**9))
        self.port.commit()


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Replica]:
    (tmp_path / "leader").mkdir()
    made = Replica(tmp_path / "leader" / "state")
    made.fill(2000)
    yield made
    made.kv.close()


@pytest.fixture
def lagging(tmp_path: Path) -> Iterator[Replica]:
    (tmp_path / "lagging").mkdir()
    made = Replica(tmp_path / "lagging" / "state")
    made.fill(3)
    yield made
    made.kv.close()


def transfer(leader: Replica, lagging: Replica) -> Applied:
    source = leader.port.image()
    sink = lagging.port.receive(source.applied)
    while piece := source.read():
        sink.write(piece)
    source.close()
    sink.finish()
    return lagging.port.install(sink)


def test_an_installed_image_is_the_whole_state(leader: Replica, lagging: Replica) -> None:
    applied = transfer(leader, lagging)
    assert applied == leader.port.open() == lagging.port.open()
    assert applied.config == b"members"
    assert combine(digest(lagging.kv)) == combine(digest(leader.kv))
    assert lagging.port.fingerprint() == leader.port.fingerprint()
    assert lagging.port.machine.live_sessions() == leader.port.machine.live_sessions()
    assert lagging.port.volume == leader.port.volume
    assert lagging.replaced == 1
    # Both go on alike, and the new state is durable where it is.
    lagging.index = leader.index
    for replica in (leader, lagging):
        replica.fill(10)
    assert combine(digest(lagging.kv)) == combine(digest(leader.kv))
    assert lagging.port.fingerprint() == leader.port.fingerprint()


def test_what_was_not_committed_is_no_part_of_an_image(leader: Replica, lagging: Replica) -> None:
    durable = leader.port.open()
    leader.apply(OpenSession(b"never committed.", 10**9))
    assert transfer(leader, lagging) == durable


def test_another_process_reads_the_new_state_from_then_on(
    leader: Replica, lagging: Replica, tmp_path: Path
) -> None:
    path = tmp_path / "lagging" / "state"
    before = path.stat().st_ino
    transfer(leader, lagging)
    assert path.stat().st_ino != before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["state"]


def test_an_image_that_stands_elsewhere_is_refused(leader: Replica, lagging: Replica) -> None:
    source = leader.port.image()
    sink = lagging.port.receive(msgspec.structs.replace(source.applied, index=99_999))
    while piece := source.read():
        sink.write(piece)
    with pytest.raises(ImageDamaged, match="offered at"):
        sink.finish()
    sink.abort()
    source.close()


def test_damage_and_a_full_disk_are_told_apart(
    leader: Replica, lagging: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = leader.port.image()
    sink = lagging.port.receive(source.applied)
    with pytest.raises(ImageDamaged):
        sink.write(source.read()[:-1])
    sink.abort()

    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nokv.kv.image.make_environment", full)
    with pytest.raises(ImageRefused, match="No space"):
        lagging.port.receive(source.applied)
    source.close()
    assert not lagging.kv.incoming.exists()
    lagging.fill(1)
