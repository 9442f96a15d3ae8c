"""The object store's protocol: what file:// and s3:// both do."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from trainer.errors import InputError

PIECE_BYTES = 1 << 20
"""Streams are read in pieces of 1 MiB: smaller ones cost more CPU a byte, larger ones only memory."""

_SCHEME = re.compile(r"(file|s3|https?):(/|$)", re.IGNORECASE)
"""How a path begins that was meant to be a URI."""

MIN_RANGE_BYTES = PIECE_BYTES
"""Ranges worth a request of their own are at least this long: smaller ones cost a round trip each."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a store says of one object.

    Attributes:
        uri: in full.
        size: in bytes.
        modified: when it changed, POSIX seconds by the store's clock.
        stamp: differs whenever the object's bytes may differ (ETag; inode, size and time of change); empty if unknown.
    """

    uri: str
    size: int
    modified: float
    stamp: str = ""


class ObjectStore(Protocol):
    """Whole objects and ranges of them, by full URI.

    Writes are atomic as seen by a reader: the old object or the new one, never a part.
    Implementations retry what may pass (5xx, 429, resets, time-outs) with jittered back-off, then raise
    RunError naming URI and cause; 403, 404 of a bucket and a wrong endpoint raise InputError at once.
    """

    def get(self, uri: str) -> bytes:
        """The whole object. Raises MissingObject if there is none."""
        ...

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; fewer in the object is a RunError."""
        ...

    def stream(self, uri: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object, or `length` bytes of it from `start`, in pieces of 1 MiB; fewer in it is a RunError."""
        ...

    def get_unsealed(self, uri: str, start: int, length: int) -> bytes:
        """As `get_range`, for bytes without a known checksum: over plain HTTP they are read until two readings agree."""
        ...

    def stream_unsealed(self, uri: str) -> Iterator[bytes]:
        """As `stream`, for an object without a known checksum: at the end it is compared with its ETag, if that is an MD5."""
        ...

    def put_stream(self, uri: str, stream: BinaryIO, size: int | None = None) -> ObjectInfo:
        """Write all of `stream` as one object; if `size` is given and wrong, RunError, and the old object stays."""
        ...

    def create(self, uri: str, data: bytes) -> bool:
        """Write `data` unless the object exists: of many concurrent callers, one gets True.

        On a server without conditional writes this takes seconds, and holds within the limits that s3_conditions.py states.
        """
        ...

    def replace(self, uri: str, data: bytes, stamp: str) -> bool:
        """Write `data` over the version of the object that has this stamp; False if it has another by now.

        Equal bytes may have equal stamps (an ETag), so what is replaced in turns should differ each time.
        """
        ...

    def copy(self, source_uri: str, target_uri: str) -> ObjectInfo:
        """Copy an object within the store, without moving its bytes through this process where that can be done.

        The target appears whole or not at all, and has the source's bytes; an object that lies there is replaced.
        Raises MissingObject if there is no source. Files may then share their bytes on disk (a hard link).
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in the order of their URIs."""
        ...

    def holds(self, prefix: str) -> bool:
        """Whether there is any object below the folder `prefix`; cheap, however many there are."""
        ...

    def delete(self, uri: str) -> None:
        """Remove the object; a missing one is not an error."""
        ...

    def head(self, uri: str) -> ObjectInfo | None:
        """Its size and time, or None if there is no such object."""
        ...

    def sweep(self, prefix: str) -> None:
        """Remove the leftovers of killed writers below the folder `prefix`, but no object and no live writer's files."""
        ...


class MissingObject(InputError):
    """There is no object at this URI."""


def local_path(uri: str) -> Path | None:
    """The path of a file URI or plain path; None for any other.

    Raises:
        InputError: it cannot be a path: `file://host/x`, `s3:/bucket/x`, a NUL.
    """
    if "://" in uri and not uri.startswith("file://"):
        return None
    path = uri.removeprefix("file://")
    if _SCHEME.match(path) or (path != uri and not path.startswith("/")):
        raise InputError(f"{uri}: a URI is file:///folder or s3://bucket/prefix")
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise InputError(f"{uri!r}: no file system accepts such a name")
    return Path(path)
