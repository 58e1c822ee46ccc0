"""Planted bugs, by name: each is a mistake somebody could make, and the machine must find it.

A bug replaces a function of `nokv.state` where it is used; the code itself has no hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from nokv.errors import SessionExpired
from nokv.state import (
    access,
    acl,
    collect,
    context,
    dispatch,
    drops,
    flatten_copy,
    keys,
    machine,
    ops_attr,
    ops_publish,
    ops_remove,
    ops_rename,
    ops_session,
    ops_trash,
    ops_view,
    reap,
    reap_views,
    resolve,
    trash,
    txn,
    views,
)
from nokv.state.context import Context
from nokv.state.families import Family
from nokv.state.records import Counters, Pin, body_of, decode_chunk, is_whiteout
from nokv.types.commands import PinView
from nokv.types.limits import CHUNK_BYTES
from nokv.types.values import StoredChunk

Replacement = Callable[..., Any]
"""Takes the original function, then its arguments."""


@dataclass(frozen=True)
class Bug:
    """What goes wrong, and where."""

    area: str
    what: str
    places: tuple[tuple[Any, Any], ...]
    replacement: Replacement

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Run with the bug in place."""
        with ExitStack() as stack:
            for owner, name in self.places:
                stack.enter_context(_replaced(owner, name, self.replacement))
            yield


@contextmanager
def _replaced(owner: Any, name: Any, replacement: Replacement) -> Iterator[None]:
    """Replace an attribute of a module or class, or an entry of a table."""
    table = isinstance(owner, dict)
    original = owner[name] if table else getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        return replacement(original, *arguments, **named)

    def put(value: Any) -> None:
        if table:
            owner[name] = value
        else:
            setattr(owner, name, value)

    put(changed)
    try:
        yield
    finally:
        put(original)


BUGS: dict[str, Bug] = {}


def plant(area: str, what: str, *places: tuple[Any, Any]) -> Callable[[Replacement], Replacement]:
    """Register a bug under its function's name."""

    def register(replacement: Replacement) -> Replacement:
        BUGS[replacement.__name__] = Bug(area, what, places, replacement)
        return replacement

    return register


# ---------------------------------------------------------------- dedupe and versions


@plant("dedupe", "results of failed commands are not kept", (machine.StateMachine, "_close"))
def forgotten_failures(original: Any, self: Any, command: Any, session: Any, result: bytes) -> Any:
    failed = b"" if result and machine_code(result) else result
    return original(self, command, session, failed)


def machine_code(result: bytes) -> int:
    """The error code of an encoded result."""
    code: int = msgspec.msgpack.decode(result)[1]
    return code


@plant("dedupe", "an ended session answers no retry", (machine.StateMachine, "_admit"))
def silent_tombstone(original: Any, self: Any, command: Any) -> Any:
    stored, session = original(self, command)
    if session.died:
        message = "ended"
        raise SessionExpired(message)
    return stored, session


@plant("dedupe", "a failed command gives its version back", (machine.StateMachine, "_roll_back"))
def version_given_back(original: Any, self: Any, saved: Counters, error: Any) -> Any:
    result = original(self, saved, error)
    self._counters.version = self._txn.version = saved.version - 1
    return result


@plant("dedupe", "a watermark may fall", (ops_session, "_marked"))
def watermark_falls(original: Any, ctx: Any, session: Any, frame: Any) -> Any:
    marked = original(ctx, session, frame)
    lower = min(frame.watermark, session.next_upload)
    return msgspec.structs.replace(marked, watermark=lower)


# ---------------------------------------------------------------- rename and links


@plant("names", "a rename forgets the link count of what it replaces", (ops_rename, "drop_name"))
def replaced_name_still_counts(original: Any, ctx: Any, view: int, ino: int, *rest: Any) -> Any:
    return original(ctx, view, ino, *rest) if rest[0].nlink <= 1 else None


@plant("names", "a directory may move below itself", (ops_rename, "_check_loops"))
def loops(original: Any, source: Any, target: Any, to_up: Any, *, exchange: bool) -> Any:
    if source.ino != to_up[0]:
        return None
    return original(source, target, to_up, exchange=exchange)


@plant("names", "a move keeps the link counts of the parents", (ops_rename, "touch_directory"))
def parents_keep_links(original: Any, *arguments: Any, nlink: int = 0, **named: Any) -> Any:
    del nlink
    return original(*arguments, **named)


@plant("names", "a second name does not count in usage", (Context, "add_usage"))
def links_are_free(original: Any, self: Any, view: int, directory: int, *counts: int) -> Any:
    entries, size, *grafts = counts
    return original(self, view, directory, entries, 0 if entries == 1 else size, *grafts)


