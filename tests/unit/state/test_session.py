"""Sessions: exactly once, ends, marks, uploads, pins."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.state.bodies import DAY_NS, GRACE_NS, Files, inline, stored
from tests.unit.state.shard import at
from tests.unit.state.test_views_costs import CountingKV

from nokv.errors import (
    BodyGone,
    InvalidArgument,
    NokvError,
    NotFound,
    NotPermitted,
    ResultTooLarge,
    SequenceReused,
    SessionExpired,
    Stale,
    UnknownSession,
    WindowFull,
)
from nokv.state import ops_session, reads_admin
from nokv.state.effects import SessionDead, SessionLive
from nokv.state.families import Family
from nokv.types.commands import (
    COMMAND_FORMAT,
    Command,
    Create,
    ExpireSession,
    LeaseUploads,
    Mkdir,
    Op,
    OpenSession,
    PinView,
    PublishMode,
    SessionMarks,
    StageBegin,
    Swept,
    UnpinView,
)
from nokv.types.limits import (
    FRAME_BYTES_MAX,
    PAGE_MAX,
    RANGES_PAGE_MAX,
    RESULT_WINDOW,
    SESSION_TTL_NS_DEFAULT,
    UPLOAD_WINDOW,
)
from nokv.types.reads import BodyMapReply, GetSession, ListSessions, SessionReply, SessionsReply
from nokv.types.results import Leased, Pinned, Result, SessionOpened
from nokv.types.values import Caller, Lease
from nokv.wire.codec import encode

TTL = SESSION_TTL_NS_DEFAULT


@pytest.fixture
def files() -> Files:
    return Files()


def send(files: Files, op: Op, seq: int, acked: int = 0, session: int | None = None) -> Result:
    one = files.session if session is None else session
    [result] = files.entry(Command(COMMAND_FORMAT, one, seq, acked, Caller(), op))
    return result


def known(files: Files, session: int | None = None) -> SessionReply:
    reply = files.read(GetSession(files.session if session is None else session))
    assert isinstance(reply, SessionReply)
    return reply


def test_a_nonce_opens_one_session(files: Files) -> None:
    files.machine.take_effects()
    first = files.internal(OpenSession(b"n" * 16, TTL))
    again = files.internal(OpenSession(b"n" * 16, 2 * TTL))
    assert first == again
    assert isinstance(first, SessionOpened)
    assert first.session == (1 << 32) + 2
    assert files.machine.take_effects() == [SessionLive(first.session, TTL)] * 2
    files.internal(ExpireSession(first.session))
    assert files.internal(OpenSession(b"n" * 16, TTL)) == first
    assert files.machine.take_effects() == [SessionDead(first.session)]
    for op in (OpenSession(b"n", TTL), OpenSession(b"m" * 16, 0), OpenSession(b"m" * 16, 2**63)):
        assert files.fails(op, session=0) is InvalidArgument


def test_a_repeated_number_answers_the_first_result(files: Files) -> None:
    made = send(files, Mkdir(at(), b"d", 0o755), 1)
    version = files.machine.version
    assert send(files, Create(at(), b"other", 0o644), 1) == made
    assert files.machine.version == version + 1
    failed = send(files, Mkdir(at(), b"d", 0o755), 2)
    assert failed.code
    assert send(files, Create(at(), b"other", 0o644), 2) == failed
    assert files.usage() == (1, 0)


def test_which_numbers_are_refused(files: Files) -> None:
    op = Create(at(), b"f", 0o644)
    refusals: list[tuple[int, int, type[NokvError]]] = [
        (0, -1, SequenceReused),
        (-5, -9, SequenceReused),
        (5, 5, InvalidArgument),
        (5, -1, InvalidArgument),
        (5 + RESULT_WINDOW, 4, WindowFull),
    ]
    for seq, acked, error in refusals:
        assert send(files, op, seq, acked).code == error.code
        assert not known(files).acked
    assert not send(files, op, 5, 4).code
    assert send(files, op, 4, 0).code == SequenceReused.code
    for session in (99, -1, 2**64 - 1, -(2**63)):
        assert send(files, op, 1, 0, session).code == UnknownSession.code
    assert send(files, op, 1, 0, 0).code == UnknownSession.code
    assert not send(files, Mkdir(at(), b"d", 0o755), 2**64 - 1, 2**64 - 2).code
    files.check()


@pytest.mark.parametrize("last", [Mkdir(at(), b"d", 0o755), Mkdir(at(b"no"), b"d", 0o755)])
def test_what_is_acknowledged_goes_also_with_a_failure(files: Files, last: Op) -> None:
    for seq in range(1, 6):
        send(files, Mkdir(at(), b"%d" % seq, 0o755), seq)
    rows = files.count(Family.SESSION)
    send(files, last, 6, 4)
    assert files.count(Family.SESSION) == rows - 4 + 1
    assert known(files).acked == 4
    files.check()
    assert send(files, Mkdir(at(), b"x", 0o755), 4).code == SequenceReused.code
    assert not send(files, Mkdir(at(), b"x", 0o755), 5).code
    assert files.usage()[0] == (6 if last == Mkdir(at(), b"d", 0o755) else 5)


def test_results_survive_the_session_until_it_is_swept(files: Files) -> None:
    made = send(files, Mkdir(at(), b"d", 0o755), 1)
    dead = files.session
    files.internal(ExpireSession(dead))
    files.internal(ExpireSession(dead))
    assert send(files, Mkdir(at(), b"d", 0o755), 1) == made
    assert send(files, Mkdir(at(), b"e", 0o755), 2).code == SessionExpired.code
    files.internal(Swept(dead, files.cluster_ns))
    assert not known(files).alive
    files.wait(DAY_NS)
    died = known(files).died_cluster_ns
    files.internal(Swept(dead, died - 1))
    assert not known(files).alive
    for begun_ns, grace_ns in (
        (died, 1),
        (died + GRACE_NS - 1, GRACE_NS),
        (files.cluster_ns + DAY_NS, 0),
    ):
        files.internal(Swept(dead, begun_ns, grace_ns))
        assert not known(files).alive
    files.internal(Swept(dead, died + GRACE_NS, GRACE_NS))
    assert send(files, Mkdir(at(), b"d", 0o755), 1).code == UnknownSession.code
    files.check()
    files.reap(1)
    assert not files.count(Family.SESSION)
    files.check()
    for op in (Swept(dead, 0), Swept(-1, 0), ExpireSession(dead), ExpireSession(-1)):
        assert files.fails(op, session=0) is NotFound
    alive = files.open(b"z" * 16)
    assert files.fails(Swept(alive, 0), session=0) is NotPermitted


def test_a_session_ends_itself_only(files: Files) -> None:
    other = files.open(b"o" * 16)
    assert files.fails(ExpireSession(other)) is NotPermitted
    assert files.fails(ExpireSession(-1)) is NotPermitted
    end = files.command(ExpireSession(files.session))
    [done] = files.entry(end)
    assert files.entry(end) == [done]
    assert not known(files).alive
    files.check()


# ---------------------------------------------------------------- marks


def test_only_a_newer_frame_counts(files: Files) -> None:
    files.upload(10)
    files.internal(SessionMarks((files.marks(5, floor=3, watermark=4),)))
    files.internal(SessionMarks((files.marks(5, floor=4, watermark=9),)))
    files.internal(SessionMarks((files.marks(4, floor=4, watermark=9),)))
    assert (known(files).floor, known(files).watermark, known(files).marks_number) == (3, 4, 5)
    files.internal(SessionMarks((files.marks(6, floor=1, watermark=1),)))
    assert (known(files).floor, known(files).watermark) == (3, 4)
    files.internal(SessionMarks((files.marks(7, floor=2**64 - 1, watermark=2**64 - 1),)))
    assert known(files).floor == files.machine.version
    assert known(files).watermark == 11
    for session in (-1, 0, 99, 2**64 - 1):
        files.internal(SessionMarks((files.marks(9, session=session),)))
    files.check()


def test_leases_are_applied_before_floors(files: Files) -> None:
    made = files.publish("f", inline(b"old"))
    body = files.stat("f").body
    lease = Lease(0, made.inode, body, files.machine.version)
    files.publish("f", inline(b"new"))
    ahead = files.machine.version
    files.internal(SessionMarks((files.marks(1, floor=ahead, leases=(lease,)),)))
    assert files.machine.marks_of(files.session) is not None
    asked = {"session": files.session, "body": body, "lease_version": lease.version}
    reply = files.body(at("f"), **asked)
    assert isinstance(reply, BodyMapReply)
    assert bytes(reply.chunks[0].chunk.extents[0].data) == b"old"
    late = Lease(0, made.inode, body, lease.version - 1)
    files.internal(SessionMarks((files.marks(2, floor=ahead, leases=(lease, late)),)))
    marks = files.machine.marks_of(files.session)
    assert marks is not None
    assert marks.leases == (lease,)
    files.internal(SessionMarks((files.marks(3, floor=ahead),)))
    for rest in ({"session": files.session}, {"session": 99}, {"session": -1}, {}):
        with pytest.raises(BodyGone):
            files.body(at("f"), **(asked | {"session": 0} | rest))


# ---------------------------------------------------------------- uploads


def test_uploads_are_leased_within_a_window(files: Files) -> None:
    assert files.do(LeaseUploads(3)) == Leased(1, 3)
    assert files.do(LeaseUploads(1)) == Leased(4, 1)
    for count in (0, -1, 4097):
        assert files.fails(LeaseUploads(count)) is InvalidArgument
    for _ in range(UPLOAD_WINDOW // 4096 - 1):
        files.do(LeaseUploads(4096))
    assert files.fails(LeaseUploads(4096)) is WindowFull
    files.internal(SessionMarks((files.marks(1, watermark=5),)))
    files.do(LeaseUploads(4096))


def test_consumed_uploads_merge_into_ranges(files: Files) -> None:
    files.upload(9)
    for upload in (5, 1, 3, 2, 9, 8, 4):
        files.publish("f", stored(5), publish_mode=PublishMode.REPLACE, upload=upload)
        files.check()
    assert known(files).consumed == ((1, 5), (8, 9))


def told(files: Files, after: int, limit: int = 9, above: int = 0) -> SessionsReply:
    reply = files.read(ListSessions(after, limit, above))
    assert isinstance(reply, SessionsReply)
    return reply


def test_published_uploads_come_in_pages(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_admin, "RANGES_PAGE_MAX", 2)
    mine, other = files.session, files.open(b"\x07" * 16)
    files.upload(12)
    for upload in (2, 4, 6, 8, 9):
        files.publish("f", stored(5), publish_mode=PublishMode.REPLACE, upload=upload)
    assert known(files).consumed == ((2, 2), (4, 4))
    first = told(files, 0)
    assert [(one.session, one.consumed) for one in first.sessions] == [(mine, ((2, 2), (4, 4)))]
    assert (first.more, first.above) == (True, 4)
    # What was published since makes one range of both sides; only what is beyond is told.
    files.publish("f", stored(5), publish_mode=PublishMode.REPLACE, upload=5)
    rest = told(files, mine, 9, first.above)
    assert [(one.session, one.consumed) for one in rest.sessions] == [(mine, ((5, 6), (8, 9)))]
    assert (rest.more, rest.above) == (True, 0)
    assert [one.session for one in told(files, mine).sessions] == [other]
    assert [one.session for one in told(files, mine, 9, 12).sessions] == [mine, other]
    assert told(files, mine, 1, 2**64 - 1).sessions[0].consumed == ()
    # One that is not there is not told of, nor are others as if they were it.
    assert [one.session for one in told(files, mine - 1, 9, 4).sessions] == [mine]


def test_a_page_of_sessions_fits_a_frame() -> None:
    # Numbers of the longest encoding, in as many ranges and sessions as a page may have.
    top = 2**64 - 1
    empty = SessionReply(top, True, top, top, top, top, top, top, top, top, top)
    full = msgspec.structs.replace(empty, consumed=((top, top),) * RANGES_PAGE_MAX)
    reply = SessionsReply((full, *[empty] * (PAGE_MAX - 1)), True, top, top)
    assert len(encode(reply)) < FRAME_BYTES_MAX // 4


# ---------------------------------------------------------------- pins


def test_a_pin_is_the_version_before(files: Files) -> None:
    files.create("f")
    pinned = files.do(PinView(0))
    version = files.machine.version
    assert pinned == Pinned(0, version - 1, version)
    assert isinstance(pinned, Pinned)
    files.do(UnpinView(0, pinned.version, pinned.pin))
    assert files.fails(UnpinView(0, pinned.version, pinned.pin)) is NotFound
    for odd in (-1, 2**64 - 1):
        assert files.fails(UnpinView(0, odd, 1)) is NotFound
        assert files.fails(UnpinView(odd, 1, odd)) is NotFound
    assert files.fails(PinView(1)) is Stale
    assert files.fails(PinView(-1)) is Stale


def test_pins_end_with_their_session(files: Files) -> None:
    pinned = files.do(PinView(0))
    assert isinstance(pinned, Pinned)
    mine, files.session = files.session, files.open(b"o" * 16)
    files.seq = 0
    assert files.fails(UnpinView(0, pinned.version, pinned.pin)) is NotPermitted
    files.internal(ExpireSession(mine))
    assert not files.count(Family.PIN)
    files.check()
    files.reap()


def test_a_session_has_so_many_pins(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_session, "PINS_PER_SESSION_MAX", 2)
    pinned = files.do(PinView(0))
    assert isinstance(pinned, Pinned)
    files.do(PinView(0))
    assert files.fails(PinView(0)) is ResultTooLarge
    files.do(UnpinView(0, pinned.version, pinned.pin))
    files.do(PinView(0))
    files.check()


def test_the_end_of_a_session_looks_at_its_own_pins() -> None:
    costs = []
    for others in (1, 50):
        kv = CountingKV()
        files = Files(kv)
        files.do(PinView(0))
        mine, files.session, files.seq = files.session, files.open(b"o" * 16), 0
        for _ in range(others):
            files.do(PinView(0))
        before = kv.rows
        files.internal(ExpireSession(mine))
        costs.append(kv.rows - before)
        files.check()
    assert costs[0] == costs[1]


def test_a_refusal_of_a_full_window_is_not_stored(files: Files) -> None:
    for seq in range(1, 65):
        assert not send(files, StageBegin(0, 0o040755), seq, seq - 1).code
    assert send(files, StageBegin(0, 0o040755), 65, 64).code == WindowFull.code
    files.check()
    assert not send(files, Mkdir(at(), b"d", 0o755), 65, 64).code
    files.check()
