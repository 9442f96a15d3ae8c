"""The contents of a source folder: names, sizes, and a fingerprint."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from trainer.config import canonical_hash
from trainer.errors import Corrupt, InputError, RunError
from trainer.staging import kinds
from trainer.staging.rows import Reject, RowT
from trainer.storage import join, open_store
from trainer.storage.base import local_path
from trainer.storage.documents import read_document, write_document

_ALWAYS_READ_BYTES = 256 << 20
"""A source up to this size is read whole each time, so that any change of its bytes is noticed."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source: its name below the folder, its URI, its size in bytes and when it changed."""

    name: str
    uri: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Rows(Generic[RowT]):
    """The rows of a source, in any order, and the rejects."""

    rows: list[RowT]
    rejects: list[Reject]
    attribution: str = ""
    judge: str = ""


def list_source(uri: str, lost: list[Reject] | None = None) -> list[SourceFile]:
    """The files of a source in the order of their names: all below a folder, or the single file at `uri`.

    Local links to folders are followed, each folder once. Names that begin with a dot are skipped, with everything below them.

    Args:
        uri: URI of a folder, a file, or a prefix.
        lost: receives what cannot be read as a file: broken or circular links, sockets, pipes.

    Raises:
        InputError: there is nothing at `uri`.
    """
    store = open_store(uri)
    path = local_path(uri)
    if (path is not None and path.is_file()) or (path is None and uri.endswith(".tar")):
        info = store.head(uri)
        if info is not None:
            return [SourceFile(uri.rsplit("/", 1)[-1], uri, info.size, info.modified)]
    if path is not None and not path.is_dir():
        raise InputError(f"{uri}: no such folder")
    if path is not None:
        files = _walk(path, uri.rstrip("/"), [] if lost is None else lost)
    else:
        listed = [(info.uri.removeprefix(uri.rstrip("/") + "/"), info) for info in store.list(uri.rstrip("/"))]
        files = [SourceFile(name, info.uri, info.size, info.modified) for name, info in listed if not _is_hidden(name)]
    if not files:
        raise InputError(f"{uri}: nothing there (an empty folder, or no such prefix)")
    return sorted(files, key=lambda file: file.name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _walk(root: Path, uri: str, lost: list[Reject]) -> list[SourceFile]:
    """The files below a folder. Links to folders are followed last, so that a folder is listed under its own name if possible."""
    files: list[SourceFile] = []
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[str, str]] = [(str(root), "")]
    links: list[tuple[str, str]] = []
    while waiting or links:
        is_link = not waiting
        place, name = (waiting or links).pop(0 if is_link else -1)
        if not _is_new(place, seen):
            lost.append(Reject(name, "folder that is read already", os.path.realpath(place), counts=False))
            continue
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror}") from error
        for entry in entries:
            below = f"{name}/{entry.name}" if name else entry.name
            if entry.name.startswith("."):
                continue
            try:
                info = entry.stat()
            except OSError as error:
                lost.append(Reject(below, "broken link", f"{error.strerror}", counts=kinds.is_picture(below)))
                continue
            if stat.S_ISDIR(info.st_mode):
                (links if entry.is_symlink() else waiting).append((entry.path, below))
            elif stat.S_ISREG(info.st_mode):
                files.append(SourceFile(below, f"{uri}/{below}", info.st_size, info.st_mtime))
            else:
                lost.append(Reject(below, "not a file", "a socket, a pipe or a device", counts=False))
    return files


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    info = os.stat(folder)
    is_new = (info.st_dev, info.st_ino) not in seen
    seen.add((info.st_dev, info.st_ino))
    return is_new


def fingerprint(files: Sequence[SourceFile], root: str) -> str:
    """SHA-256 over names, sizes and contents.

    The contents of a large source are read once; the result is kept under `root` and reused while its names, sizes and
    times stay the same.
    """
    if sum(file.size for file in files) <= _ALWAYS_READ_BYTES:
        return _content_hash(files)
    listing = canonical_hash([[f.uri, f.size, f.modified] for f in files])
    remembered = join(root, "datasets", "fingerprints", f"{listing[:32]}.json")
    with suppress(Corrupt):  # then it is read again
        found = read_document(remembered, "a fingerprint", 1)
        if found is not None and found.get("listing") == listing:
            return str(found["fingerprint"])
    value = _content_hash(files)
    write_document(remembered, {"format_version": 1, "listing": listing, "fingerprint": value})
    return value


def _content_hash(files: Sequence[SourceFile]) -> str:
    with ThreadPoolExecutor(8) as pool:
        hashes = pool.map(_file_hash, files)
        return canonical_hash([[file.name, file.size, sha256] for file, sha256 in zip(files, hashes, strict=True)])


def _file_hash(file: SourceFile) -> str:
    sha256, size = hashlib.sha256(), 0
    for piece in open_store(file.uri).stream_unsealed(file.uri):
        sha256.update(piece)
        size += len(piece)
    if size != file.size:
        raise RunError(f"{file.uri}: it was listed with {file.size:,} bytes, but has {size:,}: is it still being written? Run again")
    return sha256.hexdigest()
