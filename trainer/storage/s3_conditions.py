"""Writes that happen only if an object is absent or unchanged: by the server's conditions, or by claims where it has none.

A server may ignore If-None-Match and If-Match and answer 200 all the same, so each bucket is asked once, with an object of its
own. If conditions are ignored, a writer puts a claim beside the object under a random name, waits until every claim of the
same moment must be visible, and writes if its claim is the oldest. Two writers can then both win only if one is held up for
more than `STALE_SECONDS` between its last check and its write, or the server shows a new object later than `SETTLE_SECONDS`.
"""

import hashlib
import secrets
import time
from collections.abc import Callable

from minio.datatypes import Object
from minio.error import S3Error

from trainer.errors import RunError
from trainer.storage import s3_reads
from trainer.storage.s3_client import Client
from trainer.storage.writers import beside, beside_all

SETTLE_SECONDS = 2.5
"""Delay between a claim and the check of all claims: more than the second to which a server may round times."""

STALE_SECONDS = 60.0
"""A claim of this age belongs to a writer that was killed."""

_WRITER = "x-amz-meta-firstsight-writer"

Allows = Callable[[Object | None], bool]
"""Whether an object as it is now (None: absent) may be written over."""


def stat(client: Client, bucket: str, key: str) -> Object | None:
    """What the server says of the object; None if there is none."""
    try:
        return client.stat_object(bucket, key)
    except S3Error as error:
        if error.code == "NoSuchKey":
            return None
        raise


def has_conditions(client: Client, bucket: str, key: str) -> bool:
    """Whether the server refuses writes whose condition does not hold, asked with an object in the folder of `key`."""
    probe = beside(key, "probe")
    try:
        etag, _ = client.put(bucket, probe, b"1")
        refused = all(
            _is_refused(client, bucket, probe, condition) for condition in ({"If-None-Match": "*"}, {"If-Match": f'"{"0" * 32}"'})
        )
        return refused and not _is_refused(client, bucket, probe, {"If-Match": f'"{etag}"'})
    finally:
        client.remove_object(bucket, probe)


def put_if(client: Client, uri: str, bucket: str, key: str, data: bytes, condition: dict[str, str]) -> bool:
    """PUT under a condition that the server checks; False if it does not hold.

    Raises:
        RunError: the store has different bytes from those sent.
    """
    writer = secrets.token_hex(8)
    try:
        _put_proven(client, uri, bucket, key, data, {**condition, _WRITER: writer})
        return True
    except S3Error as error:
        if error.code not in ("PreconditionFailed", "NoSuchKey"):
            raise
        # an answer that got lost makes the next try fail on the object that the first one wrote
        found = stat(client, bucket, key)
        return found is not None and (found.metadata or {}).get(_WRITER) == writer


def _put_proven(client: Client, uri: str, bucket: str, key: str, data: bytes, headers: dict[str, str]) -> None:
    """PUT; RunError if the store then has different bytes from those sent."""
    _, proven = client.put(bucket, key, data, headers)
    if not proven and not s3_reads.holds(client, uri, bucket, key, [(len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())]):
        raise RunError(f"{uri}: {client.connections.where} has different bytes from those sent")


def put_claimed(client: Client, uri: str, bucket: str, key: str, data: bytes, allows: Allows) -> bool:
    """PUT where `allows` says so, alone among all who write this key by claims.

    Raises:
        RunError: other writers kept the key claimed, or the store has different bytes from those sent.
    """
    claim = beside(key, "claim")
    client.put(bucket, claim, b"")
    try:
        begin = time.monotonic()
        while time.monotonic() < begin + 1.5 * STALE_SECONDS:
            if not allows(stat(client, bucket, key)):
                return False
            time.sleep(SETTLE_SECONDS)
            if _oldest_claim(client, bucket, key) == claim:
                allowed = allows(stat(client, bucket, key))
                if allowed:
                    _put_proven(client, uri, bucket, key, data, {})
                return allowed
        raise RunError("other writers kept it claimed; run the same command again")
    finally:
        client.remove_object(bucket, claim)


def _oldest_claim(client: Client, bucket: str, key: str) -> str:
    found = [item for item in client.list_objects(bucket, prefix=beside_all(key, "claim"), recursive=True) if not item.is_dir]
    ages = [(item.last_modified.timestamp() if item.last_modified else 0.0, str(item.object_name)) for item in found]
    now = client.now()
    return min([entry for entry in ages if entry[0] > now - STALE_SECONDS], default=(0.0, ""))[1]


def _is_refused(client: Client, bucket: str, key: str, condition: dict[str, str]) -> bool:
    try:
        client.put(bucket, key, b"2", condition)
    except S3Error as error:
        if error.code == "PreconditionFailed":
            return True
        if error.code not in ("NotImplemented", "InvalidArgument", "InvalidRequest"):
            raise
    return False
