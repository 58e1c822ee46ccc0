"""The names of an inode, found from the inode: backlinks, and where it lies.

Backlinks count by directory: a file's first name is not known when it gets a second one by its
handle, and nothing needs more than the directories.

A file with several names can keep one in a tree that was removed and is not yet reaped; it is
reachable all the same as long as another name is.
"""

from __future__ import annotations

from collections.abc import Iterator

from nokv.errors import NameTooLong
from nokv.state.context import chain, is_directory, names_inside
from nokv.state.pinned import Source
from nokv.state.records import Inode


def home(source: Source, view: int, ino: int, inode: Inode, root: int) -> tuple[int, int]:
    """Return (a directory that names the inode, the root of that directory's tree).

    The directory is one below `root` if there is one. A root stands for its own directory: that of
    a clone has its origin's record, which says where the origin has it. Raises NameTooLong where
    no name below `root` lies less deep than that.
    """
    if ino == root:
        return ino, root
    if not inode.parent:
        return ino, ino
    if inode.nlink <= 1 or is_directory(inode):
        return inode.parent, chain(source, view, inode.parent)[-1]
    first: tuple[int, int] | None = None
    too_deep: NameTooLong | None = None
    for directory in _directories(source, view, ino, inode):
        try:
            top = chain(source, view, directory)[-1]
        except NameTooLong as error:
            too_deep = error
            continue
        if top == root:
            return directory, root
        first = first or (directory, top)
    if too_deep is not None:
        raise too_deep
    assert first is not None, f"no directory names inode {view}:{ino}"
    return first


def _directories(source: Source, view: int, ino: int, inode: Inode) -> Iterator[int]:
    """Yield the directories that name a file: first its parent, which is mostly enough."""
    yield inode.parent
    yield from (directory for directory, _ in names_inside(source, view, ino))
