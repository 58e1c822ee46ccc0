"""Snapshots as records: found by name, made, and let go (docs/namespace.md: views)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from nokv.errors import AlreadyExists, InvalidArgument, NotFound, NotPermitted, ResultTooLarge
from nokv.state import keys
from nokv.state.context import JOB_UNPIN, Context
from nokv.state.families import Family
from nokv.state.naming import told
from nokv.state.pinned import Source
from nokv.state.records import Nested, Pin, Snapshot, decode_count, decode_snapshot
from nokv.state.views import add_pin
from nokv.types.limits import (
    PATH_BYTES_MAX,
    SNAPSHOT_FOREIGN_TTL_NS_MAX,
    SNAPSHOT_NAME_CHARACTERS_MAX,
    SNAPSHOT_TTL_NS_MAX,
    SNAPSHOT_TTL_NS_MIN,
    SNAPSHOTS_MAX,
    SNAPSHOTS_PER_MAKER_MAX,
)
from nokv.types.values import Caller
from nokv.types.views import HELD, SnapshotMade

AUTOMATIC = "rollback-"
"""How the names of automatic snapshots begin."""

_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._:-]{{0,{SNAPSHOT_NAME_CHARACTERS_MAX - 1}}}")


# ---------------------------------------------------------------- arguments


def check_name(name: str) -> None:
    """Raise InvalidArgument for what a user can't name a snapshot."""
    if _NAME.fullmatch(name) is None:
        message = f"a snapshot can't be named {name[:120]!r}"
        raise InvalidArgument(message, hint="letters, digits, '.', '_', ':' and '-', at most 100")
    if name.startswith(AUTOMATIC):
        message = f"names that begin with {AUTOMATIC!r} are those of automatic snapshots"
        raise InvalidArgument(message)


def check_lease(ttl_ns: int, *, may_hold: bool) -> None:
    """Raise InvalidArgument for a time that no snapshot can last."""
    if may_hold and ttl_ns == HELD:
        return
    if not SNAPSHOT_TTL_NS_MIN <= ttl_ns <= SNAPSHOT_TTL_NS_MAX:
        message = f"a snapshot's lease of {ttl_ns} ns"
        raise InvalidArgument(message, hint="between a second and a hundred years")


def check_path(path: bytes) -> None:
    """Raise InvalidArgument for what is no absolute path."""
    if not path.startswith(b"/") or len(path) > PATH_BYTES_MAX:
        message = f"'{told(path)}' is no absolute path of at most {PATH_BYTES_MAX} bytes"
        raise InvalidArgument(message)


# ---------------------------------------------------------------- records


def is_over(snapshot: Snapshot, cluster_ns: int) -> bool:
    """Whether the snapshot's lease has ended."""
    return 0 < snapshot.until_cluster_ns <= cluster_ns


def stored(source: Source, name: str) -> Snapshot | None:
    """Return a snapshot's record, also when its lease is over; None for any other name."""
    if _NAME.fullmatch(name) is None:
        return None
    value = source.get(Family.META, keys.snapshot(name))
    return None if value is None else decode_snapshot(value)


def need_snapshot(source: Source, name: str, cluster_ns: int) -> Snapshot:
    """Return a snapshot. Raises NotFound, also for one whose lease is over."""
    found = stored(source, name)
    if found is None or is_over(found, cluster_ns):
        message = f"no snapshot {name[:120]!r}"
        raise NotFound(message, hint="see what there is: nokv snapshot list")
    return found


def snapshots_of(source: Source, after: str = "") -> Iterator[tuple[str, Snapshot]]:
    """Yield (name, record) of every snapshot behind a name, ended ones too."""
    behind = after.encode("utf-8", "replace")[: SNAPSHOT_NAME_CHARACTERS_MAX + 1]
    start = keys.SNAPSHOT_PREFIX + behind + (b"\0" if behind else b"")
    end = keys.after_prefix(keys.SNAPSHOT_PREFIX)
    for key, value in source.scan(Family.META, start, end):
        yield key[len(keys.SNAPSHOT_PREFIX) :].decode(), decode_snapshot(value)


def need_say(snapshot: Snapshot, caller: Caller) -> None:
    """Raise NotPermitted unless the caller made it, owns what it shows, or is root."""
    if caller.uid not in (0, snapshot.owner, snapshot.maker):
        message = (
            f"uid {caller.uid} neither made the snapshot ({snapshot.maker} did) nor owns what it"
            f" shows ({snapshot.owner} does)"
        )
        raise NotPermitted(message)


def need_may_hold(owner: int, caller: Caller, ttl_ns: int) -> None:
    """Raise NotPermitted for who may not keep a directory's content for so long."""
    short = ttl_ns != HELD and ttl_ns <= SNAPSHOT_FOREIGN_TTL_NS_MAX
    if not short and caller.uid not in (0, owner):
        message = f"uid {caller.uid} does not own the directory; {owner} does, and may hold it"
        raise NotPermitted(message, hint="with a lease of at most 30 days: --ttl 7d")


def made(snapshot: Snapshot) -> SnapshotMade:
    """Return what a command answers of a snapshot."""
    s = snapshot
    return SnapshotMade(s.snapshot, s.view, s.inode, s.version, s.until_cluster_ns)


# ---------------------------------------------------------------- making and letting go


class Subject(msgspec.Struct, frozen=True):
    """The directory that a snapshot is made of."""

    view: int
    ino: int
    owner: int
    identity: tuple[int, int]
    nested: tuple[Nested, ...]
    """The views below it."""


