"""Quotas: the limits in a directory's usage, checked where usage grows."""

from __future__ import annotations

from nokv.errors import QuotaExceeded
from nokv.state.paths import path_of
from nokv.state.pinned import Source
from nokv.state.records import Usage


def check_quota(source: Source, view: int, directory: int, old: Usage, new: Usage) -> None:
    """Raise QuotaExceeded where usage grows beyond a limit. Shrinking is never refused."""
    grows = (
        ("entries", old.entries, new.entries, old.entries_max),
        ("bytes", old.size_bytes, new.size_bytes, old.size_bytes_max),
    )
    for what, before, after, limit in grows:
        if limit and after > limit and after > before:
            path = path_of(source, view, directory).decode("utf-8", "backslashreplace")
            message = f"{after} {what} below {path}, which may hold {limit}"
            raise QuotaExceeded(message, hint=f"remove something below {path}, or raise its quota")
