"""Publish in all its modes, and staged trees."""

from __future__ import annotations

from nokv.errors import (
    AlreadyExists,
    CrossesView,
    GenerationMismatch,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    Stale,
    WindowFull,
)
from nokv.types.commands import (
    TIME_NOW,
    Publish,
    PublishMode,
    StageBegin,
    StageDrop,
    StageMode,
    StageSwap,
)
from nokv.types.events import EventKind
from nokv.types.results import Done, Made, Published
from nokv.types.values import FileType, InodeFlag
from nokv_model import access
from nokv_model.access import R, W, X
from nokv_model.body import ObjectName, content_after
from nokv_model.step import Step
from nokv_model.tree import Inode

STAGES_MAX = 64
WHOLE = {PublishMode.CREATE, PublishMode.REPLACE, PublishMode.REPLACE_GENERATION}


# ---------------------------------------------------------------- publish


def publish(step: Step, op: Publish) -> Published:
    """Make a body visible as a new generation."""
    assert step.session is not None
    if op.upload:
        step.session.check_upload(op.upload)
    parent, inode, created = _target(step, op)
    old_size = inode.size
    inode.size, content = content_after(op, step.session_number, inode.size, inode.content)
    if op.publish_mode in WHOLE:
        body = step.new_body() if op.chunks else 0
        inode.sha256 = op.sha256
    else:
        body = inode.body or (step.new_body() if op.chunks else 0)
        inode.sha256 = b""
    if inode.size != old_size:
        step.resized(inode)
    step.set_content(inode, content, body=body)
    inode.generation = step.version
    step.touch(inode)
    inode.mtime_ns = step.wall_ns if op.mtime_ns == TIME_NOW else op.mtime_ns
    if not created and not access.is_root(step.caller):
        step.clear_privileges(inode)
    if op.upload:
        step.session.consumed.add(op.upload)
    for chunk in op.chunks:
        for part in chunk.parts:
            name = ObjectName(step.session_number, op.upload, part.chunk, part.block, part.piece)
            step.state.objects[name] = (part.length, part.sums)
    if parent is not None:
        step.event(EventKind.PUBLISH, inode, (parent, op.name))
    else:
        step.event_of(EventKind.PUBLISH, inode)
    offset = old_size if op.publish_mode == PublishMode.APPEND else 0
    return Published(inode.number, step.version, inode.size, offset, step.forest.attr(inode))


def _target(step: Step, op: Publish) -> tuple[Inode | None, Inode, bool]:
    """Return (parent, file, whether this command made it); no parent for a handle."""
    if not op.name:
        inode = step.resolver.resolve(op.parent)
        _require_publishable(step, op, inode)
        return None, inode, False
    parent = step.resolver.parent(op.parent)
    access.require(step.caller, parent, X)
    if op.name in parent.entries:
        inode = step.forest.inodes[parent.entries[op.name]]
        if op.publish_mode == PublishMode.CREATE:
            message = "the name is taken"
            raise AlreadyExists(message)
        _require_publishable(step, op, inode)
        return parent, inode, False
    if op.publish_mode in {PublishMode.PATCH, PublishMode.APPEND, PublishMode.FOLD}:
        message = "no such file"
        raise NotFound(message)
    if op.publish_mode == PublishMode.REPLACE_GENERATION and op.if_generation:
        message = "no such file, and so no such generation"
        raise GenerationMismatch(message)
    access.require_writable_parent(step.caller, parent)
    inode = step.make(FileType.REGULAR << 12 | op.mode, parent, umask=op.umask)
    step.attach(parent, op.name, inode)
    return parent, inode, True


def _require_publishable(step: Step, op: Publish, inode: Inode) -> None:
    if inode.is_directory:
        message = "it is a directory"
        raise IsADirectory(message)
    if not inode.is_regular:
        message = "only a regular file has a body"
        raise NotSupported(message)
    access.require(step.caller, inode, W)
    access.require_flags_clear(inode, InodeFlag.IMMUTABLE)
    if op.publish_mode not in {PublishMode.APPEND, PublishMode.FOLD}:
        access.require_flags_clear(inode, InodeFlag.APPEND)
    conditional = op.publish_mode in {PublishMode.REPLACE_GENERATION, PublishMode.FOLD}
    if conditional and op.if_generation != inode.generation:
        message = f"generation {inode.generation}, not {op.if_generation}"
        raise GenerationMismatch(message)
    if op.publish_mode == PublishMode.FOLD:
        access.require(step.caller, inode, R)
        if op.size > inode.size:
            message = "a fold does not let the file grow"
            raise InvalidArgument(message)


# ---------------------------------------------------------------- staging


def stage_begin(step: Step, op: StageBegin) -> Made:
    """Make a hidden root of the session's."""
    if op.view not in step.state.views or step.state.views[op.view].dead:
        message = f"no view {op.view}"
        raise Stale(message)
    if list(step.forest.staged.values()).count(step.session_number) >= STAGES_MAX:
        message = "too many staged trees"
        raise WindowFull(message)
    inode = step.make(op.mode, None, op.view)
    step.forest.staged[inode.key] = step.session_number
    return Made(step.forest.attr(inode))


def _staged_root(step: Step, view: int, number: int) -> Inode:
    if step.forest.staged.get((view, number)) != step.session_number:
        message = f"inode {number} is no staged root of the session"
        raise Stale(message)
    return step.forest.inodes[view, number]


def stage_drop(step: Step, op: StageDrop) -> Done:
    """Give a staged tree up."""
    step.drop(_staged_root(step, op.view, op.stage))
    return Done()


def stage_swap(step: Step, op: StageSwap) -> Published:
    """Make a staged tree or file visible under a name."""
    root = _staged_root(step, op.view, op.stage)
    parent = step.resolver.parent(op.parent)
    if step.forest.owner_session(parent) or parent.view != root.view:
        message = "a staged tree enters its view's own tree only"
        raise CrossesView(message)
    access.require(step.caller, parent, X)
    if op.name in parent.entries:
        _require_replaceable(step, op, root, parent)
        step.remove(parent, op.name)
    else:
        access.require_writable_parent(step.caller, parent)
    del step.forest.staged[root.key]
    root.quota = (0, 0)
    if root.access_list is None and root.default_list is None:
        step.pass_lists_on(root, parent)
    step.attach(parent, op.name, root)
    step.touch(root)
    if root.is_regular:
        root.generation = step.version
    kind = EventKind.MOVE_IN if root.is_directory else EventKind.PUBLISH
    step.event(kind, root, (parent, op.name), generation=step.version)
    return Published(root.number, step.version, root.size, 0, step.forest.attr(root))


def _require_replaceable(step: Step, op: StageSwap, root: Inode, parent: Inode) -> None:
    if op.stage_mode == StageMode.CREATE:
        message = "the name is taken"
        raise AlreadyExists(message)
    target = access.require_deletable(step.forest, step.caller, parent, op.name)
    if root.is_directory and not target.is_directory:
        message = "a staged directory replaces only a directory"
        raise NotADirectory(message)
    if target.is_directory and not root.is_directory:
        message = "a staged file does not replace a directory"
        raise IsADirectory(message)
    if target.is_directory and not access.owns(step.caller, target):
        message = "the directory to be replaced is another's"
        raise NotPermitted(message)
