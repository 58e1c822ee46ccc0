"""Flattening: a view takes over what it shows of its origin, and depends on it no more.

In bounded steps, each a command of the leader. First the view as it is now is walked from its root
(and from its trash), and what it inherits is copied as if the view had always had it: born with
the view. A name that moves meanwhile is walked again, as the walk may have passed by where it went.
Then each pinned version is walked that is older than that walk: what the view inherited there and
has changed since becomes history from the view's birth to the change. A command changes nothing
that anybody reads, whenever it comes.

An inherited extent becomes a hold of the view, born with it too: the origin may now end its own.
When all is copied the view still has readers of what it showed before, so its origin, and the pin
that keeps it, go by way of the drop queue (`Drop.flat`). What is left are whiteouts, which hide
nothing any more, and notes of changed inodes; they are swept.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from msgspec.structs import replace

from nokv.errors import InvalidArgument
from nokv.state import keys
from nokv.state.branches import PRESENT, VERSIONED, page_at
from nokv.state.context import JOB_ORPHAN, Context, is_directory, local, names_inside, upwards
from nokv.state.families import Family
from nokv.state.flatten_copy import Copier
from nokv.state.pinned import PinnedSource, Shard, Source
from nokv.state.records import (
    Drop,
    Flattening,
    FlattenTodo,
    Inode,
    View,
    body_of,
    decode_dentry,
    decode_flatten_todo,
    decode_flattening,
    decode_inode,
    decode_job,
    decode_pin,
    decode_view,
    is_whiteout,
)
from nokv.state.views import release_origin
from nokv.types.limits import DEPTH_MAX
from nokv.types.results import Reaped
from nokv.types.views import Flatten

_META = Family.META
_DENTRY = Family.DENTRY
_JOBS_LOOKED_AT = 1024
_INLINE_CHUNKS = 16
"""Chunks of a file that are copied with its name; one with more gets a row of its own."""


STEP_MAX = 65_536
"""Records that one `Flatten` may be asked for."""


def check_flatten(op: Flatten) -> None:
    """Raise InvalidArgument for an unbounded step."""
    if not 1 <= op.limit <= STEP_MAX:
        message = f"a step of {op.limit} records; 1 to {STEP_MAX}"
        raise InvalidArgument(message)


def flatten(ctx: Context, op: Flatten) -> Reaped:
    """Do about `limit` records of the flattening of a view; begin it if it is not begun."""
    view = ctx.txn.view(op.view) if 0 < op.view < 2**64 else None
    ctx.txn.shown.clear()  # what other views inherit from this one is encoded anew
    if view is None or view.dead:
        return _give_up(ctx, op.view, op.limit)
    state = load(ctx.txn, op.view)
    if state is None:
        if view.origin is None:
            return Reaped(0, more=False)
        state = _begin(ctx, op.view, view)
    step = _Step(ctx, op.view, state, op.limit)
    more = step.run()
    ctx.txn.shown.clear()
    return Reaped(min(op.limit, step.count), more)


def load(source: Source, view: int) -> Flattening | None:
    """Return how far a view is flattened; None for one that is not."""
    row = source.get(_META, keys.flatten(view))
    return None if row is None else decode_flattening(row)


def moved(ctx: Context, view: int, ino: int) -> None:
    """Walk an inode again that got another name, where its view is being flattened."""
    if not view:
        return
    state = load(ctx.txn, view)
    if state is not None and not state.live:
        ctx.txn.set_row(_META, keys.flatten_todo(view, ino), ctx.txn.encode(FlattenTodo()))


def end_origin(ctx: Context, number: int, view: View) -> View:
    """Return the view without an origin, all of which it has copied; let go of the origin's pin."""
    release_origin(ctx, number, view)
    ctx.txn.shown.clear()
    return replace(view, origin=None, origin_version=0, whiteouts=True)


def _reaped_views(source: Source) -> frozenset[int] | None:
    """Return the views whose trees are being taken apart, with the help of their origins' records.

    None where too many jobs wait to know: any may be one of them.
    """
    end = keys.after_prefix(keys.JOB_PREFIX)
    rows = list(islice(source.scan(_META, keys.JOB_PREFIX, end), _JOBS_LOOKED_AT))
    if len(rows) == _JOBS_LOOKED_AT:
        return None
    jobs = [decode_job(value) for _, value in rows]
    return frozenset(job.view for job in jobs if job.kind == JOB_ORPHAN)


