"""The operations on names: making, linking, removing, renaming."""

from __future__ import annotations

from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    LinkLimit,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
)
from nokv.types.commands import (
    BulkCreate,
    Create,
    Link,
    Mkdir,
    Mknod,
    RemoveTree,
    Rename,
    RenameFlag,
    Rmdir,
    Symlink,
    Unlink,
)
from nokv.types.events import EventKind
from nokv.types.limits import LINK_MAX
from nokv.types.results import Done, Made, MadeMany
from nokv.types.values import At, FileType, InodeFlag
from nokv_model import access
from nokv_model.access import FROZEN, W, X
from nokv_model.arguments import DEVICES
from nokv_model.step import Step
from nokv_model.tree import Inode, file_type

# ---------------------------------------------------------------- making


def make_name(step: Step, at: At, name: bytes, mode: int, umask: int = 0) -> Inode:
    """Make an inode under a name that must be free; `mode` has its type bits."""
    parent = step.resolver.parent(at)
    access.require_makeable(step.caller, parent, name)
    inode = step.make(mode, parent, umask=umask)
    step.attach(parent, name, inode)
    return inode


def _made(step: Step, name: bytes, inode: Inode) -> Made:
    parent = step.forest.inodes[step.forest.parent(inode) or inode.key]
    step.event(EventKind.CREATE, inode, (parent, name))
    return Made(step.forest.attr(inode))


def mkdir(step: Step, op: Mkdir) -> Made:
    """mkdirat(2)."""
    inode = make_name(step, op.parent, op.name, FileType.DIRECTORY << 12 | op.mode, op.umask)
    return _made(step, op.name, inode)


def create(step: Step, op: Create) -> Made:
    """Make an empty regular file."""
    mode = FileType.REGULAR << 12 | op.mode
    inode = make_name(step, op.parent, op.name, mode, op.umask)
    return _made(step, op.name, inode)


def bulk_create(step: Step, op: BulkCreate) -> MadeMany:
    """Make empty regular files with consecutive inodes."""
    parent = step.resolver.parent(op.parent)
    access.require(step.caller, parent, X)
    if set(op.names) & set(parent.entries):
        message = "a name is taken"
        raise AlreadyExists(message)
    access.require_writable_parent(step.caller, parent)
    made = []
    for name in op.names:
        made.append(step.make(FileType.REGULAR << 12 | op.mode, parent, umask=op.umask))
        step.attach(parent, name, made[-1])
    step.event(EventKind.CREATE, made[0], (parent, b""), names=op.names)
    return MadeMany(made[0].number, len(made))


def mknod(step: Step, op: Mknod) -> Made:
    """Make a special file, or an empty regular one (mknod(2))."""
    devices = file_type(op.mode) in DEVICES
    parent = step.resolver.parent(op.parent)
    access.require_makeable(step.caller, parent, op.name)
    if devices and not access.is_root(step.caller):
        message = "devices are root's to make"
        raise NotPermitted(message)
    inode = make_name(step, op.parent, op.name, op.mode, op.umask)
    inode.rdev = op.rdev if devices else 0
    return _made(step, op.name, inode)


def symlink(step: Step, op: Symlink) -> Made:
    """symlinkat(2)."""
    inode = make_name(step, op.parent, op.name, FileType.SYMLINK << 12 | 0o777)
    inode.target, inode.size = op.target, len(op.target)
    return _made(step, op.name, inode)


def link(step: Step, op: Link) -> Made:
    """linkat(2)."""
    source = step.resolver.resolve(op.source)
    parent = step.resolver.parent(op.parent)
    access.require(step.caller, parent, X)
    if op.name in parent.entries:
        message = "the name is taken"
        raise AlreadyExists(message)
    access.require_same_tree(step.forest, source, parent)
    access.require_depth(step.forest, step.forest.inodes[step.forest.parent(source) or source.key])
    access.require(step.caller, parent, W)
    access.require_flags_clear(parent, InodeFlag.IMMUTABLE)
    access.require_flags_clear(source, FROZEN)
    if source.is_directory:
        message = "a directory has one name"
        raise NotPermitted(message)
    if len(source.names) >= LINK_MAX:
        message = "the file has too many names"
        raise LinkLimit(message)
    step.attach(parent, op.name, source)
    step.state.linked.add(source.number)
    step.touch(source)
    step.event(EventKind.LINK, source, (parent, op.name))
    return Made(step.forest.attr(source))


# ---------------------------------------------------------------- removing


def unlink(step: Step, op: Unlink) -> Done:
    """unlinkat(2) of a name that is no directory."""
    parent, inode = _deletable(step, op)
    if inode.is_directory:
        message = "it is a directory"
        raise IsADirectory(message)
    return _removed(step, parent, op.name, inode)


