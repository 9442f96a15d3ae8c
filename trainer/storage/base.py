"""Open the store for a URI, and helpers to read and write objects."""

import io
import json
from typing import Any

from trainer.errors import Corrupt, InputError
from trainer.storage import confined
from trainer.storage.protocol import MIN_RANGE_BYTES, PIECE_BYTES, MissingObject, ObjectInfo, ObjectStore, local_path

__all__ = [
    "MIN_RANGE_BYTES",
    "PIECE_BYTES",
    "MissingObject",
    "ObjectInfo",
    "ObjectStore",
    "local_path",
]  # of the protocol, for those who use it


def open_store(uri: str) -> ObjectStore:
    """The store that serves `uri`: `s3://bucket/key`, `file:///path`, or a plain path."""
    if uri.startswith("s3://"):
        from trainer.storage.s3 import S3Store

        confined.check(uri)

        return S3Store.from_environment(uri)
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"{uri}: unsupported scheme: use a path, file:// or s3://")
    from trainer.storage.file import FileStore

    return FileStore()


def join(uri: str, *parts: str) -> str:
    """A URI below another: one slash between the parts, none at the end."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A plain path made absolute, so that it means the same to every process; other URIs as they are.

    Raises:
        InputError: it cannot be a path (`local_path`), or it is `~name` of a user unknown to this machine.
    """
    path = local_path(uri)
    if path is None or "://" in uri:
        return uri
    try:
        return str(path.expanduser().absolute())
    except RuntimeError as error:
        raise InputError(f"{uri}: there is no such user on this machine") from error


def exists(uri: str) -> bool:
    """Whether there is an object at `uri`."""
    return open_store(uri).head(uri) is not None


def read_bytes(uri: str) -> bytes:
    """The whole object at `uri`."""
    return open_store(uri).get(uri)


def read_text(uri: str) -> str:
    """The object at `uri` as UTF-8 text; InputError naming the URI if it is not UTF-8."""
    return decode(uri, read_bytes(uri))


def decode(uri: str, data: bytes) -> str:
    """Decode bytes of the object at `uri` as UTF-8; InputError naming the URI if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def write_bytes(uri: str, data: bytes) -> ObjectInfo:
    """Write `data` as one object."""
    return open_store(uri).put_stream(uri, io.BytesIO(data), len(data))


def read_json(uri: str) -> Any:
    """The object at `uri` as JSON; Corrupt naming the URI if it is not JSON."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{uri}: not JSON: {error}") from error


def read_field(uri: str, key: str) -> str:
    """One string of the JSON object at `uri`; Corrupt naming URI and key if there is none."""
    value = read_json(uri)
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise Corrupt(f"{uri}: holds no {key}")
    return str(value[key])


def encode_json(value: object) -> bytes:
    """`value` as JSON, sorted and indented, so that equal values are equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(uri: str, value: object) -> ObjectInfo:
    """Write `value` as JSON (`encode_json`)."""
    return write_bytes(uri, encode_json(value))
