"""Diffs of snapshots, clones and what was rolled back, views below them entered."""

from __future__ import annotations

import random

import pytest
from tests.unit.state.diffing import asked, naive
from tests.unit.state.namespace_programs import NAMES, entries
from tests.unit.state.shard import ROOT, Shard

from nokv.state.context import DIRECTORY, S_IFMT
from nokv.types.commands import (
    Create,
    Link,
    Mkdir,
    Op,
    Publish,
    PublishMode,
    Reap,
    RemoveTree,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from nokv.types.values import At, ChunkMap, Extent
from nokv.types.views import (
    Clone,
    Flatten,
    Rollback,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    WorkspaceCreate,
)

SEEDS = range(12)
STEPS = 160
LEASE_NS = 10**15

State = tuple[At, int]


class Program:
    """A seeded run over a tree of directories, clones and workspaces, with snapshots of any."""

    def __init__(self, seed: int) -> None:
        self.shard = Shard()
        self.rng = random.Random(seed)
        self.snapshots: dict[str, SnapshotMade] = {}
        self.made = 0

    def directories(self) -> dict[tuple[bytes, ...], tuple[int, int]]:
        """Return (view, inode) of every directory by its path."""
        found: dict[tuple[bytes, ...], tuple[int, int]] = {(): (0, 1)}
        todo: list[tuple[bytes, ...]] = [()]
        while todo:
            path = todo.pop()
            for name, attr in entries(self.shard, At(path=path), 0, 4096):
                if attr.mode & S_IFMT == DIRECTORY:
                    found[*path, name] = attr.view, attr.inode
                    if len(path) < 5:
                        todo.append((*path, name))
        return found

    def step(self) -> None:
        """Apply a random command; what is refused is refused."""
        paths = sorted(self.directories())
        if self.rng.random() < 0.1:
            self._snapshot(At(path=self.rng.choice(paths)))
            return
        if self.rng.random() < 0.05 and self.snapshots:
            name = self.rng.choice(sorted(self.snapshots))
            del self.snapshots[name]
            self.shard.do(SnapshotDelete(name))
            return
        op = self._op(paths)
        session = 0 if isinstance(op, Reap | Flatten) else None
        (result,) = self.shard.entry(self.shard.command(op, ROOT, session=session))
        assert result.code != 49, (op, result)

    def _snapshot(self, where: At) -> None:
        self.made += 1
        name = f"s{self.made}"
        made = self.shard.do(SnapshotCreate(where, name, b"/x", LEASE_NS))
        assert isinstance(made, SnapshotMade)
        self.snapshots[name] = made

    def _op(self, paths: list[tuple[bytes, ...]]) -> Op:
        rng = self.rng
        there, other = At(path=rng.choice(paths)), At(path=rng.choice(paths))
        name, second = rng.choice(NAMES), rng.choice(NAMES)
        thing = At(path=(*there.path, name))
        body = (ChunkMap(0, (), (Extent(0, 3, data=b"abc"),)),)
        named = rng.choice(sorted(self.snapshots)) if self.snapshots else "none"
        table: list[tuple[int, Op]] = [
            (5, Mkdir(there, name, 0o755)),
            (5, Create(there, name, 0o644)),
            (3, Publish(there, name, PublishMode.REPLACE, 0o644, 3, 0, body)),
            (2, SetAttr(thing, mode=rng.choice((0o700, 0o755)))),
            (1, SetXattr(thing, b"user.x", b"%d" % rng.randrange(5))),
            (2, Unlink(there, name)),
            (1, Rmdir(there, name)),
            (1, RemoveTree(there, name)),
            (5, Rename(there, name, other, second, rng.choice((0, 0, RenameFlag.EXCHANGE)))),
            (1, Link(thing, other, second)),
            (2, Clone(other, there, name)),
            (1, Clone(other, there, name, named)),
            (1, WorkspaceCreate(there, name, 0o755)),
            (3, Rollback(there, name, named, b"/x", LEASE_NS)),
            (2, Reap(20)),
            (2, Flatten(rng.randrange(1, 12), 9)),
        ]
        return rng.choices([op for _, op in table], [weight for weight, _ in table])[0]

    def states(self) -> dict[int, list[State]]:
        """Return every directory that has several states, by its inode."""
        found: dict[int, list[State]] = {}
        for view, ino in sorted(set(self.directories().values())):
            found.setdefault(ino, []).append((At(view, ino), 0))
        for made in self.snapshots.values():
            found.setdefault(made.inode, []).append((At(made.view, made.inode), made.version))
        return {ino: states for ino, states in found.items() if len(states) > 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_diff_says_what_two_trees_say(seed: int) -> None:
    program = Program(seed)
    compared = 0
    for number in range(STEPS):
        program.step()
        if number % 8:
            continue
        for ino, states in sorted(program.states().items()):
            left, right = program.rng.choice(states), program.rng.choice(states)
            limit = program.rng.choice((1, 2, 4096))
            wanted = naive(program.shard, left, right)
            found = asked(program.shard, left, right, limit)
            assert found == wanted, (seed, number, ino, left, right)
            compared += bool(wanted)
    assert compared > 10, "too little was compared"
