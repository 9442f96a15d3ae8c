"""plan.json: everything that determines what will be staged, byte for byte."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from trainer.config import canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.staging.rows import SPLITS, Reject
from trainer.staging.slices import encode_rejects, find_sealed, find_whole, tally, to_make
from trainer.storage import exists, join, layout, open_store, write_bytes, write_json
from trainer.storage.checked import describe
from trainer.storage.documents import read_document, write_document
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import Files, Kind, from_json

PLAN_VERSION = 2
_ID_VERSION = 1  # version of the content hashed into a plan id
PAIRS_RULES = 2
"""Version of the rules for staging pairs; the option `rules` of a plan. Version 1 (until 2026-11-29) had no such option: .txt held all
captions of a sample, one per line, and .json none. From 2 on .txt is the first caption and .json has the list (FORMAT.md)."""
PLAN = "plan.json"
PLAN_REJECTS = "rejects/plan.jsonl"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be staged: all of it decides the bytes, except `source["uri"]`, which is for people.

    Attributes:
        kind: of the data set.
        name: of the data set.
        source: {"uri", "fingerprint", …}.
        options: what is done to the samples.
        shard_samples: samples per shard.
        splits: the split of each slice.
        rows_read: rows of the source, including those lost at planning.
        lost: rows lost at planning, by cause.
        bad: the lost rows whose cause is a fault in the data.
        examples: one lost row for each cause.
        columns: key of COLUMNS.
        attribution: licence line.
        judge: who judged the triplets.
        files: files that the planner wrote beside plan.json, such as rows and its rejects; empty in format 1.
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
    """Hash over the source's contents and the options, 16 hex digits."""
    return canonical_hash({"version": _ID_VERSION, "source": fingerprint, "options": dict(options)})[:16]


def pairs_target(root: str, name: str, fingerprint: object, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Folder and options of a pairs data set: with today's rules, unless an older version has begun one there.

    Args:
        root: store URI under which datasets/ lies.
        name: of the data set.
        fingerprint: of its source.
        options: what is done to the samples, without the rules.
    """
    before = layout.dataset(root, name, plan_id(fingerprint, options))
    if any(exists(join(before, file)) for file in (PLAN, MANIFEST)):
        return before, dict(options)
    now = {**options, "rules": PAIRS_RULES}
    return layout.dataset(root, name, plan_id(fingerprint, now)), now


def rules_of(options: Mapping[str, Any]) -> int:
    """The version of the rules that pairs are, or were, staged by."""
    return int(options.get("rules", 1))


def refuse(folder: str, uri: str, what: str, rejects: Sequence[Reject]) -> NoReturn:
    """Refuse a source: an InputError with the causes, counts, an example of each, and the place of the full list.

    Args:
        folder: of the data set.
        uri: of the source.
        what: what is wrong.
        rejects: the rows that were lost; they are written to the data set's folder.
    """
    if not rejects:
        raise InputError(f"{uri}: {what}")
    write_bytes(join(folder, PLAN_REJECTS), encode_rejects(rejects))
    counted = tally(rejects)
    raise InputError(f"{uri}: {what}: {name_causes(counted['lost'], counted['examples'])}; all are listed in {join(folder, PLAN_REJECTS)}")


def name_causes(counts: Mapping[str, int], examples: Mapping[str, str]) -> str:
    """Each cause with its count and an example."""
    return "; ".join(f"{count} x {cause} (such as {examples[cause]})" for cause, count in sorted(counts.items()))


def write_plan(folder: str, plan: Plan, rejects: Sequence[Reject] = ()) -> Plan:
    """Write plan.json to `folder`, and the rows lost at planning to rejects/plan.jsonl; returns the plan as written.

    An existing plan keeps its format, and is left as it is if its content is the same.
    """
    if rejects:
        data = encode_rejects(rejects)
        write_bytes(join(folder, PLAN_REJECTS), data)
        plan = dataclasses.replace(plan, files={**plan.files, PLAN_REJECTS: describe(data)})
    plan = dataclasses.replace(plan, format_version=_format_there(folder, plan))
    if plan.format_version == 1:
        plan = dataclasses.replace(plan, files={}, source={key: value for key, value in plan.source.items() if key != "rows"})
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
    """The plan in `folder`, or None if there is none.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is not a plan, or was damaged or changed by hand.
    """
    uri = join(folder, PLAN)
    value = read_document(uri, "a plan", PLAN_VERSION, checked_from=2)
    if value is None:
        return None
    stored = value.pop("plan_id", None)
    plan = from_json(Plan, {"files": {}, **value}, 2, uri)
    rules = plan.options.get("rules", 1)
    if not all(split in SPLITS for split in plan.splits) or plan.shard_samples < 1 or type(rules) is not int or rules < 1:
        raise Corrupt(f"{uri}: contains an unknown split, number of samples or version of the rules: it was damaged or edited by hand")
    if rules > PAIRS_RULES:
        raise InputError(
            f"{uri}: made by version {rules} of the rules, this firstsight only knows versions up to {PAIRS_RULES}: use a newer firstsight"
        )
    if "fingerprint" not in plan.source or plan.plan_id != stored:
        raise Corrupt(f"{uri}: plan id {stored} is not that of its source and options: it was damaged or changed by hand")
    return plan


def _format_there(folder: str, plan: Plan) -> int:
    """The format of the data set in `folder`, finished or not; one begun in format 1 stays in it."""
    with suppress(Corrupt):
        there = read_plan(folder) or find_sealed(folder)
        if there is not None:
            return there.format_version
    if not open_store(folder).holds(join(folder, "slices")):
        return plan.format_version
    whole, _ = find_whole(folder, plan.plan_id, dict(enumerate(plan.splits)))
    return min([plan.format_version, *(record.format_version for record in whole.values())])


def slices_to_make(folder: str, plan: Plan, numbers: Sequence[int] | None = None) -> Iterator[int]:
    """The slices (default: of all) that are not done or no longer whole; each is checked as late as possible."""
    return to_make(
        folder, plan.plan_id, {number: plan.splits[number] for number in (range(len(plan.splits)) if numbers is None else numbers)}
    )
