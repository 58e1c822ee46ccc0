"""What changed between two states of a directory, and the past generations of a file.

The rows of a diff come in pages that are bounded, each about inodes by themselves; here they are
put in the order of their paths, and views below both sides are entered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from msgspec import structs

from nokv.client.arguments import check, checked_methods
from nokv.client.entries import file_type
from nokv.client.options import expect, find_snapshot
from nokv.client.paths import (
    AnyPath,
    Components,
    at,
    components,
    decode_name,
    join,
    relative,
    split,
)
from nokv.client.views import ViewHandle
from nokv.errors import (
    InvalidArgument,
    NotADirectory,
    NotFound,
    NotSupported,
    PermissionDenied,
    ResultTooLarge,
    Stale,
)
from nokv.types.commands import GenerationIs
from nokv.types.copies import Copy, CopyMode
from nokv.types.diffs import (
    Changed,
    Diff,
    DiffKind,
    DiffReply,
    DiffRow,
    History,
    HistoryReply,
    Holder,
    HolderKind,
    Seen,
    Showing,
)
from nokv.types.limits import SYMLINK_HOPS_MAX
from nokv.types.reads import PRESENT, AttrReply, BytesReply, DirPage, GetAttr, ReadDir, ReadLink
from nokv.types.results import Published
from nokv.types.values import At, Attr, FileType

PAGE: Final = 512
"""Inodes that one request of a diff examines: some milliseconds of a node's time."""

ENTRIES: Final = 1024
"""Entries of one request of a listing."""

ROWS_MAX: Final = 1_000_000
"""Rows of one diff: they are sorted in memory."""

_LETTERS: Final = {
    DiffKind.ADDED: "A",
    DiffKind.DELETED: "D",
    DiffKind.MODIFIED: "M",
    DiffKind.RENAMED: "R",
    DiffKind.TYPE: "T",
}


class Difference(NamedTuple):
    """One change between two states of a directory."""

    kind: str
    """A: added, D: deleted, M: modified, R: renamed, T: another type stands there."""
    path: str
    """Below the directory; empty: the directory itself. Of D where it was, else where it is."""
    old_path: str | None
    """Of R: where it was."""
    before: Seen | None
    """What it was; None of A."""
    after: Seen | None
    """What it is; None of D."""
    what: Changed
    """What differs of it, of M, R and T; an R by itself has none."""


class Generation(NamedTuple):
    """One generation of a file that something still shows."""

    generation: int
    """Version of the command that published it; 0: the empty file as it was made."""
    live: bool
    """Whether it is what the path shows now."""
    size: int
    mtime_ns: int
    uid: int
    """The file's owner then."""
    gid: int
    session: int
    """That published it, while its event is kept; 0: not known."""
    published_ns: int
    """When, by the cluster's clock, while its event is kept; 0: not known."""
    sha256: bytes
    holders: tuple[Holder, ...]
    """The snapshots, clones, sessions and backups that keep it."""
    where: tuple[int, int, int]
    """(view, inode, version) to read it at; version 0: the present."""

    @property
    def revertible(self) -> bool:
        """Whether `revert` can make it current: it is, or something that can be copied shows it.

        What only a session has open (a lease) is read through that session alone, and goes with it.
        """
        return self.live or any(holder.kind != HolderKind.LEASE for holder in self.holders)


class _Side(NamedTuple):
    """A state of a directory."""

    at: At
    version: int

    def inside(self, seen: Seen | None) -> _Side:
        """Return the same state of something in it."""
        assert seen is not None, "a row without this side"
        return _Side(At(seen.view, seen.inode), self.version)


