"""YFCC15M: four lists share the name, joined with YFCC100M's metadata where they need it.

- openai: `yfcc100m_subset_data.tsv` (line number, photo id, hash; 14,829,396 rows), joined with the metadata.
- slip: the same file, and `flickr_unique_ids.npy` (line numbers; together 14,689,580 rows), joined with the metadata.
- declip: JSON lines with caption, filename and url (15,388,848 rows); stands alone.
- rwkv: parquet with a caption or CLIP's token ids (15,061,515 rows), and a hash, file name or URL; stands alone.

Pictures are at {hash[:3]}/{hash[3:6]}/{hash}.jpg below the image base, or at the list's own URLs.
"""

import os
from pathlib import Path

import duckdb
import numpy as np

from trainer.bounds import MAX_CAPTION_BYTES
from trainer.errors import InputError
from trainer.staging.foreign import npy_header
from trainer.staging.remote.inputs import Inputs, choose, columns_of, is_odd, json_objects, quote, run, scalar, texts, tsv, web
from trainer.staging.remote.plan import Table

LISTS = ("openai", "slip", "declip", "rwkv")
_ATTRIBUTION = "YFCC100M (Thomee et al. 2016): photos under the Creative Commons licences that their authors chose"
_TITLE, _DESCRIPTION = "c8", "c9"
_PLACE = "left(hash, 3) || '/' || substr(hash, 4, 3) || '/' || hash || '.jpg'"


def table(
    database: duckdb.DuckDBPyConnection, inputs: Inputs, *, which: str, list_uri: str, metadata_uri: str, ids_uri: str, captions: str
) -> Table:
    """The rows of one of LISTS under a caption policy."""
    if which in ("openai", "slip"):
        if captions == "as-is":
            raise InputError(f"--captions must be title, description, both or slip for the {which} list, which has no captions of its own")
        query = _joined(database, inputs, which, list_uri, metadata_uri, ids_uri)
    else:
        query, own = _declip(database, inputs, list_uri) if which == "declip" else _rwkv(database, inputs, list_uri)
        if captions != own:
            raise InputError(f"--captions must be {own} for this {which} list, which has captions of its own")
    return Table(name=f"yfcc15m-{which}", uri=list_uri, query=query, attribution=_ATTRIBUTION)


def _joined(database: duckdb.DuckDBPyConnection, inputs: Inputs, which: str, list_uri: str, metadata_uri: str, ids_uri: str) -> str:
    """OpenAI's list (SLIP: the part of it that SLIP names) with title and description."""
    if not metadata_uri:
        raise InputError(f"--metadata is needed for the {which} list: YFCC100M's metadata TSV, for titles and descriptions")
    if bool(ids_uri) != (which == "slip"):
        raise InputError("--ids (flickr_unique_ids.npy) is required for the slip list and must not be given for others")
    listed = tsv(inputs.local(list_uri), 3)
    metadata_path = inputs.local(metadata_uri)
    metadata = tsv(metadata_path, _num_columns(metadata_path, metadata_uri))
    only = ""
    if which == "slip":
        _load_ids(database, inputs.local(ids_uri), ids_uri)
        only = "SEMI JOIN slip_ids ON slip_ids.line = TRY_CAST(l.c0 AS BIGINT)"
    # The list is the smaller side: duckdb builds its hash table from it and streams the metadata past.
    return f"""
        SELECT coalesce(TRY_CAST(l.c0 AS BIGINT), -1) AS position, l.c1 AS key,
            left(l.c2, 3) || '/' || substr(l.c2, 4, 3) || '/' || l.c2 || '.jpg' AS image,
            [m.{_TITLE}, m.{_DESCRIPTION}] AS texts, '' AS label,
            CASE WHEN NOT regexp_full_match(coalesce(l.c1, ''), '[0-9]+') OR NOT regexp_full_match(coalesce(l.c2, ''), '[0-9a-f]{{6,}}')
                THEN 'bad row' WHEN m.c1 IS NULL THEN 'no metadata' ELSE '' END AS cause
        FROM {listed} l {only} LEFT JOIN (SELECT c1, {_TITLE}, {_DESCRIPTION} FROM {metadata}) m ON l.c1 = m.c1"""


