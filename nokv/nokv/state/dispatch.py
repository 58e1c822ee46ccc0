"""Which function applies which operation, and which one checks its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.state import (
    arguments,
    flatten,
    ops_attr,
    ops_backup,
    ops_copy,
    ops_create,
    ops_internal,
    ops_lock,
    ops_publish,
    ops_quota,
    ops_remove,
    ops_rename,
    ops_session,
    ops_stage,
    ops_trash,
    ops_view,
)
from nokv.state.arguments import check_caller
from nokv.state.context import Context
from nokv.types.commands import INTERNAL_OPS, EndBackup, ExpireSession, InnerOp, Op, OpenSession
from nokv.types.results import ResultValue

__all__ = ["SESSIONLESS", "check_arguments", "check_caller", "run"]

SESSIONLESS: tuple[type, ...] = (OpenSession, ExpireSession, EndBackup, *INTERNAL_OPS)
"""What may come without a session."""

_HANDLERS: dict[type, Callable[[Context, Any], Any]] = {
    **ops_create.HANDLERS,
    **ops_remove.HANDLERS,
    **ops_rename.HANDLERS,
    **ops_attr.HANDLERS,
    **ops_publish.HANDLERS,
    **ops_copy.HANDLERS,
    **flatten.HANDLERS,
    **ops_trash.HANDLERS,
    **ops_quota.HANDLERS,
    **ops_stage.HANDLERS,
    **ops_session.HANDLERS,
    **ops_internal.HANDLERS,
    **ops_backup.HANDLERS,
    **ops_lock.HANDLERS,
    **ops_view.HANDLERS,
}

_CHECKS: dict[type, Callable[[Any], None]] = {
    **arguments.CHECKS,
    **ops_publish.CHECKS,
    **ops_copy.CHECKS,
    **flatten.CHECKS,
    **ops_trash.CHECKS,
    **ops_quota.CHECKS,
    **ops_stage.CHECKS,
    **ops_session.CHECKS,
    **ops_internal.CHECKS,
    **ops_backup.CHECKS,
    **ops_lock.CHECKS,
    **ops_view.CHECKS,
}


def check_arguments(op: Op | InnerOp) -> None:
    """Raise the typed error of an argument that no state makes valid."""
    check = _CHECKS.get(type(op))
    if check is not None:
        check(op)


def run(ctx: Context, op: Op | InnerOp) -> ResultValue:
    """Apply a checked operation that is not an `Atomic`; any NokvError undoes the command."""
    value: ResultValue = _HANDLERS[type(op)](ctx, op)
    return value
