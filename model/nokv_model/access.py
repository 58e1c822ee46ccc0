"""Names, permissions and resolution: what a caller may reach, and which error says no."""

from __future__ import annotations

from dataclasses import dataclass

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    Immutable,
    InvalidArgument,
    NameTooLong,
    NotADirectory,
    NotFound,
    NotPermitted,
    PermissionDenied,
    Stale,
    TooManyLinks,
)
from nokv.types.limits import NAME_BYTES_MAX, PATH_BYTES_MAX, SYMLINK_HOPS_MAX
from nokv.types.values import At, Caller, InodeFlag
from nokv_model import acls
from nokv_model.tree import ROOT, Forest, Inode

R, W, X = 4, 2, 1
STICKY, SETGID, SETUID = 0o1000, 0o2000, 0o4000
FROZEN = InodeFlag.IMMUTABLE | InodeFlag.APPEND


# ---------------------------------------------------------------- names and paths


def check_name(name: bytes) -> None:
    """Check a name that is looked up or made; raise NameTooLong or InvalidArgument."""
    _check_component(name)
    if name in {b".", b".."}:
        message = "'.' and '..' are no names"
        raise InvalidArgument(message)


def _check_component(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        message = f"a name of {len(name)} bytes"
        raise NameTooLong(message)
    if not name or b"/" in name or b"\0" in name:
        message = "an empty name, or one with '/' or NUL"
        raise InvalidArgument(message)


def check_at(at: At) -> None:
    """Check an address without looking at the state; raise NameTooLong or InvalidArgument."""
    for component in at.path:
        _check_component(component)
    if sum(map(len, at.path)) + len(at.path) - 1 > PATH_BYTES_MAX:
        message = "a path over its limit"
        raise NameTooLong(message)


# ---------------------------------------------------------------- permissions


def is_root(caller: Caller) -> bool:
    """Say whether nothing but flags stops the caller."""
    return caller.uid == 0


def in_group(caller: Caller, gid: int) -> bool:
    """Say whether the group is one of the caller's."""
    return gid == caller.gid or gid in caller.groups


def owns(caller: Caller, inode: Inode) -> bool:
    """Say whether the caller is the owner or root."""
    return is_root(caller) or caller.uid == inode.uid


def allowed(caller: Caller, inode: Inode, mask: int) -> bool:
    """Say whether mode bits or access list give the caller all of `mask` (R | W | X)."""
    if is_root(caller):
        return True
    if inode.access_list is not None:
        return acls.allowed(inode.access_list, inode.uid, inode.gid, caller, mask)
    if caller.uid == inode.uid:
        bits = inode.mode >> 6
    elif in_group(caller, inode.gid):
        bits = inode.mode >> 3
    else:
        bits = inode.mode
    return bits & mask == mask


def require(caller: Caller, inode: Inode, mask: int) -> None:
    """Raise PermissionDenied unless the mode bits give the caller all of `mask`."""
    if not allowed(caller, inode, mask):
        message = f"mode {inode.mode:o} of inode {inode.number} gives uid {caller.uid} no {mask:o}"
        raise PermissionDenied(message)


def require_flags_clear(inode: Inode, flags: int) -> None:
    """Raise Immutable if the inode has one of the flags."""
    if inode.flags & flags:
        message = f"inode {inode.number} has flags {inode.flags}"
        raise Immutable(message)


def require_makeable(caller: Caller, parent: Inode, name: bytes) -> None:
    """Check that the caller may make `name` in `parent`."""
    require(caller, parent, X)
    if name in parent.entries:
        message = "the name is taken"
        raise AlreadyExists(message)
    require_writable_parent(caller, parent)


def require_writable_parent(caller: Caller, parent: Inode) -> None:
    """Check that the caller may make a name that is known to be free in `parent`."""
    require(caller, parent, W)
    require_flags_clear(parent, InodeFlag.IMMUTABLE)


def require_deletable(forest: Forest, caller: Caller, parent: Inode, name: bytes) -> Inode:
    """Check that the caller may take `name` out of `parent`; return the inode it names."""
    require(caller, parent, X)
    if name not in parent.entries:
        message = "no such name"
        raise NotFound(message)
    inode = forest.inodes[parent.entries[name]]
    require_deletable_entry(caller, parent, inode)
    return inode


def require_deletable_entry(caller: Caller, parent: Inode, inode: Inode) -> None:
    """Check what `require_deletable` does, of an entry that was looked up already."""
    require(caller, parent, W)
    if parent.mode & STICKY and not owns(caller, inode) and not owns(caller, parent):
        message = "the directory is sticky, and neither it nor the entry is the caller's"
        raise NotPermitted(message)
    require_flags_clear(parent, FROZEN)
    require_flags_clear(inode, FROZEN)


def require_same_tree(forest: Forest, first: Inode, second: Inode) -> None:
    """Raise CrossesView unless both lie in one view's own tree, or in one staged tree."""
    if forest.top(first) is not forest.top(second):
        message = "the two lie in different trees"
        raise CrossesView(message)


def require_unstaged(forest: Forest, directory: Inode) -> None:
    """Raise CrossesView in a staged tree: neither views nor a trash lie there."""
    if forest.owner_session(directory):
        message = "it lies in a staged tree"
        raise CrossesView(message)


def require_depth(forest: Forest, directory: Inode) -> None:
    """Raise NameTooLong more than DEPTH_MAX directories below the root of the directory's tree."""
    if forest.is_too_deep(directory):
        message = f"inode {directory.number} lies too deep"
        raise NameTooLong(message)


# ---------------------------------------------------------------- resolution


@dataclass
class Resolver:
    """Walks addresses for one caller; a command also addresses what its session staged."""

    forest: Forest
    caller: Caller
    session: int = 0

    def start(self, view: int, number: int) -> Inode:
        """Return the inode of a handle; raise Stale if it is gone or not the caller's."""
        inode = self.forest.inodes.get((view, number))
        if inode is not None:
            parent = self.forest.parent(inode)
            if parent is not None and parent[0] == view:
                require_depth(self.forest, self.forest.inodes[parent])
        if inode is None or self.forest.owner_session(inode) not in {0, self.session}:
            message = f"no inode {number} in view {view}"
            raise Stale(message)
        return inode

    def resolve(self, at: At) -> Inode:
        """Return the inode that an address shows; the errors are those of path_resolution(7)."""
        check_at(at)
        current = self.start(at.view, at.inode)
        pending = list(at.path)
        hops = 0
        while pending:
            name = pending.pop(0)
            child = self.step(current, name)
            if not child.is_symlink or not (pending or at.follow):
                current = child
                continue
            hops += 1
            if hops > SYMLINK_HOPS_MAX:
                message = "too many symbolic links"
                raise TooManyLinks(message)
            if child.target.startswith(b"/"):
                current = self.forest.inode(ROOT)
            pending = _components(child.target) + pending
        return current

    def step(self, current: Inode, name: bytes) -> Inode:
        """Walk one component."""
        if not current.is_directory:
            message = f"inode {current.number} is no directory"
            raise NotADirectory(message)
        require(self.caller, current, X)
        if name == b".":
            return current
        if name == b"..":
            above = self.forest.inode(self.forest.parent(current) or current.key)
            if above.view != current.view and self.forest.owner_session(above):
                message = f"view {current.view} lies in a trash"
                raise Stale(message)
            return above
        if len(name) > NAME_BYTES_MAX:
            message = "a component of a link's target is too long"
            raise NameTooLong(message)
        if name not in current.entries:
            message = "no such name"
            raise NotFound(message)
        return self.forest.inode(current.entries[name])

    def parent(self, at: At) -> Inode:
        """Return the directory that an address shows; raise NotADirectory for anything else."""
        inode = self.resolve(at)
        if not inode.is_directory:
            message = f"inode {inode.number} is no directory"
            raise NotADirectory(message)
        return inode

    def exists(self, at: At) -> Inode | None:
        """Return the inode for a predicate: NotFound and NotADirectory mean that it is missing."""
        try:
            return self.resolve(at)
        except (NotFound, NotADirectory):
            return None


def _components(target: bytes) -> list[bytes]:
    """Split a link's target: a trailing '/' counts as a last '.'."""
    parts = [part for part in target.split(b"/") if part]
    return [*parts, b"."] if target.endswith(b"/") else parts
