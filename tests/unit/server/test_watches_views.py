"""Watches and views: rollbacks that replace what is watched, workspaces below it."""

from __future__ import annotations

import pytest
from tests.unit.server.watching import Client, Node, run, turns
from tests.unit.state.invariants import reap
from tests.unit.state.shard import at

from nokv.errors import CursorTooOld, Stale
from nokv.server import watch_roots, watches
from nokv.server.watch_roots import Roots
from nokv.state.families import Family
from nokv.types.commands import Collected, RemoveTree, Rename
from nokv.types.events import EventKind
from nokv.types.values import At
from nokv.types.views import Clone, Rollback, SnapshotCreate, SnapshotDelete, WorkspaceCreate


def roll_back(node: Node, name: bytes, snapshot: str, parent: str = "") -> int:
    node.shard.do(Rollback(at(parent), name, snapshot, b"/" + name, 10**12))
    node.watches.applied()
    return node.shard.machine.version


def forget(node: Node) -> None:
    """Do all work in the background: views that nothing holds are gone then."""
    shard = node.shard
    reap(shard)
    drops = [int.from_bytes(row, "big") for row, _ in shard.kv.scan(Family.DROP, b"", b"\xff" * 9)]
    shard.do(Collected(tuple((drop, 0) for drop in drops)), session=0)
    reap(shard)


async def told_since(node: Node, root: At, cursor: int) -> list[int]:
    """Return what somebody new is told who comes with a cursor."""
    again = Client()
    node.open(again, root=root, since=cursor)
    await turns()
    again.streams[1].ended()
    return again.versions(1)


def test_a_watch_follows_its_directory_through_rollbacks() -> None:
    async def test(node: Node, client: Client) -> None:
        shard = node.shard
        for path in ("a", "a/b", "a/b/c", "other"):
            node.mkdir(path)
        inode = shard.stat("a/b").inode
        shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        shard.do(Clone(at("a"), at(), b"copy"))
        paths = ("a", "a/b", "other", "", "copy", "copy/b")
        for number, path in enumerate(paths, 1):
            node.open(client, number, root=at(path))
        start = shard.machine.version
        await turns()
        expected: list[int] = []
        for turn in range(4):
            expected.append(node.mkdir(f"a/b/x{turn}"))
            await turns(turn)
            expected.append(roll_back(node, b"a", "s"))
            expected.append(node.mkdir(f"a/b/y{turn}"))
            await turns(20 * (turn % 2))
            assert shard.stat("a/b").inode == inode
            assert shard.stat("a/b").view > turn
        await turns()
        assert client.versions(1) == client.versions(2) == client.versions(4) == expected
        assert [client.versions(number) for number in (3, 5, 6)] == [[], [], []]
        kinds = [EventKind.CREATE, EventKind.ROLLBACK, EventKind.CREATE] * 4
        assert [event.kind for event in client.told(2)] == kinds
        assert [event.chain for event in client.told(2)][1] == (), "of a directory above"
        assert client.told(4)[1].name == b"a"
        assert client.told(1)[2].directory == b"b"
        assert node.watches.lagging == 0
        # From where it was then, or by where it is now, all of it can be told again.
        for root in (At(0, inode), at("a/b")):
            for position, cursor in enumerate((start, *expected)):
                again = Client()
                node.open(again, 1, root=root, since=cursor)
                await turns()
                assert again.versions(1) == expected[position:]
                again.streams[1].ended()
        node.watches.tick(1e9)
        assert not client.errors

    run(test)


def test_rollbacks_one_after_the_other_are_followed() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("a")
        node.mkdir("a/b")
        node.shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        node.open(client, root=at("a/b"))
        await turns()
        expected = []
        for turn in range(4):
            expected.append(roll_back(node, b"a", "s"))
            expected.append(node.mkdir(f"a/b/y{turn}"))
        await turns()
        assert client.versions(1) == expected
        assert node.watches.lagging == 0

    run(test)


def test_a_rollback_inside_what_is_rolled_back_later_is_told_too() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("a")
        node.mkdir("a/b")
        node.shard.do(SnapshotCreate(at("a"), "outer", b"/a"))
        node.shard.do(SnapshotCreate(at("a/b"), "inner", b"/a/b"))
        opened = node.open(client, root=at("a/b"))
        await turns()
        node.shard.do(Rollback(at("a"), b"b", "inner", b"/a/b", 10**12))
        expected = [node.shard.machine.version, node.mkdir("a/b/x")]
        expected.append(roll_back(node, b"a", "outer"))
        expected.append(node.mkdir("a/b/y"))
        await turns()
        assert client.versions(1) == expected
        again = Client()
        node.open(again, root=At(opened.view, opened.inode), since=opened.cursor)
        await turns()
        assert again.versions(1) == expected

    run(test)


def test_a_directory_that_a_rollback_does_not_show_is_gone() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("a")
        node.shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        node.mkdir("a/late")
        node.open(client, root=at("a/late"))
        await turns()
        roll_back(node, b"a", "s")
        await turns()
        node.watches.tick(1e9)
        assert isinstance(client.errors[1], Stale)

    run(test)


