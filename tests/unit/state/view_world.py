"""Random programs over views beside an oracle in which copies and snapshots are deep copies.

Paths are tuples of names. A file's content is a list of uploads of SEGMENT bytes each; the bucket
is a set of them: what anything shows must be there, and after everything has come to rest it holds
nothing else.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator

import pytest
from tests.unit.state.bodies import Files, stored

from nokv.errors import NokvError
from nokv.types.commands import (
    Create,
    Link,
    Mkdir,
    Op,
    PinView,
    PublishMode,
    Reap,
    RemoveTree,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    SetXattr,
    StageBegin,
    StageDrop,
    StageMode,
    StageSwap,
    Unlink,
    UnpinView,
)
from nokv.types.reads import (
    BodyMap,
    BodyMapReply,
    DirPage,
    GetAttr,
    GetUsage,
    ReadDir,
    UsageReply,
)
from nokv.types.results import Made, Pinned
from nokv.types.values import At, Attr
from nokv.types.views import (
    Clone,
    ExpireSnapshots,
    Flatten,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    WorkspaceCreate,
)

SEGMENT = 10
Path = tuple[bytes, ...]
NAMES = (b"a", b"b", b"c")


class File:
    """A file of the oracle; several names may lead to it."""

    def __init__(self) -> None:
        self.body: list[int] = []
        self.mode = 0o644


class Dir:
    """A directory of the oracle."""

    def __init__(self, *, view: bool = False) -> None:
        self.names: dict[bytes, Node] = {}
        self.mode = 0o755
        self.view = view
        """Whether a graft leads here."""
        self.identity = object()
        """Handed on by rollbacks alone: snapshots compare it."""

    def __deepcopy__(self, memo: dict[int, object]) -> Dir:
        made = Dir(view=self.view)
        memo[id(self)] = made
        made.mode = self.mode
        made.names = {name: copy.deepcopy(node, memo) for name, node in self.names.items()}
        return made


Node = File | Dir


class Held:
    """A snapshot or a session's pin, with a copy of what it must show for ever."""

    def __init__(self, tree: Dir, at: At, version: int, identity: object) -> None:
        self.tree = tree
        self.at = at
        self.version = version
        self.identity = identity


