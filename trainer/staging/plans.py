"""plan.json: what will be staged, all that decides the bytes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config import canonical_hash
from trainer.errors import Corrupt
from trainer.staging.rows import Reject
from trainer.staging.slices import encode_rejects, find_sealed, find_whole, to_make
from trainer.storage import join, open_store, write_bytes, write_json
from trainer.storage.checked import describe
from trainer.storage.documents import read_document, write_document
from trainer.storage.manifest import Files, Kind, from_json

PLAN_VERSION = 2
_ID_VERSION = 1  # of what a plan id is a hash of
PLAN = "plan.json"
PLAN_REJECTS = "rejects/plan.jsonl"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be staged: all of it decides the bytes, but for `source["uri"]`, which is for people.

    Attributes:
        kind: of the data set.
        name: of the data set.
        source: {"uri", "fingerprint", …}.
        options: what is done to the samples.
        shard_samples: samples a shard.
        splits: the split of each slice.
        rows_read: rows of the source, those that became no sample at planning included.
        lost: rows lost at planning, by cause.
        bad: those of them that are faults of the data.
        examples: one of them for each cause.
        columns: key of COLUMNS.
        attribution: licence line.
        judge: of triplets.
        files: what the planner left beside plan.json, such as rows and its rejects; empty in format 1.
        format_version: of the plan, and of the manifest that seals it.
    """

    kind: Kind
    name: str
    source: dict[str, Any]
    options: dict[str, Any]
    shard_samples: int
    splits: list[str]
    rows_read: int
    columns: str
    lost: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    attribution: str = ""
    judge: str = ""
    files: Files = field(default_factory=dict)
    format_version: int = PLAN_VERSION

    @property
    def plan_id(self) -> str:
        """Of the data set's folder."""
        return plan_id(self.source["fingerprint"], self.options)


def plan_id(fingerprint: object, options: Mapping[str, Any]) -> str:
    """Hash over what the source holds and what is done to it, 16 hex digits."""
    return canonical_hash({"version": _ID_VERSION, "source": fingerprint, "options": dict(options)})[:16]


def write_plan(folder: str, plan: Plan, rejects: Sequence[Reject] = ()) -> Plan:
    """Leave plan.json in `folder`, and the rows that were lost at planning in rejects/plan.jsonl; the plan as it was written.

    A plan that lies there already keeps its format, and stays as it is where it says the same.
    """
    if rejects:
        data = encode_rejects(rejects)
        write_bytes(join(folder, PLAN_REJECTS), data)
        plan = dataclasses.replace(plan, files={**plan.files, PLAN_REJECTS: describe(data)})
    plan = dataclasses.replace(plan, format_version=_format_there(folder, plan))
    if plan.format_version == 1:
        plan = dataclasses.replace(plan, files={})
    with suppress(Corrupt):
        if read_plan(folder) == plan:
            return plan
    value = {**asdict(plan), "plan_id": plan.plan_id}
    if plan.format_version == 1:
        del value["files"]
        write_json(join(folder, PLAN), value)
    else:
        write_document(join(folder, PLAN), value)
    return plan


def read_plan(folder: str) -> Plan | None:
    """The plan in `folder`, or None where there is none.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is no plan, or was damaged or changed by hand.
    """
    uri = join(folder, PLAN)
    value = read_document(uri, "a plan", PLAN_VERSION, checked_from=2)
    if value is None:
        return None
    stored = value.pop("plan_id", None)
    plan = from_json(Plan, {"files": {}, **value}, 2, uri)
    if "fingerprint" not in plan.source or plan.plan_id != stored:
        raise Corrupt(f"{uri}: plan id {stored} is not that of its source and options: it was damaged or changed by hand")
    return plan


def _format_there(folder: str, plan: Plan) -> int:
    """The format of the data set that lies, whole or not, in `folder`; what was begun in format 1 stays in it."""
    with suppress(Corrupt):
        there = read_plan(folder) or find_sealed(folder)
        if there is not None:
            return there.format_version
    if not open_store(folder).holds(join(folder, "slices")):
        return plan.format_version
    whole, _ = find_whole(folder, plan.plan_id, dict(enumerate(plan.splits)))
    return min([plan.format_version, *(record.format_version for record in whole.values())])


def slices_to_make(folder: str, plan: Plan, numbers: Sequence[int] | None = None) -> Iterator[int]:
    """Those of the slices (default: all) that are not done, or no longer whole, each as late as it can be said."""
    return to_make(
        folder, plan.plan_id, {number: plan.splits[number] for number in (range(len(plan.splits)) if numbers is None else numbers)}
    )
