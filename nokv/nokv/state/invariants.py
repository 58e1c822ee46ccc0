"""What must hold of every state between two entries, recomputed from all of its records.

For tests, the model's machine and the simulator: a check reads everything. Each predicate is one
that a lost update, a wrong count or an early or late collection would break.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import cast

from msgspec.structs import replace

from nokv.state import keys
from nokv.state.branches import VERSIONED
from nokv.state.collect import counters_of, sessions_of
from nokv.state.context import (
    DIRECTORY,
    JOB_ORPHAN,
    JOB_TRIM,
    JOB_UNPIN,
    S_IFMT,
    is_directory,
    is_regular,
    is_symlink,
)
from nokv.state.families import Family
from nokv.state.invariants_holds import check_holds
from nokv.state.invariants_views import check_views
from nokv.state.lock_invariants import check_locks
from nokv.state.pinned import Source
from nokv.state.port import KV
from nokv.state.records import (
    Counters,
    Dentry,
    Drop,
    Inode,
    Job,
    Session,
    View,
    body_of,
    born_of,
    decode_chunk,
    decode_count,
    decode_counters,
    decode_dentry,
    decode_drop,
    decode_events,
    decode_inode,
    decode_job,
    decode_pin,
    decode_usage,
    decode_view,
    is_whiteout,
)
from nokv.state.txn import Present, Txn
from nokv.types.limits import DEPTH_MAX, RESULT_WINDOW
from nokv.types.values import ROOT_INODE, StoredChunk

Node = tuple[int, int]
"""(view, inode)."""

ChunkKey = tuple[int, int, int, int]
"""(view, inode, body, chunk)."""

_LAST = b"\xff" * 9


def check(source: KV | Source) -> None:
    """Raise AssertionError, naming the record, for the first thing that does not hold."""
    for _, one in checks(source):
        one()


def checks(source: KV | Source) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield (what is checked, the check): each raises AssertionError for what does not hold."""
    present = source if isinstance(source, Present) else None
    if present is None:
        present = Txn(cast("KV", source), counters_of(cast("Source", source))).present
    state = _State(present)
    yield "bodies, drops and shared objects", partial(check_holds, present)
    yield "views, grafts and pins", partial(check_views, present)
    yield "the tree", partial(_check_tree, state)
    yield "link counts", partial(_check_links, state)
    yield "usage", partial(_check_usage, state)
    yield "history", partial(_check_history, state)
    yield "sessions", partial(_check_sessions, state)
    yield "counters", partial(_check_counters, state)
    yield "events", partial(_check_events, state)
    yield "locks", partial(check_locks, state.source, state.counters, state.sessions)


class _State:
    """Every record that the checks compare, decoded: views' own ones, without whiteouts."""

    def __init__(self, source: Present) -> None:
        self.source = source
        row = source.get(Family.META, keys.COUNTERS)
        self.counters = Counters() if row is None else decode_counters(row)
        self.views: dict[int, View] = {
            int.from_bytes(key, "big"): decode_view(value) for key, value in self.rows(Family.VIEW)
        }
        self.plain = {n for n, view in self.views.items() if view.origin is None and not view.dead}
        """Living views whose own records are all that they show."""
        self.inodes: dict[Node, Inode] = {
            keys.U64X2.unpack(key): decode_inode(body_of(value))
            for key, value in self.rows(Family.INODE)
        }
        for number, one in self.views.items():
            root = number, one.root
            if number and root in self.inodes:  # a copied one says where its origin had it
                self.inodes[root] = replace(self.inodes[root], parent=0, name=b"")
        self.dentries: dict[tuple[int, int, bytes], Dentry] = {
            (*keys.U64X2.unpack_from(key), key[16:]): decode_dentry(body_of(value))
            for key, value in self.rows(Family.DENTRY)
        }
        self.names: dict[Node, list[int]] = defaultdict(list)
        self.entries: dict[Node, list[Dentry]] = defaultdict(list)
        for (view, directory, _), dentry in self.dentries.items():
            if dentry.view is None:
                self.names[view, dentry.inode].append(directory)
            self.entries[view, directory].append(dentry)
        self.chunks: dict[ChunkKey, StoredChunk] = {
            keys.chunk_parts(key): decode_chunk(body_of(value))
            for key, value in self.rows(Family.CHUNK)
        }
        self.drops: dict[int, Drop] = {
            int.from_bytes(key, "big"): decode_drop(value) for key, value in self.rows(Family.DROP)
        }
        self.history = dict(self.rows(Family.HISTORY))
        end = keys.after_prefix(keys.JOB_PREFIX)
        self.jobs: list[Job] = [
            decode_job(value) for _, value in source.scan(Family.META, keys.JOB_PREFIX, end)
        ]
        self.orphans = {
            (job.view, job.a)
            for job in self.jobs
            if job.kind == JOB_ORPHAN and job.view in self.plain
        }
        self.sessions: dict[int, Session] = dict(sessions_of(source, 0))
        self.pins: dict[int, set[int]] = defaultdict(set)
        for key, _ in self.rows(Family.PIN):
            view, version, _ = keys.pin_parts(key)
            self.pins[view].add(version)

    def rows(self, family: Family) -> list[tuple[bytes, bytes]]:
        """Return a whole family, without whiteouts."""
        rows = self.source.own_scan(family, b"\x00", _LAST)
        return [row for row in rows if family not in VERSIONED or not is_whiteout(row[1])]

    def plain_inodes(self) -> list[tuple[Node, Inode]]:
        """Return the inodes of the plain views."""
        return [(node, inode) for node, inode in self.inodes.items() if node[0] in self.plain]


