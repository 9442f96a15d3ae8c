"""The object store's protocol, and what every room does with it."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from trainer.errors import Corrupt, InputError

PIECE_BYTES = 1 << 20
"""Streams are read in pieces of 1 MiB: smaller ones cost more CPU a byte, larger ones only memory."""

MIN_RANGE_BYTES = PIECE_BYTES
"""Ranges worth a request of their own are at least this long: smaller ones cost a round trip each."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a store says of one object: its full URI, its size in bytes, and when it changed (POSIX seconds)."""

    uri: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """Whole objects and ranges of them, by full URI.

    Writes are atomic as seen by a reader: the old object or the new one, never a part.
    Implementations retry what may pass (5xx, 429, resets, time-outs) with jittered back-off, then raise
    RunError naming URI and cause; 403, 404 of a bucket and a wrong endpoint raise InputError at once.
    """

    def get(self, uri: str) -> bytes:
        """The whole object. Raises MissingObject where there is none."""
        ...

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; fewer in the object is a RunError."""
        ...

    def stream(self, uri: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object, or `length` bytes of it from `start`, in pieces of 1 MiB; fewer in it is a RunError."""
        ...

    def put_stream(self, uri: str, stream: BinaryIO, size: int | None = None) -> ObjectInfo:
        """Write all of `stream` as one object; where `size` is given and wrong, RunError and the old object stays."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in the order of their URIs."""
        ...

    def holds(self, prefix: str) -> bool:
        """Whether any object lies below the folder `prefix`; cheap, however many do."""
        ...

    def delete(self, uri: str) -> None:
        """Remove the object; one that is not there is no error."""
        ...

    def head(self, uri: str) -> ObjectInfo | None:
        """Its size and time, or None where there is no such object."""
        ...

    def sweep(self, prefix: str) -> None:
        """Remove what writers that were killed left below the folder `prefix`; no object, and no living writer's work."""
        ...


class MissingObject(InputError):
    """There is no object at this URI."""


def open_store(uri: str) -> ObjectStore:
    """The store that serves `uri`: `s3://bucket/key`, `file:///path`, or a plain path."""
    if uri.startswith("s3://"):
        from trainer.storage.s3 import S3Store

        return S3Store.from_environment(uri)
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"{uri}: no store for this scheme: use a path, file:// or s3://")
    from trainer.storage.file import FileStore

    return FileStore()


def join(uri: str, *parts: str) -> str:
    """A URI below another: one slash between the parts, none at the end."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A plain path made absolute, so that it means the same to every process; other URIs as they are."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def local_path(uri: str) -> Path | None:
    """The path of a file URI or plain path; None for any other."""
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    return None if "://" in uri else Path(uri)


def exists(uri: str) -> bool:
    """Whether there is an object at `uri`."""
    return open_store(uri).head(uri) is not None


def read_bytes(uri: str) -> bytes:
    """The whole object at `uri`."""
    return open_store(uri).get(uri)


def read_text(uri: str) -> str:
    """The object at `uri` as UTF-8; InputError naming the URI where it is none."""
    try:
        return read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def write_bytes(uri: str, data: bytes) -> ObjectInfo:
    """Write `data` as one object."""
    return open_store(uri).put_stream(uri, io.BytesIO(data), len(data))


def read_json(uri: str) -> Any:
    """The object at `uri` as JSON; Corrupt naming the URI where it is none."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{uri}: not JSON: {error}") from error


def write_json(uri: str, value: object) -> ObjectInfo:
    """Write `value` as JSON, sorted and indented, so that equal values are equal bytes."""
    return write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_versioned(uri: str, what: str, newest: int) -> dict[str, Any] | None:
    """The JSON object at `uri` that carries a format_version, or None where there is no such object.

    Args:
        uri: of the object.
        what: it should be, for errors.
        newest: format version that this firstsight reads.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is something else.
    """
    try:
        value = read_json(uri)
    except MissingObject:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("format_version"), int):
        raise Corrupt(f"{uri}: not {what} of firstsight: no format_version")
    if value["format_version"] > newest:
        raise InputError(f"{uri}: format {value['format_version']} is newer than this firstsight reads ({newest})")
    return value
