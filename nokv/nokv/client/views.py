"""Snapshots, clones, workspaces and rollback, each one command whatever the size of the tree.

What they mean is said in docs/namespace.md (Views).
"""

from __future__ import annotations

from typing import Final

from nokv.client.arguments import checked_methods
from nokv.client.changes import ChangeHandle, Part
from nokv.client.options import expect, find_snapshot, query
from nokv.client.paths import AnyPath, components, join, split
from nokv.client.paths import at as address
from nokv.client.readonly import SnapshotView
from nokv.client.reads import ReadHandle, shown_path
from nokv.errors import InvalidArgument, NotFound, PredicateFailed
from nokv.types.commands import RemoveTree, VersionIs
from nokv.types.limits import PAGE_MAX, SNAPSHOT_TTL_NS_MAX, SNAPSHOT_TTL_NS_MIN
from nokv.types.reads import PRESENT, BodiesReply, ListBodies
from nokv.types.values import At, Attr
from nokv.types.views import (
    HELD,
    Clone,
    ListSnapshots,
    ListViews,
    Rollback,
    RolledBack,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotMade,
    SnapshotRenew,
    SnapshotReply,
    SnapshotsReply,
    ViewMade,
    ViewReply,
    ViewsReply,
    WorkspaceCreate,
)

LEASE_S: Final = 7 * 86_400.0
"""Of a snapshot whose maker names none, and of the automatic one of a rollback."""

DIRECTORY_MODE: Final = 0o755

TRIES: Final = 16
"""How often the removal of a workspace is tried again because its root changed meanwhile."""


def lease_ns(ttl_s: float | None, *, hold: bool) -> int:
    """Return the lease of a snapshot as commands carry it.

    Args:
        ttl_s: seconds; None for LEASE_S.
        hold: it has no end.

    Raises:
        InvalidArgument: both are given, or no time that could pass.
    """
    if hold:
        if ttl_s is not None:
            message = "a snapshot is held, or has a lease; not both"
            raise InvalidArgument(message)
        return HELD
    ttl_s = LEASE_S if ttl_s is None else ttl_s
    if not SNAPSHOT_TTL_NS_MIN <= ttl_s * 1e9 <= SNAPSHOT_TTL_NS_MAX:
        message = f"a lease of {ttl_s} s"
        hint = f"1 to {SNAPSHOT_TTL_NS_MAX // 10**9} s, a hundred years; or hold it: --hold"
        raise InvalidArgument(message, hint=hint)
    return int(ttl_s * 1e9)


def plain_path(path: AnyPath) -> bytes:
    """Return a path as it is recorded: without `.` components and a slash at its end."""
    return join(tuple(part for part in components(path) if part != b"."))


@checked_methods
class Snapshots(Part):
    """The snapshots of a volume: `fs.snapshots`."""

    async def create(
        self, path: AnyPath, name: str, *, ttl_s: float | None = None, hold: bool = False
    ) -> SnapshotMade:
        """Keep a directory and all below it readable as it is now, under a name.

        Costs the same for any size. It holds what it shows until it is deleted or its lease ends;
        clones that were made of it stay.

        Args:
            path: of the directory.
            name: unique in the volume: letters, digits, '.', '_', ':' and '-', at most 100.
            ttl_s: seconds until it goes by itself; a week unless said otherwise.
            hold: it stays until it is deleted.

        Raises:
            AlreadyExists: the name is in use.
            NotPermitted: who does not own the directory takes a lease, of 30 days at most.
            ResultTooLarge: the volume has as many as it may have, or the caller made so many.
        """
        op = SnapshotCreate(address(path), name, plain_path(path), lease_ns(ttl_s, hold=hold))
        return expect((await self._do(op)).value, SnapshotMade)

    async def get(self, name: str) -> SnapshotReply:
        """Return a snapshot as it stands.

        Raises:
            NotFound: there is none of that name, or its lease is over.
        """
        return await find_snapshot(self._core, self._options, name)

    async def list(self, path: AnyPath | None = None) -> tuple[SnapshotReply, ...]:
        """Return every snapshot, or those of `path` and of what is below it, by their names."""
        base = () if path is None else components(plain_path(path))
        rows = []
        more, after = True, ""
        while more:
            _, value = await query(self._core, self._options, ListSnapshots(after))
            page = expect(value, SnapshotsReply)
            rows += [row for row in page.rows if components(row.path)[: len(base)] == base]
            more = page.more and bool(page.rows)
            after = page.rows[-1].name if page.rows else after
        return tuple(rows)

    async def renew(
        self, name: str, *, ttl_s: float | None = None, hold: bool = False
    ) -> SnapshotMade:
        """Let a snapshot's lease begin anew now, or hold it; arguments as `create`.

        Raises:
            NotFound: there is none of that name.
            NotPermitted: the caller neither made it, nor owns what it shows, nor is root; only the
                last two hold it, or for more than 30 days.
        """
        op = SnapshotRenew(name, lease_ns(ttl_s, hold=hold))
        return expect((await self._do(op)).value, SnapshotMade)

    async def delete(self, name: str) -> None:
        """Delete a snapshot; what only it kept is freed in the background. Raises as `renew`."""
        await self._do(SnapshotDelete(name))


