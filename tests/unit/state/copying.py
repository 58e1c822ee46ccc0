"""Random programs of copies, views and the collector, beside an oracle that copies deeply.

A file is a list of slots, each an object or a hole; the bucket is what was minted less what the
collector said may go. Whatever a path, a snapshot or a clone shows must be in the bucket, and at
rest the bucket is exactly what they show (after state-audit's model of the rules).
"""

from __future__ import annotations

import copy
import random

from tests.unit.state.bodies import DAY_NS, GRACE_NS, Files
from tests.unit.state.shard import at

from nokv.errors import NokvError
from nokv.state.families import Family
from nokv.types.commands import (
    Atomic,
    Collected,
    ExpireSession,
    Link,
    Mkdir,
    Op,
    Publish,
    PublishMode,
    Reap,
    RemoveTree,
    Rename,
    SetAttr,
    Unlink,
)
from nokv.types.copies import Copy, CopyMode, CopyRange
from nokv.types.limits import CHUNK_BYTES, SUM_BYTES
from nokv.types.reads import BodyMap, BodyMapReply, DirPage, DropsReply, GetDrops, ReadDir
from nokv.types.results import Reaped
from nokv.types.trash import (
    ExpireTrash,
    KeepTrash,
    ListTrash,
    RestoreTrash,
    Trash,
    Trashed,
    TrashPage,
)
from nokv.types.values import At, ChunkMap, Extent, ObjectPart
from nokv.types.views import Clone, Flatten, Rollback, SnapshotCreate, SnapshotDelete

SLOT = 10
"""Bytes of a slot. A file has two in its first chunk and one in its second."""
PLACES = (0, SLOT, CHUNK_BYTES)

Object = tuple[int, int]
"""(upload, block)."""


class File:
    """A file of the oracle; several names may show one."""

    def __init__(self, slots: list[Object | None]) -> None:
        self.slots = slots


Tree = dict[str, "File | Tree"]


class Bad(AssertionError):
    """What the system shows and the oracle differ."""


class Snap:
    """A snapshot: where to read it, and what it must show."""

    def __init__(self, name: str, view: int, inode: int, version: int, tree: Tree) -> None:
        self.name, self.view, self.inode, self.version = name, view, inode, version
        self.tree = tree


_MANY = {
    "create": 3,
    "part": 2,
    "snap": 2,
    "clone": 2,
    "csnap": 2,
    "gc": 2,
    "reflink": 2,
    "range": 2,
}
_ONCE = (
    "mkdir full cut delete rename link trash restore expire"
    " dropsnap rollback reap floor rsnap move flatten plan exec"
)
OPS = [*_ONCE.split(), *(name for name, count in _MANY.items() for _ in range(count))]


