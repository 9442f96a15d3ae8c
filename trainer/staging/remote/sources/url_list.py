"""Any list of URLs with captions: CSV, TSV, JSON lines or parquet, a header naming the columns.

Columns, by the first name that is there: url | URL | image_url; caption | text | alt_text | title (several captions of one
picture stand in one field, a line each); optional label; optional id | key (else the URL's MD5 is the key).
"""

import duckdb

from trainer.bounds import MAX_CAPTION_BYTES, MAX_CAPTIONS
from trainer.errors import InputError
from trainer.staging.remote.inputs import Inputs, choose, columns_of, quote
from trainer.staging.remote.plan import Table

_READERS = {
    (
        ".csv",
        ".csv.gz",
        ".csv.zst",
    ): "read_csv({path}, delim=',', quote='\"', escape='\"', header=true, all_varchar=true, strict_mode=true)",
    (".tsv", ".tsv.gz", ".tsv.zst"): "read_csv({path}, delim='\\t', quote='', escape='', header=true, all_varchar=true, strict_mode=true)",
    (".jsonl", ".ndjson", ".jsonl.gz"): "read_json({path}, format='newline_delimited')",
    (".parquet",): "read_parquet({path})",
}


def table(database: duckdb.DuckDBPyConnection, inputs: Inputs, *, list_uri: str, captions: str) -> Table:
    """The rows of a list."""
    if captions != "as-is":
        raise InputError("--captions must be as-is for a list of URLs, which has captions of its own")
    reader = next((text for suffixes, text in _READERS.items() if list_uri.endswith(suffixes)), None)
    if reader is None:
        raise InputError(f"{list_uri}: must end in one of {', '.join(suffix for suffixes in _READERS for suffix in suffixes)}")
    relation = reader.format(path=quote(inputs.local(list_uri)))
    columns = columns_of(database, relation)
    url = choose(columns, ("url", "image_url"), list_uri)
    caption = choose(columns, ("caption", "text", "alt_text", "title"), list_uri)
    names = {name.strip().lower() for name in columns}
    key = f"CAST({choose(columns, ('id', 'key'), list_uri)} AS VARCHAR)" if names & {"id", "key"} else f"md5(trim(CAST({url} AS VARCHAR)))"
    label = f"CAST({choose(columns, ('label',), list_uri)} AS VARCHAR)" if "label" in names else "''"
    query = f"""
        SELECT position, coalesce(key, '') AS key, url AS image, string_split(coalesce(caption, ''), chr(10)) AS texts,
            coalesce(label, '') AS label,
            CASE WHEN NOT regexp_matches(coalesce(url, ''), '^https?://[^/ ]+') THEN 'bad URL' WHEN coalesce(key, '') = '' THEN 'bad row'
                WHEN trim(coalesce(caption, '')) = '' THEN 'empty caption' WHEN length(caption) > {MAX_CAPTION_BYTES} THEN 'too many bytes'
                WHEN len(string_split(caption, chr(10))) > {MAX_CAPTIONS} THEN 'too many captions' ELSE '' END AS cause
        FROM (SELECT row_number() OVER () AS position, trim(CAST({url} AS VARCHAR)) AS url, CAST({caption} AS VARCHAR) AS caption,
                  {key} AS key, {label} AS label FROM {relation})"""
    return Table(name=_slug(list_uri), uri=list_uri, query=query, attribution="")


def _slug(uri: str) -> str:
    stem = uri.rstrip("/").rsplit("/", 1)[-1].partition(".")[0].lower()
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem).strip("-")[:40] or "urls"