def rmdir(step: Step, op: Rmdir) -> Done:
    """unlinkat(2) of an empty directory."""
    parent, inode = _deletable(step, op)
    if not inode.is_directory:
        message = "it is no directory"
        raise NotADirectory(message)
    if inode.entries:
        message = "the directory has entries"
        raise NotEmpty(message)
    return _removed(step, parent, op.name, inode)


def remove_tree(step: Step, op: RemoveTree) -> Done:
    """Detach a directory with all below it."""
    parent, inode = _deletable(step, op)
    if not inode.is_directory:
        message = "it is no directory"
        raise NotADirectory(message)
    if not access.owns(step.caller, inode):
        message = "the directory is another's"
        raise NotPermitted(message)
    return _removed(step, parent, op.name, inode)


def _deletable(step: Step, op: Unlink | Rmdir | RemoveTree) -> tuple[Inode, Inode]:
    parent = step.resolver.parent(op.parent)
    return parent, access.require_deletable(step.forest, step.caller, parent, op.name)


def _removed(step: Step, parent: Inode, name: bytes, inode: Inode) -> Done:
    step.remove(parent, name)
    step.event(EventKind.REMOVE, inode, (parent, name))
    return Done()


# ---------------------------------------------------------------- renaming


def rename(step: Step, op: Rename) -> Done:
    """renameat2(2)."""
    exchange = op.flags == RenameFlag.EXCHANGE
    source_parent = step.resolver.parent(op.source)
    target_parent = step.resolver.parent(op.target)
    for parent in (source_parent, target_parent):
        access.require_depth(step.forest, parent)
    access.require_same_tree(step.forest, source_parent, target_parent)
    access.require(step.caller, source_parent, X)
    access.require(step.caller, target_parent, X)
    source, target = _renamed(step, op, source_parent, target_parent)
    if source is target:
        return Done()
    _check_loop(step, source, target, source_parent, target_parent, exchange=exchange)
    _check_rename(step, source, target, source_parent, target_parent, exchange=exchange)
    step.forest.detach(source_parent, op.source_name)
    if target is not None and exchange:
        step.forest.detach(target_parent, op.target_name)
        step.attach(source_parent, op.source_name, target)
        step.touch(target)
    elif target is not None:
        step.remove(target_parent, op.target_name)
    step.attach(target_parent, op.target_name, source)
    step.touch(source)
    step.touch(source_parent, modified=True)
    step.event(
        EventKind.EXCHANGE if exchange else EventKind.RENAME,
        source,
        (source_parent, op.source_name),
        (target_parent, op.target_name),
    )
    return Done()


def _renamed(
    step: Step, op: Rename, source_parent: Inode, target_parent: Inode
) -> tuple[Inode, Inode | None]:
    """Look both names up."""
    if op.source_name not in source_parent.entries:
        message = "no such source"
        raise NotFound(message)
    source = step.forest.inodes[source_parent.entries[op.source_name]]
    if op.target_name not in target_parent.entries:
        if op.flags == RenameFlag.EXCHANGE:
            message = "no such target"
            raise NotFound(message)
        return source, None
    if op.flags == RenameFlag.NOREPLACE:
        message = "the target name is taken"
        raise AlreadyExists(message)
    return source, step.forest.inodes[target_parent.entries[op.target_name]]


def _check_loop(
    step: Step,
    source: Inode,
    target: Inode | None,
    source_parent: Inode,
    target_parent: Inode,
    *,
    exchange: bool,
) -> None:
    """Refuse to move a directory below itself."""
    if step.forest.below(source, target_parent):
        message = "a directory cannot move into itself"
        raise InvalidArgument(message)
    if target is not None and step.forest.below(target, source_parent):
        if exchange:
            message = "a directory cannot move into itself"
            raise InvalidArgument(message)
        message = "the target holds the source"
        raise NotEmpty(message)


def _check_rename(
    step: Step,
    source: Inode,
    target: Inode | None,
    source_parent: Inode,
    target_parent: Inode,
    *,
    exchange: bool,
) -> None:
    """Check permissions, then the types, then the directories that get a new parent."""
    access.require_deletable_entry(step.caller, source_parent, source)
    if target is None:
        access.require_writable_parent(step.caller, target_parent)
    else:
        access.require_deletable_entry(step.caller, target_parent, target)
    if target is not None and not exchange:
        if source.is_directory and not target.is_directory:
            message = "a directory replaces only a directory"
            raise NotADirectory(message)
        if target.is_directory and not source.is_directory:
            message = "a file does not replace a directory"
            raise IsADirectory(message)
        if target.entries:
            message = "the target has entries"
            raise NotEmpty(message)
    if source_parent is not target_parent:
        for moved in (source, target if exchange else None):
            if moved is not None and moved.is_directory:
                access.require(step.caller, moved, W)
