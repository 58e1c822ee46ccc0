"""Checkpoints at the shard's side: when the next commit is held, and what callers are told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nokv.errors import NokvError, NotFound
from nokv.kv.lmdb_store import LmdbKV
from nokv.server import channel
from nokv.server.digests import HOLD_S, Digests
from nokv.server.machine import MachinePort
from nokv.server.rpc import Call
from nokv.state.machine import StateMachine
from nokv.types.commands import COMMAND_FORMAT, Checkpoint, Command, InitVolume, Reap
from nokv.types.values import Caller, Volume
from nokv.wire.codec import encode_command
from nokv.wire.rpc import DigestReply, ResponseBody
from nokv_replication import Applied, Times


class Asked(Call):
    """A call whose answer the test looks at."""

    def __init__(self) -> None:
        self.open = True
        self.told: ResponseBody | NokvError | None = None

    def answer(self, body: ResponseBody) -> None:
        self.open, self.told = False, body

    def fail(self, error: NokvError, leader: str = "") -> None:  # noqa: ARG002 - Call has it
        self.open, self.told = False, error


class Replica:
    """A machine over LMDB with its digests, and the worker's end of the channel."""

    def __init__(self, path: Path) -> None:
        self.now_s = 100.0
        self.kv = LmdbKV(path)
        self.port = MachinePort(StateMachine(self.kv), self.kv)
        self.index = 0
        mine, self.worker = channel.make_pair()
        self.mine = mine
        self.digests = Digests(self.port, mine, lambda: self.now_s)
        self.port.effects = self
        self.apply(InitVolume(Volume("ab" * 16, "memory"), 1))

    def session_live(self, session: int, ttl_ns: int) -> None: ...

    def session_dead(self, session: int) -> None: ...

    def lock_wait_over(self, session: int, ticket: int, granted: bool) -> None: ...

    def state_replaced(self) -> None: ...

    def applied(self) -> None: ...

    def backup(self, backup: int, node: int) -> None: ...

    def checkpoint(self, number: int, applied_index: int, version: int) -> None:
        self.digests.reached(number, applied_index, version)

    def apply(self, op: InitVolume | Checkpoint | Reap) -> None:
        self.index += 1
        payload = encode_command(Command(COMMAND_FORMAT, 0, 0, 0, Caller(), op))
        applied = Applied(self.index, 1)
        (_,) = self.port.apply(applied, Times(), [payload])

    def say(self, message: channel.Message) -> None:
        channel.send(self.worker, message)
        self.digests.readable()

    def close(self) -> None:
        self.kv.close()
        self.mine.close()
        self.worker.close()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(tmp_path / "state")
    yield made
    made.close()


def digested(number: int) -> channel.CheckpointDigested:
    return channel.CheckpointDigested(number, {"inode": bytes(16)}, b"\x07" * 16)


def test_a_checkpoint_commits_at_once_and_holds_the_next_commit(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Reap(1))
    replica.apply(Checkpoint(9))
    assert channel.receive(replica.worker) == [channel.CheckpointMade(9, replica.index, 3)]
    at = replica.index
    replica.apply(Reap(1))
    assert replica.port.commit() == at
    replica.say(channel.CheckpointOpened(8))
    assert replica.port.commit() == at
    replica.say(channel.CheckpointOpened(9))
    assert replica.port.commit() == at + 1


