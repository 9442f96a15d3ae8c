"""Reading an object's bytes from an S3 store: taken up where a connection broke, always of one version."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import closing

from minio.error import S3Error
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from trainer.errors import Corrupt, RunError
from trainer.storage.protocol import PIECE_BYTES, MissingObject
from trainer.storage.retries import Retries
from trainer.storage.s3_answers import Damaged, ReplacedError, explained
from trainer.storage.s3_client import Client
from trainer.storage.writers import beside

_READINGS = 5
_ENCRYPTION = ("x-amz-server-side-encryption-customer-algorithm", "x-amz-server-side-encryption-aws-kms-key-id")


def read_pieces(
    client: Client, uri: str, bucket: str, key: str, start: int = 0, length: int | None = None, seen: dict[str, str] | None = None
) -> Iterator[bytes]:
    """The object, or `length` bytes of it from `start`, in pieces of 1 MiB; its ETag, where it is an MD5, goes into `seen`.

    Raises:
        ReplacedError: it is another version by now.
        RunError: it has fewer bytes, or reading fails for longer than is allowed.
    """
    end = None if length is None else start + length
    position, etag, retries = start, "", Retries(client.settings.retry_seconds)
    others: set[str] = set()
    while position != end:
        with explained(uri, client.settings.endpoint):
            response = client.get_object(bucket, key, request_headers=_range_headers(position, end, etag))
        with closing(response):
            try:
                end = _end_of(uri, response, position, end)
                found = response.headers.get("etag", "")
                if etag and found != etag:  # damaged on the way, or a server that does not know If-Match
                    if found in others:
                        raise ReplacedError(f"{uri}: the object was replaced while it was read")
                    others.add(found)
                    raise Damaged(f"the ETag {found}")
                etag = found
                if seen is not None:
                    seen["md5"] = _md5_of(response)
                for piece in response.stream(PIECE_BYTES, decode_content=False):
                    position += len(piece)
                    retries.restart()
                    yield piece
            except Damaged as error:
                retries.wait(f"{uri}: {client.connections.where} gives {error}")
            except (HTTPError, OSError) as error:
                retries.wait(f"{uri}: reading stopped at byte {position} of {end}: {type(error).__name__}")
            else:
                response.release_conn()


def read_checked(client: Client, uri: str, bucket: str, key: str) -> bytes:
    """The whole object, compared with its ETag where that is the MD5 of its bytes.

    Raises:
        Corrupt: the same bytes came twice, and they are not those of the ETag.
    """
    retries, wrong = Retries(client.settings.retry_seconds), set()
    while True:
        seen: dict[str, str] = {}
        try:
            data = b"".join(read_pieces(client, uri, bucket, key, seen=seen))
        except ReplacedError as error:  # the new version is as good
            retries.wait(str(error))
            continue
        etag, digest = seen.get("md5", ""), hashlib.md5(data, usedforsecurity=False).hexdigest()
        if not etag or etag == digest:
            return data
        if (etag, digest) in wrong:
            if not _has_md5_etags(client, bucket, key):
                return data
            raise Corrupt(
                f"{uri}: the store returned bytes with MD5 {digest} for an object whose ETag is {etag}: it was damaged in the store"
            )
        wrong.add((etag, digest))
        retries.wait(f"{uri}: the received bytes do not match the ETag")


def read_hashed(client: Client, uri: str, bucket: str, key: str) -> Iterator[bytes]:
    """The whole object in pieces, compared at its end with its ETag, where that is the MD5 of its bytes.

    Raises:
        Corrupt: it is the MD5 of other bytes. They may have been damaged on the way: another reading may be whole.
    """
    seen: dict[str, str] = {}
    digest = hashlib.md5(usedforsecurity=False)
    for piece in read_pieces(client, uri, bucket, key, seen=seen):
        digest.update(piece)
        yield piece
    etag = seen.get("md5", "")
    if etag not in ("", digest.hexdigest()) and _has_md5_etags(client, bucket, key):
        raise Corrupt(f"{uri}: its bytes came with MD5 {digest.hexdigest()}, but its ETag is {etag}: run the same command again")


def read_agreeing(uri: str, read: Callable[[], bytes]) -> bytes:
    """What `read` gives twice: a bit that flips on the way flips in one reading.

    Raises:
        Corrupt: each reading of several differs from all others.
    """
    seen: set[bytes] = set()
    for _ in range(_READINGS):
        data = read()
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            return data
        seen.add(digest)
    raise Corrupt(f"{uri}: {_READINGS} readings of one range all differ: the network damages them; use https")


def holds(client: Client, uri: str, bucket: str, key: str, digests: list[tuple[int, str]]) -> bool:
    """Whether the object is, byte for byte, parts of these lengths and MD5s (hex), one after another."""
    parts = iter(digests)
    size, expected = next(parts, (0, ""))
    digest, count = hashlib.md5(usedforsecurity=False), 0
    try:
        for piece in read_pieces(client, uri, bucket, key):
            while piece:
                if count == size:  # longer than all parts
                    return False
                taken = piece[: size - count]
                digest.update(taken)
                count, piece = count + len(taken), piece[len(taken) :]
                if count == size:
                    if digest.hexdigest() != expected:
                        return False
                    size, expected = next(parts, (0, ""))
                    digest, count = hashlib.md5(usedforsecurity=False), 0
    except MissingObject:
        return False
    return count == size


def _range_headers(position: int, end: int | None, etag: str) -> dict[str, str | list[str] | tuple[str]]:
    headers: dict[str, str | list[str] | tuple[str]] = {"If-Match": etag} if etag else {}
    if position or end is not None:
        headers["Range"] = f"bytes={position}-{'' if end is None else end - 1}"
    return headers


def _end_of(uri: str, response: BaseHTTPResponse, position: int, end: int | None) -> int:
    """Where the answer ends, which begins where it was asked to.

    Raises:
        RunError: the object is shorter.
        Damaged: the headers contradict each other.
    """
    text = response.headers.get("content-length", "")
    length = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("content-range", "").strip())
    if length < 0 or (response.status == 206) != bool(found):
        raise Damaged(f"a length of {text!r} and a range of {response.headers.get('content-range', '')!r}")
    begin, total = (int(found[1]), found[3]) if found else (0, text)
    if found and (begin != position or int(found[2]) + 1 - begin != length or (total != "*" and position + length > int(total))):
        raise Damaged(f"{length} bytes where byte {position} on was asked for, and a range of {found[0]!r}")
    if end is not None and begin == position and length < end - position and total.isdecimal() and position + length != int(total):
        raise Damaged(f"{length} bytes of a range of {end - position}")
    if begin != position or (end is not None and length != end - position):
        wanted = "all" if end is None else end - position
        raise RunError(
            f"{uri}: {wanted} bytes from {position} were requested, but the store returned {length} from {begin}: the object was truncated"
        )
    return position + length


def _md5_of(response: BaseHTTPResponse) -> str:
    """The MD5 of the object's bytes as its ETag says it; empty if the ETag is something else (parts, a customer's or KMS key)."""
    encrypted = "kms" in response.headers.get("x-amz-server-side-encryption", "") or any(name in response.headers for name in _ENCRYPTION)
    found = re.fullmatch(r'"?([0-9a-fA-F]{32})"?', response.headers.get("etag", ""))
    return found[1].lower() if found and not encrypted else ""


def _has_md5_etags(client: Client, bucket: str, key: str) -> bool:
    """Whether this server's ETags are MD5s, by an object of its own; yes where it may not be written."""
    probe = beside(key, "probe")
    try:
        is_md5 = client.put(bucket, probe, b"seen before read")[1]
        client.remove_object(bucket, probe)
        return is_md5
    except S3Error:
        return True
