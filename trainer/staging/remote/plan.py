"""`stage plan`: turn a list of any length into slices of rows, sorted and joined by duckdb, out of core.

The folder's name is a hash over the list's contents and the options, so planning twice gives one plan. plan.json is
written last; files left by a killed planner are overwritten with the same bytes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from trainer.config import StagingConfig
from trainer.errors import InputError
from trainer.fields import added_fields
from trainer.progress import check_stop, progress
from trainer.redaction import without_credentials
from trainer.staging.plans import PLAN_REJECTS, Plan, name_causes, pairs_target, rules_of, write_plan
from trainer.staging.remote.http import base_of
from trainer.staging.remote.inputs import Inputs, run
from trainer.staging.remote.rows import REMOTE, SCHEMA, is_planned, write_rows
from trainer.staging.rows import SPLITS, Reject, safe_key
from trainer.staging.sources.listing import fingerprint
from trainer.staging.tokens import CONTEXT_LENGTH
from trainer.storage import join, open_store
from trainer.storage.base import absolute
from trainer.storage.checked import file_sha256
from trainer.storage.manifest import Files
from trainer.storage.scratch import temporary_folder

SLICE_SHARDS = 8
"""Shards per slice, the unit that one process makes and, if killed, makes again."""

_MAX_CLASSES = 10_000  # with more labels than this, they are not classes

_READS = "coalesce(nullif(lower(trim(regexp_replace(texts[1], '\\s+', ' ', 'g'))), ''), key)"
"""What twins share: the first text, normalised. Bytes are not known before they are fetched."""
_HARMLESS = ("duplicate",)  # lost rows that are no fault of the data


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a pairs source as a query (see sources/__init__.py for its columns)."""

    name: str
    uri: str
    query: str
    attribution: str


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of a plan, besides its source.

    Attributes:
        images: base URI of the pictures, if the rows contain paths.
        captions: a policy of `captions.POLICIES`.
        heldout_fraction: fraction of the rows that becomes the split test.
        memory_mb: duckdb's memory limit; beyond it, it spills to disk.
        scratch: local folder for that; empty: the system's temporary folder.
        contact: e-mail address or URL sent to the servers of lists.
    """

    images: str = ""
    captions: str = "as-is"
    heldout_fraction: float = 0.0
    memory_mb: int = 1024
    scratch: str = ""
    contact: str = ""


def plan_pairs(root: str, make: Callable[[duckdb.DuckDBPyConnection, Inputs], Table], options: PlanOptions, staging: StagingConfig) -> str:
    """Plan a pairs data set; returns its folder.

    Args:
        root: store URI under which datasets/ lies.
        make: inspects the source and returns its rows as a query.
        options: the plan's options.
        staging: image policy and samples per shard.
    """
    root, images = absolute(root), base_of("--images", options.images)
    if not 0 <= options.heldout_fraction < 1:
        raise InputError(f"--heldout-fraction must be in [0, 1), got {options.heldout_fraction}")
    with temporary_folder("plan", options.scratch) as scratch:
        with duckdb.connect(str(scratch / "plan.duckdb")) as database:
            _configure(database, scratch, options.memory_mb)
            inputs = Inputs(scratch, options.contact)
            table = make(database, inputs)
            decided = {
                "caption_policy": options.captions, "context_length": CONTEXT_LENGTH, "heldout_fraction": options.heldout_fraction,
                "image_policy": staging.image_policy, "shard_samples": staging.shard_samples, "slice_shards": SLICE_SHARDS,
                **added_fields(staging),
            }  # fmt: skip
            found = fingerprint(inputs.files, root)
            folder, decided = pairs_target(root, f"{table.name}-pairs", found, decided)
            if is_planned(folder):
                return folder
            run(database, f"CREATE TABLE source AS {table.query}")
            relative = "source WHERE cause = '' AND NOT starts_with(image, 'http://') AND NOT starts_with(image, 'https://')"
            if not options.images and _count(database, relative):
                raise InputError(f"--images is required: {table.uri} refers to pictures by path, such as {_first(database, relative)!r}")
            lost, rejects = _find_lost(database, folder, scratch)
            slice_rows = SLICE_SHARDS * staging.shard_samples
            split_by = _READS if rules_of(decided) > 1 else "key"
            splits, rows = _write_slices(database, folder, f"plan {table.name}", (options.heldout_fraction, split_by), slice_rows)
            rows_read = _count(database, "source")
            labels = run(database, f"SELECT DISTINCT label FROM kept WHERE label <> '' ORDER BY label LIMIT {_MAX_CLASSES + 1}")
        if not splits:
            what = f"{table.uri}: no usable row among {rows_read}"
            if not lost["lost"]:
                raise InputError(f"{what}: it is empty")
            raise InputError(f"{what}: {name_causes(lost['lost'], lost['examples'])}; all are listed in {join(folder, PLAN_REJECTS)}")
        source = {
            "uri": without_credentials(table.uri), "fingerprint": found, "images": images, "remote": REMOTE,
            "classes": [row[0] for row in labels] if len(labels) <= _MAX_CLASSES else [],
        }  # fmt: skip
        plan = Plan(
            kind="pairs", name=f"{table.name}-pairs", source=source, options=decided, shard_samples=staging.shard_samples, splits=splits,
            rows_read=rows_read, columns="pairs", attribution=table.attribution, files={**rejects, **rows}, **lost,
        )  # fmt: skip
        write_plan(folder, plan)
        return folder


def _configure(database: duckdb.DuckDBPyConnection, scratch: Path, memory_mb: int) -> None:
    database.execute(f"SET memory_limit = '{memory_mb}MB'")
    database.execute("SET threads = 2")  # each has buffers of its own, and the disk is the limit
    database.execute(f"SET temp_directory = '{scratch}/spill'")
    database.execute("SET preserve_insertion_order = true")  # row_number() over a file is its line
    database.execute("SET enable_progress_bar = false")


def _count(database: duckdb.DuckDBPyConnection, relation: str) -> int:
    return int(run(database, f"SELECT count(*) FROM {relation}")[0][0])


def _first(database: duckdb.DuckDBPyConnection, relation: str) -> str:
    return str(run(database, f"SELECT image FROM {relation} ORDER BY position LIMIT 1")[0][0])


def _find_lost(database: duckdb.DuckDBPyConnection, folder: str, scratch: Path) -> tuple[dict[str, Any], Files]:
    """Count the rows that cannot become samples, and write rejects/plan.jsonl; of rows with the same key, the first is kept."""
    run(database, "CREATE TABLE twice AS SELECT key FROM source WHERE cause = '' GROUP BY key HAVING count(*) > 1")
    run(
        database,
        """CREATE TABLE lost AS
        SELECT position, key, image, cause FROM source WHERE cause <> '' UNION ALL
        SELECT position, key, image, 'duplicate' FROM (
            SELECT *, row_number() OVER (PARTITION BY key ORDER BY position, image, texts) AS copy
            FROM source SEMI JOIN twice USING (key) WHERE cause = '') WHERE copy > 1""",
    )
    reader = database.sql("SELECT * FROM lost ORDER BY position, key, cause").to_arrow_reader(10_000)
    path = scratch / "rejects.jsonl"
    with open(path, "wb") as file:
        for batch in reader:
            for row in batch.to_pylist():
                reject = Reject(f"row {row['position']}", row["cause"], f"{row['key']}: {row['image']}", row["cause"] not in _HARMLESS)
                file.write(json.dumps(asdict(reject), sort_keys=True).encode() + b"\n")
    files: Files = {}
    if path.stat().st_size:
        uri = join(folder, PLAN_REJECTS)
        with open(path, "rb") as file:
            open_store(uri).put_stream(uri, file, path.stat().st_size)
        files[PLAN_REJECTS] = {"size": path.stat().st_size, "sha256": file_sha256(str(path))}
    counted = "SELECT cause, count(*), min('row ' || position || ': ' || coalesce(key, '')) FROM lost GROUP BY cause"
    rows = run(database, counted)
    lost = {str(cause): int(count) for cause, count, _ in rows}
    bad = {cause: count for cause, count in lost.items() if cause not in _HARMLESS}
    return {"lost": lost, "bad": bad, "examples": {str(cause): str(example) for cause, _, example in rows}}, files


def _write_slices(
    database: duckdb.DuckDBPyConnection, folder: str, step: str, heldout: tuple[float, str], slice_rows: int
) -> tuple[list[str], Files]:
    """Permute the rows of each split by a hash of their keys, and write them slice by slice: each slice's split, and the files.

    `heldout` is the part that is held out, and what rows must have alike to share a split.
    """
    fraction, split_by = heldout
    run(
        database,
        f"""CREATE TABLE kept AS SELECT *, CASE WHEN md5_number_lower('split ' || {split_by}) % 1000000 < {round(fraction * 1e6)}
            THEN 'test' ELSE 'train' END AS split FROM (
        SELECT key, image, texts, label FROM source ANTI JOIN twice USING (key) WHERE cause = '' UNION ALL
        SELECT key, image, texts, label FROM (
            SELECT *, row_number() OVER (PARTITION BY key ORDER BY position, image, texts) AS copy
            FROM source SEMI JOIN twice USING (key) WHERE cause = '') WHERE copy = 1)""",
    )
    splits: list[str] = []
    files: Files = {}
    done, total = 0, _count(database, "kept")
    for split in SPLITS:
        ordered = f"""SELECT key, [image] AS images, texts, label, '' AS facts FROM kept WHERE split = '{split}'
            ORDER BY md5_number_lower('order ' || key), key"""
        for table in _cut(database.sql(ordered).to_arrow_reader(16_384), slice_rows):
            files |= write_rows(folder, len(splits), _with_safe_keys(table))
            splits.append(split)
            done += table.num_rows
            check_stop()
            progress(step, done, total, "rows")
    return splits, files


def _cut(batches: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """Tables of `rows` rows each, the last one possibly shorter."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, rows - count)
            batch = batch.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _with_safe_keys(table: pa.Table) -> pa.Table:
    """Replace keys by ones that are safe in a tar: a list's keys may contain anything."""
    keys = [safe_key(key) for key in table["key"].to_pylist()]
    return table.set_column(table.schema.get_field_index("key"), SCHEMA.field("key"), pa.array(keys))
