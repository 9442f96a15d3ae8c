"""plan.json of an experiment: its cells, their recipes, and the places of their stages.

Format 3 is a document with a checksum, and pins the data sets' manifests. Format 2 had neither; format 1 (commit ad127be and
before) had one recipe for all cells in place of `recipes`. Both are read as if they were format 3, and the next plan that is
written is format 3. `lanes` came later: a plan without it was written by a version that had none.

A plan that was copied to another root with what it names, such as one restored from a backup, is read with the places of that root.
"""

from collections.abc import Mapping
from typing import Any

from trainer.config import canonical_hash
from trainer.errors import Corrupt
from trainer.storage import layout
from trainer.storage.base import join
from trainer.storage.declarations import damage_of, is_listed
from trainer.storage.documents import read_document, write_document

FORMAT_VERSION = 3
NAME = "plan.json"
Plan = dict[str, Any]
_ENTRY = {
    **dict.fromkeys(("cell", "arm", "point", "recipe", "perceptual", "contrastive", "posthoc", "evaluation"), str),
    **{"seed": int, "recipe_hashes": dict, "stage_labels": dict, "stage_arms": dict},
}
"""What a cell's entry may hold, and of which type."""
_PLACES = ("request", "pairs", "triplets", "sets", "cells", "lanes")
"""Keys that contain URIs. Those of a recipe are as requested, and part of its hash."""
_LANE = {"lane": str, "slots": int, "cells": list, "owns": list}
"""What a lane holds, and of which type."""


def read_plan(experiment_uri: str) -> Plan | None:
    """plan.json of an experiment as format 3 has it (docs/FORMAT.md), or None if it has none.

    Raises:
        InputError: a newer firstsight wrote it.
        Corrupt: it is not an experiment's plan, or not as it was written.
    """
    uri = join(experiment_uri, NAME)
    plan = read_document(uri, "an experiment's plan", FORMAT_VERSION, checked_from=3)
    if plan is None:
        return None
    if not isinstance(plan.get("cells"), list):
        raise Corrupt(f"{uri}: not an experiment's plan: no list of cells")
    version = plan["format_version"]
    for number, entry in enumerate(plan["cells"]):
        wrong = _wrong_key(entry, version)
        if wrong:
            raise Corrupt(f"{uri}: not an experiment's plan: cells[{number}] has no valid {wrong}")
    for name in ("pairs", "triplets"):
        if not is_data(plan.get(name, {"uri": "", "identity": ""})):
            raise Corrupt(f"{uri}: not an experiment's plan: {name} has no uri and identity")
    sets = plan.get("sets", [])
    if not isinstance(sets, list) or not all(map(is_data, sets)):
        raise Corrupt(f"{uri}: not an experiment's plan: sets has no uri and identity")
    if not _is_lanes(plan.get("lanes", {})):
        raise Corrupt(f"{uri}: not an experiment's plan: no valid lanes")
    wrong = _damage_of_points(plan)
    if wrong:
        raise Corrupt(f"{uri}: not an experiment's plan: {wrong}")
    plan = _where_it_lies(plan, experiment_uri)
    if version == 1:
        return _from_format_1(plan)
    recipes = plan.get("recipes")
    if not isinstance(recipes, dict):
        raise Corrupt(f"{uri}: not an experiment's plan: no recipes")
    unknown = [entry["cell"] for entry in plan["cells"] if entry["recipe"] not in recipes]
    if unknown:
        raise Corrupt(f"{uri}: not an experiment's plan: it lacks the recipe of {', '.join(unknown)}")
    return {**plan, "format_version": FORMAT_VERSION}


def write_plan(experiment_uri: str, plan: Plan) -> None:
    """Write plan.json, given in full except for its format version and checksum."""
    write_document(join(experiment_uri, NAME), {**plan, "format_version": FORMAT_VERSION})


def is_data(value: Any) -> bool:
    """Whether this is a data set as a plan names it."""
    if not isinstance(value, dict) or not isinstance(value.get("uri"), str) or not isinstance(value.get("identity"), str):
        return False
    pins = value.get("evaluation_sha256", [])
    return isinstance(value.get("manifest_sha256", ""), str) and isinstance(pins, list) and all(isinstance(pin, str) for pin in pins)


def _damage_of_points(plan: Plan) -> str:
    """What is wrong with a plan's axes, points and declarations; empty: nothing. Plans of experiments without axes have none."""
    axes, points, declared = (plan.get(name, []) for name in ("axes", "points", "declared"))
    if not is_listed(axes):
        return "no valid axes"
    kinds = {"point": str, "at": dict, "cells": dict}
    if not isinstance(points, list) or not all(
        isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in kinds.items()) for one in points
    ):
        return "no valid points"
    if not isinstance(declared, list):
        return "no valid declared"
    return next((f"declared[{number}]: {why}" for number, entry in enumerate(declared) if (why := damage_of(entry))), "")


def _is_lanes(value: Any) -> bool:
    """Whether this is what a plan says of lanes: id of the request -> its lanes (pipelines/planning/lanes.py)."""
    return isinstance(value, dict) and all(
        isinstance(lanes, list)
        and all(isinstance(one, dict) and all(type(one.get(key)) is kind for key, kind in _LANE.items()) for one in lanes)
        for lanes in value.values()
    )


def _wrong_key(entry: Any, version: int) -> str:
    """The first key of a cell's entry that is of another type, or missing where this module needs it; empty: none is."""
    if not isinstance(entry, dict):
        return "cell"
    needed = ("cell", "recipe") if version > 1 else ("seed",) if "stage_arms" in entry else ()
    return next((key for key, kind in _ENTRY.items() if type(entry.get(key, None if key in needed else kind())) is not kind), "")


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Under which name a recipe is in `recipes`: the hash of what is written there."""
    return canonical_hash(recipe)


def _where_it_lies(plan: Plan, experiment_uri: str) -> Plan:
    """The plan with every URI below the root in which it was written moved to the same place below its present root.

    `root` stays as it was written, by which the next run sees that the plan has to be written again.
    """
    before, here = plan.get("root"), experiment_uri.rpartition("/experiments/")[0].rstrip("/")
    if not isinstance(before, str) or not before.rstrip("/") or not here or before.rstrip("/") == here:
        return plan
    return {**plan, **{key: _moved(plan[key], f"{before.rstrip('/')}/", f"{here}/") for key in _PLACES if key in plan}}


def _moved(value: Any, before: str, here: str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(part, before, here) for key, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, before, here) for part in value]
    return here + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value


def _from_format_1(plan: Plan) -> Plan:
    recipe = plan.pop("recipe", {})
    key = recipe_key(recipe)
    for entry in plan["cells"]:
        labels = {
            stage: {"cell": "" if stage == "perceptual" else layout.cell_name(arm, entry["seed"]), "arm": arm, "point": ""}
            for stage, arm in entry.pop("stage_arms", {}).items()
        }
        entry.update(point="", recipe=key, stage_labels=labels)
    return {**plan, "format_version": FORMAT_VERSION, "recipes": {key: recipe}}
