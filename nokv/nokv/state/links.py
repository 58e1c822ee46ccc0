"""The names of an inode, found from the inode: backlinks, and where it lies.

Backlinks count by directory: a file's first name is not known when it gets a second one by its
handle, and nothing needs more than the directories.

A file with several names can keep one in a tree that was removed and is not yet reaped; it is
reachable all the same as long as another name is.
"""

from __future__ import annotations

from nokv.state.context import chain, is_directory, names_inside
from nokv.state.pinned import Source
from nokv.state.records import Inode


def home(source: Source, view: int, ino: int, inode: Inode, root: int) -> tuple[int, int]:
    """Return (a directory that names the inode, the root of that directory's tree).

    The directory is one below `root` if there is one. A root stands for its own directory: that of
    a clone has its origin's record, which says where the origin has it.
    """
    if ino == root:
        return ino, root
    directory = inode.parent or ino
    top = chain(source, view, directory)[-1] if inode.parent else ino
    if top != root and inode.nlink > 1 and not is_directory(inode):
        for other, _ in names_inside(source, view, ino):
            if chain(source, view, other)[-1] == root:
                return other, root
    return directory, top
