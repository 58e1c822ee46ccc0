"""What lies in the trash, and whether any of it is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.state.collect import counters_of
from nokv.state.ops_trash import is_own
from nokv.state.pinned import Source
from nokv.state.trash import Entry, due_trashes, entries_of, keep_ns, trashes_of, weight
from nokv.types.limits import PAGE_MAX
from nokv.types.trash import ListTrash, TrashPage, TrashRow
from nokv.types.values import Caller


def list_trash(source: Source, caller: Caller, request: ListTrash) -> TrashPage:
    """Answer `ListTrash`: at most `limit` entries are examined, whosever they are."""
    limit = max(1, min(request.limit, PAGE_MAX))
    view, after = max(0, min(request.after_view, 2**63)), max(0, min(request.after, 2**63))
    first = view
    kept_ns = keep_ns(source)
    rows: list[TrashRow] = []
    examined, more = 0, False
    for number in trashes_of(source, first):
        for entry in entries_of(source, number, after if number == first else 0):
            if examined == limit:
                more = True
                break
            examined += 1
            view, after = number, entry.trash
            if is_own(caller.uid, entry):
                rows.append(_row(source, entry, kept_ns))
        if more:
            break
    return TrashPage(tuple(rows), more, view, after, counters_of(source).cluster_ns)


def _row(source: Source, entry: Entry, kept_ns: int) -> TrashRow:
    usage = weight(source, entry.node, entry.inode, is_graft=entry.is_graft)
    return TrashRow(
        entry.view,
        entry.trash,
        entry.record.path,
        entry.record.uid,
        entry.dentry.file_type,
        *entry.node,
        usage.entries - 1,
        usage.size_bytes,
        entry.record.wall_ns,
        entry.record.cluster_ns + kept_ns,
    )


def is_due(source: Source, cluster_ns: int) -> bool:
    """Whether the retention of an entry is over."""
    return next(due_trashes(source, cluster_ns - keep_ns(source)), None) is not None


HANDLERS: dict[type, Callable[[Any, Caller, Any], Any]] = {ListTrash: list_trash}