class Program:
    """One seed's run."""

    def __init__(self, seed: int, ops: list[str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.ops = OPS if ops is None else ops
        self.files = Files()
        self.tree: Tree = {}
        self.snaps: list[Snap] = []
        self.plans: list[DropsReply] = []
        self.bucket: set[Object] = set()
        self.log: list[str] = []
        self.number = 0
        self.stale_deletions = 0
        self.trash: dict[tuple[int, int], tuple[Tree, str, File | Tree]] = {}
        """(view, id) to the directory, the name and what was there."""

    # ------------------------------------------------------------------ the oracle

    def items(self) -> list[tuple[str, File | Tree]]:
        """Every (path, node) of the live tree."""
        found: list[tuple[str, File | Tree]] = []

        def walk(tree: Tree, above: str) -> None:
            for name, node in tree.items():
                path = f"{above}/{name}" if above else name
                found.append((path, node))
                if isinstance(node, dict):
                    walk(node, path)

        walk(self.tree, "")
        return found

    def node(self, path: str) -> Tree:
        """The directory at a path."""
        tree = self.tree
        for name in path.split("/") if path else ():
            below = tree[name]
            assert isinstance(below, dict)
            tree = below
        return tree

    # ------------------------------------------------------------------ the system

    def slots(self, where: At, version: int) -> list[Object | None]:
        """What a file shows."""
        reply = self.files.read(BodyMap(where, 0, 2**62, version))
        assert isinstance(reply, BodyMapReply)
        shown: dict[int, Object] = {}
        for one in reply.chunks:
            for extent in one.chunk.extents:
                obj = one.chunk.objects[extent.object]
                if extent.length != SLOT or extent.object_offset:
                    raise Bad(f"an odd extent {extent}")
                shown[one.index * CHUNK_BYTES + extent.offset] = obj.upload, obj.block
        return [shown.pop(place, None) for place in PLACES]

    def compare(self, tree: Tree, where: At, version: int = 0) -> None:
        """Walk a tree of the oracle and the system side by side."""
        reply = self.files.read(ReadDir(where, limit=1000, at_version=version))
        assert isinstance(reply, DirPage)
        names = {entry.name.decode() for entry in reply.entries}
        if names != set(tree):
            raise Bad(f"{where.path}@{version}: {sorted(names)}, oracle {sorted(tree)}")
        for name, node in tree.items():
            below = At(where.view, where.inode, (*where.path, name.encode()))
            if isinstance(node, dict):
                self.compare(node, below, version)
                continue
            shown = self.slots(below, version)
            if shown != node.slots:
                raise Bad(f"{below.path}@{version}: {shown}, oracle {node.slots}")
            for obj in shown:
                if obj is not None and obj not in self.bucket:
                    raise Bad(f"{below.path}@{version}: {obj} was deleted")

    def verify(self) -> None:
        """Compare all there is."""
        self.compare(self.tree, at())
        for snap in self.snaps:
            self.compare(snap.tree, At(snap.view, snap.inode), snap.version)
        self.files.check()

    def do(self, op: Op) -> bool:
        """Apply a command; whether it succeeded."""
        try:
            self.files.do(op)
        except NokvError as error:
            self.log.append(f"{self.files.machine.version} {type(error).__name__} of {op}")
            return False
        self.log.append(f"{self.files.machine.version} {op}")
        return True

    def publish(self, path: str, mode: int, places: list[int]) -> list[Object]:
        """Publish objects to slots of a file; return them."""
        upload = self.files.upload()
        made: list[Object] = []
        chunks: dict[int, tuple[tuple[ObjectPart, ...], tuple[Extent, ...]]] = {}
        for block, place in enumerate(places):
            index, offset = divmod(PLACES[place], CHUNK_BYTES)
            parts, extents = chunks.get(index, ((), ()))
            part = ObjectPart(0, block, 0, SLOT, bytes(8 * -(-SLOT // SUM_BYTES)))
            extent = Extent(offset, SLOT, len(parts), 0)
            chunks[index] = (*parts, part), (*extents, extent)
            made.append((upload, block))
        above, _, name = path.rpartition("/")
        size = PLACES[max(places)] + SLOT
        maps = tuple(ChunkMap(index, *chunk) for index, chunk in sorted(chunks.items()))
        assert self.do(Publish(at(above), name.encode(), mode, 0o644, size, upload, maps))
        self.bucket |= set(made)
        return made

    # ------------------------------------------------------------------ one step

    def step(self) -> None:
        """Do something at random."""
        getattr(self, "do_" + self.rng.choice(self.ops))()

    def _files(self) -> list[tuple[str, File]]:
        return [(path, node) for path, node in self.items() if isinstance(node, File)]

    def _dirs(self) -> list[str]:
        return ["", *(path for path, node in self.items() if isinstance(node, dict))]

    def _free(self, many: int = 14) -> tuple[str, str, Tree] | None:
        """A directory and a name that is free in it."""
        if len(self.items()) >= many:
            return None
        above = self.rng.choice(self._dirs())
        name = self.rng.choice("ab") + self.rng.choice("01")
        tree = self.node(above)
        return None if name in tree else (above, name, tree)

    def _split(self, path: str) -> tuple[At, bytes, Tree]:
        above, _, name = path.rpartition("/")
        return at(above), name.encode(), self.node(above)

    def do_create(self) -> None:
        if (free := self._free()) is None:
            return
        above, name, tree = free
        places = sorted(self.rng.sample(range(3), self.rng.randint(1, 3)))
        slots: list[Object | None] = [None] * 3
        made = self.publish(f"{above}/{name}".lstrip("/"), PublishMode.CREATE, places)
        for place, obj in zip(places, made, strict=True):
            slots[place] = obj
        tree[name] = File(slots)

    def do_mkdir(self) -> None:
        if (free := self._free()) is None:
            return
        above, name, tree = free
        assert self.do(Mkdir(at(above), name.encode(), 0o755))
        tree[name] = {}

    def do_full(self) -> None:
        if not (found := self._files()):
            return
        path, file = self.rng.choice(found)
        file.slots[:] = self.publish(path, PublishMode.REPLACE, [0, 1, 2])

    def do_part(self) -> None:
        if not (found := self._files()):
            return
        path, file = self.rng.choice(found)
        place = self.rng.randrange(3)
        [file.slots[place]] = self.publish(path, PublishMode.PATCH, [place])

    def do_cut(self) -> None:
        if not (found := self._files()):
            return
        path, file = self.rng.choice(found)
        keep = self.rng.randrange(3)
        assert self.do(SetAttr(at(path), size=PLACES[keep]))
        file.slots[keep:] = [None] * (3 - keep)

    def do_delete(self) -> None:
        if not (found := self.items()):
            return
        path, node = self.rng.choice(found)
        parent, name, tree = self._split(path)
        op = RemoveTree(parent, name) if isinstance(node, dict) else Unlink(parent, name)
        assert self.do(op)
        del tree[name.decode()]

    def do_rename(self) -> None:
        free = self._free()
        if free is None or not (found := self.items()):
            return
        path, node = self.rng.choice(found)
        above, name, to = free
        parent, old, tree = self._split(path)
        if self.do(Rename(parent, old, at(above), name.encode())):
            del tree[old.decode()]
            to[name] = node

    def do_link(self) -> None:
        free = self._free()
        if free is None or not (found := self._files()):
            return
        path, node = self.rng.choice(found)
        above, name, to = free
        if self.do(Link(at(path), at(above), name.encode())):
            to[name] = node

    # ------------------------------------------------------------------ trash

    def do_trash(self) -> None:
        if not (found := self.items()):
            return
        path, node = self.rng.choice(found)
        parent, name, tree = self._split(path)
        made = self.files.do(Trash(parent, name))
        assert isinstance(made, Trashed)
        self.log.append(f"{self.files.machine.version} trash {path} of view {made.view}")
        self.trash[made.view, made.trash] = tree, name.decode(), node
        del tree[name.decode()]

    def do_restore(self) -> None:
        self.forget_trash()
        if not self.trash:
            return
        key = self.rng.choice(list(self.trash))
        tree, name, node = self.trash[key]
        free = self._free() if self.rng.random() < 0.5 else None
        if free is None:
            ok = self.do(RestoreTrash(*key))
            there = any(below is tree for _, below in self.items()) or tree is self.tree
            # A view that is in the trash itself lives; its own trash may come back into it.
            hidden = any(_holds(below, tree) for _, _, below in self.trash.values())
            possible = name not in tree and (there or hidden)
            if (ok and not possible) or (there and possible and not ok):
                raise Bad(f"restoring {name} of {key}: {ok}")
        else:
            above, name, tree = free
            ok = self.do(RestoreTrash(*key, at(above), name.encode()))
        if ok:
            del self.trash[key]
            tree[name] = node

    def do_expire(self) -> None:
        self.files.do(KeepTrash(self.rng.choice((0, 10**18))))
        self.files.internal(ExpireTrash(self.rng.randint(1, 3)))
        self.forget_trash()

    def forget_trash(self) -> None:
        """What went with its view, or by its retention, is in the trash no more."""
        page = self.files.read(ListTrash(limit=1000))
        assert isinstance(page, TrashPage)
        there = {(row.view, row.trash) for row in page.rows}
        assert there <= set(self.trash)
        self.trash = {key: entry for key, entry in self.trash.items() if key in there}

    # ------------------------------------------------------------------ views

    def _new(self) -> str:
        self.number += 1
        return f"s{self.number}"

    def do_snap(self) -> None:
        if len(self.snaps) == 4:
            return
        path, name = self.rng.choice(self._dirs()), self._new()
        made = self.files.do(SnapshotCreate(at(path), name, b"/" + path.encode()))
        snap = Snap(name, made.view, made.inode, made.version, copy.deepcopy(self.node(path)))  # type: ignore[union-attr]
        self.snaps.append(snap)
        self.log.append(f"{self.files.machine.version} snapshot {name} of /{path}")

    def do_dropsnap(self) -> None:
        if self.snaps:
            snap = self.snaps.pop(self.rng.randrange(len(self.snaps)))
            assert self.do(SnapshotDelete(snap.name))

    def do_clone(self) -> None:
        if (free := self._free(12)) is None:
            return
        path = self.rng.choice(self._dirs())
        above, name, to = free
        shown = copy.deepcopy(self.node(path))
        assert self.do(Clone(at(path), at(above), name.encode()))
        to[name] = shown

    def do_csnap(self) -> None:
        free = self._free(12)
        if free is None or not self.snaps:
            return
        snap = self.rng.choice(self.snaps)
        above, name, to = free
        assert self.do(Clone(at(), at(above), name.encode(), snap.name))
        to[name] = copy.deepcopy(snap.tree)

    def do_rollback(self) -> None:
        if not self.snaps or not self._dirs()[1:]:
            return
        snap = self.rng.choice(self.snaps)
        for path in self._dirs()[1:]:
            parent, name, tree = self._split(path)
            if self.do(Rollback(parent, name, snap.name, b"/" + path.encode(), 1_000_000_000)):
                tree[name.decode()] = copy.deepcopy(snap.tree)
                self.do(SnapshotDelete(f"rollback-{self.files.machine.version}"))
                return

    def do_flatten(self) -> None:
        views = [
            int.from_bytes(k, "big") for k, _ in self.files.kv.scan(Family.VIEW, b"", b"\xff" * 9)
        ]
        if len(views) > 1:
            self.files.internal(
                Flatten(self.rng.choice(views[1:]), self.rng.choice((1, 2, 5, 1000)))
            )

    # ------------------------------------------------------------------ copies

    def do_reflink(self) -> None:
        if not (found := self._files()):
            return
        path, file = self.rng.choice(found)
        self._copy_to(at(path), file, 0)

    def do_rsnap(self) -> None:
        if not self.snaps:
            return
        snap = self.rng.choice(self.snaps)
        found: list[tuple[tuple[bytes, ...], File]] = []

        def walk(tree: Tree, above: tuple[bytes, ...]) -> None:
            for name, node in tree.items():
                if isinstance(node, dict):
                    walk(node, (*above, name.encode()))
                else:
                    found.append(((*above, name.encode()), node))

        walk(snap.tree, ())
        if found:
            path, file = self.rng.choice(found)
            self._copy_to(At(snap.view, snap.inode, path), file, snap.version)

    def _copy_to(self, source: At, file: File, version: int) -> None:
        if (found := self._files()) and self.rng.random() < 0.4:
            path, target = self.rng.choice(found)
            parent, name, _ = self._split(path)
            assert self.do(Copy(source, parent, name, CopyMode.REPLACE, 0o644, version))
            target.slots[:] = file.slots
        elif (free := self._free()) is not None:
            above, name_, to = free
            assert self.do(Copy(source, at(above), name_.encode(), CopyMode.CREATE, 0o644, version))
            to[name_] = File(list(file.slots))

    def do_range(self) -> None:
        if not (found := self._files()):
            return
        (path, file), (to, target) = self.rng.choice(found), self.rng.choice(found)
        source, place = self.rng.randrange(3), self.rng.randrange(3)
        if file is target and source == place:
            return
        before = list(target.slots)
        ok = self.do(CopyRange(at(path), at(to), PLACES[source], PLACES[place], SLOT))
        if ok and self.files.stat(path).size >= PLACES[source] + SLOT:
            target.slots[place] = file.slots[source]
        elif ok and self.files.stat(path).size > PLACES[source]:
            raise Bad(f"a file of {self.files.stat(path).size} bytes, before {before}")

    def do_move(self) -> None:
        """Move a file as between views: a copy and the removal of the original, at once."""
        free = self._free()
        if free is None or not (found := self._files()):
            return
        path, file = self.rng.choice(found)
        above, name, to = free
        parent, old, tree = self._split(path)
        ops = (
            Copy(at(path), at(above), name.encode(), CopyMode.CREATE, 0o644),
            Unlink(parent, old),
        )
        assert self.do(Atomic(ops))
        to[name] = File(list(file.slots))
        del tree[old.decode()]

    # ------------------------------------------------------------------ the collector

    def do_floor(self) -> None:
        self.files.raise_floor()

    def do_reap(self) -> None:
        self.files.internal(Reap(self.rng.choice((1, 3, 50))))

    def do_gc(self) -> None:
        """Delete some of what is safe, as a collector that is stopped anywhere."""
        self.files.raise_floor()
        self.files.wait()
        for _ in range(self.rng.randint(1, 3)):
            page = self.drops()
            self.delete(page)
            rows = [(d.drop, d.through) for d in page.drops if self.rng.random() < 0.8]
            if rows:
                self.files.internal(Collected(tuple(rows)))

    def do_plan(self) -> None:
        """What a collector has read, and will act on when its leader is long deposed."""
        self.files.raise_floor()
        self.files.wait()
        self.plans.append(self.drops())

    def do_exec(self) -> None:
        if self.plans:
            page = self.plans.pop(self.rng.randrange(len(self.plans)))
            self.stale_deletions += self.delete(page)
            if self.rng.random() < 0.5 and page.drops:
                self.files.internal(Collected(tuple((d.drop, d.through) for d in page.drops)))

    def drops(self) -> DropsReply:
        reply = self.files.read(GetDrops(0, self.rng.choice((1, 2, 100)), GRACE_NS))
        assert isinstance(reply, DropsReply)
        return reply

    def delete(self, page: DropsReply) -> int:
        """Delete the objects of a page from the bucket; return how many were there."""
        gone = {(o.upload, o.block) for drop in page.drops for o in drop.objects}
        count = len(gone & self.bucket)
        self.bucket -= gone
        return count

    # ------------------------------------------------------------------ the end

    def quiesce(self) -> None:
        """Let everything that can end do so."""
        files = self.files
        for session, _ in files.machine.live_sessions():
            files.internal(ExpireSession(session))
        files.wait(DAY_NS)
        for _ in range(1000):
            step = files.internal(Reap(64))
            assert isinstance(step, Reaped)
            files.wait()
            page = files.read(GetDrops(0, 100, GRACE_NS))
            assert isinstance(page, DropsReply)
            self.delete(page)
            if page.drops:
                files.internal(Collected(tuple((d.drop, d.through) for d in page.drops)))
            elif not step.more:
                break
        self.number += 1
        files.session = files.open(self.number.to_bytes(16, "big"))

    def objects(self, tree: Tree) -> set[Object]:
        """All objects of a tree."""
        found: set[Object] = set()
        for node in tree.values():
            if isinstance(node, dict):
                found |= self.objects(node)
            else:
                found |= {obj for obj in node.slots if obj is not None}
        return found

    def finish(self) -> None:
        """Come to rest with snapshots, without them, and with nothing at all."""
        self.plans.clear()
        self.files.do(KeepTrash(0))
        self.files.internal(ExpireTrash(1000))
        self.quiesce()
        self.verify()
        named = {(upload, block) for _, upload, _, block, _ in self.files.named()}
        if self.bucket - named:
            raise Bad(f"leak: {sorted(self.bucket - named)} are named by no record")
        while self.snaps:
            assert self.do(SnapshotDelete(self.snaps.pop().name))
        for path, node in self.items():
            if "/" not in path and isinstance(node, dict):
                assert self.do(RemoveTree(at(), path.encode()))
                del self.tree[path]
        self.quiesce()
        self.verify()
        need = self.objects(self.tree)
        if self.bucket != need:
            lost, left = need - self.bucket, self.bucket - need
            raise Bad(f"at the end: leaked {sorted(left)}, missing {sorted(lost)}")
        for family in (Family.HISTORY, Family.RECLAIM, Family.DROP, Family.PIN):
            if self.files.count(family):
                raise Bad(f"{family.name} at rest")
        if self.files.count(Family.VIEW) != 1:
            raise Bad("views at rest")


def _holds(node: File | Tree, tree: Tree) -> bool:
    """Whether a tree is, or lies below, a node."""
    if not isinstance(node, dict):
        return False
    return node is tree or any(_holds(below, tree) for below in node.values())


def run(seed: int, steps: int, ops: list[str] | None = None) -> Program:
    """Run one program; raises Bad with the seed and the commands so far."""
    program = Program(seed, ops)
    try:
        for _ in range(steps):
            program.step()
            program.verify()
        program.finish()
    except Exception as error:
        lines = "\n".join(program.log[-40:])
        raise Bad(f"seed {seed}, {steps} steps: {type(error).__name__} {error}\n{lines}") from error
    return program
