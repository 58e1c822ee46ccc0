"""Handles that show what never changes: a pinned version, and a snapshot by its name."""

from __future__ import annotations

from typing import Final

from nokv.client.core import Core
from nokv.client.options import Options, find_snapshot
from nokv.client.paths import AnyPath, Components, components
from nokv.client.reads import ReadHandle, shown_path
from nokv.errors import NotFound, ReadOnly, SnapshotGone
from nokv.types.reads import PRESENT
from nokv.types.values import At
from nokv.types.views import SnapshotReply

CHANGES: Final = (
    "append",
    "bulk_create",
    "chmod",
    "chown",
    "clone",
    "copy",
    "copy_range",
    "create",
    "link",
    "lock",
    "mkdir",
    "mknod",
    "move",
    "patch",
    "publish",
    "publish_tree",
    "put",
    "put_file",
    "remove",
    "remove_tree",
    "removexattr",
    "rename",
    "replace",
    "revert",
    "rmdir",
    "rollback",
    "set_flags",
    "set_quota",
    "setxattr",
    "symlink",
    "truncate",
    "unlink",
    "utime",
    "write_bytes",
)
"""The methods of a client that change the namespace, or keep others from it."""


def refused(name: str) -> ReadOnly:
    """Return the error of a change through a handle that shows what never changes."""
    return ReadOnly(f"{name}: what this handle shows never changes")


class ReadOnlyHandle(ReadHandle):
    """Reads; whatever changes the namespace raises ReadOnly here."""


def _refuse(name: str) -> None:
    async def refuse(self: ReadOnlyHandle, *args: object, **kwargs: object) -> None:
        del self, args, kwargs
        raise refused(name)

    refuse.__name__ = name
    refuse.__doc__ = "Raise ReadOnly."
    setattr(ReadOnlyHandle, name, refuse)


# Not methods of their own, so that a type checker refuses them too.
for _name in CHANGES:
    _refuse(_name)


def _refuse_watch(self: ReadOnlyHandle, *args: object, **kwargs: object) -> None:
    del self, args, kwargs
    raise refused("watch")


setattr(ReadOnlyHandle, "watch", _refuse_watch)  # noqa: B010  its type is the one of a refusal


class PinnedView(ReadOnlyHandle):
    """The live tree as it was at one version: read-only, unchanging, until its block ends."""

    @property
    def version(self) -> int:
        """The version that it shows."""
        return self._options.at_version


class SnapshotView(ReadOnlyHandle):
    """What a snapshot shows, under the absolute paths that it had when it was made: read-only.

    The snapshot is looked up by the first call. Paths outside of the directory that it was made of
    are NotFound. `statfs` and events are those of the volume as it is.

    Raises:
        SnapshotGone: there is no such snapshot, or it was deleted or its lease ended meanwhile:
            never other bytes than those that it showed.
    """

    def __init__(self, core: Core, options: Options) -> None:
        super().__init__(core, options)
        self._found: SnapshotReply | None = None
        self._base: Components = ()

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return self._options.snapshot

    async def info(self) -> SnapshotReply:
        """Return the snapshot as it was when this handle first looked it up.

        Raises:
            SnapshotGone: there is none.
        """
        if self._found is None:
            options = self._options
            try:
                found = await find_snapshot(self._core, options, options.snapshot)
            except NotFound:
                message = f"there is no snapshot {options.snapshot!r}"
                raise SnapshotGone(message) from None
            if options.at_version not in (PRESENT, found.version):
                message = f"snapshot {options.snapshot!r} was deleted, and made anew"
                raise SnapshotGone(message)
            self._base = _plain(components(found.path))
            self._options = options._replace(at_version=found.version)
            self._found = found
        return self._found

    async def _at(self, path: AnyPath, *, follow: bool = True) -> At:
        found = self._found or await self.info()
        parts, base = components(path), self._base
        if parts[: len(base)] != base:
            wants_directory = parts[-1:] == (b".",)
            parts = _plain(parts) + ((b".",) if wants_directory else ())
            if parts[: len(base)] != base:
                message = f"snapshot {self.name!r} does not show {shown_path(path)}"
                raise NotFound(message, hint=f"it shows {shown_path(found.path)}")
        return At(found.view, found.inode, parts[len(base) :], follow)


def _plain(parts: Components) -> Components:
    return tuple(part for part in parts if part != b".")
