"""plan.json as steps read it: which cells an experiment has, and where the stages of each lie."""

from typing import Any

from trainer.errors import InputError
from trainer.storage import join, read_json
from trainer.storage.base import MissingObject

FORMAT_VERSION = 1
NAME = "plan.json"


def read_plan(experiment_uri: str) -> dict[str, Any] | None:
    """plan.json of an experiment, or None where it has none."""
    uri = join(experiment_uri, NAME)
    try:
        plan: dict[str, Any] = read_json(uri)
    except MissingObject:
        return None
    if plan.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{uri}: format {plan.get('format_version')} is not what this firstsight reads ({FORMAT_VERSION})")
    return plan


def find_cell(experiment_uri: str, name: str) -> dict[str, Any]:
    """One cell's entry of plan.json."""
    plan = read_plan(experiment_uri) or {"cells": []}
    for entry in plan["cells"]:
        if entry["cell"] == name:
            return dict(entry)
    raise InputError(f"{join(experiment_uri, NAME)} has no cell {name!r}")
