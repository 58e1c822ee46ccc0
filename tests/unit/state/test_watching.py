"""What a watch tells: by table, and against an oracle that keeps the whole tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.state.shard import ROOT, Shard

from nokv.state.records import EventRecord, StoredEvent, decode_events
from nokv.state.watching import Scope, cut, inodes_of, path_below, tell
from nokv.types import commands as c
from nokv.types.events import EventKind as K
from nokv.types.results import Made, MadeMany, Result
from nokv.types.values import ROOT_INODE, At
from nokv.types.watch import Moved, WatchEvent

R, SUB, DEEP, OUT = 10, 11, 12, 20
"""/R/SUB/DEEP and /OUT."""

CHAINS = ((R, 1), (SUB, R, 1), (DEEP, SUB, R, 1), (OUT, 1), (1,))
IN_R, IN_SUB, IN_DEEP, IN_OUT, IN_ROOT = range(5)


def nameless(place: tuple[int, int], directory: tuple[int, int]) -> bytes:
    del place, directory
    return b""


def names(place: tuple[int, int], directory: tuple[int, int]) -> bytes:
    del directory
    return {(0, R): b"r", (0, SUB): b"sub", (0, DEEP): b"deep", (0, 50): b"file"}.get(place, b"")


def event(
    kind: K, chain: int, name: bytes = b"x", inode: int = 50, to: int = -1, to_name: bytes = b""
) -> StoredEvent:
    return StoredEvent(7, kind, 0, chain, name, inode, to, to_name)


def told(one: StoredEvent, *, recursive: bool = True, roots: object = None) -> list[WatchEvent]:
    scope = Scope(frozenset(roots or {(0, R)}), recursive)  # type: ignore[call-overload]
    return tell(EventRecord(5, CHAINS, (one,)), scope, 0, names)


def brief(one: WatchEvent) -> tuple[object, ...]:
    return (one.kind, one.chain, one.directory, one.name, one.to_chain, one.to_directory,
            one.to_name)  # fmt: skip


NOTHING = ((), b"", b"")
TABLE = [
    ("create inside", event(K.CREATE, IN_R), (K.CREATE, (R,), b"", b"x", *NOTHING)),
    ("deeper", event(K.CREATE, IN_DEEP),
     (K.CREATE, (DEEP, SUB, R), b"sub/deep", b"x", *NOTHING)),
    ("outside", event(K.CREATE, IN_OUT), None),
    ("above", event(K.CREATE, IN_ROOT), None),
    ("within", event(K.RENAME, IN_R, b"a", to=IN_SUB, to_name=b"b"),
     (K.RENAME, (R,), b"", b"a", (SUB, R), b"sub", b"b")),
    ("out", event(K.RENAME, IN_SUB, b"a", to=IN_OUT, to_name=b"secret"),
     (Moved.OUT, (SUB, R), b"sub", b"a", *NOTHING)),
    ("in", event(K.RENAME, IN_OUT, b"secret", to=IN_DEEP, to_name=b"b"),
     (Moved.IN, (DEEP, SUB, R), b"sub/deep", b"b", *NOTHING)),
    ("elsewhere", event(K.RENAME, IN_OUT, b"a", to=IN_ROOT, to_name=b"b"), None),
    ("exchange within", event(K.EXCHANGE, IN_R, b"a", to=IN_SUB, to_name=b"b"),
     (K.EXCHANGE, (R,), b"", b"a", (SUB, R), b"sub", b"b")),
    ("exchange out", event(K.EXCHANGE, IN_R, b"a", to=IN_OUT, to_name=b"secret"),
     (K.EXCHANGE, (R,), b"", b"a", *NOTHING)),
    ("exchange in", event(K.EXCHANGE, IN_OUT, b"secret", to=IN_R, to_name=b"b"),
     (K.EXCHANGE, (), b"", b"", (R,), b"", b"b")),
    ("itself renamed", event(K.RENAME, IN_ROOT, b"r", R, to=IN_OUT, to_name=b"q"),
     (K.RENAME, (), b"", b"r", (), b"", b"q")),
    ("itself changed", event(K.SETATTR, IN_ROOT, b"", R), (K.SETATTR, (), b"", b"", *NOTHING)),
    ("itself removed", event(K.REMOVE, IN_ROOT, b"r", R), (K.REMOVE, (), b"", b"r", *NOTHING)),
    ("an inode, named now", event(K.SETATTR, IN_SUB, b""),
     (K.SETATTR, (SUB, R), b"sub", b"file", *NOTHING)),
    ("a staged tree", event(K.MOVE_IN, IN_R, b"t"), (K.MOVE_IN, (R,), b"", b"t", *NOTHING)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_what_is_told(one: StoredEvent, expected: tuple[object, ...] | None) -> None:
    found = told(one)
    assert [brief(each) for each in found] == ([] if expected is None else [expected])


FLAT = [
    ("own name", event(K.CREATE, IN_R), K.CREATE),
    ("deeper", event(K.CREATE, IN_SUB), None),
    ("down", event(K.RENAME, IN_R, b"a", to=IN_SUB, to_name=b"b"), Moved.OUT),
    ("up", event(K.RENAME, IN_DEEP, b"a", to=IN_R, to_name=b"b"), Moved.IN),
    ("below", event(K.RENAME, IN_DEEP, b"a", to=IN_SUB, to_name=b"b"), None),
    ("itself", event(K.XATTR, IN_ROOT, b"", R), K.XATTR),
]


@pytest.mark.parametrize(("one", "kind"), [row[1:] for row in FLAT], ids=[row[0] for row in FLAT])
def test_not_recursive(one: StoredEvent, kind: int | None) -> None:
    assert [each.kind for each in told(one, recursive=False)] == ([] if kind is None else [kind])


def test_kinds_are_those_that_are_told() -> None:
    record = EventRecord(
        5, CHAINS, (event(K.RENAME, IN_R, to=IN_OUT, to_name=b"b"), event(K.RENAME, IN_R, to=IN_R))
    )
    for kinds, expected in (
        ({K.RENAME}, [K.RENAME]),
        ({Moved.OUT}, [Moved.OUT]),
        ({Moved.IN}, []),
        (set(), [Moved.OUT, K.RENAME]),
    ):
        scope = Scope(frozenset({(0, R)}), kinds=frozenset(int(kind) for kind in kinds))
        assert [one.kind for one in tell(record, scope, 0, nameless)] == expected


def test_what_was_told_is_skipped() -> None:
    events = tuple(StoredEvent(v, K.CREATE, 0, IN_R, b"x", v) for v in (3, 4, 5))
    record = EventRecord(5, CHAINS, events)
    scope = Scope(frozenset({(0, R)}))
    for after in range(7):
        found = [one.version for one in tell(record, scope, after, nameless)]
        assert found == [v for v in (3, 4, 5) if v > after]


def test_a_chain_leads_through_the_views_that_hold_it() -> None:
    """Directory 30 of view 5, whose root 17 hangs below directory R of view 0."""
    chain = (30, 17, -1, R, 1)
    assert cut(chain, 5, Scope(frozenset({(0, R)}))) == (30, 17, -1, R)
    assert cut(chain, 5, Scope(frozenset({(5, 17)}))) == (30, 17)
    assert cut(chain, 5, Scope(frozenset({(0, 17)}))) == (), "the same number in another view"
    assert cut(chain, 5, Scope(frozenset({(5, R)}))) == ()
    assert cut(chain, 5, Scope(frozenset({(0, 1)}))) == chain
    flat = Scope(frozenset({(0, R)}), recursive=False)
    assert cut(chain, 5, flat) == ()
    assert cut((R, 1), 0, flat) == (R,)
    asked: list[object] = []

    def name_in(place: tuple[int, int], directory: tuple[int, int]) -> bytes:
        asked.append((place, directory))
        return b"n%d" % place[1]

    assert path_below((30, 17, -1, R), 5, name_in) == b"n17/n30"
    assert asked == [((5, 30), (5, 17)), ((5, 17), (0, R))]
    assert path_below((30, 17), 5, nameless) is None
    assert path_below((17,), 5, nameless) == b""


def test_a_name_that_leads_to_another_view_is_not_the_inode_of_that_number() -> None:
    one = StoredEvent(7, K.REMOVE, 0, IN_OUT, b"copy", R, inode_view=5)
    assert told(one) == []
    (found,) = told(one, roots={(5, R)})
    assert (found.inode_view, found.inode) == (5, R)


def test_watches_that_may_care_are_found_by_inode() -> None:
    record = EventRecord(5, CHAINS[:1], (event(K.CREATE, 0, inode=99),))
    assert set(inodes_of(record)) == {R, 1, 99}


# ---------------------------------------------------------------- against the whole tree


class Seen(NamedTuple):
    """What is compared: directories by their inode, None outside."""

    version: int
    kind: int
    directory: int | None
    name: bytes
    inode: int
    to_directory: int | None
    to_name: bytes


@dataclass
class Tree:
    """The oracle: all names, and of each moment what contained what."""

    names: dict[int, dict[bytes, int]] = field(default_factory=lambda: {ROOT_INODE: {}})
    above: dict[int, int] = field(default_factory=dict)

    def inside(self, root: int, *, recursive: bool) -> set[int]:
        """Return the directories whose names are shown."""
        found = {root}
        while recursive:
            more = {ino for ino, up in self.above.items() if up in found} - found
            if not more:
                break
            found |= more
        return found

    def put(self, directory: int, name: bytes, ino: int) -> None:
        self.names[directory][name] = ino
        if ino in self.names:
            self.above[ino] = directory

    def take(self, directory: int, name: bytes) -> int:
        return self.names[directory].pop(name)

    def forget(self, ino: int) -> None:
        """Drop a directory with all below it."""
        for below in self.names.pop(ino, {}).values():
            self.forget(below)
        self.above.pop(ino, None)


NAMES = (b"a", b"b", b"c")
NUMBER = st.integers(0, 31)
STEP = st.tuples(
    st.sampled_from(
        ("mkdir", "create", "bulk", "rename", "rename", "exchange", "unlink", "rmdir", "tree",
         "chmod", "link")
    ),
    NUMBER, st.sampled_from(NAMES), NUMBER, st.sampled_from(NAMES),
)  # fmt: skip
Step = tuple[str, int, bytes, int, bytes]


def command(tree: Tree, step: Step) -> c.Op:
    kind, one, name, two, to_name = step
    directories = sorted(tree.names)
    at = At(0, directories[one % len(directories)])
    to = At(0, directories[two % len(directories)])
    match kind:
        case "mkdir":
            return c.Mkdir(at, name, 0o755)
        case "create":
            return c.Create(at, name, 0o644)
        case "bulk":
            return c.BulkCreate(at, (b"b" + name, b"c" + name), 0o644)
        case "rename" | "exchange":
            return c.Rename(at, name, to, to_name, c.RenameFlag.EXCHANGE * (kind == "exchange"))
        case "unlink":
            return c.Unlink(at, name)
        case "rmdir":
            return c.Rmdir(at, name)
        case "tree":
            return c.RemoveTree(at, name)
        case "chmod":
            return c.SetAttr(at, mode=0o700 + one % 8)
        case _:
            return c.Link(At(0, at.inode, (name,), follow=False), to, to_name)


def follow(tree: Tree, op: c.Op, result: Result) -> Seen | None:
    """Do to the oracle what succeeded; return the event with directories not yet judged."""
    if result.code:
        return None
    version, value = result.version, result.value
    if isinstance(op, c.Mkdir | c.Create):
        assert isinstance(value, Made)
        ino, directory = value.attr.inode, op.parent.inode
        if isinstance(op, c.Mkdir):
            tree.names[ino] = {}
        tree.put(directory, op.name, ino)
        return Seen(version, K.CREATE, directory, op.name, ino, None, b"")
    if isinstance(op, c.BulkCreate):
        assert isinstance(value, MadeMany)
        for number, name in enumerate(op.names):
            tree.put(op.parent.inode, name, value.first + number)
        return Seen(version, K.CREATE, op.parent.inode, b"", value.first, None, b"")
    if isinstance(op, c.Link):
        assert isinstance(value, Made)
        tree.put(op.parent.inode, op.name, value.attr.inode)
        return Seen(version, K.LINK, op.parent.inode, op.name, value.attr.inode, None, b"")
    if isinstance(op, c.Unlink | c.Rmdir | c.RemoveTree):
        ino = tree.take(op.parent.inode, op.name)
        tree.forget(ino)
        return Seen(version, K.REMOVE, op.parent.inode, op.name, ino, None, b"")
    if isinstance(op, c.SetAttr):
        ino = op.target.inode
        return Seen(version, K.SETATTR, tree.above.get(ino, ino), b"", ino, None, b"")
    assert isinstance(op, c.Rename)
    return _rename(tree, op, version)


def _rename(tree: Tree, op: c.Rename, version: int) -> Seen | None:
    source, target = op.source.inode, op.target.inode
    ino = tree.names[source][op.source_name]
    there = tree.names[target].get(op.target_name)
    if there == ino:
        return None
    tree.take(source, op.source_name)
    kind = K.RENAME
    if op.flags:
        assert there is not None
        kind = K.EXCHANGE
        tree.put(source, op.source_name, there)
    elif there is not None:
        tree.forget(there)
    tree.put(target, op.target_name, ino)
    return Seen(version, kind, source, op.source_name, ino, target, op.target_name)


def judge(seen: Seen, root: int, shown: set[int]) -> Seen | None:
    """Return what a watch of `root`, with these directories shown, has to tell of an event."""
    here = seen.directory if seen.directory in shown else None
    there = seen.to_directory if seen.to_directory in shown else None
    if here is None and there is None:
        return seen._replace(directory=None, to_directory=None) if seen.inode == root else None
    if seen.kind == K.RENAME and there is None:
        return seen._replace(kind=Moved.OUT, to_directory=None, to_name=b"")
    if seen.kind == K.RENAME and here is None:
        return seen._replace(
            kind=Moved.IN, directory=there, name=seen.to_name, to_directory=None, to_name=b""
        )
    return seen._replace(
        directory=here,
        name=seen.name if here is not None else b"",
        to_directory=there,
        to_name=seen.to_name if there is not None else b"",
    )


def seen_of(one: WatchEvent) -> Seen:
    return Seen(
        one.version,
        one.kind,
        one.chain[0] if one.chain else None,
        one.name,
        one.inode,
        one.to_chain[0] if one.to_chain else None,
        one.to_name,
    )


@settings(max_examples=60)
@given(st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=4, max_size=25))
def test_a_replay_from_any_cursor_tells_what_the_whole_tree_says(batches: list[list[Step]]) -> None:
    """Root and first directories are watched, recursively and not, since every version."""
    shard, tree = Shard(), Tree()
    for name in NAMES[:2]:
        ino = shard.mkdir(name.decode()).inode
        tree.names[ino] = {}
        tree.put(ROOT_INODE, name, ino)
    start = shard.machine.version
    watches = [(root, recursive) for root in sorted(tree.names) for recursive in (True, False)]
    expected: dict[tuple[int, bool], list[Seen]] = {watch: [] for watch in watches}
    for batch in batches:
        ops = [command(tree, step) for step in batch]
        results = shard.entry(*[shard.command(op, ROOT) for op in ops])
        for op, result in zip(ops, results, strict=True):
            shown = {w: tree.inside(w[0], recursive=w[1]) for w in watches}
            alive = set(tree.names)
            seen = follow(tree, op, result)
            for watch in watches:
                if seen is None or watch[0] not in alive:
                    continue
                one = judge(seen, watch[0], shown[watch])
                if one is not None:
                    expected[watch].append(one)
    records = [decode_events(value) for _, value in shard.machine.event_rows(0)]
    for root, recursive in watches:
        scope = Scope(frozenset({(0, root)}), recursive)
        for cursor in range(start, shard.machine.version + 1):
            told = [
                seen_of(one)
                for record in records
                if record.events[-1].version > cursor
                for one in tell(record, scope, cursor, nameless)
            ]
            assert told == [one for one in expected[root, recursive] if one.version > cursor]