@checked_methods
class DiffHandle(ViewHandle):
    """Compares states of directories, and finds past generations of files."""

    # ------------------------------------------------------------ diff

    async def diff(
        self,
        left: AnyPath,
        right: AnyPath | None = None,
        below: str | bytes = "",
        *,
        expand: bool = True,
    ) -> AsyncIterator[Difference]:
        """Yield what changed from `left` to `right`, in the order of the paths.

        The cost follows the change, not the size. A directory that moved is one rename. Both sides
        are states of one directory: snapshots of it, what is there now, a clone and its origin.
        A side that is live is read page by page: each change is told as its page saw it.

        Args:
            left: the name of a snapshot, or an absolute path: what is there now.
            right: likewise; None: what is now where the snapshot `left` was made.
            below: compare only what is below this relative path.
            expand: tell all that is in directories that came or went; else they stand for it, with
                its counts (`Seen.entries`, `Seen.size`).

        Raises:
            InvalidArgument: the two are no states of one directory, or an argument is none.
            NotFound: there is no such snapshot, path, or `below`.
            ResultTooLarge: more than ROWS_MAX changes.
        """
        parts = relative(below) if below else ()
        one = await self._side(left, parts)
        two = await (self._side(right, parts) if right is not None else self._now(left, parts))
        rows: list[DiffRow] = []
        await self._collect(one, two, rows)
        if expand:
            await self._expand(one, two, rows)
        rows.sort(key=_order)
        for row in rows:
            letter = _LETTERS.get(DiffKind(row.kind))
            if letter is not None:
                old = decode_name(row.old_path) if letter == "R" else None
                path, what = decode_name(row.path), Changed(row.what)
                yield Difference(letter, path, old, row.before, row.after, what)

    async def _side(self, where: AnyPath, below: tuple[bytes, ...]) -> _Side:
        if isinstance(where, str) and not where.startswith("/"):
            check("diff", "left or right", "str", where)
            found = await find_snapshot(self._core, self._options, where)
            return _Side(At(found.view, found.inode, below), found.version)
        return _Side(At(0, 1, components(where) + below), PRESENT)

    async def _now(self, snapshot: AnyPath, below: tuple[bytes, ...]) -> _Side:
        if not isinstance(snapshot, str) or snapshot.startswith("/"):
            message = "a path alone has nothing to be compared with"
            raise InvalidArgument(message, hint="name a snapshot, or a second path")
        found = await find_snapshot(self._core, self._options, snapshot)
        return _Side(At(0, 1, components(found.path) + below), PRESENT)

    async def _collect(self, left: _Side, right: _Side, rows: list[DiffRow]) -> None:
        """Add the rows of two states and, by and by, of the views below both."""
        waiting = [(left, right, b"", b"")]
        while waiting:
            one, two, old, new = waiting.pop()
            more, after = True, b""
            while more:
                read = Diff(one.at, two.at, one.version, two.version, after, PAGE)
                page = expect(await self._ask(read), DiffReply)
                for row in page.rows:
                    put = _placed(row, old, new)
                    if row.kind == DiffKind.ENTERED:
                        inner = one.inside(row.before), two.inside(row.after)
                        waiting.append((*inner, put.old_path, put.path))
                    else:
                        _append(rows, put)
                more, after = page.more, page.after

    async def _expand(self, left: _Side, right: _Side, rows: list[DiffRow]) -> None:
        """Add rows for all that lies in directories that came or went as a whole."""
        arrived = {row.path for row in rows if row.kind == DiffKind.RENAMED}
        departed = {row.path for row in rows if row.kind == DiffKind.LEFT}
        for row in rows[:]:
            whole = row.kind in (DiffKind.ADDED, DiffKind.DELETED, DiffKind.TYPE)
            if whole and row.before is not None and row.before.file_type == FileType.DIRECTORY:
                side = left.inside(row.before)
                was = row.old_path if row.kind == DiffKind.TYPE else row.path
                async for path, seen in self._walk(side, was, departed):
                    _append(rows, DiffRow(DiffKind.DELETED, path, seen, None))
            if whole and row.after is not None and row.after.file_type == FileType.DIRECTORY:
                side = right.inside(row.after)
                async for path, seen in self._walk(side, row.path, arrived):
                    _append(rows, DiffRow(DiffKind.ADDED, path, None, seen))

    async def _walk(
        self, side: _Side, path: bytes, told: set[bytes]
    ) -> AsyncIterator[tuple[bytes, Seen]]:
        """Yield all below a directory, but for what is told by itself, and what is below that."""
        waiting = [(side, path)]
        while waiting:
            where, above = waiting.pop()
            more, after = True, b""
            while more:
                read = ReadDir(where.at, after, ENTRIES, plus=True, at_version=where.version)
                try:
                    page = expect(await self._ask(read), DirPage)
                except (NotFound, NotADirectory, Stale, PermissionDenied):
                    break  # it went meanwhile, or is not the caller's to read
                for entry in page.entries:
                    assert entry.attr is not None, "a listing with attributes has them"
                    there = above + b"/" + entry.name
                    if there in told:
                        continue
                    seen = _seen(entry.attr)
                    yield there, seen
                    if seen.file_type == FileType.DIRECTORY:
                        waiting.append((where.inside(seen), there))
                more, after = page.more, page.after

    # ------------------------------------------------------------ past generations

    async def history(self, path: AnyPath) -> list[Generation]:
        """Return the generations of a file that can still be read, the newest first.

        Those are the one that is there, and what snapshots, clones, backups, pins and open files
        keep; `Generation.revertible` says which `revert` takes. What only waits to be collected is
        not among them.

        Raises:
            NotFound: nothing is there now. Read a snapshot instead.
            InvalidArgument: it is no regular file.
        """
        rows: dict[tuple[int, int], Showing] = {}
        more, after = True, b""
        while more:
            page = expect(await self._ask(History(at(path), after)), HistoryReply)
            for row in page.rows:
                key = row.generation, row.inode
                known = rows.get(key)
                rows[key] = row if known is None else _both(known, row)
            more, after = page.more, page.after
        found = [_generation(row) for row in rows.values()]
        return sorted(found, key=lambda one: (one.live, one.generation), reverse=True)

    async def revert(self, path: AnyPath, generation: int) -> Attr:
        """Make a past generation the present one again, by reflink: no bytes are copied.

        It becomes a new generation; the one that is replaced stays as long as something shows it.
        Symbolic links are followed: they stay, and what they lead to is reverted.

        Raises:
            NotFound: nothing shows that generation any more.
            NotSupported: only a file that a session has open shows it.
            GenerationMismatch: the file changed meanwhile; nothing was done.
            CopyTooLarge: the body is too large for one command; copy it with `copy`.
        """
        shown = await self.history(path)
        live = next((one for one in shown if one.live), None)
        wanted = next((one for one in shown if one.generation == generation), None)
        if live is None or wanted is None:
            name = decode_name(join(components(path)))
            message = f"nothing shows generation {generation} of {name} any more"
            raise NotFound(message, hint="see what there is: nokv history PATH")
        if wanted.live:
            return await self.stat(path)
        if not wanted.revertible:
            name = decode_name(join(components(path)))
            message = f"generation {generation} of {name} is shown by an open file alone"
            raise NotSupported(message, hint="copy it out of there while it is open")
        view, inode, version = wanted.where
        parent, last = await self._followed(path)
        op = Copy(At(view, inode), At(0, 1, parent), last, CopyMode.REPLACE, 0o644, version)
        unchanged = GenerationIs(At(0, 1, (*parent, last)), live.generation)
        made = expect((await self._do(op, (unchanged,))).value, Published)
        return made.attr if made.attr is not None else await self.stat(path)

    async def _followed(self, path: AnyPath) -> tuple[Components, bytes]:
        """Return the directory and name of the file that a path's symbolic links lead to."""
        above, last = split(path)
        for _ in range(SYMLINK_HOPS_MAX):
            where = At(0, 1, (*above, last), follow=False)
            attr = expect(await self._ask(GetAttr(where)), AttrReply).attr
            if file_type(attr) != FileType.SYMLINK:
                break
            target = expect(await self._ask(ReadLink(where)), BytesReply).data
            parts = tuple(part for part in target.split(b"/") if part)
            if not parts:
                break  # it led to a file before
            beside = () if target.startswith(b"/") else above
            *before, last = parts
            above = (*beside, *before)
        return above, last


