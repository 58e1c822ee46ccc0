"""What must hold of views: what each shows is a tree, its counts, and who waits for what.

Recomputed by walking from the root of the live tree through all grafts, as a reader does.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from nokv.state import keys
from nokv.state.branches import VERSIONED, inherited
from nokv.state.collect import counters_of, sessions_of
from nokv.state.context import (
    JOB_ORPHAN,
    JOB_UNPIN,
    JOB_VIEW,
    ended_at,
    enter,
    is_directory,
    load_usage,
    local,
    names_inside,
)
from nokv.state.families import Family
from nokv.state.records import (
    Dentry,
    Inode,
    View,
    body_of,
    decode_count,
    decode_dentry,
    decode_inode,
    decode_job,
    decode_pin,
    decode_view,
    is_whiteout,
)
from nokv.state.snapshots import snapshots_of
from nokv.state.trash import entries_of
from nokv.state.txn import Present
from nokv.state.views import CLONE_PIN
from nokv.types.values import ROOT_INODE, ROOT_VIEW

Node = tuple[int, int]
"""(view, inode)."""

_LAST = b"\xff" * 9
_OF_INODES = (Family.INODE, Family.DENTRY, Family.XATTR, Family.USAGE, Family.BACKLINK)
"""Families whose keys begin (view, inode) and whose own records a reaper has to find."""


def check_views(present: Present) -> None:
    """Raise AssertionError, naming the record, for the first thing that does not hold."""
    shard = _Shard(present)
    reached = _check_shown(shard)
    _check_grafts(shard, reached)
    _check_pins(shard)
    _check_whiteouts(shard)
    for number, view in shard.views.items():
        if view.origin is not None and not view.dead:
            _check_own_found(shard, number, view)
    _check_dead(shard)
    _check_trashes(shard)


class _Shard:
    """The records that the checks compare."""

    def __init__(self, present: Present) -> None:
        self.present = present
        self.counters = counters_of(present)
        self.views: dict[int, View] = {
            int.from_bytes(key, "big"): decode_view(value)
            for key, value in present.own_scan(Family.VIEW, b"", _LAST)
        }
        end = keys.after_prefix(keys.JOB_PREFIX)
        rows = present.own_scan(Family.META, keys.JOB_PREFIX, end)
        self.jobs = [decode_job(value) for _, value in rows]
        self.stages = {
            stage for _, one in sessions_of(present, 0) if not one.died for stage in one.stages
        }

    def inode(self, view: int, ino: int) -> Inode | None:
        """Return what a view shows as an inode, with the link count that is stored."""
        value = self.present.get(Family.INODE, keys.inode(view, ino))
        return None if value is None else decode_inode(body_of(value))

    def entries(self, view: int, ino: int) -> list[tuple[bytes, Dentry]]:
        """Return what a directory shows."""
        prefix = keys.inode(view, ino)
        rows = self.present.scan(Family.DENTRY, prefix, keys.after_prefix(prefix))
        return [(key[16:], decode_dentry(body_of(value))) for key, value in rows]

    def own(self, family: Family, view: int) -> list[tuple[bytes, bytes]]:
        """Return a view's own rows, whiteouts too."""
        return list(self.present.own_scan(family, keys.pack(view), keys.pack(view + 1)))


# ---------------------------------------------------------------- what views show


