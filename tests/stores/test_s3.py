"""What is special to S3: credentials, buckets, servers that fail, servers that ignore ranges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aioboto3
import pytest

from nokv.errors import (
    InvalidArgument,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreDenied,
    ObjectStoreError,
    ObjectStoreUnavailable,
)
from nokv.objects.port import ObjectStore
from nokv.objects.retry import RetryingStore, RetryPolicy
from nokv.objects.s3 import S3Store
from nokv.testing.ports import free_ports
from nokv.testing.s3server import S3Server, S3ServerError

pytestmark = pytest.mark.s3

CALLS = ("put", "get", "head", "list", "delete", "ensure_bucket", "abort_stale")


def call(store: ObjectStore, operation: str) -> object:
    arguments: dict[str, tuple[object, ...]] = {
        "put": ("name", b"data"),
        "get": ("name",),
        "head": ("name",),
        "list": ("",),
        "delete": (["name"],),
        "ensure_bucket": (),
        "abort_stale": ("", 1),
    }
    return getattr(store, operation)(*arguments[operation])


def bucket_name() -> str:
    return f"bucket-{secrets.token_hex(6)}"


def expect(
    store: S3Store, error: type[ObjectStoreError], operations: tuple[str, ...] = CALLS
) -> list[ObjectStoreError]:
    """Make each call, which must raise exactly `error` and say which call it was."""

    async def main() -> list[ObjectStoreError]:
        found = []
        try:
            for operation in operations:
                with pytest.raises(error) as caught:
                    await call(store, operation)  # type: ignore[misc]
                assert type(caught.value) is error
                assert operation in caught.value.message
                found.append(caught.value)
        finally:
            await store.close()
        return found

    return asyncio.run(main())


def test_wrong_keys_are_denied(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 8)
    for found in expect(S3Store(bucket_name(), endpoint=s3.endpoint), ObjectStoreDenied):
        assert "credentials" in found.hint


def test_no_keys_are_denied(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in s3.environment:
        if "METADATA" not in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    expect(S3Store(bucket_name(), endpoint=s3.endpoint), ObjectStoreDenied)


def test_keys_come_from_a_profile_too(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in s3.environment:
        if "METADATA" not in name:
            monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[there]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "there")

    async def main() -> None:
        store = S3Store(bucket_name(), endpoint=s3.endpoint, region="eu-central-1")
        await store.ensure_bucket()
        await store.put("x", b"y")
        assert await store.get("x") == b"y"
        assert len((await store.list("")).objects) == 1
        await store.close()

    asyncio.run(main())


def test_a_server_that_is_not_there_is_unavailable(s3: S3Server) -> None:
    assert s3.endpoint
    store = S3Store(bucket_name(), endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    for found in expect(store, ObjectStoreUnavailable):
        assert "endpoint" in found.hint


def test_a_bucket_that_is_not_there_is_no_missing_object(s3: S3Server) -> None:
    name = bucket_name()
    operations = ("put", "get", "list", "delete", "abort_stale")
    for found in expect(S3Store(name, endpoint=s3.endpoint), ObjectStoreError, operations):
        assert f"there is no bucket {name}" in found.message


@contextmanager
def answering(status: int, code: str = "", body: bytes = b"") -> Iterator[str]:
    """Serve one answer to whatever is asked, and yield the endpoint."""
    text = body or (f"<Error><Code>{code}</Code></Error>".encode() if code else b"")

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 02:05:44 GMT")
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(ConnectionError):  # the client may refuse the rest
                    self.wfile.write(text)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - http.server's

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (503, "SlowDown", ObjectStoreUnavailable),
        (500, "InternalError", ObjectStoreUnavailable),
        (429, "TooManyRequests", ObjectStoreUnavailable),
        (403, "AccessDenied", ObjectStoreDenied),
        (400, "InvalidRequest", ObjectStoreError),
        (501, "NotImplemented", ObjectStoreError),
    ],
)
def test_answers_become_typed_errors(
    s3: S3Server, status: int, code: str, error: type[ObjectStoreError]
) -> None:
    assert s3.endpoint
    with answering(status, code) as endpoint:
        expect(S3Store(bucket_name(), endpoint=endpoint), error)


def test_an_object_larger_than_any_block_is_not_read(s3: S3Server) -> None:
    assert s3.endpoint
    big = b"x" * (9 * 1024 * 1024)
    with answering(200, body=big) as endpoint:
        store = S3Store(bucket_name(), endpoint=endpoint)

        async def main() -> None:
            with pytest.raises(ObjectCorrupt, match="are no block"):
                await store.get("name")
            with pytest.raises(ObjectCorrupt, match="more than a block"):
                await store.get("name", 1, len(big) - 1)
            await store.close()

        asyncio.run(main())


def test_a_server_that_ignores_ranges_gives_an_error_not_bytes(s3: S3Server) -> None:
    async def main(endpoint: str) -> None:
        store = S3Store(bucket_name(), endpoint=endpoint)
        with pytest.raises(ObjectStoreError, match="does not read ranges"):
            await store.get("name", 2, 4)
        await store.close()

    assert s3.endpoint
    with answering(200, body=b"0123456789") as endpoint:
        asyncio.run(main(endpoint))


def test_a_silent_server_meets_the_deadline(s3: S3Server) -> None:
    assert s3.endpoint

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            policy = RetryPolicy(attempts=2, deadline_s=0.4, attempt_deadline_s=0.2)
            store = RetryingStore(S3Store(bucket_name(), endpoint=endpoint), policy)
            for operation in CALLS:
                if operation == "delete":
                    failed = await store.delete(["name"])
                    assert list(failed) == ["name"]
                    assert isinstance(failed["name"], ObjectStoreUnavailable)
                    continue
                with pytest.raises(ObjectStoreUnavailable, match="no answer in time"):
                    await call(store, operation)  # type: ignore[misc]
            await store.close()

    asyncio.run(main())


def test_a_server_that_comes_back_is_found_again(tmp_path: Path, s3: S3Server) -> None:
    assert s3.endpoint
    with S3Server(tmp_path, keys=(s3.access_key, s3.secret_key)) as server:

        async def main() -> None:
            raw = S3Store("bucket", endpoint=server.endpoint)
            stopped = asyncio.Event()

            async def restart(_: float) -> None:
                if not stopped.is_set():
                    stopped.set()
                    server.start()

            store = RetryingStore(raw, sleep=restart)
            await store.ensure_bucket()
            await store.put("x", b"before")
            server.stop()
            assert await store.get("x") == b"before"
            assert stopped.is_set()
            await store.close()

        asyncio.run(main())


def test_old_multipart_uploads_are_aborted(s3: S3Server) -> None:
    bucket = bucket_name()

    async def main() -> None:
        store = S3Store(bucket, prefix="mine", endpoint=s3.endpoint)
        await store.ensure_bucket()
        async with aioboto3.Session().client("s3", endpoint_url=s3.endpoint) as client:
            others = ["mine/three", "other/a/four"]
            for key in ("mine/a/one", "mine/a/two", *others):
                await client.create_multipart_upload(Bucket=bucket, Key=key)
            assert await store.abort_stale("a/", 1) == 0
            assert await store.abort_stale("a/", 2**62) == 2
            assert await store.abort_stale("a/", 2**62) == 0
            left = await client.list_multipart_uploads(Bucket=bucket)
            assert [row["Key"] for row in left["Uploads"]] == others
        await store.close()

    asyncio.run(main())


def test_prefixes_do_not_see_each_other(s3: S3Server) -> None:
    bucket = bucket_name()

    async def main() -> None:
        one = S3Store(bucket, prefix="one", endpoint=s3.endpoint)
        two = S3Store(bucket, prefix="two/", endpoint=s3.endpoint)
        plain = S3Store(bucket, endpoint=s3.endpoint)
        await one.ensure_bucket()
        await one.put("x", b"1")
        await two.put("x", b"2")
        assert await one.get("x") == b"1"
        assert [info.name for info in (await plain.list("")).objects] == ["one/x", "two/x"]
        await two.delete(["x"])
        assert await one.get("x") == b"1"
        with pytest.raises(ObjectMissing):
            await two.get("x")
        for store in (one, two, plain):
            await store.close()

    asyncio.run(main())


def test_a_deleted_object_read_by_range_is_missing(s3: S3Server) -> None:
    async def main() -> None:
        store = S3Store(bucket_name(), endpoint=s3.endpoint)
        await store.ensure_bucket()
        await store.put("x", b"0123456789")
        assert await store.get("x", 2, 4) == b"2345"
        await store.delete(["x"])
        with pytest.raises(ObjectMissing):
            await store.get("x", 2, 4)
        await store.put("x", b"012")
        with pytest.raises(ObjectCorrupt):
            await store.get("x", 5, 4)
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("bucket", ["", "A", "a", "under_score", "a/b", "x" * 64, "../up"])
def test_what_is_no_bucket_name_is_refused(bucket: str) -> None:
    with pytest.raises(InvalidArgument):
        S3Store(bucket)


@pytest.mark.parametrize("argument", [{"endpoint": "ftp://x"}, {"prefix": "../x"}])
def test_what_is_no_location_is_refused(argument: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        S3Store("bucket", **argument)  # type: ignore[arg-type]


def test_the_s3_libraries_are_imported_only_when_used() -> None:
    code = (
        "import sys, nokv.objects.s3, nokv.objects.open, nokv.objects.upload, nokv.objects.read\n"
        "heavy = {'aioboto3', 'boto3', 'botocore', 'aiobotocore', 'obstore', 'lmdb', 'uvloop'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_keys_that_expire_are_asked_for_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in s3.environment:
        if "METADATA" not in name:
            monkeypatch.delenv(name)
    keys = {
        "Version": 1,
        "AccessKeyId": s3.access_key,
        "SecretAccessKey": s3.secret_key,
        "Expiration": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    (tmp_path / "config").write_text(
        f"[default]\nregion = eu-west-1\ncredential_process = cat {tmp_path}/keys.json\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    async def main() -> None:
        store = S3Store(bucket_name(), endpoint=s3.endpoint)
        await store.ensure_bucket()
        await store.put("x", b"y")
        given = await store._credentials()
        assert given["access_key_id"] == s3.access_key
        assert given["expires_at"] is not None
        # Before the session's own refresh, ten minutes before they expire, at the latest.
        left = given["expires_at"] - datetime.now(UTC)
        assert timedelta(minutes=5) < left < timedelta(minutes=10)
        await store.close()

    asyncio.run(main())


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = S3Server(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(S3ServerError, match="address already in use"):
            server.start()
