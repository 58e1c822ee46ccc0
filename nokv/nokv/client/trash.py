"""The trash: a name moves there at once, with all below it, and comes back or goes after a time.

What that means is said in docs/namespace.md (Trash).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nokv.client.arguments import check, checked_methods
from nokv.client.changes import ChangeHandle, Part
from nokv.client.options import expect, query
from nokv.client.paths import AnyPath, split
from nokv.errors import InvalidArgument, NotFound
from nokv.types.results import Made, Reaped
from nokv.types.trash import (
    TRASH_EMPTY_MAX,
    TRASH_KEEP_NS_MAX,
    EmptyTrash,
    KeepTrash,
    ListTrash,
    RestoreTrash,
    Trash,
    Trashed,
    TrashPage,
    TrashRow,
)
from nokv.types.values import At, Attr

Id = tuple[int, int]
"""Of an entry: the view that it lies in, and its number there."""


def id_of(entry: Trashed | TrashRow | Id) -> Id:
    """Return the id of an entry, as `put` and `list` answer them. Raises InvalidArgument."""
    check("trash", "entry", "Trashed | TrashRow | Id", entry)
    return entry if isinstance(entry, tuple) else (entry.view, entry.trash)


@checked_methods
class TrashCan(Part):
    """What was removed and can come back: `fs.trash`."""

    async def put(self, path: AnyPath, *, missing_ok: bool = False) -> Trashed | None:
        """Move a name, with all below it, out of sight: one change, of any size.

        It does not count any more for the directories that it was in. It goes for good after the
        retention of the volume, a week unless `keep` said otherwise.

        Args:
            path: of a file or directory.
            missing_ok: None is returned where there is nothing.
        """
        parent, name = split(path)
        try:
            return expect((await self._do(Trash(At(0, 1, parent), name))).value, Trashed)
        except NotFound:
            if missing_ok:
                return None
            raise

    async def list(self) -> tuple[TrashRow, ...]:
        """Return what the caller put there or owns, everything for root; by view and age."""
        rows: tuple[TrashRow, ...] = ()
        more, view, after = True, 0, 0
        while more:
            _, value = await query(self._core, self._options, ListTrash(view, after))
            page = expect(value, TrashPage)
            rows += page.rows
            more, view, after = page.more, page.after_view, page.after
        return rows

    async def restore(self, entry: Trashed | TrashRow | Id, path: AnyPath | None = None) -> Attr:
        """Give an entry a name again, as it was: one change.

        Args:
            entry: as `put` or `list` answered it.
            path: where it goes, in the view that it was in; None: where it was.

        Raises:
            AlreadyExists: the name is taken by now.
            NotFound: the entry is gone, or the directory that it was in.
            CrossesView: `path` lies in another view.
        """
        parent, name = (None, b"") if path is None else split(path)
        where = None if parent is None else At(0, 1, parent)
        op = RestoreTrash(*id_of(entry), where, name)
        return expect((await self._do(op)).value, Made).attr

    async def empty(self, entries: Iterable[Trashed | TrashRow | Id] | None = None) -> int:
        """Remove entries for good, all that `list` shows by default; return how many it were."""
        ids = [id_of(entry) for entry in (await self.list() if entries is None else entries)]
        removed = 0
        for first in range(0, len(ids), TRASH_EMPTY_MAX):
            op = EmptyTrash(tuple(ids[first : first + TRASH_EMPTY_MAX]))
            more = True
            while more:  # a command ends so many views at most
                reply = expect((await self._do(op)).value, Reaped)
                removed, more = removed + reply.removed, reply.more
        return removed

    async def keep(self, keep_s: float) -> None:
        """Set for how long the volume keeps what is in its trash, also what is there already.

        Raises:
            NotPermitted: the caller is not root.
        """
        if not math.isfinite(keep_s) or not 0 <= keep_s <= TRASH_KEEP_NS_MAX / 1e9:
            message = f"a retention of {keep_s} s"
            raise InvalidArgument(message, hint="0 s to a hundred years")
        await self._do(KeepTrash(int(keep_s * 1e9)))


class TrashHandle(ChangeHandle):
    """Removals that can be taken back."""

    @property
    def trash(self) -> TrashCan:
        """What was removed and can come back: put, list, restore, empty, keep."""
        return TrashCan(self._core, self._options)
