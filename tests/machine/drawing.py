"""What the machine tries: small pools, so that names, links and owners collide all the time.

Addresses are drawn from what the model has and from what nothing has, so that error paths are
taken as often as the others.
"""

from __future__ import annotations

from typing import Any, TypeVar

from hypothesis import strategies as st

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
from nokv_model.access import Resolver
from nokv_model.model import Model
from nokv_model.tree import Inode

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
RARE = 16
"""One draw in so many is a bad one."""


class Drawing:
    """Draws the parts of commands; looks at the model for what exists."""

    def __init__(self, data: st.DataObject, model: Model, sessions: list[int]) -> None:
        self._data = data
        self._model = model
        self._sessions = sessions

    def one(self, values: Any) -> Any:
        """One of some values."""
        return self._data.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        """A number of [low, high]."""
        return self._data.draw(st.integers(low, high))

    def chance(self, of: int) -> bool:
        """True once in `of` draws; shrinks to False."""
        return self.number(1, of) == of

    def often(self, good: Any, bad: Any) -> Any:
        """One of `good`; rarely one of `bad`."""
        return self.one(bad) if self.chance(RARE) else self.one(good)

    # ------------------------------------------------------------------ names and addresses

    def name(self) -> bytes:
        """A name to make or to look up."""
        return self.often(NAMES, BAD_NAMES)

    def caller(self) -> Caller:
        """Root half of the time, so that enough succeeds."""
        return self.one((Caller(),) * 4 + CALLERS)

    def mode(self) -> int:
        """Permission bits."""
        return self.often(MODES, BAD_MODES)

    def _inodes(self, session: int) -> list[Inode]:
        """Inodes that a session addresses, and now and then others'."""
        tree = self._model.state.tree
        shown = {0, session}
        if self.chance(RARE):
            shown |= set(self._sessions)
        return [i for i in tree.inodes.values() if tree.owner_session(i) in shown]

    def _path_to(self, inode: Inode) -> tuple[int, tuple[bytes, ...]]:
        tree = self._model.state.tree
        path: list[bytes] = []
        while inode.names:
            parent, name = self.one(sorted(inode.names))
            path.insert(0, name)
            inode = tree.inodes[parent]
        return inode.number, tuple(path)

    def at(self, session: int = 0, *, kind: str = "any") -> At:
        """An address: of an inode there is, by handle or by path, or of something made up."""
        follow = not self.chance(3)
        if self.chance(16):
            start = self.one((ROOT_INODE, ROOT_INODE, 0, 2, 5, 999))
            view = self.one((ROOT_VIEW, ROOT_VIEW, ROOT_VIEW, 7))
            path = tuple(self._data.draw(st.lists(st.sampled_from(COMPONENTS), max_size=3)))
            return At(view, start, path, follow)
        inodes = self._inodes(session)
        wanted = [inode for inode in inodes if kind == "any" or getattr(inode, kind)]
        inode = self.one(wanted or inodes)
        if self.chance(3):
            return At(ROOT_VIEW, inode.number, (), follow)
        start, path = self._path_to(inode)
        if kind == "is_directory" and self.chance(6):
            path = (*path, self.one((b".", b"..", b"a", b"b")))
        return At(ROOT_VIEW, start, path, follow)

    def place(self, session: int = 0) -> tuple[At, bytes]:
        """A directory, and a name that is free there, mostly."""
        at = self.parent(session)
        tree = self._model.state.tree
        try:
            inode = Resolver(tree, Caller(), session).resolve(at)
        except NokvError:
            return at, self.name()
        free = [name for name in NAMES if name not in inode.entries]
        return at, self.one(free) if free and not self.chance(5) else self.name()

    def parent(self, session: int = 0) -> At:
        """The address of a directory, mostly."""
        return self.at(session, kind="any" if self.chance(RARE) else "is_directory")

    def entry(self, session: int = 0, *, kind: str = "any") -> tuple[At, bytes]:
        """A parent and a name in it that exists, mostly."""
        tree = self._model.state.tree
        named = [
            i for i in self._inodes(session) if i.names and (kind == "any" or getattr(i, kind))
        ]
        if not named or self.chance(6):
            return self.parent(session), self.name()
        directory, name = self.one(sorted(self.one(named).names))
        if self.chance(3):
            return At(ROOT_VIEW, directory), name
        return At(ROOT_VIEW, *self._path_to(tree.inodes[directory])), name

    # ------------------------------------------------------------------ bodies

    def body(self, session: int, publish_mode: int) -> tuple[int, int, tuple[ChunkMap, ...]]:
        """(size, upload, chunks) of a publish, mostly valid."""
        indexes = self._data.draw(st.sets(st.integers(0, 2), max_size=2))
        chunks = tuple(self._chunk(index, number) for number, index in enumerate(sorted(indexes)))
        ends = [k.index * CHUNK_BYTES + k.extents[-1].offset + k.extents[-1].length for k in chunks]
        size = max(ends, default=0) + self.one((0, 0, 5))
        if publish_mode == c.PublishMode.APPEND and size > 4096:
            size, chunks = self._short(chunks)
        parts = any(chunk.parts for chunk in chunks)
        upload = self.upload(session) if parts else 0
        if self.chance(RARE):
            return self._spoiled(size, upload, chunks)
        return size, upload, chunks

    def _short(self, chunks: tuple[ChunkMap, ...]) -> tuple[int, tuple[ChunkMap, ...]]:
        """Something small to append, so that appends stay near a border that exists."""
        extents = (Extent(1, 4, data=b"tail"), Extent(5, 8, part=0))
        part = ObjectPart(0, 0, 9, 8, b"8" * 8)
        del chunks
        return 13, (ChunkMap(0, (part,), extents),)

    def upload(self, session: int) -> int:
        """An upload, mostly one that may be published."""
        known = self._model.state.sessions.get(session)
        if known is None or self.chance(RARE):
            return self.number(0, 4)
        free = set(range(known.watermark, known.next_upload)) - known.consumed
        return self.one(sorted(free)[:3]) if free else self.number(1, 3)

    def _chunk(self, index: int, number: int) -> ChunkMap:
        cuts = sorted(
            self._data.draw(
                st.sets(st.sampled_from(CUTS), min_size=2, max_size=6).filter(
                    lambda found: len(found) % 2 == 0
                )
            )
        )
        extents: list[Extent] = []
        parts: list[ObjectPart] = []
        for start, end in zip(cuts[::2], cuts[1::2], strict=True):
            length = min(end - start, 2 * SUM_BYTES)
            if length <= 4096 and self.chance(2):
                letter = bytes([self.number(65, 90)])
                extents.append(Extent(start, length, data=letter * length))
            elif parts and parts[-1].length >= length and self.chance(3):
                skip = parts[-1].length - length
                extents.append(Extent(start, length, len(parts) - 1, skip))
            else:
                skip = self.number(0, 2)
                sums = -(-(length + skip) // SUM_BYTES)
                part = ObjectPart(
                    number, len(parts), self.number(0, 1), length + skip, b"s" * 8 * sums
                )
                extents.append(Extent(start, length, len(parts), skip))
                parts.append(part)
        return ChunkMap(index, tuple(parts), tuple(extents))

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
        inode = self._model.state.tree.inodes.get(at.inode)
        version = self.one((inode.version if inode and not at.path else 1, self._model.version))
        generation = self.one((inode.generation if inode and not at.path else 0, 0))
        return self.one(
            (
                (c.Exists(at),),
                (c.Absent(at),),
                (c.VersionIs(at, version),),
                (c.GenerationIs(at, generation),),
                (c.Exists(At()), c.Absent(At(path=(self.one(NAMES),)))),
            )
        )

    def marks(self) -> c.SessionMarks:
        """A frame of some session's marks."""
        number = self.one((*self._sessions, 77))
        known = self._model.state.sessions.get(number)
        held = list(known.leases) if known else []
        version = self._model.version
        bodies = [i for i in self._model.state.tree.inodes.values() if i.body]
        if bodies and not self.chance(3):
            inode = self.one(bodies)
            leased = self.one((version, version, max(0, version - 3), version + 1))
            held.append(Lease(ROOT_VIEW, inode.number, inode.body, leased))
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
        tree = self._model.state.tree
        inode = tree.inodes.get(parent.inode)
        if name and inode is not None and not parent.path:
            inode = tree.inodes.get(inode.entries.get(name, 0))
        right = inode.generation if inode is not None and not (name and parent.path) else 0
        return self.one((right, right, right, 0, self._model.version))

    def stage(self, session: int) -> tuple[int, int]:
        """(view, root) of a staged tree, mostly the session's own."""
        staged = self._model.state.tree.staged
        own = [number for number, owner in staged.items() if owner == session]
        if not own or self.chance(RARE):
            return self.one((ROOT_VIEW, ROOT_VIEW, 3)), self.one((ROOT_INODE, 2, 99, *staged))
        return ROOT_VIEW, self.one(own)

    def pin(self) -> tuple[int, int, int]:
        """(view, version, pin), mostly of a pin that lives."""
        pins = list(self._model.state.pins)
        if not pins or self.chance(RARE):
            return ROOT_VIEW, self._model.version, self._model.version + 1
        return self.one(pins)

    def leased(self) -> tuple[At, int, int]:
        """(address, session, body) of a lease, or of none."""
        known = self._model.state.sessions.values()
        leases = [(session.number, lease) for session in known for lease in session.leases]
        if not leases or self.chance(RARE):
            return self.at(kind="is_regular"), self.one((0, *self._sessions)), self.number(0, 9)
        session, lease = self.one(leases)
        return At(lease.view, lease.inode), session, lease.body

    def at_version(self) -> int:
        """The present, a pinned version, or rarely one that nothing holds."""
        pinned = [version for _, version, _ in self._model.state.pins]
        return self.often((0, 0, *pinned), (self._model.version, 1))

    def node_type(self) -> int:
        """Type bits for mknod."""
        kinds = (FileType.FIFO, FileType.SOCKET, FileType.REGULAR, FileType.CHARACTER)
        return self.often((*kinds, FileType.BLOCK), (FileType.DIRECTORY, FileType.SYMLINK, 0)) << 12


COMPONENTS = (*NAMES[:4], b".", b"..", b"", b"a/b", b"n" * 256)
