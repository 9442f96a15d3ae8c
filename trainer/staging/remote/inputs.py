"""The input files of a plan, copied to the local disk so that duckdb can read them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from trainer.bounds import MAX_LIST_RATIO, naming_full_disk
from trainer.errors import InputError, RunError
from trainer.staging.captions import MAY_BE_LATIN_1, check_beginning
from trainer.staging.parquet import first_line
from trainer.staging.remote.download import download
from trainer.staging.remote.http import is_web
from trainer.staging.sources.listing import SourceFile
from trainer.storage import open_store
from trainer.storage.base import absolute, local_path


class Inputs:
    """Files by URI, copied to `scratch` unless they are local; `contact` is sent to servers."""

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
            for piece in open_store(uri).stream_unsealed(uri):
                file.write(piece)
        return _checked(copy, uri)


_PROBED_BYTES = 8 << 20  # of a compressed list: enough to tell text from a bomb
_MAX_PROBED_BYTES = MAX_LIST_RATIO << 20


def _checked(path: Path, uri: str) -> str:
    """The path of a list; InputError if it begins as UTF-16, or unpacks to far more than text does."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    if not codec and path.suffix not in (".parquet", ".npy"):
        with open(path, "rb") as file:
            try:
                check_beginning(file.read(64))
            except ValueError as error:
                raise InputError(f"{uri}: {error}") from error
    if codec:
        try:
            with open(path, "rb") as packed, pa.CompressedInputStream(packed, codec) as stream:
                size = 0
                while packed.tell() < _PROBED_BYTES and (piece := stream.read(1 << 20)):
                    size += len(piece)
                    if size > max(_MAX_PROBED_BYTES, packed.tell() * MAX_LIST_RATIO):
                        ratio = f"the first {packed.tell():,} bytes hold more than {size:,}"
                        raise InputError(f"{uri}: {ratio}, but at most a ratio of {MAX_LIST_RATIO} is read: a decompression bomb?")
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


def lines(path: str) -> str:
    """A relation over the lines of a text file, none of which has the character 1: the column `line`."""
    return (
        f"read_csv({quote(path)}, delim='\x01', header=false, quote='', escape='', comment='', auto_detect=false, strict_mode=false, "
        "null_padding=true, max_line_size=16777216, columns={'line': 'VARCHAR'})"
    )


def json_objects(path: str) -> str:
    """A relation over JSON lines, or over the objects of a JSON list: `position`, and `value` of type JSON, null where it is none."""
    if path.endswith((".json", ".json.gz", ".json.zst")):
        return f"(SELECT row_number() OVER () AS position, json AS value FROM read_json_objects({quote(path)}, format='array'))"
    return (
        "(SELECT position, TRY_CAST(CASE WHEN json_valid(line) THEN line END AS JSON) AS value FROM "
        f"(SELECT row_number() OVER () AS position, line FROM {lines(path)}) WHERE trim(coalesce(line, '')) <> '')"
    )


def texts(column: str, kind: str) -> str:
    """A list of the texts in a column: lines of a string, strings of a list; anything else has none."""
    by_line = "string_split({}, chr(10))"
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        found = by_line.format(f"CAST({column} AS VARCHAR)")
    elif kind == "VARCHAR[]":
        found = column
    elif kind == "JSON":
        array = f"CAST(CASE WHEN json_type({column}) = 'ARRAY' THEN {column} END AS JSON[])"
        strings = f"list_filter({array}, lambda x: json_type(x) = 'VARCHAR')"
        one = by_line.format(f"{column} ->> '$'")
        found = f"CASE json_type({column}) WHEN 'VARCHAR' THEN {one} ELSE list_transform({strings}, lambda x: x ->> '$') END"
    else:
        return "CAST([] AS VARCHAR[])"
    return f"list_filter(coalesce({found}, []), lambda x: regexp_matches(coalesce(x, ''), '\\S'))"