def _is_reaping(source: Source, view: int) -> bool:
    """Whether a tree of the view is, or may be, one of those."""
    views = _reaped_views(source)
    return views is None or view in views


def _has_todo(source: Source, view: int) -> bool:
    prefix = keys.FLATTEN_TODO_PREFIX + keys.pack(view)
    return next(iter(source.scan(_META, prefix, keys.after_prefix(prefix))), None) is not None


def _begin(ctx: Context, number: int, view: View) -> Flattening:
    state = Flattening()
    ctx.txn.set_row(_META, keys.flatten(number), ctx.txn.encode(state))
    ctx.store_view(number, replace(view, changed=view.created))
    for root in (view.root, view.trash):
        if root:
            moved(ctx, number, root)
    return state


def _give_up(ctx: Context, number: int, limit: int) -> Reaped:
    """Forget a flattening whose view has ended."""
    if not 0 < number < 2**64:
        return Reaped(0, more=False)
    prefix = keys.FLATTEN_TODO_PREFIX + keys.pack(number)
    rows = list(islice(ctx.txn.scan(_META, prefix, keys.after_prefix(prefix)), limit))
    for key, _ in rows:
        ctx.txn.delete_row(_META, key)
    if len(rows) < limit:
        ctx.txn.delete_row(_META, keys.flatten(number))
    return Reaped(len(rows), more=len(rows) == limit)


