"""Detaching a tree: its root loses its parent at once, the rest is taken apart by `Reap`."""

from __future__ import annotations

import msgspec

from nokv.state.context import JOB_ORPHAN, Context
from nokv.state.records import Inode


def detach_tree(
    ctx: Context, view: int, ino: int, inode: Inode, *, death: int | None = None
) -> None:
    """Make `ino` an orphan root: handles below it get ESTALE, its records are reaped.

    The caller has removed the name and taken the tree's usage off the parents. `death` is the
    version that history gives the records; by default this command's.
    """
    ended = ctx.version if death is None else death
    orphan = msgspec.structs.replace(inode, parent=0, stage=0, name=b"")
    ctx.store_inode(view, ino, orphan)
    ctx.add_job(JOB_ORPHAN, view, ino, ended)
