"""`stage refetch`: a second try for rows that were lost for causes that may have passed.

The new plan copies the slices of the old data set as they are and adds slices with the rows to be tried again, so that
nothing that was fetched is fetched twice; it is another data set, with a plan id and an identity of its own.
"""

import json
from dataclasses import replace
from typing import Any

import google_crc32c

from trainer.config import canonical_hash
from trainer.errors import InputError, RunError
from trainer.staging.remote.plan import SLICE_SHARDS
from trainer.staging.remote.rows import RemoteRow, as_table, read_plan, read_rows, write_rows
from trainer.staging.rows import SPLITS, Reject
from trainer.staging.writer import Plan, SliceWriter, gather, slice_uri, write_plan
from trainer.storage import exists, join, layout, read_bytes, read_json, write_bytes
from trainer.storage.manifest import Shard


def plan_refetch(folder: str, causes: list[str]) -> str:
    """Plan a second try for the rows of a fetched data set that were lost for these causes; returns the new folder.

    Raises:
        InputError: no row was lost for them.
        RunError: slices of the old plan are not done.
    """
    plan = read_plan(folder)
    account = gather(folder, plan)
    fetched_lost = {cause: count - plan.lost.get(cause, 0) for cause, count in account.lost.items()}
    there = ", ".join(f"{cause!r} ({count})" for cause, count in sorted(fetched_lost.items()) if count) or "none"
    rows: dict[str, list[RemoteRow]] = {split: [] for split in SPLITS}
    for number, split in enumerate(plan.splits):
        record = read_json(slice_uri(folder, number))
        if set(causes) & set(record["lost"]):
            again = {reject.where for reject in read_rejects(folder, number) if reject.cause in causes}
            rows[split] += [row for row in read_rows(folder, number) if row.key in again]
    keys = sorted(row.key for part in rows.values() for row in part)
    if not keys:
        raise InputError(f"{folder}: no row was lost for {', '.join(map(repr, causes))}; causes there: {there}")
    options = {**plan.options, "refetch": {"causes": sorted(causes), "of": plan.plan_id, "rows": canonical_hash(keys)}}
    source = {**plan.source, "copy": {"from": folder, "slices": len(plan.splits), "causes": sorted(causes)}}
    slice_rows = SLICE_SHARDS * plan.shard_samples
    parts = [(split, rows[split][start : start + slice_rows]) for split in SPLITS for start in range(0, len(rows[split]), slice_rows)]
    new = replace(plan, options=options, source=source, splits=[*plan.splits, *(split for split, _ in parts)])
    root = folder.rpartition("/datasets/")[0]
    target = layout.dataset(root, plan.name, new.plan_id)
    if not exists(join(target, "plan.json")):
        for number, (_, part) in enumerate(parts, start=len(plan.splits)):
            write_rows(target, number, as_table(part))
        if exists(join(folder, "rejects", "plan.jsonl")):
            write_bytes(join(target, "rejects", "plan.jsonl"), read_bytes(join(folder, "rejects", "plan.jsonl")))
        write_plan(target, new)
    return target


def copies(plan: Plan, number: int) -> bool:
    """Whether this slice is one of those that are copied from an older data set."""
    return number < int(plan.source.get("copy", {}).get("slices", 0))


def copy_slice(folder: str, plan: Plan, number: int) -> None:
    """Copy the shards of a slice of the older data set, and its rejects but for those that are tried again."""
    copy: dict[str, Any] = plan.source["copy"]
    record = read_json(slice_uri(copy["from"], number))
    with SliceWriter(folder, plan, number) as writer:
        for shard in (Shard(**value) for value in record["shards"]):
            data = read_bytes(join(copy["from"], shard.name))
            if len(data) != shard.size or google_crc32c.value(data) != shard.crc32c:
                raise RunError(f"{join(copy['from'], shard.name)}: size or checksum is not what was staged")
            write_bytes(join(folder, shard.name), data)
            write_bytes(join(folder, shard.index_name), read_bytes(join(copy["from"], shard.index_name)))
            writer.adopt(shard)
        for reject in read_rejects(copy["from"], number) if record["lost"] else []:
            if reject.cause not in copy["causes"]:
                writer.reject(reject)


def read_rejects(folder: str, number: int) -> list[Reject]:
    """The rejects of one slice that has some."""
    lines = read_bytes(join(folder, "rejects", f"slice-{number:05d}.jsonl")).decode().splitlines()
    return [Reject(**json.loads(line)) for line in lines]
