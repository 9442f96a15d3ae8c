"""Check that sealed files are intact, without reading them again each time.

A full check leaves a record of each file's stamp (a store's ETag; of a file its inode, size and time of change) in the
folder. A later check compares stamps and reads only what changed since. The record is never trusted for bytes that are loaded:
those are hashed whenever they are read.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trainer.errors import Corrupt, InputError, RunError
from trainer.storage.base import join, open_store, read_bytes
from trainer.storage.documents import read_document, write_document
from trainer.storage.protocol import MissingObject, ObjectInfo

NAME = "CHECKED.json"
FORMAT_VERSION = 1


def find_damaged(folder: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Find the sealed files that are damaged or missing.

    Args:
        folder: folder of the files and of the record.
        files: name relative to the folder -> {"size": bytes, "sha256": hex}, as sealed.

    Returns:
        name -> what is wrong, as words to follow its URI; empty if all are intact.

    Raises:
        RunError: the store failed.
    """
    known, found = _read_record(folder), _listed(folder)
    damaged = _by_size(folder, found, files)
    record: dict[str, dict[str, str]] = {name: entry for name, entry in known.items() if name in found and name not in files}
    for name, sealed in files.items():
        if name in damaged:
            continue
        info = found[name]
        entry = {"stamp": info.stamp, "sha256": str(sealed["sha256"])}
        if not info.stamp or known.get(name) != entry:
            try:
                digest = file_sha256(info.uri, entry["sha256"])
            except MissingObject:
                digest = ""
            if digest != sealed["sha256"]:
                damaged[name] = "its checksum does not match the sealed one"
                continue
        record[name] = entry
    if record != known and any(entry["stamp"] for entry in record.values()):
        _write_record(folder, record)
    return damaged


def find_missized(folder: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Like `find_damaged`, for files not hashed yet: finds those that are missing or have another size. Nothing is read."""
    return _by_size(folder, _listed(folder), files)


def describe(data: bytes | memoryview) -> dict[str, Any]:
    """What a seal says of a file with these bytes: {"size": bytes, "sha256": hex}."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_description(value: Any) -> bool:
    """Whether this is what a seal says of a file (`describe`)."""
    return isinstance(value, dict) and isinstance(value.get("size"), int) and isinstance(value.get("sha256"), str)


def is_files(value: Any) -> bool:
    """Whether this is what a seal says of files: name -> {"size": bytes, "sha256": hex}."""
    return isinstance(value, dict) and all(map(is_description, value.values()))


def remember(folder: str, written: Mapping[str, tuple[str, str]]) -> None:
    """Record files just written, so that a check need not read them.

    If several processes do so at the same time, one record may be lost: its files are then checked in full.

    Args:
        folder: the folder that has, or will have, the seal.
        written: name relative to the folder -> the stamp that the store gave, and the SHA-256 (hex) of what was written.
    """
    entries = {name: {"stamp": stamp, "sha256": sha256} for name, (stamp, sha256) in written.items() if stamp}
    if entries:
        _write_record(folder, {**_read_record(folder), **entries})


def forget(folder: str, *names: str) -> None:
    """Make the next check read the given files, or all: one was found damaged when loaded, whatever its stamp says.

    Without an earlier record the next check reads all files: a record that names none is written.
    """
    known = _read_record(folder) if names else {}
    _write_record(folder, {name: entry for name, entry in known.items() if name not in names})


def file_sha256(uri: str, sealed: str = "") -> str:
    """SHA-256 (hex) of the object's bytes, read in pieces; once more where it is not `sealed`, since a bit may flip on the way."""
    digest = hashlib.sha256()
    for piece in open_store(uri).stream(uri):
        digest.update(piece)
    found = digest.hexdigest()
    return found if sealed in ("", found) else file_sha256(uri)


def read_hashed(uri: str, sealed: str) -> tuple[bytes, str]:
    """The object's bytes and their SHA-256 (hex); read once more where it is not `sealed`, since a bit may flip on the way."""
    data = read_bytes(uri)
    found = hashlib.sha256(data).hexdigest()
    if found != sealed:
        data = read_bytes(uri)
        found = hashlib.sha256(data).hexdigest()
    return data, found


def _listed(folder: str) -> dict[str, ObjectInfo]:
    return {info.uri.removeprefix(f"{folder.rstrip('/')}/"): info for info in open_store(folder).list(folder)}


def _by_size(folder: str, found: dict[str, ObjectInfo], files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Files that are missing or have another size; each is asked for by itself first, since a listing may be damaged on the way."""
    damaged: dict[str, str] = {}
    for name, sealed in files.items():
        if name not in found or found[name].size != sealed["size"]:
            info = open_store(folder).head(join(folder, name))
            if info is None:
                damaged[name] = "missing"
            elif info.size != sealed["size"]:
                damaged[name] = f"{info.size} bytes, sealed were {sealed['size']}"
            else:
                found[name] = info
    return damaged


def _write_record(folder: str, record: Mapping[str, Mapping[str, str]]) -> None:
    with suppress(InputError, RunError):  # a root that may only be read: it is checked in full each time
        write_document(join(folder, NAME), {"format_version": FORMAT_VERSION, "files": record})


def _read_record(folder: str) -> dict[str, Any]:
    """Name -> stamp and checksum, of an earlier full check; empty if there is none that can be read."""
    try:
        record = read_document(join(folder, NAME), "a record of a check", FORMAT_VERSION)
    except (Corrupt, InputError):
        return {}
    return record["files"] if record is not None and isinstance(record.get("files"), dict) else {}
