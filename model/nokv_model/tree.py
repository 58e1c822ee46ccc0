"""The namespace as plain objects: inodes, names, and what can be computed by walking them.

Nothing that can be counted is stored: link counts, children, usage and statfs are walks, so they
cannot drift. A pin is a copy of a view, a clone a copy of a tree under another view's number, and
what an `Atomic` goes back to a copy of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nokv.errors import VersionNotPinned
from nokv.types.limits import DEPTH_MAX
from nokv.types.values import ROOT_INODE, ROOT_VIEW, Attr, FileType
from nokv_model.acls import Acl
from nokv_model.body import EMPTY, Content

Key = tuple[int, int]
"""(view, inode number)."""

ROOT: Key = (ROOT_VIEW, ROOT_INODE)

NOBODY = -1
"""Owns the trash, among the sessions that own staged trees."""


def file_type(mode: int) -> int:
    """Return the type bits of `mode`, as `FileType` numbers them."""
    return mode >> 12


@dataclass
class Inode:
    """An inode. Directories have `entries`, symbolic links a `target`, regular files `content`."""

    view: int
    number: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    size: int = 0
    generation: int = 0
    body: int = 0
    content: Content = EMPTY
    rdev: int = 0
    flags: int = 0
    sha256: bytes = b""
    target: bytes = b""
    entries: dict[bytes, Key] = field(default_factory=dict)
    """Name -> what it shows; in another view it is that view's root, and the entry a graft."""
    names: set[tuple[Key, bytes]] = field(default_factory=set)
    """(directory, name) of every name; none for the root of view 0 and for staged roots."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    quota: tuple[int, int] = (0, 0)
    """Of a directory: the most entries and bytes below it; 0: no limit."""
    access_list: Acl | None = None
    """Unless the mode bits say the same."""
    default_list: Acl | None = None

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.view, self.number

    @property
    def is_directory(self) -> bool:
        """Whether it may have entries."""
        return file_type(self.mode) == FileType.DIRECTORY

    @property
    def is_regular(self) -> bool:
        """Whether it may have a body."""
        return file_type(self.mode) == FileType.REGULAR

    @property
    def is_symlink(self) -> bool:
        """Whether it has a target."""
        return file_type(self.mode) == FileType.SYMLINK

    @property
    def counted_bytes(self) -> int:
        """Bytes that usage and statfs count for it."""
        return self.size if self.is_regular or self.is_symlink else 0

    def copy(self) -> Inode:
        """Return an independent copy; content is immutable and shared."""
        return replace(
            self,
            entries=dict(self.entries),
            names=set(self.names),
            xattrs=dict(self.xattrs),
        )


@dataclass
class Forest:
    """All inodes of some views that can be reached from a root or from a staged root.

    The present one has every view that lives. One of a version has the views that are pinned there,
    and walking out of them is refused.
    """

    inodes: dict[Key, Inode] = field(default_factory=dict)
    staged: dict[Key, int] = field(default_factory=dict)
    """Staged root -> the session that owns it; the trash of a view -> NOBODY."""
    pinned: frozenset[int] | None = None
    """Of a version: the views that are pinned there; None at present."""

    def copy(self) -> Forest:
        """Return an independent copy."""
        inodes = {key: inode.copy() for key, inode in self.inodes.items()}
        return Forest(inodes, dict(self.staged), self.pinned)

    def of_view(self, view: int) -> Forest:
        """Return a copy of one view: what a pin keeps."""
        inodes = {key: inode.copy() for key, inode in self.inodes.items() if key[0] == view}
        staged = {key: owner for key, owner in self.staged.items() if key[0] == view}
        return Forest(inodes, staged, frozenset({view}))

    def inode(self, key: Key) -> Inode:
        """Return what an entry or a holder leads to; raise VersionNotPinned if it is not pinned."""
        if self.pinned is not None and key[0] not in self.pinned:
            message = f"view {key[0]} is not pinned at that version"
            raise VersionNotPinned(message)
        return self.inodes[key]

    # ------------------------------------------------------------------ walking

    def children(self, inode: Inode) -> Iterator[Inode]:
        """Yield the inode of every entry of a directory, once per name."""
        for name in sorted(inode.entries):
            yield self.inode(inode.entries[name])

    def is_subdirectory(self, inode: Inode, name: bytes) -> bool:
        """Say whether an entry shows a directory; a graft always does."""
        key = inode.entries[name]
        return key[0] != inode.view or self.inodes[key].is_directory

    def nlink(self, inode: Inode) -> int:
        """Count the names of a file, or 2 and the subdirectories of a directory."""
        if inode.is_directory:
            return 2 + sum(self.is_subdirectory(inode, name) for name in inode.entries)
        return len(inode.names)

    def parent(self, inode: Inode) -> Key | None:
        """Return a directory that names the inode, if it can be none in a trash, nor too deep."""
        directories = sorted(directory for directory, _ in inode.names)
        if len(directories) > 1:
            directories.sort(key=lambda key: self._hardly_reached(self.inodes[key]))
        return directories[0] if directories else None

    def _hardly_reached(self, directory: Inode) -> tuple[bool, bool]:
        """Say whether a directory lies in a trash, and whether too deep."""
        return self.owner_session(directory) == NOBODY, self.is_too_deep(directory)

    def is_too_deep(self, directory: Inode) -> bool:
        """Say whether it lies more than DEPTH_MAX directories below the root of its tree."""
        return len(self.chain(directory)) > DEPTH_MAX + 1

    def hidden(self, view: int) -> Inode | None:
        """Return the trash of a view; None where nothing is in it."""
        for key, owner in self.staged.items():
            if key[0] == view and owner == NOBODY:
                return self.inodes[key]
        return None

    def top(self, inode: Inode) -> Inode:
        """Return the root of the tree that the inode lies in: its view's, or a staged one."""
        parent = self.parent(inode)
        while parent is not None and parent[0] == inode.view:
            inode = self.inodes[parent]
            parent = self.parent(inode)
        return inode

    def chain(self, directory: Inode) -> tuple[int, ...]:
        """Return the directories from this one up to its view's or staged root, both included."""
        chain = [directory.number]
        parent = self.parent(directory)
        while parent is not None and parent[0] == directory.view:
            chain.append(parent[1])
            directory = self.inodes[parent]
            parent = self.parent(directory)
        return tuple(chain)

    def told_chain(self, directory: Inode) -> tuple[int, ...]:
        """Return the directories up to the root as events tell them: `~v` where view v begins."""
        chain = [directory.number]
        parent = self.parent(directory)
        while parent is not None:
            if parent[0] != directory.view:
                chain.append(~parent[0])
            directory = self.inodes[parent]
            chain.append(directory.number)
            parent = self.parent(directory)
        return tuple(chain)

    def owner_session(self, inode: Inode) -> int:
        """Return the session that staged the inode's tree, NOBODY in a trash; 0: the view's own."""
        return self.staged.get(self.top(inode).key, 0)

    def is_shown(self, inode: Inode) -> bool:
        """Say whether names lead to the inode from the root of view 0."""
        parent: Key | None = inode.key
        while parent is not None:
            inode = self.top(self.inodes[parent])
            parent = self.parent(inode)
        return inode.key == ROOT

    def below(self, directory: Inode, other: Inode) -> bool:
        """Say whether `other` is the directory itself or lies below it in the same view."""
        return directory.view == other.view and directory.number in self.chain(other)

    def walk(self, inode: Inode) -> Iterator[Inode]:
        """Yield an inode and all below it, through grafts, once per name."""
        yield inode
        for child in self.children(inode):
            yield from self.walk(child)

    def views_below(self, directory: Inode) -> list[int]:
        """Return the directory's own view and those grafted below it, nested ones too.

        Those in one view come by directory and name, before those that are nested deeper.
        """
        tops = [directory]
        for top in tops:  # it grows meanwhile
            inside = [inode for inode in self.walk(top) if inode.view == top.view]
            grafts = sorted(
                (inode.number, name, key)
                for inode in inside
                for name, key in inode.entries.items()
                if key[0] != top.view
            )
            tops += [self.inode(key) for _, _, key in grafts]
        return [top.view for top in tops]

    # ------------------------------------------------------------------ changing

    def attach(self, directory: Inode, name: bytes, inode: Inode) -> None:
        """Give the inode a name that is free."""
        assert directory.is_directory
        assert name not in directory.entries
        directory.entries[name] = inode.key
        inode.names.add((directory.key, name))

    def detach(self, directory: Inode, name: bytes) -> Inode:
        """Take a name away; return the inode it named, which the caller keeps or drops."""
        inode = self.inodes[directory.entries.pop(name)]
        inode.names.remove((directory.key, name))
        return inode

    def drop(self, inode: Inode) -> tuple[list[Inode], set[int]]:
        """Remove an inode without names and all below it, through grafts.

        Return what ceased to exist, and the numbers of files that lost a name but have others.
        """
        assert not inode.names
        gone, loosened = [inode], set()
        del self.inodes[inode.key]
        self.staged.pop(inode.key, None)
        for name in list(inode.entries):
            child = self.detach(inode, name)
            if child.names:
                loosened.add(child.number)
            else:
                below = self.drop(child)
                gone += below[0]
                loosened |= below[1]
        return gone, loosened

    def clone(self, source: Inode, numbers: dict[int, int]) -> Forest:
        """Return a copy of all below a directory, in the views that `numbers` says for each view.

        The top has no name yet; what the copied files are called elsewhere does not count.
        """
        copied = Forest()
        for inode in self.walk(source):
            copy = replace(inode.copy(), view=numbers[inode.view], names=set())
            copy.entries = {name: (numbers[v], n) for name, (v, n) in inode.entries.items()}
            copied.inodes[copy.key] = copy
        for copy in copied.inodes.values():
            for name, key in copy.entries.items():
                copied.inodes[key].names.add((copy.key, name))
        return copied

    # ------------------------------------------------------------------ counting

    def usage(self, directory: Inode) -> tuple[int, int]:
        """Count (names, bytes) below a directory, each name for itself."""
        entries = size = 0
        for child in self.children(directory):
            below = self.usage(child) if child.is_directory else (0, 0)
            entries += 1 + below[0]
            size += child.counted_bytes + below[1]
        return entries, size

    def totals(self) -> tuple[int, int]:
        """Count (inodes, bytes) of everything, staged trees too, each inode once."""
        every = self.inodes.values()
        return len(self.inodes), sum(inode.counted_bytes for inode in every)

    def attr(self, inode: Inode) -> Attr:
        """Return what stat(2) says of the inode."""
        parent = self.parent(inode)
        return Attr(
            view=inode.view,
            inode=inode.number,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            nlink=self.nlink(inode),
            size=0 if inode.is_directory else inode.size,
            atime_ns=inode.atime_ns,
            mtime_ns=inode.mtime_ns,
            ctime_ns=inode.ctime_ns,
            version=inode.version,
            generation=inode.generation,
            rdev=inode.rdev,
            flags=inode.flags,
            children=len(inode.entries),
            body=inode.body,
            sha256=inode.sha256,
            parent=parent[1] if parent and parent[0] == inode.view else 0,
            acls=(inode.access_list is not None) + 2 * (inode.default_list is not None),
        )

    def check(self) -> None:
        """Assert that every view is a tree, and that all of them are one."""
        for key, inode in self.inodes.items():
            assert key == inode.key
            assert inode.names or key == ROOT or key in self.staged
            assert not inode.is_directory or len(inode.names) <= 1
            assert inode.is_directory or not inode.entries
            for directory, name in inode.names:
                assert self.inodes[directory].entries[name] == key
            for name, child in inode.entries.items():
                assert (key, name) in self.inodes[child].names
        if self.inodes:
            reached = {i.key for i in self.walk(self.inodes[ROOT])}
            for root in self.staged:
                reached |= {inode.key for inode in self.walk(self.inodes[root])}
            assert reached == set(self.inodes), "an inode that nothing shows"