def _num_columns(path: str, uri: str) -> int:
    """Columns of the metadata, from its first line: releases of it differ at the end."""
    try:
        with duckdb.connect() as scratch:
            first = scratch.execute(
                f"SELECT * FROM read_csv({quote(path)}, delim='\x01', header=false, quote='', escape='', auto_detect=false, "
                "max_line_size=1048576, columns={'line': 'VARCHAR'}) LIMIT 1"
            ).fetchone()
    except duckdb.Error as error:
        raise InputError(f"{uri}: not a text file: {str(error).splitlines()[0]}") from error
    count = first[0].count("\t") + 1 if first and first[0] else 0
    if count < 10:
        raise InputError(f"{uri}: must be YFCC100M's metadata, tab-separated with at least 10 columns; its first line has {count}")
    return count


def _load_ids(database: duckdb.DuckDBPyConnection, path: str, uri: str) -> None:
    try:
        with open(path, "rb") as file:
            npy_header(file, os.path.getsize(path), uri)
        lines = np.load(Path(path), allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: not a .npy file of line numbers: {error}") from error
    if lines.ndim != 1 or not np.issubdtype(lines.dtype, np.integer):
        raise InputError(f"{uri}: must be one row of integers, got {lines.dtype} of shape {lines.shape}")
    database.register("slip_lines", {"line": lines.astype(np.int64)})
    run(database, "CREATE OR REPLACE TABLE slip_ids AS SELECT DISTINCT line FROM slip_lines")
    database.unregister("slip_lines")


def _declip(database: duckdb.DuckDBPyConnection, inputs: Inputs, list_uri: str) -> tuple[str, str]:
    """JSON lines; the picture is named by its hash, or by its URL."""
    fields = {name: f"json_extract(value, '/{name}')" for name in ("caption", "filename", "url")}
    relation = (
        f"(SELECT position, {texts(fields['caption'], 'JSON')} AS texts, {is_odd(fields['caption'], 'JSON')} AS odd, "
        f"{scalar(fields['filename'], 'JSON')} AS filename, {web(scalar(fields['url'], 'JSON'))} AS url "
        f"FROM {json_objects(inputs.local(list_uri))})"
    )
    query = f"""
        SELECT position, CASE WHEN hash <> '' THEN hash ELSE md5(coalesce(url, '')) END AS key,
            CASE WHEN hash <> '' THEN {_PLACE} ELSE url END AS image, texts, '' AS label,
            CASE WHEN hash = '' AND coalesce(url, '') = '' THEN 'bad row' WHEN len(texts) = 0 AND odd THEN 'caption is not text'
                WHEN len(array_to_string(texts, ' ')) > {MAX_CAPTION_BYTES} THEN 'too many bytes' ELSE '' END AS cause
        FROM (SELECT *, regexp_extract(coalesce(filename, ''), '([0-9a-f]{{20,}})\\.[a-z]+$', 1) AS hash FROM {relation})"""
    return query, "as-is"


def _rwkv(database: duckdb.DuckDBPyConnection, inputs: Inputs, list_uri: str) -> tuple[str, str]:
    """Parquet; token ids are decoded when the picture is fetched."""
    relation = f"read_parquet({quote(inputs.local(list_uri))})"
    columns = columns_of(database, relation)
    if any(kind.startswith("STRUCT") or kind == "BLOB" for kind in columns.values()):
        raise InputError(f"{list_uri}: contains the pictures themselves: convert it to tars with `stage unpack`, then run `stage pairs`")
    text = choose(columns, ("caption", "text", "texts", "tokens", "token_ids"), list_uri)
    kind, own = columns[text.strip('"')], "as-is"
    if kind.endswith("[]") and kind != "VARCHAR[]":
        found, odd, own = f"[array_to_string({text}, ' ')]", "false", "tokens"
    else:
        found, odd = texts(text, kind), is_odd(text, kind)
    place = choose(columns, ("hash", "filename", "path", "key", "url"), list_uri)
    query = f"""
        SELECT position, CASE WHEN hash <> '' THEN hash ELSE md5(coalesce(place, '')) END AS key,
            CASE WHEN hash <> '' THEN {_PLACE} ELSE place END AS image, texts, '' AS label,
            CASE WHEN coalesce(place, '') = '' THEN 'bad row' WHEN len(texts) = 0 AND odd THEN 'caption is not text'
                WHEN len(array_to_string(texts, ' ')) > {MAX_CAPTION_BYTES} THEN 'too many bytes' ELSE '' END AS cause
        FROM (SELECT *, regexp_extract(coalesce(place, ''), '(?:^|/)([0-9a-f]{{20,}})(?:\\.[a-z]+)?$', 1) AS hash
              FROM (SELECT file_row_number AS position, {web(f"CAST({place} AS VARCHAR)")} AS place, {found} AS texts, {odd} AS odd
                    FROM {relation[:-1]}, file_row_number=true)))"""
    return query, own
