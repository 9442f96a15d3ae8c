"""The rows of a slice as a parquet file: what `stage plan` leaves for `stage fetch`."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bounds import MAX_TABLE_ROWS, parse_json
from trainer.errors import Corrupt, InputError
from trainer.staging import plans
from trainer.staging.parquet import BROKEN, first_line, read_batches
from trainer.staging.plans import Plan
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.base import MissingObject
from trainer.storage.checked import describe, find_damaged
from trainer.storage.manifest import Files

REMOTE = 2
"""The value of a plan's `source.remote`: the version of the rules by which fetching turns rows into samples."""
SHOWN_SINCE = 2
"""First version in which a sample records its URL without credentials."""
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("images", pa.list_(pa.string())),
        ("texts", pa.list_(pa.string())),
        ("label", pa.string()),
        ("facts", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRow:
    """One sample before its pictures are fetched.

    Attributes:
        key: unique in the data set, safe as a tar key.
        images: full URIs, or paths below the plan's image base; one for pairs, three for triplets (ref, 0, 1).
        texts: raw texts, before the caption policy is applied.
        label: class name, or empty.
        facts: for triplets: votes and so on.
    """

    key: str
    images: Sequence[str]
    texts: Sequence[str | None] = ()
    label: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def slice_rows_name(number: int) -> str:
    """The file with a slice's rows, relative to the data set's folder."""
    return f"rows/slice-{number:05d}.parquet"


def write_rows(folder: str, number: int, table: pa.Table) -> Files:
    """Write the rows of one slice, a table with SCHEMA; size and checksum by name, for the plan."""
    stream = io.BytesIO()
    pq.write_table(table.cast(SCHEMA), stream, compression="zstd")
    name = slice_rows_name(number)
    write_bytes(join(folder, name), stream.getvalue())
    return {name: describe(stream.getvalue())}


def as_table(rows: Sequence[RemoteRow]) -> pa.Table:
    """Rows as a table with SCHEMA."""
    records = [
        {
            "key": row.key,
            "images": list(row.images),
            "texts": list(row.texts),
            "label": row.label,
            "facts": json.dumps(row.facts, sort_keys=True),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def read_rows(folder: str, plan: Plan, number: int) -> list[RemoteRow]:
    """The rows of one slice, in the order in which they are staged; Corrupt if they are missing or damaged."""
    name = slice_rows_name(number)
    uri, again = join(folder, name), "run `stage plan` again"
    try:
        data = read_bytes(uri)
        if plan.format_version > 1 and describe(data) != plan.files.get(name):
            raise Corrupt(f"{uri}: its checksum does not match the one in {plans.PLAN}: {again}")
        with pq.ParquetFile(io.BytesIO(data)) as parquet:
            if not parquet.schema_arrow.equals(SCHEMA) or not 0 <= parquet.metadata.num_rows <= MAX_TABLE_ROWS:
                raise Corrupt(f"{uri}: not the rows of a slice: other columns, or too many rows: {again}")
            return [_row(record, f"{uri}: row {count}") for count, record in enumerate(read_batches(parquet, uri, SCHEMA.names))]
    except MissingObject as error:
        raise Corrupt(f"{uri}: missing: {again}") from error
    except Corrupt:
        raise
    except (*BROKEN, InputError) as error:
        raise Corrupt(f"{uri}: not the rows of a slice: {first_line(error)}: {again}") from error


def _row(record: dict[str, Any], where: str) -> RemoteRow:
    """A row of the table; InputError if a required column is empty, or its facts are not JSON."""
    facts = parse_json(record["facts"] or "{}", f"{where}: facts")
    if not isinstance(record["key"], str) or not record["images"] or None in record["images"] or not isinstance(facts, dict):
        raise InputError(f"{where}: has no key or no picture, or its facts are not an object")
    return RemoteRow(**{**record, "texts": record["texts"] or (), "label": record["label"] or "", "facts": facts})


def read_plan(folder: str) -> Plan:
    """The plan in `folder`.

    Raises:
        InputError: there is none, a newer firstsight wrote it, or it is not for a list.
        Corrupt: it was damaged or changed by hand.
    """
    plan = plans.read_plan(folder)
    if plan is None:
        raise InputError(f"{folder}: no plan here ({plans.PLAN} is missing): run `stage plan`, and give the folder it prints")
    if "remote" not in plan.source:
        raise InputError(f"{folder}: planned by `stage {plan.kind}`, which fetches and seals by itself")
    return plan


def is_planned(folder: str) -> bool:
    """Whether `folder` contains an undamaged plan with all its rows."""
    try:
        plan = plans.read_plan(folder)
    except Corrupt as error:
        print(f"{error}: planning again", file=sys.stderr)
        return False
    if plan is None:
        return False
    for name, reason in find_damaged(folder, plan.files).items():
        print(f"{join(folder, name)}: {reason}: planned again", file=sys.stderr)
        return False
    try:
        for number in range(len(plan.splits)) if plan.format_version == 1 else ():  # it has no checksums
            read_rows(folder, plan, number)
    except Corrupt as error:
        print(error, file=sys.stderr)
        return False
    return True
