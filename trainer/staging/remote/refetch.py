"""`stage refetch`: a second try for rows that were lost for temporary causes.

The new plan copies the slices of the old data set unchanged and adds slices with the rows to be tried again, so that
nothing is fetched twice; it is a different data set, with its own plan id and identity.
"""

from dataclasses import replace
from typing import Any

from trainer.config import canonical_hash
from trainer.errors import InputError, RunError
from trainer.staging.plans import PLAN_REJECTS, PLAN_VERSION, Plan, write_plan
from trainer.staging.remote.plan import SLICE_SHARDS
from trainer.staging.remote.rows import RemoteRow, as_table, is_planned, read_plan, read_rows, write_rows
from trainer.staging.rows import SPLITS
from trainer.staging.slices import find_whole, read_rejects
from trainer.staging.writer import SliceWriter, gather
from trainer.storage import exists, join, layout, read_bytes, write_bytes
from trainer.storage.checked import describe
from trainer.storage.manifest import Files


def plan_refetch(folder: str, causes: list[str]) -> str:
    """Plan a second try for the rows of a fetched data set that were lost for these causes; returns the new folder.

    Raises:
        InputError: no row was lost for these causes.
        RunError: slices of the old plan are not done, or not whole.
    """
    plan = read_plan(folder)
    account = gather(folder, plan)
    fetched_lost = {cause: count - plan.lost.get(cause, 0) for cause, count in account.lost.items()}
    there = ", ".join(f"{cause!r} ({count})" for cause, count in sorted(fetched_lost.items()) if count) or "none"
    rows: dict[str, list[RemoteRow]] = {split: [] for split in SPLITS}
    whole, _ = find_whole(folder, plan.plan_id, dict(enumerate(plan.splits)))
    for number, record in whole.items():
        if set(causes) & set(record.lost):
            again = {reject.where for reject in read_rejects(folder, number, record) if reject.cause in causes}
            rows[record.split] += [row for row in read_rows(folder, plan, number) if row.key in again]
    keys = sorted(row.key for part in rows.values() for row in part)
    if not keys:
        raise InputError(f"{folder}: no rows were lost because of {', '.join(map(repr, causes))}; causes present: {there}")
    options = {**plan.options, "refetch": {"causes": sorted(causes), "of": plan.plan_id, "rows": canonical_hash(keys)}}
    source = {**plan.source, "copy": {"from": folder, "slices": len(plan.splits), "causes": sorted(causes)}}
    slice_rows = SLICE_SHARDS * plan.shard_samples
    parts = [(split, rows[split][start : start + slice_rows]) for split in SPLITS for start in range(0, len(rows[split]), slice_rows)]
    splits = [*plan.splits, *(split for split, _ in parts)]
    new = replace(plan, options=options, source=source, splits=splits, files={}, format_version=PLAN_VERSION)
    root = folder.rpartition("/datasets/")[0]
    target = layout.dataset(root, plan.name, new.plan_id)
    if not is_planned(target):
        files: Files = {}
        for number, (_, part) in enumerate(parts, start=len(plan.splits)):
            files |= write_rows(target, number, as_table(part))
        if exists(join(folder, PLAN_REJECTS)):
            data = read_bytes(join(folder, PLAN_REJECTS))
            write_bytes(join(target, PLAN_REJECTS), data)
            files[PLAN_REJECTS] = describe(data)
        write_plan(target, replace(new, files=files))
    return target


def copies(plan: Plan, number: int) -> bool:
    """Whether this slice is one of those that are copied from an older data set."""
    return number < int(plan.source.get("copy", {}).get("slices", 0))


def copy_slice(folder: str, plan: Plan, number: int) -> None:
    """Copy the shards of a slice of the older data set, and its rejects except those that are tried again.

    Raises:
        RunError: the slice is not whole there.
    """
    copy: dict[str, Any] = plan.source["copy"]
    older = read_plan(copy["from"])
    whole, unfit = find_whole(copy["from"], older.plan_id, {number: older.splits[number]})
    if unfit:
        raise RunError(f"{unfit[number] or 'not done'}: slice {number} of {older.name}: fetch and seal that data set again")
    with SliceWriter(folder, plan, number) as writer:
        for shard in whole[number].shards:
            writer.adopt(shard, copy["from"])
        for reject in read_rejects(copy["from"], number, whole[number]):
            if reject.cause not in copy["causes"]:
                writer.reject(reject)