def _check_shown(shard: _Shard) -> set[int]:
    """What is reachable is a tree with the right counts; return the views that are."""
    if shard.inode(ROOT_VIEW, ROOT_INODE) is None:
        return {ROOT_VIEW}
    above: dict[Node, Node | None] = {(ROOT_VIEW, ROOT_INODE): None}
    above.update(dict.fromkeys(shard.stages))
    trashes = {(number, view.trash): None for number, view in shard.views.items() if view.trash}
    assert shard.counters.trashes == len(trashes), f"{shard.counters.trashes} trashes: {trashes}"
    above.update(trashes)
    live = {number for number in shard.views if not ended_at(shard.present, number)}
    above = {node: None for node in above if node[0] in live}
    todo = list(above)
    totals: dict[Node, list[int]] = {}
    names: dict[Node, list[int]] = defaultdict(list)
    views = {ROOT_VIEW}
    while todo:
        node = todo.pop()
        totals[node] = [0, 0, 0]
        for child, dentry, inode in _check_directory(shard, node):
            totals[node][0] += 1
            totals[node][1] += inode.size
            totals[node][2] += int(dentry.view is not None)
            if not is_directory(inode):
                names[child].append(node[1])
                continue
            assert child not in above, f"directory {child} is entered twice"
            above[child] = node
            todo.append(child)
            views.add(child[0])
    _check_totals(shard, above, totals)
    for child, directories in names.items():
        _check_names(shard, child, directories)
    return views


def _check_directory(shard: _Shard, node: Node) -> list[tuple[Node, Dentry, Inode]]:
    view, ino = node
    directory = shard.inode(view, ino)
    assert directory is not None, f"directory {node} is gone"
    if not is_directory(directory):
        return []  # a staged file
    found = []
    subdirectories = 0
    for name, dentry in shard.entries(view, ino):
        child = enter(view, dentry)
        inode = shard.inode(*child)
        assert inode is not None, f"{name!r} of {node} shows {child}: nothing is there"
        assert dentry.file_type == inode.mode >> 12, f"{name!r} of {node}: another type"
        subdirectories += int(is_directory(inode))
        if dentry.view is not None:
            record = shard.views.get(dentry.view)
            assert record is not None, f"{name!r} of {node} leads to no view"
            assert not record.dead, f"{name!r} of {node} leads to the dead view {dentry.view}"
            assert record.root == dentry.inode, f"{name!r} of {node} leads below a root"
            assert record.holder == (view, ino, name), f"the holder of view {dentry.view}"
        elif is_directory(inode):
            assert inode.parent == ino, f"parent of {child} is {inode.parent}, not {ino}"
            assert inode.name in (b"", name), f"{child} thinks it is {inode.name!r}"
        found.append((child, dentry, inode))
    assert directory.children == len(found), f"{directory.children} children of {node}"
    assert directory.nlink == 2 + subdirectories, f"{directory.nlink} links of directory {node}"
    return found


def _check_totals(
    shard: _Shard, above: dict[Node, Node | None], totals: dict[Node, list[int]]
) -> None:
    """Usage is the sum of what lies below, through all grafts."""
    for node in reversed(above):  # a directory was met before what lies in it
        usage = load_usage(shard.present, *node)
        assert (usage.entries, usage.size_bytes, usage.grafts) == tuple(totals[node]), (
            f"usage of {node}: {usage}, not {totals[node]}"
        )
        upper = above[node]
        if upper is not None:
            for i in range(3):
                totals[upper][i] += totals[node][i]


def _check_names(shard: _Shard, node: Node, directories: list[int]) -> None:
    """A clone's file counts its names there; elsewhere names of detached trees count a while."""
    view, ino = node
    stored = shard.inode(view, ino)
    assert stored is not None
    if not view or shard.views[view].origin is None:
        return
    inode = local(shard.present, view, ino, stored)
    assert inode.nlink == len(directories), f"{inode.nlink} links of {node}, names {directories}"
    assert inode.parent == min(directories), f"parent of {node} is {inode.parent}"
    if stored.nlink > 1:
        inside = dict(names_inside(shard.present, view, ino))
        assert inside == dict(Counter(directories)), f"backlinks of {node}: {inside}"
    elif shard.present.own(Family.INODE, keys.inode(view, ino)) is not None:
        prefix = keys.inode(view, ino)
        rows = shard.present.scan(Family.BACKLINK, prefix, keys.after_prefix(prefix))
        assert not list(rows), f"backlinks of {node}, which has one name"


