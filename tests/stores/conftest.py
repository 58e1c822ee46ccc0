"""The three object stores, as fixtures: each test that takes `open_store` runs against all."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nokv.objects.local import LocalStore
from nokv.objects.memory import MemoryStore
from nokv.objects.port import ObjectStore
from nokv.objects.retry import RetryingStore
from nokv.objects.s3 import S3Store
from nokv.testing.s3server import S3Server, s3_server

OpenStore = Callable[[], ObjectStore]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Open a store that is empty at first; call it in the event loop that uses the store.

    A second call opens the same objects again.
    """
    if request.param == "local":
        return lambda: LocalStore(tmp_path / "objects")
    if request.param == "memory":
        memory = MemoryStore()
        return lambda: memory
    server = request.getfixturevalue("s3")
    bucket = f"bucket-{secrets.token_hex(6)}"
    # rclone answers 500 now and then when puts make the same directories at the same time.
    return lambda: RetryingStore(S3Store(bucket, prefix="some/where", endpoint=server.endpoint))
