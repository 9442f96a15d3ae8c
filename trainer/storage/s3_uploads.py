"""Writing long objects in parts, each compared with what the store received, and removing what killed writers left.

Before its first part an upload is recorded in an object beside the one to be written, which is renewed while parts go up. Whoever
sweeps the folder later ends the uploads whose writer is known to be dead (on the same machine), or whose record was not renewed
for longer than any living writer takes (by the store's clock).
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from minio.commonconfig import CopySource
from minio.error import MinioException, S3Error

from trainer.errors import InputError, RunError
from trainer.storage import s3_reads
from trainer.storage.retries import Retries
from trainer.storage.s3_client import Client
from trainer.storage.writers import beside, beside_all, is_gone, is_partial, kind_of

_RENEW_SECONDS = 30.0
_STALE_SECONDS = 900.0  # plus the writer's own patience: see `Upload.renew`
_CLAIM_STALE_SECONDS = 600.0  # of what takes seconds
_PART_TRIES = 3
_MAX_COPY_BYTES = 5 << 30  # S3's limit for one copy, and for one part

_MD5 = re.compile("[0-9a-fA-F]{32}")
_log = logging.getLogger(__name__)


class WrongBytesError(RunError):
    """What the store holds is not what was sent."""


@dataclass(frozen=True)
class Target:
    """An object to write: the client, and where."""

    client: Client
    uri: str
    bucket: str
    key: str


def put_whole(target: Target, data: bytes) -> str:
    """Write one object by one request; its ETag. What the store then holds is what was sent.

    Raises:
        WrongBytesError: other bytes arrived, again and again.
    """
    client, bucket, key = target.client, target.bucket, target.key
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    retries = Retries(client.settings.retry_seconds)
    while True:
        etag, proven = client.put(bucket, key, data, md5=digest)
        if proven or s3_reads.holds(client, target.uri, bucket, key, [(len(data), digest)]):
            return etag
        try:
            retries.wait(f"{target.uri}: {client.connections.where} has different bytes from those sent")
        except RunError as error:
            raise WrongBytesError(str(error)) from error


class Upload:
    """A multipart upload under way, and its record."""

    def __init__(self, target: Target) -> None:
        self.target, self._record = target, beside(target.key, "upload")
        self.id, self._is_only = "", True
        self.etags: list[str] = []
        self.digests: list[tuple[int, str]] = []  # of each part: length, MD5
        self.proven, self.is_copy, self.aborted = True, False, False
        self.renew()  # before there is an upload: a writer killed in between leaves a record that leads to it
        self.id, self._is_only = target.client.begin_upload(target.bucket, target.key)
        self.renew()

    def renew(self) -> None:
        """Write the record: the writer lives."""
        settings = self.target.client.settings
        stale = _STALE_SECONDS + settings.retry_seconds + settings.timeout_seconds
        upload_id = self.id if self._is_only else ""  # then whoever sweeps ends all uploads of this key
        record = {"format_version": 1, "key": self.target.key, "upload_id": upload_id, "stale_seconds": stale}
        self.target.client.put(self.target.bucket, self._record, json.dumps(record).encode())
        self._renewed = time.monotonic()

    def send(self, data: bytes, digest: str) -> None:
        """Send the next part."""
        client, target, number = self.target.client, self.target, len(self.etags) + 1
        retries = Retries(client.settings.retry_seconds)
        for attempt in range(_PART_TRIES):
            etag, proven = client.put_part(target.bucket, target.key, data, self.id, number, digest)
            if proven:
                break
            if attempt + 1 < _PART_TRIES:  # the ETag may be no MD5 here; then the whole object is read back
                retries.wait(f"{target.uri}: {client.connections.where} received different bytes from those sent")
        self._append(etag, len(data), digest, proven=proven)

    def copy(self, source: CopySource, begin: int, size: int) -> None:
        """Make the next part of `size` bytes of another object from `begin`."""
        client, target = self.target.client, self.target
        headers = {**source.gen_copy_headers(), "x-amz-copy-source-range": f"bytes={begin}-{begin + size - 1}"}
        etag = client.copy_part(target.bucket, target.key, headers, self.id, len(self.etags) + 1)
        self.is_copy = True
        self._append(etag, size, etag, proven=True)

    def _append(self, etag: str, size: int, digest: str, *, proven: bool) -> None:
        self.etags.append(etag)
        self.digests.append((size, digest))
        self.proven = self.proven and proven
        if time.monotonic() - self._renewed > _RENEW_SECONDS:
            self.renew()

    def composite(self) -> str:
        """The ETag that the whole has where those of the parts are MD5s."""
        try:
            parts = b"".join(bytes.fromhex(digest) for _, digest in self.digests)
        except ValueError:
            return ""
        return f"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{len(self.digests)}"

    def complete(self) -> str:
        """Make the object; its ETag."""
        client, bucket, key = self.target.client, self.target.bucket, self.target.key
        try:
            return client.complete_upload(bucket, key, self.id, self.etags)
        except S3Error as error:
            if error.code == "NoSuchUpload":  # an earlier try did it, and its answer got lost
                with suppress(S3Error):
                    if client.stat_object(bucket, key).etag == self.composite():
                        return self.composite()
            raise

    def forget(self) -> None:
        """Remove the record, and uploads that were begun by requests whose answers got lost."""
        if not self._is_only:
            with suppress(S3Error):  # listing them needs a right of its own
                self._end_lost()
        self.target.client.remove_object(self.target.bucket, self._record)

    def _end_lost(self) -> None:
        client, bucket, key = self.target.client, self.target.bucket, self.target.key
        records = client.list_objects(bucket, prefix=beside_all(key, "upload"), recursive=True)
        if all(record.object_name == self._record for record in records):  # no other writer of this object is at work
            for one in client.list_uploads(bucket, key):
                client.abort_upload(bucket, key, one)

    def abort(self) -> None:
        """End it, dropping what was sent; where that fails, the record stays for who sweeps."""
        self.aborted = True
        with suppress(MinioException, RunError, InputError):
            if self.id:
                self.target.client.abort_upload(self.target.bucket, self.target.key, self.id)
            self.forget()


@contextmanager
def upload(target: Target) -> Iterator[Upload]:
    """An upload that is completed at the end of the block, or ended without a trace where the block fails."""
    under_way = Upload(target)
    try:
        yield under_way
        if under_way.aborted:
            return
        etag = under_way.complete()
    except BaseException:
        under_way.abort()
        raise
    under_way.forget()
    if under_way.is_copy:  # whose bytes never came by
        return
    proven = under_way.proven and etag.lower() == under_way.composite()
    if not proven and not s3_reads.holds(target.client, target.uri, target.bucket, target.key, under_way.digests):
        raise WrongBytesError(f"{target.uri}: {target.client.connections.where} has different bytes from those sent: a second writer?")


def put_parts(target: Target, first: bytes, read: Callable[[], bytes]) -> None:
    """Write `first` and what `read` gives until it gives nothing, a part each; one part is read while another goes up."""
    with upload(target) as under_way, ThreadPoolExecutor(1) as sender:
        sent: Future[None] | None = None
        data = first
        while data:
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if sent is not None:
                sent.result()
            sent = sender.submit(under_way.send, data, digest)
            data = read()
        if sent is not None:
            sent.result()


def copy_whole(target: Target, source: CopySource, source_uri: str, size: int, etag: str, part_bytes: int) -> None:
    """Copy an object within the store; the copy has the ETag of the source, or was read and compared.

    Raises:
        WrongBytesError: it has other bytes.
    """
    parts = etag.partition("-")[2]
    if size > _MAX_COPY_BYTES or (parts.isdecimal() and int(parts) == -(-size // part_bytes)):  # the same parts: the same ETag
        copied = _copy_parts(target, source, size, part_bytes, any_etag=size > _MAX_COPY_BYTES)
    else:
        copied = ""
    copied = copied or target.client.copy_object(target.bucket, target.key, source).etag or ""
    if copied.strip('"').lower() != etag.lower() and not _are_equal(target, source, source_uri):
        raise WrongBytesError(
            f"{target.uri}: its bytes differ from those of {source_uri}, from which it was copied; run the same command again"
        )


def _copy_parts(target: Target, source: CopySource, size: int, part_bytes: int, *, any_etag: bool) -> str:
    """Copy part by part; the ETag, or empty (and nothing is done) where this server's parts have none that can be compared."""
    with upload(target) as under_way:
        for begin in range(0, size, part_bytes):
            length = min(part_bytes, size - begin)
            under_way.copy(source, begin, length)
            if not any_etag and not _MD5.fullmatch(under_way.etags[0]):  # SeaweedFS; it keeps the ETag of a whole copy
                under_way.abort()
                return ""
    return under_way.composite()