def _check_grafts(shard: _Shard, reached: set[int]) -> None:
    """The index of grafts has all living views, each of them reachable."""
    alive = {number for number in shard.views if not ended_at(shard.present, number)}
    assert alive | {ROOT_VIEW} == reached, f"views {alive ^ reached} are unreachable"
    end = keys.after_prefix(keys.GRAFT_PREFIX)
    rows = {
        keys.graft_parts(key): int.from_bytes(value, "big")
        for key, value in shard.present.own_scan(Family.META, keys.GRAFT_PREFIX, end)
    }
    wanted = {
        view.holder: number
        for number, view in shard.views.items()
        if view.holder is not None and not view.dead
    }
    assert rows == wanted, f"the index of grafts: {rows}, not {wanted}"


# ---------------------------------------------------------------- own records


def _check_whiteouts(shard: _Shard) -> None:
    """A whiteout hides something; of a view's own records the first is noted."""
    for number, view in shard.views.items():
        rows = [row for family in VERSIONED for row in shard.own(family, number)]
        if number and rows:
            assert view.changed, f"view {number} has own records and does not know"
        if view.dead or view.whiteouts:
            continue
        for family in VERSIONED:
            for key, value in shard.own(family, number):
                if family is Family.BACKLINK and view.origin is not None:
                    continue  # an origin that was flattened has no rows of names outside
                if is_whiteout(value):
                    hides = view.origin is not None and inherited(shard.present, family, key)
                    assert hides is not None, f"a {family.name} whiteout over nothing: {key.hex()}"
                    assert hides is not False, f"a {family.name} whiteout in view {number}"


def _check_own_found(shard: _Shard, number: int, view: View) -> None:
    """All that a clone has of its own is led to by own names and notes: a reaper finds it."""
    notes: dict[int, list[int]] = defaultdict(list)
    prefix = keys.CHANGED_PREFIX + keys.pack(number)
    for key, _ in shard.present.own_scan(Family.META, prefix, keys.after_prefix(prefix)):
        directory, ino = keys.U64X2.unpack_from(key, len(prefix))
        notes[directory].append(ino)
    for key, value in shard.own(Family.DENTRY, number):
        if not is_whiteout(value) and (dentry := decode_dentry(body_of(value))).view is None:
            notes[int.from_bytes(key[8:16], "big")].append(dentry.inode)
    roots = {job.a for job in shard.jobs if job.kind == JOB_ORPHAN and job.view == number}
    staged = {ino for stage_view, ino in shard.stages if stage_view == number}
    found = {view.root, *roots, *staged, *([view.trash] if view.trash else [])}
    todo = list(found)
    while todo:
        for ino in notes[todo.pop()]:
            if ino not in found:
                found.add(ino)
                todo.append(ino)
    for family in _OF_INODES:
        for key, value in shard.own(family, number):
            ino = int.from_bytes(key[8:16], "big")
            hidden = family is Family.INODE and is_whiteout(value)
            what = f"{family.name} record of {number}:{ino}"
            assert hidden or ino in found, f"nothing leads to the {what}"


# ---------------------------------------------------------------- pins and ends