def test_the_hold_ends_after_a_second_and_is_not_repeated_for_nobody(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    at = replica.index
    waiting = Asked()
    replica.digests.answer(9, waiting)
    replica.apply(Reap(1))
    assert replica.port.commit() == at
    replica.now_s += HOLD_S
    assert replica.port.commit() == at + 1
    assert isinstance(waiting.told, NotFound)
    replica.apply(Checkpoint(10))
    replica.apply(Reap(1))
    assert replica.port.commit() == replica.index
    assert replica.digests.missed_total == 2


def test_a_worker_that_was_late_once_is_waited_for_again(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    replica.now_s += HOLD_S
    replica.digests.tick()
    # Late, and of no use for that checkpoint: but it reads.
    replica.say(channel.CheckpointMissed(9, "the store had moved on"))
    replica.apply(Checkpoint(10))
    at = replica.index
    replica.apply(Reap(1))
    assert replica.port.commit() == at
    replica.say(channel.CheckpointOpened(10))
    replica.say(digested(10))
    assert replica.digests.latest == 10


def test_a_worker_that_did_not_read_for_a_while_is_waited_for_again(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    number = 1
    replica.apply(Checkpoint(number))
    while replica.port.hold_until is not None:  # until a message does not fit
        number += 1
        replica.apply(Checkpoint(number))
    for made in channel.receive(replica.worker):
        assert isinstance(made, channel.CheckpointMade)
        replica.say(channel.CheckpointMissed(made.number, "the store had moved on"))
    replica.apply(Checkpoint(number + 1))
    replica.say(digested(number + 1))
    assert replica.digests.latest == number + 1


def test_callers_get_the_digest_now_or_when_it_is_made(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    early, latest = Asked(), Asked()
    replica.digests.answer(9, early)
    replica.apply(Checkpoint(9))
    at = replica.index
    replica.say(channel.CheckpointOpened(9))
    assert early.open
    replica.say(digested(9))
    wanted = DigestReply(9, 2, at, {"inode": bytes(16)}, b"\x07" * 16)
    assert early.told == wanted
    replica.digests.answer(0, latest)
    assert latest.told == wanted
    old = Asked()
    replica.digests.answer(3, old)
    assert isinstance(old.told, NotFound)


def test_what_the_worker_missed_is_told(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    waiting = Asked()
    replica.digests.answer(9, waiting)
    replica.say(channel.CheckpointMissed(9, "busy"))
    assert isinstance(waiting.told, NotFound)
    replica.say(digested(9))
    assert replica.digests.latest == 0
    assert replica.port.commit() == replica.index


def test_a_hold_ends_where_nothing_is_committed_meanwhile(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    waiting = Asked()
    replica.digests.answer(9, waiting)
    replica.digests.tick()
    assert waiting.open
    replica.now_s += HOLD_S
    replica.digests.tick()
    assert isinstance(waiting.told, NotFound)
    late = Asked()
    replica.digests.answer(9, late)
    assert isinstance(late.told, NotFound)


def test_a_worker_that_starts_anew_has_lost_what_was_open(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    replica.say(channel.CheckpointOpened(9))
    waiting = Asked()
    replica.digests.answer(9, waiting)
    replica.say(channel.WorkerReady())
    assert isinstance(waiting.told, NotFound)


def test_without_a_worker_nothing_is_held(replica: Replica) -> None:
    replica.apply(Checkpoint(9))
    replica.apply(Reap(1))
    assert replica.port.commit() == replica.index


def test_a_later_checkpoint_takes_over_the_hold(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    replica.apply(Checkpoint(10))
    at = replica.index
    replica.apply(Reap(1))
    replica.say(channel.CheckpointOpened(9))
    assert replica.port.commit() == at
    replica.say(channel.CheckpointOpened(10))
    assert replica.port.commit() == at + 1


def test_a_replaced_state_ends_its_checkpoints(replica: Replica) -> None:
    replica.say(channel.WorkerReady())
    replica.apply(Checkpoint(9))
    waiting = Asked()
    replica.digests.answer(9, waiting)
    replica.digests.state_replaced()
    assert isinstance(waiting.told, NotFound)
    assert "state image" in str(waiting.told)
    assert replica.port.hold_until is None


def test_the_channel_keeps_messages_whole_and_tells_the_end() -> None:
    one, two = channel.make_pair()
    assert channel.receive(one) == []
    channel.send(two, channel.WorkerReady())
    channel.send(two, channel.CheckpointOpened(1))
    assert channel.receive(one) == [channel.WorkerReady(), channel.CheckpointOpened(1)]
    two.close()
    with pytest.raises(EOFError):
        channel.receive(one)
    assert not channel.send(one, channel.WorkerReady())
    one.close()


def test_a_worker_that_never_reads_blocks_nobody() -> None:
    one, two = channel.make_pair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while channel.send(one, channel.CheckpointMade(1, 1, 1)):
        pass
    one.close()
    two.close()
