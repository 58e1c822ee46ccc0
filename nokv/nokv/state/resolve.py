"""From an address to an inode: path_resolution(7) inside one view (docs/namespace.md: names).

Works on anything records are read from: the store, an entry's transaction, a pinned version.
"""

from __future__ import annotations

import msgspec

from nokv.errors import NameTooLong, NotADirectory, NotFound, PermissionDenied, Stale, TooManyLinks
from nokv.state import keys
from nokv.state.access import X, may
from nokv.state.context import (
    DIRECTORY,
    S_IFMT,
    SYMLINK,
    above,
    enter,
    is_directory,
    load_dentry,
    local,
    need_inode,
    root_of,
    view_of,
)
from nokv.state.families import Family
from nokv.state.links import home
from nokv.state.naming import told, told_at
from nokv.state.pinned import Source
from nokv.state.records import Inode, body_of, born_of, decode_dentry, decode_inode
from nokv.types.limits import NAME_BYTES_MAX, SYMLINK_HOPS_MAX
from nokv.types.values import ROOT_INODE, ROOT_VIEW, At, Caller

_INODE = Family.INODE
_DENTRY = Family.DENTRY


class Found(msgspec.Struct, frozen=True, gc=False):
    """What an address shows."""

    view: int
    ino: int
    inode: Inode
    version: int
    """Of the command that wrote the record last."""


def resolve(source: Source, caller: Caller, session_id: int, at: At) -> Found:
    """Return what the address shows; its path was checked before (`arguments.check_at`).

    `session_id` opens the session's own staged trees. Raises Stale, NotADirectory,
    PermissionDenied, NotFound, TooManyLinks, NameTooLong.
    """
    view, ino = at.view, at.inode
    source.enter(view)
    root = root_of(source, view)
    value = source.get(_INODE, keys.pack2(view, ino)) if 0 < ino < 2**64 else None
    if value is None:
        message = f"no inode {view}:{ino}"
        raise Stale(message)
    if ino != root:
        _check_tree(source, session_id, view, ino, decode_inode(body_of(value)), root)
    if at.path:
        view, ino, value = _walk(source, caller, at, root, value)
    return Found(view, ino, local(source, view, ino, decode_inode(body_of(value))), born_of(value))


def resolve_parent(source: Source, caller: Caller, session_id: int, at: At) -> Found:
    """Return the directory that the address shows. Raises also NotADirectory if it is none."""
    found = resolve(source, caller, session_id, at)
    if not is_directory(found.inode):
        message = f"{told_at(at)} is not a directory"
        raise NotADirectory(message)
    return found


def _check_tree(
    source: Source, session_id: int, view: int, ino: int, inode: Inode, root: int
) -> None:
    """Raise Stale for an inode that no name of the view reaches, but for the session's stages."""
    _, top = home(source, view, ino, inode, root)
    if top == root:
        return
    stage = need_inode(source, view, top).stage
    of_origin = top < view_of(source, view).first_inode  # a clone has no part of its stages
    if not stage or stage != session_id or of_origin:
        message = f"inode {view}:{ino} lies in a tree that was removed, or is not this session's"
        raise Stale(message)


def _walk(
    source: Source, caller: Caller, at: At, root: int, value: bytes
) -> tuple[int, int, bytes]:
    """Walk the components from (at.inode, its record); return the last view, inode and record."""
    get, view, ino = source.get, at.view, at.inode
    todo = list(reversed(at.path))
    hops = 0
    inode = decode_inode(body_of(value))
    entered: dict[int, tuple[int, int]] = {}
    """View that the walk came into -> the directory of the graft."""
    while True:
        name = todo.pop()
        if inode.mode & S_IFMT != DIRECTORY:
            message = f"{told_at(at)}: what stands before '{told(name)}' is not a directory"
            raise NotADirectory(message)
        if not may(inode, caller, X):
            message = f"{told_at(at)}: uid {caller.uid} may not look up '{told(name)}'"
            raise PermissionDenied(message)
        directory = view, ino
        if name == b"..":
            view, ino = _up(source, view, ino, inode, root, entered)
        elif name != b".":
            view, ino = _step(source, at, view, ino, name)
        if (view, ino) != directory:
            if view != directory[0]:
                if name != b"..":
                    entered[view] = directory
                source.enter(view)
                root = root_of(source, view)
            row = get(_INODE, keys.pack2(view, ino))
            assert row is not None, f"inode {view}:{ino} is named and does not exist"
            value = row
            if not todo and not at.follow:
                return view, ino, value
            inode = decode_inode(body_of(value))
            if inode.mode & S_IFMT == SYMLINK:
                hops += 1
                if hops > SYMLINK_HOPS_MAX:
                    message = f"{told_at(at)}: more than {SYMLINK_HOPS_MAX} symbolic links"
                    raise TooManyLinks(message)
                todo += _components(inode.target)
                view, ino = _base(inode.target, directory)
                source.enter(view)
                root = root_of(source, view)
                row = get(_INODE, keys.pack2(view, ino))
                assert row is not None, "the directory of a link does not exist"
                value = row
                inode = decode_inode(body_of(value))
        if not todo:
            return view, ino, value


def _up(
    source: Source,
    view: int,
    ino: int,
    inode: Inode,
    root: int,
    entered: dict[int, tuple[int, int]],
) -> tuple[int, int]:
    """Return where `..` leads: from the root of a view to the directory of its graft.

    Raises Stale where the graft lies in a trash, or at a version was not where it is now, unless
    the walk came through it.
    """
    if ino != root:
        return view, inode.parent or ino
    holder = above(source, view)
    if holder is None:
        return view, ino
    if view in entered:
        return entered[view]
    directory = holder[:2]
    source.enter(directory[0])
    dentry = load_dentry(source, *holder)
    if dentry is None or enter(directory[0], dentry) != (view, ino):
        message = f"view {view} was elsewhere at version {source.at_version}"
        raise Stale(message, hint="go there by a path from above")
    if not _is_shown(source, *directory):
        message = f"view {view} lies in the trash"
        raise Stale(message, hint="restore it: nokv trash restore")
    return directory


def _is_shown(source: Source, view: int, directory: int) -> bool:
    """Whether a directory lies below its view's root, however deep, and not in the view's trash."""
    root = root_of(source, view)
    while directory not in (root, 0):
        directory = need_inode(source, view, directory).parent
    return directory == root


def _base(target: bytes, directory: tuple[int, int]) -> tuple[int, int]:
    """Return where a symbolic link's target starts."""
    return (ROOT_VIEW, ROOT_INODE) if target.startswith(b"/") else directory


def _step(source: Source, at: At, view: int, directory: int, name: bytes) -> tuple[int, int]:
    if len(name) > NAME_BYTES_MAX:  # only a link's target can hold such a name
        message = f"a link leads through a name of {len(name)} bytes"
        raise NameTooLong(message)
    value = source.get(_DENTRY, keys.pack2(view, directory) + name)
    if value is None:
        on_the_way = "" if at.path[-1:] == (name,) else f" (no '{told(name)}' on the way)"
        message = f"{told_at(at)}: no such file or directory{on_the_way}"
        raise NotFound(message)
    return enter(view, decode_dentry(body_of(value)))


def _components(target: bytes) -> list[bytes]:
    """Return a link target's names, the last one first."""
    names = [name for name in target.split(b"/") if name]
    if target.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names