def _check_pins(shard: _Shard) -> None:
    """Views hold their origins, snapshots what they show, and no pin is without its owner."""
    wanted: dict[bytes, tuple[int, int, int]] = {}
    for number, view in shard.views.items():
        if view.origin is not None:
            assert view.origin in shard.views, f"the origin of view {number} is gone"
            key = keys.pin(view.origin, view.origin_version, CLONE_PIN | number)
            wanted[key] = (0, number, 0)
    leased = count = 0
    leases = set()
    makers: Counter[int] = Counter()
    for name, one in snapshots_of(shard.present):
        count += 1
        makers[one.maker] += 1
        if one.until_cluster_ns:
            leased += 1
            leases.add(keys.lease(one.until_cluster_ns, name))
        for number in (one.view, *(nested.view for nested in one.nested)):
            assert number in shard.views, f"view {number} of snapshot {name} is gone"
            key = keys.pin(number, one.version, one.snapshot)
            assert key not in wanted, f"snapshot {name} holds view {number} twice"
            wanted[key] = (one.snapshot, 0, one.until_cluster_ns)
    assert (shard.counters.snapshots, shard.counters.leased_snapshots) == (count, leased)
    end = keys.after_prefix(keys.LEASE_PREFIX)
    index = {key for key, _ in shard.present.own_scan(Family.META, keys.LEASE_PREFIX, end)}
    assert index == leases, f"the index of leases: {index ^ leases}"
    end = keys.after_prefix(keys.MAKER_PREFIX)
    rows = dict(shard.present.own_scan(Family.META, keys.MAKER_PREFIX, end))
    assert {key: decode_count(value) for key, value in rows.items()} == {
        keys.maker(uid): made for uid, made in makers.items()
    }, f"the makers of snapshots are {makers}"
    found = {}
    versions: dict[int, list[int]] = defaultdict(list)
    sessions: set[bytes] = set()
    for key, value in shard.present.own_scan(Family.PIN, b"", _LAST):
        pin = decode_pin(value)
        number, version, _ = keys.pin_parts(key)
        assert number in shard.views, f"pin {key.hex()} of a view that is gone"
        versions[number].append(version)
        if pin.session:
            sessions.add(keys.session_pin(pin.session, key))
        if pin.snapshot or pin.clone:
            assert not pin.session, f"pin {key.hex()} has two owners"
            found[key] = (pin.snapshot, pin.clone, pin.until_cluster_ns)
    assert found == wanted, f"pins {set(found.items()) ^ set(wanted.items())}"
    end = keys.after_prefix(keys.SESSION_PIN_PREFIX)
    index = {key for key, _ in shard.present.own_scan(Family.META, keys.SESSION_PIN_PREFIX, end)}
    assert index == sessions, f"pins by their sessions: {index ^ sessions}"
    for number in shard.views:
        counted = shard.present.pin_count(number), shard.present.pins(number)
        rows_of_it = versions[number]
        assert counted == (len(rows_of_it), tuple(dict.fromkeys(rows_of_it))), (
            f"view {number} has {counted[0]} pins at {counted[1]}, and rows at {rows_of_it}"
        )


def _check_dead(shard: _Shard) -> None:
    """A dead view is there only as long as something waits, which says so when it has gone."""
    queued = {job.view for job in shard.jobs if job.kind in (JOB_UNPIN, JOB_VIEW)}
    pinned = {keys.pin_parts(key)[0] for key, _ in shard.present.own_scan(Family.PIN, b"", _LAST)}
    for number, view in shard.views.items():
        if not view.dead:
            holder = shard.views[view.holder[0]] if view.holder is not None else view
            ends = not holder.dead or view.holder is None or view.holder[0] in queued
            assert ends, f"view {number} is held by a dead one, of which no job is left"
            continue
        if number in queued or number in pinned or view.drops:
            continue
        families = (Family.HISTORY, *VERSIONED)
        kept = [family.name for family in families if shard.own(family, number)]
        assert not kept, f"dead view {number}: {kept} of which nothing says when they go"
        raise AssertionError(f"dead view {number} waits for nothing")


def _check_trashes(shard: _Shard) -> None:
    """The index of trashes has each of them, with the age of its oldest entry."""
    wanted = set()
    for number, view in shard.views.items():
        assert bool(view.trash) == (view.trash_cluster_ns is not None), f"the trash of {number}"
        if view.trash_cluster_ns is not None:
            oldest = next(entries_of(shard.present, number)).record.cluster_ns
            assert view.trash_cluster_ns == oldest, f"the oldest in the trash of view {number}"
            wanted.add(keys.trash_of(oldest, number))
    end = keys.after_prefix(keys.TRASH_OF_PREFIX)
    rows = shard.present.own_scan(Family.META, keys.TRASH_OF_PREFIX, end)
    found = {key for key, _ in rows}
    assert found == wanted, f"the index of trashes: {found ^ wanted}"
