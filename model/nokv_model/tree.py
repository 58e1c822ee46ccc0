"""One view's content as plain objects: inodes, names, and what can be computed by walking them.

Nothing that can be counted is stored: link counts, children, usage and statfs are walks, so they
cannot drift. A pin is a `copy`, and so is the state an `Atomic` goes back to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nokv.types.values import ROOT_INODE, ROOT_VIEW, Attr, FileType
from nokv_model.body import EMPTY, Content


def file_type(mode: int) -> int:
    """Return the type bits of `mode`, as `FileType` numbers them."""
    return mode >> 12


@dataclass
class Inode:
    """An inode. Directories have `entries`, symbolic links a `target`, regular files `content`."""

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
    entries: dict[bytes, int] = field(default_factory=dict)
    names: set[tuple[int, bytes]] = field(default_factory=set)
    """(directory, name) of every name; none for the root and for staged roots."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

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
class Tree:
    """All inodes of a view that can be reached, from the root or from a staged root."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    staged: dict[int, int] = field(default_factory=dict)
    """Staged root -> the session that owns it."""

    def copy(self) -> Tree:
        """Return an independent copy."""
        return Tree({n: inode.copy() for n, inode in self.inodes.items()}, dict(self.staged))

    def children(self, inode: Inode) -> Iterator[Inode]:
        """Yield the inode of every entry of a directory, once per name."""
        for number in inode.entries.values():
            yield self.inodes[number]

    def nlink(self, inode: Inode) -> int:
        """Count the names of a file, or 2 and the subdirectories of a directory."""
        if inode.is_directory:
            return 2 + sum(child.is_directory for child in self.children(inode))
        return len(inode.names)

    def parent(self, inode: Inode) -> int:
        """Return a directory that names the inode; 0 where none does."""
        return min(inode.names)[0] if inode.names else 0

    def top(self, inode: Inode) -> int:
        """Return the root of the tree that the inode lies in: the view's, or a staged one."""
        while inode.names:
            inode = self.inodes[self.parent(inode)]
        return inode.number

    def chain(self, directory: Inode) -> tuple[int, ...]:
        """Return the directories from this one up to its root, both included."""
        chain = [directory.number]
        while directory.names:
            directory = self.inodes[self.parent(directory)]
            chain.append(directory.number)
        return tuple(chain)

    def owner_session(self, inode: Inode) -> int:
        """Return the session that staged the inode's tree; 0 for the view's own tree."""
        return self.staged.get(self.top(inode), 0)

    def attach(self, directory: Inode, name: bytes, inode: Inode) -> None:
        """Give the inode a name that is free."""
        assert directory.is_directory
        assert name not in directory.entries
        directory.entries[name] = inode.number
        inode.names.add((directory.number, name))

    def detach(self, directory: Inode, name: bytes) -> Inode:
        """Take a name away; return the inode it named, which the caller keeps or drops."""
        inode = self.inodes[directory.entries.pop(name)]
        inode.names.remove((directory.number, name))
        return inode

    def drop(self, inode: Inode) -> tuple[list[Inode], set[int]]:
        """Remove an inode without names and all below it.

        Return what ceased to exist, and the files that lost a name but have others.
        """
        assert not inode.names
        gone, loosened = [inode], set()
        del self.inodes[inode.number]
        self.staged.pop(inode.number, None)
        for name in list(inode.entries):
            child = self.detach(inode, name)
            if child.names:
                loosened.add(child.number)
            else:
                below = self.drop(child)
                gone += below[0]
                loosened |= below[1]
        return gone, loosened

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

    def below(self, directory: Inode, other: int) -> bool:
        """Say whether `other` is the directory itself or lies somewhere below it."""
        return directory.number in self.chain(self.inodes[other])

    def attr(self, inode: Inode) -> Attr:
        """Return what stat(2) says of the inode."""
        return Attr(
            view=ROOT_VIEW,
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
            parent=self.parent(inode),
        )

    def check(self) -> None:
        """Assert that the tree is a tree."""
        for number, inode in self.inodes.items():
            assert number == inode.number
            assert inode.names or number == ROOT_INODE or number in self.staged
            assert not inode.is_directory or len(inode.names) <= 1
            assert inode.is_directory or not inode.entries
            for directory, name in inode.names:
                assert self.inodes[directory].entries[name] == number
            for name, child in inode.entries.items():
                assert (number, name) in self.inodes[child].names
            assert self.top(inode) == ROOT_INODE or self.top(inode) in self.staged
