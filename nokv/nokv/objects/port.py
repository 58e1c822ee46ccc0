"""The object-store port: all that NoKV asks of a place that keeps immutable objects.

Three implementations pass one conformance suite: a local directory (`local`), memory (`memory`)
and S3 (`s3`). `retry` and `faults` wrap any of them. Every operation has a name, in `OPERATIONS`,
by which a test can fail exactly that one.

Objects are written once and never changed: a second `put` of a name carries the same bytes (it is
a retry), so every operation may be repeated. Nothing here rests on the store refusing a second
writer of a name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from nokv.errors import InvalidArgument, ObjectStoreError

Operation = Literal["put", "get", "head", "list", "delete", "ensure_bucket", "abort_stale"]

OPERATIONS: tuple[Operation, ...] = (
    "put",
    "get",
    "head",
    "list",
    "delete",
    "ensure_bucket",
    "abort_stale",
)
"""The name of every operation, for fault injection and metrics."""

DELETE_NAMES_MAX = 1000
"""Names of one bulk delete (S3 DeleteObjects)."""

LIST_NAMES_MAX = 1000
"""Names of one page of a listing (S3 ListObjectsV2)."""

NAME_BYTES_MAX = 1024
"""Longest object name, the store's prefix included (S3)."""

OBJECT_BYTES_MAX = 8 * 1024 * 1024
"""Largest object: twice a block, so that a foreign object can never fill memory."""

Data: TypeAlias = bytes | bytearray | memoryview
"""What `put` takes. A memoryview must be contiguous bytes."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class ObjectInfo(NamedTuple):
    """What a listing says of one object."""

    name: str
    length: int
    """Bytes."""
    modified_ns: int
    """When it was stored, ns since 1970, by the store's clock and in its resolution."""


class Page(NamedTuple):
    """A page of a listing, in the order of the names' bytes."""

    objects: tuple[ObjectInfo, ...]
    more: bool
    """Whether names follow the last one. A page with `more` is never empty."""


class ObjectStore(Protocol):
    """A flat map from names to immutable objects.

    Names are those that `check_name` accepts. Errors, all of them `ObjectStoreError`, name the
    operation and the object:

    - `ObjectMissing`: the object does not exist,
    - `ObjectCorrupt`: it is shorter than the range asked for, or larger than any object,
    - `ObjectStoreDenied`: no credentials, wrong ones, or no permission,
    - `ObjectStoreUnavailable`: a failure that may pass: it is the one class worth a retry,
    - plain `ObjectStoreError`: a failure that will not pass by itself (no bucket, full disk).
    """

    async def put(self, name: str, data: Data) -> None:
        """Store an object, durably once this returns; nobody ever sees a part of it.

        A put that was cancelled, timed out or failed may still have stored the object.
        """
        ...

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset`, or the whole object from `offset` on.

        `length` is at least 1. A range that the object does not have is `ObjectCorrupt`, because
        lengths are recorded where names are.
        """
        ...

    async def head(self, name: str) -> ObjectInfo:
        """Return what a listing would say of the object."""
        ...

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Return at most `limit` objects whose names start with `prefix` and follow `after`."""
        ...

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Delete up to DELETE_NAMES_MAX objects, durably; one that is not there is deleted.

        Return the objects that may still be there, each with the reason: empty when all are gone.
        """
        ...

    async def ensure_bucket(self) -> None:
        """Create the bucket (the directory) unless it is there; check that it can be used."""
        ...

    async def abort_stale(self, prefix: str, before_ns: int) -> int:
        """Remove the remains of uploads begun before `before_ns` (ns since 1970).

        Multipart uploads on S3 of objects whose names start with `prefix`, by whatever program:
        nothing here makes any. In a directory the temporary files of this module, which have no
        names yet. Return how many there were.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. The store must not be used afterwards."""
        ...


def check_name(name: str) -> str:
    """Return `name` if any store can hold it.

    A name is components joined by '/', each of letters, digits, '.', '_' and '-', not starting
    with '.', of at most NAME_BYTES_MAX bytes in all: safe as a path below a directory, as an S3
    key and in a URL.

    Raises:
        InvalidArgument: it is not such a name.
    """
    if len(name) > NAME_BYTES_MAX or _NAME.fullmatch(name) is None:
        raise InvalidArgument(f"object name {name[:80]!r} is not valid")
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` if names can start with it: the start of a name, possibly empty.

    Raises:
        InvalidArgument: no name starts so.
    """
    if prefix and not prefix.endswith("/"):
        return check_name(prefix)
    if prefix:
        check_name(prefix[:-1])
    return prefix