@plant(
    "names",
    "the sticky bit is not looked at",
    (ops_remove, "may_delete"),
    (ops_rename, "may_delete"),
)
def sticky_is_ignored(original: Any, parent: Any, entry: Any, caller: Any) -> Any:
    return original(msgspec.structs.replace(parent, mode=parent.mode & ~0o1000), entry, caller)


# ---------------------------------------------------------------- body maps


@plant("bodies", "a truncate leaves the tail in place", (ops_attr, "truncate_body"))
def tail_comes_back(original: Any, ctx: Any, view: int, ino: int, inode: Any, size: int) -> Any:
    if size and size < inode.size:
        return msgspec.structs.replace(inode, size=size)
    return original(ctx, view, ino, inode, size)


@plant("bodies", "a patch drops what stands behind it", (ops_publish, "overlay"))
def patch_cuts(original: Any, old: StoredChunk, new: StoredChunk) -> StoredChunk:
    end = max((e.offset + e.length for e in new.extents), default=CHUNK_BYTES)
    kept = tuple(e for e in old.extents if e.offset < end)
    cut: StoredChunk = original(msgspec.structs.replace(old, extents=kept), new)
    return cut


@plant("bodies", "an append across a chunk keeps its object's offset", (ops_publish, "move"))
def append_repeats_itself(original: Any, *arguments: Any) -> Any:
    placed = original(*arguments)
    first = min(placed, default=0)
    return {
        index: chunk
        if index == first
        else msgspec.structs.replace(
            chunk,
            extents=tuple(msgspec.structs.replace(e, object_offset=0) for e in chunk.extents),
        )
        for index, chunk in placed.items()
    }


@plant("bodies", "kept extents are born again", (ops_publish, "overlay"))
def born_again(original: Any, old: StoredChunk, new: StoredChunk) -> StoredChunk:
    merged: StoredChunk = original(old, new)
    born = max(e.born for e in new.extents)
    extents = tuple(msgspec.structs.replace(e, born=born) for e in merged.extents)
    return msgspec.structs.replace(merged, extents=extents)


@plant("bodies", "a replaced body is not queued", (ops_publish, "drop_body"))
def body_leaks(original: Any, *arguments: Any, **named: Any) -> None:
    del original, arguments, named


# ---------------------------------------------------------------- history and pins


@plant("history", "a pin holds the version of its own command", (dispatch._HANDLERS, PinView))
def pin_is_late(original: Any, ctx: Any, op: Any) -> Any:
    pinned = original(ctx, op)
    late = msgspec.structs.replace(pinned, version=pinned.version + 1)
    ctx.txn.delete_pin(pinned.view, pinned.version, pinned.pin)
    ctx.txn.put_pin(late.view, late.version, late.pin, Pin(ctx.session_id))
    return late


@plant("history", "deletions leave no history", (txn.Txn, "delete"))
def deletions_are_final(original: Any, self: Any, family: Any, key: bytes, **named: Any) -> Any:
    pins, self._pins = self._pins, {}
    try:
        return original(self, family, key, **named)
    finally:
        self._pins = pins


@plant("history", "a record born at the pin is not kept", (txn.Txn, "_retire"))
def off_by_one(original: Any, self: Any, *arguments: Any, **named: Any) -> Any:
    pins = self._pins
    self._pins = {view: tuple(version - 1 for version in found) for view, found in pins.items()}
    try:
        return original(self, *arguments, **named)
    finally:
        self._pins = pins


@plant("history", "an unpinned version takes older pins' history along", (reap, "_reclaim_bucket"))
def reclaims_too_much(original: Any, ctx: Any, start: bytes, bucket: bytes, *rest: Any) -> Any:
    return original(ctx, start[:16] + bytes(8), bucket, *rest)


@plant("history", "the collector does not look at pins", (collect, "is_safe"))
def pins_hold_nothing(original: Any, drop: Any, guards: Any, grace_ns: int) -> Any:
    return original(drop, msgspec.structs.replace(guards, pins={}), grace_ns)


@plant("history", "the collector does not look at floors", (collect, "is_safe"))
def floors_hold_nothing(original: Any, drop: Any, guards: Any, grace_ns: int) -> Any:
    return original(drop, msgspec.structs.replace(guards, floor=2**63 - 1), grace_ns)


@plant("history", "the collector does not look at leases", (collect, "is_safe"))
def leases_hold_nothing(original: Any, drop: Any, guards: Any, grace_ns: int) -> Any:
    return original(drop, msgspec.structs.replace(guards, leases={}), grace_ns)


