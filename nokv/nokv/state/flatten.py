"""Flattening: a view takes over what it shows of its origin, and depends on it no more."""

from __future__ import annotations

from msgspec.structs import replace

from nokv.state.context import Context
from nokv.state.records import View
from nokv.state.views import release_origin


def end_origin(ctx: Context, number: int, view: View) -> View:
    """Return the view without an origin, all of which it has copied; let go of the origin's pin."""
    release_origin(ctx, number, view)
    ctx.txn.shown.clear()
    return replace(view, origin=None, origin_version=0, changed=view.created)