def is_odd(column: str, kind: str) -> str:
    """Whether a column without texts holds any other value."""
    if kind == "JSON":
        says_nothing = f"CAST({column} AS VARCHAR) IN ('NaN', '[]', '[null]')"
        return f"coalesce(json_type({column}), 'NULL') NOT IN ('NULL', 'VARCHAR') AND NOT {says_nothing}"
    if kind in ("DOUBLE", "FLOAT"):
        return f"{column} IS NOT NULL AND NOT isnan({column})"
    return "false" if kind.startswith(("VARCHAR", "ENUM")) else f"{column} IS NOT NULL"


def scalar(column: str, kind: str) -> str:
    """A column as text on one line: strings and whole numbers; anything else is null."""
    if kind == "JSON":
        text = f"CASE WHEN json_type({column}) IN ('VARCHAR', 'UBIGINT', 'BIGINT') THEN {column} ->> '$' END"
    elif kind in ("DOUBLE", "FLOAT"):  # whole numbers with gaps, as pandas writes them
        text = f"CASE WHEN isfinite({column}) AND {column} = floor({column}) THEN CAST(CAST({column} AS HUGEINT) AS VARCHAR) END"
    elif kind in ("BOOLEAN", "BLOB") or kind.startswith(("STRUCT", "MAP", "UNION")) or kind.endswith("]"):
        return "CAST(NULL AS VARCHAR)"
    else:
        text = f"CAST({column} AS VARCHAR)"
    return f"trim(regexp_replace({text}, '{_WHITE}', ' ', 'g'))"


def web(text: str) -> str:
    """A URL with its scheme in lower case."""
    return f"regexp_replace(regexp_replace({text}, '^https://', 'https://', 'i'), '^http://', 'http://', 'i')"


_WHITE = r"[\s\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}\x{0b}]+"
"""What Python's str.split treats as white space, plus the byte order mark, so that labels in lists and folders are cleaned alike."""


def columns_of(database: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Names and types of a relation's columns."""
    return {str(row[0]): str(row[1]) for row in run(database, f"DESCRIBE SELECT * FROM {relation}")}


def find_columns(columns: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The wanted columns that exist (ignoring case), in the wanted order."""
    by_name = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in columns}
    return [by_name[name] for name in wanted if name in by_name]


def choose(columns: dict[str, str], wanted: Sequence[str], uri: str) -> str:
    """The first of the wanted columns that exists (ignoring case), as an SQL identifier; InputError if there is none."""
    found = find_columns(columns, wanted)
    if not found:
        raise InputError(f"{uri}: has no column {' or '.join(map(repr, wanted))} (it has {', '.join(columns)})")
    return identifier(found[0])


def identifier(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def run(database: duckdb.DuckDBPyConnection, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement and return all its rows; duckdb's errors about the user's file become one line."""
    try:
        return list(database.execute(statement).fetchall())
    except duckdb.OutOfMemoryException as error:
        raise RunError(f"the join does not fit into memory: raise --memory-mb, or give --scratch more room: {first_line(error)}") from error
    except (duckdb.InternalException, duckdb.FatalException) as error:
        raise RunError(f"duckdb failed: {first_line(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:  # the statements are right, so the user's file is wrong
        text = str(error)
        if "No space left" in text:
            raise RunError(f"the disk is full: give --scratch a folder with room: {text.splitlines()[0]}") from error
        file = re.search(r"file = (.*)", text)
        if "not utf-8 encoded" in text:
            place = re.search(r"Line: (\d+)", text)
            name, line = file[1].strip() if file else "list", f"line {place[1]} is not" if place else "it is not"
            raise InputError(f"{name}: must be UTF-8, but {line}: {MAY_BE_LATIN_1}") from error
        found = re.search(r"Line: (\d+)[\s\S]*?(Expected Number of Columns: \d+ Found: \d+)", text)
        if found:
            raise InputError(f"{file[1].strip() if file else 'list'}: line {found[1]}: {found[2].lower()}") from error
        raise InputError(" ".join(first_line(error).split())) from error
