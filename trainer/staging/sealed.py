"""Check whether a sealed data set is intact, before staging reuses it."""

import sys
from collections.abc import Mapping
from typing import Any

from trainer.errors import Corrupt, InputError
from trainer.staging.plans import PLAN, Plan, read_plan
from trainer.staging.slices import ATTEMPTS, find_whole, sweep
from trainer.storage import join, open_store, read_text, write_bytes
from trainer.storage.checked import describe, find_damaged
from trainer.storage.manifest import NAME, Files, Manifest, read_manifest, staged_sets


def find_intact(folder: str, identity: str = "") -> Manifest | None:
    """The manifest of a data set that is sealed and intact, as are the evaluation sets staged with it.

    Returns:
        None if it is not sealed. Also None, after printing one line about the finding, if something is missing, damaged, or has
        a different identity from the given one; staging it again then restores what can be restored.

    Raises:
        InputError: it has a newer format.
        RunError: the store failed.
    """
    try:
        manifest = read_manifest(folder)
        damage = _find_damage(folder, manifest) if manifest else {}
    except Corrupt as error:
        manifest, damage = None, {NAME: str(error)}
    if identity and manifest is None and not damage:
        damage = {NAME: f"{join(folder, NAME)}: missing"}
    if manifest and identity not in ("", manifest.identity):
        damage = {NAME: f"{join(folder, NAME)}: data set {manifest.identity[:12]}, not {identity[:12]}, with which its pairs were sealed"}
    if damage:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        print(f"{next(iter(damage.values()))}{more}: restaging the damaged parts", file=sys.stderr)
        return None
    if manifest is None or not all(find_intact(place.uri, place.identity) for place in staged_sets(folder, manifest)):
        return None
    if open_store(folder).holds(join(folder, ATTEMPTS)):
        sweep(folder, manifest)
    return manifest


def _find_damage(folder: str, manifest: Manifest) -> dict[str, str]:
    """Name -> one line that describes its damage."""
    plan = read_plan(folder)
    if plan is None:
        return {PLAN: f"{join(folder, PLAN)}: missing"}
    damaged = find_damaged(folder, {**manifest.all_files, **plan.files})
    found = {name: f"{join(folder, name)}: {reason}" for name, reason in damaged.items()}
    return found or (_find_damage_in_format_1(folder, manifest, plan) if manifest.format_version == 1 else {})


def _find_damage_in_format_1(folder: str, manifest: Manifest, plan: Plan) -> dict[str, str]:
    """Check what the identity of format 1 does not cover against the plan and the records of slices."""
    whole, unfit = find_whole(folder, plan.plan_id, dict(enumerate(plan.splits)))
    if unfit:
        return {str(number): reason for number, reason in unfit.items()}
    planned = (plan.kind, plan.name, plan.plan_id, plan.options, plan.judge)
    shards = [shard.name for _, record in sorted(whole.items()) for shard in record.shards]
    sealed = (manifest.kind, manifest.name, manifest.plan_id, manifest.options, manifest.judge)
    if planned != sealed or shards != [shard.name for shard in manifest.shards]:
        return {NAME: f"{join(folder, NAME)}: contradicts {PLAN} and the slices' records: damaged or changed by hand"}
    if manifest.kind == "evaluation":
        for name, data in layout_files(len(shards), manifest.facts).items():
            if _text(join(folder, name)) != data.decode().strip():
                return {name: f"{join(folder, name)}: missing, or not what was staged"}
    return {}


def _text(uri: str) -> str:
    try:
        return read_text(uri).strip()
    except InputError:
        return ""


def write_files(folder: str, files: Mapping[str, bytes]) -> Files:
    """Write further files of a data set. Returns their sizes and checksums for its manifest."""
    for name, data in files.items():
        write_bytes(join(folder, name), data)
    return {name: describe(data) for name, data in files.items()}


def layout_files(num_shards: int, facts: Mapping[str, Any], end: str = "", training_shards: int = 0) -> dict[str, bytes]:
    """The text files by which CLIP_benchmark recognises an evaluation set.

    Args:
        num_shards: number of shards of the set's test split.
        facts: facts from its manifest: task, class names, templates.
        end: text at the end of each file except nshards.txt.
        training_shards: number of shards of its training split; 0: it has none.
    """
    texts = {}
    if facts["task"] == "zeroshot_retrieval":
        texts["dataset_type.txt"] = "retrieval"
    else:
        texts |= {"classnames.txt": "\n".join(facts["classnames"]), "zeroshot_classification_templates.txt": "\n".join(facts["templates"])}
        if facts.get("multilabel"):
            texts["dataset_type.txt"] = "multilabel"
    counts = {"test": num_shards, **({"train": training_shards} if training_shards else {})}
    numbers = {f"{split}/nshards.txt": str(count).encode() for split, count in counts.items()}
    return {**numbers, **{name: (text + end).encode() for name, text in texts.items()}}
