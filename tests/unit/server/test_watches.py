"""The node's side of watches: groups, windows, cursors, bookmarks, and what ends a watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.server.watching import WINDOW, Client, Node, run, turns
from tests.unit.state.shard import ALICE, at

from nokv.errors import (
    BadRequest,
    CursorTooOld,
    Internal,
    InvalidArgument,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    Stale,
)
from nokv.server import watch_frames
from nokv.server import watches as module
from nokv.state.records import decode_events
from nokv.types.commands import Mkdir, RemoveTree, SetAttr, TrimEvents
from nokv.types.events import EventKind
from nokv.types.values import At, Caller
from nokv.types.watch import SINCE_NOW, WATCH_WINDOW_BYTES_MAX, WATCH_WINDOW_BYTES_MIN


async def bulks(node: Node, count: int) -> list[int]:
    """Make events of 75 KiB, each told in a frame of its own."""
    versions = []
    for number in range(count):
        versions.append(node.bulk(300, number))
        await turns()
    return versions


def test_what_is_applied_is_told_in_the_loops_next_turn() -> None:
    async def test(node: Node, client: Client) -> None:
        opened = node.open(client)
        assert opened.cursor == node.shard.machine.version
        assert (opened.view, opened.inode) == (0, 1)
        made = [node.mkdir(name) for name in ("a", "a/b", "c")]
        await turns(2)
        (frame,) = client.frames[1]
        assert client.versions(1) == made
        assert frame.cursor == frame.version == made[-1]
        assert [event.directory for event in frame.events] == [b"", b"a", b""]

    run(test)


def test_equal_watches_share_bytes_and_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = decode_events

    def counting(data: bytes) -> Any:
        decoded.append(data)
        return original(data)

    monkeypatch.setattr(module, "decode_events", counting)

    async def test(node: Node, client: Client) -> None:
        node.mkdir("a")
        await turns()
        for number in range(1, 5):
            node.open(client, number, root=at("a"))
        node.open(client, 5, root=at("a"), recursive=False)
        await turns()
        made = node.mkdir("a/b")
        node.mkdir("elsewhere")
        await turns()
        assert [client.versions(number) for number in range(1, 6)] == [[made]] * 5
        assert len({id(payload) for payload in client.payloads}) == 2, "one for each scope"
        assert len(decoded) == 2
        assert node.watches.events_total == 2

    run(test)


def test_a_window_holds_back_and_nothing_is_lost() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        versions = await bulks(node, 6)
        assert client.versions(1) == versions[:1], "the frame that passes the window is the last"
        assert node.watches.lagging == 1
        stream = client.streams[1]
        while node.watches.lagging:
            before = len(client.payloads)
            stream.grant(len(client.payloads[-1]))
            await turns()
            told = client.versions(1)
            assert told == versions[: len(told)]
            assert len(client.payloads) <= before + 1, "one frame for one grant"
        assert client.versions(1) == versions
        assert node.watches.lagging == 0
        assert client.frames[1][-1].cursor == node.shard.machine.version

    run(test)


def test_many_small_events_fill_a_window_too() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client, window_bytes=WINDOW)
        await turns()
        made = []
        for n in range(3000):
            made.append(node.mkdir(f"d{n}"))
            if not n % 100:
                await turns(3)
        await turns()
        sent = sum(len(payload) for payload in client.payloads)
        assert WINDOW <= sent < WINDOW + watch_frames.FRAME_BYTES + 64
        assert len(client.versions(1)) < 3000
        while client.versions(1) != made:
            before = len(client.payloads)
            client.streams[1].grant(WINDOW // 2)
            await turns(100)
            assert len(client.payloads) > before or client.versions(1) == made

    run(test)


def test_a_client_that_does_not_read_is_sent_nothing_more() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        client.writable = False
        made = [node.mkdir("a"), node.mkdir("b")]
        await turns()
        node.watches.tick(1e9)
        assert not client.payloads
        client.writable = True
        client.streams[1].writable()
        await turns()
        assert client.versions(1) == made

    run(test)


def test_a_grant_beyond_the_window_ends_the_watch() -> None:
    async def test(node: Node, client: Client) -> None:
        for number, n_bytes in enumerate((0, -1, WATCH_WINDOW_BYTES_MAX), 1):
            node.open(client, number)
            client.streams[number].grant(n_bytes)
            assert isinstance(client.errors[number], InvalidArgument)
        assert node.watches.count == 0

    run(test)


def test_a_watch_goes_on_from_every_cursor() -> None:
    async def test(node: Node, _: Client) -> None:
        made = [node.mkdir(f"d{n}") for n in range(5)]
        ops = [Mkdir(at(), b"e%d" % n, 0o755) for n in range(4)]
        made += [one.version for one in node.shard.entry(*[node.shard.command(op) for op in ops])]
        await turns()
        for number, cursor in enumerate(range(node.shard.machine.version + 1), 1):
            one = Client()
            node.open(one, number, since=cursor)
            await turns()
            assert one.versions(number) == [version for version in made if version > cursor]
            one.streams[number].ended()
        assert node.watches.count == 0

    run(test)


def test_cursors_that_work_and_that_do_not() -> None:
    async def test(node: Node, client: Client) -> None:
        made = [node.mkdir(f"d{n}") for n in range(5)]
        present = node.shard.machine.version
        with pytest.raises(InvalidArgument, match="above the present"):
            node.open(client, since=present + 1)
        node.shard.do(TrimEvents(made[3], 100), session=0)
        with pytest.raises(CursorTooOld) as caught:
            node.open(client, since=made[1])
        assert caught.value.oldest == made[2]
        node.open(client, since=caught.value.oldest)
        await turns()
        assert client.versions(1) == made[3:]

    run(test)


def test_who_falls_behind_what_is_kept_is_told() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        versions = await bulks(node, 4)
        assert client.versions(1) == versions[:1]
        node.shard.do(TrimEvents(versions[2], 100), session=0)
        node.watches.applied()
        node.watches.tick(1e9)
        notice = client.frames[1][-1]
        assert (notice.events, notice.cursor) == ((), versions[0]), "how slow it is"
        assert (notice.version, notice.oldest) == (node.shard.machine.version, versions[1])
        client.streams[1].grant(WINDOW)
        await turns()
        error = client.errors[1]
        assert isinstance(error, CursorTooOld)
        assert error.oldest == versions[1]

    run(test)


def test_bookmarks_move_the_cursor_of_who_is_told_nothing() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("quiet")
        loop = asyncio.get_running_loop()
        node.open(client, root=at("quiet"), bookmark_ms=10_000)
        node.open(client, 2, root=at("quiet"), bookmark_ms=600_000)
        await turns()
        for n in range(3):
            node.mkdir(f"busy{n}")
        await turns()
        node.watches.tick(loop.time() + 9)
        assert not client.payloads
        node.watches.tick(loop.time() + 11)
        (frame,) = client.frames[1]
        assert (frame.events, frame.cursor) == ((), node.shard.machine.version)
        assert 2 not in client.frames
        node.watches.tick(loop.time() + 12)
        assert len(client.frames[1]) == 1

    run(test)


def test_a_directory_that_goes_ends_its_watches() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("a")
        node.mkdir("a/b")
        node.open(client, 1, root=at("a"))
        node.open(client, 2, root=at("a/b"), bookmark_ms=600_000)
        await turns()
        node.shard.do(RemoveTree(at(), b"a"))
        node.watches.applied()
        node.watches.tick(asyncio.get_running_loop().time())
        assert not client.errors, "first it is told why"
        await turns()
        assert [event.kind for event in client.told(1)] == [EventKind.REMOVE]
        node.watches.tick(asyncio.get_running_loop().time())
        assert isinstance(client.errors[1], Stale)
        assert 2 not in client.errors, "its own name did not go: the next bookmark finds out"
        node.watches.tick(1e9)
        assert isinstance(client.errors[2], Stale)
        assert node.watches.count == 0

    run(test)


def test_permissions() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("open")
        node.shard.mkdir("closed", 0o750)
        node.shard.create("file", 0o600)
        for path in ("closed", "closed/x", "file"):
            with pytest.raises(PermissionDenied):
                node.open(client, caller=ALICE, root=at(path))
        with pytest.raises(NotFound):
            node.open(client, caller=ALICE, root=at("open/x"))
        with pytest.raises(Stale):
            node.open(client, caller=ALICE, root=At(0, 999))
        node.open(client, caller=ALICE, root=at("open"))
        await turns()
        node.shard.do(SetAttr(at("open"), mode=0o711))
        node.watches.applied()
        await turns()
        node.watches.tick(1e9)
        assert isinstance(client.errors[1], PermissionDenied)

    run(test)


def test_a_file_can_be_watched() -> None:
    async def test(node: Node, client: Client) -> None:
        node.shard.create("file")
        opened = node.open(client, root=at("file"))
        assert opened.file_type == 8
        await turns()
        node.shard.do(SetAttr(at("file"), mode=0o600))
        node.mkdir("other")
        await turns()
        assert [event.kind for event in client.told(1)] == [EventKind.SETATTR]

    run(test)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_bytes": WATCH_WINDOW_BYTES_MIN - 1},
        {"window_bytes": WATCH_WINDOW_BYTES_MAX + 1},
        {"bookmark_ms": 0},
        {"bookmark_ms": 10**9},
        {"since": SINCE_NOW - 1},
        {"since": 2**63},
        {"kinds": (1,) * 65},
    ],
)
def test_arguments(wrong: dict[str, Any]) -> None:
    async def test(node: Node, client: Client) -> None:
        with pytest.raises(InvalidArgument):
            node.open(client, **wrong)

    run(test)


def test_watches_are_bounded_and_end_with_a_node_that_is_not_ready() -> None:
    async def test(node: Node, client: Client) -> None:
        for number in range(8):
            node.open(client, number)
        with pytest.raises(Overloaded):
            node.open(client, 9)
        await turns()
        node.watches.tick(0, "lagging")
        assert [type(error) for error in client.errors.values()] == [NotReady] * 8
        assert (node.watches.count, node.watches.lagging) == (0, 0)
        node.open(client, 9)

    run(test)


def test_nothing_is_read_inside_an_entry() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        made = node.mkdir("a")
        node.in_entry = True
        await turns()
        node.watches.tick(1e9)
        assert not client.payloads
        node.in_entry = False
        node.watches.applied()
        await turns()
        assert client.versions(1) == [made]

    run(test)


def test_a_record_over_a_frame_is_cut_and_resumed_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_frames, "FRAME_BYTES", 1000)

    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        ops = [Mkdir(at(), b"%0200d" % n, 0o755) for n in range(20)]
        made = [one.version for one in node.shard.entry(*[node.shard.command(op) for op in ops])]
        node.watches.applied()
        await turns()
        frames = client.frames[1]
        assert len(frames) > 3
        assert client.versions(1) == made
        for number, frame in enumerate(frames, 2):
            again = Client()
            node.open(again, number, since=frame.cursor)
            await turns()
            assert again.versions(number) == [version for version in made if version > frame.cursor]

    run(test)


def test_many_watches_of_one_directory_leave_time_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REST_PUSHES", 4)
    monkeypatch.setattr(module, "PUSH_S", 10.0)
    rests: list[tuple[float, Callable[[], None]]] = []

    def later(delay_s: float, call: Callable[[], None]) -> None:
        rests.append((delay_s, call))

    async def test(node: Node, client: Client) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", later)
        for number in range(5):
            node.open(client, number)
        await turns()
        first = node.mkdir("a")
        await turns()
        assert rests == []
        made = [first, node.mkdir("b"), node.mkdir("c")]
        await turns()
        assert [client.versions(number) for number in range(5)] == [[first]] * 5
        [(wait_s, pump)] = rests
        assert 0 < wait_s < 101, "twice as long as telling five watches took"
        pump()
        assert [client.versions(number) for number in range(5)] == [made] * 5
        assert len(client.payloads) == 10, "what came meanwhile goes out together"

    run(test)


def test_a_node_that_stops_sends_its_watches_away() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        node.mkdir("a")
        node.watches.close()
        await turns()
        assert isinstance(client.errors[1], NotReady)
        node.mkdir("b")
        await turns()
        assert not client.payloads

    run(test)


@pytest.mark.allow_logs("events could not be told")
def test_a_defect_costs_the_watches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    async def test(node: Node, client: Client) -> None:
        node.open(client)
        await turns()
        with monkeypatch.context() as patch:
            patch.setattr(module, "tell", broken)
            node.mkdir("a")
            await turns()
        assert isinstance(client.errors[1], Internal)
        assert node.watches.count == 0
        node.open(client, 2)
        await turns()
        made = node.mkdir("b")
        await turns()
        assert client.versions(2) == [made]

    run(test)


def test_every_id_is_one_stream() -> None:
    async def test(node: Node, client: Client) -> None:
        node.open(client)
        with pytest.raises(BadRequest):
            node.open(client)
        assert node.watches.count == 1

    run(test)


def test_the_caller_is_checked() -> None:
    async def test(node: Node, client: Client) -> None:
        with pytest.raises(InvalidArgument):
            node.open(client, caller=Caller(-1))

    run(test)
