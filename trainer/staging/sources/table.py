"""Pairs from a folder with captions.csv: columns file, caption[, label, split, family]."""

import csv
import io
from collections.abc import Sequence

from trainer.bounds import MAX_TABLE_BYTES, check_size
from trainer.errors import InputError
from trainer.staging.captions import BadCaptionError, clean_captions
from trainer.staging.rows import Blob, PairRow, Reject, check_split, check_unique, safe_key
from trainer.staging.sources.listing import Rows, SourceFile

NAME = "captions.csv"


def read(uri: str, files: Sequence[SourceFile]) -> Rows[PairRow]:
    """Every row of captions.csv; several captions of one picture stand in one field, a line each.

    Raises:
        InputError: no UTF-8, a missing column, a picture that is named twice, an unknown split.
    """
    by_name = {file.name: file for file in files}
    table = by_name[NAME]
    records = read_csv(table, ("file", "caption"))
    check_unique((record["file"].rpartition(".")[0] or record["file"] for record in records), table.uri)
    rows: list[PairRow] = []
    rejects: list[Reject] = []
    for number, record in enumerate(records, start=2):
        where = f"{table.uri}: row {number}"
        split = check_split((record.get("split") or "").strip(), where)
        name = record["file"].strip()
        image = by_name.get(name)
        if image is None:
            rejects.append(Reject(name or f"row {number}", "no such file", f"row {number} of {NAME}: not a file of this folder"))
            continue
        try:
            captions = clean_captions((record["caption"] or "").splitlines(), f"row {number} of {NAME}")
            if not captions:
                raise BadCaptionError("empty caption", f"row {number} of {NAME}")
        except BadCaptionError as error:
            rejects.append(Reject(name, error.cause, error.detail))
            continue
        label, family = (record.get("label") or "").strip(), (record.get("family") or "").strip()
        key = safe_key(name.rpartition(".")[0] or name)
        rows.append(
            PairRow(
                key=key, where=name, image=Blob(image.uri, length=image.size), captions=captions, label=label, split=split, family=family
            )
        )
    if not records:
        raise InputError(f"{table.uri}: no rows below the header")
    return Rows(rows=rows, rejects=rejects)


def read_csv(table: SourceFile, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by column name; InputError where it is no UTF-8 or lacks a column."""
    check_size(table.size, MAX_TABLE_BYTES, table.uri)
    data = Blob(table.uri).read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{table.uri}: must be UTF-8, line {line} has byte {data[error.start]:#04x}") from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        missing = [column for column in required if column not in columns]
        if missing:
            has = ", ".join(columns) or "nothing"
            raise InputError(f"{table.uri}: has no column {' and no column '.join(map(repr, missing))} (its first line: {has})")
        reader.fieldnames = columns
        records = []
        for record in reader:
            if None in record or None in record.values():
                raise InputError(f"{table.uri}: line {reader.line_num} must have {len(columns)} columns, as the first line has")
            records.append(record)
        return records
    except csv.Error as error:
        raise InputError(f"{table.uri}: not CSV: {error}") from error