# ---------------------------------------------------------------- the tree


def _check_tree(state: _State) -> None:
    """Names show inodes of their type, directories form trees, and each tree has an owner.

    Of the plain views; what the others show is checked from above (`check_views`).
    """
    for (view, directory, name), dentry in state.dentries.items():
        if view not in state.plain or dentry.view is not None:
            continue
        parent = state.inodes.get((view, directory))
        assert parent is not None, f"{name!r} in directory {directory}, which does not exist"
        assert is_directory(parent), f"{name!r} in inode {directory}, which is no directory"
        inode = state.inodes.get((view, dentry.inode))
        assert inode is not None, f"{name!r} of {directory} shows {dentry.inode}: nothing is there"
        assert dentry.file_type == inode.mode >> 12, f"{name!r} of {directory}: another type"
    staged = {
        stage: sid
        for sid, s in state.sessions.items()
        for stage in s.stages
        if stage[0] in state.plain
    }
    for node, inode in state.plain_inodes():
        if inode.parent:
            _check_walk(state, node)
            assert not inode.stage, f"inode {node} is staged and has a parent"
            continue
        assert not state.names[node], f"inode {node} has a name and no parent"
        if node[1] in (state.views[node[0]].root, state.views[node[0]].trash):
            continue
        if inode.stage:
            assert staged.get(node) == inode.stage, f"staged root {node} is on no session's list"
        else:
            assert node in state.orphans, f"inode {node} is reachable by nothing, and has no job"
    for node, session_id in staged.items():
        assert node in state.inodes, f"session {session_id:x} has a stage {node} that is gone"
        assert state.inodes[node].stage == session_id, f"stage {node} is not {session_id:x}'s"
    for node in state.orphans:
        assert node in state.inodes, f"the job of {node} has nothing to do"
        assert not state.inodes[node].parent, f"detached root {node} has a parent"


def _check_walk(state: _State, node: Node) -> None:
    view, ino = node
    seen = set()
    while ino := state.inodes[view, ino].parent:
        assert ino not in seen, f"inode {node} lies below itself"
        assert (view, ino) in state.inodes, f"inode {node} lies below {ino}, which is gone"
        seen.add(ino)
    assert len(seen) <= DEPTH_MAX + len(state.inodes), "a walk without end"


def _check_links(state: _State) -> None:
    """Link counts, children, parents and backlinks are those that the names make."""
    backlinks: dict[Node, dict[int, int]] = defaultdict(dict)
    for key, value in state.rows(Family.BACKLINK):
        node = keys.U64X2.unpack_from(key)
        if node[0] in state.plain:
            backlinks[node][int.from_bytes(key[16:], "big")] = decode_count(body_of(value))
    for node, inode in state.plain_inodes():
        names = state.names[node]
        assert inode.parent == min(names, default=0), f"parent of {node} is {inode.parent}: {names}"
        if inode.name:
            named = state.dentries.get((node[0], inode.parent, inode.name))
            assert named is not None, f"{node} thinks it is {inode.name!r} in {inode.parent}"
            assert named.inode == node[1], f"{inode.name!r} in {inode.parent} is not {node}"
        if is_directory(inode):
            assert len(names) <= 1, f"directory {node} has {len(names)} names"
            entries = state.entries[node]
            below = sum(entry.file_type << 12 == DIRECTORY for entry in entries)
            if node in state.orphans:
                assert inode.children >= len(entries), f"children of the detached {node}"
            else:
                assert inode.children == len(entries), f"{inode.children} children of {node}"
                assert inode.nlink == 2 + below, f"{inode.nlink} links of directory {node}"
        else:
            assert inode.nlink == len(names), f"{inode.nlink} links of {node}, names {names}"
        wanted = dict(Counter(names)) if len(names) > 1 else {}
        assert backlinks.pop(node, {}) == wanted, f"backlinks of {node}"
    assert not backlinks, f"backlinks of inodes that are gone: {sorted(backlinks)[:3]}"


