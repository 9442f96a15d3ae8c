"""plan.json of an experiment: which cells it has, by what recipe, and where the stages of each lie.

Format 2 holds a recipe a cell: `recipes` has each once under a hash, and a cell names its own. Format 1 (commit ad127be and
before) had one recipe for all; it is read as if it were format 2, and the next plan that is written is format 2.
"""

from collections.abc import Mapping
from typing import Any

from trainer.config import canonical_hash
from trainer.errors import InputError
from trainer.storage import layout
from trainer.storage.base import MissingObject, join, read_json

FORMAT_VERSION = 2
NAME = "plan.json"
Plan = dict[str, Any]
_ENTRY = {
    **dict.fromkeys(("cell", "arm", "point", "recipe", "perceptual", "contrastive", "posthoc", "evaluation"), str),
    **{"seed": int, "recipe_hashes": dict, "stage_labels": dict, "stage_arms": dict},
}
"""What a cell's entry may hold, and of which type."""


def read_plan(experiment_uri: str) -> Plan | None:
    """plan.json of an experiment as format 2 has it (docs/FORMAT.md), or None where it has none.

    Raises:
        InputError: it is not an experiment's plan, or a newer firstsight wrote it.
        RunError: it is not JSON.
    """
    uri = join(experiment_uri, NAME)
    try:
        plan = read_json(uri)
    except MissingObject:
        return None
    if not isinstance(plan, dict) or not isinstance(plan.get("cells"), list):
        raise InputError(f"{uri}: not an experiment's plan: no list of cells")
    version = plan.get("format_version")
    if type(version) is not int or version < 1:  # True is an int too
        raise InputError(f"{uri}: not an experiment's plan: format_version must be a whole number from 1, got {version!r}")
    if version > FORMAT_VERSION:
        raise InputError(f"{uri}: written by a newer firstsight (format {version}, this one reads up to {FORMAT_VERSION})")
    for number, entry in enumerate(plan["cells"]):
        wrong = _wrong_key(entry, version)
        if wrong:
            raise InputError(f"{uri}: not an experiment's plan: cells[{number}] has no valid {wrong}")
    if version == 1:
        return _from_format_1(plan)
    recipes = plan.get("recipes")
    if not isinstance(recipes, dict):
        raise InputError(f"{uri}: not an experiment's plan: no recipes")
    unknown = [entry["cell"] for entry in plan["cells"] if entry["recipe"] not in recipes]
    if unknown:
        raise InputError(f"{uri}: not an experiment's plan: it lacks the recipe of {', '.join(unknown)}")
    return plan


def _wrong_key(entry: Any, version: int) -> str:
    """The first key of a cell's entry that is of another type, or missing where this module needs it; empty: none is."""
    if not isinstance(entry, dict):
        return "cell"
    needed = ("cell", "recipe") if version > 1 else ("seed",) if "stage_arms" in entry else ()
    return next((key for key, kind in _ENTRY.items() if type(entry.get(key, None if key in needed else kind())) is not kind), "")


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Under which name a recipe stands in `recipes`: the hash of what is written there."""
    return canonical_hash(recipe)


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
