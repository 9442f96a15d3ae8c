"""Objects in a bucket: `s3://bucket/key`, through the `minio` client. Generic S3 calls only.

Endpoint and credentials come from the environment: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL (neither: AWS itself),
AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or AWS_SHARED_CREDENTIALS_FILE; a private CA's
certificate by FIRSTSIGHT_S3_CA or AWS_CA_BUNDLE; FIRSTSIGHT_S3_ADDRESSING = path | virtual (default: virtual on AWS,
else path); FIRSTSIGHT_S3_RETRY_SECONDS, how long an outage is waited for (default 300).
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from itertools import zip_longest
from typing import BinaryIO, cast

from minio import Minio
from minio.commonconfig import CopySource
from minio.credentials.providers import AWSConfigProvider, Provider, StaticProvider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from trainer.errors import InputError, RunError
from trainer.storage.protocol import PIECE_BYTES, MissingObject, ObjectInfo
from trainer.storage.retries import Retries
from trainer.storage.s3_client import RetryingPool, S3Settings, settings_from_environment
from trainer.storage.s3_conditions import Allows, has_conditions, is_partial, put_claimed, put_if

PART_BYTES = 16 << 20
"""A long stream goes up in parts of 16 MiB: the most of it that is in memory, and what one retry sends again."""

_MAX_PARTS = 10_000  # S3's limit for one object
_log = logging.getLogger(__name__)
_UPLOADS = 3  # how often a stream that can be rewound is sent from its beginning


class S3Store:
    """Objects in the buckets of one endpoint. One client a process, made again after a fork."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._clients: dict[int, Minio] = {}
        self._buckets: set[str] = set()  # known to exist
        self._conditions: dict[str, bool] = {}  # by bucket: whether the server checks If-Match and If-None-Match

    @classmethod
    def from_environment(cls, uri: str) -> "S3Store":
        """This process's store for the environment as it is now; `uri` is named where a setting is missing."""
        return _store(settings_from_environment(uri))

    def get(self, uri: str) -> bytes:
        """The whole object. Raises MissingObject where there is none."""
        return b"".join(self.stream(uri))

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; fewer in the object is a RunError."""
        return b"".join(self.stream(uri, start, length))

    def stream(self, uri: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object, or `length` bytes of it from `start`, in pieces of 1 MiB; fewer in it is a RunError.

        A connection that breaks in mid-body is taken up where it broke, on the same version of the object.
        """
        bucket, key = _split(uri)
        end = None if length is None else start + length
        position, etag, retries = start, "", Retries(self._settings.retry_seconds)
        while position != end:
            with self._explained(uri):
                response = self._client.get_object(bucket, key, request_headers=_range_headers(position, end, etag))
            with closing(response):
                end = _check_range(uri, response, position, end)
                etag = response.headers.get("etag", "")
                try:
                    for piece in response.stream(PIECE_BYTES, decode_content=False):
                        position += len(piece)
                        retries.restart()
                        yield piece
                except (HTTPError, OSError) as error:
                    retries.wait(f"{uri}: reading broke off at byte {position} of {end}: {type(error).__name__}")
                else:
                    response.release_conn()

    def put_stream(self, uri: str, stream: BinaryIO, size: int | None = None) -> ObjectInfo:
        """Write all of `stream`, in parts where it is longer than one; a failed upload leaves no part behind."""
        bucket, key = _split(uri)
        part_bytes = PART_BYTES if size is None else max(PART_BYTES, -(-size // (_MAX_PARTS - 1)))
        begin = stream.tell() if stream.seekable() else None
        for upload in range(1, _UPLOADS + 1):
            source = _Source(stream, uri, size)
            try:
                with self._explained(uri):
                    length = -1 if size is None else size
                    result = self._client.put_object(
                        bucket, key, cast(BinaryIO, source), length, part_size=part_bytes, num_parallel_uploads=1
                    )
                break
            except _LostUploadError:
                if begin is None or upload == _UPLOADS:
                    raise
                stream.seek(begin)
        if source.count <= part_bytes:  # one PUT, whose checksum the server has compared
            return ObjectInfo(uri=uri, size=source.count, modified=self._now(), stamp=result.etag or "")
        info = self.head(uri)
        if info is None or info.size != source.count:
            raise RunError(
                f"{uri}: {source.count} bytes were sent, the store then held {info.size if info else 'no object'}: a second writer?"
            )
        return info

    def create(self, uri: str, data: bytes) -> bool:
        """Write `data` unless an object lies there already: of many who call it at once, one gets True."""
        return self._put_if(uri, data, {"If-None-Match": "*"}, lambda found: found is None)

    def replace(self, uri: str, data: bytes, stamp: str) -> bool:
        """Write `data` over the version of the object that has this stamp; False where it has another by now."""
        return self._put_if(uri, data, {"If-Match": f'"{stamp}"'}, lambda found: found is not None and found.etag == stamp)

    def _put_if(self, uri: str, data: bytes, condition: dict[str, str], allows: Allows) -> bool:
        bucket, key = _split(uri)
        with self._explained(uri):
            if self._has_conditions(bucket, key):
                return put_if(self._client, bucket, key, data, condition)
            return put_claimed(self._client, bucket, key, data, allows, self._now)

    def _has_conditions(self, bucket: str, key: str) -> bool:
        if bucket not in self._conditions:
            self._conditions[bucket] = has_conditions(self._client, bucket, key)
            if not self._conditions[bucket]:
                _log.warning("%s checks no conditions of writes: writers use claims, which are slower", self._settings.endpoint)
        return self._conditions[bucket]

    def copy(self, source_uri: str, target_uri: str) -> ObjectInfo:
        """Copy an object within the store, by the server itself; RunError where the copy has other bytes."""
        (bucket, key), (target_bucket, target_key) = _split(source_uri), _split(target_uri)
        with self._explained(source_uri):
            etag = self._client.stat_object(bucket, key).etag or ""
            if source_uri != target_uri:
                self._client.copy_object(target_bucket, target_key, CopySource(bucket, key, match_etag=etag))
        info = self.head(target_uri)
        if info is None or (info.stamp != etag and not self._are_equal(source_uri, target_uri)):
            raise RunError(f"{target_uri}: its bytes are not those of {source_uri}, which it was copied from; run the same command again")
        return info

    def _are_equal(self, uri: str, other: str) -> bool:
        pieces = zip_longest(self.stream(uri), self.stream(other))
        return all(one == two for one, two in pieces)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in the order of their URIs."""
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        with self._explained(prefix):
            items = self._client.list_objects(bucket, prefix=f"{key.rstrip('/')}/" if key else "", recursive=True)
            objects = [item for item in items if not item.is_dir and not _is_hidden(str(item.object_name))]
        for item in sorted(objects, key=lambda item: str(item.object_name)):  # SeaweedFS lists folder by folder
            modified = item.last_modified.timestamp() if item.last_modified else 0.0
            yield ObjectInfo(uri=f"s3://{bucket}/{item.object_name}", size=int(item.size or 0), modified=modified, stamp=item.etag or "")

    def holds(self, prefix: str) -> bool:
        """Whether any object lies below the folder `prefix`: one page of a listing."""
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        with self._explained(prefix):
            items = self._client.list_objects(bucket, prefix=f"{key.rstrip('/')}/" if key else "", recursive=True)
            return any(not item.is_dir and not is_partial(str(item.object_name)) for item in items)

    def delete(self, uri: str) -> None:
        """Remove the object; one that is not there is no error."""
        bucket, key = _split(uri)
        with suppress(MissingObject), self._explained(uri):
            self._client.remove_object(bucket, key)

    def sweep(self, prefix: str) -> None:
        """Nothing: an upload that was begun and never ended is no object, and its server removes it."""

    def head(self, uri: str) -> ObjectInfo | None:
        """Its size and time, or None where there is no such object."""
        bucket, key = _split(uri)
        try:
            with self._explained(uri):
                item = self._client.stat_object(bucket, key)
        except MissingObject:
            self._require_bucket(uri, bucket)  # the answer to HEAD has no body that tells a key from a bucket
            return None
        modified = item.last_modified.timestamp() if item.last_modified else 0.0
        return ObjectInfo(uri=uri, size=int(item.size or 0), modified=modified, stamp=item.etag or "")

    @property
    def _client(self) -> Minio:
        """The client of this process: a forked child must not speak on its parent's connections."""
        client = self._clients.get(os.getpid())
        if client is None:
            settings = self._settings
            scheme, _, host = settings.endpoint.partition("://")
            pool = RetryingPool(settings)
            client = Minio(host, secure=scheme == "https", region=settings.region, credentials=_provider(settings), http_client=pool)
            if settings.addressing:
                style = client.enable_virtual_style_endpoint if settings.addressing == "virtual" else client.disable_virtual_style_endpoint
                style()  # type: ignore[no-untyped-call]
            self._clients, self._pool = {os.getpid(): client}, pool
        return client

    def _now(self) -> float:
        """POSIX seconds by the store's clock, as of its last answer."""
        return time.time() + self._pool.clock_offset

    def _require_bucket(self, uri: str, bucket: str) -> None:
        if bucket in self._buckets:
            return
        try:
            found = self._client.bucket_exists(bucket)
        except MinioException:
            return  # keys that may not ask prove nothing about the bucket
        if not found:
            raise InputError(f"{uri}: no bucket {bucket!r} at {self._settings.endpoint}: create it, or mend the URI")
        self._buckets.add(bucket)

    @contextmanager
    def _explained(self, uri: str) -> Iterator[None]:
        """One line that names URI, endpoint and cause for whatever the client raises."""
        endpoint = self._settings.endpoint
        try:
            yield
        except (InputError, RunError) as error:
            text = str(error)
            raise error if text.startswith(uri) else type(error)(f"{uri}: {text}") from error.__cause__
        except S3Error as error:
            raise _explain_code(uri, endpoint, error) from error
        except ServerError as error:
            raise RunError(f"{uri}: {endpoint} answers {error.status_code}") from error
        except InvalidResponseError as error:
            raise InputError(f"{uri}: what answers at {endpoint} is no S3 store: {str(error)[:200]}") from error
        except (MinioException, ValueError) as error:
            raise InputError(f"{uri}: {error}") from error


@lru_cache(maxsize=8)
def _store(settings: S3Settings) -> S3Store:
    return S3Store(settings)


class _LostUploadError(RunError):
    """The store no longer knows this upload: its answer to "complete" got lost, or it expired."""


class _Source:
    """A stream that counts, fills every read, and holds exactly the size that was announced."""

    def __init__(self, stream: BinaryIO, uri: str, size: int | None) -> None:
        self._stream, self._uri, self._size = stream, uri, size
        self.count = 0

    def read(self, wanted: int) -> bytes:
        pieces, left = [], wanted
        while left and (piece := self._stream.read(left)):
            pieces.append(piece)
            left -= len(piece)
        self.count += wanted - left
        at_end = self._size is not None and (left > 0 or self.count == self._size)
        if at_end and (self.count != self._size or self._stream.read(1)):
            more = "more" if self.count == self._size else self.count
            raise RunError(f"{self._uri}: the stream held {more} bytes where {self._size} were announced; nothing was written")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not key:
        raise InputError(f"{uri!r} must be s3://bucket/key")
    return bucket, key


def _is_hidden(key: str) -> bool:
    return key.endswith("/") or is_partial(key)


def _provider(settings: S3Settings) -> Provider:
    if settings.credentials_file:
        return AWSConfigProvider(settings.credentials_file, os.environ.get("AWS_PROFILE"))
    return StaticProvider(settings.access_key, settings.secret_key, settings.session_token or None)


def _range_headers(position: int, end: int | None, etag: str) -> dict[str, str | list[str] | tuple[str]]:
    headers: dict[str, str | list[str] | tuple[str]] = {"If-Match": etag} if etag else {}
    if position or end is not None:
        headers["Range"] = f"bytes={position}-{'' if end is None else end - 1}"
    return headers


def _check_range(uri: str, response: BaseHTTPResponse, position: int, end: int | None) -> int:
    """Where the answer ends, which begins where it was asked to and is not short."""
    length = int(response.headers.get("content-length", "-1"))
    begin = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    start = int(begin[1]) if begin else 0
    if start != position or length < 0 or (end is not None and length != end - position):
        wanted = "all" if end is None else end - position
        raise RunError(f"{uri}: {wanted} bytes from {position} wanted, the store gives {length} from {start}: the object was cut short")
    return position + length


_KEYS = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidTokenId",
    "RequestTimeTooSkewed",
)
_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "Redirect", "IllegalLocationConstraintException")


def _explain_code(uri: str, endpoint: str, error: S3Error) -> Exception:
    """What an S3 error code means to the person whose command met it."""
    code, said = error.code or "", f"{error.code}: {error.message}"
    if code == "NoSuchKey":
        return MissingObject(f"{uri}: no such object at {endpoint}")
    if code == "NoSuchBucket":
        return InputError(f"{uri}: no such bucket at {endpoint}: create it, or mend the URI")
    if code == "NoSuchUpload":
        return _LostUploadError(f"{uri}: {endpoint} lost the upload ({said})")
    if code in _KEYS:
        return InputError(f"{uri}: refused by {endpoint} ({said}): check the credentials and what their policy allows")
    if code in _REGION:
        return InputError(f"{uri}: refused by {endpoint} ({said}): check AWS_REGION and AWS_ENDPOINT_URL")
    if code == "PreconditionFailed":
        return RunError(f"{uri}: the object was replaced while it was read")
    if code == "InvalidRange":
        return RunError(f"{uri}: the object ends before the range that was asked for: it was cut short")
    if error.response.status >= 500:
        return RunError(f"{uri}: {endpoint} fails ({said})")
    return InputError(f"{uri}: refused by {endpoint} ({said})")