def _check_usage(state: _State) -> None:
    """Usage is of directories that are there; its sums are checked from above (`check_views`)."""
    for key, value in state.rows(Family.USAGE):
        node, usage = keys.U64X2.unpack(key), decode_usage(body_of(value))
        if node[0] in state.plain:
            assert node in state.inodes, f"usage of {node}, which is gone"
            assert is_directory(state.inodes[node]), f"usage of {node}, which is no directory"
        assert min(usage.entries, usage.size_bytes, usage.grafts) >= 0, f"usage of {node}: {usage}"


# ---------------------------------------------------------------- history


def _check_history(state: _State) -> None:
    """Every row of history has one owner, and is needed while nothing waits to be reclaimed."""
    owners = Counter(drop.history for drop in state.drops.values() if drop.history)
    waiting = {job.view for job in state.jobs if job.kind == JOB_UNPIN}
    for row, _ in state.rows(Family.RECLAIM):
        newest, born, family, record, death = keys.reclaim_parts(row)
        key = keys.history(family, record, death)
        value = state.history.get(key)
        assert value is not None, f"a RECLAIM row without history: {row.hex()}"
        assert born_of(value) == born <= newest < death, f"a RECLAIM row at odds: {row.hex()}"
        owners[key] += 1
        view = int.from_bytes(row[:8], "big")
        needed = any(born <= pin < death for pin in state.pins[view])
        assert needed or view in waiting, f"history that no pin shows: {family.name} {record.hex()}"
    for key, value in state.history.items():
        family, record, death = keys.history_parts(key)
        assert owners[key] == 1 or (family == Family.CHUNK and owners[key]), (
            f"history with {owners[key]} owners: {family.name} {record.hex()}"
        )
        assert born_of(value) < death <= state.counters.version, f"history at odds: {key.hex()}"
    for row, _ in state.rows(Family.TOUCHED):
        view, newest = keys.U64X2.unpack_from(row)
        kept = any(pin <= newest for pin in state.pins[view])
        assert kept or view in waiting, f"a TOUCHED row without a pin: {row.hex()}"
    for family in VERSIONED:
        for row, value in state.rows(family):
            born = born_of(value)
            assert 0 < born <= state.counters.version, f"{family.name} {row.hex()} born at {born}"


# ---------------------------------------------------------------- sessions, counters, events