class _Step:
    """One command's work."""

    def __init__(self, ctx: Context, number: int, state: Flattening, limit: int) -> None:
        self.ctx = ctx
        self.number = number
        self.state = state
        self.limit = limit
        self.count = 0
        """Records looked at."""

    @property
    def left(self) -> int:
        """Records that may be looked at."""
        return self.limit - self.count

    def run(self) -> bool:
        """Work until the limit; return whether there is more to do at once."""
        while self.left > 0:
            if self.state.done:
                view = self.ctx.txn.view(self.number)
                assert view is not None
                return self._sweep() if view.origin is None else False
            prefix = keys.FLATTEN_TODO_PREFIX + keys.pack(self.number)
            rows = self.ctx.txn.scan(_META, prefix, keys.after_prefix(prefix))
            row = next(iter(rows), None)
            at = self.state.at
            if row is not None and at and at not in self.ctx.txn.pins(self.number):
                self.ctx.txn.delete_row(_META, row[0])  # nobody reads there any more
                self.count += 1
            elif row is not None:
                self._walk(int.from_bytes(row[0][-8:], "big"), decode_flatten_todo(row[1]))
            elif not self._next_walk():
                return False
        return True

    def _save(self, state: Flattening) -> None:
        self.state = state
        self.ctx.txn.set_row(_META, keys.flatten(self.number), self.ctx.txn.encode(state))

    def _next_walk(self) -> bool:
        """Go on to the next pinned version, or end; False where the end has to wait."""
        ctx, state = self.ctx, self.state
        if state.at:
            state = replace(state, pins=(*state.pins, state.at))
        elif not state.live:
            state = replace(state, live=ctx.version)
        for version in ctx.txn.pins(self.number):
            if version < state.live and version not in state.pins:
                self._save(replace(state, at=version))
                view = ctx.txn.view(self.number)
                assert view is not None
                self._push(view.root, FlattenTodo())
                self.count += 1
                return True
        self._save(replace(state, at=0))
        if _is_reaping(ctx.txn, self.number):
            return False
        view = ctx.txn.view(self.number)
        assert view is not None
        self._save(replace(self.state, done=ctx.version))
        row = Drop(self.number, view.root, 0, view.created, ctx.version, ctx.cluster_ns, flat=True)
        ctx.add_drop(row)
        return False

    # ------------------------------------------------------------------ walking

    def _push(self, ino: int, todo: FlattenTodo) -> None:
        row = self.ctx.txn.encode(todo)
        self.ctx.txn.set_row(_META, keys.flatten_todo(self.number, ino), row)

    def _walk(self, ino: int, todo: FlattenTodo) -> None:
        """Copy the records of one inode, and of what a directory names; come back for the rest."""
        ctx, version = self.ctx, self.state.at
        source: Source = PinnedSource(ctx.txn, version, leased=True) if version else ctx.txn
        copier = Copier(ctx, self.number, version or None, source)
        self.count += 1
        value = source.get(Family.INODE, keys.inode(self.number, ino))
        rest: FlattenTodo | None = None
        if value is not None:
            inode = local(source, self.number, ino, decode_inode(body_of(value)))
            if version or self._is_reached(ino, inode):
                if not todo.after and not todo.chunk:
                    self.count += copier.inode(ino)
                if is_directory(inode):
                    rest = self._walk_names(copier, source, ino, todo)
                else:
                    rest = self._walk_chunks(copier, ino, inode, todo)
        if rest is None:
            ctx.txn.delete_row(_META, keys.flatten_todo(self.number, ino))
        else:
            self._push(ino, rest)

    def _is_reached(self, ino: int, inode: Inode) -> bool:
        """Whether the view shows the inode, or has it in its trash."""
        txn, view = self.ctx.txn, self.ctx.txn.view(self.number)
        assert view is not None
        roots = (view.root, view.trash)
        if ino in roots:
            return True
        above = [inode.parent, *(directory for directory, _ in names_inside(txn, self.number, ino))]
        return any(one and self._top(one) in roots for one in above)

    def _top(self, directory: int) -> int:
        """Return the root of a directory's tree; a long way up to it counts as records do."""
        up = list(upwards(self.ctx.txn, self.number, directory))
        self.count += len(up) // DEPTH_MAX
        return up[-1]

    def _walk_names(
        self, copier: Copier, source: Source, directory: int, todo: FlattenTodo
    ) -> FlattenTodo | None:
        prefix = keys.inode(self.number, directory)
        limit = max(1, min(self.left, 1024))
        version = self.state.at or PRESENT
        rows, cut = page_at(self.ctx.txn, _DENTRY, prefix, todo.after, limit, version)
        for key, value in rows:
            self.count += 1
            copier.record(_DENTRY, key, value)
            dentry = decode_dentry(body_of(value))
            if dentry.view is not None:
                continue  # another view's
            row = source.get(Family.INODE, keys.inode(self.number, dentry.inode))
            assert row is not None, f"inode {self.number}:{dentry.inode} is named and is not there"
            inode = decode_inode(body_of(row))
            if is_directory(inode):
                self._push(dentry.inode, FlattenTodo())
                continue
            self.count += copier.inode(dentry.inode)
            rest = self._walk_chunks(copier, dentry.inode, inode, FlattenTodo(), _INLINE_CHUNKS)
            if rest is not None:
                self._push(dentry.inode, rest)
        return None if cut is None else FlattenTodo(after=cut[keys.VIEW_BYTES * 2 :])

    def _walk_chunks(
        self, copier: Copier, ino: int, inode: Inode, todo: FlattenTodo, most: int = 1024
    ) -> FlattenTodo | None:
        if not inode.body:
            return None
        start = keys.chunk(self.number, ino, inode.body, todo.chunk)
        _, end = keys.body_range(self.number, ino, inode.body)
        limit = max(1, min(self.left, most))
        rows = list(islice(copier.source.scan(Family.CHUNK, start, end), limit + 1))
        for key, _ in rows[:limit]:
            self.count += copier.chunk(key)
        return None if len(rows) <= limit else FlattenTodo(chunk=keys.chunk_parts(rows[-1][0])[3])

    # ------------------------------------------------------------------ sweeping

    def _sweep(self) -> bool:
        """Remove whiteouts and notes, and at the end what is known of the flattening."""
        txn = self.ctx.txn
        prefix = keys.CHANGED_PREFIX + keys.pack(self.number)
        rows = list(islice(txn.scan(_META, prefix, keys.after_prefix(prefix)), self.left))
        for key, _ in rows:
            txn.delete_row(_META, key)
        self.count += len(rows)
        start, end = keys.pack(self.number), keys.pack(self.number + 1)
        swept = self.state.swept
        for family in sorted(VERSIONED):
            if swept and family < swept[0]:
                continue
            low = swept[1:] + b"\0" if swept and family == swept[0] else start
            for key, value in list(islice(txn.own_scan(family, low, end), max(0, self.left))):
                self.count += 1
                swept = bytes([family]) + key
                if is_whiteout(value):
                    txn.delete_row(family, key)
            if self.left <= 0:
                self._save(replace(self.state, swept=swept))
                return True
        view = txn.view(self.number)
        assert view is not None
        self.ctx.store_view(self.number, replace(view, whiteouts=False))
        txn.delete_row(_META, keys.flatten(self.number))
        return False


# ---------------------------------------------------------------- what is to be flattened