def sweep(client: Client, bucket: str, prefix: str) -> None:
    """End the uploads below `prefix` whose writer is gone, and remove what else killed writers left."""
    found = [item for item in client.list_objects(bucket, prefix=prefix, recursive=True) if is_partial(str(item.object_name))]
    kept: set[str] = set()
    dead: list[tuple[str, str, str]] = []
    for item in found:
        name, kind = str(item.object_name), kind_of(str(item.object_name))
        age = client.now() - item.last_modified.timestamp() if item.last_modified else 0.0
        gone = is_gone(name)
        if kind == "upload":
            key, upload_id, stale = _read_record(client, bucket, name)
            if gone or (gone is None and age > stale):
                dead.append((name, key, upload_id))
            else:
                kept.add(key)
        elif kind and (gone or (gone is None and age > _CLAIM_STALE_SECONDS)):
            with _leaving(bucket, name):
                client.remove_object(bucket, name)
    for name, key, upload_id in dead:
        ids = [upload_id] if upload_id else []
        if key and not upload_id and key not in kept:  # killed between record and upload: it may be any of this key's
            with suppress(S3Error):  # listing them needs a right of its own
                ids = client.list_uploads(bucket, key)
        with _leaving(bucket, name):
            for one in ids:
                client.abort_upload(bucket, key, one)
            client.remove_object(bucket, name)
            _log.info("s3://%s/%s: removed leftovers of a killed writer", bucket, key)


