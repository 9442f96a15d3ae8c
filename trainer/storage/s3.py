"""Objects in a bucket: `s3://bucket/key`, through the `minio` client. Generic S3 calls only.

Endpoint and credentials come from the environment: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL (neither: AWS itself),
AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or AWS_SHARED_CREDENTIALS_FILE; a private CA's
certificate by FIRSTSIGHT_S3_CA or AWS_CA_BUNDLE; FIRSTSIGHT_S3_ADDRESSING = path | virtual (default: virtual on AWS,
else path); FIRSTSIGHT_S3_RETRY_SECONDS, how long an outage is waited for (default 300); HTTP(S)_PROXY and NO_PROXY.

Written bytes are compared with what the store received: by the ETag if that is the MD5 of the bytes, else by reading them
back. `get` compares what it reads in the same way. `stream` and `get_range` do not: readers of shards and weights have
their checksums.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO

from minio.commonconfig import CopySource
from minio.error import MinioException

from trainer.errors import InputError, RunError
from trainer.storage import confined, s3_conditions, s3_reads, s3_uploads
from trainer.storage.protocol import MissingObject, ObjectInfo
from trainer.storage.s3_answers import LostUploadError, explained
from trainer.storage.s3_client import Client
from trainer.storage.s3_settings import S3Settings, settings_from_environment
from trainer.storage.writers import is_partial

PART_BYTES = 16 << 20
"""A long stream goes up in parts of 16 MiB: two of them are in memory, and one is what a retry sends again."""

_MAX_PARTS = 10_000  # S3's limit for one object
_UPLOADS = 3  # how often a stream that can be rewound is sent from its beginning
_log = logging.getLogger(__name__)


class S3Store:
    """Objects in the buckets of one endpoint. One client per process, recreated after a fork."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._clients: dict[int, Client] = {}
        self._buckets: set[str] = set()  # known to exist
        self._conditions: dict[str, bool] = {}  # by bucket: whether the server checks If-Match and If-None-Match

    @classmethod
    def from_environment(cls, uri: str) -> "S3Store":
        """This process's store for the environment as it is now; `uri` is named where a setting is missing."""
        return _store(settings_from_environment(uri))

    def patient_for(self, seconds: float) -> "S3Store":
        """The same store, with requests that give up after about `seconds`, or sooner."""
        retry, timeout = (min(seconds, value) for value in (self._settings.retry_seconds, self._settings.timeout_seconds))
        return S3Store(dataclasses.replace(self._settings, retry_seconds=retry, timeout_seconds=timeout))

    def get(self, uri: str) -> bytes:
        """The whole object, compared with its ETag. Raises MissingObject if there is none, Corrupt if it was damaged."""
        return s3_reads.read_checked(self._client, uri, *_split(uri))

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; fewer in the object is a RunError."""
        return b"".join(self.stream(uri, start, length))

    def stream(self, uri: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object, or `length` bytes of it from `start`, in pieces of 1 MiB; fewer in it is a RunError.

        A connection that breaks in mid-body is taken up where it broke, on the same version of the object.
        """
        return s3_reads.read_pieces(self._client, uri, *_split(uri), start, length)

    def get_unsealed(self, uri: str, start: int, length: int) -> bytes:
        """As `get_range`, for bytes without a known checksum: over plain HTTP they are read until two readings agree.

        Raises:
            Corrupt: no two readings agreed.
        """
        if self._settings.endpoint.startswith("https://"):
            return self.get_range(uri, start, length)
        return s3_reads.read_agreeing(uri, lambda: self.get_range(uri, start, length))

    def stream_unsealed(self, uri: str) -> Iterator[bytes]:
        """As `stream`, for an object without a known checksum. Raises Corrupt at the end if its ETag is the MD5 of other bytes."""
        return s3_reads.read_hashed(self._client, uri, *_split(uri))

    def put_stream(self, uri: str, stream: BinaryIO, size: int | None = None) -> ObjectInfo:
        """Write all of `stream`, in parts where it is longer than one; a failed upload leaves no part behind."""
        target = self._target(uri)
        begin = stream.tell() if stream.seekable() else None
        for upload in range(1, _UPLOADS + 1):
            source = _Source(stream, uri, size)
            try:
                return self._send(target, source, _part_bytes(size))
            except (LostUploadError, s3_uploads.WrongBytesError):
                if begin is None or upload == _UPLOADS:
                    raise
                stream.seek(begin)
        raise AssertionError("unreachable")

    def _send(self, target: s3_uploads.Target, source: "_Source", part_bytes: int) -> ObjectInfo:
        first = source.read(part_bytes)
        with explained(target.uri, self._settings.endpoint):
            if len(first) < part_bytes or source.at_end:
                etag = s3_uploads.put_whole(target, first)
                return ObjectInfo(uri=target.uri, size=source.count, modified=self._client.now(), stamp=etag)
            s3_uploads.put_parts(target, first, lambda: source.read(part_bytes))
        info = self.head(target.uri)
        if info is None or info.size != source.count:
            held = f"{info.size} bytes" if info else "no object"
            raise RunError(f"{target.uri}: {source.count} bytes were sent, but the store then had {held}: a second writer?")
        return info

    def create(self, uri: str, data: bytes) -> bool:
        """Write `data` unless the object exists: of many concurrent callers, one gets True."""
        return self._put_if(uri, data, {"If-None-Match": "*"}, lambda found: found is None)

    def replace(self, uri: str, data: bytes, stamp: str) -> bool:
        """Write `data` over the version of the object that has this stamp; False if it has another by now."""
        return self._put_if(uri, data, {"If-Match": f'"{stamp}"'}, lambda found: found is not None and found.etag == stamp)

    def _put_if(self, uri: str, data: bytes, condition: dict[str, str], allows: s3_conditions.Allows) -> bool:
        client, (bucket, key) = self._client, _split(uri)
        with explained(uri, self._settings.endpoint):
            if bucket not in self._conditions:
                self._conditions[bucket] = s3_conditions.has_conditions(client, bucket, key)
                if not self._conditions[bucket]:
                    _log.warning("%s does not support conditional writes: writers use claims, which are slower", self._settings.endpoint)
            if self._conditions[bucket]:
                return s3_conditions.put_if(client, uri, bucket, key, data, condition)
            return s3_conditions.put_claimed(client, uri, bucket, key, data, allows)

    def copy(self, source_uri: str, target_uri: str) -> ObjectInfo:
        """Copy an object within the store, by the server itself; RunError if the copy has other bytes."""
        source = self.head(source_uri)
        if source is None:
            raise MissingObject(f"{source_uri}: no such object at {self._settings.endpoint}")
        if source_uri == target_uri:
            return source
        bucket, key = _split(source_uri)
        with explained(target_uri, self._settings.endpoint):
            copied = CopySource(bucket, key, match_etag=source.stamp)
            s3_uploads.copy_whole(self._target(target_uri), copied, source_uri, source.size, source.stamp, _part_bytes(source.size))
        info = self.head(target_uri)
        if info is None or info.size != source.size:
            raise RunError(f"{target_uri}: it was copied from {source_uri} and then replaced or removed: a second writer?")
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in the order of their URIs."""
        bucket, folder = _folder(prefix)
        with explained(prefix, self._settings.endpoint):
            items = self._client.list_objects(bucket, prefix=folder, recursive=True)
            objects = [item for item in items if not item.is_dir and _is_object(str(item.object_name))]
        for item in sorted(objects, key=lambda item: str(item.object_name)):  # SeaweedFS lists folder by folder
            modified = item.last_modified.timestamp() if item.last_modified else 0.0
            yield ObjectInfo(uri=f"s3://{bucket}/{item.object_name}", size=int(item.size or 0), modified=modified, stamp=item.etag or "")

    def holds(self, prefix: str) -> bool:
        """Whether any object lies below the folder `prefix`: one page of a listing."""
        bucket, folder = _folder(prefix)
        with explained(prefix, self._settings.endpoint):
            items = self._client.list_objects(bucket, prefix=folder, recursive=True)
            return any(not item.is_dir and not is_partial(str(item.object_name)) for item in items)

    def delete(self, uri: str) -> None:
        """Remove the object; a missing one is not an error."""
        bucket, key = _split(uri)
        try:
            with explained(uri, self._settings.endpoint):
                self._client.remove_object(bucket, key)
        except MissingObject:
            pass

    def sweep(self, prefix: str) -> None:
        """End the uploads of killed writers below the folder `prefix`, and remove their records, claims and probes."""
        with explained(prefix, self._settings.endpoint):
            s3_uploads.sweep(self._client, *_folder(prefix))

    def head(self, uri: str) -> ObjectInfo | None:
        """Its size and time, or None if there is no such object."""
        bucket, key = _split(uri)
        try:
            with explained(uri, self._settings.endpoint):
                item = self._client.stat_object(bucket, key)
        except MissingObject:
            self._require_bucket(uri, bucket)  # the answer to HEAD has no body that tells a key from a bucket
            return None
        modified = item.last_modified.timestamp() if item.last_modified else 0.0
        return ObjectInfo(uri=uri, size=int(item.size or 0), modified=modified, stamp=item.etag or "")

    @property
    def _client(self) -> Client:
        """The client of this process: a forked child must not use its parent's connections."""
        client = self._clients.get(os.getpid())
        if client is None:
            client = Client(self._settings)
            self._clients = {os.getpid(): client}
        return client

    def _target(self, uri: str) -> s3_uploads.Target:
        return s3_uploads.Target(self._client, uri, *_split(uri))

    def _require_bucket(self, uri: str, bucket: str) -> None:
        if bucket in self._buckets:
            return
        try:
            found = self._client.bucket_exists(bucket)
        except MinioException:
            return  # keys that may not ask prove nothing about the bucket
        if not found:
            raise InputError(f"{uri}: no bucket {bucket!r} at {self._settings.endpoint}: create it, or correct the URI")
        self._buckets.add(bucket)


