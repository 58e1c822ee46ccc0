"""Snapshots, clones, workspaces and rollback: what a command says and what it answers.

A *snapshot* holds a directory and all below it as it was just before the command. A *view* is a
branch of the namespace: the live tree is view 0, every clone, workspace and rolled back directory
is one of its own, entered by a graft, a directory entry that names a view (docs/namespace.md:
Views).
"""

from __future__ import annotations

from nokv.types.values import At, Lenient, Strict

HELD = 0
"""As `ttl_ns` of a snapshot: it is kept until it is deleted. The directory's owner and root may."""


class SnapshotCreate(Strict, frozen=True, tag=44):
    """Hold a directory, with every view nested below it. Result: SnapshotMade."""

    at: At
    name: str
    """Unique in the volume; see SNAPSHOT_NAME."""
    path: bytes
    """Where the caller found the directory, absolute; kept for listings and for reads by path."""
    ttl_ns: int = HELD
    """Cluster time until it ends by itself."""


class SnapshotRenew(Strict, frozen=True, tag=45):
    """Set the lease of a snapshot anew, from now. Result: SnapshotMade."""

    name: str
    ttl_ns: int


class SnapshotDelete(Strict, frozen=True, tag=46):
    """Let a snapshot go; what only it held is reaped. Clones made of it stay. Result: Done."""

    name: str


class Clone(Strict, frozen=True, tag=47):
    """Make `name` in `parent` a writable copy of a directory, at once. Result: ViewMade."""

    source: At
    """A directory; ignored with a snapshot's name, which says which one."""
    parent: At
    name: bytes
    snapshot: str = ""
    """Copy what this snapshot shows; empty: what is there now."""
    snapshot_id: int = 0
    """With a snapshot's name: only if that is this one (`SnapshotReply.snapshot`), NotFound for
    one that was made since. 0: whichever has the name."""


class WorkspaceCreate(Strict, frozen=True, tag=48):
    """Make an empty directory that is a view of its own. Result: ViewMade."""

    parent: At
    name: bytes
    mode: int
    """Permission bits."""


class Rollback(Strict, frozen=True, tag=49):
    """Make a directory again what a snapshot of it shows. Result: RolledBack.

    What it showed before stays as an automatic snapshot for `keep_ns`.
    """

    parent: At
    name: bytes
    snapshot: str
    path: bytes
    """As for SnapshotCreate: of the automatic snapshot."""
    keep_ns: int
    """Lease of the automatic snapshot, at least 1 s."""


class SnapshotMade(Lenient, frozen=True, tag=10):
    """A snapshot: read (view, inode) at `version`."""

    snapshot: int
    """Its id: the version of the command that made it."""
    view: int
    inode: int
    version: int
    until_cluster_ns: int
    """End of its lease; 0 while it is held."""


class ViewMade(Lenient, frozen=True, tag=11):
    """The view behind a new directory."""

    view: int
    inode: int
    """Its root."""
    created: int
    """The version of the command."""


class RolledBack(Lenient, frozen=True, tag=12):
    """The new view, and the automatic snapshot of what was there before."""

    view: int
    inode: int
    snapshot: int
    name: str
    """`rollback-` and the version of the command."""


class ExpireSnapshots(Strict, frozen=True, tag=73):
    """Delete snapshots whose lease is over; internal. Result: Reaped."""

    limit: int


class Flatten(Strict, frozen=True, tag=74):
    """Copy up to `limit` of the records that a view inherits into it; internal. Result: Reaped.

    The last step ends its dependence on its origin.
    """

    view: int
    limit: int


class GetSnapshot(Strict, frozen=True, tag=39):
    """One snapshot by its name. Reply: SnapshotReply, or NotFound."""

    name: str


class ListSnapshots(Strict, frozen=True, tag=40):
    """A page of the snapshots, by their names. Reply: SnapshotsReply."""

    after: str = ""
    limit: int = 256


class ListViews(Strict, frozen=True, tag=41):
    """A page of the views, by their numbers, dead ones that wait too; the live tree is not listed.

    Reply: ViewsReply.
    """

    after: int = 0
    limit: int = 256


HOLDERS_MAX = 16
"""Clones, and backups, that a row of a snapshot names; its counts have all."""


class SnapshotReply(Lenient, frozen=True, tag=17):
    """A snapshot as it stands."""

    snapshot: int
    name: str
    path: bytes
    view: int
    inode: int
    version: int
    created_wall_ns: int
    until_cluster_ns: int
    """End of its lease; 0: held."""
    automatic: bool
    """Made by a rollback."""
    views: int
    """Views that it holds, nested ones too."""
    clones: int
    """Views whose origin is what it shows."""
    cluster_ns: int
    """Of the reply: until_cluster_ns counts in it."""
    alone_bytes: int = 0
    """Of contents that went or were replaced since and that no other snapshot, clone or backup
    shows. What copies share counts once for each, also where another keeps it: so this is at most
    what the deletion frees, and exactly that where nothing was copied."""
    backups: int = 0
    """Backups that hold the same version."""
    maker: int = 0
    """uid of who made it."""
    clone_paths: tuple[bytes, ...] = ()
    """Where those clones are, at most HOLDERS_MAX; empty: of a removed one that holds it still."""
    backup_names: tuple[str, ...] = ()
    """Of those backups, at most HOLDERS_MAX."""
    identity: tuple[int, int] = (0, 0)
    """(view, inode) of the directory: the same of all its snapshots, whatever it was rolled back to
    and wherever it was moved."""

    @property
    def left_s(self) -> float | None:
        """Seconds of cluster time until its lease ends, as of the reply; None: it is held."""
        if not self.until_cluster_ns:
            return None
        return max(0, self.until_cluster_ns - self.cluster_ns) / 1e9


class SnapshotsReply(Lenient, frozen=True, tag=18):
    """A page."""

    rows: tuple[SnapshotReply, ...]
    more: bool


class ViewReply(Lenient, frozen=True):
    """A view."""

    view: int
    root: int
    created: int
    created_wall_ns: int
    origin: int
    """The view that it falls through to; -1: none."""
    origin_version: int
    parent_view: int
    """(parent_view, parent, name): the entry that leads to it; -1, 0, b'' when there is none."""
    parent: int
    name: bytes
    replaces: int
    """The view whose place it took; -1: none."""
    dead: int
    """Version of its deletion; 0 while it lives."""
    depth: int
    """Origins below it."""
    entries: int
    size_bytes: int
    """Of all it shows (usage of its root)."""
    path: bytes = b""
    """Where it is, from the root of the live tree; empty where nothing leads to it."""
    origin_path: bytes = b""
    """Where that which it was copied from is now; empty where nothing leads there any more."""
    identity: tuple[int, int] = (0, 0)
    """Of its root, as of snapshots: its own, or after rollbacks that of the directory before."""


class ViewsReply(Lenient, frozen=True, tag=19):
    """A page."""

    rows: tuple[ViewReply, ...]
    more: bool