# ---------------------------------------------------------------- views


@plant("views", "a dead view goes at once, whatever is pinned of it", (reap_views, "end_view"))
def zombie(original: Any, ctx: Any, number: int) -> None:
    record = ctx.txn.view(number)
    if record is None or not record.dead or not ctx.txn.pins(number):
        original(ctx, number)
    else:
        views.release_origin(ctx, number, record)


@plant("views", "a view below a directory is not taken along", (ops_view, "nested_below"))
def nested(original: Any, *arguments: Any) -> tuple[()]:
    del original, arguments
    return ()


@plant("views", "a clone begins with the version of its own command", (ops_view, "plan_copy"))
def pbefore(original: Any, ctx: Any, shown: Any, *rest: Any, **named: Any) -> Any:
    late = msgspec.structs.replace(shown, version=max(shown.version, ctx.version))
    return original(ctx, late, *rest, **named)


@plant("views", "a whiteout that ends leaves no history", (txn.Txn, "_retire"))
def whist(original: Any, self: Any, family: Any, key: bytes, *rest: Any, **named: Any) -> Any:
    own = self.own(family, key)
    if own is not None and is_whiteout(own):
        return None
    return original(self, family, key, *rest, **named)


@plant("views", "what is flattened is born at once", (flatten_copy.Copier, "__init__"))
def flat(original: Any, self: Any, ctx: Any, *rest: Any) -> None:
    original(self, ctx, *rest)
    self.created, self._born = ctx.version, ctx.version.to_bytes(8, "big")


@plant("views", "names outside of a clone's root count in it", (context, "_is_inside"))
def nlink(original: Any, *arguments: Any) -> bool:
    del original, arguments
    return True


@plant(
    "holds",
    "an object goes with the first of its holds",
    (collect, "_shared"),
    (collect, "_is_held"),
)
def hold(original: Any, *arguments: Any) -> list[bytes]:
    del original, arguments
    return []


@plant("holds", "a patch is merged into what its writer saw once", (ops_publish, "load_chunk"))
def patch(original: Any, ctx: Any, key: bytes) -> StoredChunk:
    end = keys.pack(keys.chunk_parts(key)[0] + 1)
    for row, value in ctx.txn.scan(Family.HISTORY, key[:8], end):
        family, record, _ = keys.history_parts(row)
        if (family, record) == (Family.CHUNK, key) and not is_whiteout(value):
            return decode_chunk(body_of(value))
    chunk: StoredChunk = original(ctx, key)
    return chunk


@plant("holds", "a hold begins with the record that names it", (drops, "gone"))
def born(original: Any, old: Any, new: Any, created: int) -> Any:
    latest = max((extent.born for extent in old.extents), default=0)
    return [(obj, latest) for obj, _ in original(old, new, created)]


# ---------------------------------------------------------------- trash


@plant("trash", "what goes from the trash goes with all its names", (trash, "drop_name"))
def all_names(original: Any, ctx: Any, view: int, ino: int, inode: Any, *rest: Any) -> Any:
    return original(ctx, view, ino, msgspec.structs.replace(inode, nlink=1), *rest)


@plant("trash", "the trash is kept for half of its time", (ops_trash, "keep_ns"))
def kept_for_less(original: Any, source: Any) -> Any:
    return original(source) // 2


@plant("trash", "everybody has all that is in the trash", (ops_trash, "is_own"))
def anybody(original: Any, uid: int, entry: Any) -> bool:
    del original, uid, entry
    return True


@plant("trash", "the way up from a view leads into the trash", (resolve, "_is_shown"))
def into_the_trash(original: Any, *arguments: Any) -> bool:
    del original, arguments
    return True


# ---------------------------------------------------------------- locks and access lists


@plant("locks", "locks outlive their session", (ops_session, "end_session_locks"))
def lasting_locks(original: Any, ctx: Context, session_id: int) -> None:
    del original, ctx, session_id


@plant("lists", "the mask does not count", (access, "allows"))
def no_mask(original: Any, value: bytes, gid: int, caller: Any, wanted: int) -> Any:
    entries = tuple(
        entry._replace(permissions=7) if entry.tag == acl.Tag.MASK else entry
        for entry in acl.decode(value)
    )
    return original(acl.encode(entries), gid, caller, wanted)


@plant("lists", "chmod leaves the access list as it is", (acl, "with_mode"))
def chmod_without_list(original: Any, value: bytes, mode: int) -> bytes:
    del original, mode
    return value
