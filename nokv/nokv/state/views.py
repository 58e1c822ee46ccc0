"""Views as branches of the namespace: how one is made, entered, found from above, and ends.

The grafts of a view are one range of META (`keys.graft`), kept by all that makes, moves or removes
one; which of them lie below a directory is told by walking up from them. What takes a tree along
pays for the views in it, never for its entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain as iter_chain
from itertools import islice

import msgspec

from nokv.errors import ResultTooLarge
from nokv.state import keys
from nokv.state.branches import VERSIONED
from nokv.state.context import (
    JOB_UNPIN,
    JOB_VIEW,
    Context,
    above,
    chain,
    need_inode,
    root_of,
    view_of,
)
from nokv.state.drops import drop_view
from nokv.state.families import Family
from nokv.state.pinned import Source
from nokv.state.records import Dentry, Nested, Pin, View
from nokv.types.limits import NESTED_VIEWS_MAX, PINS_MAX, VIEW_DEPTH_MAX
from nokv.types.values import FileType

CLONE_PIN = 1 << 63
"""Added to a view's number it is the id of its pin; all other pins have a version as theirs."""


# ---------------------------------------------------------------- looking


def identity_of(source: Source, view: int, ino: int) -> tuple[int, int]:
    """Return what the snapshots of a directory have in common, whatever it was rolled back to."""
    record = view_of(source, view)
    return record.identity if view and ino == record.root else (view, ino)


def depth_of(source: Source, view: int) -> int:
    """Return how many origins a lookup in the view may fall through."""
    depth = 0
    while (origin := view_of(source, view).origin) is not None:
        view = origin
        depth += 1
    return depth


def origin_at(source: Source, view: int, version: int) -> tuple[int, int]:
    """Return the (view, version) that shows the same, past views that add nothing to it."""
    record = view_of(source, view)
    while record.origin is not None and not 0 < record.changed <= version:
        view, version = record.origin, record.origin_version
        record = view_of(source, view)
    return view, version


