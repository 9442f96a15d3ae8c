"""JSON that carries its own checksum, so that one flipped bit is not read as another value.

A document is a JSON object with `format_version` and `sha256`, the SHA-256 over the canonical JSON (sorted keys, no spaces) of
all the rest. Formats that had no checksum at first are read without one before the version `checked_from`; from then on a
document without the right checksum is Corrupt. All future formats keep this checksum, so a document that claims a newer format
and has a wrong one was damaged. If an older version of a document could replace a newer one unnoticed, its checksum must also
be stored where it is referred to.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainer.errors import Corrupt, InputError
from trainer.storage.base import encode_json, read_bytes, write_bytes
from trainer.storage.protocol import MissingObject, ObjectInfo

CHECKSUM = "sha256"


def checksum(value: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the canonical JSON of `value`, its own checksum left out."""
    rest = {key: part for key, part in value.items() if key != CHECKSUM}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def encode_document(value: Mapping[str, Any]) -> bytes:
    """`value`, which has its `format_version`, with its checksum, as bytes; equal values are equal bytes."""
    return encode_json({**value, CHECKSUM: checksum(value)})


def write_document(uri: str, value: Mapping[str, Any]) -> ObjectInfo:
    """Write `value`, which has its `format_version`, with its checksum."""
    return write_bytes(uri, encode_document(value))


def read_document(uri: str, what: str, newest: int, *, checked_from: int = 1, bare: bool = False) -> dict[str, Any] | None:
    """The document at `uri` without its checksum, or None if there is no such object.

    Args:
        uri: of the object.
        what: what it should be, with its article, for errors.
        newest: format version that this firstsight reads.
        checked_from: first format version that carries a checksum; an older one must not carry any.
        bare: format 1 had no version: an object with neither version nor checksum is read as format 1.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is something else, or its checksum is not that of its content.
    """
    try:
        data = read_bytes(uri)
    except MissingObject:
        return None
    return parse_document(data, uri, what, newest, checked_from=checked_from, bare=bare)


def parse_document(data: bytes, uri: str, what: str, newest: int, *, checked_from: int = 1, bare: bool = False) -> dict[str, Any]:
    """The document that `data` is, without its checksum; arguments and errors as of `read_document`."""
    try:
        value = json.loads(data)
        right = isinstance(value, dict) and value.get(CHECKSUM) == checksum(value)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{uri}: not JSON: {error}") from error
    if bare and isinstance(value, dict) and not {"format_version", CHECKSUM} & value.keys():
        value["format_version"] = 1
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is not int or version < 1:  # True is an int too
        raise Corrupt(f"{uri}: not {what} written by firstsight: no format_version")
    stored = value.pop(CHECKSUM, None)
    if version > newest and (right or stored is None):
        raise InputError(f"{uri}: format {version} is newer than this firstsight can read ({newest})")
    if not right if version >= checked_from else stored is not None:
        raise Corrupt(f"{uri}: its checksum does not match its content: it was damaged or edited by hand")
    return dict(value)
