"""Setting and reading quotas (docs/namespace.md: quotas)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec.structs import replace

from nokv.errors import InvalidArgument, NotADirectory, NotPermitted, QuotaExceeded
from nokv.state import keys
from nokv.state.arguments import check_at
from nokv.state.context import Context, above, chain, is_directory, load_usage
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import Usage
from nokv.state.resolve import resolve, resolve_parent
from nokv.types.copies import NO_LIMIT, GetQuota, QuotaReply, SetQuota
from nokv.types.limits import UINT63_MAX
from nokv.types.results import Done
from nokv.types.values import Caller


def check_set(op: SetQuota) -> None:
    """Raise for a bad address or limit."""
    check_at(op.at)
    if not (0 <= op.entries <= UINT63_MAX and 0 <= op.size_bytes <= UINT63_MAX):
        message = f"a quota of {op.entries} entries and {op.size_bytes} bytes"
        raise InvalidArgument(message)


def set_quota(ctx: Context, op: SetQuota) -> Done:
    """Limit what may lie below a directory; what is there already stays."""
    found = resolve(ctx.txn, ctx.caller, ctx.session_id, op.at)
    if not is_directory(found.inode):
        message = "only directories have quotas"
        raise NotADirectory(message)
    if ctx.caller.uid:
        message = "only root sets quotas"
        raise NotPermitted(message)
    set_limits(ctx, found.view, found.ino, op.entries, op.size_bytes)
    ctx.store_inode(found.view, found.ino, replace(found.inode, ctime_ns=ctx.wall_ns))
    return Done()


def set_limits(ctx: Context, view: int, ino: int, entries: int, size_bytes: int) -> None:
    """Write the limits of a directory, whose inode the caller writes too."""
    usage = replace(ctx.usage(view, ino), entries_max=entries, size_bytes_max=size_bytes)
    ctx.txn.put(Family.USAGE, keys.inode(view, ino), ctx.txn.encode(usage))


def room_below(ctx: Context, view: int, directory: int, freed: Usage) -> tuple[int, int]:
    """Return (entries, bytes) that quotas leave below a directory where `freed` goes; 0: any.

    Raises QuotaExceeded where not even a name fits.
    """
    entries = size_bytes = NO_LIMIT
    for usage in _usages_above(ctx, view, directory):
        if usage.entries_max:
            left = usage.entries_max - usage.entries + freed.entries
            if left < 1:
                message = f"a directory above may hold {usage.entries_max} entries, and does"
                raise QuotaExceeded(message, hint="raise its quota, or remove something below it")
            entries = min(entries or left, left)
        if usage.size_bytes_max:
            left = max(1, usage.size_bytes_max - usage.size_bytes + freed.size_bytes)
            size_bytes = min(size_bytes or left, left)
    return entries, size_bytes


def _usages_above(ctx: Context, view: int, directory: int) -> Iterator[Usage]:
    place: tuple[int, int] | None = (view, directory)
    while place is not None:
        view, directory = place
        for ino in chain(ctx.txn, view, directory):
            yield ctx.usage(view, ino)
        holder = above(ctx.txn, view)
        place = None if holder is None else holder[:2]


def get_quota(source: Source, caller: Caller, request: GetQuota) -> QuotaReply:
    """Answer `GetQuota`."""
    found = resolve_parent(source, caller, 0, request.at)
    usage = load_usage(source, found.view, found.ino)
    return QuotaReply(usage.entries, usage.size_bytes, usage.entries_max, usage.size_bytes_max)


CHECKS: dict[type, Callable[[Any], None]] = {SetQuota: check_set}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {SetQuota: set_quota}