@lru_cache(maxsize=8)
def _store(settings: S3Settings) -> S3Store:
    return S3Store(settings)


class _Source:
    """A stream that counts, fills every read, and holds exactly the size that was announced."""

    def __init__(self, stream: BinaryIO, uri: str, size: int | None) -> None:
        self._stream, self._uri, self._size = stream, uri, size
        self.count = 0

    @property
    def at_end(self) -> bool:
        """Whether all that was announced has been read."""
        return self.count == self._size

    def read(self, wanted: int) -> bytes:
        pieces: list[bytes] = []
        left = wanted
        while left and not (self.at_end and pieces) and (piece := self._stream.read(left)):
            pieces.append(piece)
            left -= len(piece)
            self.count += len(piece)
        ends = self._size is not None and (left > 0 or self.at_end)
        if ends and (self.count != self._size or self._stream.read(1)):
            more = "more" if self.count >= (self._size or 0) else self.count
            raise RunError(f"{self._uri}: the stream had {more} bytes, but {self._size} were announced; nothing was written")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _part_bytes(size: int | None) -> int:
    return PART_BYTES if size is None else max(PART_BYTES, -(-size // (_MAX_PARTS - 1)))


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not key:
        raise InputError(f"{uri!r} must be s3://bucket/key")
    confined.check(uri)
    return bucket, key


def _folder(prefix: str) -> tuple[str, str]:
    """Bucket, and the key that all objects below the folder begin with."""
    confined.check(prefix)
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    return bucket, f"{key.rstrip('/')}/" if key.strip("/") else ""


def _is_object(key: str) -> bool:
    return not key.endswith("/") and not is_partial(key)
