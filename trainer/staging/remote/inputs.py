"""The files a plan is made from, on this machine's disk, where duckdb can read them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from trainer.bounds import MAX_LIST_RATIO, naming_full_disk
from trainer.errors import InputError, RunError
from trainer.staging.parquet import first_line
from trainer.staging.remote.download import download
from trainer.staging.remote.http import is_web
from trainer.staging.sources.listing import SourceFile
from trainer.storage import open_store
from trainer.storage.base import absolute, local_path


class Inputs:
    """Files by URI, copied to `scratch` where they do not lie on this machine; servers are told `contact`."""

    def __init__(self, scratch: Path, contact: str = "") -> None:
        self._scratch = scratch
        self._contact = contact
        self.files: list[SourceFile] = []

    def local(self, uri: str) -> str:
        """A local path of the file at `uri`, which becomes part of the source's fingerprint."""
        uri = absolute(uri)
        if uri.endswith((".bz2", ".pkl", ".pickle", ".sql", ".db")):
            raise InputError(f"{uri}: must be plain text, .gz, .zst, .parquet or .npy: unpack or convert it first")
        name = uri.rsplit("/", 1)[-1]
        copy = self._scratch / f"{len(self.files)}-{name}"
        if is_web(uri):
            download(uri, copy, contact=self._contact)
            self.files.append(SourceFile(name, str(copy), copy.stat().st_size, 0.0))
            return _checked(copy, uri)
        info = open_store(uri).head(uri)
        if info is None:
            raise InputError(f"{uri}: no such file")
        self.files.append(SourceFile(name, uri, info.size, info.modified))
        path = local_path(uri)
        if path is not None:
            return _checked(path, uri)
        with naming_full_disk(uri, self._scratch), open(copy, "wb") as file:
            for piece in open_store(uri).stream(uri):
                file.write(piece)
        return _checked(copy, uri)


_PROBED_BYTES = 8 << 20  # of a packed list; what they hold shows whether it is text or a bomb
_MAX_PROBED_BYTES = MAX_LIST_RATIO << 20


def _checked(path: Path, uri: str) -> str:
    """The path of a list; InputError where it is packed and its beginning holds far more than text does."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    if codec:
        try:
            with open(path, "rb") as packed, pa.CompressedInputStream(packed, codec) as stream:
                size = 0
                while packed.tell() < _PROBED_BYTES and (piece := stream.read(1 << 20)):
                    size += len(piece)
                    if size > max(_MAX_PROBED_BYTES, packed.tell() * MAX_LIST_RATIO):
                        ratio = f"the first {packed.tell():,} bytes hold more than {size:,}"
                        raise InputError(f"{uri}: {ratio}, at most {MAX_LIST_RATIO} times as many are read: a decompression bomb?")
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{uri}: not a whole {codec} file: {first_line(error)}") from error
    return str(path)


def quote(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def tsv(path: str, columns: int) -> str:
    """A relation over a tab-separated file without header and quotes: columns c0, c1, … as text."""
    names = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(columns))
    return (
        f"read_csv({quote(path)}, delim='\\t', header=false, quote='', escape='', comment='', auto_detect=false, "
        f"strict_mode=true, null_padding=false, max_line_size=1048576, columns={{{names}}})"
    )


def columns_of(database: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Names and types of a relation's columns."""
    return {str(row[0]): str(row[1]) for row in run(database, f"DESCRIBE SELECT * FROM {relation}")}


def choose(columns: dict[str, str], wanted: Sequence[str], uri: str) -> str:
    """The first of the wanted columns (whatever its case), as an SQL identifier; InputError where there is none."""
    by_name = {name.strip().lower(): name for name in columns}
    for name in wanted:
        if name in by_name:
            return '"' + by_name[name].replace('"', '""') + '"'
    raise InputError(f"{uri}: has no column {' or '.join(map(repr, wanted))} (it has {', '.join(columns)})")


def run(database: duckdb.DuckDBPyConnection, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement and give its rows, all at once; what duckdb says of the user's file becomes one line."""
    try:
        return list(database.execute(statement).fetchall())
    except duckdb.OutOfMemoryException as error:
        raise RunError(f"the join does not fit: raise --memory-mb, or give --scratch more room: {first_line(error)}") from error
    except (duckdb.InternalException, duckdb.FatalException) as error:
        raise RunError(f"duckdb failed: {first_line(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:  # of statements that are right: what the user's file holds is not
        text = str(error)
        if "No space left" in text:
            raise RunError(f"the disk is full: give --scratch a folder with room: {text.splitlines()[0]}") from error
        file = re.search(r"file = (.*)", text)
        found = re.search(r"Line: (\d+)[\s\S]*?(Expected Number of Columns: \d+ Found: \d+)", text)
        if found:
            raise InputError(f"{file[1].strip() if file else 'list'}: line {found[1]}: {found[2].lower()}") from error
        raise InputError(" ".join(first_line(error).split())) from error
