"""`Model`: entries in, results out, and reads; the specification that `nokv.state` is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nokv.errors import InvalidArgument, NokvError, TooLarge, WindowFull
from nokv.types import commands as c
from nokv.types import locks as k
from nokv.types import trash as t
from nokv.types import views as v
from nokv.types.copies import Copy, CopyRange, SetQuota
from nokv.types.limits import ATOMIC_MAX
from nokv.types.reads import Event, Read, ReadValue
from nokv.types.results import AtomicDone, InnerValue, Result, ResultValue
from nokv.types.values import Caller
from nokv_model import (
    attributes,
    control,
    copying,
    locking,
    ops,
    publishing,
    quotas,
    reads,
    trash,
    views,
)
from nokv_model.arguments import check_arguments
from nokv_model.control import check_predicates
from nokv_model.sessions import Results, admit
from nokv_model.state import State
from nokv_model.step import Step

HANDLERS: dict[type, Callable[[Step, Any], Any]] = {
    c.Mkdir: ops.mkdir,
    c.Create: ops.create,
    c.BulkCreate: ops.bulk_create,
    c.Mknod: ops.mknod,
    c.Symlink: ops.symlink,
    c.Link: ops.link,
    c.Unlink: ops.unlink,
    c.Rmdir: ops.rmdir,
    c.RemoveTree: ops.remove_tree,
    c.Rename: ops.rename,
    c.SetAttr: attributes.set_attr,
    c.SetXattr: attributes.set_xattr,
    c.RemoveXattr: attributes.remove_xattr,
    c.Publish: publishing.publish,
    SetQuota: quotas.set_quota,
    Copy: copying.copy,
    CopyRange: copying.copy_range,
    c.StageBegin: publishing.stage_begin,
    c.StageSwap: publishing.stage_swap,
    c.StageDrop: publishing.stage_drop,
    c.OpenSession: control.open_session,
    c.ExpireSession: control.expire_session,
    c.LeaseUploads: control.lease_uploads,
    c.PinView: control.pin_view,
    c.UnpinView: control.unpin_view,
    v.SnapshotCreate: views.snapshot_create,
    v.SnapshotRenew: views.snapshot_renew,
    v.SnapshotDelete: views.snapshot_delete,
    v.Clone: views.clone,
    v.WorkspaceCreate: views.workspace_create,
    v.Rollback: views.rollback,
    v.ExpireSnapshots: views.expire_snapshots,
    v.Flatten: views.flatten,
    t.Trash: trash.trash,
    t.RestoreTrash: trash.restore,
    t.EmptyTrash: trash.empty,
    t.KeepTrash: trash.keep,
    t.ExpireTrash: trash.expire,
    k.SetLock: locking.set_lock,
    k.Unlock: locking.unlock,
    k.CancelLock: locking.cancel_lock,
    c.InitVolume: control.init_volume,
    c.SessionMarks: control.session_marks,
    c.Reap: control.reap,
    c.Collected: control.reap,
    c.Swept: control.swept,
    c.Checkpoint: control.checkpoint,
    c.TrimEvents: control.trim_events,
    c.RaiseFormat: control.raise_format,
}

UNSTORED = (WindowFull,)
"""Refusals that leave no result behind: the client may send the same number again."""


class Model:
    """The namespace as its rules say it behaves; see docs/namespace.md."""

    def __init__(self) -> None:
        self.state = State()
        self.results = Results()
        self.version = 0
        self.wall_ns = 0
        self.cluster_ns = 0

    def apply(self, wall_ns: int, cluster_ns: int, commands: list[c.Command]) -> list[Result]:
        """Apply one entry; return the result of each command, in order."""
        assert wall_ns >= self.wall_ns, "wall time fell"
        assert cluster_ns >= self.cluster_ns, "cluster time fell"
        self.wall_ns, self.cluster_ns = wall_ns, cluster_ns
        events: list[Event] = []
        results = [self._command(command, events) for command in commands]
        if events:
            self.state.events.append((self.version, tuple(events)))
        return results

    def read(self, caller: Caller, read: Read) -> ReadValue:
        """Answer a read; raise what docs/namespace.md says."""
        return reads.run(self.state, self.version, self.cluster_ns, caller, read)

    # ------------------------------------------------------------------ one command

    def _command(self, command: c.Command, events: list[Event]) -> Result:
        first = self.version = self.version + 1
        try:
            sender = admit(command, self.state.sessions, self.results)
        except NokvError as error:
            return Result(first, error.code)
        if isinstance(sender, Result):
            return sender
        op = command.op
        if isinstance(op, c.Atomic) and 0 < len(op.ops) <= ATOMIC_MAX:
            self.version += len(op.ops) - 1
        before = self.state.copy()
        step = Step(
            self.state,
            self.wall_ns,
            self.cluster_ns,
            command.caller,
            sender,
            command.seq,
            first,
        )
        try:
            value = self._execute(step, command)
        except NokvError as error:
            self.state = before
            result = Result(self.version, error.code)
            stored = not isinstance(error, UNSTORED)
        else:
            result = Result(self.version, value=value)
            stored = True
            events += step.events
            if isinstance(op, c.Swept) and op.target not in self.state.sessions:
                self.results.forget(before.sessions[op.target])
        if sender is not None:
            self.results.acknowledge(self.state.sessions[command.session], command.acked)
            if stored:
                self.results.kept[command.session, command.seq] = result
        self.state.forest.check()
        return result

    def _execute(self, step: Step, command: c.Command) -> ResultValue:
        op = command.op
        if not isinstance(op, c.Atomic):
            check_arguments(op)
            check_predicates(step, command.predicates)
            value: ResultValue = _run(step, op)
            return value
        if not op.ops:
            message = "an Atomic without operations"
            raise InvalidArgument(message)
        if len(op.ops) > ATOMIC_MAX:
            message = "an Atomic over its limit"
            raise TooLarge(message)
        for inner in op.ops:
            check_arguments(inner)
        check_predicates(step, command.predicates)
        values: list[InnerValue] = []
        for number, inner in enumerate(op.ops):
            inner_step = replace(step, version=step.version + number, places=set())
            values.append(_run(inner_step, inner))
        return AtomicDone(step.version, tuple(values))


def _run(step: Step, op: c.Op | c.InnerOp) -> Any:  # noqa: ANN401  the handler's result
    before = quotas.limited(step.forest)
    value = HANDLERS[type(op)](step, op)
    quotas.require_room(step.forest, before)
    step.check_depth()
    return value