@contextmanager
def _leaving(bucket: str, name: str) -> Iterator[None]:
    """What these keys may not remove stays, with its record, and stops nobody's work."""
    try:
        yield
    except S3Error as error:
        _log.warning("s3://%s/%s: leftovers of a killed writer cannot be removed: %s", bucket, name, error.code)


def _read_record(client: Client, bucket: str, name: str) -> tuple[str, str, float]:
    """Key, upload id and age at which it is stale; a record that cannot be read says nothing but its age."""
    try:
        value = json.loads(s3_reads.read_checked(client, f"s3://{bucket}/{name}", bucket, name))
        return str(value["key"]), str(value["upload_id"]), float(value["stale_seconds"])
    except (S3Error, InputError, RunError, ValueError, KeyError, TypeError):
        folder, slash, rest = name.rpartition("/")
        return f"{folder}{slash}{rest[1:].rpartition('.upload-')[0]}", "", _STALE_SECONDS * 4


def _are_equal(target: Target, source: CopySource, source_uri: str) -> bool:
    """Whether both have the same bytes, which are read for it."""
    digests = []
    for piece in s3_reads.read_pieces(target.client, source_uri, source.bucket_name, source.object_name):
        digests.append((len(piece), hashlib.md5(piece, usedforsecurity=False).hexdigest()))
    return s3_reads.holds(
        target.client, target.uri, target.bucket, target.key, digests or [(0, hashlib.md5(usedforsecurity=False).hexdigest())]
    )