def hold(
    ctx: Context, name: str, path: bytes, subject: Subject, ttl_ns: int, *, automatic: bool = False
) -> Snapshot:
    """Hold a directory and the views below it as they were before this command.

    Raises AlreadyExists, ResultTooLarge.
    """
    if stored(ctx.txn, name) is not None:
        message = f"a snapshot {name!r} exists"
        hint = "choose another name, or delete that one: nokv snapshot delete"
        raise AlreadyExists(message, hint=hint)
    if ctx.counters.snapshots >= SNAPSHOTS_MAX:
        message = f"the volume has {SNAPSHOTS_MAX} snapshots"
        raise ResultTooLarge(message, hint="delete some: nokv snapshot delete")
    uid = ctx.caller.uid
    if uid and made_by(ctx.txn, uid) >= SNAPSHOTS_PER_MAKER_MAX:
        message = f"uid {uid} made {SNAPSHOTS_PER_MAKER_MAX} snapshots that are still there"
        raise ResultTooLarge(message, hint="delete some of them: nokv snapshot delete")
    snapshot = Snapshot(
        ctx.version,
        path,
        subject.view,
        subject.ino,
        ctx.version - 1,
        subject.identity,
        subject.owner,
        ctx.wall_ns,
        _until(ctx, ttl_ns),
        automatic,
        subject.nested,
        uid,
    )
    for view in _views(snapshot):
        pin = Pin(0, snapshot.snapshot, until_cluster_ns=snapshot.until_cluster_ns)
        add_pin(ctx, view, snapshot.version, snapshot.snapshot, pin)
    _count_maker(ctx, uid, 1)
    ctx.counters.snapshots += 1
    _note_lease(ctx, name, snapshot, 1)
    _save(ctx, name, snapshot)
    return snapshot


def renew(ctx: Context, name: str, snapshot: Snapshot, ttl_ns: int) -> Snapshot:
    """Let a snapshot's lease begin anew."""
    until = _until(ctx, ttl_ns)
    after = msgspec.structs.replace(snapshot, until_cluster_ns=until)
    pin = Pin(0, snapshot.snapshot, until_cluster_ns=until)
    for view in _views(snapshot):
        key = keys.pin(view, snapshot.version, snapshot.snapshot)
        assert ctx.txn.get(Family.PIN, key) is not None, f"snapshot {name} lacks a pin of {view}"
        ctx.txn.put_pin(view, snapshot.version, snapshot.snapshot, pin)
    _note_lease(ctx, name, snapshot, -1)
    _note_lease(ctx, name, after, 1)
    _save(ctx, name, after)
    return after


def let_go(ctx: Context, name: str, snapshot: Snapshot) -> int:
    """Delete a snapshot, and return how many pins went; what only they held is reaped."""
    views = _views(snapshot)
    for view in views:
        ctx.txn.delete_pin(view, snapshot.version, snapshot.snapshot)
        ctx.add_job(JOB_UNPIN, view, snapshot.version)
    ctx.txn.delete_row(Family.META, keys.snapshot(name))
    _count_maker(ctx, snapshot.maker, -1)
    ctx.counters.snapshots -= 1
    _note_lease(ctx, name, snapshot, -1)
    assert 0 <= ctx.counters.leased_snapshots <= ctx.counters.snapshots, "counts of snapshots"
    return len(views)


def made_by(source: Source, uid: int) -> int:
    """Return how many of the snapshots a uid made, ended ones too."""
    value = source.get(Family.META, keys.maker(uid))
    return 0 if value is None else decode_count(value)


def _count_maker(ctx: Context, uid: int, change: int) -> None:
    count = made_by(ctx.txn, uid) + change
    assert count >= 0, f"uid {uid} made {count} snapshots"
    if count:
        ctx.txn.set_row(Family.META, keys.maker(uid), ctx.txn.encode(count))
    else:
        ctx.txn.delete_row(Family.META, keys.maker(uid))


def over(source: Source, cluster_ns: int) -> Iterator[str]:
    """Yield the names of the snapshots whose lease is over, the first to end first."""
    end = keys.lease(cluster_ns + 1, "")
    for key, _ in source.scan(Family.META, keys.LEASE_PREFIX, end):
        yield keys.lease_parts(key)[1]


def first_end(source: Source) -> int:
    """Return the cluster time at which the first lease ends; 0: no snapshot has one."""
    end = keys.after_prefix(keys.LEASE_PREFIX)
    row = next(iter(source.scan(Family.META, keys.LEASE_PREFIX, end)), None)
    return 0 if row is None else keys.lease_parts(row[0])[0]


def _note_lease(ctx: Context, name: str, snapshot: Snapshot, change: int) -> None:
    """Count a lease that begins (1) or goes (-1), and index it by its end."""
    until = snapshot.until_cluster_ns
    if not until:
        return
    ctx.counters.leased_snapshots += change
    if change > 0:
        ctx.txn.set_row(Family.META, keys.lease(until, name), b"")
    else:
        ctx.txn.delete_row(Family.META, keys.lease(until, name))


def _until(ctx: Context, ttl_ns: int) -> int:
    return 0 if ttl_ns == HELD else ctx.cluster_ns + ttl_ns


def _views(snapshot: Snapshot) -> list[int]:
    return [snapshot.view, *(one.view for one in snapshot.nested)]


def _save(ctx: Context, name: str, snapshot: Snapshot) -> None:
    ctx.txn.set_row(Family.META, keys.snapshot(name), ctx.txn.encode(snapshot))
