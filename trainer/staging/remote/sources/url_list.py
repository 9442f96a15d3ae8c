"""Any list of URLs with captions: CSV of any separator, JSON lines, JSON or parquet.

Columns, by the first name that exists: url, image_url, img_url; caption(s), text(s), alt_text, title (in each row the first column
with text is used; several captions are in one field, one per line, or in a list); optional label; optional id or key (default: the
URL's MD5). A two-column CSV whose first line has a URL has no header, as in CC3M and CC12M.
"""

import csv
from collections.abc import Sequence

import duckdb

from trainer.bounds import MAX_CAPTION_BYTES, MAX_CAPTIONS
from trainer.errors import InputError
from trainer.staging.remote.http import is_web
from trainer.staging.remote.inputs import (
    Inputs,
    columns_of,
    find_columns,
    identifier,
    is_odd,
    json_objects,
    lines,
    quote,
    run,
    scalar,
    texts,
    web,
)  # fmt: skip
from trainer.staging.remote.plan import Table

_URL = ("url", "image_url", "img_url", "image_link", "originalurl")
_CAPTION = ("caption", "captions", "text", "texts", "alt_text", "title")
_TABLES = tuple(f"{suffix}{packed}" for suffix in (".csv", ".tsv", ".psv", ".tab", ".txt") for packed in ("", ".gz", ".zst"))
_JSON = tuple(f"{suffix}{packed}" for suffix in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))
_SEPARATORS = ",\t;|"
_SEEN_OBJECTS = 1000
"""Objects of a JSON list that are inspected: their keys are the columns."""


def table(database: duckdb.DuckDBPyConnection, inputs: Inputs, *, list_uri: str, captions: str) -> Table:
    """The rows of a list.

    Raises:
        InputError: not a list, or one without a column of URLs or captions; the message says what was found.
    """
    if captions != "as-is":
        raise InputError("--captions must be as-is for a list of URLs, which has captions of its own")
    if not list_uri.endswith((*_TABLES, *_JSON, ".parquet")):
        raise InputError(f"{list_uri}: must end in one of {', '.join((*_TABLES, *_JSON, '.parquet'))}")
    relation, columns = _open(database, inputs.local(list_uri), list_uri)
    found = {"url": find_columns(columns, _URL), "caption": find_columns(columns, _CAPTION) or find_columns(columns, ("label",))}
    for names, there in ((_URL[:2], found["url"]), (_CAPTION, found["caption"])):
        if not there:
            raise InputError(
                f"{list_uri}: has no column {' or '.join(map(repr, names))} (it has {', '.join(columns) or 'none'}): rename a column; a "
                "list of files in a folder is staged by stage pairs --source FOLDER"
            )
    key, label = find_columns(columns, ("id", "key")), find_columns(columns, ("label",))
    given = {name: scalar(*columns[names[0]]) if names else "''" for name, names in (("key", key), ("label", label), ("url", found["url"]))}
    each = [texts(*columns[name]) for name in found["caption"]]
    odd = " OR ".join(is_odd(*columns[name]) for name in found["caption"])
    chosen = "CASE " + " ".join(f"WHEN len({one}) > 0 THEN {one}" for one in each) + " ELSE CAST([] AS VARCHAR[]) END"
    query = f"""
        SELECT position, {"coalesce(key, '')" if key else "md5(url)"} AS key, url AS image, texts, coalesce(label, '') AS label,
            CASE WHEN broken THEN 'bad row' WHEN NOT regexp_matches(url, '^https?://[^/ ]+') THEN 'bad URL'
                WHEN {"coalesce(key, '') = ''" if key else "false"} THEN 'bad row'
                WHEN len(texts) = 0 AND odd THEN 'caption is not text' WHEN len(texts) = 0 THEN 'empty caption'
                WHEN len(array_to_string(texts, ' ')) > {MAX_CAPTION_BYTES} THEN 'too many bytes'
                WHEN len(texts) > {MAX_CAPTIONS} THEN 'too many captions' ELSE '' END AS cause
        FROM (SELECT "#position" AS position, "#broken" AS broken, coalesce({web(given["url"])}, '') AS url, {given["key"]} AS key,
                  {given["label"]} AS label, {chosen} AS texts, {odd} AS odd FROM {relation})"""
    return Table(name=_slug(list_uri), uri=list_uri, query=query, attribution="")


def _open(database: duckdb.DuckDBPyConnection, path: str, uri: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """A relation over a list with "#position" and "#broken"; and the expression and type of each column, by its name in the list."""
    if uri.endswith(_JSON):
        seen = f"(SELECT value FROM {json_objects(path)} WHERE json_type(value) = 'OBJECT' LIMIT {_SEEN_OBJECTS})"
        keys = [str(row[0]) for row in run(database, f"SELECT DISTINCT unnest(json_keys(value)) AS key FROM {seen} ORDER BY key")]
        broken = "coalesce(json_type(value), '') <> 'OBJECT'"
        relation = f'(SELECT position AS "#position", {broken} AS "#broken", value FROM {json_objects(path)})'
        return relation, {key: (f"json_extract(value, {quote(_pointer(key))})", "JSON") for key in keys}
    read = f"read_parquet({quote(path)})" if uri.endswith(".parquet") else _table(database, path)
    relation = f'(SELECT row_number() OVER () AS "#position", false AS "#broken", * FROM {read})'
    return relation, {name: (identifier(name), kind) for name, kind in columns_of(database, read).items()}


def _table(database: duckdb.DuckDBPyConnection, path: str) -> str:
    """A relation over a CSV, with the separator that yields the columns for URL and caption in the first line."""
    first = run(database, f"SELECT line FROM {lines(path)} LIMIT 1")
    line = str(first[0][0] or "") if first else ""
    headers = {one: next(csv.reader([line], delimiter=one), []) for one in _SEPARATORS}
    by_width = sorted(headers, key=lambda one: -len(headers[one]))
    with_header = (one for one in by_width if find_columns(headers[one], _URL) and find_columns(headers[one], _CAPTION))
    separator = next(with_header, next((one for one in by_width if _names_of(headers[one])), by_width[0]))
    quotes = "quote='', escape=''" if separator in "\t|" else "quote='\"', escape='\"'"
    names = _names_of(headers[separator])
    header = f"header=false, names=[{', '.join(map(quote, names))}]" if names else "header=true"
    return f"read_csv({quote(path)}, delim={quote(separator)}, {quotes}, {header}, all_varchar=true, strict_mode=true)"


def _names_of(first: Sequence[str]) -> list[str]:
    """Names for the columns if the first line is already a row (one URL and one caption); else none."""
    names = ["url" if is_web(field.strip()) else "caption" for field in first]
    return names if sorted(names) == ["caption", "url"] else []


def _pointer(key: str) -> str:
    """A key as a JSON pointer."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _slug(uri: str) -> str:
    stem = uri.rstrip("/").rsplit("/", 1)[-1].partition(".")[0].lower()
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem).strip("-")[:40] or "urls"
