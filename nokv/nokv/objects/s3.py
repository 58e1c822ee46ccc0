"""The object store in an S3 bucket.

Block PUT and GET go through obstore (Rust), administration through aioboto3, both with the
credentials that one aioboto3 session finds in the usual chain (environment, profile, container,
instance). DESIGN.md has the measurement behind the split. Neither library retries: `retry` does,
the same way for every store.

Both libraries are imported when the first call needs them: aioboto3 takes half a second.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from nokv.errors import (
    InvalidArgument,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreDenied,
    ObjectStoreError,
    ObjectStoreUnavailable,
)
from nokv.objects.port import (
    DELETE_NAMES_MAX,
    LIST_NAMES_MAX,
    OBJECT_BYTES_MAX,
    Data,
    ObjectInfo,
    Page,
    check_name,
    check_prefix,
)

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential
    from obstore.store import S3Store as Obstore

_Untyped: TypeAlias = Any
"""aioboto3 and botocore have no types."""

REGION_DEFAULT = "us-east-1"

CREDENTIAL_TTL = timedelta(minutes=9)
"""How long obstore may use temporary credentials before it asks again. The session hands out none
with less than ten minutes left (botocore's mandatory refresh)."""

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_STATUS = re.compile(r"status code: (\d{3})")
_PASSING_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable"}
    | {"Throttling", "ThrottlingException", "OperationAborted"}
)
_DENIED_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
    | {"Forbidden", "AllAccessDisabled", "AccountProblem", "TokenRefreshRequired"}
)
_DENIED_CLASSES = frozenset(
    {"PermissionDeniedError", "UnauthenticatedError"}  # obstore
    | {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}  # botocore
    | {"ProfileNotFound", "TokenRetrievalError", "SSOError", "UnauthorizedSSOTokenError"}
)
_PASSING_CLASSES = frozenset(
    {"GenericError", "HTTPClientError", "ResponseStreamingError", "ClientError"}
    | {"ConnectionError", "OSError", "TimeoutError"}
)
_LIBRARY_CLASSES = frozenset({"BaseError", "BotoCoreError"})


