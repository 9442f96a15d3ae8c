"""The rows of a slice as a parquet file: what `stage plan` leaves for `stage fetch`."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import InputError, RunError
from trainer.staging.writer import PLAN_VERSION, Plan
from trainer.storage import join, read_bytes, read_json, write_bytes
from trainer.storage.base import MissingObject

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
        images: whole URIs, or paths below the plan's image base; one for pairs, three for triplets (ref, 0, 1).
        texts: raw texts, to which the caption policy is still to be applied.
        label: class name, or empty.
        facts: of triplets: votes and the like.
    """

    key: str
    images: Sequence[str]
    texts: Sequence[str | None] = ()
    label: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def slice_rows_uri(folder: str, number: int) -> str:
    """Where the rows of a slice lie."""
    return join(folder, "rows", f"slice-{number:05d}.parquet")


def write_rows(folder: str, number: int, table: pa.Table) -> None:
    """Write the rows of one slice, a table with SCHEMA."""
    stream = io.BytesIO()
    pq.write_table(table.cast(SCHEMA), stream, compression="zstd")
    write_bytes(slice_rows_uri(folder, number), stream.getvalue())


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


def read_rows(folder: str, number: int) -> list[RemoteRow]:
    """The rows of one slice, in the order in which they are staged."""
    uri = slice_rows_uri(folder, number)
    try:
        records = pq.read_table(io.BytesIO(read_bytes(uri)), schema=SCHEMA).to_pylist()
    except pa.ArrowException as error:
        raise RunError(f"{uri}: not the rows of a slice: {str(error).splitlines()[0]}") from error
    return [RemoteRow(**{**record, "label": record["label"] or "", "facts": json.loads(record["facts"] or "{}")}) for record in records]


def read_plan(folder: str) -> Plan:
    """The plan in `folder`; InputError where there is none or it is of a newer firstsight."""
    uri = join(folder, "plan.json")
    try:
        value = read_json(uri)
    except MissingObject as error:
        raise InputError(f"{folder}: no plan here (plan.json is missing): run `stage plan`, and give the folder it prints") from error
    if not isinstance(value, dict) or not isinstance(value.get("format_version"), int):
        raise RunError(f"{uri}: not a plan of firstsight: no format_version")
    if value["format_version"] > PLAN_VERSION:
        raise InputError(f"{uri}: format {value['format_version']} is newer than this firstsight reads ({PLAN_VERSION})")
    plan_id = value.pop("plan_id", None)
    value.pop("format_version")
    try:
        plan = Plan(**value)
    except TypeError as error:
        raise RunError(f"{uri}: not a plan of firstsight: {error}") from error
    if plan.plan_id != plan_id:
        raise RunError(f"{uri}: plan id {plan_id} is not that of its options ({plan.plan_id}): the plan was changed by hand")
    if "remote" not in plan.source:
        raise InputError(f"{folder}: planned by `stage {plan.kind}`, which fetches and seals by itself")
    return plan
