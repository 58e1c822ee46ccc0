"""Whenever it is told, and through whatever window: a live watch tells what a replay tells."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.watching import WINDOW, Client, Node, turns
from tests.unit.state.shard import at

from nokv.errors import NokvError
from nokv.types import commands as c
from nokv.types.values import At
from nokv.types.views import Clone, Rollback, SnapshotCreate
from nokv.types.watch import WatchEvent

PATHS = ("", "a", "a/b", "o", "o/b")
NAMES = (b"a", b"b", b"x")
LONG = tuple(b"%0250d" % number for number in range(300))

WHERE = st.sampled_from(PATHS)
NAME = st.sampled_from(NAMES)
CHANGE = st.one_of(
    st.tuples(st.just("mkdir"), WHERE, NAME),
    st.tuples(st.just("remove"), WHERE, NAME),
    st.tuples(st.just("rename"), WHERE, NAME, WHERE, NAME),
    st.tuples(st.just("bulk"), WHERE, st.integers(0, 99)),
    st.tuples(st.just("rollback"), st.sampled_from(("a", "a/b")), st.sampled_from("st")),
    st.tuples(st.just("clone"), WHERE, WHERE, NAME),
)
MOMENT = st.one_of(
    st.tuples(st.just("turns"), st.integers(1, 4)),
    st.tuples(st.just("grant"), st.integers(0, 3)),
    st.tuples(st.just("stall"), st.integers(0, 3)),
    st.tuples(st.just("go on"), st.integers(0, 3)),
)


def op_of(step: tuple[Any, ...]) -> c.Op:
    match step:
        case ("mkdir", where, name):
            return c.Mkdir(at(where), name, 0o755)
        case ("remove", where, name):
            return c.RemoveTree(at(where), name)
        case ("rename", where, name, to, to_name):
            return c.Rename(at(where), name, at(to), to_name)
        case ("bulk", where, number):
            return c.BulkCreate(at(where), tuple(b"%02d" % number + one[2:] for one in LONG), 0o644)
        case ("rollback", path, snapshot):
            above, _, name = path.rpartition("/")
            return Rollback(at(above), name.encode(), snapshot, b"/" + path.encode(), 10**12)
        case ("clone", source, where, name):
            return Clone(at(source), at(where), name)
    raise AssertionError(step)


def same(events: list[WatchEvent]) -> list[tuple[Any, ...]]:
    """Return what does not depend on when it was told: all but the paths as they are now."""
    return [
        (e.version, e.kind, e.view, e.chain, e.name, e.inode_view, e.inode, e.to_chain, e.to_name)
        for e in events
    ]


async def play(steps: list[tuple[Any, ...]]) -> None:
    node = Node()
    shard = node.shard
    for path in PATHS[1:4]:
        node.mkdir(path)
    shard.do(SnapshotCreate(at("a"), "s", b"/a"))
    shard.do(SnapshotCreate(at("a/b"), "t", b"/a/b"))
    start = shard.machine.version
    roots = [At(0, shard.stat(path).inode) for path in PATHS[:4]]
    clients = [Client() for _ in roots]
    for client, root in zip(clients, roots, strict=True):
        node.open(client, root=root)
    for step in steps:
        match step:
            case ("turns", count):
                await turns(count)
            case ("grant", which):
                if 1 in clients[which].streams:
                    clients[which].streams[1].grant(WINDOW // 2)
            case ("stall", which):
                clients[which].writable = False
            case ("go on", which):
                clients[which].writable = True
                if 1 in clients[which].streams:
                    clients[which].streams[1].writable()
            case _:
                with contextlib.suppress(NokvError):
                    shard.do(op_of(step))
                node.watches.applied()
    for client, root in zip(clients, roots, strict=True):
        client.writable = True
        again = Client()
        with contextlib.suppress(NokvError):
            node.open(again, root=root, since=start)
        for one in (client, again):
            await turns()
            for _ in range(64):
                if 1 in one.streams and node.watches.lagging:
                    one.streams[1].grant(WINDOW)
                    await turns()
        if 1 in again.streams:
            assert same(client.told(1)) == same(again.told(1))
            again.streams[1].ended()


@settings(max_examples=150)
@given(st.lists(st.one_of(CHANGE, CHANGE, MOMENT), max_size=30))
def test_a_live_watch_tells_what_a_replay_tells(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(steps))
