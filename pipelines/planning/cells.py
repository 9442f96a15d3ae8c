"""plan.json as steps read it: which cells an experiment has, and where the stages of each lie."""

from typing import Any

from trainer.errors import InputError
from trainer.storage import join
from trainer.storage.plans import NAME, read_plan

__all__ = ["find_cell", "read_plan"]


def find_cell(experiment_uri: str, name: str) -> dict[str, Any]:
    """One cell's entry of plan.json."""
    plan = read_plan(experiment_uri) or {"cells": []}
    for entry in plan["cells"]:
        if entry["cell"] == name:
            return dict(entry)
    raise InputError(f"{join(experiment_uri, NAME)} has no cell {name!r}")
