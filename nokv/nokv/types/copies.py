"""Copies by metadata alone, and quotas: what a command says and what it answers.

A *copy* names the objects that its source names; no byte moves. Each extent of it is a hold of its
own, born with the copy, so the two files part with their first change (docs/namespace.md: Copies).
"""

from __future__ import annotations

from enum import IntEnum

from nokv.types.values import At, Attr, Lenient, Strict

NO_LIMIT = 0
"""As a limit of a quota."""


class CopyMode(IntEnum):
    """What a copy does with its target's name."""

    CREATE = 0
    """The name must be free (AlreadyExists)."""
    REPLACE = 1
    """Replaces the body of a regular file, or creates it."""


class Copy(Strict, frozen=True, tag=16):
    """Make `name` in `parent` show the whole body of a regular file. Result: Published.

    CopyTooLarge for a body that one command can't take: copy it in ranges.
    """

    source: At
    parent: At
    name: bytes
    copy_mode: int
    """CopyMode."""
    mode: int
    """Permission bits of a file that this creates."""
    at_version: int = 0
    """Copy what the source showed at this version, which must be pinned; 0: what it shows now."""


class CopyRange(Strict, frozen=True, tag=17):
    """copy_file_range(2) between two regular files. Result: Copied.

    May copy less than was asked for, at least a chunk's part of it; nothing only at or behind the
    source's end.
    """

    source: At
    target: At
    source_offset: int
    target_offset: int
    length: int
    at_version: int = 0
    """As for Copy."""


class SetQuota(Strict, frozen=True, tag=20):
    """Limit what may lie below a directory; uid 0 only. Result: Done.

    A limit below what is there already refuses growth alone.
    """

    at: At
    entries: int
    """NO_LIMIT, or the most names below the directory, at any depth."""
    size_bytes: int
    """NO_LIMIT, or the most bytes of all files below it, once per name."""


class Copied(Lenient, frozen=True, tag=13):
    """What CopyRange did."""

    inode: int
    generation: int
    size: int
    """Of the target afterwards."""
    copied_bytes: int
    attr: Attr | None = None


class GetQuota(Strict, frozen=True, tag=58):
    """The quota of a directory, and what counts for it. Reply: QuotaReply."""

    at: At


class QuotaReply(Lenient, frozen=True, tag=36):
    """A quota."""

    entries: int
    size_bytes: int
    """What is there."""
    entries_max: int
    """NO_LIMIT: there is none."""
    size_bytes_max: int