def test_a_rollback_costs_a_watch_a_bounded_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(node: Node, client: Client) -> None:
        shard, roots = node.shard, node.watches._roots
        node.mkdir("a")
        node.mkdir("d")
        shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        node.mkdir("a/late")
        for number in range(40):  # each a view of the line that begins with the live tree
            node.mkdir(f"d/{number}")
            shard.do(SnapshotCreate(at(f"d/{number}"), f"s{number}", b"/"))
            shard.do(Rollback(at("d"), b"%d" % number, f"s{number}", b"/", 10**12))
        node.mkdir("other")
        node.open(client, 1, root=at("other"))
        for number in range(2, 8):
            node.open(client, number, root=at("a/late"))
        await turns(40)
        monkeypatch.setattr(watch_roots, "LOOKS_MAX", 5)
        monkeypatch.setattr(watches, "SLICE_BYTES", 8 * watches.LOOK_BYTES)
        before = roots.looks
        rolled = roll_back(node, b"a", "s")
        await turns(1)
        assert node.watches.lagging > 2, "one turn has room for some of them"
        await turns(40)
        assert node.watches.lagging == 0
        assert roots.looks - before <= 7 * 10
        made = node.mkdir("other/x")
        await turns(2)
        assert client.versions(1) == [made]
        assert client.versions(2) == []
        node.watches.tick(1e9)
        assert sorted(client.errors) == list(range(2, 8))
        # Where rollbacks put what is there is known without a look at the others.
        before = roots.looks
        assert roots.now((0, shard.stat("a").inode)) == (
            shard.stat("a").view,
            shard.stat("a").inode,
        )
        assert roots.looks - before == 2
        assert rolled < made

    run(test)


def test_a_line_of_rollbacks_is_known_without_the_views_that_ended() -> None:
    async def test(node: Node, client: Client) -> None:
        shard, roots = node.shard, node.watches._roots
        node.mkdir("a")
        inode = shard.stat("a").inode
        shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        seen = [(0, inode)]
        for _ in range(5):
            roll_back(node, b"a", "s")
            seen.append((shard.stat("a").view, inode))
        for place in seen:
            assert roots.now(place) == seen[-1]
        restarted = Roots(shard.machine)
        assert restarted.now(seen[0]) == seen[-1]
        copy = shard.do(Clone(at("a"), at(), b"copy"))
        assert roots.now((copy.view, inode)) == (copy.view, inode)  # type: ignore[union-attr]
        shard.do(RemoveTree(at(), b"a"))
        assert roots.now(seen[0]) is None
        assert client.errors == {}

    run(test)


def test_what_moved_away_before_a_rollback_stays_where_it_is() -> None:
    async def test(node: Node, client: Client) -> None:
        for path in ("a", "a/b", "other"):
            node.mkdir(path)
        node.shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        node.open(client, root=at("a/b"))
        await turns()
        node.shard.do(Rename(at("a"), b"b", at("other"), b"b"))
        roll_back(node, b"a", "s")
        made = node.mkdir("other/b/x")
        node.mkdir("a/b/y")
        await turns()
        assert [event.kind for event in client.told(1)] == [EventKind.RENAME, EventKind.CREATE]
        assert client.versions(1)[-1] == made

    run(test)


def test_a_view_below_is_watched_with_what_is_above_it() -> None:
    async def test(node: Node, client: Client) -> None:
        node.mkdir("agents")
        node.mkdir("agents/team")
        node.open(client, root=at("agents"))
        node.shard.do(WorkspaceCreate(at("agents/team"), b"a1", 0o755))
        node.watches.applied()
        node.mkdir("agents/team/a1/work")
        node.shard.do(RemoveTree(at("agents/team"), b"a1"))
        node.watches.applied()
        await turns()
        told = client.told(1)
        assert [(one.kind, one.directory, one.name) for one in told[:2]] == [
            (EventKind.CREATE, b"team", b"a1"),
            (EventKind.CREATE, b"team/a1", b"work"),
        ]
        assert told[2].kind == EventKind.REMOVE
        assert told[2].inode_view == told[1].view > 0

    run(test)


def test_a_cursor_is_good_for_each_view_that_a_directory_was_in() -> None:
    async def test(node: Node, client: Client) -> None:
        shard = node.shard
        node.mkdir("a")
        node.mkdir("a/d")
        node.open(client, root=at("a/d"))
        inode, start = shard.stat("a/d").inode, shard.machine.version
        await turns()
        expected = [node.mkdir("a/d/one")]
        shard.do(SnapshotCreate(at("a"), "outer", b"/a"))
        expected.append(roll_back(node, b"a", "outer"))
        shard.do(SnapshotCreate(at("a/d"), "inner", b"/a/d"))
        expected.append(shard.machine.version)
        expected += [roll_back(node, b"d", "inner", "a") for _ in range(2)]
        expected.append(node.mkdir("a/d/two"))
        await turns()
        assert client.versions(1) == expected
        for root in (At(0, inode), at("a/d")):
            assert await told_since(node, root, start) == expected

    run(test)


