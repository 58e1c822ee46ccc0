"""An object store that takes no object once a session is over."""

from __future__ import annotations

from collections.abc import Sequence

from nokv.client.session import Session
from nokv.errors import ObjectStoreError
from nokv.objects.port import LIST_NAMES_MAX, Data, ObjectInfo, ObjectStore, Page


class GuardedStore:
    """Passes everything on, but starts no put unless the session is certainly alive.

    A put that began in time, its retries included, ends long before the collector's grace after
    the session's death does; one that began later might not.
    """

    def __init__(self, store: ObjectStore, session: Session) -> None:
        self._store = store
        self._session = session

    async def put(self, name: str, data: Data) -> None:
        """Store an object.

        Raises:
            SessionExpired: the session is over; nothing was stored.
        """
        self._session.check()
        await self._store.put(name, data)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of an object."""
        return await self._store.get(name, offset, length)

    async def head(self, name: str) -> ObjectInfo:
        """Return an object's length and time."""
        return await self._store.head(name)

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Return a page of a listing."""
        return await self._store.list(prefix, after, limit)

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Delete objects."""
        return await self._store.delete(names)

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""
        await self._store.ensure_bucket()

    async def abort_stale(self, prefix: str, before_ns: int) -> int:
        """Remove the remains of old uploads."""
        return await self._store.abort_stale(prefix, before_ns)

    async def close(self) -> None:
        """Do nothing: the store below is the client's."""