def _check_sessions(state: _State) -> None:
    trimmed = {job.a for job in state.jobs if job.kind == JOB_TRIM}
    nonces: dict[bytes, int] = {}
    results: dict[int, list[int]] = defaultdict(list)
    consumed: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for key, value in state.rows(Family.SESSION):
        session_id, tag = int.from_bytes(key[:8], "big"), key[8:9]
        if not session_id:
            nonces[key[9:]] = int.from_bytes(value, "big")
            continue
        assert session_id in state.sessions or session_id in trimmed, f"rows of {session_id:x}"
        if tag == keys.RESULT:
            results[session_id].append(int.from_bytes(key[9:], "big"))
        elif tag == keys.CONSUMED:
            first = int.from_bytes(key[9:], "big")
            consumed[session_id].append((first, int.from_bytes(value, "big")))
    assert nonces == {s.nonce: sid for sid, s in state.sessions.items()}, "nonces of sessions"
    end = keys.after_prefix(keys.LIVE_PREFIX)
    rows = state.source.scan(Family.META, keys.LIVE_PREFIX, end)
    listed = {int.from_bytes(key[len(keys.LIVE_PREFIX) :], "big") for key, _ in rows}
    living = {session_id for session_id, s in state.sessions.items() if not s.died}
    assert listed == living, f"sessions listed as alive: {sorted(listed ^ living)[:3]} differ"
    end = keys.after_prefix(keys.SESSION_PIN_PREFIX)
    rows = state.source.scan(Family.META, keys.SESSION_PIN_PREFIX, end)
    at = len(keys.SESSION_PIN_PREFIX)
    pins = Counter(int.from_bytes(key[at : at + 8], "big") for key, _ in rows)
    for session_id, session in state.sessions.items():
        kept = results[session_id]
        what = f"session {session_id:x}"
        assert session.pins == pins[session_id], f"{what} counts {session.pins} pins"
        assert session.results == len(kept) <= RESULT_WINDOW, f"{what} keeps {len(kept)} results"
        if kept:
            assert session.acked < min(kept), f"{what} keeps what was acknowledged"
            assert max(kept) <= session.acked + RESULT_WINDOW, f"{what} keeps beyond the window"
        ranges = consumed[session_id]
        assert all(first <= last for first, last in ranges), f"{what}: uploads {ranges}"
        for (_, last), (first, _) in pairwise(ranges):
            assert last + 1 < first, f"{what}: neighbouring ranges of uploads"
        if ranges:
            assert ranges[-1][1] < session.next_upload, f"{what} published what it never leased"
        assert session.watermark <= session.next_upload, f"{what}: its watermark"
        assert session.floor <= state.counters.version, f"{what}: its floor"
        if session.died:
            assert not session.leases, f"{what} is dead and holds leases"
            assert not session.stages, f"{what} is dead and holds staged trees"
    for key, value in state.rows(Family.PIN):
        owner = decode_pin(value).session
        if owner:
            alive = owner in state.sessions and not state.sessions[owner].died
            assert alive, f"pin {keys.pin_parts(key)} of a session that has ended"


def _check_counters(state: _State) -> None:
    """The scalars are what the rows add up to, and nothing has a number that is still to come."""
    counters = state.counters
    sized = [inode for inode in state.inodes.values() if is_regular(inode) or is_symlink(inode)]
    total = sum(inode.size for inode in sized)
    assert counters.files == len(state.inodes), f"{counters.files} inodes of {len(state.inodes)}"
    assert counters.size_bytes == total, f"{counters.size_bytes} bytes of {total}"
    assert counters.jobs == len(state.jobs), f"{counters.jobs} jobs of {len(state.jobs)}"
    assert counters.drops == len(state.drops), f"{counters.drops} drops of {len(state.drops)}"
    assert counters.history == len(state.history), f"{counters.history} rows of history"
    assert counters.sessions == len(state.sessions), f"{counters.sessions} sessions"
    newest = max((ino for _, ino in state.inodes), default=1)
    assert newest < counters.next_inode, f"inode {newest} was never numbered"
    names: Counter[Node] = Counter()
    for key, _ in state.rows(Family.XATTR):
        names[keys.U64X2.unpack_from(key)] += len(key) - 16 + 1
    for node, size in names.items():
        if node[0] in state.plain:
            assert node in state.inodes, f"attributes of {node}, which is gone"
            assert size == state.inodes[node].xattr_bytes, f"attributes of {node}: {size} bytes"
    for node, inode in state.inodes.items():
        if node[0] in state.plain:
            size = inode.xattr_bytes
            assert size == names[node], f"attributes of {node}: {size} bytes"
        assert inode.mode & S_IFMT, f"inode {node} has no type"
        assert inode.size >= 0, f"inode {node} has {inode.size} bytes"


def _check_events(state: _State) -> None:
    """Event records ascend without overlap, and stand on chains that they hold."""
    before = total_bytes = 0
    for key, value in state.rows(Family.EVENT):
        total_bytes += len(value)
        last = int.from_bytes(key, "big")
        record = decode_events(value)
        versions = [event.version for event in record.events]
        assert versions == sorted(versions), f"events of record {last} are out of order"
        assert before < versions[0], f"event record {last} overlaps the one before"
        assert versions[-1] <= last <= state.counters.version, f"event record {last}: {versions}"
        count = len(record.chains)
        for event in record.events:
            assert 0 <= event.chain < count, f"an event of {event.version} without a chain"
            assert -1 <= event.to_chain < count, f"an event of {event.version}: its other chain"
        assert all(chain[-1] == ROOT_INODE for chain in record.chains), f"chains of record {last}"
        before = last
    counted = state.counters.event_bytes
    assert counted == total_bytes, f"{counted} bytes of events, of {total_bytes}"
