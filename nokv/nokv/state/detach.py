"""Detaching a tree: its root loses its parent at once, the rest is taken apart by `Reap`."""

from __future__ import annotations

import msgspec

from nokv.state.context import JOB_ORPHAN, Context, is_directory
from nokv.state.records import Inode
from nokv.state.views import kill, kill_below


def detach_tree(
    ctx: Context, view: int, ino: int, inode: Inode, *, death: int | None = None
) -> None:
    """Make `ino` an orphan root: handles below it get ESTALE, its records are reaped.

    The caller has removed the name and taken the tree's usage off the parents. `death` is the
    version that history gives the records: by default this command's, which then also ends the
    views below. Raises ResultTooLarge for too many of them.
    """
    if death is None and is_directory(inode):
        kill_below(ctx, view, ino)
    ended = ctx.version if death is None else death
    orphan = msgspec.structs.replace(inode, parent=0, stage=0, name=b"")
    ctx.store_inode(view, ino, orphan)
    ctx.add_job(JOB_ORPHAN, view, ino, ended)


def detach(ctx: Context, holder: int, view: int, ino: int, inode: Inode) -> None:
    """Take away what a removed name of `holder` showed: a directory (view, ino), or a whole view.

    The caller has removed the name and taken the tree's usage off the parents. Raises
    ResultTooLarge for more views below than one command takes along.
    """
    if view == holder:
        detach_tree(ctx, view, ino, inode)
    else:
        kill(ctx, view)