class S3Store:
    """An `ObjectStore` in a bucket, or below a prefix of one.

    Belongs to the event loop that uses it first, and does not survive a fork.

    Args:
        bucket: the bucket's name.
        prefix: what the keys of all objects start with; "" or components joined by "/".
        endpoint: URL of an S3-compatible server; "" for AWS.
        region: "" for what the AWS configuration of this process says, else us-east-1.
        request_timeout_s: of one HTTP request.

    Raises:
        InvalidArgument: bucket, prefix or endpoint cannot be one.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint: str = "",
        region: str = "",
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        if _BUCKET.fullmatch(bucket) is None:
            raise InvalidArgument(f"{bucket[:80]!r} is not the name of an S3 bucket")
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise InvalidArgument(f"S3 endpoint {endpoint[:80]!r} is no http or https URL")
        self.bucket = bucket
        self.endpoint = endpoint
        self._prefix = check_prefix(prefix.rstrip("/") + "/") if prefix else ""
        self._region = region
        self._request_timeout_s = request_timeout_s
        self._opening = asyncio.Lock()
        self._exit = AsyncExitStack()
        self._session: _Untyped = None  # aioboto3.Session
        self._administration: _Untyped = None  # its S3 client
        self._blocks: Obstore | None = None
        self._obstore: _Untyped = None  # the obstore module
        self._ranges_in_blocks = True
        """Whether obstore can read ranges here: it insists on status 206, which some servers
        (rclone 1.75, older gofakes3) do not send. Then aioboto3 reads the ranges."""

    # ------------------------------------------------------------ blocks

    async def put(self, name: str, data: Data) -> None:
        """Store an object with one PutObject."""
        key = self._key(name)
        assert len(data) <= OBJECT_BYTES_MAX
        blocks = self._blocks or await self._open_blocks()
        try:
            await self._obstore.put_async(blocks, key, data, use_multipart=False)
        except Exception as error:
            raise self._typed("put", name, error) from error

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the range with one GetObject."""
        assert offset >= 0
        assert length is None or length > 0
        key = self._key(name)
        blocks = self._blocks or await self._open_blocks()
        try:
            if offset == 0 and length is None:
                return await self._get_whole(blocks, name, key)
            if length is None:
                length = await self._length(name) - offset
                if length <= 0:
                    raise ObjectCorrupt(f"get {name}: it has no bytes from {offset}")
            data = await self._get_range(blocks, name, key, offset, length)
        except ObjectStoreError:
            raise
        except Exception as error:
            raise self._typed("get", name, error) from error
        if len(data) != length:
            raise ObjectCorrupt(f"get {name}: {len(data)} of {length} bytes at {offset}")
        return data

    async def _get_whole(self, blocks: Obstore, name: str, key: str) -> bytes:
        found = await self._obstore.get_async(blocks, key)
        size = found.range[1]
        if size > OBJECT_BYTES_MAX:
            raise ObjectCorrupt(f"get {name}: {size} bytes are no block")
        return bytes(await found.bytes_async())

    async def _get_range(
        self, blocks: Obstore, name: str, key: str, offset: int, length: int
    ) -> bytes:
        if length > OBJECT_BYTES_MAX:
            raise ObjectCorrupt(f"get {name}: {length} bytes are more than a block has")
        if self._ranges_in_blocks:
            try:
                return bytes(
                    await self._obstore.get_range_async(blocks, key, start=offset, length=length)
                )
            except self._obstore.exceptions.GenericError as error:
                if "NotPartial" not in str(error):
                    raise
                self._ranges_in_blocks = False
        client = self._administration or await self._open_administration()
        found = await client.get_object(
            Bucket=self.bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}"
        )
        async with found["Body"] as body:
            if not found.get("ContentRange", "").startswith(f"bytes {offset}-"):
                raise ObjectStoreError(f"get {name}: the server does not read ranges")
            return bytes(await body.read())

    async def _length(self, name: str) -> int:
        return (await self.head(name)).length

    async def head(self, name: str) -> ObjectInfo:
        """Return the object's length and time."""
        key = self._key(name)
        blocks = self._blocks or await self._open_blocks()
        try:
            found = await self._obstore.head_async(blocks, key)
        except Exception as error:
            raise self._typed("head", name, error) from error
        return ObjectInfo(name, found["size"], _ns(found["last_modified"]))

    # ------------------------------------------------------------ administration

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Return a page with one ListObjectsV2."""
        check_prefix(prefix)
        assert 1 <= limit <= LIST_NAMES_MAX
        request = {"Bucket": self.bucket, "Prefix": self._prefix + prefix, "MaxKeys": limit}
        if after:
            request["StartAfter"] = self._prefix + after
        try:
            client = self._administration or await self._open_administration()
            reply = await client.list_objects_v2(**request)
        except Exception as error:
            raise self._typed("list", prefix, error) from error
        objects = tuple(
            ObjectInfo(row["Key"].removeprefix(self._prefix), row["Size"], _ns(row["LastModified"]))
            for row in reply.get("Contents", ())
        )
        return Page(objects, more=bool(reply["IsTruncated"]) and bool(objects))

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Delete with one DeleteObjects."""
        assert len(names) <= DELETE_NAMES_MAX
        keys = [{"Key": self._key(name)} for name in names]
        if not keys:
            return {}
        try:
            client = self._administration or await self._open_administration()
            reply = await client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True}
            )
        except Exception as error:
            raise self._typed("delete", f"{len(names)} objects", error) from error
        failed: dict[str, ObjectStoreError] = {}
        for row in reply.get("Errors", ()):
            name = row.get("Key", "").removeprefix(self._prefix)
            code = row.get("Code", "")
            if code not in ("NoSuchKey", "NoSuchVersion"):
                text = f"delete {name}: {code} {row.get('Message', '')}"
                failed[name] = _by_code(code, 0)(text)
        return failed

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there and may be used."""
        try:
            client = self._administration or await self._open_administration()
            if await self._is_there(client):
                return
            region = client.meta.region_name
            request: dict[str, object] = {"Bucket": self.bucket}
            if region != REGION_DEFAULT and not self.endpoint:
                request["CreateBucketConfiguration"] = {"LocationConstraint": region}
            try:
                await client.create_bucket(**request)
            except Exception as error:
                # Somebody else was quicker: of the same owner, or the next call is refused.
                if _code(error)[0] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
                await client.head_bucket(Bucket=self.bucket)
        except ObjectStoreError:
            raise
        except Exception as error:
            raise self._typed("ensure_bucket", self.bucket, error) from error

    async def _is_there(self, client: _Untyped) -> bool:
        try:
            await client.head_bucket(Bucket=self.bucket)
        except Exception as error:
            if _code(error)[1] == 404:
                return False
            raise
        return True

    async def abort_stale(self, prefix: str, before_ns: int) -> int:
        """Abort the multipart uploads below `prefix` that were begun before `before_ns`."""
        check_prefix(prefix)
        aborted = 0
        try:
            client = self._administration or await self._open_administration()
            request: dict[str, object] = {"Bucket": self.bucket, "Prefix": self._prefix + prefix}
            while True:
                try:
                    reply = await client.list_multipart_uploads(**request)
                except Exception as error:
                    if _code(error)[0] == "NoSuchUpload":  # gofakes3: there are none
                        return aborted
                    raise
                for row in reply.get("Uploads", ()):
                    if _ns(row["Initiated"]) < before_ns:
                        await self._abort(client, row["Key"], row["UploadId"])
                        aborted += 1
                if not reply.get("IsTruncated"):
                    return aborted
                request["KeyMarker"] = reply["NextKeyMarker"]
                request["UploadIdMarker"] = reply["NextUploadIdMarker"]
        except ObjectStoreError:
            raise
        except Exception as error:
            raise self._typed("abort_stale", prefix, error) from error

    async def _abort(self, client: _Untyped, key: str, upload: str) -> None:
        try:
            await client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except Exception as error:
            if _code(error)[0] != "NoSuchUpload":
                raise

    async def close(self) -> None:
        """Close the connections."""
        self._blocks = None
        self._administration = None
        await self._exit.aclose()

    # ------------------------------------------------------------ opening

    async def _open_session(self) -> _Untyped:
        if self._session is None:
            module = await asyncio.to_thread(importlib.import_module, "aioboto3")
            self._session = module.Session(region_name=self._region or None)
        return self._session

    async def _open_blocks(self) -> Obstore:
        async with self._opening:
            if self._blocks is None:
                session = await self._open_session()
                self._obstore = await asyncio.to_thread(importlib.import_module, "obstore")
                await asyncio.to_thread(importlib.import_module, "obstore.exceptions")
                store = await asyncio.to_thread(importlib.import_module, "obstore.store")
                config: S3Config = {
                    "region": session.region_name or REGION_DEFAULT,
                    "virtual_hosted_style_request": not self.endpoint and "." not in self.bucket,
                    "unsigned_payload": _is_protected(self.endpoint),
                }
                if self.endpoint:
                    config["endpoint"] = self.endpoint
                self._blocks = store.S3Store(
                    self.bucket,
                    config=config,
                    credential_provider=self._credentials,
                    client_options={
                        "allow_http": True,
                        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                        "timeout": timedelta(seconds=self._request_timeout_s),
                    },
                    retry_config={"max_retries": 0},
                )
            return self._blocks

    async def _credentials(self) -> S3Credential:
        """Give obstore the session's credentials, refreshed by the session where they expire."""
        found = await self._session.get_credentials()
        if found is None:
            raise LookupError("no AWS credentials")
        frozen = await found.get_frozen_credentials()
        # What the chain refreshes by itself expires; keys from files and the environment do not.
        refreshed = hasattr(found, "_expiry_time") or frozen.token is not None
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_TTL if refreshed else None,
        }

    async def _open_administration(self) -> _Untyped:
        async with self._opening:
            if self._administration is None:
                session = await self._open_session()
                config = importlib.import_module("botocore.config").Config(
                    signature_version="s3v4",
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=self._request_timeout_s,
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    max_pool_connections=32,
                    # A checksum of the whole object comes with each of its ranges from rclone.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if self.endpoint else "auto"},
                )
                self._administration = await self._exit.enter_async_context(
                    session.client(
                        "s3",
                        endpoint_url=self.endpoint or None,
                        region_name=session.region_name or REGION_DEFAULT,
                        config=config,
                    )
                )
            return self._administration

    # ------------------------------------------------------------ names and errors

    def _key(self, name: str) -> str:
        return check_name(self._prefix + name)

    def _typed(self, operation: str, name: str, error: Exception) -> ObjectStoreError:
        """Return our error for one of a library's."""
        where = f"{operation} {name}"
        code, status = _code(error)
        if code == "NoSuchBucket":
            return ObjectStoreError(
                f"{where}: there is no bucket {self.bucket}", hint="create it, or check its name"
            )
        if status == 404 and operation in ("get", "head", "put"):
            return ObjectMissing(f"{where}: no such object")
        if status == 416:
            return ObjectCorrupt(f"{where}: it is shorter than the range")
        known = _by_code(code, status) if status else _by_class(error)
        if known is None:
            raise error  # a defect, not a failure of the store
        return known(f"{where}: {_text(error)}")


