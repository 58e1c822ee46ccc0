"""What the collector waits for is told by name, and told of exactly what waits."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import DAY_NS, GRACE_NS, Files, stored
from tests.unit.state.shard import at

from nokv.state.collect import is_safe, read_guards
from nokv.state.families import Family
from nokv.state.records import decode_drop
from nokv.types.commands import (
    CreateBackup,
    ExpireSession,
    Mkdir,
    PinView,
    PublishMode,
    RemoveTree,
    SessionMarks,
    Unlink,
)
from nokv.types.copies import Copy, CopyMode
from nokv.types.gc import (
    GetPendingDrops,
    GetWaiting,
    ListWaitingSessions,
    PendingDrop,
    PendingDropsReply,
    WaitingReply,
    WaitingSession,
    WaitingSessionsReply,
    Why,
    WhySession,
)
from nokv.types.values import Lease
from nokv.types.views import HELD, Clone, SnapshotCreate, SnapshotDelete


@pytest.fixture
def files() -> Files:
    return Files()


def pending(files: Files, limit: int = 256) -> list[PendingDrop]:
    """All rows, page by page: one without a reason is safe, and no other is."""
    rows: list[PendingDrop] = []
    after = 0
    while True:
        page = files.read(GetPendingDrops(after, limit, GRACE_NS))
        assert isinstance(page, PendingDropsReply)
        assert len(page.rows) <= limit
        rows += page.rows
        if not page.more:
            break
        after = page.after
    guards = read_guards(files.machine._txn.present)
    for row in rows:
        value = files.kv.get(Family.DROP, row.drop.to_bytes(8, "big"))
        assert value is not None
        kept = {reason.why for reason in row.reasons} - {Why.SHARED}
        assert is_safe(decode_drop(value), guards, GRACE_NS) == (not kept), row
    assert len(rows) == files.count(Family.DROP)
    return rows


def whys(row: PendingDrop) -> dict[int, tuple[int, str]]:
    return {reason.why: (reason.by, reason.name) for reason in row.reasons}


def sessions(files: Files) -> dict[int, WaitingSession]:
    page = files.read(ListWaitingSessions(grace_ns=GRACE_NS))
    assert isinstance(page, WaitingSessionsReply)
    return {row.session: row for row in page.rows}


def waiting(files: Files) -> WaitingReply:
    reply = files.read(GetWaiting())
    assert isinstance(reply, WaitingReply)
    return reply


def test_every_holder_of_a_row_is_named(files: Files) -> None:
    files.do(Mkdir(at(), b"d", 0o755))
    files.publish("d/f", stored(10))
    inode = files.stat("d/f")
    files.do(SnapshotCreate(at(), "keep", b"/", HELD))
    files.do(Clone(at("d"), at(), b"copy", ""))
    files.do(PinView(0))
    files.do(CreateBackup("nightly", 1, DAY_NS, "bucket", "c" * 32))
    other = files.open(b"\x07" * 16)
    lease = Lease(0, inode.inode, inode.body, files.machine.version)
    files.internal(SessionMarks((files.marks(1, leases=(lease,)),)))
    files.do(Unlink(at("d"), b"f"))
    (row,) = pending(files)
    assert (row.view, row.inode, row.chunk, row.objects, row.size_bytes) == (
        0,
        inode.inode,
        -1,
        1,
        10,
    )
    found = whys(row)
    assert found[Why.SNAPSHOT][1] == "keep"
    assert found[Why.BACKUP][1] == "nightly"
    assert found[Why.SESSION_PIN][0] == files.session
    assert found[Why.CLONE][0]
    assert found[Why.LEASE][0] == files.session
    assert {reason.by for reason in row.reasons if reason.why == Why.FLOOR} == {
        files.session,
        other,
    }
    assert Why.GRACE in found


def test_a_row_without_a_reason_goes_with_the_next_round(files: Files) -> None:
    files.publish("f", stored(10))
    files.do(SnapshotCreate(at(), "keep", b"/", HELD))
    files.do(Unlink(at(), b"f"))
    files.raise_floor()
    files.wait()
    assert whys(pending(files)[0]).keys() == {Why.SNAPSHOT}
    assert files.collect() == []
    files.do(SnapshotDelete("keep"))
    files.raise_floor()
    assert pending(files)[0].reasons == ()
    assert len(files.collect()) == 1
    assert pending(files) == []


def test_a_copied_body_waits_for_no_one_but_deletes_nothing_yet(files: Files) -> None:
    files.publish("f", stored(10))
    files.do(Copy(at("f"), at(), b"g", CopyMode.CREATE, 0o644))
    files.do(Unlink(at(), b"f"))
    files.raise_floor()
    files.wait()
    assert whys(pending(files)[0]).keys() == {Why.SHARED}
    assert files.collect() == []
    assert pending(files) == []


def test_pages_hold_every_row_once(files: Files) -> None:
    for _ in range(6):
        files.publish("f", stored(10))
    rows = pending(files, 2)
    assert [row.drop for row in rows] == sorted({row.drop for row in rows})
    assert len(rows) == 5


def test_what_waits_is_counted_by_kind(files: Files) -> None:
    files.do(Mkdir(at(), b"d", 0o755))
    files.publish("d/f", stored(10))
    files.pin()
    files.do(RemoveTree(at(), b"d"))
    assert waiting(files).jobs_by_kind == {"tree": 1}
    files.reap()
    found = waiting(files)
    assert (found.jobs, found.jobs_by_kind, found.drops, found.snapshots) == (0, {}, 1, 0)
    assert found.history > 0


def test_a_session_says_what_it_waits_for(files: Files) -> None:
    other = files.open(b"\x07" * 16)
    assert sessions(files)[other].why == WhySession.ALIVE
    uploads = files.upload(3)
    files.internal(SessionMarks((files.marks(1, watermark=uploads + 2),)))
    mine = sessions(files)[files.session]
    assert (mine.why, mine.abandoned) == (WhySession.ABANDONED, 2)
    assert mine.until_cluster_ns
    files.internal(ExpireSession(other))
    assert sessions(files)[other].why == WhySession.GRACE
    files.wait()
    assert sessions(files)[files.session].until_cluster_ns == 0
    assert sessions(files)[other].why == WhySession.ANSWERS
    files.wait(DAY_NS)
    assert sessions(files)[other].why == WhySession.SWEEP


def test_a_page_of_sessions_ends_by_its_cost(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nokv.state.reads_gc.PAGE_COST_MAX", 3)
    files.upload(9)
    for upload in (2, 4, 6):
        files.publish("f", stored(5), publish_mode=PublishMode.REPLACE, upload=upload)
    for nonce in range(5, 9):
        files.open(bytes([nonce]) * 16)
    after, pages, more = 0, [], True
    while more:
        page = files.read(ListWaitingSessions(after, grace_ns=GRACE_NS))
        assert isinstance(page, WaitingSessionsReply)
        pages.append(len(page.rows))
        after, more = page.rows[-1].session, page.more
    assert pages == [1, 3, 1]