# ---------------------------------------------------------------- rows


def _append(rows: list[DiffRow], row: DiffRow) -> None:
    if len(rows) >= ROWS_MAX:
        message = f"over {ROWS_MAX} changes"
        raise ResultTooLarge(message, hint="compare a directory below, or without expanding")
    rows.append(row)


def _order(row: DiffRow) -> tuple[bytes, bool]:
    """Return what puts rows in the order of their paths; what went comes before what came."""
    return row.path.replace(b"/", b"\0"), row.kind != DiffKind.DELETED


def _placed(row: DiffRow, old: bytes, new: bytes) -> DiffRow:
    """Return the row of a view that lies at `old` on the left side and at `new` on the right."""
    if not new and not old:
        return row
    here, there = (old, new) if row.kind in (DiffKind.LEFT, DiffKind.DELETED) else (new, old)
    moved = row.kind in (DiffKind.RENAMED, DiffKind.LEFT, DiffKind.ENTERED, DiffKind.TYPE)
    old_path = _below(there, row.old_path) if moved else row.old_path
    return structs.replace(row, path=_below(here, row.path), old_path=old_path)


def _below(directory: bytes, path: bytes) -> bytes:
    return b"/".join(part for part in (directory, path) if part)


def _seen(attr: Attr) -> Seen:
    return Seen(
        attr.view,
        attr.inode,
        attr.mode >> 12,
        attr.size,
        attr.generation,
        0,
        attr.mode & 0o7777,
        attr.uid,
        attr.gid,
        attr.mtime_ns,
    )


def _both(known: Showing, row: Showing) -> Showing:
    """Return one row for a generation that two show. It is read where not just a lease keeps it."""
    leased = all(holder.kind == HolderKind.LEASE for holder in known.holders)
    holders = dict.fromkeys(known.holders + row.holders)  # a backup holds every view
    return structs.replace(row if leased else known, holders=tuple(holders))


def _generation(row: Showing) -> Generation:
    return Generation(
        row.generation,
        any(holder.kind == HolderKind.LIVE for holder in row.holders),
        row.size,
        row.mtime_ns,
        row.uid,
        row.gid,
        row.session,
        row.wall_ns,
        row.sha256,
        tuple(holder for holder in row.holders if holder.kind != HolderKind.LIVE),
        (row.view, row.inode, row.version),
    )
