"""Quotas: what lies below a directory may not grow beyond its limits."""

from __future__ import annotations

from nokv.errors import NotPermitted, QuotaExceeded
from nokv.types.copies import SetQuota
from nokv.types.results import Done
from nokv_model import access
from nokv_model.step import Step
from nokv_model.tree import NOBODY, Forest, Key

Usage = tuple[int, int]
"""(entries, bytes)."""


def set_quota(step: Step, op: SetQuota) -> Done:
    """Limit what may lie below a directory."""
    directory = step.resolver.parent(op.at)
    if not access.is_root(step.caller):
        message = "quotas are root's to set"
        raise NotPermitted(message)
    directory.quota = (op.entries, op.size_bytes)
    step.touch(directory)
    return Done()


def limited(forest: Forest) -> dict[Key, Usage]:
    """Return the usage of every directory with a quota that lies in no trash."""
    return {
        key: forest.usage(inode)
        for key, inode in forest.inodes.items()
        if any(inode.quota) and forest.owner_session(inode) != NOBODY
    }


def require_room(forest: Forest, before: dict[Key, Usage]) -> None:
    """Raise QuotaExceeded if something grew beyond its limit."""
    for key, was in before.items():
        if key not in forest.inodes:
            continue
        directory = forest.inodes[key]
        now = forest.usage(directory)
        for limit, old, new in zip(directory.quota, was, now, strict=True):
            if limit and new > max(limit, old):
                message = f"below inode {directory.number} there would be {new}, over {limit}"
                raise QuotaExceeded(message)
