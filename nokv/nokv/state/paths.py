"""The path of a directory, found from below by the names that inodes keep."""

from __future__ import annotations

from nokv.state import keys
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import body_of, decode_inode
from nokv.types.limits import DEPTH_MAX
from nokv.types.values import ROOT_INODE, ROOT_VIEW

UNKNOWN = b"..."
"""Stands for what is too deep, or lies in a tree that no name leads to."""


def path_of(source: Source, view: int, directory: int) -> bytes:
    """Return a directory's absolute path in the live tree, through the grafts above it."""
    names: list[bytes] = []
    ino = directory
    for _ in range(DEPTH_MAX):
        record = source.view(view) if view else None
        root = ROOT_INODE if record is None else record.root
        if (view, ino) == (ROOT_VIEW, ROOT_INODE):
            return b"/" + b"/".join(reversed(names))
        if ino == root:
            if record is None or record.holder is None:
                break
            view, ino, name = record.holder
        else:
            value = source.get(Family.INODE, keys.inode(view, ino))
            if value is None:
                break
            inode = decode_inode(body_of(value))
            ino, name = inode.parent, inode.name
            if not ino:
                break
        names.append(name)
    return b"/".join([UNKNOWN, *reversed(names)])
