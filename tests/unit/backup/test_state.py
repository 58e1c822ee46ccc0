"""Backups in the state machine: what they hold, who may end them, and restored states."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files, stored
from tests.unit.state.shard import START_NS, at

from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    NotPermitted,
    ResultTooLarge,
)
from nokv.state import keys, ops_backup
from nokv.state.families import Family
from nokv.state.machine import StateMachine
from nokv.state.records import Origin, encode
from nokv.types.commands import (
    AdoptVolume,
    CreateBackup,
    EndBackup,
    ExpireSession,
    FinishBackup,
    Reap,
    RestoreVolume,
    Unlink,
)
from nokv.types.reads import BackupRow, BackupsReply, GetOrigin, ListBackups, OriginReply
from nokv.types.values import At, Caller
from nokv.types.views import GetSnapshot, SnapshotCreate, SnapshotReply, WorkspaceCreate

DIGEST = bytes(16)
ROOT = Caller()


def create(name: str = "b", cluster: str = "c1", slot: int = 0) -> CreateBackup:
    return CreateBackup(name, 1, 10**18, "bucket", cluster, slot)


@pytest.fixture
def files() -> Files:
    return Files()


def rows(files: Files) -> tuple[BackupRow, ...]:
    _, reply = files.machine.read(ROOT, ListBackups())
    assert isinstance(reply, BackupsReply)
    return reply.rows


def origin(files: Files) -> OriginReply:
    _, reply = files.machine.read(ROOT, GetOrigin())
    assert isinstance(reply, OriginReply)
    return reply


def restored(files: Files, *, ready: bool = True) -> None:
    """Make the state one that was restored at its present version, as the restore writes it."""
    row = Origin("c2", files.machine.version, (("c1", "backups/x/"),), 0, ready=ready)
    files.kv.write(Family.META, [(keys.ORIGIN, encode(row))])
    files.machine = StateMachine(files.kv)


def test_a_backup_holds_what_it_shows_until_it_is_released(files: Files) -> None:
    files.publish("f", stored(10))
    files.do(create())
    (row,) = rows(files)
    files.do(FinishBackup(row.backup, 5, DIGEST))
    files.do(Unlink(at(), b"f"))
    files.raise_floor()
    files.wait()
    assert not files.drops().drops
    files.do(EndBackup(row.backup))
    assert not files.drops().drops, "an ended backup holds until it is released"
    files.do(EndBackup(row.backup, release=True))
    assert not files.drops().drops, "nor then, until its pins are taken off"
    files.reap()
    assert len(files.collect()) == 1
    assert rows(files) == ()


def test_its_pins_go_step_by_step(files: Files) -> None:
    for number in range(7):
        files.do(WorkspaceCreate(at(), b"w%d" % number, 0o755))
    files.do(create("a"))
    files.do(create("b"))
    a, b = rows(files)
    held = files.count(Family.PIN)
    files.do(EndBackup(a.backup))
    files.do(EndBackup(a.backup, release=True))
    assert files.count(Family.PIN) == held
    files.do(Reap(4), session=0)
    assert files.count(Family.PIN) > held - 5
    files.check()
    while files.machine.pending_work():
        files.do(Reap(4), session=0)
    left = {keys.pin_parts(key)[2] for key, _ in files.kv.scan(Family.PIN, b"", b"\xff" * 9)}
    assert left == {b.backup}


def test_what_one_holds_is_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_backup, "PINS_A_BACKUP_MAX", 3)
    files.do(create("a"))
    files.do(WorkspaceCreate(at(), b"w", 0o755))
    files.do(create("b"))
    assert files.fails(create("c")) is ResultTooLarge


def test_it_shows_the_commands_behind_it_in_its_entry(files: Files) -> None:
    results = files.entry(files.command(create()), files.command(create("other")))
    assert [result.code for result in results] == [0, 0]
    assert {row.version for row in rows(files)} == {files.machine.version}
    assert {row.backup for row in rows(files)} == {result.version for result in results}


def test_an_unfinished_one_is_given_up_with_its_session(files: Files) -> None:
    files.do(create("half"))
    files.do(create("whole"))
    half, whole = rows(files)
    files.do(FinishBackup(whole.backup, 5, DIGEST))
    files.do(ExpireSession(files.session), session=0)
    half, whole = rows(files)
    assert half.ended_cluster_ns
    assert not whole.ended_cluster_ns
    assert files.machine.has_backups()


def test_names_and_slots_are_taken_once(files: Files) -> None:
    files.do(create(slot=7))
    assert files.fails(create()) is AlreadyExists
    assert files.fails(create("next", slot=7)) is AlreadyExists
    assert files.fails(create("next", slot=6)) is AlreadyExists
    files.do(create("next", slot=8))
    (one, _) = rows(files)
    files.do(EndBackup(one.backup))
    files.do(create("b"))


@pytest.mark.parametrize(
    "op",
    [
        CreateBackup("a/b", 1, 1, "bucket", "c1"),
        CreateBackup(".a", 1, 1, "bucket", "c1"),
        CreateBackup("a", 0, 1, "bucket", "c1"),
        CreateBackup("a", 1, 0, "bucket", "c1"),
        CreateBackup("a", 1, 1, "bucket", ""),
        CreateBackup("a", 1, 1, "x" * 5000, "c1"),
        CreateBackup("a", 1, 1, "bucket", "c1", -1),
    ],
)
def test_bad_arguments(files: Files, op: CreateBackup) -> None:
    assert files.fails(op) is InvalidArgument


def test_a_slot_of_the_future_is_refused(files: Files) -> None:
    """It would keep all slots before it from being made, until its backup is released."""
    now_ms = START_NS // 1_000_000
    assert files.fails(create(slot=now_ms + 3_600_000)) is InvalidArgument
    files.do(create(slot=now_ms))


def test_a_slot_whose_maker_died_may_be_made_again(files: Files) -> None:
    files.do(create("half", slot=7))
    (half,) = rows(files)
    files.do(EndBackup(half.backup))
    files.do(create("half", slot=7))
    whole = rows(files)[1]
    files.do(FinishBackup(whole.backup, 1, DIGEST))
    files.do(EndBackup(whole.backup))
    assert files.fails(create("half", slot=7)) is AlreadyExists, "it was made"


def test_ends_and_finishes_may_come_again(files: Files) -> None:
    files.do(create())
    (row,) = rows(files)
    assert files.fails(EndBackup(row.backup, release=True)) is InvalidArgument
    files.do(EndBackup(row.backup))
    ended = rows(files)
    files.do(EndBackup(row.backup))
    assert rows(files) == ended
    assert files.fails(FinishBackup(row.backup, 1, DIGEST)) is NotFound
    files.do(EndBackup(row.backup, release=True))
    files.do(EndBackup(row.backup, release=True))
    files.do(EndBackup(2**63))
    assert files.fails(FinishBackup(-1, 1, DIGEST)) is NotFound


# ---------------------------------------------------------------- restored states


def test_a_restored_state_holds_all_of_its_backup_until_it_is_adopted(files: Files) -> None:
    files.publish("f", stored(10))
    restored(files)
    files.do(Unlink(at(), b"f"))
    files.publish("g", stored(10))
    files.do(Unlink(at(), b"g"))
    files.raise_floor()
    files.wait()
    assert len(files.drops().drops) == 1, "only what it made itself"
    assert not origin(files).adopted
    files.do(AdoptVolume())
    assert origin(files).adopted
    assert origin(files).lineage == ()
    assert len(files.drops().drops) == 2


def test_it_ends_no_backup_of_its_original_before(files: Files) -> None:
    files.do(create("theirs", "c1"))
    (row,) = rows(files)
    restored(files)
    assert files.fails(EndBackup(row.backup)) is NotPermitted
    files.do(create("ours", "c2"))
    files.do(EndBackup(rows(files)[1].backup))
    files.do(AdoptVolume())
    files.do(EndBackup(row.backup))


def test_it_serves_under_a_new_epoch_once_no_old_session_lives(files: Files) -> None:
    restored(files, ready=False)
    old = files.machine.counters.owner_epoch
    with pytest.raises(NotPermitted):
        files.do(RestoreVolume(old + 1), session=0)
    assert files.fails(AdoptVolume()) is NotPermitted
    files.do(ExpireSession(files.session), session=0)
    with pytest.raises(InvalidArgument):
        files.do(RestoreVolume(old), session=0)
    files.do(RestoreVolume(old + 1), session=0)
    assert files.open(b"\x09" * 16) >> 32 == old + 1
    with pytest.raises(AlreadyExists):
        files.do(RestoreVolume(old + 2), session=0)


def test_what_was_never_restored_can_not_be_adopted(files: Files) -> None:
    assert files.fails(AdoptVolume()) is NotPermitted
    assert origin(files).adopted
    with pytest.raises(AlreadyExists):
        files.do(RestoreVolume(77), session=0)


def test_a_snapshot_tells_of_the_backups_that_hold_it(files: Files) -> None:
    files.do(SnapshotCreate(At(), "s", b"/"))

    def held() -> int:
        reply = files.read(GetSnapshot("s"))
        assert isinstance(reply, SnapshotReply)
        return reply.backups

    assert held() == 0
    files.do(create())
    files.do(create("two"))
    assert held() == 2
    for row in rows(files):
        files.do(FinishBackup(row.backup, 5, DIGEST))
        files.do(EndBackup(row.backup))
        files.do(EndBackup(row.backup, release=True))
    assert held() == 0