def walk(tree: Dir, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Yield (path, node) of everything below a directory."""
    for name, node in tree.names.items():
        yield (*path, name), node
        if isinstance(node, Dir):
            yield from walk(node, (*path, name))


def counts(tree: Dir) -> tuple[int, int]:
    """Return (entries, bytes) below a directory, each name once."""
    found = [node for _, node in walk(tree)]
    size = sum(SEGMENT * len(node.body) for node in found if isinstance(node, File))
    return len(found), size


class World:
    """A shard and its oracle, one random command after another."""

    def __init__(self, seed: int, *, size: int = 14) -> None:
        self.rng = random.Random(seed)
        self._linking = seed % 2 == 1
        """Whether many files have several names."""
        self.files = Files()
        self.root = Dir(view=True)
        self.held: dict[str, Held] = {}
        self.pins: list[tuple[Pinned, Held]] = []
        self.bucket: set[int] = set()
        self.log: list[str] = []
        self._size = size
        self._at_rest = False
        """Whether the reaper has taken all names of detached trees."""
        self._number = 0

    # ------------------------------------------------------------------ picking

    def _one(self, found: list[tuple[Path, Node]]) -> tuple[Path, Node]:
        return self.rng.choice(found)

    def _all(self, kind: type | None = None) -> list[tuple[Path, Node]]:
        found = list(walk(self.root))
        return [row for row in found if kind is None or isinstance(row[1], kind)]

    def _dirs(self) -> list[tuple[Path, Node]]:
        return [((), self.root), *self._all(Dir)]

    def _dir(self, path: Path) -> Dir:
        node: Node = self.root
        for name in path:
            assert isinstance(node, Dir)
            node = node.names[name]
        assert isinstance(node, Dir)
        return node

    def _free(self) -> tuple[Path, Dir, bytes] | None:
        """Return a directory and a name that is free in it."""
        path, directory = self._one(self._dirs())
        assert isinstance(directory, Dir)
        free = [name for name in NAMES if name not in directory.names]
        crowded = len(self._all()) >= self._size
        return None if not free or crowded else (path, directory, self.rng.choice(free))

    def _view_of(self, path: Path) -> int:
        """Return how long the path of the view is that holds a directory."""
        while path and not self._dir(path).view:
            path = path[:-1]
        return hash(path)

    # ------------------------------------------------------------------ doing

    def _do(self, op: Op, *, fails: bool = False) -> object:
        self.log.append(f"{self.files.machine.version + 1}: {op}")
        if fails:
            with pytest.raises(NokvError):
                self.files.do(op)
            return None
        return self.files.do(op)

    def step(self) -> None:
        """Do one random thing, and compare."""
        kinds: tuple[tuple[int, Callable[[], None]], ...] = (
            (6, self._make_file),
            (3, self._mkdir),
            (4, self._append),
            (4, self._patch),
            (2, self._cut),
            (3, self._replace),
            (2, self._chmod),
            (2, self._xattr),
            (12 if self._linking else 3, self._link),
            (5, self._rename),
            (2, self._exchange),
            (5, self._remove),
            (4 if self._linking else 2, self._remove_tree),
            (1, self._stage),
            (4, self._snapshot),
            (3, self._delete_snapshot),
            (5, self._clone),
            (3, self._clone_snapshot),
            (1, self._workspace),
            (4, self._rollback),
            (2, self._pin),
            (2, self._unpin),
            (4, self._reap),
            (2, self._collect),
            (4, self._flatten),
        )
        self.rng.choices([do for _, do in kinds], [weight for weight, _ in kinds])[0]()
        self.verify()

    def _publish(self, path: Path, offset: int, mode: int) -> int:
        upload = self.files.upload()
        self.bucket.add(upload)
        self.log.append(f"publish {path} {offset} {mode} upload {upload}")
        self.files.publish_at(
            At(0, 1, path[:-1]), path[-1], stored(SEGMENT, offset), mode=mode, upload=upload
        )
        return upload

    def _make_file(self) -> None:
        if place := self._free():
            path, directory, name = place
            node = directory.names[name] = File()
            if self.rng.random() < 0.3:
                self._do(Create(At(0, 1, path), name, 0o644))
            else:
                node.body = [self._publish((*path, name), 0, PublishMode.CREATE)]

    def _mkdir(self) -> None:
        if place := self._free():
            path, directory, name = place
            self._do(Mkdir(At(0, 1, path), name, 0o755))
            directory.names[name] = Dir()

    def _some_file(self) -> tuple[Path, File] | None:
        found = self._all(File)
        if not found:
            return None
        path, node = self._one(found)
        assert isinstance(node, File)
        return path, node

    def _append(self) -> None:
        if (found := self._some_file()) and len(found[1].body) < 4:
            found[1].body.append(self._publish(found[0], 0, PublishMode.APPEND))

    def _patch(self) -> None:
        if (found := self._some_file()) and found[1].body:
            index = self.rng.randrange(len(found[1].body))
            found[1].body[index] = self._publish(found[0], SEGMENT * index, PublishMode.PATCH)

    def _replace(self) -> None:
        if found := self._some_file():
            found[1].body = [self._publish(found[0], 0, PublishMode.REPLACE)]

    def _cut(self) -> None:
        if (found := self._some_file()) and found[1].body:
            left = self.rng.randrange(len(found[1].body))
            self._do(SetAttr(At(0, 1, found[0]), size=left * SEGMENT))
            del found[1].body[left:]

    def _chmod(self) -> None:
        path, node = self._one(self._dirs() + self._all(File))
        node.mode = self.rng.choice((0o700, 0o755, 0o777))
        self._do(SetAttr(At(0, 1, path), mode=node.mode))

    def _xattr(self) -> None:
        path, _ = self._one(self._dirs() + self._all(File))
        self._do(SetXattr(At(0, 1, path), b"user." + self.rng.choice(NAMES), b"v"))

    def _link(self) -> None:
        if (found := self._some_file()) and (place := self._free()):
            path, directory, name = place
            crosses = self._view_of(found[0][:-1]) != self._view_of(path)
            self._do(Link(At(0, 1, found[0]), At(0, 1, path), name), fails=crosses)
            if not crosses:
                directory.names[name] = found[1]

    def _rename(self) -> None:
        if not (found := self._all()):
            return
        path, node = self._one(found)
        to, target = self._one(self._dirs())
        assert isinstance(target, Dir)
        name = self.rng.choice(NAMES)
        other = target.names.get(name)
        below = to[: len(path)] == path
        over = isinstance(other, Dir) != isinstance(node, Dir) if other else False
        full = isinstance(other, Dir) and bool(other.names)
        same = other is node
        crosses = self._view_of(path[:-1]) != self._view_of(to)
        fails = crosses or ((below or over or full) and not same)
        op = Rename(At(0, 1, path[:-1]), path[-1], At(0, 1, to), name)
        self._do(op, fails=fails)
        if not fails and not same:
            del self._dir(path[:-1]).names[path[-1]]
            target.names[name] = node

    def _exchange(self) -> None:
        if len(found := self._all()) < 2:
            return
        (path, node), (to, other) = self._one(found), self._one(found)
        crosses = self._view_of(path[:-1]) != self._view_of(to[:-1])
        below = to[: len(path)] == path or path[: len(to)] == to
        fails = crosses or (below and node is not other)
        source, target = At(0, 1, path[:-1]), At(0, 1, to[:-1])
        self._do(Rename(source, path[-1], target, to[-1], RenameFlag.EXCHANGE), fails=fails)
        if not fails:
            self._dir(path[:-1]).names[path[-1]] = other
            self._dir(to[:-1]).names[to[-1]] = node

    def _remove(self) -> None:
        if not (found := self._all()):
            return
        path, node = self._one(found)
        parent, name = At(0, 1, path[:-1]), path[-1]
        if isinstance(node, File):
            self._do(Unlink(parent, name))
        else:
            self._do(Rmdir(parent, name), fails=bool(node.names))
            if node.names:
                return
        del self._dir(path[:-1]).names[name]

    def _remove_tree(self) -> None:
        if found := self._all(Dir):
            path, _ = self._one(found)
            self._do(RemoveTree(At(0, 1, path[:-1]), path[-1]))
            del self._dir(path[:-1]).names[path[-1]]

    def _address(self, path: Path) -> At:
        reply = self.files.read(GetAttr(At(0, 1, path)))
        attr: Attr = reply.attr  # type: ignore[union-attr]
        return At(attr.view, attr.inode)

    def _snapshot(self) -> None:
        if len(self.held) > 3:
            return
        path, node = self._one(self._dirs())
        assert isinstance(node, Dir)
        self._number += 1
        name, where = f"s{self._number}", self._address(path)
        made = self._do(SnapshotCreate(At(0, 1, path), name, b"/"))
        assert isinstance(made, SnapshotMade)
        self.held[name] = Held(copy.deepcopy(node), where, made.version, node.identity)

    def _delete_snapshot(self) -> None:
        if self.held:
            name = self.rng.choice(list(self.held))
            self._do(SnapshotDelete(name))
            del self.held[name]

    def _clone(self) -> None:
        path, node = self._one(self._dirs())
        assert isinstance(node, Dir)
        if (place := self._free()) and len(self._all()) + counts(node)[0] < 2 * self._size:
            to, directory, name = place
            made = copy.deepcopy(node)
            made.view = True
            self._do(Clone(At(0, 1, path), At(0, 1, to), name))
            directory.names[name] = made

    def _clone_snapshot(self) -> None:
        if not self.held or not (place := self._free()):
            return
        snapshot = self.rng.choice(list(self.held))
        to, directory, name = place
        made = copy.deepcopy(self.held[snapshot].tree)
        made.view = True
        self._do(Clone(At(0, 1), At(0, 1, to), name, snapshot))
        directory.names[name] = made

    def _workspace(self) -> None:
        if place := self._free():
            path, directory, name = place
            self._do(WorkspaceCreate(At(0, 1, path), name, 0o755))
            directory.names[name] = Dir(view=True)

    def _rollback(self) -> None:
        if not self.held or not (found := self._all(Dir)):
            return
        snapshot = self.rng.choice(list(self.held))
        held = self.held[snapshot]
        same = [
            row for row in found if isinstance(row[1], Dir) and row[1].identity is held.identity
        ]
        path, node = self._one(same or found)
        assert isinstance(node, Dir)
        fits = node.identity is held.identity
        parent, name = At(0, 1, path[:-1]), path[-1]
        where = self._address(path)
        done = self._do(Rollback(parent, name, snapshot, b"/", 3 * 10**9), fails=not fits)
        if not fits:
            return
        assert isinstance(done, RolledBack)
        kept = Held(copy.deepcopy(node), where, self.files.machine.version - 1, node.identity)
        self.held[done.name] = kept
        made = copy.deepcopy(held.tree)
        made.view, made.identity = True, node.identity
        self._dir(path[:-1]).names[name] = made

    def _pin(self) -> None:
        found = [row for row in self._dirs() if isinstance(row[1], Dir) and row[1].view]
        if len(self.pins) < 3:
            path, tree = self._one(found)
            where = self._address(path)
            made = self._do(PinView(where.view))
            assert isinstance(made, Pinned)
            assert isinstance(tree, Dir)
            self.pins.append((made, Held(copy.deepcopy(tree), where, made.version, None)))

    def _stage(self) -> None:
        """Build a tree out of sight, and swap it in or give it up."""
        if not (place := self._free()):
            return
        path, directory, name = place
        where = self._address(path)
        staged = self._do(StageBegin(where.view, 0o040755))
        assert isinstance(staged, Made)
        stage = At(where.view, staged.attr.inode)
        self._do(Mkdir(stage, b"a", 0o755))
        self._do(Create(stage, b"b", 0o644))
        below = At(where.view, stage.inode, (b"a",))
        self._do(Link(At(where.view, stage.inode, (b"b",)), below, b"c"))
        file, made, inner = File(), Dir(), Dir()
        made.names, inner.names = {b"a": inner, b"b": file}, {b"c": file}
        self.verify()
        if self.rng.random() < 0.5:
            self._do(StageDrop(where.view, stage.inode))
            return
        if self.rng.random() < 0.5:
            self._do(Unlink(stage, b"b"))
            del made.names[b"b"]
        self._do(StageSwap(where.view, stage.inode, At(0, 1, path), name, StageMode.CREATE))
        directory.names[name] = made

    def _unpin(self) -> None:
        if self.pins:
            pin, _ = self.pins.pop()
            self._do(UnpinView(pin.view, pin.version, pin.pin))

    def _reap(self) -> None:
        for _ in range(self.rng.choice((1, 3, 10))):
            self.log.append("reap")
            self.files.internal(Reap(self.rng.choice((1, 2, 5))))
            self.files.check()

    def _collect(self) -> None:
        self.log.append("collect")
        self._let_time_pass()
        gone = self.files.collect()
        self.log.append(f"collected {gone}")
        self.bucket -= {upload for _, upload, _, _, _ in gone}

    def _flatten(self) -> None:
        views = [view for view in self.files.machine._txn._views if view]
        if views:
            op = Flatten(self.rng.choice(views), self.rng.choice((1, 3, 100)))
            self.log.append(f"{op}")
            self.files.internal(op)

    def _let_time_pass(self) -> None:
        self.files.wait()
        self.files.raise_floor()
        ended = [
            name
            for name in self.held
            if name.startswith("rollback-")
            and (snapshot := self._until(name)) is not None
            and snapshot <= self.files.cluster_ns
        ]
        for name in ended:
            del self.held[name]
        self.files.internal(ExpireSnapshots(10))

    def _until(self, name: str) -> int | None:
        from nokv.state.snapshots import stored as find

        found = find(self.files.machine._txn, name)
        return None if found is None else found.until_cluster_ns

    # ------------------------------------------------------------------ comparing

    def verify(self) -> None:
        """Compare everything that is shown, and every invariant."""
        self.files.check()
        self._compare(self.root, At(0, 1), 0)
        for held in self.held.values():
            self._compare(held.tree, held.at, held.version)
        for _, held in self.pins:
            self._compare(held.tree, held.at, held.version, grafts=False)

    def _compare(self, tree: Dir, at: At, version: int, *, grafts: bool = True) -> None:
        names: dict[int, list[Attr]] = {}
        self._compare_dir(tree, at, version, names, grafts=grafts)
        for attrs in names.values():
            assert len({attr.nlink for attr in attrs}) == 1
            assert attrs[0].nlink == len(attrs) or not self._at_rest or version, attrs
            assert len({(attr.view, attr.inode) for attr in attrs}) == 1

    def _compare_dir(
        self, tree: Dir, at: At, version: int, names: dict[int, list[Attr]], *, grafts: bool
    ) -> None:
        found: dict[bytes, tuple[int, int]] = {}
        after = b""
        while True:
            page = self.files.read(ReadDir(at, after, 2, at_version=version))
            assert isinstance(page, DirPage)
            found.update({entry.name: (entry.view, entry.inode) for entry in page.entries})
            after = page.after
            if not page.more:
                break
        assert set(found) == set(tree.names), f"{at} at {version}: {set(found)}"
        assert page.directory.children == len(found)
        assert page.directory.mode & 0o7777 == tree.mode
        if grafts:
            usage = (
                self.files.read(GetUsage(at, version)) if version else self.files.read(GetUsage(at))
            )
            assert isinstance(usage, UsageReply)
            assert (usage.entries, usage.bytes) == counts(tree), f"usage of {at} at {version}"
        for name, node in tree.names.items():
            below = At(*found[name])
            if isinstance(node, Dir):
                if grafts or not node.view:
                    self._compare_dir(node, below, version, names, grafts=grafts)
                continue
            shown = self.files.read(BodyMap(below, 0, 2**40, at_version=version))
            assert isinstance(shown, BodyMapReply)
            names.setdefault(id(node), []).append(shown.attr)
            assert shown.attr.size == SEGMENT * len(node.body)
            assert shown.attr.mode & 0o7777 == node.mode
            assert segments(shown) == node.body, f"{below} at {version}"
            assert set(node.body) <= self.bucket, f"{below} at {version}: objects are gone"

    def finish(self) -> None:
        """Let go of everything but the live tree, then of that: nothing may be left."""
        self.quiesce()
        for snapshot in list(self.held):
            self._do(SnapshotDelete(snapshot))
        for pin, _ in self.pins:
            self._do(UnpinView(pin.view, pin.version, pin.pin))
        self.held.clear()
        self.pins.clear()
        self.quiesce()
        for name, node in list(self.root.names.items()):
            is_dir = isinstance(node, Dir)
            self._do(RemoveTree(At(0, 1), name) if is_dir else Unlink(At(0, 1), name))
        self.root.names.clear()
        self.quiesce()
        assert not self.bucket, f"objects {self.bucket} are left"
        counters = self.files.machine.counters
        assert (counters.history, counters.drops, counters.jobs, counters.files) == (0, 0, 0, 1)
        assert len(self.files.machine._txn._views) == 1

    def quiesce(self) -> None:
        """Do all background work, and compare the bucket."""
        for _ in range(8):
            self.files.reap(3)
            self._collect()
        assert not self.files.machine.pending_work()
        named = {name[1] for name in self.files.named()}
        # Of an old chunk record that waits for one of its objects another may be gone: no pin
        # shows that record.
        assert self.bucket <= named, f"bucket {self.bucket}, named {named}"
        self._at_rest = True
        self.verify()
        self._at_rest = False


def segments(shown: BodyMapReply) -> list[int]:
    """Return the uploads that a body of segments shows, in order."""
    found = []
    for one in shown.chunks:
        for extent in one.chunk.extents:
            assert extent.length == SEGMENT
            found.append(one.chunk.objects[extent.object].upload)
    return found
