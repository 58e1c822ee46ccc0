"""What the machine tries: small pools, so that names, links and owners collide all the time.

Addresses are drawn from what the model has and from what nothing has, so that error paths are
taken as often as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from nokv.errors import NokvError
from nokv.types import commands as c
from nokv.types.limits import CHUNK_BYTES, FILE_BYTES_MAX, SUM_BYTES
from nokv.types.values import (
    ROOT_INODE,
    ROOT_VIEW,
    At,
    Caller,
    ChunkMap,
    Extent,
    FileType,
    Lease,
    Marks,
    ObjectPart,
)
from nokv.types.views import HELD
from nokv_model.access import Resolver
from nokv_model.model import Model
from nokv_model.sessions import Session
from nokv_model.tree import NOBODY, Forest, Inode

T = TypeVar("T")

NAMES = (b"a", b"b", b"c", b"d", b"\xff\xfe")
BAD_NAMES = (b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256)
TARGETS = (b"a", b"b", b"../c", b"/a", b"/b/c", b"a//b/", b"/", b".", b"t" * 300, b"c/" * 100)
BAD_TARGETS = (b"", b"a\0", b"t" * 4096)
CALLERS = (
    Caller(),
    Caller(1, 1),
    Caller(1, 1, (2,)),
    Caller(2, 2),
    Caller(3, 3, (1, 2)),
)
MODES = (
    *(0o777,) * 6,
    *(0o755, 0o755, 0o1777, 0o1777, 0o2777, 0o666, 0o644),
    *(0o700, 0o000, 0o2755, 0o4755, 0o6777, 0o050),
)
BAD_MODES = (0o10000, -1)
XATTRS = (b"user.a", b"user.b", b"trusted.t", b"security.s")
BAD_XATTRS = (b"user.", b"system.x", b"user", b"", b"user.\0", b"user." + b"x" * 251)
CUTS = (0, 1, 3, 4, 7, 8, 12, 100, CHUNK_BYTES - 5, CHUNK_BYTES - 1, CHUNK_BYTES)
SIZES = (0, 1, 3, 4, 6, 8, 100, 4096, CHUNK_BYTES - 2, CHUNK_BYTES + 7, 2 * CHUNK_BYTES)
BAD_SIZES = (-1, FILE_BYTES_MAX + 1)
TIMES = (c.TIME_NOW, 0, 7, 2**63 - 1)
BAD_TIMES = (-2, 2**63)
SNAPSHOTS = ("s", "t", "u-1", "rollback")
BAD_SNAPSHOTS = ("", "rollback-9", ".s", "a/b", "é", "n" * 101)
INODES_MANY = 60
RARE = 30
"""One draw in so many is a bad one."""


Kind = Callable[[Inode], object]
"""Which inodes are wanted."""


def anything(_inode: Inode) -> bool:
    """Any inode."""
    return True


def directory(inode: Inode) -> bool:
    """Directories."""
    return inode.is_directory


def empty_directory(inode: Inode) -> bool:
    """Directories that rmdir takes."""
    return inode.is_directory and not inode.entries


def regular(inode: Inode) -> bool:
    """Files."""
    return inode.is_regular


def filled(inode: Inode) -> bool:
    """Files with a body."""
    return inode.is_regular and inode.size > 0


def symlink(inode: Inode) -> bool:
    """Symbolic links."""
    return inode.is_symlink


def view_root(inode: Inode) -> bool:
    """Directories that a graft leads to."""
    return any(directory[0] != inode.view for directory, _ in inode.names)


def tagged(inode: Inode) -> bool:
    """Inodes with extended attributes."""
    return bool(inode.xattrs)


class Drawing:
    """Draws the parts of commands; looks at the model for what exists."""

    def __init__(self, seed: bytes, model: Model, sessions: list[int]) -> None:
        self._random = Random(seed)
        self._model = model
        self._sessions = sessions

    def one(self, values: Sequence[T]) -> T:
        """One of some values."""
        return self._random.choice(values)

    def some(self, values: Sequence[T], low: int, high: int) -> list[T]:
        """Between `low` and `high` of some values, each once."""
        return self._random.sample(values, self.number(low, high))

    def number(self, low: int, high: int) -> int:
        """A number of [low, high]."""
        return self._random.randint(low, high)

    def chance(self, of: int) -> bool:
        """True once in `of` draws."""
        return self._random.randrange(of) == 0

    def often(self, good: Sequence[T], bad: Sequence[T]) -> T:
        """One of `good`; rarely one of `bad`."""
        return self.one(bad) if self.chance(RARE) else self.one(good)

    # ------------------------------------------------------------------ names and addresses

    def lock(self) -> tuple[int, int, int]:
        """View and inode of a lock table, mostly, and a ticket that waits there, if one does."""
        tables = [(at, table) for at, table in self._model.state.locks.items() if table.done]
        if not tables or self.chance(RARE):
            return self.one(
                ((0, ROOT_INODE, 0), (0, 999, 5), (77, 2, -1), (-1, 2**64 - 1, 2**64 - 1))
            )
        (view, inode, _), table = self.one(tables)
        return view, inode, self.one([wait.ticket for wait in table.queue] or [0])

    def name(self) -> bytes:
        """A name to make or to look up."""
        return self.often(NAMES, BAD_NAMES)

    def caller(self) -> Caller:
        """Root most of the time, so that enough succeeds."""
        return self.one((Caller(),) * 8 + CALLERS)

    def mode(self) -> int:
        """Permission bits."""
        return self.often(MODES, BAD_MODES)

    def _inodes(self, session: int) -> list[Inode]:
        """Inodes that a session addresses, and now and then others'."""
        forest = self._model.state.forest
        shown = {0, session}
        if self.chance(RARE):
            shown |= {*self._sessions, NOBODY}
        return [i for i in forest.inodes.values() if forest.owner_session(i) in shown]

    def _path_to(self, forest: Forest, inode: Inode, *, follow: bool = True) -> At:
        """The address of an inode from some root above it: of its view, or of one further up."""
        path: list[bytes] = []
        while inode.names:
            (parent, name) = self.one(sorted(inode.names))
            outside = forest.pinned is not None and parent[0] not in forest.pinned
            if parent[0] != inode.view and (outside or self.chance(3)):
                break
            if forest.owner_session(forest.inodes[parent]) == NOBODY and not self.chance(6):
                break
            path.insert(0, name)
            inode = forest.inodes[parent]
        return At(inode.view, inode.number, tuple(path), follow)

    def at(self, session: int = 0, *, kind: Kind = anything) -> At:
        """An address: of an inode there is, by handle or by path, or of something made up."""
        follow = not self.chance(3)
        if self.chance(16):
            start = self.one((ROOT_INODE, ROOT_INODE, 0, 2, 5, 999))
            view = self.one((ROOT_VIEW, ROOT_VIEW, 77, *self._model.state.views))
            path = tuple(self.one(COMPONENTS) for _ in range(self.number(0, 3)))
            return At(view, start, path, follow)
        inodes = self._inodes(session)
        wanted = [inode for inode in inodes if kind(inode)]
        inode = self.one(wanted or inodes)
        return self._address(self._model.state.forest, inode, kind, follow=follow)

    def _address(self, forest: Forest, inode: Inode, kind: Kind, *, follow: bool) -> At:
        if self.chance(3):
            return At(inode.view, inode.number, (), follow)
        at = self._path_to(forest, inode, follow=follow)
        if kind is directory and self.chance(6):
            last = self.one((b".", b"..", b"a", b"b"))
            at = At(at.view, at.inode, (*at.path, last), follow)
        return at

    def shown(self, *, kind: Kind = anything, climbing: bool = True) -> tuple[At, int]:
        """An address and the version that it is read at: the present, or what a pin keeps.

        Without `climbing` nothing may lead up from the root of a view at a version.
        """
        copies = list(self._model.state.copies(self._model.cluster_ns))
        if self.chance(RARE):
            return self.at(kind=kind), self.one((self._model.version, 1))
        if not copies or self.chance(2):
            return self.at(kind=kind), 0
        version, forest = self.one(copies)
        forest = self._model.state.forest_at(version, self._model.cluster_ns)
        if self.chance(6):
            at = self.at(kind=kind)
            return (at if climbing else At(at.view, at.inode)), version
        inodes = list(forest.inodes.values())
        wanted = [inode for inode in inodes if kind(inode)]
        inode, follow = self.one(wanted or inodes), not self.chance(3)
        if inode.view and not climbing:
            return At(*inode.key), version
        return self._address(forest, inode, kind, follow=follow), version

    def place(self, session: int = 0) -> tuple[At, bytes]:
        """A directory, and a name that is free there, mostly."""
        at = self.parent(session)
        try:
            inode = Resolver(self._model.state.forest, Caller(), session).resolve(at)
        except NokvError:
            return at, self.name()
        free = [name for name in NAMES if name not in inode.entries]
        return at, self.one(free) if free and not self.chance(5) else self.name()

    def parent(self, session: int = 0) -> At:
        """The address of a directory, mostly."""
        return self.at(session, kind=anything if self.chance(RARE) else directory)

    def entry(self, session: int = 0, *, kind: Kind = anything) -> tuple[At, bytes]:
        """A parent and a name in it that exists, mostly."""
        forest = self._model.state.forest
        named = [i for i in self._inodes(session) if i.names and kind(i)]
        if not named or self.chance(6):
            return self.parent(session), self.name()
        directory, name = self.one(sorted(self.one(named).names))
        if self.chance(3):
            return At(*directory), name
        return self._path_to(forest, forest.inodes[directory]), name

    # ------------------------------------------------------------------ bodies

    def body(self, session: int, publish_mode: int) -> tuple[int, int, tuple[ChunkMap, ...]]:
        """(size, upload, chunks) of a publish, mostly valid."""
        indexes = self.some(range(3), 0, 2)
        parts = self._uploads(session) != [] or self.chance(RARE)
        chunks = tuple(
            self._chunk(index, number, parts=parts) for number, index in enumerate(sorted(indexes))
        )
        ends = [k.index * CHUNK_BYTES + k.extents[-1].offset + k.extents[-1].length for k in chunks]
        size = max(ends, default=0) + self.one((0, 0, 5))
        if publish_mode == c.PublishMode.APPEND and parts:
            size, chunks = self._short()
        upload = self.upload(session) if any(chunk.parts for chunk in chunks) else 0
        if self.chance(RARE):
            return self._spoiled(size, upload, chunks)
        return size, upload, chunks

    def _short(self) -> tuple[int, tuple[ChunkMap, ...]]:
        """Something small to append, so that appends cross a border and stay near it."""
        part = ObjectPart(0, 0, 9, 8, b"8" * 8)
        extents = self.one(
            (
                (Extent(0, 8, part=0), Extent(8, 4, data=b"tail")),
                (Extent(1, 4, data=b"head"), Extent(5, 6, 0, 2)),
            )
        )
        return 13, (ChunkMap(0, (part,), extents),)

    def _uploads(self, session: int) -> list[int]:
        """Uploads that the session may publish."""
        known = self._model.state.sessions.get(session)
        if known is None:
            return []
        return sorted(set(range(known.watermark, known.next_upload)) - known.consumed)

    def upload(self, session: int) -> int:
        """An upload, mostly one that may be published."""
        free = self._uploads(session)
        return self.number(1, 4) if not free or self.chance(RARE) else self.one(free[:3])

    def _chunk(self, index: int, number: int, *, parts: bool) -> ChunkMap:
        cuts = sorted(self.some(CUTS, 2, 6))
        extents: list[Extent] = []
        made: list[ObjectPart] = []
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            length = min(end - start, 2 * SUM_BYTES)
            if not parts or (length <= 4096 and self.chance(2)):
                length = min(length, 4096)
                letter = bytes([self.number(65, 90)])
                extents.append(Extent(start, length, data=letter * length))
            elif made and made[-1].length >= length and self.chance(3):
                skip = made[-1].length - length
                extents.append(Extent(start, length, len(made) - 1, skip))
            else:
                skip = self.number(0, 2)
                sums = -(-(length + skip) // SUM_BYTES)
                part = ObjectPart(
                    number, len(made), self.number(0, 1), length + skip, b"s" * 8 * sums
                )
                extents.append(Extent(start, length, len(made), skip))
                made.append(part)
        return ChunkMap(index, tuple(made), tuple(extents))

    def _spoiled(
        self, size: int, upload: int, chunks: tuple[ChunkMap, ...]
    ) -> tuple[int, int, tuple[ChunkMap, ...]]:
        """One of many ways to be wrong."""
        inline = Extent(0, 4, data=b"good")
        part = ObjectPart(0, 0, 0, 8, b"s" * 8)
        whole = Extent(0, 8, part=0)
        wrong = (
            (self.one(BAD_SIZES), upload, chunks),
            (size, 1 - bool(upload), chunks),
            (100, 0, (ChunkMap(0, (), (inline, inline)),)),
            (100, 0, (ChunkMap(1, (), (inline,)), ChunkMap(0, (), (inline,)))),
            (3, 0, (ChunkMap(0, (), (inline,)),)),
            (100, 0, (ChunkMap(0, (), ()),)),
            (100, 0, (ChunkMap(0, (), (Extent(0, 5, data=b"four"),)),)),
            (2**40, 0, (ChunkMap(0, (), (Extent(CHUNK_BYTES - 2, 4, data=b"good"),)),)),
            (100, 1, (ChunkMap(0, (part, part), (whole,)),)),
            (100, 1, (ChunkMap(0, (part,), (Extent(0, 9, part=0),)),)),
            (100, 1, (ChunkMap(0, (part,), (Extent(0, 8, part=1),)),)),
            (100, 1, (ChunkMap(0, (part,), (inline,)),)),
            (100, 1, (ChunkMap(0, (ObjectPart(0, 0, 0, 8, b"s"),), (whole,)),)),
            (2**60, 0, (ChunkMap(2**31, (), (inline,)),)),
            (100_000, 0, (ChunkMap(0, (), (Extent(0, 65_537, data=b"x" * 65_537),)),)),
        )
        return self.one(wrong)

    # ------------------------------------------------------------------ the rest

    def predicates(self, session: int) -> tuple[c.Predicate, ...]:
        """Mostly none."""
        if not self.chance(RARE):
            return ()
        at = self.at(session)
        inode = self._model.state.forest.inodes.get((at.view, at.inode))
        version = self.one((inode.version if inode and not at.path else 1, self._model.version))
        generation = self.one((inode.generation if inode and not at.path else 0, 0))
        return self.one(
            (
                (c.Exists(at),),
                (c.Absent(at),),
                # When the reaper writes a file that lost a name is open, and so is its version.
                () if self._model.state.loosened else (c.VersionIs(at, version),),
                (c.GenerationIs(at, generation),),
                (c.Exists(At()), c.Absent(At(path=(self.one(NAMES),)))),
            )
        )

    def frame(self, session: Session) -> Marks:
        """Marks of a client that reads the present only, but for leases."""
        version = self._model.version
        leases = list(session.leases)
        bodies = [inode for inode in self._model.state.forest.inodes.values() if inode.body]
        if bodies and self.chance(2):
            inode = self.one(bodies)
            leases.append(Lease(*inode.key, inode.body, version))
        if leases and self.chance(4):
            leases.pop(0)
        number = session.marks_number + 1
        low = session.watermark
        watermark = self.one((low, low, low, low, low - 1, session.next_upload))
        return Marks(session.number, number, version, watermark, tuple(leases))

    def marks(self) -> c.SessionMarks:
        """A frame of some session's marks."""
        number = self.one((*self._sessions, 77))
        known = self._model.state.sessions.get(number)
        held = list(known.leases) if known else []
        version = self._model.version
        bodies = [i for i in self._model.state.forest.inodes.values() if i.body]
        if bodies and not self.chance(3):
            inode = self.one(bodies)
            shown = self._model.state.bodies.get((inode.view, inode.body))
            born = shown[0].version if shown else version  # who leases a body has read it
            leased = self.one((version, version, max(born, version - 3), version + 1))
            held.append(Lease(*inode.key, inode.body, leased))
        if held and self.chance(3):
            held.pop(0)
        frame = Marks(
            number,
            (known.marks_number if known else 0) + self.one((1, 1, 1, 0)),
            self.one((version, version, 0, version + 5)),
            self.number(0, 4),
            tuple(held[:3]),
        )
        return c.SessionMarks((frame,))

    def generation(self, parent: At, name: bytes) -> int:
        """The generation of a file that a handle addresses, or another one."""
        forest = self._model.state.forest
        inode = forest.inodes.get((parent.view, parent.inode))
        if name and inode is not None and not parent.path:
            inode = forest.inodes.get(inode.entries.get(name, (0, 0)))
        right = inode.generation if inode is not None and not (name and parent.path) else 0
        return self.one((right, right, right, 0, self._model.version))

    def attribute(self, at: At) -> bytes:
        """The name of an attribute that a handle's inode has, mostly."""
        inode = self._model.state.forest.inodes.get((at.view, at.inode))
        if at.path or inode is None or not inode.xattrs or self.chance(4):
            return self.often(XATTRS, BAD_XATTRS)
        return self.one(sorted(inode.xattrs))

    def stage(self, session: int) -> tuple[int, int]:
        """(view, root) of a staged tree, mostly the session's own."""
        staged = self._model.state.forest.staged
        own = [key for key, owner in staged.items() if owner == session]
        if not own or self.chance(RARE):
            return self.one(((ROOT_VIEW, ROOT_INODE), (0, 2), (3, 2), (0, 99), *staged))
        return self.one(own)

    def view(self) -> int:
        """A view, mostly one that lives."""
        live = [view.number for view in self._model.state.live_views()]
        return self.often((ROOT_VIEW, *live), (77, *self._model.state.views))

    def snapshot(self) -> str:
        """The name of a snapshot, mostly of one that exists."""
        return self.often(tuple(self._model.state.snapshots) or SNAPSHOTS, (*SNAPSHOTS, "none"))

    def snapshot_id(self, name: str) -> int:
        """The id of a snapshot, of another one now and then, or 0: whichever has the name."""
        known = self._model.state.snapshots
        if name not in known or self.chance(2):
            return 0
        return self.often((known[name].number,), [one.number for one in known.values()])

    def lease(self, *, held: bool = True) -> int:
        """How long a snapshot is kept."""
        long = (10**9, 10**15, 10**16)  # the last is too long for who does not own the directory
        often = (*long, HELD, HELD, HELD) if held else long
        return self.often(often, (1, -1, 2**62))

    def rolled_back(self) -> tuple[At, bytes, str]:
        """(parent, name, snapshot): mostly a snapshot of that very directory."""
        state = self._model.state
        fit = [
            (inode, snapshot.name)
            for snapshot in state.snapshots.values()
            if not snapshot.over(self._model.cluster_ns)
            for inode in state.forest.inodes.values()
            if inode.is_directory and inode.names and state.identity(inode) == snapshot.identity
        ]
        if not fit or self.chance(6):
            return *self.entry(kind=directory), self.snapshot()
        inode, snapshot_name = self.one(fit)
        [(parent, name)] = inode.names
        if self.chance(3):
            return At(*parent), name, snapshot_name
        return self._path_to(state.forest, state.forest.inodes[parent]), name, snapshot_name

    def crowded(self) -> bool:
        """Whether there is so much already that a copy of it would be too slow to compare."""
        return len(self._model.state.forest.inodes) > INODES_MANY

    def trash(self) -> tuple[int, int]:
        """(view, id) of an entry of a trash, mostly."""
        made_up = ((ROOT_VIEW, 0), (77, 5), (-1, 5), (2**63, 2**63))
        return self.often(tuple(self._model.state.trash) or made_up, made_up)

    def pin(self) -> tuple[int, int, int]:
        """(view, version, pin), mostly of a pin that lives."""
        pins = list(self._model.state.pins)
        if not pins or self.chance(RARE):
            return ROOT_VIEW, self._model.version, self._model.version + 1
        return self.one(pins)

    def leased(self) -> tuple[At, int, int, int]:
        """(address, session, body, version) of a lease, or of none."""
        known = self._model.state.sessions.values()
        leases = [(session.number, lease) for session in known for lease in session.leases]
        if not leases or self.chance(RARE):
            session, body = self.one((0, *self._sessions)), self.number(0, 9)
            return self.at(kind=regular), session, body, self.number(0, self._model.version)
        session, lease = self.one(leases)
        version = self.often((lease.version,), (lease.version - 1, lease.version + 1, 0))
        return At(lease.view, lease.inode), session, lease.body, version

    def node_type(self) -> int:
        """Type bits for mknod."""
        kinds = (FileType.FIFO, FileType.SOCKET, FileType.REGULAR, FileType.CHARACTER)
        return self.often((*kinds, FileType.BLOCK), (FileType.DIRECTORY, FileType.SYMLINK, 0)) << 12


COMPONENTS = (*NAMES[:4], b".", b"..", b"", b"a/b", b"n" * 256)
