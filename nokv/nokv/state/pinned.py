"""Reading at a pinned version: the current record where it is old enough, else history's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

from nokv.errors import VersionNotPinned
from nokv.state.branches import PRESENT, VERSIONED, Levels, Row, get_at, scan_at
from nokv.state.families import Family
from nokv.state.records import View


class Rows(Protocol):
    """What rows are read from, also a store by itself."""

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return a value or None."""
        ...

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[Row]:
        """Yield rows of [start, end) in order; of versioned families these lie in one view."""
        ...


class Source(Rows, Protocol):
    """What records are read from: the store, an entry's transaction, or a pinned version."""

    at_version: int
    """Of what is shown; PRESENT for the present."""

    def view(self, number: int) -> View | None:
        """Return a view's record; None for one that never was, or is gone."""
        ...

    def enter(self, number: int) -> None:
        """Say that a walk comes into a view. VersionNotPinned where nothing holds the version."""
        ...


class Shard(Levels, Source, Protocol):
    """The present of a shard, with the views one by one."""

    def pins(self, view: int) -> tuple[int, ...]:
        """Return the versions at which the view is pinned, ascending."""
        ...

    def pin_count(self, view: int) -> int:
        """Return how many pins the view has: one version may have several."""
        ...

    def readable(self, view: int, version: int) -> bool:
        """Whether a pin that is not over holds the view at the version."""
        ...


class PinnedSource:
    """A `Source` that shows the versioned families as they were at `version`.

    Right only while a pin or lease holds that version in each view that is read: `enter` checks it
    where a walk comes in, unless `leased` says that a lease does.
    """

    def __init__(self, shard: Shard, version: int, *, leased: bool = False) -> None:
        assert 0 <= version < PRESENT, f"version {version}"
        self.shard = shard
        self.at_version = version
        self.view = shard.view
        self._leased = leased

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value of a record at the version, or None."""
        if family not in VERSIONED:
            return self.shard.get(family, key)
        return get_at(self.shard, family, key, self.at_version)

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[Row]:
        """Yield the records of [start, end), which lie in one view, at the version."""
        if family not in VERSIONED:
            return self.shard.scan(family, start, end, reverse=reverse)
        return scan_at(self.shard, family, start, end, self.at_version, reverse=reverse)

    def enter(self, number: int) -> None:
        """Raise VersionNotPinned for a view that no pin holds at the version."""
        if not self._leased and not self.shard.readable(number, self.at_version):
            message = f"view {number} is not pinned at version {self.at_version}"
            raise VersionNotPinned(message)


def shard_of(source: Source) -> Shard:
    """Return the present that a source shows, or shows an older version of."""
    return source.shard if isinstance(source, PinnedSource) else cast("Shard", source)