@checked_methods
class Workspaces(Part):
    """Directories that are views of their own: `fs.workspaces`.

    Clones and directories that were rolled back are such too.
    """

    async def create(self, path: AnyPath, mode: int = DIRECTORY_MODE) -> ViewMade:
        """Make an empty workspace; for one with content, `fs.clone`.

        A snapshot of a workspace pins nothing outside of it.

        Args:
            path: of the new directory, whose parent exists.
            mode: permission bits.

        Raises:
            AlreadyExists: the name is taken.
        """
        parent, name = split(path)
        op = WorkspaceCreate(At(0, 1, parent), name, mode)
        return expect((await self._do(op)).value, ViewMade)

    async def list(self) -> tuple[ViewReply, ...]:
        """Return all views but the live tree, by their numbers; those that were removed too."""
        rows = []
        more, after = True, 0
        while more:
            _, value = await query(self._core, self._options, ListViews(after))
            page = expect(value, ViewsReply)
            rows += [row for row in page.rows if row.view]
            more = page.more and bool(page.rows)
            after = page.rows[-1].view if page.rows else after
        return tuple(rows)

    async def own_bytes(self, view: int) -> int:
        """Return the bytes of the objects that a view names itself, without what it inherits.

        Every chunk record of the view is read, so that costs what was written to it. An object
        that several records share counts for each; small bodies have none.
        """
        n_bytes, after, more = 0, b"", True
        while more:
            _, value = await query(self._core, self._options, ListBodies(after, PAGE_MAX, view))
            page = expect(value, BodiesReply)
            n_bytes += sum(sum(row.lengths) for row in page.rows)
            more, after = page.more, page.after
        return n_bytes

    async def delete(self, path: AnyPath) -> None:
        """Remove a workspace with all that is in it: one change. Snapshots and clones of it stay.

        Raises:
            InvalidArgument: the path is no workspace; `fs.remove_tree` removes any directory.
        """
        parent, name = split(path)
        for attempt in range(TRIES):
            attr = await self._root_of(path)
            unchanged = VersionIs(address(path, follow=False), attr.version)
            try:
                await self._do(RemoveTree(At(0, 1, parent), name), (unchanged,))
            except PredicateFailed:
                if attempt == TRIES - 1:
                    raise
            else:
                return

    async def _root_of(self, path: AnyPath) -> Attr:
        """Return the attributes of a workspace's root. Raises InvalidArgument if it is none."""
        attr = await ReadHandle(self._core, self._options).lstat(path)
        if attr.view:
            _, value = await query(self._core, self._options, ListViews(attr.view - 1, 1))
            rows = expect(value, ViewsReply).rows
            if rows and (rows[0].view, rows[0].root) == (attr.view, attr.inode):
                return attr
        message = f"{shown_path(path)} is no workspace"
        raise InvalidArgument(message, hint="remove_tree, or nokv rm -r, removes any directory")


@checked_methods
class ViewHandle(ChangeHandle):
    """Copies and past states of directories, at a cost that does not grow with them."""

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots of the volume: create, get, list, renew, delete."""
        return Snapshots(self._core, self._options)

    @property
    def workspaces(self) -> Workspaces:
        """Directories that are views of their own: create, list, delete."""
        return Workspaces(self._core, self._options)

    def at(self, snapshot: str) -> SnapshotView:
        """Return a handle that reads what a snapshot shows, under the same absolute paths.

        It looks the snapshot up when it is first used.
        """
        options = self._options._replace(at_version=PRESENT, snapshot=snapshot)
        return SnapshotView(self._core, options)

    async def clone(self, source: AnyPath, target: AnyPath, *, at: str | None = None) -> ViewMade:
        """Make `target` a writable copy of a directory, at once; the two part from then on.

        Args:
            source: a directory.
            target: a path that is free.
            at: a snapshot of `source`: copy what that shows instead of what is there now. It is
                one by the path that it was made of, or of the directory that is there now,
                wherever that was then.

        Raises:
            AlreadyExists: the target's name is taken.
            NotFound: also where the snapshot is not one of `source`, or was made anew meanwhile.
            QuotaExceeded: the copy would not fit where it goes.
        """
        parent, name = split(target)
        op = Clone(address(source), At(0, 1, parent), name)
        if at is not None:
            shown = await find_snapshot(self._core, self._options, at)
            if plain_path(source) != shown.path and not await self._is_of(shown, source):
                message = f"snapshot {at!r} is not of {shown_path(source)}"
                raise NotFound(message, hint=f"it is of {shown_path(shown.path)}")
            op = Clone(At(shown.view, shown.inode), At(0, 1, parent), name, at, shown.snapshot)
        return expect((await self._do(op)).value, ViewMade)

    async def _is_of(self, snapshot: SnapshotReply, path: AnyPath) -> bool:
        """Return whether a snapshot is of the directory that a path shows now."""
        try:
            attr = await self.stat(path)
        except NotFound:
            return False
        identity = attr.view, attr.inode
        if attr.view:
            _, value = await query(self._core, self._options, ListViews(attr.view - 1, 1))
            rows = expect(value, ViewsReply).rows
            if rows and (rows[0].view, rows[0].root) == identity:
                identity = rows[0].identity
        return snapshot.identity == identity

    async def rollback(self, path: AnyPath, snapshot: str, *, keep_s: float = LEASE_S) -> str:
        """Make a directory again what a snapshot of it shows: one change, of any size.

        What was there before stays readable, and can be rolled back to, as an automatic snapshot.
        Handles of files in the replaced tree become Stale. The directory keeps its present quota;
        those below are the snapshot's again.

        Args:
            path: of the directory; not the root.
            snapshot: its name, of this very directory.
            keep_s: lease of the automatic snapshot.

        Returns:
            The name of the automatic snapshot: `rollback(path, name)` undoes this one.

        Raises:
            InvalidArgument: the snapshot is of another directory; the path is the root.
            NotFound: there is no such directory, or no such snapshot.
        """
        parent, name = split(path)
        keep_ns = lease_ns(keep_s, hold=False)
        op = Rollback(At(0, 1, parent), name, snapshot, plain_path(path), keep_ns)
        return expect((await self._do(op)).value, RolledBack).name