def grafts_of(
    source: Source, view: int, first: int = 0, end: int = 2**64 - 1
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (directory, name, view) of each graft in the directories [first, end) of a view."""
    low, high = keys.graft(view, first, b""), keys.graft(view, end, b"")
    for key, value in source.scan(Family.META, low, high):
        _, directory, name = keys.graft_parts(key)
        yield directory, name, int.from_bytes(value, "big")


def nested_below(ctx: Context, view: int, ino: int) -> tuple[Nested, ...]:
    """Return the views below a directory, each behind the one that holds it.

    Raises ResultTooLarge for more than one command takes along.
    """
    count = ctx.usage(view, ino).grafts
    if not count:
        return ()
    if count > NESTED_VIEWS_MAX:
        message = f"{count} views below the directory; the limit is {NESTED_VIEWS_MAX}"
        raise ResultTooLarge(message, hint="take its subdirectories one by one")
    found: list[Nested] = []
    _collect(ctx, view, ino, found)
    assert len(found) == count, f"{len(found)} views below {view}:{ino}, which counts {count}"
    return tuple(found)


def need_room(ctx: Context, view: int, directory: int, more: int) -> None:
    """Raise ResultTooLarge where something that ends as a whole would get too many views in it.

    That is a view above the directory, or the entry of a trash that it lies in. A plain directory
    may hold any number, as what is in it can go one by one.
    """
    for number, up in _upwards(ctx, view, directory) if more > 0 else ():
        if up[-1] == root_of(ctx.txn, number):
            if number:
                _need_room_in(ctx, number, up[-1], more)
        elif up[-1] == view_of(ctx.txn, number).trash and len(up) > 1:
            _need_room_in(ctx, number, up[-2], more)


def need_room_in_itself(
    ctx: Context, source: tuple[int, int], view: int, directory: int, more: int
) -> None:
    """Raise ResultTooLarge where a directory would get too many views by copies into itself."""
    places = _upwards(ctx, view, directory)
    if any(number == source[0] and source[1] in up for number, up in places):
        _need_room_in(ctx, *source, more)


def _upwards(ctx: Context, view: int, directory: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (view, chain) of a directory, and of those that hold the views above, while shown."""
    place: tuple[int, int] | None = (view, directory)
    while place is not None:
        number, up = place[0], chain(ctx.txn, *place)
        yield number, up
        holder = above(ctx.txn, number)
        inside = holder is not None and up[-1] == root_of(ctx.txn, number)
        place = holder[:2] if holder is not None and inside else None


def _need_room_in(ctx: Context, view: int, ino: int, more: int) -> None:
    count = ctx.usage(view, ino).grafts + more
    if count > NESTED_VIEWS_MAX:
        message = f"{count} views below directory {view}:{ino}; the limit is {NESTED_VIEWS_MAX}"
        raise ResultTooLarge(message, hint="make it elsewhere, or remove some of them")


def _collect(ctx: Context, view: int, ino: int, found: list[Nested]) -> None:
    tops = [(view, ino)]
    for holder, top in tops:  # it grows meanwhile
        inside = sorted(_grafts_below(ctx, holder, top))
        found.extend(Nested(number, holder, directory, name) for directory, name, number in inside)
        tops += [(number, root_of(ctx.txn, number)) for _, _, number in inside]


def _grafts_below(ctx: Context, view: int, top: int) -> list[tuple[int, bytes, int]]:
    """Return (directory, name, view) of the grafts of a view below one of its directories.

    Looks from the directory on, as most of what lies below one is younger, and until it has all: at
    worst at all grafts of the view.
    """
    found: list[tuple[int, bytes, int]] = []
    left = ctx.usage(view, top).grafts
    # Above the trash, which holds views too, there is nothing: parent 0.
    below = {0: False, root_of(ctx.txn, view): False, top: True}
    younger, older = grafts_of(ctx.txn, view, top), grafts_of(ctx.txn, view, 0, top)
    for directory, name, number in iter_chain(younger, older):
        if not left:
            break
        if _is_below(ctx, view, directory, below):
            found.append((directory, name, number))
            left -= 1 + ctx.usage(number, root_of(ctx.txn, number)).grafts
    assert not left, f"{left} views below {view}:{top} are not found"
    return found


def _is_below(ctx: Context, view: int, directory: int, below: dict[int, bool]) -> bool:
    """Whether a directory lies below one, at any depth; `below` says so of some, and learns."""
    path = []
    while directory not in below:
        path.append(directory)
        directory = need_inode(ctx.txn, view, directory).parent
    found = below[directory]
    below.update(dict.fromkeys(path, found))
    return found


# ---------------------------------------------------------------- pins and grafts


def add_pin(ctx: Context, view: int, version: int, pin_id: int, pin: Pin) -> None:
    """Pin a view. Raises ResultTooLarge."""
    if ctx.txn.pin_count(view) >= PINS_MAX:
        message = f"view {view} has {PINS_MAX} pins"
        raise ResultTooLarge(message, hint="delete snapshots, or end readers, of it")
    ctx.txn.put_pin(view, version, pin_id, pin)


def put_graft(ctx: Context, number: int, record: View) -> None:
    """Write a view that was made or moved, and the entry that leads into it (`record.holder`)."""
    assert record.holder is not None, f"view {number} without an entry"
    view, directory, name = record.holder
    ctx.store_view(number, record)
    ctx.txn.set_row(Family.META, keys.graft(view, directory, name), keys.pack(number))
    ctx.put_dentry(view, directory, name, Dentry(FileType.DIRECTORY, record.root, number))


def move_graft(ctx: Context, number: int, directory: int, name: bytes) -> None:
    """Note that the entry of a view moved inside its own view; the entry is the caller's.

    Of two that change places the second takes the row that the first one had.
    """
    record = view_of(ctx.txn, number)
    assert record.holder is not None, f"view {number} has no entry"
    view = record.holder[0]
    _forget_graft(ctx, number, record)
    ctx.store_view(number, msgspec.structs.replace(record, holder=(view, directory, name)))
    ctx.txn.set_row(Family.META, keys.graft(view, directory, name), keys.pack(number))


def _forget_graft(ctx: Context, number: int, record: View) -> None:
    """Remove a view's row of the graft index, unless another view stands there already."""
    assert record.holder is not None, f"view {number} has no entry"
    key = keys.graft(*record.holder)
    if ctx.txn.get(Family.META, key) == keys.pack(number):
        ctx.txn.delete_row(Family.META, key)


# ---------------------------------------------------------------- copies


class Shown(msgspec.Struct, frozen=True):
    """A directory at a version, with the views below it: what a copy is made of."""

    view: int
    ino: int
    version: int
    nested: tuple[Nested, ...]


class Copy(msgspec.Struct, frozen=True):
    """A view that is to be made, and those nested in it."""

    number: int
    views: tuple[tuple[int, View], ...]
    """(number, record), the outermost first."""


def plan_copy(
    ctx: Context,
    shown: Shown,
    holder: tuple[int, int, bytes],
    *,
    identity: tuple[int, int] | None = None,
    replaces: int | None = None,
) -> Copy:
    """Pin all that a copy falls through to, and return its views, unwritten: `make_copy`.

    It comes before whatever the command writes: the pins must count for that. Raises
    ResultTooLarge.
    """
    number = _plan(ctx, shown.view, shown.version)
    outer = View(
        shown.ino,
        ctx.version,
        *origin_at(ctx.txn, shown.view, shown.version),
        holder=holder,
        replaces=replaces,
        created_wall_ns=ctx.wall_ns,
        identity=(number, shown.ino) if identity is None else identity,
        first_inode=ctx.counters.next_inode,
    )
    copies = {shown.view: number}
    views = [(number, outer)]
    for one in shown.nested:
        root = view_of(ctx.txn, one.view).root
        inner = _plan(ctx, one.view, shown.version)
        copies[one.view] = inner
        origin, version = origin_at(ctx.txn, one.view, shown.version)
        record = msgspec.structs.replace(
            outer,
            root=root,
            origin=origin,
            origin_version=version,
            holder=(copies[one.in_view], one.directory, one.name),
            replaces=None,
            identity=(inner, root),
        )
        views.append((inner, record))
    return Copy(number, tuple(views))


def _plan(ctx: Context, view: int, version: int) -> int:
    origin, at = origin_at(ctx.txn, view, version)
    if depth_of(ctx.txn, origin) >= VIEW_DEPTH_MAX:
        message = f"a copy of a copy, {VIEW_DEPTH_MAX} times"
        raise ResultTooLarge(message, hint="it can be copied when it is flattened")
    number = ctx.new_view()
    add_pin(ctx, origin, at, CLONE_PIN | number, Pin(0, clone=number))
    return number


def make_copy(ctx: Context, copy: Copy) -> None:
    """Write the views of a copy, and the entries that lead into them.

    The outermost entry's directory, and the usage above it, are the caller's.
    """
    for number, record in copy.views:
        put_graft(ctx, number, record)
        assert record.holder is not None
        if number != copy.number:  # the entry lies in a directory that is inherited as it is
            view, directory, _ = record.holder
            ctx.note_changed(view, need_inode(ctx.txn, view, directory).parent, directory)


# ---------------------------------------------------------------- the end of a view


def kill(ctx: Context, number: int) -> None:
    """Mark a view dead, with all nested in it. The entry that led into it is the caller's.

    What is in their trashes ends a step later (`kill_held`), and is shown by nothing until then.
    """
    record = view_of(ctx.txn, number)
    for one in nested_below(ctx, number, record.root):
        _kill_one(ctx, one.view, ctx.version)
    _kill_one(ctx, number, ctx.version)


def kill_below(ctx: Context, view: int, ino: int) -> None:
    """Mark the views dead that lie below a directory, which is to be detached.

    Raises ResultTooLarge for more than one command takes along.
    """
    for one in nested_below(ctx, view, ino):
        _kill_one(ctx, one.view, ctx.version)


def kill_held(ctx: Context, number: int, limit: int) -> int:
    """Mark up to `limit` views dead that a dead one still holds, as of its end; return how many.

    They lay in its trash. What they hold themselves, their own jobs end.
    """
    death = view_of(ctx.txn, number).dead
    held = [view for _, _, view in islice(grafts_of(ctx.txn, number), limit)]
    for view in held:
        _kill_one(ctx, view, death)
    return len(held)


def _kill_one(ctx: Context, number: int, death: int) -> None:
    record = view_of(ctx.txn, number)
    assert number, "the live tree does not end"
    assert not record.dead, f"view {number} died at {record.dead}"
    if record.trash_cluster_ns is not None:
        ctx.counters.trashes -= 1
        ctx.txn.delete_row(Family.META, keys.trash_of(record.trash_cluster_ns, number))
    _forget_graft(ctx, number, record)
    ended = msgspec.structs.replace(record, dead=death, trash=0, trash_cluster_ns=None)
    drop_view(ctx, number, ended)
    ctx.add_job(JOB_VIEW, number, death)


def end_view(ctx: Context, number: int) -> None:
    """Remove a dead view that nothing pins, names or waits for; else it stays.

    Whatever it waits for calls again when it is gone (`Context.view_may_end`).
    """
    record = ctx.txn.view(number)
    if record is None or not record.dead or record.drops or ctx.txn.pins(number):
        return
    start, end = keys.pack(number), keys.pack(number + 1)
    families = (Family.HISTORY, *VERSIONED)
    if any(True for family in families for _ in ctx.txn.own_scan(family, start, end)):
        return
    release_origin(ctx, number, record)
    ctx.txn.delete_view(number)


def release_origin(ctx: Context, number: int, record: View) -> None:
    """Let go of what a view fell through to. Nothing to do for one without an origin."""
    if record.origin is None:
        return
    ctx.txn.delete_pin(record.origin, record.origin_version, CLONE_PIN | number)
    ctx.add_job(JOB_UNPIN, record.origin, record.origin_version)