DEPTH_DEFAULT = 8
"""A view deeper than this is flattened: each level below costs every read."""


SEARCH_MAX = 1024
"""Records that one step of a `Search` looks at, and those of one view more."""


class Search:
    """A look through all views for one to be flattened, a bounded number of records at a time.

    One that is begun first; else the least deep of those that are too deep, as others lie above
    it; else one whose origin is dead and there for such views alone. It is no part of the state.
    """

    def __init__(self, depth: int = DEPTH_DEFAULT) -> None:
        self.over = False
        """Nothing is left to be looked at."""
        self._limit = depth
        self._begun = 0
        """All flattenings of views below were looked at."""
        self._next: int | None = None
        """All views below were looked at; None while flattenings are."""
        self._deep: tuple[int, int] | None = None
        """(depth, number) of the least deep one that is too deep."""
        self._waits = 0
        self._kept: dict[int, bool] = {}
        """Origins that were looked at, and whether copies alone keep them."""

    def step(self, shard: Shard) -> int:
        """Go on; return a view that a `Flatten` would bring further, 0 if none is known yet."""
        assert not self.over, "a search that is over"
        cost = 0
        if self._next is None:
            found, cost = self._look_at_begun(shard)
            self.over = found > 0
            if found or self._next is None:
                return found
        rows = shard.own_scan(Family.VIEW, keys.pack(self._next), b"\xff" * 9)
        for key, value in rows:
            if cost >= SEARCH_MAX:
                return 0
            number = int.from_bytes(key, "big")
            cost += self._look_at(shard, number, decode_view(value))
            self._next = number + 1
        self.over = True
        return self._waits if self._deep is None else self._deep[1]

    def _look_at_begun(self, shard: Shard) -> tuple[int, int]:
        """Return the first that goes on, or 0, and how many records were looked at."""
        start, end = keys.flatten(self._begun), keys.after_prefix(keys.FLATTEN_PREFIX)
        rows = list(islice(shard.own_scan(_META, start, end), SEARCH_MAX))
        reaping = _reaped_views(shard) if rows else frozenset()
        for key, value in rows:
            number = int.from_bytes(key[len(keys.FLATTEN_PREFIX) :], "big")
            self._begun = number + 1
            view, state = shard.view(number), decode_flattening(value)
            if view is None or view.dead:
                return number, 0
            waits_for_readers = state.done and view.origin is not None
            waits_for_reaper = state.live and (reaping is None or number in reaping)
            if waits_for_readers or (waits_for_reaper and not _has_todo(shard, number)):
                continue
            return number, 0
        if len(rows) < SEARCH_MAX:
            self._next = 0
        return 0, len(rows)

    def _look_at(self, shard: Shard, number: int, view: View) -> int:
        """Look at a view, and return how many records that were."""
        if view.dead or view.origin is None or load(shard, number) is not None:
            return 1
        below = _depth(shard, number)
        if below > self._limit and (self._deep is None or below < self._deep[0]):
            self._deep = below, number
        cost = 2 + below
        if view.origin not in self._kept:
            self._kept[view.origin] = _is_kept_by_copies(shard, view.origin)
            cost += shard.pin_count(view.origin)
        self._waits = self._waits or number * self._kept[view.origin]
        return cost


def due(shard: Shard) -> int:
    """Return a view that a `Flatten` would bring further; 0: there is none."""
    search, found = Search(), 0
    while not search.over:
        found = search.step(shard)
    return found


def _depth(shard: Shard, number: int) -> int:
    """Return how many origins lie below a view once all that is begun is flattened.

    A view that is flattened keeps its origin for those who read it as it was; who lies above it
    need not be flattened for that.
    """
    depth = 0
    while load(shard, number) is None:
        view = shard.view(number)
        if view is None or view.origin is None:
            break
        number = view.origin
        depth += 1
    return depth


def _is_kept_by_copies(shard: Shard, number: int) -> bool:
    """Whether a view is dead, and nothing pins it but views that fall through to it."""
    view = shard.view(number)
    if view is None or not view.dead:
        return False
    rows = shard.own_scan(Family.PIN, keys.pack(number), keys.pack(number + 1))
    return all(decode_pin(value).clone for _, value in rows)


CHECKS: dict[type, Callable[[Any], None]] = {Flatten: check_flatten}
HANDLERS: dict[type, Callable[[Context, Any], Any]] = {Flatten: flatten}
