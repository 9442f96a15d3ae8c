"""What a source folder holds: names, sizes, and a fingerprint over their contents."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic

from trainer.config import canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.staging.rows import Reject, RowT
from trainer.storage import join, open_store
from trainer.storage.base import local_path
from trainer.storage.documents import read_document, write_document

_ALWAYS_READ_BYTES = 256 << 20
"""A source up to this size is read whole each time: nothing but its bytes decides whether it changed."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source: its name below the folder, its URI, its size in bytes and when it changed."""

    name: str
    uri: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Rows(Generic[RowT]):
    """The rows of a source, in any order, and the rows that did not become one."""

    rows: list[RowT]
    rejects: list[Reject]
    attribution: str = ""
    judge: str = ""


def list_source(uri: str) -> list[SourceFile]:
    """The files of a source in the order of their names: all below a folder, or the one file that `uri` is.

    Raises:
        InputError: there is nothing.
    """
    store = open_store(uri)
    path = local_path(uri)
    if (path is not None and path.is_file()) or (path is None and uri.endswith(".tar")):
        info = store.head(uri)
        if info is not None:
            return [SourceFile(uri.rsplit("/", 1)[-1], uri, info.size, info.modified)]
    if path is not None and not path.is_dir():
        raise InputError(f"{uri}: no such folder")
    prefix = uri.rstrip("/") + "/"
    files = []
    for info in store.list(uri.rstrip("/")):
        name = info.uri.removeprefix(prefix)
        if not any(part.startswith(".") for part in name.split("/")):
            files.append(SourceFile(name, info.uri, info.size, info.modified))
    if not files:
        raise InputError(f"{uri}: nothing there (an empty folder, or no such prefix)")
    return sorted(files, key=lambda file: file.name)


def fingerprint(files: Sequence[SourceFile], root: str) -> str:
    """SHA-256 over names, sizes and contents.

    The contents of a large source are read once; as long as its names, sizes and times stay, the result is
    remembered under `root`.
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
    sha256 = hashlib.sha256()
    for piece in open_store(file.uri).stream(file.uri):
        sha256.update(piece)
    return sha256.hexdigest()