def _is_protected(endpoint: str) -> bool:
    """Return whether nothing can change bytes on their way: TLS, or they do not leave the host.

    Otherwise their SHA-256 is signed with the request, and the server checks it.
    """
    url = urlsplit(endpoint)
    return url.scheme != "http" or url.hostname in ("localhost", "127.0.0.1", "::1")


def _ns(moment: datetime) -> int:
    """Return ns since 1970, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000


def _code(error: Exception) -> tuple[str, int]:
    """Return (S3 error code, HTTP status) of a library's error; ("", 0) where it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code, int(status or (code if code.isdecimal() else 0))
    text = str(error)
    found = re.search(r"<Code>(\w+)</Code>", text)
    number = _STATUS.search(text)
    status = int(number[1]) if number else 404 if isinstance(error, FileNotFoundError) else 0
    return found[1] if found else "", status


def _by_code(code: str, status: int) -> type[ObjectStoreError]:
    """Return the class of an answer that the server gave."""
    if code in _DENIED_CODES or status in (401, 403):
        return ObjectStoreDenied
    if code in _PASSING_CODES or status in (408, 429) or (status >= 500 and status != 501):
        return ObjectStoreUnavailable
    return ObjectStoreError


def _by_class(error: Exception) -> type[ObjectStoreError] | None:
    """Return the class of a failure without an answer; None for an error that is no library's.

    By the names of the classes, because the libraries may not be imported.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _DENIED_CLASSES:
        return ObjectStoreDenied
    if names & _PASSING_CLASSES:
        return ObjectStoreUnavailable
    return ObjectStoreError if names & _LIBRARY_CLASSES else None


def _text(error: Exception) -> str:
    """Return the first line of a library's message: obstore appends its innards."""
    return (str(error).splitlines() or [type(error).__name__])[0]
