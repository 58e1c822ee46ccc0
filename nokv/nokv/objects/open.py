"""From a volume record to its object store."""

from __future__ import annotations

from typing import Protocol

from nokv.errors import ConfigError
from nokv.objects.local import LocalStore
from nokv.objects.memory import MemoryStore
from nokv.objects.port import ObjectStore
from nokv.objects.retry import RetryingStore, RetryPolicy

KINDS = ("local", "s3", "memory")


class Location(Protocol):
    """The part of a volume record that says where its objects are."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        ...

    @property
    def endpoint(self) -> str:
        """URL of an S3-compatible server; "" for AWS."""
        ...

    @property
    def bucket(self) -> str:
        """Bucket, or the directory of a local store."""
        ...

    @property
    def prefix(self) -> str:
        """What the names of all objects in the bucket start with."""
        ...

    @property
    def region(self) -> str:
        """Region of the bucket; "" for the client's own."""
        ...


def open_store(location: Location, policy: RetryPolicy | None = None) -> RetryingStore:
    """Return the volume's store, with deadlines and retries. It connects when it is first used.

    Raises:
        ConfigError: a kind that this version does not know.
        InvalidArgument: a bucket, prefix or endpoint that cannot be one.
    """
    return RetryingStore(_open(location), policy)


def _open(location: Location) -> ObjectStore:
    if location.kind == "local":
        return LocalStore(location.bucket)
    if location.kind == "memory":
        return MemoryStore()
    if location.kind == "s3":
        from nokv.objects.s3 import S3Store

        return S3Store(
            location.bucket,
            prefix=location.prefix,
            endpoint=location.endpoint,
            region=location.region,
        )
    raise ConfigError(
        f"an object store of kind {location.kind!r} is unknown", hint=f"use one of {KINDS}"
    )