def test_rollbacks_in_what_a_rollback_made_are_told_after_one_of_all() -> None:
    async def test(node: Node, client: Client) -> None:
        shard = node.shard
        for path in ("a", "a/b", "a/b/c"):
            node.mkdir(path)
        shard.do(SnapshotCreate(at("a"), "a", b"/a"))
        shard.do(SnapshotCreate(at("a/b"), "b", b"/a/b"))
        node.open(client, root=at("a/b/c"))
        start = shard.machine.version
        await turns()
        roll_back(node, b"b", "b", "a")
        shard.do(SnapshotCreate(at("a/b/c"), "c", b"/a/b/c"))
        for _ in range(2):
            roll_back(node, b"c", "c", "a/b")
            node.mkdir("a/b/c/x")
        roll_back(node, b"a", "a")
        node.mkdir("a/b/c/y")
        await turns()
        told = client.versions(1)
        assert len([one for one in client.told(1) if one.kind == EventKind.CREATE]) == 3
        assert await told_since(node, at("a/b/c"), start) == told

    run(test)


def test_of_two_directories_with_one_inode_the_watched_one_is_gone_on_with() -> None:
    async def test(node: Node, client: Client) -> None:
        shard = node.shard
        for path in ("a", "a/d", "c"):
            node.mkdir(path)
        places = [At(0, shard.stat("a/d").inode)]
        shard.do(SnapshotCreate(at("a"), "sa", b"/a"))
        shard.do(SnapshotCreate(at("a/d"), "sd", b"/a/d"))
        early = shard.machine.version
        roll_back(node, b"d", "sd", "a")
        shard.do(Rename(at("a"), b"d", at("c"), b"d"))
        moved = shard.stat("c/d")
        places.append(At(moved.view, moved.inode))
        start = shard.machine.version
        node.open(client, root=at("c/d"))
        await turns()
        expected = [roll_back(node, b"d", "sd", "c")]
        roll_back(node, b"a", "sa")
        expected.append(node.mkdir("c/d/mine"))
        other = node.mkdir("a/d/other")
        await turns()
        assert client.versions(1) == expected
        for root in places:
            assert await told_since(node, root, start) == expected
            assert Roots(shard.machine).now((root.view, root.inode)) == (
                shard.stat("c/d").view,
                moved.inode,
            )
        # Nor is the other one told what happened in this one, also when it has ended.
        shard.do(RemoveTree(at("c"), b"d"))
        node.watches.applied()
        told = await told_since(node, at("a/d"), early)
        assert other in told
        assert not set(told) & set(expected)

    run(test)


def test_what_a_rollback_nested_can_not_be_told_from_before_it() -> None:
    async def test(node: Node, client: Client) -> None:
        shard = node.shard
        node.mkdir("d")
        for name in (b"v", b"w"):
            shard.do(WorkspaceCreate(at("d"), name, 0o755))
        node.mkdir("d/w/e")
        shard.do(SnapshotCreate(at("d"), "s", b"/d"))
        start = shard.machine.version
        node.mkdir("d/w/x")
        rolled = roll_back(node, b"d", "s")
        expected = [node.mkdir("d/w/y")]

        async def check() -> None:
            for path in ("d/w", "d/w/e"):
                with pytest.raises(CursorTooOld, match="came with the rollback") as raised:
                    node.open(client, root=at(path), since=start)
                assert raised.value.oldest == rolled
            assert await told_since(node, at("d/w"), rolled) == expected

        await check()
        shard.do(RemoveTree(at("d"), b"v"))
        forget(node)
        assert shard.machine.view(shard.stat("d/w").view - 1) is None
        await check()
        shard.do(SnapshotCreate(at("d/w"), "inner", b"/d/w"))
        expected.append(shard.machine.version)
        expected.append(roll_back(node, b"w", "inner", "d"))
        expected.append(node.mkdir("d/w/z"))
        await check()

    run(test)


def test_a_view_that_is_forgotten_leaves_no_silent_gap() -> None:
    async def test(node: Node, client: Client) -> None:
        shard = node.shard
        node.mkdir("a")
        shard.do(SnapshotCreate(at("a"), "s", b"/a"))
        start, expected, rolled, views = shard.machine.version, [], [], []
        for turn in range(4):
            rolled.append(roll_back(node, b"a", "s"))
            views.append(shard.stat("a").view)
            expected += [rolled[-1], node.mkdir(f"a/x{turn}")]
        assert await told_since(node, at("a"), start) == expected
        shard.do(SnapshotDelete(f"rollback-{rolled[2]}"))
        forget(node)
        assert [shard.machine.view(view) is None for view in views] == [False, True, False, False]
        # Of its place it is not known any more what had it before.
        with pytest.raises(CursorTooOld) as raised:
            node.open(client, root=at("a"), since=start)
        assert raised.value.oldest == rolled[2]
        assert await told_since(node, at("a"), rolled[2]) == expected[5:]

    run(test)
